//! The end: local disks are taken away or left to the next server; then answers in flight are sent, connections close by FIN,
//! acknowledged writes are made durable, all within two seconds.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::Duration;

use super::serve::{FAILED, pause};
use super::ublk::LocalDisks;
use super::volumes::{Volumes, volume_name};
use crate::bdev::Handle;
use crate::nvme::target::tcp::Door;
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
pub fn run(door: Option<Door>, disks: LocalDisks, volumes: &Volumes, reactors: Reactors) -> ExitCode {
    // Before the clock starts: a disk that is left waits for what the kernel has begun, and flushes come after it.
    let clean = disks.close();
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
        silent = volumes.flush(&volumes.all(), left);
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
    if clean { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

/// Which volumes have I/O in flight, and which reactors do not say.
fn pending(remotes: &[Remote]) -> BTreeSet<String> {
    let names = |remote: &Remote| {
        let answer = remote.ask_within(ANSWER, |reactor| {
            let name = |handle: &Handle| volume_name(handle.device().as_ref());
            let busy = |handle: &Handle| handle.stats().in_flight() > 0;
            Handle::all(reactor).iter().filter(|h| busy(h)).map(name).collect::<Vec<_>>()
        });
        answer.unwrap_or_else(|| vec![format!("reactor {}", remote.id())])
    };
    remotes.iter().flat_map(names).collect()
}
