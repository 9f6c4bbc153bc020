use super::*;
use crate::bdev::device::testing::{One, pattern};
use crate::bdev::leaf::{Book, Leaf};
use std::cell::Cell;

const KIB: u64 = 1 << 10;

fn limits(transfer_max: u64, zeroes_max: u64, boundary: u64) -> DeviceLimits {
    DeviceLimits { transfer_max, zeroes_max, boundary, ..DeviceLimits::default() }
}

fn rig(limits: DeviceLimits) -> (One, Rc<Book>) {
    let one = One::new(&Leaf::device(16 << 20, true, limits));
    let book = Book::of(&one.reactor);
    (one, book)
}

/// Starts an I/O in a task of its own: its slot, and how it ends.
fn start(one: &One, op: IoOp, offset: u64, len: u64) -> (u32, Rc<Cell<Option<IoStatus>>>) {
    let io = one.io(op, offset, len, &vec![1; op.data_len(len) as usize], &[]);
    let (slot, end, handle) = (io.slot(), Rc::new(Cell::new(None)), one.handle.clone());
    let there = end.clone();
    one.reactor.spawn("test", async move {
        let bytes = io.data.bytes();
        let io = handle.execute(io).await;
        assert_eq!(io.data.bytes(), bytes, "the data is whole, however it ends");
        there.set(Some(io.status));
        handle.reactor().retire_io(io);
    });
    (slot, end)
}

fn turn(one: &One) {
    for _ in 0..8 {
        one.reactor.turn();
    }
}

#[test]
fn pieces_end_at_the_limits_and_at_boundaries() {
    let (one, book) = rig(limits(40 * KIB + 100, 100 * KIB, 64 * KIB));
    let cut = |op: IoOp, offset: u64, len: u64| {
        let data = pattern(1, op.data_len(len) as usize);
        let done = one.run(op, offset, len, &data);
        assert_eq!((done.status, done.data), (IoStatus::Success, data));
        book.take_log().into_iter().map(|(_, offset, len)| (offset / KIB, len / KIB)).collect::<Vec<_>>()
    };
    assert_eq!(cut(IoOp::Write, 4 * KIB, 40 * KIB), [(4, 40)], "within the limits");
    assert_eq!(cut(IoOp::Read, 60 * KIB, 8 * KIB), [(60, 4), (64, 4)]);
    assert_eq!(
        cut(IoOp::Compare, 32 * KIB, 160 * KIB),
        [(32, 32), (64, 40), (104, 24), (128, 40), (168, 24)],
        "whole blocks, and no boundary is crossed"
    );
    assert_eq!(cut(IoOp::Unmap, 60 * KIB, 240 * KIB), [(60, 100), (160, 100), (260, 40)]);
    assert_eq!(cut(IoOp::WriteZeroes, 0, 100 * KIB), [(0, 100)]);
    assert_eq!(cut(IoOp::Flush, 0, 0), [(0, 0)]);
    assert_eq!(cut(IoOp::CompareAndWrite, 0, 40 * KIB), [(0, 40)]);
    one.close();
}

#[test]
fn what_needs_no_cut_is_told_without_a_look() {
    let block = 4 * KIB;
    for (transfer_max, boundary) in [(40 * KIB, 0), (u64::MAX, 64 * KIB), (40 * KIB, 64 * KIB), (u64::MAX, 48 * KIB)] {
        let (one, _) = rig(limits(transfer_max, u64::MAX, boundary));
        let uncut = Uncut::of(one.handle.common().traits());
        let mut io = one.reactor.create_io().unwrap();
        for (offset, len) in (0..40).flat_map(|first| (1..40).map(move |count| (first * block, count * block))) {
            io.prepare(IoOp::Read, offset, len);
            let crosses = boundary != 0 && offset / boundary != (offset + len - 1) / boundary;
            let within = len <= transfer_max && !crosses;
            let odd = boundary != 0 && !boundary.is_power_of_two();
            assert_eq!(uncut.has(&io), within && !odd, "{offset} {len} of {transfer_max} {boundary}");
        }
        one.reactor.retire_io(io);
        one.close();
    }
}

#[test]
fn boundaries_at_other_multiples_are_not_crossed_either() {
    let (one, book) = rig(limits(u64::MAX, u64::MAX, 48 * KIB));
    for (offset, len, pieces) in [(0, 48, &[(0, 48)][..]), (40, 12, &[(40, 8), (48, 4)]), (44, 4, &[(44, 4)])] {
        let data = vec![0; (len * KIB) as usize];
        assert_eq!(one.run(IoOp::Read, offset * KIB, len * KIB, &data).status, IoStatus::Success);
        let seen: Vec<_> = book.take_log().into_iter().map(|(_, offset, len)| (offset / KIB, len / KIB)).collect();
        assert_eq!(seen, pieces);
    }
    one.close();
}

#[test]
fn a_compare_and_write_is_never_in_pieces() {
    let (one, book) = rig(limits(8 * KIB, u64::MAX, 64 * KIB));
    for (offset, len) in [(0, 16 * KIB), (60 * KIB, 8 * KIB)] {
        let done = one.run(IoOp::CompareAndWrite, offset, len, &vec![0; 2 * len as usize]);
        assert_eq!(done.status, IoStatus::Unsupported);
    }
    assert_eq!(book.take_log(), [], "the device has not seen it");
    one.close();
}

#[test]
fn an_atomic_write_comes_whole_or_not_at_all() {
    let atomic = |atomic_max| DeviceLimits { atomic_max, ..limits(8 * KIB, u64::MAX, 16 * KIB) };
    let asked = |one: &One, op: IoOp, offset, len: u64| {
        let mut io = one.io(op, offset, len, &vec![0; op.data_len(len) as usize], &[]);
        io.atomic = true;
        one.end(io).status
    };
    let (one, book) = rig(atomic(32 * KIB));
    for (offset, len) in [(0, 512), (512, 8 * KIB), (12 * KIB, 8 * KIB), (0, 32 * KIB), (512, 20 * KIB)] {
        assert_eq!(asked(&one, IoOp::Write, offset, len), IoStatus::Success);
        assert_eq!(book.take_log(), [(IoOp::Write, offset, len)]);
    }
    assert_eq!(book.atomics.get(), 5);
    assert_eq!(asked(&one, IoOp::Write, 0, 32 * KIB + 512), IoStatus::Unsupported);
    for op in [IoOp::Read, IoOp::WriteZeroes, IoOp::Unmap, IoOp::Compare, IoOp::CompareAndWrite, IoOp::Verify] {
        assert_eq!(asked(&one, op, 0, 512), IoStatus::Unsupported, "{op:?}");
    }
    assert_eq!(asked(&one, IoOp::Write, 1, 512), IoStatus::Misaligned);
    assert_eq!(asked(&one, IoOp::Write, 0, 0), IoStatus::Empty);
    assert_eq!(asked(&one, IoOp::Write, 16 << 20, 512), IoStatus::OutOfRange);
    assert_eq!(book.take_log(), []);
    assert_eq!(one.run(IoOp::Write, 0, 32 * KIB, &vec![0; 32 << 10]).status, IoStatus::Success);
    assert_eq!(book.take_log().len(), 4, "a plain one is cut, and the flag was that of the I/O before");
    one.close();
    let (one, book) = rig(atomic(0));
    assert_eq!(asked(&one, IoOp::Write, 0, 512), IoStatus::Unsupported);
    assert_eq!(book.take_log(), []);
    one.close();
}

#[test]
fn what_asks_for_nothing_gets_no_split() {
    let limits = DeviceLimits { verify_max: u64::MAX, ..DeviceLimits::default() };
    let (one, book) = rig(limits);
    assert_eq!(Uncut::of(one.handle.common().traits()), Uncut::ALL);
    for op in [IoOp::Unmap, IoOp::Verify] {
        assert_eq!(one.status(op, 0, 16 << 20), IoStatus::Success);
        assert_eq!(book.take_log(), [(op, 0, 16 << 20)]);
    }
    one.close();
}

#[test]
fn data_in_odd_pieces_is_whole_again_and_in_place() {
    let (one, _) = rig(limits(2 * KIB, u64::MAX, 0));
    let data = pattern(2, 64 << 10);
    let io = one.io(IoOp::Write, 0, 64 * KIB, &data, &[1, 2047, 2049, 9000, 4096]);
    let places = |io: &Io| -> Vec<(usize, usize, usize)> {
        io.data
            .iter()
            .map(|segment| match segment {
                Segment::Buf(buf) => (buf.address(), buf.len(), buf.capacity()),
                Segment::Region { .. } | Segment::Request(_) => unreachable!("buffers went in"),
            })
            .collect()
    };
    let before = places(&io);
    let handle = one.handle.clone();
    let io = one.reactor.run_until(async move { handle.execute(io).await });
    assert_eq!((io.status, places(&io)), (IoStatus::Success, before), "rejoined to whole blocks of the pool");
    one.reactor.retire_io(io);
    one.close();
}

#[test]
fn the_lowest_failure_counts_and_what_is_on_its_way_is_awaited() {
    let (one, book) = rig(limits(4 * KIB, u64::MAX, 0));
    book.fails.set(Some((21 * KIB + 7, IoStatus::Miscompare)));
    let done = one.run(IoOp::Compare, 4 * KIB, 512 * KIB, &pattern(3, 512 << 10));
    assert_eq!((done.status, done.info), (IoStatus::Miscompare, 17 * KIB + 7), "from the beginning of the I/O");
    assert!(book.take_log().len() <= 5 + SPLIT_CHILDREN, "no piece starts after the failure");

    book.fails.set(Some((9 * KIB, IoStatus::MediaError)));
    book.holds.set(true);
    let (_, end) = start(&one, IoOp::Read, 0, 64 * KIB);
    turn(&one);
    assert_eq!(book.held.len(), SPLIT_CHILDREN, "some at a time");
    // The later ones end first; the third fails.
    book.release(3, IoStatus::Success);
    turn(&one);
    assert_eq!(end.get(), None, "pieces are on their way");
    while end.get().is_none() {
        book.release(1, IoStatus::Success);
        turn(&one);
    }
    assert_eq!(end.get(), Some(IoStatus::MediaError));
    assert!(book.take_log().len() < 16);
    one.close();
}

#[test]
fn a_reset_ends_what_waits_and_what_is_cut_and_nothing_starts_after_it() {
    let (one, book) = rig(limits(4 * KIB, u64::MAX, 0));
    book.holds.set(true);
    let ends: Vec<_> =
        (0..SPLIT_PARENTS as u64 + 3).map(|i| start(&one, IoOp::Write, i * 64 * KIB, 64 * KIB).1).collect();
    turn(&one);
    assert_eq!(book.take_log().len(), SPLIT_PARENTS * SPLIT_CHILDREN);
    assert_eq!(one.status(IoOp::Reset, 0, 0), IoStatus::Success);
    assert!(ends.iter().all(|end| end.get() == Some(IoStatus::Aborted)), "all had ended when the reset did");
    assert_eq!(book.take_log(), []);
    book.holds.set(false);
    assert_eq!(one.run(IoOp::Write, 0, 64 * KIB, &vec![0; 64 << 10]).status, IoStatus::Success);
    assert_eq!(book.take_log().len(), 16);
    one.close();
}

#[test]
fn an_abort_ends_what_waits_at_once_and_what_is_cut_after_the_pieces_on_their_way() {
    let (one, book) = rig(limits(4 * KIB, u64::MAX, 0));
    book.holds.set(true);
    let ios: Vec<_> = (0..SPLIT_PARENTS as u64 + 2).map(|i| start(&one, IoOp::Write, i * 64 * KIB, 64 * KIB)).collect();
    turn(&one);
    let (first, last) = (&ios[0], &ios[SPLIT_PARENTS + 1]);
    assert!(one.handle.abort(first.0) && one.handle.abort(last.0));
    assert!(!one.handle.abort(u32::MAX));
    turn(&one);
    assert_eq!((first.1.get(), last.1.get()), (None, Some(IoStatus::Aborted)));
    book.holds.set(false);
    while ios.iter().any(|(_, end)| end.get().is_none()) {
        book.release(1, IoStatus::Success);
        turn(&one);
    }
    assert_eq!(first.1.get(), Some(IoStatus::Aborted));
    assert!(ios[1..=SPLIT_PARENTS].iter().all(|(_, end)| end.get() == Some(IoStatus::Success)));
    let pieces = book.take_log().into_iter().filter(|(_, offset, _)| *offset < 64 * KIB).count();
    assert_eq!(pieces, SPLIT_CHILDREN, "of the first, no more than were on their way");
    one.close();
}

/// What the device sees of a verify, in KiB.
fn verify(one: &One, book: &Book, offset: u64, len: u64) -> (IoStatus, Vec<(IoOp, u64, u64)>) {
    let status = one.status(IoOp::Verify, offset * KIB, len * KIB);
    (status, book.take_log().into_iter().map(|(op, offset, len)| (op, offset / KIB, len / KIB)).collect())
}

#[test]
fn a_verify_that_the_device_has_not_is_reads_within_its_limits() {
    use IoOp::Read;
    let (one, book) = rig(limits(48 * KIB, u64::MAX, 128 * KIB));
    assert_eq!(verify(&one, &book, 8, 4), (IoStatus::Success, vec![(Read, 8, 4)]));
    let pieces = vec![(Read, 60, 48), (Read, 108, 20), (Read, 128, 48), (Read, 176, 4)];
    assert_eq!(verify(&one, &book, 60, 120), (IoStatus::Success, pieces));
    one.close();
    let (one, book) = rig(DeviceLimits::default());
    let longest = VERIFY_READ_MAX as u64 / KIB;
    let pieces = vec![(Read, 4, longest), (Read, 4 + longest, longest), (Read, 4 + 2 * longest, 1)];
    assert_eq!(verify(&one, &book, 4, 2 * longest + 1), (IoStatus::Success, pieces), "however large a read may be");
    assert_eq!(one.run(IoOp::Verify, 0, 4096, &[0; 4096]).status, IoStatus::DataLength);
    for (offset, len, status) in [
        (0, 0, IoStatus::Empty),
        (100, 512, IoStatus::Misaligned),
        (16 << 20, 512, IoStatus::OutOfRange),
        ((16 << 20) - 512, 1024, IoStatus::OutOfRange),
    ] {
        assert_eq!(one.status(IoOp::Verify, offset, len), status, "{offset}+{len}");
    }
    assert_eq!(book.take_log(), []);
    one.close();
}

#[test]
fn a_verify_that_the_device_has_comes_in_pieces_of_its_limit() {
    use IoOp::Verify;
    let most = |verify_max| DeviceLimits { verify_max, ..limits(8 * KIB, u64::MAX, 16 * KIB) };
    let (one, book) = rig(most(100 * KIB + 100));
    assert_eq!(verify(&one, &book, 4, 100), (IoStatus::Success, vec![(Verify, 4, 100)]), "no boundary is in its way");
    let two = vec![(Verify, 4, 100), (Verify, 104, 1)];
    assert_eq!(verify(&one, &book, 4, 101), (IoStatus::Success, two));
    one.close();
    let (one, book) = rig(most(511));
    let reads = vec![(IoOp::Read, 4, 8), (IoOp::Read, 12, 4)];
    assert_eq!(verify(&one, &book, 4, 12), (IoStatus::Success, reads), "not even a block");
    one.close();
}

#[test]
fn a_verify_fails_as_a_read_of_the_block_does_and_only_over_it() {
    for verify_max in [0, 32 * KIB, u64::MAX] {
        let (one, book) = rig(DeviceLimits { verify_max, ..limits(16 * KIB, u64::MAX, 0) });
        book.fails.set(Some((100 * KIB + 7, IoStatus::MediaError)));
        for (offset, len, is) in [
            (0, 100, IoStatus::Success),
            (101, 400, IoStatus::Success),
            (100, 1, IoStatus::MediaError),
            (0, 101, IoStatus::MediaError),
            (100, 400, IoStatus::MediaError),
            (0, 16 * KIB, IoStatus::MediaError),
        ] {
            assert_eq!(verify(&one, &book, offset, len).0, is, "{offset}+{len} KiB, {verify_max}");
        }
        one.close();
    }
}

#[test]
fn a_refused_verify_is_reads_from_then_on() {
    let (one, book) = rig(DeviceLimits { verify_max: 32 * KIB, ..limits(16 * KIB, u64::MAX, 0) });
    book.refuses.set(Some(IoOp::Verify));
    book.fails.set(Some((100 * KIB, IoStatus::MediaError)));
    let (status, log) = verify(&one, &book, 0, 40);
    assert_eq!(status, IoStatus::Success);
    let reads = [(IoOp::Read, 0, 16), (IoOp::Read, 16, 16), (IoOp::Read, 32, 8)];
    let (verifies, rest) = log.split_at(log.len() - 3);
    assert!(rest == reads && verifies.iter().all(|(op, ..)| *op == IoOp::Verify), "{log:?}");
    assert_eq!(verify(&one, &book, 0, 16), (IoStatus::Success, vec![(IoOp::Read, 0, 16)]), "it is not asked again");
    assert_eq!(verify(&one, &book, 96, 8).0, IoStatus::MediaError);
    one.close();
}

#[test]
fn a_refusal_that_comes_upon_another_verify_does_not_disturb_it() {
    let (one, book) = rig(DeviceLimits { verify_max: 4 * KIB, ..limits(16 * KIB, u64::MAX, 0) });
    book.holds.set(true);
    let (_, first) = start(&one, IoOp::Verify, 0, 4 * KIB);
    let (_, second) = start(&one, IoOp::Verify, 1 << 20, 64 * KIB);
    turn(&one);
    book.release(1, IoStatus::Unsupported);
    turn(&one);
    while first.get().is_none() || second.get().is_none() {
        assert!(!book.held.is_empty(), "they wait for nothing");
        book.release(1, IoStatus::Success);
        turn(&one);
    }
    assert_eq!((first.get(), second.get()), (Some(IoStatus::Success), Some(IoStatus::Success)));
    let log = book.take_log();
    let of = |op, from| log.iter().filter(|piece| piece.0 == op && piece.1 >= from).count();
    assert_eq!((of(IoOp::Verify, 1 << 20), of(IoOp::Read, 0), log.len()), (16, 1, 18));
    one.close();
}

#[test]
fn verifies_hold_nothing_up_and_end_with_a_reset_or_an_abort() {
    let (one, book) = rig(limits(4 * KIB, u64::MAX, 0));
    book.holds.set(true);
    let ios: Vec<_> = (0..SPLIT_VERIFIES as u64 + 2).map(|i| start(&one, IoOp::Verify, i * KIB, 1 << 20)).collect();
    turn(&one);
    assert_eq!(book.held.len(), SPLIT_VERIFIES * SPLIT_CHILDREN, "some at a time");
    let (_, write) = start(&one, IoOp::Write, 0, 16 * KIB);
    turn(&one);
    assert_eq!(book.held.len(), (SPLIT_VERIFIES + 1) * SPLIT_CHILDREN, "a write does not wait behind them");
    let (first, last) = (&ios[0], &ios[SPLIT_VERIFIES + 1]);
    assert!(one.handle.abort(first.0) && one.handle.abort(last.0));
    turn(&one);
    assert_eq!((first.1.get(), last.1.get()), (None, Some(IoStatus::Aborted)));
    assert_eq!(one.status(IoOp::Reset, 0, 0), IoStatus::Success);
    assert!(ios.iter().all(|(_, end)| end.get() == Some(IoStatus::Aborted)));
    assert_eq!(write.get(), Some(IoStatus::Aborted));
    book.holds.set(false);
    assert_eq!(one.status(IoOp::Verify, 0, 1 << 20), IoStatus::Success);
    one.close();
}

#[test]
fn verifies_go_on_where_the_pool_has_no_memory() {
    let (one, book) = rig(limits(16 * KIB, u64::MAX, 0));
    let all: Vec<_> = std::iter::from_fn(|| one.reactor.pool().alloc(VERIFY_READ_MAX)).collect();
    book.holds.set(true);
    let ends: Vec<_> = (0..SPLIT_VERIFIES as u64).map(|i| start(&one, IoOp::Verify, i << 20, 64 * KIB).1).collect();
    turn(&one);
    assert_eq!(book.held.len(), 1, "one read at a time, of all verifies");
    for _ in 0..4 * SPLIT_VERIFIES {
        assert!(ends.iter().any(|end| end.get().is_none()));
        book.release(1, IoStatus::Success);
        turn(&one);
    }
    assert!(ends.iter().all(|end| end.get() == Some(IoStatus::Success)));
    drop(all);
    one.close();
}
