//! Namespaces as the controller shows them.

use zerocopy::FromZeros;

use super::fault::{Fault, at};
use crate::nvme::spec::{
    Csi, DescriptorHeader, DescriptorType, IDENTIFY_LEN, IdentifyNamespace, IdentifyNamespaceIndependent, LbaFormat,
    NSFEAT_NSABP, NSFEAT_OPTPERF, NSID_BROADCAST, StatusCode,
};

/// One namespace: what the block device behind it is and can do. Every limit here is shown to hosts, so it is real.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Namespace identifier, 1 or above.
    pub nsid: u32,
    /// Stable identity, big-endian as in RFC 9562; NGUID and EUI64 follow from it.
    pub uuid: [u8; 16],
    /// Block size in bytes, a power of two from 512 up.
    pub block_size: u32,
    /// Size in blocks, not 0.
    pub blocks: u64,
    /// Preferred granularity and alignment of writes in bytes, a multiple of the block size.
    pub physical_block_size: u32,
    /// Preferred size of writes in bytes, a multiple of the block size.
    pub optimal_write_size: u32,
    /// Preferred granularity and alignment of deallocation in bytes, a multiple of the block size.
    pub unmap_granularity: u32,
    /// Blocks written atomically with respect to other commands, 1 or above.
    pub atomic_write_blocks: u32,
    /// Blocks written atomically with respect to a power failure, 1 or above.
    pub atomic_write_power_fail_blocks: u32,
    /// Largest fused compare and write in blocks, 1 or above.
    pub compare_and_write_blocks: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// It is a zoned namespace; `None`: one of the NVM Command Set.
    pub zones: Option<ZoneInfo>,
}

/// What the zones of a namespace have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneInfo {
    /// Blocks from the start of one to the start of the next; the namespace is a whole number of zones.
    pub blocks: u64,
    /// Most bytes of one append, at least a block.
    pub append_max: u64,
    /// Most open zones; `None` for no limit.
    pub open_max: Option<u32>,
    /// Most active zones; `None` for no limit.
    pub active_max: Option<u32>,
    /// Reads may cross zones.
    pub read_across: bool,
    /// Write Zeroes is carried out.
    pub write_zeroes: bool,
}

/// A zero's-based 16-bit count, saturated at 65,536.
fn zeros_based(count: u32) -> u16 {
    count.saturating_sub(1).min(u32::from(u16::MAX)) as u16
}

impl NamespaceInfo {
    /// The command set that it is of.
    pub const fn csi(&self) -> Csi {
        if self.zones.is_some() { Csi::ZONED } else { Csi::NVM }
    }

    /// Block size as a power of two.
    pub const fn block_shift(&self) -> u32 {
        self.block_size.trailing_zeros()
    }

    /// EUI64: the UUID folded to 8 bytes, marked as locally administered so that it cannot meet an assigned one.
    pub fn eui64(&self) -> [u8; 8] {
        let mut eui = [0; 8];
        for (i, byte) in eui.iter_mut().enumerate() {
            *byte = self.uuid[i] ^ self.uuid[i + 8];
        }
        // Bit 1 of the first byte: locally administered; bit 0: not a group address.
        eui[0] = eui[0] & !1 | 2;
        eui
    }

    const fn bytes_to_blocks(&self, bytes: u32) -> u32 {
        bytes >> self.block_shift()
    }

    /// Identify Namespace, CNS 00h (NVM §4.1.5.1).
    pub(super) fn identify(&self) -> IdentifyNamespace {
        let mut id = IdentifyNamespace::new_zeroed();
        id.nsze.set(self.blocks);
        id.ncap.set(self.blocks);
        id.nuse.set(self.blocks);
        id.nsfeat = NSFEAT_OPTPERF | NSFEAT_NSABP;
        id.lbaf[0] = LbaFormat { lbads: self.block_shift() as u8, ..LbaFormat::default() };
        id.nmic = 1;
        // Deallocated blocks read as zeros; Write Zeroes may deallocate. Of zones only their device knows.
        id.dlfeat = if self.zones.is_none() { 1 | 1 << 3 } else { 0 };
        id.nawun_z.set(zeros_based(self.atomic_write_blocks));
        id.nawupf_z.set(zeros_based(self.atomic_write_power_fail_blocks));
        id.nacwu_z.set(zeros_based(self.compare_and_write_blocks));
        id.nvmcap.set(u128::from(self.blocks) << self.block_shift());
        let write = zeros_based(self.bytes_to_blocks(self.physical_block_size));
        let unmap = zeros_based(self.bytes_to_blocks(self.unmap_granularity));
        id.npwg_z.set(write);
        id.npwa_z.set(write);
        id.npdg_z.set(unmap);
        id.npda_z.set(unmap);
        id.nows_z.set(zeros_based(self.bytes_to_blocks(self.optimal_write_size)));
        id.nsattr = u8::from(self.read_only);
        id.nguid = self.uuid;
        id.eui64 = self.eui64();
        id
    }

    /// I/O Command Set Independent Identify Namespace, CNS 08h (Base §5.17.2.8).
    pub(super) fn identify_independent(&self) -> IdentifyNamespaceIndependent {
        let mut id = IdentifyNamespaceIndependent::new_zeroed();
        id.nmic = 1;
        id.nsattr = u8::from(self.read_only);
        id.nstat = 1;
        id
    }

    /// Namespace Identification Descriptor list, CNS 03h (Base §5.17.2.3).
    pub(super) fn descriptors(&self) -> [u8; IDENTIFY_LEN] {
        let mut list = [0; IDENTIFY_LEN];
        let mut used = 0;
        let mut put = |nidt: DescriptorType, value: &[u8]| {
            let header = DescriptorHeader { nidt, len: value.len() as u8, reserved2: [0; 2] };
            let bytes = zerocopy::IntoBytes::as_bytes(&header);
            list[used..used + bytes.len()].copy_from_slice(bytes);
            used += bytes.len();
            list[used..used + value.len()].copy_from_slice(value);
            used += value.len();
        };
        put(DescriptorType::EUI64, &self.eui64());
        put(DescriptorType::NGUID, &self.uuid);
        put(DescriptorType::UUID, &self.uuid);
        put(DescriptorType::CSI, &[self.csi().0]);
        list
    }
}

/// The namespaces of a subsystem by NSID. Reactors with I/O queues hold a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespaces {
    /// Slot `nsid - 1`; the length is the largest valid NSID.
    slots: Vec<Option<NamespaceInfo>>,
}

impl Namespaces {
    /// A table whose valid NSIDs are 1 to `max_nsid`, none of them active.
    pub fn new(max_nsid: u32) -> Self {
        Self { slots: vec![None; max_nsid as usize] }
    }

    /// Makes a namespace active, in place of one with the same NSID. Returns false for an NSID that is not valid.
    pub fn insert(&mut self, info: NamespaceInfo) -> bool {
        match (info.nsid as usize).checked_sub(1).and_then(|i| self.slots.get_mut(i)) {
            Some(slot) => {
                *slot = Some(info);
                true
            }
            None => false,
        }
    }

    /// The active namespace with this NSID.
    #[inline]
    pub fn get(&self, nsid: u32) -> Option<&NamespaceInfo> {
        self.slots.get((nsid as usize).wrapping_sub(1))?.as_ref()
    }

    /// Active namespaces in the order of their NSIDs.
    pub fn iter(&self) -> impl Iterator<Item = &NamespaceInfo> {
        self.slots.iter().flatten()
    }

    /// Whether any of them has zones.
    pub fn is_zoned(&self) -> bool {
        self.iter().any(|ns| ns.zones.is_some())
    }

    /// Number of active namespaces.
    pub fn active(&self) -> usize {
        self.iter().count()
    }

    /// Largest valid NSID.
    pub fn max_nsid(&self) -> u32 {
        self.slots.len() as u32
    }

    /// The active namespace that a command addresses.
    ///
    /// # Errors
    /// Invalid Namespace or Format for 0, the broadcast value and what is above the largest valid NSID; Invalid Field
    /// for a valid NSID that is not active (Base §3.2.1.4).
    #[inline]
    pub fn resolve(&self, nsid: u32) -> Result<&NamespaceInfo, Fault> {
        match self.get(nsid) {
            Some(info) => Ok(info),
            None => Err(self.unresolved(nsid)),
        }
    }

    #[cold]
    pub(super) fn unresolved(&self, nsid: u32) -> Fault {
        if self.is_valid(nsid) {
            Fault::at(StatusCode::INVALID_FIELD, at::NSID)
        } else {
            Fault::at(StatusCode::INVALID_NAMESPACE, at::NSID)
        }
    }

    /// Whether the NSID may name a namespace, active or not.
    pub(super) fn is_valid(&self, nsid: u32) -> bool {
        nsid != 0 && nsid != NSID_BROADCAST && nsid <= self.max_nsid()
    }
}
