//! What takes several operations, on helper tasks, through one bounce buffer each, or another thread.

use hugepages::Buf;
use std::ops::Range as Span;

use super::BOUNCE_LEN;
use super::channel::{Inner, is_transient};
use crate::bdev::exclusion::Range;
use crate::bdev::scatter;
use crate::reactor::io::{Io, IoOp, IoStatus};
use crate::sys::op::{Op, Payload};

/// How one step ended. The buffer comes back in any case.
type Step = (Buf, Result<(), IoStatus>);

impl Inner {
    /// Executes an I/O whose exclusion, if it needs one, has been seen to. Sets its status.
    pub(super) async fn carry_out(&self, io: &mut Io) {
        if io.op == IoOp::Extents {
            match &self.holes {
                Some(holes) => holes.tell(&self.reactor, &self.common, io).await,
                None => io.status = IoStatus::Unsupported,
            }
            return;
        }
        let mut bounce = self.bounces.take().await;
        let buf = bounce.buf;
        let span = io.offset..io.offset + io.len;
        let (buf, result) = match io.op {
            IoOp::Read => self.read_into(io, buf).await,
            IoOp::Write => self.store(io, 0, buf).await,
            IoOp::Unmap | IoOp::WriteZeroes => self.zero(io.op, io.fua, span, buf).await,
            IoOp::Compare => self.compare(io, buf).await,
            IoOp::CompareAndWrite => match self.compare(io, buf).await {
                (buf, Ok(())) => self.store(io, io.len, buf).await,
                different => different,
            },
            IoOp::Flush => match self.sync(buf).await {
                (buf, Err(errno)) => (buf, Err(self.fails(io.op, false, errno))),
                (buf, Ok(())) => (buf, Ok(())),
            },
            op => unreachable!("{op:?} is not carried out by a helper"),
        };
        bounce.buf = buf;
        self.bounces.give(bounce);
        if let Err(status) = result {
            io.status = status;
        }
    }

    /// Whole units that cover `span`, a buffer's worth at a time.
    fn pieces(&self, span: &Span<u64>) -> impl Iterator<Item = Span<u64>> + use<> {
        let whole = self.units(Range { offset: span.start, len: span.end - span.start });
        let end = whole.offset + whole.len;
        (whole.offset..end).step_by(BOUNCE_LEN).map(move |at| at..end.min(at + BOUNCE_LEN as u64))
    }

    /// Reads all of `buf`.
    async fn read(&self, offset: u64, buf: Buf) -> Step {
        self.all(offset, buf, None).await
    }

    /// Reads or writes all of `buf`, whole units at a whole unit, in as many operations as it takes.
    async fn all(&self, offset: u64, mut rest: Buf, write: Option<bool>) -> Step {
        let (file, unit) = (self.file, self.geometry.unit as usize);
        let op = if write.is_some() { IoOp::Write } else { IoOp::Read };
        let mut done: Option<Buf> = None;
        let result = loop {
            let at = offset + done.as_ref().map_or(0, |d| d.len() as u64);
            let operation = match write {
                Some(durable) => Op::Write { file, offset: at, buf: rest, durable },
                None => Op::Read { file, offset: at, buf: rest },
            };
            let completion = self.reactor.op(operation).await;
            let Payload::Buf(buf) = completion.payload else { unreachable!("a transfer gives its buffer back") };
            rest = buf;
            let moved = match completion.result {
                errno if is_transient(-errno) => 0,
                errno if errno < 0 => break Err(self.fails(op, write == Some(true), -errno)),
                // The end of the file inside the volume: somebody shortened it. A write of nothing is a device that does nothing.
                moved if (moved as usize) < unit.min(rest.len()) => break Err(IoStatus::DeviceError),
                moved => moved as usize,
            };
            if moved == rest.len() {
                break Ok(());
            }
            // What is below a unit is done again.
            let whole = moved - moved % unit;
            if whole > 0 {
                let front = rest.split_to(whole);
                done = Some(join(done, front));
            }
        };
        (join(done, rest), result)
    }

    async fn read_into(&self, io: &mut Io, mut buf: Buf) -> Step {
        let span = io.offset..io.offset + io.len;
        for piece in self.pieces(&span) {
            buf.set_len((piece.end - piece.start) as usize);
            let (back, read) = self.read(piece.start, buf).await;
            buf = back;
            if read.is_err() {
                return (buf, read);
            }
            let (from, to) = (piece.start.max(span.start), piece.end.min(span.end));
            let bytes = &buf[(from - piece.start) as usize..(to - piece.start) as usize];
            if let Err(status) = scatter::scatter(&mut io.data, (from - span.start) as usize, bytes) {
                return (buf, Err(status));
            }
        }
        (buf, Ok(()))
    }

    async fn compare(&self, io: &mut Io, mut buf: Buf) -> Step {
        let span = io.offset..io.offset + io.len;
        for piece in self.pieces(&span) {
            buf.set_len((piece.end - piece.start) as usize);
            let (back, read) = self.read(piece.start, buf).await;
            buf = back;
            if read.is_err() {
                return (buf, read);
            }
            let (from, to) = (piece.start.max(span.start), piece.end.min(span.end));
            let bytes = &buf[(from - piece.start) as usize..(to - piece.start) as usize];
            let at = (from - span.start) as usize;
            if let Err(index) = scatter::compare(&io.data, at, bytes) {
                io.info = (at + index) as u64;
                return (buf, Err(IoStatus::Miscompare));
            }
        }
        (buf, Ok(()))
    }

    /// Writes `len` bytes of the data, which begin at `first` of it.
    async fn store(&self, io: &Io, first: u64, buf: Buf) -> Step {
        let span = io.offset..io.offset + io.len;
        self.overwrite(&span, io.fua, buf, |at, into| scatter::gather(&io.data, (first + at) as usize, into)).await
    }

    /// Writes `span` with what `fill` gives, which is called with a position in the span and bytes to fill. Units that the span
    /// covers in part are read before: then the caller must be alone on them.
    async fn overwrite(
        &self,
        span: &Span<u64>,
        durable: bool,
        mut buf: Buf,
        mut fill: impl FnMut(u64, &mut [u8]) -> Result<(), IoStatus>,
    ) -> Step {
        for piece in self.pieces(span) {
            buf.set_len((piece.end - piece.start) as usize);
            let (from, to) = (piece.start.max(span.start), piece.end.min(span.end));
            if (from, to) != (piece.start, piece.end) {
                let (back, read) = self.read(piece.start, buf).await;
                buf = back;
                if read.is_err() {
                    return (buf, read);
                }
            }
            let bytes = &mut buf[(from - piece.start) as usize..(to - piece.start) as usize];
            if let Err(status) = fill(from - span.start, bytes) {
                return (buf, Err(status));
            }
            let (back, written) = self.all(piece.start, buf, Some(durable)).await;
            buf = back;
            if written.is_err() {
                return (buf, written);
            }
        }
        (buf, Ok(()))
    }

    /// Makes a span read as zeros: the middle by fallocate where that works, the rest by writing zeros.
    async fn zero(&self, op: IoOp, fua: bool, span: Span<u64>, buf: Buf) -> Step {
        let unit = u64::from(self.geometry.zeroes);
        let middle = span.start.next_multiple_of(unit)..span.end & !(unit - 1);
        if middle.start >= middle.end {
            return self.write_zeros(&span, fua, buf).await;
        }
        match self.allocate(op, &middle).await {
            Err(status) => return (buf, Err(status)),
            Ok(false) => return self.write_zeros(&span, fua, buf).await,
            Ok(true) => {}
        }
        let (buf, head) = self.write_zeros(&(span.start..middle.start), false, buf).await;
        if head.is_err() {
            return (buf, head);
        }
        let (buf, tail) = self.write_zeros(&(middle.end..span.end), false, buf).await;
        if tail.is_err() || !fua {
            return (buf, tail);
        }
        match self.sync(buf).await {
            (buf, Err(errno)) => (buf, Err(self.fails(IoOp::Flush, true, errno))),
            (buf, Ok(())) => (buf, Ok(())),
        }
    }

    async fn write_zeros(&self, span: &Span<u64>, fua: bool, buf: Buf) -> Step {
        if span.is_empty() {
            return (buf, Ok(()));
        }
        let zero = |_, bytes: &mut [u8]| {
            bytes.fill(0);
            Ok(())
        };
        self.overwrite(span, fua, buf, zero).await
    }

    /// Has the kernel zero a span: unmap by punching a hole, write zeroes by zeroing a range that stays allocated; each the
    /// other way where its own is not there. `false`: neither is.
    async fn allocate(&self, op: IoOp, span: &Span<u64>) -> Result<bool, IoStatus> {
        let punch = (libc::FALLOC_FL_PUNCH_HOLE, &self.can_punch);
        let zero = (libc::FALLOC_FL_ZERO_RANGE, &self.can_zero);
        let ways = if op == IoOp::Unmap { [punch, zero] } else { [zero, punch] };
        for (mode, works) in ways {
            while works.get() {
                let (file, mode) = (self.file, mode | libc::FALLOC_FL_KEEP_SIZE);
                let operation = Op::Allocate { file, mode, offset: span.start, len: span.end - span.start };
                match -self.reactor.op(operation).await.result {
                    0 => return Ok(true),
                    libc::EOPNOTSUPP | libc::ENOSYS => works.set(false),
                    errno if is_transient(errno) => {}
                    errno => return Err(self.fails(op, false, errno)),
                }
            }
        }
        Ok(false)
    }

    /// Makes durable what was written before. The buffer only passes through.
    async fn sync(&self, buf: Buf) -> (Buf, Result<(), i32>) {
        loop {
            match -self.reactor.op(Op::Sync { file: self.file }).await.result {
                0 => return (buf, Ok(())),
                errno if is_transient(errno) => {}
                errno => return (buf, Err(errno)),
            }
        }
    }
}

/// Two parts of a buffer that follow each other.
fn join(front: Option<Buf>, rest: Buf) -> Buf {
    let Some(mut front) = front else {
        return rest;
    };
    match front.unsplit(rest) {
        Ok(()) => front,
        Err(_) => unreachable!("they were split from each other"),
    }
}
