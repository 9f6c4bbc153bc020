//! Devices in user space by VFIO, with an IOMMU between them and memory (type 1, containers and groups).
//!
//! ```text
//!  Container ── /dev/vfio/vfio: one I/O address space for all disks of the process
//!   │   └─ DmaSpace: the arena in one window of it, chunk by chunk
//!   └─ Group ── /dev/vfio/12: what the IOMMU cannot tell apart
//!       └─ Device ── a function: registers, configuration, interrupts, reset
//! ```
//! Each keeps what it stands on, so that a device is closed before its group and a group before the container. When the last group
//! has gone, the kernel forgets the kind of IOMMU and all mappings: the next group that comes sets both again.
//!
//! A process that ends, however it does, leaves nothing behind: the kernel stops the function's DMA, resets it, and unmaps.
//!
//! For control threads.

mod device;
mod ioctl;
mod space;

pub use device::Device;
pub use space::DmaSpace;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use hugepages::ChunkInfo;
use vfio_bindings::bindings::vfio::{VFIO_GROUP_FLAGS_VIABLE, VFIO_TYPE1v2_IOMMU};

use super::pci::{self, Address, AddressRange, Function, Pci, PciError};
use super::predecessor::outlast;
use ioctl::{ContainerFd, GroupFd};

#[expect(clippy::disallowed_types, reason = "disks come and memory grows on control threads; no reactor asks")]
type Mutex<T> = std::sync::Mutex<T>;

/// Why a device is not to be had in user space. Each message names the remedy where there is one.
#[derive(Debug, thiserror::Error)]
pub enum VfioError {
    /// No such disk, no IOMMU, no vfio-pci, or held by another process.
    #[error(transparent)]
    Pci(#[from] PciError),
    /// The group has no IOMMU behind it: every device could write to any memory.
    #[error("vfio is in its unsafe mode without an IOMMU: reactor refuses, a faulty device could write anywhere")]
    UnsafeMode,
    /// The kernel has no driver for this kind of IOMMU.
    #[error("the kernel has no vfio_iommu_type1: modprobe vfio_iommu_type1 (CONFIG_VFIO_IOMMU_TYPE1)")]
    NoType1,
    /// Another driver has the function.
    #[error(
        "{address} belongs to {}: reactor nvme bind {address} gives it to VFIO, unless somebody uses it",
        .driver.as_deref().unwrap_or("no driver")
    )]
    NotBound {
        /// The function.
        address: Address,
        /// Its driver.
        driver: Option<String>,
    },
    /// The node of a group, or of the container, may not be opened.
    #[error("no right to open {}: run as root, or chown it", .path.display())]
    NoRight {
        /// The node.
        path: PathBuf,
    },
    /// Other functions of the group have drivers that do DMA.
    #[error("group {group} has functions that other drivers have: {}: bind them to vfio-pci or to none", named(.others))]
    NotViable {
        /// The group.
        group: u32,
        /// The functions and their drivers.
        others: Vec<(Address, String)>,
    },
    /// Interrupts could be forged.
    #[error(
        "the IOMMU cannot remap interrupts: boot with intremap on, or allow vfio_iommu_type1.allow_unsafe_interrupts=1 \
         knowing that a device could forge interrupts"
    )]
    NoInterruptRemapping,
    /// The kernel may not keep so much memory in place.
    #[error(
        "{} of DMA memory cannot be pinned (limit {}): LimitMEMLOCK=infinity, ulimit -l, or CAP_IPC_LOCK",
        size(*.bytes), .limit.map_or_else(|| "unknown".to_owned(), size)
    )]
    MemoryLimit {
        /// Bytes that could not be pinned.
        bytes: u64,
        /// What the process may lock in bytes.
        limit: Option<u64>,
    },
    /// No window of I/O addresses is long enough.
    #[error("the IOMMU has no free range of {} for the arena: a smaller [memory] size, or fewer devices in its way", size(*.bytes))]
    NoWindow {
        /// The arena's size.
        bytes: u64,
    },
    /// What the device offers cannot be used.
    #[error("{address}: {what}")]
    Unusable {
        /// The function.
        address: Address,
        /// What is missing.
        what: String,
    },
    /// The kernel refuses, for none of these reasons.
    #[error("{what}: {source}")]
    Kernel {
        /// What was asked for.
        what: String,
        /// What the kernel says.
        source: io::Error,
    },
}

impl VfioError {
    fn kernel(what: impl Into<String>) -> impl FnOnce(io::Error) -> VfioError {
        let what = what.into();
        |source| VfioError::Kernel { what, source }
    }
}

fn named(others: &[(Address, String)]) -> String {
    let named: Vec<_> = others.iter().map(|(address, driver)| format!("{address} ({driver})")).collect();
    if named.is_empty() { "none that could be seen".to_owned() } else { named.join(", ") }
}

/// Bytes in words: `256MiB`.
fn size(bytes: u64) -> String {
    let unit = (0..=4).rev().find(|n| bytes != 0 && bytes.is_multiple_of(1 << (10 * n))).unwrap_or(0);
    format!("{}{}", bytes >> (10 * unit), ["", "KiB", "MiB", "GiB", "TiB"][unit])
}

/// A container of type 1: the I/O address space that all devices of a process share.
#[derive(Debug)]
pub struct Container {
    fd: ContainerFd,
    pci: Pci,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    groups: BTreeMap<u32, Weak<Group>>,
    /// What is mapped while there is a group, and where.
    mapped: Vec<(ChunkInfo, u64)>,
}

/// What the IOMMU of a container's groups can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IommuInfo {
    /// Sizes of pages: a bit each.
    pub page_sizes: u64,
    /// Addresses that may be mapped.
    pub ranges: Vec<AddressRange>,
    /// Mappings that may still be made; `None` if the kernel does not say.
    pub mappings_left: Option<u32>,
}

impl Container {
    /// Opens one. A process needs one only.
    ///
    /// # Errors
    /// If the kernel has no VFIO.
    pub fn open(pci: &Pci) -> Result<Arc<Container>, VfioError> {
        let path = pci.path("dev/vfio/vfio");
        let fd = ContainerFd::open(&path).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => PciError::NoVfioPci.into(),
            Some(libc::EACCES | libc::EPERM) => VfioError::NoRight { path },
            _ => VfioError::Kernel { what: path.display().to_string(), source: error },
        })?;
        if !fd.has_extension(VFIO_TYPE1v2_IOMMU).map_err(VfioError::kernel("CHECK_EXTENSION"))? {
            return Err(VfioError::NoType1);
        }
        Ok(Arc::new(Container { fd, pci: pci.clone(), state: Mutex::default() }))
    }

    /// The group of a function, which becomes part of the container. Waits up to two seconds for a predecessor that was killed.
    ///
    /// # Errors
    /// If the function is not bound to vfio-pci, or its group cannot be had: see [`VfioError`].
    pub fn group(self: &Arc<Self>, function: &Function) -> Result<Arc<Group>, VfioError> {
        let (address, group) = (function.address, admit(function)?);
        let number = group.number;
        let mut state = lock(&self.state);
        if let Some(open) = state.groups.get(&number).and_then(in_use) {
            return Ok(open);
        }
        let path = self.pci.path(&format!("dev/vfio/{number}"));
        let fd = outlast(libc::EBUSY, || GroupFd::open(&path)).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => PciError::Held { address, by: self.pci.holders(number) }.into(),
            Some(libc::EACCES | libc::EPERM) => VfioError::NoRight { path },
            _ => VfioError::Kernel { what: path.display().to_string(), source: error },
        })?;
        let flags = fd.status().map_err(VfioError::kernel("GROUP_GET_STATUS"))?;
        if flags & VFIO_GROUP_FLAGS_VIABLE == 0 {
            return Err(VfioError::NotViable { group: number, others: group.in_the_way(address) });
        }
        let refused = |what: &'static str| {
            move |error: io::Error| match error.raw_os_error() {
                Some(libc::EPERM) => VfioError::NoInterruptRemapping,
                _ => VfioError::kernel(format!("{what} of group {number}"))(error),
            }
        };
        fd.set_container(&self.fd).map_err(refused("GROUP_SET_CONTAINER"))?;
        match self.fd.set_iommu(VFIO_TYPE1v2_IOMMU) {
            Ok(()) => {}
            // It is set: else nothing could be said of it.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && self.fd.info().is_ok() => {}
            Err(error) => return Err(refused("SET_IOMMU")(error)),
        }
        // For the first group, or the first since all had gone, nothing is mapped. One that was going when a chunk came has what came before.
        if !state.groups.values().any(|group| in_use(group).is_some()) {
            for (chunk, iova) in &state.mapped {
                self.map_chunk(chunk, *iova)?;
            }
        }
        let group = Arc::new(Group { fd, number, gone: AtomicBool::new(false), container: self.clone() });
        state.groups.insert(number, Arc::downgrade(&group));
        Ok(group)
    }

    /// What the IOMMU can do.
    ///
    /// # Errors
    /// Before there is a group.
    pub fn iommu(&self) -> Result<IommuInfo, VfioError> {
        let (info, bytes) = self.fd.info().map_err(VfioError::kernel("IOMMU_GET_INFO"))?;
        Ok(space::parse(&info, &bytes))
    }

    /// Maps a chunk, now if there is a group, and whenever a first one comes.
    fn map(&self, chunk: &ChunkInfo, iova: u64) -> Result<(), VfioError> {
        let mut state = lock(&self.state);
        // Without a group the kernel has no address space for it.
        if state.groups.values().any(|group| in_use(group).is_some()) {
            self.map_chunk(chunk, iova)?;
        }
        state.mapped.push((chunk.clone(), iova));
        Ok(())
    }

    fn map_chunk(&self, chunk: &ChunkInfo, iova: u64) -> Result<(), VfioError> {
        let bytes = chunk.len() as u64;
        match self.fd.map_dma(chunk, iova) {
            Ok(()) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // It is there.
                Some(libc::EEXIST) => Ok(()),
                Some(libc::ENOMEM) => Err(VfioError::MemoryLimit { bytes, limit: self.memory_limit() }),
                _ => Err(VfioError::kernel(format!("mapping {} at {iova:#x}", size(bytes)))(error)),
            },
        }
    }

    /// What this process may lock in bytes: RLIMIT_MEMLOCK.
    fn memory_limit(&self) -> Option<u64> {
        memory_limit(&fs::read_to_string(self.pci.path("proc/self/limits")).ok()?)
    }
}

fn memory_limit(limits: &str) -> Option<u64> {
    limits.lines().find_map(|line| line.strip_prefix("Max locked memory")?.split_whitespace().next()?.parse().ok())
}

/// The group of a function that may be taken.
fn admit(function: &Function) -> Result<&pci::Group, VfioError> {
    let group = function.group.as_ref().ok_or(PciError::NoIommu)?;
    if group.is_unsafe {
        return Err(VfioError::UnsafeMode);
    }
    if !function.is_vfio() {
        return Err(VfioError::NotBound { address: function.address, driver: function.driver.clone() });
    }
    Ok(group)
}

/// A panic while the lock was held leaves lists that are still true, so poison is passed over.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// An IOMMU group in a container.
#[derive(Debug)]
pub struct Group {
    // Closed before the container.
    fd: GroupFd,
    number: u32,
    /// It has been let go of.
    gone: AtomicBool,
    container: Arc<Container>,
}

/// A group that is still part of its container.
fn in_use(group: &Weak<Group>) -> Option<Arc<Group>> {
    group.upgrade().filter(|group| !group.gone.load(Ordering::Acquire))
}

impl Group {
    /// Takes it out of its container, under whoever has it still.
    fn let_go(&self) -> Result<(), VfioError> {
        self.gone.store(true, Ordering::Release);
        self.fd.release().map_err(VfioError::kernel(format!("closing group {}", self.number)))
    }

    /// Its number, as in `/dev/vfio/12`.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The container that it is in.
    pub fn container(&self) -> &Arc<Container> {
        &self.container
    }
}

#[cfg(test)]
mod tests;
