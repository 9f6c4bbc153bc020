//! `reactor`: reads the command line, serves, measures, or looks after devices.

use std::process::ExitCode;

use reactor::control::cli::{self, Command};
use reactor::control::{bench, log, nvme_command, serve, ublk_command};

fn main() -> ExitCode {
    let command = cli::parse();
    log::start();
    let code = match &command {
        Command::Serve(options) => serve::run(options),
        Command::Bench(options) => bench::run(options),
        Command::Nvme(options) => nvme_command::run(options),
        Command::Ublk(options) => ublk_command::run(options),
    };
    log::flush();
    code
}
