//! Log pages (Base §5.16).

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{AdminOpcode, NvmOpcode, Sqe, Status};
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
        /// Changed Zone List (ZNS §4.1.4).
        CHANGED_ZONES = 0xbf,
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
    /// `len` bytes, whole dwords and at least one, of a log from byte `offset` on.
    pub const fn new(lid: LogId, offset: u64, len: usize) -> Self {
        let numd_z = (len / 4).saturating_sub(1) as u32;
        Self { lid, lsp: 0, rae: false, numd_z, lsi: 0, offset, offset_is_index: false, csi: 0 }
    }

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

impl ErrorLogEntry {
    /// The status field.
    pub const fn status(&self) -> Status {
        Status::from_wire(self.status.get())
    }

    /// The entries in use of a page, newest first; what is left over behind the last whole one is none.
    pub fn list(page: &[u8]) -> impl Iterator<Item = &Self> {
        page.chunks_exact(size_of::<Self>())
            .filter_map(|bytes| Self::ref_from_bytes(bytes).ok())
            .filter(|entry| entry.error_count.get() != 0)
    }
}

/// Bits of [`SmartLog::critical_warning`] (Base §5.16.1.3).
pub mod critical_warning {
    /// Available spare is below its threshold.
    pub const SPARE: u8 = 1 << 0;
    /// A temperature is beyond its threshold.
    pub const TEMPERATURE: u8 = 1 << 1;
    /// Reliability is degraded.
    pub const RELIABILITY: u8 = 1 << 2;
    /// The media are read only.
    pub const READ_ONLY: u8 = 1 << 3;
    /// The backup of volatile memory has failed.
    pub const BACKUP: u8 = 1 << 4;
    /// The persistent memory region is read only or unreliable.
    pub const PERSISTENT_MEMORY: u8 = 1 << 5;
}

/// SMART / Health Information log page, 512 bytes (Base §5.16.1.3).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SmartLog {
    /// Critical warning bits, [`critical_warning`].
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

impl FirmwareSlotLog {
    /// Slot in use, 1 to 7; 0 is none that a controller may say.
    pub const fn active_slot(&self) -> u8 {
        self.afi & 7
    }

    /// Slot in use after the next reset, or 0 if that is not said.
    pub const fn next_slot(&self) -> u8 {
        self.afi >> 4 & 7
    }

    /// Firmware revision of `slot`, `None` for an empty slot and for one that there cannot be.
    pub fn revision(&self, slot: u8) -> Option<&[u8; 8]> {
        self.frs.get(usize::from(slot).checked_sub(1)?).filter(|revision| **revision != [0; 8])
    }
}

/// Most namespaces the Changed Namespace List names; beyond, its first entry is FFFFFFFFh (Base §5.16.1.5).
pub const CHANGED_NAMESPACES_MAX: usize = 1024;

/// Whether a Changed Namespace List says only that there were more than it can name (Base §5.16.1.5): then every namespace may
/// have changed. Else [`super::namespace_list`] reads it.
pub fn all_namespaces_changed(page: &[u8]) -> bool {
    page.first_chunk().is_some_and(|first| u32::from_le_bytes(*first) == u32::MAX)
}

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

impl CommandsEffectsLog {
    /// Effects of an admin command.
    pub fn of_admin(&self, opcode: AdminOpcode) -> CommandEffects {
        CommandEffects(self.admin[usize::from(opcode.0)].get())
    }

    /// Effects of an I/O command of the command set that the page was asked for.
    pub fn of_io(&self, opcode: NvmOpcode) -> CommandEffects {
        CommandEffects(self.io[usize::from(opcode.0)].get())
    }
}

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

    /// Whether the command is supported.
    pub const fn supported(self) -> bool {
        self.0 & Self::CSUPP != 0
    }

    /// Command Submission and Execution: 0 no restriction, 1 nothing else outstanding for the namespace, 2 for any namespace.
    pub const fn cse(self) -> u8 {
        (self.0 >> 16) as u8 & 7
    }
}

/// Largest number of identifiers in a namespace list (Base §4.3).
pub const NAMESPACE_LIST_MAX: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::spec::StatusCode;

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

    #[test]
    fn error_log_golden_bytes() {
        let mut page = [0; 3 * 64 + 63];
        page[..8].copy_from_slice(&[9, 0, 0, 0, 0, 0, 0, 0]);
        page[8..16].copy_from_slice(&[2, 0, 0x34, 0x12, 0x03, 0x05, 0x28, 0x00]);
        page[16..28].copy_from_slice(&[0x80, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0]);
        // The second one is unused, behind the third follows no whole one.
        page[128] = 8;
        page[192] = 7;
        let entries: Vec<_> = ErrorLogEntry::list(&page).collect();
        assert_eq!(entries.iter().map(|entry| entry.error_count.get()).collect::<Vec<_>>(), [9, 8]);
        let first = entries[0];
        assert_eq!((first.sqid.get(), first.cid.get(), first.parameter_location.get()), (2, 0x1234, 0x28));
        assert_eq!((first.lba.get(), first.nsid.get()), (0x1_0000_0080, 3));
        assert_eq!(first.status(), StatusCode::UNRECOVERED_READ_ERROR.retry());
        assert_eq!(ErrorLogEntry::list(&[]).count(), 0);
    }

    #[test]
    fn smart_log_golden_bytes() {
        let mut page = [0; 512];
        page[..6].copy_from_slice(&[0x0a, 0x39, 0x01, 99, 10, 3]);
        page[32..40].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
        page[47] = 0x80;
        page[200..204].copy_from_slice(&[0x3a, 0x01, 0, 0]);
        let log = SmartLog::read_from_bytes(&page).unwrap();
        assert_eq!(log.critical_warning, critical_warning::TEMPERATURE | critical_warning::READ_ONLY);
        assert_eq!((log.temperature_k.get(), log.available_spare, log.percentage_used), (313, 99, 3));
        assert_eq!(log.data_units_read.get(), 1 << 127 | 1);
        assert_eq!((log.temperature_sensors_k[0].get(), log.temperature_sensors_k[1].get()), (314, 0));
    }

    #[test]
    fn firmware_log_golden_bytes() {
        let mut page = [0; 512];
        page[0] = 0x21;
        page[8..16].copy_from_slice(b"1.0     ");
        page[56..64].copy_from_slice(b"2.0     ");
        let log = FirmwareSlotLog::read_from_bytes(&page).unwrap();
        assert_eq!((log.active_slot(), log.next_slot()), (1, 2));
        assert_eq!((log.revision(1), log.revision(7)), (Some(b"1.0     "), Some(b"2.0     ")));
        for slot in [0, 2, 8, u8::MAX] {
            assert_eq!(log.revision(slot), None);
        }
    }

    #[test]
    fn effects_golden_bytes() {
        let mut page = vec![0; 4096];
        page[4 * 0x80..][..4].copy_from_slice(&[0x0f, 0, 0x02, 0]);
        page[1024 + 4..][..4].copy_from_slice(&[0x03, 0, 0, 0]);
        let log = CommandsEffectsLog::ref_from_bytes(&page).unwrap();
        let format = log.of_admin(AdminOpcode::FORMAT_NVM);
        assert_eq!((format.supported(), format.cse()), (true, 2));
        assert_eq!(
            format.0 & 0x1f,
            CommandEffects::CSUPP | CommandEffects::LBCC | CommandEffects::NCC | CommandEffects::NIC
        );
        assert_eq!(log.of_io(NvmOpcode::WRITE), CommandEffects(CommandEffects::CSUPP | CommandEffects::LBCC));
        assert!(!log.of_io(NvmOpcode::READ).supported() && !log.of_admin(AdminOpcode(0xff)).supported());
    }

    #[test]
    fn changed_namespaces() {
        assert!(all_namespaces_changed(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]));
        assert!(!all_namespaces_changed(&[1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]));
        assert!(!all_namespaces_changed(&[0xff; 3]));
    }
}
