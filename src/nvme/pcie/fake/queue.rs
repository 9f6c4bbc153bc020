//! Queues: fetching commands, keeping them for as long as they take, posting completions.
//!
//! ```text
//!   doorbell or shadow --> fetch --> flights, by the time at which they are due --> carried out --> posted
//!                                         |  Abort, deletion of the queue               CQ full: waits for its head doorbell
//! ```

use std::collections::BTreeMap;
use std::sync::atomic::{Ordering, fence};

use super::doorbell::{Place, Shadow};
use super::faults::{Arrival, Fault};
use super::memory::{Dma, Holder, Spot};
use super::pointer::Pieces;
use super::worker::Next;
use super::{Inner, count};
use crate::nvme::spec::{AdminOpcode, Cqe, CqeDw3, Csts, Fuse, NvmOpcode, RwCdw12, Sqe, Status, StatusCode};
use crate::reactor::clock::Entropy;

/// What is to be done with a command once it is due.
#[derive(Clone, Debug)]
pub(super) struct Flight {
    pub(super) sqe: Sqe,
    /// The second of a fused pair.
    pub(super) mate: Option<Sqe>,
    pub(super) faults: Vec<Fault>,
    /// It is answered with this, and not carried out.
    pub(super) verdict: Option<Status>,
}

/// Data that is touched once more, though its command is answered.
#[derive(Debug)]
struct Touch {
    due: u64,
    cid: u16,
    address: u64,
    len: usize,
    writes: bool,
}

/// Where the entries of a submission queue are.
pub(super) enum Entries {
    Host(Spot),
    /// In the controller memory buffer, from this word of its BAR on.
    Here(usize),
}

/// A submission queue.
pub(super) struct Sq {
    pub(super) qid: u16,
    pub(super) cqid: u16,
    memory: Entries,
    entries: u16,
    head: u16,
    /// By the time at which they are due, and by order of arrival.
    pub(super) flights: BTreeMap<(u64, u64), Flight>,
    arrived: u64,
    /// Commands whose answer was lost: nothing finds them any more, but they are in use.
    in_use: Vec<u64>,
    touches: Vec<Touch>,
    pub(super) pieces: Pieces,
}

impl Sq {
    /// Bytes of an entry.
    pub(super) const LEN: usize = size_of::<Sqe>();

    pub(super) fn new(qid: u16, cqid: u16, memory: Entries, entries: u16) -> Sq {
        Sq {
            qid,
            cqid,
            memory,
            entries,
            head: 0,
            flights: BTreeMap::new(),
            arrived: 0,
            in_use: vec![0; 1 << 10],
            touches: Vec::new(),
            pieces: Pieces::new(),
        }
    }

    fn next(&mut self, inner: &Inner) -> Sqe {
        let at = usize::from(self.head) * Sq::LEN;
        let words: [u64; Sq::LEN / 8] = match &self.memory {
            Entries::Host(spot) => spot.block.load_words(spot.at + at),
            Entries::Here(start) => {
                count(&inner.counts.fetched_here);
                std::array::from_fn(|word| inner.buffer[start + at / 8 + word].load(Ordering::Acquire))
            }
        };
        self.head = if self.head + 1 == self.entries { 0 } else { self.head + 1 };
        zerocopy::transmute!(words.map(u64::to_le))
    }

    /// Marks an identifier; whether it was free.
    fn take_cid(&mut self, cid: u16) -> bool {
        let (word, bit) = (&mut self.in_use[usize::from(cid >> 6)], 1 << (cid & 63));
        let free = *word & bit == 0;
        *word |= bit;
        free
    }

    fn free_cid(&mut self, cid: u16) {
        self.in_use[usize::from(cid >> 6)] &= !(1 << (cid & 63));
    }

    fn keep(&mut self, due: u64, flight: Flight) {
        self.arrived += 1;
        self.flights.insert((due, self.arrived), flight);
    }

    /// Lets go of a command, because somebody else's answer says that it has ended.
    fn forget(&mut self, cid: u16) {
        if let Some(flight) = self.find(cid).and_then(|key| self.flights.remove(&key)) {
            self.free_cid(flight.sqe.cid.get());
            if let Some(mate) = flight.mate {
                self.free_cid(mate.cid.get());
            }
        }
    }

    fn find(&self, cid: u16) -> Option<(u64, u64)> {
        let is = |flight: &Flight| flight.sqe.cid.get() == cid || flight.mate.is_some_and(|mate| mate.cid.get() == cid);
        self.flights.iter().find(|(_, flight)| is(flight)).map(|(key, _)| *key)
    }

    /// Has a command be answered now, with this status, if it is not yet carried out.
    pub(super) fn abort(&mut self, cid: u16, status: Status) -> bool {
        let Some(key) = self.find(cid) else {
            return false;
        };
        if let Some(mut flight) = self.flights.remove(&key) {
            flight.verdict = Some(status);
            flight.faults.clear();
            self.keep(0, flight);
        }
        true
    }
}

/// A completion queue.
pub(super) struct Cq {
    qid: u16,
    memory: Spot,
    entries: u16,
    tail: u16,
    phase: bool,
    /// Interrupts are enabled.
    vector: Option<u16>,
    /// Completions that no interrupt has told of.
    untold: u32,
    /// Since when the first of them waits for others.
    gathering: Option<u64>,
}

impl Cq {
    /// Bytes of an entry.
    pub(super) const LEN: usize = size_of::<Cqe>();

    pub(super) fn new(qid: u16, memory: Spot, entries: u16, vector: Option<u16>) -> Cq {
        Cq { qid, memory, entries, tail: 0, phase: true, vector, untold: 0, gathering: None }
    }

    fn is_zeroed(&self) -> bool {
        (0..usize::from(self.entries)).all(|index| {
            let at = self.memory.at + index * Cq::LEN + CqeDw3::OFFSET;
            !CqeDw3(self.memory.block.load32(at)).phase()
        })
    }

    fn after(&self) -> u16 {
        if self.tail + 1 == self.entries { 0 } else { self.tail + 1 }
    }
}

/// A completion, as it is going to be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    pub(super) cid: u16,
    pub(super) status: Status,
    pub(super) result: u64,
}

impl Inner {
    // --- queues come and go ---

    pub(super) fn create_cq(&self, cq: Cq) {
        let qid = cq.qid;
        if !cq.is_zeroed() {
            self.breaks(|| format!("completion queue {qid} was created in memory with phase tags that are not 0"));
        }
        let place = &self.places[usize::from(qid)];
        place.head.store(0, Ordering::Relaxed);
        place.posted.store(0, Ordering::Relaxed);
        place.cq_entries.store(u32::from(cq.entries), Ordering::Release);
        *self.cqs[usize::from(qid)].lock() = Some(cq);
    }

    pub(super) fn create_sq(&self, sq: Sq) {
        let place = &self.places[usize::from(sq.qid)];
        place.tail.store(0, Ordering::Relaxed);
        place.fetched.store(0, Ordering::Relaxed);
        place.sq_entries.store(u32::from(sq.entries), Ordering::Release);
        let qid = usize::from(sq.qid);
        *self.sqs[qid].lock() = Some(sq);
    }

    /// Ends a submission queue; its commands are never carried out.
    pub(super) fn delete_sq(&self, qid: u16) {
        let place = &self.places[usize::from(qid)];
        place.sq_entries.store(0, Ordering::Release);
        let sq = self.sqs[usize::from(qid)].lock().take();
        drop(sq);
    }

    pub(super) fn delete_cq(&self, qid: u16) {
        let place = &self.places[usize::from(qid)];
        place.cq_entries.store(0, Ordering::Release);
        let cq = self.cqs[usize::from(qid)].lock().take();
        drop(cq);
    }

    /// Has the doorbells of an I/O queue be in memory from now on.
    pub(super) fn set_shadows(&self, qid: u16, shadows: [Option<Shadow>; 2]) {
        *self.places[usize::from(qid)].shadows.lock() = shadows;
    }

    pub(super) fn has_sq(&self, qid: u16) -> bool {
        self.places.get(usize::from(qid)).is_some_and(|place| place.sq_entries.load(Ordering::Acquire) != 0)
    }

    pub(super) fn has_cq(&self, qid: u16) -> bool {
        self.places.get(usize::from(qid)).is_some_and(|place| place.cq_entries.load(Ordering::Acquire) != 0)
    }

    // --- work ---

    /// Fetches at most `budget` commands of a queue, and carries out those that are due.
    pub(super) fn step(&self, qid: u16, holder: Holder<'_>, now: u64, entropy: &Entropy, budget: usize) -> Next {
        let place = &self.places[usize::from(qid)];
        place.rung.store(false, Ordering::Release);
        fence(Ordering::SeqCst);
        if self.gone() {
            return Next::Rung;
        }
        let change = if qid == 0 { self.progress(now) } else { None };
        if qid == 0 {
            self.memory.sweep();
        }
        let due = match &mut *self.sqs[usize::from(qid)].lock() {
            Some(sq) => match self.serve(place, sq, holder, now, entropy, budget) {
                Next::More => return Next::More,
                Next::At(due) => Some(due),
                Next::Rung => None,
            },
            None => None,
        };
        [change, due].into_iter().flatten().min().map_or(Next::Rung, Next::At)
    }

    fn serve(
        &self,
        place: &Place,
        sq: &mut Sq,
        holder: Holder<'_>,
        now: u64,
        entropy: &Entropy,
        budget: usize,
    ) -> Next {
        let mut left = budget;
        let shadow = place.shadows.lock()[0].clone();
        while left > 0 && self.live.load(Ordering::Acquire) {
            if let Some(shadow) = &shadow
                && !self.read_tail(place, sq, shadow)
            {
                break;
            }
            let tail = place.tail.load(Ordering::Acquire) as u16;
            if sq.head == tail {
                match &shadow {
                    Some(shadow) if !self.ask(sq.qid, shadow, tail) => continue,
                    _ => break,
                }
            }
            while left > 0 && sq.head != tail && self.live.load(Ordering::Acquire) {
                left -= 1;
                self.fetch(place, sq, tail, now, entropy);
                if sq.flights.len() == 1 && !self.carry_out_due(sq, holder, now) {
                    break;
                }
            }
        }
        if sq.qid == 0 {
            self.send_events(sq);
        }
        let room = self.carry_out_due(sq, holder, now);
        self.touch_again(sq, holder, now);
        let telling = self.tell(sq.cqid, now);
        if left == 0 {
            return Next::More;
        }
        let flight = if room { sq.flights.first_key_value().map(|((due, _), _)| *due) } else { None };
        let touch = sq.touches.iter().map(|touch| touch.due).min();
        match flight.into_iter().chain(touch).chain(telling).min() {
            Some(due) if due < u64::MAX && !self.is_fatal() => Next::At(due),
            _ => Next::Rung,
        }
    }

    /// Interrupts for completions that were posted, unless they are to wait for others; when they will have waited long enough.
    fn tell(&self, cqid: u16, now: u64) -> Option<u64> {
        let mut cq = self.cqs[usize::from(cqid)].lock();
        let cq = cq.as_mut().filter(|cq| cq.untold > 0)?;
        let vector = cq.vector?;
        if let Some(until) = self.gathers(vector, cq.untold, cq.gathering.unwrap_or(now), now) {
            cq.gathering.get_or_insert(now);
            return Some(until);
        }
        (cq.untold, cq.gathering) = (0, None);
        self.interrupt(vector);
        None
    }

    fn is_fatal(&self) -> bool {
        Csts(self.csts.load(Ordering::Acquire)).fatal()
    }

    /// Reads the tail as the driver has it in memory; `false` if it is none.
    fn read_tail(&self, place: &Place, sq: &Sq, shadow: &Shadow) -> bool {
        let value = shadow.value();
        let is_tail = value < u32::from(sq.entries);
        if is_tail {
            place.tail.store(value, Ordering::Relaxed);
        } else {
            self.breaks(|| {
                format!("{value} is in the shadow doorbell of queue {} with {} entries", sq.qid, sq.entries)
            });
        }
        is_tail
    }

    fn ask(&self, qid: u16, shadow: &Shadow, tail: u16) -> bool {
        let faults = self.faults.judge(Arrival::EventIndex(qid));
        faults.iter().for_each(|fault| self.strike(*fault));
        faults.contains(&Fault::Ignore) || shadow.ask(u32::from(tail))
    }

    fn fetch(&self, place: &Place, sq: &mut Sq, tail: u16, now: u64, entropy: &Entropy) {
        let sqe = sq.next(self);
        let mut flight = Flight { sqe, mate: None, faults: Vec::new(), verdict: None };
        self.arrive(sq, &sqe);
        match sqe.fuse() {
            Fuse::NONE => {}
            Fuse::FIRST if sq.qid != 0 && sq.head != tail => {
                let mate = sq.next(self);
                self.arrive(sq, &mate);
                if mate.fuse() == Fuse::SECOND {
                    flight.mate = Some(mate);
                } else {
                    flight.verdict = Some(StatusCode::ABORTED_MISSING_FUSED.dnr());
                    self.breaks(|| {
                        format!("queue {}: a first fused command is followed by none that is second", sq.qid)
                    });
                    let mate = Flight { sqe: mate, mate: None, faults: Vec::new(), verdict: None };
                    sq.keep(now, mate);
                }
            }
            _ => {
                flight.verdict = Some(StatusCode::ABORTED_MISSING_FUSED.dnr());
                self.breaks(|| format!("queue {}: half of a fused pair, as far as the tail says", sq.qid));
            }
        }
        place.fetched.store(u32::from(sq.head), Ordering::Release);
        if sq.qid == 0 && is_abort(&sqe) {
            // How many are on their way at a time (Base §5.1).
            let others = sq.flights.values().filter(|other| is_abort(&other.sqe)).count();
            if others > usize::from(self.options.acl_z) {
                flight.verdict = Some(StatusCode::ABORT_LIMIT_EXCEEDED.dnr());
            }
        }
        let mut after = if sq.qid == 0 { self.admin_ns(&sqe, entropy) } else { between(self.options.io_ns, entropy) };
        if self.faults.any() {
            flight.faults = self.faults.judge(event_of(sq.qid, &sqe));
            for fault in &flight.faults {
                self.strike(*fault);
                match *fault {
                    Fault::Late(more) => after = after.saturating_add(more),
                    Fault::Hang => after = u64::MAX,
                    Fault::Status(status) => flight.verdict = Some(status),
                    _ => {}
                }
            }
        }
        sq.keep(now.saturating_add(after), flight);
    }

    fn arrive(&self, sq: &mut Sq, sqe: &Sqe) {
        count(&self.counts.fetched);
        let (qid, cid) = (sq.qid, sqe.cid.get());
        if cid == u16::MAX {
            self.breaks(|| format!("queue {qid}: FFFFh is no command identifier"));
        }
        if !sq.take_cid(cid) {
            self.breaks(|| format!("queue {qid}: command identifier {cid:#06x} is in use"));
        }
    }

    fn admin_ns(&self, sqe: &Sqe, entropy: &Entropy) -> u64 {
        match sqe.admin_opcode() {
            AdminOpcode::FORMAT_NVM => self.options.format_ns,
            _ => between(self.options.admin_ns, entropy),
        }
    }

    /// Carries out what is due; `false`: the completion queue is full.
    fn carry_out_due(&self, sq: &mut Sq, holder: Holder<'_>, now: u64) -> bool {
        while let Some(entry) = sq.flights.first_entry()
            && entry.key().0 <= now
            && !self.gone()
            && !self.is_fatal()
        {
            let waiting = entry.get();
            // Two for a pair, and two more for answers that nobody asked for.
            let wanted = 1 + u16::from(waiting.mate.is_some()) + 2 * u16::from(!waiting.faults.is_empty());
            if !self.has_room(sq.cqid, wanted) {
                return false;
            }
            let flight = entry.remove();
            self.carry_out(sq, flight, holder, now);
        }
        true
    }

    fn carry_out(&self, sq: &mut Sq, flight: Flight, holder: Holder<'_>, now: u64) {
        let cid = flight.sqe.cid.get();
        let dma = Dma { memory: &self.memory, holder, qid: sq.qid, cid };
        if sq.qid == 0 {
            if let Some((status, result)) = self.admin_command(sq, &dma, &flight) {
                self.answer(sq, Answer { cid, status, result }, &flight.faults);
            }
            return;
        }
        let mut pieces = std::mem::take(&mut sq.pieces);
        if let Some(mate) = flight.mate {
            let (first, second) = match flight.verdict {
                Some(status) => (status, status),
                None => self.pair(&dma, &flight.sqe, &mate, &mut pieces),
            };
            self.answer(sq, Answer { cid, status: first, result: 0 }, &flight.faults);
            self.answer(sq, Answer { cid: mate.cid.get(), status: second, result: 0 }, &[]);
        } else {
            let half = flight.faults.contains(&Fault::Half);
            let (status, result) = match flight.verdict {
                Some(status) => (status, 0),
                None => self.io_command(&dma, &flight.sqe, half, &mut pieces),
            };
            self.answer(sq, Answer { cid, status, result }, &flight.faults);
            for fault in &flight.faults {
                if let (Fault::TouchAfter(ns), Some(&(address, len))) = (*fault, pieces.first()) {
                    let writes = flight.sqe.nvm_opcode() == NvmOpcode::READ;
                    sq.touches.push(Touch { due: now.saturating_add(ns), cid, address, len, writes });
                }
            }
        }
        sq.pieces = pieces;
    }

    fn touch_again(&self, sq: &mut Sq, holder: Holder<'_>, now: u64) {
        for touch in sq.touches.extract_if(.., |touch| touch.due <= now) {
            let dma = Dma { memory: &self.memory, holder, qid: sq.qid, cid: touch.cid };
            let mut bytes = vec![0x5a; touch.len];
            if touch.writes {
                dma.write(touch.address, &bytes);
            } else {
                dma.read(touch.address, &mut bytes);
            }
        }
    }

    // --- completions ---

    /// Whether so many completions surely fit: one that nobody asked for beside those that are due, at most two, or it would be written
    /// over one that was not taken.
    fn spares(&self, cqid: u16, wanted: u32) -> bool {
        let head = self.places[usize::from(cqid)].head.load(Ordering::Acquire);
        self.cqs[usize::from(cqid)].lock().as_ref().is_some_and(|cq| {
            let entries = u32::from(cq.entries);
            (u32::from(cq.tail) + entries - head) % entries + wanted < entries
        })
    }

    /// Whether `wanted` completions fit. If not, a head doorbell wakes who waits.
    fn has_room(&self, cqid: u16, wanted: u16) -> bool {
        let place = &self.places[usize::from(cqid)];
        let cq = self.cqs[usize::from(cqid)].lock();
        let Some(cq) = cq.as_ref() else {
            return false;
        };
        let entries = u32::from(cq.entries);
        let wanted = u32::from(wanted).min(entries - 1);
        let fits = || {
            let used = (u32::from(cq.tail) + entries - place.head.load(Ordering::Acquire)) % entries;
            used + wanted < entries
        };
        if fits() {
            return true;
        }
        let shadow = place.shadows.lock()[1].clone();
        place.starved.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        while let Some(shadow) = &shadow {
            let value = shadow.value();
            if value >= entries {
                self.breaks(|| format!("{value} is in the shadow of the head of completion queue {cqid} of {entries}"));
                return false;
            }
            place.head.store(value, Ordering::Release);
            if fits() {
                return true;
            }
            if shadow.ask(value) {
                return false;
            }
        }
        fits()
    }

    /// Answers a command, or lies.
    pub(super) fn answer(&self, sq: &mut Sq, answer: Answer, faults: &[Fault]) {
        if faults.contains(&Fault::Lost) {
            return;
        }
        sq.free_cid(answer.cid);
        let mut right = Cqe::with_result(answer.cid, answer.result);
        right.sqhd.set(sq.head);
        right.sqid.set(sq.qid);
        let (mut phase, mut twice) = (true, false);
        for fault in faults {
            match *fault {
                Fault::WrongCid(bits) => right.cid.set(answer.cid ^ bits),
                Fault::WrongSqid(bits) => right.sqid.set(sq.qid ^ bits),
                Fault::WrongHead(bits) => right.sqhd.set(sq.head ^ bits),
                Fault::WrongResult(bits) => right.result.set(answer.result ^ bits),
                Fault::WrongPhase => phase = false,
                Fault::Twice => twice = true,
                Fault::Result(result) => right.result.set(result),
                Fault::Extra(bits) if self.spares(sq.cqid, 3) => {
                    let mut extra = right;
                    extra.cid.set(answer.cid ^ bits);
                    sq.forget(extra.cid.get());
                    self.post(sq.cqid, &extra, answer.status, true);
                }
                _ => {}
            }
        }
        if right.cid.get() != answer.cid {
            sq.forget(right.cid.get());
        }
        let twice = twice && self.spares(sq.cqid, 3);
        self.post(sq.cqid, &right, answer.status, phase);
        if twice {
            self.post(sq.cqid, &right, answer.status, phase);
        }
    }

    fn post(&self, cqid: u16, cqe: &Cqe, status: Status, right_phase: bool) {
        let Some(cq) = &mut *self.cqs[usize::from(cqid)].lock() else {
            return;
        };
        let at = cq.memory.at + usize::from(cq.tail) * Cq::LEN;
        let block = &cq.memory.block;
        block.store64(at, cqe.result.get());
        block.store32(at + 8, u32::from(cqe.sqhd.get()) | u32::from(cqe.sqid.get()) << 16);
        // Last, with Release: the phase tag says that all before it is there, data too.
        block.store32(at + CqeDw3::OFFSET, CqeDw3::new(cqe.cid.get(), status, cq.phase == right_phase).0);
        cq.tail = cq.after();
        cq.untold += u32::from(cq.vector.is_some());
        if cq.tail == 0 {
            cq.phase = !cq.phase;
        }
        self.places[usize::from(cqid)].posted.store(u32::from(cq.tail), Ordering::Release);
        count(&self.counts.posted);
    }
}

fn is_abort(sqe: &Sqe) -> bool {
    sqe.admin_opcode() == AdminOpcode::ABORT
}

fn between((from, to): (u64, u64), entropy: &Entropy) -> u64 {
    if to > from { from + entropy.below((to - from).saturating_add(1)) } else { from }
}

fn event_of(qid: u16, sqe: &Sqe) -> Arrival {
    if qid == 0 {
        return Arrival::Admin(sqe.admin_opcode());
    }
    let (opcode, nsid) = (sqe.nvm_opcode(), sqe.nsid.get());
    match opcode {
        NvmOpcode::FLUSH | NvmOpcode::DATASET_MANAGEMENT => Arrival::Io { qid, opcode, nsid, slba: 0, blocks: 0 },
        NvmOpcode::ZONE_MANAGEMENT_SEND | NvmOpcode::ZONE_MANAGEMENT_RECEIVE => {
            Arrival::Io { qid, opcode, nsid, slba: sqe.slba(), blocks: 1 }
        }
        _ => {
            let blocks = u64::from(RwCdw12(sqe.cdw12.get()).nlb_z()) + 1;
            Arrival::Io { qid, opcode, nsid, slba: sqe.slba(), blocks }
        }
    }
}
