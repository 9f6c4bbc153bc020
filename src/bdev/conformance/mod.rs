//! The conformance suite: what every device and every layer must do, whichever way it is reached.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use reactor::bdev::{BlockDevice, conformance};
//! # fn make() -> Arc<dyn BlockDevice> { panic!("a device of yours") }
//! conformance::run(make, &conformance::Options::default());
//! ```
//! The maker is called for a fresh device again and again, on the caller's thread; each device is removed before the next one is
//! made. Reactors run on threads of their own, and the suite goes through the [`Registry`] as doors do.
//!
//! | way | what is different |
//! |---|---|
//! | [`Way::Home`] | from the device's home |
//! | [`Way::Two`] | from two reactors at once |
//! | [`Way::Split`] | limits so small that most I/O is cut to pieces |
//! | [`Way::Forward`] | not concurrent: from a reactor that is not its home, and from both |
//!
//! A device with zones has scenarios of its own: it cannot be written anywhere.

mod altered;
mod effects;
mod extents;
mod races;
mod random;
mod rig;
mod zoned;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use hugepages::{Arena, ArenaOptions, HugepagePolicy};

use super::contract::{BlockDevice, OpSet, Traits};
use super::handle::Handle;
use super::registry::{Claim, Event, Mode, Registry};
use crate::reactor::Idle;
use crate::reactor::clock::Entropy;
use crate::reactor::io::{IoOp, IoStatus};
use crate::reactor::mailbox::Remote;
use crate::reactor::start::Reactors;
use crate::sys::affinity::allowed_cores;
use altered::Altered;
use rig::{Ask, Outcome, Rig};

/// How a device is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From its home.
    Home,
    /// From two reactors.
    Two,
    /// Behind limits that cut most I/O to pieces.
    Split,
    /// By messages to its home.
    Forward,
}

/// A part of a scenario and the reactor it runs on.
type Part<F> = (usize, Box<dyn FnOnce(Rig) -> F + Send>);

/// What the suite is told about a device.
#[derive(Clone, Debug)]
pub struct Options {
    /// The ways to try.
    pub ways: Vec<Way>,
    /// A larger size that the device can grow to, in bytes; `None`: it cannot.
    pub grow_to: Option<u64>,
    /// The device has a block at this byte that cannot be read, and 200 blocks on both sides of it: what becomes of that is all that is
    /// looked at.
    pub unreadable: Option<u64>,
    /// The seed of everything random, to play a failure again; `None`: a new one.
    pub seed: Option<u64>,
    /// Random operations on each reactor.
    pub random_ops: usize,
    /// Compare and writes of each task that counts by them, and plain writes that race them.
    pub races: u64,
    /// What takes longer hangs.
    pub limit: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            ways: vec![Way::Home, Way::Two, Way::Split, Way::Forward],
            grow_to: None,
            unreadable: None,
            seed: None,
            random_ops: 400,
            races: 50,
            limit: Duration::from_secs(60),
        }
    }
}

/// What a device did wrong.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The device.
    pub driver: String,
    /// How it was reached.
    pub way: Way,
    /// The scenario.
    pub scenario: &'static str,
    /// What was expected and what was found.
    pub what: String,
    /// Plays it again.
    pub seed: u64,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { driver, way, scenario, what, seed } = self;
        write!(f, "{driver}, {way:?}, {scenario}: {what} (seed {seed:#x})")
    }
}

/// Runs the suite on the devices that `make` makes.
///
/// # Panics
/// With the [`Failure`], at the first thing that is wrong.
pub fn run(make: impl Fn() -> Arc<dyn BlockDevice>, options: &Options) {
    if let Err(failure) = check(make, options) {
        panic!("{failure}");
    }
}

/// As [`run`], for who wants to look at the failure.
///
/// # Errors
/// The first thing that is wrong.
///
/// # Panics
/// If reactors cannot be started.
pub fn check(make: impl Fn() -> Arc<dyn BlockDevice>, options: &Options) -> Result<(), Failure> {
    check_with(|_| make(), |_| {}, options)
}

/// As [`run`], for devices that are made of something which lives on the suite's reactors, and `end`s with the last of them.
///
/// # Panics
/// With the [`Failure`], at the first thing that is wrong.
pub fn run_with(make: impl Fn(&[Remote]) -> Arc<dyn BlockDevice>, end: impl FnOnce(&[Remote]), options: &Options) {
    if let Err(failure) = check_with(make, end, options) {
        panic!("{failure}");
    }
}

fn check_with(
    make: impl Fn(&[Remote]) -> Arc<dyn BlockDevice>,
    end: impl FnOnce(&[Remote]),
    options: &Options,
) -> Result<(), Failure> {
    let seed = options.seed.unwrap_or_else(|| Entropy::seed_from_kernel().unwrap_or(1));
    let cores = allowed_cores().expect("an affinity mask");
    let pair = [cores[0], cores.get(1).copied().unwrap_or(cores[0])];
    let arena = Arena::new(ArenaOptions { size: ARENA, hugepages: HugepagePolicy::Off, numa_node: None });
    let mut reactors = Reactors::start(&pair, Idle::Adaptive, arena.expect("an arena")).expect("two reactors");
    reactors.feed().expect("memory for two reactors");
    let registry = Registry::new(reactors.remotes().to_vec());
    let (driver, scenario) = (RefCell::default(), Cell::new("start"));
    let mut outcome = Ok(());
    let mut last = Way::Home;
    for &way in &options.ways {
        last = way;
        let remotes = reactors.remotes();
        let suite = Suite {
            way,
            make: &make,
            options,
            seed,
            remotes,
            registry: &registry,
            driver: &driver,
            scenario: &scenario,
        };
        outcome = suite.all();
        if outcome.is_err() {
            break;
        }
    }
    end(reactors.remotes());
    let leaked = reactors.stop();
    if outcome.is_ok() && leaked > 0 {
        outcome = Err(format!("{leaked} buffers never came home"));
    }
    outcome.map_err(|what| Failure { driver: driver.take(), way: last, scenario: scenario.get(), what, seed })
}

/// Limits of [`Way::Split`]: a piece is a few blocks, and boundaries lie across that.
fn tiny_limits(traits: &mut Traits) {
    let block = u64::from(traits.block_size);
    traits.limits.transfer_max = traits.limits.transfer_max.min(24 * block);
    traits.limits.zeroes_max = traits.limits.zeroes_max.min(50 * block);
    traits.limits.verify_max = traits.limits.verify_max.min(40 * block);
    traits.limits.boundary = 64 * block;
}

/// One way through the suite.
struct Suite<'a> {
    way: Way,
    make: &'a dyn Fn(&[Remote]) -> Arc<dyn BlockDevice>,
    options: &'a Options,
    seed: u64,
    remotes: &'a [Remote],
    registry: &'a Registry,
    driver: &'a RefCell<String>,
    scenario: &'a Cell<&'static str>,
}

impl Suite<'_> {
    /// The reactor that single scenarios run on.
    fn main(&self) -> usize {
        usize::from(matches!(self.way, Way::Two | Way::Forward))
    }

    fn make(&self, alter: impl FnOnce(&mut Traits)) -> Result<Claim, String> {
        let device = (self.make)(self.remotes);
        self.driver.replace(device.common().traits().driver.to_owned());
        let way = self.way;
        let device: Arc<dyn BlockDevice> = Arc::new(Altered::new(device, |traits| {
            match way {
                Way::Home | Way::Two => {}
                Way::Split => tiny_limits(traits),
                Way::Forward => traits.concurrent = false,
            }
            alter(traits);
        }));
        let name = device.common().traits().name.clone();
        self.registry.add(device, Vec::new()).map_err(|error| error.to_string())?;
        self.registry.claim(&name, Mode::Shared, "the suite").map_err(|error| error.to_string())
    }

    fn remove(&self, claim: Claim) -> Outcome {
        let name = claim.device().common().traits().name.clone();
        drop(claim);
        self.registry.remove(&name, self.options.limit).map_err(|error| error.to_string())
    }

    /// Runs a scenario on one reactor, or several at once.
    fn on<F: Future<Output = Outcome> + 'static>(
        &self,
        claim: &Claim,
        what: &'static str,
        parts: Vec<Part<F>>,
    ) -> Outcome {
        self.scenario.set(what);
        let (sender, ends) = mpsc::channel();
        let count = parts.len();
        for (reactor, part) in parts {
            let (sender, device, seed) = (sender.clone(), claim.device().clone(), self.seed + reactor as u64);
            self.remotes[reactor].send(Box::new(move |reactor| {
                let handle = match Handle::open(reactor, &device) {
                    Ok(handle) => handle,
                    Err(error) => {
                        let _ = sender.send(Err(error.to_string()));
                        return;
                    }
                };
                let keeps = !handle.common().traits().keeps_nothing;
                let body = part(Rig { handle, seed, keeps });
                reactor.spawn("conformance", async move {
                    // Nobody listens any more if another part failed or hung.
                    let _ = sender.send(body.await);
                });
            }));
        }
        drop(sender);
        for _ in 0..count {
            match ends.recv_timeout(self.options.limit) {
                Ok(outcome) => outcome?,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    return Err(format!("did not end within {:?}", self.options.limit));
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => return Err("a reactor panicked".to_owned()),
            }
        }
        Ok(())
    }

    fn one<F: Future<Output = Outcome> + 'static>(
        &self,
        claim: &Claim,
        what: &'static str,
        scenario: impl FnOnce(Rig) -> F + Send + 'static,
    ) -> Outcome {
        self.on(claim, what, vec![(self.main(), Box::new(scenario))])
    }

    /// The same scenario on both reactors at once.
    fn both<F: Future<Output = Outcome> + 'static>(
        &self,
        claim: &Claim,
        what: &'static str,
        scenario: impl FnOnce(Rig) -> F + Clone + Send + 'static,
    ) -> Outcome {
        self.on(claim, what, vec![(0, Box::new(scenario.clone())), (1, Box::new(scenario))])
    }

    fn all(&self) -> Outcome {
        let claim = self.make(|_| {})?;
        if let Some(bad) = self.options.unreadable {
            self.one(&claim, "unreadable", move |rig| effects::unreadable(rig, bad))?;
            return self.remove(claim);
        }
        if claim.device().common().traits().zones.is_some() {
            return self.all_of_zones(claim);
        }
        self.one(&claim, "fresh", effects::fresh)?;
        self.one(&claim, "writes", effects::writes)?;
        self.one(&claim, "zeroes", effects::zeroes)?;
        self.one(&claim, "compare", effects::compare)?;
        self.one(&claim, "compare and write", effects::compare_and_write)?;
        self.one(&claim, "verify", effects::verify)?;
        self.one(&claim, "extents", extents::extents)?;
        self.one(&claim, "segments", effects::segments)?;
        self.one(&claim, "atomic writes", effects::atomic_writes)?;
        self.one(&claim, "bounds", effects::bounds)?;
        self.one(&claim, "reset", races::reset)?;
        let (count, window) = (self.options.random_ops, claim.device().common().size().min(WINDOW));
        self.one(&claim, "random", move |rig| random::run(rig, count, 0, window))?;
        if matches!(self.way, Way::Two | Way::Forward) {
            self.on_both(&claim)?;
        }
        self.counting(&claim)?;
        self.wholeness(&claim)?;
        if let Some(size) = self.options.grow_to {
            self.growth(&claim, size)?;
        }
        self.closing(claim)?;
        self.refusals()
    }

    fn all_of_zones(&self, claim: Claim) -> Outcome {
        self.one(&claim, "fresh zones", zoned::fresh)?;
        self.one(&claim, "refusals of zones", zoned::refusals)?;
        self.one(&claim, "verify of zones", zoned::verify)?;
        let count = self.options.random_ops;
        self.one(&claim, "random on zones", move |rig| zoned::random(rig, count))?;
        self.one(&claim, "zones emptied", |rig| async move {
            rig.expect(Ask::new(IoOp::ZoneReset, 0, rig.size()), &[], IoStatus::Success).await.map(drop)
        })?;
        let reactors = if matches!(self.way, Way::Two | Way::Forward) {
            self.both(&claim, "appends together", zoned::append)?;
            2
        } else {
            self.one(&claim, "appends together", zoned::append)?;
            1
        };
        self.one(&claim, "appends together", move |rig| zoned::appended(rig, reactors))?;
        self.one(&claim, "reset among appends", zoned::reset)?;
        self.closing(claim)?;
        self.refusals()
    }

    /// Both reactors at once: apart, and on the same blocks.
    fn on_both(&self, claim: &Claim) -> Outcome {
        let common = claim.device().common();
        let block = u64::from(common.traits().block_size);
        let half = common.size().min(2 * WINDOW) / 2 / block * block;
        let ops = self.options.random_ops;
        self.both(claim, "random from both", move |rig| {
            let base = half * u64::from(rig.handle.reactor().id());
            random::run(rig, ops, base, half)
        })?;
        // What one has written is there for the other.
        let (seed, len) = (self.seed, 64 * block);
        for (writer, reader) in [(0, 1), (1, 0)] {
            let data = move || rig::pattern(seed + writer as u64, len);
            self.on(
                claim,
                "written by the other",
                vec![(writer, Box::new(move |rig: Rig| async move { rig.write(block, &data()).await }))],
            )?;
            self.on(
                claim,
                "written by the other",
                vec![(
                    reader,
                    Box::new(
                        move |rig: Rig| async move { rig.holds(block, &data(), "written on the other reactor").await },
                    ),
                )],
            )?;
        }
        if !common.traits().ops.has(IoOp::CompareAndWrite) || common.traits().keeps_nothing {
            return Ok(());
        }
        let (over, writes) = (Arc::new(AtomicBool::new(false)), self.options.races);
        self.both(claim, "compare and write against plain writes", move |rig| async move {
            match rig.handle.reactor().id() {
                0 => races::swap(rig, over).await,
                _ => races::write_plainly(rig, writes, over).await,
            }
        })
    }

    /// Compare and write as the only protection of a counter, from as many reactors as the way has.
    fn counting(&self, claim: &Claim) -> Outcome {
        let traits = claim.device().common().traits();
        if !traits.ops.has(IoOp::CompareAndWrite) || traits.keeps_nothing {
            return Ok(());
        }
        const WHAT: &str = "counting by compare and write";
        let (each, block) = (self.options.races, u64::from(traits.block_size));
        self.one(claim, WHAT, move |rig| async move { rig.write(2 * block, &vec![0; 2 * block as usize]).await })?;
        let reactors = if matches!(self.way, Way::Two | Way::Forward) {
            self.both(claim, WHAT, move |rig| races::count(rig, each))?;
            2
        } else {
            self.one(claim, WHAT, move |rig| races::count(rig, each))?;
            1
        };
        self.one(claim, WHAT, move |rig| races::counted(rig, each, reactors))
    }

    /// Atomic writes against reads and each other, from as many reactors as the way has.
    fn wholeness(&self, claim: &Claim) -> Outcome {
        const WHAT: &str = "atomic writes together";
        let traits = claim.device().common().traits();
        if traits.limits.atomic_max == 0 || traits.keeps_nothing {
            return Ok(());
        }
        let each = self.options.races;
        match self.way {
            Way::Two | Way::Forward => self.both(claim, WHAT, move |rig| races::write_atomically(rig, each)),
            Way::Home | Way::Split => self.one(claim, WHAT, move |rig| races::write_atomically(rig, each)),
        }
    }

    /// Growth keeps what is there and adds zeros, and says so.
    fn growth(&self, claim: &Claim, size: u64) -> Outcome {
        let common = claim.device().common();
        let (name, old, block) = (&common.traits().name, common.size(), u64::from(common.traits().block_size));
        let data = rig::pattern(self.seed, 8 * block);
        let (before, after) = (data.clone(), data);
        self.one(claim, "growth", move |rig| async move { rig.write(old - 8 * block, &before).await })?;
        let (sender, events) = mpsc::channel();
        let listener = self.registry.listen(move |event| {
            let _ = sender.send(event.clone());
        });
        let now = self.registry.resize(name, size).map_err(|error| error.to_string())?;
        drop(listener);
        let told: Vec<Event> = events.iter().collect();
        rig::ensure!(now >= size && common.size() == now, "grown to {size}, it says {now} and {}", common.size());
        rig::ensure!(told == [Event::Resized(name.clone(), now)], "growth was announced by {told:?}");
        self.one(claim, "growth", move |rig| async move {
            let mut expected = after;
            rig.holds(old - 8 * block, &expected, "after growth, before the old end").await?;
            rig.holds(old, &vec![0; 8 * block as usize], "after growth, behind the old end").await?;
            rig.holds(now - block, &vec![0; block as usize], "after growth, the last block").await?;
            expected.extend(rig::pattern(rig.seed + 9, 8 * block));
            rig.write(old - 8 * block, &expected).await?;
            rig.holds(old - 8 * block, &expected, "written across the old end").await?;
            rig.expect(Ask::new(IoOp::Read, now, block), &vec![0; block as usize], IoStatus::OutOfRange).await?;
            Ok(())
        })?;
        match self.registry.resize(name, old) {
            Err(_) if common.size() == now => Ok(()),
            other => Err(format!("asked to shrink, it answers {other:?} and has {} bytes", common.size())),
        }
    }

    /// A closed device refuses with `Gone`, and its removal ends everywhere.
    fn closing(&self, claim: Claim) -> Outcome {
        let name = claim.device().common().traits().name.clone();
        self.one(&claim, "closing", |rig| async move {
            // Left in flight: the closing comes upon it.
            for index in 0..8 {
                let rig = rig.clone();
                rig.handle.reactor().clone().spawn("conformance closing", async move {
                    let data = vec![1; rig.block() as usize];
                    let ask = Ask::new(IoOp::Write, index * rig.block(), rig.block());
                    // Whichever way it ends: that it ends is what the removal waits for.
                    let _ = rig.run(ask, &data).await;
                });
            }
            // They have been submitted when this goes on.
            rig.handle.reactor().yield_now().await;
            rig.handle.reactor().yield_now().await;
            Ok(())
        })?;
        self.registry.close(&name, self.options.limit).map_err(|error| error.to_string())?;
        self.one(&claim, "closing", |rig| async move {
            for op in IoOp::ALL.into_iter().filter(|&op| rig.has(op) && op != IoOp::Reset) {
                let len = if op.has_range() { rig.block() } else { 0 };
                let data = vec![2; op.data_len(len) as usize];
                let done = rig.expect(Ask::new(op, 0, len), &data, IoStatus::Gone).await?;
                rig::ensure!(done.data == data, "{op:?} on a closed device changed its data");
            }
            Ok(())
        })?;
        self.remove(claim)
    }

    /// Read-only, and what the device cannot do.
    fn refusals(&self) -> Outcome {
        for (read_only, status) in [(true, IoStatus::ReadOnly), (false, IoStatus::Unsupported)] {
            // Of its extents each device says something.
            let can = |op: &IoOp| matches!(op, IoOp::Read | IoOp::Flush | IoOp::Reset | IoOp::Extents);
            let claim = self.make(|traits| {
                traits.read_only = read_only;
                if !read_only {
                    traits.ops = IoOp::ALL.into_iter().filter(|op| !can(op)).fold(traits.ops, OpSet::without);
                }
            })?;
            self.one(&claim, "refusals", move |rig| async move {
                let block = rig.block();
                for op in IoOp::ALL {
                    let refused = if read_only { op.writes() && rig.has(op) } else { !can(&op) };
                    let len = if op.has_range() { block } else { 0 };
                    if refused {
                        let data = vec![0xEE; op.data_len(len) as usize];
                        rig.expect(Ask::new(op, 0, len), &data, status).await?;
                    }
                }
                rig.holds(0, &vec![0; block as usize], "after refused operations").await
            })?;
            self.remove(claim)?;
        }
        Ok(())
    }
}

/// Bytes of DMA memory of the suite's two reactors: what the random operations have in flight, twice.
const ARENA: usize = 64 << 20;

/// Bytes that the random operations work on.
const WINDOW: u64 = 4 << 20;

#[cfg(test)]
mod tests;
