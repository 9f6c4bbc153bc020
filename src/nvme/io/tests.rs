//! Commands of I/Os by their bytes, and geometries of made-up namespaces.

use zerocopy::{FromZeros, IntoBytes};

use super::*;
use crate::bdev::OpSet;
use crate::nvme::spec::{
    Cap, FUSES_COMPARE_AND_WRITE, IdentifyController, IdentifyControllerNvm, IdentifyControllerZoned,
    IdentifyNamespace, IdentifyNamespaceZoned, NSFEAT_NSABP, NSFEAT_OPTPERF, NamespaceIds, ONCS_COMPARE, ONCS_DSM,
    ONCS_VERIFY, ONCS_WRITE_ZEROES,
};
use crate::reactor::start;

const PLACE: Place = Place { nsid: 0x0102_0304, shift: 12 };

/// Lets `test` set up an I/O of eight blocks with this operation, and look at its commands.
fn with_io(test: impl FnOnce(&mut dyn FnMut(IoOp, bool) -> Seen)) {
    let reactor = start::solo(32 << 20).unwrap();
    let mut io = reactor.create_io().unwrap();
    test(&mut |op, fua| {
        io.prepare(op, 0x1_0000_0010 << 12, 8 << 12);
        io.fua = fua;
        Seen { first: command(&io, PLACE), second: fused_write(&io, PLACE), range: PLACE.range(io.offset, io.len) }
    });
    reactor.retire_io(io);
    reactor.shut_down();
}

struct Seen {
    first: Sqe,
    second: Sqe,
    range: DsmRange,
}

#[test]
fn commands_golden_bytes() {
    with_io(|look| {
        for (op, takes_fua, opcode, flags) in [
            (IoOp::Read, false, 0x02, 0),
            (IoOp::Write, true, 0x01, 0),
            (IoOp::Compare, false, 0x05, 0),
            (IoOp::WriteZeroes, true, 0x08, 0),
            (IoOp::CompareAndWrite, false, 0x05, 1),
        ] {
            for fua in [false, true] {
                let mut want = [0; 64];
                want[..8].copy_from_slice(&[opcode, flags, 0, 0, 4, 3, 2, 1]);
                let last = if fua && takes_fua { 0x40 } else { 0 };
                want[40..52].copy_from_slice(&[0x10, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, last]);
                assert_eq!(look(op, fua).first.as_bytes(), want, "{op:?}");
            }
        }
        let flush = look(IoOp::Flush, true).first;
        assert_eq!(flush.as_bytes()[..8], [0, 0, 0, 0, 4, 3, 2, 1]);
        assert!(flush.as_bytes()[8..].iter().all(|byte| *byte == 0));
    });
}

#[test]
fn a_compare_and_write_is_a_fused_pair() {
    with_io(|look| {
        let Seen { first, second, .. } = look(IoOp::CompareAndWrite, true);
        assert_eq!(second.as_bytes()[..2], [0x01, 2]);
        assert_eq!(second.as_bytes()[40..52], [0x10, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0x40]);
        assert_eq!((first.fuse(), first.slba()), (Fuse::FIRST, second.slba()));
    });
}

#[test]
fn an_unmap_is_one_range() {
    with_io(|look| {
        let Seen { first, range, .. } = look(IoOp::Unmap, false);
        assert_eq!(first.as_bytes()[..8], [0x09, 0, 0, 0, 4, 3, 2, 1]);
        assert_eq!(first.as_bytes()[40..48], [0, 0, 0, 0, 4, 0, 0, 0]);
        assert_eq!(range.as_bytes(), [0, 0, 0, 0, 8, 0, 0, 0, 0x10, 0, 0, 0, 1, 0, 0, 0]);
    });
    let zeroes = PLACE.ranged(NvmOpcode::WRITE_ZEROES, 0, BLOCKS_MAX << 12, RwCdw12::DEAC);
    assert_eq!(zeroes.cdw12.get(), 0x0200_ffff);
}

#[test]
fn places_survive_the_scratch_word() {
    let place = Place { nsid: 0xffff_fffe, shift: 12 };
    assert_eq!(Place::of(place.to_bits()), place);
}

struct Made {
    cap: Cap,
    controller: IdentifyController,
    namespace: IdentifyNamespace,
    limits: Option<IdentifyControllerNvm>,
    zoned: Option<(IdentifyNamespaceZoned, IdentifyControllerZoned)>,
}

impl Made {
    /// 16,384 blocks of 4,096 bytes, second format, and all commands.
    fn new() -> Made {
        let (mut controller, mut namespace) = (IdentifyController::new_zeroed(), IdentifyNamespace::new_zeroed());
        controller.oncs.set(ONCS_COMPARE | ONCS_DSM | ONCS_WRITE_ZEROES | ONCS_VERIFY);
        controller.fuses.set(FUSES_COMPARE_AND_WRITE);
        namespace.nsze.set(16_384);
        namespace.nlbaf_z = 1;
        namespace.lbaf[0].lbads = 9;
        namespace.lbaf[1].lbads = 12;
        namespace.flbas = 1;
        Made { cap: Cap(0), controller, namespace, limits: None, zoned: None }
    }

    fn zoned(blocks: u64) -> Made {
        let mut zones = IdentifyNamespaceZoned::new_zeroed();
        zones.lbafe[1].zsze.set(blocks);
        zones.mar_z.set(u32::MAX);
        zones.mor_z.set(7);
        Made { zoned: Some((zones, IdentifyControllerZoned::new_zeroed())), ..Made::new() }
    }

    fn geometry(&self) -> Result<Geometry, Unusable> {
        let id = Identified {
            nsid: 3,
            cap: self.cap,
            controller: &self.controller,
            namespace: &self.namespace,
            limits: self.limits.as_ref(),
            zoned: self.zoned.as_ref().map(|(namespace, controller)| (namespace, controller)),
        };
        Geometry::new(&id, transfer_max(&self.controller, self.cap), 32)
    }
}

#[test]
fn a_plain_namespace() {
    let mut made = Made::new();
    let geometry = made.geometry().unwrap();
    assert_eq!((geometry.nsid, geometry.block_shift, geometry.size), (3, 12, 64 << 20));
    assert_eq!((geometry.limits.transfer_max, geometry.limits.zeroes_max), (1 << 20, 4 << 20));
    assert_eq!(
        (geometry.limits.boundary, geometry.physical_block_size, geometry.compare_and_write_max),
        (0, 4096, 4096)
    );
    assert_eq!(geometry.ops, OpSet::ALL.without(IoOp::Reset).without(IoOp::Extents));
    assert!(!geometry.read_only && !geometry.volatile_cache);
    assert_eq!(geometry.zones, None);
    made.controller.mdts = 5;
    made.controller.vwc = 1;
    made.namespace.noiob.set(32);
    made.namespace.nsattr = 1;
    let geometry = made.geometry().unwrap();
    assert_eq!((geometry.limits.transfer_max, geometry.limits.boundary), (128 << 10, 128 << 10));
    assert!(geometry.read_only && geometry.volatile_cache);
    made.cap = Cap(1 << 48);
    assert_eq!(made.geometry().unwrap().limits.transfer_max, 256 << 10, "MDTS counts minimum pages");
}

#[test]
fn what_cannot_be_used_is_named() {
    let text = |change: fn(&mut Made)| {
        let mut made = Made::new();
        change(&mut made);
        made.geometry().unwrap_err().to_string()
    };
    assert_eq!(text(|made| made.namespace.nsze.set(0)), "namespace 3 is not active");
    assert_eq!(
        text(|made| made.namespace.lbaf[1].ms.set(8)),
        "namespace 3 has blocks of 2^12 bytes with 8 bytes of metadata; usable are 512 and 4096 without"
    );
    assert_eq!(
        text(|made| {
            made.namespace.lbaf[1].ms.set(8);
            made.namespace.dps = 9;
        }),
        "namespace 3 has blocks of 2^12 bytes with 8 bytes of metadata (protection type 1); usable are 512 and 4096 without"
    );
    assert!(text(|made| made.namespace.lbaf[1].lbads = 255).contains("2^255"));
    assert_eq!(text(|made| made.namespace.nsze.set(1 << 52)), "namespace 3 is larger than 2^64 bytes");
}

#[test]
fn physical_blocks_are_what_is_written_whole() {
    let mut made = Made::new();
    let mut physical = |nsfeat, npwg_z, nawupf_z, awupf_z| {
        made.namespace.nsfeat = nsfeat;
        made.namespace.npwg_z.set(npwg_z);
        made.namespace.nawupf_z.set(nawupf_z);
        made.controller.awupf_z.set(awupf_z);
        made.geometry().unwrap().physical_block_size
    };
    assert_eq!(physical(0, 3, 3, 3), 4096, "not said");
    assert_eq!(physical(NSFEAT_OPTPERF, 3, 0, 7), 16 << 10);
    assert_eq!(physical(NSFEAT_OPTPERF, 3, 0, 1), 8 << 10, "not atomic beyond");
    assert_eq!(physical(NSFEAT_OPTPERF | NSFEAT_NSABP, 3, 0, 7), 4096, "its own unit counts");
    assert_eq!(physical(NSFEAT_OPTPERF, 2, 0, 7), 8 << 10, "a power of two");
    assert_eq!(physical(NSFEAT_OPTPERF, u16::MAX, 0, u16::MAX), 64 << 10);
}

#[test]
fn unmapping_reads_as_zeros() {
    let way = |oncs, dlfeat| {
        let mut made = Made::new();
        made.controller.oncs.set(oncs);
        made.namespace.dlfeat = dlfeat;
        let geometry = made.geometry().unwrap();
        let traits = geometry.traits("d0".to_owned(), "nvme", [1; 16]);
        assert_eq!(traits.ops.has(IoOp::Unmap), geometry.unmapping != Unmapping::None);
        assert_eq!(traits.ops.has(IoOp::WriteZeroes), oncs & ONCS_WRITE_ZEROES != 0);
        geometry.unmapping
    };
    let both = ONCS_DSM | ONCS_WRITE_ZEROES;
    assert_eq!(way(both, 9), Unmapping::Deac);
    assert_eq!(
        way(both, 8),
        Unmapping::Deac,
        "what a deallocated block reads as is not asked where zeros were written"
    );
    assert_eq!(way(both, 1), Unmapping::ZeroesThenDsm);
    assert_eq!(way(both, 0), Unmapping::Zeroes);
    assert_eq!(way(both, 2), Unmapping::Zeroes);
    assert_eq!(way(ONCS_WRITE_ZEROES, 1), Unmapping::Zeroes);
    assert_eq!(way(ONCS_DSM, 9), Unmapping::None, "Dataset Management is advice");
}

#[test]
fn limits_of_zeroing_and_deallocation() {
    let mut made = Made::new();
    let Deallocate { ranges_max, range_max, bytes_max } = made.geometry().unwrap().deallocate;
    assert_eq!((ranges_max, range_max, bytes_max), (256, RANGE_BLOCKS_MAX << 12, 256 * (RANGE_BLOCKS_MAX << 12)));
    let mut limits = IdentifyControllerNvm::new_zeroed();
    (limits.wzsl, limits.dmrl) = (8, 16);
    limits.dmrsl.set(1024);
    limits.dmsl.set(4096);
    made.limits = Some(limits);
    let geometry = made.geometry().unwrap();
    let Deallocate { ranges_max, range_max, bytes_max } = geometry.deallocate;
    assert_eq!((ranges_max, range_max, bytes_max), (16, 4 << 20, 16 << 20));
    assert_eq!(geometry.limits.zeroes_max, 1 << 20);
    limits.wzsl = u8::MAX;
    limits.dmsl.set(u64::MAX);
    made.limits = Some(limits);
    let geometry = made.geometry().unwrap();
    assert_eq!(geometry.limits.zeroes_max, 256 << 20);
    assert_eq!(geometry.deallocate.bytes_max, 16 * (RANGE_BLOCKS_MAX << 12));
}

#[test]
fn verifies_are_as_large_as_the_controller_says() {
    let mut made = Made::new();
    let mut most = |oncs, vsl: Option<u8>, shift: u8| {
        made.controller.oncs.set(oncs);
        made.namespace.lbaf[1].lbads = shift;
        made.limits = vsl.map(|vsl| IdentifyControllerNvm { vsl, ..IdentifyControllerNvm::new_zeroed() });
        let geometry = made.geometry().unwrap();
        assert_eq!(geometry.ops.has(IoOp::Verify), oncs != 0);
        let traits = geometry.traits("d0".to_owned(), "nvme", [1; 16]);
        assert!(traits.ops.has(IoOp::Verify), "the block layer reads where there is no command");
        geometry.limits.verify_max
    };
    assert_eq!(most(ONCS_VERIFY, Some(1), 12), 8 << 10);
    assert_eq!(most(ONCS_VERIFY, Some(7), 9), 512 << 10);
    assert_eq!(most(ONCS_VERIFY, Some(0), 12), 256 << 20, "no limit but the field's");
    assert_eq!(most(ONCS_VERIFY, Some(0), 9), 32 << 20);
    assert_eq!(most(ONCS_VERIFY, Some(u8::MAX), 9), 32 << 20);
    assert_eq!(most(ONCS_VERIFY, None, 12), 4 << 20, "it does not say");
    assert_eq!((most(0, Some(3), 12), most(0, None, 12)), (0, 0));
    made.cap = Cap(1 << 48);
    made.controller.oncs.set(ONCS_VERIFY);
    made.limits = Some(IdentifyControllerNvm { vsl: 1, ..IdentifyControllerNvm::new_zeroed() });
    assert_eq!(made.geometry().unwrap().limits.verify_max, 16 << 10, "VSL counts minimum pages");
}

#[test]
fn a_verify_that_has_gone_is_no_other_namespace() {
    let (mut made, before) = (Made::new(), Made::new().geometry().unwrap());
    made.controller.oncs.set(ONCS_COMPARE | ONCS_DSM | ONCS_WRITE_ZEROES);
    assert_eq!(made.geometry().unwrap().differs(&before), None);
    made.controller.oncs.set(ONCS_DSM | ONCS_WRITE_ZEROES | ONCS_VERIFY);
    assert_eq!(made.geometry().unwrap().differs(&before), Some("its commands"));
}

#[test]
fn zones_are_boundaries() {
    let mut made = Made::zoned(1024);
    let zones = made.geometry().unwrap().zones.unwrap();
    assert_eq!((zones.size, zones.open_max, zones.active_max), (4 << 20, Some(8), None));
    assert_eq!((zones.append_max, zones.read_across), (1 << 20, false));
    let geometry = made.geometry().unwrap();
    let traits = geometry.traits("z0".to_owned(), "nvme", [7; 16]);
    assert_eq!((traits.zones, geometry.unmapping), (Some(zones), Unmapping::None));
    let not = [IoOp::Unmap, IoOp::CompareAndWrite, IoOp::Reset, IoOp::Extents];
    assert!(IoOp::ALL.iter().all(|op| traits.ops.has(*op) != not.contains(op)), "{:?}", traits.ops);
    let mut boundary = |noiob| {
        made.namespace.noiob.set(noiob);
        made.geometry().unwrap().limits.boundary
    };
    assert_eq!((boundary(0), boundary(256), boundary(300)), (4 << 20, 1 << 20, 4 << 20));
    let (namespace, controller) = made.zoned.as_mut().unwrap();
    namespace.ozcs.set(1);
    controller.zasl = 5;
    let zones = made.geometry().unwrap().zones.unwrap();
    assert_eq!((zones.append_max, zones.read_across), (128 << 10, true));
}

#[test]
fn zones_that_cannot_be_are_refused() {
    for zone_blocks in [0, 1000, 16_385, u64::MAX] {
        let error = Made::zoned(zone_blocks).geometry().unwrap_err();
        assert_eq!(error, Unusable::Zones { nsid: 3, blocks: 16_384, zone_blocks });
    }
    assert!(Made::zoned(16_384).geometry().is_ok());
}

#[test]
fn traits_are_the_geometry() {
    let made = Made::new();
    let geometry = made.geometry().unwrap();
    let traits = geometry.traits("d0".to_owned(), "nvme", [7; 16]);
    assert_eq!((traits.name.as_str(), traits.driver, traits.uuid), ("d0", "nvme", [7; 16]));
    assert_eq!((traits.block_size, traits.physical_block_size), (4096, 4096));
    assert_eq!(traits.limits.transfer_max, geometry.limits.transfer_max);
    assert!(traits.concurrent && !traits.ephemeral && !traits.keeps_nothing && !traits.ops.has(IoOp::Reset));
}

#[test]
fn identities_come_from_what_lasts() {
    let made = Made::new();
    let of = |ids: NamespaceIds, nsid| identity(&ids, &made.controller, nsid);
    let all =
        NamespaceIds { eui64: Some([1; 8]), nguid: Some([2; 16]), uuid: Some([3; 16]), ..NamespaceIds::default() };
    assert_eq!(of(all, 1), [3; 16]);
    assert_eq!(of(NamespaceIds { uuid: None, ..all }, 1), [2; 16]);
    let eui64 = NamespaceIds { uuid: None, nguid: None, ..all };
    assert_eq!(of(eui64, 1), of(eui64, 2), "an EUI-64 is of the namespace");
    let none = NamespaceIds::default();
    assert_ne!(of(none, 1), of(none, 2));
    assert_ne!(of(eui64, 1), of(none, 1));
    let mut other = made.controller;
    other.sn[0] = b'X';
    assert_ne!(identity(&none, &other, 1), of(none, 1));
}

#[test]
fn a_compare_and_write_is_one_step_within_its_unit_and_boundaries() {
    let mut made = Made::new();
    made.controller.acwu_z.set(31);
    let plain = made.geometry().unwrap();
    let block = 1 << plain.block_shift;
    assert!(
        plain.is_atomic(0, 32 * block) && !plain.is_atomic(0, 33 * block) && plain.is_atomic(5 * block, 32 * block)
    );
    made.namespace.nsfeat |= NSFEAT_NSABP;
    made.namespace.nacwu_z.set(31);
    made.namespace.nabsn_z.set(15);
    made.namespace.nabo.set(2);
    let bounded = made.geometry().unwrap();
    for (first, blocks, whole) in [
        (0, 1, true),
        (0, 2, true),
        (0, 3, false),
        (2, 16, true),
        (2, 17, false),
        (17, 1, true),
        (17, 2, false),
        (18, 16, true),
    ] {
        assert_eq!(bounded.is_atomic(first * block, blocks * block), whole, "{blocks} blocks from {first}");
    }
    assert_eq!(bounded.differs(&plain), Some("its atomicity"));
    assert_eq!(bounded.differs(&bounded), None);
    let larger = Geometry { size: plain.size + block, ..plain };
    assert_eq!((larger.differs(&plain), plain.differs(&larger)), (None, Some("its size")));
}
