//! Answers that are wrong, and answers that say no.

use super::*;

fn read_of(nth: u64, then: Fault) -> Rule {
    Rule::nth(Point::io(NvmOpcode::READ), nth, then)
}

/// Two reads at the same time; the first is answered wrongly. Both end with their data, and not before it is there.
fn is_counted(fault: Fault, stale: u64, within: u64) {
    let mut rig = Rig::new();
    let (one, two) = (pattern(1, 4096), pattern(2, 4096));
    rig.disk.put(1, 0, &one);
    rig.disk.put(1, 4096, &two);
    rig.inject([read_of(1, fault)]);
    let (first, second) = (rig.read((0, 1), 0, 4096), rig.read((0, 1), 4096, 4096));
    let (first, second) = (rig.end(&first, within), rig.end(&second, within));
    assert_eq!((first.status, second.status), (IoStatus::Success, IoStatus::Success), "{fault:?}");
    assert!(first.data == one && second.data == two, "{fault:?}");
    assert_eq!(rig.stale(), stale, "{fault:?}");
    rig.works(1);
    rig.finish();
}

#[test]
fn an_answer_twice() {
    is_counted(Fault::Twice, 1, S);
}

#[test]
fn an_answer_that_nobody_asked_for() {
    // Of a slot that is free, of another generation, of no slot at all.
    for bits in [9, 1 << 10, 7 << 10, 0x3ff] {
        is_counted(Fault::Extra(bits), 1, S);
    }
}

#[test]
fn an_answer_with_a_wrong_identifier() {
    // It is as if there were none: aborted in vain, and repeated after a reset.
    for bits in [9, 1 << 10, 0x3ff] {
        is_counted(Fault::WrongCid(bits), 1, 3 * TIMEOUT);
    }
}

#[test]
fn an_answer_of_another_queue() {
    is_counted(Fault::WrongSqid(3), 1, 3 * TIMEOUT);
}

#[test]
fn an_answer_with_a_wrong_head() {
    // The driver does not look at it: it knows from its slots what is fetched.
    is_counted(Fault::WrongHead(0xff), 0, S);
}

#[test]
fn an_answer_with_the_phase_of_the_round_before() {
    // It is not seen, nor is any after it, until the controller is reset.
    is_counted(Fault::WrongPhase, 0, 3 * TIMEOUT);
}

#[test]
fn each_status_ends_its_own_io_and_no_other() {
    let mut rig = Rig::new();
    let data = pattern(1, 4096);
    rig.disk.put(1, 0, &data);
    let is = [
        (StatusCode::UNRECOVERED_READ_ERROR, IoStatus::MediaError),
        (StatusCode::INTERNAL_ERROR, IoStatus::DeviceError),
        (StatusCode::DATA_TRANSFER_ERROR, IoStatus::DeviceError),
        (StatusCode::LBA_OUT_OF_RANGE, IoStatus::OutOfRange),
        (StatusCode::INVALID_NAMESPACE, IoStatus::Gone),
        (StatusCode::INVALID_OPCODE, IoStatus::Unsupported),
        (StatusCode::NAMESPACE_WRITE_PROTECTED, IoStatus::ReadOnly),
        (StatusCode::CAPACITY_EXCEEDED, IoStatus::NoSpace),
        (StatusCode::ABORT_REQUESTED, IoStatus::Aborted),
        (StatusCode::NAMESPACE_NOT_READY, IoStatus::DeviceError),
    ];
    for (code, status) in is {
        rig.port.fake.forgive();
        rig.inject([Rule::nth(Point::ANY_IO, 1, Fault::Status(code.dnr()))]);
        let (failed, well) = (rig.read((0, 1), 0, 4096), rig.read((0, 1), 0, 4096));
        let (failed, well) = (rig.end(&failed, S), rig.end(&well, S));
        assert_eq!((failed.status, well.status), (status, IoStatus::Success), "{code:?}");
        assert!(failed.data == [0; 4096] && well.data == data, "no bytes of a failed read");
    }
    for (code, status) in is {
        rig.port.fake.forgive();
        rig.inject([Rule::nth(Point::ANY_IO, 1, Fault::Status(code.dnr()))]);
        let failed = rig.write((1, 1), 0, &[7; 4096]);
        assert_eq!(rig.ends(&failed, S), status, "{code:?}");
        assert!(rig.disk.contents(1, 0, 4096) == data);
    }
    rig.finish();
}

/// How often the controller was given commands since.
fn fetched(rig: &Rig) -> u64 {
    rig.port.fake.counters().fetched
}

#[test]
fn a_passing_state_is_tried_again_five_times() {
    let passing = [
        StatusCode::COMMAND_INTERRUPTED,
        StatusCode::NAMESPACE_NOT_READY,
        StatusCode::TRANSIENT_TRANSPORT_ERROR,
        StatusCode::ABORT_REQUESTED,
        StatusCode::ABORTED_SQ_DELETION,
    ];
    for code in passing {
        let mut rig = Rig::new();
        for (times, is) in [(NVME_RETRIES_MAX, IoStatus::Success), (NVME_RETRIES_MAX + 1, IoStatus::DeviceError)] {
            rig.port.fake.forgive();
            let rule = Rule::always(Point::io(NvmOpcode::WRITE), Fault::Status(code.retry()));
            rig.inject([Rule { count: Some(u64::from(times)), ..rule }]);
            let (before, data) = (fetched(&rig), pattern(u64::from(times), 4096));
            let old = rig.disk.contents(1, 0, 4096);
            let written = rig.write((1, 1), 0, &data);
            let status = rig.ends(&written, S);
            let aborted = matches!(code, StatusCode::ABORT_REQUESTED | StatusCode::ABORTED_SQ_DELETION);
            assert!(status == is || aborted && status == IoStatus::Aborted, "{code:?}");
            assert_eq!(fetched(&rig) - before, u64::from(NVME_RETRIES_MAX) + 1);
            assert!(rig.disk.contents(1, 0, 4096) == if is == IoStatus::Success { data } else { old });
        }
        rig.finish();
    }
}

#[test]
fn a_passing_state_that_may_not_be_tried_again_is_not() {
    let mut rig = Rig::new();
    rig.inject([Rule::always(Point::io(NvmOpcode::WRITE), Fault::Status(StatusCode::NAMESPACE_NOT_READY.dnr()))]);
    let before = fetched(&rig);
    let written = rig.write((0, 1), 0, &[1; 512]);
    assert_eq!((rig.ends(&written, S), fetched(&rig) - before), (IoStatus::DeviceError, 1));
    // Nor is a pair, half of which may have been done.
    rig.port.fake.forgive();
    rig.inject([Rule::always(Point::io(NvmOpcode::COMPARE), Fault::Status(StatusCode::NAMESPACE_NOT_READY.retry()))]);
    let swapped = rig.begin((0, 1), IoOp::CompareAndWrite, 0, 512, &[[0; 512], [2; 512]].concat());
    assert_eq!(rig.ends(&swapped, S), IoStatus::DeviceError);
    assert_eq!(rig.disk.contents(1, 0, 512), [0; 512]);
    rig.finish();
}

#[test]
fn a_reset_of_the_volume_ends_what_waits_to_be_tried_again() {
    let mut rig = Rig::new();
    rig.inject([Rule::always(Point::io(NvmOpcode::READ), Fault::Status(StatusCode::COMMAND_INTERRUPTED.retry()))]);
    let read = rig.read((0, 1), 0, 512);
    rig.wait(25 * MS);
    assert!(read.borrow().is_none());
    let reset = rig.begin((0, 1), IoOp::Reset, 0, 0, &[]);
    assert_eq!(rig.ends(&reset, 5 * MS), IoStatus::Success);
    assert_eq!(rig.ends(&read, MS), IoStatus::Aborted);
    rig.finish();
}

#[test]
fn what_a_helper_does_is_tried_again_too() {
    // Unmapping by two commands, and compare and write beyond what the controller can do at once.
    let poor = |disk: &mut DiskOptions| {
        disk.acwu_z = 0;
        disk.namespaces.iter_mut().for_each(|namespace| namespace.deac = false);
    };
    let mut rig = Rig::with(poor, FakeOptions { io_ns: (10_000, 10_000), ..FakeOptions::default() });
    rig.disk.put(1, 0, &[5; 8192]);
    let passing = Fault::Status(StatusCode::COMMAND_INTERRUPTED.retry());
    let opcodes = [NvmOpcode::READ, NvmOpcode::WRITE, NvmOpcode::WRITE_ZEROES, NvmOpcode::DATASET_MANAGEMENT];
    rig.inject(opcodes.map(|opcode| Rule::nth(Point::io(opcode), 1, passing)));
    let swapped = rig.begin((0, 1), IoOp::CompareAndWrite, 0, 4096, &[[5; 4096], [6; 4096]].concat());
    let unmapped = rig.begin((0, 1), IoOp::Unmap, 4096, 4096, &[]);
    assert_eq!((rig.ends(&swapped, S), rig.ends(&unmapped, S)), (IoStatus::Success, IoStatus::Success));
    assert_eq!(rig.port.fake.counters().injected, 4);
    assert!(rig.disk.contents(1, 0, 8192) == [[6; 4096], [0; 4096]].concat());
    rig.finish();
}

#[test]
fn a_read_that_fails_gives_no_bytes_of_it() {
    // Half of it is there already when the controller says that the rest is not to be read.
    let mut rig = Rig::new();
    rig.disk.put(1, 0, &pattern(1, 65536));
    rig.disk.poison(1, 100);
    let read = rig.read((0, 1), 0, 65536);
    let done = rig.end(&read, S);
    assert_eq!(done.status, IoStatus::MediaError);
    assert!(done.data.iter().all(|byte| *byte == 0));
    rig.finish();
}

#[test]
fn half_of_the_data_and_success_leaves_what_was_there() {
    // Nothing tells the driver; what it must not do is to hand out what earlier owners of the memory had. The caller's own bytes remain.
    let mut rig = Rig::new();
    let data = pattern(3, 8192);
    rig.disk.put(1, 0, &data);
    rig.inject([read_of(1, Fault::Half)]);
    let read = rig.read((0, 1), 0, 8192);
    let done = rig.end(&read, S);
    assert_eq!(done.status, IoStatus::Success);
    assert!(done.data[..4096] == data[..4096] && done.data[4096..] == [0xDB; 4096]);
    rig.finish();
}

#[test]
fn a_touch_after_the_answer_is_seen() {
    // Proves that the checks of all others can fail.
    for opcode in [NvmOpcode::READ, NvmOpcode::WRITE] {
        let mut rig = Rig::new();
        rig.inject([Rule::nth(Point::io(opcode), 1, Fault::TouchAfter(MS))]);
        let op = if opcode == NvmOpcode::READ { IoOp::Read } else { IoOp::Write };
        let answer = rig.begin((0, 1), op, 0, 4096, &[1; 4096]);
        assert_eq!(rig.ends(&answer, S), IoStatus::Success);
        rig.wait(2 * MS);
        assert_eq!(rig.port.fake.counters().dma_faults, 1);
        assert_eq!(rig.port.fake.dma_faults().len(), 1);
    }
}

#[test]
fn a_passing_state_that_does_not_pass_is_given_up_in_time() {
    // The controller wants to be left alone for ten seconds each time: five attempts would be longer than anybody waits.
    let mut rig = Rig::with(|disk| disk.crdt_100ms = [100, 0, 0], FakeOptions::default());
    let status = crate::nvme::spec::Status(StatusCode::NAMESPACE_NOT_READY.0 | 1 << 11);
    rig.inject([Rule::always(Point::io(NvmOpcode::WRITE), Fault::Status(status))]);
    let begun = rig.now();
    let written = rig.write((0, 1), 0, &[1; 4096]);
    assert_ne!(rig.ends(&written, 60 * S), IoStatus::Success);
    let took = rig.now() - begun;
    assert!((30 * S..34 * S).contains(&took), "{} ms", took / MS);
    rig.finish();
}

#[test]
fn a_compare_and_write_across_boundaries_is_one_step() {
    // A preferred boundary of 4 KiB, an atomic one of 8 KiB from the second block on, and transfers of 8 KiB.
    let bounds = |disk: &mut DiskOptions| {
        disk.mdts = 1;
        for namespace in &mut disk.namespaces {
            (namespace.noiob, namespace.atomic_boundary) = (8, Some((15, 1)));
        }
    };
    let mut rig = Rig::with(bounds, FakeOptions { io_ns: (10_000, 10_000), ..FakeOptions::default() });
    for (offset, blocks) in [(0, 1), (0, 2), (7, 2), (15, 2), (16, 2), (17, 16), (1, 16), (2, 16), (3, 400)] {
        let (at, len) = (offset * BLOCK, (blocks * BLOCK) as usize);
        let (old, new) = (pattern(offset, len), pattern(offset + 1000, len));
        rig.disk.put(1, at, &old);
        let swapped = rig.begin((1, 1), IoOp::CompareAndWrite, at, len as u64, &[&old[..], &new].concat());
        assert_eq!(rig.ends(&swapped, S), IoStatus::Success, "{blocks} blocks from {offset}");
        assert!(rig.disk.contents(1, at, len) == new);
        let differs = rig.begin((0, 1), IoOp::CompareAndWrite, at, len as u64, &[&old[..], &new].concat());
        assert_eq!(rig.ends(&differs, S), IoStatus::Miscompare);
    }
    rig.works(1);
    rig.finish();
}
