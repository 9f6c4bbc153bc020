//! Features: each with its effect, or a fixed value that refuses to change.

use super::*;

fn current(rig: &mut Rig, controller: ControllerHandle, fid: FeatureId) -> u32 {
    rig.ok(controller, &get_feature(fid, FeatureSelect::CURRENT)).0
}

#[test]
fn number_of_queues_is_granted_up_to_the_limit() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    assert_eq!(current(&mut rig, controller, FeatureId::NUMBER_OF_QUEUES), 0x0007_0007);
    for (asked, granted) in [(0x0003_0003, 0x0003_0003), (0x0001_0005, 0x0001_0001), (0x00ff_00ff, 0x0007_0007)] {
        assert_eq!(rig.ok(controller, &set_feature(FeatureId::NUMBER_OF_QUEUES, asked)).0, granted);
        assert_eq!(current(&mut rig, controller, FeatureId::NUMBER_OF_QUEUES), granted);
    }
    for bad in [0x0000_ffff, 0xffff_0000] {
        let status = rig.fails(controller, &set_feature(FeatureId::NUMBER_OF_QUEUES, bad));
        assert_eq!(status, StatusCode::INVALID_FIELD.dnr());
    }
    rig.io_queue(1, 1).unwrap();
    let status = rig.fails(controller, &set_feature(FeatureId::NUMBER_OF_QUEUES, 0));
    assert_eq!(status, StatusCode::COMMAND_SEQUENCE_ERROR.dnr());
}

#[test]
fn keep_alive_timer_moves_the_deadline() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    assert_eq!(current(&mut rig, controller, FeatureId::KEEP_ALIVE_TIMER), 5000);
    rig.now_ns = 2 * SECOND;
    rig.ok(controller, &set_feature(FeatureId::KEEP_ALIVE_TIMER, 9001));
    assert_eq!(current(&mut rig, controller, FeatureId::KEEP_ALIVE_TIMER), 10_000, "rounded up");
    assert_eq!(rig.target.next_deadline_ns(), Some(12 * SECOND));
    rig.ok(controller, &set_feature(FeatureId::KEEP_ALIVE_TIMER, 0));
    assert_eq!(rig.target.next_deadline_ns(), None);
    rig.ok(controller, &set_feature(FeatureId::KEEP_ALIVE_TIMER, u32::MAX));
    rig.target.expire(u64::from(u32::MAX) * 1_000_000);
    assert_eq!(rig.notices(), []);
    assert_eq!(rig.ok(controller, &get_feature(FeatureId::KEEP_ALIVE_TIMER, FeatureSelect::DEFAULT)).0, 0);
}

#[test]
fn async_event_configuration_takes_what_is_reported() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    let discovery = rig.enabled_discovery(0);
    let aec = FeatureId::ASYNC_EVENT_CONFIG;
    for (controller, value, good) in [
        (controller, 0x1ff, true),
        (controller, 0x200, false),
        (controller, 1 << 31, false),
        (discovery, 1 << 31, true),
        (discovery, 0x100, false),
    ] {
        if good {
            rig.ok(controller, &set_feature(aec, value));
            assert_eq!(current(&mut rig, controller, aec), value);
        } else {
            assert_eq!(rig.fails(controller, &set_feature(aec, value)), StatusCode::INVALID_FIELD.dnr());
        }
    }
}

#[test]
fn the_host_identifier_comes_from_connect() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    let mut get = get_feature(FeatureId::HOST_ID, FeatureSelect::CURRENT);
    get.cdw11.set(1);
    get.dptr = SglDescriptor::transport(16);
    assert_eq!(rig.ok(controller, &get).1, [7; 16]);
    get.dptr = SglDescriptor::transport(8);
    assert_eq!(rig.fails(controller, &get), StatusCode::SGL_DATA_LENGTH_INVALID.dnr());
    get.cdw11.set(0);
    assert_eq!(rig.fails(controller, &get), StatusCode::INVALID_FIELD.dnr(), "64-bit form");
    let status = rig.fails(controller, &set_feature(FeatureId::HOST_ID, 1));
    assert_eq!(status, StatusCode::COMMAND_SEQUENCE_ERROR.dnr());
}

#[test]
fn fixed_features_state_a_value_and_refuse_to_change() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    for (fid, value) in [
        (FeatureId::ARBITRATION, 7),
        (FeatureId::POWER_MANAGEMENT, 0),
        (FeatureId::ERROR_RECOVERY, 0),
        (FeatureId::VOLATILE_WRITE_CACHE, 1),
        (FeatureId::WRITE_ATOMICITY, 0),
    ] {
        for select in [FeatureSelect::CURRENT, FeatureSelect::DEFAULT, FeatureSelect::SAVED] {
            assert_eq!(rig.ok(controller, &get_feature(fid, select)).0, value, "{fid:?}");
        }
        assert_eq!(rig.ok(controller, &get_feature(fid, FeatureSelect::SUPPORTED)).0, 0);
        let status = rig.fails(controller, &set_feature(fid, 0));
        assert_eq!(status, StatusCode::FEATURE_NOT_CHANGEABLE.dnr(), "{fid:?}");
    }
    let supported = get_feature(FeatureId::KEEP_ALIVE_TIMER, FeatureSelect::SUPPORTED);
    assert_eq!(rig.ok(controller, &supported).0, feature_capability::CHANGEABLE);
}

#[test]
fn command_set_profile_has_one_choice() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    let profile = FeatureId::IO_COMMAND_SET_PROFILE;
    rig.ok(controller, &set_feature(profile, 0));
    let status = rig.fails(controller, &set_feature(profile, 1));
    assert_eq!(status, StatusCode::IO_COMMAND_SET_COMBINATION_REJECTED.dnr());
    assert_eq!(current(&mut rig, controller, profile), 0);
}

#[test]
fn fields_of_feature_commands_are_checked() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    let discovery = rig.enabled_discovery(0);
    let field = StatusCode::INVALID_FIELD.dnr();
    for fid in [FeatureId::TIMESTAMP, FeatureId::HOST_BEHAVIOR, FeatureId::RESERVATION_PERSISTENCE, FeatureId(0)] {
        assert_eq!(rig.fails(controller, &get_feature(fid, FeatureSelect::CURRENT)), field, "{fid:?}");
        assert_eq!(rig.fails(controller, &set_feature(fid, 0)), field, "{fid:?}");
    }
    for fid in [FeatureId::NUMBER_OF_QUEUES, FeatureId::VOLATILE_WRITE_CACHE, FeatureId::HOST_ID] {
        assert_eq!(rig.fails(discovery, &get_feature(fid, FeatureSelect::CURRENT)), field);
    }
    assert_eq!(rig.fails(controller, &get_feature(FeatureId::ARBITRATION, FeatureSelect(5))), field);
    let mut save = set_feature(FeatureId::KEEP_ALIVE_TIMER, 0);
    save.cdw10.set(save.cdw10.get() | 1 << 31);
    assert_eq!(rig.fails(controller, &save), StatusCode::FEATURE_NOT_SAVEABLE.dnr());
    let mut one = set_feature(FeatureId::KEEP_ALIVE_TIMER, 0);
    one.nsid.set(1);
    assert_eq!(rig.fails(controller, &one), StatusCode::FEATURE_NOT_NAMESPACE_SPECIFIC.dnr());
}

#[test]
fn the_effects_log_lists_the_features_there_are() {
    let mut rig = Rig::new();
    for controller in [rig.enabled(), rig.enabled_discovery(0)] {
        let (_, page) = rig.ok(controller, &get_log(LogId::FEATURES_EFFECTS, 0, 1024));
        for fid in 0..=u8::MAX {
            let listed = page[usize::from(fid) * 4] & 1 != 0;
            let (cqe, _) = rig.done(controller, &get_feature(FeatureId(fid), FeatureSelect::SUPPORTED));
            assert_eq!(cqe.status().is_success(), listed, "feature {fid:#x}");
        }
    }
}
