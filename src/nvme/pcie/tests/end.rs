//! Ends that meet something under way.

use super::*;

const RESET: u64 = TIMEOUT + TIMEOUT / 8 + TIMEOUT / 4 + 200 * MS;

fn slow() -> Rig {
    Rig::with(|_| {}, FakeOptions { disable_ns: 300 * MS, io_ns: (10_000, 10_000), ..FakeOptions::default() })
}

/// Begins to close, and does not wait for it.
fn closing(rig: &Rig) -> Rc<RefCell<Option<Result<(), ControllerError>>>> {
    let (home, drive, closed) = (rig.reactor(0), rig.drive().clone(), Rc::new(RefCell::new(None)));
    let there = closed.clone();
    rig.reactor(0).spawn("close", async move {
        let result = drive.close(&home).await;
        there.replace(Some(result));
    });
    closed
}

#[test]
fn close_with_io_in_flight_ends_it() {
    let mut rig = Rig::new();
    rig.inject([Rule::always(Point::ANY_IO, Fault::Hang)]);
    let all: Vec<Answer> = (0..60).map(|i| rig.read(((i % 2) as u16, 1), i * 4096, 4096)).collect();
    rig.wait(MS);
    rig.close().unwrap();
    for answer in &all {
        assert_eq!(rig.ends(answer, MS), IoStatus::Gone);
    }
    let after = rig.write((1, 2), 0, &[1; 512]);
    assert_eq!(rig.ends(&after, S), IoStatus::Gone);
    assert_eq!(rig.drive().life(), Life::Ended);
    // Once more is no defect.
    rig.close().unwrap();
    rig.finish();
}

#[test]
fn close_during_a_reset_waits_for_it() {
    for after in [0, 1, 100, 200, 299, 301] {
        let mut rig = slow();
        rig.inject([Rule::nth(Point::ANY_IO, 1, Fault::Fatal)]);
        let (one, two) = (rig.write((0, 1), 0, &[1; 4096]), rig.write((1, 2), 0, &[2; 4096]));
        while rig.drive().life() != Life::Resetting {
            rig.wait(MS);
        }
        rig.wait(after * MS);
        let closed = closing(&rig);
        let statuses = [rig.ends(&one, 2 * S), rig.ends(&two, 2 * S)];
        assert!(statuses.iter().all(|status| matches!(status, IoStatus::Success | IoStatus::Gone)), "{statuses:?}");
        for (nsid, status) in statuses.iter().enumerate() {
            let byte = nsid as u8 + 1;
            let held = rig.disk.contents(nsid as u32 + 1, 0, 4096);
            assert!(held == [byte; 4096] || *status != IoStatus::Success && held == [0; 4096]);
        }
        rig.wait(S);
        assert_eq!(closed.take(), Some(Ok(())));
        rig.finish();
    }
}

#[test]
fn close_while_a_late_command_is_being_aborted() {
    for (abort, after) in [(Fault::Ignore, 100), (Fault::Hang, 100), (Fault::Hang, 900)] {
        let mut rig = slow();
        let abort = Rule::always(Point::Admin(AdminOpcode::ABORT), abort);
        rig.inject([Rule::nth(Point::ANY_IO, 1, Fault::Hang), abort]);
        let hung = rig.read((1, 1), 0, 4096);
        while rig.drive().counters().aborts == 0 {
            rig.wait(MS);
        }
        rig.wait(after * MS);
        let closed = closing(&rig);
        assert_eq!(rig.ends(&hung, 2 * S), IoStatus::Gone);
        rig.wait(RESET);
        assert_eq!(closed.take(), Some(Ok(())));
        rig.finish();
    }
}

#[test]
fn close_of_a_controller_that_answers_nothing_is_soon() {
    let mut rig = Rig::new();
    rig.inject([Rule::always(Point::Admin(AdminOpcode::DELETE_IO_SQ), Fault::Hang)]);
    rig.release();
    let begun = rig.now();
    assert!(matches!(rig.close(), Err(ControllerError::Late { .. })));
    assert!(rig.now() - begun < 65 * S, "one limit, not one a queue");
    rig.nothing_left();
}

#[test]
fn the_cache_is_written_back_though_queues_do_not_go() {
    let cached = |disk: &mut DiskOptions| disk.write_cache = true;
    let mut rig = Rig::with(cached, FakeOptions { io_ns: (10_000, 10_000), ..FakeOptions::default() });
    let written = rig.write((0, 1), 0, &[1; 4096]);
    assert_eq!(rig.ends(&written, S), IoStatus::Success);
    assert!(rig.disk.unflushed(1) > 0);
    rig.inject([Rule::always(Point::Admin(AdminOpcode::DELETE_IO_SQ), Fault::Hang)]);
    rig.release();
    assert!(matches!(rig.close(), Err(ControllerError::Late { .. })));
    assert_eq!(rig.disk.unflushed(1), 0);
    rig.nothing_left();
}

#[test]
fn close_of_a_controller_that_has_failed() {
    let mut rig = Rig::new();
    rig.release();
    rig.inject([Rule::nth(Point::Admin(AdminOpcode::DELETE_IO_SQ), 1, Fault::Fatal)]);
    let begun = rig.now();
    assert!(rig.close().is_err());
    assert!(rig.now() - begun < 65 * S);
    rig.nothing_left();
    for point in [Point::Shutdown, Point::Write(Property::CC)] {
        let mut rig = Rig::new();
        rig.release();
        rig.inject([Rule::nth(point, 1, Fault::Fatal)]);
        let begun = rig.now();
        assert!(matches!(rig.close(), Err(ControllerError::Fatal { .. })));
        assert!(rig.now() - begun < S, "it will not shut down any more");
        rig.nothing_left();
    }
}

#[test]
fn a_shutdown_that_takes_too_long() {
    let mut rig = Rig::new();
    rig.release();
    rig.inject([Rule::nth(Point::Shutdown, 1, Fault::Hang)]);
    assert!(matches!(rig.close(), Err(ControllerError::Stuck { state: "shutting down", ms: 10_000, .. })));
    assert_eq!(rig.drive().life(), Life::Ended);
    rig.nothing_left();
}

#[test]
fn channels_that_go_during_a_reset() {
    // Nobody waits for the answers any more: the I/Os are orphans, whose buffers come back with the end of the reset.
    let mut rig = slow();
    rig.inject([Rule::nth(Point::ANY_IO, 1, Fault::Fatal)]);
    let mut tasks = Vec::new();
    for reactor in 0..2_u16 {
        for nsid in 1..=2 {
            let (handle, here) = (rig.handle(reactor, nsid), rig.reactor(reactor));
            let io = io_with(&here, IoOp::Write, 0, 4096, &[nsid as u8; 4096], &[]);
            let running = Rc::new(RefCell::new(None));
            let slot = running.clone();
            tasks.push(running);
            here.clone().spawn("client", async move {
                let mut future = Box::pin(async move { end_of(&handle, io).await });
                // Polled once, and kept for the test to drop it.
                std::future::poll_fn(|context| {
                    assert!(future.as_mut().poll(context).is_pending());
                    std::task::Poll::Ready(())
                })
                .await;
                *slot.borrow_mut() = Some(future);
            });
        }
    }
    while rig.drive().life() != Life::Resetting {
        rig.wait(MS);
    }
    drop(tasks);
    rig.release();
    for nsid in 1..=2 {
        let held = rig.disk.contents(nsid, 0, 4096);
        assert!(held == [nsid as u8; 4096] || held == [0; 4096]);
    }
    rig.finish();
}

#[test]
fn two_reasons_for_a_reset_are_one_reset() {
    // A command that is late, and a fatal status that is seen at the same time.
    let mut rig = slow();
    rig.inject([
        Rule::nth(Point::ANY_IO, 1, Fault::Hang),
        Rule::nth(Point::Admin(AdminOpcode::ABORT), 1, Fault::Fatal),
    ]);
    let hung = rig.read((0, 1), 0, 4096);
    // Behind it: the first one hangs.
    rig.wait(S / 1000);
    let other = rig.read((1, 1), 0, 4096);
    assert_eq!((rig.ends(&hung, 2 * RESET), rig.ends(&other, S)), (IoStatus::Success, IoStatus::Success));
    rig.wait(2 * RESET);
    assert_eq!(rig.drive().counters().resets, 1);
    rig.works(1);
    rig.finish();
}

#[test]
fn a_reset_that_is_asked_for_during_the_end_ends() {
    let mut rig = slow();
    rig.release();
    let (home, drive, done) = (rig.reactor(0), rig.drive().clone(), Rc::new(RefCell::new(Vec::new())));
    let closed = closing(&rig);
    rig.wait(MS);
    for _ in 0..2 {
        let (here, drive, there) = (home.clone(), drive.clone(), done.clone());
        home.spawn("reset", async move {
            let result = drive.reset(&here).await;
            there.borrow_mut().push(result);
        });
    }
    rig.wait(10 * S);
    assert_eq!(closed.take(), Some(Ok(())));
    assert!(done.borrow().len() == 2 && done.borrow().iter().all(Result::is_err), "{:?}", done.borrow());
    drop((drive, home));
    rig.nothing_left();
}
