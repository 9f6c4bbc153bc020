//! A tag of a queue: the life of one request, read from top to bottom in [`execute`].

use hugepages::Buf;

use super::queue::{Queue, Travel};
use super::wire::{self, IoDesc, IoOp as RequestOp};
use crate::bdev::Unaddressed;
use crate::reactor::io::{Io, IoOp, IoStatus, Segment};
use crate::sys::op::UblkStep;
use crate::sys::tx::zeroes;
use crate::sys::ublk::Way;

/// The unit of all positions and lengths in requests, whatever the device's blocks.
const SECTOR: u64 = 512;

/// How a request ended: what its commit carries.
struct Outcome {
    /// Bytes, 0, or a negative errno.
    result: i32,
    /// In kernel copy, what a read has brought. The kernel wants it with every commit of a read, failed ones too.
    buf: Option<Buf>,
}

/// The body of a tag's task: request after request until the device stops.
pub(super) async fn run(queue: &Queue, tag: u16) {
    let reactor = &queue.reactor;
    let Some(mut io) = reactor.create_io() else {
        return queue.fails(tag, "all I/Os of the reactor are taken");
    };
    // One way for all requests: a new one would be counted by an atomic.
    let mut way = queue.way();
    queue.start(UblkStep::Fetch, tag, 0, None);
    loop {
        let mut said = queue.ended(tag).await;
        let mut data = None;
        while said == wire::IO_RES_NEED_GET_DATA {
            let len = len_of(&queue.request(tag));
            // It may be another request than the one before: the kernel puts back what it could not copy.
            let buf = match data.take().filter(|buf: &Buf| buf.len() == len) {
                Some(buf) => buf,
                None => reactor.buffer(len).await,
            };
            queue.start(UblkStep::GetData, tag, 0, Some(buf));
            said = queue.ended(tag).await;
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
        let working = queue.work();
        let request = queue.request(tag);
        let outcome;
        (io, way, outcome) = execute(queue, tag, &request, data, way, io).await;
        queue.start(UblkStep::Commit, tag, outcome.result, outcome.buf);
        drop(working);
    }
    reactor.retire_io(io);
}

/// Bytes of the range of a request.
fn len_of(request: &IoDesc) -> usize {
    request.nr_sectors as usize * SECTOR as usize
}

/// Carries out one request. `data` is what the kernel copied of a write.
async fn execute(
    queue: &Queue,
    tag: u16,
    request: &IoDesc,
    data: Option<Buf>,
    way: Way,
    mut io: Io,
) -> (Io, Way, Outcome) {
    let traits = queue.handle.common().traits();
    let fua = request.op_flags & wire::IO_F_FUA != 0;
    let op = match request.op() {
        RequestOp::READ => IoOp::Read,
        RequestOp::WRITE => IoOp::Write,
        RequestOp::FLUSH => IoOp::Flush,
        RequestOp::DISCARD => IoOp::Unmap,
        // Zeros that need not stay allocated, unless they must be durable: an unmap is not.
        RequestOp::WRITE_ZEROES
            if request.op_flags & wire::IO_F_NOUNMAP == 0 && !fua && traits.ops.has(IoOp::Unmap) =>
        {
            IoOp::Unmap
        }
        RequestOp::WRITE_ZEROES => IoOp::WriteZeroes,
        _ => return (io, way, Outcome { result: -libc::EOPNOTSUPP, buf: None }),
    };
    let len = if op.has_range() { len_of(request) } else { 0 };
    let offset = if op.has_range() { request.start_sector.saturating_mul(SECTOR) } else { 0 };
    io.prepare(op, offset, len as u64);
    io.fua = fua && op.writes();

    // What comes before the device: the data of a write, memory for a read.
    let moves = matches!(op, IoOp::Read | IoOp::Write);
    let in_place = queue.travel != Travel::ByKernel && traits.unaddressed != Unaddressed::Refuses;
    let mut ready = if queue.read_only && op.writes() { Err(IoStatus::ReadOnly) } else { Ok(()) };
    let mut way = Some(way);
    if moves {
        let pages = queue.data(way.take().expect("just put there"), tag, request, len);
        if in_place {
            io.data.push(Segment::Request(pages));
        } else {
            // The kernel may have copied less than all of a write: then the request is the shorter one.
            let mut buf = match data.filter(|buf| op == IoOp::Write && buf.len() >= len) {
                Some(buf) => buf,
                None if op == IoOp::Write && queue.travel == Travel::ByKernel => {
                    ready = Err(IoStatus::DeviceError);
                    queue.reactor.buffer(len).await
                }
                None => queue.reactor.buffer(len).await,
            };
            buf.truncate(len);
            if op == IoOp::Write && queue.travel != Travel::ByKernel && ready.is_ok() {
                ready = pages.take(0, &mut buf).map_err(|_| IoStatus::Gone);
            }
            io.data.push_buf(buf);
            way = Some(pages.into_way());
        }
    }

    match ready {
        Ok(()) => io = queue.handle.execute(io).await,
        Err(status) => io.status = status,
    }

    // What moves no data has no length to tell, and may be larger than a result can say.
    let moved = if moves { len } else { 0 };
    let mut outcome = Outcome { result: result_of(io.status, moved), buf: None };
    let brings = op == IoOp::Read && outcome.result >= 0;
    match io.data.pop() {
        Some(Segment::Request(data)) => {
            if brings && traits.keeps_nothing && data.give(0, zeroes(len)).is_err() {
                outcome.result = -libc::EIO;
            }
            way = Some(data.into_way());
        }
        Some(Segment::Buf(mut buf)) if op == IoOp::Read => {
            if brings && traits.keeps_nothing {
                buf.fill(0);
            }
            if queue.travel == Travel::ByKernel {
                outcome.buf = Some(buf);
            } else if brings {
                let pages = queue.data(way.take().unwrap_or_else(|| queue.way()), tag, request, len);
                if pages.give(0, &buf).is_err() {
                    outcome.result = -libc::EIO;
                }
                way = Some(pages.into_way());
            }
        }
        _ => {}
    }
    (io, way.unwrap_or_else(|| queue.way()), outcome)
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
        | IoStatus::Gone => -libc::EIO,
    }
}
