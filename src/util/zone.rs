//! Zones of a disk, as every protocol numbers their states.

use super::open_enum;

open_enum! {
    /// The state of a zone, by the numbers that NVMe (ZNS §2.1.1.2), SCSI and ATA share.
    pub enum ZoneState: u8 {
        /// Nothing is written.
        EMPTY = 0x1,
        /// Opened by a write.
        IMPLICITLY_OPEN = 0x2,
        /// Opened by an operation.
        EXPLICITLY_OPEN = 0x3,
        /// Written in part, and not open.
        CLOSED = 0x4,
        /// Nothing can be written any more.
        READ_ONLY = 0xd,
        /// All that can be is written, or the zone was finished.
        FULL = 0xe,
        /// Neither readable nor writable.
        OFFLINE = 0xf,
    }
}

impl ZoneState {
    /// The zone takes one of the open resources.
    pub const fn is_open(self) -> bool {
        matches!(self, Self::IMPLICITLY_OPEN | Self::EXPLICITLY_OPEN)
    }

    /// The zone takes one of the active resources.
    pub const fn is_active(self) -> bool {
        self.is_open() || matches!(self, Self::CLOSED)
    }
}
