//! `reactor --config FILE`: starts everything, waits for signals, reloads, drains.

mod disks;
mod nvme;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, mpsc};

use hugepages::{Arena, ArenaOptions, HugepagePolicy};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::cli::ServeOptions;
use super::config::{self, Change, Config, Diff, HostAccess, Hugepages, Idle, IscsiChange, Machine, Style, Subsystem};
use super::iscsi::Targets;
use super::nvme_command::state::Files;
use super::rpc::Socket;
use super::shutdown;
use super::ublk::LocalDisks;
use super::volumes::Volumes;
use super::watch::{self, Watch};
use crate::bdev::device::nvme::DiskEvent;
use crate::bdev::registry::Claim;
use crate::drain::Connected;
use crate::nvme::target::tcp::{Door, Export};
use crate::reactor;
use crate::reactor::start::Reactors;
use crate::sys::pci::{Address, Pci};
use crate::sys::{affinity, uring};

/// A failure at run time.
pub const FAILED: u8 = 1;
/// An error in the configuration.
pub const BAD_CONFIG: u8 = 2;

/// Serves or checks a configuration; the exit code of the process.
pub fn run(options: &ServeOptions) -> ExitCode {
    let machine = match Machine::detect() {
        Ok(machine) => machine,
        Err(error) => return fail(&format!("cannot ask the kernel which cores this process may use: {error}")),
    };
    let style = if std::io::stderr().is_terminal() { Style::Terminal } else { Style::Plain };
    let loaded = match config::load(&options.config, &machine, None, style) {
        Ok(loaded) => loaded,
        Err(messages) => {
            for message in messages {
                eprint!("{message}");
            }
            return ExitCode::from(BAD_CONFIG);
        }
    };
    for warning in &loaded.warnings {
        eprint!("{warning}");
    }
    if options.check {
        return ExitCode::SUCCESS;
    }
    match Server::start(loaded.config) {
        Ok(server) => server.serve(&options.config, &machine),
        Err(message) => fail(&message),
    }
}

fn fail(message: &str) -> ExitCode {
    eprintln!("reactor: {message}");
    ExitCode::from(FAILED)
}

/// What runs.
struct Server {
    config: Config,
    volumes: Volumes,
    reactors: Reactors,
    door: Option<Door>,
    targets: Targets,
    disks: LocalDisks,
    /// What holds the volumes of namespaces, by NQN and namespace.
    claims: BTreeMap<(String, u32), Claim>,
    /// As configured, and as bound.
    listening: Vec<(SocketAddr, SocketAddr)>,
    /// Until they have a thread.
    signals: Option<Signals>,
    /// What this process says of the disks that it holds.
    files: Files,
    /// What is out of service for a while, because of a command to a disk.
    out: Option<Config>,
    /// A reload waits for the end of that.
    reload_waits: bool,
    /// Disks that the kernel wants back and that wait for the end of that.
    leaving: Vec<Address>,
}

/// What the main thread is told.
enum Event {
    Signal(i32),
    /// Work that a connection to the control socket has for it, and waits for.
    Errand(Box<dyn FnOnce(&mut Server) + Send>),
    /// What an NVMe disk tells, or what becomes of it.
    Disk(Address, DiskEvent),
}

/// The DMA arena that a configuration asks for.
///
/// # Errors
/// Why there is no such memory.
pub fn arena(config: &Config) -> Result<Arena, String> {
    let options = ArenaOptions {
        size: config.memory.size as usize,
        hugepages: match config.memory.hugepages {
            Hugepages::Require => HugepagePolicy::Require,
            Hugepages::Prefer => HugepagePolicy::Prefer,
            Hugepages::Off => HugepagePolicy::Off,
        },
        numa_node: None,
    };
    let arena = Arena::new(options).map_err(|e| format!("[memory]: {e}"))?;
    if let Some(warning) = arena.warning() {
        tracing::warn!("{warning}");
    }
    Ok(arena)
}

fn hosts(access: &HostAccess) -> Option<Vec<String>> {
    match access {
        HostAccess::Any => None,
        HostAccess::Only(list) => Some(list.clone()),
    }
}

impl Server {
    fn start(config: Config) -> Result<Server, String> {
        // Signals first: one that comes during the start is not lost and ends it cleanly.
        let signals =
            Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1]).map_err(|e| format!("cannot watch for signals: {e}"))?;
        uring::probe().map_err(|e| e.to_string())?;
        if let Err(error) = affinity::raise_open_files() {
            tracing::warn!("the limit of open files cannot be raised: {error}");
        }
        let arena = arena(&config)?;
        let idle = match config.reactor.idle {
            Idle::Poll => reactor::Idle::Poll,
            Idle::Adaptive => reactor::Idle::Adaptive,
        };
        let mut reactors = Reactors::start(&config.reactor.cores, idle, arena).map_err(|e| e.to_string())?;
        let mut volumes = Volumes::new(reactors.remotes());
        if let Err(why) = volumes.open_all(&config, &mut reactors) {
            volumes.close_disks();
            return Err(why);
        }
        let disks = LocalDisks::new(Path::new(&config.file), reactors.remotes(), &config.reactor.cores);
        let targets = Targets::new(reactors.remotes());
        let (claims, listening) = (BTreeMap::new(), Vec::new());
        let mut server = Server {
            config,
            volumes,
            reactors,
            door: None,
            targets,
            disks,
            claims,
            listening,
            signals: Some(signals),
            files: Files::new(&Pci::new()),
            out: None,
            reload_waits: false,
            leaving: Vec::new(),
        };
        if let Err(why) = server.open_doors() {
            server.disks.close();
            server.volumes.close_disks();
            return Err(why);
        }
        Ok(server)
    }

    fn open_doors(&mut self) -> Result<(), String> {
        self.open_door()?;
        self.targets.start(&self.config, &self.volumes)?;
        self.disks.start(&self.config, &self.volumes)
    }

    fn open_door(&mut self) -> Result<(), String> {
        if self.config.nvmf.is_none() {
            return Ok(());
        }
        let mut door = Door::open(self.reactors.remotes()).map_err(|e| e.to_string())?;
        for subsystem in self.config.clone().subsystems() {
            let exports = self.exports(subsystem)?;
            door.add_subsystem(&subsystem.nqn, hosts(&subsystem.hosts), exports)
                .map_err(|e| format!("{}: {e}", self.config.at(subsystem.place)))?;
        }
        for listener in self.config.listeners() {
            let bound =
                door.listen(listener.address).map_err(|e| format!("{}: {e}", self.config.at(listener.place)))?;
            self.listening.push((listener.address, bound));
        }
        self.door = Some(door);
        Ok(())
    }

    /// Takes the volumes of a subsystem into use.
    fn exports(&mut self, subsystem: &Subsystem) -> Result<Vec<Export>, String> {
        subsystem.namespaces.iter().map(|ns| self.export(&subsystem.nqn, ns.nsid, &ns.bdev, ns.read_only)).collect()
    }

    fn export(&mut self, nqn: &str, nsid: u32, bdev: &str, read_only: bool) -> Result<Export, String> {
        let claim = self.volumes.claim(bdev, &format!("namespace {nsid} of {nqn}")).map_err(|e| e.to_string())?;
        let device = claim.device().clone();
        self.claims.insert((nqn.to_owned(), nsid), claim);
        Ok(Export { nsid, device, read_only })
    }

    fn end_exports(&mut self, nqn: &str) {
        self.claims.retain(|(of, _), _| of != nqn);
    }

    /// One line per export with the command that connects a host, then that all of them accept.
    fn announce(&self) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        for (_, bound) in &self.listening {
            writeln!(out, "nvme discover -t tcp -a {} -s {}", bound.ip(), bound.port())?;
            for subsystem in self.config.subsystems() {
                writeln!(out, "nvme connect -t tcp -a {} -s {} -n {}", bound.ip(), bound.port(), subsystem.nqn)?;
            }
        }
        for line in self.targets.connect_lines(&self.config) {
            writeln!(out, "{line}")?;
        }
        for path in self.disks.paths(&self.config) {
            writeln!(out, "{path}")?;
        }
        writeln!(out, "reactor: ready")?;
        out.flush()
    }

    /// Starts what tells the main thread of signals and errands.
    fn listen(&mut self) -> Result<(mpsc::Receiver<Event>, Option<Socket>), String> {
        let (sender, events) = mpsc::channel();
        let socket = match &self.config.socket {
            Some(path) => Some(Socket::listen(path, nvme::methods(sender.clone()))?),
            None => None,
        };
        let hear = sender.clone();
        // The main thread may have ended.
        let tell = move |address, event| drop(hear.send(Event::Disk(address, event)));
        self.volumes.nvme_mut().listen(Arc::new(tell));
        let mut signals = self.signals.take().ok_or("signals are watched already")?;
        let forward = move || {
            // Until the main thread has ended.
            signals.forever().all(|signal| sender.send(Event::Signal(signal)).is_ok());
        };
        let started = std::thread::Builder::new().name("signals".to_owned()).spawn(forward);
        started.map_err(|error| format!("cannot watch for signals: {error}"))?;
        Ok((events, socket))
    }

    fn serve(mut self, path: &Path, machine: &Machine) -> ExitCode {
        let (events, socket) = match self.listen() {
            Ok(listening) => listening,
            Err(why) => {
                eprintln!("reactor: {why}");
                let _ = self.shut_down();
                return ExitCode::from(FAILED);
            }
        };
        self.publish();
        // Nobody may be reading our output; that is no reason not to serve.
        if let Err(error) = self.announce() {
            tracing::warn!("the connect lines cannot be printed: {error}");
        }
        let watch = Watch::start(self.reactors.remotes());
        if let Err(error) = &watch {
            tracing::warn!("what reactors notice is not logged: {error}");
        }
        let mut growing = true;
        loop {
            if growing {
                growing = self.reactors.feed_some().unwrap_or_else(|error| {
                    tracing::warn!("the DMA arena stays smaller than configured: {error}");
                    false
                });
            }
            // A large arena takes a minute to map, and nobody who wants an end or a reload waits for that.
            let event = if growing { events.try_recv().ok() } else { events.recv().ok() };
            match event {
                None if growing => continue,
                Some(Event::Errand(errand)) => errand(&mut self),
                Some(Event::Disk(address, event)) => self.heard(address, event),
                Some(Event::Signal(SIGUSR1)) => watch::tell_counters(self.reactors.remotes()),
                Some(Event::Signal(SIGHUP)) => self.reload_waits = true,
                None | Some(Event::Signal(_)) => break,
            }
            if self.out.is_none() {
                for address in std::mem::take(&mut self.leaving) {
                    self.unplugged(address);
                }
            }
            if self.reload_waits && self.out.is_none() {
                self.reload_waits = false;
                self.reload(path, machine);
            }
            self.publish();
        }
        // Whoever asks now is told that nobody is there.
        drop((watch, events, socket));
        self.files.publish(Vec::new());
        self.shut_down()
    }

    fn shut_down(self) -> ExitCode {
        let doors: Vec<&dyn Connected> = [
            self.door.as_ref().map(|door| door as &dyn Connected),
            self.targets.door().map(|door| door as &dyn Connected),
        ]
        .into_iter()
        .flatten()
        .collect();
        shutdown::run(&doors, self.disks, self.volumes, self.reactors)
    }

    fn reload(&mut self, path: &Path, machine: &Machine) {
        let loaded = match config::load(path, machine, Some(&self.config), Style::Plain) {
            Ok(loaded) => loaded,
            Err(messages) => {
                tracing::error!("reload: nothing is changed:\n{}", messages.concat().trim_end());
                return;
            }
        };
        for warning in &loaded.warnings {
            tracing::warn!("{}", warning.trim_end());
        }
        let diff = config::diff(&self.config, &loaded.config);
        // What runs does not name a device that has not come up; that it is configured no more is seen here alone.
        let given_up = self.disks.given_up(&diff.running).into_iter().map(|bdev| Change::UblkRemoved { bdev });
        let mut steps = 0;
        let running = self.carry_out(given_up.collect(), &diff, |change, is_refused, result| {
            steps += 1;
            match result {
                Ok(()) if is_refused => tracing::warn!("reload: {change}"),
                Ok(()) => tracing::info!("reload: {change}"),
                Err(why) => tracing::error!("reload: failed: {change}: {why}"),
            }
        });
        if steps == 0 {
            tracing::info!("reload: nothing has changed");
        }
        self.config = running;
    }

    /// Takes the steps of a change, those of `first` ahead of the others, and tells how each ended and whether it was refused from the start.
    /// Returns what runs then: with what has failed as it was, so that the next reload tries again.
    fn carry_out(
        &mut self,
        first: Vec<Change>,
        diff: &Diff,
        mut tell: impl FnMut(&dyn Display, bool, &Result<(), String>),
    ) -> Config {
        let mut running = diff.running.clone();
        self.carry_out_iscsi(&diff.iscsi.before, diff, &mut running, &mut tell);
        // The first ones hold volumes.
        for change in first.iter().chain(&diff.changes) {
            let result = self.apply(change, &diff.running);
            if result.is_err() {
                change.undo(&mut running, &self.config);
            }
            tell(change, matches!(change, Change::Refused { .. }), &result);
        }
        self.carry_out_iscsi(&diff.iscsi.after, diff, &mut running, &mut tell);
        running
    }

    /// The same for one part of the steps at the iSCSI door.
    fn carry_out_iscsi(
        &mut self,
        steps: &[IscsiChange],
        diff: &Diff,
        running: &mut Config,
        tell: &mut impl FnMut(&dyn Display, bool, &Result<(), String>),
    ) {
        for change in steps {
            let result = self.targets.apply(change, &diff.running, &self.volumes);
            if result.is_err() {
                change.undo(running, &self.config);
            }
            tell(change, false, &result);
        }
    }

    fn door(&mut self) -> Result<&mut Door, String> {
        if self.door.is_none() {
            self.door = Some(Door::open(self.reactors.remotes()).map_err(|e| e.to_string())?);
        }
        self.door.as_mut().ok_or_else(|| "there is no NVMe/TCP door".to_owned())
    }

    /// Makes a volume larger, and tells the doors.
    fn grow(&mut self, name: &str, size: u64) -> Result<(), String> {
        self.volumes.grow(name, size).map_err(|e| e.to_string())?;
        let id = self.volumes.get(name).ok_or("it is not open")?.common().id();
        if let Some(door) = &mut self.door {
            door.resized(id).map_err(|e| e.to_string())?;
        }
        self.targets.resized(id)?;
        // The volume has grown; that its local disk does not know is no reason to say it has not.
        if let Err(why) = self.disks.resized(name) {
            tracing::warn!("volume \"{name}\" has grown: {why}");
        }
        Ok(())
    }

    fn apply(&mut self, change: &Change, new: &Config) -> Result<(), String> {
        match change {
            Change::Refused { .. } => Ok(()),
            Change::BdevAdded { name } => {
                let bdev = new.bdev(name).ok_or("it is not in the configuration")?;
                self.volumes.open(bdev, &mut self.reactors).map_err(|e| e.to_string())
            }
            Change::BdevGrown { name, to, .. } => self.grow(name, *to),
            Change::BdevRemoved { name } => self.volumes.remove(name).map_err(|e| e.to_string()),
            Change::ListenerRemoved { address } => {
                let at = self.listening.iter().position(|(configured, _)| configured == address);
                let at = at.ok_or("nobody listens there")?;
                let (_, bound) = self.listening[at];
                self.door()?.unlisten(bound).map_err(|e| e.to_string())?;
                self.listening.remove(at);
                Ok(())
            }
            Change::ListenerAdded { address } => {
                let bound = self.door()?.listen(*address).map_err(|e| e.to_string())?;
                self.listening.push((*address, bound));
                Ok(())
            }
            Change::SubsystemRemoved { nqn } => {
                self.door()?.remove_subsystem(nqn).map_err(|e| e.to_string())?;
                self.end_exports(nqn);
                Ok(())
            }
            Change::SubsystemAdded { nqn } => {
                let subsystem = new.subsystems().iter().find(|s| s.nqn == *nqn).ok_or("it is not configured")?;
                let added = self.exports(subsystem).and_then(|exports| {
                    self.door()?.add_subsystem(nqn, hosts(&subsystem.hosts), exports).map_err(|e| e.to_string())
                });
                added.inspect_err(|_| self.end_exports(nqn))
            }
            Change::NamespaceRemoved { nqn, nsid } => {
                self.door()?.remove_namespace(nqn, *nsid).map_err(|e| e.to_string())?;
                self.claims.remove(&(nqn.clone(), *nsid));
                Ok(())
            }
            Change::NamespaceAdded { nqn, nsid, bdev, read_only } => {
                let export = self.export(nqn, *nsid, bdev, *read_only)?;
                let added = self.door()?.add_namespace(nqn, export).map_err(|e| e.to_string());
                added.inspect_err(|_| drop(self.claims.remove(&(nqn.clone(), *nsid))))
            }
            Change::UblkAdded { bdev } => {
                let ublk = new.ublk_of(bdev).ok_or("it is not configured")?;
                self.disks.add(new, ublk, &self.volumes)
            }
            Change::UblkRemoved { bdev } => self.disks.remove(bdev),
            Change::HostsChanged { nqn, hosts: access } => {
                self.door()?.set_hosts(nqn, hosts(access)).map_err(|e| e.to_string())
            }
        }
    }
}
