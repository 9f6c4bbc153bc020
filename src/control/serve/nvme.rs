//! Methods of the control socket: the NVMe disks that this process holds.
//!
//! ```text
//!  connection's thread                    main thread
//!  identify, smart, log, reset   ------>  the way to the disk  --+
//!     command, answer            <-------------------------------+      volumes go on
//!
//!  format                        ------>  volumes of the disk leave their doors, the disk is closed, and opened for commands alone
//!     command, answer            <------
//!                                ------>  the disk is closed; volumes are opened, and go back to their doors
//!
//!  unbind                        ------>  volumes leave their doors, the disk is closed: `reactor nvme` gives it away
//! ```
//! A format takes all volumes of a disk out of service, also those of other namespaces: a disk may stop all I/O until it is done, and the
//! timeouts of that I/O would reset the controller in the middle of it.

use std::sync::{Arc, mpsc};

use serde_json::{Value, json};

use super::{Event, Server};
use crate::bdev::device::nvme::{DiskAdmin, Open};
use crate::control::config::{self, Config};
use crate::control::nvme_command::job::{self, Job};
use crate::control::nvme_command::owner::{self, Params};
use crate::control::nvme_command::state::{Owned, OwnedNamespace, absolute};
use crate::control::rpc::{Methods, RpcError};
use crate::nvme::spec::padded_text;
use crate::sys::pci::Address;

/// The methods, with their errands to the main thread.
pub(super) fn methods(events: mpsc::Sender<Event>) -> Methods {
    Arc::new(move |method, params| call(&events, method, params))
}

/// Has the main thread do something, and waits for it.
fn errand<R: Send + 'static>(
    events: &mpsc::Sender<Event>,
    work: impl FnOnce(&mut Server) -> R + Send + 'static,
) -> Result<R, RpcError> {
    let ended = || RpcError::Failed("reactor is ending".to_owned());
    let (sender, done) = mpsc::channel();
    // Who asked may have gone.
    let errand = move |server: &mut Server| drop(sender.send(work(server)));
    events.send(Event::Errand(Box::new(errand))).map_err(|_| ended())?;
    done.recv().map_err(|_| ended())
}

fn call(events: &mpsc::Sender<Event>, method: &str, params: Value) -> Result<Value, RpcError> {
    if method == "nvme.list" {
        if !params.is_null() && params.as_object().is_none_or(|params| !params.is_empty()) {
            return Err(RpcError::Params("nvme.list has no parameters".to_owned()));
        }
        return errand(events, |server| server.listed());
    }
    if !["nvme.identify", "nvme.smart", "nvme.log", "nvme.format", "nvme.reset", "nvme.unbind"].contains(&method) {
        return Err(RpcError::Unknown);
    }
    let params: Params = serde_json::from_value(params).map_err(|why| RpcError::Params(why.to_string()))?;
    let address: Address = params.device.parse().map_err(|why| RpcError::Params(format!("`device`: {why}")))?;
    let force = params.force;
    if method == "nvme.unbind" {
        let plain = Params { device: params.device.clone(), force, ..Params::default() };
        if plain != params {
            return Err(RpcError::Params("nvme.unbind takes `device` and `force`".to_owned()));
        }
        return errand(events, move |server| server.release(address, force))?.map_err(RpcError::Failed);
    }
    let job = owner::job(method, &params).ok_or(RpcError::Unknown)?.map_err(RpcError::Params)?;
    match job {
        Job::Format(_) => format(events, address, job, force),
        Job::Reset => {
            let mut admin = errand(events, move |server| {
                server.refuse_use(address, force)?;
                server.admin(address)
            })?
            .map_err(RpcError::Failed)?;
            job::carry_out(&mut admin, &job, force).map_err(RpcError::Failed)
        }
        _ => {
            let mut admin = errand(events, move |server| server.admin(address))?.map_err(RpcError::Failed)?;
            job::carry_out(&mut admin, &job, force).map_err(RpcError::Failed)
        }
    }
}

fn format(events: &mpsc::Sender<Event>, address: Address, job: Job, force: bool) -> Result<Value, RpcError> {
    let started = errand(events, move |server| {
        let before = server.block_sizes(address);
        server.take_out(address, force)?;
        match server.volumes.nvme_mut().visit(&mut server.reactors, address) {
            Ok(admin) => Ok((admin, before)),
            Err(why) => {
                let back = server.bring_back(address, &[]);
                Err([vec![why.to_string()], back].concat().join("; "))
            }
        }
    })?;
    let (mut admin, before): (DiskAdmin, Vec<(String, u32, u32)>) = started.map_err(RpcError::Failed)?;
    let done = job::carry_out(&mut admin, &job, force);
    // Volumes whose blocks are others now, or may be: hosts would go on with those that they know. Whatever the answer was: a format may have
    // been done, and of more namespaces than one.
    let mut changed = Vec::new();
    for (name, nsid, size) in &before {
        if job::block_size(&mut admin, *nsid) != Ok(u64::from(*size)) {
            changed.push(name.clone());
        }
    }
    drop(admin);
    let back = errand(events, move |server| server.bring_back(address, &changed))?;
    match done {
        Ok(mut value) => {
            value["notes"] = json!(back);
            Ok(value)
        }
        Err(why) => Err(RpcError::Failed([vec![why], back].concat().join("; "))),
    }
}

/// A configuration without some volumes, what stands on them, and their exports.
fn without(config: &Config, names: &[String]) -> Config {
    let mut rest = config.clone();
    rest.bdevs.retain(|bdev| !names.contains(&bdev.name));
    rest.ublk.retain(|ublk| !names.contains(&ublk.bdev));
    for subsystem in rest.nvmf.iter_mut().flat_map(|nvmf| &mut nvmf.subsystems) {
        subsystem.namespaces.retain(|namespace| !names.contains(&namespace.bdev));
    }
    for target in rest.iscsi.iter_mut().flat_map(|iscsi| &mut iscsi.targets) {
        target.luns.retain(|lun| !names.contains(&lun.bdev));
    }
    rest
}

/// Volumes and all that stands on them.
fn with_layers(config: &Config, mut names: Vec<String>) -> Vec<String> {
    // Bases come before their layers.
    for bdev in &config.bdevs {
        if bdev.driver.base().is_some_and(|base| names.iter().any(|name| name == base)) {
            names.push(bdev.name.clone());
        }
    }
    names
}

impl Server {
    /// Says of which disks this process is the server; what is out of service for a while is its still.
    pub(super) fn publish(&mut self) {
        if self.out.is_some() {
            return;
        }
        let disks = self.volumes.nvme().list();
        let owned = |open: &Open| (open.address, self.owned(open));
        let all = disks.iter().map(owned).collect();
        self.files.publish(all);
    }

    fn owned(&self, open: &Open) -> Owned {
        let namespaces = open.namespaces.iter().map(|(info, volume)| {
            let geometry = info.geometry.as_ref().ok();
            OwnedNamespace {
                nsid: info.nsid,
                bytes: geometry.map(|geometry| geometry.size),
                block_size: geometry.map(|geometry| 1 << geometry.block_shift),
                zoned: geometry.is_some_and(|geometry| geometry.zones.is_some()),
                volume: volume.clone(),
            }
        });
        Owned {
            pid: std::process::id(),
            config: absolute(self.config.file.as_ref()).display().to_string(),
            socket: self.config.socket.clone(),
            serial: padded_text(&open.identity.sn),
            model: padded_text(&open.identity.mn),
            firmware: padded_text(&open.identity.fr),
            namespaces: namespaces.collect(),
        }
    }

    fn listed(&mut self) -> Value {
        let disks = self.volumes.nvme().list();
        let one = |open: &Open| {
            let mut value = json!(self.owned(open));
            value["address"] = json!(open.address.to_string());
            value
        };
        json!({ "disks": disks.iter().map(one).collect::<Vec<_>>() })
    }

    fn admin(&self, address: Address) -> Result<DiskAdmin, String> {
        if self.out.is_some() && !self.volumes.nvme().list().iter().any(|open| open.address == address) {
            return Err(format!("{address} gets a command that takes it out of service for a while: try again"));
        }
        self.volumes.nvme().admin(address).ok_or_else(|| format!("this reactor does not hold {address}"))
    }

    /// Volumes of a disk.
    pub(super) fn volumes_of(&self, address: Address) -> Vec<String> {
        let disks = self.volumes.nvme().list();
        let its = disks.iter().filter(|open| open.address == address).flat_map(|open| &open.namespaces);
        its.filter_map(|(_, volume)| volume.clone()).collect()
    }

    /// Volumes of a disk with their namespaces and the bytes of their blocks.
    fn block_sizes(&self, address: Address) -> Vec<(String, u32, u32)> {
        let disks = self.volumes.nvme().list();
        let its = disks.iter().filter(|open| open.address == address).flat_map(|open| &open.namespaces);
        let one = |(info, volume): &(_, Option<String>)| {
            let info: &crate::bdev::device::nvme::NamespaceInfo = info;
            Some((volume.clone()?, info.nsid, 1 << info.geometry.as_ref().ok()?.block_shift))
        };
        its.filter_map(one).collect()
    }

    /// Refuses what would disturb who uses the volumes of a disk.
    fn refuse_use(&self, address: Address, force: bool) -> Result<(), String> {
        let mut used = Vec::new();
        for name in with_layers(&self.config, self.volumes_of(address)) {
            used.extend(self.volumes.holders(&name).iter().map(|holder| format!("volume \"{name}\" by {holder}")));
        }
        if used.is_empty() || force {
            return Ok(());
        }
        Err(format!("{address} is in use: {}: nothing is changed; --force does it all the same", used.join(", ")))
    }

    /// Takes the volumes of a disk out of service and closes it.
    fn take_out(&mut self, address: Address, force: bool) -> Result<Vec<String>, String> {
        if self.out.is_some() {
            return Err("another command has a disk out of service: try again when it is done".to_owned());
        }
        let names = self.volumes_of(address);
        if names.is_empty() {
            return Err(format!("this reactor does not hold {address}"));
        }
        self.refuse_use(address, force)?;
        let names = with_layers(&self.config, names);
        let before = self.config.clone();
        tracing::warn!("{address}: out of service, on request: {}", quoted(&names));
        let failed = self.become_like(&without(&before, &names));
        self.out = Some(before);
        if failed.is_empty() {
            return Ok(names);
        }
        let back = self.bring_back(address, &[]);
        Err([failed, back].concat().join("; "))
    }

    /// The end of [`Self::take_out`], but for volumes that stay closed. Returns what is not as it was, a sentence each.
    fn bring_back(&mut self, address: Address, closed: &[String]) -> Vec<String> {
        let mut notes = Vec::new();
        if let Err(why) = self.volumes.nvme_mut().leave(address) {
            notes.push(why.to_string());
        }
        let Some(before) = self.out.take() else { return notes };
        let closed = with_layers(&before, closed.to_vec());
        if !closed.is_empty() {
            notes.push(format!(
                "{} {} closed, since hosts know other blocks than there are now: SIGHUP opens what the configuration has",
                quoted(&closed),
                if closed.len() == 1 { "stays" } else { "stay" }
            ));
        }
        notes.extend(self.become_like(&without(&before, &closed)));
        for note in &notes {
            tracing::warn!("{address}: {note}");
        }
        tracing::info!("{address}: the command is done");
        notes
    }

    /// Takes the volumes of a disk out of service for good, and lets go of it.
    pub(super) fn release(&mut self, address: Address, force: bool) -> Result<Value, String> {
        let names = self.take_out(address, force)?;
        self.out = None;
        tracing::warn!("{address} is let go of; {} would come back by SIGHUP", quoted(&names));
        Ok(json!({ "released": address.to_string(), "volumes": names }))
    }

    /// Changes what runs to `wanted`, as a reload would. Returns what failed, a sentence each.
    fn become_like(&mut self, wanted: &Config) -> Vec<String> {
        let diff = config::diff(&self.config, wanted);
        let mut failed = Vec::new();
        let running = self.carry_out(Vec::new(), &diff, |change, _, result| {
            if let Err(why) = result {
                failed.push(format!("failed: {change}: {why}"));
            }
        });
        self.config = running;
        failed
    }
}

fn quoted(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    let noun = if names.len() == 1 { "volume" } else { "volumes" };
    format!("{noun} {}", quoted.join(", "))
}

#[cfg(test)]
mod tests;
