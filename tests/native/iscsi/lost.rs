//! Connections that are lost: what becomes of their session, of what was in flight, and of what its nexus held.

use std::time::Duration;

use super::super::host::pattern;
use super::super::server::{Place, Server, until};
use super::initiator::cdb::{self, status};
use super::initiator::login::SESSION_DOES_NOT_EXIST;
use super::initiator::{Offer, Options, PATIENCE, Session};
use super::{BLOCK, IQN, config, portal, session, session_with};

/// Long enough for what must not come.
const SHORT: Duration = Duration::from_millis(300);
/// Bytes of a write.
const LEN: usize = 8 * BLOCK;
/// Connections, all data by R2T.
const SEVERAL: Offer =
    Offer { max_connections: Some(4), immediate_data: Some(false), initial_r2t: Some(true), ..Offer::PLAIN };
/// POWER ON, RESET OR BUS DEVICE RESET OCCURRED; I_T NEXUS LOSS OCCURRED: what a nexus that is new is told (SAM-5, I_T nexus loss).
const NEW_NEXUS: [u16; 2] = [0x2900, 0x2907];
/// PERSISTENT RESERVE OUT, and a type (SPC-4 §6.16.2, §6.15.3.4).
const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const WRITE_EXCLUSIVE: u8 = 1;
const KEY: u64 = 0xa1;

/// Waits until the target has closed these connections.
fn closed(session: &mut Session, conns: &[usize]) {
    for conn in conns {
        until(PATIENCE, || !session.turn(*conn, SHORT) && session.conns[*conn].over.is_some());
        assert!(session.conns[*conn].over.is_some(), "connection {conn} is closed");
    }
}

fn zeros(session: &mut Session, lba: u64) {
    let found = session.command(0, &cdb::read16(lba, 8), &[], LEN).good();
    assert!(found.iter().all(|byte| *byte == 0), "a write that was never answered is at block {lba}");
}

fn write(session: &mut Session, lun: u16, seed: u64) -> u8 {
    session.command(lun, &cdb::write16(1000, 8, 0), &pattern(LEN, seed), 0).status
}

/// A session of three connections.
fn of_three(server: &Server, number: u8, offer: Offer) -> Session {
    let mut session = session_with(portal(server), number, offer);
    for cid in [7, 9] {
        session.join(portal(server), cid).unwrap();
    }
    session
}

/// Without error recovery a session does not outlive the loss of one of its connections: a number that was lost with it may be missing for
/// good (RFC 7143 §7.1.4.4).
#[test]
fn a_session_ends_with_the_loss_of_one_connection() {
    let server = Place::new().serve(&config());
    for lost in [0, 1, 2] {
        let mut witness = session(portal(&server), 2);
        let mut session = of_three(&server, 1, SEVERAL);
        // What its nexus holds: one unit persistently, the other one as long as it is there.
        let list = cdb::reserve_parameters(0, KEY, false);
        session.command(0, &cdb::reserve_out(REGISTER, 0), &list, 0).good();
        let list = cdb::reserve_parameters(KEY, 0, false);
        session.command(0, &cdb::reserve_out(RESERVE, WRITE_EXCLUSIVE), &list, 0).good();
        session.command(1, &cdb::reserve6(), &[], 0).good();
        for lun in [0, 1] {
            assert_eq!(write(&mut witness, lun, 1), status::RESERVATION_CONFLICT, "unit {lun}");
        }
        // A write in flight on each, whose data has been asked for.
        session.hold = Some(PATIENCE);
        let tags: Vec<u32> = [0, 1, 2]
            .map(|conn| {
                let write = cdb::write16(conn as u64 * 100, 8, 0);
                let tag = session.start(conn, 0, &write, &pattern(LEN, 2), 0);
                assert!(session.is_waiting(tag, SHORT));
                tag
            })
            .to_vec();
        session.conns[lost].wire.reset();
        let others: Vec<usize> = (0..3).filter(|conn| *conn != lost).collect();
        closed(&mut session, &others);
        for conn in &others {
            assert!(session.is_waiting(tags[*conn], Duration::ZERO), "no answer on connection {conn}");
        }
        // The same initiator port comes back, as one that is new.
        let mut again = Session::open(portal(&server), &Options::new(IQN, 1));
        assert_eq!(session.join(portal(&server), 20).err(), Some(SESSION_DOES_NOT_EXIST), "the old one is gone");
        for lun in [0, 1] {
            let told = again.settle(lun);
            assert!(told.len() == 1 && NEW_NEXUS.contains(&told[0]), "unit {lun}: {told:04x?}");
            assert_eq!(witness.settle(lun), [0_u16; 0], "others are not told");
        }
        for lba in [0, 100, 200] {
            zeros(&mut witness, lba);
        }
        // A persistent reservation outlives the nexus, and it is the holder that has come; RESERVE does not.
        assert_eq!(write(&mut witness, 0, 3), status::RESERVATION_CONFLICT);
        assert_eq!(write(&mut again, 0, 4), status::GOOD);
        assert_eq!(write(&mut witness, 1, 5), status::GOOD);
        assert_eq!(again.command(1, &cdb::read16(1000, 8), &[], LEN).good(), pattern(LEN, 5));
        // Nothing comes later either.
        std::thread::park_timeout(SHORT);
        for lba in [0, 100, 200] {
            zeros(&mut witness, lba);
        }
        assert_eq!(witness.command(0, &cdb::read16(1000, 8), &[], LEN).good(), pattern(LEN, 4));
        let list = cdb::reserve_parameters(KEY, 0, false);
        again.command(0, &cdb::reserve_out(REGISTER, 0), &list, 0).good();
        again.end();
        witness.end();
    }
    server.stop();
}

/// A write that is with the device when another connection is lost has ended before the next session of its initiator begins.
#[test]
fn no_write_of_a_lost_session_lands_in_the_next_one() {
    const LATE: Duration = Duration::from_millis(1500);
    let text = config().replace(
        "[iscsi]",
        &format!(
            r#"[[bdev]]
            name = "late0"
            driver = "inject"
            base = "ram0"
            rules = [{{ op = "write", nth = 1, action = "delay", delay_ms = {} }}]
            [iscsi]"#,
            LATE.as_millis()
        ),
    );
    let text = text.replacen(r#"{ bdev = "ram0" }"#, r#"{ bdev = "late0" }"#, 1);
    for lost in [1, 2] {
        let server = Place::new().serve(&text);
        let mut session = of_three(&server, 1, Offer { max_connections: Some(4), ..Offer::PLAIN });
        let old = session.start(2, 0, &cdb::write16(0, 8, 0), &pattern(LEN, 1), 0);
        // An answer to what came behind it: it has arrived.
        session.ping(2, b"there");
        assert!(session.is_waiting(old, Duration::from_millis(1)), "it takes long");
        session.conns[lost].wire.reset();
        let mut again = Session::open(portal(&server), &Options::new(IQN, 1));
        again.settle(0);
        let before = again.command(0, &cdb::read16(0, 8), &[], LEN).good();
        assert!(before == vec![0; LEN] || before == pattern(LEN, 1), "all of it or nothing");
        again.command(0, &cdb::write16(0, 8, 0), &pattern(LEN, 2), 0).good();
        std::thread::park_timeout(LATE + SHORT);
        assert!(again.command(0, &cdb::read16(0, 8), &[], LEN).good() == pattern(LEN, 2), "the old write has landed");
        closed(&mut session, &[0]);
        again.end();
        server.stop();
    }
}
