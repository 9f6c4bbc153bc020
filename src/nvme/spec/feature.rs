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

/// Dword 11 of feature [`FeatureId::VOLATILE_WRITE_CACHE`] (Base §5.27.1.4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteCache(pub u32);

impl WriteCache {
    /// Volatile Write Cache Enable.
    pub const WCE: u32 = 1 << 0;

    /// Whether the cache is in use.
    pub const fn enabled(self) -> bool {
        self.0 & Self::WCE != 0
    }
}

/// Value of feature [`FeatureId::NUMBER_OF_QUEUES`]: what is asked for in dword 11, what is granted in dword 0 of the completion
/// (Base §5.27.1.5). Neither count may be FFFFh in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueCounts {
    /// I/O submission queues, zero's-based.
    pub submission_z: u16,
    /// I/O completion queues, zero's-based.
    pub completion_z: u16,
}

impl QueueCounts {
    /// As many pairs as this, at least 1.
    pub const fn pairs(count: u16) -> Self {
        let z = count.saturating_sub(1);
        Self { submission_z: z, completion_z: z }
    }

    /// Unpacks the dword.
    pub const fn of(dword: u32) -> Self {
        Self { submission_z: dword as u16, completion_z: (dword >> 16) as u16 }
    }

    /// Packs the dword.
    pub const fn to_dword(self) -> u32 {
        self.submission_z as u32 | (self.completion_z as u32) << 16
    }

    /// How many pairs there can be; up to 65,536.
    pub const fn usable(self) -> u32 {
        let z = if self.submission_z < self.completion_z { self.submission_z } else { self.completion_z };
        z as u32 + 1
    }
}

/// Dword 11 of feature [`FeatureId::INTERRUPT_COALESCING`] (Base §5.27.1.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptCoalescing {
    /// Aggregation threshold: completions in a queue before its interrupt, zero's-based.
    pub threshold_z: u8,
    /// Aggregation time in units of 100 microseconds; 0: no delay.
    pub time_100us: u8,
}

impl InterruptCoalescing {
    /// An interrupt for so many completions, 1 to 256, or when the first has waited for so many units of 100 microseconds.
    pub const fn new(completions: u16, time_100us: u8) -> Self {
        Self { threshold_z: completions.saturating_sub(1) as u8, time_100us }
    }

    /// Completions for an interrupt.
    pub const fn completions(self) -> u16 {
        self.threshold_z as u16 + 1
    }

    /// Microseconds that the first one waits at most.
    pub const fn micros(self) -> u32 {
        self.time_100us as u32 * 100
    }

    /// Unpacks the dword.
    pub const fn of(dword: u32) -> Self {
        Self { threshold_z: dword as u8, time_100us: (dword >> 8) as u8 }
    }

    /// Packs the dword.
    pub const fn to_dword(self) -> u32 {
        self.threshold_z as u32 | (self.time_100us as u32) << 8
    }
}

/// Dword 11 of feature [`FeatureId::INTERRUPT_VECTOR`] (Base §5.27.1.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InterruptVector {
    /// Interrupt vector.
    pub vector: u16,
    /// Coalescing Disable: the aggregation of [`InterruptCoalescing`] is not for this vector.
    pub coalescing_disabled: bool,
}

impl InterruptVector {
    /// Unpacks the dword.
    pub const fn of(dword: u32) -> Self {
        Self { vector: dword as u16, coalescing_disabled: dword & 1 << 16 != 0 }
    }

    /// Packs the dword.
    pub const fn to_dword(self) -> u32 {
        self.vector as u32 | (self.coalescing_disabled as u32) << 16
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
        /// I/O command specific status.
        IO_COMMAND = 6,
        /// Vendor specific.
        VENDOR = 7,
    }
}

open_enum! {
    /// Information of an asynchronous event of type Error status (Base §5.2.1).
    pub enum ErrorInfo: u8 {
        /// Write to a doorbell of a queue that does not exist.
        INVALID_DOORBELL = 0x00,
        /// A doorbell value that cannot be.
        INVALID_DOORBELL_VALUE = 0x01,
        /// Diagnostic failure.
        DIAGNOSTIC_FAILURE = 0x02,
        /// Persistent internal error: the controller needs a reset.
        PERSISTENT_INTERNAL_ERROR = 0x03,
        /// Transient internal error.
        TRANSIENT_INTERNAL_ERROR = 0x04,
        /// The firmware image could not be loaded.
        FIRMWARE_IMAGE_LOAD = 0x05,
    }
}

open_enum! {
    /// Information of an asynchronous event of type SMART / health status (Base §5.2.1).
    pub enum HealthInfo: u8 {
        /// Reliability is degraded.
        RELIABILITY = 0x00,
        /// A temperature is beyond its threshold.
        TEMPERATURE = 0x01,
        /// Available spare has fallen below its threshold.
        SPARE = 0x02,
    }
}

open_enum! {
    /// Information of an asynchronous event of type I/O command specific status (Base §5.2.1).
    pub enum IoCommandInfo: u8 {
        /// The reservation notification log page has an entry.
        RESERVATION_LOG = 0x00,
        /// A sanitize operation is over.
        SANITIZE_COMPLETED = 0x01,
        /// A sanitize operation is over, and blocks were deallocated though that was not asked for.
        SANITIZE_COMPLETED_DEALLOCATED = 0x02,
    }
}

open_enum! {
    /// Information of an asynchronous event of type Notice (Base §5.2.1).
    pub enum NoticeInfo: u8 {
        /// Namespace attribute changed; read [`super::LogId::CHANGED_NAMESPACES`].
        NAMESPACE_ATTRIBUTE_CHANGED = 0x00,
        /// Firmware activation starting: command processing is paused; read [`super::LogId::FIRMWARE_SLOT`].
        FIRMWARE_ACTIVATION = 0x01,
        /// Telemetry log changed.
        TELEMETRY_LOG_CHANGED = 0x02,
        /// Asymmetric namespace access changed; read [`super::LogId::ANA`].
        ANA_CHANGED = 0x03,
        /// Zone descriptor changed, in the namespace that dword 1 names; read [`super::LogId::CHANGED_ZONES`] (ZNS §4.1.1).
        ZONE_DESCRIPTOR_CHANGED = 0xef,
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

    /// What happened.
    pub const fn event(self) -> AsyncEvent {
        match self.event_type {
            AsyncEventType::ERROR => AsyncEvent::Error(ErrorInfo(self.info)),
            AsyncEventType::SMART => AsyncEvent::Health(HealthInfo(self.info)),
            AsyncEventType::NOTICE => AsyncEvent::Notice(NoticeInfo(self.info)),
            AsyncEventType::IO_COMMAND => AsyncEvent::IoCommand(IoCommandInfo(self.info)),
            event_type => AsyncEvent::Other(event_type, self.info),
        }
    }
}

/// An asynchronous event by its type (Base §5.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncEvent {
    /// Error status.
    Error(ErrorInfo),
    /// SMART / health status.
    Health(HealthInfo),
    /// Notice.
    Notice(NoticeInfo),
    /// I/O command specific status.
    IoCommand(IoCommandInfo),
    /// A vendor's or a later revision's, with its information.
    Other(AsyncEventType, u8),
}

/// Bits of the Asynchronous Event Configuration feature (Base §5.27.1.8).
pub mod async_event_config {
    /// SMART / health critical warnings, bits 7:0.
    pub const SMART: u32 = 0xff;
    /// Namespace attribute notices.
    pub const NAMESPACE_ATTRIBUTE: u32 = 1 << 8;
    /// Firmware activation notices.
    pub const FIRMWARE_ACTIVATION: u32 = 1 << 9;
    /// Telemetry log notices.
    pub const TELEMETRY_LOG: u32 = 1 << 10;
    /// Asymmetric namespace access change notices.
    pub const ANA_CHANGE: u32 = 1 << 11;
    /// Zone descriptor changed notices (ZNS §4.1.1).
    pub const ZONE_DESCRIPTOR: u32 = 1 << 27;
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

    #[test]
    fn events_by_type() {
        let of = |dword| AsyncEventResult::of(dword).event();
        assert_eq!(of(0x0001_0300), AsyncEvent::Error(ErrorInfo::PERSISTENT_INTERNAL_ERROR));
        assert_eq!(of(0x0002_0201), AsyncEvent::Health(HealthInfo::SPARE));
        assert_eq!(of(0x0004_0002), AsyncEvent::Notice(NoticeInfo::NAMESPACE_ATTRIBUTE_CHANGED));
        assert_eq!(of(0x00bf_ef02), AsyncEvent::Notice(NoticeInfo::ZONE_DESCRIPTOR_CHANGED));
        assert_eq!(of(0x0081_0106), AsyncEvent::IoCommand(IoCommandInfo::SANITIZE_COMPLETED));
        assert_eq!(of(0x00c0_1207), AsyncEvent::Other(AsyncEventType::VENDOR, 0x12));
        assert_eq!(of(0xff00_00fb), AsyncEvent::Other(AsyncEventType(3), 0));
        assert_eq!(AsyncEventResult::of(0x00bf_ef02).log, LogId::CHANGED_ZONES);
    }

    #[test]
    fn feature_dwords() {
        assert!(WriteCache(1).enabled() && !WriteCache(2).enabled());
        let asked = QueueCounts::pairs(8);
        assert_eq!(asked.to_dword(), 0x0007_0007);
        assert_eq!(QueueCounts::pairs(0), QueueCounts::pairs(1));
        let granted = QueueCounts::of(0x0003_003f);
        assert_eq!((granted.submission_z, granted.completion_z, granted.usable()), (63, 3, 4));
        assert_eq!(QueueCounts::of(granted.to_dword()), granted);
        assert_eq!(QueueCounts::of(u32::MAX).usable(), 65_536);
        let coalescing = InterruptCoalescing { threshold_z: 7, time_100us: 2 };
        assert_eq!(coalescing.to_dword(), 0x0207);
        assert_eq!(InterruptCoalescing::of(0xffff_0207), coalescing);
        let vector = InterruptVector { vector: 0x0102, coalescing_disabled: true };
        assert_eq!(vector.to_dword(), 0x0001_0102);
        assert_eq!(InterruptVector::of(0xfffe_0102), InterruptVector { coalescing_disabled: false, ..vector });
    }
}
