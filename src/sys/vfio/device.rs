//! One PCI function in user space: registers, configuration, interrupts, reset.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FLAGS_PCI, VFIO_DEVICE_FLAGS_RESET, VFIO_PCI_BAR5_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_ERR_IRQ_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX, VFIO_REGION_INFO_CAP_MSIX_MAPPABLE,
    VFIO_REGION_INFO_CAP_SPARSE_MMAP, VFIO_REGION_INFO_FLAG_CAPS, VFIO_REGION_INFO_FLAG_MMAP, vfio_region_info,
};

use super::ioctl::DeviceFd;
use super::space::capability;
use super::{Group, VfioError};
use crate::sys::mmio::{Bar, Registers};
use crate::sys::pci::Address;

/// Offsets in the configuration space, and bits there (PCI Local Bus 3.0, chapters 6.1, 6.2 and 6.8.2).
mod config {
    pub const COMMAND: u16 = 0x04;
    pub const COMMAND_MEMORY: u16 = 1 << 1;
    pub const COMMAND_MASTER: u16 = 1 << 2;
    pub const STATUS: u16 = 0x06;
    pub const STATUS_CAPABILITIES: u16 = 1 << 4;
    pub const CAPABILITIES: u16 = 0x34;
    pub const CAPABILITY_MSIX: u8 = 0x11;
    pub const MSIX_TABLE: u16 = 4;
    pub const MSIX_BIR: u32 = 7;
    /// Capabilities lie behind the header, four bytes at least each.
    pub const CAPABILITIES_MAX: usize = (256 - 64) / 4;
}

/// What is mapped has whole pages, in bytes.
const PAGE: u64 = 4096;

/// An entry of the MSI-X table: address, data, and control with its mask bit.
const MSIX_ENTRY: u32 = 16;
const MSIX_CONTROL: u32 = 12;
const MSIX_MASKED: u32 = 1;

/// A function that this process drives. Dropped, it does no DMA any more. The kernel closes and resets it when nothing has its registers
/// mapped either.
#[derive(Debug)]
pub struct Device {
    registers: Bar,
    /// Where vectors are masked; `None` if the kernel does not let it be mapped.
    table: Option<(Bar, u32)>,
    /// Another BAR that was mapped: [`Device::map_buffer`].
    buffer: OnceLock<Bar>,
    vectors: u16,
    can_reset: bool,
    config: u64,
    address: Address,
    // Closed before the group.
    fd: DeviceFd,
    group: Arc<Group>,
}

impl Device {
    /// Opens a function of the group, which resets it, and maps its registers (BAR 0). It may not do DMA yet, and no interrupt is set.
    ///
    /// # Errors
    /// If the kernel does not give it, or if it is not usable: its registers cannot be mapped.
    pub fn open(group: &Arc<Group>, address: Address) -> Result<Device, VfioError> {
        let kernel = |what: &str| VfioError::kernel(format!("{address}: {what}"));
        let fd = group.fd.device(&address.to_string()).map_err(kernel("GROUP_GET_DEVICE_FD"))?;
        let info = fd.info().map_err(kernel("DEVICE_GET_INFO"))?;
        if info.flags & VFIO_DEVICE_FLAGS_PCI == 0 {
            return Err(VfioError::Unusable { address, what: "not a PCI function".to_owned() });
        }
        let (config, _) = fd.region(VFIO_PCI_CONFIG_REGION_INDEX).map_err(kernel("its configuration space"))?;
        let interrupts = fd.interrupts(VFIO_PCI_MSIX_IRQ_INDEX).map_err(kernel("its MSI-X interrupts"))?;
        let registers = map(&fd, address, 0)?;
        let mut device = Device {
            registers,
            table: None,
            buffer: OnceLock::new(),
            vectors: interrupts.count.min(u32::from(u16::MAX)) as u16,
            can_reset: info.flags & VFIO_DEVICE_FLAGS_RESET != 0,
            config: config.offset,
            address,
            fd,
            group: group.clone(),
        };
        device.switch(config::COMMAND_MEMORY, true)?;
        device.table = device.msix_table()?;
        Ok(device)
    }

    /// Where it is.
    pub fn address(&self) -> Address {
        self.address
    }

    /// The group that it belongs to.
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// Its registers: BAR 0.
    pub fn registers(&self) -> &Bar {
        &self.registers
    }

    /// Maps the BAR of the controller memory buffer, whichever is asked for first.
    ///
    /// # Errors
    /// If there is none, or it cannot be mapped.
    pub fn map_buffer(&self, index: u32) -> Result<Bar, VfioError> {
        let bar = if index == 0 { self.registers.clone() } else { map(&self.fd, self.address, index)? };
        Ok(self.buffer.get_or_init(|| bar).clone())
    }

    /// Reads `N` bytes of the configuration space.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn config<const N: usize>(&self, at: u16) -> Result<[u8; N], VfioError> {
        let mut bytes = [0; N];
        let what = || format!("{}: reading its configuration at {at:#x}", self.address);
        self.fd.read(&mut bytes, self.config + u64::from(at)).map_err(|error| VfioError::kernel(what())(error))?;
        Ok(bytes)
    }

    /// Writes to the configuration space. The kernel keeps some of it to itself: what was written need not be there then.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_config(&self, at: u16, bytes: &[u8]) -> Result<(), VfioError> {
        let what = || format!("{}: writing its configuration at {at:#x}", self.address);
        self.fd.write(bytes, self.config + u64::from(at)).map_err(|error| VfioError::kernel(what())(error))
    }

    /// Whether it may do DMA and send interrupts.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn is_bus_master(&self) -> Result<bool, VfioError> {
        Ok(u16::from_le_bytes(self.config(config::COMMAND)?) & config::COMMAND_MASTER != 0)
    }

    /// Lets it do DMA and send interrupts, or forbids both.
    ///
    /// # Errors
    /// If it is not so afterwards.
    pub fn set_bus_master(&self, on: bool) -> Result<(), VfioError> {
        self.switch(config::COMMAND_MASTER, on)
    }

    /// Switches a bit of the command register and reads it back.
    fn switch(&self, bit: u16, on: bool) -> Result<(), VfioError> {
        let command = u16::from_le_bytes(self.config(config::COMMAND)?);
        let wanted = if on { command | bit } else { command & !bit };
        self.set_config(config::COMMAND, &wanted.to_le_bytes())?;
        let seen = u16::from_le_bytes(self.config(config::COMMAND)?);
        if seen & bit == wanted & bit {
            return Ok(());
        }
        let what = format!("its command register is {seen:#06x} after {wanted:#06x} was written");
        Err(VfioError::Unusable { address: self.address, what })
    }

    /// MSI-X vectors that it has; 0 if it has none of this kind.
    pub fn vectors(&self) -> u16 {
        self.vectors
    }

    /// Whether [`Device::mask`] does anything.
    pub fn can_mask(&self) -> bool {
        self.table.is_some()
    }

    /// Allocates the first `count` vectors. None of them rings anything yet. Once for all: older kernels cannot add any later.
    ///
    /// # Errors
    /// If the machine has not so many interrupts; none is allocated then.
    pub fn enable_vectors(&self, count: u16) -> Result<(), VfioError> {
        let none = vec![None; usize::from(count)];
        let what = || format!("{}: {count} interrupts", self.address);
        self.fd.set_eventfds(VFIO_PCI_MSIX_IRQ_INDEX, 0, &none).map_err(|error| VfioError::kernel(what())(error))
    }

    /// Has a vector ring an eventfd, in place of the one before; `None` ends that. The kernel keeps the eventfd.
    ///
    /// # Errors
    /// If the vector is not enabled.
    pub fn set_vector(&self, vector: u16, eventfd: Option<BorrowedFd<'_>>) -> Result<(), VfioError> {
        let what = || format!("{}: interrupt {vector}", self.address);
        let set = self.fd.set_eventfds(VFIO_PCI_MSIX_IRQ_INDEX, u32::from(vector), &[eventfd]);
        set.map_err(|error| VfioError::kernel(what())(error))
    }

    /// Ends all vectors.
    ///
    /// # Errors
    /// What the kernel says: EINVAL if none is enabled.
    pub fn disable_vectors(&self) -> Result<(), VfioError> {
        let what = || format!("{}: ending interrupts", self.address);
        self.fd.clear_eventfds(VFIO_PCI_MSIX_IRQ_INDEX).map_err(|error| VfioError::kernel(what())(error))
    }

    /// Masks a vector in the function's own table, or takes the mask off: what was due meanwhile is sent then. False if the table cannot be
    /// mapped. The kernel knows nothing of it, and takes the mask off when it moves the interrupt to another processor.
    ///
    /// # Panics
    /// If there is no such vector.
    pub fn mask(&self, vector: u16, masked: bool) -> bool {
        assert!(vector < self.vectors, "vector {vector} of {}", self.vectors);
        let Some((bar, table)) = &self.table else { return false };
        let at = table + u32::from(vector) * MSIX_ENTRY + MSIX_CONTROL;
        let control = bar.read32(at);
        bar.write32(at, if masked { control | MSIX_MASKED } else { control & !MSIX_MASKED });
        // A read returns after the writes before it have arrived.
        bar.read32(at);
        true
    }

    /// Has the kernel ring an eventfd when it wants the function back, again and again: it is unplugged, or bound to another driver. Whoever
    /// asked waits until the device is closed and no register of it is mapped.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn on_request(&self, eventfd: BorrowedFd<'_>) -> Result<(), VfioError> {
        self.notify(VFIO_PCI_REQ_IRQ_INDEX, "requests to let go", eventfd)
    }

    /// Has the kernel ring an eventfd when the bus reports an error of the function that cannot be corrected.
    ///
    /// # Errors
    /// What the kernel says: a function that is not on PCI Express has none.
    pub fn on_error(&self, eventfd: BorrowedFd<'_>) -> Result<(), VfioError> {
        self.notify(VFIO_PCI_ERR_IRQ_INDEX, "errors of the bus", eventfd)
    }

    fn notify(&self, index: u32, what: &str, eventfd: BorrowedFd<'_>) -> Result<(), VfioError> {
        let kernel = VfioError::kernel(format!("{}: {what}", self.address));
        self.fd.set_eventfds(index, 0, &[Some(eventfd)]).map_err(kernel)
    }

    /// Takes the function away from under its registers, for one that goes: see [`Bar::blind`].
    ///
    /// # Errors
    /// What the kernel says.
    pub fn blind(&self) -> Result<(), VfioError> {
        let table = self.table.iter().map(|(bar, _)| bar);
        table
            .chain(self.buffer.get())
            .chain([&self.registers])
            .try_for_each(Bar::blind)
            .map_err(VfioError::kernel(format!("{}: blind", self.address)))
    }

    /// Gives the function up under whoever has it still: its registers read as ones, the kernel has it and resets it, and nothing is
    /// mapped for its group, unless another function of that is open. It does no DMA to this process's memory from then on, on the bus or off
    /// it.
    ///
    /// # Errors
    /// If that may not be so.
    pub fn let_go(&self) -> Result<(), VfioError> {
        // One that is off the bus takes no orders.
        let _ = self.set_bus_master(false);
        self.blind()?;
        self.fd.release().map_err(VfioError::kernel(format!("{}: closing it", self.address)))?;
        if Arc::strong_count(&self.group) == 1 {
            self.group.let_go()?;
        }
        Ok(())
    }

    /// Whether the kernel knows how to reset it.
    pub fn can_reset(&self) -> bool {
        self.can_reset
    }

    /// Resets the function: its registers are as after power-up, it has forgotten its queues, and does no DMA for them any more. Bus
    /// master and interrupts are as before. Accesses to its registers wait meanwhile.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn reset(&self) -> Result<(), VfioError> {
        self.fd.reset().map_err(VfioError::kernel(format!("{}: reset", self.address)))
    }

    /// Finds the MSI-X table and maps it, if the kernel lets it be mapped.
    fn msix_table(&self) -> Result<Option<(Bar, u32)>, VfioError> {
        let Some(capability) = self.capability(config::CAPABILITY_MSIX)? else { return Ok(None) };
        let table = u32::from_le_bytes(self.config(capability + config::MSIX_TABLE)?);
        let (bar, at) = (table & config::MSIX_BIR, table & !config::MSIX_BIR);
        let kernel = VfioError::kernel(format!("{}: BAR {bar}", self.address));
        let (about, bytes) = self.fd.region(bar).map_err(kernel)?;
        if !has(&about, &bytes, VFIO_REGION_INFO_CAP_MSIX_MAPPABLE) {
            return Ok(None);
        }
        let bar = if bar == 0 { self.registers.clone() } else { map(&self.fd, self.address, bar)? };
        let fits = at as usize + usize::from(self.vectors) * MSIX_ENTRY as usize <= bar.len();
        Ok(fits.then_some((bar, at)))
    }

    /// The place of a capability in the configuration space. The chain is the device's, and may be endless.
    fn capability(&self, id: u8) -> Result<Option<u16>, VfioError> {
        if u16::from_le_bytes(self.config(config::STATUS)?) & config::STATUS_CAPABILITIES == 0 {
            return Ok(None);
        }
        let [mut at] = self.config(config::CAPABILITIES)?;
        for _ in 0..config::CAPABILITIES_MAX {
            if at < 0x40 {
                break;
            }
            let [found, next] = self.config(u16::from(at & !3))?;
            if found == id {
                return Ok(Some(u16::from(at & !3)));
            }
            at = next;
        }
        Ok(None)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // A mapping that lives on would keep the kernel from doing it. One that is gone needs no telling.
        let _ = self.set_bus_master(false);
    }
}

fn has(about: &vfio_region_info, bytes: &[u8], id: u32) -> bool {
    about.flags & VFIO_REGION_INFO_FLAG_CAPS != 0 && capability(bytes, about.cap_offset, id).is_some()
}

/// Maps all of a BAR.
fn map(fd: &DeviceFd, address: Address, index: u32) -> Result<Bar, VfioError> {
    let unusable = |what: String| VfioError::Unusable { address, what };
    if index > VFIO_PCI_BAR5_REGION_INDEX {
        return Err(unusable(format!("there is no BAR {index}")));
    }
    let (about, bytes) = fd.region(index).map_err(VfioError::kernel(format!("{address}: BAR {index}")))?;
    if about.size == 0 {
        return Err(unusable(format!("it has no BAR {index}")));
    }
    // Before Linux 4.16 the MSI-X table was left out of what may be mapped.
    let in_parts = has(&about, &bytes, VFIO_REGION_INFO_CAP_SPARSE_MMAP);
    let in_pages = about.size.is_multiple_of(PAGE);
    if about.flags & VFIO_REGION_INFO_FLAG_MMAP == 0 || in_parts || !in_pages {
        return Err(unusable(format!("the kernel does not let BAR {index} be mapped as a whole")));
    }
    fd.map(about.offset, about.size as usize).map_err(VfioError::kernel(format!("{address}: mapping BAR {index}")))
}
