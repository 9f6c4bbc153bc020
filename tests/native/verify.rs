//! Data at full speed: four connections to a target with two reactors, against a model, in every mix of digests and flow
//! control; then the files themselves.

use std::cell::Cell;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use reactor::nvme::host::{Controller, Volume};
use reactor::reactor::Reactor;
use reactor::reactor::io::{IoOp, IoStatus};
use reactor::sys::affinity;

use super::host::{on_host, options, read, run, volume, write};
use super::model::Model;
use super::server::{Place, Program, Server, bytes_of, is_root, nqn};

/// Not a power of two, so that the last blocks are reached by odd ranges.
const SIZE: u64 = (24 << 20) + 12_288;
const QUEUES: u16 = 4;
/// Workers on each queue.
const DEPTH: usize = 8;
/// Things that each worker does in one mix.
const COUNT: usize = 24;
/// Header digests, data digests, no flow control.
const MIXES: [(bool, bool, bool); 4] =
    [(false, false, true), (true, false, false), (false, true, false), (true, true, true)];

/// One volume of each block size, exported by one subsystem, on two reactors where the machine has two cores.
fn config(driver: &str) -> String {
    let cores = affinity::allowed_cores().unwrap();
    let cores = &cores[..cores.len().min(2)];
    let bdev = |block: u64| {
        let path = if driver.contains("file") { format!("path = \"{block}.img\"") } else { String::new() };
        format!(
            r#"
            [[bdev]]
            name = "disk{block}"
            driver = {driver}
            size = {SIZE}
            block_size = {block}
            {path}
            "#
        )
    };
    format!(
        r#"
        [reactor]
        cores = {cores:?}
        [memory]
        size = "128MiB"
        {}{}
        [nvmf]
        listen = ["127.0.0.1:0"]
        [[nvmf.subsystem]]
        nqn = "{}"
        namespaces = [{{ bdev = "disk512" }}, {{ bdev = "disk4096" }}]
        "#,
        bdev(512),
        bdev(4096),
        nqn(0)
    )
}

/// Drives both namespaces of a server through every mix; what they hold in the end.
fn verify(server: &Server) -> [Vec<u8>; 2] {
    let address = server.address();
    on_host(move |reactor| async move {
        let models = [Model::new(SIZE, 512), Model::new(SIZE, 4096)];
        for (header_digest, data_digest, disable_sqflow) in MIXES {
            let mut options = options(&nqn(0));
            options.header_digest = header_digest;
            options.data_digest = data_digest;
            options.disable_sqflow = disable_sqflow;
            options.queues = QUEUES;
            let controller = Controller::connect(&reactor, address, options).await.unwrap();
            assert_eq!(controller.queues(), QUEUES);
            for (nsid, model) in (1..).zip(&models) {
                let mut volumes = Vec::new();
                for qid in 1..=QUEUES {
                    volumes.push(volume(&reactor, &controller, qid, nsid).await);
                }
                let agreed = volumes[0].queue().agreed();
                assert_eq!((agreed.header_digest, agreed.data_digest), (header_digest, data_digest));
                assert_eq!(
                    (volumes[0].geometry().size, 1 << volumes[0].geometry().block_shift),
                    (SIZE, if nsid == 1 { 512 } else { 4096 })
                );
                model.crowd(&volumes, DEPTH, COUNT).await;
                whole(&volumes[0], model).await;
                for volume in volumes {
                    volume.queue().close().await;
                }
            }
            controller.shut_down().await.unwrap();
        }
        for model in &models {
            for op in IoOp::ALL.into_iter().filter(|op| !matches!(op, IoOp::Reset | IoOp::Extents) && !op.is_of_zones())
            {
                let (small, large) = model.count(op);
                let sends = op.data_len(1) > 0 && op != IoOp::Read;
                assert!(small > 0 && (large > 0 || !sends), "{op:?}: {small} small and {large} large ones");
            }
        }
        models.map(|model| model.bytes())
    })
}

/// The whole volume equals its model.
async fn whole(volume: &Volume, model: &Model) {
    let bytes = model.bytes();
    for (index, expected) in bytes.chunks(1 << 20).enumerate() {
        let found = read(volume, (index as u64) << 20, expected.len() as u64).await;
        assert!(found == expected, "MiB {index} of the volume");
    }
}

/// The files of a server that was stopped equal the models.
fn files_hold(place: &Place, expected: &[Vec<u8>; 2]) {
    for (name, expected) in ["512.img", "4096.img"].into_iter().zip(expected) {
        let found = bytes_of(&place.path(name));
        assert_eq!(found.len(), expected.len(), "{name}");
        let wrong = (0..found.len()).find(|at| found[*at] != expected[*at]);
        assert_eq!(wrong, None, "the first byte of {name} that is not the model's");
    }
}

#[test]
fn ram_volumes_equal_their_model() {
    let server = Place::new().serve(&config("\"malloc\""));
    verify(&server);
    server.stop();
}

#[test]
fn direct_files_equal_their_model_and_hold_it_after_a_stop() {
    file_volumes("\"file\"\ndirect = true");
}

#[test]
fn buffered_files_equal_their_model_and_hold_it_after_a_stop() {
    file_volumes("\"file\"\ndirect = false");
}

fn file_volumes(driver: &str) {
    let place = Place::new();
    let server = place.serve(&config(driver));
    let expected = verify(&server);
    server.stop();
    files_hold(&place, &expected);
}

/// Adds one to a number in the first 8 bytes of `at`, `times` times, by compare and write.
async fn count_up(volume: &Volume, at: u64, times: u64, lost: &Cell<u64>) {
    let block = 1 << volume.geometry().block_shift;
    let mut done = 0;
    while done < times {
        let old = read(volume, at, block).await;
        let number = u64::from_le_bytes(old[..8].try_into().unwrap());
        let mut both = old.clone();
        both.extend_from_slice(&(number + 1).to_le_bytes());
        both.extend_from_slice(&old[8..]);
        match run(volume, IoOp::CompareAndWrite, at, block, &both).await.0 {
            IoStatus::Success => done += 1,
            IoStatus::Miscompare => lost.set(lost.get() + 1),
            other => panic!("compare and write: {other:?}"),
        }
    }
}

/// Four queues, on both reactors of the target, race for one number of a namespace.
async fn race(reactor: &Rc<Reactor>, controller: &Controller, nsid: u32) {
    const TIMES: u64 = 100;
    let lost = Rc::new(Cell::new(0));
    let left = Rc::new(Cell::new(u64::from(QUEUES)));
    let first = volume(reactor, controller, 1, nsid).await;
    let at = 4096 * 3;
    write(&first, at, &vec![0; 1 << first.geometry().block_shift]).await;
    let mut volumes = vec![first];
    for qid in 2..=QUEUES {
        volumes.push(volume(reactor, controller, qid, nsid).await);
    }
    let waiter = reactor.current_task();
    for volume in &volumes {
        let (volume, lost, left, reactor) = (volume.clone(), lost.clone(), left.clone(), reactor.clone());
        reactor.clone().spawn("counter", async move {
            count_up(&volume, at, TIMES, &lost).await;
            left.set(left.get() - 1);
            reactor.wake(waiter);
        });
    }
    std::future::poll_fn(|_| if left.get() == 0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }).await;
    let end = read(&volumes[0], at, 4096).await;
    assert_eq!(u64::from_le_bytes(end[..8].try_into().unwrap()), TIMES * u64::from(QUEUES), "updates were lost");
    assert!(lost.get() > 0, "no compare ever lost: this was no race");
    for volume in volumes {
        volume.queue().close().await;
    }
}

fn counters(driver: &str) {
    let server = Place::new().serve(&config(driver));
    let address = server.address();
    on_host(move |reactor| async move {
        let mut options = options(&nqn(0));
        options.queues = QUEUES;
        let controller = Controller::connect(&reactor, address, options).await.unwrap();
        for nsid in [1, 2] {
            race(&reactor, &controller, nsid).await;
        }
        controller.shut_down().await.unwrap();
    });
    server.stop();
}

#[test]
fn fused_counters_of_ram_volumes_lose_no_update() {
    counters("\"malloc\"");
}

#[test]
fn fused_counters_of_file_volumes_lose_no_update() {
    counters("\"file\"");
}

/// Lets an ordinary user in: the directory of a test may lie below one that is closed to others.
fn for_everybody(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn an_ordinary_user_with_default_limits_is_served() {
    let dir = tempfile::TempDir::new().unwrap();
    for_everybody(dir.path());
    let binary = dir.path().join("reactor");
    std::fs::copy(env!("CARGO_BIN_EXE_reactor"), &binary).unwrap();
    for_everybody(&binary);
    let place = Place::new_in(dir.path());
    // The limits of a login: 8 MiB of locked memory, 1,024 open files.
    let limits = ["--memlock=8388608:8388608", "--nofile=1024:1024"];
    let mut command = Command::new("prlimit");
    command.args(limits).arg("--");
    if is_root() {
        chown(place.path(""), Some(65_534), Some(65_534)).unwrap();
        command.args(["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]);
        command.args(["--bounding-set", "-all", "--inh-caps", "-all"]);
    }
    command.arg(&binary).arg("--config").arg(place.configure(&config("\"file\"")));
    let mut server = Server::ready(Program::run(&mut command));
    let expected = verify(&server);
    server.program.signal("TERM");
    server.ended();
    files_hold(&place, &expected);
    let text = server.program.err.all();
    let about: Vec<_> = text.iter().filter(|line| line.contains("LimitMEMLOCK")).collect();
    assert_eq!(about.len(), 1, "one line that names the remedy:\n{}", text.join("\n"));
}
