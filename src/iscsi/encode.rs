//! Writing PDUs: a header with its digest before the data, padding and digest behind it.

use super::pdu::{DIGEST_LEN, Header, padding};
use crate::util::{DataDigest, crc32c};

/// Bytes of the longest prefix: a header and its digest.
pub const PREFIX_MAX: usize = size_of::<Header>() + DIGEST_LEN;

/// Bytes of the longest suffix: padding and the data digest.
pub const SUFFIX_MAX: usize = 3 + DIGEST_LEN;

/// Which digests the PDUs of a connection carry. The pieces of a PDU are sent one behind the other: the prefix, the data from
/// where it lies, the suffix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Framing {
    /// Headers have a digest.
    pub header_digest: bool,
    /// Data has a digest.
    pub data_digest: bool,
}

impl Framing {
    /// Writes a header and, where it is in use, its digest; returns how many bytes of `out` they take.
    #[inline]
    pub fn prefix(&self, header: &Header, out: &mut [u8; PREFIX_MAX]) -> usize {
        let (head, digest) = out.split_at_mut(header.len());
        head.copy_from_slice(header);
        if !self.header_digest {
            return header.len();
        }
        digest.copy_from_slice(&crc32c(header).to_le_bytes());
        PREFIX_MAX
    }

    /// Writes what follows `len` bytes of data: padding and, where it is in use, the digest over data and padding.
    /// `digest` has taken the data; it is not looked at where no data digest is in use. Returns how many bytes of `out` they take.
    #[inline]
    pub fn suffix(&self, len: u32, mut digest: DataDigest, out: &mut [u8; SUFFIX_MAX]) -> usize {
        let pad = padding(len) as usize;
        out[..pad].fill(0);
        // A PDU without data has no data digest (RFC 7143 §11.2.3).
        if !self.data_digest || len == 0 {
            return pad;
        }
        digest.update(&out[..pad]);
        out[pad..pad + DIGEST_LEN].copy_from_slice(&digest.to_bytes());
        pad + DIGEST_LEN
    }

    /// Bytes on the wire of a PDU with `len` bytes of data.
    pub const fn wire_len(&self, len: u32) -> u64 {
        let digests = self.header_digest as u64 + (self.data_digest && len != 0) as u64;
        size_of::<Header>() as u64 + len as u64 + padding(len) as u64 + digests * DIGEST_LEN as u64
    }
}
