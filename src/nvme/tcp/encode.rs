//! Writing PDU headers.

use core::mem::size_of;

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromZeros, IntoBytes};

use super::decode::Role;
use super::negotiate::{IcRequest, IcResponse, Negotiated};
use super::pdu::*;
use crate::nvme::spec::{Cqe, Sqe};
use crate::util::crc32c;

/// Most bytes that precede the data of a PDU, or that a PDU without data has: the room every encoder here needs.
pub const MAX_PREFIX_LEN: usize = 152;

// The largest of: ICReq and ICResp, a termination request, a command capsule whose data starts at the next multiple of
// the largest alignment (72 bytes of header and 4 of digest, padded to a multiple of 72).
const _: () = assert!(MAX_PREFIX_LEN >= size_of::<IcReqPdu>());
const _: () = assert!(MAX_PREFIX_LEN >= size_of::<TermReqPdu>() + TERM_DATA_MAX);
const _: () = assert!(MAX_PREFIX_LEN >= 2 * size_of::<CapsuleCmdPdu>());

/// How one end writes its PDUs: the digests in use and the alignment of data that the other end asked for. Every
/// method writes a header with its digest (and padding when data follows) to the start of `out` and returns the
/// length; the data goes right behind, then, with data digests, [`super::DataDigest::to_bytes`].
///
/// # Panics
/// When `out` is shorter than what is written; [`MAX_PREFIX_LEN`] bytes are always enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    header_digest: bool,
    data_digest: bool,
    /// Where data starts in a command capsule.
    capsule_pdo: u8,
    /// Where data starts in H2CData and C2HData.
    data_pdo: u8,
}

impl Framing {
    /// The framing of the PDUs that `role` sends.
    pub const fn new(role: Role, agreed: &Negotiated) -> Self {
        let alignment_z = match role {
            Role::Controller => agreed.hpda_z,
            Role::Host => agreed.cpda_z,
        };
        let alignment = (alignment_z as usize + 1) * 4;
        let digest_len = if agreed.header_digest { DIGEST_LEN } else { 0 };
        Self {
            header_digest: agreed.header_digest,
            data_digest: agreed.data_digest,
            capsule_pdo: (size_of::<CapsuleCmdPdu>() + digest_len).next_multiple_of(alignment) as u8,
            data_pdo: (size_of::<DataPdu>() + digest_len).next_multiple_of(alignment) as u8,
        }
    }

    /// Whether a data digest follows the data of every PDU with data.
    pub const fn data_digest(&self) -> bool {
        self.data_digest
    }

    /// Header of a command capsule with `data_len` bytes of in-capsule data, 0 for none.
    #[inline]
    pub fn capsule_cmd(&self, sqe: &Sqe, data_len: u32, out: &mut [u8]) -> usize {
        let hlen = size_of::<CapsuleCmdPdu>();
        let ch = match data_len {
            0 => self.without_data(PduType::CAPSULE_CMD, hlen),
            _ => self.with_data(PduType::CAPSULE_CMD, hlen, 0, self.capsule_pdo, data_len),
        };
        self.finish(&CapsuleCmdPdu { ch, sqe: *sqe }, &ch, out)
    }

    /// A response capsule.
    #[inline]
    pub fn capsule_resp(&self, cqe: &Cqe, out: &mut [u8]) -> usize {
        let ch = self.without_data(PduType::CAPSULE_RESP, size_of::<CapsuleRespPdu>());
        self.finish(&CapsuleRespPdu { ch, cqe: *cqe }, &ch, out)
    }

    /// Header of a C2HData PDU with `len` bytes, not 0, from `offset` of the command's data. `success` needs `last`:
    /// it replaces the response capsule.
    #[inline]
    pub fn c2h_data(&self, cid: u16, offset: u32, len: u32, last: bool, success: bool, out: &mut [u8]) -> usize {
        debug_assert!(last || !success, "SUCCESS without LAST_PDU");
        let flags = if last { FLAG_LAST } else { 0 } | if success { FLAG_SUCCESS } else { 0 };
        self.data(PduType::C2H_DATA, flags, cid, 0, offset, len, out)
    }

    /// Header of an H2CData PDU with `len` bytes, not 0, from `offset` of the command's data, for the R2T `ttag`.
    #[inline]
    pub fn h2c_data(&self, cid: u16, ttag: u16, offset: u32, len: u32, last: bool, out: &mut [u8]) -> usize {
        let flags = if last { FLAG_LAST } else { 0 };
        self.data(PduType::H2C_DATA, flags, cid, ttag, offset, len, out)
    }

    /// An R2T for `len` bytes from `offset` of the command's data.
    #[inline]
    pub fn r2t(&self, cid: u16, ttag: u16, offset: u32, len: u32, out: &mut [u8]) -> usize {
        let ch = self.without_data(PduType::R2T, size_of::<R2tPdu>());
        let pdu = R2tPdu {
            ch,
            cccid: U16::new(cid),
            ttag: U16::new(ttag),
            r2to: U32::new(offset),
            r2tl: U32::new(len),
            reserved20: [0; 4],
        };
        self.finish(&pdu, &ch, out)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one header, private")]
    fn data(&self, kind: PduType, flags: u8, cid: u16, ttag: u16, offset: u32, len: u32, out: &mut [u8]) -> usize {
        debug_assert!(len != 0, "a data PDU without data");
        let ch = self.with_data(kind, size_of::<DataPdu>(), flags, self.data_pdo, len);
        let pdu = DataPdu {
            ch,
            cccid: U16::new(cid),
            ttag: U16::new(ttag),
            datao: U32::new(offset),
            datal: U32::new(len),
            reserved20: [0; 4],
        };
        self.finish(&pdu, &ch, out)
    }

    fn without_data(&self, pdu_type: PduType, hlen: usize) -> CommonHeader {
        let mut ch = plain(pdu_type, hlen, 0);
        if self.header_digest {
            ch.flags = FLAG_HEADER_DIGEST;
            ch.plen.set((hlen + DIGEST_LEN) as u32);
        }
        ch
    }

    fn with_data(&self, pdu_type: PduType, hlen: usize, flags: u8, pdo: u8, data_len: u32) -> CommonHeader {
        let mut flags = flags;
        let mut plen = u32::from(pdo) + data_len;
        if self.header_digest {
            flags |= FLAG_HEADER_DIGEST;
        }
        if self.data_digest {
            flags |= FLAG_DATA_DIGEST;
            plen += DIGEST_LEN as u32;
        }
        CommonHeader { pdu_type, flags, hlen: hlen as u8, pdo, plen: U32::new(plen) }
    }

    #[inline]
    fn finish<T: IntoBytes + zerocopy::Immutable>(&self, pdu: &T, ch: &CommonHeader, out: &mut [u8]) -> usize {
        let header = pdu.as_bytes();
        let mut len = header.len();
        out[..len].copy_from_slice(header);
        if self.header_digest {
            out[len..len + DIGEST_LEN].copy_from_slice(&crc32c(header).to_le_bytes());
            len += DIGEST_LEN;
        }
        let pdo = usize::from(ch.pdo);
        if pdo > len {
            out[len..pdo].fill(0);
            len = pdo;
        }
        len
    }
}

/// An ICReq; returns its length.
///
/// # Panics
/// When `out` has fewer than 128 bytes.
pub fn ic_req(request: &IcRequest, out: &mut [u8]) -> usize {
    let mut pdu = IcReqPdu::new_zeroed();
    pdu.ch = plain(PduType::IC_REQ, size_of::<IcReqPdu>(), 0);
    pdu.hpda_z = request.hpda_z;
    pdu.dgst = request.dgst;
    pdu.maxr2t_z.set(request.maxr2t_z);
    out[..size_of::<IcReqPdu>()].copy_from_slice(pdu.as_bytes());
    size_of::<IcReqPdu>()
}

/// An ICResp; returns its length.
///
/// # Panics
/// When `out` has fewer than 128 bytes.
pub fn ic_resp(response: &IcResponse, out: &mut [u8]) -> usize {
    let mut pdu = IcRespPdu::new_zeroed();
    pdu.ch = plain(PduType::IC_RESP, size_of::<IcRespPdu>(), 0);
    pdu.cpda_z = response.cpda_z;
    pdu.dgst = response.dgst;
    pdu.maxh2cdata.set(response.maxh2cdata);
    out[..size_of::<IcRespPdu>()].copy_from_slice(pdu.as_bytes());
    size_of::<IcRespPdu>()
}

/// A termination request sent by `role`, with (the first 128 bytes of) the offending header; returns its length.
///
/// # Panics
/// When `out` is shorter than 24 bytes and the header; [`MAX_PREFIX_LEN`] bytes are always enough.
pub fn term_req(role: Role, status: FatalErrorStatus, info: u32, header: &[u8], out: &mut [u8]) -> usize {
    let header = &header[..header.len().min(TERM_DATA_MAX)];
    let pdu_type = match role {
        Role::Controller => PduType::C2H_TERM_REQ,
        Role::Host => PduType::H2C_TERM_REQ,
    };
    let hlen = size_of::<TermReqPdu>();
    let pdu = TermReqPdu {
        ch: plain(pdu_type, hlen, header.len()),
        fes: U16::new(status.0),
        fei: U32::new(info),
        reserved14: [0; 10],
    };
    out[..hlen].copy_from_slice(pdu.as_bytes());
    out[hlen..hlen + header.len()].copy_from_slice(header);
    hlen + header.len()
}

/// A common header without digests or data offset.
fn plain(pdu_type: PduType, hlen: usize, data_len: usize) -> CommonHeader {
    CommonHeader { pdu_type, flags: 0, hlen: hlen as u8, pdo: 0, plen: U32::new((hlen + data_len) as u32) }
}
