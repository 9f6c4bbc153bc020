//! The volumes of a configuration, opened: names to block devices in a registry.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::config::{
    BdevConfig, Config, Driver, InjectAction, InjectOp, InjectRule, InjectStatus, NullComplete, Trigger,
};
use crate::bdev::device::{file, malloc, null, nvme};
use crate::bdev::layer::inject;
use crate::bdev::registry::{Claim, Mode, Registry, RegistryError};
use crate::bdev::{BlockDevice, DeviceError};
use crate::drain;
use crate::nvme::target::tcp::HOME;
use crate::reactor::io::{IoOp, IoStatus};
use crate::reactor::mailbox::Remote;
use crate::reactor::start::Reactors;

/// What a volume that is removed has to end its I/O on each reactor.
const REMOVE_LIMIT: Duration = Duration::from_secs(2);

/// Opens and keeps volumes by name.
pub struct Volumes {
    registry: Registry,
    remotes: Vec<Remote>,
    nvme: nvme::Disks,
}

impl Volumes {
    /// None yet, for these reactors.
    pub fn new(remotes: &[Remote]) -> Volumes {
        Volumes { registry: Registry::new(remotes.to_vec()), remotes: remotes.to_vec(), nvme: nvme::Disks::new() }
    }

    /// Opens all volumes of a configuration, bases before their layers.
    ///
    /// # Errors
    /// The place of the volume that does not open, and why.
    pub fn open_all(&mut self, config: &Config, reactors: &mut Reactors) -> Result<(), String> {
        config.bdevs.iter().try_for_each(|bdev| self.open_at(config, bdev, reactors))
    }

    /// Opens one volume of a configuration and what it stands on.
    ///
    /// # Errors
    /// As [`Volumes::open_all`].
    pub fn open_stack(&mut self, config: &Config, name: &str, reactors: &mut Reactors) -> Result<(), String> {
        let mut needed = vec![name];
        while let Some(base) = needed.last().and_then(|top| config.bdev(top)).and_then(|bdev| bdev.driver.base()) {
            needed.push(base);
        }
        let mut stack = config.bdevs.iter().filter(|bdev| needed.contains(&bdev.name.as_str()));
        stack.try_for_each(|bdev| self.open_at(config, bdev, reactors))
    }

    fn open_at(&mut self, config: &Config, bdev: &BdevConfig, reactors: &mut Reactors) -> Result<(), String> {
        self.open(bdev, reactors).map_err(|e| format!("{}: bdev \"{}\": {e}", config.at(bdev.place), bdev.name))
    }

    /// Opens one volume, of those `reactors` that it was made for: they share their memory with an NVMe disk. The layers of today
    /// pass blocks on as they are, so others may use their base beside them.
    ///
    /// # Errors
    /// Why it does not open.
    pub fn open(&mut self, bdev: &BdevConfig, reactors: &mut Reactors) -> Result<(), RegistryError> {
        let holder = format!("volume \"{}\"", bdev.name);
        let base = match bdev.driver.base() {
            Some(base) => Some(self.claim(base, &holder)?),
            None => None,
        };
        let device = self.make(bdev, base.as_ref().map(Claim::device), reactors)?;
        self.registry.add(device, base.into_iter().collect()).inspect_err(|_| self.let_go(&bdev.name))
    }

    fn make(
        &mut self,
        bdev: &BdevConfig,
        base: Option<&Arc<dyn BlockDevice>>,
        reactors: &mut Reactors,
    ) -> Result<Arc<dyn BlockDevice>, DeviceError> {
        let uuid = bdev.uuid.into_bytes();
        Ok(match &bdev.driver {
            Driver::Null { complete } => Arc::new(null::Null::new(null::Options {
                name: bdev.name.clone(),
                uuid,
                size: bdev.size,
                block_size: bdev.block_size,
                physical_block_size: bdev.physical_block_size,
                complete: match complete {
                    NullComplete::Poll => null::CompleteIn::Poll,
                    NullComplete::Submit => null::CompleteIn::Submit,
                },
            })),
            Driver::Malloc => Arc::new(malloc::Malloc::new(malloc::Options {
                name: bdev.name.clone(),
                uuid,
                size: bdev.size,
                block_size: bdev.block_size,
                physical_block_size: bdev.physical_block_size,
                // A first write then costs the zeroing of 4 KiB, not of 2 MiB while other I/O waits.
                hugepages: false,
                home: HOME,
            })?),
            Driver::Inject { base: name, rules } => {
                let base =
                    base.ok_or_else(|| DeviceError::Refused(format!("its base \"{name}\" is not open")))?.clone();
                let rules = rules.iter().map(rule).collect();
                Arc::new(
                    inject::Inject::new(inject::Options { name: bdev.name.clone(), uuid, base, rules })
                        .map_err(|e| DeviceError::Refused(e.to_string()))?,
                )
            }
            Driver::File { path, direct } => Arc::new(file::File::create(file::Options {
                name: bdev.name.clone(),
                uuid,
                path: path.clone(),
                size: bdev.size,
                block_size: bdev.block_size,
                physical_block_size: bdev.physical_block_size,
                direct: *direct,
                home: HOME,
            })?),
            Driver::Nvme(wanted) => self.nvme.open(reactors, &bdev.name, wanted)?,
        })
    }

    /// The NVMe disks that volumes are of.
    pub fn nvme(&self) -> &nvme::Disks {
        &self.nvme
    }

    /// The same, to visit one.
    pub fn nvme_mut(&mut self) -> &mut nvme::Disks {
        &mut self.nvme
    }

    /// Who uses a volume: doors, and layers above it.
    pub fn holders(&self, name: &str) -> Vec<String> {
        let found = self.registry.list().into_iter().find(|listing| listing.name == name);
        found.into_iter().flat_map(|listing| listing.holders).map(|(holder, _)| holder).collect()
    }

    /// The volume of that name, to look at.
    pub fn get(&self, name: &str) -> Option<Arc<dyn BlockDevice>> {
        self.registry.get(name).ok()
    }

    /// Takes a volume into use by `holder`, together with others who share it.
    ///
    /// # Errors
    /// If it is not there, or a layer has it.
    pub fn claim(&self, name: &str, holder: &str) -> Result<Claim, RegistryError> {
        self.registry.claim(name, Mode::Shared, holder)
    }

    /// Makes a volume larger.
    ///
    /// # Errors
    /// What the device says.
    pub fn grow(&self, name: &str, size: u64) -> Result<(), RegistryError> {
        self.registry.resize(name, size).map(drop)
    }

    /// Takes a volume out of service, whoever uses it: its I/O ends with an error from now on.
    ///
    /// # Errors
    /// If what is in flight does not end.
    pub fn close(&self, name: &str) -> Result<(), RegistryError> {
        self.registry.close(name, REMOVE_LIMIT)
    }

    /// Removes a volume that nobody uses: what was acknowledged is made durable, then files and locks are let go of.
    ///
    /// # Errors
    /// If somebody uses it, or its I/O does not end: then it stays closed, and removal may be tried again.
    pub fn remove(&mut self, name: &str) -> Result<(), RegistryError> {
        let device = self.registry.get(name)?;
        if !device.common().is_closing() && !self.flush(&[device], REMOVE_LIMIT).is_empty() {
            tracing::error!("volume \"{name}\" is removed, and its last writes may not be durable");
        }
        self.registry.remove(name, REMOVE_LIMIT)?;
        self.let_go(name);
        Ok(())
    }

    /// Gives back the disk of a volume that is no more, if it was the last there.
    fn let_go(&mut self, name: &str) {
        if let Err(error) = self.nvme.release(name) {
            tracing::error!("volume \"{name}\" is removed, and its disk did not shut down: {error}");
        }
    }

    /// Shuts disks down, while the reactors turn still, when all volumes are flushed and nobody uses them. False if one did not do
    /// so in order, which is said.
    pub fn close_disks(&mut self) -> bool {
        let failed = self.nvme.close_all();
        failed.iter().for_each(|why| tracing::error!("{why}"));
        failed.is_empty()
    }

    /// Makes acknowledged writes of all volumes durable; those that did not say so within `limit`, each as `volume "NAME"`.
    pub fn flush_all(&self, limit: Duration) -> BTreeSet<String> {
        self.flush(&self.registry.devices(), limit)
    }

    fn flush(&self, devices: &[Arc<dyn BlockDevice>], limit: Duration) -> BTreeSet<String> {
        let told = |(name, status): (String, Option<IoStatus>)| {
            let volume = format!("volume \"{name}\"");
            if let Some(status) = status {
                tracing::error!("{volume}: the final flush failed: {status:?}");
            }
            volume
        };
        drain::flush(devices, &self.remotes, limit).into_iter().map(told).collect()
    }
}

/// A rule of the configuration as the layer takes it.
fn rule(rule: &InjectRule) -> inject::Rule {
    let (when, count) = match rule.trigger {
        Trigger::Nth { first, count } => (inject::When::From(first), Some(count)),
        Trigger::Every { every, count } => (inject::When::Every(every), count),
    };
    let op = rule.op.map(|op| match op {
        InjectOp::Read => IoOp::Read,
        InjectOp::Write => IoOp::Write,
        InjectOp::Flush => IoOp::Flush,
        InjectOp::Unmap => IoOp::Unmap,
        InjectOp::WriteZeroes => IoOp::WriteZeroes,
        InjectOp::Compare => IoOp::Compare,
        InjectOp::CompareAndWrite => IoOp::CompareAndWrite,
        InjectOp::Reset => IoOp::Reset,
        InjectOp::Verify => IoOp::Verify,
        InjectOp::ZoneAppend => IoOp::ZoneAppend,
        InjectOp::ZoneOpen => IoOp::ZoneOpen,
        InjectOp::ZoneClose => IoOp::ZoneClose,
        InjectOp::ZoneFinish => IoOp::ZoneFinish,
        InjectOp::ZoneReset => IoOp::ZoneReset,
        InjectOp::ZoneReport => IoOp::ZoneReport,
    });
    let action = match rule.action {
        InjectAction::Fail(status) => inject::Action::Fail(match status {
            InjectStatus::IoError => IoStatus::DeviceError,
            InjectStatus::MediaError => IoStatus::MediaError,
            InjectStatus::NoSpace => IoStatus::NoSpace,
            InjectStatus::WriteProtected => IoStatus::ReadOnly,
            InjectStatus::Aborted => IoStatus::Aborted,
            InjectStatus::Gone => IoStatus::Gone,
        }),
        InjectAction::Delay { delay_ms } => inject::Action::Delay(u64::from(delay_ms) * 1_000_000),
        InjectAction::Hold => inject::Action::Hold,
    };
    inject::Rule { op, when, count, action }
}
