//! Rules of an inject layer, in places that every reactor reads and any thread changes, without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::limits::INJECT_RULES_MAX;
use crate::reactor::io::{IoOp, IoStatus};

/// Which I/Os meet with what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The operation; `None`: all but reset. Rules of reads are of verifies too, which read all of their range.
    pub op: Option<IoOp>,
    /// Which of these I/Os, counted from 1 when the rule is added.
    pub when: When,
    /// How often it fires before it is removed; `None`: for ever.
    pub count: Option<u64>,
    /// What happens then.
    pub action: Action,
}

/// Which I/Os of its operation a rule fires for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// From this one on: 1 is the next.
    From(u64),
    /// Every so many: 1 is each, 2 the second, the fourth, ...
    Every(u64),
}

/// What happens to an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It ends at once with this status; the base does not see it.
    Fail(IoStatus),
    /// It goes on after so many nanoseconds, late by a millisecond at most.
    Delay(u64),
    /// It waits until it is released.
    Hold,
}

/// Names a rule of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleId {
    place: u32,
    /// Rules made in this place before: a name outlives its rule without meaning another.
    generation: u64,
}

/// Why a rule was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// All places are taken.
    #[error("an inject layer has at most {INJECT_RULES_MAX} rules at a time; remove one first")]
    Full,
    /// It would answer success for what was not done.
    #[error("a rule cannot fail an I/O with success: that would acknowledge what was never done")]
    Success,
    /// It can never fire.
    #[error("a rule counts I/Os from 1 and fires at least once: 0 means never")]
    Never,
}

/// One rule: the words below are written before `spec`, which makes it a rule.
#[derive(Debug, Default)]
struct Place {
    /// Operation, trigger, action and status, a byte each from the lowest; 0: no rule.
    spec: AtomicU64,
    number: AtomicU64,
    delay_ns: AtomicU64,
    left: AtomicU64,
    seen: AtomicU64,
    generation: AtomicU64,
}

const ANY_OP: u8 = u8::MAX;
const ENDLESS: u64 = u64::MAX;

const FAIL: u8 = 1;
const DELAY: u8 = 2;
const HOLD: u8 = 3;

/// The rules of one layer.
#[derive(Debug)]
pub(super) struct Rules {
    /// A bit for each place whose rule is in force.
    armed: AtomicU64,
    /// A bit for each place that is taken, in force or not yet.
    taken: AtomicU64,
    places: [Place; INJECT_RULES_MAX],
}

impl Default for Rules {
    fn default() -> Rules {
        Rules { armed: AtomicU64::new(0), taken: AtomicU64::new(0), places: std::array::from_fn(|_| Place::default()) }
    }
}

impl Rules {
    /// Whether there are any.
    #[inline]
    pub(super) fn any(&self) -> bool {
        self.armed.load(Ordering::Relaxed) != 0
    }

    pub(super) fn add(&self, rule: &Rule) -> Result<RuleId, RuleError> {
        let (trigger, number) = match rule.when {
            When::From(number) => (0, number),
            When::Every(number) => (1, number),
        };
        if number == 0 || rule.count == Some(0) {
            return Err(RuleError::Never);
        }
        let (action, status, delay_ns) = match rule.action {
            Action::Fail(IoStatus::Success) => return Err(RuleError::Success),
            Action::Fail(status) => (FAIL, status as u8, 0),
            Action::Delay(ns) => (DELAY, 0, ns),
            Action::Hold => (HOLD, 0, 0),
        };
        let mut taken = self.taken.load(Ordering::Relaxed);
        let index = loop {
            let free = taken.trailing_ones();
            if free as usize >= INJECT_RULES_MAX {
                return Err(RuleError::Full);
            }
            match self.taken.compare_exchange(taken, taken | 1 << free, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => break free,
                Err(now) => taken = now,
            }
        };
        let place = &self.places[index as usize];
        let generation = place.generation.fetch_add(1, Ordering::Relaxed) + 1;
        place.number.store(number, Ordering::Relaxed);
        place.delay_ns.store(delay_ns, Ordering::Relaxed);
        place.left.store(rule.count.unwrap_or(ENDLESS), Ordering::Relaxed);
        place.seen.store(0, Ordering::Relaxed);
        let op = rule.op.map_or(ANY_OP, |op| op as u8);
        let spec = u64::from_le_bytes([op, trigger, action, status, 0, 0, 0, 0]);
        place.spec.store(spec, Ordering::Release);
        self.armed.fetch_or(1 << index, Ordering::Release);
        Ok(RuleId { place: index, generation })
    }

    pub(super) fn remove(&self, rule: RuleId) {
        if self.places[rule.place as usize].generation.load(Ordering::Relaxed) == rule.generation {
            self.disarm(rule.place);
        }
    }

    pub(super) fn clear(&self) {
        (0..INJECT_RULES_MAX as u32).for_each(|index| self.disarm(index));
    }

    /// An I/O that another reactor is judging right now may still be judged by the old rule.
    fn disarm(&self, index: u32) {
        if self.armed.fetch_and(!(1 << index), Ordering::Relaxed) & 1 << index != 0 {
            self.places[index as usize].spec.store(0, Ordering::Relaxed);
            self.taken.fetch_and(!(1 << index), Ordering::Release);
        }
    }

    /// Counts an I/O with every rule that is about it; what the first that fires says.
    pub(super) fn judge(&self, op: IoOp) -> Option<Action> {
        let mut armed = self.armed.load(Ordering::Acquire);
        let mut verdict = None;
        while armed != 0 {
            let index = armed.trailing_zeros();
            armed &= armed - 1;
            let fired = self.places[index as usize].judge(op, verdict.is_none());
            if let Some((action, spent)) = fired {
                verdict = Some(action);
                if spent {
                    self.disarm(index);
                }
            }
        }
        verdict
    }
}

impl Place {
    /// The action, if the rule fires, and whether that was the last time. A rule that another one has outrun only counts.
    fn judge(&self, io_op: IoOp, may_fire: bool) -> Option<(Action, bool)> {
        let [op, trigger, action, status, ..] = self.spec.load(Ordering::Acquire).to_le_bytes();
        let about = match op {
            ANY_OP => io_op != IoOp::Reset,
            op => op == io_op as u8 || op == IoOp::Read as u8 && io_op == IoOp::Verify,
        };
        if action == 0 || !about {
            return None;
        }
        let seen = self.seen.fetch_add(1, Ordering::Relaxed) + 1;
        let number = self.number.load(Ordering::Relaxed);
        let due = if trigger == 0 { seen >= number } else { seen.is_multiple_of(number) };
        if !due || !may_fire {
            return None;
        }
        let action = match action {
            FAIL => Action::Fail(IoStatus::ALL[usize::from(status)]),
            DELAY => Action::Delay(self.delay_ns.load(Ordering::Relaxed)),
            _ => Action::Hold,
        };
        let left = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| match left {
                ENDLESS => Some(ENDLESS),
                left => left.checked_sub(1),
            })
            .ok()?;
        Some((action, left == 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(op: Option<IoOp>, when: When, count: Option<u64>, action: Action) -> Rule {
        Rule { op, when, count, action }
    }

    fn fires(rules: &Rules, ops: &[IoOp]) -> Vec<bool> {
        ops.iter().map(|&op| rules.judge(op).is_some()).collect()
    }

    #[test]
    fn a_rule_fires_for_its_operation_from_its_number_on_as_often_as_it_may() {
        let rules = Rules::default();
        rules.add(&rule(Some(IoOp::Write), When::From(2), Some(2), Action::Hold)).unwrap();
        assert!(rules.any());
        let ops = [IoOp::Write, IoOp::Read, IoOp::Write, IoOp::Flush, IoOp::Write, IoOp::Write];
        assert_eq!(fires(&rules, &ops), [false, false, true, false, true, false]);
        assert!(!rules.any(), "spent");
    }

    #[test]
    fn a_rule_of_reads_is_of_verifies_and_not_the_other_way_round() {
        let rules = Rules::default();
        rules.add(&rule(Some(IoOp::Read), When::From(2), Some(2), Action::Fail(IoStatus::MediaError))).unwrap();
        let ops = [IoOp::Read, IoOp::Compare, IoOp::Verify, IoOp::Write, IoOp::Verify, IoOp::Verify];
        assert_eq!(fires(&rules, &ops), [false, false, true, false, true, false]);
        rules.add(&rule(Some(IoOp::Verify), When::From(1), None, Action::Hold)).unwrap();
        assert_eq!(fires(&rules, &[IoOp::Read, IoOp::Verify]), [false, true]);
    }

    #[test]
    fn every_counts_and_any_spares_resets() {
        let rules = Rules::default();
        rules.add(&rule(None, When::Every(3), None, Action::Delay(5))).unwrap();
        let ops = [IoOp::Write, IoOp::Reset, IoOp::Read, IoOp::Unmap, IoOp::Read, IoOp::Read, IoOp::Compare];
        assert_eq!(fires(&rules, &ops), [false, false, false, true, false, false, true]);
        assert_eq!(rules.judge(IoOp::Reset), None);
    }

    #[test]
    fn the_first_place_acts_and_the_others_count() {
        let rules = Rules::default();
        let first = rules.add(&rule(None, When::From(1), Some(1), Action::Fail(IoStatus::NoSpace))).unwrap();
        rules.add(&rule(None, When::From(2), None, Action::Fail(IoStatus::MediaError))).unwrap();
        assert_eq!(rules.judge(IoOp::Read), Some(Action::Fail(IoStatus::NoSpace)));
        assert_eq!(rules.judge(IoOp::Read), Some(Action::Fail(IoStatus::MediaError)));
        // The name of the spent rule does not remove the one that took its place.
        let second = rules.add(&rule(None, When::From(1), None, Action::Hold)).unwrap();
        assert_eq!(second.place, first.place);
        rules.remove(first);
        assert_eq!(rules.judge(IoOp::Read), Some(Action::Hold));
        rules.remove(second);
        rules.clear();
        assert!(!rules.any());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let rules = Rules::default();
        let refused = |when, count, action| rules.add(&rule(None, when, count, action)).unwrap_err();
        assert_eq!(refused(When::From(0), None, Action::Hold), RuleError::Never);
        assert_eq!(refused(When::Every(0), None, Action::Hold), RuleError::Never);
        assert_eq!(refused(When::From(1), Some(0), Action::Hold), RuleError::Never);
        assert_eq!(refused(When::From(1), None, Action::Fail(IoStatus::Success)), RuleError::Success);
        for _ in 0..INJECT_RULES_MAX {
            rules.add(&rule(None, When::From(1), None, Action::Hold)).unwrap();
        }
        assert_eq!(refused(When::From(1), None, Action::Hold), RuleError::Full);
        rules.clear();
        assert!(rules.add(&rule(None, When::From(1), None, Action::Hold)).is_ok());
    }
}
