//! Which seeds run.

use super::plan::Plan;
use super::scenario::{run, run_plan};

fn seeds(range: std::ops::Range<u64>) {
    for seed in range {
        run(seed);
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
