//! The NVMe driver on a controller whose registers, answers and pages are the input.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reactor_fuzz::device;

fuzz_target!(|input: &[u8]| {
    device::device(input);
});
