//! Commands that zero, unmap or tell of it: WRITE SAME, UNMAP, FORMAT UNIT, GET LBA STATUS.

use super::job::{Failure, Job, Span};
use super::spares::{CHUNK, LIST};
use crate::bdev::bounce::Bounce;
use crate::bdev::{ExtentRecord, ExtentState, extents, scatter};
use crate::reactor::io::{IoOp, IoStatus, Segments};
use crate::scsi::spec::ProvisioningStatus;
use crate::scsi::{Fill, LbaExtent, format_parameters, lba_status, lba_status_extents, unmap_ranges};

/// Bytes that are zeroed or unmapped in one step, between multiples of it so that no granule is cut: whether the command was aborted is
/// looked at before each.
const ZEROES_STEP: u64 = 256 << 20;

/// Bytes of the longest parameter list of FORMAT UNIT.
const FORMAT_LIST: usize = 8;

/// Reports of extents that one count of mapped blocks takes at most.
const REPORTS_MAX: usize = 256;

/// Bytes of the longest block.
const BLOCK_MAX: usize = 4096;

impl Job<'_> {
    pub(super) async fn write_same(&mut self, lba: u64, blocks: u64, fill: Fill, unmap: bool) -> Result<(), Failure> {
        let span = self.span(lba, blocks);
        let block = self.block() as usize;
        if fill == Fill::Zeros || is_zero(&self.io().data, block) {
            self.io().data.clear();
            return self.zero(span, unmap).await;
        }
        // Other data are written even if the blocks may be unmapped: unmapped ones would read as zeros (SBC-3 §5.43).
        let durable = self.is_durable(false);
        if blocks == 1 {
            return self.write(lba, durable).await;
        }
        self.repeat_block(IoOp::Write, span, durable).await
    }

    /// Writes the one block of data to each block of a range, or compares it with each. The offset of a difference is one in whole
    /// blocks of it.
    pub(super) async fn repeat_block(&mut self, op: IoOp, span: Span, durable: bool) -> Result<(), Failure> {
        let block = self.io().data.take_all();
        let spares = self.spares();
        let mut bounce = spares.chunks.take().await;
        let mut result = Ok(());
        let chunk = span.len.min(CHUNK as u64);
        bounce.buf.set_len(chunk as usize);
        if let Err(status) = replicate(&block, self.block() as usize, &mut bounce.buf) {
            self.io().status = status;
            result = self.result();
        }
        let mut done = 0;
        while result.is_ok() && done < span.len {
            let len = chunk.min(span.len - done);
            bounce.buf.set_len(len as usize);
            (bounce, result) = self.repeat_step(op, Span { offset: span.offset + done, len }, durable, bounce).await;
            done += len;
        }
        spares.chunks.give(bounce);
        result
    }

    async fn repeat_step(
        &mut self,
        op: IoOp,
        span: Span,
        durable: bool,
        mut bounce: Bounce,
    ) -> (Bounce, Result<(), Failure>) {
        if let Err(failure) = self.go_on() {
            return (bounce, Err(failure));
        }
        self.io().prepare(op, span.offset, span.len);
        self.io().fua = durable;
        bounce = self.submit_with(bounce).await;
        (bounce, self.result())
    }

    /// Has a range read as zeros: unmapped if that is allowed and the unit can, else written.
    async fn zero(&mut self, span: Span, unmap: bool) -> Result<(), Failure> {
        let op = if unmap && self.disk.unit.can_unmap { IoOp::Unmap } else { IoOp::WriteZeroes };
        let durable = self.is_durable(false);
        let (mut offset, end) = (span.offset, span.offset + span.len);
        while offset < end {
            self.go_on()?;
            let len = (ZEROES_STEP - offset % ZEROES_STEP).min(end - offset);
            self.write_step(op, Span { offset, len }, durable && op == IoOp::WriteZeroes).await?;
            offset += len;
        }
        self.unmapped(op == IoOp::Unmap && durable).await
    }

    /// An unmap has no durable form of its own.
    async fn unmapped(&mut self, durable: bool) -> Result<(), Failure> {
        if durable { self.step(IoOp::Flush, 0, 0).await } else { Ok(()) }
    }

    /// Unmaps the ranges of the parameter list, in order, after all were checked.
    pub(super) async fn unmap(&mut self) -> Result<(), Failure> {
        let list = self.io().data.take_all();
        let spares = self.spares();
        let mut bounce = spares.lists.take().await;
        // What is longer is more descriptors than Block Limits allows, which the header tells.
        bounce.buf.set_len((list.bytes() as usize).min(LIST));
        let result = match scatter::gather(&list, 0, &mut bounce.buf) {
            Ok(()) => self.unmap_all(&bounce.buf).await,
            Err(status) => {
                self.io().status = status;
                self.result()
            }
        };
        spares.lists.give(bounce);
        result
    }

    async fn unmap_all(&mut self, list: &[u8]) -> Result<(), Failure> {
        let unit = self.disk.unit.clone();
        for (lba, blocks) in unmap_ranges(list, &unit)? {
            self.go_on()?;
            let Span { offset, len } = self.span(lba, u64::from(blocks));
            self.step(IoOp::Unmap, offset, len).await?;
        }
        self.unmapped(self.is_durable(false)).await
    }

    pub(super) async fn format(&mut self) -> Result<(), Failure> {
        let mut list = [0; FORMAT_LIST];
        let len = (self.io().data.bytes() as usize).min(FORMAT_LIST);
        if len > 0 {
            if let Err(status) = scatter::gather(&self.io().data, 0, &mut list[..len]) {
                self.io().status = status;
                return self.result();
            }
            format_parameters(&list[..len])?;
            self.io().data.clear();
        }
        let all = self.span(0, self.disk.unit.blocks);
        self.zero(all, true).await?;
        self.flush().await
    }

    /// GET LBA STATUS: as much as one report of the device tells.
    pub(super) async fn lba_status(&mut self, lba: u64, allocation: u32) -> Result<(), Failure> {
        let records = lba_status_extents(allocation).min(LIST / ExtentRecord::LEN);
        let spares = self.spares();
        let mut bounce = spares.lists.take().await;
        let len = records * ExtentRecord::LEN;
        bounce.buf.set_len(len);
        let offset = lba << self.disk.shift;
        self.io().prepare(IoOp::Extents, offset, len as u64);
        bounce = self.submit_with(bounce).await;
        let result = self.result();
        let answer = match result {
            Ok(()) => lba_status(&self.lba_extents(&bounce.buf, records), allocation),
            Err(_) => Vec::new(),
        };
        spares.lists.give(bounce);
        if !answer.is_empty() {
            let mut buf = self.disk.handle.reactor().buffer(answer.len()).await;
            buf.copy_from_slice(&answer);
            self.io().data.push_buf(buf);
        }
        result
    }

    /// How many blocks are mapped; `None` of a disk in more pieces than are counted.
    pub(super) async fn mapped(&mut self) -> Result<Option<u64>, Failure> {
        let end = self.disk.unit.blocks << self.disk.shift;
        let spares = self.spares();
        let mut bounce = spares.lists.take().await;
        bounce.buf.set_len(LIST / ExtentRecord::LEN * ExtentRecord::LEN);
        let (mut at, mut mapped, mut result) = (0, 0, self.go_on());
        for _ in 0..REPORTS_MAX {
            if at >= end || result.is_err() {
                break;
            }
            let len = bounce.buf.len() as u64;
            self.io().prepare(IoOp::Extents, at, len);
            bounce = self.submit_with(bounce).await;
            result = self.result().and_then(|()| self.go_on());
            for record in extents(&bounce.buf) {
                let until = (record.offset.get() + record.len.get()).min(end);
                if record.state != ExtentState::DEALLOCATED {
                    mapped += until.saturating_sub(at);
                }
                at = at.max(until);
            }
        }
        spares.lists.give(bounce);
        result.map(|()| (at >= end).then_some(mapped >> self.disk.shift))
    }

    /// The extents of a report in blocks of the unit, which may have fewer than the device, and as long as a descriptor can say.
    fn lba_extents(&self, report: &[u8], most: usize) -> Vec<LbaExtent> {
        let mut found = Vec::with_capacity(most);
        for record in extents(report) {
            let status = match record.state {
                ExtentState::DEALLOCATED => ProvisioningStatus::DEALLOCATED,
                _ => ProvisioningStatus::MAPPED,
            };
            let mut lba = record.offset.get() >> self.disk.shift;
            let end = ((record.offset.get() + record.len.get()) >> self.disk.shift).min(self.disk.unit.blocks);
            while lba < end && found.len() < most {
                let blocks = u32::try_from(end - lba).unwrap_or(u32::MAX);
                found.push(LbaExtent { lba, blocks, status });
                lba += u64::from(blocks);
            }
        }
        found
    }
}

/// Whether a block of data is all zeros.
fn is_zero(data: &Segments, block: usize) -> bool {
    let mut bytes = [0; BLOCK_MAX];
    let bytes = &mut bytes[..block.min(BLOCK_MAX)];
    scatter::gather(data, 0, bytes).is_ok() && bytes.iter().all(|&byte| byte == 0)
}

/// Fills `into`, which is whole blocks, with the block of data.
fn replicate(data: &Segments, block: usize, into: &mut [u8]) -> Result<(), IoStatus> {
    scatter::gather(data, 0, &mut into[..block])?;
    let mut done = block;
    while done < into.len() {
        let more = done.min(into.len() - done);
        into.copy_within(..more, done);
        done += more;
    }
    Ok(())
}
