//! The NVMe disks of this machine, who has each, and which one a user means.

use super::state::{self, Owned};
use crate::sys::holders::{self, Machine};
use crate::sys::pci::{Address, Function, KernelNamespace, Pci};

/// Where everything is looked up: this machine, or what stands for it in a test.
#[derive(Clone, Debug)]
pub struct Place {
    /// The bus.
    pub pci: Pci,
    /// Who uses what.
    pub machine: Machine,
    /// Whether a disk is claimed: its node, and its folder in /sys.
    pub is_claimed: fn(&std::path::Path, &std::path::Path) -> bool,
}

impl Place {
    /// This machine.
    pub fn here() -> Place {
        Place { pci: Pci::new(), machine: Machine::here(), is_claimed: holders::is_claimed }
    }
}

/// Who has a disk that is bound to vfio-pci.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// A server that says so, and is seen to hold it.
    Server(Owned),
    /// A server that says so; whether it does may not be seen.
    Perhaps(Owned),
    /// Other processes, or a server without its file: number and name.
    Processes(Vec<(u32, String)>),
}

impl Holder {
    /// What messages call it.
    pub fn name(&self) -> String {
        match self {
            Holder::Server(owned) | Holder::Perhaps(owned) => {
                format!("process {} (reactor, {})", owned.pid, owned.config)
            }
            Holder::Processes(all) => {
                let name = |(process, command): &(u32, String)| format!("process {process} ({command})");
                all.iter().map(name).collect::<Vec<_>>().join(", ")
            }
        }
    }

    /// What its server says of the disk.
    pub fn owned(&self) -> Option<&Owned> {
        match self {
            Holder::Server(owned) | Holder::Perhaps(owned) => Some(owned),
            Holder::Processes(_) => None,
        }
    }
}

/// A disk, and all that can be known of it without a command to it.
#[derive(Clone, Debug)]
pub struct Found {
    /// On the bus.
    pub function: Function,
    /// Its namespaces, while the kernel's driver has it.
    pub namespaces: Vec<KernelNamespace>,
    /// Who has it, while vfio-pci does.
    pub holder: Option<Holder>,
}

impl Found {
    fn new(place: &Place, function: Function) -> Found {
        let namespaces = place.pci.namespaces(&function);
        let group = function.group.as_ref().filter(|_| function.is_vfio()).map(|group| group.number);
        let holder = group.and_then(|group| match state::owner(&place.pci, function.address, group) {
            Some(Ok(owned)) => Some(Holder::Server(owned)),
            Some(Err(owned)) => Some(Holder::Perhaps(owned)),
            None => Some(place.pci.holding(group)).filter(|all| !all.is_empty()).map(Holder::Processes),
        });
        Found { function, namespaces, holder }
    }

    /// Where it is.
    pub fn address(&self) -> Address {
        self.function.address
    }

    /// Serial number, as far as anybody says it.
    pub fn serial(&self) -> Option<&str> {
        let kernel = self.function.identity.as_ref().map(|identity| identity.serial.as_str());
        kernel.or_else(|| Some(self.holder.as_ref()?.owned()?.serial.as_str()))
    }

    /// Who uses it by way of the kernel, each as `nvme0n1: mount /mnt`. Empty if nobody is seen.
    pub fn users(&self, place: &Place) -> Vec<String> {
        let mut found = Vec::new();
        for namespace in &self.namespaces {
            let (disk, folder) = (&namespace.disk, namespace.folder());
            let mut seen = place.machine.look(std::slice::from_ref(&folder), &[namespace.generic()]).users;
            let node = place.pci.path(&format!("dev/{disk}"));
            if seen.is_empty() && (place.is_claimed)(&node, &place.pci.path(&folder)) {
                seen = holders::or_unseen(seen);
            }
            found.extend(seen.into_iter().map(|who| format!("{disk}: {who}")));
        }
        if let Some(identity) = &self.function.identity {
            let name = &identity.controller;
            let seen = place.machine.look(&[], &[format!("sys/class/nvme/{name}")]).users;
            found.extend(seen.into_iter().map(|who| format!("{name}: {who}")));
        }
        found
    }

    /// Who has the character device of a namespace open.
    pub fn passing(&self, place: &Place) -> Vec<String> {
        let nodes: Vec<String> = self.namespaces.iter().map(KernelNamespace::generic).collect();
        place.machine.look(&[], &nodes).users
    }

    fn is_named(&self, name: &str) -> bool {
        let node = name.strip_prefix("/dev/").unwrap_or(name);
        let identity = self.function.identity.as_ref();
        let volumes = self.holder.iter().filter_map(Holder::owned).flat_map(|owned| &owned.namespaces);
        self.serial() == Some(name)
            || identity.is_some_and(|identity| identity.controller == node)
            || self.namespaces.iter().any(|namespace| namespace.disk == node)
            || volumes.filter_map(|namespace| namespace.volume.as_deref()).any(|volume| volume == name)
    }
}

/// A disk that a user means.
#[derive(Clone, Debug)]
pub struct Meant {
    /// The disk.
    pub disk: Found,
    /// The namespace, where the name is that of one: `nvme0n1`, or a volume.
    pub nsid: Option<u32>,
}

/// All disks, by address.
pub fn all(place: &Place) -> Vec<Found> {
    place.pci.functions().into_iter().map(|function| Found::new(place, function)).collect()
}

/// The disk of a PCI address, a serial number, the name or path of a controller or disk of the kernel, or the name of a volume.
///
/// # Errors
/// If there is none, or several.
pub fn meant(place: &Place, name: &str) -> Result<Meant, String> {
    if name.is_empty() {
        return Err("a disk without a name is none: write its PCI address".to_owned());
    }
    if let Ok(address) = name.parse::<Address>() {
        let function = place.pci.function(address).map_err(|error| error.to_string())?;
        return Ok(Meant { disk: Found::new(place, function), nsid: None });
    }
    let (mut named, others): (Vec<Found>, Vec<Found>) = all(place).into_iter().partition(|found| found.is_named(name));
    match named.len() {
        1 => {
            let disk = named.remove(0);
            let node = name.strip_prefix("/dev/").unwrap_or(name);
            let kernel = disk.namespaces.iter().find(|namespace| namespace.disk == node).map(|one| one.nsid);
            let owned = disk.holder.as_ref().and_then(Holder::owned);
            let volume = || Some(owned?.namespaces.iter().find(|one| one.volume.as_deref() == Some(name))?.nsid);
            let nsid = kernel.or_else(volume);
            Ok(Meant { disk, nsid })
        }
        0 => Err(nowhere(name, &others)),
        _ => {
            let addresses: Vec<String> = named.iter().map(|found| found.address().to_string()).collect();
            Err(format!("\"{name}\" is several controllers: write one of {}", addresses.join(", ")))
        }
    }
}

fn nowhere(name: &str, others: &[Found]) -> String {
    if others.is_empty() {
        return format!("no NVMe disk is \"{name}\": this machine has none");
    }
    let one = |found: &Found| match found.serial() {
        Some(serial) => format!("{} (serial {serial})", found.address()),
        None => found.address().to_string(),
    };
    let list: Vec<String> = others.iter().map(one).collect();
    let mut text = format!("no NVMe disk is \"{name}\": this machine has {}", list.join(", "));
    if others.iter().any(|found| found.serial().is_none()) {
        text += "; one that is bound to vfio-pci, and that no server holds, is named by its address alone";
    }
    text
}
