//! A connected socket of one reactor.

use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;

use hugepages::Buf;

use crate::reactor::Reactor;
use crate::sys::descriptor::Descriptor;
use crate::sys::limits::RX_BUFFER_LEN;
use crate::sys::op::{FileId, Op, OpToken, Payload};
use crate::sys::tx::TxBatch;

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The peer closed its side, or this side was shut down.
    #[error("the connection was closed")]
    Closed,
    /// The kernel said so.
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Os(i32),
}

/// An address that is not known yet.
const NOWHERE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// A stream; dropping it closes the socket, once the kernel is done with what is in flight.
pub struct Stream {
    reactor: Rc<Reactor>,
    file: FileId,
    peer: SocketAddr,
    local: SocketAddr,
    receiving: Cell<Option<OpToken>>,
    /// No more receives.
    shut: Cell<bool>,
    /// Shutdown was asked for.
    down: Cell<bool>,
}

impl Stream {
    /// Takes an accepted or connected socket, of which no byte has been read.
    ///
    /// # Errors
    /// If the peer is gone already.
    pub fn adopt(reactor: &Rc<Reactor>, fd: impl Into<Descriptor>) -> std::io::Result<Stream> {
        let mut stream = Stream::over(reactor, reactor.add_file(fd), NOWHERE, NOWHERE);
        stream.establish()?;
        Ok(stream)
    }

    /// A socket in the reactor's table, which closes with the stream from now on.
    fn over(reactor: &Rc<Reactor>, file: FileId, peer: SocketAddr, local: SocketAddr) -> Stream {
        Stream {
            reactor: reactor.clone(),
            file,
            peer,
            local,
            receiving: Cell::new(None),
            shut: Cell::new(false),
            down: Cell::new(false),
        }
    }

    fn establish(&mut self) -> std::io::Result<()> {
        (self.peer, self.local) = self.reactor.establish_socket(self.file)?;
        Ok(())
    }

    /// Connects to `to`.
    ///
    /// # Errors
    /// What connect(2) says.
    pub async fn connect(reactor: &Rc<Reactor>, to: SocketAddr) -> std::io::Result<Stream> {
        let mut stream = Stream::over(reactor, reactor.add_socket(to)?, to, NOWHERE);
        let done = reactor.op(Op::Connect { file: stream.file, to }).await;
        if done.result < 0 {
            return Err(std::io::Error::from_raw_os_error(-done.result));
        }
        stream.establish()?;
        Ok(stream)
    }

    /// The other end.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// This end.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// The reactor it lives on.
    pub fn reactor(&self) -> &Rc<Reactor> {
        &self.reactor
    }

    /// Waits for bytes, in a buffer that the backend picks when they come. One receive at a time.
    ///
    /// # Errors
    /// [`StreamError::Closed`] at the end of the stream.
    pub async fn recv(&self) -> Result<Buf, StreamError> {
        self.recv_at_most(usize::MAX).await
    }

    /// As [`Stream::recv`], and at most `len` bytes.
    ///
    /// # Errors
    /// As [`Stream::recv`].
    pub async fn recv_at_most(&self, len: usize) -> Result<Buf, StreamError> {
        loop {
            if self.shut.get() {
                return Err(StreamError::Closed);
            }
            let op = self.reactor.op(Op::Recv { file: self.file, len: len.min(u32::MAX as usize) as u32 });
            self.receiving.set(Some(op.token()));
            let done = op.await;
            self.receiving.set(None);
            match (done.result, done.payload) {
                (0, _) => return Err(StreamError::Closed),
                (n, Payload::Buf(buf)) if n > 0 => return Ok(buf),
                // All receive buffers are with their consumers: again once the pool can give the ring another.
                (e, _) if e == -libc::ENOBUFS => drop(self.reactor.buffer(RX_BUFFER_LEN).await),
                (e, _) if e == -libc::EINTR || e == -libc::EAGAIN => {}
                (e, _) => return Err(StreamError::Os(-e)),
            }
        }
    }

    /// Fills `buf[from..]`; the kernel writes straight into it.
    ///
    /// # Errors
    /// As [`Stream::recv`]; a stream that ends in the middle is [`StreamError::Closed`].
    pub async fn recv_into(&self, buf: Buf, from: usize) -> Result<Buf, StreamError> {
        let (buf, result) = self.fill(buf, from).await;
        result.map(|()| buf)
    }

    /// As [`Stream::recv_into`] for a buffer that is wanted back in any case; after an error its contents from `from` on are
    /// undefined.
    pub async fn fill(&self, mut buf: Buf, mut from: usize) -> (Buf, Result<(), StreamError>) {
        while from < buf.len() {
            if self.shut.get() {
                return (buf, Err(StreamError::Closed));
            }
            let op = self.reactor.op(Op::RecvInto { file: self.file, buf, from: from as u32 });
            self.receiving.set(Some(op.token()));
            let done = op.await;
            self.receiving.set(None);
            let Payload::Buf(back) = done.payload else { unreachable!("a receive gives its buffer back") };
            buf = back;
            match done.result {
                0 => return (buf, Err(StreamError::Closed)),
                n if n > 0 => from += n as usize,
                e if e == -libc::EINTR || e == -libc::EAGAIN => {}
                e => return (buf, Err(StreamError::Os(-e))),
            }
        }
        (buf, Ok(()))
    }

    /// Sends the whole batch. The batch comes back in any case; its payloads are the kernel's until then.
    ///
    /// # Errors
    /// What send(2) says, EPIPE as [`StreamError::Closed`].
    pub async fn send(&self, mut batch: Box<TxBatch>) -> (Box<TxBatch>, Result<(), StreamError>) {
        while batch.remaining() > 0 {
            let done = self.reactor.op(Op::Send { file: self.file, batch }).await;
            let Payload::Batch(back) = done.payload else { unreachable!("a send gives its batch back") };
            batch = back;
            match done.result {
                n if n > 0 => batch.advance(n as usize),
                e if e == -libc::EINTR || e == -libc::EAGAIN => {}
                e if e == 0 || e == -libc::EPIPE => return (batch, Err(StreamError::Closed)),
                e => return (batch, Err(StreamError::Os(-e))),
            }
        }
        (batch, Ok(()))
    }

    /// Sends as much of the batch as the socket takes within this call. What ends the stream is left to [`Stream::send`].
    pub fn send_now(&self, batch: &mut TxBatch) {
        self.reactor.send_now(self.file, batch);
    }

    /// A second descriptor of the socket, for the reactor that goes on with it. Nothing may be in flight here, then and later.
    ///
    /// # Errors
    /// What dup(2) says.
    pub fn share(&self) -> std::io::Result<Descriptor> {
        self.reactor.share_file(self.file)
    }

    /// Receives no more: a receive in flight ends, and so does every later one. Sending goes on.
    pub fn stop_receiving(&self) {
        self.shut.set(true);
        if let Some(token) = self.receiving.get() {
            self.reactor.cancel_op(token);
        }
    }

    /// Ends both directions: what was sent still goes out, then a FIN; a receive in flight ends.
    pub fn shut_down(&self) {
        self.stop_receiving();
        if !self.down.replace(true) {
            self.reactor.op_unheard(Op::Shutdown { file: self.file, sending_only: false });
        }
    }

    /// Ends the sending direction: what was sent goes out, then a FIN. Receiving goes on.
    pub fn shut_down_sending(&self) {
        if !self.down.get() {
            self.reactor.op_unheard(Op::Shutdown { file: self.file, sending_only: true });
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.reactor.remove_file(self.file);
    }
}
