//! What an initiator needs whatever the transport: the geometry of a namespace, the command of an I/O, the meaning of a status.
//!
//! ```text
//!   geometry   Identify data -> Geometry -> traits of a block device
//!   mod        Io + Place -> command without identifier and data pointer: the transport adds both
//!   status     status of a completion -> IoStatus
//! ```

mod geometry;
mod status;

pub use geometry::{Deallocate, Geometry, Identified, Unmapping, Unusable, identity, transfer_max};
pub use status::{io_status, is_for_now, pair_status};

use zerocopy::little_endian::{U32, U64};

use crate::nvme::spec::{
    DsmAttributes, DsmRange, Fuse, NvmOpcode, RwCdw12, Sqe, ZoneReceiveAction, ZoneReceiveFields, ZoneReportFilter,
    ZoneSendAction, ZoneSendFields, dataset_management, ranged,
};
use crate::reactor::io::{IoCell, IoOp};

/// Blocks of one Read, Write, Compare, Verify, Write Zeroes or Zone Append: a 16-bit field, zero's-based (NVM §3.2).
pub const BLOCKS_MAX: u64 = 1 << 16;

/// Blocks of one range of Dataset Management: a 32-bit field, not zero's-based (NVM §3.2.3).
pub const RANGE_BLOCKS_MAX: u64 = u32::MAX as u64;

/// The namespace that an I/O addresses, as it may wait in the I/O's scratch word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Namespace identifier.
    pub nsid: u32,
    /// log2 of the block size in bytes.
    pub shift: u8,
}

impl Place {
    /// Packs it into a word.
    #[inline]
    pub fn to_bits(self) -> u64 {
        u64::from(self.nsid) | u64::from(self.shift) << 32
    }

    /// Unpacks it.
    #[inline]
    pub fn of(bits: u64) -> Place {
        Place { nsid: bits as u32, shift: (bits >> 32) as u8 }
    }

    /// A command on `len` bytes from `offset`, whole blocks and at least one, at most [`BLOCKS_MAX`]. `flags` are bits of
    /// [`RwCdw12`]: Write Zeroes takes [`RwCdw12::DEAC`].
    #[inline(always)]
    pub fn ranged(self, opcode: NvmOpcode, offset: u64, len: u64, flags: u32) -> Sqe {
        debug_assert!((offset | len) & ((1 << self.shift) - 1) == 0 && (1..=BLOCKS_MAX).contains(&(len >> self.shift)));
        ranged(opcode, self.nsid, offset >> self.shift, ((len >> self.shift) - 1) as u16, flags)
    }

    /// The range of a Dataset Management command for `len` bytes from `offset`, whole blocks, at most [`RANGE_BLOCKS_MAX`].
    #[inline]
    pub fn range(self, offset: u64, len: u64) -> DsmRange {
        debug_assert!((offset | len) & ((1 << self.shift) - 1) == 0 && len >> self.shift <= RANGE_BLOCKS_MAX);
        DsmRange {
            attributes: U32::ZERO,
            blocks: U32::new((len >> self.shift) as u32),
            slba: U64::new(offset >> self.shift),
        }
    }
}

/// The command that carries out an I/O, without identifier and data pointer; of a compare and write the first of the two, whose
/// second is [`fused_write`]. The I/O's range has been checked against the fields. The data of an unmap, which becomes Dataset
/// Management of one range, is [`Place::range`]; that of the others is the I/O's. What manages zones is of one zone: see [`zone_send`].
// Always: a caller that knows the operation is left with the stores of its arm.
#[inline(always)]
pub fn command(io: &IoCell, place: Place) -> Sqe {
    let ranged = |opcode, flags| place.ranged(opcode, io.offset, io.len, flags);
    match io.op {
        IoOp::Read => ranged(NvmOpcode::READ, 0),
        IoOp::Write => ranged(NvmOpcode::WRITE, fua(io)),
        IoOp::Compare => ranged(NvmOpcode::COMPARE, 0),
        IoOp::WriteZeroes => ranged(NvmOpcode::WRITE_ZEROES, fua(io)),
        IoOp::Verify => ranged(NvmOpcode::VERIFY, 0),
        IoOp::CompareAndWrite => {
            let mut sqe = ranged(NvmOpcode::COMPARE, 0);
            sqe.flags |= Fuse::FIRST.0;
            sqe
        }
        IoOp::Unmap => dataset_management(place.nsid, 0, DsmAttributes::DEALLOCATE),
        // A reset is a matter of the transport, and no command tells of extents: no namespace offers them.
        IoOp::Flush | IoOp::Reset | IoOp::Extents => Sqe::bare(NvmOpcode::FLUSH.0, place.nsid),
        IoOp::ZoneAppend => ranged(NvmOpcode::ZONE_APPEND, fua(io)),
        IoOp::ZoneReport => zone_report(io, place),
        IoOp::ZoneOpen | IoOp::ZoneClose | IoOp::ZoneFinish | IoOp::ZoneReset => zone_send(io, place, false),
    }
}

/// The command that manages the zone that an I/O's range begins with, or all zones.
#[cold]
pub fn zone_send(io: &IoCell, place: Place, all: bool) -> Sqe {
    let action = match io.op {
        IoOp::ZoneClose => ZoneSendAction::CLOSE,
        IoOp::ZoneFinish => ZoneSendAction::FINISH,
        IoOp::ZoneOpen => ZoneSendAction::OPEN,
        IoOp::ZoneReset => ZoneSendAction::RESET,
        op => unreachable!("{op:?} manages no zones"),
    };
    ZoneSendFields { slba: io.offset >> place.shift, action, all }.to_sqe(place.nsid)
}

/// The command that reports zones, by their own descriptors, into the data of an I/O: whole dwords.
#[cold]
fn zone_report(io: &IoCell, place: Place) -> Sqe {
    debug_assert!(io.len > 0 && io.len.is_multiple_of(4), "{} bytes", io.len);
    ZoneReceiveFields {
        slba: io.offset >> place.shift,
        numd_z: (io.len / 4 - 1) as u32,
        action: ZoneReceiveAction::REPORT,
        filter: ZoneReportFilter::ALL,
        partial: true,
    }
    .to_sqe(place.nsid)
}

/// The second command of a compare and write: it follows the first without another in between.
#[inline]
pub fn fused_write(io: &IoCell, place: Place) -> Sqe {
    let mut sqe = place.ranged(NvmOpcode::WRITE, io.offset, io.len, fua(io));
    sqe.flags |= Fuse::SECOND.0;
    sqe
}

#[inline]
fn fua(io: &IoCell) -> u32 {
    if io.fua { RwCdw12::FUA } else { 0 }
}

#[cfg(test)]
mod tests;
