//! The character device of a ublk device: descriptors of requests in shared memory, and the data of requests by copy.
#![expect(
    unsafe_code,
    reason = "maps descriptors that the kernel writes, and has the kernel copy to and from regions; prctl"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;

use hugepages::Region;

use super::mapped::MappedFile;
use crate::ublk::wire::{self, IoDesc};

/// linux/prctl.h.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// Tells the kernel that the calling thread serves disks: memory that it asks for is then not made free by writing to any, which may
/// be one that waits for this thread.
///
/// # Errors
/// What prctl(2) says of PR_SET_IO_FLUSHER: EPERM without CAP_SYS_RESOURCE, EINVAL before Linux 5.6.
pub fn serve_disks() -> io::Result<()> {
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: no pointers; the result is checked.
    if unsafe { libc::prctl(PR_SET_IO_FLUSHER, on, unused, unused, unused) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The descriptors of one queue, one for each tag, which the kernel writes.
#[derive(Debug)]
pub struct Descriptors {
    first: NonNull<IoDesc>,
    len: usize,
    depth: u16,
}

impl Descriptors {
    /// Maps the descriptors of queue `queue`, whose depth is `depth`. The kernel lets one process do so at a time.
    ///
    /// # Errors
    /// What mmap(2) says: EINVAL if the device has no such queue, or another depth.
    pub fn map(device: &Requests, queue: u16, depth: u16) -> io::Result<Descriptors> {
        let len = wire::descriptors_len(depth);
        let offset = libc::off_t::try_from(wire::descriptors_offset(queue)).map_err(io::Error::other)?;
        let fd = device.memory.as_raw_fd();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED | libc::MAP_POPULATE, fd, offset)
        };
        match NonNull::new(start.cast()) {
            Some(first) if start != libc::MAP_FAILED => Ok(Descriptors { first, len, depth }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The descriptor of a tag. It holds still from the completion that hands the request over until the commit of its result.
    ///
    /// # Panics
    /// If there is no such tag.
    #[inline]
    pub fn get(&self, tag: u16) -> IoDesc {
        assert!(tag < self.depth, "tag {tag} of a queue of depth {}", self.depth);
        // SAFETY: within the mapping, which has room for `depth` descriptors; any bytes are one. Volatile: the kernel writes it
        // between two calls.
        unsafe { self.first.add(usize::from(tag)).read_volatile() }
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and no reference into it is ever given out.
        let unmapped = unsafe { libc::munmap(self.first.as_ptr().cast(), self.len) };
        debug_assert_eq!(unmapped, 0, "munmap: {}", io::Error::last_os_error());
    }
}

/// An open character device, /dev/ublkcN: what reaches the data of requests. Clones are the same open file.
#[derive(Clone, Debug)]
pub struct Requests {
    memory: Arc<File>,
    /// What takes commands, if another file does.
    commands: Option<Arc<File>>,
}

impl Requests {
    /// Of an open character device.
    pub fn new(device: OwnedFd) -> Requests {
        Requests { memory: Arc::new(device.into()), commands: None }
    }

    /// Of two files that stand in for one: descriptors and data in `memory`, at the places that they have in a device, and
    /// `commands` for the ring.
    pub fn stand_in(memory: File, commands: File) -> Requests {
        Requests { memory: Arc::new(memory), commands: Some(Arc::new(commands)) }
    }

    /// Another descriptor of the same open file, for a ring.
    ///
    /// # Errors
    /// What dup(2) says.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(self.commands.as_ref().unwrap_or(&self.memory).try_clone()?.into())
    }

    /// The data of the request that `tag` of `queue` has in hand, `len` bytes.
    ///
    /// `place` is where the kernel has registered it in the table of buffers of this reactor's ring. The result is counted by an
    /// atomic: [`RequestData::renew`] makes it that of the next request.
    #[inline]
    pub fn data(&self, queue: u16, tag: u16, len: u32, place: Option<u16>) -> RequestData {
        RequestData { device: self.memory.clone(), position: wire::io_buf_position(queue, tag), len, place }
    }
}

/// The data of a request, or a part of it: pages that only the kernel reaches. A copy is one call and never waits for anything.
///
/// It means something from the completion that hands the request over until the commit of its result; at other times
/// copies fail.
#[derive(Clone, Debug)]
pub struct RequestData {
    device: Arc<File>,
    position: u64,
    len: u32,
    place: Option<u16>,
}

impl RequestData {
    /// Bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes it the data of another request of the same device, as [`Requests::data`].
    #[inline]
    pub fn renew(&mut self, queue: u16, tag: u16, len: u32, place: Option<u16>) {
        (self.position, self.len, self.place) = (wire::io_buf_position(queue, tag), len, place);
    }

    /// Whether the ring of its reactor reaches it, so that it can go to the kernel as it is.
    #[inline]
    pub fn is_registered(&self) -> bool {
        self.place.is_some()
    }

    /// The same on another reactor, whose ring does not reach it.
    pub fn unregistered(self) -> RequestData {
        RequestData { place: None, ..self }
    }

    /// Its place in the table of buffers of the ring, and its first byte in what is registered there.
    #[inline]
    pub(super) fn registered(&self) -> Option<(u16, u32)> {
        Some((self.place?, self.position as u32 & (wire::IO_BUF_MAX - 1)))
    }

    /// Copies bytes of a write from `at` on into all of `into`.
    ///
    /// # Errors
    /// What the kernel says: the request has gone, or is none that brings data.
    ///
    /// # Panics
    /// If there are not so many bytes.
    #[inline]
    pub fn take(&self, at: usize, into: &mut [u8]) -> io::Result<()> {
        self.device.read_exact_at(into, self.place(at, into.len()))
    }

    /// Copies all of `from` to the data of a read, from `at` on.
    ///
    /// # Errors
    /// As [`RequestData::take`]: the request is none that asks for data.
    ///
    /// # Panics
    /// If there are not so many bytes.
    #[inline]
    pub fn give(&self, at: usize, from: &[u8]) -> io::Result<()> {
        self.device.write_all_at(from, self.place(at, from.len()))
    }

    /// Copies `len` bytes of a write from `at` on into a region.
    ///
    /// # Errors
    /// As [`RequestData::take`].
    ///
    /// # Panics
    /// If there are not so many bytes, here or in the region.
    #[inline(always)]
    pub fn take_to(&self, at: usize, region: &Region, offset: usize, len: usize) -> io::Result<()> {
        let place = self.place(at, len);
        let target = region_range(region, offset, len);
        self.each(place, len, |fd, done, left, place| {
            // SAFETY: a range of the region, which the caller keeps; the kernel copies to it as any core may.
            unsafe { libc::pread(fd, std::ptr::with_exposed_provenance_mut(target + done), left, place) }
        })
    }

    /// Copies all of a write to a mapped file, from `offset` of it on; EFAULT if there is no memory for it, or no such place.
    ///
    /// # Errors
    /// As [`RequestData::take`].
    #[inline]
    pub fn take_to_file(&self, file: &MappedFile, offset: usize) -> io::Result<()> {
        let target = file.range(offset, self.len()).ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
        self.each(self.position, self.len(), |fd, done, left, place| {
            // SAFETY: a range of the mapping, which the caller keeps, and to which there are no references.
            unsafe { libc::pread(fd, std::ptr::with_exposed_provenance_mut(target + done), left, place) }
        })
    }

    /// Copies all of a read from a mapped file, from `offset` of it on; EFAULT if there is no such place.
    ///
    /// # Errors
    /// As [`RequestData::give`].
    #[inline]
    pub fn give_from_file(&self, file: &MappedFile, offset: usize) -> io::Result<()> {
        let source = file.range(offset, self.len()).ok_or_else(|| io::Error::from_raw_os_error(libc::EFAULT))?;
        self.each(self.position, self.len(), |fd, done, left, place| {
            // SAFETY: as in `take_to_file`; the kernel only reads it.
            unsafe { libc::pwrite(fd, std::ptr::with_exposed_provenance(source + done), left, place) }
        })
    }

    /// Copies `len` bytes of a region to the data of a read, from `at` on.
    ///
    /// # Errors
    /// As [`RequestData::give`].
    ///
    /// # Panics
    /// If there are not so many bytes, here or in the region.
    #[inline(always)]
    pub fn give_from(&self, at: usize, region: &Region, offset: usize, len: usize) -> io::Result<()> {
        let place = self.place(at, len);
        let source = region_range(region, offset, len);
        self.each(place, len, |fd, done, left, place| {
            // SAFETY: as in `take_to`; the kernel only reads it.
            unsafe { libc::pwrite(fd, std::ptr::with_exposed_provenance(source + done), left, place) }
        })
    }

    /// Calls `copy` until all bytes are copied: with the descriptor, how many are, how many are left, and their position.
    #[inline(always)]
    fn each(&self, place: u64, len: usize, copy: impl Fn(i32, usize, usize, libc::off_t) -> isize) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            match copy(self.device.as_raw_fd(), done, len - done, (place + done as u64).cast_signed()) {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                moved if moved > 0 => done += moved.unsigned_abs(),
                _ => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }

    /// Cuts off the first `at` bytes, which are returned.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn split_to(&mut self, at: usize) -> RequestData {
        assert!(at <= self.len(), "{at} of {} bytes", self.len);
        let front = RequestData { len: at as u32, ..self.clone() };
        self.position += at as u64;
        self.len -= at as u32;
        front
    }

    /// Joins what follows it in the same request; hands it back if it does not.
    ///
    /// # Errors
    /// If `next` is another request's, or lies elsewhere in it.
    pub fn unsplit(&mut self, next: RequestData) -> Result<(), RequestData> {
        if !Arc::ptr_eq(&self.device, &next.device) || self.position + u64::from(self.len) != next.position {
            return Err(next);
        }
        self.len += next.len;
        Ok(())
    }

    fn place(&self, at: usize, len: usize) -> u64 {
        let all = self.len();
        assert!(at <= all && len <= all - at, "{len} bytes at {at} of a request of {all}");
        self.position + at as u64
    }
}

/// The address of a checked range.
#[inline]
fn region_range(region: &Region, offset: usize, len: usize) -> usize {
    assert!(len <= region.len().saturating_sub(offset), "{len} bytes at {offset} of a region of {}", region.len());
    region.address_of(offset)
}
