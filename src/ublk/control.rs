//! Devices made, started, changed and removed: the control commands as functions. For control threads: each waits for the kernel.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::wire::{self, ANY_DEVICE, CtrlCmd, DevInfo, DevState, Features, PARAM_TYPE_DEVT, Params};
use crate::sys::predecessor::outlast;
use crate::sys::ublk_control::{CallError, ControlRing, OpenError};

/// Of commands that only look at or set something: they wait for locks that others hold for a moment.
const PLAIN: Duration = Duration::from_secs(5);

/// Of a start, which waits until every queue has fetched all its commands, and then for the server's answers to the reads of the
/// partition table.
const START: Duration = Duration::from_secs(30);

/// Of a stop and a removal, which wait for requests in flight and for the last user to go; and of making a device, which
/// waits for removals of others.
const STOP: Duration = Duration::from_secs(30);

/// Of a removal. What is not gone by then is in use, and goes with its last user.
const REMOVE: Duration = Duration::from_secs(4);

/// What the kernel has to let go of a server that was killed, in nanoseconds. Before Linux 6.16 it learns of that from a command
/// that waits; where all tags had requests there was none, and it finds out by the time-out of a request, after 30 s.
pub const SERVER_DIES_NS: u64 = 45_000_000_000;

/// Of the start of a recovery, which may wait for that.
const RECOVERY: Duration = Duration::from_secs(75);

/// Cores that an affinity mask has room for: as many as a kernel can be built for.
const CORES_MAX: usize = 8192;

/// Where the kernel lists the character devices of ublk.
const CLASS: &str = "/sys/class/ublk-char";

/// A control command: its name in the header, its number, and how long it may take.
#[derive(Clone, Copy)]
struct Command {
    name: &'static str,
    op: u32,
    limit: Duration,
}

const GET_FEATURES: Command = Command { name: "GET_FEATURES", op: wire::U_CMD_GET_FEATURES, limit: PLAIN };
const ADD: Command = Command { name: "ADD_DEV", op: wire::U_CMD_ADD_DEV, limit: STOP };
const SET_PARAMS: Command = Command { name: "SET_PARAMS", op: wire::U_CMD_SET_PARAMS, limit: PLAIN };
/// It waits, as START_USER_RECOVERY does, while the kernel has not seen that the last server has died.
const GET_PARAMS: Command = Command { name: "GET_PARAMS", op: wire::U_CMD_GET_PARAMS, limit: RECOVERY };
const GET_INFO: Command = Command { name: "GET_DEV_INFO", op: wire::U_CMD_GET_DEV_INFO, limit: PLAIN };
const AFFINITY: Command = Command { name: "GET_QUEUE_AFFINITY", op: wire::U_CMD_GET_QUEUE_AFFINITY, limit: PLAIN };
const START_DEV: Command = Command { name: "START_DEV", op: wire::U_CMD_START_DEV, limit: START };
const STOP_DEV: Command = Command { name: "STOP_DEV", op: wire::U_CMD_STOP_DEV, limit: STOP };
const TRY_STOP: Command = Command { name: "TRY_STOP_DEV", op: wire::U_CMD_TRY_STOP_DEV, limit: STOP };
const DELETE: Command = Command { name: "DEL_DEV", op: wire::U_CMD_DEL_DEV, limit: REMOVE };
const RESIZE: Command = Command { name: "UPDATE_SIZE", op: wire::U_CMD_UPDATE_SIZE, limit: PLAIN };
const QUIESCE: Command = Command { name: "QUIESCE_DEV", op: wire::U_CMD_QUIESCE_DEV, limit: PLAIN };
const START_RECOVERY: Command =
    Command { name: "START_USER_RECOVERY", op: wire::U_CMD_START_USER_RECOVERY, limit: RECOVERY };
const END_RECOVERY: Command = Command { name: "END_USER_RECOVERY", op: wire::U_CMD_END_USER_RECOVERY, limit: START };

/// Why there is no ublk for this process: one line that names what is missing and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// No /dev/ublk-control.
    #[error("the kernel has no ublk: modprobe ublk_drv (CONFIG_BLK_DEV_UBLK)")]
    NoDriver,
    /// /dev/ublk-control is there, but not for this user.
    #[error(
        "no right to open /dev/ublk-control: run as root, or give this user read and write rights on it, and CAP_SYS_ADMIN; a container needs the device as well"
    )]
    NoRights,
    /// The driver takes no commands from this process.
    #[error("the kernel takes no ublk commands from this process: CAP_SYS_ADMIN is needed")]
    NotAllowed,
    /// The driver does not say what it can do.
    #[error("the kernel's ublk is too old, it does not say its features: Linux 6.5 or newer is needed")]
    Old,
    /// No ring that can carry the commands.
    #[error("ublk commands have no way to the kernel: {0}")]
    Ring(OpenError),
    /// Anything else that opening says.
    #[error("/dev/ublk-control cannot be opened: {0}")]
    Device(io::Error),
    /// Anything else that the first command says.
    #[error("ublk does not answer: {0}")]
    Command(ControlError),
}

impl From<OpenError> for Unavailable {
    fn from(error: OpenError) -> Unavailable {
        match error {
            OpenError::Device(error) => match error.raw_os_error() {
                // ENXIO and ENODEV: a node without a driver behind it.
                Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => Unavailable::NoDriver,
                Some(libc::EACCES | libc::EPERM) => Unavailable::NoRights,
                _ => Unavailable::Device(error),
            },
            other => Unavailable::Ring(other),
        }
    }
}

impl Unavailable {
    /// Of the first command, which asks for the features.
    fn of_first(error: ControlError) -> Unavailable {
        match error.errno() {
            Some(libc::EPERM | libc::EACCES) => Unavailable::NotAllowed,
            // A driver that does not know the command takes it for one to device 2^32 - 1, or refuses its number.
            Some(libc::ENODEV | libc::EOPNOTSUPP | libc::EINVAL | libc::ENOTTY) => Unavailable::Old,
            _ => Unavailable::Command(error),
        }
    }
}

/// What came of a command that failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The kernel refuses it.
    #[error("{0}")]
    Refused(io::Error),
    /// The kernel has not answered. It may have carried the command out, or do so later.
    #[error("no answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// The command could not be sent.
    #[error("{0}")]
    NotSent(CallError),
}

/// A command that failed: which, of what device, what the kernel said, and what to do where that is known.
#[derive(Debug, thiserror::Error)]
#[error("{}: {command}: {failure}{}", Named(*device), Remedy(*remedy))]
pub struct ControlError {
    command: &'static str,
    device: u32,
    failure: Failure,
    remedy: Option<&'static str>,
}

impl ControlError {
    fn new(command: &Command, device: u32, failure: Failure) -> ControlError {
        let remedy = match &failure {
            Failure::Refused(error) => error.raw_os_error().and_then(|errno| remedy(command.op, errno)),
            Failure::TimedOut(_) => waits_for(command.op),
            Failure::NotSent(_) => None,
        };
        ControlError { command: command.name, device, failure, remedy }
    }

    fn refused(command: &Command, device: u32, errno: i32) -> ControlError {
        ControlError::new(command, device, Failure::Refused(io::Error::from_raw_os_error(errno)))
    }

    /// What came of it.
    pub fn failure(&self) -> &Failure {
        &self.failure
    }

    /// What the kernel answered, if it did.
    pub fn errno(&self) -> Option<i32> {
        match &self.failure {
            Failure::Refused(error) => error.raw_os_error(),
            Failure::TimedOut(_) | Failure::NotSent(_) => None,
        }
    }
}

/// A device in a message.
struct Named(u32);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ANY_DEVICE => f.write_str("ublk"),
            id => write!(f, "ublk device {id}"),
        }
    }
}

/// The end of a message.
struct Remedy(Option<&'static str>);

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |remedy| write!(f, "; {remedy}"))
    }
}

/// What an answer to a command means, or what to do about it.
fn remedy(op: u32, errno: i32) -> Option<&'static str> {
    Some(match (op, errno) {
        (_, libc::EPERM) => "CAP_SYS_ADMIN is needed",
        (wire::U_CMD_ADD_DEV, libc::EEXIST) => "the number is taken: use another id, or delete the device that has it",
        (wire::U_CMD_ADD_DEV, libc::ENOSPC) => "all numbers are taken: delete devices that nobody serves",
        (wire::U_CMD_ADD_DEV, libc::EINVAL) => "the kernel does not take these queues, depth and features together",
        (wire::U_CMD_SET_PARAMS, libc::EINVAL) => "the kernel does not take these parameters together",
        (wire::U_CMD_SET_PARAMS, libc::EACCES) => "parameters cannot change once a device was started",
        (wire::U_CMD_START_DEV, libc::EINVAL) => {
            "its parameters are not set, or its character device is open in another process than the one named"
        }
        (wire::U_CMD_START_DEV, libc::EEXIST) => "it was started already",
        (wire::U_CMD_START_USER_RECOVERY, libc::EBUSY) => {
            "its server is still there, or not gone completely, or it was never started"
        }
        (wire::U_CMD_START_USER_RECOVERY, libc::EINVAL) => "it was made without recovery, or never started",
        (wire::U_CMD_END_USER_RECOVERY, libc::EBUSY) => "it is not in recovery",
        (wire::U_CMD_END_USER_RECOVERY, libc::EINVAL) => {
            "it was made without recovery, or its character device is open in another process than the one named"
        }
        (wire::U_CMD_QUIESCE_DEV, libc::EBUSY) => "a queue has no command left that could tell its server: try again",
        (wire::U_CMD_QUIESCE_DEV, libc::EOPNOTSUPP) => "the device was made without QUIESCE, or the kernel has none",
        (wire::U_CMD_UPDATE_SIZE | wire::U_CMD_TRY_STOP_DEV, libc::ENODEV) => {
            "there is no such device, or it is not started"
        }
        (_, libc::ENODEV) => "there is no such device",
        (_, libc::EOPNOTSUPP) => "the kernel's ublk is too old for this",
        (_, libc::EBUSY) => "it is in use",
        _ => return None,
    })
}

/// What a command was waiting for when its time was over.
fn waits_for(op: u32) -> Option<&'static str> {
    Some(match op {
        wire::U_CMD_START_DEV | wire::U_CMD_END_USER_RECOVERY => {
            "not every queue has fetched all its commands, or the server does not answer the first reads"
        }
        wire::U_CMD_STOP_DEV | wire::U_CMD_TRY_STOP_DEV => "requests are still in flight",
        wire::U_CMD_DEL_DEV => "requests are still in flight, or somebody has its character device open",
        wire::U_CMD_ADD_DEV => "the kernel is still removing another device",
        _ => return None,
    })
}

/// What became of a [`Control::try_stop`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum TryStop {
    /// The block device is gone.
    Stopped,
    /// Somebody has the block device open; nothing has changed.
    InUse,
}

/// The way to the control commands of ublk. For control threads: each command waits for the kernel.
pub struct Control {
    ring: ControlRing,
    features: Features,
}

impl Control {
    /// Opens the control device and asks what the driver can do.
    ///
    /// # Errors
    /// Without driver, rights or io_uring, or with a driver that is too old.
    pub fn open() -> Result<Control, Unavailable> {
        let mut control = Control { ring: ControlRing::open()?, features: Features::default() };
        control.features = control.read(&GET_FEATURES, ANY_DEVICE).map_err(Unavailable::of_first)?;
        Ok(control)
    }

    /// What the driver can do.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Makes a device, number [`ANY_DEVICE`] for a free one, and returns it as granted: fewer queues than asked for if
    /// there are fewer cores, without the features that the kernel does not know. Its character device appears now,
    /// its block device with [`Control::start`].
    ///
    /// # Errors
    /// EEXIST if the number is taken, EINVAL for what does not go together.
    pub fn add(&mut self, info: &DevInfo) -> Result<DevInfo, ControlError> {
        self.exchange(&ADD, CtrlCmd::new(info.dev_id), info)
    }

    /// Sets the parameters of a device that was never started. Its length and the device numbers, which are the kernel's,
    /// need not be right. The kernel drops types of parameters that it does not know without a word; [`Control::params`]
    /// shows what it has.
    ///
    /// # Errors
    /// EINVAL for what does not go together, EACCES once it was started.
    pub fn set_params(&mut self, id: u32, params: &Params) -> Result<(), ControlError> {
        let types = params.types & !PARAM_TYPE_DEVT;
        let params = Params { len: size_of::<Params>() as u32, types, ..*params };
        self.exchange(&SET_PARAMS, CtrlCmd::new(id), &params).map(drop)
    }

    /// The parameters of a device. What has no bit in `types` means nothing, whatever stands there; the length is the one that
    /// was set.
    ///
    /// # Errors
    /// ENODEV if there is no such device.
    pub fn params(&mut self, id: u32) -> Result<Params, ControlError> {
        let wanted = Params { len: size_of::<Params>() as u32, ..Params::default() };
        self.exchange(&GET_PARAMS, CtrlCmd::new(id), &wanted)
    }

    /// What a device is now; `None` if there is no such device.
    ///
    /// # Errors
    /// What the kernel says otherwise.
    pub fn info(&mut self, id: u32) -> Result<Option<DevInfo>, ControlError> {
        match self.read(&GET_INFO, id) {
            Err(error) if error.errno() == Some(libc::ENODEV) => Ok(None),
            answer => answer.map(Some),
        }
    }

    /// The cores whose requests come to a queue, in ascending order.
    ///
    /// # Errors
    /// EINVAL if the device has no such queue, ENODEV if there is no such device.
    pub fn queue_affinity(&mut self, id: u32, queue: u16) -> Result<Vec<usize>, ControlError> {
        let mask = vec![0; CORES_MAX / 8].into();
        let mask = self.call(&AFFINITY, CtrlCmd::with_data(id, u64::from(queue)), mask)?;
        Ok(cores(&mask))
    }

    /// Shows the block device. `pid` is the process that has the character device open. Waits until every queue has fetched
    /// all its commands, and where the partition table is read, until the server has answered: it must be serving.
    ///
    /// # Errors
    /// EINVAL without parameters, or if it is another process, which old kernels do not look at. Timed out if not all commands
    /// were fetched; the device can be started again or deleted then.
    pub fn start(&mut self, id: u32, pid: u32) -> Result<(), ControlError> {
        self.plain(&START_DEV, CtrlCmd::with_data(id, u64::from(pid)))
    }

    /// Takes the block device away, whoever has it open: what is in flight fails, and the server's commands end.
    ///
    /// # Errors
    /// ENODEV if there is no such device.
    pub fn stop(&mut self, id: u32) -> Result<(), ControlError> {
        self.plain(&STOP_DEV, CtrlCmd::new(id))
    }

    /// Takes the block device away unless somebody has it open. With [`Features::SAFE_STOP_DEV`].
    ///
    /// # Errors
    /// ENODEV if there is none, EOPNOTSUPP without the feature.
    pub fn try_stop(&mut self, id: u32) -> Result<TryStop, ControlError> {
        match self.plain(&TRY_STOP, CtrlCmd::new(id)) {
            Ok(()) => Ok(TryStop::Stopped),
            Err(error) if error.errno() == Some(libc::EBUSY) => Ok(TryStop::InUse),
            Err(error) => Err(error),
        }
    }

    /// Stops and removes a device, and waits for a while until its number is free: until the character device is closed, mappings
    /// and commands included, and the block device too. Returns whether it is; if not, it goes with its last user.
    ///
    /// # Errors
    /// ENODEV if there is no such device.
    pub fn delete(&mut self, id: u32) -> Result<bool, ControlError> {
        match self.plain(&DELETE, CtrlCmd::new(id)) {
            Ok(()) => Ok(true),
            Err(error) if matches!(error.failure(), Failure::TimedOut(..)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Gives a started device another size, in sectors of 512 bytes. With [`Features::UPDATE_SIZE`].
    ///
    /// # Errors
    /// ENODEV if it is not there or not started, EOPNOTSUPP without the feature.
    pub fn resize(&mut self, id: u32, sectors: u64) -> Result<(), ControlError> {
        // Before the command had a check of its own, the kernel crashed where there is no block device.
        let started = self.info(id)?.is_some_and(|info| info.state != DevState::DEAD);
        if !started {
            return Err(ControlError::refused(&RESIZE, id, libc::ENODEV));
        }
        self.plain(&RESIZE, CtrlCmd::with_data(id, sectors))
    }

    /// Has the server's commands end while the block device stays, so that another server can take over. Waits at most
    /// `patience` for each queue to have a command that can tell so. The state changes when the server has closed the
    /// character device, mappings and rings included. The device must have been made with [`Features::QUIESCE`].
    ///
    /// # Errors
    /// EBUSY if some queue had none, EOPNOTSUPP without the feature.
    pub fn quiesce(&mut self, id: u32, patience: Duration) -> Result<(), ControlError> {
        // 0 would be for ever.
        let ms = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX).max(1);
        let command = Command { limit: QUIESCE.limit.saturating_add(patience), ..QUIESCE };
        self.plain(&command, CtrlCmd::with_data(id, ms))
    }

    /// Makes a device whose server has gone ready for a new one, which then opens the character device and fetches.
    ///
    /// # Errors
    /// EBUSY while the old server still has the character device, or if there never was one; EINVAL if the device was made
    /// without recovery.
    pub fn start_recovery(&mut self, id: u32) -> Result<(), ControlError> {
        self.plain(&START_RECOVERY, CtrlCmd::new(id))
    }

    /// Goes on with the new server, process `pid`. Waits as [`Control::start`].
    ///
    /// # Errors
    /// EBUSY if the device is not in recovery. Timed out if not all commands were fetched.
    pub fn end_recovery(&mut self, id: u32, pid: u32) -> Result<(), ControlError> {
        self.plain(&END_RECOVERY, CtrlCmd::with_data(id, u64::from(pid)))
    }

    /// A command without a buffer.
    fn plain(&mut self, command: &Command, cmd: CtrlCmd) -> Result<(), ControlError> {
        self.call(command, cmd, Box::default()).map(drop)
    }

    /// A command whose buffer gets a structure.
    fn read<T: FromBytes + IntoBytes + Immutable + Default>(
        &mut self,
        command: &Command,
        id: u32,
    ) -> Result<T, ControlError> {
        self.exchange(command, CtrlCmd::new(id), &T::default())
    }

    /// A command whose buffer is a structure, which it may change.
    fn exchange<T: FromBytes + IntoBytes + Immutable>(
        &mut self,
        command: &Command,
        cmd: CtrlCmd,
        structure: &T,
    ) -> Result<T, ControlError> {
        let buffer = self.call(command, cmd, structure.as_bytes().into())?;
        let Ok(answer) = T::read_from_bytes(&buffer) else { unreachable!("the buffer is as long as the structure") };
        Ok(answer)
    }

    fn call(&mut self, command: &Command, cmd: CtrlCmd, buffer: Box<[u8]>) -> Result<Box<[u8]>, ControlError> {
        match self.ring.call(command.op, cmd, buffer, command.limit) {
            Ok((0.., buffer)) => Ok(buffer),
            Ok((errno, _)) => Err(ControlError::refused(command, cmd.dev_id, -errno)),
            Err(CallError::TimedOut) => Err(ControlError::new(command, cmd.dev_id, Failure::TimedOut(command.limit))),
            Err(error) => Err(ControlError::new(command, cmd.dev_id, Failure::NotSent(error))),
        }
    }
}

/// The cores in a mask of the kernel's, which is made of longs.
fn cores(mask: &[u8]) -> Vec<usize> {
    let mut cores = Vec::new();
    for (n, word) in mask.chunks_exact(size_of::<u64>()).enumerate() {
        let word = u64::read_from_bytes(word).unwrap_or_default();
        cores.extend((0..64).filter(|bit| word >> bit & 1 == 1).map(|bit| n * 64 + bit));
    }
    cores
}

/// The numbers of all ublk devices, whoever serves them, in ascending order.
///
/// # Errors
/// What reading the directory says. That there is none means no driver, so no devices.
pub fn devices() -> io::Result<Vec<u32>> {
    devices_in(Path::new(CLASS))
}

fn devices_in(class: &Path) -> io::Result<Vec<u32>> {
    let entries = match fs::read_dir(class) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut found = Vec::new();
    for entry in entries {
        found.extend(entry?.file_name().to_str().and_then(|name| name.strip_prefix("ublkc")?.parse::<u32>().ok()));
    }
    found.sort_unstable();
    Ok(found)
}

/// Opens the character device of a device, which can be open only once. Waits up to two seconds for its node to appear, for
/// the rights that udev gives it, and for a server before this one to be gone.
///
/// # Errors
/// What open(2) says: EBUSY if another server has it, ENOENT if there is no such device.
pub fn open_char(id: u32) -> io::Result<OwnedFd> {
    open_node(&node_of(id))
}

/// As [`open_char`], at once.
///
/// # Errors
/// What open(2) says.
pub fn try_open_char(id: u32) -> io::Result<OwnedFd> {
    try_open_node(&node_of(id))
}

/// Whether the kernel has the character device of a device, with or without a node here.
pub fn has_char(id: u32) -> bool {
    Path::new(CLASS).join(format!("ublkc{id}")).exists()
}

fn node_of(id: u32) -> PathBuf {
    format!("/dev/ublkc{id}").into()
}

fn try_open_node(node: &Path) -> io::Result<OwnedFd> {
    OpenOptions::new().read(true).write(true).open(node).map(OwnedFd::from)
}

fn open_node(node: &Path) -> io::Result<OwnedFd> {
    let mut refusal = 0;
    let opened = outlast(libc::EBUSY, || {
        try_open_node(node).map_err(|error| match error.raw_os_error() {
            Some(errno @ (libc::EBUSY | libc::ENOENT | libc::EACCES)) => {
                refusal = errno;
                io::Error::from_raw_os_error(libc::EBUSY)
            }
            _ => error,
        })
    });
    opened.map_err(|error| match error.raw_os_error() {
        Some(libc::EBUSY) => io::Error::from_raw_os_error(refusal),
        _ => error,
    })
}

#[cfg(test)]
mod tests;
