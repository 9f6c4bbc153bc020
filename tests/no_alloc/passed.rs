//! A namespace whose commands are passed through to a kernel that has carried them out with the next look, and allocates nothing.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use hugepages::Buf;
use reactor::bdev::BlockDevice;
use reactor::bdev::device::nvme::kernel::{Passed, Rings};
use reactor::nvme::io::{Geometry, Identified};
use reactor::nvme::spec::{
    Cap, IdentifyController, IdentifyNamespace, ONCS_COMPARE, ONCS_DSM, ONCS_WRITE_ZEROES, VWC_PRESENT,
};
use reactor::reactor::Reactor;
use reactor::reactor::io::Io;
use reactor::sys::nvme_ring::{Answer, Command, CommandRing, Counters, Ended};
use zerocopy::FromZeros;

const DEPTH: usize = 64;

struct Kernel;

impl Rings for Kernel {
    type Ring = Ring;

    fn ring(&self, _: &Reactor) -> io::Result<Ring> {
        Ok(Ring(VecDeque::with_capacity(DEPTH)))
    }
}

struct Ring(VecDeque<(Option<Buf>, Io)>);

impl CommandRing<Io> for Ring {
    fn start(&mut self, _: &Command, data: Option<Buf>, carried: Io) -> Result<(), (Option<Buf>, Io)> {
        if self.0.len() == DEPTH {
            return Err((data, carried));
        }
        self.0.push_back((data, carried));
        Ok(())
    }

    fn flush(&mut self) {}

    fn reap(&mut self, ended: &mut Vec<Ended<Io>>) {
        let done = |(data, carried)| Ended { carried, data, answer: Answer::Status(0), result: 0 };
        ended.extend(self.0.drain(..).map(done));
    }

    fn in_flight(&self) -> usize {
        self.0.len()
    }

    fn arm(&mut self) -> bool {
        self.0.is_empty()
    }

    fn disarm(&mut self) {}

    fn counters(&self) -> Counters {
        Counters::default()
    }
}

/// A volume of `size` bytes by way of the kernel.
pub fn passed(size: u64) -> Arc<dyn BlockDevice> {
    let (mut controller, mut namespace) = (IdentifyController::new_zeroed(), IdentifyNamespace::new_zeroed());
    controller.oncs.set(ONCS_COMPARE | ONCS_DSM | ONCS_WRITE_ZEROES);
    (controller.vwc, controller.mdts) = (VWC_PRESENT, 5);
    namespace.nsze.set(size >> 12);
    namespace.lbaf[0].lbads = 12;
    let (nsid, cap, namespace) = (1, Cap(0), &namespace);
    let identified = Identified { nsid, cap, controller: &controller, namespace, limits: None, zoned: None };
    let geometry = Geometry::new(&identified, 128 << 10, 2).expect("a namespace that can be used");
    let named = ("passed".to_owned(), [6; 16], 0);
    Arc::new(Passed::new(named, Kernel, (geometry, &controller), Duration::from_secs(30)))
}
