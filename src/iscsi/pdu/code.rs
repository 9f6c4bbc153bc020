//! Numbers and bits that headers hold.

use crate::util::open_enum;

open_enum! {
    /// What a PDU is: the low six bits of its first byte (RFC 7143 §11.2.1.2).
    pub enum Opcode: u8 {
        /// NOP-Out.
        NOP_OUT = 0x00,
        /// SCSI Command.
        SCSI_COMMAND = 0x01,
        /// SCSI Task Management Function Request.
        TASK_REQUEST = 0x02,
        /// Login Request.
        LOGIN_REQUEST = 0x03,
        /// Text Request.
        TEXT_REQUEST = 0x04,
        /// SCSI Data-Out.
        DATA_OUT = 0x05,
        /// Logout Request.
        LOGOUT_REQUEST = 0x06,
        /// SNACK Request.
        SNACK = 0x10,
        /// NOP-In.
        NOP_IN = 0x20,
        /// SCSI Response.
        SCSI_RESPONSE = 0x21,
        /// SCSI Task Management Function Response.
        TASK_RESPONSE = 0x22,
        /// Login Response.
        LOGIN_RESPONSE = 0x23,
        /// Text Response.
        TEXT_RESPONSE = 0x24,
        /// SCSI Data-In.
        DATA_IN = 0x25,
        /// Logout Response.
        LOGOUT_RESPONSE = 0x26,
        /// Ready To Transfer.
        R2T = 0x31,
        /// Asynchronous Message.
        ASYNC_MESSAGE = 0x32,
        /// Reject.
        REJECT = 0x3f,
    }
}

open_enum! {
    /// Why a PDU is rejected (RFC 7143 §11.17.1).
    pub enum RejectReason: u8 {
        /// The data digest did not match.
        DATA_DIGEST_ERROR = 0x02,
        /// The SNACK asks for what cannot be sent again.
        SNACK_REJECT = 0x03,
        /// Protocol error, for example a SNACK for a status that was acknowledged.
        PROTOCOL_ERROR = 0x04,
        /// The opcode is not supported.
        COMMAND_NOT_SUPPORTED = 0x05,
        /// Too many immediate commands.
        IMMEDIATE_COMMAND_REJECT = 0x06,
        /// The task is in progress.
        TASK_IN_PROGRESS = 0x07,
        /// The acknowledgement of data names what was not sent.
        INVALID_DATA_ACK = 0x08,
        /// A field of the PDU is not valid.
        INVALID_PDU_FIELD = 0x09,
        /// No Target Transfer Tag for a long operation can be made.
        LONG_OPERATION_REJECT = 0x0a,
        /// The connection waits for its logout.
        WAITING_FOR_LOGOUT = 0x0c,
    }
}

open_enum! {
    /// A task management function (RFC 7143 §11.5.1; 9 and above RFC 7144 §6.3, for sessions of protocol level 2).
    pub enum TaskFunction: u8 {
        /// ABORT TASK.
        ABORT_TASK = 1,
        /// ABORT TASK SET.
        ABORT_TASK_SET = 2,
        /// CLEAR ACA.
        CLEAR_ACA = 3,
        /// CLEAR TASK SET.
        CLEAR_TASK_SET = 4,
        /// LOGICAL UNIT RESET.
        LOGICAL_UNIT_RESET = 5,
        /// TARGET WARM RESET.
        TARGET_WARM_RESET = 6,
        /// TARGET COLD RESET.
        TARGET_COLD_RESET = 7,
        /// TASK REASSIGN.
        TASK_REASSIGN = 8,
        /// QUERY TASK.
        QUERY_TASK = 9,
        /// QUERY TASK SET.
        QUERY_TASK_SET = 10,
        /// I_T NEXUS RESET.
        I_T_NEXUS_RESET = 11,
        /// QUERY ASYNCHRONOUS EVENT.
        QUERY_ASYNC_EVENT = 12,
    }
}

open_enum! {
    /// How a task management function ended (RFC 7143 §11.6.1; 7 RFC 7144 §6.4.2).
    pub enum TaskOutcome: u8 {
        /// Function complete.
        COMPLETE = 0,
        /// The task does not exist.
        NO_TASK = 1,
        /// The LUN does not exist.
        NO_LUN = 2,
        /// The task is still allegiant.
        STILL_ALLEGIANT = 3,
        /// Tasks are not reassigned here.
        REASSIGN_NOT_SUPPORTED = 4,
        /// The function is not supported.
        NOT_SUPPORTED = 5,
        /// The initiator may not do this.
        NOT_AUTHORISED = 6,
        /// Function succeeded: a query found what it asked for.
        SUCCEEDED = 7,
        /// Function rejected.
        REJECTED = 255,
    }
}

open_enum! {
    /// What an Asynchronous Message says (RFC 7143 §11.9.1).
    pub enum AsyncEvent: u8 {
        /// A SCSI event; sense data follows.
        SCSI = 0,
        /// The initiator is to log this connection out, within parameter 3 seconds.
        REQUEST_LOGOUT = 1,
        /// The target drops the connection named by parameter 1.
        DROP_CONNECTION = 2,
        /// The target drops all connections of the session.
        DROP_SESSION = 3,
        /// The initiator is to negotiate again, within parameter 3 seconds.
        REQUEST_NEGOTIATION = 4,
        /// The tasks of a LUN were ended by somebody else (FastAbort alone).
        TASK_TERMINATION = 5,
        /// A vendor's event.
        VENDOR = 255,
    }
}

open_enum! {
    /// What a Logout Request asks for (RFC 7143 §11.14.1).
    pub enum LogoutReason: u8 {
        /// Close the session.
        CLOSE_SESSION = 0,
        /// Close the connection.
        CLOSE_CONNECTION = 1,
        /// Remove the connection, its tasks are to go on elsewhere.
        REMOVE_FOR_RECOVERY = 2,
    }
}

open_enum! {
    /// How a logout ended (RFC 7143 §11.15.1).
    pub enum LogoutOutcome: u8 {
        /// Closed.
        SUCCESS = 0,
        /// There is no connection with this identifier.
        NO_CONNECTION = 1,
        /// Connections are not recovered here.
        RECOVERY_NOT_SUPPORTED = 2,
        /// The clean-up failed.
        CLEANUP_FAILED = 3,
    }
}

open_enum! {
    /// Task attribute of a SCSI Command (RFC 7143 §11.3.1).
    pub enum TaskAttribute: u8 {
        /// Untagged.
        UNTAGGED = 0,
        /// Simple.
        SIMPLE = 1,
        /// Ordered.
        ORDERED = 2,
        /// Head of queue.
        HEAD_OF_QUEUE = 3,
        /// ACA.
        ACA = 4,
    }
}

open_enum! {
    /// What an additional header segment holds (RFC 7143 §11.2.2.1).
    pub enum AhsType: u8 {
        /// The rest of a CDB of more than 16 bytes.
        EXTENDED_CDB = 1,
        /// Expected length of the data that a bidirectional command reads.
        BIDIRECTIONAL_READ_LENGTH = 2,
    }
}

open_enum! {
    /// Stage of the login (RFC 7143 §11.12.3).
    pub enum Stage: u8 {
        /// Security negotiation.
        SECURITY = 0,
        /// Login operational negotiation.
        OPERATIONAL = 1,
        /// Full feature phase.
        FULL_FEATURE = 3,
    }
}

/// Length of a Basic Header Segment.
pub const BHS_LEN: usize = 48;
/// Length of a digest.
pub const DIGEST_LEN: usize = 4;
/// A tag that names nothing (RFC 7143 §11.2.1.8).
pub const NO_TAG: u32 = 0xffff_ffff;
/// The one version of the protocol (RFC 7143 §11.12.4).
pub const VERSION: u8 = 0;
/// DataSegmentLength has 24 bits.
pub const DATA_SEGMENT_MAX: u32 = (1 << 24) - 1;
/// MaxRecvDataSegmentLength where nothing was declared (RFC 7143 §13.12), and for all of the login.
pub const DEFAULT_DATA_SEGMENT: u32 = 8192;

/// First byte: the command is for immediate delivery.
pub const OPCODE_IMMEDIATE: u8 = 0x40;
/// First byte: where the opcode is.
pub const OPCODE_MASK: u8 = 0x3f;
/// Second byte: the last PDU of a sequence.
pub const FLAG_FINAL: u8 = 0x80;
/// SCSI Command: the command reads.
pub const FLAG_READ: u8 = 0x40;
/// SCSI Command: the command writes.
pub const FLAG_WRITE: u8 = 0x20;
/// SCSI Command: where the task attribute is.
pub const ATTRIBUTE_MASK: u8 = 0x07;
/// SCSI Response: more data was there to read than a bidirectional command expected.
pub const FLAG_BIDI_OVERFLOW: u8 = 0x10;
/// SCSI Response: less data was read than a bidirectional command expected.
pub const FLAG_BIDI_UNDERFLOW: u8 = 0x08;
/// SCSI Response and Data-In: more data than the command expected.
pub const FLAG_OVERFLOW: u8 = 0x04;
/// SCSI Response and Data-In: less data than the command expected.
pub const FLAG_UNDERFLOW: u8 = 0x02;
/// Data-In: the PDU has the status, no SCSI Response follows.
pub const FLAG_STATUS: u8 = 0x01;
/// Text and Login: the text goes on in the next PDU.
pub const FLAG_CONTINUE: u8 = 0x40;
/// Login: transit to the next stage.
pub const FLAG_TRANSIT: u8 = 0x80;
