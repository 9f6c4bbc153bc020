//! Lies: each is told as its rule says, and abort and shadow doorbells, which they are told about.

use super::*;
use crate::nvme::spec::{AdminOpcode, NvmOpcode, Property, StatusCode};

const FLUSH: Dwords = [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const NOT_ABORTED: u64 = 1;

fn abort(qid: u16, cid: u16) -> Dwords {
    command(8, 0, &[(10, u32::from(cid) << 16 | u32::from(qid))])
}

impl Host {
    fn with_rules(rules: impl IntoIterator<Item = Rule>) -> Host {
        let host = Host::default();
        host.port.inject(rules);
        host
    }

    fn send(&mut self, dwords: Dwords) -> u16 {
        let cid = self.push(1, dwords);
        self.ring(1);
        self.step(1);
        cid
    }

    /// Completions that are there.
    fn all(&mut self) -> Vec<(u16, u16, u16)> {
        std::iter::from_fn(|| self.take(1)).map(|done| (done.cid, done.code, done.sqid)).collect()
    }
}

#[test]
fn rules_fire_for_what_they_say() {
    let fires = |when: When, count: Option<u64>, n: usize| -> Vec<usize> {
        let mut host = Host::with_rules([Rule {
            at: Point::ANY_IO,
            when,
            count,
            then: Fault::Status(StatusCode::INTERNAL_ERROR.dnr()),
        }]);
        let fired = (1..=n).filter(|_| host.run(1, FLUSH).code == 0x06).count();
        let injected = host.port.counters().injected as usize;
        host.finish();
        vec![fired, injected]
    };
    assert_eq!(fires(When::Nth(3), None, 9), [1, 1]);
    assert_eq!(fires(When::From(3), None, 9), [7, 7]);
    assert_eq!(fires(When::From(3), Some(2), 9), [2, 2]);
    assert_eq!(fires(When::Every(3), None, 9), [3, 3]);
    assert_eq!((fires(When::Chance(0), None, 9), fires(When::Chance(1_000_000), None, 9)), (vec![0, 0], vec![9, 9]));
    let some = fires(When::Chance(500_000), None, 60)[0];
    assert!((15..45).contains(&some), "{some}");
    // Only where they look.
    let status = Fault::Status(StatusCode::INTERNAL_ERROR.dnr());
    let at = |qid, opcode, nsid, blocks| Rule::always(Point::Io { qid, opcode, nsid, blocks }, status);
    for (rule, flush, zeroes) in [
        (at(Some(1), None, None, None), true, true),
        (at(Some(2), None, None, None), false, false),
        (at(None, Some(NvmOpcode::FLUSH), None, None), true, false),
        (at(None, None, Some(2), None), false, false),
        (at(None, None, None, Some(6..9)), false, true),
        (at(None, None, None, Some(8..9)), false, false),
    ] {
        let mut host = Host::with_rules([rule.clone()]);
        let codes = [host.run(1, FLUSH).code, host.run(1, ranged(8, 4, 4)).code].map(|code| code != OK);
        assert_eq!(codes, [flush, zeroes], "{rule:?}");
        host.port.forgive();
        assert_eq!(host.run(1, ranged(8, 4, 4)).code, OK);
        host.finish();
    }
}

#[test]
fn answers_are_late_and_overtake_each_other() {
    let mut host = Host::with_rules([Rule::nth(Point::ANY_IO, 1, Fault::Late(5000))]);
    let late = host.send(FLUSH);
    let soon = host.send(FLUSH);
    assert_eq!(host.all(), [(soon, OK, 1)]);
    assert!(matches!(host.step(1), Next::At(_)));
    host.advance(4999);
    host.step(1);
    assert_eq!(host.all(), []);
    host.advance(1);
    host.step(1);
    assert_eq!(host.all(), [(late, OK, 1)]);
    host.finish();
}

#[test]
fn a_command_that_hangs_is_aborted_and_touches_nothing() {
    let mut host = Host::with_rules([Rule::always(Point::io(NvmOpcode::WRITE), Fault::Hang)]);
    let cid = host.send(ranged(1, 0, 1));
    assert_eq!(host.step(1), Next::Rung, "nothing will come by itself");
    assert_eq!(host.admin(abort(1, cid + 1)).result, NOT_ABORTED);
    assert_eq!(host.admin(abort(2, cid)).result, NOT_ABORTED);
    assert_eq!(host.admin(abort(9999, cid)).result, NOT_ABORTED);
    assert_eq!(host.all(), []);
    assert_eq!(host.admin(abort(1, cid)).result, 0);
    host.step(1);
    assert_eq!((host.all(), host.port.counters().aborted), (vec![(cid, ABORT_REQUESTED, 1)], 1));
    assert_eq!(host.admin(abort(1, cid)).result, NOT_ABORTED, "it is over");
    host.port.inject([Rule::always(Point::Admin(AdminOpcode::ABORT), Fault::Ignore)]);
    let cid = host.send(ranged(1, 0, 1));
    assert_eq!((host.admin(abort(1, cid)).result, host.all()), (NOT_ABORTED, vec![]));
    // The end of its queue is its end.
    assert_eq!(host.admin(command(0, 0, &[(10, 1)])).code, OK);
    assert_eq!((host.step(1), host.all()), (Next::Rung, vec![]));
    host.finish();
}

#[test]
fn both_halves_of_a_pair_are_aborted() {
    let mut host = Host::with_rules([Rule::always(Point::io(NvmOpcode::COMPARE), Fault::Hang)]);
    let (mut first, mut second) = (ranged(5, 0, 1), ranged(1, 0, 1));
    first[0] |= 1 << 8;
    second[0] |= 2 << 8;
    let one = host.push(1, first);
    let two = host.send(second);
    assert_eq!(host.admin(abort(1, two)).result, 0);
    host.step(1);
    assert_eq!(host.all(), [(one, ABORT_REQUESTED, 1), (two, ABORT_REQUESTED, 1)]);
    host.finish();
}

#[test]
fn no_more_aborts_at_a_time_than_there_may_be() {
    let options = FakeOptions { acl_z: 1, admin_ns: (1000, 1000), ..FakeOptions::default() };
    let mut host = Host::cold(FakeDisk::new(DiskOptions::default()), FakeOptions { stepped: true, ..options });
    host.enable();
    let mut cids: Vec<u16> = (0..3).map(|_| host.push(0, abort(1, 7))).collect();
    host.ring(0);
    host.step(0);
    host.advance(1000);
    host.step(0);
    let codes: Vec<_> = std::iter::from_fn(|| host.take(0)).map(|done| (done.cid, done.code)).collect();
    assert_eq!(codes, [(cids.remove(0), OK), (cids.remove(0), OK), (cids.remove(0), ABORT_LIMIT)]);
    // An event request is aborted, too.
    let request = host.push(0, command(0xc, 0, &[]));
    host.push(0, abort(0, request));
    host.ring(0);
    host.step(0);
    host.advance(1000);
    host.step(0);
    let codes: Vec<_> = std::iter::from_fn(|| host.take(0)).map(|done| (done.cid, done.code)).collect();
    assert_eq!(codes, [(request, ABORT_REQUESTED), (request + 1, OK)]);
    host.finish();
}

#[test]
fn answers_are_lost_doubled_and_wrong() {
    let lie = |then: Fault| {
        let mut host = Host::with_rules([Rule::nth(Point::ANY_IO, 1, then)]);
        let cid = host.send(ranged(8, 0, 1));
        let after = host.send(FLUSH);
        let all = host.all();
        host.finish();
        (cid, after, all)
    };
    let (_, after, all) = lie(Fault::Lost);
    assert_eq!(all, [(after, OK, 1)]);
    let (cid, after, all) = lie(Fault::Twice);
    assert_eq!(all, [(cid, OK, 1), (cid, OK, 1), (after, OK, 1)]);
    let (cid, after, all) = lie(Fault::Extra(0x400));
    assert_eq!(all, [(cid ^ 0x400, OK, 1), (cid, OK, 1), (after, OK, 1)]);
    let (cid, after, all) = lie(Fault::WrongCid(1));
    assert_eq!(all, [(cid ^ 1, OK, 1), (after, OK, 1)]);
    let (cid, after, all) = lie(Fault::WrongSqid(6));
    assert_eq!(all, [(cid, OK, 7), (after, OK, 1)]);
    let (_, _, all) = lie(Fault::WrongPhase);
    assert_eq!(all, [], "behind an entry that is not there, nothing is seen");
    let mut host = Host::with_rules([Rule::nth(Point::ANY_IO, 1, Fault::WrongHead(0x1000))]);
    host.send(FLUSH);
    assert_eq!(host.take(1).map(|done| done.sqhd), Some(0x1001));
    // A lost command is carried out, and its identifier remains in use.
    host.port.inject([Rule::nth(Point::io(NvmOpcode::WRITE), 1, Fault::Lost)]);
    let buf = host.buffer(PAGE, 8);
    let write = with_prps(ranged(1, 1, 1), buf.address() as u64, 0);
    host.hands.0.borrow_mut().push((host.next + 1, buf));
    let cid = host.send(write);
    assert_eq!((host.all(), host.disk.contents(1, PAGE as u64, 1)[0]), (vec![], 8));
    assert_eq!(host.admin(abort(1, cid)).result, NOT_ABORTED);
    host.next = cid - 1;
    host.send(FLUSH);
    host.finish_broken(&["is in use"]);
}

#[test]
fn commands_fail_and_are_done_by_half() {
    let write = Point::io(NvmOpcode::WRITE);
    let status = Fault::Status(StatusCode::WRITE_FAULT.retry());
    let mut host = Host::with_rules([Rule::nth(write.clone(), 1, status), Rule::nth(write, 2, Fault::Half)]);
    assert_eq!((host.write(0, 1), host.read(0).1[0]), (0x280, 0));
    assert_eq!(host.write(0, 2), OK);
    let (code, bytes) = host.read(0);
    assert_eq!((code, bytes[PAGE / 2 - 1], bytes[PAGE / 2]), (OK, 2, 0));
    host.port.inject([Rule::nth(Point::io(NvmOpcode::READ), 1, Fault::Half)]);
    let (code, bytes) = host.read(0);
    assert_eq!((code, bytes[PAGE / 2 - 1], bytes[PAGE / 2]), (OK, 2, 0xcc));
    host.finish();
}

#[test]
fn a_touch_after_the_answer_is_a_fault_if_the_buffer_is_back() {
    for opcode in [1, 2] {
        let mut host = Host::with_rules([Rule::always(Point::ANY_IO, Fault::TouchAfter(1000))]);
        let done = if opcode == 1 { host.write(0, 3) } else { host.read(0).0 };
        assert_eq!((done, host.port.counters().dma_faults), (OK, 0));
        assert!(matches!(host.step(1), Next::At(_)));
        host.advance(1000);
        host.step(1);
        assert_eq!((host.port.counters().dma_faults, host.port.dma_faults().len()), (1, 1));
        // A buffer that is still held is written.
        let buf = host.buffer(PAGE, 0);
        let read = with_prps(ranged(2, 0, 1), buf.address() as u64, 0);
        host.hands.0.borrow_mut().push((host.next + 1, buf));
        host.run(1, read);
        host.advance(1000);
        host.step(1);
        assert_eq!((host.hands.0.borrow()[0].1[9], host.port.counters().dma_faults), (0x5a, 1));
        assert!(host.port.broken().is_empty());
    }
}

#[test]
fn a_fatal_error_stops_all_until_the_controller_is_disabled() {
    let mut host = Host::with_rules([Rule::nth(Point::ANY_IO, 2, Fault::Fatal)]);
    let first = host.send(FLUSH);
    host.send(FLUSH);
    assert_eq!((host.all(), host.csts()), (vec![(first, OK, 1)], 3));
    host.send(FLUSH);
    assert_eq!((host.all(), host.step(0)), (vec![], Next::Rung));
    host.write32(0x14, 0x0046_0060);
    assert_eq!(host.csts(), 0);
    host.enable();
    host.add_queue(16);
    assert_eq!((host.run(1, FLUSH).code, host.csts()), (OK, 1));
    host.finish();
}

#[test]
fn a_controller_goes_away_in_the_middle() {
    let mut host = Host::with_rules([Rule::nth(Point::ANY_IO, 1, Fault::Remove)]);
    host.send(FLUSH);
    assert_eq!((host.all(), host.csts(), host.port.registers().read64(0)), (vec![], u32::MAX, u64::MAX));
    // It is back as another.
    let mut host = Host::cold(host.disk.clone(), FakeOptions { stepped: true, ..FakeOptions::default() });
    host.enable();
    host.add_queue(16);
    assert_eq!(host.run(1, FLUSH).code, OK);
    host.finish();
}

#[test]
fn registers_lie_and_do_not_listen() {
    let cold = |rules: Vec<Rule>| {
        let options = FakeOptions { stepped: true, ..FakeOptions::default() };
        let mut host = Host::cold(FakeDisk::new(DiskOptions::default()), options);
        host.port.inject(rules);
        host.enable();
        host
    };
    let host = cold(vec![Rule::nth(Point::Read(Property::CSTS), 2, Fault::Value(u64::MAX))]);
    assert_eq!((host.csts(), host.csts(), host.csts()), (1, u32::MAX, 1));
    let host = cold(vec![Rule::always(Point::Write(Property::CC), Fault::Ignore)]);
    assert_eq!((host.csts(), host.port.registers().read32(0x14)), (0, 0));
    let mut host = cold(vec![Rule::always(Point::Enable, Fault::Hang)]);
    host.step(0);
    host.advance(1 << 40);
    assert_eq!((host.step(0), host.csts()), (Next::Rung, 0));
    let mut host = cold(vec![
        Rule::always(Point::Enable, Fault::Late(500)),
        Rule::always(Point::Disable, Fault::Late(70)),
        Rule::always(Point::Shutdown, Fault::Late(30)),
    ]);
    let mut takes = |ns: u64, before: u32, after: u32| {
        host.step(0);
        host.advance(ns - 1);
        host.step(0);
        assert_eq!(host.csts(), before);
        host.advance(1);
        host.step(0);
        assert_eq!(host.csts(), after);
        host.port.clone()
    };
    takes(500, 0, 1).registers().write32(0x14, 0x0046_4061);
    takes(30, 5, 9).registers().write32(0x14, 0x0046_0060);
    takes(70, 9, 0).assert_clean();
    let host = cold(vec![Rule::always(Point::Enable, Fault::Fatal)]);
    assert_eq!(host.csts(), 2);
}

#[test]
fn a_doorbell_is_not_heard() {
    let mut host = Host::with_rules([Rule::nth(Point::SqDoorbell(1), 1, Fault::Ignore)]);
    let first = host.send(FLUSH);
    assert_eq!(host.all(), []);
    let second = host.send(FLUSH);
    assert_eq!(host.all(), [(first, OK, 1), (second, OK, 1)]);
    host.finish();
}

/// A host with shadow doorbells: the pages of values and of event indices.
fn shadowed() -> (Host, DeviceBuf, DeviceBuf) {
    let mut host = Host::new(DiskOptions::default(), FakeOptions { shadow_doorbells: true, ..FakeOptions::default() });
    let (values, events) = (host.block(PAGE), host.block(PAGE));
    let (one, two) = (values.address() as u64, events.address() as u64);
    assert_eq!(host.admin(with_prps(command(0x7c, 0, &[]), one + 8, two)).code, INVALID_FIELD);
    assert_eq!(host.admin(with_prps(command(0x7c, 0, &[]), one, two)).code, OK);
    (host, values, events)
}

#[test]
fn doorbells_in_memory_are_looked_at() {
    let (mut host, values, events) = shadowed();
    // The first goes beyond event index 0, and is rung.
    let first = host.push(1, FLUSH);
    values.store32(8, 1);
    host.ring(1);
    host.step(1);
    assert_eq!(events.load32(8), 1);
    // Found in memory alone.
    let second = host.push(1, FLUSH);
    values.store32(8, 2);
    host.step(1);
    assert_eq!(events.load32(8), 2);
    let done: Vec<u16> = (0..2).map(|at| host.rings[1].cq.load32(at * 16 + 12) as u16).collect();
    assert_eq!((done, host.port.counters().sq_doorbells - 4), (vec![first, second], 1));
    // The head is looked at when the queue is full: 2 posted, 13 more fit into 16.
    for index in 0..15 {
        host.push(1, FLUSH);
        values.store32(8, (3 + index) % 16);
        host.step(1);
    }
    assert_eq!((host.port.counters().posted, events.load32(12)), (4 + 15, 0));
    values.store32(12, 4);
    host.ring(1);
    host.step(1);
    assert_eq!(host.port.counters().posted, 4 + 17);
    // The index is not updated: the host is not told that it has to ring.
    host.port.inject([Rule::always(Point::EventIndex(1), Fault::Ignore)]);
    let index = events.load32(8);
    host.push(1, FLUSH);
    values.store32(8, 2);
    host.step(1);
    assert_eq!(events.load32(8), index);
    host.finish();
}

#[test]
fn doorbells_in_memory_outlive_their_queues_and_end_with_a_reset() {
    let (mut host, values, events) = shadowed();
    assert_eq!(host.admin(command(0, 0, &[(10, 1)])).code, OK);
    assert_eq!(host.admin(command(4, 0, &[(10, 1)])).code, OK);
    host.rings.truncate(1);
    host.add_queue(16);
    host.push(1, FLUSH);
    values.store32(8, 1);
    host.step(1);
    assert_eq!((host.rings[1].take().map(|done| done.code), events.load32(8)), (Some(OK), 1), "without a doorbell");
    host.write32(0x14, 0x0046_0060);
    host.enable();
    host.add_queue(16);
    assert_eq!((host.run(1, FLUSH).code, host.run(1, FLUSH).code, events.load32(8)), (OK, OK, 1));
    host.finish();
}

#[test]
fn doorbells_in_memory_that_are_wrong_are_noted() {
    let (mut host, values, _) = shadowed();
    host.push(1, FLUSH);
    host.ring(1);
    values.store32(8, 16);
    host.step(1);
    values.store32(8, 1);
    host.step(1);
    values.store32(12, 2);
    host.write32(0x100c, 1);
    host.finish_broken(&["another value", "16 is in the shadow doorbell of queue 1", "another value"]);
}
