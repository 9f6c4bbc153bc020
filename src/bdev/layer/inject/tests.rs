use super::*;
use crate::bdev::device::malloc::{self, Malloc};
use crate::bdev::device::testing::{One, on_each, pattern, two_reactors};

const BLOCK: u64 = 512;

fn base(home: u16) -> Arc<dyn BlockDevice> {
    Arc::new(
        Malloc::new(malloc::Options {
            name: "ram".to_owned(),
            uuid: [1; 16],
            size: 1 << 20,
            block_size: 512,
            physical_block_size: 512,
            hugepages: false,
            home,
        })
        .unwrap(),
    )
}

fn layer(rules: Vec<Rule>) -> (Arc<dyn BlockDevice>, Control) {
    let inject = Inject::new(Options { name: "faulty".to_owned(), uuid: [2; 16], base: base(0), rules }).unwrap();
    let control = inject.control();
    (Arc::new(inject), control)
}

fn rule(op: IoOp, action: Action) -> Rule {
    Rule { op: Some(op), when: When::From(1), count: None, action }
}

/// Starts an I/O of one block in a task of its own; its status comes at the end.
fn start(one: &One, op: IoOp, block: u64) -> Rc<Cell<Option<IoStatus>>> {
    let io = one.io(
        op,
        block * BLOCK,
        if op.has_range() { BLOCK } else { 0 },
        &pattern(block, op.data_len(BLOCK) as usize),
        &[],
    );
    let (handle, end) = (one.handle.clone(), Rc::new(Cell::new(None)));
    let there = end.clone();
    one.reactor.spawn("test", async move {
        let io = handle.execute(io).await;
        there.set(Some(io.status));
        handle.reactor().retire_io(io);
    });
    end
}

fn turn(one: &One, turns: usize) {
    for _ in 0..turns {
        one.reactor.turn();
    }
}

#[test]
fn atomic_writes_are_those_of_the_base() {
    let (device, control) = layer(vec![rule(IoOp::Write, Action::Delay(1000))]);
    assert_eq!(device.common().traits().limits.atomic_max, TRANSFER_MAX as u64);
    let one = One::new(&device);
    let data = pattern(1, 1 << 20);
    for _ in 0..2 {
        let mut io = one.io(IoOp::Write, 0, 1 << 20, &data, &[]);
        io.atomic = true;
        assert_eq!(one.end(io).status, IoStatus::Success);
        assert!(one.read(0, 1 << 20) == data);
        control.clear();
    }
    one.close();
}

#[test]
fn without_rules_everything_reaches_the_base() {
    let (device, control) = layer(Vec::new());
    let one = One::new(&device);
    let data = pattern(7, 4096);
    one.write(512, &data);
    assert_eq!(one.read(512, 4096), data);
    assert_eq!(control.injected(), Injected::default());
    let counted: Vec<(String, u64)> = Handle::all(&one.reactor)
        .iter()
        .map(|handle| (handle.common().traits().driver.to_owned(), handle.stats().total().ios))
        .collect();
    assert_eq!(counted, [("malloc".to_owned(), 2), ("inject".to_owned(), 2)], "each device counts its I/Os");
    one.close();
}

#[test]
fn the_nth_fails_and_the_base_does_not_see_it() {
    let nth = Rule { when: When::From(2), count: Some(1), ..rule(IoOp::Write, Action::Fail(IoStatus::MediaError)) };
    let (device, control) = layer(vec![nth]);
    let one = One::new(&device);
    let status = |block: u64| one.run(IoOp::Write, block * BLOCK, BLOCK, &pattern(block, 512)).status;
    assert_eq!([status(1), status(2), status(3)], [IoStatus::Success, IoStatus::MediaError, IoStatus::Success]);
    assert_eq!(one.read(BLOCK, 1536), [pattern(1, 512), vec![0; 512], pattern(3, 512)].concat());
    assert_eq!(control.injected(), Injected { failed: 1, ..Injected::default() });
    one.close();
}

#[test]
fn delayed_goes_on_in_time_and_not_before() {
    let (device, control) = layer(vec![rule(IoOp::Write, Action::Delay(3_000_000))]);
    let one = One::new(&device);
    let begun = one.reactor.clock().refresh();
    let (first, second) = (start(&one, IoOp::Write, 1), start(&one, IoOp::Write, 2));
    turn(&one, 3);
    assert_eq!(first.get(), None);
    assert_eq!(one.read(BLOCK, 1024), vec![0; 1024], "reads pass meanwhile, and nothing is written yet");
    while second.get().is_none() {
        one.reactor.turn();
    }
    let took = one.reactor.clock().refresh() - begun;
    assert!((3_000_000..2_000_000_000).contains(&took), "{took} ns");
    assert_eq!(first.get(), Some(IoStatus::Success));
    assert_eq!(one.read(BLOCK, 1024), [pattern(1, 512), pattern(2, 512)].concat());
    assert_eq!(control.injected().delayed, 2);
    one.close();
}

#[test]
fn held_waits_for_its_release_from_another_thread_in_order() {
    let (device, control) = layer(vec![rule(IoOp::Write, Action::Hold)]);
    let one = One::new(&device);
    let ends = [1, 2, 3].map(|block| start(&one, IoOp::Write, block));
    turn(&one, 5);
    assert_eq!(control.held(), 3);
    let other = control.clone();
    std::thread::spawn(move || other.release(2)).join().unwrap();
    turn(&one, 5);
    assert_eq!(ends.each_ref().map(|end| end.get()), [Some(IoStatus::Success), Some(IoStatus::Success), None]);
    assert_eq!(control.held(), 1);
    assert_eq!(one.read(BLOCK, 1536), [pattern(1, 512), pattern(2, 512), vec![0; 512]].concat());
    control.clear();
    control.release(usize::MAX);
    turn(&one, 5);
    assert_eq!((ends[2].get(), control.held()), (Some(IoStatus::Success), 0));
    one.close();
}

#[test]
fn a_reset_ends_what_is_held_and_delayed_and_an_abort_one_of_them() {
    let (device, control) =
        layer(vec![rule(IoOp::Write, Action::Hold), rule(IoOp::Flush, Action::Delay(u64::MAX / 2))]);
    let one = One::new(&device);
    let (held, delayed) = (start(&one, IoOp::Write, 1), start(&one, IoOp::Flush, 0));
    turn(&one, 3);
    assert_eq!(one.status(IoOp::Reset, 0, 0), IoStatus::Success);
    assert_eq!((held.get(), delayed.get()), (Some(IoStatus::Aborted), Some(IoStatus::Aborted)));
    assert_eq!(control.held(), 0);

    let ends = [IoOp::Write, IoOp::Flush, IoOp::Write].map(|op| {
        let io = one.io(op, 0, if op.has_range() { BLOCK } else { 0 }, &pattern(1, op.data_len(BLOCK) as usize), &[]);
        let (slot, end, handle) = (io.slot(), Rc::new(Cell::new(None)), one.handle.clone());
        let there = end.clone();
        one.reactor.spawn("test", async move {
            let io = handle.execute(io).await;
            there.set(Some(io.status));
            handle.reactor().retire_io(io);
        });
        (slot, end)
    });
    turn(&one, 3);
    assert!(one.handle.abort(ends[1].0) && one.handle.abort(ends[2].0));
    assert!(!one.handle.abort(u32::MAX), "no such I/O");
    turn(&one, 3);
    assert_eq!(ends.each_ref().map(|(_, end)| end.get()), [None, Some(IoStatus::Aborted), Some(IoStatus::Aborted)]);
    assert_eq!(control.held(), 1);
    // The removal of the device ends the rest, and says why.
    device.common().close();
    let reactor = one.reactor.clone();
    let id = device.common().id();
    one.reactor.run_until(async move { Handle::drain(&reactor, id).await });
    turn(&one, 3);
    assert_eq!(ends[0].1.get(), Some(IoStatus::Gone));
    one.close();
}

#[test]
fn rules_count_the_ios_of_all_reactors_and_releases_reach_them() {
    let (device, control) = layer(vec![Rule { when: When::Every(4), ..rule(IoOp::Flush, Action::Hold) }]);
    let reactors = two_reactors();
    let releasing = control.clone();
    let releaser = std::thread::spawn(move || {
        while releasing.injected().held < 10 {
            releasing.release(1);
            std::thread::yield_now();
        }
        while releasing.held() > 0 {
            releasing.release(1);
            std::thread::yield_now();
        }
    });
    let ends = on_each(&reactors, &device, |handle, _| async move {
        for _ in 0..20 {
            let mut io = handle.reactor().create_io().unwrap();
            io.prepare(IoOp::Flush, 0, 0);
            let io = handle.execute(io).await;
            assert_eq!(io.status, IoStatus::Success);
            handle.reactor().retire_io(io);
        }
    });
    assert_eq!(ends.len(), 2);
    releaser.join().unwrap();
    assert_eq!(control.injected(), Injected { held: 10, ..Injected::default() });
    assert_eq!(reactors.stop(), 0);
}

#[test]
fn errors_of_reads_are_those_of_verifies_too() {
    let (device, control) = layer(vec![rule(IoOp::Read, Action::Fail(IoStatus::MediaError))]);
    let one = One::new(&device);
    assert_eq!(one.status(IoOp::Verify, 0, 8 * BLOCK), IoStatus::MediaError);
    control.clear();
    assert_eq!(one.status(IoOp::Verify, 0, 8 * BLOCK), IoStatus::Success);
    control.add(&rule(IoOp::Verify, Action::Fail(IoStatus::Aborted))).unwrap();
    assert_eq!(one.status(IoOp::Verify, 0, 8 * BLOCK), IoStatus::Aborted);
    assert_eq!(one.read(0, 4096), [0; 4096], "reads are not verifies");
    one.close();
}
