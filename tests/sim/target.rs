//! The machine under test: disks, volumes, and the process with its door.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use reactor::bdev::device::{file, malloc};
use reactor::bdev::layer::inject::{self, Control};
use reactor::bdev::{BlockDevice, Channel, Common, DeviceError};
use reactor::iscsi::door as iscsi;
use reactor::nvme::target::tcp::{self as nvme, Export, HOME};
use reactor::reactor::Reactor;
use reactor::reactor::io::Io;
use reactor::reactor::mailbox::{Reach, Remote};
use reactor::reactor::sim::{DiskId, DiskOptions, Machine, Simulation};

use super::drive::{Drive, Totals};
use super::iscsi::{IQN, lun_of};
use super::model::Crash;
use super::plan::{Kind, MS, Plan};

/// The subsystem.
pub const NQN: &str = "nqn.2026-11.io.reactor:sim";
const PORT: u16 = 4420;
/// DMA memory of a host: enough for all its workers at once.
const HOST_MEMORY: usize = 16 << 20;

/// How a door in a simulation reaches its reactors: they and everybody else have their turns until one has answered.
pub struct Inside {
    sim: Rc<RefCell<Simulation>>,
    remotes: Vec<Remote>,
}

impl Inside {
    pub fn new(sim: &Rc<RefCell<Simulation>>, remotes: Vec<Remote>) -> Inside {
        Inside { sim: sim.clone(), remotes }
    }
}

impl Reach for Inside {
    fn remotes(&self) -> &[Remote] {
        &self.remotes
    }

    fn ask<R: Send + 'static>(&self, remote: &Remote, f: impl FnOnce(&Rc<Reactor>) -> R + Send + 'static) -> Option<R> {
        self.sim.borrow_mut().ask(remote, f).unwrap()
    }

    fn ask_within<R: Send + 'static>(
        &self,
        remote: &Remote,
        _: Duration,
        f: impl FnOnce(&Rc<Reactor>) -> R + Send + 'static,
    ) -> Option<R> {
        self.ask(remote, f)
    }
}

/// A device as it is, but for aborts: as most devices, it takes nothing back.
struct Stubborn(Arc<dyn BlockDevice>);

struct StubbornChannel(Box<dyn Channel>);

impl BlockDevice for Stubborn {
    fn common(&self) -> &Common {
        self.0.common()
    }

    fn open(&self, reactor: &Rc<Reactor>) -> Result<Box<dyn Channel>, DeviceError> {
        Ok(Box::new(StubbornChannel(self.0.open(reactor)?)))
    }
}

impl Channel for StubbornChannel {
    fn submit(&self, io: Io) -> Poll<Io> {
        self.0.submit(io)
    }
}

/// How hosts come in.
enum Door {
    Nvme(nvme::Door<Inside>),
    Iscsi(iscsi::Door<Inside>, Box<iscsi::Target>),
}

impl Door {
    fn connections(&self) -> usize {
        match self {
            Door::Nvme(door) => door.connections(),
            Door::Iscsi(door, _) => door.connections(),
        }
    }

    fn drain(&self) {
        match self {
            Door::Nvme(door) => door.drain(),
            Door::Iscsi(door, _) => door.drain(),
        }
    }

    fn close(&self) {
        match self {
            Door::Nvme(door) => door.close(),
            Door::Iscsi(door, _) => door.close(),
        }
    }

    /// Adds an export, or removes it.
    fn change(&mut self, export: &Export, add: bool) {
        match self {
            Door::Nvme(door) if add => door.add_namespace(NQN, export.clone()).unwrap(),
            Door::Nvme(door) => door.remove_namespace(NQN, export.nsid).unwrap(),
            Door::Iscsi(door, target) => {
                let lun = lun_for(export);
                target.luns.retain(|other| other.lun != lun.lun);
                target.luns.extend(add.then_some(lun));
                door.set_target((**target).clone()).unwrap();
            }
        }
    }
}

fn lun_for(export: &Export) -> iscsi::Lun {
    let lun = lun_of(export.nsid as usize - 1);
    iscsi::Lun { lun, device: export.device.clone(), read_only: export.read_only }
}

/// What a reactor holds: the same before hosts come and after they went.
#[derive(Debug, PartialEq, Eq)]
pub struct Holdings {
    ios: usize,
    buffers: Vec<usize>,
    tasks: usize,
}

/// See the module's head.
pub struct Target {
    sim: Rc<RefCell<Simulation>>,
    plan: Rc<Plan>,
    pub machine: Machine,
    pub address: SocketAddr,
    disks: Vec<Option<DiskId>>,
    drive: Option<Drive>,
    door: Option<Door>,
    controls: Vec<Control>,
    /// The last of the namespaces, and whether it is there.
    last: Option<(Export, bool)>,
    /// I/Os that were failed by rules of processes that have ended.
    failed_before: Cell<u64>,
    idle: Vec<Holdings>,
}

impl Target {
    /// A machine with its disks, up and listening.
    pub fn start(sim: &Rc<RefCell<Simulation>>, plan: &Rc<Plan>) -> Target {
        sim.borrow_mut().set_memory(plan.memory);
        let machine = sim.borrow_mut().machine(plan.reactors);
        sim.borrow_mut().set_memory(HOST_MEMORY);
        let world = sim.borrow().world().clone();
        let disks = plan.volumes.iter().map(|volume| match volume.kind {
            Kind::Malloc | Kind::Nvme { .. } => None,
            Kind::File { unit, punch } => {
                Some(world.add_disk(machine, DiskOptions { size: volume.size, align: unit as usize, punch }))
            }
        });
        let mut target = Target {
            sim: sim.clone(),
            plan: plan.clone(),
            machine,
            address: SocketAddr::new(world.address(machine), PORT),
            disks: disks.collect(),
            drive: plan.drive.clone().map(|drive| Drive::new(drive, plan.seed)),
            door: None,
            controls: Vec::new(),
            last: None,
            failed_before: Cell::new(0),
            idle: Vec::new(),
        };
        target.serve();
        target
    }

    fn reactors(&self) -> Vec<Rc<Reactor>> {
        (0..self.plan.reactors).map(|number| self.reactor(number)).collect()
    }

    fn reactor(&self, number: u16) -> Rc<Reactor> {
        self.sim.borrow().reactor(self.machine, number)
    }

    fn serve(&mut self) {
        if let Some(plan) = &self.plan.drive {
            let home = self.reactor(plan.home());
            self.drive.as_mut().expect("it is planned").open(&self.sim, &home);
        }
        let exports: Vec<Export> = (0..self.plan.volumes.len())
            .map(|index| Export { nsid: index as u32 + 1, device: self.device(index), read_only: false })
            .collect();
        self.last = exports.last().map(|export| (export.clone(), true));
        let remotes = self.reactors().iter().map(|reactor| reactor.remote()).collect();
        let mut door = self.open_door(Inside::new(&self.sim, remotes), exports);
        self.sim.borrow_mut().run_for(10 * MS).unwrap();
        self.idle = self.holdings();
        let (socket, bound) = self.sim.borrow().world().listen(self.machine, PORT).unwrap();
        assert_eq!(bound, self.address);
        match &mut door {
            Door::Nvme(door) => door.listen_on(socket, bound).unwrap(),
            Door::Iscsi(door, _) => door.listen_on(socket, bound).unwrap(),
        }
        // The listener's.
        self.idle[usize::from(HOME)].tasks += 1;
        self.door = Some(door);
    }

    fn open_door(&self, reach: Inside, exports: Vec<Export>) -> Door {
        let Some(plan) = &self.plan.scsi else {
            let mut door = nvme::Door::open_by(reach).unwrap();
            door.add_subsystem(NQN, None, exports).unwrap();
            return Door::Nvme(door);
        };
        let mut door = iscsi::Door::open_by(reach, iscsi::Options { secret: [7; 32], store: None }).unwrap();
        let portal = iscsi::TargetPortal { listener: self.address, tpgt: 1, advertise: None };
        let target = iscsi::Target {
            iqn: IQN.to_owned(),
            alias: None,
            portals: vec![portal],
            redirect: None,
            initiators: None,
            chap: None,
            offer: plan.offer,
            luns: exports.iter().map(lun_for).collect(),
        };
        door.set_target(target.clone()).unwrap();
        Door::Iscsi(door, Box::new(target))
    }

    fn device(&mut self, index: usize) -> Arc<dyn BlockDevice> {
        let volume = &self.plan.volumes[index];
        let (name, uuid) = (format!("volume{index}"), [index as u8 + 1; 16]);
        let base: Arc<dyn BlockDevice> = match (volume.kind, self.disks[index]) {
            (Kind::File { unit, .. }, Some(disk)) => {
                let geometry =
                    file::Geometry { memory: unit, unit, zeroes: unit, physical: unit, allocation: unit, direct: true };
                let options = file::Options {
                    name,
                    uuid,
                    path: PathBuf::new(),
                    size: volume.size,
                    block_size: volume.block,
                    physical_block_size: volume.block,
                    direct: true,
                    home: volume.home,
                };
                Arc::new(file::File::over(options, self.sim.borrow().world().open(disk), geometry))
            }
            (Kind::Nvme { nsid, .. }, _) => self.drive.as_ref().expect("it is planned").device(name, nsid),
            _ => Arc::new(
                malloc::Malloc::new(malloc::Options {
                    name,
                    uuid,
                    size: volume.size,
                    block_size: volume.block,
                    physical_block_size: volume.block,
                    hugepages: false,
                    home: volume.home,
                })
                .unwrap(),
            ),
        };
        let Some(rules) = volume.rules.clone() else { return base };
        let name = format!("inject{index}");
        let layer = inject::Inject::new(inject::Options { name, uuid, base, rules }).unwrap();
        self.controls.push(layer.control());
        if volume.stubborn { Arc::new(Stubborn(Arc::new(layer))) } else { Arc::new(layer) }
    }

    fn holdings(&self) -> Vec<Holdings> {
        let of = |reactor: &Rc<Reactor>| {
            reactor.pool().collect();
            Holdings {
                ios: reactor.ios_in_use(),
                buffers: reactor.pool().stats().classes.iter().map(|class| class.in_use).collect(),
                tasks: reactor.tasks_alive(),
            }
        };
        self.reactors().iter().map(of).collect()
    }

    /// Connections that have not ended.
    pub fn connections(&self) -> usize {
        self.door.as_ref().map_or(0, Door::connections)
    }

    /// I/Os that were failed by rules so far.
    pub fn injected(&self) -> u64 {
        self.failed_before.get() + self.controls.iter().map(|control| control.injected().failed).sum::<u64>()
    }

    /// Lets go of what rules hold, some or all of it.
    pub fn release(&self, all: bool) {
        let world = self.sim.borrow().world().clone();
        for control in &self.controls {
            let held = control.held();
            control.release(if all { held } else { world.pick(held as u64 + 1) as usize });
        }
    }

    /// The NVMe drive.
    pub fn drive(&self) -> Option<&Drive> {
        self.drive.as_ref()
    }

    /// Whether the NVMe drive is beyond use until the process starts anew.
    pub fn has_dead_drive(&self) -> bool {
        self.drive.as_ref().is_some_and(Drive::is_dead)
    }

    /// All volumes are there, and from now on no rule does anything.
    pub fn calm_down(&mut self) {
        self.drive.iter().for_each(Drive::calm_down);
        if self.last.as_ref().is_some_and(|(_, there)| !there) {
            self.change();
        }
        self.controls.iter().for_each(Control::clear);
        self.release(true);
    }

    /// Removes the last volume's namespace, or adds it again.
    pub fn change(&mut self) {
        let (Some(door), Some((export, there))) = (&mut self.door, &mut self.last) else { return };
        *there = !*there;
        door.change(export, *there);
    }

    /// Lets only these initiators in from now on: the sessions of others end.
    pub fn allow(&mut self, initiators: &[&str]) {
        let Some(Door::Iscsi(door, target)) = &mut self.door else { panic!("it is for hosts that come by iSCSI") };
        target.initiators = Some(initiators.iter().map(|name| (*name).to_owned()).collect());
        door.set_target((**target).clone()).unwrap();
    }

    /// Shuts down as the server does: answers what it has, then ends connections.
    pub fn drain(&self) {
        let Some(door) = &self.door else { return };
        door.drain();
        // The server's own limits.
        for _ in 0..120 {
            if door.connections() == 0 {
                break;
            }
            self.release(true);
            self.sim.borrow_mut().run_for(10 * MS).unwrap();
        }
        door.close();
        self.sim.borrow_mut().run_for(MS).unwrap();
        self.close_drive();
    }

    fn close_drive(&self) {
        if let (Some(drive), Some(plan)) = (&self.drive, &self.plan.drive) {
            drive.close(&self.sim, &self.reactor(plan.home()));
        }
    }

    /// The end of the world: what the drive has come to.
    pub fn end(&mut self) -> Totals {
        self.close_drive();
        let (reactors, world) = (self.reactors(), self.sim.borrow().world().clone());
        let Some(drive) = &mut self.drive else { return Totals::default() };
        drive.end(&reactors, None, &world);
        drive.totals()
    }

    /// Ends the process or the machine.
    pub fn crash(&mut self, crash: Crash) {
        self.failed_before.set(self.injected());
        let (reactors, world) = (self.reactors(), self.sim.borrow().world().clone());
        if let Some(drive) = &mut self.drive {
            drive.end(&reactors, Some(crash), &world);
        }
        drop(reactors);
        match crash {
            Crash::Process => self.sim.borrow_mut().kill(self.machine),
            Crash::Power => self.sim.borrow_mut().power_cut(self.machine),
        }
        self.door = None;
        self.last = None;
        self.controls.clear();
    }

    /// Starts again after [`Target::crash`].
    pub fn restart(&mut self) {
        self.sim.borrow_mut().set_memory(self.plan.memory);
        self.sim.borrow_mut().restart(self.machine, self.plan.reactors);
        self.sim.borrow_mut().set_memory(HOST_MEMORY);
        self.serve();
    }

    /// All hosts have gone: waits until the target has noticed, and checks that it has let go of everything.
    pub fn quiet(&self) {
        // A discovery controller may be idle for two minutes.
        let end = self.sim.borrow().world().now() + 180_000 * MS;
        while self.connections() > 0 {
            let open = self.connections();
            assert!(self.sim.borrow().world().now() < end, "{open} connections are open long after their hosts went");
            self.release(true);
            self.sim.borrow_mut().run_for(50 * MS).unwrap();
        }
        // Timers that look after connections, and events on their way.
        self.sim.borrow_mut().run_for(15_000 * MS).unwrap();
        while self.drive.as_ref().is_some_and(Drive::is_resetting) {
            assert!(self.sim.borrow().world().now() < end, "the drive does not come back");
            self.sim.borrow_mut().run_for(1_000 * MS).unwrap();
        }
        if self.has_dead_drive() {
            // It has let go of what the others hold.
            return;
        }
        assert_eq!(self.holdings(), self.idle, "held by the target's reactors once all hosts have gone");
    }
}
