//! The order of exclusive ranges of one device, kept by its home.

use std::cell::{Cell, RefCell};

use super::{Against, Arbiters, Held, Range, send, service, with_gate};
use crate::reactor::Reactor;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// An earlier request overlaps.
    Queued,
    /// Gates were asked to hold the range.
    Holding,
    /// The asker has it.
    Granted,
}

#[derive(Debug)]
struct Asked {
    held: Held,
    from: u16,
    tag: usize,
    stage: Stage,
    /// Reactors that have not acknowledged yet.
    missing: u64,
}

/// The order of exclusive ranges of one device, at its home.
#[derive(Debug)]
pub(super) struct Arbiter {
    device: u32,
    /// Reactors with a gate.
    members: Cell<u64>,
    next_id: Cell<u64>,
    /// In the order of arrival.
    asked: RefCell<Vec<Asked>>,
}

impl Arbiter {
    pub(super) fn new(device: u32) -> Arbiter {
        Arbiter { device, members: Cell::new(0), next_id: Cell::new(0), asked: RefCell::default() }
    }

    pub(super) fn is_free_for(&self, reactor: u16, range: Range) -> bool {
        self.members.get() == 1 << reactor && !self.asked.borrow().iter().any(|a| a.held.range.overlaps(range))
    }

    /// A gate was opened. Returns what it must hold; the grants asked for before do not wait for it, since it has nothing in flight.
    pub(super) fn join(&self, from: u16) -> Vec<Held> {
        self.members.set(self.members.get() | 1 << from);
        self.asked.borrow().iter().filter(|a| a.stage != Stage::Queued).map(|a| a.held).collect()
    }

    /// A gate was dropped: nothing of it is in flight.
    pub(super) fn leave(&self, reactor: &Reactor, from: u16) {
        self.members.set(self.members.get() & !(1 << from));
        let orphaned: Vec<u64> = self.asked.borrow().iter().filter(|a| a.from == from).map(|a| a.held.id).collect();
        for id in orphaned {
            self.release(reactor, id);
        }
        let waiting: Vec<u64> = self.asked.borrow().iter().map(|a| a.held.id).collect();
        for id in waiting {
            self.ack(reactor, from, id);
        }
        if self.members.get() == 0 {
            service::<Arbiters>(reactor).0.borrow_mut().remove(&self.device);
        }
    }

    pub(super) fn ask(&self, reactor: &Reactor, (from, tag): (u16, usize), range: Range, against: Against) {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let held = Held { id, range, against };
        self.asked.borrow_mut().push(Asked { held, from, tag, stage: Stage::Queued, missing: 0 });
        self.start_free(reactor);
    }

    /// Has the gates hold each range that nothing before it overlaps.
    fn start_free(&self, reactor: &Reactor) {
        loop {
            let (held, members) = {
                let mut asked = self.asked.borrow_mut();
                let free = (0..asked.len()).find(|&i| {
                    let range = asked[i].held.range;
                    asked[i].stage == Stage::Queued && !asked[..i].iter().any(|a| a.held.range.overlaps(range))
                });
                let Some(index) = free else {
                    return;
                };
                let one = &mut asked[index];
                one.stage = Stage::Holding;
                one.missing = self.members.get();
                (one.held, one.missing)
            };
            let here = reactor.id();
            self.each(members, |to| {
                if to != here {
                    send(reactor, to, self.device, move |gate| gate.hold_for(held));
                }
            });
            if members & 1 << here != 0 {
                let mut at_once = false;
                with_gate(reactor, self.device, |gate| at_once = gate.hold(held));
                if at_once {
                    self.ack(reactor, here, held.id);
                }
            }
        }
    }

    fn each(&self, mut members: u64, mut f: impl FnMut(u16)) {
        while members != 0 {
            f(members.trailing_zeros() as u16);
            members &= members - 1;
        }
    }

    pub(super) fn ack(&self, reactor: &Reactor, from: u16, id: u64) {
        let (to, tag) = {
            let mut asked = self.asked.borrow_mut();
            let Some(one) = asked.iter_mut().find(|a| a.held.id == id && a.stage == Stage::Holding) else {
                return;
            };
            one.missing &= !(1 << from);
            if one.missing != 0 {
                return;
            }
            one.stage = Stage::Granted;
            (one.from, one.tag)
        };
        if to == reactor.id() {
            with_gate(reactor, self.device, |gate| gate.granted(tag, id));
        } else {
            send(reactor, to, self.device, move |gate| gate.granted(tag, id));
        }
    }

    pub(super) fn release(&self, reactor: &Reactor, id: u64) {
        self.asked.borrow_mut().retain(|a| a.held.id != id);
        let here = reactor.id();
        self.each(self.members.get(), |to| {
            if to == here {
                with_gate(reactor, self.device, |gate| gate.released(id));
            } else {
                send(reactor, to, self.device, move |gate| gate.released(id));
            }
        });
        self.start_free(reactor);
    }
}
