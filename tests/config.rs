//! The configuration as data: what a text becomes, what a reload makes of two of them, and that no text does harm.

mod texts;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;
use reactor::bdev::device::nvme::{InterruptCoalescing, Mode, Tuning};
use reactor::control::config::{
    Change, Chap, Config, Driver, HostAccess, Hugepages, Idle, InjectAction, InjectOp, InjectRule, InjectStatus,
    IscsiChange, IscsiConfig, IscsiSteps, IscsiTarget, Lun, Machine, MutualChap, NullComplete, Source, Style,
    Subsystem, TargetKey, Trigger, derived_uuid, diff, load, parse,
};
use reactor::iscsi::{AllowedInitiators, ChapAlgorithm, ChapConfig, Credentials, DigestPolicy, Redirect, Secret};
use texts::{file, machine, parsed_in, said};

const EXAMPLE: &str = include_str!("../poll.toml");

fn config(text: &str) -> Config {
    parsed_in("/srv", text).config
}

#[test]
fn the_example_is_what_it_says() {
    let parsed = parsed_in("/srv", EXAMPLE);
    assert_eq!(parsed.warnings, []);
    let config = parsed.config;
    assert_eq!((config.reactor.cores.as_slice(), config.reactor.idle), ([0].as_slice(), Idle::Adaptive));
    assert_eq!((config.memory.size, config.memory.hugepages), (256 << 20, Hugepages::Prefer));
    let [ram, disk] = config.bdevs.as_slice() else { panic!("{:?}", config.bdevs) };
    assert_eq!((ram.name.as_str(), &ram.driver), ("ram0", &Driver::Malloc));
    assert_eq!((ram.size, ram.block_size, ram.physical_block_size), (1 << 30, 512, 512));
    let file = Driver::File { path: PathBuf::from("/srv/disk0.img"), direct: true };
    assert_eq!((disk.name.as_str(), &disk.driver, disk.size), ("disk0", &file, 1 << 30));
    let addresses: Vec<String> = config.listeners().iter().map(|listener| listener.address.to_string()).collect();
    assert_eq!(addresses, ["127.0.0.1:4420"]);
    let exports: Vec<_> = config
        .subsystems()
        .iter()
        .map(|subsystem| {
            let namespace = &subsystem.namespaces[0];
            assert_eq!((subsystem.namespaces.len(), &subsystem.hosts), (1, &HostAccess::Any));
            (subsystem.nqn.as_str(), namespace.nsid, namespace.bdev.as_str(), namespace.read_only)
        })
        .collect();
    let expected =
        [("nqn.2026-11.io.reactor:vol0", 1, "ram0", false), ("nqn.2026-11.io.reactor:vol1", 1, "disk0", false)];
    assert_eq!(exports, expected);
    let line = EXAMPLE.lines().position(|line| line == "name = \"disk0\"").unwrap();
    assert_eq!(config.at(disk.place), format!("poll.toml:{line}"), "the [[bdev]] line is the one before the name");
}

/// What the example has in comments is correct too.
#[test]
fn the_commented_parts_of_the_example_are_valid() {
    let start = EXAMPLE.find("# [[bdev]]").unwrap();
    let commented: String = EXAMPLE[start..]
        .lines()
        .take_while(|line| !line.starts_with("# op:"))
        .filter(|line| !line.contains("A layer that fails") && !line.contains("A volume that keeps nothing"))
        .map(|line| format!("{}\n", line.trim_start_matches("# ")))
        .collect();
    let config = config(&format!("{EXAMPLE}\n{commented}"));
    let names: Vec<&str> = config.bdevs.iter().map(|bdev| bdev.name.as_str()).collect();
    assert_eq!(names, ["ram0", "disk0", "fast0", "null0", "faulty0"]);
    let Driver::Nvme(fast) = &config.bdevs[2].driver else { panic!("{:?}", config.bdevs[2]) };
    assert_eq!((fast.disk.to_string().as_str(), fast.nsid, fast.tuning.depth), ("0000:01:00.0", Some(1), 256));
    assert_eq!((fast.tuning.timeout, fast.size, fast.block_size), (Duration::from_secs(30), Some(1 << 40), None));
    let expected = [
        InjectRule {
            op: Some(InjectOp::Read),
            trigger: Trigger::Nth { first: 10, count: 1 },
            action: InjectAction::Fail(InjectStatus::MediaError),
        },
        InjectRule {
            op: Some(InjectOp::Write),
            trigger: Trigger::Every { every: 100, count: None },
            action: InjectAction::Delay { delay_ms: 50 },
        },
        InjectRule { op: None, trigger: Trigger::Nth { first: 5000, count: 1 }, action: InjectAction::Hold },
    ];
    assert_eq!(config.bdevs[4].driver, Driver::Inject { base: "ram0".to_owned(), rules: expected.to_vec() });
}

#[test]
fn an_empty_file_has_the_defaults() {
    let parsed = parsed_in("/srv", "");
    assert_eq!(parsed.warnings.len(), 1);
    let config = parsed.config;
    assert_eq!((config.reactor.cores.as_slice(), config.reactor.idle), ([0].as_slice(), Idle::Adaptive));
    assert_eq!((config.memory.size, config.memory.hugepages), (256 << 20, Hugepages::Prefer));
    assert!(config.bdevs.is_empty() && config.nvmf.is_none() && config.iscsi.is_none());
}

#[test]
fn keys_have_their_effect() {
    let config = config(
        r#"
        reactor = { cores = "2,0-1", idle = "poll" }
        memory = { size = 67108864, hugepages = "require" }
        [[bdev]]
        name = "a"
        driver = "file"
        path = "/dev/disk"
        size = "8 KiB"
        block_size = 4096
        physical_block_size = 8192
        direct = false
        uuid = "f81d4fae-7dec-11d0-a765-00a0c91e6bf6"
        [[bdev]]
        name = "n"
        driver = "null"
        size = 0x200
        complete = "submit"
        [nvmf]
        listen = ["[::1]:0", "[::1]:0", "10.0.0.1:4420"]
        [[nvmf.subsystem]]
        nqn = "nqn.2026-11.io.reactor:vol0"
        hosts = ["nqn.2026-11.io.reactor:b", "nqn.2026-11.io.reactor:a"]
        [[nvmf.subsystem.namespaces]]
        nsid = 256
        bdev = "a"
        read_only = true
        [[nvmf.subsystem.namespaces]]
        bdev = "n"
        "#,
    );
    assert_eq!((config.reactor.cores.as_slice(), config.reactor.idle), ([0, 1, 2].as_slice(), Idle::Poll));
    assert_eq!((config.memory.size, config.memory.hugepages), (64 << 20, Hugepages::Require));
    let a = config.bdev("a").unwrap();
    assert_eq!(a.driver, Driver::File { path: PathBuf::from("/dev/disk"), direct: false });
    assert_eq!((a.size, a.block_size, a.physical_block_size), (8192, 4096, 8192));
    assert_eq!(a.uuid.to_string(), "f81d4fae-7dec-11d0-a765-00a0c91e6bf6");
    let n = config.bdev("n").unwrap();
    assert_eq!((&n.driver, n.size), (&Driver::Null { complete: NullComplete::Submit }, 512));
    assert_eq!(config.listeners().len(), 3);
    let subsystem = &config.subsystems()[0];
    assert!(subsystem.hosts.admits("nqn.2026-11.io.reactor:a") && !subsystem.hosts.admits("nqn.2026-11.io.reactor:c"));
    let namespaces: Vec<_> =
        subsystem.namespaces.iter().map(|one| (one.nsid, one.bdev.as_str(), one.read_only)).collect();
    assert_eq!(namespaces, [(2, "n", false), (256, "a", true)], "the default nsid is the position in the list");
}

#[test]
fn a_process_has_at_most_64_reactors() {
    let machine = Machine { online: (0..80).collect(), allowed: (0..80).collect() };
    let said = |text: &str| {
        parse(&Source::new("poll.toml", "/srv", text), &machine).map(|parsed| parsed.config.reactor.cores.len())
    };
    assert_eq!(said("reactor = { cores = \"0-63\" }"), Ok(64));
    let errors = said("reactor = { cores = \"0-64\" }").unwrap_err();
    assert_eq!(errors[0].message(), "65 cores are more than the 64 reactors of one process");
    assert_eq!(errors[0].help(), "write cores = \"0-63\"");
}

/// Hosts know a volume by it: it may never change.
#[test]
fn derived_uuids_are_version_5_and_stable() {
    assert_eq!(derived_uuid("ram0").to_string(), "5e98c149-6648-5f41-8ae8-446a5ef417d7");
    assert_eq!(derived_uuid("disk0").to_string(), "0088330b-fe5a-5c0e-a00a-aeb59248936d");
}

#[test]
fn bases_come_before_their_layers_and_give_them_their_size() {
    let config = config(
        r#"
        [[bdev]]
        name = "top"
        driver = "inject"
        base = "middle"
        [[bdev]]
        name = "middle"
        driver = "inject"
        base = "leaf"
        [[bdev]]
        name = "other"
        driver = "malloc"
        size = 512
        [[bdev]]
        name = "leaf"
        driver = "malloc"
        size = "1MiB"
        block_size = 4096
        "#,
    );
    let shape: Vec<_> = config.bdevs.iter().map(|bdev| (bdev.name.as_str(), bdev.size, bdev.block_size)).collect();
    let expected = [("other", 512, 512), ("leaf", 1 << 20, 4096), ("middle", 1 << 20, 4096), ("top", 1 << 20, 4096)];
    assert_eq!(shape, expected);
}

#[test]
fn loading_reads_parses_and_looks_at_paths() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("poll.toml");
    fs::write(&file, EXAMPLE).unwrap();
    let loaded = load(&file, &machine(), None, Style::Plain).unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new());
    let path = folder.path().join("disk0.img");
    assert!(matches!(&loaded.config.bdevs[1].driver, Driver::File { path: found, .. } if *found == path));
    assert!(!path.exists(), "nothing is created");
    fs::File::create(&path).unwrap().set_len(1 << 30).unwrap();
    load(&file, &machine(), None, Style::Plain).unwrap();
    fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let errors = load(&file, &machine(), None, Style::Plain).unwrap_err();
    assert!(errors[0].contains("\"disk0.img\" has 1MiB, not 1GiB"), "{errors:?}");
    fs::write(&file, "[memory\n").unwrap();
    assert_eq!(load(&file, &machine(), None, Style::Plain).unwrap_err().len(), 1);
}

/// At start another size is an error; on a reload a volume in service may grow, and one that is new may not.
#[test]
fn a_reload_lets_a_file_grow() {
    let folder = tempfile::tempdir().unwrap();
    let text = |size: &str, name: &str| {
        format!("[[bdev]]\nname = \"{name}\"\ndriver = \"file\"\npath = \"f\"\nsize = \"{size}\"\n")
    };
    fs::File::create(folder.path().join("f")).unwrap().set_len(1 << 20).unwrap();
    let running = parsed_in(&folder, &text("1MiB", "a")).config;
    let said = |text: &str, running: Option<&Config>| -> Vec<String> {
        let list = parsed_in(&folder, text).probe(running);
        list.iter().map(|one| one.message().to_owned()).collect()
    };
    assert_eq!(said(&text("2MiB", "a"), None), ["\"f\" has 1MiB, not 2MiB"]);
    assert_eq!(said(&text("2MiB", "b"), Some(&running)), ["\"f\" has 1MiB, not 2MiB"]);
    assert_eq!(said(&text("2MiB", "a"), Some(&running)), [""; 0]);
    assert_eq!(said(&text("512KiB", "a"), Some(&running)), [""; 0], "diff refuses to shrink it and leaves it");
    fs::File::create(folder.path().join("f")).unwrap().set_len(4 << 20).unwrap();
    assert_eq!(said(&text("2MiB", "a"), Some(&running)), ["\"f\" has 4MiB, not 2MiB"]);
}

#[test]
fn a_file_that_cannot_be_created_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o555)).unwrap();
    if fs::write(folder.path().join("probe"), []).is_ok() {
        eprintln!("this user may write anywhere: not tested");
        return;
    }
    let said = parsed_in(&folder, &file("a", "a.img")).probe(None);
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].message(), "\"a.img\" cannot be created: Permission denied");
    assert!(said[0].help().ends_with("writable for this user"));
}

/// The size of a device comes from sysfs; any device node of this machine will do.
#[test]
fn a_block_device_has_to_have_the_size() {
    let Some((name, sectors)) = fs::read_dir("/sys/class/block").into_iter().flatten().flatten().find_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let sectors: u64 = fs::read_to_string(entry.path().join("size")).ok()?.trim().parse().ok()?;
        Path::new("/dev").join(&name).exists().then_some((name, sectors))
    }) else {
        eprintln!("this machine shows no block device: not tested");
        return;
    };
    let text =
        |size: u64| format!("[[bdev]]\nname = \"a\"\ndriver = \"file\"\npath = \"/dev/{name}\"\nsize = {size}\n");
    let wrong = parsed_in("/", &text((sectors + 1) * 512)).probe(None);
    assert_eq!(wrong.len(), 1, "{name}");
    assert!(wrong[0].message().starts_with(&format!("\"/dev/{name}\" has ")), "{wrong:?}");
    if sectors > 0 {
        assert_eq!(parsed_in("/", &text(sectors * 512)).probe(None), []);
    }
}

fn changes(old: &str, new: &str) -> Vec<String> {
    said(&diff(&config(old), &config(new)).changes)
}

const BASE: &str = r#"
[[bdev]]
name = "ram0"
driver = "malloc"
size = "1MiB"
[[bdev]]
name = "disk0"
driver = "file"
path = "disk0.img"
size = "1MiB"
[[bdev]]
name = "slow0"
driver = "inject"
base = "ram0"
[nvmf]
listen = ["127.0.0.1:4420"]
[[nvmf.subsystem]]
nqn = "nqn.2026-11.io.reactor:vol0"
namespaces = [{ nsid = 1, bdev = "ram0" }, { nsid = 2, bdev = "disk0" }]
"#;

#[test]
fn the_same_text_changes_nothing_and_neither_do_other_lines() {
    assert_eq!(changes(BASE, BASE), [""; 0]);
    assert_eq!(changes(BASE, &format!("# a comment\n\n{BASE}")), [""; 0]);
}

#[test]
fn a_larger_volume_grows_with_the_layers_on_it() {
    let new = BASE.replacen("1MiB", "2MiB", 1);
    assert_eq!(
        changes(BASE, &new),
        ["bdev \"ram0\" grows from 1MiB to 2MiB", "bdev \"slow0\" grows from 1MiB to 2MiB"]
    );
    let shrunk = diff(&config(&new), &config(BASE));
    assert_eq!(said(&shrunk.changes), ["poll.toml:2: bdev \"ram0\" keeps its size of 2MiB: a volume cannot shrink"]);
    let sizes: Vec<u64> = shrunk.running.bdevs.iter().map(|bdev| bdev.size).collect();
    assert_eq!(sizes, [2 << 20, 1 << 20, 2 << 20]);
}

#[test]
fn the_control_socket_is_where_the_file_says_until_a_restart() {
    let with = |socket: &str| config(&format!("[control]\nsocket = \"{socket}\"\n{BASE}"));
    assert_eq!(config(BASE).socket, None);
    assert_eq!(with("control.sock").socket, Some(PathBuf::from("/srv/control.sock")));
    assert_eq!(with("/run/control.sock").socket, Some(PathBuf::from("/run/control.sock")));
    let result = diff(&with("/run/control.sock"), &config(BASE));
    assert_eq!(said(&result.changes), ["poll.toml: control.socket stays /run/control.sock until a restart"]);
    assert_eq!(result.running.socket, Some(PathBuf::from("/run/control.sock")));
    let long = format!("[control]\nsocket = \"/run/{}\"\n{BASE}", "x".repeat(103));
    let errors = parse(&Source::new("poll.toml", "/srv", long), &machine()).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
}

#[test]
fn what_cannot_change_is_named_and_left() {
    let new = format!(
        "reactor = {{ cores = [1], idle = \"poll\" }}\nmemory = {{ size = \"64MiB\", hugepages = \"off\" }}\n{BASE}"
    )
    .replace("driver = \"malloc\"\nsize = \"1MiB\"", "driver = \"null\"\nsize = \"4MiB\"\nblock_size = 4096")
    .replace("\"disk0.img\"", "\"disk1.img\"\ndirect = false")
    .replace("base = \"ram0\"", "base = \"disk0\"\nuuid = \"f81d4fae-7dec-11d0-a765-00a0c91e6bf6\"");
    let result = diff(&config(BASE), &config(&new));
    let expected = [
        "poll.toml: reactor.cores stays 0 until a restart",
        "poll.toml: reactor.idle stays as it is until a restart",
        "poll.toml: memory.size stays 256MiB until a restart",
        "poll.toml: memory.hugepages stays as it is until a restart",
        "poll.toml:4: bdev \"ram0\" stays as it is: driver, block_size and physical_block_size cannot change while it is open",
        "poll.toml:9: bdev \"disk0\" stays as it is: path and direct cannot change while it is open",
        "poll.toml:15: bdev \"slow0\" stays as it is: uuid and base cannot change while it is open",
    ];
    assert_eq!(said(&result.changes), expected);
    assert_eq!(result.running.reactor.cores, [0]);
    assert_eq!(result.running.memory.size, 256 << 20);
    for bdev in &result.running.bdevs {
        let before = config(BASE);
        let before = before.bdev(&bdev.name).unwrap();
        assert_eq!((&bdev.driver, bdev.uuid, bdev.size), (&before.driver, before.uuid, before.size));
    }
    assert_eq!(diff(&result.running, &config(BASE)).changes, [], "what runs is what ran");
}

#[test]
fn exports_leave_before_volumes_and_come_after_them() {
    let new = r#"
[[bdev]]
name = "slow1"
driver = "inject"
base = "ram1"
[[bdev]]
name = "ram1"
driver = "malloc"
size = "1MiB"
[[bdev]]
name = "disk0"
driver = "file"
path = "disk0.img"
size = "1MiB"
[nvmf]
listen = ["127.0.0.1:4421", "[::1]:4420"]
[[nvmf.subsystem]]
nqn = "nqn.2026-11.io.reactor:vol0"
hosts = ["nqn.2026-11.io.reactor:host"]
namespaces = [{ nsid = 1, bdev = "slow1" }, { nsid = 2, bdev = "disk0", read_only = true }]
[[nvmf.subsystem]]
nqn = "nqn.2026-11.io.reactor:vol1"
namespaces = [{ bdev = "ram1" }]
"#;
    let there = [
        "127.0.0.1:4420 no longer listens",
        "namespace 1 of \"nqn.2026-11.io.reactor:vol0\" is removed",
        "namespace 2 of \"nqn.2026-11.io.reactor:vol0\" is removed",
        "\"nqn.2026-11.io.reactor:vol0\" now admits nqn.2026-11.io.reactor:host",
        "bdev \"slow0\" is removed",
        "bdev \"ram0\" is removed",
        "bdev \"ram1\" is added",
        "bdev \"slow1\" is added",
        "subsystem \"nqn.2026-11.io.reactor:vol1\" is added",
        "namespace 1 of \"nqn.2026-11.io.reactor:vol0\" is added: bdev \"slow1\"",
        "namespace 2 of \"nqn.2026-11.io.reactor:vol0\" is added: bdev \"disk0\", read only",
        "127.0.0.1:4421 listens",
        "[::1]:4420 listens",
    ];
    assert_eq!(changes(BASE, new), there);
    let back = changes(new, BASE);
    assert!(back.contains(&"subsystem \"nqn.2026-11.io.reactor:vol1\" is removed".to_owned()), "{back:?}");
    assert!(back.contains(&"\"nqn.2026-11.io.reactor:vol0\" now admits any host".to_owned()), "{back:?}");
    let alone = BASE.split("[nvmf]").next().unwrap();
    assert_eq!(
        changes(BASE, alone),
        ["127.0.0.1:4420 no longer listens", "subsystem \"nqn.2026-11.io.reactor:vol0\" is removed"]
    );
}

/// `a` keeps its file because its path cannot change, so nothing else may open that file, nor show what stands on it.
#[test]
fn a_new_volume_does_not_get_the_file_of_one_that_stays() {
    let export = "[nvmf]\nlisten = [\"127.0.0.1:4420\"]\n[[nvmf.subsystem]]\nnqn = \"nqn.2026-11.io.reactor:v\"\n";
    let layer = "[[bdev]]\nname = \"c\"\ndriver = \"inject\"\nbase = \"b\"\n";
    let old = format!("{}{export}", file("a", "x"));
    let new = format!(
        "{}{}{layer}{export}namespaces = [{{ bdev = \"b\" }}, {{ bdev = \"a\" }}, {{ bdev = \"c\" }}]\n",
        file("a", "y"),
        file("b", "x")
    );
    let result = diff(&config(&old), &config(&new));
    let expected = [
        "poll.toml:1: bdev \"a\" stays as it is: path cannot change while it is open",
        "poll.toml:6: bdev \"b\" is not added: bdev \"a\" keeps what it needs",
        "poll.toml:11: bdev \"c\" is not added: bdev \"b\" below it is not added",
        "namespace 2 of \"nqn.2026-11.io.reactor:v\" is added: bdev \"a\"",
    ];
    assert_eq!(said(&result.changes), expected);
    assert_eq!(result.running.bdevs.len(), 1);
}

#[test]
fn a_layer_that_stays_keeps_its_base_open() {
    let new = BASE
        .replacen("[[bdev]]\nname = \"ram0\"\ndriver = \"malloc\"\nsize = \"1MiB\"\n", "", 1)
        .replace("base = \"ram0\"", "base = \"disk0\"")
        .replace("{ nsid = 1, bdev = \"ram0\" }, ", "");
    let result = diff(&config(BASE), &config(&new));
    let expected = [
        "poll.toml:7: bdev \"slow0\" stays as it is: base cannot change while it is open",
        "poll.toml: bdev \"ram0\" stays open: bdev \"slow0\" stands on it",
        "namespace 1 of \"nqn.2026-11.io.reactor:vol0\" is removed",
    ];
    assert_eq!(said(&result.changes), expected);
    let names: Vec<&str> = result.running.bdevs.iter().map(|bdev| bdev.name.as_str()).collect();
    assert_eq!(names, ["disk0", "ram0", "slow0"]);
}

/// One way to spoil a text.
#[derive(Clone, Debug)]
enum Spoil {
    Insert(prop::sample::Index, String),
    Remove(prop::sample::Index, usize),
    SwapLines(prop::sample::Index, prop::sample::Index),
    RepeatLine(prop::sample::Index),
}

fn spoil() -> impl Strategy<Value = Spoil> {
    let piece = prop_oneof![
        "\\PC{0,3}",
        "[\\x00-\\x7f]{1,2}",
        prop::sample::select(vec![
            "[",
            "]",
            "[[",
            "{",
            "}",
            "\"",
            "\"\"\"",
            "'",
            "=",
            ",",
            "\n",
            "\r",
            "\t",
            "#",
            ".",
            "-1",
            "0",
            "1e9",
            "99999999999999999999",
            "true",
            "[[bdev]]\n",
            "[bdev]\n",
            "[nvmf]\n",
            "[[ublk]]\n",
            "[[iscsi.target]]\n",
            "[iscsi]\n",
            "iqn = \"iqn.2026-11.io.reactor:v\"\n",
            "portals = [1]\n",
            "chap = { user = \"a\", secret_file = \"s\" }\n",
            "bdev = \"ram0\"\n",
            "id = 0\n",
            "base = \"ram0\"\n",
            "driver = \"inject\"\n",
            "size = 1\n",
            "[control]\n",
        ])
        .prop_map(str::to_owned),
    ];
    prop_oneof![
        (any::<prop::sample::Index>(), piece).prop_map(|(at, text)| Spoil::Insert(at, text)),
        (any::<prop::sample::Index>(), 1_usize..12).prop_map(|(at, count)| Spoil::Remove(at, count)),
        (any::<prop::sample::Index>(), any::<prop::sample::Index>()).prop_map(|(a, b)| Spoil::SwapLines(a, b)),
        any::<prop::sample::Index>().prop_map(Spoil::RepeatLine),
    ]
}

fn spoiled(text: &str, ways: &[Spoil]) -> String {
    ways.iter().fold(text.to_owned(), |text, way| {
        let mut chars: Vec<char> = text.chars().collect();
        let mut lines: Vec<&str> = text.lines().collect();
        match way {
            Spoil::Insert(at, piece) => {
                let at = at.index(chars.len() + 1);
                chars.splice(at..at, piece.chars());
                chars.into_iter().collect()
            }
            Spoil::Remove(at, count) => {
                let at = at.index(chars.len() + 1);
                chars.drain(at..(at + count).min(chars.len()));
                chars.into_iter().collect()
            }
            Spoil::SwapLines(..) | Spoil::RepeatLine(_) if lines.is_empty() => text,
            Spoil::SwapLines(a, b) => {
                let (a, b) = (a.index(lines.len()), b.index(lines.len()));
                lines.swap(a, b);
                lines.join("\n")
            }
            Spoil::RepeatLine(at) => {
                let at = at.index(lines.len());
                lines.insert(at, lines[at]);
                lines.join("\n")
            }
        }
    })
}

/// The example without its comments, with all that it has in comments: spoiling prose teaches nothing.
fn dense_example() -> String {
    let all = EXAMPLE.replace("\n# uuid = \"...\"", "").replace("\n# ", "\n");
    let keep = |line: &&str| line.trim_start().starts_with(['[', '{', ']']) || line.contains(" = ");
    all.lines().filter(keep).map(|line| format!("{}\n", line.split(" #").next().unwrap().trim_end())).collect()
}

/// Volumes that this machine has as block devices.
const LOCAL: &str = r#"
[reactor]
cores = "0-1"
[[bdev]]
name = "ram0"
driver = "malloc"
size = "1MiB"
[[bdev]]
name = "disk0"
driver = "file"
path = "disk0.img"
size = "1MiB"
[[ublk]]
bdev = "ram0"
id = 0
queues = 2
depth = 64
mode = "user-copy"
recover = false
required = true
read_only = true
[[ublk]]
bdev = "disk0"
"#;

#[test]
fn the_texts_to_spoil_are_valid() {
    assert_eq!(config(&dense_example()).bdevs.len(), 5);
    let iscsi = config(&dense_example()).iscsi.unwrap();
    let [target] = iscsi.targets.as_slice() else { panic!("{:?}", iscsi.targets) };
    assert!(iscsi.discovery_chap.is_some() && target.chap.is_some() && target.redirect.is_some());
    assert_eq!((target.iqn.as_str(), target.luns.len()), ("iqn.2026-11.io.reactor:vol0", 2));
    assert_eq!(config(LOCAL).ublk.len(), 2);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_text_does_harm(
        ways in prop::collection::vec(spoil(), 1..6),
        text in prop::sample::select(vec![EXAMPLE.to_owned(), dense_example(), LOCAL.to_owned()]),
    ) {
        let text = spoiled(&text, &ways);
        let source = Source::new("poll.toml", "/nonexistent", text.as_str());
        let list = match parse(&source, &machine()) {
            Ok(mut parsed) => {
                let same = diff(&parsed.config, &parsed.config);
                prop_assert_eq!((same.changes, same.iscsi), (Vec::<Change>::new(), IscsiSteps::default()));
                [parsed.probe(None), parsed.warnings].concat()
            }
            Err(errors) => {
                prop_assert!(!errors.is_empty());
                errors
            }
        };
        for one in list {
            let place = one.place(&source);
            let lines: Vec<&str> = text.split('\n').collect();
            let line = lines.get(place.line as usize - 1);
            prop_assert!(line.is_some_and(|line| place.column as usize <= line.chars().count() + 1), "{:?} {:?}", place, text);
            prop_assert!(!one.message().is_empty() && !one.help().is_empty());
            let rendered = one.render(&source, Style::Plain);
            let start = format!("poll.toml:{}:{}: ", place.line, place.column);
            prop_assert!(rendered.starts_with(&start) && rendered.contains('^') && rendered.contains(" help: "), "{}", rendered);
            prop_assert_eq!(rendered.lines().count(), 4);
        }
    }

    #[test]
    fn a_reload_can_be_carried_out_step_by_step(old in choices(), new in choices()) {
        let (old, new) = (config(&written(&old)), config(&written(&new)));
        let result = diff(&old, &new);
        let mut world = World::of(&old);
        world.carry_out_iscsi(&result.iscsi.before, &result.running);
        for change in &result.changes {
            world.carry_out(change, &result.running);
        }
        world.carry_out_iscsi(&result.iscsi.after, &result.running);
        prop_assert_eq!(&world, &World::of(&result.running));
        for bdev in &new.bdevs {
            let refused = result.changes.iter().any(|change| matches!(change, Change::Refused { .. }));
            let same = result.running.bdev(&bdev.name).is_some_and(|running| {
                (&running.driver, running.uuid, running.size) == (&bdev.driver, bdev.uuid, bdev.size)
            });
            prop_assert!(same || refused, "{:?} is left out without a word", bdev);
        }
        for ublk in &new.ublk {
            let refused = result.changes.iter().any(|change| matches!(change, Change::Refused { .. }));
            let same = result.running.ublk_of(&ublk.bdev).is_some_and(|running| {
                (running.id, running.depth) == (ublk.id, ublk.depth)
            });
            prop_assert!(same || refused, "{:?} is left out without a word", ublk);
        }
        let again = diff(&result.running, &new);
        prop_assert!(again.changes.iter().all(|change| matches!(change, Change::Refused { .. })), "{:?}", again.changes);
        prop_assert_eq!(again.iscsi, IscsiSteps::default());
    }
}

/// One of four volumes: driver, what it stands on, MiB, whether each of two subsystems and targets has it, and number and depth of its local
/// block device.
type Choice = (u8, usize, u8, [bool; 2], Option<(u32, u16)>);

fn choices() -> impl Strategy<Value = Vec<Option<Choice>>> {
    let ublk = prop::option::of((0_u32..4, prop::sample::select(vec![64_u16, 128, 128])));
    let choice = (0_u8..4, 0_usize..4, 1_u8..4, any::<[bool; 2]>(), ublk);
    prop::collection::vec(prop::option::weighted(0.8, choice), 4)
}

/// A valid text: what cannot be had becomes RAM.
fn written(choices: &[Option<Choice>]) -> String {
    let (mut text, mut paths, mut names) = (String::new(), Vec::new(), Vec::new());
    let (mut namespaces, mut local, mut ids) = ([String::new(), String::new()], String::new(), Vec::new());
    for (index, choice) in choices.iter().enumerate() {
        let Some((driver, below, size, exports, ublk)) = *choice else {
            continue;
        };
        let rest = match driver {
            0 if names.contains(&below) => format!("driver = \"inject\"\nbase = \"v{below}\"\n"),
            1 if !paths.contains(&below) => {
                paths.push(below);
                format!("driver = \"file\"\npath = \"f{below}\"\nsize = \"{size}MiB\"\n")
            }
            2 => format!("driver = \"null\"\nsize = \"{size}MiB\"\n"),
            _ => format!("driver = \"malloc\"\nsize = \"{size}MiB\"\n"),
        };
        text += &format!("[[bdev]]\nname = \"v{index}\"\n{rest}");
        names.push(index);
        for (list, _) in namespaces.iter_mut().zip(exports).filter(|(_, export)| *export) {
            *list += &format!("{{ bdev = \"v{index}\" }},");
        }
        if let Some((id, depth)) = ublk {
            local += &format!("[[ublk]]\nbdev = \"v{index}\"\ndepth = {depth}\n");
            if !ids.contains(&id) {
                local += &format!("id = {id}\n");
                ids.push(id);
            }
        }
    }
    text += "[nvmf]\nlisten = [\"127.0.0.1:4420\"]\n";
    for (index, list) in namespaces.iter().enumerate().filter(|(_, list)| !list.is_empty()) {
        text += &format!("[[nvmf.subsystem]]\nnqn = \"nqn.2026-11.io.reactor:{index}\"\nnamespaces = [{list}]\n");
    }
    text += "[iscsi]\nlisten = [\"127.0.0.1:3260\"]\n";
    for (index, list) in namespaces.iter().enumerate().filter(|(_, list)| !list.is_empty()) {
        text += &format!("[[iscsi.target]]\niqn = \"iqn.2026-11.io.reactor:{index}\"\nluns = [{list}]\n");
    }
    text + &local
}

/// What is open while a reload is carried out; asserts that no step breaks what stands.
#[derive(Debug, PartialEq)]
struct World {
    /// Name, base and bytes.
    bdevs: BTreeMap<String, (Option<String>, u64)>,
    /// Volume of each namespace of each subsystem.
    subsystems: BTreeMap<String, BTreeMap<u32, String>>,
    /// Volume of each logical unit of each target.
    targets: BTreeMap<String, BTreeMap<u16, String>>,
    /// Number and depth of the local block device of each volume that has one.
    ublk: BTreeMap<String, (Option<u32>, u16)>,
}

impl World {
    fn of(config: &Config) -> Self {
        let base = |driver: &Driver| driver.base().map(str::to_owned);
        let namespaces = |subsystem: &Subsystem| {
            subsystem.namespaces.iter().map(|one| (one.nsid, one.bdev.clone())).collect::<BTreeMap<_, _>>()
        };
        let luns = |target: &IscsiTarget| target.luns.iter().map(|one| (one.lun, one.bdev.clone())).collect();
        Self {
            bdevs: config.bdevs.iter().map(|bdev| (bdev.name.clone(), (base(&bdev.driver), bdev.size))).collect(),
            subsystems: config.subsystems().iter().map(|one| (one.nqn.clone(), namespaces(one))).collect(),
            targets: config.targets().iter().map(|one| (one.iqn.clone(), luns(one))).collect(),
            ublk: config.ublk.iter().map(|one| (one.bdev.clone(), (one.id, one.depth))).collect(),
        }
    }

    fn carry_out_iscsi(&mut self, steps: &[IscsiChange], running: &Config) {
        let target = Self::of(running);
        for change in steps {
            match change {
                IscsiChange::TargetRemoved { iqn } => assert!(self.targets.remove(iqn).is_some(), "{change}"),
                IscsiChange::TargetAdded { iqn } => {
                    let luns = target.targets[iqn].clone();
                    assert!(luns.values().all(|bdev| self.bdevs.contains_key(bdev)), "{change}: no volume");
                    assert!(self.targets.insert(iqn.clone(), luns).is_none(), "{change}: is there");
                }
                IscsiChange::LunRemoved { iqn, lun } => {
                    let removed = self.targets.get_mut(iqn).and_then(|one| one.remove(&lun.lun));
                    assert_eq!(removed.as_ref(), Some(&lun.bdev), "{change}");
                }
                IscsiChange::LunAdded { iqn, lun } => {
                    assert!(self.bdevs.contains_key(&lun.bdev), "{change}: no volume");
                    let luns = self.targets.get_mut(iqn).expect("is there");
                    assert!(luns.insert(lun.lun, lun.bdev.clone()).is_none(), "{change}: is there");
                }
                IscsiChange::PortalRemoved { .. }
                | IscsiChange::PortalChanged { .. }
                | IscsiChange::PortalAdded { .. }
                | IscsiChange::TargetChanged { .. }
                | IscsiChange::DiscoveryChapChanged => panic!("{change}: nothing asked for it"),
            }
        }
    }

    fn carry_out(&mut self, change: &Change, running: &Config) {
        let target = Self::of(running);
        match change {
            Change::BdevAdded { name } => {
                let bdev = target.bdevs[name].clone();
                assert!(bdev.0.iter().all(|base| self.bdevs.contains_key(base)), "{change}: no base");
                assert!(self.bdevs.insert(name.clone(), bdev).is_none(), "{change}: is there");
            }
            Change::BdevGrown { name, from, to } => {
                let bdev = self.bdevs.get_mut(name).expect("is there");
                assert!(bdev.1 == *from && from < to, "{change}: {bdev:?}");
                bdev.1 = *to;
            }
            Change::BdevRemoved { name } => {
                assert!(self.bdevs.remove(name).is_some(), "{change}: is not there");
                assert!(self.bdevs.values().all(|(base, _)| base.as_ref() != Some(name)), "{change}: has a layer");
                assert!(
                    self.subsystems.values().all(|one| one.values().all(|bdev| bdev != name)),
                    "{change}: is exported"
                );
                assert!(self.targets.values().all(|one| one.values().all(|bdev| bdev != name)), "{change}: is a LUN");
                assert!(!self.ublk.contains_key(name), "{change}: is a local block device");
            }
            Change::UblkRemoved { bdev } => {
                assert!(self.ublk.remove(bdev).is_some(), "{change}: is not there");
            }
            Change::UblkAdded { bdev } => {
                let ublk = target.ublk[bdev];
                assert!(self.bdevs.contains_key(bdev), "{change}: no volume");
                let taken = |other: &(Option<u32>, u16)| ublk.0.is_some() && other.0 == ublk.0;
                assert!(!self.ublk.values().any(taken), "{change}: the number is taken");
                assert!(self.ublk.insert(bdev.clone(), ublk).is_none(), "{change}: is there");
            }
            Change::SubsystemRemoved { nqn } => {
                assert!(self.subsystems.remove(nqn).is_some(), "{change}")
            }
            Change::SubsystemAdded { nqn } => {
                let subsystem = target.subsystems[nqn].clone();
                assert!(subsystem.values().all(|bdev| self.bdevs.contains_key(bdev)), "{change}: no volume");
                assert!(self.subsystems.insert(nqn.clone(), subsystem).is_none(), "{change}: is there");
            }
            Change::NamespaceRemoved { nqn, nsid } => {
                assert!(self.subsystems.get_mut(nqn).is_some_and(|one| one.remove(nsid).is_some()), "{change}");
            }
            Change::NamespaceAdded { nqn, nsid, bdev, .. } => {
                assert!(self.bdevs.contains_key(bdev), "{change}: no volume");
                let subsystem = self.subsystems.get_mut(nqn).expect("is there");
                assert!(subsystem.insert(*nsid, bdev.clone()).is_none(), "{change}: is there");
            }
            Change::Refused { .. } => {}
            Change::ListenerAdded { .. } | Change::ListenerRemoved { .. } | Change::HostsChanged { .. } => {
                panic!("{change}: nothing asked for it")
            }
        }
    }
}

#[test]
fn an_nvme_disk_has_defaults_and_keeps_its_keys() {
    let text = |keys: &str| config(&format!("[[bdev]]\nname = \"fast0\"\ndriver = \"nvme\"\n{keys}"));
    let plain = text("serial = \"S1\"");
    let Driver::Nvme(wanted) = &plain.bdevs[0].driver else { panic!("{:?}", plain.bdevs) };
    assert_eq!(
        (wanted.disk.to_string().as_str(), wanted.nsid, wanted.size, wanted.block_size),
        ("serial S1", None, None, None)
    );
    let usual = Tuning { depth: 256, timeout: Duration::from_secs(30), cmb: false, coalescing: None };
    assert_eq!(wanted.tuning, usual);
    let tuned = text("serial = \"S1\"\ndepth = 8\ntimeout = \"5s\"\ncmb = true\ncoalesce = 256\ncoalesce_us = 25500");
    let Driver::Nvme(wanted) = &tuned.bdevs[0].driver else { panic!("{:?}", tuned.bdevs) };
    let coalescing = Some(InterruptCoalescing { threshold_z: 255, time_100us: 255 });
    assert_eq!(wanted.tuning, Tuning { depth: 8, timeout: Duration::from_secs(5), cmb: true, coalescing });
    assert_eq!(wanted.mode, Mode::Auto);
    for (mode, expected) in [("auto", Mode::Auto), ("vfio", Mode::Vfio), ("kernel", Mode::Kernel)] {
        let with = text(&format!("serial = \"S1\"\nmode = \"{mode}\""));
        let Driver::Nvme(wanted) = &with.bdevs[0].driver else { panic!("{:?}", with.bdevs) };
        assert_eq!(wanted.mode, expected);
    }
    assert_eq!((plain.bdevs[0].size, plain.bdevs[0].block_size), (0, 0), "only the disk knows");
    let everything = "nsid = 2\nmode = \"vfio\"\ndepth = 64\ntimeout = \"2min\"\nsize = \"1MiB\"\nblock_size = 4096";
    for (keys, named) in [
        ("serial = \"S2\"".to_owned(), "serial"),
        ("pci = \"01:00.0\"".to_owned(), "pci or serial"),
        (format!("serial = \"S1\"\n{everything}"), "nsid, mode, depth, timeout, size and block_size"),
    ] {
        let found = diff(&plain, &text(&keys));
        let said: Vec<String> = found.changes.iter().map(Change::to_string).collect();
        let expected = format!("bdev \"fast0\" stays as it is: {named} cannot change while it is open");
        assert!(said.len() == 1 && said[0].ends_with(&expected), "{said:?}");
        assert_eq!(found.running.bdevs[0].driver, plain.bdevs[0].driver);
    }
    // Under another name it is the same namespace: removed first, then added.
    let renamed = config("[[bdev]]\nname = \"new0\"\ndriver = \"nvme\"\nserial = \"S1\"");
    let said: Vec<String> = diff(&plain, &renamed).changes.iter().map(Change::to_string).collect();
    assert_eq!(said, ["bdev \"fast0\" is removed", "bdev \"new0\" is added"]);
}

/// Two volumes for iSCSI.
const UNITS: &str = r#"
[[bdev]]
name = "ram0"
driver = "malloc"
size = "1MiB"
[[bdev]]
name = "ram1"
driver = "malloc"
size = "1MiB"
"#;

/// The two volumes, and `[iscsi]` with these keys and targets.
fn iscsi(keys: &str) -> Config {
    config(&format!("{UNITS}[iscsi]\n{keys}"))
}

/// The only target that `[iscsi]` has, with these keys.
fn target(keys: &str) -> IscsiTarget {
    let config = iscsi(&format!("{LISTEN}{TARGET}{keys}"));
    let [target] = config.targets() else { panic!("{:?}", config.targets()) };
    target.clone()
}

const LISTEN: &str = "listen = [\"127.0.0.1:3260\"]\n";
const TARGET: &str = "[[iscsi.target]]\niqn = \"iqn.2026-11.io.reactor:vol0\"\n";

fn units(target: &IscsiTarget) -> Vec<(u16, &str, bool)> {
    target.luns.iter().map(|Lun { lun, bdev, read_only, place: _ }| (*lun, bdev.as_str(), *read_only)).collect()
}

fn portals(config: &Config) -> Vec<(String, u16, Option<String>)> {
    let told = |advertise: Option<std::net::SocketAddr>| advertise.map(|address| address.to_string());
    let portals = config.iscsi_portals().iter();
    portals.map(|portal| (portal.listen.to_string(), portal.tpgt, told(portal.advertise))).collect()
}

#[test]
fn iscsi_has_defaults() {
    let config = iscsi(&format!("{LISTEN}{TARGET}luns = [{{ bdev = \"ram1\" }}, {{ bdev = \"ram0\" }}]\n"));
    assert_eq!(portals(&config), [("127.0.0.1:3260".to_owned(), 1, None)]);
    let iscsi = config.iscsi.as_ref().unwrap();
    assert_eq!((&iscsi.state, &iscsi.discovery_chap), (&PathBuf::from("/srv/iscsi-state"), &None));
    let target = config.target("iqn.2026-11.io.reactor:vol0").unwrap();
    assert_eq!(units(target), [(0, "ram1", false), (1, "ram0", false)]);
    assert_eq!((&target.alias, &target.chap, &target.portals, &target.redirect), (&None, &None, &None, &None));
    assert_eq!(target.initiators, AllowedInitiators::Any);
    assert_eq!((target.header_digest, target.data_digest), (DigestPolicy::Offer, DigestPolicy::Offer));
    assert_eq!(config.at(target.place), "poll.toml:13");
    assert_eq!(config.at(iscsi.portals[0].place), "poll.toml:11");
    assert_eq!(config.at(target.luns[1].place), "poll.toml:14");
    assert!(config.target("iqn.2026-11.io.reactor:vol1").is_none());
    assert_eq!(units(&self::target("")), [], "LUNs may come by reload");
}

#[test]
fn portals_and_the_directory_of_reservations_are_as_given() {
    let keys = r#"
state = "reservations"
portals = [
  { listen = "10.0.0.1:3260", tpgt = 65535, advertise = "203.0.113.9:3261" },
  { listen = "[::1]:0" },
  { listen = "[::1]:0", tpgt = 2, advertise = "[2001:db8::1]:3260" },
]
"#;
    let (first, second) = ("[[iscsi.target]]\niqn = \"eui.02004567a425678d\"\nportals = [2, 1]\n", TARGET);
    let parsed = parsed_in("/srv", &format!("{UNITS}[iscsi]{keys}{first}{second}"));
    assert_eq!(parsed.warnings.len(), 1, "the first is reached on loopback alone: {:?}", parsed.warnings);
    let config = parsed.config;
    let expected = [
        ("10.0.0.1:3260".to_owned(), 65535, Some("203.0.113.9:3261".to_owned())),
        ("[::1]:0".to_owned(), 1, None),
        ("[::1]:0".to_owned(), 2, Some("[2001:db8::1]:3260".to_owned())),
    ];
    assert_eq!(portals(&config), expected);
    let iscsi = config.iscsi.as_ref().unwrap();
    assert_eq!(iscsi.state, PathBuf::from("/srv/reservations"));
    let [first, second] = iscsi.targets.as_slice() else { panic!("{:?}", iscsi.targets) };
    assert_eq!(first.portals, Some(BTreeSet::from([1, 2])));
    let of = |target| iscsi.portals_of(target).map(|(index, portal)| (index, portal.tpgt)).collect::<Vec<_>>();
    assert_eq!(of(first), [(1, 1), (2, 2)]);
    assert_eq!(of(second), [(0, 65535), (1, 1), (2, 2)]);
}

#[test]
fn keys_of_targets_have_their_effect() {
    let target = target(
        r#"
        alias = "the database"
        luns = [{ lun = 255, bdev = "ram1" }, { bdev = "ram1", read_only = true }, { lun = 0, bdev = "ram0" }]
        initiators = ["iqn.1991-05.com.microsoft:HOST", "iqn.1993-08.org.debian:01:host"]
        header_digest = "require"
        data_digest = "off"
        portals = [1]
        redirect = { address = "[2001:db8::2]:3260", permanent = true }
        "#,
    );
    assert_eq!(target.alias.as_deref(), Some("the database"));
    assert_eq!(units(&target), [(0, "ram0", false), (1, "ram1", true), (255, "ram1", false)]);
    let names = ["iqn.1991-05.com.microsoft:host", "iqn.1993-08.org.debian:01:host"];
    assert_eq!(target.initiators, AllowedInitiators::Listed(BTreeSet::from(names.map(str::to_owned))));
    assert!(target.initiators.allows("iqn.1991-05.com.microsoft:HOST") && !target.initiators.allows("iqn.other"));
    assert_eq!((target.header_digest, target.data_digest), (DigestPolicy::Require, DigestPolicy::Off));
    assert!(target.is_in_group(1) && !target.is_in_group(2));
    assert_eq!(target.redirect, Some(Redirect { address: "[2001:db8::2]:3260".to_owned(), permanent: true }));
    let elsewhere = self::target("redirect = { address = \"10.0.0.2:3260\" }\ndata_digest = \"offer\"");
    assert_eq!(elsewhere.redirect, Some(Redirect { address: "10.0.0.2:3260".to_owned(), permanent: false }));
}

#[test]
fn names_of_targets_have_three_forms() {
    let naa = format!("naa.{}", "0123456789abcdef".repeat(2));
    for name in ["iqn.2026-11.io", "iqn.0001-01.a-b.c:x:y.z", "eui.0123456789abcdef", "naa.0123456789abcdef", &naa] {
        let config = iscsi(&format!("{LISTEN}[[iscsi.target]]\niqn = \"{name}\"\n"));
        assert!(config.target(name).is_some(), "{name}");
        assert!(reactor::iscsi::is_name(name), "{name}");
    }
}

#[test]
fn portals_and_luns_have_an_end() {
    let said = |text: String| {
        let source = Source::new("poll.toml", "/srv", text);
        parse(&source, &machine()).map(|_| ()).map_err(|errors| {
            assert_eq!(errors.len(), 1, "{errors:?}");
            (errors[0].place(&source).line, errors[0].message().to_owned())
        })
    };
    let listen = |count| said(format!("[iscsi]\nlisten = [\n{}]\n", "\"127.0.0.1:0\",\n".repeat(count)));
    assert_eq!(listen(64), Ok(()));
    assert_eq!(listen(66), Err((67, "there are at most 64 portals, not 66".to_owned())));
    let luns = |count: usize| {
        let names: String =
            (0..count).map(|i| format!("[[bdev]]\nname = \"n{i}\"\ndriver = \"null\"\nsize = 512\n")).collect();
        let luns: String = (0..count).map(|i| format!("{{ bdev = \"n{i}\" }},\n")).collect();
        said(format!("[iscsi]\n{LISTEN}{TARGET}luns = [\n{luns}]\n{names}"))
    };
    assert_eq!(luns(256), Ok(()));
    assert_eq!(luns(257), Err((262, "a target has at most 256 LUNs, this one has 257".to_owned())));
}

#[test]
fn the_same_volume_has_all_doors_and_several_targets() {
    let lun = "luns = [{ bdev = \"ram0\" }]\n";
    let config = iscsi(&format!(
        "{LISTEN}{TARGET}{lun}{}{lun}\
        [nvmf]\nlisten = [\"127.0.0.1:4420\"]\n[[nvmf.subsystem]]\nnqn = \"nqn.2026-11.io.reactor:v\"\nnamespaces = [{{ bdev = \"ram0\" }}]\n\
        [[ublk]]\nbdev = \"ram0\"\n",
        TARGET.replace("vol0", "vol1")
    ));
    assert_eq!((config.targets().len(), config.subsystems().len(), config.ublk.len()), (2, 1, 1));
}

#[test]
fn connect_lines_say_what_a_linux_host_does() {
    let of = |listen: &str, bound: &str| {
        let config = iscsi(&format!("portals = [{{ {listen} }}]\n"));
        config.iscsi_portals()[0].connect_lines("iqn.2026-11.io.reactor:vol0", bound.parse().unwrap())
    };
    let login = |address: &str| format!("iscsiadm -m node -T iqn.2026-11.io.reactor:vol0 -p {address} --login");
    let find = |address: &str| format!("iscsiadm -m discovery -t sendtargets -p {address}");
    assert_eq!(of("listen = \"127.0.0.1:0\"", "127.0.0.1:33260"), [find("127.0.0.1:33260"), login("127.0.0.1:33260")]);
    assert_eq!(of("listen = \"[::1]:3260\"", "[::1]:3260"), [find("[::1]:3260"), login("[::1]:3260")]);
    let told = of("listen = \"10.0.0.1:3260\", advertise = \"203.0.113.9:3261\"", "10.0.0.1:3260");
    assert_eq!(told, [find("10.0.0.1:3260"), login("203.0.113.9:3261")]);
}

/// Secrets for a configuration of the same folder.
struct Secrets {
    folder: tempfile::TempDir,
}

impl Secrets {
    const OWN: &str = "twelve bytes";
    const MUTUAL: &str = "thirteen char";

    fn new() -> Self {
        let secrets = Self { folder: tempfile::tempdir().unwrap() };
        secrets.write("own", &format!("{}\n", Self::OWN), 0o600);
        secrets.write("mutual", Self::MUTUAL, 0o400);
        secrets
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, secret: &str, mode: u32) {
        let _ = fs::remove_file(self.path(name));
        fs::write(self.path(name), secret).unwrap();
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(mode)).unwrap();
    }

    /// The configuration with its secrets, or what is wrong with them.
    fn load(&self, keys: &str) -> Result<Config, Vec<String>> {
        self.write("poll.toml", &format!("{UNITS}[iscsi]\n{keys}"), 0o644);
        load(&self.path("poll.toml"), &machine(), None, Style::Plain).map(|loaded| loaded.config)
    }

    /// The same for one target with this `chap`.
    fn chap(&self, keys: &str) -> Result<Config, Vec<String>> {
        self.load(&format!("{LISTEN}{TARGET}chap = {{ user = \"alice\", secret_file = \"own\"{keys} }}\n"))
    }
}

const MUTUAL_KEYS: &str = ", mutual_user = \"target\", mutual_secret_file = \"mutual\"";

fn credentials(user: &str, secret: &str) -> Credentials {
    Credentials::new(user.to_owned(), Secret::new(secret.as_bytes().to_vec()).unwrap()).unwrap()
}

#[test]
fn secrets_are_read_when_the_file_is_loaded() {
    let secrets = Secrets::new();
    let proof = |user: &str| ChapConfig::new(credentials(user, Secrets::OWN), None).unwrap();
    let config = secrets.chap("").unwrap();
    let own = Chap {
        user: "alice".to_owned(),
        secret_file: secrets.path("own"),
        mutual: None,
        algorithms: BTreeSet::from([ChapAlgorithm::Md5, ChapAlgorithm::Sha256]),
        proof: Some(proof("alice")),
    };
    assert_eq!(config.targets()[0].chap.as_ref(), Some(&own));
    let both = secrets.chap(&format!(", algorithms = [\"sha256\"]{MUTUAL_KEYS}")).unwrap();
    let with_mutual = ChapConfig::new(credentials("alice", Secrets::OWN), Some(credentials("target", Secrets::MUTUAL)));
    let expected = Chap {
        mutual: Some(MutualChap { user: "target".to_owned(), secret_file: secrets.path("mutual") }),
        algorithms: BTreeSet::from([ChapAlgorithm::Sha256]),
        proof: Some(with_mutual.unwrap().only(BTreeSet::from([ChapAlgorithm::Sha256]))),
        ..own
    };
    assert_eq!(both.targets()[0].chap.as_ref(), Some(&expected));
    let discovery =
        format!("{LISTEN}discovery_chap = {{ user = \"bob\", secret_file = \"{}\" }}\n", secrets.path("own").display());
    let config = secrets.load(&discovery).unwrap();
    assert_eq!(config.iscsi.unwrap().discovery_chap.unwrap().proof, Some(proof("bob")));
    let unread = parsed_in(secrets.folder.path(), &format!("[iscsi]\n{discovery}")).config;
    assert_eq!(unread.iscsi.unwrap().discovery_chap.unwrap().proof, None, "a parser opens nothing");
}

#[test]
fn secrets_are_never_shown() {
    let secrets = Secrets::new();
    let config = secrets.chap(MUTUAL_KEYS).unwrap();
    let shown = format!("{config:?} {config:#?}");
    assert!(shown.contains("alice") && !shown.contains(Secrets::OWN) && !shown.contains(Secrets::MUTUAL), "{shown}");
    let bytes = |secret: &str| format!("{:?}", secret.as_bytes());
    assert!(!shown.contains(&bytes(Secrets::OWN)) && !shown.contains(&bytes(Secrets::MUTUAL)), "{shown}");
    for (content, mode) in [("eleven char", 0o600), ("twelve bytes\nand more\n", 0o600), (Secrets::OWN, 0o644)] {
        secrets.write("own", content, mode);
        let errors = secrets.chap("").unwrap_err().concat();
        assert!(content.lines().all(|line| !errors.contains(line)), "{errors}");
    }
}

#[test]
fn secrets_have_12_to_255_bytes_in_one_line() {
    let secrets = Secrets::new();
    let check = |content: &str, accepted: Option<&str>| {
        secrets.write("own", content, 0o600);
        let loaded = secrets.chap("");
        match (&loaded, accepted) {
            (Ok(config), Some(secret)) => {
                let proof = ChapConfig::new(credentials("alice", secret), None).unwrap();
                assert_eq!(config.targets()[0].chap.as_ref().unwrap().proof, Some(proof), "{content:?}");
            }
            (Err(errors), None) => assert_eq!(errors.len(), 1, "{content:?}: {errors:?}"),
            _ => panic!("{content:?}: {loaded:?}"),
        }
    };
    let (longest, longer) = ("x".repeat(255), "x".repeat(256));
    check("twelve bytes", Some("twelve bytes"));
    check(" blanks stay \n", Some(" blanks stay "));
    check("zwölf Bytes\n", Some("zwölf Bytes"));
    check(&longest, Some(&longest));
    check(&format!("{longest}\n"), Some(&longest));
    for refused in [
        "",
        "\n",
        "eleven char",
        "eleven char\n",
        "twelve bytes\r\n",
        "twelve bytes\n\n",
        "twelve\nbytes",
        "\0twelve bytes",
    ] {
        check(refused, None);
    }
    check(&longer, None);
    check(&format!("{longer}\n"), None);
    check(&"x\n".repeat(100_000), None);
}

#[test]
fn secrets_are_for_their_owner_alone() {
    let secrets = Secrets::new();
    for mode in 0..0o1000_u32 {
        secrets.write("own", Secrets::OWN, 0o600);
        fs::set_permissions(secrets.path("own"), fs::Permissions::from_mode(mode)).unwrap();
        if mode & 0o400 == 0 && mode & 0o077 == 0 {
            continue; // Whether it can be read depends on who runs this.
        }
        let loaded = secrets.chap("");
        assert_eq!(loaded.is_ok(), mode & 0o077 == 0, "{mode:o}: {loaded:?}");
        if let Err(errors) = loaded {
            let expected = format!("help: chmod 600 {}\n", secrets.path("own").display());
            assert!(errors.len() == 1 && errors[0].ends_with(&expected), "{errors:?}");
        }
    }
}

#[test]
fn secrets_belong_to_this_user_or_root() {
    let secrets = Secrets::new();
    if chown(secrets.path("own"), Some(12345), None).is_err() {
        eprintln!("this user may not give files away: not tested");
        return;
    }
    let errors = secrets.chap("").unwrap_err();
    assert!(errors.len() == 1 && errors[0].contains("\"own\" belongs to user 12345, neither to user"), "{errors:?}");
}

/// A named pipe without a writer would block who opens it.
#[test]
fn secrets_are_regular_files_or_links_to_them() {
    let secrets = Secrets::new();
    fs::rename(secrets.path("own"), secrets.path("there")).unwrap();
    std::os::unix::fs::symlink("there", secrets.path("own")).unwrap();
    assert!(secrets.chap("").is_ok());
    fs::remove_file(secrets.path("own")).unwrap();
    let made = std::process::Command::new("mkfifo").args(["-m", "600"]).arg(secrets.path("own")).status().unwrap();
    assert!(made.success());
    let errors = secrets.chap("").unwrap_err();
    assert!(errors.len() == 1 && errors[0].contains("\"own\" is not a regular file"), "{errors:?}");
}

/// Where it is not given it is for who needs it: most never do, and their folder may be read-only.
#[test]
fn the_directory_of_reservations_is_looked_at() {
    let secrets = Secrets::new();
    let load = |keys: &str| secrets.load(&format!("{LISTEN}{keys}")).map(|config| config.iscsi.unwrap().state);
    assert_eq!(load("state = \"kept\"\n"), Ok(secrets.path("kept")));
    assert_eq!(load(""), Ok(secrets.path("iscsi-state")));
    assert!(!secrets.path("kept").exists() && !secrets.path("iscsi-state").exists(), "nothing is created");
    fs::create_dir(secrets.path("kept")).unwrap();
    assert_eq!(load("state = \"kept/\"\n"), Ok(secrets.path("kept/")));
    secrets.write("iscsi-state", "", 0o600);
    let errors = load("").unwrap_err();
    assert!(errors.len() == 1 && errors[0].contains("iscsi-state\" is not a directory"), "{errors:?}");
}

/// Sentences of the two parts.
fn steps(old: &Config, new: &Config) -> [Vec<String>; 2] {
    let result = diff(old, new);
    assert_eq!(diff(&result.running, new).iscsi, IscsiSteps::default(), "all is done");
    [&result.iscsi.before, &result.iscsi.after].map(|part| part.iter().map(ToString::to_string).collect())
}

const LUNS: &str = "luns = [{ bdev = \"ram0\" }, { bdev = \"ram1\" }]\n";

#[test]
fn targets_leave_before_volumes_and_come_after_them() {
    let old = iscsi(&format!("{LISTEN}{TARGET}{LUNS}{}{LUNS}", TARGET.replace("vol0", "gone")));
    let text = format!(
        "{UNITS}[iscsi]\nlisten = [\"127.0.0.1:3261\"]\n{TARGET}\
         luns = [{{ bdev = \"new0\" }}, {{ bdev = \"ram1\", read_only = true }}, {{ bdev = \"ram1\", lun = 7 }}]\n{}{LUNS}",
        TARGET.replace("vol0", "come")
    )
    .replace("\"ram0\"", "\"new0\"");
    let new = config(&text);
    let before = [
        "127.0.0.1:3260 no longer listens for iSCSI",
        "target \"iqn.2026-11.io.reactor:gone\" is removed",
        "LUN 0 of \"iqn.2026-11.io.reactor:vol0\" is removed",
        "LUN 1 of \"iqn.2026-11.io.reactor:vol0\" is removed",
    ];
    let after = [
        "target \"iqn.2026-11.io.reactor:come\" is added",
        "LUN 0 of \"iqn.2026-11.io.reactor:vol0\" is added: bdev \"new0\"",
        "LUN 1 of \"iqn.2026-11.io.reactor:vol0\" is added: bdev \"ram1\", read only",
        "LUN 7 of \"iqn.2026-11.io.reactor:vol0\" is added: bdev \"ram1\"",
        "127.0.0.1:3261 listens for iSCSI, in portal group 1",
    ];
    assert_eq!(steps(&old, &new), [before.map(str::to_owned).to_vec(), after.map(str::to_owned).to_vec()]);
    assert_eq!(said(&diff(&old, &new).changes), ["bdev \"ram0\" is removed", "bdev \"new0\" is added"]);
}

#[test]
fn the_door_comes_and_goes_as_a_whole() {
    let (without, with) = (config(UNITS), iscsi(&format!("{LISTEN}{TARGET}{LUNS}")));
    let come =
        ["target \"iqn.2026-11.io.reactor:vol0\" is added", "127.0.0.1:3260 listens for iSCSI, in portal group 1"];
    assert_eq!(steps(&without, &with), [vec![], come.map(str::to_owned).to_vec()]);
    let go = ["127.0.0.1:3260 no longer listens for iSCSI", "target \"iqn.2026-11.io.reactor:vol0\" is removed"];
    assert_eq!(steps(&with, &without), [go.map(str::to_owned).to_vec(), vec![]]);
}

#[test]
fn the_same_targets_on_other_lines_change_nothing() {
    let chap = "chap = { user = \"alice\", secret_file = \"own\" }\nalias = \"a\"\n";
    let (old, new) =
        (format!("{LISTEN}{TARGET}{LUNS}{chap}"), format!("# moved\n{LISTEN}{TARGET}\n{chap}{LUNS}portals = [1]\n"));
    let (old, new) = (iscsi(&old), iscsi(&new.replace("portals = [1]\n", "")));
    let result = diff(&old, &new);
    assert_eq!((result.changes, &result.iscsi), (vec![], &IscsiSteps::default()));
    assert!(result.iscsi.is_empty());
    assert_eq!(result.running.targets()[0].place, new.targets()[0].place);
}

#[test]
fn each_key_of_a_target_changes_by_reload() {
    let old = iscsi(&format!("{LISTEN}{TARGET}{LUNS}"));
    let chap = "chap = { user = \"alice\", secret_file = \"own\" }\n";
    let each = [
        ("alias = \"a\"\n", TargetKey::Alias),
        (chap, TargetKey::Chap),
        ("initiators = [\"iqn.1993-08.org.debian:01:host\"]\n", TargetKey::Initiators),
        ("header_digest = \"require\"\n", TargetKey::HeaderDigest),
        ("data_digest = \"off\"\n", TargetKey::DataDigest),
        ("portals = [1]\n", TargetKey::Portals),
        ("redirect = { address = \"10.0.0.2:3260\" }\n", TargetKey::Redirect),
    ];
    let changed = |keys: &[TargetKey]| {
        let iqn = "iqn.2026-11.io.reactor:vol0".to_owned();
        IscsiSteps { before: vec![IscsiChange::TargetChanged { iqn, keys: keys.to_vec() }], after: vec![] }
    };
    for (text, key) in each {
        let new = iscsi(&format!("{LISTEN}{TARGET}{LUNS}{text}"));
        assert_eq!(diff(&old, &new).iscsi, changed(&[key]));
        assert_eq!(diff(&new, &old).iscsi, changed(&[key]));
        let [before, _] = steps(&old, &new);
        assert_eq!(before, [format!("target \"iqn.2026-11.io.reactor:vol0\" has other {} from now on", key.name())]);
        assert!(text.starts_with(key.name()), "a key is called as the file calls it");
    }
    let all: String = each.iter().map(|(text, _)| *text).collect();
    let new = iscsi(&format!("{LISTEN}{TARGET}{LUNS}{all}"));
    assert_eq!(diff(&old, &new).iscsi, changed(&each.map(|(_, key)| key)));
    let algorithms = chap.replace(" }", ", algorithms = [\"md5\"] }");
    let (one, other) =
        (iscsi(&format!("{LISTEN}{TARGET}{LUNS}{chap}")), iscsi(&format!("{LISTEN}{TARGET}{LUNS}{algorithms}")));
    assert_eq!(diff(&one, &other).iscsi, changed(&[TargetKey::Chap]));
}

#[test]
fn another_secret_in_the_same_file_is_a_change() {
    let secrets = Secrets::new();
    let discovery = "discovery_chap = { user = \"bob\", secret_file = \"mutual\" }\n";
    let text = format!("{LISTEN}{discovery}{TARGET}chap = {{ user = \"alice\", secret_file = \"own\" }}\n");
    let old = secrets.load(&text).unwrap();
    assert!(diff(&old, &secrets.load(&text).unwrap()).iscsi.is_empty());
    secrets.write("own", "another secret", 0o600);
    let chap = "target \"iqn.2026-11.io.reactor:vol0\" has other chap from now on".to_owned();
    assert_eq!(steps(&old, &secrets.load(&text).unwrap()), [vec![chap.clone()], vec![]]);
    secrets.write("mutual", "one more secret", 0o600);
    let both = [chap, "iscsi.discovery_chap is another from now on".to_owned()];
    assert_eq!(steps(&old, &secrets.load(&text).unwrap()), [both.to_vec(), vec![]]);
}

/// Of one address there may be several whose port is 0: each has at most one that it becomes.
#[test]
fn portals_keep_their_sockets_where_they_can() {
    let portal = |rest: &str| format!("{{ listen = \"127.0.0.1:0\"{rest} }}");
    let with = |portals: &[String]| iscsi(&format!("portals = [{}]\n", portals.join(", ")));
    let (plain, second, told) =
        (portal(""), portal(", tpgt = 2"), portal(", tpgt = 2, advertise = \"203.0.113.9:3260\""));
    let old = with(&[plain.clone(), plain.clone(), second.clone()]);
    let changed = steps(&old, &with(&[told.clone(), plain.clone(), plain.clone()]));
    assert_eq!(
        changed,
        [vec!["127.0.0.1:0 is in portal group 2, told as 203.0.113.9:3260 from now on".to_owned()], vec![]]
    );
    let result = diff(&old, &with(&[plain.clone(), second.clone()]));
    let removed = IscsiChange::PortalRemoved { portal: old.iscsi_portals()[1].clone() };
    assert_eq!((result.iscsi.before, result.iscsi.after), (vec![removed], vec![]));
    let added = steps(&with(std::slice::from_ref(&plain)), &old);
    let listens = |group| format!("127.0.0.1:0 listens for iSCSI, in portal group {group}");
    assert_eq!(added, [vec![], vec![listens(1), listens(2)]]);
    let same = iscsi("listen = [\"127.0.0.1:0\"]\n");
    assert!(diff(&same, &with(&[plain])).iscsi.is_empty(), "listen is short for portals");
}

#[test]
fn the_directory_of_reservations_stays_until_a_restart() {
    let with = |state: &str| iscsi(&format!("{LISTEN}state = \"{state}\"\n"));
    let result = diff(&with("/var/lib/a"), &with("/var/lib/b"));
    assert_eq!(said(&result.changes), ["poll.toml: iscsi.state stays /var/lib/a until a restart"]);
    assert_eq!(result.running.iscsi.unwrap().state, PathBuf::from("/var/lib/a"));
    let fresh = diff(&config(UNITS), &with("/var/lib/b"));
    assert_eq!((said(&fresh.changes), fresh.running.iscsi.unwrap().state), (vec![], PathBuf::from("/var/lib/b")));
}

/// `a` keeps the file that `b` wants, and what is of `b` is left out with it.
#[test]
fn a_volume_that_is_not_added_is_no_logical_unit() {
    let door = |luns: &str| format!("[iscsi]\n{LISTEN}{TARGET}luns = [{luns}]\n");
    let old = config(&format!("{}{}", file("a", "x"), door("")));
    let new = format!("{}{}{}", file("a", "y"), file("b", "x"), door("{ bdev = \"b\" }, { bdev = \"a\" }"));
    let result = diff(&old, &config(&new));
    let added: Vec<String> = result.iscsi.after.iter().map(ToString::to_string).collect();
    assert_eq!(added, ["LUN 1 of \"iqn.2026-11.io.reactor:vol0\" is added: bdev \"a\""]);
    assert_eq!((result.changes.len(), units(&result.running.targets()[0])), (2, vec![(1, "a", false)]));
}

fn door(config: &Config) -> String {
    // All but the places, which a debug print has too.
    let iscsi = config.iscsi.as_ref().map(|IscsiConfig { portals, state, discovery_chap, targets }| {
        let mut targets: Vec<String> = targets
            .iter()
            .map(|one| {
                let IscsiTarget {
                    iqn,
                    alias,
                    luns: _,
                    chap,
                    initiators,
                    header_digest,
                    data_digest,
                    portals,
                    redirect,
                    place: _,
                } = one;
                let keys = (alias, chap, initiators, header_digest, data_digest, portals, redirect);
                format!("{iqn} {keys:?} {:?}", units(one))
            })
            .collect();
        targets.sort();
        let mut portals: Vec<_> = portals.iter().map(|one| (one.listen, one.tpgt, one.advertise)).collect();
        portals.sort();
        format!("{portals:?} {state:?} {discovery_chap:?} {targets:?}")
    });
    format!("{iscsi:?}")
}

/// What failed stays as it was, and the next reload tries it again: each alone, and all together.
#[test]
fn changes_of_the_door_that_failed_are_taken_back() {
    let old = iscsi(&format!(
        "portals = [{{ listen = \"127.0.0.1:1\" }}, {{ listen = \"127.0.0.1:2\" }}]\n\
         {TARGET}luns = [{{ bdev = \"ram0\" }}, {{ bdev = \"ram1\" }}]\n{}",
        TARGET.replace("vol0", "gone")
    ));
    let new = iscsi(&format!(
        "portals = [{{ listen = \"127.0.0.1:2\", tpgt = 9 }}, {{ listen = \"127.0.0.1:3\" }}]\n\
         discovery_chap = {{ user = \"bob\", secret_file = \"s\" }}\n\
         {TARGET}luns = [{{ bdev = \"ram1\", read_only = true }}, {{ bdev = \"ram1\" }}, {{ bdev = \"ram0\" }}]\n\
         alias = \"a\"\nchap = {{ user = \"alice\", secret_file = \"s\" }}\ninitiators = [\"iqn.a\"]\nheader_digest = \"off\"\n\
         data_digest = \"require\"\nportals = [9]\nredirect = {{ address = \"10.0.0.2:3260\" }}\n{}",
        TARGET.replace("vol0", "come")
    ));
    let result = diff(&old, &new);
    let all: Vec<&IscsiChange> = result.iscsi.before.iter().chain(&result.iscsi.after).collect();
    let mut kinds: Vec<_> = all.iter().map(|change| std::mem::discriminant(*change)).collect();
    kinds.dedup();
    assert_eq!(kinds.len(), 9, "every kind of change: {all:?}");
    for failed in &all {
        let mut running = result.running.clone();
        failed.undo(&mut running, &old);
        let again = diff(&running, &new).iscsi;
        // Who keeps a LUN keeps out who was to have its number, too.
        let lun = match failed {
            IscsiChange::LunRemoved { lun, .. } => Some(lun.lun),
            _ => None,
        };
        let follows =
            |change: &&IscsiChange| matches!(change, IscsiChange::LunAdded { lun: one, .. } if Some(one.lun) == lun);
        let expected: Vec<&IscsiChange> =
            all.iter().copied().filter(|change| change == failed || follows(change)).collect();
        assert_eq!(again.before.iter().chain(&again.after).collect::<Vec<_>>(), expected);
    }
    let undo_all = |old: &Config, new: &Config| {
        let result = diff(old, new);
        let mut running = result.running;
        let IscsiSteps { before, after } = result.iscsi;
        before.iter().chain(&after).for_each(|change| change.undo(&mut running, old));
        running
    };
    assert_eq!(door(&undo_all(&old, &new)), door(&old));
    assert_eq!(door(&undo_all(&new, &old)), door(&new));
    assert_eq!(door(&undo_all(&old, &config(UNITS))), door(&old), "the door stays where it was to go");
}
