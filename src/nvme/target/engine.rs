//! The target: its subsystems and controllers, their life and their reconfiguration.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;

use super::controller::{Controller, ControllerHandle, ErrorReport, Phase};
use super::namespace::{NamespaceInfo, Namespaces};
use crate::nvme::spec::{ASQSZ_MIN, CNTLID_MAX, Cqe, DISCOVERY_NQN, NQN_MAX_LEN, NoticeInfo, async_event_config};

/// An address on which hosts reach the target: one port of its subsystems.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Port identifier of the discovery log, stable while the listener exists.
    pub portid: u16,
    /// The bound address.
    pub addr: SocketAddr,
}

/// What holds for the whole target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetParams {
    /// The listeners.
    pub listeners: Vec<Listener>,
    /// Most I/O queues of a controller, 1 to 65,534.
    pub max_io_queues: u16,
    /// Most entries of an I/O queue, 2 or above: how many commands a host may have outstanding on it, plus one.
    pub max_io_entries: u16,
    /// Most entries of an Admin Queue, 32 or above.
    pub max_admin_entries: u16,
    /// Most in-capsule data of an I/O command in bytes, a multiple of 16.
    pub in_capsule_len: u32,
    /// Most controllers at a time, discovery controllers included.
    pub max_controllers: usize,
    /// Largest NSID.
    pub max_nsid: u32,
    /// Most namespaces of a subsystem.
    pub max_namespaces: u32,
    /// Firmware revision, at most 8 ASCII characters.
    pub firmware: String,
}

/// Which hosts may use a subsystem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedHosts {
    /// Every host.
    Any,
    /// The hosts with these NQNs.
    Listed(BTreeSet<String>),
}

impl AllowedHosts {
    /// Whether the host with this NQN is one of them.
    pub fn allows(&self, hostnqn: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Listed(hosts) => hosts.contains(hostnqn),
        }
    }
}

/// An NVM subsystem without its namespaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubsystemConfig {
    /// NQN.
    pub nqn: String,
    /// Serial number, at most 20 ASCII characters.
    pub serial: String,
    /// Model number, at most 40 ASCII characters.
    pub model: String,
    /// Allowed hosts.
    pub hosts: AllowedHosts,
}

/// A configuration that the engine cannot hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A parameter of the target is out of its range.
    #[error("target parameter {0} is out of range")]
    Parameter(&'static str),
    /// The NQN is empty, longer than 223 bytes, has a NUL, or is the discovery subsystem's.
    #[error("{0:?} cannot be the NQN of a subsystem")]
    BadNqn(String),
    /// There is already a subsystem with this NQN.
    #[error("subsystem {0} exists already")]
    DuplicateSubsystem(String),
    /// There is no subsystem with this NQN.
    #[error("there is no subsystem {0}")]
    NoSubsystem(String),
    /// A namespace identifier is 0, above the limit, or used twice.
    #[error("namespace identifier {0} is used twice or not in 1 to the limit")]
    BadNsid(u32),
    /// More namespaces than the limit.
    #[error("{0} namespaces are more than a subsystem may have")]
    TooManyNamespaces(usize),
    /// The zones of a namespace are none, or do not divide it.
    #[error("namespace {0} has zones that do not divide it")]
    BadZones(u32),
    /// A namespace without blocks, or with a block size that is not a power of two from 512 up.
    #[error("namespace {0} has no blocks or a block size that is not a power of two from 512 up")]
    BadGeometry(u32),
}

/// A subsystem and its namespaces.
#[derive(Clone, Debug)]
pub(super) struct Subsystem {
    pub config: SubsystemConfig,
    pub namespaces: Namespaces,
    /// Where the search for a free controller identifier starts.
    pub next_cntlid: u16,
}

/// Something the transport has to do, in order; see [`Target::poll`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Send this completion of an Asynchronous Event Request on the Admin Queue.
    AsyncEvent {
        /// Controller.
        controller: ControllerHandle,
        /// Completion; SQHD is the transport's.
        cqe: Cqe,
    },
    /// Close all connections of the controller: its keep alive timer expired, its subsystem is gone, or its host is no
    /// longer allowed. Report each with [`Target::disconnect`].
    Close {
        /// Controller.
        controller: ControllerHandle,
    },
}

/// What is left of a controller after a queue was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disconnected {
    /// The controller goes on without the I/O queue.
    Remains,
    /// The Admin Queue is lost: close the I/O queues of the controller too.
    CloseIoQueues,
    /// The controller does not exist (any more).
    Gone,
}

/// All subsystems and controllers. See the module for how the transport drives it.
#[derive(Clone, Debug)]
pub struct Target {
    pub(super) params: TargetParams,
    /// By NQN.
    pub(super) subsystems: BTreeMap<String, Subsystem>,
    pub(super) controllers: BTreeMap<ControllerHandle, Controller>,
    pub(super) notices: VecDeque<Notice>,
    pub(super) next_handle: u64,
    pub(super) next_discovery_cntlid: u16,
    /// Generation counter of the discovery log.
    pub(super) genctr: u64,
}

impl Target {
    /// A target without subsystems. Discovery is available at once.
    ///
    /// # Errors
    /// A parameter is out of its range.
    pub fn new(params: TargetParams) -> Result<Self, ConfigError> {
        let bad = if !(1..=0xfffe).contains(&params.max_io_queues) {
            "max_io_queues"
        } else if params.max_io_entries < 2 {
            "max_io_entries"
        } else if params.max_admin_entries < ASQSZ_MIN {
            "max_admin_entries"
        } else if !params.in_capsule_len.is_multiple_of(16) {
            "in_capsule_len"
        } else if params.max_nsid == 0 || params.max_nsid > 0xffff {
            // The table of namespaces is indexed by NSID and copied to every reactor.
            "max_nsid"
        } else if params.max_namespaces == 0 || params.max_namespaces > params.max_nsid {
            "max_namespaces"
        } else {
            return Ok(Self {
                params,
                subsystems: BTreeMap::new(),
                controllers: BTreeMap::new(),
                notices: VecDeque::new(),
                next_handle: 1,
                next_discovery_cntlid: 1,
                genctr: 1,
            });
        };
        Err(ConfigError::Parameter(bad))
    }

    /// The parameters.
    pub const fn params(&self) -> &TargetParams {
        &self.params
    }

    /// Adds a subsystem without namespaces.
    ///
    /// # Errors
    /// The NQN is not usable or taken.
    pub fn add_subsystem(&mut self, config: SubsystemConfig) -> Result<(), ConfigError> {
        let nqn = config.nqn.clone();
        if nqn.is_empty() || nqn.len() > NQN_MAX_LEN || nqn.contains('\0') || nqn == DISCOVERY_NQN {
            return Err(ConfigError::BadNqn(nqn));
        }
        if self.subsystems.contains_key(&nqn) {
            return Err(ConfigError::DuplicateSubsystem(nqn));
        }
        let namespaces = Namespaces::new(self.params.max_nsid);
        self.change_discovery(|target| {
            target.subsystems.insert(nqn, Subsystem { config, namespaces, next_cntlid: 1 });
        });
        Ok(())
    }

    /// Removes a subsystem; its controllers are to be closed.
    ///
    /// # Errors
    /// There is none with this NQN.
    pub fn remove_subsystem(&mut self, nqn: &str) -> Result<(), ConfigError> {
        if !self.subsystems.contains_key(nqn) {
            return Err(ConfigError::NoSubsystem(nqn.to_owned()));
        }
        self.change_discovery(|target| {
            target.subsystems.remove(nqn);
        });
        self.close_where(|c| !c.is_discovery() && c.subnqn == nqn);
        Ok(())
    }

    /// Replaces the allowed hosts of a subsystem; controllers of hosts that are no longer allowed are to be closed.
    ///
    /// # Errors
    /// There is none with this NQN.
    pub fn set_hosts(&mut self, nqn: &str, hosts: AllowedHosts) -> Result<(), ConfigError> {
        if !self.subsystems.contains_key(nqn) {
            return Err(ConfigError::NoSubsystem(nqn.to_owned()));
        }
        let kept = hosts.clone();
        self.change_discovery(|target| {
            if let Some(subsystem) = target.subsystems.get_mut(nqn) {
                subsystem.config.hosts = hosts;
            }
        });
        self.close_where(|c| !c.is_discovery() && c.subnqn == nqn && !kept.allows(&c.hostnqn));
        Ok(())
    }

    /// Replaces the listeners. An empty list takes this target off the discovery log: what persistent discovery controllers
    /// are to hear before a shutdown.
    pub fn set_listeners(&mut self, listeners: Vec<Listener>) {
        self.change_discovery(|target| target.params.listeners = listeners);
    }

    /// Replaces the namespaces of a subsystem. Namespaces that appear, disappear or change enter the Changed Namespace
    /// List of every controller and raise its namespace attribute notice. The transport hands the new table
    /// ([`Target::namespaces`]) to every reactor before it polls the notices.
    ///
    /// # Errors
    /// A namespace is not possible; then nothing has changed.
    pub fn set_namespaces(&mut self, nqn: &str, list: Vec<NamespaceInfo>) -> Result<(), ConfigError> {
        let Some(subsystem) = self.subsystems.get_mut(nqn) else {
            return Err(ConfigError::NoSubsystem(nqn.to_owned()));
        };
        if list.len() > self.params.max_namespaces as usize {
            return Err(ConfigError::TooManyNamespaces(list.len()));
        }
        let mut table = Namespaces::new(self.params.max_nsid);
        for info in list {
            let nsid = info.nsid;
            if info.blocks == 0 || info.block_size < 512 || !info.block_size.is_power_of_two() {
                return Err(ConfigError::BadGeometry(nsid));
            }
            if info.zones.as_ref().is_some_and(|zones| zones.blocks == 0 || !info.blocks.is_multiple_of(zones.blocks)) {
                return Err(ConfigError::BadZones(nsid));
            }
            if table.get(nsid).is_some() || !table.insert(info) {
                return Err(ConfigError::BadNsid(nsid));
            }
        }
        let old = core::mem::replace(&mut subsystem.namespaces, table);
        let table = &subsystem.namespaces;
        let changed: Vec<u32> = (1..=self.params.max_nsid).filter(|&nsid| old.get(nsid) != table.get(nsid)).collect();
        if changed.is_empty() {
            return Ok(());
        }
        for (&handle, controller) in &mut self.controllers {
            if !controller.is_discovery() && controller.subnqn == nqn {
                controller.changed.extend(&changed);
                controller.raise(NoticeInfo::NAMESPACE_ATTRIBUTE_CHANGED, async_event_config::NAMESPACE_ATTRIBUTE);
                deliver(&mut self.notices, handle, controller);
            }
        }
        Ok(())
    }

    /// The namespaces of a subsystem, to be copied to reactors with I/O queues.
    pub fn namespaces(&self, nqn: &str) -> Option<&Namespaces> {
        self.subsystems.get(nqn).map(|subsystem| &subsystem.namespaces)
    }

    /// NQN of the subsystem of a controller; the discovery NQN for a discovery controller.
    pub fn subsystem_of(&self, handle: ControllerHandle) -> Option<&str> {
        self.controllers.get(&handle).map(|controller| controller.subnqn.as_str())
    }

    /// NQN of the host of a controller.
    pub fn host_of(&self, handle: ControllerHandle) -> Option<&str> {
        self.controllers.get(&handle).map(|controller| controller.hostnqn.as_str())
    }

    /// Controllers that exist.
    pub fn controllers(&self) -> impl Iterator<Item = ControllerHandle> {
        self.controllers.keys().copied()
    }

    /// The next thing to do, oldest first. Call it after every other call until it returns `None`.
    pub fn poll(&mut self) -> Option<Notice> {
        self.notices.pop_front()
    }

    /// The I/O queues of a controller are deleted and its commands have ended, after [`super::Outcome::Quiesce`]:
    /// completes the reset or shutdown, so that the host sees it in CSTS.
    pub fn quiesced(&mut self, handle: ControllerHandle) {
        if let Some(controller) = self.controllers.get_mut(&handle) {
            controller.quiesced();
        }
    }

    /// A connection of the controller is closed.
    pub fn disconnect(&mut self, handle: ControllerHandle, qid: u16) -> Disconnected {
        let Some(controller) = self.controllers.get_mut(&handle) else {
            return Disconnected::Gone;
        };
        if qid == 0 {
            controller.admin_connected = false;
            controller.deadline_ns = None;
            controller.parked.clear();
        } else {
            controller.io_queues.remove(&qid);
        }
        if controller.admin_connected {
            return Disconnected::Remains;
        }
        if controller.io_queues.is_empty() {
            self.controllers.remove(&handle);
            return Disconnected::Gone;
        }
        Disconnected::CloseIoQueues
    }

    /// When [`Target::expire`] has something to do, in the time that was passed in.
    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.controllers.values().filter_map(|controller| controller.deadline_ns).min()
    }

    /// Ends controllers whose keep alive timer has expired; [`Target::poll`] names them. One that is being reset or shut down has no such timer (Base
    /// §3.9): as long as its commands take to end, its host cannot keep it alive. It begins anew afterwards.
    pub fn expire(&mut self, now_ns: u64) {
        let busy = |c: &&mut Controller| c.deadline_ns.is_some() && c.phase != Phase::Running;
        self.controllers.values_mut().filter(busy).for_each(|controller| controller.restart_keep_alive(now_ns));
        self.close_where(|c| c.deadline_ns.is_some_and(|deadline| deadline <= now_ns));
    }

    /// Enters a failed I/O command into the error log of its controller.
    pub fn log_error(&mut self, handle: ControllerHandle, report: &ErrorReport) {
        if let Some(controller) = self.controllers.get_mut(&handle) {
            controller.log_error(report);
        }
    }

    /// Counts failed I/O commands of a controller without an entry each.
    pub fn count_errors(&mut self, handle: ControllerHandle, count: u64) {
        if let Some(controller) = self.controllers.get_mut(&handle) {
            controller.error_count += count;
        }
    }

    fn close_where(&mut self, close: impl Fn(&Controller) -> bool) {
        for (&handle, controller) in &mut self.controllers {
            if controller.admin_connected && close(controller) {
                // Once is enough, however long the transport takes.
                controller.deadline_ns = None;
                self.notices.push_back(Notice::Close { controller: handle });
            }
        }
    }

    /// Applies a change of what discovery shows, and tells the discovery controllers whose view it changes.
    fn change_discovery(&mut self, change: impl FnOnce(&mut Self)) {
        let before: Vec<_> = self
            .controllers
            .iter()
            .filter(|(_, c)| c.is_discovery())
            .map(|(&handle, c)| (handle, self.visible(&c.hostnqn, c.local)))
            .collect();
        change(self);
        self.genctr = self.genctr.wrapping_add(1);
        for (handle, view) in before {
            let changed = self.controllers.get(&handle).is_some_and(|c| self.visible(&c.hostnqn, c.local) != view);
            if changed && let Some(controller) = self.controllers.get_mut(&handle) {
                controller.raise(NoticeInfo::DISCOVERY_LOG_CHANGED, async_event_config::DISCOVERY_LOG);
                deliver(&mut self.notices, handle, controller);
            }
        }
    }

    /// A controller identifier that no controller of the subsystem has; `None` when all are in use. Identifiers are
    /// handed out in turn, so that one is not reused soon.
    pub(super) fn free_cntlid(&self, subnqn: &str, start: u16) -> Option<u16> {
        let used: BTreeSet<u16> = self.controllers.values().filter(|c| c.subnqn == subnqn).map(|c| c.cntlid).collect();
        (start..=CNTLID_MAX).chain(1..start).find(|cntlid| !used.contains(cntlid))
    }
}

/// Moves completions of Asynchronous Event Requests to the notices as far as there are requests and events.
pub(super) fn deliver(notices: &mut VecDeque<Notice>, handle: ControllerHandle, controller: &mut Controller) {
    while let Some(cqe) = controller.deliver() {
        notices.push_back(Notice::AsyncEvent { controller: handle, cqe });
    }
}
