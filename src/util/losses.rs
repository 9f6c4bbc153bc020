//! When something has lost what it had acknowledged.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// When a device has last lost what it had acknowledged and not made durable, or may have, in nanoseconds of the reactors' clocks. Clones
/// are of the same device.
#[derive(Clone, Debug, Default)]
pub struct Losses(Arc<AtomicU64>);

impl Losses {
    /// There was one, not later than `at`. No flush that begins after it may succeed before this is said.
    pub fn note(&self, at: u64) {
        self.0.fetch_max(at, Ordering::AcqRel);
    }

    /// The last one; 0: there was none.
    #[inline]
    pub fn last(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}
