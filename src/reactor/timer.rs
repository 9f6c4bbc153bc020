//! A wheel of timers: ticks of about a millisecond, and a list beyond its rim.
//!
//! All timers are nodes of one table, linked into lists, so that none costs an allocation once the table has grown to the most there
//! were at a time.

use std::cell::{Cell, RefCell};

use super::task::TaskId;

/// log2 of a tick in nanoseconds: 1.05 ms.
const TICK_SHIFT: u32 = 20;
/// Slots of the wheel: about four seconds.
const SLOTS: usize = 4096;
/// The list of what lies beyond the rim.
const FAR: usize = SLOTS;
/// No node.
const NONE: u32 = u32::MAX;

/// A timer that was set: place and generation.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimerKey {
    index: u32,
    generation: u32,
}

#[derive(Clone, Copy, Debug)]
struct Node {
    deadline: u64,
    task: TaskId,
    before: u32,
    after: u32,
    /// The list it is in.
    list: u32,
    /// Grows when the node is freed.
    generation: u32,
}

#[derive(Clone, Copy, Debug)]
struct List {
    first: u32,
    last: u32,
}

/// The nodes and their lists: one for each slot of the wheel, [`FAR`], and those that are free.
#[derive(Debug)]
struct Wheel {
    nodes: Vec<Node>,
    free: u32,
    lists: Vec<List>,
}

impl Wheel {
    fn new() -> Wheel {
        Wheel { nodes: Vec::new(), free: NONE, lists: vec![List { first: NONE, last: NONE }; SLOTS + 1] }
    }

    /// A node for a timer, in no list yet.
    fn take(&mut self, deadline: u64, task: TaskId) -> u32 {
        let unlinked = Node { deadline, task, before: NONE, after: NONE, list: NONE, generation: 0 };
        if self.free == NONE {
            self.nodes.push(unlinked);
            return self.nodes.len() as u32 - 1;
        }
        let index = self.free;
        let node = &mut self.nodes[index as usize];
        self.free = node.after;
        *node = Node { generation: node.generation, ..unlinked };
        index
    }

    fn release(&mut self, index: u32) {
        let node = &mut self.nodes[index as usize];
        node.generation = node.generation.wrapping_add(1);
        node.list = NONE;
        node.after = self.free;
        self.free = index;
    }

    /// Appends a node: timers of one tick fire in the order in which they were set.
    fn append(&mut self, list: usize, index: u32) {
        let last = std::mem::replace(&mut self.lists[list].last, index);
        match self.nodes.get_mut(last as usize) {
            Some(node) => node.after = index,
            None => self.lists[list].first = index,
        }
        let node = &mut self.nodes[index as usize];
        (node.before, node.after, node.list) = (last, NONE, list as u32);
    }

    fn unlink(&mut self, index: u32) {
        let Node { before, after, list, .. } = self.nodes[index as usize];
        match self.nodes.get_mut(before as usize) {
            Some(node) => node.after = after,
            None => self.lists[list as usize].first = after,
        }
        match self.nodes.get_mut(after as usize) {
            Some(node) => node.before = before,
            None => self.lists[list as usize].last = before,
        }
    }

    /// The nodes of a list, in order.
    fn iter(&self, list: usize) -> impl Iterator<Item = &Node> {
        let mut next = self.lists[list].first;
        std::iter::from_fn(move || {
            let node = self.nodes.get(next as usize)?;
            next = node.after;
            Some(node)
        })
    }
}

/// Wakes tasks at or after their deadlines. A timer that nobody waits for any more wakes its task for nothing, which
/// every future here bears.
#[derive(Debug)]
pub(super) struct Timers {
    wheel: RefCell<Wheel>,
    /// First tick that has not been looked at.
    tick: Cell<u64>,
    count: Cell<usize>,
    /// No entry is due before this.
    earliest: Cell<u64>,
}

impl Timers {
    pub(super) fn new(now: u64) -> Timers {
        Timers {
            wheel: RefCell::new(Wheel::new()),
            tick: Cell::new(now >> TICK_SHIFT),
            count: Cell::new(0),
            earliest: Cell::new(u64::MAX),
        }
    }

    /// The list of a deadline, seen from `tick`, and the tick it is due at: rounded up, and never into a tick that was looked at
    /// already: late by a tick at most, never early.
    fn place(deadline: u64, tick: u64) -> (usize, u64) {
        let due = ((deadline >> TICK_SHIFT) + 1).max(tick);
        (if due - tick < SLOTS as u64 { due as usize % SLOTS } else { FAR }, due)
    }

    pub(super) fn add(&self, deadline: u64, task: TaskId) -> TimerKey {
        let mut wheel = self.wheel.borrow_mut();
        let (list, due) = Self::place(deadline, self.tick.get());
        let index = wheel.take(deadline, task);
        wheel.append(list, index);
        self.count.set(self.count.get() + 1);
        self.earliest.set(self.earliest.get().min(due << TICK_SHIFT));
        TimerKey { index, generation: wheel.nodes[index as usize].generation }
    }

    /// Forgets a timer, if it has not fired.
    pub(super) fn cancel(&self, key: TimerKey) {
        let mut wheel = self.wheel.borrow_mut();
        if wheel.nodes[key.index as usize].generation == key.generation {
            wheel.unlink(key.index);
            wheel.release(key.index);
            self.count.set(self.count.get() - 1);
        }
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
        let mut wheel = self.wheel.borrow_mut();
        let first = self.tick.get();
        // After a long sleep one round of the wheel covers everything.
        for tick in first.max((last + 1).saturating_sub(SLOTS as u64))..=last {
            let list = tick as usize % SLOTS;
            while let Some(node) = wheel.nodes.get(wheel.lists[list].first as usize) {
                wake(node.task);
                let index = wheel.lists[list].first;
                wheel.unlink(index);
                wheel.release(index);
                self.count.set(self.count.get() - 1);
                fired = true;
            }
        }
        self.tick.set(first.max(last + 1));
        let tick = self.tick.get();
        let mut next = wheel.lists[FAR].first;
        while let Some(node) = wheel.nodes.get(next as usize) {
            let (index, list) = (next, Self::place(node.deadline, tick).0);
            next = node.after;
            if list != FAR {
                wheel.unlink(index);
                wheel.append(list, index);
            }
        }
        self.earliest.set(self.find_earliest(&wheel, tick));
        fired
    }

    fn find_earliest(&self, wheel: &Wheel, tick: u64) -> u64 {
        if self.count.get() == 0 {
            return u64::MAX;
        }
        (tick..tick + SLOTS as u64)
            .find(|t| wheel.lists[*t as usize % SLOTS].first != NONE)
            .map(|t| t << TICK_SHIFT)
            .or_else(|| wheel.iter(FAR).map(|node| node.deadline).min())
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

    #[test]
    fn cancelled_timers_do_not_fire_and_leave_nothing() {
        const MS: u64 = 1 << TICK_SHIFT;
        let timers = Timers::new(0);
        let mut expected = Vec::new();
        for round in 0..50_u64 {
            let now = round * 700 * MS;
            let keys: Vec<_> = (0..100_u32)
                .map(|i| {
                    timers.add(now + u64::from(i * i) * MS, TaskId { index: round as u32 * 100 + i, generation: 0 })
                })
                .collect();
            for (i, key) in keys.iter().enumerate() {
                if i % 3 == round as usize % 3 {
                    expected.push(round as u32 * 100 + i as u32);
                } else {
                    timers.cancel(*key);
                    // Once is enough, and what took its place is another one.
                    timers.cancel(*key);
                }
            }
        }
        // What is beyond the rim comes with the turn after.
        let late = [fired(&timers, 100_000 * MS), fired(&timers, 100_001 * MS)];
        let mut late = late.concat();
        late.sort_unstable();
        assert_eq!(late, expected);
        assert_eq!((timers.count.get(), timers.next_deadline()), (0, u64::MAX));
        let nodes = timers.wheel.borrow().nodes.len();
        for i in 0..100_000 {
            timers.cancel(timers.add(200_000 * MS + i, TaskId { index: 0, generation: 0 }));
        }
        assert_eq!(timers.wheel.borrow().nodes.len(), nodes);
    }
}
