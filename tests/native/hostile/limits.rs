//! Hosts that stop on the way, or go beyond what they were granted: how long they may stay.

use std::time::Duration;

use reactor::limits::{CONNECT_TIMEOUT_NS, ICREQ_TIMEOUT_NS};
use reactor::nvme::spec::{CNTLID_DYNAMIC, NvmOpcode, Sqe};
use reactor::nvme::tcp::{FatalErrorStatus, PduType, TermReqPdu};
use zerocopy::{FromBytes, IntoBytes};

use super::super::server::{PATIENCE, Place, now, nqn};
use super::super::wire::connect;
use super::config;
use super::raw::{Got, Raw, ic_request, read_sqe, write_sqe};

const NO_DIGESTS: (bool, bool) = (false, false);
/// Entries of the queues that [`connect`] asks for.
const ENTRIES: usize = 32;
/// What a loaded machine may add to a time limit.
const SLACK: Duration = Duration::from_secs(4);
/// How slow a slow host is: a byte in this time.
const PACE: Duration = Duration::from_millis(50);

/// Sends as slowly as that until the peer has ended the connection; how long that took.
fn dribble(host: &Raw, bytes: &[u8]) -> Duration {
    let start = now();
    for byte in bytes {
        if !host.send(&[*byte]) || host.next(PACE) != Got::Silence {
            break;
        }
    }
    ended(host, start)
}

/// Waits for the end; the time since `start`.
fn ended(host: &Raw, start: Duration) -> Duration {
    loop {
        match host.next(PATIENCE) {
            Got::End | Got::Reset => return now() - start,
            Got::Pdu(_) => {}
            Got::Silence => panic!("the connection stays"),
        }
    }
}

fn connect_capsule(host: &Raw, nqn: &str) -> Vec<u8> {
    let (sqe, data) = connect(0, CNTLID_DYNAMIC, nqn);
    host.capsule(1, sqe, data.as_bytes())
}

#[test]
fn a_connection_that_stops_before_its_connect_is_closed() {
    let server = Place::new().serve(&config("64MiB"));
    let address = server.address();
    let (first, second) = (Duration::from_nanos(ICREQ_TIMEOUT_NS), Duration::from_nanos(CONNECT_TIMEOUT_NS));
    // What it sends at once, what it sends byte by byte, and how long it may stay.
    type Case = (&'static str, usize, usize, Duration);
    let cases: [Case; 6] = [
        ("silent", 0, 0, first),
        ("half a header", 4, 0, first),
        ("all but the last byte of its ICReq", 127, 0, first),
        ("ICReq and nothing else", 128, 0, second),
        ("half a Connect", 128 + 500, 0, second),
        ("a slow Connect", 128, 1000, second),
    ];
    let served = std::thread::spawn(move || {
        let (mut admin, _) = Raw::admin(address, &nqn(0), NO_DIGESTS);
        std::thread::park_timeout(first + second + SLACK);
        assert!(
            admin.command(1, super::raw::property_get(), &[]).status().is_success(),
            "a good connection was closed"
        );
    });
    let mut threads = Vec::new();
    for (name, at_once, slowly, limit) in cases {
        threads.push(std::thread::spawn(move || {
            let host = Raw::fresh(address);
            let all = [ic_request(NO_DIGESTS), connect_capsule(&host, &nqn(0))].concat();
            let start = now();
            host.send(&all[..at_once]);
            if at_once >= 128 {
                assert!(matches!(host.next(PATIENCE), Got::Pdu(pdu) if pdu[0] == PduType::IC_RESP.0));
            }
            dribble(&host, &all[at_once..at_once + slowly]);
            let took = now() - start;
            assert!(took + SLACK / 4 >= limit && took <= limit + SLACK, "{name}: {took:?} instead of {limit:?}");
        }));
    }
    threads.push(std::thread::spawn(move || {
        // An ICReq as slow as that is in time; the Connect then has its own time.
        let host = Raw::fresh(address);
        let start = now();
        for byte in ic_request(NO_DIGESTS) {
            assert!(host.send(&[byte]));
            std::thread::park_timeout(PACE);
        }
        assert!(matches!(host.next(PATIENCE), Got::Pdu(pdu) if pdu[0] == PduType::IC_RESP.0));
        let agreed = now() - start;
        let took = ended(&host, start);
        assert!(took >= agreed + second - SLACK / 4 && took <= agreed + second + SLACK, "{agreed:?}, {took:?}");
    }));
    threads.push(std::thread::spawn(move || {
        // Refused again and again: that is no way to stay.
        let host = Raw::open(address, NO_DIGESTS);
        let start = now();
        while host.send(&connect_capsule(&host, "nqn.2026-11.io.reactor:nobody")) {
            match host.next(PATIENCE) {
                Got::Pdu(pdu) => assert_eq!(pdu[0], PduType::CAPSULE_RESP.0),
                _ => break,
            }
            std::thread::park_timeout(PACE * 10);
        }
        let took = now() - start;
        assert!(took + SLACK / 4 >= second && took <= second + SLACK, "{took:?}");
    }));
    for thread in threads {
        thread.join().unwrap();
    }
    served.join().unwrap();
    server.stop();
}

#[test]
fn a_host_that_overruns_its_queue_is_terminated() {
    let server = Place::new().serve(&config("128MiB"));
    let (_admin, cntlid) = Raw::admin(server.address(), &nqn(0), NO_DIGESTS);
    let (host, _) = Raw::queue(server.address(), &nqn(0), 1, cntlid, NO_DIGESTS);
    // Their data never comes, so none of them ends.
    for cid in 0..ENTRIES {
        host.send(&host.capsule(cid as u16, write_sqe(16_384, false), &[]));
    }
    for _ in 0..ENTRIES {
        host.r2t();
    }
    host.send(&host.capsule(99, Sqe::nvm(NvmOpcode::FLUSH, 1), &[]));
    let Got::Pdu(pdu) = host.next(PATIENCE) else { panic!("no termination request") };
    let (term, _) = TermReqPdu::read_from_prefix(&pdu).unwrap();
    assert_eq!(term.ch.pdu_type, PduType::C2H_TERM_REQ);
    assert_eq!((FatalErrorStatus(term.fes.get()), term.fei.get()), (FatalErrorStatus::SEQUENCE_ERROR, 0));
    assert!(matches!(host.next(PATIENCE), Got::End | Got::Reset));
    server.stop();
}

#[test]
fn a_queue_may_be_used_to_its_last_entry_for_ever() {
    let server = Place::new().serve(&config("128MiB"));
    let (_admin, cntlid) = Raw::admin(server.address(), &nqn(0), NO_DIGESTS);
    let (host, _) = Raw::queue(server.address(), &nqn(0), 1, cntlid, NO_DIGESTS);
    for cid in 0..ENTRIES {
        host.send(&host.capsule(cid as u16, read_sqe(4096), &[]));
    }
    for _ in 0..10_000 {
        let cid = host.response().cid.get();
        host.send(&host.capsule(cid, read_sqe(if cid % 3 == 0 { 512 } else { 32_768 }), &[]));
    }
    for _ in 0..ENTRIES {
        host.response();
    }
    server.stop();
}

#[test]
fn a_violation_by_a_host_that_reads_nothing_ends_its_connection_too() {
    let server = Place::new().serve(&config("128MiB"));
    let (_admin, cntlid) = Raw::admin(server.address(), &nqn(0), NO_DIGESTS);
    let (host, _) = Raw::queue(server.address(), &nqn(0), 1, cntlid, NO_DIGESTS);
    for cid in 0..ENTRIES as u16 - 1 {
        host.send(&host.capsule(cid, read_sqe(1 << 20), &[]));
    }
    // More than the sockets take, so no answer behind it can leave.
    std::thread::park_timeout(Duration::from_millis(500));
    let mut bad = host.capsule(99, Sqe::nvm(NvmOpcode::FLUSH, 1), &[]);
    bad[0] = 8;
    host.send(&bad);
    std::thread::park_timeout(SLACK);
    // Closed by now: what the kernel still had arrives, and no word about it.
    loop {
        match host.next(PATIENCE) {
            Got::Pdu(pdu) => assert_ne!(pdu[0], PduType::C2H_TERM_REQ.0, "the connection stayed until the host read"),
            Got::End | Got::Reset => break,
            Got::Silence => panic!("the connection stays"),
        }
    }
    server.stop();
}
