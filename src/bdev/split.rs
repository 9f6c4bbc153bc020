//! Cuts I/Os larger than a device's limits into pieces that it takes.
//!
//! ```text
//!   parent  |<--------------- 160 KiB --------------->|      limits: 64 KiB, boundary 64 KiB
//!   pieces  |<- 32 ->|<---- 64 ---->|<---- 64 ---->|   some at a time, each an Io of a helper task
//!               ^ up to the boundary
//! ```
//! An I/O within the limits does not come here: [`Uncut`] tells it. The others wait for a helper task, of which there are a few;
//! a helper carves the parent's data, keeps some pieces in flight, and takes them back in order, so that the data is whole again
//! and the failure reported is the one at the lowest offset. No further piece starts after a failure. Pieces of a write to a zone are sent
//! one after another.
//!
//! A verify of a device that has none, or refuses it, is reads of its range, whose data is thrown away. Verifies have helpers of
//! their own: nothing else waits behind them.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use super::bounce::{Bounce, Bounces};
use super::contract::{Channel, DeviceError, DeviceLimits, Traits};
use super::steps::{Outstanding, WorkQueue};
use crate::limits::{SEGMENTS_MAX, SPLIT_CHILDREN, SPLIT_PARENTS, SPLIT_VERIFIES, TRANSFER_MAX, VERIFY_READ_MAX};
use crate::reactor::Reactor;
use crate::reactor::io::{Io, IoOp, IoStatus, Segment, Segments};

/// What surely lies within a device's limits: told by one compare and one mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Uncut {
    /// By operation: shorter I/Os are within the limits if they cross no boundary.
    pub(super) from: [u64; IoOp::ALL.len()],
    /// The bits of an offset that differ from one side of a boundary to the other.
    pub(super) section: u64,
}

impl Uncut {
    /// Of a device whose limits ask for nothing.
    pub(super) const ALL: Uncut = Uncut { from: [u64::MAX; IoOp::ALL.len()], section: 0 };

    /// Of a device with these traits.
    pub(super) fn of(traits: &Traits) -> Uncut {
        let DeviceLimits { transfer_max, zeroes_max, boundary, .. } = traits.limits;
        let verifies = verifies_all(traits);
        if transfer_max >= TRANSFER_MAX as u64 && zeroes_max == u64::MAX && verifies && boundary == 0 {
            return Uncut::ALL;
        }
        let (transfer_max, zeroes_max) = whole_max(traits);
        let from = IoOp::ALL.map(|op| match op {
            IoOp::Flush => u64::MAX,
            IoOp::Reset => 0,
            IoOp::Verify if verifies => u64::MAX,
            // Whether it is refused is known from its end.
            IoOp::Verify => 0,
            op if op.is_of_zones() || op.is_report() => u64::MAX,
            IoOp::Unmap | IoOp::WriteZeroes => zeroes_max.saturating_add(1),
            _ => transfer_max.saturating_add(1),
        });
        let section = match boundary {
            0 => 0,
            // Between other multiples there is no such bit: all are looked at.
            _ if !boundary.is_power_of_two() => u64::MAX,
            _ => !(boundary - 1),
        };
        Uncut { from, section }
    }

    /// Whether an I/O, of blocks that exist, is.
    #[inline]
    pub(super) fn has(&self, io: &Io) -> bool {
        io.len < self.from[io.op as usize] && !self.crosses(io.offset, io.len)
    }

    /// Whether a range may cross a boundary.
    #[inline]
    pub(super) fn crosses(&self, offset: u64, len: u64) -> bool {
        (offset ^ offset.wrapping_add(len).wrapping_sub(1)) & self.section != 0
    }
}

/// A channel for what may be beyond the limits of another one.
pub(super) struct Split {
    uncut: Uncut,
    splitter: Rc<Splitter>,
}

struct Splitter {
    reactor: Rc<Reactor>,
    /// The device's.
    name: String,
    below: Rc<Box<dyn Channel>>,
    transfer_max: u64,
    zeroes_max: u64,
    /// Largest verify, whole blocks; 0: the device gets reads.
    verify_max: u64,
    /// It has refused one: it gets reads from then on.
    refused: Cell<bool>,
    /// For these reads; `None` if the device verifies all by itself.
    bounces: Option<Rc<ReadBounces>>,
    compare_and_write_max: u64,
    boundary: u64,
    /// The device has zones: pieces of a write that passed each other would miss the write pointer.
    zoned: bool,
    /// What is to be cut.
    parents: WorkQueue,
    /// Verifies that are to be cut, or made of reads.
    verifies: WorkQueue,
    resets: WorkQueue,
    outstanding: Outstanding,
    /// Resets so far: no piece of a parent starts after one.
    reset_count: Cell<u64>,
    /// By helper: the parent it works on.
    working: RefCell<[Option<Working>; SPLIT_PARENTS + SPLIT_VERIFIES]>,
}

#[derive(Clone, Copy, Debug)]
struct Working {
    slot: u32,
    aborted: bool,
}

/// Where the reads of verifies go, on one reactor: its volumes share the buffer that is there when the pool has none.
struct ReadBounces(Bounces);

impl ReadBounces {
    /// `None`: no DMA memory.
    fn of(reactor: &Rc<Reactor>) -> Option<Rc<ReadBounces>> {
        if let Some(there) = reactor.service() {
            return Some(there);
        }
        let new = Rc::new(ReadBounces(Bounces::new(reactor, VERIFY_READ_MAX)?));
        reactor.set_service(new.clone());
        Some(new)
    }
}

/// Whether no verify of the device is cut to pieces, or made of reads.
fn verifies_all(traits: &Traits) -> bool {
    traits.limits.verify_max == u64::MAX || !traits.ops.has(IoOp::Verify)
}

/// Largest transfer and largest zeroing of a device: limits between two multiples of the block, and those below one block,
/// mean whole blocks.
fn whole_max(traits: &Traits) -> (u64, u64) {
    let block = u64::from(traits.block_size);
    let whole = |max: u64| (max / block * block).max(block);
    (whole(traits.limits.transfer_max), whole(traits.limits.zeroes_max))
}

impl Split {
    /// A channel for what may be beyond the limits of `below`, the channel of a device with these traits, which are as `uncut` says.
    ///
    /// # Errors
    /// If the reactor has no I/Os left for the helpers, or no memory for their reads.
    pub(super) fn open(
        reactor: &Rc<Reactor>,
        traits: &Traits,
        uncut: Uncut,
        below: Rc<Box<dyn Channel>>,
    ) -> Result<Split, DeviceError> {
        let (transfer_max, zeroes_max) = whole_max(traits);
        let refused = |why: String| DeviceError::Refused(format!("volume \"{}\": {why}", traits.name));
        let bounces = match verifies_all(traits) {
            true => None,
            false => Some(ReadBounces::of(reactor).ok_or_else(|| {
                refused("no DMA memory left for the reads of a verify: raise [memory] size".to_owned())
            })?),
        };
        let block = u64::from(traits.block_size);
        let splitter = Rc::new(Splitter {
            reactor: reactor.clone(),
            name: traits.name.clone(),
            below,
            transfer_max,
            zeroes_max,
            verify_max: traits.limits.verify_max / block * block,
            refused: Cell::new(false),
            bounces,
            compare_and_write_max: traits.limits.compare_and_write_max,
            boundary: traits.limits.boundary,
            zoned: traits.zones.is_some(),
            parents: WorkQueue::new(reactor),
            verifies: WorkQueue::new(reactor),
            resets: WorkQueue::new(reactor),
            outstanding: Outstanding::new(reactor),
            reset_count: Cell::new(0),
            working: RefCell::default(),
        });
        splitter.start_tasks().ok_or_else(|| refused(format!("all I/Os of reactor {} are taken", reactor.id())))?;
        Ok(Split { uncut, splitter })
    }

    /// Whether an I/O has to come here.
    #[inline]
    pub(super) fn takes(&self, io: &Io) -> bool {
        !self.uncut.has(io)
    }
}

impl Channel for Split {
    #[inline]
    fn submit(&self, io: Io) -> Poll<Io> {
        self.splitter.look(io)
    }

    fn abort(&self, io_slot: u32) -> bool {
        let Splitter { parents, verifies, .. } = &*self.splitter;
        if let Some(io) = parents.remove(io_slot).or_else(|| verifies.remove(io_slot)) {
            self.splitter.end(io.with_status(IoStatus::Aborted));
            return true;
        }
        if let Some(working) = self.splitter.working.borrow_mut().iter_mut().flatten().find(|w| w.slot == io_slot) {
            working.aborted = true;
            return true;
        }
        self.splitter.below.abort(io_slot)
    }
}

impl Drop for Split {
    fn drop(&mut self) {
        self.splitter.parents.close();
        self.splitter.verifies.close();
        self.splitter.resets.close();
    }
}

/// A piece on its way, in its place among those of its parent.
enum Place<F> {
    Empty,
    Running(F),
    Done(Io),
}

impl Splitter {
    fn start_tasks(self: &Rc<Self>) -> Option<()> {
        let helpers = SPLIT_PARENTS + if self.bounces.is_some() { SPLIT_VERIFIES } else { 0 };
        let mut ios = Vec::new();
        for _ in 0..helpers * SPLIT_CHILDREN + 1 {
            match self.reactor.create_io() {
                Some(io) => ios.push(io),
                None => {
                    ios.drain(..).for_each(|io| self.reactor.retire_io(io));
                    return None;
                }
            }
        }
        for helper in 0..helpers {
            let (this, children) = (self.clone(), ios.split_off(ios.len() - SPLIT_CHILDREN));
            self.reactor.spawn("split", async move { this.help(helper, children).await });
        }
        let (this, io) = (self.clone(), ios.pop()?);
        self.reactor.spawn("split resets", async move { this.reset(io).await });
        Some(())
    }

    /// The length of the piece at `offset` of an I/O that has `left` bytes to go.
    fn piece(&self, op: IoOp, offset: u64, left: u64) -> u64 {
        let max = match op {
            IoOp::Unmap | IoOp::WriteZeroes => self.zeroes_max,
            IoOp::Verify => self.verify_max,
            _ if self.boundary == 0 => self.transfer_max,
            _ => self.transfer_max.min(self.boundary - offset % self.boundary),
        };
        left.min(max)
    }

    #[cold]
    fn look(&self, mut io: Io) -> Poll<Io> {
        if io.op == IoOp::Reset {
            self.reset_count.set(self.reset_count.get() + 1);
            while let Some(io) = self.parents.take_waiting().or_else(|| self.verifies.take_waiting()) {
                self.end(io.with_status(IoStatus::Aborted));
            }
            self.resets.push(io);
            return Poll::Pending;
        }
        // An atomic write is within its own limit, or would not have come.
        let whole = io.atomic || io.op == IoOp::CompareAndWrite && io.len <= self.compare_and_write_max;
        if io.op == IoOp::Verify && self.bounces.is_some() {
            io.scratch = u64::from(self.outstanding.enter());
            self.verifies.push(io);
            return Poll::Pending;
        }
        // Reports and those of zones have no range that could be cut, or limits of their own.
        if whole || io.op.is_report() || io.op.is_of_zones() || self.piece(io.op, io.offset, io.len) == io.len {
            return self.below.submit(io);
        }
        if io.op == IoOp::CompareAndWrite {
            // In pieces it would not be one step.
            return Poll::Ready(io.with_status(IoStatus::Unsupported));
        }
        io.scratch = u64::from(self.outstanding.enter());
        self.parents.push(io);
        Poll::Pending
    }

    /// Ends an I/O that was to be cut.
    fn end(&self, io: Io) {
        self.outstanding.leave(io.scratch as u8);
        self.reactor.complete(io);
    }

    /// A helper's life: one parent after the other, until the channel goes.
    async fn help(&self, number: usize, mut children: Vec<Io>) {
        let work = if number < SPLIT_PARENTS { &self.parents } else { &self.verifies };
        while let Some(parent) = work.next().await {
            self.working.borrow_mut()[number] = Some(Working { slot: parent.slot(), aborted: false });
            let done = self.carry_out(parent, number, &mut children).await;
            self.working.borrow_mut()[number] = None;
            self.end(done);
        }
        children.drain(..).for_each(|io| self.reactor.retire_io(io));
    }

    /// Whether the parent of a helper may have no further piece.
    fn is_stopped(&self, number: usize, resets: u64) -> bool {
        resets != self.reset_count.get() || self.working.borrow()[number].is_some_and(|working| working.aborted)
    }

    fn start(&self, child: Io) -> impl Future<Output = Io> + Unpin + '_ {
        self.reactor.run_io(child, |io| self.below.submit(io))
    }

    /// Runs a parent and returns it finished, its data whole.
    async fn carry_out(&self, parent: Io, number: usize, children: &mut Vec<Io>) -> Io {
        let (op, resets) = (parent.op, self.reset_count.get());
        let by_reads = op == IoOp::Verify && (self.verify_max == 0 || self.refused.get());
        let done = self.in_pieces(parent, if by_reads { IoOp::Read } else { op }, (number, resets), children).await;
        if op != IoOp::Verify || by_reads || done.status != IoStatus::Unsupported {
            return done;
        }
        // There is less of it than was said, or no right to it.
        if !self.refused.replace(true) {
            let (reactor, name) = (self.reactor.id(), &self.name);
            tracing::info!(reactor, "volume \"{name}\" refuses a verify: its blocks are read from now on");
        }
        self.in_pieces(done.with_status(IoStatus::Success), IoOp::Read, (number, resets), children).await
    }

    /// Runs a parent in pieces, of which each is an `op`; none starts after a reset that `resets` does not count. A verify by reads has
    /// no data of its own: each gets a buffer.
    async fn in_pieces(&self, mut parent: Io, op: IoOp, (number, resets): (usize, u64), children: &mut Vec<Io>) -> Io {
        let (offset, len) = (parent.offset, parent.len);
        let bounces = self.bounces.as_ref().map(|bounces| &bounces.0).filter(|_| op != parent.op);
        let mut of_reserve = [false; SPLIT_CHILDREN];
        let mut carver = Carver::new(parent.data.take_all());
        let mut places = [const { Place::Empty }; SPLIT_CHILDREN];
        let (mut sent, mut oldest, mut newest) = (0, 0, 0);
        let one_by_one = self.zoned && op.moves_write_pointer();
        loop {
            while sent < len
                && !(one_by_one && oldest < newest)
                && parent.status == IoStatus::Success
                && !self.is_stopped(number, resets)
                && let Some(mut child) = children.pop()
            {
                let mut piece = self.piece(op, offset + sent, len - sent);
                let mut buf = None;
                if let Some(bounces) = bounces {
                    // One is waited for, and more are taken while there are.
                    let bounce = if oldest == newest { Some(bounces.take().await) } else { bounces.spare() };
                    let Some(Bounce { buf: mut target, reserve }) = bounce else {
                        children.push(child);
                        break;
                    };
                    if self.is_stopped(number, resets) {
                        bounces.give(Bounce { buf: target, reserve });
                        children.push(child);
                        break;
                    }
                    piece = piece.min(VERIFY_READ_MAX as u64);
                    target.set_len(piece as usize);
                    (buf, of_reserve[newest % SPLIT_CHILDREN]) = (Some(target), reserve);
                }
                child.prepare(op, offset + sent, piece);
                // Nothing comes of a late piece of a verify, which may take hours: it is as old as itself.
                let verifies = parent.op == IoOp::Verify;
                let start = if verifies { self.reactor.clock().stamp() } else { parent.start };
                (child.fua, child.class, child.trace, child.start) = (parent.fua, parent.class, parent.trace, start);
                match buf {
                    Some(buf) => child.data.push_buf(buf),
                    None => carver.carve(op.data_len(piece), &mut child.data),
                }
                places[newest % SPLIT_CHILDREN] = Place::Running(self.start(child));
                newest += 1;
                sent += piece;
            }
            if oldest == newest {
                break;
            }
            let mut child = poll_fn(|cx| {
                for place in &mut places {
                    if let Place::Running(future) = place
                        && let Poll::Ready(io) = Pin::new(future).poll(cx)
                    {
                        *place = Place::Done(io);
                    }
                }
                let first = &mut places[oldest % SPLIT_CHILDREN];
                match std::mem::replace(first, Place::Empty) {
                    Place::Done(io) => Poll::Ready(io),
                    other => {
                        *first = other;
                        Poll::Pending
                    }
                }
            })
            .await;
            let whole = match bounces {
                Some(bounces) => match child.data.pop() {
                    Some(Segment::Buf(buf)) => {
                        bounces.give(Bounce { buf, reserve: of_reserve[oldest % SPLIT_CHILDREN] });
                        true
                    }
                    _ => false,
                },
                None => carver.restore(&mut child.data),
            };
            oldest += 1;
            if !whole && child.status == IoStatus::Success {
                child.status = IoStatus::DeviceError;
            }
            if parent.status == IoStatus::Success && child.status != IoStatus::Success {
                parent.status = match child.status {
                    // By the pieces before: all of it would not have fitted.
                    IoStatus::ZoneFull if child.offset > offset => IoStatus::ZoneBoundary,
                    status => status,
                };
                if child.status == IoStatus::Miscompare {
                    parent.info = child.offset - offset + child.info;
                }
            }
            children.push(child);
        }
        if parent.status == IoStatus::Success && sent < len {
            parent.status = IoStatus::Aborted;
        }
        parent.data = carver.finish();
        parent
    }

    /// Carries out resets: the channel below ends what it has, then what was to be cut ends.
    async fn reset(&self, mut child: Io) {
        while let Some(io) = self.resets.next().await {
            child.prepare(IoOp::Reset, 0, 0);
            child = self.start(child).await;
            if let Poll::Ready(io) = self.outstanding.reset(io.with_status(child.status)) {
                self.reactor.complete(io);
            }
        }
        self.reactor.retire_io(child);
    }
}

/// Cuts the data of a parent for its pieces, from the front, and joins it again, in the same order.
struct Carver {
    source: Segments,
    /// The piece of `source` that is being cut.
    cutting: usize,
    whole: Segments,
    /// Lengths of the parent's segments.
    lens: [usize; SEGMENTS_MAX],
    /// The segment that is being joined, and how much of it is there.
    joining: usize,
    joined: usize,
}

impl Carver {
    fn new(source: Segments) -> Carver {
        let mut lens = [0; SEGMENTS_MAX];
        for (len, segment) in lens.iter_mut().zip(source.iter()) {
            *len = segment.len();
        }
        Carver { source, cutting: 0, whole: Segments::default(), lens, joining: 0, joined: 0 }
    }

    /// Moves the next `bytes` into `target`, which is empty. Data that the parent does not carry, its pieces do not.
    fn carve(&mut self, bytes: u64, target: &mut Segments) {
        let mut left = bytes as usize;
        while left > 0
            && let Some(segment) = self.source.take(self.cutting)
        {
            if segment.len() <= left {
                left -= segment.len();
                self.cutting += 1;
                target.push(segment);
            } else {
                let (front, rest) = cut(segment, left);
                left = 0;
                target.push(front);
                self.source.put_back(self.cutting, rest);
            }
        }
    }

    /// Takes pieces back; `false` if a device returned other data than it was given.
    fn restore(&mut self, data: &mut Segments) -> bool {
        let mut pieces = data.take_all();
        (0..pieces.count()).all(|index| pieces.take(index).is_some_and(|piece| self.append(piece)))
    }

    fn append(&mut self, piece: Segment) -> bool {
        let len = piece.len();
        if self.joining >= SEGMENTS_MAX || self.joined + len > self.lens[self.joining] {
            return false;
        }
        let joined = match self.joined {
            0 => piece,
            _ => match self.whole.pop().and_then(|front| join(front, piece)) {
                Some(joined) => joined,
                None => return false,
            },
        };
        self.whole.push(joined);
        self.joined += len;
        if self.joined == self.lens[self.joining] {
            self.joining += 1;
            self.joined = 0;
        }
        true
    }

    /// The data, whole again: what was cut and came back, and what never was.
    fn finish(mut self) -> Segments {
        for index in 0..self.source.count() {
            if let Some(rest) = self.source.take(index)
                && !self.append(rest)
            {
                break;
            }
        }
        self.whole
    }
}

fn cut(segment: Segment, at: usize) -> (Segment, Segment) {
    match segment {
        Segment::Buf(mut buf) => (Segment::Buf(buf.split_to(at)), Segment::Buf(buf)),
        Segment::Region { region, offset, len } => (
            Segment::Region { region: region.clone(), offset, len: at as u32 },
            Segment::Region { region, offset: offset + at as u64, len: len - at as u32 },
        ),
        Segment::Request(mut data) => (Segment::Request(data.split_to(at)), Segment::Request(data)),
    }
}

fn join(front: Segment, next: Segment) -> Option<Segment> {
    match (front, next) {
        (Segment::Buf(mut front), Segment::Buf(next)) => front.unsplit(next).ok().map(|()| Segment::Buf(front)),
        (Segment::Request(mut front), Segment::Request(next)) => {
            front.unsplit(next).ok().map(|()| Segment::Request(front))
        }
        (Segment::Region { region, offset, len }, Segment::Region { offset: next, len: more, .. })
            if offset + u64::from(len) == next =>
        {
            Some(Segment::Region { region, offset, len: len + more })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
