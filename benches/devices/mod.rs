//! The devices that benches drive, and the time that they take.

use std::sync::Arc;

use reactor::bdev::BlockDevice;
use reactor::bdev::device::malloc::{self, Malloc};
use reactor::bdev::device::null::{self, CompleteIn, Null};
use reactor::bdev::layer::inject::{self, Inject};
use rustix::time::{ClockId, clock_gettime};

pub fn null(complete: CompleteIn) -> Arc<dyn BlockDevice> {
    Arc::new(Null::new(null::Options {
        name: "null".to_owned(),
        uuid: [1; 16],
        size: 1 << 30,
        block_size: 512,
        physical_block_size: 512,
        complete,
    }))
}

pub fn ram(size: u64) -> Arc<dyn BlockDevice> {
    let volume = Malloc::new(malloc::Options {
        name: "ram".to_owned(),
        uuid: [2; 16],
        size,
        block_size: 512,
        physical_block_size: 512,
        hugepages: false,
        home: 0,
    });
    Arc::new(volume.expect("address space"))
}

/// A layer without rules on `base`.
pub fn layer(base: Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
    let options = inject::Options { name: "layer".to_owned(), uuid: [3; 16], base, rules: Vec::new() };
    Arc::new(Inject::new(options).expect("no rules"))
}

/// Nanoseconds that this thread has run: other programs on its core do not count.
pub fn on_cpu() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}
