//! The file as a whole, and its small tables. `bdev`, `nvmf`, `iscsi` and `ublk` read theirs.

use std::path::PathBuf;

use toml::de::DeTable;

use super::bdev::{self, BdevSpans};
use super::iscsi::{self, IscsiSpans};
use super::machine::Machine;
use super::model::{Config, Hugepages, Idle, MemoryConfig, ReactorConfig};
use super::nvmf;
use super::reader::{Key, Messages, Table, Value};
use super::source::{Diagnostic, Source, Span};
use super::ublk;
use super::value::{CORE_MAX, format_core_list, format_size, parse_core_list};
use crate::limits::{ARENA_AT_START, REACTORS_MAX};

/// What [`parse`] makes of a text without errors.
#[derive(Clone, Debug)]
pub struct Parsed {
    /// The configuration.
    pub config: Config,
    /// What is allowed and probably not meant.
    pub warnings: Vec<Diagnostic>,
    /// Places of each of `config.bdevs`, for the probe.
    pub(super) spans: Vec<BdevSpans>,
    /// Places of `config.iscsi`, for the probe.
    pub(super) iscsi_spans: Option<IscsiSpans>,
}

const REACTOR: Key = Key::new("reactor", "write reactor = { cores = [0] }");
const MEMORY: Key = Key::new("memory", "write memory = { size = \"256MiB\" }");
const BDEV: Key = Key::new("bdev", "write [[bdev]] in double brackets, once for each");
const NVMF: Key = Key::new("nvmf", "write nvmf = { listen = [\"127.0.0.1:4420\"] }");
const ISCSI: Key = Key::new("iscsi", "write iscsi = { listen = [\"127.0.0.1:3260\"] }");
const UBLK: Key = Key::new("ublk", "write [[ublk]] in double brackets, once for each");
const CONTROL: Key = Key::new("control", "write control = { socket = \"/run/reactor/control.sock\" }");
const SOCKET: Key = Key::new("socket", "write socket = \"/run/reactor/control.sock\"");
/// Of `[control]`, and not in this build.
const METRICS: &str = "metrics";
const CORES: Key = Key::new("cores", "write cores = [0] or cores = \"0-3\"");
const IDLE: Key = Key::new("idle", "write idle = \"adaptive\"");
const SIZE: Key = Key::new("size", "write size = \"256MiB\"");
const HUGEPAGES: Key = Key::new("hugepages", "write hugepages = \"prefer\"");

/// Bytes of the path of a socket, its end included (unix(7)).
const SOCKET_PATH_MAX: usize = 108;

/// Default of `memory.size`.
const MEMORY_SIZE: u64 = 256 << 20;
/// The arena grows by whole huge pages.
const MEMORY_GRAIN: u64 = 2 << 20;

/// Checks all of a configuration that can be checked without a look at the file system.
///
/// # Errors
/// Every independent error, in the order of the text. While the text is not TOML, only that is reported.
pub fn parse(source: &Source, machine: &Machine) -> Result<Parsed, Vec<Diagnostic>> {
    let (document, errors) = DeTable::parse_recoverable(source.text());
    if !errors.is_empty() {
        return Err(syntax_errors(source, &errors));
    }
    let messages = Messages::default();
    let warnings = Messages::default();
    let top = Table::new(document.get_ref(), 0..0, "the file", &messages);
    top.only(&[REACTOR, MEMORY, CONTROL, BDEV, NVMF, ISCSI, UBLK]);
    let reactor = read_reactor(&top, machine);
    let memory = read_memory(&top);
    let socket = read_control(source, &top);
    let bdevs = bdev::read(source, &top, BDEV);
    let nvmf = nvmf::read(source, &top, NVMF, &bdevs, &warnings);
    let taken = nvmf.iter().flatten().flat_map(|nvmf| &nvmf.listen).cloned().collect::<Vec<_>>();
    let iscsi = iscsi::read(source, &top, ISCSI, &bdevs, &taken, &warnings);
    // Without cores there is an error already, and any number will do.
    let reactors = reactor.as_ref().map_or(1, |reactor| reactor.cores.len());
    let ublk = ublk::read(source, &top, UBLK, &bdevs, reactors);
    let errors = messages.into_sorted();
    match (reactor, memory, socket, bdevs.resolved, nvmf, iscsi, ublk) {
        (Some(reactor), Some(memory), Some(socket), Some(resolved), Some(nvmf), Some(iscsi), Some(ublk))
            if errors.is_empty() =>
        {
            if nvmf.is_none() && iscsi.is_none() && ublk.is_empty() {
                let help = "add an [nvmf] table with a subsystem, an [iscsi] table with a target, or a [[ublk]] table";
                warnings.warning(&(0..0), "no volume is exported", help);
            }
            let (bdevs, spans) = resolved.into_iter().unzip();
            let (iscsi, iscsi_spans) = iscsi.unzip();
            let config = Config { file: source.name().to_owned(), reactor, memory, bdevs, nvmf, iscsi, ublk, socket };
            Ok(Parsed { config, warnings: warnings.into_sorted(), spans, iscsi_spans })
        }
        _ => Err(errors),
    }
}

/// The parser goes on after an error and may stumble again over the same one: one message for each line.
fn syntax_errors(source: &Source, errors: &[toml::de::Error]) -> Vec<Diagnostic> {
    let mut list: Vec<Diagnostic> = errors
        .iter()
        .map(|error| {
            let span = error.span().unwrap_or(0..0);
            let text = source.text().get(span.clone()).unwrap_or("");
            let message = error.message();
            let (message, help) = if message.starts_with("string values must be quoted") {
                (format!("{text} is not a value"), format!("write a string in quotes: \"{text}\""))
            } else if message == "duplicate key" {
                (format!("{text} is here for the second time"), duplicate_help(source, &span, text))
            } else {
                (message.to_owned(), syntax_help(message))
            };
            Diagnostic::error(span, message, help)
        })
        .collect();
    list.sort_by_key(Diagnostic::start);
    list.dedup_by_key(|one| one.place(source).line);
    list
}

/// The parser says what it expected after the last comma of its sentence.
fn syntax_help(message: &str) -> String {
    match message.split_once("expected ") {
        _ if message.starts_with("key with no value") => "write KEY = VALUE".to_owned(),
        _ if message.starts_with("missing comma") => "write `,` here, or close the bracket before it".to_owned(),
        Some((_, expected)) => format!("write {expected} here"),
        None => "correct the TOML here; https://toml.io explains it".to_owned(),
    }
}

/// A second `[bdev]` most often wants to be another `[[bdev]]`, and `[iscsi.target]` another `[[iscsi.target]]`.
fn duplicate_help(source: &Source, span: &Span, name: &str) -> String {
    let (before, after) = (&source.text()[..span.start], &source.text()[span.end..]);
    let header = before.rsplit('\n').next().and_then(|line| line.trim_start().strip_prefix('['));
    if let Some(parent) = header.filter(|parent| !parent.starts_with('['))
        && after.starts_with(']')
        && matches!(name, "bdev" | "subsystem" | "target" | "ublk")
    {
        format!("write [[{parent}{name}]] in double brackets, each time")
    } else {
        "remove one of the two".to_owned()
    }
}

/// `None` after a message.
fn read_reactor(top: &Table<'_>, machine: &Machine) -> Option<ReactorConfig> {
    let lowest = machine.allowed.iter().take(1).copied().collect();
    let mut reactor = ReactorConfig { cores: lowest, idle: Idle::Adaptive };
    let Some(value) = top.get(REACTOR) else {
        return Some(reactor);
    };
    let table = value.table("[reactor]")?;
    table.only(&[CORES, IDLE]);
    // Both are read before the first refusal counts.
    let cores = table.get(CORES).map(|value| read_cores(&value, table.messages, machine));
    let idle = table.get(IDLE).map(|value| value.choice(&[("poll", Idle::Poll), ("adaptive", Idle::Adaptive)]));
    if let Some(cores) = cores {
        reactor.cores = cores?;
    }
    if let Some(idle) = idle {
        reactor.idle = idle?.value;
    }
    Some(reactor)
}

/// Ascending core numbers that exist and are allowed.
fn read_cores(value: &Value<'_>, messages: &Messages, machine: &Machine) -> Option<Vec<usize>> {
    let given: Vec<(usize, Span)> = if let Some(text) = value.as_text() {
        let cores = messages.accept(&value.span, parse_core_list(text))?;
        cores.into_iter().map(|core| (core, value.span.clone())).collect()
    } else {
        let mut given = Vec::new();
        for entry in value.array_or("an array or a string")? {
            let core = entry.integer(0..=u64::from(CORE_MAX))?;
            given.push((core.value as usize, core.span));
        }
        given
    };
    let instead = format!("write cores = \"{}\", or fewer of them", format_core_list(&machine.allowed));
    if given.is_empty() {
        messages.error(&value.span, "cores is empty: nothing would run", instead);
        return None;
    }
    let mut cores: Vec<usize> = Vec::with_capacity(given.len());
    for (core, span) in &given {
        if cores.contains(core) {
            messages.error(span, format!("core {core} is named twice"), "name each core once");
            return None;
        }
        cores.push(*core);
    }
    cores.sort_unstable();
    for (known, complaint) in [
        (&machine.online, "not in this machine, which has"),
        (&machine.allowed, "not allowed to this process, whose affinity is"),
    ] {
        let missing: Vec<usize> = cores.iter().copied().filter(|core| !known.contains(core)).collect();
        let Some((_, span)) = given.iter().find(|(core, _)| missing.contains(core)) else {
            continue;
        };
        let (noun, verb) = if missing.len() == 1 { ("core", "is") } else { ("cores", "are") };
        let plural = if known.len() == 1 { "core" } else { "cores" };
        let message = format!(
            "{noun} {} {verb} {complaint} {} {plural}: {}",
            format_core_list(&missing),
            known.len(),
            format_core_list(known)
        );
        messages.error(span, message, instead);
        return None;
    }
    if cores.len() > REACTORS_MAX {
        let message = format!("{} cores are more than the {REACTORS_MAX} reactors of one process", cores.len());
        let help = format!("write cores = \"{}\"", format_core_list(&cores[..REACTORS_MAX]));
        messages.error(&value.span, message, help);
        return None;
    }
    Some(cores)
}

/// The path of the control socket, if there is to be one; `None` after a message.
fn read_control(source: &Source, top: &Table<'_>) -> Option<Option<PathBuf>> {
    let Some(value) = top.get(CONTROL) else {
        return Some(None);
    };
    let table = value.table("[control]")?;
    table.only_besides(&[SOCKET], &[METRICS]);
    if let Some(span) = table.key_span(METRICS) {
        let message = "metrics is not available in this build, which lacks them";
        table.messages.error(span, message, "remove it");
    }
    let given = table.require(SOCKET)?.text()?;
    let path = source.resolve(given.value);
    let path = std::path::absolute(&path).unwrap_or(path);
    if given.value.is_empty() || given.value.contains('\0') || given.value.ends_with('/') {
        table.messages.error(&given.span, format!("\"{}\" names no socket", given.value), SOCKET.help);
        return None;
    }
    if path.as_os_str().len() >= SOCKET_PATH_MAX {
        let message =
            format!("the path of a socket has at most {} bytes, not {}", SOCKET_PATH_MAX - 1, path.as_os_str().len());
        table.messages.error(&given.span, message, SOCKET.help);
        return None;
    }
    Some(Some(path))
}

/// `None` after a message.
fn read_memory(top: &Table<'_>) -> Option<MemoryConfig> {
    let mut memory = MemoryConfig { size: MEMORY_SIZE, hugepages: Hugepages::Prefer };
    let Some(value) = top.get(MEMORY) else {
        return Some(memory);
    };
    let table = value.table("[memory]")?;
    table.only(&[SIZE, HUGEPAGES]);
    let size = table.get(SIZE).map(|value| value.size());
    let hugepages = table.get(HUGEPAGES).map(|value| {
        value.choice(&[("require", Hugepages::Require), ("prefer", Hugepages::Prefer), ("off", Hugepages::Off)])
    });
    if let Some(hugepages) = hugepages {
        memory.hugepages = hugepages?.value;
    }
    if let Some(size) = size {
        let size = size?;
        if size.value < ARENA_AT_START as u64 || !size.value.is_multiple_of(MEMORY_GRAIN) {
            let message =
                format!("memory of {} does not do: it is at least 32MiB, in steps of 2MiB", format_size(size.value));
            let fitting = size.value.next_multiple_of(MEMORY_GRAIN).max(ARENA_AT_START as u64);
            table.messages.error(&size.span, message, format!("write size = \"{}\"", format_size(fitting)));
            return None;
        }
        memory.size = size.value;
    }
    Some(memory)
}
