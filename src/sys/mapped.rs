//! A file in memory (tmpfs, ramfs), mapped for the kernel to copy to and from.
#![expect(unsafe_code, reason = "maps a file")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// Address space for so many times a file's length, for its growth: it costs nothing.
const RESERVE_FACTOR: usize = 4;

/// A mapping of a file which this process never touches: where the file has been cut short, or its file system is full, a copy by the
/// kernel fails with EFAULT, while an access from here would end the process.
#[derive(Debug)]
pub struct MappedFile {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: an address range that belongs to this value until it is dropped, and that only the kernel accesses.
unsafe impl Send for MappedFile {}
// SAFETY: as above.
unsafe impl Sync for MappedFile {}

impl MappedFile {
    /// Maps a file of `len` bytes from its beginning, and what may come behind its end.
    ///
    /// # Errors
    /// What mmap(2) says: ENOMEM where address space is limited.
    pub fn new(file: &File, len: usize) -> io::Result<MappedFile> {
        let attempt = |len: usize| {
            let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
            // SAFETY: a new mapping at an address of the kernel's choice.
            let start = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, file.as_raw_fd(), 0) };
            match NonNull::new(start.cast()) {
                Some(first) if start != libc::MAP_FAILED => Ok(MappedFile { start: first, len }),
                _ => Err(io::Error::last_os_error()),
            }
        };
        attempt(len.saturating_mul(RESERVE_FACTOR)).or_else(|_| attempt(len))
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of a range, if all of it is mapped; the file may end before.
    #[inline]
    pub(super) fn range(&self, offset: usize, len: usize) -> Option<usize> {
        (offset <= self.len && len <= self.len - offset).then(|| self.start.as_ptr().expose_provenance() + offset)
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, and no reference into it was ever made.
        let unmapped = unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert_eq!(unmapped, 0, "munmap: {}", io::Error::last_os_error());
    }
}
