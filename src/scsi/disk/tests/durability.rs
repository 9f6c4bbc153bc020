//! What reaches the device of FUA, of a write cache that is switched off, and of flushes; who is told of losses.

use super::*;

/// The operations of a command and whether each was durable, with the write cache on and off.
fn steps(media: Media, data: &[u8], write_cache: bool, volatile: bool) -> Vec<(IoOp, bool)> {
    let rig = Rig::new(Traced::device(1 << 20, |traits| traits.volatile_cache = volatile));
    let mode = rig.nexus.mode.get();
    rig.nexus.mode.set(ModeState { write_cache, ..mode });
    rig.good(media, data);
    let steps = Book::of(&rig.reactor).take_log().iter().map(|step| (step.op, step.fua)).collect();
    rig.close();
    steps
}

#[test]
fn reads_with_fua_are_of_the_medium() {
    let fua = Media::Read { lba: 1, blocks: 1, dpo: false, fua: true };
    assert_eq!(steps(fua, &[], true, true), [(IoOp::Flush, false), (IoOp::Read, false)]);
    assert_eq!(steps(fua, &[], false, false), [(IoOp::Read, false)]);
    assert_eq!(steps(read(1, 1), &[], true, true), [(IoOp::Read, false)]);
}

#[test]
fn writes_are_durable_by_fua_or_without_a_write_cache() {
    let (block, pair) = ([1; 512], [0; 1024]);
    let with = |fua| {
        [
            (Media::Write { lba: 1, blocks: 1, dpo: false, fua }, &block[..], vec![IoOp::Write]),
            (
                Media::OrWrite { lba: 1, blocks: 1, dpo: false, fua },
                &block[..],
                vec![IoOp::Read, IoOp::CompareAndWrite],
            ),
            (Media::WriteAtomic { lba: 1, blocks: 1, dpo: false, fua }, &block[..], vec![IoOp::Write]),
            (Media::CompareAndWrite { lba: 1, blocks: 1, dpo: false, fua }, &pair[..], vec![IoOp::CompareAndWrite]),
        ]
    };
    // FUA, write cache, volatile cache; durable.
    for (fua, write_cache, volatile, durable) in [
        (false, true, true, false),
        (true, true, true, true),
        (false, false, true, true),
        (true, false, true, true),
        (false, false, false, false),
        (true, false, false, true),
    ] {
        for (media, data, ops) in with(fua) {
            let expected: Vec<_> = ops.into_iter().map(|op| (op, durable && op.writes())).collect();
            assert_eq!(steps(media, data, write_cache, volatile), expected, "{media:?} {write_cache} {volatile}");
        }
    }
}

#[test]
fn commands_without_fua_obey_the_write_cache() {
    let block = [1; 512];
    let list = unmap_list(&[(1, 2), (5, 1)]);
    for write_cache in [true, false] {
        let durable = !write_cache;
        let flushed = |ops: &[(IoOp, bool)]| {
            let flush = [(IoOp::Flush, false)];
            [ops, &flush[..usize::from(durable)]].concat()
        };
        let is = |media, data: &[u8], expected: Vec<(IoOp, bool)>| {
            assert_eq!(steps(media, data, write_cache, true), expected, "{media:?}, write cache {write_cache}");
        };
        is(write_same(0, 1024, Fill::Data, true), &block, vec![(IoOp::Write, durable); 2]);
        is(write_same(0, 1, Fill::Data, false), &block, vec![(IoOp::Write, durable)]);
        is(write_same(0, 1024, Fill::Data, false), &[0; 512], vec![(IoOp::WriteZeroes, durable)]);
        is(write_same(0, 1024, Fill::Data, true), &[0; 512], flushed(&[(IoOp::Unmap, false)]));
        is(write_same(0, 1024, Fill::Zeros, true), &[], flushed(&[(IoOp::Unmap, false)]));
        is(write_same(0, 1024, Fill::Zeros, false), &[], vec![(IoOp::WriteZeroes, durable)]);
        is(UNMAP, &list, flushed(&[(IoOp::Unmap, false), (IoOp::Unmap, false)]));
        // Always durable.
        is(write_and_verify(0, 1, false), &block, vec![(IoOp::Write, true), (IoOp::Verify, false)]);
        is(write_and_verify(0, 1, true), &block, vec![(IoOp::Write, true), (IoOp::Compare, false)]);
        is(Media::FormatUnit, &[], [flushed(&[(IoOp::Unmap, false)]), vec![(IoOp::Flush, false)]].concat());
        is(synchronize(1), &[], vec![(IoOp::Flush, false)]);
        is(STOP, &[], vec![(IoOp::Flush, false)]);
        is(Media::StartStop { start: false, flush: false }, &[], Vec::new());
        is(Media::StartStop { start: true, flush: true }, &[], Vec::new());
    }
}

#[test]
fn a_device_that_cannot_unmap_is_zeroed() {
    let device = Traced::device(1 << 20, |traits| traits.ops = traits.ops.without(IoOp::Unmap));
    let rig = Rig::new(device);
    assert!(!rig.nexus.disk.unit().can_unmap);
    rig.good(Media::FormatUnit, &[]);
    let all = Step { op: IoOp::WriteZeroes, fua: false, atomic: false, offset: 0, len: 1 << 20 };
    assert_eq!(
        Book::of(&rig.reactor).take_log(),
        [all, Step { op: IoOp::Flush, fua: false, atomic: false, offset: 0, len: 0 }]
    );
    rig.close();
}

#[test]
fn each_nexus_is_told_of_a_loss_by_its_own_flush() {
    let (rig, _) = Rig::traced();
    let (first, second) = (&rig.nexus, Nexus::new(&rig.nexus.disk));
    rig.good(synchronize(1), &[]);
    let loss = rig.reactor.clock().refresh();
    rig.device.common().losses().note(loss);
    let lost = Outcome::Check(INTERNAL);
    for (nexus, media) in [(first, synchronize(1)), (&second, STOP)] {
        assert_eq!(nexus.told.get().at(), 0);
        let end = rig.start(nexus, media, Vec::new());
        rig.turn();
        assert_eq!(end.get(), Some(lost), "{media:?}");
        assert!(nexus.told.get().at() >= loss);
    }
    let late = Nexus::new(&rig.nexus.disk);
    late.told.set(Told::new(loss));
    let end = rig.start(&late, synchronize(1), Vec::new());
    rig.turn();
    assert_eq!(end.get(), Some(Outcome::Good), "it came after the loss");
    drop((second, late));
    rig.close();
}

#[test]
fn commands_that_tell_of_a_loss_are_those_that_say_so() {
    let (rig, _) = Rig::traced();
    rig.good(synchronize(1), &[]);
    let loss = rig.reactor.clock().refresh();
    rig.device.common().losses().note(loss);
    let block = vec![0; 512];
    for (media, data) in [
        (read(1, 1), Vec::new()),
        (Media::Read { lba: 1, blocks: 1, dpo: false, fua: true }, Vec::new()),
        (write(1, 1), block.clone()),
        (write_and_verify(0, 1, true), block.clone()),
        (write_same(0, 1024, Fill::Zeros, true), Vec::new()),
        (UNMAP, unmap_list(&[(1, 2)])),
        (Media::SelfTest, Vec::new()),
        (synchronize(1), Vec::new()),
        (Media::FormatUnit, Vec::new()),
        (STOP, Vec::new()),
        (Media::StartStop { start: false, flush: false }, Vec::new()),
        (Media::StartStop { start: true, flush: true }, Vec::new()),
    ] {
        for write_cache in [true, false] {
            let nexus = Nexus::new(&rig.nexus.disk);
            nexus.mode.set(ModeState { write_cache, ..nexus.mode.get() });
            let end = rig.start(&nexus, media, data.clone());
            (0..20).for_each(|_| rig.turn());
            let expected = if media.tells_of_losses() { Outcome::Check(INTERNAL) } else { Outcome::Good };
            assert_eq!(end.get(), Some(expected), "{media:?}, write cache {write_cache}");
            assert_eq!(nexus.told.get().at() >= loss, media.tells_of_losses(), "{media:?}");
        }
    }
    rig.close();
}

#[test]
fn an_atomic_write_is_one_for_the_device() {
    let rig = Rig::new(Traced::device(1 << 20, |traits| traits.limits.transfer_max = 64 << 10));
    rig.good(write_atomic(8, 512), &vec![7; 512 << 9]);
    rig.good(write(8, 128), &vec![7; 64 << 10]);
    let whole = Step { op: IoOp::Write, fua: false, atomic: true, offset: 4096, len: 512 << 9 };
    assert_eq!(Book::of(&rig.reactor).take_log(), [whole, Step { atomic: false, len: 64 << 10, ..whole }]);
    // More than the device can is never decoded.
    assert_eq!(rig.sense(write_atomic(8, 513), &vec![7; 513 << 9]), Sense::opcode());
    rig.close();
}
