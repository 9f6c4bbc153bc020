//! The two rings of a queue pair in memory, and their doorbells.
//!
//! ```text
//!  driver    push: entry at the tail ........ announce: SQ tail doorbell        next: entry at the head ........ acknowledge: CQ head doorbell
//!            |_______________ many _______________|                             |________________ many ________________|
//! ```
//! Both doorbells are rung once a batch. A completion entry is new while its phase tag is the ring's: the tag that the controller
//! writes changes with each round (Base §3.3.3.2.2).

use std::cell::Cell;
use std::sync::atomic::{Ordering, fence};

use hugepages::DeviceBuf;

use crate::nvme::spec::{Cqe, CqeDw3, Sqe, Status};
use crate::sys::mmio::{Bell, Registers};

/// Bytes of a submission queue entry: eight words, so that it is written by eight stores.
pub(in super::super) const SQE_LEN: usize = size_of::<Sqe>();
/// Bytes of a completion queue entry.
pub(in super::super) const CQE_LEN: usize = size_of::<Cqe>();
const CQE_DW2: usize = 8;

/// A doorbell, with the places in memory where a controller looks for its value and says from when on it wants to be rung
/// (Doorbell Buffer Config, Base §5.8).
pub(in super::super) struct Doorbell<B> {
    bell: B,
    shadow: Option<Shadow>,
    rung: Cell<u64>,
}

/// See [`Doorbell`].
pub(in super::super) struct Shadow {
    pub(in super::super) values: DeviceBuf,
    pub(in super::super) events: DeviceBuf,
    /// Offset of this doorbell in both.
    pub(in super::super) at: usize,
}

impl<B: Bell> Doorbell<B> {
    pub(in super::super) fn new(bell: B, shadow: Option<Shadow>) -> Doorbell<B> {
        Doorbell { bell, shadow, rung: Cell::new(0) }
    }

    /// Announces that the value went from `old` to `new`.
    #[inline]
    fn ring(&self, old: u16, new: u16) {
        if let Some(shadow) = &self.shadow {
            shadow.values.store32(shadow.at, u32::from(new));
            // The controller stores its event index and then loads the value; here it is the other way round. Without a full fence
            // between, both could see the old contents, and the controller would sleep on a queue that is not empty.
            fence(Ordering::SeqCst);
            let event = shadow.events.load32(shadow.at) as u16;
            if !is_asked(event, old, new) {
                return;
            }
        }
        self.bell.ring(u32::from(new));
        self.rung.set(self.rung.get() + 1);
    }
}

/// Whether the step from `old` to `new` passes `event`, all of them modulo 2^16: the controller wants to hear of that (Base §B.5).
#[inline]
fn is_asked(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// An entry of the completion queue. Its words are the controller's: nothing in them is to be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Completion {
    pub(in super::super) cid: u16,
    pub(in super::super) status: Status,
    pub(in super::super) sqid: u16,
    /// Place of the entry, for [`Rings::result`].
    at: usize,
}

/// Where a submission queue is.
#[derive(Clone, Debug)]
pub(in super::super) enum Submissions {
    /// In memory, from which the controller reads each entry.
    Host(DeviceBuf),
    /// In the controller memory buffer, so many bytes behind the beginning of its BAR.
    Controller(u32),
}

/// Memory of a queue pair, and how many entries each of its rings has.
#[derive(Clone, Debug)]
pub(in super::super) struct Memory {
    pub(in super::super) submissions: Submissions,
    pub(in super::super) completions: DeviceBuf,
    /// Of both rings, at least 2: one fewer commands are in flight.
    pub(in super::super) entries: u16,
}

/// See the module's head.
pub(in super::super) struct Rings<R: Registers> {
    memory: Memory,
    /// The BAR of the controller memory buffer, if the submission queue is there.
    buffer: Option<R>,
    tail: Cell<u16>,
    announced: Cell<u16>,
    head: Cell<u16>,
    acknowledged: Cell<u16>,
    phase: Cell<bool>,
    submission: Doorbell<R::Bell>,
    completion: Doorbell<R::Bell>,
}

impl<R: Registers> Rings<R> {
    /// Empty rings. `buffer` is the BAR of the controller memory buffer, for submission queues that are there.
    pub(in super::super) fn new(
        memory: Memory,
        buffer: Option<&R>,
        submission: Doorbell<R::Bell>,
        completion: Doorbell<R::Bell>,
    ) -> Rings<R> {
        memory.completions.zero();
        let inside = matches!(memory.submissions, Submissions::Controller(_));
        assert!(!inside || buffer.is_some(), "a submission queue in a buffer that is not there");
        Rings {
            memory,
            buffer: buffer.filter(|_| inside).cloned(),
            tail: Cell::new(0),
            announced: Cell::new(0),
            head: Cell::new(0),
            acknowledged: Cell::new(0),
            phase: Cell::new(true),
            submission,
            completion,
        }
    }

    #[inline]
    fn after(&self, index: u16) -> u16 {
        if index + 1 == self.memory.entries { 0 } else { index + 1 }
    }

    /// Writes a command. The caller has fewer in flight than the ring has entries, so there is room.
    #[inline]
    pub(in super::super) fn push(&self, sqe: &Sqe) {
        let words: [u64; SQE_LEN / 8] = zerocopy::transmute!(*sqe);
        let words = words.map(u64::from_le);
        let tail = self.tail.get();
        match (&self.memory.submissions, &self.buffer) {
            (Submissions::Host(memory), _) => memory.store_words(usize::from(tail) * SQE_LEN, &words),
            (Submissions::Controller(start), buffer) => {
                // Posted writes of one function arrive in order: all are there before the doorbell.
                for (at, word) in (start + u32::from(tail) * SQE_LEN as u32..).step_by(8).zip(words) {
                    buffer.iter().for_each(|buffer| buffer.write64(at, word));
                }
            }
        }
        self.tail.set(self.after(tail));
    }

    /// Tells the controller of all commands written since the last call.
    #[inline]
    pub(in super::super) fn announce(&self) {
        let (old, new) = (self.announced.get(), self.tail.get());
        if old != new {
            self.announced.set(new);
            self.submission.ring(old, new);
        }
    }

    /// Whether there is a next completion.
    pub(in super::super) fn has_next(&self) -> bool {
        let last = self.memory.completions.load32(usize::from(self.head.get()) * CQE_LEN + CqeDw3::OFFSET);
        CqeDw3(last).phase() == self.phase.get()
    }

    /// The next completion.
    #[inline]
    pub(in super::super) fn next(&self) -> Option<Completion> {
        let head = self.head.get();
        let at = usize::from(head) * CQE_LEN;
        // Acquire: the rest of the entry, and the data of the command, are there before its phase tag.
        let last = CqeDw3(self.memory.completions.load32(at + CqeDw3::OFFSET));
        if last.phase() != self.phase.get() {
            return None;
        }
        let after = self.after(head);
        self.head.set(after);
        if after == 0 {
            self.phase.set(!self.phase.get());
        }
        let sqid = (self.memory.completions.load32(at + CQE_DW2) >> 16) as u16;
        Some(Completion { cid: last.cid(), status: last.status(), sqid, at })
    }

    /// Dwords 0 and 1 of a completion that has not been acknowledged.
    pub(in super::super) fn result(&self, completion: &Completion) -> u64 {
        self.memory.completions.load64(completion.at)
    }

    /// Gives the controller back the places of all completions taken since the last call.
    #[inline]
    pub(in super::super) fn acknowledge(&self) {
        let (old, new) = (self.acknowledged.get(), self.head.get());
        if old != new {
            self.acknowledged.set(new);
            self.completion.ring(old, new);
        }
    }

    /// Begins anew, for queues that are created again. The controller is disabled, or both queues are deleted.
    pub(in super::super) fn restart(&self) {
        self.memory.completions.zero();
        for index in [&self.tail, &self.announced, &self.head, &self.acknowledged] {
            index.set(0);
        }
        self.phase.set(true);
        for doorbell in [&self.submission, &self.completion] {
            if let Some(shadow) = &doorbell.shadow {
                shadow.values.store32(shadow.at, 0);
                shadow.events.store32(shadow.at, 0);
            }
        }
    }

    /// Its memory.
    pub(in super::super) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// How often each doorbell register was written: submissions, completions.
    pub(in super::super) fn rung(&self) -> (u64, u64) {
        (self.submission.rung.get(), self.completion.rung.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The controller asks at `event` to hear when its value is passed: exactly one step of a sequence passes it.
    #[test]
    fn a_step_that_passes_the_event_index_is_announced() {
        for start in [0u16, 1, 1000, 0x7fff, 0xfff0, 0xffff] {
            for event in 0..64u16 {
                let event = start.wrapping_add(event);
                for step in 1..=64u16 {
                    let (old, new) = (start, start.wrapping_add(step));
                    // Slowly: does the value go from at or below `event` to above it?
                    let passes = (0..step).any(|i| old.wrapping_add(i) == event);
                    assert_eq!(is_asked(event, old, new), passes, "event {event}, {old} to {new}");
                }
            }
        }
    }
}
