//! EXTENDED COPY: within a disk, across disks, and where it ends when it fails.

use super::*;
use crate::scsi::disk::spares::CHUNK;
use crate::scsi::{CopyProgress, CopySegment, CopyState};

/// Disks on one reactor.
struct Disks {
    reactor: Rc<Reactor>,
    disks: Rc<Vec<CopyDisk>>,
    nexuses: Vec<Rc<Nexus>>,
}

impl Disks {
    fn new(devices: &[(Arc<dyn BlockDevice>, bool)]) -> Disks {
        let reactor = solo(32 << 20).unwrap();
        let mut nexuses = Vec::new();
        let mut disks = Vec::new();
        for (device, read_only) in devices {
            let unit = Disk::describe(&**device, *read_only, 0, TaskFunctions::default());
            let disk = Rc::new(Disk::open(&reactor, device, Arc::new(unit)).unwrap());
            nexuses.push(Nexus::new(&disk));
            disks.push(with_mode(&disk, ModeState::new(disk.unit())));
        }
        Disks { reactor, disks: Rc::new(disks), nexuses }
    }

    /// Copies, and returns what was told of it on the way.
    fn copy(&self, steps: &[CopySegment<usize>]) -> (Outcome, Vec<CopyProgress>) {
        let (disks, steps, nexus) = (self.disks.clone(), steps.to_vec(), self.nexuses[0].clone());
        self.reactor.run_until(async move {
            let mut told = Vec::new();
            // The parameter list.
            let io = io_with(nexus.disk.handle().reactor(), IoOp::Read, 0, 0, &[1; 100], &[]);
            let (io, outcome) = copy(&steps, &disks, &nexus.context(), io, |progress| told.push(progress)).await;
            assert_eq!((io.data.count(), nexus.slot.slot()), (0, None));
            nexus.disk.handle().reactor().retire_io(io);
            (outcome, told)
        })
    }

    fn send(&self, disk: usize, media: Media, data: &[u8]) -> Vec<u8> {
        let (nexus, data) = (self.nexuses[disk].clone(), data.to_vec());
        let (outcome, back) = self.reactor.run_until(async move { nexus.send(&media, &data, usize::MAX).await });
        assert_eq!(outcome, Outcome::Good);
        back
    }

    fn close(self) {
        let Disks { reactor, disks, nexuses } = self;
        drop((disks, nexuses));
        assert_eq!(reactor.shut_down(), 0, "leaked buffers");
    }
}

/// A disk that may be read and written.
fn with_mode(disk: &Rc<Disk>, mode: ModeState) -> CopyDisk {
    let access = CopyAccess { mode, readable: true, writable: true };
    CopyDisk { disk: disk.clone(), access: Box::new(move || access) }
}

fn segment(index: u16, from: (usize, u64), to: (usize, u64), bytes: u32) -> CopySegment<usize> {
    CopySegment { source: from.0, source_lba: from.1, destination: to.0, destination_lba: to.1, bytes, index }
}

#[test]
fn copies_leave_what_was_there_before() {
    let disks = Disks::new(&[(ram(1 << 20, 512), false), (ram(1 << 20, 4096), false)]);
    let mut random = Random(3);
    let blocks = [512, 4096];
    let mut model = [random.bytes(1 << 20), random.bytes(1 << 20)];
    for (disk, bytes) in model.iter().enumerate() {
        disks.send(disk, write(0, (1 << 20) / blocks[disk] as u32), bytes);
    }
    for round in 0..150 {
        let mut steps = Vec::new();
        let mut written = 0;
        for index in 0..1 + random.below(4) {
            let (source, destination) = (random.below(2), random.below(2));
            let block = blocks[source].max(blocks[destination]);
            // Longer than a chunk at times, and overlapping within a disk.
            let bytes = block * (1 + random.below((700 << 10) / block));
            let mut lba = |disk: usize| random.below(((1 << 20) - bytes) / blocks[disk] + 1);
            let (from, to) = (lba(source), lba(destination));
            let data = model[source][from * blocks[source]..][..bytes].to_vec();
            model[destination][to * blocks[destination]..][..bytes].copy_from_slice(&data);
            written += bytes as u64;
            steps.push(segment(index as u16, (source, from as u64), (destination, to as u64), bytes as u32));
        }
        let (outcome, told) = disks.copy(&steps);
        assert_eq!(outcome, Outcome::Good);
        let done = CopyProgress { state: CopyState::Done, segments: steps.len() as u16, bytes: written };
        assert_eq!(told.last(), Some(&done));
        assert!(told.is_sorted_by_key(|progress| (progress.segments, progress.bytes)));
        for (disk, bytes) in model.iter().enumerate() {
            let there = disks.send(disk, read(0, (1 << 20) / blocks[disk] as u32), &[]);
            assert!(there == *bytes, "disk {disk} in round {round}: {steps:?}");
        }
    }
    disks.close();
}

#[test]
fn two_units_of_one_device_overlap_too() {
    let device = ram(1 << 20, 512);
    let disks = Disks::new(&[(device.clone(), true), (device, false)]);
    let bytes = Random(4).bytes(1 << 20);
    disks.send(1, write(0, 2048), &bytes);
    assert_eq!(disks.copy(&[segment(0, (0, 0), (1, 1), (1 << 20) - 512)]).0, Outcome::Good);
    assert!(disks.send(0, read(1, 2047), &[]) == bytes[..(1 << 20) - 512]);
    let protected = Sense::copy_aborted(Asc::WRITE_PROTECTED, 0);
    assert_eq!(disks.copy(&[segment(0, (1, 0), (0, 1), 512)]).0, Outcome::Check(protected));
    disks.close();
}

#[test]
fn a_copy_of_nothing_and_from_a_device_that_keeps_nothing() {
    use crate::bdev::device::null::{CompleteIn, Null, Options};
    let options = Options {
        name: "null".to_owned(),
        uuid: [0; 16],
        size: 1 << 20,
        block_size: 512,
        physical_block_size: 512,
        complete: CompleteIn::Poll,
    };
    let disks = Disks::new(&[(ram(1 << 20, 512), false), (Arc::new(Null::new(options)), false)]);
    assert_eq!(disks.copy(&[]), (Outcome::Good, vec![CopyProgress { state: CopyState::Done, ..CopyProgress::START }]));
    disks.send(0, write(0, 2048), &vec![0xee; 1 << 20]);
    assert_eq!(disks.copy(&[segment(0, (1, 0), (0, 0), 1 << 20)]).0, Outcome::Good);
    assert!(disks.send(0, read(0, 2048), &[]) == vec![0; 1 << 20], "what lay in the buffer is nobody's");
    disks.close();
}

#[test]
fn a_copy_that_fails_says_where_and_how_much_is_missing() {
    let traced = Traced::device(1 << 20, |_| {});
    let disks = Disks::new(&[(ram(1 << 20, 4096), false), (traced, false)]);
    let book = Book::of(&disks.reactor);
    let steps = [segment(0, (0, 0), (1, 0), 4096), segment(3, (0, 0), (1, 8), 600 << 10)];
    // The third write is the second chunk of the second segment.
    book.fails.set(Some((IoOp::Write, 2, IoStatus::NoSpace)));
    let (outcome, told) = disks.copy(&steps);
    let left = Sense { information: Some(344 << 1), ..Sense::copy_aborted(Asc::SPACE_ALLOCATION_FAILED, 3) };
    assert_eq!(outcome, Outcome::Check(left));
    let end = CopyProgress { state: CopyState::Failed, segments: 4, bytes: 4096 + (256 << 10) };
    assert_eq!(told.last(), Some(&end));
    // Nothing of the segment was written.
    book.fails.set(Some((IoOp::Read, 0, IoStatus::MediaError)));
    let (outcome, told) = disks.copy(&[segment(0, (1, 0), (0, 0), 8192)]);
    assert_eq!(outcome, Outcome::Check(Sense::copy_aborted(Asc::UNRECOVERED_READ_ERROR, 0)));
    assert_eq!(told, [CopyProgress { state: CopyState::Failed, segments: 1, bytes: 0 }]);
    disks.nexuses[0].aborted.set(true);
    book.take_log();
    assert_eq!(disks.copy(&steps).0, Outcome::Aborted);
    assert_eq!(book.take_log(), []);
    disks.close();
}

#[test]
fn the_write_cache_of_the_destination_counts() {
    let disks = Disks::new(&[(Traced::device(1 << 20, |_| {}), false)]);
    let book = Book::of(&disks.reactor);
    for write_cache in [true, false] {
        let disk = &disks.disks[0].disk;
        let own = [with_mode(disk, ModeState { write_cache, ..ModeState::new(disk.unit()) })];
        let nexus = disks.nexuses[0].clone();
        let outcome = disks.reactor.run_until(async move {
            let io = nexus.disk.handle().reactor().create_io().unwrap();
            let step = [segment(0, (0, 0), (0, 8), 512)];
            let (io, outcome) = copy(&step, &own, &nexus.context(), io, |_| {}).await;
            nexus.disk.handle().reactor().retire_io(io);
            outcome
        });
        assert_eq!(outcome, Outcome::Good);
        let durable: Vec<_> = book.take_log().iter().map(|step| (step.op, step.fua)).collect();
        assert_eq!(durable, [(IoOp::Read, false), (IoOp::Write, !write_cache)]);
    }
    drop(book);
    disks.close();
}

#[test]
fn a_copy_ends_where_it_may_not_go_on() {
    const PIECES: usize = 5;
    let ram = || (Traced::device(4 << 20, |_| {}), false);
    for forbids_reading in [false, true] {
        let disks = Disks::new(&[ram(), ram()]);
        let mode = ModeState::new(disks.disks[0].disk.unit());
        let own: Vec<CopyDisk> = disks
            .disks
            .iter()
            .enumerate()
            .map(|(index, disk)| {
                // Each is asked once for each piece; from the third on somebody has reserved one of the two.
                let (asked, reserved) = (Cell::new(0), forbids_reading == (index == 0));
                let access = move || {
                    asked.set(asked.get() + 1);
                    let free = !reserved || asked.get() <= 2;
                    CopyAccess { mode, readable: free, writable: free }
                };
                CopyDisk { disk: disk.disk.clone(), access: Box::new(access) }
            })
            .collect();
        let (nexus, len) = (disks.nexuses[0].clone(), (PIECES * CHUNK) as u32);
        let (outcome, told) = disks.reactor.run_until(async move {
            let io = nexus.disk.handle().reactor().create_io().unwrap();
            let mut told = Vec::new();
            let step = [segment(0, (0, 0), (1, 0), len)];
            let (io, outcome) = copy(&step, &own, &nexus.context(), io, |progress| told.push(progress)).await;
            nexus.disk.handle().reactor().retire_io(io);
            (outcome, told)
        });
        let left = ((PIECES - 2) * CHUNK / 512) as u64;
        let aborted = Sense::copy_aborted(Asc::THIRD_PARTY_FAILURE, 0);
        assert_eq!(outcome, Outcome::Check(Sense { information: Some(left), ..aborted }));
        let last = CopyProgress { state: CopyState::Failed, segments: 1, bytes: 2 * CHUNK as u64 };
        assert_eq!(told.last(), Some(&last));
        disks.close();
    }
}
