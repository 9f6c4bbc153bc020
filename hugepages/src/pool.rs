//! The pool of one reactor: size classes over a buddy ledger, in safe code.
//!
//! ```text
//!  alloc --> magazine of the class --(empty)--> ledger (split) --(empty)--> return list, then all magazines merged
//!  drop ---> magazine of the class --(full)---> half of it to the ledger (merge with buddies)
//!  drop on another core --> return list of the home --> collect() --> magazine
//! ```
//! The magazines are the hysteresis: a block that comes and goes neither splits nor merges anything.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;

use crate::arena::{Chunk, ChunkInfo, ChunkInner, orphan};
use crate::block::{BLOCK_MIN, BlockNumber, CHUNKS_MAX, CLASSES, Extent, Home, Ledger, MAX_BUF, class_of};
use crate::buf::{Buf, Ready, RemoteBuf};
use crate::sync::Arc;

/// Blocks that a magazine holds, per class from 4 KiB up: enough that a queue of 256 small commands, or a few streams of
/// large ones, comes and goes without the ledger; small enough that merging all of them takes microseconds.
const MAGAZINE: [usize; CLASSES] = [256, 128, 64, 64, 32, 32, 16, 16, 8];

/// One chunk as one pool sees it. A buffer holds this, and so its pool's core and its chunk.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) core: Rc<Core>,
    pub(crate) chunk: Arc<ChunkInner>,
    /// The chunk's place in this pool, if this pool is its home.
    pub(crate) home: Option<u16>,
}

impl View {
    /// True if a buffer that is dropped goes back into a magazine of this core; false if its home is another, or ended.
    #[inline]
    pub(crate) fn returns_here(&self) -> bool {
        self.home.is_some() && self.core.open.get()
    }
}

/// What outlives the pool's handles while buffers are out.
#[derive(Debug)]
pub(crate) struct Core {
    id: u16,
    home: Arc<Home>,
    /// False once the last handle is gone: buffers that come back then go to the ledger.
    open: Cell<bool>,
    state: RefCell<State>,
}

#[derive(Debug)]
struct State {
    /// Whole blocks at hand, ready to be handed out; empty once the last handle is gone (they refer back to the core).
    magazines: [Vec<Ready>; CLASSES],
    bytes_in_use: usize,
    bytes_high_water: usize,
    freed: u64,
    ledger: Ledger,
    /// By slot: the chunks this pool is home to.
    chunks: Vec<Arc<ChunkInner>>,
    /// By slot, while a handle lives (they refer back to the core).
    views: Vec<Rc<View>>,
    /// By chunk index: chunks of other pools, while a handle lives.
    known: Vec<Option<Rc<View>>>,
    bytes_total: usize,
    failures: u64,
    remote_returns: u64,
}

/// Breaks the circle between the core and its views when the last handle goes.
struct Handle {
    core: Rc<Core>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.core.open.set(false);
        let state = &mut *self.core.state.borrow_mut();
        state.flush();
        // Views that buffers still hold stay with them.
        state.views.clear();
        state.known.clear();
    }
}

/// The buffers of one reactor. Cheap to clone; clones are the same pool. Not Send: a pool stays on its core.
///
/// Buffers may outlive the pool, here and on other cores.
#[derive(Clone)]
pub struct Pool {
    core: Rc<Core>,
    handle: Rc<Handle>,
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("id", &self.core.id).field("handles", &Rc::strong_count(&self.handle)).finish()
    }
}

/// Counters of one size class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassStats {
    /// Bytes of one buffer of the class.
    pub size: usize,
    /// Buffers out, on this core or another. A split buffer counts once.
    pub in_use: usize,
    /// Buffers at hand in the magazine, neither out nor merged.
    pub cached: usize,
}

/// Counters of one pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Bytes of all chunks.
    pub bytes_total: usize,
    /// Bytes of the buffers that are out, by their class size.
    pub bytes_in_use: usize,
    /// The largest `bytes_in_use` so far.
    pub bytes_high_water: usize,
    /// Per size class, smallest first.
    pub classes: [ClassStats; CLASSES],
    /// Allocations that found no memory.
    pub failures: u64,
    /// Buffers that came back, from this core or another.
    pub freed: u64,
    /// Buffers that came back from other cores.
    pub remote_returns: u64,
}

impl Pool {
    /// An empty pool; `id` only names it in messages.
    pub fn new(id: u16) -> Self {
        let core = Rc::new(Core {
            id,
            home: Arc::new(Home::new()),
            open: Cell::new(true),
            state: RefCell::new(State {
                magazines: std::array::from_fn(|class| Vec::with_capacity(MAGAZINE[class])),
                bytes_in_use: 0,
                bytes_high_water: 0,
                freed: 0,
                ledger: Ledger::new(),
                chunks: Vec::new(),
                views: Vec::new(),
                known: Vec::new(),
                bytes_total: 0,
                failures: 0,
                remote_returns: 0,
            }),
        });
        let handle = Rc::new(Handle { core: Rc::clone(&core) });
        Self { core, handle }
    }

    /// The id given to [`Pool::new`].
    pub fn id(&self) -> u16 {
        self.core.id
    }

    /// Takes over a chunk. A control event: allocates heap for its bookkeeping.
    ///
    /// # Panics
    /// Beyond 16,383 chunks.
    pub fn add(&self, chunk: Chunk) {
        let state = &mut *self.core.state.borrow_mut();
        let slot = state.chunks.len();
        assert!(slot < CHUNKS_MAX, "more chunks than a pool can number");
        let (chunk, table) = chunk.settle(&self.core.home, slot as u16);
        state.bytes_total += chunk.len();
        state.ledger.add(table);
        let view = View { core: Rc::clone(&self.core), chunk: Arc::clone(&chunk), home: Some(slot as u16) };
        state.chunks.push(chunk);
        state.views.push(Rc::new(view));
        state.freed += 1;
    }

    /// Prepares [`Pool::import`] for buffers of another pool's chunk. A control event: allocates heap, so that the
    /// first import need not. The chunk stays mapped while this pool lives.
    pub fn know(&self, chunk: &ChunkInfo) {
        let inner = chunk.inner();
        if !self.core.is_home_of(inner) {
            self.core.view_of(inner, || Arc::clone(inner));
        }
    }

    /// A buffer of `len` bytes, with the capacity of its class: the power of two from 4 KiB to [`MAX_BUF`] that
    /// holds `len`. Its address is aligned to that capacity. Contents are initialised but arbitrary.
    ///
    /// `None` if the pool is exhausted, counted in [`PoolStats::failures`]: wait until [`Pool::freed`] changes. Also
    /// `None` for `len` above [`MAX_BUF`], which no waiting cures. Allocates no heap.
    #[inline]
    pub fn alloc(&self, len: usize) -> Option<Buf> {
        if len > MAX_BUF {
            return None;
        }
        let class = class_of(len);
        let state = &mut *self.core.state.borrow_mut();
        let ready = match state.magazines[class].pop() {
            Some(ready) => ready,
            None => self.core.refill(state, class)?,
        };
        state.bytes_in_use += BLOCK_MIN << class;
        state.bytes_high_water = state.bytes_high_water.max(state.bytes_in_use);
        Some(ready.into_buf(len))
    }

    /// Takes in a buffer that came from another core, whoever's home it is; it returns there when dropped.
    ///
    /// Allocates heap only for the first buffer of a chunk that is neither this pool's nor announced by [`Pool::know`].
    #[inline]
    pub fn import(&self, remote: RemoteBuf) -> Buf {
        let view = match remote.home_slot(&self.core.home) {
            Some(slot) => Rc::clone(&self.core.state.borrow().views[usize::from(slot)]),
            None => self.core.view_of(remote.chunk(), || remote.share_chunk()),
        };
        Buf::from_remote(view, remote)
    }

    /// Takes back what other cores returned; how many. Once a turn: one relaxed load if there is nothing.
    #[inline]
    pub fn collect(&self) -> usize {
        if self.core.home.is_empty() {
            return 0;
        }
        self.core.collect(&mut self.core.state.borrow_mut())
    }

    /// Grows whenever memory came in: a buffer returned or a chunk was added.
    #[inline]
    pub fn freed(&self) -> u64 {
        self.core.state.borrow().freed
    }

    /// The counters. What other cores returned counts as out until [`Pool::collect`].
    pub fn stats(&self) -> PoolStats {
        let state = self.core.state.borrow();
        PoolStats {
            bytes_total: state.bytes_total,
            bytes_in_use: state.bytes_in_use,
            bytes_high_water: state.bytes_high_water,
            classes: std::array::from_fn(|class| ClassStats {
                size: BLOCK_MIN << class,
                in_use: state.in_use(class),
                cached: state.magazines[class].len(),
            }),
            failures: state.failures,
            freed: state.freed,
            remote_returns: state.remote_returns,
        }
    }

    /// Buffers of this pool that are still out after collecting: at shutdown, the leaks.
    pub fn leaked(&self) -> usize {
        self.collect();
        let state = self.core.state.borrow();
        (0..CLASSES).map(|class| state.in_use(class)).sum()
    }
}

impl Core {
    /// Takes a whole block back, its buffer dropped on its own core while the pool is open.
    #[inline]
    pub(crate) fn put(&self, ready: Ready) {
        let state = &mut *self.state.borrow_mut();
        state.bytes_in_use -= BLOCK_MIN << ready.order();
        state.freed += 1;
        state.stow(ready);
    }

    /// Takes a block back after the pool's end.
    #[cold]
    pub(crate) fn settle(&self, extent: Extent) {
        self.state.borrow_mut().ledger.give(extent);
    }

    fn is_home_of(&self, chunk: &ChunkInner) -> bool {
        chunk.home().is_some_and(|link| Arc::ptr_eq(&link.home, &self.home))
    }

    /// The view of a chunk of another pool, made if this is the first look at it.
    fn view_of(self: &Rc<Self>, chunk: &ChunkInner, share: impl FnOnce() -> Arc<ChunkInner>) -> Rc<View> {
        let state = &mut *self.state.borrow_mut();
        let index = usize::from(chunk.index());
        if state.known.len() <= index {
            state.known.resize_with(index + 1, || None);
        }
        match &mut state.known[index] {
            Some(view) if std::ptr::eq(&*view.chunk, chunk) => Rc::clone(view),
            // Empty, or the chunk of that index in another arena.
            entry => {
                let view = View { core: Rc::clone(self), chunk: share(), home: None };
                Rc::clone(entry.insert(Rc::new(view)))
            }
        }
    }

    #[cold]
    fn refill(&self, state: &mut State, class: usize) -> Option<Ready> {
        let order = class as u8;
        if let Some(extent) = state.ledger.take(order) {
            return Some(state.ready(extent));
        }
        // Dry: fetch what other cores returned and merge everything at hand. At most the sum of MAGAZINE blocks.
        if !self.home.is_empty() {
            self.collect(state);
        }
        state.flush();
        let extent = state.ledger.take(order);
        state.failures += u64::from(extent.is_none());
        Some(state.ready(extent?))
    }

    /// Takes the blocks off the return list.
    fn collect(&self, state: &mut State) -> usize {
        let mut landed = 0;
        let mut next = self.home.take();
        while let Some(number) = next {
            next = state.after(number);
            let extent = state.ledger.landed(number);
            state.bytes_in_use -= extent.len();
            let ready = state.ready(extent);
            state.stow(ready);
            landed += 1;
        }
        state.freed += landed;
        state.remote_returns += landed;
        landed as usize
    }
}

impl State {
    /// A block of the ledger, ready for a magazine or a buffer.
    fn ready(&self, extent: Extent) -> Ready {
        let view = Rc::clone(&self.views[extent.number().slot()]);
        Ready::new(view, extent)
    }

    /// Puts a block into the magazine of its class.
    #[inline]
    fn stow(&mut self, ready: Ready) {
        let magazine = &mut self.magazines[usize::from(ready.order())];
        if magazine.len() == magazine.capacity() {
            Self::spill(magazine, &mut self.ledger);
        }
        magazine.push(ready);
    }

    /// Gives the colder half of a full magazine to the ledger.
    #[cold]
    fn spill(magazine: &mut Vec<Ready>, ledger: &mut Ledger) {
        for ready in magazine.drain(..magazine.len() / 2) {
            ledger.give(ready.into_extent());
        }
    }

    /// Gives all magazines to the ledger, so that everything free is merged.
    fn flush(&mut self) {
        for magazine in &mut self.magazines {
            for ready in magazine.drain(..) {
                self.ledger.give(ready.into_extent());
            }
        }
    }

    /// The block after `number` on the return list; read before `number` is used again, since the link may be written
    /// from then on.
    fn after(&self, number: BlockNumber) -> Option<BlockNumber> {
        Home::next(self.chunks[number.slot()].block(number.page()))
    }

    /// Buffers of a class that are out.
    fn in_use(&self, class: usize) -> usize {
        self.ledger.out(class) - self.magazines[class].len()
    }
}

impl Drop for Core {
    /// The last handle and the last buffer on this core are gone. What other cores still have keeps its chunk alive.
    fn drop(&mut self) {
        let state = self.state.get_mut();
        let mut next = self.home.close();
        while let Some(number) = next {
            next = state.after(number);
            let extent = state.ledger.landed(number);
            state.ledger.give(extent);
        }
        for (slot, chunk) in state.chunks.drain(..).enumerate() {
            orphan(chunk, state.ledger.out_of_chunk(slot));
        }
    }
}
