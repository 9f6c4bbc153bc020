//! The commands in flight of one queue, and the batch of PDUs that waits to be sent.
//!
//! ```text
//!   free --start--> in flight --all responses in--> answered --all lent buffers back--> free
//!                    |    ^                          (at once, if none is lent)
//!                    R2T: granted data joins the batch as room allows
//! ```
//! A fused pair takes two slots; the I/O is with the first, its *leader*.

use std::collections::VecDeque;

use hugepages::Buf;

use super::super::command::{Inline, Transfer, Wire, wire};
use crate::limits::SEGMENTS_MAX;
use crate::nvme::io::{io_status, pair_status};
use crate::nvme::spec::{Cqe, Status};
use crate::nvme::tcp::{
    DIGEST_LEN, DataDigest, FatalError, FatalErrorStatus, Framing, LONG_DATA, MAX_PREFIX_LEN, R2tPdu, ReadProgress,
    field,
};
use crate::reactor::Reactor;
use crate::reactor::io::{Io, IoList, IoOp, IoStatus, Segment};
use crate::sys::tx::TxBatch;

/// Bits of a command identifier that name the slot; the others are its generation.
const SLOT_BITS: u32 = 10;
/// Most commands in flight on a queue.
pub(in super::super) const SLOTS_MAX: u16 = 1 << SLOT_BITS;
/// Generations of a slot. One fewer than fit, since FFFFh is no command identifier (Base §3.3.3.1).
const GENERATIONS: u8 = 63;

const _: () = assert!(((GENERATIONS as u32 - 1) << SLOT_BITS | (SLOTS_MAX as u32 - 1)) < 0xffff);

/// Outstanding R2Ts per command that a controller is allowed.
pub(in super::super) const R2T_MAX: usize = 4;

/// Gather entries that one PDU takes: header, data, digest.
const PDU_PARTS: usize = SEGMENTS_MAX + 2;
/// Header bytes that one PDU takes: header, inline data, digest.
const PDU_HEADS: usize = MAX_PREFIX_LEN + size_of::<Inline>() + DIGEST_LEN;

/// Data the controller asked for.
#[derive(Clone, Copy, Debug, Default)]
struct Grant {
    ttag: u16,
    offset: u32,
    left: u32,
}

/// Where a payload in a batch belongs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lent {
    slot: u16,
    segment: u8,
    /// It is the end of its segment.
    last: bool,
}

/// A batch and where its payloads belong, in the order they were pushed.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) batch: Box<TxBatch>,
    pub(super) lent: Vec<Lent>,
}

impl Outgoing {
    fn new(parts: usize, heads: usize) -> Outgoing {
        Outgoing { batch: TxBatch::new(parts, heads), lent: Vec::with_capacity(parts) }
    }
}

#[derive(Debug)]
struct Slot {
    generation: u8,
    /// A command is in flight, its response outstanding.
    open: bool,
    opcode: u8,
    /// Slot that has the I/O: this one, except for the second of a fused pair.
    leader: u16,
    /// The second of a fused pair that this one leads.
    follower: Option<u16>,
    transfer: Transfer,
    inline: Option<Inline>,
    /// Bytes of data.
    len: u32,
    /// Bytes of data that were in the capsule or asked for by R2Ts.
    granted: u32,
    grants: VecDeque<Grant>,
    /// Is in the list of slots with data to send.
    queued: bool,
    /// Segment of the I/O's data that the next byte goes to or comes from.
    segment: u8,
    /// Position in that segment of the next byte to receive.
    position: u32,
    /// What is left to send of that segment, while its front is lent.
    rest: Option<Buf>,
    /// Front of a segment that came back, while more of it is lent.
    back: Option<Buf>,
    received: ReadProgress,
    digest_ok: bool,
    /// In nanoseconds of the clock.
    deadline: u64,
    answer: Cqe,
    // What follows belongs to leaders.
    io: Option<Io>,
    /// The I/O is a command given as it is: its answer goes into the I/O's words.
    as_given: bool,
    /// Responses outstanding, of both commands of a pair.
    unanswered: u8,
    /// Buffers out with the sender, of both commands of a pair.
    lent: u16,
}

impl Slot {
    fn new(leader: u16) -> Slot {
        Slot {
            generation: 0,
            open: false,
            opcode: 0,
            leader,
            follower: None,
            transfer: Transfer::None,
            inline: None,
            len: 0,
            granted: 0,
            grants: VecDeque::with_capacity(R2T_MAX),
            queued: false,
            segment: 0,
            position: 0,
            rest: None,
            back: None,
            received: ReadProgress::new(0),
            digest_ok: true,
            deadline: u64::MAX,
            answer: Cqe::default(),
            io: None,
            as_given: false,
            unanswered: 0,
            lent: 0,
        }
    }

    fn is_long_read(&self) -> bool {
        self.transfer == Transfer::In && self.len >= LONG_DATA
    }
}

/// How a command given as it is ended, in the words of its I/O.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    pub(super) cqe: Cqe,
    pub(super) received: u32,
    pub(super) digest_ok: bool,
}

impl Ending {
    const ANSWERED: u64 = 1 << 63;
    const DIGEST_OK: u64 = 1 << 62;

    /// Received bytes in bits 23:0, status in 38:24, SQHD in 55:40.
    fn put(self, io: &mut Io) {
        io.info = self.cqe.result.get();
        io.scratch = u64::from(self.received)
            | u64::from(self.cqe.status().0) << 24
            | u64::from(self.cqe.sqhd.get()) << 40
            | if self.digest_ok { Self::DIGEST_OK } else { 0 }
            | Self::ANSWERED;
    }

    /// `None` for an I/O that got no answer.
    pub(super) fn of(io: &Io) -> Option<Ending> {
        (io.scratch & Self::ANSWERED != 0).then(|| {
            let mut cqe = Cqe::with_result(0, io.info);
            cqe.set_status(Status((io.scratch >> 24) as u16 & 0x7fff));
            cqe.sqhd.set((io.scratch >> 40) as u16);
            Ending { cqe, received: io.scratch as u32 & 0xff_ffff, digest_ok: io.scratch & Self::DIGEST_OK != 0 }
        })
    }
}

const _: () = assert!(hugepages::MAX_BUF < 1 << 24, "received bytes of one buffer");

/// Submission queue flow control (Base §3.3.1.3). Fewer commands are in flight than the queue has entries, so its head is
/// needed for nothing but a check; it is not expected to move in order, since controllers with several threads send
/// completions in another order than they count them.
#[derive(Clone, Copy, Debug)]
struct Flow {
    /// Entries of the queue.
    size: u16,
    disabled: bool,
}

/// All that the tasks of a connection share.
#[derive(Debug)]
pub(super) struct Slots {
    slots: Vec<Slot>,
    free: Vec<u16>,
    open: Outgoing,
    spare: Option<Outgoing>,
    /// Commands in flight that long data is to come for.
    long_reads: usize,
    /// Slots with granted data that is not in the batch yet.
    to_send: VecDeque<u16>,
    /// The first I/O that waits for room, and those behind it.
    next: Option<Io>,
    waiting: IoList,
    flow: Flow,
    framing: Framing,
    max_h2c_data: u32,
    max_r2t: usize,
    in_capsule_max: u32,
    timeout_ns: u64,
}

/// What holds for a queue from its start.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Entries of the submission queue; one fewer commands are in flight.
    pub(super) size: u16,
    pub(super) framing: Framing,
    pub(super) max_h2c_data: u32,
    pub(super) max_r2t: usize,
    pub(super) in_capsule_max: u32,
    pub(super) timeout_ns: u64,
}

const BROKEN: FatalError = ReadProgress::unknown_command();

impl Slots {
    pub(super) fn new(shape: Shape) -> Slots {
        let slots = usize::from(shape.size - 1);
        // A batch of a turn's commands, each with a payload; what does not fit goes with the next one.
        let parts = (slots * 3 + 2 * PDU_PARTS).min(crate::sys::limits::TX_IOV_MAX);
        let heads = (slots * 96 + 2 * PDU_HEADS).min(64 * 1024);
        Slots {
            slots: (0..slots as u16).map(Slot::new).collect(),
            free: (0..slots as u16).rev().collect(),
            open: Outgoing::new(parts, heads),
            spare: Some(Outgoing::new(parts, heads)),
            long_reads: 0,
            to_send: VecDeque::with_capacity(slots),
            next: None,
            waiting: IoList::default(),
            flow: Flow { size: shape.size, disabled: false },
            framing: shape.framing,
            max_h2c_data: shape.max_h2c_data,
            max_r2t: shape.max_r2t,
            in_capsule_max: shape.in_capsule_max,
            timeout_ns: shape.timeout_ns,
        }
    }

    /// The controller agreed to do without flow control, or not.
    pub(super) fn set_flow_disabled(&mut self, disabled: bool) {
        self.flow.disabled = disabled;
    }

    /// Most bytes of in-capsule data, once Identify has told.
    pub(super) fn set_in_capsule_max(&mut self, bytes: u32) {
        self.in_capsule_max = bytes;
    }

    /// Commands in flight.
    pub(super) fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Whether long data is to come.
    pub(super) fn awaits_long_data(&self) -> bool {
        self.long_reads > 0
    }

    // --- sending ---

    /// Whether a command can be started at once, past those that wait.
    pub(super) fn has_room(&self) -> bool {
        self.next.is_none() && self.fits(1)
    }

    fn fits(&self, commands: usize) -> bool {
        self.free.len() >= commands && self.open.batch.has_room(commands * PDU_PARTS, commands * PDU_HEADS)
    }

    /// Starts an I/O, or keeps it until there is room.
    #[inline]
    pub(super) fn submit(&mut self, io: Io, now: u64) {
        if self.next.is_some() {
            self.waiting.push(io);
        } else if let Err(io) = self.start(io, now) {
            self.next = Some(io);
        }
    }

    #[inline]
    fn start(&mut self, io: Io, now: u64) -> Result<(), Io> {
        if !self.fits(if io.op == IoOp::CompareAndWrite { 2 } else { 1 }) {
            return Err(io);
        }
        let deadline = now.saturating_add(self.timeout_ns);
        let (first, second) = wire(&io);
        let leader = self.occupy(first.sqe.opcode, deadline);
        self.slots[usize::from(leader)].io = Some(io);
        self.push_command(leader, leader, first, 0);
        if let Some(second) = second {
            let follower = self.occupy(second.sqe.opcode, deadline);
            self.slots[usize::from(leader)].follower = Some(follower);
            // Each half of a compare and write is a segment of its own.
            self.push_command(follower, leader, second, 1);
        }
        Ok(())
    }

    /// Starts a command given as it is. The caller has asked [`Slots::has_room`].
    pub(super) fn start_as_given(&mut self, io: Io, command: Wire, deadline: u64) {
        let slot = self.occupy(command.sqe.opcode, deadline);
        let leader = &mut self.slots[usize::from(slot)];
        leader.io = Some(io);
        leader.as_given = true;
        self.push_command(slot, slot, command, 0);
    }

    /// The end of a command counted from now, in nanoseconds of the clock.
    pub(super) fn deadline(&self, now: u64) -> u64 {
        now.saturating_add(self.timeout_ns)
    }

    fn occupy(&mut self, opcode: u8, deadline: u64) -> u16 {
        let index = self.free.pop().expect("the caller has asked for room");
        let slot = &mut self.slots[usize::from(index)];
        slot.generation = (slot.generation + 1) % GENERATIONS;
        slot.open = true;
        slot.opcode = opcode;
        slot.deadline = deadline;
        slot.digest_ok = true;
        slot.as_given = false;
        index
    }

    fn push_command(&mut self, index: u16, leader: u16, mut command: Wire, segment: u8) {
        let inside = command.place_data(self.in_capsule_max);
        let slot = &mut self.slots[usize::from(index)];
        slot.leader = leader;
        slot.transfer = command.transfer;
        slot.inline = command.inline;
        slot.len = command.len;
        slot.granted = inside;
        slot.segment = segment;
        slot.position = 0;
        slot.received = ReadProgress::new(if command.transfer == Transfer::In { command.len } else { 0 });
        self.long_reads += usize::from(slot.is_long_read());
        command.sqe.cid.set(u16::from(slot.generation) << SLOT_BITS | index);
        self.slots[usize::from(leader)].unanswered += 1;
        let framing = self.framing;
        self.open.batch.push_head(|out| framing.capsule_cmd(&command.sqe, inside, out));
        if inside > 0 {
            self.push_data(index, 0, inside);
        }
    }

    /// Appends `len` bytes of the slot's data, from `offset`, and their digest.
    fn push_data(&mut self, index: u16, offset: u32, len: u32) {
        let digest = self.framing.data_digest();
        let mut crc = DataDigest::new();
        if let Some(inline) = self.slots[usize::from(index)].inline {
            let bytes = &inline[offset as usize..(offset + len) as usize];
            crc.update(bytes);
            self.open.batch.push_head(|out| {
                out[..bytes.len()].copy_from_slice(bytes);
                bytes.len()
            });
        } else {
            self.lend(index, len as usize, digest.then_some(&mut crc));
        }
        if digest {
            self.open.batch.push_head(|out| {
                out[..DIGEST_LEN].copy_from_slice(&crc.to_bytes());
                DIGEST_LEN
            });
        }
    }

    /// Lends the next `left` bytes of the slot's data to the batch.
    fn lend(&mut self, index: u16, mut left: usize, mut crc: Option<&mut DataDigest>) {
        let leader = usize::from(self.slots[usize::from(index)].leader);
        while left > 0 {
            let slot = &mut self.slots[usize::from(index)];
            let segment = slot.segment;
            let buf = match slot.rest.take() {
                Some(rest) => rest,
                None => {
                    let io = self.slots[leader].io.as_mut().expect("a command in flight has its I/O");
                    match io.data.take(usize::from(segment)) {
                        Some(Segment::Buf(buf)) => buf,
                        other => unreachable!("data to send is gathered in buffers, not {other:?}"),
                    }
                }
            };
            let slot = &mut self.slots[usize::from(index)];
            let (front, last) = if left < buf.len() {
                let mut buf = buf;
                let front = buf.split_to(left);
                slot.rest = Some(buf);
                (front, false)
            } else {
                slot.segment += 1;
                (buf, true)
            };
            left -= front.len();
            if front.is_empty() {
                self.put_back(leader, segment, front);
                continue;
            }
            if let Some(crc) = &mut crc {
                crc.update(&front);
            }
            self.slots[leader].lent += 1;
            self.open.lent.push(Lent { slot: index, segment, last });
            self.open.batch.push_buf(front);
        }
    }

    fn put_back(&mut self, leader: usize, segment: u8, buf: Buf) {
        let io = self.slots[leader].io.as_mut().expect("an I/O waits for its lent buffers");
        io.data.put_back(usize::from(segment), Segment::Buf(buf));
    }

    /// Appends what controllers asked for and I/Os that waited, as far as there is room. Returns whether there is something
    /// to send.
    pub(super) fn fill(&mut self, now: u64) -> bool {
        while let Some(&index) = self.to_send.front() {
            if !self.push_granted(index) {
                break;
            }
            self.to_send.pop_front();
            self.slots[usize::from(index)].queued = false;
        }
        while let Some(io) = self.next.take() {
            if let Err(io) = self.start(io, now) {
                self.next = Some(io);
                break;
            }
            self.next = self.waiting.pop();
        }
        !self.open.batch.is_empty()
    }

    /// Appends granted data of one slot; `false` if not all of it had room.
    fn push_granted(&mut self, index: u16) -> bool {
        loop {
            let slot = &mut self.slots[usize::from(index)];
            let cid = u16::from(slot.generation) << SLOT_BITS | index;
            let Some(grant) = slot.grants.front_mut() else {
                return true;
            };
            if !self.open.batch.has_room(PDU_PARTS, PDU_HEADS) {
                return false;
            }
            let now = Grant { left: grant.left.min(self.max_h2c_data), ..*grant };
            grant.left -= now.left;
            grant.offset += now.left;
            let last = grant.left == 0;
            if last {
                slot.grants.pop_front();
            }
            let framing = self.framing;
            self.open.batch.push_head(|out| framing.h2c_data(cid, now.ttag, now.offset, now.left, last, out));
            self.push_data(index, now.offset, now.left);
        }
    }

    /// Appends a PDU made by `fill`, if there is room: a termination request.
    pub(super) fn push_last(&mut self, fill: impl FnOnce(&mut [u8]) -> usize) {
        if self.open.batch.has_room(1, PDU_HEADS) {
            self.open.batch.push_head(fill);
        }
    }

    /// The batch to be sent next, if there is something in it and the last one came back.
    pub(super) fn take_batch(&mut self) -> Option<Outgoing> {
        if self.open.batch.is_empty() {
            return None;
        }
        let spare = self.spare.take()?;
        Some(std::mem::replace(&mut self.open, spare))
    }

    /// A batch was sent, or never will be: the buffers in it go back to their I/Os.
    pub(super) fn reclaim(&mut self, mut outgoing: Outgoing, reactor: &Reactor) {
        let Outgoing { batch, lent } = &mut outgoing;
        let mut places = lent.drain(..);
        batch.reclaim(|buf| {
            let place = places.next().expect("one place for each payload");
            self.returned(place, buf, reactor);
        });
        drop(places);
        self.spare = Some(outgoing);
    }

    fn returned(&mut self, place: Lent, buf: Buf, reactor: &Reactor) {
        let slot = &mut self.slots[usize::from(place.slot)];
        let leader = usize::from(slot.leader);
        let whole = join(slot.back.take(), buf);
        if place.last {
            self.put_back(leader, place.segment, whole);
        } else {
            slot.back = Some(whole);
        }
        self.slots[leader].lent -= 1;
        if self.slots[leader].lent == 0 && self.slots[leader].unanswered == 0 {
            self.finish(leader, reactor);
        }
    }

    // --- receiving ---

    /// The slot of a command in flight.
    fn find(&self, cid: u16) -> Result<u16, FatalError> {
        let index = cid & (SLOTS_MAX - 1);
        match self.slots.get(usize::from(index)) {
            Some(slot) if slot.open && u16::from(slot.generation) == cid >> SLOT_BITS => Ok(index),
            _ => Err(BROKEN),
        }
    }

    /// The controller asks for data.
    pub(super) fn on_r2t(&mut self, r2t: &R2tPdu) -> Result<(), FatalError> {
        let index = self.find(r2t.cccid.get())?;
        let slot = &mut self.slots[usize::from(index)];
        let (offset, len) = (r2t.r2to.get(), r2t.r2tl.get());
        if slot.transfer != Transfer::Out {
            return Err(FatalError::status(FatalErrorStatus::SEQUENCE_ERROR));
        }
        if u64::from(offset) + u64::from(len) > u64::from(slot.len) {
            return Err(FatalError::status(FatalErrorStatus::DATA_OUT_OF_RANGE));
        }
        if offset != slot.granted {
            return Err(FatalError::invalid_field(field::DATAO));
        }
        if slot.grants.len() >= self.max_r2t {
            return Err(FatalError::status(FatalErrorStatus::LIMIT_EXCEEDED));
        }
        slot.granted += len;
        slot.grants.push_back(Grant { ttag: r2t.ttag.get(), offset, left: len });
        if !std::mem::replace(&mut slot.queued, true) {
            self.to_send.push_back(index);
        }
        Ok(())
    }

    /// A data PDU begins; returns the slot that its data is for.
    pub(super) fn on_data(&mut self, pdu: &crate::nvme::tcp::DataPdu) -> Result<u16, FatalError> {
        let index = self.find(pdu.cccid.get())?;
        if pdu.success() && !self.flow.disabled {
            return Err(FatalError::invalid_field(field::FLAGS));
        }
        self.slots[usize::from(index)].received.accept(pdu)?;
        Ok(index)
    }

    /// How large a buffer a command still lacks that came without one, and whose data arrives.
    #[inline]
    pub(super) fn lacks_buffer(&self, index: u16) -> Option<usize> {
        let slot = &self.slots[usize::from(index)];
        let io = self.slots[usize::from(slot.leader)].io.as_ref()?;
        (io.data.count() == 0).then_some(slot.len as usize)
    }

    /// Gives it that buffer.
    #[inline]
    pub(super) fn give_buffer(&mut self, index: u16, buf: Buf) {
        let leader = usize::from(self.slots[usize::from(index)].leader);
        if let Some(io) = &mut self.slots[leader].io {
            io.data.push_buf(buf);
        }
    }

    /// Copies the next bytes of a command's data to their place.
    #[inline]
    pub(super) fn place(&mut self, index: u16, mut bytes: &[u8]) {
        let leader = usize::from(self.slots[usize::from(index)].leader);
        while !bytes.is_empty() {
            let slot = &self.slots[usize::from(index)];
            let (segment, position) = (usize::from(slot.segment), slot.position as usize);
            let io = self.slots[leader].io.as_mut().expect("a command in flight has its I/O");
            let target = io.data.iter_mut().nth(segment).expect("data within the length that was asked for");
            let take = bytes.len().min(target.len() - position);
            let (now, rest) = bytes.split_at(take);
            match target {
                Segment::Buf(buf) => buf[position..position + take].copy_from_slice(now),
                Segment::Region { region, offset, .. } => region.write(*offset as usize + position, now),
                Segment::Request(data) => unreachable!("{data:?} has no address, and a host needs one"),
            }
            bytes = rest;
            let full = position + take == target.len();
            self.advance(index, take, full);
        }
    }

    fn advance(&mut self, index: u16, bytes: usize, full: bool) {
        let slot = &mut self.slots[usize::from(index)];
        if full {
            slot.segment += 1;
            slot.position = 0;
        } else {
            slot.position += bytes as u32;
        }
    }

    /// Takes out the buffer that the next `remaining` bytes go to, cut behind the last of them, with the position of the first:
    /// if at least `least` bytes go there.
    pub(super) fn take_place(&mut self, index: u16, remaining: usize, least: usize) -> Option<Placed> {
        let slot = &self.slots[usize::from(index)];
        let (leader, segment, position) = (usize::from(slot.leader), slot.segment, slot.position as usize);
        let io = self.slots[leader].io.as_mut()?;
        let target = io.data.iter_mut().nth(usize::from(segment))?;
        let Segment::Buf(buf) = target else {
            return None;
        };
        let take = remaining.min(buf.len() - position);
        if take < least {
            return None;
        }
        let Some(Segment::Buf(mut buf)) = io.data.take(usize::from(segment)) else {
            unreachable!("looked at just now")
        };
        let whole = buf.len();
        buf.truncate(position + take);
        Some(Placed { index, segment, position, whole, buf })
    }

    /// Puts the buffer back; its bytes from `position` on were received, unless the connection failed.
    pub(super) fn return_place(&mut self, placed: Placed) {
        let Placed { index, segment, position, whole, mut buf } = placed;
        let end = buf.len();
        buf.set_len(whole);
        self.advance(index, end - position, end == whole);
        let leader = usize::from(self.slots[usize::from(index)].leader);
        self.put_back(leader, segment, buf);
    }

    /// The data of a PDU was damaged on its way.
    pub(super) fn damaged(&mut self, index: u16) {
        self.slots[usize::from(index)].digest_ok = false;
    }

    /// A data PDU with the SUCCESS flag ended: it is the response, too.
    pub(super) fn on_success(&mut self, index: u16, reactor: &Reactor) {
        self.answered(index, Cqe::default(), reactor);
    }

    /// A response.
    #[inline]
    pub(super) fn on_response(&mut self, cqe: &Cqe, reactor: &Reactor) -> Result<(), FatalError> {
        let index = self.find(cqe.cid.get())?;
        if cqe.sqhd.get() >= self.flow.size && !self.flow.disabled && self.slots[usize::from(index)].opcode != FABRICS {
            return Err(FatalError::invalid_field(SQHD_OFFSET));
        }
        self.answered(index, *cqe, reactor);
        Ok(())
    }

    #[inline]
    fn answered(&mut self, index: u16, cqe: Cqe, reactor: &Reactor) {
        let slot = &mut self.slots[usize::from(index)];
        slot.open = false;
        slot.answer = cqe;
        self.long_reads -= usize::from(slot.is_long_read());
        // A controller that ends a command early wants no more of its data.
        slot.grants.clear();
        let leader = usize::from(slot.leader);
        let slot = &mut self.slots[leader];
        slot.unanswered -= 1;
        if slot.unanswered == 0 && slot.lent == 0 {
            self.finish(leader, reactor);
        }
    }

    /// Both the answers and the buffers are in.
    fn finish(&mut self, leader: usize, reactor: &Reactor) {
        self.gather(leader);
        let slot = &mut self.slots[leader];
        let mut io = slot.io.take().expect("a command in flight has its I/O");
        let status = match slot.follower {
            None => slot.answer.status(),
            Some(second) => pair_status(slot.answer.status(), self.slots[usize::from(second)].answer.status()),
        };
        let slot = &self.slots[leader];
        let whole = slot.received.announced == slot.received.len && slot.digest_ok;
        io.status = if status.is_success() && !whole { IoStatus::DeviceError } else { io_status(status) };
        if slot.as_given {
            Ending { cqe: slot.answer, received: slot.received.announced, digest_ok: slot.digest_ok }.put(&mut io);
        }
        self.release(leader);
        reactor.complete(io);
    }

    /// Puts a segment together again of which not everything was sent.
    fn gather(&mut self, leader: usize) {
        let follower = self.slots[leader].follower.map(usize::from);
        for index in [Some(leader), follower].into_iter().flatten() {
            let slot = &mut self.slots[index];
            if let Some(rest) = slot.rest.take() {
                let (segment, whole) = (slot.segment, join(slot.back.take(), rest));
                self.put_back(leader, segment, whole);
            }
        }
    }

    fn release(&mut self, leader: usize) {
        let slot = &mut self.slots[leader];
        slot.open = false;
        self.free.push(leader as u16);
        if let Some(follower) = slot.follower.take() {
            self.slots[usize::from(follower)].open = false;
            self.free.push(follower);
        }
    }

    // --- the end ---

    /// Opcode of a command whose time is over.
    pub(super) fn overdue(&self, now: u64) -> Option<u8> {
        self.slots.iter().find(|slot| slot.io.is_some() && slot.deadline < now).map(|slot| slot.opcode)
    }

    /// Nothing is with the kernel any more and nothing will come: all I/Os end with `status`.
    pub(super) fn end(&mut self, status: IoStatus, reactor: &Reactor) {
        let unsent = Outgoing::new(0, 0);
        let unsent = std::mem::replace(&mut self.open, unsent);
        self.reclaim(unsent, reactor);
        self.to_send.clear();
        for index in 0..self.slots.len() {
            if self.slots[index].io.is_none() {
                continue;
            }
            debug_assert_eq!(self.slots[index].lent, 0, "the sender gave everything back");
            self.gather(index);
            let slot = &mut self.slots[index];
            slot.unanswered = 0;
            slot.grants.clear();
            let Some(mut io) = slot.io.take() else { continue };
            io.scratch = 0;
            io.status = status;
            self.release(index);
            reactor.complete(io);
        }
        while let Some(mut io) = self.next.take().or_else(|| self.waiting.pop()) {
            io.status = status;
            reactor.complete(io);
        }
    }
}

/// A buffer taken out of its I/O to be received into.
#[derive(Debug)]
pub(super) struct Placed {
    index: u16,
    segment: u8,
    /// First byte to receive.
    pub(super) position: usize,
    whole: usize,
    /// Cut behind the last byte to receive.
    pub(super) buf: Buf,
}

/// Opcode of the commands of the Fabrics Command Set: the answer to Connect says by its head whether there is flow control.
const FABRICS: u8 = crate::nvme::spec::AdminOpcode::FABRICS.0;

/// Where SQHD stands in a response PDU.
const SQHD_OFFSET: usize =
    std::mem::offset_of!(crate::nvme::tcp::CapsuleRespPdu, cqe) + std::mem::offset_of!(Cqe, sqhd);

/// A buffer from its front and what follows in memory.
fn join(front: Option<Buf>, next: Buf) -> Buf {
    match front {
        None => next,
        Some(mut front) => match front.unsplit(next) {
            Ok(()) => front,
            Err(stray) => unreachable!("{stray:?} does not follow {front:?}"),
        },
    }
}
