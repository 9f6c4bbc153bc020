//! What a reload changes at the iSCSI door.

use std::fmt;

use crate::control::config::diff::Refuse;
use crate::control::config::model::{Config, IscsiConfig, IscsiPortal, IscsiTarget, Lun};
use crate::control::config::reader::all_of;

/// The steps of a reload at the iSCSI door, each part in an order that can be carried out one by one. Between them come the steps
/// of the rest ([`super::super::Diff::changes`]): so no logical unit is of a volume that is not open.
///
/// A target none of whose portals listens can be there for a while, or for longer if one cannot be opened: it is reached by nobody then.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IscsiSteps {
    /// What leaves, and what stays and has other keys.
    pub before: Vec<IscsiChange>,
    /// What comes.
    pub after: Vec<IscsiChange>,
}

/// One step of a reload at the iSCSI door. Its `Display` is a sentence for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IscsiChange {
    /// Close this listening socket; its connections stay.
    PortalRemoved {
        /// As configured: port 0 stands for the port that was taken.
        portal: IscsiPortal,
    },
    /// Close this target and its sessions.
    TargetRemoved {
        /// Its name.
        iqn: String,
    },
    /// Take this logical unit from its target and tell its initiators.
    LunRemoved {
        /// The target.
        iqn: String,
        /// The logical unit, as it was.
        lun: Lun,
    },
    /// Other values of these keys hold for this target: for logins from now on, and for who asks for targets. Its logical units are
    /// not among them.
    TargetChanged {
        /// Its name.
        iqn: String,
        /// The keys, at least one, in the order of [`TargetKey`].
        keys: Vec<TargetKey>,
    },
    /// Initiators prove something else, or nothing, before they are told of targets. Comes where the door was there and stays.
    DiscoveryChapChanged,
    /// This listening socket stays, with another tag or another address that initiators are told.
    PortalChanged {
        /// As it was.
        from: IscsiPortal,
        /// As it is to be, with the same `listen`.
        to: IscsiPortal,
    },
    /// Open this target with all its logical units; no `LunAdded` follows for them.
    TargetAdded {
        /// Its name in the new configuration.
        iqn: String,
    },
    /// Add this logical unit to its target and tell its initiators.
    LunAdded {
        /// The target.
        iqn: String,
        /// The logical unit.
        lun: Lun,
    },
    /// Open this listening socket.
    PortalAdded {
        /// As configured.
        portal: IscsiPortal,
    },
}

/// A key of a target that a reload may change while initiators are logged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TargetKey {
    /// `alias`.
    Alias,
    /// `chap`: a key of it, or a secret in its file.
    Chap,
    /// `initiators`.
    Initiators,
    /// `header_digest`.
    HeaderDigest,
    /// `data_digest`.
    DataDigest,
    /// `portals`: the groups where it is reached.
    Portals,
    /// `redirect`.
    Redirect,
}

impl TargetKey {
    const ALL: [Self; 7] = [
        Self::Alias,
        Self::Chap,
        Self::Initiators,
        Self::HeaderDigest,
        Self::DataDigest,
        Self::Portals,
        Self::Redirect,
    ];

    /// As the file spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alias => "alias",
            Self::Chap => "chap",
            Self::Initiators => "initiators",
            Self::HeaderDigest => "header_digest",
            Self::DataDigest => "data_digest",
            Self::Portals => "portals",
            Self::Redirect => "redirect",
        }
    }

    fn differs(self, a: &IscsiTarget, b: &IscsiTarget) -> bool {
        match self {
            Self::Alias => a.alias != b.alias,
            Self::Chap => a.chap != b.chap,
            Self::Initiators => a.initiators != b.initiators,
            Self::HeaderDigest => a.header_digest != b.header_digest,
            Self::DataDigest => a.data_digest != b.data_digest,
            Self::Portals => a.portals != b.portals,
            Self::Redirect => a.redirect != b.redirect,
        }
    }

    /// Gives `target` the value that `before` has.
    fn restore(self, target: &mut IscsiTarget, before: &IscsiTarget) {
        match self {
            Self::Alias => target.alias.clone_from(&before.alias),
            Self::Chap => target.chap.clone_from(&before.chap),
            Self::Initiators => target.initiators.clone_from(&before.initiators),
            Self::HeaderDigest => target.header_digest = before.header_digest,
            Self::DataDigest => target.data_digest = before.data_digest,
            Self::Portals => target.portals.clone_from(&before.portals),
            Self::Redirect => target.redirect.clone_from(&before.redirect),
        }
    }
}

impl fmt::Display for IscsiChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told = |portal: &IscsiPortal| {
            let advertised = portal.advertise.map(|address| format!(", told as {address}")).unwrap_or_default();
            format!("in portal group {}{advertised}", portal.tpgt)
        };
        match self {
            Self::PortalRemoved { portal } => write!(f, "{} no longer listens for iSCSI", portal.listen),
            Self::TargetRemoved { iqn } => write!(f, "target \"{iqn}\" is removed"),
            Self::LunRemoved { iqn, lun } => write!(f, "LUN {} of \"{iqn}\" is removed", lun.lun),
            Self::TargetChanged { iqn, keys } => {
                let names: Vec<&str> = keys.iter().map(|key| key.name()).collect();
                write!(f, "target \"{iqn}\" has other {} from now on", all_of(&names))
            }
            Self::DiscoveryChapChanged => f.write_str("iscsi.discovery_chap is another from now on"),
            Self::PortalChanged { to, .. } => write!(f, "{} is {} from now on", to.listen, told(to)),
            Self::TargetAdded { iqn } => write!(f, "target \"{iqn}\" is added"),
            Self::LunAdded { iqn, lun } => {
                let mode = if lun.read_only { ", read only" } else { "" };
                write!(f, "LUN {} of \"{iqn}\" is added: bdev \"{}\"{mode}", lun.lun, lun.bdev)
            }
            Self::PortalAdded { portal } => write!(f, "{} listens for iSCSI, {}", portal.listen, told(portal)),
        }
    }
}

impl IscsiChange {
    /// Takes this change, which failed, back out of the configuration that `old` was to become: what it names stays as it was.
    pub fn undo(&self, running: &mut Config, old: &Config) {
        let was = old.iscsi.as_ref();
        if let (None, Some(was)) = (&running.iscsi, was) {
            running.iscsi = Some(IscsiConfig { portals: Vec::new(), targets: Vec::new(), ..was.clone() });
        }
        let Some(is) = &mut running.iscsi else {
            return;
        };
        match self {
            Self::PortalRemoved { portal } => is.portals.push(portal.clone()),
            Self::PortalAdded { portal } => {
                if let Some(at) = is.portals.iter().rposition(|one| one == portal) {
                    is.portals.remove(at);
                }
            }
            Self::PortalChanged { from, to } => {
                if let Some(portal) = is.portals.iter_mut().find(|one| *one == to) {
                    portal.clone_from(from);
                }
            }
            Self::DiscoveryChapChanged => is.discovery_chap = was.and_then(|was| was.discovery_chap.clone()),
            Self::TargetRemoved { iqn } => is.targets.extend(old.target(iqn).cloned()),
            Self::TargetAdded { iqn } => is.targets.retain(|target| target.iqn != *iqn),
            Self::LunRemoved { iqn, lun } => {
                for target in is.targets.iter_mut().filter(|target| target.iqn == *iqn) {
                    target.luns.retain(|one| one.lun != lun.lun);
                    target.luns.push(lun.clone());
                    target.luns.sort_by_key(|one| one.lun);
                }
            }
            Self::LunAdded { iqn, lun } => {
                for target in is.targets.iter_mut().filter(|target| target.iqn == *iqn) {
                    // Not the one that a failed removal has put back in its place.
                    target.luns.retain(|one| one != lun);
                }
            }
            Self::TargetChanged { iqn, keys } => {
                let after = is.targets.iter_mut().find(|target| target.iqn == *iqn);
                if let (Some(after), Some(before)) = (after, old.target(iqn)) {
                    keys.iter().for_each(|key| key.restore(after, before));
                }
            }
        }
    }
}

impl IscsiSteps {
    /// No step.
    pub fn is_empty(&self) -> bool {
        self.before.is_empty() && self.after.is_empty()
    }

    /// What makes the door of `running` out of that of `old`.
    pub(in crate::control::config) fn between(old: &Config, running: &Config) -> Self {
        let portals = compare_portals(old.iscsi_portals(), running.iscsi_portals());
        let discovery_changed = old
            .iscsi
            .as_ref()
            .zip(running.iscsi.as_ref())
            .is_some_and(|(was, is)| was.discovery_chap != is.discovery_chap);
        let before = [
            portals.removed,
            targets_only_in(old, running).map(|iqn| IscsiChange::TargetRemoved { iqn }).collect(),
            luns_only_in(old, running).map(|(iqn, lun)| IscsiChange::LunRemoved { iqn, lun }).collect(),
            targets_changed(old, running).collect(),
            discovery_changed.then_some(IscsiChange::DiscoveryChapChanged).into_iter().collect(),
            portals.changed,
        ];
        let after = [
            targets_only_in(running, old).map(|iqn| IscsiChange::TargetAdded { iqn }).collect(),
            luns_only_in(running, old).map(|(iqn, lun)| IscsiChange::LunAdded { iqn, lun }).collect(),
            portals.added,
        ];
        Self { before: before.into_iter().flatten().collect(), after: after.into_iter().flatten().collect() }
    }
}

/// What is with the listening sockets, a list of changes of each kind.
struct Portals {
    removed: Vec<IscsiChange>,
    changed: Vec<IscsiChange>,
    added: Vec<IscsiChange>,
}

/// Pairs equal portals first, then those of one address: of port 0 there may be several, so each has one partner at most.
fn compare_portals(old: &[IscsiPortal], new: &[IscsiPortal]) -> Portals {
    let mut left: Vec<&IscsiPortal> = old.iter().collect();
    let mut partner_of = |new: &IscsiPortal, same: fn(&IscsiPortal, &IscsiPortal) -> bool| {
        left.iter().position(|old| same(old, new)).map(|at| left.remove(at))
    };
    let others: Vec<&IscsiPortal> =
        new.iter().filter(|portal| partner_of(portal, |old, new| old == new).is_none()).collect();
    let (mut changed, mut added) = (Vec::new(), Vec::new());
    for portal in others {
        match partner_of(portal, |old, new| old.listen == new.listen) {
            Some(from) => changed.push(IscsiChange::PortalChanged { from: from.clone(), to: portal.clone() }),
            None => added.push(IscsiChange::PortalAdded { portal: portal.clone() }),
        }
    }
    let removed = left.into_iter().map(|portal| IscsiChange::PortalRemoved { portal: portal.clone() }).collect();
    Portals { removed, changed, added }
}

fn targets_only_in<'a>(a: &'a Config, b: &'a Config) -> impl Iterator<Item = String> + 'a {
    a.targets().iter().filter(|target| b.target(&target.iqn).is_none()).map(|target| target.iqn.clone())
}

/// Logical units of `a`, in targets that both have, which `b` has not or has otherwise.
fn luns_only_in<'a>(a: &'a Config, b: &'a Config) -> impl Iterator<Item = (String, Lun)> + 'a {
    let common = a.targets().iter().filter_map(|one| Some((one, b.target(&one.iqn)?)));
    common.flat_map(|(one, other)| {
        let only = one.luns.iter().filter(|lun| !other.luns.contains(lun));
        only.map(|lun| (one.iqn.clone(), lun.clone()))
    })
}

fn targets_changed<'a>(old: &'a Config, new: &'a Config) -> impl Iterator<Item = IscsiChange> + 'a {
    new.targets().iter().filter_map(|after| {
        let before = old.target(&after.iqn)?;
        let keys: Vec<TargetKey> = TargetKey::ALL.into_iter().filter(|key| key.differs(before, after)).collect();
        (!keys.is_empty()).then(|| IscsiChange::TargetChanged { iqn: after.iqn.clone(), keys })
    })
}

/// Leaves out logical units of volumes that are not open, which has been told, and keeps the directory of reservations.
pub(in crate::control::config) fn settle_iscsi(old: &Config, running: &mut Config, refuse: Refuse<'_>) {
    let Some(is) = &mut running.iscsi else {
        return;
    };
    let open = |lun: &Lun| running.bdevs.iter().any(|bdev| bdev.name == lun.bdev);
    is.targets.iter_mut().for_each(|target| target.luns.retain(open));
    if let Some(was) = old.iscsi.as_ref().filter(|was| was.state != is.state) {
        let what = format!("iscsi.state stays {} until a restart", was.state.display());
        refuse(running.file.clone(), what);
        is.state.clone_from(&was.state);
    }
}
