//! The NVMe drive of the machine under test: this program's driver on a controller in software, how that fails, and what of it hosts may see.

use std::cell::{Cell, RefCell};
use std::ops::AddAssign;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use reactor::bdev::BlockDevice;
use reactor::bdev::device::nvme::{Nvme, NvmeDrive};
use reactor::nvme::pcie::fake::{
    DiskOptions, FakeDisk, FakeOptions, FakePort, Fault, NamespaceOptions, Point, Rule, When,
};
use reactor::nvme::pcie::{ControllerOptions, Drive as Driver, DriveOptions, Life};
use reactor::nvme::spec::{
    AdminOpcode, DeallocatedReads, NoticeInfo, NvmOpcode, ONCS_VERIFY, Property, SGLS_DWORD, StatusCode,
};
use reactor::reactor::Reactor;
use reactor::reactor::clock::Entropy;
use reactor::reactor::io::{IoOp, IoStatus};
use reactor::reactor::sim::{Simulation, World};

use super::model::Crash;
use super::plan::{MS, Volume};

const S: u64 = 1_000 * MS;

/// What goes wrong with a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Commands take milliseconds.
    Late,
    /// Answers twice, to nobody, with a wrong head; interrupts that do not come; events that mean nothing.
    Stray,
    /// A command is to be given again.
    Passing,
    /// A command takes longer than it may, and is aborted.
    Overdue,
    /// A command fails for good.
    Refused,
    /// Blocks are not to be read.
    Media,
    /// An answer is lost or not to be recognised, a doorbell is not heard: the controller is reset.
    Deaf,
    /// The controller fails.
    Fatal,
    /// And does not come back at once.
    Down,
    /// And is silent for a minute on its way back.
    Silent,
    /// It fails again and again, until it is given up.
    Storm,
    /// It is unplugged.
    Unplugged,
}

impl Trouble {
    /// It leads to a reset of the controller.
    fn resets(self) -> bool {
        use Trouble::{Deaf, Down, Fatal, Silent, Storm};
        matches!(self, Deaf | Fatal | Down | Silent | Storm)
    }

    /// The controller fails in a way that may cost it its cache.
    fn crashes(self) -> bool {
        self.resets() && self != Trouble::Deaf
    }

    /// It costs a command one of the times that it may be given to the controller.
    fn repeats(self) -> bool {
        matches!(self, Trouble::Passing | Trouble::Overdue)
    }

    /// Whatever is asked of it may fail.
    fn fails_all(self) -> bool {
        use Trouble::{Refused, Silent, Storm, Unplugged};
        matches!(self, Refused | Silent | Storm | Unplugged)
    }
}

/// What a drive is, and what goes wrong with it.
#[derive(Clone, Debug)]
pub struct DrivePlan {
    /// Reactors that are to have a queue, the home first.
    pub reactors: Vec<u16>,
    pub depth: u16,
    pub prp_only: bool,
    pub timeout_ns: u64,
    pub disk: DiskOptions,
    pub controller: FakeOptions,
    pub troubles: Vec<Trouble>,
}

impl DrivePlan {
    /// Draws one with a namespace for each of these volumes. `pauses`: the process may stop for a while.
    pub fn of(chance: &Entropy, reactors: u16, volumes: &[(u32, &Volume)], pauses: bool) -> DrivePlan {
        let one_in = |n: u64| chance.below(n) == 0;
        let mut order: Vec<u16> = (0..reactors).collect();
        order.rotate_left(chance.below(u64::from(reactors)) as usize);
        // Where there are too few queues, the home's is that of all.
        let queues = if one_in(3) { 1 + chance.below(u64::from(reactors)) as u16 } else { reactors };
        let write_cache = one_in(2);
        let disk = DiskOptions {
            serial: "SIM0001".to_owned(),
            namespaces: volumes.iter().map(|(nsid, volume)| namespace(chance, *nsid, volume)).collect(),
            write_cache,
            mdts: [0, 1, 3, 5][chance.below(4) as usize],
            write_zeroes_limit: [0, 2, 5][chance.below(3) as usize],
            range_blocks_max: [0, 16][chance.below(2) as usize],
            fused: !one_in(4),
            acwu_z: [u16::MAX, 0, 7][chance.below(3) as usize],
            sgls: [0, 1, SGLS_DWORD][chance.below(3) as usize],
            ..DiskOptions::default()
        };
        let controller = FakeOptions {
            queues,
            mqes_z: [1023, 1023, 63, 3][chance.below(4) as usize],
            dstrd: [0, 0, 3][chance.below(3) as usize],
            timeout_500ms: 1 + chance.below(4) as u8,
            shadow_doorbells: one_in(2),
            vectors: if one_in(3) { 1 } else { 65 },
            enable_ns: chance.below(50 * MS),
            disable_ns: chance.below(50 * MS),
            admin_ns: (0, chance.below(2 * MS)),
            io_ns: [(0, 0), (2_000, 50_000), (5_000, 2 * MS)][chance.below(3) as usize],
            function_reset: !one_in(3),
            cut_off: true,
            fatal_loses: write_cache && !one_in(3),
            ..FakeOptions::default()
        };
        let mut plan = DrivePlan {
            reactors: order,
            depth: [1, 2, 4, 32, 200][chance.below(5) as usize],
            prp_only: one_in(4),
            // What stands still with its process is not late for that.
            timeout_ns: if pauses { 2 * S } else { (100 * MS) << chance.below(4) },
            disk,
            controller,
            troubles: troubles(chance),
        };
        plan.disk.verify_limit = [0, 1, 4][chance.below(3) as usize];
        if one_in(3) {
            plan.disk.oncs &= !ONCS_VERIFY;
        }
        plan
    }

    pub fn home(&self) -> u16 {
        self.reactors[0]
    }

    /// Whether anything goes wrong that hosts may see, or that takes its time.
    pub fn is_troubled(&self) -> bool {
        !self.troubles.is_empty()
    }

    fn any(&self, is: impl Fn(Trouble) -> bool) -> bool {
        self.troubles.iter().any(|trouble| is(*trouble))
    }

    /// Statuses that hosts may see for `op`. What may be done twice is done again, and the controller's troubles are no one's business then.
    pub fn may_fail(&self, op: IoOp, status: IoStatus) -> bool {
        let reads = matches!(op, IoOp::Read | IoOp::Compare | IoOp::CompareAndWrite | IoOp::Verify);
        let once = op == IoOp::CompareAndWrite;
        match status {
            IoStatus::DeviceError => {
                self.any(Trouble::fails_all)
                    || once && self.any(|trouble| trouble.resets() || trouble.repeats())
                    || op == IoOp::Flush && self.disk.write_cache && self.any(Trouble::crashes)
            }
            IoStatus::Aborted => once && self.any(|trouble| trouble.repeats() || trouble.resets()),
            IoStatus::MediaError => reads && self.any(|trouble| trouble == Trouble::Media),
            _ => false,
        }
    }

    /// What a fault does, from now on and once.
    fn rules(&self, trouble: Trouble, world: &World) -> Vec<Rule> {
        let pick = |from: &[Fault]| from[world.pick(from.len() as u64) as usize];
        let soon = |then| Rule::nth(Point::ANY_IO, 1 + world.pick(4), then);
        let qid = 1 + world.pick(u64::from(self.controller.queues)) as u16;
        let bits = 1 + world.pick(62) as u16;
        let fatal = || match world.pick(4) {
            0 => Rule::nth(Point::SqDoorbell(qid), 1, Fault::Fatal),
            1 => Rule::nth(Point::Read(Property::CSTS), 1, Fault::Fatal),
            _ => soon(Fault::Fatal),
        };
        let admin = [AdminOpcode::IDENTIFY, AdminOpcode::SET_FEATURES, AdminOpcode::CREATE_IO_SQ];
        let admin = || Point::Admin(admin[world.pick(3) as usize]);
        match trouble {
            Trouble::Late => vec![Rule {
                at: Point::ANY_IO,
                when: When::Every(2 + world.pick(4)),
                count: Some(8),
                then: Fault::Late(world.pick(self.timeout_ns.min(60 * MS) / 2)),
            }],
            Trouble::Stray if world.pick(4) == 0 => vec![Rule::nth(Point::Interrupt(qid), 1, Fault::Ignore)],
            Trouble::Stray => {
                let stray = [Fault::Twice, Fault::Extra(bits << 10), Fault::Extra(0x3ff), Fault::WrongHead(bits)];
                vec![soon(pick(&stray)), soon(pick(&stray))]
            }
            Trouble::Passing => {
                let codes = [StatusCode::COMMAND_INTERRUPTED, StatusCode::NAMESPACE_NOT_READY];
                vec![soon(Fault::Status(codes[world.pick(2) as usize].retry()))]
            }
            Trouble::Overdue => {
                vec![soon(pick(&[Fault::Hang, Fault::Late(2 * self.timeout_ns)]))]
            }
            Trouble::Refused => vec![soon(Fault::Status(StatusCode::INTERNAL_ERROR.dnr()))],
            Trouble::Media => {
                let status = Fault::Status(StatusCode::UNRECOVERED_READ_ERROR.dnr());
                [NvmOpcode::READ, NvmOpcode::VERIFY].map(|opcode| Rule::nth(Point::io(opcode), 1, status)).to_vec()
            }
            Trouble::Deaf => match world.pick(4) {
                0 => vec![Rule::nth(Point::SqDoorbell(qid), 1, Fault::Ignore)],
                1 => vec![Rule::nth(Point::EventIndex(qid), 1, Fault::Ignore)],
                2 => vec![soon(Fault::Hang), Rule::nth(Point::Admin(AdminOpcode::ABORT), 1, Fault::Ignore)],
                _ => {
                    let lost = [Fault::Lost, Fault::WrongCid(bits << 10), Fault::WrongSqid(3), Fault::WrongPhase];
                    let mut rule = soon(pick(&lost));
                    if bits.is_multiple_of(2) {
                        // Compare and write: what must not be done twice.
                        (rule.at, rule.when) = (Point::io(NvmOpcode::COMPARE), When::Nth(1));
                    }
                    vec![rule]
                }
            },
            Trouble::Fatal | Trouble::Storm => vec![fatal()],
            Trouble::Down => {
                let more = match world.pick(5) {
                    0 => Rule::nth(Point::Enable, 1, Fault::Hang),
                    1 => Rule::nth(Point::Enable, 1, Fault::Fatal),
                    2 => Rule::nth(Point::Enable, 1, Fault::Late(300 * MS)),
                    3 if self.controller.function_reset => Rule::nth(Point::Disable, 1, Fault::Hang),
                    3 => Rule::nth(Point::Disable, 1, Fault::Late(300 * MS)),
                    _ => {
                        let refused = Fault::Status(StatusCode::INTERNAL_ERROR.retry());
                        Rule::nth(admin(), 1 + world.pick(5), refused)
                    }
                };
                vec![fatal(), more]
            }
            Trouble::Silent => vec![fatal(), Rule::nth(admin(), 1, Fault::Lost)],
            Trouble::Unplugged => Vec::new(),
        }
    }
}

fn namespace(chance: &Entropy, nsid: u32, volume: &Volume) -> NamespaceOptions {
    let mut namespace = NamespaceOptions::new(nsid, volume.size, volume.block.ilog2() as u8);
    namespace.noiob = [0, 0, 8, 32][chance.below(4) as usize];
    namespace.deac = chance.below(2) == 0;
    let reads = [DeallocatedReads::ZEROS, DeallocatedReads::ONES, DeallocatedReads::UNKNOWN];
    namespace.deallocated = reads[chance.below(3) as usize];
    if chance.below(4) == 0 {
        namespace.atomic_boundary = Some((15, chance.below(3) as u16));
    }
    namespace
}

/// A quarter of all drives is well; others have several troubles, and one in eight comes to an end.
fn troubles(chance: &Entropy) -> Vec<Trouble> {
    use Trouble::{Deaf, Down, Fatal, Late, Media, Overdue, Passing, Refused, Silent, Storm, Stray, Unplugged};
    const HARMLESS: [Trouble; 2] = [Late, Stray];
    const ALL: [Trouble; 10] = [Late, Stray, Passing, Overdue, Deaf, Fatal, Down, Refused, Media, Silent];
    let some = |from: &[Trouble]| from[chance.below(from.len() as u64) as usize];
    match chance.below(8) {
        0 => Vec::new(),
        1 => vec![some(&HARMLESS), some(&HARMLESS)],
        // What hosts see nothing of, but for what may not be done twice.
        2..6 => (0..1 + chance.below(4)).map(|_| some(&ALL[..7])).collect(),
        6 => (0..1 + chance.below(4)).map(|_| some(&ALL)).collect(),
        _ => vec![some(&ALL), some(&ALL), some(&[Storm, Unplugged])],
    }
}

/// What the driver and its controllers have come to, in all processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub aborts: u64,
    pub resets: u64,
    /// Answers to nobody that the driver has passed over.
    pub stale: u64,
    /// Commands that were given to the controller again after a reset.
    pub repeated: u64,
    /// Faults that came to pass.
    pub faults: u64,
    /// Caches that were lost while the drive was in use.
    pub losses: u64,
    /// Drives that were given up.
    pub dead: u64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Totals) {
        self.aborts += other.aborts;
        self.resets += other.resets;
        self.stale += other.stale;
        self.repeated += other.repeated;
        self.faults += other.faults;
        self.losses += other.losses;
        self.dead += other.dead;
    }
}

/// The driver of a process, with its controller.
struct Running {
    port: FakePort,
    driver: Arc<NvmeDrive<FakePort>>,
}

/// See the module's head.
pub struct Drive {
    plan: Rc<DrivePlan>,
    disk: FakeDisk,
    running: Option<Running>,
    /// Controllers so far.
    made: u64,
    seed: u64,
    /// Power failures of the machine.
    cuts: u64,
    /// When troubles came that cost resets, and those that cost repeats.
    resets: RefCell<Vec<u64>>,
    repeats: RefCell<Vec<u64>>,
    unplugged: Cell<bool>,
    totals: Totals,
    /// Events that the controller has told.
    told: Arc<AtomicU64>,
}

impl Drive {
    pub fn new(plan: DrivePlan, seed: u64) -> Drive {
        Drive {
            disk: FakeDisk::new(plan.disk.clone()),
            plan: Rc::new(plan),
            running: None,
            made: 0,
            seed,
            cuts: 0,
            resets: RefCell::default(),
            repeats: RefCell::default(),
            unplugged: Cell::new(false),
            totals: Totals::default(),
            told: Arc::default(),
        }
    }

    /// The disk, which outlives all processes.
    pub fn disk(&self) -> &FakeDisk {
        &self.disk
    }

    /// Brings up a new controller in a new process.
    pub fn open(&mut self, sim: &RefCell<Simulation>, home: &Rc<Reactor>) {
        self.made += 1;
        let options = FakeOptions { seed: self.seed + self.made, ..self.plan.controller.clone() };
        let port = self.disk.controller(options);
        port.serve(home);
        let plan = &self.plan;
        let controller = ControllerOptions { prp_only: plan.prp_only, ..ControllerOptions::new(plan.depth) };
        let options = DriveOptions { controller, timeout_ns: plan.timeout_ns };
        let (here, there, reactors) = (home.clone(), port.clone(), plan.reactors.clone());
        let opening = async move { Driver::open(&here, there, options, reactors).await };
        let driver = sim.borrow_mut().run_until(home, opening).unwrap().expect("an honest controller comes up");
        let told = self.told.clone();
        driver.listen(move |_| {
            told.fetch_add(1, Ordering::Relaxed);
        });
        self.unplugged.set(false);
        self.running = Some(Running { port, driver });
    }

    /// The volume on a namespace.
    pub fn device(&self, name: String, nsid: u32) -> Arc<dyn BlockDevice> {
        let running = self.running.as_ref().expect("it is open");
        Arc::new(Nvme::new(name, &running.driver, nsid).expect("a namespace that can be used"))
    }

    /// Whether it is given up, or about to be.
    pub fn is_dead(&self) -> bool {
        self.unplugged.get() || self.life().is_some_and(|life| matches!(life, Life::Failed | Life::Ended))
    }

    fn life(&self) -> Option<Life> {
        self.running.as_ref().map(|running| running.driver.life())
    }

    /// Whether a reset is under way.
    pub fn is_resetting(&self) -> bool {
        self.life() == Some(Life::Resetting)
    }

    /// Whether `most` of these times are within `ns`; else takes down another.
    fn is_enough(times: &RefCell<Vec<u64>>, now: u64, ns: u64, most: usize) -> bool {
        let mut times = times.borrow_mut();
        times.retain(|at| now - at < ns);
        let enough = times.len() >= most;
        if !enough {
            times.push(now);
        }
        enough
    }

    /// Has something of the plan go wrong, now and then.
    pub fn disturb(&self, world: &World) {
        let (Some(running), troubles) = (&self.running, &self.plan.troubles) else { return };
        if troubles.is_empty() || self.unplugged.get() || world.pick(3) > 0 {
            return;
        }
        let trouble = troubles[world.pick(troubles.len() as u64) as usize];
        let now = world.now();
        // No more of them than the driver promises to bear: five resets within a minute, of which each of these costs two at most, and five
        // repeats of a command within its 30 seconds.
        if trouble.resets() && trouble != Trouble::Storm && Drive::is_enough(&self.resets, now, 70 * S, 2)
            // A reset is tried twice: one that it meets may fail once.
            || trouble == Trouble::Down && self.is_resetting()
            || trouble.repeats() && Drive::is_enough(&self.repeats, now, 35 * S, 4)
        {
            return;
        }
        // What has not come to pass by now does not later: it would not be counted then.
        running.port.forgive();
        if trouble == Trouble::Unplugged {
            if world.pick(20) == 0 {
                self.unplugged.set(true);
                running.port.remove();
                self.disk.power_cut(&Entropy::new(world.pick(u64::MAX)));
            }
            return;
        }
        running.port.inject(self.plan.rules(trouble, world));
        if trouble == Trouble::Stray {
            match world.pick(4) {
                0 => running.port.changed(1 + world.pick(4) as u32),
                1 => running.port.notice(NoticeInfo::FIRMWARE_ACTIVATION),
                2 => {
                    self.disk.set_health(300 + world.pick(80) as u16, 1 << world.pick(4));
                    running.port.warn();
                }
                _ => {}
            }
        }
    }

    /// From now on nothing goes wrong any more.
    pub fn calm_down(&self) {
        if let Some(running) = &self.running {
            running.port.forgive();
        }
    }

    /// Closes it in order.
    pub fn close(&self, sim: &RefCell<Simulation>, home: &Rc<Reactor>) {
        let Some(running) = &self.running else { return };
        let (here, driver) = (home.clone(), running.driver.clone());
        let closed = sim.borrow_mut().run_until(home, async move { driver.close(&here).await }).unwrap();
        if let Err(error) = closed {
            assert!(self.plan.is_troubled() || self.is_dead(), "it does not close: {error}");
        }
    }

    /// Its process ends, at once: between two turns. The controller must find that its driver has done nothing wrong until then.
    pub fn end(&mut self, reactors: &[Rc<Reactor>], crash: Option<Crash>, world: &World) {
        let Some(Running { port, driver }) = self.running.take() else { return };
        let dead = self.unplugged.get() || matches!(driver.life(), Life::Failed);
        for queue in reactors.iter().filter_map(|reactor| driver.queue(reactor)) {
            let counters = queue.counters();
            self.totals.stale += counters.stale;
            self.totals.repeated += counters.repeated;
        }
        let (counters, controller) = (driver.counters(), port.counters());
        self.totals.aborts += counters.aborts;
        self.totals.resets += counters.resets;
        self.totals.faults += controller.injected;
        self.totals.dead += u64::from(dead);
        // One that never becomes ready is disabled nevertheless, once its time is over: there is no other way.
        let never_ready = "CC.EN was cleared before CSTS.RDY was 1";
        let broken: Vec<String> = port.take_broken().into_iter().filter(|what| what != never_ready).collect();
        let touched = port.dma_faults();
        assert!(broken.is_empty() && touched.is_empty(), "the driver did wrong: {broken:?}; {touched:?}");
        if crash == Some(Crash::Power) {
            self.cuts += 1;
            self.disk.power_cut(&Entropy::new(world.pick(u64::MAX)));
        }
        port.orphan(&driver, reactors);
    }

    /// What it has come to, once its last process has ended.
    pub fn totals(&self) -> Totals {
        let losses = if self.plan.disk.write_cache { self.disk.losses() - self.cuts } else { 0 };
        Totals { losses, ..self.totals }
    }
}
