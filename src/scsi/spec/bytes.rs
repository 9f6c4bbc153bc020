//! Fields of CDBs and parameter lists: big-endian, with lengths checked.

/// Bytes of the longest CDB taken. Shorter CDBs are followed by zeros.
pub const CDB_LEN: usize = 16;

/// A command descriptor block, filled up with zeros (SPC-4 §4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cdb(pub [u8; CDB_LEN]);

impl Cdb {
    /// The first [`CDB_LEN`] bytes of `bytes`, and zeros for what is missing.
    pub fn new(bytes: &[u8]) -> Self {
        let mut cdb = [0; CDB_LEN];
        let len = bytes.len().min(CDB_LEN);
        cdb[..len].copy_from_slice(&bytes[..len]);
        Self(cdb)
    }

    /// The operation code.
    #[inline]
    pub const fn opcode(&self) -> u8 {
        self.0[0]
    }

    /// The service action field of byte 1.
    #[inline]
    pub const fn service_action(&self) -> u8 {
        self.0[1] & 0x1f
    }

    /// Byte `AT`.
    #[inline]
    pub const fn u8<const AT: usize>(&self) -> u8 {
        const { assert!(AT < CDB_LEN) };
        self.0[AT]
    }

    /// Whether bit `BIT` of byte `AT` is one.
    #[inline]
    pub const fn bit<const AT: usize, const BIT: u32>(&self) -> bool {
        const { assert!(AT < CDB_LEN && BIT < 8) };
        self.0[AT] >> BIT & 1 != 0
    }

    /// Bytes `AT` and the next.
    #[inline]
    pub const fn u16<const AT: usize>(&self) -> u16 {
        const { assert!(AT + 2 <= CDB_LEN) };
        u16::from_be_bytes([self.0[AT], self.0[AT + 1]])
    }

    /// Bytes `AT` to `AT + 3`.
    #[inline]
    pub const fn u32<const AT: usize>(&self) -> u32 {
        const { assert!(AT + 4 <= CDB_LEN) };
        u32::from_be_bytes([self.0[AT], self.0[AT + 1], self.0[AT + 2], self.0[AT + 3]])
    }

    /// Bytes `AT` to `AT + 7`.
    #[inline]
    pub const fn u64<const AT: usize>(&self) -> u64 {
        const { assert!(AT + 8 <= CDB_LEN) };
        let b = &self.0;
        u64::from_be_bytes([b[AT], b[AT + 1], b[AT + 2], b[AT + 3], b[AT + 4], b[AT + 5], b[AT + 6], b[AT + 7]])
    }
}

/// `N` bytes of `bytes` from `at`, or `None` when it ends before.
pub fn take<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

/// 16 bits of `bytes` from `at`, or `None` when it ends before.
pub fn take_u16(bytes: &[u8], at: usize) -> Option<u16> {
    take(bytes, at).map(u16::from_be_bytes)
}

/// 32 bits of `bytes` from `at`, or `None` when it ends before.
pub fn take_u32(bytes: &[u8], at: usize) -> Option<u32> {
    take(bytes, at).map(u32::from_be_bytes)
}

/// 64 bits of `bytes` from `at`, or `None` when it ends before.
pub fn take_u64(bytes: &[u8], at: usize) -> Option<u64> {
    take(bytes, at).map(u64::from_be_bytes)
}

/// Writes text left-justified into a field of `N` bytes and pads it with spaces; bytes outside of 20h to 7Eh become `_` (SPC-4 §4.3.1).
pub fn ascii_field<const N: usize>(text: &str) -> [u8; N] {
    let mut field = [b' '; N];
    for (byte, from) in field.iter_mut().zip(text.bytes()) {
        *byte = if (0x20..0x7f).contains(&from) { from } else { b'_' };
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cdb_fields_are_big_endian() {
        let cdb = Cdb::new(&[0x88, 0x1f, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert_eq!((cdb.opcode(), cdb.service_action()), (0x88, 0x1f));
        assert_eq!(cdb.u16::<2>(), 0x0102);
        assert_eq!(cdb.u32::<2>(), 0x0102_0304);
        assert_eq!(cdb.u64::<2>(), 0x0102_0304_0506_0708);
        assert!(cdb.bit::<1, 4>() && !cdb.bit::<1, 5>());
        assert_eq!(cdb.u8::<15>(), 0);
        assert_eq!(Cdb::new(&[1; 40]).0, [1; 16]);
    }

    #[test]
    fn short_lists_have_no_fields() {
        assert_eq!(take_u16(&[1, 2, 3], 1), Some(0x0203));
        assert_eq!(take_u16(&[1, 2, 3], 2), None);
        assert_eq!(take_u32(&[1, 2, 3], usize::MAX), None);
        assert_eq!(take_u64(&[0, 0, 0, 0, 0, 0, 0, 9], 0), Some(9));
    }

    #[test]
    fn text_is_printable() {
        assert_eq!(&ascii_field::<4>("a\u{e9}"), b"a__ ");
        assert_eq!(&ascii_field::<2>("abc"), b"ab");
    }
}
