//! A namespace of an NVMe controller, by this program's own driver, or by way of the kernel's ([`kernel`]).
//!
//! ```text
//!  submit --+-- read, admitted write, flush, zeroes whose data is reached ---> the reactor's queue pair: one command ---+
//!           |    compare, compare and write that the controller can do                                                 +--> complete
//!           +-- data that no pointer reaches, unmap in two steps, compare and write that the controller cannot do ----+
//!                 helpers, through a bounce buffer, with a grant where they must be alone
//! ```
//! - *Copies*: none, between the arena and the controller's own DMA.
//! - *Unmapped reads as zeros*: Dataset Management is advice that a controller may ignore, so that a range is unmapped by Write
//!   Zeroes, with its Deallocate bit where the namespace honours that; a Dataset Management follows where deallocated blocks read as zeros.
//! - *Acknowledged* is durable where the controller says that it has no volatile write cache; then a flush is done at once. A controller that
//!   has one and fails (CSTS.CFS, or it did not come up at the first attempt) may have lost what it held: flushes in flight then fail, and
//!   the next one of everybody who uses the volume, see [`Losses`](crate::util::Losses).
//! - *Time*: what is older than 30 s, or than twice the time-out, is not given to the controller again: whoever asked may have gone another way
//!   by then, and written something newer.
//! - *Compare* by the controller tells that there is a difference and not where: the range is read to find it.
//! - *Zones*: a write, an append or zeroes that a reset or an abort has taken from the controller fails, and is not given to it again: if it
//!   was carried out, it would be written once more, or refused. Only what the controller has surely not begun is repeated. What manages
//!   zones may be repeated. Reports come by helpers, which turn the controller's descriptors into records.

mod admin;
mod channel;
mod disks;
pub mod kernel;
mod retry;
mod slow;
#[cfg(test)]
mod tests;
mod told;

use std::rc::Rc;
use std::sync::Arc;

use crate::bdev::{BlockDevice, Channel, Common, DeviceError, DeviceLimits, OpSet, Traits};
use crate::limits::TRANSFER_MAX;
use crate::nvme::io::Geometry;
pub use crate::nvme::pcie::{ControllerEvent, NamespaceInfo};
use crate::nvme::pcie::{Drive, Port};
pub use crate::nvme::spec::InterruptCoalescing;
use crate::reactor::Reactor;
use crate::reactor::io::IoOp;
pub use admin::{Admin, AdminError};
use channel::NvmeChannel;
pub use channel::{Namespace, Queue, Way};
pub use disks::{DiskAdmin, Disks, Mode, Open, Tuning, Wanted, Which};
use retry::Delays;
pub use told::{Became, DiskEvent, Tell};

/// Bytes that a helper moves at a time.
const BOUNCE_LEN: usize = 64 << 10;

/// A controller whose namespaces are volumes.
pub type NvmeDrive<P> = Drive<P, Namespace<P>>;

/// See the module's head.
pub struct Nvme<P: Port> {
    common: Common,
    drive: Arc<NvmeDrive<P>>,
    geometry: Geometry,
}

impl<P: Port> Nvme<P> {
    /// The volume `name` that is namespace `nsid` of a controller.
    ///
    /// # Errors
    /// If there is no such namespace, or it cannot be used, with the reason.
    pub fn new(name: String, drive: &Arc<NvmeDrive<P>>, nsid: u32) -> Result<Nvme<P>, DeviceError> {
        let all = drive.namespaces();
        let Some(found) = all.iter().find(|namespace| namespace.nsid == nsid) else {
            let there: Vec<String> = all.iter().map(|namespace| namespace.nsid.to_string()).collect();
            return Err(DeviceError::Refused(format!(
                "volume \"{name}\": {} has no namespace {nsid}: it has {}",
                drive.serial(),
                if there.is_empty() { "none".to_owned() } else { there.join(", ") }
            )));
        };
        let geometry = match &found.geometry {
            Ok(geometry) => *geometry,
            Err(unusable) => return Err(DeviceError::Refused(format!("volume \"{name}\": {unusable}"))),
        };
        let traits = traits(&geometry, name, found.uuid, drive.is_everywhere());
        let common = Common::with_losses(traits, geometry.size, drive.home(), drive.losses().clone());
        Ok(Nvme { common, drive: drive.clone(), geometry })
    }
}

/// The traits of a volume on a namespace whose commands, and helpers, do its I/O.
fn traits(geometry: &Geometry, name: String, uuid: [u8; 16], concurrent: bool) -> Traits {
    let own = geometry.traits(name, "nvme", uuid);
    // By helpers, where not by commands; a reset waits. No write to a zone is put off until it is known what is there.
    let ops = IoOp::ALL.into_iter().filter(|op| match op {
        IoOp::Compare | IoOp::Reset => false,
        IoOp::CompareAndWrite => own.zones.is_some(),
        op => !own.ops.has(*op),
    });
    // Helpers take several commands where one is not enough.
    let limits = DeviceLimits { compare_and_write_max: TRANSFER_MAX as u64, ..own.limits };
    Traits { ops: ops.fold(OpSet::ALL.with_zones(), OpSet::without), limits, concurrent, ..own }
}

impl<P: Port> BlockDevice for Nvme<P> {
    fn common(&self) -> &Common {
        &self.common
    }

    /// The disk grows by itself; this says that its new blocks may be used.
    fn grow(&self, size: u64) -> Result<(), DeviceError> {
        self.common.check_growth(size)?;
        let is = self.drive.size(self.geometry.nsid);
        if size > is {
            let name = &self.common.traits().name;
            return Err(DeviceError::Refused(format!("volume \"{name}\": its namespace has {is} bytes")));
        }
        self.common.set_size(size);
        Ok(())
    }

    fn open(&self, reactor: &Rc<Reactor>) -> Result<Box<dyn Channel>, DeviceError> {
        let queue = self.drive.queue(reactor).ok_or_else(|| {
            let name = &self.common.traits().name;
            DeviceError::Refused(format!(
                "volume \"{name}\": reactor {} has no queue of its controller, which is {:?}",
                reactor.id(),
                self.drive.life()
            ))
        })?;
        let delays = Delays::of(self.drive.identity());
        Ok(Box::new(NvmeChannel::<P>::open(
            reactor,
            &self.common,
            queue,
            (self.geometry, delays, self.drive.timeout_ns()),
        )?))
    }
}
