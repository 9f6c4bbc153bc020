//! Open files and sockets on their way into a backend: the kernel's descriptors, or the simulated world's.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam_queue::SegQueue;

/// An open file or socket that no backend has taken yet; dropped, it is closed. Crosses cores.
#[derive(Debug)]
pub enum Descriptor {
    /// Of the kernel.
    Kernel(OwnedFd),
    /// Of a simulated world.
    Simulated(SimulatedFd),
}

impl Descriptor {
    /// A second descriptor of the same open file, for another reactor.
    ///
    /// # Errors
    /// What dup(2) says.
    pub fn try_clone(&self) -> std::io::Result<Descriptor> {
        Ok(match self {
            Descriptor::Kernel(fd) => Descriptor::Kernel(fd.try_clone()?),
            Descriptor::Simulated(fd) => Descriptor::Simulated(fd.clone()),
        })
    }
}

impl From<OwnedFd> for Descriptor {
    fn from(fd: OwnedFd) -> Descriptor {
        Descriptor::Kernel(fd)
    }
}

/// A counted handle on an open file of a simulated world, which is told when the last one is gone.
#[derive(Clone, Debug)]
pub struct SimulatedFd(Arc<Open>);

#[derive(Debug)]
struct Open {
    number: usize,
    closed: Arc<SegQueue<usize>>,
}

impl SimulatedFd {
    /// A handle on object `number` of a world; `closed` gets the number when the last clone is dropped.
    pub(crate) fn new(number: usize, closed: &Arc<SegQueue<usize>>) -> SimulatedFd {
        SimulatedFd(Arc::new(Open { number, closed: closed.clone() }))
    }

    /// Which object of the world.
    pub(crate) fn number(&self) -> usize {
        self.0.number
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.closed.push(self.number);
    }
}
