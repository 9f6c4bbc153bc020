//! What the ublk door costs per I/O, with a stand-in for the kernel's side of a queue: `cargo bench --bench ublk`, with a
//! part of a line's name for only those lines. Prints a table, judges nothing.
//!
//! A queue of depth 64 that is always full, 4 KiB requests on a RAM volume, one thread. Three things are timed in turn: all of it;
//! the copies alone, one call each as in user copy; and the kernel's side of the ring alone, commits to /dev/null in batches of
//! the depth. What is left of the first is this program's own.
#![expect(unsafe_code, reason = "pushes entries to a bare ring")]

#[expect(dead_code, reason = "not all of them are driven here")]
mod devices;

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;

use devices::ram;
use hugepages::{Region, RegionOptions};
use io_uring::{IoUring, opcode, types};
use reactor::bdev::Handle;
use reactor::reactor::start::solo;
use reactor::sys::ublk::Requests;
use reactor::ublk::stand_in::{Load, StandIn};
use reactor::ublk::wire::{IoOp, U_IO_COMMIT_AND_FETCH_REQ};

const ROUNDS: usize = 9;
const DEPTH: u16 = 64;
const LEN: u32 = 4096;
/// Of each round.
const IOS: u64 = 1_000_000;

/// Nanoseconds that this thread has run: other programs on its core do not count.
fn on_cpu() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("a kernel with scheduler statistics");
    text.split_whitespace().next().and_then(|ns| ns.parse().ok()).expect("a number of nanoseconds")
}

fn timed(ios: u64, work: impl FnOnce()) -> f64 {
    let before = on_cpu();
    work();
    (on_cpu() - before) / ios as f64
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Times all three for one kind of request, and prints a line.
fn measure(name: &str, op: IoOp) {
    let reactor = solo(16 << 20).expect("a reactor");
    let device = ram(1 << 20);
    let handle = Handle::open(&reactor, &device).expect("an open device");
    let queue = StandIn::open(&reactor, &device, Load { depth: DEPTH, op, len: LEN }).expect("a stand-in");
    let region = Region::new(usize::from(DEPTH) * LEN as usize, RegionOptions::default()).expect("memory");
    region.zero(0, region.len());
    let (memory, _) = queue.data(0);
    let commands = || OpenOptions::new().read(true).write(true).open("/dev/null").expect("/dev/null");
    let requests = Requests::stand_in(memory.try_clone().expect("a descriptor"), commands());
    let pages: Vec<_> = (0..DEPTH).map(|tag| requests.way().to(0, tag, LEN, None)).collect();
    let mut ring: IoUring =
        IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(u32::from(DEPTH) * 2).expect("a ring");
    let null = commands();

    let done = || handle.stats().total().ios;
    let until = |count: u64| {
        let goal = done() + count;
        while done() < goal {
            reactor.turn();
        }
    };
    until(10_000);
    let (mut all, mut copies, mut rings, mut own) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let before = reactor.stats().ring;
    let counted = done();
    for _ in 0..ROUNDS {
        all.push(timed(IOS, || until(IOS)));
        copies.push(timed(IOS, || {
            for io in 0..IOS {
                let tag = io as usize % usize::from(DEPTH);
                let at = tag * LEN as usize;
                let copied = match op {
                    IoOp::READ => pages[tag].give_from(0, &region, at, LEN as usize),
                    IoOp::WRITE => pages[tag].take_to(0, &region, at, LEN as usize),
                    _ => Ok(()),
                };
                copied.expect("a copy");
            }
        }));
        rings.push(timed(IOS, || {
            for _ in 0..IOS / u64::from(DEPTH) {
                for tag in 0..DEPTH {
                    let commit = opcode::UringCmd16::new(types::Fd(null.as_raw_fd()), U_IO_COMMIT_AND_FETCH_REQ);
                    let entry = commit.cmd([0; 16]).build().user_data(u64::from(tag));
                    // SAFETY: the command is part of the entry; no memory is named.
                    unsafe { ring.submission().push(&entry) }.expect("room");
                }
                ring.submit_and_wait(usize::from(DEPTH)).expect("a ring");
                let taken = ring.completion().filter(|done| done.result() == 0).count();
                assert_eq!(taken, usize::from(DEPTH));
            }
        }));
        let last = all.len() - 1;
        own.push(all[last] - copies[last] - rings[last]);
    }
    let enters = (reactor.stats().ring.enters - before.enters) as f64 / (done() - counted) as f64;
    let (all, copies, rings, spread) = (median(&all), median(&copies), median(&rings), own.clone());
    let own = median(&own);
    let (least, most) = spread.iter().fold((f64::MAX, f64::MIN), |(a, b), v| (a.min(*v), b.max(*v)));
    println!(
        "{name:<22} {all:>8.0} {copies:>8.0} {rings:>8.0} {own:>8.0} {:>14} {enters:>8.3}",
        format!("{least:.0} .. {most:.0}")
    );
    queue.stop();
    while !queue.has_ended().expect("no fault") {
        reactor.turn();
    }
    drop(handle);
    assert_eq!(reactor.shut_down(), 0, "all buffers are home");
}

fn main() {
    println!("ns per I/O, median of {ROUNDS} rounds of {IOS} I/Os, depth {DEPTH}");
    println!("{:<22} {:>8} {:>8} {:>8} {:>8} {:>14} {:>8}", "", "all", "copy", "ring", "own", "min .. max", "enters");
    let only = std::env::args().skip(1).find(|word| !word.starts_with('-')).unwrap_or_default();
    for (name, op) in [("RAM 4k read", IoOp::READ), ("RAM 4k write", IoOp::WRITE), ("flush", IoOp::FLUSH)] {
        if name.contains(&only) {
            measure(name, op);
        }
    }
}
