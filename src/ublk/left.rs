//! Devices that a server has left: whether one has a server still, and how it is deleted.
//!
//! A server has the character device open, which one process alone can. The kernel keeps that so, and goes on to name a server that was
//! killed, until it has noticed: how soon that is depends on its version and on what was in flight. So the process that the kernel names
//! decides how long to wait: nobody serves what no living process has open, whatever the kernel says yet.
//!
//! While one waits, a device may go, get a server again, or be another one of the same number. The kernel has no command that deletes a
//! device only if it is still the one that was looked at; so it is looked at again right before each step that changes it.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::control::{self, Control, ControlError, SERVER_DIES_NS};
use super::holders::{self, Use};
use super::recovery::Mark;
use super::wire::{DevInfo, DevState, Features};
use crate::sys::holders::or_unseen;
use crate::sys::predecessor;
use crate::sys::tsc::monotonic_ns;

/// How often a device whose server has died is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// How long a program that is no user may take to close a disk after its I/O has failed, in nanoseconds: a busy machine's udev.
const ASKER_ENDS_NS: u64 = 10_000_000_000;

/// Whether there is a process of that number that has not ended.
fn is_alive(proc: &Path, pid: i32) -> bool {
    let about = fs::read_to_string(proc.join(format!("{pid}/stat"))).unwrap_or_default();
    // The state follows the command's name, which may hold anything.
    let state = about.rsplit_once(") ").and_then(|(_, rest)| rest.bytes().next());
    pid > 0 && state.is_some_and(|state| state != b'Z' && state != b'X')
}

/// Whether process `pid`, which the kernel names as the server of a device, is that: it has not ended, and has the character device
/// open, or may not be asked. The number of one that has ended may be another process's by now. One in another namespace of processes
/// is not seen: it is waited for, and then the character device tells that it is there.
pub fn serves(id: u32, pid: i32) -> bool {
    serves_in(Path::new("/proc"), id, pid)
}

fn serves_in(proc: &Path, id: u32, pid: i32) -> bool {
    if !is_alive(proc, pid) {
        return false;
    }
    // By name alone: asking what a file is may wait for a file system that hangs.
    let node = format!("ublkc{id}");
    let is_node = |link: io::Result<fs::DirEntry>| {
        let to = link.and_then(|link| fs::read_link(link.path())).unwrap_or_default();
        to.file_name().is_some_and(|name| name.to_string_lossy().trim_end_matches(" (deleted)") == node)
    };
    match fs::read_dir(proc.join(format!("{pid}/fd"))) {
        Ok(mut files) => files.any(is_node),
        // It may end just now.
        Err(_) => is_alive(proc, pid),
    }
}

/// What is asked of the kernel and the machine about a device that was left, and done with it.
pub trait Kernel {
    /// As [`Control::info`].
    ///
    /// # Errors
    /// What the kernel says.
    fn info(&mut self, id: u32) -> Result<Option<DevInfo>, ControlError>;
    /// As [`holders::stop_if_free`].
    ///
    /// # Errors
    /// What the kernel says.
    fn stop_if_free(&mut self, id: u32) -> Result<Use, ControlError>;
    /// As [`Control::delete`].
    ///
    /// # Errors
    /// What the kernel says.
    fn delete(&mut self, id: u32) -> Result<bool, ControlError>;
    /// As [`control::try_open_char`], to close it at once; there is also success if there is no such device.
    ///
    /// # Errors
    /// What open(2) says.
    fn try_open(&mut self, id: u32) -> io::Result<()>;
    /// As [`serves`].
    fn serves(&mut self, id: u32, pid: i32) -> bool;
    /// As [`holders::holders`].
    fn holders(&mut self, id: u32) -> Vec<String>;
    /// The time, after a while has passed.
    fn later(&mut self) -> u64;
}

impl Kernel for Control {
    fn info(&mut self, id: u32) -> Result<Option<DevInfo>, ControlError> {
        Control::info(self, id)
    }

    fn stop_if_free(&mut self, id: u32) -> Result<Use, ControlError> {
        holders::stop_if_free(self, id)
    }

    fn delete(&mut self, id: u32) -> Result<bool, ControlError> {
        Control::delete(self, id)
    }

    fn try_open(&mut self, id: u32) -> io::Result<()> {
        match control::try_open_char(id) {
            Err(error) if control::has_char(id) => Err(error),
            _ => Ok(()),
        }
    }

    fn serves(&mut self, id: u32, pid: i32) -> bool {
        serves(id, pid)
    }

    fn holders(&mut self, id: u32) -> Vec<String> {
        holders::holders(id)
    }

    fn later(&mut self) -> u64 {
        std::thread::park_timeout(LOOK);
        monotonic_ns()
    }
}

/// Whether a server has the device, in whatever container: the kernel lets one open it. Also where that cannot be found out, for want of
/// a node or of a right to it. A server that was killed is given two seconds to go; and where it has ended, and the kernel alone has not
/// noticed, the kernel is given what it may take.
pub fn is_served(kernel: &mut impl Kernel, info: &DevInfo) -> bool {
    let (id, pid) = (info.dev_id, info.ublksrv_pid);
    let mut start = None;
    let mut told = false;
    while let Err(error) = kernel.try_open(id) {
        let now = kernel.later();
        let passed = now - *start.get_or_insert(now);
        if passed < predecessor::LIMIT_NS {
            continue;
        }
        // Where the kernel takes the server for gone, whoever has the device has opened it since.
        let notices = info.state == DevState::LIVE && error.raw_os_error() == Some(libc::EBUSY);
        if !notices || passed > SERVER_DIES_NS || kernel.serves(id, pid) {
            return true;
        }
        if !std::mem::replace(&mut told, true) {
            tell_wait(id, pid);
        }
    }
    false
}

fn tell_wait(id: u32, pid: i32) {
    tracing::info!(
        "/dev/ublkb{id}: process {pid}, which served it, is not here any more, and the kernel has not noticed: waiting for that, up to {} s",
        SERVER_DIES_NS / 1_000_000_000
    );
}

/// That a device is served, by process `pid` if the kernel names one.
fn served_by(pid: i32) -> String {
    if pid > 0 { format!("process {pid} serves it") } else { "a server has it".to_owned() }
}

/// Why a device that a server has left is not deleted.
#[derive(Debug, thiserror::Error)]
pub enum Kept {
    /// It is served, or somebody has its character device.
    #[error("{}", served_by(*.0))]
    Served(i32),
    /// It is in use.
    #[error("it is in use: {}", .0.join(", "))]
    Held(Vec<String>),
    /// It is not what it was when it was looked at.
    #[error("it has changed meanwhile: {0}")]
    Changed(String),
    /// The kernel.
    #[error("{0}")]
    Control(#[from] ControlError),
}

/// What became of a device that was left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Whether its number is free. Else it will be when the last of its users has closed it.
    pub gone: bool,
    /// Who used it, as far as seen.
    pub users: Vec<String>,
}

/// Deletes the device that `info` was read of, once no server has it; where `spare` is said, only if nobody uses it.
///
/// # Errors
/// Why not. Nothing has changed then, unless the kernel failed half-way, or the device changed between two steps.
pub fn remove(kernel: &mut impl Kernel, info: &DevInfo, spare: bool) -> Result<Removed, Kept> {
    let id = info.dev_id;
    check_same(kernel, info)?;
    if spare && kernel.stop_if_free(id)? == Use::Held {
        return Err(Kept::Held(or_unseen(kernel.holders(id))));
    }
    // Who has the disk mounted is not seen any more once it is gone.
    let users = kernel.holders(id);
    // Looking for users took its time.
    check_same(kernel, info)?;
    let mut gone = kernel.delete(id)?;
    // The removal has begun, and waits for what the server had in hand: until the kernel notices that nobody will answer. Then whoever
    // asked is told so, and closes it: udev, where nobody uses it. The number may be wanted next.
    if !gone && users.is_empty() {
        let live = info.state == DevState::LIVE;
        if live {
            tell_wait(id, info.ublksrv_pid);
        }
        gone = has_gone(kernel, info, if live { SERVER_DIES_NS } else { ASKER_ENDS_NS })?;
    }
    Ok(Removed { gone, users })
}

/// Waits for so many nanoseconds until a device is gone that is being deleted. Returns whether it is.
fn has_gone(kernel: &mut impl Kernel, device: &DevInfo, limit: u64) -> Result<bool, ControlError> {
    let start = kernel.later();
    while kernel.info(device.dev_id)?.is_some_and(|now| made(&now) == made(device)) {
        if kernel.later() - start > limit {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What stays the same as long as a device is there.
fn made(info: &DevInfo) -> (u64, Features, u16, u16, u32) {
    (info.ublksrv_flags, info.flags, info.nr_hw_queues, info.queue_depth, info.owner_uid)
}

/// Fails unless a device is still the one that `before` was read of, and has no server.
fn check_same(kernel: &mut impl Kernel, before: &DevInfo) -> Result<(), Kept> {
    // Whoever is about to take it over, or to start another one of its number, has the character device first.
    if is_served(kernel, before) {
        return Err(Kept::Served(before.ublksrv_pid));
    }
    let Some(now) = kernel.info(before.dev_id)? else {
        return Err(Kept::Changed("it is gone".to_owned()));
    };
    if made(&now) != made(before) {
        let whose = if Mark::from_bits(now.ublksrv_flags).is_some() { "of a reactor" } else { "of another program" };
        return Err(Kept::Changed(format!("its number is that of another device, {whose}")));
    }
    // A server that has gone may be named no more; one that is named now and was not before has come.
    let came = now.ublksrv_pid > 0 && now.ublksrv_pid != before.ublksrv_pid;
    let started = now.state == DevState::LIVE && before.state != DevState::LIVE;
    if came || started {
        return Err(Kept::Changed(served_by(now.ublksrv_pid)));
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
