//! Who is fenced out of a logical unit changes nothing there any more: not by a copy that came by another unit, nor by a parameter list that
//! was still to come.

use std::time::Duration;

use super::super::host::pattern;
use super::super::server::{PATIENCE, Place, until};
use super::busy::Busy;
use super::held::{BESIDE, SHORT, changed_control, control, control_page, holding, with_beside};
use super::initiator::cdb::{self, status};
use super::initiator::session::{function, managed};
use super::initiator::{Offer, Session};
use super::unit::{NAA, designator, fill, whole};
use super::{BLOCK, SIZE, config, config_with, portal, session, session_with};

/// Actions of PERSISTENT RESERVE OUT and a type (SPC-4 §6.16.2, §6.15.3.4).
const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const REGISTRANTS_ONLY: u8 = 5;
/// The keys of the two.
const FENCED: u64 = 0xa1;
const FENCING: u64 = 0xb2;
/// COPY ABORTED, THIRD PARTY DEVICE FAILURE.
const COPY_ABORTED: (u8, u16) = (0xa, 0x0d01);
/// How long nothing may change after a fence. A copy that went on would write a quarter of a MiB each [`WRITE_MS`].
const QUIET: Duration = Duration::from_millis(400);
/// How long a write of the slow unit takes.
const WRITE_MS: u64 = 15;

fn reserve(session: &mut Session, lun: u16, action: u8, key: u64, about: u64) {
    let list = cdb::reserve_parameters(key, about, false);
    session.command(lun, &cdb::reserve_out(action, REGISTRANTS_ONLY), &list, 0).good();
}

/// Both are registered, and the first one has reserved the unit for registrants.
fn register(lun: u16, fenced: &mut Session, fencing: &mut Session) {
    reserve(fenced, lun, REGISTER, 0, FENCED);
    reserve(fencing, lun, REGISTER, 0, FENCING);
    reserve(fenced, lun, RESERVE, FENCED, 0);
}

fn naa(session: &mut Session, lun: u16) -> Vec<u8> {
    designator(session, lun, NAA)
}

/// A unit to copy from, and one whose writes take their time.
fn slow_config() -> String {
    let luns = r#"luns = [{ bdev = "ram0" }, { bdev = "slow1" }]"#;
    config_with(r#"listen = ["127.0.0.1:0"]"#, luns).replace(
        "[iscsi]",
        &format!(
            r#"
            [[bdev]]
            name = "slow1"
            driver = "inject"
            base = "ram1"
            rules = [{{ op = "write", every = 1, action = "delay", delay_ms = {WRITE_MS} }}]
            [iscsi]
            "#
        ),
    )
}

/// What becomes of a copy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Copy {
    /// It is aborted: by another nexus, without a word.
    Silent,
    /// The same, with TASK ABORTED.
    Told,
    /// It ends with COPY ABORTED.
    Refused,
}

/// Has a session copy LUN 0 to LUN 1, another one fence that off in the middle of it, and looks what comes of it.
fn copy_and_fence(tas: bool, fence: impl FnOnce(&mut Session), expected: Copy) {
    let server = Place::new().serve(&slow_config());
    let long = Offer { max_recv: Some(1 << 18), ..Offer::PLAIN };
    let [mut copying, mut fencing] = [1, 2].map(|number| session_with(portal(&server), number, long.clone()));
    fill(&mut copying, 0, 1);
    if tas {
        control(&mut fencing, 1, |page| page[5] |= 0x40);
        copying.settle(1);
    }
    register(1, &mut copying, &mut fencing);
    let list = cdb::copy_parameters(&naa(&mut copying, 0), &naa(&mut copying, 1), (SIZE / BLOCK) as u16);
    let tag = copying.start(0, 0, &cdb::extended_copy(list.len() as u32), &list, 0);
    let begun = || fencing.command(1, &cdb::read16(0, 1), &[], BLOCK).good() == pattern(SIZE, 1)[..BLOCK];
    let (begins, _) = until(PATIENCE, begun);
    assert!(begins && copying.is_waiting(tag, Duration::from_millis(1)), "the copy is in the middle of its work");
    fence(&mut fencing);
    if expected == Copy::Refused {
        // What was in flight at the fence ends before the copy does.
        let answer = copying.wait(tag);
        assert_eq!((answer.status, answer.sense()), (status::CHECK_CONDITION, COPY_ABORTED));
    }
    fencing.settle(1);
    let fenced = whole(&mut fencing, 1);
    assert!(fenced != pattern(SIZE, 1), "the copy was over before the fence");
    let is_protected = control_page(&mut fencing, 1)[4] & 8 != 0;
    let expected_bytes = if is_protected {
        fenced
    } else {
        fill(&mut fencing, 1, 2);
        pattern(SIZE, 2)
    };
    match expected {
        Copy::Silent => {
            assert!(copying.is_waiting(tag, SHORT), "no answer to what another nexus has aborted");
            copying.forget(tag);
        }
        Copy::Told => assert_eq!(copying.wait(tag).status, status::TASK_ABORTED),
        Copy::Refused => {}
    }
    std::thread::park_timeout(QUIET);
    assert!(whole(&mut fencing, 1) == expected_bytes, "the copy has gone on behind the fence");
    copying.settle(0);
    copying.end();
    fencing.end();
    server.stop();
}

#[test]
fn a_copy_ends_with_preempt_and_abort_of_its_destination() {
    for (tas, expected) in [(false, Copy::Silent), (true, Copy::Told)] {
        copy_and_fence(tas, |by| reserve(by, 1, PREEMPT_AND_ABORT, FENCING, FENCED), expected);
    }
}

#[test]
fn a_copy_ends_when_its_nexus_is_preempted() {
    copy_and_fence(false, |by| reserve(by, 1, PREEMPT, FENCING, FENCED), Copy::Refused);
}

#[test]
fn a_copy_ends_with_a_reset_of_its_destination() {
    for function in [function::LUN_RESET, function::CLEAR_TASK_SET] {
        copy_and_fence(false, |by| assert_eq!(by.manage(0, function, 1, None), managed::COMPLETE), Copy::Silent);
    }
}

#[test]
fn a_copy_ends_where_its_destination_is_protected() {
    copy_and_fence(false, |by| control(by, 1, |page| page[4] |= 8), Copy::Refused);
}

/// The same nexus may abort it by its destination too.
#[test]
fn a_copy_ends_with_a_reset_of_its_destination_by_its_own_nexus() {
    let server = Place::new().serve(&slow_config());
    let mut session = session(portal(&server), 1);
    fill(&mut session, 0, 1);
    let list = cdb::copy_parameters(&naa(&mut session, 0), &naa(&mut session, 1), (SIZE / BLOCK) as u16);
    let tag = session.start(0, 0, &cdb::extended_copy(list.len() as u32), &list, 0);
    let begun = || session.command(1, &cdb::read16(0, 1), &[], BLOCK).good() == pattern(SIZE, 1)[..BLOCK];
    assert!(until(PATIENCE, begun).0);
    assert_eq!(session.manage(0, function::LUN_RESET, 1, None), managed::COMPLETE);
    assert!(session.is_waiting(tag, SHORT), "no answer to what was aborted");
    session.forget(tag);
    session.settle(1);
    fill(&mut session, 1, 2);
    std::thread::park_timeout(QUIET);
    assert!(whole(&mut session, 1) == pattern(SIZE, 2), "the copy has gone on after the reset");
    session.end();
    server.stop();
}

/// A MODE SELECT in flight, all of whose list is still to come: it would switch D_SENSE on.
fn held_select(session: &mut Session) -> u32 {
    let hold = session.hold.take();
    let list = changed_control(session, 0, |page| page[2] |= 4);
    session.hold = hold;
    let tag = session.start(0, 0, &cdb::mode_select10(list.len() as u16), &list, 0);
    assert!(session.is_waiting(tag, SHORT), "its list is asked for");
    tag
}

fn has_descriptor_sense(session: &mut Session) -> bool {
    control_page(session, 0)[2] & 4 != 0
}

#[test]
fn a_mode_select_whose_list_comes_after_an_abort_changes_nothing() {
    let preempt: fn(&mut Session) = |by| reserve(by, 0, PREEMPT_AND_ABORT, FENCING, FENCED);
    let reset: fn(&mut Session) = |by| assert_eq!(by.manage(0, function::LUN_RESET, 0, None), managed::COMPLETE);
    let clear: fn(&mut Session) = |by| assert_eq!(by.manage(0, function::CLEAR_TASK_SET, 0, None), managed::COMPLETE);
    for (tas, what, fence) in [
        (false, "PREEMPT AND ABORT", preempt),
        (true, "PREEMPT AND ABORT", preempt),
        (false, "LOGICAL UNIT RESET", reset),
        (true, "LOGICAL UNIT RESET", reset),
        (false, "CLEAR TASK SET", clear),
    ] {
        let server = Place::new().serve(&config());
        let (mut one, mut other) = (holding(&server, 1), session(portal(&server), 2));
        control(&mut other, 0, |page| page[5] = page[5] & !0x40 | if tas { 0x40 } else { 0 });
        one.settle(0);
        one.hold = None;
        register(0, &mut one, &mut other);
        one.hold = Some(PATIENCE);
        let tag = held_select(&mut one);
        fence(&mut other);
        // It comes all the same: the initiator does not know yet.
        one.answer_r2ts(tag);
        if tas {
            assert_eq!(one.wait(tag).status, status::TASK_ABORTED, "{what}");
        } else {
            assert!(one.is_waiting(tag, SHORT), "{what}: no answer");
            one.forget(tag);
        }
        other.settle(0);
        assert!(!has_descriptor_sense(&mut other), "{what}: it has taken effect");
        assert!(!one.settle(0).is_empty(), "{what}: who has lost a command or all of them is told");
        one.ping(0, b"on");
        one.end();
        other.end();
        server.stop();
    }
}

#[test]
fn a_mode_select_whose_list_comes_after_a_reservation_conflicts() {
    let server = Place::new().serve(&config());
    let (mut one, mut other) = (holding(&server, 1), session(portal(&server), 2));
    let tag = held_select(&mut one);
    other.command(0, &cdb::reserve6(), &[], 0).good();
    one.answer_r2ts(tag);
    assert_eq!(one.wait(tag).status, status::RESERVATION_CONFLICT);
    assert!(!has_descriptor_sense(&mut other));
    other.command(0, &cdb::release6(), &[], 0).good();
    let again = held_select(&mut one);
    one.answer_r2ts(again);
    one.wait(again).good();
    assert_eq!(other.settle(0), [0x2a01], "MODE PARAMETERS CHANGED");
    assert!(has_descriptor_sense(&mut other));
    one.end();
    other.end();
    server.stop();
}

/// A PERSISTENT RESERVE OUT whose list comes after its nexus was fenced out does not let it in again.
#[test]
fn a_reservation_whose_list_comes_after_an_abort_is_not_made() {
    let server = Place::new().serve(&config());
    let (mut one, mut other) = (holding(&server, 1), session(portal(&server), 2));
    one.hold = None;
    register(0, &mut one, &mut other);
    one.hold = Some(PATIENCE);
    let list = cdb::reserve_parameters(FENCED, 0xa2, false);
    let tag = one.start(0, 0, &cdb::reserve_out(REGISTER, 0), &list, 0);
    assert!(one.is_waiting(tag, SHORT), "its list is asked for");
    reserve(&mut other, 0, PREEMPT_AND_ABORT, FENCING, FENCED);
    one.answer_r2ts(tag);
    assert!(one.is_waiting(tag, SHORT), "no answer to what another nexus has aborted");
    one.forget(tag);
    let keys = other.command(0, &cdb::reserve_in(0), &[], 256).data;
    assert_eq!(keys[4..16], [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, FENCING as u8], "the key of the other one alone");
    one.settle(0);
    one.end();
    other.end();
    server.stop();
}

/// Both sessions in turn, on reactors of their own where there are two.
#[test]
fn a_reservation_holds_everywhere_once_it_is_answered() {
    const ROUNDS: u64 = 400;
    let server = Place::new().serve(&with_beside(&config()));
    let mut sessions: Vec<Session> = (1..=4).map(|number| session(portal(&server), number)).collect();
    let write = |session: &mut Session, number: u64| {
        let lba = number % 64 * 8;
        session.command(0, &cdb::write16(lba, 8, 0), &pattern(8 * BLOCK, number), 0).status
    };
    // The news of a reservation meets reactors that are at work.
    let busy = Busy::start(portal(&server), BESIDE, 2);
    for round in 0..ROUNDS {
        let holder = round as usize % sessions.len();
        sessions[holder].command(0, &cdb::reserve6(), &[], 0).good();
        for (number, session) in sessions.iter_mut().enumerate() {
            let expected = if number == holder { status::GOOD } else { status::RESERVATION_CONFLICT };
            assert_eq!(write(session, round), expected, "round {round}: session {number} while {holder} has it");
        }
        sessions[holder].command(0, &cdb::release6(), &[], 0).good();
        let next = (holder + 1) % sessions.len();
        assert_eq!(write(&mut sessions[next], round), status::GOOD, "round {round}: it was given back");
    }
    busy.end();
    // The end of its session gives it back too.
    sessions[0].command(0, &cdb::reserve6(), &[], 0).good();
    sessions.remove(0).end();
    assert!(until(PATIENCE, || write(&mut sessions[0], 0) == status::GOOD).0);
    sessions.into_iter().for_each(Session::end);
    server.stop();
}
