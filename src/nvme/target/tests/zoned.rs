//! Namespaces with zones: what hosts read of them, who sees them, and which commands of theirs become requests.

use zerocopy::FromBytes;

use super::*;
use crate::nvme::spec::ZoneState as State;
use crate::nvme::target::zoned::{header, is_wanted};

/// Blocks of a zone.
const ZONE: u64 = 256;

fn zoned(nsid: u32) -> NamespaceInfo {
    let zones = ZoneInfo {
        blocks: ZONE,
        append_max: 100 << 10,
        open_max: Some(8),
        active_max: None,
        read_across: true,
        write_zeroes: true,
    };
    NamespaceInfo { zones: Some(zones), ..namespace(nsid) }
}

/// A subsystem of a namespace without zones and one with, and a controller that was enabled with all command sets, or not.
fn rig(all_command_sets: bool) -> (Rig, ControllerHandle) {
    let mut rig = Rig::new();
    rig.target.set_namespaces(NQN, vec![namespace(1), zoned(3)]).unwrap();
    let controller = rig.connect(NQN, HOST, 5000).controller;
    let cc = if all_command_sets { 0x0046_0061 } else { 0x0046_0001 };
    rig.ok(controller, &PropertySetCmd::new(Property::CC.0, cc).to_sqe());
    (rig, controller)
}

fn identify_of(cns: Cns, nsid: u32, csi: Csi) -> Sqe {
    let mut sqe = identify(cns, nsid);
    sqe.cdw11.set(u32::from(csi.0) << 24);
    sqe
}

fn effects(csi: Csi) -> Sqe {
    let mut sqe = Sqe::nvm(NvmOpcode(AdminOpcode::GET_LOG_PAGE.0), 0);
    let lid = LogId::COMMANDS_EFFECTS;
    GetLogFields { lid, lsp: 0, rae: false, numd_z: 1023, lsi: 0, offset: 0, offset_is_index: false, csi: csi.0 }
        .put(&mut sqe);
    sqe.dptr = SglDescriptor::transport(4096);
    sqe
}

#[test]
fn identify_tells_of_zones() {
    let (mut rig, controller) = rig(true);
    let page = |rig: &mut Rig, cns, nsid, csi| rig.ok(controller, &identify_of(cns, nsid, csi)).1;
    let its = page(&mut rig, Cns::NAMESPACE_CSI, 3, Csi::ZONED);
    let mut want = vec![0; 4096];
    want[..12].copy_from_slice(&[0, 0, 1, 0, 0xff, 0xff, 0xff, 0xff, 7, 0, 0, 0]);
    want[2817] = 1;
    assert!(its == want, "256 blocks a zone");
    let all = page(&mut rig, Cns::CONTROLLER_CSI, 0, Csi::ZONED);
    assert_eq!((all[0], all[1..].iter().all(|byte| *byte == 0)), (4, true), "64 KiB of 100");
    assert_eq!(page(&mut rig, Cns::ACTIVE_NAMESPACES, 0, Csi::NVM)[..12], [1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(page(&mut rig, Cns::ACTIVE_NAMESPACES_CSI, 0, Csi::NVM)[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(page(&mut rig, Cns::ACTIVE_NAMESPACES_CSI, 0, Csi::ZONED)[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
    let mut sets = identify(Cns::COMMAND_SETS, 0);
    sets.cdw10.set(0xffff_0000 | u32::from(Cns::COMMAND_SETS.0));
    assert_eq!(rig.ok(controller, &sets).1[..9], [5, 0, 0, 0, 0, 0, 0, 0, 0]);
    let list = page(&mut rig, Cns::NAMESPACE_DESCRIPTORS, 3, Csi::NVM);
    assert_eq!(list[52..58], [4, 1, 0, 0, 2, 0]);
    let id = IdentifyNamespace::read_from_bytes(&page(&mut rig, Cns::NAMESPACE, 3, Csi::NVM)).unwrap();
    assert_eq!((id.nsze.get(), id.dlfeat), (2048, 0));
    for (cns, nsid, csi) in [
        (Cns::NAMESPACE_CSI, 3, Csi::NVM),
        (Cns::NAMESPACE_CSI, 1, Csi::ZONED),
        (Cns::CONTROLLER_CSI, 0, Csi::KEY_VALUE),
        (Cns::ACTIVE_NAMESPACES_CSI, 0, Csi::KEY_VALUE),
    ] {
        assert_eq!(rig.fails(controller, &identify_of(cns, nsid, csi)), StatusCode::INVALID_FIELD.dnr(), "{cns:?}");
    }
}

#[test]
fn the_log_of_effects_has_what_each_command_set_has() {
    let (mut rig, controller) = rig(true);
    let log = |rig: &mut Rig, csi| CommandsEffectsLog::read_from_bytes(&rig.ok(controller, &effects(csi)).1).unwrap();
    let (nvm, zoned_log) = (log(&mut rig, Csi::NVM), log(&mut rig, Csi::ZONED));
    let of = |log: &CommandsEffectsLog, opcode: NvmOpcode| log.io[usize::from(opcode.0)].get();
    for (opcode, effects) in [
        (NvmOpcode::ZONE_APPEND, 3),
        (NvmOpcode::ZONE_MANAGEMENT_SEND, 3),
        (NvmOpcode::ZONE_MANAGEMENT_RECEIVE, 1),
        (NvmOpcode::WRITE, 3),
        (NvmOpcode::WRITE_ZEROES, 3),
        (NvmOpcode::VERIFY, 1),
        (NvmOpcode::DATASET_MANAGEMENT, 1),
    ] {
        assert_eq!(of(&zoned_log, opcode), effects, "{opcode:?}");
    }
    assert_eq!((of(&nvm, NvmOpcode::ZONE_APPEND), of(&nvm, NvmOpcode::DATASET_MANAGEMENT)), (0, 3));
    assert!(log(&mut rig, Csi::KEY_VALUE).io.iter().all(|effects| effects.get() == 0));
    let mut without = zoned(3);
    without.zones.as_mut().unwrap().write_zeroes = false;
    rig.target.set_namespaces(NQN, vec![without]).unwrap();
    assert_eq!(of(&log(&mut rig, Csi::ZONED), NvmOpcode::WRITE_ZEROES), 0);
}

#[test]
fn a_host_of_the_nvm_command_set_sees_no_zones() {
    let (mut rig, controller) = rig(false);
    assert_eq!(rig.ok(controller, &identify(Cns::ACTIVE_NAMESPACES, 0)).1[..8], [1, 0, 0, 0, 0, 0, 0, 0]);
    assert!(rig.ok(controller, &identify(Cns::NAMESPACE, 3)).1.iter().all(|byte| *byte == 0));
    assert_eq!(rig.fails(controller, &identify(Cns::NAMESPACE_DESCRIPTORS, 3)), StatusCode::INVALID_FIELD.dnr());
    for cns in [Cns::NAMESPACE_CSI, Cns::CONTROLLER_CSI, Cns::ACTIVE_NAMESPACES_CSI] {
        assert_eq!(rig.fails(controller, &identify_of(cns, 3, Csi::ZONED)), StatusCode::INVALID_FIELD.dnr(), "{cns:?}");
    }
    let log = CommandsEffectsLog::read_from_bytes(&rig.ok(controller, &effects(Csi::ZONED)).1).unwrap();
    assert!(log.io.iter().all(|effects| effects.get() == 0));
    assert!(!rig.io_queue(1, 1).unwrap().all_command_sets);
    let (mut rig, _) = self::rig(true);
    assert!(rig.io_queue(1, 1).unwrap().all_command_sets);
}

#[test]
fn zones_that_do_not_divide_a_namespace_are_refused() {
    let (mut rig, _) = rig(true);
    for blocks in [0, 300] {
        let mut odd = zoned(2);
        odd.zones.as_mut().unwrap().blocks = blocks;
        assert_eq!(rig.target.set_namespaces(NQN, vec![odd]), Err(ConfigError::BadZones(2)));
    }
}

fn table() -> Namespaces {
    let mut table = Namespaces::new(256);
    for info in [namespace(1), zoned(3), NamespaceInfo { read_only: true, ..zoned(4) }] {
        assert!(table.insert(info));
    }
    table
}

fn append(nsid: u32, lba: u64, blocks: u32) -> Sqe {
    let mut sqe = Sqe::nvm(NvmOpcode::ZONE_APPEND, nsid);
    sqe.set_slba(lba);
    sqe.cdw12.set(blocks - 1);
    sqe.dptr = SglDescriptor::transport(blocks * 512);
    sqe
}

fn send(nsid: u32, slba: u64, action: ZoneSendAction, all: bool) -> Sqe {
    let mut sqe = ZoneSendFields { slba, action, all }.to_sqe(nsid);
    sqe.flags = Psdt::SGL.0 << 6;
    sqe
}

fn receive(nsid: u32, slba: u64, bytes: u32, filter: ZoneReportFilter, partial: bool) -> Sqe {
    let fields = ZoneReceiveFields { slba, numd_z: bytes / 4 - 1, action: ZoneReceiveAction::REPORT, filter, partial };
    let mut sqe = fields.to_sqe(nsid);
    sqe.flags = Psdt::SGL.0 << 6;
    sqe.dptr = SglDescriptor::transport(bytes);
    sqe
}

fn status(sqe: &Sqe, capsule: u32) -> StatusCode {
    let fault = decode_io(sqe, &table(), capsule).unwrap_err();
    assert!(fault.status.is_dnr());
    fault.status.code()
}

#[test]
fn commands_of_zones_become_requests() {
    let table = table();
    let request = |sqe: &Sqe, capsule| decode_io(sqe, &table, capsule).unwrap().0;
    let mut sqe = append(3, 512, 8);
    sqe.cdw12.set(7 | RwCdw12::FUA);
    let asked = request(&sqe, 0);
    assert_eq!((asked.op, asked.lba, asked.blocks, asked.data_len), (IoOp::ZoneAppend, 512, 8, 4096));
    assert_eq!((asked.place, asked.fua, asked.nsid), (DataPlace::HostBuffer, true, 3));
    sqe.dptr = SglDescriptor::in_capsule(4096);
    assert_eq!(request(&sqe, 4096).place, DataPlace::InCapsule);
    for (action, op) in [
        (ZoneSendAction::OPEN, IoOp::ZoneOpen),
        (ZoneSendAction::CLOSE, IoOp::ZoneClose),
        (ZoneSendAction::FINISH, IoOp::ZoneFinish),
        (ZoneSendAction::RESET, IoOp::ZoneReset),
    ] {
        let one = request(&send(3, 256, action, false), 0);
        assert_eq!((one.op, one.lba, one.zone.all, one.place), (op, 256, false, DataPlace::None));
        // The first block is not looked at.
        let all = request(&send(3, 77, action, true), 0);
        assert_eq!((all.op, all.lba, all.zone.all), (op, 0, true));
    }
    let report = request(&receive(3, 300, 4096, ZoneReportFilter::FULL, true), 0);
    assert_eq!(
        (report.op, report.lba, report.data_len, report.place),
        (IoOp::ZoneReport, 300, 4096, DataPlace::HostBuffer)
    );
    assert_eq!(report.zone, ZoneAsk { all: false, partial: true, filter: ZoneReportFilter::FULL });
    assert!(decode_io(&receive(4, 0, 64, ZoneReportFilter::ALL, false), &table, 0).is_ok(), "of a read-only one too");
}

#[test]
fn commands_of_zones_are_refused_as_the_specification_says() {
    let report = |bytes, filter| receive(3, 0, bytes, ZoneReportFilter(filter), true);
    let with = |mut sqe: Sqe, change: fn(&mut Sqe)| {
        change(&mut sqe);
        sqe
    };
    for (sqe, code) in [
        (append(1, 0, 1), StatusCode::INVALID_OPCODE),
        (send(1, 0, ZoneSendAction::RESET, true), StatusCode::INVALID_OPCODE),
        (receive(1, 0, 64, ZoneReportFilter::ALL, true), StatusCode::INVALID_OPCODE),
        (append(2, 0, 1), StatusCode::INVALID_FIELD),
        (append(3, 1, 1), StatusCode::INVALID_FIELD),
        (append(3, 0, 201), StatusCode::INVALID_FIELD),
        (append(3, 2048, 1), StatusCode::LBA_OUT_OF_RANGE),
        (append(4, 0, 1), StatusCode::NAMESPACE_WRITE_PROTECTED),
        (with(append(3, 0, 1), |sqe| sqe.cdw12.set(RwCdw12::PRINFO)), StatusCode::INVALID_PROTECTION_INFO),
        (with(append(3, 0, 2), |sqe| sqe.cdw12.set(0)), StatusCode::SGL_DATA_LENGTH_INVALID),
        (with(append(3, 0, 1), |sqe| sqe.flags |= Fuse::SECOND.0), StatusCode::INVALID_FIELD),
        (send(3, 1, ZoneSendAction::RESET, false), StatusCode::INVALID_FIELD),
        (send(3, 2048, ZoneSendAction::RESET, false), StatusCode::LBA_OUT_OF_RANGE),
        (send(3, 0, ZoneSendAction::OFFLINE, true), StatusCode::INVALID_FIELD),
        (send(3, 0, ZoneSendAction::SET_EXTENSION, false), StatusCode::INVALID_FIELD),
        (send(4, 0, ZoneSendAction::RESET, true), StatusCode::NAMESPACE_WRITE_PROTECTED),
        (report(60, 0), StatusCode::INVALID_FIELD),
        (report((1 << 20) + 4, 0), StatusCode::INVALID_FIELD),
        (report(64, 8), StatusCode::INVALID_FIELD),
        (with(report(64, 0), |sqe| sqe.cdw13.set(1)), StatusCode::INVALID_FIELD),
        (with(report(128, 0), |sqe| sqe.dptr = SglDescriptor::transport(64)), StatusCode::SGL_DATA_LENGTH_INVALID),
        (receive(3, 2048, 64, ZoneReportFilter::ALL, true), StatusCode::LBA_OUT_OF_RANGE),
    ] {
        assert_eq!(status(&sqe, 0), code, "{sqe:?}");
    }
    assert_eq!(status(&send(3, 0, ZoneSendAction::RESET, false), 16), StatusCode::SGL_DATA_LENGTH_INVALID);
    // Nothing is written twice, so that nothing is fused.
    let table = table();
    let pair = [NvmOpcode::COMPARE, NvmOpcode::WRITE].map(|opcode| {
        let mut sqe = append(3, 0, 1);
        sqe.opcode = opcode.0;
        decode_io(&sqe, &table, 0).unwrap()
    });
    let fault = check_fused_pair(&pair[0].0, &pair[1].0, pair[0].1).unwrap_err();
    assert_eq!(fault.status.code(), StatusCode::INVALID_FIELD);
}

#[test]
fn a_report_has_a_header_and_the_zones_that_are_wanted() {
    assert_eq!((header(0x102)[..3].to_vec(), header(1)[8..] == [0; 56]), (vec![2, 1, 0], true));
    for (filter, states) in [
        (ZoneReportFilter::ALL, &[State::EMPTY, State::OFFLINE, State::FULL][..]),
        (ZoneReportFilter::EMPTY, &[State::EMPTY]),
        (ZoneReportFilter::IMPLICITLY_OPEN, &[State::IMPLICITLY_OPEN]),
        (ZoneReportFilter::EXPLICITLY_OPEN, &[State::EXPLICITLY_OPEN]),
        (ZoneReportFilter::CLOSED, &[State::CLOSED]),
        (ZoneReportFilter::FULL, &[State::FULL]),
        (ZoneReportFilter::READ_ONLY, &[State::READ_ONLY]),
        (ZoneReportFilter::OFFLINE, &[State::OFFLINE]),
    ] {
        assert!(states.iter().all(|state| is_wanted(filter, *state)), "{filter:?}");
        assert!(filter == ZoneReportFilter::ALL || !is_wanted(filter, State(5)), "{filter:?}");
    }
}
