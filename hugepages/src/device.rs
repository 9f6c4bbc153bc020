//! Blocks that a device reads and writes at any time: submission and completion queues, lists of addresses.
//!
//! ```text
//!  Pool of core 0 ── Buf ── into_device ──► DeviceBuf ── clone ──► DeviceBuf (any core)
//!    ▲                                        │ drop                  │ drop
//!    └── collect ◄── return list ◄────────────┴── by the last of them ┘
//! ```
#![expect(unsafe_code, reason = "loads and stores words that a device writes meanwhile, which no reference may cover")]

use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::block::BLOCK_MIN;
use crate::buf::RemoteBuf;
use crate::copy;
use crate::sync::Arc;

/// A whole block of the arena that a device may read and write at any time. Clones are the same memory, on any core; when the
/// last one is dropped, on whichever, the block returns to the pool it came from, as a [`RemoteBuf`] does: with the pool's next
/// [`collect`](crate::Pool::collect).
///
/// There is never a slice of it. Words are loaded and stored atomically, bytes copied in and out, so whatever races with that,
/// device or core, the result is some mixture of old and new contents and nothing worse. Numbers are little-endian in memory, as PCI
/// devices have them. Two cores that touch the same word without any other order between them do so in the same size (a device
/// is under no such rule).
///
/// # Hazard
/// A clone must live until the device has stopped using the block: its queue deleted, the controller disabled, the function reset. The
/// memory is handed out again after the last drop, and would be written by the device under its next owner.
///
/// # Panics
/// Every access, if it leaves the block or is not aligned as its method says: a defect of the caller's.
#[derive(Clone)]
pub struct DeviceBuf {
    start: NonNull<u8>,
    /// The bits that no offset in the block has: its size is a power of two.
    outside: usize,
    block: Arc<RemoteBuf>,
}

// SAFETY: all accesses are atomic or by `copy`, which bears any race; the block is a `RemoteBuf`, Send + Sync itself, that the
// clones share by an atomic count.
unsafe impl Send for DeviceBuf {}
// SAFETY: as above.
unsafe impl Sync for DeviceBuf {}

impl DeviceBuf {
    /// `block` is a whole block, which begins at `start` and has `len` bytes.
    pub(crate) fn new(start: NonNull<u8>, len: usize, block: RemoteBuf) -> Self {
        assert!(len.is_power_of_two() && len >= BLOCK_MIN && start.addr().get().is_multiple_of(BLOCK_MIN), "no block");
        Self { start, outside: !(len - 1), block: Arc::new(block) }
    }

    /// Bytes: all of the block, whatever the length of the buffer's slice was. A power of two from
    /// [`BLOCK_MIN`] to [`MAX_BUF`](crate::MAX_BUF).
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "a block is never empty")]
    pub fn len(&self) -> usize {
        !self.outside + 1
    }

    /// Address of the first byte in this process; a multiple of the page size.
    #[inline]
    pub fn address(&self) -> usize {
        self.start.addr().get()
    }

    /// Device address of the first byte, if the chunk is mapped for a device ([`crate::ChunkInfo::set_iova`]). Device addresses are
    /// contiguous within a block.
    pub fn iova(&self) -> Option<u64> {
        self.block.chunk().iova_of(self.block.chunk_offset())
    }

    /// Whether all other clones are dropped: nobody but the owner of this one has the block. A clone that is made at the same time on another core
    /// may be missed.
    pub fn is_sole(&self) -> bool {
        Arc::strong_count(&self.block) == 1
    }

    /// Loads 4 bytes at `at`, a multiple of 4. Acquire: what the device stored before the word that is read here, later loads of
    /// this thread see.
    #[inline]
    pub fn load32(&self, at: usize) -> u32 {
        u32::from_le(self.word32(at).load(Ordering::Acquire))
    }

    /// Stores 4 bytes at `at`, a multiple of 4. Release: who sees the word sees all earlier stores of this thread.
    #[inline]
    pub fn store32(&self, at: usize, value: u32) {
        self.word32(at).store(value.to_le(), Ordering::Release);
    }

    /// Loads 8 bytes at `at`, a multiple of 8; Acquire, as [`DeviceBuf::load32`].
    #[inline]
    pub fn load64(&self, at: usize) -> u64 {
        u64::from_le(self.words::<1>(at)[0].load(Ordering::Acquire))
    }

    /// Stores 8 bytes at `at`, a multiple of 8; Release, as [`DeviceBuf::store32`].
    #[inline]
    pub fn store64(&self, at: usize, value: u64) {
        self.words::<1>(at)[0].store(value.to_le(), Ordering::Release);
    }

    /// Loads a record of `N` words at `at`, a multiple of its size: relaxed, so after an Acquire load of the word that announces it. `N` is
    /// a power of two: 2 for a completion of NVMe.
    #[inline]
    pub fn load_words<const N: usize>(&self, at: usize) -> [u64; N] {
        let words = self.words::<N>(at);
        std::array::from_fn(|index| u64::from_le(words[index].load(Ordering::Relaxed)))
    }

    /// Stores a record of `N` words at `at`, a multiple of its size: relaxed, to be announced by what orders all earlier stores, a doorbell or
    /// a Release store. `N` is a power of two: 8 for a command of NVMe.
    #[inline]
    pub fn store_words<const N: usize>(&self, at: usize, values: &[u64; N]) {
        for (word, value) in self.words::<N>(at).iter().zip(values) {
            word.store(value.to_le(), Ordering::Relaxed);
        }
    }

    /// Copies out the bytes from `at` on, in no particular order: after an Acquire load of what announces them.
    pub fn read(&self, at: usize, into: &mut [u8]) {
        let source = self.range(at, into.len());
        // SAFETY: `range` is in the block; `into` is borrowed exclusively, so it is none of this memory, to which there are no references.
        unsafe { copy::copy_out(source, into.as_mut_ptr(), into.len()) };
    }

    /// Copies in bytes from `at` on, in no particular order: to be announced by what orders all earlier stores.
    pub fn write(&self, at: usize, from: &[u8]) {
        let target = self.range(at, from.len());
        // SAFETY: as in `read`.
        unsafe { copy::copy_in(from.as_ptr(), target, from.len()) };
    }

    /// Fills all of it with zeros, in no particular order.
    pub fn zero(&self) {
        // SAFETY: the whole block.
        unsafe { copy::zero(self.start.as_ptr(), self.len()) };
    }

    #[inline]
    fn word32(&self, at: usize) -> &AtomicU32 {
        self.check(at, size_of::<u32>());
        // SAFETY: inside the block and aligned by the check; the block outlives the borrow, and is accessed as the type says only.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(at).cast()) }
    }

    #[inline]
    fn words<const N: usize>(&self, at: usize) -> &[AtomicU64; N] {
        const { assert!(N.is_power_of_two() && N * size_of::<u64>() <= BLOCK_MIN, "the size of a record") };
        self.check(at, N * size_of::<u64>());
        // SAFETY: as in `word32`: the whole record is inside, and atomics may be shared. They have no padding, and the layout of u64, aligned
        // to 8 on the machines that have them.
        unsafe { &*self.start.as_ptr().add(at).cast::<[AtomicU64; N]>() }
    }

    /// One test for bounds and alignment: the sizes of block and record are powers of two, so a record at a multiple of its size that
    /// begins inside ends inside.
    #[inline]
    fn check(&self, at: usize, size: usize) {
        if at & (self.outside | (size - 1)) != 0 {
            refuse(at, size, self.len());
        }
    }

    fn range(&self, at: usize, len: usize) -> *mut u8 {
        if at > self.len() || len > self.len() - at {
            refuse(at, len, self.len());
        }
        // SAFETY: in the block, or one byte behind it, by the check.
        unsafe { self.start.add(at) }.as_ptr()
    }
}

#[cold]
#[inline(never)]
fn refuse(at: usize, size: usize, len: usize) -> ! {
    panic!("{size} bytes at {at} of a device's block of {len}: outside, or not aligned");
}

impl fmt::Debug for DeviceBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceBuf")
            .field("chunk", &self.block.chunk().index())
            .field("offset", &self.block.chunk_offset())
            .field("len", &self.len())
            .finish()
    }
}
