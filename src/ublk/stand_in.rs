//! A stand-in for the kernel's side of a queue, to show what the door itself costs where the kernel has no ublk.
//!
//! Commands go to /dev/null, which completes each of them at once: with 0, and so with a request. Descriptors and data lie in a
//! memory file, at the places that they have in a device. So each tag has its next request, the same again, as soon as it has
//! committed the last: a queue that is always full. Everything on this side is the real thing: queue, slots, ring, copies.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, TryRecvError};

use rustix::fs::{MemfdFlags, memfd_create};
use zerocopy::IntoBytes;

use super::queue::{Queue, QueueOptions, Travel};
use super::wire::{self, IoDesc, IoOp};
use crate::bdev::BlockDevice;
use crate::reactor::Reactor;
use crate::sys::ublk::Requests;

/// What the queue is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Tags.
    pub depth: u16,
    /// [`IoOp::READ`], [`IoOp::WRITE`] or [`IoOp::FLUSH`].
    pub op: IoOp,
    /// Bytes of each request, whole sectors.
    pub len: u32,
}

/// A queue on a reactor that is always full, until it is told to stop.
pub struct StandIn {
    leaving: Arc<AtomicBool>,
    faults: Receiver<String>,
    memory: File,
}

impl StandIn {
    /// Opens the queue on `reactor`; tag n asks for the n-th `len` bytes of `device`.
    ///
    /// # Errors
    /// If the kernel has no memory files, or the device refuses.
    pub fn open(reactor: &Rc<Reactor>, device: &Arc<dyn BlockDevice>, load: Load) -> Result<StandIn, String> {
        let made = files(load).map_err(|error| error.to_string())?;
        let memory = made.0.try_clone().map_err(|error| error.to_string())?;
        let (sender, faults) = mpsc::channel();
        let leaving = Arc::<AtomicBool>::default();
        let options = QueueOptions {
            device: device.clone(),
            device_number: 0,
            requests: Requests::stand_in(made.0, made.1),
            number: 0,
            depth: load.depth,
            travel: Travel::ByServer,
            read_only: false,
            leaving: leaving.clone(),
            faults: sender,
        };
        Queue::open(reactor, options)?;
        Ok(StandIn { leaving, faults, memory })
    }

    /// The memory that holds the data of tag `tag`, and the position of its first byte there.
    pub fn data(&self, tag: u16) -> (&File, u64) {
        (&self.memory, wire::io_buf_position(0, tag))
    }

    /// Lets each tag end with the request that it has.
    pub fn stop(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// Whether all tags have ended.
    ///
    /// # Errors
    /// What one of them could not do.
    pub fn has_ended(&self) -> Result<bool, String> {
        match self.faults.try_recv() {
            Ok(fault) => Err(fault),
            Err(TryRecvError::Empty) => Ok(false),
            Err(TryRecvError::Disconnected) => Ok(true),
        }
    }
}

/// Memory with the descriptors of a load, and what takes commands.
fn files(load: Load) -> io::Result<(File, File)> {
    let memory = File::from(memfd_create("ublk stand-in", MemfdFlags::CLOEXEC)?);
    memory.set_len(wire::io_buf_position(0, load.depth))?;
    let sectors = load.len / 512;
    for tag in 0..load.depth {
        let descriptor = IoDesc {
            op_flags: u32::from(load.op.0),
            nr_sectors: if load.op == IoOp::FLUSH { 0 } else { sectors },
            start_sector: u64::from(tag) * u64::from(sectors),
            addr: 0,
        };
        memory.write_all_at(descriptor.as_bytes(), u64::from(tag) * size_of::<IoDesc>() as u64)?;
        // Memory is there before it is measured.
        memory.write_all_at(&vec![0; load.len as usize], wire::io_buf_position(0, tag))?;
    }
    Ok((memory, OpenOptions::new().read(true).write(true).open("/dev/null")?))
}

#[cfg(test)]
pub(super) mod tests;
