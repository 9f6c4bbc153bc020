//! What the block layer costs per I/O: `cargo bench --bench layers`, with a part of a line's name for only those lines. Prints a
//! table, judges nothing.

#[expect(dead_code, reason = "not all of them are driven here")]
mod devices;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, mpsc};

use devices::{layer, null, on_cpu, ram};
use hugepages::{Arena, ArenaOptions, HugepagePolicy};
use reactor::bdev::device::null::CompleteIn;
use reactor::bdev::load::{self, Job, Pattern};
use reactor::bdev::{BlockDevice, Handle};
use reactor::reactor::Idle;
use reactor::reactor::start::{Reactors, solo};

const NS: u64 = 400_000_000;
const ROUNDS: usize = 7;

fn layers(device: Arc<dyn BlockDevice>, count: usize) -> Arc<dyn BlockDevice> {
    (0..count).fold(device, |base, _| layer(base))
}

fn job(depth: usize) -> Job {
    Job { pattern: Pattern::RandRead, block: 4096, depth, ns: NS }
}

/// Nanoseconds of this thread per I/O, the best of some rounds.
fn measure(device: &Arc<dyn BlockDevice>, depth: usize) -> f64 {
    let reactor = solo(16 << 20).expect("a reactor");
    let volume = Rc::new(Handle::open(&reactor, device).expect("an open device"));
    let mut best = f64::MAX;
    for _ in 0..ROUNDS {
        let (here, volume) = (reactor.clone(), volume.clone());
        let before = on_cpu();
        let outcome = reactor.run_until(async move {
            load::run(&here, volume, job(depth), Rc::new(Cell::new(false)), Rc::new(Cell::new(0))).await
        });
        assert_eq!(outcome.errors, 0);
        best = best.min((on_cpu() - before) / outcome.ios as f64);
    }
    drop(volume);
    reactor.shut_down();
    best
}

/// Nanoseconds that pass per I/O from a reactor that is not the home of a device that is not concurrent: two cores work on it.
fn measure_forward(depth: usize) -> f64 {
    let options = ArenaOptions { size: 32 << 20, hugepages: HugepagePolicy::Off, numa_node: None };
    let reactors = Reactors::start(&[0, 1], Idle::Adaptive, Arena::new(options).expect("an arena")).expect("reactors");
    let device: Arc<dyn BlockDevice> = Arc::new(AtHome(null(CompleteIn::Submit), common()));
    let (sender, outcomes) = mpsc::channel();
    reactors.remotes()[1].send(Box::new(move |reactor| {
        let volume = Rc::new(Handle::open(reactor, &device).expect("an open device"));
        let here = reactor.clone();
        reactor.spawn("bench", async move {
            for _ in 0..ROUNDS {
                let (stop, done) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
                let outcome = load::run(&here, volume.clone(), job(depth), stop, done).await;
                sender.send(outcome.ns as f64 / outcome.ios as f64).expect("somebody waits");
            }
        });
    }));
    let best = outcomes.iter().fold(f64::MAX, f64::min);
    reactors.stop();
    best
}

/// A null device that is not concurrent.
struct AtHome(Arc<dyn BlockDevice>, reactor::bdev::Common);

fn common() -> reactor::bdev::Common {
    let below = null(CompleteIn::Submit);
    let traits = reactor::bdev::Traits { concurrent: false, ..below.common().traits().clone() };
    reactor::bdev::Common::new(traits, below.common().size(), 0)
}

impl BlockDevice for AtHome {
    fn common(&self) -> &reactor::bdev::Common {
        &self.1
    }

    fn open(
        &self,
        reactor: &Rc<reactor::reactor::Reactor>,
    ) -> Result<Box<dyn reactor::bdev::Channel>, reactor::bdev::DeviceError> {
        self.0.open(reactor)
    }
}

fn main() {
    println!("{:<44} {:>9} {:>9}", "ns per I/O, 4 KiB random reads", "depth 32", "depth 128");
    let wanted = std::env::args().nth(1).filter(|part| !part.starts_with("--")).unwrap_or_default();
    let both = |name: &str, measure: &dyn Fn(usize) -> f64| {
        if !name.contains(&wanted) {
            return;
        }
        println!("{name:<44} {:>9.1} {:>9.1}", measure(32), measure(128));
    };
    for complete in [CompleteIn::Submit, CompleteIn::Poll] {
        for count in [0, 1, 2, 4] {
            let device = layers(null(complete), count);
            both(&format!("null, complete in {complete:?}, {count} layers"), &|depth| measure(&device, depth));
        }
    }
    let device = ram(64 << 20);
    both("RAM, through split", &|depth| measure(&device, depth));
    both("null on another reactor, through forward", &measure_forward);
}
