//! PDU headers as they stand on the wire (TCP §3.6.2).

use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::nvme::spec::{Cqe, Sqe};
use crate::util::open_enum;

open_enum! {
    /// PDU type (TCP §3.2, Figure 10). Bit 0 is the direction: 0 host to controller, 1 controller to host.
    pub enum PduType: u8 {
        /// Initialize Connection Request.
        IC_REQ = 0x00,
        /// Initialize Connection Response.
        IC_RESP = 0x01,
        /// Host to Controller Terminate Connection Request.
        H2C_TERM_REQ = 0x02,
        /// Controller to Host Terminate Connection Request.
        C2H_TERM_REQ = 0x03,
        /// Command Capsule.
        CAPSULE_CMD = 0x04,
        /// Response Capsule.
        CAPSULE_RESP = 0x05,
        /// Host to Controller Data.
        H2C_DATA = 0x06,
        /// Controller to Host Data.
        C2H_DATA = 0x07,
        /// Ready to Transfer.
        R2T = 0x09,
    }
}

open_enum! {
    /// Fatal Error Status of a termination request (TCP §3.6.2.4, §3.6.2.5).
    pub enum FatalErrorStatus: u16 {
        /// Invalid PDU Header Field; the information is the byte offset of the field.
        INVALID_HEADER_FIELD = 1,
        /// PDU Sequence Error.
        SEQUENCE_ERROR = 2,
        /// Header Digest Error; the information is the digest received.
        HEADER_DIGEST_ERROR = 3,
        /// Data Transfer Out of Range.
        DATA_OUT_OF_RANGE = 4,
        /// Data Transfer Limit Exceeded (to the host), R2T Limit Exceeded (to the controller).
        LIMIT_EXCEEDED = 5,
        /// Unsupported Parameter; the information is the byte offset of the field.
        UNSUPPORTED_PARAMETER = 6,
    }
}

/// Why a connection must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FatalError {
    /// Send a termination request with this status and information and the offending header, then close (TCP §3.5).
    #[error("{status:?}, information {info:#x}")]
    Terminate {
        /// Fatal Error Status.
        status: FatalErrorStatus,
        /// Fatal Error Information.
        info: u32,
    },
    /// Close at once without an answer: the peer's own termination request was malformed (TCP §3.5).
    #[error("malformed termination request")]
    Close,
}

impl FatalError {
    /// The field at byte `offset` of the PDU header is invalid.
    pub const fn invalid_field(offset: usize) -> Self {
        Self::Terminate { status: FatalErrorStatus::INVALID_HEADER_FIELD, info: offset as u32 }
    }

    /// The parameter at byte `offset` of the PDU header is not supported.
    pub const fn unsupported(offset: usize) -> Self {
        Self::Terminate { status: FatalErrorStatus::UNSUPPORTED_PARAMETER, info: offset as u32 }
    }

    /// A status without information.
    pub const fn status(status: FatalErrorStatus) -> Self {
        Self::Terminate { status, info: 0 }
    }
}

/// FLAGS bit: a header digest follows the header.
pub const FLAG_HEADER_DIGEST: u8 = 1 << 0;
/// FLAGS bit: a data digest follows the data.
pub const FLAG_DATA_DIGEST: u8 = 1 << 1;
/// FLAGS bit of the data PDUs: last PDU of an R2T (H2CData) or of a command (C2HData).
pub const FLAG_LAST: u8 = 1 << 2;
/// FLAGS bit of C2HData: the command succeeded and no response capsule follows.
pub const FLAG_SUCCESS: u8 = 1 << 3;

/// Length of a digest field in bytes.
pub const DIGEST_LEN: usize = 4;

/// Most bytes of in-capsule data that Fabrics and Admin commands carry (TCP §3.2, Capsules).
pub const ADMIN_IN_CAPSULE_LEN: u32 = 8192;

/// Most data a termination request carries (TCP §3.5).
pub const TERM_DATA_MAX: usize = 128;

/// Largest HPDA or CPDA: 128 bytes (TCP §3.3).
pub const ALIGNMENT_MAX_Z: u8 = 31;

/// Smallest MAXH2CDATA (TCP §3.6.2.3).
pub const MAX_H2C_DATA_MIN: u32 = 4096;

/// Common header, 8 bytes (TCP §3.6.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CommonHeader {
    /// PDU type.
    pub pdu_type: PduType,
    /// Flags, `FLAG_*`.
    pub flags: u8,
    /// Header length in bytes, without the header digest.
    pub hlen: u8,
    /// Offset of the data from the start of the PDU, in bytes.
    pub pdo: u8,
    /// Length of the whole PDU in bytes.
    pub plen: U32,
}

const _: () = assert!(size_of::<CommonHeader>() == 8);

/// Initialize Connection Request, 128 bytes (TCP §3.6.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IcReqPdu {
    /// Common header.
    pub ch: CommonHeader,
    /// PDU format version: 0.
    pub pfv: U16,
    /// Alignment of data that the host wants to receive, in dwords, zero's-based.
    pub hpda_z: u8,
    /// Digests asked for, `DGST_*`.
    pub dgst: u8,
    /// Most outstanding R2Ts per command, zero's-based.
    pub maxr2t_z: U32,
    /// Reserved.
    pub reserved16: [u8; 112],
}

const _: () = assert!(size_of::<IcReqPdu>() == 128);

/// Initialize Connection Response, 128 bytes (TCP §3.6.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IcRespPdu {
    /// Common header.
    pub ch: CommonHeader,
    /// PDU format version: 0.
    pub pfv: U16,
    /// Alignment of data that the controller wants to receive, in dwords, zero's-based.
    pub cpda_z: u8,
    /// Digests in use, `DGST_*`.
    pub dgst: u8,
    /// Most data bytes in one H2CData PDU.
    pub maxh2cdata: U32,
    /// Reserved.
    pub reserved16: [u8; 112],
}

const _: () = assert!(size_of::<IcRespPdu>() == 128);

/// DGST bit: header digest.
pub const DGST_HEADER: u8 = 1 << 0;
/// DGST bit: data digest.
pub const DGST_DATA: u8 = 1 << 1;

/// Termination request of either direction, 24 bytes; up to 128 bytes of the offending header follow (TCP §3.6.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TermReqPdu {
    /// Common header.
    pub ch: CommonHeader,
    /// Fatal Error Status, see [`FatalErrorStatus`].
    pub fes: U16,
    /// Fatal Error Information.
    pub fei: U32,
    /// Reserved.
    pub reserved14: [u8; 10],
}

const _: () = assert!(size_of::<TermReqPdu>() == 24);
const _: () = assert!(offset_of!(TermReqPdu, fei) == 10);

/// Command capsule header, 72 bytes (TCP §3.6.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CapsuleCmdPdu {
    /// Common header.
    pub ch: CommonHeader,
    /// The command.
    pub sqe: Sqe,
}

const _: () = assert!(size_of::<CapsuleCmdPdu>() == 72);

/// Response capsule header, 24 bytes (TCP §3.6.2.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct CapsuleRespPdu {
    /// Common header.
    pub ch: CommonHeader,
    /// The completion.
    pub cqe: Cqe,
}

const _: () = assert!(size_of::<CapsuleRespPdu>() == 24);

/// Header of H2CData and C2HData, 24 bytes (TCP §3.6.2.8, §3.6.2.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DataPdu {
    /// Common header.
    pub ch: CommonHeader,
    /// Command identifier.
    pub cccid: U16,
    /// Transfer tag of the R2T (H2CData), reserved (C2HData).
    pub ttag: U16,
    /// Offset in bytes from the start of the command's data.
    pub datao: U32,
    /// Data bytes in this PDU.
    pub datal: U32,
    /// Reserved.
    pub reserved20: [u8; 4],
}

const _: () = assert!(size_of::<DataPdu>() == 24);

impl DataPdu {
    /// Whether LAST_PDU is set.
    pub const fn last(&self) -> bool {
        self.ch.flags & FLAG_LAST != 0
    }

    /// Whether SUCCESS is set (C2HData).
    pub const fn success(&self) -> bool {
        self.ch.flags & FLAG_SUCCESS != 0
    }
}

/// Ready to Transfer, 24 bytes (TCP §3.6.2.10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct R2tPdu {
    /// Common header.
    pub ch: CommonHeader,
    /// Command identifier.
    pub cccid: U16,
    /// Transfer tag, chosen by the controller.
    pub ttag: U16,
    /// Offset in bytes from the start of the command's data.
    pub r2to: U32,
    /// Data bytes asked for.
    pub r2tl: U32,
    /// Reserved.
    pub reserved20: [u8; 4],
}

const _: () = assert!(size_of::<R2tPdu>() == 24);

/// Byte offsets of header fields, as Fatal Error Information names them.
pub mod field {
    use super::*;

    /// PDU type.
    pub const TYPE: usize = offset_of!(CommonHeader, pdu_type);
    /// Flags.
    pub const FLAGS: usize = offset_of!(CommonHeader, flags);
    /// Header length.
    pub const HLEN: usize = offset_of!(CommonHeader, hlen);
    /// Data offset within the PDU.
    pub const PDO: usize = offset_of!(CommonHeader, pdo);
    /// PDU length.
    pub const PLEN: usize = offset_of!(CommonHeader, plen);
    /// PDU format version.
    pub const PFV: usize = offset_of!(IcReqPdu, pfv);
    /// HPDA or CPDA.
    pub const PDA: usize = offset_of!(IcReqPdu, hpda_z);
    /// Digest enable options.
    pub const DGST: usize = offset_of!(IcReqPdu, dgst);
    /// MAXH2CDATA.
    pub const MAXH2CDATA: usize = offset_of!(IcRespPdu, maxh2cdata);
    /// Command capsule CID.
    pub const CCCID: usize = offset_of!(DataPdu, cccid);
    /// Transfer tag.
    pub const TTAG: usize = offset_of!(DataPdu, ttag);
    /// Data offset (DATAO, R2TO).
    pub const DATAO: usize = offset_of!(DataPdu, datao);
    /// Data length (DATAL, R2TL).
    pub const DATAL: usize = offset_of!(DataPdu, datal);
}
