//! A simulated world under real reactors: time, network, disks and chance from one seed, on one thread.
//!
//! ```text
//!   Simulation --turns, in seeded order--> Reactor ... Reactor      (the code that serves, unchanged)
//!       |                                     |  submit / reap
//!       | time, when all are idle             v
//!       +------------------------------->  World: sockets, disks, doorbells, what will happen when
//! ```
//! Everything happens in an order that the seed decides, and only the seed: the same test with the same seed does the
//! same, which [`Simulation::trace_hash`] shows. Time stands still while a reactor has something to do and jumps to the next
//! deadline or event when none has.
//!
//! A *machine* has an address, disks ([`World::add_disk`]) and one process with some reactors ([`Simulation::machine`]). It can
//! lose its process ([`Simulation::kill`]) or its power ([`Simulation::power_cut`]) and start again
//! ([`Simulation::restart`]).
//!
//! ```
//! use reactor::net::Stream;
//! use reactor::reactor::sim::Simulation;
//!
//! let mut sim = Simulation::new(1);
//! let (near, far) = (sim.machine(1), sim.machine(1));
//! let (listener, address) = sim.world().listen(far, 4420).unwrap();
//! let reactor = sim.reactor(near, 0);
//! let here = reactor.clone();
//! let peer = sim.run_until(&reactor, async move { Stream::connect(&here, address).await.unwrap().peer() }).unwrap();
//! assert_eq!(peer, address);
//! drop(listener);
//! ```

mod disk;
mod rates;
mod ring;
mod socket;
mod trace;
mod world;

#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::rc::Rc;
use std::sync::mpsc;

pub use disk::{DiskOptions, SECTOR};
pub use rates::{FLIP_FROM, Fault, Rates};
pub use ring::SimRing;
pub use world::{DiskId, Machine, World};

use super::backend::Backend;
use super::mailbox::Remote;
use super::{Reactor, Turn, start};

/// Turns without an advance of time after which the reactors are said to run in circles.
const TURNS_PER_INSTANT_MAX: u64 = 100_000;
/// Simulated time of one [`Simulation::run_until`]: what takes longer hangs.
const RUN_NS_MAX: u64 = 3_600_000_000_000;
/// How far time moves for a reactor that polls memory.
const POLL_NS: u64 = 10_000;
/// DMA memory of a reactor, in bytes, unless said otherwise.
const MEMORY: usize = 16 << 20;

/// Why a simulation cannot go on. Its text ends with the seed and what happened last.
#[derive(thiserror::Error)]
pub enum Stuck {
    /// Everybody waits and nothing will happen.
    #[error("everybody waits for ever; {0}")]
    Deadlock(String),
    /// Reactors are busy without end.
    #[error("{TURNS_PER_INSTANT_MAX} turns at one instant; {0}")]
    Livelock(String),
    /// An hour of simulated time was not enough.
    #[error("not done after an hour of simulated time; {0}")]
    Timeout(String),
}

impl fmt::Debug for Stuck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    /// Turns in every round.
    Awake,
    /// Turns in every round, and time moves a little in between.
    Polling,
    /// Until a completion or this time.
    Asleep(u64),
}

struct Member {
    reactor: Rc<Reactor>,
    machine: Machine,
    /// Its number among all that were ever started.
    number: usize,
    mood: Mood,
    /// Has no turns until its process goes on.
    stopped: bool,
}

/// See the module's head.
pub struct Simulation {
    seed: u64,
    world: World,
    members: Vec<Member>,
    memory: usize,
    leaked: usize,
    turns: u64,
    turns_at_instant: u64,
}

impl Simulation {
    /// An empty world.
    pub fn new(seed: u64) -> Simulation {
        Simulation {
            seed,
            world: World::new(seed),
            members: Vec::new(),
            memory: MEMORY,
            leaked: 0,
            turns: 0,
            turns_at_instant: 0,
        }
    }

    /// DMA memory, in bytes, of each reactor started from now on.
    pub fn set_memory(&mut self, bytes: usize) {
        self.memory = bytes;
    }

    /// A new machine with one process of `reactors` reactors.
    pub fn machine(&mut self, reactors: u16) -> Machine {
        let machine = self.world.add_machine();
        self.restart(machine, reactors);
        machine
    }

    /// Starts a process on a machine that has none, and the machine itself if it was without power.
    ///
    /// # Panics
    /// If its last process still runs.
    pub fn restart(&mut self, machine: Machine, reactors: u16) {
        assert!(self.on(machine).next().is_none(), "{machine:?} runs already");
        self.world.state().speak_again(machine);
        for reactor in start::simulated(&self.world, machine, reactors, self.memory) {
            let number = match &*reactor.backend.borrow() {
                Backend::Sim(ring) => ring.number(),
                _ => unreachable!("just made"),
            };
            self.members.push(Member { reactor, machine, number, mood: Mood::Awake, stopped: false });
        }
    }

    fn on(&self, machine: Machine) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(move |member| member.machine == machine)
    }

    /// A reactor of a machine, from 0.
    ///
    /// # Panics
    /// If it does not run.
    pub fn reactor(&self, machine: Machine, number: u16) -> Rc<Reactor> {
        let found = self.on(machine).find(|member| member.reactor.id() == number);
        found.unwrap_or_else(|| panic!("reactor {number} of {machine:?} does not run")).reactor.clone()
    }

    /// What surrounds the reactors.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Ends the process of a machine at once (SIGKILL): its kernel closes the sockets, and what it had written is not lost.
    pub fn kill(&mut self, machine: Machine) {
        let ended: Vec<Member> = self.members.extract_if(.., |member| member.machine == machine).collect();
        self.shut_down(ended);
    }

    /// Ends reactors, and counts the buffers that did not come home once all have ended: one may have had those of another.
    fn shut_down(&mut self, ended: Vec<Member>) {
        for member in &ended {
            member.reactor.shut_down();
        }
        for member in &ended {
            self.leaked += member.reactor.pool().leaked();
        }
    }

    /// Cuts the power of a machine: its peers hear nothing any more, its disks keep what was durable and any part of the rest.
    pub fn power_cut(&mut self, machine: Machine) {
        self.world.state().lose_power(machine);
        self.kill(machine);
    }

    /// Stops the process of a machine where it is (SIGSTOP): its kernel goes on and takes what fits its socket buffers.
    pub fn pause(&mut self, machine: Machine) {
        self.set_stopped(machine, true);
    }

    /// Lets a stopped process go on (SIGCONT).
    pub fn resume(&mut self, machine: Machine) {
        self.set_stopped(machine, false);
    }

    fn set_stopped(&mut self, machine: Machine, stopped: bool) {
        for member in self.members.iter_mut().filter(|member| member.machine == machine) {
            member.stopped = stopped;
            member.reactor.wake_up();
            member.mood = Mood::Awake;
        }
    }

    /// What a control thread does in [`Remote::ask`]: runs `f` on a reactor by message and lets the world go on until it has
    /// answered. `None` if the reactor ended before.
    ///
    /// # Errors
    /// If the answer can never come.
    pub fn ask<R: Send + 'static>(
        &mut self,
        remote: &Remote,
        f: impl FnOnce(&Rc<Reactor>) -> R + Send + 'static,
    ) -> Result<Option<R>, Stuck> {
        let (sender, answers) = mpsc::sync_channel(1);
        remote.send(Box::new(move |reactor| {
            // Heard by the loop below, which does not end before.
            let _ = sender.send(f(reactor));
        }));
        let limit = self.world.now() + RUN_NS_MAX;
        loop {
            match answers.try_recv() {
                Ok(answer) => return Ok(Some(answer)),
                Err(mpsc::TryRecvError::Disconnected) => return Ok(None),
                Err(mpsc::TryRecvError::Empty) => {}
            }
            if !self.step(limit)? {
                return Err(self.stuck(limit));
            }
        }
    }

    fn stuck(&self, limit: u64) -> Stuck {
        if self.world.now() >= limit { Stuck::Timeout(self.story()) } else { Stuck::Deadlock(self.story()) }
    }

    /// Runs until `body` has ended on `reactor`, and returns what it gave.
    ///
    /// # Errors
    /// If that cannot happen any more, or takes more than an hour of simulated time.
    pub fn run_until<R: 'static>(
        &mut self,
        reactor: &Rc<Reactor>,
        body: impl Future<Output = R> + 'static,
    ) -> Result<R, Stuck> {
        let result = Rc::new(Cell::new(None));
        let there = result.clone();
        reactor.spawn("run_until", async move { there.set(Some(body.await)) });
        self.wake_all();
        let limit = self.world.now() + RUN_NS_MAX;
        loop {
            if let Some(result) = result.take() {
                return Ok(result);
            }
            if !self.step(limit)? {
                return Err(self.stuck(limit));
            }
        }
    }

    /// Runs for `ns` of simulated time, whether something happens or not.
    ///
    /// # Errors
    /// If time stands still because reactors are busy without end.
    pub fn run_for(&mut self, ns: u64) -> Result<(), Stuck> {
        self.wake_all();
        let limit = self.world.now() + ns;
        while self.step(limit)? {}
        let state = self.world.state();
        state.now.set(limit);
        Ok(())
    }

    /// Runs `rounds` rounds, in each of which every reactor that is awake has a turn: to stop at any point between two turns.
    ///
    /// # Errors
    /// As [`Simulation::run_for`].
    pub fn run_rounds(&mut self, rounds: u64) -> Result<(), Stuck> {
        self.wake_all();
        for _ in 0..rounds {
            self.step(u64::MAX)?;
        }
        Ok(())
    }

    /// Names everything that happened so far: equal for the same test with the same seed.
    pub fn trace_hash(&self) -> u64 {
        self.world.trace_hash()
    }

    /// Turns of all reactors so far.
    pub fn turns(&self) -> u64 {
        self.turns
    }

    /// Ends all processes. Returns the number of DMA buffers that never came home, of those that ended earlier too.
    pub fn finish(mut self) -> usize {
        self.end()
    }

    fn end(&mut self) -> usize {
        let ended = std::mem::take(&mut self.members);
        self.shut_down(ended);
        self.leaked
    }

    fn story(&self) -> String {
        format!("seed {}, {} turns, {}", self.seed, self.turns, self.world.state().trace)
    }

    /// The test may have given them something to do.
    fn wake_all(&mut self) {
        for member in &mut self.members {
            member.reactor.wake_up();
            member.mood = Mood::Awake;
        }
    }

    /// One round: what is due happens, everybody awake has a turn, and if nobody had anything to do, time moves, at most to
    /// `limit`. Returns whether there is anything left to do before that.
    fn step(&mut self, limit: u64) -> Result<bool, Stuck> {
        self.world.state().run_due();
        let now = self.world.now();
        for member in self.members.iter_mut().filter(|member| !member.stopped) {
            if let Mood::Asleep(until) = member.mood
                && (until <= now || member.reactor.backend.borrow_mut().has_completions())
            {
                member.reactor.wake_up();
                member.mood = Mood::Awake;
            }
        }
        let turns = |member: &Member| !member.stopped && !matches!(member.mood, Mood::Asleep(_));
        let mut awake: Vec<usize> = (0..self.members.len()).filter(|i| turns(&self.members[*i])).collect();
        let mut still = true;
        for left in (1..=awake.len()).rev() {
            let index = awake.swap_remove(self.world.pick(left as u64) as usize);
            still &= self.turn(index) != Mood::Awake;
        }
        self.turns_at_instant += self.members.len() as u64;
        let stopped: Vec<Member> =
            self.members.extract_if(.., |member| member.reactor.mailbox.own().is_stopping()).collect();
        for member in stopped {
            self.leaked += member.reactor.shut_down();
            still = false;
        }
        if !still {
            if self.turns_at_instant > TURNS_PER_INSTANT_MAX {
                return Err(Stuck::Livelock(self.story()));
            }
            return Ok(true);
        }
        Ok(self.advance(limit))
    }

    /// Gives a reactor a turn. One that is idle falls asleep, or spins for another round.
    fn turn(&mut self, index: usize) -> Mood {
        let member = &mut self.members[index];
        let turn = member.reactor.turn();
        self.turns += 1;
        member.mood = match turn {
            Turn::Busy => Mood::Awake,
            Turn::Polling => Mood::Polling,
            Turn::SleepUntil(until) => {
                let spins = self.world.pick(4) == 0;
                if spins || !member.reactor.fall_asleep() { Mood::Awake } else { Mood::Asleep(until) }
            }
        };
        let kind = match member.mood {
            Mood::Awake => u64::from(turn == Turn::Busy),
            Mood::Polling => 2,
            Mood::Asleep(_) => 3,
        };
        let mut state = self.world.state();
        state.trace.turn(member.number, kind);
        state.close_dropped();
        member.mood
    }

    /// Moves time to whatever comes next; `false` if that is nothing, or after `limit`.
    fn advance(&mut self, limit: u64) -> bool {
        let mut state = self.world.state();
        // Of reactors that fell asleep in this round, rung by what they armed for it.
        state.hear_doorbells();
        let now = state.now();
        let wakes = self.members.iter().filter(|member| !member.stopped).map(|member| match member.mood {
            Mood::Asleep(until) => until,
            Mood::Awake | Mood::Polling => now + POLL_NS,
        });
        let next = wakes.chain(state.next_event()).min().unwrap_or(u64::MAX);
        if next == u64::MAX {
            return false;
        }
        state.now.set(next.clamp(now, limit));
        self.turns_at_instant = 0;
        next <= limit
    }
}

impl Drop for Simulation {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // The reactors are in the middle of something: they are left as they are.
            std::mem::forget(std::mem::take(&mut self.members));
            match self.world.try_story() {
                Some(trace) => eprintln!("simulation with seed {}, {} turns, {trace}", self.seed, self.turns),
                None => eprintln!("simulation with seed {}, {} turns", self.seed, self.turns),
            }
        } else {
            self.end();
        }
    }
}
