//! Why a command fails: a status and where in the command the fault is.

use crate::nvme::spec::{Status, StatusCode};

/// A failed command: its status field and the byte of the submission queue entry at fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The status field.
    pub status: Status,
    /// Parameter Error Location of the error log: the byte, or FFFFh when no single field is at fault.
    pub location: u16,
}

impl Fault {
    /// Location of a fault that is not in one field.
    pub const NO_LOCATION: u16 = 0xffff;

    /// A fault that a retry does not cure, without a location.
    pub const fn new(code: StatusCode) -> Self {
        Self { status: code.dnr(), location: Self::NO_LOCATION }
    }

    /// A fault that a retry does not cure, at byte `location` of the command.
    pub const fn at(code: StatusCode, location: u16) -> Self {
        Self { status: code.dnr(), location }
    }

    /// A fault that a retry may cure.
    pub const fn retry(code: StatusCode) -> Self {
        Self { status: code.retry(), location: Self::NO_LOCATION }
    }
}

/// Byte offsets of the fields that faults name.
pub(super) mod at {
    /// Opcode.
    pub const OPCODE: u16 = 0;
    /// FUSE and PSDT.
    pub const FLAGS: u16 = 1;
    /// Namespace identifier; the Fabrics Command Type of a Fabrics command.
    pub const NSID: u16 = 4;
    /// SGL address.
    pub const SGL_ADDRESS: u16 = 24;
    /// SGL length.
    pub const SGL_LENGTH: u16 = 32;
    /// SGL identifier.
    pub const SGL_ID: u16 = 39;
    /// Dword 10.
    pub const CDW10: u16 = 40;
    /// Dword 11.
    pub const CDW11: u16 = 44;
    /// Dword 12.
    pub const CDW12: u16 = 48;
    /// Dword 13.
    pub const CDW13: u16 = 52;
    /// Dword 14.
    pub const CDW14: u16 = 56;
}
