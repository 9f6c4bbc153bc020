//! Slots against a model of what is in flight.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::nvme::spec::StatusCode;
use crate::reactor::Reactor;
use crate::reactor::clock::Entropy;
use crate::reactor::io::IoOp;
use crate::reactor::start::solo;

fn io(reactor: &Reactor, number: u64) -> Io {
    let mut io = reactor.create_io().unwrap();
    io.prepare(IoOp::Flush, 0, 0);
    io.trace = number;
    io
}

#[test]
fn every_io_ends_once_by_its_own_answers() {
    let reactor = solo(8 << 20).unwrap();
    let (mut slots, chance) = (Slots::new(16), Entropy::new(5));
    // By the first identifier: number, the second of a pair, which of both are answered.
    let mut model: BTreeMap<u16, (u64, Option<u16>, [bool; 2])> = BTreeMap::new();
    let (mut old, mut ended) = (BTreeSet::new(), 0);
    for number in 1..20_000 {
        match chance.below(4) {
            0 => {
                if let Some(index) = slots.take_one() {
                    let cid = slots.fill(index, io(&reactor, number), number);
                    assert!(cid != u16::MAX && model.insert(cid, (number, None, [false, true])).is_none());
                    old.remove(&cid);
                }
            }
            1 => {
                if let Some(two) = slots.take_two() {
                    let (cid, mate) = slots.fill_pair(two, io(&reactor, number), number);
                    assert!(cid != mate && mate != u16::MAX);
                    model.insert(cid, (number, Some(mate), [false; 2]));
                    old.remove(&cid);
                    old.remove(&mate);
                }
            }
            2 => {
                // Stale, doubled, of no slot.
                let some = old.iter().nth(chance.below(old.len() as u64 + 1) as usize).copied();
                for cid in [some.unwrap_or(0x3ff), u16::MAX, 16] {
                    assert!(matches!(slots.answer(cid, Status::SUCCESS), Found::Nothing), "{cid:#x}");
                    assert!(slots.io_of_mut(cid).is_none());
                }
            }
            _ => {
                let Some((&cid, &(number, mate, mut answered))) =
                    model.iter().nth(chance.below(model.len() as u64 + 1) as usize)
                else {
                    continue;
                };
                let which = usize::from(answered[0] || mate.is_some() && !answered[1] && chance.below(2) == 0);
                let one = [Some(cid), mate][which].unwrap();
                assert_eq!(slots.io_of_mut(one).unwrap().trace, number);
                let found = slots.answer(one, Status::SUCCESS);
                answered[which] = true;
                if answered == [true; 2] {
                    let Found::Ended(io, Status::SUCCESS) = found else { panic!("{found:?}") };
                    assert_eq!(io.trace, number);
                    reactor.retire_io(io);
                    model.remove(&cid);
                    old.extend([Some(cid), mate].into_iter().flatten());
                    ended += 1;
                } else {
                    assert!(matches!(found, Found::Half));
                    assert!(matches!(slots.answer(one, Status::SUCCESS), Found::Nothing), "half of it, twice");
                    model.insert(cid, (number, mate, answered));
                }
            }
        }
        let in_flight: usize = model.values().map(|(_, mate, _)| 1 + usize::from(mate.is_some())).sum();
        assert_eq!(slots.in_flight(), in_flight);
    }
    assert!(ended > 1_000);
    let numbers: Vec<u64> = slots
        .take_all()
        .into_iter()
        .map(|(io, _)| {
            let number = io.trace;
            reactor.retire_io(io);
            number
        })
        .collect();
    let mut left: Vec<u64> = model.values().map(|(number, ..)| *number).collect();
    left.sort_unstable();
    assert_eq!((numbers, slots.in_flight()), (left, 0), "oldest first");
    assert_eq!((reactor.ios_in_use(), reactor.shut_down()), (0, 0));
}

#[test]
fn a_late_command_is_told_from_the_next_of_its_identifier() {
    let reactor = solo(8 << 20).unwrap();
    let mut slots = Slots::new(1);
    let index = slots.take_one().unwrap();
    let first = slots.fill(index, io(&reactor, 1), 100);
    assert_eq!(slots.late(99), []);
    let late = slots.late(100);
    assert_eq!(late, [Late { cid: first, since: 100 }]);
    assert!(slots.has(late[0]));
    let Found::Ended(ended, status) = slots.answer(first, StatusCode::ABORT_REQUESTED.retry()) else { panic!() };
    assert_eq!(status, StatusCode::ABORT_REQUESTED.retry());
    reactor.retire_io(ended);
    let mut again = 0;
    for now in 101.. {
        let index = slots.take_one().unwrap();
        let cid = slots.fill(index, io(&reactor, now), now);
        if cid == first {
            assert!(!slots.has(late[0]), "another one");
            again = now - 100;
        }
        let Found::Ended(ended, _) = slots.answer(cid, StatusCode::SUCCESS.retry()) else { panic!() };
        reactor.retire_io(ended);
        if again > 0 {
            break;
        }
    }
    assert_eq!((again, reactor.shut_down()), (u64::from(GENERATIONS), 0));
}
