//! The full feature phase: commands with their data, task management, text, NOPs and logout over one or more connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use reactor::sys::tsc::monotonic_ns;

use super::cdb::{Cdb, status};
use super::login::{Login, Offer, Options, Params, Refusal, all_pairs, text};
use super::pdu::{NO_TAG, Pdu, flag, op};
use super::wire::{Got, PATIENCE, Wire};

/// Functions of task management (RFC 7143 §11.5.1, RFC 7144 §6.3).
pub mod function {
    pub const ABORT_TASK: u8 = 1;
    pub const ABORT_TASK_SET: u8 = 2;
    pub const CLEAR_TASK_SET: u8 = 4;
    pub const LUN_RESET: u8 = 5;
    pub const WARM_RESET: u8 = 6;
    pub const COLD_RESET: u8 = 7;
    pub const QUERY_TASK: u8 = 9;
    pub const QUERY_TASK_SET: u8 = 10;
    pub const NEXUS_RESET: u8 = 11;
    pub const QUERY_EVENT: u8 = 12;
}

/// Their answers (RFC 7143 §11.6.1, RFC 7144 §6.4).
pub mod managed {
    pub const COMPLETE: u8 = 0;
    pub const NO_TASK: u8 = 1;
    pub const NO_LUN: u8 = 2;
    pub const NOT_SUPPORTED: u8 = 5;
    pub const SUCCEEDED: u8 = 7;
    pub const REJECTED: u8 = 255;
}

/// Events of an Asynchronous Message (RFC 7143 §11.9.1).
pub mod event {
    pub const LOGOUT_REQUEST: u8 = 1;
    /// All connections of the session are about to be closed.
    pub const DROP_SESSION: u8 = 3;
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u8,
    pub sense: Vec<u8>,
    /// What it read.
    pub data: Vec<u8>,
    /// Bytes that the target would have moved beyond what was expected, or (negative) that it moved less.
    pub residual: i64,
    /// Whether the last Data-In brought the status.
    pub collapsed: bool,
}

impl Answer {
    /// Sense key, additional code and qualifier of fixed or descriptor format (SPC-4 §4.5).
    pub fn sense(&self) -> (u8, u16) {
        match self.sense.first().map(|byte| byte & 0x7f) {
            Some(0x70 | 0x71) => (self.sense[2] & 0xf, u16::from_be_bytes([self.sense[12], self.sense[13]])),
            Some(0x72 | 0x73) => (self.sense[1] & 0xf, u16::from_be_bytes([self.sense[2], self.sense[3]])),
            _ => panic!("no sense data in {self:?}"),
        }
    }

    /// It has to have succeeded; what it read.
    pub fn good(self) -> Vec<u8> {
        assert_eq!((self.status, self.residual), (status::GOOD, 0), "sense {:02x?}", self.sense);
        self.data
    }
}

/// Between looks at several connections.
const LOOK: Duration = Duration::from_micros(20);

/// A command in flight.
#[derive(Default)]
struct Task {
    conn: usize,
    lun: u16,
    out: Vec<u8>,
    expected: usize,
    data: Vec<u8>,
    data_sn: u32,
    r2t_sn: u32,
    /// Bytes of the Data-In sequence that is open.
    burst: usize,
    /// The end of what was sent unasked or asked for: R2Ts come in order.
    asked: usize,
    /// R2Ts that were not answered yet: tag, offset, length.
    held: Vec<(u32, usize, usize)>,
}

/// A connection of the session.
pub struct Conn {
    pub wire: Wire,
    pub params: Params,
    pub cid: u16,
    /// The next StatSN.
    pub stat_sn: u32,
    /// How it ended.
    pub over: Option<Got>,
}

/// A session and all that is in flight.
pub struct Session {
    pub conns: Vec<Conn>,
    pub tsih: u16,
    pub cmd_sn: u32,
    /// ExpCmdSN and MaxCmdSN.
    pub window: (u32, u32),
    tag: u32,
    tasks: BTreeMap<u32, Task>,
    answers: BTreeMap<u32, Answer>,
    replies: BTreeMap<u32, Pdu>,
    /// Asynchronous Messages, Rejects.
    pub events: Vec<Pdu>,
    /// R2Ts are answered once the target is silent for so long; at once without it.
    pub hold: Option<Duration>,
    /// The most R2Ts of a task that waited for data at once.
    pub most_r2ts: usize,
    /// How much of the data goes in the command, at most.
    pub immediate_most: usize,
    /// Data goes with PDUs in between that have none (RFC 7143 §11.7).
    pub empties: bool,
    /// Pings of the target that were answered.
    pub pings: usize,
    options: Options,
}

/// Whether one serial number is after another (RFC 1982, as RFC 7143 §4.2.2.1 asks).
fn after(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) > 0
}

impl Session {
    /// A session with one connection.
    pub fn login(address: SocketAddr, options: &Options) -> Result<Session, Refusal> {
        let mut login = Login::new(address, options);
        let params = login.run(options)?;
        Ok(Session::begin(login, params, options))
    }

    /// As [`Session::login`], which has to succeed.
    pub fn open(address: SocketAddr, options: &Options) -> Session {
        Session::login(address, options).unwrap_or_else(|status| panic!("refused: {status:#06x} for {options:?}"))
    }

    /// After a login.
    pub fn begin(login: Login, params: Params, options: &Options) -> Session {
        Session {
            tsih: login.tsih,
            cmd_sn: login.cmd_sn,
            window: login.window,
            tag: 1,
            conns: vec![Conn::after(login, params)],
            tasks: BTreeMap::new(),
            answers: BTreeMap::new(),
            replies: BTreeMap::new(),
            events: Vec::new(),
            hold: None,
            most_r2ts: 0,
            immediate_most: usize::MAX,
            empties: false,
            pings: 0,
            options: options.clone(),
        }
    }

    /// One more connection.
    pub fn join(&mut self, address: SocketAddr, cid: u16) -> Result<(), Refusal> {
        let mut options = self.options.clone();
        (options.tsih, options.cid) = (self.tsih, cid);
        // The others hold for the session, and are for its first connection alone (RFC 7143 §13).
        let Offer { header_digest, data_digest, max_recv, .. } = options.offer;
        options.offer = Offer { header_digest, data_digest, max_recv, ..Offer::PLAIN };
        let mut login = Login::new(address, &options);
        login.cmd_sn = self.cmd_sn;
        let own = login.run(&options)?;
        let Params { header_digest, data_digest, max_send, max_recv, .. } = own;
        let params = Params { header_digest, data_digest, max_send, max_recv, ..self.conns[0].params.clone() };
        self.conns.push(Conn::after(login, params));
        Ok(())
    }

    pub fn params(&self) -> &Params {
        &self.conns[0].params
    }

    fn next_tag(&mut self) -> u32 {
        self.tag += 1;
        self.tag
    }

    /// Fills in what every request has, and sends it. Only after the window is open, if it counts in it.
    fn send(&mut self, conn: usize, mut pdu: Pdu) {
        let immediate = pdu.bhs[0] & op::IMMEDIATE != 0;
        while !immediate && after(self.cmd_sn, self.window.1) {
            assert!(self.serve(conn, PATIENCE), "the command window stays closed: {:?}", self.window);
        }
        pdu.set(24, self.cmd_sn);
        pdu.set(28, self.conns[conn].stat_sn);
        if !immediate {
            self.cmd_sn = self.cmd_sn.wrapping_add(1);
        }
        self.conns[conn].wire.send(&pdu);
    }

    /// Begins a command that sends `out` and expects `expected` bytes. Its tag.
    pub fn start(&mut self, conn: usize, lun: u16, cdb: &Cdb, out: &[u8], expected: usize) -> u32 {
        self.start_with(conn, lun, cdb, out, expected, 1)
    }

    /// As [`Session::start`], with a task attribute (RFC 7143 §11.3.1): 1 simple, 2 ordered, 3 head of queue.
    pub fn start_with(&mut self, conn: usize, lun: u16, cdb: &Cdb, out: &[u8], expected: usize, attribute: u8) -> u32 {
        self.launch((conn, op::COMMAND), lun, cdb, out, expected, attribute)
    }

    /// As [`Session::start`], for immediate delivery: it has no number of its own and does not wait for the window.
    pub fn start_immediate(&mut self, conn: usize, lun: u16, cdb: &Cdb, out: &[u8], expected: usize) -> u32 {
        self.launch((conn, op::COMMAND | op::IMMEDIATE), lun, cdb, out, expected, 1)
    }

    fn launch(
        &mut self,
        (conn, opcode): (usize, u8),
        lun: u16,
        cdb: &Cdb,
        out: &[u8],
        expected: usize,
        attribute: u8,
    ) -> u32 {
        let params = self.conns[conn].params.clone();
        let tag = self.next_tag();
        let len = out.len().max(expected);
        let first = out.len().min(params.first_burst);
        let immediate = if params.immediate_data { first.min(params.max_send).min(self.immediate_most) } else { 0 };
        let unasked = if params.initial_r2t { immediate } else { first };
        let mut flags = attribute;
        flags |= if expected > 0 { flag::READ } else { 0 };
        flags |= if out.is_empty() { 0 } else { flag::WRITE };
        flags |= if unasked == immediate { flag::FINAL } else { 0 };
        let mut pdu = Pdu::new(opcode, flags).with_lun(lun).with(16, tag).with(20, len as u32);
        pdu.bhs[32..].copy_from_slice(cdb);
        pdu.data = out[..immediate].to_vec();
        let task = Task { conn, lun, out: out.to_vec(), expected, asked: unasked, ..Task::default() };
        self.tasks.insert(tag, task);
        self.send(conn, pdu);
        if unasked > immediate {
            self.data_out(tag, NO_TAG, immediate, unasked - immediate);
        }
        tag
    }

    /// A sequence of Data-Out.
    fn data_out(&mut self, tag: u32, target_tag: u32, offset: usize, len: usize) {
        let task = &self.tasks[&tag];
        let conn = &self.conns[task.conn];
        let end = offset + len;
        let whole = (offset..end).step_by(conn.params.max_send).map(|at| (at, (at + conn.params.max_send).min(end)));
        let mut parts: Vec<(usize, usize)> =
            whole.flat_map(|(at, next)| [self.empties.then_some((at, at)), Some((at, next))]).flatten().collect();
        if self.empties && target_tag == NO_TAG {
            parts.push((end, end));
        }
        let last = parts.len() - 1;
        for (number, (at, next)) in parts.into_iter().enumerate() {
            let flags = if number == last { flag::FINAL } else { 0 };
            let pdu = Pdu::new(op::DATA_OUT, flags).with_lun(task.lun).with(16, tag).with(20, target_tag);
            let pdu = pdu.with(28, conn.stat_sn).with(36, number as u32).with(40, at as u32);
            conn.wire.send(&pdu.with_data(&task.out[at..next]));
        }
    }

    /// Sends the data that R2Ts have asked for and that was held back ([`Session::hold`]).
    pub fn answer_r2ts(&mut self, tag: u32) {
        let held = std::mem::take(&mut self.tasks.get_mut(&tag).unwrap().held);
        self.most_r2ts = self.most_r2ts.max(held.len());
        for (target_tag, offset, len) in held {
            self.data_out(tag, target_tag, offset, len);
        }
    }

    /// Waits for the answer to a command.
    pub fn wait(&mut self, tag: u32) -> Answer {
        self.wait_or_end(tag).unwrap_or_else(|| panic!("the connection ended before the answer"))
    }

    /// The answer to a command, or none when its connection ended first.
    pub fn wait_or_end(&mut self, tag: u32) -> Option<Answer> {
        loop {
            if let Some(answer) = self.answers.remove(&tag) {
                return Some(answer);
            }
            let task = self.tasks.get(&tag).expect("a task in flight");
            let conn = task.conn;
            let waits = !task.held.is_empty();
            let limit = if waits { self.hold.unwrap_or(Duration::ZERO) } else { PATIENCE };
            if self.serve(conn, limit.max(Duration::from_millis(1))) {
                continue;
            }
            if self.conns[conn].over.is_some() {
                return None;
            }
            assert!(waits, "no answer to task {tag:#x}");
            self.answer_r2ts(tag);
        }
    }

    /// A whole command.
    pub fn command(&mut self, lun: u16, cdb: &Cdb, out: &[u8], expected: usize) -> Answer {
        let tag = self.start(0, lun, cdb, out, expected);
        self.wait(tag)
    }

    /// Whether a command that began has no answer yet, after a look at what has come within `limit`.
    pub fn is_waiting(&mut self, tag: u32, limit: Duration) -> bool {
        while !self.answers.contains_key(&tag) && self.turn(self.tasks[&tag].conn, limit) {}
        !self.answers.contains_key(&tag)
    }

    /// Unit attentions are taken until there are none; their additional codes.
    pub fn settle(&mut self, lun: u16) -> Vec<u16> {
        let mut codes = Vec::new();
        loop {
            let answer = self.command(lun, &super::cdb::test_unit_ready(), &[], 0);
            if answer.status == status::GOOD {
                return codes;
            }
            let (key, code) = answer.sense();
            assert_eq!(key, 6, "{answer:02x?}");
            codes.push(code);
            assert!(codes.len() < 32, "unit attentions without an end: {codes:04x?}");
        }
    }

    /// Takes one PDU of whatever connection while `conn` is waited for: a command there may have to wait for data of another one
    /// here. Whether there was one before `conn` ended or the time was over.
    fn serve(&mut self, conn: usize, limit: Duration) -> bool {
        if self.conns.len() == 1 {
            return self.turn(conn, limit);
        }
        let end = monotonic_ns() + limit.as_nanos() as u64;
        while self.conns[conn].over.is_none() && monotonic_ns() < end {
            for at in 0..self.conns.len() {
                if self.conns[at].over.is_none() && self.conns[at].wire.is_ready() && self.turn(at, LOOK) {
                    return true;
                }
            }
            std::thread::park_timeout(LOOK);
        }
        false
    }

    /// Takes one PDU of a connection; whether there was one.
    pub fn turn(&mut self, conn: usize, limit: Duration) -> bool {
        if self.conns[conn].over.is_some() {
            return false;
        }
        match self.conns[conn].wire.next(limit) {
            Got::Pdu(pdu) => {
                self.take(conn, *pdu);
                true
            }
            Got::Silence => false,
            over => {
                self.conns[conn].over = Some(over);
                false
            }
        }
    }

    fn take(&mut self, conn: usize, pdu: Pdu) {
        let is_ping = pdu.opcode() == op::NOP_IN && pdu.itt() == NO_TAG;
        // Whether it has a StatSN of its own (RFC 7143 §4.2.2.2).
        let counts = match pdu.opcode() {
            op::R2T => false,
            op::DATA_IN => pdu.is(flag::STATUS),
            _ => !is_ping,
        };
        let has_stat_sn = pdu.opcode() != op::DATA_IN || counts;
        if has_stat_sn {
            assert_eq!(pdu.get(24), self.conns[conn].stat_sn, "StatSN of {pdu:02x?}");
        }
        if counts {
            self.conns[conn].stat_sn = self.conns[conn].stat_sn.wrapping_add(1);
        }
        let (expected, most) = (pdu.get(28), pdu.get(32));
        assert!(!after(expected, self.cmd_sn), "ExpCmdSN {expected} of {pdu:02x?}");
        // Connections are not ordered among each other: an older window is ignored (RFC 7143 §4.2.2.1).
        if after(expected, self.window.0) {
            self.window.0 = expected;
        }
        if after(most, self.window.1) {
            self.window.1 = most;
        }
        match pdu.opcode() {
            op::DATA_IN => self.data_in(conn, pdu),
            op::R2T => self.r2t(conn, &pdu),
            op::RESPONSE => self.answered(conn, &pdu),
            op::NOP_IN if is_ping => {
                if pdu.get(20) != NO_TAG {
                    self.pings += 1;
                    let mut echo = Pdu::new(op::NOP_OUT | op::IMMEDIATE, flag::FINAL).with(16, NO_TAG);
                    echo.bhs[8..16].copy_from_slice(&pdu.bhs[8..16]);
                    self.send(conn, echo.with(20, pdu.get(20)));
                }
            }
            op::ASYNC | op::REJECT => self.events.push(pdu),
            op::NOP_IN | op::TASK_MANAGEMENT_RESPONSE | op::TEXT_RESPONSE | op::LOGOUT_RESPONSE => {
                self.replies.insert(pdu.itt(), pdu);
            }
            _ => panic!("{pdu:02x?}"),
        }
    }

    fn data_in(&mut self, conn: usize, pdu: Pdu) {
        let params = self.conns[conn].params.clone();
        let task = self.tasks.get_mut(&pdu.itt()).unwrap_or_else(|| panic!("Data-In of no task: {:02x?}", pdu.bhs));
        assert_eq!(task.conn, conn, "on the connection of its command");
        assert_eq!(pdu.get(36), task.data_sn, "DataSN");
        task.data_sn += 1;
        assert_eq!(pdu.get(40) as usize, task.data.len(), "offset: data comes in order");
        assert!(pdu.data.len() <= params.max_recv, "{} bytes in a PDU", pdu.data.len());
        task.burst += pdu.data.len();
        assert!(task.burst <= params.max_burst, "a sequence of {} bytes", task.burst);
        task.data.extend_from_slice(&pdu.data);
        assert!(task.data.len() <= task.expected, "more than was expected");
        if pdu.is(flag::FINAL) {
            task.burst = 0;
        }
        if pdu.is(flag::STATUS) {
            assert!(pdu.is(flag::FINAL), "the status comes with the last");
            // Only a command that ends in order collapses (RFC 7143 §11.7.3).
            assert!(matches!(pdu.bhs[3], status::GOOD | status::CONDITION_MET), "status {:#x} in Data-In", pdu.bhs[3]);
            let task = self.tasks.remove(&pdu.itt()).unwrap();
            let residual = residual(&pdu);
            check_residual(&task, residual);
            let answer = Answer { status: pdu.bhs[3], sense: Vec::new(), data: task.data, residual, collapsed: true };
            self.answers.insert(pdu.itt(), answer);
        }
    }

    fn r2t(&mut self, conn: usize, pdu: &Pdu) {
        let params = self.conns[conn].params.clone();
        let tag = pdu.itt();
        let task = self.tasks.get_mut(&tag).unwrap_or_else(|| panic!("R2T for no task: {:02x?}", pdu.bhs));
        let (offset, len) = (pdu.get(40) as usize, pdu.get(44) as usize);
        assert_eq!(task.conn, conn, "on the connection of its command");
        assert_eq!(pdu.get(36), task.r2t_sn, "R2TSN");
        task.r2t_sn += 1;
        assert!(pdu.get(20) != NO_TAG && pdu.is(flag::FINAL) && pdu.data.is_empty(), "{pdu:02x?}");
        assert_eq!(offset, task.asked, "data is asked for in order");
        assert!(len > 0 && len <= params.max_burst && offset + len <= task.out.len(), "{len} bytes from {offset}");
        task.asked += len;
        task.held.push((pdu.get(20), offset, len));
        assert!(task.held.len() <= params.max_r2t, "{} R2Ts at once", task.held.len());
        if self.hold.is_none() {
            self.answer_r2ts(tag);
        }
    }

    fn answered(&mut self, conn: usize, pdu: &Pdu) {
        let task = self.tasks.remove(&pdu.itt()).unwrap_or_else(|| panic!("an answer to no task: {:02x?}", pdu.bhs));
        assert_eq!(task.conn, conn, "on the connection of its command");
        assert_eq!(pdu.bhs[2], 0, "completed at the target");
        assert_eq!(task.burst, 0, "the last Data-In has its F bit");
        if task.data_sn > 0 {
            assert_eq!(pdu.get(36), task.data_sn, "ExpDataSN");
        }
        let residual = residual(pdu);
        let sense = if let [high, low, rest @ ..] = &pdu.data[..] {
            let len = usize::from(u16::from_be_bytes([*high, *low]));
            assert!(len <= rest.len(), "SenseLength {len} of {}", rest.len());
            rest[..len].to_vec()
        } else {
            Vec::new()
        };
        assert_eq!(pdu.bhs[3] == status::CHECK_CONDITION, !sense.is_empty(), "sense data comes with CHECK CONDITION");
        if pdu.bhs[3] == status::GOOD {
            check_residual(&task, residual);
        }
        let answer = Answer { status: pdu.bhs[3], sense, data: task.data, residual, collapsed: false };
        self.answers.insert(pdu.itt(), answer);
    }

    /// Sends a request and waits for the PDU that answers it; none if the connection ends first.
    pub fn request(&mut self, conn: usize, pdu: Pdu) -> Option<Pdu> {
        let tag = pdu.itt();
        self.send(conn, pdu);
        loop {
            if let Some(reply) = self.replies.remove(&tag) {
                return Some(reply);
            }
            if !self.serve(conn, PATIENCE) {
                assert!(self.conns[conn].over.is_some(), "no answer to {tag:#x}");
                return None;
            }
        }
    }

    fn management(&mut self, function: u8, lun: u16, task: Option<(u32, u32)>) -> Pdu {
        let (tag, cmd_sn) = task.unwrap_or((NO_TAG, 0));
        let pdu = Pdu::new(op::TASK_MANAGEMENT | op::IMMEDIATE, flag::FINAL | function).with_lun(lun);
        pdu.with(16, self.next_tag()).with(20, tag).with(32, cmd_sn)
    }

    /// Task management; its response. A task is told by its tag and its CmdSN.
    pub fn manage(&mut self, conn: usize, function: u8, lun: u16, task: Option<(u32, u32)>) -> u8 {
        let pdu = self.management(function, lun, task);
        self.request(conn, pdu).expect("a Task Management Function Response").bhs[2]
    }

    /// QUERY ASYNCHRONOUS EVENT of a logical unit: its response, and the additional response information.
    pub fn query_event(&mut self, lun: u16) -> (u8, [u8; 3]) {
        let pdu = self.management(function::QUERY_EVENT, lun, None);
        let answer = self.request(0, pdu).expect("a Task Management Function Response");
        (answer.bhs[2], answer.bhs[8..11].try_into().unwrap())
    }

    /// Asks for task management and does not wait; the tag of the request.
    pub fn begin_managing(&mut self, conn: usize, function: u8, lun: u16, task: Option<(u32, u32)>) -> u32 {
        let pdu = self.management(function, lun, task);
        let tag = pdu.itt();
        self.send(conn, pdu);
        tag
    }

    /// The response to a request by way of connection `conn`, if it comes while that is not silent for `limit` and nothing of the other
    /// connections is read.
    pub fn response_by(&mut self, conn: usize, tag: u32, limit: Duration) -> Option<u8> {
        while !self.replies.contains_key(&tag) && self.turn(conn, limit) {}
        self.replies.remove(&tag).map(|reply| reply.bhs[2])
    }

    /// What was in flight and will not be answered.
    pub fn forget(&mut self, tag: u32) {
        self.tasks.remove(&tag);
    }

    /// A ping with data, which has to come back.
    pub fn ping(&mut self, conn: usize, data: &[u8]) {
        let tag = self.next_tag();
        let pdu = Pdu::new(op::NOP_OUT, flag::FINAL).with(16, tag).with(20, NO_TAG).with_data(data);
        let echo = self.request(conn, pdu).expect("a NOP-In");
        assert_eq!((echo.opcode(), echo.get(20)), (op::NOP_IN, NO_TAG));
        assert!(data.starts_with(&echo.data), "the data of a ping comes back");
        assert_eq!(echo.data.len(), data.len().min(self.conns[conn].params.max_recv));
    }

    /// Text keys, and all that is answered, put together.
    pub fn text(&mut self, pairs: &[(String, String)]) -> Vec<(String, String)> {
        let tag = self.next_tag();
        let pdu = Pdu::new(op::TEXT, flag::FINAL).with(16, tag).with(20, NO_TAG).with_data(&text(pairs));
        let mut answer = self.request(0, pdu).expect("a Text Response");
        let mut data = answer.data.clone();
        while !answer.is(flag::FINAL) {
            let next = Pdu::new(op::TEXT, flag::FINAL).with(16, tag).with(20, answer.get(20));
            answer = self.request(0, next).expect("a Text Response");
            data.extend_from_slice(&answer.data);
        }
        assert_eq!(answer.get(20), NO_TAG, "the last Text Response has no tag");
        all_pairs(&data)
    }

    /// Targets and their portals.
    pub fn send_targets(&mut self, which: &str) -> Vec<(String, String)> {
        self.text(&[("SendTargets".to_owned(), which.to_owned())])
    }

    /// Logs out: reason 0 the session, 1 the connection `cid`. The response; the target closes after it.
    pub fn logout(&mut self, conn: usize, reason: u8, cid: u16) -> u8 {
        self.logout_response(conn, reason, cid).bhs[2]
    }

    /// As [`Session::logout`], the whole response.
    pub fn logout_response(&mut self, conn: usize, reason: u8, cid: u16) -> Pdu {
        let tag = self.next_tag();
        let pdu = Pdu::new(op::LOGOUT | op::IMMEDIATE, flag::FINAL | reason).with(16, tag).with16(20, cid);
        self.request(conn, pdu).expect("a Logout Response")
    }

    /// Ends the session in order.
    pub fn end(mut self) {
        assert_eq!(self.logout(0, 0, self.conns[0].cid), 0);
        for conn in 0..self.conns.len() {
            while self.turn(conn, PATIENCE) {}
            assert!(self.conns[conn].over.is_some(), "connection {conn} stays open after the logout");
        }
    }
}

impl Conn {
    fn after(login: Login, params: Params) -> Conn {
        let stat_sn = login.stat_sn.expect("a response");
        Conn { wire: login.wire, params, cid: login.cid, stat_sn, over: None }
    }
}

fn residual(pdu: &Pdu) -> i64 {
    let count = i64::from(pdu.get(44));
    match (pdu.is(flag::OVERFLOW), pdu.is(flag::UNDERFLOW)) {
        (false, false) => {
            assert_eq!(count, 0, "a residual without its bit");
            0
        }
        (true, false) => count,
        (false, true) => -count,
        (true, true) => panic!("overflow and underflow"),
    }
}

/// A read that succeeded brought all but what its residual says.
fn check_residual(task: &Task, residual: i64) {
    if task.expected > 0 && task.out.is_empty() {
        let missing = (-residual).max(0) as usize;
        assert_eq!(task.data.len() + missing, task.expected, "bytes that came, and the residual");
    }
}
