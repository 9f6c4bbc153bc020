//! `reactor`: reads the command line, serves or measures.

use std::process::ExitCode;

use reactor::control::cli::{self, Command};
use reactor::control::{bench, log, serve};

fn main() -> ExitCode {
    let command = cli::parse();
    log::start();
    let code = match &command {
        Command::Serve(options) => serve::run(options),
        Command::Bench(options) => bench::run(options),
    };
    log::flush();
    code
}
