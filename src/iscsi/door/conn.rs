//! One connection: login, then a share of a session, on one reactor for its life.
//!
//! The receiving task reads bytes, has the decoder cut them into PDUs and puts data where it belongs; it never waits for a command. Commands
//! run in the slots of the session ([`super::slot`]); the sending task gathers what they answer ([`crate::net::Tx`]).
//!
//! ```text
//!  bytes -> [decoder] -> login -> home: who joins which session
//!              |
//!              +-> request -> Session -> slot's task -> disk
//!              |                |           |  R2T
//!              +--- data ---> slot's pieces |
//!                                           |  Data-In, response
//!                             [tx batch] -> bytes
//! ```

use std::cell::{Cell, OnceCell, RefCell, RefMut};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::Poll;

use super::live::Live;
use super::local::Local;
use super::receive::Receiver;
use crate::iscsi::{ConnId, Fatal, Framing, Header, PREFIX_MAX, SUFFIX_MAX, TextExchange};
use crate::limits::{ISCSI_LOGIN_TIMEOUT_NS, ISCSI_NOP_TIMEOUT_NS};
use crate::net::{Stream, StreamError, Tx};
use crate::reactor::{Reactor, TaskId};
use crate::sys::descriptor::Descriptor;
use crate::sys::tx::TxBatch;
use crate::util::DataDigest;

/// Announced data from which a receive of its own, straight into the buffer, beats copying out of the receive buffer.
pub const DIRECT_MIN: usize = 16 * 1024;
/// How long an initiator may take to read the last answers and close, in nanoseconds.
const LINGER_NS: u64 = 400_000_000;
/// How often the end of what runs is looked for, in nanoseconds.
pub const LOOK_NS: u64 = 1_000_000;

/// See the module's head.
pub struct Conn {
    /// Unique in the process.
    pub id: u64,
    /// The reactor's iSCSI state.
    pub local: Rc<Local>,
    reactor: Rc<Reactor>,
    stream: Rc<Stream>,
    /// The address of the listener it came by.
    pub listener: SocketAddr,
    /// The sending side.
    pub tx: Rc<Tx>,
    framing: Cell<Framing>,
    session: OnceCell<(Rc<Live>, ConnId)>,
    exchange: RefCell<TextExchange>,
    /// R2Ts of long data that are out.
    long: Cell<u32>,
    /// The home decides about its login, and may wait for the end of a session before it.
    admitting: Cell<bool>,
    closing: Cell<bool>,
    /// Another reactor goes on with the socket.
    moved: Cell<bool>,
    logged_out: Cell<bool>,
    /// When it is closed, if it has not ended until then.
    ends_at: Cell<Option<u64>>,
    /// The task that watches over login and life.
    watcher: Cell<TaskId>,
    /// The task that receives.
    receiver: Cell<TaskId>,
    finished: Cell<bool>,
}

/// Why the receiving task ends.
pub enum End {
    /// The peer went, or this side closes.
    Stream,
    /// The peer broke the protocol.
    Fatal(Fatal),
}

impl From<StreamError> for End {
    fn from(_: StreamError) -> End {
        End::Stream
    }
}

impl From<Fatal> for End {
    fn from(fatal: Fatal) -> End {
        End::Fatal(fatal)
    }
}

/// Serves an accepted connection on this reactor until it ends.
pub fn serve(reactor: &Rc<Reactor>, fd: Descriptor, listener: SocketAddr) {
    take_over(reactor, fd, listener, Vec::new());
}

/// As [`serve`], for a connection of which these bytes have been read.
pub fn take_over(reactor: &Rc<Reactor>, fd: Descriptor, listener: SocketAddr, read: Vec<u8>) {
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
        listener,
        framing: Cell::new(Framing::default()),
        session: OnceCell::new(),
        exchange: RefCell::default(),
        long: Cell::new(0),
        admitting: Cell::new(false),
        closing: Cell::new(false),
        moved: Cell::new(false),
        logged_out: Cell::new(false),
        ends_at: Cell::new(None),
        watcher: Cell::new(TaskId::NONE),
        receiver: Cell::new(TaskId::NONE),
        finished: Cell::new(false),
    });
    local.insert(&conn);
    let sender = conn.clone();
    reactor.spawn("iscsi send", async move { sender.send_all().await });
    conn.watcher.set(reactor.spawn("iscsi watch", watch(reactor.clone(), conn.id)));
    reactor.spawn("iscsi receive", async move { conn.run(read).await });
}

/// Closes a connection that does not log in, or whose initiator does not answer any more. It is looked up by its number: one that ended
/// must not wait for this.
async fn watch(reactor: Rc<Reactor>, id: u64) {
    let look = || Local::of(&reactor).and_then(|local| local.connection(id)).filter(|conn| !conn.is_closing());
    let mut until = reactor.clock().now() + ISCSI_LOGIN_TIMEOUT_NS;
    loop {
        let mut time_up = std::pin::pin!(reactor.sleep(until.saturating_sub(reactor.clock().now())));
        let mut began = None;
        std::future::poll_fn(|cx| {
            let Some(conn) = look() else { return Poll::Ready(()) };
            // A login that is complete ends the wait for it, and so does an end that is near.
            let state = (conn.session().is_some(), conn.ends_at.get());
            if state != *began.get_or_insert(state) {
                return Poll::Ready(());
            }
            drop(conn);
            time_up.as_mut().poll(cx)
        })
        .await;
        let Some(conn) = look() else { return };
        if let Some(at) = conn.ends_at.get() {
            if reactor.clock().now() >= at {
                tracing::info!("{}: what it was sent was not taken: closed", conn.peer());
                return conn.close();
            }
            until = at;
            continue;
        }
        until = match conn.session() {
            // It waits for us, not we for it.
            None if conn.admitting.get() => reactor.clock().now() + ISCSI_LOGIN_TIMEOUT_NS,
            None => {
                tracing::info!("{}: no login in {} s: closed", conn.peer(), ISCSI_LOGIN_TIMEOUT_NS / 1_000_000_000);
                return conn.close();
            }
            Some((live, number)) => match live.look_after(&conn, *number).await {
                Some(until) => until,
                None => {
                    tracing::warn!("{}: {} does not answer: closed", conn.peer(), live.initiator());
                    return conn.close();
                }
            },
        };
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

    /// This end's address, as an initiator names it.
    pub fn local_address(&self) -> SocketAddr {
        self.stream.local()
    }

    /// The socket.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// How outgoing PDUs look.
    #[inline]
    pub fn framing(&self) -> Framing {
        self.framing.get()
    }

    /// The session it is of, and its number there, once it has logged in.
    #[inline]
    pub fn session(&self) -> Option<&(Rc<Live>, ConnId)> {
        self.session.get()
    }

    /// The text exchange that goes on, for one call.
    pub fn exchange(&self) -> RefMut<'_, TextExchange> {
        self.exchange.borrow_mut()
    }

    /// The home is asked about its login, or has answered.
    pub fn set_admitting(&self, admitting: bool) {
        self.admitting.set(admitting);
    }

    /// The login is complete: how PDUs look from the next one on.
    pub fn agree(&self, live: Rc<Live>, number: ConnId, framing: Framing) {
        self.framing.set(framing);
        // The decoder takes no second login.
        let _ = self.session.set((live, number));
        self.reactor.wake(self.watcher.get());
    }

    /// An R2T of so many bytes goes out.
    pub fn asks(&self, len: u32) {
        if len as usize >= DIRECT_MIN {
            self.long.set(self.long.get() + 1);
        }
    }

    /// All the data of a command has come, of which so many long R2Ts were out.
    pub fn asked(&self, long: u32) {
        self.long.set(self.long.get().saturating_sub(long));
    }

    /// Whether the initiator owes data of a long transfer.
    pub fn awaits_long_data(&self) -> bool {
        self.long.get() > 0
    }

    /// Ends the connection: commands in flight run to their end and answer nobody.
    pub fn close(&self) {
        if !self.closing.replace(true) {
            if self.moved.get() {
                self.stream.stop_receiving();
            } else {
                self.stream.shut_down();
            }
            self.tx.finish();
            self.reactor.wake(self.watcher.get());
            // It may wait for memory that only its own end gives back.
            self.reactor.wake(self.receiver.get());
        }
    }

    /// Ends it once everything that was answered is sent, or when the initiator has not taken that in time.
    pub fn close_after_answers(&self) {
        self.close_in_time();
        self.tx.finish();
    }

    /// It ends within the time that an initiator has for an answer to a ping, whether it takes what it is sent or not.
    pub fn close_in_time(&self) {
        self.logged_out.set(true);
        if self.ends_at.get().is_none() {
            self.ends_at.set(Some(self.reactor.clock().now() + ISCSI_NOP_TIMEOUT_NS));
            self.reactor.wake(self.watcher.get());
        }
    }

    /// Whether the connection is ending.
    pub fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Whether it ends by a logout, and not with the loss of a number of the session.
    pub fn is_logged_out(&self) -> bool {
        self.logged_out.get()
    }

    /// Whether all of it has ended.
    pub fn is_finished(&self) -> bool {
        self.finished.get()
    }

    /// Another reactor goes on with the socket, of which `read` is what was received.
    ///
    /// # Errors
    /// What dup(2) says.
    pub fn move_to(&self, reactor: u16, read: Vec<u8>) -> std::io::Result<()> {
        let (fd, listener) = (self.stream.share()?, self.listener);
        self.moved.set(true);
        self.close();
        let go_on = move |there: &Rc<Reactor>| take_over(there, fd, listener, read);
        self.reactor.send(reactor, crate::reactor::mailbox::Message::Call(Box::new(go_on)));
        Ok(())
    }

    /// The body of the sending task. At its end a FIN goes out, and what the initiator still sends is read and dropped for a while: closing
    /// with unread bytes would make the kernel reset the connection and lose what was sent.
    async fn send_all(self: Rc<Self>) {
        self.tx.run().await;
        if !self.tx.failed() && !self.closing.get() {
            self.stream.shut_down_sending();
            self.reactor.sleep(LINGER_NS).await;
        }
        self.close();
    }

    async fn run(self: Rc<Self>, read: Vec<u8>) {
        self.receiver.set(self.reactor.current_task());
        let mut receiver = Receiver::new(&self);
        let Err(end) = receiver.run(&self, &read).await;
        drop(receiver);
        if let End::Fatal(fatal) = end {
            tracing::warn!("{}: {fatal}: connection closed", self.peer());
            if let Some((live, _)) = self.session()
                && fatal.ends_session()
            {
                live.close();
            }
        }
        self.close();
        if let Some((live, number)) = self.session() {
            live.leave(&self, *number).await;
        }
        // What answers that could not be sent had reserved.
        self.tx.unreserve_all();
        self.finished.set(true);
        self.reactor.wake(self.watcher.get());
        self.local.remove(self.id);
    }

    /// Sends a header, and `data` that is shorter than the longest header, when `make` still has them once there is room.
    ///
    /// # Errors
    /// If the stream has ended.
    pub async fn send_short(&self, make: impl FnOnce() -> Option<(Header, ShortData)>) -> Result<(), StreamError> {
        let framing = self.framing();
        let room = PREFIX_MAX + SHORT_MAX + SUFFIX_MAX;
        let pushed = self.tx.push(1, room, |batch| {
            if let Some((header, data)) = make() {
                push_header(batch, &framing, &header);
                push_short(batch, &framing, data.bytes());
            }
        });
        pushed.await.map(drop)
    }

    /// Sends a header without data, if there is one.
    ///
    /// # Errors
    /// If the stream has ended.
    pub async fn send_header(&self, make: impl FnOnce() -> Option<Header>) -> Result<(), StreamError> {
        let framing = self.framing();
        let push = |batch: &mut TxBatch| {
            if let Some(header) = make() {
                push_header(batch, &framing, &header);
            }
        };
        self.tx.push(1, PREFIX_MAX, push).await.map(drop)
    }
}

/// Most bytes of [`ShortData`].
pub const SHORT_MAX: usize = 64;

/// Data of a few bytes: a rejected header, sense data.
pub struct ShortData {
    bytes: [u8; SHORT_MAX],
    len: usize,
}

impl ShortData {
    /// None.
    pub const NONE: ShortData = ShortData { bytes: [0; SHORT_MAX], len: 0 };

    /// Those bytes, at most [`SHORT_MAX`].
    pub fn new(parts: &[&[u8]]) -> ShortData {
        let mut data = ShortData::NONE;
        for part in parts {
            data.bytes[data.len..data.len + part.len()].copy_from_slice(part);
            data.len += part.len();
        }
        data
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Appends a header. The batch was asked for room for it.
pub fn push_header(batch: &mut TxBatch, framing: &Framing, header: &Header) {
    batch.push_head(|out| framing.prefix(header, out.first_chunk_mut().expect("room that was asked for")));
}

/// Appends what follows `len` bytes of data, if anything does. The batch was asked for room for it.
pub fn push_suffix(batch: &mut TxBatch, framing: &Framing, len: u32, digest: DataDigest) {
    if framing.data_digest || !len.is_multiple_of(4) {
        batch.push_head(|out| framing.suffix(len, digest, out.first_chunk_mut().expect("room that was asked for")));
    }
}

fn push_short(batch: &mut TxBatch, framing: &Framing, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    batch.push_head(|out| {
        out[..data.len()].copy_from_slice(data);
        data.len()
    });
    push_suffix(batch, framing, data.len() as u32, digest_of(framing, [data]));
}

/// The digest over pieces of data, where one is in use.
pub fn digest_of<'a>(framing: &Framing, pieces: impl IntoIterator<Item = &'a [u8]>) -> DataDigest {
    let mut digest = DataDigest::new();
    if framing.data_digest {
        pieces.into_iter().for_each(|piece| digest.update(piece));
    }
    digest
}
