//! What stands outside the data path: command line, configuration, start, reload and end. Nothing here runs on a reactor
//! other than by message.

pub mod bench;
pub mod cli;
pub mod config;
mod iscsi;
pub mod log;
pub mod nvme_command;
mod rpc;
pub mod serve;
mod shutdown;
mod table;
mod ublk;
pub mod ublk_command;
mod volumes;
mod watch;
