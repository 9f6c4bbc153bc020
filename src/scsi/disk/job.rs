//! A command of several steps, or of steps that are not everyday ones.

use std::rc::Rc;

use super::spares::Spares;
use super::{Context, Disk, INTERNAL, Outcome};
use crate::bdev::bounce::Bounce;
use crate::reactor::io::{Io, IoOp, IoStatus, Segment};
use crate::scsi::spec::{Asc, Sense, SenseKey};
use crate::scsi::{Media, Unmapping};

/// Why a command did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// CHECK CONDITION.
    Check(Sense),
    /// It was aborted.
    Aborted,
}

impl From<Sense> for Failure {
    fn from(sense: Sense) -> Failure {
        Failure::Check(sense)
    }
}

impl From<Failure> for Outcome {
    fn from(failure: Failure) -> Outcome {
        match failure {
            Failure::Check(sense) => Outcome::Check(sense),
            Failure::Aborted => Outcome::Aborted,
        }
    }
}

/// A range of the device, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// How much PRE-FETCH reads at most: what no cache of a device would keep need not be read.
const PRE_FETCH_MAX: u64 = 64 << 20;

/// A command on its way.
pub(super) struct Job<'a> {
    /// On which disk the next step is.
    pub(super) disk: &'a Disk,
    context: &'a Context<'a>,
    /// Here but while the device has it.
    io: Option<Io>,
}

impl<'a> Job<'a> {
    pub(super) fn new(disk: &'a Disk, context: &'a Context<'a>, io: Io) -> Job<'a> {
        Job { disk, context, io: Some(io) }
    }

    /// The command's I/O, between two steps.
    pub(super) fn io(&mut self) -> &mut Io {
        self.io.as_mut().expect("no step is under way")
    }

    pub(super) fn into_io(self) -> Io {
        self.io.expect("no step is under way")
    }

    pub(super) fn spares(&self) -> Rc<Spares> {
        self.disk.spares.clone()
    }

    /// A range of blocks in bytes.
    pub(super) fn span(&self, lba: u64, blocks: u64) -> Span {
        Span { offset: lba << self.disk.shift, len: blocks << self.disk.shift }
    }

    /// Bytes of a block.
    pub(super) fn block(&self) -> u64 {
        1 << self.disk.shift
    }

    /// Whether a write is durable before its answer.
    pub(super) fn is_durable(&self, fua: bool) -> bool {
        self.disk.is_durable(self.context.mode, fua)
    }

    /// Asked before each step of many.
    pub(super) fn go_on(&self) -> Result<(), Failure> {
        if self.context.aborted.get() { Err(Failure::Aborted) } else { Ok(()) }
    }

    /// Carries the command out.
    pub(super) async fn carry_out(&mut self, media: &Media) -> Result<(), Failure> {
        match *media {
            Media::Read { lba, blocks, .. } => self.read_medium(lba, blocks).await,
            Media::OrWrite { lba, blocks, fua, .. } => self.or_write(lba, blocks, fua).await,
            Media::WriteAndVerify { lba, compare, .. } => self.write_and_verify(lba, compare).await,
            Media::Verify { lba, blocks, check, .. } => self.verify(lba, blocks, check).await,
            Media::CompareAndWrite { lba, blocks, fua, .. } => self.compare_and_write(lba, blocks, fua).await,
            Media::WriteSame { unmap: Some(Unmapping::Anchor), .. } | Media::Unmap { how: Unmapping::Anchor } => {
                // No unit says that it can.
                Err(Sense::illegal(Asc::INVALID_FIELD_IN_CDB).into())
            }
            Media::WriteSame { lba, blocks, fill, unmap } => self.write_same(lba, blocks, fill, unmap.is_some()).await,
            Media::Unmap { how: Unmapping::Deallocate } => self.unmap().await,
            Media::SynchronizeCache { .. } => self.flush().await,
            Media::PreFetch { lba, blocks, .. } => {
                let Span { offset, len } = self.span(lba, blocks);
                self.step(IoOp::Verify, offset, len.min(PRE_FETCH_MAX)).await
            }
            Media::GetLbaStatus { lba, allocation } => self.lba_status(lba, allocation).await,
            Media::FormatUnit => self.format().await,
            Media::StartStop { start: false, flush: true, .. } => self.flush().await,
            Media::StartStop { .. } => Ok(()),
            Media::SelfTest => self.self_test().await,
            Media::Write { .. } => unreachable!("it is one I/O"),
            Media::WriteAtomic { lba, fua, .. } => self.write_atomic(lba, fua).await,
            Media::ExtendedCopy => Err(INTERNAL.into()),
        }
    }

    /// Has the device carry out what [`Job::io`] has been prepared for, whatever comes of it.
    pub(super) async fn submit(&mut self) {
        let io = self.io.take().expect("no step is under way");
        self.io = Some(self.disk.run(self.context, io).await);
    }

    /// What came of it.
    pub(super) fn result(&mut self) -> Result<(), Failure> {
        let (disk, context) = (self.disk, self.context);
        let io = self.io();
        if io.status == IoStatus::Success { Ok(()) } else { Err(disk.failure(context, io)) }
    }

    /// Has the device carry out what [`Job::io`] has been prepared for.
    pub(super) async fn run(&mut self) -> Result<(), Failure> {
        self.submit().await;
        self.result()
    }

    /// One operation, with the data that [`Job::io`] has.
    pub(super) async fn step(&mut self, op: IoOp, offset: u64, len: u64) -> Result<(), Failure> {
        self.io().prepare(op, offset, len);
        self.run().await
    }

    /// As [`Job::step`] of an operation that writes, durably or not.
    pub(super) async fn write_step(&mut self, op: IoOp, span: Span, durable: bool) -> Result<(), Failure> {
        self.io().prepare(op, span.offset, span.len);
        self.io().fua = durable;
        self.run().await
    }

    /// As [`Job::submit`], with a spare buffer as the data, which comes back.
    pub(super) async fn submit_with(&mut self, mut bounce: Bounce) -> Bounce {
        self.io().data.push_buf(bounce.buf);
        self.submit().await;
        match self.io().data.pop() {
            Some(Segment::Buf(buf)) => bounce.buf = buf,
            other => unreachable!("a device gives back the data that it got, not {other:?}"),
        }
        bounce
    }

    /// READ with FUA from a device with a cache: what is returned is on the medium (SBC-3 §5.11).
    async fn read_medium(&mut self, lba: u64, blocks: u32) -> Result<(), Failure> {
        let data = self.io().data.take_all();
        self.step(IoOp::Flush, 0, 0).await?;
        self.io().data = data;
        let Span { offset, len } = self.span(lba, u64::from(blocks));
        self.step(IoOp::Read, offset, len).await
    }

    /// Writes all of the data.
    pub(super) async fn write(&mut self, lba: u64, durable: bool) -> Result<(), Failure> {
        let span = Span { offset: lba << self.disk.shift, len: self.io().data.bytes() };
        self.write_step(IoOp::Write, span, durable).await
    }

    /// Writes all of the data, which others see as a whole or not at all: no more than the unit says of it.
    async fn write_atomic(&mut self, lba: u64, fua: bool) -> Result<(), Failure> {
        let (offset, durable) = (lba << self.disk.shift, self.is_durable(fua));
        let io = self.io();
        io.prepare(IoOp::Write, offset, io.data.bytes());
        (io.fua, io.atomic) = (durable, true);
        self.run().await
    }

    /// Everything acknowledged is durable now, or the nexus is told that some of it is lost. A range is not looked at: the block layer
    /// knows none.
    pub(super) async fn flush(&mut self) -> Result<(), Failure> {
        self.io().data.clear();
        self.io().prepare(IoOp::Flush, 0, 0);
        self.submit().await;
        let (disk, told) = (self.disk, self.context.told);
        told.set(disk.handle.end_flush(self.io(), told.get()));
        self.result()
    }

    /// Shows that the first and the last block can be read.
    async fn self_test(&mut self) -> Result<(), Failure> {
        for lba in [0, self.disk.unit.last()] {
            let Span { offset, len } = self.span(lba, 1);
            match self.step(IoOp::Verify, offset, len).await {
                // The others are not of the medium, nor of the hardware.
                Err(Failure::Check(sense))
                    if matches!(sense.key, SenseKey::MEDIUM_ERROR | SenseKey::HARDWARE_ERROR) =>
                {
                    return Err(Sense::new(SenseKey::HARDWARE_ERROR, Asc::SELF_TEST_FAILED).into());
                }
                other => other?,
            }
        }
        Ok(())
    }
}
