//! The system calls under the arena: one memfd, one mapping, NUMA binding and population.

use std::alloc::{self, Layout};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::ptr::{self, NonNull};

/// Size of a plain page. The kernel's own page may be larger on other machines; 4 KiB divides it.
pub(super) const PLAIN_PAGE: usize = 4 << 10;
/// Size of the usual hugepage.
pub(super) const HUGE_2M: usize = 2 << 20;
/// Size of the large hugepage.
pub(super) const HUGE_1G: usize = 1 << 30;

/// Every chunk starts at a multiple of this, so the largest buffer is naturally aligned, in memory and on any device.
const ALIGNMENT: usize = HUGE_2M;

/// Nodes that a node mask holds: the kernel's own upper bound (CONFIG_NODES_SHIFT is at most 10).
pub(super) const NODES_MAX: u32 = 1024;

#[derive(Debug)]
enum Backing {
    /// Ordinary heap memory: `start` as the allocator returned it.
    Heap { start: NonNull<u8>, layout: Layout },
    /// Address space reserved at `start` for `reserved` bytes, the memfd mapped inside it.
    Shared { start: NonNull<u8>, reserved: usize, memfd: OwnedFd },
}

/// The address space of one arena, unmapped when its last chunk is gone.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    page_size: usize,
    backing: Backing,
}

// SAFETY: the mapping only carries the right to the address range; what is handed out of it is governed by `Chunk`.
unsafe impl Send for Mapping {}
// SAFETY: as above; no method of a shared `Mapping` reads or writes the memory itself.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Zeroed heap memory of `len` bytes; the allocator leaves it untouched until used.
    pub(super) fn heap(len: usize) -> Self {
        // Over-allocated and aligned by hand: the system allocator zeroes lazily only at its own small alignment.
        let Ok(layout) = Layout::from_size_align(len + crate::MAX_BUF, 16) else {
            panic!("a heap arena of {len} bytes exceeds the address space");
        };
        // SAFETY: the layout has a non-zero size, since MAX_BUF is added.
        let start = unsafe { alloc::alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { alloc::handle_alloc_error(layout) };
        let skip = start.as_ptr().align_offset(crate::MAX_BUF);
        // SAFETY: `skip` is below MAX_BUF, which was added to the allocation.
        let base = unsafe { start.add(skip) };
        Self { base, len, page_size: PLAIN_PAGE, backing: Backing::Heap { start, layout } }
    }

    /// Maps a new memfd of `len` bytes (a multiple of `page_size`). On hugetlb this reserves all pages, so that nobody
    /// else can take them, but touches none.
    pub(super) fn shared(len: usize, page_size: usize) -> io::Result<Self> {
        let memfd = memfd(len, page_size)?;
        let alignment = ALIGNMENT.max(page_size);
        let reserved = len.checked_add(alignment).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        let start = reserve(reserved)?;
        let skip = start.as_ptr().align_offset(alignment);
        // SAFETY: `skip` is below `alignment`, which was added to the reservation.
        let base = unsafe { start.add(skip) };
        // SAFETY: base..base+len lies inside the reservation made above, which nothing else uses yet.
        let mapped = unsafe {
            libc::mmap(
                base.as_ptr().cast(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED,
                memfd.as_raw_fd(),
                0,
            )
        };
        if mapped == libc::MAP_FAILED {
            let refused = io::Error::last_os_error();
            // The kernel may have taken the reservation away before it refused (it does without free hugepages), and another
            // thread's memory may be there by now: only both ends are certainly still ours.
            // SAFETY: base..base+len is left alone; what lies before and behind it belongs to the reservation.
            unsafe {
                libc::munmap(start.as_ptr().cast(), skip);
                libc::munmap(base.add(len).as_ptr().cast(), alignment - skip);
            }
            return Err(refused);
        }
        Ok(Self { base, len, page_size, backing: Backing::Shared { start, reserved, memfd } })
    }

    /// First byte, with provenance over the whole mapping.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn page_size(&self) -> usize {
        self.page_size
    }

    pub(super) fn is_heap(&self) -> bool {
        matches!(self.backing, Backing::Heap { .. })
    }

    pub(super) fn memfd(&self) -> Option<BorrowedFd<'_>> {
        match &self.backing {
            Backing::Heap { .. } => None,
            Backing::Shared { memfd, .. } => Some(memfd.as_fd()),
        }
    }

    /// Binds offset..offset+len (page multiples) to one NUMA node; pages come from there or population fails.
    pub(super) fn bind(&self, offset: usize, len: usize, node: u32) -> io::Result<()> {
        if self.is_heap() {
            return Ok(());
        }
        bind(self.range(offset, len), len, node)
    }

    /// Makes every page of offset..offset+len present and writable, or fails: later accesses cannot raise SIGBUS.
    pub(super) fn populate(&self, offset: usize, len: usize) -> io::Result<()> {
        if self.is_heap() {
            return Ok(());
        }
        let start = self.range(offset, len);
        loop {
            // SAFETY: the range lies inside this mapping (checked by `range`); populating does not change contents.
            let populated = unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_POPULATE_WRITE) };
            if populated == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) {
                return Err(error);
            }
        }
    }

    /// Gives the pages of a range that no chunk covers back to the kernel after a failed population.
    pub(super) fn release(&self, offset: usize, len: usize) {
        if self.is_heap() {
            return;
        }
        let start = self.range(offset, len);
        // SAFETY: the range lies inside this mapping and no chunk covers it, so nobody refers to its contents. Failure
        // leaves the pages in place for the next attempt, which is harmless.
        unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_REMOVE) };
    }

    fn range(&self, offset: usize, len: usize) -> NonNull<u8> {
        assert!(offset <= self.len && len <= self.len - offset, "range outside the arena");
        // SAFETY: `offset` is inside the mapping by the assertion above.
        unsafe { self.base.add(offset) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        match &self.backing {
            // SAFETY: allocated in `heap` with this layout; every chunk (and with it every buffer) is gone.
            Backing::Heap { start, layout } => unsafe { alloc::dealloc(start.as_ptr(), *layout) },
            Backing::Shared { start, reserved, .. } => {
                // SAFETY: reserved in `shared`; every chunk (and with it every buffer) is gone.
                let unmapped = unsafe { libc::munmap(start.as_ptr().cast(), *reserved) };
                debug_assert_eq!(unmapped, 0, "munmap: {}", io::Error::last_os_error());
            }
        }
    }
}

/// A sealed memfd of `len` bytes: who it is shared with cannot shrink it under our feet (that would raise SIGBUS).
fn memfd(len: usize, page_size: usize) -> io::Result<OwnedFd> {
    let huge = match page_size {
        HUGE_2M => libc::MFD_HUGETLB | libc::MFD_HUGE_2MB,
        HUGE_1G => libc::MFD_HUGETLB | libc::MFD_HUGE_1GB,
        _ => 0,
    };
    // SAFETY: the name is a valid C string; the call touches no other memory.
    let fd =
        unsafe { libc::memfd_create(c"reactor-arena".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | huge) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` is a new descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let size = libc::off_t::try_from(len).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: plain system call on a descriptor we own.
    if unsafe { libc::ftruncate(fd.as_raw_fd(), size) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: plain system call on a descriptor we own.
    if unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(fd)
}

/// Reserves address space without memory behind it.
pub(crate) fn reserve(len: usize) -> io::Result<NonNull<u8>> {
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
    let start = unsafe {
        libc::mmap(
            ptr::null_mut(),
            len,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))
}

/// Binds the pages of a mapped range to one node (mbind with MPOL_BIND); pages already present stay where they are.
pub(crate) fn bind(start: NonNull<u8>, len: usize, node: u32) -> io::Result<()> {
    if node >= NODES_MAX {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut mask = [0_u64; NODES_MAX as usize / 64];
    mask[node as usize / 64] = 1 << (node % 64);
    // SAFETY: mbind changes the placement policy of the range, not its contents, and reads the mask: NODES_MAX bits
    // (the kernel takes one more than it reads).
    let bound = unsafe {
        libc::syscall(
            libc::SYS_mbind,
            start.as_ptr(),
            len,
            libc::MPOL_BIND,
            mask.as_ptr(),
            libc::c_ulong::from(NODES_MAX) + 1,
            0_u32,
        )
    };
    if bound == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// True if the machine has this NUMA node; a kernel without NUMA has node 0 and no policy to set.
pub(crate) fn node_exists(node: u32) -> bool {
    let nodes = Path::new("/sys/devices/system/node");
    node < NODES_MAX && if nodes.exists() { nodes.join(format!("node{node}")).exists() } else { node == 0 }
}

/// True if the kernel knows memory policies; without them everything is on node 0 already.
pub(crate) fn has_numa() -> bool {
    Path::new("/sys/devices/system/node").exists()
}
