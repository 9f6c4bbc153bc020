//! The volumes of a configuration, opened: names to block devices.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::config::{BdevConfig, Config, Driver, NullComplete};
use crate::bdev::device::null;
use crate::bdev::{BlockDevice, DeviceError};

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
            _ => return Err(DeviceError::Refused("driver not built".into())),
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
