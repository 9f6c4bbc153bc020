//! Commands of an admin queue, one after the other.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reactor_fuzz::checks;

fuzz_target!(|input: &[u8]| {
    let mut out = vec![0; reactor::nvme::target::MAX_TRANSFER_LEN as usize];
    checks::admin(input, &mut out);
});
