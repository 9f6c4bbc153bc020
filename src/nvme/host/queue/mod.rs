//! One connection to a controller: a queue pair on one reactor, driven by three tasks.
//!
//! ```text
//!   receiving   bytes -> decoder -> slots: data to its place, responses, R2Ts
//!   sending     takes the open batch, sends it, gives lent buffers back, fills the next
//!   watching    ends the connection when a command is overdue
//! ```

mod receive;
mod slots;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use super::command::{Answer, Command, Payload, TimeLimit, Transfer, wire_as_given};
use super::controller::{Options, Ticket, connect_command};
use super::{Ended, HostError};
use crate::limits::TRANSFER_MAX;
use crate::net::{Stream, StreamError};
use crate::nvme::spec::ConnectData;
use crate::nvme::tcp::{
    ADMIN_IN_CAPSULE_LEN, Decoder, Event, FatalError, FatalErrorStatus, Framing, HostParams, Limits, MAX_PREFIX_LEN,
    Negotiated, Role, conclude, ic_req, term_req,
};
use crate::reactor::io::{Io, IoOp, IoStatus, Segment};
use crate::reactor::{Reactor, TaskId};
use crate::sys::tx::TxBatch;
use slots::{Ending, Shape, Slots};
pub(super) use slots::{R2T_MAX, SLOTS_MAX};

/// Data of this many bytes or more is received straight into its place; less is copied there from a receive buffer, which
/// holds the answers to several commands. Below this a receive of its own costs more than the copy.
pub const DIRECT_MIN: usize = 16 * 1024;

/// How often overdue commands are looked for, in nanoseconds: an eighth of the time they have, within these bounds.
const WATCH_NS: (u64, u64) = (5_000_000, 250_000_000);

/// A queue pair of a remote controller. Dropping it closes the connection.
pub struct Queue {
    core: Rc<Core>,
    depth: u16,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let slots = self.core.slots.borrow();
        write!(f, "Queue({} of {} in flight, ended: {:?})", slots.in_flight(), self.depth, self.core.ended.get())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.abandon();
    }
}

struct Core {
    reactor: Rc<Reactor>,
    stream: Stream,
    slots: RefCell<Slots>,
    agreed: Negotiated,
    ended: Cell<Option<Ended>>,
    /// Of the receiving and the sending task: until both are through, the kernel may have buffers.
    busy_tasks: Cell<u8>,
    /// Every I/O has ended.
    over: Cell<bool>,
    sender: Cell<TaskId>,
    sending: Cell<bool>,
    watcher: Cell<TaskId>,
    watch_ns: u64,
    /// Tasks that wait for room or for the end.
    waiters: RefCell<VecDeque<TaskId>>,
}

impl Queue {
    /// Connects I/O queue `qid`, from 1, of the controller that gave out the ticket, on this reactor.
    ///
    /// # Errors
    /// No connection, a broken protocol, or what the controller says to Connect.
    pub async fn connect(reactor: &Rc<Reactor>, ticket: &Ticket, qid: u16) -> Result<Queue, HostError> {
        let queue = Queue::open(reactor, ticket.address, &ticket.options, ticket.queue_size).await?;
        let data = reactor.buffer(size_of::<ConnectData>()).await;
        queue.enter(connect_command(ticket, qid, data)).await?;
        queue.core.slots.borrow_mut().set_in_capsule_max(ticket.in_capsule_max);
        Ok(queue)
    }

    /// Connects a socket and exchanges ICReq and ICResp.
    pub(super) async fn open(
        reactor: &Rc<Reactor>,
        address: SocketAddr,
        options: &Options,
        size: u16,
    ) -> Result<Queue, HostError> {
        let failed = |error| HostError::Connect { address, error };
        let start = async {
            let stream = Stream::connect(reactor, address).await.map_err(failed)?;
            let mut decoder =
                Decoder::new(Role::Host, Limits { in_capsule: 0, data: u32::MAX, alignment_z: options.hpda_z });
            let agreed = initialize(&stream, &mut decoder, options).await?;
            decoder.set_digests(agreed.header_digest, agreed.data_digest);
            Ok((stream, decoder, agreed))
        };
        let started = within(reactor, options.connect_timeout_ns, start).await;
        let (stream, decoder, agreed) =
            started.unwrap_or_else(|| Err(failed(io::Error::from(io::ErrorKind::TimedOut))))?;
        let slots = Slots::new(Shape {
            size,
            framing: Framing::new(Role::Host, &agreed),
            max_h2c_data: agreed.max_h2c_data,
            max_r2t: agreed.max_r2t as usize,
            in_capsule_max: ADMIN_IN_CAPSULE_LEN,
            timeout_ns: options.command_timeout_ns,
        });
        let core = Rc::new(Core {
            reactor: reactor.clone(),
            stream,
            slots: RefCell::new(slots),
            agreed,
            ended: Cell::new(None),
            busy_tasks: Cell::new(2),
            over: Cell::new(false),
            sender: Cell::new(TaskId::NONE),
            sending: Cell::new(false),
            watcher: Cell::new(TaskId::NONE),
            watch_ns: (options.command_timeout_ns / 8).clamp(WATCH_NS.0, WATCH_NS.1),
            waiters: RefCell::new(VecDeque::new()),
        });
        let (sending, receiving, watching) = (core.clone(), core.clone(), core.clone());
        core.sender.set(reactor.spawn("nvme host: sending", async move { sending.send_all().await }));
        reactor.spawn("nvme host: receiving", async move { receiving.receive_all(decoder).await });
        core.watcher.set(reactor.spawn("nvme host: watching", async move { watching.watch().await }));
        Ok(Queue { core, depth: size - 1 })
    }

    /// Carries out a Connect command and takes over what it settles; returns its answer.
    pub(super) async fn enter(&self, connect: Command) -> Result<Answer, HostError> {
        let answer = self.command(connect).await?;
        if !answer.cqe.status().is_success() {
            return Err(HostError::refused("Connect", &answer.cqe));
        }
        // The controller says whether it does without flow control by the head pointer (Base §6.3).
        self.core.slots.borrow_mut().set_flow_disabled(answer.cqe.sqhd.get() == u16::MAX);
        Ok(answer)
    }

    /// Closes the connection without waiting for the I/Os in flight; they end as [`IoStatus::Gone`].
    pub(super) fn abandon(&self) {
        self.core.end(Ended::Closed);
    }

    /// Commands that can be in flight.
    pub fn depth(&self) -> u16 {
        self.depth
    }

    /// Commands in flight.
    pub fn in_flight(&self) -> usize {
        self.core.slots.borrow().in_flight()
    }

    /// What the two ends agreed on: digests, alignments, limits.
    pub fn agreed(&self) -> &Negotiated {
        &self.core.agreed
    }

    /// The reactor of the connection.
    pub fn reactor(&self) -> &Rc<Reactor> {
        &self.core.reactor
    }

    /// Why the connection ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        self.core.ended.get()
    }

    /// Closes the connection; I/Os in flight end as [`IoStatus::Gone`]. Returns when all have ended.
    pub async fn close(&self) {
        self.core.end(Ended::Closed);
        self.core.wait(|core| core.over.get()).await;
    }

    /// Carries out any command, once a slot is free. The answer has the completion, whatever its status.
    ///
    /// # Errors
    /// [`HostError::Lost`] if the connection ends first.
    pub async fn command(&self, command: Command) -> Result<Answer, HostError> {
        let core = &*self.core;
        core.wait(|core| core.ended.get().is_some() || core.slots.borrow().has_room()).await;
        if let Some(ended) = core.ended.get() {
            return Err(ended.into());
        }
        let now = core.reactor.clock().now();
        let deadline = match command.limit {
            TimeLimit::OfQueue => core.slots.borrow().deadline(now),
            TimeLimit::Ns(ns) => now.saturating_add(ns),
            TimeLimit::Never => u64::MAX,
        };
        // From here to the submission nothing waits: an I/O in the hands of a dropped future would be lost.
        let mut io = core.reactor.create_io().ok_or(HostError::NoIo)?;
        io.prepare(IoOp::Flush, 0, 0);
        let (transfer, len) = match command.payload {
            Payload::None => (Transfer::None, 0),
            Payload::Out(buf) | Payload::In(buf) if buf.is_empty() => {
                io.data.push_buf(buf);
                (Transfer::None, 0)
            }
            Payload::Out(buf) => {
                let len = buf.len() as u32;
                io.data.push_buf(buf);
                (Transfer::Out, len)
            }
            Payload::In(buf) => {
                let len = buf.len() as u32;
                io.data.push_buf(buf);
                (Transfer::In, len)
            }
        };
        let wire = wire_as_given(command.sqe, transfer, len, command.sgl_as_given);
        let mut io = core
            .reactor
            .run_io(io, |io| {
                core.slots.borrow_mut().start_as_given(io, wire, deadline);
                core.kick();
                Poll::Pending
            })
            .await;
        let ending = Ending::of(&io);
        let data = match io.data.pop() {
            Some(Segment::Buf(buf)) => Some(buf),
            _ => None,
        };
        core.reactor.retire_io(io);
        match ending {
            Some(Ending { cqe, received, digest_ok }) => Ok(Answer { cqe, data, received, digest_ok }),
            None => Err(core.ended.get().unwrap_or(Ended::Closed).into()),
        }
    }

    /// Takes an I/O whose range and data were checked, with its [`Place`](crate::nvme::io::Place) in the scratch word; data to be sent
    /// is in buffers, and each half of a compare and write is one segment.
    #[inline]
    pub(super) fn submit(&self, io: Io) -> Poll<Io> {
        let core = &*self.core;
        if let Some(ended) = core.ended.get() {
            return Poll::Ready(io.with_status(ended.io_status()));
        }
        core.slots.borrow_mut().submit(io, core.reactor.clock().now());
        core.kick();
        Poll::Pending
    }
}

impl Ended {
    /// How I/Os end that the end of the connection caught.
    pub fn io_status(self) -> IoStatus {
        if self == Ended::Closed { IoStatus::Gone } else { IoStatus::DeviceError }
    }
}

impl Core {
    /// Has the sender look at the open batch, unless it will anyway.
    #[inline]
    fn kick(&self) {
        if !self.sending.get() {
            self.reactor.wake(self.sender.get());
        }
    }

    fn wake_waiters(&self) {
        let mut waiters = self.waiters.borrow_mut();
        for task in waiters.drain(..) {
            self.reactor.wake(task);
        }
    }

    async fn wait(&self, done: impl Fn(&Core) -> bool) {
        std::future::poll_fn(|_| {
            if done(self) {
                return Poll::Ready(());
            }
            self.waiters.borrow_mut().push_back(self.reactor.current_task());
            Poll::Pending
        })
        .await;
    }

    /// Ends the connection for the first reason given. After a breach of protocol the sender still says so; else the socket
    /// is shut down at once.
    fn end(&self, reason: Ended) {
        if self.ended.get().is_some() {
            return;
        }
        self.ended.set(Some(reason));
        if !matches!(reason, Ended::Protocol(FatalError::Terminate { .. })) {
            self.stream.shut_down();
        }
        self.reactor.wake(self.sender.get());
        self.wake_waiters();
    }

    /// The receiving or the sending task is through.
    fn task_ends(&self) {
        self.busy_tasks.set(self.busy_tasks.get() - 1);
        if self.busy_tasks.get() > 0 {
            return;
        }
        self.slots.borrow_mut().end(self.ended.get().unwrap_or(Ended::Closed).io_status(), &self.reactor);
        self.over.set(true);
        self.reactor.wake(self.watcher.get());
        self.wake_waiters();
    }

    async fn send_all(&self) {
        loop {
            let outgoing = self.slots.borrow_mut().take_batch();
            let Some(mut outgoing) = outgoing else {
                if self.ended.get().is_some() {
                    break;
                }
                let mut woken = false;
                std::future::poll_fn(
                    |_| {
                        if std::mem::replace(&mut woken, true) { Poll::Ready(()) } else { Poll::Pending }
                    },
                )
                .await;
                continue;
            };
            self.sending.set(true);
            let (batch, result) = self.stream.send(outgoing.batch).await;
            self.sending.set(false);
            outgoing.batch = batch;
            let mut slots = self.slots.borrow_mut();
            slots.reclaim(outgoing, &self.reactor);
            if self.ended.get().is_none() {
                slots.fill(self.reactor.clock().now());
            }
            drop(slots);
            self.wake_waiters();
            if let Err(error) = result {
                self.end(Ended::Stream(error));
                break;
            }
        }
        if matches!(self.ended.get(), Some(Ended::Protocol(FatalError::Terminate { .. }))) {
            // What the peer still sends must not meet a closed socket: the reset would take the reason from it.
            self.stream.shut_down_sending();
            while self.stream.recv().await.is_ok() {}
        }
        self.stream.shut_down();
        self.task_ends();
    }

    async fn watch(&self) {
        let _guard = Stopped(self);
        let mut ended_before = false;
        loop {
            let mut sleep = pin!(self.reactor.sleep(self.watch_ns));
            std::future::poll_fn(|cx| if self.over.get() { Poll::Ready(()) } else { sleep.as_mut().poll(cx) }).await;
            if self.over.get() {
                return;
            }
            if self.ended.get().is_some() {
                if std::mem::replace(&mut ended_before, true) {
                    // A peer that does not take the reason of the end, or does not close.
                    self.stream.shut_down();
                }
                continue;
            }
            let overdue = self.slots.borrow().overdue(self.reactor.clock().now());
            if let Some(opcode) = overdue {
                self.end(Ended::Timeout { opcode });
            }
        }
    }
}

/// Marks a connection as ended when its reactor drops the tasks: from then on the backend may be gone.
struct Stopped<'a>(&'a Core);

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        if self.0.ended.get().is_none() {
            self.0.ended.set(Some(Ended::Closed));
        }
    }
}

/// Sends ICReq and waits for ICResp.
async fn initialize(stream: &Stream, decoder: &mut Decoder, options: &Options) -> Result<Negotiated, HostError> {
    let lost = |error: StreamError| HostError::Lost(Ended::Stream(error));
    let request = HostParams {
        header_digest: options.header_digest,
        data_digest: options.data_digest,
        hpda_z: options.hpda_z,
        max_r2t: u32::from(options.max_r2t).clamp(1, R2T_MAX as u32),
    }
    .request();
    let mut batch = TxBatch::new(1, MAX_PREFIX_LEN);
    batch.push_head(|out| ic_req(&request, out));
    let (_, sent) = stream.send(batch).await;
    sent.map_err(lost)?;
    let broken = loop {
        let received = stream.recv().await.map_err(lost)?;
        let mut input = &received[..];
        match decoder.next(&mut input) {
            Ok(None) => {}
            Ok(Some(Event::IcResp(response))) if input.is_empty() => match conclude(&request, &response) {
                Ok(agreed) => return Ok(agreed),
                Err(error) => break error,
            },
            Ok(Some(Event::Term { status, info })) => return Err(Ended::Terminated { status, info }.into()),
            // Nothing else is due before the first command.
            Ok(Some(_)) => break FatalError::status(FatalErrorStatus::SEQUENCE_ERROR),
            Err(error) => break error,
        }
    };
    if let FatalError::Terminate { status, info } = broken {
        let mut batch = TxBatch::new(1, MAX_PREFIX_LEN);
        batch.push_head(|out| term_req(Role::Host, status, info, decoder.offending_header(), out));
        // The reason of the end counts, not whether the peer took it.
        let _ = stream.send(batch).await;
    }
    Err(Ended::Protocol(broken).into())
}

/// The outcome of `future`, or `None` if it takes longer than `ns` nanoseconds; then it is dropped.
pub(super) async fn within<T>(reactor: &Reactor, ns: u64, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    let mut sleep = pin!(reactor.sleep(ns));
    std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(outcome) => Poll::Ready(Some(outcome)),
        Poll::Pending => sleep.as_mut().poll(cx).map(|()| None),
    })
    .await
}

const _: () = assert!(DIRECT_MIN < TRANSFER_MAX);
