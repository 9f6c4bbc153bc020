//! The library's entry: a program serves devices of its own, without a configuration file.
//!
//! ```no_run
//! use reactor::serve::{Disk, IoStatus, Options, Server, Ublk};
//!
//! struct Zeros;
//!
//! impl Disk for Zeros {
//!     fn size(&self) -> u64 {
//!         1 << 30
//!     }
//!     fn read(&self, _offset: u64, into: &mut [u8]) -> Result<(), IoStatus> {
//!         into.fill(0);
//!         Ok(())
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut server = Server::create(Options::default())?;
//! server.add("zeros", Zeros)?;
//! server.nvmf("127.0.0.1:4420".parse()?, "nqn.2026-11.org.example:zeros", "zeros")?;
//! server.ublk("zeros", Ublk::default())?;
//! server.start()?;
//! println!("{}", server.exports().join("\n"));
//! // ... until the program has enough
//! server.stop()?;
//! server.close()?;
//! # Ok(())
//! # }
//! ```
//! # The life of a server
//! ```text
//!   create   reactors turn on their cores, memory is there       add: devices; nvmf, ublk: the doors they are to have
//!   start    hosts may connect
//!   stop     hosts are answered and sent away, what was acknowledged is durable
//!   close    the reactors have ended, devices are dropped
//! ```
//! Each step may be called again and does what is left of it to do: nothing, once it is done. They go forward only: a server that
//! was stopped does not start again. `close` stops first what still runs, and so does dropping.
//!
//! A reactor that panics, by a bug here or in a device, does not come back: what it had in flight is lost, and the volumes of other
//! reactors may wait for it. Whichever of `stop` and `close` comes next takes down all that is left, and says so by [`Error::Panicked`].
//!
//! # Threads
//! All of it is for ordinary threads, never for a reactor: the calls wait for reactors, and for the kernel. No signal is handled
//! here, and nothing written to standard output; what is worth a line goes to `tracing`, to whoever subscribes to it. One
//! process may have several servers, on different cores.
//!
//! # Devices
//! What answers at once, by computation or from memory, is a [`Disk`]. Whatever else there is implements
//! [`BlockDevice`], or is one of [`crate::bdev::device`] and [`crate::bdev::layer`]: [`Server::add_device`]
//! takes all of them. [`Server::nvme`] adds a namespace of an NVMe disk.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hugepages::{Arena, ArenaError, ArenaOptions};
use uuid::Uuid;

use crate::bdev::device::{custom, nvme};
use crate::bdev::registry::{Claim, Mode, Registry, RegistryError};
use crate::bdev::{BlockDevice, DeviceError};
use crate::drain;
use crate::limits::{REACTORS_MAX, UBLK_DEPTH, UBLK_DEPTH_MAX, UBLK_IDS, UBLK_QUEUES_MAX};
use crate::nvme::spec::check_nqn;
use crate::nvme::target::tcp;
use crate::reactor::Idle;
use crate::reactor::mailbox::Remote;
use crate::reactor::start::{Reactors, StartError};
use crate::sys::affinity;
use crate::sys::uring::{self, SetupError};
use crate::ublk;
use crate::util::Bad;

pub use crate::bdev::device::custom::Disk;
pub use crate::bdev::device::nvme::{Wanted as NvmeNamespace, Which as NvmeDisk};
pub use crate::reactor::io::IoStatus;
pub use crate::sys::pci::Address as PciAddress;
pub use crate::ublk::Mode as UblkMode;
pub use hugepages::HugepagePolicy;

/// Namespace of the UUIDs of devices that come without one: apart from that of volumes in configuration files.
const NAME_SPACE: Uuid = Uuid::from_u128(0x3a86_61d4_0c0f_4e6b_8b57_26f4_90de_7c15);

/// Hosts and what is in flight have this long to end.
const END: Duration = Duration::from_millis(3200);
/// And a final flush this long.
const FLUSH: Duration = Duration::from_secs(2);
/// Where a reactor has panicked, the others have this long to end: their rings wait two seconds for what the kernel has in hand.
const REACTORS: Duration = Duration::from_secs(5);

/// What a server is made from.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cores to run a reactor on each. None: the lowest core that this process may use.
    pub cores: Vec<usize>,
    /// Spin always, or sleep when there is nothing to do.
    pub idle: Idle,
    /// Bytes of memory for data on its way; that of devices is their own. 256 MiB by default.
    pub memory: usize,
    /// What pages that is to have. Those that the machine has, by default.
    pub hugepages: HugepagePolicy,
}

impl Default for Options {
    fn default() -> Options {
        Options { cores: Vec::new(), idle: Idle::Adaptive, memory: 256 << 20, hugepages: HugepagePolicy::Prefer }
    }
}

/// How a device is to be a local block device.
#[derive(Clone, Debug)]
pub struct Ublk {
    /// The number N of /dev/ublkbN; `None`: one that is free.
    pub id: Option<u32>,
    /// Queues; `None`: one for each reactor. The kernel grants at most one for each processor.
    pub queues: Option<u16>,
    /// Commands in flight on each; 256 by default.
    pub depth: u16,
    /// How data travels; the best that the kernel has, by default.
    pub mode: UblkMode,
    /// Writes are refused, whatever the device allows.
    pub read_only: bool,
}

impl Default for Ublk {
    fn default() -> Ublk {
        Ublk { id: None, queues: None, depth: UBLK_DEPTH, mode: UblkMode::Auto, read_only: false }
    }
}

/// Where in its life a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reactors turn, nobody is served.
    Created,
    /// Hosts are served.
    Started,
    /// Hosts are served no more.
    Stopped,
    /// Nothing is left.
    Closed,
}

/// Why a server could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no io_uring for us.
    #[error("{0}")]
    Kernel(#[from] SetupError),
    /// More cores than a server may have.
    #[error("{0} cores: a server has at most {REACTORS_MAX}")]
    TooManyCores(usize),
    /// The kernel does not say which cores there are.
    #[error("cannot ask the kernel which cores this process may use: {0}")]
    Cores(io::Error),
    /// There is no such memory.
    #[error("memory for data: {0}")]
    Memory(#[from] ArenaError),
    /// Reactors do not start.
    #[error("{0}")]
    Reactors(#[from] StartError),
    /// A name that no host could ask for.
    #[error("{0}")]
    Nqn(#[from] Bad),
    /// A local block device with more than there is.
    #[error(
        "volume \"{name}\": a local block device has 1 to {UBLK_QUEUES_MAX} queues, a depth of 1 to {UBLK_DEPTH_MAX}, and a number below {UBLK_IDS}"
    )]
    UblkLimits {
        /// The volume.
        name: String,
    },
    /// A device is not as it has to be.
    #[error("{0}")]
    Device(#[from] DeviceError),
    /// There is a device of that name, there is none, it cannot be a name, or the device is in use otherwise.
    #[error("{0}")]
    Volume(#[from] RegistryError),
    /// One local block device for each volume.
    #[error("volume \"{0}\" has a local block device already")]
    Twice(String),
    /// NVMe/TCP: a port that is in use, a name that is none.
    #[error("{0}")]
    Nvmf(#[from] tcp::DoorError),
    /// There is no ublk, or no right to it.
    #[error("no local block devices: {0}")]
    NoUblk(#[from] ublk::control::Unavailable),
    /// A local block device does not come, or does not go.
    #[error("{0}")]
    Ublk(#[from] ublk::DoorError),
    /// Too late for that.
    #[error("cannot {what}: the server is {stage:?}")]
    Stage {
        /// What was asked.
        what: &'static str,
        /// What the server is.
        stage: Stage,
    },
    /// I/O of these, volumes and reactors, does not end. The server keeps everything that such I/O may still touch, and stopping
    /// it may be tried again.
    #[error("no end of what is in flight on: {}", .0.join(", "))]
    Busy(Vec<String>),
    /// A bug, here or in a device: reactors have panicked, and what they had in flight is lost. Nothing is left of the server but
    /// what is named.
    #[error("a panic has ended reactor {}{}", numbers(.reactors), .unsure.iter().map(|what| format!("; {what}")).collect::<String>())]
    Panicked {
        /// Those that have.
        reactors: Vec<u16>,
        /// What did not come to a good end with them, each in words.
        unsure: Vec<String>,
    },
    /// What was acknowledged may not be durable.
    #[error("volume \"{name}\": the final flush failed: {status:?}")]
    Flush {
        /// The volume.
        name: String,
        /// How.
        status: IoStatus,
    },
    /// An NVMe disk did not shut down in order. It is closed nevertheless.
    #[error("{0}")]
    Disk(String),
    /// A bug, here or in a device: memory that is lost.
    #[error("{0} buffers did not come home: this is a bug")]
    Leaked(usize),
}

fn numbers(reactors: &[u16]) -> String {
    reactors.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

/// A subsystem: its listeners' addresses as asked for, and its volumes in the order of their namespaces.
struct Subsystem {
    nqn: String,
    volumes: Vec<String>,
}

/// See the module's head.
pub struct Server {
    stage: Stage,
    reactors: Option<Reactors>,
    places: Vec<ublk::Place>,
    registry: Registry,
    /// Addresses as asked for, and once it has started, as bound.
    listen: Vec<SocketAddr>,
    bound: Vec<SocketAddr>,
    subsystems: Vec<Subsystem>,
    disks: Vec<(String, Ublk)>,
    nvmf_door: Option<tcp::Door>,
    /// What a stop met that did not come to its end: told by the one that does.
    untold: Option<Error>,
    ublk_door: Option<ublk::Door>,
    nvme: nvme::Disks,
    /// What holds the devices that are served.
    claims: Vec<Claim>,
}

impl Server {
    /// Starts reactors, each on its core. Nobody is served yet.
    ///
    /// # Errors
    /// If the kernel, memory or a core says no; nothing is left running then.
    pub fn create(options: Options) -> Result<Server, Error> {
        uring::probe()?;
        if let Err(error) = affinity::raise_open_files() {
            tracing::warn!("the limit of open files cannot be raised: {error}");
        }
        let mut cores = options.cores;
        if cores.is_empty() {
            let lowest = affinity::allowed_cores().map_err(Error::Cores)?;
            cores.extend(lowest.first());
        }
        if cores.len() > REACTORS_MAX {
            return Err(Error::TooManyCores(cores.len()));
        }
        let arena = Arena::new(ArenaOptions { size: options.memory, hugepages: options.hugepages, numa_node: None })?;
        if let Some(warning) = arena.warning() {
            tracing::warn!("{warning}");
        }
        let reactors = Reactors::start(&cores, options.idle, arena)?;
        let place = |(remote, core): (&Remote, usize)| ublk::Place { remote: remote.clone(), core };
        Ok(Server {
            stage: Stage::Created,
            places: reactors.remotes().iter().zip(cores).map(place).collect(),
            registry: Registry::new(reactors.remotes().to_vec()),
            reactors: Some(reactors),
            listen: Vec::new(),
            bound: Vec::new(),
            subsystems: Vec::new(),
            disks: Vec::new(),
            nvmf_door: None,
            untold: None,
            ublk_door: None,
            nvme: nvme::Disks::new(),
            claims: Vec::new(),
        })
    }

    /// Where in its life it is.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    fn expect_created(&self, what: &'static str) -> Result<(), Error> {
        if self.stage == Stage::Created { Ok(()) } else { Err(Error::Stage { what, stage: self.stage }) }
    }

    /// Adds a disk. Its identity follows from its name: the same name is the same disk to a host, wherever it comes from. A program
    /// that needs another makes a [`custom::Custom`] and adds that.
    ///
    /// # Errors
    /// If the name is taken or cannot be one, or there is no device of such a size; or the server was started.
    pub fn add(&mut self, name: &str, disk: impl Disk) -> Result<&mut Server, Error> {
        let uuid = Uuid::new_v5(&NAME_SPACE, name.as_bytes()).into_bytes();
        let options = custom::Options { name: name.to_owned(), uuid, home: tcp::HOME };
        let device = custom::Custom::new(options, disk)?;
        self.add_device(Arc::new(device))
    }

    /// Adds any block device, under the name that it has.
    ///
    /// # Errors
    /// If the name is taken or cannot be one, or its home is no reactor; or the server was started.
    pub fn add_device(&mut self, device: Arc<dyn BlockDevice>) -> Result<&mut Server, Error> {
        self.expect_created("add a volume")?;
        self.registry.add(device, Vec::new())?;
        Ok(self)
    }

    /// Adds a namespace of an NVMe disk, as its mode says: by VFIO, or by way of the kernel's driver. A disk by VFIO is shut down when the
    /// server is closed.
    ///
    /// # Errors
    /// If it cannot be had, with the remedy where there is one, or the name is taken; or the server was started.
    pub fn nvme(&mut self, name: &str, wanted: &NvmeNamespace) -> Result<&mut Server, Error> {
        self.expect_created("add a volume")?;
        let reactors = self.reactors.as_mut().ok_or(Error::Stage { what: "add a volume", stage: self.stage })?;
        let device = self.nvme.open(reactors, name, wanted)?;
        if let Err(taken) = self.registry.add(device, Vec::new()) {
            self.nvme.release(name)?;
            return Err(taken.into());
        }
        Ok(self)
    }

    /// Serves a volume by NVMe/TCP, as the next namespace (1, 2, ...) of the subsystem `nqn`, to every host that comes. Listeners and
    /// subsystems are there once, however often they are named, and every subsystem is reached at every listener. Port 0 takes a
    /// free one, which [`Server::addresses`] tells.
    ///
    /// # Errors
    /// If there is no such volume, or no NQN of that form; or the server was started. Whether the address is free, [`Server::start`]
    /// says.
    pub fn nvmf(&mut self, listen: SocketAddr, nqn: &str, volume: &str) -> Result<&mut Server, Error> {
        self.expect_created("serve another volume")?;
        self.registry.get(volume)?;
        check_nqn(nqn)?;
        if !self.listen.contains(&listen) {
            self.listen.push(listen);
        }
        match self.subsystems.iter_mut().find(|subsystem| subsystem.nqn == nqn) {
            Some(subsystem) => subsystem.volumes.push(volume.to_owned()),
            None => self.subsystems.push(Subsystem { nqn: nqn.to_owned(), volumes: vec![volume.to_owned()] }),
        }
        Ok(self)
    }

    /// Serves a volume as a local block device. It goes with the server: who has it open when that stops gets errors.
    ///
    /// # Errors
    /// If there is no such volume, it has such a device, or `options` ask for more than there is; or the server was started. Whether
    /// there is ublk, [`Server::start`] says.
    pub fn ublk(&mut self, volume: &str, options: Ublk) -> Result<&mut Server, Error> {
        self.expect_created("serve another volume")?;
        self.registry.get(volume)?;
        if self.disks.iter().any(|(name, _)| name == volume) {
            return Err(Error::Twice(volume.to_owned()));
        }
        let queues = options.queues.is_none_or(|queues| (1..=UBLK_QUEUES_MAX).contains(&queues));
        let id = options.id.is_none_or(|id| id < UBLK_IDS);
        if !queues || !id || !(1..=UBLK_DEPTH_MAX).contains(&options.depth) {
            return Err(Error::UblkLimits { name: volume.to_owned() });
        }
        self.disks.push((volume.to_owned(), options));
        Ok(self)
    }

    /// Opens all doors: when this returns, every volume is served.
    ///
    /// # Errors
    /// The first door that does not open. Those that did are closed again, and the server is stopped.
    pub fn start(&mut self) -> Result<(), Error> {
        match self.stage {
            Stage::Started => return Ok(()),
            Stage::Created => {}
            Stage::Stopped | Stage::Closed => return Err(Error::Stage { what: "start again", stage: self.stage }),
        }
        self.stage = Stage::Started;
        if let Err(error) = self.open_nvmf().and_then(|()| self.open_ublk()) {
            if let Err(second) = self.stop() {
                tracing::error!("{second}");
            }
            return Err(error);
        }
        if let Some(Err(error)) = self.reactors.as_mut().map(Reactors::feed) {
            tracing::warn!("memory for data stays smaller than asked for: {error}");
        }
        Ok(())
    }

    fn open_nvmf(&mut self) -> Result<(), Error> {
        if self.subsystems.is_empty() {
            return Ok(());
        }
        let mut door = tcp::Door::open(self.remotes())?;
        for Subsystem { nqn, volumes } in &self.subsystems {
            let mut exports = Vec::new();
            for (nsid, volume) in (1..).zip(volumes) {
                let claim = self.registry.claim(volume, Mode::Shared, &format!("namespace {nsid} of {nqn}"))?;
                exports.push(tcp::Export { nsid, device: claim.device().clone(), read_only: false });
                self.claims.push(claim);
            }
            door.add_subsystem(nqn, None, exports)?;
        }
        // Kept from here on: what it has opened is to be closed.
        let door = self.nvmf_door.insert(door);
        for &address in &self.listen {
            self.bound.push(door.listen(address)?);
        }
        Ok(())
    }

    fn open_ublk(&mut self) -> Result<(), Error> {
        if self.disks.is_empty() {
            return Ok(());
        }
        // What a run of this program that was killed has left behind is found by the program's name.
        let instance = std::env::current_exe().unwrap_or_default().display().to_string();
        let door = ublk::Door::open(self.places.clone(), &instance)?;
        let door = self.ublk_door.insert(door);
        let names: Vec<&str> = self.disks.iter().map(|(name, _)| name.as_str()).collect();
        door.sweep(&names);
        for (name, wanted) in &self.disks {
            let claim = self.registry.claim(name, Mode::Shared, "its local block device")?;
            door.add(ublk::Options {
                name: name.clone(),
                device: claim.device().clone(),
                backing: String::new(),
                id: wanted.id,
                queues: wanted.queues.unwrap_or(self.places.len() as u16),
                depth: wanted.depth,
                mode: wanted.mode,
                recover: false,
                read_only: wanted.read_only,
            })?;
            self.claims.push(claim);
        }
        Ok(())
    }

    fn remotes(&self) -> &[Remote] {
        self.reactors.as_ref().map_or(&[], Reactors::remotes)
    }

    /// The addresses that hosts reach the server at, in the order in which they were first asked for.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.bound
    }

    /// What is served, a line each: for NVMe/TCP the command that connects a host, for a local block device its path.
    pub fn exports(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for bound in &self.bound {
            for Subsystem { nqn, .. } in &self.subsystems {
                lines.push(format!("nvme connect -t tcp -a {} -s {} -n {nqn}", bound.ip(), bound.port()));
            }
        }
        let door = self.ublk_door.as_ref();
        let ids = self.disks.iter().filter_map(|(name, _)| door?.id(name));
        lines.extend(ids.map(|id| format!("/dev/ublkb{id}")));
        lines
    }

    /// Closes all doors: hosts get the answers to what they have asked, then their connections end, local block devices go, and what
    /// was acknowledged is made durable. Takes a few seconds at most, unless a device is stuck.
    ///
    /// # Errors
    /// [`Error::Busy`] if I/O does not end: then stopping may be tried again. Any other error is told once, and the server is
    /// stopped.
    pub fn stop(&mut self) -> Result<(), Error> {
        match self.stage {
            Stage::Created | Stage::Started => {}
            Stage::Stopped | Stage::Closed => return Ok(()),
        }
        if self.panicked().is_empty() {
            let stopped = self.stop_in_order();
            // What it waits for may be with a reactor that has panicked since.
            if !matches!(stopped, Err(Error::Busy(_))) || self.panicked().is_empty() {
                return stopped;
            }
        }
        Err(self.take_down())
    }

    /// Reactors that nobody has stopped, and have ended.
    fn panicked(&self) -> Vec<u16> {
        self.remotes().iter().filter(|remote| remote.has_ended()).map(Remote::id).collect()
    }

    fn doors(&self) -> Vec<&dyn drain::Connected> {
        self.nvmf_door.iter().map(|door| door as &dyn drain::Connected).collect()
    }

    /// The end of a server without all its reactors: as much of an orderly one as those that are left can do.
    fn take_down(&mut self) -> Error {
        let reactors = self.panicked();
        let mut unsure: Vec<String> = self.untold.take().iter().map(Error::to_string).collect();
        // Nothing is acknowledged after the final flush.
        self.ublk_door.iter().for_each(ublk::Door::hold);
        let living: Vec<Remote> = self.remotes().iter().filter(|remote| !remote.has_ended()).cloned().collect();
        let busy = drain::drain(&self.doors(), &living, END);
        unsure.extend(busy.into_iter().map(|name| format!("no end of what was in flight on {name}")));
        for (name, status) in drain::flush(&self.registry.devices(), self.remotes(), FLUSH) {
            let why = status.map_or("did not end".to_owned(), |status| format!("failed: {status:?}"));
            unsure.push(format!("volume \"{name}\": the final flush {why}"));
        }
        let stuck = self.reactors.take().map(|reactors| reactors.stop_within(REACTORS)).unwrap_or_default();
        unsure.extend(stuck.iter().map(|id| format!("reactor {id} does not end, and keeps its memory")));
        // Requests that a reactor had in hand end when nobody has the character device open any more.
        for (_, _, end) in self.ublk_door.take().map(|mut door| door.close(true)).unwrap_or_default() {
            unsure.extend(end.err().map(|error| error.to_string()));
        }
        self.forget_exports();
        Error::Panicked { reactors, unsure }
    }

    fn stop_in_order(&mut self) -> Result<(), Error> {
        let mut first = self.untold.take().map_or(Ok(()), Err);
        for (_, _, end) in self.ublk_door.take().map(|mut door| door.close(true)).unwrap_or_default() {
            first = first.and(end.map(drop).map_err(Error::from));
        }
        let mut busy = drain::drain(&self.doors(), self.remotes(), END);
        if busy.is_empty() {
            for (name, status) in drain::flush(&self.registry.devices(), self.remotes(), FLUSH) {
                match status {
                    Some(status) => first = first.and(Err(Error::Flush { name, status })),
                    None => drop(busy.insert(format!("volume \"{name}\""))),
                }
            }
        }
        if !busy.is_empty() {
            self.untold = first.err();
            return Err(Error::Busy(busy.into_iter().collect()));
        }
        self.forget_exports();
        first
    }

    fn forget_exports(&mut self) {
        self.nvmf_door = None;
        self.bound.clear();
        self.claims.clear();
        self.stage = Stage::Stopped;
    }

    /// Ends the reactors, and drops the devices. Stops first what has not been stopped.
    ///
    /// # Errors
    /// As [`Server::stop`]: if that leaves the server as it is, the reactors still turn, because I/O in flight owns its memory, and
    /// closing may be tried again. Any other error is told once, and the server is closed.
    pub fn close(&mut self) -> Result<(), Error> {
        let stopped = self.stop();
        if self.stage != Stage::Stopped {
            return stopped;
        }
        let panicked = self.panicked();
        let mut disks = self.nvme.close_all();
        let leaked = self.reactors.take().map_or(0, Reactors::stop);
        self.places.clear();
        self.registry = Registry::new(Vec::new());
        self.stage = Stage::Closed;
        stopped?;
        if !panicked.is_empty() {
            return Err(Error::Panicked { reactors: panicked, unsure: Vec::new() });
        }
        if let Some(first) = disks.pop() {
            return Err(Error::Disk(first));
        }
        if leaked > 0 { Err(Error::Leaked(leaked)) } else { Ok(()) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Err(error) = self.close() else { return };
        tracing::error!("{error}");
        // Its I/O still owns its memory, and the kernel may write there: the reactors go on until the process ends.
        if let Some(reactors) = self.reactors.take() {
            std::mem::forget(reactors);
        }
    }
}

#[cfg(test)]
mod tests;
