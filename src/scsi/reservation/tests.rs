//! The state machine: named cases, and a second simple model under seeds.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::scsi::tests::Random;

fn nexus(number: u8) -> Nexus {
    Nexus { initiator: vec![number; 3], port: 1 }
}

fn at_port(number: u8, port: u16) -> Nexus {
    Nexus { port, ..nexus(number) }
}

fn register(key: Option<u64>, new_key: u64) -> Register<'static> {
    Register { key, new_key, ports: &[], initiators: None, persistent: false }
}

/// `count` nexuses, nexus n registered with key n.
fn registered(count: u8) -> Reservations {
    let mut all = Reservations::default();
    for number in 1..=count {
        all.register(&nexus(number), register(Some(0), u64::from(number))).map(drop).unwrap();
    }
    all
}

fn rights(all: &Reservations, number: u8) -> (bool, bool) {
    let grant = all.grant(&nexus(number));
    (grant.allows(Access::Read), grant.allows(Access::Write))
}

const FULL: (bool, bool) = (true, true);
const READ: (bool, bool) = (true, false);
const NOTHING: (bool, bool) = (false, false);

#[test]
fn registration_needs_the_right_key() {
    let mut all = Reservations::default();
    let one = nexus(1);
    assert_eq!(all.register(&one, register(Some(5), 7)), Err(Refusal::Conflict));
    assert_eq!(all.register(&one, register(Some(0), 0)), Ok(Outcome::default()));
    assert_eq!(all.generation(), 0, "nothing was registered");
    all.register(&one, register(Some(0), 7)).map(drop).unwrap();
    assert_eq!(all.register(&one, register(Some(0), 8)), Err(Refusal::Conflict));
    all.register(&one, register(Some(7), 8)).map(drop).unwrap();
    all.register(&one, register(None, 9)).map(drop).unwrap();
    assert_eq!(all.registrants(), [Registrant { nexus: one.clone(), key: 9 }]);
    assert_eq!(all.generation(), 3);
    all.register(&one, register(Some(9), 0)).map(drop).unwrap();
    assert!(all.registrants().is_empty() && all.generation() == 4);
}

/// What every type lets the holder, a registrant and a stranger do (SPC-4 §5.13.1).
#[test]
fn rights_of_every_type() {
    use Kind::*;
    for (kind, registrant, stranger) in [
        (WriteExclusive, READ, READ),
        (ExclusiveAccess, NOTHING, NOTHING),
        (WriteExclusiveRegistrants, FULL, READ),
        (ExclusiveAccessRegistrants, FULL, NOTHING),
        (WriteExclusiveAll, FULL, READ),
        (ExclusiveAccessAll, FULL, NOTHING),
    ] {
        let mut all = registered(2);
        assert_eq!([1, 2, 3].map(|number| rights(&all, number)), [FULL; 3]);
        assert_eq!(all.reserve(&nexus(1), 2, kind), Err(Refusal::Conflict), "a wrong key");
        assert_eq!(all.reserve(&nexus(3), 0, kind), Err(Refusal::Conflict), "not registered");
        all.reserve(&nexus(1), 1, kind).map(drop).unwrap();
        assert_eq!([1, 2, 3].map(|number| rights(&all, number)), [FULL, registrant, stranger], "{kind:?}");
        assert_eq!(all.holder_key(), if kind.all_hold() { 0 } else { 1 });
        assert_eq!(all.reserve(&nexus(1), 1, kind), Ok(Outcome::default()), "once more");
        let second = all.reserve(&nexus(2), 2, kind);
        assert_eq!(second.is_ok(), kind.all_hold());
        for other in Kind::ALL.into_iter().filter(|&other| other != kind) {
            assert_eq!(all.reserve(&nexus(1), 1, other), Err(Refusal::Conflict));
            assert_eq!(all.release(&nexus(1), 1, other), Err(Refusal::InvalidRelease));
        }
        for number in 1..=3 {
            let grant = all.grant(&nexus(number));
            assert!(grant.allows(Access::Always) && grant.allows(Access::Status) && grant.allows(Access::Persistent));
        }
        let generation = all.generation();
        let outcome = all.release(&nexus(1), 1, kind).unwrap();
        let told =
            if kind.shares_with_registrants() { vec![(nexus(2), Notice::ReservationsReleased)] } else { Vec::new() };
        assert_eq!(outcome.notices, told);
        assert_eq!((all.held(), all.generation()), (None, generation), "RESERVE and RELEASE do not count");
        assert_eq!(all.release(&nexus(1), 1, kind), Ok(Outcome::default()), "nothing to release");
    }
}

#[test]
fn the_reservation_goes_with_its_last_holder() {
    for kind in Kind::ALL {
        let mut all = registered(2);
        all.reserve(&nexus(1), 1, kind).map(drop).unwrap();
        let outcome = all.register(&nexus(1), register(Some(1), 0)).unwrap();
        if kind.all_hold() {
            assert!(outcome.notices.is_empty() && all.held().is_some());
            assert_eq!(rights(&all, 2), FULL);
            let outcome = all.register(&nexus(2), register(Some(2), 0)).unwrap();
            assert!(outcome.notices.is_empty());
        } else if kind.shares_with_registrants() {
            assert_eq!(outcome.notices, [(nexus(2), Notice::ReservationsReleased)]);
        } else {
            assert!(outcome.notices.is_empty());
        }
        assert_eq!(all.held(), None, "{kind:?}");
        assert_eq!(rights(&all, 3), FULL);
    }
}

#[test]
fn clear_removes_all_and_tells_the_others() {
    let mut all = registered(3);
    all.reserve(&nexus(2), 2, Kind::ExclusiveAccess).map(drop).unwrap();
    let before = all.clone();
    assert_eq!(all.clear(&nexus(4), 0), Err(Refusal::Conflict));
    assert_eq!(all.clear(&nexus(1), 2), Err(Refusal::Conflict));
    assert_eq!(all, before);
    let outcome = all.clear(&nexus(1), 1).unwrap();
    assert_eq!(outcome.notices, [2, 3].map(|number| (nexus(number), Notice::ReservationsPreempted)));
    assert_eq!((all.registrants().len(), all.held(), all.generation()), (0, None, before.generation() + 1));
}

#[test]
fn preempt_removes_registrations_by_key() {
    let mut all = registered(3);
    let kind = Some(Kind::WriteExclusive);
    assert_eq!(all.preempt(&nexus(1), 1, 0, kind, false), Err(Refusal::InvalidKey));
    assert_eq!(all.preempt(&nexus(1), 1, 9, kind, false), Err(Refusal::Conflict));
    assert_eq!(all.preempt(&nexus(1), 9, 2, kind, false), Err(Refusal::Conflict));
    let outcome = all.preempt(&nexus(1), 1, 2, None, true).unwrap();
    assert_eq!(outcome.notices, [(nexus(2), Notice::RegistrationsPreempted)]);
    assert_eq!(outcome.abort, [nexus(2)]);
    assert!(all.held().is_none() && !all.is_registered(&nexus(2)));
    assert_eq!(all.generation(), 4);
    // Its own registration goes as well, if that is what it asks for.
    let outcome = all.preempt(&nexus(1), 1, 1, kind, false).unwrap();
    assert!(outcome.notices.is_empty() && outcome.abort.is_empty());
    assert!(!all.is_registered(&nexus(1)));
    // At all ports at once the keys must be the same at each.
    all.register(&nexus(1), register(Some(0), 5)).map(drop).unwrap();
    let ask = Register { ports: &[1, 2], ..register(Some(0), 6) };
    assert_eq!(all.register(&at_port(1, 2), ask), Err(Refusal::Conflict));
    assert!(all.register(&at_port(1, 2), Register { key: None, ..ask }).is_ok());
    assert_eq!(all.registrants().iter().filter(|each| each.key == 6).count(), 2);
}

#[test]
fn preempt_takes_the_reservation_over() {
    let mut all = registered(3);
    all.reserve(&nexus(2), 2, Kind::WriteExclusiveRegistrants).map(drop).unwrap();
    assert_eq!(all.preempt(&nexus(1), 1, 2, None, false), Err(Refusal::NoKind));
    let outcome = all.preempt(&nexus(1), 1, 2, Some(Kind::ExclusiveAccess), true).unwrap();
    let told = [(nexus(2), Notice::RegistrationsPreempted), (nexus(3), Notice::ReservationsReleased)];
    assert_eq!((outcome.notices, outcome.abort), (told.to_vec(), vec![nexus(2)]));
    assert_eq!(all.held(), Some(&Held { kind: Kind::ExclusiveAccess, holder: Some(nexus(1)) }));
    // The holder preempts itself: another type, and it stays registered.
    let outcome = all.preempt(&nexus(1), 1, 1, Some(Kind::WriteExclusiveAll), false).unwrap();
    assert_eq!(outcome.notices, [(nexus(3), Notice::ReservationsReleased)]);
    assert_eq!(all.held(), Some(&Held { kind: Kind::WriteExclusiveAll, holder: None }));
    // Key 0 takes over from all registrants; another key only removes registrations.
    let _ = all.register(&nexus(4), register(Some(0), 4)).unwrap();
    let outcome = all.preempt(&nexus(1), 1, 4, None, false).unwrap();
    assert_eq!(outcome.notices, [(nexus(4), Notice::RegistrationsPreempted)]);
    assert_eq!(all.held(), Some(&Held { kind: Kind::WriteExclusiveAll, holder: None }));
    let outcome = all.preempt(&nexus(3), 3, 0, Some(Kind::WriteExclusiveAll), false).unwrap();
    assert_eq!(outcome.notices, [(nexus(1), Notice::RegistrationsPreempted)]);
    assert_eq!(all.registrants(), [Registrant { nexus: nexus(3), key: 3 }]);
}

#[test]
fn register_and_move_gives_the_reservation_away() {
    let to = nexus(2);
    let ask = Move { key: 1, new_key: 7, to: &to, unregister: true, persistent: true };
    let mut all = registered(1);
    assert_eq!(all.register_and_move(&nexus(1), ask), Err(Refusal::NotReserved));
    assert_eq!(all.register_and_move(&nexus(3), ask), Err(Refusal::Conflict));
    all.reserve(&nexus(1), 1, Kind::WriteExclusiveAll).map(drop).unwrap();
    assert_eq!(all.register_and_move(&nexus(1), ask), Err(Refusal::Conflict));
    all.release(&nexus(1), 1, Kind::WriteExclusiveAll).map(drop).unwrap();
    all.reserve(&nexus(1), 1, Kind::WriteExclusive).map(drop).unwrap();
    assert_eq!(all.register_and_move(&nexus(1), Move { new_key: 0, ..ask }), Err(Refusal::InvalidKey));
    assert_eq!(all.register_and_move(&nexus(1), Move { to: &nexus(1), ..ask }), Err(Refusal::InvalidNexus));
    let outcome = all.register_and_move(&nexus(1), ask).unwrap();
    assert_eq!((outcome.persist, all.persistent()), (Persist::Store, true));
    assert_eq!(all.registrants(), [Registrant { nexus: nexus(2), key: 7 }]);
    assert_eq!(all.held(), Some(&Held { kind: Kind::WriteExclusive, holder: Some(nexus(2)) }));
    let back = Move { key: 7, new_key: 1, to: &nexus(1), unregister: false, persistent: false };
    assert_eq!(all.register_and_move(&nexus(2), back).unwrap().persist, Persist::Erase);
    assert_eq!((all.registrants().len(), all.holder_key()), (2, 1));
}

#[test]
fn registration_of_other_ports_and_initiators() {
    let mut all = Reservations::default();
    let others = [vec![2; 3], vec![3; 3]];
    let ask = Register { key: Some(0), new_key: 5, ports: &[1, 2], initiators: Some(&others), persistent: false };
    all.register(&nexus(1), ask).map(drop).unwrap();
    let ports = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2)];
    assert_eq!(all.registrants().len(), 6);
    assert!(ports.into_iter().all(|(number, port)| all.is_registered(&at_port(number, port))));
    assert_eq!(all.generation(), 1);
    assert_eq!(all.register(&nexus(1), Register { key: Some(5), ..ask }), Err(Refusal::AlreadyRegistered));
    let before = all.clone();
    let third = [vec![4; 3], vec![3; 3]];
    let ask = Register { initiators: Some(&third), ..ask };
    assert_eq!(all.register(&nexus(9), ask), Err(Refusal::InvalidNexus), "one of them is registered");
    let twice = [vec![4; 3], vec![4; 3]];
    assert_eq!(all.register(&nexus(9), Register { initiators: Some(&twice), ..ask }), Err(Refusal::InvalidNexus));
    let long = [vec![4; INITIATOR_MAX + 1]];
    assert_eq!(all.register(&nexus(9), Register { initiators: Some(&long), ..ask }), Err(Refusal::InvalidNexus));
    assert_eq!(all, before);
    // Unregistered at all ports at once.
    let out = Register { key: Some(5), new_key: 0, initiators: None, ..ask };
    all.register(&nexus(1), out).map(drop).unwrap();
    assert_eq!(all.registrants().len(), 4);
}

#[test]
fn registrants_are_bounded() {
    let mut all = Reservations::default();
    for number in 0..REGISTRANTS_MAX as u16 {
        all.register(&at_port(1, number), register(Some(0), 1)).map(drop).unwrap();
    }
    assert_eq!(all.register(&at_port(2, 0), register(Some(0), 1)), Err(Refusal::NoRoom));
    let many: Vec<_> = (0..=REGISTRANTS_MAX as u16).map(|number| number.to_be_bytes().to_vec()).collect();
    let ask = Register { initiators: Some(&many), ..register(Some(0), 1) };
    assert_eq!(Reservations::default().register(&nexus(9), ask), Err(Refusal::NoRoom));
    all.reserve(&at_port(1, 0), 1, Kind::WriteExclusive).map(drop).unwrap();
    let to = at_port(2, 0);
    let ask = Move { key: 1, new_key: 1, to: &to, unregister: false, persistent: false };
    assert_eq!(all.register_and_move(&at_port(1, 0), ask), Err(Refusal::NoRoom));
    all.register_and_move(&at_port(1, 0), Move { unregister: true, ..ask }).map(drop).unwrap();
    assert_eq!(all.registrants().len(), REGISTRANTS_MAX);
}

#[test]
fn reserve_6_shuts_others_out() {
    let mut all = Reservations::default();
    all.legacy_reserve(&nexus(1)).unwrap();
    all.legacy_reserve(&nexus(1)).unwrap();
    assert_eq!(all.legacy_reserve(&nexus(2)), Err(Refusal::Conflict));
    assert_eq!([rights(&all, 1), rights(&all, 2)], [FULL, NOTHING]);
    let other = all.grant(&nexus(2));
    assert!(other.allows(Access::Always) && other.allows(Access::Legacy));
    assert!(!other.allows(Access::Status) && !other.allows(Access::Persistent));
    assert!(all.grant(&nexus(1)).allows(Access::Status) && !all.grant(&nexus(1)).allows(Access::Persistent));
    all.legacy_release(&nexus(2)).unwrap();
    assert_eq!(rights(&all, 2), NOTHING, "only its holder can release it");
    all.legacy_release(&nexus(1)).unwrap();
    assert_eq!(rights(&all, 2), FULL);
    all.legacy_reserve(&nexus(2)).unwrap();
    all.legacy_drop(&nexus(1));
    assert_eq!(rights(&all, 1), NOTHING);
    all.reset();
    assert_eq!(rights(&all, 1), FULL);
}

#[test]
fn reserve_6_succeeds_without_effect_for_who_may_write_anyway() {
    let mut all = registered(2);
    for number in 1..=3 {
        assert_eq!(all.legacy_reserve(&nexus(number)), Err(Refusal::Conflict), "there are registrants");
        assert_eq!(all.legacy_release(&nexus(number)), Err(Refusal::Conflict));
    }
    all.reserve(&nexus(1), 1, Kind::WriteExclusive).map(drop).unwrap();
    let results = |all: &mut Reservations| [1, 2, 3].map(|number| all.legacy_reserve(&nexus(number)).is_ok());
    assert_eq!(results(&mut all), [true, false, false]);
    all.release(&nexus(1), 1, Kind::WriteExclusive).map(drop).unwrap();
    all.reserve(&nexus(1), 1, Kind::WriteExclusiveRegistrants).map(drop).unwrap();
    assert_eq!(results(&mut all), [true, true, false]);
    assert_eq!(all.grant(&nexus(3)).legacy, LegacyHolder::None, "and nothing is reserved");
}

#[test]
fn the_last_registration_decides_what_outlives_power() {
    let mut all = Reservations::default();
    let aptpl = |new_key, persistent| Register { persistent, ..register(None, new_key) };
    assert_eq!(all.register(&nexus(1), aptpl(1, false)).unwrap().persist, Persist::Unchanged);
    assert_eq!(all.register(&nexus(2), aptpl(2, true)).unwrap().persist, Persist::Store);
    assert_eq!(all.reserve(&nexus(1), 1, Kind::WriteExclusive).unwrap().persist, Persist::Store);
    assert_eq!(all.reserve(&nexus(1), 1, Kind::WriteExclusive).unwrap().persist, Persist::Unchanged);
    assert_eq!(all.clone().clear(&nexus(1), 1).unwrap().persist, Persist::Store);
    let copy = decode_snapshot(&all.snapshot()).unwrap();
    assert_eq!((copy.registrants(), copy.held(), copy.persistent()), (all.registrants(), all.held(), true));
    assert_eq!(copy.generation(), 0);
    assert_eq!(all.register(&nexus(1), aptpl(1, false)).unwrap().persist, Persist::Erase);
}

#[test]
fn golden_bytes_of_a_snapshot() {
    let mut all = registered(1);
    all.reserve(&nexus(1), 1, Kind::ExclusiveAccessRegistrants).map(drop).unwrap();
    let bytes = all.snapshot();
    let body = b"RSV1\x04\0\0\x01\0\0\0\0\0\0\0\0\0\x01\0\x01\0\x03\x01\x01\x01";
    assert_eq!(&bytes[..body.len()], body);
    assert_eq!(bytes.len(), body.len() + 8);
}

#[test]
fn damaged_snapshots_are_refused() {
    let mut all = registered(3);
    all.reserve(&nexus(2), 2, Kind::WriteExclusive).map(drop).unwrap();
    let good = all.snapshot();
    assert!(decode_snapshot(&good).is_ok());
    for len in 0..good.len() {
        assert!(decode_snapshot(&good[..len]).is_err(), "{len}");
    }
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        assert!(decode_snapshot(&bad).is_err(), "{at}");
    }
    assert_eq!(decode_snapshot(b"RSV2"), Err(SnapshotError::Version));
    // A right checksum over what cannot be.
    let sealed = |body: &[u8]| {
        let mut bytes = body.to_vec();
        bytes.extend_from_slice(&crate::util::fnv1a(body).to_be_bytes());
        decode_snapshot(&bytes)
    };
    let one = b"\0\0\0\0\0\0\0\x01\0\x01\0\x01a";
    let body = |head: &[u8], rest: &[&[u8]]| [b"RSV1", head, &rest.concat()].concat();
    assert!(sealed(&body(b"\x01\0\0\x01\0\0", &[one])).is_ok());
    for bad in [
        body(b"\x01\0\0\x01\0\x01", &[one]),
        body(b"\x01\0\0\x01\xff\xff", &[one]),
        body(b"\x05\0\0\x01\0\0", &[one]),
        body(b"\x05\0\0\0\xff\xff", &[]),
        body(b"\0\0\0\x01\0\0", &[one]),
        body(b"\x07\0\0\x01\0\0", &[one]),
        body(b"\x01\x01\0\x01\0\0", &[one]),
        body(b"\0\0\0\x02\xff\xff", &[one, one]),
        body(b"\0\0\0\x01\xff\xff", &[one, b"x"]),
        body(b"\0\0\0\x01\xff\xff", &[b"\0\0\0\0\0\0\0\0\0\x01\0\x01a"]),
        body(b"\0\0\xff\xff\xff\xff", &[]),
    ] {
        assert_eq!(sealed(&bad), Err(SnapshotError::Impossible), "{bad:x?}");
    }
    let mut chance = Random(3);
    for _ in 0..20_000 {
        let len = chance.up_to(80) as usize;
        let body = [b"RSV1".to_vec(), chance.bytes(len)].concat();
        if let Ok(all) = sealed(&body) {
            assert_eq!(all.snapshot()[..body.len()], body);
        }
    }
}

/// A model that is told what to be instead of how to get there: sets and maps, no order.
#[derive(Clone, Debug, Default)]
struct Model {
    keys: BTreeMap<Nexus, u64>,
    held: Option<(Kind, Option<Nexus>)>,
    generation: u32,
}

impl Model {
    fn holders(&self) -> BTreeSet<Nexus> {
        match &self.held {
            None => BTreeSet::new(),
            Some((_, Some(nexus))) => BTreeSet::from([nexus.clone()]),
            Some((_, None)) => self.keys.keys().cloned().collect(),
        }
    }

    /// A reservation without a registered holder is none.
    fn settle(&mut self) {
        if !self.holders().iter().any(|nexus| self.keys.contains_key(nexus)) {
            self.held = None;
        }
    }

    fn allows(&self, nexus: &Nexus, write: bool) -> bool {
        let Some((kind, _)) = self.held else { return true };
        let trusted = self.holders().contains(nexus)
            || !matches!(kind, Kind::WriteExclusive | Kind::ExclusiveAccess) && self.keys.contains_key(nexus);
        let open = matches!(kind, Kind::WriteExclusive | Kind::WriteExclusiveRegistrants | Kind::WriteExclusiveAll);
        trusted || !write && open
    }
}

#[test]
fn it_does_what_a_simple_model_says() {
    for seed in 0..400 {
        let mut chance = Random(seed);
        let (mut all, mut model) = (Reservations::default(), Model::default());
        for step in 0..300 {
            act(&mut chance, &mut all, &mut model);
            let keys: BTreeMap<_, _> = all.registrants().iter().map(|each| (each.nexus.clone(), each.key)).collect();
            assert_eq!(keys, model.keys, "seed {seed} step {step}");
            let held = all.held().map(|held| (held.kind, held.holder.clone()));
            assert_eq!(held, model.held, "seed {seed} step {step}");
            assert_eq!(all.generation(), model.generation, "seed {seed} step {step}");
            for number in 1..=5 {
                let grant = all.grant(&nexus(number));
                assert_eq!(grant.allows(Access::Read), model.allows(&nexus(number), false), "seed {seed} step {step}");
                assert_eq!(grant.allows(Access::Write), model.allows(&nexus(number), true), "seed {seed} step {step}");
            }
            let copy = decode_snapshot(&all.snapshot()).unwrap();
            assert_eq!((copy.registrants(), copy.held()), (all.registrants(), all.held()));
        }
    }
}

fn act(chance: &mut Random, all: &mut Reservations, model: &mut Model) {
    let who = nexus(1 + chance.up_to(4) as u8);
    let own = model.keys.get(&who).copied();
    // Mostly the right key; keys are few, so that several nexuses have the same.
    let key = if chance.up_to(5) == 0 { chance.up_to(4) } else { own.unwrap_or(0) };
    let other_key = chance.up_to(4);
    let kind = Kind::ALL[chance.up_to(6) as usize];
    let is_right = own == Some(key);
    let before = model.clone();
    match chance.up_to(8) {
        0 | 1 => {
            let ignore = chance.up_to(2) == 0;
            let result = all.register(&who, register((!ignore).then_some(key), other_key));
            let allowed = ignore || key == own.unwrap_or(0);
            assert_eq!(result.is_ok(), allowed);
            if allowed && (other_key != 0 || own.is_some()) {
                if other_key == 0 {
                    model.keys.remove(&who)
                } else {
                    model.keys.insert(who.clone(), other_key)
                };
                model.generation += 1;
                model.settle();
            }
            if let Ok(outcome) = result {
                let ended = before.held.is_some() && model.held.is_none();
                let shared = before.held.is_some_and(|(kind, _)| kind.shares_with_registrants());
                let told: BTreeSet<_> = outcome.notices.into_iter().map(|(nexus, _)| nexus).collect();
                let expected: BTreeSet<_> = model.keys.keys().filter(|_| ended && shared).cloned().collect();
                assert_eq!(told, expected);
            }
        }
        2 | 3 => {
            let free = model.held.is_none();
            let same = model.held.as_ref().is_some_and(|held| held.0 == kind) && model.holders().contains(&who);
            assert_eq!(all.reserve(&who, key, kind).is_ok(), is_right && (free || same));
            if is_right && free {
                model.held = Some((kind, (!kind.all_hold()).then_some(who)));
            }
        }
        4 => {
            let holds = model.holders().contains(&who);
            let fits = model.held.as_ref().is_some_and(|held| held.0 == kind);
            assert_eq!(all.release(&who, key, kind).is_ok(), is_right && (!holds || fits));
            if is_right && holds && fits {
                model.held = None;
            }
        }
        5 if chance.up_to(4) == 0 => {
            assert_eq!(all.clear(&who, key).is_ok(), is_right);
            if is_right {
                *model = Model { generation: model.generation + 1, ..Model::default() };
            }
        }
        5 | 6 => preempt(chance, all, model, (&who, key, is_right), other_key, kind),
        _ => {
            let to = nexus(1 + chance.up_to(4) as u8);
            let ask = Move { key, new_key: other_key, to: &to, unregister: chance.up_to(2) == 0, persistent: false };
            let lone = model.held.as_ref().is_some_and(|held| held.1.as_ref() == Some(&who));
            let allowed = is_right && lone && other_key != 0 && to != who;
            assert_eq!(all.register_and_move(&who, ask).is_ok(), allowed);
            let unregister = ask.unregister;
            if allowed {
                let kind = model.held.as_ref().unwrap().0;
                model.held = Some((kind, Some(to.clone())));
                model.keys.insert(to, other_key);
                if unregister {
                    model.keys.remove(&who);
                }
                model.generation += 1;
            }
        }
    }
}

fn preempt(
    chance: &mut Random,
    all: &mut Reservations,
    model: &mut Model,
    (who, key, is_right): (&Nexus, u64, bool),
    victim: u64,
    kind: Kind,
) {
    let abort = chance.up_to(2) == 0;
    let result = all.preempt(who, key, victim, Some(kind), abort);
    let all_hold = matches!(model.held, Some((_, None)));
    let hit: BTreeSet<_> =
        model.keys.iter().filter(|&(_, &key)| victim == 0 || key == victim).map(|(nexus, _)| nexus.clone()).collect();
    let allowed = is_right && if victim == 0 { all_hold } else { !hit.is_empty() };
    assert_eq!(result.is_ok(), allowed);
    let Ok(outcome) = result else { return };
    let lone = model.held.as_ref().and_then(|held| held.1.clone());
    let takes = victim == 0 || lone.is_some_and(|holder| model.keys.get(&holder) == Some(&victim));
    let changes = model.held.as_ref().is_some_and(|held| held.0 != kind);
    let gone: BTreeSet<_> = hit.iter().filter(|nexus| !(takes && *nexus == who)).cloned().collect();
    model.keys.retain(|nexus, _| !gone.contains(nexus));
    if takes {
        model.held = Some((kind, (!kind.all_hold()).then(|| who.clone())));
    }
    model.settle();
    model.generation += 1;
    let told = |wanted: Notice| -> BTreeSet<_> {
        let told = outcome.notices.iter().filter(|(_, notice)| *notice == wanted);
        told.map(|(nexus, _)| nexus.clone()).collect()
    };
    let others = |set: &BTreeSet<Nexus>| -> BTreeSet<_> { set.iter().filter(|nexus| *nexus != who).cloned().collect() };
    assert_eq!(told(Notice::RegistrationsPreempted), others(&gone));
    let rest: BTreeSet<_> = model.keys.keys().filter(|_| takes && changes).cloned().collect();
    assert_eq!(told(Notice::ReservationsReleased), others(&rest));
    let aborted: BTreeSet<_> = outcome.abort.iter().cloned().collect();
    assert_eq!(aborted, if abort { hit } else { BTreeSet::new() });
}
