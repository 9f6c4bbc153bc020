//! Serial number arithmetic over 32 bits (RFC 1982), as all sequence numbers of the protocol are compared (RFC 7143 §4.2.2.1).

/// Whether `a` comes before `b`.
pub(super) const fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Whether `low <= n <= high`; an empty window, whose end comes before its begin, holds nothing.
pub(super) const fn within(n: u32, low: u32, high: u32) -> bool {
    !before(n, low) && !before(high, n)
}
