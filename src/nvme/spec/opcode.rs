//! Command opcodes.

use crate::util::open_enum;

open_enum! {
    /// Opcodes of the Admin Command Set (Base §5).
    pub enum AdminOpcode: u8 {
        /// Delete I/O Submission Queue (memory-based transports only).
        DELETE_IO_SQ = 0x00,
        /// Create I/O Submission Queue (memory-based transports only).
        CREATE_IO_SQ = 0x01,
        /// Get Log Page.
        GET_LOG_PAGE = 0x02,
        /// Delete I/O Completion Queue (memory-based transports only).
        DELETE_IO_CQ = 0x04,
        /// Create I/O Completion Queue (memory-based transports only).
        CREATE_IO_CQ = 0x05,
        /// Identify.
        IDENTIFY = 0x06,
        /// Abort.
        ABORT = 0x08,
        /// Set Features.
        SET_FEATURES = 0x09,
        /// Get Features.
        GET_FEATURES = 0x0a,
        /// Asynchronous Event Request.
        ASYNC_EVENT_REQUEST = 0x0c,
        /// Namespace Management.
        NAMESPACE_MANAGEMENT = 0x0d,
        /// Namespace Attachment.
        NAMESPACE_ATTACHMENT = 0x15,
        /// Keep Alive.
        KEEP_ALIVE = 0x18,
        /// Doorbell Buffer Config (memory-based transports only).
        DOORBELL_BUFFER_CONFIG = 0x7c,
        /// Every command of the Fabrics Command Set.
        FABRICS = 0x7f,
        /// Format NVM.
        FORMAT_NVM = 0x80,
    }
}

open_enum! {
    /// Opcodes of the NVM Command Set (NVM §3), and those that the Zoned Namespace Command Set adds to them (ZNS §3.4).
    pub enum NvmOpcode: u8 {
        /// Flush (Base §7.1).
        FLUSH = 0x00,
        /// Write.
        WRITE = 0x01,
        /// Read.
        READ = 0x02,
        /// Write Uncorrectable.
        WRITE_UNCORRECTABLE = 0x04,
        /// Compare.
        COMPARE = 0x05,
        /// Write Zeroes.
        WRITE_ZEROES = 0x08,
        /// Dataset Management.
        DATASET_MANAGEMENT = 0x09,
        /// Verify.
        VERIFY = 0x0c,
        /// Reservation Register.
        RESERVATION_REGISTER = 0x0d,
        /// Reservation Report.
        RESERVATION_REPORT = 0x0e,
        /// Reservation Acquire.
        RESERVATION_ACQUIRE = 0x11,
        /// Reservation Release.
        RESERVATION_RELEASE = 0x15,
        /// Copy.
        COPY = 0x19,
        /// Zone Management Send (zoned namespaces).
        ZONE_MANAGEMENT_SEND = 0x79,
        /// Zone Management Receive (zoned namespaces).
        ZONE_MANAGEMENT_RECEIVE = 0x7a,
        /// Zone Append (zoned namespaces).
        ZONE_APPEND = 0x7d,
        /// A command of the Fabrics Command Set, sent on an I/O queue.
        FABRICS = 0x7f,
    }
}

open_enum! {
    /// Fabrics Command Types, byte 4 of a command whose opcode is 7Fh (Base §6).
    pub enum FabricsType: u8 {
        /// Property Set.
        PROPERTY_SET = 0x00,
        /// Connect.
        CONNECT = 0x01,
        /// Property Get.
        PROPERTY_GET = 0x04,
        /// Authentication Send.
        AUTH_SEND = 0x05,
        /// Authentication Receive.
        AUTH_RECEIVE = 0x06,
        /// Disconnect.
        DISCONNECT = 0x08,
    }
}

/// Direction of the data transfer, encoded in bits 1:0 of an opcode (Base §3.3.3.1); for Fabrics commands in the
/// same bits of the Fabrics Command Type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// No data.
    None,
    /// Data from the host to the controller.
    HostToController,
    /// Data from the controller to the host.
    ControllerToHost,
    /// Both ways: no command of the supported sets uses it.
    Bidirectional,
}

impl Direction {
    /// The direction that bits 1:0 of `opcode` encode.
    pub const fn of(opcode: u8) -> Self {
        match opcode & 3 {
            0 => Self::None,
            1 => Self::HostToController,
            2 => Self::ControllerToHost,
            _ => Self::Bidirectional,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opcodes_say_their_direction() {
        for (opcode, direction) in [
            (AdminOpcode::CREATE_IO_SQ.0, Direction::HostToController),
            (AdminOpcode::DELETE_IO_CQ.0, Direction::None),
            (AdminOpcode::IDENTIFY.0, Direction::ControllerToHost),
            (AdminOpcode::DOORBELL_BUFFER_CONFIG.0, Direction::None),
            (AdminOpcode::FORMAT_NVM.0, Direction::None),
            (AdminOpcode::NAMESPACE_ATTACHMENT.0, Direction::HostToController),
            (NvmOpcode::VERIFY.0, Direction::None),
            (NvmOpcode::COMPARE.0, Direction::HostToController),
            (NvmOpcode::DATASET_MANAGEMENT.0, Direction::HostToController),
            (NvmOpcode::ZONE_MANAGEMENT_SEND.0, Direction::HostToController),
            (NvmOpcode::ZONE_MANAGEMENT_RECEIVE.0, Direction::ControllerToHost),
            (NvmOpcode::ZONE_APPEND.0, Direction::HostToController),
        ] {
            assert_eq!(Direction::of(opcode), direction, "{opcode:#x}");
        }
    }
}
