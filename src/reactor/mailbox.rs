//! Messages between reactors, and from control threads to a reactor.
//!
//! One bounded lock-free ring per pair of reactors; one bounded queue from all control threads. A sender pushes, then once per
//! batch fences and rings the doorbell of those that sleep: waking costs the sender a system call, so who is awake is not rung.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crossbeam_queue::ArrayQueue;
use hugepages::{Pool, Region, RemoteBuf};

use super::Reactor;
use super::io::{IoOp, IoStatus, Segment, Segments};
use crate::limits::{CONTROL_INBOX_LEN, MAILBOX_LEN, SEGMENTS_MAX};
use crate::sys::socket::{Doorbell, Eventfd};
use crate::sys::ublk::RequestData;

/// A request that runs on another reactor.
pub type Call = Box<dyn FnOnce(&Rc<Reactor>) + Send>;

/// A [`Segment`] on its way to another reactor.
#[derive(Debug)]
pub enum RemoteSegment {
    /// Memory of the DMA arena.
    Buf(RemoteBuf),
    /// A range of memory that several cores touch at once.
    Region {
        /// The memory.
        region: Region,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u32,
    },
    /// Data of a request of the kernel's, which any thread may copy.
    Request(RequestData),
}

impl From<Segment> for RemoteSegment {
    fn from(segment: Segment) -> RemoteSegment {
        match segment {
            Segment::Buf(buf) => RemoteSegment::Buf(buf.into_remote()),
            Segment::Region { region, offset, len } => RemoteSegment::Region { region, offset, len },
            Segment::Request(data) => RemoteSegment::Request(data.unregistered()),
        }
    }
}

impl RemoteSegment {
    /// As a segment of the reactor that `pool` belongs to.
    pub fn import(self, pool: &Pool) -> Segment {
        match self {
            RemoteSegment::Buf(buf) => Segment::Buf(pool.import(buf)),
            RemoteSegment::Region { region, offset, len } => Segment::Region { region, offset, len },
            RemoteSegment::Request(data) => Segment::Request(data),
        }
    }
}

/// An I/O on its way to another reactor and back: a description and owned buffers, never the [`super::Io`] itself.
///
/// The box is reused by its sender for every I/O it forwards.
#[derive(Debug)]
pub struct Parcel {
    /// What is asked.
    pub op: IoOp,
    /// Durable before completion.
    pub fua: bool,
    /// Seen as a whole or not at all.
    pub atomic: bool,
    /// Service class.
    pub class: u8,
    /// How it ended.
    pub status: IoStatus,
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Trace id.
    pub trace: u64,
    /// First different byte of a compare.
    pub info: u64,
    /// The data, at home on the sender's core; pieces in order, from the first.
    pub data: [Option<RemoteSegment>; SEGMENTS_MAX],
    /// Which device at the receiver: the sink's meaning.
    pub target: u32,
    /// The sender's sink and tag for the answer.
    pub reply_to: (u16, u32, u64),
}

impl Parcel {
    /// An empty one, to be filled.
    pub fn new() -> Parcel {
        Parcel {
            op: IoOp::Read,
            fua: false,
            atomic: false,
            class: 0,
            status: IoStatus::Success,
            offset: 0,
            len: 0,
            trace: 0,
            info: 0,
            data: [const { None }; SEGMENTS_MAX],
            target: 0,
            reply_to: (0, 0, 0),
        }
    }

    /// Moves all pieces of `segments` into the parcel.
    pub fn load(&mut self, segments: &mut Segments) {
        let mut pieces = segments.take_all();
        for (index, place) in self.data.iter_mut().enumerate() {
            *place = pieces.take(index).map(RemoteSegment::from);
        }
    }

    /// Moves all pieces out of the parcel, behind those that `segments` has.
    pub fn unload(&mut self, segments: &mut Segments, pool: &Pool) {
        for piece in self.data.iter_mut().map_while(Option::take) {
            segments.push(piece.import(pool));
        }
    }
}

impl Default for Parcel {
    fn default() -> Parcel {
        Parcel::new()
    }
}

/// What reactors send each other.
pub enum Message {
    /// Run this on the receiver.
    Call(Call),
    /// An I/O or its answer for a sink of the receiver.
    Parcel(u32, Box<Parcel>),
}

/// What other threads know of a reactor.
#[derive(Debug)]
pub struct Shared {
    /// The reactor's number.
    pub id: u16,
    asleep: AtomicBool,
    doorbell: Doorbell,
    inbox: ArrayQueue<Message>,
    stopping: AtomicBool,
    closed: AtomicBool,
    turns: AtomicU64,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Message::Call(_) => f.write_str("Call"),
            Message::Parcel(sink, parcel) => write!(f, "Parcel({sink}, {parcel:?})"),
        }
    }
}

/// A control thread's handle on a reactor.
#[derive(Clone, Debug)]
pub struct Remote(Arc<Shared>);

impl Remote {
    pub(super) fn new(id: u16) -> std::io::Result<Remote> {
        Ok(Remote::with_doorbell(id, Doorbell::Eventfd(Eventfd::new()?)))
    }

    pub(super) fn with_doorbell(id: u16, doorbell: Doorbell) -> Remote {
        Remote(Arc::new(Shared {
            id,
            asleep: AtomicBool::new(false),
            doorbell,
            inbox: ArrayQueue::new(CONTROL_INBOX_LEN),
            stopping: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            turns: AtomicU64::new(0),
        }))
    }

    /// The reactor's number.
    pub fn id(&self) -> u16 {
        self.0.id
    }

    /// Runs `call` on the reactor, soon. For control threads; reactors use [`Reactor::send`].
    pub fn send(&self, call: Call) {
        let mut message = Message::Call(call);
        while let Err(back) = self.0.inbox.push(message) {
            message = back;
            if self.0.closed.load(Ordering::SeqCst) {
                return;
            }
            std::thread::yield_now();
        }
        self.wake();
        if self.0.closed.load(Ordering::SeqCst) {
            self.drain();
        }
    }

    /// Nobody reads this inbox any more: calls that wait are dropped, so that who asked is told.
    pub(super) fn close(&self) {
        self.0.closed.store(true, Ordering::SeqCst);
        self.drain();
    }

    fn drain(&self) {
        while self.0.inbox.pop().is_some() {}
    }

    /// Whether the reactor has ended, or ends: it answers nobody any more. One that nobody has stopped has panicked.
    pub fn has_ended(&self) -> bool {
        self.0.closed.load(Ordering::SeqCst)
    }

    /// Runs `f` on the reactor and waits for its answer. For control threads only: it blocks.
    ///
    /// `None` if the reactor ended before it answered.
    pub fn ask<R: Send + 'static>(&self, f: impl FnOnce(&Rc<Reactor>) -> R + Send + 'static) -> Option<R> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.send(Box::new(move |reactor| {
            // The asker is gone if its thread is; then nobody needs the answer.
            let _ = sender.send(f(reactor));
        }));
        receiver.recv().ok()
    }

    /// As [`Remote::ask`], but waits no longer than `limit`.
    pub fn ask_within<R: Send + 'static>(
        &self,
        limit: std::time::Duration,
        f: impl FnOnce(&Rc<Reactor>) -> R + Send + 'static,
    ) -> Option<R> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.send(Box::new(move |reactor| {
            // The asker may have given up.
            let _ = sender.send(f(reactor));
        }));
        receiver.recv_timeout(limit).ok()
    }

    /// Asks the reactor's thread to end its loop after this turn.
    pub fn stop(&self) {
        self.0.stopping.store(true, Ordering::Release);
        self.wake();
    }

    /// Turns done so far: a number that stands still on a reactor that is not asleep is a stall.
    pub fn turns(&self) -> u64 {
        self.0.turns.load(Ordering::Relaxed)
    }

    /// Whether the reactor sleeps in its ring.
    pub fn is_asleep(&self) -> bool {
        self.0.asleep.load(Ordering::Relaxed)
    }

    pub(super) fn doorbell(&self) -> &Doorbell {
        &self.0.doorbell
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Acquire)
    }

    pub(super) fn count_turn(&self) {
        // One writer: a plain add, no read-modify-write.
        self.0.turns.store(self.0.turns.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// After a push: rings the doorbell if the receiver sleeps. The fence pairs with the one in [`Mailbox::fall_asleep`]:
    /// either the receiver sees the message before it sleeps, or this sees it asleep.
    fn wake(&self) {
        fence(Ordering::SeqCst);
        self.wake_after_fence();
    }

    fn wake_after_fence(&self) {
        if self.0.asleep.load(Ordering::Relaxed) {
            self.0.doorbell.ring();
        }
    }
}

/// How a control plane reaches reactors: a control thread blocks until they answer, a simulation turns them meanwhile.
pub trait Reach {
    /// The reactors, in the order of their numbers.
    fn remotes(&self) -> &[Remote];

    /// Runs `f` on one of them and waits for its answer; `None` if it ended before.
    fn ask<R: Send + 'static>(&self, remote: &Remote, f: impl FnOnce(&Rc<Reactor>) -> R + Send + 'static) -> Option<R>;

    /// As [`Reach::ask`], but a reactor that is stuck holds nobody up longer than `limit`.
    fn ask_within<R: Send + 'static>(
        &self,
        remote: &Remote,
        limit: std::time::Duration,
        f: impl FnOnce(&Rc<Reactor>) -> R + Send + 'static,
    ) -> Option<R>;
}

/// For control threads: it blocks.
impl Reach for Vec<Remote> {
    fn remotes(&self) -> &[Remote] {
        self
    }

    fn ask<R: Send + 'static>(&self, remote: &Remote, f: impl FnOnce(&Rc<Reactor>) -> R + Send + 'static) -> Option<R> {
        remote.ask(f)
    }

    fn ask_within<R: Send + 'static>(
        &self,
        remote: &Remote,
        limit: std::time::Duration,
        f: impl FnOnce(&Rc<Reactor>) -> R + Send + 'static,
    ) -> Option<R> {
        remote.ask_within(limit, f)
    }
}

/// One reactor's ends of all rings.
pub(super) struct Mailbox {
    own: Remote,
    outgoing: RefCell<Vec<Outgoing>>,
    incoming: RefCell<Vec<rtrb::Consumer<Message>>>,
    unrung: Cell<bool>,
    /// Messages of this reactor to itself.
    own_mail: RefCell<VecDeque<Message>>,
    closed: Cell<bool>,
}

struct Outgoing {
    peer: Remote,
    ring: Option<rtrb::Producer<Message>>,
    /// What did not fit: sent first, in order, as room appears.
    waiting: VecDeque<Message>,
    rung: bool,
}

impl Mailbox {
    /// The mailboxes of a set of reactors, connected pair by pair.
    pub(super) fn connect(remotes: &[Remote]) -> Vec<Mailbox> {
        let mut boxes: Vec<Mailbox> = remotes
            .iter()
            .map(|own| Mailbox {
                own: own.clone(),
                outgoing: RefCell::new(Vec::new()),
                incoming: RefCell::new(Vec::new()),
                unrung: Cell::new(false),
                own_mail: RefCell::new(VecDeque::new()),
                closed: Cell::new(false),
            })
            .collect();
        for from in 0..boxes.len() {
            for to in 0..boxes.len() {
                let ring = (from != to).then(|| {
                    let (producer, consumer) = rtrb::RingBuffer::new(MAILBOX_LEN);
                    boxes[to].incoming.get_mut().push(consumer);
                    producer
                });
                let peer = remotes[to].clone();
                boxes[from].outgoing.get_mut().push(Outgoing { peer, ring, waiting: VecDeque::new(), rung: true });
            }
        }
        boxes
    }

    pub(super) fn own(&self) -> &Remote {
        &self.own
    }

    pub(super) fn peers(&self) -> usize {
        self.outgoing.borrow().len()
    }

    /// Sends to another reactor; the doorbell follows with [`Mailbox::flush`].
    pub(super) fn send(&self, to: u16, message: Message) {
        if self.closed.get() {
            return;
        }
        if to == self.own.id() {
            self.own_mail.borrow_mut().push_back(message);
            return;
        }
        let mut outgoing = self.outgoing.borrow_mut();
        let out = &mut outgoing[usize::from(to)];
        let Some(ring) = out.ring.as_mut().filter(|_| out.waiting.is_empty()) else {
            out.waiting.push_back(message);
            self.unrung.set(true);
            return;
        };
        if let Err(rtrb::PushError::Full(message)) = ring.push(message) {
            out.waiting.push_back(message);
        }
        out.rung = false;
        self.unrung.set(true);
    }

    /// Rings those that got messages this turn and sleep: one fence for all.
    #[inline]
    pub(super) fn flush(&self) -> bool {
        if !self.unrung.get() {
            return false;
        }
        self.flush_unrung();
        true
    }

    fn flush_unrung(&self) {
        let mut outgoing = self.outgoing.borrow_mut();
        let mut more = false;
        for out in outgoing.iter_mut() {
            while let (Some(ring), false) = (&mut out.ring, out.waiting.is_empty()) {
                if ring.is_full() {
                    more = true;
                    break;
                }
                let message = out.waiting.pop_front().expect("looked");
                out.rung = false;
                ring.push(message).unwrap_or_else(|_| unreachable!("room was seen and only this thread pushes"));
            }
        }
        fence(Ordering::SeqCst);
        for out in outgoing.iter_mut().filter(|o| !o.rung) {
            out.rung = true;
            out.peer.wake_after_fence();
        }
        self.unrung.set(more);
    }

    /// Takes one message.
    #[inline]
    pub(super) fn receive(&self) -> Option<Message> {
        for ring in self.incoming.borrow_mut().iter_mut() {
            if let Ok(message) = ring.pop() {
                return Some(message);
            }
        }
        if let Some(message) = self.own_mail.borrow_mut().pop_front() {
            return Some(message);
        }
        self.own.0.inbox.pop()
    }

    /// Nobody reads here any more, and nobody writes: what is under way is dropped, with the buffers that travel. What is in a ring goes
    /// when both ends are closed.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.own.close();
        let ends = |out: &mut Outgoing| (out.ring.take(), std::mem::take(&mut out.waiting));
        let outgoing: Vec<_> = self.outgoing.borrow_mut().iter_mut().map(ends).collect();
        // Dropped while nothing is borrowed.
        drop((self.incoming.take(), outgoing, self.own_mail.take()));
    }

    /// Whether a message waits.
    #[inline]
    pub(super) fn has_mail(&self) -> bool {
        !self.own.0.inbox.is_empty()
            || !self.own_mail.borrow().is_empty()
            || self.incoming.borrow().iter().any(|r| !r.is_empty())
    }

    /// Announces sleep. If this returns `false` a message came first: do not sleep.
    pub(super) fn fall_asleep(&self) -> bool {
        self.own.0.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.has_mail() || self.own.is_stopping() || self.unrung.get() {
            self.wake_up();
            return false;
        }
        true
    }

    pub(super) fn wake_up(&self) {
        self.own.0.asleep.store(false, Ordering::Relaxed);
    }
}
