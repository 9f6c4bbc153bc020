//! The ways to a controller from this machine: by the kernel's driver, and by VFIO, of a disk that nobody holds or that this process serves.

use std::io;
use std::time::Duration;

use hugepages::{Arena, ArenaOptions, HugepagePolicy};

use super::find::Place;
use super::job::{Ask, Way};
use crate::bdev::device::nvme::{AdminError, DiskAdmin, Disks};
use crate::nvme::spec::{Sqe, Status};
use crate::reactor::Idle;
use crate::reactor::start::Reactors;
use crate::sys::affinity;
use crate::sys::nvme_ioctl::{AdminCommand, Controller};
use crate::sys::pci::{Address, Function};

/// DMA memory for commands: the queue, a page of data, and what a reactor keeps for itself. So little that it may be pinned by a user whose
/// limit is the usual one is not possible.
const MEMORY: usize = 16 << 20;

/// By ioctls of the kernel's driver.
#[derive(Debug)]
pub struct Kernel(Controller);

impl Kernel {
    /// To the controller that the kernel calls `name`.
    ///
    /// # Errors
    /// Why it cannot be opened, with the remedy.
    pub fn open(place: &Place, name: &str) -> Result<Kernel, String> {
        let path = place.pci.path(&format!("dev/{name}"));
        match Controller::open(&path) {
            Ok(controller) => Ok(Kernel(controller)),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(format!("no right to open {}: run as root", path.display()))
            }
            Err(error) => Err(format!("{} cannot be opened: {error}", path.display())),
        }
    }
}

fn failed(what: &str) -> impl Fn(io::Error) -> AdminError {
    move |error| {
        let remedy = if error.kind() == io::ErrorKind::PermissionDenied { ": run as root" } else { "" };
        AdminError::Failed(format!("{what}: the kernel says {error}{remedy}"))
    }
}

fn dwords(sqe: &Sqe) -> [u32; 6] {
    [sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13, sqe.cdw14, sqe.cdw15].map(|dword| dword.get())
}

impl Way for Kernel {
    fn ask(&mut self, ask: &Ask) -> Result<Vec<u8>, AdminError> {
        let command = AdminCommand { opcode: ask.sqe.opcode, nsid: ask.sqe.nsid.get(), cdw10_to_15: dwords(&ask.sqe) };
        let (status, data) = self.0.admin(command, vec![0; ask.len], ask.limit).map_err(failed(ask.name))?;
        let status = Status(status);
        if status.is_success() { Ok(data) } else { Err(AdminError::Refused { command: ask.name, status }) }
    }

    fn reset(&mut self) -> Result<(), AdminError> {
        self.0.reset().map_err(failed("reset"))
    }

    fn changed(&mut self) -> Result<(), AdminError> {
        self.0.rescan().map_err(failed("rescan"))
    }
}

impl Way for DiskAdmin {
    fn ask(&mut self, ask: &Ask) -> Result<Vec<u8>, AdminError> {
        self.command(ask.name, ask.sqe, ask.len, ask.limit)
    }

    fn reset(&mut self) -> Result<(), AdminError> {
        DiskAdmin::reset(self)
    }
}

/// A disk that nobody holds, with a reactor of its own for as long as its commands take.
pub struct Solo {
    reactors: Reactors,
    disks: Disks,
    admin: DiskAdmin,
    address: Address,
}

impl Solo {
    /// Brings the controller up, with its admin queue alone.
    ///
    /// # Errors
    /// Why not, with the remedy where there is one.
    pub fn open(function: &Function) -> Result<Solo, String> {
        let allowed =
            affinity::allowed_cores().map_err(|e| format!("cannot ask which cores this process may use: {e}"))?;
        let core = allowed.last().copied().ok_or("no core is allowed")?;
        let options = ArenaOptions { size: MEMORY, hugepages: HugepagePolicy::Off, numa_node: None };
        let arena = Arena::new(options).map_err(|error| error.to_string())?;
        let mut reactors = Reactors::start(&[core], Idle::Adaptive, arena).map_err(|error| error.to_string())?;
        let mut disks = Disks::new();
        let address = function.address;
        let admin = disks.visit(&mut reactors, address).map_err(|error| error.to_string())?;
        Ok(Solo { reactors, disks, admin, address })
    }

    /// Shuts the controller down.
    ///
    /// # Errors
    /// If it did not do so in order.
    pub fn close(self) -> Result<(), String> {
        let Solo { reactors, mut disks, admin, address } = self;
        drop(admin);
        let closed = disks.leave(address).map_err(|error| error.to_string());
        drop(disks);
        // Nothing of it is used any more.
        reactors.stop_within(Duration::from_secs(1));
        closed
    }
}

impl Way for Solo {
    fn ask(&mut self, ask: &Ask) -> Result<Vec<u8>, AdminError> {
        self.admin.ask(ask)
    }

    fn reset(&mut self) -> Result<(), AdminError> {
        Way::reset(&mut self.admin)
    }
}
