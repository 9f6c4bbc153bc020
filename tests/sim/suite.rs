//! Which seeds run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use reactor::reactor::clock::Entropy;
use reactor::reactor::io::{IoOp, IoStatus};

use super::model::Crash;
use super::plan::{Finish, Plan};
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
    }

    fn count(&self, op: IoOp, status: IoStatus) -> u64 {
        self.answers.get(&(op as u8, status as u8)).copied().unwrap_or(0)
    }

    fn print(&self) {
        let Total { worlds, turns, lost, injected, aborted, ends: [power, process, drain], .. } = self;
        println!("{worlds} worlds, {turns} turns; power failed {power} times, {process} kills, {drain} shutdowns");
        println!("{lost} attempts failed, {injected} I/Os failed by rules, {aborted} aborted");
        for op in IoOp::ALL.into_iter().filter(|op| *op != IoOp::Reset && !op.is_of_zones()) {
            let all: u64 = self.answers.range((op as u8, 0)..=(op as u8, u8::MAX)).map(|(_, count)| count).sum();
            println!("{op:?}: {all}, {} with success", self.count(op, IoStatus::Success));
        }
    }
}

/// Runs seeds, and checks that they were about something.
fn seeds(range: std::ops::Range<u64>) {
    let mut total = Total::default();
    range.for_each(|seed| total.run(seed));
    total.print();
    for op in IoOp::ALL.into_iter().filter(|op| *op != IoOp::Reset && !op.is_of_zones()) {
        assert!(total.count(op, IoStatus::Success) > total.worlds, "{op:?} is rare");
    }
    for op in [IoOp::Compare, IoOp::CompareAndWrite] {
        assert!(total.count(op, IoStatus::Miscompare) > total.worlds / 4, "{op:?} never differs");
    }
    assert!(total.ends.iter().all(|count| *count > total.worlds / 50), "crashes are rare: {:?}", total.ends);
    assert!(total.lost > total.worlds / 4 && total.injected > total.worlds / 4, "trouble is rare");
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

/// Seeds that have found something, each named with it.
#[test]
fn seeds_that_found_something() {
    // A reactor that ended with connections open kept them and their buffers.
    run(6);
}

#[test]
fn the_same_seed_does_the_same() {
    for seed in 1000..1010 {
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

/// New seeds for as many seconds as `REACTOR_SIM_SECONDS` says, from `REACTOR_SIM_SEED` on if that is set.
#[test]
#[expect(clippy::disallowed_methods, reason = "how long a person wants to wait is no simulated time")]
fn fresh_seeds() {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let seconds = number("REACTOR_SIM_SECONDS").unwrap_or(2);
    let first = number("REACTOR_SIM_SEED").unwrap_or_else(|| Entropy::seed_from_kernel().expect("a seed") >> 16);
    let (started, mut total) = (Instant::now(), Total::default());
    let mut told = Duration::ZERO;
    for seed in first.. {
        total.run(seed);
        if started.elapsed() >= Duration::from_secs(seconds) {
            break;
        }
        if started.elapsed() >= told + Duration::from_secs(60) {
            told = started.elapsed();
            eprintln!("{} s: seeds {first} to {seed} are good", told.as_secs());
        }
    }
    println!("from seed {first}:");
    total.print();
}
