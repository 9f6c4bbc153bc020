//! EXTENDED COPY as planned by [`CopyList::plan`](crate::scsi::CopyList::plan).

use std::rc::Rc;

use super::job::{Failure, Job};
use super::spares::CHUNK;
use super::{Context, Disk, Outcome, PROTECTED};
use crate::bdev::bounce::Bounce;
use crate::reactor::io::{Io, IoOp};
use crate::scsi::spec::{Asc, Sense};
use crate::scsi::{CopyProgress, CopySegment, CopyState, ModeState};

/// A logical unit that a copy reads or writes.
pub struct CopyDisk {
    /// Its blocks, on this reactor.
    pub disk: Rc<Disk>,
    /// What may be done with it now. It is asked before every piece, since a copy takes long enough for others to reserve the unit, to protect
    /// it or to take it away.
    pub access: Box<dyn Fn() -> CopyAccess>,
}

/// What a copy may do with a logical unit.
#[derive(Clone, Copy, Debug)]
pub struct CopyAccess {
    /// Its mode parameters.
    pub mode: ModeState,
    /// It may be read.
    pub readable: bool,
    /// It may be written.
    pub writable: bool,
}

/// Copies as `steps` say, which name `disks` by index, one after the other. Within a device ranges may overlap: what is written is what was
/// there before. `progress` is told what has been done so far, the last time that the copy is done or has failed.
///
/// The I/O's data, the parameter list, is not needed any more. Of `context` the mode and the losses are not looked at.
pub async fn copy(
    steps: &[CopySegment<usize>],
    disks: &[CopyDisk],
    context: &Context<'_>,
    mut io: Io,
    mut progress: impl FnMut(CopyProgress),
) -> (Io, Outcome) {
    io.data.clear();
    let mut now = CopyProgress::START;
    let mut outcome = Outcome::Good;
    for step in steps {
        now.segments = step.index + 1;
        let (source, destination) = (&disks[step.source], &disks[step.destination]);
        let mut job = Job::new(&source.disk, context, io);
        let spares = job.spares();
        let bounce = spares.chunks.take().await;
        let before = now.bytes;
        let mut segment = Segment { source, destination, step, done: 0 };
        let (bounce, result) = segment
            .copy(&mut job, bounce, |done| {
                now.bytes = before + done;
                progress(now);
            })
            .await;
        spares.chunks.give(bounce);
        io = job.into_io();
        io.data.clear();
        if let Err(failure) = result {
            outcome = segment.failed(failure).into();
            break;
        }
    }
    now.state = if outcome == Outcome::Good { CopyState::Done } else { CopyState::Failed };
    progress(now);
    (io, outcome)
}

struct Segment<'a> {
    source: &'a CopyDisk,
    destination: &'a CopyDisk,
    step: &'a CopySegment<usize>,
    /// Bytes that were written.
    done: u64,
}

impl<'a> Segment<'a> {
    /// Copies chunk after chunk, and tells `written` how many bytes are.
    async fn copy(
        &mut self,
        job: &mut Job<'a>,
        mut bounce: Bounce,
        mut written: impl FnMut(u64),
    ) -> (Bounce, Result<(), Failure>) {
        if self.destination.disk.read_only {
            return (bounce, Err(PROTECTED.into()));
        }
        let len = u64::from(self.step.bytes);
        let from = self.step.source_lba << self.source.disk.shift;
        let to = self.step.destination_lba << self.destination.disk.shift;
        // Two logical units may show the same device.
        let id = |disk: &Disk| disk.handle.common().id();
        let is_same = id(&self.source.disk) == id(&self.destination.disk);
        let is_backwards = is_same && from < to && to < from + len;
        let mut result = Ok(());
        while result.is_ok() && self.done < len {
            let piece = (CHUNK as u64).min(len - self.done);
            let at = if is_backwards { len - self.done - piece } else { self.done };
            (bounce, result) = self.piece(job, (from + at, to + at, piece), bounce).await;
            if result.is_ok() {
                self.done += piece;
                written(self.done);
            }
        }
        (bounce, result)
    }

    async fn piece(
        &self,
        job: &mut Job<'a>,
        (from, to, len): (u64, u64, u64),
        mut bounce: Bounce,
    ) -> (Bounce, Result<(), Failure>) {
        if let Err(failure) = job.go_on() {
            return (bounce, Err(failure));
        }
        let destination = (self.destination.access)();
        if !(self.source.access)().readable || !destination.writable {
            return (bounce, Err(Sense::illegal(Asc::THIRD_PARTY_FAILURE).into()));
        }
        bounce.buf.set_len(len as usize);
        job.disk = &self.source.disk;
        if job.disk.keeps_nothing() {
            // It leaves the buffer as it is.
            bounce.buf.fill(0);
        }
        job.io().prepare(IoOp::Read, from, len);
        bounce = job.submit_with(bounce).await;
        if let Err(failure) = job.result() {
            return (bounce, Err(failure));
        }
        job.disk = &self.destination.disk;
        job.io().prepare(IoOp::Write, to, len);
        job.io().fua = job.disk.is_durable(destination.mode, false);
        bounce = job.submit_with(bounce).await;
        (bounce, job.result())
    }

    /// What the initiator is told: the segment, why, and if some of it was written, how many blocks of the destination were not
    /// (SPC-4 §5.17.7.4).
    fn failed(&self, failure: Failure) -> Failure {
        let Failure::Check(sense) = failure else { return failure };
        let left = (u64::from(self.step.bytes) - self.done) >> self.destination.disk.shift;
        Sense { information: (self.done > 0).then_some(left), ..Sense::copy_aborted(sense.code, self.step.index) }
            .into()
    }
}
