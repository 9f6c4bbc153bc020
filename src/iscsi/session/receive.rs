//! What arrives: requests, their data, and the order of commands (RFC 7143 §4.2.2.1, §7.8, §11.2.1.8).

use super::transfer::{Taken, Transfer, TransportFault, WriteProgress};
use super::*;

/// What becomes of a request. Its data, if it has some, follows; tell [`Session::data_end`] when it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict {
    /// It is held: put its data at the begin of the task's buffer. Then see [`Session::next_ready`].
    Accept(TaskId),
    /// Data of a write: put it at `offset` of the task's buffer. Unsolicited data may lie beyond what the command wants: drop that.
    Place {
        /// The task.
        task: TaskId,
        /// Where the data begins.
        offset: u32,
    },
    /// Drop its data and send nothing. Data-Out at fault is among it: [`Session::data_end`] tells what that means for its task.
    Ignore,
    /// Drop its data, and send a Reject ([`Session::reject`]) with its header. Then see [`Session::next_ready`].
    Reject(RejectReason),
}

/// What the end of a PDU's data brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Received {
    /// Nothing.
    Nothing,
    /// The command is complete: see [`Session::next_ready`].
    Command,
    /// A write has come further.
    Write(TaskId, WriteProgress),
    /// A Data-Out with a wrong digest: send a Reject ([`RejectReason::DATA_DIGEST_ERROR`]) with this header. The task fails when its
    /// data is in.
    RejectData {
        /// The header of the Data-Out.
        header: Header,
        /// The task.
        task: TaskId,
        /// How far its data has come.
        progress: WriteProgress,
    },
    /// A request with a wrong digest, which is forgotten: send a Reject ([`RejectReason::DATA_DIGEST_ERROR`]) with its header.
    RejectRequest {
        /// The header of the request.
        header: Header,
        /// Close the connection then: the number of the command has not been received, and without error recovery will be
        /// missing for good.
        close: bool,
    },
}

impl Session {
    /// Takes the header of a PDU, with the additional segments that the decoder has for it. `now` is the time.
    pub fn request(&mut self, conn: ConnId, request: &Request, ahs: &[u8], now: u64) -> Verdict {
        let Some(connection) = self.connection_mut(conn) else { return Verdict::Ignore };
        connection.current = Current::Nothing;
        if connection.closing {
            return Verdict::Ignore;
        }
        self.heard(conn, now);
        self.acknowledge(conn, request);
        if self.kind == SessionKind::Discovery && !is_for_discovery(request) {
            return Verdict::Reject(RejectReason::PROTOCOL_ERROR);
        }
        match request {
            Request::ScsiCommand(pdu) => self.scsi_command(conn, pdu, ahs),
            Request::DataOut(pdu) => self.data_out(conn, pdu),
            // The answer to a NOP-In, or a sign of life.
            Request::NopOut(pdu) if pdu.itt.get() == NO_TAG && pdu.opcode & OPCODE_IMMEDIATE != 0 => Verdict::Ignore,
            Request::NopOut(pdu) => self.command_pdu(conn, Kind::Nop, &Bhs::read(&pdu.to_bytes()), pdu.cmd_sn.get()),
            Request::Text(pdu) => self.command_pdu(conn, Kind::Text, &Bhs::read(&pdu.to_bytes()), pdu.cmd_sn.get()),
            Request::Task(pdu) => self.command_pdu(conn, Kind::Task, &Bhs::read(&pdu.to_bytes()), pdu.cmd_sn.get()),
            Request::Logout(pdu) => self.command_pdu(conn, Kind::Logout, &Bhs::read(&pdu.to_bytes()), pdu.cmd_sn.get()),
            Request::Login(_) => Verdict::Reject(RejectReason::PROTOCOL_ERROR),
            // Nothing is kept that could be sent again at error recovery level 0.
            Request::Snack(_) => Verdict::Reject(RejectReason::SNACK_REJECT),
            Request::Unknown(_) => Verdict::Reject(RejectReason::COMMAND_NOT_SUPPORTED),
        }
    }

    /// Takes what a request says of the responses that have arrived.
    fn acknowledge(&mut self, conn: ConnId, request: &Request) {
        let exp_stat_sn = match request {
            Request::NopOut(pdu) => pdu.exp_stat_sn,
            Request::ScsiCommand(pdu) => pdu.exp_stat_sn,
            Request::Task(pdu) => pdu.exp_stat_sn,
            Request::Text(pdu) => pdu.exp_stat_sn,
            Request::DataOut(pdu) => pdu.exp_stat_sn,
            Request::Logout(pdu) => pdu.exp_stat_sn,
            Request::Snack(pdu) => pdu.exp_stat_sn,
            Request::Login(_) | Request::Unknown(_) => return,
        };
        if let Some(connection) = self.connection_mut(conn)
            && serial::within(exp_stat_sn.get(), connection.acknowledged, connection.stat_sn)
        {
            connection.acknowledged = exp_stat_sn.get();
        }
    }

    fn scsi_command(&mut self, conn: ConnId, pdu: &ScsiCommand, ahs: &[u8]) -> Verdict {
        let Some(params) = self.params(conn).copied() else { return Verdict::Ignore };
        let bhs = Bhs::read(&pdu.to_bytes());
        let (len, expected_len) = (pdu.data_len.get(), pdu.expected_len.get());
        let goes_on = !pdu.is_final();
        let wrong = if Ahs::read(ahs).is_err() || !pdu.writes() && (len != 0 || goes_on) {
            Some(RejectReason::INVALID_PDU_FIELD)
        } else if !pdu.writes() {
            None
        } else if goes_on && params.initial_r2t
            || len != 0 && !params.immediate_data
            || len > params.first_burst.min(expected_len)
        {
            Some(RejectReason::PROTOCOL_ERROR)
        } else {
            None
        };
        let place = match self.enter(conn, Kind::Scsi, &bhs, pdu.cmd_sn.get(), wrong) {
            Ok(place) => place,
            Err(verdict) => return verdict,
        };
        let slot = &mut self.slots[usize::from(place)];
        if pdu.writes() {
            slot.transfer = Transfer::new(&params, expected_len, len, goes_on);
        }
        if !ahs.is_empty() {
            slot.ahs = ahs.to_vec();
        }
        self.entered(conn, place, len)
    }

    fn command_pdu(&mut self, conn: ConnId, kind: Kind, bhs: &Bhs, cmd_sn: u32) -> Verdict {
        match self.enter(conn, kind, bhs, cmd_sn, None) {
            Ok(place) => self.entered(conn, place, bhs.data_len.get()),
            Err(verdict) => verdict,
        }
    }

    /// Checks the numbers of a request and gives it a slot. `wrong`: why it is rejected even if they are right.
    fn enter(
        &mut self,
        conn: ConnId,
        kind: Kind,
        bhs: &Bhs,
        cmd_sn: u32,
        wrong: Option<RejectReason>,
    ) -> Result<u16, Verdict> {
        let immediate = bhs.immediate();
        // Outside of the window, or a second time: silently ignored (RFC 7143 §4.2.2.1).
        if !immediate && !self.is_new(cmd_sn) {
            return Err(Verdict::Ignore);
        }
        let itt = bhs.itt.get();
        let wrong = match wrong {
            _ if itt == NO_TAG => Some(RejectReason::INVALID_PDU_FIELD),
            _ if self.find(itt).is_some() => Some(RejectReason::PROTOCOL_ERROR),
            None if immediate && self.immediate >= self.limits.immediate => {
                Some(RejectReason::IMMEDIATE_COMMAND_REJECT)
            }
            wrong => wrong,
        };
        if let Some(reason) = wrong {
            // Its number counts as not received: the initiator fills the gap, by a command or by ABORT TASK (RFC 7143 §7.3).
            return Err(Verdict::Reject(reason));
        }
        // The window and the limit above leave a slot for each.
        self.claim(conn, kind, bhs, cmd_sn).ok_or(Verdict::Reject(RejectReason::IMMEDIATE_COMMAND_REJECT))
    }

    /// Whether a number is in the window and has not been received, on whatever connection.
    fn is_new(&self, cmd_sn: u32) -> bool {
        if !serial::within(cmd_sn, self.exp_cmd_sn, self.max_cmd_sn()) {
            return false;
        }
        let arriving = self.connections.iter().flatten().any(|connection| match connection.current {
            Current::Command(task) => self.slot_ref(task).is_some_and(|slot| !slot.immediate && slot.cmd_sn == cmd_sn),
            _ => false,
        });
        !arriving && self.window[self.window_place(cmd_sn)] == Pending::Missing
    }

    /// A request has its slot: its turn may come now, or when its data is there.
    fn entered(&mut self, conn: ConnId, place: u16, len: u32) -> Verdict {
        let slot = &mut self.slots[usize::from(place)];
        let task = id(place.into(), slot);
        if len == 0 {
            self.hold(place);
        } else {
            slot.arriving = true;
            if let Some(connection) = self.connection_mut(conn) {
                connection.current = Current::Command(task);
            }
        }
        Verdict::Accept(task)
    }

    /// A request is whole: it waits for its turn.
    fn hold(&mut self, place: u16) {
        let slot = &mut self.slots[usize::from(place)];
        slot.state = State::Held;
        let cmd_sn = slot.cmd_sn;
        if slot.immediate {
            self.ready.push_back(place);
        } else {
            let pending = self.window_place(cmd_sn);
            self.window[pending] = Pending::Here(place);
        }
    }

    fn data_out(&mut self, conn: ConnId, pdu: &DataOut) -> Verdict {
        let ttt = pdu.ttt.get();
        // Tasks end while data for them is on its way, so data for nothing is no fault. The tag of an R2T leads to its slot.
        let place = if ttt == NO_TAG { self.find(pdu.itt.get()) } else { Some((ttt >> 16) as u16) };
        let Some(place) = place.filter(|place| *place < self.limits.window + self.limits.immediate) else {
            return if ttt == NO_TAG { Verdict::Ignore } else { Verdict::Reject(RejectReason::INVALID_PDU_FIELD) };
        };
        let Some(slot) = self.slots.get_mut(usize::from(place)) else { return Verdict::Ignore };
        if slot.state == State::Free || slot.kind != Kind::Scsi {
            return Verdict::Ignore;
        }
        if slot.itt != pdu.itt.get() {
            return Verdict::Ignore;
        }
        // A task has one connection (RFC 7143 §4.2.5.1).
        if slot.conn != conn {
            return Verdict::Reject(RejectReason::PROTOCOL_ERROR);
        }
        let taken = slot.transfer.take(pdu);
        let task = id(place.into(), slot);
        let usable = matches!(taken, Taken::Place(_));
        // Nobody looks at the data of an aborted task any more.
        if taken == Taken::Stale || slot.aborted {
            return Verdict::Ignore;
        }
        slot.arriving = true;
        if let Some(connection) = self.connection_mut(conn) {
            connection.current = Current::DataOut { task, header: pdu.to_bytes(), usable };
        }
        match taken {
            Taken::Place(offset) => Verdict::Place { task, offset },
            Taken::Drop | Taken::Stale => Verdict::Ignore,
        }
    }

    /// The data of the last request of a connection is there, or it had none. To be called for every request, at the
    /// [`super::super::Event::DataEnd`] of those that have data (with its verdict) and at once for the others.
    pub fn data_end(&mut self, conn: ConnId, digest_ok: bool) -> Received {
        let Some(connection) = self.connection_mut(conn) else { return Received::Nothing };
        match core::mem::replace(&mut connection.current, Current::Nothing) {
            Current::Nothing => Received::Nothing,
            Current::Command(task) => {
                let Some(slot) = self.slot_mut(task) else { return Received::Nothing };
                slot.arriving = false;
                if !digest_ok {
                    let (header, close) = (slot.header, !slot.immediate);
                    self.release(task.slot);
                    return Received::RejectRequest { header, close };
                }
                let aborted = slot.aborted;
                self.hold(task.slot);
                if aborted {
                    self.withdraw(task.slot);
                }
                Received::Command
            }
            Current::DataOut { task, header, usable } => {
                let Some(slot) = self.slot_mut(task) else { return Received::Nothing };
                slot.arriving = false;
                if !digest_ok {
                    slot.transfer.fail(TransportFault::ServiceCrc);
                }
                let progress = slot.progress();
                match digest_ok || !usable {
                    true => Received::Write(task, progress),
                    false => Received::RejectData { header, task, progress },
                }
            }
        }
    }
}

/// Whether a discovery session takes a request: Text and the logout of the session (RFC 7143 §4.3), and answers to NOP-In.
fn is_for_discovery(request: &Request) -> bool {
    match request {
        Request::Text(_) => true,
        Request::Logout(pdu) => pdu.reason() == LogoutReason::CLOSE_SESSION,
        Request::NopOut(pdu) => pdu.itt.get() == NO_TAG,
        // They have rejects of their own.
        Request::Login(_) | Request::Snack(_) | Request::Unknown(_) => true,
        Request::ScsiCommand(_) | Request::Task(_) | Request::DataOut(_) => false,
    }
}
