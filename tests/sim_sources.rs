//! Time and chance have one door each, the reactor's clock and entropy: anything else would make a simulation differ from
//! its replay. This looks for other doors in the sources.

use std::fs;
use std::path::{Path, PathBuf};

/// What gives time or chance, or depends on the thread.
const SOURCES: [&str; 16] = [
    "Instant",
    "SystemTime",
    "clock_gettime",
    "gettimeofday",
    "timerfd",
    "_rdtsc",
    "monotonic_ns",
    "Tsc::calibrate",
    "urandom",
    "getrandom",
    "seed_from_kernel",
    "RandomState",
    "HashMap",
    "HashSet",
    "thread_local!",
    "thread::current",
];

/// Who may: a path or the folder it is in, and why.
const EXCEPTIONS: [(&str, &[&str], &str); 7] = [
    ("src/sys/tsc.rs", &["clock_gettime", "_rdtsc", "monotonic_ns"], "the clock itself"),
    ("src/reactor/clock.rs", &["urandom", "seed_from_kernel"], "the one seed of a real reactor"),
    ("src/reactor/start.rs", &["Tsc::calibrate", "seed_from_kernel"], "gives real reactors their clock and seed"),
    ("src/sys/uring/mod.rs", &["monotonic_ns"], "bounds the wait for the kernel when a ring is dropped"),
    (
        "src/bdev/conformance/mod.rs",
        &["seed_from_kernel"],
        "the suite runs on real reactors and its failure names the seed",
    ),
    ("src/control/", &SOURCES, "control threads, which no simulation runs"),
    ("src/main.rs", &SOURCES, "the control thread, which no simulation runs"),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "tests") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|e| e == "rs") && path.file_stem().is_some_and(|s| s != "tests") {
            found.push(path);
        }
    }
}

/// The code of a file: without comments, and up to its tests.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| *line != "mod tests {")
        .map(|(number, line)| (number + 1, line.split("//").next().unwrap_or_default()))
}

fn is_allowed(file: &str, source: &str) -> bool {
    EXCEPTIONS.iter().any(|(path, sources, _)| file.starts_with(path) && sources.contains(&source))
}

/// Whether `word` stands in `line` on its own.
fn mentions(line: &str, word: &str) -> bool {
    let part_of_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(part_of_name) && !line[at + word.len()..].starts_with(part_of_name))
}

#[test]
fn time_and_chance_have_one_door_each() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    sources(&root.join("src"), &mut files);
    sources(&root.join("hugepages/src"), &mut files);
    assert!(files.len() > 20, "only {} sources were found", files.len());
    let mut wrong = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        let file = path.strip_prefix(root).unwrap().to_str().unwrap();
        for (number, line) in code(&text) {
            for source in SOURCES.iter().filter(|source| mentions(line, source) && !is_allowed(file, source)) {
                wrong.push(format!("{file}:{number}: {source}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "use the reactor's clock() and entropy(), BTreeMap and BTreeSet, or name an exception here:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn every_exception_is_needed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (file, sources, _) in EXCEPTIONS.iter().filter(|(path, ..)| path.ends_with(".rs") && *path != "src/main.rs") {
        let text = fs::read_to_string(root.join(file)).unwrap();
        for source in *sources {
            assert!(code(&text).any(|(_, line)| mentions(line, source)), "{file} does without {source} now");
        }
    }
}

#[test]
fn another_door_would_be_seen() {
    assert!(mentions("let now = std::time::Instant::now();", "Instant"));
    assert!(!mentions("an Instantly given answer", "Instant"));
    assert!(!is_allowed("src/net/stream.rs", "Instant"));
    assert_eq!(code("a // Instant\nmod tests {\nInstant").map(|(_, line)| line).collect::<Vec<_>>(), ["a "]);
}
