//! A connection that takes the place of one with its identifier (RFC 7143 §6.3.4): the old one and its commands end, the session goes on.

use std::time::Duration;

use super::super::host::pattern;
use super::super::server::{PATIENCE, Place, Server};
use super::held::{ASKED, SHORT, holding, late_config, pending, zeros};
use super::initiator::{Offer, Options, Session, cdb};
use super::{BLOCK, IQN, config, portal, session, session_with};

/// How long a write is on its way to the slow unit.
const LATE: Duration = Duration::from_millis(1200);

/// A session of two connections, whose second one has identifier 7.
fn of_two(server: &Server, offer: Offer) -> Session {
    let mut session = session_with(portal(server), 1, Offer { max_connections: Some(2), ..offer });
    session.join(portal(server), 7).unwrap();
    session
}

/// The target closes a connection.
fn ends(session: &mut Session, conn: usize) {
    while session.turn(conn, PATIENCE) {}
    assert!(session.conns[conn].over.is_some(), "the old connection is closed");
}

#[test]
fn commands_of_the_old_connection_have_no_effect_and_others_go_on() {
    let server = Place::new().serve(&config());
    let mut session = of_two(&server, super::held::BY_R2T);
    session.hold = Some(PATIENCE);
    let write = cdb::write16(0, 8, 0);
    let kept = pending(&mut session, 0, 100);
    let lost: Vec<u32> = [0, 1].map(|lun| session.start(1, lun, &write, &pattern(ASKED, 1), 0)).to_vec();
    for tag in &lost {
        assert!(session.is_waiting(*tag, SHORT));
    }
    session.join(portal(&server), 7).expect("a connection takes the place of its elder");
    for tag in &lost {
        // What the old connection still brings is of no task.
        session.answer_r2ts(*tag);
    }
    ends(&mut session, 1);
    lost.into_iter().for_each(|tag| session.forget(tag));
    for lun in [0, 1] {
        zeros(&mut session, lun, 0);
    }
    session.answer_r2ts(kept.0);
    session.wait(kept.0).good();
    // Both that are there now are of the session.
    session.hold = None;
    for conn in [0, 2] {
        let tag = session.start(conn, 0, &cdb::write16(200, 8, 0), &pattern(ASKED, conn as u64), 0);
        session.wait(tag).good();
        let tag = session.start(2 - conn, 0, &cdb::read16(200, 8), &[], ASKED);
        assert!(session.wait(tag).good() == pattern(ASKED, conn as u64));
        session.ping(conn, b"here");
    }
    assert_eq!((session.settle(0), session.settle(1)), (vec![], vec![]), "the nexus was not lost");
    // It may happen again, and there is no place for a third one.
    session.join(portal(&server), 7).unwrap();
    ends(&mut session, 2);
    assert!(session.join(portal(&server), 8).is_err());
    session.ping(3, b"here");
    session.end();
    server.stop();
}

#[test]
fn a_write_of_the_old_connection_does_not_land_after_one_of_the_new() {
    let server = Place::new().serve(&late_config(&[LATE]));
    let mut session = of_two(&server, Offer::PLAIN);
    let late = session.start(1, 0, &cdb::write16(0, 8, 0), &pattern(ASKED, 1), 0);
    assert!(session.is_waiting(late, SHORT), "it is on its way");
    session.join(portal(&server), 7).unwrap();
    ends(&mut session, 1);
    session.forget(late);
    let tag = session.start(2, 0, &cdb::write16(0, 8, 0), &pattern(ASKED, 2), 0);
    session.wait(tag).good();
    std::thread::park_timeout(LATE + SHORT);
    assert!(
        session.command(0, &cdb::read16(0, 8), &[], ASKED).good() == pattern(ASKED, 2),
        "the late write has landed"
    );
    session.end();
    server.stop();
}

#[test]
fn the_only_connection_of_a_session_is_replaced() {
    let server = Place::new().serve(&late_config(&[LATE]));
    let (mut session, mut other) = (session(portal(&server), 1), holding(&server, 2));
    session.command(1, &cdb::reserve6(), &[], 0).good();
    let late = session.start(0, 0, &cdb::write16(0, 8, 0), &pattern(ASKED, 1), 0);
    assert!(session.is_waiting(late, SHORT));
    let tsih = session.tsih;
    session.join(portal(&server), 0).unwrap();
    ends(&mut session, 0);
    session.forget(late);
    assert_eq!(session.tsih, tsih);
    let command = |session: &mut Session, lun: u16, cdb: &cdb::Cdb, out: &[u8], len: usize| {
        let tag = session.start(1, lun, cdb, out, len);
        session.wait(tag)
    };
    command(&mut session, 0, &cdb::write16(0, 8, 0), &pattern(ASKED, 2), 0).good();
    // What the session has reserved it has still.
    command(&mut session, 1, &cdb::write16(0, 8, 0), &pattern(ASKED, 3), 0).good();
    let conflict = other.command(1, &cdb::read16(0, 8), &[], ASKED);
    assert_eq!(conflict.status, cdb::status::RESERVATION_CONFLICT);
    std::thread::park_timeout(LATE + SHORT);
    let found = command(&mut session, 0, &cdb::read16(0, 8), &[], ASKED).good();
    assert!(found == pattern(ASKED, 2), "the late write has landed");
    assert_eq!(session.logout(1, 0, 0), 0);
    ends(&mut session, 1);
    other.end();
    server.stop();
}

/// A new session of the nexus instead: what was on its way in the old one is over before the login is.
#[test]
fn a_write_of_the_old_session_does_not_land_after_one_of_the_new() {
    let server = Place::new().serve(&late_config(&[LATE]));
    let mut old = session(portal(&server), 1);
    let late = old.start(0, 0, &cdb::write16(0, 8, 0), &pattern(8 * BLOCK, 1), 0);
    assert!(old.is_waiting(late, SHORT));
    let mut new = Session::open(portal(&server), &Options::new(IQN, 1));
    new.settle(0);
    new.command(0, &cdb::write16(0, 8, 0), &pattern(ASKED, 2), 0).good();
    std::thread::park_timeout(LATE + SHORT);
    assert!(new.command(0, &cdb::read16(0, 8), &[], ASKED).good() == pattern(ASKED, 2), "the late write has landed");
    ends(&mut old, 0);
    new.end();
    server.stop();
}
