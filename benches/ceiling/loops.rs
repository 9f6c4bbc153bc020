//! Plain busy loops over loopback: what a good server could do if it had nothing to do but to move the bytes. It
//! takes all requests that are there by one call, and answers all of them by one call.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reactor::sys::affinity;
use reactor::sys::tsc::monotonic_ns;
use serde_json::{Value, json};

use super::{Direction, Loop, Random, histogram, latency_us, memory};

/// A command capsule.
const REQUEST: usize = 72;
/// A header of data, or a response.
const ANSWER: usize = 24;
/// Bytes taken by one call: fits the second-level cache, which more does not.
const TAKEN: usize = 256 << 10;
/// Pieces handed over by one call; the kernel takes 1,024 at most.
const PIECES: usize = 512;

/// Messages of one size on their way out.
struct Sending {
    head: Vec<u8>,
    body: usize,
    /// Where the body of each message that is owed lies.
    owed: VecDeque<usize>,
    /// Bytes of the first one that have gone.
    gone: usize,
}

impl Sending {
    fn new(head: usize, body: usize) -> Sending {
        Sending { head: vec![7; head], body, owed: VecDeque::new(), gone: 0 }
    }

    /// Hands over as much as the socket takes.
    fn send(&mut self, mut socket: &TcpStream, memory: &[u8]) -> io::Result<()> {
        let len = self.head.len() + self.body;
        while !self.owed.is_empty() {
            let mut pieces = [IoSlice::new(&[]); PIECES];
            let (mut count, mut skip) = (0, self.gone);
            for &place in self.owed.iter().take(PIECES / 2) {
                for piece in [&self.head[..], &memory[place..place + self.body]] {
                    if skip < piece.len() {
                        pieces[count] = IoSlice::new(&piece[skip..]);
                        count += 1;
                    }
                    skip = skip.saturating_sub(piece.len());
                }
            }
            match socket.write_vectored(&pieces[..count]) {
                Ok(sent) => {
                    self.gone += sent;
                    self.owed.drain(..self.gone / len);
                    self.gone %= len;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// One read: the bytes that came, 0 if there are none yet, `None` at the end.
fn take(mut socket: &TcpStream, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match socket.read(buffer) {
        Ok(0) => Ok(None),
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(Some(0)),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(None),
        Err(error) => Err(error),
    }
}

/// The server's view of a connection.
struct Served<'a> {
    socket: &'a TcpStream,
    sending: Sending,
    /// Bytes of the request that is incomplete.
    have: usize,
    /// Where the payload of that request goes.
    place: usize,
}

/// Answers until `stop`.
fn serve(sockets: &[TcpStream], plain: &Loop, volume: &mut [u8], stop: &AtomicBool) -> io::Result<()> {
    affinity::pin(plain.server)?;
    let mut chance = Random(0x2545_f491_4f6c_dd1d);
    let (up, down) = match plain.op {
        Direction::Read => (REQUEST, plain.block),
        Direction::Write => (REQUEST + plain.block, 0),
    };
    let stores = plain.op == Direction::Write && plain.random > 0;
    let mut place = || if plain.random > plain.block { chance.place(plain.random, plain.block) } else { 0 };
    let serving = |socket| Served { socket, sending: Sending::new(ANSWER, down), have: 0, place: 0 };
    let mut all: Vec<Served<'_>> = sockets.iter().map(serving).collect();
    let mut buffer = memory(TAKEN);
    let buffer = buffer.bytes();
    while !stop.load(Ordering::Relaxed) {
        for one in &mut all {
            let Some(count) = take(one.socket, buffer)? else { return Ok(()) };
            let mut at = 0;
            while at < count {
                let part = (up - one.have).min(count - at);
                // What of this part is payload is stored as a volume would: a loop that receives in place cannot know
                // where.
                let skip = REQUEST.saturating_sub(one.have).min(part);
                if stores && part > skip {
                    let to = one.place + one.have.max(REQUEST) - REQUEST;
                    volume[to..to + part - skip].copy_from_slice(&buffer[at + skip..at + part]);
                }
                at += part;
                one.have += part;
                if one.have == up {
                    one.have = 0;
                    one.sending.owed.push_back(if down > 0 { place() } else { 0 });
                    if stores {
                        one.place = place();
                    }
                }
            }
            one.sending.send(one.socket, volume)?;
        }
    }
    Ok(())
}

/// The client's view of a connection.
struct Asked<'a> {
    socket: &'a TcpStream,
    sending: Sending,
    /// Bytes of the answer that is incomplete.
    have: usize,
    /// When requests in flight were sent, and how many at once.
    sent: VecDeque<(u64, usize)>,
}

/// Asks for a while; the connections must be there.
pub fn run(time: Duration, plain: &Loop) -> io::Result<Value> {
    affinity::raise_open_files()?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (mut near, mut far) = (Vec::new(), Vec::new());
    for _ in 0..plain.connections {
        near.push(TcpStream::connect(address)?);
        far.push(listener.accept()?.0);
    }
    for socket in near.iter().chain(&far) {
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
    }
    let stop = AtomicBool::new(false);
    let mut stored = memory(plain.random.max(plain.block));
    // The sockets outlive both loops: one that ends first must not look like a failure to the other.
    std::thread::scope(|scope| {
        let server = scope.spawn(|| serve(&far, plain, stored.bytes(), &stop));
        let found = ask(&near, plain, time);
        stop.store(true, Ordering::Relaxed);
        server.join().expect("it does not panic")?;
        found
    })
}

fn ask(sockets: &[TcpStream], plain: &Loop, time: Duration) -> io::Result<Value> {
    affinity::pin(plain.client)?;
    let (body, down) = match plain.op {
        Direction::Read => (0, ANSWER + plain.block),
        Direction::Write => (plain.block, ANSWER),
    };
    let mut sent = memory(plain.block);
    let sent = sent.bytes();
    let asking = |socket| Asked { socket, sending: Sending::new(REQUEST, body), have: 0, sent: VecDeque::new() };
    let mut all: Vec<Asked<'_>> = sockets.iter().map(asking).collect();
    let start = monotonic_ns();
    for one in &mut all {
        one.sent.push_back((start, plain.depth));
        one.sending.owed.extend(std::iter::repeat_n(0, plain.depth));
        one.sending.send(one.socket, sent)?;
    }
    let mut buffer = memory(TAKEN);
    let buffer = buffer.bytes();
    let mut took = histogram();
    // What the first tenth does is not counted: memory and windows grow then.
    let from = start + time.as_nanos() as u64 / 10;
    let until = from + time.as_nanos() as u64;
    let (mut count, mut first, mut now) = (0u64, None, start);
    // Also looked at while nothing comes, or a server that failed would keep this waiting for ever.
    let mut idle = 0;
    while now < until {
        for one in &mut all {
            let Some(bytes) = take(one.socket, buffer)? else {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "the server has ended"));
            };
            if bytes == 0 {
                idle += 1;
                if idle % 4096 == 0 {
                    now = monotonic_ns();
                }
            } else {
                one.have += bytes;
                let mut done = one.have / down;
                one.have %= down;
                now = monotonic_ns();
                if done > 0 {
                    one.sent.push_back((now, done));
                    one.sending.owed.extend(std::iter::repeat_n(0, done));
                }
                if first.is_none() && now >= from {
                    first = Some(now);
                } else if first.is_some() {
                    count += done as u64;
                }
                while done > 0 {
                    let (at, left) = one.sent.front_mut().expect("an answer to a request");
                    let part = done.min(*left);
                    if first.is_some() {
                        took.saturating_record_n(now - *at, part as u64);
                    }
                    *left -= part;
                    done -= part;
                    if *left == 0 {
                        one.sent.pop_front();
                    }
                }
            }
            // Also what did not fit before.
            one.sending.send(one.socket, sent)?;
        }
    }
    let ns = now - first.unwrap_or(from);
    if count == 0 {
        return Err(io::Error::new(ErrorKind::TimedOut, "nothing was answered: the machine is too busy to measure"));
    }
    Ok(json!({
        "per_s": count as f64 * 1e9 / ns as f64,
        "ns": ns as f64 / count.max(1) as f64,
        "latency_us": latency_us(&took),
    }))
}
