//! The volumes of a configuration, opened: names to block devices.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::config::{
    BdevConfig, Config, Driver, InjectAction, InjectOp, InjectRule, InjectStatus, NullComplete, Trigger,
};
use crate::bdev::device::{file, malloc, null};
use crate::bdev::layer::inject;
use crate::bdev::{BlockDevice, DeviceError};
use crate::nvme::target::tcp::HOME;
use crate::reactor::io::{IoOp, IoStatus};

/// Opens and keeps volumes by name.
#[derive(Default)]
pub struct Volumes {
    open: BTreeMap<String, Arc<dyn BlockDevice>>,
}

impl Volumes {
    /// Opens all volumes of a configuration, bases before their layers.
    ///
    /// # Errors
    /// The place of the volume that does not open, and why.
    pub fn open_all(config: &Config) -> Result<Volumes, String> {
        let mut volumes = Volumes::default();
        for bdev in &config.bdevs {
            volumes.open(bdev).map_err(|e| format!("{}: bdev \"{}\": {e}", config.at(bdev.place), bdev.name))?;
        }
        Ok(volumes)
    }

    /// Opens one volume of a configuration and what it stands on.
    ///
    /// # Errors
    /// As [`Volumes::open_all`].
    pub fn open_stack(config: &Config, name: &str) -> Result<Volumes, String> {
        let mut needed = vec![name];
        while let Some(base) = needed.last().and_then(|top| config.bdev(top)).and_then(|bdev| bdev.driver.base()) {
            needed.push(base);
        }
        let mut volumes = Volumes::default();
        for bdev in config.bdevs.iter().filter(|bdev| needed.contains(&bdev.name.as_str())) {
            volumes.open(bdev).map_err(|e| format!("{}: bdev \"{}\": {e}", config.at(bdev.place), bdev.name))?;
        }
        Ok(volumes)
    }

    /// Opens one volume.
    ///
    /// # Errors
    /// Why it does not open.
    pub fn open(&mut self, bdev: &BdevConfig) -> Result<Arc<dyn BlockDevice>, DeviceError> {
        let uuid = bdev.uuid.into_bytes();
        let device: Arc<dyn BlockDevice> = match &bdev.driver {
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
            Driver::Inject { base, rules } => {
                let base =
                    self.get(base).ok_or_else(|| DeviceError::Refused(format!("its base \"{base}\" is not open")))?;
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
        };
        self.open.insert(bdev.name.clone(), device.clone());
        Ok(device)
    }

    /// The volume of that name.
    pub fn get(&self, name: &str) -> Option<Arc<dyn BlockDevice>> {
        self.open.get(name).cloned()
    }

    /// All volumes.
    pub fn all(&self) -> impl Iterator<Item = &Arc<dyn BlockDevice>> {
        self.open.values()
    }

    /// Forgets a volume: new I/O is refused.
    pub fn close(&mut self, name: &str) {
        if let Some(device) = self.open.remove(name) {
            device.common().close();
        }
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
