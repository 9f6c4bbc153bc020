//! The state of one controller: properties, asynchronous events, error log, queues.

use std::collections::{BTreeSet, VecDeque};
use std::net::IpAddr;

use zerocopy::little_endian::{U16, U32, U64};

use super::fault::{Fault, at};
use super::{
    ABORTS, ASYNC_EVENT_REQUESTS, DISCOVERY_IDLE_MS, ERROR_LOG_ENTRIES, KEEP_ALIVE_GRANULARITY_MS, READY_TIMEOUT_500MS,
};
use crate::nvme::spec::{
    AsyncEventResult, AsyncEventType, Cap, Cc, ControllerType, Cqe, Csts, ErrorLogEntry, LogId, NoticeInfo, Property,
    Status, StatusCode, TransportType, VERSION_2_0,
};

/// Names a controller towards the engine. Never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ControllerHandle(pub u64);

/// A failed command, for the error log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorReport {
    /// Queue identifier.
    pub sqid: u16,
    /// Command identifier.
    pub cid: u16,
    /// Status and location.
    pub fault: Fault,
    /// First LBA of the command, 0 for one without.
    pub lba: u64,
    /// Namespace identifier of the command.
    pub nsid: u32,
}

/// One kind of asynchronous event of a controller (Base §5.2).
///
/// ```text
///   Idle --raise--> Masked (an AER was parked: completed)      --log page read--> Idle
///     \---raise--> Pending (none parked) --AER arrives--> Masked
///                     \--log page read--> Idle
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum EventState {
    /// Nothing happened since the log page was read.
    #[default]
    Idle,
    /// Something happened and no request was there to report it.
    Pending,
    /// Reported; further events wait until the log page is read.
    Masked,
}

/// Why I/O queues are being deleted.
///
/// ```text
///   Running --EN 1->0--> Resetting --quiesced--> Running (CC and CSTS 0)
///   Running --SHN-----> ShuttingDown --quiesced--> Running (CSTS.SHST complete) --EN 1->0--> Resetting
///   ShuttingDown --EN 1->0--> Resetting
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// No queue deletion is going on.
    Running,
    /// CC.EN went from 1 to 0; CSTS.RDY follows when the I/O queues are gone.
    Resetting,
    /// CC.SHN was set; CSTS.SHST completes when the I/O queues are gone.
    ShuttingDown,
}

/// What a write of CC starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CcAction {
    /// Nothing that takes time.
    None,
    /// Delete the I/O queues for a reset.
    Reset,
    /// Delete the I/O queues for a shutdown.
    Shutdown,
}

#[derive(Clone, Debug)]
pub(super) struct Controller {
    pub kind: ControllerType,
    /// Subsystem NQN, as the host wrote it.
    pub subnqn: String,
    pub cntlid: u16,
    pub hostnqn: String,
    pub hostid: [u8; 16],
    /// The address at which the host reached this target.
    pub local: IpAddr,
    pub cap: Cap,
    pub cc: Cc,
    pub csts: Csts,
    pub phase: Phase,
    /// The Admin Queue exists; without it the controller only waits for its I/O queues to close.
    pub admin_connected: bool,
    /// I/O queues that exist.
    pub io_queues: BTreeSet<u16>,
    /// Largest I/O queue identifier a host may connect.
    pub granted_queues: u16,
    /// Keep alive timeout in milliseconds, a multiple of the granularity; 0 is off.
    pub kato_ms: u32,
    /// When the keep alive timer expires.
    pub deadline_ns: Option<u64>,
    pub async_config: u32,
    /// Command identifiers of parked Asynchronous Event Requests, oldest first.
    pub parked: VecDeque<u16>,
    pub namespace_event: EventState,
    pub discovery_event: EventState,
    /// The Changed Namespace List.
    pub changed: BTreeSet<u32>,
    /// Abort commands in execution.
    pub aborts: u8,
    /// Newest first.
    pub errors: VecDeque<ErrorLogEntry>,
    pub error_count: u64,
}

/// The keep alive timeout a host gets for what it asked, in milliseconds (Base §5.27.1.12: rounded up).
fn granted_kato_ms(kato_ms: u32) -> u32 {
    kato_ms.checked_next_multiple_of(KEEP_ALIVE_GRANULARITY_MS).unwrap_or(u32::MAX)
}

impl Controller {
    pub const fn is_discovery(&self) -> bool {
        self.kind.0 == ControllerType::DISCOVERY.0
    }

    /// CAP of a controller whose I/O queues have up to `max_entries` entries.
    pub const fn capabilities(max_entries: u16) -> Cap {
        Cap::fabrics(max_entries - 1, READY_TIMEOUT_500MS, Cap::CQR | Cap::CSS_NVM | Cap::CSS_IOCS | Cap::CRWMS)
    }

    /// Whether the host has enabled it with all command sets; else it has the NVM Command Set alone, and no namespace of another.
    pub const fn has_all_command_sets(&self) -> bool {
        self.cc.css() == 6
    }

    /// Sets the keep alive timeout and restarts its timer.
    pub fn set_kato(&mut self, kato_ms: u32, now_ns: u64) {
        self.kato_ms = granted_kato_ms(kato_ms);
        self.restart_keep_alive(now_ns);
    }

    /// Restarts the keep alive timer; for a discovery controller without one its idle timer.
    pub fn restart_keep_alive(&mut self, now_ns: u64) {
        let timeout_ms = match self.kato_ms {
            0 if self.is_discovery() => DISCOVERY_IDLE_MS,
            0 => {
                self.deadline_ns = None;
                return;
            }
            kato_ms => kato_ms,
        };
        self.deadline_ns = Some(now_ns.saturating_add(u64::from(timeout_ms) * 1_000_000));
    }

    /// Property Get (Base §6.5). `wide` asks for 8 bytes.
    pub fn property(&self, offset: u32, wide: bool) -> Result<u64, Fault> {
        let (value, is_wide) = match Property(offset) {
            Property::CAP => (self.cap.0, true),
            Property::VS => (u64::from(VERSION_2_0), false),
            Property::CC => (u64::from(self.cc.0), false),
            Property::CSTS => (u64::from(self.csts.0), false),
            // CRIMT is 0: the controller is never ready before its media.
            Property::CRTO => (u64::from(READY_TIMEOUT_500MS), false),
            _ => return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW11)),
        };
        if wide != is_wide {
            return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW10));
        }
        Ok(value)
    }

    /// Writes CC (Base §3.1.3.5) and says what has to follow.
    pub fn write_cc(&mut self, value: u32) -> Result<CcAction, Fault> {
        const BAD_VALUE: Fault = Fault::at(StatusCode::INVALID_FIELD, at::CDW12);
        if value & !Cc::DEFINED != 0 {
            return Err(BAD_VALUE);
        }
        let old = self.cc;
        let new = Cc(value);
        if self.phase == Phase::Resetting {
            // CSTS.RDY still says 1: the host shall wait for it.
            return Err(Fault::retry(StatusCode::COMMAND_SEQUENCE_ERROR));
        }
        if !old.enabled() && new.enabled() {
            // Command sets: NVM, or all supported. Pages of 4 KiB and round robin are all there is.
            if !matches!(new.css(), 0 | 6) || new.mps() != 0 || new.ams() != 0 || new.crime() {
                return Err(BAD_VALUE);
            }
        }
        if new.shn() == 3 {
            return Err(BAD_VALUE);
        }
        self.cc = new;
        if old.enabled() && !new.enabled() {
            self.phase = Phase::Resetting;
            return Ok(CcAction::Reset);
        }
        if new.enabled() && !old.enabled() {
            self.csts = Csts(Csts::RDY);
        }
        if old.shn() == 0 && new.shn() != 0 {
            self.csts = Csts(self.csts.0 & Csts::RDY | Csts::SHST_OCCURRING);
            self.phase = Phase::ShuttingDown;
            return Ok(CcAction::Shutdown);
        }
        Ok(CcAction::None)
    }

    /// The I/O queues are gone: completes a reset or a shutdown.
    pub fn quiesced(&mut self) {
        match self.phase {
            Phase::Running => {}
            Phase::Resetting => {
                // A Controller Level Reset: outstanding commands, events and the settings of features are gone
                // (Base §3.7.2). The Admin Queue of a fabrics controller stays, as do identity and error log.
                self.cc = Cc(0);
                self.csts = Csts(0);
                self.async_config = 0;
                self.parked.clear();
                self.namespace_event = EventState::Idle;
                self.discovery_event = EventState::Idle;
                self.changed.clear();
                self.aborts = 0;
            }
            Phase::ShuttingDown => {
                self.csts = Csts(self.csts.0 & Csts::RDY | Csts::SHST_COMPLETE);
            }
        }
        self.phase = Phase::Running;
    }

    /// Whether I/O queues may be connected.
    pub fn accepts_io_queues(&self) -> bool {
        self.admin_connected
            && self.phase == Phase::Running
            && self.cc.enabled()
            && self.csts.ready()
            && self.csts.shst() == 0
    }

    /// Parks an Asynchronous Event Request. False when there are too many.
    pub fn park(&mut self, cid: u16) -> bool {
        if self.parked.len() == ASYNC_EVENT_REQUESTS {
            return false;
        }
        self.parked.push_back(cid);
        true
    }

    /// Records an event of the given kind when its notice is enabled.
    pub fn raise(&mut self, info: NoticeInfo, enable_bit: u32) {
        if self.async_config & enable_bit != 0
            && let Some(state) = self.event(info)
            && *state == EventState::Idle
        {
            *state = EventState::Pending;
        }
    }

    fn event(&mut self, info: NoticeInfo) -> Option<&mut EventState> {
        match info {
            NoticeInfo::NAMESPACE_ATTRIBUTE_CHANGED => Some(&mut self.namespace_event),
            NoticeInfo::DISCOVERY_LOG_CHANGED => Some(&mut self.discovery_event),
            _ => None,
        }
    }

    /// The completion of a parked request for a pending event, if there is one of each.
    pub fn deliver(&mut self) -> Option<Cqe> {
        let (info, log) = if self.namespace_event == EventState::Pending {
            (NoticeInfo::NAMESPACE_ATTRIBUTE_CHANGED, LogId::CHANGED_NAMESPACES)
        } else if self.discovery_event == EventState::Pending {
            (NoticeInfo::DISCOVERY_LOG_CHANGED, LogId::DISCOVERY)
        } else {
            return None;
        };
        let cid = self.parked.pop_front()?;
        if let Some(state) = self.event(info) {
            *state = EventState::Masked;
        }
        let event = AsyncEventResult { event_type: AsyncEventType::NOTICE, info: info.0, log };
        Some(Cqe::with_result(cid, u64::from(event.to_dword())))
    }

    /// The log page that reports an event was read without Retain Asynchronous Event.
    pub fn acknowledge(&mut self, info: NoticeInfo) {
        if let Some(state) = self.event(info) {
            *state = EventState::Idle;
        }
    }

    /// Counts an Abort command in; false when there are too many.
    pub fn begin_abort(&mut self) -> bool {
        let free = self.aborts < ABORTS;
        self.aborts += u8::from(free);
        free
    }

    /// Adds an entry to the error log. Returns the status to answer with, which points the host to the log.
    pub fn log_error(&mut self, report: &ErrorReport) -> Status {
        let status = report.fault.status.with_more();
        self.error_count += 1;
        if self.errors.len() == ERROR_LOG_ENTRIES {
            self.errors.pop_back();
        }
        self.errors.push_front(ErrorLogEntry {
            error_count: U64::new(self.error_count),
            sqid: U16::new(report.sqid),
            cid: U16::new(report.cid),
            status: U16::new(status.to_wire()),
            parameter_location: U16::new(report.fault.location),
            lba: U64::new(report.lba),
            nsid: U32::new(report.nsid),
            trtype: TransportType::TCP.0,
            ..ErrorLogEntry::default()
        });
        status
    }
}
