//! `[[ublk]]` as data: what the keys become, and what a reload makes of them.

mod texts;

use reactor::control::config::{Change, Config, UblkConfig, UblkMode, diff};
use texts::{file, parsed_in, said};

const VOLUMES: &str = r#"
[[bdev]]
name = "ram0"
driver = "malloc"
size = "1MiB"
[[bdev]]
name = "ram1"
driver = "malloc"
size = "1MiB"
"#;

fn config(text: &str) -> Config {
    let parsed = parsed_in("/srv", text);
    assert_eq!(parsed.warnings, [], "a volume is exported");
    parsed.config
}

/// The two volumes, and what else is given.
fn with(text: &str) -> Config {
    config(&format!("{VOLUMES}{text}"))
}

/// All keys but the place.
type Keys<'a> = (&'a str, Option<u32>, [u16; 2], UblkMode, [bool; 3]);

fn keys(ublk: &UblkConfig) -> Keys<'_> {
    let UblkConfig { bdev, id, queues, depth, mode, recover, required, read_only, place: _ } = ublk;
    (bdev, *id, [*queues, *depth], *mode, [*recover, *required, *read_only])
}

fn all(config: &Config) -> Vec<Keys<'_>> {
    config.ublk.iter().map(keys).collect()
}

#[test]
fn all_but_the_volume_has_a_default() {
    let config = with("[[ublk]]\nbdev = \"ram0\"\n");
    assert_eq!(all(&config), [("ram0", None, [1, 256], UblkMode::Auto, [true, false, false])]);
    assert_eq!(config.at(config.ublk[0].place), "poll.toml:10");
    assert!(config.ublk_of("ram0").is_some() && config.ublk_of("ram1").is_none());
}

#[test]
fn there_is_a_queue_for_each_reactor() {
    let config = with("[reactor]\ncores = \"0-2\"\n[[ublk]]\nbdev = \"ram0\"\n[[ublk]]\nbdev = \"ram1\"\nqueues = 2\n");
    let queues: Vec<u16> = config.ublk.iter().map(|ublk| ublk.queues).collect();
    assert_eq!(queues, [3, 2]);
}

#[test]
fn keys_have_their_effect_and_the_order_of_the_file_stays() {
    let config = with(
        r#"
        [[ublk]]
        bdev = "ram1"
        id = 1048575
        queues = 64
        depth = 4096
        mode = "zero-copy"
        recover = false
        required = true
        read_only = true
        [[ublk]]
        bdev = "ram0"
        id = 0
        queues = 1
        depth = 1
        mode = "copy"
        "#,
    );
    let expected = [
        ("ram1", Some(1_048_575), [64, 4096], UblkMode::ZeroCopy, [false, true, true]),
        ("ram0", Some(0), [1, 1], UblkMode::Copy, [true, false, false]),
    ];
    assert_eq!(all(&config), expected);
    for (word, mode) in [("auto", UblkMode::Auto), ("user-copy", UblkMode::UserCopy)] {
        assert_eq!(with(&format!("[[ublk]]\nbdev = \"ram0\"\nmode = \"{word}\"\n")).ublk[0].mode, mode);
    }
}

#[test]
fn a_volume_has_both_doors_at_once() {
    let config = with(
        r#"
        [[ublk]]
        bdev = "ram0"
        [nvmf]
        listen = ["127.0.0.1:4420"]
        [[nvmf.subsystem]]
        nqn = "nqn.2026-11.io.reactor:vol0"
        namespaces = [{ bdev = "ram0" }]
        "#,
    );
    assert_eq!((config.ublk.len(), config.subsystems().len()), (1, 1));
}

#[test]
fn devices_leave_before_volumes_and_come_after_them() {
    let old = r#"
[[bdev]]
name = "ram0"
driver = "malloc"
size = "1MiB"
[[bdev]]
name = "ram1"
driver = "malloc"
size = "1MiB"
[[bdev]]
name = "ram2"
driver = "malloc"
size = "1MiB"
[nvmf]
listen = ["127.0.0.1:4420"]
[[nvmf.subsystem]]
nqn = "nqn.2026-11.io.reactor:vol0"
namespaces = [{ nsid = 1, bdev = "ram0" }]
[[ublk]]
bdev = "ram0"
id = 0
[[ublk]]
bdev = "ram1"
id = 1
"#;
    let new = old
        .replacen("ram0", "new0", 1)
        .replacen("1MiB", "4MiB", 2)
        .replace("bdev = \"ram0\"", "bdev = \"new0\"")
        .replace("4420", "4421")
        + "[[ublk]]\nbdev = \"ram2\"\nread_only = true\n";
    let (old, new) = (config(old), config(&new));
    let there = [
        "127.0.0.1:4420 no longer listens",
        "namespace 1 of \"nqn.2026-11.io.reactor:vol0\" is removed",
        "the ublk device of bdev \"ram0\" is removed",
        "bdev \"ram0\" is removed",
        "bdev \"new0\" is added",
        "bdev \"ram1\" grows from 1MiB to 4MiB",
        "namespace 1 of \"nqn.2026-11.io.reactor:vol0\" is added: bdev \"new0\"",
        "127.0.0.1:4421 listens",
        "the ublk device of bdev \"new0\" is added",
        "the ublk device of bdev \"ram2\" is added",
    ];
    let result = diff(&old, &new);
    assert_eq!(said(&result.changes), there);
    assert_eq!(all(&result.running), all(&new));
    assert!(result.changes.contains(&Change::UblkRemoved { bdev: "ram0".to_owned() }));
    assert!(result.changes.contains(&Change::UblkAdded { bdev: "new0".to_owned() }));
    assert_eq!(diff(&result.running, &new).changes, []);
}

#[test]
fn the_same_devices_on_other_lines_change_nothing() {
    let text = "[[ublk]]\nbdev = \"ram0\"\nid = 3\n";
    let (old, new) = (with(text), with(&format!("# a comment\n{text}queues = 1\nmode = \"auto\"\n")));
    let result = diff(&old, &new);
    assert_eq!(result.changes, []);
    assert_eq!(result.running.ublk[0].place, new.ublk[0].place);
}

#[test]
fn keys_of_a_device_in_service_are_named_and_left() {
    let old = with("[[ublk]]\nbdev = \"ram0\"\n[[ublk]]\nbdev = \"ram1\"\nid = 7\n");
    let new = with(
        r#"[[ublk]]
bdev = "ram1"
depth = 64
[[ublk]]
bdev = "ram0"
id = 0
queues = 2
depth = 1
mode = "copy"
recover = false
required = true
read_only = true
"#,
    );
    let result = diff(&old, &new);
    let expected = [
        "poll.toml:10: the ublk device of bdev \"ram1\" stays as it is until a restart: id and depth cannot change",
        "poll.toml:13: the ublk device of bdev \"ram0\" stays as it is until a restart: \
         id, queues, depth, mode, recover, required and read_only cannot change",
    ];
    assert_eq!(said(&result.changes), expected);
    assert!(result.changes.iter().all(|change| matches!(change, Change::Refused { .. })));
    assert_eq!(all(&result.running), [keys(&old.ublk[1]), keys(&old.ublk[0])]);
    assert_eq!(diff(&result.running, &old).changes, [], "what runs is what ran");
}

/// The cores stay, so what follows them is no change of the device; what was written is one.
#[test]
fn queues_that_follow_the_cores_are_refused_with_them() {
    let text = |cores: &str, queues: &str| {
        with(&format!("[reactor]\ncores = \"{cores}\"\n[[ublk]]\nbdev = \"ram0\"\n{queues}"))
    };
    let cores_stay = "poll.toml: reactor.cores stays 0-1 until a restart";
    let result = diff(&text("0-1", ""), &text("0-2", ""));
    assert_eq!(said(&result.changes), [cores_stay]);
    assert_eq!(result.running.ublk[0].queues, 2);
    let result = diff(&text("0-1", ""), &text("0-2", "queues = 1\n"));
    let queues_stay =
        "poll.toml:12: the ublk device of bdev \"ram0\" stays as it is until a restart: queues cannot change";
    assert_eq!(said(&result.changes), [cores_stay, queues_stay]);
    assert_eq!(result.running.ublk[0].queues, 2);
}

/// `ram0` keeps its number because that cannot change, so no other device gets it.
#[test]
fn a_new_device_does_not_get_the_number_of_one_that_stays() {
    let old = with("[[ublk]]\nbdev = \"ram0\"\nid = 0\n");
    let new = with("[[ublk]]\nbdev = \"ram0\"\nid = 1\n[[ublk]]\nbdev = \"ram1\"\nid = 0\n");
    let result = diff(&old, &new);
    let expected = [
        "poll.toml:10: the ublk device of bdev \"ram0\" stays as it is until a restart: id cannot change",
        "poll.toml:13: the ublk device of bdev \"ram1\" is not added: that of bdev \"ram0\" keeps id 0",
    ];
    assert_eq!(said(&result.changes), expected);
    assert_eq!(all(&result.running), all(&old));
    let moved = diff(&old, &with("[[ublk]]\nbdev = \"ram1\"\nid = 0\n"));
    let expected = ["the ublk device of bdev \"ram0\" is removed", "the ublk device of bdev \"ram1\" is added"];
    assert_eq!(said(&moved.changes), expected, "a number that is given up can be had");
}

/// `a` keeps the file that `b` wants, and the device of a volume that is not there is left out with it.
#[test]
fn a_volume_that_is_not_added_has_no_device() {
    let a = "[[ublk]]\nbdev = \"a\"\n";
    let old = config(&format!("{}{a}", file("a", "x")));
    let new = config(&format!("{}{}{a}[[ublk]]\nbdev = \"b\"\n", file("a", "y"), file("b", "x")));
    let result = diff(&old, &new);
    let expected = [
        "poll.toml:1: bdev \"a\" stays as it is: path cannot change while it is open",
        "poll.toml:6: bdev \"b\" is not added: bdev \"a\" keeps what it needs",
    ];
    assert_eq!(said(&result.changes), expected);
    assert_eq!(all(&result.running), all(&old));
}

/// What failed stays as it was, and the next reload tries it again.
#[test]
fn a_change_that_failed_is_taken_back() {
    let old = with("[[ublk]]\nbdev = \"ram0\"\nid = 5\n");
    let new = with("[[ublk]]\nbdev = \"ram1\"\nid = 6\n");
    let result = diff(&old, &new);
    let [removed, added] = result.changes.as_slice() else { panic!("{:?}", result.changes) };
    let without = |failed: &[&Change]| {
        let mut running = result.running.clone();
        failed.iter().for_each(|change| change.undo(&mut running, &old));
        let again = diff(&running, &new).changes;
        assert_eq!(again, failed.iter().map(|change| (*change).clone()).collect::<Vec<_>>());
        running.ublk
    };
    let [kept] = &*without(&[removed, added]) else { panic!("one is there") };
    assert_eq!(keys(kept), keys(&old.ublk[0]));
    assert!(without(&[added]).is_empty());
    let both = without(&[removed]);
    assert_eq!(both.iter().map(|ublk| ublk.id).collect::<Vec<_>>(), [Some(6), Some(5)]);
}
