//! PREEMPT and PREEMPT AND ABORT (SPC-4 §5.13.11.2.4).

use super::{Kind, Nexus, Notice, Outcome, Refusal, Reservations};

impl Reservations {
    /// Removes the registrations with key `victim`, and takes the reservation over if they hold it. With `abort` the outcome names all who
    /// were registered with that key, for their commands to be aborted. Where every registrant holds the reservation, `victim` 0 means all others.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] for a nexus that is not registered with `key`, and when nobody is registered with `victim`;
    /// [`Refusal::InvalidKey`] for `victim` 0 elsewhere; [`Refusal::NoKind`] if the reservation is taken over and `kind` is `None`.
    pub fn preempt(
        &mut self,
        nexus: &Nexus,
        key: u64,
        victim: u64,
        kind: Option<Kind>,
        abort: bool,
    ) -> Result<Outcome, Refusal> {
        self.check_key(nexus, key)?;
        let all_hold = self.held.as_ref().is_some_and(|held| held.holder.is_none());
        let takes_over = if victim == 0 {
            if !all_hold {
                return Err(Refusal::InvalidKey);
            }
            true
        } else {
            if !self.registrants.iter().any(|registrant| registrant.key == victim) {
                return Err(Refusal::Conflict);
            }
            self.held.is_some() && !all_hold && self.holder_key() == victim
        };
        let new_kind = if takes_over { Some(kind.ok_or(Refusal::NoKind)?) } else { None };
        let (mut hit, mut gone) = (Vec::new(), Vec::new());
        self.registrants.retain(|registrant| {
            if victim != 0 && registrant.key != victim {
                return true;
            }
            hit.push(registrant.nexus.clone());
            // Who takes the reservation over needs its registration.
            if takes_over && registrant.nexus == *nexus {
                return true;
            }
            gone.push(registrant.nexus.clone());
            false
        });
        let mut notices: Vec<_> = gone
            .iter()
            .filter(|other| **other != *nexus)
            .map(|other| (other.clone(), Notice::RegistrationsPreempted))
            .collect();
        if let Some(kind) = new_kind {
            let old = self.held.as_ref().map(|held| held.kind);
            self.hold(nexus, kind);
            // Who stays registered learns that the reservation is another (SPC-4 §5.13.11.2.4.3).
            if old != Some(kind) {
                let others = self.registrants.iter().filter(|registrant| registrant.nexus != *nexus);
                notices.extend(others.map(|other| (other.nexus.clone(), Notice::ReservationsReleased)));
            }
        } else if self.registrants.is_empty() {
            self.held = None;
        }
        self.count();
        let mut outcome = self.changed(notices);
        if abort {
            outcome.abort = hit;
        }
        Ok(outcome)
    }
}
