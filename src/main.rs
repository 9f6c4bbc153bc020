//! `reactor`: reads the command line, serves or measures.

use std::process::ExitCode;

use reactor::control::cli::{self, Command};
use reactor::control::{log, serve};

fn main() -> ExitCode {
    let command = cli::parse();
    log::start();
    let code = match &command {
        Command::Serve(options) => serve::run(options),
        Command::Bench(_) => ExitCode::from(1),
    };
    log::flush();
    code
}
