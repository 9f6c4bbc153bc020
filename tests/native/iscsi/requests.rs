//! Requests that hosts seldom send: commands for immediate delivery, and such as would move data both ways.

use std::time::Duration;

use reactor::limits::{ISCSI_IMMEDIATE, ISCSI_WINDOW};

use super::super::host::pattern;
use super::super::server::Place;
use super::initiator::cdb::{self, Cdb, status};
use super::initiator::pdu::{Pdu, flag, op};
use super::initiator::{Offer, PATIENCE, Session};
use super::{BLOCK, config, portal, session, session_with};

/// Long enough for what must not come.
const SHORT: Duration = Duration::from_millis(300);
const LEN: usize = 8 * BLOCK;
const BY_R2T: Offer = Offer { immediate_data: Some(false), initial_r2t: Some(true), ..Offer::PLAIN };
/// Of a Reject: too many immediate commands (RFC 7143 §11.17.1).
const IMMEDIATE_COMMAND_REJECT: u8 = 0x06;

/// Sends a request as it is, and takes the next PDU.
fn exchange(session: &mut Session, pdu: &Pdu) -> Pdu {
    let conn = &mut session.conns[0];
    conn.wire.send(&pdu.clone().with(28, conn.stat_sn));
    let answer = conn.wire.next(PATIENCE).pdu();
    assert_eq!(answer.get(24), conn.stat_sn, "StatSN of {answer:02x?}");
    conn.stat_sn = conn.stat_sn.wrapping_add(1);
    answer
}

/// All that the window takes of writes whose data is held back: number N is to block 8 N.
fn fill_window(session: &mut Session) -> Vec<u32> {
    session.hold = Some(PATIENCE);
    let first = session.cmd_sn;
    let room = session.window.1.wrapping_sub(first) + 1;
    assert_eq!(room, u32::from(ISCSI_WINDOW));
    (0..room).map(|at| session.start(0, 0, &cdb::write16(u64::from(at) * 8, 8, 0), &pattern(LEN, 1), 0)).collect()
}

#[test]
fn a_command_at_once_needs_no_room_in_the_window() {
    let server = Place::new().serve(&config());
    let mut session = session_with(portal(&server), 1, BY_R2T);
    session.command(1, &cdb::write16(0, 8, 0), &pattern(LEN, 9), 0).good();
    let tags = fill_window(&mut session);
    let (number, window) = (session.cmd_sn, session.window.1);
    assert!(session.is_waiting(tags[0], SHORT));
    assert_eq!((session.cmd_sn, session.window.1), (window.wrapping_add(1), window), "the window is full");
    // Reads, and a ping.
    let tag = session.start_immediate(0, 1, &cdb::read16(0, 8), &[], LEN);
    assert_eq!(session.wait(tag).good(), pattern(LEN, 9));
    let ping = Pdu::new(op::NOP_OUT | op::IMMEDIATE, flag::FINAL).with(16, 0x7000_0000).with(20, u32::MAX);
    let echo = session.request(0, ping.with_data(b"now")).expect("a NOP-In");
    assert_eq!((echo.opcode(), &echo.data[..]), (op::NOP_IN, &b"now"[..]));
    assert_eq!(session.cmd_sn, number, "they have no number of their own");
    // Whatever number it bears: only those that wait for their turn have to be in the window (RFC 7143 §4.2.2.1).
    for far in [number.wrapping_sub(1000), number.wrapping_add(1000), number.wrapping_add(0x7fff_ffff)] {
        let mut pdu = Pdu::new(op::COMMAND | op::IMMEDIATE, flag::FINAL | flag::READ | 1).with_lun(1);
        pdu.bhs[32..].copy_from_slice(&cdb::read16(0, 8));
        let pdu = pdu.with(16, 0x7000_0001).with(20, LEN as u32).with(24, far);
        let answer = exchange(&mut session, &pdu);
        assert_eq!((answer.opcode(), answer.itt(), answer.bhs[3]), (op::DATA_IN, 0x7000_0001, status::GOOD));
        assert!(answer.is(flag::STATUS) && answer.data == pattern(LEN, 9), "number {far:#x}");
    }
    // Those in the window go on.
    session.hold = Some(Duration::from_millis(1));
    for tag in tags {
        session.wait(tag).good();
    }
    let last = u64::from(ISCSI_WINDOW - 1) * 8;
    for lba in [0, last] {
        assert_eq!(session.command(0, &cdb::read16(lba, 8), &[], LEN).good(), pattern(LEN, 1));
    }
    session.end();
    server.stop();
}

#[test]
fn more_at_once_than_there_is_room_for_is_rejected() {
    let server = Place::new().serve(&config());
    let mut session = session_with(portal(&server), 1, BY_R2T);
    session.hold = Some(PATIENCE);
    let data = |at: u64| pattern(LEN, 100 + at);
    let write = |at: u64| cdb::write16(at * 8, 8, 0);
    let most = u64::from(ISCSI_IMMEDIATE);
    let tags: Vec<u32> = (0..most).map(|at| session.start_immediate(0, 0, &write(at), &data(at), 0)).collect();
    for tag in &tags {
        assert!(session.is_waiting(*tag, Duration::from_millis(20)));
    }
    let tag = session.start_immediate(0, 0, &write(most), &data(most), 0);
    while session.events.is_empty() {
        assert!(session.turn(0, PATIENCE), "a Reject");
    }
    let reject = session.events.remove(0);
    assert_eq!((reject.opcode(), reject.bhs[2]), (op::REJECT, IMMEDIATE_COMMAND_REJECT), "{reject:02x?}");
    assert_eq!(reject.data[16..20], tag.to_be_bytes(), "the header that is rejected");
    session.forget(tag);
    // What has a number is another matter, and is not held up.
    assert_eq!(session.command(1, &cdb::read16(0, 8), &[], LEN).good(), vec![0; LEN]);
    session.hold = Some(Duration::from_millis(1));
    for tag in tags {
        session.wait(tag).good();
    }
    for at in 0..most {
        assert_eq!(session.command(0, &cdb::read16(at * 8, 8), &[], LEN).good(), data(at), "write {at}");
    }
    assert_eq!(session.command(0, &cdb::read16(most * 8, 8), &[], LEN).good(), vec![0; LEN], "what was rejected");
    // There is room again.
    let tag = session.start_immediate(0, 0, &write(most), &data(most), 0);
    session.wait(tag).good();
    assert_eq!(session.command(0, &cdb::read16(most * 8, 8), &[], LEN).good(), data(most));
    session.end();
    server.stop();
}

#[test]
fn a_command_at_once_does_not_wait_for_one_that_is_missing() {
    let server = Place::new().serve(&config());
    let mut session = session(portal(&server), 1);
    // The number after the next one.
    session.cmd_sn = session.cmd_sn.wrapping_add(1);
    let behind = session.start(0, 0, &cdb::write16(0, 8, 0), &pattern(LEN, 1), 0);
    session.cmd_sn = session.cmd_sn.wrapping_sub(2);
    let write = session.start_immediate(0, 0, &cdb::write16(8, 8, 0), &pattern(LEN, 2), 0);
    session.wait(write).good();
    let read = session.start_immediate(0, 0, &cdb::read16(0, 16), &[], 2 * LEN);
    let found = session.wait(read).good();
    assert!(found[..LEN].iter().all(|byte| *byte == 0), "the one behind the missing one has to wait");
    assert_eq!(found[LEN..], pattern(LEN, 2));
    assert!(session.is_waiting(behind, SHORT));
    let missing = session.start(0, 0, &cdb::read16(8, 8), &[], LEN);
    session.cmd_sn = session.cmd_sn.wrapping_add(1);
    assert_eq!(session.wait(missing).good(), pattern(LEN, 2));
    session.wait(behind).good();
    assert_eq!(session.command(0, &cdb::read16(0, 8), &[], LEN).good(), pattern(LEN, 1));
    session.end();
    server.stop();
}

/// Additional header segment: what a bidirectional command expects to read (RFC 7143 §11.2.2.4).
fn bidirectional(len: u32) -> Vec<u8> {
    let mut segment = vec![0, 5, 2, 0];
    segment.extend_from_slice(&len.to_be_bytes());
    segment
}

/// Nothing here moves data both ways: such a command fails as a whole, before it moves any.
#[test]
fn commands_in_both_directions_are_refused() {
    const UNDERFLOW: u8 = flag::UNDERFLOW;
    const READ_UNDERFLOW: u8 = 0x08;
    // INVALID FIELD IN COMMAND INFORMATION UNIT.
    const REFUSED: (u8, u16) = (5, 0x0e03);
    let server = Place::new().serve(&config());
    let mut witness = session(portal(&server), 2);
    witness.command(0, &cdb::write16(0, 64, 0), &pattern(64 * BLOCK, 3), 0).good();
    // XDWRITEREAD(10), which would do so.
    let xdwriteread: Cdb = [0x53, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0];
    let cdbs = [cdb::write16(0, 8, 0), cdb::read16(0, 8), xdwriteread, cdb::inquiry(None, 36), cdb::test_unit_ready()];
    for (offer, immediate) in [(BY_R2T, 0), (Offer::PLAIN, 0), (Offer::PLAIN, LEN)] {
        let mut session = session_with(portal(&server), 1, offer);
        for (cdb, segment) in cdbs.iter().flat_map(|cdb| [(cdb, Some(LEN as u32)), (cdb, Some(0)), (cdb, None)]) {
            let name = format!("opcode {:#04x}, {immediate} bytes at once, {segment:?}", cdb[0]);
            let mut pdu = Pdu::new(op::COMMAND, flag::FINAL | flag::READ | flag::WRITE | 1).with(16, 0x7000_0000);
            pdu.bhs[32..].copy_from_slice(cdb);
            pdu.ahs = segment.map(bidirectional).unwrap_or_default();
            pdu.data = pattern(immediate, 8);
            let pdu = pdu.with(20, LEN as u32).with(24, session.cmd_sn);
            session.cmd_sn = session.cmd_sn.wrapping_add(1);
            let answer = exchange(&mut session, &pdu);
            assert_eq!((answer.opcode(), answer.itt()), (op::RESPONSE, 0x7000_0000), "{name}: {answer:02x?}");
            assert_eq!((answer.bhs[2], answer.bhs[3]), (0, status::CHECK_CONDITION), "{name}");
            let sense = &answer.data[2..];
            assert_eq!((sense[2] & 15, u16::from_be_bytes([sense[12], sense[13]])), REFUSED, "{name}: {sense:02x?}");
            // Neither direction has moved anything (RFC 7143 §11.4.5).
            let unread = segment.unwrap_or(0);
            let flags = flag::FINAL | UNDERFLOW | if unread > 0 { READ_UNDERFLOW } else { 0 };
            assert_eq!((answer.bhs[1], answer.get(40), answer.get(44)), (flags, unread, LEN as u32), "{name}");
            session.ping(0, b"on");
        }
        // Both bits without any data to move are no command in both directions.
        let mut pdu = Pdu::new(op::COMMAND, flag::FINAL | flag::READ | flag::WRITE | 1).with(16, 0x7000_0000);
        pdu.bhs[32..].copy_from_slice(&cdb::test_unit_ready());
        let pdu = pdu.with(24, session.cmd_sn);
        session.cmd_sn = session.cmd_sn.wrapping_add(1);
        let answer = exchange(&mut session, &pdu);
        assert_eq!((answer.opcode(), answer.bhs[1], answer.bhs[3]), (op::RESPONSE, flag::FINAL, status::GOOD));
        assert!(session.command(0, &cdb::read16(0, 64), &[], 64 * BLOCK).good() == pattern(64 * BLOCK, 3));
        session.end();
    }
    witness.end();
    server.stop();
}
