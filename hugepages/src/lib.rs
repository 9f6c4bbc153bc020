//! The DMA arena: hugepage memory in owned buffers.
//!
//! The only place that maps memory for data. It knows nothing of reactors: whoever owns a core keeps a [`Pool`] there.
//!
//! ```text
//!  Arena ── one memfd, one mapping: 1 GiB, 2 MiB or 4 KiB pages, bound to a NUMA node, populated as it grows
//!  ├─────────── chunk 0 ────────────┬─────────── chunk 1 ────────────┬── chunk 2 ... not yet grown ──┤
//!  │                                │                                │
//!  │ ChunkInfo: address, memfd, IOVA   (io_uring buffer tables, VFIO, vhost-user)
//!  ▼ Chunk, moved                   ▼
//!  Pool of core 0                   Pool of core 1
//!    │ alloc        ▲ drop            │ alloc      ▲ drop
//!    ▼              │                 ▼            │
//!   Buf ────────────┘                Buf ──────────┘
//!    │ into_remote                    ▲ import: in use on core 1, still chunk 0's
//!    └────────── RemoteBuf ───────────┘
//!    ▲                                │ drop
//!    └─ collect ◄── return list ◄─────┘
//! ```
//!
//! - An [`Arena`] is made once and grown by a control thread. [`Arena::warning`] is the line to log if the machine has
//!   no hugepages to spare.
//! - A [`Chunk`] is the right to hand out the buffers of a piece of it, moved into exactly one [`Pool`]. Everyone
//!   else knows the chunk as a [`ChunkInfo`].
//! - A [`Pool`] serves one core: 9 classes from 4 KiB to 1 MiB ([`MAX_BUF`]), nothing of the allocator inside the
//!   buffers, no heap after start. `None` is backpressure: the caller waits until [`Pool::freed`] changes.
//! - A [`Buf`] is exclusive, and its drop returns it. It can be split and rejoined; the parts return together. As a [`RemoteBuf`]
//!   it crosses to another core and comes home from there by itself.
//! - A [`DeviceBuf`] is a block given to a device, for queues: words are loaded and stored while the device writes.
//! - A [`Region`] is the opposite of a buffer: memory that all cores may touch at once, copied in and out.
//!
//! Memory is unmapped when the arena, its pools and the last buffer are gone, in whatever order and on whatever core.
//!
//! ```
//! use hugepages::{Arena, ArenaOptions, HugepagePolicy, Pool};
//!
//! let options = ArenaOptions { size: 64 << 20, hugepages: HugepagePolicy::Prefer, numa_node: None };
//! let arena = Arena::new(options)?;
//! let pool = Pool::new(0);
//! for chunk in arena.grow(32 << 20)? {
//!     pool.add(chunk);
//! }
//! let mut block = pool.alloc(4096 + 64).expect("32 MiB hold this");
//! let header = block.split_to(64);
//! assert_eq!((header.len(), block.len(), block.capacity()), (64, 4096, 8192 - 64));
//! drop((header, block));
//! assert_eq!(pool.leaked(), 0);
//! # Ok::<(), hugepages::ArenaError>(())
//! ```
//!
//! # Where memory safety rests
//! `unsafe` is in `arena`, `buf`, `device`, `region` and `copy`, each block with its reason. The pool is safe code: a block is an `Extent`,
//! a right that cannot be copied and that only the ledger of the chunk's pool mints, after checking that the block is free.
//! A mistake in the pool can lose memory or end in an assertion, not give it out twice.

mod arena;
mod block;
mod buf;
mod copy;
mod device;
mod iova;
mod pool;
mod region;
mod sync;

pub use arena::{Arena, ArenaError, ArenaOptions, ArenaStats, Chunk, ChunkInfo, HugepagePolicy};
pub use block::{BLOCK_MIN, CHUNK_MAX, CHUNKS_MAX, CLASSES, MAX_BUF, footprint};
pub use buf::{Buf, RemoteBuf};
pub use device::DeviceBuf;
pub use pool::{ClassStats, Pool, PoolStats};
pub use region::{Region, RegionError, RegionOptions};
