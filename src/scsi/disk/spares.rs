//! Buffers for what commands need beside their data.

use std::rc::Rc;

use crate::bdev::bounce::Bounces;
use crate::limits::TRANSFER_MAX;
use crate::reactor::Reactor;
use crate::scsi::UNMAP_DESCRIPTORS_MAX;

/// Bytes that WRITE SAME, VERIFY with one block, ORWRITE and EXTENDED COPY move at a time: each step of theirs is long enough for a disk, and
/// such a command takes so much of the pool.
pub(super) const CHUNK: usize = 256 << 10;

/// Bytes of the longest parameter list of UNMAP that is looked at, header and descriptors; GET LBA STATUS has its report there.
pub(super) const LIST: usize = 8 + 16 * UNMAP_DESCRIPTORS_MAX as usize;

const _: () = assert!(CHUNK <= TRANSFER_MAX && CHUNK.is_multiple_of(2 * 4096), "a half is whole blocks");

/// The buffers of all disks of a reactor. One of each kind is kept: a command that waits for one holds its data-out, and those that hold
/// one wait for nothing else.
pub(super) struct Spares {
    /// [`CHUNK`] bytes each.
    pub(super) chunks: Bounces,
    /// [`LIST`] bytes each.
    pub(super) lists: Bounces,
}

impl Spares {
    /// `None`: no DMA memory.
    pub(super) fn of(reactor: &Rc<Reactor>) -> Option<Rc<Spares>> {
        if let Some(there) = reactor.service() {
            return Some(there);
        }
        let new = Rc::new(Spares { chunks: Bounces::new(reactor, CHUNK)?, lists: Bounces::new(reactor, LIST)? });
        reactor.set_service(new.clone());
        Some(new)
    }
}
