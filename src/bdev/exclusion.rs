//! Exclusion of writes on a range, or of reads too, over all reactors, without a lock on the way of an ordinary one.
//!
//! A compare and write (or a device's own read-modify-write) must see no other write to its range between its read and
//! its write, on whichever reactor that arrives. The device's home keeps the order; what is excluded pays for it:
//!
//! ```text
//!   asker                    home (Arbiter)                  every reactor with a channel (Gate)
//!     | acquire range          |                                |
//!     |----------------------->| nothing asked earlier overlaps |
//!     |                        |------------- hold ------------>| new overlapping writes wait
//!     |                        |<------------- ack -------------| overlapping writes in flight have ended
//!     |<------- grant ---------| all have acknowledged          |
//!     | read, compare, write   |                                |
//!     |------- release ------->|----------- released ---------->| what waited goes on
//! ```
//! An atomic write holds its range against reads as well ([`Gate::acquire_from_all`]): once all have acknowledged, no copy of any reactor is
//! on its way, and none begins until it is released. Of reads that only is true of devices that end them within their submission
//! and ask [`Gate::may_read`]; a read needs no ticket.
//!
//! An ordinary write pays one check and a note of its range ([`Gate::admit`], [`Gate::done`]), on its own core. The only
//! reactor with a channel asks and answers itself without a message; messages between reactors are boxes on the heap.
//!
//! A channel that opens while ranges are held lets no write pass until the home has told it which: joining is a round
//! trip too. Everything relies on messages between two reactors arriving in the order they were sent.
//!
//! Deadlock: who waits for a grant may hold nothing that an admitted write needs to end. Devices therefore carry out what
//! acquires on helpers of its own, apart from those that finish admitted I/Os.

mod arbiter;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll};

use super::contract::{Common, DeviceError};
use crate::limits::REACTORS_MAX;
use crate::reactor::io::{Io, IoList, IoStatus};
use crate::reactor::mailbox::Message;
use crate::reactor::{Reactor, TaskId};
use arbiter::Arbiter;

const _: () = assert!(REACTORS_MAX <= u64::BITS as usize, "a set of reactors is one word");

/// Bytes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Bytes; the end does not overflow.
    pub len: u64,
}

impl Range {
    /// Overlaps nothing.
    const NOWHERE: Range = Range { offset: u64::MAX, len: 0 };

    /// The range of an I/O.
    #[inline]
    pub fn of(io: &Io) -> Range {
        Range { offset: io.offset, len: io.len }
    }

    /// Whether both have a byte in common.
    #[inline]
    pub fn overlaps(self, other: Range) -> bool {
        self.offset < other.offset + other.len && other.offset < self.offset + self.len
    }
}

/// A channel that has writes waiting at its [`Gate`].
pub trait Resume {
    /// A write, or read, that waited may try again; the channel submits it anew and completes it in the end. May be called while another
    /// I/O of the channel is being released, never from [`Gate::admit`].
    fn resume(&self, io: Io);
}

/// Permission of one write in flight; goes back by [`Gate::done`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a write that is never done blocks every exclusion of its range"]
pub struct Ticket(u32);

impl Ticket {
    /// To be kept in an I/O's scratch.
    #[inline]
    pub fn to_bits(self) -> u32 {
        self.0
    }

    /// Back from an I/O's scratch.
    #[inline]
    pub fn from_bits(bits: u32) -> Ticket {
        Ticket(bits)
    }
}

#[derive(Debug)]
struct Flight {
    range: Range,
    /// A hold waits for the end of this write.
    watched: bool,
}

/// What waits while a range is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Against {
    Writes,
    ReadsToo,
}

/// A range that is held, as the home tells of it.
#[derive(Clone, Copy, Debug)]
struct Held {
    id: u64,
    range: Range,
    against: Against,
}

#[derive(Debug)]
struct Hold {
    held: Held,
    /// Overlapping writes that were in flight when the hold came.
    left: u32,
    acked: bool,
}

#[derive(Debug)]
enum Request {
    Free,
    Waiting(TaskId),
    Granted(u64),
    /// Who asked is gone: released as soon as it is granted.
    Abandoned,
}

/// What a channel has at the entrance of its writes. One per device and reactor.
pub struct Gate {
    me: Weak<Gate>,
    reactor: Rc<Reactor>,
    device: u32,
    home: u16,
    /// On the home reactor: the arbiter itself.
    arbiter: Option<Rc<Arbiter>>,
    /// Not joined yet, or a range is held: what each write looks at, and each read that does.
    guarded: Cell<bool>,
    joined: Cell<bool>,
    holds: RefCell<Vec<Hold>>,
    flights: RefCell<Vec<Flight>>,
    free_flights: RefCell<Vec<u32>>,
    waiting: IoList,
    channel: Weak<dyn Resume>,
    requests: RefCell<Vec<Request>>,
}

/// The gates of a reactor, by [`Common::id`].
#[derive(Default)]
struct Gates(RefCell<BTreeMap<u32, Weak<Gate>>>);

/// The arbiters at home on a reactor, by [`Common::id`].
#[derive(Default)]
struct Arbiters(RefCell<BTreeMap<u32, Rc<Arbiter>>>);

fn service<T: Default + 'static>(reactor: &Reactor) -> Rc<T> {
    reactor.service::<T>().unwrap_or_else(|| {
        let made = Rc::new(T::default());
        reactor.set_service(made.clone());
        made
    })
}

fn with_gate(reactor: &Reactor, device: u32, f: impl FnOnce(&Gate)) {
    let gate = service::<Gates>(reactor).0.borrow().get(&device).and_then(Weak::upgrade);
    if let Some(gate) = gate {
        f(&gate);
    }
}

fn arbiter_of(reactor: &Reactor, device: u32) -> Rc<Arbiter> {
    let all = service::<Arbiters>(reactor);
    let mut all = all.0.borrow_mut();
    all.entry(device).or_insert_with(|| Rc::new(Arbiter::new(device))).clone()
}

impl Gate {
    /// Whether the device's home exists, to be asked before [`Gate::open`].
    ///
    /// # Errors
    /// If it is no reactor of this process.
    pub fn check_home(reactor: &Reactor, common: &Common) -> Result<(), DeviceError> {
        if common.home() < reactor.reactors() {
            return Ok(());
        }
        Err(DeviceError::Refused(format!(
            "volume \"{}\": its home is reactor {}, and there are {}",
            common.traits().name,
            common.home(),
            reactor.reactors()
        )))
    }

    /// The gate of a channel that is being opened on `reactor`; what waits at it goes to `channel`.
    pub fn open(reactor: &Rc<Reactor>, common: &Common, channel: Weak<dyn Resume>) -> Rc<Gate> {
        let (device, home, here) = (common.id(), common.home(), reactor.id());
        let gate = Rc::new_cyclic(|me| Gate {
            me: me.clone(),
            reactor: reactor.clone(),
            device,
            home,
            arbiter: (home == here).then(|| arbiter_of(reactor, device)),
            guarded: Cell::new(true),
            joined: Cell::new(false),
            holds: RefCell::default(),
            flights: RefCell::default(),
            free_flights: RefCell::default(),
            waiting: IoList::default(),
            channel,
            requests: RefCell::default(),
        });
        {
            let gates = service::<Gates>(reactor);
            let mut gates = gates.0.borrow_mut();
            gates.retain(|_, gate| gate.strong_count() > 0);
            gates.insert(device, Rc::downgrade(&gate));
        }
        match &gate.arbiter {
            Some(arbiter) => gate.welcome(arbiter.join(here)),
            None => gate.to_home(move |reactor, arbiter| {
                let held = arbiter.join(here);
                send(reactor, here, device, move |gate| gate.welcome(held));
            }),
        }
        gate
    }

    /// Runs `f` on the home, which is another reactor.
    fn to_home(&self, f: impl FnOnce(&Reactor, &Arbiter) + Send + 'static) {
        let device = self.device;
        self.reactor.send(self.home, Message::Call(Box::new(move |reactor| f(reactor, &arbiter_of(reactor, device)))));
    }

    // --- ordinary writes ---

    /// Lets a write to the range pass, or not: then it goes to [`Gate::hold_back`].
    #[inline]
    pub fn admit(&self, range: Range) -> Option<Ticket> {
        if self.guarded.get() && self.is_held(range) {
            return None;
        }
        let mut flights = self.flights.borrow_mut();
        let flight = Flight { range, watched: false };
        Some(Ticket(match self.free_flights.borrow_mut().pop() {
            Some(index) => {
                flights[index as usize] = flight;
                index
            }
            None => {
                flights.push(flight);
                flights.len() as u32 - 1
            }
        }))
    }

    /// Whether a write that ends within its submission may run now; it needs no ticket.
    #[inline]
    pub fn may_write(&self, range: Range) -> bool {
        !self.guarded.get() || !self.is_held(range)
    }

    /// A write that was admitted has ended.
    #[inline]
    pub fn done(&self, ticket: Ticket) {
        let mut flights = self.flights.borrow_mut();
        let flight = &mut flights[ticket.0 as usize];
        let (range, watched) = (flight.range, flight.watched);
        // A free place is never waited for.
        flight.range = Range::NOWHERE;
        drop(flights);
        self.free_flights.borrow_mut().push(ticket.0);
        if watched {
            self.watched_done(range);
        }
    }

    /// Whether a read that ends within its submission may run now.
    #[inline]
    pub fn may_read(&self, range: Range) -> bool {
        !self.guarded.get() || !self.is_held_from_reads(range)
    }

    /// Keeps a write that was not admitted, or a read, until its range is free.
    pub fn hold_back(&self, io: Io) {
        self.waiting.push(io);
    }

    /// Takes what waits here, for a reset, or a channel that closes: its channel ends it.
    pub fn take_waiting(&self) -> Option<Io> {
        self.waiting.pop()
    }

    fn is_held(&self, range: Range) -> bool {
        !self.joined.get() || self.holds.borrow().iter().any(|hold| hold.held.range.overlaps(range))
    }

    fn is_held_from_reads(&self, range: Range) -> bool {
        let against = |held: Held| held.against == Against::ReadsToo && held.range.overlaps(range);
        !self.joined.get() || self.holds.borrow().iter().any(|hold| against(hold.held))
    }

    fn watched_done(&self, range: Range) {
        for hold in self.holds.borrow_mut().iter_mut().filter(|h| !h.acked && h.held.range.overlaps(range)) {
            hold.left -= 1;
        }
        loop {
            let ended = self.holds.borrow_mut().iter_mut().find(|h| !h.acked && h.left == 0).map(|hold| {
                hold.acked = true;
                hold.held.id
            });
            let (Some(id), here) = (ended, self.reactor.id()) else {
                return;
            };
            match &self.arbiter {
                Some(arbiter) => arbiter.ack(&self.reactor, here, id),
                None => self.to_home(move |reactor, arbiter| arbiter.ack(reactor, here, id)),
            }
        }
    }

    // --- what the home says ---

    /// The home knows this gate and says what is held: all that it said before is void.
    fn welcome(&self, held: Vec<Held>) {
        let holds = held.into_iter().map(|held| Hold { held, left: 0, acked: true });
        self.holds.replace(holds.collect());
        self.joined.set(true);
        self.look_again();
    }

    /// Holds what comes to a range. Whether no overlapping write is in flight: then this is acknowledged at once.
    fn hold(&self, held: Held) -> bool {
        let mut left = 0;
        for flight in self.flights.borrow_mut().iter_mut().filter(|f| f.range.overlaps(held.range)) {
            flight.watched = true;
            left += 1;
        }
        self.holds.borrow_mut().push(Hold { held, left, acked: left == 0 });
        self.guarded.set(true);
        left == 0
    }

    /// As [`Gate::hold`], asked by another reactor.
    fn hold_for(&self, held: Held) {
        // Before the welcome, the home speaks to an earlier gate of this device, and knows that it is gone.
        if self.joined.get() && self.hold(held) {
            let here = self.reactor.id();
            self.to_home(move |reactor, arbiter| arbiter.ack(reactor, here, held.id));
        }
    }

    fn released(&self, id: u64) {
        self.holds.borrow_mut().retain(|hold| hold.held.id != id);
        self.look_again();
    }

    fn look_again(&self) {
        self.guarded.set(!self.joined.get() || !self.holds.borrow().is_empty());
        // As many as wait now: one that must wait again goes to the end.
        for _ in 0..self.waiting.len() {
            let Some(io) = self.waiting.pop() else {
                break;
            };
            let range = Range::of(&io);
            let waits = if io.op.writes() { self.is_held(range) } else { self.is_held_from_reads(range) };
            match self.channel.upgrade() {
                Some(channel) if !waits => channel.resume(io),
                Some(_) => self.waiting.push(io),
                None => self.reactor.complete(io.with_status(IoStatus::Gone)),
            }
        }
    }

    // --- exclusive access ---

    /// Whether this reactor may write the range as one step within the present call: it is the home, no other has a channel,
    /// nobody has asked for an overlapping range and no overlapping write is in flight.
    pub fn is_exclusive_now(&self, range: Range) -> bool {
        let alone = self.arbiter.as_ref().is_some_and(|a| a.is_free_for(self.home, range));
        alone && !self.flights.borrow().iter().any(|f| f.range.overlaps(range))
    }

    /// Waits until no other write to the range is in flight or can start, for the task being polled.
    pub fn acquire(&self, range: Range) -> Acquire<'_> {
        self.ask(range, Against::Writes)
    }

    /// As [`Gate::acquire`], and no read of it either.
    pub fn acquire_from_all(&self, range: Range) -> Acquire<'_> {
        self.ask(range, Against::ReadsToo)
    }

    fn ask(&self, range: Range, against: Against) -> Acquire<'_> {
        let mut requests = self.requests.borrow_mut();
        let request = Request::Waiting(self.reactor.current_task());
        let tag = match requests.iter().position(|r| matches!(r, Request::Free)) {
            Some(tag) => {
                requests[tag] = request;
                tag
            }
            None => {
                requests.push(request);
                requests.len() - 1
            }
        };
        drop(requests);
        let here = self.reactor.id();
        match &self.arbiter {
            Some(arbiter) => arbiter.ask(&self.reactor, (here, tag), range, against),
            None => self.to_home(move |reactor, arbiter| arbiter.ask(reactor, (here, tag), range, against)),
        }
        Acquire { gate: self, tag: Some(tag) }
    }

    fn granted(&self, tag: usize, id: u64) {
        let before = std::mem::replace(&mut self.requests.borrow_mut()[tag], Request::Granted(id));
        match before {
            Request::Waiting(task) => self.reactor.wake(task),
            _ => {
                self.requests.borrow_mut()[tag] = Request::Free;
                self.release(id);
            }
        }
    }

    fn release(&self, id: u64) {
        match &self.arbiter {
            Some(arbiter) => arbiter.release(&self.reactor, id),
            None => self.to_home(move |reactor, arbiter| arbiter.release(reactor, id)),
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // Always by message, to this reactor too: while it shuts down its services cannot be looked up.
        let (here, device) = (self.reactor.id(), self.device);
        self.reactor.send(self.home, Message::Call(Box::new(move |home| arbiter_of(home, device).leave(home, here))));
    }
}

/// Ends with a [`Grant`].
#[must_use = "futures do nothing unless polled"]
pub struct Acquire<'a> {
    gate: &'a Gate,
    tag: Option<usize>,
}

impl Future for Acquire<'_> {
    type Output = Grant;

    fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Grant> {
        let tag = self.tag.expect("polled after completion");
        let request = &mut self.gate.requests.borrow_mut()[tag];
        let Request::Granted(id) = *request else {
            return Poll::Pending;
        };
        *request = Request::Free;
        self.tag = None;
        Poll::Ready(Grant { gate: self.gate.me.upgrade().expect("borrowed"), id })
    }
}

impl Drop for Acquire<'_> {
    fn drop(&mut self) {
        let Some(tag) = self.tag else {
            return;
        };
        let before = std::mem::replace(&mut self.gate.requests.borrow_mut()[tag], Request::Abandoned);
        if let Request::Granted(id) = before {
            self.gate.requests.borrow_mut()[tag] = Request::Free;
            self.gate.release(id);
        }
    }
}

/// While this lives, only its holder writes the range: by ways that do not pass [`Gate::admit`].
#[must_use = "dropped at once, nothing is excluded"]
pub struct Grant {
    gate: Rc<Gate>,
    id: u64,
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.gate.release(self.id);
    }
}

/// Runs `f` at the gate of `device` on reactor `to`, which is not this one.
fn send(reactor: &Reactor, to: u16, device: u32, f: impl FnOnce(&Gate) + Send + 'static) {
    reactor.send(to, Message::Call(Box::new(move |reactor| with_gate(reactor, device, f))));
}

#[cfg(test)]
mod tests;
