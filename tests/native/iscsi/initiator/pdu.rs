//! Protocol data units as bytes (RFC 7143 §11), read for the second time: nothing here comes from the library's own engine.

use crc_fast::CrcAlgorithm;

/// Bytes of a basic header segment.
pub const BHS_LEN: usize = 48;
/// Of a digest, header or data.
pub const DIGEST_LEN: usize = 4;
/// A tag that means no task (RFC 7143 §11.2.1.8, §11.7.4).
pub const NO_TAG: u32 = 0xffff_ffff;

/// Opcodes (RFC 7143 §11.2.1.2).
pub mod op {
    pub const NOP_OUT: u8 = 0x00;
    pub const COMMAND: u8 = 0x01;
    pub const TASK_MANAGEMENT: u8 = 0x02;
    pub const LOGIN: u8 = 0x03;
    pub const TEXT: u8 = 0x04;
    pub const DATA_OUT: u8 = 0x05;
    pub const LOGOUT: u8 = 0x06;
    pub const SNACK: u8 = 0x10;
    pub const NOP_IN: u8 = 0x20;
    pub const RESPONSE: u8 = 0x21;
    pub const TASK_MANAGEMENT_RESPONSE: u8 = 0x22;
    pub const LOGIN_RESPONSE: u8 = 0x23;
    pub const TEXT_RESPONSE: u8 = 0x24;
    pub const DATA_IN: u8 = 0x25;
    pub const LOGOUT_RESPONSE: u8 = 0x26;
    pub const R2T: u8 = 0x31;
    pub const ASYNC: u8 = 0x32;
    pub const REJECT: u8 = 0x3f;
    /// The bit of a request that does not wait for its turn.
    pub const IMMEDIATE: u8 = 0x40;
}

/// Bits of byte 1.
pub mod flag {
    pub const FINAL: u8 = 0x80;
    /// Login and Text: the keys go on in the next PDU.
    pub const CONTINUE: u8 = 0x40;
    /// SCSI Command.
    pub const READ: u8 = 0x40;
    pub const WRITE: u8 = 0x20;
    /// Data-In: the status of the command is in it.
    pub const STATUS: u8 = 0x01;
    /// Data-In and SCSI Response: residual overflow, underflow.
    pub const OVERFLOW: u8 = 0x04;
    pub const UNDERFLOW: u8 = 0x02;
}

/// A PDU without its digests and padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pdu {
    /// The basic header segment; the lengths in it are put there by [`Pdu::encode`].
    pub bhs: [u8; BHS_LEN],
    /// Additional header segments, a multiple of four bytes.
    pub ahs: Vec<u8>,
    /// The data segment.
    pub data: Vec<u8>,
}

impl Pdu {
    /// An empty one.
    pub fn new(opcode: u8, flags: u8) -> Pdu {
        let mut bhs = [0; BHS_LEN];
        (bhs[0], bhs[1]) = (opcode, flags);
        Pdu { bhs, ahs: Vec::new(), data: Vec::new() }
    }

    /// With a field of two or four bytes at `at`.
    pub fn with16(mut self, at: usize, value: u16) -> Pdu {
        self.bhs[at..at + 2].copy_from_slice(&value.to_be_bytes());
        self
    }

    pub fn with(mut self, at: usize, value: u32) -> Pdu {
        self.set(at, value);
        self
    }

    pub fn with_data(mut self, data: &[u8]) -> Pdu {
        self.data = data.to_vec();
        self
    }

    /// For logical unit `lun`, single level, peripheral or flat space (SAM-5 §4.7).
    pub fn with_lun(mut self, lun: u16) -> Pdu {
        self.bhs[8..16].copy_from_slice(&lun_bytes(lun));
        self
    }

    pub fn set(&mut self, at: usize, value: u32) {
        self.bhs[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    pub fn get(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.bhs[at..at + 4].try_into().unwrap())
    }

    pub fn get16(&self, at: usize) -> u16 {
        u16::from_be_bytes(self.bhs[at..at + 2].try_into().unwrap())
    }

    pub fn opcode(&self) -> u8 {
        self.bhs[0] & 0x3f
    }

    pub fn is(&self, bit: u8) -> bool {
        self.bhs[1] & bit != 0
    }

    /// Initiator task tag.
    pub fn itt(&self) -> u32 {
        self.get(16)
    }

    /// What goes over the wire, with the digests in use.
    pub fn encode(&self, header_digest: bool, data_digest: bool) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(BHS_LEN + self.ahs.len() + self.data.len() + 12);
        bytes.extend_from_slice(&self.bhs);
        bytes[4] = (self.ahs.len() / 4) as u8;
        bytes[5..8].copy_from_slice(&(self.data.len() as u32).to_be_bytes()[1..]);
        bytes.extend_from_slice(&self.ahs);
        if header_digest {
            let digest = crc32c(&bytes);
            bytes.extend_from_slice(&digest);
        }
        let start = bytes.len();
        bytes.extend_from_slice(&self.data);
        bytes.resize(start + self.data.len().next_multiple_of(4), 0);
        if data_digest && !self.data.is_empty() {
            let digest = crc32c(&bytes[start..]);
            bytes.extend_from_slice(&digest);
        }
        bytes
    }
}

/// A logical unit number as eight bytes.
pub fn lun_bytes(lun: u16) -> [u8; 8] {
    let first = if lun < 256 { lun } else { 0x4000 | lun };
    let mut bytes = [0; 8];
    bytes[..2].copy_from_slice(&first.to_be_bytes());
    bytes
}

/// CRC32C as it stands on the wire: the polynomial's bits are reflected, so the lowest byte comes first (RFC 7143 §13.1, with
/// examples in its appendix A.4).
pub fn crc32c(bytes: &[u8]) -> [u8; DIGEST_LEN] {
    (crc_fast::checksum(CrcAlgorithm::Crc32Iscsi, bytes) as u32).to_le_bytes()
}
