//! Random allocation, splitting, joining and travelling of buffers against a model that knows every byte's owner.
#![cfg(not(loom))]

use std::collections::BTreeMap;

use hugepages::{Arena, BLOCK_MIN, Buf, MAX_BUF, Pool, RemoteBuf};
use proptest::prelude::*;
use proptest::sample::Index;

/// Four largest blocks and a tail that is no power of two.
const ARENA: usize = 4 * MAX_BUF + 3 * BLOCK_MIN;

#[derive(Clone, Debug)]
enum Step {
    Alloc(usize),
    Drop(Index),
    Split(Index, Index),
    /// Leaves nothing on one side: of the front (false), of the rest (true).
    SplitEdge(Index, bool),
    Unsplit(Index, Index),
    /// Joins with whatever follows in memory, if anything does.
    Rejoin(Index),
    Truncate(Index, Index),
    Extend(Index),
    Depart(Index),
    DropAway(Index),
    /// Arrives at the home (false) or at the other pool (true).
    Arrive(Index, bool),
    Collect,
}

fn step() -> impl Strategy<Value = Step> {
    let index = any::<Index>;
    let len = prop_oneof![0..=3 * BLOCK_MIN, 1..=128_usize << 10, 1..=MAX_BUF];
    prop_oneof![
        8 => len.prop_map(Step::Alloc),
        4 => index().prop_map(Step::Drop),
        5 => (index(), index()).prop_map(|(which, at)| Step::Split(which, at)),
        2 => (index(), any::<bool>()).prop_map(|(which, end)| Step::SplitEdge(which, end)),
        1 => (index(), index()).prop_map(|(front, next)| Step::Unsplit(front, next)),
        3 => index().prop_map(Step::Rejoin),
        1 => (index(), index()).prop_map(|(which, at)| Step::Truncate(which, at)),
        2 => index().prop_map(Step::Extend),
        3 => index().prop_map(Step::Depart),
        2 => index().prop_map(Step::DropAway),
        3 => (index(), any::<bool>()).prop_map(|(which, other)| Step::Arrive(which, other)),
        1 => Just(Step::Collect),
    ]
}

/// A buffer and the byte that its whole capacity is filled with.
struct Held<B> {
    buf: B,
    mark: u8,
}

struct Bench {
    home: Pool,
    other: Pool,
    here: Vec<Held<Buf>>,
    away: Vec<Held<RemoteBuf>>,
    /// Start to end of every piece with capacity.
    owned: BTreeMap<usize, usize>,
    marks: u8,
}

impl Bench {
    fn new() -> Self {
        let (home, other) = (Pool::new(0), Pool::new(1));
        let arena = Arena::heap(ARENA);
        arena.grow(ARENA).expect("a heap arena grows to its size").into_iter().for_each(|chunk| home.add(chunk));
        Self { home, other, here: Vec::new(), away: Vec::new(), owned: BTreeMap::new(), marks: 0 }
    }

    fn own(&mut self, buf: &Buf) {
        let (start, end) = (buf.address(), buf.address() + buf.capacity());
        if start == end {
            return;
        }
        if let Some((_, before)) = self.owned.range(..=start).next_back() {
            assert!(*before <= start, "overlaps the piece before");
        }
        if let Some((after, _)) = self.owned.range(start..).next() {
            assert!(end <= *after, "overlaps the piece after");
        }
        self.owned.insert(start, end);
    }

    fn disown(&mut self, buf: &Buf) {
        if buf.capacity() > 0 {
            assert_eq!(self.owned.remove(&buf.address()), Some(buf.address() + buf.capacity()));
        }
    }

    /// Fills the capacity with a new mark, keeping the length.
    fn mark(&mut self, mut buf: Buf) -> Held<Buf> {
        self.marks = self.marks.wrapping_add(1);
        let len = buf.len();
        buf.set_len(buf.capacity());
        buf.fill(self.marks);
        buf.set_len(len);
        Held { buf, mark: self.marks }
    }

    /// Nobody else wrote into it.
    fn verify(held: &mut Held<Buf>) {
        let len = held.buf.len();
        held.buf.set_len(held.buf.capacity());
        assert!(held.buf.iter().all(|byte| *byte == held.mark), "somebody else wrote into {:?}", held.buf);
        held.buf.set_len(len);
    }

    fn take(&mut self, which: Index) -> Option<Held<Buf>> {
        if self.here.is_empty() {
            return None;
        }
        let mut held = self.here.swap_remove(which.index(self.here.len()));
        Self::verify(&mut held);
        self.disown(&held.buf);
        Some(held)
    }

    fn keep(&mut self, buf: Buf) {
        self.own(&buf);
        let held = self.mark(buf);
        self.here.push(held);
    }

    fn split(&mut self, mut buf: Buf, at: usize) {
        let (start, len, capacity) = (buf.address(), buf.len(), buf.capacity());
        let front = buf.split_to(at);
        assert_eq!((front.address(), front.len(), front.capacity()), (start, at, at));
        assert_eq!((buf.len(), buf.capacity()), (len - at, capacity - at));
        assert!(buf.capacity() == 0 || buf.address() == start + at);
        self.keep(front);
        self.keep(buf);
    }

    fn unsplit(&mut self, front: Held<Buf>, next: Held<Buf>) -> bool {
        let (mut front, next) = (front.buf, next.buf);
        // A front without capacity takes the place of what follows.
        let first = if front.capacity() == 0 { &next } else { &front };
        let address = first.address();
        let (len, capacity) = (front.len() + next.len(), front.capacity() + next.capacity());
        match front.unsplit(next) {
            Ok(()) => {
                assert_eq!((front.address(), front.len(), front.capacity()), (address, len, capacity));
                self.keep(front);
                true
            }
            Err(next) => {
                self.keep(front);
                self.keep(next);
                false
            }
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Alloc(len) => {
                let failures = self.home.stats().failures;
                match self.home.alloc(len) {
                    Some(buf) => {
                        assert_eq!(buf.len(), len);
                        assert_eq!(buf.capacity(), len.next_power_of_two().max(BLOCK_MIN));
                        assert_eq!(buf.address() % buf.capacity(), 0, "not aligned to its size");
                        self.keep(buf);
                    }
                    None => assert_eq!(self.home.stats().failures, failures + 1),
                }
            }
            Step::Drop(which) => drop(self.take(which)),
            Step::Split(which, at) => {
                if let Some(Held { buf, .. }) = self.take(which) {
                    let at = at.index(buf.len() + 1);
                    self.split(buf, at);
                }
            }
            Step::SplitEdge(which, end) => {
                if let Some(Held { buf, .. }) = self.take(which) {
                    let at = if end { buf.len() } else { 0 };
                    self.split(buf, at);
                }
            }
            Step::Unsplit(front, next) => {
                if let Some(front) = self.take(front) {
                    match self.take(next) {
                        Some(next) => drop(self.unsplit(front, next)),
                        None => self.keep(front.buf),
                    }
                }
            }
            Step::Rejoin(which) => {
                let Some(front) = self.take(which) else {
                    return;
                };
                let end = front.buf.address() + front.buf.capacity();
                let follows = |held: &Held<Buf>| held.buf.address() == end && held.buf.capacity() > 0;
                match self.here.iter().position(follows) {
                    Some(index) if front.buf.capacity() > 0 => {
                        let mut next = self.here.swap_remove(index);
                        Self::verify(&mut next);
                        self.disown(&next.buf);
                        self.unsplit(front, next);
                    }
                    _ => self.keep(front.buf),
                }
            }
            Step::Truncate(which, at) => {
                if let Some(Held { mut buf, .. }) = self.take(which) {
                    buf.truncate(at.index(buf.len() + 1));
                    self.keep(buf);
                }
            }
            Step::Extend(which) => {
                if let Some(Held { mut buf, .. }) = self.take(which) {
                    buf.set_len(buf.capacity());
                    self.keep(buf);
                }
            }
            Step::Depart(which) => {
                if let Some(held) = self.take(which) {
                    self.own(&held.buf);
                    self.away.push(Held { buf: held.buf.into_remote(), mark: held.mark });
                }
            }
            Step::DropAway(which) => {
                if let Some(held) = self.arrive(which, true) {
                    self.disown(&held.buf);
                    drop(held.buf.into_remote());
                }
            }
            Step::Arrive(which, other) => {
                if let Some(held) = self.arrive(which, other) {
                    self.here.push(held);
                }
            }
            Step::Collect => {
                let freed = self.home.freed();
                let landed = self.home.collect();
                assert_eq!(self.home.freed(), freed + landed as u64);
            }
        }
    }

    fn arrive(&mut self, which: Index, other: bool) -> Option<Held<Buf>> {
        if self.away.is_empty() {
            return None;
        }
        let Held { buf, mark } = self.away.swap_remove(which.index(self.away.len()));
        assert!(buf.iter().all(|byte| *byte == mark), "somebody else wrote into {buf:?}");
        let pool = if other { &self.other } else { &self.home };
        let mut held = Held { buf: pool.import(buf), mark };
        Self::verify(&mut held);
        Some(held)
    }

    /// Everything is back and merged: the arena can be had again in the largest pieces.
    fn finish(mut self) {
        self.here.clear();
        self.away.clear();
        assert_eq!(self.home.leaked(), 0);
        let stats = self.home.stats();
        assert_eq!((stats.bytes_in_use, stats.bytes_total), (0, ARENA));
        assert!(stats.classes.iter().all(|class| class.in_use == 0));
        let largest: Vec<Buf> = std::iter::from_fn(|| self.home.alloc(MAX_BUF)).collect();
        assert_eq!(largest.len(), ARENA / MAX_BUF, "not all merged");
        let tail: Vec<Buf> = std::iter::from_fn(|| self.home.alloc(BLOCK_MIN)).collect();
        assert_eq!(tail.len(), ARENA % MAX_BUF / BLOCK_MIN);
        assert_eq!(self.home.stats().bytes_in_use, ARENA);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_byte_has_one_owner(steps in prop::collection::vec(step(), 0..300)) {
        let mut bench = Bench::new();
        for step in steps {
            bench.run(step);
        }
        bench.finish();
    }
}
