//! One reactor: a thread's worth of event loop, storage I/Os, tasks and sockets. Read [`Reactor::turn`] first.
//!
//! A reactor shares nothing: what it owns is touched by its thread alone, and cores talk only through [`mailbox`] rings.
//! It reaches the world through one [`backend::Backend`], one [`clock::Clock`] and one [`clock::Entropy`], and nothing hangs on a
//! thread-local, so a simulator can turn many reactors on one thread.

pub mod backend;
pub mod clock;
mod deferred;
pub mod futures;
pub mod io;
pub mod mailbox;
mod poller;
pub mod sim;
pub mod start;
mod stats;
mod task;
mod timer;

use std::any::{Any, TypeId};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::task::Poll;
use std::time::Duration;

use hugepages::{Chunk, ChunkInfo, Pool};

use crate::limits::{READY_BUDGET, SLEEP_NS_MAX, SPIN_NS, TASKS_PER_TURN};
use crate::sys::descriptor::Descriptor;
use crate::sys::op::{Completion, Ended, FileId, Op, OpToken, Owner, Payload, UblkCommand};
use crate::sys::socket::Doorbell;
use crate::sys::tx::TxBatch;
use backend::Backend;
use clock::{Clock, Entropy, TimeSource};
pub use deferred::Deferred;
use deferred::DeferredList;
use futures::OpWaits;
use io::{Frame, Io, IoCell, IoTable, IoToken};
use mailbox::{Mailbox, Message, Parcel};
use poller::Pollers;
pub use poller::{Activity, Poller, PollerId};
use stats::Stalls;
pub use stats::{Names, ReactorStats, Stall};
pub use task::TaskId;
use task::Tasks;
use timer::Timers;

/// Who receives the completions of operations, and parcels from other reactors.
pub trait Sink {
    /// One operation ended. `tag` is what its [`Owner`] said.
    fn completed(&self, tag: u64, completion: Completion);

    /// One operation ended that carries nothing but a result. What this returns is the task that goes on with it, at once.
    fn ended(&self, Ended { owner, result }: Ended) -> Option<TaskId> {
        self.completed(owner.tag, Completion { owner, result, payload: Payload::None });
        None
    }

    /// A parcel from another reactor arrived. Only sinks that gave out their number for parcels get any.
    fn parcel(&self, parcel: Box<Parcel>) {
        drop(parcel);
    }
}

/// A layer that left a [`Frame`] on an I/O it passed on.
pub trait Layer {
    /// The I/O came back with its frame. `Ready`: goes on up the stack; `Pending`: the layer has it, and gives it to
    /// [`Reactor::complete`] later, exactly once, if there is more of the stack. May submit, but neither add nor remove a layer, nor drop
    /// the channel of a device.
    fn completed(&self, io: Io, frame: Frame) -> Poll<Io>;
}

/// A box of this is one address and one table of functions; where an `Rc<dyn Layer>` keeps its value has to be worked out at each call.
impl<L: Layer> Layer for Rc<L> {
    #[inline]
    fn completed(&self, io: Io, frame: Frame) -> Poll<Io> {
        L::completed(self, io, frame)
    }
}

/// What a turn did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Something: turn again at once.
    Busy,
    /// Nothing, and nothing comes without ringing before this time of the clock, in nanoseconds.
    SleepUntil(u64),
    /// Nothing, but a poller waits for memory to change.
    Polling,
}

/// What a reactor does when there is nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Idle {
    /// Spin, always: the lowest latency, a whole core.
    Poll,
    /// Spin for [`crate::limits::SPIN_NS`], then sleep in the ring until an I/O, a message or a timer.
    #[default]
    Adaptive,
}

struct Named<T: ?Sized> {
    name: &'static str,
    it: Rc<T>,
}

/// See the module's head.
pub struct Reactor {
    me: Weak<Reactor>,
    clock: Clock,
    entropy: Entropy,
    pool: Pool,
    mailbox: Mailbox,
    table: IoTable,
    completions: RefCell<Vec<Io>>,
    /// The other list of the two that take turns, empty but for [`Reactor::unwind_completions`].
    unwinding: RefCell<Vec<Io>>,
    deferred: DeferredList,
    at_end: DeferredList,
    /// See [`Reactor::arrived`].
    arrived: Cell<usize>,
    layers: RefCell<Vec<Option<Box<dyn Layer>>>>,
    sinks: RefCell<Vec<Option<Named<dyn Sink>>>>,
    pollers: Pollers,
    tasks: Tasks,
    timers: Timers,
    op_waits: Rc<OpWaits>,
    calls: futures::Calls,
    buffer_waiters: RefCell<VecDeque<TaskId>>,
    freed_seen: Cell<u64>,
    services: RefCell<BTreeMap<TypeId, Rc<dyn Any>>>,
    budget: Cell<u32>,
    reaped: RefCell<Vec<Completion>>,
    ended: RefCell<Vec<Ended>>,
    chunks: RefCell<VecDeque<ChunkInfo>>,
    stats: stats::Counters,
    stalls: Stalls,
    backend: RefCell<Backend>,
}

/// Tag of the doorbell's own sink.
const DOORBELL: u32 = 0;
/// The sink of [`Reactor::op`].
const OPS: u32 = 1;

impl Reactor {
    /// A reactor on its own thread's backend. `mailbox` comes from [`mailbox::Mailbox::connect`] by way of [`start`].
    fn new(mailbox: Mailbox, backend: Backend, time: TimeSource, seed: u64, pool: Pool) -> Rc<Reactor> {
        let clock = Clock::new(time);
        let timers = Timers::new(clock.now());
        let op_waits = Rc::new(OpWaits::default());
        let reactor = Rc::new_cyclic(|me| Reactor {
            me: me.clone(),
            clock,
            entropy: Entropy::new(seed),
            pool,
            mailbox,
            table: IoTable::new(),
            completions: RefCell::new(Vec::with_capacity(4096)),
            deferred: DeferredList::default(),
            at_end: DeferredList::default(),
            arrived: Cell::default(),
            unwinding: RefCell::new(Vec::with_capacity(4096)),
            layers: RefCell::new(Vec::new()),
            // The doorbell needs no sink: its completion is noticed by `turn` itself.
            sinks: RefCell::new(vec![None]),
            pollers: Pollers::default(),
            tasks: Tasks::new(),
            timers,
            op_waits: op_waits.clone(),
            calls: futures::Calls::default(),
            buffer_waiters: RefCell::new(VecDeque::new()),
            freed_seen: Cell::new(0),
            services: RefCell::new(BTreeMap::new()),
            budget: Cell::new(READY_BUDGET),
            reaped: RefCell::new(Vec::with_capacity(crate::sys::limits::REAP_BATCH * 2)),
            ended: RefCell::new(Vec::with_capacity(crate::sys::limits::REAP_BATCH)),
            chunks: RefCell::new(VecDeque::new()),
            stats: stats::Counters::default(),
            stalls: Stalls::new(),
            backend: RefCell::new(backend),
        });
        let ops = reactor.add_sink("operations", Rc::new(futures::OpSink::new(reactor.me.clone(), op_waits)));
        debug_assert_eq!(ops, OPS);
        reactor.ring_in();
        reactor
    }

    fn ring_in(&self) {
        self.submit_op(Op::Doorbell, Owner { sink: DOORBELL, tag: 0 });
    }

    /// Does one round: completions of operations, messages, timers, pollers, what was deferred, completed Ios, tasks, what was left to
    /// the end, and at last one call that hands everything started to the backend.
    pub fn turn(&self) -> Turn {
        let started = self.clock.refresh();
        self.stats.turn_started(started, self.mailbox.own());
        self.stalls.begin(started);
        self.pool.collect();
        let mut busy = self.dispatch_completions();
        busy |= self.deliver_mail();
        busy |= self.timers.expire(started, |task| self.tasks.wake(task));
        let (polled, waiting) = self.pollers.poll(&self.stalls, &self.clock);
        busy |= polled;
        busy |= self.deferred.run(&self.stalls, &self.clock);
        busy |= self.unwind_completions();
        self.wake_buffer_waiters();
        busy |= self.run_tasks();
        busy |= self.at_end.run(&self.stalls, &self.clock);
        self.stalls.end_batch(&self.clock);
        busy |= self.mailbox.flush();
        let left = !self.completions.borrow().is_empty() || !self.deferred.is_empty() || !self.at_end.is_empty();
        let again = self.tasks.ready_len() > 0 || left;
        busy |= self.backend.borrow_mut().flush(again);
        self.stats.turn_ended(busy);
        if busy || again {
            Turn::Busy
        } else if waiting {
            Turn::Polling
        } else {
            self.register_a_chunk();
            Turn::SleepUntil(self.timers.next_deadline())
        }
    }

    fn dispatch_completions(&self) -> bool {
        let (mut reaped, mut ended) = (self.reaped.take(), self.ended.take());
        self.backend.borrow_mut().reap(&mut reaped, &mut ended);
        let any = !reaped.is_empty() || !ended.is_empty();
        for completion in reaped.drain(..) {
            let Owner { sink, tag } = completion.owner;
            if sink == DOORBELL {
                self.ring_in();
                continue;
            }
            let Some((name, sink)) = self.sink(sink) else {
                continue;
            };
            self.stalls.watch_batched(&self.clock, name, || sink.completed(tag, completion));
        }
        self.reaped.replace(reaped);
        if !ended.is_empty() {
            self.dispatch_ended(&mut ended);
        }
        self.ended.replace(ended);
        any
    }

    /// Wakes nobody: each task goes on from here, one after the other. Most belong to the same sink.
    #[inline]
    fn dispatch_ended(&self, all: &mut Vec<Ended>) {
        self.arrived.set(all.len());
        let mut polling = self.tasks.begin();
        let mut last: Option<(u32, Rc<dyn Sink>)> = None;
        for ended in all.drain(..) {
            let number = ended.owner.sink;
            if last.as_ref().is_none_or(|(last, _)| *last != number) {
                last = self.sink(number).map(|(_, sink)| (number, sink));
            }
            let Some((_, sink)) = &last else {
                continue;
            };
            if let Some(TaskId { index, generation }) = sink.ended(ended) {
                let before = || self.budget.set(READY_BUDGET);
                polling.poll(index, Some(generation), &before, &|name| self.stalls.ran(&self.clock, name));
            }
        }
        drop(polling);
        self.arrived.set(0);
        self.stalls.end_batch(&self.clock);
    }

    fn deliver_mail(&self) -> bool {
        let mut any = false;
        // Bounded: a flood of messages must not keep sockets waiting.
        for _ in 0..crate::limits::MAILBOX_LEN {
            let Some(message) = self.mailbox.receive() else {
                break;
            };
            any = true;
            match message {
                Message::Call(call) => {
                    let this = self.handle();
                    self.stalls.watch(&self.clock, "message", || call(&this));
                }
                Message::Parcel(to, parcel) => {
                    if let Some((name, sink)) = self.sink(to) {
                        self.stalls.watch_batched(&self.clock, name, || sink.parcel(parcel));
                    }
                }
            }
        }
        any
    }

    #[inline]
    fn unwind_completions(&self) -> bool {
        if self.completions.borrow().is_empty() {
            return false;
        }
        // What completes meanwhile is for the next turn.
        let mut batch = self.completions.replace(self.unwinding.take());
        let mut polling = self.tasks.begin();
        let mut kept = false;
        for io in batch.drain(..) {
            // Its task goes on at once: the I/O is in the cache now.
            if let Some(TaskId { index, generation }) = self.unwind(io) {
                let before = || self.budget.set(READY_BUDGET);
                polling.poll(index, Some(generation), &before, &|name| self.stalls.ran(&self.clock, name));
            } else {
                kept = true;
            }
        }
        drop(polling);
        self.stalls.end_batch(&self.clock);
        if kept {
            self.stalls.passed(&self.clock, "layers");
        }
        self.unwinding.replace(batch);
        true
    }

    /// Takes a completed I/O up its stack, frame by frame, to where the task finds it that waits for it.
    #[inline]
    fn unwind(&self, mut io: Io) -> Option<TaskId> {
        while let Some((layer, frame)) = io.pop_frame() {
            let layers = self.layers.borrow();
            let layer = layers[layer as usize].as_ref().expect("a layer stays until its I/Os have ended");
            let done = layer.completed(io, frame);
            drop(layers);
            match done {
                Poll::Ready(back) => io = back,
                Poll::Pending => return None,
            }
        }
        self.table.land(io)
    }

    fn run_tasks(&self) -> bool {
        let before = || self.budget.set(READY_BUDGET);
        self.tasks.poll(TASKS_PER_TURN, before, |name| self.stalls.ran(&self.clock, name)) > 0
    }

    fn wake_buffer_waiters(&self) {
        let freed = self.pool.freed();
        if freed != self.freed_seen.get() {
            self.freed_seen.set(freed);
            for task in self.buffer_waiters.borrow_mut().drain(..) {
                self.tasks.wake(task);
            }
        }
    }

    /// Registers one chunk that arrived while serving: at most one a turn, and only in an idle one, since it takes a millisecond.
    fn register_a_chunk(&self) {
        let chunk = self.chunks.borrow_mut().pop_front();
        if let Some(chunk) = chunk {
            self.backend.borrow_mut().register_chunk(&chunk);
        }
    }

    /// Turns until [`Reactor::stop`] or [`mailbox::Remote::stop`] is called.
    pub fn run(&self, idle: Idle) {
        let mut idle_since = None;
        while !self.mailbox.own().is_stopping() {
            match (self.turn(), idle) {
                (Turn::Busy, _) => idle_since = None,
                (Turn::Polling, _) | (Turn::SleepUntil(_), Idle::Poll) => std::hint::spin_loop(),
                (Turn::SleepUntil(until), Idle::Adaptive) => {
                    let now = self.clock.now();
                    if now - *idle_since.get_or_insert(now) >= SPIN_NS {
                        self.sleep_in_backend(until);
                        idle_since = None;
                    }
                }
            }
        }
    }

    /// Turns until `body` has ended, and returns what it gave: for tools and tests that own their thread.
    pub fn run_until<R: 'static>(&self, body: impl Future<Output = R> + 'static) -> R {
        let result = Rc::new(Cell::new(None));
        let there = result.clone();
        self.spawn("run_until", async move { there.set(Some(body.await)) });
        loop {
            self.turn();
            if let Some(result) = result.take() {
                return result;
            }
        }
    }

    /// Sleeps until something rings or the clock reaches `until`; returns at once if something came in between.
    fn sleep_in_backend(&self, until: u64) {
        // Memory that another core gives back rings nobody: who waits for it keeps this reactor awake.
        let waiting = !self.buffer_waiters.borrow().is_empty();
        if waiting || !self.chunks.borrow().is_empty() || !self.fall_asleep() {
            return;
        }
        let now = self.clock.refresh();
        let ns = until.saturating_sub(now).min(SLEEP_NS_MAX);
        if ns > 0 {
            self.backend.borrow_mut().wait(Some(Duration::from_nanos(ns)));
            self.stats.slept(self.clock.refresh() - now);
        }
        self.wake_up();
    }

    /// Announces sleep to all who may ring: senders of messages, devices of pollers, the backend. `false`: something came first, and
    /// nothing is announced. Each is told, then looked at again, so that what comes in between is seen or rings. Pollers come after
    /// the fence of the mailbox: a device may ring by whether this reactor is asleep.
    fn fall_asleep(&self) -> bool {
        if !self.mailbox.fall_asleep() {
            return false;
        }
        if self.pollers.arm() {
            if !self.backend.borrow_mut().has_completions() {
                return true;
            }
            self.pollers.disarm();
        }
        self.mailbox.wake_up();
        false
    }

    /// The end of a sleep, or of one that was announced.
    fn wake_up(&self) {
        self.mailbox.wake_up();
        self.pollers.disarm();
    }

    // --- what devices, doors and tasks use ---

    /// A counted handle on this reactor, for tasks and devices that live on it.
    pub fn handle(&self) -> Rc<Reactor> {
        self.me.upgrade().expect("a method of a living reactor")
    }

    /// This reactor's number, from 0.
    pub fn id(&self) -> u16 {
        self.mailbox.own().id()
    }

    /// How many reactors the process has.
    pub fn reactors(&self) -> u16 {
        self.mailbox.peers() as u16
    }

    /// The clock.
    #[inline]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The source of chance.
    pub fn entropy(&self) -> &Entropy {
        &self.entropy
    }

    /// The pool of this reactor's DMA buffers.
    #[inline]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Adds a chunk of DMA memory to the pool and registers it when there is time.
    pub fn add_chunk(&self, chunk: Chunk, info: ChunkInfo) {
        self.pool.add(chunk);
        self.chunks.borrow_mut().push_back(info);
    }

    /// An I/O for a command slot or a layer's helper; `None` beyond [`crate::limits::IOS_PER_REACTOR`].
    pub fn create_io(&self) -> Option<Io> {
        self.table.create()
    }

    /// Returns an I/O for good; its buffers go home.
    pub fn retire_io(&self, io: Io) {
        self.table.retire(io);
    }

    /// I/Os that tasks, channels and devices hold: back to what it was once all of them have ended.
    pub fn ios_in_use(&self) -> usize {
        self.table.in_use()
    }

    /// Trades the handle for a token, for a device that gives the I/O to the kernel or to hardware.
    #[inline]
    pub fn park(&self, io: Io) -> IoToken {
        self.table.park(io)
    }

    /// Gets the handle back with the completion; `None` and a count for a token that is stale.
    #[inline]
    pub fn unpark(&self, token: IoToken) -> Option<Io> {
        self.table.unpark(token)
    }

    /// Looks at a parked I/O, whose device it belongs to.
    pub fn with_parked<R>(&self, token: IoToken, f: impl FnOnce(&mut IoCell) -> R) -> Option<R> {
        self.table.with_parked(token, f)
    }

    /// Queues a finished I/O; it goes up its stack in the next completion phase, never inside the caller.
    #[inline]
    pub fn complete(&self, io: Io) {
        self.completions.borrow_mut().push(io);
    }

    /// How many ends of commands go to their sinks now, one after the other: what a task does that is polled for one of them may
    /// go together with what the others do, by [`Reactor::defer`]. 0 at other times.
    #[inline]
    pub fn arrived(&self) -> usize {
        self.arrived.get()
    }

    /// Has work done later in this turn, or in the next: after all that has arrived in it, and before completed I/Os go up their
    /// stacks. To be asked for once until it is done.
    pub fn defer(&self, work: Rc<dyn Deferred>) {
        self.deferred.push(work);
    }

    /// Has work done at the end of this turn, or of the next if this one's is being done: after the tasks, and before messages and
    /// operations go out, those that it sends and starts included. For one doorbell of a device for all that a turn has put into its
    /// queue. To be asked for once until it is done.
    #[inline]
    pub fn at_end(&self, work: Rc<dyn Deferred>) {
        self.at_end.push(work);
    }

    /// Starts an operation of the backend.
    #[inline]
    pub fn submit_op(&self, op: Op, owner: Owner) -> OpToken {
        self.backend.borrow_mut().submit(op, owner)
    }

    /// Starts a command about a ublk tag.
    #[inline]
    pub fn submit_command(&self, file: FileId, command: UblkCommand, owner: Owner) {
        self.backend.borrow_mut().command(file, command, owner);
    }

    /// Takes a descriptor into the backend's table.
    pub fn add_file(&self, fd: impl Into<Descriptor>) -> FileId {
        self.backend.borrow_mut().add_file(fd.into())
    }

    /// An unconnected stream socket that can reach `to`, in the backend's table.
    ///
    /// # Errors
    /// What socket(2) says.
    pub fn add_socket(&self, to: SocketAddr) -> std::io::Result<FileId> {
        self.backend.borrow_mut().add_socket(to)
    }

    /// Prepares a connected socket of the backend for small answers and says the addresses of both ends: the peer's, then
    /// its own.
    ///
    /// # Errors
    /// If the peer has gone already.
    pub fn establish_socket(&self, file: FileId) -> std::io::Result<(SocketAddr, SocketAddr)> {
        self.backend.borrow_mut().establish_socket(file)
    }

    /// A second descriptor of a file or socket of the backend, for another reactor.
    ///
    /// # Errors
    /// What dup(2) says.
    pub fn share_file(&self, file: FileId) -> std::io::Result<Descriptor> {
        self.backend.borrow().share_file(file)
    }

    /// Sends as much of a batch as the socket takes within this call; nothing of it may be on its way. Errors are left to the next send.
    pub fn send_now(&self, file: FileId, batch: &mut TxBatch) {
        self.backend.borrow_mut().send_now(file, batch);
    }

    /// Closes a file or socket of the backend.
    pub fn remove_file(&self, file: FileId) {
        self.backend.borrow_mut().remove_file(file);
    }

    /// Places where the kernel may register the data of requests for this reactor's ring, at most `count`: fewer, or none, if others
    /// have them or the ring has no table.
    pub fn take_places(&self, count: usize) -> Vec<u16> {
        self.backend.borrow_mut().take_places(count)
    }

    /// Gives such places back, with what may still be registered there: no I/O to it may be in flight.
    pub fn give_places(&self, places: Vec<u16>) {
        self.backend.borrow_mut().give_places(places);
    }

    /// Registers a receiver of completions; its number goes into [`Owner`].
    pub fn add_sink(&self, name: &'static str, sink: Rc<dyn Sink>) -> u32 {
        let mut sinks = self.sinks.borrow_mut();
        let free = sinks.iter().skip(1).position(Option::is_none).map(|i| i + 1);
        let named = Some(Named { name, it: sink });
        match free {
            Some(index) => {
                sinks[index] = named;
                index as u32
            }
            None => {
                sinks.push(named);
                sinks.len() as u32 - 1
            }
        }
    }

    /// Forgets a sink: it must have nothing in flight, since its number is given out again.
    pub fn remove_sink(&self, sink: u32) {
        let removed = self.sinks.borrow_mut().get_mut(sink as usize).and_then(Option::take);
        // Dropped while nothing is borrowed: it may own handles of other devices.
        drop(removed);
    }

    fn sink(&self, index: u32) -> Option<(&'static str, Rc<dyn Sink>)> {
        self.sinks.borrow().get(index as usize)?.as_ref().map(|s| (s.name, s.it.clone()))
    }

    /// Registers a layer; its number is for [`Io::push_frame`].
    pub fn add_layer(&self, layer: Rc<impl Layer + 'static>) -> u32 {
        let mut layers = self.layers.borrow_mut();
        let index = layers.iter().position(Option::is_none).unwrap_or_else(|| {
            layers.push(None);
            layers.len() - 1
        });
        layers[index] = Some(Box::new(layer));
        index as u32
    }

    /// Forgets a layer: none of its I/Os may be in flight, since its number is given out again.
    pub fn remove_layer(&self, layer: u32) {
        let removed = self.layers.borrow_mut().get_mut(layer as usize).and_then(Option::take);
        // Dropped while nothing is borrowed: it may own handles of other devices.
        drop(removed);
    }

    /// Adds something to look at in every turn, from the next on if pollers are looked at now. Looks of one turn share a reading of
    /// the clock, by which stalls are told.
    pub fn add_poller(&self, name: &'static str, poller: Rc<dyn Poller>) -> PollerId {
        self.pollers.add(name, poller)
    }

    /// Forgets a poller, at any time, also from within its own poll: it is not looked at again. One that is armed is disarmed. No
    /// effect if it is forgotten already.
    pub fn remove_poller(&self, poller: PollerId) {
        self.pollers.remove(poller);
    }

    /// Starts a task.
    pub fn spawn(&self, name: &'static str, body: impl Future<Output = ()> + 'static) -> TaskId {
        self.tasks.spawn(name, Box::pin(body))
    }

    /// Has a task polled in this turn or the next.
    #[inline]
    pub fn wake(&self, task: TaskId) {
        self.tasks.wake(task);
    }

    /// The task being polled.
    #[inline]
    pub fn current_task(&self) -> TaskId {
        self.tasks.current()
    }

    /// Tasks that have not ended.
    pub fn tasks_alive(&self) -> usize {
        self.tasks.alive()
    }

    /// One per type: what a door or device keeps on each reactor, found by messages.
    pub fn service<T: 'static>(&self) -> Option<Rc<T>> {
        self.services.borrow().get(&TypeId::of::<T>()).cloned()?.downcast().ok()
    }

    /// Sets the service of its type.
    pub fn set_service<T: 'static>(&self, service: Rc<T>) {
        self.services.borrow_mut().insert(TypeId::of::<T>(), service);
    }

    /// A handle on this reactor that other threads may use.
    pub fn remote(&self) -> mailbox::Remote {
        self.mailbox.own().clone()
    }

    /// Sends a message to a reactor, this one included; it runs in a later turn.
    pub fn send(&self, to: u16, message: Message) {
        self.mailbox.send(to, message);
    }

    /// Asks this reactor's thread to end after this turn.
    pub fn stop(&self) {
        self.mailbox.own().stop();
    }

    /// What wakes this reactor when it sleeps, at any time and from anywhere: for interrupts of devices.
    pub fn doorbell(&self) -> &Doorbell {
        self.mailbox.own().doorbell()
    }

    /// What keeps this reactor slower than it could be, a sentence each; handed out once.
    pub fn take_notes(&self) -> Vec<String> {
        self.backend.borrow_mut().take_notes()
    }

    /// What ran too long since the last call.
    pub fn take_stalls(&self) -> Vec<Stall> {
        self.stalls.take()
    }

    /// Counts calls into the kernel that a device made by a ring of its own.
    #[inline]
    pub fn count_enters(&self, calls: u64) {
        self.stats.entered(calls);
    }

    /// Counters since the start.
    pub fn stats(&self) -> ReactorStats {
        self.stats.snapshot(self.backend.borrow().stats(), self.table.stale())
    }

    /// Ends everything: tasks, layers, sinks, then the backend, which waits for what is in flight. Returns the number of DMA
    /// buffers that are still out: a leak.
    pub fn shut_down(&self) -> usize {
        self.wake_up();
        self.table.close();
        self.tasks.clear();
        self.completions.borrow_mut().clear();
        self.deferred.clear();
        self.at_end.clear();
        // Dropped while nothing is borrowed: devices that go take leave of layers and sinks.
        let services = std::mem::take(&mut *self.services.borrow_mut());
        drop(services);
        let backend = self.backend.replace(Backend::Closed);
        drop(backend);
        self.pollers.clear();
        let layers = std::mem::take(&mut *self.layers.borrow_mut());
        drop(layers);
        let sinks = std::mem::take(&mut *self.sinks.borrow_mut());
        drop(sinks);
        // What devices ended or left behind on their way out.
        self.completions.borrow_mut().clear();
        self.table.discard();
        self.op_waits.clear();
        self.mailbox.close();
        self.pool.collect();
        self.pool.leaked()
    }
}
