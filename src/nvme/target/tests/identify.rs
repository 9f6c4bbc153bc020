//! Identify: what hosts read against what is set.

use zerocopy::FromBytes;

use super::*;

fn read<T: FromBytes>(bytes: &[u8]) -> T {
    T::read_from_bytes(bytes).unwrap()
}

#[test]
fn the_controller_meets_what_linux_requires() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    let id: IdentifyController = read(&rig.ok(controller, &identify(Cns::CONTROLLER, 0)).1);
    // drivers/nvme/host: identity and the fabrics fields that make a connect fail.
    assert_eq!(id.cntlid.get(), 1);
    assert_eq!(nul_text(&id.subnqn), Some(NQN));
    assert_ne!(id.kas_100ms.get(), 0);
    assert_eq!(id.ioccsz_16b.get() * 16, 64 + 8192);
    assert_eq!((id.iorcsz_16b.get(), id.icdoff_16b.get(), id.msdbd), (1, 0, 1));
    assert_eq!(id.maxcmd.get(), 128);
    assert_ne!(id.sgls.get() & 3, 0);
    assert_eq!(id.cntrltype, ControllerType::IO);
    assert_ne!(id.cmic & 2, 0, "several controllers");
    // Limits and features: each with a test of its effect elsewhere.
    assert_eq!(4096u32 << id.mdts, MAX_TRANSFER_LEN);
    assert_eq!(id.ver.get(), VERSION_2_0);
    assert_eq!((id.nn.get(), id.mnan.get()), (256, 256));
    assert_eq!(id.oncs.get(), ONCS_COMPARE | ONCS_DSM | ONCS_WRITE_ZEROES | ONCS_SAVE_SELECT | ONCS_VERIFY);
    assert_eq!(id.oncs.get(), 0x9d, "as it goes to the wire");
    assert_eq!((id.fuses.get(), id.oacs.get(), id.fna), (1, 0, 0));
    assert_eq!(id.vwc, 5, "present; flush of all namespaces refused");
    assert_eq!((id.sqes, id.cqes), (0x66, 0x44));
    assert_eq!((id.acl_z, id.aerl_z, id.elpe_z), (3, 3, 63));
    assert_eq!(id.oaes.get(), OAES_NAMESPACE_ATTRIBUTE);
    assert_eq!(id.ctratt.get(), CTRATT_HOST_ID_128);
    assert_eq!(id.lpa, LPA_COMMANDS_EFFECTS | LPA_EXTENDED_DATA | LPA_SUPPORTED_PAGES);
    assert_eq!((&id.sn, &id.fr, id.frmw), (b"S1                  ", b"0.1.0   ", 3));
    assert!(id.mn.starts_with(b"reactor "));
}

#[test]
fn a_discovery_controller_identifies_as_one_and_as_nothing_else() {
    let mut rig = Rig::new();
    let controller = rig.enabled_discovery(0);
    let id: IdentifyController = read(&rig.ok(controller, &identify(Cns::CONTROLLER, 0)).1);
    assert_eq!(id.cntrltype, ControllerType::DISCOVERY);
    assert_eq!(nul_text(&id.subnqn), Some(DISCOVERY_NQN));
    assert_eq!((id.nn.get(), id.oncs.get(), id.vwc), (0, 0, 0));
    assert_eq!(id.oaes.get(), OAES_DISCOVERY_LOG);
    assert_eq!(id.maxcmd.get(), 32);
    for cns in [Cns::NAMESPACE, Cns::ACTIVE_NAMESPACES, Cns::COMMAND_SETS] {
        assert_eq!(rig.fails(controller, &identify(cns, 1)), StatusCode::INVALID_FIELD.dnr(), "{cns:?}");
    }
}

#[test]
fn a_namespace_shows_its_geometry_and_limits() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    let mut big = namespace(3);
    big.block_size = 4096;
    big.blocks = 1 << 40;
    big.read_only = true;
    rig.target.set_namespaces(NQN, vec![namespace(1), big]).unwrap();

    let id: IdentifyNamespace = read(&rig.ok(controller, &identify(Cns::NAMESPACE, 1)).1);
    assert_eq!((id.nsze.get(), id.ncap.get(), id.nuse.get()), (2048, 2048, 2048));
    assert_eq!((id.nlbaf_z, id.flbas, id.lbaf[0].lbads, id.lbaf[0].ms.get()), (0, 0, 9, 0));
    assert_eq!(id.nsfeat, NSFEAT_OPTPERF | NSFEAT_NSABP);
    assert_eq!((id.npwg_z.get(), id.npwa_z.get(), id.npdg_z.get(), id.npda_z.get()), (7, 7, 7, 7));
    assert_eq!(id.nows_z.get(), 127);
    assert_eq!((id.nawun_z.get(), id.nawupf_z.get(), id.nacwu_z.get()), (0, 0, 7));
    assert_eq!(id.dlfeat, 9, "zeros after deallocation, DEAC");
    assert_eq!((id.nmic, id.nsattr, id.mc, id.dpc, id.dps), (1, 0, 0, 0, 0));
    assert_eq!(id.nvmcap.get(), 1 << 20);
    assert_eq!(id.nguid, [0x11; 16]);

    let id: IdentifyNamespace = read(&rig.ok(controller, &identify(Cns::NAMESPACE, 3)).1);
    assert_eq!((id.nsze.get(), id.lbaf[0].lbads, id.nsattr), (1 << 40, 12, 1));
    assert_eq!((id.npwg_z.get(), id.npdg_z.get(), id.nows_z.get()), (0, 0, 15));
    assert_eq!(id.nvmcap.get(), 1 << 52);

    let id: IdentifyNamespaceIndependent = read(&rig.ok(controller, &identify(Cns::NAMESPACE_INDEPENDENT, 3)).1);
    assert_eq!((id.nmic, id.nsattr, id.nstat), (1, 1, 1));
    let (_, nvm) = rig.ok(controller, &identify(Cns::NAMESPACE_CSI, 3));
    assert!(nvm.iter().all(|&b| b == 0), "no storage tags, no protection information");
}

#[test]
fn namespace_identifiers_follow_the_uuid() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    let mut info = namespace(1);
    info.uuid = core::array::from_fn(|i| i as u8 + 1);
    rig.target.set_namespaces(NQN, vec![info.clone()]).unwrap();
    let (_, list) = rig.ok(controller, &identify(Cns::NAMESPACE_DESCRIPTORS, 1));
    let eui = [(1 ^ 9) & !1 | 2, 2 ^ 10, 3 ^ 11, 4 ^ 12, 5 ^ 13, 6 ^ 14, 7 ^ 15, 8 ^ 16];
    let mut want = vec![1, 8, 0, 0];
    want.extend(eui);
    want.extend([2, 16, 0, 0]);
    want.extend(info.uuid);
    want.extend([3, 16, 0, 0]);
    want.extend(info.uuid);
    want.extend([4, 1, 0, 0, 0]);
    assert_eq!(list[..want.len()], want);
    assert!(list[want.len()..].iter().all(|&b| b == 0));
    let id: IdentifyNamespace = read(&rig.ok(controller, &identify(Cns::NAMESPACE, 1)).1);
    assert_eq!((id.nguid, id.eui64), (info.uuid, eui));
}

#[test]
fn active_namespaces_are_listed_in_order_after_the_given_one() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    for cns in [Cns::ACTIVE_NAMESPACES, Cns::ACTIVE_NAMESPACES_CSI] {
        for (after, want) in [(0, vec![1, 3]), (1, vec![3]), (2, vec![3]), (3, vec![]), (0xffff_fffd, vec![])] {
            let (_, list) = rig.ok(controller, &identify(cns, after));
            let ids: Vec<u32> = list
                .chunks_exact(4)
                .map(|id| u32::from_le_bytes(id.try_into().unwrap()))
                .take_while(|&id| id != 0)
                .collect();
            assert_eq!(ids, want, "after {after}");
        }
        for nsid in [0xffff_fffe, NSID_BROADCAST] {
            assert_eq!(rig.fails(controller, &identify(cns, nsid)), StatusCode::INVALID_NAMESPACE.dnr());
        }
    }
}

#[test]
fn nsid_rules() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    let invalid = StatusCode::INVALID_NAMESPACE.dnr();
    for cns in [Cns::NAMESPACE, Cns::NAMESPACE_CSI, Cns::NAMESPACE_INDEPENDENT] {
        let (_, zeros) = rig.ok(controller, &identify(cns, 2));
        assert!(zeros.iter().all(|&b| b == 0), "inactive: zeros");
        for nsid in [0, 257, NSID_BROADCAST] {
            assert_eq!(rig.fails(controller, &identify(cns, nsid)), invalid, "{cns:?} {nsid}");
        }
    }
    let descriptors = Cns::NAMESPACE_DESCRIPTORS;
    assert_eq!(rig.fails(controller, &identify(descriptors, 2)), StatusCode::INVALID_FIELD.dnr());
    assert_eq!(rig.fails(controller, &identify(descriptors, 0)), invalid);
}

#[test]
fn command_sets() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    for cntid in [0xffff, 1] {
        let mut sqe = identify(Cns::COMMAND_SETS, 0);
        sqe.cdw10.set(Cns::COMMAND_SETS.0 as u32 | cntid << 16);
        let (_, vectors) = rig.ok(controller, &sqe);
        assert_eq!(vectors[0], 1, "one combination: NVM");
        assert!(vectors[1..].iter().all(|&b| b == 0));
    }
    assert_eq!(rig.fails(controller, &identify(Cns::COMMAND_SETS, 0)), StatusCode::INVALID_FIELD.dnr());
    let (_, limits) = rig.ok(controller, &identify(Cns::CONTROLLER_CSI, 0));
    assert!(limits.iter().all(|&b| b == 0), "no limits");
    for cns in [Cns::NAMESPACE_CSI, Cns::CONTROLLER_CSI, Cns::ACTIVE_NAMESPACES_CSI] {
        let mut sqe = identify(cns, 1);
        sqe.cdw11.set(u32::from(Csi::ZONED.0) << 24);
        assert_eq!(rig.fails(controller, &sqe), StatusCode::INVALID_FIELD.dnr(), "{cns:?}");
    }
}

#[test]
fn the_transfer_has_the_length_of_the_structure() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    for len in [0, 4092, 8192] {
        let mut sqe = identify(Cns::CONTROLLER, 0);
        sqe.dptr.length.set(len);
        assert_eq!(rig.fails(controller, &sqe), StatusCode::SGL_DATA_LENGTH_INVALID.dnr(), "{len}");
    }
    assert_eq!(rig.fails(controller, &identify(Cns::ALLOCATED_NAMESPACES, 0)), StatusCode::INVALID_FIELD.dnr());
    assert_eq!(rig.fails(controller, &identify(Cns(0xff), 0)), StatusCode::INVALID_FIELD.dnr());
}
