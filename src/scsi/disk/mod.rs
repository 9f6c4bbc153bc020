//! The owner of the blocks of a SCSI disk, on one reactor: [`Media`] commands carried out on a block device.
//!
//! ```text
//!   door                                       Disk                         block device
//!    CDB -> Gate::admit -> Media, data-out -->  execute
//!                                                 |  READ, WRITE: one I/O  --> Handle
//!                                                 `- others: a Job         --> Handle, step by step
//!    data-in, status, sense  <------------------  Outcome
//! ```
//! READ and WRITE need nothing beside the I/O and the buffer that the door brings. What needs a buffer of its own takes it from
//! `Spares`, where one is kept for when the pool has none: a command that waits for a buffer holds its data-out, and if all did, nobody
//! would go on.
//!
//! What is done durably: what asks for it (FUA), and everything while the mode parameters have no write cache and the device has one.
//! Ranges are those that decoding has checked against the [`Unit`], in blocks; the block layer has bytes.

mod compare;
mod copy;
mod describe;
mod job;
mod provision;
mod spares;
mod status;

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use self::job::{Failure, Job};
use self::spares::Spares;
use self::status::sense_of;
use crate::bdev::{BlockDevice, DeviceError, Handle, Lent, Told};
use crate::reactor::Reactor;
use crate::reactor::io::{Io, IoOp, IoStatus};
use crate::scsi::spec::{Asc, Sense, SenseKey};
use crate::scsi::{Media, ModeState, Resources, Unit};

pub use self::copy::{CopyAccess, CopyDisk, copy};

/// A logical unit's blocks on one reactor: one for all nexuses there.
pub struct Disk {
    handle: Handle,
    unit: Arc<Unit>,
    spares: Rc<Spares>,
    /// Block size as a power of two.
    shift: u32,
    /// Acknowledged writes may be lost until a flush.
    cached: bool,
    /// Of the unit: the device may be written by others.
    read_only: bool,
}

/// The slot of the I/O that the device has for a command, if it has one, so that the command can be aborted:
/// [`Handle::abort`](crate::bdev::Handle::abort).
#[derive(Debug, Default)]
pub struct InDevice(Cell<u32>);

impl InDevice {
    /// The slot.
    pub fn slot(&self) -> Option<u32> {
        self.0.get().checked_sub(1)
    }

    #[inline]
    fn enter(&self, io: &Io) {
        self.0.set(io.slot() + 1);
    }

    #[inline]
    fn leave(&self) {
        self.0.set(0);
    }
}

/// Whose command it is, and what goes on around it.
pub struct Context<'a> {
    /// The mode parameters in force.
    pub mode: ModeState,
    /// What this nexus has been told of the device's losses.
    pub told: &'a Cell<Told>,
    /// Where the command's I/O is.
    pub slot: &'a InDevice,
    /// The command has been aborted: no further step of it begins.
    pub aborted: &'a Cell<bool>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// GOOD.
    Good,
    /// CHECK CONDITION.
    Check(Sense),
    /// It was aborted ([`Context::aborted`]): some of it may have been done.
    Aborted,
}

impl Disk {
    /// Opens the device's channel on this reactor.
    ///
    /// # Errors
    /// What the device says; no memory; a unit with other blocks than the device has.
    pub fn open(reactor: &Rc<Reactor>, device: &Arc<dyn BlockDevice>, unit: Arc<Unit>) -> Result<Disk, DeviceError> {
        let handle = Handle::open(reactor, device)?;
        let common = handle.common();
        let name = &common.traits().name;
        if unit.block_size != common.traits().block_size || unit.bytes(unit.blocks) > common.size() {
            return Err(DeviceError::Refused(format!(
                "volume \"{name}\": a logical unit of {} blocks of {} bytes is told of a device of {} bytes in blocks of {}",
                unit.blocks,
                unit.block_size,
                common.size(),
                common.traits().block_size
            )));
        }
        let spares = Spares::of(reactor).ok_or_else(|| {
            DeviceError::Refused(format!(
                "volume \"{name}\": no DMA memory left for SCSI commands: raise [memory] size"
            ))
        })?;
        let (shift, cached, read_only) = (unit.block_shift(), common.traits().volatile_cache, unit.read_only);
        Ok(Disk { handle, unit, spares, shift, cached, read_only })
    }

    /// What initiators are told.
    pub fn unit(&self) -> &Arc<Unit> {
        &self.unit
    }

    /// The device on this reactor.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Reads need no buffer: zeros are sent.
    #[inline]
    pub fn keeps_nothing(&self) -> bool {
        self.handle.common().traits().keeps_nothing
    }

    /// Carries out one command, all but EXTENDED COPY, for which there is [`copy()`]. Run to its end: who wants it to end early says so in
    /// `context.aborted`.
    ///
    /// `io` brings the data-out that [`DataOut::settle`](crate::scsi::DataOut::settle) took, in up to two buffers that may be cut anywhere,
    /// and of READ the buffer to fill; without one, the device must keep nothing ([`Disk::keeps_nothing`]). Of WRITE and WRITE AND VERIFY as
    /// much is written as there is. `io` gives the data-in back, if the outcome is good, and nothing else.
    #[inline]
    pub async fn execute(&self, media: &Media, context: &Context<'_>, mut io: Io) -> (Io, Outcome) {
        if self.read_only && writes(media) {
            io.data.clear();
            return (io, Outcome::Check(PROTECTED));
        }
        match *media {
            Media::Read { lba, blocks, fua, .. } if !(fua && self.cached) => {
                io.prepare(IoOp::Read, lba << self.shift, u64::from(blocks) << self.shift);
                let io = self.run(context, io).await;
                self.end(context, io)
            }
            Media::Write { lba, blocks, fua, .. } => {
                let len = io.data.bytes();
                debug_assert!(len <= u64::from(blocks) << self.shift, "decoding has checked so many blocks");
                if len == 0 {
                    // The initiator has sent nothing: a residual.
                    return (io, Outcome::Good);
                }
                io.prepare(IoOp::Write, lba << self.shift, len);
                io.fua = self.is_durable(context.mode, fua);
                let mut io = self.run(context, io).await;
                io.data.clear();
                self.end(context, io)
            }
            _ => self.execute_steps(media, context, io).await,
        }
    }

    /// Where the blocks of a READ are in memory, if its device lends them: until the turn of the reactor ends. It has been carried out then.
    /// `io` brings the buffer to fill.
    pub fn lend(&self, media: &Media, io: &mut Io) -> Option<Lent> {
        match *media {
            Media::Read { lba, blocks, fua, .. } if !(fua && self.cached) => {
                io.prepare(IoOp::Read, lba << self.shift, u64::from(blocks) << self.shift);
                self.handle.lend(io)
            }
            _ => None,
        }
    }

    /// How many blocks are mapped, for LOG SENSE; not known of a disk in very many pieces, or one that fails. `io` has no data, and comes back
    /// so.
    pub async fn resources(&self, context: &Context<'_>, io: Io) -> (Io, Resources) {
        let mut job = Job::new(self, context, io);
        let used = job.mapped().await.unwrap_or_default();
        let mut io = job.into_io();
        io.data.clear();
        (io, Resources { available: None, used })
    }

    /// Whether a write is durable before its answer: FUA asks for it, and so does a write cache that is switched off. A device that has
    /// none is durable anyway, and its write cache is never on.
    #[inline]
    fn is_durable(&self, mode: ModeState, fua: bool) -> bool {
        fua || self.cached && !mode.write_cache
    }

    /// Has the device carry out a prepared I/O.
    #[inline]
    async fn run(&self, context: &Context<'_>, io: Io) -> Io {
        context.slot.enter(&io);
        let io = self.handle.execute(io).await;
        context.slot.leave();
        io
    }

    /// The end of a command of one I/O.
    #[inline]
    fn end(&self, context: &Context<'_>, mut io: Io) -> (Io, Outcome) {
        if io.status == IoStatus::Success {
            return (io, Outcome::Good);
        }
        // Whatever a failed read left in the buffer is not the initiator's.
        io.data.clear();
        let outcome = self.failure(context, &io).into();
        (io, outcome)
    }

    /// Why an I/O has not succeeded.
    #[cold]
    fn failure(&self, context: &Context<'_>, io: &Io) -> Failure {
        // A device may end an I/O so on its own too, at a reset: only the initiator's wish needs no answer.
        if io.status == IoStatus::Aborted && context.aborted.get() {
            return Failure::Aborted;
        }
        sense_of(io, self.shift).into()
    }

    async fn execute_steps(&self, media: &Media, context: &Context<'_>, io: Io) -> (Io, Outcome) {
        let mut job = Job::new(self, context, io);
        let result = job.carry_out(media).await;
        let mut io = job.into_io();
        let gives_data = matches!(media, Media::Read { .. } | Media::GetLbaStatus { .. });
        if result.is_err() || !gives_data {
            io.data.clear();
        }
        (io, result.map_or_else(Outcome::from, |()| Outcome::Good))
    }
}

/// What becomes of a command that writes to what may only be read.
const PROTECTED: Sense = Sense::new(SenseKey::DATA_PROTECT, Asc::WRITE_PROTECTED);

/// What becomes of a command that nobody may carry out here, which is a defect of this program.
const INTERNAL: Sense = Sense::new(SenseKey::HARDWARE_ERROR, Asc::INTERNAL_FAILURE);

/// Whether a command changes blocks.
fn writes(media: &Media) -> bool {
    match media {
        Media::Write { .. }
        | Media::WriteAtomic { .. }
        | Media::OrWrite { .. }
        | Media::WriteAndVerify { .. }
        | Media::CompareAndWrite { .. }
        | Media::WriteSame { .. }
        | Media::Unmap { .. }
        | Media::FormatUnit => true,
        Media::Read { .. }
        | Media::Verify { .. }
        | Media::SynchronizeCache { .. }
        | Media::PreFetch { .. }
        | Media::GetLbaStatus { .. }
        // Its destinations may be other units.
        | Media::ExtendedCopy
        | Media::StartStop { .. }
        | Media::SelfTest => false,
    }
}
