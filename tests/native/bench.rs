//! `reactor bench`: what it prints and how it ends.

use super::server::{PATIENCE, Place, Program, nqn, reactor};

const CONFIG: &str = r#"
[memory]
size = "64MiB"
[[bdev]]
name = "ram0"
driver = "malloc"
size = "16MiB"
[[bdev]]
name = "null0"
driver = "null"
size = "1GiB"
[[bdev]]
name = "failing0"
driver = "inject"
base = "ram0"
rules = [{ op = "write", nth = 100, count = 3, action = "fail", status = "media-error" }]
"#;

/// Runs a bench that is to end with `code`; its standard output and error.
fn bench(words: &[&str], code: i32) -> (String, String) {
    let mut program = Program::run(reactor(&["bench", "--time", "1"]).args(words));
    let text = program.ends_with(code);
    (program.out.all().join("\n"), text)
}

/// The keys of the contract, and that the numbers go together.
fn check(text: &str, block: f64, errors: u64) -> serde_json::Value {
    let value: serde_json::Value = serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"));
    let mut keys: Vec<_> = value.as_object().unwrap().keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        ["busy_ns_per_io", "enters_per_io", "errors", "iops", "ios", "latency_us", "mib_per_s", "seconds"]
    );
    let number =
        |key: &str| value.pointer(key).and_then(serde_json::Value::as_f64).unwrap_or_else(|| panic!("{key}: {text}"));
    assert_eq!(value["errors"].as_u64(), Some(errors), "{text}");
    let ios = value["ios"].as_u64().unwrap() as f64;
    assert!(ios > 100.0, "{text}");
    assert!((0.9..5.0).contains(&number("/seconds")), "{text}");
    let near = |a: f64, b: f64| (a - b).abs() <= 0.02 * a.max(b) + 1.0;
    assert!(near(number("/iops") * number("/seconds"), ios), "{text}");
    assert!(near(number("/iops") * block / f64::from(1 << 20), number("/mib_per_s")), "{text}");
    let [p50, p99, p99_9] = ["/latency_us/p50", "/latency_us/p99", "/latency_us/p99_9"].map(number);
    assert!(number("/enters_per_io") >= 0.0 && number("/busy_ns_per_io") > 0.0, "{text}");
    assert!(number("/latency_us/mean") > 0.0 && p50 <= p99 && p99 <= p99_9, "{text}");
    value
}

#[test]
fn a_bench_of_a_volume_prints_the_json_of_the_contract() {
    let place = Place::new();
    let config = place.configure(CONFIG);
    let config = config.to_str().unwrap();
    for (bdev, pattern, size, bytes) in
        [("null0", "randread", "4k", 4096.0), ("ram0", "randrw", "4KiB", 4096.0), ("ram0", "write", "128k", 131_072.0)]
    {
        let words = ["--config", config, "--bdev", bdev, "--rw", pattern, "--bs", size, "--qd", "8", "--json"];
        let (out, _) = bench(&words, 0);
        check(&out, bytes, 0);
    }
    // Two reactors on one core come to the same as on two, only slower.
    let cores = reactor::sys::affinity::allowed_cores().unwrap();
    let two = cores.iter().take(2).map(usize::to_string).collect::<Vec<_>>().join(",");
    let (out, _) = bench(&["--config", config, "--bdev", "null0", "--cores", &two, "--json"], 0);
    check(&out, 4096.0, 0);
    let (out, text) = bench(&["--config", config, "--bdev", "null0", "--cores", "8000"], 1);
    assert!(out.is_empty() && text.contains("8000"), "{text}");
    let (out, _) = bench(&["--config", config, "--bdev", "null0"], 0);
    assert!(out.contains(" IOPS, ") && out.contains("latency: mean ") && out.contains(", 0 errors"), "{out}");
}

#[test]
fn a_failed_io_makes_a_bench_fail() {
    let place = Place::new();
    let config = place.configure(CONFIG);
    let words = ["--config", config.to_str().unwrap(), "--bdev", "failing0", "--rw", "write", "--qd", "4", "--json"];
    let (out, text) = bench(&words, 1);
    check(&out, 4096.0, 3);
    assert!(text.contains("Write") && text.contains("MediaError"), "{text}");
}

#[test]
fn a_bench_of_what_is_not_there_says_so() {
    let place = Place::new();
    let config = place.configure(CONFIG);
    let config = config.to_str().unwrap();
    let (out, text) = bench(&["--config", config, "--bdev", "ram1"], 2);
    assert!(out.is_empty() && text.contains("ram1"), "{text}");
    let (out, text) = bench(&["--config", config, "--bdev", "ram0", "--bs", "513"], 2);
    assert!(out.is_empty() && text.contains("512"), "{text}");
    let words = ["--config", config, "--bdev", "ram0", "--bs", "1m", "--qd", "1024", "--rw", "write"];
    let (out, text) = bench(&words, 1);
    assert!(out.is_empty() && text.contains("1024 MiB of buffers") && text.contains("memory.size"), "{text}");
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (out, text) = bench(&["--connect", &format!("nvme-tcp://127.0.0.1:{port}/{}", nqn(0))], 1);
    assert!(out.is_empty() && text.contains(&port.to_string()), "{text}");
}

#[test]
fn a_bench_of_a_remote_namespace_prints_the_json_of_the_contract() {
    let text = format!(
        "{CONFIG}[nvmf]\nlisten = [\"127.0.0.1:0\"]\n[[nvmf.subsystem]]\nnqn = \"{}\"\nnamespaces = [{{ bdev = \"ram0\" }}, {{ bdev = \"null0\" }}]\n",
        nqn(0)
    );
    let server = Place::new().serve(&text);
    let url = |nsid: u32| format!("nvme-tcp://{}/{}?nsid={nsid}", server.address(), nqn(0));
    for (nsid, more, in_flight) in [
        (1, &["--rw", "randrw", "--queues", "2"][..], 64.0),
        (2, &["--header-digest", "--data-digest", "--sqflow"], 32.0),
        (2, &["--controllers", "3", "--queues", "5", "--qd", "1"], 15.0),
        (1, &["--rw", "write", "--bs", "1m", "--qd", "4"], 4.0),
    ] {
        let url = url(nsid);
        let words = [&["--connect", &url, "--json"], more].concat();
        let (out, _) = bench(&words, 0);
        let value = check(&out, if more.contains(&"1m") { 1_048_576.0 } else { 4096.0 }, 0);
        // Little's law: more than are in flight cannot be counted.
        let mean = value.pointer("/latency_us/mean").and_then(serde_json::Value::as_f64).unwrap();
        let found = value["iops"].as_f64().unwrap() * mean / 1e6;
        assert!(found < in_flight * 1.05, "{found} in flight: {out}");
    }
    let (out, text) = bench(&["--connect", &url(3)], 1);
    assert!(out.is_empty() && !text.is_empty(), "{text}");
    server.stop();
}

#[test]
fn a_server_tells_its_counters_at_a_signal_and_serves_on() {
    let text = format!(
        "{CONFIG}[nvmf]\nlisten = [\"127.0.0.1:0\"]\n[[nvmf.subsystem]]\nnqn = \"{}\"\nnamespaces = [{{ bdev = \"null0\" }}]\n",
        nqn(0)
    );
    let mut server = Place::new().serve(&text);
    let url = format!("nvme-tcp://{}/{}", server.address(), nqn(0));
    let mut told = || {
        server.program.signal("USR1");
        let line =
            server.program.err.next_with("reactor 0: busy_turns=", PATIENCE).expect("a line of counters").to_owned();
        let of = |name: &str| {
            let number = line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            number.and_then(|number| number.parse::<u64>().ok()).unwrap_or_else(|| panic!("{name}: {line}"))
        };
        assert_eq!((of("overflows"), of("stale")), (0, 0), "{line}");
        (of("busy_ns"), of("enters"))
    };
    let before = told();
    bench(&["--connect", &url], 0);
    let after = told();
    assert!(after.0 > before.0 && after.1 > before.1, "{before:?}, {after:?}");
    server.stop();
}
