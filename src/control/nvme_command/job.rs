//! What can be asked of a controller, whatever the way to it: admin commands, and their answers as JSON.
//!
//! Names of fields are those that nvme-cli has in its JSON (`id-ctrl`, `id-ns`, `smart-log`, `error-log`), where the two tell the same.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zerocopy::FromBytes;

use super::fields;
use crate::bdev::device::nvme::AdminError;
use crate::limits::{NVME_ADMIN_NS, NVME_FORMAT_NS};
use crate::nvme::spec::{
    AdminOpcode, Cns, Csi, ErrorLogEntry, FNA_CRYPTOGRAPHIC, FNA_ERASE_ALL, FNA_FORMAT_ALL, FirmwareSlotLog,
    FormatFields, GetLogFields, IDENTIFY_LEN, IdentifyController, IdentifyFields, IdentifyNamespace, LPA_EXTENDED_DATA,
    LogId, NSID_BROADCAST, OACS_FORMAT, SecureErase, SmartLog, Sqe, namespace_list,
};

/// Bytes of a log that are read at a time: what one address leads to.
const PIECE: usize = 4096;

/// Log pages that can be read, beside SMART.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogPage {
    /// Error Information: the last errors.
    Error,
    /// Firmware Slot Information.
    Firmware,
}

/// What a format erases beyond what it must.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Erase {
    /// No more than the disk does by itself; it reads as zeros or as chance has it.
    #[default]
    None,
    /// All user data, from wherever the disk keeps it.
    User,
    /// The key that the data is encrypted with.
    Crypto,
}

/// How a namespace is to be formatted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Format {
    /// Which; `None`: the only one.
    pub nsid: Option<u32>,
    /// Index of the LBA format; by neither this nor `block_size` the one in use.
    pub lbaf: Option<u8>,
    /// Bytes of a block: the best format with that, and without metadata.
    pub block_size: Option<u32>,
    /// What else is erased.
    pub erase: Erase,
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// What the controller and its namespaces say of themselves.
    Identify {
        /// Of this namespace alone.
        nsid: Option<u32>,
    },
    /// Health.
    Smart,
    /// Another log page.
    Log(LogPage),
    /// Formats a namespace: what it holds is gone.
    Format(Format),
    /// Resets the controller.
    Reset,
}

/// An admin command whose data, if there is any, comes from the controller.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What messages call it.
    pub name: &'static str,
    /// The command, without data pointer and identifier.
    pub sqe: Sqe,
    /// Bytes of data, at most a page.
    pub len: usize,
    /// How long it may take.
    pub limit: Duration,
}

impl Ask {
    fn new(name: &'static str, sqe: Sqe, len: usize) -> Ask {
        Ask { name, sqe, len, limit: Duration::from_nanos(NVME_ADMIN_NS) }
    }
}

/// A way to a controller.
pub trait Way {
    /// Has it carry out a command, and returns the data.
    ///
    /// # Errors
    /// If it refuses, or the command does not get there and back.
    fn ask(&mut self, ask: &Ask) -> Result<Vec<u8>, AdminError>;

    /// Resets it.
    ///
    /// # Errors
    /// If it does not come back.
    fn reset(&mut self) -> Result<(), AdminError>;

    /// Its namespaces have changed.
    ///
    /// # Errors
    /// If who has them could not be told.
    fn changed(&mut self) -> Result<(), AdminError> {
        Ok(())
    }
}

/// Carries out a job. `force`: also what concerns more than what was asked for.
///
/// # Errors
/// Why not, as a sentence.
pub fn carry_out(way: &mut dyn Way, job: &Job, force: bool) -> Result<Value, String> {
    match job {
        Job::Identify { nsid } => identify(way, *nsid),
        Job::Smart => smart(way),
        Job::Log(LogPage::Error) => errors(way),
        Job::Log(LogPage::Firmware) => firmware(way),
        Job::Format(wanted) => format(way, wanted, force),
        Job::Reset => {
            way.reset().map_err(text)?;
            Ok(json!({ "reset": true }))
        }
    }
}

fn text(error: AdminError) -> String {
    error.to_string()
}

fn ask_identify(way: &mut dyn Way, cns: Cns, nsid: u32) -> Result<Vec<u8>, String> {
    let mut sqe = Sqe::bare(AdminOpcode::IDENTIFY.0, nsid);
    IdentifyFields { cns, cntid: 0, cns_specific: 0, csi: Csi::NVM }.put(&mut sqe);
    let page = way.ask(&Ask::new("Identify", sqe, IDENTIFY_LEN)).map_err(text)?;
    if page.len() == IDENTIFY_LEN { Ok(page) } else { Err("Identify: less than a page came back".to_owned()) }
}

fn controller(way: &mut dyn Way) -> Result<IdentifyController, String> {
    let page = ask_identify(way, Cns::CONTROLLER, 0)?;
    IdentifyController::read_from_bytes(&page).map_err(|error| error.to_string())
}

fn namespace(way: &mut dyn Way, nsid: u32) -> Result<IdentifyNamespace, String> {
    let page = ask_identify(way, Cns::NAMESPACE, nsid).map_err(|error| format!("namespace {nsid}: {error}"))?;
    IdentifyNamespace::read_from_bytes(&page).map_err(|error| error.to_string())
}

/// The first thousand active namespaces: more than any disk of today has.
fn active(way: &mut dyn Way) -> Result<Vec<u32>, String> {
    Ok(namespace_list(&ask_identify(way, Cns::ACTIVE_NAMESPACES, 0)?).collect())
}

fn identify(way: &mut dyn Way, nsid: Option<u32>) -> Result<Value, String> {
    let all = active(way)?;
    let wanted = match nsid {
        Some(nsid) if !all.contains(&nsid) => return Err(no_such(nsid, &all)),
        Some(nsid) => vec![nsid],
        None => all,
    };
    let controller = fields::controller(&controller(way)?);
    let mut namespaces = Vec::new();
    for nsid in wanted {
        namespaces.push(fields::namespace(nsid, &namespace(way, nsid)?));
    }
    Ok(json!({ "controller": controller, "namespaces": namespaces }))
}

fn no_such(nsid: u32, all: &[u32]) -> String {
    let list: Vec<String> = all.iter().map(u32::to_string).collect();
    let list = if list.is_empty() { "none".to_owned() } else { list.join(", ") };
    format!("there is no active namespace {nsid}: the controller has {list}")
}

fn log_page(way: &mut dyn Way, name: &'static str, lid: LogId, len: usize, pieces: bool) -> Result<Vec<u8>, String> {
    let mut page = Vec::new();
    while page.len() < len && (pieces || page.is_empty()) {
        let piece = (len - page.len()).min(PIECE);
        let mut sqe = Sqe::bare(AdminOpcode::GET_LOG_PAGE.0, NSID_BROADCAST);
        // Events are of the driver that has the controller.
        let fields = GetLogFields { rae: true, ..GetLogFields::new(lid, page.len() as u64, piece) };
        fields.put(&mut sqe);
        let bytes = way.ask(&Ask::new(name, sqe, piece)).map_err(text)?;
        if bytes.len() != piece {
            return Err(format!("{name}: not all of it came back"));
        }
        page.extend(bytes);
    }
    Ok(page)
}

fn smart(way: &mut dyn Way) -> Result<Value, String> {
    let page = log_page(way, "Get Log Page (SMART)", LogId::SMART, size_of::<SmartLog>(), true)?;
    Ok(fields::smart(&SmartLog::read_from_bytes(&page).map_err(|error| error.to_string())?))
}

fn errors(way: &mut dyn Way) -> Result<Value, String> {
    let controller = controller(way)?;
    let len = (usize::from(controller.elpe_z) + 1) * size_of::<ErrorLogEntry>();
    let pieces = controller.lpa & LPA_EXTENDED_DATA != 0;
    let page = log_page(way, "Get Log Page (errors)", LogId::ERROR, len, pieces)?;
    let errors: Vec<Value> = ErrorLogEntry::list(&page).map(fields::error).collect();
    Ok(json!({ "errors": errors, "entries": len / size_of::<ErrorLogEntry>() }))
}

fn firmware(way: &mut dyn Way) -> Result<Value, String> {
    let len = size_of::<FirmwareSlotLog>();
    let page = log_page(way, "Get Log Page (firmware)", LogId::FIRMWARE_SLOT, len, true)?;
    Ok(fields::firmware(&FirmwareSlotLog::read_from_bytes(&page).map_err(|error| error.to_string())?))
}

/// Which format is meant, by its index.
fn choose(wanted: &Format, namespace: &IdentifyNamespace) -> Result<u8, String> {
    let all: Vec<_> = namespace.formats().collect();
    let told = || {
        let one = |(index, format): &(u8, crate::nvme::spec::LbaFormat)| {
            let (bytes, metadata) = (1_u64.checked_shl(u32::from(format.lbads)).unwrap_or(0), format.ms.get());
            format!("{index} ({bytes} bytes, {metadata} of metadata)")
        };
        all.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    match (wanted.lbaf, wanted.block_size) {
        (Some(_), Some(_)) => Err("either an LBA format or a block size, not both".to_owned()),
        (None, None) => Ok(namespace.format().0),
        (Some(index), None) => match all.iter().find(|(one, _)| *one == index) {
            Some((_, format)) if format.lbads >= 9 => Ok(index),
            _ => Err(format!("there is no LBA format {index}: the namespace has {}", told())),
        },
        (None, Some(bytes)) => {
            let fits = |format: &crate::nvme::spec::LbaFormat| {
                format.ms.get() == 0 && 1_u64.checked_shl(u32::from(format.lbads)) == Some(u64::from(bytes))
            };
            let fitting = all.iter().filter(|(_, format)| fits(format));
            let best = fitting.min_by_key(|(_, format)| format.rp & 3);
            best.map(|(index, _)| *index).ok_or_else(|| {
                format!("no LBA format has blocks of {bytes} bytes without metadata: the namespace has {}", told())
            })
        }
    }
}

/// Bytes of a block of a namespace.
///
/// # Errors
/// If the controller does not say.
pub fn block_size(way: &mut dyn Way, nsid: u32) -> Result<u64, String> {
    let (_, format) = namespace(way, nsid)?.format();
    Ok(1_u64.checked_shl(u32::from(format.lbads)).unwrap_or(0))
}

fn format(way: &mut dyn Way, wanted: &Format, force: bool) -> Result<Value, String> {
    let controller = controller(way)?;
    if controller.oacs.get() & OACS_FORMAT == 0 {
        return Err("the controller has no Format NVM command".to_owned());
    }
    let all = active(way)?;
    let nsid = match (wanted.nsid, all.as_slice()) {
        (Some(nsid), all) if !all.contains(&nsid) => return Err(no_such(nsid, all)),
        (Some(nsid), _) => nsid,
        (None, [one]) => *one,
        (None, []) => return Err("the controller has no active namespace".to_owned()),
        (None, several) => {
            let list: Vec<String> = several.iter().map(u32::to_string).collect();
            return Err(format!("the controller has the namespaces {}: write --nsid {}", list.join(", "), several[0]));
        }
    };
    let erase = match wanted.erase {
        Erase::None => SecureErase::NONE,
        Erase::User => SecureErase::USER_DATA,
        Erase::Crypto if controller.fna & FNA_CRYPTOGRAPHIC == 0 => {
            return Err("the controller has no cryptographic erase".to_owned());
        }
        Erase::Crypto => SecureErase::CRYPTOGRAPHIC,
    };
    let bit = if wanted.erase == Erase::None { FNA_FORMAT_ALL } else { FNA_FORMAT_ALL | FNA_ERASE_ALL };
    if controller.fna & bit != 0 && all.len() > 1 && !force {
        let list: Vec<String> = all.iter().map(u32::to_string).collect();
        return Err(format!(
            "the controller formats all its namespaces ({}), not only {nsid}: nothing is changed; --force does it all the same",
            list.join(", ")
        ));
    }
    let index = choose(wanted, &namespace(way, nsid)?)?;
    let fields = FormatFields { format: index, extended: false, protection: 0, protection_first: false, erase };
    let ask = Ask { limit: Duration::from_nanos(NVME_FORMAT_NS), ..Ask::new("Format NVM", fields.to_sqe(nsid), 0) };
    way.ask(&ask).map_err(text)?;
    way.changed().map_err(text)?;
    // What it says now, not what it was asked for.
    let after = namespace(way, nsid)?;
    let (now, format) = after.format();
    if now != index {
        return Err(format!(
            "the controller says that namespace {nsid} is formatted, and has format {now}, not {index}"
        ));
    }
    let block_size = 1_u64.checked_shl(u32::from(format.lbads)).unwrap_or(0);
    Ok(json!({
        "nsid": nsid,
        "lbaf": index,
        "block_size": block_size,
        "metadata": format.ms.get(),
        "bytes": after.nsze.get().saturating_mul(block_size),
    }))
}

#[cfg(test)]
mod tests;
