//! What must hold for any bytes from an iSCSI initiator: the decoder of PDUs, the login, the session. As in `checks`: each says whether the
//! input was accepted, and none may panic.

use std::collections::BTreeSet;

use reactor::iscsi::{
    AHS_MAX, Admitted, AllowedInitiators, BHS_LEN, Bhs, Book, CHAP_ENTROPY, ChapConfig, ConnId, Credentials, Decoder,
    Established, Event, Framing, Keepalive, Limits, Login, LoginRequest, LogoutOutcome, NO_TAG, Nexus, OPCODE_MASK,
    Offer, Opcode, PREFIX_MAX, Params, Portal, R2t, Ready, Received, RejectReason, Request, Residual, SUFFIX_MAX,
    Secret, Session, SessionKind, SessionLimits, Step, TargetConfig, TaskId, TaskOutcome, TaskWork, TextExchange,
    TextRequest, Verdict,
};
use reactor::iscsi::{Asker, DataDigest, TEXT_MAX};
use zerocopy::FromZeros;

/// The first bytes of the input of [`decoder`], which say how the rest is received.
pub const STREAM_HEAD: usize = 3;
/// Bytes of a step of [`session`]: what is done, the header of a request, and what its data is like.
pub const SESSION_STEP: usize = 2 + BHS_LEN;
/// The first bytes of the input of [`session`]: what was agreed.
pub const SESSION_HEAD: usize = 1;
/// Bytes before the text of a step of [`login`]: flags, TSIH and CID, length.
pub const LOGIN_STEP: usize = 6;

const DATA_MAX: u32 = 65_536;
const TARGET: &str = "iqn.2026-11.io.reactor:vol0";
const GUARDED: &str = "iqn.2026-11.io.reactor:vol1";
const LIMITS: SessionLimits = SessionLimits { window: 8, immediate: 2, connections: 3 };
/// The number that begins a session.
const CMD_SN: u32 = u32::MAX - 20;
/// The last byte of the transcript of a stream that broke.
const BROKEN: u8 = 0xbb;

/// Appends a PDU as an initiator sends it.
pub fn put(out: &mut Vec<u8>, framing: Framing, header: &[u8; BHS_LEN], data: &[u8]) {
    let mut header = *header;
    header[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
    let (mut prefix, mut suffix) = ([0; PREFIX_MAX], [0; SUFFIX_MAX]);
    let len = framing.prefix(&header, &mut prefix);
    out.extend_from_slice(&prefix[..len]);
    out.extend_from_slice(data);
    if !data.is_empty() {
        let mut digest = DataDigest::new();
        digest.update(data);
        let len = framing.suffix(data.len() as u32, digest, &mut suffix);
        out.extend_from_slice(&suffix[..len]);
    }
}

/// The decoder of PDUs: bits of the first byte are the digests, and whether the login is complete; two bytes choose the cuts.
pub fn decoder(input: &[u8]) -> bool {
    let Some((head, bytes)) = input.split_at_checked(STREAM_HEAD) else { return false };
    let bit = |n: u8| head[0] & 1 << n != 0;
    let mut decoder = Decoder::new();
    if bit(2) {
        decoder.set_full_feature(bit(0), bit(1), Limits { data: DATA_MAX, ahs: AHS_MAX as u16 });
    }
    let whole = transcript(decoder.clone(), bytes, usize::MAX, 0);
    let step = usize::from(head[1] % 61) + 1;
    let pieces = transcript(decoder, bytes, step, usize::from(head[2]));
    assert!(whole == pieces, "in pieces of {step} the stream says something else");
    whole.last() != Some(&BROKEN)
}

/// What a decoder says of a stream: headers, data, the end.
fn transcript(mut decoder: Decoder, bytes: &[u8], step: usize, first: usize) -> Vec<u8> {
    let mut said = Vec::with_capacity(2 * bytes.len() + 64);
    let (mut rest, mut calls) = (bytes, 0);
    let mut len = first.min(rest.len());
    loop {
        let (mut piece, tail) = rest.split_at(len);
        rest = tail;
        len = step.min(rest.len());
        loop {
            calls += 1;
            let (before, remaining) = (piece.len(), decoder.data_remaining());
            match decoder.next(&mut piece) {
                Ok(Some(event)) => {
                    assert!(piece.len() < before || matches!(event, Event::DataEnd { .. }), "no progress");
                    match event {
                        Event::Request(request) => {
                            let header = request.header();
                            assert!(Bhs::read(&header).data_len.get() <= DATA_MAX);
                            said.push(1);
                            said.extend_from_slice(&header);
                            let ahs = decoder.ahs();
                            assert!(ahs.len() <= AHS_MAX && ahs.len() == usize::from(header[4]) * 4);
                            said.extend_from_slice(ahs);
                        }
                        Event::Data(data) => {
                            assert!(!data.is_empty() && data.len() <= remaining, "data beyond its PDU");
                            said.extend_from_slice(data);
                        }
                        Event::DataEnd { digest_ok } => said.extend_from_slice(&[2, u8::from(digest_ok)]),
                    }
                }
                Ok(None) => {
                    assert!(piece.is_empty(), "bytes are left");
                    break;
                }
                Err(error) => {
                    assert_eq!(decoder.next(&mut &bytes[..]), Err(error), "a broken stream stays broken");
                    said.extend_from_slice(format!("{error:?}").as_bytes());
                    said.push(BROKEN);
                    return said;
                }
            }
        }
        if rest.is_empty() {
            break;
        }
    }
    assert!(calls <= 3 * bytes.len() + 4, "{calls} calls for {} bytes", bytes.len());
    said.push(u8::from(decoder.at_boundary()));
    said
}

/// Two targets, one of which asks for CHAP.
pub fn book() -> Book {
    let target = |name: &str, chap| TargetConfig {
        name: name.to_owned(),
        alias: None,
        portals: vec![Portal {
            listener: 1,
            tpgt: 1,
            advertise: Some("192.0.2.1:3260".to_owned()),
            loopback: None,
            redirect: None,
        }],
        initiators: AllowedInitiators::Any,
        chap,
        offer: Offer::default(),
    };
    let secret = Secret::new(b"a secret of 24 bytes....".to_vec()).unwrap();
    let chap = ChapConfig::new(Credentials::new("alice".to_owned(), secret).unwrap(), None).unwrap();
    Book::new(vec![target(TARGET, None), target(GUARDED, Some(chap))], None).unwrap()
}

/// A step of [`login`].
pub fn login_step(flags: u8, tsih: u16, cid: u8, pairs: &[&str]) -> Vec<u8> {
    let text: Vec<u8> = pairs.iter().flat_map(|pair| pair.bytes().chain([0])).collect();
    let len = (text.len() as u16).to_le_bytes();
    [&[flags][..], &tsih.to_le_bytes(), &[cid], &len, &text].concat()
}

/// A login, request by request. It is accepted if it comes to its end.
pub fn login(book: &Book, input: &[u8]) -> bool {
    let mut login = Login::new(1, &[0x5a; CHAP_ENTROPY]);
    let mut rest = input;
    let mut stat_sn = None;
    while let Some((head, tail)) = rest.split_first_chunk::<LOGIN_STEP>() {
        let len = usize::from(u16::from_le_bytes([head[4], head[5]])).min(tail.len()).min(8192);
        let (text, next) = tail.split_at(len);
        rest = next;
        let mut request = LoginRequest::new_zeroed();
        (request.opcode, request.flags) = (Opcode::LOGIN_REQUEST.0 | 0x40, head[0]);
        request.data_len = reactor::iscsi::U24::new(len as u32);
        request.tsih.set(u16::from_le_bytes([head[1], head[2]]));
        request.cid.set(head[3].into());
        request.cmd_sn.set(CMD_SN);
        let reply = match login.request(book, &request, text) {
            Step::Reply(reply) => reply,
            Step::Refuse { reply, .. } => {
                assert!(reply.text.is_empty() || reply.text.last() == Some(&0));
                return false;
            }
            Step::Admit(claim) => {
                assert!(!claim.nexus.initiator.is_empty() && claim.max_connections > 0);
                assert_ne!(claim.nexus.target.as_deref(), Some(GUARDED), "nobody here knows its secret");
                let admitted = Admitted { tsih: 7, joined: None, window: LIMITS.window };
                if let Some((reply, established)) = login.admitted(&admitted) {
                    check_reply(&reply.text);
                    check_params(&established.params);
                    assert_eq!((established.tsih, established.cmd_sn), (7, CMD_SN));
                }
                return true;
            }
        };
        check_reply(&reply.text);
        let number = reactor::iscsi::LoginResponse::read(&reply.header).stat_sn.get();
        assert!(stat_sn.replace(number).is_none_or(|before: u32| before.wrapping_add(1) == number));
    }
    false
}

fn check_reply(text: &[u8]) {
    assert!(text.len() <= TEXT_MAX.max(8192));
    assert!(text.is_empty() || text.last() == Some(&0), "a pair without an end");
    for pair in text.split(|byte| *byte == 0).filter(|pair| !pair.is_empty()) {
        assert!(pair.contains(&b'='), "{}", String::from_utf8_lossy(pair));
    }
}

fn check_params(params: &Params) {
    let offer = Offer::default();
    assert!((512..1 << 24).contains(&params.initiator_max_data));
    assert!(params.max_burst >= 512 && params.max_burst <= offer.max_burst);
    assert!(params.first_burst >= 512 && params.first_burst <= offer.first_burst);
    assert!((1..=offer.max_outstanding_r2t).contains(&params.max_outstanding_r2t));
    assert!((1..=offer.max_connections).contains(&params.max_connections));
}

fn established(params: Params, cid: u16) -> Established {
    let (initiator, target) = ("iqn.2026-11.io.host:a".to_owned(), Some(TARGET.to_owned()));
    let nexus = Nexus { initiator: initiator.clone(), isid: [1; 6], target, tpgt: 1 };
    let (kind, tsih, cmd_sn, stat_sn) = (SessionKind::Normal, 1, CMD_SN, u32::MAX - 3);
    Established { kind, nexus, initiator, tsih, cid, params, cmd_sn, stat_sn }
}

/// A session with what a door does beside it.
struct Rig {
    book: Book,
    exchange: TextExchange,
    session: Session,
    conns: Vec<ConnId>,
    active: BTreeSet<TaskId>,
    /// Commands that have begun.
    begun: u64,
}

/// A session of three connections: what a step does is in its first byte, a request with its header, or something that the door does.
pub fn session(input: &[u8]) -> bool {
    let Some((&[mode], steps)) = input.split_first_chunk::<SESSION_HEAD>() else { return false };
    let params = Params {
        initial_r2t: mode & 1 != 0,
        immediate_data: mode & 2 == 0,
        protocol_level: 1 + (mode >> 2 & 1),
        first_burst: 2048,
        max_burst: 1024,
        max_outstanding_r2t: 1 + u16::from(mode >> 3 & 7),
        ..Params::default()
    };
    let keepalive = Keepalive { interval_ns: 1000, timeout_ns: 100 };
    let (mut session, first) = Session::new(&established(params, 0), LIMITS, keepalive, 0);
    let mut conns = vec![first];
    for cid in 1..LIMITS.connections {
        conns.push(session.add_connection(&established(params, cid), 0).unwrap());
    }
    let (book, exchange, active) = (book(), TextExchange::default(), BTreeSet::new());
    let mut rig = Rig { book, exchange, session, conns, active, begun: 0 };
    for step in steps.chunks_exact(SESSION_STEP) {
        rig.step(step[0], step[1], step[2..].first_chunk().expect("a step has a header"));
    }
    rig.finish()
}

impl Rig {
    fn step(&mut self, what: u8, data: u8, header: &[u8; BHS_LEN]) {
        match what {
            0..192 => self.receive(usize::from(what % 3), data, header),
            192..252 => {
                let count = self.active.len().max(1);
                let task = self.active.iter().nth(usize::from(what) % count).copied();
                task.into_iter().for_each(|task| self.serve(task, data));
            }
            252 => {
                let task = self.active.iter().next().copied();
                task.into_iter().for_each(|task| self.session.abort(task));
            }
            253 => drop(self.session.alive(self.conns[usize::from(data % 3)], u64::from(data) * 50)),
            _ => while self.session.next_ping(u64::from(data)).is_some() {},
        }
    }

    /// A request as the decoder hands it out; its CmdSN and those that it refers to are counted from the next one on.
    fn receive(&mut self, conn: usize, data: u8, header: &[u8; BHS_LEN]) {
        let mut header = *header;
        header[4] = 0;
        let code = Opcode(header[0] & OPCODE_MASK);
        let counted: &[usize] = if code == Opcode::TASK_REQUEST { &[24, 32] } else { &[24] };
        if !matches!(code, Opcode::DATA_OUT | Opcode::SNACK) {
            for at in counted.iter().copied() {
                let offset = u32::from_be_bytes(*header[at..].first_chunk().expect("a field"));
                let number = self.session.exp_cmd_sn().wrapping_add(offset);
                header[at..at + 4].copy_from_slice(&number.to_be_bytes());
            }
        }
        let len = Bhs::read(&header).data_len.get() % (DATA_MAX + 1);
        let has_none = matches!(code, Opcode::TASK_REQUEST | Opcode::LOGOUT_REQUEST | Opcode::SNACK);
        let len = if has_none { 0 } else { len };
        let mut bytes = Vec::new();
        put(&mut bytes, Framing::default(), &header, &vec![0; len as usize]);
        let mut decoder = Decoder::new();
        decoder.set_full_feature(false, false, Limits { data: DATA_MAX, ahs: AHS_MAX as u16 });
        let Ok(Some(Event::Request(request))) = decoder.next(&mut &bytes[..]) else { return };
        let conn = self.conns[conn];
        let verdict = self.session.request(conn, &request, &[], 1);
        let is_open = self.session.params(conn).is_some();
        if let Verdict::Reject(reason) = verdict {
            assert_eq!(self.session.reject(conn, reason).is_some(), is_open);
        }
        let expected = match (&request, verdict) {
            (Request::DataOut(pdu), Verdict::Place { task, offset }) => {
                let total = self.session.command(task).map_or(0, |(command, _)| command.expected_len.get());
                assert_eq!(offset, pdu.buffer_offset.get());
                Some((offset, total))
            }
            _ => None,
        };
        assert!(
            expected.is_none_or(|(at, total)| u64::from(at) + u64::from(len) <= total.into()),
            "beyond the command"
        );
        match self.session.data_end(conn, data % 16 != 15) {
            Received::RejectRequest { .. } => assert!(matches!(verdict, Verdict::Accept(_))),
            Received::RejectData { .. } => assert!(matches!(verdict, Verdict::Place { .. })),
            Received::Nothing | Received::Command | Received::Write(..) => {}
        }
        self.take_ready();
    }

    fn take_ready(&mut self) {
        while let Some(ready) = self.session.next_ready() {
            assert!(self.active.insert(ready.task()), "a task has begun twice");
            self.begun += 1;
            match ready {
                Ready::Task(task) => {
                    let work = self.session.task_management(task, |_| true).expect("it is there");
                    let answer = if let TaskWork::Answer(outcome) = work { outcome } else { TaskOutcome::COMPLETE };
                    self.session.task_done(task, answer);
                }
                Ready::Logout(task) => drop(self.session.logout(task)),
                Ready::Scsi(_) | Ready::Nop(_) | Ready::Text(_) => {}
            }
        }
        assert!(self.active.len() <= usize::from(LIMITS.window + LIMITS.immediate));
    }

    /// Goes on with a task.
    fn serve(&mut self, task: TaskId, data: u8) {
        let header = *self.session.header(task).expect("an active task is there until it is ended");
        match Opcode(header[0] & OPCODE_MASK) {
            Opcode::SCSI_COMMAND if data & 1 == 0 => {
                let _ = self.session.data_wanted(task, [0, 512, 5000, u32::MAX][usize::from(data >> 1 & 3)]);
                let total = self.session.command(task).map_or(0, |(command, _)| command.expected_len.get());
                if let Some((header, offset, len)) = self.session.next_r2t(task, 4096) {
                    let r2t = R2t::read(&header);
                    assert!(len > 0 && len <= 1024 && u64::from(offset) + u64::from(len) <= total.into());
                    assert_eq!((r2t.buffer_offset.get(), r2t.desired_len.get()), (offset, len));
                    assert_ne!(r2t.ttt.get(), NO_TAG);
                }
                return;
            }
            Opcode::SCSI_COMMAND => {
                let mut at = 0;
                while let Some(pdu) = self.session.next_data_in(task, 3000, Some(Residual::None)) {
                    assert!(pdu.offset == at && pdu.len > 0 && pdu.offset + pdu.len <= 3000);
                    at += pdu.len;
                    if pdu.ended {
                        break;
                    }
                }
                let _ = self.session.respond(task, 0, 0, Residual::None, Residual::None);
            }
            Opcode::NOP_OUT => drop(self.session.nop_response(task)),
            Opcode::TEXT_REQUEST => self.text(task, &TextRequest::read(&header)),
            Opcode::TASK_REQUEST => {
                let waits = self.session.affected(task).count() != 0;
                let answered = self.session.task_response(task, [0; 3]).is_some();
                assert!(!(waits && answered), "answered before the tasks have ended that it is about");
            }
            _ => {
                let waits = self.session.affected(task).count() != 0;
                let answered = self.session.logout_response(task, LogoutOutcome::SUCCESS).is_some();
                assert!(!(waits && answered), "answered before the tasks of the connection have ended");
            }
        }
        if self.session.header(task).is_none() {
            self.active.remove(&task);
        }
    }

    fn text(&mut self, task: TaskId, request: &TextRequest) {
        let conn = self.session.connection_of(task);
        let mut params = conn.and_then(|conn| self.session.params(conn).copied()).unwrap_or_default();
        let (kind, initiator) = (SessionKind::Normal, "iqn.2026-11.io.host:a");
        let asker = Asker { kind, initiator, target: Some(TARGET), listener: 1, local: "127.0.0.1:3260" };
        match self.exchange.request(&self.book, &asker, &mut params, request, b"SendTargets=\0") {
            Ok(reply) => {
                check_reply(&reply.text);
                let _ = self.session.text_response(task, &reply);
            }
            Err(_) => drop(self.session.reject_task(task, RejectReason::PROTOCOL_ERROR)),
        }
    }

    /// Ends everything; every place is free again then. Whether any command has begun.
    fn finish(mut self) -> bool {
        self.conns.iter().for_each(|conn| self.session.close_connection(*conn));
        std::mem::take(&mut self.active).into_iter().for_each(|task| self.session.end(task));
        for conn in &self.conns {
            assert!(self.session.remove_connection(*conn), "a task was forgotten");
        }
        assert_eq!(self.session.next_ready(), None);
        assert!(self.session.add_connection(&established(Params::default(), 0), 0).is_some());
        let window = self.session.max_cmd_sn().wrapping_sub(self.session.exp_cmd_sn()).wrapping_add(1);
        assert_eq!(window, u32::from(LIMITS.window), "the window is whole");
        self.begun > 0
    }
}
