//! `reactor nvme bind` and `unbind`: a disk goes from the kernel's driver to VFIO and back. Nobody's disk is taken from under him.

use serde_json::{Value, json};

use super::find::{Found, Place};
use crate::sys::pci::Handover;

/// The kernel's NVMe driver.
const KERNEL: &str = "nvme";

/// Why a disk that is in use is left alone; `None` if nobody uses it, or that is no matter.
pub fn in_use(place: &Place, found: &Found, force: bool) -> Option<String> {
    let users = if force { Vec::new() } else { found.users(place) };
    if users.is_empty() {
        return None;
    }
    Some(format!(
        "{} is in use: {}: nothing is changed; --force does it all the same",
        found.address(),
        users.join(", ")
    ))
}

/// What became of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    address: String,
    handover: Handover,
    /// What else is to be known.
    note: Option<String>,
}

/// Gives a disk to vfio-pci.
///
/// # Errors
/// If it is in use, unless that is no matter; if it cannot be given. It is as it was then, or the error says what it is.
pub fn bind(place: &Place, found: &Found, force: bool) -> Result<Done, String> {
    let function = &found.function;
    if let Some(driver) = function.driver.as_deref()
        && driver != KERNEL
        && !function.is_vfio()
        && !force
    {
        return Err(format!(
            "{} belongs to {driver}, and whether it is in use there cannot be seen: nothing is changed; --force does it all the same",
            function.address
        ));
    }
    if !function.is_vfio()
        && let Some(why) = in_use(place, found, force)
    {
        return Err(why);
    }
    let handover = place.pci.bind(function).map_err(|error| error.to_string())?;
    let note = function.group.as_ref().and_then(|group| {
        let others = group.in_the_way(function.address);
        let others: Vec<String> = others.iter().map(|(other, driver)| format!("{other} ({driver})")).collect();
        let list = others.join(", ");
        (!others.is_empty()).then(|| {
            format!(
                "group {} has functions that other drivers have: {list}: bind them to vfio-pci or to none, else nobody can open it",
                group.number
            )
        })
    });
    Ok(Done { address: function.address.to_string(), handover, note })
}

/// Gives a disk that nobody holds back to the kernel's driver.
///
/// # Errors
/// If somebody holds it, or the kernel does not take it.
pub fn unbind(place: &Place, found: &Found) -> Result<Done, String> {
    let handover = place.pci.unbind(&found.function).map_err(|error| error.to_string())?;
    Ok(Done { address: found.address().to_string(), handover, note: None })
}

impl Done {
    /// For people.
    pub fn text(&self) -> String {
        let Done { address, handover: Handover { from, to }, note } = self;
        let from_text = from.as_deref().unwrap_or("no driver");
        let mut text = if self.handover.is_change() {
            format!("{address} is bound to {to}; it was with {from_text}\n")
        } else {
            format!("{address} is bound to {to} already\n")
        };
        if let Some(note) = note {
            text += &format!("{note}\n");
        }
        text
    }

    /// For scripts.
    pub fn to_json(&self) -> Value {
        json!({
            "address": self.address,
            "from": self.handover.from,
            "driver": self.handover.to,
            "changed": self.handover.is_change(),
            "note": self.note,
        })
    }
}
