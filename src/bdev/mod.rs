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
//! A device may be made of zones, which are written from their start to their end and emptied as a whole: [`Zones`] says what that asks.
//!
//! Two things stand between a handle and its channel where they are needed: `forward` takes the I/Os of a device that is not
//! concurrent to its home, and `split` cuts what is larger than the device's limits.
//!
//! | device | what it is | volatile cache | concurrent |
//! |---|---|---|---|
//! | [`device::null`] | takes everything, keeps nothing | no | yes |
//! | [`device::malloc`] | RAM | no | yes |
//! | [`device::file`] | a regular file or block device, by the reactor's ring | yes | yes |
//! | [`device::nvme`] | a namespace of an NVMe disk, by this program's own driver | as the disk says | if the disk has a queue for each reactor |
//!
//! | layer | what it does |
//! |---|---|
//! | [`layer::inject`] | fails, delays and holds I/Os by rules |

pub mod at_once;
pub mod bounce;
pub mod conformance;
mod contract;
pub mod device;
pub mod exclusion;
mod extents;
mod forward;
mod handle;
mod hosts;
pub mod layer;
#[cfg(test)]
pub(crate) mod leaf;
pub mod load;
pub mod registry;
pub mod scatter;
mod split;
mod stats;
pub mod steps;
mod told;
mod zoned;

pub use contract::{BlockDevice, Channel, Common, DeviceError, DeviceLimits, OpSet, Traits, Unaddressed};
pub use extents::{ExtentRecord, ExtentState, ExtentWriter, extents};
pub use handle::{Handle, Lent};
pub use hosts::{HostKey, HostTold, Hosts};
pub use stats::{Latency, OpCount, Stats, empty_histogram, percentiles};
pub use told::Told;
pub use zoned::{
    ZONE_FINISH_RECOMMENDED, ZONE_FINISHED_BY_DEVICE, ZONE_RESET_RECOMMENDED, ZoneRecord, ZoneState, Zones,
};
