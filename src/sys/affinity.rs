//! Which cores this process may use, and pinning a thread to one.
#![expect(unsafe_code, reason = "sched_getaffinity and sched_setaffinity")]

use std::io;

/// The cores that the affinity mask of the calling thread allows, in ascending order.
///
/// # Errors
/// What sched_getaffinity(2) says.
pub fn allowed_cores() -> io::Result<Vec<usize>> {
    // SAFETY: cpu_set_t is a plain bit array; all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is valid for writes of its own size.
    if unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the index is below CPU_SETSIZE, the number of bits in the set.
    Ok((0..libc::CPU_SETSIZE as usize).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect())
}

/// The kernel's form of a set of cores.
///
/// # Errors
/// EINVAL for a core beyond what it holds.
pub(super) fn core_set(cores: &[usize]) -> io::Result<libc::cpu_set_t> {
    // SAFETY: cpu_set_t is a plain bit array; all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &core in cores {
        if core >= libc::CPU_SETSIZE as usize {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: the index was checked against the size of the set.
        unsafe { libc::CPU_SET(core, &mut set) };
    }
    Ok(set)
}

/// Binds the calling thread to `core`.
///
/// # Errors
/// What sched_setaffinity(2) says: EINVAL for a core that does not exist or is not allowed.
pub fn pin(core: usize) -> io::Result<()> {
    let set = core_set(&[core])?;
    // SAFETY: `set` is valid for reads of its own size.
    if unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Raises the soft limit of open files to the hard one and returns it.
///
/// # Errors
/// What getrlimit(2) or setrlimit(2) says.
pub fn raise_open_files() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writes.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is valid for reads.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_to_an_allowed_core_and_refuses_another() {
        std::thread::spawn(|| {
            let cores = allowed_cores().unwrap();
            pin(cores[0]).unwrap();
            assert_eq!(allowed_cores().unwrap(), [cores[0]]);
            assert!(pin(100_000).is_err());
        })
        .join()
        .unwrap();
    }
}
