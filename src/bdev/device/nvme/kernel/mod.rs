//! A namespace by way of the kernel's driver: its commands are passed through, each as it is, by the namespace's character device.
//!
//! ```text
//!  NvmeChannel -> Passthrough::submit -> its ring: one entry        (end of the turn) one call for all of them
//!  NvmeChannel <- Passthrough::poll <--- its ring                   only a call brings them, and a flag in memory says when
//! ```
//! - The same channel as by VFIO, so the same commands, the same meaning of their statuses, the same helpers. Two things differ.
//!   Nothing is fused, which the kernel does not pass on: compare and write is done by a helper. And one command has one buffer:
//!   data in several goes through a bounce buffer.
//! - *Time-outs and resets* are the kernel's: it aborts a command after the volume's time limit, and resets the controller if that
//!   does not help. It repeats no command that was passed through, so that those which it ended unanswered are given to it again
//!   from here.
//! - *Acknowledged* is as the controller says, and a reset by the kernel is not seen: unlike by VFIO, no flush fails because of what a
//!   controller that has failed may have lost.
//! - *Copies*: none; the kernel pins the pages of each command's data.
//! - *Zones* are as by VFIO; the block device alone does not do, since a file would be written anywhere.
//! - *Use*: the namespace's block device is claimed while it is a volume, so that nobody mounts it, where there is a right to do
//!   so.

mod open;
mod queue;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::rc::Rc;
use std::time::Duration;

use super::channel::{NvmeChannel, Way};
use super::retry::Delays;
use super::traits;
use crate::bdev::{BlockDevice, Channel, Common, DeviceError};
use crate::nvme::io::Geometry;
use crate::nvme::spec::IdentifyController;
use crate::reactor::Reactor;
use crate::reactor::io::Io;
use crate::sys::nvme_ring::{CommandRing, NvmeRing};
pub(super) use open::{KernelVolume, Opening, claim_shared, open};
pub use queue::Passthrough;

/// Where the rings of a namespace come from.
pub trait Rings: Send + Sync + 'static {
    /// The ring of one reactor.
    type Ring: CommandRing<Io>;

    /// A ring for the calling thread, which is the reactor's.
    ///
    /// # Errors
    /// What the kernel says.
    fn ring(&self, reactor: &Reactor) -> io::Result<Self::Ring>;
}

/// The way of a namespace whose commands are passed through.
pub struct ByKernel<R>(PhantomData<R>);

impl<R: Rings> Way for ByKernel<R> {
    type Queue = Passthrough<R>;
}

/// The character device of a namespace.
pub struct Generic {
    device: File,
    depth: u16,
    timeout: Duration,
    /// Held open: the claim on the block device, if there was a right to it.
    _claim: Option<File>,
}

impl Rings for Generic {
    type Ring = NvmeRing<Io>;

    fn ring(&self, reactor: &Reactor) -> io::Result<NvmeRing<Io>> {
        NvmeRing::new(&self.device, self.depth, self.timeout, reactor.doorbell())
    }
}

/// See the module's head.
pub struct Passed<R: Rings> {
    common: Common,
    rings: R,
    geometry: Geometry,
    delays: Delays,
    timeout: Duration,
}

impl<R: Rings> Passed<R> {
    /// The volume `name` on a namespace that is reached by `rings`; `geometry` has no fused commands in it, and `controller` says how
    /// long to wait before what it refused for the moment is asked for again.
    pub fn new(
        (name, uuid, home): (String, [u8; 16], u16),
        rings: R,
        (geometry, controller): (Geometry, &IdentifyController),
        timeout: Duration,
    ) -> Passed<R> {
        let delays = Delays::of(controller);
        let common = Common::new(traits(&geometry, name, uuid, true), geometry.size, home);
        Passed { common, rings, geometry, delays, timeout }
    }
}

impl<R: Rings> BlockDevice for Passed<R> {
    fn common(&self) -> &Common {
        &self.common
    }

    fn open(&self, reactor: &Rc<Reactor>) -> Result<Box<dyn Channel>, DeviceError> {
        let what = |what: &str| format!("volume \"{}\": {what} on reactor {}", self.common.traits().name, reactor.id());
        let ring = self
            .rings
            .ring(reactor)
            .map_err(|error| DeviceError::Io { what: what("a ring for its NVMe commands"), error })?;
        let queue = Passthrough::new(reactor, ring)
            .ok_or_else(|| DeviceError::Refused(what("no DMA memory left for its commands: raise [memory] size")))?;
        let how = (self.geometry, self.delays, self.timeout.as_nanos() as u64);
        Ok(Box::new(NvmeChannel::<ByKernel<R>>::open(reactor, &self.common, queue, how)?))
    }
}
