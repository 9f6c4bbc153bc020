//! The program is killed under load and started again: what was flushed is there.

use reactor::nvme::host::Controller;

use super::host::{on_host, options, read, volume};
use super::load::Load;
use super::server::{PATIENCE, Place, nqn};

fn config(port: u16, direct: bool) -> String {
    format!(
        r#"
        [memory]
        size = "64MiB"
        [[bdev]]
        name = "disk0"
        driver = "file"
        path = "disk0.img"
        size = "8MiB"
        direct = {direct}
        [nvmf]
        listen = ["127.0.0.1:{port}"]
        [[nvmf.subsystem]]
        nqn = "{}"
        namespaces = [{{ bdev = "disk0" }}]
        "#,
        nqn(0)
    )
}

#[test]
fn no_flushed_write_is_lost_by_a_kill() {
    for direct in [true, false] {
        let place = Place::new();
        let mut server = place.serve(&config(0, direct));
        let address = server.address();
        on_host(move |reactor| async move {
            let mut options = options(&nqn(0));
            options.queues = 2;
            let controller = Controller::connect(&reactor, address, options.clone()).await.unwrap();
            let volumes = [volume(&reactor, &controller, 1, 1).await, volume(&reactor, &controller, 2, 1).await];
            let load = Load::start(&volumes, 8, true);
            load.until(&reactor, 5, true).await;
            server.program.signal("KILL");
            load.ended(&reactor).await;
            server.program.end(PATIENCE);
            let server = place.serve(&config(address.port(), direct));
            let controller = Controller::connect(&reactor, address, options).await.unwrap();
            let volume = volume(&reactor, &controller, 1, 1).await;
            load.check(&read(&volume, 0, load.len()).await, true);
            volume.queue().close().await;
            controller.shut_down().await.unwrap();
            server.stop();
        });
    }
}
