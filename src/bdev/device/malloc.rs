//! A volume in RAM: one [`Region`] that every reactor copies to and from. Everything but a contended compare and write ends
//! within its submission.
//!
//! Memory comes with the first write of a page, so a volume of any size opens at once; unmap and write zeroes give whole
//! pages back. Nothing survives the process. What is mapped the kernel knows: no write keeps an account of it.
//!
//! A read or compare that races a write of the same block on another reactor may see parts of both, as the contract of the
//! block layer allows, unless the write is atomic; writes that race a compare and write wait for it, and reads too for an atomic
//! write (see [`crate::bdev::at_once`]). Nothing outlives a loss of power here, so atomic means what is seen.

use std::rc::Rc;
use std::sync::Arc;

use hugepages::{Region, RegionOptions};

use crate::bdev::at_once::{self, AtOnce, ZEROES_MAX};
use crate::bdev::scatter::{self, BOUNCE};
use crate::bdev::{
    BlockDevice, Channel, Common, DeviceError, DeviceLimits, ExtentState, ExtentWriter, OpSet, Traits, Unaddressed,
};
use crate::limits::TRANSFER_MAX;
use crate::reactor::Reactor;
use crate::reactor::io::{Io, IoCell, IoOp, IoStatus, Segment};
use crate::sys::pagemap::{PageUse, Pagemap};

/// From this many bytes on write zeroes gives pages back instead of filling them: 4 to 5 us for this much against 2, but a host that
/// zeroes its whole volume must not make it take its whole size in memory. An unmap gives back each whole page.
const DISCARD_MIN: u64 = 16 << 10;

/// Pages that the kernel is asked about at a time: some 20 us, most of it where each was only ever read, and has to be looked at.
const PAGES: usize = 128;

/// How far one report of extents looks: beyond that it is asked for again.
const REPORT_MAX: u64 = 256 << 20;

/// What a RAM volume is made from.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: [u8; 16],
    /// Size in bytes, a multiple of the block size.
    pub size: u64,
    /// 512 or 4096.
    pub block_size: u32,
    /// A multiple of the block size.
    pub physical_block_size: u32,
    /// Ask the kernel for transparent hugepages. Random 4 KiB accesses to 512 MiB took 0.50 instead of 0.63 us with them,
    /// but the first write to each 2 MiB clears all of it within the submission: a stall of milliseconds (5 were seen)
    /// where memory is fragmented or a hypervisor has to find it, against 2.5 us for a small page.
    pub hugepages: bool,
    /// The reactor that orders its compare and writes.
    pub home: u16,
}

/// See the module's head.
#[derive(Debug)]
pub struct Malloc {
    common: Common,
    region: Region,
    /// `None` where there is no /proc.
    pagemap: Option<Arc<Pagemap>>,
}

impl Malloc {
    /// A RAM volume that reads as zeros.
    ///
    /// # Errors
    /// If the address space cannot be had.
    pub fn new(options: Options) -> Result<Malloc, DeviceError> {
        let region_options = RegionOptions { hugepages: options.hugepages, ..RegionOptions::default() };
        let region = Region::new(options.size as usize, region_options)
            .map_err(|error| DeviceError::Refused(format!("volume \"{}\": {error}", options.name)))?;
        let pagemap = Pagemap::open().ok().map(Arc::new);
        let traits = Traits {
            name: options.name,
            driver: "malloc",
            uuid: options.uuid,
            block_size: options.block_size,
            physical_block_size: options.physical_block_size,
            ops: if pagemap.is_some() { OpSet::ALL } else { OpSet::ALL.without(IoOp::Extents) },
            read_only: false,
            volatile_cache: false,
            keeps_nothing: false,
            ephemeral: true,
            unaddressed: Unaddressed::Copies,
            concurrent: true,
            limits: DeviceLimits {
                zeroes_max: ZEROES_MAX,
                verify_max: u64::MAX,
                unmap_granularity: 4096,
                // One transfer: a write is carried out by one call.
                atomic_max: TRANSFER_MAX as u64,
                ..DeviceLimits::default()
            },
            zones: None,
        };
        Ok(Malloc { common: Common::new(traits, options.size, options.home), region, pagemap })
    }
}

impl BlockDevice for Malloc {
    fn common(&self) -> &Common {
        &self.common
    }

    fn open(&self, reactor: &Rc<Reactor>) -> Result<Box<dyn Channel>, DeviceError> {
        let memory = Memory {
            reactor: reactor.clone(),
            common: self.common.clone(),
            region: self.region.clone(),
            pagemap: self.pagemap.clone(),
        };
        at_once::open(reactor, &self.common, memory)
    }

    fn grow(&self, size: u64) -> Result<(), DeviceError> {
        self.common.check_growth(size)?;
        let refused = |error| DeviceError::Refused(format!("volume \"{}\": {error}", self.common.traits().name));
        self.region.grow(size as usize).map_err(refused)?;
        self.common.set_size(size);
        Ok(())
    }
}

struct Memory {
    reactor: Rc<Reactor>,
    common: Common,
    region: Region,
    pagemap: Option<Arc<Pagemap>>,
}

impl AtOnce for Memory {
    #[inline(always)]
    fn read(&self, io: &mut Io) {
        let IoCell { status, data, offset, .. } = &mut **io;
        let mut at = *offset as usize;
        // As nearly all come. The fewer calls there are below the submission, the better: a processor that comes back from the
        // kernel, which copies to a request, does not know any more where they return to.
        match data.sole_mut() {
            Some(Segment::Buf(buf)) => return self.region.read(at, buf),
            Some(Segment::Request(request)) => {
                if request.give_from(0, &self.region, at, request.len()).is_err() {
                    *status = IoStatus::Gone;
                }
                return;
            }
            _ => {}
        }
        for segment in data.iter_mut() {
            match segment {
                Segment::Buf(buf) => self.region.read(at, buf),
                Segment::Region { region, offset, len } => {
                    copy(&self.region, at, region, *offset as usize, *len as usize);
                }
                Segment::Request(request) => {
                    if request.give_from(0, &self.region, at, request.len()).is_err() {
                        *status = IoStatus::Gone;
                        return;
                    }
                }
            }
            at += segment.len();
        }
    }

    fn lend(&self, offset: u64) -> Option<(Region, usize)> {
        Some((self.region.clone(), offset as usize))
    }

    #[inline(always)]
    fn write(&self, io: &mut Io) {
        if io.op == IoOp::Write {
            let at = io.offset as usize;
            match io.data.sole() {
                Some(Segment::Buf(buf)) => self.region.write(at, buf),
                Some(Segment::Request(request)) => {
                    if request.take_to(0, &self.region, at, request.len()).is_err() {
                        io.status = IoStatus::Gone;
                    }
                }
                _ => self.store(io, 0),
            }
        } else if io.op == IoOp::Unmap || io.len >= DISCARD_MIN {
            self.region.discard(io.offset as usize, io.len as usize);
        } else {
            self.region.zero(io.offset as usize, io.len as usize);
        }
    }

    fn flush(&self, _: &mut Io) {}

    /// Compares the first `len` bytes of the data with the range.
    fn compare(&self, io: &mut Io) {
        let at = io.offset as usize;
        let compared = scatter::each(&io.data, 0, io.len as usize, |segment, piece| {
            match segment {
                Segment::Buf(buf) => self.region.compare(at + piece.at, &buf[piece.start..piece.start + piece.len]),
                Segment::Region { region, offset, .. } => {
                    differs(&self.region, at + piece.at, region, *offset as usize + piece.start, piece.len)
                }
                Segment::Request(request) => unreachable!("a comparison with {request:?}"),
            }
            .map_err(|index| piece.at + index)
        });
        if let Err(index) = compared {
            io.status = IoStatus::Miscompare;
            io.info = index as u64;
        }
    }

    async fn extents(&self, io: &mut Io) {
        let Some(pagemap) = &self.pagemap else {
            io.status = IoStatus::Unsupported;
            return;
        };
        let page = self.region.page_size() as u64;
        let end = self.common.size().min(io.offset + REPORT_MAX);
        let mut writer = ExtentWriter::new(io);
        'report: while writer.end() < end {
            let offset = writer.end();
            let pages = (end.div_ceil(page) - offset / page).min(PAGES as u64) as usize;
            let mut states = [ExtentState::MAPPED; PAGES];
            let states = &mut states[..pages];
            // What cannot be told may hold data.
            if self.look(pagemap, offset, states).is_err() {
                states.fill(ExtentState::MAPPED);
            }
            for state in states {
                let at = writer.end();
                if !writer.push(((at / page + 1) * page).min(end) - at, *state) {
                    break 'report;
                }
            }
            self.reactor.yield_now().await;
        }
        writer.finish();
    }

    fn compare_and_write(&self, io: &mut Io) {
        self.compare(io);
        if io.status == IoStatus::Success {
            self.store(io, io.len as usize);
        }
    }
}

impl Memory {
    /// What is in the pages from the one that `offset` is in on. A page that was only ever read may be one that the kernel has for all
    /// such, which is told from others that are shared by its zeros.
    fn look(&self, pagemap: &Pagemap, offset: u64, into: &mut [ExtentState]) -> std::io::Result<()> {
        let page = self.region.page_size();
        let first = offset as usize / page * page;
        let mut uses = [PageUse::None; PAGES];
        let uses = &mut uses[..into.len()];
        pagemap.read(self.region.address_of(first) / page, uses)?;
        for (index, (state, is)) in into.iter_mut().zip(uses).enumerate() {
            let at = first + index * page;
            let holds = match is {
                PageUse::None => false,
                PageUse::Own => true,
                PageUse::Shared => !self.is_zero(at, page.min(self.region.len() - at)),
            };
            *state = if holds { ExtentState::MAPPED } else { ExtentState::DEALLOCATED };
        }
        Ok(())
    }

    fn is_zero(&self, at: usize, len: usize) -> bool {
        (at..at + len).step_by(BOUNCE).all(|start| {
            let zeros = &[0; BOUNCE][..BOUNCE.min(at + len - start)];
            self.region.compare(start, zeros).is_ok()
        })
    }

    /// Stores the last `len` bytes of the data, which begin at `from` of it.
    #[inline]
    fn store(&self, io: &mut Io, from: usize) {
        let at = io.offset as usize;
        let stored = scatter::each(&io.data, from, io.len as usize, |segment, piece| {
            match segment {
                Segment::Buf(buf) => self.region.write(at + piece.at, &buf[piece.start..piece.start + piece.len]),
                Segment::Region { region, offset, .. } => {
                    copy(region, *offset as usize + piece.start, &self.region, at + piece.at, piece.len);
                }
                Segment::Request(request) => {
                    let stored = request.take_to(piece.start, &self.region, at + piece.at, piece.len);
                    return stored.map_err(|_| IoStatus::Gone);
                }
            }
            Ok(())
        });
        if let Err(status) = stored {
            io.status = status;
        }
    }
}

/// Copies between two regions, through private memory: both may change meanwhile.
fn copy(source: &Region, from: usize, target: &Region, to: usize, len: usize) {
    let mut bounce = [0; BOUNCE];
    for at in (0..len).step_by(BOUNCE) {
        let piece = &mut bounce[..BOUNCE.min(len - at)];
        source.read(from + at, piece);
        target.write(to + at, piece);
    }
}

/// The index of the first byte that differs between two regions.
fn differs(a: &Region, at_a: usize, b: &Region, at_b: usize, len: usize) -> Result<(), usize> {
    let mut bounce = [0; BOUNCE];
    for at in (0..len).step_by(BOUNCE) {
        let piece = &mut bounce[..BOUNCE.min(len - at)];
        b.read(at_b + at, piece);
        a.compare(at_a + at, piece).map_err(|index| at + index)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::device::testing::{One, count_together, pattern, race_plain_writes, tears};
    use std::sync::Arc;

    fn device(size: u64, home: u16) -> Arc<dyn BlockDevice> {
        Arc::new(
            Malloc::new(Options {
                name: "ram".to_owned(),
                uuid: [0; 16],
                size,
                block_size: 512,
                physical_block_size: 512,
                hugepages: false,
                home,
            })
            .unwrap(),
        )
    }

    #[test]
    fn data_comes_back_from_where_it_was_put_and_only_there() {
        let one = One::new(&device(4 << 20, 0));
        assert_eq!(one.read(0, 1 << 20), vec![0; 1 << 20], "never written");
        let data = pattern(1, 5 * 512);
        let io = one.io(IoOp::Write, 1024, data.len() as u64, &data, &[1, 700, 511, 512]);
        assert_eq!(one.end(io).status, IoStatus::Success);
        let mut expected = vec![0; 16 * 512];
        expected[1024..1024 + data.len()].copy_from_slice(&data);
        assert_eq!(one.read(0, 16 * 512), expected);
        let scattered = one.io(IoOp::Read, 0, 16 * 512, &vec![1; 16 * 512], &[3, 1021, 4096, 5]);
        assert_eq!(one.end(scattered).data, expected);
        let last = pattern(2, 512);
        one.write((4 << 20) - 512, &last);
        assert_eq!(one.read((4 << 20) - 512, 512), last);
        assert_eq!(one.status(IoOp::Flush, 0, 0), IoStatus::Success);
        assert_eq!(one.status(IoOp::Reset, 0, 0), IoStatus::Success);
        one.close();
    }

    #[test]
    fn zeroed_ranges_read_zeros_and_nothing_beside_them_changes() {
        let one = One::new(&device(4 << 20, 0));
        let data = pattern(3, 1 << 20);
        for op in [IoOp::Unmap, IoOp::WriteZeroes] {
            for (at, len) in [(512, 512), (0, 4096), (1536, 64 << 10), (4096, 128 << 10), (512, (1 << 20) - 1024)] {
                one.write(0, &data);
                assert_eq!(one.status(op, at as u64, len as u64), IoStatus::Success);
                let mut expected = data.clone();
                expected[at..at + len].fill(0);
                assert!(one.read(0, 1 << 20) == expected, "{op:?} {at}+{len}");
            }
        }
        one.close();
    }

    #[test]
    fn compare_names_the_first_difference_and_compare_and_write_stores_only_on_equality() {
        let one = One::new(&device(1 << 20, 0));
        let (old, new) = (pattern(4, 2048), pattern(5, 2048));
        one.write(512, &old);
        assert_eq!(one.run(IoOp::Compare, 512, 2048, &old).status, IoStatus::Success);
        let mut other = old.clone();
        other[1999] ^= 1;
        let io = one.io(IoOp::Compare, 512, 2048, &other, &[100, 1500]);
        let done = one.end(io);
        assert_eq!((done.status, done.info), (IoStatus::Miscompare, 1999));
        let io = one.io(IoOp::CompareAndWrite, 512, 2048, &[other, new.clone()].concat(), &[777]);
        let done = one.end(io);
        assert_eq!((done.status, done.info), (IoStatus::Miscompare, 1999));
        assert_eq!(one.read(512, 2048), old);
        let io = one.io(IoOp::CompareAndWrite, 512, 2048, &[old, new.clone()].concat(), &[1, 2047, 5]);
        assert_eq!(one.end(io).status, IoStatus::Success);
        assert_eq!(one.read(512, 2048), new);
        assert_eq!(one.read(0, 512), vec![0; 512]);
        one.close();
    }

    #[test]
    fn memory_of_a_region_is_read_written_and_compared() {
        let one = One::new(&device(1 << 20, 0));
        let guest = Region::new(1 << 16, RegionOptions::default()).unwrap();
        let data = pattern(6, 9 * 512);
        guest.write(33, &data);
        let io = |op, offset| {
            let mut io = one.reactor.create_io().unwrap();
            io.prepare(op, 1024, data.len() as u64);
            io.data.push(Segment::Region { region: guest.clone(), offset, len: data.len() as u32 });
            io
        };
        let end = |io| {
            let handle = one.handle.clone();
            let io = one.reactor.run_until(async move { handle.execute(io).await });
            let end = (io.status, io.info);
            one.reactor.retire_io(io);
            end
        };
        assert_eq!(end(io(IoOp::Write, 33)).0, IoStatus::Success);
        assert_eq!(one.read(1024, data.len()), data);
        assert_eq!(end(io(IoOp::Read, 20_001)).0, IoStatus::Success);
        let mut back = vec![0; data.len()];
        guest.read(20_001, &mut back);
        assert_eq!(back, data);
        assert_eq!(end(io(IoOp::Compare, 33)), (IoStatus::Success, 0));
        guest.write(33 + 4500, &[!data[4500]]);
        assert_eq!(end(io(IoOp::Compare, 33)), (IoStatus::Miscompare, 4500));
        one.close();
    }

    #[test]
    fn a_volume_of_a_tebibyte_opens_at_once_and_is_usable_to_its_end() {
        let size = 1 << 40;
        let one = One::new(&device(size, 0));
        let data = pattern(7, 4096);
        one.write(size - 4096, &data);
        assert_eq!(one.read(size - 4096, 4096), data);
        assert_eq!(one.status(IoOp::Unmap, size - 4096, 8192), IoStatus::OutOfRange);
        one.close();
    }

    #[test]
    fn pages_that_hold_nothing_are_told_to_be_deallocated() {
        const D: ExtentState = ExtentState::DEALLOCATED;
        const M: ExtentState = ExtentState::MAPPED;
        let one = One::new(&device(1 << 30, 0));
        let told = |offset| {
            let done = one.run(IoOp::Extents, offset, 4096, &[1; 4096]);
            assert_eq!(done.status, IoStatus::Success);
            crate::bdev::extents(&done.data).map(|e| (e.offset.get(), e.len.get(), e.state)).collect::<Vec<_>>()
        };
        assert_eq!(told(512), [(512, REPORT_MAX, D)], "it looks so far, and no farther");
        one.read(0, 1 << 20);
        assert_eq!(told(0), [(0, REPORT_MAX, D)], "reading makes nothing");
        one.write(8192 + 512, &[1; 512]);
        one.write(16384, &[1; 8192]);
        let rest = (24576, REPORT_MAX - 24576, D);
        assert_eq!(told(0), [(0, 8192, D), (8192, 4096, M), (12288, 4096, D), (16384, 8192, M), rest]);
        assert_eq!(told(9216)[..2], [(9216, 3072, M), (12288, 4096, D)], "from the middle of a page on");
        assert_eq!(one.status(IoOp::Unmap, 16384 + 512, 8192 - 512), IoStatus::Success);
        assert_eq!(told(16384)[0], (16384, 4096, M), "a part of a page frees nothing");
        assert_eq!(one.status(IoOp::WriteZeroes, 16384, 512), IoStatus::Success);
        assert_eq!(one.status(IoOp::Unmap, 16384, 4096), IoStatus::Success);
        assert_eq!(told(12288), [(12288, REPORT_MAX, D)]);
        one.write((1 << 30) - 512, &[0; 512]);
        let last = told((1 << 30) - 8192);
        assert_eq!(
            last,
            [((1 << 30) - 8192, 4096, D), ((1 << 30) - 4096, 4096, M)],
            "zeros that were written are there"
        );
        // More pieces than fit.
        for page in (0..64).step_by(2) {
            one.write(page << 12, &[1; 512]);
        }
        let done = one.run(IoOp::Extents, 0, 100, &[1; 100]);
        let first: Vec<_> = crate::bdev::extents(&done.data).map(|e| (e.offset.get(), e.state)).collect();
        assert_eq!(first, [(0, M), (4096, D), (8192, M), (12288, D)]);
        one.close();
    }

    #[test]
    fn growth_keeps_what_is_there_and_adds_zeros() {
        let device = device(1 << 20, 0);
        let one = One::new(&device);
        let data = pattern(8, 512);
        one.write((1 << 20) - 512, &data);
        assert_eq!(one.run(IoOp::Read, 1 << 20, 512, &[0; 512]).status, IoStatus::OutOfRange);
        device.grow(3 << 20).unwrap();
        assert_eq!(one.read((1 << 20) - 512, 1024), [data, vec![0; 512]].concat());
        one.write((3 << 20) - 512, &[9; 512]);
        let text = |size| device.grow(size).unwrap_err().to_string();
        assert_eq!(text(1 << 20), "volume \"ram\": it has 3145728 bytes and cannot shrink to 1048576");
        assert_eq!(text((3 << 20) + 1), "volume \"ram\": 3145729 bytes are no multiple of its block size 512");
        assert_eq!(device.common().size(), 3 << 20);
        one.close();
    }

    #[test]
    fn a_home_that_does_not_exist_is_refused() {
        let reactor = crate::reactor::start::solo(32 << 20).unwrap();
        let error = crate::bdev::Handle::open(&reactor, &device(1 << 20, 1)).err().unwrap();
        assert_eq!(error.to_string(), "volume \"ram\": its home is reactor 1, and there are 1");
        reactor.shut_down();
    }

    #[test]
    fn atomic_writes_are_seen_whole_by_all_reactors() {
        for home in [0, 1] {
            let (torn, met) = tears(&device(1 << 20, home), true, 300);
            assert!(!torn && met > 20, "torn: {torn}, writes of the other met: {met}");
        }
    }

    /// What the test above looks for is there to be found.
    #[test]
    fn plain_writes_are_seen_in_parts() {
        assert!(tears(&device(1 << 20, 0), false, 100_000).0);
    }

    #[test]
    fn what_is_lent_is_counted_and_never_beyond_the_volume() {
        let one = One::new(&device(1 << 20, 0));
        let data = pattern(3, 8 * 512);
        let io = one.io(IoOp::Write, 1024, data.len() as u64, &data, &[]);
        assert_eq!(one.end(io).status, IoStatus::Success);
        let reactor = one.handle.reactor();
        let mut io = reactor.create_io().unwrap();
        let mut lend = |op, offset, len: u64| {
            io.data.clear();
            io.data.push_buf(reactor.pool().alloc(len.max(1) as usize).unwrap());
            io.prepare(op, offset, len);
            one.handle.lend(&mut io)
        };
        let mut lent = lend(IoOp::Read, 1024, data.len() as u64).unwrap();
        lent.region.read(lent.at, &mut lent.spare);
        assert_eq!(lent.spare[..], data);
        assert!(lend(IoOp::Read, 0, 1 << 20).is_some());
        for (op, offset, len) in [
            (IoOp::Read, 0, 0),
            (IoOp::Read, 100, 512),
            (IoOp::Read, 512, 100),
            (IoOp::Read, (1 << 20) - 512, 1024),
            (IoOp::Read, 1 << 20, 512),
            (IoOp::Read, u64::MAX - 511, 512),
            (IoOp::Write, 0, 512),
        ] {
            assert!(lend(op, offset, len).is_none(), "{op:?} of {len} at {offset}");
        }
        io.data.clear();
        let reads = one.handle.stats().count(IoOp::Read);
        assert_eq!((reads.ios, reads.bytes, reads.errors), (2, (1 << 20) + 8 * 512, 0));
        reactor.retire_io(io);
    }

    #[test]
    fn compare_and_write_counts_from_two_reactors() {
        count_together(device(1 << 20, 0), 50);
        count_together(device(1 << 20, 1), 50);
    }

    #[test]
    fn compare_and_write_undoes_no_plain_write_of_another_reactor() {
        race_plain_writes(device(1 << 20, 0), 200);
        race_plain_writes(device(1 << 20, 1), 200);
    }
}
