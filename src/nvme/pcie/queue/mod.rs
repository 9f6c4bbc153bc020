//! One I/O queue pair: the path of every read and write.
//!
//! ```text
//!  submit ---- slot, pointer, 64 bytes at the tail ----> (end of the turn) one SQ doorbell for all of them
//!  poll <----- phase, slot, I/O to its tenant ---------- (end of the poll) one CQ doorbell for all of them
//! ```
//! Answers are looked for in memory. A reactor that goes to sleep while something is in flight has an interrupt wake it, if the controller has one for
//! the queue: it is masked as long as the reactor is awake. Without, the reactor does not sleep then.
//!
//! A queue belongs to one reactor, and all namespaces of its controller share it: each is a [`Tenant`]. It holds an I/O from its
//! submission until the controller has answered it, or until it is proven that the controller touches memory no more
//! ([`Quiet`]): only then do the buffers go back. A queue that is dropped without that proof keeps them for ever.

mod pointer;
mod rings;
mod slots;

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::Poll;

use hugepages::{DeviceBuf, MAX_BUF};
use zerocopy::IntoBytes;

use super::Quiet;
use super::port::{Held, Port};
use crate::limits::NVME_REPEATS_MAX;
use crate::nvme::io::{Place, fused_write};
use crate::nvme::spec::{Fuse, NvmOpcode, Sqe, Status};
use crate::reactor::io::{Io, IoCell, IoList, IoStatus, Segment, Segments};
use crate::reactor::{Activity, Deferred, Poller, PollerId, Reactor};
use pointer::List;
pub(super) use pointer::Pointers;
pub(super) use rings::{CQE_LEN, Completion, Doorbell, Memory, Rings, SQE_LEN, Shadow, Submissions};
use slots::{Found, Slots};
pub(super) use slots::{Late, SLOTS_MAX};

/// A namespace whose I/Os are on a queue. Bits 7:0 of the scratch word of each are its number there; the others are the tenant's.
pub trait Tenant: 'static {
    /// The namespace and its blocks.
    fn place(&self) -> Place;

    /// The command of an I/O, without identifier and data pointer. A first fused command takes the write of the same I/O along.
    fn command(&self, io: &IoCell) -> Sqe;

    /// The controller has failed and come back: what it had answered and not made durable may be lost.
    fn crashed(&self);

    /// Whether the I/O may not go to the controller any more, now that this has come back: whoever asked may have gone another way meanwhile, or
    /// would be told what is not so.
    fn is_stale(&self, io: &IoCell) -> bool;

    /// Whether the command, which is not [stale](Tenant::is_stale), may be carried out twice, the second time after a reset of the controller.
    fn may_repeat(&self, io: &IoCell) -> bool;

    /// The controller has answered; `result` gives dwords 0 and 1 of that, of a fused pair those of either command. May submit.
    fn answered(&self, io: Io, status: Status, result: impl FnOnce() -> u64);

    /// The I/O ends without an answer. May not submit.
    fn ended(&self, io: Io, status: IoStatus);
}

/// Bits of the scratch word that are the number of the tenant.
const TENANT_BITS: u64 = 0xff;
/// Most namespaces of a controller that are in use.
pub(super) const TENANTS_MAX: usize = TENANT_BITS as usize + 1;

/// What became of a queue's commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// They go to the controller.
    Live,
    /// They wait: the controller is being reset.
    Held,
    /// There is no controller any more: they end so.
    Ended(IoStatus),
}

/// The memory of a queue pair: its rings, and lists of addresses.
pub(super) struct QueueMemory {
    pub(super) rings: Memory,
    /// Blocks of lists, each with the controller's address of its first byte.
    pub(super) lists: Vec<(DeviceBuf, u64)>,
    /// Bytes of the list of one command, a power of two, at most those of a page.
    pub(super) list_len: usize,
}

impl QueueMemory {
    /// For rings of `entries` entries, that of commands at a place `in_buffer` of the controller's if it has one, and lists of `list_len`
    /// bytes, of blocks that `block` gives.
    pub(super) fn new<E>(
        mut block: impl FnMut(&'static str, usize) -> Result<(DeviceBuf, u64), E>,
        (entries, in_buffer): (u16, Option<u32>),
        list_len: usize,
    ) -> Result<QueueMemory, E> {
        let submissions = match in_buffer {
            Some(at) => Submissions::Controller(at),
            None => Submissions::Host(block("I/O queues", usize::from(entries) * SQE_LEN)?.0),
        };
        let (completions, _) = block("I/O queues", usize::from(entries) * CQE_LEN)?;
        let mut lists = Vec::new();
        let mut left = usize::from(entries - 1) * list_len;
        while left > 0 {
            let (memory, address) = block("lists of I/O queues", left.min(MAX_BUF))?;
            left = left.saturating_sub(memory.len());
            lists.push((memory, address));
        }
        Ok(QueueMemory { rings: Memory { submissions, completions, entries }, lists, list_len })
    }
}

/// What a queue has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueCounters {
    /// Writes to the submission queue's doorbell register.
    pub submission_doorbells: u64,
    /// Writes to the completion queue's doorbell register.
    pub completion_doorbells: u64,
    /// Completions of commands that were not in flight, or of another queue: late, doubled or invented.
    pub stale: u64,
    /// Commands that were written again after a reset of the controller.
    pub repeated: u64,
}

/// See the module's head.
pub struct QueuePair<P: Port, T: Tenant> {
    me: Weak<Self>,
    reactor: Rc<Reactor>,
    port: P,
    qid: u16,
    /// Of the interrupt that wakes the reactor.
    vector: Option<u16>,
    unmasked: Cell<bool>,
    pointers: Pointers,
    memory: QueueMemory,
    rings: Rings<P::Registers>,
    slots: RefCell<Slots>,
    tenants: RefCell<Vec<Option<Rc<T>>>>,
    leaving: RefCell<Vec<u8>>,
    /// Find no slot, or come while the queue is held.
    waiting: IoList,
    state: Cell<State>,
    /// The doorbell will be rung at the end of this turn.
    asked: Cell<bool>,
    poller: Cell<Option<PollerId>>,
    stale: Cell<u64>,
    repeated: Cell<u64>,
    /// The controller touches none of the memory.
    quiet: Cell<bool>,
}

impl<P: Port, T: Tenant> QueuePair<P, T> {
    /// Queue `qid` of a controller, from `reactor`, with at most `depth` commands in flight: fewer than its rings have entries. Its
    /// interrupt is connected to the reactor, if it has one.
    pub(super) fn new(
        reactor: &Rc<Reactor>,
        port: &P,
        (qid, depth, vector): (u16, u16, Option<u16>),
        pointers: Pointers,
        memory: QueueMemory,
        rings: Rings<P::Registers>,
    ) -> Rc<Self> {
        assert!(depth < memory.rings.entries && depth <= SLOTS_MAX, "a full ring would look empty");
        assert!(
            memory.lists.iter().map(|(lists, _)| lists.len() / memory.list_len).sum::<usize>() >= usize::from(depth)
        );
        let queue = Rc::new_cyclic(|me: &Weak<Self>| QueuePair {
            me: me.clone(),
            reactor: reactor.clone(),
            port: port.clone(),
            qid,
            vector,
            unmasked: Cell::new(false),
            pointers,
            memory,
            rings,
            slots: RefCell::new(Slots::new(depth)),
            tenants: RefCell::default(),
            leaving: RefCell::default(),
            waiting: IoList::default(),
            state: Cell::new(State::Live),
            asked: Cell::new(false),
            poller: Cell::new(None),
            stale: Cell::new(0),
            repeated: Cell::new(0),
            quiet: Cell::new(false),
        });
        queue.poller.set(Some(reactor.add_poller("nvme queue", queue.clone())));
        port.attach(reactor, qid, queue.clone());
        queue
    }

    /// The reactor that it is of.
    pub fn reactor(&self) -> &Rc<Reactor> {
        &self.reactor
    }

    /// Its number.
    pub fn qid(&self) -> u16 {
        self.qid
    }

    /// Whether it takes no more.
    pub(super) fn is_ended(&self) -> bool {
        matches!(self.state.get(), State::Ended(_))
    }

    /// Adds a namespace; the number goes into the scratch words of its I/Os. `None` if there are too many.
    pub fn enter(&self, tenant: Rc<T>) -> Option<u8> {
        let mut tenants = self.tenants.borrow_mut();
        let free = tenants.iter().position(Option::is_none).unwrap_or(tenants.len());
        if free == TENANTS_MAX {
            return None;
        }
        if free == tenants.len() {
            tenants.push(None);
        }
        tenants[free] = Some(tenant);
        Some(free as u8)
    }

    /// Removes a namespace that has no I/O left here.
    pub fn leave(&self, number: u8) {
        match self.tenants.try_borrow_mut() {
            Ok(mut tenants) => {
                let gone = tenants.get_mut(usize::from(number)).and_then(Option::take);
                // Dropped while nothing is borrowed.
                drop(tenants);
                drop(gone);
            }
            // With its last answer.
            Err(_) => self.leaving.borrow_mut().push(number),
        }
    }

    /// The end of the reactor: the namespaces have the queue and the queue has them, until their last I/O has ended, which those do not that somebody
    /// above has in hand.
    pub(super) fn part(&self) {
        let tenants = self.tenants.take();
        // Dropped while nothing is borrowed.
        drop(tenants);
    }

    #[cold]
    fn let_leave(&self) {
        for number in self.leaving.take() {
            self.leave(number);
        }
    }

    /// Whether data lies where a command can point to; else it has to be copied to where that is so.
    #[inline]
    pub fn reaches(&self, data: &Segments) -> bool {
        self.pointers.reach(&self.port, data)
    }

    /// Takes an I/O, whose data is [reached](Self::reaches) and whose scratch word names its tenant. `Pending`: it ends by
    /// [`Tenant::answered`] or [`Tenant::ended`]. `Ready`: there is no controller any more.
    #[inline]
    pub fn submit(&self, io: Io) -> Poll<Io> {
        if self.state.get() == State::Live && self.waiting.is_empty() {
            if let Err(io) = self.start(io, 0) {
                self.waiting.push(io);
            }
            return Poll::Pending;
        }
        self.wait(io)
    }

    #[cold]
    fn wait(&self, io: Io) -> Poll<Io> {
        if let State::Ended(status) = self.state.get() {
            return Poll::Ready(io.with_status(status));
        }
        self.waiting.push(io);
        Poll::Pending
    }

    #[inline]
    fn start(&self, io: Io, repeats: u8) -> Result<(), Io> {
        let tenants = self.tenants.borrow();
        let tenant = tenant_of(&tenants, &io);
        let mut sqe = tenant.command(&io);
        if sqe.fuse() == Fuse::FIRST {
            return self.start_pair(tenant, sqe, io);
        }
        let mut slots = self.slots.borrow_mut();
        let Some(index) = slots.take_one() else {
            return Err(io);
        };
        if io.data.count() > 0 {
            self.point(&mut sqe, index, (&io.data, 0, io.len as usize));
        } else if sqe.opcode == NvmOpcode::DATASET_MANAGEMENT.0 {
            self.point_to_range(&mut sqe, index, tenant.place(), &io);
        }
        sqe.cid.set(slots.fill(index, io, self.reactor.clock().now()));
        if repeats > 0 {
            slots.set_repeats(index, repeats);
        }
        self.rings.push(&sqe);
        self.ask();
        Ok(())
    }

    /// The two commands of a pair follow each other in the ring, and one doorbell announces both (Base §3.4.1.2).
    #[cold]
    fn start_pair(&self, tenant: &T, mut first: Sqe, io: Io) -> Result<(), Io> {
        let mut slots = self.slots.borrow_mut();
        let Some((one, two)) = slots.take_two() else {
            return Err(io);
        };
        let mut second = fused_write(&io, tenant.place());
        let len = io.len as usize;
        self.point(&mut first, one, (&io.data, 0, len));
        self.point(&mut second, two, (&io.data, len, len));
        let (cid, mate) = slots.fill_pair((one, two), io, self.reactor.clock().now());
        first.cid.set(cid);
        second.cid.set(mate);
        self.rings.push(&first);
        self.rings.push(&second);
        self.ask();
        Ok(())
    }

    #[inline]
    fn point(&self, sqe: &mut Sqe, slot: u16, bytes: (&Segments, usize, usize)) {
        let pointed = self.pointers.point(&self.port, sqe, bytes, || self.list(slot));
        // Sent without a pointer, the command would read or write elsewhere.
        assert!(pointed, "a tenant submits data that it has not asked about");
    }

    #[cold]
    fn point_to_range(&self, sqe: &mut Sqe, slot: u16, place: Place, io: &IoCell) {
        let list = self.list(slot);
        list.memory.write(list.at, place.range(io.offset, io.len).as_bytes());
        sqe.set_prps(list.address, 0);
    }

    fn list(&self, slot: u16) -> List<'_> {
        let QueueMemory { lists, list_len, .. } = &self.memory;
        let per_block = lists[0].0.len() / list_len;
        let (memory, address) = &lists[usize::from(slot) / per_block];
        let at = usize::from(slot) % per_block * list_len;
        List { memory, at, address: address + at as u64 }
    }

    #[inline]
    fn ask(&self) {
        if !self.asked.replace(true)
            && let Some(me) = self.me.upgrade()
        {
            self.reactor.at_end(me);
        }
    }

    /// Starts what waits, as far as there is room.
    #[cold]
    fn start_waiting(&self) {
        while self.state.get() == State::Live
            && let Some(io) = self.waiting.pop()
        {
            if let Err(io) = self.start(io, 0) {
                self.waiting.push_front(io);
                return;
            }
        }
    }

    /// Commands in flight.
    pub fn in_flight(&self) -> usize {
        self.slots.borrow().in_flight()
    }

    /// The commands that have been in flight since `until` of the clock or longer, oldest first.
    pub(super) fn late(&self, until: u64) -> Vec<Late> {
        self.slots.borrow().late(until)
    }

    /// Whether any of these commands is still in flight.
    pub(super) fn has_any(&self, late: &[Late]) -> bool {
        let slots = self.slots.borrow();
        late.iter().any(|late| slots.has(*late))
    }

    /// Its counters.
    pub fn counters(&self) -> QueueCounters {
        let (submission_doorbells, completion_doorbells) = self.rings.rung();
        let (stale, repeated) = (self.stale.get(), self.repeated.get());
        QueueCounters { submission_doorbells, completion_doorbells, stale, repeated }
    }

    /// Lets no further command out, nor any doorbell: the queue is going to be deleted under the commands in flight.
    pub(super) fn hold(&self) {
        if self.state.get() == State::Live {
            self.state.set(State::Held);
            // Its registers may not be there for a while.
            self.disarm();
        }
    }

    /// Takes what the controller had answered, and empties the rings for queues that are going to be created anew: it may not find
    /// entries of the last round there.
    pub(super) fn rewind(&self, _: &Quiet) {
        if self.state.get() == State::Held {
            self.drain();
            self.rings.restart();
        }
    }

    /// Goes on with queues that were created anew: what was in flight is written again, oldest first, unless it may not be or has been too
    /// often; then it fails, and nobody knows whether it took effect.
    ///
    /// No effect on a queue that was not held: it was made after the controller had come back.
    pub(super) fn restart(&self, _: &Quiet, crashed: bool) {
        if self.state.get() != State::Held {
            return;
        }
        if crashed {
            self.tenants.borrow().iter().flatten().for_each(|tenant| tenant.crashed());
        }
        if let Some(vector) = self.vector {
            // A reset of the function may have taken the mask off.
            self.port.mask(vector, !self.unmasked.get());
        }
        let unanswered = self.slots.borrow_mut().take_all();
        self.state.set(State::Live);
        let mut failed = Vec::new();
        for (io, repeats) in unanswered {
            let repeat = {
                let tenants = self.tenants.borrow();
                let tenant = tenant_of(&tenants, &io);
                repeats < NVME_REPEATS_MAX && !tenant.is_stale(&io) && tenant.may_repeat(&io)
            };
            if !repeat {
                failed.push(io);
            } else if let Err(io) = self.start(io, repeats + 1) {
                unreachable!("{io:?}: there were slots for all of them");
            } else {
                self.repeated.set(self.repeated.get() + 1);
            }
        }
        // What came while the queue was held, or found no slot before, has aged as well.
        let waiting: Vec<Io> = std::iter::from_fn(|| self.waiting.pop()).collect();
        for io in waiting {
            let stale = tenant_of(&self.tenants.borrow(), &io).is_stale(&io);
            if stale {
                failed.push(io);
            } else {
                self.waiting.push(io);
            }
        }
        // Last: others may be submitted in their stead, which take slots.
        for io in failed {
            self.give_up(io, IoStatus::DeviceError);
        }
        self.start_waiting();
    }

    fn unmask(&self, vector: u16, on: bool) {
        self.unmasked.set(on);
        self.port.mask(vector, !on);
    }

    fn give_up(&self, io: Io, status: IoStatus) {
        let tenant = tenant_of(&self.tenants.borrow(), &io).clone();
        tenant.ended(io, status);
    }

    /// Takes what the controller answered before it became quiet; what that sets going waits.
    fn drain(&self) {
        for _ in 0..self.memory.rings.entries {
            match self.rings.next() {
                Some(completion) => self.take(&completion),
                None => break,
            }
        }
        self.let_leave();
    }

    /// Ends all that is in flight or waits, and takes no more.
    pub(super) fn end(&self, _: &Quiet, status: IoStatus) {
        if self.is_ended() {
            return;
        }
        self.state.set(State::Held);
        self.drain();
        self.quiet.set(true);
        self.state.set(State::Ended(status));
        let unanswered = self.slots.borrow_mut().take_all();
        let waiting = std::iter::from_fn(|| self.waiting.pop());
        for io in unanswered.into_iter().map(|(io, _)| io).chain(waiting) {
            self.give_up(io, status);
        }
        if let Some(poller) = self.poller.take() {
            self.reactor.remove_poller(poller);
        }
        self.port.detach(&self.reactor, self.qid);
    }

    #[inline]
    fn take(&self, completion: &Completion) {
        let found = if completion.sqid == self.qid {
            self.slots.borrow_mut().answer(completion.cid, completion.status)
        } else {
            Found::Nothing
        };
        match found {
            Found::Ended(io, status) => {
                let result = || self.rings.result(completion);
                tenant_of(&self.tenants.borrow(), &io).answered(io, status, result);
            }
            Found::Half => {}
            Found::Nothing => self.stale.set(self.stale.get() + 1),
        }
    }
}

#[inline]
fn tenant_of<'a, T>(tenants: &'a [Option<Rc<T>>], io: &IoCell) -> &'a Rc<T> {
    tenants[(io.scratch & TENANT_BITS) as usize].as_ref().expect("a tenant stays until its I/Os have ended")
}

impl<P: Port, T: Tenant> Poller for QueuePair<P, T> {
    #[inline]
    fn poll(&self) -> Activity {
        let mut found = 0;
        // Bounded: a controller that answers what was never asked must not keep the reactor.
        while found < self.memory.rings.entries
            && let Some(completion) = self.rings.next()
        {
            found += 1;
            self.take(&completion);
        }
        if found > 0 {
            // A queue that is held may be deleted at any time: nothing of it is rung.
            if self.state.get() == State::Live {
                self.rings.acknowledge();
            }
            if !self.leaving.borrow().is_empty() {
                self.let_leave();
            }
            if !self.waiting.is_empty() {
                self.start_waiting();
            }
            return Activity::Busy;
        }
        // What comes while the queue is held is looked for when it is rewound.
        let awaited = self.state.get() == State::Live && self.slots.borrow().in_flight() > 0;
        if awaited && self.vector.is_none() { Activity::Waiting } else { Activity::Idle }
    }

    fn arm(&self) -> bool {
        if let Some(vector) = self.vector
            && self.state.get() == State::Live
            && self.slots.borrow().in_flight() > 0
        {
            self.unmask(vector, true);
            // What came before that may have rung nobody.
            if self.rings.has_next() {
                self.unmask(vector, false);
                return false;
            }
        }
        true
    }

    fn disarm(&self) {
        if let Some(vector) = self.vector
            && self.unmasked.get()
        {
            self.unmask(vector, false);
        }
    }
}

impl<P: Port, T: Tenant> Deferred for QueuePair<P, T> {
    fn name(&self) -> &'static str {
        "nvme doorbell"
    }

    fn run(&self) {
        self.asked.set(false);
        if self.state.get() == State::Live {
            self.rings.announce();
        }
    }
}

impl<P: Port, T: Tenant> Held for QueuePair<P, T> {
    fn has(&self, cid: u16) -> bool {
        self.slots.borrow().is_in_flight(cid)
    }

    fn with(&self, cid: u16, address: u64, len: usize, f: &mut dyn FnMut(&mut [u8])) -> bool {
        let mut slots = self.slots.borrow_mut();
        let Some(io) = slots.io_of_mut(cid) else {
            return false;
        };
        for segment in io.data.iter_mut() {
            if let Segment::Buf(buf) = segment
                && let Some(base) = self.port.data(buf)
                && let Some(at) = address.checked_sub(base)
                && at <= buf.len() as u64
                && len <= buf.len() - at as usize
            {
                f(&mut buf[at as usize..at as usize + len]);
                return true;
            }
        }
        false
    }
}

impl<P: Port, T: Tenant> Drop for QueuePair<P, T> {
    fn drop(&mut self) {
        if !self.quiet.get() {
            // The controller may write to all of this at any time: it must never be anybody else's.
            let slots = self.slots.replace(Slots::new(0));
            if slots.in_flight() > 0 {
                tracing::error!(
                    "{} I/Os of an NVMe queue that did not become quiet keep their memory",
                    slots.in_flight()
                );
            }
            std::mem::forget((slots, self.memory.rings.clone(), self.memory.lists.clone()));
        }
    }
}
