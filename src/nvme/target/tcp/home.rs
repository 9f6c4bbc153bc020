//! The home of the target's shared state: subsystems, controllers and their queues, on one reactor.
//!
//! Other reactors reach it by message ([`super::local`]); it answers, and tells them by message what to close, complete or
//! replace. The engine ([`Target`]) decides everything; this carries out.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use super::local::Local;
use crate::bdev::{HostKey, HostTold, Hosts};
use crate::net::Listeners;
use crate::nvme::spec::{Cqe, Sqe};
use crate::nvme::target::{
    AdminContext, ConnectRequest, Connected, ControllerHandle, Disconnected, ErrorReport, Fault, Notice, Outcome,
    Quiesce, SmartCounters, Target,
};
use crate::reactor::Reactor;
use crate::reactor::io::{IoOp, IoStatus};
use crate::reactor::mailbox::Message;

/// The reactor that is the home of every NVM subsystem.
pub const HOME: u16 = 0;

/// How often keep alive timers are looked at, in nanoseconds; their granularity is a second.
const TICK_NS: u64 = 500_000_000;

/// Where a queue's connection lives.
#[derive(Clone, Copy)]
struct Place {
    reactor: u16,
    connection: u64,
}

/// A controller whose I/O queues are being deleted.
#[derive(Clone, Copy)]
struct Quiescing {
    reason: Quiesce,
    number: u64,
    flushing: bool,
}

/// See the module's head.
pub struct Home {
    /// The engine.
    pub target: RefCell<Target>,
    /// The listeners.
    pub listeners: Listeners,
    queues: RefCell<BTreeMap<(ControllerHandle, u16), Place>>,
    quiescing: RefCell<BTreeMap<ControllerHandle, Quiescing>>,
    hosts: RefCell<Hosts>,
    /// Numbers resets and shutdowns, so that the end of one is not taken for that of a later one.
    quiesce_number: Cell<u64>,
    draining: Cell<bool>,
    started_ns: u64,
}

/// The home's state; only the home reactor has it.
pub fn of(reactor: &Reactor) -> Option<Rc<Home>> {
    reactor.service()
}

/// What the home made of an admin command.
pub enum AdminAnswer {
    /// Send the data, if any, and the completion.
    Done(Cqe, Vec<u8>),
    /// Nothing to send: an event will complete it.
    Parked,
    /// Try to abort this command of this queue, then ask [`Home::abort_done`].
    Abort {
        /// Where the queue lives: reactor and connection.
        place: Option<(u16, u64)>,
        /// The command.
        cid: u16,
    },
    /// Send the completion, then ask [`Home::quiesce`].
    Quiesce(Cqe, Quiesce),
}

impl Home {
    /// Makes `reactor` the home and starts its clockwork.
    pub fn install(reactor: &Rc<Reactor>, target: Target) {
        let home = Rc::new(Home {
            target: RefCell::new(target),
            listeners: Listeners::default(),
            queues: RefCell::default(),
            quiescing: RefCell::default(),
            hosts: RefCell::default(),
            quiesce_number: Cell::new(0),
            draining: Cell::new(false),
            started_ns: reactor.clock().now(),
        });
        reactor.set_service(home.clone());
        let timer = reactor.clone();
        reactor.spawn("nvmf keep alive", async move {
            loop {
                timer.sleep(TICK_NS).await;
                home.target.borrow_mut().expire(timer.clock().now());
                home.carry_out(&timer);
            }
        });
    }

    /// Does what the engine asks for.
    pub fn carry_out(&self, reactor: &Reactor) {
        loop {
            let notice = self.target.borrow_mut().poll();
            match notice {
                None => return,
                Some(Notice::AsyncEvent { controller, cqe }) => {
                    if let Some(place) = self.place(controller, 0) {
                        reactor.send(
                            place.reactor,
                            Message::Call(Box::new(move |there| {
                                let conn = Local::of(there).and_then(|local| local.connection(place.connection));
                                if let Some(conn) = conn {
                                    conn.report(cqe);
                                }
                            })),
                        );
                    }
                }
                Some(Notice::Close { controller }) => self.close_queues(reactor, controller, true),
            }
        }
    }

    fn place(&self, controller: ControllerHandle, qid: u16) -> Option<Place> {
        self.queues.borrow().get(&(controller, qid)).copied()
    }

    /// Closes the connections of a controller, the admin queue's too if `all`.
    fn close_queues(&self, reactor: &Reactor, controller: ControllerHandle, all: bool) {
        for (&(_, qid), place) in self.queues.borrow().range((controller, 0)..=(controller, u16::MAX)) {
            if qid != 0 || all {
                let connection = place.connection;
                reactor.send(
                    place.reactor,
                    Message::Call(Box::new(move |there| {
                        if let Some(conn) = Local::of(there).and_then(|local| local.connection(connection)) {
                            conn.close();
                        }
                    })),
                );
            }
        }
    }

    /// A Connect that arrived on connection `connection` of reactor `from`. Returns the queue, its subsystem's NQN, and what its host has been
    /// told of losses.
    ///
    /// # Errors
    /// The completion to send.
    pub fn connect(
        &self,
        reactor: &Reactor,
        sqe: &Sqe,
        data: &[u8],
        local: IpAddr,
        from: u16,
        connection: u64,
    ) -> Result<(Connected, String, HostTold), Cqe> {
        let request = ConnectRequest { sqe, data, local, now_ns: reactor.clock().now() };
        let connected = self.target.borrow_mut().connect(&request)?;
        self.queues.borrow_mut().insert((connected.controller, connected.qid), Place { reactor: from, connection });
        let key = self.key(connected.controller);
        let (nqn, host) = &key;
        let mut hosts = self.hosts.borrow_mut();
        if connected.qid == 0 {
            tracing::info!("host {host} connected to {nqn}");
            hosts.arrive(key.clone(), request.now_ns);
        }
        let told = hosts.told(&key).expect("its Admin Queue came first");
        drop(hosts);
        self.carry_out(reactor);
        Ok((connected, key.0, told))
    }

    fn key(&self, controller: ControllerHandle) -> HostKey {
        let target = self.target.borrow();
        let name = |found: Option<&str>| found.unwrap_or_default().to_owned();
        (name(target.subsystem_of(controller)), name(target.host_of(controller)))
    }

    /// The host of a controller has been told of a namespace's losses.
    pub fn tell(&self, controller: ControllerHandle, nsid: u32, until: u64) {
        self.hosts.borrow_mut().tell(&self.key(controller), nsid, until);
    }

    /// A queue's connection has ended and nothing of it is in flight.
    pub fn disconnect(&self, reactor: &Rc<Reactor>, controller: ControllerHandle, qid: u16) {
        self.queues.borrow_mut().remove(&(controller, qid));
        let key = self.key(controller);
        let left = self.target.borrow_mut().disconnect(controller, qid);
        match left {
            // While all drain, each queue ends when it has answered.
            Disconnected::CloseIoQueues if self.draining.get() => {}
            Disconnected::CloseIoQueues => self.close_queues(reactor, controller, false),
            Disconnected::Gone => {
                self.quiescing.borrow_mut().remove(&controller);
                self.hosts.borrow_mut().leave(&key, reactor.clock().now());
            }
            Disconnected::Remains => self.quiesced_check(reactor, controller),
        }
        self.carry_out(reactor);
    }

    /// An admin command.
    pub fn admin(
        &self,
        reactor: &Reactor,
        controller: ControllerHandle,
        sqe: &Sqe,
        out_len: usize,
        mut counters: SmartCounters,
    ) -> AdminAnswer {
        let now_ns = reactor.clock().now();
        counters.power_on_ns = u128::from(now_ns - self.started_ns);
        counters.power_cycles = 1;
        let mut out = vec![0; out_len];
        let context = AdminContext { now_ns, counters: &counters };
        let outcome = self.target.borrow_mut().admin(controller, sqe, &context, &mut out);
        self.carry_out(reactor);
        match outcome {
            Outcome::Done { cqe, data_len } => {
                out.truncate(data_len);
                AdminAnswer::Done(cqe, out)
            }
            Outcome::Parked => AdminAnswer::Parked,
            Outcome::Abort { sqid, cid } => {
                AdminAnswer::Abort { place: self.place(controller, sqid).map(|p| (p.reactor, p.connection)), cid }
            }
            Outcome::Quiesce { cqe, reason } => AdminAnswer::Quiesce(cqe, reason),
        }
    }

    /// An admin command that failed before it got here.
    pub fn admin_fault(&self, controller: ControllerHandle, sqe: &Sqe, fault: Fault) -> Cqe {
        self.target.borrow_mut().admin_fault(controller, sqe, fault)
    }

    /// An abort was tried.
    pub fn abort_done(&self, controller: ControllerHandle, sqe: &Sqe, aborted: bool) -> Cqe {
        self.target.borrow_mut().abort_done(controller, sqe, aborted)
    }

    /// A failed I/O command.
    pub fn log_error(&self, controller: ControllerHandle, report: &ErrorReport) {
        self.target.borrow_mut().log_error(controller, report);
    }

    /// Failed I/O commands that left no report.
    pub fn count_errors(&self, controller: ControllerHandle, count: u64) {
        self.target.borrow_mut().count_errors(controller, count);
    }

    /// Deletes the I/O queues of a controller; the engine hears of it when the last one has ended.
    pub fn quiesce(&self, reactor: &Rc<Reactor>, controller: ControllerHandle, reason: Quiesce) {
        let number = self.quiesce_number.get() + 1;
        self.quiesce_number.set(number);
        self.quiescing.borrow_mut().insert(controller, Quiescing { reason, number, flushing: false });
        self.close_queues(reactor, controller, false);
        self.quiesced_check(reactor, controller);
    }

    fn quiesced_check(&self, reactor: &Rc<Reactor>, controller: ControllerHandle) {
        let io_queues = self.queues.borrow().range((controller, 1)..=(controller, u16::MAX)).next().is_some();
        if io_queues {
            return;
        }
        let Some(now) = self.quiescing.borrow().get(&controller).copied().filter(|q| !q.flushing) else { return };
        match now.reason {
            Quiesce::Reset => self.quiesced(controller, now.number),
            Quiesce::Shutdown => {
                self.quiescing.borrow_mut().insert(controller, Quiescing { flushing: true, ..now });
                let key = self.key(controller);
                let told = self.hosts.borrow().told(&key);
                let task = reactor.clone();
                reactor.spawn("nvmf shutdown flush", async move {
                    let durable = flush_all(&task, &key.0, told.as_ref()).await;
                    if let Some(home) = of(&task) {
                        if durable {
                            home.hosts.borrow_mut().shut_down(&key);
                        }
                        home.quiesced(controller, now.number);
                    }
                });
            }
        }
    }

    /// The reset or shutdown of that number is complete, unless another has taken its place.
    fn quiesced(&self, controller: ControllerHandle, number: u64) {
        let current = self.quiescing.borrow().get(&controller).is_some_and(|q| q.number == number);
        if current {
            self.quiescing.borrow_mut().remove(&controller);
            self.target.borrow_mut().quiesced(controller);
        }
    }

    /// Stops listening, tells persistent discovery controllers that the log has become empty, then has every reactor drain its
    /// connections: the events travel by the same rings, ahead of it.
    pub fn drain(&self, reactor: &Reactor) {
        self.draining.set(true);
        self.listeners.stop_all();
        self.target.borrow_mut().set_listeners(Vec::new());
        self.carry_out(reactor);
        for to in 0..reactor.reactors() {
            reactor.send(
                to,
                Message::Call(Box::new(|there| {
                    if let Some(local) = Local::of(there) {
                        local.drain();
                    }
                })),
            );
        }
    }
}

/// Makes everything acknowledged in a subsystem durable: only then is a shutdown complete (Base §3.6.2). Returns
/// whether it is, to the knowledge of a host that has been told so much.
async fn flush_all(reactor: &Rc<Reactor>, nqn: &str, told: Option<&HostTold>) -> bool {
    let Some(local) = Local::of(reactor) else { return false };
    let mut io = loop {
        match reactor.create_io() {
            Some(io) => break io,
            None => reactor.sleep(TICK_NS / 100).await,
        }
    };
    let mut durable = true;
    for ns in local.subsystem(nqn).namespaces() {
        io.prepare(IoOp::Flush, 0, 0);
        io = ns.handle.execute(io).await;
        if let Some(told) = told {
            let _ = ns.handle.end_flush(&mut io, told.of(ns.info().nsid));
        }
        if io.status != IoStatus::Success {
            durable = false;
            tracing::error!("{nqn}: namespace {}: the flush of a shutdown failed: {:?}", ns.info().nsid, io.status);
        }
    }
    reactor.retire_io(io);
    durable
}
