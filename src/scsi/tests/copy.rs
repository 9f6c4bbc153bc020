//! EXTENDED COPY lists and plans, RECEIVE COPY RESULTS.

use super::*;

fn cscd(unit: &Unit) -> Vec<u8> {
    let size = unit.block_size.to_be_bytes();
    let mut bytes = [&[0xe4, 0, 0, 0, 1, 3, 0, 16][..], &unit.naa()].concat();
    bytes.resize(28, 0);
    bytes.extend_from_slice(&[0, size[1], size[2], size[3]]);
    bytes
}

/// A segment of blocks.
fn blocks(source: u8, destination: u8, count: u16, from: u64, to: u64) -> Vec<u8> {
    let head = [0x02, 0, 0, 0x18, 0, source, 0, destination, 0, 0];
    [&head[..], &count.to_be_bytes(), &from.to_be_bytes(), &to.to_be_bytes()].concat()
}

/// A segment of bytes.
fn bytes(source: u8, destination: u8, count: u32, from: u64, to: u64) -> Vec<u8> {
    let head = [0x0a, 0, 0, 0x1c, 0, source, 0, destination];
    [&head[..], &count.to_be_bytes(), &from.to_be_bytes(), &to.to_be_bytes(), &[0; 4]].concat()
}

fn list(id: u8, usage: u8, cscds: &[Vec<u8>], segments: &[Vec<u8>]) -> Vec<u8> {
    let (cscds, segments) = (cscds.concat(), segments.concat());
    let cscds_len = (cscds.len() as u16).to_be_bytes();
    let segments_len = (segments.len() as u32).to_be_bytes();
    let head = [&[id, usage << 3][..], &cscds_len, &[0; 4], &segments_len, &[0; 4]].concat();
    [head, cscds, segments].concat()
}

fn one(segment: Vec<u8>) -> Vec<u8> {
    list(1, 0, &[cscd(&unit())], &[segment])
}

fn seen(number: u8, unit: &Unit) -> CopyUnit<u8> {
    CopyUnit {
        unit: number,
        blocks: unit.blocks,
        block_size: unit.block_size,
        readable: true,
        writable: true,
        protected: false,
    }
}

fn plan(list: &[u8]) -> Result<Vec<CopySegment<u8>>, Sense> {
    let unit = unit();
    CopyList::decode(list)?.plan(|designator| designator.names(&unit).then(|| seen(1, &unit)))
}

fn step(source_lba: u64, destination_lba: u64, bytes: u32, index: u16) -> CopySegment<u8> {
    CopySegment { source: 1, source_lba, destination: 1, destination_lba, bytes, index }
}

const END: u64 = 1 << 19;

#[test]
fn copies_within_a_unit() {
    let segments = [blocks(0, 0, 2048, 0, END - 2048), blocks(0, 0, 0, 5, 6), bytes(0, 0, 1 << 20, 3, 1 << 18)];
    let plan = plan(&list(7, 2, &[cscd(&unit())], &segments)).unwrap();
    assert_eq!(plan, [step(0, END - 2048, 2048 * 512, 0), step(3, 1 << 18, 1 << 20, 2)]);
}

#[test]
fn copies_between_units_of_other_block_sizes() {
    let small = unit();
    let big = Unit { block_size: 4096, blocks: 100, uuid: [0x22; 16], ..unit() };
    let mut to_blocks = blocks(0, 1, 3, 8, 97);
    to_blocks[1] = 2;
    let ask = |segments: &[Vec<u8>]| {
        let list = CopyList::decode(&list(0, 3, &[cscd(&small), cscd(&big)], segments)).unwrap();
        assert_eq!(list.list_id, ListId::None);
        list.plan(|designator| {
            let both = [(1, &small), (2, &big)];
            both.into_iter().find(|(_, unit)| designator.names(unit)).map(|(number, unit)| seen(number, unit))
        })
    };
    let step = CopySegment { source: 1, source_lba: 8, destination: 2, destination_lba: 97, bytes: 3 << 12, index: 0 };
    assert_eq!(ask(&[to_blocks]), Ok(vec![step]));
    assert_eq!(ask(&[blocks(0, 1, 24, 8, 97)]), Ok(vec![step]));
    assert_eq!(ask(&[blocks(0, 1, 23, 8, 97)]), Err(Sense::parameter(16 + 64 + 8)), "a part of a block");
    assert_eq!(ask(&[blocks(0, 1, 32, 8, 97)]), Err(Sense::copy_aborted(Asc::NONE, 0).at(16 + 64 + 20)));
}

#[test]
fn segments_that_reach_nothing() {
    let at = 16 + 32;
    let good = blocks(0, 0, 1, 0, 1);
    let second = |segment: Vec<u8>| plan(&list(1, 0, &[cscd(&unit())], &[good.clone(), segment]));
    let aborted = |code, byte| Err(Sense::copy_aborted(code, 1).at(at + 28 + byte));
    assert_eq!(second(blocks(0, 1, 2048, 0, 0)), aborted(Asc::UNREACHABLE_COPY_TARGET, 6));
    assert_eq!(second(blocks(9, 0, 2048, 0, 0)), aborted(Asc::UNREACHABLE_COPY_TARGET, 4));
    assert_eq!(second(blocks(0, 0, 2048, 0, END - 1)), aborted(Asc::NONE, 20));
    assert_eq!(second(blocks(0, 0, 2, END - 1, 0)), aborted(Asc::NONE, 12));
    assert_eq!(second(blocks(0, 0, 1, u64::MAX, 0)), aborted(Asc::NONE, 12));
    assert_eq!(second(bytes(0, 0, 513, 0, 0)), Err(Sense::parameter(at + 28 + 8)));
    assert_eq!(second(bytes(0, 0, (64 << 20) + 512, 0, 0)), Err(Sense::parameter(at + 28 + 8)));
    let decoded = CopyList::decode(&one(good)).unwrap();
    let nobody = decoded.plan(|_| None::<CopyUnit<u8>>);
    assert_eq!(nobody, Err(Sense::copy_aborted(Asc::COPY_TARGET_NOT_REACHABLE, 0).at(16)));
    let with = |change: fn(&mut CopyUnit<u8>)| {
        let mut found = seen(1, &unit());
        change(&mut found);
        decoded.plan(|_| Some(found)).unwrap_err().code
    };
    assert_eq!(with(|unit| unit.readable = false), Asc::THIRD_PARTY_FAILURE);
    assert_eq!(with(|unit| unit.writable = false), Asc::THIRD_PARTY_FAILURE);
    assert_eq!(with(|unit| unit.protected = true), Asc::WRITE_PROTECTED);
    assert_eq!(with(|unit| unit.block_size = 4096), Asc::INVALID_FIELD_IN_PARAMETERS);
}

#[test]
fn limits_are_those_that_are_reported() {
    let decode = |list: &[u8]| CopyList::decode(list).map(drop);
    let (unit, segment) = (cscd(&unit()), blocks(0, 0, 1, 0, 1));
    let of = |cscds: usize, segments: usize| list(1, 0, &vec![unit.clone(); cscds], &vec![segment.clone(); segments]);
    assert_eq!(decode(&of(8, 64)), Ok(()));
    assert_eq!(decode(&of(9, 1)), Err(Sense::illegal(Asc::TOO_MANY_CSCDS).at(2)));
    assert_eq!(decode(&of(1, 65)), Err(Sense::illegal(Asc::TOO_MANY_SEGMENTS).at(8)));
    // Too much of both: the length is what is wrong.
    assert_eq!(decode(&of(9, 65)), Err(Sense::list_length().at(2)));
    let cdb = |len: u16| {
        let [high, low] = len.to_be_bytes();
        Rig::new().begin(A, &[0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, high, low, 0, 0])
    };
    assert!(matches!(cdb(16 + 2048), Action::Media(Media::ExtendedCopy, _)));
    assert!(matches!(cdb(16 + 2049), Action::Reply(Reply::Check(Sense { code: Asc::PARAMETER_LIST_LENGTH, .. }))));
    assert_eq!(cdb(0), Action::Reply(Reply::Good(Vec::new())));
}

#[test]
fn wrong_lists() {
    let decode = |list: &[u8]| CopyList::decode(list).map(drop);
    let good = one(blocks(0, 0, 1, 0, 1));
    for len in 0..16 {
        assert_eq!(decode(&good[..len]), Err(Sense::list_length()));
    }
    for len in 16..good.len() {
        assert_eq!(decode(&good[..len]), Err(Sense::list_length().at(2)));
    }
    let with = |at: usize, byte: u8| {
        let mut list = good.clone();
        list[at] = byte;
        decode(&list)
    };
    assert_eq!(with(1, 1 << 3), Err(Sense::parameter(1)));
    assert_eq!(with(1, 3 << 3), Err(Sense::parameter(0)), "an identifier where there is none");
    assert_eq!(with(3, 31), Err(Sense::parameter(2)));
    assert_eq!(with(15, 1), Err(Sense::illegal(Asc::INLINE_DATA_EXCEEDED).at(12)));
    assert_eq!(with(16, 0xe0), Err(Sense::illegal(Asc::UNSUPPORTED_CSCD_TYPE).at(16)));
    assert_eq!(with(17, 0xc0), Ok(()), "LU ID TYPE is obsolete");
    assert_eq!(with(17, 1), Err(Sense::illegal(Asc::INCORRECT_COPY_TARGET_TYPE).at(17)));
    assert_eq!(with(23, 21), Err(Sense::parameter(23)));
    assert_eq!(with(48, 3), Err(Sense::illegal(Asc::UNSUPPORTED_SEGMENT_TYPE).at(48)));
    assert_eq!(with(51, 0x17), Err(Sense::parameter(50)));
    assert_eq!(with(11, 27), Err(Sense::list_length().at(8)));
    assert_eq!(with(11, 1), Err(Sense::list_length().at(8)));
    let mut offset = one(bytes(0, 0, 512, 0, 0));
    offset[48 + 31] = 1;
    assert_eq!(decode(&offset), Err(Sense::parameter(48 + 30)));
}

#[test]
fn random_lists_never_leave_the_unit() {
    let mut chance = Random(8);
    let mut planned = 0;
    for _ in 0..100_000 {
        let mut segments = Vec::new();
        for _ in 0..chance.up_to(4) {
            let (from, to, count) =
                (chance.up_to(END + 2), chance.up_to(END + 2), chance.next() as u16 >> chance.up_to(16));
            segments.push(match chance.up_to(2) {
                0 => blocks(0, 0, count, from, to),
                _ => bytes(0, 0, u32::from(count) * 512, from, to),
            });
        }
        let mut list = list(chance.next() as u8, 2, &[cscd(&unit())], &segments);
        for _ in 0..chance.up_to(3) {
            let at = chance.up_to(list.len() as u64) as usize;
            list[at] ^= 1 << chance.up_to(8);
        }
        let Ok(steps) = plan(&list) else { continue };
        planned += 1;
        for step in steps {
            let blocks = u64::from(step.bytes / 512);
            assert!(step.bytes != 0 && step.bytes.is_multiple_of(512) && step.bytes <= 64 << 20);
            assert!(step.source_lba + blocks <= END && step.destination_lba + blocks <= END);
        }
    }
    assert!(planned > 1000);
    for _ in 0..50_000 {
        let len = chance.up_to(200) as usize;
        let _ = plan(&chance.bytes(len));
    }
}

#[test]
fn operating_parameters() {
    let data = Rig::new().good(A, &[0x84, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0]);
    let mut golden = vec![0, 0, 0, 43, 1, 0, 0, 0, 0, 8, 0, 64, 0, 0, 8, 0, 4, 0, 0, 0];
    golden.resize(34, 0);
    golden.extend_from_slice(&[0, 16, 16, 9, 0, 0, 0, 0, 0, 3, 0x02, 0x0a, 0xe4]);
    assert_eq!(data, golden);
    let none = Rig::with(Unit { copies: false, ..unit() }).check(A, &[0x84, 3]);
    assert_eq!(none, Sense::opcode());
}

#[test]
fn the_status_of_a_copy() {
    let mut rig = Rig::new();
    let status = |list_id| [0x84, 0, list_id, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0];
    assert_eq!(rig.check(A, &status(1)), Sense::field(2));
    let list = CopyList::decode(&one(blocks(0, 0, 1, 0, 1))).unwrap();
    rig.lu.copy_begin(A, &list).unwrap();
    assert_eq!(rig.good(A, &status(1)), [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(rig.check(B, &status(1)), Sense::field(2), "of another nexus");
    assert_eq!(rig.lu.copy_begin(A, &list).unwrap_err().code, Asc::OPERATION_IN_PROGRESS);
    rig.lu.copy_begin(B, &list).unwrap();
    let progress = CopyProgress { state: CopyState::Running, segments: 2, bytes: 5 << 32 };
    rig.lu.copy_progress(A, &list, progress);
    assert_eq!(rig.good(A, &status(1)), [0, 0, 0, 8, 0, 0, 2, 1, 0x01, 0x40, 0, 0]);
    rig.lu.copy_end(A, &list, CopyProgress { state: CopyState::Done, segments: 1, bytes: 512 });
    assert_eq!(rig.good(A, &status(1)), [0, 0, 0, 8, 1, 0, 1, 0, 0, 0, 2, 0]);
    assert_eq!(rig.check(A, &status(1)), Sense::field(2), "it is told once");
    // A failure, which a new copy with the same identifier replaces.
    rig.lu.copy_end(B, &list, CopyProgress { state: CopyState::Failed, segments: 0, bytes: 0 });
    rig.lu.copy_begin(B, &list).unwrap();
    rig.lu.copy_end(B, &list, CopyProgress { state: CopyState::Failed, segments: 0, bytes: 0 });
    assert_eq!(rig.good(B, &status(1))[4], 2);
    // Discarded when it ends; forgotten with the nexus.
    let mut discard = list.clone();
    discard.list_id = ListId::Discard(4);
    rig.lu.copy_begin(A, &discard).unwrap();
    assert_eq!(rig.good(A, &status(4))[4], 0);
    rig.lu.copy_end(A, &discard, CopyProgress::START);
    assert_eq!(rig.check(A, &status(4)), Sense::field(2));
    rig.lu.copy_begin(A, &list).unwrap();
    rig.lu.detach(A);
    rig.lu.copy_end(A, &list, CopyProgress { state: CopyState::Done, ..CopyProgress::START });
    rig.lu.attach(A, initiator("a", 1), 1);
    rig.check(A, &[0; 6]);
    assert_eq!(rig.check(A, &status(1)), Sense::field(2));
}

#[test]
fn copies_are_bounded() {
    let mut rig = Rig::new();
    let list = |list_id| {
        let mut list = CopyList::decode(&one(blocks(0, 0, 1, 0, 1))).unwrap();
        list.list_id = list_id;
        list
    };
    for _ in 0..16 {
        rig.lu.copy_begin(A, &list(ListId::None)).unwrap();
    }
    assert_eq!(rig.lu.copy_begin(B, &list(ListId::None)).unwrap_err().code, Asc::INSUFFICIENT_RESOURCES);
    for _ in 0..16 {
        rig.lu.copy_end(A, &list(ListId::None), CopyProgress::START);
    }
    for id in 0..16 {
        rig.lu.copy_begin(A, &list(ListId::Hold(id))).unwrap();
        rig.lu.copy_end(A, &list(ListId::Hold(id)), CopyProgress { state: CopyState::Done, ..CopyProgress::START });
    }
    assert_eq!(rig.lu.copy_begin(A, &list(ListId::Hold(16))).unwrap_err().code, Asc::INSUFFICIENT_RESOURCES);
    rig.lu.copy_begin(A, &list(ListId::Hold(3))).unwrap();
    rig.lu.copy_begin(B, &list(ListId::Hold(16))).unwrap();
}
