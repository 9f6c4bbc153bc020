//! PCI functions that are NVMe controllers: what sysfs tells of them, and how one changes hands between the kernel's driver and VFIO.
//!
//! | what | where |
//! |---|---|
//! | functions | `/sys/bus/pci/devices/DDDD:BB:DD.F` with class 010802h |
//! | serial, model, firmware | `nvme/nvmeN/` of a function, while the kernel's driver has it |
//! | IOMMU group | the link `iommu_group`: functions that the IOMMU cannot tell apart |
//! | addresses that no mapping may use | `reserved_regions` of each group |
//! | which driver takes it | `driver_override`, `driver/unbind`, and `drivers_probe` of the bus |
//!
//! For control threads: taking a disk from its driver waits for the driver.

mod disks;

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

pub use disks::KernelNamespace;
pub(super) use disks::disk_of;

/// The driver that gives functions to user space.
pub const VFIO_PCI: &str = "vfio-pci";

/// Mass storage, non-volatile memory, NVM Express I/O controller.
const CLASS: u32 = 0x01_08_02;

/// What `driver_override` shows if there is none.
const NO_OVERRIDE: &str = "(null)";

/// Drivers that leave the DMA of their functions alone, so that others of the group may belong to user space.
const HARMLESS: [&str; 3] = [VFIO_PCI, "pci-stub", "pcieport"];

/// Where a function is: `0000:01:00.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Address {
    /// Domain, also called segment.
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Device, 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

/// Not an address of a PCI function.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address of a PCI function: they look like 0000:01:00.0")]
pub struct AddressError(pub String);

impl FromStr for Address {
    type Err = AddressError;

    /// As sysfs writes it; the domain may be left out if it is 0.
    fn from_str(text: &str) -> Result<Address, AddressError> {
        let parse = || {
            let (rest, function) = text.split_once('.')?;
            let (rest, device) = rest.rsplit_once(':')?;
            let (domain, bus) = rest.split_once(':').unwrap_or(("0000", rest));
            let number = |text: &str, digits: std::ops::RangeInclusive<usize>, max: u32| {
                let good = digits.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
                u32::from_str_radix(text, 16).ok().filter(|number| good && *number <= max)
            };
            Some(Address {
                domain: number(domain, 4..=8, u32::MAX)?,
                bus: number(bus, 2..=2, 255)? as u8,
                device: number(device, 2..=2, 31)? as u8,
                function: number(function, 1..=1, 7)? as u8,
            })
        };
        parse().ok_or_else(|| AddressError(text.to_owned()))
    }
}

/// What the kernel's NVMe driver knows of a controller that it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The controller's name, as `nvme0`.
    pub controller: String,
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
}

/// A range of I/O addresses, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AddressRange {
    /// First address.
    pub start: u64,
    /// Last address.
    pub end: u64,
}

/// Functions that the IOMMU cannot tell apart: they have one owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Number, as in `/dev/vfio/12`.
    pub number: u32,
    /// Made up by vfio for a function without an IOMMU.
    pub is_unsafe: bool,
    /// All its functions and their drivers.
    pub functions: Vec<(Address, Option<String>)>,
    /// Addresses that no mapping may use.
    pub reserved: Vec<AddressRange>,
}

impl Group {
    /// Functions other than `address` whose drivers keep the group from user space.
    pub fn in_the_way(&self, address: Address) -> Vec<(Address, String)> {
        let others = self.functions.iter().filter(|(other, _)| *other != address);
        let named = others.filter_map(|(other, driver)| Some((*other, driver.clone()?)));
        named.filter(|(_, driver)| !HARMLESS.contains(&driver.as_str())).collect()
    }
}

/// An NVMe controller on the PCI bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Function {
    /// Where it is.
    pub address: Address,
    /// Vendor and device.
    pub id: (u16, u16),
    /// Vendor and device of the subsystem: who built the board.
    pub subsystem: (u16, u16),
    /// NUMA node; `None` if the machine does not say.
    pub numa_node: Option<u32>,
    /// The driver that has it.
    pub driver: Option<String>,
    /// Its IOMMU group; `None` without an IOMMU.
    pub group: Option<Group>,
    /// What the kernel's driver shows; `None` if another has it.
    pub identity: Option<Identity>,
}

impl Function {
    /// Whether user space may have it.
    pub fn is_vfio(&self) -> bool {
        self.driver.as_deref() == Some(VFIO_PCI)
    }
}

/// Why a function could not be found, or not change hands. Each message names the remedy.
#[derive(Debug, thiserror::Error)]
pub enum PciError {
    /// There is no such disk.
    #[error("no NVMe disk at {address}: this machine has {}", listed(.known))]
    NoSuchDisk {
        /// Where it should be.
        address: Address,
        /// The disks that are there, with their serial numbers where the kernel's driver has them.
        known: Vec<(Address, Option<String>)>,
    },
    /// Without an IOMMU a device could write to any memory.
    #[error(
        "this machine has no IOMMU, or it is off: enable VT-d or AMD-Vi in the firmware and boot with intel_iommu=on \
         (amd: on by default)"
    )]
    NoIommu,
    /// The kernel, or the modules that it has loaded, cannot give functions away.
    #[error("the kernel has no vfio-pci: modprobe vfio-pci (CONFIG_VFIO_PCI)")]
    NoVfioPci,
    /// A file of sysfs that only root may write.
    #[error("no right to write {}: run as root", .path.display())]
    NoRight {
        /// Which one.
        path: PathBuf,
    },
    /// A process has the group open, and its driver cannot be changed until it lets go.
    #[error("{address} is held by {}", or_unseen(.by))]
    Held {
        /// The function.
        address: Address,
        /// The processes, if they could be seen.
        by: Vec<String>,
    },
    /// Another driver has it than when it was looked at.
    #[error("{address} has changed hands from {} to {} meanwhile: look again", driver(.was), driver(.is))]
    Changed {
        /// The function.
        address: Address,
        /// Its driver then.
        was: Option<String>,
        /// Its driver now.
        is: Option<String>,
    },
    /// A step had not the effect that it must have.
    #[error("{address}: {what}; {}", left(.was, .is))]
    Step {
        /// The function.
        address: Address,
        /// What was done and what was seen.
        what: String,
        /// Its driver before.
        was: Option<String>,
        /// Its driver now that what was done is undone.
        is: Option<String>,
    },
}

fn listed(known: &[(Address, Option<String>)]) -> String {
    let one = |(address, serial): &(Address, Option<String>)| match serial {
        Some(serial) => format!("{address} (serial {serial})"),
        None => address.to_string(),
    };
    if known.is_empty() { "none".to_owned() } else { known.iter().map(one).collect::<Vec<_>>().join(", ") }
}

fn or_unseen(by: &[String]) -> String {
    if by.is_empty() { "a process that could not be seen".to_owned() } else { by.join(", ") }
}

fn driver(name: &Option<String>) -> &str {
    name.as_deref().unwrap_or("no driver")
}

fn left(was: &Option<String>, is: &Option<String>) -> String {
    if was == is {
        return format!("nothing is changed, {} has it", driver(is));
    }
    format!("this could not be undone: {} had it, {} has it now", driver(was), driver(is))
}

/// What became of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handover {
    /// The driver before.
    pub from: Option<String>,
    /// The driver now.
    pub to: String,
}

impl Handover {
    /// False: it was so already.
    pub fn is_change(&self) -> bool {
        self.from.as_deref() != Some(self.to.as_str())
    }
}

/// The PCI bus as sysfs shows it: the machine's, or what stands for it in a test.
#[derive(Clone, Debug)]
pub struct Pci {
    /// What has `sys`, `proc` and `dev`.
    root: PathBuf,
    /// Writes a file of sysfs: the kernel acts on what it reads there.
    write: fn(&Path, &str) -> io::Result<()>,
}

impl Default for Pci {
    fn default() -> Pci {
        Pci::new()
    }
}

impl Pci {
    /// Of this machine.
    pub fn new() -> Pci {
        Pci { root: "/".into(), write: |path, text| fs::write(path, text) }
    }

    /// Of a directory that has `sys`, `proc` and `dev`. `write` does what the kernel would do.
    pub fn at(root: &Path, write: fn(&Path, &str) -> io::Result<()>) -> Pci {
        Pci { root: root.to_owned(), write }
    }

    /// A path of the machine, as `dev/vfio/12`.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// All NVMe controllers, by address.
    pub fn functions(&self) -> Vec<Function> {
        let mut addresses: Vec<Address> =
            names(&self.root.join("sys/bus/pci/devices")).iter().filter_map(|name| name.parse().ok()).collect();
        addresses.sort();
        addresses.into_iter().filter_map(|address| self.look(address)).collect()
    }

    /// The NVMe controller at an address.
    ///
    /// # Errors
    /// If there is none.
    pub fn function(&self, address: Address) -> Result<Function, PciError> {
        self.look(address).ok_or_else(|| {
            let name = |function: Function| (function.address, function.identity.map(|identity| identity.serial));
            PciError::NoSuchDisk { address, known: self.functions().into_iter().map(name).collect() }
        })
    }

    fn look(&self, address: Address) -> Option<Function> {
        let folder = self.folder(address);
        let number = |file: &str| number(&text(&folder.join(file))?);
        if number("class") != Some(u64::from(CLASS)) {
            return None;
        }
        let id = |file: &str| number(file).unwrap_or_default() as u16;
        Some(Function {
            address,
            id: (id("vendor"), id("device")),
            subsystem: (id("subsystem_vendor"), id("subsystem_device")),
            numa_node: text(&folder.join("numa_node")).and_then(|node| node.parse().ok()),
            driver: self.driver(address),
            group: self.group(address),
            identity: identity(&folder.join("nvme")),
        })
    }

    fn folder(&self, address: Address) -> PathBuf {
        self.root.join(format!("sys/bus/pci/devices/{address}"))
    }

    /// The driver that has a function.
    pub fn driver(&self, address: Address) -> Option<String> {
        Some(fs::read_link(self.folder(address).join("driver")).ok()?.file_name()?.to_str()?.to_owned())
    }

    fn group(&self, address: Address) -> Option<Group> {
        let link = fs::read_link(self.folder(address).join("iommu_group")).ok()?;
        let number = link.file_name()?.to_str()?.parse().ok()?;
        let folder = self.root.join(format!("sys/kernel/iommu_groups/{number}"));
        let members = names(&folder.join("devices"));
        let mut functions: Vec<_> = members
            .iter()
            .filter_map(|name| name.parse().ok())
            .map(|address| (address, self.driver(address)))
            .collect();
        functions.sort();
        let is_unsafe = text(&folder.join("name")).is_some_and(|name| name == "vfio-noiommu");
        Some(Group { number, is_unsafe, functions, reserved: reserved(&folder) })
    }

    /// The addresses that any group of the machine keeps from mappings.
    pub fn reserved_regions(&self) -> Vec<AddressRange> {
        let groups = self.root.join("sys/kernel/iommu_groups");
        let all: BTreeSet<_> = names(&groups).iter().flat_map(|number| reserved(&groups.join(number))).collect();
        all.into_iter().collect()
    }

    /// The processes that have an IOMMU group open, `process 812 (reactor)`, as far as they may be seen.
    pub fn holders(&self, group: u32) -> Vec<String> {
        let named = |(process, command)| format!("process {process} ({command})");
        self.holding(group).into_iter().map(named).collect()
    }

    /// The same, each as its number and the name of its program.
    pub fn holding(&self, group: u32) -> Vec<(u32, String)> {
        let proc = self.root.join("proc");
        let processes = names(&proc).into_iter().filter_map(|name| name.parse().ok());
        let held = processes.filter(|process| self.holds(*process, group) == Some(true));
        held.map(|process| (process, text(&proc.join(format!("{process}/comm"))).unwrap_or_default())).collect()
    }

    /// Whether a process has an IOMMU group open; `None` if that may not be seen, or there is no such process.
    pub fn holds(&self, process: u32, group: u32) -> Option<bool> {
        let node = PathBuf::from(format!("/dev/vfio/{group}"));
        let files = self.root.join(format!("proc/{process}/fd"));
        let mut links = fs::read_dir(files).ok()?.flatten();
        Some(links.any(|link| fs::read_link(link.path()).is_ok_and(|to| to == node)))
    }

    /// Gives a function to vfio-pci. The driver that has it lets go of the disk whoever uses it, so the caller has made sure that
    /// nobody does; `seen` is the function that it looked at.
    ///
    /// # Errors
    /// If it cannot be given away; the former driver has it again then, or the error says that this failed too.
    pub fn bind(&self, seen: &Function) -> Result<Handover, PciError> {
        let now = self.same(seen)?;
        if now.is_vfio() {
            return Ok(Handover { from: now.driver, to: VFIO_PCI.to_owned() });
        }
        if now.group.is_none() {
            return Err(PciError::NoIommu);
        }
        if !self.root.join("sys/bus/pci/drivers").join(VFIO_PCI).is_dir() {
            return Err(PciError::NoVfioPci);
        }
        self.hand_over(now, VFIO_PCI, |driver| driver == VFIO_PCI)
    }

    /// Gives a function back to the kernel's driver.
    ///
    /// # Errors
    /// If a process holds it, or if the kernel does not take it; vfio-pci has it again then, or the error says that this failed too.
    pub fn unbind(&self, seen: &Function) -> Result<Handover, PciError> {
        let now = self.same(seen)?;
        if let Some(driver) = now.driver.clone().filter(|driver| driver != VFIO_PCI) {
            return Ok(Handover { from: Some(driver.clone()), to: driver });
        }
        // The kernel would wait until it is let go.
        let by = now.group.as_ref().map(|group| self.holders(group.number)).unwrap_or_default();
        if now.is_vfio() && !by.is_empty() {
            return Err(PciError::Held { address: now.address, by });
        }
        self.hand_over(now, "", |driver| driver != VFIO_PCI)
    }

    /// The function as it is now, with the driver that was seen.
    fn same(&self, seen: &Function) -> Result<Function, PciError> {
        let now = self.function(seen.address)?;
        if now.driver != seen.driver {
            return Err(PciError::Changed { address: now.address, was: seen.driver.clone(), is: now.driver });
        }
        Ok(now)
    }

    fn hand_over(&self, function: Function, name: &str, right: fn(&str) -> bool) -> Result<Handover, PciError> {
        let address = function.address;
        let before = text(&self.folder(address).join("driver_override")).unwrap_or_default();
        let refused = match self.try_hand_over(address, name, right) {
            Ok(to) => return Ok(Handover { from: function.driver, to }),
            Err(refused) => refused,
        };
        // What can be undone of it, each step whatever became of the one before.
        let _ = self.set_override(address, if before == NO_OVERRIDE { "" } else { &before });
        if self.driver(address) != function.driver {
            let _ = self.let_go(address);
            if function.driver.is_some() {
                let _ = self.probe(address);
            }
        }
        let is = self.driver(address);
        Err(match refused {
            Refused::NoRight(path) if is == function.driver => PciError::NoRight { path },
            Refused::NoRight(path) => PciError::Step {
                address,
                what: format!("no right to write {}", path.display()),
                was: function.driver,
                is,
            },
            Refused::Step(what) => PciError::Step { address, what, was: function.driver, is },
        })
    }

    fn try_hand_over(&self, address: Address, name: &str, right: fn(&str) -> bool) -> Result<String, Refused> {
        self.set_override(address, name)?;
        self.let_go(address)?;
        self.probe(address)?;
        match self.driver(address) {
            Some(driver) if right(&driver) => Ok(driver),
            Some(driver) if driver == VFIO_PCI => {
                Err(Refused::Step("vfio-pci takes it again: its id was given to vfio-pci (ids=, new_id)".to_owned()))
            }
            other => {
                let wanted = if name.is_empty() { "its kernel driver" } else { name };
                let seen = driver(&other);
                Err(Refused::Step(format!("{seen} has it instead of {wanted}: the kernel's log says why (dmesg)")))
            }
        }
    }

    /// Names the only driver that may take a function; the empty name lets any.
    fn set_override(&self, address: Address, name: &str) -> Result<(), Refused> {
        let path = self.folder(address).join("driver_override");
        // Nothing is written by a write of nothing.
        self.put(&path, &format!("{name}\n"))?;
        let seen = text(&path).unwrap_or_default();
        let is = if seen == NO_OVERRIDE { "" } else { &seen };
        if is != name {
            return Err(Refused::Step(format!("driver_override is `{is}` after `{name}` was written")));
        }
        Ok(())
    }

    /// Takes a function from its driver, if it has one.
    fn let_go(&self, address: Address) -> Result<(), Refused> {
        let Some(was) = self.driver(address) else { return Ok(()) };
        self.put(&self.folder(address).join("driver/unbind"), &address.to_string())?;
        match self.driver(address) {
            None => Ok(()),
            Some(_) => Err(Refused::Step(format!("{was} does not let go of it"))),
        }
    }

    /// Lets a driver take a function. What it says of its success is seen afterwards.
    fn probe(&self, address: Address) -> Result<(), Refused> {
        self.put(&self.root.join("sys/bus/pci/drivers_probe"), &address.to_string())
    }

    fn put(&self, path: &Path, text: &str) -> Result<(), Refused> {
        (self.write)(path, text).map_err(|error| match error.raw_os_error() {
            Some(libc::EACCES | libc::EPERM | libc::EROFS) => Refused::NoRight(path.to_owned()),
            _ => Refused::Step(format!("cannot write `{}` to {}: {error}", text.trim_end(), path.display())),
        })
    }
}

/// Why a step failed.
#[derive(Debug)]
enum Refused {
    NoRight(PathBuf),
    Step(String),
}

fn identity(folder: &Path) -> Option<Identity> {
    let controller = names(folder).into_iter().find(|name| name.starts_with("nvme"))?;
    let read = |file: &str| text(&folder.join(&controller).join(file)).unwrap_or_default();
    let (serial, model, firmware) = (read("serial"), read("model"), read("firmware_rev"));
    Some(Identity { controller, serial, model, firmware })
}

/// Lines of a group: first and last address, and why.
fn reserved(group: &Path) -> Vec<AddressRange> {
    let lines = fs::read_to_string(group.join("reserved_regions")).unwrap_or_default();
    let parse = |line: &str| {
        let mut words = line.split_whitespace().map(number);
        Some(AddressRange { start: words.next()??, end: words.next()?? })
    };
    lines.lines().filter_map(parse).collect()
}

/// A number as sysfs writes it, with 0x.
fn number(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// What a file says, without the blanks around it.
fn text(path: &Path) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// The names in a directory, sorted; none if there is no such directory.
pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests;
