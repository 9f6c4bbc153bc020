//! The namespaces of an NVMe controller that the kernel's driver has: their names below `/dev`, and what sysfs says of them.
//!
//! ```text
//!   /sys/class/nvme/nvme0/nvme0n1      a namespace that one controller leads to: /dev/nvme0n1 and /dev/ng0n1
//!   /sys/class/nvme/nvme2/nvme1c2n3    the path of controller 2 to a namespace of subsystem 1: its head is /dev/nvme1n3 and
//!                                      /dev/ng1n3, the path itself has no device
//! ```
//! For control threads: it reads files.

use std::fs;
use std::path::{Path, PathBuf};

use super::pci::{Pci, disk_of, names};

/// Bytes of a sector of sysfs, whatever the block size is.
const SECTOR: u64 = 512;

/// A namespace that the kernel's driver has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Namespace identifier.
    pub nsid: u32,
    /// Name of its block device, as `nvme0n1`.
    pub block: String,
    /// Name of its character device, as `ng0n1`. Linux before 5.13 has none.
    pub generic: String,
    /// Bytes.
    pub size: u64,
    /// Bytes of a block.
    pub block_size: u32,
    /// Bytes that the disk writes without a read.
    pub physical_block_size: u32,
    /// It has zones.
    pub is_zoned: bool,
    /// Largest command in bytes that the kernel passes on, whatever memory its data lies in.
    pub transfer_max: u64,
    /// UUID or NGUID, where it has one.
    pub uuid: Option<[u8; 16]>,
    /// EUI-64, where it has one.
    pub eui64: Option<[u8; 8]>,
}

/// The namespaces that controller `nvmeX` leads to, by identifier.
pub fn namespaces(pci: &Pci, controller: &str) -> Vec<Node> {
    let folder = pci.path("sys/class/nvme").join(controller);
    let mut found: Vec<Node> = names(&folder)
        .iter()
        .filter_map(|name| {
            let block = disk_of(name)?;
            let nsid = number(&folder.join(name), "nsid")?;
            node(pci, u32::try_from(nsid).ok()?, block)
        })
        .collect();
    found.sort_by_key(|node| node.nsid);
    found
}

/// A namespace to which controllers that the kernel's driver has lead too, as they are of the NVM subsystem with this NQN and serial number: its
/// block device, and the first of these controllers.
pub fn shared(pci: &Pci, (nqn, serial): (&str, &str), nsid: u32) -> Option<(Node, String)> {
    let class = pci.path("sys/class/nvme");
    let says = |name: &str, file: &str, text: &str| {
        fs::read_to_string(class.join(name).join(file)).is_ok_and(|found| found.trim() == text)
    };
    let mut controllers =
        names(&class).into_iter().filter(|name| says(name, "subsysnqn", nqn) && says(name, "serial", serial));
    controllers.find_map(|name| Some((namespaces(pci, &name).into_iter().find(|node| node.nsid == nsid)?, name)))
}

fn node(pci: &Pci, nsid: u32, block: String) -> Option<Node> {
    let folder = pci.path("sys/block").join(&block);
    let queue = folder.join("queue");
    let block_size = u32::try_from(number(&queue, "logical_block_size")?).ok()?;
    let text = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
    let transfer_max = number(&queue, "max_hw_sectors_kb").map_or(u64::MAX, |kib| kib * 1024);
    // Each page of the data may be a segment of its own, and one more if it begins within a page.
    let page = 4096;
    let by_segments = number(&queue, "max_segments").map_or(u64::MAX, |most| most.saturating_sub(1).max(1) * page);
    Some(Node {
        nsid,
        generic: block.replacen("nvme", "ng", 1),
        size: number(&folder, "size")? * SECTOR,
        block_size,
        physical_block_size: number(&queue, "physical_block_size")
            .and_then(|size| u32::try_from(size).ok())
            .filter(|size| size.is_power_of_two() && *size >= block_size)
            .unwrap_or(block_size),
        is_zoned: fs::read_to_string(queue.join("zoned")).is_ok_and(|model| model.trim() != "none"),
        transfer_max: transfer_max.min(by_segments),
        // The kernel shows the NGUID as the UUID where there is none.
        uuid: bytes(&text("uuid")).or_else(|| bytes(&text("nguid"))).filter(|id: &[u8; 16]| id != &[0_u8; 16]),
        eui64: bytes(&text("eui")).filter(|id: &[u8; 8]| id != &[0_u8; 8]),
        block,
    })
}

/// What sysfs writes as hexadecimal digits with or without dashes or blanks between them.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits: Vec<char> = text.trim().chars().filter(|one| !matches!(one, '-' | ' ')).collect();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = (pair[0].to_digit(16)? << 4 | pair[1].to_digit(16)?) as u8;
    }
    Some(bytes)
}

fn number(folder: &Path, file: &str) -> Option<u64> {
    fs::read_to_string(folder.join(file)).ok()?.trim().parse().ok()
}

/// `/dev/NAME` of the machine.
pub fn device(pci: &Pci, name: &str) -> PathBuf {
    pci.path("dev").join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tree of sysfs in a directory of its own, which goes with it.
    struct Tree(PathBuf);

    impl Tree {
        fn new(name: &str) -> Tree {
            let root = std::env::temp_dir().join(format!("reactor-nodes-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&root);
            Tree(root)
        }

        fn put(&self, path: &str, text: &str) {
            let path = self.0.join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            fs::write(path, text).expect("a file");
        }

        fn disk(&self, name: &str, block_size: u32) {
            self.put(&format!("sys/block/{name}/size"), "131072\n");
            self.put(&format!("sys/block/{name}/dev"), "259:3\n");
            for (file, value) in [
                ("logical_block_size", block_size.to_string()),
                ("physical_block_size", "4096".to_owned()),
                ("max_hw_sectors_kb", "512".to_owned()),
                ("max_segments", "65".to_owned()),
                ("zoned", "none".to_owned()),
            ] {
                self.put(&format!("sys/block/{name}/queue/{file}"), &format!("{value}\n"));
            }
        }

        fn pci(&self) -> Pci {
            Pci::at(&self.0, |_, _| Ok(()))
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_namespace_of_one_controller() {
        let tree = Tree::new("one");
        tree.disk("nvme0n1", 512);
        tree.put("sys/block/nvme0n1/uuid", "00112233-4455-6677-8899-aabbccddeeff\n");
        tree.put("sys/block/nvme0n1/eui", "00 11 22 33 44 55 66 77\n");
        tree.put("sys/class/nvme/nvme0/nvme0n1/nsid", "1\n");
        tree.put("sys/class/nvme/nvme0/model", "QEMU NVMe Ctrl\n");
        let found = namespaces(&tree.pci(), "nvme0");
        let id = [0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff];
        let expected = Node {
            nsid: 1,
            block: "nvme0n1".to_owned(),
            generic: "ng0n1".to_owned(),
            size: 64 << 20,
            block_size: 512,
            physical_block_size: 4096,
            is_zoned: false,
            transfer_max: 64 * 4096,
            uuid: Some(id),
            eui64: Some([0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77]),
        };
        assert_eq!(found, [expected]);
        assert!(namespaces(&tree.pci(), "nvme1").is_empty(), "another controller has none");
    }

    #[test]
    fn paths_lead_to_the_head_of_their_subsystem() {
        let tree = Tree::new("paths");
        for nsid in [2, 10, 1] {
            tree.disk(&format!("nvme1n{nsid}"), 4096);
            tree.put(&format!("sys/class/nvme/nvme2/nvme1c2n{nsid}/nsid"), &format!("{nsid}\n"));
        }
        tree.put("sys/block/nvme1n2/queue/zoned", "host-managed\n");
        let found = namespaces(&tree.pci(), "nvme2");
        let names: Vec<_> = found.iter().map(|node| (node.nsid, &*node.block, &*node.generic)).collect();
        assert_eq!(names, [(1, "nvme1n1", "ng1n1"), (2, "nvme1n2", "ng1n2"), (10, "nvme1n10", "ng1n10")]);
        assert_eq!(found.iter().map(|node| node.is_zoned).collect::<Vec<_>>(), [false, true, false]);
        assert!(found.iter().all(|node| (node.uuid, node.eui64) == (None, None)));
    }

    #[test]
    fn a_namespace_that_two_controllers_share() {
        let tree = Tree::new("shared");
        for (controller, serial) in [("nvme2", "B"), ("nvme3", "other")] {
            tree.put(&format!("sys/class/nvme/{controller}/subsysnqn"), "nqn.b\n");
            tree.put(&format!("sys/class/nvme/{controller}/serial"), &format!("{serial}   \n"));
        }
        tree.disk("nvme1n2", 512);
        tree.put("sys/class/nvme/nvme2/nvme1c2n2/nsid", "2\n");
        tree.disk("nvme3n5", 512);
        tree.put("sys/class/nvme/nvme3/nvme3n5/nsid", "5\n");
        let found = |nqn, serial, nsid| {
            shared(&tree.pci(), (nqn, serial), nsid).map(|(node, controller)| (node.block, controller))
        };
        assert_eq!(found("nqn.b", "B", 2), Some(("nvme1n2".to_owned(), "nvme2".to_owned())));
        // Disks whose maker gave all of them one NQN have serial numbers of their own.
        assert_eq!(found("nqn.b", "B", 5), None);
        for (nqn, serial, nsid) in [("nqn.b", "B", 1), ("nqn", "B", 2), ("nqn.b", "", 2)] {
            assert_eq!(found(nqn, serial, nsid), None);
        }
    }

    #[test]
    fn only_names_of_namespaces_are() {
        assert_eq!(disk_of("nvme0n1").as_deref(), Some("nvme0n1"));
        assert_eq!(disk_of("nvme10c3n12").as_deref(), Some("nvme10n12"));
        for other in ["nvme0", "ng0n1", "nvme0n1p1", "nvmen1", "nvme0n", "hwmon1", "nvme0c1n2p3"] {
            assert_eq!(disk_of(other), None, "{other}");
        }
    }
}
