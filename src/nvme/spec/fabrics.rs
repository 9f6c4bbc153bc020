//! Fabrics commands (Base §6) and the discovery log page (Base §5.16.1.23).

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{AdminOpcode, FabricsType, NQN_FIELD_LEN, Psdt, SglDescriptor, Sqe};
use crate::util::open_enum;

/// CNTLID of an Admin Queue Connect that asks for any controller of the dynamic model (Base §6.3).
pub const CNTLID_DYNAMIC: u16 = 0xffff;

/// CNTLID of an Admin Queue Connect that asks for any controller of the static model (Base §6.3).
pub const CNTLID_STATIC_ANY: u16 = 0xfffe;

/// Largest controller identifier a subsystem may hand out; FFF0h to FFFFh are reserved (Base §3.1.2.1).
pub const CNTLID_MAX: u16 = 0xffef;

/// Connect command, 64 bytes (Base §6.3).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ConnectCmd {
    /// [`AdminOpcode::FABRICS`].
    pub opcode: u8,
    /// PSDT in bits 7:6.
    pub flags: u8,
    /// Command identifier.
    pub cid: U16,
    /// [`FabricsType::CONNECT`].
    pub fctype: FabricsType,
    /// Reserved.
    pub reserved5: [u8; 19],
    /// Data pointer: 1,024 bytes of [`ConnectData`].
    pub dptr: SglDescriptor,
    /// Record format: 0.
    pub recfmt: U16,
    /// Queue identifier; 0 is the Admin Queue.
    pub qid: U16,
    /// Submission queue size, zero's-based.
    pub sqsize_z: U16,
    /// Connect attributes, `CATTR_*`.
    pub cattr: u8,
    /// Reserved.
    pub reserved47: u8,
    /// Keep alive timeout in milliseconds; 0 disables it. Admin Queue only.
    pub kato_ms: U32,
    /// Reserved.
    pub reserved52: [u8; 12],
}

const _: () = assert!(size_of::<ConnectCmd>() == 64);
const _: () = assert!(offset_of!(ConnectCmd, dptr) == 24);
const _: () = assert!(offset_of!(ConnectCmd, recfmt) == 40);
const _: () = assert!(offset_of!(ConnectCmd, kato_ms) == 48);

/// CATTR bit: the host asks to disable submission queue flow control.
pub const CATTR_DISABLE_SQ_FLOW_CONTROL: u8 = 1 << 2;
/// CATTR bit: the host supports deletion of individual I/O queues (Disconnect).
pub const CATTR_INDIVIDUAL_QUEUE_DELETION: u8 = 1 << 3;

impl ConnectCmd {
    /// A Connect whose data is in the capsule. The transport sets the command identifier.
    pub fn new(qid: u16, sqsize_z: u16, cattr: u8, kato_ms: u32) -> Self {
        Self {
            opcode: AdminOpcode::FABRICS.0,
            flags: Psdt::SGL.0 << 6,
            fctype: FabricsType::CONNECT,
            dptr: SglDescriptor::in_capsule(size_of::<ConnectData>() as u32),
            qid: U16::new(qid),
            sqsize_z: U16::new(sqsize_z),
            cattr,
            kato_ms: U32::new(kato_ms),
            ..Self::new_zeroed()
        }
    }

    /// Reads a command as a Connect.
    pub fn of(sqe: &Sqe) -> &Self {
        zerocopy::transmute_ref!(sqe)
    }

    /// The command as a submission queue entry.
    pub fn to_sqe(self) -> Sqe {
        zerocopy::transmute!(self)
    }
}

/// Data of the Connect command, 1,024 bytes (Base §6.3).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ConnectData {
    /// Host identifier; shall not be 0.
    pub hostid: [u8; 16],
    /// Controller identifier asked for.
    pub cntlid: U16,
    /// Reserved.
    pub reserved18: [u8; 238],
    /// Subsystem NQN, NUL-terminated.
    pub subnqn: [u8; NQN_FIELD_LEN],
    /// Host NQN, NUL-terminated.
    pub hostnqn: [u8; NQN_FIELD_LEN],
    /// Reserved.
    pub reserved768: [u8; 256],
}

const _: () = assert!(size_of::<ConnectData>() == 1024);
const _: () = assert!(offset_of!(ConnectData, subnqn) == 256);
const _: () = assert!(offset_of!(ConnectData, hostnqn) == 512);

/// Dword 0 of a Connect that failed with Connect Invalid Parameters (Base §6.3): where the fault is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidParameter {
    /// Byte offset into the submission queue entry.
    Sqe(u16),
    /// Byte offset into the Connect data.
    Data(u16),
}

impl InvalidParameter {
    /// Packs IPO (bits 15:0) and IATTR (bit 16).
    pub const fn to_dword(self) -> u32 {
        match self {
            Self::Sqe(offset) => offset as u32,
            Self::Data(offset) => offset as u32 | 1 << 16,
        }
    }

    /// Unpacks the dword.
    pub const fn of(dword: u32) -> Self {
        if dword & 1 << 16 == 0 { Self::Sqe(dword as u16) } else { Self::Data(dword as u16) }
    }
}

/// Property Get command, 64 bytes (Base §6.5). The value returns in dwords 0 and 1 of the completion.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PropertyGetCmd {
    /// [`AdminOpcode::FABRICS`].
    pub opcode: u8,
    /// PSDT in bits 7:6.
    pub flags: u8,
    /// Command identifier.
    pub cid: U16,
    /// [`FabricsType::PROPERTY_GET`].
    pub fctype: FabricsType,
    /// Reserved.
    pub reserved5: [u8; 35],
    /// Bits 2:0 size: 0 is 4 bytes, 1 is 8 bytes.
    pub attrib: u8,
    /// Reserved.
    pub reserved41: [u8; 3],
    /// Offset of the property.
    pub ofst: U32,
    /// Reserved.
    pub reserved48: [u8; 16],
}

const _: () = assert!(size_of::<PropertyGetCmd>() == 64);
const _: () = assert!(offset_of!(PropertyGetCmd, attrib) == 40);
const _: () = assert!(offset_of!(PropertyGetCmd, ofst) == 44);

impl PropertyGetCmd {
    /// A read of the property at `ofst`, of 8 bytes when `wide`, else 4.
    pub fn new(ofst: u32, wide: bool) -> Self {
        Self {
            opcode: AdminOpcode::FABRICS.0,
            flags: Psdt::SGL.0 << 6,
            fctype: FabricsType::PROPERTY_GET,
            attrib: wide as u8,
            ofst: U32::new(ofst),
            ..Self::new_zeroed()
        }
    }

    /// Reads a command as a Property Get.
    pub fn of(sqe: &Sqe) -> &Self {
        zerocopy::transmute_ref!(sqe)
    }

    /// The command as a submission queue entry.
    pub fn to_sqe(self) -> Sqe {
        zerocopy::transmute!(self)
    }
}

/// Property Set command, 64 bytes (Base §6.6).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PropertySetCmd {
    /// [`AdminOpcode::FABRICS`].
    pub opcode: u8,
    /// PSDT in bits 7:6.
    pub flags: u8,
    /// Command identifier.
    pub cid: U16,
    /// [`FabricsType::PROPERTY_SET`].
    pub fctype: FabricsType,
    /// Reserved.
    pub reserved5: [u8; 35],
    /// Bits 2:0 size: 0 is 4 bytes, 1 is 8 bytes.
    pub attrib: u8,
    /// Reserved.
    pub reserved41: [u8; 3],
    /// Offset of the property.
    pub ofst: U32,
    /// Value; the lower 4 bytes for a property of 4 bytes.
    pub value: U64,
    /// Reserved.
    pub reserved56: [u8; 8],
}

const _: () = assert!(size_of::<PropertySetCmd>() == 64);
const _: () = assert!(offset_of!(PropertySetCmd, value) == 48);

impl PropertySetCmd {
    /// A write of the 4-byte property at `ofst`.
    pub fn new(ofst: u32, value: u32) -> Self {
        Self {
            opcode: AdminOpcode::FABRICS.0,
            flags: Psdt::SGL.0 << 6,
            fctype: FabricsType::PROPERTY_SET,
            ofst: U32::new(ofst),
            value: U64::new(value as u64),
            ..Self::new_zeroed()
        }
    }

    /// Reads a command as a Property Set.
    pub fn of(sqe: &Sqe) -> &Self {
        zerocopy::transmute_ref!(sqe)
    }

    /// The command as a submission queue entry.
    pub fn to_sqe(self) -> Sqe {
        zerocopy::transmute!(self)
    }
}

open_enum! {
    /// Transport type (Base §5.16.1.23).
    pub enum TransportType: u8 {
        /// RDMA.
        RDMA = 1,
        /// Fibre Channel.
        FC = 2,
        /// TCP.
        TCP = 3,
        /// Intra-host, reserved for host use.
        LOOP = 254,
    }
}

open_enum! {
    /// Address family (Base §5.16.1.23).
    pub enum AddressFamily: u8 {
        /// IPv4.
        IPV4 = 1,
        /// IPv6.
        IPV6 = 2,
    }
}

open_enum! {
    /// Type of the subsystem a discovery log entry names (Base §5.16.1.23).
    pub enum SubsystemType: u8 {
        /// Referral to another discovery subsystem.
        REFERRAL = 1,
        /// NVM subsystem.
        NVM = 2,
        /// The discovery subsystem that returns this log.
        CURRENT_DISCOVERY = 3,
    }
}

/// TREQ bit: the controller can disable submission queue flow control; bits 1:0 are the secure channel need.
pub const TREQ_DISABLE_SQ_FLOW_CONTROL: u8 = 1 << 2;
/// TREQ bits 1:0: a secure channel is not required.
pub const TREQ_SECURE_NOT_REQUIRED: u8 = 2;
/// EFLAGS bit: the entries of this port return the same information.
pub const EFLAGS_DUPLICATE: u16 = 1 << 0;
/// EFLAGS bit: explicit persistent connection support of a discovery subsystem.
pub const EFLAGS_EPCSD: u16 = 1 << 1;

/// Smallest Admin Max SQ Size an entry may state (Base §5.16.1.23).
pub const ASQSZ_MIN: u16 = 32;

/// Header of the Discovery log page, 1,024 bytes; entries follow (Base §5.16.1.23).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryLogHeader {
    /// Generation counter: changes with the log's content, wraps.
    pub genctr: U64,
    /// Number of entries.
    pub numrec: U64,
    /// Record format: 0.
    pub recfmt: U16,
    /// Reserved.
    pub reserved18: [u8; 1006],
}

const _: () = assert!(size_of::<DiscoveryLogHeader>() == 1024);

/// Discovery log page entry, 1,024 bytes (Base §5.16.1.23).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DiscoveryLogEntry {
    /// Transport type.
    pub trtype: TransportType,
    /// Address family.
    pub adrfam: AddressFamily,
    /// Subsystem type.
    pub subtype: SubsystemType,
    /// Transport requirements, `TREQ_*`.
    pub treq: u8,
    /// Port identifier.
    pub portid: U16,
    /// Controller identifier: FFFFh for the dynamic model.
    pub cntlid: U16,
    /// Admin Max SQ Size, at least 32.
    pub asqsz: U16,
    /// Entry flags, `EFLAGS_*`.
    pub eflags: U16,
    /// Reserved.
    pub reserved12: [u8; 20],
    /// Transport service identifier: the TCP port in decimal, ASCII padded with spaces.
    pub trsvcid: [u8; 32],
    /// Reserved.
    pub reserved64: [u8; 192],
    /// Subsystem NQN, NUL padded.
    pub subnqn: [u8; NQN_FIELD_LEN],
    /// Transport address, ASCII padded with spaces.
    pub traddr: [u8; 256],
    /// Transport specific address subtype; byte 0 is the TCP security type, 0 for none.
    pub tsas: [u8; 256],
}

const _: () = assert!(size_of::<DiscoveryLogEntry>() == 1024);
const _: () = assert!(offset_of!(DiscoveryLogEntry, trsvcid) == 32);
const _: () = assert!(offset_of!(DiscoveryLogEntry, subnqn) == 256);
const _: () = assert!(offset_of!(DiscoveryLogEntry, traddr) == 512);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connect_golden_bytes() {
        let mut cmd = ConnectCmd::new(2, 127, CATTR_DISABLE_SQ_FLOW_CONTROL, 0);
        cmd.cid.set(1);
        let sqe = cmd.to_sqe();
        let mut want = [0u8; 64];
        want[..5].copy_from_slice(&[0x7f, 0x40, 1, 0, 1]);
        want[32..40].copy_from_slice(&[0, 4, 0, 0, 0, 0, 0, 1]);
        want[40..47].copy_from_slice(&[0, 0, 2, 0, 127, 0, 4]);
        assert_eq!(sqe.as_bytes(), want);
        assert!(sqe.is_fabrics());
        assert_eq!(sqe.fabrics_type(), FabricsType::CONNECT);
        assert_eq!(ConnectCmd::of(&sqe).qid.get(), 2);
    }

    #[test]
    fn property_golden_bytes() {
        let get = PropertyGetCmd::new(0, true).to_sqe();
        assert_eq!(get.as_bytes()[..5], [0x7f, 0x40, 0, 0, 4]);
        assert_eq!(get.as_bytes()[40..48], [1, 0, 0, 0, 0, 0, 0, 0]);
        let set = PropertySetCmd::new(0x14, 0x0046_0001).to_sqe();
        assert_eq!(set.as_bytes()[40..56], [0, 0, 0, 0, 0x14, 0, 0, 0, 1, 0, 0x46, 0, 0, 0, 0, 0]);
        assert_eq!(PropertySetCmd::of(&set).value.get(), 0x0046_0001);
        assert_eq!(PropertyGetCmd::of(&get).attrib, 1);
    }

    #[test]
    fn invalid_parameter_dword() {
        assert_eq!(InvalidParameter::Sqe(42).to_dword(), 42);
        assert_eq!(InvalidParameter::Data(256).to_dword(), 0x0001_0100);
        assert_eq!(InvalidParameter::of(0x0001_0100), InvalidParameter::Data(256));
        assert_eq!(InvalidParameter::of(44), InvalidParameter::Sqe(44));
    }
}
