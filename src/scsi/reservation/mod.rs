//! Reservations of a logical unit as a state machine that knows neither command formats nor transports (SPC-4 §5.13).
//!
//! ```text
//!   register / register_and_ignore      reserve            release, clear, holder unregisters
//!   (nobody) ------------> registered --------> reserved ---------------------------------> registered / (nobody)
//!                              |                   |  ^  preempt: another holder, type or both
//!                              |                   +--+  register_and_move: another holder
//!                              +-- clear, preempt, key 0: (nobody)
//! ```
//!
//! A registrant is a [`Nexus`]: an initiator port, opaque bytes, at a target port. It stays registered when its connection is lost, and with
//! APTPL when the power is. Actions either change nothing and return a [`Refusal`], or change everything and return an [`Outcome`] that says
//! who must be told, whose commands must be aborted and what must be stored before the answer is sent.

mod access;
mod legacy;
mod preempt;
mod register;
mod snapshot;

#[cfg(test)]
mod tests;

pub use access::{Access, Grant, LegacyHolder};
pub use register::{Move, Register};
pub use snapshot::{SnapshotError, decode_snapshot};

/// Registrants of one logical unit: more are refused.
pub const REGISTRANTS_MAX: usize = 256;

/// Bytes of the name of an initiator port, at most.
pub const INITIATOR_MAX: usize = 512;

/// An initiator port at a target port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Nexus {
    /// The name of the initiator port: opaque, compared byte by byte, at most [`INITIATOR_MAX`] bytes.
    pub initiator: Vec<u8>,
    /// Relative identifier of the target port.
    pub port: u16,
}

/// The types of persistent reservations (SPC-4 §6.15.3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Others may read.
    WriteExclusive,
    /// Others may do nothing.
    ExclusiveAccess,
    /// Registrants may do all, others may read.
    WriteExclusiveRegistrants,
    /// Registrants may do all, others nothing.
    ExclusiveAccessRegistrants,
    /// As [`Kind::WriteExclusiveRegistrants`], and every registrant is a holder.
    WriteExclusiveAll,
    /// As [`Kind::ExclusiveAccessRegistrants`], and every registrant is a holder.
    ExclusiveAccessAll,
}

impl Kind {
    /// Every type.
    pub const ALL: [Self; 6] = [
        Self::WriteExclusive,
        Self::ExclusiveAccess,
        Self::WriteExclusiveRegistrants,
        Self::ExclusiveAccessRegistrants,
        Self::WriteExclusiveAll,
        Self::ExclusiveAccessAll,
    ];

    /// Who is not allowed to write may read.
    pub const fn shares_reads(self) -> bool {
        matches!(self, Self::WriteExclusive | Self::WriteExclusiveRegistrants | Self::WriteExclusiveAll)
    }

    /// Every registrant has the holder's rights.
    pub const fn shares_with_registrants(self) -> bool {
        !matches!(self, Self::WriteExclusive | Self::ExclusiveAccess)
    }

    /// Every registrant is a holder.
    pub const fn all_hold(self) -> bool {
        matches!(self, Self::WriteExclusiveAll | Self::ExclusiveAccessAll)
    }
}

/// Why an action changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// RESERVATION CONFLICT.
    #[error("the reservation belongs to another, or the key is wrong")]
    Conflict,
    /// A release with another type than that of the reservation.
    #[error("the reservation is of another type")]
    InvalidRelease,
    /// The service action reservation key is 0 where it must not be.
    #[error("the service action reservation key is not valid")]
    InvalidKey,
    /// A reservation is to be taken over, and its new type is not valid.
    #[error("the type of the reservation is not valid")]
    NoKind,
    /// There is no reservation to move.
    #[error("there is no reservation that could be moved")]
    NotReserved,
    /// The nexus to register or to move to is not valid: it is registered already, too long, or the one that asks.
    #[error("the other nexus is not valid")]
    InvalidNexus,
    /// SPEC_I_PT on a nexus that is registered already.
    #[error("a registered nexus cannot register others")]
    AlreadyRegistered,
    /// [`REGISTRANTS_MAX`] are there.
    #[error("there is no room for another registrant")]
    NoRoom,
}

/// What a nexus must be told with a unit attention condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Notice {
    /// RESERVATIONS PREEMPTED: all are cleared.
    ReservationsPreempted,
    /// RESERVATIONS RELEASED.
    ReservationsReleased,
    /// REGISTRATIONS PREEMPTED: its registration is gone.
    RegistrationsPreempted,
}

/// What the stored snapshot needs before the answer is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Persist {
    /// Nothing changed that is stored.
    #[default]
    Unchanged,
    /// Store [`Reservations::snapshot`].
    Store,
    /// Nothing is kept over a loss of power: remove what is stored.
    Erase,
}

/// What an action that was done asks of the caller.
#[must_use]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Who must be told what.
    pub notices: Vec<(Nexus, Notice)>,
    /// Whose commands must be aborted before the answer is sent (PREEMPT AND ABORT): all but the very command that asks, whose nexus
    /// may be among them. Copies that run are aborted as well, whoever asked for them.
    pub abort: Vec<Nexus>,
    /// What must be stored, or removed, before the answer is sent.
    pub persist: Persist,
}

/// A registered nexus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registrant {
    /// Who.
    pub nexus: Nexus,
    /// Its reservation key, not 0.
    pub key: u64,
}

/// A persistent reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its type.
    pub kind: Kind,
    /// Its holder; `None` when every registrant is.
    pub holder: Option<Nexus>,
}

/// The reservations of one logical unit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reservations {
    /// PRGENERATION.
    generation: u32,
    /// In the order of registration.
    registrants: Vec<Registrant>,
    /// Only while there are registrants; a holder is one.
    held: Option<Held>,
    /// All of this but `generation` and `legacy` outlives a loss of power.
    persistent: bool,
    /// Who has RESERVE; never while there are registrants.
    legacy: Option<Nexus>,
}

impl Reservations {
    /// PRGENERATION: it counts the changes of registrations, wrapping.
    pub const fn generation(&self) -> u32 {
        self.generation
    }

    /// The registrants in the order of their registration.
    pub fn registrants(&self) -> &[Registrant] {
        &self.registrants
    }

    /// The persistent reservation.
    pub const fn held(&self) -> Option<&Held> {
        self.held.as_ref()
    }

    /// The key of the holder, 0 if all registrants are (SPC-4 §6.15.3.2).
    pub fn holder_key(&self) -> u64 {
        let holder = self.held.as_ref().and_then(|held| held.holder.as_ref());
        holder.and_then(|nexus| self.key_of(nexus)).unwrap_or(0)
    }

    /// Whether registrations outlive a loss of power (PTPL_A).
    pub const fn persistent(&self) -> bool {
        self.persistent
    }

    /// Whether `nexus` holds the persistent reservation, alone or with all registrants.
    pub fn is_holder(&self, nexus: &Nexus) -> bool {
        match &self.held {
            None => false,
            Some(Held { holder: Some(holder), .. }) => holder == nexus,
            Some(Held { holder: None, .. }) => self.is_registered(nexus),
        }
    }

    /// Whether `nexus` is registered.
    pub fn is_registered(&self, nexus: &Nexus) -> bool {
        self.key_of(nexus).is_some()
    }

    /// What `nexus` may do.
    pub fn grant(&self, nexus: &Nexus) -> Grant {
        let legacy = match &self.legacy {
            None => LegacyHolder::None,
            Some(holder) if holder == nexus => LegacyHolder::Own,
            Some(_) => LegacyHolder::Other,
        };
        let Some(held) = &self.held else { return Grant { legacy, ..Grant::FREE } };
        let write = self.is_holder(nexus) || held.kind.shares_with_registrants() && self.is_registered(nexus);
        Grant { read: write || held.kind.shares_reads(), write, legacy }
    }

    /// RESERVE: takes the persistent reservation. Done again by its holder with the same type it changes nothing.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] for a nexus that is not registered with `key`, and while there is another reservation.
    pub fn reserve(&mut self, nexus: &Nexus, key: u64, kind: Kind) -> Result<Outcome, Refusal> {
        self.check_key(nexus, key)?;
        if let Some(held) = &self.held {
            let same = self.is_holder(nexus) && held.kind == kind;
            return if same { Ok(Outcome::default()) } else { Err(Refusal::Conflict) };
        }
        self.hold(nexus, kind);
        Ok(self.changed(Vec::new()))
    }

    /// RELEASE: gives the persistent reservation up. Nothing happens if `nexus` does not hold it.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] for a nexus that is not registered with `key`; [`Refusal::InvalidRelease`] for another type.
    pub fn release(&mut self, nexus: &Nexus, key: u64, kind: Kind) -> Result<Outcome, Refusal> {
        self.check_key(nexus, key)?;
        match &self.held {
            Some(held) if self.is_holder(nexus) => {
                if held.kind != kind {
                    return Err(Refusal::InvalidRelease);
                }
                let notices = self.drop_reservation(nexus);
                Ok(self.changed(notices))
            }
            _ => Ok(Outcome::default()),
        }
    }

    /// CLEAR: removes the reservation and every registration.
    ///
    /// # Errors
    /// [`Refusal::Conflict`] for a nexus that is not registered with `key`.
    pub fn clear(&mut self, nexus: &Nexus, key: u64) -> Result<Outcome, Refusal> {
        self.check_key(nexus, key)?;
        self.held = None;
        let gone = core::mem::take(&mut self.registrants);
        let others = gone.into_iter().map(|registrant| registrant.nexus).filter(|other| other != nexus);
        let notices = others.map(|other| (other, Notice::ReservationsPreempted)).collect();
        self.count();
        Ok(self.changed(notices))
    }

    fn key_of(&self, nexus: &Nexus) -> Option<u64> {
        self.registrants.iter().find(|registrant| registrant.nexus == *nexus).map(|registrant| registrant.key)
    }

    fn check_key(&self, nexus: &Nexus, key: u64) -> Result<(), Refusal> {
        if self.key_of(nexus) == Some(key) { Ok(()) } else { Err(Refusal::Conflict) }
    }

    fn hold(&mut self, nexus: &Nexus, kind: Kind) {
        self.held = Some(Held { kind, holder: (!kind.all_hold()).then(|| nexus.clone()) });
    }

    fn count(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// The outcome of a change of what is stored.
    fn changed(&self, notices: Vec<(Nexus, Notice)>) -> Outcome {
        let persist = if self.persistent { Persist::Store } else { Persist::Unchanged };
        Outcome { notices, abort: Vec::new(), persist }
    }

    /// Ends the reservation that `nexus` gives up. Registrants that had a share in it are told (SPC-4 §5.13.11.2).
    fn drop_reservation(&mut self, nexus: &Nexus) -> Vec<(Nexus, Notice)> {
        match self.held.take() {
            Some(held) if held.kind.shares_with_registrants() => {
                let others = self.registrants.iter().filter(|registrant| registrant.nexus != *nexus);
                others.map(|registrant| (registrant.nexus.clone(), Notice::ReservationsReleased)).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Removes the registration of `nexus`, and the reservation with it if nobody is left to hold it. Says who must be told.
    fn remove(&mut self, nexus: &Nexus) -> Vec<(Nexus, Notice)> {
        let was_holder = self.is_holder(nexus);
        self.registrants.retain(|registrant| registrant.nexus != *nexus);
        let lone = self.held.as_ref().is_some_and(|held| held.holder.is_some());
        if was_holder && (lone || self.registrants.is_empty()) { self.drop_reservation(nexus) } else { Vec::new() }
    }
}
