//! Commands that meet others: aborts, ORWRITE against ORWRITE and WRITE, a pool that is empty.

use super::*;
use crate::bdev::device::testing::{on_each, two_reactors};

#[test]
fn what_the_device_has_can_be_aborted() {
    let (rig, book) = Rig::traced();
    book.holds.set(true);
    let end = rig.start(&rig.nexus, read(0, 1), Vec::new());
    rig.turn();
    let slot = rig.nexus.slot.slot().expect("the device has it");
    rig.nexus.aborted.set(true);
    assert!(rig.nexus.disk.handle().abort(slot));
    rig.turn();
    assert_eq!((end.get(), rig.nexus.slot.slot()), (Some(Outcome::Aborted), None));
    // The same end without the wish is the device's own.
    rig.nexus.aborted.set(false);
    let end = rig.start(&rig.nexus, read(0, 1), Vec::new());
    rig.turn();
    rig.nexus.disk.handle().abort(rig.nexus.slot.slot().unwrap());
    rig.turn();
    let own = Sense::new(SenseKey::ABORTED_COMMAND, Asc::COMMANDS_CLEARED_BY_SERVER);
    assert_eq!(end.get(), Some(Outcome::Check(own)));
    rig.close();
}

#[test]
fn an_aborted_command_begins_no_further_step() {
    let list = unmap_list(&[(0, 1), (2, 1), (4, 1)]);
    let ones = vec![1; 1 << 20];
    for (media, data) in [
        (write_same(0, 2048, Fill::Data, false), &ones[..512]),
        (verify(0, 2048, Check::OneBlock), &[0; 512][..]),
        (or_write(0, 2048), &ones[..]),
        (write_and_verify(0, 4, true), &ones[..2048]),
        (UNMAP, &list[..]),
    ] {
        let (rig, book) = Rig::traced();
        book.holds.set(true);
        let end = rig.start(&rig.nexus, media, data.to_vec());
        rig.turn();
        rig.nexus.aborted.set(true);
        // ORWRITE has read and goes on to its write, which belongs to the step.
        while book.held() > 0 {
            book.release();
            rig.turn();
        }
        assert_eq!(end.get(), Some(Outcome::Aborted), "{media:?}");
        let steps = book.take_log().len();
        assert_eq!(steps, if matches!(media, Media::OrWrite { .. }) { 2 } else { 1 }, "{media:?}");
        rig.close();
    }
}

#[test]
fn a_whole_format_looks_at_the_abort() {
    let device = ram(1 << 40, 4096);
    let rig = Rig::new(device);
    let end = rig.start(&rig.nexus, Media::FormatUnit, Vec::new());
    rig.turn();
    assert_eq!(end.get(), None);
    rig.nexus.aborted.set(true);
    while end.get().is_none() {
        rig.reactor.turn();
    }
    assert_eq!(end.get(), Some(Outcome::Aborted));
    rig.close();
}

#[test]
fn a_write_between_the_steps_of_write_same_stays() {
    let (rig, book) = Rig::traced();
    book.holds.set(true);
    let same = rig.start(&rig.nexus, write_same(0, 2048, Fill::Data, false), vec![1; 512]);
    rig.turn();
    book.release();
    rig.turn();
    let other = Nexus::new(&rig.nexus.disk);
    let single = rig.start(&other, write(3, 1), vec![2; 512]);
    rig.turn();
    while book.held() > 0 {
        book.release();
        rig.turn();
    }
    assert_eq!((same.get(), single.get()), (Some(Outcome::Good), Some(Outcome::Good)));
    book.holds.set(false);
    let mut expected = vec![1; 1 << 20];
    expected[3 * 512..4 * 512].fill(2);
    assert!(rig.read(0, 2048) == expected);
    drop(other);
    rig.close();
}

/// Sets bit `bit` of every byte of some blocks, again and again, and looks that no bit that it has set is lost.
async fn set_bits(nexus: Rc<Nexus>, bit: usize, rounds: usize, blocks: u32) {
    let data = vec![1 << bit; blocks as usize * 512];
    for _ in 0..rounds {
        let end = nexus.send(&or_write(8, blocks), &data, 100).await.0;
        assert_eq!(end, Outcome::Good);
        let (end, there) = nexus.send(&read(8, blocks), &[], 0).await;
        assert_eq!(end, Outcome::Good);
        assert_eq!(there.iter().position(|byte| byte & 1 << bit == 0), None, "bit {bit} was lost");
    }
}

#[test]
fn orwrites_that_alternate_lose_no_bit() {
    let (rig, book) = Rig::traced();
    book.later.set(true);
    let left = Rc::new(Cell::new(8));
    for bit in 0..8 {
        let (nexus, left) = (Nexus::new(&rig.nexus.disk), left.clone());
        rig.reactor.spawn("bits", async move {
            // Twice what one step writes.
            set_bits(nexus, bit, 3, 512).await;
            left.set(left.get() - 1);
        });
    }
    while left.get() > 0 {
        rig.reactor.turn();
    }
    let log = book.take_log();
    let tries = log.iter().filter(|step| step.op == IoOp::CompareAndWrite).count();
    assert!(tries > 8 * 3 * 2, "they have met: {tries} tries");
    assert_eq!(rig.read(8, 512), vec![0xff; 512 * 512]);
    rig.close();
}

#[test]
fn orwrites_of_two_reactors_lose_no_bit() {
    let reactors = two_reactors();
    let device = ram(1 << 20, 512);
    let done = on_each(&reactors, &device, |handle, index| async move {
        let reactor = handle.reactor().clone();
        let unit = Arc::new(unit_of(handle.device()));
        let disk = Rc::new(Disk::open(&reactor, handle.device(), unit).unwrap());
        drop(handle);
        let left = Rc::new(Cell::new(4));
        for bit in 4 * index..4 * index + 4 {
            let (nexus, left) = (Nexus::new(&disk), left.clone());
            reactor.spawn("bits", async move {
                set_bits(nexus, bit, 40, 16).await;
                left.set(left.get() - 1);
            });
        }
        while left.get() > 0 {
            reactor.sleep(50_000).await;
        }
        index
    });
    assert_eq!(done.len(), 2, "a reactor failed");
    assert_eq!(reactors.stop(), 0, "leaked buffers");
}

#[test]
fn an_orwrite_that_never_gets_on_gives_up() {
    let (rig, book) = Rig::traced();
    book.fails.set(Some((IoOp::CompareAndWrite, 0, IoStatus::Miscompare)));
    assert_eq!(rig.sense(or_write(0, 1), &[1; 512]), Sense::new(SenseKey::ABORTED_COMMAND, Asc::NONE));
    assert_eq!(book.take_log().len(), 512, "256 tries");
    // One write of somebody else's is none.
    book.fails.set(None);
    book.holds.set(true);
    let end = rig.start(&rig.nexus, or_write(0, 1), vec![0x0f; 512]);
    rig.turn();
    book.release();
    rig.turn();
    book.bytes.borrow_mut()[..512].fill(0x30);
    while book.held() > 0 {
        book.release();
        rig.turn();
    }
    assert_eq!(end.get(), Some(Outcome::Good));
    assert_eq!(book.bytes.borrow()[..512], [0x3f; 512]);
    assert_eq!(book.take_log().len(), 4);
    rig.close();
}

#[test]
fn commands_that_wait_for_buffers_all_end() {
    let (rig, book) = Rig::traced();
    book.later.set(true);
    let ones = vec![1; 1 << 20];
    let list = unmap_list(&[(0, 8)]);
    let commands = [
        (or_write(0, 1024), &ones[..512 << 10]),
        (or_write(0, 1024), &ones[..512 << 10]),
        (write_same(0, 2048, Fill::Data, false), &ones[..512]),
        (write_same(0, 2048, Fill::Data, false), &ones[..512]),
        (write_same(0, 9, Fill::Data, false), &ones[..512]),
        (UNMAP, &list[..]),
        (UNMAP, &list[..]),
    ];
    // Their data are there, and nothing else is left.
    let ios = commands.map(|(media, data)| (media, io_with(&rig.reactor, IoOp::Read, 0, 0, data, &[])));
    let mut taken = Vec::new();
    for len in (12..=20).rev().map(|shift| 1 << shift) {
        taken.extend(std::iter::from_fn(|| rig.reactor.pool().alloc(len)));
    }
    let ends = ios.map(|(media, io)| {
        let (nexus, end) = (Nexus::new(&rig.nexus.disk), Rc::new(Cell::new(None)));
        let there = end.clone();
        rig.reactor.spawn("command", async move {
            let (io, outcome) = nexus.disk.execute(&media, &nexus.context(), io).await;
            nexus.disk.handle().reactor().retire_io(io);
            there.set(Some(outcome));
        });
        end
    });
    for _ in 0..10_000 {
        rig.reactor.turn();
    }
    assert_eq!(ends.map(|end| end.get()), [Some(Outcome::Good); 7]);
    drop(taken);
    rig.close();
}

#[test]
fn a_command_on_its_way_is_small() {
    let (rig, _) = Rig::traced();
    let nexus = rig.nexus.clone();
    let size = rig.reactor.run_until(async move {
        let (media, context) = (read(0, 1), nexus.context());
        let io = io_with(nexus.disk.handle().reactor(), IoOp::Read, 0, 0, &[0; 512], &[]);
        let future = nexus.disk.execute(&media, &context, io);
        let size = size_of_val(&future);
        let (io, outcome) = future.await;
        assert_eq!(outcome, Outcome::Good);
        nexus.disk.handle().reactor().retire_io(io);
        size
    });
    // Each slot of a connection has room for one.
    assert!(size <= 2048, "{size} bytes");
    rig.close();
}
