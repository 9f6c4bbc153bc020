//! `reactor bench`: drives one volume, local or remote, from one reactor, and says how fast it was.

use std::cell::Cell;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::cli::{BenchOptions, BenchTarget, RemoteNamespace, Workload};
use super::config::{self, Machine, Style};
use super::serve::{BAD_CONFIG, FAILED, arena};
use super::volumes::Volumes;
use super::watch::Watch;
use crate::bdev::Handle;
use crate::bdev::load::{self, Job, Outcome, Pattern};
use crate::nvme::host;
use crate::reactor::mailbox::Remote;
use crate::reactor::start::Reactors;
use crate::reactor::{Idle, Reactor};
use crate::sys::affinity;

/// DMA memory of a bench against a remote namespace, in bytes.
const REMOTE_MEMORY: usize = 256 << 20;
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
        BenchTarget::Bdev { config, name } => local(config, name, job),
        BenchTarget::Remote { address, queues, header_digest, data_digest } => {
            let digests = (*header_digest, *data_digest);
            remote(address, *queues, digests, job)
        }
    };
    match result {
        Ok(outcome) => {
            print(&outcome, job, options.json);
            if outcome.errors > 0 { ExitCode::from(FAILED) } else { ExitCode::SUCCESS }
        }
        Err(failed) => {
            eprintln!("reactor bench: {}", failed.message.trim_end());
            ExitCode::from(failed.code)
        }
    }
}

fn local(path: &Path, name: &str, job: Job) -> Result<Outcome, Failed> {
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
    if !job.block.is_multiple_of(bdev.block_size as usize) {
        let message =
            format!("--bs {} is not a multiple of the block size of \"{name}\", {}", job.block, bdev.block_size);
        return Err(Failed { code: BAD_CONFIG, message });
    }
    if job.block as u64 > bdev.size {
        let message = format!("--bs {} is larger than \"{name}\", {} bytes", job.block, bdev.size);
        return Err(Failed { code: BAD_CONFIG, message });
    }
    let reactors = start(&config.reactor.cores[..1], arena(&config)?)?;
    let volumes = Volumes::new(reactors.remotes());
    volumes.open_stack(&config, name)?;
    let device = volumes.get(name).ok_or_else(|| format!("bdev \"{name}\" is not open"))?;
    drive(reactors, job.ns, move |reactor, stop, done| async move {
        let handle = Handle::open(&reactor, &device).map_err(|e| e.to_string())?;
        Ok(load::run(&reactor, Rc::new(handle), job, stop, done).await)
    })
}

fn remote(address: &RemoteNamespace, queues: u16, digests: (bool, bool), job: Job) -> Result<Outcome, Failed> {
    let cores = affinity::allowed_cores().map_err(|e| format!("cannot ask which cores this process may use: {e}"))?;
    // The last core: a target on the same machine has the first ones.
    let core = cores.last().copied().ok_or_else(|| "no core is allowed".to_owned())?;
    let arena = hugepages::Arena::new(hugepages::ArenaOptions {
        size: REMOTE_MEMORY,
        hugepages: hugepages::HugepagePolicy::Prefer,
        numa_node: None,
    })
    .map_err(|e| e.to_string())?;
    let to = resolve(address)?;
    let (nqn, nsid) = (address.nqn.clone(), address.nsid);
    drive(start(&[core], arena)?, job.ns, move |reactor, stop, done| async move {
        let mut options = host::Options::new(&nqn, host::Identity::random(reactor.entropy()));
        (options.header_digest, options.data_digest) = digests;
        options.queues = queues;
        options.queue_size = (job.depth as u16 + 1).max(2);
        options.disable_sqflow = true;
        let text = |e: host::HostError| e.to_string();
        let controller = host::Controller::connect(&reactor, to, options).await.map_err(text)?;
        let ticket = controller.ticket();
        if ticket.queues < queues {
            return Err(format!("the controller grants {} I/O queues, {queues} were asked for", ticket.queues));
        }
        let geometry = controller.geometry(nsid).await.map_err(text)?;
        if !job.block.is_multiple_of(1 << geometry.block_shift) || job.block as u64 > geometry.limits.transfer_max {
            return Err(format!(
                "--bs {} does not fit the namespace: a multiple of {}, at most {}",
                job.block,
                1 << geometry.block_shift,
                geometry.limits.transfer_max
            ));
        }
        let mut running = Vec::new();
        for qid in 1..=queues {
            let queue = Rc::new(host::Queue::connect(&reactor, &ticket, qid).await.map_err(text)?);
            if usize::from(queue.depth()) < job.depth {
                return Err(format!("the controller grants a queue depth of {}", queue.depth()));
            }
            let volume = Rc::new(host::Volume::new(queue, geometry));
            running.push(volume);
        }
        // All queues at once: each by a task of its own.
        let (sender, receiver) = mpsc::channel();
        for volume in &running {
            let (reactor, volume, sender) = (reactor.clone(), volume.clone(), sender.clone());
            let (stop, done) = (stop.clone(), done.clone());
            reactor.clone().spawn("bench queue", async move {
                let outcome = load::run(&reactor, volume, job, stop, done).await;
                // The receiver waits below for every one.
                let _ = sender.send(outcome);
            });
        }
        let mut outcome = Outcome::empty();
        let mut ended = 0;
        while ended < running.len() {
            match receiver.try_recv() {
                Ok(part) => {
                    outcome.merge(&part);
                    ended += 1;
                }
                Err(_) => reactor.sleep(5_000_000).await,
            }
        }
        for volume in &running {
            volume.queue().close().await;
        }
        controller.shut_down().await.map_err(text)?;
        Ok(outcome)
    })
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

/// Runs `body` as a task on the first reactor, shows its progress, stops the reactors.
fn drive<F, B>(reactors: Reactors, ns: u64, body: B) -> Result<Outcome, Failed>
where
    F: Future<Output = Result<Outcome, String>> + 'static,
    B: FnOnce(Rc<Reactor>, Rc<Cell<bool>>, Rc<Cell<u64>>) -> F + Send + 'static,
{
    let _watch = Watch::start(reactors.remotes()).map_err(|e| e.to_string())?;
    let (sender, receiver) = mpsc::channel();
    let remote = reactors.remotes()[0].clone();
    remote.send(Box::new(move |reactor| {
        let (stop, done) = (Rc::new(Cell::new(false)), Rc::new(Cell::new(0)));
        reactor.set_service(Rc::new(Progress(done.clone())));
        let task = body(reactor.clone(), stop, done);
        reactor.spawn("bench", async move {
            // The receiver waits for exactly this.
            let _ = sender.send(task.await);
        });
    }));
    let outcome = watch(&remote, &receiver, ns);
    drop(reactors);
    Ok(outcome?)
}

/// I/Os completed so far, for the progress bar.
struct Progress(Rc<Cell<u64>>);

fn watch(remote: &Remote, result: &mpsc::Receiver<Result<Outcome, String>>, ns: u64) -> Result<Outcome, String> {
    let ended = || "the reactor ended before the bench did".to_owned();
    if !std::io::stderr().is_terminal() {
        return result.recv().map_err(|_| ended())?;
    }
    let bar = ProgressBar::new(ns / 1_000_000);
    let style = ProgressStyle::with_template("{elapsed:>3} [{bar:40}] {msg}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    let mut before = 0;
    let outcome = loop {
        match result.recv_timeout(PROGRESS) {
            Ok(outcome) => break outcome,
            Err(mpsc::RecvTimeoutError::Disconnected) => break Err(ended()),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let done = remote.ask_within(PROGRESS, |r| r.service::<Progress>().map_or(0, |p| p.0.get()));
                let done = done.unwrap_or(before);
                bar.inc(PROGRESS.as_millis() as u64);
                bar.set_message(format!("{:.0} IOPS", (done - before) as f64 / PROGRESS.as_secs_f64()));
                before = done;
            }
        }
    };
    bar.finish_and_clear();
    outcome
}

fn print(outcome: &Outcome, job: Job, json: bool) {
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
    }
    if let Some((op, offset, status)) = outcome.first_error {
        eprintln!("reactor bench: the first failed I/O was {op:?} at byte {offset}: {status:?}");
    }
}
