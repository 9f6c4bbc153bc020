//! CDBs of commands on blocks: golden, at every boundary, and random.

use super::*;
use crate::scsi::decode::CATALOGUE;
use crate::scsi::reservation::Access;
use crate::scsi::spec::Opcode;

fn try_decode(cdb: &[u8], unit: &Unit) -> Result<Request, Sense> {
    decode(&Cdb::new(cdb), unit, &ModeState::new(unit))
}

fn media(cdb: &[u8]) -> (Media, DataOut, u64) {
    match try_decode(cdb, &unit()) {
        Ok(Request { command: Command::Media(media), data_out, data_in, .. }) => (media, data_out, data_in),
        other => panic!("{cdb:x?}: {other:?}"),
    }
}

fn is_nothing(cdb: &[u8]) -> bool {
    matches!(try_decode(cdb, &unit()), Ok(Request { command: Command::Unit(UnitCommand::Good), .. }))
}

fn sense(cdb: &[u8]) -> Sense {
    try_decode(cdb, &unit()).unwrap_err()
}

const LBA: u64 = 0x0003_0201;
const LAST: u64 = (1 << 19) - 1;

fn cdb_10(opcode: u8, flags: u8, lba: u32, blocks: u16) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.push(0);
    cdb.extend_from_slice(&blocks.to_be_bytes());
    cdb.push(0);
    cdb
}

fn cdb_12(opcode: u8, flags: u8, lba: u32, blocks: u32) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.extend_from_slice(&blocks.to_be_bytes());
    cdb.extend_from_slice(&[0, 0]);
    cdb
}

fn cdb_16(opcode: u8, flags: u8, lba: u64, blocks: u32) -> Vec<u8> {
    let mut cdb = vec![opcode, flags];
    cdb.extend_from_slice(&lba.to_be_bytes());
    cdb.extend_from_slice(&blocks.to_be_bytes());
    cdb.extend_from_slice(&[0, 0]);
    cdb
}

/// Each form of a command, at `lba` for `blocks`.
fn forms(codes: [u8; 3], flags: u8, lba: u64, blocks: u32) -> [Vec<u8>; 3] {
    [
        cdb_10(codes[0], flags, lba as u32, blocks as u16),
        cdb_12(codes[1], flags, lba as u32, blocks),
        cdb_16(codes[2], flags, lba, blocks),
    ]
}

const READ: [u8; 3] = [0x28, 0xa8, 0x88];
const WRITE: [u8; 3] = [0x2a, 0xaa, 0x8a];
const WRITE_AND_VERIFY: [u8; 3] = [0x2e, 0xae, 0x8e];
const VERIFY: [u8; 3] = [0x2f, 0xaf, 0x8f];

#[test]
fn reads_and_writes_of_each_form() {
    let (lba, blocks) = (LBA, 3);
    for (flags, dpo, fua) in [(0, false, false), (0x10, true, false), (0x08, false, true), (0x18, true, true)] {
        for cdb in forms(READ, flags, lba, blocks) {
            assert_eq!(media(&cdb), (Media::Read { lba, blocks, dpo, fua }, DataOut::None, 1536));
        }
        for cdb in forms(WRITE, flags, lba, blocks) {
            assert_eq!(media(&cdb), (Media::Write { lba, blocks, dpo, fua }, DataOut::Residual(1536), 0));
        }
        let or = Media::OrWrite { lba, blocks, dpo, fua };
        assert_eq!(media(&cdb_16(0x8b, flags, lba, blocks)), (or, DataOut::Exact(1536), 0));
        let atomic = Media::WriteAtomic { lba, blocks, dpo, fua };
        assert_eq!(media(&cdb_16(0x9c, flags, lba, blocks)), (atomic, DataOut::Exact(1536), 0));
        let caw = Media::CompareAndWrite { lba, blocks, dpo, fua };
        assert_eq!(media(&cdb_16(0x89, flags, lba, blocks)), (caw, DataOut::Exact(3072), 0));
    }
    // The 6-byte form: 21 bits of address, and 0 is 256 blocks.
    let read = Media::Read { lba, blocks: 256, dpo: false, fua: false };
    assert_eq!(media(&[0x08, 0x03, 0x02, 0x01, 0, 0]), (read, DataOut::None, 256 * 512));
    let write = Media::Write { lba, blocks: 1, dpo: false, fua: false };
    assert_eq!(media(&[0x0a, 0xe3, 0x02, 0x01, 1, 0]), (write, DataOut::Residual(512), 0));
}

#[test]
fn verifying_commands_say_what_they_compare() {
    let (lba, blocks, dpo) = (LBA, 5, true);
    for (bytchk, check, data_out) in [
        (0, Check::Medium, DataOut::None),
        (1, Check::Blocks, DataOut::Exact(2560)),
        (3, Check::OneBlock, DataOut::Exact(512)),
    ] {
        for cdb in forms(VERIFY, 0x10 | bytchk << 1, lba, blocks) {
            assert_eq!(media(&cdb), (Media::Verify { lba, blocks, dpo, check }, data_out, 0));
        }
    }
    for (bytchk, compare) in [(0, false), (1, true)] {
        for cdb in forms(WRITE_AND_VERIFY, 0x10 | bytchk << 1, lba, blocks) {
            let command = Media::WriteAndVerify { lba, blocks, dpo, compare };
            assert_eq!(media(&cdb), (command, DataOut::Residual(2560), 0));
        }
    }
    for cdb in forms(VERIFY, 2 << 1, lba, blocks) {
        assert_eq!(sense(&cdb), Sense::bit(1, 2));
    }
    for bytchk in [2, 3] {
        for cdb in forms(WRITE_AND_VERIFY, bytchk << 1, lba, blocks) {
            assert_eq!(sense(&cdb), Sense::bit(1, 2));
        }
    }
}

#[test]
fn ranges_end_with_the_unit() {
    for codes in [READ, WRITE, WRITE_AND_VERIFY, VERIFY] {
        for (at_10, cdb) in forms(codes, 0, LAST, 1).iter().enumerate() {
            assert!(
                matches!(
                    media(cdb).0,
                    Media::Read { lba: LAST, blocks: 1, .. }
                        | Media::Write { lba: LAST, blocks: 1, .. }
                        | Media::WriteAndVerify { lba: LAST, blocks: 1, .. }
                        | Media::Verify { lba: LAST, blocks: 1, .. }
                ),
                "{at_10}"
            );
        }
        for (lba, blocks) in [(LAST, 2), (LAST + 1, 1), (LAST + 1, 0), (0xffff_ffff, 0), (0x8000_0000, 7)] {
            for cdb in forms(codes, 0, lba, blocks) {
                assert_eq!(sense(&cdb), Sense::out_of_range(lba));
            }
        }
        for cdb in forms(codes, 0, LAST, 0) {
            assert!(is_nothing(&cdb), "no blocks: nothing, after the address was checked");
        }
        // Beyond 32 bits, and so that a shift to bytes or a sum would overflow.
        for lba in [1 << 32, 1 << 54, 1 << 55, 1 << 63, u64::MAX] {
            assert_eq!(sense(&cdb_16(codes[2], 0, lba, 1)), Sense::out_of_range(lba));
            assert_eq!(sense(&cdb_16(codes[2], 0, lba, u32::MAX)), Sense::out_of_range(lba));
        }
        // The range comes before the limit of a transfer.
        for cdb in forms(codes, 0, 0, 8193) {
            assert!(matches!(sense(&cdb).pointer, Some(Pointer::Cdb(6 | 7 | 10, None))));
        }
    }
    for opcode in [0x89, 0x8b, 0x90, 0x91, 0x93, 0x9c] {
        assert_eq!(sense(&cdb_16(opcode, 0, LAST + 1, 0)).code, Asc::LBA_OUT_OF_RANGE, "{opcode:x}");
        assert_eq!(sense(&cdb_16(opcode, 0, LAST, 2)).code, Asc::LBA_OUT_OF_RANGE, "{opcode:x}");
    }
}

#[test]
fn the_longest_transfer_is_allowed() {
    for codes in [READ, WRITE, WRITE_AND_VERIFY, VERIFY] {
        for cdb in forms(codes, 0, 0, 8192) {
            assert!(try_decode(&cdb, &unit()).is_ok());
        }
    }
}

#[test]
fn announced_lengths_become_residuals_or_errors() {
    let wrong = Err(Sense::illegal(Asc::INVALID_INFORMATION_UNIT));
    let write = |announced| DataOut::Residual(1024).settle(announced, 512);
    assert_eq!(write(1024), (Residual::None, Ok(1024)));
    assert_eq!(write(0), (Residual::Over(1024), Ok(0)));
    assert_eq!(write(512), (Residual::Over(512), Ok(512)));
    assert_eq!(write(10_000), (Residual::Under(8976), Ok(1024)));
    assert_eq!(write(200), (Residual::Over(824), wrong), "a part of a block");
    let exact = |announced| DataOut::Exact(1024).settle(announced, 512);
    assert_eq!(exact(1024), (Residual::None, Ok(1024)));
    assert_eq!(exact(512), (Residual::Over(512), wrong));
    assert_eq!(exact(2048), (Residual::Under(1024), wrong));
    assert_eq!(DataOut::None.settle(7, 512), (Residual::Under(7), Ok(0)));
    let list = |announced| DataOut::Parameters(24).settle(announced, 512);
    assert_eq!(list(24), (Residual::None, Ok(24)));
    assert_eq!(list(30), (Residual::Under(6), Ok(24)));
    assert_eq!(list(23), (Residual::Over(1), Err(Sense::list_length())));
}

#[test]
fn protection_information_is_refused() {
    for field in 1..8u8 {
        let mut cdbs = Vec::new();
        for codes in [READ, WRITE, WRITE_AND_VERIFY, VERIFY] {
            cdbs.extend(forms(codes, field << 5, 0, 1));
        }
        cdbs.extend([0x89, 0x8b, 0x93, 0x9c].map(|opcode| cdb_16(opcode, field << 5, 0, 1)));
        cdbs.push(cdb_10(0x41, field << 5, 0, 1));
        for cdb in cdbs {
            assert_eq!(sense(&cdb), Sense::bit(1, 7), "{cdb:x?}");
        }
    }
}

#[test]
fn limits_are_those_of_block_limits() {
    let with = |unit: &Unit, cdb: &[u8]| try_decode(cdb, unit).map(|request| request.command);
    assert_eq!(sense(&cdb_16(0x89, 0, 0, 129)), Sense::field(13));
    assert!(is_nothing(&cdb_16(0x89, 0, 0, 0)));
    // WRITE SAME: no length means to the end, which must not be too much either.
    assert_eq!(sense(&cdb_16(0x93, 0, 0, 0)), Sense::field(10));
    assert_eq!(sense(&cdb_10(0x41, 0, 0, 0x8001)), Sense::field(7));
    let same = |lba, blocks, fill, unmap| Media::WriteSame { lba, blocks, fill, unmap };
    let to_end = same(LAST - 0x7fff, 0x8000, Fill::Data, None);
    assert_eq!(media(&cdb_16(0x93, 0, LAST - 0x7fff, 0)), (to_end, DataOut::Exact(512), 0));
    assert_eq!(sense(&cdb_16(0x93, 0, LAST - 0x8000, 0)), Sense::field(10));
    let free = Unit { write_same_max: 0, ..unit() };
    assert_eq!(with(&free, &cdb_16(0x93, 0, 0, 0)), Ok(Command::Media(same(0, 1 << 19, Fill::Data, None))));
    // Atomic writes.
    let atomic = |alignment, granularity| Unit { atomic: Some(Atomic { max: 16, alignment, granularity }), ..unit() };
    assert_eq!(with(&atomic(4, 1), &cdb_16(0x9c, 0, 2, 4)), Err(Sense::field(2)));
    assert_eq!(with(&atomic(1, 4), &cdb_16(0x9c, 0, 0, 6)), Err(Sense::field(12)));
    assert_eq!(with(&atomic(1, 4), &cdb_16(0x9c, 0, 0, 20)), Err(Sense::field(12)));
    assert!(with(&atomic(4, 4), &cdb_16(0x9c, 0, 8, 16)).is_ok());
    assert_eq!(sense(&cdb_16(0x9c, 0, 0, 0x0001_0001)), Sense::field(10), "an atomic boundary");
    assert_eq!(with(&Unit { atomic: None, ..unit() }, &cdb_16(0x9c, 0, 0, 1)), Err(Sense::opcode()));
    let no_caw = Unit { compare_and_write_max: 0, ..unit() };
    assert_eq!(with(&no_caw, &cdb_16(0x89, 0, 0, 1)), Err(Sense::opcode()));
}

#[test]
fn unmapping_needs_a_unit_that_can() {
    let anchors = Unit { can_anchor: true, ..unit() };
    let thick = Unit { can_unmap: false, unmap_max: 0, ..unit() };
    let same = |unit: &Unit, flags: u8| {
        let request = try_decode(&cdb_16(0x93, flags, 0, 8), unit)?;
        Ok(match request.command {
            Command::Media(Media::WriteSame { fill, unmap, .. }) => (fill, unmap, request.data_out),
            other => panic!("{other:?}"),
        })
    };
    let block = DataOut::Exact(512);
    assert_eq!(same(&unit(), 0x08), Ok((Fill::Data, Some(Unmapping::Deallocate), block)));
    assert_eq!(same(&unit(), 0x09), Ok((Fill::Zeros, Some(Unmapping::Deallocate), DataOut::None)));
    assert_eq!(same(&unit(), 0x01), Ok((Fill::Zeros, None, DataOut::None)));
    assert_eq!(same(&anchors, 0x18), Ok((Fill::Data, Some(Unmapping::Anchor), block)));
    assert_eq!(same(&unit(), 0x18), Err(Sense::bit(1, 4)));
    assert_eq!(same(&anchors, 0x10), Err(Sense::bit(1, 4)), "an anchor without UNMAP");
    assert_eq!(same(&thick, 0x08), Err(Sense::bit(1, 3)));
    assert_eq!(same(&unit(), 0x02), Err(Sense::bit(1, 2)));
    assert_eq!(same(&unit(), 0x04), Err(Sense::bit(1, 2)));
    let unmap = |unit: &Unit, flags, len| try_decode(&[0x42, flags, 0, 0, 0, 0, 0, 0, len, 0], unit);
    let request = unmap(&unit(), 0, 24).unwrap();
    assert_eq!(request.command, Command::Media(Media::Unmap { how: Unmapping::Deallocate }));
    assert_eq!(request.data_out, DataOut::Parameters(24));
    assert_eq!(unmap(&unit(), 0, 0).unwrap().command, Command::Unit(UnitCommand::Good));
    assert_eq!(unmap(&unit(), 0, 7).unwrap_err().code, Asc::PARAMETER_LIST_LENGTH);
    assert_eq!(unmap(&unit(), 1, 24), Err(Sense::bit(1, 0)));
    assert!(unmap(&anchors, 1, 24).is_ok());
    assert_eq!(unmap(&thick, 0, 24), Err(Sense::opcode()));
}

#[test]
fn caches_and_states() {
    let sync = |lba, blocks| Media::SynchronizeCache { lba, blocks };
    assert_eq!(media(&cdb_10(0x35, 0, 0, 0)).0, sync(0, 1 << 19));
    assert_eq!(media(&cdb_10(0x35, 2, 5, 3)).0, sync(5, 3));
    assert_eq!(media(&cdb_16(0x91, 2, LAST, 0)).0, sync(LAST, 1));
    let fetch = |lba, blocks| Media::PreFetch { lba, blocks };
    assert_eq!(media(&cdb_10(0x34, 2, 5, 3)).0, fetch(5, 3));
    // The group number is ignored: there are no groups.
    let mut cdb = cdb_16(0x90, 0, 7, 0);
    cdb[14] = 3;
    assert_eq!(media(&cdb).0, fetch(7, LAST - 6));
    let mut cdb = cdb_16(0x9e, 0x12, 9, 24);
    assert_eq!(media(&cdb), (Media::GetLbaStatus { lba: 9, allocation: 24 }, DataOut::None, 24));
    cdb[2] = 0x80;
    assert_eq!(sense(&cdb), Sense::out_of_range(1 << 63 | 9));
    assert_eq!(media(&[0x04, 0, 0, 0, 0, 0]), (Media::FormatUnit, DataOut::None, 0));
    assert_eq!(media(&[0x04, 0x10, 0, 0, 0, 0]).1, DataOut::Parameters(4));
    assert_eq!(media(&[0x04, 0x30, 0, 0, 0, 0]).1, DataOut::Parameters(8));
    assert_eq!(sense(&[0x04, 0x80, 0, 0, 0, 0]), Sense::bit(1, 7));
    assert_eq!(sense(&[0x04, 0x28, 0, 0, 0, 0]), Sense::field(1));
    assert_eq!(media(&[0x1d, 0x04, 0, 0, 0, 0]).0, Media::SelfTest);
    assert_eq!(sense(&[0x1d, 0x20, 0, 0, 0, 0]), Sense::bit(1, 7));
    assert_eq!(sense(&[0x1d, 0x04, 0, 0, 1, 0]), Sense::field(3));
    let stop = |start, flush| Media::StartStop { start, flush };
    assert_eq!(media(&[0x1b, 1, 0, 0, 0, 0]).0, stop(false, true));
    assert_eq!(media(&[0x1b, 0, 0, 0, 5, 0]).0, stop(true, false));
    assert_eq!(sense(&[0x1b, 0, 0, 0, 2, 0]), Sense::bit(4, 1));
    assert_eq!(sense(&[0x1b, 0, 0, 0, 0x10, 0]), Sense::bit(4, 7));
}

#[test]
fn writes_stop_at_a_protected_medium() {
    let read_only = Unit { read_only: true, ..unit() };
    let swp = ModeState { software_write_protect: true, ..ModeState::new(&unit()) };
    let mut cdbs = Vec::new();
    for codes in [WRITE, WRITE_AND_VERIFY] {
        cdbs.extend(forms(codes, 0, 0, 1));
    }
    cdbs.extend([0x89, 0x8b, 0x93, 0x9c].map(|opcode| cdb_16(opcode, 0, 0, 1)));
    cdbs.extend([cdb_10(0x41, 0x08, 0, 1), vec![0x0a, 0, 0, 0, 1, 0], vec![0x04, 0, 0, 0, 0, 0]]);
    cdbs.push(vec![0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0]);
    for cdb in cdbs {
        let cdb = Cdb::new(&cdb);
        let hard = decode(&cdb, &read_only, &ModeState::new(&read_only)).unwrap_err();
        assert_eq!((hard.key, hard.code), (SenseKey::DATA_PROTECT, Asc::WRITE_PROTECTED), "{cdb:x?}");
        let soft = decode(&cdb, &unit(), &swp).unwrap_err();
        assert_eq!((soft.key, soft.code), (SenseKey::DATA_PROTECT, Asc::SOFTWARE_WRITE_PROTECTED));
    }
    for codes in [READ, VERIFY] {
        for cdb in forms(codes, 0, 0, 1) {
            assert!(decode(&Cdb::new(&cdb), &read_only, &swp).is_ok());
        }
    }
}

#[test]
fn unknown_commands_and_aca_are_refused() {
    for opcode in [0x01, 0x07, 0x1e, 0x48, 0x60, 0x7f, 0xc0, 0xff] {
        assert_eq!(sense(&[opcode; 16]), Sense::opcode());
    }
    for action in [0x00, 0x01, 0x13, 0x1f] {
        assert_eq!(sense(&[0x9e, action]), Sense::bit(1, 4));
    }
    for entry in CATALOGUE {
        let mut cdb = [0; 16];
        cdb[0] = entry.opcode.0;
        cdb[1] = entry.action.unwrap_or(0);
        cdb[entry.usage.len() - 1] = 0x04;
        let refused = sense(&cdb);
        assert_eq!(refused, Sense::bit(entry.usage.len() as u16 - 1, 2), "{:?}", entry.opcode);
    }
}

#[test]
fn the_catalogue_is_in_order_and_its_lengths_are_those_of_the_groups() {
    let keys: Vec<_> = CATALOGUE.iter().map(|entry| (entry.opcode.0, entry.action)).collect();
    assert!(keys.is_sorted_by(|a, b| a < b));
    for entry in CATALOGUE {
        let len = match entry.opcode.0 >> 5 {
            0 => 6,
            1 | 2 => 10,
            4 => 16,
            5 => 12,
            other => panic!("group {other}"),
        };
        assert_eq!(entry.usage.len(), len, "{:?}", entry.opcode);
        assert!(entry.action.is_none_or(|action| entry.usage[1] & 0x1f & action == action));
    }
}

/// A bit of which the usage data say that it is not evaluated changes nothing, whatever the other bits are.
#[test]
fn bits_that_are_not_evaluated_change_nothing() {
    let mut chance = Random(1);
    let unit = Unit { can_anchor: true, ..unit() };
    for entry in CATALOGUE {
        let mut evaluated = vec![0u8; entry.usage.len()];
        for _ in 0..20_000 {
            let mut cdb = random_cdb(&mut chance, entry.opcode.0, entry.action, entry.usage);
            let before = try_decode(&cdb, &unit);
            let (byte, bit) = (chance.up_to(entry.usage.len() as u64) as usize, chance.up_to(8) as u32);
            if byte == 0 || byte == 1 && entry.action.is_some() && bit < 5 {
                continue;
            }
            cdb[byte] ^= 1 << bit;
            let same = before == try_decode(&cdb, &unit);
            if entry.usage[byte] >> bit & 1 == 0 {
                assert!(same, "{:?} {:?} evaluates bit {bit} of byte {byte}", entry.opcode, entry.action);
            } else if !same {
                evaluated[byte] |= 1 << bit;
            }
        }
        for (byte, seen) in evaluated.iter().enumerate() {
            let mut usage = entry.usage[byte];
            if byte == 0 || byte == 1 && entry.action.is_some() {
                usage &= if byte == 0 { 0 } else { 0xe0 };
            }
            let unseen = usage & !seen;
            assert!(unseen == 0, "{:?} {:?} never evaluates {unseen:x} of byte {byte}", entry.opcode, entry.action);
        }
    }
}

/// A CDB that is often a good one: the least that its command takes, with some bits or bytes changed.
fn random_cdb(chance: &mut Random, opcode: u8, action: Option<u8>, usage: &[u8]) -> [u8; 16] {
    let mut cdb = [0; 16];
    match usage.len() {
        10 => cdb[8] = 1,
        12 => cdb[9] = 1,
        16 => cdb[13] = 1,
        _ => cdb[4] = 1,
    }
    match Opcode(opcode) {
        // The only length that most of its actions take, and a type.
        Opcode::PERSISTENT_RESERVE_OUT => (cdb[2], cdb[8]) = (1, 24),
        Opcode::SEND_DIAGNOSTIC => cdb[4] = 0,
        Opcode::LOG_SENSE => cdb[2] = 0x40,
        Opcode::MODE_SELECT_6 | Opcode::MODE_SELECT_10 => cdb[1] = 0x10,
        Opcode::READ_CAPACITY_10 => cdb[8] = 0,
        // REPORT SUPPORTED OPERATION CODES: of one command.
        Opcode::MAINTENANCE_IN => cdb[2] = 2,
        _ => {}
    }
    for _ in 0..chance.up_to(4) {
        let at = if chance.up_to(3) == 0 { 1 } else { chance.up_to(usage.len() as u64) as usize };
        cdb[at] ^= if chance.up_to(2) == 0 { 1 << chance.up_to(8) } else { chance.next() as u8 };
    }
    cdb[0] = opcode;
    if let Some(action) = action {
        cdb[1] = cdb[1] & 0xe0 | action;
    }
    cdb
}

#[test]
fn random_cdbs_never_leave_the_unit() {
    let mut chance = Random(2);
    let tiny = Unit { blocks: 3, transfer_max: 0, write_same_max: 0, atomic: None, ..unit() };
    let huge = Unit { blocks: u64::MAX >> 12, block_size: 4096, transfer_max: 0, write_same_max: 0, ..unit() };
    for unit in [unit(), tiny, huge] {
        unit.check().unwrap();
        for _ in 0..300_000 {
            let mut cdb = Cdb::new(&chance.bytes(16));
            if chance.up_to(4) != 0 {
                let entry = &CATALOGUE[chance.up_to(CATALOGUE.len() as u64) as usize];
                cdb = Cdb(random_cdb(&mut chance, entry.opcode.0, entry.action, entry.usage));
            }
            match decode(&cdb, &unit, &ModeState::new(&unit)) {
                Ok(Request { command: Command::Media(media), access, data_in, data_out }) => {
                    if let Some((lba, blocks)) = range_of(media) {
                        assert!(blocks != 0 && blocks <= unit.blocks && lba <= unit.blocks - blocks, "{cdb:x?}");
                        // Sizes are products that fit.
                        assert!(data_in < u64::MAX && data_out != DataOut::Exact(u64::MAX));
                    }
                    let reads = matches!(
                        media,
                        Media::Read { .. } | Media::Verify { .. } | Media::PreFetch { .. } | Media::GetLbaStatus { .. }
                    );
                    let start = matches!(media, Media::StartStop { start: true, .. });
                    assert!(reads == (access == Access::Read) || start, "{media:?} {access:?}");
                }
                Ok(_) => {}
                Err(sense) => assert_eq!(sense.key, SenseKey::ILLEGAL_REQUEST),
            }
        }
    }
}

fn range_of(media: Media) -> Option<(u64, u64)> {
    Some(match media {
        Media::Read { lba, blocks, .. }
        | Media::Write { lba, blocks, .. }
        | Media::WriteAtomic { lba, blocks, .. }
        | Media::OrWrite { lba, blocks, .. }
        | Media::WriteAndVerify { lba, blocks, .. }
        | Media::Verify { lba, blocks, .. }
        | Media::CompareAndWrite { lba, blocks, .. } => (lba, u64::from(blocks)),
        Media::WriteSame { lba, blocks, .. }
        | Media::SynchronizeCache { lba, blocks, .. }
        | Media::PreFetch { lba, blocks, .. } => (lba, blocks),
        Media::GetLbaStatus { lba, .. } => (lba, 1),
        Media::Unmap { .. } | Media::FormatUnit | Media::ExtendedCopy | Media::StartStop { .. } | Media::SelfTest => {
            return None;
        }
    })
}
