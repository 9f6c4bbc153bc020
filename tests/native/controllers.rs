//! What hosts find and do beyond data: discovery, allow-lists, many namespaces and controllers, abort, keep alive, reset, refused
//! Connects.

use std::time::Duration;

use reactor::net::StreamError;
use reactor::nvme::host::{Controller, Ended, HostError, Queue, discover};
use reactor::nvme::spec::{
    AddressFamily, AdminOpcode, CNTLID_DYNAMIC, Csts, DISCOVERY_NQN, InvalidParameter, NvmOpcode, Property,
    SglDescriptor, Sqe, StatusCode, SubsystemType,
};
use zerocopy::IntoBytes;

use super::host::{Connected, identity, on_host, options, pattern, pause, read, volume, write};
use super::server::{PATIENCE, Place, nqn};
use super::wire::{Arrived, Wire, connect};

/// Subsystem 0 with `bdevs`, whose tables are `text`, for all hosts.
fn config(text: &str, listen: &str, namespaces: &str) -> String {
    format!(
        r#"
        [memory]
        size = "64MiB"
        {text}
        [nvmf]
        listen = [{listen}]
        [[nvmf.subsystem]]
        nqn = "{}"
        namespaces = [{namespaces}]
        "#,
        nqn(0)
    )
}

const RAM: &str = "[[bdev]]\nname = \"ram0\"\ndriver = \"malloc\"\nsize = \"4MiB\"\n";
const V4: &str = r#""127.0.0.1:0""#;
const RAM_NS: &str = r#"{ bdev = "ram0" }"#;

#[test]
fn an_allow_list_refuses_others_and_hides_from_them() {
    let mut text = config(RAM, V4, RAM_NS);
    let (first, second) = (identity(1), identity(2));
    text +=
        &format!("[[nvmf.subsystem]]\nnqn = \"{}\"\nhosts = [\"{}\"]\nnamespaces = [{RAM_NS}]\n", nqn(1), first.nqn);
    let server = Place::new().serve(&text);
    let address = server.address();
    on_host(move |reactor| async move {
        let mut options = options(&nqn(1));
        options.identity = second.clone();
        match Controller::connect(&reactor, address, options.clone()).await {
            Err(HostError::Refused { status, .. }) => assert_eq!(status.code(), StatusCode::CONNECT_INVALID_HOST),
            other => panic!("{:?}", other.err()),
        }
        for (who, expected) in [(first.clone(), vec![nqn(0), nqn(1)]), (second, vec![nqn(0)])] {
            let log = discover(&reactor, address, who).await.unwrap();
            let found: Vec<_> =
                log.entries.iter().filter(|e| e.subtype == SubsystemType::NVM).map(|e| e.nqn.clone()).collect();
            assert_eq!(found, expected);
            for entry in &log.entries {
                assert_eq!(entry.socket_address(), Some(address), "{entry:?}");
            }
            assert!(
                log.entries.iter().any(|e| e.subtype == SubsystemType::CURRENT_DISCOVERY && e.nqn == DISCOVERY_NQN)
            );
        }
        options.identity = first;
        Connected::new(&reactor, address, options, 1).await.end().await;
    });
    server.stop();
}

#[test]
fn two_hundred_and_fifty_six_namespaces_are_themselves() {
    const COUNT: u32 = 256;
    let bdevs: String = (1..=COUNT)
        .map(|n| format!("[[bdev]]\nname = \"n{n}\"\ndriver = \"malloc\"\nsize = \"{}KiB\"\n", 4 * n))
        .collect();
    let namespaces: Vec<_> = (1..=COUNT).map(|n| format!("{{ bdev = \"n{n}\" }}")).collect();
    let server = Place::new().serve(&config(&bdevs, V4, &namespaces.join(", ")));
    let address = server.address();
    on_host(move |reactor| async move {
        let controller = Controller::connect(&reactor, address, options(&nqn(0))).await.unwrap();
        assert_eq!(controller.active_namespaces().await.unwrap(), (1..=COUNT).collect::<Vec<_>>());
        assert!(controller.identity().nn.get() >= COUNT);
        let volume = volume(&reactor, &controller, 1, 1).await;
        for round in 0..2 {
            for nsid in 1..=COUNT {
                volume.set_geometry(controller.geometry(nsid).await.unwrap());
                let size = volume.geometry().size;
                assert_eq!(size, u64::from(nsid) * 4096);
                let data = pattern(512, u64::from(nsid));
                if round == 0 {
                    write(&volume, size - 512, &data).await;
                } else {
                    assert!(read(&volume, size - 512, 512).await == data, "namespace {nsid}");
                }
            }
        }
        volume.queue().close().await;
        controller.shut_down().await.unwrap();
    });
    server.stop();
}

#[test]
fn hosts_connect_over_ipv6() {
    let server = Place::new().serve(&config(RAM, r#""127.0.0.1:0", "[::1]:0""#, RAM_NS));
    let (four, six) = (server.addresses[0], server.addresses[1]);
    on_host(move |reactor| async move {
        let log = discover(&reactor, six, identity(1)).await.unwrap();
        let of_subsystem: Vec<_> = log.entries.iter().filter(|entry| entry.nqn == nqn(0)).collect();
        assert!(of_subsystem.iter().any(|e| e.socket_address() == Some(six) && e.family == AddressFamily::IPV6));
        assert!(of_subsystem.iter().any(|e| e.socket_address() == Some(four) && e.family == AddressFamily::IPV4));
        let (by_six, by_four) = (
            Connected::new(&reactor, six, options(&nqn(0)), 1).await,
            Connected::new(&reactor, four, options(&nqn(0)), 1).await,
        );
        let data = pattern(1 << 20, 1);
        write(&by_six.volume, 0, &data).await;
        assert!(read(&by_four.volume, 0, 1 << 20).await == data);
        by_six.end().await;
        by_four.end().await;
    });
    server.stop();
}

#[test]
fn controllers_of_one_subsystem_are_independent() {
    let server = Place::new().serve(&config(RAM, V4, RAM_NS));
    let address = server.address();
    on_host(move |reactor| async move {
        let mut all = Vec::new();
        for number in 1..=3 {
            let mut options = options(&nqn(0));
            options.identity = identity(number);
            all.push(Connected::new(&reactor, address, options, 1).await);
        }
        let mut ids: Vec<_> = all.iter().map(|one| one.controller.cntlid()).collect();
        ids.dedup();
        assert_eq!(ids.len(), 3, "{ids:?}");
        let data = pattern(8192, 1);
        write(&all[0].volume, 0, &data).await;
        for one in &all {
            assert!(read(&one.volume, 0, 8192).await == data);
        }

        // A reset ends the I/O queues of one, whose admin queue stays and is enabled again.
        let (reset, rest) = all.split_first().unwrap();
        let cc = reset.controller.property_get(Property::CC, false).await.unwrap() as u32;
        reset.controller.property_set(Property::CC, cc & !1).await.unwrap();
        let csts = || async { Csts(reset.controller.property_get(Property::CSTS, false).await.unwrap() as u32) };
        while csts().await.ready() {
            pause(&reactor, Duration::from_millis(1)).await;
        }
        while reset.volume.queue().ended().is_none() {
            pause(&reactor, Duration::from_millis(1)).await;
        }
        assert_eq!(reset.volume.queue().ended(), Some(Ended::Stream(StreamError::Closed)));
        let refused = Queue::connect(&reactor, &reset.controller.ticket(), 1).await.unwrap_err();
        assert!(
            matches!(refused, HostError::Refused { status, .. } if status.code() == StatusCode::COMMAND_SEQUENCE_ERROR)
        );
        reset.controller.property_set(Property::CC, cc).await.unwrap();
        assert!(csts().await.ready());
        let again = volume(&reactor, &reset.controller, 1, 1).await;
        assert!(read(&again, 0, 8192).await == data);
        again.queue().close().await;

        // One vanishes without a word, the others go on.
        rest[0].controller.close().await;
        while rest[0].volume.queue().ended().is_none() {
            pause(&reactor, Duration::from_millis(1)).await;
        }
        assert!(read(&rest[1].volume, 0, 8192).await == data);
        for one in all {
            if one.controller.admin_queue().ended().is_none() {
                one.end().await;
            }
        }
    });
    server.stop();
}

#[test]
fn queues_are_granted_up_to_the_limit() {
    let server = Place::new().serve(&config(RAM, V4, RAM_NS));
    let address = server.address();
    on_host(move |reactor| async move {
        let mut options = options(&nqn(0));
        for (asked, granted) in [(1, 1), (9, 9), (reactor::limits::IO_QUEUES_MAX + 1, reactor::limits::IO_QUEUES_MAX)] {
            options.queues = asked;
            let controller = Controller::connect(&reactor, address, options.clone()).await.unwrap();
            assert_eq!(controller.queues(), granted);
            let last = volume(&reactor, &controller, granted, 1).await;
            write(&last, 0, &pattern(512, 1)).await;
            match Queue::connect(&reactor, &controller.ticket(), granted + 1).await {
                Err(HostError::Refused { status, result, .. }) => {
                    assert_eq!(status.code(), StatusCode::CONNECT_INVALID_PARAMETERS);
                    assert_eq!(InvalidParameter::of(result as u32), InvalidParameter::Sqe(42), "QID");
                }
                other => panic!("queue {}: {:?}", granted + 1, other.err()),
            }
            last.queue().close().await;
            controller.shut_down().await.unwrap();
        }
    });
    server.stop();
}

#[test]
fn a_refused_connect_says_where_the_fault_is() {
    let server = Place::new().serve(&config(RAM, V4, RAM_NS));
    let address = server.address();
    let (_admin, cntlid) = Wire::admin(address, &nqn(0), 0);
    let sqe = InvalidParameter::Sqe;
    let data = InvalidParameter::Data;
    for (what, expected, (mut command, mut content), spoil) in [
        ("subsystem", data(256), connect(0, CNTLID_DYNAMIC, &nqn(5)), 0),
        ("static controller", data(16), connect(0, 1, &nqn(0)), 0),
        ("no such controller", data(16), connect(1, cntlid + 1, &nqn(0)), 0),
        ("queue identifier", sqe(42), connect(4000, cntlid, &nqn(0)), 0),
        ("queue size", sqe(44), connect(1, cntlid, &nqn(0)), 1),
        ("host identifier", data(0), connect(1, cntlid, &nqn(0)), 2),
        ("another host", data(512), connect(1, cntlid, &nqn(0)), 3),
        ("good", sqe(0), connect(1, cntlid, &nqn(0)), 0),
    ] {
        match spoil {
            1 => command.cdw11.set(command.cdw11.get() & 0xffff_0000),
            2 => content.hostid = [0; 16],
            3 => content.hostnqn[30] ^= 1,
            _ => {}
        }
        let mut wire = Wire::open(address);
        let cqe = wire.command(command, content.as_bytes());
        if what == "good" {
            assert!(cqe.status().is_success(), "{:?}", cqe.status());
            continue;
        }
        assert_eq!(cqe.status().code(), StatusCode::CONNECT_INVALID_PARAMETERS, "{what}");
        assert!(cqe.status().is_dnr(), "{what}");
        assert_eq!(InvalidParameter::of(cqe.dw0()), expected, "{what}");
    }
    // Any other command first.
    let mut wire = Wire::open(address);
    let mut identify = Sqe::admin(AdminOpcode::IDENTIFY, 0);
    identify.dptr = SglDescriptor::transport(4096);
    identify.cdw10.set(1);
    assert_eq!(wire.command(identify, &[]).status().code(), StatusCode::COMMAND_SEQUENCE_ERROR);
    server.stop();
}

#[test]
fn a_held_command_is_aborted_by_its_host() {
    let bdevs = format!(
        "{RAM}[[bdev]]\nname = \"held0\"\ndriver = \"inject\"\nbase = \"ram0\"\nrules = [{{ op = \"read\", nth = 1, action = \"hold\" }}]\n"
    );
    let server = Place::new().serve(&config(&bdevs, V4, r#"{ bdev = "held0" }"#));
    let (mut admin, cntlid) = Wire::admin(server.address(), &nqn(0), 0);
    let mut io = Wire::io(server.address(), &nqn(0), cntlid);
    let mut read = Sqe::nvm(NvmOpcode::READ, 1);
    read.dptr = SglDescriptor::transport(512);
    let mut flush = Sqe::nvm(NvmOpcode::FLUSH, 1);
    flush.dptr = SglDescriptor::default();
    let capsules = [io.capsule(31, read, &[]), io.capsule(32, flush, &[])].concat();
    io.send(&capsules);
    // The flush passes the read that is held.
    assert_eq!(answer(&mut io), (32, StatusCode::SUCCESS));
    let mut abort = Sqe::admin(AdminOpcode::ABORT, 0);
    for (cid, left) in [(99, 1), (31, 0), (31, 1)] {
        abort.cdw10.set(1 | cid << 16);
        let cqe = admin.command(abort, &[]);
        assert!(cqe.status().is_success());
        assert_eq!(cqe.dw0() & 1, left, "command {cid}");
        if left == 0 {
            assert_eq!(answer(&mut io), (31, StatusCode::ABORT_REQUESTED));
        }
    }
    // The slot is as good as new.
    let capsule = io.capsule(33, read, &[]);
    io.send(&capsule);
    assert_eq!(answer(&mut io), (33, StatusCode::SUCCESS));
    server.stop();
}

fn answer(wire: &mut Wire) -> (u16, StatusCode) {
    match wire.next() {
        Arrived::Response(cqe) => (cqe.cid.get(), cqe.status().code()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_host_that_falls_silent_loses_its_association() {
    let server = Place::new().serve(&config(RAM, V4, RAM_NS));
    let (mut silent, cntlid) = Wire::admin(server.address(), &nqn(0), 1000);
    let mut io = Wire::io(server.address(), &nqn(0), cntlid);
    let (mut living, _) = Wire::admin(server.address(), &nqn(0), 1000);
    let keep_alive = Sqe::admin(AdminOpcode::KEEP_ALIVE, 0);
    silent.socket().set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let start = super::server::now();
    let mut ended = false;
    while !ended {
        assert!(super::server::now() - start < PATIENCE, "the association of a silent host goes on");
        assert!(living.command(keep_alive, &[]).status().is_success());
        ended = silent.is_over();
    }
    assert!(super::server::now() - start >= Duration::from_millis(500), "too early");
    assert!(matches!(io.next(), Arrived::End), "its I/O queue ends with it");
    assert!(living.command(keep_alive, &[]).status().is_success(), "the other lives");
    let mut late = Wire::open(server.address());
    let (command, content) = connect(1, cntlid, &nqn(0));
    let cqe = late.command(command, content.as_bytes());
    assert_eq!(InvalidParameter::of(cqe.dw0()), InvalidParameter::Data(16), "the controller is gone");
    server.stop();
}
