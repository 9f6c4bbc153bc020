//! TransportIDs: how a parameter list names an initiator port (SPC-4 §7.6.4).

use super::bytes::take_u16;

/// Protocol identifier of iSCSI, in bits 3:0 of byte 0 (SPC-4 §7.6.1).
const PROTOCOL_ISCSI: u8 = 0x5;

/// Bits 7:6 of byte 0: the name of a node, or of a port of it.
const FORMAT_NODE: u8 = 0b00;
const FORMAT_PORT: u8 = 0b01;

/// What stands between the name of a node and its ISID.
const ISID_SEPARATOR: &str = ",i,0x";

/// Longest iSCSI name in bytes (RFC 7143 §4.2.7.2).
const NAME_MAX: usize = 223;

/// Bytes of the header of a TransportID.
const HEADER_LEN: usize = 4;

/// Least ADDITIONAL LENGTH of an iSCSI TransportID (SPC-4 §7.6.4.6).
const ADDITIONAL_MIN: usize = 20;

/// An initiator, or a port of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportId {
    /// The iSCSI name of the initiator node, lower case.
    pub name: String,
    /// The ISID that makes it a port; `None`: every port of the node (format 00b).
    pub isid: Option<[u8; 6]>,
}

impl TransportId {
    /// Reads the TransportID that `bytes` begin with, and says how many bytes it has. `None`: not an iSCSI TransportID, or malformed.
    pub fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        let &[first, _, ..] = bytes else { return None };
        let additional = usize::from(take_u16(bytes, 2)?);
        if first & 0xf != PROTOCOL_ISCSI || additional < ADDITIONAL_MIN || !additional.is_multiple_of(4) {
            return None;
        }
        let len = HEADER_LEN + additional;
        let field = bytes.get(HEADER_LEN..len)?;
        let end = field.iter().position(|&byte| byte == 0)?;
        if field[end..].iter().any(|&byte| byte != 0) {
            return None;
        }
        let text = core::str::from_utf8(&field[..end]).ok()?;
        let (name, isid) = match first >> 6 {
            FORMAT_NODE => (text, None),
            FORMAT_PORT => {
                let (name, digits) = text.split_once(ISID_SEPARATOR)?;
                (name, Some(isid_of(digits)?))
            }
            _ => return None,
        };
        if name.is_empty() || name.len() > NAME_MAX || name.contains(',') {
            return None;
        }
        Some((Self { name: name.to_ascii_lowercase(), isid }, len))
    }

    /// The TransportID as bytes, a multiple of 4 and 24 at least.
    pub fn encode(&self) -> Vec<u8> {
        let mut text = self.name.clone().into_bytes();
        if let Some(isid) = self.isid {
            text.extend_from_slice(ISID_SEPARATOR.as_bytes());
            for byte in isid {
                text.extend_from_slice(format!("{byte:02x}").as_bytes());
            }
        }
        // The NUL that ends the text is part of it.
        let additional = (text.len() + 1).next_multiple_of(4).max(ADDITIONAL_MIN);
        let format = if self.isid.is_some() { FORMAT_PORT } else { FORMAT_NODE };
        let mut out = vec![format << 6 | PROTOCOL_ISCSI, 0];
        out.extend_from_slice(&(additional as u16).to_be_bytes());
        out.extend_from_slice(&text);
        out.resize(HEADER_LEN + additional, 0);
        out
    }
}

/// 12 hexadecimal digits.
fn isid_of(digits: &str) -> Option<[u8; 6]> {
    if digits.len() != 12 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return None;
    }
    let value = u64::from_str_radix(digits, 16).ok()?.to_be_bytes();
    Some([value[2], value[3], value[4], value[5], value[6], value[7]])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> TransportId {
        TransportId { name: "iqn.2026-11.io.a:b".to_owned(), isid: Some([0x80, 0x12, 0x34, 0x56, 0, 0x01]) }
    }

    #[test]
    fn golden_bytes_of_both_formats() {
        let bytes = port().encode();
        assert_eq!(&bytes[..4], &[0x45, 0, 0, 36]);
        assert_eq!(&bytes[4..40], b"iqn.2026-11.io.a:b,i,0x801234560001\0");
        let node = TransportId { isid: None, ..port() };
        let bytes = node.encode();
        assert_eq!(&bytes[..4], &[0x05, 0, 0, 20]);
        assert_eq!(&bytes[4..], b"iqn.2026-11.io.a:b\0\0");
    }

    #[test]
    fn what_is_encoded_is_read_back() {
        for id in [port(), TransportId { isid: None, ..port() }, TransportId { name: "n".repeat(223), ..port() }] {
            let mut bytes = id.encode();
            let len = bytes.len();
            bytes.extend_from_slice(&[0xff; 5]);
            assert_eq!(TransportId::decode(&bytes), Some((id, len)));
        }
    }

    #[test]
    fn malformed_ids_are_refused() {
        let good = port().encode();
        assert!(TransportId::decode(&[]).is_none());
        for len in 0..good.len() {
            assert!(TransportId::decode(&good[..len]).is_none(), "{len}");
        }
        let broken = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            TransportId::decode(&bytes)
        };
        assert!(broken(0, 0x46).is_none(), "another protocol");
        assert!(broken(0, 0x85).is_none(), "a reserved format");
        assert!(broken(3, 35).is_none(), "a length that is not a multiple of 4");
        assert!(broken(39, b'x').is_none(), "no NUL");
        assert!(broken(22, b';').is_none(), "no ISID");
        assert!(broken(30, b'g').is_none(), "not a digit");
        assert!(broken(10, 0).is_none(), "bytes after the NUL");
        let mut short = TransportId { isid: None, ..port() }.encode();
        short[3] = 16;
        assert!(TransportId::decode(&short).is_none());
    }
}
