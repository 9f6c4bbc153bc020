//! Starting reactors: one pinned thread per core, or one on the calling thread for tools and tests.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use hugepages::{Arena, ArenaError, Chunk, ChunkInfo, Pool};

use super::backend::Backend;
use super::clock::{Entropy, TimeSource};
use super::mailbox::{Mailbox, Remote};
use super::sim::{Machine, SimRing, World};
use super::{Idle, Reactor};
use crate::limits::ARENA_AT_START;
use crate::sys::affinity;
use crate::sys::socket::Doorbell;
use crate::sys::tsc::{Tsc, monotonic_ns};
use crate::sys::uring::{SetupError, Uring};

/// How often a reactor that is to end is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// Why reactors could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The ring.
    #[error("{0}")]
    Ring(#[from] SetupError),
    /// The DMA memory.
    #[error("{0}")]
    Arena(#[from] ArenaError),
    /// Pinning a thread.
    #[error("reactor {id} cannot be pinned to core {core}: {error}")]
    Pin {
        /// Reactor.
        id: u16,
        /// Core.
        core: usize,
        /// Why.
        error: io::Error,
    },
    /// Threads, descriptors, entropy.
    #[error("a reactor cannot be started: {0}")]
    Io(#[from] io::Error),
}

/// The reactors of a process.
#[derive(Debug)]
pub struct Reactors {
    remotes: Vec<Remote>,
    threads: Vec<JoinHandle<usize>>,
    arena: Arena,
    fed: usize,
}

impl Reactors {
    /// Starts one reactor on each of `cores`, with the first [`ARENA_AT_START`] bytes of the arena spread over them.
    ///
    /// # Errors
    /// If a ring, memory or a core is refused; then nothing is left running.
    pub fn start(cores: &[usize], idle: Idle, arena: Arena) -> Result<Reactors, StartError> {
        let remotes = (0..cores.len() as u16).map(Remote::new).collect::<io::Result<Vec<_>>>()?;
        let mut reactors = Reactors { remotes, threads: Vec::new(), arena, fed: 0 };
        let mut shares: Vec<Vec<(Chunk, ChunkInfo)>> = cores.iter().map(|_| Vec::new()).collect();
        let mut bytes = 0;
        // Each reactor needs a chunk to begin with; small arenas have fewer bytes than the start asks for.
        while bytes < ARENA_AT_START || shares.iter().any(Vec::is_empty) {
            let grown = grow(&reactors.arena)?;
            if grown.is_empty() {
                break;
            }
            for (chunk, info) in grown {
                bytes += info.len();
                let share = reactors.fed % shares.len();
                shares[share].push((chunk, info));
                reactors.fed += 1;
            }
        }
        let mut elsewhere = affinity::allowed_cores()?;
        elsewhere.retain(|core| !cores.contains(core));
        let tsc = Tsc::calibrate();
        let (report, reports) = mpsc::channel();
        let mut starts = Vec::new();
        for ((mailbox, chunks), (id, core)) in
            Mailbox::connect(&reactors.remotes).into_iter().zip(shares).zip(cores.iter().copied().enumerate())
        {
            let (report, elsewhere) = (report.clone(), elsewhere.clone());
            let (start, started) = mpsc::channel();
            starts.push(start);
            reactors.threads.push(std::thread::Builder::new().name(format!("reactor-{id}")).spawn(move || {
                let made = affinity::pin(core)
                    .map_err(|error| StartError::Pin { id: id as u16, core, error })
                    .and_then(|()| Parts::new(id as u16, mailbox, chunks, tsc));
                let mut parts = match made {
                    Ok(parts) => parts,
                    Err(error) => {
                        let _ = report.send(Err(error));
                        return 0;
                    }
                };
                parts.ring.set_worker_cores(&elsewhere);
                let _ = report.send(Ok(()));
                drop(report);
                // One that was not made ends the start of all.
                if started.recv().is_err() {
                    return 0;
                }
                // Dropped by a panic as well: whoever waits for an answer is told that there is none.
                let answers = Answers(parts.mailbox.own().clone());
                let reactor = parts.build();
                let ran = catch_unwind(AssertUnwindSafe(|| reactor.run(idle)));
                drop(answers);
                // What it has of sockets, files and the ring goes after a panic too: nothing of it is used again, and only dropped.
                let leaked = reactor.shut_down();
                ran.map_or_else(|panic| resume_unwind(panic), |()| leaked)
            })?);
        }
        drop(report);
        // An error here drops `starts` and `reactors`, which ends those that were made.
        reports.iter().collect::<Result<Vec<()>, StartError>>()?;
        // Rings and registered memory count against one limit of the user: the rings, which must be, all come first.
        for start in starts {
            // A thread that is gone has panicked: whoever asks it next hears so.
            let _ = start.send(());
        }
        Ok(reactors)
    }

    /// Handles, in the order of the cores.
    pub fn remotes(&self) -> &[Remote] {
        &self.remotes
    }

    /// Maps the rest of the arena and spreads it over the reactors; blocks this control thread, not the reactors.
    ///
    /// # Errors
    /// As [`Reactors::feed_some`].
    pub fn feed(&mut self) -> Result<(), ArenaError> {
        while self.feed_some()? {}
        Ok(())
    }

    /// Maps a little more of the arena, for a reactor. Returns whether there may be more.
    ///
    /// # Errors
    /// If memory could not be mapped: the reactors go on with what they have.
    pub fn feed_some(&mut self) -> Result<bool, ArenaError> {
        let grown = grow(&self.arena)?;
        let more = !grown.is_empty();
        for (chunk, info) in grown {
            let remote = &self.remotes[self.fed % self.remotes.len()];
            self.fed += 1;
            remote.send(Box::new(move |reactor| reactor.add_chunk(chunk, info)));
        }
        Ok(more)
    }

    /// Stops all reactors and waits for their threads. Returns the number of DMA buffers that never came home.
    pub fn stop(mut self) -> usize {
        self.join()
    }

    /// As [`Reactors::stop`], but a reactor that has not ended within `limit`, since what it does there never comes to an end, is
    /// left to the end of the process, and keeps its memory. Returns their numbers.
    pub fn stop_within(mut self, limit: Duration) -> Vec<u16> {
        for remote in &self.remotes {
            remote.stop();
        }
        let start = monotonic_ns();
        while !self.threads.iter().all(JoinHandle::is_finished) && Duration::from_nanos(monotonic_ns() - start) < limit
        {
            std::thread::park_timeout(LOOK);
        }
        let threads = self.remotes.iter().zip(self.threads.drain(..));
        threads.filter(|(_, thread)| !thread.is_finished()).map(|(remote, _)| remote.id()).collect()
    }

    fn join(&mut self) -> usize {
        for remote in &self.remotes {
            remote.stop();
        }
        self.threads.drain(..).map(|t| t.join().unwrap_or(0)).sum()
    }
}

impl Drop for Reactors {
    fn drop(&mut self) {
        self.join();
    }
}

/// While it is there, a reactor answers.
struct Answers(Remote);

impl Drop for Answers {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// The next chunks of the arena, in steps of one chunk where pages are small.
fn grow(arena: &Arena) -> Result<Vec<(Chunk, ChunkInfo)>, ArenaError> {
    Ok(arena
        .grow(1)?
        .into_iter()
        .map(|chunk| {
            let info = chunk.info();
            (chunk, info)
        })
        .collect())
}

/// All that may be refused of a reactor, before it registers memory.
struct Parts {
    mailbox: Mailbox,
    pool: Pool,
    ring: Box<Uring>,
    infos: Vec<ChunkInfo>,
    seed: u64,
    tsc: Tsc,
}

impl Parts {
    fn new(id: u16, mailbox: Mailbox, chunks: Vec<(Chunk, ChunkInfo)>, tsc: Tsc) -> Result<Parts, StartError> {
        let pool = Pool::new(id);
        let mut infos = Vec::new();
        for (chunk, info) in chunks {
            pool.add(chunk);
            infos.push(info);
        }
        let ring = Box::new(Uring::new(&pool, mailbox.own().doorbell())?);
        let seed = Entropy::seed_from_kernel()?;
        Ok(Parts { mailbox, pool, ring, infos, seed, tsc })
    }

    fn build(mut self) -> Rc<Reactor> {
        for info in &self.infos {
            self.ring.register_chunk(info);
        }
        Reactor::new(self.mailbox, Backend::Uring(self.ring), TimeSource::Tsc(self.tsc), self.seed, self.pool)
    }
}

/// One reactor on the calling thread, unpinned, with `memory` bytes of plain DMA memory: for tools and tests, with
/// [`Reactor::run_until`]. The caller ends it with [`Reactor::shut_down`].
///
/// # Errors
/// As [`Reactors::start`].
pub fn solo(memory: usize) -> Result<Rc<Reactor>, StartError> {
    let arena = Arena::new(hugepages::ArenaOptions {
        size: memory,
        hugepages: hugepages::HugepagePolicy::Off,
        numa_node: None,
    })?;
    let mut chunks = Vec::new();
    loop {
        let grown = grow(&arena)?;
        if grown.is_empty() {
            break;
        }
        chunks.extend(grown);
    }
    let remotes = [Remote::new(0)?];
    let mailbox = Mailbox::connect(&remotes).pop().expect("one reactor");
    Ok(Parts::new(0, mailbox, chunks, Tsc::calibrate())?.build())
}

/// The reactors of one simulated process, on the calling thread, each with `memory` bytes of heap as DMA memory.
pub(super) fn simulated(world: &World, machine: Machine, reactors: u16, memory: usize) -> Vec<Rc<Reactor>> {
    let arena = Arena::heap(memory * usize::from(reactors));
    let bells: Vec<Arc<AtomicBool>> = (0..reactors).map(|_| Arc::default()).collect();
    let remotes: Vec<Remote> =
        (0..).zip(&bells).map(|(id, bell)| Remote::with_doorbell(id, Doorbell::Simulated(bell.clone()))).collect();
    let mailboxes = Mailbox::connect(&remotes).into_iter().zip(bells);
    mailboxes
        .map(|(mailbox, bell)| {
            let pool = Pool::new(mailbox.own().id());
            for chunk in arena.grow(memory).expect("heap memory is there") {
                pool.add(chunk);
            }
            let (time, seed) = world.time_and_seed();
            let backend = Backend::Sim(SimRing::new(world, machine, &pool, bell));
            Reactor::new(mailbox, backend, time, seed, pool)
        })
        .collect()
}
