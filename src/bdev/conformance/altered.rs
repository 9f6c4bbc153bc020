//! A device seen through other traits: the same channels, reached in another way.

use std::rc::Rc;
use std::sync::Arc;

use crate::bdev::{BlockDevice, Channel, Common, DeviceError, Traits};
use crate::reactor::Reactor;

/// `base` with altered traits. It must be the only one to open its base: the channels are the base's own.
pub(super) struct Altered {
    common: Common,
    base: Arc<dyn BlockDevice>,
}

impl Altered {
    pub(super) fn new(base: Arc<dyn BlockDevice>, alter: impl FnOnce(&mut Traits)) -> Altered {
        let below = base.common();
        let mut traits = below.traits().clone();
        alter(&mut traits);
        Altered { common: Common::over(below, traits), base }
    }
}

impl BlockDevice for Altered {
    fn common(&self) -> &Common {
        &self.common
    }

    fn open(&self, reactor: &Rc<Reactor>) -> Result<Box<dyn Channel>, DeviceError> {
        self.base.open(reactor)
    }

    fn grow(&self, size: u64) -> Result<(), DeviceError> {
        self.base.grow(size)?;
        self.common.set_size(self.base.common().size());
        Ok(())
    }
}
