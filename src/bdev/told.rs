//! What one who writes to a device has been told of its losses.

/// For so many nanoseconds after the first flush that tells of a loss, others of the same user tell of it as well: somebody may have
/// asked for them before that answer came, and written before. As long as a host waits for an answer before it gives up.
pub const TELLING_NS: u64 = 30_000_000_000;

/// Up to when a user of a device has been told of what it lost ([`Losses`](crate::util::Losses)), by flushes that failed. Times are
/// nanoseconds of the reactors' clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    since: u64,
    /// When a flush has first told of the last loss; 0: none has.
    at: u64,
}

impl Told {
    /// A user who has written nothing before `since`, or was told of everything until then.
    pub const fn new(since: u64) -> Told {
        Told { since, at: 0 }
    }

    /// When a flush has first told of the last loss; 0: none has.
    pub const fn at(self) -> u64 {
        self.at
    }

    /// Whether a flush that began at `start` and ends `now` must tell of a loss that was noted at `loss`. Notes that it does.
    pub fn owes(&mut self, loss: u64, start: u64, now: u64) -> bool {
        let over = self.at > 0 && start >= self.at.saturating_add(TELLING_NS);
        if loss <= if over { self.at.max(self.since) } else { self.since } {
            return false;
        }
        if self.at < loss {
            self.at = now.max(loss);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_is_told_for_a_while() {
        const S: u64 = 1_000_000_000;
        let mut told = Told::new(100 * S);
        assert!(!told.owes(0, 101 * S, 102 * S), "there was none");
        assert!(!told.owes(100 * S, 101 * S, 102 * S), "before its time");
        // It was not asked for anything for a long time.
        assert!(told.owes(110 * S, 500 * S, 501 * S));
        assert_eq!(told.at(), 501 * S);
        assert!(told.owes(110 * S, 109 * S, 502 * S), "begun before the loss");
        assert!(told.owes(110 * S, 530 * S, 540 * S), "perhaps asked for before the answer");
        assert_eq!(told.at(), 501 * S);
        assert!(!told.owes(110 * S, 531 * S, 531 * S));
        assert!(told.owes(600 * S, 601 * S, 602 * S), "the next one");
        assert!(told.owes(600 * S, 602 * S, 603 * S));
        assert!(told.owes(605 * S, 606 * S, 607 * S), "another one meanwhile");
        assert_eq!(told.at(), 607 * S);
        assert!(told.owes(605 * S, 633 * S, 633 * S));
        assert!(!told.owes(605 * S, 637 * S, 637 * S));
    }
}
