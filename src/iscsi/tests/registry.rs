//! Which sessions there are, and who takes whose place.

use super::*;

fn claim(initiator: &str, isid: u8, tsih: u16, cid: u16) -> Claim {
    let nexus = Nexus { initiator: initiator.to_owned(), isid: [isid; 6], target: Some(TARGET.to_owned()), tpgt: 1 };
    Claim { nexus, tsih, cid, max_connections: 2 }
}

#[test]
fn sessions_begin_and_are_reinstated() {
    let mut registry = Registry::new(2);
    assert_eq!(registry.admit(&claim("a", 1, 0, 0)), Admission::New { tsih: 1, reinstates: None });
    assert_eq!(registry.admit(&claim("a", 2, 0, 0)), Admission::New { tsih: 2, reinstates: None });
    assert_eq!(registry.admit(&claim("b", 1, 0, 0)), Admission::Refused(LoginStatus::OUT_OF_RESOURCES));
    // The same nexus again takes the place of the old session even where there is no room.
    assert_eq!(registry.admit(&claim("a", 1, 0, 0)), Admission::New { tsih: 3, reinstates: Some(1) });
    registry.session_ended(1);
    let sessions: Vec<u16> = registry.sessions().map(|(tsih, _)| tsih).collect();
    assert_eq!(sessions, [2, 3], "the late end of the old one does not meet the new one");
    registry.session_ended(3);
    assert_eq!(registry.admit(&claim("a", 1, 0, 0)), Admission::New { tsih: 4, reinstates: None });
}

#[test]
fn connections_join_and_are_reinstated() {
    let mut registry = Registry::new(8);
    assert_eq!(registry.admit(&claim("a", 1, 0, 5)), Admission::New { tsih: 1, reinstates: None });
    assert_eq!(registry.admit(&claim("a", 1, 1, 6)), Admission::Join { tsih: 1, reinstates: false });
    assert_eq!(registry.admit(&claim("a", 1, 1, 7)), Admission::Refused(LoginStatus::TOO_MANY_CONNECTIONS));
    assert_eq!(registry.admit(&claim("a", 1, 1, 5)), Admission::Join { tsih: 1, reinstates: true });
    registry.connection_ended(1, 6);
    assert_eq!(registry.admit(&claim("a", 1, 1, 7)), Admission::Join { tsih: 1, reinstates: false });
    assert_eq!(registry.admit(&claim("a", 1, 9, 0)), Admission::Refused(LoginStatus::NO_SESSION));
    assert_eq!(registry.admit(&claim("b", 1, 1, 0)), Admission::Refused(LoginStatus::NO_SESSION));
    assert_eq!(registry.admit(&claim("a", 2, 1, 0)), Admission::Refused(LoginStatus::NO_SESSION));
    let mut discovery = claim("a", 1, 0, 0);
    discovery.nexus.target = None;
    assert_eq!(registry.admit(&discovery), Admission::New { tsih: 2, reinstates: None });
    discovery.tsih = 2;
    discovery.cid = 1;
    assert_eq!(registry.admit(&discovery), Admission::Refused(LoginStatus::CANNOT_INCLUDE));
}

#[test]
fn numbers_go_round_and_zero_is_none() {
    let mut registry = Registry::new(4);
    assert_eq!(registry.admit(&claim("keeps", 1, 0, 0)), Admission::New { tsih: 1, reinstates: None });
    let mut last = 1;
    for _ in 0..70_000u32 {
        let Admission::New { tsih, reinstates: None } = registry.admit(&claim("a", 1, 0, 0)) else { panic!() };
        assert!(tsih > 1 && tsih != last);
        last = tsih;
        registry.session_ended(tsih);
    }
}
