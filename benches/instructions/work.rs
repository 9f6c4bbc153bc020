//! The work that is counted: a fixed number of I/Os on reactors that this thread turns by hand, one after the other,
//! so that none spins for want of work.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use reactor::bdev::device::null::CompleteIn;
use reactor::bdev::load::{self, Job, Pattern};
use reactor::bdev::{BlockDevice, Handle};
use reactor::nvme::host::{Controller, Identity, Options, Queue, Volume};
use reactor::nvme::pcie::fake::FakeOptions;
use reactor::nvme::target::tcp::{Door, Export};
use reactor::reactor::mailbox::{Reach, Remote};
use reactor::reactor::{Reactor, start};
use reactor::ublk::stand_in::{Load, StandIn};
use reactor::ublk::wire::IoOp;

use crate::devices::{Disk, layer, null, ram, spawn, until};

/// All pieces of work. Those with RAM have small blocks: a copy counts as an instruction for every byte, and large
/// ones would hide all else.
pub const NAMES: [&str; 18] = [
    "null, next poll",
    "null, in submit",
    "null, in submit, 1 layer",
    "RAM 512 read",
    "NVMe/TCP null 4k read, target",
    "NVMe/TCP null 4k write, target",
    "NVMe/TCP RAM 512 read, target",
    "NVMe/TCP RAM 512 write, target",
    "NVMe/TCP null 4k read, host",
    "NVMe/TCP null 4k write, host",
    "NVMe/TCP RAM 512 read, host",
    "NVMe/TCP RAM 512 write, host",
    "NVMe 4k read",
    "NVMe 4k write",
    "NVMe 4k read, shadow doorbells",
    "ublk RAM 4k read",
    "ublk RAM 4k write",
    "ublk flush",
];

const NQN: &str = "nqn.2026-11.io.reactor:instructions";
const MEMORY: usize = 48 << 20;
const DEPTH: usize = 32;
/// I/Os before any is counted: tasks, slots and buffers are there then, and TCP has found its windows.
const WARM: u64 = 8_000;
/// I/Os that are counted.
const COUNTED: u64 = 20_000;

/// What callgrind counts: it looks for this name.
#[inline(never)]
fn counted_turn(reactor: &Reactor) {
    reactor.turn();
}

/// Does the work of that name; the number of I/Os while turns were counted.
pub fn run(name: &str) -> u64 {
    if let Some(what) = name.strip_prefix("ublk ") {
        let op = match what.rsplit(' ').next() {
            Some("read") => IoOp::READ,
            Some("write") => IoOp::WRITE,
            _ => IoOp::FLUSH,
        };
        return local(ram(16 << 20), Load { depth: DEPTH as u16, op, len: 4096 });
    }
    if let Some(what) = name.strip_prefix("NVMe 4k ") {
        let pattern = if what.starts_with("write") { Pattern::RandWrite } else { Pattern::RandRead };
        return disk(what.ends_with("shadow doorbells"), endless(pattern, 4096));
    }
    let Some((what, side)) = name.strip_prefix("NVMe/TCP ").and_then(|rest| rest.split_once(", ")) else {
        let (device, block) = match name {
            "null, next poll" => (null(CompleteIn::Poll), 4096),
            "null, in submit" => (null(CompleteIn::Submit), 4096),
            "null, in submit, 1 layer" => (layer(null(CompleteIn::Submit)), 4096),
            "RAM 512 read" => (ram(16 << 20), 512),
            _ => panic!("there is no work named {name}"),
        };
        return alone(device, endless(Pattern::RandRead, block));
    };
    let (device, block) = if what.starts_with("RAM") { (ram(16 << 20), 512) } else { (null(CompleteIn::Poll), 4096) };
    let pattern = if what.ends_with("write") { Pattern::RandWrite } else { Pattern::RandRead };
    door(device, endless(pattern, block), side == "target")
}

/// A load that goes on for longer than anybody looks.
fn endless(pattern: Pattern, block: usize) -> Job {
    Job { pattern, block, depth: DEPTH, ns: u64::MAX / 4 }
}

/// The block layer alone.
fn alone(device: Arc<dyn BlockDevice>, job: Job) -> u64 {
    let reactor = start::solo(MEMORY).expect("a reactor");
    let volume = Rc::new(Handle::open(&reactor, &device).expect("an open device"));
    let (stop, done) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
    let (here, ending, doing) = (reactor.clone(), stop.clone(), done.clone());
    let load = async move { load::run(&here, volume, job, ending, doing).await };
    let ended = spawn(&reactor, load);
    let turn = || {
        reactor.turn();
    };
    let ios = count(&done, turn, || counted_turn(&reactor));
    stop.set(true);
    let outcome = until(&ended, turn);
    assert_eq!(outcome.errors, 0);
    reactor.shut_down();
    ios
}

/// The NVMe driver, on a controller in software, whose work does not count.
fn disk(shadow_doorbells: bool, job: Job) -> u64 {
    let reactor = start::solo(MEMORY).expect("a reactor");
    let disk = Disk::open(&reactor, FakeOptions { shadow_doorbells, ..FakeOptions::default() });
    let volume = Rc::new(Handle::open(&reactor, &disk.volume).expect("an open device"));
    let (stop, done) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
    let (here, ending, doing) = (reactor.clone(), stop.clone(), done.clone());
    let ended = spawn(&reactor, async move { load::run(&here, volume, job, ending, doing).await });
    let ios = count(
        &done,
        || disk.turn(&reactor),
        || {
            counted_turn(&reactor);
            disk.work(&reactor);
        },
    );
    stop.set(true);
    let outcome = until(&ended, || disk.turn(&reactor));
    assert_eq!(outcome.errors, 0);
    disk.close(&reactor);
    reactor.shut_down();
    ios
}

/// A queue of the ublk door, with a stand-in for the kernel: the copies are the kernel's, and do not count.
fn local(device: Arc<dyn BlockDevice>, load: Load) -> u64 {
    let reactor = start::solo(MEMORY).expect("a reactor");
    let handle = Handle::open(&reactor, &device).expect("an open device");
    let queue = StandIn::open(&reactor, &device, load).expect("a stand-in");
    let done = || handle.stats().total().ios;
    while done() < WARM {
        reactor.turn();
    }
    let before = done();
    while done() < before + COUNTED {
        counted_turn(&reactor);
    }
    let ios = done() - before;
    queue.stop();
    while !queue.has_ended().expect("no fault") {
        reactor.turn();
    }
    drop(handle);
    reactor.shut_down();
    ios
}

/// Turns until enough I/Os are done, at first uncounted; how many were done meanwhile.
fn count(done: &Cell<u64>, warm: impl Fn(), counted: impl Fn()) -> u64 {
    while done.get() < WARM {
        warm();
    }
    let before = done.get();
    while done.get() < before + COUNTED {
        counted();
    }
    done.get() - before
}

/// How a door is reached whose reactor has a turn only when this thread gives it one.
struct ByHand {
    reactor: Rc<Reactor>,
    remotes: [Remote; 1],
}

impl Reach for ByHand {
    fn remotes(&self) -> &[Remote] {
        &self.remotes
    }

    fn ask<R: Send + 'static>(&self, remote: &Remote, f: impl FnOnce(&Rc<Reactor>) -> R + Send + 'static) -> Option<R> {
        let (sender, receiver) = mpsc::channel();
        remote.send(Box::new(move |reactor| {
            // The receiver waits for exactly this.
            let _ = sender.send(f(reactor));
        }));
        loop {
            self.reactor.turn();
            if let Ok(answer) = receiver.try_recv() {
                return Some(answer);
            }
        }
    }

    fn ask_within<R: Send + 'static>(
        &self,
        remote: &Remote,
        _: Duration,
        f: impl FnOnce(&Rc<Reactor>) -> R + Send + 'static,
    ) -> Option<R> {
        self.ask(remote, f)
    }
}

/// A target and a host over loopback, one of them counted.
fn door(device: Arc<dyn BlockDevice>, job: Job, of_target: bool) -> u64 {
    let (target, host) = (start::solo(MEMORY).expect("a reactor"), start::solo(MEMORY).expect("a reactor"));
    let mut door = Door::open_by(ByHand { reactor: target.clone(), remotes: [target.remote()] }).expect("a door");
    door.add_subsystem(NQN, None, vec![Export { nsid: 1, device, read_only: false }]).expect("a subsystem");
    let address = door.listen(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
    let (stop, done) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
    let (here, ending, doing) = (host.clone(), stop.clone(), done.clone());
    let ended = spawn(&host, async move {
        let mut options = Options::new(NQN, Identity::from_uuid([9; 16]));
        (options.disable_sqflow, options.kato_ms) = (true, 0);
        let controller = Controller::connect(&here, address, options).await.expect("a controller");
        let geometry = controller.geometry(1).await.expect("a namespace");
        let queue = Rc::new(Queue::connect(&here, &controller.ticket(), 1).await.expect("a queue"));
        let volume = Rc::new(Volume::new(queue, geometry));
        let outcome = load::run(&here, volume.clone(), job, ending, doing).await;
        volume.queue().close().await;
        controller.shut_down().await.expect("an orderly end");
        outcome
    });
    let turn = || {
        target.turn();
        host.turn();
    };
    let counted = || {
        if of_target {
            counted_turn(&target);
            host.turn();
        } else {
            target.turn();
            counted_turn(&host);
        }
    };
    let ios = count(&done, turn, counted);
    stop.set(true);
    let outcome = until(&ended, turn);
    assert_eq!(outcome.errors, 0, "{:?}", outcome.first_error);
    door.close();
    while door.connections() > 0 {
        turn();
    }
    drop(door);
    host.shut_down();
    target.shut_down();
    ios
}
