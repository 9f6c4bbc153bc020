//! A session in its full feature phase: numbering, tasks and connections (RFC 7143 §4.2.2 to §4.2.5).
//!
//! ```text
//!   Decoder --Request--> Session::request ----> Verdict: where the data goes, or what to reject
//!      |                        |
//!      '-------DataEnd--> Session::data_end --> Received: a digest at fault, progress of a write
//!                               |
//!                         Session::next_ready -> Ready: commands in the order of their CmdSN
//!                               |
//!      SCSI  <-- data_wanted, next_r2t, next_data_in, respond; task_management; logout; ...
//! ```
//!
//! Nothing is allocated per command: tables have the size of [`SessionLimits`], that of the commands as many places as there were commands
//! at a time. A [`TaskId`] that has ended is known as such
//! and does nothing. Where a method returns a header, that PDU has taken its sequence numbers: send it, in the order the
//! headers were made, on the connection of the task.

mod manage;
mod receive;
mod send;
mod serial;
mod slot;
mod transfer;

use std::collections::VecDeque;

use super::admission::Established;
use super::decode::Request;
use super::keys::{Params, SessionKind};
use super::pdu::*;
use serial::before;
use slot::{Connection, Current, Kind, NO_SLOT, Pending, Slot, State, id};
use transfer::Transfer;

pub use manage::{LogoutWork, TaskWork};
pub use receive::{Received, Verdict};
pub use send::{Alive, DataInPdu, Notice, Residual};
pub use transfer::{R2TS_MAX, TransportFault, WriteProgress};

/// How much a session may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionLimits {
    /// Commands in the window, 1 to 16,384: what an initiator may have outstanding.
    pub window: u16,
    /// Commands for immediate delivery at a time, besides, 1 to 1,024.
    pub immediate: u16,
    /// Connections, at least 1.
    pub connections: u16,
}

/// How a silent initiator is found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// A NOP-In is sent after so long without a word, in nanoseconds.
    pub interval_ns: u64,
    /// The connection is dead so long after an unanswered NOP-In, in nanoseconds.
    pub timeout_ns: u64,
}

/// A connection of a session. Numbers are used again, but not before [`Session::remove_connection`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnId(u16);

impl ConnId {
    /// The place in a table of [`SessionLimits::connections`].
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A command that the session holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskId {
    slot: u16,
    generation: u32,
}

impl TaskId {
    /// The place in a table of window and immediate commands together.
    pub const fn slot(self) -> usize {
        self.slot as usize
    }
}

/// A command whose turn has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Ready {
    /// Execute it: [`Session::command`].
    Scsi(TaskId),
    /// Answer with [`Session::nop_response`].
    Nop(TaskId),
    /// Answer with [`Session::text_response`].
    Text(TaskId),
    /// Do [`Session::task_management`].
    Task(TaskId),
    /// Do [`Session::logout`].
    Logout(TaskId),
}

impl Ready {
    /// The command.
    pub const fn task(self) -> TaskId {
        match self {
            Ready::Scsi(task) | Ready::Nop(task) | Ready::Text(task) | Ready::Task(task) | Ready::Logout(task) => task,
        }
    }
}

/// A session. See the module for how it is driven.
#[derive(Clone, Debug)]
pub struct Session {
    kind: SessionKind,
    limits: SessionLimits,
    keepalive: Keepalive,
    slots: Vec<Slot>,
    /// The first free slot.
    free: u16,
    /// Chains of slots by their Initiator Task Tag.
    index: Vec<u16>,
    exp_cmd_sn: u32,
    /// Commands of the window that are active.
    active: u16,
    /// Commands for immediate delivery that have a slot.
    immediate: u16,
    /// By CmdSN, from the next one on.
    window: Vec<Pending>,
    /// Commands for immediate delivery whose data is there.
    ready: VecDeque<u16>,
    connections: Vec<Option<Connection>>,
}

impl Session {
    /// The session of a login that is the first of its session, and its connection. `now` is the time.
    pub fn new(login: &Established, limits: SessionLimits, keepalive: Keepalive, now: u64) -> (Session, ConnId) {
        let limits = SessionLimits {
            window: limits.window.clamp(1, 16_384),
            immediate: limits.immediate.clamp(1, 1024),
            connections: limits.connections.max(1),
        };
        let slots = limits.window + limits.immediate;
        let mut session = Session {
            kind: login.kind,
            limits,
            keepalive,
            slots: Vec::new(),
            free: NO_SLOT,
            index: vec![NO_SLOT; usize::from(slots).next_power_of_two()],
            exp_cmd_sn: login.cmd_sn,
            active: 0,
            immediate: 0,
            window: vec![Pending::Missing; usize::from(limits.window).next_power_of_two()],
            ready: VecDeque::with_capacity(usize::from(limits.immediate)),
            connections: vec![None; usize::from(limits.connections)],
        };
        session.connections[0] = Some(Connection::new(login, now));
        (session, ConnId(0))
    }

    /// Adds a connection that has joined the session; `None` when there are too many.
    pub fn add_connection(&mut self, login: &Established, now: u64) -> Option<ConnId> {
        let place = self.connections.iter().position(Option::is_none)?;
        self.connections[place] = Some(Connection::new(login, now));
        let conn = ConnId(place as u16);
        // Nobody waits for the one that had the number before.
        self.slots
            .iter_mut()
            .filter_map(|slot| slot.fence.as_mut())
            .for_each(|fence| fence.retain(|(id, _)| *id != conn));
        Some(conn)
    }

    /// The connection of an identifier.
    pub fn connection(&self, cid: u16) -> Option<ConnId> {
        let is_it = |conn: &Option<Connection>| conn.as_ref().is_some_and(|conn| conn.cid == cid);
        self.connections.iter().position(is_it).map(|place| ConnId(place as u16))
    }

    /// The identifier of a connection.
    pub fn cid(&self, conn: ConnId) -> Option<u16> {
        self.connection_ref(conn).map(|conn| conn.cid)
    }

    /// Whether commands wait for one before them that has not come.
    pub fn waits_for_number(&self) -> bool {
        self.window[self.window_place(self.exp_cmd_sn)] == Pending::Missing
            && self.window.iter().any(|pending| matches!(pending, Pending::Here(_)))
    }

    /// The connections that there are.
    pub fn connections(&self) -> impl Iterator<Item = ConnId> + '_ {
        let places = self.connections.iter().enumerate();
        places.filter(|(_, conn)| conn.is_some()).map(|(place, _)| ConnId(place as u16))
    }

    /// What was agreed for a connection.
    pub fn params(&self, conn: ConnId) -> Option<&Params> {
        self.connection_ref(conn).map(|conn| &conn.params)
    }

    /// What was agreed for a connection, where a text exchange may change it.
    pub fn params_mut(&mut self, conn: ConnId) -> Option<&mut Params> {
        self.connection_mut(conn).map(|conn| &mut conn.params)
    }

    /// A connection is lost or given up: no more of its requests are taken, and its tasks are aborted. End each of
    /// [`Session::tasks_of`], then [`Session::remove_connection`].
    ///
    /// Without error recovery a number that was lost with it may be missing in the window for good: unless it was logged out, end
    /// the other connections too (RFC 7143 §7.1.4.4).
    pub fn close_connection(&mut self, conn: ConnId) {
        let Some(connection) = self.connection_mut(conn) else { return };
        connection.closing = true;
        let arriving = core::mem::replace(&mut connection.current, Current::Nothing);
        if let Current::Command(task) | Current::DataOut { task, .. } = arriving
            && let Some(slot) = self.slot_mut(task)
        {
            slot.arriving = false;
        }
        for place in 0..self.slots.len() as u16 {
            let slot = &mut self.slots[usize::from(place)];
            if slot.state == State::Free || slot.conn != conn {
                continue;
            }
            slot.aborted = true;
            if slot.state != State::Active {
                self.withdraw(place);
            }
        }
    }

    /// The tasks that came by a connection and have been handed out.
    pub fn tasks_of(&self, conn: ConnId) -> impl Iterator<Item = TaskId> + '_ {
        let slots = self.slots.iter().enumerate();
        slots.filter(move |(_, slot)| slot.state == State::Active && slot.conn == conn).map(|(i, slot)| id(i, slot))
    }

    /// Forgets a connection whose tasks have all ended. Whether they have.
    pub fn remove_connection(&mut self, conn: ConnId) -> bool {
        match self.connection_ref(conn) {
            Some(connection) if connection.tasks != 0 => false,
            Some(_) => {
                self.connections[conn.index()] = None;
                true
            }
            None => true,
        }
    }

    /// Bytes have come by a connection: its initiator is there. [`Session::request`] knows that itself; this is for long data.
    pub fn heard(&mut self, conn: ConnId, now: u64) {
        if let Some(connection) = self.connection_mut(conn) {
            connection.heard_ns = now;
            connection.pinged = None;
        }
    }

    /// The next command whose turn has come. Ask until there is none, after every [`Session::request`], [`Session::data_end`] and end of a
    /// task.
    pub fn next_ready(&mut self) -> Option<Ready> {
        if let Some(slot) = self.next_immediate() {
            return Some(self.activate(slot));
        }
        loop {
            let place = self.window_place(self.exp_cmd_sn);
            let pending = core::mem::replace(&mut self.window[place], Pending::Missing);
            if pending == Pending::Missing {
                return None;
            }
            self.exp_cmd_sn = self.exp_cmd_sn.wrapping_add(1);
            if let Pending::Here(slot) = pending {
                self.active += 1;
                return Some(self.activate(slot));
            }
        }
    }

    /// A command for immediate delivery that need not wait. One that is about many tasks waits for the commands before it.
    fn next_immediate(&mut self) -> Option<u16> {
        let may_go = |slot: &u16| {
            let slot = &self.slots[usize::from(*slot)];
            !(slot.kind == Kind::Task && self.waits_for_turn(slot))
        };
        let at = self.ready.iter().position(may_go)?;
        self.ready.remove(at)
    }

    fn waits_for_turn(&self, slot: &Slot) -> bool {
        let about_one = matches!(
            TaskRequest::read(&slot.header).function(),
            TaskFunction::ABORT_TASK | TaskFunction::QUERY_TASK | TaskFunction::TASK_REASSIGN
        );
        // A number that is not in the window will never have its turn.
        let has_turn = serial::within(slot.cmd_sn, self.exp_cmd_sn, self.max_cmd_sn().wrapping_add(1));
        !about_one && has_turn && before(self.exp_cmd_sn, slot.cmd_sn)
    }

    fn activate(&mut self, place: u16) -> Ready {
        let slot = &mut self.slots[usize::from(place)];
        slot.state = State::Active;
        let task = id(place.into(), slot);
        match slot.kind {
            Kind::Scsi => Ready::Scsi(task),
            Kind::Nop => Ready::Nop(task),
            Kind::Text => Ready::Text(task),
            Kind::Task => Ready::Task(task),
            Kind::Logout => Ready::Logout(task),
        }
    }

    /// The header of a SCSI Command and its additional header segments, as [`Ahs::read`] takes them.
    pub fn command(&self, task: TaskId) -> Option<(ScsiCommand, &[u8])> {
        let slot = self.slot_ref(task).filter(|slot| slot.kind == Kind::Scsi)?;
        Some((slot.scsi(), &slot.ahs))
    }

    /// The header of any request.
    pub fn header(&self, task: TaskId) -> Option<&Header> {
        self.slot_ref(task).map(|slot| &slot.header)
    }

    /// The connection that a task came by and is answered on.
    pub fn connection_of(&self, task: TaskId) -> Option<ConnId> {
        self.slot_ref(task).map(|slot| slot.conn)
    }

    /// Whether nothing is to be answered: abort it where it is, and end it. Its buffer must stay while data for it arrives
    /// ([`Session::is_arriving`]).
    pub fn is_aborted(&self, task: TaskId) -> bool {
        self.slot_ref(task).is_none_or(|slot| slot.aborted)
    }

    /// Whether the data of one of its PDUs is arriving.
    pub fn is_arriving(&self, task: TaskId) -> bool {
        self.slot_ref(task).is_some_and(|slot| slot.arriving)
    }

    /// Aborts a task for a reason of the caller's: nothing will be answered.
    pub fn abort(&mut self, task: TaskId) {
        if let Some(slot) = self.slot_mut(task) {
            slot.aborted = true;
        }
    }

    /// Ends a task without an answer: one that was aborted. Its slot is free afterwards.
    pub fn end(&mut self, task: TaskId) {
        if self.slot_ref(task).is_some_and(|slot| slot.state == State::Active) {
            self.release(task.slot);
        }
    }

    /// Next expected CmdSN.
    pub const fn exp_cmd_sn(&self) -> u32 {
        self.exp_cmd_sn
    }

    /// Largest CmdSN that is taken: what is active takes its part of the window. It never goes back.
    pub fn max_cmd_sn(&self) -> u32 {
        self.exp_cmd_sn.wrapping_add((self.limits.window - self.active).into()).wrapping_sub(1)
    }

    fn window_place(&self, cmd_sn: u32) -> usize {
        // The length is a power of two, so that places go on where the numbers wrap.
        cmd_sn as usize & (self.window.len() - 1)
    }

    fn connection_ref(&self, conn: ConnId) -> Option<&Connection> {
        self.connections.get(conn.index())?.as_ref()
    }

    fn connection_mut(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.connections.get_mut(conn.index())?.as_mut()
    }

    fn slot_ref(&self, task: TaskId) -> Option<&Slot> {
        let slot = self.slots.get(task.slot())?;
        (slot.generation == task.generation && slot.state != State::Free).then_some(slot)
    }

    fn slot_mut(&mut self, task: TaskId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(task.slot())?;
        (slot.generation == task.generation && slot.state != State::Free).then_some(slot)
    }

    fn index_place(&self, itt: u32) -> usize {
        // Initiators count their tags up, or keep an index in some of the bits: a product spreads both.
        (itt.wrapping_mul(0x9e37_79b1) >> 16) as usize & (self.index.len() - 1)
    }

    fn find(&self, itt: u32) -> Option<u16> {
        let mut at = self.index[self.index_place(itt)];
        while at != NO_SLOT {
            let slot = &self.slots[usize::from(at)];
            if slot.itt == itt {
                return Some(at);
            }
            at = slot.next;
        }
        None
    }

    /// Takes a free slot for a request.
    fn claim(&mut self, conn: ConnId, kind: Kind, bhs: &Bhs, cmd_sn: u32) -> Option<u16> {
        let made = self.slots.len() as u16;
        if self.free == NO_SLOT && made < self.limits.window + self.limits.immediate {
            self.slots.push(Slot::FREE);
            self.free = made;
        }
        let place = self.free;
        let slot = self.slots.get_mut(usize::from(place))?;
        self.free = slot.next;
        slot.state = State::Receiving;
        slot.kind = kind;
        slot.conn = conn;
        slot.header = bhs.to_bytes();
        slot.itt = bhs.itt.get();
        slot.cmd_sn = cmd_sn;
        slot.immediate = bhs.immediate();
        slot.aborted = false;
        slot.awaited = false;
        slot.awaits.clear();
        slot.outcome = None;
        slot.fence = None;
        slot.arriving = false;
        slot.transfer = Transfer::NONE;
        slot.read_offset = 0;
        slot.data_sn = 0;
        let chain = self.index_place(bhs.itt.get());
        self.slots[usize::from(place)].next = core::mem::replace(&mut self.index[chain], place);
        self.immediate += u16::from(bhs.immediate());
        if let Some(connection) = self.connection_mut(conn) {
            connection.tasks += 1;
        }
        Some(place)
    }

    /// Gives a slot back, and tells who waits for its end.
    fn release(&mut self, place: u16) {
        let slot = &mut self.slots[usize::from(place)];
        let (itt, next, conn) = (slot.itt, slot.next, slot.conn);
        let (awaited, task) = (core::mem::take(&mut slot.awaited), id(place.into(), slot));
        let was_active = slot.state == State::Active;
        let immediate = slot.immediate;
        slot.state = State::Free;
        slot.generation = slot.generation.wrapping_add(1);
        slot.ahs = Vec::new();
        slot.next = core::mem::replace(&mut self.free, place);
        let chain = self.index_place(itt);
        if self.index[chain] == place {
            self.index[chain] = next;
        } else {
            let mut at = self.index[chain];
            while at != NO_SLOT {
                let other = &mut self.slots[usize::from(at)];
                if other.next == place {
                    other.next = next;
                    break;
                }
                at = other.next;
            }
        }
        if immediate {
            self.immediate -= 1;
        } else if was_active {
            self.active -= 1;
        }
        if let Some(connection) = self.connection_mut(conn) {
            connection.tasks -= 1;
        }
        if awaited {
            self.slots.iter_mut().for_each(|slot| slot.awaits.retain(|other| *other != task));
        }
    }

    /// Takes back a command that has not been handed out. Its number counts as received.
    fn withdraw(&mut self, place: u16) {
        let slot = &self.slots[usize::from(place)];
        let (immediate, held, cmd_sn) = (slot.immediate, slot.state == State::Held, slot.cmd_sn);
        if immediate {
            self.ready.retain(|ready| *ready != place);
        } else if held {
            let pending = self.window_place(cmd_sn);
            self.window[pending] = Pending::Void;
        }
        self.release(place);
    }
}
