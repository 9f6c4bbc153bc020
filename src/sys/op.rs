//! The closed set of operations a reactor asks of the world, with owned buffers in and out.
//!
//! Both backends, the kernel's ring and the simulator, execute exactly these.

use std::net::SocketAddr;

use hugepages::Buf;

use super::descriptor::Descriptor;
use super::tx::TxBatch;
use super::ublk::RequestData;

/// A file or socket in a backend's table: index and generation, so that a handle kept past its removal is caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Names one operation in flight, for [`Op::Cancel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpToken(pub(crate) u64);

/// Who gets the completion: a registered sink of the reactor, and a tag that only the sink reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Index of the sink in its reactor.
    pub sink: u32,
    /// Opaque to the backend.
    pub tag: u64,
}

/// One operation. Buffers travel with it and come back in [`Payload`].
#[derive(Debug)]
pub enum Op {
    /// Accept one connection; the completion carries [`Payload::Fd`].
    Accept {
        /// A listening socket.
        listener: FileId,
    },
    /// Connect a socket; completes with 0 or a negative errno.
    Connect {
        /// An unconnected stream socket.
        file: FileId,
        /// Where to.
        to: SocketAddr,
    },
    /// Receive into a buffer that the backend picks when bytes arrive, so that an idle connection holds none. Completes with the
    /// bytes in [`Payload::Buf`]; `-ENOBUFS` if none was free.
    Recv {
        /// A connected socket.
        file: FileId,
        /// At most so many bytes, and at most as many as the backend's buffers have.
        len: u32,
    },
    /// Receive straight into `buf[from..]`; completes when it is full, at end of stream or on error.
    RecvInto {
        /// A connected socket.
        file: FileId,
        /// The placed buffer.
        buf: Buf,
        /// First byte to fill.
        from: u32,
    },
    /// Send the unsent rest of a batch; the result is the number of bytes taken, possibly fewer.
    Send {
        /// A connected socket.
        file: FileId,
        /// What to send.
        batch: Box<TxBatch>,
    },
    /// Read `buf.len()` bytes at `offset`.
    Read {
        /// A file or block device.
        file: FileId,
        /// Bytes from the start.
        offset: u64,
        /// Filled from the front; the result tells how far.
        buf: Buf,
    },
    /// Write all of `buf` at `offset`.
    Write {
        /// A file or block device.
        file: FileId,
        /// Bytes from the start.
        offset: u64,
        /// The bytes.
        buf: Buf,
        /// Durable before the completion (RWF_DSYNC).
        durable: bool,
    },
    /// Read `data.len()` bytes at `offset` into pages of a request of the kernel's. The data is registered with this ring.
    ReadRequest {
        /// A file or block device.
        file: FileId,
        /// Bytes from the start.
        offset: u64,
        /// Filled from the front; the result tells how far.
        data: RequestData,
    },
    /// Write all of `data` at `offset`, from pages of a request of the kernel's. The data is registered with this ring.
    WriteRequest {
        /// A file or block device.
        file: FileId,
        /// Bytes from the start.
        offset: u64,
        /// The bytes.
        data: RequestData,
        /// Durable before the completion (RWF_DSYNC).
        durable: bool,
    },
    /// Make everything written and acknowledged before durable (fdatasync).
    Sync {
        /// A file or block device.
        file: FileId,
    },
    /// fallocate(2) with the given mode.
    Allocate {
        /// A file or block device.
        file: FileId,
        /// FALLOC_FL_*.
        mode: i32,
        /// Bytes from the start.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Shut down a socket: queued bytes and a FIN still go out.
    Shutdown {
        /// A connected socket.
        file: FileId,
        /// Receiving goes on; else both directions end.
        sending_only: bool,
    },
    /// Ask an operation in flight to end early. It still completes in its own right; best effort.
    Cancel {
        /// Which.
        target: OpToken,
    },
    /// A command about one tag of a queue of a ublk device. Completes with the next request of the tag, see [`UblkStep`].
    Ublk {
        /// A character device of a ublk device.
        file: FileId,
        /// The command.
        command: UblkCommand,
    },
    /// Completes when another thread rings this reactor's doorbell.
    Doorbell,
}

/// A command about one tag of a queue of a ublk device (ublk_cmd.h, `struct ublksrv_io_cmd`).
#[derive(Debug)]
pub struct UblkCommand {
    /// What to do.
    pub step: UblkStep,
    /// The queue.
    pub queue: u16,
    /// The tag.
    pub tag: u16,
    /// For a commit: bytes, 0, or a negative errno.
    pub result: i32,
    /// For a fetch or a commit: where the data of the next request is to be registered in the ring's table of buffers. Where that
    /// fails, the request's descriptor says so.
    pub place: Option<u16>,
    /// In a mode in which the kernel copies: what it copies from at a commit, or to. A commit gives none back.
    pub buf: Option<Buf>,
}

/// What a ublk command does. Each one completes once the kernel has a request for the tag, which its descriptor then tells: with 0,
/// or with 1 for a write whose data is to be asked for; or with a negative errno, ENODEV when the device stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UblkStep {
    /// The first command of each tag.
    Fetch,
    /// Ends the request of the tag with a result and fetches the next.
    Commit,
    /// Has the data of a write copied to the buffer. Completes with 0 when it is there, and gives the buffer back.
    GetData,
}

/// What an operation owned, handed back.
#[derive(Debug)]
pub enum Payload {
    /// Nothing.
    None,
    /// The buffer of a receive, read or write.
    Buf(Buf),
    /// The data of a read or write of a request's.
    Request(RequestData),
    /// The batch of a send, advanced by what was sent.
    Batch(Box<TxBatch>),
    /// An accepted connection.
    Fd(Descriptor),
}

/// The end of one operation.
#[derive(Debug)]
pub struct Completion {
    /// Whose it is.
    pub owner: Owner,
    /// Bytes or 0, or a negative errno.
    pub result: i32,
    /// What the operation owned.
    pub payload: Payload,
}

/// The end of an operation that owned nothing and is only about its owner: a command about a ublk tag.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    /// Whose it is.
    pub owner: Owner,
    /// What it says, or a negative errno.
    pub result: i32,
}
