//! Parameter lists of commands on blocks, and the data of GET LBA STATUS.

use super::*;
use crate::scsi::spec::ProvisioningStatus;

fn unmap_list(ranges: &[(u64, u32)]) -> Vec<u8> {
    let len = ranges.len() as u16 * 16;
    let mut list = [&(len + 6).to_be_bytes()[..], &len.to_be_bytes(), &[0; 4]].concat();
    for (lba, blocks) in ranges {
        list.extend_from_slice(&lba.to_be_bytes());
        list.extend_from_slice(&blocks.to_be_bytes());
        list.extend_from_slice(&[0; 4]);
    }
    list
}

fn unmap(list: &[u8]) -> Result<Vec<(u64, u32)>, Sense> {
    unmap_ranges(list, &unit()).map(Iterator::collect)
}

#[test]
fn unmap_takes_ranges_in_the_unit() {
    let end = 1u64 << 19;
    assert_eq!(unmap(&unmap_list(&[])), Ok(vec![]));
    assert_eq!(unmap(&unmap_list(&[(0, 8), (5, 0), (end - 1, 1), (end, 0)])), Ok(vec![(0, 8), (end - 1, 1)]));
    for (lba, blocks) in [(end, 1), (end - 1, 2), (end + 1, 0), (u64::MAX, 1), (u64::MAX, u32::MAX), (1 << 55, 8)] {
        assert_eq!(unmap(&unmap_list(&[(0, 1), (lba, blocks)])), Err(Sense::out_of_range(lba)));
    }
}

#[test]
fn unmap_keeps_the_limits_of_block_limits() {
    assert!(unmap(&unmap_list(&[(0, 1 << 16)])).is_ok());
    assert_eq!(unmap(&unmap_list(&[(0, (1 << 16) + 1)])), Err(Sense::parameter(16)));
    assert_eq!(unmap(&unmap_list(&[(0, 1 << 15), (0, 1 << 15), (9, 1)])), Err(Sense::parameter(48)));
    assert_eq!(unmap(&unmap_list(&[(0, 1); 256])).map(|ranges| ranges.len()), Ok(256));
    assert_eq!(unmap(&unmap_list(&[(0, 1); 257])), Err(Sense::parameter(2)));
}

#[test]
fn unmap_lists_that_are_cut() {
    let list = unmap_list(&[(0, 1), (2, 1)]);
    for len in 0..4 {
        assert_eq!(unmap(&list[..len]), Err(Sense::list_length()));
    }
    // A descriptor that is not whole is ignored.
    assert_eq!(unmap(&list[..39]), Ok(vec![(0, 1)]));
    assert_eq!(unmap(&list[..8]), Ok(vec![]));
    let mut odd = list.clone();
    odd[3] = 31;
    assert_eq!(unmap(&odd), Ok(vec![(0, 1)]));
    let mut contradicting = list;
    contradicting[1] = 30;
    assert_eq!(unmap(&contradicting), Err(Sense::parameter(0)));
}

#[test]
fn random_unmap_lists() {
    let mut chance = Random(5);
    let mut taken = 0;
    for _ in 0..100_000 {
        let len = chance.up_to(100) as usize;
        let mut list = chance.bytes(len);
        if len > 8 {
            list[..4].copy_from_slice(&[0, 200, 0, chance.up_to(190) as u8]);
            for at in (8..len).filter(|at| matches!((at - 8) % 16, 0..=5 | 8 | 9)) {
                list[at] = 0;
            }
        }
        if let Ok(ranges) = unmap_ranges(&list, &unit()) {
            taken += 1;
            let mut sum = 0;
            for (lba, blocks) in ranges {
                assert!(blocks != 0 && lba + u64::from(blocks) <= 1 << 19);
                sum += blocks;
            }
            assert!(sum <= 1 << 16);
        }
    }
    assert!(taken > 1000);
}

#[test]
fn format_takes_only_what_it_does() {
    assert_eq!(format_parameters(&[0, 0, 0, 0]), Ok(()));
    assert_eq!(format_parameters(&[0, 2, 0, 0]), Ok(()));
    assert_eq!(format_parameters(&[0, 2, 0, 0, 0, 0, 0, 0]), Ok(()));
    assert_eq!(format_parameters(&[0, 0, 0]), Err(Sense::list_length()));
    assert_eq!(format_parameters(&[1, 0, 0, 0]), Err(Sense::parameter(0)));
    assert_eq!(format_parameters(&[0, 0, 0, 8]), Err(Sense::parameter(2)));
    assert_eq!(format_parameters(&[0, 0, 0, 1, 0, 0, 0, 0]), Err(Sense::parameter(3)));
    assert_eq!(format_parameters(&[0, 0, 0, 0, 0, 0, 0, 8]), Err(Sense::parameter(4)));
    for bit in 3..8 {
        assert_eq!(format_parameters(&[0, 1 << bit, 0, 0]), Err(Sense::parameter(1)));
    }
}

#[test]
fn golden_bytes_of_lba_status() {
    let extents = [
        LbaExtent { lba: 9, blocks: 7, status: ProvisioningStatus::MAPPED },
        LbaExtent { lba: 16, blocks: 0x100, status: ProvisioningStatus::DEALLOCATED },
    ];
    let mut golden = vec![0, 0, 0, 36, 0, 0, 0, 0];
    golden.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 7, 0, 0, 0, 0]);
    golden.extend_from_slice(&[0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 1, 0, 1, 0, 0, 0]);
    assert_eq!(lba_status(&extents, 1000), golden);
    assert_eq!(lba_status(&extents, 25), golden[..25]);
    assert_eq!([0, 8, 24, 39, 40, 41].map(lba_status_extents), [1, 1, 1, 1, 2, 2]);
}
