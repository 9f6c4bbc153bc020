//! Reactors that sleep while the controller works.

use super::*;
use crate::nvme::spec::{GetLogFields, LogId, NSID_BROADCAST, Sqe};

/// How long the controller takes for a command.
const SLOW: u64 = 50 * MS;

fn slow(vectors: u16) -> Rig {
    Rig::with(|_| {}, FakeOptions { vectors, io_ns: (SLOW, SLOW), ..FakeOptions::default() })
}

/// Turns of all reactors, and interrupts, while so many reads follow each other.
fn turns(rig: &mut Rig, reads: u64) -> (u64, u64) {
    let (turns, sent) = (rig.simulation.turns(), rig.port.fake.counters().interrupts);
    for _ in 0..reads {
        let begun = rig.now();
        let read = rig.read((1, 1), 0, 4096);
        assert_eq!(rig.ends(&read, 2 * SLOW), IoStatus::Success);
        assert!((SLOW..SLOW + 3 * MS).contains(&(rig.now() - begun)), "{} ns", rig.now() - begun);
    }
    (rig.simulation.turns() - turns, rig.port.fake.counters().interrupts - sent)
}

#[test]
fn a_reactor_sleeps_until_the_interrupt() {
    let mut rig = slow(65);
    let (slept, sent) = turns(&mut rig, 20);
    // One that came while the reactor polled may be sent when the mask is taken off: it wakes it once for nothing. And now and then the
    // reactor is awake when the answer comes.
    assert!((15..=40).contains(&sent), "{sent} interrupts for 20 reads");
    rig.finish();
    // A controller without a vector for the queue is looked at all the time.
    for vectors in [1, 2] {
        let mut rig = slow(vectors);
        let (awake, sent) = turns(&mut rig, 20);
        assert_eq!(sent, 0);
        assert!(slept * 10 < awake, "{slept} turns with interrupts, {awake} without");
        rig.finish();
    }
}

#[test]
fn an_awake_reactor_is_not_interrupted() {
    // So many in flight that an answer is always near.
    let mut rig = Rig::with(|_| {}, FakeOptions { io_ns: (1_000, 2_000), ..FakeOptions::default() });
    let before = rig.port.fake.counters();
    for _ in 0..20 {
        let all: Vec<Answer> = (0..32).map(|i| rig.read((0, 1), i * 4096, 4096)).collect();
        for answer in all {
            assert_eq!(rig.ends(&answer, S), IoStatus::Success);
        }
    }
    let after = rig.port.fake.counters();
    let (posted, sent) = (after.posted - before.posted, after.interrupts - before.interrupts);
    assert!(posted >= 640 && sent <= posted / 8, "{sent} interrupts for {posted} answers");
    rig.finish();
}

#[test]
fn a_lost_interrupt_is_made_good() {
    let mut rig = slow(65);
    rig.inject([Rule::always(Point::Interrupt(2), Fault::Ignore)]);
    let read = rig.read((1, 1), 0, 4096);
    // The next look for commands that are late, an eighth of their time.
    assert_eq!(rig.ends(&read, TIMEOUT / 8 + 2 * SLOW), IoStatus::Success);
    let counters = rig.drive().counters();
    assert_eq!((counters.aborts, counters.resets), (0, 0));
    rig.finish();
}

#[test]
fn after_a_reset_interrupts_come_again() {
    let mut rig = slow(65);
    rig.port.resets.store(true, Ordering::Relaxed);
    rig.inject([Rule::nth(Point::Disable, 1, Fault::Hang), Rule::nth(Point::io(NvmOpcode::WRITE), 1, Fault::Fatal)]);
    let written = rig.write((1, 2), 0, &[5; 4096]);
    assert_eq!(rig.ends(&written, 10 * S), IoStatus::Success);
    let (_, sent) = turns(&mut rig, 10);
    assert!((7..=20).contains(&sent), "{sent} interrupts for 10 reads");
    rig.finish();
}

/// Four completions or 10 ms.
const GATHERED: InterruptCoalescing = InterruptCoalescing::new(4, 100);

/// What becomes of the interrupts is the controller's: see its own tests.
#[test]
fn completions_are_gathered_for_an_interrupt_as_asked_for() {
    let mut rig = Rig::closed(1, |_| {}, FakeOptions { io_ns: (10_000, 10_000), ..FakeOptions::default() });
    rig.options.coalescing = Some(GATHERED);
    rig.open().unwrap();
    assert_eq!(rig.port.fake.coalescing(), (GATHERED, vec![1, 2]));
    rig.inject([Rule::nth(Point::io(NvmOpcode::WRITE), 1, Fault::Fatal)]);
    let written = rig.write((1, 2), 0, &[5; 4096]);
    assert_eq!(rig.ends(&written, 10 * S), IoStatus::Success);
    assert_eq!(rig.drive().counters().resets, 1);
    assert_eq!(rig.port.fake.coalescing(), (GATHERED, vec![1, 2]), "after a reset");
    rig.works(1);
    rig.finish();
    // Nobody has asked.
    let rig = Rig::new();
    assert!(rig.port.fake.coalescing().1.is_empty());
    rig.finish();
}

#[test]
fn a_controller_that_gathers_no_completions_is_used_as_it_is() {
    let mut rig = Rig::closed(1, |_| {}, FakeOptions { io_ns: (10_000, 10_000), ..FakeOptions::default() });
    rig.options.coalescing = Some(GATHERED);
    // After those for the events that are wanted and for the number of queues.
    let refused = Fault::Status(StatusCode::INVALID_FIELD.dnr());
    rig.inject([Rule::nth(Point::Admin(AdminOpcode::SET_FEATURES), 3, refused)]);
    rig.open().unwrap();
    assert_eq!(rig.port.fake.counters().injected, 1);
    assert_eq!(rig.port.fake.coalescing(), (InterruptCoalescing::new(1, 0), vec![]));
    rig.works(2);
    rig.finish();
}

/// Turns while an admin command takes a second.
fn turns_of_a_command(vectors: u16) -> u64 {
    let mut rig = Rig::with(|_| {}, FakeOptions { vectors, ..FakeOptions::default() });
    rig.inject([Rule::nth(Point::Admin(AdminOpcode::GET_LOG_PAGE), 1, Fault::Late(S))]);
    let (drive, home) = (rig.drive().clone(), rig.reactor(0));
    let mut sqe = Sqe::bare(AdminOpcode::GET_LOG_PAGE.0, NSID_BROADCAST);
    let lid = LogId::SMART;
    let fields =
        GetLogFields { lid, lsp: 0, rae: true, numd_z: 127, lsi: 0, offset: 0, offset_is_index: false, csi: 0 };
    fields.put(&mut sqe);
    let (begun, turns) = (rig.now(), rig.simulation.turns());
    let log = rig.run(async move { drive.command(&home, "Get Log Page", sqe, 512, 10 * S).await });
    assert_eq!(log.map(|log| log.len()), Ok(512));
    assert!((S..S + 3 * MS).contains(&(rig.now() - begun)), "{} ns", rig.now() - begun);
    let turns = rig.simulation.turns() - turns;
    rig.finish();
    turns
}

#[test]
fn a_reactor_sleeps_until_an_admin_command_is_answered() {
    let (slept, awake) = (turns_of_a_command(65), turns_of_a_command(0));
    assert!(slept * 100 < awake, "{slept} turns with an interrupt, {awake} without");
}

#[test]
fn a_reactor_whose_controller_is_reset_sleeps() {
    // It has no interrupt for its queue, on which there is nothing to be looked for meanwhile.
    let options = FakeOptions { vectors: 1, disable_ns: S, io_ns: (SLOW, SLOW), ..FakeOptions::default() };
    let mut rig = Rig::with(|_| {}, options);
    rig.inject([Rule::nth(Point::io(NvmOpcode::WRITE), 2, Fault::Fatal)]);
    let (one, two) = (rig.write((1, 1), 0, &[1; 4096]), rig.write((1, 1), 4096, &[2; 4096]));
    let limit = rig.now() + 2 * S;
    while rig.drive().life() != Life::Resetting {
        assert!(rig.now() < limit, "no reset");
        rig.wait(MS);
    }
    rig.wait(10 * MS);
    let turns = rig.simulation.turns();
    rig.wait(S / 2);
    let turns = rig.simulation.turns() - turns;
    assert!(turns < 5_000, "{turns} turns");
    assert_eq!((rig.ends(&one, 3 * S), rig.ends(&two, 3 * S)), (IoStatus::Success, IoStatus::Success));
    assert!(rig.disk.contents(1, 0, 8192) == [[1; 4096], [2; 4096]].concat());
    rig.finish();
}
