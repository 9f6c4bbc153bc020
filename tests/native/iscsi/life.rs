//! The program's life with initiators: killed, told to reload, told to end.

use std::time::Duration;

use super::super::host::pattern;
use super::super::server::{END_LIMIT, PATIENCE, Place, Server, bytes_of, until};
use super::initiator::cdb::{self, status};
use super::initiator::pdu::op;
use super::initiator::session::event;
use super::initiator::{Offer, Options, Session};
use super::{BLOCK, IQN, MIB, portal};

/// File volumes with their sizes in MiB, and which of them is which LUN, all of it read-only or not.
fn config(volumes: &[(&str, usize)], luns: &[(u16, &str, bool)]) -> String {
    let mut text = "[memory]\nsize = \"64MiB\"\n".to_owned();
    for (name, mib) in volumes {
        text +=
            &format!("[[bdev]]\nname = \"{name}\"\ndriver = \"file\"\npath = \"{name}.img\"\nsize = \"{mib}MiB\"\n");
    }
    let luns: Vec<_> = luns
        .iter()
        .map(|(lun, bdev, read_only)| format!("{{ lun = {lun}, bdev = \"{bdev}\", read_only = {read_only} }}"))
        .collect();
    text + &format!(
        "[iscsi]\nlisten = [\"127.0.0.1:0\"]\n[[iscsi.target]]\niqn = \"{IQN}\"\nluns = [{}]\n",
        luns.join(", ")
    )
}

fn open(server: &Server, number: u8) -> Session {
    let mut session = Session::open(portal(server), &Options::new(IQN, number));
    session.settle(0);
    session
}

/// Writers of slots of 64 KiB, each write with a number, one in flight each.
const WRITERS: usize = 8;
const SLOT: usize = 128 * BLOCK;

/// What write `generation` of `writer` leaves: whole slots, so that a torn one shows.
fn contents(writer: usize, generation: u64) -> Vec<u8> {
    pattern(SLOT, (writer as u64) << 32 | generation)
}

#[test]
fn no_write_that_was_flushed_is_lost_by_a_kill() {
    let place = Place::new();
    let text = config(&[("disk0", 8)], &[(0, "disk0", false)]);
    let mut server = place.serve(&text);
    let mut session = open(&server, 1);
    let mut flushed = [0; WRITERS];
    for generation in 1..=20 {
        let tags: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let at = (writer * SLOT / BLOCK) as u64;
                session.start(0, 0, &cdb::write16(at, 128, 0), &contents(writer, generation), 0)
            })
            .collect();
        if generation == 20 {
            // In flight at the kill.
            break;
        }
        for tag in tags {
            session.wait(tag).good();
        }
        session.command(0, &cdb::synchronize_cache16(), &[], 0).good();
        flushed = [generation; WRITERS];
    }
    server.program.signal("KILL");
    server.program.end(PATIENCE);
    let server = place.serve(&text);
    let mut session = open(&server, 1);
    for (writer, generation) in flushed.into_iter().enumerate() {
        let found = session.command(0, &cdb::read16((writer * SLOT / BLOCK) as u64, 128), &[], SLOT).good();
        let (old, new) = (contents(writer, generation), contents(writer, generation + 1));
        for (number, block) in found.chunks(BLOCK).enumerate() {
            let at = number * BLOCK;
            assert!(block == &old[at..at + BLOCK] || block == &new[at..at + BLOCK], "writer {writer}, block {number}");
        }
    }
    session.end();
    server.stop();
}

#[test]
fn writes_with_fua_need_no_flush() {
    let place = Place::new();
    let text = config(&[("disk0", 8)], &[(0, "disk0", false)]);
    let mut server = place.serve(&text);
    let mut session = open(&server, 1);
    for number in 0..50 {
        session.command(0, &cdb::write16(number * 8, 8, cdb::FUA), &pattern(8 * BLOCK, number), 0).good();
    }
    server.program.signal("KILL");
    server.program.end(PATIENCE);
    let bytes = bytes_of(&place.path("disk0.img"));
    for number in 0..50 {
        let at = number * 8 * BLOCK;
        assert!(bytes[at..at + 8 * BLOCK] == pattern(8 * BLOCK, number as u64), "write {number}");
    }
}

/// Gives the program another configuration, and waits until a session hears a unit attention of LUN 0 with this code.
fn reload(place: &Place, server: &mut Server, session: &mut Session, text: &str, code: u16) {
    place.configure(text);
    server.program.signal("HUP");
    let (told, _) = until(PATIENCE, || session.settle(0).contains(&code));
    assert!(told, "no unit attention {code:#06x}");
}

/// REPORTED LUNS DATA HAS CHANGED; CAPACITY DATA HAS CHANGED.
const LUNS_CHANGED: u16 = 0x3f0e;
const CAPACITY_CHANGED: u16 = 0x2a09;

fn luns(session: &mut Session) -> Vec<u8> {
    let list = session.command(0, &cdb::report_luns(256), &[], 256).data;
    let len = u32::from_be_bytes(list[..4].try_into().unwrap()) as usize;
    list[8..8 + len].chunks(8).map(|lun| lun[1]).collect()
}

fn blocks(session: &mut Session) -> u64 {
    let capacity = session.command(0, &cdb::read_capacity16(), &[], 32).good();
    u64::from_be_bytes(capacity[..8].try_into().unwrap()) + 1
}

#[test]
fn units_come_and_go_by_reload() {
    let place = Place::new();
    let volumes = [("disk0", 8), ("disk1", 4)];
    let one = config(&volumes[..1], &[(0, "disk0", false)]);
    let two = config(&volumes, &[(0, "disk0", false), (5, "disk1", false)]);
    let mut server = place.serve(&one);
    let mut session = open(&server, 1);
    let data = pattern(8 * BLOCK, 1);
    session.command(0, &cdb::write16(0, 8, 0), &data, 0).good();
    assert_eq!(luns(&mut session), [0]);
    reload(&place, &mut server, &mut session, &two, LUNS_CHANGED);
    assert_eq!(luns(&mut session), [0, 5]);
    session.settle(5);
    session.command(5, &cdb::write16(0, 8, 0), &data, 0).good();
    assert!(session.command(5, &cdb::read16(0, 8), &[], data.len()).good() == data);
    reload(&place, &mut server, &mut session, &one, LUNS_CHANGED);
    assert_eq!(luns(&mut session), [0]);
    let gone = session.command(5, &cdb::read16(0, 8), &[], data.len());
    assert_eq!((gone.status, gone.sense(), gone.data.len()), (status::CHECK_CONDITION, (5, 0x2500), 0));
    // What stayed, stayed.
    assert!(session.command(0, &cdb::read16(0, 8), &[], data.len()).good() == data);
    session.end();
    server.stop();
}

#[test]
fn growth_is_told_and_keeps_data() {
    let place = Place::new();
    let with = |mib| config(&[("disk0", mib)], &[(0, "disk0", false)]);
    let mut server = place.serve(&with(8));
    let mut session = open(&server, 1);
    assert_eq!(blocks(&mut session), (8 * MIB / BLOCK) as u64);
    let (end, data) = ((8 * MIB / BLOCK) as u64, pattern(8 * BLOCK, 1));
    session.command(0, &cdb::write16(end - 8, 8, 0), &data, 0).good();
    assert_eq!(session.command(0, &cdb::write16(end, 8, 0), &data, 0).sense(), (5, 0x2100));
    reload(&place, &mut server, &mut session, &with(24), CAPACITY_CHANGED);
    assert_eq!(blocks(&mut session), (24 * MIB / BLOCK) as u64);
    assert!(session.command(0, &cdb::read16(end - 8, 8), &[], data.len()).good() == data);
    assert!(session.command(0, &cdb::read16(end, 8), &[], data.len()).good().iter().all(|byte| *byte == 0));
    session.command(0, &cdb::write16(3 * end - 8, 8, 0), &data, 0).good();
    session.end();
    server.stop();
    assert!(bytes_of(&place.path("disk0.img")).ends_with(&data));
}

#[test]
fn a_read_only_unit_says_so_and_stays_as_it_is() {
    let place = Place::new();
    let volumes = [("disk0", 8), ("disk1", 4)];
    let server = place.serve(&config(&volumes, &[(0, "disk0", true), (1, "disk1", false)]));
    let mut session = open(&server, 1);
    session.settle(1);
    // DATA PROTECT, WRITE PROTECTED.
    let refused = (7, 0x2700);
    let data = pattern(8 * BLOCK, 1);
    let unmap = cdb::unmap_parameters(0, 8);
    let writes = [
        (cdb::write16(0, 8, 0), &data[..]),
        (cdb::write10(0, 8), &data[..]),
        (cdb::write_same16(0, 8, false), &data[..BLOCK]),
        (cdb::compare_and_write(0, 4), &data[..]),
        (cdb::unmap(unmap.len() as u16), &unmap[..]),
    ];
    for (cdb, out) in writes {
        let answer = session.command(0, &cdb, out, 0);
        assert_eq!((answer.status, answer.sense()), (status::CHECK_CONDITION, refused), "opcode {:#x}", cdb[0]);
    }
    assert!(session.command(0, &cdb::mode_sense10(0x0a, 20), &[], 20).good()[3] & 0x80 != 0, "WP");
    assert!(session.command(0, &cdb::read16(0, 8), &[], data.len()).good().iter().all(|byte| *byte == 0));
    session.command(1, &cdb::write16(0, 8, 0), &data, 0).good();
    session.end();
    server.stop();
    assert!(bytes_of(&place.path("disk0.img")).iter().all(|byte| *byte == 0));
}

#[test]
fn the_end_asks_for_logouts_and_waits_for_them() {
    let place = Place::new();
    let mut server = place.serve(&config(&[("disk0", 8)], &[(0, "disk0", false)]));
    let mut sessions: Vec<_> = (1..=3).map(|number| open(&server, number)).collect();
    let data = pattern(8 * BLOCK, 1);
    sessions[0].command(0, &cdb::write16(0, 8, 0), &data, 0).good();
    server.program.signal("TERM");
    for session in &mut sessions {
        while session.events.is_empty() {
            assert!(session.turn(0, PATIENCE), "an Asynchronous Message before the end");
        }
        let told = &session.events[0];
        // Time3: how long there is for it, in seconds.
        assert_eq!((told.opcode(), told.bhs[36]), (op::ASYNC, event::LOGOUT_REQUEST), "{told:02x?}");
        assert!(told.get16(42) <= END_LIMIT.as_secs() as u16 + 1, "{told:02x?}");
    }
    for session in sessions {
        session.end();
    }
    server.ended();
    assert!(bytes_of(&place.path("disk0.img")).starts_with(&data));
}

#[test]
fn initiators_that_do_not_listen_hold_nobody_up() {
    let place = Place::new();
    let mut server = place.serve(&config(&[("disk0", 8)], &[(0, "disk0", false)]));
    let idle = open(&server, 1);
    // Answers that nobody reads.
    let mut deaf = open(&server, 2);
    for _ in 0..20 {
        deaf.start(0, 0, &cdb::read16(0, 2048), &[], MIB);
    }
    // Data that never comes.
    let by_r2t = Offer { immediate_data: Some(false), ..Offer::PLAIN };
    let mut mute = Session::open(portal(&server), &Options::new(IQN, 3).with(by_r2t));
    mute.settle(0);
    mute.hold = Some(PATIENCE);
    let tag = mute.start(0, 0, &cdb::write16(0, 128, 0), &vec![1; 128 * BLOCK], 0);
    assert!(mute.is_waiting(tag, Duration::from_millis(200)));
    // Half a header.
    let half = open(&server, 4);
    half.conns[0].wire.send_bytes(&[1; 20]);
    server.program.signal("TERM");
    server.ended();
    drop((idle, deaf, mute, half));
}

#[test]
fn a_stop_under_load_keeps_what_was_acknowledged() {
    let place = Place::new();
    let mut server = place.serve(&config(&[("disk0", 8)], &[(0, "disk0", false)]));
    let mut session = open(&server, 1);
    let mut acknowledged = 0;
    for generation in 1.. {
        if generation == 50 {
            server.program.signal("TERM");
        }
        let tag = session.start(0, 0, &cdb::write16(0, 128, 0), &contents(0, generation), 0);
        match session.wait_or_end(tag) {
            Some(answer) if answer.status == status::GOOD => acknowledged = generation,
            _ => break,
        }
    }
    server.ended();
    let bytes = bytes_of(&place.path("disk0.img"));
    let (last, next) = (contents(0, acknowledged), contents(0, acknowledged + 1));
    for (number, block) in bytes[..SLOT].chunks(BLOCK).enumerate() {
        let at = number * BLOCK;
        assert!(
            block == &last[at..at + BLOCK] || block == &next[at..at + BLOCK],
            "block {number} after {acknowledged} writes"
        );
    }
    assert!(acknowledged >= 49);
}
