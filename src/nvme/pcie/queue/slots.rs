//! The commands in flight of an I/O queue, by command identifier.
//!
//! ```text
//!   free --start--> in flight --its completion, of this generation--> free
//!                      |  ^                                            A fused pair has two slots: the I/O is with its leader, and ends
//!                      +--+ restart: written anew                      when both halves are answered.
//! ```

use crate::nvme::io::pair_status;
use crate::nvme::spec::Status;
use crate::reactor::io::Io;

/// Bits of a command identifier that name the slot; the others are its generation.
const SLOT_BITS: u32 = 10;
/// Most commands in flight on a queue.
pub(in super::super) const SLOTS_MAX: u16 = 1 << SLOT_BITS;
/// Generations of a slot. One fewer than fit, since FFFFh is no command identifier (Base §3.3.3.1).
const GENERATIONS: u8 = 63;

const _: () = assert!(((GENERATIONS as u32 - 1) << SLOT_BITS | (SLOTS_MAX as u32 - 1)) < 0xffff);

/// What a slot is to its I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Free,
    /// The only command.
    Whole,
    /// The first of a fused pair, whose second is in slot `mate`, and its answer, if it is there.
    First {
        mate: u16,
        answer: Option<Status>,
    },
    /// The second, of the first in slot `mate`.
    Second {
        mate: u16,
        answer: Option<Status>,
    },
}

#[derive(Debug)]
struct Slot {
    io: Option<Io>,
    /// When it was written, in nanoseconds of the clock.
    since: u64,
    part: Part,
    generation: u8,
    /// How often it was written anew.
    repeats: u8,
}

/// A command that has been in flight for too long. Identifiers come again: only with the time it is this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Late {
    /// Its identifier.
    pub(in super::super) cid: u16,
    /// When it was written, in nanoseconds of the clock.
    pub(in super::super) since: u64,
}

/// A completion's command.
#[derive(Debug)]
pub(super) enum Found {
    /// All of an I/O is answered.
    Ended(Io, Status),
    /// One half of a fused pair is.
    Half,
    /// There is no such command.
    Nothing,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u16>,
}

impl Slots {
    /// Of a queue with at most `depth` commands in flight.
    pub(super) fn new(depth: u16) -> Slots {
        let slot = || Slot { io: None, since: 0, part: Part::Free, generation: 0, repeats: 0 };
        Slots {
            slots: (0..depth.min(SLOTS_MAX)).map(|_| slot()).collect(),
            free: (0..depth.min(SLOTS_MAX)).rev().collect(),
        }
    }

    /// Commands in flight.
    #[inline]
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// A free slot for a command of its own.
    #[inline]
    pub(super) fn take_one(&mut self) -> Option<u16> {
        self.free.pop()
    }

    /// Two free slots for a fused pair.
    pub(super) fn take_two(&mut self) -> Option<(u16, u16)> {
        if self.free.len() < 2 {
            return None;
        }
        Some((self.free.pop()?, self.free.pop()?))
    }

    /// Fills a slot that was taken, and says the identifier of its command.
    #[inline]
    pub(super) fn fill(&mut self, index: u16, io: Io, now: u64) -> u16 {
        let slot = &mut self.slots[usize::from(index)];
        debug_assert!(slot.io.is_none());
        // There is nothing to drop, which the compiler does not know.
        std::mem::forget(slot.io.replace(io));
        slot.since = now;
        slot.part = Part::Whole;
        slot.repeats = 0;
        next_cid(slot, index)
    }

    /// As [`Slots::fill`], for the two commands of a fused pair.
    pub(super) fn fill_pair(&mut self, (first, second): (u16, u16), io: Io, now: u64) -> (u16, u16) {
        let cid = self.fill(first, io, now);
        self.slots[usize::from(first)].part = Part::First { mate: second, answer: None };
        let slot = &mut self.slots[usize::from(second)];
        (slot.since, slot.part) = (now, Part::Second { mate: first, answer: None });
        (cid, next_cid(slot, second))
    }

    fn find(&self, cid: u16) -> Option<usize> {
        let index = usize::from(cid & (SLOTS_MAX - 1));
        let slot = self.slots.get(index)?;
        (slot.part != Part::Free && slot.generation == (cid >> SLOT_BITS) as u8).then_some(index)
    }

    /// Whether a command of this identifier is in flight.
    pub(super) fn is_in_flight(&self, cid: u16) -> bool {
        self.find(cid).is_some()
    }

    /// The I/O that a command in flight is of, for whoever moves its data.
    pub(super) fn io_of_mut(&mut self, cid: u16) -> Option<&mut Io> {
        let index = self.find(cid)?;
        let owner = match self.slots[index].part {
            Part::Second { mate, .. } => usize::from(mate),
            _ => index,
        };
        self.slots[owner].io.as_mut()
    }

    /// Takes what a completion is of.
    #[inline]
    pub(super) fn answer(&mut self, cid: u16, status: Status) -> Found {
        let index = cid & (SLOTS_MAX - 1);
        let Some(slot) = self.slots.get_mut(usize::from(index)) else {
            return Found::Nothing;
        };
        if slot.part != Part::Whole || slot.generation != (cid >> SLOT_BITS) as u8 {
            return self.answer_half(cid, status);
        }
        slot.part = Part::Free;
        match slot.io.take() {
            Some(io) => {
                self.free.push(index);
                Found::Ended(io, status)
            }
            None => unreachable!("a command in flight has its I/O"),
        }
    }

    #[cold]
    fn answer_half(&mut self, cid: u16, status: Status) -> Found {
        let Some(index) = self.find(cid) else {
            return Found::Nothing;
        };
        let (first, second) = match &mut self.slots[index].part {
            Part::First { answer: Some(_), .. } | Part::Second { answer: Some(_), .. } => return Found::Nothing,
            Part::Whole | Part::Free => return Found::Nothing,
            Part::First { mate, answer } => {
                *answer = Some(status);
                (index, usize::from(*mate))
            }
            Part::Second { mate, answer } => {
                *answer = Some(status);
                (usize::from(*mate), index)
            }
        };
        let (Part::First { answer: Some(one), .. }, Part::Second { answer: Some(two), .. }) =
            (self.slots[first].part, self.slots[second].part)
        else {
            return Found::Half;
        };
        match self.release(first) {
            Some(io) => Found::Ended(io, pair_status(one, two)),
            None => unreachable!("a pair in flight has its I/O"),
        }
    }

    /// Frees the slots of an I/O, by its own or its leader's.
    fn release(&mut self, index: usize) -> Option<Io> {
        if let Part::First { mate, .. } = self.slots[index].part {
            self.slots[usize::from(mate)].part = Part::Free;
            self.free.push(mate);
        }
        self.slots[index].part = Part::Free;
        self.free.push(index as u16);
        self.slots[index].io.take()
    }

    /// Takes all I/Os, oldest first, with how often each was written anew. Only once the controller can touch none of their data.
    pub(super) fn take_all(&mut self) -> Vec<(Io, u8)> {
        let mut all: Vec<(u64, usize)> = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.io.is_some() {
                all.push((slot.since, index));
            }
        }
        all.sort_unstable();
        all.into_iter()
            .filter_map(|(_, index)| {
                let repeats = self.slots[index].repeats;
                self.release(index).map(|io| (io, repeats))
            })
            .collect()
    }

    /// Says that the command in a slot is there for the `repeats`th time.
    pub(super) fn set_repeats(&mut self, index: u16, repeats: u8) {
        self.slots[usize::from(index)].repeats = repeats;
    }

    /// The commands that have been in flight since `until` or longer, oldest first.
    pub(super) fn late(&self, until: u64) -> Vec<Late> {
        let mut late = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            if slot.part != Part::Free && slot.since <= until {
                late.push(Late { cid: cid(slot.generation, index as u16), since: slot.since });
            }
        }
        late.sort_unstable_by_key(|late| (late.since, late.cid));
        late
    }

    /// Whether a command is still in flight, and not another one under its identifier.
    pub(super) fn has(&self, late: Late) -> bool {
        self.find(late.cid).is_some_and(|index| self.slots[index].since == late.since)
    }
}

#[inline]
fn cid(generation: u8, index: u16) -> u16 {
    u16::from(generation) << SLOT_BITS | index
}

#[inline]
fn next_cid(slot: &mut Slot, index: u16) -> u16 {
    slot.generation = if slot.generation + 1 == GENERATIONS { 0 } else { slot.generation + 1 };
    cid(slot.generation, index)
}

#[cfg(test)]
mod tests;
