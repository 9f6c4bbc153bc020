//! Initiators that do not answer when they are asked whether they are there.

use std::time::Duration;

use reactor::limits::{ISCSI_NOP_INTERVAL_NS, ISCSI_NOP_TIMEOUT_NS};

use super::super::host::pattern;
use super::super::server::{Place, now};
use super::initiator::cdb;
use super::initiator::pdu::{NO_TAG, op};
use super::initiator::{Got, Offer, Options, PATIENCE, Session};
use super::{BLOCK, IQN, config, portal, session, session_with};

/// What a loaded machine may add to a time.
const LATE: Duration = Duration::from_secs(4);
const LEN: usize = 8 * BLOCK;

/// Asked after the interval, closed after the time it had for its answer; who answers stays, however idle.
#[test]
fn who_answers_no_ping_is_closed_and_who_answers_stays() {
    let (interval, limit) = (Duration::from_nanos(ISCSI_NOP_INTERVAL_NS), Duration::from_nanos(ISCSI_NOP_TIMEOUT_NS));
    let server = Place::new().serve(&config());
    let mut idle = session(portal(&server), 2);
    let by_r2t = Offer { immediate_data: Some(false), initial_r2t: Some(true), ..Offer::PLAIN };
    let mut silent = session_with(portal(&server), 1, by_r2t);
    silent.hold = Some(PATIENCE);
    let start = now();
    // Its last word: a write whose data does not come.
    let tag = silent.start(0, 0, &cdb::write16(0, 8, 0), &pattern(LEN, 1), 0);
    assert!(silent.is_waiting(tag, Duration::from_millis(200)));
    let (mut asked, mut ended) = (None, None);
    while ended.is_none() && now() - start < interval + limit + 3 * LATE {
        match silent.conns[0].wire.next(Duration::from_millis(10)) {
            Got::Pdu(ping) => {
                assert_eq!((ping.opcode(), ping.itt()), (op::NOP_IN, NO_TAG), "{ping:02x?}");
                assert!(ping.get(20) != NO_TAG, "it wants an answer");
                asked.get_or_insert(now() - start);
            }
            Got::Silence => {}
            Got::End | Got::Reset => ended = Some(now() - start),
        }
        idle.turn(0, Duration::from_millis(10));
    }
    println!("asked after {asked:?}, closed after {ended:?}");
    let (asked, ended) = (asked.expect("a ping"), ended.expect("the end of the connection"));
    // Some time passed between the start and the last word.
    assert!(asked + Duration::from_millis(50) >= interval && asked <= interval + LATE, "asked after {asked:?}");
    let left = ended - asked;
    assert!(left + Duration::from_millis(50) >= limit && left <= limit + LATE, "closed {left:?} after the ping");
    // The one that answers.
    assert!(idle.pings >= 1, "asked as well");
    assert!(idle.conns[0].over.is_none(), "{:?}", idle.conns[0].over);
    let found = idle.command(0, &cdb::read16(0, 8), &[], LEN).good();
    assert!(found.iter().all(|byte| *byte == 0), "the write of a lost initiator");
    // The silent one may come again.
    let mut again = Session::open(portal(&server), &Options::new(IQN, 1));
    again.settle(0);
    again.command(0, &cdb::write16(0, 8, 0), &pattern(LEN, 2), 0).good();
    assert_eq!(idle.command(0, &cdb::read16(0, 8), &[], LEN).good(), pattern(LEN, 2));
    again.end();
    idle.end();
    server.stop();
}
