//! The way to a controller through VFIO: registers that are mapped, and memory that an IOMMU shows it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hugepages::{Buf, ChunkInfo, DeviceBuf};

use super::port::Port;
use crate::limits::{NVME_ADMIN_NS, NVME_SHUTDOWN_MS_MAX};
use crate::nvme::spec::{Cap, Crto, Csts, Property, ready_timeout_ms};
use crate::reactor::start::DmaMap;
use crate::sys::mmio::{Bar, Registers};
use crate::sys::vfio::{Device, DmaSpace, VfioError};

/// Units of CAP.TO in milliseconds.
const TO_MS: u64 = 500;

/// A controller that VFIO has given to this process. Memory has device addresses once the reactors share theirs
/// ([`Reactors::share_memory`](crate::reactor::start::Reactors::share_memory)).
#[derive(Clone, Debug)]
pub struct VfioPort {
    // Beside the device: one step less on the way to a register.
    registers: Bar,
    device: Arc<Device>,
}

impl VfioPort {
    /// Lets the function do DMA, which it may as long as the device is open and until [`Port::cut_off`]. Opening it has reset
    /// it, so it has no queue of before.
    ///
    /// # Errors
    /// If it is not bus master afterwards.
    pub fn new(device: Device) -> Result<VfioPort, VfioError> {
        device.set_bus_master(true)?;
        Ok(VfioPort { registers: device.registers().clone(), device: Arc::new(device) })
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
        Duration::from_millis(3 * self.ready_ms()) + 2 * Duration::from_nanos(NVME_ADMIN_NS)
    }

    /// The longest that closing it takes: its queues are deleted, its caches written back, and it is disabled.
    pub fn closes_within(&self) -> Duration {
        Duration::from_millis(self.ready_ms() + NVME_SHUTDOWN_MS_MAX) + Duration::from_nanos(NVME_ADMIN_NS)
    }

    fn cap(&self) -> Cap {
        Cap(self.registers.read64(Property::CAP.0))
    }

    fn ready_ms(&self) -> u64 {
        ready_timeout_ms(self.cap(), Crto(self.registers.read32(Property::CRTO.0))).max(TO_MS)
    }
}

impl Port for VfioPort {
    type Registers = Bar;

    fn registers(&self) -> &Bar {
        &self.registers
    }

    fn data(&self, buf: &Buf) -> Option<u64> {
        buf.iova()
    }

    fn memory(&self, memory: &DeviceBuf) -> Option<u64> {
        memory.iova()
    }

    /// Forbids it DMA, and reads back that it is so; one that is off the bus does none.
    fn cut_off(&self) -> bool {
        self.device.set_bus_master(false).is_ok() || Csts(self.registers.read32(Property::CSTS.0)).gone()
    }
}

impl DmaMap for DmaSpace {
    fn map(&self, chunk: &ChunkInfo) -> io::Result<u64> {
        DmaSpace::map(self, chunk).map_err(io::Error::other)
    }
}
