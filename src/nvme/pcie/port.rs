//! What the driver asks of the way to a controller: registers, addresses, and the data of commands in flight.

use std::rc::Rc;

use hugepages::{Buf, DeviceBuf};

use crate::nvme::spec::{Csts, Property};
use crate::reactor::Reactor;
use crate::sys::mmio::Registers;

/// How a controller that cannot be disabled is made to touch no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Force {
    /// A reset of its function (PCI Express Base 6.6.2): its registers are as after power-up.
    Reset,
    /// It is kept from all memory, for good.
    CutOff,
}

/// The way to one controller. Clones are the same; each reactor has its own.
pub trait Port: Clone + Send + Sync + 'static {
    /// BAR 0: registers and doorbells.
    type Registers: Registers;

    /// The registers.
    fn registers(&self) -> &Self::Registers;

    /// The BAR that has the controller memory buffer (Base §8.5), where submission queues are to lie in that. As it is here, they lie in
    /// memory.
    fn buffer(&self) -> Option<&Self::Registers> {
        None
    }

    /// The controller's address of the first byte of `buf`; those of the others follow. `None` if the controller cannot reach it.
    fn data(&self, buf: &Buf) -> Option<u64>;

    /// The controller's address of memory for queues and lists, which it may read and write from now on; `None` if it cannot reach it.
    fn memory(&self, memory: &DeviceBuf) -> Option<u64>;

    /// Interrupt vectors, of which 0 is the admin queue's. As it is here, there are none: memory has to be looked at.
    fn vectors(&self) -> u16 {
        0
    }

    /// Has a vector wake `reactor` from now on whenever it is not masked, which it is at first. False: it does not.
    fn connect(&self, vector: u16, reactor: &Reactor) -> bool {
        let _ = (vector, reactor);
        false
    }

    /// Masks a vector that is connected, or takes the mask off, whereupon what came meanwhile may ring.
    fn mask(&self, vector: u16, masked: bool) {
        let _ = (vector, masked);
    }

    /// Lets the controller reach memory, as far as it has been given to it: it has been seen disabled, so that it knows no queue of
    /// anybody before this driver.
    ///
    /// # Errors
    /// Why that is not so.
    fn let_in(&self) -> Result<(), String> {
        Ok(())
    }

    /// Does what the controller cannot refuse. `None`: it is under way, elsewhere, since the home reactor may not wait for it; to be asked
    /// again until it has ended. `Some`: whether it was done; the next question begins anew.
    ///
    /// As it is here, there is no function reset, and only a controller that is off the bus is kept from memory.
    fn force(&self, how: Force) -> Option<bool> {
        Some(how == Force::CutOff && Csts(self.registers().read32(Property::CSTS.0)).gone())
    }

    /// Queue `qid` gets commands from `reactor` from now on, whose data `held` has. A controller that reaches all memory by itself
    /// needs nothing of it.
    fn attach(&self, reactor: &Rc<Reactor>, qid: u16, held: Rc<dyn Held>) {
        let _ = (reactor, qid, held);
    }

    /// The end of [`Port::attach`]: the queue is quiet.
    fn detach(&self, reactor: &Rc<Reactor>, qid: u16) {
        let _ = (reactor, qid);
    }
}

/// The data of the commands in flight on one queue, for a controller in software: it reaches what the driver has given it, and
/// nothing that it has given back.
pub trait Held {
    /// Whether command `cid` is in flight.
    fn has(&self, cid: u16) -> bool;

    /// Calls `f` with the `len` bytes at the controller's address `address`, if they are data of command `cid` and that is in flight.
    fn with(&self, cid: u16, address: u64, len: usize, f: &mut dyn FnMut(&mut [u8])) -> bool;
}
