//! What this machine gives at best, to hold speed against: copies of memory, calls of the kernel, a wake from sleep,
//! and plain busy loops over loopback. `scripts/bench` runs it; by hand `cargo bench --bench ceiling -- --help`.
//!
//! Each run measures one thing and prints one JSON object. Nothing of the data plane takes part.

mod loops;
mod machine;

use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Measures one thing for a while and prints it as JSON.
#[derive(Parser)]
#[command(name = "ceiling")]
struct Cli {
    /// Seconds
    #[arg(long, default_value_t = 1.0, global = true)]
    time: f64,
    /// What `cargo bench` adds.
    #[arg(long, hide = true, global = true)]
    bench: bool,
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Copies of memory by one thread
    Memcpy {
        /// Bytes of one copy
        #[arg(long, default_value_t = 4096)]
        block: usize,
        /// From random places of this many bytes; 0: always the same ones
        #[arg(long, default_value_t = 0)]
        random: usize,
        #[arg(long, default_value_t = 1)]
        core: usize,
    },
    /// A call of the kernel that does nothing
    Syscall {
        #[arg(long, default_value_t = 1)]
        core: usize,
    },
    /// From the wake of a thread that sleeps on another core until it runs
    Wake {
        #[arg(long, default_value_t = 0)]
        sleeper: usize,
        #[arg(long, default_value_t = 1)]
        core: usize,
    },
    /// A thread that answers and one that asks, both spinning on plain non-blocking sockets of loopback
    Loop(Loop),
}

/// Which way the payload goes.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Direction {
    /// 72 bytes up, 24 and the payload down.
    Read,
    /// 72 bytes and the payload up, 24 down.
    Write,
}

/// A plain loop.
#[derive(clap::Args)]
struct Loop {
    /// Which way the payload goes
    #[arg(long, value_enum, default_value = "read")]
    op: Direction,
    /// Bytes of payload
    #[arg(long, default_value_t = 4096)]
    block: usize,
    /// Requests in flight on each connection
    #[arg(long, default_value_t = 1)]
    depth: usize,
    /// Connections
    #[arg(long, default_value_t = 1)]
    connections: usize,
    /// The server's payload has random places in this many bytes; 0: always the same one
    #[arg(long, default_value_t = 0)]
    random: usize,
    /// Core that answers
    #[arg(long, default_value_t = 0)]
    server: usize,
    /// Core that asks
    #[arg(long, default_value_t = 1)]
    client: usize,
}

/// Percentiles in microseconds of nanoseconds counted.
fn latency_us(counted: &Histogram<u64>) -> Value {
    let us = |quantile| (counted.value_at_quantile(quantile) as f64 / 10.0).round() / 100.0;
    json!({ "p50": us(0.5), "p99": us(0.99), "p99_9": us(0.999) })
}

/// Nanoseconds, from 1 to a minute, with two digits.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 2).expect("bounds that it accepts")
}

/// A chain of numbers that do not follow a pattern the machine could foresee.
struct Random(u64);

impl Random {
    /// A multiple of `unit` below `bound - unit`.
    fn place(&mut self, bound: usize, unit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * (bound / unit) as u128) >> 64) as usize * unit
    }
}

/// Memory that is all there, no page of it shared with another, at a page's start: what begins a few bytes behind it
/// is copied ten times slower by some processors.
struct Memory {
    all: Vec<u8>,
    start: usize,
    len: usize,
}

impl Memory {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.all[self.start..self.start + self.len]
    }
}

fn memory(len: usize) -> Memory {
    const PAGE: usize = 4096;
    let mut all = vec![1; len + PAGE];
    all.iter_mut().step_by(PAGE).enumerate().for_each(|(page, byte)| *byte = page as u8);
    let start = all.as_ptr().align_offset(PAGE);
    Memory { all, start, len }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let cli = Cli::parse();
    let time = Duration::from_secs_f64(cli.time);
    let found = match cli.what {
        What::Memcpy { block, random, core } => machine::memcpy(time, block, random, core)?,
        What::Syscall { core } => machine::syscall(time, core)?,
        What::Wake { sleeper, core } => machine::wake(time, sleeper, core)?,
        What::Loop(plain) => loops::run(time, &plain)?,
    };
    println!("{found}");
    Ok(())
}
