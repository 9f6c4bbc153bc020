//! Resets of the controller: what waits, what is repeated how often, and when it is given up.

use super::*;

/// By when a command that hangs has led to a reset.
const RESET: u64 = TIMEOUT + TIMEOUT / 8 + TIMEOUT / 4 + 200 * MS;

fn hangs(nth: u64) -> [Rule; 2] {
    [Rule::nth(Point::ANY_IO, nth, Fault::Hang), Rule::always(Point::Admin(AdminOpcode::ABORT), Fault::Ignore)]
}

fn slow_to_disable() -> Rig {
    Rig::with(|_| {}, FakeOptions { disable_ns: 500 * MS, io_ns: (10_000, 10_000), ..FakeOptions::default() })
}

/// Lets time pass until the drive is in this state.
fn until(rig: &mut Rig, life: Life, within: u64) {
    let limit = rig.now() + within;
    while rig.drive().life() != life {
        assert!(rig.now() < limit, "it is {:?} and not {life:?}", rig.drive().life());
        rig.wait(MS);
    }
}

#[test]
fn writes_that_come_meanwhile_wait_and_go_out_in_order() {
    let mut rig = slow_to_disable();
    rig.inject(hangs(1));
    let hung = rig.write((0, 1), 0, &[1; 4096]);
    until(&mut rig, Life::Resetting, RESET);
    let later: Vec<Answer> = (2..40).map(|byte| rig.write((1, 1), 8192, &[byte; 4096])).collect();
    rig.wait(100 * MS);
    assert!(later.iter().all(|answer| answer.borrow().is_none()), "they wait");
    assert_eq!(rig.ends(&hung, RESET), IoStatus::Success);
    for answer in &later {
        assert_eq!(rig.ends(answer, S), IoStatus::Success);
    }
    assert_eq!(rig.disk.contents(1, 0, 4096), [1; 4096]);
    // The controller carries out in order here, so that the last one shows.
    assert_eq!(rig.disk.contents(1, 8192, 4096), [39; 4096]);
    rig.finish();
}

#[test]
fn an_io_is_repeated_three_times() {
    for (times, is) in [(3, IoStatus::Success), (4, IoStatus::DeviceError)] {
        let mut rig = Rig::new();
        let fatal = Rule::always(Point::io(NvmOpcode::WRITE), Fault::Fatal);
        rig.inject([Rule { count: Some(times), ..fatal }]);
        let killer = rig.write((0, 1), 0, &[1; 4096]);
        assert_eq!(rig.ends(&killer, 20 * S), is);
        assert_eq!(rig.drive().counters().resets, times);
        let data = if is == IoStatus::Success { [1; 4096] } else { [0; 4096] };
        assert_eq!(rig.disk.contents(1, 0, 4096), data);
        assert_eq!(rig.drive().life(), Life::Live);
        rig.works(1);
        rig.finish();
    }
}

#[test]
fn resets_without_end_are_ended() {
    let mut rig = Rig::new();
    rig.inject([Rule::always(Point::io(NvmOpcode::WRITE), Fault::Fatal)]);
    // Each ends by its own limit of repeats, as long as the drive lives.
    for round in 0..2 {
        assert_eq!(rig.drive().life(), Life::Live, "round {round}");
        let all: Vec<Answer> = (0..10).map(|i| rig.write(((i % 2) as u16, 1), i * 4096, &[1; 4096])).collect();
        for answer in &all {
            assert_eq!(rig.ends(answer, 20 * S), IoStatus::DeviceError);
        }
    }
    assert_eq!(rig.drive().life(), Life::Failed);
    assert_eq!(rig.drive().counters().resets, NVME_RESETS_MAX as u64 + 1);
    assert!(rig.disk.contents(1, 0, 40960).iter().all(|byte| *byte == 0));
    // From now on they end at once, whatever they are.
    for reactor in 0..2 {
        let (read, write) = (rig.read((reactor, 1), 0, 4096), rig.write((reactor, 2), 0, &[1; 4096]));
        let swapped = rig.begin((reactor, 2), IoOp::CompareAndWrite, 0, 512, &[0; 1024]);
        for answer in [read, write, swapped] {
            assert_eq!(rig.ends(&answer, S), IoStatus::DeviceError);
        }
    }
    rig.finish();
}

#[test]
fn resets_that_are_far_between_are_borne() {
    let mut rig = Rig::new();
    for round in 0..2 * NVME_RESETS_MAX as u64 {
        rig.port.fake.forgive();
        rig.inject([Rule::nth(Point::io(NvmOpcode::WRITE), 1, Fault::Fatal)]);
        let written = rig.write((1, 1), 0, &[round as u8; 4096]);
        assert_eq!(rig.ends(&written, 2 * S), IoStatus::Success);
        rig.wait(15 * S);
    }
    assert_eq!(rig.drive().life(), Life::Live);
    rig.works(1);
    rig.finish();
}

#[test]
fn what_was_answered_before_the_reset_is_not_repeated() {
    // A compare and write among the others, answered while the queue is held.
    let mut rig = slow_to_disable();
    rig.disk.put(1, 0, &[1; 512]);
    rig.inject([
        Rule::nth(Point::io(NvmOpcode::COMPARE), 1, Fault::Late(100 * MS)),
        Rule::nth(Point::ANY_IO, 2, Fault::Fatal),
    ]);
    let swapped = rig.begin((0, 1), IoOp::CompareAndWrite, 0, 512, &[[1; 512], [2; 512]].concat());
    let other = rig.write((0, 1), 4096, &[3; 4096]);
    let status = rig.ends(&swapped, RESET);
    // It was not carried out, which the driver cannot know.
    assert_eq!(status, IoStatus::DeviceError);
    assert_eq!(rig.ends(&other, RESET), IoStatus::Success);
    assert!(rig.disk.contents(1, 0, 512) == [1; 512]);
    rig.finish();
}

#[test]
fn a_reset_that_fails_once_is_made_again() {
    let faults = [
        Rule::nth(Point::Admin(AdminOpcode::CREATE_IO_SQ), 2, Fault::Lost),
        Rule::nth(Point::Enable, 1, Fault::Hang),
        Rule::nth(Point::Enable, 1, Fault::Fatal),
    ];
    // Itself, the list of namespaces, its limits, and each namespace with its names.
    let refused = (1..=7).map(|nth| {
        Rule::nth(Point::Admin(AdminOpcode::IDENTIFY), nth, Fault::Status(StatusCode::INTERNAL_ERROR.retry()))
    });
    for fault in refused.chain(faults) {
        let mut rig = Rig::closed(1, |_| {}, FakeOptions { io_ns: (10_000, 10_000), ..FakeOptions::default() });
        // An admin command that is lost takes a minute: the I/O is not too old to be repeated then.
        rig.timeout_ns = 40 * S;
        rig.open().unwrap();
        rig.inject([Rule::nth(Point::io(NvmOpcode::WRITE), 1, Fault::Fatal), fault.clone()]);
        let written = rig.write((0, 1), 0, &[1; 4096]);
        assert_eq!(rig.ends(&written, 80 * S), IoStatus::Success, "{fault:?}");
        assert_eq!(rig.drive().counters().resets, 2);
        assert_eq!(rig.disk.contents(1, 0, 4096), [1; 4096]);
        rig.works(1);
        rig.forgive_taking_enable_back();
        rig.finish();
    }
}

#[test]
fn a_controller_that_does_not_come_back_fails_and_hangs_nobody() {
    let faults = [
        Rule::always(Point::Admin(AdminOpcode::IDENTIFY), Fault::Status(StatusCode::INTERNAL_ERROR.dnr())),
        Rule::always(Point::Admin(AdminOpcode::SET_FEATURES), Fault::Lost),
        Rule::always(Point::Enable, Fault::Hang),
        Rule::always(Point::Enable, Fault::Fatal),
    ];
    for fault in faults {
        let mut rig = Rig::new();
        rig.inject([Rule::nth(Point::io(NvmOpcode::WRITE), 1, Fault::Fatal), fault.clone()]);
        let (written, read) = (rig.write((0, 1), 0, &[1; 4096]), rig.read((1, 2), 0, 4096));
        assert_eq!(rig.ends(&written, 140 * S), IoStatus::DeviceError, "{fault:?}");
        assert!(matches!(rig.ends(&read, S), IoStatus::DeviceError | IoStatus::Success));
        assert_eq!(rig.drive().life(), Life::Failed);
        let after = rig.read((1, 2), 0, 4096);
        assert_eq!(rig.ends(&after, S), IoStatus::DeviceError);
        rig.release();
        rig.close().unwrap();
        rig.forgive_taking_enable_back();
        rig.finish();
    }
}

#[test]
fn removed_while_it_works() {
    let mut rig = Rig::new();
    rig.inject([Rule::nth(Point::ANY_IO, 3, Fault::Remove)]);
    let all: Vec<Answer> =
        (0..8).map(|i| rig.write((i % 2, 1 + u32::from(i / 4)), u64::from(i) * 4096, &[1; 4096])).collect();
    for answer in &all {
        assert!(matches!(rig.ends(answer, 2 * S), IoStatus::Gone | IoStatus::Success));
    }
    assert_eq!(rig.drive().life(), Life::Failed);
    let after = rig.read((1, 2), 0, 4096);
    assert_eq!(rig.ends(&after, S), IoStatus::Gone);
    rig.finish();
}

#[test]
fn removed_during_a_reset() {
    for point in
        [Point::Disable, Point::Enable, Point::Admin(AdminOpcode::CREATE_IO_CQ), Point::Admin(AdminOpcode::IDENTIFY)]
    {
        let mut rig = slow_to_disable();
        rig.inject([
            Rule::nth(Point::io(NvmOpcode::WRITE), 1, Fault::Fatal),
            Rule::nth(point.clone(), 1, Fault::Remove),
        ]);
        let written = rig.write((0, 1), 0, &[1; 4096]);
        let status = rig.ends(&written, 140 * S);
        assert!(matches!(status, IoStatus::Gone), "{point:?}: {status:?}");
        rig.finish();
    }
}

/// A controller whose reads hang, and which does not become disabled either.
fn loud(write: bool) -> Rig {
    let rig = Rig::new();
    rig.inject(hangs(1));
    rig.inject([match write {
        true => Rule::always(Point::Write(Property::CC), Fault::Ignore),
        false => Rule::always(Point::Disable, Fault::Hang),
    }]);
    rig
}

#[test]
fn without_a_proof_of_quiet_no_io_ends_and_no_buffer_is_used_again() {
    for write in [false, true] {
        let mut rig = loud(write);
        let hung = rig.read((0, 1), 0, 65536);
        until(&mut rig, Life::Failed, RESET + 5 * S);
        let later = rig.write((1, 1), 0, &[1; 4096]);
        rig.wait(200 * S);
        assert!(hung.borrow().is_none() && later.borrow().is_none());
        // The end does not hang the home: it says that it is none.
        let begun = rig.now();
        assert!(matches!(rig.close(), Err(ControllerError::Stuck { state: "disabling", .. })));
        assert!(rig.now() - begun < 5 * S);
        assert!(rig.close().is_err());
        let port = rig.port.clone();
        let Rig { simulation, .. } = rig;
        // Lost on purpose: the read's buffer, and the memory of both queues.
        assert!(simulation.finish() > 0);
        port.fake.assert_clean();
    }
}

#[test]
fn kept_from_memory_it_is_quiet() {
    let mut rig = loud(true);
    rig.port.cuts.store(true, Ordering::Relaxed);
    let hung = rig.read((0, 1), 0, 65536);
    // Behind it: the first one hangs.
    rig.wait(S / 1000);
    let other = rig.write((1, 2), 0, &[1; 4096]);
    assert!(matches!(rig.ends(&hung, RESET + 5 * S), IoStatus::Gone | IoStatus::DeviceError));
    assert_eq!(rig.ends(&other, S), IoStatus::Success);
    assert_eq!(rig.drive().life(), Life::Failed);
    rig.finish();
}

#[test]
fn a_controller_that_touches_data_until_it_is_disabled_finds_it() {
    // Each read hangs, is given up by the reset, and the controller comes back to its data up to the last moment before it is quiet.
    let mut rig = slow_to_disable();
    rig.disk.put(1, 0, &pattern(1, 65536));
    rig.inject(hangs(1));
    rig.inject([Rule::nth(Point::io(NvmOpcode::READ), 2, Fault::Late(TIMEOUT + TIMEOUT / 8 + TIMEOUT / 4 + 10 * MS))]);
    let (hung, late) = (rig.read((0, 1), 0, 32768), rig.read((0, 1), 32768, 32768));
    let (hung, late) = (rig.end(&hung, 2 * RESET), rig.end(&late, 2 * RESET));
    assert!(hung.data == rig.disk.contents(1, 0, 32768) && late.data == rig.disk.contents(1, 32768, 32768));
    rig.works(1);
    rig.finish();
}

#[test]
fn a_channel_that_opens_during_a_reset_waits_with_the_others() {
    let mut rig = Rig::closed(4, |_| {}, FakeOptions { disable_ns: 500 * MS, ..FakeOptions::default() });
    let drive = rig.attempt().unwrap();
    rig.drive = Some(drive.clone());
    let device: Arc<dyn BlockDevice> = Arc::new(Nvme::new("n1".to_owned(), &drive, 1).unwrap());
    rig.devices.push(device.clone());
    let home = Handle::open(&rig.reactor(0), &device).unwrap();
    rig.handles = vec![vec![home]];
    rig.wait(MS);
    rig.inject([Rule::nth(Point::ANY_IO, 1, Fault::Fatal)]);
    let fatal = rig.write((0, 1), 0, &[1; 4096]);
    until(&mut rig, Life::Resetting, 2 * S);
    rig.wait(10 * MS);
    let other = Handle::open(&rig.reactor(1), &device).unwrap();
    rig.handles.push(vec![other]);
    let held = rig.write((1, 1), 4096, &[2; 4096]);
    assert_eq!((rig.ends(&fatal, 2 * S), rig.ends(&held, 2 * S)), (IoStatus::Success, IoStatus::Success));
    assert!(rig.disk.contents(1, 0, 8192) == [[1; 4096], [2; 4096]].concat());
    rig.finish();
}

#[test]
fn a_reset_takes_no_memory() {
    let mut rig = Rig::new();
    let mut taken = Vec::new();
    for reactor in 0..2 {
        let pool = rig.reactor(reactor).pool().clone();
        taken.extend(
            (12..=20).rev().flat_map(|shift| std::iter::from_fn(|| pool.alloc(1 << shift)).collect::<Vec<_>>()),
        );
        assert!(pool.alloc(1).is_none());
    }
    // Data that has a buffer already.
    let buf = taken.pop().unwrap();
    let mut io = rig.handle(0, 1).reactor().create_io().unwrap();
    io.prepare(IoOp::Write, 0, 4096);
    let mut buf = buf;
    buf.set_len(4096);
    buf.fill(7);
    io.data.push_buf(buf);
    rig.inject([Rule::nth(Point::io(NvmOpcode::WRITE), 1, Fault::Fatal)]);
    let (handle, ended) = (rig.handle(0, 1), Rc::new(RefCell::new(None)));
    let there = ended.clone();
    rig.reactor(0).spawn("io", async move {
        let io = handle.execute(io).await;
        there.replace(Some(io.status));
        handle.reactor().retire_io(io);
    });
    rig.wait(2 * S);
    assert_eq!((ended.take(), rig.drive().life()), (Some(IoStatus::Success), Life::Live));
    assert_eq!(rig.drive().counters().resets, 1);
    assert_eq!(rig.disk.contents(1, 0, 4096), [7; 4096]);
    drop(taken);
    rig.works(1);
    rig.finish();
}

#[test]
fn a_function_reset_brings_back_what_cannot_be_disabled() {
    let mut rig = Rig::new();
    rig.port.resets.store(true, Ordering::Relaxed);
    rig.inject([Rule::nth(Point::Disable, 1, Fault::Hang), Rule::nth(Point::io(NvmOpcode::WRITE), 1, Fault::Fatal)]);
    let written = rig.write((1, 2), 0, &[5; 4096]);
    assert_eq!(rig.ends(&written, 10 * S), IoStatus::Success);
    assert_eq!((rig.drive().life(), rig.drive().counters().resets), (Life::Live, 1));
    rig.works(1);
    rig.finish();
}

#[test]
fn a_namespace_that_changed_meanwhile_is_not_gone_on_with() {
    for shrinks in [true, false] {
        let mut rig = Rig::new();
        rig.disk.put(2, 0, &[9; 4096]);
        rig.disk.resize(2, if shrinks { SIZE / BLOCK - 8 } else { SIZE / BLOCK + 8 });
        rig.inject([Rule::nth(Point::io(NvmOpcode::WRITE), 1, Fault::Fatal)]);
        let written = rig.write((0, 1), 0, &[1; 4096]);
        let (status, life) = (rig.ends(&written, 2 * S), rig.drive().life());
        if shrinks {
            assert_eq!((status, life), (IoStatus::DeviceError, Life::Failed));
            assert_eq!(rig.disk.contents(1, 0, 4096), [0; 4096]);
        } else {
            assert_eq!((status, life), (IoStatus::Success, Life::Live));
        }
        rig.finish();
    }
}

#[test]
fn what_is_old_is_not_repeated() {
    // Twice the time limit has gone before the controller is quiet: whoever asked may have written something newer elsewhere.
    let slow = FakeOptions { disable_ns: 16 * S, timeout_500ms: 40, io_ns: (10_000, 10_000), ..FakeOptions::default() };
    let mut rig = Rig::closed(1, |_| {}, slow);
    rig.timeout_ns = 16 * S;
    rig.open().unwrap();
    rig.inject(hangs(1));
    let old = rig.write((0, 1), 0, &[1; 4096]);
    rig.wait(9 * S);
    rig.inject([Rule::nth(Point::ANY_IO, 1, Fault::Hang)]);
    let young = rig.write((0, 1), 8192, &[2; 4096]);
    assert_eq!(rig.ends(&old, 60 * S), IoStatus::DeviceError);
    assert_eq!(rig.ends(&young, S), IoStatus::Success);
    assert_eq!((rig.disk.contents(1, 0, 4096), rig.disk.contents(1, 8192, 4096)), (vec![0; 4096], vec![2; 4096]));
    rig.works(1);
    rig.finish();
}

#[test]
fn a_flush_does_not_hide_that_a_cache_may_be_lost() {
    let flush = |rig: &mut Rig, (reactor, nsid): (u16, u32), told: LossTold| {
        let handle = rig.handle(reactor, nsid);
        rig.run_on(reactor, async move {
            let mut told = told;
            (flush_for(&handle, &mut told).await, told)
        })
    };
    // A controller that fails: the flush in flight, and the first one of each user after that.
    let cached = |disk: &mut DiskOptions| disk.write_cache = true;
    let mut rig = Rig::with(cached, FakeOptions { io_ns: (10_000, 10_000), ..FakeOptions::default() });
    let written = rig.write((0, 1), 0, &[1; 4096]);
    assert_eq!(rig.ends(&written, S), IoStatus::Success);
    rig.inject([Rule::nth(Point::io(NvmOpcode::FLUSH), 1, Fault::Fatal)]);
    let since = LossTold::new(rig.now());
    let (failed, told) = flush(&mut rig, (0, 1), since);
    assert_eq!(failed, IoStatus::DeviceError, "in flight when it failed");
    assert_eq!(
        flush(&mut rig, (0, 1), told),
        (IoStatus::DeviceError, told),
        "somebody may not have heard of the first"
    );
    rig.wait(31 * S);
    assert_eq!(flush(&mut rig, (0, 1), told), (IoStatus::Success, told));
    for place in [(0, 1), (1, 1), (0, 2), (1, 2)] {
        let (other, _) = flush(&mut rig, place, since);
        assert_eq!(other, IoStatus::DeviceError, "that others were told is nothing to it");
        assert_eq!(flush(&mut rig, place, told), (IoStatus::Success, told));
    }
    rig.finish();
    // One that is reset since a command hangs has its cache still.
    let mut rig = Rig::with(cached, FakeOptions { io_ns: (10_000, 10_000), ..FakeOptions::default() });
    rig.inject(hangs(1));
    let hung = rig.write((0, 1), 0, &[1; 4096]);
    assert_eq!(rig.ends(&hung, RESET), IoStatus::Success);
    assert_eq!(rig.drive().counters().resets, 1);
    assert_eq!(flush(&mut rig, (0, 1), LossTold::new(1)), (IoStatus::Success, LossTold::new(1)));
    assert_eq!(rig.disk.unflushed(1), 0);
    rig.finish();
}

#[test]
fn a_flush_that_waited_for_the_reset_says_that_the_cache_may_be_lost() {
    let cached = |disk: &mut DiskOptions| disk.write_cache = true;
    let slow = FakeOptions { disable_ns: 500 * MS, io_ns: (10_000, 10_000), ..FakeOptions::default() };
    let mut rig = Rig::with(cached, slow);
    rig.inject([Rule::nth(Point::ANY_IO, 1, Fault::Fatal)]);
    let killer = rig.read((0, 1), 0, 4096);
    until(&mut rig, Life::Resetting, 2 * S);
    let flushes: Vec<Answer> = (0..3).map(|_| rig.begin((0, 1), IoOp::Flush, 0, 0, &[])).collect();
    assert_eq!(rig.ends(&killer, 2 * S), IoStatus::Success);
    for flushed in &flushes {
        assert_eq!(rig.ends(flushed, S), IoStatus::DeviceError);
    }
    rig.works(1);
    rig.finish();
}

#[test]
fn a_controller_that_had_to_be_forced_has_lost_its_cache() {
    let cached = |disk: &mut DiskOptions| disk.write_cache = true;
    let mut rig = Rig::with(cached, FakeOptions { io_ns: (10_000, 10_000), ..FakeOptions::default() });
    rig.port.resets.store(true, Ordering::Relaxed);
    // Its firmware hangs: no status says so.
    rig.inject(hangs(1));
    rig.inject([Rule::nth(Point::Disable, 1, Fault::Hang)]);
    let hung = rig.write((0, 1), 0, &[1; 4096]);
    assert_eq!(rig.ends(&hung, 2 * RESET), IoStatus::Success);
    let handle = rig.handle(0, 1);
    let flushed = rig.run(async move { flush_for(&handle, &mut LossTold::new(1)).await });
    assert_eq!(flushed, IoStatus::DeviceError);
    rig.finish();
}

#[test]
fn what_waited_too_long_for_the_reset_is_not_sent() {
    let slow =
        FakeOptions { disable_ns: 60 * S, timeout_500ms: 200, io_ns: (10_000, 10_000), ..FakeOptions::default() };
    let mut rig = Rig::with(|_| {}, slow);
    rig.inject([Rule::nth(Point::ANY_IO, 1, Fault::Fatal)]);
    let killer = rig.read((0, 1), 0, 4096);
    until(&mut rig, Life::Resetting, 2 * S);
    let old = rig.write((0, 1), 8192, &[1; 4096]);
    rig.wait(40 * S);
    let young = rig.write((0, 1), 16384, &[2; 4096]);
    assert_eq!((rig.ends(&old, 60 * S), rig.ends(&young, S)), (IoStatus::DeviceError, IoStatus::Success));
    assert_eq!(rig.ends(&killer, S), IoStatus::DeviceError);
    assert_eq!((rig.disk.contents(1, 8192, 4096), rig.disk.contents(1, 16384, 4096)), (vec![0; 4096], vec![2; 4096]));
    rig.finish();
}

#[test]
fn a_namespace_that_changed_before_the_reset_is_not_gone_on_with_either() {
    // The event about it has come: what is compared with is what its volume is, not what was told last.
    let mut rig = Rig::new();
    rig.drive().listen(|_| {});
    rig.wait(2 * S);
    rig.disk.resize(2, SIZE / BLOCK - 8);
    rig.port.fake.changed(2);
    rig.wait(S);
    rig.inject([Rule::nth(Point::io(NvmOpcode::WRITE), 1, Fault::Fatal)]);
    let written = rig.write((0, 1), 0, &[1; 4096]);
    assert_eq!(rig.ends(&written, 2 * S), IoStatus::DeviceError);
    assert_eq!(rig.drive().life(), Life::Failed);
    rig.finish();
}
