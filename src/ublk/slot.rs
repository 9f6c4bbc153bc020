//! A tag of a queue: the life of its requests, one after the other, read from top to bottom in [`run`].

use hugepages::Buf;

use super::queue::{Queue, Travel};
use super::wire::{self, IoDesc, IoOp as RequestOp};
use crate::bdev::Traits;
use crate::reactor::io::{Io, IoOp, IoStatus, Segment};
use crate::sys::op::UblkStep;
use crate::sys::tx::zeroes;

/// The unit of all positions and lengths in requests, whatever the device's blocks.
const SECTOR: u64 = 512;

/// The body of a tag's task: request after request until the device stops.
pub(super) async fn run(queue: &Queue, tag: u16) {
    let reactor = &queue.reactor;
    let Some(mut io) = reactor.create_io() else {
        return queue.fails(tag, "all I/Os of the reactor are taken");
    };
    queue.start(UblkStep::Fetch, tag, 0, None);
    loop {
        let mut said = queue.end_of(tag).await;
        let mut data = None;
        while said == wire::IO_RES_NEED_GET_DATA {
            let len = len_of(&queue.request(tag));
            // It may be another request than the one before: the kernel puts back what it could not copy.
            let buf = match data.take().filter(|buf: &Buf| buf.len() == len) {
                Some(buf) => buf,
                None => reactor.buffer(len).await,
            };
            queue.start(UblkStep::GetData, tag, 0, Some(buf));
            said = queue.end_of(tag).await;
            data = queue.take_buf(tag);
        }
        if said != wire::IO_RES_OK {
            if said != wire::IO_RES_ABORT {
                let error = std::io::Error::from_raw_os_error(-said);
                queue.fails(tag, &format!("the kernel refuses a command: {error}"));
            }
            break;
        }
        if queue.is_leaving() {
            break;
        }
        queue.begin_work();
        let request = queue.request(tag);
        // The request whose data was asked for may have been put back, and this is another.
        data = data.filter(|_| request.op() == RequestOp::WRITE);
        if data.is_none() && needs_memory(queue, &request) {
            data = Some(reactor.buffer(len_of(&request)).await);
        }
        match prepare(queue, tag, &request, data, &mut io) {
            Ok(()) => {
                io = queue.handle.execute(io).await;
                if io.op == IoOp::Flush {
                    queue.told.set(queue.handle.end_flush(&mut io, queue.told.get()));
                }
            }
            Err(status) => io.status = status,
        }
        let (result, brought) = finish(queue, tag, &request, &mut io);
        queue.start(UblkStep::Commit, tag, result, brought);
        queue.end_work();
    }
    reactor.retire_io(io);
}

/// Bytes of the range of a request.
#[inline]
fn len_of(request: &IoDesc) -> usize {
    request.nr_sectors as usize * SECTOR as usize
}

/// Whether data goes with it.
#[inline]
fn moves(request: &IoDesc) -> bool {
    matches!(request.op(), RequestOp::READ | RequestOp::WRITE)
}

/// Whether memory of ours is to be found for it: the kernel brings that of its own writes.
#[inline]
fn needs_memory(queue: &Queue, request: &IoDesc) -> bool {
    let brings = queue.travel == Travel::ByKernel && request.op() == RequestOp::WRITE;
    !queue.passes_pages && moves(request) && !brings
}

/// What the block layer calls it.
#[inline]
fn op_of(request: &IoDesc, traits: &Traits) -> Option<IoOp> {
    let has = |flag| request.op_flags & flag != 0;
    Some(match request.op() {
        RequestOp::READ => IoOp::Read,
        RequestOp::WRITE => IoOp::Write,
        RequestOp::FLUSH => IoOp::Flush,
        RequestOp::DISCARD => IoOp::Unmap,
        // Zeros that need not stay allocated, unless they must be durable: an unmap is not.
        RequestOp::WRITE_ZEROES if !has(wire::IO_F_NOUNMAP) && !has(wire::IO_F_FUA) && traits.ops.has(IoOp::Unmap) => {
            IoOp::Unmap
        }
        RequestOp::WRITE_ZEROES => IoOp::WriteZeroes,
        _ => return None,
    })
}

/// Makes an I/O of a request, with its pages, or with `data`: memory for a read, and for a write what the kernel copied, or memory
/// to copy to.
#[inline]
fn prepare(queue: &Queue, tag: u16, request: &IoDesc, data: Option<Buf>, io: &mut Io) -> Result<(), IoStatus> {
    let op = op_of(request, queue.handle.common().traits()).ok_or(IoStatus::Unsupported)?;
    let (offset, len) =
        if op.has_range() { (request.start_sector.saturating_mul(SECTOR), len_of(request)) } else { (0, 0) };
    io.prepare(op, offset, len as u64);
    io.fua = op.writes() && request.op_flags & wire::IO_F_FUA != 0;
    if !matches!(op, IoOp::Read | IoOp::Write) {
        io.data.clear();
    } else if queue.passes_pages {
        match io.data.sole_mut() {
            // Those of the request before, at the same place.
            Some(Segment::Request(pages)) => queue.renew(pages, tag, request, len),
            _ => {
                io.data.clear();
                io.data.push(Segment::Request(queue.pages(tag, request, len)));
            }
        }
    } else if let Some(mut buf) = data.filter(|buf| buf.len() >= len) {
        buf.truncate(len);
        if op == IoOp::Write && queue.travel != Travel::ByKernel {
            queue.pages(tag, request, len).take(0, &mut buf).map_err(|_| IoStatus::Gone)?;
        }
        io.data.push_buf(buf);
    } else {
        // The kernel has copied less than all of a write, or nothing.
        return Err(IoStatus::DeviceError);
    }
    if queue.read_only && op.writes() { Err(IoStatus::ReadOnly) } else { Ok(()) }
}

/// Ends a request: what its commit carries, bytes, 0, or a negative errno, and in kernel copy what a read has brought: the kernel
/// wants it with every commit of a read, failed ones too.
#[inline]
fn finish(queue: &Queue, tag: u16, request: &IoDesc, io: &mut Io) -> (i32, Option<Buf>) {
    // What moves no data has no length to tell, and may be larger than a result can say.
    let moved = if moves(request) { len_of(request) } else { 0 };
    let result = result_of(io.status, moved);
    let brings = result >= 0 && request.op() == RequestOp::READ;
    let has_nothing = brings && queue.handle.common().traits().keeps_nothing;
    if queue.passes_pages {
        let given = match io.data.sole() {
            Some(Segment::Request(pages)) if has_nothing => pages.give(0, zeroes(moved)),
            _ => Ok(()),
        };
        return (given.map_or(-libc::EIO, |()| result), None);
    }
    let Some(Segment::Buf(mut buf)) = io.data.pop() else {
        return (result, None);
    };
    if has_nothing {
        buf.fill(0);
    }
    if queue.travel == Travel::ByKernel {
        return (result, Some(buf).filter(|_| request.op() == RequestOp::READ));
    }
    let given = if brings { queue.pages(tag, request, moved).give(0, &buf) } else { Ok(()) };
    (given.map_or(-libc::EIO, |()| result), None)
}

/// The status of the block layer as the errno that the kernel turns into its own, once, here.
fn result_of(status: IoStatus, len: usize) -> i32 {
    match status {
        IoStatus::Success => len as i32,
        IoStatus::NoSpace => -libc::ENOSPC,
        IoStatus::MediaError => -libc::ENODATA,
        IoStatus::Unsupported => -libc::EOPNOTSUPP,
        IoStatus::OutOfRange
        | IoStatus::Misaligned
        | IoStatus::Empty
        | IoStatus::DataLength
        | IoStatus::ReadOnly
        | IoStatus::Miscompare
        | IoStatus::DeviceError
        | IoStatus::Aborted
        | IoStatus::Gone
        | IoStatus::ZoneBoundary
        | IoStatus::ZoneFull
        | IoStatus::ZoneReadOnly
        | IoStatus::ZoneOffline
        | IoStatus::ZoneInvalidWrite
        | IoStatus::ZoneTooManyActive
        | IoStatus::ZoneTooManyOpen
        | IoStatus::ZoneInvalidTransition => -libc::EIO,
    }
}
