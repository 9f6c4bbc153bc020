//! What a process that was killed still holds.
//!
//! The kernel takes the rings of a process down some time after the process is gone, and only then lets go of their files: a
//! listening socket, the lock on a file, the claim on a block device. Until then writes that were in flight may still land, so
//! a successor has to wait in any case.
//!
//! For control threads: it blocks.

use std::io;
use std::time::Duration;

use super::tsc::monotonic_ns;

/// How long the kernel may take: its workers cancel, wait for what is in flight, and for grace periods of RCU.
pub const LIMIT_NS: u64 = 2_000_000_000;
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// Attempts until it does not fail with `busy` any more, for up to two seconds: longer than that, a living process holds it.
///
/// # Errors
/// What the last attempt says.
pub fn outlast<T>(busy: i32, mut attempt: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let start = monotonic_ns();
    loop {
        match attempt() {
            Err(error) if error.raw_os_error() == Some(busy) && monotonic_ns() - start < LIMIT_NS => {
                std::thread::park_timeout(PAUSE);
            }
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_waits_for_what_is_busy_and_for_nothing_else() {
        let mut left = 3;
        let result = outlast(libc::EADDRINUSE, || {
            left -= 1;
            if left > 0 { Err(io::Error::from_raw_os_error(libc::EADDRINUSE)) } else { Ok(left) }
        });
        assert_eq!(result.unwrap(), 0);
        let mut attempts = 0;
        let result: io::Result<()> = outlast(libc::EADDRINUSE, || {
            attempts += 1;
            Err(io::Error::from_raw_os_error(libc::EACCES))
        });
        assert_eq!((result.unwrap_err().raw_os_error(), attempts), (Some(libc::EACCES), 1));
    }
}
