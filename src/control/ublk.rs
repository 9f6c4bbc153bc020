//! `[[ublk]]` in service: local block devices of volumes.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::config::{Config, Driver, UblkConfig, UblkMode};
use super::volumes::Volumes;
use crate::bdev::registry::Claim;
use crate::reactor::mailbox::Remote;
use crate::ublk::{Door, Left, Mode, Options, Place, control};

/// The devices of a server, and the door to them while there is one.
pub struct LocalDisks {
    places: Vec<Place>,
    /// Names this server to the next one that reads the same configuration.
    instance: String,
    door: Option<Door>,
    claims: BTreeMap<String, Claim>,
}

impl LocalDisks {
    /// None yet. `file` is the configuration, `cores` those of the reactors.
    pub fn new(file: &Path, remotes: &[Remote], cores: &[usize]) -> LocalDisks {
        let place = |(remote, core): (&Remote, &usize)| Place { remote: remote.clone(), core: *core };
        let places = remotes.iter().zip(cores).map(place).collect();
        let instance = file.canonicalize().unwrap_or_else(|_| file.to_path_buf()).display().to_string();
        LocalDisks { places, instance, door: None, claims: BTreeMap::new() }
    }

    /// Brings up all devices of a configuration, and clears away what servers before this one have left of others. Without ublk, or
    /// the right to it, that is said in one line.
    ///
    /// # Errors
    /// The place of the device that does not come up, and why; or that one is required and there is no ublk.
    pub fn start(&mut self, config: &Config, volumes: &Volumes) -> Result<(), String> {
        let Some(first) = config.ublk.first() else {
            // Those of a configuration that had some; without ublk there are none.
            if control::devices().is_ok_and(|devices| !devices.is_empty())
                && let Ok(door) = self.door()
            {
                door.sweep(&[]);
            }
            return Ok(());
        };
        if let Err(why) = self.door() {
            let required = config.ublk.iter().find(|ublk| ublk.required);
            return match required {
                Some(ublk) => {
                    Err(format!("{}: the device of bdev \"{}\" is required: {why}", config.at(ublk.place), ublk.bdev))
                }
                None => {
                    tracing::warn!("{}: no local block devices: {why}", config.at(first.place));
                    Ok(())
                }
            };
        }
        let names: Vec<&str> = config.ublk.iter().map(|ublk| ublk.bdev.as_str()).collect();
        self.door()?.sweep(&names);
        // Numbers that are asked for come first: the kernel would give them to others.
        let (chosen, any): (Vec<_>, Vec<_>) = config.ublk.iter().partition(|ublk| ublk.id.is_some());
        let mut all = chosen.into_iter().chain(any);
        all.try_for_each(|ublk| {
            self.add(config, ublk, volumes).map_err(|why| format!("{}: {why}", config.at(ublk.place)))
        })
    }

    fn door(&mut self) -> Result<&mut Door, String> {
        if self.door.is_none() {
            let opened = Door::open(self.places.clone(), &self.instance);
            self.door = Some(opened.map_err(|error| error.to_string())?);
        }
        self.door.as_mut().ok_or_else(|| "there is no ublk door".to_owned())
    }

    /// Brings up one device.
    ///
    /// # Errors
    /// Why not.
    pub fn add(&mut self, config: &Config, ublk: &UblkConfig, volumes: &Volumes) -> Result<(), String> {
        let name = &ublk.bdev;
        let claim = volumes.claim(name, "its local block device").map_err(|error| error.to_string())?;
        let options = Options {
            name: name.clone(),
            device: claim.device().clone(),
            backing: backing(config, name),
            id: ublk.id,
            queues: ublk.queues,
            depth: ublk.depth,
            mode: match ublk.mode {
                UblkMode::Auto => Mode::Auto,
                UblkMode::ZeroCopy => Mode::ZeroCopy,
                UblkMode::UserCopy => Mode::UserCopy,
                UblkMode::Copy => Mode::Copy,
            },
            recover: ublk.recover,
            read_only: ublk.read_only,
        };
        let door = self.door()?;
        let added = door.add(options).map(drop).map_err(|error| error.to_string());
        // Also of one that did not come up, and keeps queues for another try.
        if door.id(name).is_some() {
            self.claims.insert(name.clone(), claim);
        }
        added
    }

    /// Takes a device away.
    ///
    /// # Errors
    /// If somebody uses it, or what the kernel says.
    pub fn remove(&mut self, name: &str) -> Result<(), String> {
        if let Some(door) = &mut self.door {
            door.remove(name).map_err(|error| error.to_string())?;
        }
        self.claims.remove(name);
        Ok(())
    }

    /// Volumes without a device in a configuration, whose device of an earlier one has not come up, and waits for another try.
    pub fn given_up(&self, config: &Config) -> Vec<String> {
        let unfinished = self.door.iter().flat_map(Door::unfinished);
        unfinished.filter(|name| config.ublk_of(name).is_none()).map(str::to_owned).collect()
    }

    /// The volume has grown.
    ///
    /// # Errors
    /// If the kernel cannot tell so to users of the device.
    pub fn resized(&mut self, name: &str) -> Result<(), String> {
        match &mut self.door {
            Some(door) => door.resized(name).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }

    /// The path of each device that is up, in the order of the configuration.
    pub fn paths(&self, config: &Config) -> Vec<String> {
        let id = |ublk: &UblkConfig| self.door.as_ref()?.id(&ublk.bdev);
        config.ublk.iter().filter_map(id).map(|id| format!("/dev/ublkb{id}")).collect()
    }

    /// Ends the service of all devices, on a control thread while the reactors still turn. Returns whether all went as it should.
    pub fn close(mut self) -> bool {
        let mut clean = true;
        for (name, id, end) in self.door.take().map(|mut door| door.close(false)).unwrap_or_default() {
            match end {
                Ok(Left::Nothing) => {}
                Ok(Left::Waiting(users)) => tracing::info!(
                    "/dev/ublkb{id} (volume \"{name}\") is in use: {}: it stays, and waits for the next start",
                    users.join(", ")
                ),
                Err(error) => {
                    tracing::error!("/dev/ublkb{id}: {error}");
                    clean = false;
                }
            }
        }
        clean
    }
}

/// What keeps the bytes of a volume: two of one name that are kept in different places are not the same.
fn backing(config: &Config, name: &str) -> String {
    match config.bdev(name).map(|bdev| &bdev.driver) {
        // By what it is, too: in another container the same path may be another file.
        Some(Driver::File { path, .. }) => match std::fs::metadata(path) {
            Ok(about) if about.file_type().is_block_device() => {
                format!("device {:#x} {}", about.rdev(), path.display())
            }
            Ok(about) => format!("file {:#x}:{} {}", about.dev(), about.ino(), path.display()),
            Err(_) => format!("file {}", path.display()),
        },
        // It changes no byte.
        Some(Driver::Inject { base, .. }) => backing(config, base),
        Some(Driver::Nvme(wanted)) => format!("nvme {} namespace {}", wanted.disk, wanted.nsid.unwrap_or_default()),
        Some(Driver::Malloc) => "RAM".to_owned(),
        Some(Driver::Null { .. }) => "null".to_owned(),
        None => String::new(),
    }
}
