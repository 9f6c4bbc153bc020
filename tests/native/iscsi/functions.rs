//! The functions of RFC 7144 over a connection, and functions that are about functions.

use std::time::Duration;

use super::super::server::{PATIENCE, Place};
use super::held::{BY_R2T, SHORT, control, holding, pending, zeros};
use super::initiator::cdb;
use super::initiator::session::{function, managed};
use super::initiator::{Offer, Session};
use super::{BLOCK, config, portal, session_with};

/// MODE PARAMETERS CHANGED; I_T NEXUS LOSS OCCURRED.
const MODE_CHANGED: u16 = 0x2a01;
const NEXUS_LOSS: u16 = 0x2907;

/// A session that has agreed to the functions, and whose writes stay in flight.
fn level_two(address: std::net::SocketAddr, number: u8) -> Session {
    let mut session = session_with(address, number, Offer { protocol_level: Some(2), ..BY_R2T });
    assert_eq!(session.params().protocol_level, 2);
    session.hold = Some(PATIENCE);
    session
}

fn finish(session: &mut Session, tag: u32) {
    session.answer_r2ts(tag);
    session.wait(tag).good();
}

#[test]
fn a_task_is_asked_about() {
    let server = Place::new().serve(&config());
    let mut session = level_two(portal(&server), 1);
    let task = pending(&mut session, 0, 0);
    assert_eq!(session.manage(0, function::QUERY_TASK, 0, Some(task)), managed::SUCCEEDED);
    assert_eq!(session.manage(0, function::QUERY_TASK, 0, Some((0x7777, task.1))), managed::COMPLETE);
    // It goes on as if nobody had asked.
    finish(&mut session, task.0);
    assert_eq!(session.manage(0, function::QUERY_TASK, 0, Some(task)), managed::COMPLETE);
    session.end();
    server.stop();
}

#[test]
fn a_task_set_is_asked_about() {
    let server = Place::new().serve(&config());
    let (mut session, mut other) = (level_two(portal(&server), 1), level_two(portal(&server), 2));
    let task = pending(&mut session, 1, 0);
    for (lun, expected) in [(0, managed::COMPLETE), (1, managed::SUCCEEDED), (77, managed::NO_LUN)] {
        assert_eq!(session.manage(0, function::QUERY_TASK_SET, lun, None), expected, "LUN {lun}");
    }
    // The tasks of other nexuses are none of its own (SAM-5, QUERY TASK SET).
    assert_eq!(other.manage(0, function::QUERY_TASK_SET, 1, None), managed::COMPLETE);
    finish(&mut session, task.0);
    assert_eq!(session.manage(0, function::QUERY_TASK_SET, 1, None), managed::COMPLETE);
    session.end();
    other.end();
    server.stop();
}

#[test]
fn a_nexus_is_reset_alone() {
    let server = Place::new().serve(&config());
    let (mut session, mut other) = (level_two(portal(&server), 1), holding(&server, 2));
    session.command(0, &cdb::reserve6(), &[], 0).good();
    let own = [pending(&mut session, 0, 0), pending(&mut session, 1, 0)];
    let theirs = pending(&mut other, 1, 100);
    assert_eq!(session.manage(0, function::NEXUS_RESET, 0, None), managed::COMPLETE);
    for (tag, _) in own {
        session.answer_r2ts(tag);
        assert!(session.is_waiting(tag, SHORT), "no answer to what was aborted");
        session.forget(tag);
    }
    for lun in [0, 1] {
        assert_eq!(session.settle(lun), [NEXUS_LOSS], "LUN {lun}");
        zeros(&mut session, lun, 0);
    }
    // What was reserved with RESERVE is free; the other nexus has lost nothing.
    let free = pending(&mut other, 0, 200);
    for (tag, _) in [theirs, free] {
        finish(&mut other, tag);
    }
    assert_eq!((other.settle(0), other.settle(1)), (vec![], vec![]));
    session.ping(0, b"on");
    session.end();
    other.end();
    server.stop();
}

#[test]
fn a_waiting_event_is_asked_about_and_stays() {
    let server = Place::new().serve(&config());
    let (mut session, mut other) = (level_two(portal(&server), 1), super::session(portal(&server), 2));
    assert_eq!(session.query_event(0), (managed::COMPLETE, [0; 3]));
    control(&mut other, 0, |page| page[2] |= 4);
    let [code, qualifier] = MODE_CHANGED.to_be_bytes();
    for _ in 0..2 {
        assert_eq!(session.query_event(0), (managed::SUCCEEDED, [6, code, qualifier]));
    }
    assert_eq!(session.query_event(1), (managed::COMPLETE, [0; 3]));
    assert_eq!(session.query_event(77).0, managed::NO_LUN);
    assert_eq!(session.settle(0), [MODE_CHANGED]);
    assert_eq!(session.query_event(0), (managed::COMPLETE, [0; 3]));
    session.end();
    other.end();
    server.stop();
}

#[test]
fn who_has_not_agreed_to_them_is_refused() {
    let server = Place::new().serve(&config());
    for offer in [BY_R2T, Offer { protocol_level: Some(1), ..BY_R2T }] {
        let mut session = session_with(portal(&server), 1, offer);
        assert_eq!(session.params().protocol_level, 1);
        session.hold = Some(PATIENCE);
        let task = pending(&mut session, 0, 0);
        for what in [function::QUERY_TASK, function::QUERY_TASK_SET, function::NEXUS_RESET, function::QUERY_EVENT] {
            assert_eq!(session.manage(0, what, 0, Some(task)), managed::NOT_SUPPORTED, "function {what}");
        }
        finish(&mut session, task.0);
        assert_eq!(session.settle(0), [0_u16; 0]);
        session.end();
    }
    server.stop();
}

/// A function that waits, because what it is about may have been answered by a connection that has not acknowledged that.
#[test]
fn a_function_is_no_task_to_abort() {
    let server = Place::new().serve(&config());
    let offer = Offer { max_connections: Some(2), protocol_level: Some(2), ..Offer::PLAIN };
    let mut session = session_with(portal(&server), 1, offer);
    session.join(portal(&server), 7).unwrap();
    let tag = session.start(1, 0, &cdb::read16(0, 8), &[], 8 * BLOCK);
    session.wait(tag).good();
    let cmd_sn = session.cmd_sn;
    let waits = session.begin_managing(0, function::ABORT_TASK_SET, 0, None);
    assert_eq!(session.response_by(0, waits, SHORT), None, "it is answered once all is acknowledged");
    for what in [function::ABORT_TASK, function::QUERY_TASK] {
        let about = session.begin_managing(0, what, 0, Some((waits, cmd_sn)));
        let answer = session.response_by(0, about, Duration::from_secs(5));
        assert_eq!(answer, Some(managed::REJECTED), "function {what} about a function");
    }
    assert_eq!(session.response_by(0, waits, SHORT), None, "it goes on waiting");
    // The other connection is read again, and the ping in it answered.
    while !session.turn(1, PATIENCE) {}
    assert_eq!(session.response_by(0, waits, PATIENCE), Some(managed::COMPLETE));
    // Then it is there no more.
    assert_eq!(session.manage(0, function::ABORT_TASK, 0, Some((waits, cmd_sn))), managed::NO_TASK);
    session.end();
    server.stop();
}
