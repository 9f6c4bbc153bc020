//! Buffers in between, for data that a device cannot take where it lies.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use hugepages::Buf;

use crate::reactor::{Reactor, TaskId};

/// Buffers of one size for the helpers of a channel: from the pool, and one that is the channel's own when the pool has none, so that
/// no helper waits for others' I/O.
pub struct Bounces {
    reactor: Rc<Reactor>,
    len: usize,
    reserve: RefCell<Option<Buf>>,
    waiters: RefCell<VecDeque<TaskId>>,
}

/// A buffer of [`Bounces`]; goes back by [`Bounces::give`].
pub struct Bounce {
    /// The buffer.
    pub buf: Buf,
    /// It is the one that is the channel's own.
    pub(super) reserve: bool,
}

impl Bounces {
    /// Buffers of `len` bytes; `None` if there is no memory for even one.
    pub fn new(reactor: &Rc<Reactor>, len: usize) -> Option<Bounces> {
        let reserve = reactor.pool().alloc(len)?;
        Some(Bounces {
            reactor: reactor.clone(),
            len,
            reserve: RefCell::new(Some(reserve)),
            waiters: RefCell::default(),
        })
    }

    /// A buffer of the pool, if that has one.
    pub fn spare(&self) -> Option<Bounce> {
        let buf = self.reactor.pool().alloc(self.len)?;
        Some(Bounce { buf, reserve: false })
    }

    /// A buffer, as soon as there is one.
    pub async fn take(&self) -> Bounce {
        std::future::poll_fn(|_| {
            if let Some(bounce) = self.spare() {
                return std::task::Poll::Ready(bounce);
            }
            if let Some(buf) = self.reserve.borrow_mut().take() {
                return std::task::Poll::Ready(Bounce { buf, reserve: true });
            }
            let (me, mut waiters) = (self.reactor.current_task(), self.waiters.borrow_mut());
            if !waiters.contains(&me) {
                waiters.push_back(me);
            }
            std::task::Poll::Pending
        })
        .await
    }

    /// Takes one back.
    pub fn give(&self, Bounce { buf, reserve }: Bounce) {
        if reserve {
            self.reserve.replace(Some(buf));
        }
        if let Some(task) = self.waiters.borrow_mut().pop_front() {
            self.reactor.wake(task);
        }
    }
}
