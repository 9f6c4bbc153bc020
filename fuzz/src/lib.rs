//! The checks of `tests/decoders`, for the fuzzer: what holds for inputs from a seed holds for those that it finds.

#[path = "../../tests/decoders/checks.rs"]
pub mod checks;

#[path = "../../tests/decoders/device.rs"]
pub mod device;

#[path = "../../tests/decoders/iscsi.rs"]
pub mod iscsi;

#[path = "../../tests/decoders/scsi.rs"]
pub mod scsi;
