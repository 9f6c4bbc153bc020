//! Which seeds run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use reactor::reactor::clock::Entropy;
use reactor::reactor::io::{IoOp, IoStatus};

use super::drive::Totals;
use super::model::Crash;
use super::plan::{DRIVE_SEEDS, Finish, ISCSI_SEEDS, Plan};
use super::scenario::{Outcome, run, run_plan};

/// What seeds came to together.
#[derive(Default)]
struct Total {
    worlds: u64,
    turns: u64,
    lost: u64,
    injected: u64,
    aborted: u64,
    /// Rounds that ended by a loss of power, of the process, and in order with hosts at work.
    ends: [u64; 3],
    answers: BTreeMap<(u8, u8), u64>,
    /// Of the worlds with an NVMe drive.
    drives: u64,
    drive: Totals,
}

impl Total {
    fn run(&mut self, seed: u64) {
        let plan = Plan::of(seed);
        for finish in &plan.rounds {
            match finish {
                Finish::Done => {}
                Finish::Crash(Crash::Power) => self.ends[0] += 1,
                Finish::Crash(Crash::Process) => self.ends[1] += 1,
                Finish::Drain => self.ends[2] += 1,
            }
        }
        self.drives += u64::from(plan.drive.is_some());
        self.add(&run_plan(plan));
    }

    fn add(&mut self, outcome: &Outcome) {
        self.worlds += 1;
        self.turns += outcome.turns;
        self.lost += outcome.lost;
        self.injected += outcome.injected;
        self.aborted += outcome.aborted;
        for (kind, count) in &outcome.answers {
            *self.answers.entry(*kind).or_default() += count;
        }
        self.drive += outcome.drive;
    }

    fn count(&self, op: IoOp, status: IoStatus) -> u64 {
        self.answers.get(&(op as u8, status as u8)).copied().unwrap_or(0)
    }

    fn print(&self) {
        let Total { worlds, turns, lost, injected, aborted, ends: [power, process, drain], .. } = self;
        println!("{worlds} worlds, {turns} turns; power failed {power} times, {process} kills, {drain} shutdowns");
        println!("{lost} attempts failed, {injected} I/Os failed by rules, {aborted} aborted");
        if self.drives > 0 {
            println!("{} NVMe drives: {:?}", self.drives, self.drive);
        }
        for op in IoOp::ALL.into_iter().filter(|op| goes_over_nvme(*op)) {
            let all: u64 = self.answers.range((op as u8, 0)..=(op as u8, u8::MAX)).map(|(_, count)| count).sum();
            println!("{op:?}: {all}, {} with success", self.count(op, IoStatus::Success));
        }
    }
}

/// Whether hosts ask for it by commands to volumes without zones.
fn goes_over_nvme(op: IoOp) -> bool {
    !matches!(op, IoOp::Reset | IoOp::Extents) && !op.is_of_zones()
}

/// Runs seeds, and checks that they were about something.
fn seeds(range: std::ops::Range<u64>) -> Total {
    let mut total = Total::default();
    range.for_each(|seed| total.run(seed));
    total.print();
    for op in IoOp::ALL.into_iter().filter(|op| goes_over_nvme(*op)) {
        assert!(total.count(op, IoStatus::Success) > total.worlds, "{op:?} is rare");
    }
    for op in [IoOp::Compare, IoOp::CompareAndWrite] {
        assert!(total.count(op, IoStatus::Miscompare) > total.worlds / 4, "{op:?} never differs");
    }
    assert!(total.ends.iter().all(|count| *count > total.worlds / 50), "crashes are rare: {:?}", total.ends);
    assert!(total.lost > total.worlds / 4 && total.injected > total.worlds / 4, "trouble is rare");
    total
}

/// As [`seeds`], of worlds with an NVMe drive whose seeds have these bits.
fn drives(bits: u64, range: std::ops::Range<u64>) {
    let Total { drives, drive, .. } = seeds(bits + range.start..bits + range.end);
    let Totals { aborts, resets, stale, repeated, faults, losses, dead } = drive;
    assert_eq!(drives, range.end - range.start);
    assert!(faults > drives && aborts > drives / 4 && resets > drives / 4, "trouble is rare: {drive:?}");
    assert!(stale > drives / 10 && repeated > drives / 10, "it has no effect: {drive:?}");
    assert!(losses > drives / 20 && dead > drives / 50, "it is never bad: {drive:?}");
}

#[test]
fn worlds_0_to_149() {
    seeds(0..150);
}

#[test]
fn worlds_150_to_299() {
    seeds(150..300);
}

#[test]
fn worlds_300_to_449() {
    seeds(300..450);
}

#[test]
fn worlds_450_to_599() {
    seeds(450..600);
}

// All in one: a drive that is lost is rare, and of a hundred there may be hardly any.
#[test]
fn drives_0_to_199() {
    drives(DRIVE_SEEDS, 0..200);
}

#[test]
fn iscsi_0_to_149() {
    seeds(ISCSI_SEEDS..ISCSI_SEEDS + 150);
}

#[test]
fn iscsi_150_to_299() {
    seeds(ISCSI_SEEDS + 150..ISCSI_SEEDS + 300);
}

#[test]
fn iscsi_and_drives_0_to_199() {
    drives(ISCSI_SEEDS | DRIVE_SEEDS, 0..200);
}

/// Seeds that have found something, each named with it.
#[test]
fn seeds_that_found_something() {
    // A reactor that ended with connections open kept them and their buffers.
    run(6);
    // One that ended while a helper had an I/O for a namespace kept the queue, and its memory.
    run(DRIVE_SEEDS + 30);
    // A host lost its connection while its controller was being reset: the keep alive timer ran on.
    run(DRIVE_SEEDS + 226);
    // A controller that would not say for a moment what a namespace is was given up.
    run(DRIVE_SEEDS + 1354);
    run(DRIVE_SEEDS + 1378);
    // After a loss of the cache a flush of another host succeeded.
    run(DRIVE_SEEDS + 2038);
    // Data that was on its way from one reactor to another when both ended did not come home.
    run(486_473_510_354_373);
    run(486_473_510_354_589);
    // Answers that nobody asked for were written over others, in completion queues of two entries.
    run(399_148_057_120_327);
    run(551_318_069_265_375);
    run(518_682_700_044_653);
}

#[test]
fn the_same_seed_does_the_same() {
    for seed in (1000..1010).chain(DRIVE_SEEDS + 1000..DRIVE_SEEDS + 1010) {
        let (first, second) = (run(seed), run(seed));
        assert_eq!(first, second, "seed {seed}");
    }
    assert_ne!(run(1000).hash, run(1001).hash);
}

/// The seed that `REACTOR_SIM_SEED` names, with what it was about.
#[test]
fn one_seed() {
    let seed = std::env::var("REACTOR_SIM_SEED").map_or(1, |text| text.parse().expect("a number"));
    let plan = Plan::of(seed);
    println!("{plan:#?}");
    println!("{:#?}", run_plan(plan));
}

/// New seeds for as many seconds as `REACTOR_SIM_SECONDS` says, from `REACTOR_SIM_SEED` on if that is set: in turn without and with an NVMe drive,
/// by NVMe/TCP and by iSCSI, unless the first is of one that has.
#[test]
#[expect(clippy::disallowed_methods, reason = "how long a person wants to wait is no simulated time")]
fn fresh_seeds() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seconds = number("REACTOR_SIM_SECONDS").unwrap_or(2);
    let first = number("REACTOR_SIM_SEED").unwrap_or_else(|| Entropy::seed_from_kernel().expect("a seed") >> 16);
    let (started, mut total) = (Instant::now(), Total::default());
    let mut told = Duration::ZERO;
    for number in first.. {
        let seed =
            number | if number & 1 == 0 { 0 } else { DRIVE_SEEDS } | if number & 2 == 0 { 0 } else { ISCSI_SEEDS };
        total.run(seed);
        if started.elapsed() >= Duration::from_secs(seconds) {
            break;
        }
        if started.elapsed() >= told + Duration::from_secs(60) {
            told = started.elapsed();
            eprintln!("{} s: seeds {first} to {number} are good", told.as_secs());
        }
    }
    println!("from seed {first}:");
    total.print();
}
