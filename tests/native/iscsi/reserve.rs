//! Persistent reservations: who is fenced, and what outlives the program.

use std::time::Duration;

use super::super::host::pattern;
use super::super::server::{PATIENCE, Place};
use super::initiator::cdb::{self, status};
use super::initiator::{Offer, Options, Session};
use super::{BLOCK, IQN, config, portal, session};

/// Actions of PERSISTENT RESERVE OUT (SPC-4 §6.16.2) and IN (SPC-4 §6.15.1).
const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const REGISTER_AND_IGNORE: u8 = 6;
const READ_KEYS: u8 = 0;
const READ_RESERVATION: u8 = 1;
/// Types (SPC-4 §6.15.3.4).
const WRITE_EXCLUSIVE: u8 = 1;
const EXCLUSIVE_ACCESS: u8 = 3;
const WRITE_EXCLUSIVE_REGISTRANTS: u8 = 5;

fn out(session: &mut Session, (action, kind): (u8, u8), key: u64, about: u64) -> u8 {
    session.command(0, &cdb::reserve_out(action, kind), &cdb::reserve_parameters(key, about, false), 0).status
}

fn keys(session: &mut Session) -> Vec<u64> {
    let data = session.command(0, &cdb::reserve_in(READ_KEYS), &[], 256).data;
    let len = u32::from_be_bytes(data[4..8].try_into().unwrap()) as usize;
    data[8..8 + len].chunks(8).map(|key| u64::from_be_bytes(key.try_into().unwrap())).collect()
}

fn write(session: &mut Session, seed: u64) -> u8 {
    session.command(0, &cdb::write16(0, 4, 0), &pattern(4 * BLOCK, seed), 0).status
}

fn read(session: &mut Session) -> (u8, Vec<u8>) {
    let answer = session.command(0, &cdb::read16(0, 4), &[], 4 * BLOCK);
    (answer.status, answer.data)
}

#[test]
fn who_is_fenced_writes_no_more() {
    let server = Place::new().serve(&config());
    let (mut one, mut other) = (session(portal(&server), 1), session(portal(&server), 2));
    for (session, key) in [(&mut one, 0xa1), (&mut other, 0xb2)] {
        assert_eq!(out(session, (REGISTER, 0), 0, key), status::GOOD);
    }
    assert_eq!(keys(&mut one), [0xa1, 0xb2]);
    assert_eq!(out(&mut one, (RESERVE, WRITE_EXCLUSIVE_REGISTRANTS), 0xa1, 0), status::GOOD);
    assert_eq!((write(&mut one, 1), write(&mut other, 2)), (status::GOOD, status::GOOD), "both are registered");
    // The other takes over: the first is out, and its writes leave no trace.
    assert_eq!(out(&mut other, (PREEMPT, WRITE_EXCLUSIVE_REGISTRANTS), 0xb2, 0xa1), status::GOOD);
    let told = one.settle(0);
    // REGISTRATIONS PREEMPTED or RESERVATIONS PREEMPTED.
    assert!(told.contains(&0x2a05) || told.contains(&0x2a03), "{told:04x?}");
    assert_eq!(write(&mut one, 3), status::RESERVATION_CONFLICT);
    assert_eq!(read(&mut one), (status::GOOD, pattern(4 * BLOCK, 2)));
    assert_eq!(keys(&mut one), [0xb2]);
    // With exclusive access not even reads pass.
    assert_eq!(out(&mut other, (RELEASE, WRITE_EXCLUSIVE_REGISTRANTS), 0xb2, 0), status::GOOD);
    one.settle(0);
    assert_eq!(write(&mut one, 4), status::GOOD, "nothing is reserved");
    assert_eq!(out(&mut other, (RESERVE, EXCLUSIVE_ACCESS), 0xb2, 0), status::GOOD);
    let (refused, data) = read(&mut one);
    assert_eq!((refused, data.len()), (status::RESERVATION_CONFLICT, 0));
    assert_eq!(out(&mut one, (RESERVE, EXCLUSIVE_ACCESS), 0xa1, 0), status::RESERVATION_CONFLICT);
    // The other volume is another matter.
    one.command(1, &cdb::write16(0, 4, 0), &pattern(4 * BLOCK, 5), 0).good();
    one.end();
    // The end of a session does not end its reservation.
    other.end();
    let mut third = session(portal(&server), 3);
    assert_eq!(write(&mut third, 6), status::RESERVATION_CONFLICT);
    third.end();
    server.stop();
}

/// A file volume, its reservations kept in a directory.
fn durable() -> String {
    format!(
        r#"
        [memory]
        size = "64MiB"
        [[bdev]]
        name = "disk0"
        driver = "file"
        path = "disk0.img"
        size = "16MiB"
        [iscsi]
        listen = ["127.0.0.1:0"]
        state = "kept"
        [[iscsi.target]]
        iqn = "{IQN}"
        luns = [{{ bdev = "disk0" }}]
        "#
    )
}

fn alone(address: std::net::SocketAddr, number: u8) -> Session {
    let mut session = Session::open(address, &Options::new(IQN, number));
    session.settle(0);
    session
}

#[test]
fn registrations_that_are_to_last_outlive_a_kill() {
    let place = Place::new();
    let mut server = place.serve(&durable());
    let (mut one, mut other) = (alone(portal(&server), 1), alone(portal(&server), 2));
    for (session, key) in [(&mut one, 0xa1), (&mut other, 0xb2)] {
        let list = cdb::reserve_parameters(0, key, true);
        session.command(0, &cdb::reserve_out(REGISTER, 0), &list, 0).good();
    }
    assert_eq!(out(&mut one, (RESERVE, WRITE_EXCLUSIVE), 0xa1, 0), status::GOOD);
    assert_eq!(write(&mut one, 1), status::GOOD);
    one.command(0, &cdb::synchronize_cache16(), &[], 0).good();
    for round in 0..3 {
        server.program.signal("KILL");
        server.program.end(PATIENCE);
        server = place.serve(&durable());
        (one, other) = (alone(portal(&server), 1), alone(portal(&server), 2));
        assert_eq!(keys(&mut other), [0xa1, 0xb2], "round {round}");
        let held = other.command(0, &cdb::reserve_in(READ_RESERVATION), &[], 256).data;
        assert_eq!(
            (held[7], u64::from_be_bytes(held[8..16].try_into().unwrap()), held[21]),
            (16, 0xa1, WRITE_EXCLUSIVE)
        );
        assert_eq!(write(&mut other, 2), status::RESERVATION_CONFLICT, "round {round}");
        assert_eq!(read(&mut other), (status::GOOD, pattern(4 * BLOCK, 1)), "round {round}");
        assert_eq!(write(&mut one, 1), status::GOOD, "round {round}: the holder is known again");
    }
    // Registered again without it, nothing lasts.
    let list = cdb::reserve_parameters(0xa1, 0xa2, false);
    one.command(0, &cdb::reserve_out(REGISTER, 0), &list, 0).good();
    server.program.signal("KILL");
    server.program.end(PATIENCE);
    server = place.serve(&durable());
    let mut other = alone(portal(&server), 2);
    assert_eq!(keys(&mut other), [0_u64; 0]);
    assert_eq!(write(&mut other, 3), status::GOOD);
    other.end();
    server.stop();
}

/// The generation and the keys; the reservation.
fn state(session: &mut Session) -> (Vec<u8>, Vec<u8>) {
    let mut told =
        [READ_KEYS, READ_RESERVATION].map(|action| session.command(0, &cdb::reserve_in(action), &[], 256).data);
    (std::mem::take(&mut told[0]), std::mem::take(&mut told[1]))
}

/// What is to outlive a loss of power and cannot be written is refused, and leaves everything as it was, for everybody.
#[test]
fn what_cannot_be_kept_is_refused_and_changes_nothing() {
    /// HARDWARE ERROR, INTERNAL TARGET FAILURE.
    const FAILED: (u8, u16) = (4, 0x4400);
    let place = Place::new();
    let mut server = place.serve(&durable());
    let mut one = alone(portal(&server), 1);
    let by_r2t = Offer { immediate_data: Some(false), initial_r2t: Some(true), ..Offer::PLAIN };
    let mut other = Session::open(portal(&server), &Options::new(IQN, 2).with(by_r2t));
    other.settle(0);
    for (session, key) in [(&mut one, 0xa1), (&mut other, 0xb2)] {
        let list = cdb::reserve_parameters(0, key, true);
        session.command(0, &cdb::reserve_out(REGISTER, 0), &list, 0).good();
    }
    assert_eq!(out(&mut one, (RESERVE, WRITE_EXCLUSIVE_REGISTRANTS), 0xa1, 0), status::GOOD);
    let before = state(&mut one);
    // There is no directory where it has to be, and none can be made.
    std::fs::rename(place.path("kept"), place.path("away")).unwrap();
    std::fs::write(place.path("kept"), b"in the way").unwrap();
    let kind = WRITE_EXCLUSIVE_REGISTRANTS;
    let asked = [
        ("another key", (REGISTER, 0), 0xa1, 0xa2),
        ("another key, whatever it was", (REGISTER_AND_IGNORE, 0), 0, 0xa2),
        ("no key", (REGISTER, 0), 0xa1, 0),
        ("a release", (RELEASE, kind), 0xa1, 0),
        ("the end of all", (CLEAR, 0), 0xa1, 0),
        ("the end of the other", (PREEMPT, kind), 0xa1, 0xb2),
        ("the end of the other and its commands", (PREEMPT_AND_ABORT, kind), 0xa1, 0xb2),
    ];
    for (seed, (name, (action, kind), key, about)) in (10..).zip(asked) {
        // In flight: its data is held back.
        other.hold = Some(PATIENCE);
        let tag = other.start(0, 0, &cdb::write16(0, 4, 0), &pattern(4 * BLOCK, seed), 0);
        assert!(other.is_waiting(tag, Duration::from_millis(100)));
        let list = cdb::reserve_parameters(key, about, true);
        let answer = one.command(0, &cdb::reserve_out(action, kind), &list, 0);
        assert_eq!((answer.status, answer.sense()), (status::CHECK_CONDITION, FAILED), "{name}");
        assert_eq!(state(&mut one), before, "{name}");
        other.hold = Some(Duration::from_millis(1));
        let done = other.wait(tag);
        assert_eq!(done.status, status::GOOD, "{name}: the command of the other");
        assert_eq!((one.settle(0), other.settle(0)), (vec![], vec![]), "{name}: nobody is told of what did not happen");
        assert_eq!(read(&mut one), (status::GOOD, pattern(4 * BLOCK, seed)), "{name}");
        assert_eq!((write(&mut one, 1), write(&mut other, 2)), (status::GOOD, status::GOOD), "{name}");
        let mut third = alone(portal(&server), 3);
        assert_eq!(write(&mut third, 3), status::RESERVATION_CONFLICT, "{name}");
        third.end();
    }
    // With the directory everything is as it was, for those who come after a kill too; then it can be done.
    std::fs::remove_file(place.path("kept")).unwrap();
    std::fs::rename(place.path("away"), place.path("kept")).unwrap();
    server.program.signal("KILL");
    server.program.end(PATIENCE);
    server = place.serve(&durable());
    (one, other) = (alone(portal(&server), 1), alone(portal(&server), 2));
    assert_eq!(keys(&mut one), [0xa1, 0xb2]);
    assert_eq!(out(&mut one, (PREEMPT_AND_ABORT, kind), 0xa1, 0xb2), status::GOOD);
    assert_eq!(keys(&mut one), [0xa1]);
    assert_eq!(other.settle(0), [0x2a05], "REGISTRATIONS PREEMPTED");
    assert_eq!(write(&mut other, 4), status::RESERVATION_CONFLICT);
    one.end();
    other.end();
    server.stop();
}
