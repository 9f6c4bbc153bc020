use super::*;
use crate::bdev::device::testing::two_reactors;
use crate::bdev::leaf::{Book, Leaf};
use crate::bdev::{DeviceLimits, Handle};
use crate::reactor::mailbox::Remote;
use crate::reactor::start::Reactors;
use std::sync::mpsc;

const MORE: usize = FORWARD_DEPTH + 40;

/// Opens the device at home, where it holds what comes.
fn hold_at_home(home: &Remote, device: &Arc<dyn BlockDevice>) {
    let device = device.clone();
    home.ask(move |reactor| {
        Handle::open(reactor, &device).unwrap();
        Book::of(reactor).holds.set(true);
    })
    .unwrap();
}

/// Starts so many writes on `from`; their slots. Their ends come by the channel.
fn start(from: &Remote, device: &Arc<dyn BlockDevice>, count: usize, ends: &mpsc::Sender<IoStatus>) -> Vec<u32> {
    let (device, ends) = (device.clone(), ends.clone());
    from.ask(move |reactor| {
        let handle = Handle::open(reactor, &device).unwrap();
        let slot = |index: usize| {
            let mut io = reactor.create_io().unwrap();
            io.prepare(IoOp::Write, index as u64 * 512, 512);
            let mut buf = reactor.pool().alloc(512).unwrap();
            buf.fill(index as u8);
            io.data.push_buf(buf);
            let (slot, handle, ends) = (io.slot(), handle.clone(), ends.clone());
            reactor.spawn("test", async move {
                let io = handle.execute(io).await;
                let data = io.data.single_buf().expect("the buffer came back");
                assert!(data[..] == [index as u8; 512]);
                ends.send(io.status).unwrap();
                handle.reactor().retire_io(io);
            });
            slot
        };
        (0..count).map(slot).collect()
    })
    .unwrap()
}

fn held(home: &Remote) -> usize {
    home.ask(|reactor| Book::of(reactor).held.len()).unwrap()
}

fn wait_for_held(home: &Remote, count: usize) {
    while held(home) != count {
        std::thread::yield_now();
    }
}

fn release(home: &Remote, count: usize) {
    home.ask(move |reactor| Book::of(reactor).release(count, IoStatus::Success)).unwrap();
}

fn rig() -> (Reactors, Arc<dyn BlockDevice>) {
    let reactors = two_reactors();
    let device = Leaf::device(1 << 20, false, DeviceLimits::default());
    hold_at_home(&reactors.remotes()[0], &device);
    (reactors, device)
}

#[test]
fn a_write_is_as_atomic_at_home() {
    let reactors = two_reactors();
    let [home, other] = reactors.remotes() else { panic!("two") };
    let limits = DeviceLimits { atomic_max: 512, ..DeviceLimits::default() };
    let device = Leaf::device(1 << 20, false, limits);
    for (atomic, count) in [(true, 1), (false, 1), (true, 2)] {
        let (there, (sender, ended)) = (device.clone(), mpsc::channel());
        other.send(Box::new(move |reactor| {
            let handle = Handle::open(reactor, &there).unwrap();
            let mut io = crate::bdev::device::testing::io_with(reactor, IoOp::Write, 0, 512, &[1; 512], &[]);
            io.atomic = atomic;
            reactor.spawn("test", async move {
                sender.send(crate::bdev::device::testing::end(&handle, io).await.status).unwrap();
            });
        }));
        assert_eq!(ended.recv().unwrap(), IoStatus::Success);
        assert_eq!(home.ask(|reactor| Book::of(reactor).atomics.get()).unwrap(), count);
    }
    assert_eq!(reactors.stop(), 0);
}

#[test]
fn what_is_in_flight_is_bounded_and_the_rest_follows() {
    let (reactors, device) = rig();
    let [home, other] = reactors.remotes() else { panic!("two") };
    let (ends, statuses) = mpsc::channel();
    start(other, &device, MORE, &ends);
    wait_for_held(home, FORWARD_DEPTH);
    release(home, 10);
    wait_for_held(home, FORWARD_DEPTH);
    release(home, FORWARD_DEPTH);
    wait_for_held(home, MORE - FORWARD_DEPTH - 10);
    release(home, FORWARD_DEPTH);
    assert!(statuses.iter().take(MORE).all(|status| status == IoStatus::Success));
    // Counted where it was asked for, and only there.
    let counted = |remote: &Remote| remote.ask(|r| Handle::all(r)[0].stats().total().ios).unwrap();
    assert_eq!((counted(home), counted(other)), (0, MORE as u64));
    let in_flight = |remote: &Remote| remote.ask(|r| Handle::all(r)[0].stats().in_flight()).unwrap();
    assert_eq!((in_flight(home), in_flight(other)), (0, 0));
    assert_eq!(reactors.stop(), 0, "leaked buffers");
}

#[test]
fn a_reset_ends_what_waits_and_what_is_at_home() {
    let (reactors, device) = rig();
    let [home, other] = reactors.remotes() else { panic!("two") };
    let (ends, statuses) = mpsc::channel();
    start(other, &device, MORE, &ends);
    wait_for_held(home, FORWARD_DEPTH);
    let (sender, reset) = mpsc::channel();
    let there = device.clone();
    other
        .ask(move |reactor| {
            let handle = Handle::open(reactor, &there).unwrap();
            reactor.spawn("test", async move {
                let io = handle.reactor().create_io().unwrap();
                let io = handle.run(io, IoOp::Reset, 0, 0).await;
                sender.send(io.status).unwrap();
                handle.reactor().retire_io(io);
            });
        })
        .unwrap();
    assert_eq!(reset.recv(), Ok(IoStatus::Success));
    // A task runs after its I/O has landed: those of the same turn may still be on their way.
    assert!(statuses.iter().take(MORE).all(|status| status == IoStatus::Aborted));
    assert_eq!(held(home), 0);
    assert_eq!(reactors.stop(), 0, "leaked buffers");
}

#[test]
fn an_abort_ends_what_waits_here() {
    let (reactors, device) = rig();
    let [home, other] = reactors.remotes() else { panic!("two") };
    let (ends, statuses) = mpsc::channel();
    let slots = start(other, &device, MORE, &ends);
    wait_for_held(home, FORWARD_DEPTH);
    let (last, there) = (slots[MORE - 1], device.clone());
    let ended = other.ask(move |reactor| Handle::open(reactor, &there).unwrap().abort(last));
    assert_eq!(ended, Some(true));
    assert_eq!(statuses.recv(), Ok(IoStatus::Aborted));
    let mut left = MORE - 1;
    while left > 0 {
        release(home, held(home));
        left -= statuses.try_iter().inspect(|status| assert_eq!(*status, IoStatus::Success)).count();
    }
    assert_eq!(reactors.stop(), 0, "leaked buffers");
}

#[test]
fn a_home_that_refuses_fails_every_io() {
    let reactors = two_reactors();
    let [home, other] = reactors.remotes() else { panic!("two") };
    // All I/Os of the home are taken: its split cannot have helpers.
    let limited = Leaf::device(1 << 20, false, DeviceLimits { transfer_max: 4096, ..DeviceLimits::default() });
    home.ask(|reactor| {
        while let Some(io) = reactor.create_io() {
            reactor.park(io);
        }
    })
    .unwrap();
    let (ends, statuses) = mpsc::channel();
    start(other, &limited, 3, &ends);
    assert!(statuses.iter().take(3).all(|status| status == IoStatus::DeviceError));
    assert_eq!(reactors.stop(), 0, "leaked buffers");
}

#[test]
fn ending_with_ios_in_flight_loses_no_buffer_and_does_not_hang() {
    let (reactors, device) = rig();
    let [home, other] = reactors.remotes() else { panic!("two") };
    let (ends, _statuses) = mpsc::channel();
    start(other, &device, MORE, &ends);
    wait_for_held(home, FORWARD_DEPTH);
    reactors.stop();
}
