//! The host against a small controller over real sockets: what it does, and what it does when the peer does not.

mod faults;
mod golden;
mod peer;

use std::cell::Cell;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hugepages::{Region, RegionOptions};

use super::*;
use crate::bdev::load;
use crate::nvme::spec::{
    AdminOpcode, AsyncEventResult, AsyncEventType, Cns, DISCOVERY_NQN, FeatureId, LogId, NoticeInfo, Sqe, StatusCode,
    SubsystemType,
};
use crate::reactor::io::{IoOp, IoStatus, Segment};
use crate::reactor::{Idle, Reactor, start};
use peer::{CNTLID, Config, Peer, SUBNQN};

fn identity() -> Identity {
    Identity::from_uuid([0x11; 16])
}

fn options() -> Options {
    let mut options = Options::new(SUBNQN, identity());
    options.kato_ms = 0;
    options
}

/// Runs `test` on a reactor of its own and checks that no buffer is lost.
fn on_reactor<F: Future<Output = ()> + 'static>(test: impl FnOnce(Rc<Reactor>) -> F) {
    let reactor = start::solo(32 << 20).unwrap();
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

struct Connected {
    controller: Controller,
    volume: Rc<Volume>,
}

impl Connected {
    async fn new(reactor: &Rc<Reactor>, address: SocketAddr, options: Options) -> Connected {
        let controller = Controller::connect(reactor, address, options).await.unwrap();
        let queue = Queue::connect(reactor, &controller.ticket(), 1).await.unwrap();
        let geometry = controller.geometry(1).await.unwrap();
        Connected { controller, volume: Rc::new(Volume::new(Rc::new(queue), geometry)) }
    }

    async fn end(self) {
        self.volume.queue().close().await;
        self.controller.shut_down().await.unwrap();
    }
}

/// What one I/O is to do.
struct Ask<'a> {
    op: IoOp,
    offset: u64,
    len: u64,
    /// Lengths of the buffers that hold the data.
    pieces: &'a [usize],
    data: &'a [u8],
}

/// Carries out an I/O with its data in several buffers; returns its status and the data afterwards. All buffers must come back
/// in their places and lengths.
async fn run(reactor: &Rc<Reactor>, volume: &Volume, ask: Ask<'_>) -> (IoStatus, Vec<u8>) {
    let mut io = reactor.create_io().unwrap();
    io.prepare(ask.op, ask.offset, ask.len);
    let mut at = 0;
    let mut places = Vec::new();
    for len in ask.pieces {
        let mut buf = reactor.buffer(*len).await;
        if ask.data.is_empty() {
            buf.fill(0xee);
        } else {
            buf.copy_from_slice(&ask.data[at..at + len]);
        }
        at += len;
        places.push((buf.address(), *len));
        io.data.push_buf(buf);
    }
    let mut io = volume.execute(io).await;
    let mut back = Vec::new();
    let mut bytes = Vec::new();
    for segment in io.data.iter() {
        let Segment::Buf(buf) = segment else { panic!("a buffer turned into {segment:?}") };
        back.push((buf.address(), buf.len()));
        bytes.extend_from_slice(buf);
    }
    assert_eq!(back, places, "the buffers of the I/O");
    io.data.clear();
    let status = io.status;
    reactor.retire_io(io);
    (status, bytes)
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 3) as u8 ^ (i >> 9) as u8 ^ seed).collect()
}

async fn write(reactor: &Rc<Reactor>, volume: &Volume, offset: u64, pieces: &[usize], data: &[u8]) -> IoStatus {
    run(reactor, volume, Ask { op: IoOp::Write, offset, len: data.len() as u64, pieces, data }).await.0
}

async fn read(reactor: &Rc<Reactor>, volume: &Volume, offset: u64, pieces: &[usize]) -> (IoStatus, Vec<u8>) {
    let len = pieces.iter().sum::<usize>() as u64;
    run(reactor, volume, Ask { op: IoOp::Read, offset, len, pieces, data: &[] }).await
}

/// A read that comes without a buffer.
async fn read_brought(reactor: &Rc<Reactor>, volume: &Volume, offset: u64, len: usize) -> (IoStatus, Vec<u8>) {
    let mut io = reactor.create_io().unwrap();
    io.prepare(IoOp::Read, offset, len as u64);
    let mut io = volume.execute(io).await;
    let data = io.data.single_buf().map_or_else(Vec::new, |buf| buf.to_vec());
    io.data.clear();
    let status = io.status;
    reactor.retire_io(io);
    (status, data)
}

/// Writes and reads of many sizes and scatterings, against what the peer's disk then has.
async fn round_trips(reactor: &Rc<Reactor>, volume: &Volume, peer: &Peer) {
    let mut offset = 0;
    for (seed, pieces) in [
        &[512][..],
        &[4096],
        &[512, 3072, 512],
        &[8192],
        &[16_384, 65_536],
        &[131_072],
        &[131_072, 4096, 393_216],
        &[1 << 20],
        &[65_536, 65_536, 65_536, 65_536, 131_072, 131_072, 4096, 520_192],
    ]
    .into_iter()
    .enumerate()
    {
        let len: usize = pieces.iter().sum();
        let data = pattern(len, seed as u8);
        assert_eq!(write(reactor, volume, offset, pieces, &data).await, IoStatus::Success, "write {pieces:?}");
        assert_eq!(peer.disk.lock().unwrap()[offset as usize..][..len], data, "stored {pieces:?}");
        let (status, back) = read(reactor, volume, offset, pieces).await;
        assert_eq!(status, IoStatus::Success, "read {pieces:?}");
        assert!(back == data, "read {pieces:?}");
        let (status, back) = read_brought(reactor, volume, offset, len).await;
        assert_eq!(status, IoStatus::Success, "read of {len} without a buffer");
        assert!(back == data, "read of {len} without a buffer");
        offset += len as u64;
    }
}

#[test]
fn data_survives_every_mix_of_digests_flow_control_and_transfer_sizes() {
    for (digests, no_flow, config) in [
        (false, false, Config::default()),
        (true, true, Config { in_capsule: 0, max_h2c_data: 4096, r2t_len: 16_384, r2ts: 4, ..Config::default() }),
        (true, false, Config { in_capsule: 8192, c2h_len: 20_000, r2t_len: 1 << 20, ..Config::default() }),
        (false, true, Config { c2h_len: 4096, r2t_len: 4096, r2ts: 2, block_shift: 9, ..Config::default() }),
        (true, true, Config { digests: false, reverse: true, ..Config::default() }),
    ] {
        let peer = Peer::start(config.clone());
        on_reactor(|reactor| async move {
            let mut options = options();
            (options.header_digest, options.data_digest) = (digests, digests);
            options.disable_sqflow = no_flow;
            let connected = Connected::new(&reactor, peer.address, options).await;
            let agreed = connected.volume.queue().agreed();
            assert_eq!(
                (agreed.header_digest, agreed.data_digest),
                (digests && config.digests, digests && config.digests)
            );
            round_trips(&reactor, &connected.volume, &peer).await;
            assert!(peer.seen.largest_h2c.load(Ordering::SeqCst) <= config.max_h2c_data);
            assert!(peer.seen.granted_writes.load(Ordering::SeqCst) > 0);
            connected.end().await;
            assert_eq!(peer.seen.shutdowns.load(Ordering::SeqCst), 1);
        });
    }
}

#[test]
fn every_operation_has_its_effect() {
    for in_capsule in [4096, 0] {
        let peer = Peer::start(Config { in_capsule, ..Config::default() });
        on_reactor(|reactor| async move {
            let connected = Connected::new(&reactor, peer.address, options()).await;
            let volume = connected.volume.clone();
            let ask = |op, offset, len, data| {
                let (reactor, volume) = (reactor.clone(), volume.clone());
                async move {
                    let data: &[u8] = data;
                    let whole = [data.len()];
                    let pieces = if data.is_empty() { &[][..] } else { &whole };
                    run(&reactor, &volume, Ask { op, offset, len, pieces, data }).await.0
                }
            };
            let (old, new) = (pattern(1024, 1), pattern(1024, 2));
            assert_eq!(ask(IoOp::Write, 4096, 1024, &old).await, IoStatus::Success);
            assert_eq!(ask(IoOp::Compare, 4096, 1024, &old).await, IoStatus::Success);
            assert_eq!(ask(IoOp::Compare, 4096, 1024, &new).await, IoStatus::Miscompare);
            let both: Vec<u8> = old.iter().chain(&new).copied().collect();
            assert_eq!(ask(IoOp::CompareAndWrite, 4096, 1024, &both).await, IoStatus::Success);
            assert_eq!(peer.disk.lock().unwrap()[4096..5120], new);
            assert_eq!(ask(IoOp::CompareAndWrite, 4096, 1024, &both).await, IoStatus::Miscompare);
            assert_eq!(peer.seen.fused.load(Ordering::SeqCst), 2);
            assert_eq!(ask(IoOp::Flush, 0, 0, &[]).await, IoStatus::Success);
            assert_eq!(peer.seen.flushes.load(Ordering::SeqCst), 1);
            peer.disk.lock().unwrap().fill(9);
            assert_eq!(ask(IoOp::WriteZeroes, 512, 512, &[]).await, IoStatus::Success);
            assert_eq!(ask(IoOp::Unmap, 2048, 1536, &[]).await, IoStatus::Success);
            let disk = peer.disk.lock().unwrap().clone();
            let zeros: Vec<usize> = (0..disk.len()).filter(|i| disk[*i] == 0).collect();
            assert_eq!(zeros, (512..1024).chain(2048..3584).collect::<Vec<_>>());
            connected.end().await;
        });
    }
}

#[test]
fn a_verify_is_a_command_without_data_within_the_limit_that_is_told() {
    for vsl in [None, Some(0), Some(1)] {
        let peer = Peer::start(Config { vsl, ..Config::default() });
        on_reactor(|reactor| async move {
            let connected = Connected::new(&reactor, peer.address, options()).await;
            let geometry = connected.volume.geometry();
            let most = geometry.limits.verify_max;
            assert_eq!(most, [0, 32 << 20, 8192][vsl.map_or(0, |vsl| 1 + usize::from(vsl))]);
            assert_eq!(geometry.ops.has(IoOp::Verify), vsl.is_some());
            let verify = async |offset, len| {
                let ask = Ask { op: IoOp::Verify, offset, len, pieces: &[], data: &[] };
                run(&reactor, &connected.volume, ask).await.0
            };
            if vsl.is_none() {
                assert_eq!(verify(512, 512).await, IoStatus::Unsupported, "whoever wants one reads");
            } else {
                let size = most.min(geometry.size - 512);
                assert_eq!(verify(512, size).await, IoStatus::Success);
                assert_eq!(verify(0, 512).await, IoStatus::MediaError);
                let more = if size == most { IoStatus::Unsupported } else { IoStatus::OutOfRange };
                assert_eq!(verify(512, size + 512).await, more);
                assert_eq!(verify(512, 0).await, IoStatus::Empty);
                let ask = Ask { op: IoOp::Verify, offset: 512, len: 512, pieces: &[512], data: &[] };
                assert_eq!(run(&reactor, &connected.volume, ask).await.0, IoStatus::DataLength);
            }
            assert_eq!(peer.seen.verifies.load(Ordering::SeqCst), if vsl.is_some() { 2 } else { 0 });
            connected.end().await;
        });
    }
}

#[test]
fn force_unit_access_reaches_the_controller() {
    let peer = Peer::start(Config::default());
    on_reactor(|reactor| async move {
        let connected = Connected::new(&reactor, peer.address, options()).await;
        let mut io = reactor.create_io().unwrap();
        for (op, fua) in [(IoOp::Write, true), (IoOp::Write, false), (IoOp::WriteZeroes, true)] {
            io.prepare(op, 0, 512);
            io.fua = fua;
            if op == IoOp::Write {
                io.data.push_buf(reactor.buffer(512).await);
            }
            io = connected.volume.execute(io).await;
            assert_eq!(io.status, IoStatus::Success);
            io.data.clear();
        }
        reactor.retire_io(io);
        assert_eq!(peer.seen.fua.load(Ordering::SeqCst), 2);
        connected.end().await;
    });
}

#[test]
fn shared_memory_is_written_from_and_read_into() {
    let peer = Peer::start(Config::default());
    on_reactor(|reactor| async move {
        let connected = Connected::new(&reactor, peer.address, options()).await;
        let region = Region::new(1 << 20, RegionOptions::default()).unwrap();
        let data = pattern(40_960, 5);
        region.write(4096, &data);
        let mut io = reactor.create_io().unwrap();
        for (op, offset) in [(IoOp::Write, 4096), (IoOp::Read, 131_072)] {
            io.prepare(op, 8192, 40_960);
            io.data.push(Segment::Region { region: region.clone(), offset, len: 40_960 });
            io = connected.volume.execute(io).await;
            assert_eq!(io.status, IoStatus::Success);
            assert!(matches!(io.data.pop(), Some(Segment::Region { .. })));
        }
        reactor.retire_io(io);
        let mut back = vec![0; data.len()];
        region.read(131_072, &mut back);
        assert!(back == data);
        connected.end().await;
    });
}

#[test]
fn reads_without_buffers_wait_for_memory_and_then_go_on() {
    let peer = Peer::start(Config::default());
    on_reactor(|reactor| async move {
        let connected = Connected::new(&reactor, peer.address, options()).await;
        let data = pattern(65_536, 7);
        assert_eq!(write(&reactor, &connected.volume, 0, &[65_536], &data).await, IoStatus::Success);
        // Its socket is not in use any more, and receives have only what the ring keeps.
        reactor.sleep(20_000_000).await;
        // Nothing is left for them until somebody gives it back.
        let mut all: Vec<_> = std::iter::from_fn(|| reactor.pool().alloc(hugepages::MAX_BUF)).collect();
        all.extend(std::iter::from_fn(|| reactor.pool().alloc(4096)));
        let ended = Rc::new(Cell::new(0));
        for at in 0..8 {
            let (here, volume, ended, data) =
                (reactor.clone(), connected.volume.clone(), ended.clone(), data[at * 4096..][..4096].to_vec());
            reactor.spawn("reader", async move {
                let (status, back) = read_brought(&here, &volume, at as u64 * 4096, 4096).await;
                assert_eq!(status, IoStatus::Success);
                assert!(back == data, "read {at}");
                ended.set(ended.get() + 1);
            });
        }
        reactor.sleep(20_000_000).await;
        assert_eq!(ended.get(), 0, "there was no memory");
        all.truncate(all.len() - 1);
        while ended.get() < 8 {
            reactor.sleep(1_000_000).await;
        }
        drop(all);
        connected.end().await;
    });
}

#[test]
fn bad_requests_never_reach_the_wire() {
    let peer = Peer::start(Config { mdts: 3, ..Config::default() });
    on_reactor(|reactor| async move {
        let connected = Connected::new(&reactor, peer.address, options()).await;
        assert_eq!(connected.controller.transfer_max(), 32_768);
        let size = connected.volume.geometry().size;
        for (op, offset, len, expected) in [
            (IoOp::Read, 0, 0, IoStatus::Empty),
            (IoOp::Read, 1, 512, IoStatus::Misaligned),
            (IoOp::Read, size, 512, IoStatus::OutOfRange),
            (IoOp::Read, u64::MAX - 511, 512, IoStatus::OutOfRange),
            (IoOp::Read, 0, 32_768 + 512, IoStatus::Unsupported),
            (IoOp::Read, 0, 1024, IoStatus::DataLength),
            (IoOp::CompareAndWrite, 0, 4096 + 512, IoStatus::Unsupported),
            (IoOp::Reset, 0, 0, IoStatus::Unsupported),
        ] {
            let (status, _) =
                run(&reactor, &connected.volume, Ask { op, offset, len, pieces: &[512], data: &[] }).await;
            assert_eq!(status, expected, "{op:?} {offset} {len}");
        }
        connected.end().await;
    });
}

#[test]
fn many_ios_in_flight_on_a_small_queue_all_end_with_their_own_data() {
    for reverse in [false, true] {
        let peer = Peer::start(Config { reverse, block_shift: 12, ..Config::default() });
        on_reactor(|reactor| async move {
            let mut options = options();
            options.queue_size = 9;
            let connected = Connected::new(&reactor, peer.address, options).await;
            assert_eq!(connected.volume.queue().depth(), 8);
            let done = Rc::new(Cell::new(0));
            let waiter = reactor.current_task();
            let tasks = 40;
            for task in 0..tasks {
                let (here, volume, done) = (reactor.clone(), connected.volume.clone(), done.clone());
                reactor.spawn("worker", async move {
                    for round in 0..20u8 {
                        let at = (task * 8192) as u64;
                        let data = pattern(8192, task as u8 ^ round);
                        assert_eq!(write(&here, &volume, at, &[4096, 4096], &data).await, IoStatus::Success);
                        let (status, back) = read(&here, &volume, at, &[8192]).await;
                        assert_eq!(status, IoStatus::Success);
                        assert!(back == data, "task {task} round {round}");
                    }
                    done.set(done.get() + 1);
                    here.wake(waiter);
                });
            }
            std::future::poll_fn(|_| {
                if done.get() == tasks { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
            })
            .await;
            assert_eq!(connected.volume.queue().in_flight(), 0);
            connected.end().await;
        });
    }
}

#[test]
fn the_load_generator_runs_on_a_volume() {
    let peer = Peer::start(Config::default());
    on_reactor(|reactor| async move {
        let connected = Connected::new(&reactor, peer.address, options()).await;
        let job = load::Job { pattern: load::Pattern::RandRw, block: 4096, depth: 32, ns: 100_000_000 };
        let outcome = load::run(&reactor, connected.volume.clone(), job, Rc::default(), Rc::default()).await;
        assert_eq!((outcome.errors, outcome.first_error), (0, None));
        assert!(outcome.ios > 0 && outcome.latency.len() == outcome.ios, "{}", outcome.ios);
        connected.end().await;
    });
}

#[test]
fn queues_live_on_other_reactors() {
    static ENDED: AtomicUsize = AtomicUsize::new(0);
    let peer = Peer::start(Config::default());
    let arena = hugepages::Arena::new(hugepages::ArenaOptions {
        size: 64 << 20,
        hugepages: hugepages::HugepagePolicy::Off,
        numa_node: None,
    })
    .unwrap();
    let reactors = start::Reactors::start(&[0, 0], Idle::Adaptive, arena).unwrap();
    let address = peer.address;
    let (done, wait) = std::sync::mpsc::channel();
    reactors.remotes()[0].send(Box::new(move |reactor| {
        let here = reactor.clone();
        reactor.spawn("test", async move {
            let mut options = options();
            options.queues = 2;
            let controller = Controller::connect(&here, address, options).await.unwrap();
            assert_eq!(controller.queues(), 2);
            let geometry = controller.geometry(1).await.unwrap();
            for qid in 1..=2u16 {
                let ticket = controller.ticket();
                here.call_task(qid - 1, move |there| async move {
                    let queue = Rc::new(Queue::connect(&there, &ticket, qid).await.unwrap());
                    let volume = Volume::new(queue, geometry);
                    let data = pattern(65_536, qid as u8);
                    let at = u64::from(qid) << 20;
                    assert_eq!(write(&there, &volume, at, &[65_536], &data).await, IoStatus::Success);
                    assert!(read(&there, &volume, at, &[65_536]).await.1 == data);
                    volume.queue().close().await;
                    ENDED.fetch_add(1, Ordering::SeqCst);
                })
                .await;
            }
            controller.shut_down().await.unwrap();
            done.send(()).unwrap();
        });
    }));
    wait.recv_timeout(std::time::Duration::from_secs(20)).unwrap();
    assert_eq!(ENDED.load(Ordering::SeqCst), 2);
    assert_eq!(peer.seen.connections.load(Ordering::SeqCst), 3);
    assert_eq!(reactors.stop(), 0, "buffers are still out");
}

#[test]
fn discovery_is_read_until_it_stands_still_and_parsed() {
    let peer = Peer::start(Config::default());
    on_reactor(|reactor| async move {
        let log = discover(&reactor, peer.address, identity()).await.unwrap();
        assert_eq!((log.generation, log.entries.len()), (2, 2));
        let volume = &log.entries[0];
        assert_eq!((volume.nqn.as_str(), volume.subtype), (SUBNQN, SubsystemType::NVM));
        assert_eq!(volume.socket_address(), Some(peer.address));
        assert_eq!(
            volume.namespace(3).unwrap().to_string(),
            format!("nvme-tcp://127.0.0.1:{}/{SUBNQN}?nsid=3", peer.address.port())
        );
        assert_eq!((volume.cntlid, volume.admin_queue_max, volume.port_id), (0xffff, 32, 0));
        assert_eq!(log.entries[1].nqn, DISCOVERY_NQN);
    });
}

#[test]
fn admin_commands_and_their_refusals() {
    let peer = Peer::start(Config::default());
    on_reactor(|reactor| async move {
        let mut wrong = options();
        wrong.subnqn = "nqn.2026-11.io.reactor:nobody".to_owned();
        match Controller::connect(&reactor, peer.address, wrong).await {
            Err(HostError::Refused { what: "Connect", status, result }) => {
                assert_eq!(status.code(), StatusCode::CONNECT_INVALID_PARAMETERS);
                assert_eq!(result, 0x0001_0100);
            }
            other => panic!("{:?}", other.err()),
        }
        let connected = Connected::new(&reactor, peer.address, options()).await;
        let controller = &connected.controller;
        assert_eq!(controller.cntlid(), CNTLID);
        assert_eq!(controller.active_namespaces().await.unwrap(), (1..=1027).collect::<Vec<u32>>());
        assert_eq!(controller.set_feature(FeatureId::NUMBER_OF_QUEUES, 0).await.unwrap(), 0x0003_0003);
        let abort = Command::new(Sqe::admin(AdminOpcode::ABORT, 0));
        let answer = controller.command(abort).await.unwrap();
        assert_eq!(answer.cqe.status(), StatusCode::INVALID_OPCODE.dnr());
        // A raw read of a namespace that is not there, with data out on an I/O queue that goes by R2T at will.
        let mut io = Sqe::nvm(crate::nvme::spec::NvmOpcode::READ, 2);
        let read = Command::new(io).filling(reactor.buffer(512).await);
        let answer = connected.volume.queue().command(read).await.unwrap();
        assert_eq!((answer.cqe.status().code(), answer.received), (StatusCode::INVALID_NAMESPACE, 0));
        assert_eq!(answer.data.unwrap().len(), 512);
        io = Sqe::nvm(crate::nvme::spec::NvmOpcode::WRITE, 1);
        io.dptr = crate::nvme::spec::SglDescriptor::transport(512);
        let mut command = Command::new(io).sending(reactor.buffer(512).await);
        command.sgl_as_given = true;
        let before = peer.seen.granted_writes.load(Ordering::SeqCst);
        assert!(connected.volume.queue().command(command).await.unwrap().cqe.status().is_success());
        assert_eq!(peer.seen.granted_writes.load(Ordering::SeqCst), before + 1);
        connected.end().await;
    });
}

#[test]
fn keep_alives_are_sent_and_events_arrive() {
    let peer = Peer::start(Config::default());
    on_reactor(|reactor| async move {
        let mut options = options();
        options.kato_ms = 40;
        options.events = true;
        let connected = Connected::new(&reactor, peer.address, options).await;
        let event = AsyncEventResult {
            event_type: AsyncEventType::NOTICE,
            info: NoticeInfo::NAMESPACE_ATTRIBUTE_CHANGED.0,
            log: LogId::CHANGED_NAMESPACES,
        };
        for _ in 0..3 {
            while !peer.notify(event) {
                reactor.sleep(1_000_000).await;
            }
            assert_eq!(connected.controller.next_event().await.unwrap(), event);
        }
        reactor.sleep(150_000_000).await;
        assert!(peer.seen.keep_alives.load(Ordering::SeqCst) >= 4);
        connected.controller.identify(Cns::CONTROLLER, 0).await.unwrap();
        connected.volume.queue().close().await;
        connected.controller.close().await;
        assert!(matches!(connected.controller.next_event().await, Err(HostError::Lost(Ended::Closed))));
    });
}

#[test]
fn nobody_there() {
    let vacant = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    on_reactor(|reactor| async move {
        match Controller::connect(&reactor, vacant, options()).await {
            Err(HostError::Connect { address, error }) => {
                assert_eq!((address, error.kind()), (vacant, std::io::ErrorKind::ConnectionRefused));
            }
            other => panic!("{:?}", other.err()),
        }
        // Someone who accepts and says nothing.
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut options = options();
        options.connect_timeout_ns = 30_000_000;
        match Controller::connect(&reactor, silent.local_addr().unwrap(), options).await {
            Err(HostError::Connect { error, .. }) => assert_eq!(error.kind(), std::io::ErrorKind::TimedOut),
            other => panic!("{:?}", other.err()),
        }
    });
}
