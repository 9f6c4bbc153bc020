//! Connect and its refusals, the life of controllers and queues.

use super::*;

fn refusal(result: Result<Connected, Cqe>) -> (Status, u32) {
    let cqe = result.unwrap_err();
    (cqe.status(), cqe.dw0())
}

const INVALID: Status = StatusCode::CONNECT_INVALID_PARAMETERS.dnr();

#[test]
fn an_admin_connect_creates_a_controller() {
    let mut rig = Rig::new();
    let mut cmd = ConnectCmd::new(0, 31, 0, 5000);
    cmd.cid.set(9);
    let connected = rig.try_connect(cmd, &connect_data(CNTLID_DYNAMIC, NQN, HOST)).unwrap();
    assert_eq!((connected.kind, connected.qid, connected.entries), (QueueKind::Admin, 0, 32));
    assert!(!connected.sq_flow_control_disabled);
    assert_eq!((connected.cqe.cid.get(), connected.cqe.dw0()), (9, 1));
    assert_eq!(rig.target.subsystem_of(connected.controller), Some(NQN));
    assert_eq!(rig.target.host_of(connected.controller), Some(HOST));

    // Several controllers of one subsystem, also of one host, each with its own identifier.
    assert_eq!(rig.connect(NQN, HOST, 0).cqe.dw0(), 2);
    assert_eq!(rig.connect(NQN, "nqn.2014-08.org.example:other", 0).cqe.dw0(), 3);
    assert_eq!(rig.connect(DISCOVERY_NQN, HOST, 0).kind, QueueKind::Discovery);
    assert_eq!(rig.target.controllers().count(), 4);
}

#[test]
fn flow_control_is_disabled_only_on_request() {
    let mut rig = Rig::new();
    let data = connect_data(CNTLID_DYNAMIC, NQN, HOST);
    let cmd = ConnectCmd::new(0, 31, CATTR_DISABLE_SQ_FLOW_CONTROL, 0);
    let connected = rig.try_connect(cmd, &data).unwrap();
    assert!(connected.sq_flow_control_disabled);
    assert_eq!(connected.cqe.sqhd.get(), 0xffff);
}

#[test]
fn every_bad_parameter_is_named() {
    let mut rig = Rig::new();
    let good = connect_data(CNTLID_DYNAMIC, NQN, HOST);
    let cmd = ConnectCmd::new(0, 31, 0, 0);

    let mut bad = cmd;
    bad.recfmt.set(1);
    assert_eq!(refusal(rig.try_connect(bad, &good)), (StatusCode::CONNECT_INCOMPATIBLE_FORMAT.dnr(), 0));

    for (qid, sqsize_z, offset) in [(9, 31, 42), (0xffff, 31, 42), (0, 0, 44), (0, 32, 44), (1, 128, 44)] {
        let result = rig.try_connect(ConnectCmd::new(qid, sqsize_z, 0, 0), &good);
        assert_eq!(refusal(result), (INVALID, offset), "qid {qid} sqsize {sqsize_z}");
    }

    let data = |change: &dyn Fn(&mut ConnectData)| {
        let mut data = good;
        change(&mut data);
        data
    };
    for (name, data, offset) in [
        ("hostid 0", data(&|d| d.hostid = [0; 16]), 0),
        ("static controller", data(&|d| d.cntlid.set(CNTLID_STATIC_ANY)), 16),
        ("named controller", data(&|d| d.cntlid.set(1)), 16),
        ("subnqn not terminated", data(&|d| d.subnqn = [b'a'; 256]), 256),
        ("subnqn empty", data(&|d| d.subnqn[0] = 0), 256),
        ("subnqn unknown", data(&|d| d.subnqn[4] = b'3'), 256),
        ("subnqn too long", data(&|d| put_text(&mut d.subnqn, &"n".repeat(224), 0)), 256),
        ("hostnqn not terminated", data(&|d| d.hostnqn = [b'a'; 256]), 512),
        ("hostnqn empty", data(&|d| d.hostnqn[0] = 0), 512),
        ("hostnqn not text", data(&|d| d.hostnqn[1] = 0xff), 512),
    ] {
        assert_eq!(refusal(rig.try_connect(cmd, &data)), (INVALID, offset | 1 << 16), "{name}");
    }
    assert_eq!(rig.target.controllers().count(), 0);
}

#[test]
fn what_is_not_a_whole_connect_is_refused() {
    let mut rig = Rig::new();
    let data = connect_data(CNTLID_DYNAMIC, NQN, HOST);
    let mut request = |sqe: &Sqe, data: &[u8]| {
        let request = ConnectRequest { sqe, data, local: LOCAL, now_ns: 0 };
        rig.target.connect(&request).unwrap_err().status()
    };
    let sequence = StatusCode::COMMAND_SEQUENCE_ERROR.dnr();
    assert_eq!(request(&identify(Cns::CONTROLLER, 0), &[]), sequence);
    assert_eq!(request(&PropertyGetCmd::new(0, true).to_sqe(), &[]), sequence);
    let sqe = ConnectCmd::new(0, 31, 0, 0).to_sqe();
    let length = StatusCode::SGL_DATA_LENGTH_INVALID.dnr();
    assert_eq!(request(&sqe, &data.as_bytes()[..1023]), length);
    let mut short = sqe;
    short.dptr.length.set(512);
    assert_eq!(request(&short, data.as_bytes()), length);
    let mut prp = sqe;
    prp.flags = 0;
    assert_eq!(request(&prp, data.as_bytes()), StatusCode::INVALID_FIELD.dnr());
}

#[test]
fn hosts_that_are_not_listed_are_refused() {
    let mut rig = Rig::new();
    rig.target.set_hosts(NQN, only(HOST)).unwrap();
    rig.connect(NQN, HOST, 0);
    let other = connect_data(CNTLID_DYNAMIC, NQN, "nqn.2014-08.org.example:other");
    let result = rig.try_connect(ConnectCmd::new(0, 31, 0, 0), &other);
    assert_eq!(refusal(result), (StatusCode::CONNECT_INVALID_HOST.dnr(), 0));
}

#[test]
fn io_queues_belong_to_an_enabled_controller_of_the_same_host() {
    let mut rig = Rig::new();
    let controller = rig.connect(NQN, HOST, 0).controller;
    let sequence = (StatusCode::COMMAND_SEQUENCE_ERROR.dnr(), 0);
    assert_eq!(refusal(rig.io_queue(1, 1)), sequence, "not enabled");
    rig.enable(controller);

    let connected = rig.io_queue(1, 1).unwrap();
    assert_eq!((connected.kind, connected.controller), (QueueKind::Io, controller));
    assert_eq!((connected.qid, connected.entries, connected.cqe.dw0()), (1, 128, 1));
    assert_eq!(refusal(rig.io_queue(1, 1)), sequence, "the queue exists");
    assert_eq!(refusal(rig.io_queue(2, 2)), (INVALID, 1 << 16 | 16), "no such controller");

    let mut data = connect_data(1, NQN, "nqn.2014-08.org.example:other");
    let cmd = ConnectCmd::new(2, 127, 0, 0);
    assert_eq!(refusal(rig.try_connect(cmd, &data)), (INVALID, 1 << 16 | 512), "another host");
    data = connect_data(1, NQN, HOST);
    data.hostid = [8; 16];
    assert_eq!(refusal(rig.try_connect(cmd, &data)), (INVALID, 1 << 16), "another host identifier");
    let data = connect_data(1, DISCOVERY_NQN, HOST);
    assert_eq!(refusal(rig.try_connect(cmd, &data)), (INVALID, 42), "discovery has no I/O queues");

    // Number of Queues bounds the identifiers.
    let controller = rig.enabled();
    rig.ok(controller, &set_feature(FeatureId::NUMBER_OF_QUEUES, 0x0001_0001));
    rig.io_queue(2, 2).unwrap();
    assert_eq!(refusal(rig.io_queue(2, 3)), (INVALID, 42));
}

#[test]
fn entry_sizes_must_have_been_configured() {
    let mut rig = Rig::new();
    let controller = rig.connect(NQN, HOST, 0).controller;
    rig.ok(controller, &PropertySetCmd::new(Property::CC.0, 1).to_sqe());
    assert_eq!(refusal(rig.io_queue(1, 1)), (INVALID, 42));
}

#[test]
fn the_number_of_controllers_is_bounded_and_identifiers_are_reused_late() {
    let mut rig = Rig::new();
    let handles: Vec<_> = (0..16).map(|_| rig.connect(NQN, HOST, 0).controller).collect();
    let cmd = ConnectCmd::new(0, 31, 0, 0);
    let data = connect_data(CNTLID_DYNAMIC, NQN, HOST);
    let result = rig.try_connect(cmd, &data);
    assert_eq!(refusal(result), (StatusCode::CONNECT_CONTROLLER_BUSY.retry(), 0));
    assert_eq!(rig.target.disconnect(handles[0], 0), Disconnected::Gone);
    assert_eq!(rig.connect(NQN, HOST, 0).cqe.dw0(), 17, "identifier 1 is free but was used");
}

#[test]
fn a_controller_lives_as_long_as_its_queues() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    rig.io_queue(1, 1).unwrap();
    rig.io_queue(1, 2).unwrap();
    assert_eq!(rig.target.disconnect(controller, 2), Disconnected::Remains);
    rig.io_queue(1, 2).unwrap();
    assert_eq!(rig.target.disconnect(controller, 0), Disconnected::CloseIoQueues);
    assert_eq!(refusal(rig.io_queue(1, 3)), (INVALID, 1 << 16 | 16), "without an Admin Queue");
    assert_eq!(rig.target.disconnect(controller, 1), Disconnected::CloseIoQueues);
    assert_eq!(rig.target.disconnect(controller, 2), Disconnected::Gone);
    assert_eq!(rig.target.disconnect(controller, 2), Disconnected::Gone);
    assert_eq!(rig.target.controllers().count(), 0);
}

#[test]
fn keep_alive_expires_unless_it_is_kept() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    let silent = rig.connect(NQN, HOST, 0).controller;
    // Asked for 5,000 ms from the first second on.
    assert_eq!(rig.target.next_deadline_ns(), Some(6 * SECOND));
    rig.now_ns = 5 * SECOND;
    rig.ok(controller, &Sqe::admin(AdminOpcode::KEEP_ALIVE, 0));
    rig.target.expire(9 * SECOND);
    assert_eq!(rig.notices(), []);
    rig.target.expire(10 * SECOND);
    assert_eq!(rig.notices(), [Notice::Close { controller }]);
    rig.target.expire(1000 * SECOND);
    assert_eq!(rig.notices(), [], "closed once; KATO 0 never expires: {silent:?}");
}

#[test]
fn keep_alive_does_not_expire_while_commands_take_to_end() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    // EN goes to 0, and the I/O takes a minute.
    let cc = PropertySetCmd::new(Property::CC.0, 6 << 16 | 4 << 20);
    assert!(matches!(rig.admin(controller, &cc.to_sqe()).0, Outcome::Quiesce { .. }));
    for second in [7, 30, 60] {
        rig.target.expire(second * SECOND);
        assert_eq!(rig.notices(), [], "after {second} s");
    }
    rig.target.quiesced(controller);
    rig.target.expire(64 * SECOND);
    assert_eq!(rig.notices(), []);
    rig.target.expire(65 * SECOND);
    assert_eq!(rig.notices(), [Notice::Close { controller }]);
}

#[test]
fn an_idle_discovery_controller_ends() {
    let mut rig = Rig::new();
    let idle = rig.enabled_discovery(0);
    let kept = rig.enabled_discovery(300_000);
    rig.now_ns = 100 * SECOND;
    rig.ok(idle, &identify(Cns::CONTROLLER, 0));
    rig.target.expire(219 * SECOND);
    assert_eq!(rig.notices(), []);
    rig.target.expire(220 * SECOND);
    assert_eq!(rig.notices(), [Notice::Close { controller: idle }]);
    rig.target.expire(301 * SECOND);
    assert_eq!(rig.notices(), [Notice::Close { controller: kept }]);
}
