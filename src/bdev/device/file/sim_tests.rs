//! A file volume on simulated disks: failures on demand, short transfers, power cuts, and races in any order of turns.

use super::*;
use crate::bdev::Handle;
use crate::bdev::device::testing::{end, io_with, pattern};
use crate::reactor::clock::Entropy;
use crate::reactor::io::{IoOp, IoStatus};
use crate::reactor::sim::{DiskId, DiskOptions, Fault, Rates, Simulation};
use std::cell::{Cell, RefCell};

const SIZE: u64 = 64 << 10;

fn options() -> Options {
    Options {
        name: "disk".to_owned(),
        uuid: [0; 16],
        path: PathBuf::new(),
        size: SIZE,
        block_size: 512,
        physical_block_size: 512,
        direct: true,
        home: 0,
    }
}

fn open(simulation: &Simulation, disk: DiskId, unit: u32) -> Arc<dyn BlockDevice> {
    let geometry = Geometry { memory: unit, unit, zeroes: unit, physical: unit, allocation: unit, direct: true };
    Arc::new(File::over(options(), simulation.world().open(disk), geometry))
}

fn disk(unit: u32, punch: bool) -> DiskOptions {
    DiskOptions { size: SIZE, align: unit as usize, punch }
}

/// Executes one I/O on reactor 0 of the machine.
async fn run(handle: &Handle, op: IoOp, offset: u64, len: u64, data: &[u8]) -> (IoStatus, Vec<u8>) {
    let done = end(handle, io_with(handle.reactor(), op, offset, len, data, &[])).await;
    (done.status, done.data)
}

/// Random operations, some of them at the same time on ranges apart, against a model; disks that do things by parts.
fn random_operations(seed: u64, unit: u32, punch: bool) {
    let mut simulation = Simulation::new(seed);
    let machine = simulation.machine(1);
    let disk = simulation.world().add_disk(machine, disk(unit, punch));
    simulation.world().set_rates(Rates { short_io: 200_000, ..Rates::default() });
    let reactor = simulation.reactor(machine, 0);
    let device = open(&simulation, disk, unit);
    let handle = Handle::open(&reactor, &device).unwrap();
    let tasks = 4;
    let share = SIZE / tasks;
    let alive = Rc::new(Cell::new(tasks));
    let model = Rc::new(RefCell::new(vec![0; SIZE as usize]));
    for task in 0..tasks {
        let (handle, alive, model) = (handle.clone(), alive.clone(), model.clone());
        reactor.spawn("load", async move {
            let chance = Entropy::new(seed * 8 + task);
            for step in 0..25 {
                // Ranges of different tasks share units at their edges when the unit is above the block.
                let first = chance.below(share / 512);
                let count = 1 + chance.below((share / 512 - first).min(24));
                let (at, len) = (task * share + first * 512, count * 512);
                let range = at as usize..(at + len) as usize;
                let new = pattern(seed ^ step ^ at, len as usize);
                let now = model.borrow()[range.clone()].to_vec();
                let cut = chance.below(len) as usize;
                let mut io = match chance.below(6) {
                    0 => io_with(handle.reactor(), IoOp::Read, at, len, &vec![0xDB; len as usize], &[cut]),
                    1 => io_with(handle.reactor(), IoOp::Unmap, at, len, &[], &[]),
                    2 => io_with(handle.reactor(), IoOp::WriteZeroes, at, len, &[], &[]),
                    3 => io_with(handle.reactor(), IoOp::Compare, at, len, &now, &[cut]),
                    4 => io_with(handle.reactor(), IoOp::CompareAndWrite, at, len, &[&now[..], &new].concat(), &[cut]),
                    _ => io_with(handle.reactor(), IoOp::Write, at, len, &new, &[cut & !511]),
                };
                io.fua = chance.below(4) == 0;
                let op = io.op;
                let done = end(&handle, io).await;
                assert_eq!(done.status, IoStatus::Success, "seed {seed}, {op:?} {at}+{len}, step {step}");
                match op {
                    IoOp::Read => assert!(done.data == now, "seed {seed}, read {at}+{len}, step {step}"),
                    IoOp::Write | IoOp::CompareAndWrite => model.borrow_mut()[range].copy_from_slice(&new),
                    IoOp::Unmap | IoOp::WriteZeroes => model.borrow_mut()[range].fill(0),
                    _ => {}
                }
            }
            alive.set(alive.get() - 1);
        });
    }
    while alive.get() > 0 {
        simulation.run_for(10_000_000).unwrap();
    }
    assert!(simulation.world().contents(disk, 0, SIZE as usize) == *model.borrow(), "seed {seed}");
    drop(handle);
    assert_eq!(simulation.finish(), 0);
}

#[test]
fn random_operations_match_a_model_whatever_the_disk_does_by_parts() {
    for seed in 0..40 {
        random_operations(seed, 512, true);
        random_operations(seed, 512, false);
        random_operations(seed, 4096, true);
        random_operations(seed, 4096, false);
    }
}

/// Two reactors write blocks of the same units, and count in one of them by compare and write.
fn share_units(seed: u64, unit: u32) {
    let mut simulation = Simulation::new(seed);
    let machine = simulation.machine(2);
    let disk = simulation.world().add_disk(machine, disk(unit, true));
    let device = open(&simulation, disk, unit);
    let alive = Rc::new(Cell::new(0));
    let last = Rc::new(RefCell::new([0_u8; 15]));
    for task in 0..4_u64 {
        let reactor = simulation.reactor(machine, (task % 2) as u16);
        let (device, alive, last) = (device.clone(), alive.clone(), last.clone());
        alive.set(alive.get() + 1);
        let here = reactor.clone();
        reactor.spawn("load", async move {
            let handle = Handle::open(&here, &device).unwrap();
            let chance = Entropy::new(seed * 8 + task);
            for step in 0..12_u8 {
                // Block 15 is the counter, the others belong to one task each.
                let mine = (chance.below(15) / 4 * 4 + task).min(14);
                if mine % 4 == task {
                    let value = step * 16 + task as u8 + 1;
                    let (status, _) = run(&handle, IoOp::Write, mine * 512, 512, &[value; 512]).await;
                    assert_eq!(status, IoStatus::Success);
                    last.borrow_mut()[mine as usize] = value;
                }
                let now = loop {
                    let (_, now) = run(&handle, IoOp::Read, 15 * 512, 512, &[0; 512]).await;
                    let data = [now.clone(), vec![now[0] + 1; 512]].concat();
                    match run(&handle, IoOp::CompareAndWrite, 15 * 512, 512, &data).await.0 {
                        IoStatus::Success => break now,
                        IoStatus::Miscompare => {}
                        other => panic!("{other:?}"),
                    }
                };
                assert!(now.iter().all(|b| *b == now[0]), "seed {seed}: torn");
            }
            alive.set(alive.get() - 1);
        });
    }
    while alive.get() > 0 {
        simulation.run_for(10_000_000).unwrap();
    }
    for (index, value) in last.borrow().iter().enumerate() {
        let block = simulation.world().contents(disk, index as u64 * 512, 512);
        assert!(block.iter().all(|b| b == value), "seed {seed}: block {index} lost its last write");
    }
    assert_eq!(simulation.world().contents(disk, 15 * 512, 512), [48; 512], "seed {seed}: counts lost");
    assert_eq!(simulation.finish(), 0);
}

#[test]
fn blocks_of_one_unit_written_by_two_reactors_are_all_kept() {
    for seed in 0..100 {
        share_units(seed, 4096);
        share_units(seed, 512);
    }
}

#[test]
fn after_a_failed_sync_flushes_fail_until_the_volume_is_opened_again() {
    for durable_write in [false, true] {
        let mut simulation = Simulation::new(1);
        let machine = simulation.machine(2);
        let disk = simulation.world().add_disk(machine, disk(512, true));
        simulation.world().set_rates(Rates::calm());
        let device = open(&simulation, disk, 512);
        let (first, second) = (simulation.reactor(machine, 0), simulation.reactor(machine, 1));
        let on_first = Handle::open(&first, &device).unwrap();
        let on_second = Handle::open(&second, &device).unwrap();
        simulation.world().fault(Fault::FailSync(disk));
        let handle = on_first.clone();
        let statuses = simulation.run_until(&first, async move {
            let mut io = io_with(handle.reactor(), IoOp::Write, 0, 512, &[1; 512], &[]);
            io.fua = durable_write;
            let written = end(&handle, io).await.status;
            (written, run(&handle, IoOp::Flush, 0, 0, &[]).await.0, run(&handle, IoOp::Flush, 0, 0, &[]).await.0)
        });
        let written = if durable_write { IoStatus::MediaError } else { IoStatus::Success };
        assert_eq!(statuses.unwrap(), (written, IoStatus::MediaError, IoStatus::MediaError));
        let handle = on_second.clone();
        let elsewhere = simulation.run_until(&second, async move { run(&handle, IoOp::Flush, 0, 0, &[]).await.0 });
        assert_eq!(elsewhere.unwrap(), IoStatus::MediaError, "the other reactor's channel knows");
        let again = open(&simulation, disk, 512);
        let handle = Handle::open(&first, &again).unwrap();
        let reopened = simulation.run_until(&first, async move { run(&handle, IoOp::Flush, 0, 0, &[]).await.0 });
        assert_eq!(reopened.unwrap(), IoStatus::Success);
        drop((on_first, on_second));
        simulation.finish();
    }
}

#[test]
fn a_bad_sector_and_a_full_disk_fail_what_they_concern() {
    let mut simulation = Simulation::new(2);
    let machine = simulation.machine(1);
    let disk = simulation.world().add_disk(machine, disk(512, true));
    simulation.world().set_rates(Rates::calm());
    let reactor = simulation.reactor(machine, 0);
    let handle = Handle::open(&reactor, &open(&simulation, disk, 512)).unwrap();
    simulation.world().fault(Fault::BadSector { disk, sector: 3 });
    let world = simulation.world().clone();
    let done = simulation.run_until(&reactor, async move {
        run(&handle, IoOp::Write, 0, 512, &[7; 512]).await;
        let (status, data) = run(&handle, IoOp::Read, 0, 4096, &[0xDB; 4096]).await;
        assert_eq!((status, data), (IoStatus::MediaError, vec![0; 4096]), "no bytes of a failed read");
        assert_eq!(run(&handle, IoOp::Read, 2048, 512, &[1; 512]).await, (IoStatus::Success, vec![0; 512]));
        assert_eq!(run(&handle, IoOp::Compare, 1536, 512, &[0; 512]).await.0, IoStatus::MediaError);
        assert_eq!(run(&handle, IoOp::Write, 1536, 512, &[8; 512]).await.0, IoStatus::Success);
        assert_eq!(run(&handle, IoOp::Read, 1536, 512, &[1; 512]).await, (IoStatus::Success, vec![8; 512]));
        world.fault(Fault::Full(disk));
        assert_eq!(run(&handle, IoOp::Write, 8192, 512, &[1; 512]).await.0, IoStatus::NoSpace);
        assert_eq!(run(&handle, IoOp::Write, 0, 512, &[1; 512]).await.0, IoStatus::Success, "allocated before");
        assert_eq!(run(&handle, IoOp::Flush, 0, 0, &[]).await.0, IoStatus::Success, "nothing acknowledged is lost");
    });
    done.unwrap();
    assert_eq!(simulation.finish(), 0);
}

#[test]
fn what_was_flushed_or_forced_survives_the_power() {
    for seed in 0..50 {
        for unit in [512, 4096] {
            let mut simulation = Simulation::new(seed);
            let machine = simulation.machine(1);
            let disk = simulation.world().add_disk(machine, disk(unit, seed % 2 == 0));
            let reactor = simulation.reactor(machine, 0);
            let handle = Handle::open(&reactor, &open(&simulation, disk, unit)).unwrap();
            let written = simulation.run_until(&reactor, async move {
                run(&handle, IoOp::Write, 0, 8192, &pattern(seed, 8192)).await;
                run(&handle, IoOp::Flush, 0, 0, &[]).await;
                for (op, at, data) in [
                    (IoOp::Write, 1024, &pattern(seed + 1, 512)[..]),
                    (IoOp::WriteZeroes, 4096, &[]),
                    (IoOp::Write, 16384, &pattern(seed + 2, 4096)),
                ] {
                    let len = if data.is_empty() { 3584 } else { data.len() as u64 };
                    let mut io = io_with(handle.reactor(), op, at, len, data, &[]);
                    io.fua = true;
                    assert_eq!(end(&handle, io).await.status, IoStatus::Success);
                }
                run(&handle, IoOp::Write, 32768, 4096, &[0xEE; 4096]).await.0
            });
            assert_eq!(written.unwrap(), IoStatus::Success);
            simulation.power_cut(machine);
            let mut expected = pattern(seed, 8192);
            expected[1024..1536].copy_from_slice(&pattern(seed + 1, 512));
            expected[4096..4096 + 3584].fill(0);
            let contents = |at, len| simulation.world().contents(disk, at, len);
            assert!(contents(0, 8192) == expected, "seed {seed}");
            assert!(contents(16384, 4096) == pattern(seed + 2, 4096), "seed {seed}");
            drop(reactor);
            simulation.finish();
        }
    }
}

#[test]
fn a_reset_ends_after_what_came_before_it() {
    let mut simulation = Simulation::new(3);
    let machine = simulation.machine(1);
    let disk = simulation.world().add_disk(machine, disk(512, true));
    simulation.world().set_rates(Rates::calm());
    let reactor = simulation.reactor(machine, 0);
    let handle = Handle::open(&reactor, &open(&simulation, disk, 512)).unwrap();
    let order = Rc::new(RefCell::new(Vec::new()));
    for (name, op, len) in [("write", IoOp::Write, 512), ("reset", IoOp::Reset, 0), ("later", IoOp::Write, 512)] {
        let (handle, order) = (handle.clone(), order.clone());
        reactor.spawn("one", async move {
            let status = run(&handle, op, 0, len, &vec![1; len as usize]).await.0;
            order.borrow_mut().push((name, status));
        });
    }
    simulation.run_for(100_000_000).unwrap();
    let before = order.borrow().iter().position(|(name, _)| *name == "write").unwrap();
    let reset = order.borrow().iter().position(|(name, _)| *name == "reset").unwrap();
    assert!(before < reset && order.borrow().iter().all(|(_, status)| *status == IoStatus::Success));
    drop((handle, reactor));
    assert_eq!(simulation.finish(), 0);
}

#[test]
fn a_dropped_channel_stays_until_its_last_io_has_ended() {
    let mut simulation = Simulation::new(4);
    let machine = simulation.machine(1);
    let disk = simulation.world().add_disk(machine, disk(512, true));
    let reactor = simulation.reactor(machine, 0);
    let device = open(&simulation, disk, 512);
    let before = (reactor.tasks_alive(), reactor.pool().stats().bytes_in_use);
    let channel = device.open(&reactor).unwrap();
    simulation.run_for(1_000_000).unwrap();
    assert_eq!(reactor.tasks_alive(), before.0 + 8, "its helpers");
    for (op, len) in [(IoOp::Read, 4096), (IoOp::Compare, 4096)] {
        let io = io_with(&reactor, op, 0, len, &vec![0; len as usize], &[]);
        // Polled once and dropped: its task is gone, the I/O is under way.
        let mut future = std::pin::pin!(reactor.run_io(io, |io| channel.submit(io)));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(future.as_mut().poll(&mut context).is_pending());
    }
    drop(channel);
    simulation.run_for(1_000_000_000).unwrap();
    assert_eq!(reactor.tasks_alive(), before.0, "its helpers have ended");
    let after = reactor.pool().stats().bytes_in_use;
    assert_eq!(after, before.1, "the buffers of both, and the reserve, are back");
    drop(reactor);
    assert_eq!(simulation.finish(), 0);
}

#[test]
fn a_reactor_that_ends_under_load_gives_every_buffer_back() {
    for seed in 0..20 {
        let mut simulation = Simulation::new(seed);
        let machine = simulation.machine(2);
        let disk = simulation.world().add_disk(machine, disk(4096, true));
        let device = open(&simulation, disk, 4096);
        for task in 0..24_u64 {
            let reactor = simulation.reactor(machine, (task % 2) as u16);
            let (device, here) = (device.clone(), reactor.clone());
            reactor.spawn("load", async move {
                let handle = Handle::open(&here, &device).unwrap();
                loop {
                    // Aligned, bounced, below the unit, compared, exclusive: each in flight at some point.
                    let (op, len) = match task % 5 {
                        0 => (IoOp::Read, 4096),
                        1 => (IoOp::Write, 512),
                        2 => (IoOp::CompareAndWrite, 512),
                        3 => (IoOp::Compare, 1024),
                        _ => (IoOp::Write, 8192),
                    };
                    let data = vec![0; op.data_len(len) as usize];
                    let io = io_with(handle.reactor(), op, task / 8 * 8192, len, &data, &[100]);
                    end(&handle, io).await;
                }
            });
        }
        simulation.run_rounds(seed * 7).unwrap();
        assert_eq!(simulation.finish(), 0, "seed {seed}");
    }
}
