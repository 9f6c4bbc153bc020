//! MODE SENSE and MODE SELECT.

use super::*;

const CACHING: [u8; 20] = [0x08, 18, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const CONTROL: [u8; 12] = [0x0a, 10, 2, 0x10, 0, 0, 0, 0, 0xff, 0xff, 0, 0];
const EXCEPTIONS: [u8; 12] = [0x1c, 10, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// MODE SENSE(6) without a block descriptor.
fn sense_6(rig: &mut Rig, page: u8) -> Vec<u8> {
    rig.good(A, &[0x1a, 8, page, 0, 255, 0])
}

/// MODE SELECT(6) of a page.
fn select(rig: &mut Rig, id: NexusId, page: &[u8]) -> Reply {
    let list = [&[0; 4], page].concat();
    rig.send(id, &[0x15, 0x10, 0, 0, list.len() as u8, 0], &list).reply
}

const GOOD: Reply = Reply::Good(Vec::new());

#[test]
fn golden_pages_in_both_headers() {
    let mut rig = Rig::new();
    let all = [&CACHING[..], &CONTROL, &EXCEPTIONS].concat();
    assert_eq!(sense_6(&mut rig, 0x3f), [&[47, 0, 0x10, 0][..], &all].concat());
    assert_eq!(sense_6(&mut rig, 0x08), [&[23, 0, 0x10, 0][..], &CACHING].concat());
    let short = [0x00, 0x08, 0, 0, 0, 0, 2, 0];
    assert_eq!(rig.good(A, &[0x1a, 0, 0x0a, 0, 255, 0]), [&[23, 0, 0x10, 8][..], &short, &CONTROL].concat());
    let ten = |flags, page| [0x5a, flags, page, 0, 0, 0, 0, 1, 0, 0];
    let header = [0, 18, 0, 0x10, 0, 0, 0, 0];
    assert_eq!(rig.good(A, &ten(8, 0x1c)), [&header[..], &EXCEPTIONS].concat());
    let header = [0, 34, 0, 0x10, 1, 0, 0, 16];
    let long = [0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0];
    assert_eq!(rig.good(A, &ten(0x10, 0x1c)), [&header[..], &long, &EXCEPTIONS].concat());
    // All subpages are those that are numbered 0.
    assert_eq!(rig.good(A, &[0x1a, 8, 0x3f, 0xff, 255, 0])[4..], all);
    assert_eq!(rig.good(A, &[0x1a, 8, 0x3f, 0, 4, 0]), [47, 0, 0x10, 0], "the length is that of all");
}

#[test]
fn a_reservation_that_comes_before_the_list_holds_for_it() {
    let mut rig = Rig::new();
    let mut changed = CONTROL;
    changed[4] |= 8;
    let list = [&[0; 4], &changed[..]].concat();
    let Action::List(command, _) = rig.begin(B, &[0x15, 0x10, 0, 0, list.len() as u8, 0]) else { panic!() };
    rig.good(A, &[0x16, 0, 0, 0, 0, 0]);
    assert_eq!(rig.lu.finish(B, command, &list).reply, Reply::Conflict);
    assert_eq!(sense_6(&mut rig, 0x0a)[4..], CONTROL, "nothing has changed");
    rig.good(A, &[0x17, 0, 0, 0, 0, 0]);
    assert_eq!(rig.lu.finish(B, command, &list).reply, GOOD);
}

#[test]
fn what_can_be_changed_and_what_is_the_default() {
    let mut rig = Rig::new();
    let mask = rig.good(A, &[0x1a, 8, 0x7f, 0, 255, 0]);
    let mut golden = vec![47, 0, 0x10, 0];
    golden.extend_from_slice(&[0x08, 18, 4]);
    golden.resize(4 + 20, 0);
    golden.extend_from_slice(&[0x0a, 10, 4, 6, 8, 0x40]);
    golden.resize(4 + 20 + 12, 0);
    golden.extend_from_slice(&[0x1c, 10]);
    golden.resize(48, 0);
    assert_eq!(mask, golden);
    let mut changed = CONTROL;
    changed[2] |= 4;
    assert_eq!(select(&mut rig, A, &changed), GOOD);
    assert_eq!(sense_6(&mut rig, 0x0a)[4..], changed);
    assert_eq!(sense_6(&mut rig, 0x8a)[4..], CONTROL);
    assert_eq!(rig.check(A, &[0x1a, 8, 0xff, 0, 255, 0]).code, Asc::SAVING_NOT_SUPPORTED);
    let mut thick = Rig::with(Unit { volatile_cache: false, ..unit() });
    assert_eq!(sense_6(&mut thick, 0x08)[6], 0);
    assert_eq!(sense_6(&mut thick, 0x48)[6], 0, "there is no cache to switch on");
    assert_eq!(select(&mut thick, A, &CACHING), Reply::Check(Sense::parameter(6)));
}

#[test]
fn every_changeable_parameter_reaches_the_state_and_others() {
    let base = *Rig::new().lu.mode();
    assert!(base.write_cache);
    let with = |bytes: &[(usize, u8)]| {
        let mut page = CONTROL;
        bytes.iter().for_each(|&(at, byte)| page[at] = byte);
        page.to_vec()
    };
    let mut no_cache = CACHING;
    no_cache[2] = 0;
    for (page, state) in [
        (no_cache.to_vec(), ModeState { write_cache: false, ..base }),
        (with(&[(2, 6)]), ModeState { descriptor_sense: true, ..base }),
        (with(&[(3, 0x12)]), ModeState { queue_error: QueueError::AbortAll, ..base }),
        (with(&[(3, 0x16)]), ModeState { queue_error: QueueError::AbortNexus, ..base }),
        (with(&[(4, 8)]), ModeState { software_write_protect: true, ..base }),
        (with(&[(5, 0x40)]), ModeState { task_aborted_status: true, ..base }),
    ] {
        let mut rig = Rig::new();
        let version = rig.lu.version();
        assert_eq!(select(&mut rig, A, &page), GOOD);
        assert_eq!(*rig.lu.mode(), state);
        assert_ne!(rig.lu.version(), version);
        assert_eq!(sense_6(&mut rig, page[0])[4..], page);
        rig.good(A, &[0; 6]);
        assert_eq!(rig.check(B, &[0; 6]).code, Asc::MODE_PARAMETERS_CHANGED);
        // Once more: nothing changes, nobody is told.
        assert_eq!(select(&mut rig, A, &page), GOOD);
        rig.good(B, &[0; 6]);
        rig.lu.reset(UnitAttention::DeviceReset);
        assert_eq!(*rig.lu.mode(), base);
    }
}

#[test]
fn write_protection_shows_and_forbids() {
    let mut rig = Rig::new();
    let mut page = CONTROL;
    page[4] = 8;
    assert_eq!(select(&mut rig, A, &page), GOOD);
    assert_eq!(sense_6(&mut rig, 0x0a)[2], 0x90);
    assert_eq!(rig.check(A, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0]).code, Asc::SOFTWARE_WRITE_PROTECTED);
    assert!(matches!(rig.begin(A, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0]), Action::Media(Media::Read { .. }, _)));
    assert_eq!(select(&mut rig, A, &CONTROL), GOOD);
    assert!(matches!(rig.begin(A, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0]), Action::Media(Media::Write { .. }, _)));
    let mut read_only = Rig::with(Unit { read_only: true, ..unit() });
    assert_eq!(sense_6(&mut read_only, 0x0a)[2], 0x90);
}

#[test]
fn block_descriptors_may_only_say_what_is_so() {
    let mut rig = Rig::new();
    let blocks = 1u32 << 19;
    for (count, size, result) in [
        (blocks, 512u32, GOOD),
        (0, 512, GOOD),
        (u32::MAX, 512, GOOD),
        (blocks - 1, 512, Reply::Check(Sense::parameter(4))),
        (blocks, 4096, Reply::Check(Sense::parameter(8))),
    ] {
        let list = [&[0, 0, 0, 8][..], &count.to_be_bytes(), &size.to_be_bytes()].concat();
        assert_eq!(rig.send(A, &[0x15, 0x10, 0, 0, 12, 0], &list).reply, result);
    }
    let long = |count: u64, size: u32| {
        [&[0, 0, 0, 0, 1, 0, 0, 16][..], &count.to_be_bytes(), &[0; 4], &size.to_be_bytes()].concat()
    };
    let mut ten = |list: &[u8]| rig.send(A, &[0x55, 0x10, 0, 0, 0, 0, 0, 0, list.len() as u8, 0], list).reply;
    assert_eq!(ten(&long(u64::from(blocks), 512)), GOOD);
    assert_eq!(ten(&long(1, 512)), Reply::Check(Sense::parameter(8)));
    assert_eq!(ten(&long(0, 520)), Reply::Check(Sense::parameter(20)));
    assert_eq!(ten(&[0, 0, 0, 0, 0, 0, 0, 16, 0, 0]), Reply::Check(Sense::parameter(6)));
    assert_eq!(ten(&[0, 0, 0, 0, 0, 0, 0, 8, 0, 0]), Reply::Check(Sense::list_length()));
}

#[test]
fn wrong_lists_change_nothing() {
    let mut rig = Rig::new();
    let before = rig.lu.clone();
    let mut first_good = [&CACHING[..], &CONTROL].concat();
    first_good[2] = 0;
    first_good[20 + 10] = 1;
    let page = |at: usize, byte: u8| {
        let mut page = CONTROL;
        page[at] = byte;
        page.to_vec()
    };
    for (list, sense) in [
        (first_good, Sense::parameter(4 + 20 + 10)),
        (page(0, 0x01), Sense::parameter(4)),
        (page(0, 0x4a), Sense::parameter(4)),
        (page(1, 11), Sense::parameter(5)),
        (page(2, 0x22), Sense::parameter(6)),
        (page(3, 0x14), Sense::parameter(7)),
        (page(3, 0x00), Sense::parameter(7)),
        (page(9, 0), Sense::parameter(13)),
        (CONTROL[..11].to_vec(), Sense::list_length()),
        (vec![0x0a], Sense::list_length()),
    ] {
        assert_eq!(select(&mut rig, A, &list), Reply::Check(sense), "{list:x?}");
    }
    let mut send = |cdb: [u8; 6], list: &[u8]| rig.send(A, &cdb, list).reply;
    assert_eq!(send([0x15, 0x10, 0, 0, 3, 0], &[0; 3]), Reply::Check(Sense::list_length()));
    assert_eq!(send([0x15, 0x10, 0, 0, 4, 0], &[0, 1, 0, 0]), Reply::Check(Sense::parameter(1)));
    assert_eq!(send([0x15, 0x11, 0, 0, 4, 0], &[]), Reply::Check(Sense::bit(1, 0)));
    assert_eq!(send([0x15, 0x00, 0, 0, 4, 0], &[]), Reply::Check(Sense::bit(1, 4)));
    assert_eq!(send([0x15, 0x10, 0, 0, 0, 0], &[]), GOOD);
    assert_eq!(rig.lu, before);
    assert_eq!(rig.check(A, &[0x1a, 8, 0x02, 0, 255, 0]), Sense::bit(2, 5));
    assert_eq!(rig.check(A, &[0x1a, 8, 0x0a, 1, 255, 0]), Sense::field(3));
}

#[test]
fn random_lists_are_taken_whole_or_not_at_all() {
    let mut chance = Random(4);
    let mut taken = 0;
    for _ in 0..60_000 {
        let mut rig = Rig::new();
        let ten = chance.up_to(2) == 1;
        let mut list = vec![0; if ten { 8 } else { 4 }];
        for _ in 0..chance.up_to(4) {
            match chance.up_to(3) {
                0 => list.extend_from_slice(&CACHING),
                1 => list.extend_from_slice(&CONTROL),
                _ => list.extend_from_slice(&EXCEPTIONS),
            }
        }
        for _ in 0..chance.up_to(4) {
            let at = chance.up_to(list.len() as u64) as usize;
            list[at] ^= 1 << chance.up_to(8);
        }
        let before = *rig.lu.mode();
        match rig.lu.finish(A, UnitCommand::ModeSelect { ten }, &list).reply {
            Reply::Good(_) => taken += 1,
            _ => assert_eq!(*rig.lu.mode(), before),
        }
    }
    assert!(taken > 1000);
}
