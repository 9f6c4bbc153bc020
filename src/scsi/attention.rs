//! Unit attention conditions that wait for a nexus (SAM-5 §5.14).

use super::spec::{Asc, Sense, SenseKey};

/// A unit attention condition. In the order in which they are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum UnitAttention {
    /// Power on, or a reset of the target, or a nexus that is new.
    PowerOn,
    /// LOGICAL UNIT RESET.
    DeviceReset,
    /// The nexus was lost and is back.
    NexusLoss,
    /// Another initiator cleared the commands (CLEAR TASK SET, QERR without TAS).
    CommandsCleared,
    /// REPORT LUNS would answer something else.
    LunsChanged,
    /// INQUIRY would answer something else.
    InquiryChanged,
    /// READ CAPACITY would answer something else.
    CapacityChanged,
    /// MODE SENSE would answer something else.
    ModeChanged,
    /// All reservations were cleared.
    ReservationsPreempted,
    /// The reservation was given up.
    ReservationsReleased,
    /// The registration was removed.
    RegistrationsPreempted,
}

impl UnitAttention {
    const ALL: [Self; 11] = [
        Self::PowerOn,
        Self::DeviceReset,
        Self::NexusLoss,
        Self::CommandsCleared,
        Self::LunsChanged,
        Self::InquiryChanged,
        Self::CapacityChanged,
        Self::ModeChanged,
        Self::ReservationsPreempted,
        Self::ReservationsReleased,
        Self::RegistrationsPreempted,
    ];

    /// The additional sense code that reports it.
    pub const fn code(self) -> Asc {
        match self {
            Self::PowerOn => Asc::POWER_ON,
            Self::DeviceReset => Asc::DEVICE_RESET,
            Self::NexusLoss => Asc::NEXUS_LOSS,
            Self::CommandsCleared => Asc::COMMANDS_CLEARED,
            Self::LunsChanged => Asc::LUNS_CHANGED,
            Self::InquiryChanged => Asc::INQUIRY_CHANGED,
            Self::CapacityChanged => Asc::CAPACITY_CHANGED,
            Self::ModeChanged => Asc::MODE_PARAMETERS_CHANGED,
            Self::ReservationsPreempted => Asc::RESERVATIONS_PREEMPTED,
            Self::ReservationsReleased => Asc::RESERVATIONS_RELEASED,
            Self::RegistrationsPreempted => Asc::REGISTRATIONS_PREEMPTED,
        }
    }

    /// The sense data that report it.
    pub const fn sense(self) -> Sense {
        Sense::new(SenseKey::UNIT_ATTENTION, self.code())
    }

    /// It resets the unit as the nexus sees it, and what waited before has no meaning any more.
    const fn is_reset(self) -> bool {
        matches!(self, Self::PowerOn | Self::DeviceReset)
    }

    const fn mask(self) -> u16 {
        1 << self as u16
    }
}

/// The conditions that wait for one nexus: each at most once, so that there is always room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending(u16);

impl Pending {
    /// Adds one.
    pub const fn raise(&mut self, attention: UnitAttention) {
        if attention.is_reset() {
            self.0 = 0;
        }
        self.0 |= attention.mask();
    }

    /// Removes one, which was told otherwise.
    pub const fn clear(&mut self, attention: UnitAttention) {
        self.0 &= !attention.mask();
    }

    /// Whether it waits.
    pub const fn has(self, attention: UnitAttention) -> bool {
        self.0 & attention.mask() != 0
    }

    /// The one to report next.
    pub fn first(self) -> Option<UnitAttention> {
        UnitAttention::ALL.into_iter().find(|attention| self.0 & attention.mask() != 0)
    }

    /// Takes the one to report.
    pub fn take(&mut self) -> Option<UnitAttention> {
        let next = self.first()?;
        self.clear(next);
        Some(next)
    }

    /// None waits.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_taken_in_order_and_once() {
        let mut pending = Pending::default();
        for attention in UnitAttention::ALL.into_iter().rev().filter(|attention| !attention.is_reset()) {
            pending.raise(attention);
            pending.raise(attention);
        }
        let taken: Vec<_> = core::iter::from_fn(|| pending.take()).collect();
        assert_eq!(taken, UnitAttention::ALL[2..]);
        assert!(pending.is_empty());
    }

    #[test]
    fn a_reset_takes_the_place_of_what_waited() {
        let mut pending = Pending::default();
        pending.raise(UnitAttention::ModeChanged);
        pending.raise(UnitAttention::DeviceReset);
        pending.raise(UnitAttention::CapacityChanged);
        assert_eq!(pending.take(), Some(UnitAttention::DeviceReset));
        assert_eq!(pending.take(), Some(UnitAttention::CapacityChanged));
        assert_eq!(pending.take(), None);
    }

    #[test]
    fn codes_are_those_of_the_standard() {
        let codes = UnitAttention::ALL.map(|attention| attention.code().0);
        let known = [0x2900, 0x2903, 0x2907, 0x2f00, 0x3f0e, 0x3f03, 0x2a09, 0x2a01, 0x2a03, 0x2a04, 0x2a05];
        assert_eq!(codes, known);
        assert_eq!(UnitAttention::PowerOn.sense().key, SenseKey::UNIT_ATTENTION);
    }
}
