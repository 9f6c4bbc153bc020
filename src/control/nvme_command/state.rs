//! What a server says of the NVMe disks that it holds, in a file of each: `/run/reactor/nvme/0000:01:00.0`.
//!
//! A file is believed only of a process that has the disk's IOMMU group open: one that was killed leaves its files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::sys::pci::{Address, Pci};

/// Where the files are, below the root.
const FOLDER: &str = "run/reactor/nvme";

/// A disk that a server holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owned {
    /// The process.
    pub pid: u32,
    /// Its configuration file.
    pub config: String,
    /// Its control socket, if it has one.
    pub socket: Option<PathBuf>,
    /// Serial number.
    pub serial: String,
    /// Model number.
    pub model: String,
    /// Firmware revision.
    pub firmware: String,
    /// Active namespaces.
    pub namespaces: Vec<OwnedNamespace>,
}

/// A namespace of such a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnedNamespace {
    /// Namespace identifier.
    pub nsid: u32,
    /// Size in bytes; `None` of one that cannot be used.
    pub bytes: Option<u64>,
    /// Bytes of a block.
    pub block_size: Option<u32>,
    /// It has zones.
    pub zoned: bool,
    /// The volume that it is.
    pub volume: Option<String>,
}

/// What the server of a disk says of it, if it holds it still. `Err` is a server that may not be looked at: a user sees the files of
/// another's processes only as root.
pub fn owner(pci: &Pci, address: Address, group: u32) -> Option<Result<Owned, Owned>> {
    let text = fs::read_to_string(pci.path(FOLDER).join(address.to_string())).ok()?;
    let owned: Owned = serde_json::from_str(&text).ok()?;
    match pci.holds(owned.pid, group) {
        Some(true) => Some(Ok(owned)),
        Some(false) => None,
        None => pci.path("proc").join(owned.pid.to_string()).exists().then_some(Err(owned)),
    }
}

/// The files of this process.
#[derive(Debug)]
pub struct Files {
    folder: PathBuf,
    written: Vec<(Address, Owned)>,
    /// That they cannot be written is said once.
    failed: bool,
}

impl Files {
    /// None yet.
    pub fn new(pci: &Pci) -> Files {
        Files { folder: pci.path(FOLDER), written: Vec::new(), failed: false }
    }

    /// Says that these are the disks that this process holds, in place of what was said before.
    pub fn publish(&mut self, disks: Vec<(Address, Owned)>) {
        for (address, _) in &self.written {
            if !disks.iter().any(|(held, _)| held == address) {
                self.remove(*address);
            }
        }
        for disk in &disks {
            if !self.written.contains(disk)
                && let Err(error) = self.write(disk)
                && !std::mem::replace(&mut self.failed, true)
            {
                let folder = self.folder.display();
                tracing::warn!("reactor nvme will not find this process: nothing can be written to {folder}: {error}");
            }
        }
        self.written = disks;
    }

    fn path(&self, address: Address) -> PathBuf {
        self.folder.join(address.to_string())
    }

    /// Whole or not at all, for who reads it meanwhile.
    fn write(&self, (address, owned): &(Address, Owned)) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let (path, new) = (self.path(*address), self.folder.join(format!("{address}.new")));
        fs::write(&new, serde_json::to_string(owned)?)?;
        fs::rename(new, path)
    }

    fn remove(&self, address: Address) {
        match fs::remove_file(self.path(address)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!("{} cannot be removed: {error}", self.path(address).display());
            }
            _ => {}
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        self.publish(Vec::new());
    }
}

/// The absolute path of a file that need not be there.
pub fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
#[expect(missing_docs, reason = "of tests alone")]
pub mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A disk of process `pid` with one volume.
    pub fn owned(pid: u32) -> Owned {
        Owned {
            pid,
            config: "/etc/poll.toml".to_owned(),
            socket: Some("/run/reactor/poll.sock".into()),
            serial: "S2".to_owned(),
            model: "Fast".to_owned(),
            firmware: "2.0".to_owned(),
            namespaces: vec![
                OwnedNamespace {
                    nsid: 1,
                    bytes: Some(1 << 30),
                    block_size: Some(4096),
                    zoned: false,
                    volume: Some("disk0".to_owned()),
                },
                OwnedNamespace { nsid: 2, bytes: None, block_size: None, zoned: false, volume: None },
            ],
        }
    }

    #[test]
    fn a_file_is_believed_of_who_has_the_group_open() {
        let folder = tempfile::tempdir().unwrap();
        let pci = Pci::at(folder.path(), |_, _| Ok(()));
        let address: Address = "0000:02:00.0".parse().unwrap();
        let mut files = Files::new(&pci);
        assert_eq!(owner(&pci, address, 13), None);
        files.publish(vec![(address, owned(812))]);
        assert_eq!(owner(&pci, address, 13), None, "there is no such process");
        let proc = folder.path().join("proc/812");
        fs::create_dir_all(&proc).unwrap();
        assert_eq!(owner(&pci, address, 13), Some(Err(owned(812))), "it may not be looked at");
        fs::create_dir_all(proc.join("fd")).unwrap();
        assert_eq!(owner(&pci, address, 13), None, "it holds nothing");
        symlink("/dev/vfio/13", proc.join("fd/7")).unwrap();
        assert_eq!(owner(&pci, address, 13), Some(Ok(owned(812))));
        assert_eq!(owner(&pci, address, 14), None, "another group");
        fs::write(folder.path().join(FOLDER).join("0000:02:00.0"), "{").unwrap();
        assert_eq!(owner(&pci, address, 13), None, "no such words");
    }

    #[test]
    fn files_come_and_go_with_disks() {
        let folder = tempfile::tempdir().unwrap();
        let pci = Pci::at(folder.path(), |_, _| Ok(()));
        let (one, two): (Address, Address) = ("0000:01:00.0".parse().unwrap(), "0000:02:00.0".parse().unwrap());
        let there = || {
            let mut names: Vec<_> = fs::read_dir(folder.path().join(FOLDER))
                .into_iter()
                .flatten()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        };
        let mut files = Files::new(&pci);
        files.publish(Vec::new());
        assert!(!folder.path().join("run").exists(), "who has no disk writes nothing");
        files.publish(vec![(one, owned(1)), (two, owned(1))]);
        assert_eq!(there(), ["0000:01:00.0", "0000:02:00.0"]);
        files.publish(vec![(two, owned(1))]);
        assert_eq!(there(), ["0000:02:00.0"]);
        drop(files);
        assert!(there().is_empty());
    }
}
