//! Who owns which pages: the extents (rights to a block), the buddy ledger of a pool, and the return list.
//!
//! This module contains no `unsafe`, but the memory safety of buffers rests on it: an [`Extent`] is a right that cannot
//! be copied, and [`Ledger`] and [`Home`] are its only sources. A mistake in the pool can lose memory, not hand it out twice.

use crate::arena::Shared;
use crate::sync::{AtomicU32, Ordering};

/// Bytes of the smallest block, and the unit of all page numbers here, whatever the size of the pages behind.
pub const BLOCK_MIN: usize = 4 << 10;
/// Bytes of the largest block.
pub const MAX_BUF: usize = 1 << 20;
/// Number of size classes: powers of two from [`BLOCK_MIN`] to [`MAX_BUF`].
pub const CLASSES: usize = (MAX_BUF / BLOCK_MIN).ilog2() as usize + 1;
/// Bytes of the largest chunk.
pub const CHUNK_MAX: usize = 1 << 30;
/// Chunks that one pool, and one arena, may have; one below the range, so that no block has the numbers of `NIL` and `CLOSED`.
pub const CHUNKS_MAX: usize = (1 << SLOT_BITS) - 1;

const PAGE_BITS: u32 = (CHUNK_MAX / BLOCK_MIN).ilog2();
const SLOT_BITS: u32 = u32::BITS - PAGE_BITS;
const TOP: u8 = CLASSES as u8 - 1;

/// The end of a list.
const NIL: u32 = u32::MAX;
/// The head of a return list whose home is gone.
const CLOSED: u32 = u32::MAX - 1;

/// State bits of a page in the ledger: the start of a free block, the start of a block that is out, or neither (0).
const FREE: u8 = 0x40;
const OUT: u8 = 0x80;

/// The class (0 is [`BLOCK_MIN`]) that holds `len` bytes; `len` is at most [`MAX_BUF`].
#[inline]
pub(crate) fn class_of(len: usize) -> usize {
    (usize::BITS - (len.saturating_sub(1) / BLOCK_MIN).leading_zeros()) as usize
}

/// The bytes of a pool that a buffer of `len` bytes takes: the next power of two from [`BLOCK_MIN`] on. `len` is at most
/// [`MAX_BUF`].
#[inline]
pub fn footprint(len: usize) -> usize {
    BLOCK_MIN << class_of(len)
}

/// A block's place in its pool: the chunk's slot and the page in the chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockNumber(u32);

impl BlockNumber {
    #[inline]
    pub(crate) fn new(slot: u16, page: u32) -> Self {
        Self(u32::from(slot) << PAGE_BITS | page)
    }

    #[inline]
    pub(crate) fn slot(self) -> usize {
        (self.0 >> PAGE_BITS) as usize
    }

    #[inline]
    pub(crate) fn page(self) -> u32 {
        self.0 & ((1 << PAGE_BITS) - 1)
    }

    fn list(head: u32) -> Option<Self> {
        (head != NIL).then_some(Self(head))
    }
}

/// The exclusive right to one block of a pool: 4 KiB shifted left by `order`, aligned to its own size in the chunk.
#[derive(Debug)]
#[must_use = "a dropped extent is memory lost until the pool ends"]
pub(crate) struct Extent {
    number: BlockNumber,
    order: u8,
}

impl Extent {
    /// The right that a buffer of this pool carried, when the buffer is consumed. Only `Buf` may call this.
    #[inline]
    pub(crate) fn from_buf(number: BlockNumber, order: u8) -> Self {
        Self { number, order }
    }

    #[inline]
    pub(crate) fn number(&self) -> BlockNumber {
        self.number
    }

    #[inline]
    pub(crate) fn order(&self) -> u8 {
        self.order
    }

    #[inline]
    pub(crate) fn len(&self) -> usize {
        BLOCK_MIN << self.order
    }
}

/// The side table of one chunk: nothing of the allocator lies inside the buffers.
#[derive(Debug)]
pub(crate) struct Table {
    state: Box<[u8]>,
    /// Neighbours on the free list, valid at the start of a free block.
    links: Box<[Links]>,
}

#[derive(Clone, Copy, Debug)]
struct Links {
    previous: u32,
    next: u32,
}

impl Table {
    pub(crate) fn new(pages: usize) -> Self {
        let links = Links { previous: NIL, next: NIL };
        Self { state: vec![0; pages].into(), links: vec![links; pages].into() }
    }
}

/// The buddy allocator over all chunks of a pool.
///
/// Free and outstanding blocks together tile every chunk. Each transition checks the state it starts from, so a
/// block that is out cannot be taken again and a block that is free cannot be given back.
#[derive(Debug)]
pub(crate) struct Ledger {
    tables: Vec<Table>,
    heads: [u32; CLASSES],
    out: [usize; CLASSES],
    /// One bit per class whose list is not empty.
    filled: u32,
}

impl Ledger {
    pub(crate) fn new() -> Self {
        Self { tables: Vec::new(), heads: [NIL; CLASSES], out: [0; CLASSES], filled: 0 }
    }

    /// Takes over a chunk: everything in it is free. The caller assigned it the next slot.
    pub(crate) fn add(&mut self, table: Table) {
        let slot = self.tables.len();
        assert!(slot < CHUNKS_MAX, "more chunks than a pool can number");
        let pages = table.state.len() as u32;
        self.tables.push(table);
        // Roots from the end to the start, so that the lists begin with the lowest address. The tail of a chunk that is
        // no multiple of the largest block is cut into smaller ones.
        let mut end = pages;
        while end > 0 {
            let order = (end.trailing_zeros() as u8).min(TOP);
            end -= 1 << order;
            self.insert(BlockNumber::new(slot as u16, end), order);
        }
    }

    /// A block of the class, split from a larger one if need be.
    pub(crate) fn take(&mut self, order: u8) -> Option<Extent> {
        let fitting = self.filled >> order;
        if fitting == 0 {
            return None;
        }
        let mut have = order + fitting.trailing_zeros() as u8;
        let number = BlockNumber(self.heads[usize::from(have)]);
        self.unlink(number, have);
        while have > order {
            have -= 1;
            self.insert(BlockNumber(number.0 + (1 << have)), have);
        }
        *self.state(number) = OUT | order;
        self.out[usize::from(order)] += 1;
        Some(Extent { number, order })
    }

    /// Takes a block back and merges it with its free buddies.
    pub(crate) fn give(&mut self, extent: Extent) {
        let Extent { mut number, mut order } = extent;
        assert_eq!(*self.state(number), OUT | order, "a block given back that is not out");
        *self.state(number) = 0;
        self.out[usize::from(order)] -= 1;
        while order < TOP {
            let buddy = BlockNumber(number.0 ^ (1 << order));
            let state = &self.tables[buddy.slot()].state;
            if state.get(buddy.page() as usize) != Some(&(FREE | order)) {
                break;
            }
            self.unlink(buddy, order);
            number.0 &= !(1 << order);
            order += 1;
        }
        self.insert(number, order);
    }

    /// The right to a block that came back by the return list.
    pub(crate) fn landed(&mut self, number: BlockNumber) -> Extent {
        let state = *self.state(number);
        assert!(state & OUT != 0, "a block landed that is not out");
        Extent { number, order: state & !OUT }
    }

    /// Blocks of one class that are out: taken and not given back.
    pub(crate) fn out(&self, class: usize) -> usize {
        self.out[class]
    }

    /// Blocks of one chunk that are out; walks the chunk.
    pub(crate) fn out_of_chunk(&self, slot: usize) -> usize {
        self.tables[slot].state.iter().filter(|state| **state & OUT != 0).count()
    }

    fn state(&mut self, number: BlockNumber) -> &mut u8 {
        &mut self.tables[number.slot()].state[number.page() as usize]
    }

    fn links(&mut self, number: BlockNumber) -> &mut Links {
        &mut self.tables[number.slot()].links[number.page() as usize]
    }

    fn insert(&mut self, number: BlockNumber, order: u8) {
        let next = self.heads[usize::from(order)];
        *self.state(number) = FREE | order;
        *self.links(number) = Links { previous: NIL, next };
        if let Some(next) = BlockNumber::list(next) {
            self.links(next).previous = number.0;
        }
        self.heads[usize::from(order)] = number.0;
        self.filled |= 1 << order;
    }

    fn unlink(&mut self, number: BlockNumber, order: u8) {
        assert_eq!(*self.state(number), FREE | order, "a block unlinked that is not free");
        *self.state(number) = 0;
        let Links { previous, next } = *self.links(number);
        match BlockNumber::list(previous) {
            Some(previous) => self.links(previous).next = next,
            None => self.heads[usize::from(order)] = next,
        }
        match BlockNumber::list(next) {
            Some(next) => self.links(next).previous = previous,
            None if previous == NIL => self.filled &= !(1 << order),
            None => {}
        }
    }
}

/// Where the blocks of a pool return to from other cores: a stack that anyone pushes on and the home empties whole.
///
/// ```text
/// head -> block 7 -> block 3 -> nil      links in the side tables of the chunks
///   push (any core): link.next = head, head = block         one compare-and-swap
///   take (home):     head = nil, then walk what was there   one swap; no pop of single blocks, so no ABA
///   close (home):    head = closed, for ever; later blocks are counted off in their chunk instead
/// ```
#[derive(Debug)]
#[repr(align(128))] // on its own pair of cache lines: other cores write it
pub(crate) struct Home {
    head: AtomicU32,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { head: AtomicU32::new(NIL) }
    }

    /// True if a look found nothing to take; one relaxed load.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed) == NIL
    }

    /// Empties the list; its first block.
    pub(crate) fn take(&self) -> Option<BlockNumber> {
        // Acquire: what other cores did with the blocks is before what the next owners do. Every push is a
        // read-modify-write, so this one load pairs with all of them.
        BlockNumber::list(self.head.swap(NIL, Ordering::Acquire))
    }

    /// Empties the list for the last time.
    pub(crate) fn close(&self) -> Option<BlockNumber> {
        BlockNumber::list(self.head.swap(CLOSED, Ordering::Acquire))
    }

    /// The block after one that `take` or `close` gave, read before that block is used again.
    pub(crate) fn next(shared: &Shared) -> Option<BlockNumber> {
        BlockNumber::list(shared.next.load(Ordering::Relaxed))
    }

    /// Where to push with [`push`].
    #[inline]
    pub(crate) fn head(&self) -> &AtomicU32 {
        &self.head
    }
}

/// Pushes a block on a return list; false if its home is gone.
///
/// On the bare atomics: once the exchange succeeds the home may take the block and end, so nothing around them may still
/// be borrowed as the argument of a running function.
#[inline]
pub(crate) fn push(head: &AtomicU32, number: BlockNumber, next: &AtomicU32) -> bool {
    let mut seen = head.load(Ordering::Relaxed);
    while seen != CLOSED {
        next.store(seen, Ordering::Relaxed);
        match head.compare_exchange_weak(seen, number.0, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(now) => seen = now,
        }
    }
    false
}
