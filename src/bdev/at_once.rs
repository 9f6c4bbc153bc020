//! Channels of devices whose I/O ends within its submission, all but what has to wait for others: a contended compare and write or atomic
//! write, what touches the range of one, a reset behind these, and a report of extents, which may take a while.
//!
//! *Atomic writes* ([`IoCell::atomic`](crate::reactor::io::IoCell::atomic)): on one reactor each copy ends within a call, so a write is seen
//! whole as it is. While several have the device open, an atomic write holds its range on all of them, against reads too, until it has
//! been copied ([`crate::bdev::exclusion`]). A read pays a look at a flag of its own reactor for that, as a write does, and copies once; a
//! count of writes that every read compares before and after its copy would be memory that all reactors share, and fences, and
//! copies for nothing.
//!
//! Copies between a device and requests of the kernel's ([`Segment::Request`]) are calls into the kernel, from which a processor comes
//! back with its caches of code and branches cold. So those of many short requests that have arrived together wait until all of them
//! were taken, and then come one right after the other.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::task::Poll;

use hugepages::Region;

use super::exclusion::{Gate, Range, Resume};
use super::steps::{Outstanding, WorkQueue};
use super::{Channel, Common, DeviceError};
use crate::reactor::io::{Io, IoOp, IoStatus, Segment};
use crate::reactor::{Deferred, Reactor};

/// Largest unmap or write zeroes of memory done in one step: giving back that much populated memory takes 40 to 110 us of the reactor
/// (100 to 250 at worst), filling it with zeros 80 to 95; giving back what holds no memory 1 us.
pub const ZEROES_MAX: u64 = 1 << 20;

/// Compare and writes and atomic writes of one channel that wait for other reactors, and reports of extents, at a time.
const HELPERS: usize = 4;

/// From so many requests that arrive together their copies are made together. Of 64 a 4 KiB read through ublk then takes 77 ns beside its
/// copy instead of 117, a write 86 instead of 120; of 8 as long as without, and one alone, which would take 340 instead of 220, does not
/// wait.
const TOGETHER: usize = 16;

/// Longest request that waits for others: the longer one is, the less it gains, and the more all of them take at a time.
const TOGETHER_LEN: usize = 16 << 10;

/// In the scratch of an I/O, above the generation of [`Outstanding`]: it must not be carried out now.
const HELD: u64 = 1 << 8;

/// What a device that ends its I/O at once is on one reactor. An I/O succeeds unless this says otherwise in it.
pub trait AtOnce: 'static {
    /// Carries out a read.
    fn read(&self, io: &mut Io);
    /// Where a range is in memory, if it is.
    fn lend(&self, offset: u64) -> Option<(Region, usize)> {
        let _ = offset;
        None
    }
    /// Carries out a write, unmap or write zeroes.
    fn write(&self, io: &mut Io);
    /// Carries out a flush.
    fn flush(&self, io: &mut Io);
    /// Carries out a compare.
    fn compare(&self, io: &mut Io);
    /// Carries out a compare and write: nobody else writes the range meanwhile.
    fn compare_and_write(&self, io: &mut Io);

    /// Carries out a report of extents, on a helper task: other I/O goes on meanwhile. Of a device whose traits have it.
    fn extents(&self, io: &mut Io) -> impl Future<Output = ()> {
        io.status = IoStatus::Unsupported;
        std::future::ready(())
    }
}

/// The channel on `reactor` of a device that is carried out by `device` there.
///
/// # Errors
/// If its home is no reactor.
pub fn open(reactor: &Rc<Reactor>, common: &Common, device: impl AtOnce) -> Result<Box<dyn Channel>, DeviceError> {
    Gate::check_home(reactor, common)?;
    let inner = Rc::new_cyclic(|me: &Weak<Inner<_>>| Inner {
        me: me.clone(),
        reactor: reactor.clone(),
        device,
        collected: RefCell::default(),
        spare: RefCell::default(),
        gate: Gate::open(reactor, common, me.clone()),
        slow: WorkQueue::new(reactor),
        outstanding: Outstanding::new(reactor),
    });
    let traits = common.traits();
    // Nobody writes what is read-only, so nothing has to be excluded.
    let helpers = if traits.read_only && !traits.ops.has(IoOp::Extents) { 0 } else { HELPERS };
    for _ in 0..helpers {
        let inner = inner.clone();
        reactor.spawn("at once, later", async move {
            while let Some(mut io) = inner.slow.next().await {
                if io.op == IoOp::Extents {
                    inner.device.extents(&mut io).await;
                    inner.end(io);
                    continue;
                }
                if io.op == IoOp::Write {
                    let grant = inner.gate.acquire_from_all(Range::of(&io)).await;
                    inner.device.write(&mut io);
                    drop(grant);
                } else {
                    let grant = inner.gate.acquire(Range::of(&io)).await;
                    inner.device.compare_and_write(&mut io);
                    drop(grant);
                }
                inner.end(io);
            }
        });
    }
    Ok(Box::new(AtOnceChannel(inner)))
}

struct AtOnceChannel<D: AtOnce>(Rc<Inner<D>>);

struct Inner<D> {
    me: Weak<Inner<D>>,
    reactor: Rc<Reactor>,
    device: D,
    /// I/Os on requests that wait for the others of this turn.
    collected: RefCell<Vec<Io>>,
    /// The other list of the two that take turns, empty but while one is carried out.
    spare: RefCell<Vec<Io>>,
    gate: Rc<Gate>,
    /// What helpers carry out.
    slow: WorkQueue,
    /// What did not end within its submission.
    outstanding: Outstanding,
}

impl<D: AtOnce> Channel for AtOnceChannel<D> {
    #[inline]
    fn submit(&self, mut io: Io) -> Poll<Io> {
        let inner = &*self.0;
        if inner.reactor.arrived() >= TOGETHER
            && let Some(Segment::Request(request)) = io.data.sole()
            && request.len() <= TOGETHER_LEN
            && !io.atomic
        {
            return inner.collect(io);
        }
        match io.op {
            IoOp::Read => {
                if !inner.gate.may_read(Range::of(&io)) {
                    return inner.wait(io, |io| inner.gate.hold_back(io));
                }
                inner.device.read(&mut io);
            }
            IoOp::Write if io.atomic => {
                if !inner.gate.is_exclusive_now(Range::of(&io)) {
                    return inner.wait(io, |io| inner.slow.push(io));
                }
                inner.device.write(&mut io);
            }
            IoOp::Write | IoOp::Unmap | IoOp::WriteZeroes => {
                if !inner.gate.may_write(Range::of(&io)) {
                    return inner.wait(io, |io| inner.gate.hold_back(io));
                }
                inner.device.write(&mut io);
            }
            IoOp::Flush => inner.device.flush(&mut io),
            IoOp::Compare => {
                if !inner.gate.may_read(Range::of(&io)) {
                    return inner.wait(io, |io| inner.gate.hold_back(io));
                }
                inner.device.compare(&mut io);
            }
            // Only to memory that nothing but its range can keep from being read: the others see reads.
            IoOp::Verify => {}
            IoOp::CompareAndWrite => {
                if !inner.gate.is_exclusive_now(Range::of(&io)) {
                    return inner.wait(io, |io| inner.slow.push(io));
                }
                inner.device.compare_and_write(&mut io);
            }
            IoOp::Extents => return inner.wait(io, |io| inner.slow.push(io)),
            IoOp::Reset => {
                inner.abort_held();
                return inner.outstanding.reset(io);
            }
            IoOp::ZoneAppend
            | IoOp::ZoneOpen
            | IoOp::ZoneClose
            | IoOp::ZoneFinish
            | IoOp::ZoneReset
            | IoOp::ZoneReport => io.status = IoStatus::Unsupported,
        }
        Poll::Ready(io)
    }

    fn lend(&self, offset: u64, len: u64) -> Option<(Region, usize)> {
        if self.0.gate.may_read(Range { offset, len }) { self.0.device.lend(offset) } else { None }
    }
}

impl<D: AtOnce> Drop for AtOnceChannel<D> {
    fn drop(&mut self) {
        self.0.slow.close();
        // What is collected would go on to the gate, from where nobody takes it any more.
        for io in self.0.collected.take() {
            self.0.end(io.with_status(IoStatus::Aborted));
        }
        self.0.abort_held();
    }
}

impl<D: AtOnce> Deferred for Inner<D> {
    fn name(&self) -> &'static str {
        "copies of requests"
    }

    fn run(&self) {
        let mut all = self.collected.replace(self.spare.take());
        for io in &mut all {
            match io.op {
                IoOp::Read if self.gate.may_read(Range::of(io)) => self.device.read(io),
                IoOp::Read => io.scratch |= HELD,
                _ if self.gate.may_write(Range::of(io)) => self.device.write(io),
                _ => io.scratch |= HELD,
            }
        }
        for mut io in all.drain(..) {
            if io.scratch & HELD == 0 {
                self.end(io);
            } else {
                io.scratch &= !HELD;
                self.gate.hold_back(io);
            }
        }
        self.spare.replace(all);
    }
}

impl<D: AtOnce> Resume for Inner<D> {
    fn resume(&self, mut io: Io) {
        match io.op {
            IoOp::Read => self.device.read(&mut io),
            IoOp::Compare => self.device.compare(&mut io),
            _ => self.device.write(&mut io),
        }
        self.end(io);
    }
}

impl<D: AtOnce> Inner<D> {
    /// Leaves an I/O to [`Deferred::run`].
    #[inline]
    fn collect(&self, io: Io) -> Poll<Io> {
        self.wait(io, |io| {
            let mut collected = self.collected.borrow_mut();
            if collected.is_empty()
                && let Some(me) = self.me.upgrade()
            {
                self.reactor.defer(me);
            }
            collected.push(io);
        })
    }

    #[inline]
    fn wait(&self, mut io: Io, queue: impl FnOnce(Io)) -> Poll<Io> {
        io.scratch = u64::from(self.outstanding.enter());
        queue(io);
        Poll::Pending
    }

    fn end(&self, io: Io) {
        self.outstanding.leave(io.scratch as u8);
        self.reactor.complete(io);
    }

    fn abort_held(&self) {
        while let Some(io) = self.gate.take_waiting() {
            self.end(io.with_status(IoStatus::Aborted));
        }
    }
}
