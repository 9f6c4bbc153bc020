//! A device of a program's own: whatever answers by computation or from memory, behind one small trait.
//!
//! ```
//! use reactor::bdev::device::custom::Disk;
//! use reactor::reactor::io::IoStatus;
//!
//! /// Each word of eight bytes tells its own offset.
//! struct Pattern;
//!
//! impl Disk for Pattern {
//!     fn size(&self) -> u64 {
//!         1 << 30
//!     }
//!     fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), IoStatus> {
//!         for (at, word) in (offset..).step_by(8).zip(into.chunks_exact_mut(8)) {
//!             word.copy_from_slice(&at.to_le_bytes());
//!         }
//!         Ok(())
//!     }
//! }
//! ```
//! [`crate::serve::Server`] serves it. What is here makes a block device with every operation of it, as the contract of the block
//! layer has them: scattered data, compare, compare and write over all reactors, reset.
//!
//! What takes longer than a [`Disk`] may (it asks another process, a device, the network) implements
//! [`BlockDevice`] and [`Channel`] itself: there an I/O may stay pending while its reactor does other things. The leaves beside
//! this module are examples.

use std::rc::Rc;
use std::sync::Arc;

use crate::bdev::at_once::{self, AtOnce};
use crate::bdev::scatter::{self, BOUNCE};
use crate::bdev::{BlockDevice, Channel, Common, DeviceError, DeviceLimits, OpSet, Traits, Unaddressed};
use crate::reactor::Reactor;
use crate::reactor::io::{Io, IoOp, IoStatus, Segment, Segments};

/// Largest unmap or write zeroes that a disk gets in one call: it ends before other I/O of the reactor goes on.
pub const ZEROES_MAX: u64 = at_once::ZEROES_MAX;

/// Zeros to write where a disk has no better way.
static ZEROES: [u8; BOUNCE] = [0; BOUNCE];

/// A device of a program's own whose I/O ends at once.
///
/// # The contract
/// - Calls run on reactors, between the I/O of everybody else: **nothing here may block**: no lock that is held for long, no
///   file, no socket, no sleep. A call for some KiB takes thousands of nanoseconds at most, a large one (1 MiB is the most) in
///   proportion: what it takes, all other I/O of the reactor waits. A reactor takes note of what holds it up for longer than
///   [`STALL_NS`](crate::limits::STALL_NS).
/// - Several reactors call at once, unless [`Disk::concurrent`] says no. Reads and writes of the same bytes may race, and give or
///   leave parts of both, but bytes that nobody is asked to write stay as they are.
/// - Ranges are whole blocks within the device, and never empty; buffers hold as many bytes as the range.
/// - A panic ends the process: a request that nobody answers is worse.
///
/// Errors are answers to the host: [`IoStatus::MediaError`], [`IoStatus::DeviceError`], [`IoStatus::NoSpace`] and their like, each
/// as its protocol has it.
pub trait Disk: Send + Sync + 'static {
    /// Its size in bytes, a multiple of the block size. Asked once.
    fn size(&self) -> u64;

    /// Its block size, 512 or 4,096 bytes. Asked once.
    fn block_size(&self) -> u32 {
        512
    }

    /// Fills all of `into` with what is at `offset`, or fails. A block never written reads as zeros, if it is for this disk to say.
    ///
    /// # Errors
    /// Whatever the host is to be told; it gets no data then.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), IoStatus>;

    /// Whether it can be written: then [`Disk::write`] is there. Hosts see a device that says no as read-only. Asked once.
    fn writable(&self) -> bool {
        false
    }

    /// Stores `from` at `offset`.
    ///
    /// # Errors
    /// Whatever the host is to be told; what the range holds then is open, each byte old or new.
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), IoStatus> {
        let _ = (offset, from);
        Err(IoStatus::ReadOnly)
    }

    /// Makes a range of at most [`ZEROES_MAX`] bytes read as zeros; without this, zeros are written.
    ///
    /// # Errors
    /// As [`Disk::write`].
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoStatus> {
        let step = BOUNCE as u64;
        (0..len).step_by(BOUNCE).try_for_each(|at| self.write(offset + at, &ZEROES[..step.min(len - at) as usize]))
    }

    /// A range of at most [`ZEROES_MAX`] bytes is no longer needed: it reads as zeros from now on, and may let go of its memory.
    /// Without this, it is as [`Disk::write_zeroes`].
    ///
    /// # Errors
    /// As [`Disk::write`].
    fn unmap(&self, offset: u64, len: u64) -> Result<(), IoStatus> {
        self.write_zeroes(offset, len)
    }

    /// Whether writes may be lost with the power until [`Disk::flush`]. Asked once.
    ///
    /// Memory of this process has no such cache: it ends with the process, flushed or not.
    fn volatile_cache(&self) -> bool {
        false
    }

    /// Makes durable what was written before, on all reactors. Also called after a write that is to be durable at once, if there
    /// is a [`Disk::volatile_cache`].
    ///
    /// # Errors
    /// Whatever the host is to be told.
    fn flush(&self) -> Result<(), IoStatus> {
        Ok(())
    }

    /// Whether several reactors may call at once. If not, all calls come from the reactor that is the device's home, one after the
    /// other, at the cost of a message there and back for I/O of other reactors. Asked once.
    fn concurrent(&self) -> bool {
        true
    }
}

/// Of a program that keeps a hand on its disk.
impl<D: Disk + ?Sized> Disk for Arc<D> {
    fn size(&self) -> u64 {
        (**self).size()
    }
    fn block_size(&self) -> u32 {
        (**self).block_size()
    }
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), IoStatus> {
        (**self).read(offset, into)
    }
    fn writable(&self) -> bool {
        (**self).writable()
    }
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), IoStatus> {
        (**self).write(offset, from)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), IoStatus> {
        (**self).write_zeroes(offset, len)
    }
    fn unmap(&self, offset: u64, len: u64) -> Result<(), IoStatus> {
        (**self).unmap(offset, len)
    }
    fn volatile_cache(&self) -> bool {
        (**self).volatile_cache()
    }
    fn flush(&self) -> Result<(), IoStatus> {
        (**self).flush()
    }
    fn concurrent(&self) -> bool {
        (**self).concurrent()
    }
}

/// What a device around a [`Disk`] is made from.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name.
    pub name: String,
    /// Its identity: the same for the same disk, for no other.
    pub uuid: [u8; 16],
    /// The reactor that orders its compare and writes, and all I/O if the disk is not [`Disk::concurrent`].
    pub home: u16,
}

/// A [`Disk`] as a block device. Its size stays: it cannot grow.
pub struct Custom {
    common: Common,
    disk: Arc<dyn Disk>,
}

impl Custom {
    /// A device around `disk`.
    ///
    /// # Errors
    /// If there is no device of such a size or such blocks.
    pub fn new(options: Options, disk: impl Disk) -> Result<Custom, DeviceError> {
        let (size, block_size) = (disk.size(), disk.block_size());
        let refuse = |why: String| Err(DeviceError::Refused(format!("volume \"{}\": {why}", options.name)));
        if block_size != 512 && block_size != 4096 {
            return refuse(format!("blocks of {block_size} bytes: blocks have 512 or 4096"));
        }
        if size == 0 || !size.is_multiple_of(u64::from(block_size)) || size > i64::MAX as u64 {
            return refuse(format!(
                "{size} bytes: the size must be a multiple of the block size {block_size}, and neither 0 nor more than {}",
                i64::MAX
            ));
        }
        let traits = Traits {
            name: options.name,
            driver: "custom",
            uuid: options.uuid,
            block_size,
            physical_block_size: block_size,
            ops: OpSet::ALL.without(IoOp::Extents),
            read_only: !disk.writable(),
            volatile_cache: disk.volatile_cache(),
            keeps_nothing: false,
            ephemeral: true,
            unaddressed: Unaddressed::Refuses,
            concurrent: disk.concurrent(),
            limits: DeviceLimits { zeroes_max: ZEROES_MAX, ..DeviceLimits::default() },
            zones: None,
        };
        Ok(Custom { common: Common::new(traits, size, options.home), disk: Arc::new(disk) })
    }
}

impl BlockDevice for Custom {
    fn common(&self) -> &Common {
        &self.common
    }

    fn open(&self, reactor: &Rc<Reactor>) -> Result<Box<dyn Channel>, DeviceError> {
        let traits = self.common.traits();
        let here =
            Here { disk: self.disk.clone(), block_size: traits.block_size as usize, flushes: traits.volatile_cache };
        at_once::open(reactor, &self.common, here)
    }
}

/// The disk on one reactor.
struct Here {
    disk: Arc<dyn Disk>,
    block_size: usize,
    /// A write that is to be durable needs a flush.
    flushes: bool,
}

impl AtOnce for Here {
    #[inline]
    fn read(&self, io: &mut Io) {
        let done = self.fill(io.offset, &mut io.data);
        answer(io, done);
    }

    #[inline]
    fn write(&self, io: &mut Io) {
        let done = match io.op {
            IoOp::Unmap => self.disk.unmap(io.offset, io.len),
            IoOp::WriteZeroes => self.disk.write_zeroes(io.offset, io.len),
            _ => self.take(io.offset, &io.data),
        };
        self.answer_durable(io, done);
    }

    fn flush(&self, io: &mut Io) {
        answer(io, self.disk.flush());
    }

    fn compare(&self, io: &mut Io) {
        let done = self.find_difference(io);
        answer(io, done);
    }

    fn compare_and_write(&self, io: &mut Io) {
        let len = io.len as usize;
        let done = self.find_difference(io).and_then(|()| self.store(io.offset, &io.data, len, len));
        self.answer_durable(io, done);
    }
}

#[inline]
fn answer(io: &mut Io, done: Result<(), IoStatus>) {
    if let Err(status) = done {
        // No failure at all: then the buffer of a read would go out as the disk has left it.
        io.status = if status == IoStatus::Success { IoStatus::DeviceError } else { status };
    }
}

impl Here {
    #[inline]
    fn answer_durable(&self, io: &mut Io, done: Result<(), IoStatus>) {
        let flushes = io.fua && self.flushes;
        answer(io, if flushes { done.and_then(|()| self.disk.flush()) } else { done });
    }

    /// Whether each piece of the data can be handed to the disk as it is.
    #[inline]
    fn is_plain(&self, data: &Segments) -> bool {
        data.iter().all(|segment| matches!(segment, Segment::Buf(buf) if buf.len() & (self.block_size - 1) == 0))
    }

    #[inline]
    fn fill(&self, mut at: u64, data: &mut Segments) -> Result<(), IoStatus> {
        if !self.is_plain(data) {
            return self.fill_pieces(at, data);
        }
        for segment in data.iter_mut() {
            if let Segment::Buf(buf) = segment {
                self.disk.read(at, buf)?;
            }
            at += segment.len() as u64;
        }
        Ok(())
    }

    /// Into memory that may only be copied to, or whose pieces are no whole blocks.
    fn fill_pieces(&self, offset: u64, data: &mut Segments) -> Result<(), IoStatus> {
        let len = data.bytes() as usize;
        let mut bounce = [0; BOUNCE];
        for at in (0..len).step_by(BOUNCE) {
            let piece = &mut bounce[..BOUNCE.min(len - at)];
            self.disk.read(offset + at as u64, piece)?;
            scatter::scatter(data, at, piece)?;
        }
        Ok(())
    }

    #[inline]
    fn take(&self, mut at: u64, data: &Segments) -> Result<(), IoStatus> {
        if !self.is_plain(data) {
            return self.store(at, data, 0, data.bytes() as usize);
        }
        for segment in data.iter() {
            if let Segment::Buf(buf) = segment {
                self.disk.write(at, buf)?;
            }
            at += segment.len() as u64;
        }
        Ok(())
    }

    /// Stores `len` bytes of the data, which begin at `from` of it.
    fn store(&self, offset: u64, data: &Segments, from: usize, len: usize) -> Result<(), IoStatus> {
        let mut bounce = [0; BOUNCE];
        for at in (0..len).step_by(BOUNCE) {
            let piece = &mut bounce[..BOUNCE.min(len - at)];
            scatter::gather(data, from + at, piece)?;
            self.disk.write(offset + at as u64, piece)?;
        }
        Ok(())
    }

    /// Compares the first `len` bytes of the data with the range.
    fn find_difference(&self, io: &mut Io) -> Result<(), IoStatus> {
        let len = io.len as usize;
        let mut bounce = [0; BOUNCE];
        for at in (0..len).step_by(BOUNCE) {
            let piece = &mut bounce[..BOUNCE.min(len - at)];
            self.disk.read(io.offset + at as u64, piece)?;
            if let Err(index) = scatter::compare(&io.data, at, piece) {
                io.info = (at + index) as u64;
                return Err(IoStatus::Miscompare);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::conformance;
    use crate::bdev::device::testing::{One, count_together, pattern, race_plain_writes};
    use hugepages::{Region, RegionOptions};
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    /// Memory, as a program would write it: words that reactors may touch at once. Sees to the contract being kept.
    struct Ram {
        words: Vec<AtomicU64>,
        block_size: u32,
        concurrent: bool,
        /// Has a cache, whose flushes are counted.
        cache: bool,
        flushes: AtomicU64,
        inside: AtomicBool,
    }

    impl Ram {
        fn new(size: usize, block_size: u32) -> Ram {
            Ram {
                words: (0..size / 8).map(|_| AtomicU64::new(0)).collect(),
                block_size,
                concurrent: true,
                cache: false,
                flushes: AtomicU64::new(0),
                inside: AtomicBool::new(false),
            }
        }

        fn range(&self, offset: u64, len: usize) -> &[AtomicU64] {
            let block = u64::from(self.block_size);
            assert!(len > 0 && offset.is_multiple_of(block) && (len as u64).is_multiple_of(block), "{offset}+{len}");
            &self.words[offset as usize / 8..][..len / 8]
        }

        fn enter(&self) {
            assert!(self.concurrent || !self.inside.swap(true, Ordering::Acquire), "two calls at once");
        }

        fn leave(&self) {
            self.inside.store(false, Ordering::Release);
        }
    }

    impl Disk for Ram {
        fn size(&self) -> u64 {
            self.words.len() as u64 * 8
        }
        fn block_size(&self) -> u32 {
            self.block_size
        }
        fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), IoStatus> {
            self.enter();
            for (word, bytes) in self.range(offset, into.len()).iter().zip(into.chunks_exact_mut(8)) {
                bytes.copy_from_slice(&word.load(Ordering::Relaxed).to_le_bytes());
            }
            self.leave();
            Ok(())
        }
        fn writable(&self) -> bool {
            true
        }
        fn write(&self, offset: u64, from: &[u8]) -> Result<(), IoStatus> {
            self.enter();
            for (word, bytes) in self.range(offset, from.len()).iter().zip(from.chunks_exact(8)) {
                word.store(u64::from_le_bytes(bytes.try_into().unwrap()), Ordering::Relaxed);
            }
            self.leave();
            Ok(())
        }
        fn volatile_cache(&self) -> bool {
            self.cache
        }
        fn flush(&self) -> Result<(), IoStatus> {
            self.flushes.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
        fn concurrent(&self) -> bool {
            self.concurrent
        }
    }

    /// Words tell their offset; one block is bad, and one says that it failed with success.
    struct Pattern;

    impl Disk for Pattern {
        fn size(&self) -> u64 {
            1 << 50
        }
        fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), IoStatus> {
            match offset {
                512 => return Err(IoStatus::MediaError),
                1024 => return Err(IoStatus::Success),
                _ => {}
            }
            for (at, word) in (offset..).step_by(8).zip(into.chunks_exact_mut(8)) {
                word.copy_from_slice(&at.to_le_bytes());
            }
            Ok(())
        }
    }

    fn device(disk: impl Disk, home: u16) -> Arc<dyn BlockDevice> {
        Arc::new(Custom::new(Options { name: "own".to_owned(), uuid: [8; 16], home }, disk).unwrap())
    }

    fn offsets(from: u64, len: u64) -> Vec<u8> {
        (from..from + len).step_by(8).flat_map(u64::to_le_bytes).collect()
    }

    #[test]
    fn a_disk_in_memory_conforms() {
        for block_size in [512, 4096] {
            conformance::run(|| device(Ram::new(8 << 20, block_size), 0), &conformance::Options::default());
        }
    }

    #[test]
    fn a_disk_that_takes_one_call_at_a_time_conforms() {
        let make = || device(Ram { concurrent: false, cache: true, ..Ram::new(8 << 20, 512) }, 0);
        conformance::run(make, &conformance::Options::default());
    }

    #[test]
    fn compare_and_write_is_one_step_for_all_reactors() {
        for home in [0, 1] {
            count_together(device(Ram::new(1 << 20, 512), home), 50);
            race_plain_writes(device(Ram::new(1 << 20, 512), home), 100);
        }
    }

    #[test]
    fn data_in_any_pieces_and_memory_comes_to_the_disk_as_whole_blocks() {
        let one = One::new(&device(Ram::new(1 << 20, 512), 0));
        let data = pattern(1, 11 * 512);
        for cuts in [&[][..], &[512, 1024], &[1, 700, 511], &[5000]] {
            one.write(512, &vec![0; data.len()]);
            let io = one.io(IoOp::Write, 512, data.len() as u64, &data, cuts);
            assert_eq!(one.end(io).status, IoStatus::Success);
            assert_eq!(one.read(0, 13 * 512), [vec![0; 512], data.clone(), vec![0; 512]].concat());
            let io = one.io(IoOp::Read, 512, data.len() as u64, &vec![1; data.len()], cuts);
            assert_eq!(one.end(io).data, data);
        }
        let memory = Region::new(1 << 16, RegionOptions::default()).unwrap();
        memory.write(33, &data);
        for (op, offset) in [(IoOp::Write, 33), (IoOp::Read, 20_001)] {
            let mut io = one.reactor.create_io().unwrap();
            io.prepare(op, 64 << 10, data.len() as u64);
            io.data.push(Segment::Region { region: memory.clone(), offset, len: data.len() as u32 });
            let handle = one.handle.clone();
            let io = one.reactor.run_until(async move { handle.execute(io).await });
            assert_eq!(io.status, IoStatus::Success);
            one.reactor.retire_io(io);
        }
        let mut back = vec![0; data.len()];
        memory.read(20_001, &mut back);
        assert_eq!(back, data);
        one.close();
    }

    #[test]
    fn a_disk_that_is_not_writable_is_read_only() {
        let device = device(Pattern, 0);
        assert!(device.common().traits().read_only);
        let one = One::new(&device);
        assert_eq!(one.read(1 << 45, 64 << 10), offsets(1 << 45, 64 << 10));
        assert_eq!(one.run(IoOp::Write, 0, 512, &[0; 512]).status, IoStatus::ReadOnly);
        assert_eq!(one.status(IoOp::Unmap, 0, 512), IoStatus::ReadOnly);
        assert_eq!(one.run(IoOp::CompareAndWrite, 0, 512, &[0; 1024]).status, IoStatus::ReadOnly);
        assert_eq!(one.run(IoOp::Compare, 4096, 512, &offsets(4096, 512)).status, IoStatus::Success);
        let mut other = offsets(4096, 512);
        other[77] ^= 1;
        let done = one.run(IoOp::Compare, 4096, 512, &other);
        assert_eq!((done.status, done.info), (IoStatus::Miscompare, 77));
        assert_eq!(one.status(IoOp::Flush, 0, 0), IoStatus::Success);
        assert_eq!(one.status(IoOp::Reset, 0, 0), IoStatus::Success);
        one.close();
    }

    #[test]
    fn errors_of_the_disk_are_those_of_the_io() {
        let one = One::new(&device(Pattern, 0));
        assert_eq!(one.run(IoOp::Read, 512, 512, &[0; 512]).status, IoStatus::MediaError);
        assert_eq!(one.run(IoOp::Compare, 512, 512, &[0; 512]).status, IoStatus::MediaError);
        assert_eq!(one.run(IoOp::Read, 1024, 512, &[0; 512]).status, IoStatus::DeviceError, "failed by success");
        one.close();
    }

    #[test]
    fn a_cache_is_flushed_for_what_is_to_be_durable() {
        for cache in [true, false] {
            let ram = Arc::new(Ram { cache, ..Ram::new(1 << 20, 512) });
            let one = One::new(&device(ram.clone(), 0));
            one.write(0, &[1; 512]);
            for (op, data) in [(IoOp::Write, 512), (IoOp::WriteZeroes, 0)] {
                let mut io = one.io(op, 0, 512, &vec![1; data], &[]);
                io.fua = true;
                assert_eq!(one.end(io).status, IoStatus::Success);
            }
            assert_eq!(ram.flushes.load(Ordering::Relaxed), if cache { 2 } else { 0 });
            assert_eq!(one.status(IoOp::Flush, 0, 0), IoStatus::Success);
            assert_eq!(ram.flushes.load(Ordering::Relaxed), if cache { 3 } else { 1 });
            one.close();
            assert_eq!(Arc::strong_count(&ram), 1, "the disk goes with its device");
        }
    }

    #[test]
    fn sizes_and_blocks_that_cannot_be_are_refused() {
        struct Odd(u64, u32);
        impl Disk for Odd {
            fn size(&self) -> u64 {
                self.0
            }
            fn block_size(&self) -> u32 {
                self.1
            }
            fn read(&self, _: u64, _: &mut [u8]) -> Result<(), IoStatus> {
                Ok(())
            }
        }
        let text = |size, block| {
            let options = Options { name: "odd".to_owned(), uuid: [0; 16], home: 0 };
            Custom::new(options, Odd(size, block)).err().unwrap().to_string()
        };
        assert_eq!(text(1 << 20, 1024), "volume \"odd\": blocks of 1024 bytes: blocks have 512 or 4096");
        for (size, block) in [(0, 512), (513, 512), (1 << 63, 512), (512, 4096)] {
            let expected =
                format!("volume \"odd\": {size} bytes: the size must be a multiple of the block size {block}, ");
            assert!(text(size, block).starts_with(&expected), "{}", text(size, block));
        }
        let error = device(Pattern, 0).grow(1 << 51).unwrap_err().to_string();
        assert_eq!(error, "volume \"own\": a custom volume cannot grow");
    }
}
