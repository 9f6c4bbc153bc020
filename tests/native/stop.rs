//! The end with hosts: under load, with a host that is stuck, with a device that is.

use std::io::Read;
use std::time::Duration;

use reactor::net::StreamError;
use reactor::nvme::host::{Controller, Ended};
use reactor::nvme::spec::{DISCOVERY_NQN, NoticeInfo, NvmOpcode, SglDescriptor, Sqe};
use reactor::reactor::io::IoOp;
use reactor::sys::affinity;

use super::host::{Connected, expect_notice, on_host, options, pause, run, volume};
use super::load::Load;
use super::server::{END_LIMIT, PATIENCE, Place, Server, bytes_of, nqn};
use super::wire::{Arrived, Wire};

const SIZE: usize = 16 << 20;

/// A file volume on all cores that the tests use.
fn config() -> String {
    let cores = affinity::allowed_cores().unwrap();
    format!(
        r#"
        [reactor]
        cores = {:?}
        [memory]
        size = "128MiB"
        [[bdev]]
        name = "disk0"
        driver = "file"
        path = "disk0.img"
        size = {SIZE}
        [nvmf]
        listen = ["127.0.0.1:0"]
        [[nvmf.subsystem]]
        nqn = "{}"
        namespaces = [{{ bdev = "disk0" }}]
        "#,
        &cores[..cores.len().min(2)],
        nqn(0)
    )
}

#[test]
fn a_stop_under_load_keeps_what_was_acknowledged_and_closes_in_order() {
    let place = Place::new();
    let mut server = place.serve(&config());
    let address = server.address();
    let file = place.path("disk0.img");
    on_host(move |reactor| async move {
        let mut options = options(&nqn(0));
        options.queues = 4;
        let controller = Controller::connect(&reactor, address, options).await.unwrap();
        let mut volumes = Vec::new();
        for qid in 1..=4 {
            volumes.push(volume(&reactor, &controller, qid, 1).await);
        }
        let load = Load::start(&volumes, 8, false);
        load.until(&reactor, 20, false).await;
        server.program.signal("TERM");
        load.ended(&reactor).await;
        for queue in volumes.iter().map(|volume| volume.queue()).map(|queue| &**queue).chain([controller.admin_queue()])
        {
            while queue.ended().is_none() {
                pause(&reactor, Duration::from_millis(1)).await;
            }
            assert_eq!(queue.ended(), Some(Ended::Stream(StreamError::Closed)), "closed by a FIN");
        }
        server.ended();
        let found = bytes_of(&file);
        assert_eq!(found.len(), SIZE);
        load.check(&found, false);
    });
}

/// A Read of `len` bytes.
fn read(len: u32) -> Sqe {
    let mut sqe = Sqe::nvm(NvmOpcode::READ, 1);
    sqe.dptr = SglDescriptor::transport(len);
    sqe.cdw12.set(len / 512 - 1);
    sqe
}

#[test]
fn answers_in_flight_reach_a_slow_host() {
    const READS: u16 = 16;
    let mut server = Place::new().serve(&config());
    let (_admin, cntlid) = Wire::admin(server.address(), &nqn(0), 0);
    let mut io = Wire::io(server.address(), &nqn(0), cntlid);
    for cid in 0..READS {
        let capsule = io.capsule(cid, read(1 << 20), &[]);
        io.send(&capsule);
    }
    // One answer shows that the commands have arrived: they are one segment.
    let mut seen = vec![response(io.next())];
    server.program.signal("TERM");
    loop {
        match io.next() {
            Arrived::Response(cqe) => {
                assert!(cqe.status().is_success(), "{:?}", cqe.status());
                seen.push(cqe.cid.get());
            }
            Arrived::End => break,
            Arrived::Reset => panic!("torn down after {} answers", seen.len()),
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..READS).collect::<Vec<_>>());
    server.ended();
}

fn response(arrived: Arrived) -> u16 {
    match arrived {
        Arrived::Response(cqe) => cqe.cid.get(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_host_that_never_reads_holds_nobody_up() {
    let mut server = Place::new().serve(&config());
    let (_admin, cntlid) = Wire::admin(server.address(), &nqn(0), 0);
    let mut io = Wire::io(server.address(), &nqn(0), cntlid);
    for cid in 0..30 {
        let capsule = io.capsule(cid, read(1 << 20), &[]);
        io.send(&capsule);
    }
    // Until the buffers of both sockets are full.
    std::thread::park_timeout(Duration::from_millis(300));
    server.program.signal("TERM");
    server.ended();
}

#[test]
fn a_host_in_the_middle_of_a_pdu_holds_nobody_up() {
    let mut server = Place::new().serve(&config());
    let (mut admin, cntlid) = Wire::admin(server.address(), &nqn(0), 0);
    let mut half = Wire::io(server.address(), &nqn(0), cntlid);
    let capsule = half.capsule(1, read(4096), &[]);
    half.send(&capsule[..40]);
    admin.send(&capsule[..3]);
    // A write whose data is asked for and never sent.
    let (_other, cntlid) = Wire::admin(server.address(), &nqn(0), 0);
    let mut awaited = Wire::io(server.address(), &nqn(0), cntlid);
    let mut write = read(65_536);
    write.opcode = NvmOpcode::WRITE.0;
    let capsule = awaited.capsule(2, write, &[]);
    awaited.send(&capsule);
    // The R2T: 24 bytes.
    awaited.socket().read_exact(&mut [0; 24]).unwrap();
    server.program.signal("TERM");
    server.ended();
    for mut wire in [admin, half, awaited] {
        assert!(matches!(wire.next(), Arrived::End), "closed by a FIN");
    }
}

#[test]
fn a_device_that_does_not_answer_is_named_after_two_seconds() {
    let text = config().replace(
        "[nvmf]\n",
        r#"[[bdev]]
        name = "stuck0"
        driver = "inject"
        base = "disk0"
        rules = [{ op = "write", nth = 2, action = "hold" }]
        [nvmf]
        "#,
    );
    let text = text.replace(r#"{ bdev = "disk0" }"#, r#"{ bdev = "stuck0" }"#);
    let place = Place::new();
    let Server { mut program, addresses, .. } = place.serve(&text);
    let address = addresses[0];
    on_host(move |reactor| async move {
        let connected = Connected::new(&reactor, address, options(&nqn(0)), 1).await;
        let volume = connected.volume.clone();
        super::host::write(&volume, 0, &[1; 512]).await;
        let held = volume.clone();
        reactor.spawn("held", async move {
            run(&held, IoOp::Write, 512, 512, &[2; 512]).await;
        });
        // A flush passes: the held write has arrived, on the same queue, before it.
        super::host::flush(&volume).await;
        program.signal("TERM");
        let (status, took) = program.end(PATIENCE);
        let text = program.err.all().join("\n");
        assert_eq!(status.code(), Some(1), "{text}");
        assert!(took > Duration::from_secs(1) && took < END_LIMIT + Duration::from_millis(500), "{took:?}");
        assert!(text.contains("\"stuck0\""), "{text}");
        assert!(!text.contains("\"disk0\" does not answer"), "{text}");
    });
}

#[test]
fn discovery_controllers_hear_of_the_end() {
    let mut server = Place::new().serve(&config());
    let address = server.address();
    on_host(move |reactor| async move {
        let mut options = options(DISCOVERY_NQN);
        options.events = true;
        let controller = Controller::connect(&reactor, address, options.clone()).await.unwrap();
        options.events = false;
        let deaf = Controller::connect(&reactor, address, options).await.unwrap();
        server.program.signal("TERM");
        expect_notice(&reactor, &controller, NoticeInfo::DISCOVERY_LOG_CHANGED).await;
        for controller in [controller, deaf] {
            while controller.admin_queue().ended().is_none() {
                pause(&reactor, Duration::from_millis(1)).await;
            }
            assert_eq!(controller.admin_queue().ended(), Some(Ended::Stream(StreamError::Closed)));
        }
        server.ended();
    });
}
