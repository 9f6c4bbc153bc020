//! The host against the served binary, over loopback: every transport mode, every operation, many in flight, and no allocation
//! per I/O on the host's side.
#![expect(unsafe_code, reason = "a counting allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::task::Poll;

use reactor::bdev::load::{self, Job, Pattern};
use reactor::nvme::host::{Controller, Identity, Options, Queue, Volume, discover};
use reactor::reactor::io::{Io, IoOp, IoStatus, Segment};
use reactor::reactor::{Idle, Reactor, start};

struct Counting;

thread_local! {
    /// Of this thread: a reactor stays on its own.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: passes every call on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const NQN: &str = "nqn.2026-11.io.reactor:vol0";
const MIB: usize = 1 << 20;

/// A served RAM volume of 16 MiB in blocks of 512 bytes (nsid 1) and one in blocks of 4,096 (nsid 2).
struct Served {
    process: Child,
    address: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Served {
    fn start() -> Served {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("poll.toml");
        let text = format!(
            r#"
[memory]
size = "64MiB"
hugepages = "off"
[[bdev]]
name = "a"
driver = "malloc"
size = "16MiB"
[[bdev]]
name = "b"
driver = "malloc"
size = "16MiB"
block_size = 4096
[nvmf]
listen = ["127.0.0.1:0"]
[[nvmf.subsystem]]
nqn = "{NQN}"
namespaces = [{{ nsid = 1, bdev = "a" }}, {{ nsid = 2, bdev = "b" }}]
"#
        );
        std::fs::write(&config, text).unwrap();
        let mut process = Command::new(env!("CARGO_BIN_EXE_reactor"))
            .arg("--config")
            .arg(&config)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut port = None;
        for line in lines {
            if line == "reactor: ready" {
                break;
            }
            // nvme connect -t tcp -a ADDRESS -s PORT -n NQN
            let words: Vec<&str> = line.split_whitespace().collect();
            if let Some(at) = words.iter().position(|w| *w == "-s") {
                port = Some(words[at + 1].parse::<u16>().unwrap());
            }
        }
        let port = port.expect("a connect line before `ready`");
        Served { process, address: SocketAddr::from(([127, 0, 0, 1], port)), _dir: dir }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn on_reactor<F: Future<Output = ()> + 'static>(test: impl FnOnce(Rc<Reactor>) -> F) {
    let reactor = start::solo(48 * MIB).unwrap();
    let (body, here) = (test(reactor.clone()), reactor.clone());
    reactor.spawn("test", async move {
        body.await;
        here.stop();
    });
    // Asleep while the peer works: both share a core on a small machine.
    reactor.run(Idle::Adaptive);
    // A few turns for tasks that end after the test's own.
    for _ in 0..100 {
        reactor.turn();
    }
    assert_eq!(reactor.shut_down(), 0, "buffers are still out");
}

fn options() -> Options {
    Options::new(NQN, Identity::from_uuid([7; 16]))
}

async fn connect(reactor: &Rc<Reactor>, address: SocketAddr, options: Options, nsid: u32) -> (Controller, Rc<Volume>) {
    let controller = Controller::connect(reactor, address, options).await.unwrap();
    let queue = Queue::connect(reactor, &controller.ticket(), 1).await.unwrap();
    let geometry = controller.geometry(nsid).await.unwrap();
    let volume = Rc::new(Volume::new(Rc::new(queue), geometry));
    (controller, volume)
}

/// Carries out an I/O on `data`, or on a buffer of its length for a read; returns the I/O's status and data.
async fn run(
    reactor: &Rc<Reactor>,
    volume: &Volume,
    op: IoOp,
    offset: u64,
    len: usize,
    data: &[u8],
) -> (IoStatus, Vec<u8>) {
    let mut io: Io = reactor.create_io().unwrap();
    io.prepare(op, offset, len as u64);
    if op.data_len(len as u64) > 0 {
        let mut buf = reactor.buffer(op.data_len(len as u64) as usize).await;
        if data.is_empty() {
            buf.fill(0xaa);
        } else {
            buf.copy_from_slice(data);
        }
        io.data.push_buf(buf);
    }
    let mut io = volume.execute(io).await;
    let back = match io.data.pop() {
        Some(Segment::Buf(buf)) => buf.to_vec(),
        _ => Vec::new(),
    };
    let status = io.status;
    reactor.retire_io(io);
    (status, back)
}

fn pattern(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 5 + (i >> 8) * 31 + seed * 17) as u8).collect()
}

#[test]
fn every_mode_of_transport_keeps_the_data() {
    let served = Served::start();
    let address = served.address;
    for (nsid, header_digest, data_digest, disable_sqflow) in
        [(1, false, false, false), (1, true, true, true), (2, false, true, false), (2, true, false, true)]
    {
        on_reactor(|reactor| async move {
            let mut options = options();
            (options.header_digest, options.data_digest) = (header_digest, data_digest);
            options.disable_sqflow = disable_sqflow;
            let (controller, volume) = connect(&reactor, address, options, nsid).await;
            let agreed = volume.queue().agreed();
            assert_eq!((agreed.header_digest, agreed.data_digest), (header_digest, data_digest));
            let mut offset = 0;
            for (seed, len) in [4096, 8192, 12_288, 65_536, 135_168, MIB].into_iter().enumerate() {
                let data = pattern(len, seed);
                assert_eq!(run(&reactor, &volume, IoOp::Write, offset, len, &data).await.0, IoStatus::Success);
                let (status, back) = run(&reactor, &volume, IoOp::Read, offset, len, &[]).await;
                assert_eq!(status, IoStatus::Success, "read of {len}");
                assert!(back == data, "read of {len} on namespace {nsid}");
                offset += len as u64;
            }
            volume.queue().close().await;
            controller.shut_down().await.unwrap();
        });
    }
}

#[test]
fn every_operation_has_its_effect() {
    let served = Served::start();
    let address = served.address;
    on_reactor(|reactor| async move {
        let (controller, volume) = connect(&reactor, address, options(), 1).await;
        let ops = volume.geometry().ops;
        for op in IoOp::ALL {
            let command = !matches!(op, IoOp::Reset | IoOp::Extents) && !op.is_of_zones();
            assert_eq!(ops.has(op), command, "{op:?}");
        }
        let (old, new) = (pattern(1024, 1), pattern(1024, 2));
        let both: Vec<u8> = old.iter().chain(&new).copied().collect();
        let with = |op, offset, len, data: Vec<u8>| {
            let (reactor, volume) = (reactor.clone(), volume.clone());
            async move { run(&reactor, &volume, op, offset, len, &data).await }
        };
        assert_eq!(with(IoOp::Write, 8192, 1024, old.clone()).await.0, IoStatus::Success);
        assert_eq!(with(IoOp::Compare, 8192, 1024, old.clone()).await.0, IoStatus::Success);
        assert_eq!(with(IoOp::Compare, 8192, 1024, new.clone()).await.0, IoStatus::Miscompare);
        let most = volume.geometry().compare_and_write_max;
        assert!(most >= 1024, "compare and write of {most} bytes");
        assert_eq!(with(IoOp::CompareAndWrite, 8192, 1024, both.clone()).await.0, IoStatus::Success);
        assert!(with(IoOp::Read, 8192, 1024, vec![]).await.1 == new);
        assert_eq!(with(IoOp::CompareAndWrite, 8192, 1024, both).await.0, IoStatus::Miscompare);
        assert!(with(IoOp::Read, 8192, 1024, vec![]).await.1 == new, "a failed compare writes nothing");
        assert_eq!(with(IoOp::Flush, 0, 0, vec![]).await.0, IoStatus::Success);
        for (op, at) in [(IoOp::WriteZeroes, 0), (IoOp::Unmap, 65_536)] {
            assert_eq!(with(IoOp::Write, at, 16_384, pattern(16_384, 9)).await.0, IoStatus::Success);
            assert_eq!(with(op, at + 4096, 8192, vec![]).await.0, IoStatus::Success);
            let mut expected = pattern(16_384, 9);
            expected[4096..12_288].fill(0);
            assert!(with(IoOp::Read, at, 16_384, vec![]).await.1 == expected, "{op:?}");
        }
        let most = volume.geometry().limits.verify_max as usize;
        assert_eq!(most, 512 << 16, "what the field can say: the target tells of no limit");
        let size = volume.geometry().size as usize;
        let before = with(IoOp::Read, 0, 131_072, vec![]).await.1;
        for (at, len) in [(0, 512), (8192, 1024), (65_536, 16_384), (0, most.min(size)), (size as u64 - 512, 512)] {
            assert_eq!(with(IoOp::Verify, at, len, vec![]).await.0, IoStatus::Success, "{at}+{len}");
        }
        assert_eq!(with(IoOp::Verify, size as u64, 512, vec![]).await.0, IoStatus::OutOfRange);
        assert!(with(IoOp::Read, 0, 131_072, vec![]).await.1 == before, "a verify changes nothing");
        volume.queue().close().await;
        controller.shut_down().await.unwrap();
    });
}

#[test]
fn several_queues_with_many_in_flight_keep_their_data() {
    let served = Served::start();
    let address = served.address;
    on_reactor(|reactor| async move {
        let mut options = options();
        options.queues = 2;
        options.queue_size = 17;
        (options.header_digest, options.data_digest) = (true, true);
        let controller = Controller::connect(&reactor, address, options).await.unwrap();
        let geometry = controller.geometry(1).await.unwrap();
        let mut volumes = Vec::new();
        for qid in 1..=controller.queues() {
            let queue = Queue::connect(&reactor, &controller.ticket(), qid).await.unwrap();
            volumes.push(Rc::new(Volume::new(Rc::new(queue), geometry)));
        }
        assert_eq!(volumes.len(), 2);
        let (workers, done, waiter) = (64, Rc::new(Cell::new(0)), reactor.current_task());
        for worker in 0..workers {
            let (here, done) = (reactor.clone(), done.clone());
            let (one, other) = (volumes[worker % 2].clone(), volumes[(worker + 1) % 2].clone());
            reactor.spawn("worker", async move {
                let len = [4096, 512, 49_152, 131_072][worker % 4];
                let at = (worker * 256 * 1024) as u64;
                for round in 0..8 {
                    let data = pattern(len, worker * 8 + round);
                    assert_eq!(run(&here, &one, IoOp::Write, at, len, &data).await.0, IoStatus::Success);
                    // What one connection wrote, the other reads.
                    let (status, back) = run(&here, &other, IoOp::Read, at, len, &[]).await;
                    assert_eq!(status, IoStatus::Success);
                    assert!(back == data, "worker {worker} round {round}");
                }
                done.set(done.get() + 1);
                here.wake(waiter);
            });
        }
        std::future::poll_fn(|_| if done.get() == workers { Poll::Ready(()) } else { Poll::Pending }).await;
        for volume in &volumes {
            volume.queue().close().await;
        }
        controller.shut_down().await.unwrap();
    });
}

#[test]
fn discovery_names_the_subsystem_and_where_it_listens() {
    let served = Served::start();
    let address = served.address;
    on_reactor(|reactor| async move {
        let log = discover(&reactor, address, Identity::from_uuid([7; 16])).await.unwrap();
        let found = log.entries.iter().find(|e| e.nqn == NQN).expect("the subsystem");
        assert_eq!(found.socket_address(), Some(address));
        let (controller, volume) = connect(&reactor, found.socket_address().unwrap(), options(), 2).await;
        assert_eq!((volume.geometry().size, volume.geometry().block_shift), (16 << 20, 12));
        assert_eq!(controller.active_namespaces().await.unwrap(), [1, 2]);
    });
}

#[test]
fn nothing_is_allocated_per_io() {
    let served = Served::start();
    let address = served.address;
    on_reactor(|reactor| async move {
        let mut options = options();
        options.disable_sqflow = true;
        let (controller, volume) = connect(&reactor, address, options, 1).await;
        // The second run of each finds everything the reactor keeps in place.
        for (pattern, block) in [(Pattern::RandRw, 4096), (Pattern::RandRead, 32_768), (Pattern::RandWrite, 32_768)] {
            let job = Job { pattern, block, depth: 8, ns: 250_000_000 };
            let mut runs = Vec::new();
            for _ in 0..3 {
                let before = ALLOCATIONS.get();
                let outcome = load::run(&reactor, volume.clone(), job, Rc::default(), Rc::default()).await;
                assert_eq!(outcome.errors, 0, "{:?}", outcome.first_error);
                runs.push((ALLOCATIONS.get() - before, outcome.ios));
            }
            // The load generator's own, its histogram and list of buffers, whatever the number of I/Os.
            assert!(runs[1..].iter().all(|(allocations, _)| *allocations < 50), "{pattern:?} {block}: {runs:?}");
            assert!(runs[1..].iter().any(|(_, ios)| *ios > 200), "too few I/Os to tell: {runs:?}");
        }
        volume.queue().close().await;
        controller.shut_down().await.unwrap();
    });
}
