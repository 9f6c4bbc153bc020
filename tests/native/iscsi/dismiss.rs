//! Sessions that the target ends: nothing of them is carried out afterwards, whether their initiators listen or not.

use std::net::SocketAddr;
use std::time::Duration;

use super::super::host::pattern;
use super::super::server::{PATIENCE, Place, Server, until};
use super::busy::Busy;
use super::held::{BESIDE, BY_R2T, SHORT, late_config, pending, two_cores, with_beside, zeros};
use super::initiator::cdb;
use super::initiator::login::{NOT_ALLOWED, text};
use super::initiator::pdu::{Pdu, flag, op};
use super::initiator::session::{event, function, managed};
use super::initiator::{Got, Login, Offer, Options, Session, Wire};
use super::{BLOCK, IQN, MIB, SIZE, config, portal, session};

/// Bytes of a write that comes whole with its command.
const LEN: usize = 16 * BLOCK;
/// Long enough for what must not happen.
const QUIET: Duration = Duration::from_millis(400);

/// A volume behind a target with these keys, if it is there, and behind another one.
fn two_targets(keys: Option<&str>) -> String {
    let first = keys.map_or(String::new(), |keys| {
        format!("[[iscsi.target]]\niqn = \"{IQN}\"\nluns = [{{ bdev = \"ram0\" }}]\n{keys}\n")
    });
    format!(
        r#"
        {}
        [memory]
        size = "128MiB"
        [[bdev]]
        name = "ram0"
        driver = "malloc"
        size = {SIZE}
        [iscsi]
        listen = ["127.0.0.1:0"]
        {first}
        [[iscsi.target]]
        iqn = "{BESIDE}"
        luns = [{{ bdev = "ram0" }}]
        "#,
        two_cores()
    )
}

fn to(address: SocketAddr, target: &str, number: u8) -> Session {
    let mut session = Session::open(address, &Options::new(target, number));
    session.settle(0);
    session
}

/// An initiator that sends and never reads.
struct Deaf {
    wire: Wire,
    cmd_sn: u32,
    stat_sn: u32,
    last: u32,
}

impl Deaf {
    /// With as many answers under way as fill what the socket holds, and more.
    fn begin(address: SocketAddr, number: u8) -> Deaf {
        let offer = Offer { max_recv: Some(1 << 18), max_burst: Some(1 << 20), ..Offer::PLAIN };
        let mut session = Session::open(address, &Options::new(IQN, number).with(offer));
        session.settle(0);
        let (cmd_sn, last) = (session.cmd_sn, session.window.1);
        let conn = session.conns.remove(0);
        let mut deaf = Deaf { wire: conn.wire, cmd_sn, stat_sn: conn.stat_sn, last };
        for _ in 0..32 {
            let read = Pdu::new(op::COMMAND, flag::FINAL | flag::READ | 1).with(20, MIB as u32);
            assert!(deaf.send(read, &cdb::read16(0, (MIB / BLOCK) as u32)));
        }
        deaf
    }

    /// Whether the target's side still takes it.
    fn send(&mut self, mut pdu: Pdu, cdb: &cdb::Cdb) -> bool {
        assert!(self.last.wrapping_sub(self.cmd_sn) < 1 << 31, "the window is closed");
        pdu.bhs[32..].copy_from_slice(cdb);
        let pdu = pdu.with(16, self.cmd_sn).with(24, self.cmd_sn).with(28, self.stat_sn);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        self.wire.send(&pdu)
    }

    fn write(&mut self, lba: u64, data: &[u8]) -> bool {
        let pdu = Pdu::new(op::COMMAND, flag::FINAL | flag::WRITE | 1).with(20, data.len() as u32).with_data(data);
        self.send(pdu, &cdb::write16(lba, (data.len() / BLOCK) as u32, 0))
    }
}

/// Reloads and waits for the line of the log that says so.
fn reload(place: &Place, server: &mut Server, text: &str, expected: &str) {
    place.configure(text);
    server.program.signal("HUP");
    assert!(server.program.err.next_with(expected, PATIENCE).is_some(), "no line with {expected:?}");
}

/// The first slots, as somebody else sees them.
fn slots(session: &mut Session, count: usize) -> Vec<u8> {
    let blocks = count * LEN / BLOCK;
    session.command(0, &cdb::read16(0, blocks as u32), &[], count * LEN).good()
}

#[test]
fn who_is_dismissed_and_does_not_listen_writes_no_more() {
    const SLOTS: usize = 8;
    let all = r#"initiators = ["iqn.2026-11.test.initiator:1", "iqn.2026-11.test.initiator:2"]"#;
    let others = r#"initiators = ["iqn.2026-11.test.initiator:2"]"#;
    let cases = [
        (two_targets(Some(others)), format!("target \"{IQN}\" has other initiators from now on")),
        (two_targets(None), format!("target \"{IQN}\" is removed")),
    ];
    for (after, line) in cases {
        // On either reactor.
        for before_it in 0..2 {
            let place = Place::new();
            let mut server = place.serve(&two_targets(Some(all)));
            let address = portal(&server);
            let mut watching: Vec<Session> =
                (0..2 + before_it).map(|number| to(address, BESIDE, 10 + number)).collect();
            let mut deaf = Deaf::begin(address, 1);
            for slot in 0..SLOTS {
                assert!(deaf.write((slot * LEN / BLOCK) as u64, &pattern(LEN, slot as u64)));
            }
            let first: Vec<u8> = (0..SLOTS).flat_map(|slot| pattern(LEN, slot as u64)).collect();
            let (served, _) = until(PATIENCE, || slots(&mut watching[0], SLOTS) == first);
            assert!(served, "what it sends is carried out although it takes no answer");
            reload(&place, &mut server, &after, &line);
            // Ports may be gone, which is announced.
            watching.iter_mut().for_each(|session| drop(session.settle(0)));
            let at_reload = slots(&mut watching[1], SLOTS);
            for slot in 0..SLOTS {
                // Whether it is taken or not.
                let _ = deaf.write((slot * LEN / BLOCK) as u64, &pattern(LEN, 100 + slot as u64));
            }
            std::thread::park_timeout(QUIET);
            assert!(slots(&mut watching[0], SLOTS) == at_reload, "{line}: it has written");
            watching.into_iter().for_each(Session::end);
            drop(deaf);
            server.stop();
        }
    }
}

/// The session hears that its connections are dropped, and they are.
fn is_dropped(session: &mut Session) {
    until(PATIENCE, || !session.turn(0, QUIET) && session.conns[0].over.is_some());
    assert_eq!(session.conns[0].over, Some(Got::End), "closed in order");
    let events: Vec<(u8, u8)> = session.events.iter().map(|pdu| (pdu.opcode(), pdu.bhs[36])).collect();
    assert_eq!(events, [(op::ASYNC, event::DROP_SESSION)], "it was told before");
}

#[test]
fn who_is_dismissed_is_told() {
    let place = Place::new();
    let mut server = place.serve(&two_targets(Some("")));
    let address = portal(&server);
    let mut beside = to(address, BESIDE, 9);
    let mut sessions = [1, 2].map(|number| to(address, IQN, number));
    assert_eq!(sessions[0].manage(0, function::COLD_RESET, 0, None), managed::COMPLETE);
    sessions.iter_mut().for_each(is_dropped);
    let mut sessions = [1, 2].map(|number| to(address, IQN, number));
    let others = r#"initiators = ["iqn.2026-11.test.initiator:2"]"#;
    reload(&place, &mut server, &two_targets(Some(others)), "has other initiators");
    is_dropped(&mut sessions[0]);
    sessions[1].ping(0, b"still here");
    assert!(Session::login(address, &Options::new(IQN, 1)).is_err());
    reload(&place, &mut server, &two_targets(None), "is removed");
    is_dropped(&mut sessions[1]);
    // It is the reset of another target.
    beside.settle(0);
    beside.end();
    server.stop();
}

#[test]
fn a_login_under_way_is_refused_when_its_initiator_is_taken_off_the_list() {
    /// The operational stage, and full feature phase behind it.
    const OPERATIONAL: u8 = 1;
    const FULL_FEATURE: u8 = 3;
    let place = Place::new();
    let all = r#"initiators = ["iqn.2026-11.test.initiator:1", "iqn.2026-11.test.initiator:2"]"#;
    let mut server = place.serve(&two_targets(Some(all)));
    let mut logins: Vec<Login> = (1..3)
        .map(|number| {
            let options = Options::new(IQN, number);
            let mut login = Login::new(portal(&server), &options);
            login.exchange((OPERATIONAL, 0, false), &text(&options.names()), usize::MAX).unwrap();
            login
        })
        .collect();
    let others = r#"initiators = ["iqn.2026-11.test.initiator:2"]"#;
    reload(&place, &mut server, &two_targets(Some(others)), "has other initiators");
    let ends: Vec<_> = logins
        .iter_mut()
        .map(|login| login.exchange((OPERATIONAL, FULL_FEATURE, true), &[], usize::MAX).map(|answer| answer.transit))
        .collect();
    assert_eq!(ends, [Err(NOT_ALLOWED), Ok(true)]);
    drop(logins);
    server.stop();
}

/// The volume behind LUN 0 of the first target is that of another target too; `luns` are those of the first one. Its first write is late.
fn shared(luns: &str) -> String {
    const LATE: Duration = Duration::from_millis(1500);
    let config = late_config(&[LATE]).replace(r#"luns = [{ bdev = "late0" }, { bdev = "ram1" }]"#, luns);
    format!("{}{config}\n[[iscsi.target]]\niqn = \"{BESIDE}\"\nluns = [{{ bdev = \"late0\" }}]\n", two_cores())
}

/// Units that a session sees no more, or by another number.
#[test]
fn a_unit_that_is_taken_away_gets_nothing_from_who_had_it() {
    const BOTH: &str = r#"luns = [{ bdev = "late0" }, { bdev = "ram1" }]"#;
    // With the last line of the log about it.
    let gone = [
        (r#"luns = [{ lun = 1, bdev = "ram1" }]"#, format!("LUN 0 of \"{IQN}\" is removed")),
        (r#"luns = [{ lun = 2, bdev = "late0" }, { lun = 1, bdev = "ram1" }]"#, format!("LUN 2 of \"{IQN}\" is added")),
    ];
    let (old, new) = (pattern(8 * BLOCK, 1), pattern(8 * BLOCK, 2));
    // Whether the write is with the volume already or has no data yet; whether the unit is reset before its data comes.
    let states = [(false, false), (false, true), (true, true)];
    for ((luns, line), (in_device, resets)) in gone.iter().flat_map(|gone| states.map(|state| (gone, state))) {
        let place = Place::new();
        let mut server = place.serve(&shared(BOTH));
        let address = portal(&server);
        let mut other = to(address, BESIDE, 2);
        let mut one = Session::open(address, &Options::new(IQN, 1).with(BY_R2T));
        one.settle(0);
        one.hold = Some(PATIENCE);
        let (tag, _) = pending(&mut one, 0, 0);
        if in_device {
            one.answer_r2ts(tag);
            assert!(one.is_waiting(tag, SHORT), "it is late");
        }
        reload(&place, &mut server, &shared(luns), line);
        if resets {
            assert_eq!(other.manage(0, function::LUN_RESET, 0, None), managed::COMPLETE);
        }
        other.settle(0);
        if in_device {
            other.command(0, &cdb::write16(0, 8, 0), &new, 0).good();
            std::thread::park_timeout(Duration::from_secs(2));
            let found = other.command(0, &cdb::read16(0, 8), &[], new.len()).good();
            assert!(found == new, "{luns}: what was there before the reset has come after it: old: {}", found == old);
        } else {
            one.answer_r2ts(tag);
            if !resets {
                let (key, code) = one.wait(tag).sense();
                assert_eq!((key, code), (5, 0x2500), "LOGICAL UNIT NOT SUPPORTED");
            }
            std::thread::park_timeout(QUIET);
            zeros(&mut other, 0, 0);
        }
        drop(one);
        other.end();
        server.stop();
    }
}

#[test]
fn commands_behind_a_cold_reset_write_what_they_bring_or_nothing() {
    const ROUNDS: u64 = 40;
    const WRITES: usize = 96;
    /// Tag of the reset.
    const RESET: u32 = 0x5000_0000;
    let place = Place::new();
    let server = place.serve(&with_beside(&config()));
    let address = portal(&server);
    // What the reactors have to tell each other about the reset takes longer than what comes behind it.
    let busy = Busy::start(address, BESIDE, 1);
    let per_write = (LEN / BLOCK) as u64;
    let mut blocks: Vec<u8> = vec![0; WRITES * LEN];
    let read_all = |session: &mut Session| -> Vec<u8> {
        let part = |at: usize| session.command(0, &cdb::read16(at as u64 * 2048, 2048), &[], MIB).good();
        let all: Vec<u8> = (0..(WRITES * LEN).div_ceil(MIB)).flat_map(part).collect();
        all[..WRITES * LEN].to_vec()
    };
    let mut done = 0;
    for round in 1..=ROUNDS {
        let mut session = session(address, 1 + (round % 2) as u8);
        assert!(session.params().max_send >= LEN && session.params().first_burst >= LEN);
        // Buffers that were used before have something in them that is of no write behind the reset.
        let used: Vec<u32> = (0..64)
            .map(|number| session.start(0, 1, &cdb::write16(number * per_write, 16, 0), &vec![0xee; LEN], 0))
            .collect();
        for tag in used {
            session.wait(tag).good();
        }
        let (mut cmd_sn, stat_sn) = (session.cmd_sn, session.conns[0].stat_sn);
        let mut wire = session.conns.remove(0).wire;
        let reset = Pdu::new(op::TASK_MANAGEMENT | op::IMMEDIATE, flag::FINAL | function::COLD_RESET);
        let mut bytes = wire.bytes(&reset.with(16, RESET).with(20, u32::MAX).with(24, cmd_sn).with(28, stat_sn));
        for number in 0..WRITES {
            let data = pattern(LEN, round << 32 | number as u64);
            let mut pdu = Pdu::new(op::COMMAND, flag::FINAL | flag::WRITE | 1).with_data(&data);
            pdu.bhs[32..].copy_from_slice(&cdb::write16(number as u64 * per_write, per_write as u32, 0));
            let pdu = pdu.with(16, number as u32).with(20, LEN as u32).with(24, cmd_sn).with(28, stat_sn);
            bytes.extend(wire.bytes(&pdu));
            cmd_sn = cmd_sn.wrapping_add(1);
        }
        // The target may end the connection before it has taken all.
        let _ = wire.send_bytes(&bytes);
        let mut good = [false; WRITES];
        for pdu in wire.rest() {
            match pdu.opcode() {
                op::TASK_MANAGEMENT_RESPONSE => assert_eq!((pdu.itt(), pdu.bhs[2]), (RESET, managed::COMPLETE)),
                op::RESPONSE => good[pdu.itt() as usize] = pdu.bhs[2..4] == [0, 0],
                op::ASYNC => assert_eq!(pdu.bhs[36], event::DROP_SESSION),
                _ => panic!("{pdu:02x?}"),
            }
        }
        let mut looking = super::session(address, 3);
        let found = read_all(&mut looking);
        looking.end();
        for (number, good) in good.iter().enumerate() {
            let range = number * LEN..(number + 1) * LEN;
            let (old, new) = (&blocks[range.clone()], pattern(LEN, round << 32 | number as u64));
            for (at, block) in found[range.clone()].chunks(BLOCK).enumerate() {
                let at = at * BLOCK..(at + 1) * BLOCK;
                let is_new = block == &new[at.clone()];
                assert!(
                    is_new || block == &old[at],
                    "round {round}, write {number}: data of neither: {:02x?}",
                    &block[..8]
                );
                assert!(is_new || !good, "round {round}, write {number}: GOOD and not done");
            }
        }
        done += good.iter().filter(|good| **good).count();
        blocks = found;
    }
    println!("{done} writes of {} were answered", ROUNDS * WRITES as u64);
    busy.end();
    server.stop();
}
