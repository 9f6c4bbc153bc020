//! Many hosts at once: floods, half-open, slow, deaf and mute ones, and what they may take.

use std::net::SocketAddr;
use std::time::Duration;

use reactor::nvme::spec::{NvmOpcode, Sqe};
use rustix::process::{Resource, getrlimit, setrlimit};

use super::super::host::pattern;
use super::super::server::{PATIENCE, Place, Server, now, nqn, until};
use super::checker::{Checker, Phase};
use super::config;
use super::raw::{Raw, ic_request, read_sqe, write_sqe};

const NO_DIGESTS: (bool, bool) = (false, false);
/// Connections open at once.
const CROWD: usize = 2000;
/// Hosts that take all that one can.
const GREEDY: usize = 24;
/// The largest transfer.
const LARGEST: u32 = 1 << 20;
/// How long each crowd is watched.
const WATCHED: Duration = Duration::from_secs(4);
/// No I/O of a well-behaved host may take longer: above what a loaded machine does, below the time that a crowd stays.
const LONGEST: Duration = Duration::from_secs(3);

/// As many open files as this process may have.
fn raise_limits() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

/// Resident memory once it no longer grows by itself: DMA memory is populated while serving.
fn settled(server: &Server) -> u64 {
    let (mut last, mut since) = (server.program.resident(), now());
    until(PATIENCE, || {
        let current = server.program.resident();
        if current.abs_diff(last) > 256 << 10 {
            (last, since) = (current, now());
        }
        now() - since > Duration::from_secs(1)
    });
    server.program.resident()
}

/// A controller: its admin queue and one I/O queue.
fn controller(address: SocketAddr) -> [Raw; 2] {
    let (admin, cntlid) = Raw::admin(address, &nqn(0), NO_DIGESTS);
    let (io, _) = Raw::queue(address, &nqn(0), 1, cntlid, NO_DIGESTS);
    [admin, io]
}

/// Sends `count` commands whose answers nobody will read, or whose data nobody will send.
fn take_all(address: SocketAddr, sqe: Sqe) -> [Raw; 2] {
    let queues = controller(address);
    for cid in 0..31 {
        queues[1].send(&queues[1].capsule(cid, sqe, &[]));
    }
    queues
}

/// What a crowd is, and how it comes.
type Crowd = (&'static str, fn(SocketAddr) -> Vec<Raw>);

const CROWDS: [Crowd; 9] = [
    ("silent", |address| (0..CROWD).map(|_| Raw::fresh(address)).collect()),
    ("half a header", |address| {
        let half = |_| {
            let host = Raw::fresh(address);
            host.send(&[0, 0, 128, 0]);
            host
        };
        (0..CROWD).map(half).collect()
    }),
    ("ICReq only", |address| (0..CROWD).map(|_| Raw::open(address, NO_DIGESTS)).collect()),
    ("connected, idle", |address| (0..CROWD / 2).flat_map(|_| controller(address)).collect()),
    ("half a capsule each", |address| {
        let half = |_| {
            let queues = controller(address);
            let whole = queues[1].capsule(1, write_sqe(8192, true), &pattern(8192, 1));
            queues[1].send(&whole[..4096]);
            queues
        };
        (0..CROWD / 2).flat_map(half).collect()
    }),
    ("coming and going", |address| {
        let start = now();
        let mut last = None;
        while now() - start < WATCHED {
            let host = Raw::fresh(address);
            match host.socket().local_addr().unwrap().port() % 4 {
                0 => {}
                1 => assert!(host.send(&ic_request(NO_DIGESTS))),
                2 => assert!(host.send(&ic_request(NO_DIGESTS)[..77])),
                _ => last = Some(controller(address)),
            }
        }
        last.into_iter().flatten().collect()
    }),
    ("resets in the middle", |address| {
        let start = now();
        while now() - start < WATCHED {
            let [_admin, io] = controller(address);
            let whole = io.capsule(1, write_sqe(8192, true), &pattern(8192, 1));
            io.send(&io.capsule(2, write_sqe(LARGEST, false), &[]));
            let r2t = io.r2t();
            let data = io.h2c_data(2, r2t.ttag.get(), 0, &pattern(LARGEST as usize, 1), true);
            io.send(if r2t.ttag.get() == 0 { &data[..300_000] } else { &whole[..3000] });
            io.reset();
        }
        Vec::new()
    }),
    ("deaf", |address| (0..GREEDY).flat_map(|_| take_all(address, read_sqe(LARGEST))).collect()),
    ("mute", |address| (0..GREEDY).flat_map(|_| take_all(address, write_sqe(LARGEST, false))).collect()),
];

/// One line of what is reported: against the well-behaved host alone.
fn line(name: &str, phase: &Phase, alone: &Phase) -> String {
    format!(
        "{name:20} {:8.0} IO/s ({:.2}) p50 {:8.0?} p99 {:8.0?} ({:.2}) longest {:8.0?}, {} IOs\n",
        phase.rate,
        phase.rate / alone.rate,
        phase.p50,
        phase.p99,
        phase.p99.as_secs_f64() / alone.p99.as_secs_f64(),
        phase.max,
        phase.ios
    )
}

#[test]
fn no_crowd_keeps_a_well_behaved_host_from_its_data() {
    raise_limits();
    let server = Place::new().serve(&config("256MiB"));
    let address = server.address();
    let mut checker = Checker::start(address, nqn(0));
    std::thread::park_timeout(WATCHED);
    let mut names = vec!["alone"];
    for (name, come) in CROWDS {
        names.push(name);
        checker.next_phase();
        let start = now();
        let crowd = come(address);
        std::thread::park_timeout((start + WATCHED).saturating_sub(now()));
        assert!(!checker.is_dead(), "during: {name}");
        drop(crowd);
    }
    names.push("slow");
    checker.next_phase();
    dribble(address);
    names.push("alone again");
    checker.next_phase();
    std::thread::park_timeout(WATCHED);
    let phases = checker.stop();
    let mut report = String::from("\n");
    for (name, phase) in names.iter().zip(&phases) {
        report += &line(name, phase, &phases[0]);
    }
    println!("{report}");
    for (name, phase) in names.iter().zip(&phases) {
        assert!(phase.max < LONGEST, "{name}: an I/O took {:?}\n{report}", phase.max);
        assert!(phase.ios > 16, "{name}: the well-behaved host came to a stop\n{report}");
    }
    server.stop();
}

/// Two hundred hosts that send a byte every 50 ms: reads on I/O queues, which are answered in the end.
fn dribble(address: SocketAddr) {
    let hosts: Vec<_> = (0..100).map(|_| controller(address)).collect();
    let capsule = hosts[0][1].capsule(1, Sqe::nvm(NvmOpcode::FLUSH, 1), &[]);
    for byte in capsule {
        let next = now() + Duration::from_millis(50);
        for [_, io] in &hosts {
            assert!(io.send(&[byte]), "a slow host is not a hostile one");
        }
        std::thread::park_timeout(next.saturating_sub(now()));
    }
    for [_, io] in &hosts {
        assert!(io.response().status().is_success());
    }
}

/// Heap of a connection before its Connect: its state, its three tasks, its places in tables. See docs/architecture.md, "Memory of the
/// NVMe/TCP door", for this and the next three.
const HEAP_SILENT: u64 = 4 << 10;
/// Heap of a connection that is a queue, half of its controller included.
const HEAP_CONNECTED: u64 = 10 << 10;
/// Heap of a command slot: its task, its I/O.
const HEAP_SLOT: u64 = 4 << 10;
/// Heap of the batches of a connection that has something to send: one open, one with the kernel.
const HEAP_BATCHES: u64 = 2 * (32 << 10);
/// What lists of the whole program may add, and the pages that the allocator keeps.
const HEAP_SLACK: u64 = 2 << 20;

/// A crowd and what it may hold: how many connections before Connect, queues, busy slots, connections that send.
struct Held {
    name: &'static str,
    come: fn(SocketAddr) -> Vec<Raw>,
    silent: u64,
    connected: u64,
    slots: u64,
    sending: u64,
}

impl Held {
    fn heap_max(&self) -> u64 {
        self.silent * HEAP_SILENT
            + self.connected * HEAP_CONNECTED
            + self.slots * HEAP_SLOT
            + self.sending * HEAP_BATCHES
            + HEAP_SLACK
    }
}

/// Controllers of the crowds that are busy.
const BUSY: u64 = 200;

const HELD: [Held; 5] = [
    Held {
        name: "silent",
        come: |address| (0..CROWD).map(|_| Raw::fresh(address)).collect(),
        silent: CROWD as u64,
        connected: 0,
        slots: 0,
        sending: 0,
    },
    Held {
        name: "ICReq only",
        come: |address| (0..CROWD).map(|_| Raw::open(address, NO_DIGESTS)).collect(),
        silent: CROWD as u64,
        connected: 0,
        slots: 0,
        // One batch each went out with the ICResp, and is back.
        sending: 1,
    },
    Held {
        name: "connected",
        come: |address| (0..CROWD / 2).flat_map(|_| controller(address)).collect(),
        silent: 0,
        connected: CROWD as u64,
        slots: 0,
        sending: 1,
    },
    Held {
        name: "mute, each with 31 writes",
        come: |address| (0..BUSY).flat_map(|_| take_all(address, write_sqe(16_384, false))).collect(),
        silent: 0,
        connected: 2 * BUSY,
        slots: 31 * BUSY,
        sending: BUSY,
    },
    Held {
        name: "deaf, each with 31 reads",
        come: |address| (0..BUSY).flat_map(|_| take_all(address, read_sqe(LARGEST))).collect(),
        silent: 0,
        connected: 2 * BUSY,
        slots: 31 * BUSY,
        sending: BUSY,
    },
];

#[test]
fn connections_hold_no_more_memory_than_their_formula_says() {
    raise_limits();
    let server = Place::new().serve(&config("128MiB"));
    let mut checker = Checker::start(server.address(), nqn(0));
    let alone = settled(&server);
    let mut report = String::from("\n");
    let mut highest = [0; 2];
    for (round, peak) in highest.iter_mut().enumerate() {
        for held in &HELD {
            checker.next_phase();
            let crowd = (held.come)(server.address());
            std::thread::park_timeout(Duration::from_secs(1));
            let now = server.program.resident();
            let grown = now.saturating_sub(alone);
            *peak = now.max(*peak);
            report += &format!(
                "{:28} {:5} connections, {:5} slots: {:8} KiB of heap, {:8} KiB at most\n",
                held.name,
                crowd.len(),
                held.slots,
                grown >> 10,
                held.heap_max() >> 10
            );
            // What the allocator kept from the first round is not what this crowd holds.
            assert!(round > 0 || grown <= held.heap_max(), "{}{report}", held.name);
            drop(crowd);
            // Controllers end with their connections: the next crowd finds the tables empty.
            std::thread::park_timeout(Duration::from_secs(1));
        }
    }
    println!("{report}");
    assert!(highest[1] <= highest[0] + HEAP_SLACK, "what the first crowds held is still held\n{report}");
    let phases = checker.stop();
    assert!(phases.iter().all(|phase| phase.max < LONGEST), "{phases:?}");
    server.stop();
}
