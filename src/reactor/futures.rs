//! What a task can wait for: an I/O, an operation of the backend, a timer, a buffer, another reactor.

use std::any::Any;
use std::cell::RefCell;
use std::future::Future;
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use hugepages::Buf;

use super::io::Io;
use super::mailbox::Message;
use super::timer::TimerKey;
use super::{OPS, Reactor, Sink, TaskId};
use crate::sys::op::{Completion, Op, OpToken, Owner};

// --- an I/O ---

/// An I/O on its way; ends with the completed I/O. Dropped early, the I/O becomes an orphan of its reactor.
#[must_use = "the I/O becomes an orphan when this is dropped early"]
pub struct IoFuture<'a> {
    reactor: &'a Reactor,
    /// Ended within its submission, and not taken yet.
    ready: ManuallyDrop<Option<Io>>,
    /// Its slot, while it is awaited.
    awaited: Option<u32>,
}

impl Reactor {
    /// Submits `io` by `submit` now, and waits for its end, for the task being polled.
    #[inline]
    pub fn run_io(&self, mut io: Io, submit: impl FnOnce(Io) -> Poll<Io>) -> IoFuture<'_> {
        let slot = io.slot();
        io.set_task(self.tasks.current());
        let (ready, awaited) = match submit(io) {
            Poll::Ready(io) if self.spend() => (Some(io), None),
            Poll::Ready(io) => {
                // Others first: it lands like any other in the next turn.
                self.complete(io);
                (None, Some(slot))
            }
            Poll::Pending => (None, Some(slot)),
        };
        IoFuture { reactor: self, ready: ManuallyDrop::new(ready), awaited }
    }
}

impl Future for IoFuture<'_> {
    type Output = Io;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Io> {
        if let Some(io) = self.ready.take() {
            return Poll::Ready(io);
        }
        let slot = self.awaited.expect("not polled after its end");
        match self.reactor.table.claim(slot) {
            Some(io) => {
                self.awaited = None;
                Poll::Ready(io)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for IoFuture<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.awaited.is_some() || self.ready.is_some() {
            self.dropped_early();
        }
    }
}

impl IoFuture<'_> {
    #[cold]
    fn dropped_early(&mut self) {
        if let Some(io) = self.ready.take() {
            self.reactor.retire_io(io);
        }
        if let Some(slot) = self.awaited.take().filter(|_| !self.reactor.table.is_closed()) {
            self.reactor.table.abandon(slot);
        }
    }
}

// --- an operation of the backend ---

#[derive(Debug)]
enum OpPlace {
    Free,
    Waiting(TaskId),
    Done(Completion),
    /// Nobody waits: what the completion carries is dropped.
    Abandoned,
}

#[derive(Debug)]
struct OpSlot {
    place: OpPlace,
    generation: u32,
}

#[derive(Debug, Default)]
pub(super) struct OpWaits {
    slots: RefCell<Vec<OpSlot>>,
    free: RefCell<Vec<u32>>,
}

impl OpWaits {
    fn insert(&self, task: TaskId) -> u64 {
        let mut slots = self.slots.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(OpSlot { place: OpPlace::Free, generation: 0 });
            slots.len() as u32 - 1
        });
        let slot = &mut slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.place = OpPlace::Waiting(task);
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    fn finish(&self, tag: u64, completion: Completion) -> Option<TaskId> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(tag as u32 as usize).filter(|s| s.generation == (tag >> 32) as u32)?;
        match slot.place {
            OpPlace::Waiting(task) => {
                slot.place = OpPlace::Done(completion);
                Some(task)
            }
            _ => {
                slot.place = OpPlace::Free;
                self.free.borrow_mut().push(tag as u32);
                None
            }
        }
    }

    fn claim(&self, tag: u64) -> Option<Completion> {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[tag as u32 as usize];
        match std::mem::replace(&mut slot.place, OpPlace::Free) {
            OpPlace::Done(completion) => {
                self.free.borrow_mut().push(tag as u32);
                Some(completion)
            }
            other => {
                slot.place = other;
                None
            }
        }
    }

    fn abandon(&self, tag: u64) {
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(tag as u32 as usize) else {
            return;
        };
        if let OpPlace::Done(_) = std::mem::replace(&mut slot.place, OpPlace::Abandoned) {
            slot.place = OpPlace::Free;
            self.free.borrow_mut().push(tag as u32);
        }
    }

    pub(super) fn clear(&self) {
        self.slots.borrow_mut().clear();
        self.free.borrow_mut().clear();
    }
}

pub(super) struct OpSink {
    reactor: Weak<Reactor>,
    waits: Rc<OpWaits>,
}

impl OpSink {
    pub(super) fn new(reactor: Weak<Reactor>, waits: Rc<OpWaits>) -> OpSink {
        OpSink { reactor, waits }
    }
}

impl Sink for OpSink {
    fn completed(&self, tag: u64, completion: Completion) {
        if let (Some(task), Some(reactor)) = (self.waits.finish(tag, completion), self.reactor.upgrade()) {
            reactor.wake(task);
        }
    }
}

/// An operation in flight; ends with its completion. Dropped early, the operation is cancelled, best effort; what it owns is
/// kept until the kernel is done with it.
#[must_use = "futures do nothing unless polled"]
pub struct OpFuture<'a> {
    reactor: &'a Reactor,
    tag: u64,
    token: OpToken,
    done: bool,
}

impl Reactor {
    /// Starts an operation now and waits for its end, for the task being polled.
    pub fn op(&self, op: Op) -> OpFuture<'_> {
        let tag = self.op_waits.insert(self.tasks.current());
        let token = self.submit_op(op, Owner { sink: OPS, tag });
        OpFuture { reactor: self, tag, token, done: false }
    }

    /// Starts an operation whose end nobody waits for.
    pub fn op_unheard(&self, op: Op) {
        let tag = self.op_waits.insert(TaskId::NONE);
        self.op_waits.abandon(tag);
        self.submit_op(op, Owner { sink: OPS, tag });
    }

    /// Asks an operation to end early; its own completion still comes.
    pub fn cancel_op(&self, target: OpToken) {
        self.op_unheard(Op::Cancel { target });
    }
}

impl OpFuture<'_> {
    /// Names the operation, to cancel it from elsewhere.
    pub fn token(&self) -> OpToken {
        self.token
    }
}

impl Future for OpFuture<'_> {
    type Output = Completion;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Completion> {
        match self.reactor.op_waits.claim(self.tag) {
            Some(completion) => {
                self.done = true;
                Poll::Ready(completion)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for OpFuture<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.reactor.op_waits.abandon(self.tag);
            if !self.reactor.table.is_closed() {
                self.reactor.cancel_op(self.token);
            }
        }
    }
}

// --- time, buffers, turns ---

/// Ends at or after its deadline.
#[must_use = "futures do nothing unless polled"]
pub struct Sleep<'a> {
    reactor: &'a Reactor,
    deadline: u64,
    timer: Option<TimerKey>,
}

impl Future for Sleep<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.reactor.clock.now() >= self.deadline {
            return Poll::Ready(());
        }
        if self.timer.is_none() {
            self.timer = Some(self.reactor.timers.add(self.deadline, self.reactor.tasks.current()));
        }
        Poll::Pending
    }
}

impl Drop for Sleep<'_> {
    fn drop(&mut self) {
        if let Some(timer) = self.timer {
            self.reactor.timers.cancel(timer);
        }
    }
}

/// Lets other tasks run once.
#[must_use = "futures do nothing unless polled"]
pub struct Yield<'a> {
    reactor: &'a Reactor,
    yielded: bool,
}

impl Future for Yield<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if std::mem::replace(&mut self.yielded, true) {
            return Poll::Ready(());
        }
        self.reactor.wake(self.reactor.tasks.current());
        Poll::Pending
    }
}

/// Ends with a buffer, when the pool has one.
#[must_use = "futures do nothing unless polled"]
pub struct BufferFuture<'a> {
    reactor: &'a Reactor,
    len: usize,
}

impl Future for BufferFuture<'_> {
    type Output = Buf;

    #[inline]
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Buf> {
        match self.reactor.pool.alloc(self.len) {
            Some(buf) => Poll::Ready(buf),
            None => {
                self.reactor.buffer_waiters.borrow_mut().push_back(self.reactor.tasks.current());
                Poll::Pending
            }
        }
    }
}

impl Reactor {
    /// Waits for `ns` nanoseconds.
    pub fn sleep(&self, ns: u64) -> Sleep<'_> {
        Sleep { reactor: self, deadline: self.clock.now().saturating_add(ns), timer: None }
    }

    /// Wakes `task` at or after `deadline` of the clock.
    pub fn wake_at(&self, deadline: u64, task: TaskId) {
        self.timers.add(deadline, task);
    }

    /// Lets other tasks run once.
    pub fn yield_now(&self) -> Yield<'_> {
        Yield { reactor: self, yielded: false }
    }

    /// Whether a task waits for a buffer.
    pub fn waits_for_buffers(&self) -> bool {
        !self.buffer_waiters.borrow().is_empty()
    }

    /// A buffer of `len` bytes, at most [`hugepages::MAX_BUF`]; waits while the pool is exhausted.
    #[inline]
    pub fn buffer(&self, len: usize) -> BufferFuture<'_> {
        BufferFuture { reactor: self, len }
    }

    /// Spends one I/O of the budget that a task has for I/Os finished within their submission.
    #[inline]
    fn spend(&self) -> bool {
        let budget = self.budget.get();
        self.budget.set(budget.saturating_sub(1));
        budget > 0
    }
}

// --- another reactor ---

#[derive(Default)]
pub(super) struct Calls {
    slots: RefCell<Vec<CallSlot>>,
    free: RefCell<Vec<u32>>,
}

struct CallSlot {
    generation: u32,
    task: TaskId,
    answer: Option<Box<dyn Any + Send>>,
}

/// A question to another reactor; ends with its answer.
#[must_use = "futures do nothing unless polled"]
pub struct CallFuture<'a, R> {
    reactor: &'a Reactor,
    tag: u64,
    done: bool,
    answer: std::marker::PhantomData<R>,
}

impl<R> Unpin for CallFuture<'_, R> {}

impl Reactor {
    /// Runs `f` on reactor `to` and waits for its answer, for the task being polled. On this reactor too it runs in a later turn.
    pub fn call<R: Send + 'static>(
        &self,
        to: u16,
        f: impl FnOnce(&Rc<Reactor>) -> R + Send + 'static,
    ) -> CallFuture<'_, R> {
        let (from, tag) = (self.id(), self.new_call());
        self.send(
            to,
            Message::Call(Box::new(move |there| {
                let answer = f(there);
                there.answer_call(from, tag, answer);
            })),
        );
        CallFuture { reactor: self, tag, done: false, answer: std::marker::PhantomData }
    }

    /// As [`Reactor::call`] for something that itself waits: `f` makes a task on reactor `to`.
    pub fn call_task<R, F>(&self, to: u16, f: impl FnOnce(Rc<Reactor>) -> F + Send + 'static) -> CallFuture<'_, R>
    where
        R: Send + 'static,
        F: Future<Output = R> + 'static,
    {
        let (from, tag) = (self.id(), self.new_call());
        self.send(
            to,
            Message::Call(Box::new(move |there| {
                let (task, here) = (f(there.clone()), there.clone());
                there.spawn("call", async move {
                    let answer = task.await;
                    here.answer_call(from, tag, answer);
                });
            })),
        );
        CallFuture { reactor: self, tag, done: false, answer: std::marker::PhantomData }
    }

    fn new_call(&self) -> u64 {
        let task = self.tasks.current();
        let mut slots = self.calls.slots.borrow_mut();
        let index = self.calls.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(CallSlot { generation: 0, task, answer: None });
            slots.len() as u32 - 1
        });
        let slot = &mut slots[index as usize];
        slot.task = task;
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    fn answer_call<R: Send + 'static>(&self, from: u16, tag: u64, answer: R) {
        self.send(
            from,
            Message::Call(Box::new(move |asker| {
                let mut slots = asker.calls.slots.borrow_mut();
                let slot = &mut slots[tag as u32 as usize];
                if slot.generation == (tag >> 32) as u32 {
                    slot.answer = Some(Box::new(answer));
                    let task = slot.task;
                    drop(slots);
                    asker.wake(task);
                }
            })),
        );
    }
}

impl<R: Send + 'static> Future for CallFuture<'_, R> {
    type Output = R;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<R> {
        let answer = self.reactor.calls.slots.borrow_mut()[self.tag as u32 as usize].answer.take();
        match answer {
            Some(answer) => {
                self.done = true;
                self.reactor.end_call(self.tag);
                Poll::Ready(*answer.downcast().expect("the answer to this question"))
            }
            None => Poll::Pending,
        }
    }
}

impl Reactor {
    fn end_call(&self, tag: u64) {
        let mut slots = self.calls.slots.borrow_mut();
        let slot = &mut slots[tag as u32 as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.answer = None;
        self.calls.free.borrow_mut().push(tag as u32);
    }
}

impl<R> Drop for CallFuture<'_, R> {
    fn drop(&mut self) {
        if !self.done {
            self.reactor.end_call(self.tag);
        }
    }
}
