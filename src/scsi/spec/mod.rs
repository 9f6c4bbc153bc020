//! Wire values of the SCSI standards, shared by every door that speaks SCSI.
//!
//! Citations: *SPC-4* is SCSI Primary Commands 4 (INCITS 513), *SBC-3* and *SBC-4* are SCSI Block Commands 3 and 4 (INCITS 514 and 506),
//! *SAM-5* is SCSI Architecture Model 5 (INCITS 515). The numbers are those of SPC-4 revision 36f (in revision 37 some of clause 5 differ),
//! SBC-3 revision 36 and SBC-4 revision 22; where the number is not certain, a clause is cited by its title.
//!
//! All integers are big-endian. Values a peer may send are open enumerations.
//!
//! ```text
//!   bytes     fields of CDBs and parameter lists       opcode       operation codes, service actions
//!   sense     sense keys, additional sense codes,      lun          logical unit numbers
//!             sense data in both formats               transport_id TransportIDs of initiator ports
//!   persist   persistent reservation codes
//! ```

mod bytes;
mod lun;
mod opcode;
mod persist;
mod sense;
mod transport_id;

pub use bytes::*;
pub use lun::*;
pub use opcode::*;
pub use persist::*;
pub use sense::*;
pub use transport_id::*;

use crate::util::open_enum;

open_enum! {
    /// How a command ended (SAM-5 §5.3.1).
    pub enum Status: u8 {
        /// It was done.
        GOOD = 0x00,
        /// It was not, sense data tell why.
        CHECK_CONDITION = 0x02,
        /// PRE-FETCH: all blocks are in the cache.
        CONDITION_MET = 0x04,
        /// The logical unit cannot take it now.
        BUSY = 0x08,
        /// Another initiator's reservation forbids it.
        RESERVATION_CONFLICT = 0x18,
        /// The task set has no room.
        TASK_SET_FULL = 0x28,
        /// Another initiator has ended it, and TAS is one.
        TASK_ABORTED = 0x40,
    }
}

open_enum! {
    /// Peripheral device types (SPC-4 §6.6.2).
    pub enum PeripheralType: u8 {
        /// Direct access block device.
        DISK = 0x00,
        /// Unknown, or no device.
        UNKNOWN = 0x1f,
    }
}

/// First byte of INQUIRY data of a logical unit that does not exist and cannot (qualifier 011b, type 1Fh).
pub const PERIPHERAL_ABSENT: u8 = 0x7f;

open_enum! {
    /// Vital product data pages (SPC-4 §7.8, SBC-3 §6).
    pub enum VpdPage: u8 {
        /// Supported VPD pages.
        SUPPORTED = 0x00,
        /// Unit serial number.
        SERIAL = 0x80,
        /// Device identification.
        IDENTIFICATION = 0x83,
        /// Extended INQUIRY data.
        EXTENDED_INQUIRY = 0x86,
        /// Mode page policy.
        MODE_POLICY = 0x87,
        /// Third-party copy.
        THIRD_PARTY_COPY = 0x8f,
        /// Block limits.
        BLOCK_LIMITS = 0xb0,
        /// Block device characteristics.
        CHARACTERISTICS = 0xb1,
        /// Logical block provisioning.
        PROVISIONING = 0xb2,
    }
}

open_enum! {
    /// Mode pages (SPC-4 §7.5, SBC-3 §6).
    pub enum ModePage: u8 {
        /// Caching.
        CACHING = 0x08,
        /// Control.
        CONTROL = 0x0a,
        /// Informational exceptions control.
        EXCEPTIONS = 0x1c,
        /// All pages.
        ALL = 0x3f,
    }
}

open_enum! {
    /// Log pages (SPC-4 §7.3, SBC-3 §6).
    pub enum LogPage: u8 {
        /// Supported log pages.
        SUPPORTED = 0x00,
        /// Logical block provisioning.
        PROVISIONING = 0x0c,
    }
}

open_enum! {
    /// Provisioning status of a range of blocks (SBC-3 §5.4).
    pub enum ProvisioningStatus: u8 {
        /// Mapped, or nobody knows.
        MAPPED = 0,
        /// Unmapped, without resources.
        DEALLOCATED = 1,
        /// Unmapped, resources are reserved.
        ANCHORED = 2,
    }
}

open_enum! {
    /// Asymmetric access states of a target port group (SPC-4 §5.16.2.4).
    pub enum AccessState: u8 {
        /// Active, optimised.
        OPTIMIZED = 0x0,
        /// Active, not optimised.
        NON_OPTIMIZED = 0x1,
        /// Standby.
        STANDBY = 0x2,
        /// Unavailable.
        UNAVAILABLE = 0x3,
        /// Offline.
        OFFLINE = 0xe,
        /// In transition.
        TRANSITIONING = 0xf,
    }
}
