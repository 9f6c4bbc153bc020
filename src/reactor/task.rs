//! Tasks of one reactor: futures created once, polled by index, woken by index.
//!
//! There are no wakers: what a task waits for (an I/O, a timer, a receive) knows the task's [`TaskId`] and wakes it by
//! that. Every future here bears being polled for nothing.

use std::cell::{Cell, RefCell, RefMut};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};

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

impl Default for TaskId {
    fn default() -> TaskId {
        TaskId::NONE
    }
}

type Body = Pin<Box<dyn Future<Output = ()>>>;

struct Entry {
    body: Option<Body>,
    name: &'static str,
    generation: u32,
}

/// What a wake looks at.
#[derive(Clone, Copy)]
struct State {
    generation: u32,
    queued: bool,
}

/// The tasks and the queue of those that have something to do.
#[derive(Default)]
pub(super) struct Tasks {
    states: RefCell<Vec<State>>,
    /// Borrowed while tasks are polled, which may wake and spawn others.
    entries: RefCell<Vec<Entry>>,
    /// Spawned and not yet among the entries, in the order of their indices but for reused ones.
    newborn: RefCell<Vec<(u32, Entry)>>,
    free: RefCell<Vec<u32>>,
    ready: RefCell<Vec<u32>>,
    /// The other queue of the two that take turns, empty but for [`Tasks::poll`].
    polling: RefCell<Vec<u32>>,
    current: Cell<TaskId>,
    alive: Cell<usize>,
}

impl Tasks {
    pub(super) fn new() -> Tasks {
        Tasks::default()
    }

    /// Adds a task; its first poll is in the next task phase.
    pub(super) fn spawn(&self, name: &'static str, body: Body) -> TaskId {
        let mut states = self.states.borrow_mut();
        let index = self.free.borrow_mut().pop().unwrap_or_else(|| {
            states.push(State { generation: 0, queued: false });
            states.len() as u32 - 1
        });
        let state = &mut states[index as usize];
        state.generation = state.generation.wrapping_add(1);
        let generation = state.generation;
        if !std::mem::replace(&mut state.queued, true) {
            self.ready.borrow_mut().push(index);
        }
        self.newborn.borrow_mut().push((index, Entry { body: Some(body), name, generation }));
        self.alive.set(self.alive.get() + 1);
        TaskId { index, generation }
    }

    /// Queues a task, unless it is queued already or gone.
    #[inline]
    pub(super) fn wake(&self, id: TaskId) {
        if let Some(state) = self.states.borrow_mut().get_mut(id.index as usize)
            && state.generation == id.generation
            && !state.queued
        {
            state.queued = true;
            self.ready.borrow_mut().push(id.index);
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

    /// Polls queued tasks, those included that they queue, at most `max`; calls `before` and `after`, the latter with the
    /// task's name, round each. Returns how many.
    #[inline]
    pub(super) fn poll(&self, max: usize, before: impl Fn(), after: impl Fn(&'static str)) -> usize {
        let mut polled = 0;
        while polled < max && !self.ready.borrow().is_empty() {
            let mut batch = self.ready.replace(self.polling.take());
            let now = batch.len().min(max - polled);
            self.poll_each(&batch[..now], &before, &after);
            polled += now;
            if now < batch.len() {
                // The rest stays ahead of what came meanwhile.
                batch.drain(..now);
                batch.append(&mut self.ready.borrow_mut());
                batch = self.ready.replace(batch);
            }
            batch.clear();
            self.polling.replace(batch);
        }
        polled
    }

    #[inline]
    fn poll_each(&self, batch: &[u32], before: &impl Fn(), after: &impl Fn(&'static str)) {
        let mut polling = self.begin();
        if !self.newborn.borrow().is_empty() {
            polling.settle();
        }
        for &index in batch {
            self.states.borrow_mut()[index as usize].queued = false;
            polling.poll(index, None, before, after);
        }
    }

    /// Begins to poll tasks by number, queued or not; ends when the result is dropped. No two at a time.
    #[inline]
    pub(super) fn begin(&self) -> Polling<'_> {
        Polling { tasks: self, entries: self.entries.borrow_mut() }
    }

    /// Drops all tasks: the end of the reactor.
    pub(super) fn clear(&self) {
        loop {
            let newborn = self.newborn.take();
            let mut bodies: Vec<Body> = newborn.into_iter().filter_map(|(_, entry)| entry.body).collect();
            bodies.extend(self.entries.borrow_mut().iter_mut().filter_map(|entry| entry.body.take()));
            if bodies.is_empty() {
                return;
            }
            drop(bodies);
        }
    }
}

/// The entries, while tasks are polled.
pub(super) struct Polling<'a> {
    tasks: &'a Tasks,
    entries: RefMut<'a, Vec<Entry>>,
}

impl Polling<'_> {
    /// Polls a task, if it is of that generation, or of any; one that has ended is passed over.
    #[inline]
    pub(super) fn poll(
        &mut self,
        index: u32,
        generation: Option<u32>,
        before: &impl Fn(),
        after: &impl Fn(&'static str),
    ) {
        let Some(entry) = self.entries.get_mut(index as usize) else { return };
        if generation.is_some_and(|generation| generation != entry.generation) {
            return;
        }
        // Queued by a wake of its last poll, and its slot not used again.
        let Some(body) = entry.body.as_mut() else { return };
        let name = entry.name;
        self.tasks.current.set(TaskId { index, generation: entry.generation });
        before();
        if body.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
            self.end(index);
        }
        after(name);
    }

    /// Gives new tasks their entries.
    #[cold]
    fn settle(&mut self) {
        for (index, entry) in self.tasks.newborn.borrow_mut().drain(..) {
            match self.entries.get_mut(index as usize) {
                Some(place) => *place = entry,
                None => self.entries.push(entry),
            }
        }
    }

    #[cold]
    fn end(&mut self, index: u32) {
        // Its destructors may wake or spawn.
        self.entries[index as usize].body = None;
        let state = &mut self.tasks.states.borrow_mut()[index as usize];
        state.generation = state.generation.wrapping_add(1);
        self.tasks.free.borrow_mut().push(index);
        self.tasks.alive.set(self.tasks.alive.get() - 1);
    }
}

impl Drop for Polling<'_> {
    #[inline]
    fn drop(&mut self) {
        self.tasks.current.set(TaskId::NONE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;
    use std::task::Poll;

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
        tasks.poll(usize::MAX, || (), |_| ());
        tasks.wake(first);
        tasks.wake(first);
        tasks.poll(usize::MAX, || (), |_| ());
        assert_eq!((polls.get(), tasks.alive()), (2, 0));
        let second = tasks.spawn("second", counting(100));
        tasks.poll(usize::MAX, || (), |_| ());
        assert_eq!(second.index, first.index);
        tasks.wake(first);
        assert_eq!(tasks.ready_len(), 0, "the first is gone");
        assert_eq!(polls.get(), 3);
    }
}
