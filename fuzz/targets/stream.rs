//! PDUs of NVMe/TCP, as either end receives them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reactor_fuzz::checks;

fuzz_target!(|input: &[u8]| {
    checks::stream(input);
});
