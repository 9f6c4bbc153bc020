//! Counters and latency histograms of one device on one reactor.

use std::cell::Cell;

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
    taken: Cell<u64>,
    counts: [OpCells; IoOp::ALL.len()],
    read_latency: Latencies,
    write_latency: Latencies,
}

/// [`OpCount`] as it is counted.
#[derive(Debug, Default)]
struct OpCells {
    ios: Cell<u64>,
    bytes: Cell<u64>,
    errors: Cell<u64>,
}

#[inline]
fn add(cell: &Cell<u64>, more: u64) {
    cell.set(cell.get() + more);
}

/// log2 of the buckets per doubling of the latency: each is less than 1 % wide.
const FINE: u32 = 7;
const BUCKETS: usize = bucket_of(LATENCY_NS_MAX) + 1;

/// Which bucket counts a latency: nanoseconds one by one up to 255, then 128 buckets for each doubling.
const fn bucket_of(ns: u64) -> usize {
    if ns < 2 << FINE {
        return ns as usize;
    }
    let shift = ns.ilog2() - FINE;
    ((shift as usize) << FINE) + (ns >> shift) as usize
}

/// The middle of a bucket.
fn latency_of(bucket: usize) -> u64 {
    let shift = (bucket >> FINE).saturating_sub(1) as u32;
    let first = (bucket as u64 - (u64::from(shift) << FINE)) << shift;
    first + (1 << shift) / 2
}

/// Counts of latencies, cheap to add to: reports turn them into a [`Histogram`].
pub(super) struct Latencies(Box<[Cell<u64>; BUCKETS]>);

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies(Box::new([const { Cell::new(0) }; BUCKETS]))
    }
}

impl std::fmt::Debug for Latencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Latencies({})", self.0.iter().map(Cell::get).sum::<u64>())
    }
}

impl Latencies {
    #[inline]
    pub(super) fn count(&self, ns: u64) {
        let cell = &self.0[bucket_of(ns.min(LATENCY_NS_MAX))];
        cell.set(cell.get() + 1);
    }

    pub(super) fn add_to(&self, into: &mut Histogram<u64>) {
        for (bucket, cell) in self.0.iter().enumerate().filter(|(_, cell)| cell.get() > 0) {
            into.saturating_record_n(latency_of(bucket).clamp(1, LATENCY_NS_MAX), cell.get());
        }
    }

    fn percentiles(&self) -> Latency {
        let mut histogram = empty_histogram();
        self.add_to(&mut histogram);
        percentiles(&histogram)
    }
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
        Stats {
            taken: Cell::new(0),
            counts: Default::default(),
            read_latency: Latencies::default(),
            write_latency: Latencies::default(),
        }
    }
}

impl Stats {
    /// Counts an I/O that was taken.
    #[inline]
    pub fn taken(&self) {
        add(&self.taken, 1);
    }

    /// I/Os taken and not completed.
    pub fn in_flight(&self) -> u32 {
        self.taken.get().saturating_sub(self.total().ios) as u32
    }

    /// Counts a completed I/O that was taken at `io.start`.
    #[inline]
    pub fn record(&self, io: &IoCell, now: u64) {
        let count = &self.counts[io.op as usize];
        add(&count.ios, 1);
        if io.status == IoStatus::Success {
            add(&count.bytes, io.len);
        } else {
            add(&count.errors, 1);
        }
        let latency = if io.op == IoOp::Read { &self.read_latency } else { &self.write_latency };
        latency.count(now.saturating_sub(io.start));
    }

    /// What was counted for `op`.
    pub fn count(&self, op: IoOp) -> OpCount {
        let OpCells { ios, bytes, errors } = &self.counts[op as usize];
        OpCount { ios: ios.get(), bytes: bytes.get(), errors: errors.get() }
    }

    /// All operations together.
    pub fn total(&self) -> OpCount {
        IoOp::ALL.iter().map(|op| self.count(*op)).fold(OpCount::default(), |sum, c| OpCount {
            ios: sum.ios + c.ios,
            bytes: sum.bytes + c.bytes,
            errors: sum.errors + c.errors,
        })
    }

    /// Latencies of reads and of everything else, merged into `into`.
    pub fn add_latency_to(&self, into: &mut Histogram<u64>) {
        self.read_latency.add_to(into);
        self.write_latency.add_to(into);
    }

    /// Percentiles of reads, then of everything else.
    pub fn latency(&self) -> (Latency, Latency) {
        (self.read_latency.percentiles(), self.write_latency.percentiles())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_each_other_and_are_less_than_one_percent_wide() {
        assert!((0..100_000).all(|ns| (0..=1).contains(&(bucket_of(ns + 1) - bucket_of(ns)))), "none is left out");
        for ns in (0..100_000).chain((0..36).map(|bit| 1 << bit)).chain([LATENCY_NS_MAX]) {
            let bucket = bucket_of(ns);
            assert!(latency_of(bucket).abs_diff(ns) * 200 <= ns, "{ns} counts as {}", latency_of(bucket));
        }
        assert_eq!(bucket_of(LATENCY_NS_MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_are_those_of_what_was_counted() {
        let buckets = Latencies::default();
        (1..=1000).for_each(|us| buckets.count(us * 1000));
        buckets.count(u64::MAX);
        let latency = buckets.percentiles();
        for (found, expected) in [(latency.p50, 500_000), (latency.p99, 990_000)] {
            assert!(found.abs_diff(expected) < expected / 50, "{latency:?}");
        }
        let mut all = empty_histogram();
        buckets.add_to(&mut all);
        buckets.add_to(&mut all);
        assert_eq!(all.len(), 2002);
        assert!(all.max() >= LATENCY_NS_MAX - LATENCY_NS_MAX / 100);
    }
}
