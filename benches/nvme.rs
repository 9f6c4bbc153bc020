//! What this program's own NVMe driver costs per I/O, on the controller in software: `cargo bench --bench nvme`, with a part of a line's
//! name for only those lines. Prints a table, judges nothing; with `--json` a line of JSON for each, for `scripts/bench`, with `--rounds=N`
//! another number of rounds than 21.
//!
//! One thread, 4 KiB random reads of a namespace that was never written, the controller worked between turns of the same thread. The time
//! within the controller, which fetches, fills 4 KiB and posts, is measured apart, and taken off: what is left is the load generator, the
//! block layer and the driver. The same on the null device, which has no driver, is the line to compare with.

#[expect(dead_code, reason = "not all of them are driven here")]
mod devices;

use std::cell::Cell;
use std::rc::Rc;

use devices::{Disk, null, on_cpu, spawn, until};
use reactor::bdev::Handle;
use reactor::bdev::device::null::CompleteIn;
use reactor::bdev::load::{self, Job, Pattern};
use reactor::nvme::pcie::fake::{Counters, FakeOptions};
use reactor::reactor::Reactor;
use reactor::reactor::start::solo;
use reactor::sys::tsc::Tsc;
use serde_json::json;

const NS: u64 = 100_000_000;
const ROUNDS: usize = 21;

/// What one line is about.
struct Bench {
    reactor: Rc<Reactor>,
    volume: Rc<Handle>,
    disk: Option<Disk>,
}

impl Bench {
    fn null() -> Bench {
        let reactor = solo(64 << 20).expect("a reactor");
        let volume = Rc::new(Handle::open(&reactor, &null(CompleteIn::Poll)).expect("an open device"));
        Bench { reactor, volume, disk: None }
    }

    fn nvme(shadow_doorbells: bool) -> Bench {
        let reactor = solo(64 << 20).expect("a reactor");
        let timed = Some(Tsc::calibrate());
        let disk = Disk::open(&reactor, FakeOptions { timed, shadow_doorbells, ..FakeOptions::default() });
        let volume = Rc::new(Handle::open(&reactor, &disk.volume).expect("an open device"));
        Bench { reactor, volume, disk: Some(disk) }
    }

    fn counters(&self) -> Counters {
        self.disk.as_ref().map(|disk| disk.port.counters()).unwrap_or_default()
    }

    fn turn(&self) {
        match &self.disk {
            Some(disk) => disk.turn(&self.reactor),
            None => {
                self.reactor.turn();
            }
        }
    }

    /// Nanoseconds of an I/O that are not the controller's, and those that are, and doorbells of both kinds.
    fn round(&self, depth: usize, pattern: Pattern) -> [f64; 4] {
        let job = Job { pattern, block: 4096, depth, ns: NS };
        let (here, volume, before, counted) = (self.reactor.clone(), self.volume.clone(), on_cpu(), self.counters());
        let ended = spawn(&self.reactor, async move {
            load::run(&here, volume, job, Rc::new(Cell::new(false)), Rc::new(Cell::new(0))).await
        });
        let outcome = until(&ended, || self.turn());
        assert_eq!(outcome.errors, 0);
        let (spent, now, ios) = (on_cpu() - before, self.counters(), outcome.ios as f64);
        let controller = (now.spent_ns - counted.spent_ns) as f64;
        let doorbells = |now: u64, before: u64| (now - before) as f64 / ios;
        [
            (spent - controller) / ios,
            controller / ios,
            doorbells(now.sq_doorbells, counted.sq_doorbells),
            doorbells(now.cq_doorbells, counted.cq_doorbells),
        ]
    }

    fn end(self) {
        drop(self.volume);
        if let Some(disk) = self.disk {
            disk.close(&self.reactor);
        }
        self.reactor.shut_down();
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let as_json = words.iter().any(|word| word == "--json");
    let rounds = words.iter().find_map(|word| word.strip_prefix("--rounds=")).map_or(ROUNDS, |number| {
        number.parse().ok().filter(|rounds| *rounds > 0).expect("--rounds=N: a number of rounds, at least 1")
    });
    let wanted = words.iter().find(|word| !word.starts_with("--")).cloned().unwrap_or_default();
    if !as_json {
        println!(
            "{:<36} {:>8} {:>12} {:>12} {:>8} {:>8}",
            "per I/O", "ns", "of a driver", "controller", "SQ bells", "CQ bells"
        );
    }
    let null = Bench::null();
    let makes: [(&str, &dyn Fn() -> Bench); 2] =
        [("registers", &|| Bench::nvme(false)), ("shadow doorbells", &|| Bench::nvme(true))];
    for (way, make) in makes {
        for (what, pattern) in [("read", Pattern::RandRead), ("write", Pattern::RandWrite)] {
            for depth in [1, 32, 128] {
                let name = format!("4k {what}, depth {depth}, {way}");
                if !name.contains(&wanted) {
                    continue;
                }
                let bench = make();
                // In turns: the machine is the same for both.
                let rounds: Vec<_> =
                    (0..rounds).map(|_| (bench.round(depth, pattern), null.round(depth, pattern))).collect();
                let of = |part: usize| median(rounds.iter().map(|(here, _)| here[part]));
                let driver = median(rounds.iter().map(|(here, there)| here[0] - there[0]));
                let (ns, controller, sq, cq) = (of(0), of(1), of(2), of(3));
                if as_json {
                    let line = json!({"name": name, "ns": ns, "driver_ns": driver, "controller_ns": controller,
                        "sq_doorbells": sq, "cq_doorbells": cq});
                    println!("{line}");
                } else {
                    println!("{name:<36} {ns:>8.1} {driver:>12.1} {controller:>12.1} {sq:>8.3} {cq:>8.3}");
                }
                bench.end();
            }
        }
    }
    null.end();
}
