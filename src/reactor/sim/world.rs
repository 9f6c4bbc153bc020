//! The world that simulated backends share: time, chance, events to come, machines, and everything that is open.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use crossbeam_queue::SegQueue;

use super::disk::{Disk, DiskOptions};
use super::rates::{Fault, Rates};
use super::ring::{At, RingState};
use super::socket::{End, Port, Spoil};
use super::trace::Trace;
use crate::reactor::clock::{Entropy, TimeSource};
use crate::sys::descriptor::{Descriptor, SimulatedFd};

/// A simulated machine: an address, disks, and the reactors of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Machine(pub(super) usize);

/// A disk of a simulated machine: a regular file that is opened for direct I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DiskId(pub(super) usize);

/// What will happen.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    /// Bytes or the FIN of this end reach the other.
    Deliver { end: usize },
    /// A connection request arrives.
    Syn { end: usize, to: SocketAddr },
    /// The answer to a connection request arrives; 0 or an errno.
    Answer { end: usize, errno: i32 },
    /// A reset arrives at this end.
    Reset { end: usize },
    /// This end gives up, if its peer is still silent.
    TimeOut { end: usize },
    /// A disk works on an operation.
    Disk { at: At },
    /// The ring of a doorbell is noticed.
    Doorbell { ring: usize },
}

/// Everything that a descriptor can be open on. Numbers are never given out again.
pub(super) enum Object {
    Socket(Box<End>),
    Port(Port),
    Disk(usize),
}

pub(super) struct MachineState {
    pub(super) address: Ipv4Addr,
    /// Nothing reaches it and nothing it sends arrives.
    pub(super) silent: bool,
}

pub(super) struct State {
    pub(super) now: Rc<Cell<u64>>,
    pub(super) chance: Entropy,
    pub(super) rates: Rates,
    pub(super) trace: Trace,
    /// By time; those of one time in seeded order.
    events: BTreeMap<(u64, u64, u64), Event>,
    planned: u64,
    pub(super) objects: Vec<Object>,
    pub(super) closed: Arc<SegQueue<usize>>,
    pub(super) disks: Vec<Disk>,
    pub(super) machines: Vec<MachineState>,
    pub(super) rings: Vec<RingState>,
    pub(super) next_port: u16,
}

impl State {
    pub(super) fn now(&self) -> u64 {
        self.now.get()
    }

    /// One of `below` numbers, at least one.
    pub(super) fn pick(&self, below: u64) -> u64 {
        self.chance.below(below.max(1))
    }

    /// Whether something of this rate, in a million, happens now.
    pub(super) fn happens(&self, rate: u32) -> bool {
        rate > 0 && self.chance.below(1_000_000) < u64::from(rate)
    }

    /// A number from 1 to `most`: all of it half of the time, else any, small ones favoured.
    pub(super) fn portion(&self, most: usize) -> usize {
        match self.pick(4) {
            0 | 1 => most,
            2 => 1 + self.pick(most as u64) as usize,
            _ => 1 + self.pick(most.min(64) as u64) as usize,
        }
    }

    pub(super) fn note(&mut self, what: &'static str, a: usize, b: i64) {
        self.trace.note(self.now.get(), what, a, b);
    }

    pub(super) fn after(&mut self, ns: u64, event: Event) {
        let at = self.now() + ns;
        let order = self.chance.next();
        self.events.insert((at, order, self.planned), event);
        self.planned += 1;
    }

    /// When the next event is due.
    pub(super) fn next_event(&self) -> Option<u64> {
        self.events.first_key_value().map(|((at, ..), _)| *at)
    }

    /// Lets everything happen that is due.
    pub(super) fn run_due(&mut self) {
        self.close_dropped();
        self.hear_doorbells();
        while self.next_event().is_some_and(|at| at <= self.now()) {
            let Some((_, event)) = self.events.pop_first() else { return };
            match event {
                Event::Deliver { end } => self.deliver(end),
                Event::Syn { end, to } => self.syn(end, to),
                Event::Answer { end, errno } => self.answer(end, errno),
                Event::Reset { end } => self.reset(end, libc::ECONNRESET),
                Event::TimeOut { end } => self.time_out(end),
                Event::Disk { at } => self.disk_works(at),
                Event::Doorbell { ring } => self.doorbell_heard(ring),
            }
            self.close_dropped();
        }
    }

    /// Closes what lost its last descriptor.
    pub(super) fn close_dropped(&mut self) {
        while let Some(number) = self.closed.pop() {
            match &self.objects[number] {
                Object::Socket(_) => self.close_end(number),
                Object::Port(_) => self.close_port(number),
                Object::Disk(_) => {}
            }
        }
    }

    /// Adds an object; its descriptor closes it when dropped.
    pub(super) fn open(&mut self, object: Object) -> SimulatedFd {
        self.objects.push(object);
        SimulatedFd::new(self.objects.len() - 1, &self.closed)
    }

    /// A free port of the range for outgoing connections.
    pub(super) fn free_port(&mut self) -> u16 {
        self.next_port = if self.next_port == u16::MAX { 32_768 } else { self.next_port + 1 };
        self.next_port
    }

    pub(super) fn is_silent(&self, machine: usize) -> bool {
        self.machines[machine].silent
    }

    pub(super) fn fault(&mut self, fault: Fault) {
        match fault {
            Fault::DropByte { from, to, at } => self.spoil_at(from, to, at, Spoil::Drop),
            Fault::FlipBit { from, to, at } => self.spoil_at(from, to, at, Spoil::Flip),
            Fault::Reset { from, to } => {
                for (one, other) in [(from, to), (to, from)] {
                    if let Some(end) = self.find_end(one, other) {
                        self.reset(end, libc::ECONNRESET);
                    }
                }
            }
            Fault::Vanish(machine) => self.machines[machine.0].silent = true,
            Fault::Return(machine) => self.speak_again(machine),
            Fault::BadSector { disk, sector } => self.disks[disk.0].spoil(sector),
            Fault::FailSync(disk) => self.disks[disk.0].fail_sync = true,
            Fault::Full(disk) => self.disks[disk.0].full = true,
        }
    }

    fn spoil_at(&mut self, from: SocketAddr, to: SocketAddr, at: u64, spoil: Spoil) {
        let end = self.find_end(from, to);
        self.spoil(end.unwrap_or_else(|| panic!("no connection from {from} to {to}")), at, spoil);
    }

    pub(super) fn speak_again(&mut self, machine: Machine) {
        self.machines[machine.0].silent = false;
        self.resume_deliveries();
    }

    /// A machine loses power: what it had in flight is in pieces, its sockets are forgotten, its disks keep what was durable
    /// and some of the rest.
    pub(super) fn lose_power(&mut self, machine: Machine) {
        self.machines[machine.0].silent = true;
        self.sockets_lose_power(machine.0);
        for ring in 0..self.rings.len() {
            if self.rings[ring].machine == machine.0 {
                self.abandon_disk_work(ring);
            }
        }
        for disk in 0..self.disks.len() {
            if self.disks[disk].machine == machine.0 {
                self.disk_loses_power(disk);
            }
        }
    }

    /// One way through the network, in nanoseconds.
    pub(super) fn hop(&self) -> u64 {
        if self.happens(self.rates.slow) { 1_000_000 + self.pick(50_000_000) } else { 2_000 + self.pick(60_000) }
    }
}

/// A handle on the simulated world: what a test arranges there. Clones are the same world.
#[derive(Clone)]
pub struct World(Rc<RefCell<State>>);

impl World {
    pub(super) fn new(seed: u64) -> World {
        let chance = Entropy::new(seed);
        // The first numbers of neighbouring seeds resemble each other.
        for _ in 0..16 {
            chance.next();
        }
        let start = 1_000_000_000 + chance.below(1_000_000_000_000);
        World(Rc::new(RefCell::new(State {
            now: Rc::new(Cell::new(start)),
            chance,
            rates: Rates::default(),
            trace: Trace::default(),
            events: BTreeMap::new(),
            planned: 0,
            objects: Vec::new(),
            closed: Arc::new(SegQueue::new()),
            disks: Vec::new(),
            machines: Vec::new(),
            rings: Vec::new(),
            next_port: 32_768,
        })))
    }

    /// What happened last, unless the world is being changed: for a panic.
    pub(super) fn try_story(&self) -> Option<String> {
        self.0.try_borrow().ok().map(|state| state.trace.to_string())
    }

    pub(super) fn state(&self) -> RefMut<'_, State> {
        self.0.borrow_mut()
    }

    /// A time source that this world advances, and a seed for a reactor's own chance.
    pub(crate) fn time_and_seed(&self) -> (TimeSource, u64) {
        let state = self.state();
        (TimeSource::Sim(state.now.clone()), state.chance.next())
    }

    pub(super) fn add_machine(&self) -> Machine {
        let mut state = self.state();
        let number = state.machines.len();
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 1)) + number as u32);
        state.machines.push(MachineState { address, silent: false });
        Machine(number)
    }

    /// The simulated time in nanoseconds.
    pub fn now(&self) -> u64 {
        self.state().now()
    }

    /// A number of the seed below `bound`, for a test's own choices.
    pub fn pick(&self, bound: u64) -> u64 {
        self.state().pick(bound)
    }

    /// How often things happen from now on.
    pub fn set_rates(&self, rates: Rates) {
        self.state().rates = rates;
    }

    /// The address of a machine.
    pub fn address(&self, machine: Machine) -> IpAddr {
        self.state().machines[machine.0].address.into()
    }

    /// A listening socket on a machine: what [`crate::sys::socket::listen`] is to the kernel. Port 0 takes a free one.
    ///
    /// # Errors
    /// EADDRINUSE.
    pub fn listen(&self, machine: Machine, port: u16) -> std::io::Result<(Descriptor, SocketAddr)> {
        self.state().listen(machine.0, port).map(|(fd, address)| (Descriptor::Simulated(fd), address))
    }

    /// Puts a disk into a machine, filled with zeros that are durable.
    pub fn add_disk(&self, machine: Machine, options: DiskOptions) -> DiskId {
        let mut state = self.state();
        state.disks.push(Disk::new(machine.0, options));
        DiskId(state.disks.len() - 1)
    }

    /// Opens a disk, for a file device on its machine.
    pub fn open(&self, disk: DiskId) -> Descriptor {
        Descriptor::Simulated(self.state().open(Object::Disk(disk.0)))
    }

    /// Bytes of a disk as a read would see them now. Beyond its end there are none.
    pub fn contents(&self, disk: DiskId, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let filled = self.state().disks[disk.0].read(offset, &mut bytes);
        bytes.truncate(filled);
        bytes
    }

    /// Makes something go wrong.
    pub fn fault(&self, fault: Fault) {
        self.state().fault(fault);
    }

    /// Names everything that happened so far: equal for equal seeds and tests, and only then.
    pub fn trace_hash(&self) -> u64 {
        self.state().trace.hash()
    }
}
