//! What each reactor knows of the iSCSI door: the targets and logical units as they are now, its sessions and connections.
//!
//! The home decides ([`super::home`]); what is here are copies that it changes by message.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use super::conn::Conn;
use super::guesses::Guesses;
use super::home::{UnitKey, UnitSpec};
use super::live::Live;
use crate::bdev::DeviceError;
use crate::iscsi::{Book, Notice, SessionKind};
use crate::limits::CONNECTIONS_PER_REACTOR;
use crate::net;
use crate::reactor::Reactor;
use crate::scsi::disk::Disk;

/// How often a reactor looks for who holds memory that others wait for, in nanoseconds.
const LOOK_NS: u64 = 1_000_000_000;
/// What an initiator has for its next step while others wait, in nanoseconds. The largest batch of answers takes that long at 7 Mbit/s.
const STALL_NS: u64 = 10_000_000_000;
/// How many seconds initiators have to log out when the door drains: as a request to log out tells it.
const LOGOUT_S: u16 = 1;

/// See the module's head.
pub struct Local {
    reactor: Rc<Reactor>,
    secret: [u8; 32],
    book: RefCell<Arc<Book>>,
    /// Numbers of listeners, by the address they are bound to.
    listeners: RefCell<BTreeMap<SocketAddr, u16>>,
    disks: RefCell<BTreeMap<UnitKey, Rc<Disk>>>,
    /// Each is kept by its tasks, until its receiving task removes it: kept here, it would keep this, which it refers to.
    conns: RefCell<BTreeMap<u64, Weak<Conn>>>,
    sessions: RefCell<BTreeMap<u16, Weak<Live>>>,
    next_id: Cell<u64>,
    draining: Cell<bool>,
    /// Connections that cannot be read because there is no memory for what they bring.
    /// Who has tried wrong secrets.
    pub guesses: Guesses,
}

impl Local {
    /// Makes a reactor ready to take connections. Challenges are made from `secret`.
    pub fn install(reactor: &Rc<Reactor>, secret: [u8; 32]) {
        let local = Rc::new(Local {
            reactor: reactor.clone(),
            secret,
            book: RefCell::default(),
            listeners: RefCell::default(),
            disks: RefCell::default(),
            conns: RefCell::default(),
            sessions: RefCell::default(),
            // Unique in the process: the reactor in the upper half.
            next_id: Cell::new(u64::from(reactor.id()) << 48 | 1),
            draining: Cell::new(false),
            guesses: Guesses::default(),
        });
        reactor.set_service(local);
        let here = reactor.clone();
        reactor.spawn("iscsi stalled initiators", async move {
            loop {
                here.sleep(LOOK_NS).await;
                if let Some(local) = Local::of(&here) {
                    local.look_for_stalled();
                }
            }
        });
    }

    /// The reactor's state, if it takes connections.
    pub fn of(reactor: &Reactor) -> Option<Rc<Local>> {
        reactor.service()
    }

    /// The reactor.
    pub fn reactor(&self) -> &Rc<Reactor> {
        &self.reactor
    }

    /// What challenges are made from.
    pub fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// Disconnects initiators that neither take the data they asked for nor send the data they announced, while others wait for the memory.
    fn look_for_stalled(&self) {
        if !net::is_short(&self.reactor) {
            return;
        }
        let now = self.reactor.clock().now();
        for conn in self.conns() {
            if conn.is_closing() {
                continue;
            }
            let stuck = conn.session().is_some_and(|(live, _)| live.is_stuck(now, STALL_NS));
            if stuck || conn.tx.stalled_ns() > STALL_NS {
                tracing::warn!(
                    "{}: disconnected: it holds data buffers that others wait for, and has not moved for {} s",
                    conn.peer(),
                    STALL_NS / 1_000_000_000
                );
                conn.close();
            }
        }
    }

    /// The targets.
    pub fn book(&self) -> Arc<Book> {
        self.book.borrow().clone()
    }

    /// Replaces the targets and listeners.
    pub fn set_book(&self, book: Arc<Book>, listeners: BTreeMap<SocketAddr, u16>) {
        self.book.replace(book);
        self.listeners.replace(listeners);
    }

    /// The number of the listener that is bound to an address; that of none for one that is gone.
    pub fn listener(&self, address: SocketAddr) -> u16 {
        self.listeners.borrow().get(&address).copied().unwrap_or(u16::MAX)
    }

    /// Opens the logical units that are new here, and replaces those that have become others.
    ///
    /// # Errors
    /// If a device does not open; then those that were there are as they were.
    pub fn open_units(&self, specs: &[UnitSpec]) -> Result<(), DeviceError> {
        let mut opened = Vec::new();
        for spec in specs {
            let is_new = self.disks.borrow().get(&spec.key).is_none_or(|disk| **disk.unit() != *spec.unit);
            if is_new {
                let disk = Disk::open(&self.reactor, &spec.device, spec.unit.clone())?;
                opened.push((spec.key, Rc::new(disk)));
            }
        }
        let sessions = self.sessions();
        for (key, disk) in opened {
            sessions.iter().for_each(|live| live.renew(key, &disk));
            self.disks.borrow_mut().insert(key, disk);
        }
        Ok(())
    }

    /// Lets go of all logical units but these.
    pub fn keep_units(&self, keys: &BTreeSet<UnitKey>) {
        self.disks.borrow_mut().retain(|key, _| keys.contains(key));
    }

    /// The blocks of a logical unit.
    pub fn disk(&self, key: UnitKey) -> Option<Rc<Disk>> {
        self.disks.borrow().get(&key).cloned()
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

    fn conns(&self) -> Vec<Rc<Conn>> {
        self.conns.borrow().values().filter_map(Weak::upgrade).collect()
    }

    /// Connections that have not ended.
    pub fn connections(&self) -> usize {
        self.conns.borrow().len()
    }

    /// Knows a session until [`Local::remove_session`].
    pub fn insert_session(&self, live: &Rc<Live>) {
        self.sessions.borrow_mut().insert(live.tsih(), Rc::downgrade(live));
    }

    /// Forgets a session that has ended.
    pub fn remove_session(&self, tsih: u16) {
        self.sessions.borrow_mut().remove(&tsih);
    }

    /// A session of this reactor.
    pub fn session(&self, tsih: u16) -> Option<Rc<Live>> {
        self.sessions.borrow().get(&tsih).and_then(Weak::upgrade)
    }

    fn sessions(&self) -> Vec<Rc<Live>> {
        self.sessions.borrow().values().filter_map(Weak::upgrade).collect()
    }

    /// Whether logins are turned away.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Takes no more connections and asks the initiators of all sessions to log out. Until they do they are served.
    pub fn drain(&self) {
        self.draining.set(true);
        for live in self.sessions() {
            match live.kind() {
                SessionKind::Normal => live.notify(Notice::RequestLogout(LOGOUT_S)),
                SessionKind::Discovery => live.close(),
            }
        }
        self.conns().iter().filter(|conn| conn.session().is_none()).for_each(|conn| conn.close());
    }

    /// Closes all connections at once, answers or not.
    pub fn close_all(&self) {
        self.draining.set(true);
        self.conns().iter().for_each(|conn| conn.close());
    }
}
