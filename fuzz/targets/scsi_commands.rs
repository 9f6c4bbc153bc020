//! Commands of SCSI initiators to a logical unit; with an odd last byte a parameter list.
#![no_main]

use libfuzzer_sys::fuzz_target;
use reactor_fuzz::scsi;

fuzz_target!(|input: &[u8]| {
    let Some((last, input)) = input.split_last() else { return };
    if last % 2 == 0 {
        scsi::commands(&scsi::logical_unit(), input);
    } else {
        scsi::lists(&scsi::unit(), input);
        scsi::cdb(&scsi::unit(), input);
    }
});
