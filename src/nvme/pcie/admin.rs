//! The admin queue: one command at a time or many, each with a time limit of its own.
//!
//! Data of admin commands lies in memory of its own, [`DeviceBuf`]s, never in anybody's I/O: what a command that was given up may still
//! read or write stays with the queue until the controller has answered it after all, or is [`Quiet`].
//!
//! Its interrupt, if the controller has one for it, is never masked: there are few answers, and a reactor that sleeps hears of each, be it that
//! of a command that takes minutes or an event. Without, the reactor does not sleep while an answer is awaited, and sees events when it next wakes.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::Poll;

use hugepages::DeviceBuf;

use super::Quiet;
use super::queue::Rings;
use crate::limits::NVME_ADMIN_ENTRIES;
use crate::nvme::spec::{Sqe, Status};
use crate::reactor::{Activity, Deferred, Poller, PollerId, Reactor, TaskId};
use crate::sys::mmio::Registers;

/// Bits of a command identifier that name the slot; the others are its generation.
const SLOT_BITS: u32 = 8;
const GENERATIONS: u8 = 255;
const _: () = assert!(NVME_ADMIN_ENTRIES as u32 - 1 <= 1 << SLOT_BITS);

/// What a controller said to an admin command.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: Status,
    /// Dwords 0 and 1.
    pub(super) result: u64,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// None came in time.
    Late,
    /// The queue is being deleted, or is.
    Stopped,
}

#[derive(Debug)]
enum State {
    Free,
    /// Nobody has to answer, and nobody waits: see [`Limit::Never`].
    Asked {
        task: Option<TaskId>,
        patient: bool,
    },
    Answered(Answer),
    /// Nobody waits any more.
    GivenUp,
}

struct Slot {
    generation: u8,
    state: State,
    /// Memory that the command is about.
    data: Option<DeviceBuf>,
}

/// How long an answer may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Limit {
    /// So many nanoseconds.
    Ns(u64),
    /// For ever: an event that may never happen.
    Never,
}

/// See the module's head.
pub(super) struct AdminQueue<R: Registers> {
    me: Weak<Self>,
    reactor: Rc<Reactor>,
    rings: Rings<R>,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u8>>,
    /// Tasks that wait for a slot.
    waiters: RefCell<Vec<TaskId>>,
    asked: Cell<bool>,
    stopped: Cell<bool>,
    quiet: Cell<bool>,
    /// Commands in flight whose answer is not an event.
    awaited: Cell<usize>,
    stale: Cell<u64>,
    poller: Cell<Option<PollerId>>,
    /// Completions wake the reactor.
    interrupts: bool,
}

impl<R: Registers> AdminQueue<R> {
    /// Of a controller that is enabled with these rings as its admin queues. `interrupts`: whatever it posts there wakes the reactor.
    pub(super) fn new(reactor: &Rc<Reactor>, rings: Rings<R>, interrupts: bool) -> Rc<AdminQueue<R>> {
        // A full ring would look empty.
        let slots = rings.memory().entries - 1;
        let slot = || Slot { generation: 0, state: State::Free, data: None };
        let queue = Rc::new_cyclic(|me: &Weak<Self>| AdminQueue {
            me: me.clone(),
            reactor: reactor.clone(),
            rings,
            slots: RefCell::new((0..slots).map(|_| slot()).collect()),
            free: RefCell::new((0..slots as u8).rev().collect()),
            waiters: RefCell::default(),
            asked: Cell::new(false),
            stopped: Cell::new(false),
            quiet: Cell::new(false),
            awaited: Cell::new(0),
            stale: Cell::new(0),
            poller: Cell::new(None),
            interrupts,
        });
        queue.poller.set(Some(reactor.add_poller("nvme admin queue", queue.clone())));
        queue
    }

    /// Has the controller carry out a command whose data pointer, if it has any, leads to `data`. The memory stays with the command until it is
    /// answered, whoever waits for that.
    pub(super) async fn command(&self, sqe: Sqe, data: Option<DeviceBuf>, limit: Limit) -> Result<Answer, NoAnswer> {
        let deadline = match limit {
            Limit::Ns(ns) => self.reactor.clock().now().saturating_add(ns),
            Limit::Never => u64::MAX,
        };
        let index = self.slot(deadline).await?;
        self.start(index, sqe, data, limit == Limit::Never);
        let given_up = GivenUp { queue: self, index };
        let answer = poll_fn(|_| {
            let mut slots = self.slots.borrow_mut();
            let slot = &mut slots[usize::from(index)];
            if let State::Answered(answer) = &slot.state {
                return Poll::Ready(Ok(answer.clone()));
            }
            if self.stopped.get() {
                return Poll::Ready(Err(NoAnswer::Stopped));
            }
            if self.reactor.clock().now() >= deadline {
                return Poll::Ready(Err(NoAnswer::Late));
            }
            let me = self.reactor.current_task();
            if let State::Asked { task, .. } = &mut slot.state
                && task.replace(me) != Some(me)
                && deadline != u64::MAX
            {
                self.reactor.wake_at(deadline, me);
            }
            Poll::Pending
        })
        .await;
        drop(given_up);
        answer
    }

    async fn slot(&self, deadline: u64) -> Result<u8, NoAnswer> {
        let mut timed = false;
        poll_fn(|_| {
            if self.stopped.get() {
                return Poll::Ready(Err(NoAnswer::Stopped));
            }
            if let Some(index) = self.free.borrow_mut().pop() {
                return Poll::Ready(Ok(index));
            }
            if self.reactor.clock().now() >= deadline {
                return Poll::Ready(Err(NoAnswer::Late));
            }
            let me = self.reactor.current_task();
            let mut waiters = self.waiters.borrow_mut();
            if !waiters.contains(&me) {
                waiters.push(me);
            }
            if !timed && deadline != u64::MAX {
                timed = true;
                self.reactor.wake_at(deadline, me);
            }
            Poll::Pending
        })
        .await
    }

    fn start(&self, index: u8, mut sqe: Sqe, data: Option<DeviceBuf>, patient: bool) {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[usize::from(index)];
        slot.generation = (slot.generation + 1) % GENERATIONS;
        (slot.state, slot.data) = (State::Asked { task: None, patient }, data);
        self.awaited.set(self.awaited.get() + usize::from(!patient));
        sqe.cid.set(u16::from(slot.generation) << SLOT_BITS | u16::from(index));
        self.rings.push(&sqe);
        if !self.asked.replace(true)
            && let Some(me) = self.me.upgrade()
        {
            self.reactor.at_end(me);
        }
    }

    fn release(&self, index: u8, slot: &mut Slot) {
        (slot.state, slot.data) = (State::Free, None);
        self.free.borrow_mut().push(index);
        // All of them: one that has given up in the meantime would keep the slot from the others.
        self.waiters.borrow_mut().drain(..).for_each(|task| self.reactor.wake(task));
    }

    /// Lets no further command out, and ends those that somebody waits for.
    pub(super) fn stop(&self) {
        self.stopped.set(true);
        for slot in self.slots.borrow().iter() {
            if let State::Asked { task: Some(task), .. } = slot.state {
                self.reactor.wake(task);
            }
        }
        self.waiters.borrow_mut().drain(..).for_each(|task| self.reactor.wake(task));
    }

    /// Ends the queue: the controller touches its memory and its commands' no more.
    pub(super) fn end(&self, _: &Quiet) {
        self.stop();
        self.quiet.set(true);
        if let Some(poller) = self.poller.take() {
            self.reactor.remove_poller(poller);
        }
    }

    /// Completions of commands that were not in flight.
    pub(super) fn stale(&self) -> u64 {
        self.stale.get()
    }
}

/// The end of waiting for an answer, by whatever way.
struct GivenUp<'a, R: Registers> {
    queue: &'a AdminQueue<R>,
    index: u8,
}

impl<R: Registers> Drop for GivenUp<'_, R> {
    fn drop(&mut self) {
        let queue = self.queue;
        let mut slots = queue.slots.borrow_mut();
        let slot = &mut slots[usize::from(self.index)];
        match slot.state {
            State::Answered(_) => queue.release(self.index, slot),
            State::Asked { patient, .. } => {
                queue.awaited.set(queue.awaited.get() - usize::from(!patient));
                slot.state = State::GivenUp;
            }
            State::GivenUp | State::Free => {}
        }
    }
}

impl<R: Registers> Poller for AdminQueue<R> {
    fn poll(&self) -> Activity {
        let mut found = 0;
        while found < NVME_ADMIN_ENTRIES
            && let Some(completion) = self.rings.next()
        {
            found += 1;
            let (index, generation) = (completion.cid as u8, (completion.cid >> SLOT_BITS) as u8);
            let mut slots = self.slots.borrow_mut();
            let slot = slots.get_mut(usize::from(index)).filter(|slot| slot.generation == generation);
            match slot.map(|slot| (slot.state.is_asked(), slot)) {
                Some((Some((task, patient)), slot)) if completion.sqid == 0 => {
                    let answer = Answer { status: completion.status, result: self.rings.result(&completion) };
                    slot.state = State::Answered(answer);
                    self.awaited.set(self.awaited.get() - usize::from(!patient));
                    task.into_iter().for_each(|task| self.reactor.wake(task));
                }
                Some((None, slot)) if matches!(slot.state, State::GivenUp) && completion.sqid == 0 => {
                    self.release(index, slot);
                }
                _ => self.stale.set(self.stale.get() + 1),
            }
        }
        if found > 0 {
            // No doorbell of a controller that is being disabled is written.
            if !self.stopped.get() {
                self.rings.acknowledge();
            }
            return Activity::Busy;
        }
        if self.awaited.get() > 0 && !self.interrupts { Activity::Waiting } else { Activity::Idle }
    }

    fn arm(&self) -> bool {
        // What came since the last look has rung the reactor while it was awake.
        !self.rings.has_next()
    }
}

impl State {
    /// Who waits, and whether for ever, if there is no answer yet.
    fn is_asked(&self) -> Option<(Option<TaskId>, bool)> {
        match self {
            State::Asked { task, patient } => Some((*task, *patient)),
            _ => None,
        }
    }
}

impl<R: Registers> Deferred for AdminQueue<R> {
    fn name(&self) -> &'static str {
        "nvme admin doorbell"
    }

    fn run(&self) {
        self.asked.set(false);
        if !self.stopped.get() {
            self.rings.announce();
        }
    }
}

impl<R: Registers> Drop for AdminQueue<R> {
    fn drop(&mut self) {
        if !self.quiet.get() {
            // The controller may still write to it.
            std::mem::forget((self.rings.memory().clone(), self.slots.take()));
        }
    }
}
