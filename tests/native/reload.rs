//! SIGHUP: what changes, what hosts are told, what is refused.

use std::net::SocketAddr;
use std::time::Duration;

use reactor::net::StreamError;
use reactor::nvme::host::{Controller, Ended, HostError, discover};
use reactor::nvme::spec::{DISCOVERY_NQN, LogId, NoticeInfo};
use reactor::reactor::io::{IoOp, IoStatus};

use super::host::{Connected, expect_notice, identity, on_host, options, pattern, pause, read, run, volume, write};
use super::server::{PATIENCE, Place, Server, bytes_of, nqn};

const MIB: u64 = 1 << 20;

/// A configuration: volumes with their drivers and sizes in MiB, subsystems with the volumes of their namespaces.
fn config(bdevs: &[(&str, &str, u64)], subsystems: &[(usize, &[(u32, &str)])]) -> String {
    let mut text = "[memory]\nsize = \"64MiB\"\n".to_owned();
    for (name, driver, mib) in bdevs {
        let path = if *driver == "file" { format!("path = \"{name}.img\"\n") } else { String::new() };
        text += &format!("[[bdev]]\nname = \"{name}\"\ndriver = \"{driver}\"\nsize = \"{mib}MiB\"\n{path}");
    }
    text += "[nvmf]\nlisten = [\"127.0.0.1:0\"]\n";
    for (number, namespaces) in subsystems {
        let list: Vec<_> =
            namespaces.iter().map(|(nsid, bdev)| format!("{{ nsid = {nsid}, bdev = \"{bdev}\" }}")).collect();
        text += &format!("[[nvmf.subsystem]]\nnqn = \"{}\"\nnamespaces = [{}]\n", nqn(*number), list.join(", "));
    }
    text
}

/// Reloads and waits for the line of the log that says so.
fn reload(place: &Place, server: &mut Server, text: &str, expected: &str) -> String {
    place.configure(text);
    server.program.signal("HUP");
    let line = server.program.err.next_with(expected, PATIENCE);
    line.unwrap_or_else(|| panic!("no line with {expected:?}")).to_owned()
}

async fn changed_namespaces(controller: &Controller) -> Vec<u32> {
    let page = controller.log(LogId::CHANGED_NAMESPACES, 0, 0, 4096, false).await.unwrap();
    let entries = page.chunks_exact(4).map(|entry| u32::from_le_bytes(entry.try_into().unwrap()));
    entries.take_while(|nsid| *nsid != 0).collect()
}

/// Connects with events to namespace 1.
async fn watching(reactor: &std::rc::Rc<reactor::reactor::Reactor>, address: SocketAddr) -> Connected {
    let mut options = options(&nqn(0));
    options.events = true;
    options.queues = 2;
    Connected::new(reactor, address, options, 1).await
}

#[test]
fn nobody_waits_until_all_memory_is_mapped() {
    const MEMORY: u64 = 6 << 30;
    let place = Place::new();
    let with = |mib| {
        let text = config(&[("disk0", "malloc", mib)], &[(0, &[(1, "disk0")])]);
        text.replace("\"64MiB\"", &format!("{MEMORY}\nhugepages = \"off\""))
    };
    let mut server = place.serve(&with(8));
    reload(&place, &mut server, &with(24), "bdev \"disk0\" grows from 8MiB to 24MiB");
    let mapped = server.program.resident();
    server.stop();
    assert!(mapped < MEMORY / 2, "{mapped} bytes are there when the reload is done");
}

#[test]
fn growth_is_seen_by_hosts_and_keeps_data() {
    for driver in ["file", "malloc"] {
        let place = Place::new();
        let with =
            |mib| config(&[("disk0", driver, mib), ("other", "malloc", 2)], &[(0, &[(1, "disk0"), (2, "other")])]);
        let mut server = place.serve(&with(8));
        let grown = with(24);
        let address = server.address();
        on_host(move |reactor| async move {
            let Connected { controller, volume } = watching(&reactor, address).await;
            assert_eq!(volume.geometry().size, 8 * MIB);
            let last = pattern(1 << 20, 1);
            write(&volume, 7 * MIB, &last).await;
            // Beyond the end, until it grows.
            let beyond = run(&volume, IoOp::Read, 8 * MIB, 512, &[]).await.0;
            assert_eq!(beyond, IoStatus::OutOfRange);
            reload(&place, &mut server, &grown, "bdev \"disk0\" grows from 8MiB to 24MiB");
            expect_notice(&reactor, &controller, NoticeInfo::NAMESPACE_ATTRIBUTE_CHANGED).await;
            assert_eq!(changed_namespaces(&controller).await, [1]);
            assert_eq!(changed_namespaces(&controller).await, [0; 0], "reading it cleared it");
            volume.set_geometry(controller.geometry(1).await.unwrap());
            assert_eq!(volume.geometry().size, 24 * MIB);
            assert!(read(&volume, 7 * MIB, MIB).await == last, "the data before the growth");
            for mib in 8..24 {
                assert!(read(&volume, mib * MIB, MIB).await.iter().all(|byte| *byte == 0), "MiB {mib} is new");
            }
            let end = pattern(4096, 2);
            write(&volume, 24 * MIB - 4096, &end).await;
            assert!(read(&volume, 24 * MIB - 4096, 4096).await == end);
            assert_eq!(run(&volume, IoOp::Read, 24 * MIB, 512, &[]).await.0, IoStatus::OutOfRange);
            // A second reload finds nothing to do.
            reload(&place, &mut server, &grown, "nothing has changed");
            Connected { controller, volume }.end().await;
            server.stop();
            if driver == "file" {
                let bytes = bytes_of(&place.path("disk0.img"));
                assert_eq!(bytes.len() as u64, 24 * MIB);
                assert!(bytes[7 << 20..8 << 20] == last && bytes[bytes.len() - 4096..] == end);
            }
        });
    }
}

#[test]
fn shrinking_is_refused_by_name_and_changes_nothing() {
    let place = Place::new();
    let with = |mib| config(&[("disk0", "file", mib)], &[(0, &[(1, "disk0")])]);
    let mut server = place.serve(&with(8));
    let (smaller, larger) = (with(4), with(9));
    let address = server.address();
    on_host(move |reactor| async move {
        let Connected { controller, volume } = watching(&reactor, address).await;
        let data = pattern(4096, 3);
        write(&volume, 8 * MIB - 4096, &data).await;
        let line = reload(&place, &mut server, &smaller, "reload: ");
        assert!(line.contains("disk0") && line.contains("8MiB") && line.contains("WARN"), "{line}");
        assert!(read(&volume, 8 * MIB - 4096, 4096).await == data);
        assert_eq!(controller.geometry(1).await.unwrap().size, 8 * MIB);
        assert_eq!(std::fs::metadata(place.path("disk0.img")).unwrap().len(), 8 * MIB);
        // What was refused is not taken for done: growth counts from the size in service.
        reload(&place, &mut server, &larger, "grows from 8MiB to 9MiB");
        // One event: the refusal made none.
        expect_notice(&reactor, &controller, NoticeInfo::NAMESPACE_ATTRIBUTE_CHANGED).await;
        assert_eq!(changed_namespaces(&controller).await, [1]);
        Connected { controller, volume }.end().await;
        server.stop();
    });
}

#[test]
fn namespaces_come_and_go() {
    let place = Place::new();
    let volumes = [("ram0", "malloc", 4), ("ram1", "malloc", 2)];
    let one = config(&volumes[..1], &[(0, &[(1, "ram0")])]);
    let two = config(&volumes, &[(0, &[(1, "ram0"), (7, "ram1")])]);
    let mut server = place.serve(&one);
    let address = server.address();
    on_host(move |reactor| async move {
        let Connected { controller, volume: first } = watching(&reactor, address).await;
        let data = pattern(4096, 4);
        write(&first, 0, &data).await;
        assert_eq!(controller.active_namespaces().await.unwrap(), [1]);

        reload(&place, &mut server, &two, "namespace 7 of");
        expect_notice(&reactor, &controller, NoticeInfo::NAMESPACE_ATTRIBUTE_CHANGED).await;
        assert_eq!(changed_namespaces(&controller).await, [7]);
        assert_eq!(controller.active_namespaces().await.unwrap(), [1, 7]);
        let second = volume(&reactor, &controller, 2, 7).await;
        assert_eq!(second.geometry().size, 2 * MIB);
        write(&second, 4096, &data).await;
        assert!(read(&second, 4096, 4096).await == data);

        reload(&place, &mut server, &one, "namespace 7 of");
        expect_notice(&reactor, &controller, NoticeInfo::NAMESPACE_ATTRIBUTE_CHANGED).await;
        assert_eq!(changed_namespaces(&controller).await, [7]);
        assert_eq!(controller.active_namespaces().await.unwrap(), [1]);
        // Through the same queue, which lives: an inactive namespace is an invalid field (Base §3.2.1.4).
        assert_eq!(run(&second, IoOp::Read, 4096, 512, &[]).await.0, IoStatus::Unsupported);
        assert!(second.queue().ended().is_none());
        assert!(read(&first, 0, 4096).await == data, "the other namespace is untouched");

        // A RAM volume that comes again is a new one.
        reload(&place, &mut server, &two, "namespace 7 of");
        expect_notice(&reactor, &controller, NoticeInfo::NAMESPACE_ATTRIBUTE_CHANGED).await;
        assert!(read(&second, 4096, 4096).await.iter().all(|byte| *byte == 0));
        second.queue().close().await;
        Connected { controller, volume: first }.end().await;
        server.stop();
    });
}

#[test]
fn subsystems_come_and_go() {
    let place = Place::new();
    let volumes = [("ram0", "malloc", 4)];
    let one = config(&volumes, &[(0, &[(1, "ram0")])]);
    let two = config(&volumes, &[(0, &[(1, "ram0")]), (1, &[(1, "ram0")])]);
    let mut server = place.serve(&one);
    let address = server.address();
    on_host(move |reactor| async move {
        let mut asking = options(DISCOVERY_NQN);
        asking.events = true;
        let discovery = Controller::connect(&reactor, address, asking).await.unwrap();
        let Connected { controller, volume: kept } = watching(&reactor, address).await;
        let listed = async |discovery: &Controller| {
            let mut names: Vec<_> =
                discovery.discovery_log().await.unwrap().entries.into_iter().map(|e| e.nqn).collect();
            names.retain(|name| name != DISCOVERY_NQN);
            names
        };
        assert_eq!(listed(&discovery).await, [nqn(0)]);
        match Controller::connect(&reactor, address, options(&nqn(1))).await {
            Err(HostError::Refused { .. }) => {}
            other => panic!("{:?}", other.err()),
        }

        reload(&place, &mut server, &two, &nqn(1));
        expect_notice(&reactor, &discovery, NoticeInfo::DISCOVERY_LOG_CHANGED).await;
        assert_eq!(listed(&discovery).await, [nqn(0), nqn(1)]);
        let added = Connected::new(&reactor, address, options(&nqn(1)), 1).await;
        let data = pattern(4096, 5);
        write(&added.volume, 0, &data).await;
        assert!(read(&kept, 0, 4096).await == data, "one volume behind both");

        reload(&place, &mut server, &one, &nqn(1));
        expect_notice(&reactor, &discovery, NoticeInfo::DISCOVERY_LOG_CHANGED).await;
        assert_eq!(listed(&discovery).await, [nqn(0)]);
        for queue in [added.controller.admin_queue(), added.volume.queue()] {
            while queue.ended().is_none() {
                pause(&reactor, Duration::from_millis(1)).await;
            }
            assert_eq!(queue.ended(), Some(Ended::Stream(StreamError::Closed)));
        }
        assert!(Controller::connect(&reactor, address, options(&nqn(1))).await.is_err());
        assert!(read(&kept, 0, 4096).await == data);
        discovery.shut_down().await.unwrap();
        Connected { controller, volume: kept }.end().await;
        server.stop();
    });
}

#[test]
fn a_bad_file_changes_nothing() {
    let place = Place::new();
    let good = config(&[("ram0", "malloc", 4)], &[(0, &[(1, "ram0")])]);
    let mut server = place.serve(&good);
    let address = server.address();
    on_host(move |reactor| async move {
        let Connected { controller, volume } = watching(&reactor, address).await;
        // A growth and a mistake: neither is done.
        let bad = good.replace("4MiB", "8MiB") + "\n[nvmf.oops]\n";
        reload(&place, &mut server, &bad, "nothing is changed");
        assert_eq!(controller.geometry(1).await.unwrap().size, 4 * MIB);
        write(&volume, 0, &pattern(4096, 6)).await;
        std::fs::remove_file(place.path("poll.toml")).unwrap();
        server.program.signal("HUP");
        assert!(server.program.err.next_with("nothing is changed", PATIENCE).is_some());
        reload(&place, &mut server, &good.replace("4MiB", "8MiB"), "grows from 4MiB to 8MiB");
        Connected { controller, volume }.end().await;
        // The mistakes were said as errors, so the end is not asked to be silent.
        server.program.signal("TERM");
        assert_eq!(server.program.end(PATIENCE).0.code(), Some(0));
    });
}

#[test]
fn the_allow_list_changes_for_connected_hosts() {
    let place = Place::new();
    let open = config(&[("ram0", "malloc", 4)], &[(0, &[(1, "ram0")])]);
    let closed = format!("{open}hosts = [\"{}\"]\n", identity(1).nqn);
    let mut server = place.serve(&open);
    let address = server.address();
    on_host(move |reactor| async move {
        let mut second = options(&nqn(0));
        second.identity = identity(2);
        let allowed = Connected::new(&reactor, address, options(&nqn(0)), 1).await;
        let other = Connected::new(&reactor, address, second.clone(), 1).await;
        reload(&place, &mut server, &closed, "now admits");
        for queue in [other.controller.admin_queue(), other.volume.queue()] {
            while queue.ended().is_none() {
                pause(&reactor, Duration::from_millis(1)).await;
            }
        }
        assert!(Controller::connect(&reactor, address, second.clone()).await.is_err());
        let seen = discover(&reactor, address, identity(2)).await.unwrap();
        assert!(seen.entries.iter().all(|entry| entry.nqn != nqn(0)));
        write(&allowed.volume, 0, &pattern(512, 7)).await;
        allowed.end().await;
        server.stop();
    });
}
