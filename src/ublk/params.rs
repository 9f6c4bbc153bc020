//! What a volume is to the kernel: the parameters of its device.

use super::wire::{
    ATTR_FUA, ATTR_READ_ONLY, ATTR_VOLATILE_CACHE, PARAM_TYPE_BASIC, PARAM_TYPE_DISCARD, PARAM_TYPE_DMA_ALIGN,
    ParamBasic, ParamDiscard, ParamDmaAlign, Params,
};
use crate::bdev::Common;
use crate::limits::TRANSFER_MAX;
use crate::reactor::io::IoOp;

/// Bytes of a sector, the unit of all positions and lengths towards the kernel, whatever the device's blocks.
pub const SECTOR: u64 = 512;
/// Bytes of the largest read or write.
pub const IO_MAX: u32 = TRANSFER_MAX as u32;

/// The parameters for a volume.
pub fn of(common: &Common, read_only: bool) -> Params {
    let traits = common.traits();
    let limits = &traits.limits;
    let mut attrs = 0;
    if read_only || traits.read_only {
        attrs |= ATTR_READ_ONLY;
    }
    if traits.volatile_cache {
        attrs |= ATTR_VOLATILE_CACHE | ATTR_FUA;
    }
    // A page is the least that the kernel takes; what is more than the volume takes is cut.
    let io_max = u64::from(IO_MAX).min(limits.transfer_max).max(4096);
    let best = limits.write_granularity.max(traits.physical_block_size);
    let basic = ParamBasic {
        attrs,
        logical_bs_shift: traits.block_size.trailing_zeros() as u8,
        physical_bs_shift: traits.physical_block_size.trailing_zeros() as u8,
        io_opt_shift: best.next_power_of_two().trailing_zeros() as u8,
        io_min_shift: traits.physical_block_size.trailing_zeros() as u8,
        max_sectors: (io_max / SECTOR) as u32,
        chunk_sectors: 0,
        dev_sectors: common.size() / SECTOR,
        virt_boundary_mask: 0,
    };
    let mut params = Params {
        len: size_of::<Params>() as u32,
        types: PARAM_TYPE_BASIC | PARAM_TYPE_DMA_ALIGN,
        basic,
        ..Params::default()
    };
    // The mask of what addresses must be multiples of; 4 is the least that block devices ask for.
    params.dma = ParamDmaAlign { alignment: limits.data_align.max(4) - 1, ..ParamDmaAlign::default() };
    let range_max = limits.zeroes_max.min(u64::from(u32::MAX) * SECTOR) / SECTOR;
    // Whole blocks, however large the range.
    let range_max = (range_max - range_max % (u64::from(traits.block_size) / SECTOR)) as u32;
    let can = |op| traits.ops.has(op) && attrs & ATTR_READ_ONLY == 0;
    if can(IoOp::Unmap) || can(IoOp::WriteZeroes) {
        params.types |= PARAM_TYPE_DISCARD;
        params.discard = ParamDiscard {
            discard_alignment: 0,
            discard_granularity: limits.unmap_granularity.max(traits.block_size),
            max_discard_sectors: if can(IoOp::Unmap) { range_max } else { 0 },
            max_write_zeroes_sectors: if can(IoOp::WriteZeroes) { range_max } else { 0 },
            max_discard_segments: 1,
            ..ParamDiscard::default()
        };
    }
    params
}
