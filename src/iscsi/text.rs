//! Text: `key=value` pairs, each ended by a NUL, and the forms of their values (RFC 7143 §6.1).

/// Longest key in bytes.
pub const KEY_MAX: usize = 63;
/// Longest value that is not a binary or a list, in bytes.
pub const VALUE_MAX: usize = 255;
/// Longest value of any kind, in bytes as written.
pub const LONG_VALUE_MAX: usize = 8192;
/// Most bytes of text of one exchange, over all its PDUs.
pub const TEXT_MAX: usize = 16 * 1024;

/// Why a text cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadText {
    /// More text than an exchange may have.
    #[error("more than {TEXT_MAX} bytes of text")]
    TooLong,
    /// The last pair has no NUL.
    #[error("the last pair has no end")]
    Unterminated,
    /// A pair has no `=`.
    #[error("a pair without a value")]
    NoValue,
    /// A key is longer than 63 bytes or has other characters than a key may have.
    #[error("a key that is none")]
    Key,
    /// A value is longer than values may be, or not UTF-8.
    #[error("a value that is too long or not text")]
    Value,
}

/// The text of one exchange while its PDUs arrive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Text(Vec<u8>);

impl Text {
    /// No text.
    pub const fn new() -> Text {
        Text(Vec::new())
    }

    /// Adds the data of the next PDU.
    ///
    /// # Errors
    /// It would be too long; then nothing is added.
    pub fn add(&mut self, data: &[u8]) -> Result<(), BadText> {
        if self.0.len() + data.len() > TEXT_MAX {
            return Err(BadText::TooLong);
        }
        self.0.extend_from_slice(data);
        Ok(())
    }

    /// The pairs, in their order. More NULs than one between them are passed over.
    ///
    /// # Errors
    /// The text is not made of pairs.
    pub fn pairs(&self) -> Result<Vec<(&str, &str)>, BadText> {
        if self.0.last().is_some_and(|last| *last != 0) {
            return Err(BadText::Unterminated);
        }
        self.0.split(|byte| *byte == 0).filter(|pair| !pair.is_empty()).map(pair).collect()
    }

    /// Forgets what there is.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

fn pair(bytes: &[u8]) -> Result<(&str, &str), BadText> {
    let equals = bytes.iter().position(|byte| *byte == b'=').ok_or(BadText::NoValue)?;
    let (key, value) = (&bytes[..equals], &bytes[equals + 1..]);
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || b".-+@_".contains(byte);
    if key.is_empty() || key.len() > KEY_MAX || !key.iter().all(legal) {
        return Err(BadText::Key);
    }
    if value.len() > LONG_VALUE_MAX {
        return Err(BadText::Value);
    }
    let key = core::str::from_utf8(key).map_err(|_| BadText::Key)?;
    let value = core::str::from_utf8(value).map_err(|_| BadText::Value)?;
    Ok((key, value))
}

/// Appends a pair to a text that is to be sent.
pub fn put(out: &mut Vec<u8>, key: &str, value: &str) {
    out.extend_from_slice(key.as_bytes());
    out.push(b'=');
    out.extend_from_slice(value.as_bytes());
    out.push(0);
}

/// A numerical value: decimal, or hexadecimal behind `0x`. `None` when it is none or does not fit.
pub fn number(value: &str) -> Option<u64> {
    let (digits, radix) = match value.strip_prefix("0x").or_else(|| value.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (value, 10),
    };
    // What the standard library takes beyond digits, a sign, is none here.
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(digits, radix).ok()
}

/// A boolean value.
pub fn boolean(value: &str) -> Option<bool> {
    match value {
        "Yes" => Some(true),
        "No" => Some(false),
        _ => None,
    }
}

/// `Yes` or `No`.
pub const fn yes_no(value: bool) -> &'static str {
    if value { "Yes" } else { "No" }
}

/// A large binary value: hexadecimal behind `0x` or base64 behind `0b`, of 1 to `max` bytes. `None` when it is none.
pub fn binary(value: &str, max: usize) -> Option<Vec<u8>> {
    let (prefix, digits) = value.as_bytes().split_first_chunk::<2>()?;
    let bytes = match prefix {
        b"0x" | b"0X" if digits.len() <= max * 2 => hexadecimal(digits)?,
        b"0b" | b"0B" if digits.len() <= max.div_ceil(3) * 4 => base64(digits)?,
        _ => return None,
    };
    (!bytes.is_empty() && bytes.len() <= max).then_some(bytes)
}

fn hexadecimal(digits: &[u8]) -> Option<Vec<u8>> {
    let nibble = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
    // An odd number of digits begins with half a byte.
    let (first, rest) = digits.split_at(digits.len() % 2);
    let mut bytes = Vec::with_capacity(digits.len().div_ceil(2));
    if let [digit] = first {
        bytes.push(nibble(digit)?);
    }
    for pair in rest.chunks_exact(2) {
        bytes.push(nibble(&pair[0])? << 4 | nibble(&pair[1])?);
    }
    Some(bytes)
}

fn base64(digits: &[u8]) -> Option<Vec<u8>> {
    let sextet = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    if digits.is_empty() || !digits.len().is_multiple_of(4) {
        return None;
    }
    let pads = digits.iter().rev().take_while(|byte| **byte == b'=').count();
    let (digits, _) = digits.split_at(digits.len() - pads);
    if pads > 2 {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let mut word = 0u32;
        for (i, digit) in group.iter().enumerate() {
            word |= u32::from(sextet(*digit)?) << (18 - 6 * i);
        }
        let [_, a, b, c] = word.to_be_bytes();
        let len = group.len() - 1;
        // Bits behind the last byte are zero, or one value would have several spellings.
        if [a, b, c][len..].iter().any(|byte| *byte != 0) {
            return None;
        }
        bytes.extend_from_slice(&[a, b, c][..len]);
    }
    Some(bytes)
}

/// A binary value as it is sent: `0x` and lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|byte| [DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    let mut text = String::with_capacity(2 + bytes.len() * 2);
    text.push_str("0x");
    text.extend(digits.map(char::from));
    text
}
