//! The ublk door: volumes as local block devices, /dev/ublkbN, on the reactors' own rings.
//!
//! ```text
//!   control thread:  Door -> Disk --commands--> /dev/ublk-control            make, start, stop, delete, grow, recover
//!                             \----ask-------> reactors: Queue -> slot tasks
//!   reactors:        request -> slot -> Handle (block layer) -> commit, which fetches the next
//! ```
//! A queue belongs to one reactor, and each of its tags to one task there. The kernel hands a request over by completing the
//! command that the tag has in the ring; its commit carries the result and waits for the next one.
//!
//! Whose a device is, and what becomes of one that was left behind, stands in `recovery`, how it is deleted in `left`; [`Survey`] is for people who look.
//!
//! [`wire`] is what the kernel and a server say to each other, [`control`] the commands that make and unmake devices.

pub mod control;
mod disk;
mod door;
mod holders;
mod left;
mod params;
mod queue;
mod recovery;
mod slot;
pub mod stand_in;
mod survey;
pub mod wire;

pub use disk::{Disk, Mode, Options, Place};
pub use door::{Door, DoorError, Left};
pub use recovery::Identity;
pub use survey::{Deleted, Found, Refusal, Survey, Wanted};
