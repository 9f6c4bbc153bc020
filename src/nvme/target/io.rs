//! I/O commands of the NVM Command Set to block requests (NVM §3.2). The hot path: no allocation, one pass.

use zerocopy::FromBytes;

use super::MAX_TRANSFER_LEN;
use super::fault::{Fault, at};
use super::namespace::{NamespaceInfo, Namespaces};
use super::zoned;
use crate::nvme::spec::{
    DSM_MAX_RANGES, DsmAttributes, DsmRange, FabricsType, Fuse, NvmOpcode, Psdt, RwCdw12, SglId, Sqe, StatusCode,
    ZoneReportFilter, dsm_ranges_z,
};

/// What a block request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoOp {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Compare the host's data with the blocks.
    Compare,
    /// Write zeros.
    WriteZeroes,
    /// Verify: read, and no data goes anywhere.
    Verify,
    /// Make everything acknowledged durable.
    Flush,
    /// Dataset Management: ranges are in the data, see [`dsm_ranges`].
    Dsm,
    /// Zone Append: to the zone that begins at the first block.
    ZoneAppend,
    /// Zone Management Send: opens the zone that begins at the first block, or all that are closed.
    ZoneOpen,
    /// Zone Management Send: closes it, or all that are open.
    ZoneClose,
    /// Zone Management Send: finishes it, or all that are active.
    ZoneFinish,
    /// Zone Management Send: resets it, or all that are active or full.
    ZoneReset,
    /// Zone Management Receive: reports zones, from the one that the first block is in.
    ZoneReport,
}

/// What is asked of zones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZoneAsk {
    /// Of all zones, and not of the one at the first block.
    pub all: bool,
    /// The report counts the zones that it has room for, and not all that match.
    pub partial: bool,
    /// Which zones the report is of.
    pub filter: ZoneReportFilter,
}

/// Where the data of a command is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataPlace {
    /// The command has no data.
    None,
    /// In the command capsule.
    InCapsule,
    /// In a buffer of the host: R2T and H2CData fetch it, C2HData fills it.
    HostBuffer,
}

/// A checked I/O command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoRequest {
    /// Operation.
    pub op: IoOp,
    /// Where the data is.
    pub place: DataPlace,
    /// Position in a fused operation.
    pub fuse: Fuse,
    /// Namespace.
    pub nsid: u32,
    /// Force Unit Access: what a write changes, and what a read, compare or verify returns, compares or reads, is durable before
    /// the answer.
    pub fua: bool,
    /// Blocks may be deallocated: Write Zeroes with DEAC, Dataset Management with the Deallocate attribute.
    pub deallocate: bool,
    /// First block.
    pub lba: u64,
    /// Number of blocks; for [`IoOp::Dsm`] the number of ranges; 0 for a flush.
    pub blocks: u32,
    /// Bytes that the transport moves.
    pub data_len: u32,
    /// What is asked of zones.
    pub zone: ZoneAsk,
}

/// Decodes a command of an I/O queue, whose capsule brought `capsule_len` bytes of data.
///
/// Returns the request and its namespace.
///
/// # Errors
/// The status to answer with; nothing may have been done.
#[inline]
pub fn decode_io<'a>(
    sqe: &Sqe,
    namespaces: &'a Namespaces,
    capsule_len: u32,
) -> Result<(IoRequest, &'a NamespaceInfo), Fault> {
    let opcode = sqe.nvm_opcode();
    let op = match opcode {
        NvmOpcode::READ => IoOp::Read,
        NvmOpcode::WRITE => IoOp::Write,
        NvmOpcode::COMPARE => IoOp::Compare,
        NvmOpcode::WRITE_ZEROES => IoOp::WriteZeroes,
        NvmOpcode::VERIFY => IoOp::Verify,
        NvmOpcode::FLUSH => IoOp::Flush,
        NvmOpcode::DATASET_MANAGEMENT => IoOp::Dsm,
        NvmOpcode::ZONE_APPEND | NvmOpcode::ZONE_MANAGEMENT_SEND | NvmOpcode::ZONE_MANAGEMENT_RECEIVE => {
            return zoned::decode(sqe, namespaces, capsule_len);
        }
        _ => return Err(refused_opcode(sqe)),
    };
    check_flags(sqe, op)?;
    let ns = namespaces.resolve(sqe.nsid.get())?;
    let request = match op {
        IoOp::Read | IoOp::Write | IoOp::Compare => decode_rw(sqe, op, ns, capsule_len)?,
        IoOp::WriteZeroes => decode_write_zeroes(sqe, ns, capsule_len)?,
        IoOp::Verify => decode_verify(sqe, ns, capsule_len)?,
        IoOp::Flush => without_data(IoOp::Flush, ns, capsule_len)?,
        _ => decode_dsm(sqe, ns, capsule_len)?,
    };
    Ok((request, ns))
}

#[cold]
fn refused_opcode(sqe: &Sqe) -> Fault {
    if sqe.is_fabrics() && sqe.fabrics_type() == FabricsType::CONNECT {
        // The queue exists already (Base §6.3).
        return Fault::new(StatusCode::COMMAND_SEQUENCE_ERROR);
    }
    Fault::at(StatusCode::INVALID_OPCODE, at::OPCODE)
}

/// PSDT and FUSE. Fused is Compare first, Write second, nothing else (NVM §2.1.3).
#[inline]
fn check_flags(sqe: &Sqe, op: IoOp) -> Result<(), Fault> {
    const PLAIN: u8 = Psdt::SGL.0 << 6;
    let legal = match op {
        _ if sqe.flags == PLAIN => true,
        IoOp::Compare => sqe.flags == PLAIN | Fuse::FIRST.0,
        IoOp::Write => sqe.flags == PLAIN | Fuse::SECOND.0,
        _ => false,
    };
    if legal { Ok(()) } else { Err(Fault::at(StatusCode::INVALID_FIELD, at::FLAGS)) }
}

#[inline]
fn decode_rw(sqe: &Sqe, op: IoOp, ns: &NamespaceInfo, capsule_len: u32) -> Result<IoRequest, Fault> {
    let cdw12 = sqe.cdw12.get();
    let (lba, blocks) = range_of(sqe, ns)?;
    check_protection(cdw12)?;
    let len = blocks << ns.block_shift();
    if len > MAX_TRANSFER_LEN {
        return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW12));
    }
    if op == IoOp::Write {
        check_write(cdw12, ns)?;
    }
    let place = data_place(sqe, op != IoOp::Read, capsule_len)?;
    if sqe.dptr.length.get() != len {
        return Err(Fault::at(StatusCode::SGL_DATA_LENGTH_INVALID, at::SGL_LENGTH));
    }
    Ok(IoRequest {
        op,
        place,
        fuse: sqe.fuse(),
        nsid: ns.nsid,
        fua: cdw12 & RwCdw12::FUA != 0,
        deallocate: false,
        lba,
        blocks,
        data_len: len,
        zone: ZoneAsk::default(),
    })
}

fn decode_write_zeroes(sqe: &Sqe, ns: &NamespaceInfo, capsule_len: u32) -> Result<IoRequest, Fault> {
    let cdw12 = sqe.cdw12.get();
    let (lba, blocks) = range_of(sqe, ns)?;
    check_protection(cdw12)?;
    check_write(cdw12, ns)?;
    Ok(IoRequest {
        fua: cdw12 & RwCdw12::FUA != 0,
        deallocate: cdw12 & RwCdw12::DEAC != 0,
        lba,
        blocks,
        ..without_data(IoOp::WriteZeroes, ns, capsule_len)?
    })
}

/// Of as many blocks as the field can say: no limit is told.
fn decode_verify(sqe: &Sqe, ns: &NamespaceInfo, capsule_len: u32) -> Result<IoRequest, Fault> {
    let cdw12 = sqe.cdw12.get();
    let (lba, blocks) = range_of(sqe, ns)?;
    check_protection(cdw12)?;
    let fua = cdw12 & RwCdw12::FUA != 0;
    Ok(IoRequest { fua, lba, blocks, ..without_data(IoOp::Verify, ns, capsule_len)? })
}

fn decode_dsm(sqe: &Sqe, ns: &NamespaceInfo, capsule_len: u32) -> Result<IoRequest, Fault> {
    let ranges = u32::from(dsm_ranges_z(sqe)) + 1;
    let deallocate = sqe.cdw11.get() & DsmAttributes::DEALLOCATE != 0;
    if deallocate && ns.read_only {
        return Err(Fault::at(StatusCode::NAMESPACE_WRITE_PROTECTED, at::NSID));
    }
    let place = data_place(sqe, true, capsule_len)?;
    // Linux always sends room for 256 ranges, whatever their number.
    let entry = size_of::<DsmRange>() as u32;
    let len = sqe.dptr.length.get();
    if len < ranges * entry || len > DSM_MAX_RANGES as u32 * entry {
        return Err(Fault::at(StatusCode::SGL_DATA_LENGTH_INVALID, at::SGL_LENGTH));
    }
    Ok(IoRequest {
        op: IoOp::Dsm,
        place,
        fuse: Fuse::NONE,
        nsid: ns.nsid,
        fua: false,
        deallocate,
        lba: 0,
        blocks: ranges,
        data_len: len,
        zone: ZoneAsk::default(),
    })
}

fn without_data(op: IoOp, ns: &NamespaceInfo, capsule_len: u32) -> Result<IoRequest, Fault> {
    if capsule_len != 0 {
        return Err(Fault::at(StatusCode::SGL_DATA_LENGTH_INVALID, at::SGL_LENGTH));
    }
    Ok(IoRequest {
        op,
        place: DataPlace::None,
        fuse: Fuse::NONE,
        nsid: ns.nsid,
        fua: false,
        deallocate: false,
        lba: 0,
        blocks: 0,
        data_len: 0,
        zone: ZoneAsk::default(),
    })
}

/// The blocks of dwords 10 to 12, inside the namespace.
#[inline]
pub(super) fn range_of(sqe: &Sqe, ns: &NamespaceInfo) -> Result<(u64, u32), Fault> {
    let lba = sqe.slba();
    let blocks = u32::from(RwCdw12(sqe.cdw12.get()).nlb_z()) + 1;
    check_range(lba, u64::from(blocks), ns)?;
    Ok((lba, blocks))
}

#[inline]
fn check_range(lba: u64, blocks: u64, ns: &NamespaceInfo) -> Result<(), Fault> {
    // Without overflow for any LBA: the difference is taken only when it is not negative.
    if blocks > ns.blocks || lba > ns.blocks - blocks {
        return Err(Fault::at(StatusCode::LBA_OUT_OF_RANGE, at::CDW10));
    }
    Ok(())
}

/// No namespace has protection information, so a command that asks for it is refused.
#[inline]
pub(super) fn check_protection(cdw12: u32) -> Result<(), Fault> {
    if cdw12 & (RwCdw12::PRINFO | RwCdw12::STC) != 0 {
        return Err(Fault::at(StatusCode::INVALID_PROTECTION_INFO, at::CDW12));
    }
    Ok(())
}

#[inline]
pub(super) fn check_write(cdw12: u32, ns: &NamespaceInfo) -> Result<(), Fault> {
    if ns.read_only {
        return Err(Fault::at(StatusCode::NAMESPACE_WRITE_PROTECTED, at::NSID));
    }
    if cdw12 & RwCdw12::DTYPE != 0 {
        return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW12));
    }
    Ok(())
}

/// Where the SGL descriptor puts the data, for a command that has some (TCP §3.3.2). In-capsule data starts at
/// offset 0 and is all the capsule brought; a command data buffer excludes in-capsule data.
#[inline]
pub(super) fn data_place(sqe: &Sqe, to_controller: bool, capsule_len: u32) -> Result<DataPlace, Fault> {
    match sqe.dptr.id {
        SglId::TRANSPORT_DATA_BLOCK => {
            if capsule_len != 0 {
                return Err(Fault::at(StatusCode::SGL_DATA_LENGTH_INVALID, at::SGL_LENGTH));
            }
            Ok(DataPlace::HostBuffer)
        }
        SglId::DATA_BLOCK_OFFSET if to_controller => {
            if sqe.dptr.address.get() != 0 {
                return Err(Fault::at(StatusCode::SGL_OFFSET_INVALID, at::SGL_ADDRESS));
            }
            if sqe.dptr.length.get() != capsule_len {
                return Err(Fault::at(StatusCode::SGL_DATA_LENGTH_INVALID, at::SGL_LENGTH));
            }
            Ok(DataPlace::InCapsule)
        }
        _ => Err(Fault::at(StatusCode::SGL_DESCRIPTOR_TYPE_INVALID, at::SGL_ID)),
    }
}

/// The ranges of a Dataset Management command, as (first block, number of blocks), without the empty ones. All are
/// checked before the first is returned, so that a command with a bad range changes nothing.
///
/// # Errors
/// LBA Out of Range; Data SGL Length Invalid when `data` is shorter than the ranges the request announced.
pub fn dsm_ranges<'a>(
    request: &IoRequest,
    data: &'a [u8],
    ns: &NamespaceInfo,
) -> Result<impl Iterator<Item = (u64, u32)> + use<'a>, Fault> {
    let count = request.blocks as usize;
    let (ranges, _) = <[DsmRange]>::ref_from_prefix_with_elems(data, count)
        .map_err(|_| Fault::at(StatusCode::SGL_DATA_LENGTH_INVALID, at::SGL_LENGTH))?;
    for range in ranges {
        check_range(range.slba.get(), u64::from(range.blocks.get()), ns)?;
    }
    Ok(ranges.iter().map(|range| (range.slba.get(), range.blocks.get())).filter(|&(_, blocks)| blocks != 0))
}

/// Checks that a Compare and a Write form a fused operation on `ns`.
///
/// # Errors
/// Invalid Field when their ranges differ, or the namespace has zones, where nothing is written twice; Atomic Write Unit Exceeded when
/// they are larger than the namespace can do (NVM §2.1.3). Both commands fail with it.
pub fn check_fused_pair(compare: &IoRequest, write: &IoRequest, ns: &NamespaceInfo) -> Result<(), Fault> {
    if (compare.nsid, compare.lba, compare.blocks) != (write.nsid, write.lba, write.blocks) {
        return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW10));
    }
    if ns.zones.is_some() {
        return Err(Fault::at(StatusCode::INVALID_FIELD, at::FLAGS));
    }
    if write.blocks > ns.compare_and_write_blocks {
        return Err(Fault::at(StatusCode::ATOMIC_WRITE_UNIT_EXCEEDED, at::CDW12));
    }
    Ok(())
}

/// What to do with the next command of a submission queue, as to fusing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FuseStep {
    /// Execute it.
    Single,
    /// Keep it until its second command arrives.
    Hold,
    /// It completes the command that is held: check the pair and execute both.
    Pair,
    /// It is a second command without a first: fail it with Aborted due to Missing Fused Command.
    MissingFirst,
}

/// Follows the fused commands of one submission queue, in the order in which commands arrive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FuseTracker {
    holding: bool,
}

impl FuseTracker {
    /// Takes the next command. When the second value is true, the command that was held has lost its partner: fail it
    /// with Aborted due to Missing Fused Command before going on with the step (Base §3.4.2).
    pub fn next(&mut self, fuse: Fuse) -> (FuseStep, bool) {
        let held = core::mem::take(&mut self.holding);
        match fuse {
            Fuse::FIRST => {
                self.holding = true;
                (FuseStep::Hold, held)
            }
            Fuse::SECOND if held => (FuseStep::Pair, false),
            Fuse::SECOND => (FuseStep::MissingFirst, false),
            _ => (FuseStep::Single, held),
        }
    }

    /// Whether a first command is held.
    pub const fn holding(&self) -> bool {
        self.holding
    }
}
