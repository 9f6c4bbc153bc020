//! The NVMe/TCP door: connections on every reactor, shared state at the home, driven by the control plane through [`Door`].
//!
//! ```text
//!   control thread:  Door ----ask----> every reactor: Local (namespaces, connections)
//!                      \-----ask----> home reactor:  Home (engine, queues, listeners)
//!   reactors:        Listener -> Conn -> Slot -> Handle (block layer)
//! ```

mod admin;
mod conn;
mod failures;
mod fused;
mod home;
mod local;
mod receive;
mod slot;
mod stalled;
mod zoned;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::bdev::BlockDevice;
use crate::limits::{
    ADMIN_QUEUE_ENTRIES, CONTROLLERS_MAX, IO_QUEUE_ENTRIES, IO_QUEUES_MAX, NAMESPACES_MAX, TRANSFER_MAX,
};
use crate::net::Listener;
use crate::nvme::target::{
    AllowedHosts, ConfigError, Listener as Port, MAX_TRANSFER_LEN, NamespaceInfo, SubsystemConfig, Target,
    TargetParams, ZoneInfo,
};
use crate::reactor::io::IoOp;
use crate::reactor::mailbox::{Reach, Remote};
use crate::sys::descriptor::Descriptor;
use crate::sys::socket;
use crate::util::fnv1a;
pub use conn::{IN_CAPSULE_ADMIN, IN_CAPSULE_IO, MAX_H2C_DATA};
pub use home::HOME;
use home::Home;
use local::{Local, NamespaceSpec};

const _: () = assert!(MAX_TRANSFER_LEN as usize == TRANSFER_MAX);

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
    /// The engine or a device refused.
    #[error("subsystem {nqn}: {why}")]
    Subsystem {
        /// Which.
        nqn: String,
        /// Why.
        why: String,
    },
    /// A reactor has ended.
    #[error("a reactor has ended")]
    Ended,
}

/// How long a draining door waits for a reactor's word.
const ANSWER_LIMIT: std::time::Duration = std::time::Duration::from_millis(200);

/// A namespace to export.
#[derive(Clone)]
pub struct Export {
    /// Namespace identifier, 1 to [`NAMESPACES_MAX`].
    pub nsid: u32,
    /// The volume.
    pub device: Arc<dyn BlockDevice>,
    /// Writes are refused, whatever the device allows.
    pub read_only: bool,
}

impl Export {
    /// What hosts are told of it: nothing that is not so.
    fn info(&self) -> NamespaceInfo {
        let common = self.device.common();
        let traits = common.traits();
        let limits = &traits.limits;
        let at_least_block = |bytes: u32| bytes.max(traits.block_size);
        NamespaceInfo {
            nsid: self.nsid,
            uuid: traits.uuid,
            block_size: traits.block_size,
            blocks: common.size() / u64::from(traits.block_size),
            physical_block_size: traits.physical_block_size,
            optimal_write_size: at_least_block(limits.write_granularity.max(traits.physical_block_size)),
            unmap_granularity: at_least_block(limits.unmap_granularity),
            atomic_write_blocks: 1,
            atomic_write_power_fail_blocks: 1,
            compare_and_write_blocks: (TRANSFER_MAX as u32 / traits.block_size).min(128),
            read_only: self.read_only || traits.read_only,
            zones: traits.zones.map(|zones| ZoneInfo {
                blocks: zones.size / u64::from(traits.block_size),
                append_max: zones.append_max,
                open_max: zones.open_max,
                active_max: zones.active_max,
                read_across: zones.read_across,
                write_zeroes: traits.ops.has(IoOp::WriteZeroes),
            }),
        }
    }
}

/// The control plane's hold on the door; its methods end when every reactor knows: those of a door of control threads block, one
/// in a simulation has the reactors turn meanwhile.
pub struct Door<R = Vec<Remote>> {
    reach: R,
    exports: BTreeMap<String, Vec<Export>>,
    ports: BTreeMap<SocketAddr, Port>,
    next_port: u16,
}

impl Door {
    /// A door without subsystems and listeners, for control threads.
    ///
    /// # Errors
    /// If a reactor has ended.
    pub fn open(remotes: &[Remote]) -> Result<Door, DoorError> {
        Door::open_by(remotes.to_vec())
    }
}

impl<R: Reach> Door<R> {
    /// As [`Door::open`], on the reactors that `reach` names.
    ///
    /// # Errors
    /// If a reactor has ended.
    pub fn open_by(reach: R) -> Result<Door<R>, DoorError> {
        for remote in reach.remotes() {
            reach.ask(remote, Local::install).ok_or(DoorError::Ended)?;
        }
        let params = TargetParams {
            listeners: Vec::new(),
            max_io_queues: IO_QUEUES_MAX,
            max_io_entries: IO_QUEUE_ENTRIES,
            max_admin_entries: ADMIN_QUEUE_ENTRIES,
            in_capsule_len: IN_CAPSULE_IO,
            max_controllers: CONTROLLERS_MAX,
            max_nsid: NAMESPACES_MAX,
            max_namespaces: NAMESPACES_MAX,
            firmware: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let target = Target::new(params).expect("limits that the engine accepts");
        let home = &reach.remotes()[usize::from(HOME)];
        reach.ask(home, move |home| Home::install(home, target)).ok_or(DoorError::Ended)?;
        Ok(Door { reach, exports: BTreeMap::new(), ports: BTreeMap::new(), next_port: 1 })
    }

    fn at_home<T: Send + 'static>(
        &self,
        f: impl FnOnce(&Home, &std::rc::Rc<crate::reactor::Reactor>) -> T + Send + 'static,
    ) -> Result<T, DoorError> {
        self.reach
            .ask(&self.reach.remotes()[usize::from(HOME)], move |reactor| {
                home::of(reactor).map(|home| f(&home, reactor))
            })
            .flatten()
            .ok_or(DoorError::Ended)
    }

    /// Adds a subsystem with its namespaces.
    ///
    /// # Errors
    /// What the engine or a device says; the subsystem is not there then.
    pub fn add_subsystem(
        &mut self,
        nqn: &str,
        hosts: Option<Vec<String>>,
        exports: Vec<Export>,
    ) -> Result<(), DoorError> {
        let config = SubsystemConfig {
            nqn: nqn.to_owned(),
            serial: serial(nqn),
            model: "reactor".to_owned(),
            hosts: allowed(hosts),
        };
        self.publish(nqn, exports, move |target, nqn, infos| {
            target.add_subsystem(config)?;
            target.set_namespaces(nqn, infos).inspect_err(|_| {
                // Known since just now, so it can be removed.
                let _ = target.remove_subsystem(nqn);
            })
        })
    }

    /// Removes a subsystem and closes its controllers.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn remove_subsystem(&mut self, nqn: &str) -> Result<(), DoorError> {
        let name = nqn.to_owned();
        self.at_home(move |home, reactor| {
            let result = home.target.borrow_mut().remove_subsystem(&name);
            home.carry_out(reactor);
            result
        })?
        .map_err(|e| DoorError::Subsystem { nqn: nqn.to_owned(), why: e.to_string() })?;
        self.exports.remove(nqn);
        self.forget(nqn)
    }

    /// Replaces the hosts that may use a subsystem; `None` is every host. Controllers of hosts no longer allowed are closed.
    ///
    /// # Errors
    /// If there is none of that name.
    pub fn set_hosts(&self, nqn: &str, hosts: Option<Vec<String>>) -> Result<(), DoorError> {
        let name = nqn.to_owned();
        self.at_home(move |home, reactor| {
            let result = home.target.borrow_mut().set_hosts(&name, allowed(hosts));
            home.carry_out(reactor);
            result
        })?
        .map_err(|e| DoorError::Subsystem { nqn: nqn.to_owned(), why: e.to_string() })
    }

    /// Adds a namespace; hosts are told.
    ///
    /// # Errors
    /// What the engine or the device says; nothing has changed then.
    pub fn add_namespace(&mut self, nqn: &str, export: Export) -> Result<(), DoorError> {
        let mut exports = self.exports.get(nqn).cloned().unwrap_or_default();
        exports.push(export);
        self.replace_namespaces(nqn, exports)
    }

    /// Removes a namespace; hosts are told.
    ///
    /// # Errors
    /// If a reactor has ended.
    pub fn remove_namespace(&mut self, nqn: &str, nsid: u32) -> Result<(), DoorError> {
        let mut exports = self.exports.get(nqn).cloned().unwrap_or_default();
        exports.retain(|export| export.nsid != nsid);
        self.replace_namespaces(nqn, exports)
    }

    /// A volume has another size: every namespace of it is told to its hosts.
    ///
    /// # Errors
    /// If a reactor has ended.
    pub fn resized(&mut self, device: u32) -> Result<(), DoorError> {
        let of_device = |exports: &[Export]| exports.iter().any(|e| e.device.common().id() == device);
        let touched: Vec<String> =
            self.exports.iter().filter(|(_, e)| of_device(e)).map(|(nqn, _)| nqn.clone()).collect();
        for nqn in touched {
            let exports = self.exports[&nqn].clone();
            self.replace_namespaces(&nqn, exports)?;
        }
        Ok(())
    }

    fn replace_namespaces(&mut self, nqn: &str, exports: Vec<Export>) -> Result<(), DoorError> {
        self.publish(nqn, exports, |target, nqn, infos| target.set_namespaces(nqn, infos))
    }

    /// Hands namespaces to the reactors, then to the engine: a host that hears of one finds it there. On failure everything is as
    /// it was.
    fn publish(
        &mut self,
        nqn: &str,
        exports: Vec<Export>,
        enter: impl FnOnce(&mut Target, &str, Vec<NamespaceInfo>) -> Result<(), ConfigError> + Send + 'static,
    ) -> Result<(), DoorError> {
        let infos: Vec<NamespaceInfo> = exports.iter().map(Export::info).collect();
        let name = nqn.to_owned();
        let entered = self.hand_out(nqn, &exports).and_then(|()| {
            let result = self.at_home(move |home, reactor| {
                let result = enter(&mut home.target.borrow_mut(), &name, infos);
                home.carry_out(reactor);
                result
            })?;
            result.map_err(|e| DoorError::Subsystem { nqn: nqn.to_owned(), why: e.to_string() })
        });
        match entered {
            Ok(()) => {
                self.exports.insert(nqn.to_owned(), exports);
                Ok(())
            }
            Err(error) => {
                // Their volumes are open on every reactor, so this does not fail; a reactor that has ended is past caring.
                let _ = match self.exports.get(nqn) {
                    Some(before) => self.hand_out(nqn, before),
                    None => self.forget(nqn),
                };
                Err(error)
            }
        }
    }

    /// Takes a subsystem's namespaces from the reactors.
    fn forget(&self, nqn: &str) -> Result<(), DoorError> {
        for remote in self.reach.remotes() {
            let name = nqn.to_owned();
            self.reach
                .ask(remote, move |r| Local::of(r).map(|local| local.remove_subsystem(&name)))
                .ok_or(DoorError::Ended)?;
        }
        Ok(())
    }

    fn hand_out(&self, nqn: &str, exports: &[Export]) -> Result<(), DoorError> {
        for remote in self.reach.remotes() {
            let name = nqn.to_owned();
            let list: Vec<NamespaceSpec> =
                exports.iter().map(|e| NamespaceSpec { info: e.info(), device: e.device.clone() }).collect();
            self.reach
                .ask(remote, move |r| Local::of(r).map(|local| local.set_namespaces(&name, &list, NAMESPACES_MAX)))
                .flatten()
                .ok_or(DoorError::Ended)?
                .map_err(|e| DoorError::Subsystem { nqn: nqn.to_owned(), why: e.to_string() })?;
        }
        Ok(())
    }

    /// Listens on `address`; port 0 takes a free one. Returns the address it is bound to.
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
        self.ports.insert(bound, Port { portid: self.next_port, addr: bound });
        self.next_port += 1;
        let ports: Vec<Port> = self.ports.values().cloned().collect();
        self.at_home(move |home, reactor| {
            let listener = Listener::start(reactor, socket, bound, conn::serve);
            home.listeners.add(listener);
            home.target.borrow_mut().set_listeners(ports);
            home.carry_out(reactor);
        })
    }

    /// Listens on `bound` no more; its connections stay.
    ///
    /// # Errors
    /// If a reactor has ended.
    pub fn unlisten(&mut self, bound: SocketAddr) -> Result<(), DoorError> {
        self.ports.remove(&bound);
        let ports: Vec<Port> = self.ports.values().cloned().collect();
        self.at_home(move |home, reactor| {
            home.listeners.stop(bound);
            home.target.borrow_mut().set_listeners(ports);
            home.carry_out(reactor);
        })
    }

    /// Takes no more connections and commands, tells discovery controllers, and lets every connection end once it has
    /// answered. Returns at once; [`Door::connections`] tells how far it is.
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

fn allowed(hosts: Option<Vec<String>>) -> AllowedHosts {
    match hosts {
        None => AllowedHosts::Any,
        Some(list) => AllowedHosts::Listed(list.into_iter().collect::<BTreeSet<_>>()),
    }
}

/// A serial number that stays: 16 hexadecimal digits of a hash (FNV-1a) of the NQN.
fn serial(nqn: &str) -> String {
    format!("{:016X}", fnv1a(nqn.as_bytes()))
}
