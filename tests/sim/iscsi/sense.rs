//! What a status with its sense data says of the block layer (SPC-4 §4.5, SAM-5 §5.3.1).

use reactor::reactor::io::IoStatus;

use super::cdb::status;
use super::initiator::Answer;

const BUSY: u8 = 0x08;

/// What an answer says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// How the command's I/Os ended.
    Status(IoStatus),
    /// UNIT ATTENTION: the command was not carried out.
    Attention,
    /// Nor was it for want of room.
    Busy,
    /// What no command here may bring about.
    Unknown,
}

/// Sense key, and code with qualifier, in either format.
pub fn key_of(sense: &[u8]) -> Option<(u8, u16)> {
    let code = |at: usize| Some(u16::from_be_bytes([*sense.get(at)?, *sense.get(at + 1)?]));
    match sense.first()? & 0x7f {
        0x70 => Some((sense.get(2)? & 0x0f, code(12)?)),
        0x72 => Some((sense.get(1)? & 0x0f, code(2)?)),
        _ => None,
    }
}

/// See [`Meaning`].
pub fn meaning(answer: &Answer) -> Meaning {
    match answer.status {
        status::GOOD => return Meaning::Status(IoStatus::Success),
        BUSY => return Meaning::Busy,
        status::CHECK_CONDITION => {}
        _ => return Meaning::Unknown,
    }
    let Some(key) = key_of(&answer.sense) else { return Meaning::Unknown };
    Meaning::Status(match key {
        (0x6, _) => return Meaning::Attention,
        (0x3, 0x0c00 | 0x1100) => IoStatus::MediaError,
        // Internal failure; and by a data digest: CRC error.
        (0x4, 0x4400) | (0xb, 0x4705) => IoStatus::DeviceError,
        (0x7, 0x2700) => IoStatus::ReadOnly,
        (0x7, 0x2707) => IoStatus::NoSpace,
        (0xb, 0x2f02) => IoStatus::Aborted,
        (0x2, 0x0400) => IoStatus::Gone,
        (0xe, 0x1d00) => IoStatus::Miscompare,
        (0x5, 0x2500) => IoStatus::Unsupported,
        _ => return Meaning::Unknown,
    })
}
