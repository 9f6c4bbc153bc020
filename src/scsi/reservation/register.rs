//! REGISTER, REGISTER AND IGNORE EXISTING KEY, REGISTER AND MOVE (SPC-4 §5.13.7, §5.13.8).

use super::{INITIATOR_MAX, Nexus, Notice, Outcome, Persist, REGISTRANTS_MAX, Refusal, Registrant, Reservations};

/// A registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Register<'a> {
    /// The key that the nexus is registered with, 0 if it is not; `None`: whatever it is (REGISTER AND IGNORE EXISTING KEY).
    pub key: Option<u64>,
    /// The key to register, 0 to unregister.
    pub new_key: u64,
    /// Target ports at which to do the same (ALL_TG_PT); empty for that of the nexus alone.
    pub ports: &'a [u16],
    /// Initiator ports to register as well; `None` without SPEC_I_PT.
    pub initiators: Option<&'a [Vec<u8>]>,
    /// The registrations outlive a loss of power (APTPL).
    pub persistent: bool,
}

/// A move of the reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move<'a> {
    /// The key of the nexus that asks.
    pub key: u64,
    /// The key of the new holder.
    pub new_key: u64,
    /// Who shall hold the reservation.
    pub to: &'a Nexus,
    /// The nexus that asks is unregistered (UNREG).
    pub unregister: bool,
    /// The registrations outlive a loss of power (APTPL).
    pub persistent: bool,
}

impl Reservations {
    /// Registers `nexus`, changes its key, or unregisters it.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] for a wrong key; [`Refusal::AlreadyRegistered`] and [`Refusal::InvalidNexus`] for `initiators`;
    /// [`Refusal::NoRoom`].
    pub fn register(&mut self, nexus: &Nexus, ask: Register<'_>) -> Result<Outcome, Refusal> {
        let current = self.key_of(nexus);
        if ask.key.is_some_and(|key| key != current.unwrap_or(0)) {
            return Err(Refusal::Conflict);
        }
        if ask.initiators.is_some() && current.is_some() {
            return Err(Refusal::AlreadyRegistered);
        }
        let ports = core::iter::once(nexus.port).chain(ask.ports.iter().copied().filter(|&port| port != nexus.port));
        let at_ports = |initiator: &[u8]| -> Vec<Nexus> {
            ports.clone().map(|port| Nexus { initiator: initiator.to_vec(), port }).collect()
        };
        let own = at_ports(&nexus.initiator);
        // As if it were asked through each port: none may be registered with another key (SPC-4 §6.16.3).
        let differs = |key: u64| own.iter().filter_map(|each| self.key_of(each)).any(|other| other != key);
        if ask.key.is_some_and(differs) {
            return Err(Refusal::Conflict);
        }
        if ask.new_key == 0 {
            return Ok(self.unregister(nexus, &own, ask.persistent));
        }
        let mut all = own;
        for initiator in ask.initiators.unwrap_or_default() {
            let theirs = at_ports(initiator);
            // The list may not name who is registered, nor anybody twice (SPC-4 §5.13.7).
            if theirs.iter().any(|other| self.is_registered(other) || all.contains(other)) {
                return Err(Refusal::InvalidNexus);
            }
            all.extend(theirs);
            // A list of any length is looked at no further than what could be registered.
            if all.len() > REGISTRANTS_MAX {
                return Err(Refusal::NoRoom);
            }
        }
        if all.iter().any(|each| each.initiator.len() > INITIATOR_MAX) {
            return Err(Refusal::InvalidNexus);
        }
        let new = all.iter().filter(|each| !self.is_registered(each)).count();
        if self.registrants.len() + new > REGISTRANTS_MAX {
            return Err(Refusal::NoRoom);
        }
        for each in all {
            self.set_key(each, ask.new_key);
        }
        self.count();
        let persist = self.set_persistent(ask.persistent);
        Ok(Outcome { persist, ..Outcome::default() })
    }

    /// Moves the reservation, which `nexus` holds alone, to another nexus, and registers that.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] for a wrong key, and for a reservation that another holds, or all registrants; [`Refusal::NotReserved`];
    /// [`Refusal::InvalidKey`] for a new key of 0; [`Refusal::InvalidNexus`] for the initiator port of `nexus`; [`Refusal::NoRoom`].
    pub fn register_and_move(&mut self, nexus: &Nexus, ask: Move<'_>) -> Result<Outcome, Refusal> {
        self.check_key(nexus, ask.key)?;
        match &self.held {
            Some(held) if held.holder.is_none() => return Err(Refusal::Conflict),
            Some(_) if !self.is_holder(nexus) => return Err(Refusal::Conflict),
            Some(_) => {}
            None => return Err(Refusal::NotReserved),
        }
        if ask.new_key == 0 {
            return Err(Refusal::InvalidKey);
        }
        if ask.to.initiator == nexus.initiator || ask.to.initiator.len() > INITIATOR_MAX {
            return Err(Refusal::InvalidNexus);
        }
        if !self.is_registered(ask.to) && self.registrants.len() >= REGISTRANTS_MAX + usize::from(ask.unregister) {
            return Err(Refusal::NoRoom);
        }
        if let Some(held) = &mut self.held {
            held.holder = Some(ask.to.clone());
        }
        self.set_key(ask.to.clone(), ask.new_key);
        if ask.unregister {
            self.registrants.retain(|registrant| registrant.nexus != *nexus);
        }
        self.count();
        let persist = self.set_persistent(ask.persistent);
        Ok(Outcome { persist, ..Outcome::default() })
    }

    fn unregister(&mut self, nexus: &Nexus, own: &[Nexus], persistent: bool) -> Outcome {
        let mut notices: Vec<(Nexus, Notice)> = Vec::new();
        let mut changed = false;
        for each in own {
            if self.is_registered(each) {
                changed = true;
                notices.extend(self.remove(each));
            }
        }
        // Those who are gone, and who asked, need not be told.
        notices.retain(|(other, _)| other != nexus && self.is_registered(other));
        if !changed {
            return Outcome::default();
        }
        self.count();
        let persist = self.set_persistent(persistent);
        Outcome { notices, persist, abort: Vec::new() }
    }

    fn set_key(&mut self, nexus: Nexus, key: u64) {
        match self.registrants.iter_mut().find(|registrant| registrant.nexus == nexus) {
            Some(registrant) => registrant.key = key,
            None => self.registrants.push(Registrant { nexus, key }),
        }
    }

    /// The last registration decides whether all outlive a loss of power (SPC-4 §5.13.5).
    fn set_persistent(&mut self, persistent: bool) -> Persist {
        let was = core::mem::replace(&mut self.persistent, persistent);
        match (was, persistent) {
            (_, true) => Persist::Store,
            (true, false) => Persist::Erase,
            (false, false) => Persist::Unchanged,
        }
    }
}
