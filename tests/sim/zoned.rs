//! A disk with zones in software, driven by the NVMe driver and exported by the NVMe/TCP door, to a host that speaks commands.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use reactor::bdev::BlockDevice;
use reactor::bdev::device::nvme::{Nvme, NvmeDrive};
use reactor::nvme::host::{Command, Controller, Identity, Options, Queue};
use reactor::nvme::pcie::fake::{DiskOptions, FakeDisk, FakeOptions, FakePort, NamespaceOptions};
use reactor::nvme::pcie::{ControllerOptions, Drive, DriveOptions};
use reactor::nvme::spec::{
    Cap, Cc, Cns, NvmOpcode, Property, Sqe, StatusCode, ZoneReceiveAction, ZoneReceiveFields, ZoneReportFilter,
    ZoneSendAction, ZoneSendFields, ZoneState, zone_report,
};
use reactor::nvme::target::tcp::{Door, Export};
use reactor::reactor::Reactor;
use reactor::reactor::sim::{Machine, Rates, Simulation};

use super::plan::MS;
use super::target::{Inside, NQN};

const BLOCK: usize = 512;
/// Blocks of a zone, of which three quarters can be written.
const ZONE: u64 = 1024;
const ZONES: u64 = 300;

struct World {
    sim: Rc<RefCell<Simulation>>,
    server: Machine,
    disk: FakeDisk,
    port: FakePort,
    drive: Arc<NvmeDrive<FakePort>>,
    device: Arc<dyn BlockDevice>,
    door: Door<Inside>,
    address: SocketAddr,
    host: Rc<Reactor>,
}

impl World {
    /// The namespace is exported as 1, and once more as 2, read-only.
    fn start(seed: u64) -> World {
        let sim = Rc::new(RefCell::new(Simulation::new(seed)));
        sim.borrow().world().set_rates(Rates::default());
        let server = sim.borrow_mut().machine(1);
        let bytes = ZONES * ZONE * BLOCK as u64;
        let zoned = NamespaceOptions::zoned(1, bytes, BLOCK.ilog2() as u8, ZONE * BLOCK as u64);
        let disk = FakeDisk::new(DiskOptions { namespaces: vec![zoned], ..DiskOptions::default() });
        let port = disk.controller(FakeOptions { io_ns: (1_000, 50_000), ..FakeOptions::default() });
        let home = sim.borrow().reactor(server, 0);
        port.serve(&home);
        let (here, way) = (home.clone(), port.clone());
        let controller = ControllerOptions { depth: 32, prp_only: false, coalescing: None };
        let options = DriveOptions { controller, timeout_ns: 4_000 * MS };
        let opened = async move { Drive::open(&here, way, options, vec![0]).await };
        let drive = sim.borrow_mut().run_until(&home, opened).unwrap().expect("it comes up");
        let device: Arc<dyn BlockDevice> = Arc::new(Nvme::new("z".to_owned(), &drive, 1).expect("zones"));
        let mut door = Door::open_by(Inside::new(&sim, vec![home.remote()])).unwrap();
        let export = |nsid, read_only| Export { nsid, device: device.clone(), read_only };
        door.add_subsystem(NQN, None, vec![export(1, false), export(2, true)]).unwrap();
        let (socket, address) = sim.borrow().world().listen(server, 4420).unwrap();
        door.listen_on(socket, address).unwrap();
        let client = sim.borrow_mut().machine(1);
        let host = sim.borrow().reactor(client, 0);
        World { sim, server, disk, port, drive, device, door, address, host }
    }

    fn run<F: Future<Output = ()> + 'static>(&self, body: impl FnOnce(Host) -> F + 'static, css: u32) {
        let (reactor, address) = (self.host.clone(), self.address);
        let body = async move {
            let host = Host::connect(&reactor, address, css).await;
            body(host.clone()).await;
            host.0.1.close().await;
            host.0.0.close().await;
        };
        self.sim.borrow_mut().run_until(&self.host, body).unwrap();
    }

    fn finish(self) {
        let World { sim, server, port, drive, device, door, host, .. } = self;
        door.close();
        sim.borrow_mut().run_for(20_000 * MS).unwrap();
        drop(door);
        let home = sim.borrow().reactor(server, 0);
        let (here, id) = (home.clone(), device.common().id());
        let closed = async move {
            reactor::bdev::Handle::drain(&here, id).await;
            drive.close(&here).await
        };
        sim.borrow_mut().run_until(&home, closed).unwrap().expect("it closes");
        port.assert_clean();
        drop((home, host, device, port));
        drop(Rc::into_inner(sim).expect("nobody else has it"));
    }
}

/// A connected host.
#[derive(Clone)]
struct Host(Rc<(Controller, Queue)>);

impl Host {
    async fn connect(reactor: &Rc<Reactor>, address: SocketAddr, css: u32) -> Host {
        let mut options = Options::new(NQN, Identity::from_uuid([1; 16]));
        options.kato_ms = 0;
        let controller = Controller::connect(reactor, address, options).await.unwrap();
        assert!(Cap(controller.property_get(Property::CAP, true).await.unwrap()).has(Cap::CSS_IOCS));
        // Enabled anew, with the command sets that are asked for.
        controller.property_set(Property::CC, 0).await.unwrap();
        while controller.property_get(Property::CSTS, false).await.unwrap() & 1 == 1 {
            reactor.sleep(MS).await;
        }
        controller.property_set(Property::CC, Cc::enable(0, css).0).await.unwrap();
        let queue = Queue::connect(reactor, &controller.ticket(), 1).await.unwrap();
        Host(Rc::new((controller, queue)))
    }

    /// Status, dwords 0 and 1, and the data that came.
    async fn command(&self, sqe: Sqe, out: &[u8], len: usize) -> (StatusCode, u64, Vec<u8>) {
        let reactor = self.0.1.reactor();
        let command = if !out.is_empty() {
            let mut buf = reactor.buffer(out.len()).await;
            buf.copy_from_slice(out);
            Command::new(sqe).sending(buf)
        } else if len > 0 {
            let mut buf = reactor.buffer(len).await;
            buf.fill(0xA5);
            Command::new(sqe).filling(buf)
        } else {
            Command::new(sqe)
        };
        let answer = self.0.1.command(command).await.expect("an answer");
        let data = answer.data.map_or_else(Vec::new, |buf| buf.to_vec());
        (answer.cqe.status().code(), answer.cqe.result.get(), data)
    }

    fn ranged(opcode: NvmOpcode, nsid: u32, slba: u64, blocks: usize) -> Sqe {
        let mut sqe = Sqe::nvm(opcode, nsid);
        sqe.set_slba(slba);
        sqe.cdw12.set(blocks as u32 - 1);
        sqe
    }

    async fn write(&self, opcode: NvmOpcode, slba: u64, data: &[u8]) -> (StatusCode, u64) {
        let (status, result, _) = self.command(Host::ranged(opcode, 1, slba, data.len() / BLOCK), data, 0).await;
        (status, result)
    }

    async fn read(&self, slba: u64, blocks: usize) -> (StatusCode, Vec<u8>) {
        let (status, _, data) = self.command(Host::ranged(NvmOpcode::READ, 1, slba, blocks), &[], blocks * BLOCK).await;
        (status, data)
    }

    async fn manage(&self, nsid: u32, slba: u64, action: ZoneSendAction, all: bool) -> StatusCode {
        let bare = ZoneSendFields { slba, action, all }.to_sqe(nsid);
        let mut sqe = Sqe::nvm(NvmOpcode::ZONE_MANAGEMENT_SEND, nsid);
        (sqe.cdw10, sqe.cdw11, sqe.cdw13) = (bare.cdw10, bare.cdw11, bare.cdw13);
        self.command(sqe, &[], 0).await.0
    }

    /// The number in the header, and start, state and write pointer of the zones in the data.
    async fn report(
        &self,
        slba: u64,
        len: usize,
        filter: ZoneReportFilter,
        partial: bool,
    ) -> (u64, Vec<(u64, ZoneState, u64)>) {
        let action = ZoneReceiveAction::REPORT;
        let bare = ZoneReceiveFields { slba, numd_z: (len / 4 - 1) as u32, action, filter, partial }.to_sqe(2);
        let mut sqe = Sqe::nvm(NvmOpcode::ZONE_MANAGEMENT_RECEIVE, 2);
        (sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13) = (bare.cdw10, bare.cdw11, bare.cdw12, bare.cdw13);
        let (status, _, data) = self.command(sqe, &[], len).await;
        assert_eq!(status, StatusCode::SUCCESS);
        let (zones, there) = zone_report(&data).expect("a header");
        let there: Vec<_> = there.map(|zone| (zone.zslba.get(), zone.state(), zone.wp.get())).collect();
        let end = 64 * (1 + there.len());
        assert!(data[end..].iter().all(|byte| *byte == 0), "behind the last there are zeros");
        (zones, there)
    }
}

fn data(seed: usize, blocks: usize) -> Vec<u8> {
    (0..blocks * BLOCK).map(|at| (at / 7 + at / 512 + seed * 31) as u8).collect()
}

#[test]
fn a_zoned_disk_is_a_zoned_namespace() {
    for seed in 0..5 {
        let world = World::start(seed);
        world.run(commands, Cc::CSS_ALL);
        let mut written = data(1, 8);
        written.extend(data(2, 16));
        assert_eq!(world.disk.contents(1, ZONE * BLOCK as u64, 24 * BLOCK), written);
        world.finish();
    }
}

async fn commands(host: Host) {
    let reactor = host.0.1.reactor().clone();
    // Writes and appends, and where those went.
    assert_eq!(host.write(NvmOpcode::WRITE, ZONE, &data(1, 8)).await.0, StatusCode::SUCCESS);
    assert_eq!(host.write(NvmOpcode::ZONE_APPEND, ZONE, &data(2, 16)).await, (StatusCode::SUCCESS, ZONE + 8));
    assert_eq!(host.read(ZONE + 8, 16).await, (StatusCode::SUCCESS, data(2, 16)));
    for (opcode, slba, blocks, status) in [
        (NvmOpcode::WRITE, ZONE, 1, StatusCode::ZONE_INVALID_WRITE),
        (NvmOpcode::WRITE, ZONE + 25, 1, StatusCode::ZONE_INVALID_WRITE),
        (NvmOpcode::WRITE, 2 * ZONE - 1, 2, StatusCode::ZONE_BOUNDARY_ERROR),
        (NvmOpcode::ZONE_APPEND, ZONE + 1, 1, StatusCode::INVALID_FIELD),
        (NvmOpcode::ZONE_APPEND, ZONE, 257, StatusCode::INVALID_FIELD),
        (NvmOpcode::ZONE_APPEND, ZONES * ZONE, 1, StatusCode::LBA_OUT_OF_RANGE),
    ] {
        assert_eq!(host.write(opcode, slba, &data(3, blocks)).await.0, status, "{opcode:?} {slba}+{blocks}");
    }
    // Filled to its capacity, in writes that the disk takes in pieces, by many at once.
    let each = 32;
    let places = Rc::new(RefCell::new(Vec::new()));
    for writer in 0..24 {
        let (host, places) = (host.clone(), places.clone());
        reactor.spawn("append", async move {
            let (status, at) = host.write(NvmOpcode::ZONE_APPEND, 2 * ZONE, &data(writer, each)).await;
            assert_eq!(status, StatusCode::SUCCESS);
            assert_eq!(host.read(at, each).await.1, data(writer, each));
            places.borrow_mut().push(at);
        });
    }
    while places.borrow().len() < 24 {
        reactor.sleep(MS).await;
    }
    let mut places = places.take();
    places.sort_unstable();
    assert_eq!(places, (0..24).map(|index| 2 * ZONE + index * each as u64).collect::<Vec<_>>());
    assert_eq!(host.write(NvmOpcode::ZONE_APPEND, 2 * ZONE, &data(0, 1)).await.0, StatusCode::ZONE_IS_FULL);
    assert_eq!(host.write(NvmOpcode::WRITE, 3 * ZONE, &data(4, 768)).await.0, StatusCode::SUCCESS);
    assert_eq!(host.read(3 * ZONE, 768).await.1, data(4, 768));
    // What is managed, and the limits.
    for zone in 4..8 {
        assert_eq!(host.manage(1, zone * ZONE, ZoneSendAction::OPEN, false).await, StatusCode::SUCCESS);
    }
    assert_eq!(host.manage(1, 8 * ZONE, ZoneSendAction::OPEN, false).await, StatusCode::TOO_MANY_OPEN_ZONES);
    assert_eq!(host.manage(1, 4 * ZONE, ZoneSendAction::CLOSE, false).await, StatusCode::SUCCESS);
    assert_eq!(host.manage(1, 9 * ZONE, ZoneSendAction::CLOSE, false).await, StatusCode::INVALID_ZONE_TRANSITION);
    assert_eq!(host.write(NvmOpcode::WRITE, 8 * ZONE, &data(5, 1)).await.0, StatusCode::SUCCESS);
    assert_eq!(host.write(NvmOpcode::WRITE, 9 * ZONE, &data(5, 1)).await.0, StatusCode::TOO_MANY_ACTIVE_ZONES);
    assert_eq!(host.manage(1, 5 * ZONE, ZoneSendAction::FINISH, false).await, StatusCode::SUCCESS);
    assert_eq!(host.manage(2, 5 * ZONE, ZoneSendAction::RESET, false).await, StatusCode::NAMESPACE_WRITE_PROTECTED);
    reports(&host).await;
    // All of it anew, but for what is looked at afterwards.
    for zone in 2..9 {
        assert_eq!(host.manage(1, zone * ZONE, ZoneSendAction::RESET, false).await, StatusCode::SUCCESS);
    }
    assert_eq!(host.read(3 * ZONE, 8).await, (StatusCode::SUCCESS, vec![0; 8 * BLOCK]));
    assert_eq!(host.report(0, 64, ZoneReportFilter::EMPTY, false).await, (ZONES - 1, Vec::new()));
}

/// After [`commands`]: zone 1 is closed or open, 2, 3 and 5 are full, 4 is closed, 6 and 7 explicitly open, 8 open.
async fn reports(host: &Host) {
    let zone = |index: u64, state, written: Option<u64>| {
        (index * ZONE, state, written.map_or(u64::MAX, |blocks| index * ZONE + blocks))
    };
    let (count, all) = host.report(0, 1 << 20, ZoneReportFilter::ALL, false).await;
    assert_eq!((count, all.len() as u64), (ZONES, ZONES));
    assert_eq!((all[0], all[3]), (zone(0, ZoneState::EMPTY, Some(0)), zone(3, ZoneState::FULL, None)));
    assert_eq!((all[4], all[299]), (zone(4, ZoneState::CLOSED, Some(0)), zone(299, ZoneState::EMPTY, Some(0))));
    let full = [zone(2, ZoneState::FULL, None), zone(3, ZoneState::FULL, None), zone(5, ZoneState::FULL, None)];
    for (partial, len, told, count) in [(false, 4096, 3, 3), (true, 4096, 3, 3), (false, 192, 2, 3), (true, 192, 2, 2)]
    {
        let report = host.report(0, len, ZoneReportFilter::FULL, partial).await;
        assert_eq!(report, (count, full[..told].to_vec()), "partial: {partial}, {len} bytes");
    }
    // From the zone that a block is in; room for less than a descriptor, and for nothing but the number.
    assert_eq!(host.report(3 * ZONE + 5, 4096, ZoneReportFilter::FULL, true).await, (2, full[1..].to_vec()));
    assert_eq!(host.report(290 * ZONE, 100, ZoneReportFilter::ALL, false).await, (10, Vec::new()));
    assert_eq!(host.report(290 * ZONE, 64, ZoneReportFilter::ALL, true).await, (0, Vec::new()));
    let open = host.report(0, 4096, ZoneReportFilter::EXPLICITLY_OPEN, true).await;
    let wanted = vec![zone(6, ZoneState::EXPLICITLY_OPEN, Some(0)), zone(7, ZoneState::EXPLICITLY_OPEN, Some(0))];
    assert_eq!(open, (2, wanted));
    assert_eq!(host.report(0, 4096, ZoneReportFilter::OFFLINE, false).await, (0, Vec::new()));
    // The last of many, by a buffer that has room for a part of the records only.
    let (count, tail) = host.report(100 * ZONE, 64 + 150 * 64, ZoneReportFilter::EMPTY, false).await;
    assert_eq!((count, tail.len(), tail[149]), (200, 150, zone(249, ZoneState::EMPTY, Some(0))));
}

#[test]
fn a_host_that_knows_the_nvm_command_set_alone_sees_no_zoned_namespace() {
    let world = World::start(1);
    world.run(
        |host| async move {
            let page = host.0.0.identify(Cns::ACTIVE_NAMESPACES, 0).await.unwrap();
            assert!(page.iter().all(|byte| *byte == 0));
            assert_eq!(host.write(NvmOpcode::WRITE, 0, &data(1, 8)).await.0, StatusCode::INVALID_FIELD);
            assert_eq!(host.read(0, 8).await.0, StatusCode::INVALID_FIELD);
            assert_eq!(host.manage(1, 0, ZoneSendAction::RESET, true).await, StatusCode::INVALID_FIELD);
        },
        0,
    );
    assert_eq!(world.disk.contents(1, 0, 8 * BLOCK), vec![0; 8 * BLOCK]);
    world.finish();
}
