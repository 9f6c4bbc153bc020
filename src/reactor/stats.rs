//! Counters of a reactor, and the detector of what runs too long.

use std::cell::{Cell, RefCell};

use super::clock::Clock;
use super::mailbox::Remote;
use crate::limits::{RUNS_PER_READING, STALL_NS};
use crate::sys::uring::RingStats;

/// A snapshot of a reactor's counters.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReactorStats {
    /// Turns that did something.
    pub busy_turns: u64,
    /// Turns that found nothing.
    pub idle_turns: u64,
    /// Time in turns that did something, in nanoseconds.
    pub busy_ns: u64,
    /// Time asleep in the backend, in nanoseconds.
    pub asleep_ns: u64,
    /// Times it fell asleep.
    pub sleeps: u64,
    /// The backend's counters. Calls into the kernel include those of devices with rings of their own.
    pub ring: RingStats,
    /// Completions that named no I/O.
    pub stale_ios: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    busy_turns: Cell<u64>,
    idle_turns: Cell<u64>,
    busy_ns: Cell<u64>,
    asleep_ns: Cell<u64>,
    sleeps: Cell<u64>,
    enters: Cell<u64>,
    started: Cell<u64>,
    was_busy: Cell<bool>,
}

impl Counters {
    /// The time since the last turn's start belongs to that turn.
    #[inline]
    pub(super) fn turn_started(&self, now: u64, own: &Remote) {
        if self.was_busy.get() {
            self.busy_ns.set(self.busy_ns.get() + now.saturating_sub(self.started.get()));
        }
        self.started.set(now);
        own.count_turn();
    }

    #[inline]
    pub(super) fn turn_ended(&self, busy: bool) {
        self.was_busy.set(busy);
        let turns = if busy { &self.busy_turns } else { &self.idle_turns };
        turns.set(turns.get() + 1);
    }

    pub(super) fn slept(&self, ns: u64) {
        self.asleep_ns.set(self.asleep_ns.get() + ns);
        self.sleeps.set(self.sleeps.get() + 1);
    }

    #[inline]
    pub(super) fn entered(&self, calls: u64) {
        self.enters.set(self.enters.get() + calls);
    }

    pub(super) fn snapshot(&self, ring: RingStats, stale_ios: u64) -> ReactorStats {
        ReactorStats {
            busy_turns: self.busy_turns.get(),
            idle_turns: self.idle_turns.get(),
            busy_ns: self.busy_ns.get(),
            asleep_ns: self.asleep_ns.get(),
            sleeps: self.sleeps.get(),
            ring: RingStats { enters: ring.enters + self.enters.get(), ..ring },
            stale_ios,
        }
    }
}

/// Something ran for longer than [`STALL_NS`] without returning to the loop.
#[derive(Clone, Debug)]
pub struct Stall {
    /// What ran: the poller, sink or tasks by name; several if they shared one reading of the clock.
    pub who: Names,
    /// How long, in nanoseconds.
    pub ns: u64,
}

/// Names that a stall is remembered by, without an allocation on a reactor that is late already.
#[derive(Clone, Copy, Debug, Default)]
pub struct Names {
    names: [&'static str; NAMES_MAX],
    more: bool,
}

/// Different names of one stall.
const NAMES_MAX: usize = 4;
/// Stalls that are remembered until somebody asks.
const STALLS_MAX: usize = 64;

impl Names {
    fn add(&mut self, name: &'static str) {
        if !self.names.contains(&name) {
            match self.names.iter_mut().find(|place| place.is_empty()) {
                Some(place) => *place = name,
                None => self.more = true,
            }
        }
    }
}

impl std::fmt::Display for Names {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, name) in self.names.iter().filter(|name| !name.is_empty()).enumerate() {
            write!(f, "{}{name}", if index == 0 { "" } else { ", " })?;
        }
        if self.more { write!(f, " and more") } else { Ok(()) }
    }
}

/// Measures what the loop calls. Messages that are calls are measured one by one; pollers, completions, deferred work and tasks, of which
/// there are millions a second, share a reading of the clock among sixteen.
#[derive(Debug)]
pub(super) struct Stalls {
    found: RefCell<Vec<Stall>>,
    /// What ran since the last reading of the clock, and how many.
    names: [Cell<&'static str>; RUNS_PER_READING],
    count: Cell<u32>,
    since: Cell<u64>,
}

impl Stalls {
    pub(super) fn new() -> Stalls {
        Stalls {
            found: RefCell::new(Vec::with_capacity(STALLS_MAX)),
            names: Default::default(),
            count: Cell::new(0),
            since: Cell::new(0),
        }
    }

    pub(super) fn watch<R>(&self, clock: &Clock, name: &'static str, f: impl FnOnce() -> R) -> R {
        let before = clock.refresh();
        let result = f();
        let after = clock.refresh();
        self.since.set(after);
        self.judge(after - before, &[Cell::new(name)]);
        result
    }

    /// A turn begins: what came before it, sleep included, is nobody's.
    #[inline]
    pub(super) fn begin(&self, now: u64) {
        self.since.set(now);
    }

    #[inline]
    pub(super) fn watch_batched<R>(&self, clock: &Clock, name: &'static str, f: impl FnOnce() -> R) -> R {
        let result = f();
        self.ran(clock, name);
        result
    }

    /// One task or completion more since the last reading of the clock.
    #[inline]
    pub(super) fn ran(&self, clock: &Clock, name: &'static str) {
        let count = self.count.get();
        self.names[count as usize].set(name);
        self.count.set(count + 1);
        if count as usize + 1 == RUNS_PER_READING {
            self.end_batch(clock);
        }
    }

    /// Judges what ran since the last reading and took stamps meanwhile: no reading for it is needed.
    #[inline]
    pub(super) fn passed(&self, clock: &Clock, name: &'static str) {
        let now = clock.now();
        self.judge(now.saturating_sub(self.since.replace(now)), &[Cell::new(name)]);
    }

    /// Reads the clock, and judges what ran since the last reading.
    #[inline]
    pub(super) fn end_batch(&self, clock: &Clock) {
        let count = self.count.get() as usize;
        if count > 0 {
            let now = clock.refresh();
            let elapsed = now.saturating_sub(self.since.replace(now));
            self.count.set(0);
            self.judge(elapsed, &self.names[..count]);
        }
    }

    #[inline]
    fn judge(&self, ns: u64, ran: &[Cell<&'static str>]) {
        if ns > STALL_NS {
            let mut found = self.found.borrow_mut();
            if found.len() < STALLS_MAX {
                let mut who = Names::default();
                ran.iter().for_each(|name| who.add(name.get()));
                found.push(Stall { who, ns });
            }
        }
    }

    pub(super) fn take(&self) -> Vec<Stall> {
        self.found.replace(Vec::with_capacity(STALLS_MAX))
    }
}
