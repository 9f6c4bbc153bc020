//! Task management, several connections, reinstatement: what becomes of commands in flight.

use std::time::Duration;

use super::super::host::pattern;
use super::super::server::{Place, Server, until};
use super::held::{ASKED, SHORT, control, holding, pending, zeros};
use super::initiator::cdb::{self, status};
use super::initiator::session::{function, managed};
use super::initiator::{Offer, Options, PATIENCE, Session};
use super::{BLOCK, IQN, config, portal, session, session_with};

fn serve() -> Server {
    Place::new().serve(&config())
}

#[test]
fn an_aborted_task_has_no_answer_and_no_effect() {
    let server = serve();
    let mut session = holding(&server, 1);
    let (first, second) = (pending(&mut session, 0, 0), pending(&mut session, 0, 100));
    assert_eq!(session.manage(0, function::ABORT_TASK, 0, Some(first)), managed::COMPLETE);
    assert!(session.is_waiting(first.0, SHORT), "no answer to what was aborted");
    session.forget(first.0);
    // The other one goes on.
    session.hold = Some(Duration::from_millis(1));
    session.wait(second.0).good();
    zeros(&mut session, 0, 0);
    // A task that is not there any more, and one that never was.
    assert_eq!(session.manage(0, function::ABORT_TASK, 0, Some(second)), managed::NO_TASK);
    assert_eq!(session.manage(0, function::ABORT_TASK, 0, Some((0x7777, second.1))), managed::NO_TASK);
    session.ping(0, b"on");
    session.end();
    server.stop();
}

/// A file does not give up reads that are under way: their data comes when they have been aborted already, and its place is free for others.
#[test]
fn reads_that_are_aborted_give_their_memory_back() {
    const READS: u64 = 16;
    const BLOCKS: u16 = 512;
    // Of one connection no more than 8 MiB are in use at a time: all rounds together read five times that.
    const ROUNDS: u64 = 20;
    let server = Place::new().serve(&format!(
        r#"
        [memory]
        size = "128MiB"
        [[bdev]]
        name = "disk0"
        driver = "file"
        path = "disk0.img"
        size = "16MiB"
        [iscsi]
        listen = ["127.0.0.1:0"]
        [[iscsi.target]]
        iqn = "{IQN}"
        luns = [{{ bdev = "disk0" }}]
        "#
    ));
    let len = usize::from(BLOCKS) * BLOCK;
    assert!(ROUNDS as usize * READS as usize / 2 * len > 2 * (8 << 20));
    let mut session = Session::open(portal(&server), &Options::new(IQN, 1));
    session.settle(0);
    for _ in 0..ROUNDS {
        let reads: Vec<u32> = (0..READS)
            .map(|at| session.start(0, 0, &cdb::read16(at * u64::from(BLOCKS), BLOCKS.into()), &[], len))
            .collect();
        assert_eq!(session.manage(0, function::ABORT_TASK_SET, 0, None), managed::COMPLETE);
        reads.into_iter().for_each(|tag| session.forget(tag));
    }
    let found = session.command(0, &cdb::read16(0, BLOCKS.into()), &[], len).good();
    assert!(found == vec![0; len]);
    session.end();
    server.stop();
}

#[test]
fn a_task_set_is_aborted_for_its_session_alone() {
    let server = serve();
    let (mut one, mut other) = (holding(&server, 1), holding(&server, 2));
    let own: Vec<_> = (0..4).map(|at| pending(&mut one, 0, at * 8)).collect();
    let unit = pending(&mut one, 1, 0);
    let theirs = pending(&mut other, 0, 200);
    assert_eq!(one.manage(0, function::ABORT_TASK_SET, 0, None), managed::COMPLETE);
    for (tag, _) in own {
        assert!(one.is_waiting(tag, Duration::from_millis(20)));
        one.forget(tag);
    }
    for session in [&mut one, &mut other] {
        session.hold = Some(Duration::from_millis(1));
    }
    one.wait(unit.0).good();
    other.wait(theirs.0).good();
    zeros(&mut one, 0, 0);
    one.end();
    other.end();
    server.stop();
}

/// Sets TAS in the control mode page (SPC-4 §7.5.8).
fn set_tas(session: &mut Session, on: bool) {
    control(session, 0, |page| page[5] = page[5] & !0x40 | if on { 0x40 } else { 0 });
}

#[test]
fn who_loses_a_task_to_another_is_told() {
    for tas in [false, true] {
        let server = serve();
        let (mut one, mut other) = (holding(&server, 1), holding(&server, 2));
        set_tas(&mut one, tas);
        other.settle(0);
        for function in [function::CLEAR_TASK_SET, function::LUN_RESET] {
            let theirs = pending(&mut other, 0, 0);
            assert_eq!(one.manage(0, function, 0, None), managed::COMPLETE);
            if tas {
                assert_eq!(other.wait(theirs.0).status, status::TASK_ABORTED, "function {function}");
            } else {
                assert!(other.is_waiting(theirs.0, SHORT), "function {function}: no answer without TAS");
                other.forget(theirs.0);
            }
            let expected: &[u16] = match function {
                // COMMANDS CLEARED BY ANOTHER INITIATOR, unless the status has told.
                function::CLEAR_TASK_SET if tas => &[],
                function::CLEAR_TASK_SET => &[0x2f00],
                // BUS DEVICE RESET FUNCTION OCCURRED, which says that all commands are gone.
                _ => &[0x2903],
            };
            assert_eq!(other.settle(0), expected, "function {function}, TAS {tas}");
            other.hold = Some(Duration::from_millis(1));
            zeros(&mut other, 0, 0);
            other.hold = Some(PATIENCE);
            one.settle(0);
            // A reset gives the mode pages their saved values back.
            set_tas(&mut one, tas);
            other.settle(0);
        }
        one.end();
        other.end();
        server.stop();
    }
}

/// PREEMPT AND ABORT of a key that its own nexus is registered with too.
#[test]
fn a_fence_ends_what_is_in_flight_of_all_with_the_key() {
    const REGISTER: u8 = 0;
    const RESERVE: u8 = 1;
    const PREEMPT_AND_ABORT: u8 = 5;
    const REGISTRANTS_ONLY: u8 = 5;
    const SHARED: u64 = 0xa1;
    const LEFT_ALONE: u64 = 0xc3;
    for tas in [false, true] {
        let server = serve();
        let mut sessions = [1, 2, 3].map(|number| holding(&server, number));
        set_tas(&mut sessions[0], tas);
        for (session, key) in sessions.iter_mut().zip([SHARED, SHARED, LEFT_ALONE]) {
            session.settle(0);
            session.hold = Some(Duration::from_millis(1));
            let list = cdb::reserve_parameters(0, key, false);
            session.command(0, &cdb::reserve_out(REGISTER, 0), &list, 0).good();
        }
        let list = cdb::reserve_parameters(SHARED, 0, false);
        sessions[0].command(0, &cdb::reserve_out(RESERVE, REGISTRANTS_ONLY), &list, 0).good();
        let [one, other, third] = &mut sessions;
        let (own, theirs, alone) = (pending(one, 0, 0), pending(other, 0, 100), pending(third, 0, 200));
        let list = cdb::reserve_parameters(SHARED, SHARED, false);
        one.command(0, &cdb::reserve_out(PREEMPT_AND_ABORT, REGISTRANTS_ONLY), &list, 0).good();
        assert!(one.is_waiting(own.0, SHORT), "who aborts its own command has no answer to it");
        one.forget(own.0);
        assert_eq!(one.settle(0), [0_u16; 0], "and is told nothing");
        if tas {
            assert_eq!(other.wait(theirs.0).status, status::TASK_ABORTED);
        } else {
            assert!(other.is_waiting(theirs.0, SHORT));
            other.forget(theirs.0);
        }
        // REGISTRATIONS PREEMPTED, and COMMANDS CLEARED unless the status has told.
        let told = other.settle(0);
        assert!(told.contains(&0x2a05) && told.contains(&0x2f00) != tas, "{told:04x?}");
        third.wait(alone.0).good();
        zeros(one, 0, 0);
        zeros(one, 0, 100);
        assert_eq!(one.command(0, &cdb::read16(200, 8), &[], ASKED).good(), pattern(ASKED, 1));
        sessions.into_iter().for_each(Session::end);
        server.stop();
    }
}

#[test]
fn functions_answer_for_what_is_not_there() {
    let server = serve();
    let mut session = session(portal(&server), 1);
    assert_eq!(session.manage(0, function::LUN_RESET, 77, None), managed::NO_LUN);
    assert_eq!(session.manage(0, function::ABORT_TASK_SET, 77, None), managed::NO_LUN);
    // Not supported, or rejected (RFC 7143 §11.6.1).
    let strange = session.manage(0, 0x5f, 0, None);
    assert!(matches!(strange, 5 | 255), "{strange}");
    session.ping(0, b"on");
    session.end();
    server.stop();
}

#[test]
fn a_warm_reset_ends_tasks_and_no_session() {
    let server = serve();
    let (mut one, mut other) = (session(portal(&server), 1), holding(&server, 2));
    let theirs = [pending(&mut other, 0, 0), pending(&mut other, 1, 0)];
    assert_eq!(one.manage(0, function::WARM_RESET, 0, None), managed::COMPLETE);
    for (tag, _) in theirs {
        assert!(other.is_waiting(tag, SHORT));
        other.forget(tag);
    }
    for (session, lun) in [(&mut one, 0), (&mut other, 1)] {
        assert!(!session.settle(lun).is_empty(), "a reset is told");
    }
    one.end();
    other.end();
    server.stop();
}

#[test]
fn a_cold_reset_answers_and_closes_every_connection() {
    let server = serve();
    let (mut one, mut other) = (session(portal(&server), 1), holding(&server, 2));
    pending(&mut other, 0, 0);
    assert_eq!(one.manage(0, function::COLD_RESET, 0, None), managed::COMPLETE);
    for session in [&mut one, &mut other] {
        until(PATIENCE, || !session.turn(0, SHORT) && session.conns[0].over.is_some());
        assert!(session.conns[0].over.is_some(), "the connection is closed");
    }
    // The target is there again.
    let mut again = super::session(portal(&server), 3);
    zeros(&mut again, 0, 0);
    again.end();
    server.stop();
}

#[test]
fn commands_of_several_connections_keep_one_order() {
    let server = serve();
    let offer = Offer { max_connections: Some(4), ..Offer::PLAIN };
    let mut session = session_with(portal(&server), 1, offer);
    assert!(session.params().max_connections >= 3, "{:?}", session.params());
    for cid in [7, 9] {
        session.join(portal(&server), cid).unwrap();
    }
    for round in 0..50_u64 {
        let data: Vec<_> = (0..6).map(|number| pattern(24 * BLOCK, round * 6 + number)).collect();
        let tags: Vec<_> = (0..6)
            .map(|number| session.start(number % 3, 0, &cdb::write16(number as u64 * 24, 24, 0), &data[number], 0))
            .collect();
        for tag in tags.into_iter().rev() {
            session.wait(tag).good();
        }
        for (number, data) in data.iter().enumerate() {
            let tag = session.start((number + 1) % 3, 0, &cdb::read16(number as u64 * 24, 24), &[], data.len());
            assert!(session.wait(tag).good() == *data);
        }
    }
    // A connection that logs out leaves the others alone.
    assert_eq!(session.logout(1, 1, 7), 0);
    while session.turn(1, PATIENCE) {}
    assert!(session.conns[1].over.is_some());
    // No such connection (RFC 7143 §11.15.1).
    assert_eq!(session.logout(0, 1, 99), 1);
    for conn in [0, 2] {
        let tag = session.start(conn, 0, &cdb::read16(0, 24), &[], 24 * BLOCK);
        session.wait(tag).good();
    }
    // More than were agreed.
    for cid in 20..30 {
        if session.join(portal(&server), cid).is_err() {
            session.end();
            server.stop();
            return;
        }
    }
    panic!("ten connections more than the four that were agreed");
}

#[test]
fn a_session_that_begins_again_ends_the_old_one() {
    let server = serve();
    let mut old = holding(&server, 1);
    pending(&mut old, 0, 0);
    let mut discovery = Session::open(portal(&server), &Options { target: None, ..Options::new(IQN, 1) });
    // The same initiator, ISID and target.
    let mut new = Session::open(portal(&server), &Options::new(IQN, 1));
    until(PATIENCE, || !old.turn(0, SHORT) && old.conns[0].over.is_some());
    assert!(old.conns[0].over.is_some(), "the old session is closed");
    new.settle(0);
    zeros(&mut new, 0, 0);
    // A discovery session is none of it, nor is one of another ISID.
    discovery.send_targets("All");
    let mut beside = Options::new(IQN, 1);
    beside.isid[5] = 77;
    let mut beside = Session::open(portal(&server), &beside);
    beside.settle(0);
    new.ping(0, b"still here");
    for session in [discovery, beside, new] {
        session.end();
    }
    server.stop();
}

#[test]
fn units_are_told_as_they_are() {
    let server = serve();
    let mut session = session(portal(&server), 1);
    let list = session.command(0, &cdb::report_luns(64), &[], 64);
    assert_eq!((list.status, list.residual), (status::GOOD, -40));
    assert_eq!(list.data[..4], [0, 0, 0, 16]);
    assert_eq!((&list.data[8..16], &list.data[16..24]), (&[0; 8][..], &super::initiator::pdu::lun_bytes(1)[..]));
    let missing = session.command(5, &cdb::test_unit_ready(), &[], 0);
    assert_eq!((missing.status, missing.sense()), (status::CHECK_CONDITION, (5, 0x2500)));
    // Qualifier and type of a unit that is not there (SPC-4 §6.6.2).
    assert_eq!(session.command(5, &cdb::inquiry(None, 36), &[], 36).data[0], 0x7f);
    let capacity = session.command(0, &cdb::read_capacity16(), &[], 32).good();
    assert_eq!(u64::from_be_bytes(capacity[..8].try_into().unwrap()), (super::SIZE / BLOCK) as u64 - 1);
    session.end();
    server.stop();
}
