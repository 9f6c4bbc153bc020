//! How the controller lies, when it is told to.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::lock::Lock;
use super::script::Script;
use crate::nvme::spec::{AdminOpcode, NvmOpcode, Property, Status};
use crate::reactor::clock::Entropy;

/// Where a rule looks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Point {
    /// A read of a register.
    Read(Property),
    /// A write to a register.
    Write(Property),
    /// CC.EN went to 1.
    Enable,
    /// CC.EN went to 0.
    Disable,
    /// CC.SHN was set.
    Shutdown,
    /// A write to the tail doorbell of a submission queue.
    SqDoorbell(u16),
    /// A write to the head doorbell of a completion queue.
    CqDoorbell(u16),
    /// The event index of a submission queue is about to be updated.
    EventIndex(u16),
    /// An interrupt is about to be sent.
    Interrupt(u16),
    /// An admin command was fetched.
    Admin(AdminOpcode),
    /// An I/O command was fetched, of a queue, with an opcode, for a namespace, for any of these blocks; `None`: any.
    Io {
        /// Submission queue.
        qid: Option<u16>,
        /// Opcode.
        opcode: Option<NvmOpcode>,
        /// Namespace.
        nsid: Option<u32>,
        /// Blocks, of commands that name some by a starting LBA.
        blocks: Option<Range<u64>>,
    },
}

impl Point {
    /// Any I/O command.
    pub const ANY_IO: Point = Point::Io { qid: None, opcode: None, nsid: None, blocks: None };

    /// I/O commands with this opcode.
    pub const fn io(opcode: NvmOpcode) -> Point {
        Point::Io { qid: None, opcode: Some(opcode), nsid: None, blocks: None }
    }
}

/// Which of what comes to its point a rule fires for, counted from 1 when the rule is added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// This one.
    Nth(u64),
    /// From this one on.
    From(u64),
    /// Every so many.
    Every(u64),
    /// By chance, so many in a million.
    Chance(u32),
}

/// What happens then. Each is for the points that it says; elsewhere it changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Commands, enabling, disabling, shutting down: so many nanoseconds later than else.
    Late(u64),
    /// Commands: fetched and kept, neither carried out nor answered, until they are aborted or the queue ends. Enabling, disabling, shutting
    /// down: never done.
    Hang,
    /// Commands: carried out and never answered.
    Lost,
    /// Commands: answered twice.
    Twice,
    /// Commands: an answer before the right one, whose identifier differs in these bits.
    Extra(u16),
    /// Commands: the answer's identifier differs in these bits.
    WrongCid(u16),
    /// Commands: the answer's submission queue differs in these bits.
    WrongSqid(u16),
    /// Commands: the answer's submission queue head differs in these bits.
    WrongHead(u16),
    /// Commands: dwords 0 and 1 of the answer differ in these bits.
    WrongResult(u64),
    /// Commands: the answer has the phase tag of the round before.
    WrongPhase,
    /// Commands: not carried out, and answered with this status.
    Status(Status),
    /// Commands: carried out for the first half of the data only, and answered with success.
    Half,
    /// Commands: so many nanoseconds after the answer, the controller touches the data once more, the way the command does.
    TouchAfter(u64),
    /// Anywhere: CSTS.CFS, and nothing is done any more until the controller is disabled.
    Fatal,
    /// Anywhere: off the bus.
    Remove,
    /// Commands: dwords 0 and 1 of the answer are these.
    Result(u64),
    /// Identify and Get Log Page: this byte of the data is another.
    Byte(u16, u8),
    /// Reads of registers: this is read.
    Value(u64),
    /// Reads of registers: these bits differ.
    Bits(u64),
    /// Writes to registers and doorbells: without effect. Arrival index: not updated. Interrupts: not sent. Abort: answered, not carried out.
    Ignore,
}

/// What is done where, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Where.
    pub at: Point,
    /// For which.
    pub when: When,
    /// How often at most; `None`: no limit.
    pub count: Option<u64>,
    /// What.
    pub then: Fault,
}

impl Rule {
    /// For the `nth` that comes there, once.
    pub const fn nth(at: Point, nth: u64, then: Fault) -> Rule {
        Rule { at, when: When::Nth(nth), count: None, then }
    }

    /// For all that come there.
    pub const fn always(at: Point, then: Fault) -> Rule {
        Rule { at, when: When::From(1), count: None, then }
    }
}

/// What came to a point, for rules to look at.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arrival {
    Read(u32),
    Write(u32),
    Enable,
    Disable,
    Shutdown,
    SqDoorbell(u16),
    CqDoorbell(u16),
    EventIndex(u16),
    Interrupt(u16),
    Admin(AdminOpcode),
    Io { qid: u16, opcode: NvmOpcode, nsid: u32, slba: u64, blocks: u64 },
}

impl Point {
    fn meets(&self, event: Arrival) -> bool {
        match (self, event) {
            (Point::Read(property), Arrival::Read(at)) | (Point::Write(property), Arrival::Write(at)) => {
                property.0 == at
            }
            (Point::Enable, Arrival::Enable)
            | (Point::Disable, Arrival::Disable)
            | (Point::Shutdown, Arrival::Shutdown) => true,
            (Point::SqDoorbell(one), Arrival::SqDoorbell(other))
            | (Point::CqDoorbell(one), Arrival::CqDoorbell(other))
            | (Point::EventIndex(one), Arrival::EventIndex(other))
            | (Point::Interrupt(one), Arrival::Interrupt(other)) => *one == other,
            (Point::Admin(one), Arrival::Admin(other)) => *one == other,
            (
                Point::Io { qid, opcode, nsid, blocks },
                Arrival::Io { qid: its_qid, opcode: its_opcode, nsid: its_nsid, slba, blocks: its_blocks },
            ) => {
                let touches = |range: &Range<u64>| slba < range.end && slba.saturating_add(its_blocks) > range.start;
                qid.is_none_or(|qid| qid == its_qid)
                    && opcode.is_none_or(|opcode| opcode == its_opcode)
                    && nsid.is_none_or(|nsid| nsid == its_nsid)
                    && blocks.as_ref().is_none_or(touches)
            }
            _ => false,
        }
    }
}

#[derive(Debug)]
struct Armed {
    rule: Rule,
    seen: u64,
}

impl Armed {
    fn fires(&mut self, entropy: &Entropy) -> bool {
        self.seen += 1;
        let due = match self.rule.when {
            When::Nth(nth) => self.seen == nth,
            When::From(from) => self.seen >= from,
            When::Every(every) => self.seen.is_multiple_of(every.max(1)),
            When::Chance(millionths) => entropy.below(1_000_000) < u64::from(millionths),
        };
        match &mut self.rule.count {
            Some(0) => false,
            Some(count) if due => {
                *count -= 1;
                true
            }
            _ => due,
        }
    }
}

/// The rules of one controller.
#[derive(Debug)]
pub(super) struct Faults {
    any: AtomicBool,
    state: Lock<(Vec<Armed>, Entropy)>,
    script: Lock<Script>,
    /// There was a script.
    plays: AtomicBool,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Faults {
        Faults {
            any: AtomicBool::new(false),
            state: Lock::new((Vec::new(), Entropy::new(seed))),
            script: Lock::default(),
            plays: AtomicBool::new(false),
        }
    }

    pub(super) fn play(&self, bytes: Vec<u8>) {
        *self.script.lock() = Script::new(bytes);
        self.plays.store(true, Ordering::Release);
        self.any.store(true, Ordering::Release);
    }

    /// Whether bytes say, or have said, what it does.
    pub(super) fn plays(&self) -> bool {
        self.plays.load(Ordering::Acquire)
    }

    pub(super) fn add(&self, rules: impl IntoIterator<Item = Rule>) {
        self.state.lock().0.extend(rules.into_iter().map(|rule| Armed { rule, seen: 0 }));
        self.any.store(true, Ordering::Release);
    }

    pub(super) fn clear(&self) {
        self.any.store(false, Ordering::Release);
        self.state.lock().0.clear();
        *self.script.lock() = Script::default();
    }

    #[inline]
    pub(super) fn any(&self) -> bool {
        self.any.load(Ordering::Acquire)
    }

    /// Counts an event with every rule that is about it; what those say that fire.
    #[inline]
    pub(super) fn judge(&self, event: Arrival) -> Vec<Fault> {
        if self.any() { self.judge_all(event) } else { Vec::new() }
    }

    #[cold]
    fn judge_all(&self, event: Arrival) -> Vec<Fault> {
        let (rules, entropy) = &mut *self.state.lock();
        let about = rules.iter_mut().filter(|armed| armed.rule.at.meets(event));
        let mut faults: Vec<Fault> =
            about.filter_map(|armed| armed.fires(entropy).then_some(armed.rule.then)).collect();
        self.script.lock().say(event, &mut faults);
        faults
    }
}
