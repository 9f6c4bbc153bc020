//! Initiators that break the protocol: each gets what the standard says, and nobody else notices.

use std::time::Duration;

use super::super::host::pattern;
use super::super::server::Place;
use super::bystander::Bystander;
use super::initiator::cdb::{self, status};
use super::initiator::pdu::{NO_TAG, Pdu, flag, op};
use super::initiator::{Got, Offer, Options, PATIENCE, Session};
use super::{BLOCK, IQN, config, portal, session, session_with};

/// Reasons of a Reject (RFC 7143 §11.17.1).
mod reason {
    pub const DATA_DIGEST: u8 = 0x02;
    pub const SNACK: u8 = 0x03;
    pub const PROTOCOL: u8 = 0x04;
    pub const NOT_SUPPORTED: u8 = 0x05;
    pub const INVALID_FIELD: u8 = 0x09;
}

/// What may follow.
#[derive(Clone, Copy, Debug)]
enum May {
    /// A Reject with this reason and the header that is rejected.
    Reject(u8),
    /// The command [`TAG`] ends with this sense key; the code is one of protocol faults (RFC 7143 §11.4.7.2).
    Fail,
    /// Nothing: the session goes on.
    Pass,
    /// The connection ends.
    End,
}

use May::{End, Fail, Pass, Reject};

/// The tag of the command that is at fault.
const TAG: u32 = 0x0bad_0000;
/// Bytes of a write that is at fault.
const LEN: usize = 16 * BLOCK;

/// A write of [`LEN`] bytes with so much of its data in the command.
fn write(session: &mut Session, immediate: usize, flags: u8) -> Pdu {
    let mut pdu = Pdu::new(op::COMMAND, flags | flag::WRITE | 1).with(16, TAG).with(20, LEN as u32);
    pdu.bhs[32..].copy_from_slice(&cdb::write16(0, 16, 0));
    pdu.data = pattern(immediate, 9);
    numbered(session, pdu)
}

/// With the next CmdSN.
fn numbered(session: &mut Session, pdu: Pdu) -> Pdu {
    let pdu = pdu.with(24, session.cmd_sn).with(28, session.conns[0].stat_sn);
    session.cmd_sn = session.cmd_sn.wrapping_add(1);
    pdu
}

fn send(session: &mut Session, pdu: &Pdu) {
    session.conns[0].wire.send(pdu);
}

/// Sends a write without data and waits for its R2T, which may not ask for less than everything: a tag to answer with.
fn asked(session: &mut Session) -> u32 {
    let pdu = write(session, 0, flag::FINAL);
    send(session, &pdu);
    let r2t = session.conns[0].wire.next(PATIENCE).pdu();
    assert_eq!((r2t.opcode(), r2t.get(40), r2t.get(44)), (op::R2T, 0, LEN as u32), "{r2t:02x?}");
    r2t.get(20)
}

fn data_out(target_tag: u32, (number, offset): (u32, u32), len: usize, last: bool) -> Pdu {
    let flags = if last { flag::FINAL } else { 0 };
    let pdu = Pdu::new(op::DATA_OUT, flags).with(16, TAG).with(20, target_tag);
    pdu.with(36, number).with(40, offset).with_data(&pattern(len, 9))
}

/// A fault: how the session is, what is sent, what may follow.
struct Row {
    name: &'static str,
    offer: Offer,
    make: fn(&mut Session),
    may: &'static [May],
}

const R2T: Offer = Offer { initial_r2t: Some(true), immediate_data: Some(false), ..Offer::PLAIN };
const DATA_DIGEST: Offer = Offer { data_digest: Some("CRC32C"), ..Offer::PLAIN };

const fn row(name: &'static str, offer: Offer, make: fn(&mut Session), may: &'static [May]) -> Row {
    Row { name, offer, make, may }
}

const ROWS: [Row; 27] = [
    row(
        "an opcode that is none",
        Offer::PLAIN,
        |s| {
            let pdu = Pdu::new(0x1c | op::IMMEDIATE, flag::FINAL).with(16, 5);
            send(s, &pdu);
        },
        &[Reject(reason::NOT_SUPPORTED)],
    ),
    row(
        "an opcode of a target",
        Offer::PLAIN,
        |s| {
            let pdu = Pdu::new(op::RESPONSE, flag::FINAL).with(16, 5);
            send(s, &pdu);
        },
        &[Reject(reason::NOT_SUPPORTED), Reject(reason::PROTOCOL), End],
    ),
    row(
        "a login after the login",
        Offer::PLAIN,
        |s| {
            let pdu = Pdu::new(op::LOGIN | op::IMMEDIATE, flag::FINAL | 7).with(16, 5);
            send(s, &pdu);
        },
        &[Reject(reason::PROTOCOL)],
    ),
    row(
        "a SNACK",
        Offer::PLAIN,
        |s| {
            let pdu = Pdu::new(op::SNACK, flag::FINAL).with(16, NO_TAG);
            send(s, &pdu);
        },
        &[Reject(reason::SNACK)],
    ),
    row(
        "more data than was declared",
        Offer::PLAIN,
        |s| {
            let mut bytes = write(s, 0, flag::FINAL).encode(false, false);
            bytes[5..8].fill(0xff);
            s.conns[0].wire.send_bytes(&bytes);
        },
        &[End],
    ),
    row(
        "additional headers without an end",
        Offer::PLAIN,
        |s| {
            let mut bytes = write(s, 0, flag::FINAL).encode(false, false);
            bytes[4] = 0xff;
            s.conns[0].wire.send_bytes(&bytes);
            s.conns[0].wire.send_bytes(&[0xff; 1024]);
        },
        &[End, Reject(reason::INVALID_FIELD)],
    ),
    row(
        "additional headers that are none",
        Offer::PLAIN,
        |s| {
            let mut pdu = write(s, 0, flag::FINAL);
            pdu.ahs = vec![0xff; 12];
            send(s, &pdu);
        },
        &[End, Reject(reason::INVALID_FIELD)],
    ),
    row(
        "data where none can be",
        Offer::PLAIN,
        |s| {
            let pdu = Pdu::new(op::LOGOUT | op::IMMEDIATE, flag::FINAL).with(16, 5).with_data(&[1; 100]);
            send(s, &pdu);
        },
        &[End, Reject(reason::INVALID_FIELD), Reject(reason::PROTOCOL)],
    ),
    row(
        "unsolicited data that was not agreed",
        R2T,
        |s| {
            let pdu = write(s, 512, flag::FINAL);
            send(s, &pdu);
        },
        &[Reject(reason::PROTOCOL), Fail],
    ),
    row(
        "a command that goes on without the right to",
        R2T,
        |s| {
            let pdu = write(s, 0, 0);
            send(s, &pdu);
        },
        &[Reject(reason::PROTOCOL), Fail],
    ),
    row(
        "more unsolicited data than the first burst",
        Offer { first_burst: Some(1024), ..Offer::PLAIN },
        |s| {
            let pdu = write(s, 1536, flag::FINAL);
            send(s, &pdu);
        },
        &[Reject(reason::PROTOCOL), Fail],
    ),
    row(
        "data in a command that reads",
        Offer::PLAIN,
        |s| {
            let mut pdu =
                Pdu::new(op::COMMAND, flag::FINAL | flag::READ).with(16, TAG).with(20, 512).with_data(&[1; 512]);
            pdu.bhs[32..].copy_from_slice(&cdb::read16(0, 1));
            let pdu = numbered(s, pdu);
            send(s, &pdu);
        },
        &[Reject(reason::PROTOCOL), Reject(reason::INVALID_FIELD), Fail],
    ),
    row(
        "data for nothing, unsolicited",
        Offer::PLAIN,
        |s| {
            send(s, &data_out(NO_TAG, (0, 0), 512, true));
        },
        &[Pass, Reject(reason::INVALID_FIELD), Reject(reason::PROTOCOL)],
    ),
    row(
        "data for nothing, with a tag",
        Offer::PLAIN,
        |s| {
            send(s, &data_out(0x4711_4711, (0, 0), 512, true));
        },
        &[Pass, Reject(reason::INVALID_FIELD), Reject(reason::PROTOCOL)],
    ),
    row(
        "data out of order",
        R2T,
        |s| {
            let tag = asked(s);
            send(s, &data_out(tag, (1, 4096), 4096, true));
        },
        &[Fail, End, Reject(reason::PROTOCOL)],
    ),
    row(
        "a number left out",
        R2T,
        |s| {
            let tag = asked(s);
            send(s, &data_out(tag, (0, 0), 4096, false));
            send(s, &data_out(tag, (2, 4096), 4096, true));
        },
        &[Fail, End, Reject(reason::PROTOCOL)],
    ),
    row(
        "data that ends early",
        R2T,
        |s| {
            let tag = asked(s);
            send(s, &data_out(tag, (0, 0), 4096, true));
        },
        &[Fail, End, Reject(reason::PROTOCOL)],
    ),
    row(
        "data beyond what was asked for",
        R2T,
        |s| {
            let tag = asked(s);
            send(s, &data_out(tag, (0, 0), 8192, false));
            send(s, &data_out(tag, (1, 8192), 4096, true));
        },
        &[Fail, End, Reject(reason::PROTOCOL)],
    ),
    row(
        "data at an offset of its own",
        R2T,
        |s| {
            let tag = asked(s);
            send(s, &data_out(tag, (0, u32::MAX - 511), 512, false));
            send(s, &data_out(tag, (1, 512), 4096, true));
        },
        &[Fail, End, Reject(reason::PROTOCOL)],
    ),
    row(
        "a wrong digest of a command's data",
        DATA_DIGEST,
        |s| {
            let pdu = write(s, LEN / 2, flag::FINAL);
            let mut bytes = s.conns[0].wire.bytes(&pdu);
            *bytes.last_mut().unwrap() ^= 1;
            s.conns[0].wire.send_bytes(&bytes);
        },
        &[Reject(reason::DATA_DIGEST)],
    ),
    row(
        "a wrong digest of asked data",
        Offer { immediate_data: Some(false), ..DATA_DIGEST },
        |s| {
            let tag = asked(s);
            let mut bytes = s.conns[0].wire.bytes(&data_out(tag, (0, 0), 8192, true));
            bytes[100] ^= 0x80;
            s.conns[0].wire.send_bytes(&bytes);
        },
        &[Reject(reason::DATA_DIGEST), Fail],
    ),
    row(
        "a wrong digest of a header",
        Offer { header_digest: Some("CRC32C"), ..Offer::PLAIN },
        |s| {
            let pdu = write(s, 0, flag::FINAL);
            let mut bytes = s.conns[0].wire.bytes(&pdu);
            bytes[33] ^= 1;
            s.conns[0].wire.send_bytes(&bytes);
        },
        &[End],
    ),
    row(
        "a tag that is in use",
        R2T,
        |s| {
            asked(s);
            let pdu = write(s, 0, flag::FINAL);
            send(s, &pdu);
        },
        &[Reject(reason::PROTOCOL), Reject(0x07), Reject(reason::INVALID_FIELD)],
    ),
    row(
        "a number from beyond the window",
        Offer::PLAIN,
        |s| {
            let pdu = write(s, 512, flag::FINAL);
            s.cmd_sn = s.cmd_sn.wrapping_sub(1);
            let far = s.window.1.wrapping_add(1);
            send(s, &pdu.with(24, far));
        },
        &[Pass],
    ),
    row(
        "a number that has been",
        Offer::PLAIN,
        |s| {
            s.ping(0, b"one");
            let pdu = write(s, 512, flag::FINAL);
            s.cmd_sn = s.cmd_sn.wrapping_sub(1);
            let before = s.cmd_sn.wrapping_sub(1);
            send(s, &pdu.with(24, before));
        },
        &[Pass],
    ),
    row(
        "text that is none",
        Offer::PLAIN,
        |s| {
            let pdu = Pdu::new(op::TEXT, flag::FINAL).with(16, 5).with(20, NO_TAG).with_data(&[0xff; 300]);
            let pdu = numbered(s, pdu);
            send(s, &pdu);
        },
        &[Reject(reason::PROTOCOL), Reject(reason::INVALID_FIELD), End],
    ),
    row(
        "text that goes on from nothing",
        Offer::PLAIN,
        |s| {
            let pdu = Pdu::new(op::TEXT, flag::FINAL).with(16, 5).with(20, 0x1234);
            let pdu = numbered(s, pdu);
            send(s, &pdu);
        },
        &[Reject(reason::PROTOCOL), Reject(reason::INVALID_FIELD), End],
    ),
];

/// Additional codes and qualifiers of a task that a transport fault ends (RFC 7143 §11.4.7.2), and those of SPC for the same.
const FAULTS: [u16; 5] = [0x0c0c, 0x0c0d, 0x4705, 0x4b00, 0x4700];
/// ABORTED COMMAND.
const ABORTED: u8 = 0xb;

/// What followed the fault.
fn followed(session: &mut Session) -> May {
    // A ping behind it brings whatever there is to light; a missing number holds it back.
    let mut ping = Pdu::new(op::NOP_OUT | op::IMMEDIATE, flag::FINAL).with(16, 0x0000_5150).with(20, NO_TAG);
    ping.set(24, session.cmd_sn);
    session.conns[0].wire.send(&ping);
    let mut pass = false;
    loop {
        let limit = if pass { Duration::from_millis(200) } else { PATIENCE };
        match session.conns[0].wire.next(limit) {
            Got::Pdu(pdu) => match pdu.opcode() {
                op::REJECT => return Reject(pdu.bhs[2]),
                op::RESPONSE => {
                    assert_eq!((pdu.itt(), pdu.bhs[3]), (TAG, status::CHECK_CONDITION), "{pdu:02x?}");
                    let (key, code) = (pdu.data[4] & 0xf, u16::from_be_bytes([pdu.data[14], pdu.data[15]]));
                    let (key, code) = if pdu.data[2] & 0x7f >= 0x72 {
                        (pdu.data[3] & 0xf, u16::from_be_bytes([pdu.data[4], pdu.data[5]]))
                    } else {
                        (key, code)
                    };
                    assert!(key == ABORTED && FAULTS.contains(&code), "sense {key:#x} {code:#06x}");
                    return Fail;
                }
                op::NOP_IN if pdu.itt() == 0x0000_5150 => pass = true,
                op::NOP_IN | op::R2T => {}
                _ => panic!("{pdu:02x?}"),
            },
            Got::Silence if pass => return Pass,
            Got::Silence => panic!("nothing at all"),
            Got::End | Got::Reset => return End,
        }
    }
}

#[test]
fn every_fault_has_the_answer_of_the_standard() {
    let server = Place::new().serve(&config());
    let bystander = Bystander::start(portal(&server));
    // What the hostile ones must not have written.
    let mut witness = session(portal(&server), 200);
    let known = pattern(64 * BLOCK, 77);
    witness.command(0, &cdb::write16(0, 64, 0), &known, 0).good();
    let unchanged = |witness: &mut Session, after: &str| {
        let found = witness.command(0, &cdb::read16(0, 64), &[], known.len()).good();
        let at = (0..known.len()).find(|at| found[*at] != known[*at]);
        assert_eq!(at, None, "the first byte that was written, after: {after}");
    };
    for row in &ROWS {
        let mut session = session_with(portal(&server), 1, row.offer.clone());
        (row.make)(&mut session);
        let what = followed(&mut session);
        println!("{}: {what:?}", row.name);
        let fits = |may: &May| match (may, &what) {
            (Reject(one), Reject(other)) => one == other,
            (Fail, Fail) | (Pass, Pass) | (End, End) => true,
            _ => false,
        };
        assert!(row.may.iter().any(fits), "{}: {what:?}, not one of {:?}", row.name, row.may);
        drop(session);
        assert!(!bystander.is_dead(), "after: {}", row.name);
        // A write begins when all of its data has come without a fault, and else is not carried out at all. In every row the fault is there
        // before: with the command, or with the last of its data. So nothing is written, not even where the command would write. Nothing is
        // put right between the rows either: what lands late is found in a later one, or at the end.
        unchanged(&mut witness, row.name);
    }
    // The same write without a fault is seen in just these blocks, once its data is there.
    let mut honest = session_with(portal(&server), 1, R2T);
    let tag = asked(&mut honest);
    unchanged(&mut witness, "all rows");
    send(&mut honest, &data_out(tag, (0, 0), LEN, true));
    let answer = honest.conns[0].wire.next(PATIENCE).pdu();
    assert_eq!((answer.opcode(), answer.itt(), answer.bhs[3]), (op::RESPONSE, TAG, status::GOOD));
    let found = witness.command(0, &cdb::read16(0, 64), &[], known.len()).good();
    assert!(found == [&pattern(LEN, 9)[..], &known[LEN..]].concat(), "what the rows would write");
    drop(honest);
    witness.end();
    bystander.end();
    server.stop();
}

#[test]
fn a_command_waits_for_the_one_before_it() {
    let server = Place::new().serve(&config());
    let mut session = session(portal(&server), 1);
    let number = session.cmd_sn;
    let ping =
        |tag: u32, cmd_sn: u32| Pdu::new(op::NOP_OUT, flag::FINAL).with(16, tag).with(20, NO_TAG).with(24, cmd_sn);
    for tag in [3, 2, 1] {
        send(&mut session, &ping(tag, number + tag));
    }
    assert_eq!(session.conns[0].wire.next(Duration::from_millis(300)), Got::Silence, "the first is missing");
    send(&mut session, &ping(9, number));
    let tags: Vec<_> = (0..4).map(|_| session.conns[0].wire.next(PATIENCE).pdu().itt()).collect();
    assert_eq!(tags, [9, 1, 2, 3]);
    server.stop();
}

#[test]
fn no_more_than_the_window_is_taken() {
    let server = Place::new().serve(&config());
    let bystander = Bystander::start(portal(&server));
    let mut session = session_with(portal(&server), 1, R2T);
    let (first, window) = (session.cmd_sn, session.window.1.wrapping_sub(session.cmd_sn) + 1);
    println!("a window of {window} commands");
    assert!((1..=16_384).contains(&window));
    // Writes whose data never comes, twice as many as are allowed.
    for number in 0..2 * window {
        let mut pdu = Pdu::new(op::COMMAND, flag::FINAL | flag::WRITE | 1).with(16, 1000 + number).with(20, LEN as u32);
        pdu.bhs[32..].copy_from_slice(&cdb::write16(u64::from(number) * 16 % 16_384, 16, 0));
        send(&mut session, &pdu.with(24, first.wrapping_add(number)));
    }
    let mut asked = 0;
    while let Got::Pdu(pdu) = session.conns[0].wire.next(Duration::from_millis(500)) {
        assert!(matches!(pdu.opcode(), op::R2T | op::NOP_IN), "{pdu:02x?}");
        if pdu.opcode() == op::R2T {
            assert!(pdu.itt() < 1000 + window, "a command from beyond the window was taken");
            asked += 1;
        }
    }
    assert!(asked <= window, "{asked} R2Ts");
    assert!(asked > 0);
    bystander.end();
    server.stop();
}

#[test]
fn a_slow_initiator_is_not_a_hostile_one() {
    let server = Place::new().serve(&config());
    let bystander = Bystander::start(portal(&server));
    let mut session = session(portal(&server), 1);
    let data = pattern(LEN / 2, 3);
    let mut pdu = Pdu::new(op::COMMAND, flag::FINAL | flag::WRITE | 1).with(16, TAG).with(20, (LEN / 2) as u32);
    pdu.bhs[32..].copy_from_slice(&cdb::write16(0, 8, 0));
    let pdu = numbered(&mut session, pdu.with_data(&data));
    let bytes = session.conns[0].wire.bytes(&pdu);
    for byte in bytes[..100].chunks(1).chain(bytes[100..].chunks(500)) {
        assert!(session.conns[0].wire.send_bytes(byte));
        std::thread::park_timeout(Duration::from_millis(10));
    }
    let answer = session.conns[0].wire.next(PATIENCE).pdu();
    assert_eq!((answer.opcode(), answer.itt(), answer.bhs[3]), (op::RESPONSE, TAG, status::GOOD));
    drop(session);
    let mut session = super::session(portal(&server), 2);
    assert!(session.command(0, &cdb::read16(0, 8), &[], data.len()).good() == data);
    session.end();
    bystander.end();
    server.stop();
}

#[test]
fn every_cdb_has_an_answer() {
    let server = Place::new().serve(&config());
    let bystander = Bystander::start(portal(&server));
    let mut session = Session::open(portal(&server), &Options::new(IQN, 1));
    session.settle(0);
    let mut statuses = [0; 256];
    for seed in 0..4000_u64 {
        let bytes = pattern(64, seed + 1);
        let mut cdb: cdb::Cdb = bytes[..16].try_into().unwrap();
        // All opcodes; fields of all kinds, most of them small. Reservations and units that are stopped end with the session.
        cdb[0] = seed as u8;
        for (byte, other) in cdb[1..].iter_mut().zip(&bytes[16..31]) {
            if other & 3 != 0 {
                *byte = 0;
            }
        }
        // What would take long, or take the bystander's volume: FORMAT UNIT and the copies.
        if matches!(cdb[0], 0x04 | 0x83 | 0x5f) {
            continue;
        }
        let out = pattern(usize::from(bytes[40]) * usize::from(bytes[41] & 15), seed);
        let expected = usize::from(bytes[42]) << (bytes[43] & 7);
        let (out, expected) = if bytes[44] & 1 == 0 { (&out[..], 0) } else { (&[][..], expected) };
        let tag = session.start(0, 0, &cdb, out, expected);
        let answer = session.wait_or_end(tag).unwrap_or_else(|| panic!("{cdb:02x?} ends the connection"));
        statuses[usize::from(answer.status)] += 1;
        assert!(session.events.is_empty(), "{cdb:02x?}: {:02x?}", session.events);
    }
    println!("good {}, check condition {}, conflict {}", statuses[0], statuses[2], statuses[0x18]);
    assert!(statuses[0] > 0 && statuses[2] > 0);
    session.end();
    bystander.end();
    server.stop();
}
