//! Data-In, as it is put together.

/// Data that grows field by field.
pub(super) trait Put {
    /// Adds 16 bits.
    fn put_u16(&mut self, value: u16);
    /// Adds 32 bits.
    fn put_u32(&mut self, value: u32);
    /// Adds 64 bits.
    fn put_u64(&mut self, value: u64);
    /// Adds `len` zeros.
    fn put_zeros(&mut self, len: usize);
    /// Writes 16 bits over those at `at`, which must be there.
    fn set_u16(&mut self, at: usize, value: u16);
}

impl Put for Vec<u8> {
    fn put_u16(&mut self, value: u16) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_u32(&mut self, value: u32) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_u64(&mut self, value: u64) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_zeros(&mut self, len: usize) {
        self.resize(self.len() + len, 0);
    }

    fn set_u16(&mut self, at: usize, value: u16) {
        self[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }
}
