//! The channel: what is one command, and what comes back from the queue.

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::task::Poll;

use super::BOUNCE_LEN;
use super::retry::{Delays, Retries, is_passing, is_undone};
use crate::bdev::bounce::Bounces;
use crate::bdev::exclusion::{Gate, Range, Resume, Ticket};
use crate::bdev::scatter;
use crate::bdev::steps::{Outstanding, WorkQueue};
use crate::bdev::{Channel, Common, DeviceError};
use crate::limits::{NVME_PATIENCE_NS, NVME_RETRIES_MAX};
use crate::nvme::io::{self, Geometry, Place, Unmapping};
use crate::nvme::pcie::{Port, QueuePair, Tenant};
use crate::nvme::spec::{NvmOpcode, RwCdw12, Sqe, Status};
use crate::reactor::Reactor;
use crate::reactor::io::{Io, IoCell, IoOp, IoStatus, Segments};

/// Helpers for I/Os that hold nothing up.
pub(super) const PLAIN_HELPERS: usize = 4;
/// Helpers for I/Os that must be alone on their range. Apart from the others: these wait for admitted I/Os to end.
const EXCLUSIVE_HELPERS: usize = 4;

/// The scratch word of an I/O that the channel has. Bits 7:0 are its number on the queue.
mod scratch {
    /// Bits 15:8: generation of `Outstanding`.
    pub(super) const GENERATION: u32 = 8;
    /// A command of a helper, whose I/O is its own.
    pub(super) const CHILD: u64 = 1 << 16;
    /// An append: the answer says where the data went.
    pub(super) const APPEND: u64 = 1 << 21;
    /// It has a ticket, in bits 63:32.
    pub(super) const ADMITTED: u64 = 1 << 17;
    /// Bits 20:18: how often it was given to the controller again.
    pub(super) const RETRIES: u32 = 18;
    pub(super) const RETRIES_MASK: u64 = 7;
    /// Ticket of the gate.
    pub(super) const TICKET: u32 = 32;
}

const _: () = assert!(NVME_RETRIES_MAX as u64 <= scratch::RETRIES_MASK);

/// A way to namespaces: the queues that their commands go to.
pub trait Way: Sized + 'static {
    /// Of one reactor.
    type Queue: Queue<Self>;
}

/// What takes the commands of namespaces on one reactor. Bits 7:0 of the scratch word of each I/O are its namespace's number there.
pub trait Queue<W: Way>: 'static {
    /// Adds a namespace; `None` if there are too many.
    fn enter(&self, namespace: Rc<Namespace<W>>) -> Option<u8>;

    /// Removes a namespace that has no I/O left here.
    fn leave(&self, number: u8);

    /// Whether data lies where a command can have it; else it has to be copied to where that is so.
    fn reaches(&self, data: &Segments) -> bool;

    /// Takes an I/O whose data is reached. `Pending`: it ends by [`Tenant::answered`] or [`Tenant::ended`]. `Ready`: no more is taken.
    fn submit(&self, io: Io) -> Poll<Io>;
}

impl<P: Port> Way for P {
    type Queue = QueuePair<P, Namespace<P>>;
}

impl<P: Port> Queue<P> for QueuePair<P, Namespace<P>> {
    fn enter(&self, namespace: Rc<Namespace<P>>) -> Option<u8> {
        QueuePair::enter(self, namespace)
    }

    fn leave(&self, number: u8) {
        QueuePair::leave(self, number);
    }

    #[inline]
    fn reaches(&self, data: &Segments) -> bool {
        QueuePair::reaches(self, data)
    }

    #[inline]
    fn submit(&self, io: Io) -> Poll<Io> {
        QueuePair::submit(self, io)
    }
}

/// One namespace on one reactor.
pub struct Namespace<W: Way> {
    pub(super) reactor: Rc<Reactor>,
    pub(super) queue: Rc<W::Queue>,
    /// Its number on the queue.
    number: Cell<u8>,
    place: Place,
    /// For its size, which may have grown since the geometry was read.
    pub(super) common: Common,
    pub(super) geometry: Geometry,
    pub(super) gate: Rc<Gate>,
    outstanding: Outstanding,
    pub(super) plain: WorkQueue,
    exclusive: WorkQueue,
    pub(super) bounces: Bounces,
    retries: Retries,
    /// What is older than this is not given to the controller again: whoever asked may have gone, and asked again another way.
    patience_ns: u64,
    /// When the controller has last failed with a cache; 0: never.
    crashed_at: Cell<u64>,
    closing: Cell<bool>,
    left: Cell<bool>,
}

pub(super) struct NvmeChannel<W: Way>(Rc<Namespace<W>>);

impl<W: Way> NvmeChannel<W> {
    pub(super) fn open(
        reactor: &Rc<Reactor>,
        common: &Common,
        queue: Rc<W::Queue>,
        (geometry, delays, timeout_ns): (Geometry, Delays, u64),
    ) -> Result<NvmeChannel<W>, DeviceError> {
        Gate::check_home(reactor, common)?;
        let refused = |why: &str| DeviceError::Refused(format!("volume \"{}\": {why}", common.traits().name));
        // An append goes to the controller in one piece.
        let bounce_len = geometry.zones.map_or(BOUNCE_LEN, |zones| BOUNCE_LEN.max(zones.append_max as usize));
        let bounces = Bounces::new(reactor, bounce_len)
            .ok_or_else(|| refused("no DMA memory left for its bounce buffer: raise [memory] size"))?;
        let mut children = Vec::new();
        for _ in 0..PLAIN_HELPERS + EXCLUSIVE_HELPERS {
            match reactor.create_io() {
                Some(io) => children.push(io),
                None => {
                    children.into_iter().for_each(|io| reactor.retire_io(io));
                    return Err(refused(&format!("all I/Os of reactor {} are taken", reactor.id())));
                }
            }
        }
        let this = Rc::new_cyclic(|me: &Weak<Namespace<W>>| Namespace {
            reactor: reactor.clone(),
            queue: queue.clone(),
            number: Cell::new(0),
            place: Place { nsid: geometry.nsid, shift: geometry.block_shift },
            common: common.clone(),
            geometry,
            gate: Gate::open(reactor, common, me.clone()),
            outstanding: Outstanding::new(reactor),
            plain: WorkQueue::new(reactor),
            exclusive: WorkQueue::new(reactor),
            bounces,
            retries: Retries::new(reactor, delays),
            patience_ns: NVME_PATIENCE_NS.max(2 * timeout_ns),
            crashed_at: Cell::new(0),
            closing: Cell::new(false),
            left: Cell::new(false),
        });
        match queue.enter(this.clone()) {
            Some(number) => this.number.set(number),
            None => {
                children.into_iter().for_each(|io| reactor.retire_io(io));
                return Err(refused("its controller has too many namespaces in use"));
            }
        }
        for (helper, mut child) in children.into_iter().enumerate() {
            let this = this.clone();
            reactor.spawn("nvme helper", async move {
                let alone = helper >= PLAIN_HELPERS;
                let work = if alone { &this.exclusive } else { &this.plain };
                while let Some(mut io) = work.next().await {
                    let grant = match alone {
                        true => Some(this.gate.acquire(Range::of(&io)).await),
                        false => None,
                    };
                    child = this.carry_out(&mut io, child).await;
                    drop(grant);
                    this.end(io);
                }
                this.reactor.retire_io(child);
            });
        }
        let again = this.clone();
        reactor.spawn("nvme retries", async move {
            while let Some(io) = again.retries.next().await {
                if again.is_stale(&io) {
                    again.ended(io, IoStatus::DeviceError);
                } else if let Poll::Ready(io) = again.queue.submit(io) {
                    let status = io.status;
                    again.ended(io, status);
                }
            }
        });
        Ok(NvmeChannel(this))
    }
}

impl<W: Way> Channel for NvmeChannel<W> {
    #[inline]
    fn submit(&self, mut io: Io) -> Poll<Io> {
        let this = &*self.0;
        if io.op == IoOp::Read && this.queue.reaches(&io.data) {
            io.scratch = this.enter();
            return this.send(io);
        }
        match io.op {
            IoOp::Reset => {
                this.abort_waiting();
                this.outstanding.reset(io)
            }
            IoOp::Flush if !this.geometry.volatile_cache => Poll::Ready(io),
            _ => {
                io.scratch = this.enter();
                this.start(io)
            }
        }
    }
}

impl<W: Way> Drop for NvmeChannel<W> {
    fn drop(&mut self) {
        let this = &*self.0;
        this.closing.set(true);
        this.abort_waiting();
        this.plain.close();
        this.exclusive.close();
        this.retries.close();
        this.leave_if_done();
    }
}

impl<W: Way> Resume for Namespace<W> {
    fn resume(&self, io: Io) {
        if let Poll::Ready(io) = self.start(io) {
            self.reactor.complete(io);
        }
    }
}

impl<W: Way> Namespace<W> {
    #[inline]
    fn enter(&self) -> u64 {
        u64::from(self.number.get()) | u64::from(self.outstanding.enter()) << scratch::GENERATION
    }

    /// Gives an I/O to the queue.
    #[inline]
    fn send(&self, io: Io) -> Poll<Io> {
        match self.queue.submit(io) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(io) => {
                self.account(&io);
                Poll::Ready(io)
            }
        }
    }

    /// Whether the controller does it by one command on the data where that lies.
    fn is_command(&self, io: &Io) -> bool {
        let op = match io.op {
            IoOp::Unmap => self.geometry.unmapping != Unmapping::ZeroesThenDsm,
            IoOp::CompareAndWrite => self.geometry.ops.has(io.op) && self.geometry.is_atomic(io.offset, io.len),
            // The controller's own report is another.
            IoOp::ZoneReport => false,
            op => self.geometry.ops.has(op),
        };
        op && self.queue.reaches(&io.data)
    }

    fn start(&self, mut io: Io) -> Poll<Io> {
        let command = self.is_command(&io);
        if io.op == IoOp::CompareAndWrite && !command {
            self.exclusive.push(io);
            return Poll::Pending;
        }
        if io.op.writes() {
            let Some(ticket) = self.gate.admit(Range::of(&io)) else {
                self.gate.hold_back(io);
                return Poll::Pending;
            };
            io.scratch |= scratch::ADMITTED | u64::from(ticket.to_bits()) << scratch::TICKET;
            if io.op == IoOp::ZoneAppend {
                io.scratch |= scratch::APPEND;
            }
        }
        if command {
            return self.send(io);
        }
        self.plain.push(io);
        Poll::Pending
    }

    /// A helper's own I/O, carried out by the controller. Its status says how it ended.
    pub(super) async fn run(&self, mut child: Io) -> Io {
        let append = if child.op == IoOp::ZoneAppend { scratch::APPEND } else { 0 };
        child.scratch = u64::from(self.number.get()) | scratch::CHILD | append;
        self.reactor.run_io(child, |io| self.queue.submit(io)).await
    }

    /// The I/O is not the channel's any more.
    #[inline]
    fn account(&self, io: &Io) {
        if io.scratch & scratch::ADMITTED != 0 {
            self.gate.done(Ticket::from_bits((io.scratch >> scratch::TICKET) as u32));
        }
        self.outstanding.leave((io.scratch >> scratch::GENERATION) as u8);
    }

    /// The end of every I/O but a reset.
    #[inline]
    pub(super) fn end(&self, mut io: Io) {
        if io.status != IoStatus::Success && io.op == IoOp::Read {
            // Part of it may have been filled: nothing of that is anybody's answer.
            scatter::clear(&mut io.data);
        }
        self.account(&io);
        self.reactor.complete(io);
        if self.closing.get() {
            self.leave_if_done();
        }
    }

    #[cold]
    fn failed(&self, mut io: Io, status: Status) {
        let attempt = (io.scratch >> scratch::RETRIES & scratch::RETRIES_MASK) as u8 + 1;
        let again = attempt <= NVME_RETRIES_MAX && !self.closing.get() && !self.is_stale(&io);
        let harmless = self.may_repeat(&io) || self.moves_write_pointer(&io) && is_undone(status);
        if again && harmless && is_passing(status) {
            io.scratch += 1 << scratch::RETRIES;
            self.retries.push(io, status, attempt);
            return;
        }
        io.status = io::io_status(status);
        if io.scratch & scratch::CHILD != 0 {
            self.reactor.complete(io);
        } else if io.status == IoStatus::Miscompare && !self.closing.get() {
            self.plain.push(io);
        } else {
            self.end(io);
        }
    }

    /// Whether carried out twice it would be written twice, or refused.
    fn moves_write_pointer(&self, io: &IoCell) -> bool {
        self.geometry.zones.is_some() && io.op.moves_write_pointer()
    }

    /// Where the controller has put an append, which says in blocks.
    #[cold]
    fn appended(&self, mut io: Io, block: u64) -> Io {
        let at = block.checked_shl(self.place.shift.into()).filter(|at| at >> self.place.shift == block);
        let zone = self.geometry.zones.map_or(0, |zones| zones.size);
        match at.and_then(|at| at.checked_sub(io.offset)) {
            Some(inside) if inside < zone && io.len <= zone - inside => io.info = io.offset + inside,
            _ => {
                tracing::error!("namespace {}: {io:?} went to block {block}, as its controller says", self.place.nsid);
                io.status = IoStatus::DeviceError;
            }
        }
        io
    }

    fn abort_waiting(&self) {
        while let Some(io) = self.gate.take_waiting().or_else(|| self.exclusive.take_waiting()) {
            self.end(io.with_status(IoStatus::Aborted));
        }
        while let Some(io) = self.retries.take_waiting() {
            self.ended(io, IoStatus::Aborted);
        }
    }

    fn leave_if_done(&self) {
        if self.outstanding.is_empty() && !self.left.replace(true) {
            self.queue.leave(self.number.get());
        }
    }
}

impl<W: Way> Tenant for Namespace<W> {
    fn place(&self) -> Place {
        self.place
    }

    #[inline]
    fn command(&self, io: &IoCell) -> Sqe {
        if io.op == IoOp::Unmap && io.scratch & scratch::CHILD == 0 {
            let deac = if self.geometry.unmapping == Unmapping::Deac { RwCdw12::DEAC } else { 0 };
            return self.place.ranged(NvmOpcode::WRITE_ZEROES, io.offset, io.len, deac);
        }
        if io.op.manages_zones() {
            return io::zone_send(io, self.place, self.geometry.zones.is_some_and(|zones| !zones.is_one(io.len)));
        }
        io::command(io, self.place)
    }

    fn crashed(&self) {
        if self.geometry.volatile_cache {
            self.crashed_at.set(self.reactor.clock().now());
        }
    }

    fn is_stale(&self, io: &IoCell) -> bool {
        let age = self.reactor.clock().now().saturating_sub(io.start);
        // A flush is for what was written before it.
        let crashed_at = self.crashed_at.get();
        age >= self.patience_ns || io.op == IoOp::Flush && crashed_at > 0 && io.start <= crashed_at
    }

    fn may_repeat(&self, io: &IoCell) -> bool {
        io.op != IoOp::CompareAndWrite && !self.moves_write_pointer(io)
    }

    #[inline]
    fn answered(&self, mut io: Io, status: Status, result: impl FnOnce() -> u64) {
        if !status.is_success() {
            return self.failed(io, status);
        }
        if io.scratch & (scratch::CHILD | scratch::APPEND) != 0 {
            if io.scratch & scratch::APPEND != 0 {
                io = self.appended(io, result());
            }
            if io.scratch & scratch::CHILD != 0 {
                return self.reactor.complete(io);
            }
        }
        self.end(io);
    }

    fn ended(&self, io: Io, status: IoStatus) {
        let io = io.with_status(status);
        if io.scratch & scratch::CHILD != 0 {
            self.reactor.complete(io);
        } else {
            self.end(io);
        }
    }
}
