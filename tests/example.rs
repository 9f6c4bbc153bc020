//! The example as a process: a host reads its pattern over NVMe/TCP, and it ends when told to.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;

use reactor::nvme::host::{Controller, Identity, Options, Queue, Volume};
use reactor::reactor::io::{IoOp, IoStatus, Segment};
use reactor::reactor::{Idle, Reactor, start};

/// The example `name`, beside this test. `cargo test` builds examples before tests run; asked for one test only, it does not.
fn example(name: &str) -> PathBuf {
    let here = std::env::current_exe().unwrap();
    let profile = here.ancestors().nth(2).unwrap();
    let path = profile.join("examples").join(name);
    if !path.exists() {
        let profile = match profile.file_name().and_then(|name| name.to_str()) {
            None | Some("debug") => "dev",
            Some(other) => other,
        };
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--offline", "--example", name, "--profile", profile, "--target-dir"]);
        build.arg(path.ancestors().nth(3).unwrap()).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")));
        assert!(build.status().unwrap().success(), "{build:?}");
    }
    path
}

/// Killed if the test fails.
struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

async fn read(reactor: &Rc<Reactor>, volume: &Volume, op: IoOp, offset: u64, len: usize) -> (IoStatus, Vec<u8>) {
    let mut io = reactor.create_io().unwrap();
    io.prepare(op, offset, len as u64);
    let mut buf = reactor.buffer(len).await;
    buf.fill(0xaa);
    io.data.push_buf(buf);
    let mut io = volume.execute(io).await;
    let data = match io.data.pop() {
        Some(Segment::Buf(buf)) => buf.to_vec(),
        _ => Vec::new(),
    };
    let status = io.status;
    reactor.retire_io(io);
    (status, data)
}

#[test]
fn the_pattern_disk_is_served_by_less_than_forty_lines() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/pattern.rs")).unwrap();
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with("//"));
    assert!(lines.count() < 40);

    let mut command = Command::new(example("pattern"));
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut program = Program(child);
    let mut lines = BufReader::new(program.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let connect = lines.next().expect("how to connect");
    let words: Vec<&str> = connect.split_whitespace().collect();
    let ["nvme", "connect", "-t", "tcp", "-a", ip, "-s", port, "-n", nqn] = words[..] else { panic!("{connect}") };
    let address = SocketAddr::new(ip.parse().unwrap(), port.parse().unwrap());
    assert_eq!(lines.next().as_deref(), Some("pattern: ready, press Enter to end"));

    let mut options = Options::new(nqn, Identity::from_uuid([7; 16]));
    options.kato_ms = 30_000;
    let reactor = start::solo(32 << 20).unwrap();
    let here = reactor.clone();
    reactor.spawn("test", async move {
        let controller = Controller::connect(&here, address, options).await.unwrap();
        let queue = Queue::connect(&here, &controller.ticket(), 1).await.unwrap();
        let volume = Volume::new(Rc::new(queue), controller.geometry(1).await.unwrap());
        let size = volume.geometry().size;
        assert_eq!(size, 1 << 40);
        for (offset, len) in [(0, 512), (512 * 77, 4096), (1 << 33, 128 << 10), (size - 8192, 8192)] {
            let (status, data) = read(&here, &volume, IoOp::Read, offset, len).await;
            assert_eq!((status, data.len()), (IoStatus::Success, len));
            for (at, word) in (offset..).step_by(8).zip(data.chunks_exact(8)) {
                assert_eq!(u64::from_le_bytes(word.try_into().unwrap()), at);
            }
        }
        let (status, _) = read(&here, &volume, IoOp::Write, 0, 512).await;
        assert_eq!(status, IoStatus::ReadOnly);
        volume.queue().close().await;
        controller.shut_down().await.unwrap();
        here.stop();
    });
    reactor.run(Idle::Adaptive);
    for _ in 0..1000 {
        reactor.turn();
    }
    assert_eq!(reactor.shut_down(), 0, "buffers are still out");

    // The end of its standard input.
    drop(program.0.stdin.take());
    assert!(program.0.wait().unwrap().success());
}

#[test]
fn without_ublk_the_example_says_so() {
    if Path::new("/dev/ublk-control").exists() {
        // There it would make a device: the guests' business.
        return;
    }
    let mut command = Command::new(example("pattern"));
    let child = command.arg("--ublk").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut program = Program(child.unwrap());
    let mut text = String::new();
    program.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(program.0.wait().unwrap().code(), Some(1));
    assert!(text.starts_with("pattern: no local block devices: the kernel has no ublk: modprobe ublk_drv"), "{text}");
}
