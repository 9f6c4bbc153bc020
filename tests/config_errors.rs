//! Every message of the configuration, whole, as a user sees it: `config_errors.txt`, `config_ublk_errors.txt` for
//! `[[ublk]]` and `config_iscsi_errors.txt` for `[iscsi]` have pairs of a text and what is said about it, on a machine with cores 0-3 of which 0-1 are allowed, in a
//! folder that has `small.img` (1 MiB), `again.img` (a link to it), `odd.img` (1,000 bytes), `empty.img`, `dangling.img`,
//! the directory `folder`, and secrets: `secret`, `same.secret` as that, `loose.secret` that everybody may read, and
//! `short.secret`, `long.secret`, `lines.secret` and `empty.secret`, which are none.
//!
//! `UPDATE=1 cargo test --test config_errors` writes what is said now; read the difference before you commit it.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use reactor::control::config::{Machine, Source, Style, parse};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// A folder of paths to point at.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::File::create(at("small.img")).unwrap().set_len(1 << 20).unwrap();
    fs::hard_link(at("small.img"), at("again.img")).unwrap();
    fs::write(at("odd.img"), [0; 1000]).unwrap();
    fs::write(at("empty.img"), []).unwrap();
    std::os::unix::fs::symlink("nowhere.img", at("dangling.img")).unwrap();
    fs::create_dir(at("folder")).unwrap();
    let long = "x".repeat(256);
    for (name, secret, mode) in [
        ("secret", "correct horse battery\n", 0o600),
        ("same.secret", "correct horse battery", 0o400),
        ("loose.secret", "correct horse battery\n", 0o644),
        ("short.secret", "eleven char\n", 0o600),
        ("long.secret", long.as_str(), 0o600),
        ("lines.secret", "correct horse\nbattery staple\n", 0o600),
        ("empty.secret", "", 0o600),
    ] {
        fs::write(at(name), secret).unwrap();
        fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    folder
}

fn said(text: &str, folder: &Path) -> String {
    let machine = Machine { online: vec![0, 1, 2, 3], allowed: vec![0, 1] };
    let source = Source::new("poll.toml", folder, text);
    let list = match parse(&source, &machine) {
        Ok(mut parsed) => [parsed.probe(None), parsed.warnings].concat(),
        Err(errors) => errors,
    };
    let rendered: String = list.iter().map(|one| one.render(&source, Style::Plain)).collect();
    rendered.replace(folder.to_str().unwrap(), "FOLDER")
}

#[test]
fn messages_are_as_written_down() {
    check("tests/config_errors.txt", 60);
}

#[test]
fn messages_about_local_block_devices_are_as_written_down() {
    check("tests/config_ublk_errors.txt", 15);
}

#[test]
fn messages_about_iscsi_are_as_written_down() {
    check("tests/config_iscsi_errors.txt", 60);
}

/// Checks every pair of a file that has at least so many.
fn check(name: &str, at_least: usize) {
    let file = fs::read_to_string(golden(name)).unwrap();
    let folder = folder();
    let (mut now, mut wrong, mut count) = (String::new(), String::new(), 0);
    for case in file.split("=== ").skip(1) {
        let (title, case) = case.split_once('\n').unwrap();
        let (text, expected) = case.split_once("---\n").unwrap();
        let got = said(text, folder.path());
        let expected = expected.trim_end_matches('\n');
        if got.trim_end_matches('\n') != expected {
            writeln!(wrong, "{title}\n--- expected\n{expected}\n--- got\n{got}").unwrap();
        }
        assert!(!got.is_empty(), "{title}: nothing is said");
        write!(now, "=== {title}\n{text}---\n{got}\n").unwrap();
        count += 1;
    }
    if std::env::var_os("UPDATE").is_some() {
        fs::write(golden(name), now).unwrap();
        return;
    }
    assert!(wrong.is_empty(), "{wrong}");
    assert!(count >= at_least, "{count} cases");
}
