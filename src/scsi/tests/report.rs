//! REPORT LUNS, capacity, logs, port groups, supported commands and task management functions.

use super::*;
use crate::scsi::decode::CATALOGUE;

#[test]
fn luns() {
    let mut rig = Rig::new();
    let mut golden = vec![0, 0, 0, 24, 0, 0, 0, 0];
    golden.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0x41, 0, 0, 0, 0, 0, 0, 0]);
    let cdb = |select, len| [0xa0, 0, select, 0, 0, 0, 0, 0, 0, len, 0, 0];
    assert_eq!(rig.good(A, &cdb(0, 255)), golden);
    assert_eq!(rig.good(A, &cdb(2, 255)), golden);
    assert_eq!(rig.good(A, &cdb(1, 255)), [0; 8]);
    assert_eq!(rig.good(A, &cdb(0, 16)), golden[..16], "the length is that of all");
    assert_eq!(rig.check(A, &cdb(3, 255)), Sense::field(2));
}

#[test]
fn capacity() {
    let mut rig = Rig::with(Unit { physical_block_exponent: 3, ..unit() });
    assert_eq!(rig.good(A, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]), [0, 7, 0xff, 0xff, 0, 0, 2, 0]);
    assert_eq!(rig.check(A, &[0x25, 0, 0, 0, 0, 1, 0, 0, 0, 0]), Sense::field(2));
    assert_eq!(rig.check(A, &[0x25, 0, 0, 0, 0, 0, 0, 0, 1, 0]), Sense::bit(8, 0));
    let sixteen = |len| [0x9e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, len, 0, 0];
    let mut golden = vec![0, 0, 0, 0, 0, 7, 0xff, 0xff, 0, 0, 2, 0, 0, 3, 0xc0, 0];
    golden.resize(32, 0);
    assert_eq!(rig.good(A, &sixteen(32)), golden);
    for len in 0..32 {
        assert_eq!(rig.good(A, &sixteen(len)), golden[..usize::from(len)]);
    }
    for (blocks, last) in [(1u64 << 32, [0xff; 4]), (u64::from(u32::MAX), [0xff, 0xff, 0xff, 0xfe])] {
        let mut rig = Rig::with(Unit { blocks, block_size: 4096, ..unit() });
        assert_eq!(rig.good(A, &[0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0]), [&last[..], &[0, 0, 0x10, 0]].concat());
    }
    let mut thick = Rig::with(Unit { can_unmap: false, unmap_max: 0, ..unit() });
    assert_eq!(thick.good(A, &sixteen(32))[14..16], [0, 0]);
}

#[test]
fn logs() {
    let mut rig = Rig::new();
    let resources = Resources { available: Some(4096 + 100), used: Some(1) };
    let mut log = |page: u8, subpage, from: u8| {
        let cdb = [0x4d, 0, 0x40 | page, subpage, 0, 0, from, 1, 0, 0];
        match rig.lu.begin(A, &Cdb::new(&cdb), &Context { luns: &[], resources }) {
            Action::Reply(reply) => reply,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(log(0, 0, 0), Reply::Good(vec![0, 0, 0, 2, 0x00, 0x0c]));
    assert_eq!(log(0, 0xff, 0), Reply::Good(vec![0x40, 0xff, 0, 6, 0, 0, 0, 0xff, 0x0c, 0]));
    // Sets of 2,048 blocks: what is free is rounded down, what is used up.
    let first = [0, 1, 3, 8, 0, 0, 0, 2, 1, 0, 0, 0];
    let second = [0, 2, 3, 8, 0, 0, 0, 1, 1, 0, 0, 0];
    assert_eq!(log(0x0c, 0, 0), Reply::Good([&[0x0c, 0, 0, 24][..], &first, &second].concat()));
    assert_eq!(log(0x0c, 0, 2), Reply::Good([&[0x0c, 0, 0, 12][..], &second].concat()));
    assert_eq!(log(0x0c, 0, 3), Reply::Check(Sense::field(5)));
    assert_eq!(log(0x0c, 1, 0), Reply::Check(Sense::field(3)));
    assert_eq!(log(0x0d, 0, 0), Reply::Check(Sense::bit(2, 5)));
    assert_eq!(rig.check(A, &[0x4d, 0, 0x00, 0, 0, 0, 0, 1, 0, 0]), Sense::bit(2, 7));
    assert_eq!(rig.check(A, &[0x4d, 1, 0x40, 0, 0, 0, 0, 1, 0, 0]), Sense::bit(1, 0));
    assert_eq!(rig.good(A, &[0x4d, 0, 0x4c, 0, 0, 0, 0, 1, 0, 0]), [0x0c, 0, 0, 0], "nobody knows");
    let mut thick = Rig::with(Unit { can_unmap: false, unmap_max: 0, ..unit() });
    assert_eq!(thick.good(A, &[0x4d, 0, 0x40, 0, 0, 0, 0, 1, 0, 0]), [0, 0, 0, 1, 0]);
    assert_eq!(thick.check(A, &[0x4d, 0, 0x4c, 0, 0, 0, 0, 1, 0, 0]), Sense::bit(2, 5));
}

#[test]
fn port_groups() {
    let other = TargetPort { group: 2, ..port(7) };
    let mut lu = LogicalUnit::new(unit(), vec![other, port(1), port(2)], Reservations::default()).unwrap();
    lu.attach(A, initiator("a", 1), 1);
    let mut rig = Rig { lu };
    rig.check(A, &[0; 6]);
    let cdb = |flags: u8, len: u8| [0xa3, 0x0a | flags, 0, 0, 0, 0, 0, 0, 0, len, 0, 0];
    let mut golden = vec![0, 0, 0, 28];
    golden.extend_from_slice(&[0, 1, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2]);
    golden.extend_from_slice(&[0, 1, 0, 2, 0, 0, 0, 1, 0, 0, 0, 7]);
    for len in 0..=32 {
        assert_eq!(rig.good(A, &cdb(0, len)), golden[..usize::from(len)]);
    }
    let extended = rig.good(A, &cdb(0x20, 255));
    assert_eq!(extended, [&[0, 0, 0, 32, 0x10, 0, 0, 0][..], &golden[4..]].concat());
    assert_eq!(rig.check(A, &cdb(0x40, 255)), Sense::bit(1, 7));
}

#[test]
fn task_management_functions() {
    let all = TaskFunctions {
        abort_task: true,
        abort_task_set: true,
        clear_aca: true,
        clear_task_set: true,
        unit_reset: true,
        query_task: true,
        target_reset: true,
        query_event: true,
        query_task_set: true,
        nexus_reset: true,
    };
    let cdb = |flags, len| [0xa3, 0x0d, flags, 0, 0, 0, 0, 0, 0, len, 0, 0];
    assert_eq!(Rig::new().good(A, &cdb(0, 4)), [0x88, 0, 0, 0]);
    let mut rig = Rig::with(Unit { task_functions: all, ..unit() });
    assert_eq!(rig.good(A, &cdb(0, 255)), [0xfe, 7, 0, 0]);
    assert_eq!(rig.good(A, &cdb(0x80, 255)), [0xfe, 7, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(rig.check(A, &cdb(0, 3)), Sense::field(6));
}

fn opcodes(options: u8, opcode: u8, action: u8) -> [u8; 12] {
    [0xa3, 0x0c, options, opcode, 0, action, 0, 0, 0xff, 0xff, 0, 0]
}

#[test]
fn all_supported_commands() {
    let mut rig = Rig::new();
    for (options, len) in [(0, 8), (0x80, 20)] {
        let data = rig.good(A, &opcodes(options, 0, 0));
        assert_eq!(data[..4], ((CATALOGUE.len() * len) as u32).to_be_bytes());
        for (descriptor, entry) in data[4..].chunks(len).zip(CATALOGUE) {
            let timeouts = u8::from(options != 0) << 1;
            let action = entry.action.unwrap_or(0);
            let flags = timeouts | u8::from(entry.action.is_some());
            let size = entry.usage.len() as u8;
            assert_eq!(descriptor[..8], [entry.opcode.0, 0, 0, action, 0, flags, 0, size]);
            if timeouts != 0 {
                assert_eq!(descriptor[8..16], [0, 10, 0, 0, 0, 0, 0, 0]);
                assert_eq!(descriptor[16..], entry.timeout_s.to_be_bytes());
            }
        }
    }
    // What a unit cannot do is not reported.
    let least =
        Unit { can_unmap: false, unmap_max: 0, atomic: None, copies: false, compare_and_write_max: 0, ..unit() };
    let data = Rig::with(least).good(A, &opcodes(0, 0, 0));
    let found: Vec<_> = data[4..].chunks(8).map(|descriptor| descriptor[0]).collect();
    assert_eq!(found.len(), CATALOGUE.len() - 6);
    assert!([0x42, 0x83, 0x84, 0x89, 0x9c].iter().all(|opcode| !found.contains(opcode)));
}

#[test]
fn one_supported_command() {
    let mut rig = Rig::new();
    for entry in CATALOGUE {
        let (opcode, action) = (entry.opcode.0, entry.action.unwrap_or(0));
        let golden = [&[0, 3, 0, entry.usage.len() as u8][..], entry.usage].concat();
        let (right, wrong) = if entry.action.is_some() { (2, 1) } else { (1, 2) };
        assert_eq!(rig.good(A, &opcodes(right, opcode, action)), golden);
        assert_eq!(rig.good(A, &opcodes(3, opcode, action)), golden);
        assert_eq!(rig.check(A, &opcodes(wrong, opcode, action)), Sense::bit(2, 2));
        let timed = rig.good(A, &opcodes(0x80 | right, opcode, action));
        assert_eq!(timed[..2], [0, 0x83]);
        assert_eq!(timed[4 + entry.usage.len()..][..2], [0, 10]);
        assert_eq!(timed.len(), 4 + entry.usage.len() + 12);
    }
    for (options, opcode, action) in [(1, 0x48, 0), (2, 0x48, 1), (3, 0x48, 1), (2, 0x9e, 0x13), (3, 0x28, 1)] {
        assert_eq!(rig.good(A, &opcodes(options, opcode, action)), [0, 1, 0, 0]);
    }
    assert_eq!(rig.check(A, &opcodes(4, 0, 0)), Sense::bit(2, 2));
}

#[test]
fn defect_lists_are_empty() {
    let mut rig = Rig::new();
    assert_eq!(rig.good(A, &[0x37, 0, 0x1d, 0, 0, 0, 0, 0, 255, 0]), [0, 0x1d, 0, 0]);
    assert_eq!(rig.good(A, &[0xb7, 0x18, 0, 0, 0, 0, 0, 0, 0, 255, 0, 0]), [0, 0x18, 0, 0, 0, 0, 0, 0]);
}
