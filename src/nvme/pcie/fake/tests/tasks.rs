//! Work by tasks, in simulated time.

use super::*;

#[test]
fn tasks_work_when_a_doorbell_rings_and_sleep_until_an_answer_is_due() {
    let options = FakeOptions { enable_ns: 30_000_000, admin_ns: (2000, 9000), ..FakeOptions::default() };
    let disk = FakeDisk::new(DiskOptions::default());
    let mut host = Host::cold(disk, FakeOptions { io_ns: (500_000, 500_000), ..options });
    host.enable();
    host.advance(29_999_999);
    assert_eq!(host.csts(), 0);
    host.advance(2_000_000);
    assert_eq!(host.csts(), 1);
    host.add_queue(16);
    let flush = host.push(1, command(0, 1, &[]));
    host.ring(1);
    host.advance(499_999);
    assert_eq!(host.take(1), None);
    let turns = host.sim.turns();
    // Timers are late by a millisecond at most.
    host.advance(1_500_000);
    assert_eq!(host.take(1).map(|done| done.cid), Some(flush));
    // An idle controller has nothing done for it.
    host.advance(1_000_000_000);
    assert!(host.sim.turns() - turns < 100, "{} turns", host.sim.turns() - turns);
    host.port.detach(&host.reactor, 1);
    host.push(1, command(0, 1, &[]));
    host.ring(1);
    host.advance(1_000_000);
    assert_eq!(host.take(1), None, "nobody works");
    host.finish();
}

#[test]
fn answers_come_in_an_order_that_the_seed_decides() {
    let order = |io_ns: (u64, u64)| {
        let disk = FakeDisk::new(DiskOptions::default());
        let mut host = Host::cold(disk, FakeOptions { io_ns, ..FakeOptions::default() });
        host.enable();
        host.add_queue(16);
        for _ in 0..15 {
            host.push(1, command(0, 1, &[]));
        }
        host.ring(1);
        host.advance(3_000_000);
        let cids: Vec<u16> = std::iter::from_fn(|| host.take(1)).map(|done| done.cid).collect();
        host.finish();
        cids
    };
    let (straight, mixed) = (order((0, 0)), order((1000, 900_000)));
    assert!(straight.is_sorted() && straight.len() == 15, "{straight:?}");
    assert!(!mixed.is_sorted() && mixed.len() == 15, "{mixed:?}");
    assert_eq!(mixed, order((1000, 900_000)));
}

/// A driver on another thread than the reactors that work, which sleep in between.
struct Apart<'a> {
    port: &'a FakePort,
    rings: Vec<Ring>,
}

impl Apart<'_> {
    fn run(&mut self, qid: u16, cid: u16, dwords: Dwords) -> u16 {
        let ring = &mut self.rings[usize::from(qid)];
        ring.push(cid, dwords);
        self.port.registers().write32(0x1000 + 8 * u32::from(qid), ring.tail.into());
        let done = (0..u64::from(u32::MAX)).find_map(|_| {
            std::thread::yield_now();
            ring.take()
        });
        self.port.registers().write32(0x1004 + 8 * u32::from(qid), ring.head.into());
        let done = done.expect("an answer");
        assert_eq!(done.cid, cid);
        done.code
    }
}

#[test]
fn two_reactors_work_at_their_queues_and_are_woken() {
    use crate::reactor::Idle;
    use crate::reactor::start::Reactors;
    use crate::sys::affinity::allowed_cores;
    use hugepages::{Arena, ArenaOptions, HugepagePolicy};

    let cores = allowed_cores().expect("cores");
    let arena = ArenaOptions { size: 64 << 20, hugepages: HugepagePolicy::Off, numa_node: None };
    let pair = [cores[0], cores.get(1).copied().unwrap_or(cores[0])];
    let reactors = Reactors::start(&pair, Idle::Adaptive, Arena::new(arena).expect("an arena")).expect("reactors");
    let remotes = reactors.remotes().to_vec();
    let port = FakeDisk::new(DiskOptions::default()).controller(FakeOptions::default());
    let blocks = remotes[0].ask(|reactor| (0..10).map(|_| reactor.pool().alloc(PAGE).map(Buf::into_device)).collect());
    let blocks: Option<Vec<DeviceBuf>> = blocks.expect("a reactor");
    let blocks = blocks.expect("memory");
    for block in &blocks {
        block.zero();
        port.memory(block);
    }
    let mut driver = Apart { port: &port, rings: Vec::new() };
    for pair in blocks.chunks_exact(2).take(3) {
        driver.rings.push(Ring::new(pair[0].clone(), pair[1].clone(), 8));
    }
    for (qid, remote) in [(0, 0), (1, 0), (2, 1)] {
        let there = port.clone();
        let attached = remotes[remote].ask(move |reactor| match qid {
            0 => there.serve(reactor),
            _ => {
                let hands = Rc::new(Hands::default());
                there.attach(reactor, qid, hands.clone());
                reactor.set_service(hands);
            }
        });
        attached.expect("a reactor");
    }
    port.registers().write32(0x24, 7 << 16 | 7);
    port.registers().write64(0x28, blocks[0].address() as u64);
    port.registers().write64(0x30, blocks[1].address() as u64);
    port.registers().write32(0x14, 0x0046_0061);
    let mut cid = 0;
    for qid in [1, 2] {
        for create in create(qid, &driver.rings[usize::from(qid)]) {
            cid += 1;
            assert_eq!(driver.run(0, cid, create), OK);
        }
    }
    let data = [&blocks[6], &blocks[7]];
    for round in 0..200 {
        let qid = 1 + round % 2;
        let (mine, other) = (data[usize::from(qid) - 1], data[2 - usize::from(qid)]);
        mine.store64(8, u64::from(round) + 1);
        assert_eq!(driver.run(qid, 1, with_prps(ranged(1, 3, 1), mine.address() as u64, 0)), OK);
        assert_eq!(driver.run(3 - qid, 2, with_prps(ranged(2, 3, 1), other.address() as u64, 0)), OK);
        assert_eq!(other.load64(8), u64::from(round) + 1);
        if round % 20 == 0 {
            // Long enough for the reactors to fall asleep.
            while !remotes.iter().all(|remote| remote.is_asleep()) {
                std::thread::yield_now();
            }
        }
    }
    port.assert_clean();
    drop(driver);
    reactors.stop();
}

#[test]
fn a_process_that_is_killed_leaves_the_disk_to_the_next() {
    let disk = FakeDisk::new(DiskOptions::default());
    let mut host = Host::cold(disk.clone(), FakeOptions { io_ns: (1000, 1000), ..FakeOptions::default() });
    host.enable();
    host.add_queue(16);
    let buf = host.buffer(PAGE, 7);
    let write = with_prps(ranged(1, 3, 1), buf.address() as u64, 0);
    assert_eq!(host.hold_and_run(write, vec![buf]).0.code, OK);
    host.push(1, ranged(1, 4, 1));
    host.ring(1);
    host.advance(1);
    let Host { sim, reactor, port, .. } = host;
    drop(reactor);
    let counters = port.counters();
    sim.finish();
    assert_eq!(port.counters(), counters);
    let mut host = Host::cold(disk, FakeOptions { stepped: true, ..FakeOptions::default() });
    host.enable();
    host.add_queue(16);
    assert_eq!(host.read(3), (OK, vec![7; PAGE]));
    host.finish();
}
