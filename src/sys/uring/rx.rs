//! Receive buffers that wait in the kernel for bytes of any connection: an idle connection holds none.

use std::sync::atomic::{AtomicU16, Ordering};

use hugepages::{Buf, Pool};
use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use super::setup::SetupError;
use crate::sys::limits::{RX_BUFFER_LEN, RX_BUFFERS, RX_DIRECT_LEN};

/// The one buffer group of a ring.
pub(super) const GROUP: u16 = 0;

/// The kernel's table of buffers and the buffers in it.
pub(super) struct RxRing {
    /// The shared table: RX_BUFFERS entries of 16 bytes, a page.
    table: Buf,
    buffers: Vec<Option<Buf>>,
    /// Buffer ids that are with their consumers.
    missing: Vec<u16>,
    tail: u16,
    pool: Pool,
}

impl RxRing {
    pub(super) fn new(ring: &IoUring, pool: &Pool) -> Result<RxRing, SetupError> {
        let mut table = pool.alloc(usize::from(RX_BUFFERS) * size_of::<BufRingEntry>()).ok_or(SetupError::NoMemory)?;
        table.fill(0);
        // SAFETY: the table is a page of the arena, aligned to one, and is kept until the ring was dropped (field order in Uring).
        unsafe { ring.submitter().register_buf_ring_with_flags(table.as_mut_ptr() as u64, RX_BUFFERS, GROUP, 0) }
            .map_err(SetupError::BufferRing)?;
        let mut rx = RxRing {
            table,
            buffers: (0..RX_BUFFERS).map(|_| None).collect(),
            missing: (0..RX_BUFFERS).collect(),
            tail: 0,
            pool: pool.clone(),
        };
        rx.refill();
        Ok(rx)
    }

    /// Gives the kernel new buffers for those that were taken, as far as the pool has some. Returns whether any were given.
    #[inline]
    pub(super) fn refill(&mut self) -> bool {
        if self.missing.is_empty() {
            return false;
        }
        self.refill_missing()
    }

    fn refill_missing(&mut self) -> bool {
        let before = self.tail;
        while let Some(&id) = self.missing.last() {
            let Some(mut buf) = self.pool.alloc(RX_BUFFER_LEN) else {
                break;
            };
            self.missing.pop();
            let entries: *mut BufRingEntry = self.table.as_mut_ptr().cast();
            let index = usize::from(self.tail & (RX_BUFFERS - 1));
            // SAFETY: the index is masked to the table's length. The kernel reads an entry only once the tail has passed it, and
            // this one is beyond the tail; the first entry's last field is the tail itself, which these setters do not touch.
            let entry = unsafe { &mut *entries.add(index) };
            entry.set_addr(buf.as_mut_ptr() as u64);
            entry.set_len(RX_BUFFER_LEN as u32);
            entry.set_bid(id);
            self.buffers[usize::from(id)] = Some(buf);
            self.tail = self.tail.wrapping_add(1);
        }
        if self.tail == before {
            return false;
        }
        // SAFETY: the tail lives in the first entry of the table, aligned for u16, and is shared with the kernel, so atomic.
        let shared = unsafe { &*BufRingEntry::tail(self.table.as_ptr().cast()).cast::<AtomicU16>() };
        // Release: the kernel sees the entries before the tail that covers them.
        shared.store(self.tail, Ordering::Release);
        true
    }

    /// A buffer for a direct receive: a smaller one is better than none.
    pub(super) fn direct_buffer(&self) -> Option<Buf> {
        self.pool.alloc(RX_DIRECT_LEN).or_else(|| self.pool.alloc(RX_BUFFER_LEN))
    }

    /// The buffer that the kernel filled with `len` bytes.
    pub(super) fn take(&mut self, id: u16, len: usize) -> Option<Buf> {
        let mut buf = self.buffers.get_mut(usize::from(id))?.take()?;
        self.missing.push(id);
        buf.truncate(len);
        Some(buf)
    }
}
