//! Commands on blocks (SBC-3 §5).

use crate::scsi::command::*;
use crate::scsi::copy::COPY_LIST_MAX;
use crate::scsi::reservation::Access;
use crate::scsi::spec::{Cdb, Sense};
use crate::scsi::unit::Unit;

/// Fields that the 10, 12 and 16 byte forms of a command have in different places.
#[derive(Clone, Copy)]
struct Range {
    lba: u64,
    blocks: u32,
    /// Byte of the CDB where the length begins, for sense data.
    length_at: u16,
}

const fn range_6(cdb: &Cdb) -> Range {
    let lba = cdb.u32::<0>() & 0x1f_ffff;
    // A length of 0 is 256 in this form (SBC-2, READ(6)).
    let blocks = if cdb.u8::<4>() == 0 { 256 } else { cdb.u8::<4>() as u32 };
    Range { lba: lba as u64, blocks, length_at: 4 }
}

const fn range_10(cdb: &Cdb) -> Range {
    Range { lba: cdb.u32::<2>() as u64, blocks: cdb.u16::<7>() as u32, length_at: 7 }
}

const fn range_12(cdb: &Cdb) -> Range {
    Range { lba: cdb.u32::<2>() as u64, blocks: cdb.u32::<6>(), length_at: 6 }
}

const fn range_16(cdb: &Cdb) -> Range {
    Range { lba: cdb.u64::<2>(), blocks: cdb.u32::<10>(), length_at: 10 }
}

/// The 3 bits of RDPROTECT, WRPROTECT or VRPROTECT: no unit has protection information (SBC-3 §4.22).
#[inline]
fn check_protect(cdb: &Cdb) -> Result<(), Sense> {
    if cdb.u8::<1>() & 0xe0 != 0 { Err(Sense::bit(1, 7)) } else { Ok(()) }
}

/// The range lies in the unit; a first block behind the last is wrong even if there is nothing to do.
#[inline]
fn check_range(lba: u64, blocks: u64, unit: &Unit) -> Result<(), Sense> {
    // Without overflow for any LBA: the difference is taken only when it is not negative.
    if lba >= unit.blocks || blocks > unit.blocks - lba { Err(Sense::out_of_range(lba)) } else { Ok(()) }
}

#[inline]
fn check_transfer(range: Range, unit: &Unit) -> Result<(), Sense> {
    check_range(range.lba, u64::from(range.blocks), unit)?;
    if unit.transfer_max != 0 && range.blocks > unit.transfer_max {
        return Err(Sense::field(range.length_at));
    }
    Ok(())
}

#[inline]
const fn media(media: Media, data_out: DataOut, data_in: u64) -> Request {
    Request { command: Command::Media(media), data_out, data_in, access: Access::Write }
}

/// Nothing to do: GOOD.
#[inline]
const fn nothing() -> Request {
    Request { command: Command::Unit(UnitCommand::Good), data_out: DataOut::None, data_in: 0, access: Access::Write }
}

const fn dpo(cdb: &Cdb) -> bool {
    cdb.bit::<1, 4>()
}

const fn fua(cdb: &Cdb) -> bool {
    cdb.bit::<1, 3>()
}

#[inline]
fn read(cdb: &Cdb, unit: &Unit, range: Range, flags: bool) -> Result<Request, Sense> {
    if flags {
        check_protect(cdb)?;
    }
    check_transfer(range, unit)?;
    let Range { lba, blocks, .. } = range;
    if blocks == 0 {
        return Ok(nothing());
    }
    let command = Media::Read { lba, blocks, dpo: flags && dpo(cdb), fua: flags && fua(cdb) };
    Ok(media(command, DataOut::None, unit.bytes(u64::from(blocks))))
}

pub(super) fn read_6(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    read(cdb, unit, range_6(cdb), false)
}

pub(super) fn read_10(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    read(cdb, unit, range_10(cdb), true)
}

pub(super) fn read_12(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    read(cdb, unit, range_12(cdb), true)
}

pub(super) fn read_16(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    read(cdb, unit, range_16(cdb), true)
}

#[inline]
fn write(cdb: &Cdb, unit: &Unit, range: Range, flags: bool) -> Result<Request, Sense> {
    if flags {
        check_protect(cdb)?;
    }
    check_transfer(range, unit)?;
    let Range { lba, blocks, .. } = range;
    if blocks == 0 {
        return Ok(nothing());
    }
    let command = Media::Write { lba, blocks, dpo: flags && dpo(cdb), fua: flags && fua(cdb) };
    Ok(media(command, DataOut::Residual(unit.bytes(u64::from(blocks))), 0))
}

pub(super) fn write_6(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    write(cdb, unit, range_6(cdb), false)
}

pub(super) fn write_10(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    write(cdb, unit, range_10(cdb), true)
}

pub(super) fn write_12(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    write(cdb, unit, range_12(cdb), true)
}

pub(super) fn write_16(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    write(cdb, unit, range_16(cdb), true)
}

pub(super) fn write_atomic(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    check_protect(cdb)?;
    let Some(atomic) = unit.atomic else { return Err(Sense::opcode()) };
    let (lba, blocks) = (cdb.u64::<2>(), u32::from(cdb.u16::<12>()));
    check_range(lba, u64::from(blocks), unit)?;
    // MAXIMUM ATOMIC BOUNDARY SIZE is 0: one write, one boundary (SBC-4 §5.48).
    if cdb.u16::<10>() != 0 {
        return Err(Sense::field(10));
    }
    if !lba.is_multiple_of(u64::from(atomic.alignment)) {
        return Err(Sense::field(2));
    }
    if blocks > atomic.max || !blocks.is_multiple_of(atomic.granularity) {
        return Err(Sense::field(12));
    }
    if blocks == 0 {
        return Ok(nothing());
    }
    let command = Media::WriteAtomic { lba, blocks, dpo: dpo(cdb), fua: fua(cdb) };
    Ok(media(command, DataOut::Exact(unit.bytes(u64::from(blocks))), 0))
}

pub(super) fn orwrite(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    check_protect(cdb)?;
    let range = range_16(cdb);
    check_transfer(range, unit)?;
    let Range { lba, blocks, .. } = range;
    if blocks == 0 {
        return Ok(nothing());
    }
    let command = Media::OrWrite { lba, blocks, dpo: dpo(cdb), fua: fua(cdb) };
    Ok(media(command, DataOut::Exact(unit.bytes(u64::from(blocks))), 0))
}

/// BYTCHK, bits 2:1 of byte 1.
const fn bytchk(cdb: &Cdb) -> u8 {
    cdb.u8::<1>() >> 1 & 3
}

fn write_and_verify(cdb: &Cdb, unit: &Unit, range: Range) -> Result<Request, Sense> {
    check_protect(cdb)?;
    let compare = match bytchk(cdb) {
        0 => false,
        1 => true,
        _ => return Err(Sense::bit(1, 2)),
    };
    check_transfer(range, unit)?;
    let Range { lba, blocks, .. } = range;
    if blocks == 0 {
        return Ok(nothing());
    }
    let command = Media::WriteAndVerify { lba, blocks, dpo: dpo(cdb), compare };
    Ok(media(command, DataOut::Residual(unit.bytes(u64::from(blocks))), 0))
}

pub(super) fn write_and_verify_10(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    write_and_verify(cdb, unit, range_10(cdb))
}

pub(super) fn write_and_verify_12(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    write_and_verify(cdb, unit, range_12(cdb))
}

pub(super) fn write_and_verify_16(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    write_and_verify(cdb, unit, range_16(cdb))
}

fn verify(cdb: &Cdb, unit: &Unit, range: Range) -> Result<Request, Sense> {
    check_protect(cdb)?;
    let check = match bytchk(cdb) {
        0 => Check::Medium,
        1 => Check::Blocks,
        3 => Check::OneBlock,
        _ => return Err(Sense::bit(1, 2)),
    };
    check_transfer(range, unit)?;
    let Range { lba, blocks, .. } = range;
    if blocks == 0 {
        return Ok(nothing());
    }
    let data_out = match check {
        Check::Medium => DataOut::None,
        Check::Blocks => DataOut::Exact(unit.bytes(u64::from(blocks))),
        Check::OneBlock => DataOut::Exact(unit.bytes(1)),
    };
    Ok(media(Media::Verify { lba, blocks, dpo: dpo(cdb), check }, data_out, 0))
}

pub(super) fn verify_10(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    verify(cdb, unit, range_10(cdb))
}

pub(super) fn verify_12(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    verify(cdb, unit, range_12(cdb))
}

pub(super) fn verify_16(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    verify(cdb, unit, range_16(cdb))
}

pub(super) fn compare_and_write(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    check_protect(cdb)?;
    let (lba, blocks) = (cdb.u64::<2>(), cdb.u8::<13>());
    check_range(lba, u64::from(blocks), unit)?;
    if blocks > unit.compare_and_write_max {
        return Err(Sense::field(13));
    }
    if blocks == 0 {
        // Data would contradict the field.
        return Ok(Request { data_out: DataOut::Exact(0), ..nothing() });
    }
    let blocks = u32::from(blocks);
    let command = Media::CompareAndWrite { lba, blocks, dpo: dpo(cdb), fua: fua(cdb) };
    Ok(media(command, DataOut::Exact(unit.bytes(2 * u64::from(blocks))), 0))
}

fn write_same(cdb: &Cdb, unit: &Unit, range: Range, fill: Fill) -> Result<Request, Sense> {
    check_protect(cdb)?;
    // PBDATA and LBDATA are obsolete, and what they asked for is not done (SBC-3 §5.43).
    if cdb.u8::<1>() & 0x06 != 0 {
        return Err(Sense::bit(1, 2));
    }
    let unmap = match (cdb.bit::<1, 3>(), cdb.bit::<1, 4>()) {
        (false, false) => None,
        (true, _) if !unit.can_unmap => return Err(Sense::bit(1, 3)),
        (true, false) => Some(Unmapping::Deallocate),
        (true, true) if unit.can_anchor => Some(Unmapping::Anchor),
        (_, true) => return Err(Sense::bit(1, 4)),
    };
    let Range { lba, length_at, .. } = range;
    check_range(lba, u64::from(range.blocks), unit)?;
    // WSNZ is zero: no length means to the end (SBC-3 §5.43).
    let blocks = if range.blocks == 0 { unit.blocks - lba } else { u64::from(range.blocks) };
    if unit.write_same_max != 0 && blocks > unit.write_same_max {
        return Err(Sense::field(length_at));
    }
    let data_out = match fill {
        Fill::Data => DataOut::Exact(unit.bytes(1)),
        Fill::Zeros => DataOut::None,
    };
    Ok(media(Media::WriteSame { lba, blocks, fill, unmap }, data_out, 0))
}

pub(super) fn write_same_10(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    write_same(cdb, unit, range_10(cdb), Fill::Data)
}

pub(super) fn write_same_16(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    let fill = if cdb.bit::<1, 0>() { Fill::Zeros } else { Fill::Data };
    write_same(cdb, unit, range_16(cdb), fill)
}

pub(super) fn unmap(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    let how = match cdb.bit::<1, 0>() {
        false => Unmapping::Deallocate,
        true if unit.can_anchor => Unmapping::Anchor,
        true => return Err(Sense::bit(1, 0)),
    };
    match cdb.u16::<7>() {
        0 => Ok(nothing()),
        // Not even the header.
        1..8 => Err(Sense { pointer: Sense::field(7).pointer, ..Sense::list_length() }),
        len => Ok(media(Media::Unmap { how }, DataOut::Parameters(u32::from(len)), 0)),
    }
}

/// A range of which 0 blocks means all to the end.
fn to_the_end(lba: u64, blocks: u32, unit: &Unit) -> Result<u64, Sense> {
    check_range(lba, u64::from(blocks), unit)?;
    Ok(if blocks == 0 { unit.blocks - lba } else { u64::from(blocks) })
}

fn synchronize_cache(unit: &Unit, range: Range) -> Result<Request, Sense> {
    let blocks = to_the_end(range.lba, range.blocks, unit)?;
    Ok(media(Media::SynchronizeCache { lba: range.lba, blocks }, DataOut::None, 0))
}

pub(super) fn synchronize_cache_10(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    synchronize_cache(unit, range_10(cdb))
}

pub(super) fn synchronize_cache_16(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    synchronize_cache(unit, range_16(cdb))
}

fn pre_fetch(unit: &Unit, range: Range) -> Result<Request, Sense> {
    let blocks = to_the_end(range.lba, range.blocks, unit)?;
    Ok(media(Media::PreFetch { lba: range.lba, blocks }, DataOut::None, 0))
}

pub(super) fn pre_fetch_10(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    pre_fetch(unit, range_10(cdb))
}

pub(super) fn pre_fetch_16(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    pre_fetch(unit, range_16(cdb))
}

pub(super) fn get_lba_status(cdb: &Cdb, unit: &Unit) -> Result<Request, Sense> {
    let (lba, allocation) = (cdb.u64::<2>(), cdb.u32::<10>());
    check_range(lba, 0, unit)?;
    Ok(media(Media::GetLbaStatus { lba, allocation }, DataOut::None, u64::from(allocation)))
}

/// FMTPINFO, bits 7:6: protection information. LONGLIST, FMTDATA, CMPLST and DEFECT LIST FORMAT say what list follows (SBC-3 §5.3).
pub(super) fn format_unit(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    if cdb.u8::<1>() & 0xc0 != 0 {
        return Err(Sense::bit(1, 7));
    }
    let (long_list, has_data) = (cdb.bit::<1, 5>(), cdb.bit::<1, 4>());
    if !has_data {
        // Without a list there is nothing that CMPLST and DEFECT LIST FORMAT could speak of.
        return if cdb.u8::<1>() & 0x2f != 0 {
            Err(Sense::field(1))
        } else {
            Ok(media(Media::FormatUnit, DataOut::None, 0))
        };
    }
    Ok(media(Media::FormatUnit, DataOut::Parameters(if long_list { 8 } else { 4 }), 0))
}

pub(super) fn start_stop(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    // Only START_VALID: no power conditions are kept (SBC-3 §5.25).
    if cdb.u8::<4>() & 0xf0 != 0 {
        return Err(Sense::bit(4, 7));
    }
    // LOEJ: the medium cannot be removed.
    if cdb.bit::<4, 1>() {
        return Err(Sense::bit(4, 1));
    }
    let command = Media::StartStop { start: cdb.bit::<4, 0>(), flush: !cdb.bit::<4, 2>() };
    Ok(media(command, DataOut::None, 0))
}

/// Only the default self-test: SELF-TEST CODE is 0, and there are no diagnostic pages (SPC-4 §6.42).
pub(super) fn send_diagnostic(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    if cdb.u8::<1>() & 0xe0 != 0 {
        return Err(Sense::bit(1, 7));
    }
    if cdb.u16::<3>() != 0 {
        return Err(Sense::field(3));
    }
    if !cdb.bit::<1, 2>() {
        return Ok(nothing());
    }
    Ok(media(Media::SelfTest, DataOut::None, 0))
}

pub(super) fn extended_copy(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    match cdb.u32::<10>() {
        0 => Ok(nothing()),
        len if len as usize > COPY_LIST_MAX => Err(Sense { pointer: Sense::field(10).pointer, ..Sense::list_length() }),
        len => Ok(media(Media::ExtendedCopy, DataOut::Parameters(len), 0)),
    }
}
