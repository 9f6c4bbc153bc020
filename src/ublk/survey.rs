//! The devices of a machine for people: what there is, and the removal of what no server will take over.

use std::str::FromStr;

use super::control::{self, Control, ControlError, Unavailable};
use super::door::STATE;
use super::holders;
use super::left::{self, Kept, Kernel};
use super::recovery::{Identity, Mark, StateDirectory};
use super::wire::{DevInfo, DevState};
use crate::limits::UBLK_IDS;

/// A device that a reactor has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The number N of /dev/ublkbN.
    pub id: u32,
    /// Whose it is; `None` if no state file says so.
    pub identity: Option<Identity>,
    /// As the kernel has it.
    pub state: DevState,
    /// The process that serves it, or did last; `None` if there never was one, or the kernel does not say any more.
    pub server: Option<i32>,
    /// Whether that process still serves it.
    pub alive: bool,
    /// Who uses it.
    pub holders: Vec<String>,
}

impl Found {
    fn new(info: &DevInfo, identity: Option<Identity>) -> Found {
        let server = Some(info.ublksrv_pid).filter(|pid| *pid > 0);
        Found {
            id: info.dev_id,
            identity,
            state: info.state,
            server,
            alive: server.is_some_and(|pid| left::serves(info.dev_id, pid)),
            holders: holders::holders(info.dev_id),
        }
    }

    /// What its state is called.
    pub fn state_name(&self) -> &'static str {
        match self.state {
            DevState::DEAD => "dead",
            DevState::LIVE => "live",
            DevState::QUIESCED => "quiesced",
            DevState::FAIL_IO => "fail-io",
            _ => "unknown",
        }
    }

    /// The path of its disk.
    pub fn path(&self) -> String {
        format!("/dev/ublkb{}", self.id)
    }
}

/// What names a device on a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// `/dev/ublkbN`.
    Path(u32),
    /// A number: that of a device, unless it is the name of a volume.
    Number(u32),
    /// The name of a volume.
    Volume(String),
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(text: &str) -> Result<Wanted, String> {
        let number = |digits: &str| {
            let id =
                digits.parse().ok().filter(|id| *id < UBLK_IDS && digits.bytes().all(|byte| byte.is_ascii_digit()));
            id.ok_or_else(|| format!("\"{digits}\" is no number of a device: those are 0 to {}", UBLK_IDS - 1))
        };
        if let Some(digits) = text.strip_prefix("/dev/ublkb") {
            return number(digits).map(Wanted::Path);
        }
        if let Some(name) = text.strip_prefix("/dev/disk/by-id/reactor-") {
            return Ok(Wanted::Volume(name.to_owned()));
        }
        if text.is_empty() || text.contains('/') {
            return Err("write the name of a volume, a number N, or /dev/ublkbN".to_owned());
        }
        if text.bytes().all(|byte| byte.is_ascii_digit()) {
            return number(text).map(Wanted::Number);
        }
        Ok(Wanted::Volume(text.to_owned()))
    }
}

/// Why a device is not deleted: what stands against it, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No such device.
    #[error("there is no device {0}: reactor ublk list shows those that there are")]
    None(String),
    /// Not made by a reactor.
    #[error("/dev/ublkb{0} was not made by reactor: the program that made it can delete it")]
    Foreign(u32),
    /// The name of more than one.
    #[error("{name} may be any of {}: write the path of one", .of.join(", "))]
    Several {
        /// What was asked for.
        name: String,
        /// What it may be.
        of: Vec<String>,
    },
    /// Its server lives.
    #[error(
        "/dev/ublkb{id} is served by process {pid}: take its [[ublk]] out of {config} and reload (kill -HUP {pid})"
    )]
    Served {
        /// The device.
        id: u32,
        /// Its server.
        pid: i32,
        /// The server's configuration.
        config: String,
    },
    /// A program that uses the library serves it.
    #[error("/dev/ublkb{id} is served by process {pid}, a program with a device of its own: end that")]
    OfProgram {
        /// The device.
        id: u32,
        /// The program.
        pid: i32,
    },
    /// Some process has its character device, and it is not the one that the kernel names.
    #[error(
        "/dev/ublkb{id} is served still: process {pid}, which the kernel names, is not seen here; it may be in a container, or another \
         process has /dev/ublkc{id} open"
    )]
    Hidden {
        /// The device.
        id: u32,
        /// What the kernel says.
        pid: i32,
    },
    /// Nothing but its mark says that it is ours.
    #[error("/dev/ublkb{id}: {file}, which says whose it is, is missing: --force deletes it all the same")]
    Unknown {
        /// The device.
        id: u32,
        /// Its state file.
        file: String,
    },
    /// It is in use.
    #[error("/dev/ublkb{id} is in use: {}: end that first, or --force deletes it and gives them errors", .users.join(", "))]
    Held {
        /// The device.
        id: u32,
        /// By whom.
        users: Vec<String>,
    },
    /// While it was waited for, it became another device, or got a server.
    #[error("/dev/ublkb{id} has changed meanwhile and is not deleted: {what}")]
    Changed {
        /// The device.
        id: u32,
        /// How it has changed.
        what: String,
    },
    /// The kernel.
    #[error("{0}")]
    Control(#[from] ControlError),
    /// The devices cannot be listed.
    #[error("the ublk devices of this machine cannot be listed: {0}")]
    List(std::io::Error),
}

/// What became of a device that was deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deleted {
    /// The number that it had.
    pub id: u32,
    /// Whether its number is free. Else it will be when the last of its users has closed it.
    pub gone: bool,
    /// Who used it, as far as seen.
    pub users: Vec<String>,
}

/// A look at the devices of the machine. For control threads.
pub struct Survey {
    control: Control,
    state: StateDirectory,
}

impl Survey {
    /// Opens the way to the kernel.
    ///
    /// # Errors
    /// If the kernel has no ublk, or this process no right to it.
    pub fn open() -> Result<Survey, Unavailable> {
        Ok(Survey { control: Control::open()?, state: StateDirectory::new(STATE.into()) })
    }

    /// All devices that reactors have made, by number.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn list(&mut self) -> Result<Vec<Found>, Refusal> {
        let infos = self.look()?;
        Ok(self.ours(&infos))
    }

    /// All devices, ours and others.
    fn look(&mut self) -> Result<Vec<DevInfo>, Refusal> {
        let mut infos = Vec::new();
        for id in control::devices().map_err(Refusal::List)? {
            // It may go meanwhile.
            infos.extend(self.control.info(id)?);
        }
        Ok(infos)
    }

    fn ours(&self, infos: &[DevInfo]) -> Vec<Found> {
        let found = |info: &DevInfo| {
            let mark = Mark::from_bits(info.ublksrv_flags)?;
            Some(Found::new(info, self.state.of(info.dev_id, mark)))
        };
        infos.iter().filter_map(found).collect()
    }

    /// Deletes a device whose server is gone. One that is in use only with `force`.
    ///
    /// # Errors
    /// Why not; nothing has changed then, unless the kernel failed half-way.
    pub fn delete(&mut self, wanted: &Wanted, force: bool) -> Result<Deleted, Refusal> {
        let infos = self.look()?;
        let ours = self.ours(&infos);
        delete(&mut self.control, &self.state, &infos, &ours, wanted, force)
    }
}

/// As [`Survey::delete`]. `ours` are those of ours among the devices that `infos` were read of.
fn delete(
    kernel: &mut impl Kernel,
    state: &StateDirectory,
    infos: &[DevInfo],
    ours: &[Found],
    wanted: &Wanted,
    force: bool,
) -> Result<Deleted, Refusal> {
    let is_ours = |info: &DevInfo| ours.iter().any(|found| found.id == info.dev_id);
    let foreign: Vec<u32> = infos.iter().filter(|info| !is_ours(info)).map(|info| info.dev_id).collect();
    let device = choose(ours, &foreign, wanted)?;
    let id = device.id;
    may_delete(device, force, &state.file(id).display().to_string())?;
    let Some(info) = infos.iter().find(|info| info.dev_id == id) else { return Err(Refusal::None(device.path())) };
    let removed = left::remove(kernel, info, !force).map_err(|kept| match kept {
        Kept::Served(pid) => Refusal::Hidden { id, pid },
        Kept::Held(users) => Refusal::Held { id, users },
        Kept::Changed(what) => Refusal::Changed { id, what },
        Kept::Control(error) => Refusal::Control(error),
    })?;
    if let Some(identity) = &device.identity {
        state.forget(id, Mark::new(identity));
    }
    Ok(Deleted { id, gone: removed.gone, users: removed.users })
}

/// The device that is meant.
fn choose<'a>(ours: &'a [Found], foreign: &[u32], wanted: &Wanted) -> Result<&'a Found, Refusal> {
    let numbered = |id: u32| match ours.iter().find(|found| found.id == id) {
        Some(found) => Ok(found),
        None if foreign.contains(&id) => Err(Refusal::Foreign(id)),
        None => Err(Refusal::None(format!("/dev/ublkb{id}"))),
    };
    let named = |name: &str| {
        let is_named = |found: &&Found| found.identity.as_ref().is_some_and(|identity| identity.volume() == name);
        ours.iter().filter(is_named).collect::<Vec<_>>()
    };
    let several = |name: &str, of: &[&Found]| {
        let of = of.iter().map(|found| found.path()).collect();
        Err(Refusal::Several { name: name.to_owned(), of })
    };
    match wanted {
        Wanted::Path(id) => numbered(*id),
        Wanted::Number(id) => {
            let name = id.to_string();
            match (numbered(*id), named(&name).as_slice()) {
                (found, []) => found,
                (Ok(found), [one]) if found.id == one.id => Ok(found),
                (Err(Refusal::None(_)), [one]) => Ok(one),
                (Ok(found), of) => {
                    let mut of = of.to_vec();
                    of.retain(|other| other.id != found.id);
                    of.insert(0, found);
                    several(&name, &of)
                }
                (Err(_), of) => several(&name, of),
            }
        }
        Wanted::Volume(name) => match named(name).as_slice() {
            [] => Err(Refusal::None(format!("of a volume \"{name}\""))),
            [one] => Ok(one),
            of => several(&format!("\"{name}\""), of),
        },
    }
}

/// Whether what is known of a device lets it be deleted. That nobody serves it, the kernel has to say.
fn may_delete(device: &Found, force: bool, file: &str) -> Result<(), Refusal> {
    let id = device.id;
    if let (true, DevState::LIVE, Some(pid)) = (device.alive, device.state, device.server) {
        // Programs that serve devices of their own have no configuration, and say of no backing.
        if device.identity.as_ref().is_some_and(|identity| identity.backing().is_empty()) {
            return Err(Refusal::OfProgram { id, pid });
        }
        let config = device.identity.as_ref().map_or("its configuration", Identity::server).to_owned();
        return Err(Refusal::Served { id, pid, config });
    }
    if !force && !device.holders.is_empty() {
        return Err(Refusal::Held { id, users: device.holders.clone() });
    }
    if !force && device.identity.is_none() {
        return Err(Refusal::Unknown { id, file: file.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn device(id: u32, volume: Option<&str>) -> Found {
        let identity = volume.map(|name| Identity::new("/etc/poll.toml", name, Uuid::nil(), "file /srv/x"));
        Found { id, identity, state: DevState::QUIESCED, server: Some(812), alive: false, holders: Vec::new() }
    }

    #[test]
    fn a_device_that_is_replaced_while_its_server_is_waited_for_stays() {
        let place = tempfile::tempdir().unwrap();
        let state = StateDirectory::new(place.path().to_path_buf());
        for (force, deleted) in [(false, false), (true, false), (false, true)] {
            let found = Found { state: DevState::LIVE, ..device(3, Some("disk0")) };
            let info = left::tests::info(3, DevState::LIVE, 812);
            let mut kernel = left::tests::Fake::busy_for(info, 30);
            if !deleted {
                kernel.change_at(20, |info| info.ublksrv_flags += 1);
            }
            state.write(3, found.identity.as_ref().unwrap()).unwrap();
            let result = delete(&mut kernel, &state, &[info], &[found], &Wanted::Path(3), force);
            assert_eq!(
                result.map_err(|why| why.to_string()),
                if deleted {
                    Ok(Deleted { id: 3, gone: true, users: Vec::new() })
                } else {
                    Err("/dev/ublkb3 has changed meanwhile and is not deleted: its number is that of another device, of a reactor".to_owned())
                }
            );
            assert_eq!((kernel.changed_anything(), state.file(3).exists()), (deleted, !deleted));
        }
    }

    #[test]
    fn devices_are_named_by_volume_number_or_path() {
        for (text, wanted) in [
            ("disk0", Wanted::Volume("disk0".to_owned())),
            ("ublkb3", Wanted::Volume("ublkb3".to_owned())),
            ("/dev/disk/by-id/reactor-disk0", Wanted::Volume("disk0".to_owned())),
            ("3", Wanted::Number(3)),
            ("/dev/ublkb1048575", Wanted::Path(1_048_575)),
        ] {
            assert_eq!(text.parse(), Ok(wanted), "{text}");
        }
        for text in ["", "/dev/sda", "/dev/ublkb", "/dev/ublkbx", "/dev/ublkb+3", "1048576", "99999999999", "a/b"] {
            assert!(text.parse::<Wanted>().is_err(), "{text}");
        }
    }

    #[test]
    fn one_device_is_meant_or_none() {
        let ours = [device(0, Some("disk0")), device(1, Some("disk1")), device(2, Some("disk1")), device(4, None)];
        let chosen = |text: &str| {
            let chosen = choose(&ours, &[3], &text.parse().unwrap());
            chosen.map(|found| found.id).map_err(|refusal| refusal.to_string())
        };
        for (text, id) in [("disk0", 0), ("0", 0), ("/dev/ublkb2", 2), ("4", 4)] {
            assert_eq!(chosen(text), Ok(id), "{text}");
        }
        let refused = |text: &str, words: &str| {
            let why = chosen(text).unwrap_err();
            assert!(why.contains(words), "{text}: {why}");
        };
        refused("disk1", "\"disk1\" may be any of /dev/ublkb1, /dev/ublkb2: write the path of one");
        refused("disk9", "no device of a volume \"disk9\": reactor ublk list");
        refused("9", "no device /dev/ublkb9");
        refused("3", "/dev/ublkb3 was not made by reactor");
        refused("/dev/ublkb3", "/dev/ublkb3 was not made by reactor");
    }

    #[test]
    fn a_number_that_is_a_volumes_name_is_not_guessed() {
        let ours = [device(0, Some("7")), device(7, Some("disk0")), device(5, Some("5")), device(6, Some("9"))];
        let chosen = |text: &str| choose(&ours, &[3], &text.parse().unwrap()).map(|found| found.id);
        let why = chosen("7").unwrap_err().to_string();
        assert_eq!(why, "7 may be any of /dev/ublkb7, /dev/ublkb0: write the path of one");
        assert_eq!((chosen("/dev/ublkb7").unwrap(), chosen("5").unwrap(), chosen("9").unwrap()), (7, 5, 6));
    }

    #[test]
    fn what_lives_is_never_deleted_and_what_is_held_by_force_alone() {
        let may = |device: &Found, force: bool| may_delete(device, force, "/run/f").map_err(|why| why.to_string());
        let free = device(3, Some("disk0"));
        assert_eq!(may(&free, false), Ok(()));
        let served = Found { state: DevState::LIVE, alive: true, ..free.clone() };
        for force in [false, true] {
            assert_eq!(
                may(&served, force).unwrap_err(),
                "/dev/ublkb3 is served by process 812: take its [[ublk]] out of /etc/poll.toml and reload (kill -HUP 812)"
            );
        }
        let library = Some(Identity::new("/usr/bin/x", "disk0", Uuid::nil(), ""));
        let why = may(&Found { identity: library, ..served.clone() }, true).unwrap_err();
        assert!(why.ends_with("process 812, a program with a device of its own: end that"), "{why}");
        // The number of its server may be another process's by now.
        assert_eq!(may(&Found { alive: true, ..free.clone() }, false), Ok(()));
        let held = Found { holders: vec!["mount /mnt".to_owned(), "process 9 (dd)".to_owned()], ..free.clone() };
        assert_eq!(
            may(&held, false).unwrap_err(),
            "/dev/ublkb3 is in use: mount /mnt, process 9 (dd): end that first, or --force deletes it and gives them errors"
        );
        assert_eq!(may(&held, true), Ok(()));
        let unknown = Found { identity: None, ..free };
        assert!(may(&unknown, false).unwrap_err().contains("/run/f, which says whose it is, is missing: --force"));
        assert_eq!(may(&unknown, true), Ok(()));
    }
}
