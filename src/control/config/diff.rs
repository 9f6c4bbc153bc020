//! What a reload changes, and what it must leave.

use std::fmt;
use std::net::SocketAddr;

use super::iscsi::{IscsiSteps, settle_iscsi};
use super::model::{BdevConfig, Config, Driver, HostAccess, Namespace, NvmfConfig, Subsystem, UblkConfig};
use super::reader::all_of;
use super::value::{format_core_list, format_size};
use crate::bdev::device::nvme::Which;

/// The outcome of a reload.
#[derive(Clone, Debug)]
pub struct Diff {
    /// Steps in an order that can be carried out one by one: at no step does an export name a volume that is not open,
    /// or a layer stand on one that is closed. What is refused comes first.
    pub changes: Vec<Change>,
    /// What changes at the iSCSI door: one part before `changes`, one after them.
    pub iscsi: IscsiSteps,
    /// The configuration in service once every change is done: the new one, with the old value where the new one was
    /// refused. The next reload is compared with this.
    pub running: Config,
}

/// One step of a reload. Its `Display` is a sentence for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Cannot change while running, and is left as it is.
    Refused {
        /// `FILE:LINE` in the new configuration, or the file alone.
        at: String,
        /// What is left, and the value it keeps.
        what: String,
    },
    /// Open this volume.
    BdevAdded {
        /// Its name in the new configuration.
        name: String,
    },
    /// Resize this open volume.
    BdevGrown {
        /// Its name.
        name: String,
        /// Bytes now.
        from: u64,
        /// Bytes to have.
        to: u64,
    },
    /// Close this listening socket; its connections stay.
    ListenerRemoved {
        /// As configured: port 0 stands for the port that was taken.
        address: SocketAddr,
    },
    /// Close this subsystem and its controllers.
    SubsystemRemoved {
        /// Its name.
        nqn: String,
    },
    /// Take this namespace from its subsystem and tell its hosts.
    NamespaceRemoved {
        /// The subsystem.
        nqn: String,
        /// The namespace.
        nsid: u32,
    },
    /// Open this subsystem with all its namespaces; no `NamespaceAdded` follows for them.
    SubsystemAdded {
        /// Its name in the new configuration.
        nqn: String,
    },
    /// Add this namespace to its subsystem and tell its hosts.
    NamespaceAdded {
        /// The subsystem.
        nqn: String,
        /// The namespace.
        nsid: u32,
        /// The volume behind it.
        bdev: String,
        /// Write protected towards hosts.
        read_only: bool,
    },
    /// Replace the allow-list of this subsystem.
    HostsChanged {
        /// The subsystem.
        nqn: String,
        /// Who may connect from now on.
        hosts: HostAccess,
    },
    /// Open this listening socket.
    ListenerAdded {
        /// As configured.
        address: SocketAddr,
    },
    /// Close this volume.
    BdevRemoved {
        /// Its name.
        name: String,
    },
    /// Make the local block device of this volume.
    UblkAdded {
        /// The volume, which has one `[[ublk]]` in the new configuration.
        bdev: String,
    },
    /// Take the local block device of this volume away.
    UblkRemoved {
        /// The volume.
        bdev: String,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { at, what } => write!(f, "{at}: {what}"),
            Self::BdevAdded { name } => write!(f, "bdev \"{name}\" is added"),
            Self::BdevGrown { name, from, to } => {
                write!(f, "bdev \"{name}\" grows from {} to {}", format_size(*from), format_size(*to))
            }
            Self::ListenerRemoved { address } => write!(f, "{address} no longer listens"),
            Self::SubsystemRemoved { nqn } => write!(f, "subsystem \"{nqn}\" is removed"),
            Self::NamespaceRemoved { nqn, nsid } => {
                write!(f, "namespace {nsid} of \"{nqn}\" is removed")
            }
            Self::SubsystemAdded { nqn } => write!(f, "subsystem \"{nqn}\" is added"),
            Self::NamespaceAdded { nqn, nsid, bdev, read_only } => {
                let mode = if *read_only { ", read only" } else { "" };
                write!(f, "namespace {nsid} of \"{nqn}\" is added: bdev \"{bdev}\"{mode}")
            }
            Self::HostsChanged { nqn, hosts } => write!(f, "\"{nqn}\" now admits {hosts}"),
            Self::ListenerAdded { address } => write!(f, "{address} listens"),
            Self::BdevRemoved { name } => write!(f, "bdev \"{name}\" is removed"),
            Self::UblkAdded { bdev } => write!(f, "the ublk device of bdev \"{bdev}\" is added"),
            Self::UblkRemoved { bdev } => write!(f, "the ublk device of bdev \"{bdev}\" is removed"),
        }
    }
}

impl Change {
    /// Takes this change, which failed, back out of the configuration that `old` was to become: what it names stays as it was.
    pub fn undo(&self, running: &mut Config, old: &Config) {
        let nvmf = |running: &mut Config| {
            let none = || NvmfConfig { listen: Vec::new(), subsystems: Vec::new() };
            std::mem::take(&mut running.nvmf).unwrap_or_else(none)
        };
        let before = |nqn: &str| subsystem(old, nqn).cloned();
        match self {
            Self::Refused { .. } => {}
            Self::BdevAdded { name } => running.bdevs.retain(|bdev| bdev.name != *name),
            Self::BdevGrown { name, from, .. } => {
                running.bdevs.iter_mut().filter(|bdev| bdev.name == *name).for_each(|bdev| bdev.size = *from);
            }
            Self::BdevRemoved { name } => {
                running.bdevs.extend(old.bdev(name).cloned());
                running.bdevs = bases_first(std::mem::take(&mut running.bdevs));
            }
            Self::UblkAdded { bdev } => running.ublk.retain(|ublk| ublk.bdev != *bdev),
            Self::UblkRemoved { bdev } => running.ublk.extend(old.ublk_of(bdev).cloned()),
            Self::ListenerRemoved { address } => {
                let kept = old.listeners().iter().find(|listener| listener.address == *address).cloned();
                let mut nvmf = nvmf(running);
                nvmf.listen.extend(kept);
                running.nvmf = Some(nvmf);
            }
            Self::SubsystemRemoved { nqn } => {
                let mut nvmf = nvmf(running);
                nvmf.subsystems.extend(before(nqn));
                running.nvmf = Some(nvmf);
            }
            Self::ListenerAdded { address } => {
                if let Some(nvmf) = &mut running.nvmf
                    && let Some(at) = nvmf.listen.iter().rposition(|listener| listener.address == *address)
                {
                    nvmf.listen.remove(at);
                }
            }
            Self::SubsystemAdded { nqn } => {
                if let Some(nvmf) = &mut running.nvmf {
                    nvmf.subsystems.retain(|subsystem| subsystem.nqn != *nqn);
                }
            }
            Self::NamespaceRemoved { nqn, .. } | Self::NamespaceAdded { nqn, .. } | Self::HostsChanged { nqn, .. } => {
                let subsystems = running.nvmf.iter_mut().flat_map(|nvmf| &mut nvmf.subsystems);
                for after in subsystems.filter(|subsystem| subsystem.nqn == *nqn) {
                    match self {
                        // Not the one that a failed removal has put back in its place.
                        Self::NamespaceAdded { nsid, bdev, read_only, .. } => after
                            .namespaces
                            .retain(|one| (one.nsid, &one.bdev, one.read_only) != (*nsid, bdev, *read_only)),
                        Self::NamespaceRemoved { nsid, .. } => {
                            let kept = before(nqn).and_then(|s| s.namespaces.into_iter().find(|one| one.nsid == *nsid));
                            after.namespaces.retain(|one| one.nsid != *nsid);
                            after.namespaces.extend(kept);
                        }
                        _ => after.hosts = before(nqn).map_or_else(|| after.hosts.clone(), |subsystem| subsystem.hosts),
                    }
                }
            }
        }
    }
}

/// Compares the configuration in service with a new one.
pub fn diff(old: &Config, new: &Config) -> Diff {
    let (running, refused) = settle(old, new);
    let steps = [
        refused,
        listeners_only_in(old, &running).map(|address| Change::ListenerRemoved { address }).collect(),
        subsystems_only_in(old, &running)
            .map(|subsystem| Change::SubsystemRemoved { nqn: subsystem.nqn.clone() })
            .collect(),
        namespaces_only_in(old, &running)
            .map(|(nqn, namespace)| Change::NamespaceRemoved { nqn: nqn.to_owned(), nsid: namespace.nsid })
            .collect(),
        hosts_changed(old, &running).collect(),
        ublk_only_in(old, &running).map(|ublk| Change::UblkRemoved { bdev: ublk.bdev.clone() }).collect(),
        bdevs_only_in(old, &running).rev().map(|bdev| Change::BdevRemoved { name: bdev.name.clone() }).collect(),
        bdevs_only_in(&running, old).map(|bdev| Change::BdevAdded { name: bdev.name.clone() }).collect(),
        grown(old, &running).collect(),
        subsystems_only_in(&running, old)
            .map(|subsystem| Change::SubsystemAdded { nqn: subsystem.nqn.clone() })
            .collect(),
        namespaces_only_in(&running, old)
            .map(|(nqn, namespace)| Change::NamespaceAdded {
                nqn: nqn.to_owned(),
                nsid: namespace.nsid,
                bdev: namespace.bdev.clone(),
                read_only: namespace.read_only,
            })
            .collect(),
        listeners_only_in(&running, old).map(|address| Change::ListenerAdded { address }).collect::<Vec<_>>(),
        ublk_only_in(&running, old).map(|ublk| Change::UblkAdded { bdev: ublk.bdev.clone() }).collect(),
    ];
    Diff { changes: steps.into_iter().flatten().collect(), iscsi: IscsiSteps::between(old, &running), running }
}

fn bdevs_only_in<'a>(a: &'a Config, b: &'a Config) -> impl DoubleEndedIterator<Item = &'a BdevConfig> {
    a.bdevs.iter().filter(|bdev| b.bdev(&bdev.name).is_none())
}

fn ublk_only_in<'a>(a: &'a Config, b: &'a Config) -> impl Iterator<Item = &'a UblkConfig> {
    a.ublk.iter().filter(|ublk| b.ublk_of(&ublk.bdev).is_none())
}

fn grown<'a>(old: &'a Config, new: &'a Config) -> impl Iterator<Item = Change> + 'a {
    new.bdevs.iter().filter_map(|bdev| {
        let from = old.bdev(&bdev.name)?.size;
        (from != bdev.size).then(|| Change::BdevGrown { name: bdev.name.clone(), from, to: bdev.size })
    })
}

/// Addresses of `a` that `b` has not; port 0 may stand several times, so occurrences are counted.
fn listeners_only_in<'a>(a: &'a Config, b: &'a Config) -> impl Iterator<Item = SocketAddr> + 'a {
    let mut others: Vec<SocketAddr> = b.listeners().iter().map(|listener| listener.address).collect();
    a.listeners().iter().map(|listener| listener.address).filter(move |address| {
        let same = others.iter().position(|other| other == address);
        same.map(|index| others.swap_remove(index)).is_none()
    })
}

fn subsystem<'a>(config: &'a Config, nqn: &str) -> Option<&'a Subsystem> {
    config.subsystems().iter().find(|subsystem| subsystem.nqn == nqn)
}

fn subsystems_only_in<'a>(a: &'a Config, b: &'a Config) -> impl Iterator<Item = &'a Subsystem> {
    a.subsystems().iter().filter(|one| subsystem(b, &one.nqn).is_none())
}

/// Namespaces of `a`, in subsystems that both have, which `b` has not or has otherwise.
fn namespaces_only_in<'a>(a: &'a Config, b: &'a Config) -> impl Iterator<Item = (&'a str, &'a Namespace)> {
    let common = a.subsystems().iter().filter_map(|one| Some((one, subsystem(b, &one.nqn)?)));
    common.flat_map(|(one, other)| {
        let same = |x: &Namespace, y: &Namespace| (x.nsid, &x.bdev, x.read_only) == (y.nsid, &y.bdev, y.read_only);
        let only = one.namespaces.iter().filter(move |x| !other.namespaces.iter().any(|y| same(x, y)));
        only.map(|namespace| (one.nqn.as_str(), namespace))
    })
}

fn hosts_changed<'a>(old: &'a Config, new: &'a Config) -> impl Iterator<Item = Change> + 'a {
    new.subsystems().iter().filter_map(|after| {
        let before = subsystem(old, &after.nqn)?;
        (before.hosts != after.hosts)
            .then(|| Change::HostsChanged { nqn: after.nqn.clone(), hosts: after.hosts.clone() })
    })
}

/// The new configuration with the old values of what cannot change, and what was refused.
fn settle(old: &Config, new: &Config) -> (Config, Vec<Change>) {
    let mut refused = Vec::new();
    let mut refuse = |at: String, what: String| refused.push(Change::Refused { at, what });
    settle_process(old, new, &mut refuse);
    let mut bdevs: Vec<BdevConfig> = new
        .bdevs
        .iter()
        .map(|wanted| {
            let at = new.at(wanted.place);
            old.bdev(&wanted.name).map_or_else(|| wanted.clone(), |before| settle_bdev(before, wanted, at, &mut refuse))
        })
        .collect();
    keep_bases(old, new, &mut bdevs, &mut refuse);
    leave_out_clashes(old, new, &mut bdevs, &mut refuse);
    let bdevs = bases_first(bdevs);
    let ublk = settle_ublk(old, new, &bdevs, &mut refuse);
    let mut running = Config {
        reactor: old.reactor.clone(),
        memory: old.memory.clone(),
        socket: old.socket.clone(),
        bdevs,
        ublk,
        ..new.clone()
    };
    if let Some(nvmf) = &mut running.nvmf {
        let open = |namespace: &Namespace| running.bdevs.iter().any(|bdev| bdev.name == namespace.bdev);
        nvmf.subsystems.iter_mut().for_each(|subsystem| subsystem.namespaces.retain(open));
    }
    settle_iscsi(old, &mut running, &mut refuse);
    (running, refused)
}

/// Where a refusal goes: a place and a sentence.
pub(super) type Refuse<'a> = &'a mut dyn FnMut(String, String);

/// Threads and memory are made at start.
fn settle_process(old: &Config, new: &Config, refuse: Refuse<'_>) {
    let mut keep = |key: &str, value: &str| refuse(new.file.clone(), format!("{key} stays {value} until a restart"));
    if old.reactor.cores != new.reactor.cores {
        keep("reactor.cores", &format_core_list(&old.reactor.cores));
    }
    if old.reactor.idle != new.reactor.idle {
        keep("reactor.idle", "as it is");
    }
    if old.socket != new.socket {
        let stays = old.socket.as_ref().map_or_else(|| "out".to_owned(), |path| path.display().to_string());
        keep("control.socket", &stays);
    }
    if old.memory.size != new.memory.size {
        keep("memory.size", &format_size(old.memory.size));
    }
    if old.memory.hugepages != new.memory.hugepages {
        keep("memory.hugepages", "as it is");
    }
}

/// The volume as it can be while it stays open: all as before, except that it may grow.
fn settle_bdev(before: &BdevConfig, wanted: &BdevConfig, at: String, refuse: Refuse<'_>) -> BdevConfig {
    let name = &before.name;
    let mut settled = BdevConfig { place: wanted.place, ..before.clone() };
    let changed = fixed_keys_changed(before, wanted);
    if !changed.is_empty() {
        let keys = all_of(&changed);
        refuse(at, format!("bdev \"{name}\" stays as it is: {keys} cannot change while it is open"));
    } else if wanted.size < before.size && before.driver.base().is_none() {
        let size = format_size(before.size);
        refuse(at, format!("bdev \"{name}\" keeps its size of {size}: a volume cannot shrink"));
    } else {
        settled.size = wanted.size;
    }
    settled
}

/// Keys besides `size` whose values differ. The geometry of a layer is that of its base.
fn fixed_keys_changed(before: &BdevConfig, wanted: &BdevConfig) -> Vec<&'static str> {
    let mut keys = Vec::new();
    let mut note = |differs: bool, key| {
        if differs {
            keys.push(key);
        }
    };
    note(before.uuid != wanted.uuid, "uuid");
    match (&before.driver, &wanted.driver) {
        (Driver::Null { complete: was }, Driver::Null { complete: is }) => note(was != is, "complete"),
        (Driver::Malloc, Driver::Malloc) => {}
        (Driver::File { path: old, direct: was }, Driver::File { path: new, direct: is }) => {
            note(old != new, "path");
            note(was != is, "direct");
        }
        (Driver::Nvme(was), Driver::Nvme(is)) => {
            note(matches!((&was.disk, &is.disk), (Which::Pci(old), Which::Pci(new)) if old != new), "pci");
            note(matches!((&was.disk, &is.disk), (Which::Serial(old), Which::Serial(new)) if old != new), "serial");
            note(
                matches!((&was.disk, &is.disk), (Which::Pci(_), Which::Serial(_)) | (Which::Serial(_), Which::Pci(_))),
                "pci or serial",
            );
            note(was.nsid != is.nsid, "nsid");
            note(was.mode != is.mode, "mode");
            let (was_so, is_so) = (&was.tuning, &is.tuning);
            note(was_so.depth != is_so.depth, "depth");
            note(was_so.timeout != is_so.timeout, "timeout");
            note(was_so.cmb != is_so.cmb, "cmb");
            note(was_so.coalescing != is_so.coalescing, "coalesce");
            note(was.size != is.size, "size");
            note(was.block_size != is.block_size, "block_size");
        }
        (Driver::Inject { base: old, rules: was }, Driver::Inject { base: new, rules: is }) => {
            note(old != new, "base");
            note(was != is, "rules");
        }
        _ => note(true, "driver"),
    }
    if before.driver.base().is_none() && wanted.driver.base().is_none() {
        note(before.block_size != wanted.block_size, "block_size");
        note(before.physical_block_size != wanted.physical_block_size, "physical_block_size");
    }
    keys
}

/// A new volume may want the file or the identity of one that was to give it up and did not.
fn leave_out_clashes(old: &Config, new: &Config, bdevs: &mut Vec<BdevConfig>, refuse: Refuse<'_>) {
    let stays: Vec<BdevConfig> = bdevs.iter().filter(|bdev| old.bdev(&bdev.name).is_some()).cloned().collect();
    let path = |bdev: &BdevConfig| match &bdev.driver {
        Driver::File { path, .. } => Some(path.clone()),
        Driver::Null { .. } | Driver::Malloc | Driver::Nvme(_) | Driver::Inject { .. } => None,
    };
    let mut left_out: Vec<String> = Vec::new();
    // Bases come before layers in `bdevs`, so one pass finds the layers of what is left out.
    bdevs.retain(|bdev| {
        if old.bdev(&bdev.name).is_some() {
            return true;
        }
        let namespace = |bdev: &BdevConfig| match &bdev.driver {
            Driver::Nvme(wanted) => Some((wanted.disk.clone(), wanted.nsid)),
            _ => None,
        };
        let same = |other: &&BdevConfig| {
            other.uuid == bdev.uuid
                || (path(bdev).is_some() && path(other) == path(bdev))
                || (namespace(bdev).is_some() && namespace(other) == namespace(bdev))
        };
        let clash = stays.iter().find(same);
        let reason = match (clash, bdev.driver.base().filter(|base| left_out.iter().any(|name| name == base))) {
            (Some(other), _) => format!("bdev \"{}\" keeps what it needs", other.name),
            (None, Some(base)) => format!("bdev \"{base}\" below it is not added"),
            (None, None) => return true,
        };
        refuse(new.at(bdev.place), format!("bdev \"{}\" is not added: {reason}", bdev.name));
        left_out.push(bdev.name.clone());
        false
    });
}

/// A layer that stays as it is keeps the volumes below it open.
fn keep_bases(old: &Config, new: &Config, bdevs: &mut Vec<BdevConfig>, refuse: Refuse<'_>) {
    let mut index = 0;
    while let Some(layer) = bdevs.get(index) {
        let base = layer.driver.base().filter(|base| bdevs.iter().all(|bdev| bdev.name != *base));
        if let Some(base) = base.and_then(|base| old.bdev(base)) {
            let what = format!("bdev \"{}\" stays open: bdev \"{}\" stands on it", base.name, layer.name);
            refuse(new.file.clone(), what);
            bdevs.push(base.clone());
        }
        index += 1;
    }
}

/// Bases before layers, otherwise in order, and each layer with the geometry of its base. An old layer stands on old
/// volumes and a new one was checked, so none stands on itself.
fn bases_first(mut waiting: Vec<BdevConfig>) -> Vec<BdevConfig> {
    let mut done: Vec<BdevConfig> = Vec::with_capacity(waiting.len());
    while !waiting.is_empty() {
        let ready =
            |bdev: &BdevConfig| bdev.driver.base().is_none_or(|base| done.iter().any(|below| below.name == base));
        let next = waiting.iter().position(ready).expect("every layer stands on a volume of the list");
        let mut bdev = waiting.remove(next);
        if let Some(base) = bdev.driver.base().and_then(|base| done.iter().find(|below| below.name == base)) {
            let BdevConfig { size, block_size, physical_block_size, .. } = *base;
            bdev = BdevConfig { size, block_size, physical_block_size, ..bdev };
        }
        done.push(bdev);
    }
    done
}

/// Local block devices of volumes that are open: those in service as before, and new ones.
fn settle_ublk(old: &Config, new: &Config, bdevs: &[BdevConfig], refuse: Refuse<'_>) -> Vec<UblkConfig> {
    let mut settled = Vec::with_capacity(new.ublk.len());
    // That a volume is not added has been told.
    let open = |ublk: &&UblkConfig| bdevs.iter().any(|bdev| bdev.name == ublk.bdev);
    for wanted in new.ublk.iter().filter(open) {
        let (at, name) = (new.at(wanted.place), &wanted.bdev);
        if let Some(before) = old.ublk_of(name) {
            let changed = ublk_keys_changed(before, wanted, old, new);
            if !changed.is_empty() {
                let keys = all_of(&changed);
                let what =
                    format!("the ublk device of bdev \"{name}\" stays as it is until a restart: {keys} cannot change");
                refuse(at, what);
            }
            settled.push(UblkConfig { place: wanted.place, ..before.clone() });
            continue;
        }
        // A new device may want the number of one that was to give it up and did not.
        let stays = |other: &&UblkConfig| other.id == wanted.id && new.ublk_of(&other.bdev).is_some();
        match wanted.id.and_then(|id| Some((id, old.ublk.iter().find(stays)?))) {
            Some((id, other)) => {
                let keeps = format!("that of bdev \"{}\" keeps id {id}", other.bdev);
                refuse(at, format!("the ublk device of bdev \"{name}\" is not added: {keeps}"));
            }
            None => settled.push(wanted.clone()),
        }
    }
    settled
}

/// Keys whose values differ.
fn ublk_keys_changed(before: &UblkConfig, wanted: &UblkConfig, old: &Config, new: &Config) -> Vec<&'static str> {
    // One queue for each core is most often the default, which other cores change: it is the cores that are refused.
    let each = |ublk: &UblkConfig, config: &Config| usize::from(ublk.queues) == config.reactor.cores.len();
    let queues = before.queues != wanted.queues && !(each(before, old) && each(wanted, new));
    [
        (before.id != wanted.id, "id"),
        (queues, "queues"),
        (before.depth != wanted.depth, "depth"),
        (before.mode != wanted.mode, "mode"),
        (before.recover != wanted.recover, "recover"),
        (before.required != wanted.required, "required"),
        (before.read_only != wanted.read_only, "read_only"),
    ]
    .into_iter()
    .filter_map(|(differs, key)| differs.then_some(key))
    .collect()
}
