//! Writers that remember what was acknowledged and what was flushed, to be held against the file afterwards.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use reactor::nvme::host::Volume;
use reactor::reactor::Reactor;
use reactor::reactor::io::{IoOp, IoStatus};

use super::host::{pattern, run};

/// Bytes that a writer has for itself.
const SLOT: u64 = 64 << 10;
/// Unit that a write in flight at the end may have got to or not.
const GRAIN: usize = 4096;

/// What one writer knows of its slot. Generation 0 are the zeros of the start.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// The last write that was asked for.
    asked: u64,
    /// The last one that was acknowledged.
    acknowledged: u64,
    /// The last one acknowledged before a flush that was acknowledged.
    flushed: u64,
}

/// Writers, each with a slot of its own, each with one write in flight.
pub struct Load {
    known: RefCell<Vec<Known>>,
    active: Cell<usize>,
    waiter: Cell<reactor::reactor::TaskId>,
}

/// The contents of slot `writer` after its write number `generation`: a short write in even ones, which the rest of the slot
/// survives.
fn contents(writer: usize, generation: u64) -> Vec<u8> {
    pattern(length(generation), (writer as u64) << 32 | generation)
}

/// Bytes of write number `generation`: in the capsule, or by R2T.
fn length(generation: u64) -> usize {
    if generation.is_multiple_of(2) { GRAIN } else { SLOT as usize }
}

impl Load {
    /// Starts `depth` writers on each of `volumes`, which are queues to one namespace; `flushing` after each write. They end
    /// with the connection.
    pub fn start(volumes: &[Rc<Volume>], depth: usize, flushing: bool) -> Rc<Load> {
        let reactor = volumes[0].queue().reactor().clone();
        let count = volumes.len() * depth;
        let load = Rc::new(Load {
            known: RefCell::new(vec![Known::default(); count]),
            active: Cell::new(count),
            waiter: Cell::new(reactor::reactor::TaskId::NONE),
        });
        for writer in 0..count {
            let (load, volume, reactor) = (load.clone(), volumes[writer % volumes.len()].clone(), reactor.clone());
            reactor.clone().spawn("writer", async move {
                load.write(&volume, writer, flushing).await;
                load.active.set(load.active.get() - 1);
                reactor.wake(load.waiter.get());
            });
        }
        load
    }

    async fn write(&self, volume: &Volume, writer: usize, flushing: bool) {
        for generation in 1.. {
            self.known.borrow_mut()[writer].asked = generation;
            let data = contents(writer, generation);
            let (status, _) = run(volume, IoOp::Write, writer as u64 * SLOT, data.len() as u64, &data).await;
            if status != IoStatus::Success {
                return;
            }
            self.known.borrow_mut()[writer].acknowledged = generation;
            if flushing {
                if run(volume, IoOp::Flush, 0, 0, &[]).await.0 != IoStatus::Success {
                    return;
                }
                self.known.borrow_mut()[writer].flushed = generation;
            }
        }
    }

    /// Waits until every writer has lost its connection.
    pub async fn ended(&self, reactor: &Reactor) {
        self.waiter.set(reactor.current_task());
        std::future::poll_fn(|_| {
            if self.active.get() == 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
    }

    /// Waits until every writer has had `count` writes acknowledged (and flushed, if it flushes).
    pub async fn until(&self, reactor: &Reactor, count: u64, flushing: bool) {
        let reached = |known: &Known| (if flushing { known.flushed } else { known.acknowledged }) >= count;
        while !self.known.borrow().iter().all(reached) {
            assert_eq!(self.active.get(), self.known.borrow().len(), "a writer lost its connection too early");
            reactor.sleep(1_000_000).await;
        }
    }

    /// Bytes of all slots.
    pub fn len(&self) -> u64 {
        self.known.borrow().len() as u64 * SLOT
    }

    /// Checks that `found`, the bytes of all slots, has every write that was acknowledged (flushed, if only that counts), and
    /// nothing that was never written. A later write may be there, in part.
    pub fn check(&self, found: &[u8], flushed: bool) {
        for (writer, known) in self.known.borrow().iter().enumerate() {
            let least = if flushed { known.flushed } else { known.acknowledged };
            let slot = &found[writer * SLOT as usize..][..SLOT as usize];
            // What each grain may be: as the last write that must be there left it, or as any later one did.
            let mut state = vec![0; SLOT as usize];
            for generation in least.saturating_sub(1)..=least {
                if generation > 0 {
                    let data = contents(writer, generation);
                    state[..data.len()].copy_from_slice(&data);
                }
            }
            let mut allowed = vec![state];
            for generation in least + 1..=known.asked {
                allowed.push(contents(writer, generation));
            }
            for (index, grain) in slot.chunks(GRAIN).enumerate() {
                let at = index * GRAIN;
                let is = |state: &Vec<u8>| state.get(at..at + GRAIN).is_some_and(|part| part == grain);
                assert!(allowed.iter().any(is), "writer {writer}, {known:?}: bytes from {at} of its slot are lost");
            }
        }
    }
}

/// A load that knows this of one writer.
fn one(known: Known) -> Load {
    Load { known: RefCell::new(vec![known]), active: Cell::new(0), waiter: Cell::new(reactor::reactor::TaskId::NONE) }
}

#[test]
fn a_slot_may_hold_what_was_acknowledged_or_a_later_write_in_part() {
    let load = one(Known { asked: 3, acknowledged: 2, flushed: 1 });
    let mut slot = contents(0, 1);
    load.check(&slot, true);
    slot[..GRAIN].copy_from_slice(&contents(0, 2));
    load.check(&slot, false);
    slot[GRAIN..2 * GRAIN].copy_from_slice(&contents(0, 3)[GRAIN..2 * GRAIN]);
    load.check(&slot, false);
}

#[test]
#[should_panic(expected = "bytes from 0 of its slot are lost")]
fn an_acknowledged_write_that_is_missing_is_found() {
    one(Known { asked: 3, acknowledged: 2, flushed: 1 }).check(&contents(0, 1), false);
}

#[test]
#[should_panic(expected = "bytes from 4096 of its slot are lost")]
fn a_torn_grain_is_found() {
    let mut slot = contents(0, 1);
    slot[GRAIN] ^= 1;
    one(Known { asked: 1, acknowledged: 1, flushed: 1 }).check(&slot, true);
}
