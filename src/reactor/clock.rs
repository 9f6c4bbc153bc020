//! Time and chance, each through one door, so that the simulator can own both.

use std::cell::Cell;
use std::rc::Rc;

use crate::limits::{READING_NS, STAMPS_PER_READING};
use crate::sys::tsc::Tsc;

/// Where time comes from.
#[derive(Clone, Debug)]
pub enum TimeSource {
    /// The processor's counter, in nanoseconds of CLOCK_MONOTONIC.
    Tsc(Tsc),
    /// A simulated time that the simulator advances.
    Sim(Rc<Cell<u64>>),
}

/// A reactor's clock: one reading serves many stamps.
#[derive(Debug)]
pub struct Clock {
    source: TimeSource,
    now: Cell<u64>,
    /// Stamps left until the next reading.
    left: Cell<u32>,
    /// Stamps taken from one reading.
    stamps: Cell<u32>,
}

impl Clock {
    pub(super) fn new(source: TimeSource) -> Clock {
        let clock = Clock { source, now: Cell::new(0), left: Cell::new(0), stamps: Cell::new(STAMPS_PER_READING[0]) };
        clock.refresh();
        clock
    }

    /// Reads the source.
    // Out of line: what takes a stamp seldom comes here, and is shorter without it.
    #[inline(never)]
    pub fn refresh(&self) -> u64 {
        let now = match &self.source {
            TimeSource::Tsc(tsc) => tsc.now_ns(),
            TimeSource::Sim(now) => now.get(),
        };
        self.now.set(now);
        self.left.set(self.stamps.get());
        now
    }

    /// The last reading, in nanoseconds.
    #[inline]
    pub fn now(&self) -> u64 {
        self.now.get()
    }

    /// A latency stamp: the last reading, or a fresh one after so many that one should be some [`READING_NS`] old.
    #[inline]
    pub fn stamp(&self) -> u64 {
        let left = self.left.get();
        if left == 0 {
            return self.refresh_for_stamps();
        }
        self.left.set(left - 1);
        self.now.get()
    }

    #[inline(never)]
    fn refresh_for_stamps(&self) -> u64 {
        let before = self.now.get();
        let served = self.refresh().saturating_sub(before);
        let ([fewest, most], stamps) = (STAMPS_PER_READING, self.stamps.get());
        if served < READING_NS[0] {
            self.stamps.set((stamps * 2).min(most));
        } else if served > READING_NS[1] {
            self.stamps.set((stamps / 2).max(fewest));
        }
        // This stamp is the first of them.
        self.left.set(self.stamps.get() - 1);
        self.now.get()
    }
}

/// A reactor's source of chance (xorshift64*): seeded by the kernel in life, by the seed in a simulation.
#[derive(Debug)]
pub struct Entropy(Cell<u64>);

impl Entropy {
    /// Any seed will do.
    pub fn new(seed: u64) -> Entropy {
        Entropy(Cell::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1))
    }

    /// A seed from the kernel.
    ///
    /// # Errors
    /// If /dev/urandom cannot be read.
    pub fn seed_from_kernel() -> std::io::Result<u64> {
        use std::io::Read;
        let mut bytes = [0; 8];
        std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The next number.
    #[inline]
    pub fn next(&self) -> u64 {
        let mut x = self.0.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `bound`, which is not 0.
    #[inline]
    pub fn below(&self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes stamps that are `ns` apart until their number has settled; the most that one of them is behind then.
    fn behind(ns: u64) -> u64 {
        let time = Rc::new(Cell::new(1));
        let clock = Clock::new(TimeSource::Sim(time.clone()));
        let mut behind = 0;
        for taken in 0..10_000 {
            time.set(time.get() + ns);
            let stamp = clock.stamp();
            if taken >= 1000 {
                behind = behind.max(time.get() - stamp);
            }
        }
        behind
    }

    #[test]
    fn stamps_are_as_fresh_as_their_rate_lets_them_be() {
        let [fewest, most] = STAMPS_PER_READING.map(u64::from);
        for ns in [1, 4, 10, 17, 40, 100, 333, 700, 1500, 100_000] {
            let every = behind(ns) + ns;
            assert!(every <= READING_NS[1].max(fewest * ns), "{ns} ns apart: a reading every {every} ns");
            assert!(every >= READING_NS[0].min(most * ns), "{ns} ns apart: a reading every {every} ns");
        }
    }

    #[test]
    fn a_reading_in_between_serves_stamps_anew() {
        let time = Rc::new(Cell::new(5));
        let clock = Clock::new(TimeSource::Sim(time.clone()));
        for turn in 0..100 {
            time.set(time.get() + 1_000_000);
            assert_eq!(clock.refresh(), time.get());
            assert_eq!(clock.stamp(), time.get(), "turn {turn}");
        }
    }
}
