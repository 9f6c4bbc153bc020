//! The block layer: what a volume is, and how an I/O travels through a stack of devices.
//!
//! ```text
//!   door (NVMe/TCP, bench)           Handle::execute          checks, stamps, counts
//!        |                                |
//!        v                                v
//!   Handle -> Channel::submit -> [layer -> Handle -> Channel::submit ...] -> leaf
//!                                                                             |  Ready, or Pending and then
//!   task  <- landed <- frames unwind, layer by layer <- Reactor::complete <---+
//! ```
//!
//! | device | what it is | volatile cache | concurrent |
//! |---|---|---|---|
//! | [`device::null`] | takes everything, keeps nothing | no | yes |
//! | [`device::malloc`] | RAM | no | yes |

pub mod contract;
pub mod device;
pub mod exclusion;
mod handle;
pub mod load;
pub mod scatter;
mod stats;
pub mod steps;

pub use contract::{BlockDevice, Channel, Common, DeviceError, DeviceLimits, OpSet, Traits};
pub use handle::Handle;
pub use stats::{Latency, OpCount, Stats, empty_histogram, percentiles};
