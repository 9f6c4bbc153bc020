//! Submission queues in the controller memory buffer.

use super::*;

fn with_buffer(cmb_pages: u32) -> FakeOptions {
    FakeOptions { cmb_pages, io_ns: (10_000, 10_000), ..FakeOptions::default() }
}

/// Commands that were fetched by I/O queues in all, and from the buffer.
fn fetched(rig: &mut Rig, work: impl FnOnce(&mut Rig)) -> (u64, u64) {
    let before = rig.port.fake.counters();
    work(rig);
    let after = rig.port.fake.counters();
    (after.fetched - before.fetched, after.fetched_here - before.fetched_here)
}

#[test]
fn commands_are_fetched_from_the_buffer() {
    let mut rig = Rig::with(|_| {}, with_buffer(2));
    assert_eq!(rig.drive().in_buffer(), 2);
    // More than once round the rings.
    let (all, here) = fetched(&mut rig, |rig| (0..20).for_each(|seed| rig.works(seed)));
    assert!(all >= 80 && here == all, "{here} of {all} commands");
    rig.finish();
}

#[test]
fn queues_that_find_no_place_are_in_memory() {
    // A page is the queue of one reactor.
    let mut rig = Rig::with(|_| {}, with_buffer(1));
    assert_eq!(rig.drive().in_buffer(), 1);
    let (all, here) = fetched(&mut rig, |rig| rig.works(1));
    assert!(here > 0 && here < all, "{here} of {all} commands");
    rig.finish();
    let mut rig = Rig::closed(1, |_| {}, with_buffer(1));
    rig.options.depth = 256;
    rig.open().unwrap();
    assert_eq!(rig.drive().in_buffer(), 0);
    let (all, here) = fetched(&mut rig, |rig| rig.works(1));
    assert!(all > 0 && here == 0, "{here} of {all} commands");
    rig.finish();
}

/// A reset of the controller keeps the buffer, one of its function takes it away, and all that is in it.
#[test]
fn after_a_reset_queues_are_in_the_buffer_again() {
    for function in [false, true] {
        let mut rig = Rig::with(|_| {}, with_buffer(2));
        rig.port.resets.store(true, Ordering::Relaxed);
        if function {
            rig.inject([Rule::nth(Point::Disable, 1, Fault::Hang)]);
        }
        rig.inject([Rule::nth(Point::io(NvmOpcode::WRITE), 2, Fault::Fatal)]);
        let all: Vec<Answer> = (0..8).map(|index| rig.write((1, 1), index * 4096, &[index as u8; 4096])).collect();
        for answer in &all {
            assert_eq!(rig.ends(answer, 10 * S), IoStatus::Success);
        }
        assert_eq!(rig.drive().counters().resets, 1);
        let (all, here) = fetched(&mut rig, |rig| rig.works(2));
        assert!(all > 0 && here == all, "{here} of {all} commands");
        rig.finish();
    }
}

/// One that is off the bus has no buffer either: what is written there goes nowhere.
#[test]
fn a_controller_that_goes_takes_its_buffer_along() {
    let mut rig = Rig::with(|_| {}, with_buffer(2));
    rig.works(3);
    rig.port.fake.remove();
    let read = rig.read((0, 1), 0, 4096);
    assert_eq!(rig.ends(&read, 60 * S), IoStatus::Gone);
    rig.release();
    let _ = rig.close();
    rig.nothing_left();
}
