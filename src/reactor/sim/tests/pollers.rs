use std::cell::RefCell;
use std::rc::Weak;

use super::*;
use crate::reactor::mailbox::{Message, Remote};
use crate::reactor::{Activity, Deferred, Poller, PollerId, Turn};
use crate::sys::op::{OpToken, Owner};

type Log = Rc<RefCell<Vec<&'static str>>>;

/// Does what it was made with, and notes that it did.
struct Does {
    name: &'static str,
    log: Log,
    what: Box<dyn Fn()>,
}

impl Does {
    fn new(name: &'static str, log: &Log, what: impl Fn() + 'static) -> Rc<Does> {
        Rc::new(Does { name, log: log.clone(), what: Box::new(what) })
    }

    fn go(&self) {
        self.log.borrow_mut().push(self.name);
        (self.what)();
    }
}

impl Deferred for Does {
    fn name(&self) -> &'static str {
        self.name
    }
    fn run(&self) {
        self.go();
    }
}

impl Poller for Does {
    fn poll(&self) -> Activity {
        self.go();
        Activity::Idle
    }
}

impl Drop for Does {
    fn drop(&mut self) {
        self.log.borrow_mut().push("dropped");
    }
}

#[test]
fn what_is_left_to_the_end_of_a_turn_goes_out_with_it() {
    let two = Two::new(1);
    let (here, log) = (two.here.clone(), Log::default());
    while here.turn() == Turn::Busy {}
    let before = here.stats().ring;

    let reactor = here.clone();
    let end = Does::new("end", &log, move || {
        reactor.submit_op(Op::Cancel { target: OpToken(u64::MAX) }, Owner { sink: u32::MAX, tag: 0 });
        let remote = reactor.remote();
        reactor.send(0, Message::Call(Box::new(move |_| assert_eq!(remote.id(), 0))));
    });
    here.add_poller("poll", Does::new("poll", &log, || {}));
    let (reactor, work, noted) = (here.clone(), end.clone(), log.clone());
    here.spawn("task", async move {
        noted.borrow_mut().push("task");
        reactor.at_end(work);
    });
    here.defer(Does::new("deferred", &log, || {}));
    assert_eq!(here.turn(), Turn::Busy);
    let seen = ["poll", "deferred", "dropped", "task", "end"];
    assert_eq!(*log.borrow(), seen, "after the tasks of the same turn");
    let after = here.stats().ring;
    let started = (after.submitted - before.submitted, after.enters - before.enters);
    assert_eq!(started, (1, 1), "what it started was handed over by this turn");

    // Asked for again while it is done: in the next turn, which follows at once.
    log.borrow_mut().clear();
    let (reactor, me) = (here.clone(), Rc::new(RefCell::new(Weak::<Does>::new())));
    let own = me.clone();
    let left = Cell::new(3);
    let again = Does::new("again", &log, move || {
        if left.replace(left.get() - 1) > 1 {
            reactor.at_end(own.borrow().upgrade().expect("it runs"));
        }
    });
    *me.borrow_mut() = Rc::downgrade(&again);
    here.at_end(again.clone());
    for _ in 0..3 {
        assert_eq!(here.turn(), Turn::Busy);
    }
    assert_eq!(*log.borrow(), ["poll", "again"].repeat(3));
    drop((again, me));
    assert_eq!(log.borrow().last(), Some(&"dropped"), "the list keeps nothing");
}

#[test]
fn pollers_come_and_go_during_a_turn() {
    let two = Two::new(1);
    let (here, log) = (two.here.clone(), Log::default());
    let turn = || {
        here.turn();
        std::mem::take(&mut *log.borrow_mut())
    };
    let ids: Rc<RefCell<Vec<PollerId>>> = Rc::default();
    // Removes itself and the one behind it, and adds one.
    let (reactor, all, notes) = (here.clone(), ids.clone(), log.clone());
    let first = here.add_poller(
        "first",
        Does::new("first", &log, move || {
            let victims = all.take();
            victims.iter().for_each(|id| reactor.remove_poller(*id));
            let added = reactor.add_poller("new", Does::new("new", &notes, || {}));
            all.borrow_mut().push(added);
        }),
    );
    // Takes another one with it when it is dropped.
    struct Last(Rc<Reactor>, PollerId);
    impl Drop for Last {
        fn drop(&mut self) {
            self.0.remove_poller(self.1);
        }
    }
    let third = here.add_poller("third", Does::new("third", &log, || {}));
    let owned = Last(here.clone(), third);
    let second = here.add_poller(
        "second",
        Does::new("second", &log, move || {
            let _ = &owned;
        }),
    );
    ids.borrow_mut().extend([first, second]);
    assert_eq!(turn(), ["first", "third", "dropped", "dropped", "dropped"], "the second is not looked at any more");
    assert_eq!(turn(), ["new"]);
    let new = ids.borrow()[0];
    assert!(new > second && second > third && third > first, "no name is given out twice");
    // Names of those that have gone do nothing.
    [first, second, third].iter().for_each(|id| here.remove_poller(*id));
    assert_eq!(turn(), ["new"]);

    // One that is removed before it was ever looked at.
    let (reactor, notes) = (here.clone(), log.clone());
    let fickle = here.add_poller(
        "fickle",
        Does::new("fickle", &log, move || {
            let id = reactor.add_poller("unborn", Does::new("unborn", &notes, || {}));
            reactor.remove_poller(id);
        }),
    );
    assert_eq!(turn(), ["new", "fickle", "dropped"]);
    here.remove_poller(fickle);
    here.remove_poller(new);
    assert_eq!((turn(), turn()), (vec!["dropped", "dropped"], vec![]));
}

/// When the device of [`Queue`] has its next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// After the last poll, before it is told to ring.
    BeforeArming,
    /// Told to ring, the queue not looked at again yet.
    Armed,
    /// After the last look.
    AfterLooking,
}

/// Whom the device rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rings {
    /// Who told it to.
    Armed,
    /// Who is asleep, as senders of messages do.
    Asleep,
}

/// A queue with the device that fills it, whose entries come at the worst moments.
struct Queue {
    reactor: Weak<Reactor>,
    remote: Remote,
    when: When,
    rings: Rings,
    ready: Cell<u32>,
    taken: Cell<u32>,
    left: Cell<u32>,
    armed: Cell<bool>,
    arms: Cell<[u32; 2]>,
    disarms: Cell<u32>,
}

impl Queue {
    fn post(&self, now: When) {
        if now == self.when && self.left.get() > 0 {
            self.left.set(self.left.get() - 1);
            self.ready.set(self.ready.get() + 1);
            let rings = if self.rings == Rings::Armed { self.armed.get() } else { self.remote.is_asleep() };
            if rings {
                self.remote.doorbell().ring();
            }
        }
    }
}

impl Poller for Queue {
    fn poll(&self) -> Activity {
        assert!(!self.armed.get(), "polled while armed");
        let found = self.ready.take();
        self.taken.set(self.taken.get() + found);
        if found > 0 { Activity::Busy } else { Activity::Idle }
    }

    fn arm(&self) -> bool {
        let reactor = self.reactor.upgrade().expect("it runs");
        assert!(reactor.remote().is_asleep(), "who rings sleepers would not ring");
        self.post(When::BeforeArming);
        self.armed.set(true);
        self.post(When::Armed);
        let nothing = self.ready.get() == 0;
        self.armed.set(nothing);
        self.post(When::AfterLooking);
        let mut arms = self.arms.get();
        arms[usize::from(nothing)] += 1;
        self.arms.set(arms);
        nothing
    }

    fn disarm(&self) {
        assert!(self.armed.replace(false), "not armed");
        self.disarms.set(self.disarms.get() + 1);
    }
}

fn queue(reactor: &Rc<Reactor>, when: When, rings: Rings, entries: u32) -> Rc<Queue> {
    Rc::new(Queue {
        reactor: Rc::downgrade(reactor),
        remote: reactor.remote(),
        when,
        rings,
        ready: Cell::new(0),
        taken: Cell::new(0),
        left: Cell::new(entries),
        armed: Cell::new(false),
        arms: Cell::new([0, 0]),
        disarms: Cell::new(0),
    })
}

#[test]
fn no_entry_of_a_device_is_slept_through() {
    const ENTRIES: u32 = 20;
    for seed in 0..40 {
        for when in [When::BeforeArming, When::Armed, When::AfterLooking] {
            for rings in [Rings::Armed, Rings::Asleep] {
                let mut two = Two::new(seed);
                let queue = queue(&two.here, when, rings, ENTRIES);
                // Others before and behind, that have nothing.
                let around = [0, 1].map(|_| self::queue(&two.here, when, rings, 0));
                two.here.add_poller("before", around[0].clone());
                let id = two.here.add_poller("queue", queue.clone());
                two.here.add_poller("behind", around[1].clone());
                // Nothing else happens: with an entry slept through, nothing ever would again.
                two.sim.run_for(1_000_000_000).unwrap();
                assert_eq!(queue.taken.get(), ENTRIES, "seed {seed}, {when:?}, {rings:?}");
                for queue in around.iter().chain([&queue]) {
                    let [_, armed] = queue.arms.get();
                    let asleep = u32::from(queue.armed.get());
                    assert_eq!((armed, asleep), (queue.disarms.get() + 1, 1), "asleep in the end, armed once");
                }
                let [refused, _] = queue.arms.get();
                assert_eq!(refused, if when == When::AfterLooking { 0 } else { ENTRIES });
                assert_eq!(around[0].arms.get()[0], 0);
                // One that goes while its reactor sleeps is disarmed; all others are when the reactor ends.
                two.here.remove_poller(id);
                assert!(!queue.armed.get() && around[0].armed.get());
                assert_eq!(Rc::strong_count(&queue), 1);
                drop((two.here, two.there));
                assert_eq!(two.sim.finish(), 0);
                assert!(!around[0].armed.get() && !around[1].armed.get());
            }
        }
    }
}

#[test]
fn a_message_that_comes_while_pollers_are_armed_wakes() {
    struct Calls(Remote, Rc<Cell<u32>>, Rc<RefCell<Vec<std::sync::mpsc::Receiver<()>>>>);
    impl Poller for Calls {
        fn poll(&self) -> Activity {
            Activity::Idle
        }
        fn arm(&self) -> bool {
            if self.1.get() > 0 {
                self.1.set(self.1.get() - 1);
                let (sender, receiver) = std::sync::mpsc::channel();
                self.2.borrow_mut().push(receiver);
                self.0.send(Box::new(move |_| sender.send(()).expect("the test looks")));
            }
            true
        }
    }
    let mut two = Two::new(5);
    let (left, heard) = (Rc::new(Cell::new(10)), Rc::default());
    two.here.add_poller("calls", Rc::new(Calls(two.here.remote(), left.clone(), Rc::clone(&heard))));
    two.sim.run_for(1_000_000_000).unwrap();
    assert_eq!((left.get(), heard.borrow().len()), (0, 10));
    assert!(heard.borrow().iter().all(|answer| answer.try_recv().is_ok()), "each was heard");
}
