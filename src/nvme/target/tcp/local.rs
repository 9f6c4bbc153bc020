//! What each reactor knows of the NVMe/TCP target: the namespaces as they are now, its connections, its counters.
//!
//! The home reactor decides ([`super::home`]); what is here are copies that it changes by message, and what only this reactor
//! counts.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::conn::{Command, Conn, Queue};
use super::failures::Failures;
use super::home::{self, HOME};
use super::stalled;
use crate::bdev::{BlockDevice, DeviceError, Handle, OpSet};
use crate::limits::CONNECTIONS_PER_REACTOR;
use crate::nvme::spec::{Cqe, Sqe, Status, StatusCode};
use crate::nvme::target::{ErrorReport, Fault, IoOp as NvmeOp, IoRequest, NamespaceInfo, Namespaces, SmartCounters};
use crate::reactor::Reactor;
use crate::reactor::io::{Io, IoOp};
use crate::reactor::mailbox::Message;

/// One namespace on one reactor.
pub struct Namespace {
    info: NamespaceInfo,
    /// The device's channel on this reactor.
    pub handle: Handle,
    shift: u32,
    keeps_nothing: bool,
    can_unmap: bool,
}

impl Namespace {
    fn open(reactor: &Rc<Reactor>, info: NamespaceInfo, device: &Arc<dyn BlockDevice>) -> Result<Self, DeviceError> {
        let handle = Handle::open(reactor, device)?;
        let traits = handle.common().traits();
        let ops: OpSet = traits.ops;
        Ok(Namespace {
            shift: info.block_shift(),
            keeps_nothing: traits.keeps_nothing,
            can_unmap: ops.has(IoOp::Unmap),
            info,
            handle,
        })
    }

    /// A range of blocks in bytes.
    #[inline]
    pub fn bytes(&self, lba: u64, blocks: u64) -> (u64, u64) {
        (lba << self.shift, blocks << self.shift)
    }

    /// The range of a zone, by its number, in bytes.
    pub fn zone(&self, index: u64) -> (u64, u64) {
        let blocks = self.info.zones.as_ref().map_or(0, |zones| zones.blocks);
        self.bytes(index * blocks, blocks)
    }

    /// The range of a command that manages zones: one, or all.
    pub fn managed(&self, request: &IoRequest) -> (u64, u64) {
        match self.info.zones.as_ref() {
            Some(zones) if !request.zone.all => self.bytes(request.lba, zones.blocks),
            // As large as the device is now: it may have grown since hosts were told.
            _ => (0, self.handle.common().size()),
        }
    }

    /// A byte of the device as a block.
    pub fn block_of(&self, byte: u64) -> u64 {
        byte >> self.shift
    }

    /// Reads need no buffer: zeros are sent.
    #[inline]
    pub fn keeps_nothing(&self) -> bool {
        self.keeps_nothing
    }

    /// Acknowledged writes may be lost until a flush.
    pub fn has_volatile_cache(&self) -> bool {
        self.handle.common().traits().volatile_cache
    }

    /// Whether the device can deallocate.
    pub fn can_unmap(&self) -> bool {
        self.can_unmap
    }

    /// What hosts are told.
    pub fn info(&self) -> &NamespaceInfo {
        &self.info
    }
}

/// The namespaces of a subsystem on one reactor.
#[derive(Default)]
pub struct Table {
    /// What commands are checked against.
    pub infos: Namespaces,
    handles: Vec<Option<Rc<Namespace>>>,
}

impl Table {
    /// The namespace of a valid `nsid`.
    #[inline]
    pub fn handle(&self, nsid: u32) -> Option<Rc<Namespace>> {
        self.handles.get((nsid as usize).wrapping_sub(1))?.clone()
    }
}

/// A namespace as the control plane names it: sent to every reactor.
#[derive(Clone)]
pub struct NamespaceSpec {
    /// What hosts are told.
    pub info: NamespaceInfo,
    /// The device behind it.
    pub device: Arc<dyn BlockDevice>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    bytes_read: u64,
    bytes_written: u64,
    reads: u64,
    writes: u64,
    media_errors: u64,
}

/// A subsystem on one reactor.
#[derive(Default)]
pub struct Subsystem {
    table: RefCell<Table>,
    counts: Cell<Counts>,
}

impl Subsystem {
    /// Looks into the namespaces.
    #[inline]
    pub fn with_table<R>(&self, f: impl FnOnce(&Table) -> R) -> R {
        f(&self.table.borrow())
    }

    /// All namespaces.
    pub fn namespaces(&self) -> Vec<Rc<Namespace>> {
        self.table.borrow().handles.iter().flatten().cloned().collect()
    }
}

/// See the module's head.
pub struct Local {
    reactor: Rc<Reactor>,
    subsystems: RefCell<BTreeMap<String, Rc<Subsystem>>>,
    /// Each is kept by its tasks, until its receiving task removes it: kept here, it would keep this, which it refers to.
    conns: RefCell<BTreeMap<u64, Weak<Conn>>>,
    next_id: Cell<u64>,
    draining: Cell<bool>,
    failures: Rc<Failures>,
    discovery: Rc<Subsystem>,
}

impl Local {
    /// Makes a reactor ready to take connections.
    pub fn install(reactor: &Rc<Reactor>) {
        reactor.set_service(Rc::new(Local {
            reactor: reactor.clone(),
            subsystems: RefCell::default(),
            conns: RefCell::default(),
            // Unique in the process: the reactor in the upper half.
            next_id: Cell::new(u64::from(reactor.id()) << 48 | 1),
            draining: Cell::new(false),
            failures: Rc::default(),
            discovery: Rc::default(),
        }));
        stalled::watch(reactor);
    }

    /// The reactor's state, if it takes connections.
    pub fn of(reactor: &Reactor) -> Option<Rc<Local>> {
        reactor.service()
    }

    /// Sets the namespaces of a subsystem, new or known.
    ///
    /// # Errors
    /// If a device does not open; then nothing has changed.
    pub fn set_namespaces(&self, nqn: &str, list: &[NamespaceSpec], max_nsid: u32) -> Result<(), DeviceError> {
        let mut table = Table { infos: Namespaces::new(max_nsid), handles: (0..max_nsid).map(|_| None).collect() };
        for spec in list {
            let ns = Namespace::open(&self.reactor, spec.info.clone(), &spec.device)?;
            if table.infos.insert(spec.info.clone()) {
                table.handles[spec.info.nsid as usize - 1] = Some(Rc::new(ns));
            }
        }
        self.subsystems.borrow_mut().entry(nqn.to_owned()).or_default().table.replace(table);
        Ok(())
    }

    /// Forgets a subsystem; its connections are closed by the home.
    pub fn remove_subsystem(&self, nqn: &str) {
        if let Some(subsystem) = self.subsystems.borrow_mut().remove(nqn) {
            // Connections that still run see no namespace.
            subsystem.table.take();
        }
    }

    /// The subsystem of that name; discovery has an empty one.
    pub fn subsystem(&self, nqn: &str) -> Rc<Subsystem> {
        self.subsystems.borrow().get(nqn).cloned().unwrap_or_else(|| self.discovery.clone())
    }

    /// Whether one more connection may live on this reactor.
    pub fn admits_connection(&self) -> bool {
        let room = self.conns.borrow().len() < CONNECTIONS_PER_REACTOR;
        if !room {
            tracing::warn!("a connection was refused: reactor {} has {CONNECTIONS_PER_REACTOR}", self.reactor.id());
        }
        room && !self.draining.get()
    }

    /// A number for a new connection.
    pub fn next_connection_id(&self) -> u64 {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        id
    }

    /// Knows a connection until [`Local::remove`].
    pub fn insert(&self, conn: &Rc<Conn>) {
        self.conns.borrow_mut().insert(conn.id, Rc::downgrade(conn));
    }

    /// Forgets a connection that has ended.
    pub fn remove(&self, id: u64) {
        self.conns.borrow_mut().remove(&id);
    }

    /// A connection of this reactor.
    pub fn connection(&self, id: u64) -> Option<Rc<Conn>> {
        self.conns.borrow().get(&id).and_then(Weak::upgrade)
    }

    /// All connections that have not ended.
    pub fn all(&self) -> Vec<Rc<Conn>> {
        self.conns.borrow().values().filter_map(Weak::upgrade).collect()
    }

    /// Connections that have not ended.
    pub fn connections(&self) -> usize {
        self.conns.borrow().len()
    }

    /// Takes no more connections or commands, and closes each connection once it has answered.
    pub fn drain(&self) {
        self.draining.set(true);
        self.all().iter().for_each(|conn| conn.drain());
    }

    /// Closes all connections at once, answers or not.
    pub fn close_all(&self) {
        self.draining.set(true);
        self.all().iter().for_each(|conn| conn.close());
    }

    /// Carries out a Connect at the home.
    ///
    /// # Errors
    /// The completion that says why not.
    pub async fn connect(&self, conn: &Rc<Conn>, command: &Command, data: Option<&[u8]>) -> Result<(Queue, Cqe), Cqe> {
        let sqe = command.sqe;
        if command.damaged {
            return Err(Cqe::new(sqe.cid.get(), StatusCode::TRANSIENT_TRANSPORT_ERROR.retry()));
        }
        let data = data.unwrap_or_default().to_vec();
        let (local, from, id) = (conn.local_address().ip(), self.reactor.id(), conn.id);
        let answer = self
            .reactor
            .call(HOME, move |home| match home::of(home) {
                Some(service) => service.connect(home, &sqe, &data, local, from, id),
                None => Err(Cqe::new(sqe.cid.get(), StatusCode::INTERNAL_ERROR.retry())),
            })
            .await?;
        let (connected, nqn, told) = answer;
        let queue = Queue {
            controller: connected.controller,
            subsystem: self.subsystem(&nqn),
            nqn,
            qid: connected.qid,
            entries: connected.entries,
            flow_control: !connected.sq_flow_control_disabled,
            all_command_sets: connected.all_command_sets,
            told: RefCell::new(told),
        };
        Ok((queue, connected.cqe))
    }

    /// Tells the home that a queue's connection has ended.
    pub async fn leave(&self, conn: &Conn) {
        let Some(queue) = conn.queue() else { return };
        let (controller, qid) = (queue.controller, queue.qid);
        self.reactor
            .call(HOME, move |home| {
                if let Some(service) = home::of(home) {
                    service.disconnect(home, controller, qid);
                }
            })
            .await;
    }

    /// The end of a flush: it has failed if the host has not been told of all that the namespace lost.
    pub fn end_flush(&self, queue: &Queue, ns: &Namespace, io: &mut Io) {
        let nsid = ns.info.nsid;
        let mut told = queue.told.borrow_mut();
        let before = told.of(nsid);
        let after = ns.handle.end_flush(io, before);
        if after != before {
            told.tell(nsid, after);
        } else if let Some(until) = told.hear(nsid, io.start) {
            let controller = queue.controller;
            let tell = move |home: &Rc<Reactor>| {
                if let Some(service) = home::of(home) {
                    service.tell(controller, nsid, until);
                }
            };
            self.reactor.send(HOME, Message::Call(Box::new(tell)));
        }
    }

    /// Notes a failed command in its controller's error log, and returns the status to answer with.
    pub fn note_failure(&self, conn: &Conn, sqe: &Sqe, fault: Fault) -> Status {
        let Some(queue) = conn.queue() else { return fault.status };
        if matches!(fault.status.code(), StatusCode::WRITE_FAULT | StatusCode::UNRECOVERED_READ_ERROR) {
            let mut counts = queue.subsystem.counts.get();
            counts.media_errors += 1;
            queue.subsystem.counts.set(counts);
        }
        let report = ErrorReport { sqid: queue.qid, cid: sqe.cid.get(), fault, lba: sqe.slba(), nsid: sqe.nsid.get() };
        self.failures.add(&self.reactor, queue.controller, report);
        fault.status
    }

    /// Counts a command that succeeded.
    #[inline]
    pub fn count(&self, subsystem: &Subsystem, op: NvmeOp, bytes: u64) {
        let mut counts = subsystem.counts.get();
        match op {
            NvmeOp::Read | NvmeOp::Compare => {
                counts.reads += 1;
                counts.bytes_read += bytes;
            }
            NvmeOp::Write | NvmeOp::ZoneAppend => {
                counts.writes += 1;
                counts.bytes_written += bytes;
            }
            _ => return,
        }
        subsystem.counts.set(counts);
    }

    /// Adds this reactor's counters of a subsystem.
    pub fn add_counters(&self, nqn: &str, into: &mut SmartCounters) {
        let counts = self.subsystem(nqn).counts.get();
        into.bytes_read += u128::from(counts.bytes_read);
        into.bytes_written += u128::from(counts.bytes_written);
        into.read_commands += u128::from(counts.reads);
        into.write_commands += u128::from(counts.writes);
        into.media_errors += u128::from(counts.media_errors);
    }
}
