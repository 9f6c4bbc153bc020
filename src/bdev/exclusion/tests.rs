use super::*;
use crate::bdev::BlockDevice;
use crate::bdev::device::null::{CompleteIn, Null, Options};
use crate::reactor::io::IoOp;
use crate::reactor::start::solo;

struct Resumed {
    reactor: Rc<Reactor>,
    offsets: RefCell<Vec<u64>>,
}

impl Resume for Resumed {
    fn resume(&self, io: Io) {
        self.offsets.borrow_mut().push(io.offset);
        self.reactor.retire_io(io);
    }
}

fn range(offset: u64, len: u64) -> Range {
    Range { offset, len }
}

fn gate() -> (Rc<Reactor>, Rc<Resumed>, Rc<Gate>) {
    let reactor = solo(32 << 20).unwrap();
    let device = Null::new(Options {
        name: "null".to_owned(),
        uuid: [0; 16],
        size: 1 << 20,
        block_size: 512,
        physical_block_size: 512,
        complete: CompleteIn::Submit,
    });
    let resumed = Rc::new(Resumed { reactor: reactor.clone(), offsets: RefCell::default() });
    let channel: Rc<dyn Resume> = resumed.clone();
    let gate = Gate::open(&reactor, device.common(), Rc::downgrade(&channel));
    (reactor, resumed, gate)
}

#[test]
fn ranges_overlap_where_they_share_a_byte() {
    assert!(range(0, 512).overlaps(range(511, 1)) && range(511, 1).overlaps(range(0, 512)));
    assert!(!range(0, 512).overlaps(range(512, 512)) && !range(512, 512).overlaps(range(0, 512)));
    assert!(range(0, 4096).overlaps(range(1024, 512)) && range(1024, 512).overlaps(range(0, 4096)));
    assert!(!range(0, 1 << 40).overlaps(Range::NOWHERE) && !Range::NOWHERE.overlaps(range(0, 1 << 40)));
}

#[test]
fn a_grant_waits_for_writes_in_flight_and_new_ones_wait_for_its_end() {
    let (reactor, resumed, gate) = gate();
    let early = gate.admit(range(1024, 512)).unwrap();
    let beside = gate.admit(range(8192, 512)).unwrap();
    assert!(!gate.is_exclusive_now(range(512, 1024)));
    assert!(gate.is_exclusive_now(range(0, 1024)));
    let granted = Rc::new(Cell::new(None));
    let second = Rc::new(Cell::new(None));
    for (place, from) in [(granted.clone(), 512), (second.clone(), 1024)] {
        let gate = gate.clone();
        reactor.spawn("asker", async move { place.set(Some(gate.acquire(range(from, 1024)).await)) });
    }
    let turns = || {
        for _ in 0..10 {
            reactor.turn();
        }
    };
    turns();
    assert!(granted.take().is_none(), "a write is in flight");
    assert!(!gate.may_write(range(1024, 512)) && gate.admit(range(1024, 512)).is_none());
    assert!(gate.may_write(range(4096, 512)), "nothing there");
    gate.done(beside);
    turns();
    assert!(granted.take().is_none());
    gate.done(early);
    turns();
    let grant = granted.take().expect("nothing overlapping is in flight");
    assert!(second.take().is_none(), "it overlaps the first");
    for offset in [512, 1536] {
        let mut io = reactor.create_io().unwrap();
        io.prepare(IoOp::Write, offset, 512);
        gate.hold_back(io);
    }
    drop(grant);
    turns();
    assert_eq!(*resumed.offsets.borrow(), [512, 1536], "writes that waited go before the next grant");
    assert!(!gate.may_write(range(1536, 512)));
    drop(second.take().expect("its turn"));
    assert!(gate.is_exclusive_now(range(0, 1 << 20)) && !gate.guarded.get());
    drop(gate);
    reactor.turn();
    assert!(service::<Arbiters>(&reactor).0.borrow().is_empty(), "the last gate took the arbiter along");
    reactor.shut_down();
}

#[test]
fn reads_wait_for_grants_against_them_alone() {
    let (reactor, resumed, gate) = gate();
    let turns = || {
        for _ in 0..10 {
            reactor.turn();
        }
    };
    for from_all in [false, true] {
        let granted = Rc::new(Cell::new(None));
        let (place, asker) = (granted.clone(), gate.clone());
        reactor.spawn("asker", async move {
            let asked = range(512, 1024);
            place.set(Some(if from_all { asker.acquire_from_all(asked) } else { asker.acquire(asked) }.await));
        });
        turns();
        let grant = granted.take().expect("nothing is in flight");
        assert!(!gate.may_write(range(1024, 512)));
        assert_eq!(gate.may_read(range(1024, 512)), !from_all);
        assert!(gate.may_read(range(1536, 512)) && gate.may_read(range(0, 512)), "beside it");
        for op in [IoOp::Read, IoOp::Write] {
            let mut io = reactor.create_io().unwrap();
            io.prepare(op, 1024, 512);
            gate.hold_back(io);
        }
        assert!(resumed.offsets.borrow().is_empty());
        drop(grant);
        turns();
        assert_eq!(resumed.offsets.take(), [1024, 1024]);
        assert!(gate.may_read(range(0, 1 << 20)) && gate.may_write(range(0, 1 << 20)));
    }
    drop(gate);
    reactor.shut_down();
}

#[test]
fn an_asker_that_is_gone_blocks_nobody() {
    let (reactor, _resumed, gate) = gate();
    let ticket = gate.admit(range(0, 512)).unwrap();
    {
        let mut early = std::pin::pin!(gate.acquire(range(0, 512)));
        let mut context = Context::from_waker(std::task::Waker::noop());
        assert!(early.as_mut().poll(&mut context).is_pending());
    }
    gate.done(ticket);
    reactor.turn();
    assert!(gate.is_exclusive_now(range(0, 512)));
    drop(gate.acquire(range(0, 512)));
    assert!(gate.is_exclusive_now(range(0, 512)) && gate.may_write(range(0, 512)));
    drop(gate);
    reactor.shut_down();
}
