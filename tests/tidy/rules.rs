//! The other rules, each from a file to its complaints.

use std::collections::BTreeSet;
use std::path::{Component, Path};

use super::code::{File, Product, mentions, only, tokens};

/// The only files with unsafe code; each says why at its head.
pub const UNSAFE: [&str; 24] = [
    "benches/ublk.rs",
    "hugepages/src/arena.rs",
    "hugepages/src/arena/chunk.rs",
    "hugepages/src/arena/mapping.rs",
    "hugepages/src/buf.rs",
    "hugepages/src/copy.rs",
    "hugepages/src/device.rs",
    "hugepages/src/region.rs",
    "hugepages/tests/pool.rs",
    "src/sys/affinity.rs",
    "src/sys/file.rs",
    "src/sys/mapped.rs",
    "src/sys/mmio.rs",
    "src/sys/nvme_ioctl.rs",
    "src/sys/nvme_ring.rs",
    "src/sys/socket.rs",
    "src/sys/tsc.rs",
    "src/sys/ublk.rs",
    "src/sys/ublk_control.rs",
    "src/sys/uring/mod.rs",
    "src/sys/uring/rx.rs",
    "src/sys/vfio/ioctl.rs",
    "tests/no_alloc.rs",
    "tests/nvme_host.rs",
];

/// What gives time or chance, or depends on the thread: a simulation would differ from its replay.
pub const CHANCE: [&str; 20] = [
    "Instant",
    "SystemTime",
    "clock_gettime",
    "gettimeofday",
    "timerfd",
    "_rdtsc",
    "__rdtscp",
    "monotonic_ns",
    "Tsc::calibrate",
    "urandom",
    "getrandom",
    "thread_rng",
    "new_v4",
    "seed_from_kernel",
    "RandomState",
    "HashMap",
    "HashSet",
    "thread_local!",
    "thread::current",
    "ThreadId",
];

/// Who may name a source of time or chance, and why.
pub const CHANCE_ALLOWED: [(&str, &[&str], &str); 12] = [
    ("src/sys/predecessor.rs", &["monotonic_ns"], "bounds the wait of a control thread"),
    ("src/sys/tsc.rs", &["clock_gettime", "_rdtsc", "monotonic_ns"], "the clock itself"),
    ("src/reactor/clock.rs", &["urandom", "seed_from_kernel"], "the one seed of a real reactor"),
    (
        "src/reactor/start.rs",
        &["Tsc::calibrate", "seed_from_kernel", "monotonic_ns"],
        "gives real reactors their clock and seed, and bounds the wait for their end",
    ),
    ("src/bdev/conformance/mod.rs", &["seed_from_kernel"], "the seed of a run, which a failure prints"),
    ("src/sys/uring/mod.rs", &["monotonic_ns"], "bounds the wait for the kernel when a ring is dropped"),
    ("src/sys/nvme_ring.rs", &["monotonic_ns"], "bounds the wait for the kernel when a ring is dropped"),
    ("src/drain.rs", &["monotonic_ns"], "bounds the waits of a control thread"),
    ("src/ublk/disk.rs", &["monotonic_ns"], "bounds the waits of a control thread"),
    ("src/ublk/holders.rs", &["monotonic_ns"], "bounds the waits of a control thread"),
    ("src/ublk/left.rs", &["monotonic_ns"], "bounds the waits of a control thread"),
    ("src/bdev/device/nvme/disks.rs", &["monotonic_ns"], "bounds a wait of a control thread"),
];

/// What makes a thread wait for another.
pub const BLOCKING: [&str; 12] = [
    "Mutex",
    "RwLock",
    "Condvar",
    "Barrier",
    "LazyLock",
    "thread::sleep",
    "thread::park",
    "park_timeout",
    "block_on",
    "recv_timeout",
    "Receiver::recv",
    "thread::spawn",
];

/// Who may block, and why. `src/control/` and `src/main.rs` run on control threads alone.
pub const BLOCKING_ALLOWED: [(&str, &[&str], &str); 17] = [
    ("src/sys/predecessor.rs", &["park_timeout"], "a control thread waits for the kernel"),
    ("hugepages/src/arena.rs", &["Mutex"], "growth, on control threads"),
    ("hugepages/src/region.rs", &["Mutex"], "growth, on control threads"),
    ("src/bdev/conformance/mod.rs", &["recv_timeout"], "the suite's caller waits for its reactors"),
    ("src/drain.rs", &["park_timeout", "recv_timeout"], "a control thread waits for what is to end"),
    ("src/sys/vfio/mod.rs", &["Mutex"], "disks come and memory grows, on control threads"),
    ("src/nvme/pcie/fake/lock.rs", &["Mutex"], "a device of tests, each of whose queues a reactor works at"),
    ("src/bdev/registry.rs", &["Mutex", "recv_timeout"], "control threads alone see the registry"),
    ("src/reactor/start.rs", &["park_timeout"], "a control thread waits for reactors that are to end"),
    ("src/ublk/left.rs", &["park_timeout"], "a control thread waits for the kernel"),
    ("src/bdev/device/nvme/disks.rs", &["park_timeout", "recv_timeout"], "a control thread waits for a disk's home"),
    ("src/bdev/device/nvme/disks/disk.rs", &["recv_timeout"], "a control thread waits for a disk's end"),
    ("src/bdev/device/nvme/admin.rs", &["recv_timeout"], "a control thread waits for an admin command"),
    ("src/reactor/mailbox.rs", &["recv_timeout"], "how control threads wait for a reactor's answer"),
    ("src/ublk/disk.rs", &["park_timeout", "recv_timeout"], "a control thread waits for the kernel and for its queues"),
    ("src/ublk/holders.rs", &["park_timeout"], "a control thread waits for udev"),
    ("src/sys/holders.rs", &["recv_timeout", "thread::spawn"], "a control thread bounds a look that may hang"),
];

/// Words of unfinished work. In pieces, because this file is looked at too.
pub const UNFINISHED: [&str; 6] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("X", "XX"),
    concat!("to", "do!"),
    concat!("unimpl", "emented!"),
    concat!("#[ig", "nore"),
];

/// Hosts of package registries: where packages come from is the business of the machine that builds.
pub const REGISTRIES: [&str; 12] = [
    concat!("crates", ".io"),
    concat!("lib", ".rs/"),
    concat!("debian", ".org"),
    concat!("ubuntu", ".com"),
    concat!("pypi", ".org"),
    concat!("python", "hosted"),
    concat!("npmjs", "."),
    concat!("golang", ".org"),
    concat!("docker", ".io"),
    concat!("ghcr", ".io"),
    concat!("quay", ".io"),
    concat!("rust-lang", ".org"),
];

pub const LINES_MAX: usize = 1500;
pub const LINES_AIM: usize = 600;

pub fn too_long(file: &File) -> Vec<String> {
    let lines = file.text.lines().count();
    if file.path.ends_with("Cargo.lock") || lines <= LINES_MAX {
        return Vec::new();
    }
    vec![format!("{}:{LINES_MAX}: {lines} lines: split it", file.path)]
}

pub fn unsafe_elsewhere(file: &File) -> Vec<String> {
    if !file.is_rust() || UNSAFE.contains(&file.path.as_str()) {
        return Vec::new();
    }
    let lines = mentions(&tokens(&file.text), "unsafe");
    let remedy = "unsafe code: do it in safe code, or in a module of `sys` or `hugepages` that is in the list here";
    lines.iter().map(|line| format!("{}:{line}: {remedy}", file.path)).collect()
}

pub fn forbidden(
    file: &Product,
    words: &[&str],
    allowed: &[(&str, &[&str], &str)],
    threads: &[&str],
    remedy: &str,
) -> Vec<String> {
    if threads.iter().any(|path| file.path.starts_with(path)) {
        return Vec::new();
    }
    let may = |word: &str| allowed.iter().any(|(path, words, _)| *path == file.path && words.contains(&word));
    words
        .iter()
        .filter(|word| !may(word))
        .flat_map(|word| mentions(&file.tokens, word).into_iter().map(move |line| (word, line)))
        .map(|(word, line)| format!("{}:{line}: {word}: {remedy}", file.path))
        .collect()
}

pub const CONTROL: [&str; 2] = ["src/control/", "src/main.rs"];

pub fn chance(file: &Product) -> Vec<String> {
    let remedy = "use the reactor's clock() and entropy(), BTreeMap and BTreeSet";
    forbidden(file, &CHANCE, &CHANCE_ALLOWED, &CONTROL, remedy)
}

pub fn blocking(file: &Product) -> Vec<String> {
    let remedy = "a reactor never waits for a thread: send a message, or do it on a control thread";
    forbidden(file, &BLOCKING, &BLOCKING_ALLOWED, &CONTROL, remedy)
}

/// Whether the word at `at` stands on its own.
pub fn is_word(line: &str, at: usize, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let begins_inside = word.starts_with(part) && line[..at].ends_with(part);
    let goes_on = line[at + word.len()..].starts_with(part);
    !begins_inside && !goes_on
}

pub fn unfinished(file: &File) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        for word in UNFINISHED {
            if line.match_indices(word).any(|(at, _)| is_word(line, at, word)) {
                found.push(format!("{}:{}: {word}: finish it or leave it out", file.path, number + 1));
            }
        }
    }
    found
}

pub fn expect_without_reason(file: &File) -> Vec<String> {
    if !file.is_rust() {
        return Vec::new();
    }
    let tokens = tokens(&file.text);
    let text = |i: usize| tokens.get(i).map_or("", |t| t.text.as_str());
    let mut found = Vec::new();
    for i in 0..tokens.len() {
        let open = if text(i + 1) == "!" { i + 2 } else { i + 1 };
        if text(i) != "#" || text(open) != "[" || !matches!(text(open + 1), "expect" | "allow") {
            continue;
        }
        let end = (open..tokens.len()).find(|&at| text(at) == "]").unwrap_or(tokens.len());
        if text(open + 1) == "allow" {
            found.push(format!("{}:{}: #[allow]: use #[expect(lint, reason = ...)]", file.path, tokens[i].line));
        } else if !(open..end).any(|at| text(at) == "reason" && text(at + 1) == "=" && text(at + 2).len() > 8) {
            found.push(format!("{}:{}: #[expect] without a reason: say why", file.path, tokens[i].line));
        }
    }
    found
}

pub fn registry_names(file: &File) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        if file.path.ends_with("Cargo.lock") && line.starts_with("source = \"registry+") {
            continue;
        }
        for host in REGISTRIES.iter().filter(|host| line.contains(**host)) {
            found.push(format!("{}:{}: {host}: leave the registry's name out", file.path, number + 1));
        }
    }
    found
}

/// The path that `link` means from a file in `folder`, both relative to the root; `None` if it leaves the tree.
pub fn resolve(folder: &str, link: &str) -> Option<String> {
    let mut parts = Vec::new();
    for part in Path::new(folder).join(link).components() {
        match part {
            Component::Normal(name) => parts.push(name.to_string_lossy().into_owned()),
            Component::ParentDir => drop(parts.pop()?),
            _ => {}
        }
    }
    Some(parts.join("/"))
}

pub fn broken_links(file: &File, exists: impl Fn(&str) -> bool) -> Vec<String> {
    if !file.path.ends_with(".md") {
        return Vec::new();
    }
    let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let mut found = Vec::new();
    for (number, line) in file.text.lines().enumerate() {
        for (at, _) in line.match_indices("](") {
            let link = line[at + 2..].split(')').next().unwrap_or_default();
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            if !resolve(folder, target).is_some_and(|path| exists(&path)) {
                found.push(format!("{}:{}: {link}: there is no such file: correct the link", file.path, number + 1));
            }
        }
    }
    found
}

pub fn undocumented_module(file: &File, is_test: bool) -> Vec<String> {
    if is_test || !file.is_rust() || file.text.starts_with("//!") {
        return Vec::new();
    }
    vec![format!("{}:1: the module is not documented: begin with //! and what it is for", file.path)]
}

/// Names in a document of the architecture that the tree does not have: `Type::function`, `function()` and `file.rs` in code
/// spans and drawings.
pub fn unknown_names(document: &File, names: &BTreeSet<String>, paths: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    let mut drawing = false;
    for (number, line) in document.text.lines().enumerate() {
        if line.starts_with("```") {
            drawing = !drawing;
            continue;
        }
        let spans: Vec<&str> = if drawing { vec![line] } else { line.split('`').skip(1).step_by(2).collect() };
        for word in spans.iter().flat_map(|span| span.split(|c: char| !c.is_alphanumeric() && !"_:./()".contains(c))) {
            let word = word.trim_matches(['.', ':', '(']);
            let complain = |what: &str| {
                format!("{}:{}: {what} is not in the tree: write what is there now", document.path, number + 1)
            };
            if word.ends_with(".rs") {
                if !paths.iter().any(|path| path == word || path.ends_with(&format!("/{word}"))) {
                    found.push(complain(word));
                }
            } else if word.contains("::") || word.ends_with("()") {
                let parts = word.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|part| !part.is_empty());
                found.extend(parts.filter(|part| !names.contains(*part)).map(complain));
            }
        }
    }
    found
}

/// Exceptions that nothing needs any more.
pub fn unneeded(products: &[Product], allowed: &[(&str, &[&str], &str)]) -> Vec<String> {
    let mut found = Vec::new();
    for (path, words, _) in allowed {
        let file = products.iter().find(|file| file.path == *path);
        for word in words.iter().filter(|word| file.is_none_or(|file| mentions(&file.tokens, word).is_empty())) {
            found.push(format!("{path}:1: does without {word} now: take it off the list"));
        }
    }
    found
}

#[test]
fn each_rule_can_fail() {
    let file = |text: &str| File::new("src/net/stream.rs", text);
    assert_eq!(too_long(&file(&"x\n".repeat(LINES_MAX + 1))).len(), 1);
    assert_eq!(too_long(&file(&"x\n".repeat(LINES_MAX))).len(), 0);
    assert_eq!(
        unsafe_elsewhere(&file("//! unsafe\nfn f() { unsafe { g() } }")),
        [
            "src/net/stream.rs:2: unsafe code: do it in safe code, or in a module of `sys` or `hugepages` that is in the list here"
        ]
    );
    for source in ["std::time::Instant::now()", "open(\"/dev/urandom\")", "thread_local! { }", "Tsc::calibrate()"] {
        assert_eq!(chance(&only("src/net/stream.rs", source)).len(), 1, "{source}");
        assert_eq!(chance(&only("src/control/x.rs", source)).len(), 0, "{source}");
    }
    assert_eq!(chance(&only("src/net/stream.rs", "Instantly; \"an Instant\" // Instant")).len(), 0);
    assert_eq!(chance(&only("src/reactor/clock.rs", "seed_from_kernel(); Instant")).len(), 1);
    for wait in ["Mutex::new(0)", "std::thread::sleep(x)", "rx.recv_timeout(x)", "RwLock<u8>"] {
        assert_eq!(blocking(&only("src/reactor/io.rs", wait)).len(), 1, "{wait}");
    }
    assert_eq!(blocking(&only("src/reactor/io.rs", "reactor.sleep(5)")).len(), 0);
    let one = [("src/reactor/io.rs", ["Mutex"].as_slice(), "")];
    assert_eq!(unneeded(&[only("src/reactor/io.rs", "fn f() {}")], &one).len(), 1);
    for word in UNFINISHED {
        assert_eq!(unfinished(&file(&format!("a\n// {word}"))).len(), 1, "{word}");
    }
    assert_eq!(unfinished(&file(concat!("mac", "TO", "DOs"))).len(), 0);
    assert_eq!(
        expect_without_reason(&file("#[expect(dead_code)] fn f() {}\n#![expect(x, reason = \"because\")]")).len(),
        1
    );
    assert_eq!(expect_without_reason(&file("#[allow(dead_code, reason = \"because\")] fn f() {}")).len(), 1);
    for host in REGISTRIES {
        assert_eq!(registry_names(&file(&format!("from https://{host}/x"))).len(), 1, "{host}");
    }
    let source = format!("source = \"registry+https://{}/x\"", REGISTRIES[0]);
    for path in ["Cargo.lock", "fuzz/Cargo.lock"] {
        assert_eq!(registry_names(&File::new(path, &source)).len(), 0);
    }
    assert_eq!(registry_names(&file(&source)).len(), 1);
    let page = File::new("docs/a.md", "[a](../README.md#x) [b](#y) [c](https://x) [d](b.md) [e](../../up.md)");
    assert_eq!(broken_links(&page, |path| path == "README.md").len(), 2);
    assert_eq!(undocumented_module(&file("// no\nfn f() {}"), false).len(), 1);
    let page = File::new("docs/architecture.md", "`Io::gone` `there()` gone()\n```\n a.rs -> Io::there -> b.rs\n```");
    let names = ["Io", "there"].map(str::to_owned).into_iter().collect();
    assert_eq!(unknown_names(&page, &names, &["src/a.rs".to_owned()]).len(), 2);
}
