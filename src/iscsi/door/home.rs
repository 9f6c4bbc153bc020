//! The home of what all sessions share, on one reactor: who is logged in, and the logical units with their reservations, mode parameters and
//! unit attention conditions.
//!
//! Sessions on other reactors reach it by message. What it decides goes to them the same way: a [`View`] of the logical units, and a gate
//! whenever what they may do with one changes. A command that changes gates is answered when all have theirs: messages between two reactors
//! arrive in their order, so a question asked after the news comes back after it.

mod admit;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use self::admit::Logins;
pub use self::admit::{Entry, admit};
use super::live::Live;
use super::local::Local;
use super::store::ReservationStore;
use crate::bdev::{BlockDevice, HostKey, HostTold, Hosts};
use crate::iscsi::{Book, Nexus, Notice, Registry, TaskId};
use crate::limits::ISCSI_SESSIONS_MAX;
use crate::net::Listeners;
use crate::reactor::Reactor;
use crate::reactor::mailbox::Message;
use crate::scsi::reservation::Reservations;
use crate::scsi::spec::{Asc, PersistOut, Sense, SenseKey, TransportId};
use crate::scsi::{
    Action, Cdb, Context, CopyList, CopyProgress, Gate, LogicalUnit, NexusId, Reaction, Reply, Resources, Store,
    TargetPort, Unit, UnitAttention, UnitCommand,
};

/// The reactor that is the home of every logical unit.
pub const HOME: u16 = 0;

/// Which logical unit: a volume, as it is or write-protected, whatever targets it is seen through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct UnitKey {
    /// [`crate::bdev::Common::id`].
    pub device: u32,
    /// Writes are refused.
    pub read_only: bool,
}

/// A logical unit as the control plane names it: sent to every reactor.
#[derive(Clone)]
pub struct UnitSpec {
    /// Which one.
    pub key: UnitKey,
    /// The volume.
    pub device: Arc<dyn BlockDevice>,
    /// What initiators are told.
    pub unit: Arc<Unit>,
    /// Reservations that outlived the last process; for a unit that is new.
    pub reservations: Reservations,
}

/// What is exported.
#[derive(Clone, Default)]
pub struct Exports {
    /// The targets.
    pub book: Arc<Book>,
    /// All logical units.
    pub units: Vec<UnitSpec>,
    /// By target: its logical units by number.
    pub luns: BTreeMap<String, BTreeMap<u16, UnitKey>>,
    /// By target and portal group: the relative port identifier.
    pub ports: BTreeMap<(String, u16), u16>,
}

impl Exports {
    /// Whether an initiator may be logged in to what it names, where it has come in.
    fn allows(&self, nexus: &Nexus) -> bool {
        match &nexus.target {
            None => true,
            Some(name) => self.book.target(name).is_some_and(|target| {
                target.initiators.allows(&nexus.initiator)
                    && target.portals.iter().any(|portal| portal.tpgt == nexus.tpgt)
            }),
        }
    }
}

/// The logical units of a session.
#[derive(Clone)]
pub struct View {
    /// Of two, the later one has the higher stamp.
    pub stamp: u64,
    /// Number, unit, and what the session may do.
    pub luns: Vec<(u16, UnitKey, Gate)>,
    /// What the initiator has been told of losses, for a session that begins.
    pub told: Option<HostTold>,
}

/// Which commands of a unit are aborted, and whether that is a reset.
#[derive(Clone, Copy, Debug)]
pub struct Aborts {
    /// The session that wants it: its own are aborted already, as far as they are meant.
    pub by: u16,
    /// The unit is reset, and initiators are told this.
    pub reset: Option<UnitAttention>,
}

/// A session that is logged in.
struct Place {
    reactor: u16,
    nexus: Nexus,
    /// Its reactor knows it.
    open: bool,
    luns: BTreeMap<u16, UnitKey>,
    /// Units that it has seen and does not see any more: commands on them may still be there.
    lost: BTreeSet<UnitKey>,
}

struct UnitHome {
    engine: LogicalUnit,
    /// What sessions were told last.
    sent: BTreeMap<u16, Gate>,
    /// A PERSISTENT RESERVE OUT is being stored: the next one waits.
    storing: bool,
}

/// What who loses commands to another nexus is told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Aborted {
    /// TASK ABORTED, of each.
    Status,
    /// COMMANDS CLEARED BY ANOTHER INITIATOR.
    Attention,
    /// The unit attention condition of a reset says it.
    Nothing,
}

/// See the module's head.
pub struct Home {
    exports: RefCell<Exports>,
    registry: RefCell<Registry>,
    sessions: RefCell<BTreeMap<u16, Place>>,
    deciding: RefCell<BTreeMap<Nexus, Logins>>,
    units: RefCell<BTreeMap<UnitKey, UnitHome>>,
    hosts: RefCell<Hosts>,
    store: Option<Arc<dyn ReservationStore>>,
    /// Answers of the store, by number.
    stored: RefCell<BTreeMap<u64, bool>>,
    next_store: Cell<u64>,
    stamp: Cell<u64>,
    /// The listeners.
    pub listeners: Listeners,
    draining: Cell<bool>,
}

/// How often what takes its time is looked at, in nanoseconds.
const LOOK_NS: u64 = 200_000;

/// The home's state; only the home reactor has it.
pub fn of(reactor: &Reactor) -> Option<Rc<Home>> {
    reactor.service()
}

/// Ends a command with a parameter list.
///
/// It is one step as its unit sees it: who resets the unit or fences the nexus out meanwhile comes before it or after it.
pub async fn finish(reactor: Rc<Reactor>, tsih: u16, key: UnitKey, command: UnitCommand, list: Vec<u8>) -> Reply {
    let gone = Reply::Check(Sense::illegal(Asc::LUN_NOT_SUPPORTED));
    let Some(home) = of(&reactor) else { return gone };
    let reserves = matches!(command, UnitCommand::PersistOut { .. });
    while reserves && home.with(key, |unit| std::mem::replace(&mut unit.storing, true)) == Some(true) {
        reactor.sleep(LOOK_NS).await;
    }
    let done = home.with(key, |unit| {
        let before = reserves.then(|| unit.engine.reservations().clone());
        (unit.engine.finish(NexusId(tsih.into()), command, &list), before)
    });
    let Some((reaction, before)) = done else { return gone };
    let Reaction { mut reply, store, mut abort, told } = reaction;
    if let Some(store) = store
        && !home.keep(&reactor, key, store).await
        && let Some(before) = before
    {
        home.with(key, |unit| unit.engine.undo(before, &told));
        abort.clear();
        reply = Reply::Check(Sense::new(SenseKey::HARDWARE_ERROR, Asc::INTERNAL_FAILURE));
    }
    home.publish(&reactor, key);
    let mut whose: Vec<u16> = abort.iter().map(|nexus| nexus.0 as u16).collect();
    if let UnitCommand::PersistOut { action: PersistOut::PREEMPT_AND_ABORT, .. } = command
        && matches!(reply, Reply::Good(_))
    {
        whose.extend(home.have_lost(key));
    }
    if !whose.is_empty() {
        home.abort(&reactor, key, whose, tsih).await;
    }
    if reserves {
        home.with(key, |unit| unit.storing = false);
    }
    home.fence(&reactor, key).await;
    reply
}

/// Waits until all sessions that see a unit have heard what they may do with it now.
pub async fn fence(reactor: Rc<Reactor>, key: UnitKey) {
    if let Some(home) = of(&reactor) {
        home.fence(&reactor, key).await;
    }
}

/// A unit was started or stopped.
pub async fn set_started(reactor: Rc<Reactor>, key: UnitKey, started: bool) {
    let Some(home) = of(&reactor) else { return };
    home.with(key, |unit| unit.engine.set_started(started));
    home.publish(&reactor, key);
    home.fence(&reactor, key).await;
}

/// Aborts commands on a unit, or resets it; they have ended then.
pub async fn abort_unit(reactor: Rc<Reactor>, key: UnitKey, aborts: Aborts) {
    let Some(home) = of(&reactor) else { return };
    let seen = home.sessions_of(key).into_iter().map(|(tsih, _)| tsih);
    let whose = seen.chain(home.have_lost(key)).filter(|tsih| *tsih != aborts.by);
    let mut news = home.news_of_aborts(key);
    if let Some(attention) = aborts.reset {
        home.with(key, |unit| unit.engine.reset(attention));
        if news == Aborted::Attention {
            news = Aborted::Nothing;
        }
    }
    home.abort_telling(&reactor, key, whose.collect(), aborts.by, news).await;
    // A reset is news for the session that wants it too.
    home.publish(&reactor, key);
    home.fence(&reactor, key).await;
}

/// A command of a session has ended with CHECK CONDITION, and the mode parameters have others end too (QERR): those of the session, or of all.
pub async fn abort_after_error(reactor: Rc<Reactor>, tsih: u16, key: UnitKey, task: TaskId, all: bool) {
    let Some(home) = of(&reactor) else { return };
    if let Some(there) = home.place_of(tsih) {
        let own = move |there: Rc<Reactor>| async move {
            if let Some(live) = Local::of(&there).and_then(|local| local.session(tsih)) {
                let aborted = live.abort_unit(key, false, Some(task));
                live.until_ended(&aborted).await;
            }
        };
        reactor.call_task(there, own).await;
    }
    if all {
        let others = home.sessions_of(key).into_iter().map(|(other, _)| other).filter(|other| *other != tsih);
        home.abort(&reactor, key, others.collect(), tsih).await;
    }
}

/// Closes all sessions of a target, and tells their initiators.
pub async fn close_sessions(reactor: Rc<Reactor>, target: String) {
    let Some(home) = of(&reactor) else { return };
    let all: Vec<(u16, u16)> = {
        let sessions = home.sessions.borrow();
        let of_target = sessions.iter().filter(|(_, place)| place.nexus.target.as_ref() == Some(&target));
        of_target.map(|(tsih, place)| (*tsih, place.reactor)).collect()
    };
    for (tsih, there) in all {
        home.tell_session(&reactor, there, tsih, |live| live.dismiss(Notice::DropSession { wait: 2, retain: 0 }));
    }
}

impl Home {
    /// Makes `reactor` the home.
    pub fn install(reactor: &Rc<Reactor>, store: Option<Arc<dyn ReservationStore>>) {
        reactor.set_service(Rc::new(Home {
            exports: RefCell::default(),
            registry: RefCell::new(Registry::new(ISCSI_SESSIONS_MAX)),
            sessions: RefCell::default(),
            deciding: RefCell::default(),
            units: RefCell::default(),
            hosts: RefCell::default(),
            store,
            stored: RefCell::default(),
            next_store: Cell::new(0),
            stamp: Cell::new(0),
            listeners: Listeners::default(),
            draining: Cell::new(false),
        }));
    }

    fn next_stamp(&self) -> u64 {
        self.stamp.set(self.stamp.get() + 1);
        self.stamp.get()
    }

    fn with<R>(&self, key: UnitKey, f: impl FnOnce(&mut UnitHome) -> R) -> Option<R> {
        self.units.borrow_mut().get_mut(&key).map(f)
    }

    /// The reactor of a session.
    pub fn place_of(&self, tsih: u16) -> Option<u16> {
        self.sessions.borrow().get(&tsih).map(|place| place.reactor)
    }

    /// The sessions that see a unit, with their reactors.
    fn sessions_of(&self, key: UnitKey) -> Vec<(u16, u16)> {
        let sessions = self.sessions.borrow();
        let sees = sessions.iter().filter(|(_, place)| place.open && place.luns.values().any(|unit| *unit == key));
        sees.map(|(tsih, place)| (*tsih, place.reactor)).collect()
    }

    /// The sessions that have lost a unit by a change of the configuration: nobody asks reservations for them, but what they had begun may
    /// still be there.
    fn have_lost(&self, key: UnitKey) -> Vec<u16> {
        let sessions = self.sessions.borrow();
        sessions.iter().filter(|(_, place)| place.open && place.lost.contains(&key)).map(|(tsih, _)| *tsih).collect()
    }

    fn tell_session(&self, reactor: &Reactor, there: u16, tsih: u16, f: impl FnOnce(&Rc<Live>) + Send + 'static) {
        let tell = move |there: &Rc<Reactor>| {
            if let Some(live) = Local::of(there).and_then(|local| local.session(tsih)) {
                f(&live);
            }
        };
        reactor.send(there, Message::Call(Box::new(tell)));
    }

    /// Ends a session and waits for its end.
    async fn end_session(&self, reactor: &Rc<Reactor>, tsih: u16) {
        let Some(there) = self.place_of(tsih) else { return };
        let end = move |there: Rc<Reactor>| async move {
            if let Some(live) = Local::of(&there).and_then(|local| local.session(tsih)) {
                live.end().await;
            }
        };
        reactor.call_task(there, end).await;
        // One whose login had not come so far yet does not come any further.
        self.left(reactor, tsih);
    }

    /// A session is known to its reactor: what it sees. `None`: another one has taken its place meanwhile, or it may not be any more.
    pub fn open(&self, reactor: &Reactor, tsih: u16) -> Option<View> {
        let now = reactor.clock().now();
        let (nexus, luns) = {
            let mut sessions = self.sessions.borrow_mut();
            let place = sessions.get_mut(&tsih)?;
            let exports = self.exports.borrow();
            if !exports.allows(&place.nexus) {
                return None;
            }
            let target = place.nexus.target.as_ref().and_then(|target| exports.luns.get(target));
            place.luns = target.cloned().unwrap_or_default();
            place.open = true;
            (place.nexus.clone(), place.luns.clone())
        };
        let mut told = None;
        if nexus.target.is_some() {
            let key = host_key(&nexus);
            self.hosts.borrow_mut().arrive(key.clone(), now);
            told = self.hosts.borrow().told(&key);
        }
        for key in luns.values() {
            self.attach(*key, tsih, &nexus);
        }
        let view = View { told, ..self.view(tsih)? };
        luns.values().for_each(|key| self.publish(reactor, *key));
        Some(view)
    }

    fn attach(&self, key: UnitKey, tsih: u16, nexus: &Nexus) {
        let target = nexus.target.clone().unwrap_or_default();
        let port = self.exports.borrow().ports.get(&(target, nexus.tpgt)).copied().unwrap_or_default();
        let initiator = TransportId { name: nexus.initiator.clone(), isid: Some(nexus.isid) };
        self.with(key, |unit| unit.engine.attach(NexusId(tsih.into()), initiator, port));
    }

    /// What a session sees now.
    fn view(&self, tsih: u16) -> Option<View> {
        let stamp = self.next_stamp();
        let luns = self.sessions.borrow().get(&tsih)?.luns.clone();
        let seen = luns.into_iter().filter_map(|(lun, key)| {
            let gate = self.with(key, |unit| {
                let gate = unit.engine.gate(NexusId(tsih.into()))?;
                unit.sent.insert(tsih, gate);
                Some(gate)
            });
            Some((lun, key, gate.flatten()?))
        });
        Some(View { stamp, luns: seen.collect(), told: None })
    }

    /// Tells every session what it may do with a unit, if that has changed.
    fn publish(&self, reactor: &Reactor, key: UnitKey) {
        for (tsih, there) in self.sessions_of(key) {
            if let Some((gate, stamp)) = self.changed_gate(key, tsih) {
                self.tell_session(reactor, there, tsih, move |live| live.set_gate(key, &gate, stamp));
            }
        }
    }

    /// What a session may do with a unit, if it does not know that yet, with the number of the news.
    fn changed_gate(&self, key: UnitKey, tsih: u16) -> Option<(Gate, u64)> {
        let changed = self.with(key, |unit| {
            let gate = unit.engine.gate(NexusId(tsih.into()))?;
            (unit.sent.insert(tsih, gate) != Some(gate)).then_some(gate)
        });
        Some((changed.flatten()?, self.next_stamp()))
    }

    /// What who loses a command to another nexus is told (TAS).
    fn news_of_aborts(&self, key: UnitKey) -> Aborted {
        match self.with(key, |unit| unit.engine.mode().task_aborted_status) {
            Some(true) => Aborted::Status,
            _ => Aborted::Attention,
        }
    }

    /// Waits until all reactors with sessions of a unit have heard what was published.
    async fn fence(&self, reactor: &Reactor, key: UnitKey) {
        let reactors: BTreeSet<u16> = self.sessions_of(key).into_iter().map(|(_, there)| there).collect();
        for there in reactors {
            reactor.call(there, |_| ()).await;
        }
    }

    /// Aborts the commands of sessions on a unit, and waits for their ends. Who lost some is told, but for the session that wants it.
    async fn abort(&self, reactor: &Rc<Reactor>, key: UnitKey, whose: Vec<u16>, by: u16) {
        self.abort_telling(reactor, key, whose, by, self.news_of_aborts(key)).await;
    }

    /// As [`Home::abort`], by these news. Each session has what holds for the unit now and loses its commands in one step: none begins in
    /// between by what held before.
    async fn abort_telling(&self, reactor: &Rc<Reactor>, key: UnitKey, whose: Vec<u16>, by: u16, told: Aborted) {
        let mut calls = Vec::new();
        for tsih in whose {
            let Some(there) = self.place_of(tsih) else { continue };
            // Who loses own commands knows it (SAM-5, aborting commands).
            let tell = told == Aborted::Status && by != tsih;
            let news = self.changed_gate(key, tsih);
            let abort = move |there: &Rc<Reactor>| {
                let Some(live) = Local::of(there).and_then(|local| local.session(tsih)) else { return Vec::new() };
                if let Some((gate, stamp)) = news {
                    live.set_gate(key, &gate, stamp);
                }
                live.abort_unit(key, tell, None)
            };
            calls.push((tsih, there, reactor.call(there, abort)));
        }
        let mut ends = Vec::new();
        for (tsih, there, call) in calls {
            let aborted = call.await;
            if aborted.is_empty() {
                continue;
            }
            if told == Aborted::Attention && by != tsih {
                self.with(key, |unit| unit.engine.raise(NexusId(tsih.into()), UnitAttention::CommandsCleared));
            }
            ends.push(reactor.call_task(there, move |there: Rc<Reactor>| async move {
                if let Some(live) = Local::of(&there).and_then(|local| local.session(tsih)) {
                    live.until_ended(&aborted).await;
                }
            }));
        }
        self.publish(reactor, key);
        for end in ends {
            end.await;
        }
    }

    /// Decides on a command; `resources` of its unit, if it asks for them.
    ///
    /// RESERVE and RELEASE are done then: wait for [`fence`] before they are answered.
    pub fn begin(&self, reactor: &Reactor, tsih: u16, key: UnitKey, cdb: &Cdb, resources: Resources) -> Option<Action> {
        let luns: Vec<u16> = self.sessions.borrow().get(&tsih)?.luns.keys().copied().collect();
        let context = Context { luns: &luns, resources };
        let action = self.with(key, |unit| unit.engine.begin(NexusId(tsih.into()), cdb, &context));
        self.publish(reactor, key);
        action
    }

    /// A copy begins.
    ///
    /// # Errors
    /// Why it does not.
    pub fn copy_begin(&self, tsih: u16, key: UnitKey, list: &CopyList) -> Result<(), Sense> {
        let gone = Sense::illegal(Asc::LUN_NOT_SUPPORTED);
        self.with(key, |unit| unit.engine.copy_begin(NexusId(tsih.into()), list)).unwrap_or(Err(gone))
    }

    /// How far a copy is; `ended`: it goes no further.
    pub fn copy_progress(&self, tsih: u16, key: UnitKey, list: &CopyList, progress: CopyProgress, ended: bool) {
        self.with(key, |unit| match ended {
            true => unit.engine.copy_end(NexusId(tsih.into()), list, progress),
            false => unit.engine.copy_progress(NexusId(tsih.into()), list, progress),
        });
    }

    /// The unit attention condition that waits for a session.
    pub fn waiting(&self, tsih: u16, key: UnitKey) -> Option<Sense> {
        self.with(key, |unit| unit.engine.awaiting(NexusId(tsih.into()))).flatten().map(UnitAttention::sense)
    }

    /// An initiator has asked for a reset of its nexus.
    pub fn nexus_lost(&self, reactor: &Reactor, tsih: u16) {
        let luns = self.sessions.borrow().get(&tsih).map(|place| place.luns.clone()).unwrap_or_default();
        for key in luns.values() {
            self.with(*key, |unit| unit.engine.nexus_lost(NexusId(tsih.into())));
            self.publish(reactor, *key);
        }
    }

    /// An initiator has surely been told of a unit's losses up to `until`.
    pub fn tell(&self, tsih: u16, lun: u32, until: u64) {
        if let Some(place) = self.sessions.borrow().get(&tsih) {
            self.hosts.borrow_mut().tell(&host_key(&place.nexus), lun, until);
        }
    }

    /// A connection of a session that goes on has ended.
    pub fn connection_left(&self, tsih: u16, cid: u16) {
        self.registry.borrow_mut().connection_ended(tsih, cid);
    }

    /// A session has ended.
    pub fn left(&self, reactor: &Reactor, tsih: u16) {
        self.registry.borrow_mut().session_ended(tsih);
        let Some(place) = self.sessions.borrow_mut().remove(&tsih) else { return };
        if place.open && place.nexus.target.is_some() {
            self.hosts.borrow_mut().leave(&host_key(&place.nexus), reactor.clock().now());
        }
        for key in place.luns.values() {
            self.with(*key, |unit| {
                unit.engine.detach(NexusId(tsih.into()));
                unit.sent.remove(&tsih);
            });
            self.publish(reactor, *key);
        }
    }

    /// Stores reservations, or removes them. Whether that is done.
    async fn keep(&self, reactor: &Rc<Reactor>, key: UnitKey, store: Store) -> bool {
        let (Some(keeper), Some(name)) = (&self.store, self.with(key, |unit| unit.engine.unit().serial())) else {
            return matches!(store, Store::Remove);
        };
        let number = self.next_store.get();
        self.next_store.set(number + 1);
        let remote = reactor.remote();
        let bytes = match store {
            Store::Keep(bytes) => Some(bytes),
            Store::Remove => None,
        };
        keeper.store(
            name.clone(),
            bytes,
            Box::new(move |result| {
                remote.send(Box::new(move |reactor| {
                    if let Err(why) = &result {
                        tracing::error!("reservations of logical unit {name} cannot be stored: {why}");
                    }
                    if let Some(home) = of(reactor) {
                        home.stored.borrow_mut().insert(number, result.is_ok());
                    }
                }));
            }),
        );
        loop {
            let ended = self.stored.borrow_mut().remove(&number);
            match ended {
                Some(done) => return done,
                None => reactor.sleep(LOOK_NS).await,
            }
        }
    }

    /// What is exported from now on. Sessions that may not be any more are closed, and those that see other logical units are told.
    ///
    /// # Errors
    /// A logical unit that cannot be; nothing has changed then.
    pub fn set_exports(&self, reactor: &Reactor, exports: Exports) -> Result<(), String> {
        let mut fresh = Vec::new();
        for spec in &exports.units {
            let ports = ports_of(&exports, spec.key);
            spec.unit.check().map_err(|why| format!("volume \"{}\": {why}", spec.device.common().traits().name))?;
            if !self.units.borrow().contains_key(&spec.key) {
                let engine = LogicalUnit::new((*spec.unit).clone(), ports, spec.reservations.clone());
                let engine = engine.map_err(|why| why.to_string())?;
                fresh.push((spec.key, UnitHome { engine, sent: BTreeMap::new(), storing: false }));
            }
        }
        self.units.borrow_mut().extend(fresh);
        for spec in &exports.units {
            let ports = ports_of(&exports, spec.key);
            self.with(spec.key, |unit| {
                unit.engine.set_ports(ports);
                // It was checked.
                let _ = unit.engine.update((*spec.unit).clone());
            });
        }
        let stays = |place: &Place| exports.allows(&place.nexus);
        let mut changed = Vec::new();
        let places: Vec<(u16, u16, bool, bool)> = {
            let sessions = self.sessions.borrow();
            sessions.iter().map(|(tsih, place)| (*tsih, place.reactor, place.open, stays(place))).collect()
        };
        for (tsih, there, open, stays) in places {
            if !stays {
                self.tell_session(reactor, there, tsih, |live| {
                    live.dismiss(Notice::DropSession { wait: 2, retain: 0 })
                });
            } else if open && self.renumber(&exports, tsih) {
                changed.push((tsih, there));
            }
        }
        let kept: BTreeSet<UnitKey> = exports.units.iter().map(|spec| spec.key).collect();
        self.units.borrow_mut().retain(|key, _| kept.contains(key));
        self.exports.replace(exports);
        for (tsih, there) in changed {
            if let Some(view) = self.view(tsih) {
                self.tell_session(reactor, there, tsih, move |live| live.show(&view));
            }
        }
        kept.iter().for_each(|key| self.publish(reactor, *key));
        Ok(())
    }

    /// Gives a session the logical units that its target has now. Whether they are others than before.
    fn renumber(&self, exports: &Exports, tsih: u16) -> bool {
        let (nexus, before, after) = {
            let mut sessions = self.sessions.borrow_mut();
            let Some(place) = sessions.get_mut(&tsih) else { return false };
            let target = place.nexus.target.as_ref().and_then(|target| exports.luns.get(target));
            let after = target.cloned().unwrap_or_default();
            place.lost.extend(place.luns.values());
            place.lost.retain(|key| !after.values().any(|now| now == key));
            (place.nexus.clone(), std::mem::replace(&mut place.luns, after.clone()), after)
        };
        if before == after {
            return false;
        }
        let id = NexusId(tsih.into());
        let (old, new): (BTreeSet<UnitKey>, BTreeSet<UnitKey>) =
            (before.values().copied().collect(), after.values().copied().collect());
        for key in old.difference(&new) {
            self.with(*key, |unit| unit.engine.detach(id));
        }
        for key in new.difference(&old) {
            self.attach(*key, tsih, &nexus);
        }
        for key in &new {
            self.with(*key, |unit| unit.engine.raise(id, UnitAttention::LunsChanged));
        }
        true
    }

    /// Stops listening, then has every reactor ask its initiators to log out.
    pub fn drain(&self, reactor: &Reactor) {
        self.draining.set(true);
        self.listeners.stop_all();
        for to in 0..reactor.reactors() {
            let drain = |there: &Rc<Reactor>| {
                if let Some(local) = Local::of(there) {
                    local.drain();
                }
            };
            reactor.send(to, Message::Call(Box::new(drain)));
        }
    }
}

fn host_key(nexus: &Nexus) -> HostKey {
    (nexus.target.clone().unwrap_or_default(), nexus.initiator_port())
}

/// Where a unit is seen.
fn ports_of(exports: &Exports, key: UnitKey) -> Vec<TargetPort> {
    /// Protocol identifier of iSCSI (SPC-4 §7.6.1).
    const ISCSI: u8 = 5;
    /// All ports lead to the same memory in the same way: one group.
    const GROUP: u16 = 1;
    let sees = |name: &String| exports.luns.get(name).is_some_and(|luns| luns.values().any(|unit| *unit == key));
    let ports = exports.ports.iter().filter(|((name, _), _)| sees(name));
    ports
        .map(|((name, tpgt), relative)| TargetPort {
            relative_id: *relative,
            group: GROUP,
            port_name: format!("{name},t,0x{tpgt:04x}"),
            device_name: name.clone(),
            protocol: ISCSI,
        })
        .collect()
}
