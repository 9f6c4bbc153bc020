//! Properties, enable, reset, shutdown, asynchronous events, abort, transfers.

use super::*;

const SEQUENCE: Status = StatusCode::COMMAND_SEQUENCE_ERROR.dnr();
const INVALID_FIELD: Status = StatusCode::INVALID_FIELD.dnr();

fn set_cc(value: u32) -> Sqe {
    PropertySetCmd::new(Property::CC.0, value).to_sqe()
}

fn abort(sqid: u16, cid: u16) -> Sqe {
    let mut sqe = Sqe::admin(AdminOpcode::ABORT, 0);
    sqe.cdw10.set(u32::from(sqid) | u32::from(cid) << 16);
    sqe
}

#[test]
fn properties_say_what_the_controller_is() {
    let mut rig = Rig::new();
    let controller = rig.connect(NQN, HOST, 0).controller;
    let cap = Cap(rig.property(controller, Property::CAP, true));
    assert_eq!((cap.mqes_z(), cap.to(), cap.mpsmin(), cap.dstrd()), (127, 15, 0, 0));
    assert_eq!(cap.0 & Cap::NSSRS, 0);
    assert_eq!(cap.0 & Cap::CRIMS, 0);
    for bit in [Cap::CQR, Cap::CSS_NVM, Cap::CSS_IOCS, Cap::CRWMS] {
        assert_ne!(cap.0 & bit, 0);
    }
    assert_eq!(rig.property(controller, Property::VS, false), 0x0002_0000);
    assert_eq!(rig.property(controller, Property::CC, false), 0);
    assert_eq!(rig.property(controller, Property::CSTS, false), 0);
    // CRTO is at least CAP.TO, or Linux warns.
    assert_eq!(rig.property(controller, Property::CRTO, false), 15);

    for (name, sqe) in [
        ("cap as 4 bytes", PropertyGetCmd::new(0, false).to_sqe()),
        ("vs as 8 bytes", PropertyGetCmd::new(8, true).to_sqe()),
        ("nssr is not supported", PropertyGetCmd::new(Property::NSSR.0, false).to_sqe()),
        ("unknown offset", PropertyGetCmd::new(0x1000, false).to_sqe()),
        ("set vs", PropertySetCmd::new(8, 0).to_sqe()),
        ("set nssr", PropertySetCmd::new(Property::NSSR.0, 0x4e56_4d65).to_sqe()),
        ("cc as 8 bytes", {
            let mut cmd = PropertySetCmd::new(Property::CC.0, 0);
            cmd.attrib = 1;
            cmd.to_sqe()
        }),
        ("size 2", {
            let mut cmd = PropertyGetCmd::new(Property::CC.0, false);
            cmd.attrib = 2;
            cmd.to_sqe()
        }),
    ] {
        assert_eq!(rig.fails(controller, &sqe), INVALID_FIELD, "{name}");
    }
}

#[test]
fn enable_checks_the_configuration() {
    let mut rig = Rig::new();
    let controller = rig.connect(NQN, HOST, 0).controller;
    assert_eq!(rig.fails(controller, &identify(Cns::CONTROLLER, 0)), SEQUENCE, "not enabled");
    for (name, cc) in [
        ("reserved bit 1", 0x0046_0003),
        ("reserved bit 31", 0x8046_0001),
        ("key value command set", 0x0046_0011),
        ("admin only", 0x0046_0071),
        ("8 KiB pages", 0x0046_0081),
        ("weighted round robin", 0x0046_0801),
        ("ready independent of media", 0x0146_0001),
        ("reserved shutdown", 0x0046_c001),
    ] {
        assert_eq!(rig.fails(controller, &set_cc(cc)), INVALID_FIELD, "{name}");
        assert_eq!(rig.property(controller, Property::CC, false), 0, "{name}");
    }
    // Linux writes the configuration first and EN second, with and without all command sets.
    for cc in [0x0046_0000, 0x0046_0061] {
        rig.ok(controller, &set_cc(cc));
        assert_eq!(rig.property(controller, Property::CC, false), u64::from(cc));
    }
    assert_eq!(rig.property(controller, Property::CSTS, false), u64::from(Csts::RDY));
    rig.ok(controller, &identify(Cns::CONTROLLER, 0));
}

#[test]
fn reset_completes_when_the_queues_are_gone() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    rig.io_queue(1, 1).unwrap();
    rig.ok(controller, &set_feature(FeatureId::ASYNC_EVENT_CONFIG, async_event_config::NAMESPACE_ATTRIBUTE));
    assert_eq!(rig.admin(controller, &async_event_request(1)).0, Outcome::Parked);

    let (outcome, _) = rig.admin(controller, &set_cc(0x0046_0000));
    assert!(matches!(outcome, Outcome::Quiesce { reason: Quiesce::Reset, cqe } if cqe.status().is_success()));
    assert_eq!(rig.property(controller, Property::CSTS, false), u64::from(Csts::RDY), "not yet");
    assert_eq!(rig.fails(controller, &set_cc(0x0046_0001)), StatusCode::COMMAND_SEQUENCE_ERROR.retry());
    assert_eq!(rig.io_queue(1, 2).unwrap_err().status(), SEQUENCE);
    assert_eq!(rig.fails(controller, &identify(Cns::CONTROLLER, 0)), SEQUENCE);
    assert_eq!(rig.target.disconnect(controller, 1), Disconnected::Remains);
    rig.target.quiesced(controller);
    assert_eq!(rig.property(controller, Property::CSTS, false), 0);
    assert_eq!(rig.property(controller, Property::CC, false), 0);

    // The next life starts with defaults and takes the queue again.
    rig.enable(controller);
    assert_eq!(rig.ok(controller, &get_feature(FeatureId::ASYNC_EVENT_CONFIG, FeatureSelect::CURRENT)).0, 0);
    rig.io_queue(1, 1).unwrap();
    rig.target.set_namespaces(NQN, vec![namespace(1)]).unwrap();
    assert_eq!(rig.notices(), [], "the parked request went with the reset");
}

#[test]
fn shutdown_completes_when_the_queues_are_gone() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    for shn in [0x4000u32, 0x8000] {
        let (outcome, _) = rig.admin(controller, &set_cc(0x0046_0001 | shn));
        assert!(matches!(outcome, Outcome::Quiesce { reason: Quiesce::Shutdown, .. }));
        let csts = Csts(rig.property(controller, Property::CSTS, false) as u32);
        assert_eq!((csts.ready(), csts.shst()), (true, 1));
        assert_eq!(rig.io_queue(1, 1).unwrap_err().status(), SEQUENCE);
        // Writing SHN again starts nothing.
        rig.ok(controller, &set_cc(0x0046_0001 | shn));
        rig.target.quiesced(controller);
        let csts = Csts(rig.property(controller, Property::CSTS, false) as u32);
        assert_eq!((csts.ready(), csts.shst()), (true, 2));
        assert_eq!(rig.io_queue(1, 1).unwrap_err().status(), SEQUENCE, "shut down");

        let (outcome, _) = rig.admin(controller, &set_cc(0));
        assert!(matches!(outcome, Outcome::Quiesce { reason: Quiesce::Reset, .. }));
        rig.target.quiesced(controller);
        assert_eq!(rig.property(controller, Property::CSTS, false), 0);
        rig.enable(controller);
    }
}

#[test]
fn a_reset_overtakes_a_shutdown() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    rig.admin(controller, &set_cc(0x0046_4001));
    let (outcome, _) = rig.admin(controller, &set_cc(0));
    assert!(matches!(outcome, Outcome::Quiesce { reason: Quiesce::Reset, .. }));
    rig.target.quiesced(controller);
    assert_eq!(rig.property(controller, Property::CSTS, false), 0);
    rig.target.quiesced(controller);
    rig.enable(controller);
    assert_eq!(rig.property(controller, Property::CSTS, false), u64::from(Csts::RDY));
}

#[test]
fn async_event_requests_are_bounded_and_can_be_aborted() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    for cid in 1..=4 {
        assert_eq!(rig.admin(controller, &async_event_request(cid)).0, Outcome::Parked);
    }
    let status = rig.fails(controller, &async_event_request(5));
    assert_eq!(status, StatusCode::ASYNC_EVENT_LIMIT_EXCEEDED.dnr());

    assert_eq!(rig.ok(controller, &abort(0, 2)).0, 0, "aborted");
    let cqe = Cqe::new(2, StatusCode::ABORT_REQUESTED.retry());
    assert_eq!(rig.notices(), [Notice::AsyncEvent { controller, cqe }]);
    assert_eq!(rig.ok(controller, &abort(0, 2)).0, 1, "not there any more");
    assert_eq!(rig.admin(controller, &async_event_request(5)).0, Outcome::Parked);
}

#[test]
fn aborts_of_io_commands_go_to_the_transport() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    assert_eq!(rig.ok(controller, &abort(1, 7)).0, 1, "no such queue");
    rig.io_queue(1, 1).unwrap();
    let command = abort(1, 7);
    for _ in 0..4 {
        assert_eq!(rig.admin(controller, &command).0, Outcome::Abort { sqid: 1, cid: 7 });
    }
    assert_eq!(rig.fails(controller, &command), StatusCode::ABORT_LIMIT_EXCEEDED.retry());
    assert_eq!(rig.target.abort_done(controller, &command, true).dw0(), 0);
    assert_eq!(rig.target.abort_done(controller, &command, false).dw0(), 1);
    assert_eq!(rig.admin(controller, &command).0, Outcome::Abort { sqid: 1, cid: 7 });
}

#[test]
fn commands_that_are_not_supported_say_so() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    let discovery = rig.enabled_discovery(0);
    for opcode in [
        AdminOpcode::DELETE_IO_SQ,
        AdminOpcode::CREATE_IO_SQ,
        AdminOpcode::CREATE_IO_CQ,
        AdminOpcode::NAMESPACE_MANAGEMENT,
        AdminOpcode(0x80),
        AdminOpcode(0xc0),
    ] {
        for controller in [controller, discovery] {
            let status = rig.fails(controller, &Sqe::admin(opcode, 0));
            assert_eq!(status, StatusCode::INVALID_OPCODE.dnr(), "{opcode:?}");
        }
    }
    let mut fabrics = Sqe::admin(AdminOpcode::FABRICS, u32::from(FabricsType::DISCONNECT.0));
    assert_eq!(rig.fails(controller, &fabrics), StatusCode::INVALID_OPCODE.dnr());
    fabrics = ConnectCmd::new(0, 31, 0, 0).to_sqe();
    fabrics.dptr = SglDescriptor::transport(1024);
    assert_eq!(rig.fails(controller, &fabrics), SEQUENCE, "connected already");
}

#[test]
fn transfers_are_checked_against_the_capsule() {
    let with = |mut sqe: Sqe, dptr: SglDescriptor| {
        sqe.dptr = dptr;
        sqe
    };
    let id = identify(Cns::CONTROLLER, 0);
    let transfer = admin_transfer(&id, 0).unwrap();
    assert_eq!(
        (transfer.direction, transfer.place, transfer.len),
        (Direction::ControllerToHost, DataPlace::HostBuffer, 4096)
    );
    let connect = ConnectCmd::new(0, 31, 0, 0).to_sqe();
    let transfer = admin_transfer(&connect, 1024).unwrap();
    assert_eq!((transfer.direction, transfer.place), (Direction::HostToController, DataPlace::InCapsule));
    let transfer = admin_transfer(&with(connect, SglDescriptor::transport(1024)), 0).unwrap();
    assert_eq!((transfer.place, transfer.len), (DataPlace::HostBuffer, 1024));
    // What Linux sends for commands without data.
    for sqe in [async_event_request(1), PropertyGetCmd::new(0, true).to_sqe(), Sqe::admin(AdminOpcode::KEEP_ALIVE, 0)] {
        assert_eq!(admin_transfer(&sqe, 0).unwrap().place, DataPlace::None);
        assert_eq!(admin_transfer(&sqe, 8).unwrap_err().status, StatusCode::SGL_DATA_LENGTH_INVALID.dnr());
    }
    let keyed = SglDescriptor { id: SglId::KEYED_DATA_BLOCK, ..SglDescriptor::transport(4096) };
    let address = SglDescriptor { id: SglId::DATA_BLOCK_ADDRESS, ..SglDescriptor::transport(4096) };
    let mut offset = SglDescriptor::in_capsule(1024);
    offset.address.set(64);
    let mut prp = id;
    prp.flags = 0;
    for (name, sqe, capsule, status) in [
        ("prp", prp, 0, StatusCode::INVALID_FIELD),
        ("keyed", with(id, keyed), 0, StatusCode::SGL_DESCRIPTOR_TYPE_INVALID),
        ("memory address", with(id, address), 0, StatusCode::SGL_DESCRIPTOR_TYPE_INVALID),
        ("in-capsule read", with(id, SglDescriptor::in_capsule(4096)), 0, StatusCode::SGL_DESCRIPTOR_TYPE_INVALID),
        ("too long", with(id, SglDescriptor::transport((1 << 20) + 4)), 0, StatusCode::INVALID_FIELD),
        ("capsule too short", connect, 1020, StatusCode::SGL_DATA_LENGTH_INVALID),
        ("capsule too long", connect, 1028, StatusCode::SGL_DATA_LENGTH_INVALID),
        ("offset", with(connect, offset), 1024, StatusCode::SGL_OFFSET_INVALID),
        ("both places", with(connect, SglDescriptor::transport(1024)), 1024, StatusCode::SGL_DATA_LENGTH_INVALID),
    ] {
        assert_eq!(admin_transfer(&sqe, capsule).unwrap_err().status, status.dnr(), "{name}");
    }
}

#[test]
fn a_controller_that_is_gone_answers_without_a_trace() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    rig.target.disconnect(controller, 0);
    let (cqe, _) = rig.done(controller, &identify(Cns::CONTROLLER, 0));
    assert_eq!(cqe.status(), StatusCode::INTERNAL_ERROR.dnr());
}
