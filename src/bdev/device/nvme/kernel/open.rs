//! Opening a namespace that the kernel's driver has: by its character device if this process may pass commands through, else its
//! block device.
//!
//! For control threads: it waits for the kernel and the controller.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use zerocopy::{FromBytes, FromZeros};

use super::super::disks::{Wanted, check_size, only_one, refused};
use super::{Generic, Passed};
use crate::bdev::device::file;
use crate::bdev::{BlockDevice, DeviceError};
use crate::nvme::io::{Geometry, Identified, Unusable, identity, transfer_max};
use crate::nvme::spec::{
    Cap, Cns, Csi, IdentifyController, IdentifyControllerNvm, IdentifyControllerZoned, IdentifyNamespace,
    IdentifyNamespaceZoned, NamespaceIds, nul_text, padded_text,
};
use crate::sys::holders::Machine;
use crate::sys::nvme_nodes::{self, Node};
use crate::sys::nvme_ring::{IDENTIFY_LEN, identify, try_read};
use crate::sys::pci::{Address, Pci};
use crate::sys::predecessor::outlast;

/// Entries of a queue where none is fused.
const UNFUSED: u16 = 2;

/// A disk whose namespace is to be opened.
pub(in super::super) struct Opening<'a> {
    /// The machine.
    pub(in super::super) pci: &'a Pci,
    /// Where the disk is.
    pub(in super::super) address: Address,
    /// The kernel's name of its controller, as `nvme0`.
    pub(in super::super) controller: &'a str,
    /// Which volume has the namespace of a block device already.
    pub(in super::super) taken: &'a dyn Fn(&str) -> Option<String>,
    /// The reactor that orders its compare and writes.
    pub(in super::super) home: u16,
    /// How many reactors there are.
    pub(in super::super) reactors: usize,
}

/// A namespace that is open.
pub(in super::super) struct KernelVolume {
    /// The volume.
    pub(in super::super) device: Arc<dyn BlockDevice>,
    /// Name of its block device.
    pub(in super::super) block: String,
    /// Which way was taken and what the other ways would need, for the log.
    pub(in super::super) line: String,
}

/// Why no commands can be passed through.
enum Without {
    /// The block device may still serve.
    Way(String),
    /// Neither may.
    Refused(DeviceError),
}

impl From<Unusable> for Without {
    fn from(unusable: Unusable) -> Without {
        Without::Refused(refused(unusable))
    }
}

/// Opens the volume `name`.
///
/// # Errors
/// Why it cannot be had, with the remedy where there is one.
pub(in super::super) fn open(at: &Opening<'_>, name: &str, wanted: &Wanted) -> Result<KernelVolume, DeviceError> {
    let Opening { pci, address, .. } = *at;
    let node = find(at, wanted)?;
    let block = nvme_nodes::device(pci, &node.block);
    let generic = nvme_nodes::device(pci, &node.generic);
    let claim = claim(&node, &block)?;
    let claimed = claim.is_some();
    let about = format!("volume \"{name}\": namespace {} of {address} ({})", node.nsid, described(pci, at.controller));
    let vfio = "VFIO would need it bound to vfio-pci";
    let why = match passed(at, name, wanted, &node, &generic, claim) {
        Ok(device) => {
            let unclaimed =
                if claimed { "" } else { "; without the right to claim its block device, others may use it" };
            let (path, reactors, depth) = (generic.display(), at.reactors, wanted.tuning.depth);
            let how = format!("by {path} (the kernel's driver, passthrough), {reactors} rings of depth {depth}");
            return Ok(KernelVolume { device, block: node.block, line: format!("{about} {how}; {vfio}{unclaimed}") });
        }
        Err(Without::Refused(error)) => return Err(error),
        Err(Without::Way(why)) => why,
    };
    if node.is_zoned {
        return Err(refused(format!(
            "namespace {} of {address} has zones, which are a volume by passthrough or VFIO, not by {}: passthrough would need \
             {why}; {vfio}",
            node.nsid,
            block.display()
        )));
    }
    let device = block_device(at, name, wanted, &node, &block)
        .map_err(|error| refused(format!("passthrough would need {why}; {error}")))?;
    let how = format!("by {} (the kernel's driver, block device)", block.display());
    let line = format!("{about} {how}; passthrough would need {why}; {vfio}");
    Ok(KernelVolume { device, block: node.block, line })
}

/// The namespace that is wanted.
fn find(at: &Opening<'_>, wanted: &Wanted) -> Result<Node, DeviceError> {
    let Opening { pci, address, controller, taken, .. } = *at;
    let all = nvme_nodes::namespaces(pci, controller);
    let nsid = match wanted.nsid {
        Some(nsid) => nsid,
        None => {
            let usable = |node: &&Node| matches!(node.block_size, 512 | 4096);
            let usable: Vec<u32> = all.iter().filter(usable).map(|node| node.nsid).collect();
            only_one(address, &usable, || {
                let why = |node: &Node| format!("namespace {} has blocks of {} bytes", node.nsid, node.block_size);
                all.iter().map(why).collect()
            })?
        }
    };
    let there: Vec<String> = all.iter().map(|node| node.nsid.to_string()).collect();
    let node = all.into_iter().find(|node| node.nsid == nsid).ok_or_else(|| {
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        refused(format!("{address} ({controller}) has no namespace {nsid}: it has {there}"))
    })?;
    if let Some(other) = taken(&node.block) {
        return Err(refused(format!("namespace {nsid} of {address} is volume \"{other}\" already")));
    }
    check_size(wanted, (nsid, address), node.size, node.block_size)?;
    Ok(node)
}

/// Serial number and model.
fn described(pci: &Pci, controller: &str) -> String {
    format!("serial {}, {}", attribute(pci, controller, "serial").trim(), attribute(pci, controller, "model").trim())
}

fn attribute(pci: &Pci, controller: &str, file: &str) -> String {
    let path = pci.path("sys/class/nvme").join(controller).join(file);
    std::fs::read_to_string(path).unwrap_or_default().trim_end_matches('\n').to_owned()
}

/// Claims the block device of a namespace that another controller drives, if the kernel has it as well by a controller of the same NVM
/// subsystem, so that nobody uses it there.
///
/// # Errors
/// If somebody does.
pub(in super::super) fn claim_shared(
    pci: &Pci,
    controller: &IdentifyController,
    nsid: u32,
) -> Result<Option<File>, DeviceError> {
    let (Some(nqn), serial) = (nul_text(&controller.subnqn), padded_text(&controller.sn)) else { return Ok(None) };
    let Some((node, other)) = nvme_nodes::shared(pci, (nqn, &serial), nsid) else { return Ok(None) };
    let path = nvme_nodes::device(pci, &node.block);
    match claim(&node, &path) {
        Ok(claim) => Ok(claim),
        Err(why) => Err(refused(format!("{other} of the kernel leads to the same namespace: {why}"))),
    }
}

/// Claims the block device, so that nobody mounts it; `None` without the right to do so, when nobody is seen who uses it.
fn claim(node: &Node, path: &Path) -> Result<Option<File>, DeviceError> {
    let in_use = |mut by: Vec<String>| {
        if by.is_empty() {
            by.push("mounted elsewhere, or claimed by another program".to_owned());
        }
        refused(format!("{} is in use: {}", path.display(), by.join(", ")))
    };
    let attempt = || OpenOptions::new().read(true).custom_flags(libc::O_EXCL).open(path);
    match outlast(libc::EBUSY, attempt) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => Err(in_use(users(node))),
        Err(error) if is_right(&error) => match users(node) {
            by if by.is_empty() => Ok(None),
            by => Err(in_use(by)),
        },
        Err(error) => Err(DeviceError::Io { what: format!("cannot open {}", path.display()), error }),
    }
}

/// Who uses a namespace's block device.
fn users(node: &Node) -> Vec<String> {
    Machine::here().look(&[format!("sys/block/{}", node.block)], &[]).users
}

fn is_right(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied
}

/// The namespace by its character device.
fn passed(
    at: &Opening<'_>,
    name: &str,
    wanted: &Wanted,
    node: &Node,
    path: &Path,
    claim: Option<File>,
) -> Result<Arc<dyn BlockDevice>, Without> {
    let shown = path.display();
    let device = OpenOptions::new().read(true).write(true).open(path).map_err(|error| {
        Without::Way(match error.kind() {
            io::ErrorKind::NotFound => format!("{shown}, which Linux has from 5.13 on"),
            io::ErrorKind::PermissionDenied => format!("the right to read and write {shown}"),
            _ => format!("{shown} to open ({error})"),
        })
    })?;
    match crate::sys::file::lock(&device) {
        Ok(true) => {}
        Ok(false) => {
            return Err(Without::Refused(refused(format!(
                "{shown} is in use by another process, or by another volume"
            ))));
        }
        Err(error) => return Err(Without::Way(format!("a lock on {shown} ({error})"))),
    }
    let ask_set = |cns: Cns, nsid: u32, csi: Csi| {
        identify(&device, cns.0, nsid, csi.0).map_err(|error| {
            Without::Way(match is_right(&error) {
                true => "CAP_SYS_ADMIN, or Linux 6.2, for Identify".to_owned(),
                false => format!("Identify by {shown}, which failed ({error})"),
            })
        })
    };
    let ask = |cns: Cns, nsid: u32| ask_set(cns, nsid, Csi::NVM);
    let page = |page: &[u8; IDENTIFY_LEN]| page.to_vec();
    let controller =
        IdentifyController::read_from_bytes(&page(&*ask(Cns::CONTROLLER, 0)?)).expect("a page of Identify data");
    let namespace =
        IdentifyNamespace::read_from_bytes(&page(&*ask(Cns::NAMESPACE, node.nsid)?)).expect("a page of Identify data");
    // Only from controllers that have it; and without the right to it there is no limit that could be known.
    let limits = ask(Cns::CONTROLLER_CSI, 0)
        .ok()
        .map(|limits| IdentifyControllerNvm::read_from_bytes(&page(&limits)).expect("a page of Identify data"));
    let zoned = match node.is_zoned {
        true => {
            let its = ask_set(Cns::NAMESPACE_CSI, node.nsid, Csi::ZONED)?;
            let all = ask_set(Cns::CONTROLLER_CSI, 0, Csi::ZONED)?;
            Some((
                IdentifyNamespaceZoned::read_from_bytes(&page(&its)).expect("a page of Identify data"),
                IdentifyControllerZoned::read_from_bytes(&page(&all)).expect("a page of Identify data"),
            ))
        }
        false => None,
    };
    // The register is not to be had. The smallest unit of limits is on the safe side.
    let cap = Cap(0);
    let identified = Identified {
        nsid: node.nsid,
        cap,
        controller: &controller,
        namespace: &namespace,
        limits: limits.as_ref(),
        zoned: zoned.as_ref().map(|(its, all)| (its, all)),
    };
    let most = transfer_max(&controller, cap).min(node.transfer_max);
    let geometry = Geometry::new(&identified, most, UNFUSED)?;
    match try_read(&device, node.nsid, node.block_size, wanted.tuning.timeout) {
        // Whatever the controller says of that block, it was asked.
        Ok(_) => {}
        Err(error) if is_right(&error) => {
            return Err(Without::Way(format!("CAP_SYS_ADMIN, or Linux 6.2, to pass commands to {shown}")));
        }
        Err(error) => {
            return Err(Without::Way(format!("Linux 5.19 and io_uring to pass commands to {shown} ({error})")));
        }
    }
    let uuid = identity(&ids(node), &controller, node.nsid);
    let rings = Generic { device, depth: wanted.tuning.depth, timeout: wanted.tuning.timeout, _claim: claim };
    let how = (geometry, &controller);
    Ok(Arc::new(Passed::new((name.to_owned(), uuid, at.home), rings, how, wanted.tuning.timeout)))
}

fn ids(node: &Node) -> NamespaceIds {
    NamespaceIds { uuid: node.uuid, eui64: node.eui64, ..NamespaceIds::default() }
}

/// The namespace by its block device: its identity is that of the other ways.
fn block_device(
    at: &Opening<'_>,
    name: &str,
    wanted: &Wanted,
    node: &Node,
    path: &Path,
) -> Result<Arc<dyn BlockDevice>, DeviceError> {
    let mut controller = IdentifyController::new_zeroed();
    fill(&mut controller.mn, &attribute(at.pci, at.controller, "model"));
    fill(&mut controller.sn, &attribute(at.pci, at.controller, "serial"));
    if !matches!(node.block_size, 512 | 4096) {
        return Err(refused(format!("{} has blocks of {} bytes", path.display(), node.block_size)));
    }
    debug_assert!(wanted.size.is_none_or(|size| size == node.size));
    Ok(Arc::new(file::File::create(file::Options {
        name: name.to_owned(),
        uuid: identity(&ids(node), &controller, node.nsid),
        path: path.to_owned(),
        size: node.size,
        block_size: node.block_size,
        physical_block_size: node.physical_block_size,
        direct: true,
        home: at.home,
    })?))
}

/// A text field of Identify data: blanks behind it (Base §1.4.2).
fn fill(field: &mut [u8], text: &str) {
    field.fill(b' ');
    for (byte, letter) in field.iter_mut().zip(text.bytes()) {
        *byte = letter;
    }
}
