//! Headers that initiators send.

use core::mem::{offset_of, size_of};

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::code::*;
use super::{Header, U24, header};

header! {
    /// SCSI Command (RFC 7143 §11.3).
    pub struct ScsiCommand {
        /// Opcode and immediate bit.
        pub opcode: u8,
        /// `FLAG_FINAL`, `FLAG_READ`, `FLAG_WRITE` and the task attribute.
        pub flags: u8,
        /// Reserved.
        pub reserved2: [u8; 2],
        /// Length of the additional header segments, in words of four bytes.
        pub ahs_words: u8,
        /// Immediate data in bytes.
        pub data_len: U24,
        /// LUN.
        pub lun: [u8; 8],
        /// Initiator Task Tag.
        pub itt: U32,
        /// Expected Data Transfer Length in bytes.
        pub expected_len: U32,
        /// Command sequence number.
        pub cmd_sn: U32,
        /// Next status sequence number that the initiator expects.
        pub exp_stat_sn: U32,
        /// The CDB, or its first 16 bytes.
        pub cdb: [u8; 16],
    }
}

impl ScsiCommand {
    /// Whether the command is for immediate delivery.
    pub const fn immediate(&self) -> bool {
        self.opcode & OPCODE_IMMEDIATE != 0
    }

    /// Whether no unsolicited Data-Out follows.
    pub const fn is_final(&self) -> bool {
        self.flags & FLAG_FINAL != 0
    }

    /// Whether the command reads.
    pub const fn reads(&self) -> bool {
        self.flags & FLAG_READ != 0
    }

    /// Whether the command writes.
    pub const fn writes(&self) -> bool {
        self.flags & FLAG_WRITE != 0
    }

    /// The task attribute.
    pub const fn attribute(&self) -> TaskAttribute {
        TaskAttribute(self.flags & ATTRIBUTE_MASK)
    }
}

header! {
    /// Task Management Function Request (RFC 7143 §11.5).
    pub struct TaskRequest {
        /// Opcode and immediate bit.
        pub opcode: u8,
        /// `FLAG_FINAL` and the function.
        pub flags: u8,
        /// Reserved.
        pub reserved2: [u8; 2],
        /// 0.
        pub ahs_words: u8,
        /// 0.
        pub data_len: U24,
        /// LUN, where the function has one.
        pub lun: [u8; 8],
        /// Initiator Task Tag of this request.
        pub itt: U32,
        /// Initiator Task Tag of the task meant, or [`NO_TAG`].
        pub ref_itt: U32,
        /// Command sequence number.
        pub cmd_sn: U32,
        /// Next status sequence number that the initiator expects.
        pub exp_stat_sn: U32,
        /// CmdSN of the task meant.
        pub ref_cmd_sn: U32,
        /// For TASK REASSIGN.
        pub exp_data_sn: U32,
        /// Reserved.
        pub reserved40: [u8; 8],
    }
}

impl TaskRequest {
    /// The function.
    pub const fn function(&self) -> TaskFunction {
        TaskFunction(self.flags & 0x7f)
    }
}

header! {
    /// SCSI Data-Out (RFC 7143 §11.7).
    pub struct DataOut {
        /// Opcode.
        pub opcode: u8,
        /// `FLAG_FINAL`.
        pub flags: u8,
        /// Reserved.
        pub reserved2: [u8; 2],
        /// 0.
        pub ahs_words: u8,
        /// Data bytes.
        pub data_len: U24,
        /// LUN, or reserved for unsolicited data.
        pub lun: [u8; 8],
        /// Initiator Task Tag of the command.
        pub itt: U32,
        /// Target Transfer Tag of the R2T, or [`NO_TAG`] for unsolicited data.
        pub ttt: U32,
        /// Reserved.
        pub reserved24: [u8; 4],
        /// Next status sequence number that the initiator expects.
        pub exp_stat_sn: U32,
        /// Reserved.
        pub reserved32: [u8; 4],
        /// Number of the PDU in its sequence.
        pub data_sn: U32,
        /// Where the data belongs, in bytes.
        pub buffer_offset: U32,
        /// Reserved.
        pub reserved44: [u8; 4],
    }
}

header! {
    /// Text Request (RFC 7143 §11.10).
    pub struct TextRequest {
        /// Opcode and immediate bit.
        pub opcode: u8,
        /// `FLAG_FINAL`, `FLAG_CONTINUE`.
        pub flags: u8,
        /// Reserved.
        pub reserved2: [u8; 2],
        /// 0.
        pub ahs_words: u8,
        /// Text bytes.
        pub data_len: U24,
        /// LUN, with a Target Transfer Tag that came with one.
        pub lun: [u8; 8],
        /// Initiator Task Tag.
        pub itt: U32,
        /// Target Transfer Tag of the response before, or [`NO_TAG`].
        pub ttt: U32,
        /// Command sequence number.
        pub cmd_sn: U32,
        /// Next status sequence number that the initiator expects.
        pub exp_stat_sn: U32,
        /// Reserved.
        pub reserved32: [u8; 16],
    }
}

header! {
    /// Login Request (RFC 7143 §11.12).
    pub struct LoginRequest {
        /// Opcode, with the immediate bit.
        pub opcode: u8,
        /// `FLAG_TRANSIT`, `FLAG_CONTINUE`, current and next stage.
        pub flags: u8,
        /// Highest version that the initiator knows.
        pub version_max: u8,
        /// Lowest version that the initiator knows.
        pub version_min: u8,
        /// 0.
        pub ahs_words: u8,
        /// Text bytes.
        pub data_len: U24,
        /// Initiator part of the session identifier.
        pub isid: [u8; 6],
        /// Target part: 0 for a new session.
        pub tsih: U16,
        /// Initiator Task Tag.
        pub itt: U32,
        /// Connection identifier.
        pub cid: U16,
        /// Reserved.
        pub reserved22: [u8; 2],
        /// Command sequence number.
        pub cmd_sn: U32,
        /// Next status sequence number that the initiator expects.
        pub exp_stat_sn: U32,
        /// Reserved.
        pub reserved32: [u8; 16],
    }
}

impl LoginRequest {
    /// Current stage.
    pub const fn current(&self) -> Stage {
        Stage(self.flags >> 2 & 3)
    }

    /// Next stage, with `FLAG_TRANSIT`.
    pub const fn next(&self) -> Stage {
        Stage(self.flags & 3)
    }
}

header! {
    /// Logout Request (RFC 7143 §11.14).
    pub struct LogoutRequest {
        /// Opcode and immediate bit.
        pub opcode: u8,
        /// `FLAG_FINAL` and the reason.
        pub flags: u8,
        /// Reserved.
        pub reserved2: [u8; 2],
        /// 0.
        pub ahs_words: u8,
        /// 0.
        pub data_len: U24,
        /// Reserved.
        pub reserved8: [u8; 8],
        /// Initiator Task Tag.
        pub itt: U32,
        /// The connection meant, unless the session is to close.
        pub cid: U16,
        /// Reserved.
        pub reserved22: [u8; 2],
        /// Command sequence number.
        pub cmd_sn: U32,
        /// Next status sequence number that the initiator expects.
        pub exp_stat_sn: U32,
        /// Reserved.
        pub reserved32: [u8; 16],
    }
}

impl LogoutRequest {
    /// The reason.
    pub const fn reason(&self) -> LogoutReason {
        LogoutReason(self.flags & 0x7f)
    }
}

header! {
    /// SNACK Request (RFC 7143 §11.16).
    pub struct Snack {
        /// Opcode.
        pub opcode: u8,
        /// `FLAG_FINAL` and the type.
        pub flags: u8,
        /// Reserved.
        pub reserved2: [u8; 2],
        /// 0.
        pub ahs_words: u8,
        /// 0.
        pub data_len: U24,
        /// LUN.
        pub lun: [u8; 8],
        /// Initiator Task Tag.
        pub itt: U32,
        /// Target Transfer Tag or SNACK tag.
        pub ttt: U32,
        /// Reserved.
        pub reserved24: [u8; 4],
        /// Next status sequence number that the initiator expects.
        pub exp_stat_sn: U32,
        /// Reserved.
        pub reserved32: [u8; 8],
        /// First number asked for.
        pub begin_run: U32,
        /// How many.
        pub run_len: U32,
    }
}

header! {
    /// NOP-Out (RFC 7143 §11.18).
    pub struct NopOut {
        /// Opcode and immediate bit.
        pub opcode: u8,
        /// `FLAG_FINAL`.
        pub flags: u8,
        /// Reserved.
        pub reserved2: [u8; 2],
        /// 0.
        pub ahs_words: u8,
        /// Ping data in bytes.
        pub data_len: U24,
        /// LUN of the NOP-In that is answered.
        pub lun: [u8; 8],
        /// Initiator Task Tag, or [`NO_TAG`] when no answer is wanted.
        pub itt: U32,
        /// Target Transfer Tag of the NOP-In that is answered, or [`NO_TAG`].
        pub ttt: U32,
        /// Command sequence number.
        pub cmd_sn: U32,
        /// Next status sequence number that the initiator expects.
        pub exp_stat_sn: U32,
        /// Reserved.
        pub reserved32: [u8; 16],
    }
}

const _: () = assert!(offset_of!(ScsiCommand, cdb) == 32 && offset_of!(ScsiCommand, cmd_sn) == 24);
const _: () = assert!(offset_of!(TaskRequest, ref_cmd_sn) == 32 && offset_of!(TaskRequest, ref_itt) == 20);
const _: () = assert!(offset_of!(DataOut, data_sn) == 36 && offset_of!(DataOut, exp_stat_sn) == 28);
const _: () = assert!(offset_of!(LoginRequest, cid) == 20 && offset_of!(Snack, begin_run) == 40);
