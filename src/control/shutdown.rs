//! The end: answers in flight are sent, connections close by FIN, acknowledged writes are made durable, all within two
//! seconds.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use super::serve::{FAILED, pause};
use super::volumes::Volumes;
use crate::bdev::{BlockDevice, Handle};
use crate::nvme::target::tcp::Door;
use crate::reactor::io::{IoOp, IoStatus};
use crate::reactor::mailbox::Remote;
use crate::reactor::start::Reactors;
use crate::sys::tsc::monotonic_ns;

/// Hosts get this long to take their answers, in nanoseconds.
const DRAIN_NS: u64 = 1_200_000_000;
/// Everything has this long, in nanoseconds.
const END_NS: u64 = 1_900_000_000;
/// How often the drain is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// A reactor that is not stuck answers within this.
const ANSWER: Duration = Duration::from_millis(100);

/// Drains and stops; the exit code of the process.
pub fn run(door: Option<Door>, volumes: &Volumes, reactors: Reactors) -> ExitCode {
    let start = monotonic_ns();
    if let Some(door) = &door {
        door.drain();
        while door.connections() > 0 && monotonic_ns() - start < DRAIN_NS {
            pause(LOOK);
        }
        // A host that does not read holds nobody up; a device that does not answer is named below.
        door.close();
    }
    let mut silent;
    loop {
        silent = pending(reactors.remotes());
        let ended = silent.is_empty() && door.as_ref().is_none_or(|door| door.connections() == 0);
        if ended || monotonic_ns() - start > END_NS {
            break;
        }
        pause(LOOK);
    }
    let left = Duration::from_nanos(END_NS.saturating_sub(monotonic_ns() - start));
    if silent.is_empty() {
        silent = flush(volumes, &reactors, left);
    }
    if !silent.is_empty() {
        for name in &silent {
            tracing::error!("{name} does not answer: what it had in flight may not be durable");
        }
        // Its I/Os still own their buffers, and the kernel may still write them: no orderly end is left.
        super::log::flush_and_exit(FAILED);
    }
    let leaked = reactors.stop();
    if leaked > 0 {
        tracing::error!("{leaked} DMA buffers did not come home: this is a bug");
        return ExitCode::from(FAILED);
    }
    ExitCode::SUCCESS
}

/// Which volumes have I/O in flight, and which reactors do not say.
fn pending(remotes: &[Remote]) -> BTreeSet<String> {
    let names = |remote: &Remote| {
        let answer = remote.ask_within(ANSWER, |reactor| {
            let busy = |handle: &Handle| handle.stats().in_flight() > 0;
            Handle::all(reactor).iter().filter(|h| busy(h)).map(volume_name).collect::<Vec<_>>()
        });
        answer.unwrap_or_else(|| vec![format!("reactor {}", remote.id())])
    };
    remotes.iter().flat_map(names).collect()
}

fn volume_name(handle: &Handle) -> String {
    format!("volume \"{}\"", handle.common().traits().name)
}

/// Makes every volume's acknowledged writes durable; the names of those that did not say so in time.
fn flush(volumes: &Volumes, reactors: &Reactors, left: Duration) -> BTreeSet<String> {
    let (sender, receiver) = mpsc::channel();
    let mut silent = BTreeSet::new();
    for device in volumes.all().filter(|d| d.common().traits().volatile_cache) {
        silent.insert(format!("volume \"{}\"", device.common().traits().name));
        let (sender, device): (_, Arc<dyn BlockDevice>) = (sender.clone(), device.clone());
        reactors.remotes()[usize::from(device.common().home())].send(Box::new(move |reactor| {
            let Ok(handle) = Handle::open(reactor, &device) else { return };
            let reactor = reactor.clone();
            reactor.clone().spawn("final flush", async move {
                let Some(mut io) = reactor.create_io() else { return };
                io.prepare(IoOp::Flush, 0, 0);
                io = handle.execute(io).await;
                // The receiver gave up if it is not there any more.
                let _ = sender.send((volume_name(&handle), io.status));
                reactor.retire_io(io);
            });
        }));
    }
    drop(sender);
    let start = monotonic_ns();
    while !silent.is_empty() {
        let elapsed = Duration::from_nanos(monotonic_ns() - start);
        match receiver.recv_timeout(left.saturating_sub(elapsed)) {
            Ok((name, IoStatus::Success)) => {
                silent.remove(&name);
            }
            Ok((name, status)) => {
                tracing::error!("{name}: the final flush failed: {status:?}");
            }
            Err(_) => break,
        }
    }
    silent
}
