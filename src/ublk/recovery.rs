//! Whose a device is: the mark that the kernel keeps with it, and the state file that names it to udev.
//!
//! A device that outlives its server is found again by its mark, a number that the kernel stores for its creator: a magic number,
//! a hash of the server's configuration file and one of the volume's name. Devices with another mark are never touched.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The upper 16 bits of the mark of every device of ours.
const MAGIC: u64 = 0x5243;

/// See the module's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(u64);

impl Mark {
    /// Of the volume that `volume` names, of the server that `instance` names.
    pub fn new(instance: &str, volume: &str) -> Mark {
        Mark(MAGIC << 48 | hash24(instance) << 24 | hash24(volume))
    }

    /// As the kernel keeps it.
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// From what the kernel kept; `None` if it is no mark of ours.
    pub fn from_bits(bits: u64) -> Option<Mark> {
        (bits >> 48 == MAGIC).then_some(Mark(bits))
    }

    /// Whether both are of one server.
    pub fn is_of_same_server(self, other: Mark) -> bool {
        self.0 >> 24 == other.0 >> 24
    }
}

/// FNV-1a, folded to 24 bits.
fn hash24(text: &str) -> u64 {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    (hash ^ hash >> 24 ^ hash >> 48) & 0xFF_FFFF
}

/// The directory of state files, one for each device: ublkbN holds the name of its volume, for the udev rule that makes
/// /dev/disk/by-id/reactor-NAME.
#[derive(Clone, Debug)]
pub struct StateDirectory(PathBuf);

impl StateDirectory {
    /// At `path`, which need not exist.
    pub fn new(path: PathBuf) -> StateDirectory {
        StateDirectory(path)
    }

    fn file(&self, id: u32) -> PathBuf {
        self.0.join(format!("ublkb{id}"))
    }

    /// Writes the state of a device, in one step: udev may read it at any time.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, id: u32, name: &str, instance: &str) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        let (file, fresh) = (self.file(id), self.0.join(format!(".ublkb{id}")));
        fs::write(&fresh, format!("REACTOR_NAME={name}\nREACTOR_CONFIG={instance}\n"))?;
        fs::rename(fresh, file)
    }

    /// Removes it; it may be gone.
    ///
    /// # Errors
    /// What the file system says otherwise.
    pub fn remove(&self, id: u32) -> io::Result<()> {
        match fs::remove_file(self.file(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// Names of udev's processes.
const UDEV: [&str; 3] = ["udev-worker", "systemd-udevd", "udevd"];

/// Who has /dev/ublkbN in use: mounts, swap, devices that stand on it, processes. Empty if nobody is seen. udev, which looks into each
/// disk that comes or changes, is no user: it never needs what it reads.
pub fn holders(id: u32) -> Vec<String> {
    let disk = PathBuf::from(format!("/sys/block/ublkb{id}"));
    let mut numbers = BTreeSet::new();
    let mut found = BTreeSet::new();
    let partitions = fs::read_dir(&disk).into_iter().flatten().flatten().map(|entry| entry.path());
    for part in std::iter::once(disk.clone()).chain(partitions.filter(|path| path.join("partition").exists())) {
        if let Ok(number) = fs::read_to_string(part.join("dev")) {
            numbers.insert(number.trim().to_owned());
        }
        for holder in fs::read_dir(part.join("holders")).into_iter().flatten().flatten() {
            found.insert(format!("device {}", holder.file_name().display()));
        }
    }
    for line in fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().lines() {
        let mut words = line.split(' ');
        if words.nth(2).is_some_and(|number| numbers.contains(number)) {
            found.insert(format!("mount {}", words.nth(1).unwrap_or("?")));
        }
    }
    for line in fs::read_to_string("/proc/swaps").unwrap_or_default().lines().skip(1) {
        let path = line.split_whitespace().next().unwrap_or_default();
        if device_number(Path::new(path)).is_some_and(|number| numbers.contains(&number)) {
            found.insert(format!("swap {path}"));
        }
    }
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = process.file_name().display().to_string();
        if !name.bytes().all(|byte| byte.is_ascii_digit()) {
            continue;
        }
        let files = fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        // The name first: to ask what a descriptor is may wait for a file system that hangs.
        let names_it = |link: &Path| fs::read_link(link).is_ok_and(|to| to.starts_with("/dev"));
        if files
            .map(|file| file.path())
            .filter(|link| names_it(link))
            .any(|link| device_number(&link).is_some_and(|number| numbers.contains(&number)))
        {
            let command = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            let command = command.trim().trim_matches(['(', ')']);
            if !UDEV.contains(&command) {
                found.insert(format!("process {name} ({command})"));
            }
        }
    }
    found.into_iter().collect()
}

/// Whether /dev/ublkbN is claimed: mounted in any mount namespace, swapped on, or part of another device.
pub fn is_claimed(id: u32) -> bool {
    let opened = fs::OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(format!("/dev/ublkb{id}"));
    opened.is_err_and(|error| error.raw_os_error() == Some(libc::EBUSY))
}

/// Whether there is a process of that number that has not ended.
pub fn is_alive(pid: i32) -> bool {
    let about = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the command's name, which may hold anything.
    let state = about.rsplit_once(") ").and_then(|(_, rest)| rest.bytes().next());
    pid > 0 && state.is_some_and(|state| state != b'Z' && state != b'X')
}

/// MAJOR:MINOR of a block device.
fn device_number(path: &Path) -> Option<String> {
    let about = fs::metadata(path).ok().filter(|about| about.file_type().is_block_device())?;
    let number = about.rdev();
    Some(format!("{}:{}", libc::major(number), libc::minor(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_tells_server_and_volume_apart_from_others_and_from_strangers() {
        let mark = Mark::new("/etc/reactor/poll.toml", "ram0");
        assert_eq!(Mark::from_bits(mark.to_bits()), Some(mark));
        assert_eq!(mark, Mark::new("/etc/reactor/poll.toml", "ram0"));
        let sibling = Mark::new("/etc/reactor/poll.toml", "disk0");
        assert!(mark != sibling && mark.is_of_same_server(sibling));
        let stranger = Mark::new("/etc/reactor/other.toml", "ram0");
        assert!(mark != stranger && !mark.is_of_same_server(stranger));
        assert_eq!(Mark::from_bits(0), None);
        assert_eq!(Mark::from_bits(mark.to_bits() ^ 1 << 63), None);
    }

    #[test]
    fn a_state_file_names_the_volume_and_goes_with_the_device() {
        let place = tempfile::tempdir().unwrap();
        let state = StateDirectory::new(place.path().join("a/b"));
        state.write(7, "ram0", "/etc/poll.toml").unwrap();
        let text = fs::read_to_string(place.path().join("a/b/ublkb7")).unwrap();
        assert_eq!(text, "REACTOR_NAME=ram0\nREACTOR_CONFIG=/etc/poll.toml\n");
        state.remove(7).unwrap();
        state.remove(7).unwrap();
        assert!(!place.path().join("a/b/ublkb7").exists());
    }
}
