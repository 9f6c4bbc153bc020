use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::bdev::device::null::{CompleteIn, Null, Options as NullOptions};
use crate::bdev::layer::inject::{Action, Inject, Options as InjectOptions, Rule, When};
use crate::nvme::host::{Controller, Identity, Options as HostOptions, Queue, Volume};
use crate::reactor::Reactor;
use crate::reactor::io::{IoOp, Segment};
use crate::reactor::start::solo;
use crate::sys::tsc::monotonic_ns;

const NQN: &str = "nqn.2026-11.io.reactor:own";
const FREE: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Memory with a cache, which counts its flushes.
struct Ram {
    words: Vec<AtomicU64>,
    flushes: AtomicU64,
    fails: bool,
}

impl Ram {
    fn new() -> Arc<Ram> {
        Arc::new(Ram::made(false))
    }

    fn made(fails: bool) -> Ram {
        Ram { words: (0..1 << 17).map(|_| AtomicU64::new(0)).collect(), flushes: AtomicU64::new(0), fails }
    }
}

impl Disk for Ram {
    fn size(&self) -> u64 {
        self.words.len() as u64 * 8
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), IoStatus> {
        for (word, bytes) in self.words[offset as usize / 8..].iter().zip(into.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
        }
        Ok(())
    }
    fn writable(&self) -> bool {
        true
    }
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), IoStatus> {
        for (word, bytes) in self.words[offset as usize / 8..].iter().zip(from.chunks_exact(8)) {
            word.store(u64::from_le_bytes(bytes.try_into().unwrap()), Ordering::Relaxed);
        }
        Ok(())
    }
    fn volatile_cache(&self) -> bool {
        true
    }
    fn flush(&self) -> Result<(), IoStatus> {
        self.flushes.fetch_add(1, Ordering::Relaxed);
        if self.fails { Err(IoStatus::MediaError) } else { Ok(()) }
    }
}

fn options() -> Options {
    Options { memory: 48 << 20, hugepages: HugepagePolicy::Off, ..Options::default() }
}

fn server() -> Server {
    Server::create(options()).unwrap()
}

fn text<T>(result: Result<T, Error>) -> String {
    result.err().expect("refused").to_string()
}

/// Runs `test` on a reactor of this thread.
fn on_host<F: Future<Output = ()> + 'static>(test: impl FnOnce(Rc<Reactor>) -> F) {
    let reactor = solo(48 << 20).unwrap();
    let (body, here) = (test(reactor.clone()), reactor.clone());
    reactor.spawn("test", async move {
        body.await;
        here.stop();
    });
    reactor.run(Idle::Adaptive);
    for _ in 0..1000 {
        reactor.turn();
    }
    assert_eq!(reactor.shut_down(), 0, "buffers are still out");
}

async fn connect(reactor: &Rc<Reactor>, address: SocketAddr, nsid: u32) -> (Controller, Volume) {
    let mut options = HostOptions::new(NQN, Identity::from_uuid([9; 16]));
    options.kato_ms = 30_000;
    let controller = Controller::connect(reactor, address, options).await.unwrap();
    let queue = Queue::connect(reactor, &controller.ticket(), 1).await.unwrap();
    let geometry = controller.geometry(nsid).await.unwrap();
    (controller, Volume::new(Rc::new(queue), geometry))
}

async fn run(volume: &Volume, op: IoOp, offset: u64, data: &mut [u8]) -> IoStatus {
    let reactor = volume.queue().reactor();
    let mut buf = reactor.buffer(data.len()).await;
    buf.copy_from_slice(data);
    let mut io = reactor.create_io().unwrap();
    io.prepare(op, offset, data.len() as u64);
    io.data.push_buf(buf);
    let mut io = volume.execute(io).await;
    if let Some(Segment::Buf(buf)) = io.data.pop() {
        data.copy_from_slice(&buf);
    }
    let status = io.status;
    reactor.retire_io(io);
    status
}

#[test]
fn each_step_of_a_life_may_be_called_again() {
    let ram = Ram::new();
    let mut server = server();
    assert_eq!(server.stage(), Stage::Created);
    server.add("own", ram.clone()).unwrap().nvmf(FREE, NQN, "own").unwrap();
    assert!(server.addresses().is_empty() && server.exports().is_empty());
    for _ in 0..2 {
        server.start().unwrap();
        assert_eq!((server.stage(), server.addresses().len()), (Stage::Started, 1));
    }
    let address = server.addresses()[0];
    assert_eq!(server.exports(), [format!("nvme connect -t tcp -a 127.0.0.1 -s {} -n {NQN}", address.port())]);
    for _ in 0..2 {
        server.stop().unwrap();
        assert_eq!((server.stage(), server.exports()), (Stage::Stopped, Vec::new()));
        assert!(std::net::TcpStream::connect(address).is_err(), "somebody still listens");
    }
    assert_eq!(ram.flushes.load(Ordering::Relaxed), 1, "the last flush");
    assert_eq!(text(server.start()), "cannot start again: the server is Stopped");
    for _ in 0..2 {
        server.close().unwrap();
        assert_eq!(server.stage(), Stage::Closed);
    }
    assert_eq!(Arc::strong_count(&ram), 1, "the disk is dropped");
    server.stop().unwrap();
    assert_eq!(text(server.start()), "cannot start again: the server is Closed");
    assert_eq!(text(server.add("x", Ram::new())), "cannot add a volume: the server is Closed");
    assert_eq!(text(server.nvmf(FREE, NQN, "own")), "cannot serve another volume: the server is Closed");
}

#[test]
fn steps_may_be_left_out_and_dropping_does_them() {
    let mut never_started = server();
    never_started.add("own", Ram::new()).unwrap();
    never_started.close().unwrap();
    let ram = Ram::new();
    let mut dropped = server();
    dropped.add("own", ram.clone()).unwrap().nvmf(FREE, NQN, "own").unwrap().start().unwrap();
    let address = dropped.addresses()[0];
    drop(dropped);
    assert_eq!((ram.flushes.load(Ordering::Relaxed), Arc::strong_count(&ram)), (1, 1));
    drop(TcpListener::bind(address).expect("the port is free again"));
}

#[test]
fn what_hosts_write_through_one_namespace_they_read_through_another() {
    let null = Null::new(NullOptions {
        name: "nothing".to_owned(),
        uuid: [1; 16],
        size: 1 << 20,
        block_size: 512,
        physical_block_size: 512,
        complete: CompleteIn::Submit,
    });
    let cores: Vec<usize> = affinity::allowed_cores().unwrap().into_iter().take(2).collect();
    let mut server = Server::create(Options { cores, ..options() }).unwrap();
    server.add("own", Ram::new()).unwrap().add_device(Arc::new(null)).unwrap();
    for volume in ["own", "nothing", "own"] {
        server.nvmf(FREE, NQN, volume).unwrap();
    }
    server.start().unwrap();
    let address = server.addresses()[0];
    on_host(|reactor| async move {
        let (controller, own) = connect(&reactor, address, 1).await;
        assert_eq!(controller.active_namespaces().await.unwrap(), [1, 2, 3]);
        assert_eq!(own.geometry().size, 1 << 20);
        let (other_controller, again) = connect(&reactor, address, 3).await;
        let data: Vec<u8> = (0..8192_u32).map(|i| (i * 7 / 5) as u8).collect();
        assert_eq!(run(&own, IoOp::Write, 4096, &mut data.clone()).await, IoStatus::Success);
        let mut back = vec![0; 8192];
        assert_eq!(run(&again, IoOp::Read, 4096, &mut back).await, IoStatus::Success);
        assert!(back == data);
        assert_eq!(run(&again, IoOp::Compare, 4096, &mut back.clone()).await, IoStatus::Success);
        back[5] ^= 1;
        assert_eq!(run(&own, IoOp::Compare, 4096, &mut back).await, IoStatus::Miscompare);
        for (controller, volume) in [(controller, own), (other_controller, again)] {
            volume.queue().close().await;
            controller.shut_down().await.unwrap();
        }
    });
    server.close().unwrap();
}

#[test]
fn a_host_that_stays_is_sent_away() {
    let mut server = server();
    server.add("own", Ram::new()).unwrap().nvmf(FREE, NQN, "own").unwrap().start().unwrap();
    let address = server.addresses()[0];
    on_host(|reactor| async move {
        let (_controller, own) = connect(&reactor, address, 1).await;
        // On a thread of its own: this one is the host, which goes on.
        let closing = std::thread::Builder::new().spawn(move || server.close()).unwrap();
        let mut data = vec![0; 512];
        while run(&own, IoOp::Read, 0, &mut data).await == IoStatus::Success {}
        closing.join().unwrap().unwrap();
    });
}

/// A device that does not end its reads.
fn that_keeps_reads() -> Inject {
    let base = custom::Options { name: "base".to_owned(), uuid: [2; 16], home: 0 };
    let hold = Rule { op: Some(IoOp::Read), when: When::From(1), count: None, action: Action::Hold };
    Inject::new(InjectOptions {
        name: "held".to_owned(),
        uuid: [3; 16],
        base: Arc::new(custom::Custom::new(base, Ram::new()).unwrap()),
        rules: vec![hold],
    })
    .unwrap()
}

#[test]
fn a_device_that_keeps_an_io_keeps_the_server_until_it_lets_go() {
    let layer = that_keeps_reads();
    let control = layer.control();
    let mut server = server();
    server.add_device(Arc::new(layer)).unwrap().nvmf(FREE, NQN, "held").unwrap().start().unwrap();
    let address = server.addresses()[0];
    on_host(|reactor| async move {
        let (_controller, held) = connect(&reactor, address, 1).await;
        let closing = std::thread::Builder::new().spawn(move || {
            while drain::busy(server.remotes()).is_empty() {
                std::thread::yield_now();
            }
            let refused = (text(server.stop()), text(server.close()), server.stage());
            control.release(1);
            server.close().unwrap();
            refused
        });
        assert!(run(&held, IoOp::Read, 0, &mut [0; 512]).await != IoStatus::Success);
        let (stop, close, stage) = closing.unwrap().join().unwrap();
        assert!(stop.starts_with("no end of what is in flight on: ") && stop.contains("volume \"held\""), "{stop}");
        assert_eq!((close, stage), (stop, Stage::Started));
    });
}

/// Ends a reactor as a device with a bug might.
fn panic_on(server: &Server, reactor: usize) {
    let remote = server.remotes()[reactor].clone();
    remote.send(Box::new(|_| panic!("as a device might")));
    while !remote.has_ended() {
        std::thread::yield_now();
    }
}

#[test]
fn what_a_panic_leaves_of_a_server_is_taken_down_once() {
    for by_stop in [true, false] {
        let ram = Ram::new();
        let mut server = server();
        server.add("own", ram.clone()).unwrap().nvmf(FREE, NQN, "own").unwrap().start().unwrap();
        let address = server.addresses()[0];
        panic_on(&server, 0);
        assert_eq!(server.remotes()[0].ask(|_| ()), None, "whoever asks it is told");
        let began = monotonic_ns();
        let first = if by_stop { server.stop() } else { server.close() };
        assert_eq!(text(first), "a panic has ended reactor 0; volume \"own\": the final flush did not end");
        let took_ms = (monotonic_ns() - began) / 1_000_000;
        assert!(took_ms < 10_000, "{took_ms} ms");
        assert_eq!(
            (server.stage(), server.exports()),
            (if by_stop { Stage::Stopped } else { Stage::Closed }, Vec::new())
        );
        drop(TcpListener::bind(address).expect("nobody listens any more"));
        for _ in 0..2 {
            server.stop().unwrap();
            server.close().unwrap();
        }
        assert_eq!(Arc::strong_count(&ram), 1, "the disk is dropped");
    }
}

#[test]
fn reactors_that_are_left_make_durable_what_was_acknowledged() {
    let cores: Vec<usize> = affinity::allowed_cores().unwrap().into_iter().take(2).collect();
    if cores.len() < 2 {
        return;
    }
    // The home of the volume, and another.
    for panicked in [0, 1] {
        let ram = Ram::new();
        let mut server = Server::create(Options { cores: cores.clone(), ..options() }).unwrap();
        server.add("own", ram.clone()).unwrap().nvmf(FREE, NQN, "own").unwrap().start().unwrap();
        panic_on(&server, panicked);
        assert_eq!(text(server.close()), format!("a panic has ended reactor {panicked}"));
        assert_eq!((ram.flushes.load(Ordering::Relaxed), Arc::strong_count(&ram)), (1, 1));
    }
}

#[test]
fn a_panic_after_the_end_of_service_is_told_at_the_close() {
    let mut server = server();
    server.add("own", Ram::new()).unwrap().start().unwrap();
    server.stop().unwrap();
    panic_on(&server, 0);
    assert_eq!(text(server.close()), "a panic has ended reactor 0");
    server.close().unwrap();
}

#[test]
fn an_io_that_a_panic_has_taken_along_keeps_nobody() {
    let layer = that_keeps_reads();
    let mut server = server();
    server.add_device(Arc::new(layer)).unwrap().nvmf(FREE, NQN, "held").unwrap().start().unwrap();
    let address = server.addresses()[0];
    on_host(|reactor| async move {
        let (_controller, held) = connect(&reactor, address, 1).await;
        let closing = std::thread::Builder::new().spawn(move || {
            while drain::busy(server.remotes()).is_empty() {
                std::thread::yield_now();
            }
            panic_on(&server, 0);
            (text(server.close()), server.stage())
        });
        assert!(run(&held, IoOp::Read, 0, &mut [0; 512]).await != IoStatus::Success);
        let (close, stage) = closing.unwrap().join().unwrap();
        assert!(close.starts_with("a panic has ended reactor 0"), "{close}");
        assert_eq!(stage, Stage::Closed);
    });
}

#[test]
fn a_start_that_fails_leaves_nothing_open() {
    let taken = TcpListener::bind(FREE).unwrap();
    let address = taken.local_addr().unwrap();
    let ram = Ram::new();
    let mut server = server();
    server.add("own", ram.clone()).unwrap();
    server.nvmf(FREE, NQN, "own").unwrap().nvmf(address, NQN, "own").unwrap();
    let error = text(server.start());
    assert!(error.starts_with(&format!("cannot listen on {address}: ")), "{error}");
    assert_eq!((server.stage(), server.exports()), (Stage::Stopped, Vec::new()));
    server.close().unwrap();
    assert_eq!(Arc::strong_count(&ram), 1);
}

#[test]
fn a_flush_that_fails_at_the_end_is_told() {
    let mut server = server();
    server.add("own", Ram::made(true)).unwrap().nvmf(FREE, NQN, "own").unwrap().start().unwrap();
    assert_eq!(text(server.close()), "volume \"own\": the final flush failed: MediaError");
    assert_eq!(server.stage(), Stage::Closed);
    server.close().unwrap();
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    let mut server = server();
    server.add("own", Ram::new()).unwrap();
    assert_eq!(text(server.add("own", Ram::new())), "there is a volume \"own\" already");
    for name in ["", "a b", "../x", &"x".repeat(64)] {
        assert!(matches!(server.add(name, Ram::new()), Err(Error::Volume(RegistryError::Name(_)))), "{name}");
    }
    assert_eq!(text(server.nvmf(FREE, NQN, "other")), "there is no volume \"other\"");
    assert_eq!(text(server.ublk("other", Ublk::default())), "there is no volume \"other\"");
    server.ublk("own", Ublk::default()).unwrap();
    assert_eq!(text(server.ublk("own", Ublk::default())), "volume \"own\" has a local block device already");
    let refused = Server::create(Options { cores: vec![0; 65], ..options() });
    assert_eq!(text(refused), "65 cores: a server has at most 64");
    assert!(matches!(Server::create(Options { cores: vec![99_999], ..options() }), Err(Error::Reactors(_))));
    assert!(matches!(Server::create(Options { memory: 0, ..options() }), Err(Error::Memory(_))));
    let discovery = "nqn.2014-08.org.nvmexpress.discovery";
    for nqn in ["", "iqn.2026-11.x", "nqn.2026-11.x:a b", "nqn.2026-11.x:a\nb", discovery] {
        assert!(matches!(server.nvmf(FREE, nqn, "own"), Err(Error::Nqn(_))), "{nqn:?}");
    }
    let mut wrong = self::server();
    wrong.add("own", Ram::new()).unwrap();
    let most =
        "volume \"own\": a local block device has 1 to 64 queues, a depth of 1 to 4096, and a number below 1048576";
    let default = Ublk::default;
    for options in [
        Ublk { queues: Some(0), ..default() },
        Ublk { queues: Some(65), ..default() },
        Ublk { depth: 0, ..default() },
        Ublk { depth: 4097, ..default() },
        Ublk { id: Some(1 << 20), ..default() },
    ] {
        assert_eq!(text(wrong.ublk("own", options)), most);
    }
}

#[test]
fn an_nvme_disk_that_is_not_there_is_refused() {
    let mut server = server();
    let wanted = NvmeNamespace::new(NvmeDisk::Pci("ffff:ff:1f.7".parse().unwrap()));
    let said = text(server.nvme("fast0", &wanted));
    assert!(said.starts_with("no NVMe disk at ffff:ff:1f.7: this machine has "), "{said}");
    // Its name is free still.
    server.add("fast0", Ram::new()).unwrap();
    server.close().unwrap();
}
