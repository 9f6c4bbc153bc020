//! A wheel of timers: ticks of about a millisecond, and a list beyond its rim.

use std::cell::{Cell, RefCell};

use super::task::TaskId;

/// log2 of a tick in nanoseconds: 1.05 ms.
const TICK_SHIFT: u32 = 20;
/// Slots of the wheel: about four seconds.
const SLOTS: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Entry {
    deadline: u64,
    task: TaskId,
}

/// Wakes tasks at or after their deadlines. A timer that nobody waits for any more wakes its task for nothing, which
/// every future here bears.
#[derive(Debug)]
pub(super) struct Timers {
    slots: RefCell<Vec<Vec<Entry>>>,
    far: RefCell<Vec<Entry>>,
    /// First tick that has not been looked at.
    tick: Cell<u64>,
    count: Cell<usize>,
    /// No entry is due before this.
    earliest: Cell<u64>,
}

impl Timers {
    pub(super) fn new(now: u64) -> Timers {
        Timers {
            slots: RefCell::new(vec![Vec::new(); SLOTS]),
            far: RefCell::new(Vec::new()),
            tick: Cell::new(now >> TICK_SHIFT),
            count: Cell::new(0),
            earliest: Cell::new(u64::MAX),
        }
    }

    pub(super) fn add(&self, deadline: u64, task: TaskId) {
        let entry = Entry { deadline, task };
        // Rounded up, and never into a tick that was looked at already: late by a tick at most, never early.
        let tick = ((deadline >> TICK_SHIFT) + 1).max(self.tick.get());
        if tick - self.tick.get() < SLOTS as u64 {
            self.slots.borrow_mut()[tick as usize % SLOTS].push(entry);
        } else {
            self.far.borrow_mut().push(entry);
        }
        self.count.set(self.count.get() + 1);
        self.earliest.set(self.earliest.get().min(tick << TICK_SHIFT));
    }

    /// Calls `wake` for every task whose deadline has passed.
    #[inline]
    pub(super) fn expire(&self, now: u64, wake: impl FnMut(TaskId)) -> bool {
        if now < self.earliest.get() {
            return false;
        }
        self.expire_due(now, wake)
    }

    fn expire_due(&self, now: u64, mut wake: impl FnMut(TaskId)) -> bool {
        let last = now >> TICK_SHIFT;
        let mut fired = false;
        let mut slots = self.slots.borrow_mut();
        let first = self.tick.get();
        // After a long sleep one round of the wheel covers everything.
        for tick in first.max((last + 1).saturating_sub(SLOTS as u64))..=last {
            let slot = &mut slots[tick as usize % SLOTS];
            for entry in slot.drain(..) {
                wake(entry.task);
                self.count.set(self.count.get() - 1);
                fired = true;
            }
        }
        self.tick.set(first.max(last + 1));
        let tick = self.tick.get();
        let mut far = self.far.borrow_mut();
        far.retain(|entry| {
            let at = ((entry.deadline >> TICK_SHIFT) + 1).max(tick);
            let near = at - tick < SLOTS as u64;
            if near {
                slots[at as usize % SLOTS].push(*entry);
            }
            !near
        });
        self.earliest.set(self.find_earliest(&slots, &far, tick));
        fired
    }

    fn find_earliest(&self, slots: &[Vec<Entry>], far: &[Entry], tick: u64) -> u64 {
        if self.count.get() == 0 {
            return u64::MAX;
        }
        (tick..tick + SLOTS as u64)
            .find(|t| !slots[*t as usize % SLOTS].is_empty())
            .map(|t| t << TICK_SHIFT)
            .or_else(|| far.iter().map(|e| e.deadline).min())
            .unwrap_or(u64::MAX)
    }

    /// When the next timer may be due; `u64::MAX` for never.
    #[inline]
    pub(super) fn next_deadline(&self) -> u64 {
        self.earliest.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fired(timers: &Timers, now: u64) -> Vec<u32> {
        let mut list = Vec::new();
        timers.expire(now, |t| list.push(t.index));
        list.sort_unstable();
        list
    }

    #[test]
    fn never_early_and_at_most_a_tick_late_near_and_far() {
        const MS: u64 = 1 << TICK_SHIFT;
        let start = 77 * MS + 5;
        let timers = Timers::new(start);
        let deadlines = [start, start + 1, start + 3 * MS, start + 5000 * MS, start + 50_000 * MS];
        for (i, d) in deadlines.iter().enumerate() {
            timers.add(*d, TaskId { index: i as u32, generation: 0 });
        }
        let mut seen = [None; 5];
        let mut now = start;
        while now < start + 60_000 * MS {
            assert!(timers.next_deadline() >= now.min(timers.next_deadline()));
            for i in fired(&timers, now) {
                seen[i as usize] = Some(now);
            }
            now += MS / 2;
        }
        for (d, s) in deadlines.iter().zip(seen) {
            let s = s.expect("fired");
            assert!(s >= *d && s <= d + 2 * MS, "due {d} fired {s}");
        }
        assert_eq!(timers.next_deadline(), u64::MAX);
    }

    #[test]
    fn a_sleep_longer_than_the_wheel_fires_everything_once() {
        const MS: u64 = 1 << TICK_SHIFT;
        let timers = Timers::new(0);
        for i in 0..10_000u32 {
            timers.add(u64::from(i) * MS, TaskId { index: i, generation: 0 });
        }
        assert_eq!(
            fired(&timers, 9_000 * MS).len() + fired(&timers, 9_001 * MS).len() + fired(&timers, 20_000 * MS).len(),
            10_000
        );
    }
}
