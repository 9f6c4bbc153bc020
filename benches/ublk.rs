//! What the ublk door costs per I/O, with a stand-in for the kernel's side of a queue: `cargo bench --bench ublk`, with a
//! part of a line's name for only those lines. Prints a table, judges nothing; with `--json` a line of JSON for each, for
//! `scripts/bench`. `--rounds=N` is how often each is timed.
//!
//! A queue of depth 64 that is always full, 4 KiB requests on a RAM volume, one thread. Three things are timed in turn, in rounds
//! so short that the machine is the same for all three: all of it; a bare loop, which makes the same system calls in the same
//! order and nothing else, one copy for each request and one entry of the ring for each batch of commits; and the copies of the
//! bare loop alone. What all of it takes beyond the bare loop is this program's own.
#![expect(unsafe_code, reason = "pushes entries to a bare ring")]

#[expect(dead_code, reason = "not all of them are driven here")]
mod devices;

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;

use devices::{on_cpu, ram};
use hugepages::{Region, RegionOptions};
use io_uring::{IoUring, opcode, types};
use reactor::bdev::Handle;
use reactor::reactor::start::solo;
use reactor::sys::ublk::{RequestData, Requests};
use reactor::ublk::stand_in::{Load, StandIn};
use reactor::ublk::wire::{IoOp, U_IO_COMMIT_AND_FETCH_REQ};
use serde_json::json;

const ROUNDS: usize = 201;
const DEPTH: u16 = 64;
const LEN: u32 = 4096;
/// Of each round: some 20 ms.
const IOS: u64 = 256 * DEPTH as u64;

fn timed(ios: u64, work: impl FnOnce()) -> f64 {
    let before = on_cpu();
    work();
    (on_cpu() - before) / ios as f64
}

fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[(part * (sorted.len() - 1) as f64).round() as usize]
}

/// What a program does that only makes the system calls.
struct Bare {
    op: IoOp,
    pages: Vec<RequestData>,
    memory: Region,
    ring: IoUring,
}

impl Bare {
    fn new(op: IoOp, queue: &StandIn) -> Bare {
        let memory = Region::new(usize::from(DEPTH) * LEN as usize, RegionOptions::default()).expect("memory");
        (0..memory.len()).step_by(4096).for_each(|at| memory.write(at, &[1]));
        let commands = || OpenOptions::new().read(true).write(true).open("/dev/null").expect("/dev/null");
        let requests = Requests::stand_in(queue.data(0).0.try_clone().expect("a descriptor"), commands());
        let pages = (0..DEPTH).map(|tag| requests.data(0, tag, LEN, None)).collect();
        let entries = u32::from(DEPTH) * 2;
        let ring: IoUring =
            IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries).expect("a ring");
        ring.submitter().register_files(&[commands().as_raw_fd()]).expect("a table of files");
        Bare { op, pages, memory, ring }
    }

    fn copy(&self, tag: u16) {
        let (pages, at, len) = (&self.pages[usize::from(tag)], usize::from(tag) * LEN as usize, LEN as usize);
        let copied = match self.op {
            IoOp::READ => pages.give_from(0, &self.memory, at, len),
            IoOp::WRITE => pages.take_to(0, &self.memory, at, len),
            _ => Ok(()),
        };
        copied.expect("a copy");
    }

    fn copies(&self, count: u64) {
        for _ in 0..count / u64::from(DEPTH) {
            (0..DEPTH).for_each(|tag| self.copy(tag));
        }
    }

    fn all(&mut self, count: u64) {
        for _ in 0..count / u64::from(DEPTH) {
            for tag in 0..DEPTH {
                self.copy(tag);
                let commit = opcode::UringCmd16::new(types::Fixed(0), U_IO_COMMIT_AND_FETCH_REQ).cmd([0; 16]).build();
                // SAFETY: the command is part of the entry; no memory is named.
                unsafe { self.ring.submission().push(&commit.user_data(u64::from(tag))) }.expect("room");
            }
            self.ring.submit_and_wait(usize::from(DEPTH)).expect("a ring");
            let taken = self.ring.completion().filter(|done| done.result() == 0).count();
            assert_eq!(taken, usize::from(DEPTH));
        }
    }
}

/// Times all three for one kind of request, and prints a line.
fn measure(name: &str, op: IoOp, rounds: usize, json: bool) {
    let reactor = solo(16 << 20).expect("a reactor");
    let device = ram(1 << 20);
    let handle = Handle::open(&reactor, &device).expect("an open device");
    let done = || handle.stats().total().ios;
    let until = |count: u64| {
        let goal = done() + count;
        while done() < goal {
            reactor.turn();
        }
    };
    let open = |op| StandIn::open(&reactor, &device, Load { depth: DEPTH, op, len: LEN }).expect("a stand-in");
    let end = |queue: StandIn| {
        queue.stop();
        while !queue.has_ended().expect("no fault") {
            reactor.turn();
        }
    };
    // What was never written would be read from one page of zeros for all.
    let queue = open(IoOp::WRITE);
    until(10_000);
    end(queue);
    let queue = open(op);
    until(10_000);
    let mut bare = Bare::new(op, &queue);
    bare.all(10_000);
    let (mut all, mut loops, mut copies, mut own) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (before, counted) = (reactor.stats().ring.enters, done());
    for _ in 0..rounds {
        let ours = timed(IOS, || until(IOS));
        let plain = timed(IOS, || bare.all(IOS));
        all.push(ours);
        loops.push(plain);
        own.push(ours - plain);
        copies.push(timed(IOS, || bare.copies(IOS)));
    }
    let enters = (reactor.stats().ring.enters - before) as f64 / (done() - counted) as f64;
    let [all, loops, copies] = [all, loops, copies].map(|values| quantile(&values, 0.5));
    let spread = format!("{:.0} .. {:.0}", quantile(&own, 0.25), quantile(&own, 0.75));
    let own = quantile(&own, 0.5);
    if json {
        let line = json!({ "name": name, "all_ns": all, "bare_ns": loops, "copy_ns": copies, "own_ns": own, "enters": enters });
        println!("{line}");
    } else {
        println!("{name:<22} {all:>8.0} {loops:>8.0} {copies:>8.0} {own:>8.0} {spread:>14} {enters:>8.3}");
    }
    end(queue);
    drop(handle);
    assert_eq!(reactor.shut_down(), 0, "all buffers are home");
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let only = words.iter().find(|word| !word.starts_with('-')).cloned().unwrap_or_default();
    let json = words.iter().any(|word| word == "--json");
    let rounds = words.iter().find_map(|word| word.strip_prefix("--rounds="));
    let rounds = rounds.map_or(ROUNDS, |count| count.parse().expect("a number of rounds"));
    if !json {
        println!("ns per I/O, median of {rounds} rounds of {IOS} I/Os, depth {DEPTH}");
        let heads = ["all", "bare", "copy", "own"].map(|head| format!("{head:>8}")).join(" ");
        println!("{:<22} {heads} {:>14} {:>8}", "", "half of rounds", "enters");
    }
    for (name, op) in [("RAM 4k read", IoOp::READ), ("RAM 4k write", IoOp::WRITE), ("flush", IoOp::FLUSH)] {
        if name.contains(&only) {
            measure(name, op, rounds, json);
        }
    }
}
