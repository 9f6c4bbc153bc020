//! The arena: DMA memory in chunks, on hugepages where the machine has them.
#![expect(unsafe_code, reason = "maps memory and keeps it mapped while anything refers to it")]

use std::fs;
use std::io;
use std::path::PathBuf;

mod chunk;
mod mapping;

pub use chunk::{Chunk, ChunkInfo};
pub(crate) use chunk::{ChunkInner, Shared, orphan, send_home, share};
pub(crate) use mapping::{bind, has_numa, node_exists, reserve};

use crate::block::{BLOCK_MIN, CHUNK_MAX, CHUNKS_MAX, MAX_BUF};
use crate::sync::Arc;
use mapping::{HUGE_1G, HUGE_2M, Mapping, PLAIN_PAGE};

#[expect(
    clippy::disallowed_types,
    reason = "growth and its list are for control threads; reactors get chunks by message"
)]
type Mutex<T> = std::sync::Mutex<T>;

/// Bytes of a chunk on plain pages, as long as the arena needs no more chunks than there may be.
const PLAIN_CHUNK: usize = 16 << 20;

/// Whether the arena must, may or must not use hugepages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HugepagePolicy {
    /// Hugepages for the whole arena, or an error.
    Require,
    /// Hugepages if enough are free, else plain pages and a warning.
    #[default]
    Prefer,
    /// Plain pages.
    Off,
}

/// What arena to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaOptions {
    /// Bytes that the arena may grow to; rounded up to the page size.
    pub size: usize,
    /// Kind of pages.
    pub hugepages: HugepagePolicy,
    /// The only NUMA node that pages may come from; any if `None`.
    pub numa_node: Option<u32>,
}

/// Why there is no arena, or no more of it. Each message names the remedy where there is one.
#[derive(Debug, thiserror::Error)]
pub enum ArenaError {
    /// The size is zero or more than can be numbered.
    #[error("an arena of {size} bytes: the size must be between 1 byte and {max} bytes", max = CHUNKS_MAX / 2 * CHUNK_MAX)]
    Size {
        /// The size asked for.
        size: usize,
    },
    /// Hugepages are required and not free.
    #[error("{shortage}")]
    Hugepages {
        /// What is missing, and the command that reserves it.
        shortage: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The machine has no such NUMA node.
    #[error("this machine has no NUMA node {node}; `ls -d /sys/devices/system/node/node*` lists them")]
    NumaNode {
        /// The node asked for.
        node: u32,
    },
    /// The address space could not be mapped.
    #[error("cannot map {size} bytes for the arena (limited by `ulimit -v`?)")]
    Map {
        /// Bytes asked for.
        size: usize,
        /// What the kernel said.
        source: io::Error,
    },
    /// The pages could not be bound to the node.
    #[error("cannot bind arena memory to NUMA node {node}")]
    Bind {
        /// The node asked for.
        node: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The pages could not be had; the arena is as before.
    #[error("cannot populate {bytes} bytes of the arena with {page_size}-byte pages{place}: {hint}", place = place(*node), hint = populate_hint(source))]
    Populate {
        /// Bytes asked for.
        bytes: usize,
        /// Size of the pages.
        page_size: usize,
        /// The node they had to come from.
        node: Option<u32>,
        /// What the kernel said.
        source: io::Error,
    },
}

fn place(node: Option<u32>) -> String {
    node.map_or_else(String::new, |node| format!(" on NUMA node {node}"))
}

fn populate_hint(source: &io::Error) -> &'static str {
    match source.raw_os_error() {
        Some(libc::EINVAL) => "the kernel is older than 5.14 and has no MADV_POPULATE_WRITE",
        _ => "not enough free memory there, or the cgroup's limit is reached (memory.max, hugetlb.*.max)",
    }
}

/// Counters of an arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArenaStats {
    /// Bytes that it may grow to.
    pub size: usize,
    /// Bytes that chunks were made of, all populated.
    pub populated: usize,
    /// Number of chunks.
    pub chunks: usize,
    /// Size in bytes of the pages.
    pub page_size: usize,
    /// The node that the memory is bound to.
    pub numa_node: Option<u32>,
}

/// The DMA memory of a process, handed out in chunks. Clones are the same arena.
///
/// Its memory stays mapped until the arena, its pools and every buffer are gone.
#[derive(Clone, Debug)]
pub struct Arena {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    mapping: Arc<Mapping>,
    numa_node: Option<u32>,
    warning: Option<String>,
    /// Also the lock of growth, which may take long; so not the lock of `chunks`.
    populated: Mutex<usize>,
    chunks: Mutex<Vec<ChunkInfo>>,
}

impl Arena {
    /// Decides the size of the pages and reserves address space and, if huge, the pages; touches none of them.
    ///
    /// Pages of 1 GiB are used if the size is a multiple and enough are free, else of 2 MiB if enough are free, else
    /// 4 KiB, as the policy allows.
    ///
    /// # Errors
    /// A size out of range, a node that is not there, hugepages required and not free, no address space.
    pub fn new(options: ArenaOptions) -> Result<Self, ArenaError> {
        let ArenaOptions { size, hugepages, numa_node } = options;
        // Half the numbers, so that chunks of unequal sizes (growth in small steps) fit too.
        if size == 0 || size.div_ceil(CHUNK_MAX) > CHUNKS_MAX / 2 {
            return Err(ArenaError::Size { size });
        }
        if let Some(node) = numa_node
            && !node_exists(node)
        {
            return Err(ArenaError::NumaNode { node });
        }
        let mut warning = None;
        if hugepages != HugepagePolicy::Off {
            let refused = match Self::huge(size, numa_node) {
                Ok(mapping) => return Ok(Self::over(mapping, numa_node, None)),
                Err(refused) => refused,
            };
            let shortage = Shortage::look(size, numa_node);
            if hugepages == HugepagePolicy::Require {
                return Err(ArenaError::Hugepages { shortage: shortage.required(), source: refused });
            }
            warning = Some(shortage.preferred());
        }
        let size = size.next_multiple_of(PLAIN_PAGE);
        let mapping = Mapping::shared(size, PLAIN_PAGE).map_err(|source| ArenaError::Map { size, source })?;
        Ok(Self::over(mapping, numa_node, warning))
    }

    /// An arena of ordinary heap memory, for tests: no system call but the allocator's own.
    ///
    /// # Panics
    /// If `size` is zero or more than the address space.
    pub fn heap(size: usize) -> Self {
        assert!(size > 0, "an arena of no bytes");
        Self::over(Mapping::heap(size.next_multiple_of(PLAIN_PAGE)), None, None)
    }

    /// Reserves the whole size in the largest hugepages that are free.
    fn huge(size: usize, numa_node: Option<u32>) -> io::Result<Mapping> {
        // The reservation counts pages of all nodes, so a node's own free pages are looked at first.
        let on_node = |len: usize, page: usize| numa_node.is_none_or(|node| free_pages(page, Some(node)) >= len / page);
        if size.is_multiple_of(HUGE_1G)
            && on_node(size, HUGE_1G)
            && let Ok(mapping) = Mapping::shared(size, HUGE_1G)
        {
            return Ok(mapping);
        }
        let size = size.next_multiple_of(HUGE_2M);
        if !on_node(size, HUGE_2M) {
            return Err(io::Error::from_raw_os_error(libc::ENOMEM));
        }
        Mapping::shared(size, HUGE_2M)
    }

    fn over(mapping: Mapping, numa_node: Option<u32>, warning: Option<String>) -> Self {
        Self {
            inner: Arc::new(Inner {
                mapping: Arc::new(mapping),
                numa_node,
                warning,
                populated: Mutex::new(0),
                chunks: Mutex::new(Vec::new()),
            }),
        }
    }

    /// The one line to log if hugepages were preferred and are not free: what is missing and the command that reserves it.
    pub fn warning(&self) -> Option<&str> {
        self.inner.warning.as_deref()
    }

    /// Size in bytes of the pages.
    pub fn page_size(&self) -> usize {
        self.inner.mapping.page_size()
    }

    /// Makes the next `bytes` into populated, zeroed chunks; fewer if the arena's size is reached, none if it was. On plain
    /// pages a chunk has at most 16 MiB (more if the arena is beyond 128 GiB), on hugepages at most 1 GiB. `bytes` is
    /// rounded up to 1 MiB, or to the size of a hugepage.
    ///
    /// Takes long (plain pages: 0.8 s per GiB of one core, in a virtual machine): for control threads.
    ///
    /// # Errors
    /// If the memory cannot be had; nothing has changed then, and a later call may succeed.
    pub fn grow(&self, bytes: usize) -> Result<Vec<Chunk>, ArenaError> {
        let Inner { mapping, numa_node, populated, chunks, .. } = &*self.inner;
        let mut populated = lock(populated);
        let start = *populated;
        let room = mapping.len() - start;
        let step = if self.is_huge() { mapping.page_size() } else { MAX_BUF };
        let bytes = bytes.min(room).next_multiple_of(step).min(room);
        if bytes == 0 {
            return Ok(Vec::new());
        }
        let first = lock(chunks).len();
        let largest = self.chunk_max();
        if first + bytes.div_ceil(largest) > CHUNKS_MAX {
            return Err(ArenaError::Size { size: mapping.len() });
        }
        self.populate(start, bytes, *numa_node)?;
        let mut made = Vec::new();
        let mut offset = start;
        while offset < start + bytes {
            let len = largest.min(start + bytes - offset);
            made.push(Chunk::new(mapping, (first + made.len()) as u16, offset, len));
            offset += len;
        }
        *populated = offset;
        lock(chunks).extend(made.iter().map(Chunk::info));
        Ok(made)
    }

    fn populate(&self, start: usize, bytes: usize, numa_node: Option<u32>) -> Result<(), ArenaError> {
        let mapping = &self.inner.mapping;
        if let Some(node) = numa_node
            && has_numa()
        {
            mapping.bind(start, bytes, node).map_err(|source| ArenaError::Bind { node, source })?;
        }
        mapping.populate(start, bytes).map_err(|source| {
            mapping.release(start, bytes);
            ArenaError::Populate { bytes, page_size: mapping.page_size(), node: numa_node, source }
        })
    }

    fn is_huge(&self) -> bool {
        self.inner.mapping.page_size() > PLAIN_PAGE
    }

    fn chunk_max(&self) -> usize {
        if self.is_huge() {
            return CHUNK_MAX;
        }
        let mut largest = PLAIN_CHUNK;
        while largest < CHUNK_MAX && self.inner.mapping.len().div_ceil(largest) > CHUNKS_MAX / 2 {
            largest *= 2;
        }
        largest
    }

    /// The chunks made so far, in the order of their index. For control threads.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkInfo> {
        let chunks: Vec<_> = lock(&self.inner.chunks).clone();
        chunks.into_iter()
    }

    /// The counters. For control threads.
    pub fn stats(&self) -> ArenaStats {
        let chunks = lock(&self.inner.chunks);
        ArenaStats {
            size: self.inner.mapping.len(),
            populated: chunks.iter().map(ChunkInfo::len).sum(),
            chunks: chunks.len(),
            page_size: self.page_size(),
            numa_node: self.inner.numa_node,
        }
    }
}

/// A panic while the lock was held leaves counts that are still true, so poison is passed over.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Where the kernel counts pages of one size, of a node or of the machine.
fn pages_folder(page_size: usize, node: Option<u32>) -> PathBuf {
    let folder = format!("hugepages-{}kB", page_size >> 10);
    match node {
        Some(node) => PathBuf::from(format!("/sys/devices/system/node/node{node}/hugepages/{folder}")),
        None => PathBuf::from(format!("/sys/kernel/mm/hugepages/{folder}")),
    }
}

fn pages(page_size: usize, node: Option<u32>, counter: &str) -> usize {
    let path = pages_folder(page_size, node).join(counter);
    fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Free pages that nobody has reserved. (Reservations are not counted per node.)
fn free_pages(page_size: usize, node: Option<u32>) -> usize {
    let reserved = if node.is_none() { pages(page_size, None, "resv_hugepages") } else { 0 };
    pages(page_size, node, "free_hugepages").saturating_sub(reserved)
}

/// What 2 MiB pages are missing for an arena, in words.
struct Shortage {
    node: Option<u32>,
    needed: usize,
    free: usize,
    command: String,
}

impl Shortage {
    fn look(size: usize, node: Option<u32>) -> Self {
        let needed = size.div_ceil(HUGE_2M);
        let free = free_pages(HUGE_2M, node);
        // The counter is of all pages, those in use included: it must grow by what is missing, and by no less than one.
        let total = pages(HUGE_2M, node, "nr_hugepages") + needed.saturating_sub(free).max(1);
        let file = match node {
            Some(_) => pages_folder(HUGE_2M, node).join("nr_hugepages"),
            None => PathBuf::from("/proc/sys/vm/nr_hugepages"),
        };
        Self { node, needed, free, command: format!("echo {total} > {}", file.display()) }
    }

    fn counts(&self) -> String {
        format!("needs {} hugepages of 2 MiB{}, {} are free", self.needed, place(self.node), self.free)
    }

    fn required(&self) -> String {
        format!("the arena {}: run `{}` as root, or set hugepages = \"prefer\"", self.counts(), self.command)
    }

    fn preferred(&self) -> String {
        format!("using plain pages: the arena {}; `{}` as root reserves them", self.counts(), self.command)
    }
}

const _: () = assert!(PLAIN_PAGE == BLOCK_MIN && usize::BITS == 64);

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn protect(arena: &Arena, offset: usize, len: usize, protection: i32) {
        let start = arena.inner.mapping.base().as_ptr().wrapping_add(offset);
        // SAFETY: a part of the arena that no chunk covers yet.
        let protected = unsafe { libc::mprotect(start.cast(), len, protection) };
        assert_eq!(protected, 0);
    }

    /// A page that cannot be written is refused by the system call, not by a signal; growth is as before and can be retried.
    #[test]
    fn a_page_that_cannot_be_had_is_an_error() {
        let options = ArenaOptions { size: 8 << 20, hugepages: HugepagePolicy::Off, numa_node: None };
        let arena = Arena::new(options).expect("plain pages");
        arena.grow(1 << 20).expect("memory");
        protect(&arena, 3 << 20, PLAIN_PAGE, libc::PROT_NONE);
        let error = arena.grow(7 << 20).expect_err("a page cannot be populated");
        assert!(matches!(error, ArenaError::Populate { bytes: 0x70_0000, page_size: PLAIN_PAGE, .. }), "{error}");
        assert_eq!((arena.stats().populated, arena.chunks().count()), (1 << 20, 1));
        protect(&arena, 3 << 20, PLAIN_PAGE, libc::PROT_READ | libc::PROT_WRITE);
        assert_eq!(arena.grow(7 << 20).expect("memory").len(), 1);
        assert_eq!(arena.stats().populated, 8 << 20);
    }
}
