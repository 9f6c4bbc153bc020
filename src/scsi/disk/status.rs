//! The status of the block layer as sense data, once, here.

use crate::reactor::io::{IoCell, IoOp, IoStatus};
use crate::scsi::spec::{Asc, Sense, SenseKey};

/// The sense data of an I/O that has not succeeded, of a device whose blocks have 2 to the power of `shift` bytes.
pub(super) fn sense_of(io: &IoCell, shift: u32) -> Sense {
    let lba = io.offset >> shift;
    // INFORMATION is the first block in error: an initiator takes those before it for good. Of a longer range it is not known.
    let information = (io.op.has_range() && io.len == 1 << shift).then_some(lba);
    let medium = |code| Sense { information, ..Sense::new(SenseKey::MEDIUM_ERROR, code) };
    match io.status {
        IoStatus::OutOfRange => Sense::out_of_range(lba),
        IoStatus::Misaligned | IoStatus::Empty | IoStatus::DataLength => Sense::illegal(Asc::INVALID_FIELD_IN_CDB),
        IoStatus::Unsupported => Sense::opcode(),
        IoStatus::ReadOnly => Sense::new(SenseKey::DATA_PROTECT, Asc::WRITE_PROTECTED),
        IoStatus::Miscompare => Sense::miscompare(io.info),
        IoStatus::NoSpace => Sense::new(SenseKey::DATA_PROTECT, Asc::SPACE_ALLOCATION_FAILED),
        IoStatus::MediaError if io.op.writes() || io.op == IoOp::Flush => medium(Asc::WRITE_ERROR),
        IoStatus::MediaError => medium(Asc::UNRECOVERED_READ_ERROR),
        // By the device server: the initiator may send it again.
        IoStatus::Aborted => Sense::new(SenseKey::ABORTED_COMMAND, Asc::COMMANDS_CLEARED_BY_SERVER),
        IoStatus::Gone => Sense::new(SenseKey::NOT_READY, Asc::NOT_READY),
        // No unit has zones; and what has succeeded is no failure.
        IoStatus::DeviceError
        | IoStatus::Success
        | IoStatus::ZoneBoundary
        | IoStatus::ZoneFull
        | IoStatus::ZoneReadOnly
        | IoStatus::ZoneOffline
        | IoStatus::ZoneInvalidWrite
        | IoStatus::ZoneTooManyActive
        | IoStatus::ZoneTooManyOpen
        | IoStatus::ZoneInvalidTransition => super::INTERNAL,
    }
}
