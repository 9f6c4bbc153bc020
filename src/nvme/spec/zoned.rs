//! The Zoned Namespace Command Set: what it adds to Identify, its commands, zones as they are reported (ZNS §3.4, §4.1.5).

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{IDENTIFY_LEN, NvmOpcode, Sqe};
pub use crate::util::ZoneState;
use crate::util::open_enum;

/// LBA format extension, 16 bytes (ZNS §4.1.5.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LbaFormatExtension {
    /// Zone size in blocks; 0 if the format is not one of zones.
    pub zsze: U64,
    /// Zone descriptor extension size in units of 64 bytes.
    pub zdes_64b: u8,
    /// Reserved.
    pub reserved9: [u8; 7],
}

const _: () = assert!(size_of::<LbaFormatExtension>() == 16);

/// OZCS bit: reads may cross zones.
pub const OZCS_READ_ACROSS: u16 = 1 << 0;
/// ZOC bit: the capacity of a zone may change when it is reset.
pub const ZOC_VARIABLE_CAPACITY: u16 = 1 << 0;
/// ZOC bit: the controller may finish active zones by itself.
pub const ZOC_ACTIVE_EXCURSIONS: u16 = 1 << 1;

/// I/O Command Set specific Identify Namespace of the Zoned Namespace Command Set, CNS 05h CSI 02h, 4,096 bytes (ZNS §4.1.5.1).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespaceZoned {
    /// Zone operation characteristics, `ZOC_*`.
    pub zoc: U16,
    /// Optional zoned command support, `OZCS_*`.
    pub ozcs: U16,
    /// Maximum active resources, zero's-based; FFFFFFFFh means no limit.
    pub mar_z: U32,
    /// Maximum open resources, zero's-based; FFFFFFFFh means no limit.
    pub mor_z: U32,
    /// Reset recommended limit in seconds.
    pub rrl_s: U32,
    /// Finish recommended limit in seconds.
    pub frl_s: U32,
    /// Reset recommended limits 1 to 3 in seconds.
    pub rrl_more_s: [U32; 3],
    /// Finish recommended limits 1 to 3 in seconds.
    pub frl_more_s: [U32; 3],
    /// Reserved, and fields of later revisions.
    pub reserved44: [u8; 2772],
    /// LBA format extensions, by the index of the format.
    pub lbafe: [LbaFormatExtension; 64],
    /// Vendor specific.
    pub vendor: [u8; 256],
}

const _: () = assert!(size_of::<IdentifyNamespaceZoned>() == IDENTIFY_LEN);
const _: () = assert!(offset_of!(IdentifyNamespaceZoned, frl_s) == 16);
const _: () = assert!(offset_of!(IdentifyNamespaceZoned, lbafe) == 2816);

impl IdentifyNamespaceZoned {
    /// Most active zones; `None` for no limit.
    pub const fn active_max(&self) -> Option<u32> {
        self.mar_z.get().checked_add(1)
    }

    /// Most open zones; `None` for no limit.
    pub const fn open_max(&self) -> Option<u32> {
        self.mor_z.get().checked_add(1)
    }

    /// Zone size in blocks of the format with this index, `None` where it has no zones.
    pub fn zone_blocks(&self, format: u8) -> Option<u64> {
        self.lbafe.get(usize::from(format)).map(|extension| extension.zsze.get()).filter(|blocks| *blocks != 0)
    }
}

/// I/O Command Set specific Identify Controller of the Zoned Namespace Command Set, CNS 06h CSI 02h, 4,096 bytes (ZNS §4.1.5.2).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyControllerZoned {
    /// Zone append size limit: power of two in units of the minimum memory page; 0 means that of MDTS.
    pub zasl: u8,
    /// Reserved.
    pub reserved1: [u8; 4095],
}

const _: () = assert!(size_of::<IdentifyControllerZoned>() == IDENTIFY_LEN);

open_enum! {
    /// Zone Send Action (ZNS §3.4.3).
    pub enum ZoneSendAction: u8 {
        /// Close the zone.
        CLOSE = 0x01,
        /// Finish the zone.
        FINISH = 0x02,
        /// Open the zone.
        OPEN = 0x03,
        /// Reset the zone: its blocks are deallocated.
        RESET = 0x04,
        /// Take a read only zone offline.
        OFFLINE = 0x05,
        /// Set the zone descriptor extension: the data.
        SET_EXTENSION = 0x10,
    }
}

/// Fields of Zone Management Send (ZNS §3.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneSendFields {
    /// First block of the zone; not looked at with `all`.
    pub slba: u64,
    /// What to do.
    pub action: ZoneSendAction,
    /// Select All: all zones in a state that the action is for.
    pub all: bool,
}

impl ZoneSendFields {
    /// Reads dwords 10, 11 and 13.
    pub const fn of(sqe: &Sqe) -> Self {
        let cdw13 = sqe.cdw13.get();
        Self { slba: sqe.slba(), action: ZoneSendAction(cdw13 as u8), all: cdw13 & 1 << 8 != 0 }
    }

    /// The command, without data. The transport sets the command identifier.
    pub fn to_sqe(self, nsid: u32) -> Sqe {
        let mut sqe = Sqe::bare(NvmOpcode::ZONE_MANAGEMENT_SEND.0, nsid);
        sqe.set_slba(self.slba);
        sqe.cdw13.set(self.action.0 as u32 | (self.all as u32) << 8);
        sqe
    }
}

open_enum! {
    /// Zone Receive Action (ZNS §3.4.2).
    pub enum ZoneReceiveAction: u8 {
        /// Report zones.
        REPORT = 0x00,
        /// Report zones with their descriptor extensions.
        EXTENDED_REPORT = 0x01,
    }
}

open_enum! {
    /// Which zones a report is of: Zone Receive Action Specific Field (ZNS §3.4.2).
    pub enum ZoneReportFilter: u8 {
        /// All zones.
        ALL = 0x00,
        /// Empty zones.
        EMPTY = 0x01,
        /// Implicitly opened zones.
        IMPLICITLY_OPEN = 0x02,
        /// Explicitly opened zones.
        EXPLICITLY_OPEN = 0x03,
        /// Closed zones.
        CLOSED = 0x04,
        /// Full zones.
        FULL = 0x05,
        /// Read only zones.
        READ_ONLY = 0x06,
        /// Offline zones.
        OFFLINE = 0x07,
    }
}

/// Fields of Zone Management Receive (ZNS §3.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ZoneReceiveFields {
    /// A block of the first zone to report.
    pub slba: u64,
    /// Dwords of data, zero's-based.
    pub numd_z: u32,
    /// What to do.
    pub action: ZoneReceiveAction,
    /// Which zones.
    pub filter: ZoneReportFilter,
    /// Partial report: the header counts the descriptors in the data, not all that match.
    pub partial: bool,
}

impl ZoneReceiveFields {
    /// Reads dwords 10 to 13.
    pub const fn of(sqe: &Sqe) -> Self {
        let cdw13 = sqe.cdw13.get();
        Self {
            slba: sqe.slba(),
            numd_z: sqe.cdw12.get(),
            action: ZoneReceiveAction(cdw13 as u8),
            filter: ZoneReportFilter((cdw13 >> 8) as u8),
            partial: cdw13 & 1 << 16 != 0,
        }
    }

    /// The command, without a data pointer. The transport sets the command identifier.
    pub fn to_sqe(self, nsid: u32) -> Sqe {
        let mut sqe = Sqe::bare(NvmOpcode::ZONE_MANAGEMENT_RECEIVE.0, nsid);
        sqe.set_slba(self.slba);
        sqe.cdw12.set(self.numd_z);
        sqe.cdw13.set(self.action.0 as u32 | (self.filter.0 as u32) << 8 | (self.partial as u32) << 16);
        sqe
    }

    /// Bytes asked for; up to 16 GiB, so wider than the field.
    pub const fn bytes(self) -> u64 {
        (self.numd_z as u64 + 1) * 4
    }
}

open_enum! {
    /// Zone type (ZNS §2.1).
    pub enum ZoneType: u8 {
        /// Sequential write required.
        SEQUENTIAL_WRITE_REQUIRED = 0x2,
    }
}

/// Zone descriptor, 64 bytes (ZNS §3.4.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ZoneDescriptor {
    /// Zone type, bits 3:0.
    pub zt: u8,
    /// Zone state, bits 7:4.
    pub zs: u8,
    /// Zone attributes, `ZA_*`.
    pub za: u8,
    /// Zone attributes information, and reserved.
    pub reserved3: [u8; 5],
    /// Zone capacity in blocks, at most the zone size.
    pub zcap: U64,
    /// First block of the zone.
    pub zslba: U64,
    /// Write pointer: the next block to be written. Not valid in a full, read only or offline zone.
    pub wp: U64,
    /// Reserved.
    pub reserved32: [u8; 32],
}

const _: () = assert!(size_of::<ZoneDescriptor>() == 64);
const _: () = assert!(offset_of!(ZoneDescriptor, wp) == 24);

/// Zone attribute: the controller finished the zone by itself.
pub const ZA_FINISHED_BY_CONTROLLER: u8 = 1 << 0;
/// Zone attribute: the zone should be finished soon.
pub const ZA_FINISH_RECOMMENDED: u8 = 1 << 1;
/// Zone attribute: the zone should be reset soon.
pub const ZA_RESET_RECOMMENDED: u8 = 1 << 2;
/// Zone attribute: the descriptor extension is valid.
pub const ZA_EXTENSION_VALID: u8 = 1 << 7;

impl ZoneDescriptor {
    /// Zone type.
    pub const fn zone_type(&self) -> ZoneType {
        ZoneType(self.zt & 0xf)
    }

    /// Zone state.
    pub const fn state(&self) -> ZoneState {
        ZoneState(self.zs >> 4)
    }

    /// Sets the zone type and state.
    pub fn set(&mut self, zone_type: ZoneType, state: ZoneState) {
        self.zt = zone_type.0 & 0xf;
        self.zs = state.0 << 4;
    }

    /// Blocks that can still be written, 0 where the write pointer is not valid or not in the zone's capacity.
    pub const fn writable(&self) -> u64 {
        match self.state() {
            ZoneState::EMPTY => self.zcap.get(),
            state if state.is_active() => match self.wp.get().checked_sub(self.zslba.get()) {
                Some(written) => self.zcap.get().saturating_sub(written),
                None => 0,
            },
            _ => 0,
        }
    }
}

/// Header of a zone report, 64 bytes; descriptors follow (ZNS §3.4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ZoneReportHeader {
    /// Number of zones: in the data for a partial report, else of all that match from the one asked for on.
    pub zones: U64,
    /// Reserved.
    pub reserved8: [u8; 56],
}

const _: () = assert!(size_of::<ZoneReportHeader>() == 64);

/// A zone report as it came: the number in its header, and the descriptors that are really there, no more than that number.
/// `None` for data without a whole header.
pub fn zone_report(data: &[u8]) -> Option<(u64, impl Iterator<Item = &ZoneDescriptor>)> {
    let (header, rest) = ZoneReportHeader::ref_from_prefix(data).ok()?;
    let zones = header.zones.get();
    let most = usize::try_from(zones).unwrap_or(usize::MAX);
    let there = rest.chunks_exact(size_of::<ZoneDescriptor>()).take(most);
    Some((zones, there.filter_map(|bytes| ZoneDescriptor::ref_from_bytes(bytes).ok())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::spec::Direction;

    #[test]
    fn zone_commands_golden_bytes() {
        let reset = ZoneSendFields { slba: 0x1_0000_2000, action: ZoneSendAction::RESET, all: false };
        let sqe = reset.to_sqe(5);
        let mut want = [0; 64];
        want[..8].copy_from_slice(&[0x79, 0, 0, 0, 5, 0, 0, 0]);
        want[40..56].copy_from_slice(&[0, 0x20, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(sqe.as_bytes(), want);
        assert_eq!(ZoneSendFields::of(&sqe), reset);
        let all = ZoneSendFields { slba: 0, action: ZoneSendAction::OFFLINE, all: true };
        assert_eq!(all.to_sqe(1).cdw13.get(), 0x0105);
        assert_eq!(ZoneSendFields::of(&all.to_sqe(1)), all);

        let report = ZoneReceiveFields {
            slba: 0x2000,
            numd_z: 1023,
            action: ZoneReceiveAction::REPORT,
            filter: ZoneReportFilter::FULL,
            partial: true,
        };
        let sqe = report.to_sqe(5);
        let mut want = [0; 64];
        want[..8].copy_from_slice(&[0x7a, 0, 0, 0, 5, 0, 0, 0]);
        want[40..56].copy_from_slice(&[0, 0x20, 0, 0, 0, 0, 0, 0, 0xff, 3, 0, 0, 0, 5, 1, 0]);
        assert_eq!(sqe.as_bytes(), want);
        assert_eq!((ZoneReceiveFields::of(&sqe), report.bytes()), (report, 4096));
        assert_eq!(ZoneReceiveFields { numd_z: u32::MAX, ..report }.bytes(), 1 << 34);
        assert_eq!(Direction::of(sqe.opcode), Direction::ControllerToHost);

        let append = crate::nvme::spec::ranged(NvmOpcode::ZONE_APPEND, 5, 0x2000, 7, 0);
        assert_eq!(append.as_bytes()[..8], [0x7d, 0, 0, 0, 5, 0, 0, 0]);
        assert_eq!(append.as_bytes()[40..52], [0, 0x20, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0]);
    }

    #[test]
    fn identify_golden_bytes() {
        let mut bytes = vec![0; IDENTIFY_LEN];
        bytes[..12].copy_from_slice(&[2, 0, 1, 0, 15, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
        bytes[2816 + 16..][..9].copy_from_slice(&[0, 4, 0, 0, 0, 0, 0, 0, 1]);
        let id = IdentifyNamespaceZoned::ref_from_bytes(&bytes).unwrap();
        assert_eq!((id.zoc.get(), id.ozcs.get()), (ZOC_ACTIVE_EXCURSIONS, OZCS_READ_ACROSS));
        assert_eq!((id.active_max(), id.open_max()), (Some(16), None));
        assert_eq!((id.zone_blocks(0), id.zone_blocks(1), id.zone_blocks(64)), (None, Some(1024), None));
        assert_eq!(id.lbafe[1].zdes_64b, 1);
        bytes[0] = 5;
        assert_eq!(IdentifyControllerZoned::ref_from_bytes(&bytes).unwrap().zasl, 5);
    }

    fn report() -> Vec<u8> {
        let mut data = vec![0; 64 + 2 * 64];
        data[0] = 2;
        let zone = &mut data[64..128];
        zone[..3].copy_from_slice(&[2, 0x20, 0x82]);
        zone[8..32].copy_from_slice(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0]);
        data[128..131].copy_from_slice(&[2, 0xe0, 1]);
        data
    }

    #[test]
    fn reports_golden_bytes() {
        let data = report();
        let (zones, there) = zone_report(&data).unwrap();
        let there: Vec<_> = there.collect();
        assert_eq!((zones, there.len()), (2, 2));
        let open = there[0];
        assert_eq!(open.zone_type(), ZoneType::SEQUENTIAL_WRITE_REQUIRED);
        assert_eq!((open.state(), open.za), (ZoneState::IMPLICITLY_OPEN, ZA_EXTENSION_VALID | ZA_FINISH_RECOMMENDED));
        assert_eq!((open.zcap.get(), open.zslba.get(), open.wp.get()), (0x300, 0x400, 0x500));
        assert_eq!((open.writable(), there[1].state(), there[1].writable()), (0x200, ZoneState::FULL, 0));
        assert!(open.state().is_open() && open.state().is_active() && !there[1].state().is_active());
        let mut again = ZoneDescriptor { zcap: U64::new(8), ..ZoneDescriptor::default() };
        again.set(ZoneType::SEQUENTIAL_WRITE_REQUIRED, ZoneState::EMPTY);
        assert_eq!((again.as_bytes()[..2].to_vec(), again.writable()), (vec![2, 0x10], 8));
    }

    #[test]
    fn a_report_that_lies_is_read_as_far_as_it_goes() {
        let mut data = report();
        for end in 0..data.len() {
            let there = zone_report(&data[..end]).map(|(_, there)| there.count());
            assert_eq!(there, end.checked_sub(64).map(|rest| rest / 64), "{end} bytes");
        }
        data[..8].fill(0xff);
        assert_eq!(zone_report(&data).map(|(zones, there)| (zones, there.count())), Some((u64::MAX, 2)));
        data[..8].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(zone_report(&data).map(|(_, there)| there.count()), Some(1));
        // A write pointer outside of its zone.
        let mut zone = ZoneDescriptor { zcap: U64::new(8), zslba: U64::new(64), ..ZoneDescriptor::default() };
        zone.set(ZoneType::SEQUENTIAL_WRITE_REQUIRED, ZoneState::CLOSED);
        for (wp, writable) in [(63, 0), (64, 8), (72, 0), (u64::MAX, 0)] {
            zone.wp.set(wp);
            assert_eq!(zone.writable(), writable);
        }
    }
}
