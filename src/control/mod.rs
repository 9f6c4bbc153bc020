//! What stands outside the data path: the command line and the configuration. Nothing here runs on a reactor.

pub mod cli;
pub mod config;
