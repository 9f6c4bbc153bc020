//! Commands on their way to the wire: what an I/O becomes, and commands given as they are.

use hugepages::Buf;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use crate::nvme::spec::{
    Cqe, Direction, DsmAttributes, DsmRange, Fuse, NvmOpcode, RwCdw12, SglDescriptor, SglId, Sqe, Status, StatusCode,
};
use crate::reactor::io::{IoCell, IoOp, IoStatus};

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

/// The namespace that an I/O addresses, as it waits in the I/O's scratch word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) nsid: u32,
    /// log2 of the block size in bytes.
    pub(super) shift: u8,
}

impl Place {
    pub(super) fn to_bits(self) -> u64 {
        u64::from(self.nsid) | u64::from(self.shift) << 32
    }

    pub(super) fn of(bits: u64) -> Place {
        Place { nsid: bits as u32, shift: (bits >> 32) as u8 }
    }
}

/// Blocks of one Read, Write, Compare or Write Zeroes: a 16-bit field, zero's-based.
pub(super) const BLOCKS_MAX: u64 = 1 << 16;

/// The command, or the fused pair, that carries out an I/O. [`super::Volume`] has checked its range against the fields.
pub(super) fn wire(io: &IoCell) -> (Wire, Option<Wire>) {
    let place = Place::of(io.scratch);
    let ranged = |opcode: NvmOpcode, fua: bool, fuse: Fuse| {
        let mut sqe = Sqe::nvm(opcode, place.nsid);
        sqe.flags |= fuse.0;
        sqe.set_slba(io.offset >> place.shift);
        let nlb_z = ((io.len >> place.shift) - 1) as u16;
        sqe.cdw12.set(u32::from(nlb_z) | if fua { RwCdw12::FUA } else { 0 });
        sqe
    };
    let with = |sqe: Sqe, transfer: Transfer| {
        let len = if transfer == Transfer::None { 0 } else { io.len as u32 };
        Wire { sqe, transfer, len, inline: None, in_capsule: None }
    };
    match io.op {
        IoOp::Read => (with(ranged(NvmOpcode::READ, false, Fuse::NONE), Transfer::In), None),
        IoOp::Write => (with(ranged(NvmOpcode::WRITE, io.fua, Fuse::NONE), Transfer::Out), None),
        IoOp::Compare => (with(ranged(NvmOpcode::COMPARE, false, Fuse::NONE), Transfer::Out), None),
        IoOp::WriteZeroes => (with(ranged(NvmOpcode::WRITE_ZEROES, io.fua, Fuse::NONE), Transfer::None), None),
        IoOp::CompareAndWrite => (
            with(ranged(NvmOpcode::COMPARE, false, Fuse::FIRST), Transfer::Out),
            Some(with(ranged(NvmOpcode::WRITE, io.fua, Fuse::SECOND), Transfer::Out)),
        ),
        IoOp::Unmap => {
            let mut sqe = Sqe::nvm(NvmOpcode::DATASET_MANAGEMENT, place.nsid);
            // Dword 10 holds the number of ranges, zero's-based: one.
            sqe.cdw11.set(DsmAttributes::DEALLOCATE);
            let range = DsmRange {
                attributes: U32::ZERO,
                blocks: U32::new((io.len >> place.shift) as u32),
                slba: U64::new(io.offset >> place.shift),
            };
            let inline: Inline = zerocopy::transmute!(range);
            let len = inline.as_bytes().len() as u32;
            (Wire { sqe, transfer: Transfer::Out, len, inline: Some(inline), in_capsule: None }, None)
        }
        // Reset is not among the operations of a remote volume.
        IoOp::Flush | IoOp::Reset => (with(Sqe::nvm(NvmOpcode::FLUSH, place.nsid), Transfer::None), None),
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

/// The block layer's word for a status: the one place where NVMe status turns into [`IoStatus`].
pub fn io_status(status: Status) -> IoStatus {
    match status.code() {
        StatusCode::SUCCESS => IoStatus::Success,
        StatusCode::LBA_OUT_OF_RANGE => IoStatus::OutOfRange,
        StatusCode::INVALID_OPCODE | StatusCode::INVALID_FIELD | StatusCode::COMMAND_SIZE_LIMIT_EXCEEDED => {
            IoStatus::Unsupported
        }
        StatusCode::NAMESPACE_WRITE_PROTECTED | StatusCode::WRITE_TO_READ_ONLY_RANGE => IoStatus::ReadOnly,
        StatusCode::COMPARE_FAILURE => IoStatus::Miscompare,
        StatusCode::CAPACITY_EXCEEDED => IoStatus::NoSpace,
        StatusCode::WRITE_FAULT
        | StatusCode::UNRECOVERED_READ_ERROR
        | StatusCode::GUARD_CHECK_ERROR
        | StatusCode::APPLICATION_TAG_CHECK_ERROR
        | StatusCode::REFERENCE_TAG_CHECK_ERROR
        | StatusCode::DEALLOCATED_BLOCK => IoStatus::MediaError,
        StatusCode::ABORT_REQUESTED
        | StatusCode::ABORTED_SQ_DELETION
        | StatusCode::ABORTED_POWER_LOSS
        | StatusCode::ABORTED_PREEMPT
        | StatusCode::ABORTED_FAILED_FUSED
        | StatusCode::ABORTED_MISSING_FUSED
        | StatusCode::ABORTED_BY_HOST => IoStatus::Aborted,
        StatusCode::INVALID_NAMESPACE => IoStatus::Gone,
        _ => IoStatus::DeviceError,
    }
}

/// The status of a fused pair: the first command's, unless that only ended because of the second.
pub(super) fn pair_status(first: Status, second: Status) -> Status {
    if first.is_success() || first.code() == StatusCode::ABORTED_FAILED_FUSED { second } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fused_pair_reports_what_went_wrong() {
        let ok = Status::SUCCESS;
        let failed = StatusCode::ABORTED_FAILED_FUSED.dnr();
        let differs = StatusCode::COMPARE_FAILURE.dnr();
        let full = StatusCode::CAPACITY_EXCEEDED.dnr();
        assert_eq!(pair_status(ok, ok), ok);
        assert_eq!(pair_status(differs, failed), differs);
        assert_eq!(pair_status(failed, full), full);
        assert_eq!(pair_status(ok, full), full);
    }

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

    #[test]
    fn places_survive_the_scratch_word() {
        let place = Place { nsid: 0xffff_fffe, shift: 12 };
        assert_eq!(Place::of(place.to_bits()), place);
    }
}
