//! The devices that benches drive, and the time that they take.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;

use reactor::bdev::BlockDevice;
use reactor::bdev::device::malloc::{self, Malloc};
use reactor::bdev::device::null::{self, CompleteIn, Null};
use reactor::bdev::device::nvme::{Nvme, NvmeDrive};
use reactor::bdev::layer::inject::{self, Inject};
use reactor::nvme::pcie::fake::{DiskOptions, FakeDisk, FakeOptions, FakePort, NamespaceOptions, Next};
use reactor::nvme::pcie::{ControllerOptions, Drive, DriveOptions};
use reactor::reactor::Reactor;
use rustix::time::{ClockId, clock_gettime};

pub fn null(complete: CompleteIn) -> Arc<dyn BlockDevice> {
    Arc::new(Null::new(null::Options {
        name: "null".to_owned(),
        uuid: [1; 16],
        size: 1 << 30,
        block_size: 512,
        physical_block_size: 512,
        complete,
    }))
}

pub fn ram(size: u64) -> Arc<dyn BlockDevice> {
    let volume = Malloc::new(malloc::Options {
        name: "ram".to_owned(),
        uuid: [2; 16],
        size,
        block_size: 512,
        physical_block_size: 512,
        hugepages: false,
        home: 0,
    });
    Arc::new(volume.expect("address space"))
}

/// A layer without rules on `base`.
pub fn layer(base: Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
    let options = inject::Options { name: "layer".to_owned(), uuid: [3; 16], base, rules: Vec::new() };
    Arc::new(Inject::new(options).expect("no rules"))
}

/// A disk of 1 GiB on a controller in software, which works when it is told to, and its only namespace as a volume.
pub struct Disk {
    pub port: FakePort,
    pub drive: Arc<NvmeDrive<FakePort>>,
    pub volume: Arc<dyn BlockDevice>,
}

impl Disk {
    pub fn open(reactor: &Rc<Reactor>, controller: FakeOptions) -> Disk {
        Disk::with(reactor, controller, NamespaceOptions::new(1, 1 << 30, 12))
    }

    /// As [`Disk::open`], with another namespace.
    pub fn with(reactor: &Rc<Reactor>, controller: FakeOptions, namespace: NamespaceOptions) -> Disk {
        let namespaces = vec![namespace];
        let disk = FakeDisk::new(DiskOptions { namespaces, ..DiskOptions::default() });
        let port = disk.controller(FakeOptions { stepped: true, ..controller });
        port.serve(reactor);
        let options = DriveOptions { controller: ControllerOptions::new(256), timeout_ns: 30_000_000_000 };
        let (here, its) = (reactor.clone(), port.clone());
        let opened = spawn(reactor, async move { Drive::open(&here, its, options, vec![0]).await });
        let drive = until(&opened, || turn(reactor, &port)).expect("a drive");
        let volume: Arc<dyn BlockDevice> = Arc::new(Nvme::new("nvme0".to_owned(), &drive, 1).expect("a namespace"));
        Disk { port, drive, volume }
    }

    /// A turn, and then the work of the controller.
    pub fn turn(&self, reactor: &Rc<Reactor>) {
        turn(reactor, &self.port);
    }

    /// The work of the controller.
    pub fn work(&self, reactor: &Rc<Reactor>) {
        work(reactor, &self.port);
    }

    /// The end; the controller says whether the driver did anything wrong.
    pub fn close(self, reactor: &Rc<Reactor>) {
        let Disk { port, drive, volume } = self;
        drop(volume);
        let here = reactor.clone();
        let closed = spawn(reactor, async move { drive.close(&here).await });
        until(&closed, || turn(reactor, &port)).expect("it closes");
        port.assert_clean();
    }
}

fn turn(reactor: &Rc<Reactor>, port: &FakePort) {
    reactor.turn();
    work(reactor, port);
}

fn work(reactor: &Rc<Reactor>, port: &FakePort) {
    for queue in 0..2 {
        while port.step(reactor, queue, 1024) == Next::More {}
    }
}

/// Runs a future as a task; what it gives will be there.
pub fn spawn<R: 'static>(reactor: &Rc<Reactor>, body: impl Future<Output = R> + 'static) -> Rc<Cell<Option<R>>> {
    let result = Rc::new(Cell::new(None));
    let there = result.clone();
    reactor.spawn("bench", async move { there.set(Some(body.await)) });
    result
}

pub fn until<R>(result: &Cell<Option<R>>, turn: impl Fn()) -> R {
    loop {
        turn();
        if let Some(result) = result.take() {
            return result;
        }
    }
}

/// Nanoseconds that this thread has run: other programs on its core do not count.
pub fn on_cpu() -> f64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}
