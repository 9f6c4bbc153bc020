//! Where a file has data and where it has holes.
//!
//! lseek(2) tells, and may wait for the disk, as the file system reads what it knows of the file, and for the lock that the kernel has for
//! each file. So a thread of the volume's asks, and the reactor goes on:
//!
//! ```text
//!   helper task: Holes::tell -- Ask --> the thread: survey
//!                     ^---------- Remote::send -------|
//! ```
//! What was allocated without being written (zeroed by fallocate, and kept) reads as zeros and counts as a hole.

use std::fs;
use std::future::poll_fn;
use std::io;
use std::sync::{Arc, OnceLock, Weak, mpsc};
use std::task::Poll;

use super::channel::status_of;
use crate::bdev::{Common, ExtentState, ExtentWriter};
use crate::reactor::io::{Io, IoStatus};
use crate::reactor::mailbox::Remote;
use crate::reactor::{Reactor, TaskId};
use crate::sys::file::{next_data, next_hole};

/// What is known of a file: bytes one after the other, and what is there.
type Found = Vec<(u64, ExtentState)>;

/// Asks the thread of a volume. The thread ends with the last of these.
#[derive(Clone, Debug)]
pub(super) struct Holes {
    asks: mpsc::Sender<Ask>,
    /// Not kept open, nor locked, by this.
    file: Weak<fs::File>,
}

#[derive(Debug)]
struct Ask {
    file: Arc<fs::File>,
    what: What,
    answer: Arc<OnceLock<io::Result<Found>>>,
    from: Remote,
    task: TaskId,
}

#[derive(Clone, Copy, Debug)]
struct What {
    /// First byte, at a block.
    offset: u64,
    /// Of the volume.
    size: u64,
    block: u64,
    /// Most extents that are of use.
    most: usize,
}

impl Holes {
    /// Starts the thread of a volume of that name.
    ///
    /// # Errors
    /// If there is no thread to be had.
    pub(super) fn start(file: &Arc<fs::File>) -> io::Result<Holes> {
        let (asks, asked) = mpsc::channel::<Ask>();
        std::thread::Builder::new().name("file holes".to_owned()).spawn(move || {
            for Ask { file, what, answer, from, task } in asked {
                let found = survey(&file, what);
                // Before the answer: whoever hears it may close the volume and open the file anew.
                drop(file);
                if answer.set(found).is_ok() {
                    from.send(Box::new(move |reactor| reactor.wake(task)));
                }
            }
        })?;
        Ok(Holes { asks, file: Arc::downgrade(file) })
    }

    /// Carries out [`crate::reactor::io::IoOp::Extents`], for a helper task.
    pub(super) async fn tell(&self, reactor: &Reactor, common: &Common, io: &mut Io) {
        let (size, block) = (common.size(), u64::from(common.traits().block_size));
        let mut writer = ExtentWriter::new(io);
        let what = What { offset: writer.end(), size, block, most: writer.room() };
        let answer = Arc::new(OnceLock::new());
        let sent = self.file.upgrade().is_some_and(|file| {
            let (answer, task) = (answer.clone(), reactor.current_task());
            self.asks.send(Ask { file, what, answer, from: reactor.remote(), task }).is_ok()
        });
        if !sent {
            io.status = IoStatus::DeviceError;
            return;
        }
        poll_fn(|_| if answer.get().is_some() { Poll::Ready(()) } else { Poll::Pending }).await;
        match answer.get() {
            Some(Ok(found)) => {
                let _ = found.iter().all(|(len, state)| writer.push(*len, *state));
                writer.finish();
            }
            Some(Err(error)) => io.status = error.raw_os_error().map_or(IoStatus::DeviceError, status_of),
            None => unreachable!("it was waited for"),
        }
    }
}

/// What is in the blocks of a volume in `file`. A block that is data in part is mapped.
fn survey(file: &fs::File, What { mut offset, size, block, most }: What) -> io::Result<Found> {
    // Whoever shortened the file left blocks that cannot be read, which are no zeros.
    let len = (file.metadata()?.len() / block * block).min(size);
    let mut found = Found::new();
    while offset < size && found.len() < most {
        let (end, state) = match offset < len {
            true => or_mapped(extent_at(file, offset, len, block), size)?,
            false => (size, ExtentState::MAPPED),
        };
        found.push((end - offset, state));
        offset = end;
    }
    Ok(found)
}

/// A file system that has no holes, or does not tell of them, has data everywhere.
fn or_mapped(extent: io::Result<(u64, ExtentState)>, size: u64) -> io::Result<(u64, ExtentState)> {
    match extent {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {
            Ok((size, ExtentState::MAPPED))
        }
        extent => extent,
    }
}

/// The end of what begins at `offset`, which is before `len`, whole blocks of the file.
fn extent_at(file: &fs::File, offset: u64, len: u64, block: u64) -> io::Result<(u64, ExtentState)> {
    let Some(data) = next_data(file, offset)?.filter(|data| *data < len) else {
        return Ok((len, ExtentState::DEALLOCATED));
    };
    let start = data / block * block;
    if start > offset {
        return Ok((start, ExtentState::DEALLOCATED));
    }
    let end = next_hole(file, data)?.next_multiple_of(block).min(len);
    // A hole that came between the two questions: the block is looked at once more by whoever asks.
    Ok((end.max(offset + block), ExtentState::MAPPED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::file::punch_hole;
    use std::os::unix::fs::FileExt;

    const D: ExtentState = ExtentState::DEALLOCATED;
    const M: ExtentState = ExtentState::MAPPED;

    fn file(size: u64) -> (fs::File, What) {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.set_len(size).unwrap();
        (file, What { offset: 0, size, block: 512, most: 100 })
    }

    #[test]
    fn holes_and_data_follow_each_other_to_the_end() {
        const K: u64 = 1 << 10;
        let (file, what) = file(1 << 20);
        assert_eq!(survey(&file, what).unwrap(), [(1024 * K, D)]);
        file.write_all_at(&[1; 8192], 64 << 10).unwrap();
        file.write_all_at(&[1; 1], (1 << 20) - 1).unwrap();
        assert_eq!(survey(&file, what).unwrap(), [(64 * K, D), (8 * K, M), (948 * K, D), (4 * K, M)]);
        assert_eq!(survey(&file, What { most: 2, ..what }).unwrap(), [(64 * K, D), (8 * K, M)]);
        let from = |offset| survey(&file, What { offset, ..what }).unwrap();
        assert_eq!(from(68 * K), [(4 * K, M), (948 * K, D), (4 * K, M)]);
        assert_eq!(from(65 * K + 512)[0], (6 * K + 512, M));
        assert_eq!(from(1023 * K), [(K, M)]);
        punch_hole(&file, 64 << 10, 4096).unwrap();
        assert_eq!(from(0)[..2], [(68 * K, D), (4 * K, M)]);
    }

    #[test]
    fn a_block_that_is_data_in_part_is_mapped() {
        let (file, what) = file(1 << 20);
        file.write_all_at(&[1; 4096], 20 << 10).unwrap();
        let found = survey(&file, What { block: 16 << 10, ..what }).unwrap();
        assert_eq!(found, [(16 << 10, D), (16 << 10, M), ((1 << 20) - (32 << 10), D)]);
        // From the middle of what is data on, in blocks that begin before it.
        let found = survey(&file, What { offset: 16 << 10, block: 16 << 10, ..what }).unwrap();
        assert_eq!(found[0], (16 << 10, M));
    }

    #[test]
    fn what_somebody_cut_off_is_not_told_to_be_zeros() {
        let (file, what) = file(1 << 20);
        file.set_len((512 << 10) + 100).unwrap();
        assert_eq!(survey(&file, what).unwrap(), [(512 << 10, D), (512 << 10, M)]);
        assert_eq!(survey(&file, What { offset: 768 << 10, ..what }).unwrap(), [(256 << 10, M)]);
    }

    #[test]
    fn a_file_system_that_tells_of_no_holes_has_none() {
        let untold = fs::File::open("/proc/self/status").unwrap();
        let asked = extent_at(&untold, 0, 4096, 512);
        assert_eq!(asked.as_ref().err().and_then(io::Error::raw_os_error), Some(libc::EINVAL));
        assert_eq!(or_mapped(asked, 1 << 20).unwrap(), (1 << 20, M));
        assert!(or_mapped(Err(io::Error::from_raw_os_error(libc::EIO)), 1 << 20).is_err());
    }
}
