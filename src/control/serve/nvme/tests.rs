//! What a command to a disk takes out of service.

use super::*;
use crate::control::config::{Change, Machine, Source, parse};

fn config() -> Config {
    let text = r#"
[[bdev]]
name = "fast0"
driver = "nvme"
pci = "0000:01:00.0"
nsid = 1
[[bdev]]
name = "slow"
driver = "inject"
base = "fast0"
[[bdev]]
name = "slower"
driver = "inject"
base = "slow"
[[bdev]]
name = "ram0"
driver = "malloc"
size = "1MiB"
[nvmf]
listen = ["127.0.0.1:4420"]
[[nvmf.subsystem]]
nqn = "nqn.2026-11.io.reactor:vol0"
namespaces = [{ bdev = "slower" }, { bdev = "ram0" }]
[[ublk]]
bdev = "fast0"
"#;
    let machine = Machine { online: vec![0], allowed: vec![0] };
    parse(&Source::new("poll.toml", "", text), &machine).unwrap().config
}

#[test]
fn what_stands_on_a_disk_goes_with_it_and_comes_back() {
    let config = config();
    let names = with_layers(&config, vec!["fast0".to_owned()]);
    assert_eq!(names, ["fast0", "slow", "slower"]);
    let rest = without(&config, &names);
    let down = config::diff(&config, &rest);
    let nqn = "nqn.2026-11.io.reactor:vol0".to_owned();
    let removed = |name: &str| Change::BdevRemoved { name: name.to_owned() };
    assert_eq!(
        down.changes,
        [
            Change::NamespaceRemoved { nqn: nqn.clone(), nsid: 1 },
            Change::UblkRemoved { bdev: "fast0".to_owned() },
            removed("slower"),
            removed("slow"),
            removed("fast0"),
        ]
    );
    let up = config::diff(&down.running, &config);
    let added = |name: &str| Change::BdevAdded { name: name.to_owned() };
    let namespace = Change::NamespaceAdded { nqn, nsid: 1, bdev: "slower".to_owned(), read_only: false };
    let ublk = Change::UblkAdded { bdev: "fast0".to_owned() };
    assert_eq!(up.changes, [added("fast0"), added("slow"), added("slower"), namespace, ublk]);
    assert_eq!(config::diff(&up.running, &config).changes, []);
}

#[test]
fn requests_that_are_none_need_no_server() {
    let (events, _errands) = mpsc::channel();
    let call = |method: &str, params: &str| call(&events, method, serde_json::from_str(params).unwrap());
    assert_eq!(call("nvme.eat", "{}"), Err(RpcError::Unknown));
    for (method, params, says) in [
        ("nvme.list", r#"{"device": "x"}"#, "nvme.list has no parameters"),
        ("nvme.smart", "null", "invalid type: null"),
        ("nvme.smart", "{}", "missing field `device`"),
        ("nvme.smart", r#"{"device": "disk0"}"#, "`device`: `disk0` is no address of a PCI function"),
        ("nvme.unbind", r#"{"device": "0000:01:00.0", "nsid": 1}"#, "nvme.unbind takes `device` and `force`"),
        ("nvme.log", r#"{"device": "0000:01:00.0"}"#, "`page` is missing"),
    ] {
        let Err(RpcError::Params(why)) = call(method, params) else { panic!("{method} {params}") };
        assert!(why.starts_with(says), "{why}");
    }
}

#[test]
fn a_server_that_is_ending_says_so() {
    let (events, errands) = mpsc::channel();
    drop(errands);
    let answer = call(&events, "nvme.list", Value::Null);
    assert_eq!(answer, Err(RpcError::Failed("reactor is ending".to_owned())));
}
