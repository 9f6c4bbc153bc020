//! A load generator: some number of I/Os on one reactor, each submitted anew when it comes back.
//!
//! It stands on a volume as a layer does, without a task for each I/O: what is measured is the volume.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::Poll;

use hdrhistogram::Histogram;
use hugepages::{Buf, footprint};

use super::handle::Handle;
use super::stats::{Latencies, empty_histogram, percentiles};
use crate::limits::READY_BUDGET;
use crate::reactor::io::{Frame, Io, IoOp, IoStatus, Segment};
use crate::reactor::{Layer, Reactor, TaskId};

/// Something that takes reads and writes: an opened device, or a queue of a remote namespace.
pub trait Volume: 'static {
    /// Carries out a read or write whose data, if it has any, is in buffers; as [`super::Channel::submit`].
    fn submit(&self, io: Io) -> Poll<Io>;
    /// An I/O of [`Volume::submit`] has ended.
    fn completed(&self, _: &Io) {}
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
    #[inline]
    fn submit(&self, io: Io) -> Poll<Io> {
        Handle::submit(self, io)
    }

    #[inline]
    fn completed(&self, io: &Io) {
        self.record(io);
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

impl Pattern {
    /// Whether some of its I/Os read.
    fn reads(self) -> bool {
        matches!(self, Pattern::Read | Pattern::RandRead | Pattern::RandRw)
    }

    /// Whether some of its I/Os write.
    fn writes(self) -> bool {
        matches!(self, Pattern::Write | Pattern::RandWrite | Pattern::RandRw)
    }
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

struct Load<V> {
    reactor: Rc<Reactor>,
    volume: Rc<V>,
    /// This layer's number.
    layer: Cell<u32>,
    /// If it is not mixed.
    op: IoOp,
    mixed: bool,
    random: bool,
    block: u64,
    blocks: u64,
    reads_need: bool,
    writes_need: bool,
    /// Data of I/Os in flight that need none.
    spare: RefCell<Vec<Buf>>,
    /// The next block, if they go in order.
    next: Cell<u64>,
    deadline: u64,
    stop: Rc<Cell<bool>>,
    /// I/Os completed, for whoever shows progress.
    done: Rc<Cell<u64>>,
    errors: Cell<u64>,
    first_error: Cell<Option<(IoOp, u64, IoStatus)>>,
    /// If the volume counts none.
    latency: Option<Latencies>,
    alive: Cell<usize>,
    waiter: TaskId,
}

/// Bytes of the reactor's pool that a job takes on a volume.
pub fn memory<V: Volume>(volume: &V, job: Job) -> usize {
    let needed =
        job.pattern.reads() && volume.needs_data(IoOp::Read) || job.pattern.writes() && volume.needs_data(IoOp::Write);
    if needed { job.depth * footprint(job.block) } else { 0 }
}

/// Runs a job to its end, or until `stop` is set. `done` counts I/Os as they complete, for whoever shows progress; no
/// other job may count there meanwhile, since the outcome has what it grew by.
///
/// Must be called from a task of `reactor`, whose pool has [`memory`], and awaited to its end.
pub async fn run<V: Volume>(
    reactor: &Rc<Reactor>,
    volume: Rc<V>,
    job: Job,
    stop: Rc<Cell<bool>>,
    done: Rc<Cell<u64>>,
) -> Outcome {
    let (reads_need, writes_need) = (volume.needs_data(IoOp::Read), volume.needs_data(IoOp::Write));
    let mut spare = Vec::with_capacity(job.depth);
    if memory(&*volume, job) > 0 {
        for _ in 0..job.depth {
            let mut buf = reactor.buffer(job.block).await;
            for (i, byte) in buf.iter_mut().enumerate() {
                *byte = (i / 7) as u8 ^ reactor.entropy().next() as u8;
            }
            spare.push(buf);
            // A megabyte takes its time.
            reactor.yield_now().await;
        }
    }
    let started = reactor.clock().refresh();
    let (before, done_before) = (volume.latencies(), done.get());
    let load = Rc::new(Load {
        reactor: reactor.clone(),
        volume: volume.clone(),
        layer: Cell::new(0),
        op: if job.pattern.reads() { IoOp::Read } else { IoOp::Write },
        mixed: job.pattern == Pattern::RandRw,
        random: !matches!(job.pattern, Pattern::Read | Pattern::Write),
        block: job.block as u64,
        blocks: (volume.size() / job.block as u64).max(1),
        reads_need,
        writes_need,
        spare: RefCell::new(spare),
        next: Cell::new(0),
        deadline: started + job.ns,
        stop,
        done,
        errors: Cell::new(0),
        first_error: Cell::new(None),
        latency: before.is_none().then(Latencies::default),
        alive: Cell::new(0),
        waiter: reactor.current_task(),
    });
    load.layer.set(reactor.add_layer(load.clone()));
    for _ in 0..job.depth {
        if let Some(io) = reactor.create_io() {
            load.alive.set(load.alive.get() + 1);
            load.begin(io);
        }
    }
    std::future::poll_fn(|_| if load.alive.get() == 0 { Poll::Ready(()) } else { Poll::Pending }).await;
    reactor.remove_layer(load.layer.get());
    let mut outcome = Outcome::empty();
    outcome.ns = reactor.clock().refresh() - started;
    outcome.ios = load.done.get() - done_before;
    outcome.errors = load.errors.get();
    outcome.first_error = load.first_error.get();
    match (&load.latency, volume.latencies().zip(before)) {
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

impl<V: Volume> Layer for Load<V> {
    #[inline]
    fn completed(&self, io: Io, _: Frame) -> Poll<Io> {
        self.ended(&io);
        self.keep_busy(io);
        Poll::Pending
    }
}

impl<V: Volume> Load<V> {
    /// Submits `io` again and again, for as long as it ends within its submission.
    #[inline(always)]
    fn keep_busy(&self, mut io: Io) {
        let mut budget = READY_BUDGET;
        while self.reactor.clock().now() < self.deadline && !self.stop.get() {
            self.prepare(&mut io);
            io.push_frame(self.layer.get(), Frame::default());
            match self.volume.submit(io) {
                Poll::Pending => return,
                // Others first: it comes back in the next turn.
                Poll::Ready(back) if budget == 0 => return self.reactor.complete(back),
                Poll::Ready(back) => io = back,
            }
            budget -= 1;
            io.pop_frame();
            self.ended(&io);
        }
        self.retire(io);
    }

    // Out of line here, so that it is not in `Layer::completed`, which is to have it without a call.
    #[inline(never)]
    fn begin(&self, io: Io) {
        self.keep_busy(io);
    }

    #[inline]
    fn needs(&self, op: IoOp) -> bool {
        if op == IoOp::Read { self.reads_need } else { self.writes_need }
    }

    /// Makes `io` the next request, with data if it needs any.
    #[inline]
    fn prepare(&self, io: &mut Io) {
        let entropy = self.reactor.entropy();
        let op = match self.mixed {
            false => self.op,
            true if entropy.below(100) < 70 => IoOp::Read,
            true => IoOp::Write,
        };
        let index = if self.random {
            entropy.below(self.blocks)
        } else {
            let next = self.next.get();
            self.next.set(if next + 1 == self.blocks { 0 } else { next + 1 });
            next
        };
        let needs = self.needs(op);
        if io.data.count() > 0 && !(needs && self.needs(io.op)) {
            self.set_aside(io);
        }
        if needs
            && io.data.count() == 0
            && let Some(buf) = self.spare.borrow_mut().pop()
        {
            io.data.push_buf(buf);
        }
        io.prepare(op, index * self.block, self.block);
    }

    /// Takes the data from an I/O that ended: its own is kept for another, what the volume brought goes home.
    #[inline(never)]
    fn set_aside(&self, io: &mut Io) {
        if self.needs(io.op)
            && let Some(Segment::Buf(buf)) = io.data.pop()
        {
            self.spare.borrow_mut().push(buf);
        }
        io.data.clear();
    }

    #[inline(always)]
    fn ended(&self, io: &Io) {
        self.volume.completed(io);
        self.done.set(self.done.get() + 1);
        if io.status != IoStatus::Success {
            self.errors.set(self.errors.get() + 1);
            self.first_error.set(self.first_error.get().or(Some((io.op, io.offset, io.status))));
        } else if let Some(latency) = &self.latency {
            latency.count(self.reactor.clock().now().saturating_sub(io.start));
        }
    }

    fn retire(&self, io: Io) {
        self.reactor.retire_io(io);
        self.alive.set(self.alive.get() - 1);
        if self.alive.get() == 0 {
            self.reactor.wake(self.waiter);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::start::solo;

    const BLOCK: usize = 4096;

    /// A volume that looks at what it is given.
    struct Witness {
        reactor: Rc<Reactor>,
        /// Ends I/Os within their submission.
        at_once: bool,
        status: IoStatus,
        /// Gives reads their data, as a queue of a remote namespace does.
        brings: bool,
        taken: [Cell<u64>; 2],
        ended: Cell<u64>,
        in_flight_max: Cell<u64>,
    }

    impl Witness {
        fn new(reactor: &Rc<Reactor>, at_once: bool, status: IoStatus, brings: bool) -> Witness {
            let reactor = reactor.clone();
            let (taken, ended, in_flight_max) = Default::default();
            Witness { reactor, at_once, status, brings, taken, ended, in_flight_max }
        }
    }

    impl Volume for Witness {
        fn submit(&self, io: Io) -> Poll<Io> {
            let mut io = io.with_status(self.status);
            let kind = &self.taken[usize::from(io.op == IoOp::Write)];
            kind.set(kind.get() + 1);
            let taken: u64 = self.taken.iter().map(Cell::get).sum();
            self.in_flight_max.set(self.in_flight_max.get().max(taken - self.ended.get()));
            assert!(io.len == BLOCK as u64 && io.offset + io.len <= self.size(), "{io:?}");
            if self.needs_data(io.op) {
                assert_eq!(io.data.single_buf().map(|buf| buf.len()), Some(BLOCK), "{io:?}");
            } else {
                assert_eq!(io.data.count(), 0, "{io:?} comes with data that it is to be given");
                io.data.push_buf(self.reactor.pool().alloc(BLOCK).unwrap());
            }
            if self.at_once {
                return Poll::Ready(io);
            }
            self.reactor.complete(io);
            Poll::Pending
        }

        fn completed(&self, io: &Io) {
            assert_eq!(io.status, self.status);
            self.ended.set(self.ended.get() + 1);
        }

        fn size(&self) -> u64 {
            7 * BLOCK as u64
        }

        fn needs_data(&self, op: IoOp) -> bool {
            !(self.brings && op == IoOp::Read)
        }
    }

    fn witnessed(pattern: Pattern, at_once: bool, status: IoStatus, brings: bool) {
        let reactor = solo(32 << 20).unwrap();
        let volume = Rc::new(Witness::new(&reactor, at_once, status, brings));
        let job = Job { pattern, block: BLOCK, depth: 5, ns: 3_000_000 };
        let what = format!("{pattern:?}, at once {at_once}, {status:?}, brings {brings}");
        let others = Rc::new(Cell::new(0));
        let (here, load, seen) = (reactor.clone(), volume.clone(), others.clone());
        let outcome = reactor.run_until(async move {
            let (ticking, ticks) = (here.clone(), seen.clone());
            here.spawn("others", async move {
                for _ in 0..100 {
                    ticking.yield_now().await;
                    ticks.set(ticks.get() + 1);
                }
            });
            run(&here, load, job, Rc::default(), Rc::default()).await
        });
        let [reads, writes] = volume.taken.each_ref().map(Cell::get);
        assert_eq!((outcome.ios, volume.ended.get()), (reads + writes, reads + writes), "{what}");
        assert_eq!(outcome.errors, if status == IoStatus::Success { 0 } else { outcome.ios }, "{what}");
        assert_eq!(outcome.first_error.map(|(_, _, status)| status), (outcome.errors > 0).then_some(status), "{what}");
        assert_eq!(outcome.latency.len(), outcome.ios - outcome.errors, "{what}");
        assert_eq!((reads > 0, writes > 0), (pattern.reads(), pattern.writes()), "{what}");
        assert_eq!(volume.in_flight_max.get(), 5, "{what}");
        assert!(others.get() > 10, "{what}: another task had {} turns", others.get());
        assert_eq!(reactor.ios_in_use(), 0, "{what}");
        drop(volume);
        assert_eq!(reactor.shut_down(), 0, "{what}: buffers are still out");
    }

    #[test]
    fn every_io_comes_back_once_with_its_data() {
        for pattern in [Pattern::Read, Pattern::Write, Pattern::RandRead, Pattern::RandWrite, Pattern::RandRw] {
            for at_once in [true, false] {
                for brings in [true, false] {
                    witnessed(pattern, at_once, IoStatus::Success, brings);
                    witnessed(pattern, at_once, IoStatus::MediaError, brings);
                }
            }
        }
    }

    #[test]
    fn a_job_says_what_memory_it_takes() {
        let reactor = solo(32 << 20).unwrap();
        let volume = Witness::new(&reactor, true, IoStatus::Success, true);
        let job = |pattern| Job { pattern, block: 3 * BLOCK, depth: 4, ns: 0 };
        assert_eq!(memory(&volume, job(Pattern::RandRead)), 0);
        assert_eq!(memory(&volume, job(Pattern::RandRw)), 4 * footprint(3 * BLOCK));
        assert_eq!(memory(&volume, job(Pattern::Write)), 4 * footprint(3 * BLOCK));
    }
}
