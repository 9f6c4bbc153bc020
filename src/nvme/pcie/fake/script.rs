//! Lies that bytes tell: the way of a fuzzer to all that a controller may do.
//!
//! Each place where the controller may lie takes a byte. Below [`HONEST`] it does not; else the low bits say how, and more bytes what that needs.

use super::faults::{Arrival, Fault};
use crate::nvme::spec::Status;

/// Bytes below this are the truth.
pub(super) const HONEST: u8 = 0xa0;
/// Bits of a byte that say which lie it is.
const KIND: u8 = 15;
/// Nanoseconds of a unit of time in a script.
const UNIT_NS: u64 = 4_000_000;

/// What is left to be said.
#[derive(Debug, Default)]
pub(super) struct Script {
    bytes: std::vec::IntoIter<u8>,
}

impl Script {
    pub(super) fn new(bytes: Vec<u8>) -> Script {
        Script { bytes: bytes.into_iter() }
    }

    /// The next byte; zeros behind the end.
    fn byte(&mut self) -> u8 {
        self.bytes.next().unwrap_or(0)
    }

    fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn long(&mut self) -> u64 {
        (0..8).fold(0, |value, place| value | u64::from(self.byte()) << (8 * place))
    }

    fn late(&mut self) -> Fault {
        Fault::Late(u64::from(self.byte()) * UNIT_NS)
    }

    /// Adds what is done where the controller is at.
    pub(super) fn say(&mut self, event: Arrival, faults: &mut Vec<Fault>) {
        let Some(first) = self.bytes.next().filter(|first| *first >= HONEST) else { return };
        let kind = first & KIND;
        let fault = match event {
            Arrival::Read(_) => match kind {
                0 => Fault::Value(u64::MAX),
                1 => Fault::Value(0),
                2 => Fault::Fatal,
                3 => Fault::Remove,
                4..8 => Fault::Value(self.long()),
                _ => Fault::Bits(1 << (self.byte() & 63)),
            },
            Arrival::Enable | Arrival::Disable | Arrival::Shutdown => match kind {
                0 => Fault::Remove,
                // One that is disabled by then would lose its word.
                1 | 2 if !matches!(event, Arrival::Disable) => Fault::Fatal,
                3..6 => Fault::Hang,
                _ => self.late(),
            },
            Arrival::Write(_)
            | Arrival::SqDoorbell(_)
            | Arrival::CqDoorbell(_)
            | Arrival::EventIndex(_)
            | Arrival::Interrupt(_) => match kind {
                0 => Fault::Remove,
                1 => Fault::Fatal,
                _ => Fault::Ignore,
            },
            Arrival::Admin(_) | Arrival::Io { .. } => match kind {
                0 => self.late(),
                1 => Fault::Hang,
                2 => Fault::Lost,
                3 => Fault::Twice,
                4 => Fault::Extra(self.word()),
                5 => Fault::WrongCid(self.word()),
                6 => Fault::WrongSqid(self.word()),
                7 => Fault::WrongHead(self.word()),
                8 => Fault::WrongPhase,
                9 => Fault::Status(Status(self.word() & 0x7fff)),
                10 => Fault::Half,
                11 => Fault::Fatal,
                12 => Fault::Remove,
                13 => Fault::Result(self.long()),
                _ => {
                    for _ in 0..self.byte() & 7 {
                        faults.push(Fault::Byte(self.word() & 0xfff, self.byte()));
                    }
                    Fault::Byte(self.word() & 0xfff, self.byte())
                }
            },
        };
        faults.push(fault);
    }
}
