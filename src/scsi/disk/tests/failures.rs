//! What initiators are told when the block layer fails, and what is left of the data: nothing.

use super::*;

/// Key and code of a status, for a read and for a write.
fn told(status: IoStatus) -> [(SenseKey, u16); 2] {
    let both = |key, code| [(key, code); 2];
    match status {
        IoStatus::Success => unreachable!("nobody fails so"),
        IoStatus::OutOfRange => both(SenseKey::ILLEGAL_REQUEST, 0x2100),
        IoStatus::Misaligned | IoStatus::Empty | IoStatus::DataLength => both(SenseKey::ILLEGAL_REQUEST, 0x2400),
        IoStatus::Unsupported => both(SenseKey::ILLEGAL_REQUEST, 0x2000),
        IoStatus::ReadOnly => both(SenseKey::DATA_PROTECT, 0x2700),
        IoStatus::Miscompare => both(SenseKey::MISCOMPARE, 0x1d00),
        IoStatus::NoSpace => both(SenseKey::DATA_PROTECT, 0x2707),
        IoStatus::MediaError => [(SenseKey::MEDIUM_ERROR, 0x1100), (SenseKey::MEDIUM_ERROR, 0x0c00)],
        IoStatus::Aborted => both(SenseKey::ABORTED_COMMAND, 0x2f02),
        IoStatus::Gone => both(SenseKey::NOT_READY, 0x0400),
        _ => both(SenseKey::HARDWARE_ERROR, 0x4400),
    }
}

#[test]
fn each_failure_of_each_command_is_told_and_leaves_no_data() {
    let (rig, book) = Rig::traced();
    let (block, blocks) = ([3; 512], [3; 1024]);
    let list = unmap_list(&[(9, 2)]);
    let fua = Media::Read { lba: 9, blocks: 2, dpo: false, fua: true };
    // The command, its data, the operation that fails and which of them.
    let cases: [(Media, &[u8], IoOp, usize); 22] = [
        (read(9, 2), &[], IoOp::Read, 0),
        (fua, &[], IoOp::Flush, 0),
        (fua, &[], IoOp::Read, 0),
        (write(9, 2), &blocks, IoOp::Write, 0),
        (write_atomic(9, 2), &blocks, IoOp::Write, 0),
        (or_write(9, 2), &blocks, IoOp::Read, 0),
        (or_write(9, 2), &blocks, IoOp::CompareAndWrite, 0),
        (write_and_verify(9, 2, false), &blocks, IoOp::Write, 0),
        (write_and_verify(9, 2, false), &blocks, IoOp::Verify, 0),
        (write_and_verify(9, 2, true), &blocks, IoOp::Compare, 0),
        (verify(9, 2, Check::Medium), &[], IoOp::Verify, 0),
        (verify(9, 2, Check::Blocks), &blocks, IoOp::Compare, 0),
        (verify(9, 1024, Check::OneBlock), &[0; 512], IoOp::Compare, 1),
        (compare_and_write(9, 1), &blocks, IoOp::CompareAndWrite, 0),
        (write_same(9, 1024, Fill::Data, false), &block, IoOp::Write, 1),
        (write_same(9, 1024, Fill::Zeros, false), &[], IoOp::WriteZeroes, 0),
        (write_same(9, 1024, Fill::Zeros, true), &[], IoOp::Unmap, 0),
        (UNMAP, &list, IoOp::Unmap, 0),
        (synchronize(1), &[], IoOp::Flush, 0),
        (Media::FormatUnit, &[], IoOp::Unmap, 0),
        (Media::PreFetch { lba: 9, blocks: 2 }, &[], IoOp::Verify, 0),
        (Media::GetLbaStatus { lba: 9, allocation: 4096 }, &[], IoOp::Extents, 0),
    ];
    for (media, data, op, which) in cases {
        for status in IoStatus::ALL {
            // ORWRITE meets the miscompare of another's write, and tries again.
            let tries_again = matches!(media, Media::OrWrite { .. }) && status == IoStatus::Miscompare;
            if status == IoStatus::Success || tries_again {
                continue;
            }
            book.bytes.borrow_mut().fill(0);
            book.fails.set(Some((op, which, status)));
            let of_write = op.writes() || op == IoOp::Flush;
            let sense = rig.sense(media, data);
            let what = format!("{media:?} whose {op:?} {which} ends with {status:?}");
            assert_eq!((sense.key, sense.code.0), told(status)[usize::from(of_write)], "{what}");
            // Of two blocks nobody knows which.
            let information = match status {
                IoStatus::Miscompare => Some(0),
                IoStatus::OutOfRange if op == IoOp::Flush || media == Media::FormatUnit => Some(0),
                IoStatus::OutOfRange if which == 1 => Some(9 + 512),
                IoStatus::OutOfRange => Some(9),
                IoStatus::MediaError if matches!(media, Media::CompareAndWrite { .. }) => Some(9),
                _ => None,
            };
            assert_eq!(sense.information, information, "{what}");
            book.fails.set(None);
        }
    }
    rig.close();
}

#[test]
fn a_failed_self_test_says_so() {
    let (rig, book) = Rig::traced();
    book.fails.set(Some((IoOp::Verify, 1, IoStatus::MediaError)));
    assert_eq!(rig.sense(Media::SelfTest, &[]), Sense::new(SenseKey::HARDWARE_ERROR, Asc::SELF_TEST_FAILED));
    let last = Step { op: IoOp::Verify, fua: false, atomic: false, offset: (1 << 20) - 512, len: 512 };
    assert_eq!(book.take_log(), [Step { offset: 0, ..last }, last]);
    book.fails.set(Some((IoOp::Verify, 0, IoStatus::Gone)));
    assert_eq!(rig.sense(Media::SelfTest, &[]), Sense::new(SenseKey::NOT_READY, Asc::NOT_READY));
    rig.close();
}

#[test]
fn a_bad_block_alone_is_named() {
    let (rig, book) = Rig::traced();
    book.fails.set(Some((IoOp::Read, 0, IoStatus::MediaError)));
    let named = Sense { information: Some(77), ..Sense::new(SenseKey::MEDIUM_ERROR, Asc::UNRECOVERED_READ_ERROR) };
    assert_eq!(rig.sense(read(77, 1), &[]), named);
    rig.close();
}

#[test]
fn a_write_that_failed_has_written_nothing_and_verify_says_where() {
    let (rig, book) = Rig::traced();
    book.fails.set(Some((IoOp::Write, 0, IoStatus::NoSpace)));
    rig.sense(write(4, 4), &[5; 2048]);
    book.fails.set(None);
    assert_eq!(rig.read(4, 4), [0; 2048]);
    rig.good(write(4, 4), &[5; 2048]);
    let mut other = [5; 2048];
    other[1234] = 6;
    assert_eq!(rig.sense(verify(4, 4, Check::Blocks), &other), Sense::miscompare(1234));
    // What the write left is not what the medium has: the data survive the write.
    book.fails.set(Some((IoOp::Write, 0, IoStatus::Success)));
    assert_eq!(rig.sense(write_and_verify(4, 4, true), &other), Sense::miscompare(1234));
    rig.good(write_and_verify(4, 4, false), &other);
    rig.close();
}

#[test]
fn what_is_read_only_is_not_written() {
    let writes = |list: &[u8]| {
        [
            (write(0, 1), vec![1; 512]),
            (write_atomic(0, 1), vec![1; 512]),
            (or_write(0, 1), vec![1; 512]),
            (write_and_verify(0, 1, false), vec![1; 512]),
            (compare_and_write(0, 1), [vec![0; 512], vec![1; 512]].concat()),
            (write_same(0, 1, Fill::Data, false), vec![1; 512]),
            (write_same(0, 1, Fill::Zeros, true), Vec::new()),
            (UNMAP, list.to_vec()),
            (Media::FormatUnit, Vec::new()),
        ]
    };
    let device = Traced::device(1 << 20, |_| {});
    let export = Disk::describe(&*device, true, 0, TaskFunctions::default());
    let rig = Rig::with(device, export);
    let book = Book::of(&rig.reactor);
    for (media, data) in writes(&unmap_list(&[(0, 1)])) {
        assert_eq!(rig.sense(media, &data), Sense::new(SenseKey::DATA_PROTECT, Asc::WRITE_PROTECTED), "{media:?}");
    }
    assert_eq!(book.take_log(), [], "nothing comes to the device");
    rig.read(0, 1);
    rig.good(verify(0, 1, Check::Blocks), &[0; 512]);
    rig.good(STOP, &[]);
    rig.close();
}

#[test]
fn nothing_is_kept_and_nothing_is_read_of_a_device_that_keeps_nothing() {
    use crate::bdev::device::null::{CompleteIn, Null, Options};
    for complete in [CompleteIn::Poll, CompleteIn::Submit] {
        let options = Options {
            name: "null".to_owned(),
            uuid: [0; 16],
            size: 1 << 20,
            block_size: 512,
            physical_block_size: 512,
            complete,
        };
        let rig = Rig::new(Arc::new(Null::new(options)));
        assert!(rig.nexus.disk.keeps_nothing());
        let nexus = rig.nexus.clone();
        let data = rig.reactor.run_until(async move {
            let io = nexus.disk.handle().reactor().create_io().unwrap();
            let (io, outcome) = nexus.disk.execute(&read(0, 2048), &nexus.context(), io).await;
            let data = io.data.count();
            nexus.disk.handle().reactor().retire_io(io);
            (outcome, data)
        });
        assert_eq!(data, (Outcome::Good, 0), "the door sends zeros");
        let ones = vec![1; 1 << 20];
        let list = unmap_list(&[(0, 2048)]);
        for (media, data) in [
            (write(0, 2048), &ones[..]),
            (or_write(0, 2048), &ones[..]),
            (write_and_verify(0, 2048, true), &ones[..]),
            (write_same(0, 2048, Fill::Data, false), &ones[..512]),
            (verify(0, 2048, Check::OneBlock), &ones[..512]),
            (UNMAP, &list[..]),
            (Media::FormatUnit, &[]),
            (Media::SelfTest, &[]),
        ] {
            assert_eq!(rig.send(media, data, usize::MAX), (Outcome::Good, Vec::new()), "{media:?}");
        }
        rig.close();
    }
}
