//! The command line, as plain data. Usage errors exit 2, `--help` and `--version` exit 0.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};

use super::config::{parse_core_list, parse_size};
use super::nvme_command::job::{Erase, Format, Job, LogPage};
use crate::limits::{REACTORS_MAX, TRANSFER_MAX};
use crate::nvme::spec::check_nqn;
use crate::ublk::Wanted;

/// What the user asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Serve a configuration, or check it.
    Serve(ServeOptions),
    /// Drive one block device.
    Bench(BenchOptions),
    /// Look after local block devices.
    Ublk(UblkOptions),
    /// Look after NVMe disks.
    Nvme(NvmeOptions),
}

/// `reactor --config FILE [--check]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServeOptions {
    /// The configuration file.
    pub config: PathBuf,
    /// Validate only: open no device, bind no port, exit 0 or 2.
    pub check: bool,
}

/// `reactor ublk`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UblkOptions {
    /// `list`: what there is.
    List {
        /// One JSON object instead of a table.
        json: bool,
    },
    /// `delete`: takes away what no server will take over.
    Delete {
        /// Which.
        device: Wanted,
        /// Also one that is in use.
        force: bool,
    },
}

/// `reactor nvme`. A device is named by its PCI address, its serial number, what the kernel calls it (`nvme0`, `/dev/nvme0n1`), or by the name of
/// a volume that a server has made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NvmeOptions {
    /// `list`: what there is.
    List {
        /// One JSON object instead of a table.
        json: bool,
    },
    /// `bind`: from the kernel's driver to VFIO.
    Bind {
        /// Which.
        device: String,
        /// Also one that is in use.
        force: bool,
        /// One JSON object instead of text.
        json: bool,
    },
    /// `unbind`: back to the kernel's driver.
    Unbind {
        /// Which.
        device: String,
        /// Also one whose volumes are in use.
        force: bool,
        /// One JSON object instead of text.
        json: bool,
    },
    /// `identify`, `smart`, `log`, `format`, `reset`: commands to the controller.
    Job {
        /// Which.
        device: String,
        /// What is asked.
        job: Job,
        /// Also of a disk that is in use.
        force: bool,
        /// One JSON object instead of text.
        json: bool,
    },
}

/// `reactor bench`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BenchOptions {
    /// What is driven.
    pub target: BenchTarget,
    /// The pattern.
    pub workload: Workload,
    /// Bytes of one I/O, a multiple of 512, at most 1 MiB.
    pub io_size: u32,
    /// I/Os in flight, of a remote namespace on each queue: 1 to 1024.
    pub queue_depth: u32,
    /// How long.
    pub duration: Duration,
    /// Cores with a reactor each, which all drive the same; empty: one, on a core that fits.
    pub cores: Vec<usize>,
    /// One JSON object instead of text.
    pub json: bool,
}

/// What `reactor bench` drives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BenchTarget {
    /// A block device of a configuration; no other part of it is started.
    Bdev {
        /// The configuration file.
        config: PathBuf,
        /// Name of the block device.
        name: String,
    },
    /// A namespace of an NVMe/TCP target.
    Remote {
        /// Where it is.
        address: RemoteNamespace,
        /// Controllers of each reactor: 1 to 1024.
        controllers: u16,
        /// I/O queues of each controller, one connection each: 1 to 128.
        queues: u16,
        /// Keep submission queue flow control, which is else disabled.
        sqflow: bool,
        /// Ask for header digests.
        header_digest: bool,
        /// Ask for data digests.
        data_digest: bool,
    },
}

/// `nvme-tcp://HOST:PORT/NQN?nsid=N`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteNamespace {
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// Default 4420, the port of NVMe/TCP I/O controllers.
    pub port: u16,
    /// Subsystem.
    pub nqn: String,
    /// Namespace, default 1.
    pub nsid: u32,
}

/// The pattern of a bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Random reads.
    #[value(name = "randread")]
    RandomRead,
    /// Random writes; overwrites the volume.
    #[value(name = "randwrite")]
    RandomWrite,
    /// Sequential reads.
    Read,
    /// Sequential writes; overwrites the volume.
    Write,
    /// 70 % random reads, 30 % random writes; overwrites the volume.
    #[value(name = "randrw")]
    RandomMixed,
}

/// A polled-mode storage data plane in user space: serves local volumes over NVMe/TCP.
///
/// Runs in the foreground until SIGINT or SIGTERM, then drains and exits 0. SIGHUP reads the configuration again,
/// SIGUSR1 logs what each reactor has counted (docs/benchmarks.md). Logs go to stderr; stdout gets one line per
/// export with the command that connects a host, then `reactor: ready`.
///
/// Exit codes: 0 clean, 1 a failure at run time, 2 an error in the command line or the configuration.
#[derive(Parser)]
#[command(name = "reactor", version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(
    override_usage = "reactor --config FILE [--check]\n       reactor bench --help\n       reactor ublk --help\n       reactor nvme --help"
)]
struct Cli {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    /// Validate the configuration and look at its paths; open no device, bind no port
    #[arg(long)]
    check: bool,
    #[command(subcommand)]
    command: Option<CliCommand>,
}

#[derive(Subcommand)]
enum CliCommand {
    Bench(BenchArgs),
    Ublk(UblkArgs),
    Nvme(NvmeArgs),
}

/// Show the local block devices of this machine that reactors have made, and delete those whose server is gone
///
/// For root. A device outlives its server where somebody uses it (recover = true), and waits for the next one.
#[derive(Args)]
#[command(subcommand_required = true, arg_required_else_help = false)]
struct UblkArgs {
    #[command(subcommand)]
    command: UblkCommand,
}

#[derive(Subcommand)]
enum UblkCommand {
    /// Show the devices: volume, state, server, who uses them, and the server's configuration
    List {
        /// Print one JSON object instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Delete a device whose server is gone; what its volume holds stays where it is kept
    Delete {
        /// Name of its volume, its number N, or /dev/ublkbN
        #[arg(value_name = "DEVICE", value_parser = str::parse::<Wanted>)]
        device: Wanted,
        /// Also if it is in use: who uses it gets errors
        #[arg(long)]
        force: bool,
    },
}

/// Look after the NVMe disks of this machine: who has them, what they say, and which driver they are bound to
///
/// DEVICE is a PCI address, a serial number, nvme0 or /dev/nvme0n1, or the name of a volume that a running reactor has made of the
/// disk.
#[derive(Args)]
#[command(subcommand_required = true, arg_required_else_help = false)]
struct NvmeArgs {
    #[command(subcommand)]
    command: NvmeCommand,
}

#[derive(Subcommand)]
enum NvmeCommand {
    /// Show the disks: driver, IOMMU group, namespaces, and who uses them; needs no rights
    List {
        /// Print one JSON object instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Take a disk from the kernel's driver and give it to VFIO, unless somebody uses it
    Bind {
        #[command(flatten)]
        which: Which,
    },
    /// Give a disk back to the kernel's driver
    Unbind {
        #[command(flatten)]
        which: Which,
    },
    /// Show what a controller and its namespaces say of themselves
    Identify {
        #[command(flatten)]
        which: Seen,
        /// Of this namespace alone
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=0xffff_fffd))]
        nsid: Option<u32>,
    },
    /// Show the health of a disk
    Smart {
        #[command(flatten)]
        which: Seen,
    },
    /// Show a log page
    Log {
        #[command(flatten)]
        which: Seen,
        /// Which one
        #[arg(value_name = "PAGE", value_enum)]
        page: LogPage,
    },
    /// Format a namespace: all that it holds is lost
    Format {
        #[command(flatten)]
        which: Which,
        /// Which namespace [default: the only one]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=0xffff_fffd))]
        nsid: Option<u32>,
        /// Index of the LBA format, as identify shows them [default: the one in use]
        #[arg(long, value_name = "INDEX", value_parser = clap::value_parser!(u8).range(0..=63), conflicts_with = "block_size")]
        lbaf: Option<u8>,
        /// Bytes of a block, without metadata: 512 or 4096
        #[arg(long, value_name = "BYTES")]
        block_size: Option<u32>,
        /// What is erased beyond that
        #[arg(long, value_enum, default_value_t)]
        erase: Erase,
    },
    /// Reset a controller; a running reactor gives it again what was in flight
    Reset {
        #[command(flatten)]
        which: Which,
    },
}

/// A device that is looked at.
#[derive(Args)]
struct Seen {
    /// PCI address, serial number, nvme0, /dev/nvme0n1, or name of a volume
    #[arg(value_name = "DEVICE")]
    device: String,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// A device that is changed.
#[derive(Args)]
struct Which {
    /// PCI address, serial number, nvme0, /dev/nvme0n1, or name of a volume
    #[arg(value_name = "DEVICE")]
    device: String,
    /// Also if it is in use: who uses it gets errors
    #[arg(long)]
    force: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// Drive one volume of a configuration, or a remote namespace, and show rates and latencies
///
/// One reactor drives the block device, or several (--cores); no other part of the configuration is started. A write
/// pattern overwrites what is on the volume. A failed I/O makes the exit code 1.
#[derive(Args)]
#[command(
    override_usage = "reactor bench --config FILE --bdev NAME [OPTIONS]\n       reactor bench --connect URL [OPTIONS]"
)]
#[command(after_help = "Examples:
  reactor bench --config poll.toml --bdev ram0 --rw randread --bs 4k --qd 32 --time 5
  reactor bench --connect 'nvme-tcp://127.0.0.1:4420/nqn.2026-11.io.reactor:vol0?nsid=1' --queues 2 --json")]
struct BenchArgs {
    /// Configuration file that has the volume
    #[arg(long, value_name = "FILE", requires = "bdev")]
    config: Option<PathBuf>,
    /// Name of the volume
    #[arg(long, value_name = "NAME", requires = "config", required_unless_present = "connect")]
    bdev: Option<String>,
    /// Remote namespace instead: nvme-tcp://HOST:PORT/NQN?nsid=1 (port 4420 and nsid 1 may be left out)
    #[arg(long, value_name = "URL", conflicts_with_all = ["config", "bdev"], value_parser = parse_remote)]
    connect: Option<RemoteNamespace>,
    /// Pattern; randrw is 70 % reads
    #[arg(long, value_name = "PATTERN", value_enum, default_value = "randread")]
    rw: Workload,
    /// Bytes of one I/O: 4k, 4KiB, 128k, 1m; a multiple of 512, at most 1 MiB
    #[arg(long, value_name = "SIZE", default_value = "4k", value_parser = parse_io_size)]
    bs: u32,
    /// I/Os in flight of each reactor; with --connect, on each queue
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    qd: u32,
    /// Seconds, 0.1 to 86400
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = parse_duration)]
    time: Duration,
    /// Cores with a reactor each, "0-3" or "0,2": each drives the volume, or connects, on its own [default: the first
    /// core of the configuration, or with --connect the last that this process may use]
    #[arg(long, value_name = "LIST", value_parser = parse_cores)]
    cores: Option<Cores>,
    /// Controllers that each reactor connects to with --connect [default: 1]
    #[arg(long, value_name = "N", conflicts_with_all = ["config", "bdev"], value_parser = clap::value_parser!(u16).range(1..=1024))]
    controllers: Option<u16>,
    /// I/O queues of each controller of --connect, one connection each [default: 1]
    #[arg(long, value_name = "N", conflicts_with_all = ["config", "bdev"], value_parser = clap::value_parser!(u16).range(1..=128))]
    queues: Option<u16>,
    /// Keep submission queue flow control with --connect; by default the host asks to do without
    #[arg(long, conflicts_with_all = ["config", "bdev"])]
    sqflow: bool,
    /// Ask for header digests (CRC32C) with --connect
    #[arg(long, conflicts_with_all = ["config", "bdev"])]
    header_digest: bool,
    /// Ask for data digests (CRC32C) with --connect
    #[arg(long, conflicts_with_all = ["config", "bdev"])]
    data_digest: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// A list of cores, as clap wants it: one value.
#[derive(Clone, Debug)]
struct Cores(Vec<usize>);

/// Reads the command line of this process. Prints and exits where there is nothing to run: 2 after a usage error, 0
/// after `--help` and `--version`.
pub fn parse() -> Command {
    parse_from(std::env::args_os()).unwrap_or_else(|error| error.exit())
}

/// Reads a command line whose first word is the name of the program.
///
/// # Errors
/// A usage error (clap's exit code 2), or the text of `--help` and `--version` (exit code 0).
pub fn parse_from(words: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Command, clap::Error> {
    let cli = Cli::command().try_get_matches_from(words).and_then(|matches| Cli::from_arg_matches(&matches))?;
    match cli {
        Cli { command: Some(CliCommand::Bench(bench)), .. } => bench.into_options().map(Command::Bench),
        Cli { command: Some(CliCommand::Ublk(ublk)), .. } => Ok(Command::Ublk(match ublk.command {
            UblkCommand::List { json } => UblkOptions::List { json },
            UblkCommand::Delete { device, force } => UblkOptions::Delete { device, force },
        })),
        Cli { command: Some(CliCommand::Nvme(nvme)), .. } => Ok(Command::Nvme(match nvme.command {
            NvmeCommand::List { json } => NvmeOptions::List { json },
            NvmeCommand::Bind { which: Which { device, force, json } } => NvmeOptions::Bind { device, force, json },
            NvmeCommand::Unbind { which: Which { device, force, json } } => NvmeOptions::Unbind { device, force, json },
            NvmeCommand::Identify { which, nsid } => which.job(Job::Identify { nsid }),
            NvmeCommand::Smart { which } => which.job(Job::Smart),
            NvmeCommand::Log { which, page } => which.job(Job::Log(page)),
            NvmeCommand::Format { which: Which { device, force, json }, nsid, lbaf, block_size, erase } => {
                let job = Job::Format(Format { nsid, lbaf, block_size, erase });
                NvmeOptions::Job { device, job, force, json }
            }
            NvmeCommand::Reset { which: Which { device, force, json } } => {
                NvmeOptions::Job { device, job: Job::Reset, force, json }
            }
        })),
        Cli { config: Some(config), check, command: None } => Ok(Command::Serve(ServeOptions { config, check })),
        Cli { config: None, .. } => Err(missing("--config FILE")),
    }
}

fn missing(what: &str) -> clap::Error {
    Cli::command().error(clap::error::ErrorKind::MissingRequiredArgument, format!("{what} is missing"))
}

impl Seen {
    fn job(self, job: Job) -> NvmeOptions {
        NvmeOptions::Job { device: self.device, job, force: false, json: self.json }
    }
}

impl BenchArgs {
    fn into_options(self) -> Result<BenchOptions, clap::Error> {
        let target = match (self.connect, self.config, self.bdev) {
            (Some(address), ..) => BenchTarget::Remote {
                address,
                controllers: self.controllers.unwrap_or(1),
                queues: self.queues.unwrap_or(1),
                sqflow: self.sqflow,
                header_digest: self.header_digest,
                data_digest: self.data_digest,
            },
            (None, Some(config), Some(name)) => BenchTarget::Bdev { config, name },
            (None, ..) => return Err(missing("--config FILE --bdev NAME, or --connect URL,")),
        };
        Ok(BenchOptions {
            target,
            workload: self.rw,
            io_size: self.bs,
            queue_depth: self.qd,
            duration: self.time,
            cores: self.cores.map_or_else(Vec::new, |cores| cores.0),
            json: self.json,
        })
    }
}

/// `4k` and `1m` as fio has them (powers of 1024), or a size as in the configuration.
fn parse_io_size(text: &str) -> Result<u32, String> {
    let unit = match text.trim_start_matches(|c: char| c.is_ascii_digit()) {
        "k" | "K" => "KiB",
        "m" | "M" => "MiB",
        _ => "",
    };
    let spelled = if unit.is_empty() { text.to_owned() } else { format!("{}{unit}", &text[..text.len() - 1]) };
    let size = parse_size(&spelled).map_err(|bad| format!("{}: {}", bad.message, bad.help))?;
    if size == 0 || !size.is_multiple_of(512) || size > TRANSFER_MAX as u64 {
        return Err("an I/O is a multiple of 512 bytes, at most 1 MiB".to_owned());
    }
    u32::try_from(size).map_err(|error| error.to_string())
}

/// Seconds, with a fraction if need be.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("\"{text}\" is not a number of seconds"))?;
    if !(0.1..=86_400.0).contains(&seconds) {
        return Err("a bench takes 0.1 to 86400 seconds".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Different cores, ascending.
fn parse_cores(text: &str) -> Result<Cores, String> {
    let mut cores = parse_core_list(text).map_err(|bad| format!("{}: {}", bad.message, bad.help))?;
    cores.sort_unstable();
    cores.dedup();
    if cores.len() > REACTORS_MAX {
        return Err(format!("{} cores are more than the {REACTORS_MAX} reactors of one process", cores.len()));
    }
    Ok(Cores(cores))
}

/// Reads `nvme-tcp://HOST[:PORT]/NQN[?nsid=N]`.
fn parse_remote(text: &str) -> Result<RemoteNamespace, String> {
    let rest = text.strip_prefix("nvme-tcp://").ok_or("write nvme-tcp://HOST:PORT/NQN?nsid=1")?;
    let (authority, path) = rest.split_once('/').ok_or("the NQN is missing: write nvme-tcp://HOST:PORT/NQN?nsid=1")?;
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("the bracket of the IPv6 address is not closed")?;
            let port = if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or("write [ADDRESS]:PORT")?) };
            (host, port)
        }
        None => authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port))),
    };
    if host.is_empty() {
        return Err("the host is missing: write nvme-tcp://HOST:PORT/NQN?nsid=1".to_owned());
    }
    if port.is_some_and(|port| port.contains(':')) {
        return Err("write an IPv6 address in brackets: nvme-tcp://[::1]:4420/NQN".to_owned());
    }
    let port = match port {
        Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or(format!("\"{port}\" is not a port"))?,
        None => 4420,
    };
    let (nqn, query) = path.split_once('?').unwrap_or((path, "nsid=1"));
    check_nqn(nqn).map_err(|bad| bad.message)?;
    let nsid = query.strip_prefix("nsid=").ok_or(format!("\"{query}\" is not understood: write ?nsid=1"))?;
    let nsid =
        nsid.parse().ok().filter(|nsid| (1..u32::MAX).contains(nsid)).ok_or(format!("\"{nsid}\" is not an nsid"))?;
    Ok(RemoteNamespace { host: host.to_owned(), port, nqn: nqn.to_owned(), nsid })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NQN: &str = "nqn.2026-11.io.reactor:vol0";

    fn words(line: &str) -> Result<Command, clap::Error> {
        parse_from(line.split_whitespace().map(str::to_owned))
    }

    fn bench(line: &str) -> BenchOptions {
        match words(line) {
            Ok(Command::Bench(options)) => options,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serving() {
        let options = |check| Command::Serve(ServeOptions { config: "poll.toml".into(), check });
        assert_eq!(words("reactor --config poll.toml").unwrap(), options(false));
        assert_eq!(words("reactor --check --config poll.toml").unwrap(), options(true));
    }

    #[test]
    fn looking_after_devices() {
        let list = |json| Command::Ublk(UblkOptions::List { json });
        assert_eq!(words("reactor ublk list").unwrap(), list(false));
        assert_eq!(words("reactor ublk list --json").unwrap(), list(true));
        let delete = |device, force| Command::Ublk(UblkOptions::Delete { device, force });
        assert_eq!(words("reactor ublk delete 3").unwrap(), delete(Wanted::Number(3), false));
        assert_eq!(words("reactor ublk delete --force /dev/ublkb3").unwrap(), delete(Wanted::Path(3), true));
        let named = Wanted::Volume("disk0".to_owned());
        assert_eq!(words("reactor ublk delete disk0 --force").unwrap(), delete(named, true));
    }

    #[test]
    fn looking_after_nvme_disks() {
        assert_eq!(words("reactor nvme list --json").unwrap(), Command::Nvme(NvmeOptions::List { json: true }));
        let device = "0000:01:00.0".to_owned();
        let bind = Command::Nvme(NvmeOptions::Bind { device: device.clone(), force: true, json: false });
        assert_eq!(words("reactor nvme bind 0000:01:00.0 --force").unwrap(), bind);
        let unbind = Command::Nvme(NvmeOptions::Unbind { device, force: false, json: true });
        assert_eq!(words("reactor nvme unbind --json 0000:01:00.0").unwrap(), unbind);
        let job = |device: &str, job, force, json| {
            Command::Nvme(NvmeOptions::Job { device: device.to_owned(), job, force, json })
        };
        let identify = job("S1", Job::Identify { nsid: Some(2) }, false, true);
        assert_eq!(words("reactor nvme identify S1 --nsid 2 --json").unwrap(), identify);
        assert_eq!(words("reactor nvme smart nvme0").unwrap(), job("nvme0", Job::Smart, false, false));
        let log = job("nvme0", Job::Log(LogPage::Firmware), false, false);
        assert_eq!(words("reactor nvme log nvme0 firmware").unwrap(), log);
        let format = Format { nsid: Some(1), lbaf: None, block_size: Some(4096), erase: Erase::Crypto };
        let line = "reactor nvme format disk0 --nsid 1 --block-size 4096 --erase crypto --force";
        assert_eq!(words(line).unwrap(), job("disk0", Job::Format(format), true, false));
        assert_eq!(
            words("reactor nvme format disk0").unwrap(),
            job("disk0", Job::Format(Format::default()), false, false)
        );
        assert_eq!(words("reactor nvme reset disk0 --force").unwrap(), job("disk0", Job::Reset, true, false));
    }

    #[test]
    fn bench_of_a_volume_has_defaults() {
        let expected = BenchOptions {
            target: BenchTarget::Bdev { config: "poll.toml".into(), name: "ram0".to_owned() },
            workload: Workload::RandomRead,
            io_size: 4096,
            queue_depth: 32,
            duration: Duration::from_secs(5),
            cores: Vec::new(),
            json: false,
        };
        assert_eq!(bench("reactor bench --config poll.toml --bdev ram0"), expected);
        let all = "reactor bench --config f --bdev b --rw randrw --bs 128k --qd 1 --time 60.5 --cores 2,0-1,0 --json";
        let expected = BenchOptions {
            target: BenchTarget::Bdev { config: "f".into(), name: "b".to_owned() },
            workload: Workload::RandomMixed,
            io_size: 128 << 10,
            queue_depth: 1,
            duration: Duration::from_millis(60_500),
            cores: vec![0, 1, 2],
            json: true,
        };
        assert_eq!(bench(all), expected);
    }

    #[test]
    fn bench_of_a_remote_namespace() {
        let line = format!(
            "reactor bench --connect nvme-tcp://[::1]:4421/{NQN}?nsid=7 --controllers 8 --queues 4 --sqflow --header-digest --data-digest"
        );
        let address = RemoteNamespace { host: "::1".to_owned(), port: 4421, nqn: NQN.to_owned(), nsid: 7 };
        let expected = BenchTarget::Remote {
            address,
            controllers: 8,
            queues: 4,
            sqflow: true,
            header_digest: true,
            data_digest: true,
        };
        assert_eq!(bench(&line).target, expected);
        let address = RemoteNamespace { host: "localhost".to_owned(), port: 4420, nqn: NQN.to_owned(), nsid: 1 };
        let expected = BenchTarget::Remote {
            address,
            controllers: 1,
            queues: 1,
            sqflow: false,
            header_digest: false,
            data_digest: false,
        };
        assert_eq!(bench(&format!("reactor bench --connect nvme-tcp://localhost/{NQN}")).target, expected);
    }

    #[test]
    fn io_sizes() {
        for (text, size) in
            [("4k", 4096), ("4K", 4096), ("4KiB", 4096), ("128k", 131_072), ("1m", 1 << 20), ("512", 512)]
        {
            assert_eq!(parse_io_size(text), Ok(size), "{text}");
        }
        for text in ["", "k", "0", "0k", "513", "2m", "4kk", "4kb", "-4k", "4g", "é", "1é"] {
            assert!(parse_io_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn remote_namespaces_that_are_none() {
        for text in [
            "127.0.0.1:4420".to_owned(),
            "nvme-tcp://127.0.0.1:4420".to_owned(),
            "nvme-tcp://127.0.0.1:4420/".to_owned(),
            format!("nvme-tcp://:4420/{NQN}"),
            format!("nvme-tcp://host:0/{NQN}"),
            format!("nvme-tcp://host:99999/{NQN}"),
            format!("nvme-tcp://host:/{NQN}"),
            format!("nvme-tcp://::1:4420/{NQN}"),
            format!("nvme-tcp://[::1/{NQN}"),
            format!("nvme-tcp://[::1]4420/{NQN}"),
            format!("nvme-tcp://host/{NQN}?nsid=0"),
            format!("nvme-tcp://host/{NQN}?nsid=4294967295"),
            format!("nvme-tcp://host/{NQN}?ns=1"),
        ] {
            assert!(parse_remote(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn usage_errors_exit_2_and_help_exits_0() {
        for line in [
            "reactor",
            "reactor --check",
            "reactor --config",
            "reactor serve",
            "reactor --config a --config b",
            "reactor --config a bench",
            "reactor bench",
            "reactor bench --config a",
            "reactor bench --bdev b",
            "reactor bench --config a --bdev b --queues 2",
            "reactor bench --config a --bdev b --data-digest",
            "reactor bench --config a --bdev b --rw trim",
            "reactor bench --config a --bdev b --qd 0",
            "reactor bench --config a --bdev b --time 0",
            "reactor bench --config a --bdev b --time NaN",
            "reactor bench --config a --bdev b --cores 1-0",
            "reactor bench --config a --bdev b --cores 0-99",
            "reactor bench --config a --bdev b --sqflow",
            "reactor bench --config a --bdev b --controllers 2",
            "reactor bench --config a --bdev b --connect nvme-tcp://h/nqn.2026-11.io.reactor:vol0",
            "reactor bench --connect nvme-tcp://h/vol0",
            "reactor ublk",
            "reactor ublk show",
            "reactor ublk list disk0",
            "reactor ublk delete",
            "reactor ublk delete --force",
            "reactor ublk delete /dev/sda",
            "reactor ublk delete disk0 disk1",
            "reactor --config a ublk list",
            "reactor nvme",
            "reactor nvme list disk0",
            "reactor nvme bind",
            "reactor nvme unbind a b",
            "reactor nvme identify a --force",
            "reactor nvme identify a --nsid 0",
            "reactor nvme log a",
            "reactor nvme log a smart",
            "reactor nvme format a --lbaf 64",
            "reactor nvme format a --lbaf 1 --block-size 512",
            "reactor nvme format a --erase all",
        ] {
            let error = words(line).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}: {error}");
        }
        for line in [
            "reactor --help",
            "reactor --version",
            "reactor bench --help",
            "reactor ublk --help",
            "reactor ublk delete --help",
            "reactor nvme --help",
            "reactor nvme bind --help",
        ] {
            assert_eq!(words(line).unwrap_err().exit_code(), 0, "{line}");
        }
    }
}
