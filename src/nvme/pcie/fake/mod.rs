//! A controller in software for the driver to run on: in tests, in the simulator, in benches and under a fuzzer. No configuration
//! leads to it.
//!
//! ```text
//!   driver --- registers, doorbells ---> FakePort ---+                       FakeDisk
//!     |                                   registers  |  queues, admin ------> namespaces, journal, health
//!     +-- memory(DeviceBuf) ----------> |            |     ^                    (outlives controllers and power)
//!     +-- attach(queue, Held) -------->  memory      +-----+
//!                                          ^          step: fetch, carry out, post
//!                                          +---- data -----+
//! ```
//! **The IOMMU is ownership.** The controller reaches blocks that it was given ([`Port::memory`]) and that the driver has still, and, through [`Held`], the data
//! of commands that are in the driver's slots. A piece of memory that is found nowhere is a *fault*: counted, kept as a message
//! ([`FakePort::dma_faults`]), and the command ends with Data Transfer Error. So a controller that touches a buffer which the driver has
//! given back is caught here, and so is a driver that gives a buffer back too early.
//!
//! **It judges the driver.** What the specification forbids a host to do is refused as it says, and noted: [`FakePort::broken`]
//! says each, and a test of an honest driver ends with [`FakePort::assert_clean`].
//!
//! **Work is done in steps**, by the reactor that a queue is attached on, and by that of [`FakePort::serve`] for the admin queue and the
//! registers. Each has a task that a doorbell wakes and that sleeps until the next answer is due, so that simulated time jumps. With
//! [`FakeOptions::stepped`] there is no task, and [`FakePort::step`] does it: for benches and fuzzers.
//!
//! **Honest by default**: [`FakePort::inject`] makes it lie, by [`Rule`]s, and [`FakePort::play`] as bytes say. When it answers what it has in hand still,
//! it touches that no more: who believes it is not to blame.
//!
//! Not there: a controller memory buffer, end-to-end protection and metadata (namespaces may have such formats, and
//! refuse data commands then), firmware, reservations, namespace management by command.

mod admin;
mod disk;
mod doorbell;
mod faults;
mod identify;
mod interrupt;
mod io;
mod lock;
mod log;
mod memory;
mod pointer;
mod queue;
mod registers;
mod script;
#[cfg(test)]
mod tests;
mod worker;
mod zoned;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};

use hugepages::{Buf, DeviceBuf};

pub use disk::{DiskOptions, FakeDisk, NamespaceOptions};
pub use faults::{Fault, Point, Rule, When};
pub use registers::{FakeBell, FakeRegisters};
pub use worker::Next;
pub use zoned::{ZoneOptions, Zones};

use super::Quiet;
use super::drive::Drive;
use super::port::{Force, Held, Port};
use super::queue::Tenant;
use crate::nvme::spec::{Cap, InterruptCoalescing, NoticeInfo};
use crate::reactor::Reactor;
use crate::reactor::clock::Entropy;
use crate::sys::tsc::Tsc;
use admin::Admin;
use disk::Namespace;
use doorbell::Place;
use faults::Faults;
use interrupt::Interrupts;
use lock::Lock;
use memory::Memory;
use queue::{Cq, Sq};
use registers::State;

/// Messages of what a driver did wrong that are kept.
const BROKEN_MAX: usize = 64;
/// Bytes of a page of the controller memory buffer, which begins one page behind the beginning of its BAR.
const BUFFER_PAGE: usize = 4096;

/// What a controller is made as.
#[derive(Clone, Debug)]
pub struct FakeOptions {
    /// I/O queue pairs that it has.
    pub queues: u16,
    /// CAP.MQES, zero's-based; less than FFFFh.
    pub mqes_z: u16,
    /// CAP.DSTRD.
    pub dstrd: u8,
    /// CAP.TO, in units of 500 ms.
    pub timeout_500ms: u8,
    /// CRTO.CRWMT in the same units, where the controller has it.
    pub crwmt_500ms: Option<u16>,
    /// CAP.MPSMIN: the smallest page is 2 to the power of 12 and this many bytes.
    pub mpsmin: u8,
    /// CAP.MPSMAX.
    pub mpsmax: u8,
    /// Several I/O command sets: CC.CSS = 110b is wanted.
    pub command_sets: bool,
    /// Doorbell Buffer Config is supported.
    pub shadow_doorbells: bool,
    /// AERL, zero's-based.
    pub aerl_z: u8,
    /// ACL, zero's-based.
    pub acl_z: u8,
    /// Interrupt vectors.
    pub vectors: u16,
    /// Pages of 4 KiB of a controller memory buffer for submission queues; 0: there is none.
    pub cmb_pages: u32,
    /// Nanoseconds from CC.EN = 1 to CSTS.RDY = 1.
    pub enable_ns: u64,
    /// Nanoseconds from CC.EN = 0 to CSTS.RDY = 0.
    pub disable_ns: u64,
    /// Nanoseconds from CC.SHN to CSTS.SHST = 2.
    pub shutdown_ns: u64,
    /// Nanoseconds that an admin command takes, from and to.
    pub admin_ns: (u64, u64),
    /// Nanoseconds that an I/O command takes, from and to: answers overtake each other. Like all times here they are at least so
    /// long, and a millisecond longer where the reactor sleeps in between.
    pub io_ns: (u64, u64),
    /// Nanoseconds that Format NVM takes.
    pub format_ns: u64,
    /// Its function can be reset by force.
    pub function_reset: bool,
    /// It can be kept from memory by force, and is off the bus then.
    pub cut_off: bool,
    /// With a fatal error the disk loses by chance what it had cached.
    pub fatal_loses: bool,
    /// No task works: [`FakePort::step`] does.
    pub stepped: bool,
    /// Measures the time within steps by this clock: see [`Counters::spent_ns`].
    pub timed: Option<Tsc>,
    /// Seeds the chance of [`When::Chance`], and of what a fatal error loses.
    pub seed: u64,
}

impl Default for FakeOptions {
    fn default() -> FakeOptions {
        FakeOptions {
            queues: 8,
            mqes_z: 1023,
            dstrd: 0,
            timeout_500ms: 4,
            crwmt_500ms: None,
            mpsmin: 0,
            mpsmax: 4,
            command_sets: true,
            shadow_doorbells: false,
            aerl_z: 3,
            acl_z: 3,
            vectors: 65,
            cmb_pages: 0,
            enable_ns: 0,
            disable_ns: 0,
            shutdown_ns: 0,
            admin_ns: (0, 0),
            io_ns: (0, 0),
            format_ns: 0,
            function_reset: false,
            cut_off: false,
            fatal_loses: false,
            stepped: false,
            timed: None,
            seed: 1,
        }
    }
}

/// What a controller has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Writes to doorbells of submission queues.
    pub sq_doorbells: u64,
    /// Writes to doorbells of completion queues.
    pub cq_doorbells: u64,
    /// Reads of registers.
    pub reads: u64,
    /// Writes to registers other than doorbells.
    pub writes: u64,
    /// Commands fetched.
    pub fetched: u64,
    /// Completions posted.
    pub posted: u64,
    /// Accesses to memory that was not the controller's to touch.
    pub dma_faults: u64,
    /// Commands fetched from the controller memory buffer.
    pub fetched_here: u64,
    /// Of those, for commands that the driver had in flight no more: it has given their memory back too early.
    pub given_back: u64,
    /// Interrupts sent, or that would have been where nobody listens to their vector: at most one a step for each completion queue. Not those
    /// that a mask holds back.
    pub interrupts: u64,
    /// Commands aborted by Abort.
    pub aborted: u64,
    /// Times that the controller was enabled.
    pub enabled: u64,
    /// Faults injected.
    pub injected: u64,
    /// Nanoseconds within steps, if [`FakeOptions::timed`].
    pub spent_ns: u64,
}

#[derive(Debug, Default)]
struct Counts {
    sq_doorbells: AtomicU64,
    cq_doorbells: AtomicU64,
    reads: AtomicU64,
    writes: AtomicU64,
    fetched: AtomicU64,
    fetched_here: AtomicU64,
    posted: AtomicU64,
    interrupts: AtomicU64,
    aborted: AtomicU64,
    enabled: AtomicU64,
    injected: AtomicU64,
    spent_ns: AtomicU64,
}

#[inline]
fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// One controller. Locks are taken in the order registers, submission queue 0, another submission queue, completion queue, the rest.
struct Inner {
    disk: FakeDisk,
    options: FakeOptions,
    /// CNTLID.
    id: u16,
    registers: Lock<State>,
    csts: AtomicU32,
    /// CC, as it was last written.
    cc: AtomicU32,
    /// Enabled, ready, and neither failed nor shut down: commands are fetched.
    live: AtomicBool,
    removed: AtomicBool,
    /// log2 of the page size.
    page_shift: AtomicU8,
    /// Feature Interrupt Coalescing.
    coalescing: AtomicU32,
    /// The controller memory buffer, BAR 2.
    buffer: Box<[AtomicU64]>,
    /// CMBMSC.
    buffer_space: AtomicU64,
    /// By queue identifier.
    places: Box<[Place]>,
    sqs: Box<[Lock<Option<Sq>>]>,
    cqs: Box<[Lock<Option<Cq>>]>,
    memory: Memory,
    admin: Lock<Admin>,
    namespaces: Lock<BTreeMap<u32, Arc<Namespace>>>,
    interrupts: Interrupts,
    faults: Faults,
    /// Decides what a fatal error loses.
    chance: Lock<Entropy>,
    counts: Counts,
    broken: Lock<Vec<String>>,
}

impl Inner {
    fn cap(&self) -> Cap {
        let options = &self.options;
        let mut cap = u64::from(options.mqes_z) | Cap::CQR | u64::from(options.timeout_500ms) << 24;
        cap |= u64::from(options.dstrd & 0xf) << 32 | Cap::CSS_NVM;
        cap |= u64::from(options.mpsmin & 0xf) << 48 | u64::from(options.mpsmax & 0xf) << 52;
        if options.command_sets {
            cap |= Cap::CSS_IOCS;
        }
        if options.crwmt_500ms.is_some() {
            cap |= Cap::CRWMS;
        }
        if options.cmb_pages > 0 {
            cap |= Cap::CMBS;
        }
        Cap(cap)
    }

    /// Notes what the driver did wrong.
    #[cold]
    fn breaks(&self, what: impl FnOnce() -> String) {
        let mut broken = self.broken.lock();
        if broken.len() < BROKEN_MAX {
            broken.push(what());
        }
    }

    fn gone(&self) -> bool {
        self.removed.load(Ordering::Acquire)
    }

    fn page(&self) -> u64 {
        1 << self.page_shift.load(Ordering::Relaxed)
    }
}

/// The way to one controller in software: see the module's head. Clones are the same controller.
#[derive(Clone)]
pub struct FakePort {
    registers: FakeRegisters,
    /// BAR 2.
    buffer: FakeRegisters,
}

impl FakeDisk {
    /// A new controller of this disk, disabled, with all namespaces that are attached by default. Several are of one subsystem.
    ///
    /// # Panics
    /// If the options are beyond what they say, so many doorbells so far from each other do not fit a BAR of 4 GiB, or there are zones and
    /// no other command set than NVM.
    pub fn controller(&self, options: FakeOptions) -> FakePort {
        let queues = usize::from(options.queues) + 1;
        assert!(options.mqes_z < u16::MAX && options.dstrd < 16 && (queues as u64) << (3 + options.dstrd) < 1 << 31);
        assert!(options.command_sets || !self.is_zoned(), "zones are of another command set");
        let namespaces = self.namespaces().into_iter().filter(|namespace| namespace.options.attached);
        let inner = Arc::new(Inner {
            disk: self.clone(),
            id: self.number(),
            registers: Lock::new(State::default()),
            csts: AtomicU32::new(0),
            cc: AtomicU32::new(0),
            live: AtomicBool::new(false),
            removed: AtomicBool::new(false),
            page_shift: AtomicU8::new(12),
            coalescing: AtomicU32::new(0),
            buffer: (0..(options.cmb_pages as usize + 1) * (BUFFER_PAGE / 8)).map(|_| AtomicU64::new(0)).collect(),
            buffer_space: AtomicU64::new(0),
            places: (0..queues).map(|_| Place::default()).collect(),
            sqs: (0..queues).map(|_| Lock::default()).collect(),
            cqs: (0..queues).map(|_| Lock::default()).collect(),
            memory: Memory::default(),
            admin: Lock::new(Admin::default()),
            namespaces: Lock::new(namespaces.map(|namespace| (namespace.options.nsid, namespace)).collect()),
            interrupts: Interrupts::default(),
            faults: Faults::new(options.seed),
            chance: Lock::new(Entropy::new(!options.seed)),
            counts: Counts::default(),
            broken: Lock::default(),
            options,
        });
        let [registers, buffer] = FakeRegisters::bars(inner);
        FakePort { registers, buffer }
    }
}

impl FakePort {
    fn inner(&self) -> &Arc<Inner> {
        self.registers.inner()
    }

    /// The disk behind it.
    pub fn disk(&self) -> &FakeDisk {
        &self.inner().disk
    }

    /// Has this reactor do the work of the admin queue and the registers. The same as attaching queue 0.
    pub fn serve(&self, reactor: &Rc<Reactor>) {
        worker::attach(self.inner(), reactor, 0, None);
    }

    /// Works at a queue that is attached on this reactor: fetches and carries out at most `budget` commands. For controllers that are
    /// [stepped](FakeOptions::stepped).
    pub fn step(&self, reactor: &Rc<Reactor>, qid: u16, budget: usize) -> Next {
        worker::step(self.inner(), reactor, qid, budget)
    }

    /// Adds rules: from now on the controller lies.
    pub fn inject(&self, rules: impl IntoIterator<Item = Rule>) {
        self.inner().faults.add(rules);
    }

    /// From now on the controller does what these bytes say, in addition to rules: wherever one may look, a byte says whether it lies there, and those
    /// behind it how. Zeros are honest, and so is the time after the last byte.
    pub fn play(&self, bytes: Vec<u8>) {
        self.inner().faults.play(bytes);
    }

    /// Forgets all rules, and the rest of what was to be [played](FakePort::play).
    pub fn forgive(&self) {
        self.inner().faults.clear();
    }

    /// What it has counted.
    pub fn counters(&self) -> Counters {
        let counts = &self.inner().counts;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            sq_doorbells: load(&counts.sq_doorbells),
            cq_doorbells: load(&counts.cq_doorbells),
            reads: load(&counts.reads),
            writes: load(&counts.writes),
            fetched: load(&counts.fetched),
            fetched_here: load(&counts.fetched_here),
            posted: load(&counts.posted),
            dma_faults: self.inner().memory.faults(),
            given_back: self.inner().memory.given_back(),
            interrupts: load(&counts.interrupts),
            aborted: load(&counts.aborted),
            enabled: load(&counts.enabled),
            injected: load(&counts.injected),
            spent_ns: load(&counts.spent_ns),
        }
    }

    /// What the driver did that the specification forbids, the first 64 of it, a sentence each.
    pub fn broken(&self) -> Vec<String> {
        self.inner().broken.lock().clone()
    }

    /// How completions are gathered for interrupts, and for which vectors.
    pub fn coalescing(&self) -> (InterruptCoalescing, Vec<u16>) {
        let inner = self.inner();
        let gathered = (0..inner.options.vectors).filter(|vector| !inner.is_told_at_once(*vector)).collect();
        (InterruptCoalescing::of(inner.coalescing.load(Ordering::Relaxed)), gathered)
    }

    /// Forgets what [`FakePort::broken`] says, and hands it out.
    pub fn take_broken(&self) -> Vec<String> {
        std::mem::take(&mut *self.inner().broken.lock())
    }

    /// The first 64 accesses to memory that was not the controller's to touch, a sentence each.
    pub fn dma_faults(&self) -> Vec<String> {
        self.inner().memory.messages()
    }

    /// # Panics
    /// If the driver did anything wrong, or the controller found memory gone that it needed.
    pub fn assert_clean(&self) {
        let (broken, faults) = (self.broken(), self.dma_faults());
        assert!(broken.is_empty() && faults.is_empty(), "the driver broke the specification: {broken:?}; {faults:?}");
    }

    /// Takes the controller off the bus: registers read as ones, writes go nowhere, nothing in memory is touched any more. There is no way
    /// back; the disk's next controller is its return.
    pub fn remove(&self) {
        self.inner().remove();
    }

    /// A reset of its function: its registers are as after power-up, whatever it was at.
    pub fn reset_function(&self) {
        self.inner().reset_function();
    }

    /// The process that drives it is about to end without a word: what the kernel does then. The function is reset, with what it had in hand, and sees
    /// no memory any more; the process has no turn after that, and its memory comes back when its reactors are dropped.
    pub fn orphan<T: Tenant>(&self, drive: &Drive<FakePort, T>, reactors: &[Rc<Reactor>]) {
        self.reset_function();
        for reactor in reactors {
            worker::detach(self.inner(), reactor, 0);
            drive.orphan(reactor, &Quiet(()));
        }
        self.inner().interrupts.forget();
        self.inner().memory.revoke();
    }

    /// Gives the controller a namespace of the disk.
    ///
    /// # Panics
    /// If the disk has none of that identifier.
    pub fn attach_namespace(&self, nsid: u32) {
        let namespace = self.inner().disk.namespace(nsid).unwrap_or_else(|| panic!("there is no namespace {nsid}"));
        self.inner().namespaces.lock().insert(nsid, namespace);
        self.changed(nsid);
    }

    /// Takes a namespace from the controller.
    pub fn detach_namespace(&self, nsid: u32) {
        self.inner().namespaces.lock().remove(&nsid);
        self.changed(nsid);
    }

    /// Tells the driver, if it wants to hear, that something about a namespace has changed.
    pub fn changed(&self, nsid: u32) {
        self.inner().namespace_changed(nsid);
    }

    /// Tells the driver, if it wants to hear, of the critical warnings in the SMART log.
    pub fn warn(&self) {
        self.inner().health_changed();
    }

    /// Tells the driver of any notice, if it wants to hear.
    pub fn notice(&self, info: NoticeInfo) {
        self.inner().notice(info);
    }
}

impl Port for FakePort {
    type Registers = FakeRegisters;

    fn registers(&self) -> &FakeRegisters {
        &self.registers
    }

    fn buffer(&self) -> Option<&FakeRegisters> {
        (self.inner().options.cmb_pages > 0).then_some(&self.buffer)
    }

    #[inline]
    fn data(&self, buf: &Buf) -> Option<u64> {
        Some(buf.address() as u64)
    }

    fn memory(&self, memory: &DeviceBuf) -> Option<u64> {
        Some(self.inner().memory.grant(memory))
    }

    fn vectors(&self) -> u16 {
        self.inner().options.vectors
    }

    fn connect(&self, vector: u16, reactor: &Reactor) -> bool {
        let doorbell = reactor.doorbell().second();
        doorbell.is_ok_and(|doorbell| {
            self.inner().connect(vector, doorbell);
            true
        })
    }

    fn mask(&self, vector: u16, masked: bool) {
        self.inner().mask(vector, masked);
    }

    fn force(&self, how: Force) -> Option<bool> {
        let inner = self.inner();
        match how {
            Force::Reset if inner.options.function_reset && !inner.gone() => self.reset_function(),
            Force::Reset => return Some(false),
            Force::CutOff if inner.options.cut_off => self.remove(),
            Force::CutOff => {}
        }
        Some(how == Force::Reset || inner.gone())
    }

    fn attach(&self, reactor: &Rc<Reactor>, qid: u16, held: Rc<dyn Held>) {
        worker::attach(self.inner(), reactor, qid, Some(held));
    }

    fn detach(&self, reactor: &Rc<Reactor>, qid: u16) {
        worker::detach(self.inner(), reactor, qid);
    }
}
