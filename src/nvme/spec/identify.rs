//! Data structures of the Identify command (Base §5.17, NVM §4.1.5).

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64, U128};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Cap, NQN_FIELD_LEN, PAGE_SHIFT_BASE, Sqe};
use crate::util::open_enum;

/// Size of every Identify data structure, in bytes.
pub const IDENTIFY_LEN: usize = 4096;

open_enum! {
    /// Controller or Namespace Structure, bits 7:0 of dword 10 of Identify (Base §5.17).
    pub enum Cns: u8 {
        /// Identify Namespace, NVM Command Set.
        NAMESPACE = 0x00,
        /// Identify Controller.
        CONTROLLER = 0x01,
        /// Active Namespace ID list.
        ACTIVE_NAMESPACES = 0x02,
        /// Namespace Identification Descriptor list.
        NAMESPACE_DESCRIPTORS = 0x03,
        /// I/O Command Set specific Identify Namespace.
        NAMESPACE_CSI = 0x05,
        /// I/O Command Set specific Identify Controller.
        CONTROLLER_CSI = 0x06,
        /// I/O Command Set specific Active Namespace ID list.
        ACTIVE_NAMESPACES_CSI = 0x07,
        /// I/O Command Set Independent Identify Namespace.
        NAMESPACE_INDEPENDENT = 0x08,
        /// Allocated Namespace ID list (Namespace Management).
        ALLOCATED_NAMESPACES = 0x10,
        /// Identify I/O Command Set.
        COMMAND_SETS = 0x1c,
    }
}

open_enum! {
    /// Command Set Identifier (Base §3.1.1).
    pub enum Csi: u8 {
        /// NVM Command Set.
        NVM = 0x00,
        /// Key Value Command Set.
        KEY_VALUE = 0x01,
        /// Zoned Namespace Command Set.
        ZONED = 0x02,
    }
}

open_enum! {
    /// Controller type, CNTRLTYPE (Base §5.17.2.1).
    pub enum ControllerType: u8 {
        /// Not reported (before revision 1.4).
        NOT_REPORTED = 0,
        /// I/O controller.
        IO = 1,
        /// Discovery controller.
        DISCOVERY = 2,
        /// Administrative controller.
        ADMINISTRATIVE = 3,
    }
}

/// Fields of the Identify command (Base §5.17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdentifyFields {
    /// What is asked for.
    pub cns: Cns,
    /// Controller identifier, for the structures that use one.
    pub cntid: u16,
    /// CNS specific identifier.
    pub cns_specific: u16,
    /// Command set, for the structures that depend on one.
    pub csi: Csi,
}

impl IdentifyFields {
    /// Reads dwords 10 and 11.
    pub const fn of(sqe: &Sqe) -> Self {
        let cdw10 = sqe.cdw10.get();
        let cdw11 = sqe.cdw11.get();
        Self {
            cns: Cns(cdw10 as u8),
            cntid: (cdw10 >> 16) as u16,
            cns_specific: cdw11 as u16,
            csi: Csi((cdw11 >> 24) as u8),
        }
    }

    /// Writes dwords 10 and 11.
    pub fn put(self, sqe: &mut Sqe) {
        sqe.cdw10.set(self.cns.0 as u32 | (self.cntid as u32) << 16);
        sqe.cdw11.set(self.cns_specific as u32 | (self.csi.0 as u32) << 24);
    }
}

/// Power state descriptor, 32 bytes (Base §5.17.2.1).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PowerState {
    /// Maximum power in centiwatts (or units of 0.0001 W when MXPS is set).
    pub mp: U16,
    /// Reserved.
    pub reserved2: u8,
    /// MXPS (bit 0), non-operational state (bit 1).
    pub flags: u8,
    /// Entry latency in microseconds.
    pub enlat_us: U32,
    /// Exit latency in microseconds.
    pub exlat_us: U32,
    /// Relative read throughput, read latency, write throughput, write latency.
    pub relative: [u8; 4],
    /// Idle and active power.
    pub power: [u8; 16],
}

const _: () = assert!(size_of::<PowerState>() == 32);

/// Identify Controller data structure, CNS 01h, 4,096 bytes (Base §5.17.2.1).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyController {
    /// PCI vendor ID; 0 for a fabrics controller without one.
    pub vid: U16,
    /// PCI subsystem vendor ID.
    pub ssvid: U16,
    /// Serial number, ASCII padded with spaces.
    pub sn: [u8; 20],
    /// Model number, ASCII padded with spaces.
    pub mn: [u8; 40],
    /// Firmware revision, ASCII padded with spaces.
    pub fr: [u8; 8],
    /// Recommended arbitration burst.
    pub rab: u8,
    /// IEEE OUI, little-endian.
    pub ieee: [u8; 3],
    /// Multi-path and namespace sharing: bit 0 several ports, bit 1 several controllers.
    pub cmic: u8,
    /// Maximum data transfer size: 2 to the power of this, in units of the minimum memory page; 0 means no limit.
    pub mdts: u8,
    /// Controller identifier.
    pub cntlid: U16,
    /// Version, as in the VS property.
    pub ver: U32,
    /// RTD3 resume latency in microseconds.
    pub rtd3r_us: U32,
    /// RTD3 entry latency in microseconds: how long a host waits for a shutdown.
    pub rtd3e_us: U32,
    /// Optional asynchronous events supported.
    pub oaes: U32,
    /// Controller attributes.
    pub ctratt: U32,
    /// Read recovery levels supported.
    pub rrls: U16,
    /// Reserved in revision 2.0.
    pub reserved102: [u8; 9],
    /// Controller type.
    pub cntrltype: ControllerType,
    /// FRU globally unique identifier.
    pub fguid: [u8; 16],
    /// Command retry delay times 1 to 3, in units of 100 ms.
    pub crdt_100ms: [U16; 3],
    /// Reserved.
    pub reserved134: [u8; 119],
    /// NVM subsystem report.
    pub nvmsr: u8,
    /// VPD write cycle information.
    pub vwci: u8,
    /// Management endpoint capabilities.
    pub mec: u8,
    /// Optional admin commands supported.
    pub oacs: U16,
    /// Abort command limit, zero's-based.
    pub acl_z: u8,
    /// Asynchronous event request limit, zero's-based.
    pub aerl_z: u8,
    /// Firmware updates: bit 0 slot 1 read-only, bits 3:1 number of slots.
    pub frmw: u8,
    /// Log page attributes.
    pub lpa: u8,
    /// Error log page entries, zero's-based.
    pub elpe_z: u8,
    /// Number of power states, zero's-based.
    pub npss_z: u8,
    /// Admin vendor specific command configuration.
    pub avscc: u8,
    /// Autonomous power state transition attributes.
    pub apsta: u8,
    /// Warning composite temperature threshold in kelvin.
    pub wctemp_k: U16,
    /// Critical composite temperature threshold in kelvin.
    pub cctemp_k: U16,
    /// Maximum time for firmware activation, in units of 100 ms.
    pub mtfa_100ms: U16,
    /// Host memory buffer preferred size, in units of 4 KiB.
    pub hmpre: U32,
    /// Host memory buffer minimum size, in units of 4 KiB.
    pub hmmin: U32,
    /// Total NVM capacity in bytes.
    pub tnvmcap: U128,
    /// Unallocated NVM capacity in bytes.
    pub unvmcap: U128,
    /// Replay protected memory block support.
    pub rpmbs: U32,
    /// Extended device self-test time in minutes.
    pub edstt_min: U16,
    /// Device self-test options.
    pub dsto: u8,
    /// Firmware update granularity.
    pub fwug: u8,
    /// Keep alive support: granularity of the timeout in units of 100 ms; 0 means not supported.
    pub kas_100ms: U16,
    /// Host controlled thermal management attributes.
    pub hctma: U16,
    /// Minimum thermal management temperature in kelvin.
    pub mntmt_k: U16,
    /// Maximum thermal management temperature in kelvin.
    pub mxtmt_k: U16,
    /// Sanitize capabilities.
    pub sanicap: U32,
    /// Host memory buffer minimum descriptor entry size.
    pub hmminds: U32,
    /// Host memory maximum descriptor entries.
    pub hmmaxd: U16,
    /// NVM set identifier maximum.
    pub nsetidmax: U16,
    /// Endurance group identifier maximum.
    pub endgidmax: U16,
    /// ANA transition time in seconds.
    pub anatt_s: u8,
    /// Asymmetric namespace access capabilities.
    pub anacap: u8,
    /// ANA group identifier maximum.
    pub anagrpmax: U32,
    /// Number of ANA group identifiers.
    pub nanagrpid: U32,
    /// Persistent event log size.
    pub pels: U32,
    /// Domain identifier.
    pub domainid: U16,
    /// Reserved in revision 2.0.
    pub reserved358: [u8; 10],
    /// Maximum endurance group capacity in bytes.
    pub megcap: U128,
    /// Reserved in revision 2.0.
    pub reserved384: [u8; 128],
    /// Submission queue entry size: bits 3:0 required, bits 7:4 maximum, powers of two.
    pub sqes: u8,
    /// Completion queue entry size: bits 3:0 required, bits 7:4 maximum, powers of two.
    pub cqes: u8,
    /// Maximum outstanding commands per queue.
    pub maxcmd: U16,
    /// Number of namespaces: the largest valid NSID (when MNAN is 0 also the largest number of active ones).
    pub nn: U32,
    /// Optional NVM commands supported.
    pub oncs: U16,
    /// Fused operation support: bit 0 compare and write.
    pub fuses: U16,
    /// Format NVM attributes.
    pub fna: u8,
    /// Volatile write cache: bit 0 present, bits 2:1 flush behaviour with the broadcast NSID.
    pub vwc: u8,
    /// Atomic write unit normal in blocks, zero's-based.
    pub awun_z: U16,
    /// Atomic write unit power fail in blocks, zero's-based.
    pub awupf_z: U16,
    /// I/O command set vendor specific command configuration.
    pub icsvscc: u8,
    /// Namespace write protection capabilities.
    pub nwpc: u8,
    /// Atomic compare and write unit in blocks, zero's-based.
    pub acwu_z: U16,
    /// Copy descriptor formats supported.
    pub ocfs: U16,
    /// SGL support.
    pub sgls: U32,
    /// Maximum number of allowed namespaces.
    pub mnan: U32,
    /// Maximum domain namespace attachments.
    pub maxdna: U128,
    /// Maximum I/O controller namespace attachments.
    pub maxcna: U32,
    /// Reserved in revision 2.0.
    pub reserved564: [u8; 204],
    /// NVM subsystem NQN, NUL padded.
    pub subnqn: [u8; NQN_FIELD_LEN],
    /// Reserved.
    pub reserved1024: [u8; 768],
    /// I/O queue command capsule supported size, in units of 16 bytes.
    pub ioccsz_16b: U32,
    /// I/O queue response capsule supported size, in units of 16 bytes.
    pub iorcsz_16b: U32,
    /// In-capsule data offset, in units of 16 bytes; 0 for NVMe/TCP.
    pub icdoff_16b: U16,
    /// Fabrics controller attributes: bit 0 static controller model.
    pub fcatt: u8,
    /// Maximum SGL data block descriptors.
    pub msdbd: u8,
    /// Optional fabrics commands supported: bit 0 Disconnect.
    pub ofcs: U16,
    /// Discovery controller type: 0 not reported or not a discovery controller, 1 DDC, 2 CDC.
    pub dctype: u8,
    /// Reserved.
    pub reserved1807: [u8; 241],
    /// Power state descriptors.
    pub psd: [PowerState; 32],
    /// Vendor specific.
    pub vendor: [u8; 1024],
}

const _: () = assert!(size_of::<IdentifyController>() == IDENTIFY_LEN);
const _: () = assert!(offset_of!(IdentifyController, cmic) == 76);
const _: () = assert!(offset_of!(IdentifyController, ver) == 80);
const _: () = assert!(offset_of!(IdentifyController, oaes) == 92);
const _: () = assert!(offset_of!(IdentifyController, cntrltype) == 111);
const _: () = assert!(offset_of!(IdentifyController, oacs) == 256);
const _: () = assert!(offset_of!(IdentifyController, elpe_z) == 262);
const _: () = assert!(offset_of!(IdentifyController, kas_100ms) == 320);
const _: () = assert!(offset_of!(IdentifyController, domainid) == 356);
const _: () = assert!(offset_of!(IdentifyController, sqes) == 512);
const _: () = assert!(offset_of!(IdentifyController, maxcmd) == 514);
const _: () = assert!(offset_of!(IdentifyController, vwc) == 525);
const _: () = assert!(offset_of!(IdentifyController, sgls) == 536);
const _: () = assert!(offset_of!(IdentifyController, subnqn) == 768);
const _: () = assert!(offset_of!(IdentifyController, ioccsz_16b) == 1792);
const _: () = assert!(offset_of!(IdentifyController, psd) == 2048);

/// LBA format (NVM §4.1.5.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LbaFormat {
    /// Metadata bytes per block.
    pub ms: U16,
    /// Block size as a power of two; below 9 means the format is not available.
    pub lbads: u8,
    /// Relative performance, bits 1:0; 0 is best.
    pub rp: u8,
}

const _: () = assert!(size_of::<LbaFormat>() == 4);

/// NSFEAT bit: the optimal I/O boundary fields NPWG, NPWA, NPDG, NPDA and NOWS are defined.
pub const NSFEAT_OPTPERF: u8 = 1 << 4;
/// NSFEAT bit: NAWUN, NAWUPF and NACWU hold for this namespace.
pub const NSFEAT_NSABP: u8 = 1 << 1;
/// NSFEAT bit: thin provisioning, NUSE below NCAP is meaningful.
pub const NSFEAT_THIN: u8 = 1 << 0;

/// Identify Namespace data structure of the NVM Command Set, CNS 00h, 4,096 bytes (NVM §4.1.5.1).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespace {
    /// Namespace size in blocks.
    pub nsze: U64,
    /// Namespace capacity in blocks.
    pub ncap: U64,
    /// Namespace utilisation in blocks.
    pub nuse: U64,
    /// Namespace features, `NSFEAT_*`.
    pub nsfeat: u8,
    /// Number of LBA formats, zero's-based.
    pub nlbaf_z: u8,
    /// Formatted LBA size: [`super::Flbas`].
    pub flbas: u8,
    /// Metadata capabilities.
    pub mc: u8,
    /// End-to-end data protection capabilities.
    pub dpc: u8,
    /// End-to-end data protection settings: [`super::Dps`].
    pub dps: u8,
    /// Namespace multi-path and sharing: bit 0 shared by several controllers.
    pub nmic: u8,
    /// Reservation capabilities.
    pub rescap: u8,
    /// Format progress indicator.
    pub fpi: u8,
    /// Deallocate features: [`super::Dlfeat`].
    pub dlfeat: u8,
    /// Atomic write unit normal in blocks, zero's-based.
    pub nawun_z: U16,
    /// Atomic write unit power fail in blocks, zero's-based.
    pub nawupf_z: U16,
    /// Atomic compare and write unit in blocks, zero's-based.
    pub nacwu_z: U16,
    /// Atomic boundary size normal, zero's-based.
    pub nabsn_z: U16,
    /// Atomic boundary offset.
    pub nabo: U16,
    /// Atomic boundary size power fail, zero's-based.
    pub nabspf_z: U16,
    /// Optimal I/O boundary in blocks; 0 means none.
    pub noiob: U16,
    /// NVM capacity in bytes.
    pub nvmcap: U128,
    /// Preferred write granularity in blocks, zero's-based.
    pub npwg_z: U16,
    /// Preferred write alignment in blocks, zero's-based.
    pub npwa_z: U16,
    /// Preferred deallocate granularity in blocks, zero's-based.
    pub npdg_z: U16,
    /// Preferred deallocate alignment in blocks, zero's-based.
    pub npda_z: U16,
    /// Optimal write size in blocks, zero's-based.
    pub nows_z: U16,
    /// Maximum single source range length of Copy.
    pub mssrl: U16,
    /// Maximum copy length.
    pub mcl: U32,
    /// Maximum source range count, zero's-based.
    pub msrc_z: u8,
    /// Reserved.
    pub reserved81: [u8; 11],
    /// ANA group identifier.
    pub anagrpid: U32,
    /// Reserved.
    pub reserved96: [u8; 3],
    /// Namespace attributes: bit 0 write protected.
    pub nsattr: u8,
    /// NVM set identifier.
    pub nvmsetid: U16,
    /// Endurance group identifier.
    pub endgid: U16,
    /// Namespace globally unique identifier, big-endian.
    pub nguid: [u8; 16],
    /// IEEE extended unique identifier, big-endian.
    pub eui64: [u8; 8],
    /// LBA formats.
    pub lbaf: [LbaFormat; 64],
    /// Vendor specific.
    pub vendor: [u8; 3712],
}

const _: () = assert!(size_of::<IdentifyNamespace>() == IDENTIFY_LEN);
const _: () = assert!(offset_of!(IdentifyNamespace, dlfeat) == 33);
const _: () = assert!(offset_of!(IdentifyNamespace, nvmcap) == 48);
const _: () = assert!(offset_of!(IdentifyNamespace, npwg_z) == 64);
const _: () = assert!(offset_of!(IdentifyNamespace, anagrpid) == 92);
const _: () = assert!(offset_of!(IdentifyNamespace, nsattr) == 99);
const _: () = assert!(offset_of!(IdentifyNamespace, nguid) == 104);
const _: () = assert!(offset_of!(IdentifyNamespace, lbaf) == 128);

/// I/O Command Set specific Identify Namespace of the NVM Command Set, CNS 05h CSI 00h (NVM §4.1.5.3).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespaceNvm {
    /// Logical block storage tag mask.
    pub lbstm: U64,
    /// Protection information capabilities.
    pub pic: u8,
    /// Reserved.
    pub reserved9: [u8; 3],
    /// Extended LBA formats.
    pub elbaf: [U32; 64],
    /// Reserved.
    pub reserved268: [u8; 3828],
}

const _: () = assert!(size_of::<IdentifyNamespaceNvm>() == IDENTIFY_LEN);

/// I/O Command Set specific Identify Controller of the NVM Command Set, CNS 06h CSI 00h (NVM §4.1.5.4).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyControllerNvm {
    /// Verify size limit: power of two in units of the minimum memory page; 0 means no limit.
    pub vsl: u8,
    /// Write Zeroes size limit, in the same form.
    pub wzsl: u8,
    /// Write Uncorrectable size limit, in the same form.
    pub wusl: u8,
    /// Dataset Management ranges limit: most ranges in a command; 0 means no limit.
    pub dmrl: u8,
    /// Dataset Management range size limit: most blocks in a range; 0 means no limit.
    pub dmrsl: U32,
    /// Dataset Management size limit: most blocks in a command; 0 means no limit.
    pub dmsl: U64,
    /// Reserved.
    pub reserved16: [u8; 4080],
}

const _: () = assert!(size_of::<IdentifyControllerNvm>() == IDENTIFY_LEN);

/// I/O Command Set Independent Identify Namespace, CNS 08h (Base §5.17.2.8).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IdentifyNamespaceIndependent {
    /// Common namespace features: bit 4 rotational media.
    pub nsfeat: u8,
    /// Namespace multi-path and sharing: bit 0 shared.
    pub nmic: u8,
    /// Reservation capabilities.
    pub rescap: u8,
    /// Format progress indicator.
    pub fpi: u8,
    /// ANA group identifier.
    pub anagrpid: U32,
    /// Namespace attributes: bit 0 write protected.
    pub nsattr: u8,
    /// Reserved.
    pub reserved9: u8,
    /// NVM set identifier.
    pub nvmsetid: U16,
    /// Endurance group identifier.
    pub endgid: U16,
    /// Namespace status: bit 0 ready.
    pub nstat: u8,
    /// Reserved.
    pub reserved15: [u8; 4081],
}

const _: () = assert!(size_of::<IdentifyNamespaceIndependent>() == IDENTIFY_LEN);
const _: () = assert!(offset_of!(IdentifyNamespaceIndependent, nstat) == 14);

open_enum! {
    /// Type of a Namespace Identification Descriptor (Base §5.17.2.3).
    pub enum DescriptorType: u8 {
        /// EUI64, 8 bytes.
        EUI64 = 1,
        /// NGUID, 16 bytes.
        NGUID = 2,
        /// UUID, 16 bytes.
        UUID = 3,
        /// Command set identifier, 1 byte.
        CSI = 4,
    }
}

/// Header of a Namespace Identification Descriptor; its value of `len` bytes follows (Base §5.17.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DescriptorHeader {
    /// Type.
    pub nidt: DescriptorType,
    /// Length of the value in bytes; 0 ends the list.
    pub len: u8,
    /// Reserved.
    pub reserved2: [u8; 2],
}

const _: () = assert!(size_of::<DescriptorHeader>() == 4);

/// OACS bit: Format NVM.
pub const OACS_FORMAT: u16 = 1 << 1;
/// OACS bit: Namespace Management and Namespace Attachment.
pub const OACS_NAMESPACE_MANAGEMENT: u16 = 1 << 3;
/// OACS bit: Doorbell Buffer Config.
pub const OACS_DOORBELL_BUFFER_CONFIG: u16 = 1 << 8;
/// FNA bit: a format applies to all namespaces.
pub const FNA_FORMAT_ALL: u8 = 1 << 0;
/// FNA bit: a secure erase applies to all namespaces.
pub const FNA_ERASE_ALL: u8 = 1 << 1;
/// FNA bit: cryptographic erase is supported.
pub const FNA_CRYPTOGRAPHIC: u8 = 1 << 2;
/// CMIC bit: the NVM subsystem may have several controllers.
pub const CMIC_CONTROLLERS: u8 = 1 << 1;
/// NMIC bit: several controllers may have the namespace.
pub const NMIC_SHARED: u8 = 1 << 0;
/// NSATTR bit: the namespace is write protected.
pub const NSATTR_WRITE_PROTECTED: u8 = 1 << 0;
/// CTRATT bit: 128-bit host identifiers (Base §5.17.2.1).
pub const CTRATT_HOST_ID_128: u32 = 1 << 0;
/// CTRATT bit: traffic based keep alive support.
pub const CTRATT_TBKAS: u32 = 1 << 6;
/// OAES bit: namespace attribute notices.
pub const OAES_NAMESPACE_ATTRIBUTE: u32 = 1 << 8;
/// OAES bit: firmware activation notices.
pub const OAES_FIRMWARE_ACTIVATION: u32 = 1 << 9;
/// OAES bit: asymmetric namespace access change notices.
pub const OAES_ANA_CHANGE: u32 = 1 << 11;
/// OAES bit: zone descriptor changed notices (ZNS §4.1.1).
pub const OAES_ZONE_DESCRIPTOR: u32 = 1 << 27;
/// OAES bit: discovery log page change notices.
pub const OAES_DISCOVERY_LOG: u32 = 1 << 31;
/// LPA bit: the commands supported and effects log page is supported.
pub const LPA_COMMANDS_EFFECTS: u8 = 1 << 1;
/// LPA bit: the Supported Log Pages, Feature Identifiers Supported and Effects, and NVMe-MI Commands Supported and
/// Effects log pages are supported.
pub const LPA_SUPPORTED_PAGES: u8 = 1 << 5;
/// LPA bit: extended data (32-bit number of dwords and 64-bit offset) for Get Log Page.
pub const LPA_EXTENDED_DATA: u8 = 1 << 2;
/// ONCS bit: Compare.
pub const ONCS_COMPARE: u16 = 1 << 0;
/// ONCS bit: Dataset Management.
pub const ONCS_DSM: u16 = 1 << 2;
/// ONCS bit: Write Zeroes.
pub const ONCS_WRITE_ZEROES: u16 = 1 << 3;
/// ONCS bit: the Save field of Set Features and the Select field of Get Features.
pub const ONCS_SAVE_SELECT: u16 = 1 << 4;
/// ONCS bit: Verify.
pub const ONCS_VERIFY: u16 = 1 << 7;
/// FUSES bit: fused Compare and Write.
pub const FUSES_COMPARE_AND_WRITE: u16 = 1 << 0;
/// VWC bit: a volatile write cache is present.
pub const VWC_PRESENT: u8 = 1 << 0;
/// VWC bits 2:1 = 10b: Flush with the broadcast NSID is refused.
pub const VWC_FLUSH_BROADCAST_REFUSED: u8 = 2 << 1;
/// SGLS bits 1:0: how SGLs are supported; 0 is not at all.
pub const SGLS_MASK: u32 = 3;
/// SGLS bits 1:0 = 10b: SGLs are supported whose data blocks are aligned to 4 bytes and multiples of it.
pub const SGLS_DWORD: u32 = 2;
/// SGLS bits 1:0 = 01b: SGLs are supported without an alignment or granularity requirement.
pub const SGLS_SUPPORTED: u32 = 1;
/// SGLS bit: the address of an SGL data block may specify an offset (in-capsule data).
pub const SGLS_OFFSET: u32 = 1 << 20;
/// SGLS bit: the Transport SGL data block descriptor is supported.
pub const SGLS_TRANSPORT: u32 = 1 << 21;

/// Bytes of a limit that is a power of two in units of the minimum memory page, such as MDTS, VSL, WZSL or ZASL; `None` for
/// no limit, which is also what a power beyond 64 bits means (Base §5.17.2.1, NVM §4.1.5.4).
pub const fn size_limit(power: u8, cap: Cap) -> Option<u64> {
    let shift = power as u32 + PAGE_SHIFT_BASE + cap.mpsmin() as u32;
    if power == 0 || shift >= u64::BITS { None } else { Some(1 << shift) }
}

#[cfg(test)]
mod tests {
    use zerocopy::FromZeros;

    use super::*;
    use crate::nvme::spec::AdminOpcode;

    #[test]
    fn identify_fields_round_trip() {
        let mut sqe = Sqe::admin(AdminOpcode::IDENTIFY, 1);
        let fields = IdentifyFields { cns: Cns::NAMESPACE_CSI, cntid: 0x1234, cns_specific: 0x56, csi: Csi::ZONED };
        fields.put(&mut sqe);
        assert_eq!(sqe.cdw10.get(), 0x1234_0005);
        assert_eq!(sqe.cdw11.get(), 0x0200_0056);
        assert_eq!(IdentifyFields::of(&sqe), fields);
    }

    #[test]
    fn controller_fields_stand_where_hosts_look() {
        let mut id = IdentifyController::new_zeroed();
        id.mdts = 8;
        id.kas_100ms.set(0x0a);
        id.maxcmd.set(0x80);
        id.ioccsz_16b.set(0x204);
        let bytes = id.as_bytes();
        assert_eq!((bytes[77], bytes[320], bytes[514]), (8, 0x0a, 0x80));
        assert_eq!(bytes[1792..1796], [4, 2, 0, 0]);
    }

    #[test]
    fn limits_are_powers_of_pages() {
        let four_kib = Cap(0);
        assert_eq!((size_limit(0, four_kib), size_limit(5, four_kib)), (None, Some(128 << 10)));
        assert_eq!(size_limit(5, Cap(4 << 48)), Some(2 << 20));
        assert_eq!((size_limit(51, four_kib), size_limit(52, four_kib)), (Some(1 << 63), None));
        assert_eq!(size_limit(u8::MAX, Cap(u64::MAX)), None);
    }

    #[test]
    fn nvm_limits_golden_bytes() {
        let mut bytes = [0; IDENTIFY_LEN];
        bytes[..16].copy_from_slice(&[5, 6, 7, 8, 0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
        let id = IdentifyControllerNvm::read_from_bytes(&bytes).unwrap();
        assert_eq!((id.vsl, id.wzsl, id.wusl, id.dmrl), (5, 6, 7, 8));
        assert_eq!((id.dmrsl.get(), id.dmsl.get()), (1 << 16, 1 << 32));
    }

    #[test]
    fn namespace_fields_stand_where_hosts_look() {
        let mut bytes = vec![0; IDENTIFY_LEN];
        bytes[26] = 0x80;
        bytes[33] = 9;
        bytes[46..48].copy_from_slice(&[0, 1]);
        bytes[64..74].copy_from_slice(&[1, 0, 2, 0, 3, 0, 4, 0, 5, 0]);
        bytes[30] = NMIC_SHARED;
        bytes[99] = NSATTR_WRITE_PROTECTED;
        let id = IdentifyNamespace::read_from_bytes(&bytes).unwrap();
        assert_eq!((id.flbas, id.dlfeat, id.noiob.get(), id.nmic, id.nsattr), (0x80, 9, 256, 1, 1));
        let optimal = [id.npwg_z, id.npwa_z, id.npdg_z, id.npda_z, id.nows_z].map(U16::get);
        assert_eq!(optimal, [1, 2, 3, 4, 5]);
    }
}
