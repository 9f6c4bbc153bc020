//! One namespace through one queue.

use std::cell::Cell;
use std::rc::Rc;
use std::task::Poll;

use hugepages::Buf;

use super::queue::Queue;
use crate::bdev::load;
use crate::nvme::io::{Geometry, Place};
use crate::reactor::Reactor;
use crate::reactor::io::{Io, IoOp, IoStatus, Segment, Segments};

/// A namespace through one queue. Several volumes may share a queue.
pub struct Volume {
    queue: Rc<Queue>,
    geometry: Cell<Geometry>,
}

impl Volume {
    /// The namespace that `geometry` describes, through `queue` of the same controller.
    pub fn new(queue: Rc<Queue>, geometry: Geometry) -> Volume {
        Volume { queue, geometry: Cell::new(geometry) }
    }

    /// What the namespace is.
    pub fn geometry(&self) -> Geometry {
        self.geometry.get()
    }

    /// Takes over what the controller says after a namespace attribute event: a new size.
    pub fn set_geometry(&self, geometry: Geometry) {
        self.geometry.set(geometry);
    }

    /// The queue.
    pub fn queue(&self) -> &Rc<Queue> {
        &self.queue
    }

    #[inline]
    fn check(&self, io: &Io) -> Result<Place, IoStatus> {
        let geometry = self.geometry.get();
        if !geometry.ops.has(io.op) {
            return Err(IoStatus::Unsupported);
        }
        if geometry.read_only && io.op.writes() {
            return Err(IoStatus::ReadOnly);
        }
        if io.op.has_range() {
            if (io.offset | io.len) & ((1 << geometry.block_shift) - 1) != 0 {
                return Err(IoStatus::Misaligned);
            }
            if io.len == 0 {
                return Err(IoStatus::Empty);
            }
            if io.offset.checked_add(io.len).is_none_or(|end| end > geometry.size) {
                return Err(IoStatus::OutOfRange);
            }
            let most = match io.op {
                IoOp::Unmap => geometry.deallocate.range_max.min(geometry.deallocate.bytes_max),
                IoOp::WriteZeroes => geometry.limits.zeroes_max,
                IoOp::Verify => geometry.limits.verify_max,
                IoOp::CompareAndWrite => geometry.compare_and_write_max,
                _ => geometry.limits.transfer_max,
            };
            if io.len > most {
                return Err(IoStatus::Unsupported);
            }
        }
        let brought = io.op == IoOp::Read && io.data.count() == 0;
        if io.data.bytes() != io.op.data_len(io.len) && !brought {
            return Err(IoStatus::DataLength);
        }
        Ok(Place { nsid: geometry.nsid, shift: geometry.block_shift })
    }

    /// Carries out one I/O. What is larger than [`Geometry::limits`] says is [`IoStatus::Unsupported`]: the block layer splits.
    /// A read may come without data: it is given one buffer of the pool when its data arrives, so that memory is held for no longer
    /// than there is something in it. Data to be sent that is not in buffers, and that of a compare and write, is copied once more; all other data stays in
    /// place. Data of a request of the kernel's has no address: it is not for a host.
    pub async fn execute(&self, mut io: Io) -> Io {
        let reactor = self.queue.reactor();
        let sends = matches!(io.op, IoOp::Write | IoOp::Compare);
        let shared = |io: &Io| io.data.iter().any(|s| matches!(s, Segment::Region { .. }));
        if io.op != IoOp::CompareAndWrite && !(sends && shared(&io)) {
            return reactor.run_io(io, |io| self.submit(io)).await;
        }
        let place = match self.accept(&mut io) {
            Ok(place) => place,
            Err(status) => return io.with_status(status),
        };
        let data = io.data.take_all();
        let kept = Kept { reactor, io: Some(io) };
        let buf = reactor.buffer(data.bytes() as usize).await;
        let mut io = kept.release();
        gather(&mut io, &data, buf);
        io.scratch = place.to_bits();
        io = reactor.run_io(io, |io| self.queue.submit(io)).await;
        io.data = data;
        io
    }

    #[inline]
    fn accept(&self, io: &mut Io) -> Result<Place, IoStatus> {
        io.start = self.queue.reactor().clock().stamp();
        self.check(io)
    }

    /// Submits an I/O whose data stays in place; its end comes by [`Reactor::complete`].
    #[inline]
    fn submit(&self, mut io: Io) -> Poll<Io> {
        match self.accept(&mut io) {
            Ok(place) => {
                io.scratch = place.to_bits();
                self.queue.submit(io)
            }
            Err(status) => Poll::Ready(io.with_status(status)),
        }
    }
}

/// Copies `data` into `buf`, which becomes the I/O's in the segments that [`Queue::submit`] wants.
fn gather(io: &mut Io, data: &Segments, mut buf: Buf) {
    let mut at = 0;
    for segment in data.iter() {
        let into = &mut buf[at..at + segment.len()];
        match segment {
            Segment::Buf(from) => into.copy_from_slice(from),
            Segment::Region { region, offset, .. } => region.read(*offset as usize, into),
            Segment::Request(data) => unreachable!("{data:?} has no address, and a host needs one"),
        }
        at += segment.len();
    }
    if io.op == IoOp::CompareAndWrite {
        let compare = buf.split_to(io.len as usize);
        io.data.push_buf(compare);
    }
    io.data.push_buf(buf);
}

/// An I/O in the hands of a future that waits for something else: retired if the future is dropped.
struct Kept<'a> {
    reactor: &'a Reactor,
    io: Option<Io>,
}

impl Kept<'_> {
    fn release(mut self) -> Io {
        self.io.take().expect("released once")
    }
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        if let Some(io) = self.io.take() {
            self.reactor.retire_io(io);
        }
    }
}

impl load::Volume for Volume {
    #[inline]
    fn submit(&self, io: Io) -> Poll<Io> {
        Volume::submit(self, io)
    }

    fn size(&self) -> u64 {
        self.geometry.get().size
    }

    fn needs_data(&self, op: IoOp) -> bool {
        op != IoOp::Read
    }
}
