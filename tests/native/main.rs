//! The real program on this machine, driven by signals and by the crate's own NVMe/TCP host over loopback.
//!
//! Every wait is bounded: a program that hangs is killed by its process number and the test fails. The bounds on the time of
//! an end (2 s) are contracts; all others only keep a test from waiting for ever.

mod bench;
mod controllers;
mod crash;
mod host;
mod hostile;
mod idle;
mod iscsi;
mod load;
mod model;
mod reload;
mod server;
mod start;
mod stop;
mod verify;
mod wire;
