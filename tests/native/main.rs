//! The real program on this machine, driven by signals and by the crate's own NVMe/TCP host over loopback.
//!
//! Every wait is bounded: a program that hangs is killed by its process number and the test fails. Bounds on the time of
//! an end (2 s) are contracts; all others only keep a test from waiting for ever.

mod server;
mod start;
