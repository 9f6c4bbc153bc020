//! RESERVE and RELEASE, compatible with persistent reservations (SPC-2 §5.5.1; SPC-4 §5.13.3, what CRH reports).

use super::{Nexus, Refusal, Reservations};

impl Reservations {
    /// RESERVE(6): takes the whole logical unit until [`Reservations::legacy_release`] or the loss of the nexus.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] while another has it, or while others are registered for persistent reservations.
    pub fn legacy_reserve(&mut self, nexus: &Nexus) -> Result<(), Refusal> {
        if self.answers_for_persistent(nexus)? {
            return Ok(());
        }
        match &self.legacy {
            Some(holder) if holder != nexus => Err(Refusal::Conflict),
            _ => {
                self.legacy = Some(nexus.clone());
                Ok(())
            }
        }
    }

    /// RELEASE(6): without effect for a nexus that did not reserve.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] while others are registered for persistent reservations.
    pub fn legacy_release(&mut self, nexus: &Nexus) -> Result<(), Refusal> {
        if !self.answers_for_persistent(nexus)? {
            self.legacy_drop(nexus);
        }
        Ok(())
    }

    /// The nexus is lost: its RESERVE ends. Registrations stay.
    pub fn legacy_drop(&mut self, nexus: &Nexus) {
        self.legacy.take_if(|holder| holder == nexus);
    }

    /// The logical unit was reset: RESERVE ends, whoever had it. Persistent reservations stay.
    pub fn reset(&mut self) {
        self.legacy = None;
    }

    /// Whether the command succeeds without an effect, because a persistent reservation serves `nexus` as well.
    fn answers_for_persistent(&self, nexus: &Nexus) -> Result<bool, Refusal> {
        if self.registrants.is_empty() {
            return Ok(false);
        }
        let shared = self.held.as_ref().is_some_and(|held| held.kind.shares_with_registrants());
        if self.is_holder(nexus) || shared && self.is_registered(nexus) { Ok(true) } else { Err(Refusal::Conflict) }
    }
}
