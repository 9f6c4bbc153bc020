//! One chunk of the arena: the memory, its side table of blocks, and who is home to it.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::OnceLock;

use super::mapping::Mapping;
use crate::block::{BLOCK_MIN, BlockNumber, Home, Table, push};
use crate::iova::Iova;
use crate::sync::{Arc, AtomicIsize, AtomicU32, Ordering};

/// What several cores may touch of a block; indexed by the 4 KiB page where the block starts.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Parts of a split block that are still out, with a flag while some may be on another core (see `buf`).
    pub(crate) parts: AtomicU32,
    /// Next block on the home's return list.
    pub(crate) next: AtomicU32,
}

/// The pool that hands out this chunk's blocks.
#[derive(Debug)]
pub(crate) struct HomeLink {
    pub(crate) home: Arc<Home>,
    /// The chunk's place in that pool.
    pub(crate) slot: u16,
}

/// A chunk of DMA memory. Lives as long as the arena, its pool, or any buffer in it.
#[derive(Debug)]
pub(crate) struct ChunkInner {
    mapping: Arc<Mapping>,
    base: NonNull<u8>,
    offset: usize,
    len: usize,
    index: u16,
    iova: Iova,
    home: OnceLock<HomeLink>,
    blocks: Box<[Shared]>,
    /// Blocks out when the home pool ended, minus those that landed since; see [`orphan`].
    remaining: AtomicIsize,
}

// SAFETY: `base` points into `mapping`, which is Send + Sync and lives as long as this; the rest is atomics and
// values set once. Access to the memory itself is governed by `Chunk` and the buffers made from it.
unsafe impl Send for ChunkInner {}
// SAFETY: as above.
unsafe impl Sync for ChunkInner {}

impl ChunkInner {
    /// First byte, with provenance over the whole arena.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn index(&self) -> u16 {
        self.index
    }

    /// Device address of byte `offset` of this chunk, if the chunk is mapped for a device.
    pub(crate) fn iova_of(&self, offset: usize) -> Option<u64> {
        self.iova.get().map(|iova| iova + offset as u64)
    }

    pub(crate) fn block(&self, page: u32) -> &Shared {
        &self.blocks[page as usize]
    }

    /// The home of this chunk, set when the chunk enters a pool, so before any buffer of it exists.
    pub(crate) fn home(&self) -> Option<&HomeLink> {
        self.home.get()
    }
}

/// Sends a block home from a core that is not its home: pushed on the return list, or counted off if the home is gone.
///
/// # Safety
/// The caller owns the block at `page` (nobody else holds a part of it), gives it up by this call, and `chunk` is the
/// live chunk it belongs to. The chunk may be freed as soon as this has counted the block.
pub(crate) unsafe fn send_home(chunk: NonNull<ChunkInner>, page: u32) {
    // SAFETY: alive, since a block of it is out (contract above). The reference ends before the exchange below.
    let this = unsafe { chunk.as_ref() };
    let Some(HomeLink { home, slot }) = this.home() else {
        unreachable!("a buffer of a chunk that is in no pool");
    };
    let number = BlockNumber::new(*slot, page);
    let link = &this.block(page).next;
    if push(home.head(), number, link) {
        return;
    }
    // The home is gone. Acquire and Release both: whoever frees the chunk must see all earlier uses of it.
    if this.remaining.fetch_sub(1, Ordering::AcqRel) == 1 {
        // SAFETY: `orphan` left one reference behind for whoever counts to zero, which is this call alone.
        drop(unsafe { Arc::from_raw(chunk.as_ptr()) });
    }
}

/// Keeps a chunk alive for `out` blocks that are still away when its home ends: the last of them frees it.
///
/// The home's return list must be closed, and blocks that landed there before must not be counted in `out`.
pub(crate) fn orphan(chunk: Arc<ChunkInner>, out: usize) {
    if out == 0 {
        return;
    }
    let out = isize::try_from(out).unwrap_or(isize::MAX);
    let chunk = Arc::into_raw(chunk);
    // SAFETY: the reference just given up keeps the chunk alive until somebody counts to zero.
    let before = unsafe { &*chunk }.remaining.fetch_add(out, Ordering::AcqRel);
    // Blocks may have landed between the closing and this: then `before` is negative and this call may be the last.
    if before + out == 0 {
        // SAFETY: the reference given up above; nobody else counted to zero.
        drop(unsafe { Arc::from_raw(chunk) });
    }
}

/// Another reference to the chunk of a live buffer.
///
/// # Safety
/// `chunk` came from an `Arc` and a block of it is out.
pub(crate) unsafe fn share(chunk: NonNull<ChunkInner>) -> Arc<ChunkInner> {
    // SAFETY: the chunk is alive by the contract, so its count may be raised and owned here.
    unsafe {
        Arc::increment_strong_count(chunk.as_ptr());
        Arc::from_raw(chunk.as_ptr())
    }
}

/// The exclusive right to hand out the buffers of one chunk: moved into exactly one pool by [`crate::Pool::add`].
///
/// Dropping it unused leaves its memory idle until the arena ends.
#[derive(Debug)]
pub struct Chunk {
    pub(crate) inner: Arc<ChunkInner>,
    pub(crate) table: Table,
}

impl Chunk {
    /// Bytes offset..offset+len of the arena; the caller (the arena) hands out each range once.
    pub(super) fn new(mapping: &Arc<Mapping>, index: u16, offset: usize, len: usize) -> Self {
        assert!(offset <= mapping.len() && len <= mapping.len() - offset, "chunk outside the arena");
        let pages = len / BLOCK_MIN;
        // SAFETY: `offset` is inside the mapping by the assertion above.
        let base = unsafe { mapping.base().add(offset) };
        let shared = || Shared { parts: AtomicU32::new(0), next: AtomicU32::new(0) };
        Self {
            inner: Arc::new(ChunkInner {
                mapping: Arc::clone(mapping),
                base,
                offset,
                len,
                index,
                iova: Iova::unmapped(),
                home: OnceLock::new(),
                blocks: (0..pages).map(|_| shared()).collect(),
                remaining: AtomicIsize::new(0),
            }),
            table: Table::new(pages),
        }
    }

    /// What others need to know of this chunk.
    pub fn info(&self) -> ChunkInfo {
        ChunkInfo { inner: Arc::clone(&self.inner) }
    }

    /// Settles who is home. Called once, by the pool that takes the chunk.
    pub(crate) fn settle(self, home: &Arc<Home>, slot: u16) -> (Arc<ChunkInner>, Table) {
        let link = HomeLink { home: Arc::clone(home), slot };
        let settled = self.inner.home.set(link);
        assert!(settled.is_ok(), "a chunk enters one pool");
        (self.inner, self.table)
    }
}

/// One chunk as those see it who register, share or map its memory. Holding it keeps the memory mapped.
#[derive(Clone, Debug)]
pub struct ChunkInfo {
    pub(super) inner: Arc<ChunkInner>,
}

impl ChunkInfo {
    /// Place in the arena, counted from 0 in the order of growth: the io_uring fixed-buffer index.
    pub fn index(&self) -> u16 {
        self.inner.index
    }

    /// Address of the first byte; a multiple of the page size.
    pub fn address(&self) -> usize {
        self.inner.base.as_ptr().addr()
    }

    /// Bytes; a multiple of the page size, at most 1 GiB.
    #[expect(clippy::len_without_is_empty, reason = "a chunk is never empty")]
    pub fn len(&self) -> usize {
        self.inner.len
    }

    /// Size in bytes of the pages behind it.
    pub fn page_size(&self) -> usize {
        self.inner.mapping.page_size()
    }

    /// The descriptor that holds the memory, to map it in another process or device; `None` for a heap arena.
    /// It covers the whole arena and is sealed against change of size.
    pub fn memfd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.mapping.memfd()
    }

    /// Where the chunk starts in the memfd, in bytes.
    pub fn offset(&self) -> u64 {
        self.inner.offset as u64
    }

    /// Publishes the device address of the first byte, once the whole chunk is mapped for DMA there.
    ///
    /// # Panics
    /// On `u64::MAX`, which no chunk can start at.
    pub fn set_iova(&self, iova: u64) {
        self.inner.iova.set(iova);
    }

    /// The device address of the first byte, once published.
    pub fn iova(&self) -> Option<u64> {
        self.inner.iova.get()
    }

    pub(crate) fn inner(&self) -> &Arc<ChunkInner> {
        &self.inner
    }
}
