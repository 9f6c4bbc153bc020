//! Owned buffers: exclusive pieces of arena memory that return home when dropped.
//!
//! ```text
//!  one block of a class   |<------------------ 64 KiB ------------------>|
//!  split_to(20 KiB)       | part: len = capacity = 20 KiB | part: the rest |
//! ```
//! A block is out while any part of it is; the last part dropped, wherever that is, sends it home. The parts of a
//! block are counted at its first page: plainly while all are on one core, with atomic operations from the moment one
//! of them becomes a [`RemoteBuf`].
#![expect(unsafe_code, reason = "the one place where the right to a block becomes a slice of memory")]

use std::fmt;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::{self, NonNull};
use std::rc::Rc;

use crate::arena::{ChunkInner, send_home, share};
use crate::block::{BLOCK_MIN, BlockNumber, Extent, Home, MAX_BUF};
use crate::device::DeviceBuf;
use crate::pool::{Core, View};
use crate::sync::{Arc, AtomicU32, Ordering, fence};

/// Part counts carry this flag from when a part left the core until the block is home.
const ABROAD: u32 = 1 << 31;

/// Length, capacity, class and state of a buffer in one word, so that it is always written and read in one piece: a
/// buffer that was just made and moves on would else stall the load on two pending stores.
///
/// ```text
///  63     59..56  52..32    31..0
///  part   order   capacity  len
/// ```
#[derive(Clone, Copy)]
struct Span(u64);

impl Span {
    const CAPACITY_SHIFT: u32 = 32;
    const CAPACITY_MASK: u64 = (MAX_BUF as u64 * 2 - 1) << Self::CAPACITY_SHIFT;
    const ORDER_SHIFT: u32 = 56;
    const PART: u64 = 1 << 63;

    fn whole(order: u8) -> Self {
        let capacity = (BLOCK_MIN as u64) << order;
        Self(capacity << Self::CAPACITY_SHIFT | u64::from(order) << Self::ORDER_SHIFT)
    }

    fn len(self) -> usize {
        (self.0 & u64::from(u32::MAX)) as usize
    }

    fn capacity(self) -> usize {
        ((self.0 & Self::CAPACITY_MASK) >> Self::CAPACITY_SHIFT) as usize
    }

    fn order(self) -> u8 {
        (self.0 >> Self::ORDER_SHIFT) as u8 & 0xF
    }

    /// True for a part of a block; false for a buffer that is all of its block.
    fn is_part(self) -> bool {
        self.0 & Self::PART != 0
    }

    /// Of another length, at most the capacity.
    fn with_len(self, len: usize) -> Self {
        Self(self.0 & !u64::from(u32::MAX) | len as u64)
    }

    /// The same block, as a part of `capacity` bytes, `len` of them in the slice.
    fn part(self, len: usize, capacity: usize) -> Self {
        let block = self.0 & 0xF << Self::ORDER_SHIFT;
        Self(block | Self::PART | (capacity as u64) << Self::CAPACITY_SHIFT | len as u64)
    }
}

/// An owned buffer of arena memory, exclusive to its holder; not Send. Dropped means returned to the pool it came from.
///
/// A slice of [`len`](Buf::len) bytes within [`capacity`](Buf::capacity) bytes that are its own. The memory is always
/// initialised (the arena is zeroed when it is mapped), so growing `len` shows old contents, never undefined ones.
///
/// ```compile_fail
/// fn to_another_core(buf: hugepages::Buf) {
///     std::thread::spawn(move || drop(buf)); // not Send: make it a RemoteBuf
/// }
/// ```
pub struct Buf {
    /// First byte; of a part without capacity, any byte of its block.
    start: NonNull<u8>,
    span: Span,
    /// Taken out only where the buffer ends: `drop`, `into_remote`.
    view: ManuallyDrop<Rc<View>>,
}

const _: () = assert!(size_of::<Buf>() == 24 && size_of::<Option<Buf>>() == 24);

/// A [`Buf`] on its way between cores. Dropped, it returns to its home pool's list; [`crate::Pool::import`] makes it a
/// [`Buf`] again.
pub struct RemoteBuf {
    start: NonNull<u8>,
    span: Span,
    chunk: NonNull<ChunkInner>,
}

const _: () = assert!(size_of::<RemoteBuf>() == 24);

// SAFETY: a `RemoteBuf` is the exclusive owner of its bytes, and the block behind it is returned by atomics. Parts of the
// same block on other cores own other bytes and share only the atomic part count.
unsafe impl Send for RemoteBuf {}
// SAFETY: a shared `RemoteBuf` gives out `&[u8]` only.
unsafe impl Sync for RemoteBuf {}

/// The page (in its chunk) where the block of a part starts: blocks are aligned to their size in the chunk.
fn head_page(chunk: &ChunkInner, start: NonNull<u8>, order: u8) -> u32 {
    let page = (start.addr().get() - chunk.base().addr().get()) / BLOCK_MIN;
    (page as u32) & !((1 << order) - 1)
}

/// Counts a part off; true if it was the last, and the caller now owns the whole block.
///
/// Takes the bare count: if it was not the last, others may end the block and its chunk at once, so the chunk may not be
/// borrowed as the argument of a running function.
fn last_part(parts: &AtomicU32) -> bool {
    let seen = parts.load(Ordering::Relaxed);
    if seen & ABROAD == 0 {
        // Every part is on this core: nobody else can write the count.
        parts.store(seen - 1, Ordering::Relaxed);
        return seen == 1;
    }
    // Release: our use of the bytes is before the block's next use; Acquire, for the last: so is that of all others.
    if parts.fetch_sub(1, Ordering::Release) & !ABROAD == 1 {
        fence(Ordering::Acquire);
        return true;
    }
    false
}

/// A whole block at home, at hand in a magazine: a buffer without a length, in two words that move in registers.
#[derive(Debug)]
pub(crate) struct Ready {
    /// First byte, with the order of the block in the low bits, which are zero in an address of a block.
    tagged: NonNull<u8>,
    view: Rc<View>,
}

impl Ready {
    const ORDER_MASK: usize = BLOCK_MIN - 1;

    /// `view` is the pool's own view of the block's chunk.
    pub(crate) fn new(view: Rc<View>, extent: Extent) -> Self {
        let (number, order) = (extent.number(), extent.order());
        let offset = number.page() as usize * BLOCK_MIN;
        assert!(
            view.home.is_some_and(|slot| usize::from(slot) == number.slot())
                && offset + extent.len() <= view.chunk.len(),
            "a block outside its chunk"
        );
        // SAFETY: inside the chunk by the assertion.
        let start = unsafe { view.chunk.base().add(offset) };
        Self::at(start, order, view)
    }

    #[inline]
    fn at(start: NonNull<u8>, order: u8, view: Rc<View>) -> Self {
        Self { tagged: start.map_addr(|address| address | usize::from(order)), view }
    }

    #[inline]
    pub(crate) fn order(&self) -> u8 {
        (self.tagged.addr().get() & Self::ORDER_MASK) as u8
    }

    #[inline]
    fn start(&self) -> NonNull<u8> {
        // SAFETY: the address of a block, which is not null.
        unsafe { NonNull::new_unchecked(self.tagged.as_ptr().map_addr(|address| address & !Self::ORDER_MASK)) }
    }

    /// The buffer; `len` is at most the size of the block.
    #[inline]
    pub(crate) fn into_buf(self, len: usize) -> Buf {
        let span = Span::whole(self.order());
        debug_assert!(len <= span.capacity());
        Buf { start: self.start(), span: span.with_len(len), view: ManuallyDrop::new(self.view) }
    }

    /// The right to the block.
    pub(crate) fn into_extent(self) -> Extent {
        let Some(slot) = self.view.home else { unreachable!("a block is ready at home only") };
        let order = self.order();
        let page = head_page(&self.view.chunk, self.start(), order);
        Extent::from_buf(BlockNumber::new(slot, page), order)
    }
}

impl Buf {
    /// A buffer from another core; `view` is this core's view of its chunk.
    #[inline]
    pub(crate) fn from_remote(view: Rc<View>, remote: RemoteBuf) -> Self {
        assert!(ptr::eq(Arc::as_ptr(&view.chunk), remote.chunk.as_ptr()), "a view of another chunk");
        let remote = ManuallyDrop::new(remote);
        let view = ManuallyDrop::new(view);
        Self { start: remote.start, span: remote.span, view }
    }

    /// Bytes of the slice.
    #[inline]
    pub fn len(&self) -> usize {
        self.span.len()
    }

    /// True if the slice has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.span.len() == 0
    }

    /// Bytes that the slice may grow to.
    #[inline]
    pub fn capacity(&self) -> usize {
        self.span.capacity()
    }

    /// Shortens the slice to `len` bytes; no effect if it is shorter. The capacity stays.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        if len < self.len() {
            self.span = self.span.with_len(len);
        }
    }

    /// Sets the length of the slice; bytes beyond the old length have whatever value they last had.
    ///
    /// # Panics
    /// If `len` exceeds the capacity.
    #[inline]
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} bytes in a buffer of {}", self.capacity());
        self.span = self.span.with_len(len);
    }

    /// First byte, for hardware and the kernel; valid for the capacity while the buffer is owned.
    #[inline]
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// First byte, writable; valid for the capacity while the buffer is owned.
    #[inline]
    pub fn as_mut_ptr(&mut self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// Address of the first byte.
    #[inline]
    pub fn address(&self) -> usize {
        self.start.addr().get()
    }

    /// Index of the chunk in its arena: the io_uring fixed-buffer index.
    #[inline]
    pub fn chunk(&self) -> u16 {
        self.view.chunk.index()
    }

    /// Offset of the first byte in its chunk.
    #[inline]
    pub fn chunk_offset(&self) -> usize {
        self.address() - self.view.chunk.base().addr().get()
    }

    /// Device address of the first byte, if the chunk is mapped for a device ([`crate::ChunkInfo::set_iova`]).
    /// Device addresses are contiguous within a chunk, so within a buffer.
    #[inline]
    pub fn iova(&self) -> Option<u64> {
        self.view.chunk.iova_of(self.chunk_offset())
    }

    /// Cuts off the front: the result has the first `at` bytes (length and capacity), `self` keeps the rest. The parts
    /// are disjoint and independent.
    ///
    /// # Panics
    /// If `at` exceeds the length.
    pub fn split_to(&mut self, at: usize) -> Buf {
        assert!(at <= self.len(), "split at {at} of {}", self.len());
        let chunk = &*self.view.chunk;
        let parts = &chunk.block(self.page()).parts;
        if self.span.is_part() {
            if parts.load(Ordering::Relaxed) & ABROAD == 0 {
                parts.store(parts.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            } else {
                // Relaxed suffices to count up: this part keeps the block out meanwhile.
                parts.fetch_add(1, Ordering::Relaxed);
            }
        } else {
            parts.store(2, Ordering::Relaxed);
        }
        let rest = self.capacity() - at;
        let front = Buf { start: self.start, span: self.span.part(at, at), view: self.view.clone() };
        self.span = self.span.part(self.len() - at, rest);
        if rest > 0 {
            // SAFETY: at < old capacity, so the result is inside the block.
            self.start = unsafe { self.start.add(at) };
        }
        front
    }

    /// Rejoins a part with the one that follows it in memory.
    ///
    /// # Errors
    /// Gives `next` back if it is of another block, does not follow, or would leave a gap because `self` was shortened.
    pub fn unsplit(&mut self, next: Buf) -> Result<(), Buf> {
        let order = self.span.order();
        let same_block = self.span.is_part()
            && next.span.is_part()
            && order == next.span.order()
            && ptr::eq(&*self.view.chunk, &*next.view.chunk)
            && self.page() == next.page();
        let follows =
            next.capacity() == 0 || self.capacity() == 0 || self.address() + self.capacity() == next.address();
        if !same_block || !follows || self.len() != self.capacity() {
            return Err(next);
        }
        if self.capacity() == 0 {
            self.start = next.start;
        }
        let capacity = self.capacity() + next.capacity();
        let len = self.len() + next.len();
        // Counts the part off. It is never the last: `self` is one too.
        drop(next);
        // Parts without capacity may be out still: only the sole part is the whole block. Acquire pairs with the Release
        // of parts that were dropped elsewhere.
        let parts = self.view.chunk.block(self.page()).parts.load(Ordering::Acquire) & !ABROAD;
        let whole = capacity == BLOCK_MIN << order && parts == 1;
        self.span = if whole { Span::whole(order).with_len(len) } else { self.span.part(len, capacity) };
        Ok(())
    }

    /// Prepares the buffer for another core.
    #[inline]
    pub fn into_remote(self) -> RemoteBuf {
        if self.span.is_part() {
            self.go_abroad();
        }
        let mut this = ManuallyDrop::new(self);
        let chunk = NonNull::from(&*this.view.chunk);
        // The chunk stays alive without the view: the block is out, and its home keeps the chunk, or leaves a reference
        // behind, until the block has landed.
        // SAFETY: `this` is not dropped, so its view is taken once, here.
        drop(unsafe { this.take_view() });
        RemoteBuf { start: this.start, span: this.span, chunk }
    }

    /// Gives the block to a device for good: from now on words of it are loaded and stored, and there is no slice.
    ///
    /// # Panics
    /// If the buffer is a part of a block ([`Buf::split_to`]): its neighbours could be ordinary buffers.
    pub fn into_device(self) -> DeviceBuf {
        assert!(!self.span.is_part(), "a part of a block given to a device");
        let (start, len) = (self.start, self.capacity());
        DeviceBuf::new(start, len, self.into_remote())
    }

    /// From now on other cores count, too. Sent with the buffer, the flag is seen wherever a part of the block is: parts
    /// that stay are on this core, parts that went before had it set.
    fn go_abroad(&self) {
        let parts = &self.view.chunk.block(self.page()).parts;
        let seen = parts.load(Ordering::Relaxed);
        if seen & ABROAD == 0 {
            parts.store(seen | ABROAD, Ordering::Relaxed);
        }
    }

    fn page(&self) -> u32 {
        head_page(&self.view.chunk, self.start, self.span.order())
    }
}

impl Drop for Buf {
    #[inline]
    fn drop(&mut self) {
        if self.span.is_part() || !self.view.returns_here() {
            return self.drop_rare();
        }
        let core: *const Core = &*self.view.core;
        // SAFETY: the view is taken once, here; this buffer is not used after.
        let ready = Ready::at(self.start, self.span.order(), unsafe { self.take_view() });
        // SAFETY: the core outlives the call: `ready`, which it keeps, refers to it.
        unsafe { &*core }.put(ready);
    }
}

impl Buf {
    /// The last part of a block, any other part, or a buffer of another core's pool.
    fn drop_rare(&mut self) {
        let page = self.page();
        // SAFETY: called by `drop` alone, which does not use the view after.
        let view = unsafe { self.take_view() };
        if self.span.is_part() && !last_part(&view.chunk.block(page).parts) {
            return;
        }
        let order = self.span.order();
        match view.home {
            Some(slot) => {
                let extent = Extent::from_buf(BlockNumber::new(slot, page), order);
                if view.returns_here() {
                    let core = Rc::clone(&view.core);
                    core.put(Ready::new(view, extent));
                } else {
                    view.core.settle(extent);
                }
            }
            // SAFETY: the block is this buffer's alone (all of it, or the last part) and ends here.
            None => unsafe { send_home(NonNull::from(&*view.chunk), page) },
        }
    }

    /// The view, to end the buffer with.
    ///
    /// # Safety
    /// Called once, and the buffer is neither used nor dropped after, but for its plain fields.
    unsafe fn take_view(&mut self) -> Rc<View> {
        // SAFETY: by the contract.
        unsafe { ManuallyDrop::take(&mut self.view) }
    }
}

impl RemoteBuf {
    /// Bytes of the slice.
    pub fn len(&self) -> usize {
        self.span.len()
    }

    /// True if the slice has no bytes.
    pub fn is_empty(&self) -> bool {
        self.span.len() == 0
    }

    #[inline]
    pub(crate) fn chunk(&self) -> &ChunkInner {
        // SAFETY: alive, since a block of it is out: this one.
        unsafe { self.chunk.as_ref() }
    }

    /// Offset of the first byte in its chunk.
    pub(crate) fn chunk_offset(&self) -> usize {
        self.start.addr().get() - self.chunk().base().addr().get()
    }

    /// Another reference to the chunk, to hold beyond this buffer.
    pub(crate) fn share_chunk(&self) -> Arc<ChunkInner> {
        // SAFETY: made from the `Arc` of a view, and a block of the chunk is out: this one.
        unsafe { share(self.chunk) }
    }

    /// The chunk's slot in the pool of `home`, if that is where it belongs.
    #[inline]
    pub(crate) fn home_slot(&self, home: &Arc<Home>) -> Option<u16> {
        self.chunk().home().filter(|link| Arc::ptr_eq(&link.home, home)).map(|link| link.slot)
    }
}

impl Drop for RemoteBuf {
    fn drop(&mut self) {
        let page = head_page(self.chunk(), self.start, self.span.order());
        if self.span.is_part() && !last_part(&self.chunk().block(page).parts) {
            return;
        }
        // SAFETY: the block is this buffer's alone (all of it, or the last part) and ends here.
        unsafe { send_home(self.chunk, page) };
    }
}

impl Deref for Buf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the first `len` of `capacity` bytes of this part, initialised, exclusive to this buffer.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len()) }
    }
}

impl DerefMut for Buf {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the buffer is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len()) }
    }
}

impl Deref for RemoteBuf {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the first `len` bytes of this part, initialised, exclusive to this buffer.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len()) }
    }
}

impl DerefMut for RemoteBuf {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and the buffer is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len()) }
    }
}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buf")
            .field("chunk", &self.chunk())
            .field("offset", &self.chunk_offset())
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .finish()
    }
}

impl fmt::Debug for RemoteBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteBuf").field("chunk", &self.chunk().index()).field("len", &self.len()).finish()
    }
}
