//! Log pages (Base §5.16).

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Sqe;
use crate::util::open_enum;

open_enum! {
    /// Log Page Identifier (Base §5.16.1).
    pub enum LogId: u8 {
        /// Supported Log Pages.
        SUPPORTED_PAGES = 0x00,
        /// Error Information.
        ERROR = 0x01,
        /// SMART / Health Information.
        SMART = 0x02,
        /// Firmware Slot Information.
        FIRMWARE_SLOT = 0x03,
        /// Changed Namespace List.
        CHANGED_NAMESPACES = 0x04,
        /// Commands Supported and Effects.
        COMMANDS_EFFECTS = 0x05,
        /// Asymmetric Namespace Access.
        ANA = 0x0c,
        /// Feature Identifiers Supported and Effects.
        FEATURES_EFFECTS = 0x12,
        /// NVMe-MI Commands Supported and Effects.
        MI_COMMANDS_EFFECTS = 0x13,
        /// Discovery.
        DISCOVERY = 0x70,
    }
}

/// Fields of the Get Log Page command (Base §5.16).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetLogFields {
    /// Which log page.
    pub lid: LogId,
    /// Log specific field, bits 14:8 of dword 10.
    pub lsp: u8,
    /// Retain Asynchronous Event.
    pub rae: bool,
    /// Number of dwords, zero's-based.
    pub numd_z: u32,
    /// Log specific identifier.
    pub lsi: u16,
    /// Offset in bytes, or an index when `offset_is_index`.
    pub offset: u64,
    /// Offset Type: the offset is an index of an entry.
    pub offset_is_index: bool,
    /// Command set identifier.
    pub csi: u8,
}

impl GetLogFields {
    /// Reads dwords 10 to 14.
    pub const fn of(sqe: &Sqe) -> Self {
        let cdw10 = sqe.cdw10.get();
        let cdw11 = sqe.cdw11.get();
        let cdw14 = sqe.cdw14.get();
        Self {
            lid: LogId(cdw10 as u8),
            lsp: (cdw10 >> 8) as u8 & 0x7f,
            rae: cdw10 & 1 << 15 != 0,
            numd_z: cdw10 >> 16 | cdw11 << 16,
            lsi: (cdw11 >> 16) as u16,
            offset: sqe.cdw12.get() as u64 | (sqe.cdw13.get() as u64) << 32,
            offset_is_index: cdw14 & 1 << 23 != 0,
            csi: (cdw14 >> 24) as u8,
        }
    }

    /// Writes dwords 10 to 14.
    pub fn put(self, sqe: &mut Sqe) {
        sqe.cdw10.set(self.lid.0 as u32 | (self.lsp as u32 & 0x7f) << 8 | (self.rae as u32) << 15 | self.numd_z << 16);
        sqe.cdw11.set(self.numd_z >> 16 | (self.lsi as u32) << 16);
        sqe.cdw12.set(self.offset as u32);
        sqe.cdw13.set((self.offset >> 32) as u32);
        sqe.cdw14.set((self.offset_is_index as u32) << 23 | (self.csi as u32) << 24);
    }

    /// Bytes asked for; up to 16 GiB, so wider than the field.
    pub const fn len(self) -> u64 {
        (self.numd_z as u64 + 1) * 4
    }

    /// Never: the shortest transfer is one dword.
    pub const fn is_empty(self) -> bool {
        false
    }
}

/// Entry of the Error Information log page, 64 bytes (Base §5.16.1.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ErrorLogEntry {
    /// Incremented for each error; 0 marks an unused entry.
    pub error_count: U64,
    /// Submission queue identifier.
    pub sqid: U16,
    /// Command identifier.
    pub cid: U16,
    /// Status field in bits 15:1, phase tag (0 over fabrics) in bit 0.
    pub status: U16,
    /// Parameter error location: byte in bits 7:0, bit in bits 10:8; FFFFh when not specific to a parameter.
    pub parameter_location: U16,
    /// First LBA that experienced the error.
    pub lba: U64,
    /// Namespace identifier.
    pub nsid: U32,
    /// Vendor specific information available: log page of it.
    pub vendor: u8,
    /// Transport type.
    pub trtype: u8,
    /// Reserved.
    pub reserved30: [u8; 2],
    /// Command specific information.
    pub command_specific: U64,
    /// Transport type specific information.
    pub transport_specific: U16,
    /// Reserved.
    pub reserved42: [u8; 22],
}

const _: () = assert!(size_of::<ErrorLogEntry>() == 64);
const _: () = assert!(offset_of!(ErrorLogEntry, trtype) == 29);
const _: () = assert!(offset_of!(ErrorLogEntry, command_specific) == 32);

/// SMART / Health Information log page, 512 bytes (Base §5.16.1.3).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SmartLog {
    /// Critical warning bits: 0 spare, 1 temperature, 2 reliability, 3 read only, 4 backup, 5 persistent memory.
    pub critical_warning: u8,
    /// Composite temperature in kelvin; 0 when not reported.
    pub temperature_k: U16,
    /// Available spare in percent.
    pub available_spare: u8,
    /// Available spare threshold in percent.
    pub available_spare_threshold: u8,
    /// Percentage used.
    pub percentage_used: u8,
    /// Endurance group critical warning summary.
    pub endurance_group_summary: u8,
    /// Reserved.
    pub reserved7: [u8; 25],
    /// Data read, in units of 1,000 times 512 bytes, rounded up.
    pub data_units_read: U128,
    /// Data written, in the same unit.
    pub data_units_written: U128,
    /// Read and compare commands completed.
    pub host_read_commands: U128,
    /// Write commands completed.
    pub host_write_commands: U128,
    /// Time the controller was busy with I/O, in minutes.
    pub controller_busy_time_min: U128,
    /// Power cycles.
    pub power_cycles: U128,
    /// Power-on hours.
    pub power_on_hours: U128,
    /// Unsafe shutdowns.
    pub unsafe_shutdowns: U128,
    /// Media and data integrity errors.
    pub media_errors: U128,
    /// Error Information log entries over the life of the controller.
    pub error_log_entries: U128,
    /// Minutes above the warning temperature.
    pub warning_temperature_min: U32,
    /// Minutes above the critical temperature.
    pub critical_temperature_min: U32,
    /// Temperature sensors in kelvin; 0 when not implemented.
    pub temperature_sensors_k: [U16; 8],
    /// Thermal management counters.
    pub thermal_management: [U32; 4],
    /// Reserved.
    pub reserved232: [u8; 280],
}

const _: () = assert!(size_of::<SmartLog>() == 512);
const _: () = assert!(offset_of!(SmartLog, data_units_read) == 32);
const _: () = assert!(offset_of!(SmartLog, error_log_entries) == 176);
const _: () = assert!(offset_of!(SmartLog, temperature_sensors_k) == 200);

/// Firmware Slot Information log page, 512 bytes (Base §5.16.1.4).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FirmwareSlotLog {
    /// Active firmware: bits 2:0 the slot in use, bits 6:4 the slot after the next reset.
    pub afi: u8,
    /// Reserved.
    pub reserved1: [u8; 7],
    /// Firmware revision of slots 1 to 7, ASCII; all 0 when the slot is empty.
    pub frs: [[u8; 8]; 7],
    /// Reserved.
    pub reserved64: [u8; 448],
}

const _: () = assert!(size_of::<FirmwareSlotLog>() == 512);

/// Most namespaces the Changed Namespace List names; beyond, its first entry is FFFFFFFFh (Base §5.16.1.5).
pub const CHANGED_NAMESPACES_MAX: usize = 1024;

/// Commands Supported and Effects log page, 4,096 bytes (Base §5.16.1.6).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CommandsEffectsLog {
    /// Admin commands by opcode, bits of [`CommandEffects`].
    pub admin: [U32; 256],
    /// I/O commands by opcode.
    pub io: [U32; 256],
    /// Reserved.
    pub reserved2048: [u8; 2048],
}

const _: () = assert!(size_of::<CommandsEffectsLog>() == 4096);

/// Bits of an entry of the Commands Supported and Effects log page (Base §5.16.1.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommandEffects(pub u32);

impl CommandEffects {
    /// The command is supported.
    pub const CSUPP: u32 = 1 << 0;
    /// The command may change logical block content.
    pub const LBCC: u32 = 1 << 1;
    /// The command may change namespace capabilities.
    pub const NCC: u32 = 1 << 2;
    /// The command may change the namespace inventory.
    pub const NIC: u32 = 1 << 3;
    /// The command may change controller capabilities.
    pub const CCC: u32 = 1 << 4;
}

/// Largest number of identifiers in a namespace list (Base §4.3).
pub const NAMESPACE_LIST_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::spec::AdminOpcode;

    #[test]
    fn get_log_fields_round_trip() {
        let mut sqe = Sqe::admin(AdminOpcode::GET_LOG_PAGE, 0);
        let fields = GetLogFields {
            lid: LogId::DISCOVERY,
            lsp: 0x11,
            rae: true,
            numd_z: 0x0012_00ff,
            lsi: 9,
            offset: 0x1_0000_0400,
            offset_is_index: false,
            csi: 2,
        };
        fields.put(&mut sqe);
        assert_eq!(sqe.cdw10.get(), 0x00ff_9170);
        assert_eq!(sqe.cdw11.get(), 0x0009_0012);
        assert_eq!(GetLogFields::of(&sqe), fields);
        assert_eq!(fields.len(), 4 * 0x0012_0100);
    }
}
