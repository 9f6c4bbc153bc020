//! What a namespace is, from the identify data of its controller.

use hugepages::MAX_BUF;
use uuid::Uuid;

use super::{BLOCKS_MAX, RANGE_BLOCKS_MAX};
use crate::bdev::{DeviceLimits, OpSet, Traits, Unaddressed, Zones};
use crate::limits::TRANSFER_MAX;
use crate::nvme::spec::{
    Cap, DeallocatedReads, Dps, FUSES_COMPARE_AND_WRITE, IdentifyController, IdentifyControllerNvm,
    IdentifyControllerZoned, IdentifyNamespace, IdentifyNamespaceZoned, NSATTR_WRITE_PROTECTED, NSFEAT_NSABP,
    NSFEAT_OPTPERF, NamespaceIds, ONCS_COMPARE, ONCS_DSM, ONCS_VERIFY, ONCS_WRITE_ZEROES, OZCS_READ_ACROSS, Status,
    VWC_PRESENT, size_limit,
};
use crate::reactor::io::IoOp;

/// Largest physical block told to the layers above, in bytes: what page caches and file systems cope with.
const PHYSICAL_BLOCK_MAX: u64 = 64 * 1024;

/// Why a namespace cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// It has no blocks: it is not attached to this controller.
    #[error("namespace {nsid} is not active")]
    Inactive {
        /// Namespace identifier.
        nsid: u32,
    },
    /// Its block size is none of ours, or it has metadata.
    #[error("namespace {nsid} has blocks of 2^{shift} bytes with {metadata} bytes of metadata{}; usable are 512 and 4096 without", protected(*protection))]
    Format {
        /// Namespace identifier.
        nsid: u32,
        /// log2 of the block size in bytes.
        shift: u8,
        /// Bytes of metadata of a block.
        metadata: u16,
        /// Protection information type, 0 for none.
        protection: u8,
    },
    /// Its controller does not say what it is: a namespace of another command set.
    #[error("namespace {nsid} is not told about by its controller ({status:?})")]
    Untold {
        /// Namespace identifier.
        nsid: u32,
        /// The controller's answer.
        status: Status,
    },
    /// Its size in bytes does not fit.
    #[error("namespace {nsid} is larger than 2^64 bytes")]
    TooLarge {
        /// Namespace identifier.
        nsid: u32,
    },
    /// It has zones, and what it says of them cannot be.
    #[error("namespace {nsid} of {blocks} blocks says that its zones have {zone_blocks}")]
    Zones {
        /// Namespace identifier.
        nsid: u32,
        /// Its blocks.
        blocks: u64,
        /// Blocks of a zone.
        zone_blocks: u64,
    },
}

fn protected(protection: u8) -> String {
    if protection == 0 { String::new() } else { format!(" (protection type {protection})") }
}

/// What was read about a namespace and its controller.
#[derive(Clone, Copy, Debug)]
pub struct Identified<'a> {
    /// Namespace identifier.
    pub nsid: u32,
    /// Capabilities: the unit of the limits.
    pub cap: Cap,
    /// CNS 01h.
    pub controller: &'a IdentifyController,
    /// CNS 00h.
    pub namespace: &'a IdentifyNamespace,
    /// CNS 06h of the NVM command set, from a controller that has it.
    pub limits: Option<&'a IdentifyControllerNvm>,
    /// CNS 05h and 06h of the Zoned Namespace command set, for a namespace of it.
    pub zoned: Option<(&'a IdentifyNamespaceZoned, &'a IdentifyControllerZoned)>,
}

/// Limits of Dataset Management (NVM §4.1.5.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deallocate {
    /// Most ranges of a command, 1 to 256.
    pub ranges_max: u16,
    /// Most bytes of a range, at least one block.
    pub range_max: u64,
    /// Most bytes of a command, at least one block.
    pub bytes_max: u64,
}

/// How a range is unmapped: it reads as zeros afterwards. Dataset Management alone cannot do that, since it is advice that a
/// controller may ignore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmapping {
    /// By Write Zeroes with the Deallocate bit.
    Deac,
    /// By Write Zeroes, then Dataset Management, which frees blocks that read as zeros still.
    ZeroesThenDsm,
    /// By Write Zeroes: nothing is freed.
    Zeroes,
    /// By no command.
    None,
}

/// What a namespace is, as its controller says.
#[derive(Clone, Copy, Debug)]
pub struct Geometry {
    /// Namespace identifier.
    pub nsid: u32,
    /// log2 of the block size in bytes.
    pub block_shift: u8,
    /// Size in bytes.
    pub size: u64,
    /// What its commands can do; unmap stands for Dataset Management.
    pub ops: OpSet,
    /// Writes are refused.
    pub read_only: bool,
    /// Acknowledged writes may be lost until a flush.
    pub volatile_cache: bool,
    /// Most bytes of one compare and write.
    pub compare_and_write_max: u64,
    /// A compare and write across a boundary of this length in bytes is no single step, the first at this offset; a length of 0: there is none.
    pub atomic_boundary: (u64, u64),
    /// Bytes that are written whole or not at all with the power, and without a read of what is beside them: at least a block, a
    /// power of two.
    pub physical_block_size: u32,
    /// Limits of the commands.
    pub limits: DeviceLimits,
    /// Limits of Dataset Management.
    pub deallocate: Deallocate,
    /// How a range is unmapped.
    pub unmapping: Unmapping,
    /// What its zones have in common, if it has zones.
    pub zones: Option<Zones>,
}

/// Largest write zeroes and verify in bytes of a controller that does not say whether there is a limit, as those before NVMe 2.0: they may
/// take as long as a write, or a read.
const UNTOLD_MAX: u64 = 4 << 20;

/// Largest transfer of one command in bytes: MDTS, and what this program's buffers hold.
pub fn transfer_max(controller: &IdentifyController, cap: Cap) -> u64 {
    size_limit(controller.mdts, cap).unwrap_or(u64::MAX).min(TRANSFER_MAX as u64)
}

impl Geometry {
    /// What the data says, for a queue of `queue_size` entries and transfers of at most `transfer_max` bytes.
    ///
    /// # Errors
    /// If such a namespace cannot be used.
    pub fn new(id: &Identified<'_>, transfer_max: u64, queue_size: u16) -> Result<Geometry, Unusable> {
        let Identified { nsid, cap, controller, namespace, limits, zoned } = *id;
        let blocks = namespace.nsze.get();
        if blocks == 0 {
            return Err(Unusable::Inactive { nsid });
        }
        let (index, format) = namespace.format();
        let (shift, metadata, protection) = (format.lbads, format.ms.get(), Dps(namespace.dps).protection());
        if !matches!(shift, 9 | 12) || metadata != 0 || protection != 0 {
            return Err(Unusable::Format { nsid, shift, metadata, protection });
        }
        let size = blocks.checked_mul(1 << shift).ok_or(Unusable::TooLarge { nsid })?;
        let can = controller.oncs.get();
        let ops = set_of(|op| match op {
            IoOp::Read | IoOp::Write | IoOp::Flush => true,
            IoOp::Compare => can & ONCS_COMPARE != 0,
            // What is in a zone goes with all of it, and is not written again before.
            IoOp::Unmap | IoOp::CompareAndWrite if zoned.is_some() => false,
            IoOp::Unmap => can & ONCS_DSM != 0,
            IoOp::WriteZeroes => can & ONCS_WRITE_ZEROES != 0,
            IoOp::Verify => can & ONCS_VERIFY != 0,
            // A pair takes two slots.
            IoOp::CompareAndWrite => controller.fuses.get() & FUSES_COMPARE_AND_WRITE != 0 && queue_size > 2,
            // No command.
            IoOp::Reset | IoOp::Extents => false,
            _ => zoned.is_some(),
        });
        let blocks_z = |z: u16| (u32::from(z) + 1) << shift;
        let performance = namespace.nsfeat & NSFEAT_OPTPERF != 0;
        let own = namespace.nsfeat & NSFEAT_NSABP != 0;
        let of = |its: u16, all: u16| u64::from(blocks_z(if own { its } else { all }));
        let acwu = of(namespace.nacwu_z.get(), controller.acwu_z.get());
        let nabsn = if own { namespace.nabsn_z.get() } else { 0 };
        let atomic = if nabsn == 0 { 0 } else { u64::from(blocks_z(nabsn)) };
        let awupf = of(namespace.nawupf_z.get(), controller.awupf_z.get());
        let write_granularity = if performance { blocks_z(namespace.npwg_z.get()) } else { 0 };
        let block = 1 << shift;
        let physical = u64::from(write_granularity).min(awupf).clamp(block, PHYSICAL_BLOCK_MAX);
        let transfer_max = transfer_max.min(BLOCKS_MAX << shift);
        // A command has at least a block, whatever the controller says.
        let at_least_block = |bytes: u64| bytes.max(block);
        // A controller that says nothing of it may do the zeroes one by one, and not answer until it has.
        let zeroes_max = match limits {
            Some(limits) => size_limit(limits.wzsl, cap).unwrap_or(u64::MAX),
            None => UNTOLD_MAX,
        };
        let verify_max = match limits {
            _ if !ops.has(IoOp::Verify) => 0,
            Some(limits) => at_least_block(size_limit(limits.vsl, cap).unwrap_or(u64::MAX).min(BLOCKS_MAX << shift)),
            None => UNTOLD_MAX.min(BLOCKS_MAX << shift),
        };
        let zones = match zoned {
            None => None,
            Some((zones, all)) => {
                let zone_blocks = zones.zone_blocks(index).unwrap_or(0);
                if zone_blocks == 0 || !blocks.is_multiple_of(zone_blocks) {
                    return Err(Unusable::Zones { nsid, blocks, zone_blocks });
                }
                Some(Zones {
                    size: zone_blocks << shift,
                    open_max: zones.open_max(),
                    active_max: zones.active_max(),
                    append_max: at_least_block(size_limit(all.zasl, cap).unwrap_or(u64::MAX).min(transfer_max)),
                    read_across: zones.ozcs.get() & OZCS_READ_ACROSS != 0,
                })
            }
        };
        let noiob = u64::from(namespace.noiob.get()) << shift;
        let deallocation = namespace.deallocation();
        Ok(Geometry {
            nsid,
            block_shift: shift,
            size,
            ops,
            read_only: namespace.nsattr & NSATTR_WRITE_PROTECTED != 0,
            volatile_cache: controller.vwc & VWC_PRESENT != 0,
            compare_and_write_max: acwu.min(MAX_BUF as u64 / 2),
            atomic_boundary: (atomic, u64::from(namespace.nabo.get()) << shift),
            physical_block_size: 1 << physical.ilog2(),
            limits: DeviceLimits {
                transfer_max,
                zeroes_max: at_least_block(zeroes_max.min(BLOCKS_MAX << shift)),
                verify_max,
                // A write must not cross zones and most controllers' reads must not, so that a zone is a boundary in any case; a
                // finer one that divides it is kept.
                compare_and_write_max: 0,
                atomic_max: 0,
                boundary: match zones {
                    Some(zones) if noiob == 0 || !zones.size.is_multiple_of(noiob) => zones.size,
                    _ => noiob,
                },
                data_align: 1,
                write_granularity,
                unmap_granularity: if performance { blocks_z(namespace.npdg_z.get()) } else { 0 },
            },
            deallocate: deallocate(limits, shift),
            unmapping: match (can & ONCS_WRITE_ZEROES != 0, can & ONCS_DSM != 0) {
                _ if zones.is_some() => Unmapping::None,
                (true, _) if deallocation.deac() => Unmapping::Deac,
                (true, true) if deallocation.reads() == DeallocatedReads::ZEROS => Unmapping::ZeroesThenDsm,
                (true, _) => Unmapping::Zeroes,
                (false, _) => Unmapping::None,
            },
            zones,
        })
    }

    /// What of this is not as it was `before`, for whoever goes on with a namespace as if nothing had happened. It may have become larger.
    pub fn differs(&self, before: &Geometry) -> Option<&'static str> {
        let (was, is) = (&before.limits, &self.limits);
        // A verify that is not there any more, or larger than it may be now, is refused, and then its blocks are read.
        let ops = |geometry: &Geometry| geometry.ops.without(IoOp::Verify);
        [
            (self.block_shift != before.block_shift, "its block size"),
            (self.size < before.size, "its size"),
            (ops(before) != ops(self) || before.unmapping != self.unmapping, "its commands"),
            (is.transfer_max < was.transfer_max || is.zeroes_max < was.zeroes_max, "its limits"),
            (is.boundary != was.boundary, "its limits"),
            (self.compare_and_write_max < before.compare_and_write_max, "its atomicity"),
            (self.atomic_boundary != before.atomic_boundary, "its atomicity"),
            (self.volatile_cache && !before.volatile_cache, "its write cache"),
            (self.zones != before.zones, "its zones"),
        ]
        .into_iter()
        .find_map(|(differs, what)| differs.then_some(what))
    }

    /// Whether a compare and write of this range is one step for the controller.
    pub fn is_atomic(&self, offset: u64, len: u64) -> bool {
        let (size, first) = self.atomic_boundary;
        let section = |at: u64| if at < first { 0 } else { 1 + (at - first) / size.max(1) };
        len <= self.compare_and_write_max.min(self.limits.transfer_max)
            && (size == 0 || len == 0 || section(offset) == section(offset + len - 1))
    }

    /// The traits of a block device that is this namespace, whose operations are the namespace's commands: what a device does by
    /// several commands it adds itself. Unmap is among them where [`Geometry::unmapping`] has a way, and verify in any case: without the
    /// command the block layer reads.
    ///
    /// The rest depends on the way to the namespace and is set for one that reaches memory by itself, from every reactor:
    /// `concurrent`, and no data without an address.
    pub fn traits(&self, name: String, driver: &'static str, uuid: [u8; 16]) -> Traits {
        let ops = set_of(|op| match op {
            IoOp::Unmap => self.unmapping != Unmapping::None,
            IoOp::Verify => true,
            op => self.ops.has(op),
        });
        Traits {
            name,
            driver,
            uuid,
            block_size: 1 << self.block_shift,
            physical_block_size: self.physical_block_size,
            ops,
            read_only: self.read_only,
            volatile_cache: self.volatile_cache,
            keeps_nothing: false,
            ephemeral: false,
            unaddressed: Unaddressed::Refuses,
            concurrent: true,
            limits: self.limits,
            zones: self.zones,
        }
    }
}

fn set_of(has: impl Fn(IoOp) -> bool) -> OpSet {
    IoOp::ALL.into_iter().filter(|op| !has(*op)).fold(OpSet::ALL.with_zones(), OpSet::without)
}

/// Limits of Dataset Management; 0 and no such data mean those of its fields.
fn deallocate(limits: Option<&IdentifyControllerNvm>, shift: u8) -> Deallocate {
    let (dmrl, dmrsl, dmsl) =
        limits.map_or((0, 0, 0), |limits| (limits.dmrl, u64::from(limits.dmrsl.get()), limits.dmsl.get()));
    let bytes = |blocks: u64, most: u64| if blocks == 0 { most } else { blocks.min(most) } << shift;
    let ranges_max = if dmrl == 0 { 256 } else { u16::from(dmrl) };
    Deallocate {
        ranges_max,
        range_max: bytes(dmrsl, RANGE_BLOCKS_MAX),
        bytes_max: bytes(dmsl, u64::from(ranges_max) * RANGE_BLOCKS_MAX),
    }
}

/// Namespace of the identities that [`identity`] makes of other names.
const IDENTITIES: Uuid = Uuid::from_u128(0x6c9b_5c3e_8f0d_5d0a_b1f4_3a52_7e61_90c2);

/// An identity that is the same whenever and by whatever way the namespace is found: its UUID, else its NGUID, else a name-based
/// UUID of its EUI-64, else one of the controller's model and serial number and the namespace identifier.
pub fn identity(ids: &NamespaceIds, controller: &IdentifyController, nsid: u32) -> [u8; 16] {
    if let Some(id) = ids.uuid.or(ids.nguid) {
        return id;
    }
    let name = match ids.eui64 {
        Some(eui64) => eui64.to_vec(),
        None => [&controller.mn[..], &controller.sn[..], &nsid.to_le_bytes()[..]].concat(),
    };
    *Uuid::new_v5(&IDENTITIES, &name).as_bytes()
}
