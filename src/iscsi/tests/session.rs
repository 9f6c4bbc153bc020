//! Numbering: the window, duplicates, commands for immediate delivery, several connections, NOPs.

use super::*;

fn tur(itt: u32, cmd_sn: u32) -> Request {
    Request::ScsiCommand(command(itt, cmd_sn))
}

fn nop(itt: u32, cmd_sn: u32, immediate: bool, len: u32) -> Request {
    let mut pdu = NopOut::new_zeroed();
    pdu.opcode = if immediate { OPCODE_IMMEDIATE } else { 0 };
    pdu.flags = FLAG_FINAL;
    pdu.itt.set(itt);
    pdu.ttt.set(NO_TAG);
    pdu.cmd_sn.set(cmd_sn);
    pdu.data_len = U24::new(len);
    Request::NopOut(pdu)
}

fn end(session: &mut Session, task: TaskId) -> Header {
    session.respond(task, 0, 0, Residual::None, Residual::None).unwrap()
}

#[test]
fn commands_outside_of_the_window_are_ignored() {
    let (mut session, conn) = session(Params::default());
    assert_eq!((session.exp_cmd_sn(), session.max_cmd_sn()), (100, 107));
    for cmd_sn in [99, 108, 0, u32::MAX, 100 + (1 << 31)] {
        assert_eq!(send(&mut session, conn, tur(1, cmd_sn)), Verdict::Ignore, "{cmd_sn}");
    }
    assert!(ready(&mut session).is_empty());
    let task = accept(&mut session, conn, tur(1, 100));
    assert_eq!(ready(&mut session), [Ready::Scsi(task)]);
    assert_eq!((session.exp_cmd_sn(), session.max_cmd_sn()), (101, 107), "what is active takes its part");
    assert_eq!(send(&mut session, conn, tur(2, 100)), Verdict::Ignore, "a second time");
    end(&mut session, task);
    assert_eq!((session.exp_cmd_sn(), session.max_cmd_sn()), (101, 108));
}

#[test]
fn a_full_window_closes_and_opens() {
    let (mut session, conn) = session(Params::default());
    let tasks: Vec<TaskId> = (0..8).map(|i| accept(&mut session, conn, tur(i, 100 + i))).collect();
    assert_eq!(ready(&mut session).len(), 8);
    assert_eq!((session.exp_cmd_sn(), session.max_cmd_sn()), (108, 107));
    assert_eq!(send(&mut session, conn, tur(9, 108)), Verdict::Ignore);
    // Commands for immediate delivery have places of their own.
    let pings: Vec<TaskId> = (0..2).map(|i| accept(&mut session, conn, nop(20 + i, 108, true, 0))).collect();
    let rejected = Verdict::Reject(RejectReason::IMMEDIATE_COMMAND_REJECT);
    assert_eq!(send(&mut session, conn, nop(22, 108, true, 0)), rejected);
    assert_eq!(ready(&mut session), [Ready::Nop(pings[0]), Ready::Nop(pings[1])]);
    let header = end(&mut session, tasks[5]);
    assert_eq!(ScsiResponse::read(&header).max_cmd_sn.get(), 108);
    assert!(matches!(send(&mut session, conn, tur(9, 108)), Verdict::Accept(_)));
}

#[test]
fn commands_of_several_connections_in_their_order() {
    let (mut session, first) = session(Params::default());
    let mut login = established(Params::default());
    login.cid = 7;
    login.stat_sn = 900;
    let second = session.add_connection(&login, 0).unwrap();
    assert_eq!(session.connection(7), Some(second));
    let c = accept(&mut session, first, tur(3, 102));
    let b = accept(&mut session, second, nop(2, 101, false, 0));
    assert!(ready(&mut session).is_empty());
    assert_eq!(session.exp_cmd_sn(), 100);
    assert_eq!(send(&mut session, second, tur(9, 102)), Verdict::Ignore, "a second time by another connection");
    let a = accept(&mut session, second, tur(1, 100));
    assert_eq!(ready(&mut session), [Ready::Scsi(a), Ready::Nop(b), Ready::Scsi(c)]);
    // Each connection has its own StatSN.
    assert_eq!(ScsiResponse::read(&end(&mut session, a)).stat_sn.get(), 900);
    assert_eq!(ScsiResponse::read(&end(&mut session, c)).stat_sn.get(), 500);
    assert_eq!(NopIn::read(&session.nop_response(b).unwrap().0).stat_sn.get(), 901);
}

#[test]
fn a_command_whose_data_arrives_is_not_taken_twice() {
    let (mut session, first) = session(Params::default());
    let mut login = established(Params::default());
    login.cid = 7;
    let second = session.add_connection(&login, 0).unwrap();
    let Verdict::Accept(ping) = session.request(first, &nop(1, 100, false, 8), &[], 1) else { panic!() };
    assert!(ready(&mut session).is_empty(), "its data is not there");
    assert_eq!(send(&mut session, second, tur(2, 100)), Verdict::Ignore);
    let next = accept(&mut session, second, tur(3, 101));
    assert_eq!(session.data_end(first, true), Received::Command);
    assert_eq!(ready(&mut session), [Ready::Nop(ping), Ready::Scsi(next)]);
}

#[test]
fn tags_are_used_once_at_a_time() {
    let (mut session, conn) = session(Params::default());
    let task = accept(&mut session, conn, tur(1, 100));
    assert_eq!(send(&mut session, conn, tur(1, 101)), Verdict::Reject(RejectReason::PROTOCOL_ERROR));
    assert_eq!(send(&mut session, conn, tur(NO_TAG, 102)), Verdict::Reject(RejectReason::INVALID_PDU_FIELD));
    assert_eq!(ready(&mut session), [Ready::Scsi(task)]);
    assert_eq!(session.exp_cmd_sn(), 101, "the number of what was rejected has not been received (RFC 7143 §7.3)");
    end(&mut session, task);
    // The initiator fills the gap; what came behind it waited.
    let behind = accept(&mut session, conn, tur(3, 102));
    assert!(ready(&mut session).is_empty());
    let filler = accept(&mut session, conn, tur(1, 101));
    assert_eq!(ready(&mut session), [Ready::Scsi(filler), Ready::Scsi(behind)]);
}

#[test]
fn pings() {
    let (mut session, conn) = session(Params { initiator_max_data: 512, ..Params::default() });
    let Verdict::Accept(task) = session.request(conn, &nop(7, 100, false, 700), &[], 1) else { panic!() };
    assert_eq!(session.data_end(conn, true), Received::Command);
    assert_eq!(ready(&mut session), [Ready::Nop(task)]);
    let (header, len) = session.nop_response(task).unwrap();
    let mut expected = [0; BHS_LEN];
    expected[..8].copy_from_slice(&[0x20, 0x80, 0, 0, 0, 0, 2, 0]);
    expected[19] = 7;
    expected[20..24].fill(0xff);
    expected[24..36].copy_from_slice(&[0, 0, 1, 0xf4, 0, 0, 0, 101, 0, 0, 0, 108]);
    assert_eq!((header, len), (expected, 512), "no more than the initiator receives");
    assert_eq!(session.nop_response(task), None);
    // What wants no answer, and what answers nothing.
    assert_eq!(send(&mut session, conn, nop(NO_TAG, 101, true, 0)), Verdict::Ignore);
    // An answer that is a ping too.
    let Request::NopOut(mut pdu) = nop(8, 101, true, 0) else { panic!() };
    pdu.ttt.set(5);
    let task = accept(&mut session, conn, Request::NopOut(pdu));
    assert_eq!(ready(&mut session), [Ready::Nop(task)]);
    assert_eq!(NopIn::read(&session.nop_response(task).unwrap().0).ttt.get(), NO_TAG);
    // What wants no answer has no number.
    assert_eq!(send(&mut session, conn, nop(NO_TAG, 101, false, 0)), Verdict::Reject(RejectReason::INVALID_PDU_FIELD));
    assert!(ready(&mut session).is_empty());
    assert_eq!(session.exp_cmd_sn(), 101);
}

#[test]
fn a_silent_initiator_is_found_out() {
    let (mut session, conn) = session(Params::default());
    assert_eq!(session.alive(conn, 500), Alive::Until(1000));
    session.heard(conn, 600);
    assert_eq!(session.alive(conn, 1000), Alive::Until(1600));
    let Alive::Ping(header, 1700) = session.alive(conn, 1600) else { panic!() };
    let pdu = NopIn::read(&header);
    assert_eq!((pdu.itt.get(), pdu.ttt.get(), pdu.stat_sn.get()), (NO_TAG, 1, 500));
    assert_eq!(
        session.reject(conn, RejectReason::PROTOCOL_ERROR).map(|pdu| Reject::read(&pdu).stat_sn.get()),
        Some(500)
    );
    assert_eq!(session.alive(conn, 1699), Alive::Until(1700));
    let Request::NopOut(mut answer) = nop(NO_TAG, 100, true, 0) else { panic!() };
    answer.ttt.set(1);
    assert_eq!(session.request(conn, &Request::NopOut(answer), &[], 1690), Verdict::Ignore);
    assert_eq!(session.alive(conn, 1700), Alive::Until(2690));
    let Alive::Ping(header, 2790) = session.alive(conn, 2690) else { panic!() };
    assert_eq!(NopIn::read(&header).ttt.get(), 2);
    assert_eq!(session.alive(conn, 2790), Alive::Dead);
    session.close_connection(conn);
    assert!(session.remove_connection(conn));
    assert_eq!(session.alive(conn, 0), Alive::Dead);
}

#[test]
fn what_a_session_has_no_place_for() {
    let (mut session, conn) = session(Params::default());
    let mut verdict = |request| send(&mut session, conn, request);
    let snack = Snack { opcode: 0x10, ..Snack::new_zeroed() };
    assert_eq!(verdict(Request::Snack(snack)), Verdict::Reject(RejectReason::SNACK_REJECT));
    let login = LoginRequest { opcode: 0x43, ..LoginRequest::new_zeroed() };
    assert_eq!(verdict(Request::Login(login)), Verdict::Reject(RejectReason::PROTOCOL_ERROR));
    let unknown = Bhs { opcode: 0x1c, ..Bhs::new_zeroed() };
    assert_eq!(verdict(Request::Unknown(unknown)), Verdict::Reject(RejectReason::COMMAND_NOT_SUPPORTED));
    // A discovery session has no tasks.
    let login = Established { kind: SessionKind::Discovery, ..established(Params::default()) };
    let (mut session, conn) = Session::new(&login, LIMITS, KEEPALIVE, 0);
    let task = TaskRequest { opcode: 0x42, ..TaskRequest::new_zeroed() };
    for request in [tur(1, 100), Request::Task(task), Request::DataOut(DataOut::new_zeroed())] {
        assert_eq!(send(&mut session, conn, request), Verdict::Reject(RejectReason::PROTOCOL_ERROR));
    }
    assert_eq!(send(&mut session, conn, nop(7, 100, true, 0)), Verdict::Reject(RejectReason::PROTOCOL_ERROR));
    assert_eq!(send(&mut session, conn, nop(NO_TAG, 100, true, 0)), Verdict::Ignore);
    let logout = LogoutRequest { opcode: 0x46, flags: 0x81, ..LogoutRequest::new_zeroed() };
    assert_eq!(send(&mut session, conn, Request::Logout(logout)), Verdict::Reject(RejectReason::PROTOCOL_ERROR));
    let text = TextRequest { opcode: 0x44, flags: FLAG_FINAL, ..TextRequest::new_zeroed() };
    let task = accept(&mut session, conn, Request::Text(text));
    assert_eq!(ready(&mut session), [Ready::Text(task)]);
    let reply = TextReply { flags: FLAG_FINAL, ttt: NO_TAG, text: b"A=b\0".to_vec() };
    let header = session.text_response(task, &reply).unwrap();
    assert_eq!((header[0], header[1], header[7], TextResponse::read(&header).ttt.get()), (0x24, 0x80, 4, NO_TAG));
}

#[test]
fn a_lost_connection_takes_its_tasks() {
    let (mut session, first) = session(Params::default());
    let mut login = established(Params::default());
    login.cid = 7;
    let second = session.add_connection(&login, 0).unwrap();
    let a = accept(&mut session, first, tur(1, 100));
    let held = accept(&mut session, first, tur(2, 102));
    let other = accept(&mut session, second, tur(4, 103));
    let Verdict::Accept(half) = session.request(first, &nop(3, 101, true, 8), &[], 1) else { panic!() };
    assert_eq!(ready(&mut session), [Ready::Scsi(a)]);
    session.close_connection(first);
    assert!(
        session.is_aborted(a) && session.is_aborted(held) && session.is_aborted(half) && !session.is_aborted(other)
    );
    assert_eq!(session.tasks_of(first).collect::<Vec<_>>(), [a]);
    assert!(!session.remove_connection(first));
    assert_eq!(send(&mut session, first, tur(9, 101)), Verdict::Ignore);
    assert_eq!(session.respond(a, 0, 0, Residual::None, Residual::None), None, "nothing is answered, but it ends");
    assert!(session.remove_connection(first));
    assert_eq!(session.connections().collect::<Vec<_>>(), [second]);
    // Its place is free for another.
    assert_eq!(session.add_connection(&login, 0), Some(first));
    // The number that was held is not missing.
    let fill = accept(&mut session, second, tur(5, 101));
    assert_eq!(ready(&mut session), [Ready::Scsi(fill), Ready::Scsi(other)]);
}

#[test]
fn long_cdbs_come_with_their_command() {
    let (mut session, conn) = session(Params::default());
    let ahs = [0, 5, 1, 0, 1, 2, 3, 4];
    let Verdict::Accept(task) = session.request(conn, &tur(1, 100), &ahs, 1) else { panic!() };
    let _ = ready(&mut session);
    let (_, segments) = session.command(task).unwrap();
    assert_eq!(Ahs::read(segments).unwrap().extended_cdb, [1, 2, 3, 4]);
    end(&mut session, task);
    assert_eq!(session.command(task), None);
    let malformed = Verdict::Reject(RejectReason::INVALID_PDU_FIELD);
    assert_eq!(session.request(conn, &tur(2, 101), &[0, 9, 1, 0], 1), malformed);
}

/// The rule of the window as a set of numbers.
#[test]
fn the_window_against_a_simple_model() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let mut login = established(Params::default());
        login.cmd_sn = (random.next() as u32) | 0xffff_ff00;
        let limits = SessionLimits { window: 1 + random.below(9) as u16, ..LIMITS };
        let (mut session, first) = Session::new(&login, limits, KEEPALIVE, 0);
        login.cid = 1;
        let second = session.add_connection(&login, 0).unwrap();
        let base = u64::from(login.cmd_sn);
        let (mut exp, mut received, mut active) = (base, std::collections::BTreeSet::new(), Vec::new());
        let mut max_before = 0;
        for itt in 0..400u32 {
            let max = exp + u64::from(limits.window) - active.len() as u64 - 1;
            assert_eq!((session.exp_cmd_sn(), session.max_cmd_sn()), (exp as u32, max as u32));
            assert!(max >= max_before, "the window never goes back");
            max_before = max;
            if random.below(3) == 0 && !active.is_empty() {
                let task = active.remove(random.below(active.len()));
                end(&mut session, task);
                continue;
            }
            let cmd_sn = exp + random.below(usize::from(limits.window) + 3) as u64 - 1;
            let taken = cmd_sn >= exp && cmd_sn <= max && received.insert(cmd_sn);
            let conn = if random.flip() { first } else { second };
            let verdict = send(&mut session, conn, tur(itt, cmd_sn as u32));
            assert_eq!(matches!(verdict, Verdict::Accept(_)), taken, "{verdict:?}");
            assert!(taken || verdict == Verdict::Ignore);
            while received.remove(&exp) {
                let Some(Ready::Scsi(task)) = session.next_ready() else { panic!("a command is late") };
                assert_eq!(session.command(task).unwrap().0.cmd_sn.get(), exp as u32);
                active.push(task);
                exp += 1;
            }
            assert_eq!(session.next_ready(), None);
        }
    }
}
