//! What takes several commands, or a copy, on helper tasks: each has an I/O of its own, the child, and takes a bounce buffer.

use hugepages::Buf;
use zerocopy::IntoBytes;

use super::BOUNCE_LEN;
use super::channel::{Namespace, Way};
use crate::bdev::{ZoneRecord, ZoneState, scatter};
use crate::nvme::spec::{
    ZA_FINISH_RECOMMENDED, ZA_FINISHED_BY_CONTROLLER, ZA_RESET_RECOMMENDED, ZoneDescriptor, zone_report,
};
use crate::reactor::io::{Io, IoOp, IoStatus, Segment};

/// What a step has in hand.
struct Hand {
    /// Out while the controller has it.
    child: Option<Io>,
    /// Out while the child has it.
    buf: Option<Buf>,
    /// When what it is for was asked for: a step is as old as that.
    start: u64,
}

impl<W: Way> Namespace<W> {
    /// Carries out an I/O whose exclusion, if it needs one, has been seen to. Sets its status; gives the child back.
    pub(super) async fn carry_out(&self, io: &mut Io, child: Io) -> Io {
        let mut bounce = self.bounces.take().await;
        let mut hand = Hand { child: Some(child), buf: Some(bounce.buf), start: io.start };
        let result = match io.op {
            IoOp::Read => self.read_into(io, &mut hand).await,
            IoOp::Write => self.store(io, 0, &mut hand).await,
            IoOp::Unmap => self.unmap(io, &mut hand).await,
            // The controller says that they differ: where?
            IoOp::Compare | IoOp::CompareAndWrite if io.status == IoStatus::Miscompare => {
                match self.compare(io, &mut hand).await {
                    // Not any more.
                    Ok(()) => Err(IoStatus::Miscompare),
                    other => other,
                }
            }
            IoOp::Compare => self.compare(io, &mut hand).await,
            IoOp::CompareAndWrite => match self.compare(io, &mut hand).await {
                Ok(()) => self.store(io, io.len, &mut hand).await,
                different => different,
            },
            IoOp::ZoneAppend => self.append(io, &mut hand).await,
            IoOp::ZoneReport => self.report(io, &mut hand).await,
            op => unreachable!("{op:?} is one command, or none"),
        };
        bounce.buf = hand.buf.take().expect("every step gives it back");
        self.bounces.give(bounce);
        if let Err(status) = result {
            io.status = status;
        }
        hand.child.take().expect("every step gives it back")
    }

    /// One command on a range, with the first bytes of the bounce buffer if it has data.
    /// What it says beyond success is [`info`](crate::reactor::io::IoCell::info).
    async fn step(&self, hand: &mut Hand, op: IoOp, fua: bool, (offset, len): (u64, u64)) -> Result<u64, IoStatus> {
        let (Some(mut child), Some(mut buf)) = (hand.child.take(), hand.buf.take()) else {
            unreachable!("between steps both are here");
        };
        child.prepare(op, offset, len);
        (child.fua, child.start) = (fua, hand.start);
        let carries = op.data_len(len) > 0;
        if carries {
            buf.set_len(len as usize);
            child.data.push_buf(buf);
            child = self.run(child).await;
            buf = match child.data.pop() {
                Some(Segment::Buf(buf)) => buf,
                other => unreachable!("a command gives its buffer back, not {other:?}"),
            };
        } else {
            child = self.run(child).await;
        }
        let (status, info) = (child.status, child.info);
        (hand.child, hand.buf) = (Some(child), Some(buf));
        if status == IoStatus::Success { Ok(info) } else { Err(status) }
    }

    /// The bytes of the bounce buffer.
    fn bytes(hand: &mut Hand) -> &mut Buf {
        hand.buf.as_mut().expect("between steps it is here")
    }
}

impl<W: Way> Namespace<W> {
    /// Pieces of a range that a bounce buffer holds and a command can have.
    fn pieces(&self, len: u64) -> impl Iterator<Item = (u64, u64)> + use<W> {
        let most = self.geometry.limits.transfer_max.min(BOUNCE_LEN as u64);
        (0..len).step_by(most as usize).map(move |at| (at, (len - at).min(most)))
    }

    async fn read_into(&self, io: &mut Io, hand: &mut Hand) -> Result<(), IoStatus> {
        let (offset, len) = (io.offset, io.len);
        for (at, piece) in self.pieces(len) {
            self.step(hand, IoOp::Read, false, (offset + at, piece)).await?;
            scatter::scatter(&mut io.data, at as usize, Self::bytes(hand))?;
        }
        Ok(())
    }

    async fn compare(&self, io: &mut Io, hand: &mut Hand) -> Result<(), IoStatus> {
        let (offset, len) = (io.offset, io.len);
        for (at, piece) in self.pieces(len) {
            self.step(hand, IoOp::Read, false, (offset + at, piece)).await?;
            if let Err(index) = scatter::compare(&io.data, at as usize, Self::bytes(hand)) {
                io.info = at + index as u64;
                return Err(IoStatus::Miscompare);
            }
        }
        Ok(())
    }

    /// Writes `len` bytes of the data, which begin at `first` of it.
    async fn store(&self, io: &Io, first: u64, hand: &mut Hand) -> Result<(), IoStatus> {
        for (at, piece) in self.pieces(io.len) {
            let buf = Self::bytes(hand);
            buf.set_len(piece as usize);
            scatter::gather(&io.data, (first + at) as usize, buf)?;
            self.step(hand, IoOp::Write, io.fua, (io.offset + at, piece)).await.map_err(|status| match status {
                // By the pieces before: all of it would not have fitted.
                IoStatus::ZoneFull if at > 0 => IoStatus::ZoneBoundary,
                status => status,
            })?;
        }
        Ok(())
    }

    /// Zeroes, which is what counts, and then lets the controller have the blocks, which it need not take.
    async fn unmap(&self, io: &Io, hand: &mut Hand) -> Result<(), IoStatus> {
        self.step(hand, IoOp::WriteZeroes, io.fua, (io.offset, io.len)).await?;
        let most = self.geometry.deallocate.range_max.min(self.geometry.deallocate.bytes_max);
        let mut at = 0;
        while at < io.len {
            let piece = (io.len - at).min(most);
            self.step(hand, IoOp::Unmap, false, (io.offset + at, piece)).await?;
            at += piece;
        }
        Ok(())
    }

    /// Appends all of the data, for which the bounce buffer has room: in pieces, others' would come in between.
    async fn append(&self, io: &mut Io, hand: &mut Hand) -> Result<(), IoStatus> {
        let buf = Self::bytes(hand);
        buf.set_len(io.len as usize);
        scatter::gather(&io.data, 0, buf)?;
        io.info = self.step(hand, IoOp::ZoneAppend, io.fua, (io.offset, io.len)).await?;
        Ok(())
    }

    /// Fills the data with records of zones, made of the descriptors that the controller gives, a buffer of them at a time.
    async fn report(&self, io: &mut Io, hand: &mut Hand) -> Result<(), IoStatus> {
        let Some(zones) = self.geometry.zones else { return Err(IoStatus::Unsupported) };
        scatter::clear(&mut io.data);
        let (mut at, mut left) = (0, io.len as usize / ZoneRecord::LEN);
        while left > 0 {
            let start = io.offset + (at / ZoneRecord::LEN) as u64 * zones.size;
            if start >= self.common.size() {
                break;
            }
            let most = self.geometry.limits.transfer_max.min(BOUNCE_LEN as u64) as usize / DESCRIPTOR;
            let len = (1 + left.min(most - 1)) * DESCRIPTOR;
            self.step(hand, IoOp::ZoneReport, false, (start, len as u64)).await?;
            let (_, there) = zone_report(Self::bytes(hand)).ok_or(IoStatus::DeviceError)?;
            let mut next = start;
            for zone in there.take(left) {
                let record = self.record(zone, next).ok_or(IoStatus::DeviceError)?;
                scatter::scatter(&mut io.data, at, record.as_bytes())?;
                (at, left, next) = (at + ZoneRecord::LEN, left - 1, next + zones.size);
            }
            if next == start {
                // A zone that is there and is not told of would be asked for, for ever.
                return Err(IoStatus::DeviceError);
            }
        }
        Ok(())
    }

    /// The record of the zone at byte `start`; `None` if the controller speaks of another, or of what cannot be.
    fn record(&self, zone: &ZoneDescriptor, start: u64) -> Option<ZoneRecord> {
        let (shift, size) = (self.geometry.block_shift, self.geometry.zones?.size);
        let bytes = |blocks: u64| blocks.checked_shl(shift.into()).filter(|bytes| bytes >> shift == blocks);
        let capacity = bytes(zone.zcap.get())?;
        let state = zone.state();
        let pointer = match state {
            ZoneState::EMPTY => start,
            state if state.is_active() => bytes(zone.wp.get())?,
            _ => ZoneRecord::NO_POINTER,
        };
        let inside = pointer == ZoneRecord::NO_POINTER || (start..=start + capacity).contains(&pointer);
        if bytes(zone.zslba.get())? != start || capacity > size || state.name().is_none() || !inside {
            return None;
        }
        Some(ZoneRecord {
            start: start.into(),
            capacity: capacity.into(),
            write_pointer: pointer.into(),
            state,
            attributes: zone.za & (ZA_FINISHED_BY_CONTROLLER | ZA_FINISH_RECOMMENDED | ZA_RESET_RECOMMENDED),
            reserved: [0; 6],
        })
    }
}

/// Bytes of a descriptor, and of the header of a report.
const DESCRIPTOR: usize = size_of::<ZoneDescriptor>();
