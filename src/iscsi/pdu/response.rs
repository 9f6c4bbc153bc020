//! Headers that targets send.

use core::mem::{offset_of, size_of};

use zerocopy::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::code::*;
use super::{Header, U24, header};

header! {
    /// SCSI Response (RFC 7143 §11.4).
    pub struct ScsiResponse {
        /// Opcode.
        pub opcode: u8,
        /// `FLAG_FINAL` and the residual flags.
        pub flags: u8,
        /// 0: the command ended at the target; 1: target failure.
        pub response: u8,
        /// SCSI status.
        pub status: u8,
        /// 0.
        pub ahs_words: u8,
        /// Two bytes of SenseLength and the sense data.
        pub data_len: U24,
        /// Reserved.
        pub reserved8: [u8; 8],
        /// Initiator Task Tag.
        pub itt: U32,
        /// SNACK tag, 0.
        pub snack_tag: U32,
        /// Status sequence number.
        pub stat_sn: U32,
        /// Next expected CmdSN.
        pub exp_cmd_sn: U32,
        /// Largest CmdSN that the target takes.
        pub max_cmd_sn: U32,
        /// Data-In and R2T PDUs sent for the command.
        pub exp_data_sn: U32,
        /// Residual of what a bidirectional command read.
        pub bidi_residual: U32,
        /// Residual.
        pub residual: U32,
    }
}

header! {
    /// Task Management Function Response (RFC 7143 §11.6).
    pub struct TaskResponse {
        /// Opcode.
        pub opcode: u8,
        /// `FLAG_FINAL`.
        pub flags: u8,
        /// How it ended.
        pub outcome: TaskOutcome,
        /// Reserved.
        pub reserved3: u8,
        /// 0.
        pub ahs_words: u8,
        /// 0.
        pub data_len: U24,
        /// Reserved; the additional response information of RFC 7144 §6.4.1 in its first three bytes.
        pub reserved8: [u8; 8],
        /// Initiator Task Tag.
        pub itt: U32,
        /// Reserved.
        pub reserved20: [u8; 4],
        /// Status sequence number.
        pub stat_sn: U32,
        /// Next expected CmdSN.
        pub exp_cmd_sn: U32,
        /// Largest CmdSN that the target takes.
        pub max_cmd_sn: U32,
        /// Reserved.
        pub reserved36: [u8; 12],
    }
}

header! {
    /// SCSI Data-In (RFC 7143 §11.7).
    pub struct DataIn {
        /// Opcode.
        pub opcode: u8,
        /// `FLAG_FINAL`, the residual flags and `FLAG_STATUS`.
        pub flags: u8,
        /// Reserved.
        pub reserved2: u8,
        /// SCSI status, with `FLAG_STATUS`.
        pub status: u8,
        /// 0.
        pub ahs_words: u8,
        /// Data bytes.
        pub data_len: U24,
        /// Reserved: nothing is to be acknowledged at error recovery level 0.
        pub lun: [u8; 8],
        /// Initiator Task Tag.
        pub itt: U32,
        /// [`NO_TAG`].
        pub ttt: U32,
        /// Status sequence number, with `FLAG_STATUS`.
        pub stat_sn: U32,
        /// Next expected CmdSN.
        pub exp_cmd_sn: U32,
        /// Largest CmdSN that the target takes.
        pub max_cmd_sn: U32,
        /// Number of the PDU in the task.
        pub data_sn: U32,
        /// Where the data belongs, in bytes.
        pub buffer_offset: U32,
        /// Residual, with `FLAG_STATUS`.
        pub residual: U32,
    }
}

header! {
    /// Ready To Transfer (RFC 7143 §11.8).
    pub struct R2t {
        /// Opcode.
        pub opcode: u8,
        /// `FLAG_FINAL`.
        pub flags: u8,
        /// Reserved.
        pub reserved2: [u8; 2],
        /// 0.
        pub ahs_words: u8,
        /// 0.
        pub data_len: U24,
        /// LUN of the command.
        pub lun: [u8; 8],
        /// Initiator Task Tag.
        pub itt: U32,
        /// Target Transfer Tag.
        pub ttt: U32,
        /// The next StatSN, which this PDU does not take.
        pub stat_sn: U32,
        /// Next expected CmdSN.
        pub exp_cmd_sn: U32,
        /// Largest CmdSN that the target takes.
        pub max_cmd_sn: U32,
        /// Number of the R2T in the task.
        pub r2t_sn: U32,
        /// Where the data belongs, in bytes.
        pub buffer_offset: U32,
        /// Bytes asked for.
        pub desired_len: U32,
    }
}

header! {
    /// Asynchronous Message (RFC 7143 §11.9).
    pub struct AsyncMessage {
        /// Opcode.
        pub opcode: u8,
        /// `FLAG_FINAL`.
        pub flags: u8,
        /// Reserved.
        pub reserved2: [u8; 2],
        /// 0.
        pub ahs_words: u8,
        /// Two bytes of SenseLength and the sense data, of a SCSI event.
        pub data_len: U24,
        /// LUN of a SCSI event.
        pub lun: [u8; 8],
        /// [`NO_TAG`].
        pub itt: U32,
        /// Reserved.
        pub reserved20: [u8; 4],
        /// Status sequence number.
        pub stat_sn: U32,
        /// Next expected CmdSN.
        pub exp_cmd_sn: U32,
        /// Largest CmdSN that the target takes.
        pub max_cmd_sn: U32,
        /// What happened.
        pub event: AsyncEvent,
        /// Vendor's code.
        pub vendor_code: u8,
        /// Parameter 1.
        pub parameter1: U16,
        /// Parameter 2.
        pub parameter2: U16,
        /// Parameter 3.
        pub parameter3: U16,
        /// Reserved.
        pub reserved44: [u8; 4],
    }
}

header! {
    /// Text Response (RFC 7143 §11.11).
    pub struct TextResponse {
        /// Opcode.
        pub opcode: u8,
        /// `FLAG_FINAL`, `FLAG_CONTINUE`.
        pub flags: u8,
        /// Reserved.
        pub reserved2: [u8; 2],
        /// 0.
        pub ahs_words: u8,
        /// Text bytes.
        pub data_len: U24,
        /// Reserved.
        pub lun: [u8; 8],
        /// Initiator Task Tag.
        pub itt: U32,
        /// Target Transfer Tag if the exchange goes on, or [`NO_TAG`].
        pub ttt: U32,
        /// Status sequence number.
        pub stat_sn: U32,
        /// Next expected CmdSN.
        pub exp_cmd_sn: U32,
        /// Largest CmdSN that the target takes.
        pub max_cmd_sn: U32,
        /// Reserved.
        pub reserved36: [u8; 12],
    }
}

header! {
    /// Login Response (RFC 7143 §11.13).
    pub struct LoginResponse {
        /// Opcode.
        pub opcode: u8,
        /// `FLAG_TRANSIT`, `FLAG_CONTINUE`, current and next stage.
        pub flags: u8,
        /// Highest version that the target knows.
        pub version_max: u8,
        /// Version in use.
        pub version_active: u8,
        /// 0.
        pub ahs_words: u8,
        /// Text bytes.
        pub data_len: U24,
        /// Initiator part of the session identifier.
        pub isid: [u8; 6],
        /// Target part: not 0 in the last response.
        pub tsih: U16,
        /// Initiator Task Tag.
        pub itt: U32,
        /// Reserved.
        pub reserved20: [u8; 4],
        /// Status sequence number.
        pub stat_sn: U32,
        /// Next expected CmdSN.
        pub exp_cmd_sn: U32,
        /// Largest CmdSN that the target takes.
        pub max_cmd_sn: U32,
        /// Status-Class.
        pub status_class: u8,
        /// Status-Detail.
        pub status_detail: u8,
        /// Reserved.
        pub reserved38: [u8; 10],
    }
}

header! {
    /// Logout Response (RFC 7143 §11.15).
    pub struct LogoutResponse {
        /// Opcode.
        pub opcode: u8,
        /// `FLAG_FINAL`.
        pub flags: u8,
        /// How it ended.
        pub outcome: LogoutOutcome,
        /// Reserved.
        pub reserved3: u8,
        /// 0.
        pub ahs_words: u8,
        /// 0.
        pub data_len: U24,
        /// Reserved.
        pub reserved8: [u8; 8],
        /// Initiator Task Tag.
        pub itt: U32,
        /// Reserved.
        pub reserved20: [u8; 4],
        /// Status sequence number.
        pub stat_sn: U32,
        /// Next expected CmdSN.
        pub exp_cmd_sn: U32,
        /// Largest CmdSN that the target takes.
        pub max_cmd_sn: U32,
        /// Reserved.
        pub reserved36: [u8; 4],
        /// Seconds to wait before the tasks may be reassigned.
        pub time2wait: U16,
        /// Seconds after that while tasks are kept.
        pub time2retain: U16,
        /// Reserved.
        pub reserved44: [u8; 4],
    }
}

header! {
    /// Reject (RFC 7143 §11.17). Its data is the header that is rejected.
    pub struct Reject {
        /// Opcode.
        pub opcode: u8,
        /// `FLAG_FINAL`.
        pub flags: u8,
        /// Why.
        pub reason: RejectReason,
        /// Reserved.
        pub reserved3: u8,
        /// 0.
        pub ahs_words: u8,
        /// 48.
        pub data_len: U24,
        /// Reserved.
        pub reserved8: [u8; 8],
        /// [`NO_TAG`].
        pub itt: U32,
        /// Reserved.
        pub reserved20: [u8; 4],
        /// Status sequence number.
        pub stat_sn: U32,
        /// Next expected CmdSN.
        pub exp_cmd_sn: U32,
        /// Largest CmdSN that the target takes.
        pub max_cmd_sn: U32,
        /// DataSN or R2TSN, of a rejected Data or R2T SNACK.
        pub data_sn: U32,
        /// Reserved.
        pub reserved40: [u8; 8],
    }
}

header! {
    /// NOP-In (RFC 7143 §11.19).
    pub struct NopIn {
        /// Opcode.
        pub opcode: u8,
        /// `FLAG_FINAL`.
        pub flags: u8,
        /// Reserved.
        pub reserved2: [u8; 2],
        /// 0.
        pub ahs_words: u8,
        /// Ping data in bytes.
        pub data_len: U24,
        /// LUN, with a Target Transfer Tag.
        pub lun: [u8; 8],
        /// Initiator Task Tag of the NOP-Out that is answered, or [`NO_TAG`].
        pub itt: U32,
        /// Target Transfer Tag when an answer is wanted, or [`NO_TAG`].
        pub ttt: U32,
        /// Status sequence number; the next one, not taken, when nothing is answered.
        pub stat_sn: U32,
        /// Next expected CmdSN.
        pub exp_cmd_sn: U32,
        /// Largest CmdSN that the target takes.
        pub max_cmd_sn: U32,
        /// Reserved.
        pub reserved36: [u8; 12],
    }
}

const _: () = assert!(offset_of!(ScsiResponse, exp_data_sn) == 36 && offset_of!(ScsiResponse, residual) == 44);
const _: () = assert!(offset_of!(DataIn, buffer_offset) == 40 && offset_of!(R2t, desired_len) == 44);
const _: () = assert!(offset_of!(AsyncMessage, event) == 36 && offset_of!(AsyncMessage, parameter3) == 42);
const _: () = assert!(offset_of!(LoginResponse, status_class) == 36 && offset_of!(LogoutResponse, time2wait) == 40);
const _: () = assert!(offset_of!(Reject, data_sn) == 36 && offset_of!(NopIn, stat_sn) == 24);
