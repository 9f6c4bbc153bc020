//! Limits of the boundary to the kernel, each with its reason.

/// Zeros that can be sent without a buffer: the largest transfer of a door.
pub const ZERO_AREA_LEN: usize = 1 << 20;

/// Gather entries of one send: the kernel's UIO_MAXIOV.
pub const TX_IOV_MAX: usize = 1024;

/// Submission entries of a ring. A full queue costs one early enter, nothing else.
pub const RING_SUBMISSIONS: u32 = 1024;

/// Completion entries of a ring. Everything in flight at once: connections (receive, send), file I/Os and wakes; the
/// kernel keeps more in a side list, which is counted as a defect.
pub const RING_COMPLETIONS: u32 = 32_768;

/// Chunks of DMA memory a ring can have registered.
pub const RING_BUFFERS: u32 = 1024;

/// Requests of ublk queues whose data a ring can have registered at the same time; behind the chunks in the same table, which the
/// kernel limits to 16,384.
pub const RING_REQUESTS: u32 = 16_384 - RING_BUFFERS;

/// Files and sockets a ring can have registered.
pub const RING_FILES: u32 = 16_384;

/// Receive buffers that wait in the kernel for bytes of any connection of a reactor.
pub const RX_BUFFERS: u16 = 64;

/// Size of one receive buffer: about fifteen 4 KiB writes with their headers.
pub const RX_BUFFER_LEN: usize = 64 * 1024;

/// Size of the buffer of a direct receive: what a socket in use may have gathered meanwhile, and half of a second-level cache.
/// With 64 KiB, 4 KiB reads at depth 128 came in pieces that kept both sides waiting, 0.88 M IO/s instead of 0.97 M.
pub const RX_DIRECT_LEN: usize = 256 * 1024;

/// Kernel workers per ring for operations that would block (bounded, unbounded).
pub const RING_WORKERS: [u32; 2] = [8, 2];

/// Completions taken from the ring before the rest of the reactor has its turn.
pub const REAP_BATCH: usize = 256;

const _: () = assert!(RX_BUFFERS.is_power_of_two(), "a buffer ring is masked");
const _: () = assert!(RX_BUFFERS as usize * 16 <= 4096, "the buffer ring's table is one page");
const _: () = assert!(RING_COMPLETIONS >= 2 * RING_SUBMISSIONS);
