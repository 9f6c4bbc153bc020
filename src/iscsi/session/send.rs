//! What is sent: headers with their numbers, Data-In and R2T, NOP-In and Asynchronous Messages.

use zerocopy::FromZeros;

use super::super::exchange::TextReply;
use super::transfer::WriteProgress;
use super::*;

/// How the data of a command differs from what its initiator expected (RFC 7143 §11.4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// It does not.
    None,
    /// So many bytes less.
    Underflow(u32),
    /// So many bytes more, which were not transferred.
    Overflow(u32),
}

impl Residual {
    /// Of a command that was expected to transfer `expected` bytes and has `actual` ones.
    pub fn of(expected: u32, actual: u64) -> Residual {
        let expected = u64::from(expected);
        // The field has 32 bits; what is more than they hold cannot be told.
        let clamp = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        match actual.cmp(&expected) {
            core::cmp::Ordering::Equal => Residual::None,
            core::cmp::Ordering::Less => Residual::Underflow(clamp(expected - actual)),
            core::cmp::Ordering::Greater => Residual::Overflow(clamp(actual - expected)),
        }
    }

    const fn parts(self, overflow: u8, underflow: u8) -> (u8, u32) {
        match self {
            Residual::None => (0, 0),
            Residual::Underflow(n) => (underflow, n),
            Residual::Overflow(n) => (overflow, n),
        }
    }
}

/// One Data-In: send `len` bytes from `offset` of what the command has read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataInPdu {
    /// The header.
    pub header: Header,
    /// Where the data begins.
    pub offset: u32,
    /// Its length.
    pub len: u32,
    /// It has the status: the task has ended with it.
    pub ended: bool,
}

/// What an initiator is told without having asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Log out within so many seconds.
    RequestLogout(u16),
    /// All connections of the session are dropped; come back after `wait` seconds, tasks are kept for `retain` more.
    DropSession {
        /// Time2Wait.
        wait: u16,
        /// Time2Retain.
        retain: u16,
    },
}

/// How a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Alive {
    /// Look again at this time, in nanoseconds.
    Until(u64),
    /// Send this NOP-In, and look again at this time.
    Ping(Header, u64),
    /// The initiator is gone: close the connection.
    Dead,
}

impl Session {
    /// A SCSI Command needs `len` bytes of data from the initiator, what it expects to send or less. Until then nothing is asked
    /// for.
    pub fn data_wanted(&mut self, task: TaskId, len: u32) -> WriteProgress {
        let Some(slot) = self.slot_mut(task) else { return WriteProgress::Arriving };
        slot.transfer.want(len);
        slot.progress()
    }

    /// How far the data of a write has come.
    pub fn write_progress(&self, task: TaskId) -> Option<WriteProgress> {
        self.slot_ref(task).map(Slot::progress)
    }

    /// Asks for the next data of a write, at most `len_max` bytes: the R2T, its offset and length. `None` when nothing can be asked for
    /// now: see [`Session::write_progress`].
    pub fn next_r2t(&mut self, task: TaskId, len_max: u32) -> Option<(Header, u32, u32)> {
        let conn = self.slot_ref(task).filter(|slot| slot.state == State::Active && !slot.aborted)?.conn;
        let numbers = self.numbers(conn)?;
        let slot = self.slot_mut(task)?;
        let ttt = u32::from(task.slot) << 16 | u32::from(slot.ttt);
        let (offset, len) = slot.transfer.ask(len_max, ttt)?;
        slot.ttt = slot.ttt.wrapping_add(1);
        let mut pdu = R2t::new_zeroed();
        pdu.opcode = Opcode::R2T.0;
        pdu.flags = FLAG_FINAL;
        pdu.lun = slot.scsi().lun;
        pdu.itt.set(slot.itt);
        pdu.ttt.set(ttt);
        pdu.stat_sn.set(numbers.stat_sn);
        pdu.exp_cmd_sn.set(numbers.exp_cmd_sn);
        pdu.max_cmd_sn.set(numbers.max_cmd_sn);
        pdu.r2t_sn.set(slot.data_sn);
        pdu.buffer_offset.set(offset);
        pdu.desired_len.set(len);
        slot.data_sn = slot.data_sn.wrapping_add(1);
        Some((pdu.to_bytes(), offset, len))
    }

    /// The next Data-In of a command that has read `total` bytes, no more than were expected. With `good`, the command has ended with
    /// GOOD and this residual, and the last PDU says so in place of a SCSI Response. `None` when all is sent, or nothing is to be
    /// sent because the task was aborted: [`Session::is_aborted`].
    pub fn next_data_in(&mut self, task: TaskId, total: u32, good: Option<Residual>) -> Option<DataInPdu> {
        let slot = self.slot_ref(task).filter(|slot| slot.state == State::Active && !slot.aborted)?;
        let (conn, offset) = (slot.conn, slot.read_offset);
        let left = total.checked_sub(offset).filter(|left| *left != 0)?;
        let params = self.params(conn)?;
        // A sequence ends where the burst is full (RFC 7143 §13.13).
        let burst_left = params.max_burst - offset % params.max_burst.max(1);
        // Only what ends a sequence may end within a word (RFC 7143 §11.7.7).
        let len = left.min(params.initiator_max_data & !3).min(burst_left);
        let last = len == left;
        let mut pdu = DataIn::new_zeroed();
        pdu.opcode = Opcode::DATA_IN.0;
        if last || len == burst_left {
            pdu.flags = FLAG_FINAL;
        }
        pdu.data_len = U24::new(len);
        pdu.ttt.set(NO_TAG);
        let slot = self.slot_mut(task)?;
        slot.read_offset = offset + len;
        pdu.itt.set(slot.itt);
        pdu.data_sn.set(slot.data_sn);
        pdu.buffer_offset.set(offset);
        slot.data_sn = slot.data_sn.wrapping_add(1);
        let mut ended = false;
        if last && let Some(residual) = good {
            let (flag, n) = residual.parts(FLAG_OVERFLOW, FLAG_UNDERFLOW);
            pdu.flags |= FLAG_STATUS | flag;
            pdu.residual.set(n);
            self.release(task.slot);
            pdu.stat_sn.set(self.take_stat_sn(conn));
            ended = true;
        }
        let numbers = self.numbers(conn)?;
        pdu.exp_cmd_sn.set(numbers.exp_cmd_sn);
        pdu.max_cmd_sn.set(numbers.max_cmd_sn);
        Some(DataInPdu { header: pdu.to_bytes(), offset, len, ended })
    }

    /// The most bytes that the first Data-In of a command can have.
    pub fn data_in_max(&self, task: TaskId) -> u32 {
        let params = self.slot_ref(task).and_then(|slot| self.params(slot.conn));
        params.map_or(0, |params| (params.initiator_max_data & !3).min(params.max_burst))
    }

    /// The SCSI Response of a command, which ends the task: its status, the length of the sense data, the residual, and for a
    /// bidirectional command that of what it read. With sense data, send its length in two bytes and the data behind the header.
    /// `None`, and the task has ended too, when it was aborted. A task whose data is arriving ([`Session::is_arriving`]) may be
    /// answered, but its buffer must stay until the PDU is in.
    pub fn respond(
        &mut self,
        task: TaskId,
        status: u8,
        sense_len: u16,
        residual: Residual,
        bidi: Residual,
    ) -> Option<Header> {
        let slot = self.slot_ref(task).filter(|slot| slot.state == State::Active)?;
        let (conn, aborted) = (slot.conn, slot.aborted);
        let mut pdu = ScsiResponse::new_zeroed();
        let (flag, n) = residual.parts(FLAG_OVERFLOW, FLAG_UNDERFLOW);
        let (bidi_flag, bidi_n) = bidi.parts(FLAG_BIDI_OVERFLOW, FLAG_BIDI_UNDERFLOW);
        pdu.opcode = Opcode::SCSI_RESPONSE.0;
        pdu.flags = FLAG_FINAL | flag | bidi_flag;
        pdu.status = status;
        pdu.data_len = U24::new(if sense_len == 0 { 0 } else { 2 + u32::from(sense_len) });
        pdu.itt.set(slot.itt);
        pdu.exp_data_sn.set(slot.data_sn);
        pdu.residual.set(n);
        pdu.bidi_residual.set(bidi_n);
        self.release(task.slot);
        if aborted {
            return None;
        }
        pdu.stat_sn.set(self.take_stat_sn(conn));
        let numbers = self.numbers(conn)?;
        pdu.exp_cmd_sn.set(numbers.exp_cmd_sn);
        pdu.max_cmd_sn.set(numbers.max_cmd_sn);
        Some(pdu.to_bytes())
    }

    /// The NOP-In that answers a NOP-Out, which ends it, and how much of the ping data goes back.
    pub fn nop_response(&mut self, task: TaskId) -> Option<(Header, u32)> {
        let (conn, header) = self.finish(task, Kind::Nop)?;
        let request = NopOut::read(&header);
        let len = request.data_len.get().min(self.params(conn)?.initiator_max_data);
        let mut pdu = NopIn::new_zeroed();
        pdu.opcode = Opcode::NOP_IN.0;
        pdu.flags = FLAG_FINAL;
        pdu.data_len = U24::new(len);
        pdu.lun = request.lun;
        pdu.itt = request.itt;
        pdu.ttt.set(NO_TAG);
        pdu.stat_sn.set(self.take_stat_sn(conn));
        let numbers = self.numbers(conn)?;
        pdu.exp_cmd_sn.set(numbers.exp_cmd_sn);
        pdu.max_cmd_sn.set(numbers.max_cmd_sn);
        Some((pdu.to_bytes(), len))
    }

    /// The Text Response to a Text Request, which ends it.
    pub fn text_response(&mut self, task: TaskId, reply: &TextReply) -> Option<Header> {
        let (conn, header) = self.finish(task, Kind::Text)?;
        let mut pdu = TextResponse::new_zeroed();
        pdu.opcode = Opcode::TEXT_RESPONSE.0;
        pdu.flags = reply.flags;
        pdu.data_len = U24::new(reply.text.len() as u32);
        pdu.itt = TextRequest::read(&header).itt;
        pdu.ttt.set(reply.ttt);
        pdu.stat_sn.set(self.take_stat_sn(conn));
        let numbers = self.numbers(conn)?;
        pdu.exp_cmd_sn.set(numbers.exp_cmd_sn);
        pdu.max_cmd_sn.set(numbers.max_cmd_sn);
        Some(pdu.to_bytes())
    }

    /// Rejects a request that has been handed out, which ends it: the Reject, and the header that is its data.
    pub fn reject_task(&mut self, task: TaskId, reason: RejectReason) -> Option<(Header, Header)> {
        let slot = self.slot_ref(task).filter(|slot| slot.state == State::Active)?;
        let (conn, header) = (slot.conn, slot.header);
        self.release(task.slot);
        Some((self.reject(conn, reason)?, header))
    }

    /// A Reject. Its data is the 48 bytes of the header that is rejected.
    pub fn reject(&mut self, conn: ConnId, reason: RejectReason) -> Option<Header> {
        let mut pdu = Reject::new_zeroed();
        pdu.opcode = Opcode::REJECT.0;
        pdu.flags = FLAG_FINAL;
        pdu.reason = reason;
        pdu.data_len = U24::new(BHS_LEN as u32);
        pdu.itt.set(NO_TAG);
        self.connection_ref(conn)?;
        pdu.stat_sn.set(self.take_stat_sn(conn));
        let numbers = self.numbers(conn)?;
        pdu.exp_cmd_sn.set(numbers.exp_cmd_sn);
        pdu.max_cmd_sn.set(numbers.max_cmd_sn);
        Some(pdu.to_bytes())
    }

    /// An Asynchronous Message.
    pub fn notice(&mut self, conn: ConnId, notice: &Notice) -> Option<Header> {
        let mut pdu = AsyncMessage::new_zeroed();
        pdu.opcode = Opcode::ASYNC_MESSAGE.0;
        pdu.flags = FLAG_FINAL;
        pdu.itt.set(NO_TAG);
        let (event, parameters) = match *notice {
            Notice::RequestLogout(seconds) => (AsyncEvent::REQUEST_LOGOUT, [0, 0, seconds]),
            Notice::DropSession { wait, retain } => (AsyncEvent::DROP_SESSION, [0, wait, retain]),
        };
        pdu.event = event;
        pdu.parameter1.set(parameters[0]);
        pdu.parameter2.set(parameters[1]);
        pdu.parameter3.set(parameters[2]);
        self.connection_ref(conn)?;
        pdu.stat_sn.set(self.take_stat_sn(conn));
        let numbers = self.numbers(conn)?;
        pdu.exp_cmd_sn.set(numbers.exp_cmd_sn);
        pdu.max_cmd_sn.set(numbers.max_cmd_sn);
        Some(pdu.to_bytes())
    }

    /// Looks after a connection at the time `now`.
    pub fn alive(&mut self, conn: ConnId, now: u64) -> Alive {
        let keepalive = self.keepalive;
        let Some(connection) = self.connection_mut(conn) else { return Alive::Dead };
        if let Some(sent_ns) = connection.pinged {
            let end = sent_ns.saturating_add(keepalive.timeout_ns);
            return if now >= end { Alive::Dead } else { Alive::Until(end) };
        }
        let next = connection.heard_ns.saturating_add(keepalive.interval_ns);
        if now < next {
            return Alive::Until(next);
        }
        match self.ping(conn, now) {
            Some(header) => Alive::Ping(header, now.saturating_add(keepalive.timeout_ns)),
            None => Alive::Dead,
        }
    }

    /// A connection that must say which responses have arrived before a task management request can be answered, and the NOP-In that
    /// asks for it. Look at [`Session::answerable`] before, and at [`Session::alive`] after.
    pub fn next_ping(&mut self, now: u64) -> Option<(ConnId, Header)> {
        let asks = |conn: &Option<Connection>| conn.as_ref().is_some_and(|conn| conn.ask);
        let conn = ConnId(self.connections.iter().position(asks)? as u16);
        self.connection_mut(conn)?.ask = false;
        Some((conn, self.ping(conn, now)?))
    }

    /// A NOP-In that wants an answer. It takes no StatSN.
    fn ping(&mut self, conn: ConnId, now: u64) -> Option<Header> {
        let connection = self.connection_mut(conn)?;
        connection.last_ping = connection.last_ping.wrapping_add(1) % NO_TAG;
        let ttt = connection.last_ping;
        connection.pinged.get_or_insert(now);
        let numbers = self.numbers(conn)?;
        let mut pdu = NopIn::new_zeroed();
        pdu.opcode = Opcode::NOP_IN.0;
        pdu.flags = FLAG_FINAL;
        pdu.itt.set(NO_TAG);
        pdu.ttt.set(ttt);
        pdu.stat_sn.set(numbers.stat_sn);
        pdu.exp_cmd_sn.set(numbers.exp_cmd_sn);
        pdu.max_cmd_sn.set(numbers.max_cmd_sn);
        Some(pdu.to_bytes())
    }

    /// Ends a request of a kind; its connection and header, unless it was aborted.
    pub(super) fn finish(&mut self, task: TaskId, kind: Kind) -> Option<(ConnId, Header)> {
        let slot = self.slot_ref(task).filter(|slot| slot.state == State::Active && slot.kind == kind)?;
        let found = (slot.conn, slot.header);
        let aborted = slot.aborted;
        self.release(task.slot);
        (!aborted).then_some(found)
    }

    /// The StatSN of a response that is made now.
    pub(super) fn take_stat_sn(&mut self, conn: ConnId) -> u32 {
        self.connection_mut(conn).map_or(0, |connection| {
            let stat_sn = connection.stat_sn;
            connection.stat_sn = stat_sn.wrapping_add(1);
            stat_sn
        })
    }

    pub(super) fn numbers(&self, conn: ConnId) -> Option<Numbers> {
        Some(Numbers {
            stat_sn: self.connection_ref(conn)?.stat_sn,
            exp_cmd_sn: self.exp_cmd_sn,
            max_cmd_sn: self.max_cmd_sn(),
        })
    }
}

/// The numbers that PDUs of the target carry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers {
    /// StatSN of the next response.
    pub stat_sn: u32,
    /// Next expected CmdSN.
    pub exp_cmd_sn: u32,
    /// Largest CmdSN that is taken.
    pub max_cmd_sn: u32,
}
