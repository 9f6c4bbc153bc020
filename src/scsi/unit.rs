//! A logical unit as its owner describes it. Every limit is shown to initiators and enforced, so it is real.

use super::spec::ascii_field;

/// Most blocks that fit one descriptor of UNMAP, and what Block Limits shows for a limit that is higher.
const UNMAP_LIMIT: u32 = 1 << 20;

/// Block descriptors of one UNMAP, at most.
pub const UNMAP_DESCRIPTORS_MAX: u32 = 256;

/// Bytes of the names of a logical unit as standard INQUIRY shows them.
const VENDOR_LEN: usize = 8;
const PRODUCT_LEN: usize = 16;
const REVISION_LEN: usize = 4;

/// Largest exponent of physical blocks that READ CAPACITY(16) can show.
const EXPONENT_MAX: u8 = 15;

/// Writes that others see whole or not at all (WRITE ATOMIC(16), SBC-4 §4.29). All in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Atomic {
    /// Most blocks of one, 1 or above and at most [`Unit::transfer_max`].
    pub max: u32,
    /// The first block is a multiple of it, 1 or above.
    pub alignment: u32,
    /// The length is a multiple of it, 1 or above.
    pub granularity: u32,
}

/// The task management functions that the transport carries out, for REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4 §6.36).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskFunctions {
    /// ABORT TASK.
    pub abort_task: bool,
    /// ABORT TASK SET.
    pub abort_task_set: bool,
    /// CLEAR ACA.
    pub clear_aca: bool,
    /// CLEAR TASK SET.
    pub clear_task_set: bool,
    /// LOGICAL UNIT RESET.
    pub unit_reset: bool,
    /// QUERY TASK.
    pub query_task: bool,
    /// TARGET RESET.
    pub target_reset: bool,
    /// QUERY ASYNCHRONOUS EVENT.
    pub query_event: bool,
    /// QUERY TASK SET.
    pub query_task_set: bool,
    /// I_T NEXUS RESET.
    pub nexus_reset: bool,
}

/// A logical unit. Lengths are in blocks if nothing else is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// Size, not 0.
    pub blocks: u64,
    /// Block size in bytes: 512 or 4096.
    pub block_size: u32,
    /// A physical block is 2 to the power of this many blocks, at most 15.
    pub physical_block_exponent: u8,
    /// Writes are refused, whatever the initiator sets.
    pub read_only: bool,
    /// UNMAP and WRITE SAME with UNMAP deallocate blocks, which then read as zeros.
    pub can_unmap: bool,
    /// Unmapped blocks can keep their resources. Only with `can_unmap`.
    pub can_anchor: bool,
    /// Most blocks that one UNMAP deallocates in sum, at least a physical block with `can_unmap`; 1 Mi and above: 1 Mi is shown.
    pub unmap_max: u32,
    /// What UNMAP should be a multiple of; 0: nothing is said.
    pub unmap_granularity: u32,
    /// First block of a granule of `unmap_granularity`; `None`: nothing is said.
    pub unmap_alignment: Option<u32>,
    /// Most blocks of one WRITE SAME; 0 for no limit.
    pub write_same_max: u64,
    /// Most blocks of one COMPARE AND WRITE; 0: there is no such command.
    pub compare_and_write_max: u8,
    /// Most blocks of a command that moves data; 0 for no limit.
    pub transfer_max: u32,
    /// Preferred length of a transfer; 0: nothing is said.
    pub optimal_transfer: u32,
    /// Preferred granularity of a transfer; 0: nothing is said.
    pub optimal_granularity: u16,
    /// WRITE ATOMIC(16); `None`: there is no such command.
    pub atomic: Option<Atomic>,
    /// Writes may be lost with the power until SYNCHRONIZE CACHE.
    pub volatile_cache: bool,
    /// EXTENDED COPY is carried out.
    pub copies: bool,
    /// Stable identity, big-endian as in RFC 9562: the NAA designator and the serial number follow from it.
    pub uuid: [u8; 16],
    /// T10 vendor identification.
    pub vendor: String,
    /// Product identification.
    pub product: String,
    /// Product revision.
    pub revision: String,
    /// Version descriptor of the transport (SPC-4 §6.6.2, table of version descriptors); 0 for none. 0960h is iSCSI.
    pub transport_version: u16,
    /// The task management functions.
    pub task_functions: TaskFunctions,
}

/// Why a [`Unit`] cannot be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// No blocks, or more bytes than 64 bits count.
    #[error("the size must be one block or more, and below 2^64 bytes")]
    Size,
    /// Not 512 or 4096.
    #[error("the block size must be 512 or 4096 bytes")]
    BlockSize,
    /// An exponent above 15.
    #[error("the physical block must not exceed 2^15 blocks")]
    PhysicalBlock,
    /// Anchors or limits of UNMAP do not fit together.
    #[error("the limits of UNMAP do not fit together")]
    Unmap,
    /// The limits of WRITE ATOMIC do not fit together.
    #[error("the limits of atomic writes do not fit together")]
    Atomic,
}

impl Unit {
    /// Checks what the type does not.
    ///
    /// # Errors
    /// The first [`UnitError`] found.
    pub fn check(&self) -> Result<(), UnitError> {
        if !matches!(self.block_size, 512 | 4096) {
            return Err(UnitError::BlockSize);
        }
        if self.blocks == 0 || self.blocks > u64::MAX >> self.block_shift() {
            return Err(UnitError::Size);
        }
        if self.physical_block_exponent > EXPONENT_MAX {
            return Err(UnitError::PhysicalBlock);
        }
        let least = if self.can_unmap { 1 << self.physical_block_exponent } else { 0 };
        if self.unmap_max < least || self.can_anchor && !self.can_unmap {
            return Err(UnitError::Unmap);
        }
        let fits = |atomic: Atomic| {
            let over = self.transfer_max != 0 && atomic.max > self.transfer_max;
            atomic.max != 0 && atomic.alignment != 0 && atomic.granularity != 0 && !over
        };
        if !self.atomic.is_none_or(fits) {
            return Err(UnitError::Atomic);
        }
        Ok(())
    }

    /// Block size as a power of two.
    #[inline]
    pub const fn block_shift(&self) -> u32 {
        self.block_size.trailing_zeros()
    }

    /// Bytes of `blocks` blocks; saturated, so that no product is ever too small.
    #[inline]
    pub const fn bytes(&self, blocks: u64) -> u64 {
        blocks.saturating_mul(self.block_size as u64)
    }

    /// The address of the last block.
    pub const fn last(&self) -> u64 {
        self.blocks.saturating_sub(1)
    }

    /// Most blocks that one UNMAP deallocates in sum, as Block Limits shows it.
    pub fn unmap_limit(&self) -> u32 {
        if self.can_unmap { self.unmap_max.min(UNMAP_LIMIT) } else { 0 }
    }

    /// The NAA IEEE Registered Extended designator (NAA 6h): 124 bits of the UUID.
    pub fn naa(&self) -> [u8; 16] {
        let mut naa = self.uuid;
        naa[0] = 0x60 | naa[0] & 0x0f;
        naa
    }

    /// The unit serial number: the UUID as 32 hexadecimal digits.
    pub fn serial(&self) -> String {
        self.uuid.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The three identification fields of standard INQUIRY data.
    pub(super) fn names(&self) -> ([u8; VENDOR_LEN], [u8; PRODUCT_LEN], [u8; REVISION_LEN]) {
        (ascii_field(&self.vendor), ascii_field(&self.product), ascii_field(&self.revision))
    }
}

/// A target port, with the names that its transport gives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetPort {
    /// Relative port identifier, not 0.
    pub relative_id: u16,
    /// Target port group.
    pub group: u16,
    /// SCSI name string of the port: `iqn.…,t,0x0001` for iSCSI.
    pub port_name: String,
    /// SCSI name string of the target device: `iqn.…` for iSCSI.
    pub device_name: String,
    /// Protocol identifier (SPC-4 §7.6.1): 5h for iSCSI.
    pub protocol: u8,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::tests::unit;

    #[test]
    fn impossible_units_are_refused() {
        assert_eq!(unit().check(), Ok(()));
        assert_eq!(Unit { blocks: 0, ..unit() }.check(), Err(UnitError::Size));
        assert_eq!(Unit { blocks: 1 << 55, ..unit() }.check(), Err(UnitError::Size));
        assert_eq!(Unit { blocks: (1 << 55) - 1, ..unit() }.check(), Ok(()));
        assert_eq!(Unit { block_size: 1024, ..unit() }.check(), Err(UnitError::BlockSize));
        assert_eq!(Unit { physical_block_exponent: 16, ..unit() }.check(), Err(UnitError::PhysicalBlock));
        assert_eq!(Unit { unmap_max: 0, ..unit() }.check(), Err(UnitError::Unmap));
        assert_eq!(Unit { can_unmap: false, can_anchor: true, ..unit() }.check(), Err(UnitError::Unmap));
        assert_eq!(Unit { can_unmap: false, can_anchor: false, unmap_max: 0, ..unit() }.check(), Ok(()));
        let atomic = |max, alignment, granularity| Some(Atomic { max, alignment, granularity });
        for bad in [atomic(0, 1, 1), atomic(1, 0, 1), atomic(1, 1, 0), atomic(unit().transfer_max + 1, 1, 1)] {
            assert_eq!(Unit { atomic: bad, ..unit() }.check(), Err(UnitError::Atomic));
        }
    }

    #[test]
    fn identity_follows_from_the_uuid() {
        let unit = Unit { uuid: *b"\xf1\x02abcdefghijklm\xff", ..unit() };
        assert_eq!(unit.naa()[0], 0x61);
        assert_eq!(unit.naa()[1..], unit.uuid[1..]);
        assert_eq!(unit.serial(), "f1026162636465666768696a6b6c6dff");
    }
}
