//! A layer that fails, delays and holds I/Os by rules: the test device of everything above it, and a way to rehearse trouble.
//!
//! ```text
//!   Handle -> Inject --no rule fires--> base
//!               |-- Fail --> ends with the rule's status, the base sees nothing
//!               |-- Delay -> waits for the timer ------> base
//!               |-- Hold --> waits for Control::release -> base
//! ```
//! Without rules an I/O passes after one load. Rules belong to the device and count the I/Os of all its reactors together; they
//! change through a [`Control`], from any thread, while I/O is in flight. A reset, and so the removal of the device, ends what is
//! delayed and held.

mod rules;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::Poll;

use crate::bdev::{BlockDevice, Channel, Common, DeviceError, DeviceLimits, Handle, Traits};
use crate::limits::{REACTORS_MAX, TRANSFER_MAX};
use crate::reactor::io::{Frame, Io, IoList, IoOp, IoStatus};
use crate::reactor::mailbox::Remote;
use crate::reactor::{Layer, Reactor, TaskId};
use rules::Rules;
pub use rules::{Action, Rule, RuleError, RuleId, When};

/// What an inject layer is made from.
#[derive(Clone)]
pub struct Options {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: [u8; 16],
    /// The device below.
    pub base: Arc<dyn BlockDevice>,
    /// Rules from the start.
    pub rules: Vec<Rule>,
}

/// See the module's head.
pub struct Inject {
    base: Arc<dyn BlockDevice>,
    shared: Arc<Shared>,
}

/// What the reactors and the controls share.
struct Shared {
    common: Common,
    rules: Rules,
    /// By reactor: where the layer is open.
    remotes: [OnceLock<Remote>; REACTORS_MAX],
    /// By reactor: I/Os held now.
    held: [AtomicUsize; REACTORS_MAX],
    counts: [AtomicU64; 3],
}

/// How many I/Os met with what, since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    /// Failed by a rule.
    pub failed: u64,
    /// Delayed by a rule.
    pub delayed: u64,
    /// Held by a rule.
    pub held: u64,
}

/// Changes the rules of an inject layer and lets go of what it holds, from any thread.
#[derive(Clone)]
pub struct Control(Arc<Shared>);

impl Inject {
    /// An inject layer on its base.
    ///
    /// # Errors
    /// If a rule cannot be.
    pub fn new(options: Options) -> Result<Inject, RuleError> {
        let below = options.base.common();
        let traits = Traits {
            name: options.name,
            driver: "inject",
            uuid: options.uuid,
            // What the base takes is cut by the split in front of the base.
            limits: DeviceLimits {
                transfer_max: TRANSFER_MAX as u64,
                zeroes_max: u64::MAX,
                verify_max: u64::MAX,
                boundary: 0,
                ..below.traits().limits
            },
            ..below.traits().clone()
        };
        let shared = Arc::new(Shared {
            common: Common::over(below, traits),
            rules: Rules::default(),
            remotes: [const { OnceLock::new() }; REACTORS_MAX],
            held: [const { AtomicUsize::new(0) }; REACTORS_MAX],
            counts: Default::default(),
        });
        for rule in &options.rules {
            shared.rules.add(rule)?;
        }
        Ok(Inject { base: options.base, shared })
    }

    /// A control of this layer.
    pub fn control(&self) -> Control {
        Control(self.shared.clone())
    }
}

impl BlockDevice for Inject {
    fn common(&self) -> &Common {
        &self.shared.common
    }

    fn open(&self, reactor: &Rc<Reactor>) -> Result<Box<dyn Channel>, DeviceError> {
        let base = Handle::open(reactor, &self.base)?;
        // Set before at an earlier opening: it is the same.
        let _ = self.shared.remotes[usize::from(reactor.id())].set(reactor.remote());
        let gate = Rc::new(Gate {
            reactor: reactor.clone(),
            base,
            shared: self.shared.clone(),
            layer: Cell::new(0),
            held: IoList::default(),
            delayed: RefCell::default(),
            delayed_ever: Cell::new(0),
            armed: Cell::new(u64::MAX),
            timer: Cell::new(TaskId::NONE),
            ended: Cell::new(false),
        });
        gate.layer.set(reactor.add_layer(gate.clone()));
        let timer = gate.clone();
        gate.timer.set(reactor.spawn("inject delays", async move { timer.run_timer().await }));
        Gates::of(reactor).0.borrow_mut().insert(self.shared.common.id(), Rc::downgrade(&gate));
        Ok(Box::new(InjectChannel(gate)))
    }

    fn grow(&self, size: u64) -> Result<(), DeviceError> {
        self.base.grow(size)?;
        self.shared.common.set_size(self.base.common().size());
        Ok(())
    }
}

impl Control {
    /// Adds a rule; it holds for I/Os submitted from now on, on every reactor. If several rules fire for one I/O, the one in the
    /// lowest place acts.
    ///
    /// # Errors
    /// A rule that can never fire or would lie, or no place for it.
    pub fn add(&self, rule: &Rule) -> Result<RuleId, RuleError> {
        self.0.rules.add(rule)
    }

    /// Removes a rule; one that has fired as often as it may is gone already.
    pub fn remove(&self, rule: RuleId) {
        self.0.rules.remove(rule);
    }

    /// Removes all rules. What is held stays so until it is released.
    pub fn clear(&self) {
        self.0.rules.clear();
    }

    /// I/Os held now, on all reactors.
    pub fn held(&self) -> usize {
        self.0.held.iter().map(|held| held.load(Ordering::Relaxed)).sum()
    }

    /// Asks for the release of `count` held I/Os, on each reactor in the order they came; they go on to the base. If fewer are held,
    /// all of these.
    pub fn release(&self, mut count: usize) {
        let id = self.0.common.id();
        for (remote, held) in self.0.remotes.iter().zip(&self.0.held) {
            let here = count.min(held.load(Ordering::Relaxed));
            if let Some(remote) = remote.get().filter(|_| here > 0) {
                count -= here;
                remote.send(Box::new(move |reactor| {
                    let gate = Gates::of(reactor).0.borrow().get(&id).and_then(Weak::upgrade);
                    if let Some(gate) = gate {
                        gate.release(here);
                    }
                }));
            }
        }
    }

    /// What was done to I/Os so far.
    pub fn injected(&self) -> Injected {
        let [failed, delayed, held] = &self.0.counts;
        Injected {
            failed: failed.load(Ordering::Relaxed),
            delayed: delayed.load(Ordering::Relaxed),
            held: held.load(Ordering::Relaxed),
        }
    }
}

/// The open inject layers of a reactor, by [`Common::id`], for the messages of their controls.
#[derive(Default)]
struct Gates(RefCell<BTreeMap<u32, Weak<Gate>>>);

impl Gates {
    fn of(reactor: &Reactor) -> Rc<Gates> {
        reactor.service::<Gates>().unwrap_or_else(|| {
            let gates = Rc::new(Gates::default());
            reactor.set_service(gates.clone());
            gates
        })
    }
}

/// The channel: what its handle owns.
struct InjectChannel(Rc<Gate>);

/// The channel's state, shared with its timer task and the reactor's list of layers.
struct Gate {
    reactor: Rc<Reactor>,
    base: Handle,
    shared: Arc<Shared>,
    layer: Cell<u32>,
    held: IoList,
    /// By deadline, then in order of arrival.
    delayed: RefCell<BTreeMap<(u64, u64), Io>>,
    delayed_ever: Cell<u64>,
    /// The earliest deadline that the timer task will be woken for.
    armed: Cell<u64>,
    timer: Cell<TaskId>,
    ended: Cell<bool>,
}

impl Channel for InjectChannel {
    #[inline]
    fn submit(&self, io: Io) -> Poll<Io> {
        let gate = &*self.0;
        if gate.shared.rules.any() || io.op == IoOp::Reset { gate.judge(io) } else { gate.pass(io) }
    }

    fn abort(&self, io_slot: u32) -> bool {
        let gate = &*self.0;
        match gate.take_waiting(io_slot) {
            Some(io) => {
                gate.reactor.complete(io.with_status(IoStatus::Aborted));
                true
            }
            None => gate.base.abort(io_slot),
        }
    }
}

impl Drop for InjectChannel {
    fn drop(&mut self) {
        let gate = &*self.0;
        gate.ended.set(true);
        gate.reactor.wake(gate.timer.get());
        gate.reactor.remove_layer(gate.layer.get());
        if let Some(gates) = gate.reactor.service::<Gates>() {
            gates.0.borrow_mut().remove(&gate.shared.common.id());
        }
    }
}

impl Layer for Gate {
    #[inline]
    fn completed(&self, mut io: Io, frame: Frame) -> Poll<Io> {
        self.base.completed_below(&mut io, frame);
        Poll::Ready(io)
    }
}

impl Gate {
    #[inline]
    fn pass(&self, io: Io) -> Poll<Io> {
        match self.base.pass_below(io, self.layer.get(), 0) {
            Poll::Ready(mut io) => match io.pop_frame() {
                Some((_, frame)) => self.completed(io, frame),
                None => unreachable!("a frame was pushed and only its owner takes it"),
            },
            Poll::Pending => Poll::Pending,
        }
    }

    /// Passes on an I/O that has waited: it may not end inside somebody's submission, and the base's time begins now.
    fn pass_later(&self, io: Io) {
        if let Poll::Ready(io) = self.base.submit_below(io, self.layer.get(), 0) {
            self.reactor.complete(io);
        }
    }

    #[cold]
    fn judge(&self, io: Io) -> Poll<Io> {
        let closing = self.shared.common.is_closing();
        if io.op == IoOp::Reset {
            self.end_waiting(if closing { IoStatus::Gone } else { IoStatus::Aborted });
        }
        // The removal of the device is not to be tampered with.
        let action = if closing { None } else { self.shared.rules.judge(io.op) };
        let [failed, delayed, held] = &self.shared.counts;
        match action {
            None => self.pass(io),
            Some(Action::Fail(status)) => {
                failed.fetch_add(1, Ordering::Relaxed);
                Poll::Ready(io.with_status(status))
            }
            Some(Action::Delay(ns)) => {
                delayed.fetch_add(1, Ordering::Relaxed);
                let number = self.delayed_ever.get();
                self.delayed_ever.set(number + 1);
                let deadline = self.reactor.clock().now().saturating_add(ns);
                self.delayed.borrow_mut().insert((deadline, number), io);
                self.reactor.wake(self.timer.get());
                Poll::Pending
            }
            Some(Action::Hold) => {
                held.fetch_add(1, Ordering::Relaxed);
                self.held.push(io);
                self.publish_held();
                Poll::Pending
            }
        }
    }

    fn publish_held(&self) {
        self.shared.held[usize::from(self.reactor.id())].store(self.held.len(), Ordering::Relaxed);
    }

    fn release(&self, count: usize) {
        for _ in 0..count {
            let Some(io) = self.held.pop() else {
                break;
            };
            self.pass_later(io);
        }
        self.publish_held();
    }

    fn take_waiting(&self, io_slot: u32) -> Option<Io> {
        let held = self.held.remove(io_slot);
        self.publish_held();
        let mut delayed = self.delayed.borrow_mut();
        let key = delayed.iter().find(|(_, io)| io.slot() == io_slot).map(|(key, _)| *key);
        held.or_else(|| delayed.remove(&key?))
    }

    fn end_waiting(&self, status: IoStatus) {
        let delayed = std::mem::take(&mut *self.delayed.borrow_mut());
        for io in std::iter::from_fn(|| self.held.pop()).chain(delayed.into_values()) {
            self.reactor.complete(io.with_status(status));
        }
        self.publish_held();
    }

    /// Passes on what was delayed long enough, until the channel goes.
    async fn run_timer(&self) {
        poll_fn(|_| {
            if self.ended.get() {
                return Poll::Ready(());
            }
            let now = self.reactor.clock().now();
            if self.armed.get() <= now {
                self.armed.set(u64::MAX);
            }
            loop {
                let first = self.delayed.borrow().first_key_value().map(|((deadline, _), _)| *deadline);
                match first {
                    Some(deadline) if deadline <= now => {
                        let (_, io) = self.delayed.borrow_mut().pop_first().expect("looked");
                        self.pass_later(io);
                    }
                    Some(deadline) => {
                        if deadline < self.armed.get() {
                            self.armed.set(deadline);
                            self.reactor.wake_at(deadline, self.reactor.current_task());
                        }
                        return Poll::Pending;
                    }
                    None => return Poll::Pending,
                }
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests;
