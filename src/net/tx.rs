//! The sending side of a connection: answers of one turn gather in a batch, one send is in flight at a time.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Poll;

use hugepages::{Buf, footprint};

use super::stream::{Stream, StreamError};
use crate::reactor::{Deferred, Reactor, TaskId};
use crate::sys::tx::TxBatch;

/// Gather entries of a batch: a header and a payload each for half as many answers.
pub(super) const PARTS: usize = 256;
/// Header bytes of a batch.
pub(super) const HEADS: usize = 16 * 1024;

/// Bytes of data from which sending them from where they are ([`Tx::lend`]) beats a copy first: of 4 KiB at depth 32 by a seventh.
pub const LEND_MIN: usize = 4 << 10;

/// Data buffers of one connection that may be in use at a time, in bytes: eight of the largest transfer.
pub const RESERVE_MAX: usize = 8 << 20;

/// Data buffers of all connections of a reactor together: half of its DMA memory. The other half stays for what needs no further
/// word from a host to come back: receive buffers, in-capsule data, what devices need.
#[derive(Default)]
struct Budget {
    reserved: Cell<usize>,
    limit: Cell<usize>,
    waiters: RefCell<VecDeque<TaskId>>,
    /// A connection that has nothing waits.
    starving: Cell<bool>,
}

impl Budget {
    fn of(reactor: &Reactor) -> Rc<Budget> {
        reactor.service::<Budget>().unwrap_or_else(|| {
            let budget = Rc::new(Budget::default());
            reactor.set_service(budget.clone());
            budget
        })
    }

    /// Takes `len` bytes for a connection that has `mine` of them already; without room the current task is woken when some
    /// are given back.
    #[inline]
    fn take(&self, reactor: &Reactor, mine: usize, len: usize) -> bool {
        if !self.admits(mine, len) {
            // The pool may have grown since.
            self.limit.set(reactor.pool().stats().bytes_total / 2);
            if !self.admits(mine, len) {
                self.waiters.borrow_mut().push_back(reactor.current_task());
                self.starving.set(self.starving.get() || mine == 0);
                return false;
            }
        }
        self.reserved.set(self.reserved.get() + len);
        true
    }

    /// A connection never has more than it leaves for the others: those who hold theirs for ever get smaller and smaller
    /// shares, and one more that comes finds as much as the least of them. A transfer that is alone always fits.
    #[inline]
    fn admits(&self, mine: usize, len: usize) -> bool {
        let reserved = self.reserved.get();
        reserved == 0 || mine + len <= self.limit.get().saturating_sub(reserved + len)
    }

    fn give_back(&self, reactor: &Reactor, len: usize) {
        self.reserved.set(self.reserved.get() - len);
        self.starving.set(false);
        for task in self.waiters.borrow_mut().drain(..) {
            reactor.wake(task);
        }
    }
}

/// Whether a connection of this reactor waits for data buffers that all are with others.
pub fn is_short(reactor: &Reactor) -> bool {
    Budget::of(reactor).starving.get() || reactor.waits_for_buffers()
}

/// Spare batches of a reactor: a connection with nothing to send holds none.
#[derive(Default)]
#[expect(clippy::vec_box, reason = "a batch is handed to the kernel in its box, whose address stays")]
struct Spares(RefCell<Vec<Box<TxBatch>>>);

fn spares(reactor: &Reactor) -> Rc<Spares> {
    reactor.service::<Spares>().unwrap_or_else(|| {
        let spares = Rc::new(Spares::default());
        reactor.set_service(spares.clone());
        spares
    })
}

/// See the module's head.
pub struct Tx {
    stream: Rc<Stream>,
    spares: Rc<Spares>,
    budget: Rc<Budget>,
    open: RefCell<Option<Box<TxBatch>>>,
    sending: Cell<bool>,
    /// Of the open batch: it has memory that is another's at the end of this turn.
    lent: Cell<bool>,
    sender: Cell<TaskId>,
    /// Grows with each batch handed to the kernel.
    handed: Cell<u64>,
    waiters: RefCell<VecDeque<TaskId>>,
    /// Bytes of the pool in use by data buffers of this connection, unsent ones included.
    reserved: Cell<usize>,
    reserve_waiters: RefCell<VecDeque<TaskId>>,
    /// When the peer was given the batch that it has not taken.
    sending_since_ns: Cell<u64>,
    /// Commands whose data the peer has to send.
    owed: Cell<u32>,
    /// When all the data of one had come last, or the first was asked for.
    owed_since_ns: Cell<u64>,
    ended: Cell<Option<StreamError>>,
    finishing: Cell<bool>,
    failed: Cell<bool>,
}

impl Tx {
    /// The sending side of `stream`.
    pub fn new(stream: &Rc<Stream>) -> Rc<Tx> {
        let reactor = stream.reactor();
        Rc::new(Tx {
            stream: stream.clone(),
            spares: spares(reactor),
            budget: Budget::of(reactor),
            open: RefCell::new(None),
            sending: Cell::new(false),
            lent: Cell::new(false),
            sender: Cell::new(TaskId::NONE),
            handed: Cell::new(0),
            waiters: RefCell::new(VecDeque::new()),
            reserved: Cell::new(0),
            reserve_waiters: RefCell::new(VecDeque::new()),
            sending_since_ns: Cell::new(0),
            owed: Cell::new(0),
            owed_since_ns: Cell::new(0),
            ended: Cell::new(None),
            finishing: Cell::new(false),
            failed: Cell::new(false),
        })
    }

    #[inline]
    fn reactor(&self) -> &Rc<Reactor> {
        self.stream.reactor()
    }

    /// Waits until the open batch takes `parts` entries and `heads` header bytes, then appends by `fill`. Returns the number
    /// that [`Tx::handed`] will have reached when it is with the kernel.
    ///
    /// # Errors
    /// If the stream has ended; nothing was appended.
    pub async fn push(&self, parts: usize, heads: usize, fill: impl FnOnce(&mut TxBatch)) -> Result<u64, StreamError> {
        debug_assert!(parts <= PARTS && heads <= HEADS, "one answer fits an empty batch");
        std::future::poll_fn(|_| {
            if let Some(error) = self.ended.get() {
                return Poll::Ready(Err(error));
            }
            if self.finishing.get() {
                return Poll::Ready(Err(StreamError::Closed));
            }
            if self.open.borrow().as_ref().is_none_or(|batch| batch.has_room(parts, heads)) {
                return Poll::Ready(Ok(()));
            }
            self.waiters.borrow_mut().push_back(self.reactor().current_task());
            Poll::Pending
        })
        .await?;
        self.append(fill);
        if !self.sending.get() {
            self.reactor().wake(self.sender.get());
        }
        Ok(self.handed.get() + 1)
    }

    #[inline]
    fn append(&self, fill: impl FnOnce(&mut TxBatch)) {
        let mut open = self.open.borrow_mut();
        let batch =
            open.get_or_insert_with(|| self.spares.0.borrow_mut().pop().unwrap_or_else(|| TxBatch::new(PARTS, HEADS)));
        fill(batch);
    }

    /// Whether memory can be lent now ([`Tx::lend`]): nothing is with the kernel, and what gathers has room for `parts` entries and `heads`
    /// header bytes.
    #[inline]
    pub fn can_lend(&self, parts: usize, heads: usize) -> bool {
        !self.sending.get()
            && self.ended.get().is_none()
            && !self.finishing.get()
            && self.open.borrow().as_ref().is_none_or(|batch| batch.has_room(parts, heads) && batch.has_room_to_lend())
    }

    /// Appends by `fill`, with memory that is lent ([`TxBatch::push_lent`]) and buffers for it that were reserved. Only where [`Tx::can_lend`].
    /// It is sent at the latest at the end of this turn of the reactor: in the next the memory is another's.
    pub fn lend(self: &Rc<Self>, fill: impl FnOnce(&mut TxBatch)) {
        self.append(fill);
        if !self.lent.replace(true) {
            self.reactor().at_end(self.clone());
        }
    }

    /// Sends what was lent, as far as the socket takes it within this call, and copies the rest: nothing is lent any more then.
    pub fn flush_lent(&self) {
        if !self.lent.replace(false) {
            return;
        }
        let Some(mut batch) = self.open.take() else { return };
        self.stream.send_now(&mut batch);
        if batch.remaining() > 0 {
            batch.keep_lent();
            self.open.replace(Some(batch));
            return self.reactor().wake(self.sender.get());
        }
        self.handed.set(self.handed.get() + 1);
        self.give_back(batch.payload());
        batch.clear();
        self.spares.0.borrow_mut().push(batch);
        self.wake_waiters();
    }

    /// The number of the last batch given to the kernel: only what is in it or before can the peer have seen.
    #[inline]
    pub fn handed(&self) -> u64 {
        self.handed.get()
    }

    /// Waits until data buffers of `len` bytes may be in use for this connection beside those that are: a peer that does not
    /// read, or does not send what it was asked for, holds no more than [`RESERVE_MAX`] of the pool, and all together half.
    /// Payloads pushed with [`TxBatch::push_buf`] are given back when they were sent, all else by [`Tx::unreserve`].
    pub async fn reserve(&self, len: usize) {
        let (reactor, len) = (self.reactor(), footprint(len));
        std::future::poll_fn(|_| {
            if self.ended.get().is_some() {
                // Nobody to send to: whoever asks finds that out next, and must not wait for others until then.
                return Poll::Ready(());
            }
            let reserved = self.reserved.get();
            if reserved > 0 && reserved + len > RESERVE_MAX {
                self.reserve_waiters.borrow_mut().push_back(reactor.current_task());
                return Poll::Pending;
            }
            if !self.budget.take(reactor, reserved, len) {
                return Poll::Pending;
            }
            self.reserved.set(reserved + len);
            Poll::Ready(())
        })
        .await;
    }

    /// Gives back what [`Tx::reserve`] took for a buffer of `len` bytes that is not sent.
    pub fn unreserve(&self, len: usize) {
        self.give_back(footprint(len));
    }

    /// Gives back what [`Tx::reserve`] took for a buffer, or the rest of one whose beginning was sent.
    pub fn drop_reserved(&self, buf: Buf) {
        let capacity = buf.capacity();
        drop(buf);
        self.give_back(capacity);
    }

    /// Gives back all that is reserved: nothing more is sent, and the buffers are gone.
    pub fn unreserve_all(&self) {
        self.give_back(self.reserved.get());
    }

    fn give_back(&self, len: usize) {
        // A send that ends after `unreserve_all` has nothing left to give.
        let len = len.min(self.reserved.get());
        if len > 0 {
            self.reserved.set(self.reserved.get() - len);
            self.budget.give_back(self.reactor(), len);
        }
        for task in self.reserve_waiters.borrow_mut().drain(..) {
            self.reactor().wake(task);
        }
    }

    /// A command holds data buffers until the peer has sent all of its data; [`Tx::peer_acted`] when it has, or the command ends.
    #[inline]
    pub fn expect_peer(&self) {
        if self.owed.replace(self.owed.get() + 1) == 0 {
            self.owed_since_ns.set(self.reactor().clock().now());
        }
    }

    /// See [`Tx::expect_peer`].
    #[inline]
    pub fn peer_acted(&self) {
        self.owed.set(self.owed.get() - 1);
        self.owed_since_ns.set(self.reactor().clock().now());
    }

    /// For how long the peer has not taken what it was sent, or not completed the data of any command, while that holds data buffers; in
    /// nanoseconds. The two are apart: who takes answers to its pings has not sent data by that.
    pub fn stalled_ns(&self) -> u64 {
        let since = |since: u64, waits: bool| {
            if waits { self.reactor().clock().now().saturating_sub(since) } else { 0 }
        };
        let takes = since(self.sending_since_ns.get(), self.sending.get() && self.reserved.get() > 0);
        takes.max(since(self.owed_since_ns.get(), self.owed.get() > 0))
    }

    /// Lets [`Tx::run`] end once everything appended so far was sent; nothing more can be appended.
    pub fn finish(&self) {
        self.finishing.set(true);
        self.reactor().wake(self.sender.get());
    }

    /// Whether [`Tx::run`] ended because the stream did, with something unsent.
    pub fn failed(&self) -> bool {
        self.failed.get()
    }

    /// Sends until [`Tx::finish`] or the stream's end: the body of the connection's sending task.
    pub async fn run(&self) {
        let reactor = self.reactor();
        self.sender.set(reactor.current_task());
        loop {
            self.flush_lent();
            let batch = self.open.borrow_mut().take();
            let Some(batch) = batch else {
                if self.finishing.get() {
                    break;
                }
                let mut waited = false;
                std::future::poll_fn(|_| {
                    if std::mem::replace(&mut waited, true) { Poll::Ready(()) } else { Poll::Pending }
                })
                .await;
                continue;
            };
            self.sending.set(true);
            self.sending_since_ns.set(reactor.clock().now());
            self.handed.set(self.handed.get() + 1);
            self.wake_waiters();
            let (mut batch, result) = self.stream.send(batch).await;
            self.sending.set(false);
            self.give_back(batch.payload());
            batch.clear();
            self.spares.0.borrow_mut().push(batch);
            if let Err(error) = result {
                self.ended.set(Some(error));
                self.failed.set(true);
                break;
            }
        }
        if self.ended.get().is_none() {
            self.ended.set(Some(StreamError::Closed));
        }
        // What was appended after the end goes nowhere.
        if let Some(mut batch) = self.open.borrow_mut().take() {
            batch.clear();
            self.spares.0.borrow_mut().push(batch);
        }
        self.wake_waiters();
        self.give_back(0);
        self.budget.give_back(reactor, 0);
    }

    fn wake_waiters(&self) {
        for task in self.waiters.borrow_mut().drain(..) {
            self.reactor().wake(task);
        }
    }
}

impl Deferred for Tx {
    fn name(&self) -> &'static str {
        "lent memory"
    }

    fn run(&self) {
        self.flush_lent();
    }
}
