//! The end: local disks are taken away or left to the next server; then answers in flight are sent, connections close by FIN,
//! acknowledged writes are made durable, all within two seconds; then NVMe disks are shut down, for which each has its own time.

use std::process::ExitCode;
use std::time::Duration;

use super::serve::FAILED;
use super::ublk::LocalDisks;
use super::volumes::Volumes;
use crate::drain::{self, Connected};
use crate::reactor::start::Reactors;
use crate::sys::tsc::monotonic_ns;

/// Everything has this long.
const END: Duration = Duration::from_millis(1900);

/// Drains and stops; the exit code of the process.
pub fn run(doors: &[&dyn Connected], disks: LocalDisks, mut volumes: Volumes, reactors: Reactors) -> ExitCode {
    // Before the clock starts: a disk that is left waits for what the kernel has begun, and flushes come after it.
    let clean = disks.close();
    let start = monotonic_ns();
    let mut silent = drain::drain(doors, reactors.remotes(), END);
    if silent.is_empty() {
        silent = volumes.flush_all(END.saturating_sub(Duration::from_nanos(monotonic_ns() - start)));
    }
    if !silent.is_empty() {
        for name in &silent {
            tracing::error!("{name} does not answer: what it had in flight may not be durable");
        }
        // Its I/Os still own their buffers, and the kernel may still write them: no orderly end is left.
        super::log::flush_and_exit(FAILED);
    }
    let clean = volumes.close_disks() && clean;
    let leaked = reactors.stop();
    if leaked > 0 {
        tracing::error!("{leaked} DMA buffers did not come home: this is a bug");
        return ExitCode::from(FAILED);
    }
    if clean { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}
