//! Answers about the logical unit that are neither INQUIRY, mode nor reservations.

use super::command::OpcodeQuery;
use super::data::Put;
use super::decode::{CATALOGUE, Entry};
use super::spec::{AccessState, Cdb, LUN_LEN, LogPage, Opcode, Sense, lun_encode};
use super::unit::{TargetPort, TaskFunctions, Unit};

/// READ CAPACITY(10) (SBC-3 §5.15): FFFFFFFFh when 32 bits cannot hold the last address.
pub(super) fn capacity_10(unit: &Unit) -> Vec<u8> {
    let mut out = Vec::with_capacity(8);
    out.put_u32(u32::try_from(unit.last()).unwrap_or(u32::MAX));
    out.put_u32(unit.block_size);
    out
}

/// READ CAPACITY(16) (SBC-3 §5.16).
pub(super) fn capacity_16(unit: &Unit) -> Vec<u8> {
    let mut out = Vec::with_capacity(32);
    out.put_u64(unit.last());
    out.put_u32(unit.block_size);
    // No protection information.
    out.push(0);
    out.push(unit.physical_block_exponent);
    // LBPME and LBPRZ; the lowest aligned address is 0.
    out.put_u16(if unit.can_unmap { 0xc000 } else { 0 });
    out.put_zeros(16);
    out
}

/// REPORT LUNS (SPC-4 §6.33).
pub(super) fn luns(luns: &[u16]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + luns.len() * LUN_LEN);
    out.put_u32((luns.len() * LUN_LEN) as u32);
    out.put_u32(0);
    for &lun in luns {
        out.extend_from_slice(&lun_encode(lun));
    }
    out
}

/// READ DEFECT DATA (SBC-3 §5.17): the lists asked for are there, and empty.
pub(super) fn defects(twelve: bool, lists: u8) -> Vec<u8> {
    let mut out = vec![0, lists, 0, 0];
    if twelve {
        out.put_u32(0);
    }
    out
}

/// REPORT TARGET PORT GROUPS (SPC-4 §6.37): all groups are active and optimised, and no other state is ever taken.
pub(super) fn port_groups(ports: &[TargetPort], extended: bool) -> Vec<u8> {
    let mut groups: Vec<u16> = ports.iter().map(|port| port.group).collect();
    groups.sort_unstable();
    groups.dedup();
    let mut out = vec![0; 4];
    if extended {
        out.extend_from_slice(&[0x10, 0, 0, 0]);
    }
    for group in groups {
        let members = || ports.iter().filter(|port| port.group == group).take(usize::from(u8::MAX));
        // AO_SUP.
        out.extend_from_slice(&[AccessState::OPTIMIZED.0, 0x01]);
        out.put_u16(group);
        out.extend_from_slice(&[0, 0, 0, members().count() as u8]);
        for port in members() {
            out.put_u16(0);
            out.put_u16(port.relative_id);
        }
    }
    let len = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&len.to_be_bytes());
    out
}

/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-4 §6.36).
pub(super) fn task_functions(functions: &TaskFunctions, extended: bool) -> Vec<u8> {
    let bits = |flags: &[(bool, u32)]| flags.iter().fold(0u8, |byte, &(set, bit)| byte | u8::from(set) << bit);
    let first = bits(&[
        (functions.abort_task, 7),
        (functions.abort_task_set, 6),
        (functions.clear_aca, 5),
        (functions.clear_task_set, 4),
        (functions.unit_reset, 3),
        (functions.query_task, 2),
        (functions.target_reset, 1),
    ]);
    let second = bits(&[(functions.query_event, 2), (functions.query_task_set, 1), (functions.nexus_reset, 0)]);
    let mut out = vec![first, second, 0, 0];
    if extended {
        out[3] = 12;
        out.put_zeros(12);
    }
    out
}

/// Bytes of a command timeouts descriptor after its length field (SPC-4 §6.35.4).
const TIMEOUTS_LEN: u16 = 10;

fn put_timeouts(out: &mut Vec<u8>, entry: &Entry) {
    out.put_u16(TIMEOUTS_LEN);
    out.put_u16(0);
    // No nominal time is known.
    out.put_u32(0);
    out.put_u32(entry.timeout_s);
}

/// REPORT SUPPORTED OPERATION CODES (SPC-4 §6.35).
pub(super) fn opcodes(query: OpcodeQuery, timeouts: bool, unit: &Unit) -> Result<Vec<u8>, Sense> {
    let known = || CATALOGUE.iter().filter(|entry| entry.exists(unit));
    let (opcode, action) = match query {
        OpcodeQuery::All => return Ok(all_opcodes(known(), timeouts)),
        OpcodeQuery::Opcode(opcode) => (opcode, None),
        OpcodeQuery::Action(opcode, action) | OpcodeQuery::Either(opcode, action) => (opcode, Some(action)),
    };
    let mut of_opcode = known().filter(|entry| entry.opcode.0 == opcode).peekable();
    let has_actions = of_opcode.peek().map(|entry| entry.action.is_some());
    match (query, has_actions) {
        (OpcodeQuery::Opcode(_), Some(true)) => return Err(Sense::bit(2, 2)),
        (OpcodeQuery::Action(..), Some(false)) => return Err(Sense::bit(2, 2)),
        _ => {}
    }
    let found = of_opcode.find(|entry| match entry.action {
        Some(own) => action == Some(u16::from(own)),
        // Without service actions there is only the one that says nothing.
        None => action.is_none_or(|action| action == 0),
    });
    Ok(match found {
        Some(entry) => {
            // SUPPORT 011b: as the standard has it.
            let mut out = vec![0, u8::from(timeouts) << 7 | 3];
            out.put_u16(entry.usage.len() as u16);
            out.extend_from_slice(entry.usage);
            if timeouts {
                put_timeouts(&mut out, entry);
            }
            out
        }
        // SUPPORT 001b: there is no such command.
        None => vec![0, 1, 0, 0],
    })
}

fn all_opcodes<'a>(entries: impl Iterator<Item = &'a Entry>, timeouts: bool) -> Vec<u8> {
    let mut out = vec![0; 4];
    for entry in entries {
        out.extend_from_slice(&[entry.opcode.0, 0]);
        out.put_u16(u16::from(entry.action.unwrap_or(0)));
        out.extend_from_slice(&[0, u8::from(timeouts) << 1 | u8::from(entry.action.is_some())]);
        out.put_u16(entry.usage.len() as u16);
        if timeouts {
            put_timeouts(&mut out, entry);
        }
    }
    let len = (out.len() - 4) as u32;
    out[..4].copy_from_slice(&len.to_be_bytes());
    out
}

/// How many blocks are mapped and how many more can be, as far as the owner knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    /// Blocks for which there is still room.
    pub available: Option<u64>,
    /// Blocks that are mapped.
    pub used: Option<u64>,
}

impl Resources {
    /// Whether the answer to a command tells them: LOG SENSE of page 0Ch.
    pub const fn are_told_by(cdb: &Cdb) -> bool {
        cdb.opcode() == Opcode::LOG_SENSE.0 && cdb.u8::<2>() & 0x3f == LogPage::PROVISIONING.0
    }
}

/// THRESHOLD EXPONENT: log page 0Ch counts in sets of 2 to the power of this many blocks. So many that 32 bits count the unit, and 1 MiB at
/// least where it can.
pub(super) fn threshold_exponent(unit: &Unit) -> u8 {
    if !unit.can_unmap {
        return 0;
    }
    let least = 20 - unit.block_shift();
    let bits = u64::BITS - unit.blocks.leading_zeros();
    bits.saturating_sub(u32::BITS).max(least) as u8
}

/// Subpage code that asks for all subpages.
const ALL_SUBPAGES: u8 = 0xff;

/// LOG SENSE (SPC-4 §6.8, §7.3).
pub(super) fn log(page: u8, subpage: u8, from: u16, unit: &Unit, resources: &Resources) -> Result<Vec<u8>, Sense> {
    let page = LogPage(page);
    let pages: &[LogPage] =
        if unit.can_unmap { &[LogPage::SUPPORTED, LogPage::PROVISIONING] } else { &[LogPage::SUPPORTED] };
    let mut out = vec![page.0, subpage, 0, 0];
    match (page, subpage) {
        (LogPage::SUPPORTED, 0) => out.extend(pages.iter().map(|page| page.0)),
        (LogPage::SUPPORTED, ALL_SUBPAGES) => {
            for page in pages {
                out.extend_from_slice(&[page.0, 0]);
            }
            // This list is one of the subpages; SPF stands in its page code.
            out.splice(6..6, [LogPage::SUPPORTED.0, ALL_SUBPAGES]);
            out[0] |= 0x40;
        }
        (LogPage::PROVISIONING, 0) if unit.can_unmap => {
            let exponent = threshold_exponent(unit);
            let counts = [(0x0001, resources.available, false), (0x0002, resources.used, true)];
            for (code, blocks, round_up) in counts {
                let Some(blocks) = blocks.filter(|_| code >= from) else { continue };
                let sets = blocks >> exponent;
                let rest = blocks & ((1 << exponent) - 1) != 0;
                let sets = sets.saturating_add(u64::from(round_up && rest));
                out.put_u16(code);
                // FORMAT AND LINKING 11b: a binary list. SCOPE 1: of this logical unit alone.
                out.extend_from_slice(&[0x03, 8]);
                out.put_u32(u32::try_from(sets).unwrap_or(u32::MAX));
                out.extend_from_slice(&[1, 0, 0, 0]);
            }
        }
        (LogPage::SUPPORTED | LogPage::PROVISIONING, _) if pages.contains(&page) => return Err(Sense::field(3)),
        _ => return Err(Sense::bit(2, 5)),
    }
    // A first parameter behind the last is an error (SPC-4 §6.8).
    if from > 0x0002 || page == LogPage::SUPPORTED && from != 0 {
        return Err(Sense::field(5));
    }
    let len = (out.len() - 4) as u16;
    out.set_u16(2, len);
    Ok(out)
}
