//! The queue of one namespace on one reactor: a ring of the kernel's, polled and submitted to once a turn.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::Poll;

use hugepages::Buf;
use zerocopy::IntoBytes;

use super::super::channel::{Namespace, PLAIN_HELPERS, Queue};
use super::{ByKernel, Rings};
use crate::nvme::io::Place;
use crate::nvme::pcie::Tenant;
use crate::nvme::spec::{DsmRange, Fuse, NvmOpcode, Sqe, Status, StatusCode};
use crate::reactor::io::{Io, IoList, IoOp, IoStatus, Segment, Segments};
use crate::reactor::{Activity, Deferred, Poller, PollerId, Reactor};
use crate::sys::nvme_ring::{Answer, Command, CommandRing, Ended};

/// See the module's head.
pub struct Passthrough<R: Rings> {
    me: Weak<Self>,
    reactor: Rc<Reactor>,
    ring: RefCell<R::Ring>,
    namespace: RefCell<Option<Rc<Namespace<ByKernel<R>>>>>,
    /// Find no room.
    waiting: IoList,
    /// Memory for the ranges of Dataset Management, which only the helpers send.
    ranges: RefCell<Vec<Buf>>,
    ended: RefCell<Vec<Ended<Io>>>,
    /// What was started goes to the kernel at the end of this turn.
    asked: Cell<bool>,
    poller: Cell<Option<PollerId>>,
    /// Calls that the reactor has been told of.
    told: Cell<u64>,
}

impl<R: Rings> Passthrough<R> {
    /// `None`: no DMA memory.
    pub(super) fn new(reactor: &Rc<Reactor>, ring: R::Ring) -> Option<Rc<Self>> {
        let range = || reactor.pool().alloc(size_of::<DsmRange>());
        let ranges = (0..PLAIN_HELPERS).map(|_| range()).collect::<Option<Vec<Buf>>>()?;
        Some(Rc::new_cyclic(|me: &Weak<Self>| Passthrough {
            me: me.clone(),
            reactor: reactor.clone(),
            ring: RefCell::new(ring),
            namespace: RefCell::default(),
            waiting: IoList::default(),
            ranges: RefCell::new(ranges),
            ended: RefCell::default(),
            asked: Cell::new(false),
            poller: Cell::new(None),
            told: Cell::new(0),
        }))
    }

    #[inline]
    fn start(&self, mut io: Io) -> Result<(), Io> {
        let namespace = self.namespace.borrow();
        let namespace = namespace.as_ref().expect("a namespace stays until its I/Os have ended");
        let sqe = namespace.command(&io);
        debug_assert_ne!(sqe.fuse(), Fuse::FIRST, "the kernel passes nothing on that is fused");
        let data = if sqe.opcode == NvmOpcode::DATASET_MANAGEMENT.0 {
            let Some(range) = self.range(namespace.place(), &io) else { return Err(io) };
            Some(range)
        } else {
            match io.data.pop() {
                Some(Segment::Buf(buf)) => Some(buf),
                None => None,
                Some(other) => unreachable!("a namespace asks first whether {other:?} is reached"),
            }
        };
        let moved = if io.op == IoOp::Unmap { None } else { data.as_ref().map(|data| data.len() as u64) };
        // The controller moves as much as the command says, whatever memory it is given.
        assert!(moved.is_none_or(|moved| moved == io.len), "{moved:?} bytes for {io:?}");
        match self.ring.borrow_mut().start(&command(&sqe), data, io) {
            Ok(()) => {
                self.ask();
                Ok(())
            }
            Err((data, mut io)) => {
                self.put_back(&mut io, data);
                Err(io)
            }
        }
    }

    #[cold]
    fn range(&self, place: Place, io: &Io) -> Option<Buf> {
        let mut buf = self.ranges.borrow_mut().pop()?;
        buf.copy_from_slice(place.range(io.offset, io.len).as_bytes());
        Some(buf)
    }

    /// What a command had goes where it came from.
    #[inline]
    fn put_back(&self, io: &mut Io, data: Option<Buf>) {
        match data {
            Some(range) if io.op == IoOp::Unmap => self.ranges.borrow_mut().push(range),
            Some(buf) => io.data.push_buf(buf),
            None => {}
        }
    }

    #[inline]
    fn ask(&self) {
        if !self.asked.replace(true)
            && let Some(me) = self.me.upgrade()
        {
            self.reactor.at_end(me);
        }
    }

    /// Tells the reactor of the calls that the ring has made.
    #[inline]
    fn count(&self, enters: u64) {
        self.reactor.count_enters(enters - self.told.replace(enters));
    }

    #[cold]
    fn start_waiting(&self) {
        while let Some(io) = self.waiting.pop() {
            if let Err(io) = self.start(io) {
                self.waiting.push_front(io);
                return;
            }
        }
    }

    #[inline]
    fn take(&self, namespace: &Namespace<ByKernel<R>>, ended: Ended<Io>) {
        let Ended { carried: mut io, data, answer, result } = ended;
        self.put_back(&mut io, data);
        match meaning(answer) {
            Ok(status) => namespace.answered(io, status, || result),
            Err(status) => namespace.ended(io, status),
        }
    }
}

/// What an answer means: a status of the controller, or one that stands for what the kernel says. `Err`: the end of it.
#[inline]
fn meaning(answer: Answer) -> Result<Status, IoStatus> {
    match answer {
        Answer::Status(bits) => Ok(Status(bits)),
        // Ended unanswered: the kernel has reset the controller.
        Answer::Errno(libc::EINTR) => Ok(StatusCode::ABORTED_BY_HOST.retry()),
        // It had no memory or no room for it.
        Answer::Errno(libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => Ok(StatusCode::HOST_PATH_ERROR.retry()),
        Answer::Errno(libc::ENODEV | libc::ENXIO) => Err(IoStatus::Gone),
        Answer::Errno(libc::EACCES | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOTTY) => Err(IoStatus::Unsupported),
        Answer::Errno(_) => Err(IoStatus::DeviceError),
    }
}

/// A command as the kernel takes it: identifier and data pointer are its own.
#[inline]
fn command(sqe: &Sqe) -> Command {
    let dwords = [sqe.cdw10, sqe.cdw11, sqe.cdw12, sqe.cdw13, sqe.cdw14, sqe.cdw15];
    Command {
        opcode: sqe.opcode,
        nsid: sqe.nsid.get(),
        cdw2: [sqe.cdw2.get(), sqe.cdw3.get()],
        cdw10: dwords.map(|dword| dword.get()),
    }
}

impl<R: Rings> Queue<ByKernel<R>> for Passthrough<R> {
    fn enter(&self, namespace: Rc<Namespace<ByKernel<R>>>) -> Option<u8> {
        let me = self.me.upgrade()?;
        let before = self.namespace.replace(Some(namespace));
        debug_assert!(before.is_none(), "a ring is of one namespace");
        self.poller.set(Some(self.reactor.add_poller("nvme passthrough", me)));
        Some(0)
    }

    fn leave(&self, _: u8) {
        // Dropped while nothing is borrowed.
        let namespace = self.namespace.take();
        drop(namespace);
        if let Some(poller) = self.poller.take() {
            self.reactor.remove_poller(poller);
        }
    }

    #[inline]
    fn reaches(&self, data: &Segments) -> bool {
        data.single_buf().is_some() || data.count() == 0
    }

    #[inline]
    fn submit(&self, io: Io) -> Poll<Io> {
        if !self.waiting.is_empty() {
            self.waiting.push(io);
        } else if let Err(io) = self.start(io) {
            self.waiting.push(io);
        }
        Poll::Pending
    }
}

impl<R: Rings> Poller for Passthrough<R> {
    #[inline]
    fn poll(&self) -> Activity {
        let mut all = self.ended.take();
        let mut ring = self.ring.borrow_mut();
        ring.reap(&mut all);
        let enters = ring.counters().enters;
        drop(ring);
        self.count(enters);
        let found = !all.is_empty();
        if found {
            let namespace = self.namespace.borrow().clone();
            let namespace = namespace.expect("a namespace stays until its I/Os have ended");
            for ended in all.drain(..) {
                self.take(&namespace, ended);
            }
            self.start_waiting();
        }
        self.ended.replace(all);
        if found { Activity::Busy } else { Activity::Idle }
    }

    fn arm(&self) -> bool {
        self.ring.borrow_mut().arm()
    }

    fn disarm(&self) {
        self.ring.borrow_mut().disarm();
    }
}

impl<R: Rings> Deferred for Passthrough<R> {
    fn name(&self) -> &'static str {
        "nvme passthrough"
    }

    fn run(&self) {
        self.asked.set(false);
        let mut ring = self.ring.borrow_mut();
        ring.flush();
        let enters = ring.counters().enters;
        drop(ring);
        self.count(enters);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_errno_means_what_a_status_would() {
        let errno = |errno| meaning(Answer::Errno(errno));
        assert_eq!(errno(libc::ENODEV), Err(IoStatus::Gone));
        assert_eq!(errno(libc::EIO), Err(IoStatus::DeviceError));
        assert_eq!(errno(libc::EACCES), Err(IoStatus::Unsupported));
        for passing in [libc::EINTR, libc::EAGAIN, libc::ENOMEM] {
            let status = errno(passing).expect("it may be tried again");
            assert!(super::super::super::retry::is_passing(status), "{passing}");
        }
        assert_eq!(meaning(Answer::Status(0x4281)), Ok(Status(0x4281)));
    }

    #[test]
    fn a_command_keeps_all_of_its_dwords() {
        let place = Place { nsid: 7, shift: 9 };
        let sqe = place.ranged(NvmOpcode::WRITE, 0x1_0000_0200, 8192, 1 << 30);
        let command = command(&sqe);
        assert_eq!((command.opcode, command.nsid, command.cdw2), (1, 7, [0, 0]));
        assert_eq!(command.cdw10, [0x80_0001, 0, 1 << 30 | 15, 0, 0, 0]);
    }
}
