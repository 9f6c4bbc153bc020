//! Who may use whom.

use std::collections::{BTreeMap, BTreeSet};

use super::code::{Product, Token, only};

/// Who may use whom. A file belongs to the longest prefix of its module path; each row names only rows above it, so nothing
/// can lead back. `hugepages` and `io_uring` are crates.
pub const HOUSE: [(&str, &[&str]); 28] = [
    ("util", &[]),
    ("sys::limits", &[]),
    ("limits", &["sys::limits", "hugepages"]),
    // What the kernel says to a ublk server: the rings of `sys` carry it.
    ("ublk::wire", &["util"]),
    // The unsafe boundary, and the only one that knows io_uring.
    ("sys", &["sys::limits", "ublk::wire", "hugepages", "io_uring"]),
    ("reactor", &["sys", "sys::limits", "limits", "hugepages"]),
    ("net", &["reactor", "sys", "sys::limits", "hugepages"]),
    // The core of the block layer: no leaf, no layer, no door.
    ("bdev", &["reactor", "sys", "limits", "util", "hugepages"]),
    ("ublk", &["ublk::wire", "util", "bdev", "reactor", "sys", "limits", "hugepages"]),
    // Wire types, framing and engine: bytes in, plain data out. No buffer, no reactor.
    ("nvme::spec", &["util"]),
    ("nvme::tcp", &["nvme::spec", "util"]),
    ("nvme::target", &["nvme::spec"]),
    ("scsi::spec", &["util"]),
    // Knows neither commands nor transports: the NVMe door may share it.
    ("scsi::reservation", &["util"]),
    ("scsi", &["scsi::spec", "scsi::reservation"]),
    // The data path: knows no transport.
    ("scsi::disk", &["scsi", "scsi::spec", "bdev", "reactor", "limits"]),
    // Knows SCSI as bytes.
    ("iscsi", &["util"]),
    // What initiators share, whatever the transport.
    ("nvme::io", &["nvme::spec", "bdev", "reactor", "limits", "hugepages"]),
    ("nvme::pcie", &["nvme::io", "nvme::spec", "reactor", "sys", "limits", "util", "hugepages"]),
    (
        "nvme::host",
        &["nvme::io", "nvme::tcp", "nvme::spec", "bdev", "net", "reactor", "sys", "sys::limits", "limits", "hugepages"],
    ),
    (
        "nvme::target::tcp",
        &["nvme::target", "nvme::tcp", "nvme::spec", "util", "bdev", "net", "reactor", "sys", "limits", "hugepages"],
    ),
    (
        "iscsi::door",
        &[
            "iscsi",
            "scsi",
            "scsi::disk",
            "scsi::spec",
            "scsi::reservation",
            "util",
            "bdev",
            "net",
            "reactor",
            "sys",
            "limits",
            "hugepages",
        ],
    ),
    ("bdev::device", &["bdev", "nvme::pcie", "nvme::io", "nvme::spec", "reactor", "sys", "limits", "hugepages"]),
    // A layer names no leaf.
    ("bdev::layer", &["bdev", "reactor", "limits"]),
    // How service ends, whoever began it.
    ("drain", &["nvme::target::tcp", "iscsi::door", "bdev", "reactor", "sys"]),
    // The library's entry: no configuration.
    (
        "serve",
        &[
            "drain",
            "bdev",
            "bdev::device",
            "nvme::spec",
            "nvme::target::tcp",
            "ublk",
            "reactor",
            "sys",
            "limits",
            "util",
            "hugepages",
        ],
    ),
    // Nobody below names it.
    (
        "control",
        &[
            "drain",
            "bdev",
            "bdev::device",
            "bdev::layer",
            "nvme::spec",
            "nvme::host",
            "nvme::target::tcp",
            "iscsi",
            "iscsi::door",
            "ublk",
            "reactor",
            "sys",
            "limits",
            "util",
            "hugepages",
        ],
    ),
    ("main", &["control"]),
];

/// Crates that not everybody may use.
pub const CRATES: [&str; 2] = ["hugepages", "io_uring"];

/// The module path of a source of the `reactor` package: `src/a/mod.rs` and `src/a.rs` are `a`.
pub fn module_of(path: &str) -> Option<Vec<String>> {
    let inner = path.strip_prefix("src/")?.strip_suffix(".rs")?;
    let mut parts: Vec<String> = inner.split('/').map(str::to_owned).collect();
    if matches!(parts.last().map(String::as_str), Some("mod" | "lib")) {
        parts.pop();
    }
    Some(parts)
}

/// The row of the house that a path of modules and items belongs to.
pub fn row_of(path: &[String]) -> Option<&'static str> {
    (1..=path.len()).rev().find_map(|n| {
        let name = path[..n].join("::");
        HOUSE.iter().map(|(row, _)| *row).find(|row| *row == name)
    })
}

/// What a path begins with, its `super` and inline modules resolved: all paths that the tree at `i` spells, and what follows.
pub fn spell(tokens: &[Token], mut i: usize, mut path: Vec<String>, found: &mut Vec<(usize, Vec<String>)>) -> usize {
    let text = |i: usize| tokens.get(i).map_or("", |t| t.text.as_str());
    loop {
        match text(i) {
            "{" => {
                i += 1;
                while i < tokens.len() && text(i) != "}" {
                    i = if text(i) == "," { i + 1 } else { spell(tokens, i, path.clone(), found) };
                }
                return i + 1;
            }
            "super" => {
                path.pop();
            }
            "self" => {}
            word if word.starts_with(|c: char| c.is_alphabetic() || c == '_') => path.push(word.to_owned()),
            _ => {
                found.push((tokens[i.min(tokens.len() - 1)].line, path));
                // A `*` or whatever else ends the path belongs to it only inside a group.
                return if text(i) == "*" { i + 1 } else { i };
            }
        }
        i += 1;
        if text(i) != "::" {
            found.push((tokens[i - 1].line, path));
            // `as name` within a group
            return if text(i) == "as" { i + 2 } else { i };
        }
        i += 1;
    }
}

/// All uses of modules and restricted crates: line and path.
pub fn uses(path: &str, tokens: &[Token]) -> Vec<(usize, Vec<String>)> {
    let text = |i: usize| tokens.get(i).map_or("", |t| t.text.as_str());
    let children: BTreeSet<&str> =
        (0..tokens.len()).filter(|&i| text(i) == "mod" && text(i + 2) == ";").map(|i| text(i + 1)).collect();
    let binary = path == "src/main.rs";
    let base = module_of(path).unwrap_or_default();
    let (mut inline, mut depth) = (Vec::<(usize, String)>::new(), 0);
    let (mut found, mut i) = (Vec::new(), 0);
    while i < tokens.len() {
        match text(i) {
            "mod" if text(i + 2) == "{" => inline.push((depth, text(i + 1).to_owned())),
            "{" => depth += 1,
            "}" => {
                depth = depth.saturating_sub(1);
                inline.retain(|(at, _)| *at < depth);
            }
            _ => {}
        }
        let mut here = base.clone();
        here.extend(inline.iter().map(|(_, name)| name.clone()));
        let starts = text(i + 1) == "::" && (i == 0 || !matches!(text(i - 1), "::" | "."));
        let from = match text(i) {
            "crate" if starts => Some((i + 2, Vec::new())),
            "reactor" if starts && binary => Some((i + 2, Vec::new())),
            "super" | "self" if starts => Some((i, here)),
            name if starts && CRATES.contains(&name) => Some((i, Vec::new())),
            name if starts && children.contains(name) && !binary => Some((i, here)),
            _ => None,
        };
        i = match from {
            Some((at, prefix)) => spell(tokens, at, prefix, &mut found).max(i + 1),
            None => i + 1,
        };
    }
    found
}

/// Edges between rows, with the places where they are used.
pub fn edges(products: &[Product]) -> BTreeMap<(&'static str, String), Vec<String>> {
    let mut found = BTreeMap::<_, Vec<String>>::new();
    for file in products {
        let Some(module) = module_of(&file.path) else { continue };
        for (line, used) in uses(&file.path, &file.tokens) {
            let target = match used.first() {
                Some(name) if CRATES.contains(&name.as_str()) => name.clone(),
                _ => row_of(&used).map_or_else(|| format!("the root ({})", used.join("::")), str::to_owned),
            };
            // Only declares modules: belongs to no row and may use nothing.
            let source = row_of(&module).unwrap_or("the root");
            if source != target {
                found.entry((source, target)).or_default().push(format!("{}:{line}", file.path));
            }
        }
    }
    found
}

pub fn back_edges(products: &[Product]) -> Vec<String> {
    let allowed =
        |source: &str, target: &str| HOUSE.iter().any(|(row, targets)| *row == source && targets.contains(&target));
    edges(products)
        .iter()
        .filter(|((source, target), _)| !allowed(source, target))
        .map(|((source, target), places)| {
            format!("{}: `{source}` uses `{target}`: move what it needs down, or what needs it up", places.join(", "))
        })
        .collect()
}

#[test]
fn a_back_edge_is_seen() {
    let sees = |path: &str, text: &str| back_edges(&[only(path, text)]).len();
    assert_eq!(
        sees("src/bdev/split.rs", "//! x\nuse crate::reactor::io::{Io, IoOp};\nuse super::contract::Channel;"),
        0
    );
    assert_eq!(sees("src/bdev/split.rs", "use crate::control::config;"), 1);
    assert_eq!(sees("src/bdev/split.rs", "use crate::{limits::X, reactor::{self, io}, nvme::target::tcp::Door};"), 1);
    assert_eq!(sees("src/bdev/split.rs", "use super::device::null::Null as N;"), 1);
    assert_eq!(sees("src/bdev/mod.rs", "pub mod device; pub use device::null::Null;"), 1);
    assert_eq!(sees("src/bdev/layer/inject/mod.rs", "fn f() { crate::bdev::device::null::x() }"), 1);
    assert_eq!(sees("src/nvme/target/engine.rs", "use super::tcp::Door;"), 1);
    assert_eq!(sees("src/nvme/target/engine.rs", "use hugepages::Buf;"), 1);
    assert_eq!(
        sees("src/nvme/target/engine.rs", "mod inner { use super::super::fault::Fault; }\nuse super::io::X;"),
        0
    );
    assert_eq!(sees("src/reactor/mod.rs", "use io_uring::IoUring;"), 1);
    assert_eq!(sees("src/main.rs", "use reactor::sys::uring;"), 1);
    assert_eq!(sees("src/main.rs", "use reactor::control::cli;"), 0);
    assert_eq!(sees("src/limits.rs", "#[cfg(test)] mod tests { use crate::control::x; }"), 0);
    let complaint = back_edges(&[only("src/util/mod.rs", "\nuse crate::limits::X;")]).concat();
    assert!(complaint.starts_with("src/util/mod.rs:2: `util` uses `limits`"), "{complaint}");
}
