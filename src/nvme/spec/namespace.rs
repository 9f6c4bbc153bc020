//! What Identify says of namespaces, decoded: formats, identifiers, lists (Base §5.17, NVM §4.1.5).
//!
//! Data of a controller may say anything: every function here is total, and what is cut short or contradicts itself is as if it
//! were not there.

use core::mem::size_of;

use zerocopy::FromBytes;

use super::{Csi, DescriptorHeader, DescriptorType, IdentifyNamespace, LbaFormat};
use crate::util::open_enum;

/// Formatted LBA Size, FLBAS (NVM §4.1.5.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flbas(pub u8);

impl Flbas {
    /// Index of the format in use, 0 to 63: bits 3:0 and 6:5. The upper bits count only where there are more than 16 formats.
    pub const fn index(self, nlbaf_z: u8) -> u8 {
        let low = self.0 & 0xf;
        if nlbaf_z < 16 { low } else { low | (self.0 >> 5 & 3) << 4 }
    }

    /// Metadata is transferred at the end of each block, not in a buffer of its own.
    pub const fn extended(self) -> bool {
        self.0 & 1 << 4 != 0
    }
}

/// End-to-end Data Protection Type Settings, DPS (NVM §4.1.5.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dps(pub u8);

impl Dps {
    /// Protection information type, 0 for none to 3.
    pub const fn protection(self) -> u8 {
        self.0 & 7
    }

    /// Protection information is the first bytes of the metadata, not the last.
    pub const fn first(self) -> bool {
        self.0 & 1 << 3 != 0
    }
}

open_enum! {
    /// What a deallocated block reads as, bits 2:0 of DLFEAT (NVM §4.1.5.1).
    pub enum DeallocatedReads: u8 {
        /// Not reported.
        UNKNOWN = 0,
        /// Bytes of 00h.
        ZEROS = 1,
        /// Bytes of FFh.
        ONES = 2,
    }
}

/// Deallocate Logical Block Features, DLFEAT (NVM §4.1.5.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dlfeat(pub u8);

impl Dlfeat {
    /// What a deallocated block reads as.
    pub const fn reads(self) -> DeallocatedReads {
        DeallocatedReads(self.0 & 7)
    }

    /// Write Zeroes takes the Deallocate bit.
    pub const fn deac(self) -> bool {
        self.0 & 1 << 3 != 0
    }
}

impl IdentifyNamespace {
    /// The format in use, with its index.
    pub fn format(&self) -> (u8, LbaFormat) {
        let index = Flbas(self.flbas).index(self.nlbaf_z);
        // 64 formats are there, and six bits.
        (index, self.lbaf[usize::from(index) % self.lbaf.len()])
    }

    /// The formats that there are, with their indices. Those with metadata or without a block size are among them.
    pub fn formats(&self) -> impl Iterator<Item = (u8, LbaFormat)> {
        self.lbaf
            .iter()
            .copied()
            .enumerate()
            .take(usize::from(self.nlbaf_z) + 1)
            .map(|(index, format)| (index as u8, format))
    }

    /// Deallocate features.
    pub const fn deallocation(&self) -> Dlfeat {
        Dlfeat(self.dlfeat)
    }
}

/// One Namespace Identification Descriptor (Base §5.17.2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor<'a> {
    /// Type.
    pub nidt: DescriptorType,
    /// Its value.
    pub value: &'a [u8],
}

/// The descriptors of a Namespace Identification Descriptor list, CNS 03h, to its end: a length of 0, a descriptor that is cut
/// short, or the end of the data (Base §5.17.2.3).
pub fn descriptors(mut list: &[u8]) -> impl Iterator<Item = Descriptor<'_>> {
    core::iter::from_fn(move || {
        let (header, rest) = DescriptorHeader::ref_from_prefix(list).ok()?;
        if header.len == 0 {
            return None;
        }
        let (value, rest) = rest.split_at_checked(usize::from(header.len))?;
        list = rest;
        Some(Descriptor { nidt: header.nidt, value })
    })
}

/// What a namespace is called, as far as it says; an identifier of zeros is none (Base §4.5.1, §5.17.2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceIds {
    /// IEEE extended unique identifier, big-endian.
    pub eui64: Option<[u8; 8]>,
    /// Namespace globally unique identifier, big-endian.
    pub nguid: Option<[u8; 16]>,
    /// UUID, big-endian.
    pub uuid: Option<[u8; 16]>,
    /// Command set; the NVM command set where it is not said.
    pub csi: Csi,
}

impl NamespaceIds {
    /// Reads a Namespace Identification Descriptor list, CNS 03h. Of two descriptors of a type the first counts, and those
    /// whose length is not their type's are passed over.
    pub fn of(list: &[u8]) -> Self {
        let (mut ids, mut csi) = (Self::default(), None);
        for Descriptor { nidt, value } in descriptors(list) {
            match nidt {
                DescriptorType::EUI64 => ids.eui64 = ids.eui64.or_else(|| identifier(value)),
                DescriptorType::NGUID => ids.nguid = ids.nguid.or_else(|| identifier(value)),
                DescriptorType::UUID => ids.uuid = ids.uuid.or_else(|| identifier(value)),
                DescriptorType::CSI if value.len() == 1 => csi = csi.or(Some(Csi(value[0]))),
                _ => {}
            }
        }
        Self { csi: csi.unwrap_or(Csi::NVM), ..ids }
    }

    /// The same, with what Identify Namespace says where the list did not: controllers before revision 1.3 have no list.
    pub fn or(self, namespace: &IdentifyNamespace) -> Self {
        Self {
            eui64: self.eui64.or_else(|| identifier(&namespace.eui64)),
            nguid: self.nguid.or_else(|| identifier(&namespace.nguid)),
            ..self
        }
    }
}

fn identifier<const N: usize>(value: &[u8]) -> Option<[u8; N]> {
    let id: [u8; N] = value.try_into().ok()?;
    (id != [0; N]).then_some(id)
}

/// The identifiers in a namespace list (Base §4.3), to its end: the first 0, or the end of the data. They are told as they are;
/// a list in order is strictly ascending.
pub fn namespace_list(page: &[u8]) -> impl Iterator<Item = u32> {
    page.chunks_exact(size_of::<u32>())
        .map(|entry| u32::from_le_bytes(entry.try_into().expect("chunks of four")))
        .take_while(|nsid| *nsid != 0)
}

#[cfg(test)]
mod tests {
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;

    #[test]
    fn formats_golden_bytes() {
        let mut namespace = IdentifyNamespace::new_zeroed();
        namespace.nlbaf_z = 1;
        namespace.as_mut_bytes()[128..136].copy_from_slice(&[0, 0, 9, 2, 8, 0, 12, 0]);
        namespace.flbas = 0x11;
        let (index, format) = namespace.format();
        assert_eq!((index, format.ms.get(), format.lbads, format.rp), (1, 8, 12, 0));
        assert!(Flbas(namespace.flbas).extended() && !Flbas(1).extended());
        assert_eq!(
            namespace.formats().map(|(index, format)| (index, format.lbads)).collect::<Vec<_>>(),
            [(0, 9), (1, 12)]
        );
        // Upper bits are not of the index where there are at most 16 formats.
        assert_eq!((Flbas(0x61).index(15), Flbas(0x61).index(16), Flbas(0xff).index(63)), (1, 0x31, 63));
        namespace.nlbaf_z = u8::MAX;
        namespace.flbas = u8::MAX;
        assert_eq!((namespace.format().0, namespace.formats().count()), (63, 64));
    }

    #[test]
    fn protection_and_deallocation_bytes() {
        assert_eq!((Dps(0x0b).protection(), Dps(0x0b).first()), (3, true));
        assert_eq!((Dps(0x01).protection(), Dps(0x01).first()), (1, false));
        assert_eq!((Dlfeat(0x09).reads(), Dlfeat(0x09).deac()), (DeallocatedReads::ZEROS, true));
        assert_eq!((Dlfeat(0xf2).reads(), Dlfeat(0xf2).deac()), (DeallocatedReads::ONES, false));
        assert_eq!(Dlfeat(0).reads(), DeallocatedReads::UNKNOWN);
    }

    #[test]
    fn identifiers_golden_bytes() {
        let mut list = vec![1, 8, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        list.extend_from_slice(&[2, 16, 0, 0]);
        list.extend_from_slice(&[0xaa; 16]);
        list.extend_from_slice(&[9, 2, 0, 0, 0xbb, 0xbb]);
        list.extend_from_slice(&[3, 16, 0, 0]);
        list.extend_from_slice(&[0; 16]);
        list.extend_from_slice(&[4, 1, 0, 0, 2]);
        list.extend_from_slice(&[3, 16, 0, 0]);
        list.extend_from_slice(&[0xcc; 16]);
        list.resize(4096, 0);
        let ids = NamespaceIds::of(&list);
        assert_eq!(ids.eui64, Some([1, 2, 3, 4, 5, 6, 7, 8]));
        assert_eq!((ids.nguid, ids.uuid, ids.csi), (Some([0xaa; 16]), Some([0xcc; 16]), Csi::ZONED));
        assert_eq!(descriptors(&list).count(), 6);
        // Whatever is cut short ends the list, and a wrong length is no identifier.
        for end in 0..list.len().min(80) {
            assert!(descriptors(&list[..end]).count() <= 6);
            NamespaceIds::of(&list[..end]);
        }
        assert_eq!(NamespaceIds::of(&list[..11]), NamespaceIds::default());
        assert_eq!(NamespaceIds::of(&[1, 4, 0, 0, 1, 2, 3, 4, 4, 2, 0, 0, 2, 2]), NamespaceIds::default());
        assert_eq!(NamespaceIds::of(&[4, 255, 0, 0]), NamespaceIds::default());
    }

    #[test]
    fn identify_namespace_fills_in() {
        let mut namespace = IdentifyNamespace::new_zeroed();
        namespace.as_mut_bytes()[104..120].copy_from_slice(&[0xdd; 16]);
        namespace.as_mut_bytes()[120..128].copy_from_slice(&[0xee; 8]);
        let ids = NamespaceIds { eui64: Some([1; 8]), ..NamespaceIds::default() }.or(&namespace);
        assert_eq!((ids.eui64, ids.nguid, ids.uuid), (Some([1; 8]), Some([0xdd; 16]), None));
        assert_eq!(NamespaceIds::default().or(&IdentifyNamespace::new_zeroed()), NamespaceIds::default());
    }

    #[test]
    fn lists_end_at_a_zero_or_with_the_data() {
        let mut page = vec![1, 0, 0, 0, 5, 1, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0];
        assert_eq!(namespace_list(&page).collect::<Vec<_>>(), [1, 0x105]);
        page.truncate(7);
        assert_eq!(namespace_list(&page).collect::<Vec<_>>(), [1]);
        assert_eq!(namespace_list(&[0xff; 4096]).count(), 1024);
        assert_eq!(namespace_list(&[]).count(), 0);
    }
}
