//! What initiators are told of a device.

use super::Disk;
use crate::bdev::BlockDevice;
use crate::limits::TRANSFER_MAX;
use crate::reactor::io::IoOp;
use crate::scsi::{Atomic, TaskFunctions, Unit};

/// T10 vendor identification.
const VENDOR: &str = "REACTOR";

/// Product identification: the same whatever the device is, since a volume may move from one to another.
const PRODUCT: &str = "VOLUME";

/// Characters of the product revision.
const REVISION_LEN: usize = 4;

/// Most blocks of one UNMAP: what initiators and their tests still take for a limit.
const UNMAP_MAX: u32 = 1 << 20;

/// Most blocks of one WRITE SAME: what the 10-byte command can say, so that both forms have the same limit.
const WRITE_SAME_MAX: u64 = u16::MAX as u64;

/// What a read-only export of a device that can be written has of its own in the UUID, in the last six bytes: it is another logical unit,
/// which multipath software must not take for the same. The upper bits of the first byte, which NAA replaces, are not among them.
const READ_ONLY_PATTERN: [u8; 6] = *b"RDONLY";

impl Disk {
    /// What initiators are told of a device, all of it so: a limit shown is one that is enforced.
    ///
    /// A device without a volatile cache has its write cache switched off: WCE says that a write may be answered before the medium or a
    /// cache that keeps it has the data (SBC-3, Caching mode page), which is never so there, and initiators spare themselves the flushes.
    ///
    /// `read_only` is of the export. `transport_version` and `task_functions` are as in [`Unit`].
    pub fn describe(
        device: &dyn BlockDevice,
        read_only: bool,
        transport_version: u16,
        task_functions: TaskFunctions,
    ) -> Unit {
        let common = device.common();
        let traits = common.traits();
        let limits = &traits.limits;
        let block_size = traits.block_size;
        let blocks = |bytes: u64| bytes / u64::from(block_size);
        let can_unmap = traits.ops.has(IoOp::Unmap);
        // A granularity below a block is a block, of which there is nothing to say.
        let granularity = u32::try_from(blocks(u64::from(limits.unmap_granularity))).unwrap_or(u32::MAX);
        let unmap_granularity = if can_unmap { granularity } else { 0 };
        let physical_blocks = traits.physical_block_size / block_size;
        let write_granularity = limits.write_granularity.max(traits.physical_block_size);
        let transfer_max = TRANSFER_MAX as u32 / block_size;
        let atomic_max = u32::try_from(blocks(limits.atomic_max)).unwrap_or(u32::MAX).min(transfer_max);
        let mut uuid = traits.uuid;
        if read_only && !traits.read_only {
            uuid[10..].iter_mut().zip(READ_ONLY_PATTERN).for_each(|(byte, pattern)| *byte ^= pattern);
        }
        Unit {
            blocks: blocks(common.size()),
            block_size,
            physical_block_exponent: if physical_blocks.is_power_of_two() {
                physical_blocks.trailing_zeros().min(15) as u8
            } else {
                0
            },
            read_only: read_only || traits.read_only,
            can_unmap,
            can_anchor: false,
            unmap_max: if can_unmap { UNMAP_MAX } else { 0 },
            unmap_granularity,
            unmap_alignment: (unmap_granularity != 0).then_some(0),
            write_same_max: WRITE_SAME_MAX,
            compare_and_write_max: compare_and_write_max(device),
            transfer_max,
            // Nobody knows one: a transfer is the better the longer it is.
            optimal_transfer: 0,
            optimal_granularity: u16::try_from(blocks(u64::from(write_granularity))).unwrap_or(0),
            atomic: (atomic_max != 0).then_some(Atomic { max: atomic_max, alignment: 1, granularity: 1 }),
            volatile_cache: traits.volatile_cache,
            copies: true,
            uuid,
            vendor: VENDOR.to_owned(),
            product: PRODUCT.to_owned(),
            revision: revision(env!("CARGO_PKG_VERSION")),
            transport_version,
            task_functions,
        }
    }
}

/// The first characters of a version, without a dot at the end.
fn revision(version: &str) -> String {
    let cut: String = version.chars().take(REVISION_LEN).collect();
    cut.trim_end_matches('.').to_owned()
}

/// Most blocks of one COMPARE AND WRITE: what the device does in one step and whose two halves fit one transfer, wherever it begins.
fn compare_and_write_max(device: &dyn BlockDevice) -> u8 {
    let traits = device.common().traits();
    if !traits.ops.has(IoOp::CompareAndWrite) {
        return 0;
    }
    let limits = &traits.limits;
    let block = u64::from(traits.block_size);
    let one_step = match limits.compare_and_write_max {
        // Two blocks may lie on both sides of a boundary.
        0 if limits.boundary != 0 => block,
        0 => limits.transfer_max,
        max => max,
    };
    let most = (one_step.min(TRANSFER_MAX as u64 / 2) / block).max(1);
    u8::try_from(most).unwrap_or(u8::MAX)
}
