//! Whatever comes, in whatever order: nothing panics, nothing leaks, and every request is accepted, rejected or ignored by rule.

use std::collections::BTreeSet;

use super::*;

struct Chaos {
    random: Random,
    session: Session,
    conns: Vec<ConnId>,
    /// Requests that were accepted and have not been handed out or taken back.
    active: BTreeSet<TaskId>,
    tags: Vec<u32>,
}

impl Chaos {
    fn new(seed: u64) -> Chaos {
        let mut random = Random(seed);
        let params = Params {
            initial_r2t: random.flip(),
            immediate_data: random.flip(),
            protocol_level: 2,
            first_burst: 2048,
            max_burst: 1024,
            max_outstanding_r2t: 1 + random.below(9) as u16,
            ..Params::default()
        };
        let (mut session, first) = session(params);
        let mut conns = vec![first];
        for cid in 1..3 {
            let login = Established { cid, ..established(params) };
            conns.push(session.add_connection(&login, 0).unwrap());
        }
        Chaos { random, session, conns, active: BTreeSet::new(), tags: vec![NO_TAG, 0, 1, 0x0005_0000] }
    }

    fn header(&mut self) -> Header {
        let random = &mut self.random;
        let mut header: Header = std::array::from_fn(|_| if random.below(4) == 0 { random.next() as u8 } else { 0 });
        header[0] =
            random.one_of(&[0, 1, 1, 1, 2, 4, 5, 5, 5, 6, 0x10, 3, 0x1f, 0x21]) | random.one_of(&[0, 0, 0, 0x40]);
        header[1] = match header[0] & OPCODE_MASK {
            1 => random.one_of(&[0xa0, 0x20, 0xc0, 0x80, 0xe0]),
            2 => 0x80 | random.below(14) as u8,
            6 => 0x80 | random.below(4) as u8,
            _ => random.one_of(&[0x80, 0]),
        };
        // Closing all connections soon ends the play.
        if header[0] & OPCODE_MASK == 6 && random.below(20) != 0 {
            header[0] = 0;
        }
        header[4] = 0;
        header[5..8].copy_from_slice(&(random.one_of(&[0, 0, 4, 512, 513, 3000]) as u32).to_be_bytes()[1..]);
        let mut put = |at: usize, value: u32| header[at..at + 4].copy_from_slice(&value.to_be_bytes());
        put(16, random.one_of(&[random.clone().below(24) as u32, random.clone().below(24) as u32, NO_TAG]));
        let near = self.session.exp_cmd_sn().wrapping_add(random.below(11) as u32).wrapping_sub(1);
        put(24, random.one_of(&[self.session.exp_cmd_sn(), near, random.clone().next() as u32]));
        if random.below(8) != 0 {
            put(20, random.one_of(&self.tags));
            put(32, near);
            put(36, random.below(3) as u32);
            put(40, random.one_of(&[0, 512, 1024, 2048]));
        }
        if header[0] & OPCODE_MASK == 1 {
            header[20..24].copy_from_slice(&random.one_of(&[0u32, 512, 4096, u32::MAX]).to_be_bytes());
        }
        header
    }

    fn receive(&mut self) {
        let header = self.header();
        let conn = self.random.one_of(&self.conns.clone());
        // As the decoder hands it out: what has no data has none.
        let mut bytes = Vec::new();
        let mut header = header;
        if matches!(header[0] & OPCODE_MASK, 2 | 6 | 0x10) {
            header[5..8].fill(0);
        }
        super::decode::put_pdu(
            &mut bytes,
            Framing::default(),
            &header,
            &[],
            &vec![0; Bhs::read(&header).data_len.get() as usize],
        );
        let mut decoder = super::decode::full(false, false);
        let Ok(Some(Event::Request(request))) = decoder.next(&mut &bytes[..]) else { panic!() };
        let verdict = self.session.request(conn, &request, &[], 1);
        if let Verdict::Reject(reason) = verdict {
            assert!(self.session.reject(conn, reason).is_some());
        }
        let received = self.session.data_end(conn, self.random.below(16) != 0);
        match received {
            // Only commands whose own data is at fault.
            Received::RejectRequest { .. } => assert!(matches!(verdict, Verdict::Accept(_))),
            Received::RejectData { .. } => assert!(matches!(verdict, Verdict::Place { .. })),
            Received::Nothing | Received::Command | Received::Write(..) => {}
        }
        self.take_ready();
    }

    fn take_ready(&mut self) {
        while let Some(ready) = self.session.next_ready() {
            let (Ready::Scsi(task) | Ready::Nop(task) | Ready::Text(task) | Ready::Task(task) | Ready::Logout(task)) =
                ready;
            assert!(self.active.insert(task));
            match ready {
                Ready::Task(task) => {
                    let work = self.session.task_management(task, |_| true).unwrap();
                    let outcome = if let TaskWork::Answer(outcome) = work { outcome } else { TaskOutcome::COMPLETE };
                    self.session.task_done(task, outcome);
                }
                Ready::Logout(task) => {
                    let _ = self.session.logout(task);
                }
                _ => {}
            }
        }
        assert!(self.active.len() <= usize::from(LIMITS.window + LIMITS.immediate));
    }

    fn serve(&mut self) {
        let Some(&task) = self.active.iter().nth(self.random.below(self.active.len().max(1))) else { return };
        let kind = self.session.header(task).map(|header| Opcode(header[0] & OPCODE_MASK));
        match kind.expect("an active task is there until it is ended") {
            Opcode::SCSI_COMMAND => {
                if self.random.flip() {
                    let wanted = self.random.one_of(&[0, 512, 5000]);
                    let _ = self.session.data_wanted(task, wanted);
                    if let Some((header, ..)) = self.session.next_r2t(task, 4096) {
                        self.tags.push(R2t::read(&header).ttt.get());
                    }
                    return;
                }
                while let Some(pdu) = self.session.next_data_in(task, 3000, Some(Residual::None)) {
                    if pdu.ended {
                        self.active.remove(&task);
                        return;
                    }
                }
                let _ = self.session.respond(task, 0, 0, Residual::None, Residual::None);
            }
            Opcode::NOP_OUT => drop(self.session.nop_response(task)),
            Opcode::TEXT_REQUEST => drop(self.session.reject_task(task, RejectReason::PROTOCOL_ERROR)),
            Opcode::TASK_REQUEST => {
                let waits = self.session.affected(task).count() != 0;
                let aborted = self.session.is_aborted(task);
                let answered = self.session.task_response(task, [0; 3]).is_some();
                assert!(!(waits && answered));
                while self.session.next_ping(1).is_some() {}
                if !answered && (!aborted || waits) {
                    return;
                }
            }
            _ => {
                if self.session.affected(task).count() != 0 {
                    return;
                }
                let _ = self.session.logout_response(task, LogoutOutcome::SUCCESS);
            }
        }
        self.active.remove(&task);
        assert!(self.session.header(task).is_none(), "it has ended");
    }

    /// Ends everything, and finds every place free again.
    fn finish(mut self) {
        for conn in self.conns.clone() {
            self.session.close_connection(conn);
        }
        for task in std::mem::take(&mut self.active) {
            self.session.end(task);
        }
        for conn in self.conns.clone() {
            assert!(self.session.remove_connection(conn), "a task was forgotten");
        }
        let conn = self.session.add_connection(&established(Params::default()), 0).unwrap();
        assert_eq!(self.session.next_ready(), None);
        let exp = self.session.exp_cmd_sn();
        assert_eq!(self.session.max_cmd_sn(), exp.wrapping_add(7), "the window is whole");
        for i in 0..u32::from(LIMITS.immediate) {
            let mut pdu = NopOut::new_zeroed();
            pdu.opcode = OPCODE_IMMEDIATE;
            pdu.itt.set(1000 + i);
            pdu.ttt.set(NO_TAG);
            accept(&mut self.session, conn, Request::NopOut(pdu));
        }
        for i in 0..u32::from(LIMITS.window) {
            let verdict = send(&mut self.session, conn, Request::ScsiCommand(command(i, exp.wrapping_add(i))));
            // Numbers of commands that never had their turn count as received.
            assert!(matches!(verdict, Verdict::Accept(_) | Verdict::Ignore));
        }
    }
}

#[test]
fn requests_in_any_order() {
    for seed in 0..400 {
        let mut chaos = Chaos::new(seed);
        for _ in 0..400 {
            match chaos.random.below(100) {
                0..60 => chaos.receive(),
                60..98 => chaos.serve(),
                98 => {
                    if let Some(&task) = chaos.active.iter().next() {
                        chaos.session.abort(task);
                    }
                }
                _ => {
                    let now = chaos.random.next();
                    let _ = chaos.session.alive(chaos.conns[0], now);
                }
            }
        }
        chaos.finish();
    }
}

#[test]
fn names_of_nothing_do_nothing() {
    let (mut session, conn) = session(Params::default());
    let task = accept(&mut session, conn, Request::ScsiCommand(command(1, 100)));
    let _ = ready(&mut session);
    session.end(task);
    assert_eq!(session.respond(task, 0, 0, Residual::None, Residual::None), None);
    assert_eq!(session.next_data_in(task, 10, None), None);
    assert_eq!(session.next_r2t(task, 10), None);
    assert_eq!((session.nop_response(task), session.header(task), session.write_progress(task)), (None, None, None));
    assert_eq!((session.task_management(task, |_| true), session.logout(task)), (None, None));
    assert!(session.is_aborted(task) && !session.is_arriving(task));
    session.end(task);
    session.abort(task);
    session.task_done(task, TaskOutcome::COMPLETE);
    assert_eq!(session.max_cmd_sn(), 108);
    session.close_connection(conn);
    assert!(session.remove_connection(conn) && session.remove_connection(conn));
    assert_eq!(session.reject(conn, RejectReason::PROTOCOL_ERROR), None);
    assert_eq!(session.notice(conn, &Notice::RequestLogout(1)), None);
}
