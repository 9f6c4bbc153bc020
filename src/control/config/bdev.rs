//! `[[bdev]]`: volumes, and layers on them.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::model::{BdevConfig, Driver, InjectAction, InjectOp, InjectRule, InjectStatus, NullComplete, Trigger};
use super::nvme;
use super::reader::{Key, Messages, Table, all_of, nearest};
use super::source::{Place, Source, Span};
use super::value::format_size;
use crate::bdev::registry::{NAME_LEN_MAX, is_name};
use crate::limits::STACK_LAYERS_MAX;
use crate::nvme::spec::parse_uuid;

const NAME: Key = Key::new("name", "write name = \"ram0\"");
const DRIVER: Key = Key::new("driver", "write driver = \"malloc\"");
const SIZE: Key = Key::new("size", "write size = \"1GiB\"");
const BLOCK_SIZE: Key = Key::new("block_size", "write block_size = 512 or block_size = 4096");
const PHYSICAL_BLOCK_SIZE: Key = Key::new("physical_block_size", "write physical_block_size = 4096");
const UUID: Key = Key::new("uuid", "write uuid = \"f81d4fae-7dec-11d0-a765-00a0c91e6bf6\"");
const COMPLETE: Key = Key::new("complete", "write complete = \"poll\"");
const PATH: Key = Key::new("path", "write path = \"disk0.img\"");
const DIRECT: Key = Key::new("direct", "write direct = true");
const BASE: Key = Key::new("base", "write base = \"ram0\"");
const RULES: Key =
    Key::new("rules", "write rules = [{ op = \"read\", nth = 10, action = \"fail\", status = \"io-error\" }]");
const OP: Key = Key::new("op", "write op = \"read\"");
const NTH: Key = Key::new("nth", "write nth = 10");
const EVERY: Key = Key::new("every", "write every = 5");
const ACTION: Key = Key::new("action", "write action = \"fail\"");
const STATUS: Key = Key::new("status", "write status = \"io-error\"");
const DELAY_MS: Key = Key::new("delay_ms", "write delay_ms = 100");
const COUNT: Key = Key::new("count", "write count = 3");

/// Drivers of this build.
const BUILT: [&str; 5] = ["null", "malloc", "file", "nvme", "inject"];
/// Drivers of the format that this build does not have.
const NOT_BUILT: [&str; 8] = ["nvme-tcp", "s3", "mirror", "erasure", "thin", "dedup", "zoned", "qos"];

/// Half of the addresses a process has.
const MALLOC_SIZE_MAX: u64 = 64 << 40;
/// Largest physical block a host is told of.
const PHYSICAL_BLOCK_SIZE_MAX: u64 = 64 << 10;
/// One hour: longer than any host waits.
const DELAY_MS_MAX: u64 = 3_600_000;

/// Namespace of the UUIDs that [`derived_uuid`] makes.
const NAME_SPACE: Uuid = Uuid::from_u128(0x7b0c_6f3e_52a1_4d0e_9c5d_3f1e_8a64_b2d7);

/// The identity of a volume whose `uuid` is not given: a version 5 UUID (SHA-1; RFC 9562, section 5.5) of its name in
/// the namespace `7b0c6f3e-52a1-4d0e-9c5d-3f1e8a64b2d7`. The same name gives the same UUID on every machine: a host that
/// sees volumes of one name from two machines needs a `uuid` for one of them.
pub fn derived_uuid(name: &str) -> Uuid {
    Uuid::new_v5(&NAME_SPACE, name.as_bytes())
}

/// Places of a volume that the probe points at.
#[derive(Clone, Debug)]
pub(super) struct BdevSpans {
    /// `path`, of a file.
    pub(super) path: Option<Span>,
    /// `size`; the `[[bdev]]` line of a layer.
    pub(super) size: Span,
    /// `path` as it stands in the file.
    pub(super) path_text: String,
}

/// What became of all `[[bdev]]` tables.
pub(super) struct Bdevs {
    /// Every name, of refused volumes too: to refer to one of them is no second error.
    pub(super) names: BTreeMap<String, Place>,
    /// A base before its layers; `None` after a message.
    pub(super) resolved: Option<Vec<(BdevConfig, BdevSpans)>>,
}

/// One table that was read. A layer's sizes come from its base.
struct Read {
    config: BdevConfig,
    spans: BdevSpans,
    base_span: Span,
}

/// Reads every `[[bdev]]`.
pub(super) fn read(source: &Source, top: &Table<'_>, key: Key) -> Bdevs {
    let mut names = BTreeMap::new();
    let mut uuids = BTreeMap::new();
    let mut paths = BTreeMap::new();
    let mut namespaces = nvme::Namespaces::default();
    let mut list = Vec::new();
    let mut complete = true;
    for table in top.get(key).map(|value| value.tables("[[bdev]]")).unwrap_or_default() {
        let messages = table.messages;
        let name = read_name(&table);
        if let Some((name, span)) = &name {
            let place = source.place(span.start);
            if let Some(first) = names.insert(name.clone(), place) {
                let message = format!("bdev \"{name}\" is here for the second time, after line {}", first.line);
                messages.error(span, message, "give it another name");
                complete = false;
            }
        }
        let name = name.map(|(name, _)| name);
        let Some(read) = read_one(source, &table, name) else {
            complete = false;
            continue;
        };
        let BdevConfig { name, uuid, driver, .. } = &read.config;
        let uuid_span = table.place_of(UUID);
        if let Some(other) = uuids.insert(*uuid, name.clone())
            && other != *name
        {
            messages.error(
                &uuid_span,
                format!("bdev \"{other}\" has this uuid already"),
                "write another one, as uuidgen prints them",
            );
            complete = false;
        }
        if let (Driver::File { path, .. }, Some(span)) = (driver, &read.spans.path)
            && let Some(other) = paths.insert(path.clone(), name.clone())
        {
            messages.error(
                span,
                format!("bdev \"{other}\" stands on this path already"),
                "write another path, or export that volume again",
            );
            complete = false;
        }
        if let Driver::Nvme(wanted) = &read.config.driver {
            complete &= namespaces.add(wanted, &read.config, &table);
        }
        list.push(read);
    }
    let resolved = resolve(list, &names, top.messages).filter(|_| complete);
    Bdevs { names, resolved }
}

/// The name and its place.
fn read_name(table: &Table<'_>) -> Option<(String, Span)> {
    let name = table.require(NAME)?.text()?;
    if !is_name(name.value) {
        let message = format!("\"{}\" cannot be the name of a bdev", name.value);
        let help = format!("write letters, digits, \".\", \"_\" or \"-\", at most {NAME_LEN_MAX} of them");
        table.messages.error(&name.span, message, help);
        return None;
    }
    Some((name.value.to_owned(), name.span))
}

/// `None` after a message.
fn read_one(source: &Source, table: &Table<'_>, name: Option<String>) -> Option<Read> {
    let messages = table.messages;
    let driver = table.require(DRIVER)?.text()?;
    let common = [NAME, DRIVER, UUID];
    let leaf = [NAME, DRIVER, UUID, SIZE, BLOCK_SIZE, PHYSICAL_BLOCK_SIZE];
    let keys: Vec<Key> = match driver.value {
        "null" => [leaf.as_slice(), &[COMPLETE]].concat(),
        "malloc" => leaf.to_vec(),
        "file" => [leaf.as_slice(), &[PATH, DIRECT]].concat(),
        "nvme" => nvme::keys(&[NAME, DRIVER], &[SIZE, BLOCK_SIZE]),
        "inject" => [common.as_slice(), &[BASE, RULES]].concat(),
        other => {
            let has = format!("this build has {}", all_of(&BUILT));
            if NOT_BUILT.contains(&other) {
                messages.error(&driver.span, format!("driver \"{other}\" is not available in this build"), has);
            } else {
                let help =
                    nearest(other, &BUILT).map_or_else(|| has.clone(), |near| format!("write \"{near}\"; {has}"));
                messages.error(&driver.span, format!("unknown driver \"{other}\""), help);
            }
            return None;
        }
    };
    table.only(&keys);
    let uuid = match table.get(UUID) {
        Some(value) => value.text().and_then(|text| messages.accept(&text.span, parse_uuid(text.value))),
        None => name.as_deref().map(derived_uuid),
    };
    let mut spans = BdevSpans { path: None, size: table.span.clone(), path_text: String::new() };
    let mut base_span = table.span.clone();
    let (geometry, driver) = match driver.value {
        "inject" => {
            let base = table.require(BASE).and_then(|value| value.text());
            let rules = table.get(RULES).map_or(Some(Vec::new()), |value| {
                // All of them are read before the first refusal counts.
                let rules: Vec<Option<InjectRule>> = value.tables("a rule").iter().map(read_rule).collect();
                rules.into_iter().collect()
            });
            let base = base?;
            base_span = base.span;
            (Some(Geometry::UNKNOWN), Driver::Inject { base: base.value.to_owned(), rules: rules? })
        }
        "nvme" => (Some(Geometry::UNKNOWN), Driver::Nvme(nvme::read(table, SIZE, BLOCK_SIZE)?)),
        "file" => {
            let geometry = Geometry::read(table, i64::MAX as u64, &mut spans.size);
            let path = table.require(PATH).and_then(|value| value.text());
            let direct = table.get(DIRECT).map_or(Some(true), |value| value.boolean().map(|direct| direct.value));
            let path = path?;
            if path.value.is_empty() || path.value.contains('\0') || path.value.ends_with('/') {
                messages.error(&path.span, format!("\"{}\" names no file", path.value), "write path = \"disk0.img\"");
                return None;
            }
            spans.path = Some(path.span);
            path.value.clone_into(&mut spans.path_text);
            (geometry, Driver::File { path: source.resolve(path.value), direct: direct? })
        }
        "null" => {
            let geometry = Geometry::read(table, i64::MAX as u64, &mut spans.size);
            let words = [("poll", NullComplete::Poll), ("submit", NullComplete::Submit)];
            let complete = table
                .get(COMPLETE)
                .map_or(Some(NullComplete::Poll), |value| value.choice(&words).map(|complete| complete.value));
            (geometry, Driver::Null { complete: complete? })
        }
        _ => (Geometry::read(table, MALLOC_SIZE_MAX, &mut spans.size), Driver::Malloc),
    };
    let Geometry { size, block_size, physical_block_size } = geometry?;
    let place = source.place(table.span.start);
    let config = BdevConfig { name: name?, uuid: uuid?, size, block_size, physical_block_size, driver, place };
    Some(Read { config, spans, base_span })
}

/// Sizes of a leaf.
struct Geometry {
    size: u64,
    block_size: u32,
    physical_block_size: u32,
}

impl Geometry {
    /// Of a layer, until its base is found; of an NVMe disk, until it is open.
    const UNKNOWN: Self = Self { size: 0, block_size: 0, physical_block_size: 0 };

    /// `None` after a message.
    fn read(table: &Table<'_>, size_max: u64, size_span: &mut Span) -> Option<Self> {
        let size = table.require(SIZE).and_then(|value| value.size());
        let block_size = match table.get(BLOCK_SIZE) {
            Some(value) => {
                let block_size = value.integer(1..=u64::from(u32::MAX))?;
                if block_size.value != 512 && block_size.value != 4096 {
                    let message = format!("block_size cannot be {}", block_size.value);
                    table.messages.error(&block_size.span, message, "write block_size = 512 or block_size = 4096");
                    return None;
                }
                block_size.value
            }
            None => 512,
        };
        let physical = match table.get(PHYSICAL_BLOCK_SIZE) {
            Some(value) => {
                let physical = value.integer(1..=u64::from(u32::MAX))?;
                if !physical.value.is_power_of_two()
                    || !(block_size..=PHYSICAL_BLOCK_SIZE_MAX).contains(&physical.value)
                {
                    let message = format!("physical_block_size cannot be {}", physical.value);
                    let help =
                        format!("write a power of two from {block_size}, the block_size, to {PHYSICAL_BLOCK_SIZE_MAX}");
                    table.messages.error(&physical.span, message, help);
                    return None;
                }
                physical.value
            }
            None => block_size,
        };
        let size = size?;
        *size_span = size.span.clone();
        if size.value == 0 || !size.value.is_multiple_of(block_size) {
            let fitting = format_size(size.value.next_multiple_of(block_size).max(block_size));
            let message =
                format!("a size of {} bytes is not a positive multiple of block_size {block_size}", size.value);
            table.messages.error(&size.span, message, format!("write size = \"{fitting}\""));
            return None;
        }
        if size.value > size_max {
            let message = format!("a size of {} is more than this driver can have", format_size(size.value));
            table.messages.error(&size.span, message, format!("write size = \"{}\" or less", format_size(size_max)));
            return None;
        }
        let narrow = |bytes: u64| u32::try_from(bytes).ok();
        Some(Self { size: size.value, block_size: narrow(block_size)?, physical_block_size: narrow(physical)? })
    }
}

/// `None` after a message.
fn read_rule(table: &Table<'_>) -> Option<InjectRule> {
    table.only(&[OP, NTH, EVERY, ACTION, STATUS, DELAY_MS, COUNT]);
    let messages = table.messages;
    let op = table.require(OP).and_then(|value| {
        value.choice(&[
            ("any", None),
            ("read", Some(InjectOp::Read)),
            ("write", Some(InjectOp::Write)),
            ("flush", Some(InjectOp::Flush)),
            ("unmap", Some(InjectOp::Unmap)),
            ("write-zeroes", Some(InjectOp::WriteZeroes)),
            ("compare", Some(InjectOp::Compare)),
            ("compare-and-write", Some(InjectOp::CompareAndWrite)),
            ("reset", Some(InjectOp::Reset)),
            ("verify", Some(InjectOp::Verify)),
            ("zone-append", Some(InjectOp::ZoneAppend)),
            ("zone-open", Some(InjectOp::ZoneOpen)),
            ("zone-close", Some(InjectOp::ZoneClose)),
            ("zone-finish", Some(InjectOp::ZoneFinish)),
            ("zone-reset", Some(InjectOp::ZoneReset)),
            ("zone-report", Some(InjectOp::ZoneReport)),
        ])
    });
    let action =
        table.require(ACTION).and_then(|value| value.choice(&[("fail", "fail"), ("delay", "delay"), ("hold", "hold")]));
    let trigger = read_trigger(table);
    let action = action?.value;
    for (key, belongs_to) in [(STATUS, "fail"), (DELAY_MS, "delay")] {
        if action != belongs_to
            && let Some(span) = table.key_span(key.name)
        {
            let message = format!("{} has no effect with action = \"{action}\"", key.name);
            messages.error(span, message, format!("remove it, or write action = \"{belongs_to}\""));
            return None;
        }
    }
    let action = match action {
        "fail" => {
            let words = [
                ("io-error", InjectStatus::IoError),
                ("media-error", InjectStatus::MediaError),
                ("no-space", InjectStatus::NoSpace),
                ("write-protected", InjectStatus::WriteProtected),
                ("aborted", InjectStatus::Aborted),
                ("gone", InjectStatus::Gone),
            ];
            let status = table
                .get(STATUS)
                .map_or(Some(InjectStatus::IoError), |value| value.choice(&words).map(|status| status.value));
            InjectAction::Fail(status?)
        }
        "delay" => {
            let delay = table.require(DELAY_MS)?.integer(1..=DELAY_MS_MAX)?;
            InjectAction::Delay { delay_ms: u32::try_from(delay.value).ok()? }
        }
        _ => InjectAction::Hold,
    };
    Some(InjectRule { op: op?.value, trigger: trigger?, action })
}

/// `None` after a message.
fn read_trigger(table: &Table<'_>) -> Option<Trigger> {
    let positive = 1..=u64::MAX;
    let count = match table.get(COUNT) {
        Some(value) => Some(value.integer(positive.clone())?.value),
        None => None,
    };
    match (table.get(NTH), table.get(EVERY)) {
        (Some(nth), None) => Some(Trigger::Nth { first: nth.integer(positive)?.value, count: count.unwrap_or(1) }),
        (None, Some(every)) => Some(Trigger::Every { every: every.integer(positive)?.value, count }),
        (Some(_), Some(every)) => {
            table.messages.error(&every.span, "a rule has nth or every, not both", "remove one of the two");
            None
        }
        (None, None) => {
            table.messages.error(
                &table.span,
                "a rule has neither nth nor every",
                "write nth = 10 for one I/O, or every = 5",
            );
            None
        }
    }
}

/// Puts bases before their layers and gives a layer the sizes of its base. `None` after a message.
fn resolve(
    list: Vec<Read>,
    names: &BTreeMap<String, Place>,
    messages: &Messages,
) -> Option<Vec<(BdevConfig, BdevSpans)>> {
    let mut waiting = list;
    let mut done: Vec<(BdevConfig, BdevSpans)> = Vec::with_capacity(waiting.len());
    let mut complete = true;
    waiting.retain(|read| {
        let Some(base) = read.config.driver.base().filter(|base| !names.contains_key(*base)) else {
            return true;
        };
        let (message, help) = unknown_bdev(base, names);
        messages.error(&read.base_span, message, help);
        complete = false;
        false
    });
    loop {
        let before = waiting.len();
        let mut left = Vec::new();
        for mut read in waiting {
            if let Some(base) = read.config.driver.base() {
                let Some((base, _)) = done.iter().find(|(config, _)| config.name == base) else {
                    left.push(read);
                    continue;
                };
                if layers_of(base, &done) == STACK_LAYERS_MAX {
                    let message =
                        format!("bdev \"{}\" has {STACK_LAYERS_MAX} layers already, the most there can be", base.name);
                    messages.error(&read.base_span, message, "write the name of a volume with fewer layers");
                    complete = false;
                }
                read.config.size = base.size;
                read.config.block_size = base.block_size;
                read.config.physical_block_size = base.physical_block_size;
            }
            done.push((read.config, read.spans));
        }
        waiting = left;
        if waiting.is_empty() {
            return Some(done).filter(|_| complete);
        }
        if waiting.len() == before {
            break;
        }
    }
    // What is left stands on a volume that was refused, or on itself.
    for read in &waiting {
        if stands_on_itself(read, &waiting) {
            let message = format!("bdev \"{}\" stands on itself", read.config.name);
            messages.error(&read.base_span, message, "write the name of a volume below it");
        }
    }
    None
}

/// How many layers a volume has, itself included: bases come before layers, so the search ends.
fn layers_of(bdev: &BdevConfig, done: &[(BdevConfig, BdevSpans)]) -> usize {
    bdev.driver
        .base()
        .and_then(|base| done.iter().find(|(below, _)| below.name == base))
        .map_or(0, |(below, _)| 1 + layers_of(below, done))
}

/// Whether following `base` from this layer comes back to it.
fn stands_on_itself(layer: &Read, layers: &[Read]) -> bool {
    let mut at = layer;
    for _ in 0..layers.len() {
        let Some(below) = layers.iter().find(|read| Some(read.config.name.as_str()) == at.config.driver.base()) else {
            return false;
        };
        if below.config.name == layer.config.name {
            return true;
        }
        at = below;
    }
    false
}

/// Message and remedy for a name that no `[[bdev]]` has.
pub(super) fn unknown_bdev(name: &str, names: &BTreeMap<String, Place>) -> (String, String) {
    let known: Vec<&str> = names.keys().map(String::as_str).collect();
    let help = match nearest(name, &known) {
        Some(near) => format!("write \"{near}\", or add a [[bdev]] of that name"),
        None if known.is_empty() => "add a [[bdev]] of that name".to_owned(),
        None => format!("add a [[bdev]] of that name; there is {}", all_of(&known)),
    };
    (format!("there is no bdev \"{name}\""), help)
}
