//! The receiving side of a connection: bytes to PDUs, logins to the home, data to its place, requests to the session.

use std::convert::Infallible;
use std::rc::Rc;
use std::task::Poll;

use hugepages::Buf;

use super::conn::{Conn, DIRECT_MIN, End, ShortData};
use super::home::{self, Entry, HOME};
use super::live::Live;
use super::slot::{Pieces, Slot};
use crate::iscsi::{
    AHS_MAX, Admitted, Claim, ConnId, Decoder, Event, Framing, Header, Limits, Login, LoginRequest, LoginStatus,
    PREFIX_MAX, Received, RejectReason, Reply, Request, Step, TaskId, Verdict, chap_entropy, padding,
};
use crate::sys::tx::TxBatch;

/// Where the data of the current PDU goes.
enum Placement {
    /// To the pieces of a command, which are here until all of it has come.
    Pieces { task: TaskId, slot: Rc<Slot>, pieces: Pieces, at: usize },
    /// Nowhere.
    Discard,
}

/// What of an event has to be waited for.
enum Rest {
    /// Nothing: it was handled.
    None,
    /// A buffer of so many bytes for the unsolicited data of a command, whose data begins at an offset.
    Buffer { task: TaskId, slot: Rc<Slot>, len: usize, at: usize },
    /// A Login Request that is complete.
    Login(LoginRequest),
    /// A Reject of this header; then the connection may have to end.
    Reject { reason: RejectReason, header: Header, close: bool },
}

/// The state of the receiving task.
pub struct Receiver {
    decoder: Decoder,
    at: Option<Placement>,
    login: Login,
    /// A Login Request whose text arrives.
    request: Option<LoginRequest>,
    text: Vec<u8>,
    /// No request of the login was answered yet.
    first: bool,
}

impl Receiver {
    /// For a connection of which nothing has been read.
    pub fn new(conn: &Conn) -> Receiver {
        let entropy = chap_entropy(conn.local.secret(), conn.id);
        Receiver {
            decoder: Decoder::new(),
            at: None,
            login: Login::new(conn.local.listener(conn.listener), &entropy),
            request: None,
            text: Vec::new(),
            first: true,
        }
    }

    /// Reads until the end, whatever it is; `read` was received before.
    pub async fn run(&mut self, conn: &Rc<Conn>, read: &[u8]) -> Result<Infallible, End> {
        self.take(conn, read).await?;
        loop {
            {
                // Given back before anything waits for the peer again.
                let received = conn.stream().recv_at_most(self.decoder.wanted(conn.awaits_long_data())).await?;
                self.take(conn, &received).await?;
            }
            while self.decoder.data_remaining() >= DIRECT_MIN && self.receive_direct(conn).await? {
                self.take(conn, &[]).await?;
            }
        }
    }

    async fn take(&mut self, conn: &Rc<Conn>, mut input: &[u8]) -> Result<(), End> {
        while let Some(event) = self.decoder.next(&mut input)? {
            match self.handle(conn, event)? {
                Rest::None => {}
                rest => self.wait(conn, rest, input).await?,
            }
        }
        Ok(())
    }

    /// Receives the rest of a large PDU straight into its place. `false`: it has none in one piece.
    async fn receive_direct(&mut self, conn: &Rc<Conn>) -> Result<bool, End> {
        let remaining = self.decoder.data_remaining();
        let Some(Placement::Pieces { pieces, at, .. }) = self.at.as_mut() else { return Ok(false) };
        let Some((place, from)) = pieces.sole(*at, remaining) else { return Ok(false) };
        let Some(mut whole) = place.take() else { return Ok(false) };
        let part = whole.split_to(from + remaining);
        let (mut part, result) = conn.stream().fill(part, from).await;
        if result.is_ok() {
            self.decoder.data_received(&part[from..]);
            *at += remaining;
        }
        if let Err(_rest) = part.unsplit(whole) {
            unreachable!("two parts of one buffer rejoin");
        }
        *place = Some(part);
        result?;
        Ok(true)
    }

    #[inline]
    fn handle(&mut self, conn: &Rc<Conn>, event: Event<'_>) -> Result<Rest, End> {
        if conn.is_closing() {
            return Err(End::Stream);
        }
        let Some((live, number)) = conn.session() else { return Ok(self.handle_login(event)) };
        match event {
            Event::Request(request) => Ok(self.request(live, *number, &request)),
            Event::Data(bytes) => {
                if let Some(Placement::Pieces { pieces, at, .. }) = self.at.as_mut() {
                    pieces.put(*at, bytes);
                    *at += bytes.len();
                }
                Ok(Rest::None)
            }
            Event::DataEnd { digest_ok } => {
                if let Some(Placement::Pieces { task, slot, pieces, .. }) = self.at.take() {
                    // One that has ended meanwhile has no use for it.
                    if live.engine().header(task).is_some() {
                        slot.put_back(pieces);
                    }
                }
                Ok(data_end(live, *number, digest_ok))
            }
        }
    }

    fn handle_login(&mut self, event: Event<'_>) -> Rest {
        match event {
            Event::Request(Request::Login(request)) => {
                self.text.clear();
                if request.data_len.get() == 0 {
                    return Rest::Login(request);
                }
                self.request = Some(request);
                Rest::None
            }
            Event::Data(bytes) => {
                // The decoder bounds it.
                self.text.extend_from_slice(bytes);
                Rest::None
            }
            Event::DataEnd { .. } => self.request.take().map_or(Rest::None, Rest::Login),
            Event::Request(_) => unreachable!("a decoder refuses what comes before the login is complete"),
        }
    }

    #[inline]
    fn request(&mut self, live: &Rc<Live>, number: ConnId, request: &Request) -> Rest {
        let now = live.reactor().clock().now();
        let verdict = live.engine().request(number, request, self.decoder.ahs(), now);
        live.look_at_managers();
        let data_len = self.decoder.data_remaining();
        self.at = (data_len > 0).then_some(Placement::Discard);
        let rest = match verdict {
            // A Data-Out may be empty (RFC 7143 §11.7): no event follows it that would give back what is taken from the slot here.
            Verdict::Accept(_) | Verdict::Place { .. } if data_len == 0 => Rest::None,
            Verdict::Accept(task) => {
                let len = unsolicited_len(live, number, request, data_len);
                self.place(live, task, len, 0)
            }
            Verdict::Place { task, offset } => {
                let first_burst = live.engine_params(number).first_burst;
                let expected = live.engine().command(task).map_or(0, |(command, _)| command.expected_len.get());
                self.place(live, task, first_burst.min(expected) as usize, offset as usize)
            }
            Verdict::Ignore => Rest::None,
            Verdict::Reject(reason) => {
                if data_len == 0 {
                    // Its end comes with it.
                    let _ = data_end(live, number, true);
                }
                return Rest::Reject { reason, header: request.header(), close: false };
            }
        };
        if data_len == 0 { data_end(live, number, true) } else { rest }
    }

    /// Data follows, and this is where it goes. `len`: bytes of unsolicited data of the command, if it has no place for them yet.
    fn place(&mut self, live: &Rc<Live>, task: TaskId, len: usize, at: usize) -> Rest {
        let slot = live.slot(task);
        slot.own(task);
        let mut pieces = slot.take_pieces();
        if pieces.head.is_none() && pieces.body.is_none() {
            slot.set_base(len);
            match live.reactor().pool().alloc(len) {
                Some(buf) => pieces.head = Some(buf),
                None => return Rest::Buffer { task, slot, len, at },
            }
        }
        self.at = Some(Placement::Pieces { task, slot, pieces, at });
        Rest::None
    }

    /// Does what of an event has to be waited for; `input` is what was received behind it.
    async fn wait(&mut self, conn: &Rc<Conn>, rest: Rest, input: &[u8]) -> Result<(), End> {
        match rest {
            Rest::None => {}
            Rest::Buffer { task, slot, len, at } => {
                let mut buf = std::pin::pin!(conn.reactor().buffer(len));
                let buf = std::future::poll_fn(|cx| match conn.is_closing() {
                    true => Poll::Ready(None),
                    false => buf.as_mut().poll(cx).map(Some),
                });
                let Some(buf) = buf.await else { return Err(End::Stream) };
                let pieces = Pieces { head: Some(buf), body: None };
                self.at = Some(Placement::Pieces { task, slot, pieces, at });
            }
            Rest::Login(request) => self.log_in(conn, &request, input).await?,
            Rest::Reject { reason, header, close } => {
                let Some((live, number)) = conn.session() else { return Err(End::Stream) };
                let reject = || Some((live.engine().reject(*number, reason)?, ShortData::new(&[&header])));
                conn.send_short(reject).await?;
                live.pump();
                if close {
                    // Without error recovery its number is missing for good, and the session ends.
                    let others = live.conns().into_iter().filter(|(_, other)| other.id != conn.id);
                    others.for_each(|(_, other)| other.close());
                    conn.close_after_answers();
                    while conn.stream().recv().await.is_ok() {}
                    return Err(End::Stream);
                }
            }
        }
        Ok(())
    }

    async fn log_in(&mut self, conn: &Rc<Conn>, request: &LoginRequest, input: &[u8]) -> Result<(), End> {
        let first = std::mem::replace(&mut self.first, false);
        let tsih = request.tsih.get();
        if first && tsih != 0 {
            // A session lives on one reactor, with all its connections.
            let place =
                conn.reactor().call(HOME, move |home| home::of(home).and_then(|home| home.place_of(tsih))).await;
            if let Some(there) = place.filter(|there| *there != conn.reactor().id()) {
                let pad = [0; 3];
                let pad = &pad[..padding(self.text.len() as u32) as usize];
                let read = [&request.to_bytes()[..], &self.text, pad, input].concat();
                if let Err(error) = conn.move_to(there, read) {
                    tracing::warn!("{}: the connection cannot go to its session: {error}", conn.peer());
                }
                return Err(End::Stream);
            }
        }
        let guesses = self.login.awaits_proof();
        if guesses {
            let (from, now) = (conn.peer().ip(), conn.reactor().clock().now());
            let turn = conn.local.guesses.turn(from, now);
            if turn > now {
                conn.reactor().sleep(turn - now).await;
            }
        }
        let step = match conn.local.is_draining() {
            true => self.login.turn_away(request, LoginStatus::SERVICE_UNAVAILABLE),
            false => self.login.request(&conn.local.book(), request, &self.text),
        };
        match step {
            Step::Reply(reply) => send_login(conn, &reply).await,
            Step::Admit(claim) => self.admit(conn, claim).await,
            Step::Refuse { reply, delay_ns, status } => {
                if guesses && status == LoginStatus::AUTHENTICATION_FAILURE {
                    conn.local.guesses.wrong(conn.peer().ip(), conn.reactor().clock().now());
                }
                refuse(conn, &reply, delay_ns, status).await
            }
        }
    }

    /// Joins or begins the session.
    async fn admit(&mut self, conn: &Rc<Conn>, claim: Claim) -> Result<(), End> {
        let (from, name) = (conn.reactor().id(), claim.nexus.initiator.clone());
        let target = claim.nexus.target.clone();
        conn.set_admitting(true);
        let entry = conn.reactor().call_task(HOME, move |home| home::admit(home, claim, from)).await;
        conn.set_admitting(false);
        let entered = match entry {
            Ok(Entry::New(tsih)) => {
                let admitted = Admitted { tsih, joined: None, window: super::live::WINDOW };
                let Some((reply, login)) = self.login.admitted(&admitted) else { return Err(End::Stream) };
                let (live, number) = Live::begin(&conn.local, &login, conn);
                // Now that it is known here: what changes from now on finds it.
                let opened =
                    conn.reactor().call(HOME, move |home| home::of(home).and_then(|h| h.open(home, tsih))).await;
                match opened {
                    Some(view) => live.show(&view),
                    None => live.close(),
                }
                Ok((reply, login, live, number))
            }
            Ok(Entry::Join(tsih)) => match conn.local.session(tsih) {
                Some(live) if live.is_closing() => {
                    live.release().await;
                    Err(LoginStatus::NO_SESSION)
                }
                Some(live) => {
                    let admitted = Admitted { tsih, joined: Some(live.joined()), window: super::live::WINDOW };
                    let Some((reply, login)) = self.login.admitted(&admitted) else { return Err(End::Stream) };
                    match live.join(&login, conn) {
                        Some(number) => Ok((reply, login, live, number)),
                        None => {
                            live.release().await;
                            return Err(End::Stream);
                        }
                    }
                }
                None => Err(LoginStatus::NO_SESSION),
            },
            Err(status) => Err(status),
        };
        match entered {
            Ok((reply, login, live, number)) => {
                let params = login.params;
                self.decoder.set_full_feature(
                    params.header_digest,
                    params.data_digest,
                    Limits { data: params.target_max_data, ahs: AHS_MAX as u16 },
                );
                let sent = send_login(conn, &reply).await;
                let framing = Framing { header_digest: params.header_digest, data_digest: params.data_digest };
                conn.agree(live, number, framing);
                let of = target.as_deref().unwrap_or("discovery");
                tracing::info!("{}: initiator {name} logged in to {of}", conn.peer());
                sent
            }
            Err(status) => match self.login.refused(status) {
                Some(Step::Refuse { reply, delay_ns, status }) => refuse(conn, &reply, delay_ns, status).await,
                _ => Err(End::Stream),
            },
        }
    }
}

/// How much of a command's data comes without being asked for: its own data, or as much as may follow it.
fn unsolicited_len(live: &Live, number: ConnId, request: &Request, data_len: usize) -> usize {
    match request {
        Request::ScsiCommand(command) if !command.is_final() => {
            live.engine_params(number).first_burst.min(command.expected_len.get()) as usize
        }
        _ => data_len,
    }
}

/// The data of a request is there, or it has none.
fn data_end(live: &Rc<Live>, number: ConnId, digest_ok: bool) -> Rest {
    let received = live.engine().data_end(number, digest_ok);
    let reason = RejectReason::DATA_DIGEST_ERROR;
    match received {
        Received::Nothing | Received::Command => {}
        Received::Write(task, _) => live.wake(task),
        Received::RejectData { header, task, .. } => {
            live.wake(task);
            return Rest::Reject { reason, header, close: false };
        }
        Received::RejectRequest { header, close } => return Rest::Reject { reason, header, close },
    }
    live.pump();
    Rest::None
}

async fn send_login(conn: &Conn, reply: &Reply) -> Result<(), End> {
    let len = reply.text.len();
    let framing = Framing::default();
    let push = |batch: &mut TxBatch| {
        batch.push_head(|out| {
            let at = framing.prefix(&reply.header, out.first_chunk_mut().expect("room that was asked for"));
            out[at..at + len].copy_from_slice(&reply.text);
            let pad = padding(len as u32) as usize;
            out[at + len..at + len + pad].fill(0);
            at + len + pad
        });
    };
    conn.tx.push(1, PREFIX_MAX + len + 3, push).await?;
    Ok(())
}

/// Answers a login that is refused, not too fast, and lets the initiator read it.
async fn refuse(conn: &Conn, reply: &Reply, delay_ns: u64, status: LoginStatus) -> Result<(), End> {
    tracing::info!("{}: login refused: {status:?}", conn.peer());
    conn.reactor().sleep(delay_ns).await;
    send_login(conn, reply).await?;
    conn.close_after_answers();
    while conn.stream().recv().await.is_ok() {}
    Err(End::Stream)
}

impl Pieces {
    /// The one buffer that has `len` bytes from `at` on, and where they begin in it.
    fn sole(&mut self, at: usize, len: usize) -> Option<(&mut Option<Buf>, usize)> {
        let base = self.base();
        if at + len <= base {
            Some((&mut self.head, at))
        } else if at >= base && self.body.as_ref().is_some_and(|body| at - base + len <= body.len()) {
            Some((&mut self.body, at - base))
        } else {
            None
        }
    }

    /// Puts data at an offset; what no piece has room for is dropped.
    #[inline]
    fn put(&mut self, at: usize, bytes: &[u8]) {
        let base = self.base();
        let mut bytes = bytes;
        if at < base
            && let Some(head) = &mut self.head
        {
            let (now, later) = bytes.split_at(bytes.len().min(base - at));
            head[at..at + now.len()].copy_from_slice(now);
            bytes = later;
        }
        if let Some(body) = self.body.as_mut().filter(|_| !bytes.is_empty()) {
            let at = at.max(base) - base;
            let len = bytes.len().min(body.len().saturating_sub(at));
            body[at..at + len].copy_from_slice(&bytes[..len]);
        }
    }
}
