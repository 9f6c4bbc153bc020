//! What an idle server costs.

use std::time::Duration;

use reactor::nvme::host::Controller;

use super::host::{on_host, options, pause, volume, write};
use super::server::{Place, nqn};

/// Time that all threads of a process have been on a core.
fn on_core(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |thread: std::fs::DirEntry| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
    };
    Duration::from_nanos(threads.map(|thread| of(thread.unwrap())).sum())
}

/// A bound on the accounting of the processor's time, not a measurement of speed: an idle adaptive server sleeps. One more
/// try, since what a machine under load charges to a sleeper is not all its own.
#[test]
fn an_idle_server_with_eight_connections_uses_less_than_one_percent_of_a_core() {
    let text = format!(
        r#"
        [reactor]
        idle = "adaptive"
        [memory]
        size = "64MiB"
        [[bdev]]
        name = "ram0"
        driver = "malloc"
        size = "4MiB"
        [nvmf]
        listen = ["127.0.0.1:0"]
        [[nvmf.subsystem]]
        nqn = "{}"
        namespaces = [{{ bdev = "ram0" }}]
        "#,
        nqn(0)
    );
    let server = Place::new().serve(&text);
    let (address, pid) = (server.address(), server.program.pid());
    on_host(move |reactor| async move {
        const WATCHED: Duration = Duration::from_secs(3);
        let mut options = options(&nqn(0));
        options.queues = 7;
        let controller = Controller::connect(&reactor, address, options).await.unwrap();
        let mut volumes = Vec::new();
        for qid in 1..=7 {
            let volume = volume(&reactor, &controller, qid, 1).await;
            write(&volume, 0, &[1; 4096]).await;
            volumes.push(volume);
        }
        // What follows a start, such as the rest of the memory.
        pause(&reactor, Duration::from_secs(1)).await;
        let mut used = [Duration::ZERO; 2];
        for used in &mut used {
            let before = on_core(pid);
            assert!(before > Duration::ZERO, "the kernel does not account");
            pause(&reactor, WATCHED).await;
            *used = on_core(pid) - before;
            if *used < WATCHED / 100 {
                break;
            }
        }
        assert!(used[1] < WATCHED / 100, "{used:?} in {WATCHED:?}");
        for volume in volumes {
            volume.queue().close().await;
        }
        controller.shut_down().await.unwrap();
    });
    server.stop();
}
