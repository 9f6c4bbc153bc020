//! Features (Base §5.15, §5.27) and asynchronous events (Base §5.2).

use super::Sqe;
use crate::util::open_enum;

open_enum! {
    /// Feature Identifier (Base §5.27.1).
    pub enum FeatureId: u8 {
        /// Arbitration.
        ARBITRATION = 0x01,
        /// Power Management.
        POWER_MANAGEMENT = 0x02,
        /// Temperature Threshold.
        TEMPERATURE_THRESHOLD = 0x04,
        /// Error Recovery (NVM §4.1.3.3).
        ERROR_RECOVERY = 0x05,
        /// Volatile Write Cache.
        VOLATILE_WRITE_CACHE = 0x06,
        /// Number of Queues.
        NUMBER_OF_QUEUES = 0x07,
        /// Interrupt Coalescing (PCIe only).
        INTERRUPT_COALESCING = 0x08,
        /// Interrupt Vector Configuration (PCIe only).
        INTERRUPT_VECTOR = 0x09,
        /// Write Atomicity Normal (NVM §4.1.3.4).
        WRITE_ATOMICITY = 0x0a,
        /// Asynchronous Event Configuration.
        ASYNC_EVENT_CONFIG = 0x0b,
        /// Timestamp.
        TIMESTAMP = 0x0e,
        /// Keep Alive Timer.
        KEEP_ALIVE_TIMER = 0x0f,
        /// Host Behavior Support.
        HOST_BEHAVIOR = 0x16,
        /// I/O Command Set Profile.
        IO_COMMAND_SET_PROFILE = 0x19,
        /// Host Identifier.
        HOST_ID = 0x81,
        /// Reservation Notification Mask.
        RESERVATION_NOTIFICATION_MASK = 0x82,
        /// Reservation Persistence.
        RESERVATION_PERSISTENCE = 0x83,
        /// Namespace Write Protection Config.
        NAMESPACE_WRITE_PROTECT = 0x84,
    }
}

open_enum! {
    /// Select field of Get Features (Base §5.15).
    pub enum FeatureSelect: u8 {
        /// Current value.
        CURRENT = 0,
        /// Default value.
        DEFAULT = 1,
        /// Saved value.
        SAVED = 2,
        /// Supported capabilities.
        SUPPORTED = 3,
    }
}

/// Capability bits that Get Features returns in dword 0 for [`FeatureSelect::SUPPORTED`] (Base §5.15).
pub mod feature_capability {
    /// The value can be saved.
    pub const SAVEABLE: u32 = 1 << 0;
    /// The feature is specific to a namespace.
    pub const NAMESPACE_SPECIFIC: u32 = 1 << 1;
    /// The value can be changed.
    pub const CHANGEABLE: u32 = 1 << 2;
}

/// Fields of Get Features and Set Features (dword 10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureFields {
    /// Which feature.
    pub fid: FeatureId,
    /// Select (Get Features).
    pub select: FeatureSelect,
    /// Save (Set Features).
    pub save: bool,
}

impl FeatureFields {
    /// Reads dword 10.
    pub const fn of(sqe: &Sqe) -> Self {
        let cdw10 = sqe.cdw10.get();
        Self { fid: FeatureId(cdw10 as u8), select: FeatureSelect((cdw10 >> 8) as u8 & 7), save: cdw10 & 1 << 31 != 0 }
    }

    /// Writes dword 10.
    pub fn put(self, sqe: &mut Sqe) {
        sqe.cdw10.set(self.fid.0 as u32 | (self.select.0 as u32 & 7) << 8 | (self.save as u32) << 31);
    }
}

open_enum! {
    /// Type of an asynchronous event, bits 2:0 of dword 0 of the completion (Base §5.2.1).
    pub enum AsyncEventType: u8 {
        /// Error status.
        ERROR = 0,
        /// SMART / health status.
        SMART = 1,
        /// Notice.
        NOTICE = 2,
    }
}

open_enum! {
    /// Information of an asynchronous event of type Notice (Base §5.2.1).
    pub enum NoticeInfo: u8 {
        /// Namespace attribute changed; read [`super::LogId::CHANGED_NAMESPACES`].
        NAMESPACE_ATTRIBUTE_CHANGED = 0x00,
        /// Discovery log page changed; read [`super::LogId::DISCOVERY`].
        DISCOVERY_LOG_CHANGED = 0xf0,
    }
}

/// Dword 0 of the completion of an Asynchronous Event Request (Base §5.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncEventResult {
    /// Type.
    pub event_type: AsyncEventType,
    /// Information; its meaning depends on the type.
    pub info: u8,
    /// Log page to read, which clears the event.
    pub log: super::LogId,
}

impl AsyncEventResult {
    /// Packs the dword.
    pub const fn to_dword(self) -> u32 {
        (self.event_type.0 & 7) as u32 | (self.info as u32) << 8 | (self.log.0 as u32) << 16
    }

    /// Unpacks the dword.
    pub const fn of(dword: u32) -> Self {
        Self {
            event_type: AsyncEventType(dword as u8 & 7),
            info: (dword >> 8) as u8,
            log: super::LogId((dword >> 16) as u8),
        }
    }
}

/// Bits of the Asynchronous Event Configuration feature (Base §5.27.1.8).
pub mod async_event_config {
    /// SMART / health critical warnings, bits 7:0.
    pub const SMART: u32 = 0xff;
    /// Namespace attribute notices.
    pub const NAMESPACE_ATTRIBUTE: u32 = 1 << 8;
    /// Discovery log page change notices.
    pub const DISCOVERY_LOG: u32 = 1 << 31;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::spec::{AdminOpcode, LogId};

    #[test]
    fn async_event_dword() {
        let event = AsyncEventResult {
            event_type: AsyncEventType::NOTICE,
            info: NoticeInfo::DISCOVERY_LOG_CHANGED.0,
            log: LogId::DISCOVERY,
        };
        assert_eq!(event.to_dword(), 0x0070_f002);
        assert_eq!(AsyncEventResult::of(0x0070_f002), event);
    }

    #[test]
    fn feature_fields_round_trip() {
        let mut sqe = Sqe::admin(AdminOpcode::SET_FEATURES, 0);
        let fields = FeatureFields { fid: FeatureId::KEEP_ALIVE_TIMER, select: FeatureSelect::SUPPORTED, save: true };
        fields.put(&mut sqe);
        assert_eq!(sqe.cdw10.get(), 0x8000_030f);
        assert_eq!(FeatureFields::of(&sqe), fields);
    }
}
