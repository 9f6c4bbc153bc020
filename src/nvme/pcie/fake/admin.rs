//! Admin commands (Base §5): queues, features, Abort, asynchronous events, Format NVM.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::Ordering;

use super::doorbell::Shadow;
use super::faults::Fault;
use super::memory::Dma;
use super::queue::{Answer, Cq, Flight, Sq};
use super::{Inner, count};
use crate::nvme::spec::{
    AbortFields, AdminOpcode, AsyncEventResult, AsyncEventType, Cc, CreateCqFields, CreateSqFields, Doorbells,
    FeatureFields, FeatureId, FeatureSelect, FormatFields, HealthInfo, InterruptVector, LogId, NSID_BROADCAST,
    NoticeInfo, QueueCounts, Sqe, Status, StatusCode, WriteCache, async_event_config, critical_warning, deleted_queue,
    feature_capability,
};

/// Events that wait for a request; the oldest are given up beyond.
const EVENTS_MAX: usize = 64;

/// A status, or a success with dwords 0 and 1.
pub(super) type Outcome = Result<u64, Status>;

/// What admin commands have set. Gone with a reset.
#[derive(Debug)]
pub(super) struct Admin {
    /// Identifiers of Asynchronous Event Requests that wait.
    requests: VecDeque<u16>,
    events: VecDeque<AsyncEventResult>,
    /// Types of which an event was told, and whose log was not read since.
    masked: BTreeSet<u8>,
    /// Namespaces that changed since the log was read.
    pub(super) changed: BTreeSet<u32>,
    /// Queue pairs granted; `None`: all, since nobody has asked.
    granted: Option<u16>,
    /// Values of features that are a dword and nothing more.
    features: BTreeMap<u8, u32>,
    vectors: BTreeMap<u16, u32>,
    /// Completion queue of each submission queue.
    pairs: BTreeMap<u16, u16>,
}

impl Default for Admin {
    fn default() -> Admin {
        Admin {
            requests: VecDeque::new(),
            events: VecDeque::new(),
            masked: BTreeSet::new(),
            changed: BTreeSet::new(),
            granted: None,
            features: FEATURES.iter().map(|(id, value)| (id.0, *value)).collect(),
            vectors: BTreeMap::new(),
            pairs: BTreeMap::new(),
        }
    }
}

/// Features that are a dword, which is kept, and their defaults.
const FEATURES: [(FeatureId, u32); 7] = [
    (FeatureId::ARBITRATION, 0),
    (FeatureId::POWER_MANAGEMENT, 0),
    (FeatureId::TEMPERATURE_THRESHOLD, 343),
    (FeatureId::ERROR_RECOVERY, 0),
    (FeatureId::INTERRUPT_COALESCING, 0),
    (FeatureId::WRITE_ATOMICITY, 0),
    (FeatureId::ASYNC_EVENT_CONFIG, 0),
];

impl Admin {
    pub(super) fn reset(&mut self) {
        *self = Admin::default();
    }

    /// The log of a type of events was read, so that they are told again.
    pub(super) fn unmask(&mut self, log: LogId) {
        let event_type = match log {
            LogId::ERROR => AsyncEventType::ERROR,
            LogId::SMART => AsyncEventType::SMART,
            LogId::CHANGED_NAMESPACES | LogId::FIRMWARE_SLOT => AsyncEventType::NOTICE,
            _ => return,
        };
        self.masked.remove(&event_type.0);
        // What they tell of has been read.
        self.events.retain(|event| event.log != log);
    }

    fn wants(&self, bit: u32) -> bool {
        self.features.get(&FeatureId::ASYNC_EVENT_CONFIG.0).is_some_and(|config| config & bit != 0)
    }
}

impl Inner {
    /// Carries out an admin command; `None`: it is answered later.
    pub(super) fn admin_command(&self, sq: &mut Sq, dma: &Dma<'_>, flight: &Flight) -> Option<(Status, u64)> {
        let sqe = &flight.sqe;
        let ignore = flight.faults.contains(&Fault::Ignore);
        let outcome = match (flight.verdict, sqe.admin_opcode()) {
            (Some(status), _) => Err(status),
            // PRPs are all that there is on this queue (Base §3.3.3.1).
            (None, _) if sqe.psdt().0 != 0 => Err(StatusCode::INVALID_FIELD.dnr()),
            (None, AdminOpcode::ASYNC_EVENT_REQUEST) => match self.request_event(sqe) {
                Ok(()) => return None,
                Err(status) => Err(status),
            },
            (None, AdminOpcode::CREATE_IO_CQ) => self.make_cq(sqe),
            (None, AdminOpcode::CREATE_IO_SQ) => self.make_sq(sqe),
            (None, AdminOpcode::DELETE_IO_CQ) => self.end_cq(deleted_queue(sqe)),
            (None, AdminOpcode::DELETE_IO_SQ) => self.end_sq(deleted_queue(sqe)),
            (None, AdminOpcode::ABORT) => self.abort(sq, AbortFields::of(sqe), ignore),
            (None, AdminOpcode::SET_FEATURES) => self.set_features(sqe),
            (None, AdminOpcode::GET_FEATURES) => self.get_features(sqe),
            (None, AdminOpcode::IDENTIFY) => self.identify(sq, dma, flight),
            (None, AdminOpcode::GET_LOG_PAGE) => self.get_log(sq, dma, flight),
            (None, AdminOpcode::FORMAT_NVM) => self.format(sqe),
            (None, AdminOpcode::DOORBELL_BUFFER_CONFIG) if self.options.shadow_doorbells => self.share_doorbells(sqe),
            _ => Err(StatusCode::INVALID_OPCODE.dnr()),
        };
        Some(match outcome {
            Ok(result) => (Status::SUCCESS, result),
            Err(status) => (status, 0),
        })
    }

    // --- queues ---

    /// Queue pairs that may be created.
    fn granted(&self) -> u16 {
        self.admin.lock().granted.unwrap_or(self.options.queues)
    }

    fn queue_size(&self, entries_z: u16) -> Result<u16, Status> {
        if entries_z == 0 || entries_z > self.options.mqes_z {
            return Err(StatusCode::INVALID_QUEUE_SIZE.dnr());
        }
        Ok(entries_z + 1)
    }

    fn queue_address(&self, sqe: &Sqe, contiguous: bool) -> Result<u64, Status> {
        if !contiguous {
            // CAP.CQR
            return Err(StatusCode::INVALID_FIELD.dnr());
        }
        let address = sqe.prps().prp1.get();
        if address & (self.page() - 1) != 0 {
            return Err(StatusCode::PRP_OFFSET_INVALID.dnr());
        }
        Ok(address)
    }

    fn make_cq(&self, sqe: &Sqe) -> Outcome {
        let fields = CreateCqFields::of(sqe);
        if fields.qid == 0 || fields.qid > self.granted() || self.has_cq(fields.qid) {
            return Err(StatusCode::INVALID_QUEUE_ID.dnr());
        }
        let entries = self.queue_size(fields.size_z)?;
        // Without vectors there is the pin, which is number 0.
        if fields.vector >= self.options.vectors.max(1) {
            return Err(StatusCode::INVALID_INTERRUPT_VECTOR.dnr());
        }
        let address = self.queue_address(sqe, fields.contiguous)?;
        self.expect_entry_sizes()?;
        let memory = self.queue_memory(address, usize::from(entries) * Cq::LEN);
        let memory = memory.ok_or(StatusCode::DATA_TRANSFER_ERROR.dnr())?;
        self.create_cq(Cq::new(fields.qid, memory, entries, fields.interrupts.then_some(fields.vector)));
        Ok(0)
    }

    fn make_sq(&self, sqe: &Sqe) -> Outcome {
        let fields = CreateSqFields::of(sqe);
        if fields.qid == 0 || fields.qid > self.granted() || self.has_sq(fields.qid) {
            return Err(StatusCode::INVALID_QUEUE_ID.dnr());
        }
        if fields.cqid == 0 || fields.cqid > self.granted() {
            return Err(StatusCode::INVALID_QUEUE_ID.dnr());
        }
        if !self.has_cq(fields.cqid) {
            return Err(StatusCode::COMPLETION_QUEUE_INVALID.dnr());
        }
        let entries = self.queue_size(fields.size_z)?;
        let address = self.queue_address(sqe, fields.contiguous)?;
        self.expect_entry_sizes()?;
        let memory = self.submissions(address, usize::from(entries) * Sq::LEN);
        let memory = memory.ok_or(StatusCode::DATA_TRANSFER_ERROR.dnr())?;
        self.admin.lock().pairs.insert(fields.qid, fields.cqid);
        self.create_sq(Sq::new(fields.qid, fields.cqid, memory, entries));
        Ok(0)
    }

    /// CC has the sizes of the entries before the first I/O queue is created (Base §3.1.3.5).
    fn expect_entry_sizes(&self) -> Result<(), Status> {
        let cc = self.configuration();
        if (cc.iosqes(), cc.iocqes()) != (6, 4) {
            self.breaks(|| format!("I/O queues with entries of 2^{} and 2^{} bytes", cc.iosqes(), cc.iocqes()));
            return Err(StatusCode::INVALID_QUEUE_SIZE.dnr());
        }
        Ok(())
    }

    fn end_sq(&self, qid: u16) -> Outcome {
        if qid == 0 || !self.has_sq(qid) {
            return Err(StatusCode::INVALID_QUEUE_ID.dnr());
        }
        self.admin.lock().pairs.remove(&qid);
        self.delete_sq(qid);
        Ok(0)
    }

    fn end_cq(&self, qid: u16) -> Outcome {
        if qid == 0 || !self.has_cq(qid) {
            return Err(StatusCode::INVALID_QUEUE_ID.dnr());
        }
        if self.admin.lock().pairs.values().any(|cqid| *cqid == qid) {
            return Err(StatusCode::INVALID_QUEUE_DELETION.dnr());
        }
        self.delete_cq(qid);
        Ok(0)
    }

    fn share_doorbells(&self, sqe: &Sqe) -> Outcome {
        let prps = sqe.prps();
        let (values, events) = (prps.prp1.get(), prps.prp2.get());
        if (values | events) & (self.page() - 1) != 0 {
            return Err(StatusCode::INVALID_FIELD.dnr());
        }
        let page = self.page() as usize;
        let (Some(values), Some(events)) = (self.queue_memory(values, page), self.queue_memory(events, page)) else {
            return Err(StatusCode::DATA_TRANSFER_ERROR.dnr());
        };
        let doorbells = Doorbells::of(self.cap());
        for qid in 1..self.places.len() as u16 {
            let at = [doorbells.shadow_sq_tail(qid), doorbells.shadow_cq_head(qid)];
            let shadow = |at: u64| {
                let mut shadow = Shadow { values: values.clone(), events: events.clone() };
                shadow.values.at += at as usize;
                shadow.events.at += at as usize;
                (at as usize + 4 <= page).then_some(shadow)
            };
            self.set_shadows(qid, at.map(shadow));
        }
        Ok(0)
    }

    fn abort(&self, admin: &mut Sq, fields: AbortFields, ignore: bool) -> Outcome {
        let status = StatusCode::ABORT_REQUESTED.retry();
        let found = if ignore {
            false
        } else if fields.sqid == 0 {
            admin.abort(fields.cid, status) || self.abort_request(admin, fields.cid, status)
        } else if let Some(other) = self.sqs.get(usize::from(fields.sqid)) {
            other.lock().as_mut().is_some_and(|sq| sq.abort(fields.cid, status))
        } else {
            false
        };
        if !found {
            return Ok(AbortFields::NOT_ABORTED.into());
        }
        count(&self.counts.aborted);
        self.wake(fields.sqid);
        Ok(0)
    }

    // --- features ---

    fn set_features(&self, sqe: &Sqe) -> Outcome {
        let FeatureFields { fid, save, .. } = FeatureFields::of(sqe);
        if save {
            return Err(StatusCode::FEATURE_NOT_SAVEABLE.dnr());
        }
        let value = sqe.cdw11.get();
        match fid {
            FeatureId::VOLATILE_WRITE_CACHE if self.disk.options().write_cache => {
                self.disk.set_cache(WriteCache(value).enabled());
                Ok(0)
            }
            FeatureId::NUMBER_OF_QUEUES => self.set_queues(QueueCounts::of(value)),
            FeatureId::INTERRUPT_VECTOR => {
                if value as u16 >= self.options.vectors {
                    return Err(StatusCode::INVALID_FIELD.dnr());
                }
                self.admin.lock().vectors.insert(value as u16, value);
                Ok(0)
            }
            FeatureId::IO_COMMAND_SET_PROFILE if self.options.command_sets => {
                // The one combination that there is.
                let index = value & 0x1ff;
                if index == 0 { Ok(0) } else { Err(StatusCode::IO_COMMAND_SET_COMBINATION_REJECTED.dnr()) }
            }
            _ => {
                let mut admin = self.admin.lock();
                let feature = admin.features.get_mut(&fid.0).ok_or(StatusCode::INVALID_FIELD.dnr())?;
                *feature = value;
                if fid == FeatureId::INTERRUPT_COALESCING {
                    self.coalescing.store(value, Ordering::Relaxed);
                }
                Ok(0)
            }
        }
    }

    /// Whether no completion of a vector waits for others. That is so until coalescing is enabled for it.
    pub(super) fn is_told_at_once(&self, vector: u16) -> bool {
        let value = self.admin.lock().vectors.get(&vector).copied();
        value.is_none_or(|value| InterruptVector::of(value).coalescing_disabled)
    }

    fn set_queues(&self, asked: QueueCounts) -> Outcome {
        if asked.submission_z == u16::MAX || asked.completion_z == u16::MAX {
            return Err(StatusCode::INVALID_FIELD.dnr());
        }
        // Asked before the first queue is created (Base §5.27.1.5).
        if (1..self.places.len() as u16).any(|qid| self.has_cq(qid)) {
            return Err(StatusCode::COMMAND_SEQUENCE_ERROR.dnr());
        }
        let granted = asked.usable().min(u32::from(self.options.queues)) as u16;
        self.admin.lock().granted = Some(granted);
        Ok(QueueCounts::pairs(granted).to_dword().into())
    }

    fn get_features(&self, sqe: &Sqe) -> Outcome {
        let FeatureFields { fid, select, .. } = FeatureFields::of(sqe);
        let has_cache = self.disk.options().write_cache;
        let default = match fid {
            FeatureId::VOLATILE_WRITE_CACHE if has_cache => 1,
            FeatureId::NUMBER_OF_QUEUES => QueueCounts::pairs(self.options.queues).to_dword(),
            FeatureId::INTERRUPT_VECTOR => {
                InterruptVector { vector: sqe.cdw11.get() as u16, coalescing_disabled: true }.to_dword()
            }
            FeatureId::IO_COMMAND_SET_PROFILE if self.options.command_sets => 0,
            _ => {
                let known = FEATURES.iter().find(|(id, _)| *id == fid);
                known.ok_or(StatusCode::INVALID_FIELD.dnr())?.1
            }
        };
        let admin = self.admin.lock();
        let value = match (select, fid) {
            (FeatureSelect::SUPPORTED, _) => feature_capability::CHANGEABLE,
            (FeatureSelect::DEFAULT, _) => default,
            (FeatureSelect::SAVED, _) => return Err(StatusCode::INVALID_FIELD.dnr()),
            (_, FeatureId::VOLATILE_WRITE_CACHE) => u32::from(self.disk.caches()),
            (_, FeatureId::NUMBER_OF_QUEUES) => {
                QueueCounts::pairs(admin.granted.unwrap_or(self.options.queues)).to_dword()
            }
            (_, FeatureId::INTERRUPT_VECTOR) => admin.vectors.get(&(default as u16)).copied().unwrap_or(default),
            _ => admin.features.get(&fid.0).copied().unwrap_or(default),
        };
        Ok(value.into())
    }

    // --- events ---

    fn request_event(&self, sqe: &Sqe) -> Result<(), Status> {
        let mut admin = self.admin.lock();
        if admin.requests.len() > usize::from(self.options.aerl_z) {
            drop(admin);
            self.breaks(|| "more Asynchronous Event Requests than AERL allows".to_owned());
            return Err(StatusCode::ASYNC_EVENT_LIMIT_EXCEEDED.dnr());
        }
        admin.requests.push_back(sqe.cid.get());
        Ok(())
    }

    fn abort_request(&self, sq: &mut Sq, cid: u16, status: Status) -> bool {
        let mut admin = self.admin.lock();
        let Some(index) = admin.requests.iter().position(|request| *request == cid) else {
            return false;
        };
        admin.requests.remove(index);
        drop(admin);
        self.answer(sq, Answer { cid, status, result: 0 }, &[]);
        true
    }

    /// Answers as many requests as there are events to tell.
    pub(super) fn send_events(&self, sq: &mut Sq) {
        loop {
            let mut admin = self.admin.lock();
            let Some(index) = admin.events.iter().position(|event| !admin.masked.contains(&event.event_type.0)) else {
                return;
            };
            if admin.requests.is_empty() {
                return;
            }
            let (Some(event), Some(cid)) = (admin.events.remove(index), admin.requests.pop_front()) else {
                return;
            };
            admin.masked.insert(event.event_type.0);
            drop(admin);
            self.answer(sq, Answer { cid, status: Status::SUCCESS, result: event.to_dword().into() }, &[]);
        }
    }

    /// Something has happened that an Asynchronous Event Request is answered with, now or later (Base §5.2).
    pub(super) fn event(&self, event_type: AsyncEventType, info: u8, log: LogId) {
        let event = AsyncEventResult { event_type, info, log };
        let mut admin = self.admin.lock();
        if admin.events.len() < EVENTS_MAX && !admin.events.contains(&event) {
            admin.events.push_back(event);
        }
        drop(admin);
        self.wake(0);
    }

    pub(super) fn namespace_changed(&self, nsid: u32) {
        let mut admin = self.admin.lock();
        admin.changed.insert(nsid);
        let wanted = admin.wants(async_event_config::NAMESPACE_ATTRIBUTE);
        drop(admin);
        if wanted {
            self.notice(NoticeInfo::NAMESPACE_ATTRIBUTE_CHANGED);
        }
    }

    pub(super) fn notice(&self, info: NoticeInfo) {
        let (bit, log) = match info {
            NoticeInfo::NAMESPACE_ATTRIBUTE_CHANGED => {
                (async_event_config::NAMESPACE_ATTRIBUTE, LogId::CHANGED_NAMESPACES)
            }
            NoticeInfo::FIRMWARE_ACTIVATION => (async_event_config::FIRMWARE_ACTIVATION, LogId::FIRMWARE_SLOT),
            NoticeInfo::ANA_CHANGED => (async_event_config::ANA_CHANGE, LogId::ANA),
            _ => (u32::MAX, LogId::ERROR),
        };
        let wanted = self.admin.lock().wants(bit);
        if wanted {
            self.event(AsyncEventType::NOTICE, info.0, log);
        }
    }

    pub(super) fn health_changed(&self) {
        let warning = self.disk.health().warning.load(Ordering::Relaxed);
        if warning == 0 || !self.admin.lock().wants(warning & async_event_config::SMART) {
            return;
        }
        let info = match warning as u8 {
            warning if warning & critical_warning::SPARE != 0 => HealthInfo::SPARE,
            warning if warning & critical_warning::TEMPERATURE != 0 => HealthInfo::TEMPERATURE,
            _ => HealthInfo::RELIABILITY,
        };
        self.event(AsyncEventType::SMART, info.0, LogId::SMART);
    }

    // --- formats ---

    fn format(&self, sqe: &Sqe) -> Outcome {
        let fields = FormatFields::of(sqe);
        if fields.erase.0 > 1 {
            // FNA offers no cryptographic erase.
            return Err(StatusCode::INVALID_FIELD.dnr());
        }
        if fields.extended || fields.protection != 0 {
            return Err(StatusCode::INVALID_FORMAT.dnr());
        }
        let nsid = sqe.nsid.get();
        let namespaces = match nsid {
            NSID_BROADCAST => self.namespaces.lock().values().cloned().collect(),
            _ => vec![self.named(nsid)?],
        };
        if namespaces.iter().any(|namespace| usize::from(fields.format) >= namespace.options.formats.len()) {
            return Err(StatusCode::INVALID_FORMAT.dnr());
        }
        for namespace in namespaces {
            namespace.format(usize::from(fields.format));
        }
        Ok(0)
    }

    /// CC, which is not changed while commands are carried out.
    fn configuration(&self) -> Cc {
        Cc(self.cc.load(Ordering::Acquire))
    }
}
