//! Memory, calls of the kernel, sleep.

use std::hint::black_box;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use reactor::sys::affinity;
use reactor::sys::tsc::monotonic_ns;
use serde_json::{Value, json};

use super::{Random, histogram, latency_us, memory};

/// How long a thread that has nothing to do is left alone, so that it sleeps soundly, in nanoseconds.
const REST_NS: u64 = 100_000;

/// Runs `step` over and over, and says nanoseconds per run.
fn timed(time: Duration, mut step: impl FnMut()) -> f64 {
    const BATCH: u64 = 256;
    let start = monotonic_ns();
    let mut count = 0;
    loop {
        for _ in 0..BATCH {
            step();
        }
        count += BATCH;
        let ns = monotonic_ns() - start;
        if ns >= time.as_nanos() as u64 {
            return ns as f64 / count as f64;
        }
    }
}

/// Copies to one place, from one or from random ones.
pub fn memcpy(time: Duration, block: usize, random: usize, core: usize) -> io::Result<Value> {
    affinity::pin(core)?;
    let (mut source, mut target) = (memory(random.max(block)), memory(block));
    let (source, target) = (source.bytes(), target.bytes());
    let mut chance = Random(0x9e37_79b9_7f4a_7c15);
    let ns = timed(time, || {
        let place = if random > block { chance.place(random, block) } else { 0 };
        black_box(&mut *target).copy_from_slice(black_box(&source[place..place + block]));
    });
    Ok(json!({ "ns": ns, "gb_per_s": block as f64 / ns }))
}

/// The cheapest call there is that no library answers by itself.
pub fn syscall(time: Duration, core: usize) -> io::Result<Value> {
    affinity::pin(core)?;
    let ns = timed(time, || {
        black_box(std::os::unix::process::parent_id());
    });
    Ok(json!({ "ns": ns, "per_s": 1e9 / ns }))
}

/// A thread sleeps on a futex, another wakes it.
pub fn wake(time: Duration, sleeper: usize, core: usize) -> io::Result<Value> {
    affinity::pin(core)?;
    let (called, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let sleeping = {
        let (called, stop) = (called.clone(), stop.clone());
        std::thread::spawn(move || {
            affinity::pin(sleeper)?;
            let mut took = histogram();
            while !stop.load(Ordering::Acquire) {
                std::thread::park();
                let at = called.swap(0, Ordering::AcqRel);
                // Parking may end by itself.
                if at > 0 {
                    took.saturating_record(monotonic_ns() - at);
                }
            }
            io::Result::Ok(took)
        })
    };
    let start = monotonic_ns();
    let mut cost = histogram();
    while monotonic_ns() - start < time.as_nanos() as u64 && !sleeping.is_finished() {
        let rested = monotonic_ns() + REST_NS;
        while monotonic_ns() < rested {
            std::hint::spin_loop();
        }
        let at = monotonic_ns();
        called.store(at, Ordering::Release);
        sleeping.thread().unpark();
        cost.saturating_record(monotonic_ns() - at);
    }
    stop.store(true, Ordering::Release);
    sleeping.thread().unpark();
    let took = sleeping.join().expect("it does not panic")?;
    Ok(json!({
        "ns": took.value_at_quantile(0.5),
        "latency_us": latency_us(&took),
        "waker_us": latency_us(&cost),
    }))
}
