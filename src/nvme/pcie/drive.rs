//! A controller as all reactors see it: who has which queue, and what happens when it fails.
//!
//! ```text
//!             every queue up                    overdue and not aborted, CFS
//!  Starting ------------------> Live ------------------------------------------> Resetting
//!     |                          |  ^                                              |   |  hold on every reactor
//!     | no                       |  |     queues created anew, go on everywhere    |   |  CC.EN = 0, RDY = 0: quiet
//!     v                          |  +----------------------------------------------+   |  enable, identify, queues
//!  (error)                       |                                                     |
//!                          close |             not disabled, not the same, resets too often, registers read as ones
//!                                v                                                     v
//!                              Ended <------------------- close ------------------- Failed: every I/O ends
//! ```
//! The home reactor decides, alone and one thing at a time; the others hold, go on or end their queue when it asks them, and answer when they have.
//! No doorbell is written between a reactor's answer to *hold* and its *go on*, so none reaches a queue that is not there.
//!
//! A reset that fails is made once more. A controller that cannot be disabled has its function reset, from which it may come up again, or is
//! [kept from memory](super::port::Force), which ends it. If not even that can be done, its I/O never ends: its buffers would be written
//! under their next owner. The drive is Failed then and says so, a close of it is an error, and what its queues hold is lost with them.

mod commands;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::Quiet;
use super::controller::{Controller, ControllerEvent, ControllerOptions, NamespaceInfo, QueueSeed};
use super::error::ControllerError;
use super::port::Port;
use super::queue::{Late, QueuePair, Tenant};
use crate::limits::{NVME_RESETS_MAX, NVME_RESETS_NS, NVME_WATCH_NS};
use crate::nvme::spec::{IdentifyController, padded_text};
use crate::reactor::Reactor;
use crate::reactor::io::IoStatus;
use crate::util::Losses;

/// Where a drive is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Life {
    /// I/O goes to the controller.
    Live,
    /// The controller is being reset: I/O waits.
    Resetting,
    /// The controller is beyond use: I/O fails.
    Failed,
    /// Closed in order.
    Ended,
}

/// A controller and its queues. Shared by all reactors.
pub struct Drive<P: Port, T: Tenant> {
    id: u64,
    home: u16,
    options: DriveOptions,
    /// By queue number less one: the reactor that has it.
    reactors: Vec<u16>,
    /// Every reactor that was to have one has one.
    everywhere: bool,
    in_buffer: usize,
    life: AtomicU8,
    identity: Box<IdentifyController>,
    namespaces: Vec<NamespaceInfo>,
    /// Of each of them: its size in bytes, as it was last told.
    sizes: Vec<AtomicU64>,
    resets: AtomicU64,
    aborts: AtomicU64,
    losses: Losses,
    /// Who is told what the controller tells.
    listener: OnceLock<Listener>,
    /// Of queues by this way with these tenants, which live on the reactors.
    queues: PhantomData<fn(P, T)>,
}

/// What a user may choose.
#[derive(Clone, Copy, Debug)]
pub struct DriveOptions {
    /// Of the controller and its queues.
    pub controller: ControllerOptions,
    /// How long an I/O may take before it is aborted, in nanoseconds.
    pub timeout_ns: u64,
}

/// Called on the home reactor: it may not block.
type Listener = Box<dyn Fn(ControllerEvent) + Send + Sync>;

/// How often a drive has had to be helped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriveCounters {
    /// Aborts sent for I/Os that took too long.
    pub aborts: u64,
    /// Resets of the controller.
    pub resets: u64,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// The queues in use on a reactor, by drive.
struct Planted<P: Port, T: Tenant>(RefCell<BTreeMap<u64, Rc<QueuePair<P, T>>>>);

/// With its reactor, on which nothing is answered any more.
impl<P: Port, T: Tenant> Drop for Planted<P, T> {
    fn drop(&mut self) {
        self.0.take().into_values().for_each(|queue| queue.part());
    }
}

fn planted<P: Port, T: Tenant>(reactor: &Reactor) -> Rc<Planted<P, T>> {
    reactor.service().unwrap_or_else(|| {
        let planted = Rc::new(Planted::<P, T>(RefCell::default()));
        reactor.set_service(planted.clone());
        planted
    })
}

fn queue_of<P: Port, T: Tenant>(reactor: &Reactor, id: u64) -> Option<Rc<QueuePair<P, T>>> {
    planted(reactor).0.borrow().get(&id).cloned()
}

/// What only the home has, by drive.
struct Keepers<P: Port, T: Tenant>(RefCell<BTreeMap<u64, Rc<Keeper<P, T>>>>);

/// The home's part of a drive.
struct Keeper<P: Port, T: Tenant> {
    drive: Arc<Drive<P, T>>,
    controller: Rc<Controller<P>>,
    /// Times of the last resets.
    resets: RefCell<Vec<u64>>,
    /// A reset or the end is under way.
    busy: Cell<bool>,
}

/// Why a reset was none.
#[derive(Debug)]
enum Failure {
    /// The controller may touch memory still.
    Loud(ControllerError),
    /// It did not come up.
    Down(ControllerError),
    /// There is no use in another attempt.
    Final(ControllerError),
}

impl<P: Port, T: Tenant> Drive<P, T> {
    /// Brings a controller up on this reactor, its home, with a queue for each of `reactors`, the home first; the last ones go without if
    /// the controller has fewer. Without any it has its admin queue alone, for commands.
    ///
    /// # Errors
    /// Whatever keeps it from being used.
    pub async fn open(
        home: &Rc<Reactor>,
        port: P,
        options: DriveOptions,
        mut reactors: Vec<u16>,
    ) -> Result<Arc<Drive<P, T>>, ControllerError> {
        let controller = Controller::bring_up(home, port, options.controller).await?;
        let seeds = match controller.create_queues(&reactors).await {
            Ok(seeds) => seeds,
            Err(error) => {
                controller.give_up().await;
                return Err(error);
            }
        };
        let everywhere = seeds.len() >= reactors.len();
        let in_buffer = seeds.iter().filter(|seed| seed.is_in_buffer()).count();
        reactors.truncate(seeds.len());
        let drive = Arc::new(Drive {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            home: home.id(),
            options,
            reactors,
            everywhere,
            in_buffer,
            life: AtomicU8::new(Life::Live as u8),
            identity: controller.identity(),
            namespaces: controller.namespaces(),
            sizes: controller.namespaces().iter().map(|info| AtomicU64::new(info.size())).collect(),
            resets: AtomicU64::new(0),
            losses: Losses::default(),
            aborts: AtomicU64::new(0),
            listener: OnceLock::new(),
            queues: PhantomData,
        });
        let keeper =
            Rc::new(Keeper { drive: drive.clone(), controller, resets: RefCell::default(), busy: Cell::new(false) });
        keepers::<P, T>(home).0.borrow_mut().insert(drive.id, keeper.clone());
        for (seed, reactor) in seeds.into_iter().zip(drive.reactors.clone()) {
            let its = drive.clone();
            home.call(reactor, move |reactor| its.plant(reactor, seed)).await;
        }
        // Not before: a reset would not reach queues that are not there yet.
        keeper.start(home);
        keeper.listen(home);
        Ok(drive)
    }

    /// The reactor that decides.
    pub fn home(&self) -> u16 {
        self.home
    }

    /// When its namespaces have lost what they had cached, or may have.
    pub fn losses(&self) -> &Losses {
        &self.losses
    }

    /// The reactors that have a queue.
    pub fn reactors(&self) -> &[u16] {
        &self.reactors
    }

    /// Whether every reactor that was to have a queue has one.
    pub fn is_everywhere(&self) -> bool {
        self.everywhere
    }

    /// How many of the queues have their submissions in the controller memory buffer.
    pub fn in_buffer(&self) -> usize {
        self.in_buffer
    }

    /// Where it is in its life.
    pub fn life(&self) -> Life {
        match self.life.load(Ordering::Acquire) {
            life if life == Life::Live as u8 => Life::Live,
            life if life == Life::Resetting as u8 => Life::Resetting,
            life if life == Life::Failed as u8 => Life::Failed,
            _ => Life::Ended,
        }
    }

    /// How long an I/O may take before it is aborted, in nanoseconds.
    pub fn timeout_ns(&self) -> u64 {
        self.options.timeout_ns
    }

    /// What the controller says of itself.
    pub fn identity(&self) -> &IdentifyController {
        &self.identity
    }

    /// Its serial number.
    pub fn serial(&self) -> String {
        padded_text(&self.identity.sn)
    }

    /// Has somebody told what the controller tells by itself, on the home reactor, where nothing may block. The first one stays it.
    pub fn listen(&self, listener: impl Fn(ControllerEvent) + Send + Sync + 'static) {
        // Another would have been told of half of what there is.
        let _ = self.listener.set(Box::new(listener));
    }

    /// The namespaces that were active when it was opened.
    pub fn namespaces(&self) -> &[NamespaceInfo] {
        &self.namespaces
    }

    /// Its counters.
    pub fn counters(&self) -> DriveCounters {
        DriveCounters { aborts: self.aborts.load(Ordering::Relaxed), resets: self.resets.load(Ordering::Relaxed) }
    }

    /// The queue of a reactor; `None` if it has none, or there is no controller any more.
    pub fn queue(&self, reactor: &Reactor) -> Option<Rc<QueuePair<P, T>>> {
        if matches!(self.life(), Life::Failed | Life::Ended) { None } else { queue_of(reactor, self.id) }
    }

    /// Makes the queue of this reactor.
    fn plant(self: &Arc<Self>, reactor: &Rc<Reactor>, seed: QueueSeed<P>) {
        let queue = seed.plant(reactor);
        planted(reactor).0.borrow_mut().insert(self.id, queue.clone());
        self.watch(reactor, &queue);
    }

    /// Looks after commands that take too long.
    fn watch(self: &Arc<Self>, reactor: &Rc<Reactor>, queue: &Rc<QueuePair<P, T>>) {
        let (drive, here, queue) = (self.clone(), reactor.clone(), Rc::downgrade(queue));
        reactor.spawn("nvme timeouts", async move {
            loop {
                here.sleep(drive.options.timeout_ns / 8).await;
                let Some(queue) = queue.upgrade() else {
                    return;
                };
                if queue.is_ended() {
                    return;
                }
                let Some(until) = here.clock().now().checked_sub(drive.options.timeout_ns) else {
                    continue;
                };
                if drive.life() != Life::Live {
                    continue;
                }
                let late = queue.late(until);
                if !late.is_empty() {
                    let (id, qid) = (drive.id, queue.qid());
                    drop(queue);
                    let judged = here.call_task(drive.home, move |home| async move {
                        if let Some(keeper) = keeper_of::<P, T>(&home, id) {
                            keeper.overdue(&home, qid, late).await;
                        }
                    });
                    judged.await;
                }
            }
        });
    }

    /// Closes the controller in order. Nobody may use it any more; what is in flight nevertheless ends with the queues.
    ///
    /// # Errors
    /// If it could not be shut down, or not even be made quiet.
    pub async fn close(&self, home: &Rc<Reactor>) -> Result<(), ControllerError> {
        match keeper_of::<P, T>(home, self.id) {
            Some(keeper) => keeper.close(home).await,
            None => Ok(()),
        }
    }

    /// The size of a namespace in bytes, as its controller last told it; 0 of one that cannot be used.
    pub fn size(&self, nsid: u32) -> u64 {
        let place = self.namespaces.iter().position(|info| info.nsid == nsid);
        place.map_or(0, |place| self.sizes[place].load(Ordering::Relaxed))
    }

    /// The process has ended, and what it was given was taken from it: lets go of all that this reactor has of the drive. Between two turns, and
    /// no other turn follows, so that nobody hears how the I/O ended.
    pub(super) fn orphan(&self, reactor: &Reactor, quiet: &Quiet) {
        if let Some(queue) = queue_of::<P, T>(reactor, self.id) {
            queue.end(quiet, IoStatus::Gone);
        }
        let keeper = keepers::<P, T>(reactor).0.borrow_mut().remove(&self.id);
        if let Some(keeper) = keeper {
            keeper.controller.orphan(quiet);
        }
    }

    fn tell(&self, event: ControllerEvent) {
        if let ControllerEvent::Namespaces(all) = &event {
            for (info, size) in self.namespaces.iter().zip(&self.sizes) {
                let now = all.iter().find(|now| now.nsid == info.nsid).map_or(0, NamespaceInfo::size);
                size.store(now, Ordering::Relaxed);
            }
        }
        if let Some(listener) = self.listener.get() {
            listener(event);
        }
    }

    fn enter(&self, life: Life) {
        self.life.store(life as u8, Ordering::Release);
    }
}

fn keepers<P: Port, T: Tenant>(reactor: &Reactor) -> Rc<Keepers<P, T>> {
    reactor.service().unwrap_or_else(|| {
        let keepers = Rc::new(Keepers::<P, T>(RefCell::default()));
        reactor.set_service(keepers.clone());
        keepers
    })
}

fn keeper_of<P: Port, T: Tenant>(reactor: &Reactor, id: u64) -> Option<Rc<Keeper<P, T>>> {
    keepers(reactor).0.borrow().get(&id).cloned()
}

impl<P: Port, T: Tenant> Keeper<P, T> {
    /// Looks at the status of the controller while it lives.
    fn start(self: &Rc<Self>, home: &Rc<Reactor>) {
        let (keeper, here) = (Rc::downgrade(self), home.clone());
        home.spawn("nvme status", async move {
            loop {
                here.sleep(NVME_WATCH_NS).await;
                let Some(keeper) = keeper.upgrade() else {
                    return;
                };
                match keeper.drive.life() {
                    Life::Live => {}
                    Life::Resetting => continue,
                    Life::Failed | Life::Ended => return,
                }
                let status = keeper.controller.look();
                if let Err(error) = status {
                    keeper.reset(&here, &error.to_string()).await;
                }
            }
        });
    }

    /// Hears what the controller tells by itself.
    fn listen(self: &Rc<Self>, home: &Rc<Reactor>) {
        if !self.controller.can_wait_for_events() {
            return;
        }
        let (keeper, here) = (Rc::downgrade(self), home.clone());
        home.spawn("nvme events", async move {
            while let Some(keeper) = keeper.upgrade() {
                match keeper.drive.life() {
                    Life::Live if keeper.drive.listener.get().is_some() => {}
                    // Nobody hears it, or its queue may not be there yet.
                    Life::Live | Life::Resetting => {
                        drop(keeper);
                        here.sleep(NVME_WATCH_NS).await;
                        continue;
                    }
                    Life::Failed | Life::Ended => return,
                }
                match keeper.controller.next_event().await {
                    Ok(event) => {
                        keeper.drive.tell(event);
                        // One that tells without end is heard now and then.
                        here.sleep(NVME_WATCH_NS / 10).await;
                    }
                    Err(ControllerError::Refused { status, .. }) => {
                        tracing::info!("NVMe controller {}: no events: {status:?}", keeper.drive.serial());
                        return;
                    }
                    // It is being reset, or the end has come.
                    Err(_) => {
                        drop(keeper);
                        here.sleep(NVME_WATCH_NS).await;
                    }
                }
            }
        });
    }

    /// Commands have taken too long: they are aborted, or else the controller reset.
    async fn overdue(&self, home: &Rc<Reactor>, qid: u16, late: Vec<Late>) {
        let drive = &self.drive;
        if drive.life() != Life::Live || self.busy.get() {
            return;
        }
        let deadline = home.clock().now() + drive.options.timeout_ns / 4;
        let mut aborted = 0;
        let mut unanswered = None;
        // One at a time, so that no controller says that these are too many.
        for Late { cid, .. } in &late {
            drive.aborts.fetch_add(1, Ordering::Relaxed);
            let left = deadline.saturating_sub(home.clock().now());
            match self.controller.abort(qid, *cid, left).await {
                Ok(done) => aborted += usize::from(done),
                Err(ControllerError::Refused { .. }) => {}
                Err(error) => {
                    unanswered = Some(error);
                    break;
                }
            }
        }
        let (count, serial) = (late.len(), drive.serial());
        let unanswered = unanswered.map(|error| format!(", {error}")).unwrap_or_default();
        tracing::warn!(
            "NVMe controller {serial}: {count} commands of queue {qid} are late: {aborted} aborted{unanswered}"
        );
        home.sleep(deadline.saturating_sub(home.clock().now())).await;
        let (id, reactor, count) = (drive.id, drive.reactors[usize::from(qid - 1)], late.len());
        let still =
            move |reactor: &Rc<Reactor>| queue_of::<P, T>(reactor, id).is_some_and(|queue| queue.has_any(&late));
        if home.call(reactor, still).await {
            self.reset(home, &format!("of {count} late commands of queue {qid}, some did not end by an abort either"))
                .await;
        }
    }

    /// Has every queue in use do something, and waits until all have.
    async fn everywhere(&self, home: &Rc<Reactor>, f: impl Fn(&QueuePair<P, T>) + Clone + Send + 'static) {
        let id = self.drive.id;
        for reactor in &self.drive.reactors {
            let f = f.clone();
            home.call(*reactor, move |reactor| {
                if let Some(queue) = queue_of::<P, T>(reactor, id) {
                    f(&queue);
                }
            })
            .await;
        }
    }

    /// Resets the controller, and goes on with it if it is still the same one.
    async fn reset(&self, home: &Rc<Reactor>, why: &str) {
        if self.busy.replace(true) {
            return;
        }
        let drive = &self.drive;
        drive.enter(Life::Resetting);
        tracing::warn!("NVMe controller {}: reset: {why}", drive.serial());
        // As long as it is not disabled it says whether it has failed.
        let _ = self.controller.look();
        let mut crashed = false;
        self.everywhere(home, QueuePair::hold).await;
        let mut again = self.attempt(home).await;
        if let Err(Failure::Down(error)) = &again {
            crashed = true;
            tracing::warn!("NVMe controller {}: {error}: reset once more", drive.serial());
            again = self.attempt(home).await;
        }
        match again {
            Ok(quiet) => {
                crashed |= self.controller.take_crashed();
                if crashed {
                    drive.losses.note(home.clock().now());
                }
                drive.enter(Life::Live);
                self.everywhere(home, move |queue| queue.restart(&quiet, crashed)).await;
                // It may have changed meanwhile, which it does not tell any more.
                drive.tell(ControllerEvent::Namespaces(self.controller.namespaces()));
            }
            Err(Failure::Down(error) | Failure::Final(error)) => {
                drive.enter(Life::Failed);
                tracing::error!("NVMe controller {}: {error}: its I/O fails from now on", drive.serial());
                match self.controller.stop().await {
                    Ok(quiet) => {
                        let status =
                            if error == ControllerError::Gone { IoStatus::Gone } else { IoStatus::DeviceError };
                        self.end(home, Arc::new(quiet), status).await;
                    }
                    Err(error) => tracing::error!("it does not become quiet either: {error}"),
                }
            }
            Err(Failure::Loud(error)) => {
                // Held for ever: see the module's head.
                drive.enter(Life::Failed);
                tracing::error!("NVMe controller {} does not become quiet: {error}", drive.serial());
            }
        }
        self.busy.set(false);
    }

    /// One reset.
    async fn attempt(&self, home: &Rc<Reactor>) -> Result<Arc<Quiet>, Failure> {
        self.drive.resets.fetch_add(1, Ordering::Relaxed);
        let now = home.clock().now();
        let too_often = {
            let mut resets = self.resets.borrow_mut();
            resets.retain(|at| now.saturating_sub(*at) < NVME_RESETS_NS);
            resets.push(now);
            resets.len() > NVME_RESETS_MAX
        };
        let quiet = Arc::new(self.controller.stop().await.map_err(Failure::Loud)?);
        if too_often {
            let why = format!("{} resets within {} s", NVME_RESETS_MAX + 1, NVME_RESETS_NS / 1_000_000_000);
            return Err(Failure::Final(ControllerError::Unfit(why)));
        }
        let seen = quiet.clone();
        self.everywhere(home, move |queue| queue.rewind(&seen)).await;
        match self.controller.restart(&quiet).await {
            Ok(()) => Ok(quiet),
            Err(error @ (ControllerError::Unfit(_) | ControllerError::Gone)) => Err(Failure::Final(error)),
            Err(error) => Err(Failure::Down(error)),
        }
    }

    async fn end(&self, home: &Rc<Reactor>, quiet: Arc<Quiet>, status: IoStatus) {
        self.everywhere(home, move |queue| queue.end(&quiet, status)).await;
    }

    async fn close(&self, home: &Rc<Reactor>) -> Result<(), ControllerError> {
        while self.busy.replace(true) {
            home.sleep(NVME_WATCH_NS / 100).await;
        }
        let drive = &self.drive;
        if drive.life() == Life::Ended {
            return Ok(());
        }
        self.everywhere(home, QueuePair::hold).await;
        let controller = &self.controller;
        let closed = match drive.life() {
            Life::Failed => controller.stop().await.map(|quiet| (quiet, Ok(()))),
            _ => controller.close().await,
        };
        let (quiet, shut) = match closed {
            Ok(closed) => closed,
            Err(error) => {
                // Its queues stay as they are, and so may whoever closes it again find it.
                drive.enter(Life::Failed);
                self.busy.set(false);
                return Err(error);
            }
        };
        drive.enter(Life::Ended);
        self.end(home, Arc::new(quiet), IoStatus::Gone).await;
        let (id, reactors) = (drive.id, drive.reactors.clone());
        for reactor in reactors {
            home.call(reactor, move |reactor| drop(planted::<P, T>(reactor).0.borrow_mut().remove(&id))).await;
        }
        drop(keepers::<P, T>(home).0.borrow_mut().remove(&id));
        shut
    }
}
