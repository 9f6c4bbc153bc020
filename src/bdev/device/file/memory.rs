//! A file in memory, on tmpfs or ramfs: I/O on it is a copy by a call, within its submission.
//!
//! Such a file refuses I/O that must not wait, so a ring would hand each one to a worker thread of the kernel: a wake and two switches
//! of threads for a copy that takes less than any of them. It never waits for a device either, except for memory that was swapped out,
//! as a RAM volume does. What it does wait for is the lock that the kernel has for each file: writes from buffers, and unmaps, of several
//! reactors to the same file go one after the other, and whoever else writes to the file holds them up.
//!
//! The data of a request of the kernel's has no address: one call copies it between its pages and a mapping of the file, without that
//! lock. To read where the file has a hole would make a page there, so a read takes that way only where a page is known to be, and else
//! two calls. The kernel tells the time of the last change by writes of its own alone, so a flush sets it after writes to the mapping. And
//! a mapping ends with a page: of a file that somebody shortened, the rest of its last page is read as zeros through it, and written in vain.

use std::cell::{Cell, RefCell};
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hugepages::{Region, RegionOptions};

use super::BOUNCE_LEN;
use super::channel::status_of;
use super::holes::Holes;
use crate::bdev::at_once::AtOnce;
use crate::bdev::{Common, scatter};
use crate::reactor::Reactor;
use crate::reactor::io::{Io, IoOp, IoStatus, Segment};
use crate::sys::file;
use crate::sys::mapped::MappedFile;
use crate::sys::tx::zeroes;

/// What is known to be there or not: the smallest page that a kernel has.
const PAGE: usize = 4096;
/// Pages looked up at a time.
const PAGES: usize = 64;

/// What all channels of such a file share.
#[derive(Debug)]
pub(super) struct MemoryFile {
    pub(super) file: Arc<fs::File>,
    mapped: Option<Mapped>,
    /// The mapping was written to since the time of the last change was set.
    touched: AtomicBool,
}

#[derive(Debug)]
struct Mapped {
    file: MappedFile,
    /// A byte for each page: not 0 if the file has memory there. A page that goes while another reactor finds it may be made again,
    /// with zeros.
    present: Region,
}

impl MemoryFile {
    /// Of a file of `len` bytes. Without the address space for a mapping all goes by two calls.
    pub(super) fn new(file: Arc<fs::File>, len: u64) -> MemoryFile {
        let mapped = usize::try_from(len).ok().and_then(|len| {
            let mapped = MappedFile::new(&file, len).ok()?;
            let present = Region::new(mapped.len().div_ceil(PAGE), RegionOptions::default()).ok()?;
            Some(Mapped { file: mapped, present })
        });
        MemoryFile { file, mapped, touched: AtomicBool::new(false) }
    }
}

impl Mapped {
    /// The pages that a range touches, those of them that are mapped.
    #[inline]
    fn pages(&self, offset: u64, len: usize) -> Range<usize> {
        let (first, end) = (offset as usize / PAGE, (offset as usize + len).div_ceil(PAGE));
        first.min(self.present.len())..end.min(self.present.len())
    }

    /// Whether all pages of a range are known to be there.
    #[inline]
    fn has(&self, offset: u64, len: usize) -> bool {
        let pages = self.pages(offset, len);
        let mut known = [0; PAGES];
        for first in pages.clone().step_by(PAGES) {
            let known = &mut known[..PAGES.min(pages.end - first)];
            self.present.read(first, known);
            if known.contains(&0) {
                return false;
            }
        }
        !pages.is_empty()
    }

    /// All pages of a range are there.
    #[inline]
    fn note_written(&self, offset: u64, len: usize) {
        if self.has(offset, len) {
            return;
        }
        let pages = self.pages(offset, len);
        for first in pages.clone().step_by(PAGES) {
            self.present.write(first, &[1; PAGES][..PAGES.min(pages.end - first)]);
        }
    }

    /// So are those of what was read that are not all zeros.
    fn note_read(&self, offset: u64, bytes: &[u8]) {
        let mut rest = bytes;
        let mut at = offset;
        while !rest.is_empty() {
            let (page, more) = rest.split_at(rest.len().min(PAGE - at as usize % PAGE));
            if page != zeroes(page.len()) {
                self.note_written(at, page.len());
            }
            (at, rest) = (at + page.len() as u64, more);
        }
    }

    /// Nothing is known any more of the pages of a range.
    fn forget(&self, offset: u64, len: u64) {
        let pages = self.pages(offset, len as usize);
        self.present.zero(pages.start, pages.len());
    }
}

/// What a volume in such a file is on one reactor.
pub(super) struct InMemory {
    reactor: Rc<Reactor>,
    common: Common,
    shared: Arc<MemoryFile>,
    holes: Option<Holes>,
    /// What cannot be copied at once goes through it.
    bounce: RefCell<Box<[u8]>>,
    /// Whether fallocate has not refused to punch holes.
    can_punch: Cell<bool>,
}

impl InMemory {
    pub(super) fn new(
        reactor: &Rc<Reactor>,
        common: &Common,
        shared: &Arc<MemoryFile>,
        holes: Option<Holes>,
    ) -> InMemory {
        InMemory {
            reactor: reactor.clone(),
            common: common.clone(),
            shared: shared.clone(),
            holes,
            bounce: RefCell::new(vec![0; BOUNCE_LEN].into()),
            can_punch: Cell::new(true),
        }
    }

    /// The end of the file inside the volume is somebody's who shortened it.
    #[inline]
    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), IoStatus> {
        self.shared.file.read_exact_at(into, offset).map_err(status)
    }

    #[inline]
    fn write_at(&self, offset: u64, from: &[u8]) -> Result<(), IoStatus> {
        self.shared.file.write_all_at(from, offset).map_err(status)?;
        if let Some(mapped) = &self.shared.mapped {
            mapped.note_written(offset, from.len());
        }
        Ok(())
    }

    fn read_all(&self, io: &mut Io) -> Result<(), IoStatus> {
        let mut at = io.offset;
        let mut bounce = self.bounce.borrow_mut();
        for segment in io.data.iter_mut() {
            let len = segment.len();
            if let Segment::Buf(buf) = segment {
                self.read_at(at, buf)?;
            } else {
                for start in (0..len).step_by(BOUNCE_LEN) {
                    let piece = &mut bounce[..BOUNCE_LEN.min(len - start)];
                    self.read_at(at + start as u64, piece)?;
                    if let Some(mapped) = &self.shared.mapped {
                        mapped.note_read(at + start as u64, piece);
                    }
                    match segment {
                        Segment::Request(request) => request.give(start, piece).map_err(|_| IoStatus::Gone)?,
                        Segment::Region { region, offset, .. } => region.write(*offset as usize + start, piece),
                        Segment::Buf(_) => unreachable!("read in place"),
                    }
                }
            }
            at += len as u64;
        }
        Ok(())
    }

    /// Stores the last `len` bytes of the data, which begin at `from` of it.
    fn store(&self, io: &Io, from: usize) -> Result<(), IoStatus> {
        let mut bounce = self.bounce.borrow_mut();
        scatter::each(&io.data, from, io.len as usize, |segment, piece| {
            let at = io.offset + piece.at as u64;
            if let Segment::Buf(buf) = segment {
                return self.write_at(at, &buf[piece.start..piece.start + piece.len]);
            }
            for start in (0..piece.len).step_by(BOUNCE_LEN) {
                let bytes = &mut bounce[..BOUNCE_LEN.min(piece.len - start)];
                match segment {
                    Segment::Request(request) => {
                        request.take(piece.start + start, bytes).map_err(|_| IoStatus::Gone)?;
                    }
                    Segment::Region { region, offset, .. } => {
                        region.read(*offset as usize + piece.start + start, bytes)
                    }
                    Segment::Buf(_) => unreachable!("written from its place"),
                }
                self.write_at(at + start as u64, bytes)?;
            }
            Ok(())
        })
    }

    /// Gives memory back, where that works: such a file cannot keep zeros allocated but by writing them.
    fn zero(&self, offset: u64, len: u64) -> Result<(), IoStatus> {
        if self.can_punch.get() {
            match file::punch_hole(&self.shared.file, offset, len) {
                Ok(()) => {
                    if let Some(mapped) = &self.shared.mapped {
                        mapped.forget(offset, len);
                    }
                    return Ok(());
                }
                Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => self.can_punch.set(false),
                Err(error) => return Err(status(error)),
            }
        }
        for start in (0..len).step_by(BOUNCE_LEN) {
            self.write_at(offset + start, zeroes(BOUNCE_LEN.min((len - start) as usize)))?;
        }
        Ok(())
    }

    fn find_difference(&self, io: &mut Io) -> Result<(), IoStatus> {
        let mut bounce = self.bounce.borrow_mut();
        for start in (0..io.len as usize).step_by(BOUNCE_LEN) {
            let bytes = &mut bounce[..BOUNCE_LEN.min(io.len as usize - start)];
            self.read_at(io.offset + start as u64, bytes)?;
            if let Err(index) = scatter::compare(&io.data, start, bytes) {
                io.info = (start + index) as u64;
                return Err(IoStatus::Miscompare);
            }
        }
        Ok(())
    }
}

fn status(error: io::Error) -> IoStatus {
    error.raw_os_error().map_or(IoStatus::DeviceError, status_of)
}

#[inline]
fn note(io: &mut Io, result: Result<(), IoStatus>) {
    if let Err(status) = result {
        io.status = status;
    }
}

impl AtOnce for InMemory {
    #[inline(always)]
    fn read(&self, io: &mut Io) {
        if let Some(mapped) = &self.shared.mapped
            && let Some(Segment::Request(request)) = io.data.sole()
            && mapped.has(io.offset, request.len())
            && request.give_from_file(&mapped.file, io.offset as usize).is_ok()
        {
            return;
        }
        let result = self.read_all(io);
        if result.is_err() {
            // Part of it may have been filled: nothing of that is anybody's answer.
            scatter::clear(&mut io.data);
        }
        note(io, result);
    }

    #[inline(always)]
    fn write(&self, io: &mut Io) {
        if let Some(mapped) = &self.shared.mapped
            && io.op == IoOp::Write
            && let Some(Segment::Request(request)) = io.data.sole()
            && request.take_to_file(&mapped.file, io.offset as usize).is_ok()
        {
            self.shared.touched.store(true, Ordering::Relaxed);
            return mapped.note_written(io.offset, request.len());
        }
        let result = if io.op == IoOp::Write { self.store(io, 0) } else { self.zero(io.offset, io.len) };
        note(io, result);
    }

    /// There is nothing that memory could be made durable on; but whoever copies the file by its time is to see that it has changed.
    fn flush(&self, io: &mut Io) {
        if self.shared.touched.swap(false, Ordering::Relaxed) {
            note(io, file::touch(&self.shared.file).map_err(status));
        }
    }

    fn compare(&self, io: &mut Io) {
        let result = self.find_difference(io);
        note(io, result);
    }

    async fn extents(&self, io: &mut Io) {
        match &self.holes {
            Some(holes) => holes.tell(&self.reactor, &self.common, io).await,
            None => io.status = IoStatus::Unsupported,
        }
    }

    fn compare_and_write(&self, io: &mut Io) {
        let result = self.find_difference(io).and_then(|()| self.store(io, io.len as usize));
        note(io, result);
    }
}
