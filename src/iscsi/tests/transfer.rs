//! Data of writes and reads: all combinations against the initiator model, and data at fault.

use super::initiator::World;
use super::*;

#[test]
fn what_arrives_is_what_was_sent_in_every_combination() {
    let mut seed = 1;
    for bits in 0..16 {
        for (first_burst, max_burst, target_max_data, initiator_max_data) in [
            (512, 512, 512, 512),
            (4096, 4096, 8192, 1000),
            (1000, 5000, 700, 16_384),
            (65_536, 262_144, 65_536, 65_536),
        ] {
            for max_outstanding_r2t in [1, 3] {
                let params = Params {
                    header_digest: bits & 1 != 0,
                    data_digest: bits & 2 != 0,
                    immediate_data: bits & 4 != 0,
                    initial_r2t: bits & 8 != 0,
                    first_burst,
                    max_burst,
                    target_max_data,
                    initiator_max_data,
                    max_outstanding_r2t,
                    ..Params::default()
                };
                seed += 1;
                World::new(seed, params, 1 + seed as usize % 3).run(60);
            }
        }
    }
}

/// A write of `len` bytes whose command has brought nothing.
fn write(session: &mut Session, conn: ConnId, itt: u32, len: u32, goes_on: bool) -> TaskId {
    let mut pdu = command(itt, session.exp_cmd_sn());
    pdu.flags = FLAG_WRITE | if goes_on { 0 } else { FLAG_FINAL };
    pdu.expected_len.set(len);
    pdu.lun[1] = 5;
    let task = accept(session, conn, Request::ScsiCommand(pdu));
    assert_eq!(ready(session), [Ready::Scsi(task)]);
    task
}

fn data_out(itt: u32, ttt: u32, data_sn: u32, offset: u32, len: u32, last: bool) -> Request {
    let mut pdu = DataOut::new_zeroed();
    pdu.opcode = Opcode::DATA_OUT.0;
    pdu.flags = if last { FLAG_FINAL } else { 0 };
    pdu.itt.set(itt);
    pdu.ttt.set(ttt);
    pdu.data_sn.set(data_sn);
    pdu.buffer_offset.set(offset);
    pdu.data_len = U24::new(len);
    Request::DataOut(pdu)
}

/// Sends a Data-Out: the verdict, and what its end brings.
fn push(session: &mut Session, conn: ConnId, pdu: Request, digest_ok: bool) -> (Verdict, Received) {
    let verdict = session.request(conn, &pdu, &[], 1);
    (verdict, session.data_end(conn, digest_ok))
}

fn solicited() -> Params {
    Params { max_outstanding_r2t: 2, max_burst: 1024, initial_r2t: true, ..Params::default() }
}

#[test]
fn r2ts_byte_by_byte() {
    let (mut session, conn) = session(solicited());
    let task = write(&mut session, conn, 9, 4096, false);
    assert_eq!(session.next_r2t(task, 4096), None, "nothing is wanted yet");
    assert_eq!(session.data_wanted(task, 3000), WriteProgress::Ask);
    assert_eq!(session.next_r2t(task, 0), None);
    let (header, offset, len) = session.next_r2t(task, 4096).unwrap();
    assert_eq!((offset, len), (0, 1024));
    let mut expected = [0; BHS_LEN];
    expected[..2].copy_from_slice(&[0x31, 0x80]);
    expected[9] = 5;
    expected[19] = 9;
    expected[20..24].copy_from_slice(&(task.slot() as u32 * 65536).to_be_bytes());
    // StatSN 500 is not taken; ExpCmdSN 101; MaxCmdSN 107.
    expected[24..36].copy_from_slice(&[0, 0, 1, 0xf4, 0, 0, 0, 101, 0, 0, 0, 107]);
    expected[46..48].copy_from_slice(&[4, 0]);
    assert_eq!(header, expected);
    let (header, offset, len) = session.next_r2t(task, 500).unwrap();
    assert_eq!((R2t::read(&header).r2t_sn.get(), offset, len), (1, 1024, 500));
    assert_eq!(session.next_r2t(task, 4096), None, "two at a time");
    assert_eq!(session.write_progress(task), Some(WriteProgress::Arriving));
}

#[test]
fn several_r2ts_are_filled_in_any_order() {
    let (mut session, conn) = session(solicited());
    let task = write(&mut session, conn, 9, 2048, false);
    session.data_wanted(task, 2048);
    let tags: Vec<u32> = (0..2).map(|_| R2t::read(&session.next_r2t(task, 4096).unwrap().0).ttt.get()).collect();
    assert_ne!(tags[0], tags[1]);
    let place = |offset| Verdict::Place { task, offset };
    let arriving = Received::Write(task, WriteProgress::Arriving);
    assert_eq!(push(&mut session, conn, data_out(9, tags[1], 0, 1024, 1000, false), true), (place(1024), arriving));
    assert_eq!(push(&mut session, conn, data_out(9, tags[0], 0, 0, 1024, true), true), (place(0), arriving));
    let verdict = session.request(conn, &data_out(9, tags[1], 1, 2024, 24, true), &[], 1);
    assert_eq!(verdict, place(2024));
    assert!(session.is_arriving(task));
    assert_eq!(session.write_progress(task), Some(WriteProgress::Arriving), "its data is not there");
    assert_eq!(session.data_end(conn, true), Received::Write(task, WriteProgress::Complete));
    // A tag that has been used is nothing any more.
    assert_eq!(session.request(conn, &data_out(9, tags[0], 0, 0, 1024, true), &[], 1), Verdict::Ignore);
}

#[test]
fn data_sn_at_fault_fails_the_task_when_its_data_is_in() {
    // The cases of the conformance suite: twice 0, 27, -1, and 1 before 0.
    for numbers in [&[0, 0][..], &[27], &[u32::MAX], &[1, 0]] {
        let (mut session, conn) = session(solicited());
        let len = 512 * numbers.len() as u32;
        let task = write(&mut session, conn, 9, len, false);
        session.data_wanted(task, len);
        let ttt = R2t::read(&session.next_r2t(task, 4096).unwrap().0).ttt.get();
        let mut last = None;
        for (i, data_sn) in numbers.iter().enumerate() {
            let pdu = data_out(9, ttt, *data_sn, i as u32 * 512, 512, i + 1 == numbers.len());
            last = Some(push(&mut session, conn, pdu, true).1);
        }
        let failed = WriteProgress::Failed(TransportFault::ServiceCrc);
        assert_eq!(last, Some(Received::Write(task, failed)));
        assert_eq!(TransportFault::ServiceCrc.sense(), (0x0b, 0x47, 0x05));
        assert_eq!(session.next_r2t(task, 512), None);
        assert!(session.respond(task, 2, 18, Residual::None, Residual::None).is_some());
    }
}

#[test]
fn data_that_is_not_what_was_asked_for() {
    let check = |pdu: fn(u32) -> Request, fault: TransportFault| {
        let (mut session, conn) = session(solicited());
        let task = write(&mut session, conn, 9, 1024, false);
        session.data_wanted(task, 1024);
        let ttt = R2t::read(&session.next_r2t(task, 4096).unwrap().0).ttt.get();
        assert_eq!(push(&mut session, conn, pdu(ttt), true).0, Verdict::Ignore);
        // What is still owed is waited for.
        if session.write_progress(task) == Some(WriteProgress::Arriving) {
            let _ = push(&mut session, conn, data_out(9, ttt, 1, 1024, 0, true), true);
        }
        assert_eq!(session.write_progress(task), Some(WriteProgress::Failed(fault)));
    };
    let amount = TransportFault::IncorrectAmount;
    check(|ttt| data_out(9, ttt, 0, 512, 512, true), amount);
    check(|ttt| data_out(9, ttt, 0, 0, 1025, true), amount);
    check(|ttt| data_out(9, ttt, 0, 0, 1024, false), amount);
    check(|ttt| data_out(9, ttt, 0, 0, 512, true), amount);
    check(|ttt| data_out(9, ttt, 0, u32::MAX, 512, true), amount);
    check(|_| data_out(9, NO_TAG, 0, 0, 512, true), TransportFault::UnexpectedUnsolicited);
}

#[test]
fn a_sequence_that_is_full_is_over_even_if_it_does_not_say_so() {
    let (mut session, conn) = session(solicited());
    let task = write(&mut session, conn, 9, 1024, false);
    session.data_wanted(task, 1024);
    let ttt = R2t::read(&session.next_r2t(task, 4096).unwrap().0).ttt.get();
    let (_, received) = push(&mut session, conn, data_out(9, ttt, 0, 0, 1024, false), true);
    let failed = WriteProgress::Failed(TransportFault::IncorrectAmount);
    assert_eq!(received, Received::Write(task, failed));
}

#[test]
fn data_for_nothing() {
    let (mut session, conn) = session(solicited());
    let mut verdict = |pdu| session.request(conn, &pdu, &[], 1);
    assert_eq!(verdict(data_out(9, NO_TAG, 0, 0, 512, true)), Verdict::Ignore, "its task may have just ended");
    assert_eq!(verdict(data_out(9, 0, 0, 0, 512, true)), Verdict::Ignore);
    let none = Verdict::Reject(RejectReason::INVALID_PDU_FIELD);
    assert_eq!(verdict(data_out(9, 0x7fff_0000, 0, 0, 512, true)), none, "a tag that was never given");
    let mut login = established(solicited());
    login.cid = 1;
    let second = session.add_connection(&login, 0).unwrap();
    let task = write(&mut session, conn, 9, 1024, false);
    session.data_wanted(task, 1024);
    let ttt = R2t::read(&session.next_r2t(task, 4096).unwrap().0).ttt.get();
    let other = Verdict::Reject(RejectReason::PROTOCOL_ERROR);
    assert_eq!(session.request(second, &data_out(9, ttt, 0, 0, 512, false), &[], 1), other, "another connection");
    assert_eq!(session.request(conn, &data_out(8, ttt, 0, 0, 512, false), &[], 1), Verdict::Ignore, "another task");
}

#[test]
fn a_tag_of_an_earlier_task_does_not_meet_a_later_one() {
    let (mut session, conn) = session(solicited());
    let first = write(&mut session, conn, 9, 1024, false);
    session.data_wanted(first, 1024);
    let old = R2t::read(&session.next_r2t(first, 4096).unwrap().0).ttt.get();
    session.abort(first);
    assert_eq!(session.next_r2t(first, 4096), None);
    assert_eq!(push(&mut session, conn, data_out(9, old, 0, 0, 512, false), true).0, Verdict::Ignore);
    session.end(first);
    // The same slot, the same tag of the initiator.
    let second = write(&mut session, conn, 9, 1024, false);
    assert_eq!(first.slot(), second.slot());
    session.data_wanted(second, 1024);
    let new = R2t::read(&session.next_r2t(second, 4096).unwrap().0).ttt.get();
    assert_ne!(old, new);
    assert_eq!(session.request(conn, &data_out(9, old, 1, 512, 512, true), &[], 1), Verdict::Ignore);
    assert_eq!(session.write_progress(second), Some(WriteProgress::Arriving));
    assert!(session.respond(first, 0, 0, Residual::None, Residual::None).is_none(), "an old name is nothing");
}

#[test]
fn a_wrong_data_digest_rejects_the_pdu_and_fails_the_task() {
    let (mut session, conn) = session(solicited());
    let task = write(&mut session, conn, 9, 1024, false);
    session.data_wanted(task, 1024);
    let ttt = R2t::read(&session.next_r2t(task, 4096).unwrap().0).ttt.get();
    let pdu = data_out(9, ttt, 0, 0, 512, false);
    let (_, received) = push(&mut session, conn, pdu, false);
    assert_eq!(received, Received::RejectData { header: pdu.header(), task, progress: WriteProgress::Arriving });
    let (_, received) = push(&mut session, conn, data_out(9, ttt, 1, 512, 512, true), true);
    assert_eq!(received, Received::Write(task, WriteProgress::Failed(TransportFault::ServiceCrc)));
    // A command with data: nothing of it is left, and the connection cannot go on.
    let mut pdu = command(10, session.exp_cmd_sn());
    pdu.flags |= FLAG_WRITE;
    pdu.expected_len.set(512);
    pdu.data_len = U24::new(512);
    let verdict = session.request(conn, &Request::ScsiCommand(pdu), &[], 1);
    assert!(matches!(verdict, Verdict::Accept(_)));
    assert_eq!(session.data_end(conn, false), Received::RejectRequest { header: pdu.to_bytes(), close: true });
    assert!(ready(&mut session).is_empty());
    assert_eq!(session.exp_cmd_sn(), 101, "the command counts as never received");
    // A ping for immediate delivery leaves no gap.
    let mut pdu = NopOut::new_zeroed();
    pdu.opcode = OPCODE_IMMEDIATE;
    pdu.itt.set(11);
    pdu.ttt.set(NO_TAG);
    pdu.data_len = U24::new(8);
    assert!(matches!(session.request(conn, &Request::NopOut(pdu), &[], 1), Verdict::Accept(_)));
    assert_eq!(session.data_end(conn, false), Received::RejectRequest { header: pdu.to_bytes(), close: false });
}

#[test]
fn unsolicited_data() {
    let params = Params { initial_r2t: false, first_burst: 1024, max_burst: 4096, ..Params::default() };
    let (mut session, conn) = session(params);
    // It goes on beyond what is wanted, and is waited for.
    let task = write(&mut session, conn, 9, 4096, true);
    assert_eq!(session.data_wanted(task, 512), WriteProgress::Arriving);
    assert_eq!(session.next_r2t(task, 4096), None);
    let (verdict, _) = push(&mut session, conn, data_out(9, NO_TAG, 0, 0, 600, false), true);
    assert_eq!(verdict, Verdict::Place { task, offset: 0 });
    let (_, received) = push(&mut session, conn, data_out(9, NO_TAG, 1, 600, 424, true), true);
    assert_eq!(received, Received::Write(task, WriteProgress::Complete));
    // The first R2T begins where it ended.
    let task = write(&mut session, conn, 10, 4096, true);
    session.data_wanted(task, 4096);
    let _ = push(&mut session, conn, data_out(10, NO_TAG, 0, 0, 1024, true), true);
    let (_, offset, len) = session.next_r2t(task, 10_000).unwrap();
    assert_eq!((offset, len), (1024, 3072));
    // More than may come unasked.
    let task = write(&mut session, conn, 11, 4096, true);
    let (verdict, received) = push(&mut session, conn, data_out(11, NO_TAG, 0, 0, 1025, true), true);
    let failed = WriteProgress::Failed(TransportFault::IncorrectAmount);
    assert_eq!((verdict, received), (Verdict::Ignore, Received::Write(task, failed)));
}

#[test]
fn commands_whose_data_may_not_be() {
    let check = |params: Params, flags: u8, expected_len: u32, len: u32| {
        let (mut session, conn) = session(params);
        let mut pdu = command(9, 100);
        pdu.flags = flags;
        pdu.expected_len.set(expected_len);
        pdu.data_len = U24::new(len);
        let verdict = session.request(conn, &Request::ScsiCommand(pdu), &[], 1);
        if let Verdict::Reject(reason) = verdict {
            assert!(ready(&mut session).is_empty());
            assert_eq!(session.exp_cmd_sn(), 100, "the number of a rejected command has not been received");
            return Some(reason);
        }
        None
    };
    let (write, read) = (FLAG_FINAL | FLAG_WRITE, FLAG_FINAL | FLAG_READ);
    let params = Params { first_burst: 1024, ..Params::default() };
    let protocol = Some(RejectReason::PROTOCOL_ERROR);
    let field = Some(RejectReason::INVALID_PDU_FIELD);
    assert_eq!(check(params, write, 4096, 1024), None);
    assert_eq!(check(params, write, 4096, 1025), protocol);
    assert_eq!(check(params, write, 512, 513), protocol);
    assert_eq!(check(Params { immediate_data: false, ..params }, write, 512, 512), protocol);
    assert_eq!(check(params, FLAG_WRITE, 512, 0), protocol, "data must be asked for");
    assert_eq!(check(Params { initial_r2t: false, ..params }, FLAG_WRITE, 512, 0), None);
    assert_eq!(check(params, read, 512, 4), field);
    assert_eq!(check(params, FLAG_READ, 512, 0), field);
    assert_eq!(check(params, write | FLAG_READ, 512, 0), None);
}

#[test]
fn data_in_and_responses_byte_by_byte() {
    let (mut session, conn) = session(Params { max_burst: 1024, initiator_max_data: 600, ..Params::default() });
    let mut pdu = command(9, 100);
    pdu.flags |= FLAG_READ;
    pdu.expected_len.set(2000);
    let task = accept(&mut session, conn, Request::ScsiCommand(pdu));
    let _ = ready(&mut session);
    let residual = Residual::of(2000, 1500);
    let seen: Vec<DataInPdu> = std::iter::from_fn(|| session.next_data_in(task, 1500, Some(residual))).collect();
    let places: Vec<(u32, u32, u8, bool)> =
        seen.iter().map(|pdu| (pdu.offset, pdu.len, pdu.header[1], pdu.ended)).collect();
    assert_eq!(places, [(0, 600, 0, false), (600, 424, 0x80, false), (1024, 476, 0x83, true)]);
    let mut expected = [0; BHS_LEN];
    expected[..8].copy_from_slice(&[0x25, 0x83, 0, 0, 0, 0, 1, 0xdc]);
    expected[19] = 9;
    expected[20..24].fill(0xff);
    // StatSN 500, ExpCmdSN 101; the slot is free again: MaxCmdSN 108.
    expected[24..36].copy_from_slice(&[0, 0, 1, 0xf4, 0, 0, 0, 101, 0, 0, 0, 108]);
    expected[36..48].copy_from_slice(&[0, 0, 0, 2, 0, 0, 4, 0, 0, 0, 1, 0xf4]);
    assert_eq!(seen[2].header, expected);

    let task = accept(&mut session, conn, Request::ScsiCommand(command(10, 101)));
    let _ = ready(&mut session);
    let header = session.respond(task, 2, 18, Residual::of(0, 7), Residual::of(10, 4)).unwrap();
    let mut expected = [0; BHS_LEN];
    expected[..8].copy_from_slice(&[0x21, 0x80 | 4 | 8, 0, 2, 0, 0, 0, 20]);
    expected[19] = 10;
    expected[24..36].copy_from_slice(&[0, 0, 1, 0xf5, 0, 0, 0, 102, 0, 0, 0, 109]);
    expected[43] = 6;
    expected[47] = 7;
    assert_eq!(header, expected);
    assert_eq!(Residual::of(0, u64::MAX), Residual::Overflow(u32::MAX));
    assert_eq!(Residual::of(5, 5), Residual::None);
}

#[test]
fn data_pdus_end_at_words_but_at_the_end_of_a_sequence() {
    let (mut session, conn) = session(Params { max_burst: 2001, initiator_max_data: 1003, ..Params::default() });
    let mut pdu = command(9, 100);
    pdu.expected_len.set(5000);
    let task = accept(&mut session, conn, Request::ScsiCommand(pdu));
    let _ = ready(&mut session);
    let lens: Vec<u32> = std::iter::from_fn(|| session.next_data_in(task, 3001, None)).map(|pdu| pdu.len).collect();
    assert_eq!(lens, [1000, 1000, 1, 1000]);
}
