//! Who uses a block device: found in /sys and /proc, and by asking the kernel where it can tell.
//!
//! | who | where it is seen |
//! |---|---|
//! | mounts, in any mount namespace | `/proc/PID/mountinfo` of one process of each |
//! | swap | `/proc/swaps` |
//! | device mapper, md and the like | `/sys/block/NAME/holders` |
//! | loop devices | `/sys/block/loopN/loop/backing_file`: they hold no descriptor and claim nothing |
//! | namespaces of the kernel's NVMe target | configfs, likewise |
//! | processes | `/proc/PID/fd`; by a mapping alone, `/proc/PID/maps` |
//! | others that claim it, as the kernel's SCSI target does | [`is_claimed`], without a name |
//!
//! For control threads: it reads of every process.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// Names of udev's processes.
const UDEV: [&str; 3] = ["udev-worker", "systemd-udevd", "udevd"];
/// What reading the mappings of all processes may take.
const MAPS: Duration = Duration::from_secs(1);

/// Who was seen to have a disk open.
#[derive(Debug, Default)]
pub struct Seen {
    /// What messages call each: `mount /mnt`, `process 12 (fio)`. udev, which looks into each disk that comes or changes, is none: it
    /// never needs what it reads.
    pub users: Vec<String>,
    /// udev looks into it.
    pub udev: bool,
}

/// What was found of a device that is in use: or that nobody was found who does.
pub fn or_unseen(holders: Vec<String>) -> Vec<String> {
    if holders.is_empty() { vec!["by whom could not be seen".to_owned()] } else { holders }
}

/// Whether the disk of `node` is claimed: mounted in any mount namespace, swapped on, or part of another device. Also where that cannot
/// be found out, for want of a descriptor say: what is taken away by mistake does not come back. `device` is where the kernel shows the
/// device: a container may have no node of it.
pub fn is_claimed(node: &Path, device: &Path) -> bool {
    let opened = fs::OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(node);
    opened.is_err_and(|error| match error.raw_os_error() {
        Some(libc::ENXIO | libc::ENODEV) => false,
        Some(libc::ENOENT) => device.exists(),
        _ => true,
    })
}

/// Where to look: the machine, or what stands for it in a test.
#[derive(Clone, Debug)]
pub struct Machine {
    /// What has `proc` and `sys`.
    root: PathBuf,
    /// See [`Machine::at`].
    number: fn(&Path) -> Option<String>,
}

impl Machine {
    /// This one.
    pub fn here() -> Machine {
        Machine { root: "/".into(), number: device_number }
    }

    /// What has `proc` and `sys` below `root`; `number` is MAJOR:MINOR of a block device, and of a character device that with `char ` before
    /// it.
    pub fn at(root: &Path, number: fn(&Path) -> Option<String>) -> Machine {
        Machine { root: root.to_owned(), number }
    }

    /// Who uses any of these disks or their partitions, each as `sys/block/NAME`, or has any of these character devices open, each as its
    /// folder below `sys`. Empty if nobody is seen.
    pub fn look(&self, disks: &[String], characters: &[String]) -> Seen {
        let (mut found, mut udev) = (BTreeSet::new(), false);
        let mut numbers: BTreeSet<String> = disks.iter().flat_map(|disk| self.numbers(disk, &mut found)).collect();
        let character = |folder: &String| Some(format!("char {}", number_of(&self.root.join(folder))?));
        numbers.extend(characters.iter().filter_map(character));
        self.add_targets(&numbers, &mut found);
        let processes = self.processes();
        self.add_mounts(&processes, &numbers, &mut found);
        for (process, folder) in &processes {
            let files = entries(&folder.join("fd"));
            if files.iter().any(|link| fs::read_link(link).is_ok_and(|to| self.is_one(&to, link, &numbers))) {
                let name = name_of(process, folder);
                udev |= name.is_none();
                found.extend(name);
            }
        }
        if found.is_empty() {
            // Last, and by a thread that may be left behind: the list of a process whose fault waits for a file system that hangs
            // cannot be read until that goes on.
            let (machine, (sender, receiver)) = (self.clone(), mpsc::channel());
            std::thread::spawn(move || {
                // Nobody listens any more if it took too long.
                let _ = sender.send(machine.mappings(&processes, &numbers));
            });
            found.extend(receiver.recv_timeout(MAPS).unwrap_or_default());
        }
        Seen { users: found.into_iter().collect(), udev }
    }

    /// The numbers of a disk and its partitions. Devices that stand on them are added to `found`.
    fn numbers(&self, disk: &str, found: &mut BTreeSet<String>) -> BTreeSet<String> {
        let disk = self.root.join(disk);
        let partitions = entries(&disk).into_iter().filter(|path| path.join("partition").exists());
        let mut numbers = BTreeSet::new();
        for part in std::iter::once(disk.clone()).chain(partitions) {
            numbers.extend(number_of(&part));
            found.extend(entries(&part.join("holders")).iter().map(|holder| format!("device {}", last(holder))));
        }
        numbers
    }

    /// Whether `path`, which `at` leads to, is a device of these numbers. The name first: to ask what something is may wait for a file
    /// system that hangs.
    fn is_one(&self, path: &Path, at: &Path, numbers: &BTreeSet<String>) -> bool {
        path.starts_with("/dev") && (self.number)(at).is_some_and(|number| numbers.contains(&number))
    }

    /// What in the kernel has it open: swap, loop devices, namespaces of its NVMe target.
    fn add_targets(&self, numbers: &BTreeSet<String>, found: &mut BTreeSet<String>) {
        let is_one = |path: &str| self.is_one(Path::new(path), Path::new(path), numbers);
        for line in fs::read_to_string(self.root.join("proc/swaps")).unwrap_or_default().lines().skip(1) {
            let path = line.split_whitespace().next().unwrap_or_default();
            if is_one(path) {
                found.insert(format!("swap {path}"));
            }
        }
        for device in entries(&self.root.join("sys/block")) {
            let backing = fs::read_to_string(device.join("loop/backing_file")).unwrap_or_default();
            if is_one(backing.trim_end()) {
                found.insert(format!("loop device {}", last(&device)));
            }
        }
        for subsystem in entries(&self.root.join("sys/kernel/config/nvmet/subsystems")) {
            for namespace in entries(&subsystem.join("namespaces")) {
                let read = |file: &str| fs::read_to_string(namespace.join(file)).unwrap_or_default();
                if read("enable").trim() == "1" && is_one(read("device_path").trim_end()) {
                    found.insert(format!("namespace {} of {}", last(&namespace), last(&subsystem)));
                }
            }
        }
    }

    /// Mounts in every mount namespace that a process is in.
    fn add_mounts(&self, processes: &[(String, PathBuf)], numbers: &BTreeSet<String>, found: &mut BTreeSet<String>) {
        let own = ("self".to_owned(), self.root.join("proc/self"));
        let (mut seen, mut points) = (BTreeSet::new(), BTreeSet::new());
        for (process, folder) in std::iter::once(&own).chain(processes) {
            // Of a process that may not be asked, or has gone, there is nothing to be had but what is ours.
            let namespace = fs::read_link(folder.join("ns/mnt")).unwrap_or_default();
            if !seen.insert(namespace) {
                continue;
            }
            for line in fs::read_to_string(folder.join("mountinfo")).unwrap_or_default().lines() {
                let mut words = line.split(' ');
                let (number, point) = (words.nth(2).unwrap_or_default(), words.nth(1).unwrap_or("?"));
                // A file system of several devices has a number of its own, and the name of one of them.
                let source = words.skip_while(|word| *word != "-").nth(2).unwrap_or_default();
                let is_one = numbers.contains(number) || self.is_one(Path::new(source), Path::new(source), numbers);
                // Most namespaces are copies of another one.
                if is_one && points.insert(point.to_owned()) {
                    let whose = if process == "self" { String::new() } else { format!(" (seen by process {process})") };
                    found.insert(format!("mount {point}{whose}"));
                }
            }
        }
    }

    /// Processes that have it mapped, and nothing else of it.
    fn mappings(&self, processes: &[(String, PathBuf)], numbers: &BTreeSet<String>) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        for (process, folder) in processes {
            let maps = fs::read_to_string(folder.join("maps")).unwrap_or_default();
            // The path is the last of a line's fields, and the only one with a slash.
            let paths: BTreeSet<&Path> =
                maps.lines().filter_map(|line| Some(Path::new(&line[line.find('/')?..]))).collect();
            if paths.iter().any(|path| self.is_one(path, path, numbers)) {
                found.extend(name_of(process, folder));
            }
        }
        found
    }

    /// Numbers of all processes, and their places in /proc.
    fn processes(&self) -> Vec<(String, PathBuf)> {
        let all = entries(&self.root.join("proc")).into_iter().map(|path| (last(&path), path));
        all.filter(|(name, _)| name.bytes().all(|byte| byte.is_ascii_digit())).collect()
    }
}

/// What messages call a process; `None` for those that are no users.
fn name_of(process: &str, folder: &Path) -> Option<String> {
    let command = fs::read_to_string(folder.join("comm")).unwrap_or_default();
    let command = command.trim().trim_matches(['(', ')']);
    (!UDEV.contains(&command)).then(|| format!("process {process} ({command})"))
}

/// What is in a directory, if there is one.
fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

/// The last name of a path.
fn last(path: &Path) -> String {
    path.file_name().unwrap_or_default().display().to_string()
}

/// MAJOR:MINOR of a device that has a folder in /sys.
fn number_of(folder: &Path) -> Option<String> {
    Some(fs::read_to_string(folder.join("dev")).ok()?.trim().to_owned())
}

/// See [`Machine::at`].
fn device_number(path: &Path) -> Option<String> {
    let about = fs::metadata(path).ok()?;
    let (kind, number) = (about.file_type(), about.rdev());
    let number = || format!("{}:{}", libc::major(number), libc::minor(number));
    if kind.is_block_device() { Some(number()) } else { kind.is_char_device().then(|| format!("char {}", number())) }
}
#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A machine in which /dev/ublkb3 is 259:3 with a partition 259:4, and a process has the number 12.
    struct Fake(tempfile::TempDir);

    impl Fake {
        fn new() -> Fake {
            let fake = Fake(tempfile::tempdir().unwrap());
            fake.write("sys/block/ublkb3/dev", "259:3\n");
            fake.write("sys/block/ublkb3/ublkb3p1/dev", "259:4\n");
            fake.write("sys/block/ublkb3/ublkb3p1/partition", "1\n");
            fake.write("sys/class/nvme/nvme0/dev", "259:3\n");
            fake.write("proc/12/comm", "fio\n");
            fake.link("proc/self/ns/mnt", "mnt:[1]");
            fake.link("proc/12/ns/mnt", "mnt:[1]");
            fake
        }

        fn write(&self, path: &str, text: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        fn link(&self, path: &str, to: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(to, path).unwrap();
        }

        fn holders(&self) -> Vec<String> {
            self.look().users
        }

        fn look(&self) -> Seen {
            let number = |path: &Path| {
                let name = fs::read_link(path).unwrap_or_else(|_| path.to_path_buf());
                match name.to_str()? {
                    "/dev/ublkb3" | "/dev/disk/by-id/reactor-disk0" => Some("259:3".to_owned()),
                    "/dev/ublkb3p1" => Some("259:4".to_owned()),
                    "/dev/nvme0" => Some("char 259:3".to_owned()),
                    _ => Some("8:0".to_owned()),
                }
            };
            let machine = Machine::at(self.0.path(), number);
            let (disks, characters) = (["sys/block/ublkb3".to_owned()], ["sys/class/nvme/nvme0".to_owned()]);
            if self.0.path().join("characters").exists() {
                machine.look(&[], &characters)
            } else {
                machine.look(&disks, &[])
            }
        }
    }

    #[test]
    fn a_node_that_cannot_be_asked_counts_as_claimed_and_none_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let (node, none) = (folder.path().join("node"), folder.path().join("none"));
        assert!(!is_claimed(&node, &none));
        assert!(is_claimed(&node, folder.path()), "a device without a node here");
        fs::write(&node, "").unwrap();
        assert!(!is_claimed(&node, folder.path()));
        // The name of a file is no folder: neither free nor gone.
        assert!(is_claimed(&node.join("below"), &none));
    }

    #[test]
    fn nobody_is_seen_where_nobody_is() {
        let fake = Fake::new();
        fake.link("proc/12/fd/3", "/dev/sda");
        fake.write("proc/swaps", "Filename Type\n/dev/sda2 partition 1 0 -2\n");
        fake.write("proc/self/mountinfo", "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n");
        fake.write("proc/12/maps", "7f00-7f01 rw-s 00000000 00:05 99 /dev/zero\n7f02-7f03 rw-p 00000000 00:00 0\n");
        assert!(fake.holders().is_empty(), "{:?}", fake.holders());
    }

    #[test]
    fn what_the_kernel_stands_on_it_is_named() {
        let fake = Fake::new();
        fake.write("sys/block/ublkb3/ublkb3p1/holders/dm-0", "");
        fake.write("proc/swaps", "Filename Type\n/dev/ublkb3p1 partition 1 0 -2\n");
        fake.write("sys/block/loop7/loop/backing_file", "/dev/ublkb3\n");
        fake.write("sys/block/loop8/loop/backing_file", "/home/disk.img\n");
        let namespaces = "sys/kernel/config/nvmet/subsystems/nqn.2026-11.x:y/namespaces";
        fake.write(&format!("{namespaces}/1/device_path"), "/dev/disk/by-id/reactor-disk0\n");
        fake.write(&format!("{namespaces}/1/enable"), "1\n");
        fake.write(&format!("{namespaces}/2/device_path"), "/dev/ublkb3\n");
        fake.write(&format!("{namespaces}/2/enable"), "0\n");
        assert_eq!(
            fake.holders(),
            ["device dm-0", "loop device loop7", "namespace 1 of nqn.2026-11.x:y", "swap /dev/ublkb3p1"]
        );
    }

    #[test]
    fn mounts_are_seen_in_every_namespace_once() {
        let fake = Fake::new();
        let line = |number: &str, point: &str, source: &str| {
            format!("22 1 {number} / {point} rw,relatime shared:1 - ext4 {source} rw\n")
        };
        fake.write("proc/self/mountinfo", &line("259:4", "/mnt/a", "/dev/ublkb3p1"));
        // The same namespace is not read again.
        fake.write("proc/12/mountinfo", &line("259:3", "/wrong", "/dev/ublkb3"));
        fake.link("proc/13/ns/mnt", "mnt:[2]");
        let again = line("259:4", "/mnt/a", "/dev/ublkb3p1");
        fake.write("proc/13/mountinfo", &(again + &line("0:55", "/mnt/btrfs", "/dev/ublkb3")));
        assert_eq!(fake.holders(), ["mount /mnt/a", "mount /mnt/btrfs (seen by process 13)"]);
    }

    #[test]
    fn processes_are_seen_by_descriptor_or_mapping_and_udev_is_none() {
        let fake = Fake::new();
        fake.write("proc/12/maps", "7f00-7f01 rw-s 00000000 00:05 99                 /dev/ublkb3\n");
        assert_eq!(fake.holders(), ["process 12 (fio)"]);
        fake.write("proc/13/comm", "(udev-worker)\n");
        assert!(!fake.look().udev);
        fake.link("proc/13/fd/7", "/dev/ublkb3");
        assert_eq!(fake.holders(), ["process 12 (fio)"]);
        assert!(fake.look().udev);
        fake.write("proc/14/comm", "dd\n");
        fake.link("proc/14/fd/0", "/dev/ublkb3p1");
        assert_eq!(fake.holders(), ["process 14 (dd)"], "mappings are looked at where nobody else is seen");
    }

    #[test]
    fn character_devices_are_told_from_disks_of_the_same_number() {
        let fake = Fake::new();
        fake.link("proc/12/fd/3", "/dev/nvme0");
        assert!(fake.holders().is_empty(), "not the disk");
        fake.write("characters", "");
        assert_eq!(fake.holders(), ["process 12 (fio)"]);
        fs::remove_file(fake.0.path().join("proc/12/fd/3")).unwrap();
        fake.link("proc/12/fd/3", "/dev/ublkb3");
        assert!(fake.holders().is_empty(), "not the character device");
    }

    #[test]
    fn numbers_of_this_machine_tell_kinds_apart() {
        assert_eq!(device_number(Path::new("/dev/null")), Some("char 1:3".to_owned()));
        assert_eq!(device_number(Path::new("/")), None);
    }
}
