//! The arena in the I/O address space of a container.

use std::sync::Arc;

use hugepages::ChunkInfo;
use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_INFO_PGSIZES, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE,
    VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL, vfio_info_cap_header, vfio_iommu_type1_info,
};

use super::{Container, IommuInfo, VfioError};
use crate::sys::pci::AddressRange;

/// A window begins at a multiple of this: the largest page of an IOMMU, and of an arena.
const ALIGNMENT: u64 = 1 << 30;

/// Where 32-bit addresses end. Below, windows of interrupts and of devices lie, and 0 would be an address.
const LOW_END: u64 = 1 << 32;

/// Where the arena is for all devices of a container: byte `n` of the arena at I/O address `window + n`. Addresses of the process are not
/// used: an IOMMU may have fewer bits than they have, and reserves some of them.
#[derive(Debug)]
pub struct DmaSpace {
    container: Arc<Container>,
    window: AddressRange,
}

impl DmaSpace {
    /// Chooses a window for an arena of `arena` bytes: within what the IOMMU can map, and clear of `reserved`, the addresses that any
    /// group of the machine keeps for itself, so that disks which come later fit too. The container must have a group.
    ///
    /// # Errors
    /// If there is none so long.
    pub fn new(container: &Arc<Container>, reserved: &[AddressRange], arena: u64) -> Result<DmaSpace, VfioError> {
        let iommu = container.iommu()?;
        let start = window(&iommu.ranges, reserved, arena).ok_or(VfioError::NoWindow { bytes: arena })?;
        Ok(DmaSpace { container: container.clone(), window: AddressRange { start, end: start + (arena - 1) } })
    }

    /// The I/O addresses of the whole arena, grown or not.
    pub fn window(&self) -> AddressRange {
        self.window
    }

    /// Maps a chunk of the arena for reads and writes of all devices, and keeps it. Returns the I/O address of its first byte, which
    /// it has published then; a chunk that has it already is mapped.
    ///
    /// # Errors
    /// If it does not lie in the window, or the kernel refuses: its limit on locked memory, above all. The chunk has no I/O address then.
    pub fn map(&self, chunk: &ChunkInfo) -> Result<u64, VfioError> {
        let AddressRange { start, end } = self.window;
        let iova =
            start.checked_add(chunk.offset()).filter(|iova| iova.checked_add(chunk.len() as u64 - 1) <= Some(end));
        let iova = iova.ok_or(VfioError::NoWindow { bytes: chunk.offset() + chunk.len() as u64 })?;
        if chunk.iova() != Some(iova) {
            self.container.map(chunk, iova)?;
            chunk.set_iova(iova);
        }
        Ok(iova)
    }
}

/// The start of a window of `len` bytes: the lowest above 4 GiB, else the lowest that is not 0.
fn window(ranges: &[AddressRange], reserved: &[AddressRange], len: u64) -> Option<u64> {
    let fits = |range: &AddressRange, from: u64| {
        let mut start = from.max(range.start).checked_next_multiple_of(ALIGNMENT)?;
        loop {
            let end = start.checked_add(len.checked_sub(1)?).filter(|end| *end <= range.end)?;
            let Some(taken) = reserved.iter().filter(|taken| taken.start <= end && start <= taken.end).max() else {
                return Some(start);
            };
            start = taken.end.checked_add(1)?.checked_next_multiple_of(ALIGNMENT)?;
        }
    };
    let lowest = |from: u64| ranges.iter().filter_map(|range| fits(range, from)).min();
    lowest(LOW_END).or_else(|| lowest(ALIGNMENT))
}

/// The body of the first capability `id` in a structure of the kernel, whose chain begins at `at`. The kernel's offsets are not trusted.
pub(super) fn capability(bytes: &[u8], at: u32, id: u32) -> Option<&[u8]> {
    let mut at = at as usize;
    // No chain has as many links as this: one that leads back to itself ends.
    for _ in 0..bytes.len() / size_of::<vfio_info_cap_header>() {
        let rest = bytes.get(at..).filter(|_| at != 0)?;
        let (header, body) = rest.split_at_checked(size_of::<vfio_info_cap_header>())?;
        if u32::from(u16::from_le_bytes([header[0], header[1]])) == id {
            return Some(body);
        }
        at = u32_at(header, 4)? as usize;
    }
    None
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..)?.first_chunk().copied()?))
}

/// What the kernel has said of an IOMMU. One that names no ranges maps every address.
pub(super) fn parse(info: &vfio_iommu_type1_info, bytes: &[u8]) -> IommuInfo {
    let of = |id: u32| {
        if info.flags & VFIO_IOMMU_INFO_CAPS == 0 { None } else { capability(bytes, info.cap_offset, id) }
    };
    let everything = vec![AddressRange { start: 0, end: u64::MAX }];
    let ranges = of(VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE).map_or(everything, |body| {
        let count = u32_at(body, 0).unwrap_or_default() as usize;
        let pairs = (0..count).map(|n| 8 + 16 * n);
        pairs.map_while(|at| Some(AddressRange { start: u64_at(body, at)?, end: u64_at(body, at + 8)? })).collect()
    });
    let page_sizes = if info.flags & VFIO_IOMMU_INFO_PGSIZES == 0 { 4096 } else { info.iova_pgsizes };
    let mappings_left = of(VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL).and_then(|body| u32_at(body, 0));
    IommuInfo { page_sizes, ranges, mappings_left }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn range(start: u64, end: u64) -> AddressRange {
        AddressRange { start, end }
    }

    #[test]
    fn a_window_lies_above_4_gib_if_it_fits() {
        let ranges = [range(0, 0xfedf_ffff), range(0xfef0_0000, (1 << 48) - 1)];
        assert_eq!(window(&ranges, &[], 8 * GIB), Some(4 * GIB));
        assert_eq!(window(&ranges, &[range(5 * GIB, 5 * GIB)], GIB), Some(4 * GIB));
        assert_eq!(window(&ranges, &[range(5 * GIB, 5 * GIB)], GIB + 1), Some(6 * GIB));
        let reserved = [range(20 * GIB, 21 * GIB), range(4 * GIB, 6 * GIB - 1), range(0, 0xff_ffff)];
        assert_eq!(window(&ranges, &reserved, 16 * GIB), Some(22 * GIB));
        // 39 bits.
        assert_eq!(window(&[range(0, (1 << 39) - 1)], &[], 508 * GIB), Some(4 * GIB));
        assert_eq!(window(&[range(0, (1 << 39) - 1)], &[], 508 * GIB + 1), Some(GIB));
    }

    #[test]
    fn a_window_lies_below_if_it_must_and_never_at_0() {
        let ranges = [range(0, 0xfedf_ffff)];
        assert_eq!(window(&ranges, &[], 2 * GIB), Some(GIB));
        assert_eq!(window(&ranges, &[], 3 * GIB), None, "0 is no address");
        assert_eq!(window(&ranges, &[range(0xfee0_0000, 0xfeef_ffff), range(0, 0x9_ffff)], 2 * GIB), Some(GIB));
        assert_eq!(window(&ranges, &[range(GIB, GIB)], GIB), Some(2 * GIB));
        assert_eq!(window(&[], &[], GIB), None);
        assert_eq!(window(&[range(u64::MAX - 4096, u64::MAX)], &[], 4096), None);
        assert_eq!(window(&ranges, &[range(GIB, u64::MAX)], GIB), None);
        assert_eq!(window(&ranges, &[], 0), None);
    }

    fn info(bytes: &[u8], flags: u32) -> IommuInfo {
        let info = vfio_iommu_type1_info {
            argsz: bytes.len() as u32,
            flags,
            iova_pgsizes: 0x4020_1000,
            cap_offset: u32_at(bytes, 16).unwrap(),
            pad: 0,
        };
        parse(&info, bytes)
    }

    /// As Linux 7.3 answers for an emulated VT-d: ranges at 24 with the next capability behind them, then what is left.
    fn answer() -> Vec<u8> {
        let words: [u32; 23] = [
            92,
            3,
            0x4020_1000,
            0,
            24,
            0, // structure
            0x0001_0001,
            72,
            2,
            0, // ranges, the next at 72, two of them
            0,
            0,
            0xfedf_ffff,
            0,
            0xfef0_0000,
            0,
            0xffff_ffff,
            0xffff, // to 2^48
            0x0001_0003,
            0,
            65_535, // mappings that are left
            0,
            0,
        ];
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn what_the_kernel_says_of_an_iommu_is_read() {
        let found = info(&answer(), 3);
        let ranges = vec![range(0, 0xfedf_ffff), range(0xfef0_0000, (1 << 48) - 1)];
        assert_eq!(found, IommuInfo { page_sizes: 0x4020_1000, ranges, mappings_left: Some(65_535) });
        let found = info(&answer(), 1);
        assert_eq!(
            (found.ranges, found.mappings_left),
            (vec![range(0, u64::MAX)], None),
            "a kernel without capabilities"
        );
        assert_eq!(info(&answer(), 0).page_sizes, 4096);
    }

    #[test]
    fn a_chain_that_leads_nowhere_ends() {
        let mut bytes = answer();
        for next in [24u32, 0, 91, 92, u32::MAX] {
            bytes[28..32].copy_from_slice(&next.to_le_bytes());
            let found = info(&bytes, 3);
            assert_eq!((found.ranges.len(), found.mappings_left), (2, None), "{next}");
        }
        bytes[32..36].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(info(&bytes, 3).ranges.len() < 6, "no more than the bytes hold");
        for len in 20..bytes.len() {
            info(&bytes[..len], 3);
        }
    }
}
