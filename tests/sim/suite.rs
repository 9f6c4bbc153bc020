//! Which seeds run.

use std::collections::BTreeMap;

use reactor::reactor::io::IoOp;

use super::plan::Plan;
use super::scenario::{Outcome, run, run_plan};

/// Runs seeds and prints what they came to.
fn seeds(range: std::ops::Range<u64>) {
    let mut total = Total::default();
    for seed in range {
        total.add(&run(seed));
    }
    total.print();
}

#[derive(Default)]
struct Total {
    worlds: u64,
    turns: u64,
    lost: u64,
    injected: u64,
    answers: BTreeMap<(u8, u8), u64>,
}

impl Total {
    fn add(&mut self, outcome: &Outcome) {
        self.worlds += 1;
        self.turns += outcome.turns;
        self.lost += outcome.lost;
        self.injected += outcome.injected;
        for (kind, count) in &outcome.answers {
            *self.answers.entry(*kind).or_default() += count;
        }
    }

    fn count(&self, op: IoOp) -> u64 {
        self.answers.range((op as u8, 0)..=(op as u8, u8::MAX)).map(|(_, count)| count).sum()
    }

    fn print(&self) {
        let Total { worlds, turns, lost, injected, .. } = self;
        println!("{worlds} worlds, {turns} turns, {lost} attempts failed, {injected} I/Os failed by rules");
        for op in IoOp::ALL {
            println!("{op:?}: {}, with success {}", self.count(op), self.answers.get(&(op as u8, 0)).unwrap_or(&0));
        }
        println!("{:?}", self.answers);
    }
}

#[test]
fn a_hundred_worlds_keep_their_promises() {
    seeds(0..100);
}

/// The seed that `REACTOR_SIM_SEED` names, with what it was about.
#[test]
fn one_seed() {
    let seed = std::env::var("REACTOR_SIM_SEED").map_or(1, |text| text.parse().expect("a number"));
    let plan = Plan::of(seed);
    println!("{plan:#?}");
    println!("{:#?}", run_plan(plan));
}
