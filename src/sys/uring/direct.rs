//! Sockets that are in use right now: their sends and receives are plain calls.
//!
//! A receive in the ring that finds nothing has the kernel wait for the socket, be woken, and run the receive by one more call,
//! which costs a microsecond or two of each answer when little is in flight. So while only some sockets receive, each is simply tried
//! in every turn, into a buffer that is still in the cache; one that stays silent goes to the ring, as all do before the reactor
//! sleeps. Whoever waits for a completion sees no difference.

use hugepages::Buf;

use super::table::{Held, Refusable};
use super::{Uring, filling, picking};
use crate::sys::op::{Completion, FileId, OpToken, Payload};
use crate::sys::socket;
use crate::sys::tx::TxBatch;

/// Receives that are tried directly: each costs every turn a call.
const SOCKETS: usize = 4;
/// How often one is tried: some 50 us in turns that find nothing else.
const TRIES: u32 = 128;

#[derive(Clone, Copy)]
struct Receive {
    token: OpToken,
    file: FileId,
    tries: u32,
}

/// The receives that are tried, and the buffer that the next bytes go to.
#[derive(Default)]
pub(super) struct Direct {
    receives: Vec<Receive>,
    buffer: Option<Buf>,
}

impl Direct {
    /// Takes a receive of the table, if there is a place.
    #[inline]
    pub(super) fn take(&mut self, token: OpToken, file: FileId) -> bool {
        let room = self.receives.len() < SOCKETS;
        if room {
            self.receives.push(Receive { token, file, tries: 0 });
        }
        room
    }

    /// Whether this one was tried, which ends.
    pub(super) fn forget(&mut self, token: OpToken) -> bool {
        let place = self.receives.iter().position(|receive| receive.token == token);
        place.map(|place| self.receives.swap_remove(place)).is_some()
    }
}

impl Uring {
    /// What a direct send of a socket in use came to; `None`: the ring must do it.
    #[inline]
    pub(super) fn send_directly(&mut self, file: FileId, batch: &TxBatch) -> Option<i32> {
        self.direct.receives.iter().find(|receive| receive.file == file)?;
        let sent = socket::send(self.files.descriptor(file)?, batch);
        self.stats.enters += 1;
        (sent != -libc::EAGAIN).then_some(sent)
    }

    /// Hands over as much of a batch as the socket takes at once, and nothing if that cannot be or fails.
    pub fn send_now(&mut self, file: FileId, batch: &mut TxBatch) {
        let Some(fd) = self.files.descriptor(file) else { return };
        batch.describe();
        let sent = socket::send(fd, batch);
        self.stats.enters += 1;
        batch.advance(sent.max(0) as usize);
    }

    /// Tries each receive once.
    #[inline]
    pub(super) fn receive_directly(&mut self, out: &mut Vec<Completion>) {
        let mut at = 0;
        while at < self.direct.receives.len() {
            if self.receive(at, out) {
                self.direct.receives.swap_remove(at);
            } else {
                at += 1;
            }
        }
    }

    /// Whether the receive is not tried any more.
    fn receive(&mut self, at: usize, out: &mut Vec<Completion>) -> bool {
        let Receive { token, file, tries } = self.direct.receives[at];
        let Some(fd) = self.files.descriptor(file) else {
            self.settle(token, -libc::EBADF);
            return true;
        };
        let mut picked = None;
        let got = match self.table.held(token) {
            Some(Held::Filling(buf, from)) => socket::receive(fd, &mut buf[*from..]),
            Some(Held::Picked(len)) => match self.direct.buffer.take().or_else(|| self.rx.direct_buffer()) {
                Some(buf) => {
                    let buf = picked.insert(buf);
                    let len = buf.len().min(*len as usize);
                    socket::receive(fd, &mut buf[..len])
                }
                None => -libc::ENOBUFS,
            },
            _ => unreachable!("a receive stays in the table"),
        };
        if got == -libc::EAGAIN || got == -libc::ENOBUFS {
            // One that receives into a place of its own leaves the buffer of the others alone.
            self.direct.buffer = picked.or_else(|| self.direct.buffer.take());
            self.stats.misses += 1;
            self.direct.receives[at].tries = tries + 1;
            // The ring knows what to do where there are no buffers.
            let silent = tries + 1 >= TRIES || got == -libc::ENOBUFS;
            if silent {
                self.hand_over(token, file);
            }
            return silent;
        }
        self.stats.enters += 1;
        self.stats.completed += 1;
        let Some((owner, held)) = self.table.remove(token) else { unreachable!("a receive stays in the table") };
        let payload = match (held, picked) {
            (Held::Filling(buf, _), _) => Payload::Buf(buf),
            (_, Some(mut buf)) if got > 0 => {
                buf.truncate(got as usize);
                Payload::Buf(buf)
            }
            (_, unused) => {
                self.direct.buffer = unused;
                Payload::None
            }
        };
        out.push(Completion { owner, result: got, payload });
        true
    }

    /// Has the ring do a receive that was tried.
    fn hand_over(&mut self, token: OpToken, file: FileId) {
        let Some((fd, flags)) = self.files.target(file) else { return self.settle(token, -libc::EBADF) };
        let entry = match self.table.held(token) {
            Some(Held::Filling(buf, from)) => filling(fd, flags, &mut buf[*from..]),
            Some(Held::Picked(len)) => picking(fd, flags, *len),
            _ => unreachable!("a receive stays in the table"),
        };
        self.push(&entry.user_data(token.0));
        if self.direct.receives.len() <= 1 {
            self.direct.buffer = None;
        }
    }

    /// Has the ring do all receives that were tried: nobody will look for a while.
    pub(super) fn hand_over_all(&mut self) {
        while let Some(Receive { token, file, .. }) = self.direct.receives.pop() {
            self.hand_over(token, file);
        }
    }

    /// Ends a receive that was tried.
    pub(super) fn settle(&mut self, token: OpToken, result: i32) {
        if let Some(held) = self.table.held(token) {
            let what = match std::mem::replace(held, Held::Nothing) {
                Held::Filling(buf, _) => Refusable::Buf(buf),
                _ => Refusable::Nothing,
            };
            *held = Held::Answered(result, what);
            self.answered.push(token);
        }
    }
}
