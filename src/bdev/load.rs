//! A load generator: some number of tasks on one reactor, each keeping one I/O in flight on a volume.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;

use hdrhistogram::Histogram;

use super::handle::Handle;
use super::stats::{Latencies, empty_histogram, percentiles};
use crate::reactor::io::{Io, IoOp, IoStatus, Segment};
use crate::reactor::{Reactor, TaskId};

/// Something that executes I/Os: an opened device, or a queue of a remote namespace.
pub trait Volume: 'static {
    /// Carries out one I/O.
    fn execute(&self, io: Io) -> impl Future<Output = Io>;
    /// Size in bytes.
    fn size(&self) -> u64;
    /// Whether I/Os of this kind must come with their data, or a buffer for it.
    fn needs_data(&self, op: IoOp) -> bool;
    /// The latencies of all its I/Os so far, failed ones included, if it counts them: they are not counted twice then.
    fn latencies(&self) -> Option<Histogram<u64>> {
        None
    }
}

impl Volume for Handle {
    fn execute(&self, io: Io) -> impl Future<Output = Io> {
        Handle::execute(self, io)
    }

    fn size(&self) -> u64 {
        self.common().size()
    }

    fn needs_data(&self, _: IoOp) -> bool {
        !self.common().traits().keeps_nothing
    }

    fn latencies(&self) -> Option<Histogram<u64>> {
        let mut all = empty_histogram();
        self.stats().add_latency_to(&mut all);
        Some(all)
    }
}

/// The order of offsets and the mix of reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Reads in order.
    Read,
    /// Writes in order.
    Write,
    /// Reads of random blocks.
    RandRead,
    /// Writes of random blocks.
    RandWrite,
    /// Random blocks, 70 of 100 read.
    RandRw,
}

/// What to do to a volume.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// Pattern.
    pub pattern: Pattern,
    /// Bytes per I/O, a multiple of the volume's block size, at most [`crate::limits::TRANSFER_MAX`].
    pub block: usize,
    /// I/Os in flight.
    pub depth: usize,
    /// How long, in nanoseconds.
    pub ns: u64,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// I/Os completed.
    pub ios: u64,
    /// Of these, failed.
    pub errors: u64,
    /// The first failure.
    pub first_error: Option<(IoOp, u64, IoStatus)>,
    /// From the first submission to the last completion, in nanoseconds.
    pub ns: u64,
    /// Latencies in nanoseconds, of failed I/Os too where the volume counts.
    pub latency: Histogram<u64>,
}

impl Outcome {
    /// Nothing yet, to be merged into.
    pub fn empty() -> Outcome {
        Outcome { ios: 0, errors: 0, first_error: None, ns: 0, latency: empty_histogram() }
    }

    /// Adds the outcome of a job that ran at the same time.
    pub fn merge(&mut self, other: &Outcome) {
        self.ios += other.ios;
        self.errors += other.errors;
        self.first_error = self.first_error.or(other.first_error);
        self.ns = self.ns.max(other.ns);
        // Same bounds, so adding cannot fail.
        let _ = self.latency.add(&other.latency);
    }

    /// I/Os per second.
    pub fn iops(&self) -> f64 {
        self.ios as f64 * 1e9 / (self.ns.max(1)) as f64
    }

    /// Latency percentiles.
    pub fn latency(&self) -> super::Latency {
        percentiles(&self.latency)
    }
}

struct Running {
    job: Job,
    next: Cell<u64>,
    blocks: u64,
    deadline: u64,
    /// I/Os completed, for whoever shows progress.
    done: Rc<Cell<u64>>,
    errors: Cell<u64>,
    first_error: Cell<Option<(IoOp, u64, IoStatus)>>,
    /// If the volume counts none.
    latency: Option<Latencies>,
    alive: Cell<usize>,
    waiter: TaskId,
    stop: Rc<Cell<bool>>,
}

impl Running {
    fn slot_ends(&self, reactor: &Reactor) {
        self.alive.set(self.alive.get() - 1);
        if self.alive.get() == 0 {
            reactor.wake(self.waiter);
        }
    }
}

/// Runs a job to its end, or until `stop` is set. `done` counts I/Os as they complete, for whoever shows progress; no
/// other job may count there meanwhile, since the outcome has what it grew by.
///
/// Must be called from a task of `reactor`.
pub async fn run<V: Volume>(
    reactor: &Rc<Reactor>,
    volume: Rc<V>,
    job: Job,
    stop: Rc<Cell<bool>>,
    done: Rc<Cell<u64>>,
) -> Outcome {
    let started = reactor.clock().refresh();
    let (before, done_before) = (volume.latencies(), done.get());
    let running = Rc::new(Running {
        job,
        next: Cell::new(0),
        blocks: (volume.size() / job.block as u64).max(1),
        deadline: started + job.ns,
        done,
        errors: Cell::new(0),
        first_error: Cell::new(None),
        latency: before.is_none().then(Latencies::default),
        alive: Cell::new(job.depth),
        waiter: reactor.current_task(),
        stop,
    });
    for _ in 0..job.depth {
        reactor.spawn("load slot", slot(reactor.clone(), volume.clone(), running.clone()));
    }
    std::future::poll_fn(
        |_| {
            if running.alive.get() == 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        },
    )
    .await;
    let mut outcome = Outcome::empty();
    outcome.ns = reactor.clock().refresh() - started;
    outcome.ios = running.done.get() - done_before;
    outcome.errors = running.errors.get();
    outcome.first_error = running.first_error.get();
    match (&running.latency, volume.latencies().zip(before)) {
        (Some(counted), _) => counted.add_to(&mut outcome.latency),
        (None, Some((mut after, before))) => {
            // Same bounds, and nothing is ever taken out, so subtracting cannot fail.
            let _ = after.subtract(&before);
            outcome.latency = after;
        }
        (None, None) => {}
    }
    outcome
}

async fn slot<V: Volume>(reactor: Rc<Reactor>, volume: Rc<V>, running: Rc<Running>) {
    let Some(mut io) = reactor.create_io() else {
        return running.slot_ends(&reactor);
    };
    let block = running.job.block;
    let (entropy, clock) = (reactor.entropy(), reactor.clock());
    let pattern = running.job.pattern;
    let random = !matches!(pattern, Pattern::Read | Pattern::Write);
    let mixed = pattern == Pattern::RandRw;
    let mut op = if matches!(pattern, Pattern::Write | Pattern::RandWrite) { IoOp::Write } else { IoOp::Read };
    let mut needed = volume.needs_data(op);
    let mut spare = None;
    if needed || mixed && volume.needs_data(IoOp::Write) {
        let mut buf = reactor.buffer(block).await;
        for (i, byte) in buf.iter_mut().enumerate() {
            *byte = (i / 7) as u8 ^ entropy.next() as u8;
        }
        spare = Some(buf);
    }
    while clock.now() < running.deadline && !running.stop.get() {
        if mixed {
            op = if entropy.below(100) < 70 { IoOp::Read } else { IoOp::Write };
            needed = volume.needs_data(op);
        }
        let index = if random {
            entropy.below(running.blocks)
        } else {
            let next = running.next.get();
            running.next.set(if next + 1 == running.blocks { 0 } else { next + 1 });
            next
        };
        io.prepare(op, index * block as u64, block as u64);
        if needed && let Some(buf) = spare.take() {
            io.data.push_buf(buf);
        }
        io = volume.execute(io).await;
        if needed {
            if let Some(Segment::Buf(buf)) = io.data.pop() {
                spare = Some(buf);
            }
        } else if io.data.count() > 0 {
            // What the volume brought.
            io.data.clear();
        }
        running.done.set(running.done.get() + 1);
        if io.status == IoStatus::Success {
            if let Some(latency) = &running.latency {
                latency.count(clock.now().saturating_sub(io.start));
            }
        } else {
            running.errors.set(running.errors.get() + 1);
            running.first_error.set(running.first_error.get().or(Some((op, io.offset, io.status))));
        }
    }
    reactor.retire_io(io);
    running.slot_ends(&reactor);
}
