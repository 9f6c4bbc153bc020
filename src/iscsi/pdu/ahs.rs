//! Additional header segments (RFC 7143 §11.2.2).

use super::code::AhsType;

/// Most bytes of additional headers: a CDB of 260 bytes and a bidirectional read length.
pub const AHS_MAX: usize = 256;

/// Longest CDB: 16 bytes in the header and 244 behind it (SPC-4, variable length CDB formats).
pub const CDB_MAX: usize = 260;

/// What the additional header segments of a SCSI Command say (RFC 7143 §11.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ahs<'a> {
    /// What follows the first 16 bytes of the CDB.
    pub extended_cdb: &'a [u8],
    /// Bytes that a bidirectional command expects to read.
    pub bidi_read_len: Option<u32>,
}

/// The additional header segments are not well formed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed additional header segment")]
pub struct BadAhs;

impl<'a> Ahs<'a> {
    /// Reads the segments, each a length of two bytes, a type and its contents, padded to words.
    ///
    /// # Errors
    /// A segment is longer than what is there, is there twice, has no known type or not the length of its type.
    pub fn read(mut bytes: &'a [u8]) -> Result<Ahs<'a>, BadAhs> {
        let mut ahs = Ahs::default();
        while let [high, low, kind, rest @ ..] = bytes {
            let len = usize::from(u16::from_be_bytes([*high, *low]));
            let padded = (len + 3).next_multiple_of(4);
            if len == 0 || padded > bytes.len() {
                return Err(BadAhs);
            }
            // The first byte behind the type is reserved in both.
            let contents = &rest[1..len];
            match AhsType(*kind) {
                AhsType::EXTENDED_CDB if ahs.extended_cdb.is_empty() => {
                    if contents.is_empty() || contents.len() > CDB_MAX - 16 {
                        return Err(BadAhs);
                    }
                    ahs.extended_cdb = contents;
                }
                AhsType::BIDIRECTIONAL_READ_LENGTH if ahs.bidi_read_len.is_none() => {
                    let contents = contents.try_into().map_err(|_| BadAhs)?;
                    ahs.bidi_read_len = Some(u32::from_be_bytes(contents));
                }
                _ => return Err(BadAhs),
            }
            bytes = &bytes[padded..];
        }
        if bytes.is_empty() { Ok(ahs) } else { Err(BadAhs) }
    }
}
