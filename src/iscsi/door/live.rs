//! A session on its reactor: the engine, its connections, its slots, and the logical units as it sees them.
//!
//! All connections of a session are on one reactor. What others decide comes by message from the home ([`super::home`]): which logical
//! units there are, and what the session may do with each ([`crate::scsi::Gate`]).

use std::cell::{Cell, RefCell, RefMut};
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};
use std::task::Poll;

use super::conn::{Conn, LOOK_NS};
use super::home::{self, HOME, UnitKey, View};
use super::local::Local;
use super::slot::Slot;
use crate::bdev::{HostTold, Told};
use crate::iscsi::{
    Alive, ConnId, Established, Joined, Keepalive, Notice, Params, Ready, Session, SessionKind, SessionLimits, TaskId,
};
use crate::limits::{ISCSI_CONNECTIONS_PER_SESSION, ISCSI_IMMEDIATE, ISCSI_NOP_INTERVAL_NS, ISCSI_NOP_TIMEOUT_NS};
use crate::reactor::mailbox::Message;
use crate::reactor::{Reactor, TaskId as TaskHandle};
use crate::scsi::Gate;
use crate::scsi::disk::Disk;

/// Commands that an initiator may have outstanding in a session.
pub const WINDOW: u16 = crate::limits::ISCSI_WINDOW;

/// A logical unit as a session sees it.
pub struct LunView {
    /// Its number in the session.
    pub lun: u16,
    /// Which unit it is.
    pub key: UnitKey,
    disk: RefCell<Rc<Disk>>,
    gate: Cell<Gate>,
    /// Of the last news about it: what is older comes too late.
    stamp: Cell<u64>,
    turns: RefCell<Turns>,
}

/// Whose turn it is, for commands with the ORDERED attribute (SAM-5, task attributes): those before it end first, those behind it
/// begin later.
#[derive(Default)]
struct Turns {
    running: u32,
    ordered: bool,
    waiting: VecDeque<(TaskHandle, bool)>,
}

impl LunView {
    /// The blocks.
    #[inline]
    pub fn disk(&self) -> Rc<Disk> {
        self.disk.borrow().clone()
    }

    /// What the session may do.
    #[inline]
    pub fn gate(&self) -> Gate {
        self.gate.get()
    }

    /// What the session may do, unless there was later news.
    fn hear(&self, stamp: u64, gate: &Gate) {
        if stamp >= self.stamp.get() {
            self.stamp.set(stamp);
            self.gate.set(*gate);
        }
    }

    /// A command begins, if it is its turn; else [`LunView::may_enter`] says when.
    #[inline]
    pub fn enter(&self, ordered: bool) -> bool {
        let mut turns = self.turns.borrow_mut();
        if turns.ordered || !turns.waiting.is_empty() || ordered && turns.running > 0 {
            return false;
        }
        turns.running += 1;
        turns.ordered = ordered;
        true
    }

    /// Asked by the task of a command that waits for its turn, whenever it is polled. Its turn begins with `true`.
    pub fn may_enter(&self, task: TaskHandle, ordered: bool) -> bool {
        let mut turns = self.turns.borrow_mut();
        if !turns.waiting.iter().any(|(waiting, _)| *waiting == task) {
            turns.waiting.push_back((task, ordered));
        }
        let first = turns.waiting.front().is_some_and(|(waiting, _)| *waiting == task);
        if !first || turns.ordered || ordered && turns.running > 0 {
            return false;
        }
        turns.waiting.pop_front();
        turns.running += 1;
        turns.ordered = ordered;
        true
    }

    /// The task that is polled does not wait any more.
    pub fn give_up(&self, reactor: &Reactor) {
        let me = reactor.current_task();
        self.turns.borrow_mut().waiting.retain(|(waiting, _)| *waiting != me);
        self.wake_all(reactor);
    }

    /// A command has ended.
    #[inline]
    pub fn leave(&self, reactor: &Reactor, ordered: bool) {
        let mut turns = self.turns.borrow_mut();
        turns.running -= 1;
        turns.ordered &= !ordered;
        let waits = !turns.waiting.is_empty();
        drop(turns);
        if waits {
            self.wake_all(reactor);
        }
    }

    /// Has those look who wait for their turn.
    pub fn wake_all(&self, reactor: &Reactor) {
        self.turns.borrow().waiting.iter().for_each(|(task, _)| reactor.wake(*task));
    }
}

/// See the module's head.
pub struct Live {
    reactor: Rc<Reactor>,
    local: Rc<Local>,
    tsih: u16,
    initiator: String,
    target: Option<String>,
    kind: SessionKind,
    engine: RefCell<Session>,
    slots: RefCell<Vec<Option<Rc<Slot>>>>,
    /// Each is kept by its tasks and refers to this: kept here too, neither would go when a reactor ends with connections open.
    conns: RefCell<Vec<Option<Weak<Conn>>>>,
    luns: RefCell<Vec<Option<Rc<LunView>>>>,
    /// The last gate of each unit with its stamp: news may be here before the view of which they are.
    news: RefCell<BTreeMap<UnitKey, (u64, Gate)>>,
    told: RefCell<HostTold>,
    /// Of the last news of the logical units.
    stamp: Cell<u64>,
    /// Slots of task management and logouts, which wait for others.
    managers: RefCell<Vec<Rc<Slot>>>,
    /// A connection is about to take the place of the last one.
    held: Cell<bool>,
    /// Its initiator was told to go: no connection takes the place of those that are there.
    dismissed: Cell<bool>,
    closing: Cell<bool>,
    over: Cell<bool>,
    /// Since when numbers of the window have been missing, as the watch has seen it.
    stuck_since: Cell<Option<u64>>,
}

impl Live {
    /// The session of a login that is the first of its session, with its connection.
    pub fn begin(local: &Rc<Local>, login: &Established, conn: &Rc<Conn>) -> (Rc<Live>, ConnId) {
        let reactor = local.reactor().clone();
        let now = reactor.clock().now();
        let discovery = login.kind == SessionKind::Discovery;
        let limits = SessionLimits {
            window: if discovery { 1 } else { WINDOW },
            immediate: if discovery { 1 } else { ISCSI_IMMEDIATE },
            connections: ISCSI_CONNECTIONS_PER_SESSION,
        };
        let keepalive = Keepalive { interval_ns: ISCSI_NOP_INTERVAL_NS, timeout_ns: ISCSI_NOP_TIMEOUT_NS };
        let (engine, number) = Session::new(login, limits, keepalive, now);
        let live = Rc::new(Live {
            reactor,
            local: local.clone(),
            tsih: login.tsih,
            initiator: login.initiator.clone(),
            target: login.nexus.target.clone(),
            kind: login.kind,
            engine: RefCell::new(engine),
            slots: RefCell::default(),
            conns: RefCell::default(),
            luns: RefCell::default(),
            news: RefCell::default(),
            told: RefCell::new(HostTold::new(now)),
            stamp: Cell::new(0),
            managers: RefCell::default(),
            held: Cell::new(false),
            dismissed: Cell::new(false),
            closing: Cell::new(false),
            over: Cell::new(false),
            stuck_since: Cell::new(None),
        });
        live.put(number, conn);
        local.insert_session(&live);
        (live, number)
    }

    /// A further connection; `None` if there are too many, if one of its identifier is there, or if the session ends.
    pub fn join(&self, login: &Established, conn: &Rc<Conn>) -> Option<ConnId> {
        // One of its identifier may have come in while the home was answering: that is there first.
        if self.is_closing() || self.engine().connection(login.cid).is_some() {
            return None;
        }
        self.held.set(false);
        let number = self.engine().add_connection(login, self.reactor.clock().now())?;
        self.put(number, conn);
        Some(number)
    }

    fn put(&self, number: ConnId, conn: &Rc<Conn>) {
        let mut conns = self.conns.borrow_mut();
        if conns.len() <= number.index() {
            conns.resize(number.index() + 1, None);
        }
        conns[number.index()] = Some(Rc::downgrade(conn));
    }

    /// What a connection that joins must know.
    pub fn joined(&self) -> Joined {
        let engine = self.engine();
        let first = engine.connections().next();
        Joined {
            params: first.and_then(|conn| engine.params(conn).copied()).unwrap_or_default(),
            exp_cmd_sn: engine.exp_cmd_sn(),
            max_cmd_sn: engine.max_cmd_sn(),
        }
    }

    /// The reactor it lives on.
    #[inline]
    pub fn reactor(&self) -> &Rc<Reactor> {
        &self.reactor
    }

    /// The engine, for one call: nothing else may ask for it meanwhile.
    #[inline]
    pub fn engine(&self) -> RefMut<'_, Session> {
        self.engine.borrow_mut()
    }

    /// What was agreed for a connection.
    pub fn engine_params(&self, number: ConnId) -> Params {
        self.engine().params(number).copied().unwrap_or_default()
    }

    /// Its number, unique among all sessions.
    pub fn tsih(&self) -> u16 {
        self.tsih
    }

    /// Name of the initiator.
    pub fn initiator(&self) -> &str {
        &self.initiator
    }

    /// Name of the target, unless it is for discovery.
    pub fn target(&self) -> Option<&str> {
        self.target.as_deref()
    }

    /// What it is for.
    pub fn kind(&self) -> SessionKind {
        self.kind
    }

    /// A logical unit.
    #[inline]
    pub fn lun(&self, lun: u16) -> Option<Rc<LunView>> {
        self.luns.borrow().get(usize::from(lun))?.clone()
    }

    /// All logical units.
    pub fn luns(&self) -> Vec<Rc<LunView>> {
        self.luns.borrow().iter().flatten().cloned().collect()
    }

    /// Their numbers.
    pub fn lun_numbers(&self) -> Vec<u16> {
        self.luns.borrow().iter().flatten().map(|view| view.lun).collect()
    }

    /// The connection that a task came by.
    #[inline]
    pub fn conn_of(&self, task: TaskId) -> Option<Rc<Conn>> {
        let number = self.engine().connection_of(task)?;
        self.conn(number)
    }

    /// A connection.
    pub fn conn(&self, number: ConnId) -> Option<Rc<Conn>> {
        self.conns.borrow().get(number.index())?.as_ref()?.upgrade()
    }

    /// All connections with their numbers.
    pub fn conns(&self) -> Vec<(ConnId, Rc<Conn>)> {
        let numbers: Vec<ConnId> = self.engine().connections().collect();
        numbers.into_iter().filter_map(|number| Some((number, self.conn(number)?))).collect()
    }

    /// The slot of a task.
    #[inline]
    pub fn slot(&self, task: TaskId) -> Rc<Slot> {
        let mut slots = self.slots.borrow_mut();
        let index = task.slot();
        if slots.len() <= index {
            slots.resize(index + 1, None);
        }
        slots[index].get_or_insert_with(|| Rc::new(Slot::new())).clone()
    }

    /// Has the task of a command look again.
    pub fn wake(&self, task: TaskId) {
        self.slot(task).wake(&self.reactor);
    }

    /// Starts the commands whose turn has come.
    #[inline]
    pub fn pump(self: &Rc<Self>) {
        loop {
            let Some(ready) = self.engine().next_ready() else { return };
            let slot = self.slot(ready.task());
            if matches!(ready, Ready::Task(_) | Ready::Logout(_)) {
                self.managers.borrow_mut().push(slot.clone());
            }
            slot.start(self, ready);
        }
    }

    /// A command has ended: others may begin, and who waits for its end is told.
    #[inline]
    pub fn ended(self: &Rc<Self>) {
        self.pump();
        self.look_at_managers();
    }

    /// Has those look who wait for ends of commands, and for what initiators acknowledge.
    #[inline]
    pub fn look_at_managers(&self) {
        for slot in self.managers.borrow().iter() {
            slot.wake(&self.reactor);
        }
    }

    /// A task management request or logout has been answered, or has ended.
    pub fn managed(&self, slot: &Rc<Slot>) {
        self.managers.borrow_mut().retain(|other| !Rc::ptr_eq(other, slot));
    }

    /// Has a task end as soon as it can, without an answer.
    pub fn abort(&self, task: TaskId) {
        let slot = self.slots.borrow().get(task.slot()).cloned().flatten();
        if let Some(slot) = slot {
            slot.abort(&self.reactor, false);
        }
    }

    /// Has the tasks on a logical unit end as soon as they can, but for one: with TASK ABORTED if `tell`, else without an answer. Returns
    /// them.
    pub fn abort_unit(&self, key: UnitKey, tell: bool, but: Option<TaskId>) -> Vec<TaskId> {
        let mut aborted = Vec::new();
        for slot in self.slots.borrow().iter().flatten() {
            let Some(task) = slot.working_on(key).filter(|task| Some(*task) != but) else { continue };
            if !tell {
                self.engine().abort(task);
            }
            slot.abort(&self.reactor, tell);
            aborted.push(task);
        }
        aborted
    }

    /// Sends what reads of its connections have lent: [`crate::net::Tx::flush_lent`].
    pub fn flush_lent(&self) {
        self.conns.borrow().iter().flatten().filter_map(Weak::upgrade).for_each(|conn| conn.tx.flush_lent());
    }

    /// Waits until none of the tasks is there any more.
    pub async fn until_ended(&self, tasks: &[TaskId]) {
        while tasks.iter().any(|task| self.engine().header(*task).is_some()) {
            self.reactor.sleep(LOOK_NS).await;
        }
    }

    /// The logical units, as the home has them now.
    pub fn show(&self, view: &View) {
        if let Some(told) = &view.told {
            self.told.replace(told.clone());
        }
        if view.stamp < self.stamp.replace(view.stamp.max(self.stamp.get())) {
            return;
        }
        let mut luns: Vec<Option<Rc<LunView>>> = Vec::new();
        for (lun, key, gate) in &view.luns {
            let Some(disk) = self.local.disk(*key) else { continue };
            let before = self.lun(*lun).filter(|before| before.key == *key);
            let shown = before.unwrap_or_else(|| {
                Rc::new(LunView {
                    lun: *lun,
                    key: *key,
                    disk: RefCell::new(disk.clone()),
                    gate: Cell::new(*gate),
                    stamp: Cell::new(0),
                    turns: RefCell::default(),
                })
            });
            shown.disk.replace(disk);
            shown.hear(view.stamp, gate);
            if let Some((stamp, gate)) = self.news.borrow().get(key) {
                shown.hear(*stamp, gate);
            }
            if luns.len() <= usize::from(*lun) {
                luns.resize(usize::from(*lun) + 1, None);
            }
            luns[usize::from(*lun)] = Some(shown);
        }
        self.luns.replace(luns);
        self.news.borrow_mut().retain(|key, _| view.luns.iter().any(|(_, seen, _)| seen == key));
    }

    /// What the session may do with a unit from now on.
    pub fn set_gate(&self, key: UnitKey, gate: &Gate, stamp: u64) {
        self.news.borrow_mut().insert(key, (stamp, *gate));
        for view in self.luns.borrow().iter().flatten().filter(|view| view.key == key) {
            view.hear(stamp, gate);
        }
    }

    /// A unit is another one now: of another size, or with other limits.
    pub fn renew(&self, key: UnitKey, disk: &Rc<Disk>) {
        for view in self.luns.borrow().iter().flatten().filter(|view| view.key == key) {
            view.disk.replace(disk.clone());
        }
    }

    /// Up to when the initiator has been told of a unit's losses.
    pub fn heard_of_losses(&self, lun: &LunView) -> Told {
        self.told.borrow().of(lun.lun.into())
    }

    /// The end of a flush that began at `start`: what it told.
    pub fn tell_of_losses(&self, lun: &LunView, before: Told, after: Told, start: u64) {
        let mut told = self.told.borrow_mut();
        let number = u32::from(lun.lun);
        if after != before {
            told.tell(number, after);
        } else if let Some(until) = told.hear(number, start) {
            let tsih = self.tsih;
            let tell = move |home: &Rc<Reactor>| {
                if let Some(home) = home::of(home) {
                    home.tell(tsih, number, until);
                }
            };
            self.reactor.send(HOME, Message::Call(Box::new(tell)));
        }
    }

    /// Looks after a connection. Returns when to look again; `None`: its initiator is gone.
    pub async fn look_after(&self, conn: &Conn, number: ConnId) -> Option<u64> {
        let alive = self.engine().alive(number, self.reactor.clock().now());
        match alive {
            Alive::Until(until) => Some(until),
            Alive::Ping(header, until) => {
                // An initiator that does not even take what it is sent is as good as gone.
                let mut leaving = std::pin::pin!(conn.send_header(|| Some(header)));
                let mut time_up = std::pin::pin!(self.reactor.sleep(ISCSI_NOP_TIMEOUT_NS));
                std::future::poll_fn(|cx| match leaving.as_mut().poll(cx) {
                    Poll::Ready(sent) => Poll::Ready(sent.ok()),
                    Poll::Pending => time_up.as_mut().poll(cx).map(|()| None),
                })
                .await
                .map(|()| until)
            }
            Alive::Dead => None,
        }
    }

    /// Tells the initiator on every connection.
    pub fn notify(self: &Rc<Self>, notice: Notice) {
        for (number, conn) in self.conns() {
            let live = self.clone();
            self.reactor.spawn("iscsi notice", async move {
                let _ = conn.send_header(|| live.engine().notice(number, &notice)).await;
            });
        }
    }

    /// Ends the session: from now on nothing that its initiator sends is carried out, and what runs answers nobody. It is told so on every
    /// connection.
    pub fn dismiss(self: &Rc<Self>, notice: Notice) {
        self.dismissed.set(true);
        for (number, conn) in self.conns() {
            let (header, tasks) = {
                let mut engine = self.engine();
                let header = engine.notice(number, &notice);
                engine.close_connection(number);
                (header, engine.tasks_of(number).collect::<Vec<_>>())
            };
            tasks.into_iter().for_each(|task| self.abort(task));
            conn.close_in_time();
            self.reactor.spawn("iscsi notice", async move {
                let _ = conn.send_header(|| header).await;
                conn.close_after_answers();
            });
        }
        self.look_at_managers();
    }

    /// Whether the window waits for a command that has not come while others hold data, since before `since`.
    pub fn is_stuck(&self, now: u64, limit: u64) -> bool {
        if !self.engine().waits_for_number() {
            self.stuck_since.set(None);
            return false;
        }
        let since = self.stuck_since.get().unwrap_or(now);
        self.stuck_since.set(Some(since));
        now.saturating_sub(since) > limit
    }

    /// Closes all connections: the session ends when what runs has ended.
    pub fn close(&self) {
        let conns: Vec<Rc<Conn>> = self.conns.borrow().iter().flatten().filter_map(Weak::upgrade).collect();
        conns.iter().for_each(|conn| conn.close());
    }

    /// Whether it takes no more connections.
    pub fn is_closing(&self) -> bool {
        self.closing.get() || self.dismissed.get()
    }

    /// Whether all of it has ended.
    pub fn is_over(&self) -> bool {
        self.over.get()
    }

    /// Closes it and waits for its end.
    pub async fn end(&self) {
        self.close();
        while !self.over.get() {
            self.reactor.sleep(LOOK_NS).await;
        }
    }

    /// Closes a connection, by its identifier, and waits for its end.
    pub async fn end_connection(&self, cid: u16) {
        let Some(number) = self.engine().connection(cid) else { return };
        let Some(conn) = self.conn(number) else { return };
        // Its initiator has another one already: the session goes on.
        self.held.set(true);
        conn.close_after_answers();
        conn.close();
        while !conn.is_finished() {
            self.reactor.sleep(LOOK_NS).await;
        }
    }

    /// A connection has ended: its tasks end, and with the last one the session.
    pub async fn leave(self: &Rc<Self>, conn: &Rc<Conn>, number: ConnId) {
        let (tasks, cid) = {
            let mut engine = self.engine();
            engine.close_connection(number);
            (engine.tasks_of(number).collect::<Vec<_>>(), engine.cid(number))
        };
        tasks.into_iter().for_each(|task| self.abort(task));
        self.look_at_managers();
        if !conn.is_logged_out() {
            // A number that was lost with it may be missing for good (RFC 7143 §7.1.4.4).
            self.close();
        }
        while !self.engine().remove_connection(number) {
            self.reactor.sleep(LOOK_NS).await;
        }
        self.conns.borrow_mut()[number.index()] = None;
        let tsih = self.tsih;
        if self.held.get() || !self.is_empty() {
            let cid = cid.unwrap_or_default();
            let left = move |home: &Rc<Reactor>| {
                if let Some(home) = home::of(home) {
                    home.connection_left(tsih, cid);
                }
            };
            return self.reactor.call(HOME, left).await;
        }
        self.finish().await;
    }

    fn is_empty(&self) -> bool {
        self.conns.borrow().iter().all(Option::is_none)
    }

    /// No connection takes the place of the last one after all.
    pub async fn release(&self) {
        if self.held.replace(false) && self.is_empty() {
            self.finish().await;
        }
    }

    /// The last connection has ended, and all tasks.
    async fn finish(&self) {
        let tsih = self.tsih;
        self.closing.set(true);
        self.local.remove_session(tsih);
        let left = move |home: &Rc<Reactor>| {
            if let Some(service) = home::of(home) {
                service.left(home, tsih);
            }
        };
        self.reactor.call(HOME, left).await;
        self.over.set(true);
        for slot in self.slots.take().iter().flatten() {
            slot.wake(&self.reactor);
        }
        self.luns.take();
    }
}
