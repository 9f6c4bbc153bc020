//! Submission and completion queue entries and SGL descriptors.

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{AdminOpcode, FabricsType, NvmOpcode, Status};
use crate::util::open_enum;

open_enum! {
    /// SGL identifier: descriptor type in bits 7:4, sub type in bits 3:0 (Base §4.1.2.1).
    pub enum SglId: u8 {
        /// Data block whose address is a memory address.
        DATA_BLOCK_ADDRESS = 0x00,
        /// Data block whose address is an offset into the capsule: in-capsule data.
        DATA_BLOCK_OFFSET = 0x01,
        /// Bit bucket.
        BIT_BUCKET = 0x10,
        /// Segment.
        SEGMENT = 0x20,
        /// Last segment.
        LAST_SEGMENT = 0x30,
        /// Keyed data block (RDMA).
        KEYED_DATA_BLOCK = 0x40,
        /// Transport SGL data block with the NVMe transport specific sub type: NVMe/TCP's Command Data Buffer.
        TRANSPORT_DATA_BLOCK = 0x5a,
    }
}

/// SGL descriptor, 16 bytes (Base §4.1.2.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SglDescriptor {
    /// Memory address, or for [`SglId::DATA_BLOCK_OFFSET`] the offset in bytes from the start of the in-capsule data.
    pub address: U64,
    /// Length in bytes.
    pub length: U32,
    /// Reserved.
    pub reserved12: [u8; 3],
    /// Descriptor type and sub type.
    pub id: SglId,
}

const _: () = assert!(size_of::<SglDescriptor>() == 16);

/// Bytes of an SGL descriptor; segments are multiples of it.
pub const SGL_DESCRIPTOR_LEN: u32 = size_of::<SglDescriptor>() as u32;

/// Bytes of an entry of a PRP list (Base §4.1.1).
pub const PRP_ENTRY_LEN: usize = 8;

/// Data pointer made of PRPs, 16 bytes (Base §4.1.1). Entries are multiples of 4; only the first of a transfer may lie within a
/// page.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct PrpPair {
    /// First entry: an address with an offset in its page.
    pub prp1: U64,
    /// Second page, or the list of the second and all further pages if there are more than two; else 0.
    pub prp2: U64,
}

const _: () = assert!(size_of::<PrpPair>() == size_of::<SglDescriptor>());

impl SglDescriptor {
    /// Descriptor of `length` bytes of in-capsule data at offset 0.
    pub fn in_capsule(length: u32) -> Self {
        Self { length: U32::new(length), id: SglId::DATA_BLOCK_OFFSET, ..Self::default() }
    }

    /// Descriptor of `length` bytes of memory at `address`.
    pub fn data_block(address: u64, length: u32) -> Self {
        Self { address: U64::new(address), length: U32::new(length), id: SglId::DATA_BLOCK_ADDRESS, ..Self::default() }
    }

    /// Descriptor of a segment of `descriptors` descriptors at `address`, whose last one leads to a further segment.
    pub fn segment(address: u64, descriptors: u32) -> Self {
        Self { id: SglId::SEGMENT, ..Self::data_block(address, descriptors.wrapping_mul(SGL_DESCRIPTOR_LEN)) }
    }

    /// Descriptor of the last, or only, segment: `descriptors` descriptors at `address`, none of which leads further.
    pub fn last_segment(address: u64, descriptors: u32) -> Self {
        Self { id: SglId::LAST_SEGMENT, ..Self::segment(address, descriptors) }
    }

    /// Descriptor of a command data buffer of `length` bytes that the transport moves.
    pub fn transport(length: u32) -> Self {
        Self { length: U32::new(length), id: SglId::TRANSPORT_DATA_BLOCK, ..Self::default() }
    }
}

open_enum! {
    /// Fused operation, bits 1:0 of byte 1 of a command (Base §3.3.3.1).
    pub enum Fuse: u8 {
        /// Not part of a fused operation.
        NONE = 0,
        /// First command of a fused operation.
        FIRST = 1,
        /// Second command of a fused operation.
        SECOND = 2,
    }
}

open_enum! {
    /// PRP or SGL for data transfer, bits 7:6 of byte 1 of a command (Base §3.3.3.1).
    pub enum Psdt: u8 {
        /// PRPs: not allowed over fabrics, and the only way of admin queues on memory-based transports.
        PRP = 0,
        /// SGLs, metadata by address: what fabrics hosts send.
        SGL = 1,
        /// SGLs, metadata by an SGL segment.
        SGL_METADATA_SEGMENT = 2,
    }
}

/// Submission queue entry, 64 bytes (Base §3.3.3.1). The same layout holds for admin and I/O
/// commands; Fabrics commands are read through their own views ([`super::ConnectCmd`] and others).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Sqe {
    /// Opcode; its meaning depends on the queue.
    pub opcode: u8,
    /// Fused operation (bits 1:0) and PSDT (bits 7:6).
    pub flags: u8,
    /// Command identifier.
    pub cid: U16,
    /// Namespace identifier.
    pub nsid: U32,
    /// Command dword 2.
    pub cdw2: U32,
    /// Command dword 3.
    pub cdw3: U32,
    /// Metadata pointer.
    pub mptr: U64,
    /// Data pointer: over fabrics always one SGL descriptor; [`Sqe::prps`] reads it as PRPs.
    pub dptr: SglDescriptor,
    /// Command dword 10.
    pub cdw10: U32,
    /// Command dword 11.
    pub cdw11: U32,
    /// Command dword 12.
    pub cdw12: U32,
    /// Command dword 13.
    pub cdw13: U32,
    /// Command dword 14.
    pub cdw14: U32,
    /// Command dword 15.
    pub cdw15: U32,
}

const _: () = assert!(size_of::<Sqe>() == 64);
const _: () = assert!(offset_of!(Sqe, dptr) == 24);
const _: () = assert!(offset_of!(Sqe, cdw10) == 40);

/// PSDT in the flags of a command.
const PSDT_MASK: u8 = 3 << 6;

impl Sqe {
    /// A command with `opcode` and everything else 0: no data pointer, and PSDT says PRPs.
    #[inline(always)]
    pub fn bare(opcode: u8, nsid: u32) -> Self {
        Self { opcode, nsid: U32::new(nsid), ..Self::default() }
    }

    /// A command with `opcode`, SGLs for data, and everything else 0. The transport sets the command identifier.
    pub fn new(opcode: u8, nsid: u32) -> Self {
        Self {
            opcode,
            flags: Psdt::SGL.0 << 6,
            nsid: U32::new(nsid),
            dptr: SglDescriptor::transport(0),
            ..Self::default()
        }
    }

    /// An admin command; see [`Sqe::new`].
    pub fn admin(opcode: AdminOpcode, nsid: u32) -> Self {
        Self::new(opcode.0, nsid)
    }

    /// An NVM command; see [`Sqe::new`].
    pub fn nvm(opcode: NvmOpcode, nsid: u32) -> Self {
        Self::new(opcode.0, nsid)
    }

    /// The opcode as one of the Admin Command Set.
    pub const fn admin_opcode(&self) -> AdminOpcode {
        AdminOpcode(self.opcode)
    }

    /// The opcode as one of the NVM Command Set.
    pub const fn nvm_opcode(&self) -> NvmOpcode {
        NvmOpcode(self.opcode)
    }

    /// Whether this is a command of the Fabrics Command Set.
    pub const fn is_fabrics(&self) -> bool {
        self.opcode == AdminOpcode::FABRICS.0
    }

    /// Fabrics Command Type, byte 4; meaningful only when [`Sqe::is_fabrics`].
    pub const fn fabrics_type(&self) -> FabricsType {
        FabricsType(self.nsid.get() as u8)
    }

    /// Fused operation field.
    pub const fn fuse(&self) -> Fuse {
        Fuse(self.flags & 3)
    }

    /// The data pointer as PRPs; meaningful only with [`Psdt::PRP`].
    pub fn prps(&self) -> PrpPair {
        zerocopy::transmute!(self.dptr)
    }

    /// Sets the data pointer to PRPs, and PSDT accordingly.
    #[inline]
    pub fn set_prps(&mut self, prp1: u64, prp2: u64) {
        self.flags &= !PSDT_MASK;
        self.dptr = zerocopy::transmute!(PrpPair { prp1: U64::new(prp1), prp2: U64::new(prp2) });
    }

    /// Sets the data pointer to an SGL descriptor, and PSDT to SGLs with metadata by address.
    #[inline]
    pub fn set_sgl(&mut self, descriptor: SglDescriptor) {
        self.flags = self.flags & !PSDT_MASK | Psdt::SGL.0 << 6;
        self.dptr = descriptor;
    }

    /// PSDT field.
    pub const fn psdt(&self) -> Psdt {
        Psdt(self.flags >> 6)
    }

    /// Starting LBA: dwords 10 and 11 of read, write, compare, verify, write zeroes and the zone commands (NVM §3.2, ZNS §3.4).
    pub const fn slba(&self) -> u64 {
        self.cdw10.get() as u64 | (self.cdw11.get() as u64) << 32
    }

    /// Sets the starting LBA.
    #[inline]
    pub fn set_slba(&mut self, slba: u64) {
        self.cdw10.set(slba as u32);
        self.cdw11.set((slba >> 32) as u32);
    }
}

/// Completion queue entry, 16 bytes (Base §3.3.3.2; Fabrics response capsule §3.3.2.1.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Cqe {
    /// Command specific dwords 0 and 1.
    pub result: U64,
    /// Submission queue head pointer; FFFFh when SQ flow control is disabled.
    pub sqhd: U16,
    /// Submission queue identifier; reserved over fabrics.
    pub sqid: U16,
    /// Command identifier.
    pub cid: U16,
    /// Status field and phase tag; see [`Cqe::status`].
    pub status_phase: U16,
}

const _: () = assert!(size_of::<Cqe>() == 16);
const _: () = assert!(offset_of!(Cqe, status_phase) == 14);

impl Cqe {
    /// A completion of command `cid` with `status` and a zero result. The transport sets SQHD.
    pub fn new(cid: u16, status: Status) -> Self {
        Self { cid: U16::new(cid), status_phase: U16::new(status.to_wire()), ..Self::default() }
    }

    /// A successful completion with the command specific dwords.
    pub fn with_result(cid: u16, result: u64) -> Self {
        Self { result: U64::new(result), ..Self::new(cid, Status::SUCCESS) }
    }

    /// The status field.
    pub const fn status(&self) -> Status {
        Status::from_wire(self.status_phase.get())
    }

    /// Replaces the status field and clears the phase tag.
    pub fn set_status(&mut self, status: Status) {
        self.status_phase.set(status.to_wire());
    }

    /// Command specific dword 0.
    pub const fn dw0(&self) -> u32 {
        self.result.get() as u32
    }

    /// Command specific dword 1.
    pub const fn dw1(&self) -> u32 {
        (self.result.get() >> 32) as u32
    }

    /// The last dword, which memory-based controllers write last.
    pub const fn dw3(&self) -> CqeDw3 {
        CqeDw3(self.cid.get() as u32 | (self.status_phase.get() as u32) << 16)
    }
}

/// Dword 3 of a completion queue entry: CID 15:0, phase tag 16, status field 31:17 (Base §3.3.3.2). On memory-based transports
/// the phase tag says whether the entry is new, so this dword is read first and with Acquire, the others after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CqeDw3(pub u32);

impl CqeDw3 {
    /// Offset of the dword in an entry, in bytes.
    pub const OFFSET: usize = 12;

    /// What a controller writes.
    pub const fn new(cid: u16, status: Status, phase: bool) -> Self {
        Self(cid as u32 | (phase as u32) << 16 | (status.to_wire() as u32) << 16)
    }

    /// Command identifier.
    #[inline]
    pub const fn cid(self) -> u16 {
        self.0 as u16
    }

    /// Phase tag: inverted at each pass through the queue, 1 at the first.
    #[inline]
    pub const fn phase(self) -> bool {
        self.0 & 1 << 16 != 0
    }

    /// Status field.
    #[inline]
    pub const fn status(self) -> Status {
        Status::from_wire((self.0 >> 16) as u16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::spec::StatusCode;

    #[test]
    fn sqe_golden_bytes() {
        let mut sqe = Sqe::nvm(NvmOpcode::READ, 3);
        sqe.cid.set(0x1234);
        sqe.set_slba(0x1_0000_0002);
        sqe.cdw12.set(7);
        sqe.dptr = SglDescriptor::transport(4096);
        let bytes = sqe.as_bytes();
        let mut want = [0u8; 64];
        want[..8].copy_from_slice(&[0x02, 0x40, 0x34, 0x12, 3, 0, 0, 0]);
        want[32..40].copy_from_slice(&[0, 0x10, 0, 0, 0, 0, 0, 0x5a]);
        want[40..52].copy_from_slice(&[2, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(bytes, want);
        let back = Sqe::read_from_bytes(&want).unwrap();
        assert_eq!(back.slba(), 0x1_0000_0002);
        assert_eq!(back.psdt(), Psdt::SGL);
        assert_eq!(back.fuse(), Fuse::NONE);
    }

    #[test]
    fn cqe_golden_bytes() {
        let mut cqe = Cqe::with_result(0x0203, 0x0000_0001_0000_00ff);
        cqe.sqhd.set(5);
        cqe.set_status(StatusCode::INVALID_OPCODE.dnr());
        assert_eq!(cqe.as_bytes(), [0xff, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 3, 2, 0x02, 0x80]);
        assert_eq!(cqe.status(), StatusCode::INVALID_OPCODE.dnr());
        assert_eq!(cqe.dw0(), 0xff);
    }

    #[test]
    fn prps_golden_bytes() {
        let mut sqe = Sqe::nvm(NvmOpcode::WRITE, 1);
        sqe.flags |= Fuse::SECOND.0;
        sqe.set_prps(0x1_0000_0e00, 0x2_0000_1000);
        assert_eq!(sqe.as_bytes()[24..40], [0, 0x0e, 0, 0, 1, 0, 0, 0, 0, 0x10, 0, 0, 2, 0, 0, 0]);
        assert_eq!((sqe.psdt(), sqe.fuse()), (Psdt::PRP, Fuse::SECOND));
        assert_eq!(sqe.prps(), PrpPair { prp1: U64::new(0x1_0000_0e00), prp2: U64::new(0x2_0000_1000) });
        let bare = Sqe::bare(NvmOpcode::READ.0, 7);
        assert_eq!(bare.as_bytes()[..8], [2, 0, 0, 0, 7, 0, 0, 0]);
        assert!(bare.as_bytes()[8..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn sgl_golden_bytes() {
        let data = SglDescriptor::data_block(0x1_0203_0405, 0x2_0000);
        assert_eq!(data.as_bytes(), [5, 4, 3, 2, 1, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0]);
        let segment = SglDescriptor::segment(0x1000, 4);
        assert_eq!(segment.as_bytes(), [0, 0x10, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0x20]);
        let last = SglDescriptor::last_segment(0x2000, 3);
        assert_eq!(last.as_bytes(), [0, 0x20, 0, 0, 0, 0, 0, 0, 48, 0, 0, 0, 0, 0, 0, 0x30]);
        let mut sqe = Sqe::bare(NvmOpcode::READ.0, 1);
        sqe.flags |= Fuse::FIRST.0;
        sqe.set_sgl(last);
        assert_eq!((sqe.as_bytes()[1], sqe.dptr), (0x41, last));
        assert_eq!((sqe.psdt(), sqe.fuse()), (Psdt::SGL, Fuse::FIRST));
    }

    #[test]
    fn the_last_dword_of_a_completion() {
        let status = StatusCode::LBA_OUT_OF_RANGE.dnr();
        for phase in [false, true] {
            let dw3 = CqeDw3::new(0xabcd, status, phase);
            assert_eq!((dw3.cid(), dw3.phase(), dw3.status()), (0xabcd, phase, status));
            let mut cqe = Cqe::with_result(0xabcd, 0x0000_0007_0000_0001);
            cqe.status_phase.set((dw3.0 >> 16) as u16);
            assert_eq!(cqe.as_bytes()[CqeDw3::OFFSET..], dw3.0.to_le_bytes());
            assert_eq!((cqe.dw3(), cqe.dw0(), cqe.dw1()), (dw3, 1, 7));
        }
        assert_eq!(CqeDw3::new(0xabcd, status, true).0, 0x8101_abcd);
    }
}
