//! `[iscsi]`: portals, targets and logical units of the iSCSI door.

mod diff;
mod secret;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;

pub(super) use self::diff::settle_iscsi;
pub use self::diff::{IscsiChange, IscsiSteps, TargetKey};
pub(super) use self::secret::probe;
use super::bdev::{Bdevs, unknown_bdev};
use super::model::{Chap, IscsiConfig, IscsiPortal, IscsiTarget, Listener, Lun, MutualChap};
use super::nvmf::{overlap, refuse_overlap};
use super::reader::{At, Key, Messages, Table, Value};
use super::source::{Source, Span};
use super::value::parse_address;
use crate::iscsi::{AllowedInitiators, ChapAlgorithm, DigestPolicy, NAME_MAX, Redirect, is_name};
use crate::limits::ISCSI_LUNS_MAX;
use crate::util::{Bad, bad};

/// The port of iSCSI targets as IANA has it.
const PORT: u16 = 3260;
/// Most portals: more than a machine has addresses in use. SendTargets names each of them for each target.
const PORTALS_MAX: usize = 64;
/// Highest logical unit number.
const LUN_MAX: u16 = ISCSI_LUNS_MAX - 1;
/// Tag of a portal whose own is not given.
const TPGT: u16 = 1;
/// Bytes of a text value of a login (RFC 7143 §6.1).
const TEXT_MAX: usize = 255;
/// Directory of reservations, where it is not given.
const STATE_DIRECTORY: &str = "iscsi-state";

const LISTEN: Key = Key::new("listen", "write listen = [\"127.0.0.1:3260\"]");
const PORTALS: Key = Key::new("portals", "write portals = [{ listen = \"10.0.0.1:3260\", tpgt = 1 }]");
const STATE: Key = Key::new("state", "write state = \"iscsi-state\"");
const DISCOVERY_CHAP: Key =
    Key::new("discovery_chap", "write discovery_chap = { user = \"alice\", secret_file = \"/etc/reactor/chap\" }");
const TARGET: Key = Key::new("target", "write [[iscsi.target]] in double brackets, once for each");
/// Of an entry of `portals`.
const PORTAL_LISTEN: Key = Key::new("listen", "write listen = \"10.0.0.1:3260\"");
const TPGT_KEY: Key = Key::new("tpgt", "write tpgt = 1");
const ADVERTISE: Key = Key::new("advertise", "write advertise = \"203.0.113.9:3260\"");
const IQN: Key = Key::new("iqn", "write iqn = \"iqn.2026-11.io.reactor:vol0\"");
const ALIAS: Key = Key::new("alias", "write alias = \"database\"");
const LUNS: Key = Key::new("luns", "write luns = [{ lun = 0, bdev = \"disk0\" }]");
const CHAP: Key = Key::new("chap", "write chap = { user = \"alice\", secret_file = \"/etc/reactor/chap\" }");
const INITIATORS: Key = Key::new("initiators", "write initiators = [\"iqn.1993-08.org.debian:01:host\"]");
const HEADER_DIGEST: Key = Key::new("header_digest", "write header_digest = \"offer\"");
const DATA_DIGEST: Key = Key::new("data_digest", "write data_digest = \"offer\"");
/// Of a target.
const TAGS: Key = Key::new("portals", "write portals = [1], the tpgt of each group");
const REDIRECT: Key = Key::new("redirect", "write redirect = { address = \"10.0.0.2:3260\", permanent = false }");
const ADDRESS: Key = Key::new("address", "write address = \"10.0.0.2:3260\"");
const PERMANENT: Key = Key::new("permanent", "write permanent = true");
const LUN: Key = Key::new("lun", "write lun = 0");
const BDEV: Key = Key::new("bdev", "write bdev = \"disk0\"");
const READ_ONLY: Key = Key::new("read_only", "write read_only = true");
const USER: Key = Key::new("user", "write user = \"alice\"");
const SECRET_FILE: Key = Key::new("secret_file", "write secret_file = \"/etc/reactor/chap\"");
const ALGORITHMS: Key = Key::new("algorithms", "write algorithms = [\"sha256\", \"md5\"]");
const MUTUAL_USER: Key = Key::new("mutual_user", "write mutual_user = \"target\"");
const MUTUAL_SECRET_FILE: Key =
    Key::new("mutual_secret_file", "write mutual_secret_file = \"/etc/reactor/mutual-chap\"");

/// A path as it stands in the file.
#[derive(Clone, Debug)]
struct GivenPath {
    span: Span,
    text: String,
}

/// Places of a [`Chap`] that the probe points at.
#[derive(Clone, Debug)]
struct ChapSpans {
    secret_file: GivenPath,
    mutual_secret_file: Option<GivenPath>,
}

/// Places of `[iscsi]` that the probe points at.
#[derive(Clone, Debug)]
pub(super) struct IscsiSpans {
    /// `[iscsi]`.
    table: Span,
    state: Option<GivenPath>,
    discovery_chap: Option<ChapSpans>,
    /// Of each target.
    chap: Vec<Option<ChapSpans>>,
}

/// `Some(None)` without the table, `None` after a message. `taken` is what other doors listen on.
pub(super) fn read(
    source: &Source,
    top: &Table<'_>,
    key: Key,
    bdevs: &Bdevs,
    taken: &[Listener],
    warnings: &Messages,
) -> Option<Option<(IscsiConfig, IscsiSpans)>> {
    let Some(value) = top.get(key) else {
        return Some(None);
    };
    let table = value.table("[iscsi]")?;
    table.only(&[LISTEN, PORTALS, STATE, DISCOVERY_CHAP, TARGET]);
    // All of it is read before the first refusal counts.
    let portals = read_portals(source, &table, taken);
    let state = optional(&table, STATE, |value| read_path(source, &value, "directory"));
    let discovery_chap = optional(&table, DISCOVERY_CHAP, |value| read_chap(source, &value));
    let tables = table.get(TARGET).map(|value| value.tables("[[iscsi.target]]")).unwrap_or_default();
    let mut context = Context { source, bdevs, groups: portals.as_deref().map(groups_of), names: BTreeMap::new() };
    let read: Vec<Option<(IscsiTarget, Option<ChapSpans>)>> =
        tables.iter().map(|table| context.read_target(table)).collect();
    let read: Option<Vec<_>> = read.into_iter().collect();
    let (portals, state, discovery_chap, read) = (portals?, state?, discovery_chap?, read?);
    let (targets, chap): (Vec<IscsiTarget>, _) = read.into_iter().unzip();
    let (state, state_span) = match state {
        Some((path, given)) => (path, Some(given)),
        None => (absolute(source, STATE_DIRECTORY), None),
    };
    let (discovery_chap, discovery_spans) = discovery_chap.unzip();
    let config = IscsiConfig { portals, state, discovery_chap, targets };
    warn_of_strangers(&config, &tables, warnings);
    let spans = IscsiSpans { table: table.span.clone(), state: state_span, discovery_chap: discovery_spans, chap };
    Some(Some((config, spans)))
}

/// What an optional key has: `Some(None)` without it, `None` after a message.
fn optional<'a, T>(table: &Table<'a>, key: Key, read: impl FnOnce(Value<'a>) -> Option<T>) -> Option<Option<T>> {
    match table.get(key) {
        Some(value) => read(value).map(Some),
        None => Some(None),
    }
}

/// A target without any check of initiators, on the network, is for everybody.
fn warn_of_strangers(config: &IscsiConfig, tables: &[Table<'_>], warnings: &Messages) {
    for (target, table) in config.targets.iter().zip(tables) {
        let open = config.portals_of(target).find(|(_, portal)| !portal.listen.ip().is_loopback());
        if let (Some((_, open)), None, AllowedInitiators::Any) = (open, &target.chap, &target.initiators) {
            let message = format!("every initiator that reaches {} may use \"{}\"", open.listen, target.iqn);
            let help =
                "write chap = { user = \"...\", secret_file = \"...\" }, name the initiators, or listen on 127.0.0.1";
            warnings.warning(&table.place_of(IQN), message, help);
        }
    }
}

fn groups_of(portals: &[IscsiPortal]) -> BTreeSet<u16> {
    portals.iter().map(|portal| portal.tpgt).collect()
}

/// From `listen` or `portals`; `None` after a message.
fn read_portals(source: &Source, table: &Table<'_>, taken: &[Listener]) -> Option<Vec<IscsiPortal>> {
    let messages = table.messages;
    let (value, tables) = match (table.get(LISTEN), table.get(PORTALS)) {
        (Some(_), Some(portals)) => {
            let span = table.key_span(PORTALS.name).unwrap_or(&portals.span);
            let help = "remove listen, and write each of its addresses as { listen = \"...\" } in portals";
            messages.error(span, "[iscsi] has listen or portals, not both", help);
            return None;
        }
        (None, Some(portals)) => (portals, true),
        (_, None) => (table.require(LISTEN)?, false),
    };
    let entries = value.array()?;
    let name = if tables { PORTALS } else { LISTEN };
    if entries.is_empty() {
        messages.error(&value.span, format!("{} is empty: no initiator could connect", name.name), name.help);
        return None;
    }
    if let Some(first_beyond) = entries.get(PORTALS_MAX) {
        let message = format!("there are at most {PORTALS_MAX} portals, not {}", entries.len());
        messages.error(&first_beyond.span, message, "listen on \"0.0.0.0:3260\" or \"[::]:3260\" for all addresses");
        return None;
    }
    let mut portals: Vec<IscsiPortal> = Vec::with_capacity(entries.len());
    let mut complete = true;
    for entry in &entries {
        let read = if tables { read_portal(entry) } else { read_address(entry).map(|at| (at, TPGT, None)) };
        let Some((listen, tpgt, advertise)) = read else {
            complete = false;
            continue;
        };
        if let Some(other) = taken.iter().find(|other| overlap(other.address, listen.value)) {
            let message = format!(
                "{} cannot be had: NVMe/TCP listens on {}, in line {}",
                listen.value, other.address, other.place.line
            );
            messages.error(&listen.span, message, "write another port");
            complete = false;
        } else if refuse_overlap(&listen, messages, portals.iter().map(|other| other.listen)) {
            complete = false;
        } else {
            let place = source.place(entry.span.start);
            portals.push(IscsiPortal { listen: listen.value, tpgt, advertise, place });
        }
    }
    complete.then_some(portals)
}

/// `None` after a message.
fn read_address(value: &Value<'_>) -> Option<At<SocketAddr>> {
    let text = value.text()?;
    let address = value.messages.accept(&text.span, parse_address(text.value, PORT))?;
    Some(At { value: address, span: text.span })
}

/// An entry of `portals`; `None` after a message.
fn read_portal(value: &Value<'_>) -> Option<(At<SocketAddr>, u16, Option<SocketAddr>)> {
    let table = value.table("a portal")?;
    table.only(&[PORTAL_LISTEN, TPGT_KEY, ADVERTISE]);
    let tpgt = table.get(TPGT_KEY).map_or(Some(TPGT), |value| read_tag(&value));
    let advertise = optional(&table, ADVERTISE, |value| read_peer_address(&value));
    let listen = table.require(PORTAL_LISTEN).and_then(|value| read_address(&value));
    Some((listen?, tpgt?, advertise?))
}

/// A target portal group tag; `None` after a message.
fn read_tag(value: &Value<'_>) -> Option<u16> {
    value.integer(1..=u64::from(u16::MAX)).and_then(|tag| u16::try_from(tag.value).ok())
}

/// An address that initiators are to connect to; `None` after a message.
fn read_peer_address(value: &Value<'_>) -> Option<SocketAddr> {
    let address = read_address(value)?;
    if address.value.port() == 0 || address.value.ip().is_unspecified() {
        let message = format!("nobody can connect to {}", address.value);
        let help = "write the address and the port that initiators reach, such as \"203.0.113.9:3260\"";
        value.messages.error(&address.span, message, help);
        return None;
    }
    Some(address.value)
}

/// An absolute path of what is called a `noun`, and how it stands in the file; `None` after a message.
fn read_path(source: &Source, value: &Value<'_>, noun: &str) -> Option<(PathBuf, GivenPath)> {
    let text = value.text()?;
    if text.value.is_empty() || text.value.contains('\0') || (noun == "file" && text.value.ends_with('/')) {
        value.messages.error(&text.span, format!("\"{}\" names no {noun}", text.value), value.help());
        return None;
    }
    Some((absolute(source, text.value), GivenPath { span: text.span, text: text.value.to_owned() }))
}

fn absolute(source: &Source, path: &str) -> PathBuf {
    let path = source.resolve(path);
    std::path::absolute(&path).unwrap_or(path)
}

/// A text that a login or an initiator shows: 1 to 255 bytes without control characters. `None` after a message.
fn read_line(value: &Value<'_>) -> Option<String> {
    let text = value.text()?;
    if text.value.is_empty() || text.value.len() > TEXT_MAX || text.value.contains(char::is_control) {
        let message = format!("{} has 1 to {TEXT_MAX} bytes and no control character", value.name());
        value.messages.error(&text.span, message, value.help());
        return None;
    }
    Some(text.value.to_owned())
}

/// `chap` or `discovery_chap`; `None` after a message.
fn read_chap(source: &Source, value: &Value<'_>) -> Option<(Chap, ChapSpans)> {
    let table = value.table(value.name())?;
    table.only(&[USER, SECRET_FILE, ALGORITHMS, MUTUAL_USER, MUTUAL_SECRET_FILE]);
    let user = table.require(USER).and_then(|value| read_line(&value));
    let secret_file = table.require(SECRET_FILE).and_then(|value| read_path(source, &value, "file"));
    let all = || Some(BTreeSet::from([ChapAlgorithm::Md5, ChapAlgorithm::Sha256]));
    let algorithms = table.get(ALGORITHMS).map_or_else(all, |value| read_algorithms(&value));
    let mutual_user = optional(&table, MUTUAL_USER, |value| read_line(&value));
    let mutual_secret_file = optional(&table, MUTUAL_SECRET_FILE, |value| read_path(source, &value, "file"));
    for (key, other) in [(MUTUAL_USER, MUTUAL_SECRET_FILE), (MUTUAL_SECRET_FILE, MUTUAL_USER)] {
        if let (Some(span), None) = (table.key_span(key.name), table.key_span(other.name)) {
            let message = format!("{} has no effect without {}", key.name, other.name);
            table.messages.error(span, message, format!("{}, or remove {}", other.help, key.name));
            return None;
        }
    }
    let (mutual, mutual_secret_file) = match (mutual_user?, mutual_secret_file?) {
        (Some(user), Some((secret_file, given))) => (Some(MutualChap { user, secret_file }), Some(given)),
        _ => (None, None),
    };
    let (secret_file, given) = secret_file?;
    let chap = Chap { user: user?, secret_file, mutual, algorithms: algorithms?, proof: None };
    Some((chap, ChapSpans { secret_file: given, mutual_secret_file }))
}

/// `None` after a message.
fn read_algorithms(value: &Value<'_>) -> Option<BTreeSet<ChapAlgorithm>> {
    let entries = value.array()?;
    if entries.is_empty() {
        value.messages.error(&value.span, "algorithms is empty: nobody could log in", value.help());
        return None;
    }
    let mut algorithms = BTreeSet::new();
    for entry in entries {
        let one = entry.choice(&[("sha256", ChapAlgorithm::Sha256), ("md5", ChapAlgorithm::Md5)])?;
        if !algorithms.insert(one.value) {
            value.messages.error(&one.span, "this algorithm is here for the second time", "remove one of the two");
            return None;
        }
    }
    Some(algorithms)
}

/// Whether a text has one of the forms of iSCSI names (RFC 7143 §4.2.7.2): `iqn.`, a month, a reversed domain and what its owner adds;
/// `eui.` with 16 hexadecimal digits; `naa.` with 16 or 32.
fn has_form(name: &str) -> bool {
    let hexadecimal = |digits: &str, lengths: &[usize]| {
        lengths.contains(&digits.len()) && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    };
    if let Some(rest) = name.strip_prefix("iqn.") {
        let Some((month, owner)) = rest.split_once('.') else {
            return false;
        };
        let domain = owner.split(':').next().unwrap_or_default();
        let digits = |text: &str, count| text.len() == count && text.bytes().all(|digit| digit.is_ascii_digit());
        let dated = month
            .split_once('-')
            .is_some_and(|(year, month)| digits(year, 4) && digits(month, 2) && ("01"..="12").contains(&month));
        dated && domain.split('.').all(|label| !label.is_empty())
    } else if let Some(digits) = name.strip_prefix("eui.") {
        hexadecimal(digits, &[16])
    } else {
        name.strip_prefix("naa.").is_some_and(|digits| hexadecimal(digits, &[16, 32]))
    }
}

/// Checks the name of a target of ours: a form, in lower case, of characters that need no preparation (RFC 7143 §4.2.7.1).
///
/// # Errors
/// Anything else.
fn check_target_name(name: &str) -> Result<(), Bad> {
    if name.len() > NAME_MAX {
        return bad(format!("an iSCSI name has at most {NAME_MAX} bytes, not {}", name.len()), "write a shorter name");
    }
    let lower = name.to_ascii_lowercase();
    let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | ':');
    if !is_name(&lower) || !lower.chars().all(legal) || !has_form(&lower) {
        let help = "write iqn.YYYY-MM.REVERSE.DOMAIN:NAME in letters, digits, \"-\", \".\" and \":\", such as \
                    \"iqn.2026-11.io.reactor:vol0\"";
        return bad(format!("\"{name}\" cannot be the name of a target"), help);
    }
    if lower != name {
        return bad("the name of a target is in lower case", format!("write \"{lower}\""));
    }
    Ok(())
}

/// What the targets of one file have in common.
struct Context<'a> {
    source: &'a Source,
    bdevs: &'a Bdevs,
    /// Tags of all portals; `None` if these could not be read.
    groups: Option<BTreeSet<u16>>,
    /// Names of the targets before, with their lines.
    names: BTreeMap<String, u32>,
}

impl Context<'_> {
    /// `None` after a message.
    fn read_target(&mut self, table: &Table<'_>) -> Option<(IscsiTarget, Option<ChapSpans>)> {
        table.only(&[IQN, ALIAS, LUNS, CHAP, INITIATORS, HEADER_DIGEST, DATA_DIGEST, TAGS, REDIRECT]);
        let digest = |key: Key| {
            let words =
                [("offer", DigestPolicy::Offer), ("require", DigestPolicy::Require), ("off", DigestPolicy::Off)];
            table.get(key).map_or(Some(DigestPolicy::Offer), |value| value.choice(&words).map(|word| word.value))
        };
        let iqn = self.read_iqn(table);
        let alias = optional(table, ALIAS, |value| read_line(&value));
        let luns = table.get(LUNS).map_or(Some(Vec::new()), |value| self.read_luns(&value));
        let chap = optional(table, CHAP, |value| read_chap(self.source, &value));
        let initiators = table.get(INITIATORS).map_or(Some(AllowedInitiators::Any), |value| read_initiators(&value));
        let (header_digest, data_digest) = (digest(HEADER_DIGEST), digest(DATA_DIGEST));
        let portals = optional(table, TAGS, |value| self.read_tags(&value));
        let redirect = optional(table, REDIRECT, |value| read_redirect(&value));
        let iqn = iqn?;
        let (chap, spans) = chap?.unzip();
        let target = IscsiTarget {
            iqn: iqn.value.to_owned(),
            alias: alias?,
            luns: luns?,
            chap,
            initiators: initiators?,
            header_digest: header_digest?,
            data_digest: data_digest?,
            portals: portals?,
            redirect: redirect?,
            place: self.source.place(iqn.span.start),
        };
        Some((target, spans))
    }

    /// `None` after a message.
    fn read_iqn<'t>(&mut self, table: &Table<'t>) -> Option<At<&'t str>> {
        let messages = table.messages;
        let iqn = table.require(IQN)?.text()?;
        messages.accept(&iqn.span, check_target_name(iqn.value))?;
        if let Some(line) = self.names.insert(iqn.value.to_owned(), self.source.place(iqn.span.start).line) {
            let message = format!("target \"{}\" is here for the second time, after line {line}", iqn.value);
            messages.error(&iqn.span, message, "write another name, or put all LUNs into one target");
            return None;
        }
        Some(iqn)
    }

    /// `None` after a message.
    fn read_luns(&self, value: &Value<'_>) -> Option<Vec<Lun>> {
        let messages = value.messages;
        let entries = value.array()?;
        if let Some(first_beyond) = entries.get(usize::from(ISCSI_LUNS_MAX)) {
            let message = format!("a target has at most {} LUNs, this one has {}", ISCSI_LUNS_MAX, entries.len());
            messages.error(&first_beyond.span, message, "put the rest into another [[iscsi.target]]");
            return None;
        }
        let mut luns: Vec<Lun> = Vec::with_capacity(entries.len());
        let mut complete = true;
        for (entry, position) in entries.iter().zip(0_u16..) {
            let Some(lun) = entry.table("a LUN").and_then(|table| self.read_lun(&table, position)) else {
                complete = false;
                continue;
            };
            if luns.iter().any(|other| other.lun == lun.lun) {
                let message = format!("LUN {} is here for the second time", lun.lun);
                let help = "write another lun; without one, a LUN has its position in the list, from 0";
                messages.error(&entry.span, message, help);
                complete = false;
            } else if let Some(other) =
                luns.iter().find(|other| (&other.bdev, other.read_only) == (&lun.bdev, lun.read_only))
            {
                let message = format!("bdev \"{}\" is LUN {} of this target already", other.bdev, other.lun);
                let help = "remove one of the two: two LUNs of one identity are two paths to one disk";
                messages.error(&entry.span, message, help);
                complete = false;
            } else {
                luns.push(lun);
            }
        }
        luns.sort_by_key(|lun| lun.lun);
        complete.then_some(luns)
    }

    /// `None` after a message.
    fn read_lun(&self, table: &Table<'_>, position: u16) -> Option<Lun> {
        table.only(&[LUN, BDEV, READ_ONLY]);
        let lun = table.get(LUN).map_or(Some(position), |value| {
            value.integer(0..=u64::from(LUN_MAX)).and_then(|lun| u16::try_from(lun.value).ok())
        });
        let read_only = table.get(READ_ONLY).map_or(Some(false), |value| value.boolean().map(|value| value.value));
        let bdev = table.require(BDEV)?.text()?;
        if !self.bdevs.names.contains_key(bdev.value) {
            let (message, help) = unknown_bdev(bdev.value, &self.bdevs.names);
            table.messages.error(&bdev.span, message, help);
            return None;
        }
        let place = self.source.place(table.span.start);
        Some(Lun { lun: lun?, bdev: bdev.value.to_owned(), read_only: read_only?, place })
    }

    /// Tags of portal groups; `None` after a message.
    fn read_tags(&self, value: &Value<'_>) -> Option<BTreeSet<u16>> {
        let messages = value.messages;
        let entries = value.array()?;
        if entries.is_empty() {
            let help = "write portals = [1], or leave it out for all";
            messages.error(&value.span, "portals is empty: no initiator could reach this target", help);
            return None;
        }
        let mut tags = BTreeSet::new();
        for entry in entries {
            let tag = read_tag(&entry)?;
            if let Some(groups) = self.groups.as_ref().filter(|groups| !groups.contains(&tag)) {
                let known: Vec<String> = groups.iter().map(u16::to_string).collect();
                let help =
                    format!("write portals = [{}] or fewer, or give a portal of [iscsi] this tpgt", known.join(", "));
                messages.error(&entry.span, format!("there is no portal with tpgt {tag}"), help);
                return None;
            }
            if !tags.insert(tag) {
                messages.error(&entry.span, "this tag is here for the second time", "remove one of the two");
                return None;
            }
        }
        Some(tags)
    }
}

/// `None` after a message.
fn read_initiators(value: &Value<'_>) -> Option<AllowedInitiators> {
    let messages = value.messages;
    let entries = value.array()?;
    let any = "leave initiators out to admit every initiator, or write their names";
    if entries.is_empty() {
        messages.error(&value.span, "initiators is empty: nobody could log in", any);
        return None;
    }
    let mut names = BTreeSet::new();
    for entry in entries {
        let name = entry.text()?;
        if name.value == "*" {
            messages.error(&name.span, "\"*\" is not the name of an initiator", any);
            return None;
        }
        // Initiators choose their names themselves, not all by the book: only the beginning is certain.
        let lower = name.value.to_ascii_lowercase();
        if !is_name(&lower) || !["iqn.", "eui.", "naa."].iter().any(|form| lower.starts_with(form)) {
            let message = format!("\"{}\" cannot be the name of an initiator", name.value);
            let help = "write the name as /etc/iscsi/initiatorname.iscsi of the initiator has it";
            messages.error(&name.span, message, help);
            return None;
        }
        if !names.insert(lower) {
            messages.error(&name.span, "this initiator is here for the second time", "remove one of the two");
            return None;
        }
    }
    Some(AllowedInitiators::Listed(names))
}

/// `None` after a message.
fn read_redirect(value: &Value<'_>) -> Option<Redirect> {
    let table = value.table("redirect")?;
    table.only(&[ADDRESS, PERMANENT]);
    let permanent = table.get(PERMANENT).map_or(Some(false), |value| value.boolean().map(|value| value.value));
    let address = table.require(ADDRESS).and_then(|value| read_peer_address(&value));
    Some(Redirect { address: address?.to_string(), permanent: permanent? })
}
