//! NVMe disks that tell something, or go.

use super::Server;
use crate::bdev::device::nvme::{Became, ControllerEvent, DiskEvent, NamespaceInfo};
use crate::sys::pci::Address;

impl Server {
    /// A disk has told something.
    pub(super) fn heard(&mut self, address: Address, event: DiskEvent) {
        match event {
            DiskEvent::WantedBack => self.leaving.push(address),
            DiskEvent::Told(ControllerEvent::Namespaces(now)) => self.changed(address, &now),
            DiskEvent::Told(ControllerEvent::Health { warning: 0, .. }) => {
                tracing::info!("{address}: it is well again")
            }
            DiskEvent::Told(ControllerEvent::Health { warning, temperature_k }) => {
                let words = ControllerEvent::warnings(warning);
                tracing::warn!("{address}: {words} ({} degrees): reactor nvme smart {address}", celsius(temperature_k));
            }
            DiskEvent::Told(ControllerEvent::FirmwareActivation) => {
                tracing::warn!("{address}: it activates a firmware, and carries out nothing meanwhile");
            }
            DiskEvent::Told(ControllerEvent::Other(event)) => tracing::info!("{address}: it tells of {event:?}"),
        }
    }

    /// Its namespaces are these now.
    fn changed(&mut self, address: Address, now: &[NamespaceInfo]) {
        for (name, became) in self.volumes.nvme().became(address, now) {
            let Some(device) = self.volumes.get(&name) else { continue };
            let size = device.common().size();
            match became {
                Became::Usable(is) if is <= size => {}
                // Whoever wrote a size wants that.
                Became::Usable(is) => match self.grow(&name, is) {
                    Ok(()) => tracing::info!("volume \"{name}\": {address} has grown from {size} to {is} bytes"),
                    Err(why) => tracing::warn!("volume \"{name}\": {address} has grown, and it has not: {why}"),
                },
                Became::Lost(_) if device.common().is_closing() => {}
                Became::Lost(why) => {
                    tracing::error!("volume \"{name}\" is closed, its I/O fails: {address}: {why}");
                    if let Err(why) = self.volumes.close(&name) {
                        tracing::error!("volume \"{name}\": {why}");
                    }
                }
            }
        }
    }

    /// The kernel wants it back, and waits: its volumes leave their doors, and it is closed.
    pub(super) fn unplugged(&mut self, address: Address) {
        tracing::warn!("{address} is unplugged, or the kernel wants it for another driver");
        let Some(device) = self.volumes.nvme().device_of(address) else { return };
        if let Err(why) = self.release(address, true) {
            tracing::warn!("{address}: {why}");
        }
        // Of a volume that somebody holds on to the I/O fails; the disk goes.
        let held: Vec<String> = self.volumes_of(address);
        for name in &held {
            tracing::error!("volume \"{name}\" is closed, its I/O fails: {address} is gone");
            if let Err(why) = self.volumes.close(name) {
                tracing::error!("volume \"{name}\": {why}");
            }
        }
        // The kernel waits until nobody has it.
        if let Err(why) = self.volumes.nvme_mut().let_go(address, &device) {
            tracing::error!("{why}");
        }
    }
}

fn celsius(kelvin: u16) -> i32 {
    i32::from(kelvin) - 273
}
