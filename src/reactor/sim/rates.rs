//! How rough the simulated world is, and what can be made to go wrong in it.

use std::net::SocketAddr;

use super::world::{DiskId, Machine};

/// Bytes of a direction that [`Rates::flip`] spares: those in which protocols agree on digests.
pub const FLIP_FROM: u64 = 256;

/// How often things happen. Rates are in a million chances; none of the default ones is an error to the peer.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// A send takes only a part of what there is room for.
    pub short_send: u32,
    /// Bytes arrive in several pieces.
    pub split: u32,
    /// A hop through the network takes milliseconds instead of microseconds.
    pub slow: u32,
    /// A receive finds no buffer (ENOBUFS), although the pool has some.
    pub no_buffers: u32,
    /// An accept finds no descriptor (EMFILE).
    pub no_descriptor: u32,
    /// A delivery ends in a reset of the connection instead, seen by both ends.
    pub reset: u32,
    /// A delivery has one bit inverted, beyond the first [`FLIP_FROM`] bytes of its direction: what digests are for.
    pub flip: u32,
    /// A disk reads or writes only a part.
    pub short_io: u32,
    /// A disk operation fails with EIO.
    pub disk_error: u32,
    /// Largest socket buffer of one direction at one end, in bytes; the actual size is drawn for each connection.
    pub socket_buffer_max: usize,
}

impl Default for Rates {
    fn default() -> Rates {
        Rates {
            short_send: 100_000,
            split: 300_000,
            slow: 20_000,
            no_buffers: 2_000,
            no_descriptor: 5_000,
            reset: 0,
            flip: 0,
            short_io: 10_000,
            disk_error: 0,
            socket_buffer_max: 256 * 1024,
        }
    }
}

impl Rates {
    /// Nothing rare ever happens.
    pub fn calm() -> Rates {
        Rates {
            short_send: 0,
            split: 0,
            slow: 0,
            no_buffers: 0,
            no_descriptor: 0,
            reset: 0,
            flip: 0,
            short_io: 0,
            disk_error: 0,
            socket_buffer_max: 256 * 1024,
        }
    }
}

/// Something that goes wrong. A direction of a connection is named by the addresses of its ends.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The byte at offset `at` of what `from` sends to `to` never arrives, those behind it do. TCP does no such thing: this
    /// shows that a checker would notice.
    DropByte {
        /// Sending end.
        from: SocketAddr,
        /// Receiving end.
        to: SocketAddr,
        /// Offset in the stream, not yet delivered.
        at: u64,
    },
    /// One bit of the byte at offset `at` is inverted on the way: what a data digest is for.
    FlipBit {
        /// Sending end.
        from: SocketAddr,
        /// Receiving end.
        to: SocketAddr,
        /// Offset in the stream, not yet delivered.
        at: u64,
    },
    /// Both ends see ECONNRESET.
    Reset {
        /// One end.
        from: SocketAddr,
        /// The other.
        to: SocketAddr,
    },
    /// The machine falls silent: connections to it neither end nor move until [`Fault::Return`], or until the kernel gives up
    /// on what it sent to it, after a quarter of an hour.
    Vanish(Machine),
    /// A silent machine is back.
    Return(Machine),
    /// Reads of the 512-byte sector fail with EIO until it is written.
    BadSector {
        /// Where.
        disk: DiskId,
        /// Which, from 0.
        sector: u64,
    },
    /// The next sync or durable write fails with EIO. As on Linux, the failed one's data counts as clean afterwards: a later sync
    /// succeeds and does not make it durable.
    FailSync(DiskId),
    /// Writes that need new space fail with ENOSPC, from now on.
    Full(DiskId),
}
