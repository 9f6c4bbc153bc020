//! Interrupts: vectors that ring reactors, and can be masked.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::faults::{Arrival, Fault};
use super::lock::Lock;
use super::{Inner, count};
use crate::nvme::spec::InterruptCoalescing;
use crate::sys::socket::Doorbell;

#[derive(Debug)]
struct Vector {
    doorbell: Doorbell,
    masked: bool,
    /// One came while it was masked: sent when the mask is taken off (PCI Local Bus 3.0, section 6.8.3.4).
    pending: bool,
}

/// The vectors that somebody listens to.
#[derive(Debug, Default)]
pub(super) struct Interrupts(Lock<BTreeMap<u16, Vector>>);

impl Interrupts {
    /// Nobody listens to any of them any more.
    pub(super) fn forget(&self) {
        self.0.lock().clear();
    }
}

impl Inner {
    /// Vector `vector` rings this doorbell from now on, when it is not masked any more.
    pub(super) fn connect(&self, vector: u16, doorbell: Doorbell) {
        self.interrupts.0.lock().insert(vector, Vector { doorbell, masked: true, pending: false });
    }

    pub(super) fn mask(&self, vector: u16, masked: bool) {
        match self.interrupts.0.lock().get_mut(&vector) {
            Some(its) => {
                its.masked = masked;
                if !masked && std::mem::take(&mut its.pending) {
                    count(&self.counts.interrupts);
                    its.doorbell.ring();
                }
            }
            None => self.breaks(|| format!("vector {vector} was masked, which nobody listens to")),
        }
    }

    /// Until when `count` completions of a vector, the first of which waits since `since`, are to wait for others (Base §5.27.1.6): not that of
    /// the admin queue, nor one for which it is disabled.
    pub(super) fn gathers(&self, vector: u16, count: u32, since: u64, now: u64) -> Option<u64> {
        let its = InterruptCoalescing::of(self.coalescing.load(Ordering::Relaxed));
        let until = since + u64::from(its.micros()) * 1000;
        let waits = vector != 0 && count < u32::from(its.completions()) && now < until;
        (waits && !self.is_told_at_once(vector)).then_some(until)
    }

    /// A completion queue has entries that it has not told of.
    pub(super) fn interrupt(&self, vector: u16) {
        if self.faults.judge(Arrival::Interrupt(vector)).contains(&Fault::Ignore) {
            return;
        }
        match self.interrupts.0.lock().get_mut(&vector) {
            Some(its) if its.masked => {
                its.pending = true;
                return;
            }
            Some(its) => its.doorbell.ring(),
            None => {}
        }
        count(&self.counts.interrupts);
    }
}
