//! The gate of a device on one reactor: checks, time stamps, counters.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use super::contract::{BlockDevice, Channel, Common, DeviceError};
use super::stats::Stats;
use crate::reactor::Reactor;
use crate::reactor::io::{Frame, Io, IoOp, IoStatus};

/// An opened device on one reactor. Clones share the channel and the counters.
#[derive(Clone)]
pub struct Handle {
    reactor: Rc<Reactor>,
    device: Arc<dyn BlockDevice>,
    channel: Rc<dyn Channel>,
    stats: Rc<Stats>,
}

/// The opened devices of a reactor, by [`Common::id`].
#[derive(Default)]
struct Opened(RefCell<BTreeMap<u32, Handle>>);

fn opened(reactor: &Reactor) -> Rc<Opened> {
    reactor.service::<Opened>().unwrap_or_else(|| {
        let opened = Rc::new(Opened::default());
        reactor.set_service(opened.clone());
        opened
    })
}

impl Handle {
    /// The device's channel on this reactor, made at the first call.
    ///
    /// # Errors
    /// What the device says.
    pub fn open(reactor: &Rc<Reactor>, device: &Arc<dyn BlockDevice>) -> Result<Handle, DeviceError> {
        let all = opened(reactor);
        if let Some(handle) = all.0.borrow().get(&device.common().id()) {
            return Ok(handle.clone());
        }
        let handle = Handle {
            reactor: reactor.clone(),
            channel: device.open(reactor)?,
            device: device.clone(),
            stats: Rc::default(),
        };
        all.0.borrow_mut().insert(device.common().id(), handle.clone());
        Ok(handle)
    }

    /// Forgets the channel of a device that was closed; it goes when the last handle is dropped.
    pub fn forget(reactor: &Reactor, id: u32) {
        opened(reactor).0.borrow_mut().remove(&id);
    }

    /// All devices opened on a reactor.
    pub fn all(reactor: &Reactor) -> Vec<Handle> {
        opened(reactor).0.borrow().values().cloned().collect()
    }

    /// What every device has.
    #[inline]
    pub fn common(&self) -> &Common {
        self.device.common()
    }

    /// This device's counters on this reactor.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The reactor.
    pub fn reactor(&self) -> &Rc<Reactor> {
        &self.reactor
    }

    #[inline]
    fn check(&self, io: &Io) -> Result<(), IoStatus> {
        let common = self.device.common();
        let traits = common.traits();
        if common.is_closing() {
            return Err(IoStatus::Gone);
        }
        if !traits.ops.has(io.op) {
            return Err(IoStatus::Unsupported);
        }
        if traits.read_only && io.op.writes() {
            return Err(IoStatus::ReadOnly);
        }
        if io.op.has_range() {
            if (io.offset | io.len) & u64::from(traits.block_size - 1) != 0 {
                return Err(IoStatus::Misaligned);
            }
            if io.len == 0 {
                return Err(IoStatus::Empty);
            }
            if io.offset.checked_add(io.len).is_none_or(|end| end > common.size()) {
                return Err(IoStatus::OutOfRange);
            }
        }
        let data = io.data.bytes();
        if data != io.op.data_len(io.len) && !(traits.keeps_nothing && data == 0) {
            return Err(IoStatus::DataLength);
        }
        Ok(())
    }

    /// Submits an I/O whose end the caller collects itself; see [`Handle::execute`] for tasks.
    #[inline]
    pub fn submit(&self, mut io: Io) -> Poll<Io> {
        io.start = self.reactor.clock().stamp();
        self.stats.taken();
        match self.check(&io) {
            Ok(()) => self.channel.submit(io),
            Err(status) => Poll::Ready(io.with_status(status)),
        }
    }

    /// Asks for an early end of a pending I/O; see [`Channel::abort`].
    pub fn abort(&self, io_slot: u32) -> bool {
        self.channel.abort(io_slot)
    }

    /// Counts a completed I/O.
    #[inline]
    pub fn record(&self, io: &Io) {
        self.stats.record(io, self.reactor.clock().stamp());
    }

    /// Submits an I/O and waits for its end.
    #[inline]
    pub async fn execute(&self, io: Io) -> Io {
        let io = self.reactor.run_io(io, |io| self.submit(io)).await;
        self.record(&io);
        io
    }

    /// A layer passes an I/O on to this, its base, and gets it back with a frame for layer number `layer` that carries `own`.
    /// `Ready` still carries the frame, to be handled as a completion is.
    #[inline]
    pub fn submit_below(&self, mut io: Io, layer: u32, own: u64) -> Poll<Io> {
        let start = io.start;
        io.push_frame(Frame { layer, a: start, b: own });
        self.submit(io)
    }

    /// The completion of [`Handle::submit_below`]: counts it for the base and restores what was the layer's.
    #[inline]
    pub fn completed_below(&self, io: &mut Io, frame: Frame) -> u64 {
        self.record(io);
        io.start = frame.a;
        frame.b
    }

    /// Reads `len` bytes into `io`'s data; a shorthand for tests and tools.
    pub fn run(&self, mut io: Io, op: IoOp, offset: u64, len: u64) -> impl Future<Output = Io> + '_ {
        io.prepare(op, offset, len);
        self.execute(io)
    }
}
