use std::collections::BTreeMap;

use super::super::{DiskId, DiskOptions, Fault, Rates, SECTOR, Stuck};
use super::*;

const SIZE: u64 = 64 * SECTOR as u64;

fn disk(align: usize) -> DiskOptions {
    DiskOptions { size: SIZE, align, punch: true }
}

struct One {
    sim: Simulation,
    machine: Machine,
    reactor: Rc<Reactor>,
    disk: DiskId,
    file: FileId,
}

impl One {
    fn new(seed: u64, options: DiskOptions) -> One {
        let mut sim = Simulation::new(seed);
        sim.world().set_rates(Rates::calm());
        let machine = sim.machine(1);
        let disk = sim.world().add_disk(machine, options);
        let reactor = sim.reactor(machine, 0);
        let file = reactor.add_file(sim.world().open(disk));
        One { sim, machine, reactor, disk, file }
    }

    fn op(&mut self, op: Op) -> (i32, Payload) {
        let reactor = self.reactor.clone();
        let done = self.sim.run_until(&self.reactor, async move { reactor.op(op).await }).expect("done");
        (done.result, done.payload)
    }

    fn write(&mut self, offset: u64, len: usize, byte: u8, durable: bool) -> i32 {
        let mut buf = self.reactor.pool().alloc(len).expect("a buffer");
        buf.fill(byte);
        self.op(Op::Write { file: self.file, offset, buf, durable }).0
    }

    fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, i32> {
        let mut buf = self.reactor.pool().alloc(len).expect("a buffer");
        buf.fill(0xee);
        let (result, Payload::Buf(buf)) = self.op(Op::Read { file: self.file, offset, buf }) else {
            panic!("a read gives its buffer back")
        };
        if result < 0 { Err(result) } else { Ok(buf[..result as usize].to_vec()) }
    }

    fn sync(&mut self) -> i32 {
        self.op(Op::Sync { file: self.file }).0
    }

    /// Cuts the power and starts again.
    fn crash(&mut self) {
        self.sim.power_cut(self.machine);
        self.sim.restart(self.machine, 1);
        self.reactor = self.sim.reactor(self.machine, 0);
        self.file = self.reactor.add_file(self.sim.world().open(self.disk));
    }
}

#[test]
fn reads_see_what_was_written_and_end_at_the_end() {
    let mut one = One::new(1, disk(512));
    assert_eq!(one.read(0, 1024).unwrap(), vec![0; 1024]);
    assert_eq!(one.write(512, 1024, 7, false), 1024);
    assert_eq!(one.read(0, 2048).unwrap(), [vec![0; 512], vec![7; 1024], vec![0; 512]].concat());
    assert_eq!(one.read(SIZE - 512, 1024).unwrap().len(), 512);
    assert_eq!(one.read(SIZE, 512).unwrap().len(), 0);
    assert_eq!(one.write(SIZE, 512, 9, false), 512, "a regular file grows");
    assert_eq!(one.read(SIZE, 1024).unwrap(), vec![9; 512]);
}

#[test]
fn what_is_not_aligned_is_refused_or_done_by_a_buffered_file() {
    let mut one = One::new(2, disk(512));
    assert_eq!(one.write(1, 512, 1, false), -libc::EINVAL);
    assert_eq!(one.write(0, 100, 1, false), -libc::EINVAL);
    assert_eq!(one.read(256, 512), Err(-libc::EINVAL));
    let mut one = One::new(2, disk(1));
    assert_eq!(one.write(0, 2048, 1, false), 2048);
    assert_eq!(one.write(500, 100, 2, false), 100);
    let read = one.read(0, 2048).unwrap();
    assert!(read[..500].iter().all(|b| *b == 1) && read[500..600].iter().all(|b| *b == 2));
    assert!(read[600..].iter().all(|b| *b == 1));
}

#[test]
fn reads_and_writes_can_be_short() {
    let mut one = One::new(3, disk(512));
    one.sim.world().set_rates(Rates { short_io: 500_000, ..Rates::calm() });
    let (mut short_writes, mut short_reads) = (0, 0);
    for byte in 1..100u8 {
        let wrote = one.write(0, 8192, byte, false);
        assert!((512..=8192).contains(&wrote) && wrote % 512 == 0);
        short_writes += usize::from(wrote < 8192);
        assert!(one.sim.world().contents(one.disk, 0, wrote as usize).iter().all(|b| *b == byte));
        let read = one.read(0, 8192).unwrap();
        assert!(!read.is_empty() && read.len().is_multiple_of(512));
        short_reads += usize::from(read.len() < 8192);
    }
    assert!(short_writes > 10 && short_reads > 10, "{short_writes} {short_reads}");
}

#[test]
fn holes_are_punched_and_ranges_zeroed() {
    let mut one = One::new(4, disk(512));
    let (file, punch) = (one.file, libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE);
    assert_eq!(one.write(0, 8192, 5, true), 8192);
    assert_eq!(one.op(Op::Allocate { file, mode: punch, offset: 512, len: 1024 }).0, 0);
    assert_eq!(one.op(Op::Allocate { file, mode: libc::FALLOC_FL_ZERO_RANGE, offset: 4000, len: 200 }).0, 0);
    let read = one.read(0, 8192).unwrap();
    let zero = |i: usize| (512..1536).contains(&i) || (4000..4200).contains(&i);
    assert!(read.iter().enumerate().all(|(i, b)| *b == if zero(i) { 0 } else { 5 }));
    assert_eq!(one.op(Op::Allocate { file, mode: punch, offset: 0, len: 1 << 50 }).0, 0);
    assert_eq!(one.read(0, 8192).unwrap(), vec![0; 8192]);
    assert_eq!(one.op(Op::Allocate { file, mode: 0, offset: 0, len: 2 * SIZE }).0, 0);
    assert_eq!(one.read(2 * SIZE - 512, 1024).unwrap(), vec![0; 512]);
    assert_eq!(one.op(Op::Allocate { file, mode: 8, offset: 0, len: 512 }).0, -libc::EOPNOTSUPP);
    let mut one = One::new(4, DiskOptions { punch: false, ..disk(512) });
    assert_eq!(one.op(Op::Allocate { file, mode: punch, offset: 0, len: 512 }).0, -libc::EOPNOTSUPP);
}

#[test]
fn bad_sectors_and_full_disks() {
    let mut one = One::new(5, disk(512));
    one.sim.world().fault(Fault::BadSector { disk: one.disk, sector: 3 });
    assert_eq!(one.read(0, 1536).unwrap().len(), 1536);
    assert_eq!(one.read(1024, 1024), Err(-libc::EIO));
    assert_eq!(one.write(1536, 512, 1, false), 512);
    assert_eq!(one.read(1024, 1024).unwrap()[512..], [1; 512]);
    one.sim.world().fault(Fault::Full(one.disk));
    assert_eq!(one.write(1536, 512, 2, false), 512, "allocated already");
    assert_eq!(one.write(1536, 1024, 3, false), -libc::ENOSPC);
}

/// Random writes, holes, syncs and a power cut in the middle, against a model that knows what each sector may hold.
fn cut_in_the_middle(seed: u64) -> (usize, usize) {
    let mut one = One::new(seed, disk(512));
    one.sim.world().set_rates(Rates { short_io: 0, ..Rates::default() });
    let world = one.sim.world().clone();
    // Per sector: what may be there after a power cut, the first of it durable.
    let model: Rc<std::cell::RefCell<BTreeMap<u64, Vec<u8>>>> = Rc::default();
    let (reactor, file, possible) = (one.reactor.clone(), one.file, model.clone());
    one.reactor.spawn("writer", async move {
        for byte in 1..=250u8 {
            let (first, count) = (world.pick(60), 1 + world.pick(4));
            let sectors = first..first + count;
            match world.pick(6) {
                0 => {
                    // Nothing else is in flight, so what was before is durable afterwards.
                    assert_eq!(reactor.op(Op::Sync { file }).await.result, 0);
                    possible.borrow_mut().values_mut().for_each(|list| drop(list.drain(..list.len() - 1)));
                }
                choice => {
                    let (durable, zero) = (choice == 1, choice == 2);
                    let value = if zero { 0 } else { byte };
                    // From its start on it may be there.
                    for sector in sectors.clone() {
                        possible.borrow_mut().entry(sector).or_insert_with(|| vec![0]).push(value);
                    }
                    let (offset, len) = (first * SECTOR as u64, count as usize * SECTOR);
                    let done = if zero {
                        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                        reactor.op(Op::Allocate { file, mode, offset, len: len as u64 }).await.result
                    } else {
                        let mut buf = reactor.buffer(len).await;
                        buf.fill(byte);
                        reactor.op(Op::Write { file, offset, buf, durable }).await.result
                    };
                    assert!(done >= 0);
                    if durable {
                        for sector in sectors {
                            possible.borrow_mut().entry(sector).and_modify(|list| drop(list.drain(..list.len() - 1)));
                        }
                    }
                }
            }
        }
    });
    one.sim.run_rounds(20 + seed % 700).unwrap();
    one.crash();
    let model = model.take();
    let (mut lost, mut kept) = (0, 0);
    for (sector, list) in &model {
        let found = one.read(sector * SECTOR as u64, SECTOR).unwrap();
        assert!(found.iter().all(|b| *b == found[0]), "seed {seed}: sector {sector} is torn");
        assert!(list.contains(&found[0]), "seed {seed}: sector {sector} holds {}, possible were {list:?}", found[0]);
        if list.len() > 1 {
            lost += usize::from(Some(&found[0]) != list.last());
            kept += usize::from(Some(&found[0]) == list.last());
        }
    }
    (lost, kept)
}

#[test]
fn a_power_cut_keeps_what_was_durable_and_any_of_the_rest() {
    let outcomes: Vec<(usize, usize)> = (0..150).map(cut_in_the_middle).collect();
    let (lost, kept) = outcomes.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    assert!(lost > 200 && kept > 200, "{lost} sectors that were not synced were lost, {kept} kept");
}

#[test]
fn what_a_failed_sync_covered_is_never_written() {
    let mut lost = 0;
    for seed in 0..20 {
        let mut one = One::new(seed, disk(512));
        assert_eq!(one.write(0, 512, 1, true), 512);
        assert_eq!(one.write(0, 512, 2, false), 512);
        one.sim.world().fault(Fault::FailSync(one.disk));
        assert_eq!(one.sync(), -libc::EIO);
        assert_eq!(one.sync(), 0, "nothing is dirty any more, says the kernel");
        assert_eq!(one.read(0, 512).unwrap(), vec![2; 512]);
        assert_eq!(one.write(512, 512, 3, false), 512);
        assert_eq!(one.sync(), 0);
        one.crash();
        assert_eq!(one.read(512, 512).unwrap(), vec![3; 512]);
        lost += usize::from(one.read(0, 512).unwrap() == vec![1; 512]);
    }
    assert!((1..20).contains(&lost), "lost in {lost} of 20 worlds");
}

#[test]
fn a_killed_process_loses_nothing_it_was_told_was_written() {
    let mut one = One::new(7, disk(512));
    assert_eq!(one.write(0, 4096, 1, false), 4096);
    one.sim.kill(one.machine);
    one.sim.restart(one.machine, 1);
    one.reactor = one.sim.reactor(one.machine, 0);
    one.file = one.reactor.add_file(one.sim.world().open(one.disk));
    assert_eq!(one.read(0, 4096).unwrap(), vec![1; 4096]);
}

#[test]
fn peers_of_a_killed_process_hear_of_it_and_those_of_a_powerless_machine_do_not() {
    for powerless in [false, true] {
        let mut two = Two::new(8);
        let here = two.here.clone();
        let (near, ..) = two.connect();
        if powerless {
            two.sim.power_cut(two.far);
            let reactor = here.clone();
            let heard = two.sim.run_until(&here, async move { recv(&reactor, near).await });
            assert!(matches!(heard, Err(Stuck::Deadlock(_))));
            two.sim.restart(two.far, 1);
            assert_eq!(two.send(&here, near, b"still there?"), 12);
            two.sim.run_for(1_000_000).unwrap();
            assert_eq!(two.send(&here, near, b"no"), -libc::EPIPE, "the receive that waits was told of the reset");
        } else {
            two.sim.kill(two.far);
            assert_eq!(two.recv(&here, near).unwrap(), b"");
        }
    }
}
