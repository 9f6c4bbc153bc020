//! Files and block devices as plain descriptors, before they belong to a ring. For control threads: these calls may block.
#![expect(unsafe_code, reason = "statx, ioctl and fcntl calls that the standard library does not have")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::SeekFrom;

use super::predecessor::outlast;

/// What statfs(2) says of ramfs.
const RAMFS_MAGIC: libc::c_long = 0x8584_58F6;

/// What O_DIRECT asks of each read and write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectAlign {
    /// Of the address, in bytes.
    pub memory: u32,
    /// Of offset and length, in bytes.
    pub offset: u32,
}

/// Sector sizes of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sectors {
    /// Smallest unit that can be addressed, in bytes.
    pub logical: u32,
    /// Smallest unit that is written without a read, in bytes.
    pub physical: u32,
}

/// Opens for reading and writing.
///
/// `exclusive` claims a block device: EBUSY if it is mounted or claimed by someone else, a killed predecessor given time.
///
/// # Errors
/// What open(2) says; EINVAL for `direct` on a file system that has no direct I/O.
pub fn open(path: &Path, direct: bool, exclusive: bool) -> io::Result<File> {
    let direct = if direct { libc::O_DIRECT } else { 0 };
    let exclusive = if exclusive { libc::O_EXCL } else { 0 };
    // Never O_NONBLOCK: the ring would give back EAGAIN instead of waiting in the kernel.
    let attempt = || OpenOptions::new().read(true).write(true).custom_flags(direct | exclusive).open(path);
    if exclusive == 0 { attempt() } else { outlast(libc::EBUSY, attempt) }
}

/// Creates a file that its owner alone may use.
///
/// # Errors
/// What open(2) says; EEXIST if it is there.
pub fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
}

/// Makes a new name durable.
///
/// # Errors
/// What fsync(2) of the directory says.
pub fn sync_directory_of(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Keeps other users of the same file out until it is closed, dup(2)s included: an open file description lock on all of
/// it, exclusive. `false` if somebody has a lock that conflicts, another volume of this process included; a killed predecessor
/// is given time to lose its own.
///
/// # Errors
/// What fcntl(2) says otherwise: ENOLCK where the file system has no locks.
pub fn lock(file: &File) -> io::Result<bool> {
    let lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    let locked = outlast(libc::EAGAIN, || {
        // SAFETY: the lock is a valid struct flock that the call only reads.
        match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    });
    match locked {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What direct I/O on this file asks for: `None` if the kernel does not say, `Some(None)` if it says that there is none.
///
/// # Errors
/// What statx(2) says.
pub fn direct_align(file: &File) -> io::Result<Option<Option<DirectAlign>>> {
    // SAFETY: struct statx is plain integers; all zeros is valid.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: an empty path that ends with a zero, and a structure that is valid for writes of its own size.
    let done = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &raw mut stat)
    };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    if stat.stx_mask & libc::STATX_DIOALIGN == 0 {
        return Ok(None);
    }
    let align = DirectAlign { memory: stat.stx_dio_mem_align, offset: stat.stx_dio_offset_align };
    Ok(Some((align.memory != 0 && align.offset != 0).then_some(align)))
}

/// Has an open file use the page cache from now on; its lock and claim stay.
///
/// # Errors
/// What fcntl(2) says.
pub fn stop_direct(file: &File) -> io::Result<()> {
    // SAFETY: no pointers; the result is checked.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    // SAFETY: as above.
    if flags < 0 || unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags & !libc::O_DIRECT) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether the file lives in memory only, where each byte is reached at once and direct I/O means nothing. One on hugetlbfs does, too, but
/// cannot be written by write(2).
///
/// # Errors
/// What fstatfs(2) says.
pub fn is_in_memory(file: &File) -> io::Result<bool> {
    // SAFETY: struct statfs is plain integers; all zeros is valid.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the structure is valid for writes of its own size.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(matches!(stat.f_type, libc::TMPFS_MAGIC | RAMFS_MAGIC))
}

/// Makes a range read as zeros by giving its blocks back; the file keeps its length. A reactor may do so with a file in memory.
///
/// # Errors
/// What fallocate(2) says; EOPNOTSUPP where the file system has no holes.
pub fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let (offset, len) = (offset.cast_signed(), len.cast_signed());
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    loop {
        // SAFETY: no pointers; the result is checked.
        if unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, len) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Makes now the time of the file's last change.
///
/// # Errors
/// What futimens(2) says.
pub fn touch(file: &File) -> io::Result<()> {
    let times = [libc::UTIME_OMIT, libc::UTIME_NOW].map(|what| libc::timespec { tv_sec: 0, tv_nsec: what });
    // SAFETY: two times, which the call only reads.
    if unsafe { libc::futimens(file.as_raw_fd(), times.as_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sector sizes of a block device.
///
/// # Errors
/// What ioctl(2) says; ENOTTY for what is no block device.
pub fn sectors(device: &File) -> io::Result<Sectors> {
    let (mut logical, mut physical): (libc::c_int, libc::c_uint) = (0, 0);
    // SAFETY: BLKSSZGET stores one int.
    if unsafe { libc::ioctl(device.as_raw_fd(), libc::BLKSSZGET, &raw mut logical) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: BLKPBSZGET stores one unsigned int.
    if unsafe { libc::ioctl(device.as_raw_fd(), libc::BLKPBSZGET, &raw mut physical) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Sectors { logical: logical as u32, physical })
}

/// Reads the first `align.offset` bytes into memory aligned as asked: whether reads really work that way.
///
/// # Errors
/// What pread(2) says: EINVAL if the file asks for more.
pub fn try_direct_read(file: &File, align: DirectAlign) -> io::Result<()> {
    let (memory, len) = (align.memory as usize, align.offset as usize);
    let mut bytes = vec![0; len + memory];
    let skip = bytes.as_ptr().align_offset(memory);
    file.read_at(&mut bytes[skip..skip + len], 0).map(drop)
}

/// Where at `offset` or behind it the next data is; `None` if only a hole follows. May read from the disk.
///
/// # Errors
/// What lseek(2) says: EINVAL where the file system does not tell.
pub fn next_data(file: &File, offset: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(at) => Ok(Some(at)),
        Err(rustix::io::Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Where at `offset` or behind it the next hole is; the end of the file is one. May read from the disk.
///
/// # Errors
/// As [`next_data`]; ENXIO for an offset that is not in the file.
pub fn next_hole(file: &File, offset: u64) -> io::Result<u64> {
    Ok(rustix::fs::seek(file, SeekFrom::Hole(offset))?)
}
