//! A device in memory that is right, or wrong in one way.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, PoisonError};
use std::task::Poll;

use super::SIZE;
use crate::bdev::{
    BlockDevice, Channel, Common, DeviceError, DeviceLimits, ExtentRecord, ExtentState, OpSet, Traits, Unaddressed,
    scatter,
};
use crate::reactor::io::{Io, IoList, IoOp, IoStatus};
use crate::reactor::{Activity, Poller, Reactor};
use zerocopy::IntoBytes;

#[expect(clippy::disallowed_types, reason = "a device of tests, as simple as can be")]
type Bytes = Arc<std::sync::Mutex<Vec<u8>>>;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Garbage,
    ReadsDropLastBlock,
    WritesDropLastBlock,
    WritesSpill,
    ForgetsFua,
    AtomicStoresHalf,
    AtomicInTwoSteps,
    LargeWritesTear,
    UnmapDoesNothing,
    ZeroesRoundOut,
    CompareIsBlind,
    CompareSaysZero,
    SwapStoresAlways,
    SwapStoresFirstHalf,
    SwapInTwoSteps,
    OnlyFirstSegment,
    LosesSegment,
    ResetIsEarly,
    KeepsIo,
    KeepsIoOfClosing,
    RandomlyLost,
    VerifyFailsOnZeros,
    VerifyIsBlind,
    VerifyClears,
    ExtentsHideData,
    ExtentsKeepUnmapped,
    ExtentsBeginElsewhere,
    ExtentsLeaveGaps,
    ExtentsLeaveRest,
    ExtentsRunOver,
    GrowthLosesData,
    GrowthIsGarbage,
    GrowthIsNotSaid,
    Shrinks,
}

const BLOCK: usize = 512;

/// What is freed, if all of it is zeros.
const GRANULE: usize = 4096;

/// Where reads of [`Ram::unreadable`] fail.
pub(super) const BAD: u64 = 5 << 20;

pub(super) struct Ram {
    common: Common,
    bytes: Bytes,
    fault: Option<Fault>,
    bad: Option<u64>,
}

fn with<R>(bytes: &Bytes, f: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    f(&mut bytes.lock().unwrap_or_else(PoisonError::into_inner))
}

impl Ram {
    pub(super) fn device(fault: Option<Fault>) -> Arc<dyn BlockDevice> {
        Ram::with(fault, None)
    }

    /// Whose block at [`BAD`] cannot be read.
    pub(super) fn unreadable(fault: Option<Fault>) -> Arc<dyn BlockDevice> {
        Ram::with(fault, Some(BAD))
    }

    fn with(fault: Option<Fault>, bad: Option<u64>) -> Arc<dyn BlockDevice> {
        // The others are read from.
        let own = matches!(fault, Some(Fault::VerifyFailsOnZeros | Fault::VerifyIsBlind | Fault::VerifyClears));
        let limits = DeviceLimits {
            verify_max: if own { u64::MAX } else { 0 },
            unmap_granularity: GRANULE as u32,
            atomic_max: 64 << 10,
            ..DeviceLimits::default()
        };
        let traits = Traits {
            name: "wrong".to_owned(),
            driver: "ram",
            uuid: [6; 16],
            block_size: BLOCK as u32,
            physical_block_size: BLOCK as u32,
            ops: OpSet::ALL,
            read_only: false,
            volatile_cache: false,
            keeps_nothing: false,
            ephemeral: true,
            unaddressed: Unaddressed::Refuses,
            concurrent: true,
            limits,
            zones: None,
        };
        let fill = if fault == Some(Fault::Garbage) { 0xFF } else { 0 };
        let bytes = vec![fill; SIZE as usize];
        Arc::new(Ram { common: Common::new(traits, SIZE, 0), bytes: Arc::new(bytes.into()), fault, bad })
    }
}

impl BlockDevice for Ram {
    fn common(&self) -> &Common {
        &self.common
    }

    fn open(&self, reactor: &Rc<Reactor>) -> Result<Box<dyn Channel>, DeviceError> {
        let late = Rc::new(Late {
            reactor: reactor.clone(),
            bytes: self.bytes.clone(),
            list: IoList::default(),
            wait: Cell::new(0),
        });
        reactor.add_poller("late", late.clone());
        let (bytes, fault, bad) = (self.bytes.clone(), self.fault, self.bad);
        Ok(Box::new(RamChannel { bytes, fault, bad, late, kept: IoList::default(), taken: Cell::new(0) }))
    }

    fn grow(&self, size: u64) -> Result<(), DeviceError> {
        if self.fault != Some(Fault::Shrinks) {
            self.common.check_growth(size)?;
        }
        with(&self.bytes, |bytes| {
            if self.fault == Some(Fault::GrowthLosesData) {
                bytes.fill(0);
            }
            let fill = if self.fault == Some(Fault::GrowthIsGarbage) { 1 } else { 0 };
            bytes.resize(size as usize, fill);
        });
        if self.fault != Some(Fault::GrowthIsNotSaid) {
            self.common.set_size(size);
        }
        Ok(())
    }
}

/// What ends some polls later.
struct Late {
    reactor: Rc<Reactor>,
    bytes: Bytes,
    list: IoList,
    wait: Cell<u32>,
}

const LATE: u32 = 30;

impl Late {
    fn push(&self, io: Io) -> Poll<Io> {
        self.list.push(io);
        self.wait.set(LATE);
        Poll::Pending
    }
}

impl Poller for Late {
    fn poll(&self) -> Activity {
        if self.list.is_empty() {
            return Activity::Idle;
        }
        self.wait.set(self.wait.get() - 1);
        if self.wait.get() == 0 {
            while let Some(io) = self.list.pop() {
                match io.op {
                    IoOp::CompareAndWrite => with(&self.bytes, |bytes| store(bytes, &io, io.len as usize)),
                    IoOp::Write => with(&self.bytes, |bytes| store(bytes, &io, 0)),
                    _ => {}
                }
                self.reactor.complete(io);
            }
        }
        Activity::Busy
    }
}

/// Stores `len` bytes of the data, from `from` of it on.
fn store(bytes: &mut [u8], io: &Io, from: usize) {
    let at = io.offset as usize;
    scatter::gather(&io.data, from, &mut bytes[at..at + io.len as usize]).unwrap();
}

struct RamChannel {
    bytes: Bytes,
    fault: Option<Fault>,
    bad: Option<u64>,
    late: Rc<Late>,
    kept: IoList,
    taken: Cell<u64>,
}

impl Drop for RamChannel {
    fn drop(&mut self) {
        while let Some(io) = self.kept.pop() {
            self.late.reactor.complete(io);
        }
    }
}

impl Channel for RamChannel {
    fn submit(&self, mut io: Io) -> Poll<Io> {
        let fault = |fault| self.fault == Some(fault);
        // How many reports are asked for depends on how much each one tells.
        self.taken.set(self.taken.get() + u64::from(io.op != IoOp::Extents));
        if fault(Fault::LosesSegment) && io.data.count() > 1 {
            drop(io.data.pop());
        }
        let many = self.taken.get() > 1000;
        if fault(Fault::KeepsIo) && io.op == IoOp::Compare && many {
            self.kept.push(io);
            return Poll::Pending;
        }
        if fault(Fault::KeepsIoOfClosing)
            && io.op == IoOp::Write
            && io.data.single_buf().is_some_and(|b| b[..] == [1; BLOCK])
        {
            self.kept.push(io);
            return Poll::Pending;
        }
        if fault(Fault::ResetIsEarly) && io.op == IoOp::Flush {
            return self.late.push(io);
        }
        if fault(Fault::AtomicInTwoSteps) && io.atomic {
            with(&self.bytes, |bytes| self.apply(bytes, &mut io));
            return self.late.push(io);
        }
        let in_two_steps = with(&self.bytes, |bytes| {
            let swap = self.apply(bytes, &mut io);
            if swap && !fault(Fault::SwapInTwoSteps) {
                store(bytes, &io, if fault(Fault::SwapStoresFirstHalf) { 0 } else { io.len as usize });
            }
            swap && fault(Fault::SwapInTwoSteps)
        });
        if in_two_steps {
            return self.late.push(io);
        }
        Poll::Ready(io)
    }
}

impl RamChannel {
    /// Everything but the write of a compare and write; whether that is to follow.
    fn apply(&self, bytes: &mut [u8], io: &mut Io) -> bool {
        let fault = |fault| self.fault == Some(fault);
        let (mut start, mut end) = (io.offset as usize, (io.offset + io.len) as usize);
        match io.op {
            IoOp::Read if self.bad.is_some_and(|bad| (io.offset..io.offset + io.len).contains(&bad)) => {
                io.status = IoStatus::MediaError;
            }
            IoOp::Verify if fault(Fault::VerifyFailsOnZeros) && bytes[start..end].iter().all(|byte| *byte == 0) => {
                io.status = IoStatus::MediaError;
            }
            IoOp::Extents => self.tell(bytes, io),
            IoOp::Verify if fault(Fault::VerifyClears) => bytes[start..end].fill(0),
            IoOp::Read => {
                if fault(Fault::ReadsDropLastBlock) && end - start > BLOCK {
                    end -= BLOCK;
                }
                scatter::scatter(&mut io.data, 0, &bytes[start..end]).unwrap();
            }
            IoOp::Write => {
                if fault(Fault::WritesDropLastBlock) && end - start > BLOCK {
                    end -= BLOCK;
                }
                if fault(Fault::OnlyFirstSegment) {
                    end = end.min(start + io.data.iter().next().map_or(0, |first| first.len()));
                }
                let half = fault(Fault::AtomicStoresHalf) || fault(Fault::AtomicInTwoSteps);
                if half && io.atomic {
                    end = start + (end - start).div_ceil(2);
                }
                if fault(Fault::LargeWritesTear) && end - start > 64 << 10 {
                    start += 64 << 10;
                    scatter::gather(&io.data, 0, &mut bytes[start..end]).unwrap();
                    return false;
                }
                if fault(Fault::ForgetsFua) && io.fua || fault(Fault::RandomlyLost) && lost(io) {
                    return false;
                }
                scatter::gather(&io.data, 0, &mut bytes[start..end]).unwrap();
                if fault(Fault::WritesSpill) && end < bytes.len() {
                    bytes[end] ^= 1;
                }
            }
            IoOp::Unmap | IoOp::WriteZeroes => {
                if fault(Fault::UnmapDoesNothing) && io.op == IoOp::Unmap {
                    return false;
                }
                if fault(Fault::ZeroesRoundOut) {
                    (start, end) = (start / 4096 * 4096, end.next_multiple_of(4096));
                }
                bytes[start..end].fill(0);
            }
            IoOp::Compare | IoOp::CompareAndWrite => {
                let mut expected = vec![0; end - start];
                scatter::gather(&io.data, 0, &mut expected).unwrap();
                let differs = bytes[start..end].iter().zip(&expected).position(|(a, b)| a != b);
                if let Some(at) = differs.filter(|_| !fault(Fault::CompareIsBlind)) {
                    io.status = IoStatus::Miscompare;
                    io.info = if fault(Fault::CompareSaysZero) { 0 } else { at as u64 };
                    return fault(Fault::SwapStoresAlways) && io.op == IoOp::CompareAndWrite;
                }
                return io.op == IoOp::CompareAndWrite;
            }
            _ => {}
        }
        false
    }
}

impl RamChannel {
    /// The extents from the offset asked for on, one record for each granule.
    fn tell(&self, bytes: &[u8], io: &mut Io) {
        let fault = |fault| self.fault == Some(fault);
        let mut room = io.len as usize / ExtentRecord::LEN;
        let mut start = io.offset as usize;
        if fault(Fault::ExtentsBeginElsewhere) {
            start = start / GRANULE * GRANULE;
        }
        let mut records = Vec::new();
        while start < bytes.len() && room > 0 {
            let end = (start / GRANULE + 1) * GRANULE;
            let zeros = bytes[start / GRANULE * GRANULE..end].iter().all(|byte| *byte == 0);
            let hides = zeros && !fault(Fault::ExtentsKeepUnmapped) || fault(Fault::ExtentsHideData);
            let last = if fault(Fault::ExtentsRunOver) && end == bytes.len() { GRANULE } else { 0 };
            records.push(ExtentRecord {
                offset: (start as u64).into(),
                len: ((end + last - start) as u64).into(),
                state: if hides { ExtentState::DEALLOCATED } else { ExtentState::MAPPED },
                ..ExtentRecord::default()
            });
            start = if fault(Fault::ExtentsLeaveGaps) { end + GRANULE } else { end };
            room -= 1;
        }
        let mut all = records.as_bytes().to_vec();
        if !fault(Fault::ExtentsLeaveRest) {
            all.resize(io.len as usize, 0);
        }
        scatter::scatter(&mut io.data, 0, &all).unwrap();
    }
}

/// A fifth of the larger writes, none of which other scenarios make.
fn lost(io: &Io) -> bool {
    let blocks = io.len / BLOCK as u64;
    blocks > 16 && blocks % 5 == 1
}
