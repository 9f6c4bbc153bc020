//! Tasks of one reactor: futures created once, polled by index, woken by index.
//!
//! There are no wakers: what a task waits for (an I/O, a timer, a receive) knows the task's [`TaskId`] and wakes it by
//! that. Every future here bears being polled for nothing.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

/// A task of a reactor: index and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskId {
    pub(super) index: u32,
    pub(super) generation: u32,
}

impl TaskId {
    /// No task.
    pub const NONE: TaskId = TaskId { index: u32::MAX, generation: 0 };
}

type Body = Pin<Box<dyn Future<Output = ()>>>;

struct Slot {
    body: Option<Body>,
    name: &'static str,
    generation: u32,
    queued: bool,
    alive: bool,
}

/// The tasks and the queue of those that have something to do.
pub(super) struct Tasks {
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    ready: RefCell<VecDeque<u32>>,
    current: Cell<TaskId>,
    alive: Cell<usize>,
}

impl Tasks {
    pub(super) fn new() -> Tasks {
        Tasks {
            slots: RefCell::new(Vec::new()),
            free: RefCell::new(Vec::new()),
            ready: RefCell::new(VecDeque::new()),
            current: Cell::new(TaskId::NONE),
            alive: Cell::new(0),
        }
    }

    /// Adds a task; its first poll is in the next task phase.
    pub(super) fn spawn(&self, name: &'static str, body: Body) -> TaskId {
        let mut slots = self.slots.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(Slot { body: None, name, generation: 0, queued: false, alive: false });
            slots.len() as u32 - 1
        });
        let slot = &mut slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.name = name;
        slot.alive = true;
        slot.body = Some(body);
        let id = TaskId { index, generation: slot.generation };
        let queue = !std::mem::replace(&mut slot.queued, true);
        drop(slots);
        if queue {
            self.ready.borrow_mut().push_back(index);
        }
        self.alive.set(self.alive.get() + 1);
        id
    }

    /// Queues a task, unless it is queued already or gone.
    #[inline]
    pub(super) fn wake(&self, id: TaskId) {
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(id.index as usize) else {
            return;
        };
        if slot.generation == id.generation && slot.alive && !slot.queued {
            slot.queued = true;
            self.ready.borrow_mut().push_back(id.index);
        }
    }

    /// The task being polled.
    #[inline]
    pub(super) fn current(&self) -> TaskId {
        self.current.get()
    }

    /// How many are queued.
    #[inline]
    pub(super) fn ready_len(&self) -> usize {
        self.ready.borrow().len()
    }

    /// How many have not finished.
    pub(super) fn alive(&self) -> usize {
        self.alive.get()
    }

    /// Polls the first queued task. Returns its name, or `None` if none was queued.
    #[inline]
    pub(super) fn poll_one(&self) -> Option<&'static str> {
        let index = self.ready.borrow_mut().pop_front()?;
        let (mut body, id, name) = {
            let mut slots = self.slots.borrow_mut();
            let slot = &mut slots[index as usize];
            slot.queued = false;
            let Some(body) = slot.body.take() else {
                return Some(slot.name);
            };
            (body, TaskId { index, generation: slot.generation }, slot.name)
        };
        self.current.set(id);
        let done = body.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        match done {
            Poll::Pending => self.slots.borrow_mut()[index as usize].body = Some(body),
            Poll::Ready(()) => {
                // Dropped while nothing is borrowed: its destructors may wake or spawn.
                drop(body);
                let slot = &mut self.slots.borrow_mut()[index as usize];
                slot.alive = false;
                slot.generation = slot.generation.wrapping_add(1);
                self.free.borrow_mut().push(index);
                self.alive.set(self.alive.get() - 1);
            }
        }
        self.current.set(TaskId::NONE);
        Some(name)
    }

    /// Drops all tasks: the end of the reactor.
    pub(super) fn clear(&self) {
        loop {
            let bodies: Vec<Body> = self.slots.borrow_mut().iter_mut().filter_map(|s| s.body.take()).collect();
            if bodies.is_empty() {
                return;
            }
            drop(bodies);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[test]
    fn a_wake_queues_once_and_never_reaches_a_later_task_of_the_same_slot() {
        let tasks = Tasks::new();
        let polls = Rc::new(Cell::new(0));
        let counting = |limit: u32| {
            let polls = polls.clone();
            Box::pin(std::future::poll_fn(move |_| {
                polls.set(polls.get() + 1);
                if polls.get() >= limit { Poll::Ready(()) } else { Poll::Pending }
            }))
        };
        let first = tasks.spawn("first", counting(2));
        while tasks.poll_one().is_some() {}
        tasks.wake(first);
        tasks.wake(first);
        while tasks.poll_one().is_some() {}
        assert_eq!((polls.get(), tasks.alive()), (2, 0));
        let second = tasks.spawn("second", counting(100));
        while tasks.poll_one().is_some() {}
        assert_eq!(second.index, first.index);
        tasks.wake(first);
        assert_eq!(tasks.ready_len(), 0, "the first is gone");
        assert_eq!(polls.get(), 3);
    }
}
