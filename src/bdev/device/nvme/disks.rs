//! NVMe disks of this machine that are open, by VFIO or by way of the kernel's driver.
//!
//! A disk is opened with the first of its volumes and closed with the last. All share one I/O address space, in which the memory of
//! the reactors is from the first disk on.
//!
//! For control threads: opening and closing wait for the kernel and the controller.

mod disk;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::kernel::{self, KernelVolume, Opening};
use super::told::{self, Watched};
use super::{Admin, Became, DiskEvent, Nvme, NvmeDrive, Tell};
use crate::bdev::{BlockDevice, DeviceError};
use crate::limits::{NVME_DEPTH, NVME_TIMEOUT_S};
use crate::nvme::pcie::{ControllerError, ControllerOptions, DriveOptions, NamespaceInfo, VfioPort};
use crate::nvme::spec::{IdentifyController, InterruptCoalescing};
use crate::reactor::mailbox::Remote;
use crate::reactor::start::Reactors;
use crate::sys::pci::{Address, Function, Pci, PciError};
use crate::sys::tsc::monotonic_ns;
use crate::sys::vfio::{Container, Device, DmaSpace, VfioError};

/// What was closed is let go of within this: reactors drop what they have of it in their next turns.
const LET_GO: Duration = Duration::from_secs(2);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// The kernel's driver.
const KERNEL: &str = "nvme";

/// How a disk is named.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Which {
    /// By its place.
    Pci(Address),
    /// By its serial number, wherever it is. Of several controllers with one the first that the kernel's driver has, unless the mode is
    /// [`Mode::Vfio`]; else the first that is bound to vfio-pci.
    Serial(String),
}

/// By whose driver a disk is driven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// By this program's, if the disk is bound to vfio-pci; else by the kernel's, by passthrough or its block device.
    #[default]
    Auto,
    /// By this program's.
    Vfio,
    /// By the kernel's.
    Kernel,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Auto => "auto",
            Mode::Vfio => "vfio",
            Mode::Kernel => "kernel",
        })
    }
}

impl fmt::Display for Which {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Which::Pci(address) => address.fmt(f),
            Which::Serial(serial) => write!(f, "serial {serial}"),
        }
    }
}

/// How a disk is driven: the same for all volumes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Most commands in flight on a queue: 2 to [`NVME_DEPTH_MAX`](crate::limits::NVME_DEPTH_MAX).
    pub depth: u16,
    /// How long an I/O may take before it is aborted.
    pub timeout: Duration,
    /// Submission queues lie in the controller memory buffer, if there is one. By VFIO alone.
    pub cmb: bool,
    /// How many completions an interrupt waits for, and how long. By VFIO alone.
    pub coalescing: Option<InterruptCoalescing>,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning { depth: NVME_DEPTH, timeout: Duration::from_secs(NVME_TIMEOUT_S), cmb: false, coalescing: None }
    }
}

impl fmt::Display for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "depth {}, timeout {:?}, cmb {}, ", self.depth, self.timeout, self.cmb)?;
        match self.coalescing {
            Some(its) => write!(f, "coalesce {} and coalesce_us {}", its.completions(), its.micros()),
            None => write!(f, "no coalesce"),
        }
    }
}

/// A namespace of a disk, and how the disk is to be driven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The disk.
    pub disk: Which,
    /// Namespace identifier; `None`: the only one that can be used.
    pub nsid: Option<u32>,
    /// By whose driver.
    pub mode: Mode,
    /// How.
    pub tuning: Tuning,
    /// What the size must be, in bytes, if that is to be checked.
    pub size: Option<u64>,
    /// What the block size must be, in bytes, if that is to be checked.
    pub block_size: Option<u32>,
}

impl Wanted {
    /// The only namespace of a disk that can be used, driven as usual.
    pub fn new(disk: Which) -> Wanted {
        Wanted { disk, nsid: None, mode: Mode::Auto, tuning: Tuning::default(), size: None, block_size: None }
    }
}

/// The disks that this process has open. None is closed by dropping: see [`Disks::close_all`].
#[derive(Default)]
pub struct Disks {
    pci: Pci,
    reach: Option<(Arc<Container>, Option<Arc<DmaSpace>>)>,
    open: Vec<Disk>,
    /// Volumes by way of the kernel's driver, by name: the block device of each.
    kernel: BTreeMap<String, String>,
    /// Who hears what disks tell.
    tell: Option<Tell>,
}

/// An open disk.
struct Disk {
    address: Address,
    port: VfioPort,
    home: Remote,
    drive: Arc<NvmeDrive<VfioPort>>,
    tuning: Tuning,
    /// By volume: the namespace that it is.
    volumes: BTreeMap<String, u32>,
    /// By volume: the block device of its namespace, where the kernel has that as well, by another controller.
    claims: BTreeMap<String, File>,
    /// It is open for commands alone: see [`Disks::visit`].
    visited: bool,
    /// Hears whether the kernel wants it back.
    watched: Option<Watched>,
}

/// The way to an open disk of this machine.
pub type DiskAdmin = Admin<VfioPort>;

/// What an open disk is.
#[derive(Clone, Debug)]
pub struct Open {
    /// Where it is.
    pub address: Address,
    /// What its controller says of itself.
    pub identity: IdentifyController,
    /// Its active namespaces, and the volumes that they are.
    pub namespaces: Vec<(NamespaceInfo, Option<String>)>,
}

pub(super) fn refused(why: impl fmt::Display) -> DeviceError {
    DeviceError::Refused(why.to_string())
}

impl Disks {
    /// None.
    pub fn new() -> Disks {
        Disks::default()
    }

    /// Opens a volume `name`, and its disk if no other volume has it open. The memory of `reactors` is mapped for disks from the
    /// first one on, and the first reactor is the home of all.
    ///
    /// # Errors
    /// Why it cannot be had, with the remedy where there is one. Nothing is open then that was not before.
    pub fn open(
        &mut self,
        reactors: &mut Reactors,
        name: &str,
        wanted: &Wanted,
    ) -> Result<Arc<dyn BlockDevice>, DeviceError> {
        if self.kernel.contains_key(name) || self.open.iter().any(|disk| disk.volumes.contains_key(name)) {
            return Err(refused(format!("there is a volume \"{name}\" already")));
        }
        if let Some(function) = self.of_the_kernel(wanted)? {
            return self.open_by_kernel(reactors, name, wanted, &function);
        }
        let place = self.find(reactors, wanted)?;
        let disk = &mut self.open[place];
        let made = disk.volume(&self.pci, name, wanted);
        if made.is_err() && disk.volumes.is_empty() {
            self.close_at(place).unwrap_or_else(|why| tracing::error!("{why}"));
        }
        made
    }

    /// The volume `name` is no more: every reactor has dropped its channels. With the last volume of a disk the disk is closed. A
    /// name that is none of these volumes changes nothing.
    ///
    /// # Errors
    /// If the disk did not shut down in order. It is closed nevertheless, and unless the error says so it does no DMA.
    pub fn release(&mut self, name: &str) -> Result<(), DeviceError> {
        self.kernel.remove(name);
        let Some(place) = self.open.iter().position(|disk| disk.volumes.contains_key(name)) else { return Ok(()) };
        self.open[place].volumes.remove(name);
        self.open[place].claims.remove(name);
        if self.open[place].volumes.is_empty() { self.close_at(place) } else { Ok(()) }
    }

    /// Shuts all disks down, which writes their caches back. To be called while the reactors turn, when nobody uses a volume any
    /// more; I/O that there is nevertheless ends with [`Gone`](crate::reactor::io::IoStatus::Gone). Returns what went wrong, a
    /// sentence each.
    pub fn close_all(&mut self) -> Vec<String> {
        self.kernel.clear();
        self.open.drain(..).filter_map(|disk| disk.close().err()).map(|error| error.to_string()).collect()
    }

    /// Has somebody hear what disks tell, those that are open and those to come.
    pub fn listen(&mut self, tell: Tell) {
        self.tell = Some(tell.clone());
        for disk in &mut self.open {
            disk.listen(&tell);
        }
    }

    /// What has become of the volumes of a disk whose namespaces are these now.
    pub fn became(&self, address: Address, now: &[NamespaceInfo]) -> Vec<(String, Became)> {
        let disks = self.open.iter().filter(|disk| disk.address == address && !disk.visited);
        disks
            .flat_map(|disk| {
                let before = disk.drive.namespaces();
                disk.volumes.iter().map(|(name, nsid)| (name.clone(), told::became(*nsid, before, now)))
            })
            .collect()
    }

    /// The device of a disk, for [`Disks::let_go`].
    pub fn device_of(&self, address: Address) -> Option<Weak<Device>> {
        self.open.iter().find(|disk| disk.address == address).map(|disk| Arc::downgrade(disk.port.device()))
    }

    /// Gives a disk up whose volumes are of no use any more: it is closed, if it is open still, and its device is taken away from whoever holds
    /// on to it. I/O that there is ends with [`Gone`](crate::reactor::io::IoStatus::Gone), and the kernel has the disk.
    ///
    /// # Errors
    /// If it did not shut down in order, or the kernel may not have it.
    pub fn let_go(&mut self, address: Address, device: &Weak<Device>) -> Result<(), DeviceError> {
        let place = self.open.iter().position(|disk| disk.address == address);
        let disk = place.map(|place| self.open.remove(place));
        let way = disk.as_ref().map(|disk| (disk.home.clone(), disk.drive.clone()));
        let closed = disk.map_or(Ok(()), Disk::close);
        let Some(device) = device.upgrade() else { return closed };
        device.let_go().map_err(refused)?;
        if let (Err(_), Some((home, drive))) = (&closed, way) {
            // What could not be ended before can be now.
            home.send(Box::new(move |reactor| {
                let here = reactor.clone();
                reactor.spawn("nvme close", async move { drop(drive.close(&here).await) });
            }));
        }
        closed
    }

    /// The disks that are open, but for those that are visited.
    pub fn list(&self) -> Vec<Open> {
        let one = |disk: &Disk| Open {
            address: disk.address,
            identity: *disk.drive.identity(),
            namespaces: disk
                .drive
                .namespaces()
                .iter()
                .map(|info| {
                    let volume = disk.volumes.iter().find(|(_, nsid)| **nsid == info.nsid);
                    (info.clone(), volume.map(|(name, _)| name.clone()))
                })
                .collect(),
        };
        self.open.iter().filter(|disk| !disk.visited).map(one).collect()
    }

    /// The way to a disk that is open.
    pub fn admin(&self, address: Address) -> Option<DiskAdmin> {
        let disk = self.open.iter().find(|disk| disk.address == address)?;
        Some(Admin::new(&disk.drive, &disk.home))
    }

    /// Opens a disk that no volume is of, for commands alone. No volume can be made of it until [`Disks::leave`].
    ///
    /// # Errors
    /// Why it cannot be had, with the remedy where there is one.
    pub fn visit(&mut self, reactors: &mut Reactors, address: Address) -> Result<DiskAdmin, DeviceError> {
        if self.open.iter().any(|disk| disk.address == address) {
            return Err(refused(format!("{address} is in use by this process")));
        }
        let function = self.pci.function(address).map_err(refused)?;
        let disk = self.bring_up(reactors, &function, &Wanted::new(Which::Pci(address)), true)?;
        let admin = Admin::new(&disk.drive, &disk.home);
        self.take_in(disk);
        Ok(admin)
    }

    /// The end of a visit. A disk that is not visited stays as it is.
    ///
    /// # Errors
    /// If it did not shut down in order. It is closed nevertheless, and unless the error says so it does no DMA.
    pub fn leave(&mut self, address: Address) -> Result<(), DeviceError> {
        match self.open.iter().position(|disk| disk.address == address && disk.visited) {
            Some(place) => self.close_at(place),
            None => Ok(()),
        }
    }

    fn close_at(&mut self, place: usize) -> Result<(), DeviceError> {
        let disk = self.open.remove(place);
        let (address, device) = (disk.address, Arc::downgrade(disk.port.device()));
        let closed = disk.close();
        wait_for_the_end(address, &device);
        closed
    }

    /// The disk, if it is to be driven by the kernel's driver.
    fn of_the_kernel(&self, wanted: &Wanted) -> Result<Option<Function>, DeviceError> {
        if wanted.mode == Mode::Vfio || wanted.mode == Mode::Auto && self.open.iter().any(|disk| disk.is(&wanted.disk))
        {
            return Ok(None);
        }
        let function = match &wanted.disk {
            Which::Pci(address) => Some(self.pci.function(*address).map_err(refused)?),
            Which::Serial(serial) => {
                let is_it =
                    |function: &Function| function.identity.as_ref().is_some_and(|identity| identity.serial == *serial);
                self.pci.functions().into_iter().find(is_it)
            }
        };
        match (function, wanted.mode) {
            (Some(function), _) if function.identity.is_some() => Ok(Some(function)),
            (Some(Function { address, driver: Some(driver), .. }), _) if driver == KERNEL => {
                let what = format!("{address} belongs to {KERNEL}, and its controller is not ready");
                Err(refused(format!("{what}: the kernel's log says why (dmesg)")))
            }
            (Some(Function { address, driver, .. }), Mode::Kernel) => {
                let driver = driver.as_deref().unwrap_or("no driver");
                Err(refused(format!(
                    "{address} belongs to {driver}: mode = \"kernel\" needs the kernel's driver: reactor nvme unbind {address}, or \
                     write mode = \"vfio\""
                )))
            }
            (None, Mode::Kernel) => {
                let of = |function: Function| Some(function.identity?.serial);
                let there: Vec<String> = self.pci.functions().into_iter().filter_map(of).collect();
                let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
                Err(refused(format!("no disk of the kernel's NVMe driver has {}; it has {there}", wanted.disk)))
            }
            (_, Mode::Auto | Mode::Vfio) => Ok(None),
        }
    }

    fn open_by_kernel(
        &mut self,
        reactors: &Reactors,
        name: &str,
        wanted: &Wanted,
        function: &Function,
    ) -> Result<Arc<dyn BlockDevice>, DeviceError> {
        let taken = |block: &str| {
            let other = self.kernel.iter().find(|(_, its)| *its == block);
            other.map(|(name, _)| name.clone())
        };
        let at = Opening {
            pci: &self.pci,
            address: function.address,
            controller: function.identity.as_ref().map_or("", |identity| &identity.controller),
            taken: &taken,
            home: reactors.remotes()[0].id(),
            reactors: reactors.remotes().len(),
        };
        let KernelVolume { device, block, line } = kernel::open(&at, name, wanted)?;
        tracing::info!("{line}");
        self.kernel.insert(name.to_owned(), block);
        Ok(device)
    }

    /// The place of a disk that is open, or is opened.
    fn find(&mut self, reactors: &mut Reactors, wanted: &Wanted) -> Result<usize, DeviceError> {
        if let Some(place) = self.open.iter().position(|disk| disk.is(&wanted.disk)) {
            let disk = &self.open[place];
            if disk.visited {
                return Err(refused(format!(
                    "{} gets a command that takes it out of service for a while",
                    disk.address
                )));
            }
            return Ok(place);
        }
        let disk = match &wanted.disk {
            Which::Pci(address) => {
                let function = self.pci.function(*address).map_err(refused)?;
                self.bring_up(reactors, &function, wanted, false)?
            }
            Which::Serial(serial) => self.search(reactors, serial, wanted)?,
        };
        self.take_in(disk);
        Ok(self.open.len() - 1)
    }

    /// A disk that has just been opened.
    fn take_in(&mut self, mut disk: Disk) {
        if let Some(tell) = &self.tell {
            disk.listen(tell);
        }
        self.open.push(disk);
    }

    /// The disk of a serial number among those that are bound to vfio-pci. Only a controller itself knows its number then, so that
    /// each is brought up and asked, unless somebody has it.
    fn search(&mut self, reactors: &mut Reactors, serial: &str, wanted: &Wanted) -> Result<Disk, DeviceError> {
        let functions = self.pci.functions();
        let mut seen = Vec::new();
        for function in functions.iter().filter(|function| function.is_vfio()) {
            let address = function.address;
            if let Some(open) = self.open.iter().find(|disk| disk.address == address) {
                seen.push(format!("{address} (serial {})", open.drive.serial()));
                continue;
            }
            let by = function.group.as_ref().map(|group| self.pci.holders(group.number)).unwrap_or_default();
            if !by.is_empty() {
                seen.push(format!("{address} (held by {})", by.join(", ")));
                continue;
            }
            match self.bring_up(reactors, function, wanted, false) {
                Ok(disk) if disk.drive.serial() == serial => return Ok(disk),
                Ok(disk) => {
                    seen.push(format!("{address} (serial {})", disk.drive.serial()));
                    let device = Arc::downgrade(disk.port.device());
                    disk.close().unwrap_or_else(|why| tracing::warn!("{why}"));
                    wait_for_the_end(address, &device);
                }
                Err(error) => seen.push(format!("{address} ({error})")),
            }
        }
        let is_it = |function: &&Function| function.identity.as_ref().is_some_and(|known| known.serial == serial);
        if let Some(function) = functions.iter().find(is_it) {
            return Err(not_bound(function));
        }
        let seen = if seen.is_empty() { "none".to_owned() } else { seen.join(", ") };
        Err(refused(format!("no NVMe disk has serial {serial}; bound to vfio-pci are {seen}")))
    }

    fn bring_up(
        &mut self,
        reactors: &mut Reactors,
        function: &Function,
        wanted: &Wanted,
        visited: bool,
    ) -> Result<Disk, DeviceError> {
        let address = function.address;
        let about = |error: &dyn fmt::Display| DeviceError::Refused(format!("{address}: {error}"));
        let port = VfioPort::new(self.device(reactors, function)?, wanted.tuning.cmb).map_err(refused)?;
        let home = reactors.remotes()[0].clone();
        let with_queues = if visited { &[][..] } else { reactors.remotes() };
        let ids: Vec<u16> = with_queues.iter().map(Remote::id).collect();
        let drive = loop {
            match open_on(&home, ids.clone(), &port, wanted, address)? {
                Ok(drive) => break drive,
                // A reactor begins with a small share of the memory, and is given more while the server runs.
                Err(ControllerError::NoMemory { .. }) if feed_each(reactors)? => {}
                Err(error) => return Err(about(&error)),
            }
        };
        let tuning = wanted.tuning.clone();
        Ok(Disk {
            address,
            port,
            home,
            drive,
            tuning,
            volumes: BTreeMap::new(),
            claims: BTreeMap::new(),
            visited,
            watched: None,
        })
    }

    /// A function of the machine, and the memory of the reactors for it.
    fn device(&mut self, reactors: &mut Reactors, function: &Function) -> Result<Device, DeviceError> {
        if function.group.is_none() {
            return Err(refused(PciError::NoIommu));
        }
        if !function.is_vfio() {
            return Err(not_bound(function));
        }
        let (container, space) = match &mut self.reach {
            Some(reach) => reach,
            reach => reach.insert((Container::open(&self.pci).map_err(refused)?, None)),
        };
        let group = container.group(function).map_err(refused)?;
        let space = match space {
            Some(space) => space,
            space => {
                let arena = reactors.memory_max() as u64;
                let chosen = DmaSpace::new(container, &self.pci.reserved_regions(), arena).map_err(refused)?;
                space.insert(Arc::new(chosen))
            }
        };
        // What is mapped already is passed over, so a call that failed half-way goes on here.
        reactors.share_memory(space.clone()).map_err(|error| refused(error.error))?;
        Device::open(&group, function.address).map_err(refused)
    }
}

/// Says how a disk gets to where VFIO has it, or what else there is.
fn not_bound(function: &Function) -> DeviceError {
    let Function { address, driver, .. } = function;
    let error = VfioError::NotBound { address: *address, driver: driver.clone() };
    let other = if driver.as_deref() == Some(KERNEL) { "; or write mode = \"kernel\"" } else { "" };
    refused(format!("{error}{other}"))
}

/// Whether a namespace is what the configuration says of it.
pub(super) fn check_size(
    wanted: &Wanted,
    (nsid, address): (u32, Address),
    size: u64,
    block_size: u32,
) -> Result<(), DeviceError> {
    if wanted.size.is_some_and(|wanted| wanted != size) {
        return Err(refused(format!("namespace {nsid} of {address} has {size} bytes: write that size, or none")));
    }
    if wanted.block_size.is_some_and(|wanted| wanted != block_size) {
        let what = format!("namespace {nsid} of {address} has blocks of {block_size} bytes");
        return Err(refused(format!("{what}: write that block_size, or none")));
    }
    Ok(())
}

/// The only namespace that can be a volume.
fn only(address: Address, all: &[NamespaceInfo]) -> Result<u32, DeviceError> {
    let usable: Vec<u32> = all.iter().filter(|info| info.geometry.is_ok()).map(|info| info.nsid).collect();
    only_one(address, &usable, || {
        all.iter().filter_map(|info| Some(info.geometry.as_ref().err()?.to_string())).collect()
    })
}

/// The one of these that can be used; `why` says why the others of the disk cannot.
pub(super) fn only_one(
    address: Address,
    usable: &[u32],
    why: impl FnOnce() -> Vec<String>,
) -> Result<u32, DeviceError> {
    match usable {
        [one] => Ok(*one),
        [] => {
            let why = why();
            let why = if why.is_empty() { "it has none".to_owned() } else { why.join("; ") };
            Err(refused(format!("{address} has no namespace that can be used: {why}")))
        }
        several => {
            let several: Vec<String> = several.iter().map(u32::to_string).collect();
            Err(refused(format!("{address} has the namespaces {}: write nsid = {}", several.join(", "), several[0])))
        }
    }
}

/// Has the home bring a controller up, and waits for it.
fn open_on(
    home: &Remote,
    ids: Vec<u16>,
    port: &VfioPort,
    wanted: &Wanted,
    address: Address,
) -> Result<Result<Arc<NvmeDrive<VfioPort>>, ControllerError>, DeviceError> {
    let Tuning { depth, timeout, coalescing, .. } = wanted.tuning;
    let controller = ControllerOptions { coalescing, ..ControllerOptions::new(depth) };
    let options = DriveOptions { controller, timeout_ns: timeout.as_nanos() as u64 };
    let (sender, opened) = mpsc::channel();
    let way = port.clone();
    home.send(Box::new(move |reactor| {
        let here = reactor.clone();
        reactor.spawn("nvme open", async move {
            let drive = NvmeDrive::open(&here, way, options, ids).await;
            // Nobody waits for it any more.
            if let Err(mpsc::SendError(Ok(drive))) = sender.send(drive)
                && let Err(error) = drive.close(&here).await
            {
                tracing::error!("{address}: {error}");
            }
        });
    }));
    let limit = port.opens_within();
    opened.recv_timeout(limit).map_err(|error| refused(format!("{address}: {}", unanswered(error, "come up", limit))))
}

/// Gives each reactor more of the memory. False: there is no more.
fn feed_each(reactors: &mut Reactors) -> Result<bool, DeviceError> {
    let mut more = false;
    for _ in 0..reactors.remotes().len() {
        more |= reactors.feed_some().map_err(refused)?;
    }
    Ok(more)
}

fn unanswered(error: RecvTimeoutError, what: &str, limit: Duration) -> String {
    match error {
        RecvTimeoutError::Timeout => format!("the controller does not {what} within {} s", limit.as_secs()),
        RecvTimeoutError::Disconnected => "its reactor has ended".to_owned(),
    }
}

/// Waits until nobody has a device any more: the kernel gives it to another driver, or to another process, only then.
fn wait_for_the_end(address: Address, device: &Weak<Device>) {
    let start = monotonic_ns();
    while device.strong_count() > 0 {
        if Duration::from_nanos(monotonic_ns() - start) > LET_GO {
            tracing::warn!(
                "{address} is closed, and part of this process keeps it still: it stays bound until that ends"
            );
            return;
        }
        std::thread::park_timeout(LOOK);
    }
}

#[cfg(test)]
mod tests;
