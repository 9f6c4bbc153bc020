//! Decoding of I/O commands.

use proptest::prelude::*;

use super::*;

fn table() -> Namespaces {
    let mut table = Namespaces::new(256);
    assert!(table.insert(namespace(1)));
    assert!(table.insert(NamespaceInfo { block_size: 4096, blocks: 1 << 36, ..namespace(2) }));
    assert!(table.insert(NamespaceInfo { read_only: true, ..namespace(4) }));
    assert!(!table.insert(namespace(257)));
    table
}

fn rw(opcode: NvmOpcode, nsid: u32, lba: u64, blocks: u32, block_size: u32) -> Sqe {
    let mut sqe = Sqe::nvm(opcode, nsid);
    sqe.set_slba(lba);
    sqe.cdw12.set(blocks - 1);
    sqe.dptr = SglDescriptor::transport(blocks * block_size);
    sqe
}

fn status(sqe: &Sqe, capsule: u32) -> StatusCode {
    let fault = decode_io(sqe, &table(), capsule).unwrap_err();
    assert!(fault.status.is_dnr());
    fault.status.code()
}

fn with(sqe: &Sqe, change: impl FnOnce(&mut Sqe)) -> Sqe {
    let mut sqe = *sqe;
    change(&mut sqe);
    sqe
}

#[test]
fn reads_and_writes_become_requests() {
    let table = table();
    let read = rw(NvmOpcode::READ, 1, 8, 8, 512);
    let (request, ns) = decode_io(&read, &table, 0).unwrap();
    assert_eq!(ns.nsid, 1);
    assert_eq!(
        request,
        IoRequest {
            op: IoOp::Read,
            place: DataPlace::HostBuffer,
            fuse: Fuse::NONE,
            nsid: 1,
            fua: false,
            deallocate: false,
            lba: 8,
            blocks: 8,
            data_len: 4096,
            zone: ZoneAsk::default(),
        }
    );
    let write = with(&rw(NvmOpcode::WRITE, 2, 1 << 35, 2, 4096), |s| {
        s.dptr = SglDescriptor::in_capsule(8192);
        s.cdw12.set(1 | RwCdw12::FUA | RwCdw12::LIMITED_RETRY);
    });
    let (request, ns) = decode_io(&write, &table, 8192).unwrap();
    assert_eq!((ns.nsid, request.op, request.place), (2, IoOp::Write, DataPlace::InCapsule));
    assert_eq!((request.lba, request.blocks, request.data_len, request.fua), (1 << 35, 2, 8192, true));
    let (request, _) = decode_io(&rw(NvmOpcode::COMPARE, 1, 0, 1, 512), &table, 0).unwrap();
    assert_eq!((request.op, request.place), (IoOp::Compare, DataPlace::HostBuffer));
}

#[test]
fn the_last_block_and_the_largest_transfer_are_reached() {
    let table = table();
    assert!(decode_io(&rw(NvmOpcode::READ, 1, 2047, 1, 512), &table, 0).is_ok());
    assert!(decode_io(&rw(NvmOpcode::READ, 1, 0, 2048, 512), &table, 0).is_ok());
    assert_eq!(status(&rw(NvmOpcode::READ, 1, 2048, 1, 512), 0), StatusCode::LBA_OUT_OF_RANGE);
    assert_eq!(status(&rw(NvmOpcode::READ, 1, 2047, 2, 512), 0), StatusCode::LBA_OUT_OF_RANGE);
    assert_eq!(status(&rw(NvmOpcode::READ, 1, 0, 2049, 512), 0), StatusCode::LBA_OUT_OF_RANGE);
    assert_eq!(status(&rw(NvmOpcode::READ, 1, u64::MAX, 1, 512), 0), StatusCode::LBA_OUT_OF_RANGE);
    assert_eq!(status(&rw(NvmOpcode::WRITE, 1, u64::MAX - 1, 4, 512), 0), StatusCode::LBA_OUT_OF_RANGE);

    assert!(decode_io(&rw(NvmOpcode::READ, 2, 0, 256, 4096), &table, 0).is_ok());
    assert_eq!(status(&rw(NvmOpcode::READ, 2, 0, 257, 4096), 0), StatusCode::INVALID_FIELD, "MDTS");
    assert_eq!(status(&rw(NvmOpcode::WRITE, 2, 0, 65536, 4096), 0), StatusCode::INVALID_FIELD, "MDTS");
}

#[test]
fn bad_commands_have_their_status() {
    let read = rw(NvmOpcode::READ, 1, 0, 8, 512);
    let write = rw(NvmOpcode::WRITE, 1, 0, 8, 512);
    let keyed = SglDescriptor { id: SglId::KEYED_DATA_BLOCK, ..SglDescriptor::transport(4096) };
    let mut moved = SglDescriptor::in_capsule(4096);
    moved.address.set(4);
    for (name, sqe, capsule, code) in [
        ("nsid 0", with(&read, |s| s.nsid.set(0)), 0, StatusCode::INVALID_NAMESPACE),
        ("broadcast", with(&read, |s| s.nsid.set(NSID_BROADCAST)), 0, StatusCode::INVALID_NAMESPACE),
        ("nsid above NN", with(&read, |s| s.nsid.set(257)), 0, StatusCode::INVALID_NAMESPACE),
        ("inactive", with(&read, |s| s.nsid.set(3)), 0, StatusCode::INVALID_FIELD),
        ("prp", with(&read, |s| s.flags = 0), 0, StatusCode::INVALID_FIELD),
        ("metadata segment", with(&read, |s| s.flags = 0x80), 0, StatusCode::INVALID_FIELD),
        ("fused read", with(&read, |s| s.flags = 0x41), 0, StatusCode::INVALID_FIELD),
        ("write first", with(&write, |s| s.flags = 0x41), 0, StatusCode::INVALID_FIELD),
        ("reserved fuse", with(&write, |s| s.flags = 0x43), 0, StatusCode::INVALID_FIELD),
        ("reserved flags", with(&write, |s| s.flags = 0x44), 0, StatusCode::INVALID_FIELD),
        ("pract", with(&read, |s| s.cdw12.set(7 | 1 << 29)), 0, StatusCode::INVALID_PROTECTION_INFO),
        ("prchk", with(&write, |s| s.cdw12.set(7 | 1 << 26)), 0, StatusCode::INVALID_PROTECTION_INFO),
        ("storage tag", with(&read, |s| s.cdw12.set(7 | 1 << 24)), 0, StatusCode::INVALID_PROTECTION_INFO),
        ("directive", with(&write, |s| s.cdw12.set(7 | 1 << 20)), 0, StatusCode::INVALID_FIELD),
        ("read only", with(&write, |s| s.nsid.set(4)), 0, StatusCode::NAMESPACE_WRITE_PROTECTED),
        ("short buffer", with(&read, |s| s.dptr.length.set(3584)), 0, StatusCode::SGL_DATA_LENGTH_INVALID),
        ("long buffer", with(&read, |s| s.dptr.length.set(4608)), 0, StatusCode::SGL_DATA_LENGTH_INVALID),
        (
            "read into the capsule",
            with(&read, |s| s.dptr = SglDescriptor::in_capsule(4096)),
            0,
            StatusCode::SGL_DESCRIPTOR_TYPE_INVALID,
        ),
        ("keyed", with(&write, |s| s.dptr = keyed), 0, StatusCode::SGL_DESCRIPTOR_TYPE_INVALID),
        ("segment", with(&write, |s| s.dptr.id = SglId::SEGMENT), 0, StatusCode::SGL_DESCRIPTOR_TYPE_INVALID),
        ("in-capsule offset", with(&write, |s| s.dptr = moved), 4096, StatusCode::SGL_OFFSET_INVALID),
        (
            "capsule too short",
            with(&write, |s| s.dptr = SglDescriptor::in_capsule(4096)),
            4092,
            StatusCode::SGL_DATA_LENGTH_INVALID,
        ),
        (
            "capsule and descriptor too short",
            with(&write, |s| s.dptr = SglDescriptor::in_capsule(3584)),
            3584,
            StatusCode::SGL_DATA_LENGTH_INVALID,
        ),
        ("two places", write, 4096, StatusCode::SGL_DATA_LENGTH_INVALID),
        ("read with data", read, 8, StatusCode::SGL_DATA_LENGTH_INVALID),
        ("copy", Sqe::nvm(NvmOpcode::COPY, 1), 0, StatusCode::INVALID_OPCODE),
        ("reservation", Sqe::nvm(NvmOpcode::RESERVATION_ACQUIRE, 1), 0, StatusCode::INVALID_OPCODE),
        ("property on an I/O queue", PropertyGetCmd::new(0, true).to_sqe(), 0, StatusCode::INVALID_OPCODE),
        ("second connect", ConnectCmd::new(1, 127, 0, 0).to_sqe(), 1024, StatusCode::COMMAND_SEQUENCE_ERROR),
    ] {
        assert_eq!(status(&sqe, capsule), code, "{name}");
    }
}

#[test]
fn flush_and_write_zeroes_have_no_data() {
    let table = table();
    let (request, ns) = decode_io(&Sqe::nvm(NvmOpcode::FLUSH, 1), &table, 0).unwrap();
    assert_eq!((request.op, request.place, request.data_len, ns.nsid), (IoOp::Flush, DataPlace::None, 0, 1));
    assert_eq!(status(&Sqe::nvm(NvmOpcode::FLUSH, NSID_BROADCAST), 0), StatusCode::INVALID_NAMESPACE);
    assert_eq!(status(&Sqe::nvm(NvmOpcode::FLUSH, 1), 4), StatusCode::SGL_DATA_LENGTH_INVALID);

    let zeroes = with(&rw(NvmOpcode::WRITE_ZEROES, 2, 64, 65536, 0), |s| {
        s.cdw12.set(0xffff | RwCdw12::DEAC | RwCdw12::FUA);
    });
    let (request, _) = decode_io(&zeroes, &table, 0).unwrap();
    assert_eq!((request.op, request.lba, request.blocks), (IoOp::WriteZeroes, 64, 65536), "beyond MDTS");
    assert!(request.deallocate && request.fua);
    let (request, _) = decode_io(&rw(NvmOpcode::WRITE_ZEROES, 1, 0, 8, 0), &table, 0).unwrap();
    assert!(!request.deallocate && !request.fua);
    assert_eq!(status(&rw(NvmOpcode::WRITE_ZEROES, 1, 2048, 1, 0), 0), StatusCode::LBA_OUT_OF_RANGE);
    assert_eq!(status(&rw(NvmOpcode::WRITE_ZEROES, 4, 0, 1, 0), 0), StatusCode::NAMESPACE_WRITE_PROTECTED);
    let tagged = with(&zeroes, |s| s.cdw12.set(RwCdw12::PRINFO));
    assert_eq!(status(&tagged, 0), StatusCode::INVALID_PROTECTION_INFO);
}

#[test]
fn a_verify_has_a_range_and_no_data() {
    let table = table();
    for nsid in [1, 4] {
        let (request, _) = decode_io(&rw(NvmOpcode::VERIFY, nsid, 8, 16, 0), &table, 0).unwrap();
        assert_eq!((request.op, request.place, request.data_len), (IoOp::Verify, DataPlace::None, 0));
        assert_eq!((request.lba, request.blocks, request.fua), (8, 16, false), "of a namespace that is read-only too");
    }
    let most = with(&rw(NvmOpcode::VERIFY, 2, 64, 65536, 0), |s| s.cdw12.set(0xffff | RwCdw12::FUA));
    let (request, _) = decode_io(&most, &table, 0).unwrap();
    assert_eq!((request.blocks, request.fua), (65536, true), "beyond MDTS: VSL says that there is no limit");
    assert!(decode_io(&rw(NvmOpcode::VERIFY, 1, 2047, 1, 0), &table, 0).is_ok(), "the last block");
    assert_eq!(status(&rw(NvmOpcode::VERIFY, 1, 2047, 2, 0), 0), StatusCode::LBA_OUT_OF_RANGE);
    assert_eq!(status(&rw(NvmOpcode::VERIFY, 3, 0, 1, 0), 0), StatusCode::INVALID_FIELD, "inactive");
    assert_eq!(status(&rw(NvmOpcode::VERIFY, 1, 0, 1, 0), 512), StatusCode::SGL_DATA_LENGTH_INVALID);
    for bit in 26..=29 {
        let tagged = with(&most, |s| s.cdw12.set(1 << bit));
        assert_eq!(status(&tagged, 0), StatusCode::INVALID_PROTECTION_INFO, "PRINFO, bit {bit}");
    }
    let tagged = with(&most, |s| s.cdw12.set(RwCdw12::STC));
    assert_eq!(status(&tagged, 0), StatusCode::INVALID_PROTECTION_INFO);
    let fused = with(&most, |s| s.flags |= Fuse::FIRST.0);
    assert_eq!(status(&fused, 0), StatusCode::INVALID_FIELD);
}

fn dsm(nsid: u32, ranges: u32, len: u32, attributes: u32) -> Sqe {
    let mut sqe = Sqe::nvm(NvmOpcode::DATASET_MANAGEMENT, nsid);
    sqe.cdw10.set(ranges - 1);
    sqe.cdw11.set(attributes);
    sqe.dptr = SglDescriptor::transport(len);
    sqe
}

fn ranges(list: &[(u64, u32)]) -> Vec<u8> {
    list.iter()
        .flat_map(|&(lba, blocks)| {
            let mut range = DsmRange::default();
            range.slba.set(lba);
            range.blocks.set(blocks);
            range.as_bytes().to_vec()
        })
        .collect()
}

#[test]
fn dataset_management_checks_all_ranges_first() {
    let table = table();
    // Linux sends a page whatever the number of ranges.
    for len in [32, 4096] {
        let (request, ns) = decode_io(&dsm(1, 2, len, DsmAttributes::DEALLOCATE), &table, 0).unwrap();
        assert_eq!((request.op, request.blocks, request.data_len), (IoOp::Dsm, 2, len));
        assert!(request.deallocate);
        let mut data = ranges(&[(0, 8), (2040, 8), (u64::MAX, 1)]);
        data.resize(4096, 0xff);
        let list: Vec<_> = dsm_ranges(&request, &data, ns).unwrap().collect();
        assert_eq!(list, [(0, 8), (2040, 8)], "what is behind the ranges does not matter");

        let fault = |list: &[(u64, u32)]| dsm_ranges(&request, &ranges(list), ns).map(|_| ()).unwrap_err();
        assert_eq!(fault(&[(0, 8), (2041, 8)]).status, StatusCode::LBA_OUT_OF_RANGE.dnr());
        assert_eq!(fault(&[(u64::MAX, 1), (0, 1)]).status, StatusCode::LBA_OUT_OF_RANGE.dnr());
        assert_eq!(fault(&[(0, u32::MAX), (0, 1)]).status, StatusCode::LBA_OUT_OF_RANGE.dnr());
        assert_eq!(fault(&[(0, 1)]).status, StatusCode::SGL_DATA_LENGTH_INVALID.dnr());
        let data = ranges(&[(5, 0), (0, 1)]);
        let list: Vec<_> = dsm_ranges(&request, &data, ns).unwrap().collect();
        assert_eq!(list, [(0, 1)], "empty ranges are nothing");
    }
    assert_eq!(status(&dsm(1, 2, 31, 4), 0), StatusCode::SGL_DATA_LENGTH_INVALID);
    assert_eq!(status(&dsm(1, 2, 4112, 4), 0), StatusCode::SGL_DATA_LENGTH_INVALID);
    assert!(decode_io(&dsm(1, 256, 4096, 4), &table, 0).is_ok());
    assert_eq!(status(&dsm(4, 1, 16, 4), 0), StatusCode::NAMESPACE_WRITE_PROTECTED);
    let (request, _) = decode_io(&dsm(4, 1, 16, DsmAttributes::INTEGRAL_READ), &table, 0).unwrap();
    assert!(!request.deallocate, "a hint");
}

#[test]
fn fused_pairs() {
    let table = table();
    let fused = |opcode, flags, lba, blocks| {
        let sqe = with(&rw(opcode, 1, lba, blocks, 512), |s| s.flags = flags);
        decode_io(&sqe, &table, 0).unwrap().0
    };
    let compare = fused(NvmOpcode::COMPARE, 0x41, 8, 8);
    let write = fused(NvmOpcode::WRITE, 0x42, 8, 8);
    assert_eq!((compare.fuse, write.fuse), (Fuse::FIRST, Fuse::SECOND));
    let ns = table.get(1).unwrap();
    assert_eq!(check_fused_pair(&compare, &write, ns), Ok(()));
    let other = |write: IoRequest| check_fused_pair(&compare, &write, ns).unwrap_err().status.code();
    assert_eq!(other(IoRequest { lba: 9, ..write }), StatusCode::INVALID_FIELD);
    assert_eq!(other(IoRequest { blocks: 7, ..write }), StatusCode::INVALID_FIELD);
    assert_eq!(other(IoRequest { nsid: 2, ..write }), StatusCode::INVALID_FIELD);
    let (compare, write) = (IoRequest { blocks: 9, ..compare }, IoRequest { blocks: 9, ..write });
    let fault = check_fused_pair(&compare, &write, ns).unwrap_err();
    assert_eq!(fault.status.code(), StatusCode::ATOMIC_WRITE_UNIT_EXCEEDED, "NACWU is 8 blocks");
}

#[test]
fn fused_commands_are_adjacent() {
    let mut tracker = FuseTracker::default();
    assert_eq!(tracker.next(Fuse::NONE), (FuseStep::Single, false));
    assert_eq!(tracker.next(Fuse::FIRST), (FuseStep::Hold, false));
    assert!(tracker.holding());
    assert_eq!(tracker.next(Fuse::SECOND), (FuseStep::Pair, false));
    assert!(!tracker.holding());
    assert_eq!(tracker.next(Fuse::SECOND), (FuseStep::MissingFirst, false));
    assert_eq!(tracker.next(Fuse::FIRST), (FuseStep::Hold, false));
    assert_eq!(tracker.next(Fuse::FIRST), (FuseStep::Hold, true), "the first one lost its partner");
    assert_eq!(tracker.next(Fuse::NONE), (FuseStep::Single, true));
    assert_eq!(tracker.next(Fuse::NONE), (FuseStep::Single, false));
}

proptest! {
    #[test]
    fn any_command_is_decoded_or_refused_within_the_namespace(
        bytes in proptest::array::uniform32(any::<u8>()),
        opcode in 0u8..16,
        nsid in 0u32..6,
        small: bool,
        capsule in prop_oneof![Just(0u32), Just(4096), 0u32..10000],
    ) {
        let mut sqe = Sqe::new(opcode, nsid);
        sqe.cdw10.set(u32::from_le_bytes(bytes[..4].try_into().unwrap()) & if small { 0xfff } else { u32::MAX });
        sqe.cdw11.set(if small { 0 } else { u32::from_le_bytes(bytes[4..8].try_into().unwrap()) });
        sqe.cdw12.set(u32::from_le_bytes(bytes[8..12].try_into().unwrap()) & if small { 0x0fff } else { u32::MAX });
        sqe.dptr = if small {
            SglDescriptor::transport((sqe.cdw12.get() + 1) * 512)
        } else {
            SglDescriptor { id: SglId(bytes[12]), ..SglDescriptor::in_capsule(capsule) }
        };
        let table = table();
        if let Ok((request, ns)) = decode_io(&sqe, &table, capsule) {
            prop_assert_eq!(ns.nsid, nsid);
            prop_assert!(request.data_len <= MAX_TRANSFER_LEN);
            if request.op != IoOp::Dsm {
                let end = u128::from(request.lba) + u128::from(request.blocks);
                prop_assert!(end <= u128::from(ns.blocks));
            }
            if matches!(request.op, IoOp::Read | IoOp::Write | IoOp::Compare) {
                prop_assert_eq!(u64::from(request.data_len), u64::from(request.blocks) * u64::from(ns.block_size));
            }
            if request.place == DataPlace::InCapsule {
                prop_assert_eq!(request.data_len, capsule);
            }
        }
    }
}
