//! Counters and latency histograms of one device on one reactor.

use std::cell::{Cell, RefCell};

use hdrhistogram::Histogram;

use crate::reactor::io::{IoCell, IoOp, IoStatus};

/// Longest latency told apart: a minute. Longer ones count as that.
const LATENCY_NS_MAX: u64 = 60_000_000_000;
/// Two significant digits: a percentile is right to 1 %, and a histogram fits the second-level cache.
const DIGITS: u8 = 2;

/// What happened with one kind of operation.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpCount {
    /// Completed, failed ones included.
    pub ios: u64,
    /// Bytes of range of those that succeeded.
    pub bytes: u64,
    /// Completed with another status than success (a miscompare counts too).
    pub errors: u64,
}

/// Filled by the reactor that owns it, read by messages.
#[derive(Debug)]
pub struct Stats {
    in_flight: Cell<u32>,
    counts: [Cell<OpCount>; IoOp::ALL.len()],
    read_latency: RefCell<Histogram<u64>>,
    write_latency: RefCell<Histogram<u64>>,
}

/// Latency percentiles in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Latency {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: u64,
    /// 99 of 100 were faster.
    pub p99: u64,
    /// 999 of 1,000 were faster.
    pub p99_9: u64,
}

impl Default for Stats {
    fn default() -> Stats {
        let histogram =
            || RefCell::new(Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS).expect("bounds that it accepts"));
        Stats {
            in_flight: Cell::new(0),
            counts: Default::default(),
            read_latency: histogram(),
            write_latency: histogram(),
        }
    }
}

impl Stats {
    /// Counts an I/O that was taken.
    #[inline]
    pub fn taken(&self) {
        self.in_flight.set(self.in_flight.get() + 1);
    }

    /// I/Os taken and not completed.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.get()
    }

    /// Counts a completed I/O that was taken at `io.start`.
    #[inline]
    pub fn record(&self, io: &IoCell, now: u64) {
        self.in_flight.set(self.in_flight.get().wrapping_sub(1));
        let cell = &self.counts[io.op as usize];
        let mut count = cell.get();
        count.ios += 1;
        if io.status == IoStatus::Success {
            count.bytes += io.len;
        } else {
            count.errors += 1;
        }
        cell.set(count);
        let latency = if io.op == IoOp::Read { &self.read_latency } else { &self.write_latency };
        latency.borrow_mut().saturating_record(now.saturating_sub(io.start).max(1));
    }

    /// What was counted for `op`.
    pub fn count(&self, op: IoOp) -> OpCount {
        self.counts[op as usize].get()
    }

    /// All operations together.
    pub fn total(&self) -> OpCount {
        self.counts.iter().map(Cell::get).fold(OpCount::default(), |sum, c| OpCount {
            ios: sum.ios + c.ios,
            bytes: sum.bytes + c.bytes,
            errors: sum.errors + c.errors,
        })
    }

    /// Latencies of reads and of everything else, merged into `into`.
    pub fn add_latency_to(&self, into: &mut Histogram<u64>) {
        // Same bounds, so adding cannot fail.
        let _ = into.add(&*self.read_latency.borrow());
        let _ = into.add(&*self.write_latency.borrow());
    }

    /// Percentiles of reads, then of everything else.
    pub fn latency(&self) -> (Latency, Latency) {
        (percentiles(&self.read_latency.borrow()), percentiles(&self.write_latency.borrow()))
    }
}

/// An empty histogram to merge into.
pub fn empty_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_NS_MAX, DIGITS).expect("bounds that it accepts")
}

/// The percentiles that reports show.
pub fn percentiles(histogram: &Histogram<u64>) -> Latency {
    Latency {
        mean: histogram.mean(),
        p50: histogram.value_at_quantile(0.50),
        p99: histogram.value_at_quantile(0.99),
        p99_9: histogram.value_at_quantile(0.999),
    }
}
