//! One seed from beginning to end.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use reactor::reactor::sim::{Fault, Machine, Rates, Simulation, World};

use super::drive::Totals;
use super::host::{self, Context};
use super::iscsi;
use super::model::{Crash, Model};
use super::plan::{Finish, Kind, MS, Plan};
use super::target::Target;

/// Simulated time that a round may take: what several commands may that hosts wait for, one after the other.
fn round_ns(plan: &Plan) -> u64 {
    plan.hosts.iter().map(|host| 20 * host.patience_ns).max().unwrap_or(0)
}

/// How often hosts fall silent in a round at most: each time may take most of a minute.
const SILENCES: u32 = 6;

/// What a seed came to.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    pub hash: u64,
    pub turns: u64,
    /// Answers by operation and status.
    pub answers: BTreeMap<(u8, u8), u64>,
    pub lost: u64,
    pub injected: u64,
    pub aborted: u64,
    pub drive: Totals,
}

/// Prints how to run a seed again, if it fails.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("again: REACTOR_SIM_SEED={} cargo test --test sim one_seed -- --nocapture", self.0);
        }
    }
}

/// Runs what the seed says.
///
/// # Panics
/// If anything is not as it must be.
pub fn run(seed: u64) -> Outcome {
    run_plan(Plan::of(seed))
}

/// Runs a plan.
///
/// # Panics
/// If anything is not as it must be.
pub fn run_plan(plan: Plan) -> Outcome {
    let _named = Named(plan.seed);
    let plan = Rc::new(plan);
    let mut simulation = Simulation::new(plan.seed);
    // Before hosts: their machines are the later ones.
    let checker = simulation.machine(1);
    let sim = Rc::new(RefCell::new(simulation));
    let target = Target::start(&sim, &plan);
    let hosts: Vec<Machine> = plan.hosts.iter().map(|_| sim.borrow_mut().machine(1)).collect();
    let models = plan.volumes.iter().enumerate();
    let models = models.map(|(index, v)| Rc::new(Model::new(index as u64, v.size, v.kind.is_volatile()))).collect();
    let context = Rc::new(Context {
        plan: plan.clone(),
        address: target.address,
        models,
        disk: target.drive().map(|drive| drive.disk().clone()),
        losses: Cell::new(0),
        unflushed: RefCell::default(),
        owed: RefCell::default(),
        left: hosts.iter().map(|_| Cell::new(0)).collect(),
        finished: hosts.iter().map(|_| Cell::new(true)).collect(),
        stopping: Cell::new(false),
        failed: Cell::new(0),
        answers: RefCell::default(),
        lost: Cell::new(0),
        aborted: Cell::new(0),
        scsi: iscsi::Common::new(plan.volumes.len()),
    });
    let world = sim.borrow().world().clone();
    let mut scenario =
        Scenario { sim: sim.clone(), world, plan: plan.clone(), target, hosts, checker, context, silences: 0 };
    for finish in &plan.rounds {
        scenario.round(*finish);
    }
    let (context, injected) = (scenario.context.clone(), scenario.target.injected());
    assert!(context.failed.get() <= injected, "{} I/Os failed, rules failed {injected}", context.failed.get());
    let drive = scenario.target.end();
    drop(scenario);
    let sim = Rc::into_inner(sim).expect("nobody else has it").into_inner();
    let (hash, turns) = (sim.trace_hash(), sim.turns());
    assert_eq!(sim.finish(), 0, "DMA buffers leaked");
    Outcome {
        hash,
        turns,
        answers: context.answers.take(),
        lost: context.lost.get(),
        injected,
        aborted: context.aborted.get(),
        drive,
    }
}

struct Scenario {
    sim: Rc<RefCell<Simulation>>,
    world: World,
    plan: Rc<Plan>,
    target: Target,
    hosts: Vec<Machine>,
    checker: Machine,
    context: Rc<Context>,
    /// How often hosts may still fall silent in this round.
    silences: u32,
}

impl Scenario {
    fn run_for(&self, ns: u64) {
        self.sim.borrow_mut().run_for(ns).unwrap();
    }

    fn start_host(&self, number: usize) {
        let reactor = self.sim.borrow().reactor(self.hosts[number], 0);
        let (context, here) = (self.context.clone(), reactor.clone());
        reactor.spawn("host", async move {
            match context.plan.scsi {
                Some(_) => iscsi::host::run(here, context, number).await,
                None => host::run(here, context, number).await,
            }
        });
    }

    fn all_finished(&self) -> bool {
        self.context.finished.iter().all(Cell::get)
    }

    fn round(&mut self, finish: Finish) {
        self.world.set_rates(self.plan.rates);
        self.context.stopping.set(false);
        self.silences = SILENCES;
        for number in 0..self.hosts.len() {
            self.context.left[number].set(self.plan.ios);
            self.context.finished[number].set(false);
            self.start_host(number);
        }
        let end = self.world.now() + round_ns(&self.plan);
        let failing = (finish != Finish::Done).then(|| self.world.now() + self.world.pick(400 * MS));
        while !self.all_finished() && failing.is_none_or(|at| self.world.now() < at) {
            assert!(self.world.now() < end, "hosts are not done: {:?} I/Os left", self.context.left);
            self.run_for(1 + self.world.pick(20 * MS));
            self.target.release(self.world.pick(3) == 0);
            self.disturb();
        }
        match finish {
            Finish::Done => self.end_quietly(),
            Finish::Drain => {
                self.context.stopping.set(true);
                self.target.drain();
                self.fail(Crash::Process);
            }
            Finish::Crash(crash) => {
                self.context.stopping.set(true);
                self.fail(crash);
            }
        }
    }

    /// Changes a namespace, and makes life harder for a host or the drive, now and then.
    fn disturb(&mut self) {
        if let Some(drive) = self.target.drive() {
            drive.disturb(&self.world);
        }
        if self.plan.changes && self.world.pick(4) == 0 {
            self.target.change();
        }
        let number = self.world.pick(self.hosts.len() as u64) as usize;
        let machine = self.hosts[number];
        if self.plan.pauses && self.world.pick(4) == 0 {
            let machine = if self.world.pick(4) == 0 { self.target.machine } else { machine };
            self.sim.borrow_mut().pause(machine);
            // Shorter than what keep alive allows.
            self.run_for(1 + self.world.pick(400 * MS));
            self.sim.borrow_mut().resume(machine);
        }
        if self.plan.vanishes && self.silences > 0 && self.world.pick(12) == 0 {
            self.silences -= 1;
            let away = [50 * MS, 3_000 * MS, 45_000 * MS][self.world.pick(3) as usize];
            if self.world.pick(3) == 0 {
                if self.world.pick(2) == 0 {
                    self.sim.borrow_mut().kill(machine);
                } else {
                    self.sim.borrow_mut().power_cut(machine);
                }
                self.run_for(self.world.pick(away));
                self.sim.borrow_mut().restart(machine, 1);
                self.context.finished[number].set(false);
                self.start_host(number);
            } else {
                self.world.fault(Fault::Vanish(machine));
                self.run_for(self.world.pick(away));
                self.world.fault(Fault::Return(machine));
            }
        }
    }

    fn end_quietly(&mut self) {
        self.target.calm_down();
        self.target.quiet();
        if self.target.has_dead_drive() {
            return self.fail(Crash::Process);
        }
        self.context.heed_losses();
        self.context.models.iter().for_each(|model| model.settle());
        self.inspect(false);
        self.target.quiet();
    }

    fn fail(&mut self, crash: Crash) {
        self.context.heed_losses();
        self.target.crash(crash);
        self.context.forget_losses();
        for (model, volume) in self.context.models.iter().zip(&self.plan.volumes) {
            if volume.kind == Kind::Malloc { model.forget() } else { model.crash(crash) }
        }
        // The target may be back before its hosts have noticed.
        let early = self.world.pick(2) == 0;
        if early {
            self.target.restart();
        }
        let end = self.world.now() + round_ns(&self.plan);
        while !self.all_finished() {
            assert!(self.world.now() < end, "hosts hang on a target that failed");
            self.run_for(100 * MS);
        }
        if !early {
            self.target.restart();
        }
        self.target.calm_down();
        self.inspect(crash == Crash::Power);
        self.target.quiet();
    }

    /// Reads everything, by a host of its own and without trouble.
    fn inspect(&mut self, lasting: bool) {
        self.world.set_rates(Rates::calm());
        let reactor = self.sim.borrow().reactor(self.checker, 0);
        let (here, context) = (reactor.clone(), self.context.clone());
        let body = async move {
            match context.plan.scsi {
                Some(_) => iscsi::host::inspect(here, context, lasting).await,
                None => host::inspect(here, context, lasting).await,
            }
        };
        let found = self.sim.borrow_mut().run_until(&reactor, body).unwrap();
        if let Err(why) = found {
            panic!("{why}");
        }
    }
}
