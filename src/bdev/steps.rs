//! Parts that channels are built from: helper tasks for what takes several steps, and the account of what a reset waits for.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::rc::Rc;
use std::task::Poll;

use crate::reactor::io::{Io, IoList};
use crate::reactor::{Reactor, TaskId};

/// I/Os that wait for one of a fixed number of helper tasks: the number is the limit of what runs at a time.
pub struct WorkQueue {
    reactor: Rc<Reactor>,
    list: IoList,
    idle: RefCell<Vec<TaskId>>,
    closed: Cell<bool>,
}

impl WorkQueue {
    /// A queue without helpers yet.
    pub fn new(reactor: &Rc<Reactor>) -> WorkQueue {
        WorkQueue {
            reactor: reactor.clone(),
            list: IoList::default(),
            idle: RefCell::default(),
            closed: Cell::new(false),
        }
    }

    /// Hands an I/O to a helper, or keeps it until one is free.
    pub fn push(&self, io: Io) {
        self.list.push(io);
        if let Some(task) = self.idle.borrow_mut().pop() {
            self.reactor.wake(task);
        }
    }

    /// Takes the oldest I/O that no helper has taken yet, to end it.
    pub fn take_waiting(&self) -> Option<Io> {
        self.list.pop()
    }

    /// Takes the I/O of that slot, if no helper has taken it yet.
    pub fn remove(&self, io_slot: u32) -> Option<Io> {
        self.list.remove(io_slot)
    }

    /// The next I/O, for a helper task; `None` once the queue is closed and empty: then the helper ends.
    pub fn next(&self) -> impl Future<Output = Option<Io>> + '_ {
        std::future::poll_fn(|_| match self.list.pop() {
            Some(io) => Poll::Ready(Some(io)),
            None if self.closed.get() => Poll::Ready(None),
            None => {
                let (me, mut idle) = (self.reactor.current_task(), self.idle.borrow_mut());
                if !idle.contains(&me) {
                    idle.push(me);
                }
                Poll::Pending
            }
        })
    }

    /// Lets the helpers end when nothing is left to do.
    pub fn close(&self) {
        self.closed.set(true);
        for task in self.idle.borrow_mut().drain(..) {
            self.reactor.wake(task);
        }
    }
}

/// Counts what a channel has not finished, so that a reset can wait for all that was there before it while new I/O goes
/// on: I/Os are counted by generation, and a reset begins a new one.
pub struct Outstanding {
    reactor: Rc<Reactor>,
    now: Cell<usize>,
    counts: [Cell<u32>; 2],
    /// Wait for the old generation.
    resets: IoList,
    /// Came meanwhile, and wait for the one that is new now.
    later: IoList,
}

impl Outstanding {
    /// Nothing outstanding.
    pub fn new(reactor: &Rc<Reactor>) -> Outstanding {
        Outstanding {
            reactor: reactor.clone(),
            now: Cell::new(0),
            counts: Default::default(),
            resets: IoList::default(),
            later: IoList::default(),
        }
    }

    /// An I/O begins; what this returns goes to [`Outstanding::leave`].
    #[inline]
    pub fn enter(&self) -> u8 {
        let now = self.now.get();
        self.counts[now].set(self.counts[now].get() + 1);
        now as u8
    }

    /// An I/O has ended.
    #[inline]
    pub fn leave(&self, generation: u8) {
        let generation = usize::from(generation);
        let left = self.counts[generation].get() - 1;
        self.counts[generation].set(left);
        if left == 0 && generation != self.now.get() {
            self.drained();
        }
    }

    /// I/Os that have not ended.
    pub fn len(&self) -> u32 {
        self.counts[0].get() + self.counts[1].get()
    }

    /// Whether none is outstanding.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Carries out a reset: ready when nothing that entered before it is left.
    pub fn reset(&self, io: Io) -> Poll<Io> {
        if self.is_empty() {
            return Poll::Ready(io);
        }
        if self.resets.is_empty() {
            self.resets.push(io);
            self.now.set(1 - self.now.get());
        } else {
            self.later.push(io);
        }
        Poll::Pending
    }

    fn drained(&self) {
        loop {
            while let Some(io) = self.resets.pop() {
                self.reactor.complete(io);
            }
            if self.later.is_empty() {
                return;
            }
            while let Some(io) = self.later.pop() {
                self.resets.push(io);
            }
            let old = self.now.get();
            self.now.set(1 - old);
            if self.counts[old].get() > 0 {
                return;
            }
        }
    }
}
