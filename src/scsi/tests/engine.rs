//! Unit attention conditions, the order of checks, states, and that gates decide as the engine does.

use super::*;
use crate::scsi::decode::CATALOGUE;

const TEST_UNIT_READY: [u8; 6] = [0; 6];
const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 1, 0, 0, 1, 0];

#[test]
fn a_nexus_must_be_attached() {
    let mut rig = Rig::new();
    assert_eq!(rig.check(NexusId(77), &TEST_UNIT_READY), Sense::illegal(Asc::LUN_NOT_SUPPORTED));
    assert_eq!(rig.lu.gate(NexusId(77)), None);
    rig.lu.detach(NexusId(77));
    // Who takes a number over has not what the one before had.
    rig.good(A, &[0x16, 0, 0, 0, 0, 0]);
    rig.lu.attach(A, initiator("c", 3), 1);
    rig.good(B, &TEST_UNIT_READY);
    assert!(LogicalUnit::new(Unit { blocks: 0, ..unit() }, vec![], Reservations::default()).is_err());
}

#[test]
fn attentions_come_first_and_once() {
    let mut rig = Rig::new();
    rig.lu.raise(A, UnitAttention::CapacityChanged);
    rig.lu.raise(A, UnitAttention::LunsChanged);
    // Even before an unknown command and a reservation.
    rig.good(B, &[0x16, 0, 0, 0, 0, 0]);
    assert_eq!(rig.check(A, &[0xff]).code, Asc::LUNS_CHANGED);
    assert_eq!(rig.check(A, &READ).code, Asc::CAPACITY_CHANGED);
    assert!(rig.conflicts(A, &READ));
    assert_eq!(rig.check(A, &[0xff]), Sense::opcode());
}

#[test]
fn inquiry_report_luns_and_request_sense_let_attentions_wait() {
    let mut rig = Rig::new();
    rig.lu.raise(A, UnitAttention::ModeChanged);
    rig.good(A, &[0x12, 0, 0, 0, 36, 0]);
    rig.good(A, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0]);
    assert_eq!(rig.check(A, &[0x12, 0, 9, 0, 36, 0]), Sense::field(2), "its own errors come");
    // REQUEST SENSE tells it as data, in the format asked for.
    let sense = rig.good(A, &[0x03, 0, 0, 0, 18, 0]);
    assert_eq!((sense[0], sense[2], sense[12], sense[13]), (0x70, 6, 0x2a, 1));
    assert_eq!(rig.good(A, &[0x03, 1, 0, 0, 18, 0]), [0x72, 0, 0, 0, 0, 0, 0, 0]);
    rig.good(A, &TEST_UNIT_READY);
    // REPORT LUNS is what REPORTED LUNS DATA HAS CHANGED asks for.
    rig.lu.raise(A, UnitAttention::LunsChanged);
    rig.lu.raise(A, UnitAttention::CapacityChanged);
    rig.good(A, &[0xa0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0]);
    assert_eq!(rig.check(A, &TEST_UNIT_READY).code, Asc::CAPACITY_CHANGED);
    rig.good(A, &TEST_UNIT_READY);
}

#[test]
fn resets_tell_everybody_and_keep_registrations() {
    let mut rig = Rig::new();
    let list = [&[0; 8][..], &7u64.to_be_bytes(), &[0; 8]].concat();
    let reaction = rig.send(A, &[0x5f, 6, 0, 0, 0, 0, 0, 0, 24, 0], &list);
    assert_eq!(reaction.reply, Reply::Good(Vec::new()));
    rig.lu.set_started(false);
    rig.lu.reset(UnitAttention::DeviceReset);
    for id in [A, B] {
        assert_eq!(rig.check(id, &TEST_UNIT_READY).code, Asc::DEVICE_RESET);
        rig.good(id, &TEST_UNIT_READY);
    }
    assert_eq!(rig.lu.reservations().registrants().len(), 1);
}

#[test]
fn a_stopped_unit() {
    let mut rig = Rig::new();
    let stop = [0x1b, 0, 0, 0, 0, 0];
    let Action::Media(Media::StartStop { start: false, flush: true, .. }, _) = rig.begin(A, &stop) else {
        panic!("a stop is for the owner of the blocks");
    };
    rig.lu.set_started(false);
    let stopped = Sense::new(SenseKey::NOT_READY, Asc::NOT_READY_INITIALIZE);
    for entry in CATALOGUE {
        let mut cdb = [0; 16];
        (cdb[0], cdb[1]) = (entry.opcode.0, entry.action.unwrap_or(0));
        let refused = rig.begin(A, &cdb) == Action::Reply(Reply::Check(stopped));
        assert_eq!(refused, entry.needs_start, "{:?}", entry.opcode);
    }
    assert_eq!(rig.good(A, &[0x03, 0, 0, 0, 18, 0])[12..14], [4, 2]);
    rig.lu.set_started(true);
    rig.good(A, &TEST_UNIT_READY);
}

#[test]
fn another_unit_is_announced() {
    let mut rig = Rig::new();
    let mut change = |unit: Unit, codes: &[Asc]| {
        rig.lu.update(unit).unwrap();
        for id in [A, B] {
            for &code in codes {
                assert_eq!(rig.check(id, &TEST_UNIT_READY).code, code);
            }
            rig.good(id, &TEST_UNIT_READY);
        }
    };
    change(unit(), &[]);
    change(Unit { blocks: 1 << 20, ..unit() }, &[Asc::CAPACITY_CHANGED]);
    change(Unit { blocks: 1 << 20, read_only: true, ..unit() }, &[Asc::MODE_PARAMETERS_CHANGED]);
    let no_cache = Unit { volatile_cache: false, ..unit() };
    change(no_cache.clone(), &[Asc::INQUIRY_CHANGED, Asc::CAPACITY_CHANGED, Asc::MODE_PARAMETERS_CHANGED]);
    assert!(!rig.lu.mode().write_cache);
    assert!(rig.lu.update(Unit { blocks: 0, ..unit() }).is_err());
    assert_eq!(rig.lu.unit(), &no_cache);
}

#[test]
fn other_ports_are_announced() {
    let mut rig = Rig::new();
    for (ports, news) in [(vec![port(1), port(2)], false), (vec![port(1)], true), (vec![port(1), port(3)], true)] {
        rig.lu.set_ports(ports);
        for id in [A, B] {
            if news {
                assert_eq!(rig.check(id, &TEST_UNIT_READY).code, Asc::INQUIRY_CHANGED);
            }
            rig.good(id, &TEST_UNIT_READY);
        }
    }
}

#[test]
fn a_list_of_another_command_is_no_success() {
    let mut rig = Rig::new();
    let reaction = rig.lu.finish(A, UnitCommand::Reserve, &[]);
    assert_eq!(reaction.reply, Reply::Check(Sense::illegal(Asc::INTERNAL_FAILURE)));
}

/// A gate lets a command on blocks through if and only if the engine does, with the same request, and never answers itself otherwise.
#[test]
fn gates_decide_as_the_engine() {
    let mut chance = Random(9);
    let mut rig = Rig::new();
    let mut seen = [0; 5];
    for step in 0..200_000u32 {
        if step.is_multiple_of(50) {
            change(&mut chance, &mut rig);
        }
        let id = if chance.up_to(2) == 0 { A } else { B };
        let entry = &CATALOGUE[chance.up_to(CATALOGUE.len() as u64) as usize];
        let mut cdb = [0; 16];
        for _ in 0..chance.up_to(4) {
            cdb[chance.up_to(16) as usize] = chance.next() as u8;
        }
        (cdb[0], cdb[1]) = (entry.opcode.0, cdb[1] & 0xe0 | entry.action.unwrap_or(cdb[1] & 0x1f));
        if chance.up_to(50) == 0 {
            cdb[0] = chance.next() as u8;
        }
        let gate = rig.lu.gate(id).unwrap();
        let admission = gate.admit(&Cdb::new(&cdb), rig.lu.unit());
        let mut copy = rig.lu.clone();
        let action = copy.begin(id, &Cdb::new(&cdb), &Context::default());
        match admission {
            Admission::Media(media, request) => {
                seen[0] += 1;
                assert_eq!(action, Action::Media(media, request));
            }
            Admission::Check(sense) => {
                seen[1] += 1;
                assert_eq!(action, Action::Reply(Reply::Check(sense)));
            }
            Admission::Conflict => {
                seen[2] += 1;
                assert_eq!(action, Action::Reply(Reply::Conflict));
            }
            Admission::Good(_) => {
                seen[4] += 1;
                assert_eq!(action, Action::Reply(Reply::Good(Vec::new())));
            }
            Admission::Engine => {
                seen[3] += 1;
                let is_stop = matches!(action, Action::Media(Media::StartStop { .. }, _));
                assert!(is_stop || !matches!(action, Action::Media(..)), "{cdb:x?} {action:?}");
            }
        }
        if !matches!(admission, Admission::Engine) {
            assert_eq!(copy, rig.lu, "what a gate decides changes nothing");
        }
        // A gate that has become another says so.
        for id in [A, B] {
            assert!(copy.gate(id) == rig.lu.gate(id) || copy.version() != rig.lu.version());
        }
        rig.lu = copy;
    }
    assert!(seen.iter().all(|&count| count > 1000), "{seen:?}");
}

fn change(chance: &mut Random, rig: &mut Rig) {
    match chance.up_to(6) {
        0 => rig.lu.set_started(chance.up_to(4) != 0),
        1 => rig.lu.raise(A, UnitAttention::CapacityChanged),
        2 => rig.lu.reset(UnitAttention::DeviceReset),
        3 => rig.lu.update(Unit { read_only: chance.up_to(2) == 0, ..unit() }).unwrap(),
        _ => {
            let key = chance.up_to(2);
            let list = [&[0; 8][..], &key.to_be_bytes(), &[0; 8]].concat();
            let action = crate::scsi::spec::PersistOut(chance.up_to(7) as u8);
            let kind = reservation::Kind::ALL[chance.up_to(6) as usize];
            let _ = rig.lu.finish(A, UnitCommand::PersistOut { action, kind: Some(kind) }, &list);
            let list = [&key.to_be_bytes()[..], &[0; 16]].concat();
            let _ = rig.lu.finish(A, UnitCommand::PersistOut { action, kind: Some(kind) }, &list);
        }
    }
}

/// Random bytes: never a panic, and every refusal has a sense key.
#[test]
fn random_commands() {
    let mut chance = Random(10);
    let mut rig = Rig::new();
    for _ in 0..200_000 {
        let len = chance.up_to(17) as usize;
        let mut cdb = chance.bytes(len);
        if chance.up_to(2) == 0 && len > 1 {
            let entry = &CATALOGUE[chance.up_to(CATALOGUE.len() as u64) as usize];
            (cdb[0], cdb[1]) = (entry.opcode.0, entry.action.unwrap_or(cdb[1]));
        }
        match rig.begin(A, &cdb) {
            Action::List(command, len) => {
                let list = chance.bytes((len as usize).min(64));
                let _ = rig.lu.finish(A, command, &list);
            }
            Action::Reply(Reply::Check(sense)) => assert_ne!(sense.key, SenseKey::NO_SENSE),
            Action::Reply(_) | Action::Media(..) => {}
        }
    }
}
