//! The one door to the world: a closed set of operations with owned buffers, token in, completion out.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use hugepages::ChunkInfo;

use super::sim::SimRing;
use crate::sys::descriptor::Descriptor;
use crate::sys::op::{Completion, Ended, FileId, Op, OpToken, Owner, UblkCommand};
use crate::sys::tx::TxBatch;
use crate::sys::uring::{RingStats, Uring};

/// Who carries out the operations of a reactor.
pub enum Backend {
    /// The kernel, over one io_uring.
    Uring(Box<Uring>),
    /// A simulated world.
    Sim(SimRing),
    /// Nobody any more: the reactor has shut down.
    Closed,
}

macro_rules! each {
    ($self:expr, $b:ident => $do:expr, closed => $closed:expr) => {
        match $self {
            Backend::Uring($b) => $do,
            Backend::Sim($b) => $do,
            Backend::Closed => $closed,
        }
    };
}

impl Backend {
    /// Starts an operation; its completion goes to `owner`.
    pub(super) fn submit(&mut self, op: Op, owner: Owner) -> OpToken {
        each!(self, b => b.submit(op, owner), closed => panic!("an operation after the reactor's end"))
    }

    /// As [`Backend::submit`] for a command about a ublk tag, which is small: nothing of it is moved about.
    #[inline]
    pub(super) fn command(&mut self, file: FileId, command: UblkCommand, owner: Owner) {
        if let Backend::Uring(ring) = self {
            ring.command(file, command, owner);
        } else {
            self.submit(Op::Ublk { file, command }, owner);
        }
    }

    /// Collects completions, at most a batch, and apart from them those that carry nothing but a result.
    #[inline]
    pub(super) fn reap(&mut self, out: &mut Vec<Completion>, ended: &mut Vec<Ended>) {
        match self {
            Backend::Uring(b) => b.reap(out, ended),
            Backend::Sim(b) => b.reap(out),
            Backend::Closed => {}
        }
    }

    /// Hands over what was submitted. Returns whether there was anything to do. `again`: the next turn follows at once, and what can
    /// wait for it may.
    #[inline]
    pub(super) fn flush(&mut self, again: bool) -> bool {
        match self {
            Backend::Uring(b) => b.flush(again),
            Backend::Sim(b) => b.flush(),
            Backend::Closed => false,
        }
    }

    /// Sleeps until a completion or for `timeout`.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) {
        each!(self, b => b.wait(timeout), closed => ());
    }

    /// Whether completions can be reaped now.
    pub(super) fn has_completions(&mut self) -> bool {
        each!(self, b => b.has_completions(), closed => false)
    }

    /// Takes a file or socket of the same world.
    pub(super) fn add_file(&mut self, fd: Descriptor) -> FileId {
        match (self, fd) {
            (Backend::Uring(b), Descriptor::Kernel(fd)) => b.add_file(fd),
            (Backend::Sim(b), Descriptor::Simulated(fd)) => b.add_file(fd),
            (Backend::Closed, _) => panic!("a file after the reactor's end"),
            (_, fd) => panic!("{fd:?} belongs to another world"),
        }
    }

    /// A second descriptor of an open file, for another reactor.
    pub(super) fn share_file(&self, file: FileId) -> io::Result<Descriptor> {
        match self {
            Backend::Uring(b) => b.share_file(file).map(Descriptor::Kernel),
            Backend::Sim(b) => b.share_file(file).map(Descriptor::Simulated),
            Backend::Closed => Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    }

    /// Makes a stream socket.
    pub(super) fn add_socket(&mut self, to: SocketAddr) -> io::Result<FileId> {
        each!(self, b => b.add_socket(to), closed => panic!("a socket after the reactor's end"))
    }

    /// Prepares a connected socket and says its addresses: the peer's, then its own.
    pub(super) fn establish_socket(&mut self, file: FileId) -> io::Result<(SocketAddr, SocketAddr)> {
        each!(self, b => b.establish(file), closed => panic!("a socket after the reactor's end"))
    }

    /// Sends as much of a batch as the socket takes at once; nothing if that cannot be or fails, which the next send finds out.
    pub(super) fn send_now(&mut self, file: FileId, batch: &mut TxBatch) {
        match self {
            Backend::Uring(b) => b.send_now(file, batch),
            // Its sockets take nothing within a call.
            Backend::Sim(_) | Backend::Closed => {}
        }
    }

    /// Closes a file or socket.
    pub(super) fn remove_file(&mut self, file: FileId) {
        each!(self, b => b.remove_file(file), closed => ());
    }

    /// Makes a chunk of DMA memory known.
    pub(super) fn register_chunk(&mut self, chunk: &ChunkInfo) {
        each!(self, b => b.register_chunk(chunk), closed => ());
    }

    /// Places for data of requests in the table of registered buffers, at most so many.
    pub(super) fn take_places(&mut self, count: usize) -> Vec<u16> {
        each!(self, b => b.take_places(count), closed => Vec::new())
    }

    /// Gives such places back.
    pub(super) fn give_places(&mut self, places: Vec<u16>) {
        each!(self, b => b.give_places(places), closed => ());
    }

    /// What makes this backend slower than it could be.
    pub(super) fn take_notes(&mut self) -> Vec<String> {
        each!(self, b => b.take_notes(), closed => Vec::new())
    }

    /// Counters.
    pub(super) fn stats(&self) -> RingStats {
        each!(self, b => b.stats(), closed => RingStats::default())
    }
}
