//! Discovery: which targets are told of, where they are said to be, and where a login is sent instead.

use super::super::server::Place;
use super::initiator::login::{MOVED_FOR_EVER, MOVED_FOR_NOW};
use super::initiator::pdu::{NO_TAG, Pdu, flag, op};
use super::initiator::{Options, PATIENCE, Session, cdb};
use super::{IQN, config_with, portal};

const LUNS: &str = r#"luns = [{ bdev = "ram0" }]"#;

fn discovery(address: std::net::SocketAddr) -> Session {
    Session::open(address, &Options { target: None, ..Options::new(IQN, 1) })
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn every_target_is_told_with_every_portal() {
    let portals = r#"portals = [
            { listen = "127.0.0.1:0", tpgt = 1 },
            { listen = "[::1]:0", tpgt = 2 },
            { listen = "127.0.0.1:0", tpgt = 3, advertise = "203.0.113.9:3260" },
        ]"#;
    let target = format!("{LUNS}\n[[iscsi.target]]\niqn = \"{IQN}b\"\nluns = [{{ bdev = \"ram1\" }}]\nportals = [2]");
    let server = Place::new().serve(&config_with(portals, &target));
    let mut session = discovery(portal(&server));
    let found = session.send_targets("All");
    println!("{found:?}");
    let of = |name: &str| {
        let start = found.iter().position(|(key, value)| key == "TargetName" && value == name).expect(name);
        let rest = found[start + 1..].iter().take_while(|(key, _)| key == "TargetAddress");
        rest.map(|(_, value)| value.clone()).collect::<Vec<_>>()
    };
    let first = of(IQN);
    assert_eq!(first.len(), 3, "{first:?}");
    assert!(first[0].starts_with("127.0.0.1:") && first[0].ends_with(",1"), "{first:?}");
    assert!(first[1].starts_with("[::1]:") && first[1].ends_with(",2"), "{first:?}");
    assert_eq!(first[2], "203.0.113.9:3260,3");
    let second = of(&format!("{IQN}b"));
    assert!(second.len() == 1 && second[0].starts_with("[::1]:"), "{second:?}");
    // One by name; one that is not there.
    assert_eq!(session.send_targets(IQN).iter().filter(|(key, _)| key == "TargetName").count(), 1);
    assert_eq!(session.send_targets("iqn.2026-11.io.reactor:none"), []);
    session.end();
    // In a normal session: of its own target.
    let mut session = Session::open(portal(&server), &Options::new(IQN, 1));
    let own = session.send_targets("");
    assert_eq!(own[0], ("TargetName".to_owned(), IQN.to_owned()));
    assert_eq!(own.iter().filter(|(key, _)| key == "TargetName").count(), 1);
    session.end();
    // Where it is told to be, it is; where it is not told, it is not.
    let v6: std::net::SocketAddr = second[0].rsplit_once(',').unwrap().0.parse().unwrap();
    for name in [IQN.to_owned(), format!("{IQN}b")] {
        let mut session = Session::open(v6, &Options::new(&name, 1));
        session.settle(0);
        session.end();
    }
    assert!(Session::login(portal(&server), &Options::new(&format!("{IQN}b"), 1)).is_err());
    server.stop();
}

#[test]
fn a_discovery_session_has_no_commands() {
    let server = Place::new().serve(&config_with(r#"listen = ["127.0.0.1:0"]"#, LUNS));
    let mut session = discovery(portal(&server));
    let mut command = Pdu::new(op::COMMAND, flag::FINAL | flag::READ).with(16, 5).with(20, 36).with(24, session.cmd_sn);
    command.bhs[32..].copy_from_slice(&cdb::inquiry(None, 36));
    session.conns[0].wire.send(&command);
    let answer = session.conns[0].wire.next(PATIENCE).pdu();
    assert_eq!((answer.opcode(), answer.get(16)), (op::REJECT, NO_TAG));
    assert_eq!(answer.data, command.bhs, "the header that is rejected");
    server.stop();
}

#[test]
fn many_targets_come_in_several_answers() {
    let more: String = (0..200)
        .map(|number| format!("[[iscsi.target]]\niqn = \"{IQN}-with-a-long-name-{number:03}\"\n{LUNS}\n"))
        .collect();
    let server = Place::new().serve(&config_with(r#"listen = ["127.0.0.1:0"]"#, &format!("{LUNS}\n{more}")));
    let mut options = Options { target: None, ..Options::new(IQN, 1) };
    // The shortest data segment that may be declared.
    options.offer.max_recv = Some(512);
    let mut session = Session::open(portal(&server), &options);
    let found = session.send_targets("All");
    assert_eq!(found.iter().filter(|(key, _)| key == "TargetName").count(), 201);
    assert_eq!(found.iter().filter(|(key, _)| key == "TargetAddress").count(), 201);
    session.end();
    server.stop();
}

#[test]
fn text_of_a_session_follows_the_rules_of_a_login() {
    let server = Place::new().serve(&config_with(r#"listen = ["127.0.0.1:0"]"#, LUNS));
    let mut session = Session::open(portal(&server), &Options::new(IQN, 1));
    let found = session.text(&pairs(&[("X-what", "1"), ("MaxRecvDataSegmentLength", "4096")]));
    assert!(found.contains(&("X-what".to_owned(), "NotUnderstood".to_owned())), "{found:?}");
    // It holds from now on.
    session.conns[0].params.max_recv = 4096;
    session.settle(0);
    session.command(0, &cdb::read16(0, 64), &[], 64 * 512).good();
    session.end();
    server.stop();
}

#[test]
fn a_login_is_sent_elsewhere() {
    for (permanent, status) in [(false, MOVED_FOR_NOW), (true, MOVED_FOR_EVER)] {
        let target = format!("{LUNS}\nredirect = {{ address = \"203.0.113.9:3260\", permanent = {permanent} }}");
        let server = Place::new().serve(&config_with(r#"listen = ["127.0.0.1:0"]"#, &target));
        assert_eq!(Session::login(portal(&server), &Options::new(IQN, 1)).err(), Some(status));
        server.stop();
    }
}
