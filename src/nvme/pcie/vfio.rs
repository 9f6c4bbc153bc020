//! The way to a controller through VFIO: registers that are mapped, and memory that an IOMMU shows it.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use hugepages::{Buf, ChunkInfo, DeviceBuf};

use super::controller::{find_buffer, ready_ms};
use super::port::{Force, Port};
use crate::limits::{NVME_ADMIN_NS, NVME_FORCE_NS, NVME_SHUTDOWN_MS_MAX, REACTORS_MAX};
use crate::nvme::spec::{Cap, Property};
use crate::reactor::Reactor;
use crate::reactor::start::DmaMap;
use crate::sys::mmio::{Bar, Registers};
use crate::sys::vfio::{Device, DmaSpace, VfioError};

/// A controller that VFIO has given to this process. Memory has device addresses once the reactors share theirs
/// ([`Reactors::share_memory`](crate::reactor::start::Reactors::share_memory)).
#[derive(Clone, Debug)]
pub struct VfioPort {
    // Beside the device: one step less on the way to a register.
    registers: Bar,
    /// The BAR of the controller memory buffer, if submission queues are to lie there.
    buffer: Option<Bar>,
    device: Arc<Device>,
    /// Vectors that can be masked, and are enabled.
    vectors: u16,
    /// What became of each [`Force`].
    forced: Arc<[AtomicU8; 2]>,
}

/// Nothing was asked for.
const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const DONE: u8 = 2;
const FAILED: u8 = 3;

impl VfioPort {
    /// The way to a function that does no DMA yet: not before [`Port::let_in`], since not every function can be reset when it is opened,
    /// and one that was not may have queues of before. With `cmb`, submission queues lie in the controller memory buffer, if there is one.
    ///
    /// # Errors
    /// If it is bus master already and stays so.
    pub fn new(device: Device, cmb: bool) -> Result<VfioPort, VfioError> {
        device.set_bus_master(false)?;
        let vectors = enable_vectors(&device);
        let registers = device.registers().clone();
        let buffer = if cmb { map_buffer(&device) } else { None };
        Ok(VfioPort { registers, buffer, device: Arc::new(device), vectors, forced: Arc::default() })
    }

    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The most commands that a queue of it holds, if `depth` are asked for: an entry of the ring stays free.
    pub fn depth(&self, depth: u16) -> u16 {
        depth.min(self.cap().mqes_z())
    }

    /// The longest that bringing it up takes: a controller that was on its way is waited for, disabled and enabled, and then
    /// answers its commands. Each has a limit of its own, whose error says more than that of who waits for all of them.
    pub fn opens_within(&self) -> Duration {
        Duration::from_millis(3 * ready_ms(&self.registers)) + 2 * Duration::from_nanos(NVME_ADMIN_NS)
    }

    /// The longest that closing it takes: its queues are deleted, its caches written back, and it is disabled.
    pub fn closes_within(&self) -> Duration {
        let quiet = Duration::from_millis(ready_ms(&self.registers)) + 2 * Duration::from_nanos(NVME_FORCE_NS);
        quiet + Duration::from_millis(NVME_SHUTDOWN_MS_MAX) + Duration::from_nanos(NVME_ADMIN_NS)
    }

    fn cap(&self) -> Cap {
        Cap(self.registers.read64(Property::CAP.0))
    }

    /// Makes sure that the function does no DMA any more, on a control thread.
    ///
    /// # Errors
    /// If that may not be so.
    pub fn cut_off(&self) -> Result<(), VfioError> {
        match self.device.set_bus_master(false) {
            Ok(()) => Ok(()),
            // It takes no orders: the kernel has it, and nothing is mapped for it.
            Err(_) => self.device.let_go(),
        }
    }
}

/// Enables a vector for each queue that there may be, all of them masked; how many there are then. None, if the kernel does not let them be masked
/// here: an interrupt for each completion would be dearer than looking for it.
fn enable_vectors(device: &Device) -> u16 {
    let count = device.vectors().min(REACTORS_MAX as u16 + 1);
    if count == 0 || !device.can_mask() {
        return 0;
    }
    match device.enable_vectors(count) {
        Ok(()) => count,
        Err(error) => {
            tracing::info!("{error}: reactors do not sleep while they wait for this disk");
            0
        }
    }
}

/// Maps the controller memory buffer.
fn map_buffer(device: &Device) -> Option<Bar> {
    let address = device.address();
    let Some((location, _)) = find_buffer(device.registers()) else {
        tracing::warn!("{address}: cmb = true, but it has no controller memory buffer for queues: they are in memory");
        return None;
    };
    match device.map_buffer(u32::from(location.bir())) {
        Ok(bar) => Some(bar),
        Err(error) => {
            tracing::warn!("{error}: submission queues are in memory");
            None
        }
    }
}

impl Port for VfioPort {
    type Registers = Bar;

    fn registers(&self) -> &Bar {
        &self.registers
    }

    fn buffer(&self) -> Option<&Bar> {
        self.buffer.as_ref()
    }

    fn data(&self, buf: &Buf) -> Option<u64> {
        buf.iova()
    }

    fn memory(&self, memory: &DeviceBuf) -> Option<u64> {
        memory.iova()
    }

    fn vectors(&self) -> u16 {
        self.vectors
    }

    fn connect(&self, vector: u16, reactor: &Reactor) -> bool {
        let connected = reactor.doorbell().descriptor().map_err(|error| error.to_string()).and_then(|doorbell| {
            self.device.set_vector(vector, Some(doorbell.as_fd())).map_err(|error| error.to_string())
        });
        match connected {
            Ok(()) => self.device.mask(vector, true),
            Err(error) => {
                tracing::warn!("{error}: reactor {} does not sleep while it waits for the disk", reactor.id());
                false
            }
        }
    }

    fn mask(&self, vector: u16, masked: bool) {
        self.device.mask(vector, masked);
    }

    fn let_in(&self) -> Result<(), String> {
        self.device.set_bus_master(true).map_err(|error| error.to_string())
    }

    /// The kernel may take seconds for either.
    fn force(&self, how: Force) -> Option<bool> {
        let state = &self.forced[how as usize];
        match state.compare_exchange(IDLE, RUNNING, Ordering::AcqRel, Ordering::Acquire) {
            Err(RUNNING) => None,
            Err(ended) => {
                state.store(IDLE, Ordering::Release);
                Some(ended == DONE)
            }
            Ok(_) => {
                let this = self.clone();
                let work = move || {
                    let done = match how {
                        Force::Reset => this.device.reset(),
                        Force::CutOff => this.cut_off(),
                    };
                    if let Err(error) = &done {
                        tracing::error!("{how:?}: {error}");
                    }
                    this.forced[how as usize].store(if done.is_ok() { DONE } else { FAILED }, Ordering::Release);
                };
                if let Err(error) = std::thread::Builder::new().name("nvme reset".to_owned()).spawn(work) {
                    tracing::error!("no thread for an NVMe controller: {error}");
                    state.store(FAILED, Ordering::Release);
                }
                None
            }
        }
    }
}

impl DmaMap for DmaSpace {
    fn map(&self, chunk: &ChunkInfo) -> io::Result<u64> {
        DmaSpace::map(self, chunk).map_err(io::Error::other)
    }
}
