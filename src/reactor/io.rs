//! The `Io`: a request on its way through the block layer, and the table that all of a reactor's Ios come from.
//!
//! An [`Io`] is a move-only handle of eight bytes. Who holds it may touch it, nobody else; dropping one is a bug and aborts
//! the process, because a lost request is a host that waits for ever, or worse, a buffer that a device still writes.
//!
//! ```text
//!            create            submit -> Pending                 terminal completion
//!  (table) ---------> task ----------------------> channel --------------------------> landed ---> task
//!                      ^                             | park: trades the handle for a token         |
//!                      |                             | unpark: gets it back with the completion    |
//!                      +-----------------------------------------------------------------------+
//! ```
//! If the task that waits is gone, the Io is an *orphan*: it keeps its buffers until the device is done with them, and
//! is retired when it lands.

use std::cell::{Cell, RefCell};
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use hugepages::{Buf, Region};

use super::task::TaskId;
use crate::limits::{IOS_PER_REACTOR, SEGMENTS_MAX, STACK_DEPTH_MAX};
use crate::sys::ublk::RequestData;

/// What is asked of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum IoOp {
    /// Fill the data with `len` bytes from `offset`.
    #[default]
    Read,
    /// Store the data at `offset`; durable before completion if `fua`.
    Write,
    /// Everything acknowledged before this is on stable media when it completes. No range.
    Flush,
    /// The range's contents are no longer needed: it reads as zeros afterwards.
    Unmap,
    /// The range reads as zeros afterwards; durable before completion if `fua`.
    WriteZeroes,
    /// Succeeds if the range equals the data, else [`IoStatus::Miscompare`].
    Compare,
    /// The data is two halves of `len` bytes each: if the range equals the first, the second is stored, as one step for all
    /// writers of all reactors.
    CompareAndWrite,
    /// Ends what is in flight, best effort; completes when nothing submitted before is left. No range.
    Reset,
    /// Succeeds if all of the range can be read from the medium, else fails as a read of it does. Changes nothing and gives nothing back.
    Verify,
    /// Fills the data, `len` bytes, with records (`ExtentRecord` of the block layer) of what holds data and what was never written or is
    /// unmapped, from the byte `offset` on: one behind the other, as many as there are and fit, or as a look of some length finds. The rest
    /// is zeroed.
    Extents,
    /// Stores the data at the write pointer of the zone that begins at `offset`; durable before completion if `fua`. On success
    /// [`IoCell::info`] is the byte of the device where the data begins. Appends to a zone may be in flight together.
    ZoneAppend,
    /// Opens the zone that is the range, so that it stays open until it is closed, finished or reset. As the other operations that
    /// manage zones, on the whole device: all zones whose state it is for, which are those that are closed.
    ZoneOpen,
    /// Closes the zone: it takes none of the open resources any more. On the whole device: all that are open.
    ZoneClose,
    /// Makes the zone full. On the whole device: all that are open or closed.
    ZoneFinish,
    /// Makes the zone empty: nothing of its contents is left. On the whole device: all that are open, closed or full.
    ZoneReset,
    /// Fills the data, `len` bytes, with records (`ZoneRecord` of the block layer) of the zones from the one that begins at `offset` on,
    /// as many as there are and fit; the rest is zeroed.
    ZoneReport,
}

impl IoOp {
    /// All operations, in the order of their numbers.
    pub const ALL: [IoOp; 16] = [
        IoOp::Read,
        IoOp::Write,
        IoOp::Flush,
        IoOp::Unmap,
        IoOp::WriteZeroes,
        IoOp::Compare,
        IoOp::CompareAndWrite,
        IoOp::Reset,
        IoOp::Verify,
        IoOp::Extents,
        IoOp::ZoneAppend,
        IoOp::ZoneOpen,
        IoOp::ZoneClose,
        IoOp::ZoneFinish,
        IoOp::ZoneReset,
        IoOp::ZoneReport,
    ];

    /// Whether offset and length are those of a range of blocks.
    #[inline]
    pub fn has_range(self) -> bool {
        !matches!(self, IoOp::Flush | IoOp::Reset) && !self.is_report()
    }

    /// Whether its data tells of the device from `offset` on: `len` is that of the data, and says nothing of a range.
    #[inline]
    pub fn is_report(self) -> bool {
        matches!(self, IoOp::Extents | IoOp::ZoneReport)
    }

    /// Whether only devices with zones can have it.
    #[inline]
    pub const fn is_of_zones(self) -> bool {
        self as u8 >= IoOp::ZoneAppend as u8
    }

    /// Whether it changes the state of a zone, or of all, and moves no data.
    #[inline]
    pub fn manages_zones(self) -> bool {
        matches!(self, IoOp::ZoneOpen | IoOp::ZoneClose | IoOp::ZoneFinish | IoOp::ZoneReset)
    }

    /// Whether it stores at the write pointer of a zone, if the device has zones, and moves that on: a second time it does something else.
    #[inline]
    pub fn moves_write_pointer(self) -> bool {
        matches!(self, IoOp::Write | IoOp::WriteZeroes | IoOp::ZoneAppend)
    }

    /// Whether the operation changes what is stored, or the state of zones.
    #[inline]
    pub fn writes(self) -> bool {
        match self {
            IoOp::Write | IoOp::Unmap | IoOp::WriteZeroes | IoOp::CompareAndWrite | IoOp::ZoneAppend => true,
            IoOp::ZoneOpen | IoOp::ZoneClose | IoOp::ZoneFinish | IoOp::ZoneReset => true,
            IoOp::Read | IoOp::Flush | IoOp::Compare | IoOp::Reset | IoOp::Verify => false,
            IoOp::Extents | IoOp::ZoneReport => false,
        }
    }

    /// Bytes of data that travel with `len` bytes of range.
    #[inline]
    pub fn data_len(self, len: u64) -> u64 {
        match self {
            IoOp::Read | IoOp::Write | IoOp::Compare | IoOp::Extents | IoOp::ZoneAppend | IoOp::ZoneReport => len,
            IoOp::CompareAndWrite => 2 * len,
            IoOp::Flush | IoOp::Unmap | IoOp::WriteZeroes | IoOp::Reset | IoOp::Verify => 0,
            IoOp::ZoneOpen | IoOp::ZoneClose | IoOp::ZoneFinish | IoOp::ZoneReset => 0,
        }
    }
}

/// How an I/O ended. Each door maps these once, at its edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum IoStatus {
    /// Done as asked.
    #[default]
    Success,
    /// The range ends beyond the device.
    OutOfRange,
    /// Offset or length is no multiple of the block size.
    Misaligned,
    /// A range of no blocks.
    Empty,
    /// The data's length does not match the range.
    DataLength,
    /// The device cannot do this.
    Unsupported,
    /// The device may not be written.
    ReadOnly,
    /// Compare found a difference; nothing was written.
    Miscompare,
    /// The medium below is full.
    NoSpace,
    /// The medium failed to read or write.
    MediaError,
    /// The device failed, was unreachable or answered nonsense.
    DeviceError,
    /// Ended by a reset or an abort.
    Aborted,
    /// The device was removed or closed.
    Gone,
    /// A write or append beyond the capacity of its zone, or a range across zones where there may be none.
    ZoneBoundary,
    /// A write to a zone that is full.
    ZoneFull,
    /// A write to a zone that can only be read.
    ZoneReadOnly,
    /// The zone can neither be read nor written.
    ZoneOffline,
    /// A write that does not begin at the write pointer of its zone.
    ZoneInvalidWrite,
    /// As many zones are active as there may be: open or closed.
    ZoneTooManyActive,
    /// As many zones are open as there may be.
    ZoneTooManyOpen,
    /// The zone is in a state from which there is no way to the one that was asked for.
    ZoneInvalidTransition,
}

impl IoStatus {
    /// All statuses, in the order of their numbers.
    pub const ALL: [IoStatus; 21] = [
        IoStatus::Success,
        IoStatus::OutOfRange,
        IoStatus::Misaligned,
        IoStatus::Empty,
        IoStatus::DataLength,
        IoStatus::Unsupported,
        IoStatus::ReadOnly,
        IoStatus::Miscompare,
        IoStatus::NoSpace,
        IoStatus::MediaError,
        IoStatus::DeviceError,
        IoStatus::Aborted,
        IoStatus::Gone,
        IoStatus::ZoneBoundary,
        IoStatus::ZoneFull,
        IoStatus::ZoneReadOnly,
        IoStatus::ZoneOffline,
        IoStatus::ZoneInvalidWrite,
        IoStatus::ZoneTooManyActive,
        IoStatus::ZoneTooManyOpen,
        IoStatus::ZoneInvalidTransition,
    ];
}

const _: () = {
    let mut index = 0;
    while index < IoStatus::ALL.len() {
        assert!(IoStatus::ALL[index] as usize == index);
        index += 1;
    }
};

/// Data of an I/O, in place.
#[derive(Debug)]
pub enum Segment {
    /// Memory of the DMA arena.
    Buf(Buf),
    /// A range of memory that several cores touch at once (a RAM volume, a guest): copy in and copy out, never a slice.
    Region {
        /// The memory.
        region: Region,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Data of a request of the kernel's, which has no address here: copied by calls, or given back to the kernel as it is.
    /// Only for devices that take it: see the traits of a device.
    Request(RequestData),
}

impl Segment {
    /// Bytes.
    pub fn len(&self) -> usize {
        match self {
            Segment::Buf(buf) => buf.len(),
            Segment::Region { len, .. } => *len as usize,
            Segment::Request(data) => data.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The scattered data of one I/O: at most [`SEGMENTS_MAX`] pieces, in place, never on the heap.
#[derive(Debug, Default)]
pub struct Segments {
    pieces: [Option<Segment>; SEGMENTS_MAX],
    count: u8,
}

impl Segments {
    /// Appends a piece.
    ///
    /// # Panics
    /// If all places are taken: doors gather at most [`SEGMENTS_MAX`].
    #[inline(always)]
    pub fn push(&mut self, segment: Segment) {
        self.pieces[usize::from(self.count)] = Some(segment);
        self.count += 1;
    }

    /// Appends a buffer.
    #[inline]
    pub fn push_buf(&mut self, buf: Buf) {
        self.push(Segment::Buf(buf));
    }

    /// The pieces in order.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = &Segment> {
        self.pieces[..usize::from(self.count)].iter().flatten()
    }

    /// The pieces in order, to be filled.
    #[inline]
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Segment> {
        self.pieces[..usize::from(self.count)].iter_mut().flatten()
    }

    /// Number of pieces.
    #[inline]
    pub fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// Bytes in all pieces.
    #[inline]
    pub fn bytes(&self) -> u64 {
        self.iter().map(|s| s.len() as u64).sum()
    }

    /// Takes the last piece.
    #[inline]
    pub fn pop(&mut self) -> Option<Segment> {
        if self.count == 0 {
            return None;
        }
        self.count -= 1;
        self.pieces[usize::from(self.count)].take()
    }

    /// Takes piece `index` out and leaves its place for [`Segments::put_back`].
    pub fn take(&mut self, index: usize) -> Option<Segment> {
        self.pieces.get_mut(index)?.take()
    }

    /// Returns a piece to its place.
    pub fn put_back(&mut self, index: usize, segment: Segment) {
        debug_assert!(index < usize::from(self.count) && self.pieces[index].is_none());
        self.pieces[index] = Some(segment);
    }

    /// The one piece, if there is exactly one.
    #[inline]
    pub fn sole(&self) -> Option<&Segment> {
        if self.count == 1 { self.pieces[0].as_ref() } else { None }
    }

    /// The one piece, if there is exactly one, to be changed.
    #[inline]
    pub fn sole_mut(&mut self) -> Option<&mut Segment> {
        if self.count == 1 { self.pieces[0].as_mut() } else { None }
    }

    /// The one buffer, if there is exactly one piece and it is a buffer.
    #[inline]
    pub fn single_buf(&self) -> Option<&Buf> {
        match self.sole() {
            Some(Segment::Buf(buf)) => Some(buf),
            _ => None,
        }
    }

    /// Takes all pieces, leaving none.
    pub fn take_all(&mut self) -> Segments {
        std::mem::take(self)
    }

    /// Drops all pieces: buffers go home.
    #[inline]
    pub fn clear(&mut self) {
        while self.pop().is_some() {}
    }
}

/// What a layer left on an I/O to find its way back: sixteen bytes of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Frame {
    /// The layer's own, for example the time at which the request came to it.
    pub a: u64,
    /// The layer's own.
    pub b: u64,
}

/// Slots are below this bit, generations above the byte that begins there.
const TAG_NUMBER_SHIFT: u32 = 24;
const _: () = assert!(IOS_PER_REACTOR <= 1 << TAG_NUMBER_SHIFT, "a slot leaves the number's byte free");

/// Names an I/O that its holder gave to the kernel or to hardware: slot and generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoToken(u64);

impl IoToken {
    /// As a tag of a backend operation.
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// Back from a tag.
    pub fn from_bits(bits: u64) -> IoToken {
        IoToken(bits)
    }

    /// As a tag of one of several backend operations of the I/O, with a number of its own.
    #[inline]
    pub fn to_tag(self, number: u8) -> u64 {
        self.0 | u64::from(number) << TAG_NUMBER_SHIFT
    }

    /// Back from [`IoToken::to_tag`].
    #[inline]
    pub fn from_tag(tag: u64) -> (IoToken, u8) {
        let number = (tag >> TAG_NUMBER_SHIFT) as u8;
        (IoToken(tag & !(0xFF << TAG_NUMBER_SHIFT)), number)
    }

    /// The slot of the I/O in its reactor's table.
    pub fn slot(self) -> u32 {
        self.0 as u32
    }
}

/// The cell behind an [`Io`]. Fields that describe the request belong to whoever holds the handle.
#[derive(Debug)]
pub struct IoCell {
    /// What is asked.
    pub op: IoOp,
    /// How it ended; meaningful once complete.
    pub status: IoStatus,
    /// Durable before completion (write, write zeroes).
    pub fua: bool,
    /// Seen by every reader and writer of every reactor as a whole or not at all (write, of at most `DeviceLimits::atomic_max` bytes).
    pub atomic: bool,
    /// Service class, 0 is the default.
    pub class: u8,
    depth: u8,
    slot: u32,
    generation: u32,
    task: TaskId,
    /// First byte of the range.
    pub offset: u64,
    /// Bytes of the range; of a report the bytes of its data.
    pub len: u64,
    /// When the block layer took it, in nanoseconds of the reactor's clock.
    pub start: u64,
    /// Follows the request through all layers and machines; 0 is none.
    pub trace: u64,
    /// Belongs to the device that holds the I/O while it is pending.
    pub scratch: u64,
    /// What is known beyond the status. Position inside the transfer that a check failed at: first different byte of a compare. Of an append
    /// that succeeded the first byte of the device that it wrote.
    pub info: u64,
    next: Option<Io>,
    closing: Rc<Cell<bool>>,
    /// The data.
    pub data: Segments,
    /// Whose frames they are, by their numbers in the reactor.
    layers: [u32; STACK_DEPTH_MAX],
    frames: [Frame; STACK_DEPTH_MAX],
}

/// The move-only handle of a request. See the module's head.
#[must_use = "an Io must be submitted, completed or retired; dropping one aborts the process"]
pub struct Io(Box<IoCell>);

const _: () = assert!(size_of::<Io>() == 8 && size_of::<Option<Io>>() == 8);

impl Io {
    /// Sets up a request without data and forgets the last one's result.
    #[inline]
    pub fn prepare(&mut self, op: IoOp, offset: u64, len: u64) {
        debug_assert!(self.0.depth == 0, "frames of an earlier request are left");
        let cell = &mut *self.0;
        cell.op = op;
        cell.status = IoStatus::Success;
        cell.fua = false;
        cell.atomic = false;
        cell.offset = offset;
        cell.len = len;
        cell.info = 0;
        cell.trace = 0;
    }

    /// This I/O's slot in its reactor's table.
    #[inline]
    pub fn slot(&self) -> u32 {
        self.0.slot
    }

    /// Leaves a frame that layer number `layer` gets back with the completion.
    ///
    /// # Panics
    /// Beyond [`STACK_DEPTH_MAX`], which building a stack checks.
    #[inline]
    pub fn push_frame(&mut self, layer: u32, frame: Frame) {
        let depth = usize::from(self.0.depth);
        self.0.layers[depth] = layer;
        self.0.frames[depth] = frame;
        self.0.depth += 1;
    }

    /// Takes the last frame, and says whose it is.
    #[inline]
    pub fn pop_frame(&mut self) -> Option<(u32, Frame)> {
        if self.0.depth == 0 {
            return None;
        }
        self.0.depth -= 1;
        let depth = usize::from(self.0.depth);
        Some((self.0.layers[depth], self.0.frames[depth]))
    }

    /// Sets the status and returns the handle, for the last line of a submit.
    #[inline]
    pub fn with_status(mut self, status: IoStatus) -> Io {
        self.0.status = status;
        self
    }

    #[inline]
    pub(super) fn set_task(&mut self, task: TaskId) {
        self.0.task = task;
    }
}

impl Deref for Io {
    type Target = IoCell;
    #[inline]
    fn deref(&self) -> &IoCell {
        &self.0
    }
}

impl DerefMut for Io {
    #[inline]
    fn deref_mut(&mut self) -> &mut IoCell {
        &mut self.0
    }
}

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let c = &*self.0;
        write!(f, "Io({} {:?} {}+{} {:?})", c.slot, c.op, c.offset, c.len, c.status)
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        if self.0.closing.get() || std::thread::panicking() {
            return;
        }
        // Unwinding from here could run into more of the same; a lost request must not be survived.
        eprintln!("reactor: bug: {self:?} was dropped (trace {:#x}): a request would be lost", self.0.trace);
        std::process::abort();
    }
}

/// A queue of Ios linked through the Ios themselves: it never allocates, and there is always room.
///
/// First in, first out, as two stacks: links then only ever point at owned handles.
#[derive(Default)]
pub struct IoList {
    newest: Cell<Option<Io>>,
    oldest: Cell<Option<Io>>,
    len: Cell<usize>,
}

impl IoList {
    /// Appends.
    #[inline]
    pub fn push(&self, mut io: Io) {
        debug_assert!(io.0.next.is_none());
        io.0.next = self.newest.take();
        self.newest.set(Some(io));
        self.len.set(self.len.get() + 1);
    }

    /// Takes the oldest.
    #[inline]
    pub fn pop(&self) -> Option<Io> {
        let mut first = self.oldest.take();
        if first.is_none() {
            let mut newest = self.newest.take();
            while let Some(mut io) = newest {
                newest = io.0.next.take();
                io.0.next = first;
                first = Some(io);
            }
        }
        let mut io = first?;
        self.oldest.set(io.0.next.take());
        self.len.set(self.len.get() - 1);
        Some(io)
    }

    /// Puts one back that was the oldest.
    pub fn push_front(&self, mut io: Io) {
        debug_assert!(io.0.next.is_none());
        io.0.next = self.oldest.take();
        self.oldest.set(Some(io));
        self.len.set(self.len.get() + 1);
    }

    /// Takes the one of that slot, for an abort; looks at all of them.
    pub fn remove(&self, slot: u32) -> Option<Io> {
        let mut found = None;
        for _ in 0..self.len() {
            match self.pop() {
                Some(io) if io.slot() == slot => found = Some(io),
                Some(io) => self.push(io),
                None => break,
            }
        }
        found
    }

    /// How many wait.
    #[inline]
    pub fn len(&self) -> usize {
        self.len.get()
    }

    /// Whether none waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len.get() == 0
    }
}

impl std::fmt::Debug for IoList {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IoList({})", self.len.get())
    }
}

impl Drop for IoList {
    fn drop(&mut self) {
        // One by one: a chain of owned links would drop recursively.
        while let Some(io) = self.pop() {
            drop(io);
        }
    }
}

/// Where an Io is that nobody holds.
#[derive(Debug, Default)]
struct Slot {
    generation: u32,
    /// Its task is gone: retire it when it lands.
    orphan: bool,
    /// A device traded it for a token.
    parked: Option<Io>,
    /// Complete; its task has been woken.
    landed: Option<Io>,
}

/// All Ios of one reactor.
#[derive(Debug)]
pub(super) struct IoTable {
    slots: RefCell<Vec<Slot>>,
    free: IoList,
    closing: Rc<Cell<bool>>,
    stale: Cell<u64>,
}

impl IoTable {
    pub(super) fn new() -> IoTable {
        IoTable {
            slots: RefCell::new(Vec::new()),
            free: IoList::default(),
            closing: Rc::new(Cell::new(false)),
            stale: Cell::new(0),
        }
    }

    pub(super) fn create(&self) -> Option<Io> {
        if let Some(io) = self.free.pop() {
            return Some(io);
        }
        let mut slots = self.slots.borrow_mut();
        if slots.len() >= IOS_PER_REACTOR {
            return None;
        }
        let slot = slots.len() as u32;
        slots.push(Slot::default());
        Some(Io(Box::new(IoCell {
            op: IoOp::Read,
            status: IoStatus::Success,
            fua: false,
            atomic: false,
            class: 0,
            depth: 0,
            slot,
            generation: 0,
            task: TaskId::NONE,
            offset: 0,
            len: 0,
            start: 0,
            trace: 0,
            scratch: 0,
            info: 0,
            next: None,
            closing: self.closing.clone(),
            data: Segments::default(),
            layers: [0; STACK_DEPTH_MAX],
            frames: [Frame::default(); STACK_DEPTH_MAX],
        })))
    }

    pub(super) fn retire(&self, mut io: Io) {
        io.0.data.clear();
        io.0.depth = 0;
        io.0.task = TaskId::NONE;
        self.free.push(io);
    }

    pub(super) fn park(&self, mut io: Io) -> IoToken {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[io.0.slot as usize];
        slot.generation = slot.generation.wrapping_add(1);
        io.0.generation = slot.generation;
        let token = IoToken(u64::from(slot.generation) << 32 | u64::from(io.0.slot));
        slot.parked = Some(io);
        token
    }

    /// What is parked under a token, if the token is not stale.
    #[inline]
    fn parked<R>(&self, token: IoToken, f: impl FnOnce(&mut Option<Io>) -> Option<R>) -> Option<R> {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(token.0 as u32 as usize).filter(|slot| slot.generation == (token.0 >> 32) as u32);
        let found = slot.and_then(|slot| f(&mut slot.parked));
        if found.is_none() {
            self.stale.set(self.stale.get() + 1);
        }
        found
    }

    #[inline]
    pub(super) fn unpark(&self, token: IoToken) -> Option<Io> {
        self.parked(token, Option::take)
    }

    pub(super) fn with_parked<R>(&self, token: IoToken, f: impl FnOnce(&mut IoCell) -> R) -> Option<R> {
        self.parked(token, |io| io.as_mut().map(|io| f(io)))
    }

    /// A completed I/O arrives for its task; the task to wake, unless it is an orphan.
    #[inline]
    pub(super) fn land(&self, io: Io) -> Option<TaskId> {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[io.0.slot as usize];
        if slot.orphan {
            slot.orphan = false;
            drop(slots);
            self.retire(io);
            return None;
        }
        let task = io.0.task;
        let before = slot.landed.replace(io);
        debug_assert!(before.is_none(), "an I/O lands once");
        // There is nothing to drop, which the compiler does not know.
        std::mem::forget(before);
        Some(task)
    }

    /// The landed I/O of `slot`, if it has landed.
    #[inline]
    pub(super) fn claim(&self, slot: u32) -> Option<Io> {
        self.slots.borrow_mut()[slot as usize].landed.take()
    }

    /// The task that waited for `slot` is gone.
    pub(super) fn abandon(&self, slot: u32) {
        let mut slots = self.slots.borrow_mut();
        let slot = &mut slots[slot as usize];
        match slot.landed.take() {
            Some(io) => {
                drop(slots);
                self.retire(io);
            }
            None => slot.orphan = true,
        }
    }

    /// Ios that somebody holds.
    pub(super) fn in_use(&self) -> usize {
        self.slots.borrow().len() - self.free.len()
    }

    /// Tokens that named nothing: completions of a device that were late or invented.
    pub(super) fn stale(&self) -> u64 {
        self.stale.get()
    }

    /// From here on handles may be dropped: the reactor goes, and every device of it is quiet.
    pub(super) fn close(&self) {
        self.closing.set(true);
    }

    /// Drops what devices had parked and what landed unseen, with its buffers, once no device can come back for it.
    pub(super) fn discard(&self) {
        for slot in self.slots.borrow_mut().iter_mut() {
            (slot.parked, slot.landed) = (None, None);
        }
    }

    /// Whether the table was closed.
    pub(super) fn is_closed(&self) -> bool {
        self.closing.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_first_in_first_out_and_count() {
        let table = IoTable::new();
        let list = IoList::default();
        let slots = |n: u32| (0..n).map(|_| table.create().unwrap()).collect::<Vec<_>>();
        for io in slots(3) {
            list.push(io);
        }
        assert_eq!(list.pop().map(|io| (io.slot(), table.retire(io))), Some((0, ())));
        list.push(table.create().unwrap());
        let order: Vec<u32> = std::iter::from_fn(|| list.pop()).map(|io| (io.slot(), table.retire(io)).0).collect();
        assert_eq!(order, [1, 2, 0]);
        assert_eq!(list.len(), 0);
        slots(2).into_iter().for_each(|io| list.push(io));
        let first = list.pop().unwrap();
        list.push_front(first);
        let order: Vec<u32> = std::iter::from_fn(|| list.pop()).map(|io| (io.slot(), table.retire(io)).0).collect();
        assert_eq!(order, [1, 2], "as if it had never been taken");
        slots(3).into_iter().for_each(|io| list.push(io));
        assert!(list.remove(9).is_none());
        let middle = list.remove(2).map(|io| (io.slot(), table.retire(io)).0);
        let order: Vec<u32> = std::iter::from_fn(|| list.pop()).map(|io| (io.slot(), table.retire(io)).0).collect();
        assert_eq!((middle, order.len()), (Some(2), 2), "{order:?}");
        table.close();
    }

    #[test]
    fn a_stale_token_yields_nothing_and_is_counted() {
        let table = IoTable::new();
        let token = table.park(table.create().unwrap());
        assert!(table.with_parked(token, |cell| cell.scratch = 7).is_some());
        let io = table.unpark(token).unwrap();
        assert_eq!(io.scratch, 7);
        assert!(table.unpark(token).is_none());
        let again = table.park(io);
        assert!(table.unpark(token).is_none());
        assert_eq!(table.stale(), 2);
        table.retire(table.unpark(again).unwrap());
        table.close();
    }

    #[test]
    fn an_orphan_is_retired_when_it_lands_not_before() {
        let table = IoTable::new();
        let io = table.create().unwrap();
        let slot = io.slot();
        let token = table.park(io);
        table.abandon(slot);
        let io = table.unpark(token).expect("the device still finds it");
        assert!(table.land(io).is_none(), "nobody is woken");
        assert_eq!(table.create().map(|io| (io.slot(), table.retire(io)).0), Some(slot));
        table.close();
    }
}
