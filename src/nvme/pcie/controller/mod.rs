//! A controller on its home reactor: from registers to namespaces and queues.
//!
//! ```text
//!   any --disable--> Disabled --enable--> Ready --identify, features--> Identified --queue 1, 2, ...--> Live
//!         RDY = 0             RDY = 1              each command                each command
//!         within CAP.TO       within CAP.TO or     within NVME_ADMIN_NS        within NVME_ADMIN_NS
//!                             CRTO.CRWMT
//! ```
//! A step that takes longer than its limit, a fatal status, and registers that read as ones end the attempt with the reason.

mod commands;
mod events;
mod identify;
mod queues;

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use hugepages::{DeviceBuf, Pool};

use super::Quiet;
use super::admin::{AdminQueue, Answer, Limit, NoAnswer};
use super::error::ControllerError;
use super::port::{Force, Port};
use super::queue::{
    CQE_LEN, Doorbell, Memory, Pointers, QueueMemory, QueuePair, Rings, SLOTS_MAX, SQE_LEN, Shadow, Submissions, Tenant,
};
use crate::limits::{
    NVME_ADMIN_ENTRIES, NVME_ADMIN_NS, NVME_FORCE_NS, NVME_READY_MS_MAX, NVME_SHUTDOWN_MS, NVME_SHUTDOWN_MS_MAX,
};
use crate::nvme::io;
use crate::nvme::spec::{
    AbortFields, AdminOpcode, Aqa, CMBSTS_BASE_INVALID, Cap, Cc, CmbLocation, CmbSize, CmbSpace, CreateCqFields,
    CreateSqFields, Crto, Csts, Doorbells, FeatureFields, FeatureId, FeatureSelect, IdentifyController,
    InterruptCoalescing, InterruptVector, OACS_DOORBELL_BUFFER_CONFIG, PAGE_SHIFT_BASE, Property, QueueCounts,
    QueuePriority, Sqe, delete_queue, doorbell_buffer_config, ready_timeout_ms,
};
use crate::reactor::Reactor;
use crate::sys::mmio::Registers;
pub use events::ControllerEvent;
pub use identify::NamespaceInfo;
pub(super) use queues::find_buffer;

/// Nanoseconds of a millisecond.
const MS: u64 = 1_000_000;
/// How often a change of CSTS is looked for, in nanoseconds.
const LOOK_NS: u64 = MS;
/// Units of CAP.TO in milliseconds.
const TO_MS: u64 = 500;
/// The interrupt of the admin completion queue (Base §3.5.1).
const ADMIN_VECTOR: u16 = 0;

/// What a user may choose.
#[derive(Clone, Copy, Debug)]
pub struct ControllerOptions {
    /// Most commands in flight on a queue.
    pub depth: u16,
    /// Use no SGLs, though the controller may have them.
    pub prp_only: bool,
    /// When I/O queues interrupt, if not as the controller does by itself.
    pub coalescing: Option<InterruptCoalescing>,
}

impl ControllerOptions {
    /// So many commands in flight on a queue, all else as it is best.
    pub fn new(depth: u16) -> ControllerOptions {
        ControllerOptions { depth, prp_only: false, coalescing: None }
    }
}

/// A queue pair that the controller has, for the reactor that will use it: made into one by [`QueueSeed::plant`].
pub struct QueueSeed<P: Port> {
    port: P,
    qid: u16,
    depth: u16,
    vector: Option<u16>,
    pointers: Pointers,
    memory: QueueMemory,
    shadows: Option<[Shadow; 2]>,
    doorbells: [u32; 2],
}

impl<P: Port> QueueSeed<P> {
    /// Number of the queue, from 1.
    pub fn qid(&self) -> u16 {
        self.qid
    }

    /// Whether submissions lie in the controller memory buffer.
    pub fn is_in_buffer(&self) -> bool {
        matches!(self.memory.rings.submissions, Submissions::Controller(_))
    }

    /// The queue pair, on the reactor whose it is from now on.
    pub fn plant<T: Tenant>(self, reactor: &Rc<Reactor>) -> Rc<QueuePair<P, T>> {
        let [submission, completion] = self.doorbells.map(|at| self.port.registers().bell(at));
        let [tail, head] = match self.shadows {
            Some(shadows) => shadows.map(Some),
            None => [None, None],
        };
        let (submission, completion) = (Doorbell::new(submission, tail), Doorbell::new(completion, head));
        let rings = Rings::new(self.memory.rings.clone(), self.port.buffer(), submission, completion);
        QueuePair::new(reactor, &self.port, (self.qid, self.depth, self.vector), self.pointers, self.memory, rings)
    }
}

/// The admin queue of a controller on this way.
type Admin<P> = Rc<AdminQueue<<P as Port>::Registers>>;

/// See the module's head.
pub struct Controller<P: Port> {
    reactor: Rc<Reactor>,
    port: P,
    cap: Cap,
    /// log2 of the page size that is set in CC.
    page_shift: u8,
    options: ControllerOptions,
    admin: RefCell<Option<Admin<P>>>,
    identity: RefCell<Option<Box<IdentifyController>>>,
    namespaces: RefCell<Vec<NamespaceInfo>>,
    /// Shadows and event indices of the doorbells, if the controller looks at them.
    shadows: RefCell<Option<[DeviceBuf; 2]>>,
    /// The part of its memory buffer that is for submission queues: offset in the BAR, and bytes.
    buffer: Cell<Option<(u32, u64)>>,
    /// Kept for the controller's life: see [`Controller::admin_memory`].
    admin_memory: RefCell<Option<Memory>>,
    /// A page for Identify data, kept likewise, while no question has it.
    page: RefCell<Option<DeviceBuf>>,
    /// That of a question without an answer: free again when the controller is quiet.
    late_page: RefCell<Option<DeviceBuf>>,
    /// The I/O queues that there are, for when they are to be created again.
    created: RefCell<Vec<Created>>,
    /// It touches nothing.
    quiet: Cell<bool>,
    /// It has failed, or had to be forced, since that was last asked: what it had cached may be lost.
    crashed: Cell<bool>,
    /// The namespaces as volumes know them, but for those that have grown since.
    known: RefCell<Vec<NamespaceInfo>>,
    /// It was kept from memory, since it could not be disabled: there is no way back.
    cut_off: Cell<bool>,
    /// The admin queue's interrupt wakes this reactor.
    interrupts: Cell<bool>,
}

/// An I/O queue pair of the controller.
#[derive(Clone, Debug)]
struct Created {
    qid: u16,
    vector: Option<u16>,
    memory: Memory,
}

type Outcome<T> = Result<T, ControllerError>;

impl<P: Port> Controller<P> {
    /// Brings a controller up on this reactor, its home: resets it, gives it its admin queue, and learns what it is.
    ///
    /// # Errors
    /// Whatever keeps it from being used. It is disabled then, unless it does not even do that.
    pub async fn bring_up(reactor: &Rc<Reactor>, port: P, options: ControllerOptions) -> Outcome<Rc<Controller<P>>> {
        let cap = Cap(port.registers().read64(Property::CAP.0));
        let page_shift = check(cap, port.registers().read32(Property::CSTS.0))?;
        let this = Rc::new(Controller {
            reactor: reactor.clone(),
            port,
            cap,
            page_shift,
            options,
            admin: RefCell::default(),
            identity: RefCell::default(),
            namespaces: RefCell::default(),
            shadows: RefCell::default(),
            buffer: Cell::new(None),
            admin_memory: RefCell::default(),
            page: RefCell::default(),
            late_page: RefCell::default(),
            created: RefCell::default(),
            quiet: Cell::new(true),
            crashed: Cell::new(false),
            known: RefCell::default(),
            cut_off: Cell::new(false),
            interrupts: Cell::new(false),
        });
        let up = this.start().await;
        match up {
            Ok(()) => Ok(this),
            Err(error) => {
                this.give_up().await;
                Err(error)
            }
        }
    }

    async fn start(&self) -> Outcome<()> {
        let quiet = self.disable().await?;
        self.port.let_in().map_err(ControllerError::Unfit)?;
        self.interrupts.set(self.port.vectors() > ADMIN_VECTOR && self.port.connect(ADMIN_VECTOR, &self.reactor));
        self.enable(&quiet).await?;
        self.identify_controller().await?;
        self.share_doorbells().await?;
        self.ask_for_events().await?;
        self.identify_namespaces().await?;
        *self.known.borrow_mut() = self.namespaces();
        Ok(())
    }

    /// The end of an attempt.
    pub(super) async fn give_up(&self) {
        if self.quiet.get() {
            return;
        }
        if let Err(error) = self.stop().await {
            tracing::error!("an NVMe controller that cannot be used does not become quiet either: {error}");
        }
    }

    /// Whether it is there and well.
    ///
    /// # Errors
    /// If not.
    pub fn look(&self) -> Outcome<()> {
        let csts = self.csts()?;
        // Not ready though enabled: it was reset by somebody else, or by itself.
        if csts.fatal() || !csts.ready() {
            self.crashed.set(true);
            return Err(ControllerError::Fatal { csts });
        }
        Ok(())
    }

    /// Whether it has failed or had to be forced since the last such question: what it had cached may be lost.
    pub(super) fn take_crashed(&self) -> bool {
        self.crashed.take()
    }

    /// Asks for the end of a command, and waits so many nanoseconds for an answer. Whether it comes is another question: the command's own completion tells.
    ///
    /// # Errors
    /// If the controller does not answer or refuses.
    pub(super) async fn abort(&self, sqid: u16, cid: u16, ns: u64) -> Outcome<bool> {
        let answer = self.ask_within(ns, "Abort", AbortFields { sqid, cid }.to_sqe(), None).await?;
        Ok(answer.result & u64::from(AbortFields::NOT_ABORTED) == 0)
    }

    /// Completions of admin commands that were not in flight, since the controller was last enabled.
    pub fn stale(&self) -> u64 {
        self.admin.borrow().as_ref().map_or(0, |admin| admin.stale())
    }

    /// As after [`Controller::stop`], which somebody else has done: the function was reset.
    pub(super) fn orphan(&self, quiet: &Quiet) {
        self.quiet.set(true);
        if let Some(admin) = self.admin.take() {
            admin.end(quiet);
        }
    }

    fn csts(&self) -> Outcome<Csts> {
        let csts = Csts(self.port.registers().read32(Property::CSTS.0));
        if csts.gone() { Err(ControllerError::Gone) } else { Ok(csts) }
    }

    /// Waits until CSTS is as it has to be.
    async fn until(&self, state: &'static str, ms: u64, done: impl Fn(Csts) -> bool) -> Outcome<()> {
        let deadline = self.reactor.clock().refresh() + ms * MS;
        loop {
            let csts = self.csts()?;
            if csts.fatal() && state != DISABLING {
                return Err(ControllerError::Fatal { csts });
            }
            if done(csts) {
                return Ok(());
            }
            if self.reactor.clock().now() >= deadline {
                return Err(ControllerError::Stuck { state, ms, csts });
            }
            self.reactor.sleep(LOOK_NS).await;
        }
    }

    /// Resets the controller (Base §3.7.2): whatever it had in hand, it touches memory no more.
    async fn disable(&self) -> Outcome<Quiet> {
        let registers = self.port.registers();
        let ms = u64::from(self.cap.to()).max(1) * TO_MS;
        let cc = Cc(registers.read32(Property::CC.0));
        let csts = self.csts()?;
        if csts.fatal() {
            self.crashed.set(true);
        }
        if cc.enabled() && !csts.ready() && !csts.fatal() {
            // On its way up: EN may not be taken back before that has ended (Base §3.1.3.5).
            match self.until(ENABLING, ready_ms(registers), Csts::ready).await {
                Ok(()) | Err(ControllerError::Fatal { .. } | ControllerError::Stuck { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        registers.write32(Property::CC.0, Cc(cc.0 & !Cc::EN).0);
        self.until(DISABLING, ms, |csts| !csts.ready()).await?;
        self.quiet.set(true);
        Ok(Quiet(()))
    }

    fn offset(&self, doorbell: u64) -> Outcome<u32> {
        offset(doorbell, self.port.registers().size())
    }

    /// Enables the controller with a fresh admin queue (Base §3.5.1).
    async fn enable(&self, quiet: &Quiet) -> Outcome<()> {
        if let Some(admin) = self.admin.take() {
            admin.end(quiet);
        }
        if let Some(page) = self.late_page.take() {
            *self.page.borrow_mut() = Some(page);
        }
        let memory = self.admin_memory()?;
        let entries = memory.entries;
        let asq = self.submissions_at("the admin queue", &memory.submissions)?;
        let acq = self.address("the admin queue", &memory.completions)?;
        let doorbells = Doorbells::of(self.cap);
        let bell =
            |at: u64| -> Outcome<Doorbell<_>> { Ok(Doorbell::new(self.port.registers().bell(self.offset(at)?), None)) };
        let rings = Rings::new(memory, None, bell(doorbells.sq_tail(0))?, bell(doorbells.cq_head(0))?);
        let interrupts = self.interrupts.get();
        if interrupts {
            // Each time: it is masked at first, and a reset of the function may have left it anyhow.
            self.port.mask(ADMIN_VECTOR, false);
        }
        // From here on the memory is the controller's, whether it comes up or not.
        *self.admin.borrow_mut() = Some(AdminQueue::new(&self.reactor, rings, interrupts));
        self.quiet.set(false);
        let registers = self.port.registers();
        registers.write32(Property::AQA.0, Aqa::new(entries - 1, entries - 1).0);
        registers.write64(Property::ASQ.0, asq);
        registers.write64(Property::ACQ.0, acq);
        self.buffer.set(self.open_buffer());
        let css = if self.cap.has(Cap::CSS_IOCS) { Cc::CSS_ALL } else { 0 };
        let cc = Cc::enable(self.page_shift - PAGE_SHIFT_BASE as u8, css);
        registers.write32(Property::CC.0, cc.0);
        self.until(ENABLING, ready_ms(registers), Csts::ready).await
    }

    /// As [`block`], of the home's memory.
    fn memory(&self, what: &'static str, len: usize) -> Outcome<(DeviceBuf, u64)> {
        block(self.reactor.pool(), &self.port, self.page_shift, (what, len))
    }

    /// The rings of the admin queue: the same at each start, so that no reset can fail for want of memory.
    fn admin_memory(&self) -> Outcome<Memory> {
        if let Some(memory) = self.admin_memory.borrow().as_ref() {
            return Ok(memory.clone());
        }
        let entries = NVME_ADMIN_ENTRIES.min(self.cap.mqes_z().saturating_add(1));
        let (submissions, _) = self.memory("the admin queue", usize::from(entries) * SQE_LEN)?;
        let (completions, _) = self.memory("the admin queue", usize::from(entries) * CQE_LEN)?;
        let memory = Memory { submissions: Submissions::Host(submissions), completions, entries };
        *self.admin_memory.borrow_mut() = Some(memory.clone());
        Ok(memory)
    }

    fn address(&self, what: &'static str, memory: &DeviceBuf) -> Outcome<u64> {
        self.port.memory(memory).ok_or(ControllerError::Unreachable { what })
    }

    /// The controller's address of a submission queue.
    fn submissions_at(&self, what: &'static str, submissions: &Submissions) -> Outcome<u64> {
        match submissions {
            Submissions::Host(memory) => self.address(what, memory),
            Submissions::Controller(at) => {
                let behind = self.buffer.get().and_then(|(start, _)| at.checked_sub(start));
                let gone = || ControllerError::Unfit("the controller has its memory buffer elsewhere now".to_owned());
                Ok(BUFFER_BASE + u64::from(behind.ok_or_else(gone)?))
            }
        }
    }

    /// An admin command that is to succeed. Its data pointer leads to `data`, if there is any.
    pub(super) async fn ask(&self, command: &'static str, sqe: Sqe, data: Option<&DeviceBuf>) -> Outcome<Answer> {
        self.ask_within(NVME_ADMIN_NS, command, sqe, data).await
    }

    /// As [`Self::ask`], with another limit than most have, in nanoseconds.
    async fn ask_within(
        &self,
        ns: u64,
        command: &'static str,
        mut sqe: Sqe,
        data: Option<&DeviceBuf>,
    ) -> Outcome<Answer> {
        let Some(admin) = self.admin.borrow().clone() else {
            return Err(ControllerError::Stopped { command });
        };
        if let Some(data) = data {
            let address = self.port.memory(data).ok_or(ControllerError::Unreachable { what: command })?;
            sqe.set_prps(address, 0);
        }
        match admin.command(sqe, data.cloned(), Limit::Ns(ns)).await {
            Ok(answer) if answer.status.is_success() => Ok(answer),
            Ok(Answer { status, .. }) => Err(ControllerError::Refused { command, status }),
            Err(NoAnswer::Late) => Err(ControllerError::Late { command, ms: ns / MS }),
            Err(NoAnswer::Stopped) => Err(ControllerError::Stopped { command }),
        }
    }
}

impl<P: Port> Drop for Controller<P> {
    fn drop(&mut self) {
        if !self.quiet.get() {
            // It may still look at all of this, and write to it.
            std::mem::forget((self.created.take(), self.shadows.take()));
        }
    }
}

/// How long a controller may take to become ready, in milliseconds: what it says, within reason.
pub(super) fn ready_ms(registers: &impl Registers) -> u64 {
    let (cap, crto) = (Cap(registers.read64(Property::CAP.0)), Crto(registers.read32(Property::CRTO.0)));
    ready_timeout_ms(cap, crto).clamp(TO_MS, NVME_READY_MS_MAX)
}

/// Where the controller has its memory buffer, among its own addresses: beyond all that memory of a host has.
const BUFFER_BASE: u64 = 1 << 60;
const DISABLING: &str = "disabling";
const ENABLING: &str = "enabling";

/// What can be seen in the registers before anything is done: the log2 of the page size to be set.
fn check(cap: Cap, csts: u32) -> Outcome<u8> {
    if cap.0 == u64::MAX || Csts(csts).gone() {
        return Err(ControllerError::Gone);
    }
    let page_shift = PAGE_SHIFT_BASE as u8 + cap.mpsmin();
    let unfit = |why: String| Err(ControllerError::Unfit(why));
    if 1usize << page_shift > hugepages::MAX_BUF / 2 {
        return unfit(format!(
            "the controller wants pages of 2^{page_shift} bytes at least, too large to lay lists out in"
        ));
    }
    if !cap.has(Cap::CSS_NVM) && !cap.has(Cap::CSS_IOCS) {
        return unfit(format!("the controller has no NVM command set (CAP.CSS {:#x})", cap.css()));
    }
    if cap.mqes_z() == 0 {
        return unfit("the controller has queues of one entry, which is none (CAP.MQES 0)".to_owned());
    }
    Ok(page_shift)
}

/// A block of the arena for a controller, zeroed, at a multiple of its page size, and its address of it.
fn block<P: Port>(
    pool: &Pool,
    port: &P,
    page_shift: u8,
    (what, len): (&'static str, usize),
) -> Outcome<(DeviceBuf, u64)> {
    // Blocks are at multiples of their size.
    let buf = pool.alloc(len.max(1 << page_shift)).ok_or(ControllerError::NoMemory { what })?;
    let memory = buf.into_device();
    memory.zero();
    let address = port.memory(&memory).ok_or(ControllerError::Unreachable { what })?;
    Ok((memory, address))
}

/// Where a doorbell is, among registers of `size` bytes.
fn offset(at: u64, size: u64) -> Outcome<u32> {
    let inside = at.checked_add(4).is_some_and(|end| end <= size);
    u32::try_from(at).ok().filter(|_| inside).ok_or_else(|| {
        ControllerError::Unfit(format!("the controller has a doorbell at {at:#x}, and {size:#x} bytes of registers"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doorbells_lie_within_the_registers() {
        assert_eq!(offset(0x1000, 0x1004), Ok(0x1000));
        for (at, size) in [(0x1000, 0x1003), (0x1004, 0x1000), (u64::MAX - 3, u64::MAX), (1 << 32, 1 << 33)] {
            assert!(matches!(offset(at, size), Err(ControllerError::Unfit(_))), "{at:#x} of {size:#x}");
        }
    }
}
