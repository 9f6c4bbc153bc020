//! A device that keeps a log, and ends its I/Os when and how it is told to.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use crate::bdev::{
    BlockDevice, Channel, Common, DeviceError, DeviceLimits, ExtentState, ExtentWriter, OpSet, Traits, Unaddressed,
    scatter,
};
use crate::reactor::Reactor;
use crate::reactor::io::{Io, IoList, IoOp, IoStatus};

/// What came to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) op: IoOp,
    pub(super) fua: bool,
    pub(super) atomic: bool,
    pub(super) offset: u64,
    pub(super) len: u64,
}

pub(super) struct Traced(Common);

impl Traced {
    pub(super) fn device(size: u64, alter: impl FnOnce(&mut Traits)) -> Arc<dyn BlockDevice> {
        let mut traits = Traits {
            name: "traced".to_owned(),
            driver: "traced",
            uuid: *b"0123456789abcdef",
            block_size: 512,
            physical_block_size: 512,
            ops: OpSet::ALL,
            read_only: false,
            volatile_cache: true,
            keeps_nothing: false,
            ephemeral: true,
            unaddressed: Unaddressed::Refuses,
            concurrent: true,
            limits: DeviceLimits { verify_max: u64::MAX, atomic_max: 256 << 10, ..DeviceLimits::default() },
            zones: None,
        };
        alter(&mut traits);
        Arc::new(Traced(Common::new(traits, size, 0)))
    }
}

impl BlockDevice for Traced {
    fn common(&self) -> &Common {
        &self.0
    }

    fn open(&self, reactor: &Rc<Reactor>) -> Result<Box<dyn Channel>, DeviceError> {
        let book = Rc::new(Book {
            reactor: reactor.clone(),
            bytes: RefCell::new(vec![0; self.0.size() as usize]),
            log: RefCell::default(),
            held: IoList::default(),
            holds: Cell::new(false),
            later: Cell::new(false),
            fails: Cell::new(None),
        });
        reactor.set_service(book.clone());
        Ok(Box::new(TracedChannel(book)))
    }
}

/// What the device of a reactor has and does; a service of the reactor.
pub(super) struct Book {
    reactor: Rc<Reactor>,
    pub(super) bytes: RefCell<Vec<u8>>,
    log: RefCell<Vec<Step>>,
    held: IoList,
    /// I/Os wait for [`Book::release`].
    pub(super) holds: Cell<bool>,
    /// I/Os end in a later turn: those of several tasks alternate.
    pub(super) later: Cell<bool>,
    /// From this one on of the operation's I/Os, 0 is the next, all end so, and nothing is done.
    pub(super) fails: Cell<Option<(IoOp, usize, IoStatus)>>,
}

struct TracedChannel(Rc<Book>);

impl Channel for TracedChannel {
    fn submit(&self, io: Io) -> Poll<Io> {
        let book = &*self.0;
        book.log.borrow_mut().push(Step { op: io.op, fua: io.fua, atomic: io.atomic, offset: io.offset, len: io.len });
        if book.holds.get() {
            book.held.push(io);
            return Poll::Pending;
        }
        let io = book.carried_out(io);
        if book.later.get() {
            book.reactor.complete(io);
            return Poll::Pending;
        }
        Poll::Ready(io)
    }

    fn abort(&self, io_slot: u32) -> bool {
        let found = self.0.held.remove(io_slot);
        found.map(|io| self.0.reactor.complete(io.with_status(IoStatus::Aborted))).is_some()
    }
}

impl Book {
    pub(super) fn of(reactor: &Reactor) -> Rc<Book> {
        reactor.service().expect("the device is open")
    }

    /// What came so far; the log begins anew.
    pub(super) fn take_log(&self) -> Vec<Step> {
        self.log.take()
    }

    pub(super) fn held(&self) -> usize {
        self.held.len()
    }

    /// Carries out the oldest I/O that is held.
    pub(super) fn release(&self) {
        let io = self.held.pop().expect("one is held");
        self.reactor.complete(self.carried_out(io));
    }

    fn carried_out(&self, mut io: Io) -> Io {
        if let Some((op, left, status)) = self.fails.get()
            && op == io.op
        {
            if left == 0 {
                io.status = status;
                return io;
            }
            self.fails.set(Some((op, left - 1, status)));
        }
        if io.op == IoOp::Extents {
            let rest = self.bytes.borrow().len() as u64 - io.offset;
            let mut writer = ExtentWriter::new(&mut io);
            writer.push(rest, ExtentState::MAPPED);
            writer.finish();
            return io;
        }
        if !io.op.has_range() || io.op == IoOp::Verify {
            return io;
        }
        let mut bytes = self.bytes.borrow_mut();
        let (len, block) = (io.len as usize, io.offset as usize..(io.offset + io.len) as usize);
        let there = &mut bytes[block];
        match io.op {
            IoOp::Read => scatter::scatter(&mut io.data, 0, there).unwrap(),
            IoOp::Write => scatter::gather(&io.data, 0, there).unwrap(),
            IoOp::Unmap | IoOp::WriteZeroes => there.fill(0),
            IoOp::Compare | IoOp::CompareAndWrite => match scatter::compare(&io.data, 0, there) {
                Err(at) => (io.status, io.info) = (IoStatus::Miscompare, at as u64),
                Ok(()) if io.op == IoOp::CompareAndWrite => scatter::gather(&io.data, len, there).unwrap(),
                Ok(()) => {}
            },
            other => panic!("{other:?} did not come from a SCSI disk"),
        }
        io
    }
}
