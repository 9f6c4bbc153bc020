//! Mode parameters: what they are, MODE SENSE and MODE SELECT (SPC-4 §6.11 to §6.14, §7.5, SBC-3 §6).
//!
//! Three pages: Caching, Control, Informational Exceptions Control. No page can be saved. Changes are all made or none.

use super::command::PageControl;
use super::data::Put;
use super::spec::{ModePage, Sense, take_u16, take_u32, take_u64};
use super::unit::Unit;

/// What becomes of other commands when one ends with CHECK CONDITION (QERR, SPC-4 §7.5.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueueError {
    /// They go on (00b).
    #[default]
    Continue,
    /// All commands of the unit are aborted, those of other nexuses too (01b).
    AbortAll,
    /// The commands of the same nexus are aborted (11b).
    AbortNexus,
}

/// The mode parameters that can be changed. Their owner obeys them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeState {
    /// WCE: writes may be acknowledged before they are durable. False: every write is durable before its answer.
    pub write_cache: bool,
    /// SWP: writes are refused.
    pub software_write_protect: bool,
    /// D_SENSE: sense data are in descriptor format.
    pub descriptor_sense: bool,
    /// TAS: commands that another nexus aborts end with TASK ABORTED, not silently with a unit attention condition.
    pub task_aborted_status: bool,
    /// QERR.
    pub queue_error: QueueError,
}

impl ModeState {
    /// The default values for `unit`.
    pub const fn new(unit: &Unit) -> Self {
        Self {
            write_cache: unit.volatile_cache,
            software_write_protect: false,
            descriptor_sense: false,
            task_aborted_status: false,
            queue_error: QueueError::Continue,
        }
    }
}

const PAGES: [ModePage; 3] = [ModePage::CACHING, ModePage::CONTROL, ModePage::EXCEPTIONS];

/// Subpage code that asks for all subpages.
const ALL_SUBPAGES: u8 = 0xff;

/// Bytes of the longest page.
const PAGE_MAX: usize = 20;

/// A page with its header of 2 bytes.
struct Page {
    bytes: [u8; PAGE_MAX],
    len: usize,
}

impl Page {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

const fn blank(page: ModePage, len: usize) -> Page {
    let mut bytes = [0; PAGE_MAX];
    bytes[0] = page.0;
    bytes[1] = (len - 2) as u8;
    Page { bytes, len }
}

fn page(code: ModePage, control: PageControl, mode: &ModeState, unit: &Unit) -> Page {
    let default = ModeState::new(unit);
    let mode = if control == PageControl::Default { &default } else { mode };
    let is_mask = control == PageControl::Changeable;
    let flag = |bit: u32, set: bool| u8::from(set || is_mask) << bit;
    match code {
        ModePage::CACHING => {
            let mut page = blank(code, 20);
            // A unit without a volatile cache has nothing to switch on.
            page.bytes[2] = if unit.volatile_cache { flag(2, mode.write_cache) } else { 0 };
            page
        }
        ModePage::CONTROL => {
            let mut page = blank(code, 12);
            let queue_error = match mode.queue_error {
                QueueError::Continue => 0,
                QueueError::AbortAll => 1,
                QueueError::AbortNexus => 3,
            };
            page.bytes[2] = flag(2, mode.descriptor_sense);
            page.bytes[3] = if is_mask { 3 } else { queue_error } << 1;
            page.bytes[4] = flag(3, mode.software_write_protect);
            page.bytes[5] = flag(6, mode.task_aborted_status);
            if !is_mask {
                // GLTSD: no log parameters are saved. QUEUE ALGORITHM MODIFIER 1h: commands are reordered freely. No busy timeout.
                page.bytes[2] |= 0x02;
                page.bytes[3] |= 0x10;
                page.bytes[8..10].copy_from_slice(&[0xff, 0xff]);
            }
            page
        }
        // DEXCPT: no informational exceptions are reported.
        _ => {
            let mut page = blank(ModePage::EXCEPTIONS, 12);
            page.bytes[2] = if is_mask { 0 } else { 0x08 };
            page
        }
    }
}

/// What a MODE SENSE asks for.
#[derive(Clone, Copy)]
pub(super) struct ModeQuery {
    pub ten: bool,
    pub block_descriptor: bool,
    pub long_descriptor: bool,
    pub control: PageControl,
    pub page: u8,
    pub subpage: u8,
}

/// The data of MODE SENSE.
pub(super) fn mode_sense(query: ModeQuery, mode: &ModeState, unit: &Unit) -> Result<Vec<u8>, Sense> {
    let ModeQuery { ten, control, .. } = query;
    let wanted = ModePage(query.page);
    let all = wanted == ModePage::ALL;
    // No page has subpages: those that exist are subpages 0.
    if query.subpage != 0 && query.subpage != ALL_SUBPAGES {
        return Err(Sense::field(3));
    }
    if !all && !PAGES.contains(&wanted) {
        return Err(Sense::bit(2, 5));
    }
    let mut out = vec![0; if ten { 8 } else { 4 }];
    let protected = unit.read_only || mode.software_write_protect;
    // DPOFUA: both bits are taken.
    let device_specific = u8::from(protected) << 7 | 0x10;
    let before = out.len();
    if query.block_descriptor {
        if query.long_descriptor {
            out.put_u64(unit.blocks);
            out.put_u32(0);
            out.put_u32(unit.block_size);
        } else {
            out.put_u32(u32::try_from(unit.blocks).unwrap_or(u32::MAX));
            out.put_u32(unit.block_size);
        }
    }
    let descriptors = out.len() - before;
    for code in PAGES.into_iter().filter(|&code| all || code == wanted) {
        out.extend_from_slice(page(code, control, mode, unit).bytes());
    }
    if ten {
        let len = out.len() as u16 - 2;
        out.set_u16(0, len);
        out[3] = device_specific;
        out[4] = u8::from(query.block_descriptor && query.long_descriptor);
        out.set_u16(6, descriptors as u16);
    } else {
        out[0] = (out.len() - 1) as u8;
        out[2] = device_specific;
        out[3] = descriptors as u8;
    }
    Ok(out)
}

/// The mode parameters after a MODE SELECT.
pub(super) fn mode_select(list: &[u8], ten: bool, mode: &ModeState, unit: &Unit) -> Result<ModeState, Sense> {
    let header = if ten { 8 } else { 4 };
    if list.len() < header {
        return Err(Sense::list_length());
    }
    let medium_type_at = if ten { 2 } else { 1 };
    if list[medium_type_at] != 0 {
        return Err(Sense::parameter(medium_type_at));
    }
    let (descriptors, descriptors_at, long) = if ten {
        (usize::from(take_u16(list, 6).unwrap_or(0)), 6, list[4] & 1 != 0)
    } else {
        (usize::from(list[3]), 3, false)
    };
    let unit_len = if long { 16 } else { 8 };
    if descriptors != 0 && descriptors != unit_len {
        return Err(Sense::parameter(descriptors_at));
    }
    let Some(descriptor) = list.get(header..header + descriptors) else { return Err(Sense::list_length()) };
    if descriptors != 0 {
        check_descriptor(descriptor, header, long, unit)?;
    }
    let mut new = *mode;
    let mut at = header + descriptors;
    while at < list.len() {
        at = select_page(list, at, &mut new, mode, unit)?;
    }
    Ok(new)
}

/// A block descriptor may only say what is so: the size and the block size are fixed.
fn check_descriptor(descriptor: &[u8], at: usize, long: bool, unit: &Unit) -> Result<(), Sense> {
    let (blocks_fit, size_at, size) = if long {
        let blocks = take_u64(descriptor, 0);
        (matches!(blocks, Some(0 | u64::MAX)) || blocks == Some(unit.blocks), 12, take_u32(descriptor, 12))
    } else {
        let blocks = take_u32(descriptor, 0);
        let same = blocks.is_some_and(|blocks| u64::from(blocks) == unit.blocks);
        // The byte before is the density code, which must be 0.
        (matches!(blocks, Some(0 | u32::MAX)) || same, 4, take_u32(descriptor, 4))
    };
    if !blocks_fit {
        return Err(Sense::parameter(at));
    }
    if size != Some(unit.block_size) {
        return Err(Sense::parameter(at + size_at));
    }
    Ok(())
}

/// Takes the page at `at` into `new` and says where the next one begins.
fn select_page(list: &[u8], at: usize, new: &mut ModeState, mode: &ModeState, unit: &Unit) -> Result<usize, Sense> {
    let code = ModePage(list[at] & 0x3f);
    // SPF: a subpage.
    if list[at] & 0x40 != 0 || !PAGES.contains(&code) {
        return Err(Sense::parameter(at));
    }
    let current = page(code, PageControl::Current, mode, unit);
    let mask = page(code, PageControl::Changeable, mode, unit);
    let Some(&len) = list.get(at + 1) else { return Err(Sense::list_length()) };
    if len != current.bytes[1] {
        return Err(Sense::parameter(at + 1));
    }
    let Some(given) = list.get(at..at + current.len) else { return Err(Sense::list_length()) };
    let pairs = given.iter().zip(current.bytes()).zip(mask.bytes());
    // Behind the page code and the length.
    if let Some(byte) = pairs.skip(2).position(|((given, current), mask)| (given ^ current) & !mask != 0) {
        return Err(Sense::parameter(at + 2 + byte));
    }
    match code {
        ModePage::CACHING => new.write_cache = given[2] & 0x04 != 0,
        ModePage::CONTROL => {
            new.queue_error = match given[3] >> 1 & 3 {
                0 => QueueError::Continue,
                1 => QueueError::AbortAll,
                3 => QueueError::AbortNexus,
                _ => return Err(Sense::parameter(at + 3)),
            };
            new.descriptor_sense = given[2] & 0x04 != 0;
            new.software_write_protect = given[4] & 0x08 != 0;
            new.task_aborted_status = given[5] & 0x40 != 0;
        }
        _ => {}
    }
    Ok(at + current.len)
}
