//! Commands that compare: VERIFY, WRITE AND VERIFY, COMPARE AND WRITE, and ORWRITE, which is made of the last.

use super::Disk;
use super::job::{Failure, Job, Span};
use super::spares::CHUNK;
use crate::bdev::bounce::Bounce;
use crate::bdev::scatter;
use crate::reactor::io::{IoOp, IoStatus, Segments};
use crate::scsi::Check;
use crate::scsi::spec::{Asc, Sense, SenseKey};

/// How often ORWRITE begins anew with a piece whose blocks others write between its read and its write. Each time at least one of them
/// gets on.
const TRIES: usize = 256;

/// ORWRITE has what it read and what it writes in one spare buffer.
const HALF: u64 = CHUNK as u64 / 2;

impl Job<'_> {
    pub(super) async fn verify(&mut self, lba: u64, blocks: u32, check: Check) -> Result<(), Failure> {
        let span = self.span(lba, u64::from(blocks));
        match check {
            Check::Medium => self.step(IoOp::Verify, span.offset, span.len).await,
            Check::Blocks => self.step(IoOp::Compare, span.offset, span.len).await,
            Check::OneBlock => {
                let result = self.repeat_block(IoOp::Compare, span, false).await;
                let block = self.block();
                // The offset is one in the data, which has one block.
                result.map_err(|failure| match failure {
                    Failure::Check(Sense { key: SenseKey::MISCOMPARE, information: Some(at), .. }) => {
                        Sense::miscompare(at % block).into()
                    }
                    other => other,
                })
            }
        }
    }

    /// Writes and reads back all of the data.
    pub(super) async fn write_and_verify(&mut self, lba: u64, compare: bool) -> Result<(), Failure> {
        let len = self.io().data.bytes();
        if len == 0 {
            return Ok(());
        }
        self.write(lba, true).await?;
        self.go_on()?;
        let op = if compare { IoOp::Compare } else { IoOp::Verify };
        if !compare {
            self.io().data.clear();
        }
        self.step(op, lba << self.disk.shift, len).await
    }

    pub(super) async fn compare_and_write(&mut self, lba: u64, blocks: u32, fua: bool) -> Result<(), Failure> {
        let (span, durable) = (self.span(lba, u64::from(blocks)), self.is_durable(fua));
        self.write_step(IoOp::CompareAndWrite, span, durable).await
    }

    /// Reads, and writes the OR if the blocks are still what was read. A long range is done in pieces, each of them one step: since OR has no
    /// order, whatever ORWRITEs meet in a range, no bit is lost, and what they leave is as if one had come after the other.
    pub(super) async fn or_write(&mut self, lba: u64, blocks: u32, fua: bool) -> Result<(), Failure> {
        let (span, durable) = (self.span(lba, u64::from(blocks)), self.is_durable(fua));
        let data = self.io().data.take_all();
        let spares = self.spares();
        let mut bounce = spares.chunks.take().await;
        let mut done = 0;
        let mut result = Ok(());
        while result.is_ok() && done < span.len {
            let offset = span.offset + done;
            let piece = Span { offset, len: self.disk.one_step(offset).min(HALF).min(span.len - done) };
            (bounce, result) = self.or_piece(piece, durable, (&data, done as usize), bounce).await;
            done += piece.len;
        }
        spares.chunks.give(bounce);
        result
    }

    /// One piece, with the data from `from` on.
    async fn or_piece(
        &mut self,
        piece: Span,
        durable: bool,
        (data, from): (&Segments, usize),
        mut bounce: Bounce,
    ) -> (Bounce, Result<(), Failure>) {
        let len = piece.len as usize;
        for _ in 0..TRIES {
            if let Err(failure) = self.go_on() {
                return (bounce, Err(failure));
            }
            bounce.buf.set_len(len);
            self.io().prepare(IoOp::Read, piece.offset, piece.len);
            bounce = self.submit_with(bounce).await;
            if let Err(failure) = self.result() {
                return (bounce, Err(failure));
            }
            bounce.buf.set_len(2 * len);
            let (before, after) = bounce.buf.split_at_mut(len);
            if let Err(status) = scatter::gather(data, from, after) {
                self.io().status = status;
                return (bounce, self.result());
            }
            after.iter_mut().zip(before).for_each(|(after, before)| *after |= *before);
            self.io().prepare(IoOp::CompareAndWrite, piece.offset, piece.len);
            self.io().fua = durable;
            bounce = self.submit_with(bounce).await;
            if self.io().status != IoStatus::Miscompare {
                return (bounce, self.result());
            }
            // Somebody else's write came in between.
            self.disk.handle.reactor().yield_now().await;
        }
        (bounce, Err(Sense::new(SenseKey::ABORTED_COMMAND, Asc::NONE).into()))
    }
}

impl Disk {
    /// Bytes from `offset` on that the device compares and writes in one step, at most; whole blocks.
    fn one_step(&self, offset: u64) -> u64 {
        let limits = &self.handle.common().traits().limits;
        let block = 1 << self.shift;
        let max = match limits.compare_and_write_max {
            0 if limits.boundary != 0 => limits.transfer_max.min(limits.boundary - offset % limits.boundary),
            0 => limits.transfer_max,
            max => max,
        };
        (max / block * block).max(block)
    }
}
