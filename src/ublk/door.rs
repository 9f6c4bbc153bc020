//! The devices of this server, and those that its predecessors left behind.

use std::collections::BTreeMap;
use std::sync::Arc;

use uuid::Uuid;

use super::control::{self, Control, ControlError, Unavailable};
use super::disk::{Disk, Options, Place};
use super::holders::users;
use super::left::{self, Kept};
use super::params;
use super::recovery::{Identity, Kin, Mark, StateDirectory, kin};
use super::wire::{self, DevInfo, DevState, Features};
use crate::bdev::BlockDevice;

/// The directory of the files that say whose devices are: the udev rule of scripts/udev has it too.
pub(super) const STATE: &str = "/run/reactor/ublk";

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
        "volume \"{name}\": zero copy is for volumes that leave the bytes to the kernel (files that are not in memory, block devices, also below layers that do not look at them): leave mode out"
    )]
    Bytes {
        /// The volume.
        name: String,
    },
    /// A volume with zones, of which the kernel would have to be told.
    #[error(
        "volume \"{name}\" has zones, which no local block device of this program has: export it by NVMe/TCP ([nvmf]), where it is a zoned namespace"
    )]
    Zones {
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

    /// Whose the device of a volume is.
    fn identity(&self, options: &Options) -> Identity {
        let uuid = Uuid::from_bytes(options.device.common().traits().uuid);
        Identity::new(&self.instance, &options.name, uuid, &options.backing)
    }

    /// Brings a volume up as a device: one that its last server left behind goes on, else a new one. Returns its number.
    ///
    /// # Errors
    /// What the kernel says. No device is left then that was not there before; one that was there and is in use waits on, for another
    /// try or for the next server.
    pub fn add(&mut self, options: Options) -> Result<u32, DoorError> {
        let name = options.name.clone();
        can_serve(&name, &*options.device)?;
        let (mut disk, left) = match self.disks.remove(&name) {
            Some(disk) if disk.is_half_started() => match goes_on_with(&disk, &options) {
                Ok(()) => (disk, true),
                Err(error) => {
                    self.disks.insert(name, disk);
                    return Err(error);
                }
            },
            Some(disk) => {
                let error =
                    DoorError::Disk { name: name.clone(), id: disk.id(), why: "it is there already".to_owned() };
                self.disks.insert(name, disk);
                return Err(error);
            }
            None => self.take_or_make(options)?,
        };
        let id = disk.id();
        if let Err(error) = disk.start(&mut self.control, &self.places) {
            if !left {
                self.discard_failed(&mut disk);
            } else if disk.is_half_started() {
                // Its queues end with the disk alone. While somebody uses that, they are kept for the next try.
                match disk.is_free(&mut self.control) {
                    Ok(true) => self.discard_failed(&mut disk),
                    _ => drop(self.disks.insert(name, disk)),
                }
            }
            return Err(error);
        }
        if left {
            tracing::info!("/dev/ublkb{id} goes on with volume \"{name}\"");
            let grown = disk.has_grown(&mut self.control);
            if let Err(error) = grown.and_then(|grown| if grown { disk.resize(&mut self.control) } else { Ok(()) }) {
                tracing::warn!("{error}");
            }
        }
        self.disks.insert(name, disk);
        Ok(id)
    }

    /// The device of a volume, not started yet, with its state file; and whether it was left behind.
    fn take_or_make(&mut self, options: Options) -> Result<(Disk, bool), DoorError> {
        let (name, identity) = (options.name.clone(), self.identity(&options));
        let left = self.left_behind(&options, &identity)?;
        let disk = match left {
            Some(info) => {
                self.check_same(&options, info.dev_id)?;
                Disk::recover(&mut self.control, options, info)?
            }
            None => Disk::create(&mut self.control, options, Mark::new(&identity))?,
        };
        if let Err(error) = self.state.write(disk.id(), &identity) {
            let file = self.state.file(disk.id()).display().to_string();
            tracing::warn!("/dev/disk/by-id/reactor-{name} may be missing: {file} cannot be written: {error}");
        }
        Ok((disk, left.is_some()))
    }

    fn discard_failed(&mut self, disk: &mut Disk) {
        if let Err(error) = self.discard(disk) {
            tracing::error!("/dev/ublkb{} stays behind: {error}", disk.id());
        }
    }

    /// The device of a volume that a dead server of ours has left, if it can go on.
    fn left_behind(&mut self, options: &Options, wanted: &Identity) -> Result<Option<DevInfo>, DoorError> {
        let name = &options.name;
        let refused = |id, why| DoorError::Disk { name: name.clone(), id, why };
        let devices = control::devices().map_err(|error| {
            let why = format!("devices that wait for a server cannot be listed: {error}");
            DoorError::Refused(why)
        })?;
        let mut found = None;
        for id in devices {
            let Some(info) = self.control.info(id)? else { continue };
            let Some(mark) = Mark::from_bits(info.ublksrv_flags) else { continue };
            let waits = info.state != DevState::DEAD && info.flags.has(Features::USER_RECOVERY);
            let replaced = match kin(mark, self.state.of(id, mark), wanted) {
                Kin::Other => continue,
                Kin::Same if waits && options.recover => {
                    found.get_or_insert(info);
                    continue;
                }
                Kin::Same => None,
                Kin::Replaced(was) => Some(was),
            };
            // What is this volume's nobody uses, or nobody can any more: never started, without recovery, or given up.
            let removed =
                left::remove(&mut self.control, &info, replaced.is_some()).map_err(|kept| match (kept, &replaced) {
                    (Kept::Control(error), _) => error.into(),
                    (Kept::Held(users), Some(was)) => refused(id, another(id, &users, was, wanted)),
                    (kept, _) => refused(id, kept.to_string()),
                })?;
            if let Some(was) = replaced {
                tracing::info!("/dev/ublkb{id} was that of another volume \"{name}\" ({was}), and is deleted");
            } else if waits {
                tracing::warn!(
                    "/dev/ublkb{id} waited for its server and is deleted: volume \"{name}\" has recover = false"
                );
            }
            if !removed.gone {
                tracing::warn!(
                    "/dev/ublkb{id}, which has no server any more, is still open somewhere: it goes when that is closed"
                );
            }
            self.state.forget(id, mark);
        }
        Ok(found)
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
            "it waits for its server, and {what} now: configure it as it was, or delete the device, which gives errors to who \
             uses it: reactor ublk delete {id} --force, or recover = false"
        );
        Err(DoorError::Disk { name: options.name.clone(), id, why })
    }

    /// Deletes what dead servers of ours have left and nobody will take over: devices of volumes other than `names`. One that is in
    /// use stays, and is told.
    pub fn sweep(&mut self, names: &[&str]) {
        for id in control::devices().unwrap_or_default() {
            let Ok(Some(info)) = self.control.info(id) else { continue };
            let Some(mark) = Mark::from_bits(info.ublksrv_flags) else { continue };
            let Some(identity) = self.state.of(id, mark) else {
                if info.state != DevState::LIVE {
                    let file = self.state.file(id).display().to_string();
                    tracing::info!(
                        "/dev/ublkb{id} has no server, and {file}, which says whose it is, is missing: if no volume of this \
                         configuration takes it over, reactor ublk delete {id} --force deletes it"
                    );
                }
                continue;
            };
            if identity.server() != self.instance || names.contains(&identity.volume()) {
                continue;
            }
            match left::remove(&mut self.control, &info, true) {
                Ok(_) => {
                    tracing::info!("/dev/ublkb{id}, left behind by a server before this one, is deleted");
                    self.state.forget(id, mark);
                }
                Err(Kept::Served(_)) => {}
                Err(Kept::Held(users)) => tracing::warn!(
                    "/dev/ublkb{id} has no [[ublk]] any more, stays and waits, since it is in use: {}",
                    users.join(", ")
                ),
                Err(kept) => tracing::warn!("/dev/ublkb{id}, left behind by a server before this one, stays: {kept}"),
            }
        }
    }

    /// Volumes whose devices were left behind, and did not come up again for want of something: another [`Door::add`] goes on with
    /// them, or [`Door::remove`] ends them.
    pub fn unfinished(&self) -> impl Iterator<Item = &str> {
        self.disks.iter().filter(|(_, disk)| disk.is_half_started()).map(|(name, _)| name.as_str())
    }

    /// Has the reactors that are left begin no more requests: what comes stays with the kernel, until [`Door::close`].
    pub fn hold(&self) {
        self.disks.values().for_each(Disk::hold);
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
        let Some(mut disk) = self.disks.remove(name) else { return Ok(()) };
        let removed = self.discard_if_free(&mut disk);
        if removed.is_err() {
            self.disks.insert(name.to_owned(), disk);
        }
        removed
    }

    fn discard_if_free(&mut self, disk: &mut Disk) -> Result<(), DoorError> {
        if !disk.is_free(&mut self.control)? {
            let (name, id) = (disk.options().name.clone(), disk.id());
            return Err(DoorError::Disk { name, id, why: format!("it is in use: {}", users(id).join(", ")) });
        }
        self.discard(disk)
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
        if let Some(mark) = Mark::from_bits(disk.info().ublksrv_flags) {
            self.state.forget(disk.id(), mark);
        }
        Ok(())
    }
}

/// Whether a disk whose recovery has not come to its end can go on with `options`: its queues have the volume open.
fn goes_on_with(disk: &Disk, options: &Options) -> Result<(), DoorError> {
    let had = disk.options();
    if Arc::ptr_eq(&had.device, &options.device) && had.read_only == options.read_only {
        return Ok(());
    }
    let why = "its recovery failed half-way, and the volume or read_only has changed since: start reactor again";
    Err(DoorError::Disk { name: options.name.clone(), id: disk.id(), why: why.to_owned() })
}

/// That a device in use is not that of the volume which has its name now.
fn another(id: u32, users: &[String], was: &Identity, now: &Identity) -> String {
    format!(
        "it is in use ({}), and waits for a server of another volume \"{}\": that has {was}, the one of the configuration has {now}: \
         configure it as it was, or delete the device, which gives errors to who uses it: reactor ublk delete {id} --force",
        users.join(", "),
        now.volume()
    )
}

/// Whether the kernel can have a volume as it is.
fn can_serve(name: &str, device: &dyn BlockDevice) -> Result<(), DoorError> {
    match device.common().traits().zones {
        Some(_) => Err(DoorError::Zones { name: name.to_owned() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::leaf::Leaf;
    use crate::bdev::{DeviceLimits, Zones};

    #[test]
    fn a_volume_with_zones_is_sent_to_the_other_door() {
        let zones = Zones { size: 4096, append_max: 512, open_max: None, active_max: None, read_across: true };
        let zoned = Leaf::altered(8192, true, DeviceLimits::default(), |traits| traits.zones = Some(zones));
        let refused = can_serve("z", &*zoned).expect_err("zones").to_string();
        assert!(refused.starts_with("volume \"z\" has zones") && refused.contains("NVMe/TCP"), "{refused}");
        assert!(can_serve("z", &*Leaf::device(8192, true, DeviceLimits::default())).is_ok());
    }
}
