//! NVMe controllers over PCIe, driven from user space.
//!
//! ```text
//!                  control thread            home reactor                         every reactor
//!                                       +--------------------+              +----------------------+
//!   Port  <------- found, opened        |     Controller     | -- seeds --> |      QueuePair       |  one per reactor and controller
//!  registers                            | bring up, identify |              | submit, poll, slots  |
//!  addresses                            | events, resets     |              +----------+-----------+
//!                                       +---------+----------+                         |
//!                                                 |                             Tenant: a namespace
//!                                            AdminQueue
//! ```
//! Nothing here is `unsafe`, and nothing knows VFIO but `vfio`: the driver is generic over its [`Port`], so that the controller in software
//! ([`fake`]) runs all of it, natively and in the simulator.
//!
//! Words: a *ring* is a queue of the specification in memory; a *slot* is a place for a command in flight; *held* is data that the
//! controller may touch; *quiet* is a controller that touches nothing any more.

mod admin;
mod controller;
mod drive;
mod error;
pub mod fake;

pub mod port;
mod queue;
#[cfg(test)]
mod tests;
mod vfio;

pub use controller::{Controller, ControllerEvent, ControllerOptions, NamespaceInfo, QueueSeed};
pub use drive::{Drive, DriveCounters, DriveOptions, Life};
pub use error::ControllerError;
pub use port::{Force, Held, Port};
pub use queue::{QueueCounters, QueuePair, Tenant};
pub use vfio::VfioPort;

/// The proof that a controller reads and writes no memory of its queues and commands any more. Made where that is seen: it is disabled
/// and says so, or it is gone from the bus, or cut off from memory.
#[derive(Debug)]
pub struct Quiet(());
