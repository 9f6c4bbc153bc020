//! What a session keeps of a command and of a connection.

use super::super::admission::Established;
use super::super::keys::Params;
use super::super::pdu::*;
use super::transfer::{Transfer, WriteProgress};
use super::{ConnId, TaskId};

/// No slot: the end of a chain.
pub(super) const NO_SLOT: u16 = u16::MAX;

/// What a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Scsi,
    Nop,
    Text,
    Task,
    Logout,
}

/// Where a command is.
///
/// ```text
///   Free -> Receiving -> Held -> Active -> Free
///              its data   its turn
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// There is none.
    Free,
    /// Its own data arrives.
    Receiving,
    /// It waits for its turn.
    Held,
    /// It has been handed to the caller.
    Active,
}

/// A place for a command.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub state: State,
    pub generation: u32,
    /// The next of those with the same place in the index, or of the free ones.
    pub next: u16,
    pub kind: Kind,
    pub conn: ConnId,
    pub header: Header,
    /// Additional header segments.
    pub ahs: Vec<u8>,
    pub itt: u32,
    pub cmd_sn: u32,
    pub immediate: bool,
    /// Nothing is to be answered.
    pub aborted: bool,
    /// Requests wait for its end.
    pub awaited: bool,
    /// The tasks that this request waits for: they may be those of others that wait.
    pub awaits: Vec<TaskId>,
    /// The caller has done its part of a task management request, and with which outcome.
    pub outcome: Option<TaskOutcome>,
    /// Responses that must have arrived before a task management request is answered: connections and the numbers behind them.
    pub fence: Option<Vec<(ConnId, u32)>>,
    /// A data PDU of it is arriving.
    pub arriving: bool,
    pub transfer: Transfer,
    /// Bytes of Data-In that have been sent.
    pub read_offset: u32,
    /// Number of the next Data-In or R2T.
    pub data_sn: u32,
    /// Counts the R2Ts of the slot, over all its commands: old Data-Out must not meet a new one.
    pub ttt: u16,
}

impl Slot {
    /// One that was never used.
    pub(super) const FREE: Slot = Slot {
        state: State::Free,
        generation: 0,
        next: NO_SLOT,
        kind: Kind::Nop,
        conn: ConnId(0),
        header: [0; BHS_LEN],
        ahs: Vec::new(),
        itt: 0,
        cmd_sn: 0,
        immediate: false,
        aborted: false,
        awaited: false,
        awaits: Vec::new(),
        outcome: None,
        fence: None,
        arriving: false,
        transfer: Transfer::NONE,
        read_offset: 0,
        data_sn: 0,
        ttt: 0,
    };

    pub(super) fn scsi(&self) -> ScsiCommand {
        ScsiCommand::read(&self.header)
    }

    /// How far the data of a write has come. The transfer counts a PDU when its header is there; it is not over before its data is.
    pub(super) fn progress(&self) -> WriteProgress {
        match self.transfer.progress() {
            WriteProgress::Complete | WriteProgress::Failed(_) if self.arriving => WriteProgress::Arriving,
            progress => progress,
        }
    }
}

/// A number in the command window beyond the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pending {
    /// It has not come.
    Missing,
    /// Its command waits in this slot.
    Here(u16),
    /// It counts as received, and there is nothing to do.
    Void,
}

/// What the data that arrives on a connection belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Current {
    /// Nothing, or what is dropped.
    Nothing,
    /// The command of this task.
    Command(TaskId),
    /// A Data-Out of this task. `usable`: it is put in its place.
    DataOut { task: TaskId, header: Header, usable: bool },
}

/// A connection.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    pub cid: u16,
    pub params: Params,
    pub stat_sn: u32,
    pub current: Current,
    /// No more requests are taken.
    pub closing: bool,
    /// Tasks that came by it.
    pub tasks: u16,
    pub heard_ns: u64,
    /// Responses before this number have arrived.
    pub acknowledged: u32,
    /// A NOP-In is to ask which responses have arrived.
    pub ask: bool,
    /// When a NOP-In was sent that nothing has come after.
    pub pinged: Option<u64>,
    pub last_ping: u32,
}

pub(super) fn id(place: usize, slot: &Slot) -> TaskId {
    TaskId { slot: place as u16, generation: slot.generation }
}

impl Connection {
    pub(super) fn new(login: &Established, now: u64) -> Connection {
        Connection {
            cid: login.cid,
            params: login.params,
            stat_sn: login.stat_sn,
            acknowledged: login.stat_sn,
            ask: false,
            current: Current::Nothing,
            closing: false,
            tasks: 0,
            heard_ns: now,
            pinged: None,
            last_ping: 0,
        }
    }
}
