//! Tests of the data path: a nexus that sends commands to a disk on a reactor of the calling thread.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use super::*;
use crate::bdev::device::malloc::{self, Malloc};
use crate::bdev::device::testing::io_with;
use crate::reactor::io::Segment;
use crate::reactor::start::solo;
use crate::scsi::{Check, Fill, TaskFunctions, Unmapping};
use crate::util::Random;

mod contention;
mod copy;
mod describe;
mod device;
mod durability;
mod failures;
mod model;

use device::{Book, Step, Traced};

fn ram(size: u64, block_size: u32) -> Arc<dyn BlockDevice> {
    Arc::new(
        Malloc::new(malloc::Options {
            name: "ram".to_owned(),
            uuid: [7; 16],
            size,
            block_size,
            physical_block_size: 4096,
            hugepages: false,
            home: 0,
        })
        .unwrap(),
    )
}

/// What initiators are told of it, of an export that can be written.
fn unit_of(device: &Arc<dyn BlockDevice>) -> Unit {
    Disk::describe(&**device, false, 0x0960, TaskFunctions::default())
}

/// One nexus of one disk.
struct Nexus {
    disk: Rc<Disk>,
    mode: Cell<ModeState>,
    told: Cell<Told>,
    slot: InDevice,
    aborted: Cell<bool>,
}

impl Nexus {
    fn new(disk: &Rc<Disk>) -> Rc<Nexus> {
        Rc::new(Nexus {
            disk: disk.clone(),
            mode: Cell::new(ModeState::new(disk.unit())),
            told: Cell::new(Told::new(0)),
            slot: InDevice::default(),
            aborted: Cell::new(false),
        })
    }

    fn context(&self) -> Context<'_> {
        Context { mode: self.mode.get(), told: &self.told, slot: &self.slot, aborted: &self.aborted }
    }

    /// Sends a command with its data, which is cut at `cut`, and returns what comes back.
    async fn send(&self, media: &Media, data: &[u8], cut: usize) -> (Outcome, Vec<u8>) {
        let reactor = self.disk.handle().reactor();
        let mut io = io_with(reactor, IoOp::Read, 0, 0, data, &[cut]);
        if let Media::Read { blocks, .. } = media {
            let mut buf = reactor.pool().alloc((*blocks as usize) << self.disk.unit().block_shift()).unwrap();
            buf.fill(0xdb);
            io.data.push_buf(buf);
        }
        let (io, outcome) = self.disk.execute(media, &self.context(), io).await;
        assert_eq!(self.slot.slot(), None, "the device has nothing of it any more");
        let mut back = Vec::new();
        for segment in io.data.iter() {
            let Segment::Buf(buf) = segment else { panic!("a buffer went in") };
            back.extend_from_slice(buf);
        }
        assert!(outcome == Outcome::Good || io.data.count() == 0, "nothing is left of what failed");
        reactor.retire_io(io);
        (outcome, back)
    }
}

/// A disk and a nexus on a reactor of the calling thread.
struct Rig {
    reactor: Rc<Reactor>,
    device: Arc<dyn BlockDevice>,
    nexus: Rc<Nexus>,
}

impl Rig {
    fn new(device: Arc<dyn BlockDevice>) -> Rig {
        let unit = unit_of(&device);
        Rig::with(device, unit)
    }

    fn with(device: Arc<dyn BlockDevice>, unit: Unit) -> Rig {
        unit.check().unwrap();
        let reactor = solo(32 << 20).unwrap();
        let disk = Rc::new(Disk::open(&reactor, &device, Arc::new(unit)).unwrap());
        Rig { nexus: Nexus::new(&disk), reactor, device }
    }

    /// On a [`Traced`] device of a mebibyte.
    fn traced() -> (Rig, Rc<Book>) {
        let rig = Rig::new(Traced::device(1 << 20, |_| {}));
        let book = Book::of(&rig.reactor);
        (rig, book)
    }

    fn send(&self, media: Media, data: &[u8], cut: usize) -> (Outcome, Vec<u8>) {
        let (nexus, data) = (self.nexus.clone(), data.to_vec());
        self.reactor.run_until(async move { nexus.send(&media, &data, cut).await })
    }

    /// A command that moves nothing or whose data need no cut.
    fn outcome(&self, media: Media, data: &[u8]) -> Outcome {
        self.send(media, data, usize::MAX).0
    }

    fn good(&self, media: Media, data: &[u8]) {
        assert_eq!(self.outcome(media, data), Outcome::Good, "{media:?}");
    }

    fn sense(&self, media: Media, data: &[u8]) -> Sense {
        match self.outcome(media, data) {
            Outcome::Check(sense) => sense,
            other => panic!("{media:?} ended with {other:?}"),
        }
    }

    fn read(&self, lba: u64, blocks: u32) -> Vec<u8> {
        let (outcome, data) = self.send(read(lba, blocks), &[], 0);
        assert_eq!(outcome, Outcome::Good);
        data
    }

    /// Begins a command in a task of its own.
    fn start(&self, nexus: &Rc<Nexus>, media: Media, data: Vec<u8>) -> Rc<Cell<Option<Outcome>>> {
        let (nexus, end) = (nexus.clone(), Rc::new(Cell::new(None)));
        let there = end.clone();
        self.reactor.spawn("command", async move { there.set(Some(nexus.send(&media, &data, usize::MAX).await.0)) });
        end
    }

    fn turn(&self) {
        for _ in 0..10 {
            self.reactor.turn();
        }
    }

    /// Ends the reactor: no buffer may be left.
    fn close(self) {
        let Rig { reactor, nexus, .. } = self;
        drop(nexus);
        assert_eq!(reactor.shut_down(), 0, "leaked buffers");
    }
}

fn read(lba: u64, blocks: u32) -> Media {
    Media::Read { lba, blocks, dpo: false, fua: false }
}

fn write(lba: u64, blocks: u32) -> Media {
    Media::Write { lba, blocks, dpo: false, fua: false }
}

fn write_atomic(lba: u64, blocks: u32) -> Media {
    Media::WriteAtomic { lba, blocks, dpo: false, fua: false }
}

fn or_write(lba: u64, blocks: u32) -> Media {
    Media::OrWrite { lba, blocks, dpo: false, fua: false }
}

fn verify(lba: u64, blocks: u32, check: Check) -> Media {
    Media::Verify { lba, blocks, dpo: false, check }
}

fn compare_and_write(lba: u64, blocks: u32) -> Media {
    Media::CompareAndWrite { lba, blocks, dpo: false, fua: false }
}

fn write_and_verify(lba: u64, blocks: u32, compare: bool) -> Media {
    Media::WriteAndVerify { lba, blocks, dpo: false, compare }
}

fn write_same(lba: u64, blocks: u64, fill: Fill, unmap: bool) -> Media {
    Media::WriteSame { lba, blocks, fill, unmap: unmap.then_some(Unmapping::Deallocate) }
}

const UNMAP: Media = Media::Unmap { how: Unmapping::Deallocate };
const STOP: Media = Media::StartStop { start: false, flush: true };

fn synchronize(blocks: u64) -> Media {
    Media::SynchronizeCache { lba: 0, blocks }
}

/// A parameter list of UNMAP.
fn unmap_list(ranges: &[(u64, u32)]) -> Vec<u8> {
    let len = 16 * ranges.len() as u16;
    let mut list = [(len + 6).to_be_bytes(), len.to_be_bytes(), [0; 2], [0; 2]].concat();
    for (lba, blocks) in ranges {
        list.extend([&lba.to_be_bytes()[..], &blocks.to_be_bytes(), &[0; 4]].concat());
    }
    list
}
