//! Disks of the simulated world: a volatile cache over sectors of 512 bytes.
//!
//! ```text
//!  sector:   base (durable)  <-  later versions, oldest first (in the cache; reads see the last)
//!  sync:     versions that were complete when it was issued become the base
//!  power cut: each sector keeps its base or any one of its later versions
//! ```
//! An operation takes effect some time between its start and its completion, perhaps in pieces, so reads that race with it see
//! a mix, and so does a power cut. Sectors are never torn themselves.

use std::collections::{BTreeMap, BTreeSet};

use super::ring::At;
use super::world::{Event, Object, State};
use crate::sys::descriptor::SimulatedFd;
use crate::sys::op::Op;

/// The unit of atomicity, in bytes.
pub const SECTOR: usize = 512;

const FALLOC_KEEP_SIZE: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | FALLOC_KEEP_SIZE;

/// How a disk is made.
#[derive(Clone, Copy, Debug)]
pub struct DiskOptions {
    /// Bytes.
    pub size: u64,
    /// What offsets, lengths and buffer addresses must be multiples of (EINVAL else), as with O_DIRECT; 1 for buffered I/O.
    pub align: usize,
    /// Whether holes can be punched and ranges zeroed; EOPNOTSUPP else.
    pub punch: bool,
}

/// Contents of a sector; `None` is zeros that take no space.
type Contents = Option<Box<[u8; SECTOR]>>;

struct Version {
    seq: u64,
    contents: Contents,
    /// A sync of it failed: no later sync makes it durable.
    lost: bool,
}

#[derive(Default)]
struct Sector {
    base: Contents,
    later: Vec<Version>,
}

impl Sector {
    fn current(&self) -> &Contents {
        self.later.last().map_or(&self.base, |version| &version.contents)
    }

    /// Makes the last version up to `seq` durable; those before it are history.
    fn harden(&mut self, seq: u64) {
        let Some(last) = self.later.iter().rposition(|v| v.seq <= seq && !v.lost) else { return };
        let chosen = self.later.drain(..=last).next_back();
        if let Some(version) = chosen {
            self.base = version.contents;
        }
    }
}

/// See the module's head.
pub(super) struct Disk {
    pub(super) machine: usize,
    options: DiskOptions,
    size: u64,
    durable_size: u64,
    sectors: BTreeMap<u64, Sector>,
    dirty: BTreeSet<u64>,
    bad: BTreeSet<u64>,
    seq: u64,
    pub(super) full: bool,
    pub(super) fail_sync: bool,
}

impl Disk {
    pub(super) fn new(machine: usize, options: DiskOptions) -> Disk {
        Disk {
            machine,
            options,
            size: options.size,
            durable_size: options.size,
            sectors: BTreeMap::new(),
            dirty: BTreeSet::new(),
            bad: BTreeSet::new(),
            seq: 0,
            full: false,
            fail_sync: false,
        }
    }

    pub(super) fn spoil(&mut self, sector: u64) {
        self.bad.insert(sector);
    }

    /// Fills `into` from `offset`, up to the end; how many bytes.
    pub(super) fn read(&self, offset: u64, into: &mut [u8]) -> usize {
        let len = self.size.saturating_sub(offset).min(into.len() as u64) as usize;
        into[..len].fill(0);
        for (sector, at, range) in pieces(offset, len) {
            if let Some(contents) = self.sectors.get(&sector).and_then(|s| s.current().as_deref()) {
                let count = range.len();
                into[range].copy_from_slice(&contents[at..at + count]);
            }
        }
        len
    }

    /// Stores bytes, or zeros for `None`, as new versions.
    fn store(&mut self, offset: u64, len: usize, bytes: Option<&[u8]>) {
        self.seq += 1;
        for (number, at, range) in pieces(offset, len) {
            self.bad.remove(&number);
            let whole = range.len() == SECTOR;
            if bytes.is_none() && self.sectors.get(&number).is_none_or(|s| s.current().is_none()) {
                continue;
            }
            let sector = self.sectors.entry(number).or_default();
            let contents = match bytes {
                None if whole => None,
                _ => {
                    let mut contents = sector.current().clone().unwrap_or_else(|| Box::new([0; SECTOR]));
                    let part = &mut contents[at..at + range.len()];
                    match bytes {
                        Some(bytes) => part.copy_from_slice(&bytes[range]),
                        None => part.fill(0),
                    }
                    Some(contents)
                }
            };
            sector.later.push(Version { seq: self.seq, contents, lost: false });
            self.dirty.insert(number);
        }
        if bytes.is_some() {
            self.size = self.size.max(offset + len as u64);
        }
    }

    /// Zeros of any length: only sectors that hold something are touched.
    fn zero(&mut self, offset: u64, len: u64) {
        let len = len.min(self.size.saturating_sub(offset));
        let (first, end) = (offset / SECTOR as u64, (offset + len).div_ceil(SECTOR as u64));
        let held: Vec<u64> = self.sectors.range(first..end).map(|(number, _)| *number).collect();
        self.bad.retain(|sector| !(first..end).contains(sector));
        for number in held {
            let start = (number * SECTOR as u64).max(offset);
            let stop = ((number + 1) * SECTOR as u64).min(offset + len);
            self.store(start, (stop - start) as usize, None);
        }
    }

    fn harden_all(&mut self, seq: u64) {
        for number in std::mem::take(&mut self.dirty) {
            self.harden(number, seq);
        }
        self.durable_size = self.size;
    }

    fn harden(&mut self, number: u64, seq: u64) {
        if let Some(sector) = self.sectors.get_mut(&number) {
            sector.harden(seq);
            if !sector.later.is_empty() {
                self.dirty.insert(number);
            } else {
                self.dirty.remove(&number);
                if sector.base.is_none() {
                    self.sectors.remove(&number);
                }
            }
        }
    }

    fn harden_range(&mut self, offset: u64, len: usize, seq: u64) {
        for (number, _, _) in pieces(offset, len) {
            self.harden(number, seq);
        }
        self.durable_size = self.durable_size.max(offset + len as u64);
    }

    /// A failed sync of sectors: what it covered counts as clean and will never be written.
    fn lose(&mut self, numbers: impl Iterator<Item = u64>, seq: u64) {
        for number in numbers {
            for version in self.sectors.get_mut(&number).into_iter().flat_map(|sector| &mut sector.later) {
                version.lost |= version.seq <= seq;
            }
        }
    }

    /// Whether a write would need space that is not allocated.
    fn needs_space(&self, offset: u64, len: usize) -> bool {
        pieces(offset, len).any(|(number, _, _)| self.sectors.get(&number).is_none_or(|s| s.current().is_none()))
    }
}

/// The sectors of a range: number, first byte within, and the part of the range.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == len {
            return None;
        }
        let at = offset + done as u64;
        let within = (at % SECTOR as u64) as usize;
        let count = (SECTOR - within).min(len - done);
        done += count;
        Some((at / SECTOR as u64, within, done - count..done))
    })
}

impl State {
    /// An operation reaches a disk: it is judged, and its work is planned.
    pub(super) fn disk_takes(&mut self, at: At, number: usize) {
        let failing = self.happens(self.rates.disk_error);
        let short = self.happens(self.rates.short_io);
        let disk = &self.disks[number];
        let (align, seq) = (disk.options.align, disk.seq);
        let Some(flight) = self.rings[at.ring].flight_mut(at.token) else { return };
        let misaligned = |offset: u64, buf: &hugepages::Buf| {
            !offset.is_multiple_of(align as u64)
                || !buf.len().is_multiple_of(align)
                || !buf.address().is_multiple_of(align)
        };
        let refused = match &flight.op {
            Op::Read { offset, buf, .. } | Op::Write { offset, buf, .. } if misaligned(*offset, buf) => libc::EINVAL,
            Op::Write { offset, buf, .. } if disk.full && disk.needs_space(*offset, buf.len()) => libc::ENOSPC,
            Op::Allocate { len: 0, .. } => libc::EINVAL,
            Op::Allocate { mode, .. } if !can_allocate(disk, *mode) => libc::EOPNOTSUPP,
            Op::Allocate { mode: 0, offset, len, .. } if disk.full && offset + len > disk.size => libc::ENOSPC,
            _ if failing => libc::EIO,
            _ => 0,
        };
        let len = match &flight.op {
            Op::Read { buf, .. } | Op::Write { buf, .. } => buf.len(),
            _ => 0,
        };
        flight.goal = len;
        flight.seq = seq;
        if refused != 0 {
            return self.finish(at, -refused, None);
        }
        if short && len > align {
            let part = self.portion(len) / align * align;
            if let Some(flight) = self.flight(at) {
                flight.goal = part.max(align);
            }
        }
        let delay = self.disk_delay();
        self.after(delay, Event::Disk { at });
    }

    fn disk_delay(&self) -> u64 {
        if self.happens(self.rates.slow) { 1_000_000 + self.pick(20_000_000) } else { 8_000 + self.pick(200_000) }
    }

    /// A disk works on an operation: the whole of it or a piece, and at the end it completes.
    pub(super) fn disk_works(&mut self, at: At) {
        let split = self.happens(self.rates.split);
        let Some(flight) = self.flight(at) else { return };
        let left = flight.goal - flight.progress;
        let number = flight.fd.as_ref().map_or(0, SimulatedFd::number);
        let Object::Disk(number) = self.objects[number] else { unreachable!("a file operation is on a disk") };
        let step = if split && left > SECTOR { self.portion(left).next_multiple_of(SECTOR).min(left) } else { left };
        match self.disk_step(at, number, step) {
            Some(result) => self.finish(at, result, None),
            None => {
                let delay = 1 + self.disk_delay() / 16;
                self.after(delay, Event::Disk { at });
            }
        }
    }

    /// Lets `step` bytes of an operation take effect; its result if that was the last of it.
    fn disk_step(&mut self, at: At, number: usize, step: usize) -> Option<i32> {
        let disk = &mut self.disks[number];
        let flight = self.rings[at.ring].flight_mut(at.token)?;
        let (progress, goal) = (flight.progress, flight.goal);
        let range = progress..progress + step;
        match &mut flight.op {
            Op::Read { offset, buf, .. } => {
                let from = *offset + progress as u64;
                if pieces(from, step).any(|(sector, _, _)| disk.bad.contains(&sector)) {
                    return Some(-libc::EIO);
                }
                let got = disk.read(from, &mut buf[range.clone()]);
                self.trace.mix_bytes(&buf[progress..progress + got]);
                flight.progress += got;
                (got < step || flight.progress == goal).then_some(flight.progress as i32)
            }
            Op::Write { offset, buf, durable, .. } => {
                if step > 0 {
                    disk.store(*offset + progress as u64, step, Some(&buf[range.clone()]));
                }
                self.trace.mix_bytes(&buf[range]);
                flight.progress += step;
                if flight.progress < goal {
                    return None;
                }
                if *durable && std::mem::take(&mut disk.fail_sync) {
                    let seq = disk.seq;
                    disk.lose(pieces(*offset, goal).map(|(number, _, _)| number), seq);
                    return Some(-libc::EIO);
                }
                if *durable {
                    disk.harden_range(*offset, goal, disk.seq);
                }
                Some(goal as i32)
            }
            Op::Sync { .. } => {
                if std::mem::take(&mut disk.fail_sync) {
                    let dirty = disk.dirty.clone();
                    disk.lose(dirty.into_iter(), flight.seq);
                    return Some(-libc::EIO);
                }
                disk.harden_all(flight.seq);
                Some(0)
            }
            Op::Allocate { mode, offset, len, .. } => {
                if *mode & FALLOC_KEEP_SIZE == 0 {
                    disk.size = disk.size.max(*offset + *len);
                }
                if *mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 {
                    disk.zero(*offset, *len);
                }
                Some(0)
            }
            _ => unreachable!("a disk got an operation on a socket"),
        }
    }

    /// The process of an operation is gone. What a disk has got, it may or may not finish.
    pub(super) fn disk_abandons(&mut self, at: At, number: usize) {
        let Some(flight) = self.flight(at) else { return };
        let (left, writes) = (flight.goal - flight.progress, matches!(flight.op, Op::Write { .. }));
        if writes && left > 0 && self.pick(2) == 0 {
            let step = self.portion(left).next_multiple_of(SECTOR).min(left);
            // No completion: nobody is there to get it.
            let _ = self.disk_step(at, number, step);
        }
    }

    /// The power of a disk fails: of every sector the durable contents or any later one remain.
    pub(super) fn disk_loses_power(&mut self, number: usize) {
        let disk = &mut self.disks[number];
        for sector in std::mem::take(&mut disk.dirty) {
            let Some(sector) = disk.sectors.get_mut(&sector) else { continue };
            let choice = self.chance.below(sector.later.len() as u64 + 1) as usize;
            if let Some(version) = sector.later.drain(..).nth(choice) {
                sector.base = version.contents;
            }
        }
        // A size that was not synced may or may not have got there.
        if self.chance.below(2) == 0 {
            disk.size = disk.durable_size;
        }
        disk.durable_size = disk.size;
        let size = disk.size;
        drop(disk.sectors.split_off(&size.div_ceil(SECTOR as u64)));
        self.note("power lost, disk", number, size as i64);
    }
}

fn can_allocate(disk: &Disk, mode: i32) -> bool {
    let zero = libc::FALLOC_FL_ZERO_RANGE;
    match mode {
        0 | FALLOC_KEEP_SIZE => true,
        mode if mode == PUNCH || mode == zero || mode == zero | FALLOC_KEEP_SIZE => disk.options.punch,
        _ => false,
    }
}
