//! Commands on their way to the wire: what an I/O becomes, and commands given as they are.

use hugepages::Buf;
use zerocopy::IntoBytes;

use crate::nvme::io::{Place, command, fused_write};
use crate::nvme::spec::{Cqe, Direction, DsmRange, Psdt, SglDescriptor, SglId, Sqe};
use crate::reactor::io::{IoCell, IoOp};

/// Data of a [`Command`].
#[derive(Debug)]
pub enum Payload {
    /// None.
    None,
    /// Sent to the controller; comes back with the answer.
    Out(Buf),
    /// Filled by the controller.
    In(Buf),
}

/// Any command, for admin queues and for tests.
#[derive(Debug)]
pub struct Command {
    /// The command. Its identifier is set when it is sent, and its data pointer too unless `sgl_as_given`.
    pub sqe: Sqe,
    /// Its data.
    pub payload: Payload,
    /// Leave the data pointer as it is. Data to be sent then goes into the capsule if the descriptor says so.
    pub sgl_as_given: bool,
    /// Time for the answer.
    pub limit: TimeLimit,
}

/// How long a command may take before its connection is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TimeLimit {
    /// As long as the queue's options say.
    #[default]
    OfQueue,
    /// So many nanoseconds.
    Ns(u64),
    /// For ever: events.
    Never,
}

impl Command {
    /// A command without data.
    pub fn new(sqe: Sqe) -> Command {
        Command { sqe, payload: Payload::None, sgl_as_given: false, limit: TimeLimit::OfQueue }
    }

    /// Sends `buf` along.
    pub fn sending(mut self, buf: Buf) -> Command {
        self.payload = Payload::Out(buf);
        self
    }

    /// Has the controller fill `buf`.
    pub fn filling(mut self, buf: Buf) -> Command {
        self.payload = Payload::In(buf);
        self
    }
}

/// How a [`Command`] ended.
#[derive(Debug)]
pub struct Answer {
    /// The completion, whatever its status; with the SUCCESS flag of the last data PDU in its place, one made from it.
    pub cqe: Cqe,
    /// The buffer of the command.
    pub data: Option<Buf>,
    /// Bytes that the controller sent.
    pub received: u32,
    /// All data digests were right, or none are in use.
    pub digest_ok: bool,
}

/// What travels with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transfer {
    None,
    Out,
    In,
}

impl From<Direction> for Transfer {
    fn from(direction: Direction) -> Transfer {
        match direction {
            Direction::HostToController => Transfer::Out,
            Direction::ControllerToHost => Transfer::In,
            Direction::None | Direction::Bidirectional => Transfer::None,
        }
    }
}

/// Sixteen bytes of data that an I/O without data sends: the range of a Dataset Management command.
pub(super) type Inline = [u8; 16];

const _: () = assert!(size_of::<DsmRange>() == size_of::<Inline>());

/// One command as it goes to the wire.
pub(super) struct Wire {
    pub(super) sqe: Sqe,
    pub(super) transfer: Transfer,
    /// Bytes of data.
    pub(super) len: u32,
    /// The data, where it is not the I/O's.
    pub(super) inline: Option<Inline>,
    /// Data to the controller has to be in the capsule (true) or must not be (false).
    pub(super) in_capsule: Option<bool>,
}

/// The command, or the fused pair, that carries out an I/O. [`super::Volume`] has checked its range against the fields.
pub(super) fn wire(io: &IoCell) -> (Wire, Option<Wire>) {
    let place = Place::of(io.scratch);
    let with = |mut sqe: Sqe, transfer: Transfer| {
        sqe.flags |= Psdt::SGL.0 << 6;
        let len = if transfer == Transfer::None { 0 } else { io.len as u32 };
        Wire { sqe, transfer, len, inline: None, in_capsule: None }
    };
    // An arm for each frequent operation: what `command` asks of it is known there.
    match io.op {
        IoOp::Read => (with(command(io, place), Transfer::In), None),
        IoOp::Write => (with(command(io, place), Transfer::Out), None),
        IoOp::CompareAndWrite => {
            (with(command(io, place), Transfer::Out), Some(with(fused_write(io, place), Transfer::Out)))
        }
        IoOp::Unmap => {
            let inline: Inline = zerocopy::transmute!(place.range(io.offset, io.len));
            let len = inline.as_bytes().len() as u32;
            (Wire { len, inline: Some(inline), ..with(command(io, place), Transfer::Out) }, None)
        }
        // Neither a reset nor what zones have is among the operations of a remote volume.
        _ => {
            let sqe = command(io, place);
            (with(sqe, Direction::of(sqe.opcode).into()), None)
        }
    }
}

/// A command given as it is.
pub(super) fn wire_as_given(sqe: Sqe, transfer: Transfer, len: u32, sgl_as_given: bool) -> Wire {
    let in_capsule = sgl_as_given.then_some(sqe.dptr.id == SglId::DATA_BLOCK_OFFSET);
    Wire { sqe, transfer, len, inline: None, in_capsule }
}

impl Wire {
    /// Decides where the data goes and sets the data pointer; returns the bytes of in-capsule data.
    pub(super) fn place_data(&mut self, in_capsule_max: u32) -> u32 {
        let inside = self.transfer == Transfer::Out && self.in_capsule.unwrap_or(self.len <= in_capsule_max);
        if self.in_capsule.is_none() {
            self.sqe.dptr =
                if inside { SglDescriptor::in_capsule(self.len) } else { SglDescriptor::transport(self.len) };
        }
        if inside { self.len } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nvme::spec::NvmOpcode;

    #[test]
    fn data_goes_into_the_capsule_where_it_fits_or_is_said_to() {
        let of = |len| wire_as_given(Sqe::nvm(NvmOpcode::WRITE, 1), Transfer::Out, len, false);
        let mut small = of(4096);
        assert_eq!(small.place_data(4096), 4096);
        assert_eq!(small.sqe.dptr, SglDescriptor::in_capsule(4096));
        let mut large = of(4608);
        assert_eq!(large.place_data(4096), 0);
        assert_eq!(large.sqe.dptr, SglDescriptor::transport(4608));
        let mut sqe = Sqe::nvm(NvmOpcode::WRITE, 1);
        sqe.dptr = SglDescriptor::transport(512);
        let mut given = wire_as_given(sqe, Transfer::Out, 512, true);
        assert_eq!(given.place_data(4096), 0);
        assert_eq!(given.sqe.dptr, SglDescriptor::transport(512));
        let mut read = wire_as_given(Sqe::nvm(NvmOpcode::READ, 1), Transfer::In, 512, false);
        assert_eq!(read.place_data(4096), 0);
    }
}
