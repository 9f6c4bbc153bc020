//! An echo server and its clients, built on the real listener, stream and sending side, in simulated worlds: every message
//! comes back whole and in order however the network cuts and delays it, and a planted fault is found. The same server and
//! client also run on the kernel's ring.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;

use hugepages::Buf;
use reactor::net::{Listener, Stream, StreamError, Tx};
use reactor::reactor::Reactor;
use reactor::reactor::sim::{Fault, Rates, Simulation, Stuck};
use reactor::reactor::start;
use reactor::sys::descriptor::Descriptor;
use reactor::sys::socket;

/// A message: length of the payload and its number, little endian, then the payload.
const HEAD: usize = 8;
/// Payload bytes that a client has under way at most, so that sending never starves receiving of buffers.
const WINDOW: usize = 1 << 20;
const CONNECTIONS: u64 = 3;

/// The byte at `index` of message `number`.
fn pattern(number: u32, index: usize) -> u8 {
    (number.wrapping_mul(0x9e37_79b1) >> 13) as u8 ^ (index as u8).wrapping_mul(31) ^ (index >> 8) as u8
}

/// Reads whole pieces from a stream: small ones out of receive buffers, large ones placed.
struct Reader {
    stream: Rc<Stream>,
    left: Option<Buf>,
}

impl Reader {
    /// Fills `buf`. `Ok(None)` if the stream ended before its first byte.
    async fn fill(&mut self, mut buf: Buf) -> Result<Option<Buf>, StreamError> {
        let mut have = 0;
        while have < buf.len() {
            if let Some(mut got) = self.left.take() {
                let part = got.split_to(got.len().min(buf.len() - have));
                buf[have..have + part.len()].copy_from_slice(&part);
                have += part.len();
                self.left = Some(got).filter(|rest| !rest.is_empty());
            } else if buf.len() - have > 16 * 1024 {
                return self.stream.recv_into(buf, have).await.map(Some);
            } else {
                match self.stream.recv().await {
                    Ok(got) => self.left = Some(got),
                    Err(StreamError::Closed) if have == 0 => return Ok(None),
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Some(buf))
    }

    /// The next message's number and payload.
    async fn message(&mut self) -> Result<Option<(u32, Buf)>, StreamError> {
        let reactor = self.stream.reactor().clone();
        let Some(head) = self.fill(reactor.buffer(HEAD).await).await? else { return Ok(None) };
        let len = u32::from_le_bytes(head[..4].try_into().unwrap()) as usize;
        let number = u32::from_le_bytes(head[4..].try_into().unwrap());
        if len > hugepages::MAX_BUF {
            return Err(StreamError::Os(libc::EPROTO));
        }
        let payload = self.fill(reactor.buffer(len).await).await?;
        payload.map(|payload| Some((number, payload))).ok_or(StreamError::Closed)
    }
}

async fn push(tx: &Tx, number: u32, payload: Buf) -> Result<u64, StreamError> {
    tx.push(2, HEAD, |batch| {
        batch.push_head(|head| {
            head[..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
            head[4..HEAD].copy_from_slice(&number.to_le_bytes());
            HEAD
        });
        batch.push_buf(payload);
    })
    .await
}

/// Connections that a reactor of the server got.
#[derive(Default)]
struct Served(Cell<u32>);

fn serve(reactor: &Rc<Reactor>, fd: Descriptor) {
    let served = reactor.service::<Served>().unwrap_or_default();
    served.0.set(served.0.get() + 1);
    reactor.set_service(served);
    let Ok(stream) = Stream::adopt(reactor, fd) else { return };
    let stream = Rc::new(stream);
    let tx = Tx::new(&stream);
    let sender = tx.clone();
    reactor.spawn("echo sender", async move { sender.run().await });
    reactor.spawn("echo", async move {
        let mut reader = Reader { stream, left: None };
        while let Ok(Some((number, payload))) = reader.message().await {
            if push(&tx, number, payload).await.is_err() {
                break;
            }
        }
        tx.finish();
    });
}

/// A fault for a connection, given its local and its peer address.
type Plant = fn(SocketAddr, SocketAddr) -> Fault;

/// What a client chooses by.
type Chance = Rc<dyn Fn(u64) -> u64>;

/// Sends `count` messages and checks that exactly those come back.
async fn converse(
    reactor: Rc<Reactor>,
    pick: Chance,
    to: SocketAddr,
    count: u32,
    connected: impl FnOnce(&Stream),
) -> Result<(), String> {
    let stream = Rc::new(Stream::connect(&reactor, to).await.map_err(|e| format!("connect: {e}"))?);
    connected(&stream);
    let tx = Tx::new(&stream);
    let sender = tx.clone();
    reactor.spawn("client sender", async move { sender.run().await });
    let expected: Rc<RefCell<VecDeque<(u32, usize)>>> = Rc::default();
    let (asked, source, there) = (expected.clone(), tx.clone(), reactor.clone());
    reactor.spawn("client", async move {
        for number in 0..count {
            let len = match pick(10) {
                0 => 0,
                1 => pick(200_000) as usize,
                2..6 => pick(10_000) as usize,
                _ => pick(100) as usize,
            };
            while asked.borrow().iter().map(|(_, len)| len).sum::<usize>() + len > WINDOW {
                there.sleep(100_000).await;
            }
            let mut payload = there.buffer(len).await;
            for (index, byte) in payload.iter_mut().enumerate() {
                *byte = pattern(number, index);
            }
            asked.borrow_mut().push_back((number, len));
            if push(&source, number, payload).await.is_err() {
                return;
            }
            if pick(8) == 0 {
                there.sleep(pick(3_000_000)).await;
            }
        }
    });
    let mut reader = Reader { stream: stream.clone(), left: None };
    for done in 0..count {
        let message = reader.message().await.map_err(|e| format!("after {done} messages: {e}"))?;
        let Some((number, payload)) = message else { return Err(format!("closed after {done} messages")) };
        let wanted = expected.borrow_mut().pop_front();
        if wanted != Some((number, payload.len())) {
            return Err(format!("message {number} of {} bytes, expected {wanted:?}", payload.len()));
        }
        if let Some(index) = (0..payload.len()).find(|index| payload[*index] != pattern(number, *index)) {
            return Err(format!("message {number} differs at byte {index} of {}", payload.len()));
        }
    }
    tx.finish();
    stream.shut_down();
    Ok(())
}

struct Outcome {
    result: Result<(), String>,
    hash: u64,
    turns: u64,
    served: [u32; 2],
}

fn run(seed: u64, rates: Rates, plant: Option<Plant>) -> Outcome {
    let mut sim = Simulation::new(seed);
    sim.world().set_rates(rates);
    let (server, client) = (sim.machine(2), sim.machine(1));
    let (fd, address) = sim.world().listen(server, 0).unwrap();
    let listener = Listener::start(&sim.reactor(server, 0), fd, address, |reactor, fd, _| serve(reactor, fd));
    let reactor = sim.reactor(client, 0);
    let left = Rc::new(Cell::new(CONNECTIONS));
    let results: Rc<RefCell<Vec<Result<(), String>>>> = Rc::default();
    for connection in 0..CONNECTIONS {
        let (here, world, left, results) = (reactor.clone(), sim.world().clone(), left.clone(), results.clone());
        let plant = plant.filter(|_| connection == 0);
        reactor.spawn("conversation", async move {
            let chance = world.clone();
            let planting = |stream: &Stream| {
                if let Some(plant) = plant {
                    world.fault(plant(stream.local(), stream.peer()));
                }
            };
            let result = converse(here, Rc::new(move |bound| chance.pick(bound)), address, 40, planting).await;
            results.borrow_mut().push(result);
            left.set(left.get() - 1);
        });
    }
    let (here, waiting) = (reactor.clone(), left);
    let finished = sim.run_until(&reactor, async move {
        while waiting.get() > 0 {
            here.sleep(5_000_000).await;
        }
    });
    let result = match finished {
        Ok(()) => results.take().into_iter().collect(),
        Err(Stuck::Deadlock(_) | Stuck::Timeout(_)) => Err("stuck".to_owned()),
        Err(stuck) => panic!("{stuck}"),
    };
    listener.stop();
    // Everything closes: the server hears the FINs, its tasks end.
    sim.run_for(60_000_000_000).unwrap();
    let tasks: Vec<usize> = (0..2).map(|i| sim.reactor(server, i).tasks_alive()).collect();
    let served = [0, 1].map(|i| sim.reactor(server, i).service::<Served>().map_or(0, |served| served.0.get()));
    let (hash, turns) = (sim.trace_hash(), sim.turns());
    drop((listener, reactor));
    let leaked = sim.finish();
    if result.is_ok() {
        assert_eq!(tasks, [0, 0], "seed {seed}: tasks of the server after all connections were closed");
        assert_eq!(leaked, 0, "seed {seed}: DMA buffers leaked");
    }
    Outcome { result, hash, turns, served }
}

#[test]
fn what_is_sent_comes_back_in_hundreds_of_worlds() {
    let mut hashes = std::collections::BTreeSet::new();
    let mut turns = 0;
    for seed in 0..200 {
        let outcome = run(seed, Rates::default(), None);
        assert_eq!(outcome.result, Ok(()), "seed {seed}");
        assert!(outcome.served.iter().all(|n| *n > 0), "seed {seed}: connections are spread: {:?}", outcome.served);
        hashes.insert(outcome.hash);
        turns += outcome.turns;
    }
    assert_eq!(hashes.len(), 200, "every seed is a world of its own");
    println!("200 seeds, {turns} turns");
}

#[test]
fn the_same_seed_does_the_same() {
    for seed in [3, 77, 4_000_000_007] {
        let (first, second) = (run(seed, Rates::default(), None), run(seed, Rates::default(), None));
        assert_eq!((first.hash, first.turns), (second.hash, second.turns), "seed {seed}");
        println!("seed {seed}: trace {:016x}", first.hash);
    }
}

#[test]
fn a_lost_byte_is_found_on_either_way() {
    for seed in 0..10 {
        let there =
            run(seed, Rates::default(), Some(|local, peer| Fault::DropByte { from: local, to: peer, at: 1234 }));
        assert!(there.result.is_err(), "seed {seed}: a byte to the server was lost and nobody noticed");
        let back = run(seed, Rates::default(), Some(|local, peer| Fault::DropByte { from: peer, to: local, at: 1234 }));
        assert!(back.result.is_err(), "seed {seed}: a byte to the client was lost and nobody noticed");
    }
}

#[test]
fn a_flipped_bit_is_found() {
    for seed in 0..10 {
        let outcome = run(seed, Rates::default(), Some(|from, to| Fault::FlipBit { from, to, at: 999 }));
        assert!(outcome.result.is_err(), "seed {seed}: a bit was flipped and nobody noticed");
    }
}

#[test]
fn a_reset_is_told_and_nothing_else_suffers() {
    for seed in 0..20 {
        let outcome = run(seed, Rates::default(), Some(|from, to| Fault::Reset { from, to }));
        let error = outcome.result.expect_err("one of the connections was reset");
        assert!(error.contains("reset") || error.contains("closed"), "seed {seed}: {error}");
    }
}

#[test]
fn resets_at_random_leak_nothing() {
    let rates = Rates { reset: 5_000, ..Rates::default() };
    let broken = (0..50).filter(|seed| run(*seed, rates, None).result.is_err()).count();
    assert!(broken > 10, "only {broken} of 50 worlds had a reset");
}

#[test]
fn the_same_code_runs_on_the_kernels_ring() {
    let reactor = start::solo(64 << 20).unwrap();
    let (fd, address) = socket::listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = Listener::start(&reactor, fd, address, |reactor, fd, _| serve(reactor, fd));
    let here = reactor.clone();
    let named = Rc::new(Cell::new(None));
    let names = named.clone();
    let result = reactor.run_until(async move {
        let chance = here.clone();
        let pick: Chance = Rc::new(move |bound| chance.entropy().below(bound));
        let noting = |stream: &Stream| names.set(Some((stream.peer(), stream.local().ip())));
        let result = converse(here.clone(), pick, address, 100, noting).await;
        let refused = Stream::connect(&here, SocketAddr::new(address.ip(), 1)).await.err().map(|e| e.kind());
        (result, refused)
    });
    assert_eq!(result, (Ok(()), Some(std::io::ErrorKind::ConnectionRefused)));
    assert_eq!(named.get(), Some((address, address.ip())));
    assert_eq!(reactor.service::<Served>().unwrap().0.get(), 1);
    listener.stop();
    drop(listener);
    assert_eq!(reactor.shut_down(), 0, "DMA buffers leaked");
}
