//! Task management and logout.

use super::*;

fn scsi(itt: u32, cmd_sn: u32, lun: u8) -> Request {
    let mut pdu = command(itt, cmd_sn);
    pdu.lun[1] = lun;
    Request::ScsiCommand(pdu)
}

fn manage(function: TaskFunction, itt: u32, cmd_sn: u32, lun: u8) -> TaskRequest {
    let mut pdu = TaskRequest::new_zeroed();
    pdu.opcode = Opcode::TASK_REQUEST.0 | OPCODE_IMMEDIATE;
    pdu.flags = FLAG_FINAL | function.0;
    pdu.itt.set(itt);
    pdu.ref_itt.set(NO_TAG);
    pdu.cmd_sn.set(cmd_sn);
    pdu.lun[1] = lun;
    pdu
}

fn abort(itt: u32, cmd_sn: u32, ref_itt: u32, ref_cmd_sn: u32) -> TaskRequest {
    let mut pdu = manage(TaskFunction::ABORT_TASK, itt, cmd_sn, 0);
    pdu.ref_itt.set(ref_itt);
    pdu.ref_cmd_sn.set(ref_cmd_sn);
    pdu
}

/// Sends a request that is handed out at once, and begins it.
fn begin(session: &mut Session, conn: ConnId, pdu: TaskRequest) -> (TaskId, TaskWork) {
    let task = accept(session, conn, Request::Task(pdu));
    assert_eq!(ready(session), [Ready::Task(task)]);
    (task, session.task_management(task, |_| true).unwrap())
}

/// The outcome that is sent for a request whose work is done.
fn outcome(session: &mut Session, task: TaskId) -> Option<TaskOutcome> {
    session.task_response(task, [0; 3]).map(|header| TaskResponse::read(&header).outcome)
}

fn level_2() -> Params {
    Params { protocol_level: 2, ..Params::default() }
}

#[test]
fn abort_task_is_answered_when_the_task_has_ended() {
    let (mut session, conn) = session(Params::default());
    let victim = accept(&mut session, conn, scsi(1, 100, 0));
    let other = accept(&mut session, conn, scsi(2, 101, 0));
    let _ = ready(&mut session);
    let (task, work) = begin(&mut session, conn, abort(9, 102, 1, 100));
    assert_eq!(work, TaskWork::AbortTask(victim));
    assert!(session.is_aborted(victim) && !session.is_aborted(other));
    assert_eq!(session.affected(task).collect::<Vec<_>>(), [victim]);
    session.task_done(task, TaskOutcome::COMPLETE);
    assert_eq!(session.answerable(), None);
    assert_eq!(outcome(&mut session, task), None);
    assert_eq!(session.respond(victim, 0, 0, Residual::None, Residual::None), None, "an aborted task has no answer");
    assert_eq!(session.answerable(), Some(task));
    let header = session.task_response(task, [0; 3]).unwrap();
    let mut expected = [0; BHS_LEN];
    expected[..2].copy_from_slice(&[0x22, 0x80]);
    expected[19] = 9;
    expected[24..36].copy_from_slice(&[0, 0, 1, 0xf4, 0, 0, 0, 102, 0, 0, 0, 108]);
    assert_eq!(header, expected);
    assert_eq!(session.answerable(), None);
    assert!(session.respond(other, 0, 0, Residual::None, Residual::None).is_some());
}

#[test]
fn all_requests_about_a_task_are_answered_when_it_has_ended() {
    let (mut session, conn) = session(Params::default());
    let victim = accept(&mut session, conn, scsi(1, 100, 0));
    let _ = ready(&mut session);
    let (first, _) = begin(&mut session, conn, abort(9, 101, 1, 100));
    let (second, _) = begin(&mut session, conn, manage(TaskFunction::LOGICAL_UNIT_RESET, 10, 101, 0));
    for task in [first, second] {
        assert_eq!(session.affected(task).collect::<Vec<_>>(), [victim]);
        session.task_done(task, TaskOutcome::COMPLETE);
    }
    assert_eq!([first, second].map(|task| outcome(&mut session, task)), [None, None]);
    session.end(victim);
    assert_eq!([first, second].map(|task| outcome(&mut session, task)), [Some(TaskOutcome::COMPLETE); 2]);
}

#[test]
fn abort_task_for_what_is_not_there() {
    let (mut session, conn) = session(Params::default());
    let done = accept(&mut session, conn, scsi(1, 100, 0));
    let _ = ready(&mut session);
    session.respond(done, 0, 0, Residual::None, Residual::None).unwrap();
    // It has ended: its number is behind the window.
    let (task, work) = begin(&mut session, conn, abort(9, 101, 1, 100));
    assert_eq!(work, TaskWork::Answer(TaskOutcome::NO_TASK));
    session.task_done(task, TaskOutcome::NO_TASK);
    assert_eq!(outcome(&mut session, task), Some(TaskOutcome::NO_TASK));
    // It has not come and is not to: its number counts as received.
    let held = accept(&mut session, conn, scsi(3, 102, 0));
    let (task, work) = begin(&mut session, conn, abort(9, 103, 2, 101));
    assert_eq!(work, TaskWork::Answer(TaskOutcome::COMPLETE));
    session.task_done(task, TaskOutcome::COMPLETE);
    assert_eq!(outcome(&mut session, task), Some(TaskOutcome::COMPLETE));
    assert_eq!(ready(&mut session), [Ready::Scsi(held)]);
    assert_eq!(send(&mut session, conn, scsi(2, 101, 0)), Verdict::Ignore, "when it comes after all");
    // Not before the request itself.
    let (_, work) = begin(&mut session, conn, abort(10, 103, 7, 103));
    assert_eq!(work, TaskWork::Answer(TaskOutcome::NO_TASK));
    // A task management request, here its own, is not aborted by another (RFC 7143 §11.5.1).
    let (_, work) = begin(&mut session, conn, abort(11, 103, 11, 103));
    assert_eq!(work, TaskWork::Answer(TaskOutcome::REJECTED));
}

#[test]
fn abort_task_before_its_turn() {
    let (mut session, conn) = session(Params::default());
    let victim = accept(&mut session, conn, scsi(2, 101, 0));
    let (_, work) = begin(&mut session, conn, abort(9, 102, 2, 101));
    assert_eq!(work, TaskWork::Answer(TaskOutcome::COMPLETE));
    assert!(session.is_aborted(victim), "it is gone");
    let first = accept(&mut session, conn, scsi(1, 100, 0));
    assert_eq!(ready(&mut session), [Ready::Scsi(first)]);
    assert_eq!(session.exp_cmd_sn(), 102);
    // While its data arrives.
    let mut login = established(Params::default());
    login.cid = 5;
    let second = session.add_connection(&login, 0).unwrap();
    let mut pdu = command(3, 102);
    pdu.flags |= FLAG_WRITE;
    pdu.expected_len.set(512);
    pdu.data_len = U24::new(512);
    let Verdict::Accept(_) = session.request(conn, &Request::ScsiCommand(pdu), &[], 1) else { panic!() };
    let (_, work) = begin(&mut session, second, abort(10, 103, 3, 102));
    assert_eq!(work, TaskWork::Answer(TaskOutcome::COMPLETE));
    assert_eq!(session.data_end(conn, true), Received::Command);
    assert!(ready(&mut session).is_empty(), "it is never executed");
    assert_eq!(session.exp_cmd_sn(), 103);
}

#[test]
fn functions_for_many_tasks() {
    for (function, work, all) in [
        (TaskFunction::ABORT_TASK_SET, TaskWork::AbortTaskSet([0, 5, 0, 0, 0, 0, 0, 0]), false),
        (TaskFunction::CLEAR_TASK_SET, TaskWork::ClearTaskSet([0, 5, 0, 0, 0, 0, 0, 0]), false),
        (TaskFunction::LOGICAL_UNIT_RESET, TaskWork::LunReset([0, 5, 0, 0, 0, 0, 0, 0]), false),
        (TaskFunction::TARGET_WARM_RESET, TaskWork::WarmReset, true),
        (TaskFunction::TARGET_COLD_RESET, TaskWork::ColdReset, true),
        (TaskFunction::I_T_NEXUS_RESET, TaskWork::NexusReset, true),
    ] {
        let (mut session, conn) = session(level_2());
        let of_lun = accept(&mut session, conn, scsi(1, 100, 5));
        let of_other = accept(&mut session, conn, scsi(2, 101, 6));
        let also = accept(&mut session, conn, scsi(3, 102, 5));
        let _ = ready(&mut session);
        let task = accept(&mut session, conn, Request::Task(manage(function, 9, 103, 5)));
        let later = accept(&mut session, conn, scsi(4, 103, 5));
        assert_eq!(ready(&mut session), [Ready::Task(task), Ready::Scsi(later)]);
        assert_eq!(session.task_management(task, |_| true), Some(work));
        let mut affected: Vec<TaskId> = session.affected(task).collect();
        affected.sort();
        let expected = if all { vec![of_lun, of_other, also] } else { vec![of_lun, also] };
        assert_eq!(affected, expected, "{function:?}");
        assert!(!session.is_aborted(later));
        for (i, victim) in affected.iter().enumerate() {
            assert_eq!(outcome(&mut session, task), None, "{i} have ended");
            session.end(*victim);
        }
        assert_eq!(outcome(&mut session, task), None, "the caller's work is not done");
        session.task_done(task, TaskOutcome::COMPLETE);
        assert_eq!(outcome(&mut session, task), Some(TaskOutcome::COMPLETE));
    }
}

#[test]
fn a_function_for_many_is_answered_behind_the_responses_of_other_connections() {
    let (mut session, first, second) = two_connections();
    let one = accept(&mut session, second, scsi(1, 100, 5));
    let _ = ready(&mut session);
    let header = session.respond(one, 0, 0, Residual::None, Residual::None).unwrap();
    let stat_sn = ScsiResponse::read(&header).stat_sn.get();
    let (task, _) = begin(&mut session, first, manage(TaskFunction::LOGICAL_UNIT_RESET, 9, 101, 5));
    session.task_done(task, TaskOutcome::COMPLETE);
    assert_eq!((session.answerable(), outcome(&mut session, task)), (None, None));
    let (conn, ping) = session.next_ping(70).unwrap();
    assert_eq!((conn, ping[0], NopIn::read(&ping).ttt.get()), (second, 0x20, 1));
    assert_eq!(session.next_ping(70), None, "it is asked once");
    assert_eq!(session.alive(second, 80), Alive::Until(170));
    // What is sent later is not waited for.
    let other = accept(&mut session, first, scsi(2, 101, 5));
    let _ = ready(&mut session);
    session.respond(other, 0, 0, Residual::None, Residual::None).unwrap();
    session.reject(second, RejectReason::PROTOCOL_ERROR).unwrap();
    let mut pong = NopOut::new_zeroed();
    pong.opcode = OPCODE_IMMEDIATE;
    pong.itt.set(NO_TAG);
    pong.ttt.set(1);
    for (exp_stat_sn, arrived) in [(stat_sn, false), (stat_sn + 9, false), (stat_sn + 1, true)] {
        pong.exp_stat_sn.set(exp_stat_sn);
        assert_eq!(send(&mut session, second, Request::NopOut(pong)), Verdict::Ignore);
        assert_eq!(session.answerable().is_some(), arrived, "{exp_stat_sn}");
    }
    assert_eq!(outcome(&mut session, task), Some(TaskOutcome::COMPLETE));
    // A connection that is lost is not waited for.
    let (task, _) = begin(&mut session, first, manage(TaskFunction::TARGET_WARM_RESET, 9, 102, 5));
    session.task_done(task, TaskOutcome::COMPLETE);
    assert_eq!(session.answerable(), None);
    session.close_connection(second);
    assert_eq!(session.answerable(), Some(task));
    // Nor is one that has its place afterwards.
    assert!(session.remove_connection(second));
    assert_eq!(session.add_connection(&established(Params::default()), 0), Some(second));
    assert_eq!(session.answerable(), Some(task));
}

#[test]
fn a_function_for_many_waits_for_the_commands_before_it() {
    let (mut session, conn) = session(Params::default());
    let held = accept(&mut session, conn, scsi(2, 101, 5));
    let task = accept(&mut session, conn, Request::Task(manage(TaskFunction::LOGICAL_UNIT_RESET, 9, 102, 5)));
    assert!(ready(&mut session).is_empty());
    let first = accept(&mut session, conn, scsi(1, 100, 5));
    assert_eq!(ready(&mut session), [Ready::Scsi(first), Ready::Scsi(held), Ready::Task(task)]);
    assert!(matches!(session.task_management(task, |_| true), Some(TaskWork::LunReset(_))));
    assert_eq!(session.affected(task).count(), 2);
    // A number that will have no turn is not waited for.
    let task = accept(&mut session, conn, Request::Task(manage(TaskFunction::TARGET_WARM_RESET, 10, 5000, 0)));
    assert_eq!(ready(&mut session), [Ready::Task(task)]);
}

#[test]
fn tasks_of_a_lun_that_is_gone_are_left_to_end() {
    for function in [
        TaskFunction::ABORT_TASK_SET,
        TaskFunction::CLEAR_TASK_SET,
        TaskFunction::LOGICAL_UNIT_RESET,
        TaskFunction::QUERY_TASK_SET,
        TaskFunction::QUERY_ASYNC_EVENT,
    ] {
        let (mut session, conn) = session(level_2());
        let running = accept(&mut session, conn, scsi(1, 100, 5));
        let _ = ready(&mut session);
        let task = accept(&mut session, conn, Request::Task(manage(function, 9, 101, 5)));
        assert_eq!(ready(&mut session), [Ready::Task(task)]);
        let work = session.task_management(task, |lun| lun != [0, 5, 0, 0, 0, 0, 0, 0]);
        assert_eq!(work, Some(TaskWork::Answer(TaskOutcome::NO_LUN)), "{function:?}");
        assert_eq!((session.affected(task).count(), session.is_aborted(running)), (0, false), "{function:?}");
        session.task_done(task, TaskOutcome::NO_LUN);
        assert_eq!(outcome(&mut session, task), Some(TaskOutcome::NO_LUN));
        assert!(
            session.respond(running, 0, 0, Residual::None, Residual::None).is_some(),
            "{function:?}: it is answered"
        );
    }
}

#[test]
fn two_functions_about_the_same_task() {
    let (mut session, conn) = session(Params::default());
    let victim = accept(&mut session, conn, scsi(1, 100, 5));
    let _ = ready(&mut session);
    let (first, _) = begin(&mut session, conn, manage(TaskFunction::LOGICAL_UNIT_RESET, 8, 101, 5));
    let (second, _) = begin(&mut session, conn, abort(9, 101, 1, 100));
    session.task_done(first, TaskOutcome::COMPLETE);
    session.task_done(second, TaskOutcome::COMPLETE);
    session.end(victim);
    let mut answered = Vec::new();
    while let Some(task) = session.answerable() {
        answered.push(outcome(&mut session, task));
    }
    assert_eq!(answered, [Some(TaskOutcome::COMPLETE); 2]);
}

#[test]
fn what_is_not_done_here_is_said() {
    let (mut session, conn) = session(Params::default());
    let answer = |session: &mut Session, function| {
        let (task, work) = begin(session, conn, manage(function, 9, 100, 0));
        session.task_done(task, TaskOutcome::COMPLETE);
        session.task_response(task, [0; 3]).unwrap();
        work
    };
    let not_supported = TaskWork::Answer(TaskOutcome::NOT_SUPPORTED);
    assert_eq!(
        answer(&mut session, TaskFunction::TASK_REASSIGN),
        TaskWork::Answer(TaskOutcome::REASSIGN_NOT_SUPPORTED)
    );
    for function in [0, 9, 10, 11, 12, 13, 127] {
        assert_eq!(answer(&mut session, TaskFunction(function)), not_supported, "{function}");
    }
    assert_eq!(answer(&mut session, TaskFunction::CLEAR_ACA), TaskWork::ClearAca([0; 8]));
}

#[test]
fn queries() {
    let (mut session, conn) = session(level_2());
    let task = accept(&mut session, conn, scsi(1, 100, 5));
    let _ = ready(&mut session);
    let query = |session: &mut Session, function, ref_itt, lun| {
        let mut pdu = manage(function, 9, 101, lun);
        pdu.ref_itt.set(ref_itt);
        let (id, work) = begin(session, conn, pdu);
        session.task_done(id, TaskOutcome::SUCCEEDED);
        (work, session.task_response(id, [1, 2, 3]).unwrap())
    };
    let found = TaskWork::Answer(TaskOutcome::SUCCEEDED);
    let not = TaskWork::Answer(TaskOutcome::COMPLETE);
    assert_eq!(query(&mut session, TaskFunction::QUERY_TASK, 1, 5).0, found);
    assert_eq!(query(&mut session, TaskFunction::QUERY_TASK, 2, 5).0, not);
    assert_eq!(query(&mut session, TaskFunction::QUERY_TASK_SET, 0, 5).0, found);
    assert_eq!(query(&mut session, TaskFunction::QUERY_TASK_SET, 0, 6).0, not);
    let (work, header) = query(&mut session, TaskFunction::QUERY_ASYNC_EVENT, 0, 5);
    assert_eq!(work, TaskWork::QueryAsyncEvent([0, 5, 0, 0, 0, 0, 0, 0]));
    assert_eq!((header[2], &header[8..11]), (7, &[1, 2, 3][..]));
    assert!(!session.is_aborted(task));
}

fn logout(reason: LogoutReason, itt: u32, cmd_sn: u32, cid: u16) -> Request {
    let mut pdu = LogoutRequest::new_zeroed();
    pdu.opcode = Opcode::LOGOUT_REQUEST.0 | OPCODE_IMMEDIATE;
    pdu.flags = FLAG_FINAL | reason.0;
    pdu.itt.set(itt);
    pdu.cmd_sn.set(cmd_sn);
    pdu.cid.set(cid);
    Request::Logout(pdu)
}

fn two_connections() -> (Session, ConnId, ConnId) {
    let (mut session, first) = session(Params { time2retain: 0, ..Params::default() });
    let mut login = established(Params::default());
    login.cid = 7;
    let second = session.add_connection(&login, 0).unwrap();
    (session, first, second)
}

#[test]
fn a_session_is_logged_out() {
    let (mut session, first, second) = two_connections();
    let one = accept(&mut session, first, scsi(1, 100, 0));
    let other = accept(&mut session, second, scsi(2, 101, 0));
    let _ = ready(&mut session);
    let task = accept(&mut session, first, logout(LogoutReason::CLOSE_SESSION, 9, 102, 0));
    assert_eq!(ready(&mut session), [Ready::Logout(task)]);
    assert_eq!(session.logout(task), Some(LogoutWork::CloseSession));
    assert_eq!(send(&mut session, second, scsi(3, 102, 0)), Verdict::Ignore);
    for victim in [one, other] {
        assert!(session.is_aborted(victim));
        assert_eq!(session.logout_response(task, LogoutOutcome::SUCCESS), None);
        session.end(victim);
    }
    let header = session.logout_response(task, LogoutOutcome::SUCCESS).unwrap();
    let mut expected = [0; BHS_LEN];
    expected[..2].copy_from_slice(&[0x26, 0x80]);
    expected[19] = 9;
    expected[24..36].copy_from_slice(&[0, 0, 1, 0xf4, 0, 0, 0, 102, 0, 0, 0, 109]);
    expected[41] = 2;
    assert_eq!(header, expected);
    assert!(session.remove_connection(first) && session.remove_connection(second));
    assert_eq!(session.connections().count(), 0);
}

#[test]
fn one_connection_is_logged_out() {
    // By itself, and by the other one.
    for by_itself in [false, true] {
        let (mut session, first, second) = two_connections();
        let one = accept(&mut session, first, scsi(1, 100, 0));
        let other = accept(&mut session, second, scsi(2, 101, 0));
        let _ = ready(&mut session);
        let by = if by_itself { second } else { first };
        let task = accept(&mut session, by, logout(LogoutReason::CLOSE_CONNECTION, 9, 102, 7));
        let _ = ready(&mut session);
        assert_eq!(session.logout(task), Some(LogoutWork::CloseConnection(second)));
        assert!(!session.is_aborted(one) && session.is_aborted(other));
        assert_eq!(session.affected(task).collect::<Vec<_>>(), [other]);
        session.end(other);
        assert!(session.logout_response(task, LogoutOutcome::SUCCESS).is_some());
        assert!(session.remove_connection(second) && !session.remove_connection(first));
        assert!(session.respond(one, 0, 0, Residual::None, Residual::None).is_some());
    }
}

#[test]
fn logouts_that_are_refused() {
    let (mut session, first, _) = two_connections();
    let mut answer = |request| {
        let task = accept(&mut session, first, request);
        let _ = ready(&mut session);
        let Some(LogoutWork::Answer(outcome)) = session.logout(task) else { panic!() };
        assert_eq!(session.logout_response(task, outcome).unwrap()[2], outcome.0);
        outcome
    };
    assert_eq!(answer(logout(LogoutReason::CLOSE_CONNECTION, 9, 100, 8)), LogoutOutcome::NO_CONNECTION);
    assert_eq!(answer(logout(LogoutReason::REMOVE_FOR_RECOVERY, 9, 100, 7)), LogoutOutcome::RECOVERY_NOT_SUPPORTED);
    assert_eq!(answer(logout(LogoutReason(5), 9, 100, 7)), LogoutOutcome::RECOVERY_NOT_SUPPORTED);
    assert!(matches!(send(&mut session, first, scsi(1, 100, 0)), Verdict::Accept(_)), "nothing was closed");
}

#[test]
fn two_logouts_at_a_time_do_not_wait_for_each_other() {
    let [all, one] = [LogoutReason::CLOSE_SESSION, LogoutReason::CLOSE_CONNECTION];
    // The second closes the session as well, or the connection that the first came by.
    for reason in [all, one] {
        let (mut session, first, second) = two_connections();
        let cid = session.cid(first).unwrap();
        let winner = accept(&mut session, first, logout(all, 9, 100, 0));
        let loser = accept(&mut session, second, logout(reason, 10, 101, cid));
        assert_eq!(ready(&mut session), [Ready::Logout(winner), Ready::Logout(loser)]);
        assert_eq!(session.logout(winner), Some(LogoutWork::CloseSession));
        assert_eq!(session.logout_response(winner, LogoutOutcome::SUCCESS), None);
        assert_eq!(session.logout(loser), None, "its connection is closed by the first");
        session.end(loser);
        assert!(session.logout_response(winner, LogoutOutcome::SUCCESS).is_some());
        assert!(session.remove_connection(first) && session.remove_connection(second));
    }
}
