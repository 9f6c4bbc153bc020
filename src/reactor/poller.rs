//! What is looked at in every turn, and told before the reactor sleeps: queues in memory that a device fills.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::clock::Clock;
use super::stats::Stalls;

/// What a poller found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It did something.
    Busy,
    /// Nothing to do, and whatever comes next rings, once the poller is armed ([`Poller::arm`]): the reactor may sleep.
    Idle,
    /// Nothing yet, and only polling will show it: the reactor must not sleep.
    Waiting,
}

/// Something to be looked at in every turn: a queue in memory that a device fills.
///
/// A poll collects, the reactor completes: it moves finished Ios to [`super::Reactor::complete`] and enters no channel. All methods may
/// add and remove pollers, this one too.
pub trait Poller {
    /// Looks once; returns quickly.
    fn poll(&self) -> Activity;

    /// The reactor is about to sleep, and is known to be asleep by those who ring only then. Has whatever comes from now on ring its
    /// doorbell (an interrupt that is let through, a flag that the other side looks at after each entry), and *then* looks whether something
    /// is there already. Between the two belongs a full fence, unless the other side rings for what came before too.
    ///
    /// `true`: nothing is there, and what comes rings; [`Poller::disarm`] follows when the reactor wakes. `false`: something is there, the
    /// reactor stays awake, and nothing is left armed. A poller with nothing on its way has nothing to arm.
    fn arm(&self) -> bool {
        true
    }

    /// The reactor is awake again and polls: nothing need ring. Called once for each [`Poller::arm`] that returned `true`; there may be
    /// something by now, which the next poll finds.
    fn disarm(&self) {}
}

/// Names a poller of a reactor, for [`super::Reactor::remove_poller`]; never given out twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PollerId(u64);

struct Entry {
    id: PollerId,
    name: &'static str,
    poller: Rc<dyn Poller>,
    /// Removed while the list is walked: passed over from then on, and dropped after the walk.
    gone: Cell<bool>,
    armed: Cell<bool>,
}

/// The pollers of a reactor, in the order in which they were added.
///
/// The list is borrowed while it is walked. What is added then waits in `newborn`, what is removed is marked; [`Pollers::settle`]
/// does both after the walk.
#[derive(Default)]
pub(super) struct Pollers {
    list: RefCell<Vec<Entry>>,
    newborn: RefCell<Vec<Entry>>,
    unsettled: Cell<bool>,
    last: Cell<u64>,
}

impl Pollers {
    pub(super) fn add(&self, name: &'static str, poller: Rc<dyn Poller>) -> PollerId {
        let id = PollerId(self.last.get() + 1);
        self.last.set(id.0);
        self.newborn.borrow_mut().push(Entry { id, name, poller, gone: Cell::new(false), armed: Cell::new(false) });
        self.settle();
        id
    }

    pub(super) fn remove(&self, id: PollerId) {
        let mark = |entry: &Entry| {
            if entry.id == id && !entry.gone.replace(true) {
                self.unsettled.set(true);
            }
        };
        self.list.borrow().iter().for_each(mark);
        let unborn = self.newborn.borrow_mut().extract_if(.., |entry| entry.id == id).next();
        // Dropped while nothing is borrowed: it may own handles of other devices.
        drop(unborn);
        self.settle();
    }

    /// Looks at each once: whether one was busy, and whether one waits for memory to change.
    #[inline]
    pub(super) fn poll(&self, stalls: &Stalls, clock: &Clock) -> (bool, bool) {
        let (mut busy, mut waiting) = (false, false);
        for entry in self.list.borrow().iter().filter(|entry| !entry.gone.get()) {
            match stalls.watch_batched(clock, entry.name, || entry.poller.poll()) {
                Activity::Busy => busy = true,
                Activity::Idle => {}
                Activity::Waiting => waiting = true,
            }
        }
        if self.unsettled.get() {
            self.settle();
        }
        (busy, waiting)
    }

    /// Arms all. `false`: one has something already, and none is armed.
    pub(super) fn arm(&self) -> bool {
        let armed = self.list.borrow().iter().filter(|entry| !entry.gone.get()).all(|entry| {
            let armed = entry.poller.arm();
            entry.armed.set(armed);
            armed
        });
        // One that came meanwhile is polled before the reactor sleeps.
        let armed = armed && self.newborn.borrow().is_empty();
        if !armed {
            self.disarm();
        }
        self.settle();
        armed
    }

    /// Disarms those that are armed.
    pub(super) fn disarm(&self) {
        for entry in self.list.borrow().iter().filter(|entry| entry.armed.replace(false)) {
            entry.poller.disarm();
        }
        self.settle();
    }

    /// Adds and drops what waits for that, unless the list is being walked.
    #[cold]
    fn settle(&self) {
        let Ok(mut list) = self.list.try_borrow_mut() else {
            self.unsettled.set(true);
            return;
        };
        list.append(&mut self.newborn.borrow_mut());
        let gone: Vec<Entry> = list.extract_if(.., |entry| entry.gone.get()).collect();
        self.unsettled.set(false);
        drop(list);
        // Nothing is borrowed: they may own handles of other devices.
        for entry in gone {
            if entry.armed.get() {
                entry.poller.disarm();
            }
        }
    }

    /// Forgets all: the end of the reactor.
    pub(super) fn clear(&self) {
        self.disarm();
        let all = self.list.take();
        drop(all);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

    use super::*;
    use crate::limits::{SLEEP_NS_MAX, SPIN_NS};
    use crate::reactor::{Idle, start};
    use crate::sys::tsc::monotonic_ns;

    /// What a device on another thread and its driver share: a count of entries, and whether to ring.
    #[derive(Default)]
    struct Shared {
        posted: AtomicU64,
        seen: AtomicU64,
        armed: AtomicBool,
        rings: AtomicU64,
    }

    struct Driver(Arc<Shared>);

    impl Poller for Driver {
        fn poll(&self) -> Activity {
            let posted = self.0.posted.load(Ordering::Acquire);
            let news = self.0.seen.swap(posted, Ordering::Release) != posted;
            if news { Activity::Busy } else { Activity::Idle }
        }

        fn arm(&self) -> bool {
            self.0.armed.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            let nothing = self.0.posted.load(Ordering::Relaxed) == self.0.seen.load(Ordering::Relaxed);
            self.0.armed.store(nothing, Ordering::Relaxed);
            nothing
        }

        fn disarm(&self) {
            self.0.armed.store(false, Ordering::Relaxed);
        }
    }

    /// Entries come from another thread at about the time when the reactor falls asleep. One slept through would wait for the
    /// longest sleep to end.
    #[test]
    fn a_reactor_with_io_in_flight_sleeps_and_misses_nothing() {
        const ENTRIES: u64 = 400;
        let shared = Arc::new(Shared::default());
        let reactor = start::solo(4 << 20).unwrap();
        reactor.add_poller("driver", Rc::new(Driver(shared.clone())));
        let (remote, device) = (reactor.remote(), shared.clone());
        let posts = std::thread::spawn(move || {
            let mut longest = 0;
            for entry in 1..=ENTRIES {
                let due = monotonic_ns() + SPIN_NS * (90 + entry % 23) / 100;
                while monotonic_ns() < due {
                    std::thread::yield_now();
                }
                let posted = monotonic_ns();
                device.posted.store(entry, Ordering::Release);
                fence(Ordering::SeqCst);
                if device.armed.load(Ordering::Relaxed) {
                    remote.doorbell().ring();
                    device.rings.fetch_add(1, Ordering::Relaxed);
                }
                while device.seen.load(Ordering::Acquire) != entry {
                    std::thread::yield_now();
                }
                longest = longest.max(monotonic_ns() - posted);
            }
            remote.stop();
            longest
        });
        reactor.run(Idle::Adaptive);
        let (longest, sleeps) = (posts.join().unwrap(), reactor.stats().sleeps);
        assert!(longest < SLEEP_NS_MAX / 10 * 9, "an entry waited for {longest} ns");
        assert!(sleeps > 0 && shared.rings.load(Ordering::Relaxed) > 0, "it slept {sleeps} times");
        assert_eq!(reactor.shut_down(), 0);
    }
}
