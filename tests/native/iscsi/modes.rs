//! Mode parameters and the state of a unit as every nexus meets them: what an error ends (QERR), how sense data look (D_SENSE), what is
//! protected (SWP), what is durable (WCE), what is stopped.

use std::time::Duration;

use super::super::host::pattern;
use super::super::server::{Place, now};
use super::held::{ASKED, SHORT, changed_caching, control, holding, pending, zeros};
use super::initiator::cdb::{self, status};
use super::initiator::session::{function, managed};
use super::initiator::{Options, Session};
use super::{BLOCK, IQN, config, portal, session};

/// MODE PARAMETERS CHANGED; COMMANDS CLEARED BY ANOTHER INITIATOR.
const MODE_CHANGED: u16 = 0x2a01;
const CLEARED: u16 = 0x2f00;

/// What becomes of commands when one ends with CHECK CONDITION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    GoesOn,
    /// No answer. `told`: a unit attention condition instead.
    Silence {
        told: bool,
    },
    TaskAborted,
}

fn meets(session: &mut Session, tag: u32, lba: u64, fate: Fate, what: &str) {
    session.answer_r2ts(tag);
    match fate {
        Fate::GoesOn => {
            session.wait(tag).good();
        }
        Fate::Silence { .. } => {
            assert!(session.is_waiting(tag, SHORT), "{what}: it is answered");
            session.forget(tag);
        }
        Fate::TaskAborted => assert_eq!(session.wait(tag).status, status::TASK_ABORTED, "{what}"),
    }
    let codes = session.settle(0);
    let expected: &[u16] = if fate == (Fate::Silence { told: true }) { &[CLEARED] } else { &[] };
    assert_eq!(codes, expected, "{what}");
    if fate == Fate::GoesOn {
        let found = session.command(0, &cdb::read16(lba, 8), &[], ASKED).good();
        assert!(found == pattern(ASKED, 1), "{what}: its data");
    } else {
        zeros(session, 0, lba);
    }
}

#[test]
fn an_error_ends_what_qerr_says() {
    const NOBODY: u8 = 0;
    const ALL: u8 = 1;
    const OWN: u8 = 3;
    for (qerr, tas) in [(NOBODY, false), (ALL, false), (ALL, true), (OWN, false), (OWN, true)] {
        let server = Place::new().serve(&config());
        let (mut one, mut other) = (holding(&server, 1), holding(&server, 2));
        control(&mut one, 0, |page| {
            page[3] = page[3] & !6 | qerr << 1;
            page[5] = page[5] & !0x40 | if tas { 0x40 } else { 0 };
        });
        let changed: &[u16] = if qerr == NOBODY { &[] } else { &[MODE_CHANGED] };
        assert_eq!(other.settle(0), changed);
        let (own, theirs) = (pending(&mut one, 0, 0), pending(&mut other, 0, 100));
        let elsewhere = pending(&mut one, 1, 0);
        // An opcode that there is not.
        let wrong = one.command(0, &[0xff; 16], &[], 0);
        assert_eq!((wrong.status, wrong.sense()), (status::CHECK_CONDITION, (5, 0x2000)));
        let what = format!("QERR {qerr:02b}b, TAS {tas}");
        let own_fate = if qerr == NOBODY { Fate::GoesOn } else { Fate::Silence { told: false } };
        meets(&mut one, own.0, 0, own_fate, &format!("{what}: its own"));
        let their_fate = match (qerr, tas) {
            (ALL, false) => Fate::Silence { told: true },
            (ALL, true) => Fate::TaskAborted,
            _ => Fate::GoesOn,
        };
        meets(&mut other, theirs.0, 100, their_fate, &format!("{what}: another nexus"));
        // The other unit is another task set.
        one.answer_r2ts(elsewhere.0);
        one.wait(elsewhere.0).good();
        one.end();
        other.end();
        server.stop();
    }
}

#[test]
fn sense_data_look_as_they_are_set() {
    const FIXED: u8 = 0x70;
    const DESCRIPTOR: u8 = 0x72;
    let server = Place::new().serve(&config());
    let (mut one, mut other) = (session(portal(&server), 1), session(portal(&server), 2));
    let beyond = cdb::read16((super::SIZE / BLOCK) as u64, 1);
    let format = |session: &mut Session, lun: u16| {
        let answer = session.command(lun, &beyond, &[], BLOCK);
        assert_eq!((answer.status, answer.sense()), (status::CHECK_CONDITION, (5, 0x2100)), "LUN {lun}");
        // Without VALID: whether there is an INFORMATION field.
        answer.sense[0] & 0x7f
    };
    assert_eq!((format(&mut one, 0), format(&mut other, 0)), (FIXED, FIXED));
    control(&mut one, 0, |page| page[2] |= 4);
    // The unit attention condition that tells of it has the new form already.
    let told = other.command(0, &cdb::test_unit_ready(), &[], 0);
    assert_eq!((told.sense[0], told.sense()), (DESCRIPTOR, (6, MODE_CHANGED)));
    assert_eq!((format(&mut one, 0), format(&mut other, 0)), (DESCRIPTOR, DESCRIPTOR));
    assert_eq!(format(&mut other, 1), FIXED, "the other unit has a page of its own");
    assert_eq!(other.manage(0, function::LUN_RESET, 0, None), managed::COMPLETE);
    for session in [&mut one, &mut other] {
        assert!(!session.settle(0).is_empty());
        assert_eq!(format(session, 0), FIXED, "a reset brings the default back");
    }
    one.end();
    other.end();
    server.stop();
}

#[test]
fn what_is_protected_by_one_is_protected_from_all() {
    // DATA PROTECT, LOGICAL UNIT SOFTWARE WRITE PROTECTED.
    const PROTECTED: (u8, u16) = (7, 0x2702);
    let server = Place::new().serve(&config());
    let (mut one, mut other) = (session(portal(&server), 1), session(portal(&server), 2));
    let (old, new) = (pattern(ASKED, 1), pattern(ASKED, 2));
    one.command(0, &cdb::write16(0, 8, 0), &old, 0).good();
    control(&mut one, 0, |page| page[4] |= 8);
    assert_eq!(other.settle(0), [MODE_CHANGED]);
    let unmap = cdb::unmap_parameters(0, 8);
    let swap = [&old[..4 * BLOCK], &new[..4 * BLOCK]].concat();
    for session in [&mut one, &mut other] {
        for (cdb, out) in [
            (cdb::write16(0, 8, 0), &new[..]),
            (cdb::write_same16(0, 8, false), &new[..BLOCK]),
            (cdb::compare_and_write(0, 4), &swap[..]),
            (cdb::unmap(unmap.len() as u16), &unmap[..]),
        ] {
            let answer = session.command(0, &cdb, out, 0);
            assert_eq!((answer.status, answer.sense()), (status::CHECK_CONDITION, PROTECTED), "opcode {:#x}", cdb[0]);
        }
        assert!(session.command(0, &cdb::mode_sense10(0x0a, 20), &[], 20).good()[3] & 0x80 != 0, "WP");
        assert!(session.command(0, &cdb::read16(0, 8), &[], ASKED).good() == old);
        session.command(1, &cdb::write16(0, 8, 0), &new, 0).good();
    }
    // Whoever may, takes it away again.
    control(&mut other, 0, |page| page[4] &= !8);
    assert_eq!(one.settle(0), [MODE_CHANGED]);
    one.command(0, &cdb::write16(0, 8, 0), &new, 0).good();
    assert!(other.command(0, &cdb::read16(0, 8), &[], ASKED).good() == new);
    one.end();
    other.end();
    server.stop();
}

#[test]
fn who_switches_the_cache_off_waits_for_a_flush() {
    const FLUSH: Duration = Duration::from_millis(600);
    const WCE: u8 = 4;
    let text = format!(
        r#"
        [memory]
        size = "64MiB"
        [[bdev]]
        name = "disk0"
        driver = "file"
        path = "disk0.img"
        size = "8MiB"
        [[bdev]]
        name = "slow0"
        driver = "inject"
        base = "disk0"
        rules = [
            {{ op = "flush", nth = 1, action = "delay", delay_ms = {} }},
            {{ op = "flush", nth = 2, action = "fail" }},
        ]
        [iscsi]
        listen = ["127.0.0.1:0"]
        [[iscsi.target]]
        iqn = "{IQN}"
        luns = [{{ bdev = "slow0" }}]
        "#,
        FLUSH.as_millis()
    );
    let server = Place::new().serve(&text);
    let mut session = Session::open(portal(&server), &Options::new(IQN, 1));
    session.settle(0);
    let select = |session: &mut Session, on: bool| {
        let list = changed_caching(session, 0, |page| {
            assert!(page[2] & WCE != 0 || on, "the cache is on");
            page[2] = page[2] & !WCE | if on { WCE } else { 0 };
        });
        session.command(0, &cdb::mode_select10(list.len() as u16), &list, 0)
    };
    session.command(0, &cdb::write16(0, 8, 0), &pattern(ASKED, 1), 0).good();
    let start = now();
    select(&mut session, false).good();
    assert!(now() - start >= FLUSH, "what was in the cache is durable first: {:?}", now() - start);
    let start = now();
    session.command(0, &cdb::write16(0, 8, 0), &pattern(ASKED, 2), 0).good();
    select(&mut session, true).good();
    assert!(now() - start < FLUSH, "nothing is flushed when it is switched on, nor when it was off before");
    session.command(0, &cdb::write16(8, 8, 0), &pattern(ASKED, 3), 0).good();
    let failed = select(&mut session, false);
    assert_eq!(failed.status, status::CHECK_CONDITION, "a flush that failed is no success");
    session.end();
    server.stop();
}

#[test]
fn what_is_stopped_by_one_is_stopped_for_all() {
    // NOT READY, INITIALIZING COMMAND REQUIRED.
    const STOPPED: (u8, u16) = (2, 0x0402);
    let server = Place::new().serve(&config());
    let (mut one, mut other) = (session(portal(&server), 1), session(portal(&server), 2));
    let data = pattern(ASKED, 1);
    for round in 0..20_u64 {
        let (stopping, starting) = if round % 2 == 0 { (&mut one, &mut other) } else { (&mut other, &mut one) };
        stopping.command(0, &cdb::start_stop(false), &[], 0).good();
        for session in [&mut *starting, &mut *stopping] {
            for (cdb, out, len) in [
                (cdb::test_unit_ready(), &[][..], 0),
                (cdb::read16(0, 8), &[][..], ASKED),
                (cdb::write16(round * 8, 8, 0), &data[..], 0),
                (cdb::write_same16(round * 8, 8, false), &data[..BLOCK], 0),
            ] {
                let answer = session.command(0, &cdb, out, len);
                assert_eq!((answer.status, answer.sense()), (status::CHECK_CONDITION, STOPPED), "{:#x}", cdb[0]);
            }
            session.command(0, &cdb::inquiry(None, 36), &[], 36).good();
            session.command(1, &cdb::test_unit_ready(), &[], 0).good();
        }
        starting.command(0, &cdb::start_stop(true), &[], 0).good();
        zeros(stopping, 0, round * 8);
        stopping.command(0, &cdb::write16(round * 8, 8, 0), &data, 0).good();
        assert!(starting.command(0, &cdb::read16(round * 8, 8), &[], ASKED).good() == data);
    }
    // A reset starts it too.
    one.command(0, &cdb::start_stop(false), &[], 0).good();
    assert_eq!(other.manage(0, function::LUN_RESET, 0, None), managed::COMPLETE);
    assert!(!one.settle(0).is_empty());
    one.command(0, &cdb::read16(0, 8), &[], ASKED).good();
    one.end();
    other.end();
    server.stop();
}
