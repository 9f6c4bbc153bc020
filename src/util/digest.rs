//! CRC32C, the header and data digest of NVMe/TCP (TCP §3.3.1.1) and iSCSI (RFC 7143 §13.1).

use crc_fast::{CrcAlgorithm, Digest};

/// CRC32C of `bytes`.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// Data digest computed piece by piece. Plain data: it may be frozen between two pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataDigest {
    /// The register of the CRC before the final inversion.
    register: u32,
}

impl Default for DataDigest {
    fn default() -> Self {
        Self::new()
    }
}

impl DataDigest {
    /// The digest of no bytes.
    pub const fn new() -> Self {
        Self { register: u32::MAX }
    }

    /// Adds the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(self.register));
        digest.update(bytes);
        self.register = digest.get_state() as u32;
    }

    /// The digest of the bytes added so far.
    pub const fn value(self) -> u32 {
        !self.register
    }

    /// The digest in wire order.
    pub const fn to_bytes(self) -> [u8; 4] {
        self.value().to_le_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_check_values() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        // RFC 7143, appendix A.4.
        assert_eq!(crc32c(&[0u8; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xffu8; 32]), 0x62a8_ab43);
    }

    #[test]
    fn pieces_equal_the_whole() {
        let data: Vec<u8> = (0..9000u32).map(|i| (i * 7) as u8).collect();
        for split in [0, 1, 3, 64, 4095, 4096, 8999, 9000] {
            let mut digest = DataDigest::new();
            digest.update(&data[..split]);
            digest.update(&data[split..]);
            assert_eq!(digest.value(), crc32c(&data), "split {split}");
        }
        assert_eq!(DataDigest::new().value(), crc32c(&[]));
    }
}
