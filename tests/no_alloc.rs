//! Nothing is allocated per I/O once everything has seen its depth: every device, every layer, and through the NVMe/TCP target and
//! host over loopback, through the iSCSI door, through queues of the ublk door, and by the NVMe driver, all in this process. Nothing is left behind by a thousand hosts that came and went.
#![expect(unsafe_code, reason = "a counting allocator")]

#[expect(dead_code, reason = "one of them is driven here")]
#[path = "../benches/devices/mod.rs"]
mod devices;
#[path = "no_alloc/iscsi.rs"]
mod iscsi;
#[path = "no_alloc/passed.rs"]
mod passed;

use std::alloc::{GlobalAlloc, Layout, System};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use devices::{Disk, spawn, until};
use hugepages::{Arena, ArenaOptions, HugepagePolicy};
use reactor::bdev::device::file::{self, File};
use reactor::bdev::device::malloc::{self, Malloc};
use reactor::bdev::device::null::{self, CompleteIn, Null};
use reactor::bdev::layer::inject::{self, Inject};
use reactor::bdev::{BlockDevice, Channel, Common, DeviceError, DeviceLimits, Handle, Traits, load};
use reactor::iscsi::Framing;
use reactor::nvme::host::{Controller, Identity, Options, Queue};
use reactor::nvme::pcie::fake::{FakeOptions, NamespaceOptions};
use reactor::nvme::target::tcp::{Door, Export};
use reactor::reactor::io::{Io, IoOp, IoStatus};
use reactor::reactor::start::{Reactors, solo};
use reactor::reactor::{Idle, Reactor};
use reactor::ublk;

/// Counts what all threads of this process allocate.
struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// Bytes that are allocated now.
static OUTSTANDING: AtomicI64 = AtomicI64::new(0);

fn count(bytes: i64) {
    if bytes > 0 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
    }
    OUTSTANDING.fetch_add(bytes, Ordering::Relaxed);
}

// SAFETY: passes every call on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        OUTSTANDING.fetch_add(size as i64 - layout.size() as i64, Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Whether a test runs: one at a time, since the counters are those of the process.
static RUNNING: AtomicBool = AtomicBool::new(false);

/// The right to run; ends when dropped.
struct Alone;

impl Alone {
    /// Waits for the others.
    fn wait() -> Alone {
        while RUNNING.swap(true, Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        Alone
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        RUNNING.store(false, Ordering::Relaxed);
    }
}

const NQN: &str = "nqn.2026-11.io.reactor:vol0";
const MIB: usize = 1 << 20;
const SIZE: u64 = 16 << 20;
/// How long everything may take to see its depth.
const WARM_UP: Duration = Duration::from_millis(700);
/// One look at the counters.
const WINDOW: Duration = Duration::from_millis(100);
/// Looks, and how many of them must see no allocation at all.
const WINDOWS: usize = 20;
const CLEAN: usize = 15;
/// I/Os of all windows at least: fewer would say nothing.
const IOS_MIN: u64 = 2000;

/// What carries out I/Os of all kinds.
trait Volume: load::Volume {
    fn execute(&self, io: Io) -> impl Future<Output = Io>;
}

impl Volume for Handle {
    fn execute(&self, io: Io) -> impl Future<Output = Io> {
        Handle::execute(self, io)
    }
}

impl Volume for reactor::nvme::host::Volume {
    fn execute(&self, io: Io) -> impl Future<Output = Io> {
        reactor::nvme::host::Volume::execute(self, io)
    }
}

/// What one worker does again and again: the operation and its length. 4 KiB of a write go in the capsule, 64 KiB by R2T.
type Work = (IoOp, usize);

const ALL: [Work; 10] = [
    (IoOp::Read, 4096),
    (IoOp::Read, 65_536),
    (IoOp::Write, 4096),
    (IoOp::Write, 65_536),
    (IoOp::Flush, 0),
    (IoOp::WriteZeroes, 4096),
    (IoOp::WriteZeroes, 65_536),
    (IoOp::Read, 4096),
    (IoOp::Verify, 4096),
    (IoOp::Verify, 1 << 20),
];

/// What doors that tell of extents ask besides.
const EXTENTS: [Work; 4] = [(IoOp::Extents, 24), (IoOp::Extents, 4096), (IoOp::Write, 4096), (IoOp::Unmap, 65_536)];

/// Of a volume with zones of a MiB, which nobody has written.
const ZONED: [Work; 4] =
    [(IoOp::ZoneReport, 4096), (IoOp::ZoneReport, 65_536), (IoOp::Read, 4096), (IoOp::ZoneReset, MIB)];

/// I/Os that all workers of a test have completed, and whether they go on.
#[derive(Default)]
struct Progress {
    ios: AtomicU64,
    stop: AtomicBool,
}

/// Starts a worker for each of `work` and waits until all have stopped.
async fn work_all<V: Volume>(reactor: &Rc<Reactor>, volume: &Rc<V>, work: &'static [Work], progress: &Arc<Progress>) {
    let (left, waiter) = (Rc::new(std::cell::Cell::new(work.len())), reactor.current_task());
    for (index, (op, len)) in work.iter().enumerate() {
        let (here, volume, progress, left) = (reactor.clone(), volume.clone(), progress.clone(), left.clone());
        reactor.spawn("worker", async move {
            let mut io = here.create_io().unwrap();
            if op.data_len(*len as u64) > 0 && (op.is_report() || volume.needs_data(*op)) {
                let mut buf = here.buffer(*len).await;
                buf.fill(index as u8);
                io.data.push_buf(buf);
            }
            while !progress.stop.load(Ordering::Relaxed) {
                io.prepare(*op, if *len == 0 { 0 } else { (index * MIB) as u64 }, *len as u64);
                io = volume.execute(io).await;
                assert_eq!(io.status, IoStatus::Success, "{op:?} of {len}");
                progress.ios.fetch_add(1, Ordering::Relaxed);
                // An I/O that ends at once must not keep this thread from its other tasks.
                here.yield_now().await;
            }
            io.data.clear();
            here.retire_io(io);
            left.set(left.get() - 1);
            here.wake(waiter);
        });
    }
    std::future::poll_fn(|_| if left.get() == 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }).await;
}

/// Looks at the counters while a load goes on.
fn watch(name: &str, progress: &Progress) {
    std::thread::park_timeout(WARM_UP);
    let mut seen = [(0, 0); WINDOWS];
    for window in &mut seen {
        let before = (ALLOCATIONS.load(Ordering::Relaxed), progress.ios.load(Ordering::Relaxed));
        std::thread::park_timeout(WINDOW);
        let after = (ALLOCATIONS.load(Ordering::Relaxed), progress.ios.load(Ordering::Relaxed));
        *window = (after.0 - before.0, after.1 - before.1);
    }
    progress.stop.store(true, Ordering::Relaxed);
    let ios: u64 = seen.iter().map(|(_, ios)| ios).sum();
    let clean = seen.iter().filter(|(allocations, ios)| *allocations == 0 && *ios > 0).count();
    assert!(ios >= IOS_MIN, "{name}: only {ios} I/Os, which say nothing: {seen:?}");
    assert!(clean >= CLEAN, "{name}: allocations and I/Os of each {WINDOW:?}: {seen:?}");
    println!("{name}: {ios} I/Os, {clean} of {WINDOWS} windows without an allocation");
}

/// Drives a device on reactor `at` of as many as it takes.
fn locally(name: &str, device: Arc<dyn BlockDevice>, at: usize, work: &'static [Work]) {
    let reactors = Reactors::start(&cores(at + 1), Idle::Adaptive, arena()).unwrap();
    let progress = Arc::new(Progress::default());
    let (sender, ended) = mpsc::channel();
    let here = progress.clone();
    reactors.remotes()[at].send(Box::new(move |reactor| {
        let volume = Rc::new(Handle::open(reactor, &device).unwrap());
        let task = reactor.clone();
        reactor.spawn("test", async move {
            work_all(&task, &volume, work, &here).await;
            sender.send(()).unwrap();
        });
    }));
    watch(name, &progress);
    ended.recv_timeout(Duration::from_secs(20)).expect("the workers end");
    assert_eq!(reactors.stop(), 0, "{name}: DMA buffers are still out");
}

fn cores(count: usize) -> Vec<usize> {
    let allowed = reactor::sys::affinity::allowed_cores().unwrap();
    // Two reactors may share a core: the one that has nothing to do sleeps.
    (0..count).map(|n| allowed[n % allowed.len()]).collect()
}

fn arena() -> Arena {
    Arena::new(ArenaOptions { size: 64 * MIB, hugepages: HugepagePolicy::Off, numa_node: None }).unwrap()
}

fn null(complete: CompleteIn) -> Arc<dyn BlockDevice> {
    Arc::new(Null::new(null::Options {
        name: "null".to_owned(),
        uuid: [1; 16],
        size: SIZE,
        block_size: 512,
        physical_block_size: 512,
        complete,
    }))
}

fn ram() -> Arc<dyn BlockDevice> {
    let options = malloc::Options {
        name: "ram".to_owned(),
        uuid: [2; 16],
        size: SIZE,
        block_size: 512,
        physical_block_size: 512,
        hugepages: false,
        home: 0,
    };
    Arc::new(Malloc::new(options).unwrap())
}

fn file(folder: &Path, direct: bool) -> Arc<dyn BlockDevice> {
    let path = folder.join(if direct { "direct.img" } else { "cached.img" });
    std::fs::write(&path, vec![7; SIZE as usize]).unwrap();
    let options = file::Options {
        name: "file".to_owned(),
        uuid: [3; 16],
        path,
        size: SIZE,
        block_size: 512,
        physical_block_size: 512,
        direct,
        home: 0,
    };
    Arc::new(File::create(options).unwrap())
}

fn inject(base: Arc<dyn BlockDevice>) -> Arc<dyn BlockDevice> {
    // A rule that every I/O is held against, and that never comes true.
    let rules = vec![inject::Rule {
        op: None,
        when: inject::When::From(u64::MAX),
        count: None,
        action: inject::Action::Fail(IoStatus::MediaError),
    }];
    Arc::new(Inject::new(inject::Options { name: "inject".to_owned(), uuid: [4; 16], base, rules }).unwrap())
}

/// A device whose traits say something else than those of the one that does the work.
struct Other(Arc<dyn BlockDevice>, Common);

impl Other {
    fn over(base: Arc<dyn BlockDevice>, change: impl FnOnce(&mut Traits)) -> Arc<dyn BlockDevice> {
        let mut traits = base.common().traits().clone();
        change(&mut traits);
        let common = Common::new(traits, base.common().size(), 0);
        Arc::new(Other(base, common))
    }
}

impl BlockDevice for Other {
    fn common(&self) -> &Common {
        &self.1
    }

    fn open(&self, reactor: &Rc<Reactor>) -> Result<Box<dyn Channel>, DeviceError> {
        self.0.open(reactor)
    }
}

fn folder() -> tempfile::TempDir {
    tempfile::TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

#[test]
fn devices_and_layers_allocate_nothing_per_io() {
    let _alone = Alone::wait();
    let folder = folder();
    locally("null, in submit", null(CompleteIn::Submit), 0, &ALL);
    locally("null, on the next poll", null(CompleteIn::Poll), 0, &ALL);
    locally("malloc", ram(), 0, &ALL);
    locally("malloc, extents", ram(), 0, &EXTENTS);
    locally("null, extents", null(CompleteIn::Poll), 0, &EXTENTS);
    locally("inject over malloc, extents", inject(ram()), 0, &EXTENTS);
    locally("file, direct", file(folder.path(), true), 0, &ALL);
    locally("file, page cache", file(folder.path(), false), 0, &ALL);
    let memory = tempfile::TempDir::new_in("/dev/shm").unwrap();
    locally("file, in memory", file(memory.path(), true), 0, &ALL);
    locally("inject over null", inject(null(CompleteIn::Poll)), 0, &ALL);
    locally("inject twice over malloc", inject(inject(ram())), 0, &ALL);
    let small = |traits: &mut Traits| {
        traits.limits = DeviceLimits { transfer_max: 16_384, zeroes_max: 8192, ..traits.limits };
    };
    locally("split over malloc", Other::over(ram(), small), 0, &ALL);
    locally("split over a file", Other::over(file(folder.path(), true), small), 0, &ALL);
    let serial = |traits: &mut Traits| traits.concurrent = false;
    locally("NVMe commands passed through", passed::passed(SIZE), 0, &ALL);
    locally("forward to null", Other::over(null(CompleteIn::Poll), serial), 1, &ALL);
    locally("forward to malloc", Other::over(ram(), serial), 1, &ALL);
}

/// The controller in software may allocate: what is counted is turns of the reactor, between which it works.
#[test]
fn the_nvme_driver_allocates_nothing_per_io() {
    const TURNS: usize = 2000;
    let _alone = Alone::wait();
    let plain = NamespaceOptions::new(1, 1 << 30, 12);
    let zoned = NamespaceOptions::zoned(1, 1 << 30, 12, MIB as u64);
    for (shadow_doorbells, namespace, work) in
        [(false, &plain, &ALL[..]), (true, &plain, &ALL), (false, &zoned, &ZONED)]
    {
        let reactor = solo(64 * MIB).unwrap();
        let controller = FakeOptions { shadow_doorbells, ..FakeOptions::default() };
        let disk = Disk::with(&reactor, controller, namespace.clone());
        let volume = Rc::new(Handle::open(&reactor, &disk.volume).unwrap());
        let (progress, here) = (Arc::new(Progress::default()), reactor.clone());
        let goes_on = progress.clone();
        let ended = spawn(&reactor, async move { work_all(&here, &volume, work, &goes_on).await });
        let window = || {
            let (mut allocations, before) = (0, progress.ios.load(Ordering::Relaxed));
            for _ in 0..TURNS {
                let counted = ALLOCATIONS.load(Ordering::Relaxed);
                reactor.turn();
                allocations += ALLOCATIONS.load(Ordering::Relaxed) - counted;
                disk.work(&reactor);
            }
            (allocations, progress.ios.load(Ordering::Relaxed) - before)
        };
        window();
        let seen: Vec<_> = (0..WINDOWS).map(|_| window()).collect();
        progress.stop.store(true, Ordering::Relaxed);
        until(&ended, || disk.turn(&reactor));
        let clean = seen.iter().filter(|(allocations, ios)| *allocations == 0 && *ios > 0).count();
        let ios: u64 = seen.iter().map(|(_, ios)| ios).sum();
        assert!(ios >= IOS_MIN && clean >= CLEAN, "allocations and I/Os of each {TURNS} turns: {seen:?}");
        disk.close(&reactor);
        assert_eq!(reactor.shut_down(), 0, "DMA buffers are still out");
    }
}

/// A target in this process.
struct Served {
    reactors: Reactors,
    door: Door,
    address: SocketAddr,
}

impl Served {
    fn start(reactors: usize, device: Arc<dyn BlockDevice>) -> Served {
        let reactors = Reactors::start(&cores(reactors), Idle::Adaptive, arena()).unwrap();
        let mut door = Door::open(reactors.remotes()).unwrap();
        door.add_subsystem(NQN, None, vec![Export { nsid: 1, device, read_only: false }]).unwrap();
        let address = door.listen("127.0.0.1:0".parse().unwrap()).unwrap();
        Served { reactors, door, address }
    }

    fn stop(self) {
        self.door.drain();
        for _ in 0..1000 {
            if self.door.connections() == 0 {
                break;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        assert_eq!(self.door.connections(), 0, "connections stay");
        drop(self.door);
        assert_eq!(self.reactors.stop(), 0, "DMA buffers are still out");
    }
}

/// How a host connects: digests of headers and data, flow control off, I/O queues.
#[derive(Clone, Copy, Debug)]
struct Way {
    header_digest: bool,
    data_digest: bool,
    disable_sqflow: bool,
    queues: u16,
}

impl Way {
    fn options(self) -> Options {
        let mut options = Options::new(NQN, Identity::from_uuid([7; 16]));
        (options.header_digest, options.data_digest) = (self.header_digest, self.data_digest);
        (options.disable_sqflow, options.queues) = (self.disable_sqflow, self.queues);
        // No keep alive in the middle of a window.
        options.kato_ms = 0;
        options
    }
}

/// Runs a host on a reactor of its own.
fn host<F: Future<Output = ()> + 'static>(
    body: impl FnOnce(Rc<Reactor>) -> F + Send + 'static,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let reactor = solo(32 * MIB).unwrap();
        let (here, body) = (reactor.clone(), body(reactor.clone()));
        reactor.spawn("host", async move {
            body.await;
            here.stop();
        });
        reactor.run(Idle::Adaptive);
        for _ in 0..100 {
            reactor.turn();
        }
        assert_eq!(reactor.shut_down(), 0, "DMA buffers of the host are still out");
    })
}

fn over_loopback(name: &str, reactors: usize, device: Arc<dyn BlockDevice>, way: Way) {
    let served = Served::start(reactors, device);
    let (address, progress) = (served.address, Arc::new(Progress::default()));
    let there = progress.clone();
    let host = host(move |reactor| async move {
        let controller = Controller::connect(&reactor, address, way.options()).await.unwrap();
        let geometry = controller.geometry(1).await.unwrap();
        let (left, waiter) = (Rc::new(std::cell::Cell::new(way.queues)), reactor.current_task());
        let mut queues = Vec::new();
        for qid in 1..=way.queues {
            let queue = Rc::new(Queue::connect(&reactor, &controller.ticket(), qid).await.unwrap());
            let volume = Rc::new(reactor::nvme::host::Volume::new(queue.clone(), geometry));
            queues.push(queue);
            let (here, progress, left) = (reactor.clone(), there.clone(), left.clone());
            reactor.spawn("queue", async move {
                work_all(&here, &volume, &ALL, &progress).await;
                left.set(left.get() - 1);
                here.wake(waiter);
            });
        }
        std::future::poll_fn(|_| if left.get() == 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending })
            .await;
        for queue in queues {
            queue.close().await;
        }
        controller.shut_down().await.unwrap();
    });
    watch(&format!("{name}, {reactors} reactors, {way:?}"), &progress);
    host.join().unwrap();
    served.stop();
}

const PLAIN: Way = Way { header_digest: false, data_digest: false, disable_sqflow: false, queues: 1 };
const DIGESTS: Way = Way { header_digest: true, data_digest: true, disable_sqflow: true, queues: 2 };

#[test]
fn target_and_host_allocate_nothing_per_io() {
    let _alone = Alone::wait();
    let folder = folder();
    for way in [PLAIN, DIGESTS] {
        over_loopback("null", 1, null(CompleteIn::Poll), way);
        over_loopback("malloc", 1, ram(), way);
        over_loopback("malloc", 2, ram(), Way { queues: 2, ..way });
        over_loopback("file", 1, file(folder.path(), true), way);
        over_loopback("file", 2, file(folder.path(), false), Way { queues: 2, ..way });
    }
    over_loopback("inject over malloc", 2, inject(ram()), DIGESTS);
}

#[test]
fn the_iscsi_door_allocates_nothing_per_io() {
    let _alone = Alone::wait();
    let folder = folder();
    for used in [false, true] {
        let framing = Framing { header_digest: used, data_digest: used };
        iscsi::over_loopback("null", 1, null(CompleteIn::Poll), framing);
        iscsi::over_loopback("malloc", 2, ram(), framing);
        iscsi::over_loopback("file", 1, file(folder.path(), true), framing);
    }
}

/// Turns a reactor until a queue has answered so many requests of a volume.
fn answer(reactor: &Reactor, handle: &Handle, count: u64) {
    let goal = handle.stats().total().ios + count;
    while handle.stats().total().ios < goal {
        reactor.turn();
    }
}

#[test]
fn ublk_queues_allocate_nothing_per_io() {
    let _alone = Alone::wait();
    let folder = folder();
    let devices = [
        ("null", null(CompleteIn::Poll)),
        ("RAM", ram()),
        ("file", file(folder.path(), false)),
        ("layer", inject(ram())),
    ];
    for (name, device) in devices {
        for op in [ublk::wire::IoOp::READ, ublk::wire::IoOp::WRITE, ublk::wire::IoOp::FLUSH] {
            let reactor = solo(32 * MIB).unwrap();
            let load = ublk::stand_in::Load { depth: 16, op, len: 4096 };
            let queue = ublk::stand_in::StandIn::open(&reactor, &device, load).unwrap();
            let handle = Handle::open(&reactor, &device).unwrap();
            answer(&reactor, &handle, 2000);
            let clean = (0..WINDOWS).filter(|_| {
                let before = ALLOCATIONS.load(Ordering::Relaxed);
                answer(&reactor, &handle, 200);
                ALLOCATIONS.load(Ordering::Relaxed) == before
            });
            let clean = clean.count();
            assert!(clean >= CLEAN, "{name}, {op:?}: {clean} of {WINDOWS} looks saw no allocation");
            queue.stop();
            while !queue.has_ended().unwrap() {
                reactor.turn();
            }
            drop(handle);
            assert_eq!(reactor.shut_down(), 0, "{name}, {op:?}: buffers are home");
        }
    }
}

/// The bytes that are outstanding once they have not changed for longer than a connection that ended is waited for.
fn at_rest() -> i64 {
    let (mut bytes, mut unchanged) = (OUTSTANDING.load(Ordering::Relaxed), 0);
    for _ in 0..200 {
        std::thread::park_timeout(Duration::from_millis(50));
        let now = OUTSTANDING.load(Ordering::Relaxed);
        unchanged = if now == bytes { unchanged + 1 } else { 0 };
        bytes = now;
        if unchanged == 16 {
            break;
        }
    }
    bytes
}

#[test]
fn hosts_that_came_and_went_leave_nothing_behind() {
    const ROUNDS: usize = 8;
    const CYCLES: usize = 200;
    /// Two bytes for each host.
    const SLACK: i64 = CYCLES as i64 * 2;
    let _alone = Alone::wait();
    let served = Served::start(2, ram());
    let address = served.address;
    let mut after = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let cycles = host(move |reactor| async move {
            for cycle in 0..CYCLES {
                let way = if cycle % 2 == 0 { PLAIN } else { DIGESTS };
                let controller = Controller::connect(&reactor, address, way.options()).await.unwrap();
                let queue = Rc::new(Queue::connect(&reactor, &controller.ticket(), 1).await.unwrap());
                let geometry = controller.geometry(1).await.unwrap();
                let volume = reactor::nvme::host::Volume::new(queue.clone(), geometry);
                let mut io = reactor.create_io().unwrap();
                io.data.push_buf(reactor.buffer(16_384).await);
                io.prepare(if cycle % 3 == 0 { IoOp::Read } else { IoOp::Write }, 0, 16_384);
                io = volume.execute(io).await;
                assert_eq!(io.status, IoStatus::Success);
                io.data.clear();
                reactor.retire_io(io);
                if cycle % 5 > 0 {
                    queue.close().await;
                    controller.shut_down().await.unwrap();
                }
            }
        });
        cycles.join().unwrap();
        for _ in 0..2000 {
            if served.door.connections() == 0 {
                break;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        assert_eq!(served.door.connections(), 0, "connections of hosts that went");
        after.push(at_rest());
    }
    println!("bytes outstanding after each {CYCLES} hosts: {after:?}");
    // Tables that have to grow for a while, when more connections than ever end at the same time, do so in some rounds; what a
    // host leaves behind is there after each.
    let mut grown: Vec<i64> = after.windows(2).map(|pair| pair[1] - pair[0]).collect();
    grown.sort_unstable();
    assert!(grown[grown.len() / 2] <= SLACK, "bytes outstanding after each {CYCLES} hosts: {after:?}");
    served.stop();
}
