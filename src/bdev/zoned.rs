//! Zones: what a device that is made of them says, asks and reports.
//!
//! ```text
//!            |<--------------- size --------------->|
//!            |<--------- capacity --------->|       |
//!   zone     |#########|                    |-------|      Empty --write, open--> Open --close--> Closed     the last block: Full
//!            ^ start   ^ write pointer        never          ^                     |  \--finish----------------> Full
//!              reads    the next write        written         \------- reset -----+---------------------------/
//! ```
//! - A write begins at the write pointer of its zone and ends within its capacity, or has no effect and says why. One that is cut to pieces, as it
//!   is larger than the device takes at once, may be carried out up to the capacity before it fails. An append
//!   ([`IoOp::ZoneAppend`]) names the zone alone, goes to wherever the write pointer is by then, and says where that was.
//! - Writes to a zone that are in flight together may pass each other, and fail then: who writes sends them one after another, or appends.
//! - A write whose end nobody knows, as after a reset of the disk, is not tried again by any layer: it may have been carried out, and the
//!   write pointer says so.
//! - A block between write pointer and end of a zone reads as zeros, if the device says so of blocks that were never written.

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::reactor::io::{IoCell, IoOp, IoStatus};
pub use crate::util::ZoneState;

/// What the zones of a device have in common. The device is a whole number of zones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zones {
    /// Bytes from the start of one to the start of the next: whole blocks. Each says in its report how many of them can be written.
    pub size: u64,
    /// Most bytes of one append, at least a block.
    pub append_max: u64,
    /// Most open zones; `None` for no limit. A write to one more closes one that no [`IoOp::ZoneOpen`] has opened, if there is such.
    pub open_max: Option<u32>,
    /// Most active zones, open or closed; `None` for no limit.
    pub active_max: Option<u32>,
    /// Reads may cross zones.
    pub read_across: bool,
}

impl Zones {
    /// Number of zones of a device of `size` bytes.
    pub const fn count(&self, size: u64) -> u64 {
        size / self.size
    }

    /// First byte of the zone that byte `offset` is in.
    pub const fn start_of(&self, offset: u64) -> u64 {
        offset - offset % self.size
    }

    /// Whether a range that is not empty is in more than one zone.
    pub const fn crosses(&self, offset: u64, len: u64) -> bool {
        offset % self.size + len > self.size
    }

    /// Whether the range of an operation that manages zones is that of one zone; else it is of all.
    pub const fn is_one(&self, len: u64) -> bool {
        len == self.size
    }

    /// What zones ask of an I/O on a device of `size` bytes, whose range, if it has one, is of blocks that there are.
    ///
    /// # Errors
    /// [`IoStatus::Misaligned`] for what does not begin at a zone or is not one, [`IoStatus::Unsupported`] for an append beyond the limit,
    /// [`IoStatus::ZoneBoundary`] for what may not be in two zones.
    pub(super) fn check(&self, io: &IoCell, size: u64) -> Result<(), IoStatus> {
        let is_start = io.offset.is_multiple_of(self.size);
        match io.op {
            IoOp::ZoneReport if !is_start => Err(IoStatus::Misaligned),
            IoOp::ZoneReport if io.len == 0 => Err(IoStatus::Empty),
            IoOp::ZoneReport if io.offset >= size => Err(IoStatus::OutOfRange),
            IoOp::ZoneAppend if !is_start => Err(IoStatus::Misaligned),
            IoOp::ZoneAppend if io.len > self.append_max => Err(IoStatus::Unsupported),
            IoOp::ZoneOpen | IoOp::ZoneClose | IoOp::ZoneFinish | IoOp::ZoneReset => {
                let all = io.offset == 0 && io.len == size;
                if all || is_start && self.is_one(io.len) { Ok(()) } else { Err(IoStatus::Misaligned) }
            }
            IoOp::Write | IoOp::WriteZeroes | IoOp::ZoneAppend if self.crosses(io.offset, io.len) => {
                Err(IoStatus::ZoneBoundary)
            }
            IoOp::Read | IoOp::Compare | IoOp::Verify if !self.read_across && self.crosses(io.offset, io.len) => {
                Err(IoStatus::ZoneBoundary)
            }
            _ => Ok(()),
        }
    }
}

/// Attribute of a zone: the device finished it by itself.
pub const ZONE_FINISHED_BY_DEVICE: u8 = 1 << 0;
/// Attribute of a zone: it should be finished soon.
pub const ZONE_FINISH_RECOMMENDED: u8 = 1 << 1;
/// Attribute of a zone: it should be reset soon.
pub const ZONE_RESET_RECOMMENDED: u8 = 1 << 2;

/// One zone as [`IoOp::ZoneReport`] tells of it. A record of zeros is none: the state of a zone is never 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ZoneRecord {
    /// First byte of the zone.
    pub start: U64,
    /// Bytes of it that can be written, from its start on.
    pub capacity: U64,
    /// Byte of the device that is written next; [`ZoneRecord::NO_POINTER`] in a full, read only or offline zone.
    pub write_pointer: U64,
    /// Its state.
    pub state: ZoneState,
    /// Bits `ZONE_*`.
    pub attributes: u8,
    /// Zeros.
    pub reserved: [u8; 6],
}

const _: () = assert!(size_of::<ZoneRecord>() == ZoneRecord::LEN);

impl ZoneRecord {
    /// Bytes of a record.
    pub const LEN: usize = 32;

    /// The write pointer of a zone that has none.
    pub const NO_POINTER: u64 = u64::MAX;
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bdev::device::testing::One;
    use crate::bdev::leaf::{Book, Leaf};
    use crate::bdev::{BlockDevice, DeviceLimits, OpSet};

    const ZONE: u64 = 64 << 10;
    const SIZE: u64 = 4 * ZONE;

    fn zoned(limits: DeviceLimits, read_across: bool) -> Arc<dyn BlockDevice> {
        let zones = Zones { size: ZONE, append_max: 8192, open_max: None, active_max: None, read_across };
        Leaf::altered(SIZE, true, limits, |traits| {
            traits.zones = Some(zones);
            traits.ops = OpSet::ALL.without(IoOp::CompareAndWrite).without(IoOp::Unmap).with_zones();
        })
    }

    #[test]
    fn what_zones_cannot_have_does_not_reach_the_device() {
        let one = One::new(&zoned(DeviceLimits::default(), false));
        let run = |op: IoOp, offset, len| one.run(op, offset, len, &vec![1; op.data_len(len) as usize]).status;
        let manage = [IoOp::ZoneOpen, IoOp::ZoneClose, IoOp::ZoneFinish, IoOp::ZoneReset];
        for op in manage {
            for (offset, len) in [(512, ZONE), (0, ZONE - 512), (0, 2 * ZONE), (ZONE, SIZE - ZONE), (512, 512)] {
                assert_eq!(run(op, offset, len), IoStatus::Misaligned, "{op:?} {offset}+{len}");
            }
            assert_eq!(run(op, SIZE, ZONE), IoStatus::OutOfRange);
        }
        for (op, offset, len, status) in [
            (IoOp::ZoneAppend, 512, 512, IoStatus::Misaligned),
            (IoOp::ZoneAppend, ZONE, 8192 + 512, IoStatus::Unsupported),
            (IoOp::ZoneAppend, SIZE, 512, IoStatus::OutOfRange),
            (IoOp::ZoneAppend, 0, 0, IoStatus::Empty),
            (IoOp::ZoneReport, 512, 64, IoStatus::Misaligned),
            (IoOp::ZoneReport, SIZE, 64, IoStatus::OutOfRange),
            (IoOp::ZoneReport, 0, 0, IoStatus::Empty),
            (IoOp::Write, ZONE - 512, 1024, IoStatus::ZoneBoundary),
            (IoOp::WriteZeroes, ZONE - 512, 1024, IoStatus::ZoneBoundary),
            (IoOp::Read, ZONE - 512, 1024, IoStatus::ZoneBoundary),
            (IoOp::Compare, ZONE - 512, 1024, IoStatus::ZoneBoundary),
            (IoOp::Verify, ZONE - 512, 1024, IoStatus::ZoneBoundary),
            (IoOp::Unmap, 0, 512, IoStatus::Unsupported),
        ] {
            assert_eq!(run(op, offset, len), status, "{op:?} {offset}+{len}");
        }
        assert_eq!(one.run(IoOp::ZoneReport, 0, 64, &[0; 32]).status, IoStatus::DataLength);
        assert_eq!(Book::of(&one.reactor).take_log(), [], "none of it");
        for (op, offset, len) in [
            (IoOp::ZoneAppend, ZONE, 8192),
            (IoOp::ZoneReport, 3 * ZONE, 100),
            (IoOp::ZoneReset, 3 * ZONE, ZONE),
            (IoOp::ZoneFinish, 0, SIZE),
            (IoOp::Write, ZONE - 512, 512),
        ] {
            assert_eq!(run(op, offset, len), IoStatus::Success, "{op:?} {offset}+{len}");
            assert_eq!(Book::of(&one.reactor).take_log(), [(op, offset, len)]);
        }
        one.close();
        let one = One::new(&zoned(DeviceLimits::default(), true));
        assert_eq!(one.run(IoOp::Read, ZONE - 512, 1024, &[1; 1024]).status, IoStatus::Success);
        one.close();
    }

    #[test]
    fn a_device_without_zones_has_none_of_it() {
        let one = One::new(&Leaf::device(SIZE, true, DeviceLimits::default()));
        for op in IoOp::ALL.into_iter().filter(|op| op.is_of_zones()) {
            let data = vec![0; op.data_len(4096) as usize];
            assert_eq!(one.run(op, 0, 4096, &data).status, IoStatus::Unsupported, "{op:?}");
        }
        one.close();
    }

    #[test]
    fn pieces_of_a_write_to_a_zone_follow_each_other() {
        let limits =
            DeviceLimits { transfer_max: 4096, zeroes_max: 4096, boundary: 16 << 10, ..DeviceLimits::default() };
        let one = One::new(&zoned(limits, false));
        let book = Book::of(&one.reactor);
        for (op, together) in [(IoOp::Write, 1), (IoOp::WriteZeroes, 1), (IoOp::Read, 4)] {
            book.holds.set(true);
            let io = one.io(op, ZONE + 8192, 16 << 10, &vec![3; op.data_len(16 << 10) as usize], &[]);
            let (handle, there) = (one.handle.clone(), book.clone());
            let status = one.reactor.run_until(async move {
                let reactor = handle.reactor().clone();
                let watched = reactor.clone();
                let most = std::rc::Rc::new(std::cell::Cell::new((0, false)));
                let seen = most.clone();
                reactor.spawn("watch", async move {
                    while !seen.get().1 {
                        for _ in 0..20 {
                            watched.yield_now().await;
                        }
                        seen.set((seen.get().0.max(there.held.len()), seen.get().1));
                        there.release(1, IoStatus::Success);
                    }
                });
                let done = crate::bdev::device::testing::end(&handle, io).await;
                let (in_flight, _) = most.get();
                most.set((in_flight, true));
                assert_eq!(in_flight, together, "{op:?}");
                done.status
            });
            assert_eq!(status, IoStatus::Success);
            let log: Vec<_> = (0..4).map(|piece| (op, ZONE + 8192 + piece * 4096, 4096)).collect();
            assert_eq!(book.take_log(), log);
        }
        // What an append or a report has is not cut.
        book.holds.set(false);
        for op in [IoOp::ZoneAppend, IoOp::ZoneReport] {
            assert_eq!(one.run(op, ZONE, 8192, &[0; 8192]).status, IoStatus::Success);
            assert_eq!(book.take_log(), [(op, ZONE, 8192)]);
        }
        one.close();
    }
}
