//! What commands do to the medium, each seen by reading back: the ranges they are about, what lies beside them, and their order.

use std::time::Duration;

use super::super::host::pattern;
use super::super::server::{Place, now};
use super::held::{ASKED, BY_R2T, late_config, two_cores};
use super::initiator::cdb::{self, status};
use super::initiator::pdu::{Pdu, flag, op};
use super::initiator::{Offer, Options, PATIENCE, Session, Wire};
use super::unit::{RELATIVE_PORT, designator, fill, get, put, whole};
use super::{BLOCK, IQN, MIB, SIZE, config, portal, session, session_with};

/// Task attributes (RFC 7143 §11.3.1).
const SIMPLE: u8 = 1;
const ORDERED: u8 = 2;
const ACA: u8 = 4;
/// ILLEGAL REQUEST: INVALID FIELD IN CDB, INVALID MESSAGE ERROR, INVALID FIELD IN COMMAND INFORMATION UNIT.
const INVALID_FIELD: (u8, u16) = (5, 0x2400);
const INVALID_MESSAGE: (u8, u16) = (5, 0x4900);
const WRONG_LENGTH: (u8, u16) = (5, 0x0e03);
/// MISCOMPARE, MISCOMPARE DURING VERIFY OPERATION.
const MISCOMPARE: (u8, u16) = (0xe, 0x1d00);

/// Blocks on both sides of a range that have to stay as they are.
const BESIDE: usize = 8;

/// Has `act` do something about a range of LUN 0 that is `old` before: it has to be `new` then, and what lies beside it as it was.
fn changes(session: &mut Session, lba: u64, (old, new): (&[u8], &[u8]), act: impl FnOnce(&mut Session)) {
    let first = lba - BESIDE as u64;
    let (before, after) = (pattern(BESIDE * BLOCK, 1001), pattern(BESIDE * BLOCK, 1002));
    put(session, 0, first, &[&before, old, &after].concat());
    act(session);
    let found = get(session, 0, first, 2 * BESIDE + old.len() / BLOCK);
    let (found_before, rest) = found.split_at(before.len());
    let (range, found_after) = rest.split_at(old.len());
    assert!(range == new, "the range from block {lba} on");
    assert!(found_before == before && found_after == after, "what lies beside the range from block {lba} on");
}

#[test]
fn an_ordered_write_waits_for_all_before_it_and_is_waited_for_by_all_behind_it() {
    // If it did not wait, the first write would land on it; if the read did not wait, it would find what was there before.
    const FIRST: Duration = Duration::from_millis(900);
    const SECOND: Duration = Duration::from_millis(300);
    // The order is that of the session, whatever connections its commands come by.
    for connections in [1, 2] {
        let server = Place::new().serve(&late_config(&[FIRST, SECOND]));
        let offer = Offer { max_connections: Some(2), ..Offer::PLAIN };
        let mut session = session_with(portal(&server), 1, offer);
        for cid in 1..connections {
            session.join(portal(&server), cid).unwrap();
        }
        let (write, read) = (cdb::write16(0, 8, 0), cdb::read16(0, 8));
        let (old, new) = (pattern(ASKED, 1), pattern(ASKED, 2));
        let start = now();
        let before = session.start_with(0, 0, &write, &old, 0, SIMPLE);
        let ordered = session.start_with(usize::from(connections) - 1, 0, &write, &new, 0, ORDERED);
        let behind = session.start_with(0, 0, &read, &[], ASKED, SIMPLE);
        assert!(
            session.wait(behind).good() == new,
            "{connections} connections: the read comes after the ordered write"
        );
        assert!(now() - start >= FIRST + SECOND / 2, "both writes were late");
        session.wait(before).good();
        session.wait(ordered).good();
        assert!(
            get(&mut session, 0, 0, 8) == new,
            "{connections} connections: the ordered write comes after the first"
        );
        session.end();
        server.stop();
    }
}

/// Both arrive in one piece: the write may be done in the turn in which what the read gives is sent.
#[test]
fn an_ordered_read_gives_what_was_there_before_the_write_behind_it() {
    const ROUNDS: u64 = 400;
    const LEN: usize = 16 << 10;
    let server = Place::new().serve(&config());
    let mut session = session(portal(&server), 1);
    put(&mut session, 0, 0, &pattern(LEN, 0));
    let (mut cmd_sn, mut stat_sn) = (session.cmd_sn, session.conns[0].stat_sn);
    let mut wire = session.conns.remove(0).wire;
    let blocks = (LEN / BLOCK) as u32;
    for round in 1..=ROUNDS {
        let (old, new) = (pattern(LEN, round - 1), pattern(LEN, round));
        let mut bytes = Vec::new();
        for (flags, cdb, data) in [
            (flag::READ | ORDERED, cdb::read16(0, blocks), Vec::new()),
            (flag::WRITE | SIMPLE, cdb::write16(0, blocks, 0), new),
        ] {
            let mut pdu = Pdu::new(op::COMMAND, flag::FINAL | flags).with_data(&data);
            pdu.bhs[32..].copy_from_slice(&cdb);
            bytes.extend(wire.bytes(&pdu.with(16, cmd_sn).with(20, LEN as u32).with(24, cmd_sn).with(28, stat_sn)));
            cmd_sn = cmd_sn.wrapping_add(1);
        }
        assert!(wire.send_bytes(&bytes));
        let (mut found, mut answered) = (Vec::new(), 0);
        while answered < 2 {
            let pdu = wire.next(PATIENCE).pdu();
            let ends = pdu.opcode() == op::RESPONSE || pdu.bhs[1] & flag::STATUS != 0;
            assert!(!ends || pdu.bhs[3] == status::GOOD, "round {round}: {:02x?}", pdu.bhs);
            answered += u32::from(ends);
            found.extend(pdu.data);
        }
        stat_sn = stat_sn.wrapping_add(2);
        assert!(found == old, "round {round}: the read has data of the write behind it");
    }
    drop(wire);
    server.stop();
}

#[test]
fn a_command_with_the_aca_attribute_is_refused_and_the_session_goes_on() {
    let server = Place::new().serve(&config());
    let mut session = session(portal(&server), 1);
    let (old, new) = (pattern(ASKED, 1), pattern(ASKED, 2));
    put(&mut session, 0, 0, &old);
    for (cdb, out, expected) in [
        (cdb::write16(0, 8, 0), &new[..], 0),
        (cdb::read16(0, 8), &[][..], ASKED),
        (cdb::test_unit_ready(), &[][..], 0),
    ] {
        let tag = session.start_with(0, 0, &cdb, out, expected, ACA);
        let answer = session.wait(tag);
        assert_eq!((answer.status, answer.sense()), (status::CHECK_CONDITION, INVALID_MESSAGE), "opcode {:#x}", cdb[0]);
        assert_eq!(answer.data.len(), 0, "opcode {:#x}", cdb[0]);
        assert!(get(&mut session, 0, 0, 8) == old, "opcode {:#x}", cdb[0]);
    }
    put(&mut session, 0, 0, &new);
    assert!(get(&mut session, 0, 0, 8) == new);
    session.end();
    server.stop();
}

/// Accepted sockets go to the two reactors in turn, and a session stays where its first one went: of three more each second one has to be
/// moved there. A stranger between the sessions has the next one begin on the other reactor.
#[test]
fn connections_that_another_reactor_has_accepted_are_of_their_session() {
    const ROUNDS: u64 = 40;
    const CONNECTIONS: usize = 4;
    /// Ranges of a round: each length by each connection.
    const RANGES: usize = 12;
    const BLOCKS: [usize; 3] = [1, 24, 300];
    const ROOM: usize = 300;
    let server = Place::new().serve(&(two_cores() + &config()));
    let address = portal(&server);
    let digests = Offer { header_digest: Some("CRC32C"), data_digest: Some("CRC32C"), ..Offer::PLAIN };
    let mut strangers = Vec::new();
    for (number, offer) in [(1, Offer::PLAIN), (2, digests)] {
        let mut session = session_with(address, number, Offer { max_connections: Some(CONNECTIONS as u32), ..offer });
        for cid in 1..CONNECTIONS {
            session.join(address, cid as u16).unwrap_or_else(|status| panic!("connection {cid}: {status:#06x}"));
        }
        let blocks = |range: usize| BLOCKS[range % BLOCKS.len()];
        let data = |round: u64, range: usize| {
            pattern(blocks(range) * BLOCK, u64::from(number) << 32 | round << 8 | range as u64)
        };
        // The rounds in turn, so that what one has written is read while the next one writes.
        let lba = |round: u64, range: usize| (round as usize % 2 * RANGES + range) as u64 * ROOM as u64;
        for round in 0..=ROUNDS {
            let (mut writes, mut reads) = (Vec::new(), Vec::new());
            for range in 0..RANGES {
                let (conn, blocks) = (range % CONNECTIONS, blocks(range));
                if round < ROUNDS {
                    let write = cdb::write16(lba(round, range), blocks as u32, 0);
                    writes.push(session.start(conn, 0, &write, &data(round, range), 0));
                }
                if let Some(last) = round.checked_sub(1) {
                    // Never by the connection that has written it.
                    let other = (conn + 1 + last as usize % (CONNECTIONS - 1)) % CONNECTIONS;
                    let read = cdb::read16(lba(last, range), blocks as u32);
                    let tag = session.start(other, 0, &read, &[], blocks * BLOCK);
                    reads.push((tag, data(last, range), format!("round {last}: {conn} wrote, {other} has read")));
                }
            }
            for (tag, expected, what) in reads {
                assert!(session.wait(tag).good() == expected, "session {number}, {what}");
            }
            for tag in writes.into_iter().rev() {
                session.wait(tag).good();
            }
        }
        for conn in 0..CONNECTIONS {
            session.ping(conn, b"here");
        }
        session.end();
        strangers.push(Wire::connect(address));
    }
    drop(strangers);
    server.stop();
}

/// The log page and the vital product data page of logical block provisioning (SBC-3 §6.3.4, §6.5.6).
const PROVISIONING_LOG: u8 = 0x0c;
const PROVISIONING_PAGE: u8 = 0xb2;
/// The parameter of the log page that counts what is used.
const USED: u16 = 2;

/// What is used of a unit, in the sets of blocks that its page tells.
fn used(session: &mut Session, lun: u16) -> usize {
    let answer = session.command(lun, &cdb::log_sense(PROVISIONING_LOG, 64), &[], 64);
    assert_eq!(answer.status, status::GOOD, "{answer:02x?}");
    let page = answer.data;
    assert_eq!((page[0] & 0x3f, page[1]), (PROVISIONING_LOG, 0));
    assert_eq!(usize::from(u16::from_be_bytes([page[2], page[3]])), page.len() - 4, "{page:02x?}");
    let mut rest = &page[4..];
    while let [high, low, _, len, after @ ..] = rest {
        let (parameter, next) = after.split_at(usize::from(*len));
        if u16::from_be_bytes([*high, *low]) == USED {
            return u32::from_be_bytes(parameter[..4].try_into().unwrap()) as usize;
        }
        rest = next;
    }
    panic!("nothing of what is used: {page:02x?}");
}

#[test]
fn what_is_used_grows_with_writes_and_shrinks_with_unmaps() {
    /// What memory comes and goes in.
    const PAGE: usize = 4096;
    const PIECE: u32 = (MIB / BLOCK) as u32;
    let server = Place::new().serve(&config());
    let mut session = session(portal(&server), 1);
    let page = session.command(0, &cdb::inquiry(Some(PROVISIONING_PAGE), 64), &[], 64).data;
    let set = BLOCK << page[4];
    assert!((PAGE..=MIB).contains(&set), "THRESHOLD EXPONENT {} is too coarse, or too fine", page[4]);
    let at = |mib: u64| mib * u64::from(PIECE);
    let is = |session: &mut Session, bytes: usize, what: &str| {
        assert_eq!(used(session, 0), bytes.div_ceil(set), "in sets of {set} bytes: {what}");
    };
    let unmap = |session: &mut Session, lba: u64, blocks: u32| {
        let list = cdb::unmap_parameters(lba, blocks);
        session.command(0, &cdb::unmap(list.len() as u16), &list, 0).good();
    };
    is(&mut session, 0, "nothing was written");
    put(&mut session, 0, at(2), &pattern(3 * MIB, 1));
    is(&mut session, 3 * MIB, "three MiB were written");
    put(&mut session, 0, at(2), &pattern(3 * MIB, 2));
    is(&mut session, 3 * MIB, "the same ones again");
    put(&mut session, 0, at(10), &pattern(BLOCK, 3));
    is(&mut session, 3 * MIB + PAGE, "one block more");
    let mut expected = vec![0; SIZE];
    expected[2 * MIB..5 * MIB].copy_from_slice(&pattern(3 * MIB, 2));
    expected[10 * MIB..10 * MIB + BLOCK].copy_from_slice(&pattern(BLOCK, 3));
    assert!(whole(&mut session, 0) == expected);
    is(&mut session, 3 * MIB + PAGE, "reading takes nothing");
    assert_eq!(used(&mut session, 1), 0, "of the other unit nothing is used");
    unmap(&mut session, at(3), PIECE);
    is(&mut session, 2 * MIB + PAGE, "UNMAP of a MiB");
    session.command(0, &cdb::write_same16(at(4), PIECE, true), &[0; BLOCK], 0).good();
    is(&mut session, MIB + PAGE, "WRITE SAME with UNMAP of a MiB");
    unmap(&mut session, at(10), (PAGE / BLOCK) as u32);
    is(&mut session, MIB, "UNMAP of the page with the one block");
    expected[3 * MIB..].fill(0);
    assert!(whole(&mut session, 0) == expected);
    unmap(&mut session, 0, (SIZE / BLOCK) as u32);
    is(&mut session, 0, "UNMAP of everything");
    session.end();
    server.stop();
}

#[test]
fn orwrite_leaves_the_or_of_what_was_there_and_what_came() {
    let server = Place::new().serve(&config());
    let mut session = session(portal(&server), 1);
    // In one step, and in several.
    for blocks in [1, 24, 600] {
        let (old, sent) = (pattern(blocks * BLOCK, 1), pattern(blocks * BLOCK, 2));
        let both: Vec<u8> = old.iter().zip(&sent).map(|(old, sent)| old | sent).collect();
        changes(&mut session, 100, (&old, &both), |session| {
            session.command(0, &cdb::orwrite16(100, blocks as u32), &sent, 0).good();
        });
    }
    session.end();
    server.stop();
}

#[test]
fn an_atomic_write_is_there_up_to_the_limit_and_refused_beyond_it() {
    let server = Place::new().serve(&config());
    let mut session = session(portal(&server), 1);
    // MAXIMUM ATOMIC TRANSFER LENGTH, ATOMIC ALIGNMENT and ATOMIC TRANSFER LENGTH GRANULARITY of the Block Limits page.
    let page = session.command(0, &cdb::inquiry(Some(0xb0), 64), &[], 64).data;
    let limits: Vec<u32> = page[44..56].chunks(4).map(|field| u32::from_be_bytes(field.try_into().unwrap())).collect();
    assert_eq!(limits, [(MIB / BLOCK) as u32, 1, 1], "one transfer, wherever it begins");
    let most = MIB / BLOCK;
    for blocks in [1, 24, most] {
        let (old, sent) = (pattern(blocks * BLOCK, 1), pattern(blocks * BLOCK, 2));
        changes(&mut session, 101, (&old, &sent), |session| {
            session.command(0, &cdb::write_atomic16(101, blocks as u16, 0), &sent, 0).good();
        });
    }
    for (blocks, boundary, what) in [(most + 1, 0, "a block more"), (16, 8, "in pieces")] {
        let (old, sent) = (pattern(blocks * BLOCK, 3), pattern(blocks * BLOCK, 4));
        changes(&mut session, 101, (&old, &old), |session| {
            let answer = session.command(0, &cdb::write_atomic16(101, blocks as u16, boundary), &sent, 0);
            assert_eq!((answer.status, answer.sense()), (status::CHECK_CONDITION, INVALID_FIELD), "{what}");
        });
    }
    session.end();
    server.stop();
}

#[test]
fn verify_compares_every_block_with_the_one_that_is_sent() {
    const LBA: u64 = 100;
    /// More than is compared in one step.
    const BLOCKS: usize = 600;
    let server = Place::new().serve(&config());
    let mut session = session(portal(&server), 1);
    let one = pattern(BLOCK, 5);
    let same = one.repeat(BLOCKS);
    let verify = |session: &mut Session| session.command(0, &cdb::compare_each16(LBA, BLOCKS as u32), &one, 0);
    // What lies beside the range is other data, and not looked at.
    changes(&mut session, LBA, (&same, &same), |session| {
        verify(session).good();
    });
    for (block, byte) in [(0, 0), (0, 511), (1, 7), (299, 256), (511, 511), (512, 0), (599, 511)] {
        let mut other = same.clone();
        other[block * BLOCK + byte] ^= 1;
        changes(&mut session, LBA, (&other, &other), |session| {
            let answer = verify(session);
            let what = format!("byte {byte} of block {block}");
            assert_eq!((answer.status, answer.sense()), (status::CHECK_CONDITION, MISCOMPARE), "{what}");
            // INFORMATION, which VALID announces: where in what was sent.
            assert_eq!(answer.sense[0] & 0x80, 0x80, "{what}");
            assert_eq!(answer.sense[3..7], (byte as u32).to_be_bytes(), "{what}");
        });
    }
    session.end();
    server.stop();
}

#[test]
fn a_unit_that_was_formatted_is_all_zeros() {
    let server = Place::new().serve(&config());
    let (mut session, mut other) = (session(portal(&server), 1), session(portal(&server), 2));
    for lun in [0, 1] {
        fill(&mut session, lun, 1 + u64::from(lun));
    }
    assert!(whole(&mut other, 0) == pattern(SIZE, 1), "it was full");
    session.command(0, &cdb::format_unit(), &[], 0).good();
    for session in [&mut session, &mut other] {
        assert!(whole(session, 0).iter().all(|byte| *byte == 0));
        assert!(whole(session, 1) == pattern(SIZE, 2), "the other unit is as it was");
    }
    let last = (SIZE / BLOCK) as u64 - 8;
    put(&mut session, 0, last, &pattern(ASKED, 3));
    assert!(get(&mut other, 0, last, 8) == pattern(ASKED, 3));
    session.end();
    other.end();
    server.stop();
}

/// Actions of PERSISTENT RESERVE OUT and IN, and a type: who holds the reservation alone may write (SPC-4 §6.15, §6.16).
const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const READ_KEYS: u8 = 0;
const READ_RESERVATION: u8 = 1;
const WRITE_EXCLUSIVE: u8 = 1;

/// The numbers in the answer to a PERSISTENT RESERVE IN from byte 8 on.
fn reserved(session: &mut Session, action: u8) -> Vec<u64> {
    let data = session.command(0, &cdb::reserve_in(action), &[], 256).data;
    let len = u32::from_be_bytes(data[4..8].try_into().unwrap()) as usize;
    data[8..8 + len].chunks(8).map(|number| u64::from_be_bytes(number.try_into().unwrap())).collect()
}

/// One may write and the other may not, as the medium tells; both may read.
fn writes_alone(holder: &mut Session, other: &mut Session, seed: u64) {
    let write = cdb::write16(0, 8, 0);
    let (allowed, refused) = (pattern(ASKED, seed), pattern(ASKED, seed + 1));
    holder.command(0, &write, &allowed, 0).good();
    assert_eq!(other.command(0, &write, &refused, 0).status, status::RESERVATION_CONFLICT);
    assert!(get(holder, 0, 0, 8) == allowed && get(other, 0, 0, 8) == allowed);
}

#[test]
fn a_reservation_that_is_moved_lets_the_other_one_write() {
    const KEY: u64 = 0xa1;
    const THEIR_KEY: u64 = 0xb2;
    const LAST_KEY: u64 = 0xc3;
    let server = Place::new().serve(&config());
    let (mut one, mut other) = (session(portal(&server), 1), session(portal(&server), 2));
    let port = designator(&mut one, 0, RELATIVE_PORT);
    let port = u16::from_be_bytes([port[2], port[3]]);
    let [id, their_id] = [1, 2].map(|number| {
        let Options { initiator, isid, .. } = Options::new(IQN, number);
        cdb::transport_id(&initiator, isid)
    });
    let hand_over = |session: &mut Session, (key, new_key): (u64, u64), unregister: bool, to: &[u8]| {
        let list = cdb::move_parameters(key, new_key, unregister, port, to);
        session.command(0, &cdb::reserve_move(list.len() as u32), &list, 0)
    };
    let act = |session: &mut Session, (action, kind): (u8, u8), key: u64, about: u64| {
        let list = cdb::reserve_parameters(key, about, false);
        session.command(0, &cdb::reserve_out(action, kind), &list, 0).good();
    };
    act(&mut one, (REGISTER, 0), 0, KEY);
    act(&mut one, (RESERVE, WRITE_EXCLUSIVE), KEY, 0);
    writes_alone(&mut one, &mut other, 10);
    // Who does not hold it cannot have it moved, and the holder not to itself.
    assert_eq!(hand_over(&mut other, (KEY, THEIR_KEY), false, &their_id).status, status::RESERVATION_CONFLICT);
    let itself = hand_over(&mut one, (KEY, THEIR_KEY), false, &id);
    assert_eq!((itself.status, itself.sense()), (status::CHECK_CONDITION, (5, 0x2600)));
    writes_alone(&mut one, &mut other, 20);
    hand_over(&mut one, (KEY, THEIR_KEY), false, &their_id).good();
    writes_alone(&mut other, &mut one, 30);
    assert_eq!(reserved(&mut one, READ_KEYS), [KEY, THEIR_KEY], "both are registered");
    assert_eq!(reserved(&mut one, READ_RESERVATION)[0], THEIR_KEY);
    assert_eq!(hand_over(&mut one, (KEY, LAST_KEY), false, &their_id).status, status::RESERVATION_CONFLICT);
    // Back again with another key, and who gives it away is registered no more.
    hand_over(&mut other, (THEIR_KEY, LAST_KEY), true, &id).good();
    writes_alone(&mut one, &mut other, 40);
    assert_eq!(reserved(&mut other, READ_KEYS), [LAST_KEY]);
    assert_eq!(reserved(&mut other, READ_RESERVATION)[0], LAST_KEY);
    one.end();
    other.end();
    server.stop();
}

#[test]
fn data_of_a_wrong_length_changes_nothing_where_a_part_is_of_no_use() {
    const LBA: usize = 16;
    const BLOCKS: usize = 4;
    let known = pattern(64 * BLOCK, 1);
    let range = LBA * BLOCK..(LBA + BLOCKS) * BLOCK;
    let (old, new) = (&known[range.clone()], pattern(BLOCKS * BLOCK, 2));
    // What is right, and what it leaves: with the right length each would change all of the range.
    let one = &new[..BLOCK];
    let rows = [
        (cdb::compare_and_write(LBA as u64, BLOCKS as u8), [old, &new].concat(), new.clone()),
        (cdb::write_same16(LBA as u64, BLOCKS as u32, false), one.to_vec(), one.repeat(BLOCKS)),
        (cdb::write_same10(LBA as u32, BLOCKS as u16), one.to_vec(), one.repeat(BLOCKS)),
    ];
    let server = Place::new().serve(&config());
    // The data with the command, and only if it is asked for.
    for offer in [Offer::PLAIN, BY_R2T] {
        let mut session = session_with(portal(&server), 1, offer);
        for (cdb, data, after) in &rows {
            put(&mut session, 0, 0, &known);
            for wrong in [-512, -4, -1, 1, 4, 512] {
                let mut sent = data.clone();
                sent.resize(data.len().checked_add_signed(wrong).unwrap(), 0x5a);
                let answer = session.command(0, cdb, &sent, 0);
                let what = format!("opcode {:#x}, {} bytes instead of {}", cdb[0], sent.len(), data.len());
                assert_eq!((answer.status, answer.sense()), (status::CHECK_CONDITION, WRONG_LENGTH), "{what}");
                assert_eq!(answer.residual, -(wrong as i64), "{what}");
                assert!(get(&mut session, 0, 0, 64) == known, "{what}: the medium has changed");
            }
            session.command(0, cdb, data, 0).good();
            let mut expected = known.clone();
            expected[range.clone()].copy_from_slice(after);
            assert!(get(&mut session, 0, 0, 64) == expected, "opcode {:#x} with the right length", cdb[0]);
        }
        session.end();
    }
    server.stop();
}
