//! `[nvmf]`: addresses, subsystems and namespaces of the NVMe/TCP door.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::bdev::{Bdevs, unknown_bdev};
use super::model::{HostAccess, Listener, Namespace, NvmfConfig, Subsystem};
use super::reader::{At, Key, Messages, Table};
use super::source::Source;
use super::value::parse_address;
use crate::limits::NAMESPACES_MAX;
use crate::nvme::spec::{DISCOVERY_NQN, check_nqn};

/// The port of NVMe/TCP I/O controllers as IANA has it.
const PORT: u16 = 4420;

const LISTEN: Key = Key::new("listen", "write listen = [\"127.0.0.1:4420\"]");
const SUBSYSTEM: Key = Key::new("subsystem", "write [[nvmf.subsystem]] in double brackets, once for each");
const NQN: Key = Key::new("nqn", "write nqn = \"nqn.2026-11.io.reactor:vol0\"");
const HOSTS: Key = Key::new("hosts", "write hosts = [\"*\"]");
const NAMESPACES: Key = Key::new("namespaces", "write namespaces = [{ nsid = 1, bdev = \"ram0\" }]");
const NSID: Key = Key::new("nsid", "write nsid = 1");
const BDEV: Key = Key::new("bdev", "write bdev = \"ram0\"");
const READ_ONLY: Key = Key::new("read_only", "write read_only = true");

/// `Some(None)` without the table, `None` after a message.
pub(super) fn read(
    source: &Source,
    top: &Table<'_>,
    key: Key,
    bdevs: &Bdevs,
    warnings: &Messages,
) -> Option<Option<NvmfConfig>> {
    let Some(value) = top.get(key) else {
        return Some(None);
    };
    let table = value.table("[nvmf]")?;
    table.only(&[LISTEN, SUBSYSTEM]);
    let listen = read_listen(source, &table);
    let tables = table.get(SUBSYSTEM).map(|value| value.tables("[[nvmf.subsystem]]")).unwrap_or_default();
    let mut nqns = BTreeMap::new();
    let read: Vec<Option<Subsystem>> =
        tables.iter().map(|table| read_subsystem(source, table, bdevs, &mut nqns)).collect();
    let subsystems: Option<Vec<Subsystem>> = read.into_iter().collect();
    let (listen, subsystems) = (listen?, subsystems?);
    if let Some(open) = listen.iter().find(|listener| !listener.address.ip().is_loopback()) {
        for (subsystem, table) in subsystems.iter().zip(&tables) {
            if subsystem.hosts == HostAccess::Any {
                let span = table.place_of(NQN);
                let message = format!("every host that reaches {} may use \"{}\"", open.address, subsystem.nqn);
                let help =
                    "name the hosts, as hosts = [\"nqn.2014-08.org.nvmexpress:uuid:...\"], or listen on 127.0.0.1";
                warnings.warning(&span, message, help);
            }
        }
    }
    Some(Some(NvmfConfig { listen, subsystems }))
}

/// `None` after a message.
fn read_listen(source: &Source, table: &Table<'_>) -> Option<Vec<Listener>> {
    let value = table.require(LISTEN)?;
    let messages = table.messages;
    let entries = value.array()?;
    if entries.is_empty() {
        messages.error(&value.span, "listen is empty: no host could connect", "write listen = [\"127.0.0.1:4420\"]");
        return None;
    }
    let mut listen: Vec<Listener> = Vec::with_capacity(entries.len());
    let mut complete = true;
    for entry in entries {
        let address = entry.text().and_then(|text| messages.accept(&text.span, parse_address(text.value, PORT)));
        let Some(address) = address.map(|value| At { value, span: entry.span.clone() }) else {
            complete = false;
            continue;
        };
        if refuse_overlap(&address, messages, listen.iter().map(|other| other.address)) {
            complete = false;
            continue;
        }
        listen.push(Listener { address: address.value, place: source.place(entry.span.start) });
    }
    complete.then_some(listen)
}

/// Whether there is a message that an address cannot be had beside one of `others`, which were there before.
pub(super) fn refuse_overlap(
    given: &At<SocketAddr>,
    messages: &Messages,
    mut others: impl Iterator<Item = SocketAddr>,
) -> bool {
    let address = given.value;
    let Some(other) = others.find(|other| overlap(*other, address)) else {
        return false;
    };
    let message = if other == address {
        format!("{address} is here for the second time")
    } else {
        format!("{address} and {other} cannot both be had: one covers the other")
    };
    messages.error(&given.span, message, "remove one of the two, or write another port");
    true
}

/// Whether one of two listeners takes what the other would listen on.
pub(super) fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    covers(a, b) || covers(b, a)
}

/// Whether a listener on `a` takes what `b` would listen on. Port 0 is another port each time.
fn covers(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() != 0 && a.port() == b.port() && a.is_ipv4() == b.is_ipv4() && (a.ip().is_unspecified() || a == b)
}

/// `None` after a message.
fn read_subsystem(
    source: &Source,
    table: &Table<'_>,
    bdevs: &Bdevs,
    nqns: &mut BTreeMap<String, u32>,
) -> Option<Subsystem> {
    let messages = table.messages;
    table.only(&[NQN, HOSTS, NAMESPACES]);
    let nqn = table.require(NQN).and_then(|value| value.text()).and_then(|nqn| {
        if nqn.value == DISCOVERY_NQN {
            let message = "this is the NQN of the discovery service, which every listener has";
            messages.error(&nqn.span, message, "write nqn = \"nqn.2026-11.io.reactor:vol0\"");
            return None;
        }
        messages.accept(&nqn.span, check_nqn(nqn.value))?;
        if let Some(line) = nqns.insert(nqn.value.to_owned(), source.place(nqn.span.start).line) {
            let message = format!("subsystem \"{}\" is here for the second time, after line {line}", nqn.value);
            messages.error(&nqn.span, message, "write another NQN, or put all namespaces into one subsystem");
            return None;
        }
        Some(nqn)
    });
    let hosts = read_hosts(table);
    let namespaces = read_namespaces(source, table, bdevs);
    let nqn = nqn?;
    let place = source.place(nqn.span.start);
    Some(Subsystem { nqn: nqn.value.to_owned(), hosts: hosts?, namespaces: namespaces?, place })
}

/// `None` after a message.
fn read_hosts(table: &Table<'_>) -> Option<HostAccess> {
    let Some(value) = table.get(HOSTS) else {
        return Some(HostAccess::Any);
    };
    let messages = table.messages;
    let entries = value.array()?;
    if entries.is_empty() {
        let help = "write hosts = [\"*\"] to admit every host, or host NQNs";
        messages.error(&value.span, "hosts is empty: no host could connect", help);
        return None;
    }
    let mut hosts: Vec<String> = Vec::with_capacity(entries.len());
    for entry in &entries {
        let host = entry.text()?;
        if host.value == "*" {
            if entries.len() == 1 {
                return Some(HostAccess::Any);
            }
            let help = "remove \"*\", or write hosts = [\"*\"] alone";
            messages.error(&host.span, "\"*\" admits every host, so the other entries have no effect", help);
            return None;
        }
        messages.accept(&host.span, check_nqn(host.value))?;
        if hosts.iter().any(|other| other == host.value) {
            messages.error(&host.span, "this host is here for the second time", "remove one of the two");
            return None;
        }
        hosts.push(host.value.to_owned());
    }
    hosts.sort_unstable();
    Some(HostAccess::Only(hosts))
}

/// `None` after a message.
fn read_namespaces(source: &Source, table: &Table<'_>, bdevs: &Bdevs) -> Option<Vec<Namespace>> {
    let Some(value) = table.get(NAMESPACES) else {
        return Some(Vec::new());
    };
    let messages = table.messages;
    let entries = value.array()?;
    if let Some(first_beyond) = entries.get(NAMESPACES_MAX as usize) {
        let message = format!("a subsystem has at most {NAMESPACES_MAX} namespaces, this one has {}", entries.len());
        messages.error(&first_beyond.span, message, "put the rest into another [[nvmf.subsystem]]");
        return None;
    }
    let mut namespaces: Vec<Namespace> = Vec::with_capacity(entries.len());
    let mut complete = true;
    for (entry, default_nsid) in entries.iter().zip(1_u32..) {
        let namespace =
            entry.table("a namespace").and_then(|table| read_namespace(source, &table, default_nsid, bdevs));
        let Some(namespace) = namespace else {
            complete = false;
            continue;
        };
        if namespaces.iter().any(|other| other.nsid == namespace.nsid) {
            let message = format!("namespace {} is here for the second time", namespace.nsid);
            let help = "write another nsid; without one, a namespace has its position in the list, from 1";
            messages.error(&entry.span, message, help);
            complete = false;
        } else if let Some(other) = namespaces.iter().find(|other| other.bdev == namespace.bdev) {
            let message = format!("bdev \"{}\" is namespace {} of this subsystem already", other.bdev, other.nsid);
            let help = "remove one of the two: two namespaces of one subsystem cannot have one identity";
            messages.error(&entry.span, message, help);
            complete = false;
        } else {
            namespaces.push(namespace);
        }
    }
    namespaces.sort_by_key(|namespace| namespace.nsid);
    complete.then_some(namespaces)
}

/// `None` after a message.
fn read_namespace(source: &Source, table: &Table<'_>, default_nsid: u32, bdevs: &Bdevs) -> Option<Namespace> {
    table.only(&[NSID, BDEV, READ_ONLY]);
    let nsid = table.get(NSID).map_or(Some(default_nsid), |value| {
        value.integer(1..=u64::from(NAMESPACES_MAX)).and_then(|nsid| u32::try_from(nsid.value).ok())
    });
    let read_only = table.get(READ_ONLY).map_or(Some(false), |value| value.boolean().map(|value| value.value));
    let bdev = table.require(BDEV)?.text()?;
    if !bdevs.names.contains_key(bdev.value) {
        let (message, help) = unknown_bdev(bdev.value, &bdevs.names);
        table.messages.error(&bdev.span, message, help);
        return None;
    }
    let place = source.place(table.span.start);
    Some(Namespace { nsid: nsid?, bdev: bdev.value.to_owned(), read_only: read_only?, place })
}
