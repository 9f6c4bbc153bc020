//! A device that takes everything and keeps nothing: what the block layer itself costs.

use std::rc::Rc;
use std::task::Poll;

use crate::bdev::{BlockDevice, Channel, Common, DeviceError, DeviceLimits, OpSet, Traits, Unaddressed};
use crate::reactor::Reactor;
use crate::reactor::io::{Io, IoOp};

/// When an I/O of this device is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CompleteIn {
    /// On the reactor's next turn, as hardware would.
    #[default]
    Poll,
    /// Within its submission.
    Submit,
}

/// What a null device is made from.
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
    /// When I/Os complete.
    pub complete: CompleteIn,
}

/// See the module's head.
#[derive(Debug)]
pub struct Null {
    common: Common,
    complete: CompleteIn,
}

impl Null {
    /// A null device.
    pub fn new(options: Options) -> Null {
        let traits = Traits {
            name: options.name,
            driver: "null",
            uuid: options.uuid,
            block_size: options.block_size,
            physical_block_size: options.physical_block_size,
            ops: OpSet::ALL.without(IoOp::Extents),
            read_only: false,
            volatile_cache: false,
            keeps_nothing: true,
            ephemeral: false,
            unaddressed: Unaddressed::Copies,
            concurrent: true,
            limits: DeviceLimits { verify_max: u64::MAX, ..DeviceLimits::default() },
            zones: None,
        };
        Null { common: Common::new(traits, options.size, 0), complete: options.complete }
    }
}

impl BlockDevice for Null {
    fn common(&self) -> &Common {
        &self.common
    }

    fn open(&self, reactor: &Rc<Reactor>) -> Result<Box<dyn Channel>, DeviceError> {
        Ok(match self.complete {
            CompleteIn::Poll => Box::new(OnPoll { reactor: reactor.clone() }),
            CompleteIn::Submit => Box::new(InSubmit),
        })
    }

    fn grow(&self, size: u64) -> Result<(), DeviceError> {
        self.common.check_growth(size)?;
        self.common.set_size(size);
        Ok(())
    }
}

struct InSubmit;

impl Channel for InSubmit {
    #[inline]
    fn submit(&self, io: Io) -> Poll<Io> {
        Poll::Ready(io)
    }
}

struct OnPoll {
    reactor: Rc<Reactor>,
}

impl Channel for OnPoll {
    #[inline]
    fn submit(&self, io: Io) -> Poll<Io> {
        self.reactor.complete(io);
        Poll::Pending
    }
}
