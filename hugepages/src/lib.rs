//! The DMA arena: hugepage memory in owned buffers.

mod arena;
mod block;
mod buf;
mod iova;
mod pool;
mod region;
mod sync;

pub use arena::{Arena, ArenaError, ArenaOptions, ArenaStats, Chunk, ChunkInfo, HugepagePolicy};
pub use block::{BLOCK_MIN, CHUNK_MAX, CHUNKS_MAX, CLASSES, MAX_BUF};
pub use buf::{Buf, RemoteBuf};
pub use pool::{ClassStats, Pool, PoolStats};
pub use region::{Region, RegionError, RegionOptions};
