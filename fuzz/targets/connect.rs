//! Connect and its data.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reactor_fuzz::checks;

fuzz_target!(|input: &[u8]| {
    checks::connect(&mut checks::target(), input);
});
