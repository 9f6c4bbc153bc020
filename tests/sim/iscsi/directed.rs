//! Single events of iSCSI, each told on purpose.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use reactor::bdev::layer::inject::{Action, Rule, When};
use reactor::iscsi::Offer;
use reactor::reactor::Reactor;
use reactor::reactor::io::IoOp;
use reactor::reactor::sim::{Machine, Rates, Simulation};

use super::super::plan::{Kind, MS, Plan, Volume};
use super::super::target::Target;
use super::cdb::{self, Cdb, status};
use super::host::{ScsiPlan, execute, place};
use super::initiator::{Answer, End, Ended, Session, function, outcome};
use super::login::Ask;
use super::sense::{Meaning, meaning};

pub const BLOCK: usize = 512;

/// A target with a volume, and machines for two hosts.
pub struct Scene {
    pub sim: Rc<RefCell<Simulation>>,
    pub target: Target,
    hosts: [Machine; 2],
}

impl Scene {
    pub fn new(seed: u64, reactors: u16, volume: Volume) -> Scene {
        let sim = Rc::new(RefCell::new(Simulation::new(seed)));
        sim.borrow().world().set_rates(Rates::default());
        let scsi = Some(ScsiPlan { offer: Offer::default(), asks: Vec::new() });
        let (volumes, hosts, rounds) = (vec![volume], Vec::new(), Vec::new());
        let plan = Plan { reactors, volumes, hosts, rounds, scsi, ..Plan::of(seed) };
        let target = Target::start(&sim, &Rc::new(plan));
        let hosts = [(); 2].map(|()| sim.borrow_mut().machine(1));
        Scene { sim, target, hosts }
    }

    pub fn reactor(&self, host: usize) -> Rc<Reactor> {
        self.sim.borrow().reactor(self.hosts[host], 0)
    }

    pub fn run<R: 'static>(&self, host: usize, body: impl Future<Output = R> + 'static) -> R {
        let reactor = self.reactor(host);
        self.sim.borrow_mut().run_until(&reactor, body).unwrap()
    }

    /// Everything has come home.
    pub fn end(self) {
        self.target.quiet();
        drop(self.target);
        assert_eq!(Rc::into_inner(self.sim).unwrap().into_inner().finish(), 0, "buffers leaked");
    }
}

pub fn volume(kind: Kind, rules: Option<Vec<Rule>>) -> Volume {
    Volume { kind, block: BLOCK as u32, size: 64 << 10, home: 0, rules, stubborn: false }
}

/// Carries out a command, again after unit attention conditions.
pub async fn ask(session: &Rc<Session>, reactor: &Reactor, cdb: Cdb, out: &[u8], in_len: usize) -> Answer {
    loop {
        let answer = execute(session, reactor, 0, cdb, out.to_vec(), in_len).await.unwrap();
        if meaning(&answer) != Meaning::Attention {
            return answer;
        }
    }
}

pub async fn good(session: &Rc<Session>, reactor: &Reactor, cdb: Cdb, out: &[u8], in_len: usize) -> Vec<u8> {
    let answer = ask(session, reactor, cdb, out, in_len).await;
    assert_eq!(answer.status, status::GOOD, "{cdb:x?}: {answer:x?}");
    answer.data
}

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const PREEMPT_AND_ABORT: u8 = 5;
/// Write exclusive, registrants only.
const REGISTRANTS_ONLY: u8 = 5;

async fn reserve(session: &Rc<Session>, reactor: &Reactor, action: u8, key: u64, about: u64) {
    let list = cdb::reserve_parameters(key, about, false);
    good(session, reactor, cdb::reserve_out(action, REGISTRANTS_ONLY), &list, 0).await;
}

/// Writes blocks, again and again, until it may not any more. How often it has been told that.
async fn write_on(session: Rc<Session>, reactor: Rc<Reactor>, worker: u64, conflicts: Rc<Cell<u32>>) {
    for number in 0.. {
        let usable = session.usable();
        let conn = usable[number % usable.len()];
        let (lba, blocks) = (reactor.entropy().below(120), 1 + reactor.entropy().below(8));
        let data = vec![(worker * 16 + number as u64 % 16) as u8 | 1; blocks as usize * BLOCK];
        let sent = session.command(conn, 0, &cdb::write16(lba, blocks as u32, 0), data, 0, 1).await;
        let Ok(itt) = sent else { return };
        // One that was aborted is not answered.
        match session.wait(itt, reactor.clock().now() + 1_000 * MS).await {
            Ok(Some(Ended::Scsi(answer))) if answer.status == status::RESERVATION_CONFLICT => {
                conflicts.set(conflicts.get() + 1);
                return;
            }
            Ok(Some(Ended::Scsi(answer))) => {
                assert!(answer.status == status::GOOD || meaning(&answer) == Meaning::Attention, "{answer:x?}");
            }
            Ok(Some(other)) => panic!("{other:?}"),
            Ok(None) | Err(_) => return,
        }
    }
}

#[test]
fn no_write_of_a_preempted_host_lands_after_the_answer() {
    const WORKERS: u64 = 8;
    let conflicts = Rc::new(Cell::new(0));
    for seed in 0..60 {
        let kind = if seed % 2 == 0 { Kind::Malloc } else { Kind::File { unit: 512, punch: true } };
        let late = Rule {
            op: Some(IoOp::Write),
            when: When::Every(2),
            count: None,
            action: Action::Delay((1 + seed % 20) * MS),
        };
        let scene = Scene::new(seed, 1 + (seed % 3) as u16, volume(kind, Some(vec![late])));
        let (address, offer) = (scene.target.address, Offer::default());
        let (first, told) = (scene.reactor(0), conflicts.clone());
        let ask_for = Ask { connections: 1 + (seed % 2) as u16, ..Ask::plain(offer) };
        let here = first.clone();
        let other = scene.run(0, async move {
            let session = Session::open(&here, address, place(0), &ask_for).await.unwrap();
            for cid in 1..ask_for.connections {
                session.join(address, cid, &ask_for).await.unwrap();
            }
            reserve(&session, &here, REGISTER, 0, 0xa).await;
            reserve(&session, &here, RESERVE, 0xa, 0).await;
            for worker in 0..WORKERS {
                here.spawn("writer", write_on(session.clone(), here.clone(), worker, told.clone()));
            }
            session
        });
        let second = scene.reactor(1);
        scene.run(1, async move {
            let session = Session::open(&second, address, place(1), &Ask::plain(offer)).await.unwrap();
            reserve(&session, &second, REGISTER, 0, 0xb).await;
            second.sleep(second.entropy().below(60 * MS)).await;
            reserve(&session, &second, PREEMPT_AND_ABORT, 0xb, 0xa).await;
            let whole = cdb::read16(0, 128);
            let found = good(&session, &second, whole, &[], 128 * BLOCK).await;
            for wait in [1, 30, 300] {
                second.sleep(wait * MS).await;
                let later = good(&session, &second, whole, &[], 128 * BLOCK).await;
                assert!(found == later, "seed {seed}: a write of the preempted host has landed");
            }
            session.log_out(second.clock().now() + 10_000 * MS).await.unwrap();
        });
        scene.sim.borrow_mut().run_for(2_000 * MS).unwrap();
        other.close(End::Closed);
        drop((other, first));
        scene.end();
    }
    assert!(conflicts.get() > 60, "hosts that were preempted hear of it");
}

/// The data of a command that is taken back while it waits for its turn is not that of the next one.
#[test]
fn data_of_a_command_that_never_had_its_turn_goes_with_it() {
    for seed in 0..20 {
        let scene = Scene::new(seed, 1 + (seed % 2) as u16, volume(Kind::Malloc, None));
        let (reactor, address) = (scene.reactor(0), scene.target.address);
        scene.run(0, async move {
            let offer = Offer::default();
            let immediate_only = Ask { initial_r2t: true, max_burst: 8192, first_burst: 4096, ..Ask::plain(offer) };
            let session = Session::open(&reactor, address, place(0), &immediate_only).await.unwrap();
            let read = cdb::read16(0, 32);
            assert!(good(&session, &reactor, read, &[], 32 * BLOCK).await.iter().all(|byte| *byte == 0));
            for round in 0..16_u8 {
                // The one before it has not come: it waits.
                let number = session.claim_number();
                let held = session.command(0, 0, &cdb::write16(64, 1, 0), vec![0xee; BLOCK], 0, 1).await.unwrap();
                let deadline = reactor.clock().now() + 10_000 * MS;
                reactor.sleep(5 * MS).await;
                let done = session.manage(0, function::ABORT_TASK, (0, held), deadline).await.unwrap();
                assert_eq!(done, outcome::COMPLETE);
                assert_eq!(session.wait(held, deadline).await, Ok(Some(Ended::Over { known: true })));
                session.ping(0, number).await.unwrap();
                let data: Vec<u8> = (0..16 * BLOCK).map(|at| (at / 7) as u8 ^ round).collect();
                good(&session, &reactor, cdb::write16(8, 16, 0), &data, 0).await;
                let found = good(&session, &reactor, cdb::read16(8, 16), &[], 16 * BLOCK).await;
                assert!(found == data, "seed {seed}, round {round}: other data than was written");
                let unwritten = good(&session, &reactor, cdb::read16(64, 1), &[], BLOCK).await;
                assert!(unwritten.iter().all(|byte| *byte == 0), "a write that was aborted before its turn has landed");
            }
            session.log_out(reactor.clock().now() + 10_000 * MS).await.unwrap();
        });
        scene.end();
    }
}

/// Two functions that are about the same write are both answered when it has ended.
#[test]
fn each_of_several_aborts_waits_for_the_write() {
    for seed in 0..60 {
        let scene = Scene::new(seed, 1, volume(Kind::File { unit: 512, punch: true }, None));
        let (reactor, address) = (scene.reactor(0), scene.target.address);
        let calm = Rates { slow: 0, split: 0, ..Rates::default() };
        scene.sim.borrow().world().set_rates(calm);
        scene.run(0, async move {
            let session = Session::open(&reactor, address, place(0), &Ask::plain(Offer::default())).await.unwrap();
            let deadline = reactor.clock().now() + 60_000 * MS;
            let read = cdb::read16(0, 8);
            good(&session, &reactor, read, &[], 8 * BLOCK).await;
            for round in 1..40_u8 {
                let write = cdb::write16(0, 8, 0);
                let itt = session.command(0, 0, &write, vec![round; 8 * BLOCK], 0, 1).await.unwrap();
                let left = Rc::new(Cell::new(2));
                let (first, here, one) = (session.clone(), reactor.clone(), left.clone());
                reactor.spawn("first", async move {
                    let done = first.manage(0, function::ABORT_TASK, (0, itt), deadline).await.unwrap();
                    assert!(matches!(done, outcome::COMPLETE | outcome::NO_TASK));
                    let found = stable(&first, &here).await;
                    one.set(one.get() - 1);
                    assert!(found, "seed {seed}, round {round}: the write landed after the answer to the first");
                });
                let (second, here, one) = (session.clone(), reactor.clone(), left.clone());
                reactor.spawn("second", async move {
                    let what = if round % 2 == 0 { function::ABORT_TASK } else { function::LOGICAL_UNIT_RESET };
                    second.manage(0, what, (0, itt), deadline).await.unwrap();
                    let found = stable(&second, &here).await;
                    one.set(one.get() - 1);
                    assert!(found, "seed {seed}, round {round}: the write landed after the answer to the second");
                });
                session.wait(itt, deadline).await.unwrap();
                while left.get() > 0 {
                    reactor.sleep(MS).await;
                }
            }
            session.log_out(deadline).await.unwrap();
        });
        scene.end();
    }
}

/// Whether what is there stays there while nobody writes.
async fn stable(session: &Rc<Session>, reactor: &Reactor) -> bool {
    let read = cdb::read16(0, 8);
    let found = good(session, reactor, read, &[], 8 * BLOCK).await;
    reactor.sleep(20 * MS).await;
    found == good(session, reactor, read, &[], 8 * BLOCK).await
}
