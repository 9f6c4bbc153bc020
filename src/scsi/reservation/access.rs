//! Which commands a reservation lets through.

/// What a command needs of the logical unit, as to reservations. The classes are the distinct rows of the tables of commands that are
/// allowed in the presence of reservations (SPC-4 §5.13.1; SBC-3, reservations; SPC-2 §5.5.1 for RESERVE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// No reservation forbids it: INQUIRY, REPORT LUNS, REQUEST SENSE, READ CAPACITY.
    Always,
    /// Persistent reservations allow it, RESERVE by another nexus does not: TEST UNIT READY.
    Status,
    /// It reads: exclusive access forbids it.
    Read,
    /// It writes, or changes what others see: every reservation of another forbids it.
    Write,
    /// PERSISTENT RESERVE IN and OUT: only RESERVE forbids them; what an action may do, the action's state machine says.
    Persistent,
    /// RESERVE and RELEASE: their own state machine decides.
    Legacy,
}

/// Who has the logical unit with RESERVE.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LegacyHolder {
    /// Nobody.
    #[default]
    None,
    /// The nexus asked for.
    Own,
    /// Another nexus.
    Other,
}

/// What the reservations let one nexus do: a copy that stays right until the reservations change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Reads are allowed by the persistent reservation.
    pub read: bool,
    /// Writes are allowed by the persistent reservation.
    pub write: bool,
    /// RESERVE.
    pub legacy: LegacyHolder,
}

impl Grant {
    /// Everything: there is no reservation.
    pub const FREE: Self = Self { read: true, write: true, legacy: LegacyHolder::None };

    /// Whether a command that needs `access` may run; if not, it ends with RESERVATION CONFLICT.
    #[inline]
    pub fn allows(self, access: Access) -> bool {
        let other = self.legacy == LegacyHolder::Other;
        match access {
            Access::Always | Access::Legacy => true,
            Access::Status => !other,
            Access::Read => self.read && !other,
            Access::Write => self.write && !other,
            // SPC-2 §5.5.1: while RESERVE holds the unit they conflict for everybody, its holder included.
            Access::Persistent => self.legacy == LegacyHolder::None,
        }
    }
}
