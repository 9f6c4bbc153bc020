//! Instructions per I/O, counted by callgrind: `cargo bench --bench instructions`. Unlike time they do not depend on
//! the hour, so they are held against `benches/instructions.toml`, and one that grew by more than 5 % is a failure.
//!
//! `-- --renew` writes the baseline anew; a word counts only what has it in its name. For each piece of work this
//! program runs itself once more under valgrind, with [`work`] turning the reactors by hand.

#[expect(dead_code, reason = "counts, and takes no time")]
#[path = "../devices/mod.rs"]
mod devices;
mod work;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;

/// What may be added before it is a failure.
const TOLERANCE: f64 = 0.05;
/// Counting stops and goes on as this function, by part of its name, is entered and left.
const COUNTED: &str = "*counted_turn*";

/// Counts instructions per I/O and compares them with the baseline.
#[derive(Parser)]
#[command(name = "instructions")]
struct Cli {
    /// Write the baseline anew
    #[arg(long)]
    renew: bool,
    /// Count only what has this in its name
    only: Option<String>,
    /// Do the work of this name: what runs under valgrind
    #[arg(long, hide = true)]
    work: Option<String>,
    /// What `cargo bench` adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn baseline() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.toml")
}

/// Instructions per I/O of one piece of work.
fn count(name: &str) -> Result<f64, Box<dyn Error>> {
    let place = tempfile::tempdir()?;
    let counts = place.path().join("counts");
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", &format!("--toggle-collect={COUNTED}")])
        .arg(format!("--callgrind-out-file={}", counts.display()))
        .arg(std::env::current_exe()?)
        .args(["--work", name])
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    if !run.status.success() {
        return Err(format!("{name}: {}\n{}", run.status, String::from_utf8_lossy(&run.stderr)).into());
    }
    let ios: f64 = String::from_utf8(run.stdout)?.trim().parse()?;
    let text = std::fs::read_to_string(counts)?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: ")).ok_or("callgrind wrote no totals")?;
    let total: f64 = total.trim().parse()?;
    if total == 0.0 {
        return Err(format!("{name}: nothing was counted: is there a function named {COUNTED}?").into());
    }
    Ok(total / ios)
}

fn read_baseline() -> Result<BTreeMap<String, f64>, Box<dyn Error>> {
    let path = baseline();
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(toml::from_str(&text)?)
}

fn write_baseline(counts: &BTreeMap<String, f64>) -> Result<(), Box<dyn Error>> {
    let mut text = "# Instructions per I/O, release build, counted by `cargo bench --bench instructions`, which fails where one is\n\
                    # exceeded by more than 5 %. `cargo bench --bench instructions -- --renew` writes this file.\n"
        .to_owned();
    for (name, count) in counts {
        writeln!(text, "\"{name}\" = {count:.1}")?;
    }
    Ok(std::fs::write(baseline(), text)?)
}

/// Whether all that was asked for is within the baseline.
fn compare(only: &str, renew: bool) -> Result<bool, Box<dyn Error>> {
    let mut known = if renew && !baseline().exists() { BTreeMap::new() } else { read_baseline()? };
    let mut good = true;
    println!("{:<32} {:>12} {:>12} {:>8}", "instructions per I/O", "baseline", "now", "");
    for name in work::NAMES.iter().filter(|name| name.contains(only)) {
        let now = count(name)?;
        let before = known.insert((*name).to_owned(), now);
        let change = before.map_or(f64::INFINITY, |before| now / before - 1.0);
        let remark = match change {
            _ if renew => "renewed",
            f64::INFINITY => "NOT IN THE BASELINE",
            more if more > TOLERANCE => "TOO MANY",
            less if less < -TOLERANCE => "better: renew the baseline",
            _ => "",
        };
        good &= renew || change <= TOLERANCE;
        let (before, change) = match before {
            Some(before) => (format!("{before:.1}"), format!("{:+.1} %", change * 100.0)),
            None => Default::default(),
        };
        println!("{name:<32} {before:>12} {now:>12.1} {change:>8} {remark}");
    }
    for gone in known.keys().filter(|name| !work::NAMES.contains(&name.as_str())) {
        println!("{gone:<32} is in the baseline, and nothing has that name");
        good &= renew;
    }
    if renew {
        known.retain(|name, _| work::NAMES.contains(&name.as_str()));
        write_baseline(&known)?;
    }
    Ok(good)
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some(name) = &cli.work {
        println!("{}", work::run(name));
        return ExitCode::SUCCESS;
    }
    match compare(cli.only.as_deref().unwrap_or_default(), cli.renew) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}
