//! An NVMe/TCP host on a reactor: the load generator and test client today, shaped to become a block device.
//!
//! ```text
//!   Controller   one admin queue: Connect, properties, Identify, log pages, features, keep alive, events
//!       | ticket (plain data, may be sent to other reactors)
//!       v
//!   Queue        one I/O queue: one connection on one reactor, a slot per command in flight
//!       |
//!   Volume       one namespace through one queue: `execute(io) -> io`
//!
//!   execute -> Queue::submit -> slot, capsule in the open batch -> sending task -> one send for all of a turn
//!   task <- landed <- Reactor::complete <- slot <- receiving task: data into the I/O's buffers, responses
//! ```
//!
//! **Buffers.** The I/O stays in its slot until its end. Payload to be sent is *lent*: taken out of the I/O's data, given
//! to the send batch, and put back in its place when the send was done; an I/O ends when it has its answer and all its
//! buffers. Data that arrives is copied once, from the receive buffer to its place, if it is short; what is
//! [`DIRECT_MIN`] or more is received by the kernel straight into its place.
//!
//! **Loss.** Whatever ends a connection ends it once, with an [`Ended`]: the socket is shut down, both tasks of the
//! connection stop, and only when the kernel has given back every buffer do the I/Os in flight complete, as
//! [`IoStatus::Gone`] if this side closed, else as [`IoStatus::DeviceError`].
//!
//! [`IoStatus::Gone`]: crate::reactor::io::IoStatus::Gone
//! [`IoStatus::DeviceError`]: crate::reactor::io::IoStatus::DeviceError

mod address;
mod command;
mod controller;
mod discovery;
mod queue;
#[cfg(test)]
mod tests;
mod volume;

pub use crate::nvme::io::{Geometry, io_status};
pub use address::{Address, AddressError, DEFAULT_PORT};
pub use command::{Answer, Command, Payload, TimeLimit};
pub use controller::{Controller, Identity, Options, Ticket};
pub use discovery::{Discovered, DiscoveryLog, discover};
pub use queue::{DIRECT_MIN, Queue};
pub use volume::Volume;

use std::io;
use std::net::SocketAddr;

use crate::net::StreamError;
use crate::nvme::io::Unusable;
use crate::nvme::spec::{Cqe, Status};
use crate::nvme::tcp::{FatalError, FatalErrorStatus};

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ended {
    /// This side closed it.
    #[error("the queue was closed")]
    Closed,
    /// The socket failed, or the peer closed it.
    #[error("connection lost: {0}")]
    Stream(StreamError),
    /// The peer broke the protocol; it was told so by a termination request.
    #[error("the controller broke the protocol: {0}")]
    Protocol(FatalError),
    /// The peer says that this side broke the protocol.
    #[error("the controller terminated the connection: {status:?}, information {info:#x}")]
    Terminated {
        /// Fatal Error Status.
        status: FatalErrorStatus,
        /// Fatal Error Information.
        info: u32,
    },
    /// A command got no answer in time.
    #[error("no answer to the command with opcode {opcode:#04x} in time")]
    Timeout {
        /// Opcode of the command.
        opcode: u8,
    },
}

/// Why something asked of a remote controller failed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// No connection.
    #[error("{address}: {error}")]
    Connect {
        /// Where to.
        address: SocketAddr,
        /// What connect(2) says; `TimedOut` after the time set in the options.
        error: io::Error,
    },
    /// The connection ended, before or while the command was carried out.
    #[error("{0}")]
    Lost(#[from] Ended),
    /// The controller refused a command.
    #[error("{what}: {status:?}{}", detail(*result))]
    Refused {
        /// Which command.
        what: &'static str,
        /// Its status field.
        status: Status,
        /// Command specific dwords of the completion.
        result: u64,
    },
    /// The controller sent more or less data than was asked for, or data whose digest was wrong.
    #[error("{what}: the data is incomplete or damaged")]
    Data {
        /// Which command.
        what: &'static str,
    },
    /// The controller did not get ready, or did not shut down, within the time it states.
    #[error("the controller was not {what} within the {ms} ms it states")]
    NotInTime {
        /// What was waited for.
        what: &'static str,
        /// How long, in milliseconds.
        ms: u64,
    },
    /// The remote side is something this host cannot use, with the reason.
    #[error("{0}")]
    Unsupported(String),
    /// The reactor's I/O table is full.
    #[error("no I/O is left on this reactor")]
    NoIo,
}

fn detail(result: u64) -> String {
    if result == 0 { String::new() } else { format!(" ({result:#x})") }
}

impl From<Unusable> for HostError {
    fn from(reason: Unusable) -> HostError {
        HostError::Unsupported(reason.to_string())
    }
}

impl HostError {
    /// The refusal of command `what` that `cqe` carries.
    fn refused(what: &'static str, cqe: &Cqe) -> HostError {
        HostError::Refused { what, status: cqe.status(), result: cqe.result.get() }
    }
}
