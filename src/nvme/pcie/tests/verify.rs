//! Verifies: by the command within its limits, or by reads, and what becomes of them when the controller fails.

use super::*;
use crate::limits::VERIFY_READ_MAX;
use crate::nvme::spec::{ONCS_VERIFY, Status};

/// By when a command that hangs has been aborted, or has led to a reset.
const RESET: u64 = TIMEOUT + TIMEOUT / 8 + TIMEOUT / 4 + 200 * MS;

/// On a controller whose verifies are of at most 2 to the power of `limit` pages, 0: of any length; `None`: it has none.
fn rig(limit: Option<u8>) -> Rig {
    let disk = |disk: &mut DiskOptions| match limit {
        Some(limit) => disk.verify_limit = limit,
        None => disk.oncs &= !ONCS_VERIFY,
    };
    Rig::with(disk, FakeOptions { io_ns: (10_000, 10_000), ..FakeOptions::default() })
}

fn verify(rig: &mut Rig, offset: u64, len: u64, ns: u64) -> IoStatus {
    let answer = rig.begin((1, 1), IoOp::Verify, offset, len, &[]);
    rig.ends(&answer, ns)
}

fn fails(opcode: NvmOpcode, nth: u64, status: Status) -> Rule {
    Rule::nth(Point::io(opcode), nth, Fault::Status(status))
}

const LOST: Status = StatusCode::UNRECOVERED_READ_ERROR.dnr();

/// How many commands of this kind an I/O takes: one more would fail it.
fn commands(rig: &mut Rig, opcode: NvmOpcode, offset: u64, len: u64) -> u64 {
    for most in 0..64 {
        rig.inject([fails(opcode, most + 1, LOST)]);
        let status = verify(rig, offset, len, S);
        rig.port.fake.forgive();
        match status {
            IoStatus::Success => return most,
            status => assert_eq!(status, IoStatus::MediaError),
        }
    }
    panic!("{opcode:?} without end")
}

#[test]
fn a_verify_is_one_command_up_to_its_limit() {
    let mut rig = rig(Some(3));
    let most = 8 * 4096;
    for (len, count) in [(BLOCK, 1), (most, 1), (most + BLOCK, 2), (2 * most, 2), (2 * most + BLOCK, 3)] {
        for offset in [0, 5 * BLOCK] {
            assert_eq!(commands(&mut rig, NvmOpcode::VERIFY, offset, len), count, "{len} bytes at {offset}");
            assert_eq!(commands(&mut rig, NvmOpcode::READ, offset, len), 0);
        }
    }
    rig.works(1);
    rig.finish();
}

#[test]
fn a_verify_without_a_limit_is_bounded_by_its_field() {
    let blocks = 1 << 16;
    let large = |disk: &mut DiskOptions| {
        disk.namespaces = (1..=2).map(|nsid| NamespaceOptions::new(nsid, (blocks + 4096) * BLOCK, 9)).collect();
    };
    let mut rig = Rig::with(large, FakeOptions::default());
    assert_eq!(commands(&mut rig, NvmOpcode::VERIFY, 64 * BLOCK, blocks * BLOCK), 1);
    assert_eq!(commands(&mut rig, NvmOpcode::VERIFY, 64 * BLOCK, (blocks + 1) * BLOCK), 2);
    rig.finish();
}

#[test]
fn a_controller_without_the_command_is_read_from() {
    let mut rig = rig(None);
    let piece = VERIFY_READ_MAX as u64;
    for (len, count) in [(BLOCK, 1), (piece, 1), (piece + BLOCK, 2), (4 * piece, 4)] {
        assert_eq!(commands(&mut rig, NvmOpcode::READ, 3 * BLOCK, len), count, "{len} bytes");
    }
    assert_eq!(commands(&mut rig, NvmOpcode::VERIFY, 0, piece), 0);
    rig.finish();
}

#[test]
fn a_block_that_cannot_be_read_fails_a_verify_of_it_alone() {
    for limit in [None, Some(0), Some(2)] {
        let mut rig = rig(limit);
        let data = pattern(3, SIZE as usize);
        rig.disk.put(1, 0, &data);
        rig.disk.poison(1, 1000);
        let bad = 1000 * BLOCK;
        for (offset, len, status) in [
            (bad, BLOCK, IoStatus::MediaError),
            (0, bad, IoStatus::Success),
            (bad + BLOCK, SIZE - bad - BLOCK, IoStatus::Success),
            (0, bad + BLOCK, IoStatus::MediaError),
            (0, SIZE, IoStatus::MediaError),
        ] {
            assert_eq!(verify(&mut rig, offset, len, S), status, "{offset}+{len}, {limit:?}");
        }
        rig.write((0, 1), bad, &data[..512]);
        rig.wait(10 * MS);
        assert_eq!(verify(&mut rig, 0, SIZE, S), IoStatus::Success, "written again");
        rig.finish();
    }
}

#[test]
fn a_verify_that_hangs_is_aborted_and_asked_for_again() {
    let mut rig = rig(Some(2));
    rig.inject([Rule::nth(Point::io(NvmOpcode::VERIFY), 3, Fault::Hang)]);
    assert_eq!(verify(&mut rig, 0, 1 << 20, 2 * RESET), IoStatus::Success);
    assert_eq!((rig.drive().counters().aborts, rig.drive().counters().resets), (1, 0));
    rig.works(1);
    rig.finish();
}

#[test]
fn a_reset_in_the_middle_of_a_verify_is_not_noticed() {
    for limit in [None, Some(2)] {
        for nth in [1, 5, 40] {
            let mut rig = rig(limit);
            rig.inject([Rule::nth(Point::ANY_IO, nth, Fault::Fatal)]);
            assert_eq!(verify(&mut rig, 0, SIZE, 2 * RESET), IoStatus::Success, "{limit:?}, {nth}");
            assert_eq!(rig.drive().counters().resets, 1);
            rig.disk.poison(1, 16_000);
            rig.inject([Rule::nth(Point::ANY_IO, nth, Fault::Fatal)]);
            assert_eq!(verify(&mut rig, 0, SIZE, 2 * RESET), IoStatus::MediaError, "{limit:?}, {nth}");
            assert_eq!(rig.drive().counters().resets, 2);
            rig.works(1);
            rig.finish();
        }
    }
}

#[test]
fn a_piece_of_a_verify_that_began_long_ago_is_repeated_still() {
    // Each takes a while: the last begins when the first is older than any I/O that is repeated.
    let slow = FakeOptions { io_ns: (3 * S, 3 * S), ..FakeOptions::default() };
    let mut rig = Rig::with(|disk| disk.verify_limit = 2, slow);
    let count = 64;
    rig.inject([Rule::nth(Point::io(NvmOpcode::VERIFY), count, Fault::Fatal)]);
    assert_eq!(verify(&mut rig, 0, count * 16_384, 120 * S), IoStatus::Success);
    assert_eq!((rig.drive().counters().aborts, rig.drive().counters().resets), (0, 1));
    rig.finish();
}

#[test]
fn a_controller_that_has_lost_the_command_is_read_from() {
    let mut rig = rig(Some(0));
    let refused = Fault::Status(StatusCode::INVALID_OPCODE.dnr());
    rig.inject([Rule::nth(Point::io(NvmOpcode::VERIFY), 1, refused)]);
    rig.disk.poison(1, 2000);
    assert_eq!(verify(&mut rig, 0, 1 << 19, S), IoStatus::Success);
    assert_eq!(verify(&mut rig, 0, SIZE, S), IoStatus::MediaError);
    rig.port.fake.forgive();
    rig.inject([fails(NvmOpcode::VERIFY, 1, LOST)]);
    assert_eq!(verify(&mut rig, 0, BLOCK, S), IoStatus::Success, "by reads from then on");
    let there = rig.begin((0, 1), IoOp::Verify, 0, BLOCK, &[]);
    assert_eq!(rig.ends(&there, S), IoStatus::MediaError, "the other reactor has not been refused");
    rig.finish();
}
