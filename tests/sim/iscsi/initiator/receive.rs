//! What the target sends, checked where it arrives.

use std::convert::Infallible;
use std::rc::Rc;

use super::super::cdb;
use super::super::login::Agreed;
use super::super::pdu::{BHS_LEN, DIGEST_LEN, NO_TAG, Pdu, crc32c, flag, op};
use super::{Answer, Conn, End, Ended, Kind, Session, Task, broken, function, is_later, outcome};

/// Events of an Asynchronous Message (RFC 7143 §11.9.1).
const REQUEST_LOGOUT: u8 = 1;
const DROP_CONNECTION: u8 = 2;
const DROP_SESSION: u8 = 3;
/// Why a PDU is rejected: its data digest (RFC 7143 §11.17.1).
const DATA_DIGEST_ERROR: u8 = 2;

/// Cuts the next PDU out of what was received, if it is there.
///
/// # Errors
/// A wrong digest; a length that was not agreed on.
pub fn cut(input: &mut Vec<u8>, agreed: &Agreed) -> Result<Option<Pdu>, End> {
    let header = BHS_LEN + if agreed.header_digest { DIGEST_LEN } else { 0 };
    if input.len() < header {
        return Ok(None);
    }
    if agreed.header_digest && crc32c(&input[..BHS_LEN]) != input[BHS_LEN..header] {
        return Err(End::Digest);
    }
    if input[4] != 0 {
        return broken("additional header segments");
    }
    let len = u32::from_be_bytes([0, input[5], input[6], input[7]]) as usize;
    if len > agreed.max_recv as usize {
        return broken(format!("{len} bytes of data in a PDU"));
    }
    let padded = len.next_multiple_of(4);
    let whole = header + padded + if agreed.data_digest && len > 0 { DIGEST_LEN } else { 0 };
    if input.len() < whole {
        return Ok(None);
    }
    let mut pdu = Pdu::new(0, 0);
    pdu.bhs.copy_from_slice(&input[..BHS_LEN]);
    pdu.data = input[header..header + len].to_vec();
    if agreed.data_digest && len > 0 && crc32c(&input[header..header + padded]) != input[header + padded..whole] {
        return Err(End::Digest);
    }
    input.drain(..whole);
    Ok(Some(pdu))
}

impl Session {
    pub(super) async fn receive(self: &Rc<Self>, index: usize, conn: &Rc<Conn>) -> Result<Infallible, End> {
        loop {
            loop {
                let pdu = cut(&mut conn.input.borrow_mut(), &conn.agreed)?;
                let Some(pdu) = pdu else { break };
                self.take(index, conn, &pdu)?;
            }
            let received = conn.stream.recv().await?;
            conn.input.borrow_mut().extend_from_slice(&received);
        }
    }

    /// Checks the numbers that every PDU has.
    fn numbers(&self, conn: &Conn, pdu: &Pdu) -> Result<(), End> {
        let (stat_sn, exp_cmd_sn, max_cmd_sn) = (pdu.get(24), pdu.get(28), pdu.get(32));
        let has_status = match pdu.opcode() {
            op::DATA_IN => pdu.is(flag::STATUS),
            op::NOP_IN => pdu.itt() != NO_TAG,
            op::R2T => false,
            _ => true,
        };
        let names_next = has_status || pdu.opcode() != op::DATA_IN;
        if names_next && stat_sn != conn.exp_stat_sn.get() {
            return broken(format!("StatSN {stat_sn}, not {}: {pdu:?}", conn.exp_stat_sn.get()));
        }
        if has_status {
            conn.exp_stat_sn.set(stat_sn.wrapping_add(1));
        }
        if is_later(exp_cmd_sn, self.cmd_sn.get()) || is_later(exp_cmd_sn, max_cmd_sn.wrapping_add(1)) {
            return broken(format!("ExpCmdSN {exp_cmd_sn}, MaxCmdSN {max_cmd_sn}, next is {}", self.cmd_sn.get()));
        }
        if is_later(exp_cmd_sn, self.exp_cmd_sn.get()) {
            self.exp_cmd_sn.set(exp_cmd_sn);
        }
        if is_later(max_cmd_sn, self.max_cmd_sn.get()) {
            self.max_cmd_sn.set(max_cmd_sn);
            self.wake_waiters();
        }
        Ok(())
    }

    fn take(self: &Rc<Self>, index: usize, conn: &Rc<Conn>, pdu: &Pdu) -> Result<(), End> {
        self.numbers(conn, pdu)?;
        if matches!(pdu.opcode(), op::DATA_IN | op::R2T | op::RESPONSE) {
            let tasks = self.tasks.borrow();
            let known = tasks.get(&pdu.itt()).filter(|task| matches!(task.kind, Kind::Scsi) && task.conn == index);
            if known.is_none_or(|task| task.ended.is_some()) {
                let has_status = pdu.opcode() == op::RESPONSE || pdu.opcode() == op::DATA_IN && pdu.is(flag::STATUS);
                if !has_status && self.over.borrow().contains(&pdu.itt()) {
                    return Ok(());
                }
                return broken(format!("for no task: {pdu:?}"));
            }
        }
        match pdu.opcode() {
            op::DATA_IN => self.data_in(pdu),
            op::RESPONSE => self.response(pdu),
            op::R2T => self.ready_to_transfer(conn, pdu),
            op::TASK_MANAGEMENT_RESPONSE => self.managed(pdu),
            op::LOGOUT_RESPONSE => {
                conn.logged_out.set(true);
                self.finish(pdu.itt(), Ended::Response(pdu.bhs[2]))
            }
            op::NOP_IN if pdu.itt() == NO_TAG => {
                let ttt = pdu.get(20);
                if ttt != NO_TAG {
                    let (here, conn) = (self.clone(), conn.clone());
                    self.reactor.spawn("initiator answers", async move {
                        let answer = || {
                            let pdu = Pdu::new(op::NOP_OUT | op::IMMEDIATE, flag::FINAL).with(16, NO_TAG);
                            pdu.with(20, ttt).with(24, here.cmd_sn.get())
                        };
                        // A session that has ended needs none.
                        let _ = here.send(&conn, 0, answer).await;
                    });
                }
                Ok(())
            }
            op::NOP_IN => self.finish(pdu.itt(), Ended::Response(0)),
            op::ASYNC => {
                match pdu.bhs[36] {
                    REQUEST_LOGOUT => self.logout_asked.set(true),
                    DROP_CONNECTION | DROP_SESSION => self.dropped.set(true),
                    event => return broken(format!("asynchronous event {event}")),
                }
                self.wake_waiters();
                Ok(())
            }
            op::REJECT if pdu.bhs[2] == DATA_DIGEST_ERROR => Err(End::Digest),
            _ => broken(format!("{pdu:?}")),
        }
    }

    fn finish(&self, itt: u32, ended: Ended) -> Result<(), End> {
        let mut tasks = self.tasks.borrow_mut();
        let Some(task) = tasks.get_mut(&itt) else { return broken(format!("{ended:?} for no task")) };
        task.ended = Some(ended);
        self.reactor.wake(task.waiter);
        Ok(())
    }

    fn data_in(&self, pdu: &Pdu) -> Result<(), End> {
        let mut ended = None;
        if let Some(task) = self.tasks.borrow_mut().get_mut(&pdu.itt()) {
            let (offset, len) = (pdu.get(40) as usize, pdu.data.len());
            let fits = offset == task.got && offset + len <= task.into.len() && pdu.get(36) == task.data_sn;
            if !fits || len == 0 || task.burst + len > self.agreed.max_burst as usize {
                return broken(format!("{len} bytes at {offset}, {} have come in {}", task.got, task.data_sn));
            }
            task.into[offset..offset + len].copy_from_slice(&pdu.data);
            task.got += len;
            task.data_sn += 1;
            task.burst = if pdu.is(flag::FINAL) { 0 } else { task.burst + len };
            if pdu.is(flag::STATUS) {
                if !pdu.is(flag::FINAL) {
                    return broken("a status before the end of the data");
                }
                ended = Some(task.answer(pdu, pdu.bhs[3], Vec::new())?);
            }
        }
        ended.map_or(Ok(()), |ended| self.finish(pdu.itt(), ended))
    }

    fn response(&self, pdu: &Pdu) -> Result<(), End> {
        let (response, status) = (pdu.bhs[2], pdu.bhs[3]);
        if response != 0 || !pdu.is(flag::FINAL) {
            return broken(format!("{pdu:?}"));
        }
        let sense = match pdu.data.split_first_chunk::<2>() {
            None => Vec::new(),
            Some((len, rest)) => match rest.get(..u16::from_be_bytes(*len).into()) {
                Some(sense) => sense.to_vec(),
                None => return broken("sense data beyond its PDU"),
            },
        };
        let ended = match self.tasks.borrow_mut().get_mut(&pdu.itt()) {
            Some(task) if pdu.get(36) != task.data_sn + task.r2t_sn => {
                return broken(format!("ExpDataSN {}, {} and {} came", pdu.get(36), task.data_sn, task.r2t_sn));
            }
            Some(task) => task.answer(pdu, status, sense)?,
            None => return broken("no task"),
        };
        self.finish(pdu.itt(), ended)
    }

    fn ready_to_transfer(self: &Rc<Self>, conn: &Rc<Conn>, pdu: &Pdu) -> Result<(), End> {
        let (itt, ttt, offset, len) = (pdu.itt(), pdu.get(20), pdu.get(40) as usize, pdu.get(44) as usize);
        if let Some(task) = self.tasks.borrow_mut().get_mut(&itt) {
            let fits = offset == task.asked && offset + len <= task.out.len() && pdu.get(36) == task.r2t_sn;
            let agreed = len <= self.agreed.max_burst as usize && task.r2ts < self.agreed.r2ts.into();
            if !fits || !agreed || len == 0 || ttt == NO_TAG {
                let (asked, total, r2ts) = (task.asked, task.out.len(), task.r2ts);
                return broken(format!(
                    "R2T of {len} bytes at {offset}: {asked} of {total} were asked for, {r2ts} R2Ts"
                ));
            }
            task.asked += len;
            task.r2t_sn += 1;
            task.r2ts += 1;
        }
        let (here, conn) = (self.clone(), conn.clone());
        self.reactor.spawn("initiator sends data", async move {
            // The last PDU may bring the next R2T before this task goes on.
            let last = offset + len;
            let _ = here.send_sequence(&conn, itt, ttt, offset, last).await;
        });
        Ok(())
    }

    async fn send_sequence(&self, conn: &Conn, itt: u32, ttt: u32, from: usize, to: usize) -> Result<(), End> {
        let done = self.send_data(conn, itt, ttt, from, to).await;
        if let Some(task) = self.tasks.borrow_mut().get_mut(&itt) {
            task.r2ts = task.r2ts.saturating_sub(1);
        }
        done
    }

    /// A task management function has ended, and with it the tasks that it was about.
    fn managed(&self, pdu: &Pdu) -> Result<(), End> {
        let response = pdu.bhs[2];
        {
            let mut tasks = self.tasks.borrow_mut();
            let Some(Task { kind: Kind::Management { function, lun, task, cmd_sn }, conn: by, .. }) =
                tasks.get(&pdu.itt())
            else {
                return broken(format!("for no function: {pdu:?}"));
            };
            let (function, lun, about, cmd_sn, by) = (*function, *lun, *task, *cmd_sn, *by);
            let known = response == outcome::COMPLETE;
            for (itt, task) in tasks.iter_mut().filter(|(_, task)| matches!(task.kind, Kind::Scsi)) {
                let affected = match function {
                    function::ABORT_TASK => *itt == about && matches!(response, outcome::COMPLETE | outcome::NO_TASK),
                    function::ABORT_TASK_SET | function::CLEAR_TASK_SET | function::LOGICAL_UNIT_RESET => {
                        known && task.lun == lun && is_later(cmd_sn, task.cmd_sn)
                    }
                    _ => known && is_later(cmd_sn, task.cmd_sn),
                };
                if affected && task.ended.is_none() {
                    task.ended = Some(Ended::Over { known });
                    if task.conn != by {
                        self.over.borrow_mut().insert(*itt);
                    }
                    self.reactor.wake(task.waiter);
                }
            }
        }
        self.finish(pdu.itt(), Ended::Response(response))
    }
}

impl Task {
    /// The end of a command, with its residual checked.
    fn answer(&mut self, pdu: &Pdu, status: u8, sense: Vec<u8>) -> Result<Ended, End> {
        let expected = self.into.len().max(self.out.len());
        let residual = pdu.get(44) as usize;
        if pdu.is(flag::OVERFLOW) || pdu.is(flag::UNDERFLOW) && residual > expected {
            return broken(format!("a residual of {residual} for {expected} bytes"));
        }
        let good = status == cdb::status::GOOD;
        let missing = if pdu.is(flag::UNDERFLOW) { residual } else { 0 };
        if good && !self.into.is_empty() && self.got + missing != self.into.len() {
            return broken(format!("{} of {} bytes came, residual {missing}", self.got, self.into.len()));
        }
        if good && self.asked + missing < self.out.len() {
            return broken(format!("GOOD after {} of {} bytes", self.asked, self.out.len()));
        }
        self.into.truncate(self.got);
        Ok(Ended::Scsi(Answer { status, sense, data: std::mem::take(&mut self.into) }))
    }
}
