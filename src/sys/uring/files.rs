//! The table of descriptors of one ring, registered with the kernel where that works.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use io_uring::{IoUring, squeue, types};

use crate::sys::limits::RING_FILES;
use crate::sys::op::FileId;

#[derive(Debug, Default)]
struct Slot {
    fd: Option<OwnedFd>,
    generation: u32,
    fixed: bool,
}

/// Owns the descriptors; index and generation name them.
#[derive(Debug)]
pub(super) struct Files {
    slots: Vec<Slot>,
    free: Vec<u32>,
    registered: bool,
}

impl Files {
    pub(super) fn new(registered: bool) -> Files {
        Files { slots: Vec::new(), free: Vec::new(), registered }
    }

    pub(super) fn add(&mut self, ring: &IoUring, fd: OwnedFd) -> FileId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let fixed = self.registered && index < RING_FILES && update(ring, index, fd.as_raw_fd());
        let slot = &mut self.slots[index as usize];
        slot.fd = Some(fd);
        slot.fixed = fixed;
        FileId { index, generation: slot.generation }
    }

    /// Closes the descriptor; `false` if the handle was stale.
    pub(super) fn remove(&mut self, ring: &IoUring, file: FileId) -> bool {
        let Some(slot) = self.slots.get_mut(file.index as usize) else {
            return false;
        };
        if slot.generation != file.generation || slot.fd.is_none() {
            return false;
        }
        if slot.fixed {
            update(ring, file.index, -1);
        }
        slot.fd = None;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(file.index);
        true
    }

    /// The descriptor itself. `None`: a stale handle.
    pub(super) fn descriptor(&self, file: FileId) -> Option<&OwnedFd> {
        self.slots.get(file.index as usize).filter(|slot| slot.generation == file.generation)?.fd.as_ref()
    }

    /// What to put into a submission entry: the number and the flag that says which kind it is. `None`: a stale handle.
    #[inline]
    pub(super) fn target(&self, file: FileId) -> Option<(types::Fd, squeue::Flags)> {
        let slot = self.slots.get(file.index as usize)?;
        if slot.generation != file.generation {
            return None;
        }
        if slot.fixed {
            return Some((types::Fd(file.index as RawFd), squeue::Flags::FIXED_FILE));
        }
        Some((types::Fd(slot.fd.as_ref()?.as_raw_fd()), squeue::Flags::empty()))
    }
}

fn update(ring: &IoUring, index: u32, fd: RawFd) -> bool {
    ring.submitter().register_files_update(index, &[fd]).is_ok()
}
