//! The seam for device addresses: each chunk remembers the IO virtual address its first byte was mapped at.
//!
//! This crate maps nothing into an IOMMU. Whoever does (VFIO type1, vDPA) maps the whole chunk, then publishes the
//! address here; drivers turn a buffer into a device address with one load and one addition ([`crate::Buf::iova`]).

use std::sync::atomic::{AtomicU64, Ordering};

/// No device address: a value that no IOMMU hands out, since a chunk starting there would have no room for a byte more.
const UNMAPPED: u64 = u64::MAX;

/// The device address of one chunk, unset until published.
#[derive(Debug)]
pub(crate) struct Iova(AtomicU64);

impl Iova {
    pub(crate) const fn unmapped() -> Self {
        Self(AtomicU64::new(UNMAPPED))
    }

    /// Release, paired with the Acquire of `get`: who sees the address also sees that the mapping was made.
    pub(crate) fn set(&self, iova: u64) {
        assert_ne!(iova, UNMAPPED, "an IOVA must leave room for the chunk behind it");
        self.0.store(iova, Ordering::Release);
    }

    pub(crate) fn get(&self) -> Option<u64> {
        match self.0.load(Ordering::Acquire) {
            UNMAPPED => None,
            iova => Some(iova),
        }
    }
}
