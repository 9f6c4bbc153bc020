//! Whose a device is: its identity, in a state file, and the mark that the kernel keeps with it.
//!
//! A device that outlives its server is found again by its state file, which has the whole identity: the server's configuration file,
//! the volume's name, its uuid and what its bytes are kept in. Its size is not part of it: the kernel has that, and a volume may grow.
//! The mark is a number that the kernel stores for the device's creator: a magic number and a hash of the identity. A file counts if it
//! agrees with the mark; one that a device of the same number has left behind does not.
//!
//! | mark, state file | the device is | what becomes of it at a start |
//! |---|---|---|
//! | the magic number is another's | not ours | never touched |
//! | the file says the very identity of a volume | that volume's | goes on with it |
//! | the file says a volume's name, of the same server, and another uuid or backing | that of another volume | deleted if nobody uses it; else not touched, and the start fails and names both |
//! | the file says another volume of the same server | one that is not configured any more | deleted if nobody uses it; else told |
//! | the file says another server | another server's | never touched |
//! | no file, but the mark of a volume | that volume's: 48 bits of hash do not agree by chance | goes on with it |
//! | no file, and no such mark | nobody knows whose | told; `reactor ublk delete --force` deletes it |
//!
//! Where there is a file, it decides: two volumes whose marks are the same stay apart.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use uuid::Uuid;

use crate::util::fnv1a;

/// The upper 16 bits of the mark of every device of ours.
const MAGIC: u64 = 0x5243;

/// See the module's head. No part has a control character: each is a line of the state file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    server: String,
    volume: String,
    uuid: Uuid,
    backing: String,
}

impl Identity {
    /// Of the volume called `volume`, whose bytes are kept in `backing`, at the server that `server` names.
    pub fn new(server: &str, volume: &str, uuid: Uuid, backing: &str) -> Identity {
        Identity { server: one_line(server), volume: one_line(volume), uuid, backing: one_line(backing) }
    }

    /// What names the server: the path of its configuration.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The volume's name.
    pub fn volume(&self) -> &str {
        &self.volume
    }

    /// The volume's uuid.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// What keeps its bytes, empty if its server does not say.
    pub fn backing(&self) -> &str {
        &self.backing
    }

    /// The lines of a state file. The first two are for udev.
    fn to_text(&self) -> String {
        let Identity { server, volume, uuid, backing } = self;
        format!("REACTOR_NAME={volume}\nREACTOR_CONFIG={server}\nREACTOR_UUID={uuid}\nREACTOR_BACKING={backing}\n")
    }

    /// From the text of a state file; `None` if a part is missing.
    fn from_text(text: &str) -> Option<Identity> {
        let part = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        Some(Identity {
            server: part("REACTOR_CONFIG")?.to_owned(),
            volume: part("REACTOR_NAME")?.to_owned(),
            uuid: part("REACTOR_UUID")?.parse().ok()?,
            backing: part("REACTOR_BACKING")?.to_owned(),
        })
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "uuid {}", self.uuid)?;
        if self.backing.is_empty() { Ok(()) } else { write!(f, " on {}", self.backing) }
    }
}

/// Without control characters; different texts stay different.
fn one_line(text: &str) -> String {
    let mut line = String::new();
    for character in text.chars() {
        if character.is_control() || character == '\\' {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// See the module's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u64);

impl Mark {
    /// Of a device.
    pub fn new(identity: &Identity) -> Mark {
        let hash = fnv1a(identity.to_text().as_bytes());
        Mark(MAGIC << 48 | (hash ^ hash >> 48) & 0xFFFF_FFFF_FFFF)
    }

    /// As the kernel keeps it.
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// From what the kernel kept; `None` if it is no mark of ours.
    pub fn from_bits(bits: u64) -> Option<Mark> {
        (bits >> 48 == MAGIC).then_some(Mark(bits))
    }
}

/// What a device of ours is to a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kin {
    /// Its own.
    Same,
    /// That of another volume which had the same name at the same server.
    Replaced(Identity),
    /// Another's, or it is not known whose.
    Other,
}

/// What a device is to the volume of identity `wanted`; `told` is what its state file says.
pub fn kin(mark: Mark, told: Option<Identity>, wanted: &Identity) -> Kin {
    match told {
        Some(told) if told == *wanted => Kin::Same,
        Some(told) if told.server == wanted.server && told.volume == wanted.volume => Kin::Replaced(told),
        Some(_) => Kin::Other,
        None if mark == Mark::new(wanted) => Kin::Same,
        None => Kin::Other,
    }
}

/// The directory of state files, ublkbN for each device. The udev rule that makes /dev/disk/by-id/reactor-NAME reads them too.
#[derive(Clone, Debug)]
pub struct StateDirectory(PathBuf);

impl StateDirectory {
    /// At `path`, which need not exist.
    pub fn new(path: PathBuf) -> StateDirectory {
        StateDirectory(path)
    }

    /// The file of a device.
    pub fn file(&self, id: u32) -> PathBuf {
        self.0.join(format!("ublkb{id}"))
    }

    /// Writes the state of a device, in one step: udev may read it at any time.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, id: u32, identity: &Identity) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        let (file, fresh) = (self.file(id), self.0.join(format!(".ublkb{id}")));
        fs::write(&fresh, identity.to_text())?;
        fs::rename(fresh, file)
    }

    /// Whose the device with this mark is, if there is a file that says so and agrees with the mark.
    pub fn of(&self, id: u32, mark: Mark) -> Option<Identity> {
        let text = fs::read_to_string(self.file(id)).ok()?;
        Identity::from_text(&text).filter(|identity| Mark::new(identity) == mark)
    }

    /// Removes that of a device that is gone and had this mark. Another server may have got the number since, and its file stays.
    pub fn forget(&self, id: u32, mark: Mark) {
        let told = fs::read_to_string(self.file(id)).ok().and_then(|text| Identity::from_text(&text));
        if told.is_some_and(|identity| Mark::new(&identity) != mark) {
            return;
        }
        match fs::remove_file(self.file(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("{}, of a device that is gone, stays: {error}", self.file(id).display());
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(server: &str, volume: &str, uuid: u128, backing: &str) -> Identity {
        Identity::new(server, volume, Uuid::from_u128(uuid), backing)
    }

    fn disk0() -> Identity {
        identity("/etc/poll.toml", "disk0", 7, "file /srv/disk0.img")
    }

    #[test]
    fn a_mark_differs_with_every_part_of_the_identity_and_from_strangers() {
        let mark = Mark::new(&disk0());
        assert_eq!(Mark::from_bits(mark.to_bits()), Some(mark));
        assert_eq!(mark, Mark::new(&disk0()));
        for other in others() {
            assert_ne!(mark, Mark::new(&other), "{other:?}");
        }
        assert_eq!(Mark::from_bits(0), None);
        assert_eq!(Mark::from_bits(mark.to_bits() ^ 1 << 63), None);
    }

    /// Each differs from `disk0` in one part; the first two are of another volume or server.
    fn others() -> [Identity; 4] {
        [
            identity("/etc/other.toml", "disk0", 7, "file /srv/disk0.img"),
            identity("/etc/poll.toml", "disk1", 7, "file /srv/disk0.img"),
            identity("/etc/poll.toml", "disk0", 8, "file /srv/disk0.img"),
            identity("/etc/poll.toml", "disk0", 7, "file /srv/disk1.img"),
        ]
    }

    #[test]
    fn a_state_file_decides_also_where_marks_collide() {
        let (wanted, mark) = (disk0(), Mark::new(&disk0()));
        assert_eq!(kin(mark, Some(disk0()), &wanted), Kin::Same);
        let [server, volume, uuid, backing] = others();
        for other in [server, volume] {
            assert_eq!(kin(mark, Some(other.clone()), &wanted), Kin::Other, "{other:?}");
        }
        for other in [uuid, backing] {
            assert_eq!(kin(mark, Some(other.clone()), &wanted), Kin::Replaced(other));
        }
    }

    #[test]
    fn without_a_state_file_the_whole_mark_decides() {
        assert_eq!(kin(Mark::new(&disk0()), None, &disk0()), Kin::Same);
        for other in others() {
            assert_eq!(kin(Mark::new(&other), None, &disk0()), Kin::Other, "{other:?}");
        }
    }

    #[test]
    fn a_state_file_gives_back_the_identity_and_goes_with_the_device() {
        let place = tempfile::tempdir().unwrap();
        let state = StateDirectory::new(place.path().join("a/b"));
        let mark = Mark::new(&disk0());
        assert_eq!(state.of(7, mark), None);
        state.write(7, &disk0()).unwrap();
        let text = fs::read_to_string(place.path().join("a/b/ublkb7")).unwrap();
        assert_eq!(
            text,
            "REACTOR_NAME=disk0\nREACTOR_CONFIG=/etc/poll.toml\nREACTOR_UUID=00000000-0000-0000-0000-000000000007\n\
             REACTOR_BACKING=file /srv/disk0.img\n"
        );
        assert_eq!(state.of(7, mark), Some(disk0()));
        state.forget(7, Mark::new(&others()[0]));
        assert_eq!(state.of(7, mark), Some(disk0()), "the number is another's by now");
        state.forget(7, mark);
        state.forget(7, mark);
        assert!(!place.path().join("a/b/ublkb7").exists());
    }

    #[test]
    fn a_file_that_does_not_agree_with_the_mark_says_nothing() {
        let place = tempfile::tempdir().unwrap();
        let state = StateDirectory::new(place.path().to_path_buf());
        state.write(7, &others()[0]).unwrap();
        assert_eq!(state.of(7, Mark::new(&disk0())), None, "left behind by another device of that number");
        for text in ["", "REACTOR_NAME=disk0\nREACTOR_CONFIG=/etc/poll.toml\n", "REACTOR_UUID=7\n"] {
            fs::write(state.file(7), text).unwrap();
            assert_eq!(state.of(7, Mark::new(&disk0())), None, "{text:?}");
        }
    }

    #[test]
    fn no_name_breaks_a_line() {
        let place = tempfile::tempdir().unwrap();
        let state = StateDirectory::new(place.path().to_path_buf());
        let odd = identity("/etc/a\nREACTOR_NAME=x", "disk0", 7, "file /srv/a b=\"c\"");
        state.write(7, &odd).unwrap();
        assert_eq!(state.of(7, Mark::new(&odd)), Some(odd));
        assert_ne!(one_line("a\nb"), one_line("a\\nb"));
    }
}
