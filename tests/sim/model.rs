//! What a volume may contain: for each sector the values that reads may give now, and that a crash may leave.
//!
//! Every write has a number of its own, which its sectors contain, so that a sector read names the write it came from. A
//! *version* of a sector is one write to it:
//!
//! ```text
//!   start ......... end ......... dead ......... forgotten
//!   submitted       answered      a write that began after its end has succeeded, or was read: no read gives it any more
//!                                                a durable one has: no crash brings it back
//! ```
//! Times are counted by events of the model. Writes in flight at one time may take effect in either order; one that failed may
//! have taken effect or not; one whose connection was lost may still do so ([`Model::resolve`],
//! [`Model::settle`]).

use std::cell::RefCell;

/// The unit in which simulated disks are atomic.
pub const SECTOR: usize = 512;
const NEVER: u64 = u64::MAX;
/// The number of the write that made all the zeros at the beginning, and the value of every write of zeros.
const ZEROES: u64 = 0;

#[derive(Clone, Copy, Debug)]
struct Version {
    /// What the sector contains: the write's number, or [`ZEROES`].
    value: u64,
    /// The write.
    write: u64,
    start: u64,
    end: u64,
    dead: u64,
    /// It was answered with success.
    succeeded: bool,
    /// No crash undoes it.
    durable: bool,
    /// It was in a cache that was lost: no flush that begins later makes it durable.
    unsure: bool,
    /// No crash brings it back.
    replaced_durably: bool,
    /// A compare and write has replaced exactly this one.
    consumed: bool,
    /// A read gave it, and surely it.
    seen: bool,
}

/// What an operation on a volume is to the model.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Of the first sector.
    first: usize,
    count: usize,
    /// When it was submitted.
    start: u64,
    /// The number of a write; 0 for what does not write.
    write: u64,
    epoch: u64,
}

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With success.
    Done {
        /// And is durable.
        durable: bool,
    },
    /// With an error that leaves open how far it came.
    Perhaps,
    /// With an error that promises that nothing was written.
    Untouched,
    /// Without an answer: it may take effect later.
    Lost,
}

/// How the machine of the volume failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process ended: what it had written stays.
    Process,
    /// The power failed: what was not durable may be lost.
    Power,
}

struct State {
    sectors: Vec<Vec<Version>>,
    now: u64,
    writes: u64,
    /// Begun before this, an operation's end means nothing any more.
    epoch: u64,
    /// Start times of operations in flight.
    in_flight: Vec<u64>,
    /// When the volume has last lost what it had cached.
    lost_at: u64,
}

/// See the module's head.
pub struct Model {
    state: RefCell<State>,
    /// In the upper bits of all values, so that no two volumes have one in common.
    volume: u64,
    /// Acknowledged writes may be lost until a flush.
    volatile: bool,
}

/// The contents of a sector that holds `value`.
pub fn fill(value: u64, sector: u64, into: &mut [u8]) {
    if value == ZEROES {
        return into.fill(0);
    }
    let (words, _) = into.as_chunks_mut::<8>();
    for (index, word) in words.iter_mut().enumerate() {
        *word = match index {
            0 => value,
            1 => sector,
            _ => (value ^ (sector << 20) ^ index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        }
        .to_le_bytes();
    }
}

/// The value that a sector holds.
///
/// # Errors
/// If it is none that was ever written to that place.
fn value_of(bytes: &[u8], sector: u64) -> Result<u64, String> {
    let value = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
    let mut whole = [0; SECTOR];
    fill(value, sector, &mut whole);
    match (0..SECTOR).find(|at| bytes[*at] != whole[*at]) {
        None => Ok(value),
        Some(at) => {
            let place = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
            Err(format!("sector {sector} is torn or foreign from byte {at} on: begins with {value:#x}, {place}"))
        }
    }
}

impl Model {
    /// Volume number `volume`, of zeros.
    pub fn new(volume: u64, size: u64, volatile: bool) -> Model {
        let zeros = Version {
            value: ZEROES,
            write: NEVER,
            start: 0,
            end: 0,
            dead: NEVER,
            succeeded: true,
            durable: true,
            unsure: false,
            replaced_durably: false,
            consumed: false,
            seen: false,
        };
        let sectors = vec![vec![zeros]; size as usize / SECTOR];
        let state = State { sectors, now: 1, writes: 0, epoch: 0, in_flight: Vec::new(), lost_at: 0 };
        Model { state: RefCell::new(state), volume: (volume + 1) << 48, volatile }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        (self.state.borrow().sectors.len() * SECTOR) as u64
    }

    /// Something that does not write begins.
    pub fn begin(&self, offset: u64, len: u64) -> Step {
        let state = &mut *self.state.borrow_mut();
        state.now += 1;
        state.in_flight.push(state.now);
        Step {
            first: offset as usize / SECTOR,
            count: len as usize / SECTOR,
            start: state.now,
            write: 0,
            epoch: state.epoch,
        }
    }

    /// A write begins: of zeros, or of a value of its own.
    pub fn begin_write(&self, offset: u64, len: u64, zeros: bool) -> Step {
        let mut step = self.begin(offset, len);
        let state = &mut *self.state.borrow_mut();
        state.writes += 1;
        step.write = self.volume | state.writes;
        let version = Version {
            value: if zeros { ZEROES } else { step.write },
            write: step.write,
            start: step.start,
            end: NEVER,
            dead: NEVER,
            succeeded: false,
            durable: false,
            unsure: false,
            replaced_durably: false,
            consumed: false,
            seen: false,
        };
        for sector in &mut state.sectors[step.first..step.first + step.count] {
            sector.push(version);
        }
        step
    }

    /// The data of a write that begins.
    pub fn payload(&self, step: &Step) -> Vec<u8> {
        let mut bytes = vec![0; step.count * SECTOR];
        for (index, sector) in bytes.chunks_exact_mut(SECTOR).enumerate() {
            fill(step.write, (step.first + index) as u64, sector);
        }
        bytes
    }

    /// Data that a range may hold now: what was written last and answered, or for sector `other` something else.
    pub fn guess(&self, offset: u64, len: u64, other: Option<u64>) -> Vec<u8> {
        let state = self.state.borrow();
        let first = offset as usize / SECTOR;
        let mut bytes = vec![0; len as usize];
        for (index, into) in bytes.chunks_exact_mut(SECTOR).enumerate() {
            let number = first + index;
            let alive = state.sectors[number].iter().filter(|v| v.dead == NEVER);
            let last = alive.max_by_key(|v| (v.succeeded, v.end, v.write)).expect("a sector has a version");
            fill(last.value, number as u64, into);
            if other == Some(index as u64) {
                into[SECTOR - 1] ^= 1;
            }
        }
        bytes
    }

    /// A write has ended.
    ///
    /// # Errors
    /// If it was promised that nothing was written, and a read had given it.
    pub fn end_write(&self, step: &Step, ended: Ended) -> Result<(), String> {
        let state = &mut *self.state.borrow_mut();
        if step.epoch != state.epoch {
            return Ok(());
        }
        state.over(step);
        let now = state.now;
        let (volatile, lost_at) = (self.volatile, state.lost_at);
        for (index, sector) in state.sectors[step.first..step.first + step.count].iter_mut().enumerate() {
            let at = sector.iter().position(|v| v.write == step.write).expect("a write in flight is a version");
            match ended {
                Ended::Lost => {}
                Ended::Perhaps => sector[at].end = now,
                Ended::Untouched => {
                    if sector[at].seen {
                        let number = step.first + index;
                        return Err(format!("sector {number}: a write that was refused, {:#x}, was read", step.write));
                    }
                    sector.remove(at);
                }
                Ended::Done { durable } => {
                    sector[at].end = now;
                    sector[at].succeeded = true;
                    if durable || !volatile {
                        harden(sector, at, now);
                    }
                    if step.start > lost_at {
                        for other in sector.iter_mut().filter(|v| v.end < step.start && v.dead == NEVER) {
                            other.dead = now;
                        }
                    } else {
                        // It may have been done before the cache was lost, and be lost with it.
                        sector[at].unsure = !sector[at].durable;
                    }
                }
            }
        }
        state.tidy(step);
        Ok(())
    }

    /// A flush has ended with success: what was answered before it began is durable.
    pub fn end_flush(&self, step: &Step) {
        let state = &mut *self.state.borrow_mut();
        if step.epoch != state.epoch {
            return;
        }
        state.over(step);
        let (now, lost_at) = (state.now, state.lost_at);
        for sector in &mut state.sectors {
            for at in 0..sector.len() {
                let version = &sector[at];
                // One that was in flight when the cache was lost came before that, if it succeeds.
                let covered = step.start <= lost_at || !version.unsure;
                if version.succeeded && version.end < step.start && !version.durable && covered {
                    harden(sector, at, now);
                }
            }
        }
        let all = Step { first: 0, count: state.sectors.len(), ..*step };
        state.tidy(&all);
    }

    /// Whether it began after the last loss of the cache.
    pub fn is_after_loss(&self, step: &Step) -> bool {
        step.start > self.state.borrow().lost_at
    }

    /// Something that has no effect has ended without an answer that counts.
    pub fn end_unheard(&self, step: &Step) {
        let state = &mut *self.state.borrow_mut();
        if step.epoch == state.epoch {
            state.over(step);
        }
    }

    /// A read has given `bytes`, or a compare found them.
    ///
    /// # Errors
    /// The first sector that cannot contain that.
    pub fn end_read(&self, step: &Step, bytes: &[u8]) -> Result<(), String> {
        self.end_compare_and_write(step, bytes, false)
    }

    /// As [`Model::end_read`] for the compare of a compare and write that succeeded: what it replaced is replaced once. The
    /// write itself ends by [`Model::end_write`].
    ///
    /// # Errors
    /// As [`Model::end_read`].
    pub fn end_compare_and_write(&self, step: &Step, bytes: &[u8], consumes: bool) -> Result<(), String> {
        let state = &mut *self.state.borrow_mut();
        if step.epoch != state.epoch {
            return Ok(());
        }
        if !consumes {
            state.over(step);
        }
        let now = state.now;
        // What was there before a cache was lost may be there no more, and what was over there again.
        let is_sure = step.start > state.lost_at;
        for (index, bytes) in bytes.chunks_exact(SECTOR).enumerate() {
            let number = step.first + index;
            let value = value_of(bytes, number as u64)?;
            let sector = &mut state.sectors[number];
            let mut oldest = NEVER;
            let given = |v: &&mut Version| v.value == value && v.dead > step.start && v.write != step.write;
            for version in sector.iter_mut().filter(given) {
                oldest = oldest.min(version.start);
                // Zeros may be those of any of several writes.
                version.seen |= value != ZEROES;
                if consumes && is_sure && value != ZEROES && std::mem::replace(&mut version.consumed, true) {
                    return Err(format!("sector {number}: {value:#x} was replaced by two compare and writes"));
                }
            }
            if oldest == NEVER {
                return Err(format!("sector {number} holds {value:#x}, begun at {}: {sector:#?}", step.start));
            }
            // It was there at some time until now, so what was over before it began is gone.
            for version in sector.iter_mut().filter(|v| is_sure && v.end < oldest && v.dead == NEVER) {
                version.dead = now;
            }
        }
        if !consumes {
            state.tidy(step);
        }
        Ok(())
    }

    /// A compare with `bytes` has found a difference.
    ///
    /// # Errors
    /// If there can have been none.
    pub fn end_miscompare(&self, step: &Step, bytes: &[u8]) -> Result<(), String> {
        let state = &mut *self.state.borrow_mut();
        if step.epoch != state.epoch {
            return Ok(());
        }
        if step.write == 0 {
            state.over(step);
        }
        let differs = bytes.chunks_exact(SECTOR).enumerate().any(|(index, bytes)| {
            let number = step.first + index;
            let value = value_of(bytes, number as u64);
            let mut possible = state.sectors[number].iter().filter(|v| v.dead > step.start && v.write != step.write);
            possible.any(|v| Ok(v.value) != value)
        });
        if differs { Ok(()) } else { Err(format!("a miscompare of what is there for sure: {step:?}")) }
    }

    /// A write whose connection was lost is over: the controller has been reset or shut down since.
    pub fn resolve(&self, step: &Step) {
        let state = &mut *self.state.borrow_mut();
        if step.epoch == state.epoch {
            state.now += 1;
            for sector in &mut state.sectors[step.first..step.first + step.count] {
                for version in sector.iter_mut().filter(|v| v.write == step.write) {
                    version.end = version.end.min(state.now);
                }
            }
        }
    }

    /// Nothing is in flight any more, answered or not.
    pub fn settle(&self) {
        self.end_all(|_| true);
    }

    /// The process or the machine that had the volume is gone; [`Model::found`] follows.
    pub fn crash(&self, crash: Crash) {
        self.end_all(|version| if crash == Crash::Power { !version.replaced_durably } else { version.dead == NEVER });
        if crash == Crash::Power {
            let state = &mut *self.state.borrow_mut();
            for version in state.sectors.iter_mut().flatten().filter(|v| !v.replaced_durably) {
                version.dead = NEVER;
            }
        }
    }

    /// The volume has lost what it had cached, and goes on: each sector may be as it is, or as it was at any time since it was last durable. No
    /// flush that succeeds from now on is about what was written before.
    pub fn lose_cache(&self) {
        let state = &mut *self.state.borrow_mut();
        state.now += 1;
        state.lost_at = state.now;
        for version in state.sectors.iter_mut().flatten().filter(|v| !v.replaced_durably) {
            version.dead = NEVER;
            version.consumed = false;
            version.unsure = !version.durable;
        }
        state.now += 1;
    }

    fn end_all(&self, possible: impl Fn(&Version) -> bool) {
        let state = &mut *self.state.borrow_mut();
        state.now += 1;
        state.epoch += 1;
        state.in_flight.clear();
        let now = state.now;
        for version in state.sectors.iter_mut().flatten() {
            version.end = version.end.min(now);
            version.consumed = false;
            if !possible(version) {
                version.dead = version.dead.min(now);
            }
        }
        state.now += 1;
    }

    /// The volume was lost with its process: zeros again.
    pub fn forget(&self) {
        let size = self.size();
        let (epoch, now) = (self.state.borrow().epoch, self.state.borrow().now);
        let fresh = Model::new(0, size, self.volatile).state.into_inner();
        let state = &mut *self.state.borrow_mut();
        state.sectors = fresh.sectors;
        state.in_flight.clear();
        (state.epoch, state.now) = (epoch + 1, now + 1);
    }

    /// While nobody writes, a range was found to hold `bytes`: that is what it holds. `lasting`: and no crash undoes it.
    ///
    /// # Errors
    /// The first sector that cannot contain that.
    pub fn found(&self, offset: u64, bytes: &[u8], lasting: bool) -> Result<(), String> {
        let state = &mut *self.state.borrow_mut();
        assert!(state.in_flight.is_empty(), "somebody is at work");
        state.now += 1;
        let now = state.now;
        for (index, bytes) in bytes.chunks_exact(SECTOR).enumerate() {
            let number = offset as usize / SECTOR + index;
            let value = value_of(bytes, number as u64)?;
            let sector = &mut state.sectors[number];
            let Some(same) = sector.iter().rfind(|v| v.value == value && v.dead == NEVER).copied() else {
                return Err(format!("sector {number} was found to hold {value:#x}: {sector:#?}"));
            };
            for version in sector.iter_mut().filter(|v| v.dead == NEVER) {
                version.dead = now;
            }
            state.writes += 1;
            let write = self.volume | 1 << 47 | state.writes;
            let version = Version { write, start: now, end: now, dead: NEVER, succeeded: true, seen: true, ..same };
            sector.push(Version { durable: false, unsure: false, replaced_durably: false, ..version });
            if lasting || !self.volatile {
                let at = sector.len() - 1;
                harden(sector, at, now);
                sector.retain(|v| !v.replaced_durably);
            }
        }
        state.now += 1;
        Ok(())
    }
}

/// No crash undoes version `at` any more, or brings back what was over before it began.
fn harden(sector: &mut [Version], at: usize, now: u64) {
    (sector[at].durable, sector[at].unsure) = (true, false);
    let start = sector[at].start;
    for other in sector.iter_mut().filter(|v| v.end < start) {
        other.replaced_durably = true;
        // After the loss of a cache it could have been back.
        other.dead = other.dead.min(now);
    }
}

impl State {
    /// An operation has ended.
    fn over(&mut self, step: &Step) {
        self.now += 1;
        let at = self.in_flight.iter().position(|start| *start == step.start).expect("it was begun");
        self.in_flight.swap_remove(at);
    }

    /// Forgets versions that neither an operation in flight nor a crash can bring up.
    fn tidy(&mut self, step: &Step) {
        let oldest = self.in_flight.iter().copied().min().unwrap_or(NEVER);
        for sector in &mut self.sectors[step.first..step.first + step.count] {
            if sector.len() > 4 {
                sector.retain(|v| !v.replaced_durably || v.dead > oldest || v.dead == NEVER);
            }
        }
    }
}
