//! The devices of this server, and those that its predecessors left behind.

use std::collections::BTreeMap;

use super::control::{self, Control, ControlError, Unavailable};
use super::disk::{Disk, Options, Place};
use super::params;
use super::recovery::{self, Mark, StateDirectory};
use super::wire::{self, DevInfo, DevState, Features};

/// The directory of the files that name devices to udev: the rule of scripts/udev has it too.
const STATE: &str = "/run/reactor/ublk";

/// Why the door could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// The kernel, or a right that is missing.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// A mode that this kernel has not.
    #[error("volume \"{name}\": this kernel has no ublk mode \"{mode}\": leave mode out for the best that it has")]
    Mode {
        /// The volume.
        name: String,
        /// As configured.
        mode: &'static str,
    },
    /// A volume that zero copy is not for.
    #[error(
        "volume \"{name}\": zero copy is for volumes that leave the bytes to the kernel (files, block devices, also below layers that do not look at them): leave mode out"
    )]
    Bytes {
        /// The volume.
        name: String,
    },
    /// A device does not come up, or does not go.
    #[error("volume \"{name}\": /dev/ublkb{id}: {why}")]
    Disk {
        /// The volume.
        name: String,
        /// The device.
        id: u32,
        /// Why.
        why: String,
    },
    /// Something of the machine.
    #[error("{0}")]
    Refused(String),
    /// A reactor has ended.
    #[error("a reactor has ended")]
    Ended,
}

/// What becomes of a device when its server stops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// It is gone.
    Nothing,
    /// It is in use, by these, and waits for the next server.
    Waiting(Vec<String>),
}

/// The door: devices by the name of their volume. For control threads.
pub struct Door {
    control: Control,
    places: Vec<Place>,
    state: StateDirectory,
    instance: String,
    disks: BTreeMap<String, Disk>,
}

impl Door {
    /// A door without devices. `instance` names this server to the next one, as the path of its configuration does.
    ///
    /// # Errors
    /// If the kernel has no ublk, or this process no right to it.
    pub fn open(places: Vec<Place>, instance: &str) -> Result<Door, Unavailable> {
        let control = Control::open()?;
        let state = StateDirectory::new(STATE.into());
        Ok(Door { control, places, state, instance: instance.to_owned(), disks: BTreeMap::new() })
    }

    /// The mark of a volume's device.
    fn mark(&self, name: &str) -> Mark {
        Mark::new(&self.instance, name)
    }

    /// Brings a volume up as a device: one that its last server left behind goes on, else a new one. Returns its number.
    ///
    /// # Errors
    /// What the kernel says; no device is left then that was not there before.
    pub fn add(&mut self, options: Options) -> Result<u32, DoorError> {
        let name = options.name.clone();
        let left = self.left_behind(&options)?;
        let mut disk = match left {
            Some(info) => {
                self.check_same(&options, info.dev_id)?;
                Disk::recover(&mut self.control, options, info)?
            }
            None => {
                let mark = self.mark(&options.name);
                Disk::create(&mut self.control, options, mark)?
            }
        };
        let id = disk.id();
        if let Err(error) = self.state.write(id, &name, &self.instance) {
            tracing::warn!("/dev/disk/by-id/reactor-{name} may be missing: its state file cannot be written: {error}");
        }
        if let Err(error) = disk.start(&mut self.control, &self.places) {
            if left.is_none()
                && let Err(error) = self.discard(&mut disk)
            {
                tracing::error!("/dev/ublkb{id} stays behind: {error}");
            }
            return Err(error);
        }
        if left.is_some() {
            tracing::info!("/dev/ublkb{id} goes on with volume \"{name}\"");
            let grown = disk.has_grown(&mut self.control);
            if let Err(error) = grown.and_then(|grown| if grown { disk.resize(&mut self.control) } else { Ok(()) }) {
                tracing::warn!("{error}");
            }
        }
        self.disks.insert(name, disk);
        Ok(id)
    }

    /// The device of a volume that a dead server of ours has left, if it can go on.
    fn left_behind(&mut self, options: &Options) -> Result<Option<DevInfo>, DoorError> {
        let mark = self.mark(&options.name);
        let devices = control::devices().map_err(|error| {
            let why = format!("devices that wait for a server cannot be listed: {error}");
            DoorError::Refused(why)
        })?;
        for id in devices {
            let Some(info) = self.control.info(id)? else { continue };
            if Mark::from_bits(info.ublksrv_flags) != Some(mark) {
                continue;
            }
            let waits = info.state != DevState::DEAD && info.flags.has(Features::USER_RECOVERY);
            if waits && options.recover {
                return Ok(Some(info));
            }
            if is_served(id) {
                let why = format!("process {} serves it", info.ublksrv_pid);
                return Err(DoorError::Disk { name: options.name.clone(), id, why });
            }
            if waits {
                let name = &options.name;
                tracing::warn!(
                    "/dev/ublkb{id} waited for its server and is deleted: volume \"{name}\" has recover = false"
                );
            }
            // Never started, or without recovery: nobody can use the disk any more.
            if !self.control.delete(id)? {
                tracing::warn!(
                    "/dev/ublkb{id}, which has no server any more, is still open somewhere: it goes when that is closed"
                );
            }
        }
        Ok(None)
    }

    /// Whether users of a device that waits for its server would find the disk that they know.
    fn check_same(&mut self, options: &Options, id: u32) -> Result<(), DoorError> {
        let (was, common) = (self.control.params(id)?.basic, options.device.common());
        let now = params::of(common, options.read_only).basic;
        let what = if common.traits().ephemeral {
            "the volume is one whose contents end with its server"
        } else if was.logical_bs_shift != now.logical_bs_shift {
            "the volume has another block size"
        } else if was.dev_sectors > now.dev_sectors {
            "the volume is smaller"
        } else if (was.attrs ^ now.attrs) & wire::ATTR_READ_ONLY != 0 {
            "read_only has changed"
        } else {
            return Ok(());
        };
        let why = format!(
            "it waits for its server, and {what} now: configure it as it was, or write recover = false, which deletes the device \
             and gives errors to who uses it"
        );
        Err(DoorError::Disk { name: options.name.clone(), id, why })
    }

    /// Deletes what dead servers of ours have left and nobody will take over: devices of volumes other than `names`. One that is in
    /// use stays, and is told.
    pub fn sweep(&mut self, names: &[&str]) {
        let kept: Vec<Mark> = names.iter().map(|name| self.mark(name)).collect();
        let ours = self.mark("");
        for id in control::devices().unwrap_or_default() {
            let Ok(Some(info)) = self.control.info(id) else { continue };
            let Some(mark) = Mark::from_bits(info.ublksrv_flags).filter(|mark| mark.is_of_same_server(ours)) else {
                continue;
            };
            if kept.contains(&mark) || is_served(id) {
                continue;
            }
            let holders = recovery::holders(id);
            if !holders.is_empty() || recovery::is_claimed(id) {
                let users = holders.join(", ");
                tracing::warn!("/dev/ublkb{id} has no [[ublk]] any more, stays and waits, since it is in use: {users}");
                continue;
            }
            match self.control.delete(id) {
                Ok(_) => {
                    tracing::info!("/dev/ublkb{id}, left behind by a server before this one, is deleted");
                    self.forget(id);
                }
                Err(error) => tracing::warn!("/dev/ublkb{id}, left behind by a server before this one, stays: {error}"),
            }
        }
    }

    /// The number of a volume's device.
    pub fn id(&self, name: &str) -> Option<u32> {
        self.disks.get(name).map(Disk::id)
    }

    /// The volume has another size.
    ///
    /// # Errors
    /// If this kernel cannot change the size of a device.
    pub fn resized(&mut self, name: &str) -> Result<(), DoorError> {
        match self.disks.get_mut(name) {
            Some(disk) => disk.resize(&mut self.control),
            None => Ok(()),
        }
    }

    /// Takes a device away for good.
    ///
    /// # Errors
    /// If somebody uses it, with who it is; or what the kernel says.
    pub fn remove(&mut self, name: &str) -> Result<(), DoorError> {
        let Some(disk) = self.disks.get_mut(name) else { return Ok(()) };
        let id = disk.id();
        if !disk.is_free(&mut self.control)? {
            let why = format!("it is in use: {}", users(id).join(", "));
            return Err(DoorError::Disk { name: name.to_owned(), id, why });
        }
        disk.close(&mut self.control)?;
        self.disks.remove(name);
        self.forget(id);
        Ok(())
    }

    /// Ends the service of all devices. What nobody uses is deleted, and so is what does not outlive its server; what is in use stays
    /// for the next server, unless `force`. Returns what became of each: name of the volume and number of the device.
    pub fn close(&mut self, force: bool) -> Vec<(String, u32, Result<Left, DoorError>)> {
        let disks = std::mem::take(&mut self.disks);
        disks.into_iter().map(|(name, mut disk)| (name, disk.id(), self.end(&mut disk, force))).collect()
    }

    fn end(&mut self, disk: &mut Disk, force: bool) -> Result<Left, DoorError> {
        if !force && disk.options().recover && !disk.is_free(&mut self.control)? {
            disk.leave(&mut self.control)?;
            return Ok(Left::Waiting(users(disk.id())));
        }
        self.discard(disk)?;
        Ok(Left::Nothing)
    }

    fn discard(&mut self, disk: &mut Disk) -> Result<(), DoorError> {
        disk.close(&mut self.control)?;
        self.forget(disk.id());
        Ok(())
    }

    fn forget(&self, id: u32) {
        if let Err(error) = self.state.remove(id) {
            tracing::warn!("the state file of /dev/ublkb{id}, which is gone, stays: {error}");
        }
    }
}

/// Who uses a device, or that nobody was found who does.
fn users(id: u32) -> Vec<String> {
    let holders = recovery::holders(id);
    if holders.is_empty() { vec!["by whom could not be seen".to_owned()] } else { holders }
}

/// Whether a server has the device, in whatever container: the kernel lets one open it. One that was killed is given time to go.
fn is_served(id: u32) -> bool {
    control::open_char(id).is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}
