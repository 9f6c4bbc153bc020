//! A host that sends any bytes and looks at every PDU that comes back.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use reactor::nvme::spec::{CNTLID_DYNAMIC, Cqe, NvmOpcode, Property, PropertyGetCmd, SglDescriptor, Sqe};
use reactor::nvme::tcp::{
    CapsuleRespPdu, DIGEST_LEN, DataDigest, Framing, HostParams, MAX_PREFIX_LEN, Negotiated, PduType, R2tPdu, Role,
    crc32c, ic_req,
};
use zerocopy::{FromBytes, IntoBytes};

use super::super::server::PATIENCE;
use super::super::wire::{connect, enable};

/// Command identifier of the commands that only lead to where a test starts.
const SETUP_CID: u16 = 9;

/// What a connection brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Got {
    /// A PDU, all of it.
    Pdu(Vec<u8>),
    /// The peer closed its side in order.
    End,
    /// The connection was torn down.
    Reset,
    /// Nothing in the time given.
    Silence,
}

/// A connection; digests and alignment are those of its framing.
pub struct Raw {
    socket: TcpStream,
    framing: Framing,
    header_digest: bool,
}

/// Digests in use: of headers, of data.
pub type Digests = (bool, bool);

/// The ICReq that asks for digests.
pub fn ic_request(digests: Digests) -> Vec<u8> {
    let params = HostParams { header_digest: digests.0, data_digest: digests.1, hpda_z: 0, max_r2t: 1 };
    let mut head = vec![0; MAX_PREFIX_LEN];
    let len = ic_req(&params.request(), &mut head);
    head.truncate(len);
    head
}

/// A write of `len` bytes at the start of namespace 1, with its data in the capsule or asked for by R2T.
pub fn write_sqe(len: u32, in_capsule: bool) -> Sqe {
    let mut sqe = Sqe::nvm(NvmOpcode::WRITE, 1);
    sqe.cdw12.set(len / 512 - 1);
    sqe.dptr = if in_capsule { SglDescriptor::in_capsule(len) } else { SglDescriptor::transport(len) };
    sqe
}

/// A read of `len` bytes at the start of namespace 1.
pub fn read_sqe(len: u32) -> Sqe {
    let mut sqe = Sqe::nvm(NvmOpcode::READ, 1);
    sqe.cdw12.set(len / 512 - 1);
    sqe.dptr = SglDescriptor::transport(len);
    sqe
}

/// Asks for the capabilities of a controller, which every admin queue answers.
pub fn property_get() -> Sqe {
    PropertyGetCmd::new(Property::CAP.0, true).to_sqe()
}

impl Raw {
    /// A connected socket over which nothing was sent.
    pub fn fresh(address: SocketAddr) -> Raw {
        let socket = TcpStream::connect(address).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        Raw { socket, framing: framing((false, false)), header_digest: false }
    }

    /// A connection after ICReq and ICResp.
    pub fn open(address: SocketAddr, digests: Digests) -> Raw {
        let mut raw = Raw::fresh(address);
        raw.send(&ic_request(digests));
        let Got::Pdu(answer) = raw.next(PATIENCE) else { panic!("no ICResp") };
        assert_eq!((answer[0], answer.len()), (PduType::IC_RESP.0, 128));
        raw.agree(digests);
        raw
    }

    /// What the peer granted holds from here on.
    pub fn agree(&mut self, digests: Digests) {
        (self.framing, self.header_digest) = (framing(digests), digests.0);
    }

    /// Queue `qid` of a controller. Returns the controller identifier.
    pub fn queue(address: SocketAddr, nqn: &str, qid: u16, cntlid: u16, digests: Digests) -> (Raw, u16) {
        let mut raw = Raw::open(address, digests);
        let (sqe, data) = connect(qid, cntlid, nqn);
        let cqe = raw.command(SETUP_CID, sqe, data.as_bytes());
        assert!(cqe.status().is_success(), "Connect: {:?}", cqe.status());
        (raw, cqe.dw0() as u16)
    }

    /// The admin queue of a controller, enabled.
    pub fn admin(address: SocketAddr, nqn: &str, digests: Digests) -> (Raw, u16) {
        let (mut raw, cntlid) = Raw::queue(address, nqn, 0, CNTLID_DYNAMIC, digests);
        let cqe = raw.command(SETUP_CID, enable(), &[]);
        assert!(cqe.status().is_success(), "enable: {:?}", cqe.status());
        (raw, cntlid)
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// A command capsule.
    pub fn capsule(&self, cid: u16, mut sqe: Sqe, data: &[u8]) -> Vec<u8> {
        sqe.cid.set(cid);
        self.pdu(data, |framing, out| framing.capsule_cmd(&sqe, data.len() as u32, out))
    }

    /// Data for an R2T.
    pub fn h2c_data(&self, cid: u16, ttag: u16, offset: u32, data: &[u8], last: bool) -> Vec<u8> {
        self.pdu(data, |framing, out| framing.h2c_data(cid, ttag, offset, data.len() as u32, last, out))
    }

    fn pdu(&self, data: &[u8], head: impl FnOnce(&Framing, &mut [u8]) -> usize) -> Vec<u8> {
        let mut bytes = vec![0; MAX_PREFIX_LEN];
        let len = head(&self.framing, &mut bytes);
        bytes.truncate(len);
        bytes.extend_from_slice(data);
        if self.framing.data_digest() && !data.is_empty() {
            let mut digest = DataDigest::new();
            digest.update(data);
            bytes.extend_from_slice(&digest.to_bytes());
        }
        bytes
    }

    /// Makes the header digest of a PDU that was changed right again, if one is in use.
    pub fn redigest(&self, pdu: &mut [u8], header_len: usize) {
        if self.header_digest {
            let digest = crc32c(&pdu[..header_len]);
            pdu[header_len..header_len + DIGEST_LEN].copy_from_slice(&digest.to_le_bytes());
        }
    }

    /// Sends bytes as they are; whether the peer still takes them.
    pub fn send(&self, bytes: &[u8]) -> bool {
        (&self.socket).write_all(bytes).is_ok()
    }

    /// Sends bytes a few at a time.
    pub fn send_in_pieces(&self, bytes: &[u8], piece: usize) -> bool {
        bytes.chunks(piece).all(|piece| self.send(piece))
    }

    /// The next PDU, or how the connection ended.
    pub fn next(&self, limit: Duration) -> Got {
        self.socket.set_read_timeout(Some(limit)).unwrap();
        let mut pdu = vec![0; 8];
        let fill = |bytes: &mut [u8]| match (&self.socket).read_exact(bytes) {
            Ok(()) => None,
            Err(e) => Some(match e.kind() {
                ErrorKind::UnexpectedEof => Got::End,
                ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => Got::Reset,
                ErrorKind::WouldBlock | ErrorKind::TimedOut => Got::Silence,
                _ => panic!("{e}"),
            }),
        };
        if let Some(end) = fill(&mut pdu) {
            return end;
        }
        let len = u32::from_le_bytes(pdu[4..8].try_into().unwrap()) as usize;
        assert!((8..=4 << 20).contains(&len), "a PDU of {len} bytes");
        pdu.resize(len, 0);
        match fill(&mut pdu[8..]) {
            Some(end) => end,
            None => Got::Pdu(pdu),
        }
    }

    /// The next response; data is dropped.
    pub fn response(&self) -> Cqe {
        loop {
            match self.next(PATIENCE) {
                Got::Pdu(pdu) if pdu[0] == PduType::CAPSULE_RESP.0 => {
                    return CapsuleRespPdu::read_from_prefix(&pdu).unwrap().0.cqe;
                }
                Got::Pdu(pdu) if pdu[0] == PduType::C2H_DATA.0 => {}
                other => panic!("no response: {other:?}"),
            }
        }
    }

    /// The next PDU, which is to be an R2T.
    pub fn r2t(&self) -> R2tPdu {
        match self.next(PATIENCE) {
            Got::Pdu(pdu) if pdu[0] == PduType::R2T.0 => R2tPdu::read_from_prefix(&pdu).unwrap().0,
            other => panic!("no R2T: {other:?}"),
        }
    }

    /// Carries out a command whose data, if any, is in the capsule.
    pub fn command(&mut self, cid: u16, sqe: Sqe, data: &[u8]) -> Cqe {
        assert!(self.send(&self.capsule(cid, sqe, data)), "the peer takes no command");
        let cqe = self.response();
        assert_eq!(cqe.cid.get(), cid);
        cqe
    }

    /// Ends by a reset instead of a FIN.
    pub fn reset(self) {
        rustix::net::sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO)).unwrap();
    }
}

fn framing(digests: Digests) -> Framing {
    let agreed = Negotiated {
        header_digest: digests.0,
        data_digest: digests.1,
        hpda_z: 0,
        cpda_z: 0,
        max_h2c_data: 1 << 20,
        max_r2t: 1,
    };
    Framing::new(Role::Host, &agreed)
}
