//! A host by hand, over a blocking socket: for what a proper one never does.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};

use reactor::nvme::spec::{CNTLID_DYNAMIC, ConnectCmd, ConnectData, Cqe, Property, PropertySetCmd, Sqe, put_text};
use reactor::nvme::tcp::{Decoder, Event, Framing, HostParams, Limits, MAX_PREFIX_LEN, Role, conclude, ic_req};
use zerocopy::{FromZeros, IntoBytes};

use super::host::identity;
use super::server::PATIENCE;

/// CC of an enabled controller with entries of 64 and 16 bytes (Base §3.1.3.5).
const CC_ENABLED: u32 = 1 | 6 << 16 | 4 << 20;

/// What a connection brought.
#[derive(Debug)]
pub enum Arrived {
    /// A response.
    Response(Cqe),
    /// The peer closed its side in order.
    End,
    /// The connection was torn down.
    Reset,
}

/// A connection after ICReq and ICResp, without digests.
pub struct Wire {
    socket: TcpStream,
    decoder: Decoder,
    framing: Framing,
    /// Received and not yet decoded.
    pending: Vec<u8>,
}

/// A Connect command for queue `qid` with its data.
pub fn connect(qid: u16, cntlid: u16, nqn: &str) -> (Sqe, ConnectData) {
    let mut data = ConnectData::new_zeroed();
    let host = identity(1);
    data.hostid = host.id;
    data.cntlid.set(cntlid);
    put_text(&mut data.subnqn, nqn, 0);
    put_text(&mut data.hostnqn, &host.nqn, 0);
    (ConnectCmd::new(qid, 31, 0, 0).to_sqe(), data)
}

/// Enables a controller.
pub fn enable() -> Sqe {
    PropertySetCmd::new(Property::CC.0, CC_ENABLED).to_sqe()
}

impl Wire {
    /// Connects a socket and exchanges ICReq and ICResp.
    pub fn open(address: SocketAddr) -> Wire {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        let request = HostParams { header_digest: false, data_digest: false, hpda_z: 0, max_r2t: 1 }.request();
        let mut head = [0; MAX_PREFIX_LEN];
        let len = ic_req(&request, &mut head);
        (&socket).write_all(&head[..len]).unwrap();
        let mut decoder = Decoder::new(Role::Host, Limits { in_capsule: 0, data: 1 << 20, alignment_z: 0 });
        let mut answer = [0; 128];
        (&socket).read_exact(&mut answer).unwrap();
        let Ok(Some(Event::IcResp(response))) = decoder.next(&mut &answer[..]) else { panic!("no ICResp") };
        let agreed = conclude(&request, &response).unwrap();
        Wire { socket, decoder, framing: Framing::new(Role::Host, &agreed), pending: Vec::new() }
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Bytes of a command capsule.
    pub fn capsule(&self, cid: u16, mut sqe: Sqe, data: &[u8]) -> Vec<u8> {
        sqe.cid.set(cid);
        let mut head = [0; MAX_PREFIX_LEN];
        let len = self.framing.capsule_cmd(&sqe, data.len() as u32, &mut head);
        [&head[..len], data].concat()
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).unwrap();
    }

    /// Carries out a command whose data, if any, is in the capsule.
    pub fn command(&mut self, sqe: Sqe, data: &[u8]) -> Cqe {
        self.send(&self.capsule(7, sqe, data));
        match self.next() {
            Arrived::Response(cqe) => cqe,
            other => panic!("no response: {other:?}"),
        }
    }

    /// Whether the peer has closed; waits as long as the socket's time limit.
    pub fn is_over(&mut self) -> bool {
        match self.socket.read(&mut [0]) {
            Ok(0) => true,
            Ok(_) => panic!("bytes that nobody asked for"),
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => false,
            Err(e) => panic!("{e}"),
        }
    }

    /// The next response, or the end; data is dropped.
    pub fn next(&mut self) -> Arrived {
        loop {
            let mut input = &self.pending[..];
            let mut found = None;
            while let Some(event) = self.decoder.next(&mut input).unwrap() {
                if let Event::Response(cqe) = event {
                    found = Some(cqe);
                    break;
                }
            }
            let used = self.pending.len() - input.len();
            self.pending.drain(..used);
            if let Some(cqe) = found {
                return Arrived::Response(cqe);
            }
            let mut bytes = [0; 65_536];
            match self.socket.read(&mut bytes) {
                Ok(0) => return Arrived::End,
                Ok(n) => self.pending.extend_from_slice(&bytes[..n]),
                Err(e) if e.kind() == ErrorKind::ConnectionReset => return Arrived::Reset,
                Err(e) => panic!("{e}"),
            }
        }
    }

    /// An admin queue of an enabled controller; the keep alive timeout in milliseconds, 0: none. Returns the controller
    /// identifier.
    pub fn admin(address: SocketAddr, nqn: &str, kato_ms: u32) -> (Wire, u16) {
        let mut wire = Wire::open(address);
        let (sqe, data) = connect(0, CNTLID_DYNAMIC, nqn);
        let mut sqe = sqe;
        sqe.cdw12.set(kato_ms);
        let cqe = wire.command(sqe, data.as_bytes());
        assert!(cqe.status().is_success(), "Connect: {:?}", cqe.status());
        assert!(wire.command(enable(), &[]).status().is_success());
        (wire, cqe.dw0() as u16)
    }

    /// I/O queue 1 of a controller.
    pub fn io(address: SocketAddr, nqn: &str, cntlid: u16) -> Wire {
        let mut wire = Wire::open(address);
        let (sqe, data) = connect(1, cntlid, nqn);
        let cqe = wire.command(sqe, data.as_bytes());
        assert!(cqe.status().is_success(), "Connect: {:?}", cqe.status());
        wire
    }
}
