//! A tag of a queue: the life of one request, read from top to bottom in [`execute`].

use std::rc::Rc;

use hugepages::Buf;

use super::queue::{Queue, Travel};
use super::wire::{self, IoDesc, IoOp as RequestOp};
use crate::bdev::Unaddressed;
use crate::reactor::io::{Io, IoOp, IoStatus, Segment};
use crate::sys::op::{Payload, UblkStep};
use crate::sys::tx::zeroes;
use crate::sys::ublk::RequestData;

/// The unit of all positions and lengths in requests, whatever the device's blocks.
const SECTOR: u64 = 512;

/// How a request ended: what its commit carries.
struct Outcome {
    /// Bytes, 0, or a negative errno.
    result: i32,
    /// In kernel copy, what a read has brought. The kernel wants it with every commit of a read, failed ones too.
    buf: Option<Buf>,
}

/// The handle on the data of a tag's requests: one for all of them, since a new one would be counted by an atomic.
struct Pages<'a> {
    queue: &'a Queue,
    tag: u16,
    data: Option<RequestData>,
}

impl Pages<'_> {
    fn get(&mut self) -> &mut RequestData {
        self.data.get_or_insert_with(|| self.queue.data(self.tag))
    }

    fn renew(&mut self, len: u32, place: Option<u16>) {
        self.get().renew(len, place);
    }

    fn take(&mut self) -> RequestData {
        self.get();
        self.data.take().expect("just got")
    }

    fn put_back(&mut self, data: RequestData) {
        self.data = Some(data);
    }
}

/// The body of a tag's task: request after request until the device stops.
pub(super) async fn run(queue: Rc<Queue>, tag: u16) {
    let reactor = queue.reactor.clone();
    let Some(mut io) = reactor.create_io() else {
        return queue.fails(tag, "all I/Os of the reactor are taken");
    };
    let mut pages = Pages { queue: &queue, tag, data: None };
    let mut command = queue.command(UblkStep::Fetch, tag, 0, None);
    loop {
        let mut completion = reactor.op(command).await;
        let mut data = None;
        while completion.result == wire::IO_RES_NEED_GET_DATA {
            let buf = match data.take() {
                Some(buf) => buf,
                None => reactor.buffer(len_of(&queue.request(tag))).await,
            };
            completion = reactor.op(queue.command(UblkStep::GetData, tag, 0, Some(buf))).await;
            if let Payload::Buf(buf) = completion.payload {
                data = Some(buf);
                completion.payload = Payload::None;
            }
        }
        if completion.result != wire::IO_RES_OK {
            if completion.result != wire::IO_RES_ABORT {
                let error = std::io::Error::from_raw_os_error(-completion.result);
                queue.fails(tag, &format!("the kernel refuses a command: {error}"));
            }
            break;
        }
        if queue.is_leaving() {
            break;
        }
        let request = queue.request(tag);
        let (back, outcome) = execute(&queue, tag, &request, data, &mut pages, io).await;
        io = back;
        command = queue.command(UblkStep::Commit, tag, outcome.result, outcome.buf);
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
    pages: &mut Pages<'_>,
    mut io: Io,
) -> (Io, Outcome) {
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
        _ => return (io, Outcome { result: -libc::EOPNOTSUPP, buf: None }),
    };
    let len = if op.has_range() { len_of(request) } else { 0 };
    let offset = if op.has_range() { request.start_sector.saturating_mul(SECTOR) } else { 0 };
    io.prepare(op, offset, len as u64);
    io.fua = fua && op.writes();

    // What comes before the device: the data of a write, memory for a read.
    let moves = matches!(op, IoOp::Read | IoOp::Write);
    let in_place = queue.travel != Travel::ByKernel && traits.unaddressed != Unaddressed::Refuses;
    let mut ready = if queue.read_only && op.writes() { Err(IoStatus::ReadOnly) } else { Ok(()) };
    if moves {
        let registered = request.op_flags & wire::IO_F_NEED_REG_BUF == 0;
        pages.renew(len as u32, queue.place(tag).filter(|_| registered));
        if in_place {
            io.data.push(Segment::Request(pages.take()));
        } else {
            let mut buf = match data {
                Some(buf) => buf,
                None => queue.reactor.buffer(len).await,
            };
            // The kernel may have copied less than all: then the request is the shorter one.
            buf.truncate(len);
            if op == IoOp::Write && queue.travel != Travel::ByKernel && ready.is_ok() {
                ready = pages.get().take(0, &mut buf).map_err(|_| IoStatus::Gone);
            }
            io.data.push_buf(buf);
        }
    }

    match ready {
        Ok(()) => io = queue.handle.execute(io).await,
        Err(status) => io.status = status,
    }

    let mut outcome = Outcome { result: result_of(io.status, len), buf: None };
    let brings = op == IoOp::Read && outcome.result >= 0;
    match io.data.pop() {
        Some(Segment::Request(data)) => {
            if brings && traits.keeps_nothing && data.give(0, zeroes(len)).is_err() {
                outcome.result = -libc::EIO;
            }
            pages.put_back(data);
        }
        Some(Segment::Buf(mut buf)) if op == IoOp::Read => {
            if brings && traits.keeps_nothing {
                buf.fill(0);
            }
            match queue.travel {
                Travel::ByKernel => outcome.buf = Some(buf),
                _ if brings && pages.get().give(0, &buf).is_err() => outcome.result = -libc::EIO,
                _ => {}
            }
        }
        _ => {}
    }
    (io, outcome)
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
