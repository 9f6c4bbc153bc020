//! The channel: what goes straight to the ring, and what comes back from it.

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::Poll;

use hugepages::Buf;

use super::holes::Holes;
use super::{BOUNCE_LEN, Geometry, Health};
use crate::bdev::bounce::Bounces;
use crate::bdev::exclusion::{Gate, Range, Resume, Ticket};
use crate::bdev::scatter;
use crate::bdev::steps::{Outstanding, WorkQueue};
use crate::bdev::{Channel, Common, DeviceError};
use crate::reactor::io::{Io, IoCell, IoOp, IoStatus, IoToken, Segment};
use crate::reactor::{Reactor, Sink};
use crate::sys::descriptor::Descriptor;
use crate::sys::op::{Completion, FileId, Op, Owner, Payload};

/// Helpers for I/Os that hold nothing up: compares, zeroing, what came back short.
const PLAIN_HELPERS: usize = 4;
/// Helpers for I/Os that must be alone on their range. Apart from the others: these wait for admitted I/Os to end.
const EXCLUSIVE_HELPERS: usize = 4;

/// Number of an operation on a bounce buffer that stands for all segments.
const WHOLE: u8 = 0xFF;

/// What the channel keeps in the scratch of an I/O that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scratch {
    /// Operations in flight.
    left: u8,
    /// Of [`Outstanding`].
    generation: u8,
    /// An operation did less than it was asked.
    short: bool,
    /// `ticket` is one.
    admitted: bool,
    ticket: u32,
}

impl Scratch {
    #[inline]
    fn of(io: &IoCell) -> Scratch {
        let bits = io.scratch;
        Scratch {
            left: bits as u8,
            generation: (bits >> 8) as u8,
            short: bits & 1 << 16 != 0,
            admitted: bits & 1 << 17 != 0,
            ticket: (bits >> 32) as u32,
        }
    }

    #[inline]
    fn store(self, io: &mut IoCell) {
        io.scratch = u64::from(self.left)
            | u64::from(self.generation) << 8
            | u64::from(self.short) << 16
            | u64::from(self.admitted) << 17
            | u64::from(self.ticket) << 32;
    }
}

pub(super) struct FileChannel(Rc<Inner>);

/// The channel's insides, which stay until the last I/O has ended.
pub(super) struct Inner {
    pub(super) reactor: Rc<Reactor>,
    pub(super) file: FileId,
    sink: Cell<u32>,
    pub(super) geometry: Geometry,
    pub(super) health: Arc<Health>,
    pub(super) common: Common,
    pub(super) holes: Option<Holes>,
    pub(super) gate: Rc<Gate>,
    outstanding: Outstanding,
    plain: WorkQueue,
    exclusive: WorkQueue,
    pub(super) bounces: Bounces,
    /// Whether fallocate has not refused to punch holes, and to zero ranges.
    pub(super) can_punch: Cell<bool>,
    pub(super) can_zero: Cell<bool>,
    closing: Cell<bool>,
    closed: Cell<bool>,
}

/// What an errno of a read, write or sync means to the block layer.
pub(super) fn status_of(errno: i32) -> IoStatus {
    match errno {
        libc::ENOSPC | libc::EDQUOT | libc::EFBIG => IoStatus::NoSpace,
        libc::EIO | libc::EBADMSG | libc::EILSEQ | libc::ENODATA | libc::EUCLEAN => IoStatus::MediaError,
        libc::EROFS => IoStatus::ReadOnly,
        libc::ECANCELED => IoStatus::Aborted,
        _ => IoStatus::DeviceError,
    }
}

/// Errnos that say to try again.
pub(super) fn is_transient(errno: i32) -> bool {
    matches!(errno, libc::EAGAIN | libc::EINTR)
}

impl FileChannel {
    pub(super) fn open(
        reactor: &Rc<Reactor>,
        common: &Common,
        descriptor: Descriptor,
        geometry: Geometry,
        health: &Arc<Health>,
        holes: Option<Holes>,
    ) -> Result<FileChannel, DeviceError> {
        Gate::check_home(reactor, common)?;
        let bounces = Bounces::new(reactor, BOUNCE_LEN).ok_or_else(|| {
            DeviceError::Refused(format!(
                "volume \"{}\": no DMA memory left for its bounce buffer: raise [memory] size",
                common.traits().name
            ))
        })?;
        let inner = Rc::new_cyclic(|me: &Weak<Inner>| Inner {
            reactor: reactor.clone(),
            file: reactor.add_file(descriptor),
            sink: Cell::new(0),
            geometry,
            health: health.clone(),
            common: common.clone(),
            holes,
            gate: Gate::open(reactor, common, me.clone()),
            outstanding: Outstanding::new(reactor),
            plain: WorkQueue::new(reactor),
            exclusive: WorkQueue::new(reactor),
            bounces,
            can_punch: Cell::new(true),
            can_zero: Cell::new(true),
            closing: Cell::new(false),
            closed: Cell::new(false),
        });
        inner.sink.set(reactor.add_sink("file", inner.clone()));
        for _ in 0..PLAIN_HELPERS {
            let inner = inner.clone();
            reactor.spawn("file helper", async move {
                while let Some(mut io) = inner.plain.next().await {
                    inner.carry_out(&mut io).await;
                    inner.end(io);
                }
            });
        }
        for _ in 0..EXCLUSIVE_HELPERS {
            let inner = inner.clone();
            reactor.spawn("file helper", async move {
                while let Some(mut io) = inner.exclusive.next().await {
                    let grant = inner.gate.acquire(inner.units(Range::of(&io))).await;
                    inner.carry_out(&mut io).await;
                    drop(grant);
                    inner.end(io);
                }
            });
        }
        Ok(FileChannel(inner))
    }
}

impl Channel for FileChannel {
    #[inline]
    fn submit(&self, mut io: Io) -> Poll<Io> {
        let inner = &*self.0;
        if io.op == IoOp::Reset {
            inner.abort_waiting();
            return inner.outstanding.reset(io);
        }
        let generation = inner.outstanding.enter();
        Scratch { left: 0, generation, short: false, admitted: false, ticket: 0 }.store(&mut io);
        inner.start(io);
        Poll::Pending
    }
}

impl Drop for FileChannel {
    fn drop(&mut self) {
        let inner = &*self.0;
        inner.closing.set(true);
        inner.abort_waiting();
        inner.plain.close();
        inner.exclusive.close();
        inner.close_if_done();
    }
}

impl Resume for Inner {
    fn resume(&self, io: Io) {
        self.start(io);
    }
}

impl Inner {
    /// The range in whole units of direct I/O.
    pub(super) fn units(&self, range: Range) -> Range {
        let unit = u64::from(self.geometry.unit);
        let offset = range.offset & !(unit - 1);
        let end = (range.offset + range.len).next_multiple_of(unit);
        Range { offset, len: end - offset }
    }

    #[inline]
    fn is_whole_units(&self, io: &Io) -> bool {
        (io.offset | io.len) & u64::from(self.geometry.unit - 1) == 0
    }

    #[inline]
    fn start(&self, mut io: Io) {
        match io.op {
            IoOp::Read if self.is_whole_units(&io) => self.transfer(io),
            IoOp::Read | IoOp::Compare | IoOp::Extents => self.plain.push(io),
            IoOp::CompareAndWrite => self.exclusive.push(io),
            IoOp::Write | IoOp::Unmap | IoOp::WriteZeroes if !self.is_whole_units(&io) => self.exclusive.push(io),
            IoOp::Write | IoOp::Unmap | IoOp::WriteZeroes => {
                let Some(ticket) = self.gate.admit(Range::of(&io)) else {
                    return self.gate.hold_back(io);
                };
                Scratch { admitted: true, ticket: ticket.to_bits(), ..Scratch::of(&io) }.store(&mut io);
                if io.op == IoOp::Write { self.transfer(io) } else { self.plain.push(io) }
            }
            IoOp::Flush if self.health.sync_failed() => self.end(io.with_status(IoStatus::MediaError)),
            IoOp::Flush => {
                Scratch { left: 1, ..Scratch::of(&io) }.store(&mut io);
                let token = self.reactor.park(io);
                self.submit(Op::Sync { file: self.file }, token, WHOLE);
            }
            op => unreachable!("{op:?} never waits here, nor is it of a file"),
        }
    }

    #[inline]
    fn submit(&self, op: Op, token: IoToken, number: u8) {
        self.reactor.submit_op(op, Owner { sink: self.sink.get(), tag: token.to_tag(number) });
    }

    /// Whether a segment can be given to the kernel as it is.
    #[inline]
    fn is_direct(&self, segment: &Segment) -> bool {
        let (memory, unit) = (self.geometry.memory as usize - 1, self.geometry.unit as usize - 1);
        match segment {
            Segment::Buf(buf) => buf.address() & memory == 0 && buf.len() & unit == 0 && !buf.is_empty(),
            // Where the pages lie is the kernel's to know: it was told what addresses must be multiples of.
            Segment::Request(data) => data.is_registered() && data.len() & unit == 0 && !data.is_empty(),
            Segment::Region { .. } => false,
        }
    }

    /// A read or an admitted write of whole units: one operation per segment, or one on a bounce buffer.
    #[inline]
    fn transfer(&self, mut io: Io) {
        let write = (io.op == IoOp::Write).then_some(io.fua);
        let (mut offset, count) = (io.offset, io.data.count());
        if !io.data.iter().all(|segment| self.is_direct(segment)) {
            return self.transfer_bounced(io);
        }
        Scratch { left: count as u8, ..Scratch::of(&io) }.store(&mut io);
        let mut first = io.data.take(0);
        let token = self.reactor.park(io);
        for number in 0..count {
            let segment = match first.take() {
                Some(segment) => Some(segment),
                None => self.reactor.with_parked(token, |cell| cell.data.take(number)).flatten(),
            };
            let at = offset;
            let op = match segment {
                Some(Segment::Buf(buf)) => {
                    offset += buf.len() as u64;
                    self.op_on(buf, at, write)
                }
                Some(Segment::Request(data)) => {
                    offset += data.len() as u64;
                    let file = self.file;
                    match write {
                        Some(durable) => Op::WriteRequest { file, offset: at, data, durable },
                        None => Op::ReadRequest { file, offset: at, data },
                    }
                }
                _ => unreachable!("looked, and the I/O is parked here"),
            };
            self.submit(op, token, number as u8);
        }
    }

    #[inline]
    fn op_on(&self, buf: Buf, offset: u64, write: Option<bool>) -> Op {
        match write {
            Some(durable) => Op::Write { file: self.file, offset, buf, durable },
            None => Op::Read { file: self.file, offset, buf },
        }
    }

    fn transfer_bounced(&self, mut io: Io) {
        let Some(mut bounce) = self.reactor.pool().alloc(io.len as usize) else {
            return self.plain.push(io);
        };
        let write = (io.op == IoOp::Write).then_some(io.fua);
        if write.is_some()
            && let Err(status) = scatter::gather(&io.data, 0, &mut bounce)
        {
            return self.end(io.with_status(status));
        }
        Scratch { left: 1, ..Scratch::of(&io) }.store(&mut io);
        let offset = io.offset;
        let token = self.reactor.park(io);
        self.submit(self.op_on(bounce, offset, write), token, WHOLE);
    }

    /// What a failed operation means, for the I/O and for the whole volume.
    pub(super) fn fails(&self, op: IoOp, durable: bool, errno: i32) -> IoStatus {
        let status = status_of(errno);
        // A durable write syncs too, and takes away the kernel's only report of what was lost in the page cache. Without that cache
        // a refusal for want of space comes before anything is written.
        let syncs = op == IoOp::Flush || durable && !(self.geometry.direct && status == IoStatus::NoSpace);
        if syncs && status != IoStatus::Aborted {
            self.health.fail_sync();
        }
        status
    }

    /// An I/O that came back from the ring as a whole.
    #[inline]
    fn landed(&self, io: Io) {
        if Scratch::of(&io).short && io.status == IoStatus::Success {
            // Done once more from the start, step by step: the same bytes to or from the same place.
            return self.plain.push(io);
        }
        self.end(io);
    }

    /// The terminal completion of every I/O but a reset.
    #[inline]
    pub(super) fn end(&self, mut io: Io) {
        let scratch = Scratch::of(&io);
        if scratch.admitted {
            self.gate.done(Ticket::from_bits(scratch.ticket));
        }
        if io.status != IoStatus::Success && io.op == IoOp::Read {
            // Part of it may have been filled: nothing of that is anybody's answer.
            scatter::clear(&mut io.data);
        }
        self.outstanding.leave(scratch.generation);
        self.reactor.complete(io);
        if self.closing.get() {
            self.close_if_done();
        }
    }

    fn abort_waiting(&self) {
        while let Some(io) = self.gate.take_waiting().or_else(|| self.exclusive.take_waiting()) {
            self.end(io.with_status(IoStatus::Aborted));
        }
    }

    fn close_if_done(&self) {
        if self.outstanding.is_empty() && !self.closed.replace(true) {
            self.reactor.remove_sink(self.sink.get());
            self.reactor.remove_file(self.file);
        }
    }
}

impl Sink for Inner {
    fn completed(&self, tag: u64, completion: Completion) {
        let (token, number) = IoToken::from_tag(tag);
        let last = self.reactor.with_parked(token, |cell| {
            let mut scratch = Scratch::of(cell);
            scratch.left -= 1;
            // Pages of a request that direct I/O does not take: they are copied.
            let unaligned = matches!(completion.payload, Payload::Request(_));
            match completion.payload {
                Payload::Buf(buf) => {
                    scratch.short |= completion.result >= 0 && completion.result as usize != buf.len();
                    if number != WHOLE {
                        cell.data.put_back(usize::from(number), Segment::Buf(buf));
                    } else if cell.op == IoOp::Read
                        && completion.result as usize == buf.len()
                        && let Err(status) = scatter::scatter(&mut cell.data, 0, &buf)
                    {
                        cell.status = status;
                    }
                }
                Payload::Request(data) => {
                    scratch.short |= completion.result >= 0 && completion.result as usize != data.len();
                    cell.data.put_back(usize::from(number), Segment::Request(data));
                }
                _ => debug_assert_eq!(cell.op, IoOp::Flush),
            }
            if completion.result < 0 {
                let errno = -completion.result;
                if is_transient(errno) || unaligned && errno == libc::EINVAL {
                    scratch.short = true;
                } else if cell.status == IoStatus::Success {
                    cell.status = self.fails(cell.op, cell.fua, errno);
                }
            }
            scratch.store(cell);
            scratch.left == 0
        });
        if last == Some(true)
            && let Some(io) = self.reactor.unpark(token)
        {
            self.landed(io);
        }
    }
}
