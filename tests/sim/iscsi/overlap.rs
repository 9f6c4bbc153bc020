//! Sessions and connections that take the place of others, or are ended by the target, while something of them is still under way.

use std::cell::RefCell;
use std::rc::Rc;

use reactor::bdev::layer::inject::{Action, Rule, When};
use reactor::iscsi::Offer;
use reactor::limits::ISCSI_NOP_TIMEOUT_NS;
use reactor::net::Tx;
use reactor::reactor::Reactor;
use reactor::reactor::io::IoOp;
use reactor::sys::tx::TxBatch;

use super::super::model::Crash;
use super::super::plan::{Kind, MS, Volume};
use super::cdb::{self, status};
use super::directed::{BLOCK, Scene, ask, good, volume};
use super::host::place;
use super::initiator::{End, Session};
use super::login::{Ask, LoggedIn, log_in};
use super::pdu::{Pdu, flag, op};

/// Status-Class 3, target error: service unavailable.
const SERVICE_UNAVAILABLE: u16 = 0x0301;
/// Status-Class 2, initiator error: session does not exist.
const NO_SESSION: u16 = 0x020a;
/// What is on its way to the device by then has come there, whatever the network does.
const SETTLED: u64 = 600 * MS;
/// How long an initiator waits that gives up.
const HASTY: u64 = 300 * MS;

/// The first write takes so long, and nothing takes it back.
fn late(late_ns: u64) -> Volume {
    let rule = Rule { op: Some(IoOp::Write), when: When::From(1), count: Some(1), action: Action::Delay(late_ns) };
    Volume { stubborn: true, ..volume(Kind::Malloc, Some(vec![rule])) }
}

/// What the old one writes, and what the new one does.
fn old_data() -> Vec<u8> {
    vec![0x0d; 8 * BLOCK]
}

fn new_data() -> Vec<u8> {
    vec![0x4e; 8 * BLOCK]
}

/// Writes by way of the new one; the old write does not come after it.
async fn write_and_look_again(session: &Rc<Session>, reactor: &Reactor, late_ns: u64, seed: u64) {
    good(session, reactor, cdb::write16(0, 8, 0), &new_data(), 0).await;
    reactor.sleep(late_ns + 1_000 * MS).await;
    let found = good(session, reactor, cdb::read16(0, 8), &[], 8 * BLOCK).await;
    assert!(found == new_data(), "seed {seed}: a write that was acknowledged is undone by an older one");
}

#[test]
fn a_login_that_was_given_up_lets_no_later_one_in_early() {
    for seed in 0..60 {
        let late_ns = (2_500 + seed % 7 * 300) * MS;
        let scene = Scene::new(seed, 1 + (seed % 3) as u16, late(late_ns));
        let (reactor, address) = (scene.reactor(0), scene.target.address);
        scene.run(0, async move {
            let patient = Ask::plain(Offer::default());
            let old = Session::open(&reactor, address, place(0), &patient).await.unwrap();
            good(&old, &reactor, cdb::test_unit_ready(), &[], 0).await;
            let sent = reactor.clock().now();
            old.command(0, 0, &cdb::write16(0, 8, 0), old_data(), 0, 1).await.unwrap();
            reactor.sleep(SETTLED).await;
            for _ in 0..=seed % 4 {
                let hasty = Ask { patience_ns: HASTY, ..patient };
                let given_up = Session::open(&reactor, address, place(0), &hasty).await.err();
                assert_eq!(given_up, Some(End::Timeout("login")), "seed {seed}: the old write is under way");
            }
            let new = Session::open(&reactor, address, place(0), &patient).await.unwrap();
            let now = reactor.clock().now();
            assert!(now >= sent + late_ns, "seed {seed}: let in {} ns too early", sent + late_ns - now);
            write_and_look_again(&new, &reactor, late_ns, seed).await;
            old.close(End::Closed);
            new.log_out(reactor.clock().now() + 10_000 * MS).await.unwrap();
        });
        scene.end();
    }
}

/// Of several logins of a nexus that wait, the last one is the session; those between are told that they are not.
#[test]
fn of_logins_that_wait_the_last_one_stays() {
    for seed in 0..40 {
        let late_ns = (3_000 + seed % 5 * 300) * MS;
        let scene = Scene::new(seed, 1 + (seed % 3) as u16, late(late_ns));
        let (reactor, address) = (scene.reactor(0), scene.target.address);
        scene.run(0, async move {
            let patient = Ask::plain(Offer::default());
            let old = Session::open(&reactor, address, place(0), &patient).await.unwrap();
            good(&old, &reactor, cdb::test_unit_ready(), &[], 0).await;
            old.command(0, 0, &cdb::write16(0, 8, 0), old_data(), 0, 1).await.unwrap();
            reactor.sleep(SETTLED).await;
            let results = Rc::new(RefCell::new(Vec::new()));
            for number in 0..3 {
                let (here, results) = (reactor.clone(), results.clone());
                reactor.spawn("login", async move {
                    let opened = Session::open(&here, address, place(0), &patient).await;
                    results.borrow_mut().push((number, opened));
                });
                reactor.sleep(SETTLED).await;
            }
            while results.borrow().len() < 3 {
                reactor.sleep(10 * MS).await;
            }
            let mut ended = results.take();
            ended.sort_by_key(|(number, _)| *number);
            let mut ended = ended.into_iter().map(|(_, opened)| opened);
            let (first, second, last) = (ended.next().unwrap(), ended.next().unwrap(), ended.next().unwrap());
            assert_eq!(second.err(), Some(End::Refused(SERVICE_UNAVAILABLE)), "seed {seed}");
            let last = last.unwrap();
            write_and_look_again(&last, &reactor, late_ns, seed).await;
            // The first one may have had its session until then.
            if let Ok(first) = first {
                assert!(first.end().is_some(), "seed {seed}: two sessions of one nexus");
                first.close(End::Closed);
            }
            old.close(End::Closed);
            last.log_out(reactor.clock().now() + 10_000 * MS).await.unwrap();
        });
        scene.end();
    }
}

/// A join that was given up may be let in before its end is seen, and a connection that ends takes its session along at error recovery level 0:
/// then a new session follows. Whatever comes next, it comes after the old write.
#[test]
fn a_join_that_was_given_up_lets_no_later_one_in_early() {
    let mut joined = 0;
    for seed in 0..60 {
        let late_ns = (2_500 + seed % 7 * 300) * MS;
        let scene = Scene::new(seed, 1 + (seed % 3) as u16, late(late_ns));
        let (reactor, address) = (scene.reactor(0), scene.target.address);
        let has_joined = scene.run(0, async move {
            let patient = Ask { connections: 2, ..Ask::plain(Offer::default()) };
            let old = Session::open(&reactor, address, place(0), &patient).await.unwrap();
            old.join(address, 1, &patient).await.unwrap();
            good(&old, &reactor, cdb::test_unit_ready(), &[], 0).await;
            let sent = reactor.clock().now();
            old.command(1, 0, &cdb::write16(0, 8, 0), old_data(), 0, 1).await.unwrap();
            reactor.sleep(SETTLED).await;
            old.give_up(1);
            for _ in 0..seed % 4 {
                let hasty = Ask { patience_ns: HASTY, ..patient };
                let given_up = old.join(address, 1, &hasty).await;
                assert_eq!(given_up, Err(End::Timeout("login")), "seed {seed}: the old write is under way");
            }
            let (new, has_joined) = match old.join(address, 1, &patient).await {
                Ok(()) => (old.clone(), true),
                Err(End::Refused(NO_SESSION) | End::Stream(_)) if seed % 4 > 0 => {
                    (Session::open(&reactor, address, place(0), &patient).await.unwrap(), false)
                }
                Err(end) => panic!("seed {seed}: {end:?}"),
            };
            let now = reactor.clock().now();
            assert!(now >= sent + late_ns, "seed {seed}: let in {} ns too early", sent + late_ns - now);
            write_and_look_again(&new, &reactor, late_ns, seed).await;
            for conn in new.usable() {
                let read = cdb::read16(0, 8);
                let tag = new.command(conn, 0, &read, Vec::new(), 8 * BLOCK, 1).await.unwrap();
                let answer = new.wait(tag, reactor.clock().now() + 10_000 * MS).await;
                answer.unwrap().expect("an answer by each connection that is there");
            }
            // The end of the one connection may come before the answer by the other.
            let ended = new.log_out(reactor.clock().now() + 10_000 * MS).await;
            assert!(matches!(ended, Ok(()) | Err(End::Stream(_))), "seed {seed}: {ended:?}");
            old.close(End::Closed);
            has_joined
        });
        joined += u32::from(has_joined);
        scene.end();
    }
    println!("{joined} of 60 sessions went on");
    assert!(joined >= 15, "where nothing was given up, the session goes on");
}

/// An initiator that has logged in and reads nothing any more.
struct Deaf {
    reactor: Rc<Reactor>,
    tx: Rc<Tx>,
    cmd_sn: u32,
    stat_sn: u32,
    agreed_len: usize,
}

impl Deaf {
    /// Takes over a connection.
    fn of(reactor: &Rc<Reactor>, login: LoggedIn) -> Deaf {
        let tx = Tx::new(&login.stream);
        let (sender, stream) = (tx.clone(), login.stream);
        reactor.spawn("deaf initiator", async move {
            sender.run().await;
            stream.shut_down();
        });
        let agreed_len = login.agreed.max_send as usize;
        Deaf { reactor: reactor.clone(), tx, cmd_sn: login.exp_cmd_sn, stat_sn: login.exp_stat_sn, agreed_len }
    }

    /// Sends a command with its data, as long as the target takes it.
    async fn send(&mut self, flags: u8, cdb: &cdb::Cdb, data: &[u8], expected: usize) {
        assert!(data.len() <= self.agreed_len);
        let mut pdu = Pdu::new(op::COMMAND, flag::FINAL | flags | 1).with_lun(0).with_data(data);
        pdu.bhs[32..].copy_from_slice(cdb);
        let pdu = pdu.with(16, self.cmd_sn).with(20, expected as u32).with(24, self.cmd_sn).with(28, self.stat_sn);
        self.cmd_sn = self.cmd_sn.wrapping_add(1);
        let bytes = pdu.encode(false, false);
        let mut buf = self.reactor.buffer(bytes.len()).await;
        buf.copy_from_slice(&bytes);
        // Whether the target is still there shows otherwise.
        let _ = self.tx.push(1, 0, |batch: &mut TxBatch| batch.push_buf(buf)).await;
    }
}

#[test]
fn who_is_dismissed_and_does_not_listen_is_gone_in_time() {
    for seed in 0..20 {
        let mut scene = Scene::new(seed, 1 + (seed % 3) as u16, volume(Kind::Malloc, None));
        let (reactor, address) = (scene.reactor(0), scene.target.address);
        let here = reactor.clone();
        let mut deaf = scene.run(0, async move {
            let plain = Ask::plain(Offer::default());
            let session = Session::open(&here, address, place(0), &plain).await.unwrap();
            good(&session, &here, cdb::test_unit_ready(), &[], 0).await;
            session.log_out(here.clock().now() + 10_000 * MS).await.unwrap();
            let login = log_in(&here, address, &place(0), &plain, (0, 0), 1).await.unwrap();
            let mut deaf = Deaf::of(&here, login);
            // The first one is told what waits for a new nexus.
            for _ in 0..60 {
                deaf.send(flag::READ, &cdb::read16(0, 128), &[], 128 * BLOCK).await;
            }
            deaf.send(flag::WRITE, &cdb::write16(0, 8, 0), &old_data(), 8 * BLOCK).await;
            deaf
        });
        let other = scene.reactor(1);
        let here = other.clone();
        let watching = scene.run(1, async move {
            let session = Session::open(&here, address, place(1), &Ask::plain(Offer::default())).await.unwrap();
            let read = cdb::read16(0, 8);
            while good(&session, &here, read, &[], 8 * BLOCK).await != old_data() {
                here.sleep(50 * MS).await;
            }
            session
        });
        let before = scene.target.connections();
        assert_eq!(before, 2);
        let dismissed = scene.sim.borrow().world().now();
        scene.target.allow(&[&place(1).initiator]);
        // It goes on sending, which a keepalive takes for a sign of life.
        let here = reactor.clone();
        deaf = scene.run(0, async move {
            for _ in 0..28 {
                deaf.send(flag::WRITE, &cdb::write16(0, 8, 0), &new_data(), 8 * BLOCK).await;
                here.sleep(500 * MS).await;
            }
            deaf
        });
        let limit = dismissed + ISCSI_NOP_TIMEOUT_NS + 500 * MS;
        while scene.target.connections() == before {
            let now = scene.sim.borrow().world().now();
            assert!(now < limit, "seed {seed}: still there {} ms after it was dismissed", (now - dismissed) / MS);
            scene.sim.borrow_mut().run_for(100 * MS).unwrap();
        }
        scene.run(1, async move {
            let found = good(&watching, &other, cdb::read16(0, 8), &[], 8 * BLOCK).await;
            assert!(found == old_data(), "seed {seed}: it has written after it was dismissed");
            watching.log_out(other.clock().now() + 10_000 * MS).await.unwrap();
        });
        deaf.tx.finish();
        drop((deaf, reactor));
        scene.end();
    }
}

/// Sets WCE.
async fn set_cache(session: &Rc<Session>, reactor: &Reactor, on: bool) {
    let mut list = good(session, reactor, cdb::mode_sense10(0x08, 28), &[], 28).await;
    list[..2].fill(0);
    list[8] &= 0x3f;
    list[10] = list[10] & !4 | if on { 4 } else { 0 };
    good(session, reactor, cdb::mode_select10(28), &list, 0).await;
}

/// What the power failure comes after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum After {
    /// A write into the cache, which stays on.
    Write,
    /// The same, and then the cache is switched off.
    SwitchOff,
    /// A write while it is off.
    WriteThrough,
}

#[test]
fn without_a_cache_nothing_is_lost_with_the_power() {
    let mut lost = 0;
    for seed in 0..90 {
        let after = [After::Write, After::SwitchOff, After::WriteThrough][seed as usize % 3];
        let kind = Kind::File { unit: 512, punch: true };
        let mut scene = Scene::new(seed, 1 + (seed % 2) as u16, volume(kind, None));
        let (address, here) = (scene.target.address, scene.reactor(0));
        let session = scene.run(0, async move {
            let session = Session::open(&here, address, place(0), &Ask::plain(Offer::default())).await.unwrap();
            if after == After::WriteThrough {
                set_cache(&session, &here, false).await;
            }
            for lba in 0..8 {
                good(&session, &here, cdb::write16(lba * 16, 8, 0), &new_data(), 0).await;
            }
            if after == After::SwitchOff {
                set_cache(&session, &here, false).await;
            }
            session
        });
        scene.target.crash(Crash::Power);
        session.close(End::Closed);
        drop(session);
        scene.target.restart();
        let here = scene.reactor(0);
        let found = scene.run(0, async move {
            let session = Session::open(&here, address, place(0), &Ask::plain(Offer::default())).await.unwrap();
            let mut found = 0;
            for lba in 0..8 {
                let answer = ask(&session, &here, cdb::read16(lba * 16, 8), &[], 8 * BLOCK).await;
                assert_eq!(answer.status, status::GOOD);
                found += u32::from(answer.data == new_data());
            }
            session.log_out(here.clock().now() + 10_000 * MS).await.unwrap();
            found
        });
        if after == After::Write {
            lost += 8 - found;
        } else {
            assert_eq!(found, 8, "seed {seed}: {after:?}");
        }
        scene.end();
    }
    assert!(lost > 0, "a cache that loses nothing would show nothing here");
}
