//! Hosts that break the protocol, or keep to it and take what they can get, while a well-behaved one must not notice.

mod answers;
mod checker;
mod crowds;
mod limits;
mod raw;
mod rows;

use super::server::nqn;

/// Two volumes behind one subsystem: namespace 1 for hostile hosts, 2 for the well-behaved one.
fn config(memory: &str) -> String {
    format!(
        r#"
        [memory]
        size = "{memory}"
        [[bdev]]
        name = "ram1"
        driver = "malloc"
        size = "16MiB"
        [[bdev]]
        name = "ram2"
        driver = "malloc"
        size = "16MiB"
        [nvmf]
        listen = ["127.0.0.1:0"]
        [[nvmf.subsystem]]
        nqn = "{}"
        namespaces = [{{ bdev = "ram1" }}, {{ bdev = "ram2" }}]
        "#,
        nqn(0)
    )
}
