//! One NVMe/TCP connection: a queue of a controller, on one reactor for its life.
//!
//! The receiving task reads bytes, has the decoder cut them into PDUs, puts data where it belongs and starts a command slot when a
//! command is complete. It never waits for a slot or for an answer. Each slot is a task of its own ([`super::slot`],
//! [`super::admin`]); the sending task gathers what they answer ([`crate::net::Tx`]).
//!
//! ```text
//!  bytes -> [decoder] -> command -> slot task -> device
//!              |                       |  R2T
//!              +--- data ---> slot's buffer
//!                                      |  C2HData, response
//!                             [tx batch] -> bytes
//! ```

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;

use hugepages::Buf;

use super::local::{Local, Subsystem};
use super::receive::{Fusing, Receiver};
use super::{admin, slot};
use crate::bdev::HostTold;
use crate::limits::{CONNECT_TIMEOUT_NS, ICREQ_TIMEOUT_NS};
use crate::net::{Stream, StreamError, Tx};
use crate::nvme::spec::{Cqe, Fuse, Sqe};
use crate::nvme::target::{ControllerHandle, FuseStep};
use crate::nvme::tcp::{
    DataPdu, Decoder, FatalError, FatalErrorStatus, Framing, LONG_DATA, Limits, MAX_PREFIX_LEN, Role, WriteGrant,
    term_req,
};
use crate::reactor::{Reactor, TaskId};
use crate::sys::descriptor::Descriptor;
use crate::sys::tx::TxBatch;

/// In-capsule data of an I/O queue: two small writes of 4 KiB. What is larger waits for an R2T and is placed without a copy.
pub const IN_CAPSULE_IO: u32 = 8192;
/// In-capsule data of an admin queue, fixed by the transport (TCP §3.3.2.1).
pub const IN_CAPSULE_ADMIN: u32 = 8192;
/// Data that one H2CData PDU may carry.
pub const MAX_H2C_DATA: u32 = 1 << 20;
/// How long a host may take to read the last answers and close, in nanoseconds.
const LINGER_NS: u64 = 400_000_000;
/// How long a termination request may take to leave, in nanoseconds (TCP §3.5 asks for at most 30 s).
const TERMINATE_NS: u64 = 2_000_000_000;

/// What a connection became with its Connect.
pub struct Queue {
    /// The controller.
    pub controller: ControllerHandle,
    /// The subsystem as this reactor knows it; an empty one for discovery.
    pub subsystem: Rc<Subsystem>,
    /// The subsystem's name.
    pub nqn: String,
    /// Queue identifier; 0 is the admin queue.
    pub qid: u16,
    /// Entries of the submission queue.
    pub entries: u16,
    /// SQHD is kept; else it is FFFFh and C2HData may stand for the response.
    pub flow_control: bool,
    /// Commands may address namespaces of all command sets.
    pub all_command_sets: bool,
    /// Up to when the flushes of this queue have told of losses.
    pub told: RefCell<HostTold>,
}

/// A command that a slot works on.
#[derive(Clone, Copy, Debug)]
pub struct Command {
    /// The command.
    pub sqe: Sqe,
    /// Its in-capsule data was damaged.
    pub damaged: bool,
}

/// How far a slot is with its command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It has none, or it is still arriving, or it works on it.
    Open,
    /// The first half of a fused pair, which this slot's own task must not begin: it may be polled for nothing at any time.
    Held,
    /// Complete: the slot's task may begin.
    Ready,
}

/// How a slot's data from the host stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrival {
    /// None is awaited.
    None,
    /// An R2T is out.
    Awaited,
    /// All there; `ok` is the digest's word.
    Complete {
        /// The data digest matched, or there is none.
        ok: bool,
    },
}

/// A command slot: its task, the command and its data.
#[derive(Debug)]
pub struct Slot {
    /// Index in the connection, and transfer tag of its R2T.
    pub index: u16,
    task: Cell<TaskId>,
    stage: Cell<Stage>,
    command: Cell<Command>,
    /// The slot with the first half of a fused pair, whose second half is here.
    first: RefCell<Option<Rc<Slot>>>,
    /// Data from the host: in-capsule, or the buffer that an R2T fills.
    pub data: RefCell<Option<Buf>>,
    grant: Cell<Option<WriteGrant>>,
    arrival: Cell<Arrival>,
    io: Cell<u32>,
    in_device: Cell<bool>,
    /// The task that waits for the data of an R2T: the slot's own, or that of a fused partner.
    fetcher: Cell<TaskId>,
}

/// See the module's head.
pub struct Conn {
    /// Unique in the process.
    pub id: u64,
    /// The reactor's NVMe/TCP state.
    pub local: Rc<Local>,
    reactor: Rc<Reactor>,
    stream: Rc<Stream>,
    /// The sending side.
    pub tx: Rc<Tx>,
    framing: OnceCell<Framing>,
    queue: OnceCell<Queue>,
    slots: RefCell<Vec<Rc<Slot>>>,
    /// Slots that answered, with the number of the batch that must have gone before the host can know.
    free: RefCell<VecDeque<(u64, Rc<Slot>)>>,
    busy: Cell<usize>,
    long_fetches: Cell<i32>,
    sqhd: Cell<u16>,
    closing: Cell<bool>,
    draining: Cell<bool>,
    /// The task that waits for its ICReq and Connect.
    watcher: Cell<TaskId>,
    finished: Cell<bool>,
}

/// Why the receiving task ends.
pub enum End {
    /// The peer went, or this side closes.
    Stream,
    /// The peer broke the protocol.
    Fatal(FatalError),
    /// The peer sent a termination request.
    Terminated,
}

impl From<StreamError> for End {
    fn from(_: StreamError) -> End {
        End::Stream
    }
}

impl From<FatalError> for End {
    fn from(error: FatalError) -> End {
        End::Fatal(error)
    }
}

/// Serves an accepted connection on this reactor until it ends.
pub fn serve(reactor: &Rc<Reactor>, fd: Descriptor, _: SocketAddr) {
    let Some(local) = Local::of(reactor) else { return };
    // The peer may be gone before we get to it.
    let Ok(stream) = Stream::adopt(reactor, fd) else { return };
    if !local.admits_connection() {
        return;
    }
    let stream = Rc::new(stream);
    let conn = Rc::new(Conn {
        id: local.next_connection_id(),
        local: local.clone(),
        reactor: reactor.clone(),
        tx: Tx::new(&stream),
        stream,
        framing: OnceCell::new(),
        queue: OnceCell::new(),
        slots: RefCell::new(Vec::new()),
        free: RefCell::new(VecDeque::new()),
        busy: Cell::new(0),
        long_fetches: Cell::new(0),
        sqhd: Cell::new(0),
        closing: Cell::new(false),
        draining: Cell::new(false),
        watcher: Cell::new(TaskId::NONE),
        finished: Cell::new(false),
    });
    local.insert(&conn);
    let sender = conn.clone();
    reactor.spawn("nvmf send", async move { sender.send_all().await });
    conn.watcher.set(reactor.spawn("nvmf connect timeout", watch(reactor.clone(), conn.id)));
    let receiver = conn;
    reactor.spawn("nvmf receive", async move { receiver.run().await });
}

/// Closes a connection that stops on its way to a queue. It is looked up by its number: one that ended must not wait for this.
async fn watch(reactor: Rc<Reactor>, id: u64) {
    type Arrived = fn(&Conn) -> bool;
    let stages: [(u64, &str, Arrived); 2] = [
        (ICREQ_TIMEOUT_NS, "ICReq", |conn| conn.framing.get().is_some()),
        (CONNECT_TIMEOUT_NS, "successful Connect", |conn| conn.queue().is_some()),
    ];
    for (limit, awaited, arrived) in stages {
        let mut time_up = std::pin::pin!(reactor.sleep(limit));
        std::future::poll_fn(|cx| {
            let conn = Local::of(&reactor).and_then(|local| local.connection(id));
            let Some(conn) = conn.filter(|conn| !conn.closing.get() && !arrived(conn)) else {
                return Poll::Ready(());
            };
            time_up.as_mut().poll(cx).map(|()| {
                tracing::info!("{}: no {awaited} in {} s: closed", conn.peer(), limit / 1_000_000_000);
                conn.close();
            })
        })
        .await;
    }
}

impl Conn {
    /// The reactor it lives on.
    pub fn reactor(&self) -> &Rc<Reactor> {
        &self.reactor
    }

    /// The other end's address.
    pub fn peer(&self) -> SocketAddr {
        self.stream.peer()
    }

    /// This end's address: which listener it came by.
    pub fn local_address(&self) -> SocketAddr {
        self.stream.local()
    }

    /// How outgoing PDUs look.
    #[inline]
    pub fn framing(&self) -> &Framing {
        self.framing.get().expect("a slot runs only after the ICReq")
    }

    /// What Connect made of it, if it was successful.
    #[inline]
    pub fn queue(&self) -> Option<&Queue> {
        self.queue.get()
    }

    /// Counts transfers from the host that begin (1) or have ended (-1).
    pub fn fetches(&self, len: u32, change: i32) {
        if len >= LONG_DATA {
            self.long_fetches.set(self.long_fetches.get() + change);
        }
    }

    /// Whether the host owes data of a long transfer.
    pub fn awaits_long_data(&self) -> bool {
        self.long_fetches.get() > 0
    }

    /// Ends the connection: commands in flight run to their end and answer nobody.
    pub fn close(&self) {
        if !self.closing.replace(true) {
            self.stream.shut_down();
            self.tx.finish();
            for slot in self.slots.borrow().iter() {
                self.reactor.wake(slot.task.get());
            }
            self.reactor.wake(self.watcher.get());
        }
    }

    /// Takes no more commands, answers those in flight, then closes by FIN.
    pub fn drain(&self) {
        if !self.draining.replace(true) {
            self.drained_check();
        }
    }

    /// Whether new commands are left unread: their host will send them again elsewhere.
    pub fn is_draining(&self) -> bool {
        self.draining.get()
    }

    /// Whether the connection is ending: slots have given their buffers back.
    pub fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// The socket.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// The slot of that index.
    pub fn slot(&self, index: u16) -> Option<Rc<Slot>> {
        self.slots.borrow().get(usize::from(index)).cloned()
    }

    /// ICReq and ICResp were exchanged: how PDUs look from now on.
    pub fn agree(&self, framing: Framing) {
        // The decoder takes one ICReq only.
        let _ = self.framing.set(framing);
        self.reactor.wake(self.watcher.get());
    }

    /// The body of the sending task. At its end a FIN goes out, and what the host still sends is read and dropped for a
    /// while: closing with unread bytes would make the kernel reset the connection and lose what was sent.
    async fn send_all(self: Rc<Self>) {
        self.tx.run().await;
        if self.tx.failed() {
            self.close();
            return;
        }
        self.draining.set(true);
        self.stream.shut_down_sending();
        self.reactor.sleep(LINGER_NS).await;
        self.close();
    }

    fn drained_check(&self) {
        if self.draining.get() && self.busy.get() == 0 {
            self.tx.finish();
        }
    }

    async fn run(self: Rc<Self>) {
        let mut decoder =
            Decoder::new(Role::Controller, Limits { in_capsule: IN_CAPSULE_ADMIN, data: MAX_H2C_DATA, alignment_z: 0 });
        let mut receiver = Receiver::default();
        let Err(end) = receiver.run(&self, &mut decoder).await;
        match end {
            End::Fatal(FatalError::Terminate { status, info }) => {
                tracing::warn!("{}: protocol error {status:?} ({info:#x}): connection terminated", self.peer());
                self.terminate(status, info, decoder.offending_header()).await;
            }
            End::Stream | End::Fatal(FatalError::Close) | End::Terminated => {}
        }
        self.close();
        if let Some(first) = receiver.fusing.first.take() {
            // Its second half never came: nobody runs it.
            first.take_held();
            self.release(&first, 0);
        }
        // Slots in flight keep their buffers and this connection until their I/O has landed.
        self.until(|| self.busy.get() == 0).await;
        self.local.leave(&self).await;
        // What answers that could not be sent had reserved.
        self.tx.unreserve_all();
        self.finished.set(true);
        self.reactor.wake(self.watcher.get());
        for slot in self.slots.borrow().iter() {
            self.reactor.wake(slot.task.get());
        }
        self.local.remove(self.id);
    }

    /// Waits until `done`; looked at whenever a slot ends or the sender ends.
    async fn until(&self, done: impl Fn() -> bool) {
        while !done() {
            self.reactor.sleep(2_000_000).await;
        }
    }

    /// Sends a termination request and gives it time to leave (TCP §3.5: the controller closes afterwards). A host that reads
    /// nothing, and so leaves no room for it, does not get more of it.
    async fn terminate(&self, status: FatalErrorStatus, info: u32, header: &[u8]) {
        let mut leaving = std::pin::pin!(async {
            let term =
                |batch: &mut TxBatch| batch.push_head(|out| term_req(Role::Controller, status, info, header, out));
            if self.tx.push(1, 2 * MAX_PREFIX_LEN, term).await.is_ok() {
                self.tx.finish();
                // The sender closes when the host had its time to read it; what the host sends meanwhile is dropped.
                while !self.closing.get() && self.stream.recv().await.is_ok() {}
            }
        });
        let mut time_up = std::pin::pin!(self.reactor.sleep(TERMINATE_NS));
        std::future::poll_fn(|cx| {
            if leaving.as_mut().poll(cx).is_ready() { Poll::Ready(()) } else { time_up.as_mut().poll(cx) }
        })
        .await;
    }

    /// The limit on in-capsule data differs between admin and I/O queues.
    pub fn update_limits(&self, decoder: &mut Decoder) {
        if let Some(queue) = self.queue() {
            decoder.set_in_capsule_limit(if queue.qid == 0 { IN_CAPSULE_ADMIN } else { IN_CAPSULE_IO });
        }
    }

    /// A slot for the next command: one that answered, or a new one up to the queue's entries.
    ///
    /// # Errors
    /// If the host has more commands in flight than its queue has entries. To wait for room would be to wait for a host that may
    /// never read its answers, with a receive buffer in hand.
    pub fn take_slot(&self) -> Result<Rc<Slot>, FatalError> {
        let handed = self.tx.handed();
        if let Some((_, slot)) = self.free.borrow_mut().pop_front_if(|(number, _)| *number <= handed) {
            return Ok(slot);
        }
        self.new_slot()
    }

    #[cold]
    fn new_slot(&self) -> Result<Rc<Slot>, FatalError> {
        let max = self.queue().map_or(1, |q| usize::from(q.entries));
        let index = self.slots.borrow().len();
        if index >= max {
            tracing::warn!("{}: more commands in flight than the queue's {max} entries", self.peer());
            return Err(FatalError::status(FatalErrorStatus::SEQUENCE_ERROR));
        }
        let slot = Rc::new(Slot {
            index: index as u16,
            task: Cell::new(TaskId::NONE),
            stage: Cell::new(Stage::Open),
            command: Cell::new(Command { sqe: Sqe::default(), damaged: false }),
            first: RefCell::new(None),
            data: RefCell::new(None),
            grant: Cell::new(None),
            arrival: Cell::new(Arrival::None),
            io: Cell::new(0),
            in_device: Cell::new(false),
            fetcher: Cell::new(TaskId::NONE),
        });
        self.slots.borrow_mut().push(slot.clone());
        Ok(slot)
    }

    /// Has a slot begin with its command, which is complete. A fused first waits for its second.
    #[inline]
    pub fn start(self: &Rc<Self>, queue: &Queue, slot: Rc<Slot>, fuse: Fuse, fusing: &mut Fusing) {
        self.sqhd.set(if self.sqhd.get() + 1 >= queue.entries { 0 } else { self.sqhd.get() + 1 });
        self.busy.set(self.busy.get() + 1);
        if queue.qid == 0 {
            return self.run_slot(&slot, "nvmf admin", admin::run);
        }
        let (step, lost_partner) = fusing.tracker.next(fuse);
        if lost_partner
            && let Some(first) = fusing.first.take()
            && first.take_held()
        {
            // A fused command that runs alone answers that its partner is missing.
            self.run_slot(&first, "nvmf io", slot::run);
        }
        match step {
            FuseStep::Hold => {
                slot.stage.set(Stage::Held);
                fusing.first = Some(slot);
                return;
            }
            FuseStep::Pair => *slot.first.borrow_mut() = fusing.first.take(),
            FuseStep::Single | FuseStep::MissingFirst => {}
        }
        self.run_slot(&slot, "nvmf io", slot::run);
    }

    #[inline]
    fn run_slot<F: Future<Output = ()> + 'static>(
        self: &Rc<Self>,
        slot: &Rc<Slot>,
        name: &'static str,
        body: fn(Rc<Conn>, Rc<Slot>) -> F,
    ) {
        slot.stage.set(Stage::Ready);
        if slot.task.get() == TaskId::NONE {
            let task = self.reactor.spawn(name, body(self.clone(), slot.clone()));
            slot.task.set(task);
        } else {
            self.reactor.wake(slot.task.get());
        }
    }

    /// Carries out the first command of a connection: Connect, or nothing goes on. An answer that is not a success leaves the
    /// connection waiting for another.
    pub async fn connect(self: &Rc<Self>, slot: &Rc<Slot>) -> Result<(), End> {
        self.busy.set(self.busy.get() + 1);
        let command = slot.command();
        let data = slot.data.borrow_mut().take();
        let answer = self.local.connect(self, &command, data.as_deref()).await;
        let mut cqe = match answer {
            Ok((queue, cqe)) => {
                // The Connect itself took the first entry.
                self.sqhd.set(1);
                let _ = self.queue.set(queue);
                self.reactor.wake(self.watcher.get());
                cqe
            }
            Err(cqe) => cqe,
        };
        cqe.cid = command.sqe.cid;
        let number = self.respond(cqe).await;
        self.release(slot, number);
        if self.closing.get() { Err(End::Stream) } else { Ok(()) }
    }

    /// Sends a response capsule. The number says when the host can have it; see [`Conn::release`].
    pub async fn respond(&self, mut cqe: Cqe) -> u64 {
        let framing = *self.framing();
        self.tx
            .push(1, MAX_PREFIX_LEN, |batch| {
                // Only now: answers leave in the order of their SQHD.
                self.stamp(&mut cqe);
                batch.push_head(|out| framing.capsule_resp(&cqe, out));
            })
            .await
            .unwrap_or(0)
    }

    /// Fills in SQHD: where the controller stands, or FFFFh without flow control (Fabrics §2.4).
    #[inline]
    pub fn stamp(&self, cqe: &mut Cqe) {
        let flow_control = self.queue().is_none_or(|q| q.flow_control);
        cqe.sqhd.set(if flow_control { self.sqhd.get() } else { 0xffff });
    }

    /// Sends the completion of an event. The connection is busy until it is with the sender, so that one that drains ends after
    /// it.
    pub fn report(self: &Rc<Self>, cqe: Cqe) {
        self.busy.set(self.busy.get() + 1);
        let conn = self.clone();
        self.reactor.spawn("nvmf event", async move {
            conn.respond(cqe).await;
            conn.no_longer_busy();
        });
    }

    /// A slot has answered: it may take another command once the batch of that number went out.
    pub fn release(&self, slot: &Rc<Slot>, number: u64) {
        slot.data.borrow_mut().take();
        slot.grant.set(None);
        slot.arrival.set(Arrival::None);
        // What the host can know already stands in front, the rest in the order in which it will.
        let mut free = self.free.borrow_mut();
        if number <= self.tx.handed() {
            free.push_front((number, slot.clone()));
        } else {
            free.push_back((number, slot.clone()));
        }
        drop(free);
        self.no_longer_busy();
    }

    fn no_longer_busy(&self) {
        self.busy.set(self.busy.get() - 1);
        self.drained_check();
    }

    /// Asks the device that works on command `cid` for its early end; whether it will.
    pub fn abort(&self, cid: u16) -> bool {
        let slots = self.slots.borrow();
        let Some(slot) = slots.iter().find(|s| s.in_device.get() && s.command().sqe.cid.get() == cid) else {
            return false;
        };
        let ns = self.queue().and_then(|q| q.subsystem.with_table(|table| table.handle(slot.command().sqe.nsid.get())));
        ns.is_some_and(|ns| ns.handle.abort(slot.io.get()))
    }
}

impl Slot {
    /// Waits for the next command; `false` once the connection has ended.
    pub async fn next(&self, conn: &Conn) -> bool {
        std::future::poll_fn(|_| {
            if self.stage.get() == Stage::Ready {
                self.stage.set(Stage::Open);
                return Poll::Ready(true);
            }
            if conn.finished.get() { Poll::Ready(false) } else { Poll::Pending }
        })
        .await
    }

    /// The command that it holds or works on.
    #[inline]
    pub fn command(&self) -> Command {
        self.command.get()
    }

    /// Takes a command that arrives.
    #[inline]
    pub fn put(&self, sqe: &Sqe) {
        self.command.set(Command { sqe: *sqe, damaged: false });
    }

    /// The in-capsule data of its command was damaged.
    pub fn damage(&self) {
        self.command.set(Command { damaged: true, ..self.command.get() });
    }

    /// The slot with the first half of the fused pair whose second half it has, if that is so.
    #[inline]
    pub fn take_first(&self) -> Option<Rc<Slot>> {
        self.first.borrow_mut().take()
    }

    /// Asks the host for `len` bytes of data by one R2T and waits for them.
    ///
    /// `None`: the connection ended. `false`: the data arrived damaged.
    pub async fn fetch(&self, conn: &Conn, cid: u16, len: u32, buf: Buf) -> Option<(Buf, bool)> {
        *self.data.borrow_mut() = Some(buf);
        self.fetcher.set(conn.reactor.current_task());
        self.arrival.set(Arrival::Awaited);
        self.grant.set(Some(WriteGrant::new(cid, self.index, 0, len)));
        let framing = *conn.framing();
        let index = self.index;
        conn.tx
            .push(1, MAX_PREFIX_LEN, |batch| {
                batch.push_head(|out| framing.r2t(cid, index, 0, len, out));
            })
            .await
            .ok()?;
        let ok = std::future::poll_fn(|_| {
            if conn.closing.get() {
                return Poll::Ready(None);
            }
            match self.arrival.get() {
                Arrival::Complete { ok } if self.grant.get().is_none() => Poll::Ready(Some(ok)),
                _ => Poll::Pending,
            }
        })
        .await?;
        self.data.borrow_mut().take().map(|data| (data, ok))
    }

    /// An H2CData PDU for this slot's R2T begins; whether it is the last one.
    ///
    /// # Errors
    /// The termination request that the specification asks for.
    pub fn accept(&self, pdu: &DataPdu) -> Result<bool, FatalError> {
        let mut grant = self.grant.get().ok_or(WriteGrant::unknown_tag())?;
        let complete = grant.accept(pdu)?;
        self.grant.set(Some(grant));
        Ok(complete)
    }

    /// The data of an H2CData PDU has arrived.
    pub fn arrived(&self, reactor: &Reactor, digest_ok: bool, complete: bool) {
        if !digest_ok {
            self.arrival.set(Arrival::Complete { ok: false });
        }
        if complete {
            if self.arrival.get() == Arrival::Awaited {
                self.arrival.set(Arrival::Complete { ok: true });
            }
            self.grant.set(None);
            reactor.wake(self.fetcher.get());
        }
    }

    /// The I/O that this slot's commands run in.
    pub fn set_io(&self, slot: u32) {
        self.io.set(slot);
    }

    /// Whether the device has the command.
    #[inline]
    pub fn set_in_device(&self, with: bool) {
        self.in_device.set(with);
    }

    /// Whether the first half of a fused pair waits in the slot, which ends: whoever asked runs it.
    pub fn take_held(&self) -> bool {
        let held = self.stage.get() == Stage::Held;
        if held {
            self.stage.set(Stage::Open);
        }
        held
    }
}
