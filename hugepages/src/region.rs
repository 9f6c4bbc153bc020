//! Memory that several cores touch at once: RAM volumes, guest memory. Copied in, copied out, never a slice.
//!
//! ```text
//!  address space  |<------------ reserved (PROT_NONE) --------------------------->|
//!                 |<-- len: readable and writable, no memory until written -->|   |
//!                                                                 grow ------>
//! ```
#![expect(unsafe_code, reason = "maps memory and copies to and from it while other cores do the same")]

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::arena::{bind, has_numa, node_exists, reserve};
use crate::copy;

#[expect(clippy::disallowed_types, reason = "growth is for control threads; reactors never take it")]
type Mutex<T> = std::sync::Mutex<T>;

/// Regions start at a multiple of the 2 MiB hugepage and reserve whole ones.
const ALIGNMENT: usize = 2 << 20;
/// Address space reserved by default: this many times the length, at least `RESERVE_MIN`. It costs nothing, but a process
/// has 128 TiB: room for hundreds of volumes.
const RESERVE_FACTOR: usize = 4;
const RESERVE_MIN: usize = 16 << 30;
/// Bytes compared at a time.
const COMPARE_PIECE: usize = 512;

/// What region to make.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RegionOptions {
    /// Ask for transparent hugepages: fewer TLB misses, but memory comes and goes in units of 2 MiB.
    pub hugepages: bool,
    /// The only NUMA node that memory may come from; any if `None`.
    pub numa_node: Option<u32>,
    /// Bytes of address space to reserve, the bound of later growth. 0: four times the length and at least 16 GiB, or
    /// as much of that as the process may have.
    pub reserve: usize,
}

/// Why there is no region, or it cannot grow.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The address space could not be had.
    #[error("cannot reserve {len} bytes of address space (limited by `ulimit -v`?)")]
    Reserve {
        /// Bytes asked for.
        len: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The memory could not be enabled.
    #[error("cannot enable {len} bytes of memory (vm.overcommit_memory = 2 limits it to vm.overcommit_ratio)")]
    Enable {
        /// Bytes asked for.
        len: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The machine has no such NUMA node.
    #[error("this machine has no NUMA node {node}; `ls -d /sys/devices/system/node/node*` lists them")]
    NumaNode {
        /// The node asked for.
        node: u32,
    },
    /// The memory could not be bound to the node.
    #[error("cannot bind memory to NUMA node {node}")]
    Bind {
        /// The node asked for.
        node: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// Growth beyond the reserved address space.
    #[error("cannot grow to {len} bytes: {reserved} bytes of address space were reserved when the region was made")]
    Reserved {
        /// The length asked for.
        len: usize,
        /// What was reserved.
        reserved: usize,
    },
    /// The new length is less than the present one.
    #[error("cannot shrink from {now} to {len} bytes")]
    Shrink {
        /// The length asked for.
        len: usize,
        /// The present length.
        now: usize,
    },
}

/// Zeroed memory of a fixed address that any core may read and write at any time. Clones are the same region.
///
/// Memory is populated when first written; what was never written reads as zeros. Copies that race see old or new
/// bytes, in any mixture: who needs more (compare and write, one block as a unit) serialises above this.
#[derive(Clone, Debug)]
pub struct Region {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    start: NonNull<u8>,
    reserved: usize,
    base: NonNull<u8>,
    /// Bytes behind `base` that may be enabled.
    room: usize,
    len: AtomicUsize,
    page_size: usize,
    options: RegionOptions,
    growth: Mutex<()>,
}

// SAFETY: the mapping belongs to this value until it is dropped; its memory is only accessed in ways that may race
// (see `copy`), and the rest is atomics, constants and a lock.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: mapped in `Region::new`; no clone is left, so nobody copies.
        let unmapped = unsafe { libc::munmap(self.start.as_ptr().cast(), self.reserved) };
        debug_assert_eq!(unmapped, 0, "munmap: {}", io::Error::last_os_error());
    }
}

impl Region {
    /// A region of `len` bytes that reads as zeros. Instant at any length: no memory is touched.
    ///
    /// # Errors
    /// No address space, or a NUMA node that is not there.
    pub fn new(len: usize, options: RegionOptions) -> Result<Self, RegionError> {
        if let Some(node) = options.numa_node
            && !node_exists(node)
        {
            return Err(RegionError::NumaNode { node });
        }
        let (start, reserved) = reserve_for(len, options.reserve)?;
        let skip = start.as_ptr().align_offset(ALIGNMENT);
        // SAFETY: `skip` is below ALIGNMENT, which is part of what was reserved.
        let base = unsafe { start.add(skip) };
        let inner = Inner {
            start,
            reserved,
            base,
            room: reserved - ALIGNMENT,
            len: AtomicUsize::new(0),
            page_size: page_size(),
            options,
            growth: Mutex::new(()),
        };
        inner.enable(0, len)?;
        inner.len.store(len, Ordering::Release);
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Bytes.
    #[inline]
    pub fn len(&self) -> usize {
        // Acquire: who sees the length may use the memory.
        self.inner.len.load(Ordering::Acquire)
    }

    /// True if the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that the region may grow to.
    pub fn capacity(&self) -> usize {
        self.inner.room
    }

    /// Makes the region longer while others use it; what is new reads as zeros. For control threads.
    ///
    /// # Errors
    /// A shorter length, or more than was reserved. The length is unchanged then.
    pub fn grow(&self, new_len: usize) -> Result<(), RegionError> {
        let inner = &*self.inner;
        let _one = inner.growth.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let now = self.len();
        if new_len < now {
            return Err(RegionError::Shrink { len: new_len, now });
        }
        if new_len > inner.room {
            return Err(RegionError::Reserved { len: new_len, reserved: inner.room });
        }
        inner.enable(now, new_len)?;
        inner.len.store(new_len, Ordering::Release);
        Ok(())
    }

    /// Copies out of the region.
    ///
    /// # Panics
    /// If the range is outside the region.
    #[inline]
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        let source = self.at(offset, into.len());
        // SAFETY: `at` checked the range; `into` is exclusively borrowed, so it cannot overlap region memory, to which there
        // are no references.
        unsafe { copy::copy_out(source, into.as_mut_ptr(), into.len()) };
    }

    /// Copies into the region.
    ///
    /// # Panics
    /// If the range is outside the region.
    #[inline]
    pub fn write(&self, offset: usize, from: &[u8]) {
        let target = self.at(offset, from.len());
        // SAFETY: as in `read`.
        unsafe { copy::copy_in(from.as_ptr(), target, from.len()) };
    }

    /// Writes zeros, which populates the memory; [`Region::discard`] gives it back instead.
    ///
    /// # Panics
    /// If the range is outside the region.
    #[inline]
    pub fn zero(&self, offset: usize, len: usize) {
        let target = self.at(offset, len);
        // SAFETY: `at` checked the range.
        unsafe { copy::zero(target, len) };
    }

    /// Makes the range read as zeros and gives its whole pages back to the kernel. A system call, unless the range
    /// contains no whole page.
    ///
    /// # Panics
    /// If the range is outside the region.
    pub fn discard(&self, offset: usize, len: usize) {
        let start = self.at(offset, len);
        let page_size = self.inner.page_size;
        let head = offset.next_multiple_of(page_size) - offset;
        if head >= len || len - head < page_size {
            return self.zero(offset, len);
        }
        let middle = (len - head) / page_size * page_size;
        let tail = len - head - middle;
        // SAFETY: whole pages of a range that `at` checked, in a private anonymous mapping: they are zero on next access.
        let given = unsafe { libc::madvise(start.add(head).cast(), middle, libc::MADV_DONTNEED) };
        if given == 0 {
            self.zero(offset, head);
            self.zero(offset + len - tail, tail);
        } else {
            // Locked pages (mlockall) stay; they must read as zeros all the same.
            self.zero(offset, len);
        }
    }

    /// Compares the region with `with`.
    ///
    /// # Errors
    /// The index in `with` of the first byte that differs.
    ///
    /// # Panics
    /// If the range is outside the region.
    pub fn compare(&self, offset: usize, with: &[u8]) -> Result<(), usize> {
        self.at(offset, with.len());
        let mut piece = [0; COMPARE_PIECE];
        for (index, expected) in with.chunks(COMPARE_PIECE).enumerate() {
            let start = index * COMPARE_PIECE;
            let found = &mut piece[..expected.len()];
            self.read(offset + start, found);
            if found != expected {
                let differs = found.iter().zip(expected).position(|(found, expected)| found != expected);
                return Err(start + differs.unwrap_or(0));
            }
        }
        Ok(())
    }

    /// Bytes of a page, in which memory comes with the first write and is given back.
    pub fn page_size(&self) -> usize {
        self.inner.page_size
    }

    /// Address of a byte, to map the region for a device or another process. It stays valid while a clone lives.
    ///
    /// # Panics
    /// If `offset` is beyond the end.
    pub fn address_of(&self, offset: usize) -> usize {
        self.at(offset, 0).addr()
    }

    /// The address of a checked range.
    #[inline]
    fn at(&self, offset: usize, len: usize) -> *mut u8 {
        let now = self.len();
        assert!(offset <= now && len <= now - offset, "{len} bytes at {offset} of a region of {now}");
        // SAFETY: inside the mapping by the assertion.
        unsafe { self.inner.base.add(offset) }.as_ptr()
    }
}

impl Inner {
    /// Makes base+from..base+to readable and writable. `to` is at most `room`.
    fn enable(&self, from: usize, to: usize) -> Result<(), RegionError> {
        // The page that `from` is in, if it is not at its start, was enabled before.
        let from = from.next_multiple_of(self.page_size);
        let to = to.next_multiple_of(self.page_size);
        if from >= to {
            return Ok(());
        }
        let len = to - from;
        // SAFETY: `to` is within `room`, both in whole pages, so inside the reservation.
        let start = unsafe { self.base.add(from) };
        if let Some(node) = self.options.numa_node
            && has_numa()
        {
            bind(start, len, node).map_err(|source| RegionError::Bind { node, source })?;
        }
        if self.options.hugepages {
            // SAFETY: a hint for a range of this mapping; a kernel without transparent hugepages refuses, at no harm.
            unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        }
        // SAFETY: pages of this mapping that nobody uses yet: the length does not cover them.
        let enabled = unsafe { libc::mprotect(start.as_ptr().cast(), len, libc::PROT_READ | libc::PROT_WRITE) };
        if enabled == 0 { Ok(()) } else { Err(RegionError::Enable { len, source: io::Error::last_os_error() }) }
    }
}

/// Reserves address space for a region of `len` bytes, alignment included: `want`, or the default, or what there is.
fn reserve_for(len: usize, want: usize) -> Result<(NonNull<u8>, usize), RegionError> {
    let whole = |len: usize| {
        let padded = len.checked_next_multiple_of(ALIGNMENT).and_then(|len| len.checked_add(ALIGNMENT));
        padded
            .filter(|padded| isize::try_from(*padded).is_ok())
            .ok_or_else(|| RegionError::Reserve { len, source: io::Error::from_raw_os_error(libc::ENOMEM) })
    };
    let least = whole(len.max(want))?;
    let mut size =
        if want == 0 { whole(len.saturating_mul(RESERVE_FACTOR).max(RESERVE_MIN)).unwrap_or(least) } else { least };
    loop {
        match reserve(size) {
            Ok(start) => return Ok((start, size)),
            Err(source) if size == least => return Err(RegionError::Reserve { len: size, source }),
            Err(_) => size = (size / 2).next_multiple_of(ALIGNMENT).max(least),
        }
    }
}

/// The size of the kernel's pages, in which memory is protected and given back.
fn page_size() -> usize {
    // SAFETY: a query without arguments in memory.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}
