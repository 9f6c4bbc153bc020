//! Doorbells, in registers and in memory, and what a driver may write there.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use super::faults::{Arrival, Fault};
use super::memory::Spot;
use super::{Inner, count, lock::Lock};
use crate::nvme::spec::{AsyncEventType, ErrorInfo, LogId};
use crate::reactor::mailbox::Remote;

/// A queue's doorbells, and what of the queue they are checked against. Rung on any thread.
#[derive(Default)]
pub(super) struct Place {
    /// Entries of the submission queue; 0: there is none.
    pub(super) sq_entries: AtomicU32,
    pub(super) tail: AtomicU32,
    pub(super) fetched: AtomicU32,
    /// Entries of the completion queue; 0: there is none.
    pub(super) cq_entries: AtomicU32,
    pub(super) head: AtomicU32,
    pub(super) posted: AtomicU32,
    /// There is work, since somebody last looked.
    pub(super) rung: AtomicBool,
    /// The reactor sleeps, and is to be rung.
    pub(super) armed: AtomicBool,
    /// A completion waits for room.
    pub(super) starved: AtomicBool,
    pub(super) reactor: Lock<Option<Remote>>,
    /// The places in memory that stand for the doorbells.
    pub(super) shadows: Lock<[Option<Shadow>; 2]>,
}

/// A doorbell in memory, and the place where the controller says from which value on it wants to hear (Base §5.8).
#[derive(Clone, Debug)]
pub(super) struct Shadow {
    pub(super) values: Spot,
    pub(super) events: Spot,
}

impl Shadow {
    pub(super) fn value(&self) -> u32 {
        self.values.block.load32(self.values.at)
    }

    /// Asks for a doorbell when the value goes beyond `index`; whether it has not gone on already.
    pub(super) fn ask(&self, index: u32) -> bool {
        self.events.block.store32(self.events.at, index);
        // The driver stores the value and then loads the event index: one of the two sees the other.
        fence(Ordering::SeqCst);
        self.value() == index
    }
}

impl Inner {
    /// A doorbell of queue `qid` is written.
    #[inline]
    pub(super) fn ring(&self, qid: u16, completion: bool, value: u32) {
        count(if completion { &self.counts.cq_doorbells } else { &self.counts.sq_doorbells });
        let event = if completion { Arrival::CqDoorbell(qid) } else { Arrival::SqDoorbell(qid) };
        let mut ignored = self.gone();
        for fault in self.faults.judge(event) {
            self.strike(fault);
            ignored |= fault == Fault::Ignore;
        }
        if ignored {
            return;
        }
        let place = self.places.get(usize::from(qid));
        let rung = place
            .ok_or((ErrorInfo::INVALID_DOORBELL, "there is no such queue"))
            .and_then(|place| if completion { place.acknowledge(value) } else { place.announce(value) });
        match (rung, place) {
            (Ok(()), Some(place)) if !completion || place.starved.swap(false, Ordering::AcqRel) => {
                // A completion queue may serve several submission queues.
                if completion { self.wake_all() } else { place.wake() }
            }
            (Err((info, why)), _) => self.wrong_doorbell(qid, completion, value, info, why),
            _ => {}
        }
    }

    #[cold]
    fn wrong_doorbell(&self, qid: u16, completion: bool, value: u32, info: ErrorInfo, why: &str) {
        let which = if completion { "completion" } else { "submission" };
        self.breaks(|| format!("{value} was written to the doorbell of {which} queue {qid}: {why}"));
        self.event(AsyncEventType::ERROR, info.0, LogId::ERROR);
    }

    /// Has a queue be looked at.
    pub(super) fn wake(&self, qid: u16) {
        if let Some(place) = self.places.get(usize::from(qid)) {
            place.wake();
        }
    }

    fn wake_all(&self) {
        self.places.iter().for_each(Place::wake);
    }
}

type WrongDoorbell = (ErrorInfo, &'static str);

impl Place {
    fn announce(&self, tail: u32) -> Result<(), WrongDoorbell> {
        let entries = self.sq_entries.load(Ordering::Acquire);
        if entries == 0 {
            return Err((ErrorInfo::INVALID_DOORBELL, "there is no such queue"));
        }
        if tail >= entries {
            return Err((ErrorInfo::INVALID_DOORBELL_VALUE, "it has fewer entries"));
        }
        let shadow = self.shadows.lock();
        if let [Some(shadow), _] = &*shadow {
            return match shadow.value() == tail {
                true => Ok(()),
                false => Err((ErrorInfo::INVALID_DOORBELL_VALUE, "its shadow has another value")),
            };
        }
        drop(shadow);
        let (old, fetched) = (self.tail.load(Ordering::Relaxed), self.fetched.load(Ordering::Acquire));
        let distance = |from: u32, to: u32| (to + entries - from) % entries;
        if tail == old {
            return Err((ErrorInfo::INVALID_DOORBELL_VALUE, "it has that value already"));
        }
        if distance(fetched, old) + distance(old, tail) >= entries {
            return Err((ErrorInfo::INVALID_DOORBELL_VALUE, "commands were overwritten before they were fetched"));
        }
        self.tail.store(tail, Ordering::Release);
        Ok(())
    }

    fn acknowledge(&self, head: u32) -> Result<(), WrongDoorbell> {
        let entries = self.cq_entries.load(Ordering::Acquire);
        if entries == 0 {
            return Err((ErrorInfo::INVALID_DOORBELL, "there is no such queue"));
        }
        if head >= entries {
            return Err((ErrorInfo::INVALID_DOORBELL_VALUE, "it has fewer entries"));
        }
        let shadow = self.shadows.lock();
        if let [_, Some(shadow)] = &*shadow
            && shadow.value() != head
        {
            return Err((ErrorInfo::INVALID_DOORBELL_VALUE, "its shadow has another value"));
        }
        let is_shadowed = shadow[1].is_some();
        drop(shadow);
        let (old, posted) = (self.head.load(Ordering::Relaxed), self.posted.load(Ordering::Acquire));
        let distance = |to: u32| (to + entries - old) % entries;
        if head == old && !is_shadowed {
            return Err((ErrorInfo::INVALID_DOORBELL_VALUE, "it has that value already"));
        }
        if distance(head) > distance(posted) {
            return Err((ErrorInfo::INVALID_DOORBELL_VALUE, "so many completions were not posted"));
        }
        self.head.store(head, Ordering::Release);
        Ok(())
    }

    fn wake(&self) {
        self.rung.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.armed.load(Ordering::Acquire)
            && let Some(reactor) = &*self.reactor.lock()
        {
            // It has a look at its pollers when it wakes, which is all that is wanted.
            reactor.send(Box::new(|_| ()));
        }
    }
}
