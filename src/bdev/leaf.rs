//! A leaf for the tests of what stands above it: it keeps a log, and ends its I/Os when told to.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use super::{BlockDevice, Channel, Common, DeviceError, DeviceLimits, OpSet, Traits, Unaddressed};
use crate::reactor::Reactor;
use crate::reactor::io::{Io, IoList, IoOp, IoStatus};

pub(crate) struct Leaf(Common);

impl Leaf {
    pub(crate) fn device(size: u64, concurrent: bool, limits: DeviceLimits) -> Arc<dyn BlockDevice> {
        Leaf::altered(size, concurrent, limits, |_| {})
    }

    pub(crate) fn altered(
        size: u64,
        concurrent: bool,
        limits: DeviceLimits,
        alter: impl FnOnce(&mut Traits),
    ) -> Arc<dyn BlockDevice> {
        let mut traits = Traits {
            name: "leaf".to_owned(),
            driver: "leaf",
            uuid: [0; 16],
            block_size: 512,
            physical_block_size: 512,
            ops: OpSet::ALL,
            read_only: false,
            volatile_cache: false,
            keeps_nothing: false,
            ephemeral: false,
            unaddressed: Unaddressed::Refuses,
            concurrent,
            limits,
            zones: None,
        };
        alter(&mut traits);
        Arc::new(Leaf(Common::new(traits, size, 0)))
    }
}

impl BlockDevice for Leaf {
    fn common(&self) -> &Common {
        &self.0
    }

    fn open(&self, reactor: &Rc<Reactor>) -> Result<Box<dyn Channel>, DeviceError> {
        let book = Rc::new(Book::new(reactor));
        reactor.set_service(book.clone());
        Ok(Box::new(LeafChannel(book)))
    }
}

/// What the leaf of a reactor got and still has; a service of the reactor.
pub(crate) struct Book {
    reactor: Rc<Reactor>,
    /// What came, resets left out.
    pub(crate) log: RefCell<Vec<(IoOp, u64, u64)>>,
    /// Held until it is released.
    pub(crate) held: IoList,
    /// I/Os are held, not ended within their submission.
    pub(crate) holds: Cell<bool>,
    /// The I/O that covers this byte ends with this status, and says the byte.
    pub(crate) fails: Cell<Option<(u64, IoStatus)>>,
    /// Atomic writes that came.
    pub(crate) atomics: Cell<u64>,
    /// This operation is not supported, whatever its traits say.
    pub(crate) refuses: Cell<Option<IoOp>>,
}

struct LeafChannel(Rc<Book>);

impl Channel for LeafChannel {
    fn submit(&self, io: Io) -> Poll<Io> {
        let book = &*self.0;
        if io.op == IoOp::Reset {
            book.release(usize::MAX, IoStatus::Aborted);
            book.reactor.complete(io);
            return Poll::Pending;
        }
        book.atomics.set(book.atomics.get() + u64::from(io.atomic));
        book.log.borrow_mut().push((io.op, io.offset, io.len));
        if book.holds.get() {
            book.held.push(io);
            return Poll::Pending;
        }
        Poll::Ready(book.carried_out(io))
    }
}

impl Book {
    fn new(reactor: &Rc<Reactor>) -> Book {
        Book {
            reactor: reactor.clone(),
            log: RefCell::default(),
            held: IoList::default(),
            holds: Cell::new(false),
            fails: Cell::new(None),
            atomics: Cell::new(0),
            refuses: Cell::new(None),
        }
    }

    pub(crate) fn of(reactor: &Reactor) -> Rc<Book> {
        reactor.service().expect("the leaf is open")
    }

    /// Ends so many held I/Os, oldest first: `Success` means carried out.
    pub(crate) fn release(&self, count: usize, status: IoStatus) {
        for _ in 0..count.min(self.held.len()) {
            if let Some(io) = self.held.pop() {
                let io = if status == IoStatus::Success { self.carried_out(io) } else { io.with_status(status) };
                self.reactor.complete(io);
            }
        }
    }

    fn carried_out(&self, mut io: Io) -> Io {
        if self.refuses.get() == Some(io.op) {
            return io.with_status(IoStatus::Unsupported);
        }
        if let Some((at, status)) = self.fails.get()
            && (io.offset..io.offset + io.len).contains(&at)
        {
            io.info = at - io.offset;
            io.status = status;
        }
        io
    }

    /// The log so far, which begins anew.
    pub(crate) fn take_log(&self) -> Vec<(IoOp, u64, u64)> {
        self.log.take()
    }
}
