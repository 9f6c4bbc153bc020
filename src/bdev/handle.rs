//! The gate of a device on one reactor: checks, time stamps, counters.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};

use hugepages::{Buf, Region};

use super::contract::{BlockDevice, Channel, Common, DeviceError};
use super::extents;
use super::forward::Forward;
use super::split::{Split, Uncut};
use super::stats::Stats;
use super::told::Told;
use crate::limits::TRANSFER_MAX;
use crate::reactor::Reactor;
use crate::reactor::futures::IoFuture;
use crate::reactor::io::{Frame, Io, IoOp, IoStatus, Segment};

/// How often a device that goes looks whether its last user has gone, in nanoseconds.
const LINGER_NS: u64 = 1_000_000;

/// An opened device on one reactor. Clones share the channel and the counters.
#[derive(Clone)]
pub struct Handle {
    reactor: Rc<Reactor>,
    device: Arc<dyn BlockDevice>,
    common: Common,
    /// By operation: the most bytes of what is plain, see [`Handle::is_plain`].
    plain_max: [u64; IoOp::ALL.len()],
    /// Bits that are 0 in offsets and lengths of whole blocks.
    unaligned: u64,
    /// In a box: an `Rc<dyn Channel>` has to work out at each call where its value is.
    channel: Rc<Box<dyn Channel>>,
    /// What is plain crosses no boundary.
    uncut: Uncut,
    /// For what is beyond the device's limits, if there can be any.
    split: Option<Rc<Split>>,
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

/// Data of a read that a device has lent: see [`Handle::lend`].
#[derive(Debug)]
pub struct Lent {
    /// The memory.
    pub region: Region,
    /// Where the data begins.
    pub at: usize,
    /// The buffer of the read, as long as the data.
    pub spare: Buf,
}

impl Handle {
    /// The device's channel on this reactor, made at the first call.
    ///
    /// A device that is not concurrent is reached at its home, and one whose limits ask for it gets I/Os cut to size.
    ///
    /// # Errors
    /// What the device says; a device that is closing is not opened any more.
    pub fn open(reactor: &Rc<Reactor>, device: &Arc<dyn BlockDevice>) -> Result<Handle, DeviceError> {
        let all = opened(reactor);
        let common = device.common();
        if let Some(handle) = all.0.borrow().get(&common.id()) {
            return Ok(handle.clone());
        }
        if common.is_closing() {
            return Err(DeviceError::Refused(format!("volume \"{}\" is being removed", common.traits().name)));
        }
        let forwarded = !common.traits().concurrent && reactor.id() != common.home();
        let channel: Rc<Box<dyn Channel>> = Rc::new(match forwarded {
            true => Box::new(Forward::open(reactor, device)?),
            false => device.open(reactor)?,
        });
        let uncut = if forwarded { Uncut::ALL } else { Uncut::of(common.traits()) };
        let split = match uncut == Uncut::ALL {
            true => None,
            false => Some(Rc::new(Split::open(reactor, common.traits(), uncut, channel.clone())?)),
        };
        let (device, common) = (device.clone(), common.clone());
        let id = common.id();
        let stats = Rc::default();
        let traits = common.traits();
        let plain_max = IoOp::ALL.map(|op| {
            let plain =
                matches!(op, IoOp::Read | IoOp::Write) && traits.ops.has(op) && !(traits.read_only && op.writes());
            // Zones ask more than that.
            let plain = plain && traits.zones.is_none();
            if plain { (TRANSFER_MAX as u64).min(uncut.from[op as usize].saturating_sub(1)) } else { 0 }
        });
        let unaligned = u64::from(traits.block_size - 1);
        debug_assert!(unaligned & 1 == 1, "the flag of an atomic write is among the bits");
        let reactor = reactor.clone();
        let handle = Handle { reactor, device, common, plain_max, unaligned, channel, uncut, split, stats };
        all.0.borrow_mut().insert(id, handle.clone());
        Ok(handle)
    }

    /// Ends what is in flight on this reactor on a device that was closed, best effort, by a reset of its own.
    ///
    /// Returns when nothing is left; at once if the device is not open here.
    pub async fn drain(reactor: &Rc<Reactor>, id: u32) {
        let Some(handle) = opened(reactor).0.borrow().get(&id).cloned() else {
            return;
        };
        let mut io = loop {
            match reactor.create_io() {
                Some(io) => break io,
                None => reactor.sleep(LINGER_NS).await,
            }
        };
        io.prepare(IoOp::Reset, 0, 0);
        let io = reactor.run_io(io, |io| handle.pass(io)).await;
        reactor.retire_io(io);
    }

    /// Takes leave of a device that was closed: ends what is in flight on this reactor, waits until nobody has a handle any more, and
    /// drops the channel.
    pub async fn forget(reactor: &Rc<Reactor>, id: u32) {
        // Kept in the table meanwhile: a second caller waits for the same.
        Handle::drain(reactor, id).await;
        loop {
            let idle = match opened(reactor).0.borrow().get(&id) {
                Some(handle) => Rc::strong_count(&handle.stats) == 1,
                None => return,
            };
            if idle {
                break;
            }
            reactor.sleep(LINGER_NS).await;
        }
        let last = opened(reactor).0.borrow_mut().remove(&id);
        // Dropped while nothing is borrowed: a layer's channel takes the handle of its base with it.
        drop(last);
    }

    /// All devices opened on a reactor.
    pub fn all(reactor: &Reactor) -> Vec<Handle> {
        opened(reactor).0.borrow().values().cloned().collect()
    }

    /// The device.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// What every device has.
    #[inline]
    pub fn common(&self) -> &Common {
        &self.common
    }

    /// This device's counters on this reactor.
    pub fn stats(&self) -> &Stats {
        &self.stats
    }

    /// The reactor.
    pub fn reactor(&self) -> &Rc<Reactor> {
        &self.reactor
    }

    /// Whether [`Handle::check`] and [`Split`] surely find nothing: reads and writes with all they need, nearly all there is.
    #[inline]
    fn is_plain(&self, io: &Io) -> bool {
        // Lengths of what is plain cannot overflow, nor can the end of a range that starts within the device.
        let size = self.common.size();
        io.len.wrapping_sub(1) < self.plain_max[io.op as usize]
            // An atomic write is looked at more closely: it counts as half a block would.
            && (io.offset | io.len | u64::from(io.atomic)) & self.unaligned == 0
            && !self.uncut.crosses(io.offset, io.len)
            && io.offset <= size
            && io.len <= size - io.offset
            && match io.data.sole() {
                Some(data) => data.len() as u64 == io.len,
                None => io.data.count() == 0 && self.common.traits().keeps_nothing,
            }
            && !self.common.is_closing()
    }

    #[cold]
    fn check(&self, io: &Io) -> Result<(), IoStatus> {
        let common = &self.common;
        let traits = common.traits();
        if common.is_closing() && io.op != IoOp::Reset {
            return Err(IoStatus::Gone);
        }
        if !traits.ops.has(io.op) && io.op != IoOp::Extents {
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
        if io.op == IoOp::Extents {
            extents::check(io, traits.block_size, common.size())?;
        }
        if io.atomic && (io.op != IoOp::Write || io.len > traits.limits.atomic_max) {
            return Err(IoStatus::Unsupported);
        }
        if let Some(zones) = &traits.zones {
            zones.check(io, common.size())?;
        }
        let data = io.data.bytes();
        let wrong = data != io.op.data_len(io.len) || data > TRANSFER_MAX as u64;
        if wrong && !(traits.keeps_nothing && data == 0 && !io.op.is_report()) {
            return Err(IoStatus::DataLength);
        }
        Ok(())
    }

    /// Submits an I/O whose end the caller collects itself; see [`Handle::execute`] for tasks.
    #[inline(always)]
    pub fn submit(&self, io: Io) -> Poll<Io> {
        self.stats.taken();
        self.relay(io)
    }

    /// As [`Handle::submit`] for an I/O that another handle on this device has counted.
    #[inline(always)]
    pub(super) fn relay(&self, mut io: Io) -> Poll<Io> {
        io.start = self.reactor.clock().stamp();
        if self.is_plain(&io) {
            return self.channel.submit(io);
        }
        match self.check(&io) {
            Ok(()) if io.op == IoOp::Extents && !self.common.traits().ops.has(io.op) => {
                Poll::Ready(extents::answer(io, &self.common))
            }
            Ok(()) => self.pass(io),
            Err(status) => Poll::Ready(io.with_status(status)),
        }
    }

    /// Where the data of a read is, if the device lends it: memory that others may change from the next turn of the reactor on. The read is
    /// done and counted then, and its buffer comes along for a copy. `None`: submit it.
    #[inline]
    pub fn lend(&self, io: &mut Io) -> Option<Lent> {
        if io.op != IoOp::Read || !self.is_plain(io) || io.data.single_buf().is_none() {
            return None;
        }
        let (region, at) = self.channel.lend(io.offset, io.len)?;
        let Some(Segment::Buf(spare)) = io.data.pop() else { return None };
        io.start = self.reactor.clock().stamp();
        self.stats.taken();
        self.record(io);
        Some(Lent { region, at, spare })
    }

    #[inline]
    fn pass(&self, io: Io) -> Poll<Io> {
        match &self.split {
            Some(split) if split.takes(&io) => split.submit(io),
            _ => self.channel.submit(io),
        }
    }

    /// Asks for an early end of a pending I/O; see [`Channel::abort`].
    pub fn abort(&self, io_slot: u32) -> bool {
        match &self.split {
            Some(split) => split.abort(io_slot),
            None => self.channel.abort(io_slot),
        }
    }

    /// Counts a completed I/O.
    #[inline]
    pub fn record(&self, io: &Io) {
        self.stats.record(io, self.reactor.clock().stamp());
    }

    /// The end of a flush for a user of the device who has been told of its losses so far: if it has lost something since, the flush has
    /// failed, whoever else has been told. Returns what this user has been told now.
    #[inline]
    #[must_use = "who is not known to have been told is told again"]
    pub fn end_flush(&self, io: &mut Io, mut told: Told) -> Told {
        let loss = self.common.losses().last();
        if loss > 0
            && self.common.traits().volatile_cache
            && told.owes(loss, io.start, self.reactor.clock().now())
            && io.status == IoStatus::Success
        {
            io.status = IoStatus::DeviceError;
        }
        told
    }

    /// Submits an I/O and waits for its end.
    #[inline]
    pub fn execute(&self, io: Io) -> Execute<'_> {
        Execute { handle: self, io: self.reactor.run_io(io, |io| self.submit(io)) }
    }

    /// A layer passes an I/O on to this, its base, and gets it back with a frame for layer number `layer` that carries `own`.
    /// `Ready` still carries the frame, to be handled as a completion is.
    #[inline]
    pub fn submit_below(&self, mut io: Io, layer: u32, own: u64) -> Poll<Io> {
        let start = io.start;
        io.push_frame(layer, Frame { a: start, b: own });
        self.submit(io)
    }

    /// As [`Handle::submit_below`] for a request that came to the layer just now, that the layer has not changed, and whose own device
    /// asks of requests all that the base does: it is not checked again, and its time of arrival holds for the base too.
    #[inline]
    pub fn pass_below(&self, mut io: Io, layer: u32, own: u64) -> Poll<Io> {
        let start = io.start;
        io.push_frame(layer, Frame { a: start, b: own });
        self.stats.taken();
        if self.common.is_closing() {
            return self.relay(io);
        }
        debug_assert!(matches!(self.check(&io), Ok(()) | Err(IoStatus::Gone)), "{io:?}");
        debug_assert!(self.common.traits().ops.has(io.op), "{io:?}: a layer knows of its extents what its base does");
        self.pass(io)
    }

    /// The completion of [`Handle::submit_below`] and [`Handle::pass_below`]: counts it for the base and restores what was the layer's.
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

/// An I/O of a handle on its way; ends with the completed I/O, counted. See [`IoFuture`].
#[must_use = "the I/O becomes an orphan when this is dropped early"]
pub struct Execute<'a> {
    handle: &'a Handle,
    io: IoFuture<'a>,
}

impl Future for Execute<'_> {
    type Output = Io;

    #[inline(always)]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Io> {
        let done = Pin::new(&mut self.io).poll(context);
        if let Poll::Ready(io) = &done {
            self.handle.record(io);
        }
        done
    }
}
