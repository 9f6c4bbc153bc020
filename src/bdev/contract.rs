//! The contract of a block device: what it is, what it can do, and its channels.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::task::Poll;

use hugepages::Region;

use super::zoned::Zones;
use crate::limits::TRANSFER_MAX;
use crate::reactor::Reactor;
use crate::reactor::io::{Io, IoOp};
use crate::util::Losses;

/// A set of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpSet(u32);

impl OpSet {
    /// All that a device without zones can do.
    pub const ALL: OpSet = OpSet((1 << IoOp::ZoneAppend as u32) - 1);

    /// The set and all operations of zones.
    pub const fn with_zones(self) -> OpSet {
        let all = (1 << IoOp::ALL.len()) - 1;
        OpSet(self.0 | (all & !OpSet::ALL.0))
    }

    /// The set without `op`.
    pub const fn without(self, op: IoOp) -> OpSet {
        OpSet(self.0 & !(1 << op as u32))
    }

    /// Whether `op` is in it.
    #[inline]
    pub const fn has(self, op: IoOp) -> bool {
        self.0 & (1 << op as u32) != 0
    }
}

/// What a device asks of the I/Os it gets. The block layer splits what is larger; doors lay out memory accordingly.
#[derive(Clone, Copy, Debug)]
pub struct DeviceLimits {
    /// Largest read, write, compare in bytes.
    pub transfer_max: u64,
    /// Largest unmap or write zeroes in bytes, done in one step.
    pub zeroes_max: u64,
    /// Largest verify in bytes that the device carries out itself. What is larger comes to it in pieces; below a block it gets none,
    /// and all reads of the range instead. The same follows on each reactor where it has refused one as unsupported, unless it takes
    /// all at once, which `u64::MAX` says.
    pub verify_max: u64,
    /// Largest compare and write in bytes that is done in one step, whatever the other limits are; 0: what they allow.
    pub compare_and_write_max: u64,
    /// Largest write in bytes that can be [atomic](crate::reactor::io::IoCell::atomic), whatever the other limits are: it comes to the
    /// device whole. 0: none can.
    pub atomic_max: u64,
    /// No read or write may cross a multiple of this many bytes; 0: none.
    pub boundary: u64,
    /// Alignment of the address and length of each data segment for the fast path, in bytes; a device bounces what is not.
    pub data_align: u32,
    /// Preferred granularity and alignment of writes in bytes: smaller ones cost a read-modify-write somewhere below.
    pub write_granularity: u32,
    /// Granularity and alignment of unmap that frees something, in bytes.
    pub unmap_granularity: u32,
}

impl Default for DeviceLimits {
    fn default() -> DeviceLimits {
        DeviceLimits {
            transfer_max: TRANSFER_MAX as u64,
            zeroes_max: u64::MAX,
            verify_max: 0,
            compare_and_write_max: 0,
            atomic_max: 0,
            boundary: 0,
            data_align: 1,
            write_granularity: 0,
            unmap_granularity: 0,
        }
    }
}

/// What a device does with data that has no address: the pages of a request of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unaddressed {
    /// It looks at the bytes where they lie: a door brings them into a buffer first.
    Refuses,
    /// It copies them once, between the request and where it keeps them.
    Copies,
    /// It gives them to the kernel as they are, if the ring reaches them, and else copies them.
    Passes,
}

/// The nature of a device, fixed for its life.
#[derive(Clone, Debug)]
pub struct Traits {
    /// Its name in the configuration.
    pub name: String,
    /// The driver's name.
    pub driver: &'static str,
    /// Its identity: doors derive NGUID, EUI-64 and NAA from it.
    pub uuid: [u8; 16],
    /// Logical block size in bytes: 512 or 4096.
    pub block_size: u32,
    /// Physical block size in bytes, a multiple of the logical one.
    pub physical_block_size: u32,
    /// What it can do. Of [`IoOp::Extents`] whether it knows more than the handle says for every device: that all is mapped.
    pub ops: OpSet,
    /// Writes are refused.
    pub read_only: bool,
    /// Acknowledged writes may be lost with the power until a flush.
    pub volatile_cache: bool,
    /// It keeps nothing and leaves read buffers as they are: a door needs no buffer for a read and sends zeros.
    pub keeps_nothing: bool,
    /// What it keeps ends with this process: nobody may take the next one for it.
    pub ephemeral: bool,
    /// What it does with data that has no address.
    pub unaddressed: Unaddressed,
    /// Reads and writes run on whichever reactor they arrive; otherwise all I/O goes to the home.
    pub concurrent: bool,
    /// Its limits.
    pub limits: DeviceLimits,
    /// It is made of zones, and all that is written goes to the write pointer of one; `None`: it is not.
    pub zones: Option<Zones>,
}

static NEXT_ID: AtomicU32 = AtomicU32::new(1);

/// What every device has: its traits, and the few things that change while it is open. Clones are the same.
#[derive(Clone, Debug)]
pub struct Common(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    id: u32,
    traits: Traits,
    size: AtomicU64,
    closing: AtomicBool,
    home: u16,
    losses: Losses,
}

impl Common {
    /// A device of `size` bytes whose home is reactor `home`.
    pub fn new(traits: Traits, size: u64, home: u16) -> Common {
        Common::with_losses(traits, size, home, Losses::default())
    }

    /// A layer with the size and the home of the one device below it, of which it keeps nothing back: what that loses, it loses.
    pub fn over(below: &Common, traits: Traits) -> Common {
        Common::with_losses(traits, below.size(), below.home(), below.losses().clone())
    }

    /// As [`Common::new`], for a device whose losses are told elsewhere.
    pub fn with_losses(traits: Traits, size: u64, home: u16, losses: Losses) -> Common {
        debug_assert!(size.is_multiple_of(u64::from(traits.block_size)));
        Common(Arc::new(Shared {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            traits,
            size: AtomicU64::new(size),
            closing: AtomicBool::new(false),
            home,
            losses,
        }))
    }

    /// Distinguishes this device from all others of the process, removed ones too.
    pub fn id(&self) -> u32 {
        self.0.id
    }

    /// Its nature.
    #[inline]
    pub fn traits(&self) -> &Traits {
        &self.0.traits
    }

    /// Its size in bytes.
    #[inline]
    pub fn size(&self) -> u64 {
        self.0.size.load(Ordering::Acquire)
    }

    /// Announces a new size; the storage for it is there already (growth) or still there (never shrinks).
    pub fn set_size(&self, size: u64) {
        self.0.size.store(size, Ordering::Release);
    }

    /// Whether the device may become `size` bytes large: not smaller, and whole blocks.
    ///
    /// # Errors
    /// If not, naming both sizes.
    pub fn check_growth(&self, size: u64) -> Result<(), DeviceError> {
        let (name, now, block) = (&self.0.traits.name, self.size(), self.0.traits.block_size);
        let reason = if size < now {
            format!("it has {now} bytes and cannot shrink to {size}")
        } else if !size.is_multiple_of(u64::from(block)) {
            format!("{size} bytes are no multiple of its block size {block}")
        } else {
            return Ok(());
        };
        Err(DeviceError::Refused(format!("volume \"{name}\": {reason}")))
    }

    /// Whether new I/O is refused with [`crate::reactor::io::IoStatus::Gone`].
    #[inline]
    pub fn is_closing(&self) -> bool {
        self.0.closing.load(Ordering::Relaxed)
    }

    /// Refuses new I/O from now on.
    pub fn close(&self) {
        self.0.closing.store(true, Ordering::Release);
    }

    /// The reactor where what must be serialised runs.
    pub fn home(&self) -> u16 {
        self.0.home
    }

    /// When it has lost what was acknowledged, or may have; only with a volatile cache.
    #[inline]
    pub fn losses(&self) -> &Losses {
        &self.0.losses
    }
}

/// Why a channel could not be opened, or a device not resized.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The kernel said no.
    #[error("{what}: {error}")]
    Io {
        /// What was tried, with the path.
        what: String,
        /// The kernel's answer.
        error: std::io::Error,
    },
    /// It cannot be, with the reason and remedy.
    #[error("{0}")]
    Refused(String),
}

/// A block device: shared by all reactors, used through one channel on each.
pub trait BlockDevice: Send + Sync {
    /// What every device has.
    fn common(&self) -> &Common;

    /// Makes the channel of `reactor`; called once per reactor, on it.
    ///
    /// # Errors
    /// What the device below says.
    fn open(&self, reactor: &Rc<Reactor>) -> Result<Box<dyn Channel>, DeviceError>;

    /// Makes the device larger; called on a control thread, may block.
    ///
    /// # Errors
    /// If it cannot, with the reason; nothing has changed then.
    fn grow(&self, size: u64) -> Result<(), DeviceError> {
        let _ = size;
        Err(DeviceError::Refused(format!(
            "volume \"{}\": a {} volume cannot grow",
            self.common().traits().name,
            self.common().traits().driver
        )))
    }
}

/// The instance of a device on one reactor.
pub trait Channel {
    /// Takes an I/O that [`super::Handle`] has checked. `Ready`: finished, the status inside. `Pending`: the channel has the handle and
    /// gives it to [`Reactor::complete`] exactly once, never inside this call. Never refuses for want of room: what does
    /// not fit waits in the channel's own list.
    fn submit(&self, io: Io) -> Poll<Io>;

    /// Where a read of `len` bytes from `offset`, which [`super::Handle`] has checked, finds its data right now, if that is memory that can be
    /// read where it is: until the end of this turn of the reactor, for it may be another's then. `None`: submit the read.
    fn lend(&self, offset: u64, len: u64) -> Option<(Region, usize)> {
        let _ = (offset, len);
        None
    }

    /// Asks for an early end of the pending I/O of that slot of the reactor's table; it still completes in its own right. Returns
    /// whether the device will end it. Best effort: most devices cannot.
    fn abort(&self, io_slot: u32) -> bool {
        let _ = io_slot;
        false
    }
}
