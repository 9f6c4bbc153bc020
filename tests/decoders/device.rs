//! The NVMe driver on a controller that does what bytes say: its registers, its answers and their order, its pages.
//!
//! Whatever it does, no call panics or waits for ever, every I/O ends once, no memory is given back that the controller may touch, and in the
//! end nothing is in use.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use reactor::bdev::device::nvme::{Nvme, NvmeDrive};
use reactor::bdev::{BlockDevice, Handle};
use reactor::nvme::pcie::fake::{DiskOptions, FakeDisk, FakeOptions, FakePort, NamespaceOptions};
use reactor::nvme::pcie::{ControllerOptions, Drive, DriveOptions};
use reactor::reactor::Reactor;
use reactor::reactor::clock::Entropy;
use reactor::reactor::io::{IoOp, IoStatus};
use reactor::reactor::sim::{Machine, Simulation};

/// The first bytes of the input of [`device`]: the first is anything, the others say what the controller is and what is asked of it.
pub const DEVICE_HEAD: usize = 4;

const MS: u64 = 1_000_000;
/// DMA memory of a reactor.
const MEMORY: usize = 4 << 20;
/// Bytes of each namespace.
const SIZE: u64 = 1 << 20;
/// I/Os of each reactor and namespace.
const IOS: u64 = 6;
/// Simulated time in which all of them end: six attempts, each of which is waited for as long as the controller asks for, within the driver's
/// limits.
const LIMIT_NS: u64 = 3 * 3600 * 1000 * MS;

/// A process with the driver.
struct World {
    simulation: Simulation,
    machine: Machine,
    reactors: u16,
    port: FakePort,
    seed: u64,
}

impl World {
    fn new(head: &[u8]) -> World {
        let bit = |n: u8| head[1] & 1 << n != 0;
        let mut simulation = Simulation::new(head[3].into());
        simulation.set_memory(MEMORY);
        let reactors = 1 + u16::from(bit(0));
        let machine = simulation.machine(reactors);
        let disk = DiskOptions {
            namespaces: [(1, 9), (2, 12)].map(|(nsid, shift)| NamespaceOptions::new(nsid, SIZE, shift)).to_vec(),
            write_cache: bit(1),
            sgls: u32::from(bit(2)),
            mdts: 4,
            ..DiskOptions::default()
        };
        let controller = FakeOptions {
            queues: 1 + u16::from(bit(7)),
            mqes_z: [3, 15, 63, 1023][usize::from(head[2] & 3)],
            dstrd: head[2] >> 2 & 3,
            timeout_500ms: 1,
            shadow_doorbells: bit(3),
            // That of the admin queue alone, or one for each.
            vectors: if bit(4) { 1 } else { 65 },
            function_reset: bit(5),
            // Else a controller that is not to be stopped would keep its memory.
            cut_off: true,
            fatal_loses: bit(6),
            io_ns: (0, [0, 50_000][usize::from(head[2] >> 4 & 1)]),
            seed: head[3].into(),
            ..FakeOptions::default()
        };
        let port = FakeDisk::new(disk).controller(controller);
        World { simulation, machine, reactors, port, seed: head[3].into() }
    }

    fn reactor(&self, number: u16) -> Rc<Reactor> {
        self.simulation.reactor(self.machine, number)
    }

    /// Brings the controller up; `None` if the driver refuses it.
    fn open(&mut self, depth: u16) -> Option<Arc<NvmeDrive<FakePort>>> {
        let home = self.reactor(0);
        self.port.serve(&home);
        let controller = ControllerOptions { prp_only: self.seed & 1 == 0, ..ControllerOptions::new(depth) };
        let options = DriveOptions { controller, timeout_ns: 100 * MS };
        let (here, port, reactors) = (home.clone(), self.port.clone(), (0..self.reactors).collect());
        let opening = async move { Drive::open(&here, port, options, reactors).await };
        self.simulation.run_until(&home, opening).expect("it ends").ok()
    }

    /// Has each reactor do I/O on each volume, and returns whether all of it went well.
    fn work(&mut self, devices: &[Arc<dyn BlockDevice>]) -> bool {
        let (left, failed) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
        for number in 0..self.reactors {
            let reactor = self.reactor(number);
            for device in devices {
                let Ok(handle) = Handle::open(&reactor, device) else {
                    failed.set(failed.get() + 1);
                    continue;
                };
                for index in 0..IOS {
                    let (left, failed, handle) = (left.clone(), failed.clone(), handle.clone());
                    left.set(left.get() + 1);
                    let chance = Entropy::new(self.seed << 8 | index << 4 | u64::from(number));
                    reactor.spawn("io", async move {
                        for _ in 0..2 {
                            let status = one(&handle, &chance).await;
                            failed.set(
                                failed.get() + u32::from(!matches!(status, IoStatus::Success | IoStatus::Miscompare)),
                            );
                        }
                        left.set(left.get() - 1);
                    });
                }
            }
        }
        let limit = self.simulation.world().now() + LIMIT_NS;
        while left.get() > 0 {
            assert!(self.simulation.world().now() < limit, "{} I/Os do not end", left.get());
            self.simulation.run_for(20 * MS).expect("it goes on");
        }
        failed.get() == 0 && !devices.is_empty()
    }

    /// Ends in the order in which a server does. Nothing may be left.
    fn end(mut self, drive: Option<Arc<NvmeDrive<FakePort>>>, devices: Vec<Arc<dyn BlockDevice>>) {
        for device in devices {
            // The home last: others may have a handle there.
            for number in (0..self.reactors).rev() {
                let (reactor, id) = (self.reactor(number), device.common().id());
                let here = reactor.clone();
                self.simulation.run_until(&reactor, async move { Handle::forget(&here, id).await }).expect("it ends");
            }
        }
        if let Some(drive) = drive {
            let home = self.reactor(0);
            let here = home.clone();
            // It may say that caches are lost.
            let closing = async move { drive.close(&here).await.map_err(|error| error.to_string()) };
            drop(self.simulation.run_until(&home, closing).expect("it ends"));
        }
        self.simulation.run_for(10 * MS).expect("it goes on");
        assert_eq!(self.port.counters().given_back, 0, "{:?}", self.port.dma_faults());
        for number in 0..self.reactors {
            assert_eq!(self.reactor(number).ios_in_use(), 0, "of reactor {number}");
        }
        let World { simulation, port, .. } = self;
        drop(port);
        assert_eq!(simulation.finish(), 0, "buffers were lost");
    }
}

/// Any I/O, to its end.
async fn one(handle: &Handle, chance: &Entropy) -> IoStatus {
    const OPS: [IoOp; 9] = [
        IoOp::Read,
        IoOp::Read,
        IoOp::Write,
        IoOp::Write,
        IoOp::WriteZeroes,
        IoOp::Unmap,
        IoOp::Flush,
        IoOp::CompareAndWrite,
        IoOp::Verify,
    ];
    let (reactor, common) = (handle.reactor(), handle.device().common());
    let op = OPS[chance.below(9) as usize];
    let block = u64::from(common.traits().block_size);
    let blocks = common.size() / block;
    let count = (1 + chance.below(12)).min(blocks);
    let (offset, len) = match op {
        IoOp::Flush => (0, 0),
        _ => (chance.below((blocks - count).min(64) + 1) * block, count * block),
    };
    let mut io = reactor.create_io().expect("there are enough");
    io.prepare(op, offset, len);
    let total = op.data_len(len) as usize;
    // In one piece, or in two at any byte.
    let cut = if chance.below(2) == 0 { total } else { chance.below(total as u64 + 1) as usize };
    for piece in [cut, total - cut].into_iter().filter(|piece| *piece > 0) {
        let mut buf = reactor.buffer(piece).await;
        buf.fill(0x5a);
        io.data.push_buf(buf);
    }
    let io = handle.execute(io).await;
    let status = io.status;
    reactor.retire_io(io);
    status
}

/// The driver on a controller that does what the bytes behind the head say.
pub fn device(input: &[u8]) -> bool {
    let Some((head, bytes)) = input.split_at_checked(DEVICE_HEAD) else { return false };
    let mut world = World::new(head);
    world.port.play(bytes.to_vec());
    let drive = world.open([1, 3, 8, 64][usize::from(head[2] >> 5 & 3)]);
    let mut devices: Vec<Arc<dyn BlockDevice>> = Vec::new();
    for info in drive.iter().flat_map(|drive| drive.namespaces()).take(3) {
        let name = format!("nvme{}", info.nsid);
        if let Some(Ok(device)) = drive.as_ref().map(|drive| Nvme::new(name, drive, info.nsid)) {
            devices.push(Arc::new(device));
        }
    }
    let well = world.work(&devices);
    world.end(drive, devices);
    well
}
