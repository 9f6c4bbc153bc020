//! A connection: PDUs in, PDUs or any bytes out.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use super::pdu::{BHS_LEN, DIGEST_LEN, Pdu, crc32c};

/// The longest wait for something that has to come.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Room for PDUs read ahead.
const AHEAD: usize = 256 << 10;

/// What a connection brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Got {
    /// A PDU, all of it, its digests right.
    Pdu(Box<Pdu>),
    /// The peer closed its side in order.
    End,
    /// The connection was torn down.
    Reset,
    /// Nothing in the time given.
    Silence,
}

impl Got {
    /// The PDU that has to be there.
    pub fn pdu(self) -> Pdu {
        match self {
            Got::Pdu(pdu) => *pdu,
            other => panic!("no PDU but {other:?}"),
        }
    }

    /// Whether the connection is over.
    pub fn is_over(&self) -> bool {
        matches!(self, Got::End | Got::Reset)
    }
}

/// A connected socket. The digests are off until [`Wire::agree`].
pub struct Wire {
    stream: BufReader<TcpStream>,
    header_digest: bool,
    data_digest: bool,
}

impl Wire {
    pub fn connect(address: SocketAddr) -> Wire {
        Wire::try_connect(address).unwrap_or_else(|e| panic!("{address}: {e}"))
    }

    pub fn try_connect(address: SocketAddr) -> std::io::Result<Wire> {
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        Ok(Wire { stream: BufReader::with_capacity(AHEAD, socket), header_digest: false, data_digest: false })
    }

    /// Digests from here on.
    pub fn agree(&mut self, header_digest: bool, data_digest: bool) {
        (self.header_digest, self.data_digest) = (header_digest, data_digest);
    }

    pub fn socket(&self) -> &TcpStream {
        self.stream.get_ref()
    }

    /// The bytes of a PDU as this connection sends it.
    pub fn bytes(&self, pdu: &Pdu) -> Vec<u8> {
        pdu.encode(self.header_digest, self.data_digest)
    }

    /// Sends a PDU; whether the peer still takes it.
    pub fn send(&self, pdu: &Pdu) -> bool {
        self.send_bytes(&self.bytes(pdu))
    }

    /// Sends bytes as they are; whether the peer still takes them.
    pub fn send_bytes(&self, bytes: &[u8]) -> bool {
        self.socket().write_all(bytes).is_ok()
    }

    /// No more will be sent; answers may still come.
    pub fn finish(&self) {
        // The peer may have closed first.
        let _ = self.socket().shutdown(Shutdown::Write);
    }

    /// Tears the connection down: the peer gets a RST, as from a host that has lost its memory.
    pub fn reset(&self) {
        rustix::net::connect_unspec(self.socket()).unwrap();
    }

    /// Whether [`Wire::next`] finds something at once.
    pub fn is_ready(&mut self) -> bool {
        self.socket().set_nonblocking(true).unwrap();
        let found = self.stream.fill_buf().map(|_| ());
        self.socket().set_nonblocking(false).unwrap();
        !matches!(found, Err(e) if e.kind() == ErrorKind::WouldBlock)
    }

    /// The next PDU, or how the connection ended. Within a PDU a peer has all of [`PATIENCE`].
    ///
    /// # Panics
    /// On a wrong digest, on padding that is not there, and on a PDU that stops in its middle without an end.
    pub fn next(&mut self, limit: Duration) -> Got {
        self.socket().set_read_timeout(Some(limit)).unwrap();
        match self.stream.fill_buf() {
            Ok([]) => return Got::End,
            Ok(_) => {}
            Err(e) => return ended(&e),
        }
        self.socket().set_read_timeout(Some(PATIENCE)).unwrap();
        match self.whole() {
            Ok(pdu) => Got::Pdu(Box::new(pdu)),
            Err(e) => match ended(&e) {
                Got::Silence => panic!("a PDU stopped in its middle"),
                other => other,
            },
        }
    }

    fn whole(&mut self) -> std::io::Result<Pdu> {
        let mut bhs = [0; BHS_LEN];
        self.stream.read_exact(&mut bhs)?;
        let mut ahs = vec![0; usize::from(bhs[4]) * 4];
        self.stream.read_exact(&mut ahs)?;
        if self.header_digest {
            let digest = self.digest()?;
            assert_eq!(digest, crc32c(&[&bhs[..], &ahs].concat()), "header digest of {bhs:02x?}");
        }
        let len = u32::from_be_bytes([0, bhs[5], bhs[6], bhs[7]]) as usize;
        let mut data = vec![0; len.next_multiple_of(4)];
        self.stream.read_exact(&mut data)?;
        if self.data_digest && len > 0 {
            let digest = self.digest()?;
            assert_eq!(digest, crc32c(&data), "data digest of {bhs:02x?}");
        }
        data.truncate(len);
        Ok(Pdu { bhs, ahs, data })
    }

    fn digest(&mut self) -> std::io::Result<[u8; DIGEST_LEN]> {
        let mut digest = [0; DIGEST_LEN];
        self.stream.read_exact(&mut digest)?;
        Ok(digest)
    }

    /// The end has to come, whatever was sent before it: all PDUs until then.
    pub fn rest(&mut self) -> Vec<Pdu> {
        let mut seen = Vec::new();
        loop {
            match self.next(PATIENCE) {
                Got::Pdu(pdu) => seen.push(*pdu),
                Got::Silence => panic!("the connection stays open after {seen:02x?}"),
                Got::End | Got::Reset => return seen,
            }
        }
    }
}

fn ended(error: &std::io::Error) -> Got {
    match error.kind() {
        ErrorKind::UnexpectedEof => Got::End,
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => Got::Reset,
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Got::Silence,
        _ => panic!("{error}"),
    }
}
