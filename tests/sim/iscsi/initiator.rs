//! An initiator on a simulated reactor, written from RFC 7143 alone: a session of one or several connections at error recovery level 0.
//!
//! Whatever the target sends is checked where it arrives: the numbers of RFC 7143 §4.2.2, the order and bounds of data and R2Ts, digests. A
//! task that a task management function has ended is forgotten with the answer to that: one that is answered later is a fault.

mod receive;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use hugepages::MAX_BUF;
use reactor::net::{Stream, StreamError, Tx};
use reactor::reactor::{Reactor, TaskId};

use super::cdb::Cdb;
use super::login::{Agreed, Ask, Place, log_in};
use super::pdu::{BHS_LEN, DIGEST_LEN, NO_TAG, Pdu, flag, lun_bytes, op};

pub use receive::cut;

/// Task management functions (RFC 7143 §11.5.1).
pub mod function {
    pub const ABORT_TASK: u8 = 1;
    pub const ABORT_TASK_SET: u8 = 2;
    pub const CLEAR_TASK_SET: u8 = 4;
    pub const LOGICAL_UNIT_RESET: u8 = 5;
    pub const TARGET_WARM_RESET: u8 = 6;
    pub const TARGET_COLD_RESET: u8 = 7;
}

/// Answers to them (RFC 7143 §11.6.1).
pub mod outcome {
    pub const COMPLETE: u8 = 0;
    pub const NO_TASK: u8 = 1;
    pub const NO_LUN: u8 = 2;
}

/// Why a session ended or did not begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The stream ended, or there was none.
    Stream(String),
    /// No answer in time.
    Timeout(&'static str),
    /// Status-Class and Status-Detail of a login.
    Refused(u16),
    /// A digest was wrong, here or there.
    Digest,
    /// The target has said that it ends the session.
    Dropped,
    /// This side ended it.
    Closed,
    /// The target has broken the protocol.
    Protocol(String),
}

impl From<StreamError> for End {
    fn from(error: StreamError) -> End {
        End::Stream(format!("{error:?}"))
    }
}

pub fn broken<T>(why: impl Into<String>) -> Result<T, End> {
    Err(End::Protocol(why.into()))
}

/// Whether number `a` comes after `b` (RFC 1982).
fn is_later(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// How a SCSI command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u8,
    pub sense: Vec<u8>,
    pub data: Vec<u8>,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    Scsi(Answer),
    /// Of a task management function or logout: the response.
    Response(u8),
    /// A task management function has ended it. `known`: the target has said that it was there, or that it affects all.
    Over {
        known: bool,
    },
}

enum Kind {
    Scsi,
    Management { function: u8, lun: u16, task: u32, cmd_sn: u32 },
    Logout,
    Ping,
}

struct Task {
    kind: Kind,
    conn: usize,
    lun: u16,
    cmd_sn: u32,
    waiter: TaskId,
    out: Rc<Vec<u8>>,
    into: Vec<u8>,
    /// Bytes of data-in that have come, and how many of them since the last sequence ended.
    got: usize,
    burst: usize,
    data_sn: u32,
    r2t_sn: u32,
    /// Bytes of data-out that were sent without being asked for, or were asked for.
    asked: usize,
    r2ts: u32,
    ended: Option<Ended>,
}

/// A connection.
pub struct Conn {
    pub cid: u16,
    stream: Rc<Stream>,
    tx: Rc<Tx>,
    agreed: Agreed,
    input: RefCell<Vec<u8>>,
    exp_stat_sn: Cell<u32>,
    /// A command with unsolicited data has not sent all of it: those come in the order of their commands.
    sending: Cell<bool>,
    /// Requests that are being sent, and functions that are not answered.
    users: Cell<u32>,
    /// It takes no more requests.
    retired: Cell<bool>,
    /// It was logged out: its end is none of the session's.
    logged_out: Cell<bool>,
}

/// One of [`Conn::users`], until it is dropped.
struct User(Rc<Conn>);

impl User {
    fn of(conn: &Rc<Conn>) -> User {
        conn.users.set(conn.users.get() + 1);
        User(conn.clone())
    }
}

impl Drop for User {
    fn drop(&mut self) {
        self.0.users.set(self.0.users.get() - 1);
    }
}

/// See the module's head.
pub struct Session {
    reactor: Rc<Reactor>,
    pub tsih: u16,
    place: Place,
    pub agreed: Agreed,
    conns: RefCell<Vec<Rc<Conn>>>,
    cmd_sn: Cell<u32>,
    /// Numbers that commands on their way out will take.
    claimed: Cell<u32>,
    exp_cmd_sn: Cell<u32>,
    max_cmd_sn: Cell<u32>,
    next_itt: Cell<u32>,
    tasks: RefCell<BTreeMap<u32, Task>>,
    /// Tasks that were ended by way of another connection than their own, on which data may still be on its way: it has no StatSN to wait for.
    over: RefCell<BTreeSet<u32>>,
    ended: RefCell<Option<End>>,
    /// Wait for the window, or for a connection to send on.
    waiters: RefCell<Vec<TaskId>>,
    logout_asked: Cell<bool>,
    dropped: Cell<bool>,
}

impl Session {
    /// Logs in by a first connection.
    ///
    /// # Errors
    /// Why not.
    pub async fn open(reactor: &Rc<Reactor>, to: SocketAddr, place: Place, ask: &Ask) -> Result<Rc<Session>, End> {
        let first_sn = reactor.entropy().next() as u32;
        let login = log_in(reactor, to, &place, ask, (0, 0), first_sn).await?;
        let session = Rc::new(Session {
            reactor: reactor.clone(),
            tsih: login.tsih,
            place,
            agreed: login.agreed,
            conns: RefCell::default(),
            cmd_sn: Cell::new(first_sn),
            claimed: Cell::new(0),
            exp_cmd_sn: Cell::new(login.exp_cmd_sn),
            max_cmd_sn: Cell::new(login.max_cmd_sn),
            next_itt: Cell::new(reactor.entropy().next() as u32),
            tasks: RefCell::default(),
            over: RefCell::default(),
            ended: RefCell::default(),
            waiters: RefCell::default(),
            logout_asked: Cell::new(false),
            dropped: Cell::new(false),
        });
        session.take_in(0, login.stream, login.input, login.agreed, login.exp_stat_sn);
        Ok(session)
    }

    /// Adds a connection.
    ///
    /// # Errors
    /// Why not; the session goes on if it did.
    pub async fn join(self: &Rc<Self>, to: SocketAddr, cid: u16, ask: &Ask) -> Result<(), End> {
        let login = log_in(&self.reactor, to, &self.place, ask, (self.tsih, cid), self.cmd_sn.get()).await?;
        if login.tsih != self.tsih {
            return broken(format!("joined session {}, not {}", login.tsih, self.tsih));
        }
        let own = login.agreed;
        let (header_digest, data_digest) = (own.header_digest, own.data_digest);
        let agreed =
            Agreed { header_digest, data_digest, max_recv: own.max_recv, max_send: own.max_send, ..self.agreed };
        self.take_in(cid, login.stream, login.input, agreed, login.exp_stat_sn);
        match self.end() {
            // Too late for the one that ended it.
            Some(end) => {
                self.close(end.clone());
                Err(end)
            }
            None => Ok(()),
        }
    }

    fn take_in(self: &Rc<Self>, cid: u16, stream: Rc<Stream>, input: Vec<u8>, agreed: Agreed, exp_stat_sn: u32) {
        let conn = Rc::new(Conn {
            cid,
            tx: Tx::new(&stream),
            stream,
            agreed,
            input: RefCell::new(input),
            exp_stat_sn: Cell::new(exp_stat_sn),
            sending: Cell::new(false),
            users: Cell::new(0),
            retired: Cell::new(false),
            logged_out: Cell::new(false),
        });
        let index = {
            let mut conns = self.conns.borrow_mut();
            conns.push(conn.clone());
            conns.len() - 1
        };
        let sender = conn.tx.clone();
        self.reactor.spawn("initiator sends", async move { sender.run().await });
        let here = self.clone();
        self.reactor.spawn("initiator receives", async move {
            let Err(end) = here.receive(index, &conn).await;
            if conn.logged_out.get() {
                conn.stream.shut_down();
                conn.tx.finish();
            } else {
                here.close(if here.dropped.get() { End::Dropped } else { end });
            }
        });
    }

    /// Connections that can be used.
    pub fn usable(&self) -> Vec<usize> {
        let conns = self.conns.borrow();
        let there = conns.iter().enumerate().filter(|(_, conn)| !conn.retired.get());
        there.map(|(index, _)| index).collect()
    }

    /// Why it ended, if it has.
    pub fn end(&self) -> Option<End> {
        self.ended.borrow().clone()
    }

    /// The target has asked for a logout.
    pub fn is_logout_asked(&self) -> bool {
        self.logout_asked.get()
    }

    /// The tags of commands that are not answered, with their connections and logical units.
    pub fn in_flight(&self) -> Vec<(u32, usize, u16)> {
        let tasks = self.tasks.borrow();
        let commands = tasks.iter().filter(|(_, task)| matches!(task.kind, Kind::Scsi) && task.ended.is_none());
        commands.map(|(itt, task)| (*itt, task.conn, task.lun)).collect()
    }

    /// Ends it without a word.
    pub fn close(&self, end: End) {
        self.ended.borrow_mut().get_or_insert(end);
        for conn in self.conns.borrow().iter() {
            conn.stream.shut_down();
            conn.tx.finish();
        }
        self.tasks.borrow().values().for_each(|task| self.reactor.wake(task.waiter));
        self.wake_waiters();
    }

    fn wake_waiters(&self) {
        self.waiters.borrow_mut().drain(..).for_each(|task| self.reactor.wake(task));
    }

    /// Waits until `ready` gives something, or the session has ended.
    async fn until<T>(&self, mut ready: impl FnMut() -> Option<T>) -> Result<T, End> {
        poll_fn(|_| {
            if let Some(end) = self.end() {
                return Poll::Ready(Err(end));
            }
            if let Some(value) = ready() {
                return Poll::Ready(Ok(value));
            }
            self.waiters.borrow_mut().push(self.reactor.current_task());
            Poll::Pending
        })
        .await
    }

    /// Sends a PDU that `make` makes when there is room, of at most `len` bytes of data.
    async fn send(&self, conn: &Conn, len: usize, make: impl FnOnce() -> Pdu) -> Result<(), End> {
        let room = BHS_LEN + len.next_multiple_of(4) + 2 * DIGEST_LEN;
        let (header_digest, data_digest) = (conn.agreed.header_digest, conn.agreed.data_digest);
        let encode = || {
            let mut pdu = make();
            pdu.set(28, conn.exp_stat_sn.get());
            pdu.encode(header_digest, data_digest)
        };
        if len == 0 {
            let push = conn.tx.push(1, room, |batch| {
                let bytes = encode();
                batch.push_head(|out| {
                    out[..bytes.len()].copy_from_slice(&bytes);
                    bytes.len()
                });
            });
            push.await?;
        } else {
            let mut buf = self.reactor.buffer(room).await;
            let push = conn.tx.push(1, 0, |batch| {
                let bytes = encode();
                buf.truncate(bytes.len());
                buf.copy_from_slice(&bytes);
                batch.push_buf(buf);
            });
            push.await?;
        }
        Ok(())
    }

    /// Sends a SCSI command with its data; returns its tag.
    ///
    /// # Errors
    /// If the session has ended.
    pub async fn command(
        self: &Rc<Self>,
        index: usize,
        lun: u16,
        cdb: &Cdb,
        out: Vec<u8>,
        in_len: usize,
        attribute: u8,
    ) -> Result<u32, End> {
        let conn = self.conns.borrow()[index].clone();
        let _user = User::of(&conn);
        let agreed = conn.agreed;
        let chance = self.reactor.entropy();
        let total = out.len();
        let first_burst = (agreed.first_burst as usize).min(total);
        let mut immediate = 0;
        if agreed.immediate && chance.below(4) > 0 {
            immediate = first_burst.min(agreed.max_send as usize);
            if chance.below(4) == 0 {
                immediate = chance.below(immediate as u64 + 1) as usize;
            }
        }
        let mut unsolicited = immediate;
        if !agreed.initial_r2t && chance.below(4) > 0 {
            unsolicited = first_burst;
        }
        let follows = unsolicited > immediate;
        self.until(|| (self.credit() && !(follows && conn.sending.get())).then_some(())).await?;
        self.claimed.set(self.claimed.get() + 1);
        conn.sending.set(conn.sending.get() || follows);
        let itt = self.next_tag();
        let out = Rc::new(out);
        let waiter = self.reactor.current_task();
        let sent = self
            .send(&conn, immediate, || {
                let cmd_sn = self.cmd_sn.get();
                self.cmd_sn.set(cmd_sn.wrapping_add(1));
                self.claimed.set(self.claimed.get() - 1);
                let (kind, into) = (Kind::Scsi, vec![0xa5; in_len]);
                let (got, burst, data_sn, r2t_sn, r2ts) = (0, 0, 0, 0, 0);
                let (asked, ended, conn) = (unsolicited, None, index);
                let out = out.clone();
                self.tasks.borrow_mut().insert(
                    itt,
                    Task {
                        kind,
                        conn,
                        lun,
                        cmd_sn,
                        waiter,
                        out,
                        into,
                        got,
                        burst,
                        data_sn,
                        r2t_sn,
                        asked,
                        r2ts,
                        ended,
                    },
                );
                let mut flags = attribute | if follows { 0 } else { flag::FINAL };
                flags |= if total > 0 { flag::WRITE } else { 0 } | if in_len > 0 { flag::READ } else { 0 };
                let mut pdu = Pdu::new(op::COMMAND, flags).with_lun(lun).with_data(&self.part(itt, 0, immediate));
                pdu.set(16, itt);
                pdu.set(20, total.max(in_len) as u32);
                pdu.set(24, cmd_sn);
                pdu.bhs[32..48].copy_from_slice(cdb);
                pdu
            })
            .await;
        let sent = match sent {
            Ok(()) if follows => self.send_data(&conn, itt, NO_TAG, immediate, unsolicited).await,
            sent => sent,
        };
        if follows {
            conn.sending.set(false);
            self.wake_waiters();
        }
        sent.map(|()| itt)
    }

    /// Whether a command may be sent.
    fn credit(&self) -> bool {
        !is_later(self.cmd_sn.get().wrapping_add(self.claimed.get()), self.max_cmd_sn.get())
    }

    fn next_tag(&self) -> u32 {
        loop {
            let itt = self.next_itt.get();
            self.next_itt.set(itt.wrapping_add(1));
            if itt != NO_TAG && !self.tasks.borrow().contains_key(&itt) {
                return itt;
            }
        }
    }

    fn part(&self, itt: u32, from: usize, to: usize) -> Vec<u8> {
        self.tasks.borrow().get(&itt).map_or(Vec::new(), |task| task.out[from..to].to_vec())
    }

    /// Sends a sequence of Data-Out, in PDUs of any size; no more of it once the task has ended.
    async fn send_data(&self, conn: &Conn, itt: u32, ttt: u32, from: usize, to: usize) -> Result<(), End> {
        let chance = self.reactor.entropy();
        let (mut at, mut data_sn) = (from, 0);
        let most = (conn.agreed.max_send as usize).min(MAX_BUF - 4096);
        let lun = self.tasks.borrow().get(&itt).map_or(0, |task| task.lun);
        while at < to {
            let len = (to - at).min(most);
            let len = if chance.below(8) == 0 { 1 + chance.below(len as u64) as usize } else { len };
            if self.tasks.borrow().get(&itt).is_none_or(|task| task.ended.is_some()) {
                return Ok(());
            }
            let data = self.part(itt, at, at + len);
            let last = at + len == to;
            self.send(conn, len, || {
                let mut pdu = Pdu::new(op::DATA_OUT, if last { flag::FINAL } else { 0 }).with_data(&data);
                if ttt != NO_TAG {
                    pdu.bhs[8..16].copy_from_slice(&lun_bytes(lun));
                }
                pdu.with(16, itt).with(20, ttt).with(36, data_sn).with(40, at as u32)
            })
            .await?;
            at += len;
            data_sn += 1;
        }
        Ok(())
    }

    /// Waits for the end of a request of the current task. `None`: not until `deadline`.
    ///
    /// # Errors
    /// If the session has ended first.
    pub async fn wait(&self, itt: u32, deadline: u64) -> Result<Option<Ended>, End> {
        let now = self.reactor.clock().now();
        let mut time_up = pin!(self.reactor.sleep(deadline.saturating_sub(now)));
        poll_fn(|cx| {
            let mut tasks = self.tasks.borrow_mut();
            if let Some(ended) = tasks.get_mut(&itt).and_then(|task| task.ended.take()) {
                tasks.remove(&itt);
                return Poll::Ready(Ok(Some(ended)));
            }
            drop(tasks);
            if let Some(end) = self.end() {
                return Poll::Ready(Err(end));
            }
            time_up.as_mut().poll(cx).map(|()| Ok(None))
        })
        .await
    }

    /// Asks for a task management function, for immediate delivery; returns the response. `about`: logical unit, and of ABORT TASK the task.
    ///
    /// # Errors
    /// If the session has ended, or there is none until `deadline`.
    pub async fn manage(&self, index: usize, what: u8, about: (u16, u32), deadline: u64) -> Result<u8, End> {
        let conn = self.conns.borrow()[index].clone();
        let _user = User::of(&conn);
        let (lun, task) = about;
        let ref_cmd_sn = self.tasks.borrow().get(&task).map_or(0, |task| task.cmd_sn);
        let itt = self.next_tag();
        let waiter = self.reactor.current_task();
        let pdu = || {
            let cmd_sn = self.cmd_sn.get();
            self.insert(itt, index, Kind::Management { function: what, lun, task, cmd_sn }, waiter);
            let mut pdu = Pdu::new(op::TASK_MANAGEMENT | op::IMMEDIATE, flag::FINAL | what).with(16, itt);
            if !matches!(what, function::TARGET_WARM_RESET | function::TARGET_COLD_RESET) {
                pdu = pdu.with_lun(lun);
            }
            let (tag, number) = if what == function::ABORT_TASK { (task, ref_cmd_sn) } else { (NO_TAG, 0) };
            pdu.with(20, tag).with(24, cmd_sn).with(32, number)
        };
        self.send(&conn, 0, pdu).await?;
        match self.wait(itt, deadline).await? {
            Some(Ended::Response(response)) => Ok(response),
            Some(other) => broken(format!("{other:?} to a task management function")),
            None => Err(End::Timeout("task management")),
        }
    }

    fn insert(&self, itt: u32, conn: usize, kind: Kind, waiter: TaskId) {
        let (out, into, cmd_sn) = (Rc::default(), Vec::new(), self.cmd_sn.get());
        let (got, burst, data_sn, r2t_sn, asked, r2ts, ended) = (0, 0, 0, 0, 0, 0, None);
        let task =
            Task { kind, conn, lun: 0, cmd_sn, waiter, out, into, got, burst, data_sn, r2t_sn, asked, r2ts, ended };
        self.tasks.borrow_mut().insert(itt, task);
    }

    /// Logs the session out, whatever is in flight.
    ///
    /// # Errors
    /// If the session has ended, or there is no answer until `deadline`.
    pub async fn log_out(&self, deadline: u64) -> Result<(), End> {
        const CLOSE_SESSION: u8 = 0;
        let Some(index) = self.usable().first().copied() else { return Err(End::Closed) };
        self.logout(index, CLOSE_SESSION, deadline).await?;
        self.close(End::Closed);
        Ok(())
    }

    /// Logs a retired connection out ([`Session::retire`]), and returns its identifier.
    ///
    /// # Errors
    /// As [`Session::log_out`].
    pub async fn log_out_connection(&self, index: usize, deadline: u64) -> Result<u16, End> {
        const CLOSE_CONNECTION: u8 = 1;
        self.logout(index, CLOSE_CONNECTION, deadline).await?;
        Ok(self.conns.borrow()[index].cid)
    }

    async fn logout(&self, index: usize, reason: u8, deadline: u64) -> Result<(), End> {
        let conn = self.conns.borrow()[index].clone();
        let (itt, waiter) = (self.next_tag(), self.reactor.current_task());
        let pdu = || {
            self.insert(itt, index, Kind::Logout, waiter);
            let pdu = Pdu::new(op::LOGOUT | op::IMMEDIATE, flag::FINAL | reason).with(16, itt);
            pdu.with16(20, conn.cid).with(24, self.cmd_sn.get())
        };
        self.send(&conn, 0, pdu).await?;
        match self.wait(itt, deadline).await? {
            Some(Ended::Response(0)) => Ok(()),
            Some(other) => broken(format!("{other:?} to a logout")),
            None => Err(End::Timeout("logout")),
        }
    }

    /// Takes a number that [`Session::ping`] is to bring: until then, what is sent does not have its turn.
    pub fn claim_number(&self) -> u32 {
        let number = self.cmd_sn.get();
        self.cmd_sn.set(number.wrapping_add(1));
        number
    }

    /// Sends a NOP-Out with a number that was claimed, and waits for its answer.
    ///
    /// # Errors
    /// If the session has ended.
    pub async fn ping(&self, index: usize, number: u32) -> Result<(), End> {
        let conn = self.conns.borrow()[index].clone();
        let (itt, waiter) = (self.next_tag(), self.reactor.current_task());
        let pdu = || {
            self.insert(itt, index, Kind::Ping, waiter);
            Pdu::new(op::NOP_OUT, flag::FINAL).with(16, itt).with(20, NO_TAG).with(24, number)
        };
        self.send(&conn, 0, pdu).await?;
        self.wait(itt, u64::MAX).await.map(drop)
    }

    /// Another connection is to take the place of this one: its end is none of the session's, and its tasks are not answered.
    pub fn give_up(&self, index: usize) {
        let conn = self.conns.borrow()[index].clone();
        conn.retired.set(true);
        conn.logged_out.set(true);
        self.tasks.borrow_mut().retain(|_, task| task.conn != index);
    }

    /// No more requests by a connection. Whether nothing of it is under way.
    pub fn retire(&self, index: usize) -> bool {
        let conn = self.conns.borrow()[index].clone();
        conn.retired.set(true);
        conn.users.get() == 0 && self.in_flight().iter().all(|(_, conn, _)| *conn != index)
    }
}
