//! Work that is put off to a certain point of a turn and done there once, for all that came up until then.

use std::cell::RefCell;
use std::rc::Rc;

use super::clock::Clock;
use super::stats::Stalls;

/// Work that is done once a turn, for all that came up in it, by who asked for that with [`super::Reactor::defer`] or
/// [`super::Reactor::at_end`].
pub trait Deferred {
    /// What it is called if it stalls.
    fn name(&self) -> &'static str;
    /// Does it. As a [`super::Poller`] it moves finished Ios to [`super::Reactor::complete`], and enters no channel. It may start
    /// operations of the backend, send messages, wake tasks, and ask to be done again, which is in the next turn.
    fn run(&self);
}

/// What is to be done at one point of the turn. Two lists take turns, so that nothing is allocated once both are long enough.
#[derive(Default)]
pub(super) struct DeferredList {
    waiting: RefCell<Vec<Rc<dyn Deferred>>>,
    /// Empty but for [`DeferredList::run`].
    running: RefCell<Vec<Rc<dyn Deferred>>>,
}

impl DeferredList {
    #[inline]
    pub(super) fn push(&self, work: Rc<dyn Deferred>) {
        self.waiting.borrow_mut().push(work);
    }

    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.borrow().is_empty()
    }

    /// Does all that was asked for before; what is asked for meanwhile is for the next time. Returns whether there was any.
    #[inline]
    pub(super) fn run(&self, stalls: &Stalls, clock: &Clock) -> bool {
        if self.is_empty() {
            return false;
        }
        let mut all = self.waiting.replace(self.running.take());
        for work in all.drain(..) {
            stalls.watch_batched(clock, work.name(), || work.run());
        }
        self.running.replace(all);
        true
    }

    /// Forgets all: the end of the reactor. Dropped while nothing is borrowed.
    pub(super) fn clear(&self) {
        drop(self.waiting.take());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::clock::TimeSource;
    use std::cell::Cell;
    use std::rc::Weak;

    struct Again {
        list: Rc<DeferredList>,
        me: Weak<Again>,
        times: Cell<u32>,
        left: Cell<u32>,
    }

    impl Deferred for Again {
        fn name(&self) -> &'static str {
            "again"
        }
        fn run(&self) {
            self.times.set(self.times.get() + 1);
            if self.left.get() > 0 {
                self.left.set(self.left.get() - 1);
                self.list.push(self.me.upgrade().expect("it runs"));
            }
        }
    }

    #[test]
    fn what_is_asked_for_meanwhile_is_for_the_next_time_and_takes_no_new_memory() {
        let (stalls, clock) = (Stalls::new(), Clock::new(TimeSource::Sim(Rc::default())));
        let list = Rc::new(DeferredList::default());
        assert!(!list.run(&stalls, &clock));
        let work = Rc::new_cyclic(|me: &Weak<Again>| Again {
            list: list.clone(),
            me: me.clone(),
            times: Cell::new(0),
            left: Cell::new(9),
        });
        list.push(work.clone());
        let places = || {
            let mut places = [list.waiting.borrow().as_ptr(), list.running.borrow().as_ptr()];
            places.sort();
            places
        };
        for round in 1..=10 {
            assert!(list.run(&stalls, &clock));
            assert_eq!((work.times.get(), list.is_empty()), (round, round == 10));
            if round == 2 {
                let warm = places();
                assert!(list.run(&stalls, &clock));
                assert_eq!(places(), warm);
                work.times.set(2);
                work.left.set(work.left.get() + 1);
            }
        }
        assert!(!list.run(&stalls, &clock));
        list.push(work.clone());
        list.clear();
        assert!(!list.run(&stalls, &clock), "forgotten");
        assert_eq!((work.times.get(), Rc::strong_count(&work)), (10, 1));
    }
}
