//! What a device with zones must do beyond: states, write pointers, limits and reports, against a model of them.

use std::rc::Rc;

use zerocopy::FromBytes;

use super::rig::{Ask, Done, Outcome, Rig, Shape, ensure, first_difference, pattern};
use crate::bdev::{ZoneRecord, ZoneState, Zones};
use crate::limits::TRANSFER_MAX;
use crate::reactor::clock::Entropy;
use crate::reactor::io::{IoOp, IoStatus};

const MANAGE: [IoOp; 4] = [IoOp::ZoneOpen, IoOp::ZoneClose, IoOp::ZoneFinish, IoOp::ZoneReset];
/// Zones that the random operations work on, at most: few, so that they become full.
const WINDOW: u64 = 9;
/// Tasks of a reactor that append to the same zone.
const WRITERS: u64 = 4;
/// Blocks of one of their appends, at most.
const APPEND_BLOCKS: u64 = 4;

/// One zone as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Zone {
    start: u64,
    capacity: u64,
    state: ZoneState,
    /// Bytes written; as many as can be in a full zone, whatever was written.
    written: u64,
}

impl Zone {
    fn of(record: &ZoneRecord) -> Zone {
        let (start, capacity, state) = (record.start.get(), record.capacity.get(), record.state);
        let pointer = record.write_pointer.get();
        let written = if pointer == ZoneRecord::NO_POINTER { capacity } else { pointer - start };
        Zone { start, capacity, state, written }
    }

    fn pointer(&self) -> u64 {
        self.start + self.written
    }
}

fn zones_of(rig: &Rig) -> Zones {
    rig.handle.common().traits().zones.expect("a device with zones")
}

/// All zones from the one at `start` on, by a report with room for `room` bytes of records.
async fn report(rig: &Rig, start: u64, room: usize) -> Result<Vec<ZoneRecord>, String> {
    // What the device leaves as it is shows.
    let done = rig.expect(Ask::new(IoOp::ZoneReport, start, room as u64), &vec![0xA5; room], IoStatus::Success).await?;
    let (records, rest) = done.data.split_at(room / ZoneRecord::LEN * ZoneRecord::LEN);
    ensure!(rest.iter().all(|byte| *byte == 0), "a report says something where no record fits");
    let records: Vec<ZoneRecord> =
        records.chunks(ZoneRecord::LEN).map(|bytes| ZoneRecord::read_from_bytes(bytes).expect("a record")).collect();
    let there = records.iter().take_while(|record| record.state.0 != 0).count();
    ensure!(records[there..].iter().all(|record| *record == ZoneRecord::default()), "behind a report are no zeros");
    let size = zones_of(rig).size;
    for (record, start) in records[..there].iter().zip((start..).step_by(size as usize)) {
        let pointer = record.write_pointer.get();
        let valid = match record.state {
            ZoneState::EMPTY => pointer == start,
            state if state.is_active() => (start..start + record.capacity.get()).contains(&pointer),
            _ => pointer == ZoneRecord::NO_POINTER,
        };
        ensure!(
            record.start.get() == start && record.capacity.get() <= size && valid && record.state.name().is_some(),
            "the zone at {start} is reported as {record:?}"
        );
    }
    Ok(records[..there].to_vec())
}

async fn all(rig: &Rig) -> Result<Vec<Zone>, String> {
    let count = zones_of(rig).count(rig.size()) as usize;
    let records = report(rig, 0, count * ZoneRecord::LEN).await?;
    ensure!(records.len() == count, "of {count} zones {} are reported", records.len());
    Ok(records.iter().map(Zone::of).collect())
}

async fn manage(rig: &Rig, op: IoOp, (offset, len): (u64, u64), status: IoStatus) -> Outcome {
    rig.expect(Ask::new(op, offset, len), &[], status).await.map(drop)
}

/// All zones of a fresh device are empty and read as zeros, and a report has as much as there is room for.
pub(super) async fn fresh(rig: Rig) -> Outcome {
    let (zones, size) = (zones_of(&rig), rig.size());
    for zone in all(&rig).await? {
        ensure!(zone.state == ZoneState::EMPTY && zone.written == 0, "a fresh device has {zone:?}");
    }
    let count = zones.count(size) as usize;
    for (first, records) in [(0, 1), (count - 1, 4), (count / 2, count), (1, 2)] {
        let told = report(&rig, first as u64 * zones.size, records * ZoneRecord::LEN + 24).await?;
        ensure!(told.len() == records.min(count - first), "{} of zones from {first} on are told of", told.len());
    }
    rig.holds(0, &vec![0; (64 * rig.block()) as usize], "fresh").await
}

/// What a zone refuses by its state, its pointer and the limits.
pub(super) async fn refusals(rig: Rig) -> Outcome {
    let (zones, block) = (zones_of(&rig), rig.block());
    let at = |index: u64| (index * zones.size, zones.size);
    let data = pattern(rig.seed, block);
    let write = |offset: u64, status: IoStatus| {
        let (rig, data) = (rig.clone(), data.clone());
        async move { rig.expect(Ask::new(IoOp::Write, offset, block), &data, status).await.map(drop) }
    };
    let append = |index: u64, status: IoStatus| {
        let (rig, data) = (rig.clone(), data.clone());
        async move {
            let done = rig.expect(Ask::new(IoOp::ZoneAppend, index * zones.size, block), &data, status).await?;
            ensure!(done.data == data, "an append changed its data");
            Ok(done.info)
        }
    };
    // Full before it is written.
    manage(&rig, IoOp::ZoneClose, at(0), IoStatus::ZoneInvalidTransition).await?;
    manage(&rig, IoOp::ZoneFinish, at(0), IoStatus::Success).await?;
    write(0, IoStatus::ZoneFull).await?;
    append(0, IoStatus::ZoneFull).await?;
    for (op, status) in [
        (IoOp::ZoneOpen, IoStatus::ZoneInvalidTransition),
        (IoOp::ZoneClose, IoStatus::ZoneInvalidTransition),
        (IoOp::ZoneFinish, IoStatus::Success),
        (IoOp::ZoneReset, IoStatus::Success),
        (IoOp::ZoneReset, IoStatus::Success),
    ] {
        manage(&rig, op, at(0), status).await?;
    }
    // Off the pointer.
    write(0, IoStatus::Success).await?;
    for offset in [0, 2 * block] {
        write(offset, IoStatus::ZoneInvalidWrite).await?;
    }
    let info = append(0, IoStatus::Success).await?;
    ensure!(info == block, "an append behind {block} bytes went to {info}");
    rig.holds(0, &[&data[..], &data[..], &vec![0; block as usize]].concat(), "after refused writes").await?;
    manage(&rig, IoOp::ZoneReset, at(0), IoStatus::Success).await?;
    rig.holds(0, &vec![0; 2 * block as usize], "after a reset").await?;
    // As many as there may be.
    let count = zones.count(rig.size());
    if let Some(most) = zones.open_max.map(u64::from).filter(|most| *most < count) {
        for index in 0..most {
            manage(&rig, IoOp::ZoneOpen, at(index), IoStatus::Success).await?;
        }
        let scarce =
            if zones.active_max == zones.open_max { IoStatus::ZoneTooManyActive } else { IoStatus::ZoneTooManyOpen };
        manage(&rig, IoOp::ZoneOpen, at(most), scarce).await?;
        write(most * zones.size, scarce).await?;
        append(most, scarce).await?;
        manage(&rig, IoOp::ZoneClose, (0, rig.size()), IoStatus::Success).await?;
        let active = zones.active_max.map_or(count, u64::from).min(count);
        for index in most..active {
            append(index, IoStatus::Success).await?;
        }
        if active < count {
            append(active, IoStatus::ZoneTooManyActive).await?;
            manage(&rig, IoOp::ZoneOpen, at(active), IoStatus::ZoneTooManyActive).await?;
            manage(&rig, IoOp::ZoneFinish, (0, rig.size()), IoStatus::Success).await?;
            append(active, IoStatus::Success).await?;
        }
    }
    manage(&rig, IoOp::ZoneReset, (0, rig.size()), IoStatus::Success).await?;
    fresh(rig).await
}

/// A verify is of zones in any state, and of several where a read is.
pub(super) async fn verify(rig: Rig) -> Outcome {
    if !rig.has(IoOp::Verify) {
        return Ok(());
    }
    let (zones, block) = (zones_of(&rig), rig.block());
    let verify = |offset: u64, len: u64, status: IoStatus| {
        let rig = rig.clone();
        async move { rig.expect(Ask::new(IoOp::Verify, offset, len), &[], status).await.map(drop) }
    };
    let data = pattern(rig.seed, 3 * block);
    rig.write(0, &data).await?;
    manage(&rig, IoOp::ZoneFinish, (zones.size, zones.size), IoStatus::Success).await?;
    let before = all(&rig).await?;
    // Written, both, never written, a zone, one that is full, one that is empty.
    for (offset, len) in [(0, 3 * block), (block, 4 * block), (8 * block, block)] {
        verify(offset, len, IoStatus::Success).await?;
    }
    for index in 0..3 {
        verify(index * zones.size, zones.size, IoStatus::Success).await?;
    }
    let across = if zones.read_across { IoStatus::Success } else { IoStatus::ZoneBoundary };
    verify(zones.size - block, 2 * block, across).await?;
    verify(0, 3 * zones.size, across).await?;
    ensure!(all(&rig).await? == before, "a verify has changed the state of a zone");
    rig.holds(0, &data, "after verifies").await?;
    manage(&rig, IoOp::ZoneReset, (0, rig.size()), IoStatus::Success).await
}

/// Zones, and what is in them.
struct Model {
    zones: Zones,
    all: Vec<Zone>,
    bytes: Vec<u8>,
}

impl Model {
    fn index(&self, offset: u64) -> usize {
        (offset / self.zones.size) as usize
    }

    fn count(&self, is: impl Fn(ZoneState) -> bool) -> u64 {
        self.all.iter().filter(|zone| is(zone.state)).count() as u64
    }

    fn is_full(most: Option<u32>, used: u64) -> bool {
        most.is_some_and(|most| used >= u64::from(most))
    }

    /// What there is not enough of to open a zone.
    fn scarce(&self, index: usize) -> Vec<IoStatus> {
        let state = self.all[index].state;
        let mut scarce = Vec::new();
        if state == ZoneState::EMPTY && Model::is_full(self.zones.active_max, self.count(ZoneState::is_active)) {
            scarce.push(IoStatus::ZoneTooManyActive);
        }
        let explicit = self.count(|state| state == ZoneState::EXPLICITLY_OPEN);
        if !state.is_open() && Model::is_full(self.zones.open_max, explicit) {
            scarce.push(IoStatus::ZoneTooManyOpen);
        }
        scarce
    }

    /// The statuses that may be: success alone, or every reason to refuse.
    fn expected(&self, ask: &Ask) -> Vec<IoStatus> {
        let Ask { op, offset, len, .. } = *ask;
        let index = self.index(offset);
        let refused = |condition: bool, status: IoStatus| condition.then_some(status);
        let mut why: Vec<IoStatus> = match op {
            IoOp::Read => refused(!self.zones.read_across && self.zones.crosses(offset, len), IoStatus::ZoneBoundary)
                .into_iter()
                .collect(),
            _ if op.moves_write_pointer() => {
                let zone = &self.all[index];
                let at = if op == IoOp::ZoneAppend { zone.pointer() } else { offset };
                if self.zones.crosses(offset, len) {
                    return vec![IoStatus::ZoneBoundary];
                }
                if zone.state == ZoneState::FULL {
                    return vec![IoStatus::ZoneFull];
                }
                let mut why = self.scarce(index);
                why.extend(refused(at != zone.pointer(), IoStatus::ZoneInvalidWrite));
                why.extend(refused(at + len > zone.start + zone.capacity, IoStatus::ZoneBoundary));
                why
            }
            IoOp::ZoneOpen if self.zones.is_one(len) && self.all[index].state != ZoneState::FULL => self.scarce(index),
            IoOp::ZoneOpen if !self.zones.is_one(len) => {
                let wanted = self.count(|state| matches!(state, ZoneState::CLOSED | ZoneState::EXPLICITLY_OPEN));
                let too_many = self.zones.open_max.is_some_and(|most| wanted > u64::from(most));
                refused(too_many, IoStatus::ZoneTooManyOpen).into_iter().collect()
            }
            IoOp::ZoneOpen => vec![IoStatus::ZoneInvalidTransition],
            IoOp::ZoneClose if self.zones.is_one(len) => {
                refused(!self.all[index].state.is_active(), IoStatus::ZoneInvalidTransition).into_iter().collect()
            }
            _ => Vec::new(),
        };
        if why.is_empty() {
            why.push(IoStatus::Success);
        }
        why
    }

    /// Opens a zone that is not open. Which other is closed in its stead, the device says: how many may be.
    fn open(&mut self, index: usize, state: ZoneState) -> usize {
        let before = self.all[index].state;
        let must = !before.is_open() && Model::is_full(self.zones.open_max, self.count(ZoneState::is_open));
        if !before.is_open() || state == ZoneState::EXPLICITLY_OPEN {
            self.all[index].state = state;
        }
        usize::from(must)
    }

    /// Applies what has succeeded; how many other zones may have been closed with that.
    fn apply(&mut self, ask: &Ask, data: &[u8], at: u64) -> usize {
        let index = self.index(ask.offset);
        if ask.op.moves_write_pointer() {
            let closed = self.open(index, ZoneState::IMPLICITLY_OPEN);
            let zone = &mut self.all[index];
            zone.written += ask.len;
            if zone.written == zone.capacity {
                zone.state = ZoneState::FULL;
            }
            let range = at as usize..(at + ask.len) as usize;
            if ask.op == IoOp::WriteZeroes {
                self.bytes[range].fill(0);
            } else {
                self.bytes[range].copy_from_slice(data);
            }
            return closed;
        }
        let one = self.zones.is_one(ask.len);
        let is_for = |zone: &Zone| match ask.op {
            IoOp::ZoneOpen => zone.state == ZoneState::CLOSED,
            IoOp::ZoneClose => zone.state.is_open(),
            IoOp::ZoneFinish => zone.state.is_active(),
            IoOp::ZoneReset => zone.state.is_active() || zone.state == ZoneState::FULL,
            _ => false,
        };
        let chosen: Vec<usize> =
            (0..self.all.len()).filter(|other| if one { *other == index } else { is_for(&self.all[*other]) }).collect();
        let mut closed = 0;
        for index in chosen {
            match ask.op {
                IoOp::ZoneOpen => closed += self.open(index, ZoneState::EXPLICITLY_OPEN),
                IoOp::ZoneClose => self.all[index].state = ZoneState::CLOSED,
                IoOp::ZoneFinish => {
                    let zone = &mut self.all[index];
                    (zone.state, zone.written) = (ZoneState::FULL, zone.capacity);
                }
                IoOp::ZoneReset => {
                    let zone = &mut self.all[index];
                    (zone.state, zone.written) = (ZoneState::EMPTY, 0);
                    let range = zone.start as usize..(zone.start + self.zones.size) as usize;
                    self.bytes[range].fill(0);
                }
                _ => {}
            }
        }
        closed
    }

    /// A write that failed at the end of what can be written may have been carried out up to there, where it was cut to pieces.
    fn apply_part(&mut self, ask: &Ask, data: &[u8], now: &[Zone]) -> usize {
        let index = self.index(ask.offset);
        let (was, is) = (self.all[index], now[index]);
        let part = is.written.saturating_sub(was.written).min(ask.len);
        if part == 0 || ask.op == IoOp::ZoneAppend {
            return 0;
        }
        let piece = Ask { len: part, ..*ask };
        self.apply(&piece, &data[..data.len().min(part as usize)], ask.offset)
    }

    /// Compares with what the device reports. It closes zones that writes have opened, so many at most, when it needs others.
    fn compare(&mut self, now: &[Zone], mut closed: usize, after: &Ask) -> Outcome {
        for (should, is) in self.all.iter_mut().zip(now) {
            let gives_way = should.state == ZoneState::IMPLICITLY_OPEN && is.state == ZoneState::CLOSED && closed > 0;
            if gives_way {
                closed -= 1;
                should.state = ZoneState::CLOSED;
            }
            ensure!(should == is, "after {after:?} a zone is {is:?}, not {should:?}");
        }
        Ok(())
    }
}

/// Random operations, one at a time, against the model.
pub(super) async fn random(rig: Rig, count: usize) -> Outcome {
    let entropy = Entropy::new(rig.seed);
    let zones = zones_of(&rig);
    manage(&rig, IoOp::ZoneReset, (0, rig.size()), IoStatus::Success).await?;
    let mut model = Model { zones, all: all(&rig).await?, bytes: vec![0; rig.size() as usize] };
    for number in 0..count as u64 {
        let ask = choose(&rig, &model, &entropy);
        let data = match ask.op {
            IoOp::Read => vec![0xA5; ask.len as usize],
            op => pattern(rig.seed ^ number, op.data_len(ask.len)),
        };
        let cuts: Vec<usize> =
            (0..entropy.below(4)).map(|_| 1 + entropy.below(data.len().max(1) as u64) as usize).collect();
        let shape = Shape::ALL[entropy.below(Shape::ALL.len() as u64) as usize];
        let expected = model.expected(&ask);
        let done: Done = rig.end(rig.io(ask, &data, &cuts, shape).await?).await?;
        ensure!(
            expected.contains(&done.status),
            "{ask:?} ended with {:?}, not {expected:?}; the zone is {:?}",
            done.status,
            model.all[model.index(ask.offset)]
        );
        let well = done.status == IoStatus::Success;
        if well && ask.op == IoOp::Read {
            let right = &model.bytes[ask.offset as usize..(ask.offset + ask.len) as usize];
            let wrong = first_difference(&done.data, right);
            ensure!(wrong.is_none(), "byte {wrong:?} of {ask:?} is not what was written");
        }
        let at = match ask.op {
            IoOp::ZoneAppend if well => {
                let pointer = model.all[model.index(ask.offset)].pointer();
                ensure!(done.info == pointer, "{ask:?} says that it went to {}, not {pointer}", done.info);
                pointer
            }
            _ => ask.offset,
        };
        let now = all(&rig).await?;
        let closed = match done.status {
            IoStatus::Success => model.apply(&ask, &data, at),
            IoStatus::ZoneBoundary if ask.op.moves_write_pointer() => model.apply_part(&ask, &data, &now),
            _ => 0,
        };
        model.compare(&now, closed, &ask)?;
    }
    // No read is sure to be taken across zones.
    for zone in &model.all {
        let bytes = &model.bytes[zone.start as usize..(zone.start + zones.size) as usize];
        rig.holds(zone.start, bytes, "after random operations on zones").await?;
    }
    Ok(())
}

fn choose(rig: &Rig, model: &Model, entropy: &Entropy) -> Ask {
    let (block, zones) = (rig.block(), model.zones);
    let zone = model.all[entropy.below((model.all.len() as u64).min(WINDOW)) as usize];
    let most = TRANSFER_MAX as u64 / block;
    let left = (zone.capacity - zone.written) / block;
    let blocks = match entropy.below(8) {
        0 => 1 + entropy.below(most.min(zones.size / block)),
        1 => left.clamp(1, most),
        _ => 1 + entropy.below(32),
    };
    let fua = entropy.below(8) == 0;
    let write = |op: IoOp, offset: u64, blocks: u64| Ask { fua, ..Ask::new(op, offset, blocks * block) };
    let pointer = zone.pointer().min(zone.start + zones.size - block);
    match entropy.below(100) {
        0..30 => write(IoOp::Write, pointer, blocks),
        30..55 => write(IoOp::ZoneAppend, zone.start, blocks.min(zones.append_max / block)),
        55..60 => write(IoOp::Write, zone.start + entropy.below(zones.size / block) * block, 1 + entropy.below(8)),
        60..65 if rig.has(IoOp::WriteZeroes) => write(IoOp::WriteZeroes, pointer, blocks),
        60..77 => {
            let len = (1 + entropy.below(64)) * block;
            Ask::new(IoOp::Read, entropy.below((rig.size() - len) / block) * block, len)
        }
        77..95 => Ask::new(MANAGE[entropy.below(4) as usize], zone.start, zones.size),
        95..98 => Ask::new(MANAGE[entropy.below(4) as usize], 0, rig.size()),
        _ => Ask::new(IoOp::Flush, 0, 0),
    }
}

/// Appends of several tasks that are in flight together to one zone: each is where it says.
pub(super) async fn append(rig: Rig) -> Outcome {
    let (reactor, finished) = (rig.handle.reactor().clone(), Rc::new(std::cell::RefCell::new(Vec::new())));
    let waiter = reactor.current_task();
    for writer in 0..WRITERS {
        let (rig, finished) = (rig.clone(), finished.clone());
        reactor.spawn("conformance appends", async move {
            let outcome = append_one_by_one(&rig, writer).await;
            finished.borrow_mut().push(outcome);
            rig.handle.reactor().wake(waiter);
        });
    }
    std::future::poll_fn(|_| match finished.borrow().len() as u64 {
        WRITERS => std::task::Poll::Ready(()),
        _ => std::task::Poll::Pending,
    })
    .await;
    finished.take().into_iter().collect()
}

/// How often each task appends: all of them, on two reactors, fit into a zone.
fn appends_each(zone: &Zone, block: u64) -> u64 {
    (zone.capacity / block / (2 * WRITERS * APPEND_BLOCKS)).min(50)
}

async fn append_one_by_one(rig: &Rig, writer: u64) -> Outcome {
    let (block, zone) = (rig.block(), all(rig).await?[0]);
    let entropy = Entropy::new(rig.seed ^ writer << 32);
    for number in 0..appends_each(&zone, block) {
        let blocks = 1 + entropy.below(APPEND_BLOCKS);
        let mut data = pattern(rig.seed ^ writer << 32 ^ number, blocks * block);
        data[..8].copy_from_slice(&blocks.to_le_bytes());
        let ask = Ask::new(IoOp::ZoneAppend, 0, blocks * block);
        let done = rig.expect(ask, &data, IoStatus::Success).await?;
        rig.holds(done.info, &data, "where an append says that it is").await?;
    }
    Ok(())
}

/// The zone has all that was appended, each whole, one behind the other.
pub(super) async fn appended(rig: Rig, reactors: u64) -> Outcome {
    let (block, zone) = (rig.block(), all(&rig).await?[0]);
    let (mut at, mut found) = (0, 0);
    while at < zone.written {
        let head = rig.read(at, block).await?;
        let blocks = u64::from_le_bytes(head[..8].try_into().expect("eight bytes"));
        ensure!((1..=APPEND_BLOCKS).contains(&blocks), "at {at} no append begins");
        (at, found) = (at + blocks * block, found + 1);
    }
    let wanted = reactors * WRITERS * appends_each(&zone, block);
    ensure!(found == wanted && at == zone.written, "{found} appends of {wanted}, to {at} of {}", zone.written);
    manage(&rig, IoOp::ZoneReset, (0, rig.size()), IoStatus::Success).await
}

/// Appends in flight when a reset of the device comes.
const IN_FLIGHT: u64 = 24;

/// A reset ends when nothing that was submitted before it is left; the write pointer has moved for every append that succeeded.
pub(super) async fn reset(rig: Rig) -> Outcome {
    let reactor = rig.handle.reactor().clone();
    let block = rig.block();
    let ended: Rc<std::cell::RefCell<Vec<Result<Done, String>>>> = Rc::default();
    let submitted = Rc::new(std::cell::Cell::new(0));
    for _ in 0..IN_FLIGHT {
        let io = rig.io(Ask::new(IoOp::ZoneAppend, 0, block), &vec![7; block as usize], &[], Shape::Own).await?;
        let (rig, ended, submitted) = (rig.clone(), ended.clone(), submitted.clone());
        reactor.spawn("conformance reset", async move {
            submitted.set(submitted.get() + 1);
            let done = rig.end(io).await;
            ended.borrow_mut().push(done);
        });
    }
    while submitted.get() < IN_FLIGHT {
        reactor.yield_now().await;
    }
    rig.expect(Ask::new(IoOp::Reset, 0, 0), &[], IoStatus::Success).await?;
    // What landed before the reset has woken its task before: one round lets them all run.
    reactor.sleep(0).await;
    reactor.yield_now().await;
    reactor.yield_now().await;
    let ended = ended.take();
    ensure!(ended.len() as u64 == IN_FLIGHT, "{} of {IN_FLIGHT} appends had ended with the reset", ended.len());
    let mut places = Vec::new();
    for done in ended {
        let done = done?;
        match done.status {
            IoStatus::Success => places.push(done.info),
            status => ensure!(status == IoStatus::Aborted, "an append that a reset met ended with {status:?}"),
        }
    }
    places.sort_unstable();
    let written = all(&rig).await?[0].written;
    let apart = places.windows(2).all(|pair| pair[0] + block <= pair[1]);
    let inside = places.last().is_none_or(|last| last + block <= written);
    ensure!(apart && inside, "{written} bytes are written, and appends went to {places:?}");
    let data = pattern(rig.seed, block);
    let done = rig.expect(Ask::new(IoOp::ZoneAppend, 0, block), &data, IoStatus::Success).await?;
    rig.holds(done.info, &data, "appended after a reset").await
}
