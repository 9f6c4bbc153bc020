//! The sending side of a connection: answers of one turn gather in a batch, one send is in flight at a time.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Poll;

use super::stream::{Stream, StreamError};
use crate::reactor::{Reactor, TaskId};
use crate::sys::tx::TxBatch;

/// Gather entries of a batch: a header and a payload each for half as many answers.
const PARTS: usize = 256;
/// Header bytes of a batch.
const HEADS: usize = 16 * 1024;

/// Spare batches of a reactor: a connection with nothing to send holds none.
#[derive(Default)]
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
    spares: Rc<Spares>,
    open: RefCell<Option<Box<TxBatch>>>,
    sending: Cell<bool>,
    sender: Cell<TaskId>,
    /// Grows with each batch handed to the kernel.
    handed: Cell<u64>,
    waiters: RefCell<VecDeque<TaskId>>,
    ended: Cell<Option<StreamError>>,
    finishing: Cell<bool>,
}

impl Tx {
    /// A sending side on `reactor`.
    pub fn new(reactor: &Reactor) -> Tx {
        Tx {
            spares: spares(reactor),
            open: RefCell::new(None),
            sending: Cell::new(false),
            sender: Cell::new(TaskId::NONE),
            handed: Cell::new(0),
            waiters: RefCell::new(VecDeque::new()),
            ended: Cell::new(None),
            finishing: Cell::new(false),
        }
    }

    /// Waits until the open batch takes `parts` entries and `heads` header bytes, then appends by `fill`. Returns the number
    /// to pass to [`Tx::handed_over`].
    ///
    /// # Errors
    /// If the stream has ended; nothing was appended.
    pub async fn push(
        &self,
        reactor: &Reactor,
        parts: usize,
        heads: usize,
        fill: impl FnOnce(&mut TxBatch),
    ) -> Result<u64, StreamError> {
        debug_assert!(parts <= PARTS && heads <= HEADS, "one answer fits an empty batch");
        std::future::poll_fn(|_| {
            if let Some(error) = self.ended.get() {
                return Poll::Ready(Err(error));
            }
            if self.open.borrow().as_ref().is_none_or(|batch| batch.has_room(parts, heads)) {
                return Poll::Ready(Ok(()));
            }
            self.waiters.borrow_mut().push_back(reactor.current_task());
            Poll::Pending
        })
        .await?;
        let mut open = self.open.borrow_mut();
        let batch =
            open.get_or_insert_with(|| self.spares.0.borrow_mut().pop().unwrap_or_else(|| TxBatch::new(PARTS, HEADS)));
        fill(batch);
        if !self.sending.get() {
            reactor.wake(self.sender.get());
        }
        Ok(self.handed.get() + 1)
    }

    /// Waits until the batch of that number is with the kernel: only then can the peer have seen any of it.
    pub async fn handed_over(&self, reactor: &Reactor, number: u64) {
        std::future::poll_fn(|_| {
            if self.handed.get() >= number || self.ended.get().is_some() {
                return Poll::Ready(());
            }
            self.waiters.borrow_mut().push_back(reactor.current_task());
            Poll::Pending
        })
        .await;
    }

    /// Lets [`Tx::run`] end once everything appended so far was sent.
    pub fn finish(&self, reactor: &Reactor) {
        self.finishing.set(true);
        reactor.wake(self.sender.get());
    }

    /// Whether everything appended was taken by the kernel.
    pub fn is_drained(&self) -> bool {
        !self.sending.get() && self.open.borrow().is_none()
    }

    /// Sends until [`Tx::finish`] or the stream's end: the body of the connection's sending task.
    pub async fn run(&self, stream: &Stream) {
        let reactor = stream.reactor();
        self.sender.set(reactor.current_task());
        loop {
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
            self.handed.set(self.handed.get() + 1);
            self.wake_waiters(reactor);
            let (mut batch, result) = stream.send(batch).await;
            self.sending.set(false);
            batch.clear();
            self.spares.0.borrow_mut().push(batch);
            if let Err(error) = result {
                self.ended.set(Some(error));
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
        self.wake_waiters(reactor);
    }

    fn wake_waiters(&self, reactor: &Reactor) {
        for task in self.waiters.borrow_mut().drain(..) {
            reactor.wake(task);
        }
    }
}
