//! PERSISTENT RESERVE IN and OUT, RESERVE(6) and RELEASE(6) as commands.

use super::*;
use crate::scsi::reservation::{Kind, decode_snapshot};
use crate::scsi::spec::PersistOut;

const READ: [u8; 10] = [0x28, 0, 0, 0, 0, 1, 0, 0, 1, 0];
const WRITE: [u8; 10] = [0x2a, 0, 0, 0, 0, 1, 0, 0, 1, 0];

fn basic(key: u64, new_key: u64, flags: u8) -> Vec<u8> {
    [&key.to_be_bytes()[..], &new_key.to_be_bytes(), &[0, 0, 0, 0, flags, 0, 0, 0]].concat()
}

fn out(rig: &mut Rig, id: NexusId, action: PersistOut, kind: u8, list: &[u8]) -> Reaction {
    let len = (list.len() as u32).to_be_bytes();
    let cdb = [0x5f, action.0, kind, 0, 0, len[0], len[1], len[2], len[3], 0];
    rig.send(id, &cdb, list)
}

/// An action that succeeds.
fn done(rig: &mut Rig, id: NexusId, action: PersistOut, kind: u8, list: &[u8]) -> Reaction {
    let reaction = out(rig, id, action, kind, list);
    assert_eq!(reaction.reply, Reply::Good(Vec::new()), "{action:?}");
    reaction
}

fn register(rig: &mut Rig, id: NexusId, key: u64) {
    let _ = done(rig, id, PersistOut::REGISTER_AND_IGNORE, 0, &basic(0, key, 0));
}

fn persist_in(rig: &mut Rig, action: u8) -> Vec<u8> {
    rig.good(A, &[0x5e, action, 0, 0, 0, 0, 0, 0x40, 0, 0])
}

fn can(rig: &mut Rig, id: NexusId) -> (bool, bool) {
    (!rig.conflicts(id, &READ), !rig.conflicts(id, &WRITE))
}

#[test]
fn service_actions_of_persistent_reserve_in() {
    let mut rig = Rig::new();
    for action in 0..4 {
        persist_in(&mut rig, action);
    }
    for action in 4..0x20 {
        assert_eq!(rig.check(A, &[0x5e, action, 0, 0, 0, 0, 0, 0x40, 0, 0]), Sense::bit(1, 4));
    }
    assert_eq!(persist_in(&mut rig, 0), [0; 8]);
    assert_eq!(persist_in(&mut rig, 1), [0; 8]);
    assert_eq!(persist_in(&mut rig, 2), [0, 8, 0x1d, 0x80, 0xea, 0x01, 0, 0]);
    assert_eq!(persist_in(&mut rig, 3), [0; 8]);
}

#[test]
fn golden_reports() {
    let mut rig = Rig::new();
    register(&mut rig, A, 0x0102_0304_0506_0708);
    let _ = done(&mut rig, B, PersistOut::REGISTER, 0, &basic(0, 9, 1));
    let _ = done(&mut rig, B, PersistOut::RESERVE, 5, &basic(9, 0, 0));
    let keys = [&[0, 0, 0, 2, 0, 0, 0, 16, 1, 2, 3, 4, 5, 6, 7, 8][..], &9u64.to_be_bytes()].concat();
    assert_eq!(persist_in(&mut rig, 0), keys);
    // Cut, the length is that of all.
    assert_eq!(rig.good(A, &[0x5e, 0, 0, 0, 0, 0, 0, 0, 8, 0]), keys[..8]);
    let held = [0, 0, 0, 2, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0x05, 0, 0];
    assert_eq!(persist_in(&mut rig, 1), held);
    assert_eq!(persist_in(&mut rig, 2)[3], 0x81, "PTPL_A");
    let status = |key: u64, holder: [u8; 2], port: u8, id: &TransportId| {
        let id = id.encode();
        let len = id.len() as u8;
        let fixed = [0, 0, 0, 0, holder[0], holder[1], 0, 0, 0, 0, 0, port, 0, 0, 0, len];
        [&key.to_be_bytes()[..], &fixed, &id].concat()
    };
    let full = [status(0x0102_0304_0506_0708, [0, 0], 1, &initiator("a", 1)), status(9, [1, 5], 2, &initiator("b", 2))]
        .concat();
    assert_eq!(persist_in(&mut rig, 3), [&[0, 0, 0, 2, 0, 0, 0, full.len() as u8][..], &full].concat());
    // All registrants hold it: no key.
    let _ = done(&mut rig, B, PersistOut::RELEASE, 5, &basic(9, 0, 0));
    let _ = done(&mut rig, B, PersistOut::RESERVE, 8, &basic(9, 0, 0));
    rig.check(A, &[0; 6]);
    assert_eq!(persist_in(&mut rig, 1)[8..], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0]);
}

#[test]
fn every_type_lets_through_what_it_should() {
    for (kind, registered, stranger) in [
        (1, (true, false), (true, false)),
        (3, (false, false), (false, false)),
        (5, (true, true), (true, false)),
        (6, (true, true), (false, false)),
        (7, (true, true), (true, false)),
        (8, (true, true), (false, false)),
    ] {
        let mut rig = Rig::new();
        register(&mut rig, A, 1);
        register(&mut rig, B, 2);
        let _ = done(&mut rig, A, PersistOut::RESERVE, kind, &basic(1, 0, 0));
        assert_eq!((can(&mut rig, A), can(&mut rig, B)), ((true, true), registered), "{kind}");
        let _ = done(&mut rig, B, PersistOut::REGISTER, 0, &basic(2, 0, 0));
        assert_eq!((can(&mut rig, A), can(&mut rig, B)), ((true, true), stranger), "{kind}");
        // What no reservation forbids.
        for cdb in [&[0u8; 6][..], &[0x12, 0, 0, 0, 36], &[0x25], &[0x1b, 0, 0, 0, 1], &[0xa3, 0x0a], &[0x4d, 0, 0x40]]
        {
            assert!(!rig.conflicts(B, cdb), "{cdb:x?}");
        }
        for cdb in [&[0x1b, 0, 0, 0, 0][..], &[0x1d, 4], &[0x35], &[0x15, 0x10, 0, 0, 4]] {
            assert!(rig.conflicts(B, cdb), "{cdb:x?}");
        }
        let _ = done(&mut rig, A, PersistOut::RELEASE, kind, &basic(1, 0, 0));
        assert_eq!(can(&mut rig, B), (true, true));
    }
}

#[test]
fn conflicts_and_wrong_lists() {
    let mut rig = Rig::new();
    register(&mut rig, A, 1);
    let wrong_key = out(&mut rig, A, PersistOut::REGISTER, 0, &basic(0, 2, 0));
    assert_eq!(wrong_key.reply, Reply::Conflict);
    assert_eq!(out(&mut rig, B, PersistOut::CLEAR, 0, &basic(0, 0, 0)).reply, Reply::Conflict);
    let check = |rig: &mut Rig, action, kind, list: &[u8]| match out(rig, A, action, kind, list).reply {
        Reply::Check(sense) => sense,
        other => panic!("{other:?}"),
    };
    for kind in [0, 2, 4, 9, 15] {
        assert_eq!(check(&mut rig, PersistOut::RESERVE, kind, &basic(1, 0, 0)), Sense::bit(2, 3));
    }
    assert_eq!(check(&mut rig, PersistOut::RESERVE, 0x11, &basic(1, 0, 0)), Sense::bit(2, 7));
    let length = |sense: Sense| assert_eq!(sense.code, Asc::PARAMETER_LIST_LENGTH);
    length(check(&mut rig, PersistOut::RESERVE, 1, &[0; 23]));
    length(check(&mut rig, PersistOut::RESERVE, 1, &[0; 25]));
    length(check(&mut rig, PersistOut::REGISTER, 0, &[0; 25]));
    length(check(&mut rig, PersistOut::REGISTER, 0, &[0; 8193]));
    for action in [PersistOut::RESERVE, PersistOut::CLEAR, PersistOut::REGISTER_AND_IGNORE] {
        assert_eq!(check(&mut rig, action, 1, &basic(1, 0, 8)), Sense::parameter(20), "SPEC_I_PT");
    }
    assert_eq!(check(&mut rig, PersistOut::PREEMPT, 1, &basic(1, 0, 0)), Sense::parameter(8));
    let _ = done(&mut rig, A, PersistOut::RESERVE, 1, &basic(1, 0, 0));
    assert_eq!(check(&mut rig, PersistOut::RELEASE, 3, &basic(1, 0, 0)).code, Asc::INVALID_RELEASE);
    assert_eq!(check(&mut rig, PersistOut::PREEMPT, 0, &basic(1, 1, 0)), Sense::bit(2, 3));
    assert_eq!(check(&mut rig, PersistOut(8), 0, &basic(1, 1, 0)), Sense::bit(1, 4));
}

#[test]
fn unit_attentions_tell_who_lost_what() {
    let mut rig = Rig::new();
    register(&mut rig, A, 1);
    register(&mut rig, B, 2);
    let _ = done(&mut rig, A, PersistOut::RESERVE, 6, &basic(1, 0, 0));
    let _ = done(&mut rig, A, PersistOut::RELEASE, 6, &basic(1, 0, 0));
    assert_eq!(rig.check(B, &[0; 6]).code, Asc::RESERVATIONS_RELEASED);
    let _ = done(&mut rig, A, PersistOut::RESERVE, 3, &basic(1, 0, 0));
    let reaction = done(&mut rig, B, PersistOut::PREEMPT_AND_ABORT, 1, &basic(2, 1, 0));
    assert_eq!(reaction.abort, [A]);
    assert_eq!(rig.check(A, &[0; 6]).code, Asc::REGISTRATIONS_PREEMPTED);
    rig.good(A, &[0; 6]);
    assert_eq!((can(&mut rig, A), can(&mut rig, B)), ((true, false), (true, true)));
    register(&mut rig, A, 1);
    let _ = done(&mut rig, A, PersistOut::CLEAR, 0, &basic(1, 0, 0));
    assert_eq!(rig.check(B, &[0; 6]).code, Asc::RESERVATIONS_PREEMPTED);
    rig.good(A, &[0; 6]);
}

#[test]
fn registration_outlives_the_nexus_and_the_power() {
    let mut rig = Rig::new();
    let reaction = done(&mut rig, A, PersistOut::REGISTER, 0, &basic(0, 7, 1));
    let Some(Store::Keep(first)) = reaction.store else { panic!("{reaction:?}") };
    let reaction = done(&mut rig, A, PersistOut::RESERVE, 3, &basic(7, 0, 0));
    let Some(Store::Keep(stored)) = reaction.store else { panic!("{reaction:?}") };
    assert_ne!(first, stored);
    rig.lu.detach(A);
    assert_eq!(can(&mut rig, B), (false, false));
    let back = NexusId(3);
    rig.lu.attach(back, initiator("a", 1), 1);
    rig.check(back, &[0; 6]);
    assert_eq!(can(&mut rig, back), (true, true), "the same initiator port is back");
    let reservations = decode_snapshot(&stored).unwrap();
    let mut lu = LogicalUnit::new(unit(), vec![port(1), port(2)], reservations).unwrap();
    lu.attach(A, initiator("a", 1), 1);
    lu.attach(B, initiator("b", 2), 2);
    let mut rig = Rig { lu };
    rig.check(A, &[0; 6]);
    rig.check(B, &[0; 6]);
    assert_eq!((can(&mut rig, A), can(&mut rig, B)), ((true, true), (false, false)));
    assert_eq!(persist_in(&mut rig, 1)[15], 7);
    let reaction = done(&mut rig, A, PersistOut::REGISTER, 0, &basic(7, 8, 0));
    assert_eq!(reaction.store, Some(Store::Remove));
}

#[test]
fn other_initiator_ports_are_registered_by_their_transport_ids() {
    let mut rig = Rig::new();
    let with_ids = |flags: u8, ids: &[TransportId]| {
        let ids: Vec<u8> = ids.iter().flat_map(TransportId::encode).collect();
        [basic(0, 5, flags | 8), (ids.len() as u32).to_be_bytes().to_vec(), ids].concat()
    };
    let node = TransportId { isid: None, ..initiator("b", 0) };
    let nobody = TransportId { isid: None, ..initiator("nobody", 0) };
    let reply = |rig: &mut Rig, list: &[u8]| out(rig, A, PersistOut::REGISTER, 0, list).reply;
    assert_eq!(reply(&mut rig, &with_ids(0, &[initiator("x", 1), nobody])), Reply::Check(Sense::parameter(28 + 44)));
    let mut cut = with_ids(0, &[initiator("x", 1)]);
    cut[27] += 4;
    assert_eq!(reply(&mut rig, &cut), Reply::Check(Sense::list_length()));
    assert!(rig.lu.reservations().registrants().is_empty(), "all or none");
    // ALL_TG_PT too: at both ports, and the node means its ports that are logged in.
    let list = with_ids(4, &[initiator("x", 1), node]);
    let _ = done(&mut rig, A, PersistOut::REGISTER, 0, &list);
    let registrants: Vec<_> = rig
        .lu
        .reservations()
        .registrants()
        .iter()
        .map(|each| (TransportId::decode(&each.nexus.initiator).unwrap().0, each.nexus.port, each.key))
        .collect();
    let of = |name, isid, port| (initiator(name, isid), port, 5);
    let golden = [of("a", 1, 1), of("a", 1, 2), of("x", 1, 1), of("x", 1, 2), of("b", 2, 1), of("b", 2, 2)];
    assert_eq!(registrants, golden);
    let again = [basic(5, 6, 8), vec![0; 4]].concat();
    assert_eq!(reply(&mut rig, &again), Reply::Check(Sense::parameter(20)));
}

#[test]
fn the_reservation_moves() {
    let mut rig = Rig::new();
    let to = |port: u8, id: &TransportId| {
        let id = id.encode();
        let fixed = [0, 0b11, 0, port, 0, 0, 0, id.len() as u8];
        [&1u64.to_be_bytes()[..], &6u64.to_be_bytes(), &fixed, &id].concat()
    };
    let b = initiator("b", 2);
    let act = |rig: &mut Rig, list: &[u8]| out(rig, A, PersistOut::REGISTER_AND_MOVE, 0, list).reply;
    assert_eq!(act(&mut rig, &to(2, &b)), Reply::Conflict);
    register(&mut rig, A, 1);
    assert_eq!(act(&mut rig, &to(2, &b)), Reply::Check(Sense::bit(1, 4)), "nothing to move");
    let _ = done(&mut rig, A, PersistOut::RESERVE, 1, &basic(1, 0, 0));
    assert_eq!(act(&mut rig, &to(9, &b)), Reply::Check(Sense::parameter(18)));
    assert_eq!(act(&mut rig, &to(2, &TransportId { isid: None, ..b.clone() })), Reply::Check(Sense::parameter(24)));
    assert_eq!(act(&mut rig, &to(2, &initiator("a", 1))), Reply::Check(Sense::parameter(24)), "to itself");
    let mut long = to(2, &b);
    long.push(0);
    assert_eq!(act(&mut rig, &long), Reply::Check(Sense::list_length()));
    let reaction = done(&mut rig, A, PersistOut::REGISTER_AND_MOVE, 0, &to(2, &b));
    assert!(matches!(reaction.store, Some(Store::Keep(_))));
    assert_eq!((can(&mut rig, A), can(&mut rig, B)), ((true, false), (true, true)));
    assert_eq!(rig.lu.reservations().registrants().len(), 1);
    assert_eq!(rig.lu.reservations().held().map(|held| held.kind), Some(Kind::WriteExclusive));
}

#[test]
fn reserve_6_and_release_6() {
    let reserve = [0x16, 0, 0, 0, 0, 0];
    let release = [0x17, 0, 0, 0, 0, 0];
    let mode_sense = [0x1a, 0, 0x3f, 0, 255, 0];
    let mut rig = Rig::new();
    rig.good(A, &reserve);
    rig.good(A, &reserve);
    assert!(rig.conflicts(B, &reserve));
    rig.good(B, &release);
    rig.good(A, &mode_sense);
    assert!(rig.conflicts(B, &mode_sense) && rig.conflicts(B, &[0; 6]) && rig.conflicts(B, &READ));
    assert!(rig.conflicts(A, &[0x5e, 0, 0, 0, 0, 0, 0, 0, 8, 0]), "SPC-2 §5.5.1: for everybody");
    rig.good(B, &[0x12, 0, 0, 0, 36, 0]);
    rig.good(A, &release);
    rig.good(B, &reserve);
    assert_eq!(rig.check(B, &[0x16, 1, 0, 0, 0, 0]), Sense::bit(1, 4));
    // The loss of the nexus ends it, and so does a reset.
    rig.lu.detach(B);
    rig.good(A, &reserve);
    rig.lu.reset(UnitAttention::DeviceReset);
    assert_eq!(rig.check(A, &[0; 6]).code, Asc::DEVICE_RESET);
    rig.lu.attach(B, initiator("b", 2), 2);
    rig.check(B, &[0; 6]);
    rig.good(B, &reserve);
    // A second session of the same port keeps it.
    rig.lu.attach(NexusId(9), initiator("b", 2), 2);
    rig.lu.detach(B);
    assert!(rig.conflicts(A, &READ));
    rig.lu.detach(NexusId(9));
    assert!(!rig.conflicts(A, &READ));
    register(&mut rig, A, 1);
    assert!(rig.conflicts(A, &reserve) && rig.conflicts(A, &release));
    let _ = done(&mut rig, A, PersistOut::RESERVE, 1, &basic(1, 0, 0));
    rig.good(A, &reserve);
    rig.good(A, &release);
    assert!(rig.lu.reservations().held().is_some());
}

#[test]
fn random_lists_change_all_or_nothing() {
    let mut chance = Random(6);
    let mut done = 0;
    let mut rig = Rig::new();
    for step in 0..200_000u32 {
        if step.is_multiple_of(500) {
            rig = Rig::new();
        }
        let id = if chance.up_to(2) == 0 { A } else { B };
        let flags = if chance.up_to(3) == 0 { chance.next() as u8 } else { 0 };
        let mut list = basic(chance.up_to(3), chance.up_to(3), flags);
        if chance.up_to(3) == 0 {
            let ids = initiator("x", chance.up_to(3) as u8).encode();
            list.extend_from_slice(&(ids.len() as u32).to_be_bytes());
            list.extend_from_slice(&ids);
        }
        if chance.up_to(4) == 0 {
            let at = chance.up_to(list.len() as u64) as usize;
            list[at] ^= 1 << chance.up_to(8);
        }
        let action = PersistOut(chance.up_to(9) as u8);
        let kind = Kind::ALL.get(chance.up_to(8) as usize).copied();
        let before = rig.lu.clone();
        let reaction = rig.lu.finish(id, UnitCommand::PersistOut { action, kind }, &list);
        match reaction.reply {
            Reply::Good(_) => {
                done += 1;
                // As if it could not be stored.
                let mut undone = rig.lu.clone();
                undone.undo(before.reservations().clone(), &reaction.told);
                assert_eq!(undone.reservations(), before.reservations());
                for id in [A, B] {
                    assert_eq!((undone.gate(id), undone.awaiting(id)), (before.gate(id), before.awaiting(id)));
                }
            }
            _ => assert_eq!((&rig.lu, reaction.store, reaction.abort.len()), (&before, None, 0)),
        }
    }
    assert!(done > 10_000);
}
