//! Codes of persistent reservations (SPC-4 §6.15, §6.16).

use crate::util::open_enum;

open_enum! {
    /// Types of persistent reservations (SPC-4 §6.15.3.4).
    pub enum PersistType: u8 {
        /// Write Exclusive.
        WRITE_EXCLUSIVE = 0x1,
        /// Exclusive Access.
        EXCLUSIVE_ACCESS = 0x3,
        /// Write Exclusive, Registrants Only.
        WRITE_EXCLUSIVE_REGISTRANTS = 0x5,
        /// Exclusive Access, Registrants Only.
        EXCLUSIVE_ACCESS_REGISTRANTS = 0x6,
        /// Write Exclusive, All Registrants.
        WRITE_EXCLUSIVE_ALL = 0x7,
        /// Exclusive Access, All Registrants.
        EXCLUSIVE_ACCESS_ALL = 0x8,
    }
}

open_enum! {
    /// Service actions of PERSISTENT RESERVE IN (SPC-4 §6.15.1).
    pub enum PersistIn: u8 {
        /// READ KEYS.
        READ_KEYS = 0x00,
        /// READ RESERVATION.
        READ_RESERVATION = 0x01,
        /// REPORT CAPABILITIES.
        REPORT_CAPABILITIES = 0x02,
        /// READ FULL STATUS.
        READ_FULL_STATUS = 0x03,
    }
}

open_enum! {
    /// Service actions of PERSISTENT RESERVE OUT (SPC-4 §6.16.2).
    pub enum PersistOut: u8 {
        /// REGISTER.
        REGISTER = 0x00,
        /// RESERVE.
        RESERVE = 0x01,
        /// RELEASE.
        RELEASE = 0x02,
        /// CLEAR.
        CLEAR = 0x03,
        /// PREEMPT.
        PREEMPT = 0x04,
        /// PREEMPT AND ABORT.
        PREEMPT_AND_ABORT = 0x05,
        /// REGISTER AND IGNORE EXISTING KEY.
        REGISTER_AND_IGNORE = 0x06,
        /// REGISTER AND MOVE.
        REGISTER_AND_MOVE = 0x07,
    }
}

/// SCOPE of every reservation: the logical unit (SPC-4 §6.15.3.3).
pub const PERSIST_SCOPE_LU: u8 = 0;
