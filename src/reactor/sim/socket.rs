//! Stream sockets of the simulated world: what TCP and the kernel's sockets promise, and no more.
//!
//! ```text
//!   send --> out ~~~~ deliver, later, in pieces ~~~~> inbox --> receive
//!            bounded: a sender waits                  bounded: delivery waits
//! ```
//! Errors follow Linux: what arrived before a reset can still be read, the reset is told once (ECONNRESET), then reads end
//! (0) and sends fail (EPIPE). Closing with unread bytes resets; bytes that arrive at a closed or shut end reset too.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::rates::FLIP_FROM;
use super::ring::{At, forget};
use super::world::{Event, Object, State};
use crate::sys::descriptor::SimulatedFd;
use crate::sys::limits::RX_BUFFER_LEN;
use crate::sys::op::{Op, Payload};

/// Connections that wait for an accept.
const BACKLOG_MAX: usize = 4096;
/// When the kernel gives up on what a silent peer does not acknowledge (tcp_retries2).
const GIVE_UP_NS: u64 = 924_600_000_000;
/// When the kernel gives up on a connection request (tcp_syn_retries).
const CONNECT_GIVE_UP_NS: u64 = 127_000_000_000;
/// Ports that [`super::World::listen`] draws from for port 0.
const LISTEN_PORTS: std::ops::Range<u16> = 20_000..32_768;

/// The FIN of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fin {
    No,
    /// Goes out behind what is in `out`.
    Queued,
    Delivered,
}

/// What happens to one byte on its way.
#[derive(Clone, Copy, Debug)]
pub(super) enum Spoil {
    Drop,
    Flip,
}

/// One end of a connection, or a socket that has none yet.
pub(super) struct End {
    machine: usize,
    local: Option<SocketAddr>,
    remote: Option<SocketAddr>,
    /// The other end's object, once connected.
    peer: Option<usize>,
    connecting: Option<At>,
    inbox: VecDeque<u8>,
    inbox_max: usize,
    out: VecDeque<u8>,
    out_max: usize,
    fin: Fin,
    fin_seen: bool,
    /// Shut down locally: nothing is received any more.
    shut: bool,
    /// Reset, or given up: nothing moves any more.
    dead: bool,
    /// Told once.
    error: Option<i32>,
    /// No descriptor is open; what was sent still goes out.
    closed: bool,
    /// Its machine lost power.
    gone: bool,
    /// A delivery is planned.
    moving: bool,
    /// When it gives up on a peer that is silent.
    giving_up: Option<u64>,
    /// Bytes that left `out` so far.
    delivered: u64,
    spoils: Vec<(u64, Spoil)>,
    pub(super) receivers: VecDeque<At>,
    pub(super) senders: VecDeque<At>,
}

impl End {
    pub(super) fn new(state: &State, machine: usize) -> End {
        // Half of the buffers hold a few small messages, so that both sides run into them.
        let most = state.rates.socket_buffer_max.max(4096);
        let size = |most: usize| if state.pick(2) == 0 { most } else { 2048 + state.pick(most as u64 - 2047) as usize };
        End {
            machine,
            local: None,
            remote: None,
            peer: None,
            connecting: None,
            inbox: VecDeque::new(),
            inbox_max: size(most),
            out: VecDeque::new(),
            out_max: size(most),
            fin: Fin::No,
            fin_seen: false,
            shut: false,
            dead: false,
            error: None,
            closed: false,
            gone: false,
            moving: false,
            giving_up: None,
            delivered: 0,
            spoils: Vec::new(),
            receivers: VecDeque::new(),
            senders: VecDeque::new(),
        }
    }

    /// The peer's address and its own; `None` unless connected.
    pub(super) fn names(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.peer.filter(|_| !self.dead)?;
        Some((self.remote?, self.local?))
    }

    /// Takes an operation out of all queues; whether it waited in one.
    pub(super) fn forget(&mut self, at: At) -> bool {
        let connecting = self.connecting == Some(at);
        if connecting {
            self.connecting = None;
        }
        forget(&mut self.receivers, at) | forget(&mut self.senders, at) | connecting
    }

    fn has_outgoing(&self) -> bool {
        !self.out.is_empty() || self.fin == Fin::Queued
    }
}

/// A listening socket.
pub(super) struct Port {
    machine: usize,
    address: SocketAddr,
    backlog: VecDeque<usize>,
    pub(super) acceptors: VecDeque<At>,
    closed: bool,
}

impl State {
    fn end(&mut self, number: usize) -> &mut End {
        match &mut self.objects[number] {
            Object::Socket(end) => end,
            _ => unreachable!("object {number} is a socket"),
        }
    }

    fn port(&mut self, number: usize) -> &mut Port {
        match &mut self.objects[number] {
            Object::Port(port) => port,
            _ => unreachable!("object {number} listens"),
        }
    }

    fn listener_at(&self, address: SocketAddr) -> Option<usize> {
        self.objects.iter().position(|o| matches!(o, Object::Port(p) if !p.closed && p.address == address))
    }

    pub(super) fn listen(&mut self, machine: usize, port: u16) -> io::Result<(SimulatedFd, SocketAddr)> {
        let ip = IpAddr::V4(self.machines[machine].address);
        let free = |port: &u16| self.listener_at((ip, *port).into()).is_none();
        let port = if port == 0 { LISTEN_PORTS.into_iter().find(free) } else { Some(port).filter(free) };
        let port = port.ok_or_else(|| io::Error::from_raw_os_error(libc::EADDRINUSE))?;
        let address = SocketAddr::new(ip, port);
        let port = Port { machine, address, backlog: VecDeque::new(), acceptors: VecDeque::new(), closed: false };
        Ok((self.open(Object::Port(port)), address))
    }

    // --- connecting ---

    pub(super) fn connect(&mut self, at: At, number: usize, to: SocketAddr) {
        let end = self.end(number);
        if end.peer.is_some() || end.dead {
            return self.finish(at, -libc::EISCONN, None);
        }
        if end.local.is_some() {
            return self.finish(at, -libc::EALREADY, None);
        }
        let machine = end.machine;
        let local = SocketAddr::new(self.machines[machine].address.into(), self.free_port());
        let end = self.end(number);
        end.local = Some(local);
        end.remote = Some(to);
        end.connecting = Some(at);
        let delay = self.hop();
        self.after(delay, Event::Syn { end: number, to });
    }

    pub(super) fn syn(&mut self, number: usize, to: SocketAddr) {
        let (from, local, closed) = {
            let end = self.end(number);
            (end.machine, end.local, end.closed || end.gone)
        };
        if closed {
            return;
        }
        let there = self.machines.iter().position(|m| IpAddr::V4(m.address) == to.ip());
        let hop = self.hop();
        let Some(there) = there else {
            return self.after(3_000_000_000, Event::Answer { end: number, errno: libc::EHOSTUNREACH });
        };
        if self.is_silent(there) || self.is_silent(from) {
            return self.after(CONNECT_GIVE_UP_NS, Event::Answer { end: number, errno: libc::ETIMEDOUT });
        }
        let Some(listener) = self.listener_at(to) else {
            return self.after(hop, Event::Answer { end: number, errno: libc::ECONNREFUSED });
        };
        if self.port(listener).backlog.len() >= BACKLOG_MAX {
            // Dropped, and sent again by the client's kernel.
            return self.after(1_000_000_000, Event::Syn { end: number, to });
        }
        let machine = self.port(listener).machine;
        let mut end = End::new(self, machine);
        end.local = Some(to);
        end.remote = local;
        end.peer = Some(number);
        self.objects.push(Object::Socket(Box::new(end)));
        let other = self.objects.len() - 1;
        self.end(number).peer = Some(other);
        self.note("connection", other, number as i64);
        self.port(listener).backlog.push_back(other);
        self.after(hop, Event::Answer { end: number, errno: 0 });
        self.accept(listener);
    }

    pub(super) fn answer(&mut self, number: usize, errno: i32) {
        let end = self.end(number);
        let connecting = end.connecting.take();
        if errno != 0 {
            // The socket may be used for another attempt.
            end.local = None;
        }
        if let Some(at) = connecting {
            self.finish(at, -errno, None);
        }
    }

    /// Gives connections that wait to accepts that wait.
    pub(super) fn accept(&mut self, number: usize) {
        loop {
            let no_descriptor = self.happens(self.rates.no_descriptor);
            let port = self.port(number);
            if port.backlog.is_empty() {
                return;
            }
            let Some(at) = port.acceptors.pop_front() else { return };
            if no_descriptor {
                self.finish(at, -libc::EMFILE, None);
                continue;
            }
            let Some(end) = port.backlog.pop_front() else { return };
            let fd = SimulatedFd::new(end, &self.closed);
            self.finish(at, end as i32, Some(Payload::Fd(crate::sys::descriptor::Descriptor::Simulated(fd))));
        }
    }

    // --- moving bytes ---

    /// Lets receives that wait have what is there.
    pub(super) fn receive(&mut self, number: usize) {
        while let Some(&at) = self.end(number).receivers.front() {
            if self.end(number).inbox.is_empty() {
                let Some(result) = self.end_of_stream(number) else { return };
                self.end(number).receivers.pop_front();
                let done = self.flight(at).map_or(0, |flight| flight.progress as i32);
                if done == 0 && result != 0 {
                    self.end(number).error = None;
                }
                self.finish(at, if done > 0 { done } else { result }, None);
                continue;
            }
            let placed = matches!(self.flight(at).map(|f| &f.op), Some(Op::RecvInto { .. }));
            let finished = if placed { self.receive_into(at, number) } else { self.receive_picked(at, number) };
            if finished {
                self.end(number).receivers.retain(|other| *other != at);
            }
            let peer = self.end(number).peer;
            if let Some(peer) = peer {
                self.move_soon(peer);
            }
        }
    }

    /// What a receive gets when nothing is left to read: `None` if more may come.
    fn end_of_stream(&mut self, number: usize) -> Option<i32> {
        let end = self.end(number);
        if end.fin_seen {
            Some(0)
        } else if let Some(errno) = end.error {
            Some(-errno)
        } else if end.shut || end.dead {
            Some(0)
        } else if end.peer.is_none() {
            Some(-libc::ENOTCONN)
        } else {
            None
        }
    }

    fn receive_picked(&mut self, at: At, number: usize) -> bool {
        let none = self.happens(self.rates.no_buffers);
        let Some(Op::Recv { len, .. }) = self.flight(at).map(|flight| &flight.op) else { return true };
        let len = *len as usize;
        let buf = self.rings[at.ring].pool.as_ref().and_then(|pool| pool.alloc(RX_BUFFER_LEN));
        let Some(mut buf) = buf.filter(|_| !none) else {
            self.finish(at, -libc::ENOBUFS, None);
            return true;
        };
        let inbox = &mut self.end(number).inbox;
        let count = inbox.len().min(buf.len()).min(len);
        buf.truncate(count);
        take(inbox, &mut buf);
        self.finish(at, count as i32, Some(Payload::Buf(buf)));
        true
    }

    fn receive_into(&mut self, at: At, number: usize) -> bool {
        let Object::Socket(end) = &mut self.objects[number] else { unreachable!("a receive is on a socket") };
        let Some(flight) = self.rings[at.ring].flight_mut(at.token) else { return true };
        let Op::RecvInto { buf, from, .. } = &mut flight.op else { unreachable!("a placed receive") };
        let room = &mut buf[*from as usize + flight.progress..];
        let count = end.inbox.len().min(room.len());
        take(&mut end.inbox, &mut room[..count]);
        flight.progress += count;
        if *from as usize + flight.progress < buf.len() {
            return false;
        }
        let done = flight.progress as i32;
        self.finish(at, done, None);
        true
    }

    /// Lets sends that wait fill the room there is.
    pub(super) fn send(&mut self, number: usize) {
        while let Some(&at) = self.end(number).senders.front() {
            let short = self.happens(self.rates.short_send);
            let end = self.end(number);
            if end.dead || end.fin != Fin::No || end.peer.is_none() {
                end.senders.pop_front();
                let errno = end.error.take().unwrap_or(libc::EPIPE);
                self.finish(at, -errno, None);
                continue;
            }
            let room = end.out_max.saturating_sub(end.out.len());
            if room == 0 {
                return;
            }
            end.senders.pop_front();
            let Some(flight) = self.flight(at) else { continue };
            let Op::Send { batch, .. } = &flight.op else { unreachable!("a send") };
            let most = room.min(batch.remaining());
            let most = if short && most > 0 { self.portion(most) } else { most };
            let Object::Socket(end) = &mut self.objects[number] else { unreachable!("a send is on a socket") };
            let Some(flight) = self.rings[at.ring].flight_mut(at.token) else { continue };
            let Op::Send { batch, .. } = &flight.op else { unreachable!("a send") };
            let mut count = 0;
            for piece in batch.unsent() {
                let part = piece.len().min(most - count);
                end.out.extend(&piece[..part]);
                count += part;
            }
            self.finish(at, count as i32, None);
            self.move_soon(number);
        }
    }

    /// Plans a delivery, unless one is planned or there is nothing to deliver.
    fn move_soon(&mut self, number: usize) {
        let end = self.end(number);
        if end.peer.is_some() && !end.moving && !end.dead && end.has_outgoing() {
            end.moving = true;
            let delay = self.hop();
            self.after(delay, Event::Deliver { end: number });
        }
    }

    /// Some of what this end has sent arrives at the other.
    pub(super) fn deliver(&mut self, number: usize) {
        let end = self.end(number);
        end.moving = false;
        let (Some(peer), machine) = (end.peer, end.machine) else { return };
        if end.dead || end.gone || !end.has_outgoing() {
            return;
        }
        let other = self.end(peer).machine;
        if self.is_silent(machine) || self.is_silent(other) {
            let deadline = self.now() + GIVE_UP_NS;
            let end = self.end(number);
            if end.giving_up.is_none() {
                end.giving_up = Some(deadline);
                self.after(GIVE_UP_NS, Event::TimeOut { end: number });
            }
            return;
        }
        self.end(number).giving_up = None;
        if self.happens(self.rates.reset) {
            self.reset(peer, libc::ECONNRESET);
            return self.reset(number, libc::ECONNRESET);
        }
        if self.end(number).out.is_empty() {
            self.end(number).fin = Fin::Delivered;
            self.end(peer).fin_seen = true;
            self.note("fin", number, 0);
            return self.receive(peer);
        }
        let to = self.end(peer);
        if to.closed || to.gone || to.shut || to.dead {
            // Nobody will read it: the answer is a reset.
            if !to.gone && !to.dead {
                self.reset(peer, libc::ECONNRESET);
            }
            let delay = self.hop();
            return self.after(delay, Event::Reset { end: number });
        }
        let room = to.inbox_max.saturating_sub(to.inbox.len());
        let most = room.min(self.end(number).out.len());
        if most == 0 {
            // Goes on when the peer has read something.
            return;
        }
        let count = if self.happens(self.rates.split) { self.portion(most) } else { most };
        self.carry(number, peer, count);
        self.note("deliver", number, count as i64);
        self.receive(peer);
        self.send(number);
        self.move_soon(number);
    }

    fn carry(&mut self, number: usize, peer: usize, count: usize) {
        let end = self.end(number);
        let first = end.delivered;
        let mut bytes = vec![0; count];
        take(&mut end.out, &mut bytes);
        end.delivered += count as u64;
        let reached = |at: &(u64, Spoil)| at.0 < first + count as u64;
        let mut spoils: Vec<(u64, Spoil)> = end.spoils.extract_if(.., |spoil| reached(spoil)).collect();
        // From the back, so that a dropped byte does not move the others.
        spoils.sort_unstable_by_key(|spoil| std::cmp::Reverse(spoil.0));
        for (at, spoil) in spoils {
            match spoil {
                Spoil::Drop => drop(bytes.remove((at - first) as usize)),
                Spoil::Flip => bytes[(at - first) as usize] ^= 1 << (at % 8),
            }
        }
        let spared = FLIP_FROM.saturating_sub(first);
        if (spared as usize) < bytes.len() && self.happens(self.rates.flip) {
            let at = spared as usize + self.pick(bytes.len() as u64 - spared) as usize;
            bytes[at] ^= 1 << self.pick(8);
            self.note("flip", number, first as i64 + at as i64);
        }
        self.trace.mix_bytes(&bytes);
        self.end(peer).inbox.extend(&bytes);
    }

    // --- ending ---

    /// An end is shut down by its owner, both directions or only what it sends.
    pub(super) fn shut(&mut self, number: usize, sending_only: bool) -> i32 {
        let end = self.end(number);
        if end.peer.is_none() || end.dead {
            return -libc::ENOTCONN;
        }
        end.shut |= !sending_only;
        if end.fin == Fin::No {
            end.fin = Fin::Queued;
        }
        self.receive(number);
        self.send(number);
        self.move_soon(number);
        0
    }

    /// This end learns that the connection is no more.
    pub(super) fn reset(&mut self, number: usize, errno: i32) {
        let end = self.end(number);
        if end.dead || end.gone {
            return;
        }
        end.dead = true;
        end.out.clear();
        // Linux: a reset after the peer's FIN is a broken pipe.
        end.error = Some(if end.fin_seen && errno == libc::ECONNRESET { libc::EPIPE } else { errno });
        self.note("reset", number, i64::from(errno));
        self.receive(number);
        self.send(number);
    }

    pub(super) fn time_out(&mut self, number: usize) {
        // Else the peer was heard of in between.
        let now = self.now();
        if self.end(number).giving_up == Some(now) {
            self.reset(number, libc::ETIMEDOUT);
        }
    }

    /// The last descriptor of a socket is gone.
    pub(super) fn close_end(&mut self, number: usize) {
        let end = self.end(number);
        end.closed = true;
        if end.peer.is_none() || end.dead || end.gone {
            return;
        }
        if !end.inbox.is_empty() {
            return self.abort(number);
        }
        if end.fin == Fin::No {
            end.fin = Fin::Queued;
        }
        self.move_soon(number);
    }

    /// Ends a connection by a reset of the peer: what was not delivered is lost.
    fn abort(&mut self, number: usize) {
        let end = self.end(number);
        end.closed = true;
        end.dead = true;
        end.inbox = VecDeque::new();
        end.out = VecDeque::new();
        if let Some(peer) = end.peer {
            let delay = self.hop();
            self.after(delay, Event::Reset { end: peer });
        }
    }

    /// A listening socket is closed: connections that nobody accepted are reset.
    pub(super) fn close_port(&mut self, number: usize) {
        let port = self.port(number);
        port.closed = true;
        for end in std::mem::take(&mut port.backlog) {
            self.abort(end);
        }
    }

    /// A machine loses power: its sockets are forgotten without a word.
    pub(super) fn sockets_lose_power(&mut self, machine: usize) {
        for object in &mut self.objects {
            match object {
                Object::Socket(end) if end.machine == machine => {
                    end.gone = true;
                    end.out = VecDeque::new();
                    end.inbox = VecDeque::new();
                }
                Object::Port(port) if port.machine == machine => {
                    port.closed = true;
                    port.backlog.clear();
                }
                _ => {}
            }
        }
    }

    /// Two machines can talk again: what waits goes on.
    pub(super) fn resume_deliveries(&mut self) {
        for number in 0..self.objects.len() {
            if matches!(self.objects[number], Object::Socket(_)) {
                self.move_soon(number);
            }
        }
    }

    /// The end of a connection that `from` names and that talks to `to`.
    pub(super) fn find_end(&self, from: SocketAddr, to: SocketAddr) -> Option<usize> {
        let is = |end: &End| end.local == Some(from) && end.remote == Some(to) && end.peer.is_some() && !end.dead;
        self.objects.iter().position(|object| matches!(object, Object::Socket(end) if is(end)))
    }

    pub(super) fn spoil(&mut self, number: usize, at: u64, spoil: Spoil) {
        let end = self.end(number);
        assert!(at >= end.delivered, "byte {at} of this stream has arrived already");
        end.spoils.push((at, spoil));
    }
}

/// Moves bytes from the front of a queue, as many as fit.
fn take(from: &mut VecDeque<u8>, into: &mut [u8]) {
    let count = into.len();
    let (front, back) = from.as_slices();
    let first = front.len().min(count);
    into[..first].copy_from_slice(&front[..first]);
    into[first..].copy_from_slice(&back[..count - first]);
    from.drain(..count);
}
