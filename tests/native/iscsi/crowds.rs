//! Many initiators at once: half-open, slow, deaf and mute ones, and what they may hold.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reactor::limits::{CONNECTIONS_PER_REACTOR, ISCSI_SESSIONS_MAX};
use rustix::process::{Resource, getrlimit, setrlimit};

use super::super::host::pattern;
use super::super::server::{PATIENCE, Place, now};
use super::bystander::Bystander;
use super::initiator::cdb;
use super::initiator::login::{OPERATIONAL, SECURITY, text};
use super::initiator::pdu::{NO_TAG, Pdu, flag, op};
use super::initiator::{Got, Login, Offer, Options, Session, Wire};
use super::{IQN, MIB, config, portal, settled};

/// Connections open at once.
const CROWD: usize = 2000;
// There is room for a crowd on one reactor while the one before it still ends, beside the bystander.
const _: () = assert!(2 * CROWD < CONNECTIONS_PER_REACTOR && 2 * CROWD < ISCSI_SESSIONS_MAX as usize);
/// Initiators that take all that one can.
const GREEDY: usize = 60;
/// Resident memory that a connection may cost, whatever it does, beside the buffers of the arena, which has its size from the start.
const EACH: u64 = 48 << 10;
/// Of one that is a session: slots for a window of 128 commands and what is sent at once, some 400 bytes each.
const EACH_SESSION: u64 = 64 << 10;
/// Of one that has its whole window in use.
const EACH_BUSY: u64 = 1 << 20;
/// What lists of the whole program may add, and the pages that the allocator keeps.
const SLACK: u64 = 8 << 20;
/// How long each crowd stays.
const STAY: Duration = Duration::from_secs(2);

/// As many open files as this process may have.
fn raise_limits() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// An initiator of its own each: 2,000 names, so that none takes the place of another.
fn options(number: usize) -> Options {
    let mut options = Options::new(IQN, 1);
    options.initiator = format!("iqn.2026-11.test.crowd:{number}");
    options
}

/// That many sessions, all of them.
fn sessions(address: SocketAddr, count: usize, offer: &Offer) -> Vec<Session> {
    let one = |number: usize| {
        Session::login(address, &options(number).with(offer.clone()))
            .unwrap_or_else(|status| panic!("session {number} of {count} is refused: {status:#06x}"))
    };
    (0..count).map(one).collect()
}

/// Fills the window with commands whose answers nobody reads, or whose data nobody sends.
fn greedy(address: SocketAddr, reads: bool) -> Vec<Wire> {
    let offer = Offer {
        immediate_data: Some(false),
        max_recv: Some(262_144),
        max_burst: Some(1 << 20),
        max_r2t: Some(8),
        ..Offer::PLAIN
    };
    let mut wires = Vec::new();
    for mut session in sessions(address, GREEDY, &offer) {
        session.settle(0);
        let window = session.window.1.wrapping_sub(session.cmd_sn) + 1;
        let direction = if reads { flag::READ } else { flag::WRITE };
        for number in 0..window.min(256) {
            let pdu = Pdu::new(op::COMMAND, flag::FINAL | direction | 1).with(16, 1000 + number).with(20, MIB as u32);
            let mut pdu = pdu.with(24, session.cmd_sn.wrapping_add(number)).with(28, session.conns[0].stat_sn);
            let cdb = if reads { cdb::read16(0, 2048) } else { cdb::write16(0, 2048, 0) };
            pdu.bhs[32..].copy_from_slice(&cdb);
            // A target that reads no more has enough.
            session.conns[0].wire.socket().set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            if !session.conns[0].wire.send(&pdu) {
                break;
            }
        }
        wires.push(session.conns.remove(0).wire);
    }
    wires
}

/// Logins that stop where they are.
fn half_logins(address: SocketAddr, more: bool) -> Vec<Wire> {
    let one = |number: usize| {
        let options = options(number);
        let mut login = Login::new(address, &options);
        if more {
            login.wire.send(&login.request((OPERATIONAL, 0, false), true, &vec![b'k'; 8000]));
        } else {
            let asked = login.ask((SECURITY, OPERATIONAL, false), &options.names());
            assert!(asked.is_ok_and(|(answer, _)| !answer.transit), "login {number}");
        }
        login.wire
    };
    (0..CROWD).map(one).collect()
}

/// What a crowd is, how it comes, and what each of it may hold.
type Crowd = (&'static str, fn(SocketAddr) -> Vec<Wire>, u64);

const CROWDS: [Crowd; 8] = [
    // First those that hold much each: what the allocator keeps of thousands would hide them.
    ("deaf", |address| greedy(address, true), EACH_BUSY),
    ("mute", |address| greedy(address, false), EACH_BUSY),
    ("silent", |address| (0..CROWD).map(|_| Wire::connect(address)).collect(), EACH),
    (
        "half a header",
        |address| {
            let half = |_| {
                let wire = Wire::connect(address);
                wire.send_bytes(&[op::LOGIN | op::IMMEDIATE, 0x87, 0, 0, 0]);
                wire
            };
            (0..CROWD).map(half).collect()
        },
        EACH,
    ),
    ("half a login", |address| half_logins(address, false), EACH),
    ("text that goes on", |address| half_logins(address, true), EACH),
    (
        "logged in, idle",
        |address| {
            sessions(address, CROWD, &Offer::PLAIN)
                .into_iter()
                .map(|mut session| session.conns.remove(0).wire)
                .collect()
        },
        EACH_SESSION,
    ),
    (
        "half a command each",
        |address| {
            let half = |mut session: Session| {
                let mut pdu = Pdu::new(op::COMMAND, flag::FINAL | flag::WRITE | 1).with(16, 9).with(20, 8192);
                pdu.bhs[32..].copy_from_slice(&cdb::write16(0, 16, 0));
                let bytes = pdu.with(24, session.cmd_sn).with_data(&[3; 8192]).encode(false, false);
                session.conns[0].wire.send_bytes(&bytes[..4096]);
                session.conns.remove(0).wire
            };
            sessions(address, CROWD, &Offer::PLAIN).into_iter().map(half).collect()
        },
        EACH_SESSION,
    ),
];

#[test]
fn no_crowd_takes_memory_or_time_of_others() {
    raise_limits();
    let server = Place::new().serve(&config());
    let address = portal(&server);
    let bystander = Bystander::start(address);
    let alone = settled(&server);
    let mut report = String::from("\n");
    let mut highest = [0; 2];
    for (round, peak) in highest.iter_mut().enumerate() {
        for (name, come, each) in CROWDS {
            let crowd = come(address);
            std::thread::park_timeout(STAY);
            assert!(!bystander.is_dead(), "during: {name}{report}");
            let grown = server.program.resident().saturating_sub(alone);
            *peak = grown.max(*peak);
            let most = crowd.len() as u64 * each + SLACK;
            report +=
                &format!("{name:20} {:5} connections: {:6} KiB, at most {:6}\n", crowd.len(), grown >> 10, most >> 10);
            // What the allocator kept from the first round is not what this crowd holds.
            assert!(round > 0 || grown <= most, "{name}: {grown} bytes{report}");
            drop(crowd);
            std::thread::park_timeout(Duration::from_secs(1));
        }
    }
    println!("{report}");
    assert!(highest[1] <= highest[0] + SLACK, "what the first crowds held is still held{report}");
    bystander.end();
    server.stop();
}

/// Unsolicited data has its memory as soon as some of it comes: who sends no more of it holds what others need, but not for long, however
/// alive it is otherwise.
#[test]
fn who_begins_to_send_data_and_stops_gives_its_memory_back() {
    const HOLDERS: usize = 30;
    const WINDOW: u32 = 128;
    const LEN: usize = 64 << 10;
    // Those who hold some have 10 s.
    const LONGEST: Duration = Duration::from_secs(20);
    let server = Place::new().serve(&config());
    let address = portal(&server);
    let offer =
        Offer { immediate_data: Some(true), initial_r2t: Some(false), first_burst: Some(LEN as u32), ..Offer::PLAIN };
    let begin = |mut session: Session| {
        session.settle(0);
        session.conns[0].wire.socket().set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        for number in 0..WINDOW {
            let mut pdu =
                Pdu::new(op::COMMAND, flag::WRITE | 1).with(16, number).with(20, LEN as u32).with_data(&[7; 512]);
            pdu.bhs[32..].copy_from_slice(&cdb::write16(0, 128, 0));
            session.conns[0].wire.send(&pdu.with(24, session.cmd_sn).with(28, session.conns[0].stat_sn));
            session.cmd_sn = session.cmd_sn.wrapping_add(1);
        }
        session
    };
    assert!(HOLDERS * WINDOW as usize * LEN > 128 << 20, "more than the server has");
    let mut holders: Vec<Session> = sessions(address, HOLDERS, &offer).into_iter().map(begin).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let seen = stop.clone();
    let alive = std::thread::spawn(move || {
        for tag in 0x7000_0000.. {
            if seen.load(Ordering::Relaxed) {
                break;
            }
            for session in &holders {
                let ping = Pdu::new(op::NOP_OUT | op::IMMEDIATE, flag::FINAL).with(16, tag).with(20, NO_TAG);
                session.conns[0].wire.send(&ping.with(24, session.cmd_sn).with(28, session.conns[0].stat_sn));
            }
            for session in &mut holders {
                while let Got::Pdu(_) = session.conns[0].wire.next(Duration::from_millis(1)) {}
            }
            std::thread::park_timeout(Duration::from_millis(500));
        }
    });
    let start = now();
    let mut other = Session::open(address, &Options::new(IQN, 251).with(offer));
    other.settle(1);
    for number in 0..8 {
        let data = pattern(MIB, number);
        other.command(1, &cdb::write16(0, 2048, 0), &data, 0).good();
        assert!(other.command(1, &cdb::read16(0, 2048), &[], MIB).good() == data);
    }
    let took = now() - start;
    println!("{took:?} beside those who hold all memory");
    // Less, and they held nothing; more, and they held it for as long as they liked.
    assert!((Duration::from_secs(2)..LONGEST).contains(&took), "{took:?}");
    stop.store(true, Ordering::Relaxed);
    alive.join().unwrap();
    other.end();
    server.stop();
}

#[test]
fn connections_that_come_and_go_leave_nothing() {
    let server = Place::new().serve(&config());
    let address = portal(&server);
    let bystander = Bystander::start(address);
    let before = settled(&server);
    let start = now();
    let mut count = 0;
    while now() - start < 3 * STAY {
        count += 1;
        let options = options(count % 50);
        match count % 5 {
            0 => drop(Wire::connect(address)),
            1 => {
                let login = Login::new(address, &options);
                let bytes = login.request((OPERATIONAL, 3, true), false, &text(&options.names())).encode(false, false);
                login.wire.send_bytes(&bytes[..77]);
            }
            2 => drop(Session::open(address, &options)),
            3 => {
                let mut session = Session::open(address, &options);
                session.start(0, 0, &cdb::read16(0, 2048), &[], MIB);
            }
            _ => {
                let mut session = Session::open(address, &options);
                session.hold = Some(PATIENCE);
                session.start(0, 0, &cdb::write16(0, 2048, 0), &vec![0; MIB], 0);
                session.turn(0, Duration::from_millis(50));
            }
        }
    }
    let grown = server.program.resident().saturating_sub(before);
    println!("{count} connections: {} KiB more resident", grown >> 10);
    assert!(grown <= SLACK, "{grown} bytes after {count} connections");
    bystander.end();
    server.stop();
}
