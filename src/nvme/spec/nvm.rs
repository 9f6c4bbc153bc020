//! Fields of the I/O commands of the NVM Command Set.

use core::mem::size_of;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{NvmOpcode, Sqe};

/// Dword 12 of Read, Write, Compare, Verify, Write Zeroes and Zone Append (NVM §3.2.1, §3.2.4 to §3.2.6, §3.2.8, ZNS §3.4.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RwCdw12(pub u32);

impl RwCdw12 {
    /// Limited Retry.
    pub const LIMITED_RETRY: u32 = 1 << 31;
    /// Force Unit Access.
    pub const FUA: u32 = 1 << 30;
    /// Protection information action and checks, bits 29:26.
    pub const PRINFO: u32 = 0xf << 26;
    /// Deallocate (Write Zeroes only).
    pub const DEAC: u32 = 1 << 25;
    /// Storage Tag Check.
    pub const STC: u32 = 1 << 24;
    /// Directive Type (Write and Write Zeroes), bits 23:20.
    pub const DTYPE: u32 = 0xf << 20;

    /// Number of logical blocks, zero's-based.
    pub const fn nlb_z(self) -> u16 {
        self.0 as u16
    }
}

/// A command on a range of blocks: Read, Write, Compare, Verify, Write Zeroes or Zone Append, by `opcode`, without a data
/// pointer (NVM §3.2, ZNS §3.4.1). `flags` are bits of [`RwCdw12`].
// In one piece, and always inline: set field by field, entries are built on the stack and copied.
#[inline(always)]
pub fn ranged(opcode: NvmOpcode, nsid: u32, slba: u64, nlb_z: u16, flags: u32) -> Sqe {
    Sqe {
        cdw10: U32::new(slba as u32),
        cdw11: U32::new((slba >> 32) as u32),
        cdw12: U32::new(nlb_z as u32 | flags),
        ..Sqe::bare(opcode.0, nsid)
    }
}

/// Dataset Management of `ranges_z` ranges, zero's-based, whose array is the data (NVM §3.2.3). `attributes` are bits of
/// [`DsmAttributes`]; a controller may ignore them.
#[inline]
pub fn dataset_management(nsid: u32, ranges_z: u8, attributes: u32) -> Sqe {
    let mut sqe = Sqe::bare(NvmOpcode::DATASET_MANAGEMENT.0, nsid);
    sqe.cdw10.set(ranges_z as u32);
    sqe.cdw11.set(attributes);
    sqe
}

/// Number of ranges of a Dataset Management command, zero's-based.
pub const fn dsm_ranges_z(sqe: &Sqe) -> u8 {
    sqe.cdw10.get() as u8
}

/// Dword 11 of Dataset Management: attributes (NVM §3.2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DsmAttributes(pub u32);

impl DsmAttributes {
    /// Integral Dataset for Read: a hint.
    pub const INTEGRAL_READ: u32 = 1 << 0;
    /// Integral Dataset for Write: a hint.
    pub const INTEGRAL_WRITE: u32 = 1 << 1;
    /// Deallocate the ranges.
    pub const DEALLOCATE: u32 = 1 << 2;
}

/// Most ranges one Dataset Management command carries (NVM §3.2.3).
pub const DSM_MAX_RANGES: usize = 256;

/// One range of a Dataset Management command, 16 bytes (NVM §3.2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DsmRange {
    /// Context attributes: hints.
    pub attributes: U32,
    /// Length in logical blocks, not zero's-based.
    pub blocks: U32,
    /// Starting LBA.
    pub slba: U64,
}

const _: () = assert!(size_of::<DsmRange>() == 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranged_golden_bytes() {
        let sqe = ranged(NvmOpcode::WRITE_ZEROES, 2, 0x1_0000_0010, 0x00ff, RwCdw12::FUA | RwCdw12::DEAC);
        let mut want = [0; 64];
        want[..8].copy_from_slice(&[0x08, 0, 0, 0, 2, 0, 0, 0]);
        want[40..52].copy_from_slice(&[0x10, 0, 0, 0, 1, 0, 0, 0, 0xff, 0, 0, 0x42]);
        assert_eq!(sqe.as_bytes(), want);
        assert_eq!((sqe.slba(), RwCdw12(sqe.cdw12.get()).nlb_z()), (0x1_0000_0010, 255));
        assert_eq!(
            ranged(NvmOpcode::VERIFY, 1, 0, u16::MAX, 0).as_bytes()[40..52],
            [0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0]
        );
        assert_eq!(ranged(NvmOpcode::COMPARE, 1, 1, 0, 0).as_bytes()[..1], [0x05]);
    }

    #[test]
    fn dataset_management_golden_bytes() {
        let sqe = dataset_management(3, 255, DsmAttributes::DEALLOCATE);
        assert_eq!(sqe.as_bytes()[..8], [0x09, 0, 0, 0, 3, 0, 0, 0]);
        assert_eq!(sqe.as_bytes()[40..48], [0xff, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(usize::from(dsm_ranges_z(&sqe)) + 1, DSM_MAX_RANGES);
        let range = DsmRange { attributes: U32::ZERO, blocks: U32::new(8), slba: U64::new(0x1_0000_0000) };
        assert_eq!(range.as_bytes(), [0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    }
}
