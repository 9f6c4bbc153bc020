//! Requests of an iSCSI session; with an odd last byte a login.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reactor_fuzz::iscsi;

fuzz_target!(|input: &[u8]| {
    let Some((last, input)) = input.split_last() else { return };
    if last % 2 == 0 {
        iscsi::session(input);
    } else {
        iscsi::login(&iscsi::book(), input);
    }
});
