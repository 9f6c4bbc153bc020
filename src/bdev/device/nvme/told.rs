//! What disks tell without being asked, for whoever runs the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::nvme::pcie::{ControllerEvent, NamespaceInfo};
use crate::sys::pci::Address;
use crate::sys::socket::Eventfd;
use crate::sys::vfio::Device;

/// What a disk tells, or what becomes of it.
#[derive(Clone, Debug)]
pub enum DiskEvent {
    /// Its controller has told something.
    Told(ControllerEvent),
    /// The kernel wants it back: it is being unplugged, or bound to another driver. Whoever asked waits until it is closed.
    WantedBack,
}

/// Is told, on any thread, a reactor's too: it may not block.
pub type Tell = Arc<dyn Fn(Address, DiskEvent) + Send + Sync>;

/// Waits, on a thread of its own, until the kernel wants a disk back or this is dropped.
pub(super) struct Watched {
    asked: Arc<Eventfd>,
    ended: Arc<AtomicBool>,
}

impl Watched {
    /// # Errors
    /// If the kernel will not say so, or there is no thread.
    pub(super) fn start(device: &Device, tell: Tell) -> Result<Watched, String> {
        let address = device.address();
        let asked = Arc::new(Eventfd::new().map_err(|error| error.to_string())?);
        device.on_request(asked.descriptor()).map_err(|error| error.to_string())?;
        let watched = Watched { asked: asked.clone(), ended: Arc::default() };
        let ended = watched.ended.clone();
        let wait = move || {
            if asked.wait().is_ok() && !ended.load(Ordering::Acquire) {
                tell(address, DiskEvent::WantedBack);
            }
        };
        std::thread::Builder::new().name("nvme unplug".to_owned()).spawn(wait).map_err(|error| error.to_string())?;
        Ok(watched)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        self.asked.ring();
    }
}

/// What has become of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Became {
    /// It is as it was, or larger: so many bytes.
    Usable(u64),
    /// It is not what its volume is: why.
    Lost(String),
}

/// What has become of namespace `nsid`, which was as in `before` when its volume was opened.
pub(super) fn became(nsid: u32, before: &[NamespaceInfo], now: &[NamespaceInfo]) -> Became {
    let find = |all: &[NamespaceInfo]| all.iter().find(|info| info.nsid == nsid).cloned();
    let lost = |why: &str| Became::Lost(format!("namespace {nsid} {why}"));
    let (Some(was), Some(is)) = (find(before), find(now)) else {
        return lost("is not there any more");
    };
    match (was.geometry, is.geometry) {
        _ if was.uuid != is.uuid => lost("is another one now"),
        (Ok(was), Ok(is)) => match is.differs(&was) {
            None => Became::Usable(is.size),
            Some(what) => lost(&format!("has changed: {what}")),
        },
        (_, Err(unusable)) => Became::Lost(unusable.to_string()),
        (Err(_), Ok(_)) => lost("is one that it was not"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::io::{Deallocate, Geometry, Unmapping, Unusable};

    fn info(nsid: u32, size: u64) -> NamespaceInfo {
        let geometry = Geometry {
            nsid,
            block_shift: 9,
            size,
            ops: crate::bdev::OpSet::ALL,
            read_only: false,
            volatile_cache: false,
            compare_and_write_max: 512,
            atomic_boundary: (0, 0),
            physical_block_size: 512,
            limits: crate::bdev::DeviceLimits::default(),
            deallocate: Deallocate { ranges_max: 1, range_max: 512, bytes_max: 512 },
            unmapping: Unmapping::None,
            zones: None,
        };
        NamespaceInfo { nsid, uuid: [nsid as u8; 16], geometry: Ok(geometry) }
    }

    #[test]
    fn growth_alone_is_gone_on_with() {
        let before = [info(1, 1 << 20), info(2, 1 << 20)];
        assert_eq!(became(2, &before, &before), Became::Usable(1 << 20));
        assert_eq!(became(2, &before, &[info(1, 1 << 20), info(2, 3 << 20)]), Became::Usable(3 << 20));
        let lost = |why: &str| Became::Lost(format!("namespace 2 {why}"));
        assert_eq!(became(2, &before, &[info(1, 1 << 20)]), lost("is not there any more"));
        assert_eq!(became(2, &before, &[info(2, 1 << 19)]), lost("has changed: its size"));
        assert_eq!(
            became(2, &before, &[NamespaceInfo { uuid: [9; 16], ..info(2, 1 << 20) }]),
            lost("is another one now")
        );
        let mut formatted = info(2, 1 << 20);
        formatted.geometry = Err(Unusable::Format { nsid: 2, shift: 9, metadata: 8, protection: 1 });
        assert!(matches!(became(2, &before, &[formatted]), Became::Lost(why) if why.contains("metadata")));
    }
}
