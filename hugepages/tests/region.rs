//! Regions: growth while in use, discarding, bounds, size without cost.
#![cfg(not(loom))]

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use hugepages::{Region, RegionError, RegionOptions};
use proptest::prelude::*;

const PAGE: usize = 4096;

fn region(len: usize) -> Region {
    Region::new(len, RegionOptions::default()).expect("address space for a small region")
}

/// A line of smaps in bytes, of the mapping that starts at the region's first byte.
fn detail(region: &Region, name: &str) -> usize {
    let start = format!("{:x}-", region.address_of(0));
    let maps = fs::read_to_string("/proc/self/smaps").expect("proc is mounted");
    let mut lines = maps.lines().skip_while(|line| !line.starts_with(&start));
    let value = lines.find_map(|line| line.strip_prefix(name)).expect("the region is mapped");
    let kib: usize = value.trim().trim_end_matches(" kB").parse().expect("a number of kB");
    kib * 1024
}

fn resident(region: &Region) -> usize {
    detail(region, "Rss:")
}

#[test]
fn hugepages_are_a_wish_that_the_kernel_grants() {
    let mode = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    if !mode.contains("[madvise]") {
        eprintln!("skipped: transparent hugepages are not a matter of madvise here: {mode}");
        return;
    }
    for (hugepages, bytes) in [(true, 4 << 20), (false, 0)] {
        let region = Region::new(8 << 20, RegionOptions { hugepages, ..RegionOptions::default() });
        let region = region.expect("address space for a small region");
        region.write(1, b"x");
        region.write(2 << 20, b"x");
        assert_eq!(detail(&region, "AnonHugePages:"), bytes);
    }
}

#[test]
fn a_tebibyte_costs_nothing_until_written() {
    let region = region(1 << 40);
    let mut read = [0xAA; PAGE];
    region.read((1 << 40) - PAGE, &mut read);
    assert_eq!(read, [0; PAGE]);
    region.write((1 << 39) + 5, b"data");
    assert_eq!(region.compare((1 << 39) + 4, b"\0data\0"), Ok(()));
    assert!(resident(&region) <= 64 * PAGE, "{} bytes resident", resident(&region));
}

#[test]
fn discarded_pages_go_back_to_the_kernel() {
    let region = region(8 << 20);
    region.write(0, &vec![7; 8 << 20]);
    assert_eq!(resident(&region), 8 << 20);
    // Half a page at either end stays, zeroed.
    region.discard(PAGE / 2, (4 << 20) + PAGE);
    assert_eq!(resident(&region), (4 << 20));
    assert_eq!(region.compare(0, &[7; PAGE / 2]), Ok(()));
    assert_eq!(region.compare(PAGE / 2, &vec![0; (4 << 20) + PAGE]), Ok(()));
    assert_eq!(region.compare((4 << 20) + 3 * PAGE / 2, &[7; PAGE / 2]), Ok(()));
}

#[test]
fn compare_names_the_first_difference() {
    let region = region(64 << 10);
    let mut data: Vec<u8> = (0..9000).map(|i| (i % 251) as u8).collect();
    region.write(100, &data);
    assert_eq!(region.compare(100, &data), Ok(()));
    for differs in [8999, 4096, 513, 512, 511, 0] {
        data[differs] ^= 1;
        assert_eq!(region.compare(100, &data), Err(differs));
    }
}

#[test]
fn growth_is_seen_by_users_of_the_old_part() {
    let region = region(3 * PAGE + 17);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut count = 0_u32;
            while !done.load(Ordering::Acquire) || count == 0 {
                count = count.wrapping_add(1);
                let end = region.len();
                region.write(end - 4, &count.to_le_bytes());
                assert_eq!(region.compare(end - 4, &count.to_le_bytes()), Ok(()));
                thread::yield_now();
            }
        });
        for len in [3 * PAGE + 18, 4 * PAGE, 64 << 20, 1 << 30] {
            let before = region.address_of(0);
            region.grow(len).expect("less than was reserved");
            assert_eq!((region.len(), region.address_of(0)), (len, before));
        }
        done.store(true, Ordering::Release);
    });
    assert!(matches!(region.grow(PAGE), Err(RegionError::Shrink { .. })));
    let beyond = region.capacity() + 1;
    assert!(matches!(region.grow(beyond), Err(RegionError::Reserved { .. })));
    assert_eq!(region.len(), 1 << 30);
}

#[test]
fn the_reserve_bounds_growth() {
    let options = RegionOptions { reserve: 64 << 20, hugepages: true, numa_node: Some(0) };
    let region = Region::new(PAGE, options).expect("node 0 is everywhere");
    region.grow(64 << 20).expect("what was reserved");
    region.write((64 << 20) - 1, b"x");
    assert!(region.grow(region.capacity() + 1).is_err());
}

#[test]
fn an_impossible_region_is_an_error() {
    let options = RegionOptions { numa_node: Some(999), ..RegionOptions::default() };
    assert!(matches!(Region::new(PAGE, options), Err(RegionError::NumaNode { node: 999 })));
    for len in [usize::MAX, isize::MAX as usize, 1 << 60] {
        assert!(matches!(Region::new(len, RegionOptions::default()), Err(RegionError::Reserve { .. })));
    }
}

#[test]
fn ranges_outside_are_refused_without_wrapping() {
    let region = region(2 * PAGE);
    let outside = [(2 * PAGE, 1), (2 * PAGE - 1, 2), (usize::MAX, 1), (usize::MAX - 1, 4), (0, 2 * PAGE + 1)];
    for (offset, len) in outside {
        let mut data = vec![0; len];
        assert!(catch_unwind(AssertUnwindSafe(|| region.read(offset, &mut data))).is_err());
        assert!(catch_unwind(|| region.write(offset, &vec![0; len])).is_err());
        assert!(catch_unwind(|| region.zero(offset, len)).is_err());
        assert!(catch_unwind(|| region.discard(offset, len)).is_err());
        assert!(catch_unwind(|| region.compare(offset, &vec![0; len])).is_err());
    }
    assert!(catch_unwind(|| region.zero(1, usize::MAX)).is_err());
    region.write(2 * PAGE, &[]);
    region.zero(2 * PAGE, 0);
    region.discard(2 * PAGE, 0);
}

/// Copies race by design; each byte read is one that somebody wrote there.
#[test]
fn racing_copies_see_old_or_new_bytes() {
    let region = region(PAGE);
    thread::scope(|scope| {
        for mark in [0x11, 0x22] {
            let region = region.clone();
            scope.spawn(move || (0..2000).for_each(|_| region.write(0, &[mark; PAGE])));
        }
        let mut seen = [0; PAGE];
        for _ in 0..2000 {
            region.read(0, &mut seen);
            assert!(seen.iter().all(|byte| matches!(byte, 0 | 0x11 | 0x22)));
        }
    });
}

#[derive(Clone, Debug)]
enum Op {
    Write(usize, Vec<u8>),
    Zero(usize, usize),
    Discard(usize, usize),
    Grow(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let offset = || 0..40 * PAGE;
    let len = || prop_oneof![0..200_usize, 0..9 * PAGE];
    let data = len().prop_flat_map(|len| prop::collection::vec(any::<u8>(), len));
    prop_oneof![
        4 => (offset(), data).prop_map(|(offset, data)| Op::Write(offset, data)),
        2 => (offset(), len()).prop_map(|(offset, len)| Op::Zero(offset, len)),
        2 => (offset(), len()).prop_map(|(offset, len)| Op::Discard(offset, len)),
        1 => (0..4 * PAGE).prop_map(Op::Grow),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_region_behaves_like_a_vector(start in 0..20 * PAGE, ops in prop::collection::vec(op(), 0..60)) {
        let region = region(start);
        let mut model = vec![0_u8; start];
        for op in ops {
            let clamp = |offset: usize, len: usize| {
                let offset = offset.min(model.len());
                (offset, len.min(model.len() - offset))
            };
            match op {
                Op::Write(offset, data) => {
                    let (offset, len) = clamp(offset, data.len());
                    region.write(offset, &data[..len]);
                    model[offset..offset + len].copy_from_slice(&data[..len]);
                }
                Op::Zero(offset, len) => {
                    let (offset, len) = clamp(offset, len);
                    region.zero(offset, len);
                    model[offset..offset + len].fill(0);
                }
                Op::Discard(offset, len) => {
                    let (offset, len) = clamp(offset, len);
                    region.discard(offset, len);
                    model[offset..offset + len].fill(0);
                }
                Op::Grow(more) => {
                    model.resize(model.len() + more, 0);
                    region.grow(model.len()).expect("less than was reserved");
                }
            }
            let mut whole = vec![0xFF; model.len()];
            region.read(0, &mut whole);
            prop_assert_eq!(&whole, &model);
            prop_assert_eq!(region.compare(0, &model), Ok(()));
        }
    }
}
