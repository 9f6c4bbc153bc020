//! What initiators are told is so.

use super::*;
use crate::bdev::{DeviceLimits, OpSet, Traits};
use crate::limits::TRANSFER_MAX;
use crate::scsi::Atomic;

fn told(read_only: bool, alter: impl FnOnce(&mut Traits)) -> Unit {
    let device = Traced::device(8 << 20, alter);
    let unit = Disk::describe(&*device, read_only, 0x0960, TaskFunctions { abort_task: true, ..Default::default() });
    unit.check().unwrap();
    unit
}

#[test]
fn sizes_and_limits_are_those_of_the_device() {
    let unit = told(false, |traits| {
        traits.physical_block_size = 4096;
        traits.limits.unmap_granularity = 64 << 10;
        traits.limits.write_granularity = 16 << 10;
    });
    let expected = Unit {
        blocks: 16384,
        block_size: 512,
        physical_block_exponent: 3,
        read_only: false,
        can_unmap: true,
        can_anchor: false,
        unmap_max: 1 << 20,
        unmap_granularity: 128,
        unmap_alignment: Some(0),
        write_same_max: 65535,
        compare_and_write_max: 255,
        transfer_max: 2048,
        optimal_transfer: 0,
        optimal_granularity: 32,
        atomic: Some(Atomic { max: 512, alignment: 1, granularity: 1 }),
        volatile_cache: true,
        copies: true,
        uuid: *b"0123456789abcdef",
        vendor: "REACTOR".to_owned(),
        product: "VOLUME".to_owned(),
        revision: env!("CARGO_PKG_VERSION")[..4].trim_end_matches('.').to_owned(),
        transport_version: 0x0960,
        task_functions: TaskFunctions { abort_task: true, ..Default::default() },
    };
    assert_eq!(unit, expected);
    let unit = told(false, |traits| (traits.block_size, traits.physical_block_size) = (4096, 4096));
    assert_eq!((unit.blocks, unit.physical_block_exponent, unit.transfer_max), (2048, 0, 256));
    assert_eq!((unit.compare_and_write_max, unit.optimal_granularity), (128, 1));
    assert_eq!((unit.unmap_granularity, unit.unmap_alignment), (0, None), "a granularity that nobody knows");
    let unit = told(false, |traits| traits.physical_block_size = 1536);
    assert_eq!(unit.physical_block_exponent, 0, "no power of two says it");
}

#[test]
fn what_the_device_cannot_do_is_not_told() {
    let unit = told(false, |traits| {
        traits.ops = OpSet::ALL.without(IoOp::Unmap).without(IoOp::CompareAndWrite);
        traits.limits.unmap_granularity = 4096;
        traits.volatile_cache = false;
    });
    assert_eq!((unit.can_unmap, unit.unmap_max, unit.unmap_granularity), (false, 0, 0));
    assert_eq!((unit.compare_and_write_max, unit.volatile_cache), (0, false));
    assert!(!ModeState::new(&unit).write_cache);
    let most = |limits: DeviceLimits| told(false, |traits| traits.limits = limits).compare_and_write_max;
    let limits = DeviceLimits::default();
    let atomic = |atomic_max| told(false, |traits| traits.limits.atomic_max = atomic_max).atomic;
    assert_eq!((atomic(0), atomic(511)), (None, None));
    assert_eq!(atomic(u64::MAX).map(|atomic| atomic.max), Some(2048), "no more than a transfer");
    assert_eq!(most(DeviceLimits { boundary: 64 << 10, ..limits }), 1);
    assert_eq!(most(DeviceLimits { boundary: 64 << 10, compare_and_write_max: 8192, ..limits }), 16);
    assert_eq!(most(DeviceLimits { transfer_max: 5000, ..limits }), 9);
    assert_eq!(most(DeviceLimits { compare_and_write_max: 100, ..limits }), 1);
}

#[test]
fn the_longest_of_each_is_carried_out() {
    let device = Traced::device(TRANSFER_MAX as u64, |traits| {
        traits.limits.transfer_max = 64 << 10;
        traits.limits.compare_and_write_max = 100 << 10;
    });
    let rig = Rig::new(device);
    let unit = rig.nexus.disk.unit().clone();
    let ones = vec![1; TRANSFER_MAX];
    rig.good(write(0, unit.transfer_max), &ones);
    rig.good(verify(0, unit.transfer_max, Check::Blocks), &ones);
    rig.good(or_write(0, unit.transfer_max), &ones);
    rig.good(write_atomic(3, 512), &ones[..512 << 9]);
    let most = usize::from(unit.compare_and_write_max);
    assert_eq!(most, 200);
    rig.good(compare_and_write(0, most as u32), &ones[..2 * most * 512]);
    rig.close();
}

#[test]
fn a_read_only_export_is_another_unit() {
    let (export, writable) = (told(true, |_| {}), told(false, |_| {}));
    assert!(export.read_only && !writable.read_only);
    assert_ne!(export.naa(), writable.naa());
    assert_ne!(export.serial(), writable.serial());
    assert_eq!(export.uuid[..10], writable.uuid[..10]);
    // A volume that nobody can write is one unit however it is exported.
    let [one, other] = [true, false].map(|read_only| told(read_only, |traits| traits.read_only = true));
    assert!(one.read_only && other.read_only);
    assert_eq!(one.uuid, other.uuid);
}

#[test]
fn a_unit_of_another_device_is_refused() {
    let reactor = solo(32 << 20).unwrap();
    let device = Traced::device(1 << 20, |_| {});
    let unit = unit_of(&device);
    for other in
        [Unit { blocks: unit.blocks + 1, ..unit.clone() }, Unit { block_size: 4096, blocks: 1, ..unit.clone() }]
    {
        let error = Disk::open(&reactor, &device, Arc::new(other)).err().unwrap().to_string();
        assert!(error.starts_with("volume \"traced\": a logical unit of "), "{error}");
    }
    // One that has grown meanwhile.
    Disk::open(&reactor, &device, Arc::new(Unit { blocks: unit.blocks - 1, ..unit })).unwrap();
    reactor.shut_down();
}
