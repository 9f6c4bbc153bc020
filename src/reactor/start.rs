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

/// What other reactors have of a reactor's buffers comes home within this when all end.
const HOMECOMING: Duration = Duration::from_secs(1);

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

/// What makes DMA memory known to devices: an IOMMU.
pub trait DmaMap: std::fmt::Debug + Send + Sync {
    /// Maps a whole chunk, readable and writable by devices, and says the device address of its first byte, from which on the rest follows
    /// without a gap. Keeps a clone of the chunk for as long as a device may reach it. Called once for each chunk, by a control thread.
    ///
    /// # Errors
    /// What the system says. Nothing of the chunk is mapped then.
    fn map(&self, chunk: &ChunkInfo) -> io::Result<u64>;
}

/// A chunk of DMA memory that could not be mapped for devices.
#[derive(Debug, thiserror::Error)]
#[error("{len} bytes of DMA memory cannot be mapped for devices: {error}")]
pub struct ShareError {
    /// Its bytes.
    pub len: usize,
    /// Why.
    pub error: io::Error,
}

/// Why there is no more DMA memory.
#[derive(Debug, thiserror::Error)]
pub enum FeedError {
    /// It could not be had.
    #[error("{0}")]
    Arena(#[from] ArenaError),
    /// It could not be mapped for devices, and is used by nobody.
    #[error("{0}")]
    Share(#[from] ShareError),
}

/// The reactors of a process.
#[derive(Debug)]
pub struct Reactors {
    remotes: Vec<Remote>,
    threads: Vec<JoinHandle<usize>>,
    devices: Option<Arc<dyn DmaMap>>,
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
        let mut reactors = Reactors { remotes, threads: Vec::new(), devices: None, arena, fed: 0 };
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
                ran.map_or_else(|panic| resume_unwind(panic), |()| if leaked > 0 { await_home(&reactor) } else { 0 })
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

    /// Bytes that the DMA memory may grow to.
    pub fn memory_max(&self) -> usize {
        self.arena.stats().size
    }

    /// Maps all DMA memory for devices: what there is now, and from now on each chunk before a reactor gets it, so that buffers have
    /// device addresses wherever they come from. In place of what was given before; chunks that have an address already are passed over.
    ///
    /// # Errors
    /// At the first chunk that cannot be mapped. It and those behind it have no device address, nothing changes for new ones, and a
    /// later call begins with it.
    pub fn share_memory(&mut self, devices: Arc<dyn DmaMap>) -> Result<(), ShareError> {
        for chunk in self.arena.chunks() {
            share(&*devices, &chunk)?;
        }
        self.devices = Some(devices);
        Ok(())
    }

    /// Maps the rest of the arena and spreads it over the reactors; blocks this control thread, not the reactors.
    ///
    /// # Errors
    /// As [`Reactors::feed_some`].
    pub fn feed(&mut self) -> Result<(), FeedError> {
        while self.feed_some()? {}
        Ok(())
    }

    /// Maps a little more of the arena, for a reactor. Returns whether there may be more.
    ///
    /// # Errors
    /// If memory could not be mapped, in this process or for devices: the reactors go on with what they have.
    pub fn feed_some(&mut self) -> Result<bool, FeedError> {
        let grown = grow(&self.arena)?;
        let more = !grown.is_empty();
        for (chunk, info) in grown {
            if let Some(devices) = &self.devices {
                share(&**devices, &info)?;
            }
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

/// Buffers that never come home to a reactor that has shut down. Another one that ends too may have some of them still: those of queues of
/// devices, above all, which the device's home gives to all.
fn await_home(reactor: &Reactor) -> usize {
    let start = monotonic_ns();
    loop {
        let leaked = reactor.pool().leaked();
        if leaked == 0 || Duration::from_nanos(monotonic_ns() - start) > HOMECOMING {
            return leaked;
        }
        std::thread::park_timeout(LOOK);
    }
}

/// While it is there, a reactor answers.
struct Answers(Remote);

impl Drop for Answers {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Maps a chunk for devices, unless it is, and publishes where.
fn share(devices: &dyn DmaMap, chunk: &ChunkInfo) -> Result<(), ShareError> {
    if chunk.iova().is_none() {
        let mapped = devices.map(chunk).map_err(|error| ShareError { len: chunk.len(), error })?;
        chunk.set_iova(mapped);
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use hugepages::{ArenaOptions, HugepagePolicy};
    use std::sync::atomic::{AtomicU16, Ordering};

    /// Bytes of a chunk on plain pages.
    const CHUNK: usize = hugepages::MAX_BUF;
    /// Chunks that a start takes, and all of the arena.
    const START: u16 = (ARENA_AT_START / CHUNK) as u16;
    const CHUNKS: u16 = START + 4;

    /// Maps chunks at addresses of their own, up to one that it cannot.
    #[derive(Debug)]
    struct Recorder {
        fails_at: AtomicU16,
        seen: mpsc::Sender<(u16, usize)>,
        remote: Remote,
    }

    fn address_of(chunk: u16) -> u64 {
        (1 << 32) + (u64::from(chunk) << 30)
    }

    fn fed_to(remote: &Remote) -> usize {
        remote.ask(|reactor| reactor.pool().stats().bytes_total).expect("it runs")
    }

    impl DmaMap for Recorder {
        fn map(&self, chunk: &ChunkInfo) -> io::Result<u64> {
            assert_eq!(chunk.iova(), None, "once for each");
            self.seen.send((chunk.index(), fed_to(&self.remote))).expect("the test listens");
            if chunk.index() == self.fails_at.load(Ordering::Relaxed) {
                return Err(io::Error::from_raw_os_error(libc::ENOMEM));
            }
            Ok(address_of(chunk.index()))
        }
    }

    struct Set {
        reactors: Reactors,
        recorder: Arc<Recorder>,
        seen: mpsc::Receiver<(u16, usize)>,
    }

    impl Set {
        /// One reactor, with what it has at its start of an arena that is a little larger.
        fn new(fails_at: u16) -> Set {
            let size = usize::from(CHUNKS) * CHUNK;
            let arena = Arena::new(ArenaOptions { size, hugepages: HugepagePolicy::Off, numa_node: None }).unwrap();
            let core = affinity::allowed_cores().unwrap()[0];
            let reactors = Reactors::start(&[core], Idle::Adaptive, arena).unwrap();
            assert_eq!(reactors.fed, usize::from(START));
            let (sender, seen) = mpsc::channel();
            let remote = reactors.remotes()[0].clone();
            let recorder = Arc::new(Recorder { fails_at: AtomicU16::new(fails_at), seen: sender, remote });
            Set { reactors, recorder, seen }
        }

        fn share(&mut self) -> Result<(), ShareError> {
            let devices = self.recorder.clone();
            self.reactors.share_memory(devices)
        }

        /// Chunks that were to be mapped, and how many chunks the reactor had then.
        fn seen(&self) -> Vec<(u16, usize)> {
            self.seen.try_iter().map(|(index, fed)| (index, fed / CHUNK)).collect()
        }

        /// Where chunks are mapped.
        fn mapped(&self) -> Vec<u16> {
            let mapped = |chunk: ChunkInfo| chunk.iova().map(|iova| (chunk.index(), iova));
            let all: Vec<_> = self.reactors.arena.chunks().filter_map(mapped).collect();
            assert!(all.iter().all(|(index, iova)| *iova == address_of(*index)));
            all.into_iter().map(|(index, _)| index).collect()
        }
    }

    /// What is seen of a range of chunks that are mapped while the reactor has those of the start.
    fn at_start(chunks: std::ops::Range<u16>) -> Vec<(u16, usize)> {
        chunks.map(|index| (index, usize::from(START))).collect()
    }

    /// What is seen of a range of chunks, each mapped before the reactor gets it, and after it got the one before.
    fn one_by_one(chunks: std::ops::Range<u16>) -> Vec<(u16, usize)> {
        chunks.map(|index| (index, usize::from(index))).collect()
    }

    #[test]
    fn chunks_are_mapped_for_devices_before_a_reactor_gets_them() {
        let mut set = Set::new(u16::MAX);
        set.share().unwrap();
        assert_eq!(set.seen(), at_start(0..START));
        set.reactors.feed().unwrap();
        assert_eq!(set.seen(), one_by_one(START..CHUNKS));
        set.share().unwrap();
        assert_eq!(set.seen(), [], "all are mapped");
        // Whatever is allocated has the address of its place.
        let found = set.reactors.remotes()[0].ask(|reactor| {
            let bufs = std::iter::from_fn(|| reactor.pool().alloc(CHUNK)).collect::<Vec<_>>();
            bufs.iter().map(|buf| (buf.chunk(), buf.chunk_offset() as u64, buf.iova())).collect::<Vec<_>>()
        });
        let found = found.expect("it runs");
        let fed_later = found.iter().filter(|(chunk, ..)| *chunk >= START).count();
        assert_eq!(fed_later, usize::from(CHUNKS - START), "of the others the ring keeps some");
        for (chunk, offset, iova) in found {
            assert_eq!(iova, Some(address_of(chunk) + offset));
        }
        assert_eq!(set.reactors.stop(), 0);
    }

    #[test]
    fn a_chunk_that_cannot_be_mapped_ends_the_growth_and_is_used_by_nobody() {
        let fails_at = START + 1;
        let mut set = Set::new(fails_at);
        set.share().unwrap();
        assert_eq!(set.seen(), at_start(0..START));
        let refused = set.reactors.feed().unwrap_err();
        assert!(matches!(&refused, FeedError::Share(e) if e.error.raw_os_error() == Some(libc::ENOMEM)), "{refused}");
        assert!(
            refused.to_string().starts_with("1048576 bytes of DMA memory cannot be mapped for devices: "),
            "{refused}"
        );
        assert_eq!(set.seen(), one_by_one(START..fails_at + 1));
        assert_eq!(set.mapped(), (0..fails_at).collect::<Vec<_>>());
        assert_eq!(fed_to(&set.reactors.remotes()[0]), usize::from(fails_at) * CHUNK);
        assert_eq!(set.reactors.stop(), 0);
    }

    #[test]
    fn memory_that_is_mapped_in_part_is_mapped_on_from_there() {
        let mut set = Set::new(5);
        assert_eq!(set.share().unwrap_err().len, CHUNK);
        assert_eq!((set.seen(), set.mapped()), (at_start(0..6), vec![0, 1, 2, 3, 4]));
        // Nothing is shared: growth goes on without.
        assert!(set.reactors.feed_some().unwrap());
        assert_eq!((set.seen(), set.mapped().len()), (vec![], 5));
        set.recorder.fails_at.store(u16::MAX, Ordering::Relaxed);
        set.share().unwrap();
        let fed = usize::from(START) + 1;
        assert_eq!(set.seen(), (5..START + 1).map(|index| (index, fed)).collect::<Vec<_>>());
        set.reactors.feed().unwrap();
        assert_eq!(set.seen(), one_by_one(START + 1..CHUNKS));
        assert_eq!(set.mapped(), (0..CHUNKS).collect::<Vec<_>>());
        assert_eq!(set.reactors.stop(), 0);
    }
}
