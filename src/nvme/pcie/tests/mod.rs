//! The driver on a controller that fails: one test a fault, on simulated time, judged by what is on the disk, what reads give, and whether
//! every I/O ends once and every buffer comes back.

mod admin;
mod bring_up;
mod buffer;
mod end;
mod events;
mod interrupt;
mod late;
mod random;
mod reset;
mod verify;
mod wrong;
mod zoned;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use hugepages::{Buf, DeviceBuf};

use super::fake::{DiskOptions, FakeDisk, FakeOptions, FakePort, FakeRegisters, Fault, NamespaceOptions, Point, Rule};
use super::{ControllerError, ControllerOptions, Drive, DriveOptions, Force, Held, Life, Port};
use crate::bdev::Told as LossTold;
use crate::bdev::device::nvme::{Nvme, NvmeDrive};
use crate::bdev::device::testing::{Done, end as end_of, flush_for, io_with, pattern};
use crate::bdev::{BlockDevice, Handle};
use crate::limits::{NVME_RESETS_MAX, NVME_RETRIES_MAX};
use crate::nvme::spec::{AdminOpcode, Cc, Csts, InterruptCoalescing, NvmOpcode, Property, StatusCode};
use crate::reactor::Reactor;
use crate::reactor::io::{IoOp, IoStatus};
use crate::reactor::sim::{Machine, Simulation};
use crate::sys::mmio::Registers;

const MS: u64 = 1_000_000;
const S: u64 = 1_000 * MS;
/// Of an I/O.
const TIMEOUT: u64 = 4 * S;
/// Bytes of each namespace.
const SIZE: u64 = 8 << 20;
/// Bytes of a block.
const BLOCK: u64 = 512;

/// A controller in software whose function can be reset, and that can be kept from memory, if these say so.
#[derive(Clone)]
struct TestPort {
    fake: FakePort,
    resets: Arc<AtomicBool>,
    cuts: Arc<AtomicBool>,
    /// Times that [`Port::force`] has said that it is under way.
    asked: Arc<AtomicU64>,
}

impl Port for TestPort {
    type Registers = FakeRegisters;

    fn registers(&self) -> &FakeRegisters {
        self.fake.registers()
    }

    fn buffer(&self) -> Option<&FakeRegisters> {
        self.fake.buffer()
    }

    fn data(&self, buf: &Buf) -> Option<u64> {
        self.fake.data(buf)
    }

    fn memory(&self, memory: &DeviceBuf) -> Option<u64> {
        self.fake.memory(memory)
    }

    fn let_in(&self) -> Result<(), String> {
        let cc = Cc(self.fake.registers().read32(Property::CC.0));
        let csts = Csts(self.fake.registers().read32(Property::CSTS.0));
        assert!(csts.gone() || !cc.enabled() && !csts.ready(), "memory is for a controller that is disabled: {csts:?}");
        Ok(())
    }

    /// At the third question.
    fn force(&self, how: Force) -> Option<bool> {
        if self.asked.fetch_add(1, Ordering::Relaxed) % 3 < 2 {
            return None;
        }
        if how == Force::Reset && self.resets.load(Ordering::Relaxed) {
            self.fake.reset_function();
            return Some(true);
        }
        if how == Force::CutOff && self.cuts.load(Ordering::Relaxed) {
            self.fake.remove();
        }
        self.fake.force(how)
    }

    fn vectors(&self) -> u16 {
        self.fake.vectors()
    }

    fn connect(&self, vector: u16, reactor: &Reactor) -> bool {
        self.fake.connect(vector, reactor)
    }

    fn mask(&self, vector: u16, masked: bool) {
        self.fake.mask(vector, masked);
    }

    fn attach(&self, reactor: &Rc<Reactor>, qid: u16, held: Rc<dyn Held>) {
        self.fake.attach(reactor, qid, held);
    }

    fn detach(&self, reactor: &Rc<Reactor>, qid: u16) {
        self.fake.detach(reactor, qid);
    }
}

/// How an I/O that was begun has ended, once it has.
type Answer = Rc<RefCell<Option<Done>>>;

/// Two reactors, and a disk of two namespaces behind one controller.
struct Rig {
    simulation: Simulation,
    machine: Machine,
    disk: FakeDisk,
    port: TestPort,
    drive: Option<Arc<NvmeDrive<TestPort>>>,
    /// By namespace less one.
    devices: Vec<Arc<dyn BlockDevice>>,
    /// By reactor and namespace less one.
    handles: Vec<Vec<Handle>>,
    options: ControllerOptions,
    timeout_ns: u64,
}

impl Rig {
    /// Nothing is opened yet.
    fn closed(seed: u64, disk: impl FnOnce(&mut DiskOptions), controller: FakeOptions) -> Rig {
        let mut simulation = Simulation::new(seed);
        let machine = simulation.machine(2);
        let mut options = DiskOptions {
            namespaces: (1..=2).map(|nsid| NamespaceOptions::new(nsid, SIZE, BLOCK.ilog2() as u8)).collect(),
            ..DiskOptions::default()
        };
        disk(&mut options);
        let disk = FakeDisk::new(options);
        let fake = disk.controller(controller);
        let port = TestPort { fake, resets: Arc::default(), cuts: Arc::default(), asked: Arc::default() };
        port.fake.serve(&simulation.reactor(machine, 0));
        Rig {
            simulation,
            machine,
            disk,
            port,
            drive: None,
            devices: Vec::new(),
            handles: Vec::new(),
            options: ControllerOptions::new(32),
            timeout_ns: TIMEOUT,
        }
    }

    fn with(disk: impl FnOnce(&mut DiskOptions), controller: FakeOptions) -> Rig {
        let mut rig = Rig::closed(1, disk, controller);
        rig.open().expect("an honest controller comes up");
        rig
    }

    /// Opened, on an honest controller that takes a while for each command.
    fn new() -> Rig {
        Rig::with(|_| {}, FakeOptions { io_ns: (10_000, 10_000), ..FakeOptions::default() })
    }

    fn reactor(&self, number: u16) -> Rc<Reactor> {
        self.simulation.reactor(self.machine, number)
    }

    /// Runs a task of the home to its end.
    fn run<R: 'static>(&mut self, body: impl Future<Output = R> + 'static) -> R {
        self.run_on(0, body)
    }

    fn run_on<R: 'static>(&mut self, reactor: u16, body: impl Future<Output = R> + 'static) -> R {
        let reactor = self.reactor(reactor);
        self.simulation.run_until(&reactor, body).unwrap()
    }

    fn now(&self) -> u64 {
        self.simulation.world().now()
    }

    fn attempt(&mut self) -> Result<Arc<NvmeDrive<TestPort>>, ControllerError> {
        let options = DriveOptions { controller: self.options, timeout_ns: self.timeout_ns };
        let (home, port) = (self.reactor(0), self.port.clone());
        self.run(async move { Drive::open(&home, port, options, vec![0, 1]).await })
    }

    fn open(&mut self) -> Result<(), ControllerError> {
        let drive = self.attempt()?;
        for nsid in 1..=2 {
            self.devices.push(Arc::new(Nvme::new(format!("n{nsid}"), &drive, nsid).unwrap()));
        }
        self.drive = Some(drive);
        for reactor in 0..2 {
            let open = |device| Handle::open(&self.reactor(reactor), device).unwrap();
            self.handles.push(self.devices.iter().map(open).collect());
        }
        // Channels of another reactor join their volume's home.
        self.wait(MS);
        Ok(())
    }

    fn drive(&self) -> &Arc<NvmeDrive<TestPort>> {
        self.drive.as_ref().unwrap()
    }

    fn inject(&self, rules: impl IntoIterator<Item = Rule>) {
        self.port.fake.inject(rules);
    }

    fn handle(&self, reactor: u16, nsid: u32) -> Handle {
        self.handles[usize::from(reactor)][nsid as usize - 1].clone()
    }

    /// Begins an I/O, and does not wait for it.
    fn begin(&self, (reactor, nsid): (u16, u32), op: IoOp, offset: u64, len: u64, data: &[u8]) -> Answer {
        let (handle, answer) = (self.handle(reactor, nsid), Answer::default());
        let io = io_with(handle.reactor(), op, offset, len, data, &[]);
        let there = answer.clone();
        self.reactor(reactor).spawn("io", async move {
            let done = end_of(&handle, io).await;
            assert!(there.borrow_mut().replace(done).is_none(), "an I/O ended twice");
        });
        answer
    }

    fn write(&self, place: (u16, u32), offset: u64, data: &[u8]) -> Answer {
        self.begin(place, IoOp::Write, offset, data.len() as u64, data)
    }

    fn read(&self, place: (u16, u32), offset: u64, len: u64) -> Answer {
        self.begin(place, IoOp::Read, offset, len, &vec![0xDB; len as usize])
    }

    /// Lets time pass.
    fn wait(&mut self, ns: u64) {
        self.simulation.run_for(ns).unwrap();
    }

    /// Lets time pass until an I/O has ended, which it does within `ns`.
    fn end(&mut self, answer: &Answer, ns: u64) -> Done {
        let limit = self.now() + ns;
        while answer.borrow().is_none() {
            assert!(self.now() < limit, "an I/O does not end: {:?}", self.drive().life());
            self.wait(MS);
        }
        answer.take().unwrap()
    }

    fn ends(&mut self, answer: &Answer, ns: u64) -> IoStatus {
        self.end(answer, ns).status
    }

    /// Writes and reads back on all reactors and namespaces: what was disturbed is well again.
    fn works(&mut self, seed: u64) {
        for (reactor, nsid) in [(0, 1), (1, 1), (0, 2), (1, 2)] {
            let offset = SIZE - (u64::from(reactor) * 2 + u64::from(nsid)) * 16 * BLOCK;
            let data = pattern(seed ^ offset, 8 * BLOCK as usize);
            let written = self.write((reactor, nsid), offset, &data);
            assert_eq!(self.ends(&written, S), IoStatus::Success);
            assert!(self.disk.contents(nsid, offset, data.len()) == data);
            let read = self.read((1 - reactor, nsid), offset, data.len() as u64);
            let done = self.end(&read, S);
            assert!(done.status == IoStatus::Success && done.data == data);
        }
    }

    fn stale(&self) -> u64 {
        let drive = self.drive();
        (0..2).map(|reactor| drive.queue(&self.reactor(reactor)).unwrap().counters().stale).sum()
    }

    /// As [`Rig::stale`], if there is a controller still.
    fn stale_if_live(&self) -> u64 {
        if self.drive().life() == Life::Live { self.stale() } else { 0 }
    }

    /// A controller that is never ready is disabled nevertheless, once its time is over: there is no other way, and it says so.
    fn forgive_taking_enable_back(&self) {
        let broken = self.port.fake.take_broken();
        assert!(broken.iter().all(|what| what == "CC.EN was cleared before CSTS.RDY was 1"), "{broken:?}");
    }

    fn close(&mut self) -> Result<(), ControllerError> {
        let (home, drive) = (self.reactor(0), self.drive().clone());
        self.run(async move { drive.close(&home).await })
    }

    /// Gives back the channels.
    fn release(&mut self) {
        self.handles.clear();
        for device in std::mem::take(&mut self.devices) {
            // The home last: others may have a handle there.
            for reactor in (0..2).rev() {
                let (here, id) = (self.reactor(reactor), device.common().id());
                let reactor = here.clone();
                self.simulation.run_until(&reactor, async move { Handle::forget(&here, id).await }).unwrap();
            }
        }
        self.wait(MS);
    }

    /// Ends in the order in which a server does. Nothing may be left: no I/O, no buffer, no breach, no access to memory that was not
    /// the controller's.
    fn finish(mut self) {
        self.release();
        if self.drive.is_some() {
            self.close().unwrap();
        }
        self.nothing_left();
    }

    fn nothing_left(mut self) {
        self.port.fake.assert_clean();
        self.drive = None;
        self.release();
        for reactor in 0..2 {
            let reactor = self.reactor(reactor);
            assert_eq!(reactor.ios_in_use(), 0, "reactor {}", reactor.id());
        }
        let Rig { simulation, port, .. } = self;
        drop(port);
        assert_eq!(simulation.finish(), 0, "buffers were lost");
    }
}

/// Reads of a register that say so, for as long as the rule stands.
fn reads(property: Property, value: u64) -> Rule {
    Rule::always(Point::Read(property), Fault::Value(value))
}
