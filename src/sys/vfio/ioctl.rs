//! The calls of VFIO's container, group and device files, typed; errors are the kernel's errno.
//!
//! A descriptor is one of three types, because the same number means different things to them: 3b71h maps memory on a
//! container and resets a bus on a device. Structures that end in a list are asked for twice, the second time with the
//! length that the kernel has named.
#![expect(unsafe_code, reason = "ioctl(2) and mmap(2) take addresses")]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::ptr::NonNull;

use hugepages::ChunkInfo;
use vfio_bindings::bindings::vfio::{
    VFIO_API_VERSION, VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_IRQ_SET_DATA_NONE, VFIO_TYPE, vfio_device_info, vfio_group_status,
    vfio_iommu_type1_dma_map, vfio_iommu_type1_info, vfio_irq_info, vfio_irq_set, vfio_region_info,
};

use crate::sys::mmio::Bar;

/// The number of call `n`: neither direction nor size is part of it.
const fn number(n: u32) -> u32 {
    (VFIO_TYPE as u32) << 8 | (VFIO_BASE + n)
}

const GET_API_VERSION: u32 = number(0);
const CHECK_EXTENSION: u32 = number(1);
const SET_IOMMU: u32 = number(2);
const GROUP_GET_STATUS: u32 = number(3);
const GROUP_SET_CONTAINER: u32 = number(4);
const GROUP_GET_DEVICE_FD: u32 = number(6);
const DEVICE_GET_INFO: u32 = number(7);
const DEVICE_GET_REGION_INFO: u32 = number(8);
const DEVICE_GET_IRQ_INFO: u32 = number(9);
const DEVICE_SET_IRQS: u32 = number(10);
const DEVICE_RESET: u32 = number(11);
const IOMMU_GET_INFO: u32 = number(12);
const IOMMU_MAP_DMA: u32 = number(13);

/// Interrupts that one call can name: more than MSI-X has.
const VECTORS_MAX: usize = 2048;

/// A call whose argument is a number, or nothing.
fn by_value(file: &File, request: u32, value: u32) -> io::Result<i32> {
    // SAFETY: callers pass calls of VFIO that take no address, on files that took VFIO's calls before.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), request as libc::Ioctl, libc::c_ulong::from(value)) })
}

/// A call whose argument is an address.
///
/// # Safety
/// `argument` is what the call takes: valid for all that the kernel reads and writes there.
unsafe fn by_address<T>(file: &File, request: u32, argument: *mut T) -> io::Result<i32> {
    // SAFETY: the caller's contract.
    checked(unsafe { libc::ioctl(file.as_raw_fd(), request as libc::Ioctl, argument) })
}

fn checked(result: libc::c_int) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Asks for a structure that begins with its own length in bytes and may have a list of capabilities behind it. Returns it, and
/// all its bytes.
///
/// # Safety
/// `T` is the structure of the call: plain integers, the first of them the length, a `u32`.
unsafe fn with_list<T: Copy>(file: &File, request: u32, about: T) -> io::Result<(T, Vec<u8>)> {
    const { assert!(align_of::<T>() <= align_of::<u64>() && size_of::<T>().is_multiple_of(8)) };
    let mut words = vec![0u64; size_of::<T>() / 8];
    loop {
        let start = words.as_mut_ptr().cast::<T>();
        let len = words.len() * 8;
        // SAFETY: as long as a `T` at least, and aligned for one; its first field is a `u32`.
        unsafe {
            start.write(about);
            start.cast::<u32>().write(len as u32);
            by_address(file, request, start)?;
        }
        // SAFETY: written above.
        let (answer, wanted) = unsafe { (start.read(), start.cast::<u32>().read() as usize) };
        if wanted <= len {
            return Ok((answer, words.iter().flat_map(|word| word.to_le_bytes()).collect()));
        }
        words = vec![0; wanted.div_ceil(8)];
    }
}

// The kernel's structures are read as bytes of this order.
const _: () = assert!(cfg!(target_endian = "little"));

/// A container: the I/O address space of its groups.
#[derive(Debug)]
pub struct ContainerFd(File);

impl ContainerFd {
    /// Opens a container, and makes sure that it is one of the version known here.
    ///
    /// # Errors
    /// What open(2) or the kernel says; [`io::ErrorKind::Unsupported`] for another version.
    pub fn open(path: &Path) -> io::Result<ContainerFd> {
        let file = open(path)?;
        let version = by_value(&file, GET_API_VERSION, 0)?;
        if version != VFIO_API_VERSION as i32 {
            return Err(io::Error::new(io::ErrorKind::Unsupported, format!("version {version} of VFIO")));
        }
        Ok(ContainerFd(file))
    }

    /// Whether the kernel has an extension, such as a kind of IOMMU.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn has_extension(&self, extension: u32) -> io::Result<bool> {
        by_value(&self.0, CHECK_EXTENSION, extension).map(|answer| answer > 0)
    }

    /// Sets the kind of IOMMU. The container must have a group, and no kind yet: EINVAL.
    ///
    /// # Errors
    /// What the kernel says: EPERM if interrupts cannot be remapped.
    pub fn set_iommu(&self, kind: u32) -> io::Result<()> {
        by_value(&self.0, SET_IOMMU, kind).map(drop)
    }

    /// What the IOMMU can do; the bytes are those of the structure and its capabilities.
    ///
    /// # Errors
    /// What the kernel says: EINVAL before a kind was set.
    pub fn info(&self) -> io::Result<(vfio_iommu_type1_info, Vec<u8>)> {
        // SAFETY: the structure of this call.
        unsafe { with_list(&self.0, IOMMU_GET_INFO, vfio_iommu_type1_info::default()) }
    }

    /// Maps a chunk at I/O address `iova`, for reads and writes of all devices of the container. It stays mapped until the container
    /// has no group any more.
    ///
    /// # Errors
    /// What the kernel says: ENOMEM beyond RLIMIT_MEMLOCK, EEXIST where something is mapped, EINVAL outside the IOMMU's ranges. Memory
    /// of a heap arena is refused with [`io::ErrorKind::Unsupported`].
    pub fn map_dma(&self, chunk: &ChunkInfo, iova: u64) -> io::Result<()> {
        if chunk.memfd().is_none() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "memory of a heap arena"));
        }
        let mut map = vfio_iommu_type1_dma_map {
            argsz: size_of::<vfio_iommu_type1_dma_map>() as u32,
            flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
            vaddr: chunk.address() as u64,
            iova,
            size: chunk.len() as u64,
        };
        // SAFETY: the structure of this call. What it makes accessible is all of one chunk: pages of a memfd that the kernel pins, so
        // that nobody else gets them while a device may write there, whenever the chunk ends.
        unsafe { by_address(&self.0, IOMMU_MAP_DMA, &raw mut map) }.map(drop)
    }
}

/// An IOMMU group.
#[derive(Debug)]
pub struct GroupFd(File);

/// Closes what a descriptor leads to, whoever has the descriptor still: from now on its calls are refused (ENOTTY).
fn release(file: &File) -> io::Result<()> {
    let nothing = File::open("/dev/null")?;
    // SAFETY: both are open descriptors, and the number of the first stays one.
    checked(unsafe { libc::dup3(nothing.as_raw_fd(), file.as_raw_fd(), libc::O_CLOEXEC) }).map(drop)
}

impl GroupFd {
    /// Closes it under whoever has it: the kernel takes it out of its container, so that nothing is mapped for its functions.
    ///
    /// # Errors
    /// What dup3(2) says.
    pub fn release(&self) -> io::Result<()> {
        release(&self.0)
    }

    /// Opens a group, and makes sure that it is one.
    ///
    /// # Errors
    /// What open(2) says: EBUSY if a process has it open, EACCES or EPERM without the right.
    pub fn open(path: &Path) -> io::Result<GroupFd> {
        let group = GroupFd(open(path)?);
        group.status()?;
        Ok(group)
    }

    /// The group's flags.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn status(&self) -> io::Result<u32> {
        let mut status = vfio_group_status { argsz: size_of::<vfio_group_status>() as u32, flags: 0 };
        // SAFETY: the structure of this call.
        unsafe { by_address(&self.0, GROUP_GET_STATUS, &raw mut status) }?;
        Ok(status.flags)
    }

    /// Moves the group into a container, until it is closed.
    ///
    /// # Errors
    /// What the kernel says: EPERM if interrupts cannot be remapped, EINVAL if what is mapped does not fit the group's IOMMU.
    pub fn set_container(&self, container: &ContainerFd) -> io::Result<()> {
        let mut fd: RawFd = container.0.as_raw_fd();
        // SAFETY: the address of a descriptor.
        unsafe { by_address(&self.0, GROUP_SET_CONTAINER, &raw mut fd) }.map(drop)
    }

    /// A function of the group, which the kernel resets; it may not be bus master then. `name` is its address.
    ///
    /// # Errors
    /// What the kernel says: ENODEV if vfio-pci has not this function.
    pub fn device(&self, name: &str) -> io::Result<DeviceFd> {
        let name = CString::new(name)?;
        // SAFETY: the kernel reads a string that ends with a zero.
        let fd = unsafe { by_address(&self.0, GROUP_GET_DEVICE_FD, name.as_ptr().cast_mut()) }?;
        // SAFETY: a fresh descriptor that nobody else knows.
        Ok(DeviceFd(unsafe { File::from_raw_fd(fd) }))
    }
}

/// A device: here a PCI function.
#[derive(Debug)]
pub struct DeviceFd(File);

impl DeviceFd {
    /// Closes it under whoever has it: the kernel stops the function's DMA and resets it, once nothing of it is mapped.
    ///
    /// # Errors
    /// What dup3(2) says.
    pub fn release(&self) -> io::Result<()> {
        release(&self.0)
    }

    /// What it is.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn info(&self) -> io::Result<vfio_device_info> {
        let mut info = vfio_device_info { argsz: size_of::<vfio_device_info>() as u32, ..vfio_device_info::default() };
        // SAFETY: the structure of this call.
        unsafe { by_address(&self.0, DEVICE_GET_INFO, &raw mut info) }?;
        Ok(info)
    }

    /// A region of it; the bytes are those of the structure and its capabilities.
    ///
    /// # Errors
    /// What the kernel says: EINVAL if there is none of this index.
    pub fn region(&self, index: u32) -> io::Result<(vfio_region_info, Vec<u8>)> {
        // SAFETY: the structure of this call.
        unsafe { with_list(&self.0, DEVICE_GET_REGION_INFO, vfio_region_info { index, ..vfio_region_info::default() }) }
    }

    /// A kind of interrupts.
    ///
    /// # Errors
    /// What the kernel says: EINVAL if there is none of this index.
    pub fn interrupts(&self, index: u32) -> io::Result<vfio_irq_info> {
        let argsz = size_of::<vfio_irq_info>() as u32;
        let mut info = vfio_irq_info { argsz, index, ..vfio_irq_info::default() };
        // SAFETY: the structure of this call.
        unsafe { by_address(&self.0, DEVICE_GET_IRQ_INFO, &raw mut info) }?;
        Ok(info)
    }

    /// Has the interrupts of a kind from `start` on ring eventfds; `None` rings none. The first call allocates as many as it names.
    ///
    /// # Errors
    /// What the kernel says. If it has fewer interrupts than that, none is set, and [`io::ErrorKind::QuotaExceeded`] says how many.
    pub fn set_eventfds(&self, index: u32, start: u32, eventfds: &[Option<BorrowedFd<'_>>]) -> io::Result<()> {
        if eventfds.len() > VECTORS_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        let fds = eventfds.iter().map(|fd| fd.map_or(-1, |fd| fd.as_raw_fd()) as u32);
        let mut words = irq_set(flags, index, start, eventfds.len() as u32, fds);
        // SAFETY: the structure of this call with as many descriptors as it says.
        match unsafe { by_address(&self.0, DEVICE_SET_IRQS, words.as_mut_ptr()) }? {
            0 => Ok(()),
            there => Err(io::Error::new(io::ErrorKind::QuotaExceeded, format!("only {there} are free"))),
        }
    }

    /// Ends the interrupts of a kind.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn clear_eventfds(&self, index: u32) -> io::Result<()> {
        let mut words = irq_set(VFIO_IRQ_SET_DATA_NONE | VFIO_IRQ_SET_ACTION_TRIGGER, index, 0, 0, std::iter::empty());
        // SAFETY: the structure of this call, without data.
        unsafe { by_address(&self.0, DEVICE_SET_IRQS, words.as_mut_ptr()) }.map(drop)
    }

    /// Maps a region by its place in the file: whole pages. The kernel keeps the device open while it is mapped.
    ///
    /// # Errors
    /// What mmap(2) says, and as [`Bar::new`].
    pub fn map(&self, offset: u64, len: usize) -> io::Result<Bar> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let (fd, offset) = (self.0.as_raw_fd(), offset as libc::off_t);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, access, libc::MAP_SHARED, fd, offset) };
        match NonNull::new(start.cast()) {
            // SAFETY: mapped just now, for this value alone. The device reaches memory of chunks only, by the IOMMU.
            Some(first) if start != libc::MAP_FAILED => unsafe { Bar::new(first, len) },
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Resets the function. Accesses to its mapped registers wait meanwhile; its configuration is as before.
    ///
    /// # Errors
    /// What the kernel says: EINVAL if the function cannot be reset.
    pub fn reset(&self) -> io::Result<()> {
        by_value(&self.0, DEVICE_RESET, 0).map(drop)
    }

    /// Reads from a region by its place in the file.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn read(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(into, offset)
    }

    /// Writes to a region by its place in the file.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn write(&self, from: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(from, offset)
    }
}

/// A `vfio_irq_set` and its data, in words.
fn irq_set(flags: u32, index: u32, start: u32, count: u32, data: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut words = vec![0, flags, index, start, count];
    words.extend(data);
    words[0] = words.len() as u32 * 4;
    words
}

const _: () = assert!(size_of::<vfio_irq_set>() == 20 && align_of::<vfio_irq_set>() == align_of::<u32>());

#[cfg(test)]
mod tests {
    use vfio_bindings::bindings::vfio::{
        VFIO_DEVICE_FLAGS_RESET, VFIO_GROUP_FLAGS_VIABLE, VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
        VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX,
        VFIO_REGION_INFO_CAP_MSIX_MAPPABLE, VFIO_REGION_INFO_FLAG_MMAP, VFIO_TYPE1v2_IOMMU, vfio_info_cap_header,
        vfio_iova_range,
    };

    use super::*;

    /// As a C program prints them that includes linux/vfio.h.
    #[test]
    fn numbers_and_sizes_are_those_of_the_kernel() {
        let calls = [GET_API_VERSION, CHECK_EXTENSION, SET_IOMMU, GROUP_GET_STATUS, GROUP_SET_CONTAINER];
        assert_eq!(calls, [0x3b64, 0x3b65, 0x3b66, 0x3b67, 0x3b68]);
        let calls = [GROUP_GET_DEVICE_FD, DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_GET_IRQ_INFO];
        assert_eq!(calls, [0x3b6a, 0x3b6b, 0x3b6c, 0x3b6d]);
        let calls = [DEVICE_SET_IRQS, DEVICE_RESET, IOMMU_GET_INFO, IOMMU_MAP_DMA];
        assert_eq!(calls, [0x3b6e, 0x3b6f, 0x3b70, 0x3b71]);
        assert_eq!((size_of::<vfio_group_status>(), size_of::<vfio_iommu_type1_info>()), (8, 24));
        assert_eq!((size_of::<vfio_device_info>(), size_of::<vfio_region_info>()), (24, 32));
        assert_eq!((size_of::<vfio_irq_info>(), size_of::<vfio_irq_set>()), (16, 20));
        assert_eq!((size_of::<vfio_iommu_type1_dma_map>(), size_of::<vfio_iova_range>()), (32, 16));
        assert_eq!(size_of::<vfio_info_cap_header>(), 8);
        let flags =
            [VFIO_DEVICE_FLAGS_RESET, VFIO_GROUP_FLAGS_VIABLE, VFIO_IOMMU_INFO_CAPS, VFIO_REGION_INFO_FLAG_MMAP];
        assert_eq!(flags, [1, 1, 2, 4]);
        let indexes = [VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX, VFIO_PCI_REQ_IRQ_INDEX];
        assert_eq!(indexes, [7, 2, 4]);
        let numbers = [VFIO_TYPE1v2_IOMMU, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_REGION_INFO_CAP_MSIX_MAPPABLE];
        assert_eq!(numbers, [3, 1, 3]);
    }

    #[test]
    fn descriptors_of_interrupts_lie_behind_their_structure() {
        let words = irq_set(36, 2, 1, 3, [5, -1i32 as u32, 7].into_iter());
        assert_eq!(words, [32, 36, 2, 1, 3, 5, u32::MAX, 7]);
        assert_eq!(irq_set(33, 2, 0, 0, std::iter::empty()), [20, 33, 2, 0, 0]);
    }

    #[test]
    fn what_is_not_vfio_is_refused_with_the_kernels_number() {
        let null = Path::new("/dev/null");
        assert_eq!(ContainerFd::open(null).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        assert_eq!(GroupFd::open(null).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        let none = Path::new("/dev/vfio/no-such-node");
        assert_eq!(GroupFd::open(none).unwrap_err().raw_os_error(), Some(libc::ENOENT));
        let device = DeviceFd(open(null).unwrap());
        let refused = [
            device.info().unwrap_err(),
            device.region(0).unwrap_err(),
            device.interrupts(2).unwrap_err(),
            device.set_eventfds(2, 0, &[None]).unwrap_err(),
            device.clear_eventfds(2).unwrap_err(),
            device.reset().unwrap_err(),
        ];
        assert!(refused.iter().all(|error| error.raw_os_error() == Some(libc::ENOTTY)), "{refused:?}");
        let many = vec![None; VECTORS_MAX + 1];
        assert_eq!(device.set_eventfds(2, 0, &many).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn memory_of_a_heap_arena_is_never_mapped() {
        let chunk = hugepages::Arena::heap(1 << 20).grow(1 << 20).unwrap().remove(0).info();
        let container = ContainerFd(open(Path::new("/dev/null")).unwrap());
        assert_eq!(container.map_dma(&chunk, 1 << 32).unwrap_err().kind(), io::ErrorKind::Unsupported);
        assert_eq!(container.set_iommu(3).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        assert_eq!(container.info().unwrap_err().raw_os_error(), Some(libc::ENOTTY));
        assert_eq!(container.has_extension(3).unwrap_err().raw_os_error(), Some(libc::ENOTTY));
    }
}
