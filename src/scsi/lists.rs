//! Parameter lists and answers of the commands on blocks.

use super::data::Put;
use super::spec::{ProvisioningStatus, Sense, take_u16, take_u32, take_u64};
use super::unit::{UNMAP_DESCRIPTORS_MAX, Unit};

/// Bytes of the header of UNMAP's parameter list, and of each of its descriptors (SBC-3 §5.28).
const UNMAP_HEADER_LEN: usize = 8;
const UNMAP_DESCRIPTOR_LEN: usize = 16;

/// The ranges of an UNMAP parameter list, as (first block, blocks), without the empty ones. All are checked before the first is returned, so
/// that a command with a bad range changes nothing.
///
/// # Errors
/// PARAMETER LIST LENGTH ERROR for a list without a header; INVALID FIELD IN PARAMETER LIST for lengths that contradict, and for more descriptors or blocks than Block Limits
/// allows; LOGICAL BLOCK ADDRESS OUT OF RANGE.
pub fn unmap_ranges<'a>(list: &'a [u8], unit: &Unit) -> Result<impl Iterator<Item = (u64, u32)> + use<'a>, Sense> {
    let (Some(data_len), Some(descriptors_len)) = (take_u16(list, 0), take_u16(list, 2)) else {
        return Err(Sense::list_length());
    };
    let descriptors_len = usize::from(descriptors_len);
    // UNMAP DATA LENGTH counts what follows it.
    if usize::from(data_len) + 2 < UNMAP_HEADER_LEN + descriptors_len {
        return Err(Sense::parameter(0));
    }
    if descriptors_len / UNMAP_DESCRIPTOR_LEN > UNMAP_DESCRIPTORS_MAX as usize {
        return Err(Sense::parameter(2));
    }
    // A last descriptor that is not whole, or that the parameter list length cuts, is ignored (SBC-3 §5.28).
    let body = list.get(UNMAP_HEADER_LEN..).unwrap_or_default();
    let ranges = body[..descriptors_len.min(body.len())].chunks_exact(UNMAP_DESCRIPTOR_LEN).map(|descriptor| {
        // Chunks are whole: the fields are there.
        (take_u64(descriptor, 0).unwrap_or(u64::MAX), take_u32(descriptor, 8).unwrap_or(0))
    });
    let mut sum = 0u64;
    for (index, (lba, blocks)) in ranges.clone().enumerate() {
        let blocks = u64::from(blocks);
        // Of an empty range the address right behind the last block is allowed.
        if blocks > unit.blocks || lba > unit.blocks - blocks {
            return Err(Sense::out_of_range(lba));
        }
        sum += blocks;
        if sum > u64::from(unit.unmap_limit()) {
            return Err(Sense::parameter(UNMAP_HEADER_LEN + index * UNMAP_DESCRIPTOR_LEN + 8));
        }
    }
    Ok(ranges.filter(|&(_, blocks)| blocks != 0))
}

/// Checks the parameter list of FORMAT UNIT (SBC-3 §5.3).
///
/// # Errors
/// INVALID FIELD IN PARAMETER LIST for whatever formats otherwise than to zeros: initialisation patterns, protection, defect lists.
pub fn format_parameters(list: &[u8]) -> Result<(), Sense> {
    let Some(&[protection, flags, ..]) = list.first_chunk::<4>() else { return Err(Sense::list_length()) };
    // PROTECTION FIELD USAGE.
    if protection & 0x07 != 0 {
        return Err(Sense::parameter(0));
    }
    // FOV, DPRY, DCRT and STPF need FOV; IP is an initialisation pattern. Only IMMED is left, which is not evaluated.
    if flags & 0xf8 != 0 {
        return Err(Sense::parameter(1));
    }
    let (list_len_is_zero, at) = match list.len() {
        4..8 => (take_u16(list, 2) == Some(0), 2),
        // Byte 3 has the protection interval exponent.
        _ if list[3] != 0 => return Err(Sense::parameter(3)),
        _ => (take_u32(list, 4) == Some(0), 4),
    };
    if list_len_is_zero { Ok(()) } else { Err(Sense::parameter(at)) }
}

/// Bytes of the header of GET LBA STATUS data, and of each descriptor (SBC-3 §5.4).
const STATUS_HEADER_LEN: usize = 8;
const STATUS_DESCRIPTOR_LEN: usize = 16;

/// Blocks of one provisioning status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LbaExtent {
    /// First block.
    pub lba: u64,
    /// Blocks, not 0.
    pub blocks: u32,
    /// Their status.
    pub status: ProvisioningStatus,
}

/// How many extents [`lba_status`] can tell in `allocation` bytes: at least one, since an answer without any tells nothing.
pub const fn lba_status_extents(allocation: u32) -> usize {
    let room = (allocation as usize).saturating_sub(STATUS_HEADER_LEN) / STATUS_DESCRIPTOR_LEN;
    if room == 0 { 1 } else { room }
}

/// The data of GET LBA STATUS, cut to `allocation` bytes. The first extent must begin at the block asked for, or hold it, and each of the
/// others must begin where the one before ends.
pub fn lba_status(extents: &[LbaExtent], allocation: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(STATUS_HEADER_LEN + extents.len() * STATUS_DESCRIPTOR_LEN);
    out.put_u32((4 + extents.len() * STATUS_DESCRIPTOR_LEN) as u32);
    out.put_u32(0);
    for extent in extents {
        out.put_u64(extent.lba);
        out.put_u32(extent.blocks);
        out.extend_from_slice(&[extent.status.0, 0, 0, 0]);
    }
    out.truncate(allocation as usize);
    out
}
