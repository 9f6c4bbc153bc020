//! Commands that take too long: aborted, or else the controller is reset, and they are given to it again.

use super::*;

/// By when a late command is aborted, and by when the controller is reset, at the latest: a look takes place each eighth.
const ABORTED: u64 = TIMEOUT + TIMEOUT / 8 + 100 * MS;
const RESET: u64 = ABORTED + TIMEOUT / 4 + 100 * MS;

fn io_rule(opcode: NvmOpcode, nth: u64, then: Fault) -> Rule {
    Rule::nth(Point::io(opcode), nth, then)
}

#[test]
fn a_command_that_hangs_is_aborted() {
    let mut rig = Rig::new();
    rig.disk.put(1, 0, &[1; 4096]);
    rig.inject([io_rule(NvmOpcode::WRITE, 1, Fault::Hang)]);
    let (hung, others) = (rig.write((1, 1), 0, &[2; 4096]), rig.write((1, 1), 8192, &[3; 4096]));
    assert_eq!(rig.ends(&others, 10 * MS), IoStatus::Success);
    rig.wait(TIMEOUT - 100 * MS);
    assert!(hung.borrow().is_none(), "not before its time");
    // And given to the controller once more.
    assert_eq!(rig.ends(&hung, ABORTED), IoStatus::Success);
    assert_eq!((rig.drive().counters().aborts, rig.drive().counters().resets), (1, 0));
    assert_eq!(rig.disk.contents(1, 0, 4096), [2; 4096]);
    rig.works(1);
    rig.finish();
}

#[test]
fn a_command_that_hangs_each_time_is_given_up_in_time() {
    let mut rig = Rig::new();
    rig.disk.put(1, 0, &[1; 4096]);
    rig.inject([Rule::always(Point::io(NvmOpcode::WRITE), Fault::Hang)]);
    let hung = rig.write((1, 1), 0, &[2; 4096]);
    assert_eq!(rig.ends(&hung, 30 * S), IoStatus::Aborted);
    let times = 1 + u64::from(NVME_RETRIES_MAX);
    assert_eq!((rig.drive().counters().aborts, rig.drive().counters().resets), (times, 0));
    assert_eq!(rig.disk.contents(1, 0, 4096), [1; 4096]);
    rig.port.fake.forgive();
    rig.works(1);
    rig.finish();
}

#[test]
fn many_commands_that_hang_are_aborted_at_once() {
    let mut rig = Rig::with(|_| {}, FakeOptions { acl_z: 0, ..FakeOptions::default() });
    rig.inject([Rule { count: Some(20), ..Rule::always(Point::ANY_IO, Fault::Hang) }]);
    let hung: Vec<Answer> = (0..20).map(|i| rig.read((0, 1), i * 4096, 4096)).collect();
    rig.wait(RESET);
    for one in hung {
        assert_eq!(rig.ends(&one, MS), IoStatus::Success);
    }
    assert_eq!((rig.drive().counters().aborts, rig.drive().counters().resets), (20, 0));
    rig.works(1);
    rig.finish();
}

#[test]
fn an_abort_that_comes_too_late_changes_nothing() {
    // The command ends while its abort is on the way.
    let late = TIMEOUT + TIMEOUT / 8;
    for more in [50 * MS, 100 * MS, 200 * MS] {
        let mut rig = Rig::with(|_| {}, FakeOptions { admin_ns: (800 * MS, 800 * MS), ..FakeOptions::default() });
        rig.inject([io_rule(NvmOpcode::WRITE, 1, Fault::Late(late + more))]);
        let written = rig.write((0, 1), 0, &[7; 4096]);
        assert_eq!(rig.ends(&written, 2 * TIMEOUT), IoStatus::Success);
        assert_eq!(rig.disk.contents(1, 0, 4096), [7; 4096]);
        rig.wait(TIMEOUT);
        assert_eq!((rig.drive().counters().resets, rig.stale()), (0, 0));
        rig.finish();
    }
}

#[test]
fn a_command_that_took_the_identifier_of_a_late_one_is_not_taken_for_it() {
    // All 63 generations of the only slot are gone through while the driver waits for the effect of the abort.
    let mut rig = Rig::closed(1, |_| {}, FakeOptions { io_ns: (10_000, 10_000), mqes_z: 1, ..FakeOptions::default() });
    rig.open().unwrap();
    rig.inject([io_rule(NvmOpcode::READ, 1, Fault::Hang)]);
    let hung = rig.read((0, 1), 0, 512);
    // Aborted, and given to it once more.
    assert_eq!(rig.ends(&hung, ABORTED), IoStatus::Success);
    for _ in 0..61 {
        let read = rig.read((0, 1), 0, 512);
        assert_eq!(rig.ends(&read, S), IoStatus::Success);
    }
    rig.port.fake.forgive();
    rig.inject([io_rule(NvmOpcode::READ, 1, Fault::Late(TIMEOUT / 2))]);
    let slow = rig.read((0, 1), 0, 512);
    assert_eq!(rig.ends(&slow, TIMEOUT), IoStatus::Success);
    assert_eq!(rig.drive().counters().resets, 0);
    rig.finish();
}

/// What is in flight when the controller is reset: all of it ends well, and is on the disk.
fn survives_a_reset(rules: Vec<Rule>, within: u64) {
    let mut rig = Rig::new();
    rig.inject(rules);
    let kept = pattern(9, 4096);
    rig.disk.put(2, 1 << 20, &kept);
    let mut writes = Vec::new();
    let mut reads = Vec::new();
    for reactor in 0..2 {
        for nsid in 1..=2 {
            for piece in 0..4 {
                let offset = u64::from(reactor) * 65536 + piece * 8192;
                let data = pattern(offset + u64::from(nsid), 8192);
                writes.push((nsid, offset, rig.write((reactor, nsid), offset, &data), data));
            }
            reads.push(rig.read((reactor, 2), 1 << 20, 4096));
        }
    }
    for (nsid, offset, answer, data) in writes {
        assert_eq!(rig.ends(&answer, within), IoStatus::Success, "namespace {nsid} at {offset}");
        assert!(rig.disk.contents(nsid, offset, data.len()) == data);
    }
    for answer in reads {
        let done = rig.end(&answer, within);
        assert!(done.status == IoStatus::Success && done.data == kept);
    }
    assert_eq!(rig.drive().counters().resets, 1);
    assert_eq!(rig.drive().life(), Life::Live);
    rig.works(1);
    rig.finish();
}

#[test]
fn an_abort_that_is_ignored_leads_to_a_reset() {
    survives_a_reset(
        vec![io_rule(NvmOpcode::WRITE, 3, Fault::Hang), Rule::always(Point::Admin(AdminOpcode::ABORT), Fault::Ignore)],
        RESET,
    );
}

#[test]
fn an_abort_that_is_never_answered_leads_to_a_reset() {
    for fault in [Fault::Lost, Fault::Hang, Fault::Status(StatusCode::INTERNAL_ERROR.dnr())] {
        let lost = io_rule(NvmOpcode::READ, 2, Fault::Lost);
        survives_a_reset(vec![lost, Rule::nth(Point::Admin(AdminOpcode::ABORT), 1, fault)], RESET);
    }
}

#[test]
fn answers_that_are_lost_are_asked_for_again() {
    survives_a_reset(vec![io_rule(NvmOpcode::WRITE, 1, Fault::Lost), io_rule(NvmOpcode::READ, 1, Fault::Lost)], RESET);
}

#[test]
fn a_fatal_status_is_seen_within_a_second() {
    survives_a_reset(vec![io_rule(NvmOpcode::WRITE, 5, Fault::Fatal)], 1_200 * MS);
    survives_a_reset(vec![Rule::nth(Point::SqDoorbell(2), 1, Fault::Fatal)], 1_200 * MS);
}

#[test]
fn a_doorbell_that_goes_unheard() {
    let mut rig = Rig::new();
    rig.inject([Rule::nth(Point::SqDoorbell(1), 1, Fault::Ignore)]);
    let data = pattern(1, 4096);
    let written = rig.write((0, 1), 0, &data);
    assert_eq!(rig.ends(&written, RESET), IoStatus::Success);
    assert!(rig.disk.contents(1, 0, 4096) == data);
    rig.works(1);
    rig.finish();
}

#[test]
fn a_pair_in_flight_fails_and_is_never_repeated() {
    let mut rig = Rig::new();
    rig.disk.put(1, 0, &[1; 512]);
    // Done, and the answer lost: done again, the compare would fail.
    rig.inject([io_rule(NvmOpcode::COMPARE, 1, Fault::Lost)]);
    let swapped = rig.begin((0, 1), IoOp::CompareAndWrite, 0, 512, &[[1; 512], [2; 512]].concat());
    let others = rig.write((0, 1), 4096, &[3; 4096]);
    assert_eq!(rig.ends(&others, RESET), IoStatus::Success);
    assert_eq!(rig.ends(&swapped, RESET), IoStatus::DeviceError);
    assert_eq!(rig.disk.contents(1, 0, 512), [2; 512], "it may have been done, and was");
    // The range is free again.
    let written = rig.write((1, 1), 0, &[4; 512]);
    assert_eq!(rig.ends(&written, S), IoStatus::Success);
    rig.works(1);
    rig.finish();
}

#[test]
fn a_pair_in_a_full_queue_makes_room_for_what_it_held_back() {
    // Its end lets writes go on that take the slots of those that are repeated.
    let mut rig = Rig::closed(1, |_| {}, FakeOptions { mqes_z: 4, io_ns: (10_000, 10_000), ..FakeOptions::default() });
    rig.open().unwrap();
    rig.inject([Rule { count: Some(3), ..Rule::always(Point::ANY_IO, Fault::Lost) }]);
    let swapped = rig.begin((0, 1), IoOp::CompareAndWrite, 0, 512, &[[0; 512], [2; 512]].concat());
    let writes: Vec<Answer> = (1..12).map(|i| rig.write((0, 1), i * 512, &[i as u8; 512])).collect();
    assert_eq!(rig.ends(&swapped, RESET), IoStatus::DeviceError);
    for (i, one) in writes.iter().enumerate() {
        assert_eq!(rig.ends(one, RESET), IoStatus::Success);
        assert_eq!(rig.disk.contents(1, (i as u64 + 1) * 512, 512), [i as u8 + 1; 512]);
    }
    rig.finish();
}
