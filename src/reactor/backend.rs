//! The one door to the world: a closed set of operations with owned buffers, token in, completion out.

use std::os::fd::OwnedFd;
use std::time::Duration;

use hugepages::ChunkInfo;

use crate::sys::op::{Completion, FileId, Op, OpToken, Owner};
use crate::sys::uring::{RingStats, Uring};

/// Who carries out the operations of a reactor.
pub enum Backend {
    /// The kernel, over one io_uring.
    Uring(Box<Uring>),
    /// Nobody any more: the reactor has shut down.
    Closed,
}

macro_rules! each {
    ($self:expr, $b:ident => $do:expr, closed => $closed:expr) => {
        match $self {
            Backend::Uring($b) => $do,
            Backend::Closed => $closed,
        }
    };
}

impl Backend {
    /// Starts an operation; its completion goes to `owner`.
    pub(super) fn submit(&mut self, op: Op, owner: Owner) -> OpToken {
        each!(self, b => b.submit(op, owner), closed => panic!("an operation after the reactor's end"))
    }

    /// Collects completions, at most a batch.
    #[inline]
    pub(super) fn reap(&mut self, out: &mut Vec<Completion>) {
        each!(self, b => b.reap(out), closed => ());
    }

    /// Hands over what was submitted. Returns whether there was anything to do.
    #[inline]
    pub(super) fn flush(&mut self) -> bool {
        each!(self, b => b.flush(), closed => false)
    }

    /// Sleeps until a completion or for `timeout`.
    pub(super) fn wait(&mut self, timeout: Option<Duration>) {
        each!(self, b => b.wait(timeout), closed => ());
    }

    /// Whether completions can be reaped now.
    pub(super) fn has_completions(&mut self) -> bool {
        each!(self, b => b.has_completions(), closed => false)
    }

    /// Takes a file or socket.
    pub(super) fn add_file(&mut self, fd: OwnedFd) -> FileId {
        each!(self, b => b.add_file(fd), closed => panic!("a file after the reactor's end"))
    }

    /// Closes a file or socket.
    pub(super) fn remove_file(&mut self, file: FileId) {
        each!(self, b => b.remove_file(file), closed => ());
    }

    /// Makes a chunk of DMA memory known.
    pub(super) fn register_chunk(&mut self, chunk: &ChunkInfo) {
        each!(self, b => b.register_chunk(chunk), closed => ());
    }

    /// What makes this backend slower than it could be.
    pub(super) fn take_notes(&mut self) -> Vec<String> {
        each!(self, b => b.take_notes(), closed => Vec::new())
    }

    /// Counters.
    pub(super) fn stats(&self) -> RingStats {
        each!(self, b => b.stats(), closed => RingStats::default())
    }

    /// Operations in flight.
    pub(super) fn in_flight(&self) -> usize {
        each!(self, b => b.in_flight(), closed => 0)
    }
}
