//! The iSCSI door of a configuration: its targets, made from volumes, and its listening sockets.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::config::{Chap, Config, IscsiChange, IscsiPortal, IscsiTarget, Lun as LunConfig};
use super::volumes::Volumes;
use crate::bdev::registry::Claim;
use crate::iscsi::door::{Directory, Door, Lun, Options, Target, TargetPortal};
use crate::iscsi::{AllowedInitiators, ChapConfig, Offer};
use crate::reactor::clock::Entropy;
use crate::reactor::mailbox::Remote;

/// A logical unit with what holds its volume.
struct Held {
    claim: Claim,
    read_only: bool,
}

/// The targets and portals that are open.
pub struct Targets {
    remotes: Vec<Remote>,
    door: Option<Door>,
    /// As configured, and as bound.
    listening: Vec<(IscsiPortal, SocketAddr)>,
    targets: BTreeMap<String, IscsiTarget>,
    /// By target and number.
    luns: BTreeMap<(String, u16), Held>,
}

fn said<E: std::fmt::Display>(error: E) -> String {
    error.to_string()
}

/// What initiators prove. Where they must prove something, it is never nothing.
fn proof_of(chap: Option<&Chap>) -> Result<Option<ChapConfig>, String> {
    match chap {
        None => Ok(None),
        Some(chap) => chap.proof.clone().map(Some).ok_or_else(|| "the secrets of chap have not been read".to_owned()),
    }
}

impl Targets {
    /// None yet, on these reactors.
    pub fn new(remotes: &[Remote]) -> Targets {
        Targets {
            remotes: remotes.to_vec(),
            door: None,
            listening: Vec::new(),
            targets: BTreeMap::new(),
            luns: BTreeMap::new(),
        }
    }

    /// Opens what a configuration has.
    ///
    /// # Errors
    /// The place of what does not open, and why.
    pub fn start(&mut self, config: &Config, volumes: &Volumes) -> Result<(), String> {
        let Some(iscsi) = &config.iscsi else { return Ok(()) };
        self.set_discovery_chap(config)?;
        for target in &iscsi.targets {
            self.add(target, config, volumes).map_err(|why| format!("{}: {why}", config.at(target.place)))?;
        }
        for portal in &iscsi.portals {
            self.listen(portal, config).map_err(|why| format!("{}: {why}", config.at(portal.place)))?;
        }
        Ok(())
    }

    /// The door, once something was opened.
    pub fn door(&self) -> Option<&Door> {
        self.door.as_ref()
    }

    /// The commands that connect a host, one of each in the order of the configuration.
    pub fn connect_lines(&self, config: &Config) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for (portal, bound) in &self.listening {
            for target in config.targets().iter().filter(|target| target.is_in_group(portal.tpgt)) {
                for line in portal.connect_lines(&target.iqn, *bound) {
                    if !lines.contains(&line) {
                        lines.push(line);
                    }
                }
            }
        }
        lines
    }

    /// A volume has another size.
    ///
    /// # Errors
    /// If a reactor has ended.
    pub fn resized(&mut self, device: u32) -> Result<(), String> {
        self.door.as_mut().map_or(Ok(()), |door| door.resized(device).map_err(said))
    }

    /// Carries out one step of a reload to `new`.
    ///
    /// # Errors
    /// Why it is not done.
    pub fn apply(&mut self, change: &IscsiChange, new: &Config, volumes: &Volumes) -> Result<(), String> {
        match change {
            IscsiChange::PortalRemoved { portal } => {
                let at = self.listening.iter().position(|(open, _)| open == portal).ok_or("nobody listens there")?;
                let (_, bound) = self.listening.remove(at);
                self.open_door(new)?.unlisten(bound).map_err(said)?;
                self.set_all()
            }
            IscsiChange::PortalChanged { from, to } => {
                let open = self.listening.iter_mut().find(|(open, _)| open == from).ok_or("nobody listens there")?;
                open.0 = to.clone();
                self.set_all()
            }
            IscsiChange::PortalAdded { portal } => self.listen(portal, new),
            IscsiChange::TargetRemoved { iqn } => {
                self.open_door(new)?.remove_target(iqn).map_err(said)?;
                self.targets.remove(iqn);
                self.luns.retain(|(of, _), _| of != iqn);
                Ok(())
            }
            IscsiChange::TargetAdded { iqn } => {
                let target = new.target(iqn).ok_or("it is not configured")?;
                self.add(target, new, volumes)
            }
            IscsiChange::TargetChanged { iqn, .. } => {
                let target = new.target(iqn).ok_or("it is not configured")?;
                let before = self.targets.insert(iqn.clone(), target.clone());
                self.set(iqn).inspect_err(|_| {
                    if let Some(before) = before {
                        self.targets.insert(iqn.clone(), before);
                    }
                })
            }
            IscsiChange::LunRemoved { iqn, lun } => {
                let key = (iqn.clone(), lun.lun);
                let held = self.luns.remove(&key);
                match (self.set(iqn), held) {
                    (Err(why), Some(held)) => {
                        self.luns.insert(key, held);
                        Err(why)
                    }
                    (result, _) => result,
                }
            }
            IscsiChange::LunAdded { iqn, lun } => {
                self.hold(iqn, lun, volumes)?;
                self.set(iqn).inspect_err(|_| drop(self.luns.remove(&(iqn.clone(), lun.lun))))
            }
            IscsiChange::DiscoveryChapChanged => self.set_discovery_chap(new),
        }
    }

    fn open_door(&mut self, config: &Config) -> Result<&mut Door, String> {
        if self.door.is_none() {
            let mut secret = [0; 32];
            for part in secret.chunks_mut(8) {
                let seed = Entropy::seed_from_kernel().map_err(|why| format!("/dev/urandom: {why}"))?;
                part.copy_from_slice(&seed.to_le_bytes());
            }
            let iscsi = config.iscsi.as_ref().ok_or("there is no [iscsi]")?;
            let directory = Directory::new(&iscsi.state).map_err(|why| format!("{}: {why}", iscsi.state.display()))?;
            let options = Options { secret, store: Some(std::sync::Arc::new(directory)) };
            self.door = Some(Door::open(&self.remotes, options).map_err(said)?);
        }
        self.door.as_mut().ok_or_else(|| "there is no iSCSI door".to_owned())
    }

    fn set_discovery_chap(&mut self, config: &Config) -> Result<(), String> {
        let chap = config.iscsi.as_ref().and_then(|iscsi| iscsi.discovery_chap.as_ref());
        let proof = proof_of(chap)?;
        self.open_door(config)?.set_discovery_chap(proof).map_err(said)
    }

    fn add(&mut self, target: &IscsiTarget, config: &Config, volumes: &Volumes) -> Result<(), String> {
        self.open_door(config)?;
        self.targets.insert(target.iqn.clone(), target.clone());
        let held = target.luns.iter().try_for_each(|lun| self.hold(&target.iqn, lun, volumes));
        held.and_then(|()| self.set(&target.iqn)).inspect_err(|_| {
            self.targets.remove(&target.iqn);
            self.luns.retain(|(of, _), _| *of != target.iqn);
        })
    }

    /// Takes the volume of a logical unit into use.
    fn hold(&mut self, iqn: &str, lun: &LunConfig, volumes: &Volumes) -> Result<(), String> {
        let claim = volumes.claim(&lun.bdev, &format!("LUN {} of {iqn}", lun.lun)).map_err(said)?;
        self.luns.insert((iqn.to_owned(), lun.lun), Held { claim, read_only: lun.read_only });
        Ok(())
    }

    fn listen(&mut self, portal: &IscsiPortal, config: &Config) -> Result<(), String> {
        let bound = self.open_door(config)?.listen(portal.listen).map_err(said)?;
        self.listening.push((portal.clone(), bound));
        self.set_all()
    }

    fn set_all(&mut self) -> Result<(), String> {
        let all: Vec<String> = self.targets.keys().cloned().collect();
        all.iter().try_for_each(|iqn| self.set(iqn))
    }

    /// Has the door export a target as it is now.
    fn set(&mut self, iqn: &str) -> Result<(), String> {
        let target = self.targets.get(iqn).ok_or("there is no such target")?;
        let luns = self.luns.range((iqn.to_owned(), 0)..=(iqn.to_owned(), u16::MAX)).map(|((_, lun), held)| Lun {
            lun: *lun,
            device: held.claim.device().clone(),
            read_only: held.read_only,
        });
        let here = self.listening.iter().filter(|(portal, _)| target.is_in_group(portal.tpgt));
        let portals = here.map(|(portal, bound)| TargetPortal {
            listener: *bound,
            tpgt: portal.tpgt,
            advertise: portal.advertise.map(|address| address.to_string()),
        });
        let export = Target {
            iqn: target.iqn.clone(),
            alias: target.alias.clone(),
            portals: portals.collect(),
            redirect: target.redirect.clone(),
            initiators: match &target.initiators {
                AllowedInitiators::Any => None,
                AllowedInitiators::Listed(names) => Some(names.iter().cloned().collect()),
            },
            chap: proof_of(target.chap.as_ref())?,
            offer: Offer { header_digest: target.header_digest, data_digest: target.data_digest, ..Offer::default() },
            luns: luns.collect(),
        };
        let door = self.door.as_mut().ok_or("there is no iSCSI door")?;
        door.set_target(export).map_err(said)
    }
}
