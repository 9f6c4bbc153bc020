//! Changes while hosts are connected, and the events they raise.

use super::*;

fn changed_list(rig: &mut Rig, controller: ControllerHandle, retain: bool) -> Vec<u32> {
    let mut sqe = get_log(LogId::CHANGED_NAMESPACES, 0, 4096);
    sqe.cdw10.set(sqe.cdw10.get() | u32::from(retain) << 15);
    let (_, page) = rig.ok(controller, &sqe);
    page.chunks_exact(4).map(|id| u32::from_le_bytes(id.try_into().unwrap())).take_while(|&id| id != 0).collect()
}

fn listen_to_namespaces(rig: &mut Rig, controller: ControllerHandle) {
    rig.ok(controller, &set_feature(FeatureId::ASYNC_EVENT_CONFIG, async_event_config::NAMESPACE_ATTRIBUTE));
}

fn grown(nsid: u32) -> NamespaceInfo {
    NamespaceInfo { blocks: 4096, ..namespace(nsid) }
}

fn notice(controller: ControllerHandle, cid: u16, dword: u32) -> Notice {
    Notice::AsyncEvent { controller, cqe: Cqe::with_result(cid, u64::from(dword)) }
}

/// Notice, namespace attribute changed, log page 04h.
const NAMESPACE_CHANGED: u32 = 0x0004_0002;
/// Notice, discovery log changed, log page 70h.
const DISCOVERY_CHANGED: u32 = 0x0070_f002;

#[test]
fn a_resize_raises_one_event_until_the_list_is_read() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    listen_to_namespaces(&mut rig, controller);
    rig.admin(controller, &async_event_request(30));
    rig.admin(controller, &async_event_request(31));

    rig.target.set_namespaces(NQN, vec![grown(1), namespace(3)]).unwrap();
    assert_eq!(rig.notices(), [notice(controller, 30, NAMESPACE_CHANGED)]);
    let (_, id) = rig.ok(controller, &identify(Cns::NAMESPACE, 1));
    assert_eq!(id[..8], 4096u64.to_le_bytes());

    // Masked: more changes enter the list without another event.
    rig.target.set_namespaces(NQN, vec![grown(1), grown(5)]).unwrap();
    assert_eq!(rig.notices(), []);
    assert_eq!(changed_list(&mut rig, controller, true), [1, 3, 5], "resized, removed, added");
    rig.target.set_namespaces(NQN, vec![grown(1)]).unwrap();
    assert_eq!(rig.notices(), [], "the event was retained");
    assert_eq!(changed_list(&mut rig, controller, false), [1, 3, 5]);
    assert_eq!(changed_list(&mut rig, controller, false), [] as [u32; 0]);

    rig.target.set_namespaces(NQN, vec![namespace(1)]).unwrap();
    assert_eq!(rig.notices(), [notice(controller, 31, NAMESPACE_CHANGED)]);
}

#[test]
fn an_event_waits_for_a_request_and_a_read_withdraws_it() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    listen_to_namespaces(&mut rig, controller);
    rig.target.set_namespaces(NQN, vec![grown(1), namespace(3)]).unwrap();
    assert_eq!(rig.notices(), []);
    assert_eq!(rig.admin(controller, &async_event_request(1)).0, Outcome::Parked);
    assert_eq!(rig.notices(), [notice(controller, 1, NAMESPACE_CHANGED)]);
    changed_list(&mut rig, controller, false);

    rig.target.set_namespaces(NQN, vec![namespace(3)]).unwrap();
    changed_list(&mut rig, controller, false);
    rig.admin(controller, &async_event_request(2));
    assert_eq!(rig.notices(), [], "read before it was reported");
}

#[test]
fn events_that_are_not_enabled_stay_silent() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    rig.admin(controller, &async_event_request(1));
    rig.target.set_namespaces(NQN, vec![grown(1), namespace(3)]).unwrap();
    assert_eq!(rig.notices(), []);
    listen_to_namespaces(&mut rig, controller);
    assert_eq!(rig.notices(), [], "not in retrospect");
    assert_eq!(changed_list(&mut rig, controller, false), [1]);
}

#[test]
fn an_unchanged_table_changes_nothing() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    listen_to_namespaces(&mut rig, controller);
    rig.admin(controller, &async_event_request(1));
    rig.target.set_namespaces(NQN, vec![namespace(3), namespace(1)]).unwrap();
    assert_eq!(rig.notices(), []);
    assert_eq!(changed_list(&mut rig, controller, false), [] as [u32; 0]);
}

#[test]
fn discovery_controllers_hear_of_what_concerns_their_host() {
    let mut rig = Rig::new();
    let listener = |rig: &mut Rig, host: &str, cid: u16| {
        let controller = rig.connect(DISCOVERY_NQN, host, 30_000).controller;
        rig.enable(controller);
        rig.ok(controller, &set_feature(FeatureId::ASYNC_EVENT_CONFIG, async_event_config::DISCOVERY_LOG));
        rig.admin(controller, &async_event_request(cid));
        controller
    };
    let ours = listener(&mut rig, HOST, 1);
    let theirs = listener(&mut rig, "nqn.other:host", 2);
    let generation = |rig: &mut Rig| {
        let (_, header) = rig.ok(ours, &get_log(LogId::DISCOVERY, 0, 16));
        u64::from_le_bytes(header[..8].try_into().unwrap())
    };
    let before = generation(&mut rig);

    rig.target.add_subsystem(subsystem("nqn.2026-11.io.reactor:new", only("nqn.other:host"))).unwrap();
    assert_eq!(rig.notices(), [notice(theirs, 2, DISCOVERY_CHANGED)]);
    assert_ne!(generation(&mut rig), before);

    rig.target.set_hosts("nqn.2026-11.io.reactor:new", AllowedHosts::Any).unwrap();
    assert_eq!(rig.notices(), [notice(ours, 1, DISCOVERY_CHANGED)]);
    rig.ok(ours, &get_log(LogId::DISCOVERY, 0, 1024));
    rig.admin(ours, &async_event_request(3));

    // Leaving: no listener is left to be found.
    rig.target.set_listeners(Vec::new());
    assert_eq!(rig.notices(), [notice(ours, 3, DISCOVERY_CHANGED)], "the other one has no request left");
}

#[test]
fn what_goes_away_takes_its_controllers_along() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    let other = rig.connect(NQN, "nqn.other:host", 0).controller;
    let discovery = rig.enabled_discovery(0);
    rig.target.set_hosts(NQN, only(HOST)).unwrap();
    assert_eq!(rig.notices(), [Notice::Close { controller: other }]);
    rig.target.disconnect(other, 0);

    rig.target.remove_subsystem(NQN).unwrap();
    assert_eq!(rig.notices(), [Notice::Close { controller }]);
    assert!(rig.target.namespaces(NQN).is_none());
    // Until its connections are closed the controller has no namespaces.
    assert_eq!(rig.fails(controller, &identify(Cns::NAMESPACE, 1)), StatusCode::INVALID_NAMESPACE.dnr());
    rig.ok(controller, &identify(Cns::CONTROLLER, 0));
    assert_eq!(rig.target.disconnect(controller, 0), Disconnected::Gone);
    rig.ok(discovery, &identify(Cns::CONTROLLER, 0));
}

#[test]
fn impossible_configurations_change_nothing() {
    let mut rig = Rig::new();
    let set = |rig: &mut Rig, list| rig.target.set_namespaces(NQN, list);
    assert_eq!(set(&mut rig, vec![namespace(0)]), Err(ConfigError::BadNsid(0)));
    assert_eq!(set(&mut rig, vec![namespace(257)]), Err(ConfigError::BadNsid(257)));
    assert_eq!(set(&mut rig, vec![namespace(2), namespace(2)]), Err(ConfigError::BadNsid(2)));
    let empty = NamespaceInfo { blocks: 0, ..namespace(2) };
    assert_eq!(set(&mut rig, vec![empty]), Err(ConfigError::BadGeometry(2)));
    let odd = NamespaceInfo { block_size: 520, ..namespace(2) };
    assert_eq!(set(&mut rig, vec![odd]), Err(ConfigError::BadGeometry(2)));
    let many = (1..=257).map(namespace).collect();
    assert_eq!(set(&mut rig, many), Err(ConfigError::TooManyNamespaces(257)));
    let nsids: Vec<u32> = rig.target.namespaces(NQN).unwrap().iter().map(|ns| ns.nsid).collect();
    assert_eq!(nsids, [1, 3]);

    let none = "nqn.none".to_owned();
    assert_eq!(rig.target.set_namespaces(&none, vec![]), Err(ConfigError::NoSubsystem(none.clone())));
    assert_eq!(rig.target.remove_subsystem(&none), Err(ConfigError::NoSubsystem(none.clone())));
    assert_eq!(rig.target.set_hosts(&none, AllowedHosts::Any), Err(ConfigError::NoSubsystem(none)));
    let twice = rig.target.add_subsystem(subsystem(NQN, AllowedHosts::Any));
    assert_eq!(twice, Err(ConfigError::DuplicateSubsystem(NQN.to_owned())));
    for nqn in ["", DISCOVERY_NQN, "nqn\0", &"n".repeat(224)] {
        let result = rig.target.add_subsystem(subsystem(nqn, AllowedHosts::Any));
        assert_eq!(result, Err(ConfigError::BadNqn(nqn.to_owned())));
    }

    let bad = |change: &dyn Fn(&mut TargetParams)| {
        let mut params = params();
        change(&mut params);
        Target::new(params).map(|_| ()).unwrap_err()
    };
    assert_eq!(bad(&|p| p.max_io_queues = 0), ConfigError::Parameter("max_io_queues"));
    assert_eq!(bad(&|p| p.max_io_entries = 1), ConfigError::Parameter("max_io_entries"));
    assert_eq!(bad(&|p| p.max_admin_entries = 31), ConfigError::Parameter("max_admin_entries"));
    assert_eq!(bad(&|p| p.in_capsule_len = 8), ConfigError::Parameter("in_capsule_len"));
    assert_eq!(bad(&|p| p.max_nsid = 0), ConfigError::Parameter("max_nsid"));
    assert_eq!(bad(&|p| p.max_namespaces = 257), ConfigError::Parameter("max_namespaces"));
}
