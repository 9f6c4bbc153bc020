//! Lists, logs and reports of controllers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reactor_fuzz::checks;

fuzz_target!(|input: &[u8]| {
    checks::pages(input);
});
