//! The iSCSI door: connections on every reactor, shared state at the home, driven by the control plane through [`Door`].
//!
//! ```text
//!   control thread:  Door ----ask----> every reactor: Local (targets, disks, sessions, connections)
//!                      \-----ask----> home reactor:  Home (registry of sessions, logical units, listeners)
//!   reactors:        Listener -> Conn -> Live (session) -> Slot -> Disk -> Handle (block layer)
//! ```

mod conn;
mod copy;
mod guesses;
mod home;
mod live;
mod local;
mod manage;
mod receive;
mod slot;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use crate::bdev::BlockDevice;
use crate::iscsi::{AllowedInitiators, Book, ChapConfig, Offer, Portal, Redirect, TargetConfig};
use crate::net::Listener;
use crate::reactor::Reactor;
use crate::reactor::mailbox::{Reach, Remote};
use crate::scsi::disk::Disk;
use crate::scsi::reservation::{Reservations, decode_snapshot};
use crate::scsi::{TaskFunctions, Unit};
use crate::sys::descriptor::Descriptor;
use crate::sys::socket;
use crate::util::fnv1a;
pub use home::HOME;
use home::{Exports, Home, UnitKey, UnitSpec};
use local::Local;
pub use store::{Directory, ReservationStore, Stored};

/// Version descriptor of iSCSI (SPC-4 §6.6.2).
const ISCSI_VERSION: u16 = 0x0960;

/// The task management functions that sessions carry out.
const TASK_FUNCTIONS: TaskFunctions = TaskFunctions {
    abort_task: true,
    abort_task_set: true,
    clear_aca: false,
    clear_task_set: true,
    unit_reset: true,
    query_task: true,
    target_reset: true,
    query_event: true,
    query_task_set: true,
    nexus_reset: true,
};

/// How long a draining door waits for a reactor's word.
const ANSWER_LIMIT: std::time::Duration = std::time::Duration::from_millis(200);

/// The address of a listener, if it leads every initiator there: not that of all interfaces, of the loopback, or of one link.
fn public_address(listener: SocketAddr) -> Option<String> {
    let ip = listener.ip().to_canonical();
    let of_one_link = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    (!ip.is_unspecified() && !ip.is_loopback() && !of_one_link).then(|| listener.to_string())
}

/// Why the door could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// A port in use, no right to bind.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        error: std::io::Error,
    },
    /// A target cannot be, or a device refused.
    #[error("target {iqn}: {why}")]
    Target {
        /// Which.
        iqn: String,
        /// Why.
        why: String,
    },
    /// A reactor has ended.
    #[error("a reactor has ended")]
    Ended,
}

/// A logical unit of a target.
#[derive(Clone)]
pub struct Lun {
    /// Its number.
    pub lun: u16,
    /// The volume.
    pub device: Arc<dyn BlockDevice>,
    /// Writes are refused, whatever the device allows.
    pub read_only: bool,
}

impl Lun {
    fn key(&self) -> UnitKey {
        let common = self.device.common();
        UnitKey { device: common.id(), read_only: self.read_only && !common.traits().read_only }
    }

    fn unit(&self) -> Unit {
        Disk::describe(&*self.device, self.read_only, ISCSI_VERSION, TASK_FUNCTIONS)
    }
}

/// Where a target is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetPortal {
    /// The address that [`Door::listen`] returned.
    pub listener: SocketAddr,
    /// Target portal group tag.
    pub tpgt: u16,
    /// Address with port that initiators are told; `None`: that of the listener to all if it means the same to all, else the one that
    /// they came by, and nothing to who came by another listener.
    pub advertise: Option<String>,
}

/// A target to export.
#[derive(Clone)]
pub struct Target {
    /// iSCSI name, in lower case.
    pub iqn: String,
    /// A name for people.
    pub alias: Option<String>,
    /// Where it is reached; without one, by nobody.
    pub portals: Vec<TargetPortal>,
    /// Logins are sent elsewhere.
    pub redirect: Option<Redirect>,
    /// Who may use it; `None`: every initiator.
    pub initiators: Option<Vec<String>>,
    /// What initiators must prove.
    pub chap: Option<ChapConfig>,
    /// What it brings to negotiations.
    pub offer: Offer,
    /// Its logical units. Of one volume there is one, and one that is write-protected.
    pub luns: Vec<Lun>,
}

/// What a door is made from.
#[derive(Clone)]
pub struct Options {
    /// Nobody else knows it: challenges are made from it.
    pub secret: [u8; 32],
    /// Where reservations are kept; `None`: nowhere, and who asks for that is refused.
    pub store: Option<Arc<dyn ReservationStore>>,
}

/// The control plane's hold on the door; its methods end when every reactor knows: those of a door of control threads block, one
/// in a simulation has the reactors turn meanwhile.
pub struct Door<R = Vec<Remote>> {
    reach: R,
    store: Option<Arc<dyn ReservationStore>>,
    targets: BTreeMap<String, Target>,
    discovery_chap: Option<ChapConfig>,
    listeners: BTreeMap<SocketAddr, u16>,
    next_listener: u16,
    /// Units that have been exported: what was kept of them is known.
    known: BTreeSet<UnitKey>,
}

impl Door {
    /// A door without targets and listeners, for control threads.
    ///
    /// # Errors
    /// If a reactor has ended.
    pub fn open(remotes: &[Remote], options: Options) -> Result<Door, DoorError> {
        Door::open_by(remotes.to_vec(), options)
    }
}

impl<R: Reach> Door<R> {
    /// As [`Door::open`], on the reactors that `reach` names.
    ///
    /// # Errors
    /// If a reactor has ended.
    pub fn open_by(reach: R, options: Options) -> Result<Door<R>, DoorError> {
        for remote in reach.remotes() {
            let secret = options.secret;
            reach.ask(remote, move |reactor| Local::install(reactor, secret)).ok_or(DoorError::Ended)?;
        }
        let (store, home) = (options.store.clone(), &reach.remotes()[usize::from(HOME)]);
        reach.ask(home, move |home| Home::install(home, store)).ok_or(DoorError::Ended)?;
        Ok(Door {
            reach,
            store: options.store,
            targets: BTreeMap::new(),
            discovery_chap: None,
            listeners: BTreeMap::new(),
            next_listener: 1,
            known: BTreeSet::new(),
        })
    }

    fn at_home<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Home, &Rc<Reactor>) -> T + Send + 'static,
    ) -> Result<T, DoorError> {
        self.reach
            .ask(&self.reach.remotes()[usize::from(HOME)], move |reactor| {
                home::of(reactor).map(|home| f(&home, reactor))
            })
            .flatten()
            .ok_or(DoorError::Ended)
    }

    /// Adds a target, or makes another one of it. Sessions that may not be any more are closed; initiators are told of logical units that
    /// have come, gone or changed.
    ///
    /// # Errors
    /// What a device or the target's own description says; then everything is as it was.
    pub fn set_target(&mut self, target: Target) -> Result<(), DoorError> {
        let iqn = target.iqn.clone();
        let before = self.targets.insert(iqn.clone(), target);
        self.publish(&iqn).inspect_err(|_| {
            match before {
                Some(before) => drop(self.targets.insert(iqn.clone(), before)),
                None => drop(self.targets.remove(&iqn)),
            }
            // As it was it could be; a reactor that has ended is past caring.
            let _ = self.publish(&iqn);
        })
    }

    /// Removes a target and closes its sessions.
    ///
    /// # Errors
    /// If a reactor has ended.
    pub fn remove_target(&mut self, iqn: &str) -> Result<(), DoorError> {
        self.targets.remove(iqn);
        self.publish(iqn)
    }

    /// What initiators that only ask for targets must prove.
    ///
    /// # Errors
    /// If a reactor has ended.
    pub fn set_discovery_chap(&mut self, chap: Option<ChapConfig>) -> Result<(), DoorError> {
        self.discovery_chap = chap;
        self.publish("discovery")
    }

    /// A volume has another size: every initiator of it is told.
    ///
    /// # Errors
    /// If a reactor has ended.
    pub fn resized(&mut self, device: u32) -> Result<(), DoorError> {
        let of_device = |target: &&Target| target.luns.iter().any(|lun| lun.device.common().id() == device);
        match self.targets.values().find(of_device).map(|target| target.iqn.clone()) {
            Some(iqn) => self.publish(&iqn),
            None => Ok(()),
        }
    }

    /// Hands what is exported to the reactors, then to the home: an initiator that hears of a unit finds it there.
    fn publish(&mut self, iqn: &str) -> Result<(), DoorError> {
        let because = |why: String| DoorError::Target { iqn: iqn.to_owned(), why };
        let exports = self.exports().map_err(because)?;
        let keys: BTreeSet<UnitKey> = exports.units.iter().map(|spec| spec.key).collect();
        for remote in self.reach.remotes() {
            let units = exports.units.clone();
            self.reach
                .ask(remote, move |r| Local::of(r).map(|local| local.open_units(&units)))
                .flatten()
                .ok_or(DoorError::Ended)?
                .map_err(|e| because(e.to_string()))?;
        }
        let book = exports.book.clone();
        self.at_home(move |home, reactor| home.set_exports(reactor, exports))?.map_err(because)?;
        for remote in self.reach.remotes() {
            let (book, listeners, kept) = (book.clone(), self.listeners.clone(), keys.clone());
            let take = move |r: &Rc<Reactor>| {
                Local::of(r).map(|local| {
                    local.set_book(book, listeners);
                    local.keep_units(&kept);
                })
            };
            self.reach.ask(remote, take).flatten().ok_or(DoorError::Ended)?;
        }
        self.known = keys;
        Ok(())
    }

    fn exports(&self) -> Result<Exports, String> {
        let configs = self.targets.values().map(|target| self.config(target)).collect();
        let book = Book::new(configs, self.discovery_chap.clone()).map_err(|why| why.to_string())?;
        let mut exports = Exports { book: Arc::new(book), ..Exports::default() };
        for target in self.targets.values() {
            for portal in &target.portals {
                let port = (target.iqn.clone(), portal.tpgt);
                if !exports.ports.contains_key(&port) {
                    let id = relative_port(&port, &exports.ports.values().copied().collect());
                    exports.ports.insert(port, id);
                }
            }
            let mut luns = BTreeMap::new();
            for lun in &target.luns {
                let key = lun.key();
                if lun.device.common().traits().zones.is_some() {
                    let name = &lun.device.common().traits().name;
                    return Err(format!("volume \"{name}\" is made of zones, which are not served over iSCSI"));
                }
                if luns.values().any(|other| *other == key) {
                    let name = &lun.device.common().traits().name;
                    return Err(format!("volume \"{name}\" has two logical unit numbers"));
                }
                luns.insert(lun.lun, key);
                if !exports.units.iter().any(|spec| spec.key == key) {
                    let unit = Arc::new(lun.unit());
                    let reservations = self.kept(key, &unit).map_err(|why| {
                        let name = &lun.device.common().traits().name;
                        format!("volume \"{name}\": {why}")
                    })?;
                    exports.units.push(UnitSpec { key, device: lun.device.clone(), unit, reservations });
                }
            }
            exports.luns.insert(target.iqn.clone(), luns);
        }
        Ok(exports)
    }

    /// The reservations that were kept of a unit that is exported now.
    ///
    /// # Errors
    /// If they cannot be read: whom they fence out must not write, so the unit is not exported without them.
    fn kept(&self, key: UnitKey, unit: &Unit) -> Result<Reservations, String> {
        let Some(store) = self.store.as_ref().filter(|_| !self.known.contains(&key)) else {
            return Ok(Reservations::default());
        };
        let serial = unit.serial();
        let read = store.load(&serial).and_then(|bytes| match bytes {
            Some(bytes) => decode_snapshot(&bytes).map_err(|why| format!("{serial}.reservations: {why}")),
            None => Ok(Reservations::default()),
        });
        read.map_err(|why| {
            format!(
                "the persistent reservations that were kept of it cannot be read: {why}; with the file restored or removed from the \
                 directory `state` of [iscsi] it can be served"
            )
        })
    }

    fn config(&self, target: &Target) -> TargetConfig {
        // Without its listener nobody comes by a portal.
        let portals = target.portals.iter().filter_map(|portal| {
            Some(Portal {
                listener: *self.listeners.get(&portal.listener)?,
                tpgt: portal.tpgt,
                advertise: portal.advertise.clone().or_else(|| public_address(portal.listener)),
                loopback: portal.listener.ip().to_canonical().is_loopback().then(|| portal.listener.to_string()),
                redirect: target.redirect.clone(),
            })
        });
        TargetConfig {
            name: target.iqn.clone(),
            alias: target.alias.clone(),
            portals: portals.collect(),
            initiators: match &target.initiators {
                None => AllowedInitiators::Any,
                Some(names) => AllowedInitiators::Listed(names.iter().map(|name| name.to_ascii_lowercase()).collect()),
            },
            chap: target.chap.clone(),
            offer: target.offer,
        }
    }

    /// Listens on `address`; port 0 takes a free one. Returns the address it is bound to, by which targets name it.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub fn listen(&mut self, address: SocketAddr) -> Result<SocketAddr, DoorError> {
        let (fd, bound) = socket::listen(address).map_err(|error| DoorError::Listen { address, error })?;
        self.listen_on(fd.into(), bound)?;
        Ok(bound)
    }

    /// Takes over a socket that listens already, on the address `bound`.
    ///
    /// # Errors
    /// If a reactor has ended.
    pub fn listen_on(&mut self, socket: Descriptor, bound: SocketAddr) -> Result<(), DoorError> {
        self.listeners.insert(bound, self.next_listener);
        self.next_listener += 1;
        // Before the first connection: it finds its portal.
        self.publish("listener")?;
        self.at_home(move |home, reactor| {
            let listener = Listener::start(reactor, socket, bound, conn::serve);
            home.listeners.add(listener);
        })
    }

    /// Listens on `bound` no more; its connections stay. No target may have a portal there any more.
    ///
    /// # Errors
    /// If a reactor has ended.
    pub fn unlisten(&mut self, bound: SocketAddr) -> Result<(), DoorError> {
        self.listeners.remove(&bound);
        self.at_home(move |home, _| {
            home.listeners.stop(bound);
        })
    }

    /// Takes no more connections and asks all initiators to log out; until they do, they are served. Returns at once;
    /// [`Door::connections`] tells how far it is.
    pub fn drain(&self) {
        self.reach.remotes()[usize::from(HOME)].send(Box::new(|reactor| {
            if let Some(home) = home::of(reactor) {
                home.drain(reactor);
            }
        }));
    }

    /// Closes all connections, answered or not.
    pub fn close(&self) {
        for remote in self.reach.remotes() {
            remote.send(Box::new(|r| {
                if let Some(local) = Local::of(r) {
                    local.close_all();
                }
            }));
        }
    }

    /// Connections that have not ended, and listeners of a draining door that are not closed, on all reactors that answer.
    pub fn connections(&self) -> usize {
        let count = |remote: &Remote| {
            self.reach.ask_within(remote, ANSWER_LIMIT, |r| {
                let listeners = home::of(r).map_or(0, |home| home.listeners.closing());
                Local::of(r).map_or(0, |local| local.connections()) + listeners
            })
        };
        self.reach.remotes().iter().filter_map(count).sum()
    }
}

/// A relative port identifier that stays as long as the port has its name: registrations that outlive the process name it. Of two ports with
/// the same one the later has the next that is free.
fn relative_port(port: &(String, u16), taken: &BTreeSet<u16>) -> u16 {
    let (iqn, tpgt) = port;
    let hash = fnv1a(format!("{iqn},t,{tpgt}").as_bytes());
    let mut id = (hash ^ hash >> 16 ^ hash >> 32 ^ hash >> 48) as u16;
    while id == 0 || taken.contains(&id) {
        id = id.wrapping_add(1);
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_leads_every_initiator_to_a_listener_is_told_to_all() {
        let told = |address: &str| public_address(address.parse().unwrap());
        for address in ["10.0.0.1:3260", "[2001:db8::1]:3260"] {
            assert_eq!(told(address).as_deref(), Some(address));
        }
        let any = ["0.0.0.0:3260", "[::]:3260"];
        let loopback = ["127.0.0.1:3260", "[::1]:3260", "[::ffff:127.0.0.1]:3260"];
        for address in any.into_iter().chain(loopback).chain(["169.254.0.1:3260", "[fe80::1]:3260"]) {
            assert_eq!(told(address), None, "{address}");
        }
    }
}
