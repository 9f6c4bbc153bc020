//! Commands of I/O queues.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reactor_fuzz::checks;

fuzz_target!(|input: &[u8]| {
    checks::io(&checks::namespaces(), input);
});
