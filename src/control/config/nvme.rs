//! `[[bdev]]` with `driver = "nvme"`: a namespace of a disk.

use std::collections::BTreeMap;
use std::time::Duration;

use super::model::BdevConfig;
use super::reader::{Key, Table};
use super::value::parse_time;
use crate::bdev::device::nvme::{InterruptCoalescing, Mode, Tuning, Wanted, Which};
use crate::limits::{NVME_DEPTH, NVME_DEPTH_MAX, NVME_TIMEOUT_S, NVME_TIMEOUT_S_MAX};
use crate::sys::pci::Address;

const PCI: Key = Key::new("pci", "write pci = \"0000:01:00.0\", as lspci -D shows it");
const SERIAL: Key = Key::new("serial", "write serial = \"S4EWNX0R123456\"");
const NSID: Key = Key::new("nsid", "write nsid = 1");
const MODE: Key = Key::new("mode", "write mode = \"auto\", mode = \"vfio\" or mode = \"kernel\"");
const DEPTH: Key = Key::new("depth", "write depth = 256");
const TIMEOUT: Key = Key::new("timeout", "write timeout = \"30s\"");
const CMB: Key = Key::new("cmb", "write cmb = true or cmb = false");
const COALESCE: Key = Key::new("coalesce", "write coalesce = 8");
const COALESCE_US: Key = Key::new("coalesce_us", "write coalesce_us = 100");

/// Completions for an interrupt, and the unit of time of interrupt coalescing in microseconds (NVMe Base 2.0, section 5.27.1.6).
const COALESCE_MAX: u64 = 256;
const COALESCE_UNIT_US: u64 = 100;
/// Bytes of a serial number in Identify Controller (NVMe Base 2.0, figure 275).
const SERIAL_LEN_MAX: usize = 20;
/// FFFFFFFFh stands for all namespaces, FFFFFFFEh is no namespace (NVMe Base 2.0, section 3.2.1.2).
const NSID_MAX: u64 = 0xFFFF_FFFD;

/// Its keys, after those of other drivers: `first` and `last`.
pub(super) fn keys(first: &[Key], last: &[Key]) -> Vec<Key> {
    [first, &[PCI, SERIAL, NSID, MODE, DEPTH, TIMEOUT, CMB, COALESCE, COALESCE_US], last].concat()
}

/// `None` after a message.
pub(super) fn read(table: &Table<'_>, size: Key, block_size: Key) -> Option<Wanted> {
    let disk = read_disk(table);
    let integer = |key, range, default| table.get(key).map_or(Some(default), |value| Some(value.integer(range)?.value));
    let nsid = integer(NSID, 1..=NSID_MAX, 0);
    let mode = read_mode(table);
    let tuning = read_tuning(table);
    let size = table.get(size).map_or(Some(None), |value| Some(Some(value.size()?.value)));
    let block_size = match table.get(block_size) {
        Some(value) => value.integer(1..=u64::from(u32::MAX)).and_then(|block_size| {
            let fits = block_size.value == 512 || block_size.value == 4096;
            if !fits {
                let message = format!("block_size cannot be {}", block_size.value);
                table.messages.error(&block_size.span, message, "write block_size = 512 or block_size = 4096");
            }
            fits.then_some(Some(block_size.value as u32))
        }),
        None => Some(None),
    };
    let nsid = Some(nsid? as u32).filter(|nsid| *nsid != 0);
    Some(Wanted { disk: disk?, nsid, mode: mode?, tuning: tuning?, size: size?, block_size: block_size? })
}

/// `None` after a message.
fn read_tuning(table: &Table<'_>) -> Option<Tuning> {
    let depth = match table.get(DEPTH) {
        Some(value) => value.integer(2..=u64::from(NVME_DEPTH_MAX)).map(|depth| depth.value as u16),
        None => Some(NVME_DEPTH),
    };
    let timeout = read_timeout(table);
    let cmb = table.get(CMB).map_or(Some(false), |value| Some(value.boolean()?.value));
    let coalescing = read_coalescing(table);
    Some(Tuning { depth: depth?, timeout: timeout?, cmb: cmb?, coalescing: coalescing? })
}

/// `None` after a message.
fn read_coalescing(table: &Table<'_>) -> Option<Option<InterruptCoalescing>> {
    let (completions, micros) = match (table.get(COALESCE), table.get(COALESCE_US)) {
        (None, None) => return Some(None),
        (Some(completions), Some(micros)) => (completions, micros),
        (Some(_), None) | (None, Some(_)) => {
            let (has, lacks) =
                if table.get(COALESCE).is_some() { (COALESCE, COALESCE_US) } else { (COALESCE_US, COALESCE) };
            let message = format!("{} is nothing without {}", has.name, lacks.name);
            table.messages.error(&table.place_of(has), message, lacks.help);
            return None;
        }
    };
    let completions = completions.integer(1..=COALESCE_MAX);
    let micros = micros.integer(COALESCE_UNIT_US..=COALESCE_UNIT_US * u64::from(u8::MAX))?;
    if !micros.value.is_multiple_of(COALESCE_UNIT_US) {
        let message = format!("{} cannot be {}", COALESCE_US.name, micros.value);
        table.messages.error(&micros.span, message, format!("write a multiple of {COALESCE_UNIT_US}"));
        return None;
    }
    let time = (micros.value / COALESCE_UNIT_US) as u8;
    Some(Some(InterruptCoalescing::new(completions?.value as u16, time)))
}

/// `None` after a message.
fn read_disk(table: &Table<'_>) -> Option<Which> {
    let error = |span, message: String, help: &str| {
        table.messages.error(span, message, help);
        None
    };
    match (table.get(PCI), table.get(SERIAL)) {
        (Some(pci), None) => {
            let text = pci.text()?;
            match text.value.parse::<Address>() {
                Ok(address) => Some(Which::Pci(address)),
                Err(_) => {
                    error(&text.span, format!("\"{}\" is not the address of a PCI function", text.value), PCI.help)
                }
            }
        }
        (None, Some(serial)) => {
            let text = serial.text()?;
            let serial = text.value.trim();
            if serial.is_empty() || serial.len() > SERIAL_LEN_MAX || !serial.bytes().all(|b| (b' '..=b'~').contains(&b))
            {
                let help = format!("write what nvme list shows: at most {SERIAL_LEN_MAX} characters of ASCII");
                return error(&text.span, format!("\"{}\" is not a serial number", text.value), &help);
            }
            Some(Which::Serial(serial.to_owned()))
        }
        (Some(_), Some(serial)) => {
            error(&serial.span, "an NVMe disk has pci or serial, not both".to_owned(), "remove one of the two")
        }
        (None, None) => error(&table.span, "[[bdev]] has neither pci nor serial".to_owned(), PCI.help),
    }
}

/// `None` after a message.
fn read_mode(table: &Table<'_>) -> Option<Mode> {
    let Some(value) = table.get(MODE) else {
        return Some(Mode::Auto);
    };
    let text = value.text()?;
    let mode = [Mode::Auto, Mode::Vfio, Mode::Kernel].into_iter().find(|mode| mode.to_string() == text.value);
    if mode.is_none() {
        table.messages.error(&text.span, format!("mode cannot be \"{}\"", text.value), MODE.help);
    }
    mode
}

/// `None` after a message.
fn read_timeout(table: &Table<'_>) -> Option<Duration> {
    let Some(value) = table.get(TIMEOUT) else {
        return Some(Duration::from_secs(NVME_TIMEOUT_S));
    };
    let text = value.text()?;
    let time = table.messages.accept(&text.span, parse_time(text.value))?;
    if !(1..=NVME_TIMEOUT_S_MAX).contains(&time.as_secs()) {
        let message = format!("timeout must be from 1s to {}min, not {}", NVME_TIMEOUT_S_MAX / 60, text.value);
        table.messages.error(&text.span, message, TIMEOUT.help);
        return None;
    }
    Some(time)
}

/// The volumes of NVMe disks that were read, to compare others with. That two names are of one disk is seen when they are opened.
#[derive(Default)]
pub(super) struct Namespaces(BTreeMap<Which, Vec<(Wanted, String, u32)>>);

impl Namespaces {
    /// False after a message: it is there already, or wants the disk otherwise.
    pub(super) fn add(&mut self, wanted: &Wanted, bdev: &BdevConfig, table: &Table<'_>) -> bool {
        let others = self.0.entry(wanted.disk.clone()).or_default();
        let span = table.place_of(if matches!(wanted.disk, Which::Pci(_)) { PCI } else { SERIAL });
        let mut good = true;
        if let Some((_, other, line)) = others.iter().find(|(other, ..)| other.nsid == wanted.nsid) {
            let message = format!("bdev \"{other}\" of line {line} is this namespace already");
            table.messages.error(&span, message, "write another nsid, or export that volume again");
            good = false;
        }
        if let Some((first, other, line)) = others.first() {
            for (differs, key) in [
                (first.mode != wanted.mode, MODE),
                (first.tuning.depth != wanted.tuning.depth, DEPTH),
                (first.tuning.timeout != wanted.tuning.timeout, TIMEOUT),
                (first.tuning.cmb != wanted.tuning.cmb, CMB),
                (first.tuning.coalescing != wanted.tuning.coalescing, COALESCE),
            ] {
                if differs {
                    let message =
                        format!("bdev \"{other}\" of line {line} is on this disk too, with another {}", key.name);
                    table.messages.error(&table.place_of(key), message, "write the same for all volumes of a disk");
                    good = false;
                }
            }
        }
        others.push((wanted.clone(), bdev.name.clone(), bdev.place.line));
        good
    }
}
