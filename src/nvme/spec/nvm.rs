//! Fields of the I/O commands of the NVM Command Set.

use core::mem::size_of;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Dword 12 of Read, Write, Compare and Write Zeroes (NVM §3.2.1, §3.2.4, §3.2.6, §3.2.8).
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
