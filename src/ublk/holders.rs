//! Who uses a local block device of this machine, and whether it can be stopped: what [`crate::sys::holders`] finds, of `/dev/ublkbN`.

use std::path::Path;
use std::time::Duration;

use super::control::{Control, ControlError, TryStop};
use super::wire::Features;
use crate::sys::holders::{self, Machine, Seen};
use crate::sys::tsc::monotonic_ns;

/// How long udev may look into a disk that somebody wants to stop, in nanoseconds.
const UDEV_LOOKS_NS: u64 = 2_000_000_000;
/// How often a disk that udev looks into is tried again.
const LOOK: Duration = Duration::from_millis(10);
/// How often its users are looked for meanwhile: that goes through all processes.
const LOOK_AROUND_NS: u64 = 500_000_000;

/// Who has /dev/ublkbN in use. Empty if nobody is seen. udev, which looks into each disk that comes or changes, is no user: it never
/// needs what it reads.
pub fn holders(id: u32) -> Vec<String> {
    look(id).users
}

fn look(id: u32) -> Seen {
    Machine::here().look(&[format!("sys/block/ublkb{id}")], &[])
}

/// As [`holders::or_unseen`], of a device.
pub fn users(id: u32) -> Vec<String> {
    holders::or_unseen(holders(id))
}

/// Whether /dev/ublkbN is claimed: mounted in any mount namespace, swapped on, or part of another device. Also where that cannot be found
/// out, for want of a descriptor say: what is taken away by mistake does not come back.
pub fn is_claimed(id: u32) -> bool {
    holders::is_claimed(Path::new(&format!("/dev/ublkb{id}")), Path::new(&format!("/sys/block/ublkb{id}")))
}

/// Whether /dev/ublkbN is claimed, or somebody is seen who uses it.
pub fn is_held(id: u32) -> bool {
    is_claimed(id) || !holders(id).is_empty()
}

/// What [`stop_if_free`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Nobody uses the disk, and it is stopped: nobody comes in between.
    Stopped,
    /// Nobody is seen who uses it, but udev at most. It is not stopped.
    Free,
    /// Somebody uses it.
    Held,
}

/// Stops a disk unless somebody uses it, where the kernel can tell; else only looks.
///
/// # Errors
/// What the kernel says.
pub fn stop_if_free(control: &mut Control, id: u32) -> Result<Use, ControlError> {
    if !control.features().has(Features::SAFE_STOP_DEV) {
        return Ok(if is_held(id) { Use::Held } else { Use::Free });
    }
    let end = monotonic_ns() + UDEV_LOOKS_NS;
    let mut next_look = 0;
    loop {
        match control.try_stop(id) {
            Ok(TryStop::Stopped) => return Ok(Use::Stopped),
            // There is no disk, or none any more.
            Err(error) if error.errno() == Some(libc::ENODEV) => return Ok(Use::Stopped),
            Err(error) => return Err(error),
            Ok(TryStop::InUse) => {}
        }
        // The kernel counts udev, which looks into the disk for a moment; into one that has no server, for as long as that is so.
        if is_claimed(id) {
            return Ok(Use::Held);
        }
        let now = monotonic_ns();
        if now >= next_look.min(end) {
            let seen = look(id);
            if !seen.users.is_empty() {
                return Ok(Use::Held);
            }
            if now >= end {
                return Ok(if seen.udev { Use::Free } else { Use::Held });
            }
            next_look = monotonic_ns() + LOOK_AROUND_NS;
        }
        std::thread::park_timeout(LOOK);
    }
}
