//! A volume in a regular file or on a block device, by the reactor's own ring.
//!
//! ```text
//!  submit --+-- aligned read, admitted aligned write ---> one Op per segment, its own buffer -------------+
//!           |    (other memory: one Op on a bounce buffer)                                               |
//!           +-- flush ---> Op::Sync                                                                      +--> complete
//!           +-- compare, unmap, zeroes, what came back short ---> plain helpers, through a bounce buffer -+
//!           +-- extents -----------------------------------------> plain helpers, which ask a thread ------+
//!           +-- compare and write, blocks below the unit of direct I/O ---> exclusive helpers, with a grant
//! ```
//! - *Direct I/O* (O_DIRECT) where the file system has it: data goes between arena and device without a copy. Else the
//!   page cache is used, and a note says why. The unit of direct I/O may be larger than a block of the volume: such writes
//!   read, change and write the whole unit, and exclude other writes to it on all reactors meanwhile.
//! - *Acknowledged* is not durable until a flush (`volatile_cache`); a write with FUA is written with RWF_DSYNC. After a
//!   failed fdatasync the kernel may have dropped what it could not write and report success to the next one, so
//!   from the first failure on every flush of the volume fails, until it is opened again.
//! - *In memory* (tmpfs, ramfs) a file has a channel of its own, without the ring: see `memory`.
//! - *Extents*: the holes that lseek(2) tells of, asked for on a thread: see `holes`. A block device, and what was opened elsewhere, is all
//!   mapped.
//! - *Holes*: a sparse file costs a worker thread of the kernel per write that must allocate (the ring cannot do it without
//!   waiting), as do fdatasync and fallocate. Only reads and writes of allocated blocks are the fast path.
//! - *One opener*: a lock on the open file description keeps other processes and volumes out, O_EXCL does for a block device.
//! - A file that someone shortened gives an error where it ends, and no bytes; in memory, through ublk, where its last page does.

mod channel;
mod holes;
mod memory;
mod open;
#[cfg(test)]
mod sim_tests;
mod slow;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::bdev::{BlockDevice, Channel, Common, DeviceError, DeviceLimits, OpSet, Traits, Unaddressed, at_once};
use crate::reactor::Reactor;
use crate::reactor::io::IoOp;
use crate::sys::descriptor::Descriptor;
use channel::FileChannel;
use holes::Holes;
use memory::InMemory;
use open::Backing;

/// Largest unmap or write zeroes done in one step. Where the kernel has no way of its own zeros are written, a few
/// hundred milliseconds for this much.
const ZEROES_MAX: u64 = 256 << 20;

/// Bytes that a helper moves at a time; the unit of direct I/O is at most that.
const BOUNCE_LEN: usize = 32 << 10;

/// What a file volume is made from.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uuid: [u8; 16],
    /// A regular file or block device; a regular file that is missing is created sparse.
    pub path: PathBuf,
    /// Size in bytes, a multiple of the block size; that of the file if it is there.
    pub size: u64,
    /// 512 or 4096.
    pub block_size: u32,
    /// A multiple of the block size.
    pub physical_block_size: u32,
    /// Direct I/O where the file system can, and is not in memory.
    pub direct: bool,
    /// The reactor that orders its compare and writes.
    pub home: u16,
}

/// What reads, writes and zeroing must be aligned to, in bytes; powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Addresses of memory.
    pub memory: u32,
    /// Offsets and lengths; at most 32 KiB.
    pub unit: u32,
    /// Offsets and lengths of fallocate.
    pub zeroes: u32,
    /// What the medium writes without a read.
    pub physical: u32,
    /// What the file system allocates, a hint.
    pub allocation: u32,
    /// Reads and writes bypass the page cache.
    pub direct: bool,
}

/// What all channels of a file know together.
#[derive(Debug, Default)]
struct Health {
    /// An fdatasync failed: what it should have made durable may be lost, and the kernel says so only once.
    sync_failed: AtomicBool,
}

impl Health {
    fn sync_failed(&self) -> bool {
        self.sync_failed.load(Ordering::Relaxed)
    }

    fn fail_sync(&self) {
        self.sync_failed.store(true, Ordering::Relaxed);
    }
}

/// See the module's head.
#[derive(Debug)]
pub struct File {
    common: Common,
    backing: Backing,
    geometry: Geometry,
    health: Arc<Health>,
    holes: Option<Holes>,
    note: Option<String>,
}

impl File {
    /// Opens the file or block device, or creates the file. For control threads: it blocks.
    ///
    /// # Errors
    /// With path and remedy: a size that differs, a missing directory, something that is neither file nor block device, a file in
    /// use, and what the kernel says.
    pub fn create(options: Options) -> Result<File, DeviceError> {
        let opened = open::open(&options)?;
        let holes = opened.backing.sparse().map(Holes::start).transpose().map_err(|error| DeviceError::Io {
            what: format!("volume \"{}\": a thread that looks for holes", options.name),
            error,
        })?;
        Ok(File::new(options, opened.backing, opened.geometry, holes, opened.note))
    }

    /// A file of `options.size` bytes that is open already, such as a disk of a simulated world. It cannot grow; path and
    /// `direct` of the options are not used.
    pub fn over(options: Options, descriptor: Descriptor, geometry: Geometry) -> File {
        File::new(options, Backing::Open(descriptor), geometry, None, None)
    }

    fn new(options: Options, backing: Backing, geometry: Geometry, holes: Option<Holes>, note: Option<String>) -> File {
        debug_assert!(geometry.unit as usize <= BOUNCE_LEN);
        let allocation = geometry.allocation.max(geometry.zeroes);
        let physical = options.physical_block_size.max(geometry.unit).max(geometry.physical);
        // Smaller blocks than those of direct I/O go through a bounce buffer.
        let whole = geometry.unit <= options.block_size;
        let in_memory = matches!(backing, Backing::Memory(..));
        let unaddressed = if whole && !in_memory { Unaddressed::Passes } else { Unaddressed::Copies };
        let traits = Traits {
            name: options.name,
            driver: "file",
            uuid: options.uuid,
            block_size: options.block_size,
            physical_block_size: physical,
            ops: if holes.is_some() { OpSet::ALL } else { OpSet::ALL.without(IoOp::Extents) },
            read_only: false,
            volatile_cache: true,
            keeps_nothing: false,
            ephemeral: false,
            unaddressed,
            concurrent: true,
            limits: DeviceLimits {
                zeroes_max: if in_memory { at_once::ZEROES_MAX } else { ZEROES_MAX },
                data_align: geometry.memory,
                write_granularity: physical.max(allocation),
                unmap_granularity: physical.max(allocation),
                ..DeviceLimits::default()
            },
            zones: None,
        };
        let common = Common::new(traits, options.size, options.home);
        File { common, backing, geometry, health: Arc::default(), holes, note }
    }

    /// Why direct I/O was asked for and is not used, a sentence for the log.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// What its I/O is aligned to.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }
}

impl BlockDevice for File {
    fn common(&self) -> &Common {
        &self.common
    }

    fn open(&self, reactor: &Rc<Reactor>) -> Result<Box<dyn Channel>, DeviceError> {
        if let Backing::Memory(shared, _) = &self.backing {
            return at_once::open(
                reactor,
                &self.common,
                InMemory::new(reactor, &self.common, shared, self.holes.clone()),
            );
        }
        let descriptor = self.backing.descriptor().map_err(|error| DeviceError::Io {
            what: format!("volume \"{}\": another descriptor of its file", self.common.traits().name),
            error,
        })?;
        let (geometry, health, holes) = (self.geometry, &self.health, self.holes.clone());
        Ok(Box::new(FileChannel::open(reactor, &self.common, descriptor, geometry, health, holes)?))
    }

    fn grow(&self, size: u64) -> Result<(), DeviceError> {
        self.common.check_growth(size)?;
        let unit = self.geometry.unit;
        if !size.is_multiple_of(u64::from(unit)) {
            return Err(DeviceError::Refused(format!(
                "volume \"{}\": {size} bytes are no multiple of the unit of direct I/O on its file, {unit}",
                self.common.traits().name
            )));
        }
        self.backing.grow(&self.common.traits().name, size)?;
        self.common.set_size(size);
        Ok(())
    }
}
