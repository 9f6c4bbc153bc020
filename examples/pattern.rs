//! A disk of a program's own: every word of eight bytes tells its own offset.
//!
//! `cargo run --example pattern` serves it over NVMe/TCP, with `-- --ublk` also as a local block device (as root). It ends with
//! a line on its standard input, or with the end of that.

use std::error::Error;
use std::process::ExitCode;

use reactor::serve::{Disk, IoStatus, Options, Server, Ublk};

struct Pattern;

impl Disk for Pattern {
    fn size(&self) -> u64 {
        1 << 40
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), IoStatus> {
        for (at, word) in (offset..).step_by(8).zip(into.chunks_exact_mut(8)) {
            word.copy_from_slice(&at.to_le_bytes());
        }
        Ok(())
    }
}

fn serve() -> Result<(), Box<dyn Error>> {
    let mut server = Server::create(Options::default())?;
    server.add("pattern", Pattern)?;
    server.nvmf("127.0.0.1:0".parse()?, "nqn.2026-11.io.reactor:pattern", "pattern")?;
    if std::env::args().any(|word| word == "--ublk") {
        server.ublk("pattern", Ublk::default())?;
    }
    server.start()?;
    println!("{}\npattern: ready, press Enter to end", server.exports().join("\n"));
    std::io::stdin().read_line(&mut String::new())?;
    Ok(server.close()?)
}

fn main() -> ExitCode {
    serve().map_or_else(|why| (eprintln!("pattern: {why}"), ExitCode::FAILURE).1, |()| ExitCode::SUCCESS)
}
