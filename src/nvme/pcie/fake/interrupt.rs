//! Interrupts: vectors that ring reactors, and can be masked.

use std::collections::BTreeMap;

use super::faults::{Arrival, Fault};
use super::lock::Lock;
use super::{Inner, count};
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
