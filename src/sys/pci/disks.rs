//! The disks that the kernel's NVMe driver has made of a controller's namespaces.
//!
//! | what | where |
//! |---|---|
//! | a namespace of one controller alone | `nvme/nvme0/nvme0n1` of the function |
//! | one that several controllers may have | `nvme/nvme0/nvme0c1n1`: the way by this controller to the disk `nvme0n1` |
//! | what the disk is | `/sys/block/nvme0n1`: `nsid`, `size`, `queue/logical_block_size`, `metadata_bytes`, `queue/zoned` |
//! | commands to it and to its controller | the character devices `ng0n1` and `nvme0` |

use super::{Function, Pci, names, text};

/// Bytes of a unit of `size`, whatever the blocks of the disk.
const SECTOR: u64 = 512;

/// A namespace as the kernel's driver shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelNamespace {
    /// Namespace identifier.
    pub nsid: u32,
    /// Its disk, as `nvme0n1`.
    pub disk: String,
    /// Size in bytes.
    pub bytes: u64,
    /// Bytes of a block.
    pub block_size: u32,
    /// Bytes of metadata of a block.
    pub metadata: u32,
    /// It has zones.
    pub zoned: bool,
}

impl KernelNamespace {
    /// Where /sys has the disk, below the root.
    pub fn folder(&self) -> String {
        format!("sys/block/{}", self.disk)
    }

    /// Where /sys has the character device by which commands go to it, below the root.
    pub fn generic(&self) -> String {
        format!("sys/class/nvme-generic/ng{}", self.disk.trim_start_matches("nvme"))
    }
}

/// The disk that `name` in a controller's folder is, or is a way to.
pub fn disk_of(name: &str) -> Option<String> {
    let (subsystem, rest) = name.strip_prefix("nvme")?.split_at_checked(digits(name.strip_prefix("nvme")?))?;
    let namespace = match rest.strip_prefix('c') {
        Some(way) => way.get(digits(way)..)?,
        None => rest,
    };
    let number = namespace.strip_prefix('n')?;
    let whole = |text: &str| !text.is_empty() && digits(text) == text.len();
    (whole(subsystem) && whole(number)).then(|| format!("nvme{subsystem}n{number}"))
}

/// How many digits it begins with.
fn digits(text: &str) -> usize {
    text.bytes().take_while(u8::is_ascii_digit).count()
}

impl Pci {
    /// The namespaces of a controller that the kernel's driver has, by identifier. One that the driver made no disk of is not among them.
    pub fn namespaces(&self, function: &Function) -> Vec<KernelNamespace> {
        let Some(identity) = &function.identity else { return Vec::new() };
        let folder = self.folder(function.address).join("nvme").join(&identity.controller);
        let mut found: Vec<KernelNamespace> =
            names(&folder).iter().filter_map(|name| self.namespace(disk_of(name)?)).collect();
        found.sort_by_key(|namespace| namespace.nsid);
        found
    }

    fn namespace(&self, disk: String) -> Option<KernelNamespace> {
        let read = |file: &str| text(&self.root.join("sys/block").join(&disk).join(file));
        let number = |file: &str| read(file)?.parse::<u64>().ok();
        Some(KernelNamespace {
            nsid: number("nsid")?.try_into().ok()?,
            bytes: number("size")?.checked_mul(SECTOR)?,
            block_size: number("queue/logical_block_size")?.try_into().ok()?,
            // Kernels before 6.8 do not say.
            metadata: number("metadata_bytes").unwrap_or(0).try_into().ok()?,
            zoned: read("queue/zoned").is_some_and(|zoned| zoned != "none"),
            disk,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_disks() {
        let disk = |name| disk_of(name);
        assert_eq!(disk("nvme0n1").as_deref(), Some("nvme0n1"));
        assert_eq!(disk("nvme12c3n45").as_deref(), Some("nvme12n45"));
        for name in ["nvme0", "nvme0c1", "nvme0n", "nvmen1", "nvme0n1p1", "ng0n1", "hwmon3", "nvme0cn1x", "é", ""] {
            assert_eq!(disk(name), None, "{name}");
        }
    }
}
