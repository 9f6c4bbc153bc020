//! The processor's time stamp counter as a clock.
#![expect(unsafe_code, reason = "rdtsc and clock_gettime")]

/// Nanoseconds of CLOCK_MONOTONIC.
pub fn monotonic_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a valid timespec for the call to fill; CLOCK_MONOTONIC always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// CPU time this thread used, in nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is a valid timespec for the call to fill.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    t.tv_sec as u64 * 1_000_000_000 + t.tv_nsec as u64
}

/// The counter itself; constant rate on every processor this is used on (see [`Tsc::calibrate`]).
#[cfg(target_arch = "x86_64")]
#[inline]
fn ticks() -> u64 {
    // SAFETY: every x86-64 processor has rdtsc, and the kernel does not disable it for user space.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> u64 {
    monotonic_ns()
}

/// Converts the counter to nanoseconds of CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug)]
pub struct Tsc {
    start_ticks: u64,
    start_ns: u64,
    /// Nanoseconds per tick as a 32.32 fixed point number; 0: read the kernel's clock instead.
    ns_per_tick: u64,
}

impl Tsc {
    /// Measures the counter's rate against the kernel's clock for 5 ms. Falls back to the kernel's clock where the processor does
    /// not promise a constant rate.
    pub fn calibrate() -> Tsc {
        let mut tsc = Tsc { start_ticks: ticks(), start_ns: monotonic_ns(), ns_per_tick: 0 };
        if !constant_rate() {
            return tsc;
        }
        while monotonic_ns() - tsc.start_ns < 5_000_000 {
            std::hint::spin_loop();
        }
        let (ns, elapsed) = (monotonic_ns() - tsc.start_ns, ticks() - tsc.start_ticks);
        tsc.ns_per_tick = ((u128::from(ns) << 32) / u128::from(elapsed.max(1))) as u64;
        tsc
    }

    /// Now, in nanoseconds of CLOCK_MONOTONIC.
    #[inline]
    pub fn now_ns(&self) -> u64 {
        if self.ns_per_tick == 0 {
            return monotonic_ns();
        }
        // Saturating: a core's counter may lag a hair behind the one that calibrated.
        let elapsed = ticks().saturating_sub(self.start_ticks);
        self.start_ns + ((u128::from(elapsed) * u128::from(self.ns_per_tick)) >> 32) as u64
    }
}

#[cfg(target_arch = "x86_64")]
fn constant_rate() -> bool {
    use core::arch::x86_64::__cpuid;
    // Leaf 8000_0007h, EDX bit 8: invariant TSC.
    let invariant = __cpuid(0x8000_0000).eax >= 0x8000_0007 && __cpuid(0x8000_0007).edx & (1 << 8) != 0;
    let by_kernel = std::fs::read_to_string("/sys/devices/system/clocksource/clocksource0/current_clocksource")
        .is_ok_and(|s| s.trim() == "tsc" || s.trim() == "kvm-clock");
    invariant || by_kernel
}

#[cfg(not(target_arch = "x86_64"))]
fn constant_rate() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_kernels_clock() {
        let tsc = Tsc::calibrate();
        let (kernel, ours) = (monotonic_ns(), tsc.now_ns());
        while monotonic_ns() - kernel < 20_000_000 {
            std::hint::spin_loop();
        }
        let (kernel, ours) = (monotonic_ns() - kernel, tsc.now_ns() - ours);
        assert!(ours.abs_diff(kernel) < kernel / 20, "{ours} ns against {kernel} ns");
    }
}
