//! Start and end without hosts: what is printed, exit codes, ports.

use std::net::{SocketAddr, TcpListener, TcpStream};

use super::server::{END_LIMIT, PATIENCE, Place, Program, nqn, reactor};

/// One RAM volume behind a listener.
fn config(listen: &str) -> String {
    format!(
        r#"
        [memory]
        size = "64MiB"
        [[bdev]]
        name = "ram0"
        driver = "malloc"
        size = "16MiB"
        [nvmf]
        listen = [{listen}]
        [[nvmf.subsystem]]
        nqn = "{}"
        namespaces = [{{ bdev = "ram0" }}]
        [[nvmf.subsystem]]
        nqn = "{}"
        namespaces = [{{ bdev = "ram0" }}]
        "#,
        nqn(0),
        nqn(1)
    )
}

#[test]
fn the_connect_lines_come_before_ready_and_nothing_after() {
    let place = Place::new();
    let mut server = place.serve(&config(r#""127.0.0.1:0", "[::1]:0""#));
    let (four, six) = (server.addresses[0], server.addresses[1]);
    assert!(four.is_ipv4() && four.port() != 0 && six.is_ipv6() && six.port() != 0, "{four} {six}");
    server.program.signal("TERM");
    server.ended();
    let mut expected = Vec::new();
    for bound in [four, six] {
        let at = format!("-t tcp -a {} -s {}", bound.ip(), bound.port());
        expected.push(format!("nvme discover {at}"));
        expected.extend((0..2).map(|number| format!("nvme connect {at} -n {}", nqn(number))));
    }
    expected.push("reactor: ready".to_owned());
    assert_eq!(server.program.out.all(), expected);
}

#[test]
fn interrupt_and_terminate_end_an_idle_server_in_order() {
    for name in ["INT", "TERM"] {
        let mut server = Place::new().serve(&config(r#""127.0.0.1:0""#));
        // A connection that never says a word must not hold it up.
        let silent = TcpStream::connect(server.address()).unwrap();
        server.program.signal(name);
        let took = server.ended();
        assert!(took <= END_LIMIT, "SIG{name}: {took:?}");
        drop(silent);
    }
}

#[test]
fn a_port_in_use_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let place = Place::new();
    let mut program = place.program(&config(&format!("\"{address}\"")));
    let text = program.ends_with(1);
    assert!(text.contains(&address.to_string()), "{text}");
    assert!(text.contains("poll.toml:9"), "the place in the configuration: {text}");
    assert!(text.to_lowercase().contains("in use"), "{text}");
    assert_eq!(program.out.all(), [""; 0]);
}

#[test]
fn a_restart_binds_its_port_at_once() {
    let place = Place::new();
    let server = place.serve(&config(r#""127.0.0.1:0""#));
    let address = server.address();
    // The connection is closed by the server first: its end of it stays in TIME_WAIT.
    let host = TcpStream::connect(address).unwrap();
    server.stop();
    drop(host);
    let fixed = config(&format!("\"{address}\""));
    let mut server = place.serve(&fixed);
    assert_eq!(server.address(), address);
    let host = TcpStream::connect(address).unwrap();
    server.program.signal("KILL");
    server.program.end(PATIENCE);
    drop(host);
    place.serve(&fixed).stop();
}

#[test]
fn the_successor_of_a_killed_server_gets_its_port_and_its_file() {
    let place = Place::new();
    let file = |address: SocketAddr| on_a_file(address, "namespaces = [{ bdev = \"disk0\" }]");
    let mut server = place.serve(&file("127.0.0.1:0".parse().unwrap()));
    let fixed = file(server.address());
    for _ in 0..10 {
        // The kernel takes the rings of a killed process down, and with them its files, only after its end.
        server.program.signal("KILL");
        server.program.end(PATIENCE);
        server = place.serve(&fixed);
    }
    server.stop();
}

/// A configuration with a file volume and this last line, the tenth.
fn on_a_file(address: SocketAddr, last: &str) -> String {
    format!(
        r#"[[bdev]]
name = "disk0"
driver = "file"
path = "disk0.img"
size = "1MiB"
[nvmf]
listen = ["{address}"]
[[nvmf.subsystem]]
nqn = "{}"
{last}
"#,
        nqn(0)
    )
}

#[test]
fn a_bad_configuration_starts_nothing() {
    // Taken, so that trying to bind it would show as another exit code.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    for (last, column, about) in [
        ("namespaces = [{ bdev = \"disk1\" }]", 24, "disk1"),
        ("namespace = [{ bdev = \"disk0\" }]", 1, "namespace"),
        ("namespaces = 7", 14, "array"),
    ] {
        for check in [false, true] {
            let place = Place::new();
            let path = place.configure(&on_a_file(address, last));
            let mut command = reactor(&["--config"]);
            command.arg(&path);
            if check {
                command.arg("--check");
            }
            let mut program = Program::run(&mut command);
            let text = program.ends_with(2);
            let at = format!("{}:10:{column}: ", path.display());
            assert!(text.starts_with(&at), "{at} in:\n{text}");
            assert!(text.contains(about) && text.contains(last) && text.contains('^'), "{text}");
            assert_eq!(program.out.all(), [""; 0]);
            assert!(!place.path("disk0.img").exists(), "a file was made for a refused configuration");
        }
    }
}

#[test]
fn check_opens_and_binds_nothing() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = Place::new();
    let good = on_a_file(taken.local_addr().unwrap(), "namespaces = [{ bdev = \"disk0\" }]");
    let path = place.configure(&good);
    let mut program = Program::run(reactor(&["--check", "--config"]).arg(&path));
    assert_eq!(program.ends_with(0), "");
    assert_eq!(program.out.all(), [""; 0]);
    assert!(!place.path("disk0.img").exists());
    // The size is wrong: found by looking at the path.
    std::fs::write(place.path("disk0.img"), [0; 4096]).unwrap();
    let mut program = Program::run(reactor(&["--check", "--config"]).arg(&path));
    let text = program.ends_with(2);
    assert!(text.starts_with(&format!("{}:5:8: ", path.display())), "{text}");
}

#[test]
fn the_example_is_valid() {
    let root = env!("CARGO_MANIFEST_DIR");
    let mut program = Program::run(reactor(&["--check", "--config"]).arg(format!("{root}/poll.toml")));
    assert_eq!(program.ends_with(0), "");
}

#[test]
fn a_signal_during_the_start_ends_it_in_order() {
    let place = Place::new();
    let mut program = place.program(&config(r#""127.0.0.1:0""#));
    let (caught, _) = super::server::until(PATIENCE, || {
        // The handler is installed first of all.
        let status = std::fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap_or_default();
        let caught = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap_or("0");
        u64::from_str_radix(caught, 16).unwrap() & 1 << 14 != 0
    });
    assert!(caught);
    program.signal("TERM");
    let (status, _) = program.end(PATIENCE);
    assert_eq!(status.code(), Some(0), "{status}: {:?}", program.err.all());
}
