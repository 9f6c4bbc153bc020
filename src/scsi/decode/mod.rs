//! CDBs to [`Request`]s: every field is checked, nothing is done. The hot path: no allocation, one pass.

mod catalogue;
mod media;
mod unit;

pub(super) use catalogue::{CATALOGUE, Entry, find};

use super::command::{Request, UnitCommand};
use super::mode::ModeState;
use super::spec::{Asc, Cdb, Opcode, Sense, SenseKey};
use super::unit::Unit;

/// NACA in the last byte of a CDB (SAM-5, CONTROL byte). No logical unit here has ACA (NORMACA is zero), so a command that asks for it is
/// refused.
const CONTROL_NACA: u8 = 0x04;

/// Decodes a CDB for `unit`. `mode` says whether writes are allowed.
///
/// # Errors
/// INVALID COMMAND OPERATION CODE; INVALID FIELD IN CDB with the field; LOGICAL BLOCK ADDRESS OUT OF RANGE with the address; WRITE PROTECTED.
/// An error in the CDB comes before a protected medium.
#[inline]
pub fn decode(cdb: &Cdb, unit: &Unit, mode: &ModeState) -> Result<Request, Sense> {
    let entry = find(cdb, unit)?;
    decode_entry(entry, cdb, unit, mode)
}

/// Decodes a CDB of which the entry is known.
pub(super) fn decode_entry(entry: &Entry, cdb: &Cdb, unit: &Unit, mode: &ModeState) -> Result<Request, Sense> {
    let control = entry.usage.len() - 1;
    if cdb.0[control] & CONTROL_NACA != 0 {
        return Err(Sense::bit(control as u16, 2));
    }
    let request = (entry.decode)(cdb, unit)?;
    if entry.writes {
        if unit.read_only {
            return Err(Sense::new(SenseKey::DATA_PROTECT, Asc::WRITE_PROTECTED));
        }
        if mode.software_write_protect {
            return Err(Sense::new(SenseKey::DATA_PROTECT, Asc::SOFTWARE_WRITE_PROTECTED));
        }
    }
    Ok(Request { access: entry.access(cdb), ..request })
}

/// The command in `cdb`, if it is one that a logical unit that does not exist answers otherwise than with an error.
pub(super) fn absent_request(cdb: &Cdb) -> Result<Option<UnitCommand>, Sense> {
    let request = match Opcode(cdb.opcode()) {
        Opcode::INQUIRY => unit::inquiry_fields(cdb)?,
        Opcode::REPORT_LUNS => unit::report_luns_fields(cdb)?,
        Opcode::REQUEST_SENSE => unit::request_sense_fields(cdb),
        _ => return Ok(None),
    };
    Ok(Some(request))
}
