//! A well-behaved host beside the others: verified I/O without a pause, and how long each took.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use reactor::nvme::host::Volume;

use super::super::host::{Connected, on_host, options, pattern, read, write};
use super::super::server::{PATIENCE, now, until};

/// Commands in flight.
const DEPTH: usize = 8;
/// Bytes that each worker has for itself.
const AREA: u64 = 64 << 10;
/// Lengths in turn: a write in the capsule, one by R2T.
const LENGTHS: [usize; 2] = [4096, 32_768];
/// Namespace of the checker, which no hostile host writes to.
pub const NSID: u32 = 2;
/// The phase that ends it.
const STOP: u8 = u8::MAX;

/// One I/O: the phase it began in, and how long it took.
type Sample = (u8, Duration);

/// The running host.
pub struct Checker {
    phase: Arc<AtomicU8>,
    began: Vec<Duration>,
    thread: JoinHandle<Vec<Sample>>,
}

/// What was seen in one phase.
#[derive(Clone, Copy, Debug)]
pub struct Phase {
    /// Verified reads and writes.
    pub ios: usize,
    /// A second.
    pub rate: f64,
    /// The middle.
    pub p50: Duration,
    /// All but one of a hundred took at most this.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

impl Checker {
    /// Connects to a subsystem and begins, in phase 0.
    pub fn start(address: SocketAddr, nqn: String) -> Checker {
        let shared = (Arc::new(AtomicU8::new(0)), Arc::new(AtomicBool::new(false)));
        let (phase, started) = shared.clone();
        let thread = std::thread::spawn(move || on_host(move |reactor| work(reactor, address, nqn, shared)));
        until(PATIENCE, || started.load(Ordering::Relaxed) || thread.is_finished());
        Checker { phase, began: vec![now()], thread }
    }

    /// The next phase begins.
    pub fn next_phase(&mut self) {
        self.phase.fetch_add(1, Ordering::Relaxed);
        self.began.push(now());
    }

    /// Whether it has failed: then [`Checker::stop`] says how.
    pub fn is_dead(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it; what was seen in each phase.
    ///
    /// # Panics
    /// If any answer was wrong, or a phase had none.
    pub fn stop(mut self) -> Vec<Phase> {
        self.phase.store(STOP, Ordering::Relaxed);
        self.began.push(now());
        let samples = self.thread.join().expect("every answer to the well-behaved host is right");
        let mut phases = Vec::new();
        for (phase, span) in self.began.windows(2).enumerate() {
            let of_phase = |p: u8| usize::from(p) == phase || p == STOP && phase + 1 == self.began.len() - 1;
            let mut times: Vec<Duration> = samples.iter().filter(|(p, _)| of_phase(*p)).map(|(_, t)| *t).collect();
            assert!(!times.is_empty(), "no I/O of the well-behaved host began in phase {phase}");
            times.sort_unstable();
            let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)];
            phases.push(Phase {
                ios: times.len(),
                rate: times.len() as f64 / (span[1] - span[0]).as_secs_f64(),
                p50: at(50),
                p99: at(99),
                max: at(100),
            });
        }
        phases
    }
}

async fn work(
    reactor: Rc<reactor::reactor::Reactor>,
    address: SocketAddr,
    nqn: String,
    (phase, started): (Arc<AtomicU8>, Arc<AtomicBool>),
) -> Vec<Sample> {
    let connected = Connected::new(&reactor, address, options(&nqn), NSID).await;
    started.store(true, Ordering::Relaxed);
    let samples = Rc::new(RefCell::new(Vec::new()));
    let (left, waiter) = (Rc::new(Cell::new(DEPTH)), reactor.current_task());
    for worker in 0..DEPTH {
        let (volume, phase, samples) = (connected.volume.clone(), phase.clone(), samples.clone());
        let (left, here) = (left.clone(), reactor.clone());
        reactor.spawn("checker", async move {
            check(&volume, worker, &phase, &samples).await;
            left.set(left.get() - 1);
            here.wake(waiter);
        });
    }
    std::future::poll_fn(|_| if left.get() == 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }).await;
    connected.end().await;
    samples.take()
}

/// Writes and reads back until the phase says stop.
async fn check(volume: &Volume, worker: usize, phase: &AtomicU8, samples: &RefCell<Vec<Sample>>) {
    let at = worker as u64 * AREA;
    for round in 0.. {
        let current = phase.load(Ordering::Relaxed);
        // At least one round, however soon it ends.
        if current == STOP && round > 0 {
            return;
        }
        let len = LENGTHS[round % LENGTHS.len()];
        let data = pattern(len, (worker as u64) << 32 | round as u64);
        let start = now();
        write(volume, at, &data).await;
        let between = now();
        let found = read(volume, at, len as u64).await;
        let end = now();
        assert!(found == data, "worker {worker}, round {round}: {len} bytes at {at} are not what was written");
        samples.borrow_mut().extend([(current, between - start), (current, end - between)]);
    }
}
