//! A volume in RAM: one [`Region`] that every reactor copies to and from. Everything but a contended compare and write ends
//! within its submission.
//!
//! Memory comes with the first write of a page, so a volume of any size opens at once; unmap and write zeroes give whole
//! pages back. Nothing survives the process.
//!
//! A read or compare that races a write of the same block on another reactor may see parts of both, as the contract of the
//! block layer allows; writes that race a compare and write wait for it (see [`crate::bdev::exclusion`]).

use std::convert::Infallible;
use std::rc::{Rc, Weak};
use std::task::Poll;

use hugepages::{Region, RegionOptions};

use crate::bdev::exclusion::{Gate, Range, Resume};
use crate::bdev::scatter::{self, BOUNCE};
use crate::bdev::steps::{Outstanding, WorkQueue};
use crate::bdev::{BlockDevice, Channel, Common, DeviceError, DeviceLimits, OpSet, Traits};
use crate::reactor::Reactor;
use crate::reactor::io::{Io, IoOp, IoStatus, Segment};

/// Largest unmap or write zeroes done in one step.
pub const ZEROES_MAX: u64 = 1 << 20;

/// From this many bytes on zeroing gives pages back instead of filling them.
const DISCARD_MIN: u64 = 16 << 10;

/// Compare and writes of one channel that wait for other reactors at a time.
const HELPERS: usize = 4;

/// What a RAM volume is made from.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: [u8; 16],
    /// Size in bytes, a multiple of the block size.
    pub size: u64,
    /// 512 or 4096.
    pub block_size: u32,
    /// A multiple of the block size.
    pub physical_block_size: u32,
    /// Ask the kernel for transparent hugepages: faster random access, memory comes in units of 2 MiB.
    pub hugepages: bool,
    /// The reactor that orders its compare and writes.
    pub home: u16,
}

/// See the module's head.
#[derive(Debug)]
pub struct Malloc {
    common: Common,
    region: Region,
}

impl Malloc {
    /// A RAM volume that reads as zeros.
    ///
    /// # Errors
    /// If the address space cannot be had.
    pub fn new(options: Options) -> Result<Malloc, DeviceError> {
        let region_options = RegionOptions { hugepages: options.hugepages, ..RegionOptions::default() };
        let region = Region::new(options.size as usize, region_options)
            .map_err(|error| DeviceError::Refused(format!("volume \"{}\": {error}", options.name)))?;
        let traits = Traits {
            name: options.name,
            driver: "malloc",
            uuid: options.uuid,
            block_size: options.block_size,
            physical_block_size: options.physical_block_size,
            ops: OpSet::ALL,
            read_only: false,
            volatile_cache: false,
            keeps_nothing: false,
            needs_bytes: true,
            concurrent: true,
            limits: DeviceLimits { zeroes_max: ZEROES_MAX, unmap_granularity: 4096, ..DeviceLimits::default() },
        };
        Ok(Malloc { common: Common::new(traits, options.size, options.home), region })
    }
}

impl BlockDevice for Malloc {
    fn common(&self) -> &Common {
        &self.common
    }

    fn open(&self, reactor: &Rc<Reactor>) -> Result<Rc<dyn Channel>, DeviceError> {
        Gate::check_home(reactor, &self.common)?;
        let inner = Rc::new_cyclic(|me: &Weak<Inner>| Inner {
            reactor: reactor.clone(),
            region: self.region.clone(),
            gate: Gate::open(reactor, &self.common, me.clone()),
            contended: WorkQueue::new(reactor),
            outstanding: Outstanding::new(reactor),
        });
        for _ in 0..HELPERS {
            let inner = inner.clone();
            reactor.spawn("malloc helper", async move {
                while let Some(mut io) = inner.contended.next().await {
                    let grant = inner.gate.acquire(Range::of(&io)).await;
                    inner.compare_and_write(&mut io);
                    drop(grant);
                    inner.end(io);
                }
            });
        }
        Ok(Rc::new(MallocChannel(inner)))
    }

    fn grow(&self, size: u64) -> Result<(), DeviceError> {
        self.common.check_growth(size)?;
        let refused = |error| DeviceError::Refused(format!("volume \"{}\": {error}", self.common.traits().name));
        self.region.grow(size as usize).map_err(refused)?;
        self.common.set_size(size);
        Ok(())
    }
}

struct MallocChannel(Rc<Inner>);

struct Inner {
    reactor: Rc<Reactor>,
    region: Region,
    gate: Rc<Gate>,
    contended: WorkQueue,
    /// What did not end within its submission.
    outstanding: Outstanding,
}

impl Channel for MallocChannel {
    #[inline]
    fn submit(&self, mut io: Io) -> Poll<Io> {
        let inner = &*self.0;
        match io.op {
            IoOp::Read => inner.read(&mut io),
            IoOp::Write | IoOp::Unmap | IoOp::WriteZeroes => {
                if !inner.gate.may_write(Range::of(&io)) {
                    return inner.wait(io, |io| inner.gate.hold_back(io));
                }
                inner.write(&mut io);
            }
            IoOp::Flush => {}
            IoOp::Compare => inner.compare(&mut io),
            IoOp::CompareAndWrite => {
                if !inner.gate.is_exclusive_now(Range::of(&io)) {
                    return inner.wait(io, |io| inner.contended.push(io));
                }
                inner.compare_and_write(&mut io);
            }
            IoOp::Reset => {
                inner.abort_held();
                return inner.outstanding.reset(io);
            }
        }
        Poll::Ready(io)
    }
}

impl Drop for MallocChannel {
    fn drop(&mut self) {
        self.0.contended.close();
        self.0.abort_held();
    }
}

impl Resume for Inner {
    fn resume(&self, mut io: Io) {
        self.write(&mut io);
        self.end(io);
    }
}

impl Inner {
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

    #[inline]
    fn read(&self, io: &mut Io) {
        let mut at = io.offset as usize;
        for segment in io.data.iter_mut() {
            match segment {
                Segment::Buf(buf) => self.region.read(at, buf),
                Segment::Region { region, offset, len } => {
                    copy(&self.region, at, region, *offset as usize, *len as usize);
                }
            }
            at += segment.len();
        }
    }

    #[inline]
    fn write(&self, io: &mut Io) {
        if io.op == IoOp::Write {
            self.store(io, 0);
        } else if io.len >= DISCARD_MIN {
            self.region.discard(io.offset as usize, io.len as usize);
        } else {
            self.region.zero(io.offset as usize, io.len as usize);
        }
    }

    /// Stores the last `len` bytes of the data, which begin at `from` of it.
    #[inline]
    fn store(&self, io: &Io, from: usize) {
        let at = io.offset as usize;
        let Ok(()) = scatter::each::<Infallible>(&io.data, from, io.len as usize, |segment, piece| {
            match segment {
                Segment::Buf(buf) => self.region.write(at + piece.at, &buf[piece.start..piece.start + piece.len]),
                Segment::Region { region, offset, .. } => {
                    copy(region, *offset as usize + piece.start, &self.region, at + piece.at, piece.len);
                }
            }
            Ok(())
        });
    }

    /// Compares the first `len` bytes of the data with the range.
    fn compare(&self, io: &mut Io) {
        let at = io.offset as usize;
        let compared = scatter::each(&io.data, 0, io.len as usize, |segment, piece| {
            match segment {
                Segment::Buf(buf) => self.region.compare(at + piece.at, &buf[piece.start..piece.start + piece.len]),
                Segment::Region { region, offset, .. } => {
                    differs(&self.region, at + piece.at, region, *offset as usize + piece.start, piece.len)
                }
            }
            .map_err(|index| piece.at + index)
        });
        if let Err(index) = compared {
            io.status = IoStatus::Miscompare;
            io.info = index as u64;
        }
    }

    /// The caller has seen to it that nobody else writes the range.
    fn compare_and_write(&self, io: &mut Io) {
        self.compare(io);
        if io.status == IoStatus::Success {
            self.store(io, io.len as usize);
        }
    }
}

/// Copies between two regions, through private memory: both may change meanwhile.
fn copy(source: &Region, from: usize, target: &Region, to: usize, len: usize) {
    let mut bounce = [0; BOUNCE];
    for at in (0..len).step_by(BOUNCE) {
        let piece = &mut bounce[..BOUNCE.min(len - at)];
        source.read(from + at, piece);
        target.write(to + at, piece);
    }
}

/// The index of the first byte that differs between two regions.
fn differs(a: &Region, at_a: usize, b: &Region, at_b: usize, len: usize) -> Result<(), usize> {
    let mut bounce = [0; BOUNCE];
    for at in (0..len).step_by(BOUNCE) {
        let piece = &mut bounce[..BOUNCE.min(len - at)];
        b.read(at_b + at, piece);
        a.compare(at_a + at, piece).map_err(|index| at + index)?;
    }
    Ok(())
}
