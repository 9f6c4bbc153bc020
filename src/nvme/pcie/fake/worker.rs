//! Who works at a queue: a task on its reactor, which a doorbell wakes, or whoever calls.
//!
//! A doorbell is rung from any thread and knows no task, so a poller looks whether one was rung and wakes the task. While
//! the reactor sleeps, the doorbell rings the reactor.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::task::Poll;

use super::super::port::Held;
use super::Inner;
use super::memory::Holder;
use crate::reactor::{Activity, Poller, PollerId, Reactor, TaskId};

/// Commands that a task fetches before others have their turn.
const BUDGET: usize = 256;

/// When a queue needs work again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Now: the budget was spent.
    More,
    /// At this time of the clock, or when a doorbell rings.
    At(u64),
    /// When a doorbell rings.
    Rung,
}

/// A queue on the reactor that it is attached on.
struct Desk {
    inner: Arc<Inner>,
    qid: u16,
    /// `None`: there is no data to hold.
    held: Option<Weak<dyn Held>>,
    reactor: Weak<Reactor>,
    task: Cell<Option<TaskId>>,
    poller: Cell<Option<PollerId>>,
    closed: Cell<bool>,
    /// When the task has work again.
    due: Cell<u64>,
}

/// The desks of a reactor, by the address of their controller and by queue.
#[derive(Default)]
struct Desks(RefCell<BTreeMap<(usize, u16), Rc<Desk>>>);

fn desks(reactor: &Rc<Reactor>) -> Rc<Desks> {
    reactor.service::<Desks>().unwrap_or_else(|| {
        let desks = Rc::new(Desks::default());
        reactor.set_service(desks.clone());
        desks
    })
}

fn key(inner: &Arc<Inner>, qid: u16) -> (usize, u16) {
    (Arc::as_ptr(inner).addr(), qid)
}

pub(super) fn attach(inner: &Arc<Inner>, reactor: &Rc<Reactor>, qid: u16, held: Option<Rc<dyn Held>>) {
    detach(inner, reactor, qid);
    let Some(place) = inner.places.get(usize::from(qid)) else {
        inner.breaks(|| format!("queue {qid} was attached, which there cannot be"));
        return;
    };
    let desk = Rc::new(Desk {
        inner: inner.clone(),
        qid,
        held: held.map(|held| Rc::downgrade(&held)),
        reactor: Rc::downgrade(reactor),
        task: Cell::new(None),
        poller: Cell::new(None),
        closed: Cell::new(false),
        due: Cell::new(u64::MAX),
    });
    desks(reactor).0.borrow_mut().insert(key(inner, qid), desk.clone());
    if !inner.options.stepped {
        *place.reactor.lock() = Some(reactor.remote());
        desk.poller.set(Some(reactor.add_poller("fake nvme doorbell", desk.clone())));
        let there = reactor.clone();
        reactor.spawn("fake nvme queue", async move { desk.work(&there).await });
    }
}

pub(super) fn detach(inner: &Arc<Inner>, reactor: &Rc<Reactor>, qid: u16) {
    let desk = desks(reactor).0.borrow_mut().remove(&key(inner, qid));
    if let Some(desk) = desk {
        desk.close(reactor);
    }
}

pub(super) fn step(inner: &Arc<Inner>, reactor: &Rc<Reactor>, qid: u16, budget: usize) -> Next {
    let desk = desks(reactor).0.borrow().get(&key(inner, qid)).cloned();
    desk.map_or(Next::Rung, |desk| desk.step(reactor, budget))
}

impl Desk {
    fn close(&self, reactor: &Rc<Reactor>) {
        self.closed.set(true);
        if let Some(poller) = self.poller.take() {
            reactor.remove_poller(poller);
        }
        if let Some(task) = self.task.take() {
            reactor.wake(task);
        }
    }

    fn step(&self, reactor: &Rc<Reactor>, budget: usize) -> Next {
        let held = self.held.as_ref().map(Weak::upgrade);
        let holder = match &held {
            None => Holder::Nobody,
            Some(None) => Holder::Forgotten,
            Some(Some(held)) => Holder::Here(&**held),
        };
        let clock = self.inner.options.timed.as_ref();
        let begun = clock.map(|clock| clock.now_ns());
        let next = self.inner.step(self.qid, holder, reactor.clock().now(), reactor.entropy(), budget);
        if let (Some(clock), Some(begun)) = (clock, begun) {
            let spent = clock.now_ns().saturating_sub(begun);
            self.inner.counts.spent_ns.fetch_add(spent, Ordering::Relaxed);
        }
        next
    }

    async fn work(&self, reactor: &Rc<Reactor>) {
        self.task.set(Some(reactor.current_task()));
        while !self.closed.get() {
            match self.step(reactor, BUDGET) {
                Next::More => reactor.yield_now().await,
                Next::At(due) => self.wait(reactor, due).await,
                Next::Rung => self.wait(reactor, u64::MAX).await,
            }
        }
    }

    /// Waits for a doorbell, but no longer than to `due`.
    async fn wait(&self, reactor: &Rc<Reactor>, due: u64) {
        self.due.set(due);
        let mut timed = due == u64::MAX;
        poll_fn(|_| {
            if self.closed.get() || self.is_rung() || reactor.clock().now() >= due {
                return Poll::Ready(());
            }
            if !timed {
                timed = true;
                reactor.wake_at(due, reactor.current_task());
            }
            Poll::Pending
        })
        .await;
    }

    #[inline]
    fn is_rung(&self) -> bool {
        self.inner.places[usize::from(self.qid)].rung.load(Ordering::Acquire)
    }
}

impl Poller for Desk {
    fn poll(&self) -> Activity {
        let (Some(reactor), Some(task)) = (self.reactor.upgrade(), self.task.get()) else {
            return Activity::Idle;
        };
        // Timers are of milliseconds; a reactor that polls something is more exact.
        if self.is_rung() || reactor.clock().now() >= self.due.get() {
            self.due.set(u64::MAX);
            reactor.wake(task);
            return Activity::Busy;
        }
        Activity::Idle
    }

    fn arm(&self) -> bool {
        let place = &self.inner.places[usize::from(self.qid)];
        place.armed.store(true, Ordering::Release);
        fence(Ordering::SeqCst);
        let quiet = !self.is_rung();
        if !quiet {
            place.armed.store(false, Ordering::Release);
        }
        quiet
    }

    fn disarm(&self) {
        self.inner.places[usize::from(self.qid)].armed.store(false, Ordering::Release);
    }
}
