//! PDUs of iSCSI, as a target receives them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reactor_fuzz::iscsi;

fuzz_target!(|input: &[u8]| {
    iscsi::decoder(input);
});
