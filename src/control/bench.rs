//! `reactor bench`: drives one volume, local or remote, from one reactor or several, and says how fast it was.

use std::cell::{Cell, RefCell};
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::cli::{BenchOptions, BenchTarget, RemoteNamespace, Workload};
use super::config::{self, Machine, Style};
use super::serve::{BAD_CONFIG, FAILED, arena};
use super::volumes::Volumes;
use super::watch::Watch;
use crate::bdev::load::{self, Job, Outcome, Pattern};
use crate::bdev::{BlockDevice, Handle};
use crate::nvme::host;
use crate::reactor::mailbox::Remote;
use crate::reactor::start::Reactors;
use crate::reactor::{Idle, Reactor};
use crate::sys::affinity;

/// DMA memory of a bench against a remote namespace, in bytes.
const REMOTE_MEMORY: usize = 256 << 20;
/// What of a reactor's DMA memory is not for the data of a load: its receive buffers, what devices need.
const OTHER_MEMORY: usize = 8 << 20;
/// How often the progress bar moves.
const PROGRESS: Duration = Duration::from_millis(250);

/// Why a bench came to nothing, and the exit code for it.
struct Failed {
    code: u8,
    message: String,
}

impl From<String> for Failed {
    fn from(message: String) -> Failed {
        Failed { code: FAILED, message }
    }
}

/// Runs a bench and prints its result; the exit code of the process.
pub fn run(options: &BenchOptions) -> ExitCode {
    let job = Job {
        pattern: match options.workload {
            Workload::Read => Pattern::Read,
            Workload::Write => Pattern::Write,
            Workload::RandomRead => Pattern::RandRead,
            Workload::RandomWrite => Pattern::RandWrite,
            Workload::RandomMixed => Pattern::RandRw,
        },
        block: options.io_size as usize,
        depth: options.queue_depth as usize,
        ns: options.duration.as_nanos() as u64,
    };
    let result = match &options.target {
        BenchTarget::Bdev { config, name } => local(config, name, &options.cores, job),
        BenchTarget::Remote { .. } => remote(options, job),
    };
    match result {
        Ok(part) => {
            print(&part, job, options.json);
            if part.outcome.errors > 0 { ExitCode::from(FAILED) } else { ExitCode::SUCCESS }
        }
        Err(failed) => {
            eprintln!("reactor bench: {}", failed.message.trim_end());
            ExitCode::from(failed.code)
        }
    }
}

fn local(path: &Path, name: &str, cores: &[usize], job: Job) -> Result<Part, Failed> {
    let machine = Machine::detect().map_err(|e| format!("cannot ask which cores this process may use: {e}"))?;
    let config = config::load(path, &machine, None, Style::Plain)
        .map_err(|messages| Failed { code: BAD_CONFIG, message: messages.concat() })?
        .config;
    let Some(bdev) = config.bdev(name) else {
        return Err(Failed {
            code: BAD_CONFIG,
            message: format!("{} has no [[bdev]] named \"{name}\"", path.display()),
        });
    };
    // Of an NVMe disk these are known once it is open.
    if bdev.size != 0 {
        fits(job, name, bdev.block_size, bdev.size)?;
    }
    let cores = if cores.is_empty() { &config.reactor.cores[..1] } else { cores };
    let mut reactors = start(cores, arena(&config)?)?;
    let mut volumes = Volumes::new(reactors.remotes());
    let measured = volumes.open_stack(&config, name, &mut reactors).map_err(Failed::from).and_then(|()| {
        let device = volumes.get(name).ok_or_else(|| format!("bdev \"{name}\" is not open"))?;
        let traits = device.common().traits();
        if traits.zones.is_some() {
            // Writes anywhere would all fail, and reads would be of what nobody wrote.
            return Err(Failed {
                code: BAD_CONFIG,
                message: format!(
                    "\"{name}\" has zones, and bench writes and reads anywhere: use fio --zonemode=zbd on its export"
                ),
            });
        }
        fits(job, name, traits.block_size, device.common().size())?;
        measure(&reactors, device, job)
    });
    volumes.close_disks();
    measured
}

/// Whether I/Os of a job are possible on a volume.
fn fits(job: Job, name: &str, block_size: u32, size: u64) -> Result<(), Failed> {
    let message = if !job.block.is_multiple_of(block_size as usize) {
        format!("--bs {} is not a multiple of the block size of \"{name}\", {block_size}", job.block)
    } else if job.block as u64 > size {
        format!("--bs {} is larger than \"{name}\", {size} bytes", job.block)
    } else {
        return Ok(());
    };
    Err(Failed { code: BAD_CONFIG, message })
}

fn measure(reactors: &Reactors, device: Arc<dyn BlockDevice>, job: Job) -> Result<Part, Failed> {
    drive(reactors, job.ns, move |reactor, run| {
        let device = device.clone();
        async move {
            let handle = Handle::open(&reactor, &device).map_err(|e| e.to_string())?;
            has_memory(&reactor, job, load::memory(&handle, job))?;
            let load = load::run(&reactor, Rc::new(handle), job, run.stop.clone(), run.counter());
            run.measured(&reactor, load).await
        }
    })
}

/// What each reactor of a bench of a remote namespace does.
#[derive(Clone)]
struct Visit {
    to: std::net::SocketAddr,
    nqn: String,
    nsid: u32,
    controllers: u16,
    queues: u16,
    sqflow: bool,
    /// Of headers and of data.
    digests: (bool, bool),
    job: Job,
}

fn remote(options: &BenchOptions, job: Job) -> Result<Part, Failed> {
    let BenchTarget::Remote { address, controllers, queues, sqflow, header_digest, data_digest } = &options.target
    else {
        return Err("there is no remote namespace to drive".to_owned().into());
    };
    let allowed = affinity::allowed_cores().map_err(|e| format!("cannot ask which cores this process may use: {e}"))?;
    // The last core: a target on the same machine has the first ones.
    let last = allowed.last().copied().ok_or_else(|| "no core is allowed".to_owned())?;
    let cores = if options.cores.is_empty() { vec![last] } else { options.cores.clone() };
    // A thousand connections are more than the usual soft limit of descriptors.
    if let Err(error) = affinity::raise_open_files() {
        tracing::warn!("the limit of open files cannot be raised: {error}");
    }
    let arena = hugepages::Arena::new(hugepages::ArenaOptions {
        size: REMOTE_MEMORY * cores.len(),
        hugepages: hugepages::HugepagePolicy::Prefer,
        numa_node: None,
    })
    .map_err(|e| e.to_string())?;
    let visit = Visit {
        to: resolve(address)?,
        nqn: address.nqn.clone(),
        nsid: address.nsid,
        controllers: *controllers,
        queues: *queues,
        sqflow: *sqflow,
        digests: (*header_digest, *data_digest),
        job,
    };
    drive(&start(&cores, arena)?, job.ns, move |reactor, run| visit.clone().run(reactor, run))
}

impl Visit {
    async fn run(self, reactor: Rc<Reactor>, run: Run) -> Result<Part, String> {
        let (mut controllers, mut running) = (Vec::new(), Vec::new());
        for _ in 0..self.controllers {
            let (controller, volumes) = self.connect(&reactor).await?;
            controllers.push(controller);
            running.extend(volumes);
        }
        has_memory(&reactor, self.job, running.iter().map(|volume| load::memory(&**volume, self.job)).sum())?;
        let part = run.measured(&reactor, all(&reactor, &running, self.job, &run)).await?;
        for volume in &running {
            volume.queue().close().await;
        }
        for controller in controllers {
            controller.shut_down().await.map_err(|e| e.to_string())?;
        }
        Ok(part)
    }

    /// One controller with its queues.
    async fn connect(&self, reactor: &Rc<Reactor>) -> Result<(host::Controller, Vec<Rc<host::Volume>>), String> {
        let mut options = host::Options::new(&self.nqn, host::Identity::random(reactor.entropy()));
        (options.header_digest, options.data_digest) = self.digests;
        options.queues = self.queues;
        options.queue_size = (self.job.depth as u16 + 1).max(2);
        options.disable_sqflow = !self.sqflow;
        let text = |e: host::HostError| e.to_string();
        let controller = host::Controller::connect(reactor, self.to, options).await.map_err(text)?;
        let ticket = controller.ticket();
        if ticket.queues < self.queues {
            return Err(format!("the controller grants {} I/O queues, {} were asked for", ticket.queues, self.queues));
        }
        let geometry = controller.geometry(self.nsid).await.map_err(text)?;
        let block = self.job.block;
        if !block.is_multiple_of(1 << geometry.block_shift) || block as u64 > geometry.limits.transfer_max {
            return Err(format!(
                "--bs {block} does not fit the namespace: a multiple of {}, at most {}",
                1 << geometry.block_shift,
                geometry.limits.transfer_max
            ));
        }
        let mut volumes = Vec::new();
        for qid in 1..=self.queues {
            let queue = Rc::new(host::Queue::connect(reactor, &ticket, qid).await.map_err(text)?);
            if usize::from(queue.depth()) < self.job.depth {
                return Err(format!("the controller grants a queue depth of {}", queue.depth()));
            }
            volumes.push(Rc::new(host::Volume::new(queue, geometry)));
        }
        Ok((controller, volumes))
    }
}

/// All queues at once: each by a task of its own.
async fn all(reactor: &Rc<Reactor>, volumes: &[Rc<host::Volume>], job: Job, run: &Run) -> Outcome {
    let ended = Rc::new(RefCell::new(Vec::new()));
    for volume in volumes {
        let (here, volume, ended) = (reactor.clone(), volume.clone(), ended.clone());
        let (stop, done) = (run.stop.clone(), run.counter());
        reactor.spawn("bench queue", async move {
            let outcome = load::run(&here, volume, job, stop, done).await;
            ended.borrow_mut().push(outcome);
        });
    }
    while ended.borrow().len() < volumes.len() {
        reactor.sleep(5_000_000).await;
    }
    let mut outcome = Outcome::empty();
    ended.borrow().iter().for_each(|part| outcome.merge(part));
    outcome
}

fn resolve(address: &RemoteNamespace) -> Result<std::net::SocketAddr, Failed> {
    use std::net::ToSocketAddrs;
    let name = format!("{}:{}", address.host, address.port);
    let found = (address.host.as_str(), address.port).to_socket_addrs().map_err(|e| format!("{name}: {e}"))?.next();
    Ok(found.ok_or_else(|| format!("{name}: no address"))?)
}

fn start(cores: &[usize], arena: hugepages::Arena) -> Result<Reactors, Failed> {
    let mut reactors = Reactors::start(cores, Idle::Poll, arena).map_err(|e| e.to_string())?;
    reactors.feed().map_err(|e| e.to_string())?;
    Ok(reactors)
}

/// Whether a reactor has the buffers of all its jobs at once: one that waited for another's would not run beside it.
fn has_memory(reactor: &Reactor, job: Job, needed: usize) -> Result<(), String> {
    let has = reactor.pool().stats().bytes_total.saturating_sub(OTHER_MEMORY);
    if needed <= has {
        return Ok(());
    }
    Err(format!(
        "{} MiB of buffers are needed on each reactor for --qd {} --bs {}, {} MiB can be had: lower one of them, or raise memory.size of the configuration",
        needed >> 20,
        job.depth,
        job.block,
        has >> 20
    ))
}

/// The outcome of a reactor or of all, and what it cost there.
struct Part {
    outcome: Outcome,
    /// Calls into the kernel.
    enters: u64,
    /// Time in turns that did something, in nanoseconds.
    busy_ns: u64,
}

/// Reactors that begin together.
struct Start {
    reactors: usize,
    ready: AtomicUsize,
    /// One did not get ready.
    failed: AtomicBool,
}

/// What a reactor's part of a bench is given.
struct Run {
    stop: Rc<Cell<bool>>,
    progress: Rc<Progress>,
    start: Arc<Start>,
}

impl Run {
    /// The counter of one job: what it grows by is that job's outcome.
    fn counter(&self) -> Rc<Cell<u64>> {
        let counter = Rc::new(Cell::new(0));
        self.progress.0.borrow_mut().push(counter.clone());
        counter
    }

    /// Runs `load` once every reactor is ready for its own, and counts what it costs.
    async fn measured(&self, reactor: &Reactor, load: impl Future<Output = Outcome>) -> Result<Part, String> {
        self.start.ready.fetch_add(1, Ordering::AcqRel);
        while self.start.ready.load(Ordering::Acquire) < self.start.reactors {
            if self.start.failed.load(Ordering::Acquire) {
                return Err("another reactor did not get ready".to_owned());
            }
            reactor.sleep(1_000_000).await;
        }
        let before = reactor.stats();
        let outcome = load.await;
        let after = reactor.stats();
        Ok(Part { outcome, enters: after.ring.enters - before.ring.enters, busy_ns: after.busy_ns - before.busy_ns })
    }
}

/// Runs `body` as a task on each reactor and shows their progress.
fn drive<F, B>(reactors: &Reactors, ns: u64, body: B) -> Result<Part, Failed>
where
    F: Future<Output = Result<Part, String>> + 'static,
    B: FnOnce(Rc<Reactor>, Run) -> F + Clone + Send + 'static,
{
    let _watch = Watch::start(reactors.remotes()).map_err(|e| e.to_string())?;
    let (sender, receiver) = mpsc::channel();
    let count = reactors.remotes().len();
    let start = Arc::new(Start { reactors: count, ready: AtomicUsize::new(0), failed: AtomicBool::new(false) });
    for remote in reactors.remotes() {
        let (body, sender, start) = (body.clone(), sender.clone(), start.clone());
        remote.send(Box::new(move |reactor| {
            let (stop, progress) = (Rc::new(Cell::new(false)), Rc::new(Progress::default()));
            reactor.set_service(progress.clone());
            let task = body(reactor.clone(), Run { stop, progress, start: start.clone() });
            reactor.spawn("bench", async move {
                let part = task.await;
                let failed = part.is_err();
                // The receiver waits for the first error or for all. First the word why, then that others need not
                // wait.
                let _ = sender.send(part);
                if failed {
                    start.failed.store(true, Ordering::Release);
                }
            });
        }));
    }
    drop(sender);
    Ok(watch(reactors.remotes(), &receiver, ns)?)
}

/// I/Os completed so far by each job of a reactor, for the progress bar.
#[derive(Default)]
struct Progress(RefCell<Vec<Rc<Cell<u64>>>>);

impl Progress {
    fn sum(&self) -> u64 {
        self.0.borrow().iter().map(|counter| counter.get()).sum()
    }
}

/// Waits for the part of every reactor, and adds them up.
fn watch(remotes: &[Remote], results: &mpsc::Receiver<Result<Part, String>>, ns: u64) -> Result<Part, String> {
    let terminal = std::io::stderr().is_terminal();
    let bar = if terminal { ProgressBar::new(ns / 1_000_000) } else { ProgressBar::hidden() };
    let style = ProgressStyle::with_template("{elapsed:>3} [{bar:40}] {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    let mut sum = Part { outcome: Outcome::empty(), enters: 0, busy_ns: 0 };
    let (mut ended, mut before) = (0, 0);
    let result = loop {
        if ended == remotes.len() {
            break Ok(sum);
        }
        // A bar that nobody sees asks nobody.
        match results.recv_timeout(if terminal { PROGRESS } else { Duration::MAX }) {
            Ok(Ok(part)) => {
                sum.outcome.merge(&part.outcome);
                sum.enters += part.enters;
                sum.busy_ns += part.busy_ns;
                ended += 1;
            }
            Ok(Err(why)) => break Err(why),
            Err(mpsc::RecvTimeoutError::Disconnected) => break Err("a reactor ended before the bench did".to_owned()),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let of = |remote: &Remote| {
                    remote.ask_within(PROGRESS, |r| r.service::<Progress>().map_or(0, |p| p.sum())).unwrap_or(0)
                };
                let done = remotes.iter().map(of).sum::<u64>().max(before);
                bar.inc(PROGRESS.as_millis() as u64);
                bar.set_message(format!("{:.0} IOPS", (done - before) as f64 / PROGRESS.as_secs_f64()));
                before = done;
            }
        }
    };
    bar.finish_and_clear();
    result
}

fn print(part: &Part, job: Job, json: bool) {
    let outcome = &part.outcome;
    let per_io = |sum: u64| sum as f64 / outcome.ios.max(1) as f64;
    let (enters, busy_ns) = (per_io(part.enters), per_io(part.busy_ns));
    let (iops, latency) = (outcome.iops(), outcome.latency());
    let mib_per_s = iops * job.block as f64 / f64::from(1 << 20);
    let us = |ns: f64| (ns / 10.0).round() / 100.0;
    if json {
        let value = serde_json::json!({
            "iops": iops.round(),
            "mib_per_s": (mib_per_s * 10.0).round() / 10.0,
            "latency_us": {
                "mean": us(latency.mean),
                "p50": us(latency.p50 as f64),
                "p99": us(latency.p99 as f64),
                "p99_9": us(latency.p99_9 as f64),
            },
            "ios": outcome.ios,
            "errors": outcome.errors,
            "enters_per_io": (enters * 1e4).round() / 1e4,
            "busy_ns_per_io": (busy_ns * 10.0).round() / 10.0,
            "seconds": (outcome.ns as f64 / 1e9 * 1000.0).round() / 1000.0,
        });
        println!("{value}");
    } else {
        println!("{iops:.0} IOPS, {mib_per_s:.1} MiB/s, {:.1} ns per I/O", 1e9 / iops.max(1.0));
        println!(
            "latency: mean {} us, p50 {} us, p99 {} us, p99.9 {} us",
            us(latency.mean),
            us(latency.p50 as f64),
            us(latency.p99 as f64),
            us(latency.p99_9 as f64)
        );
        println!("{} I/Os in {:.2} s, {} errors", outcome.ios, outcome.ns as f64 / 1e9, outcome.errors);
        println!("on this side: {enters:.4} ring enters and {busy_ns:.1} ns of busy turns per I/O");
    }
    if let Some((op, offset, status)) = outcome.first_error {
        eprintln!("reactor bench: the first failed I/O was {op:?} at byte {offset}: {status:?}");
    }
}
