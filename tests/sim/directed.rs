//! Single events that seeds have shown to matter, each told on purpose.

use std::cell::RefCell;
use std::rc::Rc;

use reactor::nvme::host::{Command, Controller, Identity, Options, Queue};
use reactor::nvme::spec::{Fuse, NvmOpcode, Sqe};
use reactor::reactor::Reactor;
use reactor::reactor::sim::{Machine, Rates, Simulation};

use super::model::Crash;
use super::plan::{Kind, MS, Plan, Volume};
use super::target::{NQN, Target};

/// A target of one reactor with a RAM volume, and a machine for a host.
fn world(seed: u64) -> (Rc<RefCell<Simulation>>, Target, Machine) {
    let sim = Rc::new(RefCell::new(Simulation::new(seed)));
    sim.borrow().world().set_rates(Rates::default());
    let volume = Volume { kind: Kind::Malloc, block: 512, size: 64 << 10, home: 0, rules: None, stubborn: false };
    let plan = Plan { reactors: 1, volumes: vec![volume], hosts: Vec::new(), rounds: Vec::new(), ..Plan::of(seed) };
    let target = Target::start(&sim, &Rc::new(plan));
    let host = sim.borrow_mut().machine(1);
    (sim, target, host)
}

async fn connect(reactor: &Rc<Reactor>, target: std::net::SocketAddr) -> (Controller, Rc<Queue>) {
    let mut options = Options::new(NQN, Identity::from_uuid([1; 16]));
    options.kato_ms = 0;
    let controller = Controller::connect(reactor, target, options).await.unwrap();
    let queue = Queue::connect(reactor, &controller.ticket(), 1).await.unwrap();
    (controller, Rc::new(queue))
}

async fn command(queue: &Queue, opcode: NvmOpcode, fuse: Fuse) -> bool {
    let buf = queue.reactor().buffer(512).await;
    let mut sqe = Sqe::nvm(opcode, 1);
    sqe.flags |= fuse.0;
    let command = Command::new(sqe);
    let command = if opcode == NvmOpcode::READ { command.filling(buf) } else { command.sending(buf) };
    queue.command(command).await.is_ok_and(|answer| answer.cqe.status().is_success())
}

#[test]
fn the_first_half_of_a_pair_ends_with_its_connection() {
    for seed in 0..20 {
        let (sim, target, host) = world(seed);
        let (reactor, address) = (sim.borrow().reactor(host, 0), target.address);
        let here = reactor.clone();
        let body = async move {
            let (controller, queue) = connect(&here, address).await;
            // Now the slot has a task, which the end of the connection wakes.
            assert!(command(&queue, NvmOpcode::READ, Fuse::NONE).await);
            let first = queue.clone();
            here.spawn("first half", async move {
                assert!(!command(&first, NvmOpcode::COMPARE, Fuse::FIRST).await, "half of a pair was carried out");
            });
            here.sleep(100 * MS).await;
            assert_eq!(queue.in_flight(), 1, "it waits for the second half");
            queue.close().await;
            controller.close().await;
        };
        sim.borrow_mut().run_until(&reactor, body).unwrap();
        target.quiet();
        drop((target, reactor));
        assert_eq!(Rc::into_inner(sim).unwrap().into_inner().finish(), 0);
    }
}

#[test]
fn a_process_that_ends_under_load_lets_go_of_its_connections() {
    let (sim, mut target, host) = world(7);
    let (reactor, address) = (sim.borrow().reactor(host, 0), target.address);
    let here = reactor.clone();
    let connected = sim.borrow_mut().run_until(&reactor, async move { connect(&here, address).await }).unwrap();
    let queue = connected.1.clone();
    reactor.spawn("held at the target", async move {
        command(&queue, NvmOpcode::COMPARE, Fuse::FIRST).await;
    });
    sim.borrow_mut().run_for(100 * MS).unwrap();
    target.crash(Crash::Process);
    sim.borrow_mut().run_for(100 * MS).unwrap();
    assert!(connected.1.ended().is_some(), "the host hears of it");
    drop((connected, target, reactor));
    assert_eq!(Rc::into_inner(sim).unwrap().into_inner().finish(), 0, "buffers of the target or the host leaked");
}
