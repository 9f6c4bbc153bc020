//! Making a ring, and saying what to do where the kernel refuses.

use std::io;

use io_uring::{IoUring, cqueue, squeue};

use crate::sys::limits::{RING_COMPLETIONS, RING_SUBMISSIONS};

/// Why there is no ring.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// EPERM: a sysctl or a filter.
    #[error(
        "io_uring is refused: sysctl kernel.io_uring_disabled is {sysctl} (0 allows all, 1 members of kernel.io_uring_group, 2 nobody){hint}"
    )]
    Refused {
        /// The sysctl's value, or "absent".
        sysctl: String,
        /// What else to look at.
        hint: &'static str,
    },
    /// ENOSYS: no such system call.
    #[error(
        "io_uring is not available: the kernel is older than 5.19, was built without CONFIG_IO_URING, or a seccomp filter hides it (a container's default profile does; run with a profile that allows io_uring_setup, io_uring_enter and io_uring_register)"
    )]
    Missing,
    /// ENOMEM: RLIMIT_MEMLOCK, before Linux 5.12, or no memory.
    #[error(
        "no memory for an io_uring; raise the locked-memory limit (LimitMEMLOCK=infinity for a service, ulimit -l for a shell)"
    )]
    NoLockedMemory,
    /// The ring of receive buffers.
    #[error("the kernel refuses a ring of receive buffers (Linux 5.19 or newer is needed): {0}")]
    BufferRing(io::Error),
    /// The arena has no room for the receive buffers.
    #[error("the DMA arena is too small for a reactor's receive buffers: raise [memory] size")]
    NoMemory,
    /// No eventfd.
    #[error("no doorbell for the reactor: {0}")]
    Doorbell(io::Error),
    /// Anything else.
    #[error("io_uring_setup failed: {0}")]
    Other(io::Error),
}

fn classify(error: io::Error) -> SetupError {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
                .map_or_else(|_| "absent".to_owned(), |s| s.trim().to_owned());
            let hint = if sysctl == "0" || sysctl == "absent" {
                "; so a seccomp filter or a security module forbids it (a container's default profile does: allow io_uring_setup, io_uring_enter and io_uring_register)"
            } else {
                "; set it to 0, or join the group"
            };
            SetupError::Refused { sysctl, hint }
        }
        Some(libc::ENOSYS) => SetupError::Missing,
        Some(libc::ENOMEM) => SetupError::NoLockedMemory,
        _ => SetupError::Other(error),
    }
}

/// The best ring this kernel makes, and a sentence for each thing it lacks.
pub(super) fn ring() -> Result<(IoUring, Vec<String>), SetupError> {
    let mut notes = Vec::new();
    // From the best to the plainest; each step down is a kernel that refused the one before with EINVAL.
    for level in 0..3 {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(RING_COMPLETIONS).setup_clamp();
        if level < 2 {
            builder.setup_submit_all().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        }
        if level < 1 {
            builder.setup_no_sqarray();
        }
        match builder.build(RING_SUBMISSIONS) {
            Ok(ring) => {
                if level == 2 {
                    notes.push(
                        "the kernel lacks SINGLE_ISSUER and DEFER_TASKRUN (Linux 6.1): the ring runs in plain mode, slower under load"
                            .to_owned(),
                    );
                }
                return Ok((ring, notes));
            }
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && level < 2 => {}
            Err(error) => return Err(classify(error)),
        }
    }
    unreachable!("the plainest ring is either made or refused for good")
}

/// Asks whether this process may make a ring at all, before anything else is started.
///
/// # Errors
/// As [`super::Uring::new`].
pub fn probe() -> Result<(), SetupError> {
    IoUring::<squeue::Entry, cqueue::Entry>::builder().setup_clamp().build(8).map(drop).map_err(classify)
}
