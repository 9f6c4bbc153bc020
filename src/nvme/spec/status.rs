//! Status codes and the status field of a completion (Base §3.3.3.2.1).

use crate::util::open_enum;

open_enum! {
    /// A status code with its type: `SCT << 8 | SC`.
    pub enum StatusCode: u16 {
        // Generic command status, SCT 0h.
        /// Successful Completion.
        SUCCESS = 0x000,
        /// Invalid Command Opcode.
        INVALID_OPCODE = 0x001,
        /// Invalid Field in Command.
        INVALID_FIELD = 0x002,
        /// Command ID Conflict.
        CID_CONFLICT = 0x003,
        /// Data Transfer Error.
        DATA_TRANSFER_ERROR = 0x004,
        /// Commands Aborted due to Power Loss Notification.
        ABORTED_POWER_LOSS = 0x005,
        /// Internal Error.
        INTERNAL_ERROR = 0x006,
        /// Command Abort Requested.
        ABORT_REQUESTED = 0x007,
        /// Command Aborted due to SQ Deletion.
        ABORTED_SQ_DELETION = 0x008,
        /// Command Aborted due to Failed Fused Command.
        ABORTED_FAILED_FUSED = 0x009,
        /// Command Aborted due to Missing Fused Command.
        ABORTED_MISSING_FUSED = 0x00a,
        /// Invalid Namespace or Format.
        INVALID_NAMESPACE = 0x00b,
        /// Command Sequence Error.
        COMMAND_SEQUENCE_ERROR = 0x00c,
        /// Invalid SGL Segment Descriptor.
        INVALID_SGL_SEGMENT = 0x00d,
        /// Invalid Number of SGL Descriptors.
        INVALID_SGL_COUNT = 0x00e,
        /// Data SGL Length Invalid.
        SGL_DATA_LENGTH_INVALID = 0x00f,
        /// Metadata SGL Length Invalid.
        SGL_METADATA_LENGTH_INVALID = 0x010,
        /// SGL Descriptor Type Invalid.
        SGL_DESCRIPTOR_TYPE_INVALID = 0x011,
        /// Invalid Use of Controller Memory Buffer.
        INVALID_CMB_USE = 0x012,
        /// PRP Offset Invalid.
        PRP_OFFSET_INVALID = 0x013,
        /// Atomic Write Unit Exceeded.
        ATOMIC_WRITE_UNIT_EXCEEDED = 0x014,
        /// Operation Denied.
        OPERATION_DENIED = 0x015,
        /// SGL Offset Invalid.
        SGL_OFFSET_INVALID = 0x016,
        /// Host Identifier Inconsistent Format.
        HOST_ID_INCONSISTENT_FORMAT = 0x018,
        /// Keep Alive Timer Expired.
        KEEP_ALIVE_EXPIRED = 0x019,
        /// Keep Alive Timeout Invalid.
        KEEP_ALIVE_INVALID = 0x01a,
        /// Command Aborted due to Preempt and Abort.
        ABORTED_PREEMPT = 0x01b,
        /// Sanitize Failed.
        SANITIZE_FAILED = 0x01c,
        /// Sanitize In Progress.
        SANITIZE_IN_PROGRESS = 0x01d,
        /// SGL Data Block Granularity Invalid.
        SGL_GRANULARITY_INVALID = 0x01e,
        /// Command Not Supported for Queue in CMB.
        NOT_SUPPORTED_IN_CMB = 0x01f,
        /// Namespace is Write Protected.
        NAMESPACE_WRITE_PROTECTED = 0x020,
        /// Command Interrupted: retry.
        COMMAND_INTERRUPTED = 0x021,
        /// Transient Transport Error: retry.
        TRANSIENT_TRANSPORT_ERROR = 0x022,
        /// Admin Command Media Not Ready.
        ADMIN_MEDIA_NOT_READY = 0x024,
        /// LBA Out of Range.
        LBA_OUT_OF_RANGE = 0x080,
        /// Capacity Exceeded.
        CAPACITY_EXCEEDED = 0x081,
        /// Namespace Not Ready.
        NAMESPACE_NOT_READY = 0x082,
        /// Reservation Conflict.
        RESERVATION_CONFLICT = 0x083,
        /// Format In Progress.
        FORMAT_IN_PROGRESS = 0x084,

        // Command specific status, SCT 1h.
        /// Completion Queue Invalid.
        COMPLETION_QUEUE_INVALID = 0x100,
        /// Invalid Queue Identifier.
        INVALID_QUEUE_ID = 0x101,
        /// Invalid Queue Size.
        INVALID_QUEUE_SIZE = 0x102,
        /// Abort Command Limit Exceeded.
        ABORT_LIMIT_EXCEEDED = 0x103,
        /// Asynchronous Event Request Limit Exceeded.
        ASYNC_EVENT_LIMIT_EXCEEDED = 0x105,
        /// Invalid Interrupt Vector.
        INVALID_INTERRUPT_VECTOR = 0x108,
        /// Invalid Log Page.
        INVALID_LOG_PAGE = 0x109,
        /// Invalid Format.
        INVALID_FORMAT = 0x10a,
        /// Invalid Queue Deletion.
        INVALID_QUEUE_DELETION = 0x10c,
        /// Feature Identifier Not Saveable.
        FEATURE_NOT_SAVEABLE = 0x10d,
        /// Feature Not Changeable.
        FEATURE_NOT_CHANGEABLE = 0x10e,
        /// Feature Not Namespace Specific.
        FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10f,
        /// Invalid Controller Identifier.
        INVALID_CONTROLLER_ID = 0x11f,
        /// I/O Command Set Not Supported.
        IO_COMMAND_SET_NOT_SUPPORTED = 0x129,
        /// I/O Command Set Combination Rejected.
        IO_COMMAND_SET_COMBINATION_REJECTED = 0x12b,
        /// Conflicting Attributes (NVM §3.2).
        CONFLICTING_ATTRIBUTES = 0x180,
        /// Invalid Protection Information (NVM §3.2).
        INVALID_PROTECTION_INFO = 0x181,
        /// Attempted Write to Read Only Range (NVM §3.2).
        WRITE_TO_READ_ONLY_RANGE = 0x182,
        /// Command Size Limit Exceeded (NVM §3.2).
        COMMAND_SIZE_LIMIT_EXCEEDED = 0x183,
        /// Zoned Boundary Error (ZNS §3.1).
        ZONE_BOUNDARY_ERROR = 0x1b8,
        /// Zone Is Full (ZNS §3.1).
        ZONE_IS_FULL = 0x1b9,
        /// Zone Is Read Only (ZNS §3.1).
        ZONE_IS_READ_ONLY = 0x1ba,
        /// Zone Is Offline (ZNS §3.1).
        ZONE_IS_OFFLINE = 0x1bb,
        /// Zone Invalid Write (ZNS §3.1).
        ZONE_INVALID_WRITE = 0x1bc,
        /// Too Many Active Zones (ZNS §3.1).
        TOO_MANY_ACTIVE_ZONES = 0x1bd,
        /// Too Many Open Zones (ZNS §3.1).
        TOO_MANY_OPEN_ZONES = 0x1be,
        /// Invalid Zone State Transition (ZNS §3.1).
        INVALID_ZONE_TRANSITION = 0x1bf,

        // Command specific status of Fabrics commands, SCT 1h: the values overlap those of the I/O command sets.
        /// Connect Incompatible Format.
        CONNECT_INCOMPATIBLE_FORMAT = 0x180,
        /// Connect Controller Busy.
        CONNECT_CONTROLLER_BUSY = 0x181,
        /// Connect Invalid Parameters.
        CONNECT_INVALID_PARAMETERS = 0x182,
        /// Connect Restart Discovery.
        CONNECT_RESTART_DISCOVERY = 0x183,
        /// Connect Invalid Host.
        CONNECT_INVALID_HOST = 0x184,
        /// Invalid Queue Type (Disconnect on the Admin Queue).
        INVALID_QUEUE_TYPE = 0x185,
        /// Discover Restart: the discovery log changed while it was read.
        DISCOVER_RESTART = 0x190,
        /// Authentication Required.
        AUTHENTICATION_REQUIRED = 0x191,

        // Media and data integrity errors, SCT 2h.
        /// Write Fault.
        WRITE_FAULT = 0x280,
        /// Unrecovered Read Error.
        UNRECOVERED_READ_ERROR = 0x281,
        /// End-to-end Guard Check Error.
        GUARD_CHECK_ERROR = 0x282,
        /// End-to-end Application Tag Check Error.
        APPLICATION_TAG_CHECK_ERROR = 0x283,
        /// End-to-end Reference Tag Check Error.
        REFERENCE_TAG_CHECK_ERROR = 0x284,
        /// Compare Failure.
        COMPARE_FAILURE = 0x285,
        /// Access Denied.
        ACCESS_DENIED = 0x286,
        /// Deallocated or Unwritten Logical Block.
        DEALLOCATED_BLOCK = 0x287,
        /// End-to-End Storage Tag Check Error.
        STORAGE_TAG_CHECK_ERROR = 0x288,

        // Path related status, SCT 3h.
        /// Internal Path Error.
        INTERNAL_PATH_ERROR = 0x300,
        /// Asymmetric Access Persistent Loss.
        ANA_PERSISTENT_LOSS = 0x301,
        /// Asymmetric Access Inaccessible.
        ANA_INACCESSIBLE = 0x302,
        /// Asymmetric Access Transition.
        ANA_TRANSITION = 0x303,
        /// Controller Pathing Error.
        CONTROLLER_PATH_ERROR = 0x360,
        /// Host Pathing Error.
        HOST_PATH_ERROR = 0x370,
        /// Command Aborted By Host.
        ABORTED_BY_HOST = 0x371,
    }
}

impl StatusCode {
    /// Status Code Type, bits 10:8.
    pub const fn sct(self) -> u8 {
        (self.0 >> 8) as u8 & 7
    }

    /// Status Code, bits 7:0.
    pub const fn sc(self) -> u8 {
        self.0 as u8
    }

    /// The status field with this code and nothing else set: the host may retry.
    pub const fn retry(self) -> Status {
        Status(self.0 & 0x7ff)
    }

    /// The status field with this code and Do Not Retry set.
    pub const fn dnr(self) -> Status {
        Status(self.0 & 0x7ff | Status::DNR)
    }
}

/// The 15-bit status field without the phase tag: SC 7:0, SCT 10:8, CRD 12:11, M 13, DNR 14.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Status(pub u16);

impl Status {
    /// Successful completion.
    pub const SUCCESS: Self = Self(0);
    /// Do Not Retry.
    pub const DNR: u16 = 1 << 14;
    /// More: the Error Information log page has an entry for this command.
    pub const MORE: u16 = 1 << 13;

    /// Code and type, without CRD, More and DNR.
    pub const fn code(self) -> StatusCode {
        StatusCode(self.0 & 0x7ff)
    }

    /// Whether the command completed successfully.
    pub const fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }

    /// Whether Do Not Retry is set.
    pub const fn is_dnr(self) -> bool {
        self.0 & Self::DNR != 0
    }

    /// Command Retry Delay index, 0 to 3.
    pub const fn crd(self) -> u8 {
        (self.0 >> 11) as u8 & 3
    }

    /// The same status with More set.
    pub const fn with_more(self) -> Self {
        Self(self.0 | Self::MORE)
    }

    /// The 16 bits of the completion queue entry: the field shifted over the phase tag, which Fabrics leaves 0.
    pub const fn to_wire(self) -> u16 {
        self.0 << 1
    }

    /// Reads the 16 bits of the completion queue entry, dropping the phase tag.
    pub const fn from_wire(bits: u16) -> Self {
        Self(bits >> 1)
    }
}

impl core::fmt::Debug for Status {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?}", self.code())?;
        if self.0 & Self::MORE != 0 {
            f.write_str("|MORE")?;
        }
        if self.is_dnr() {
            f.write_str("|DNR")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_field_bits() {
        let status = StatusCode::LBA_OUT_OF_RANGE.dnr();
        assert_eq!(status.to_wire(), 0x8100);
        assert_eq!(Status::from_wire(0x8101), status);
        assert_eq!(status.code().sc(), 0x80);
        assert_eq!(StatusCode::COMPARE_FAILURE.sct(), 2);
        assert_eq!(StatusCode::COMPARE_FAILURE.retry().to_wire(), 0x050a);
        assert!(status.is_dnr() && !status.is_success());
        assert_eq!(format!("{:?}", status.with_more()), "LBA_OUT_OF_RANGE|MORE|DNR");
        assert_eq!(Status(0x1800).crd(), 3);
    }

    #[test]
    fn zone_codes_are_command_specific() {
        for (code, sc) in [
            (StatusCode::ZONE_BOUNDARY_ERROR, 0xb8),
            (StatusCode::ZONE_IS_FULL, 0xb9),
            (StatusCode::ZONE_IS_READ_ONLY, 0xba),
            (StatusCode::ZONE_IS_OFFLINE, 0xbb),
            (StatusCode::ZONE_INVALID_WRITE, 0xbc),
            (StatusCode::TOO_MANY_ACTIVE_ZONES, 0xbd),
            (StatusCode::TOO_MANY_OPEN_ZONES, 0xbe),
            (StatusCode::INVALID_ZONE_TRANSITION, 0xbf),
        ] {
            assert_eq!((code.sct(), code.sc(), code.dnr().to_wire()), (1, sc, 0x8200 | u16::from(sc) << 1));
        }
    }
}
