//! `[[ublk]]`: volumes as local block devices.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::bdev::{Bdevs, unknown_bdev};
use super::model::{UblkConfig, UblkMode};
use super::reader::{Key, Table};
use super::source::Source;
use crate::limits::{UBLK_DEPTH, UBLK_DEPTH_MAX, UBLK_IDS, UBLK_QUEUES_MAX};

const BDEV: Key = Key::new("bdev", "write bdev = \"ram0\"");
const ID: Key = Key::new("id", "write id = 0 for /dev/ublkb0, or leave it out for a free one");
const QUEUES: Key = Key::new("queues", "write queues = 2, or leave it out for one per reactor");
const DEPTH: Key = Key::new("depth", "write depth = 256");
const MODE: Key = Key::new("mode", "write mode = \"auto\"");
const RECOVER: Key = Key::new("recover", "write recover = true");
const REQUIRED: Key = Key::new("required", "write required = true");
const READ_ONLY: Key = Key::new("read_only", "write read_only = true");

/// What has to differ from table to table, each with the line where it was given first.
#[derive(Default)]
struct Given {
    bdevs: BTreeMap<String, u32>,
    ids: BTreeMap<u32, u32>,
}

/// Reads every `[[ublk]]`; a device whose `queues` are not given has one for each of `reactors`. `None` after a message.
pub(super) fn read(
    source: &Source,
    top: &Table<'_>,
    key: Key,
    bdevs: &Bdevs,
    reactors: usize,
) -> Option<Vec<UblkConfig>> {
    let tables = top.get(key).map(|value| value.tables("[[ublk]]")).unwrap_or_default();
    let mut given = Given::default();
    // All of them are read before the first refusal counts.
    let read: Vec<Option<UblkConfig>> =
        tables.iter().map(|table| read_one(source, table, bdevs, reactors, &mut given)).collect();
    read.into_iter().collect()
}

/// `None` after a message.
fn read_one(
    source: &Source,
    table: &Table<'_>,
    bdevs: &Bdevs,
    reactors: usize,
    given: &mut Given,
) -> Option<UblkConfig> {
    table.only(&[BDEV, ID, QUEUES, DEPTH, MODE, RECOVER, REQUIRED, READ_ONLY]);
    let modes = [
        ("auto", UblkMode::Auto),
        ("zero-copy", UblkMode::ZeroCopy),
        ("user-copy", UblkMode::UserCopy),
        ("copy", UblkMode::Copy),
    ];
    let count = |key: Key, max: u16, default: Option<u16>| match table.get(key) {
        Some(value) => value.integer(1..=u64::from(max)).and_then(|count| u16::try_from(count.value).ok()),
        None => default,
    };
    let flag =
        |key: Key, default: bool| table.get(key).map_or(Some(default), |value| value.boolean().map(|flag| flag.value));
    let bdev = read_bdev(source, table, bdevs, &mut given.bdevs);
    let id = read_id(source, table, &mut given.ids);
    let queues = count(QUEUES, UBLK_QUEUES_MAX, u16::try_from(reactors).ok());
    let depth = count(DEPTH, UBLK_DEPTH_MAX, Some(UBLK_DEPTH));
    let mode = table.get(MODE).map_or(Some(UblkMode::Auto), |value| value.choice(&modes).map(|mode| mode.value));
    let (recover, required, read_only) = (flag(RECOVER, true), flag(REQUIRED, false), flag(READ_ONLY, false));
    Some(UblkConfig {
        bdev: bdev?,
        id: id?,
        queues: queues?,
        depth: depth?,
        mode: mode?,
        recover: recover?,
        required: required?,
        read_only: read_only?,
        place: source.place(table.span.start),
    })
}

/// `None` after a message.
fn read_bdev(source: &Source, table: &Table<'_>, bdevs: &Bdevs, given: &mut BTreeMap<String, u32>) -> Option<String> {
    let messages = table.messages;
    let bdev = table.require(BDEV)?.text()?;
    if !bdevs.names.contains_key(bdev.value) {
        let (message, help) = unknown_bdev(bdev.value, &bdevs.names);
        messages.error(&bdev.span, message, help);
        return None;
    }
    if let Some(line) = first_line(given, bdev.value.to_owned(), source.place(bdev.span.start).line) {
        let message = format!("bdev \"{}\" has a [[ublk]] already, in line {line}", bdev.value);
        let help = format!("remove one of the two: there is one /dev/disk/by-id/reactor-{}", bdev.value);
        messages.error(&bdev.span, message, help);
        return None;
    }
    Some(bdev.value.to_owned())
}

/// `Some(None)` where the kernel is to choose, `None` after a message.
fn read_id(source: &Source, table: &Table<'_>, given: &mut BTreeMap<u32, u32>) -> Option<Option<u32>> {
    let Some(value) = table.get(ID) else {
        return Some(None);
    };
    let id = value.integer(0..=u64::from(UBLK_IDS - 1))?;
    let number = u32::try_from(id.value).ok()?;
    if let Some(line) = first_line(given, number, source.place(id.span.start).line) {
        let message = format!("/dev/ublkb{number} is here for the second time, after line {line}");
        table.messages.error(&id.span, message, "write another id, or leave it out for a free one");
        return None;
    }
    Some(Some(number))
}

/// The line where `key` was given first; notes `line` and gives `None` where that is here.
fn first_line<K: Ord>(given: &mut BTreeMap<K, u32>, key: K, line: u32) -> Option<u32> {
    match given.entry(key) {
        Entry::Occupied(first) => Some(*first.get()),
        Entry::Vacant(free) => {
            free.insert(line);
            None
        }
    }
}
