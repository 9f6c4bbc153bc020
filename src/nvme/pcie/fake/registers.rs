//! Registers and doorbells: what a read says, what a write sets going.
//!
//! ```text
//!          EN = 1             enable_ns                       EN = 0              disable_ns
//!   Off ------------> Enabling --------> On (RDY = 1) ------------------> Disabling --------> Off (queues and their commands are gone)
//!    ^                   | EN = 0                     \ SHN: shutdown_ns, SHST = 2             ^
//!    +-------------------+ (wrong, and noted)          \ a fatal error: CFS, then EN = 0 ------+
//! ```
//! Times begin when the reactor of the admin queue next looks, which a write has it do; without them a change is there within the write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::faults::{Arrival, Fault};
use super::memory::Spot;
use super::queue::{Cq, Entries, Sq};
use super::{BUFFER_PAGE, Inner, count};
use crate::nvme::spec::{Aqa, Cc, CmbLocation, CmbSize, CmbSpace, Csts, DOORBELLS, Property, VERSION_2_0};
use crate::sys::mmio::{Bell, Registers};

/// The BAR of the controller memory buffer.
const BUFFER_BAR: u8 = 2;
/// CAP.DSTRD, bits 35:32.
const CAP_DSTRD: u64 = 0xf << 32;
/// Bytes of pages of BAR 0.
const PAGE: u32 = 4096;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Off,
    Enabling,
    On,
    Disabling,
}

/// A change that will be done: when, if it is known already, and how long after the next look if not.
#[derive(Clone, Copy, Debug)]
struct Timer {
    after_ns: u64,
    at: Option<u64>,
}

/// What the registers hold, and what goes on.
#[derive(Debug, Default)]
pub(super) struct State {
    mode: Mode,
    cc: Cc,
    aqa: Aqa,
    asq: u64,
    acq: u64,
    change: Option<Timer>,
    shutdown: Option<Timer>,
}

impl Inner {
    fn read(&self, at: u32) -> u64 {
        count(&self.counts.reads);
        let faults = self.faults.judge(Arrival::Read(at));
        let (mut value, mut bits) = (None, 0);
        for fault in faults {
            self.strike(fault);
            match fault {
                Fault::Value(lie) => value = Some(lie),
                Fault::Bits(lie) => bits ^= lie,
                _ => {}
            }
        }
        if self.gone() {
            return u64::MAX;
        }
        let truth = self.register(Property(at));
        let mut lie = value.unwrap_or(truth) ^ bits;
        if self.faults.plays() && Property(at) == Property::CAP && lie != u64::MAX {
            // Told a wrong place, the driver would have old commands carried out by the doorbells of others.
            lie = lie & !CAP_DSTRD | truth & CAP_DSTRD;
        }
        if lie != truth && self.faults.plays() && Property(at) == Property::CSTS && !Csts(lie as u32).ready() {
            // Who says so touches nothing any more, whatever else it does: the driver has nothing else to go by.
            self.live.store(false, Ordering::Release);
            self.turn_off(&mut self.registers.lock());
        }
        lie
    }

    fn register(&self, property: Property) -> u64 {
        let state = self.registers.lock();
        match property {
            Property::CAP => self.cap().0,
            Property::VS => u64::from(VERSION_2_0),
            Property::CC => u64::from(state.cc.0),
            Property::CSTS => u64::from(self.csts.load(Ordering::Acquire)),
            Property::AQA => u64::from(state.aqa.0),
            Property::ASQ => state.asq,
            Property::ACQ => state.acq,
            Property::CMBMSC => self.buffer_space.load(Ordering::Acquire),
            Property::CMBLOC if self.shows_buffer() => u64::from(CmbLocation::new(BUFFER_BAR, 1).0),
            Property::CMBSZ if self.shows_buffer() => u64::from(CmbSize::pages(self.options.cmb_pages, CmbSize::SQS).0),
            Property::CRTO => u64::from(self.options.crwmt_500ms.unwrap_or(0)),
            // Reserved, or there is nothing of it.
            _ => 0,
        }
    }

    fn shows_buffer(&self) -> bool {
        CmbSpace(self.buffer_space.load(Ordering::Acquire)).has(CmbSpace::CRE)
    }

    /// What a fault does wherever it comes.
    pub(super) fn strike(&self, fault: Fault) {
        count(&self.counts.injected);
        match fault {
            Fault::Fatal => self.fail(),
            Fault::Remove => self.remove(),
            _ => {}
        }
    }

    /// A fatal error: nothing is done any more until the controller is disabled (Base §3.1.3.6).
    pub(super) fn fail(&self) {
        let before = self.csts.fetch_or(Csts::CFS, Ordering::AcqRel);
        self.live.store(false, Ordering::Release);
        if self.options.fatal_loses && before & Csts::CFS == 0 {
            self.disk.lose_cache(&self.chance.lock());
        }
    }

    pub(super) fn remove(&self) {
        self.removed.store(true, Ordering::Release);
        self.live.store(false, Ordering::Release);
    }

    pub(super) fn reset_function(&self) {
        let state = &mut *self.registers.lock();
        self.live.store(false, Ordering::Release);
        self.turn_off(state);
        *state = State::default();
        self.cc.store(0, Ordering::Release);
        self.buffer_space.store(0, Ordering::Release);
        self.buffer.iter().for_each(|word| word.store(u64::MAX, Ordering::Relaxed));
    }

    /// Half of a register of 8 bytes may be written alone.
    fn write(&self, at: u32, len: u32, value: u64) {
        count(&self.counts.writes);
        let mut ignored = false;
        for fault in self.faults.judge(Arrival::Write(at)) {
            self.strike(fault);
            ignored |= fault == Fault::Ignore;
        }
        if ignored || self.gone() {
            return;
        }
        let mut state = self.registers.lock();
        match (Property(at & !4), Property(at), len) {
            (_, Property::CC, 4) => self.configure(&mut state, Cc(value as u32)),
            (_, Property::AQA, 4) => {
                self.expect_off(&state, "AQA");
                state.aqa = Aqa(value as u32);
            }
            (Property::ASQ, _, _) => {
                self.expect_off(&state, "ASQ");
                put(&mut state.asq, at & 4 != 0, len, value);
            }
            (Property::ACQ, _, _) => {
                self.expect_off(&state, "ACQ");
                put(&mut state.acq, at & 4 != 0, len, value);
            }
            (Property::CMBMSC, _, 8) if self.options.cmb_pages > 0 => self.buffer_space.store(value, Ordering::Release),
            _ => self.breaks(|| format!("{len} bytes were written to {:?}, which is not to be written", Property(at))),
        }
        drop(state);
        self.wake(0);
    }

    fn expect_off(&self, state: &State, name: &str) {
        if state.mode != Mode::Off {
            self.breaks(|| format!("{name} was written while the controller is {:?}", state.mode));
        }
    }

    fn configure(&self, state: &mut State, cc: Cc) {
        let old = std::mem::replace(&mut state.cc, cc);
        self.cc.store(cc.0, Ordering::Release);
        if cc.0 & !Cc::DEFINED != 0 {
            self.breaks(|| format!("reserved bits of CC are set: {:#010x}", cc.0));
        }
        let fixed = !(Cc::EN | 3 << 14);
        if state.mode != Mode::Off && (cc.0 ^ old.0) & fixed & !(0xff << 16) != 0 {
            self.breaks(|| format!("CC went from {:#010x} to {:#010x} while enabled", old.0, cc.0));
        }
        match (old.enabled(), cc.enabled()) {
            (false, true) => self.enable(state),
            (true, false) => self.disable(state),
            _ => {}
        }
        if cc.shn() != 0 && old.shn() != cc.shn() {
            self.shut_down(state);
        } else if cc.shn() == 0 && old.shn() != 0 && state.mode == Mode::On {
            self.breaks(|| "CC.SHN was taken back".to_owned());
        }
    }

    /// How long a change takes by what the rules say, `None`: no time at all.
    fn delay(&self, event: Arrival, ns: u64) -> Option<Timer> {
        let mut after_ns = ns;
        for fault in self.faults.judge(event) {
            self.strike(fault);
            match fault {
                Fault::Late(more) => after_ns = after_ns.saturating_add(more),
                Fault::Hang => after_ns = u64::MAX,
                _ => {}
            }
        }
        (after_ns > 0).then_some(Timer { after_ns, at: None })
    }

    fn enable(&self, state: &mut State) {
        if state.mode != Mode::Off || self.csts.load(Ordering::Acquire) & Csts::RDY != 0 {
            self.breaks(|| "CC.EN was set before CSTS.RDY was 0".to_owned());
        }
        count(&self.counts.enabled);
        state.mode = Mode::Enabling;
        self.csts.store(0, Ordering::Release);
        state.shutdown = None;
        state.change = self.delay(Arrival::Enable, self.options.enable_ns);
        if state.change.is_none() {
            self.become_ready(state);
        }
    }

    fn become_ready(&self, state: &mut State) {
        state.change = None;
        if self.csts.load(Ordering::Acquire) & Csts::CFS != 0 {
            return;
        }
        if let Err(why) = self.start(state) {
            self.breaks(|| format!("the controller cannot be enabled: {why}"));
            self.fail();
            return;
        }
        state.mode = Mode::On;
        self.csts.fetch_or(Csts::RDY, Ordering::AcqRel);
        self.live.store(true, Ordering::Release);
    }

    /// Makes the admin queues that the registers describe.
    fn start(&self, state: &State) -> Result<(), &'static str> {
        let (cc, cap) = (state.cc, self.cap());
        if cc.mps() < cap.mpsmin() || cc.mps() > cap.mpsmax() {
            return Err("CC.MPS is none of its page sizes");
        }
        let css = if self.options.command_sets { [0, 6] } else { [0, 0] };
        if !css.contains(&cc.css()) {
            return Err("CC.CSS is none of its command sets");
        }
        if cc.ams() != 0 {
            return Err("CC.AMS is another arbitration than round robin");
        }
        self.page_shift.store(12 + cc.mps(), Ordering::Relaxed);
        let sizes = [state.aqa.asqs_z(), state.aqa.acqs_z()];
        if sizes.contains(&0) {
            return Err("AQA has a queue of one entry");
        }
        if (state.asq | state.acq) & (self.page() - 1) != 0 {
            return Err("ASQ or ACQ is no address of a page");
        }
        let [sq, cq] = [Sq::LEN, Cq::LEN];
        let (Some(submissions), Some(completions)) = (
            self.queue_memory(state.asq, (usize::from(sizes[0]) + 1) * sq),
            self.queue_memory(state.acq, (usize::from(sizes[1]) + 1) * cq),
        ) else {
            return Err("ASQ or ACQ is not memory that the controller was given");
        };
        self.admin.lock().reset();
        self.coalescing.store(0, Ordering::Relaxed);
        self.create_cq(Cq::new(0, completions, sizes[1] + 1, Some(0)));
        self.create_sq(Sq::new(0, 0, Entries::Host(submissions), sizes[0] + 1));
        Ok(())
    }

    /// Memory of a queue, which counts as a fault if it is not there.
    pub(super) fn queue_memory(&self, address: u64, len: usize) -> Option<Spot> {
        let found = self.memory.find(address, len);
        if found.is_none() {
            self.memory.fault(&|| "a queue".to_owned(), address, len);
        }
        found
    }

    /// Where a submission queue is.
    pub(super) fn submissions(&self, address: u64, len: usize) -> Option<Entries> {
        let space = CmbSpace(self.buffer_space.load(Ordering::Acquire));
        let behind = address.checked_sub(space.base()).filter(|_| space.has(CmbSpace::CMSE));
        let size = self.options.cmb_pages as usize * BUFFER_PAGE;
        match behind.and_then(|at| usize::try_from(at).ok()).filter(|at| *at < size) {
            Some(at) if len <= size - at => Some(Entries::Here((BUFFER_PAGE + at) / 8)),
            Some(at) => {
                self.breaks(|| format!("a queue of {len} bytes at {at:#x} of a controller memory buffer of {size:#x}"));
                None
            }
            None => self.queue_memory(address, len).map(Entries::Host),
        }
    }

    fn disable(&self, state: &mut State) {
        if state.mode == Mode::Enabling && self.csts.load(Ordering::Acquire) & Csts::CFS == 0 {
            self.breaks(|| "CC.EN was cleared before CSTS.RDY was 1".to_owned());
        }
        state.mode = Mode::Disabling;
        self.live.store(false, Ordering::Release);
        state.shutdown = None;
        let delay = self.delay(Arrival::Disable, self.options.disable_ns);
        // One that never became ready cannot tell when it is disabled: it is at once.
        let ready = self.csts.load(Ordering::Acquire) & Csts::RDY != 0;
        state.change = delay.filter(|_| ready);
        if state.change.is_none() {
            self.turn_off(state);
        }
    }

    /// From here on nothing in memory is touched any more.
    fn turn_off(&self, state: &mut State) {
        state.change = None;
        state.mode = Mode::Off;
        for qid in 0..self.places.len() as u16 {
            self.delete_sq(qid);
        }
        for qid in 0..self.places.len() as u16 {
            self.delete_cq(qid);
            self.set_shadows(qid, [None, None]);
        }
        self.admin.lock().reset();
        self.coalescing.store(0, Ordering::Relaxed);
        self.csts.store(0, Ordering::Release);
    }

    fn shut_down(&self, state: &mut State) {
        self.csts.fetch_or(Csts::SHST_OCCURRING, Ordering::AcqRel);
        self.live.store(false, Ordering::Release);
        state.shutdown = self.delay(Arrival::Shutdown, self.options.shutdown_ns);
        if state.shutdown.is_none() {
            self.be_shut_down(state);
        }
    }

    fn be_shut_down(&self, state: &mut State) {
        state.shutdown = None;
        // Without a notification, or with an abrupt one, the cache may be lost with the power.
        if state.cc.shn() == 1 {
            self.disk.flush();
        }
        let csts = self.csts.load(Ordering::Acquire) & !(3 << 2);
        self.csts.store(csts | Csts::SHST_COMPLETE, Ordering::Release);
    }

    /// Does what is due; when to look again.
    pub(super) fn progress(&self, now: u64) -> Option<u64> {
        let state = &mut *self.registers.lock();
        let due = |timer: &mut Option<Timer>| {
            timer.as_mut().is_some_and(|timer| *timer.at.get_or_insert(now.saturating_add(timer.after_ns)) <= now)
        };
        if due(&mut state.change) {
            match state.mode {
                Mode::Enabling => self.become_ready(state),
                _ => self.turn_off(state),
            }
        }
        if due(&mut state.shutdown) {
            self.be_shut_down(state);
        }
        [state.change, state.shutdown]
            .into_iter()
            .flatten()
            .filter_map(|timer| timer.at)
            .min()
            .filter(|at| *at < u64::MAX)
    }

    /// Bytes of BAR 0.
    fn bar(&self) -> u32 {
        let doorbells = (2 * self.places.len() as u32) << (2 + self.options.dstrd);
        (DOORBELLS + doorbells).next_multiple_of(PAGE)
    }

    fn check(&self, at: u32, len: u32) {
        assert!(
            at.is_multiple_of(len) && at <= self.bar() - len,
            "{len} bytes at {at:#x} of registers of {:#x}: outside, or not aligned",
            self.bar()
        );
    }
}

fn put(register: &mut u64, upper: bool, len: u32, value: u64) {
    *register = match (len, upper) {
        (8, _) => value,
        (_, false) => *register & !0xffff_ffff | value & 0xffff_ffff,
        (_, true) => *register & 0xffff_ffff | value << 32,
    };
}

/// The registers of a [`super::FakePort`], or its controller memory buffer.
#[derive(Clone)]
pub struct FakeRegisters {
    inner: Arc<Inner>,
    is_buffer: bool,
}

impl FakeRegisters {
    /// BAR 0 and [`BUFFER_BAR`].
    pub(super) fn bars(inner: Arc<Inner>) -> [FakeRegisters; 2] {
        [false, true].map(|is_buffer| FakeRegisters { inner: inner.clone(), is_buffer })
    }

    /// 8 bytes of the buffer.
    fn word(&self, at: u32) -> &AtomicU64 {
        &self.inner.buffer[at as usize / 8]
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }
}

impl Registers for FakeRegisters {
    type Bell = FakeBell;

    fn size(&self) -> u64 {
        if self.is_buffer { self.inner.buffer.len() as u64 * 8 } else { u64::from(self.inner.bar()) }
    }

    fn read32(&self, at: u32) -> u32 {
        if self.is_buffer {
            return (self.read64(at & !7) >> (8 * (at & 4))) as u32;
        }
        self.inner.check(at, 4);
        if at & 4 != 0 && matches!(Property(at & !4), Property::CAP | Property::ASQ | Property::ACQ) {
            return (self.inner.read(at & !4) >> 32) as u32;
        }
        self.inner.read(at) as u32
    }

    fn read64(&self, at: u32) -> u64 {
        if self.is_buffer {
            return if self.inner.gone() { u64::MAX } else { self.word(at).load(Ordering::Acquire) };
        }
        self.inner.check(at, 8);
        self.inner.read(at)
    }

    fn write32(&self, at: u32, value: u32) {
        if self.is_buffer {
            self.inner.breaks(|| format!("4 bytes were written at {at:#x} of the controller memory buffer"));
            return;
        }
        self.inner.check(at, 4);
        if at >= DOORBELLS {
            self.bell(at).ring(value);
        } else {
            self.inner.write(at, 4, u64::from(value));
        }
    }

    fn write64(&self, at: u32, value: u64) {
        if self.is_buffer {
            if !self.inner.gone() {
                self.word(at).store(value, Ordering::Release);
            }
            return;
        }
        self.inner.check(at, 8);
        self.inner.write(at, 8, value);
    }

    fn bell(&self, at: u32) -> FakeBell {
        self.inner.check(at, 4);
        let stride = 4 << self.inner.options.dstrd;
        let index = at.checked_sub(DOORBELLS).filter(|at| at % stride == 0).map(|at| at / stride);
        FakeBell { inner: Arc::clone(&self.inner), at, index }
    }
}

/// A doorbell, or another register, of a [`super::FakePort`].
pub struct FakeBell {
    inner: Arc<Inner>,
    at: u32,
    /// Of doorbells: twice the queue, and 1 more for its completion queue.
    index: Option<u32>,
}

impl Bell for FakeBell {
    #[inline]
    fn ring(&self, value: u32) {
        match self.index {
            Some(index) => self.inner.ring((index / 2) as u16, index % 2 == 1, value),
            None => self.inner.breaks(|| format!("{value} was written to a doorbell at {:#x}, where none is", self.at)),
        }
    }
}
