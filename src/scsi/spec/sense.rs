//! Sense keys, additional sense codes, and sense data in fixed and descriptor format (SPC-4 §4.5).

use crate::util::open_enum;

open_enum! {
    /// Sense keys (SPC-4 §4.5.6).
    pub enum SenseKey: u8 {
        /// Nothing to report.
        NO_SENSE = 0x0,
        /// Done, with recovery.
        RECOVERED_ERROR = 0x1,
        /// The logical unit is not ready.
        NOT_READY = 0x2,
        /// The medium is damaged.
        MEDIUM_ERROR = 0x3,
        /// The hardware failed.
        HARDWARE_ERROR = 0x4,
        /// The command or its parameters are wrong.
        ILLEGAL_REQUEST = 0x5,
        /// Something changed that the initiator must know.
        UNIT_ATTENTION = 0x6,
        /// The blocks are protected.
        DATA_PROTECT = 0x7,
        /// A copy ended before its time.
        COPY_ABORTED = 0xa,
        /// The command was aborted; a retry may help.
        ABORTED_COMMAND = 0xb,
        /// Data and medium differ.
        MISCOMPARE = 0xe,
    }
}

open_enum! {
    /// Additional sense codes with their qualifiers: `ASC << 8 | ASCQ` (SPC-4, annex Numeric order codes).
    pub enum Asc: u16 {
        /// No additional sense information.
        NONE = 0x0000,
        /// Operation in progress.
        OPERATION_IN_PROGRESS = 0x0016,
        /// Logical unit not ready, cause not reportable.
        NOT_READY = 0x0400,
        /// Logical unit not ready, initializing command required.
        NOT_READY_INITIALIZE = 0x0402,
        /// Logical unit not ready, format in progress.
        NOT_READY_FORMAT = 0x0404,
        /// Unreachable copy target.
        UNREACHABLE_COPY_TARGET = 0x0804,
        /// Write error.
        WRITE_ERROR = 0x0c00,
        /// Third-party device failure.
        THIRD_PARTY_FAILURE = 0x0d01,
        /// Copy target device not reachable.
        COPY_TARGET_NOT_REACHABLE = 0x0d02,
        /// Incorrect copy target device type.
        INCORRECT_COPY_TARGET_TYPE = 0x0d03,
        /// Invalid field in command information unit: the transport's data length is not the command's.
        INVALID_INFORMATION_UNIT = 0x0e03,
        /// Unrecovered read error.
        UNRECOVERED_READ_ERROR = 0x1100,
        /// Parameter list length error.
        PARAMETER_LIST_LENGTH = 0x1a00,
        /// Miscompare during verify operation.
        MISCOMPARE = 0x1d00,
        /// Invalid command operation code.
        INVALID_OPCODE = 0x2000,
        /// Logical block address out of range.
        LBA_OUT_OF_RANGE = 0x2100,
        /// Invalid field in CDB.
        INVALID_FIELD_IN_CDB = 0x2400,
        /// Logical unit not supported.
        LUN_NOT_SUPPORTED = 0x2500,
        /// Invalid field in parameter list.
        INVALID_FIELD_IN_PARAMETERS = 0x2600,
        /// Invalid release of persistent reservation.
        INVALID_RELEASE = 0x2604,
        /// Too many target (CSCD) descriptors.
        TOO_MANY_CSCDS = 0x2606,
        /// Unsupported target (CSCD) descriptor type code.
        UNSUPPORTED_CSCD_TYPE = 0x2607,
        /// Too many segment descriptors.
        TOO_MANY_SEGMENTS = 0x2608,
        /// Unsupported segment descriptor type code.
        UNSUPPORTED_SEGMENT_TYPE = 0x2609,
        /// Inline data length exceeded.
        INLINE_DATA_EXCEEDED = 0x260b,
        /// Write protected.
        WRITE_PROTECTED = 0x2700,
        /// Logical unit software write protected.
        SOFTWARE_WRITE_PROTECTED = 0x2702,
        /// Space allocation failed, write protect.
        SPACE_ALLOCATION_FAILED = 0x2707,
        /// Power on, reset, or bus device reset occurred.
        POWER_ON = 0x2900,
        /// Bus device reset function occurred.
        DEVICE_RESET = 0x2903,
        /// I_T nexus loss occurred.
        NEXUS_LOSS = 0x2907,
        /// Mode parameters changed.
        MODE_PARAMETERS_CHANGED = 0x2a01,
        /// Reservations preempted.
        RESERVATIONS_PREEMPTED = 0x2a03,
        /// Reservations released.
        RESERVATIONS_RELEASED = 0x2a04,
        /// Registrations preempted.
        REGISTRATIONS_PREEMPTED = 0x2a05,
        /// Asymmetric access state changed.
        ACCESS_STATE_CHANGED = 0x2a06,
        /// Capacity data has changed.
        CAPACITY_CHANGED = 0x2a09,
        /// Commands cleared by another initiator.
        COMMANDS_CLEARED = 0x2f00,
        /// Commands cleared by device server.
        COMMANDS_CLEARED_BY_SERVER = 0x2f02,
        /// Saving parameters not supported.
        SAVING_NOT_SUPPORTED = 0x3900,
        /// Logical unit failed self-test.
        SELF_TEST_FAILED = 0x3e03,
        /// Inquiry data has changed.
        INQUIRY_CHANGED = 0x3f03,
        /// Reported LUNs data has changed.
        LUNS_CHANGED = 0x3f0e,
        /// Internal target failure.
        INTERNAL_FAILURE = 0x4400,
        /// Invalid message error.
        INVALID_MESSAGE = 0x4900,
        /// Insufficient resources.
        INSUFFICIENT_RESOURCES = 0x5503,
        /// Insufficient registration resources.
        INSUFFICIENT_REGISTRATIONS = 0x5504,
    }
}

/// What the sense-key specific field points at (SPC-4 §4.5.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pointer {
    /// ILLEGAL REQUEST: the byte of the CDB at fault, and its most significant wrong bit.
    Cdb(u16, Option<u8>),
    /// ILLEGAL REQUEST: the byte of the parameter list at fault, and its most significant wrong bit.
    Parameters(u16, Option<u8>),
}

/// Why a command ends with CHECK CONDITION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// The sense key.
    pub key: SenseKey,
    /// The additional sense code.
    pub code: Asc,
    /// INFORMATION: an LBA, or the offset of the first different byte for MISCOMPARE.
    pub information: Option<u64>,
    /// The segment at which a copy ended, in COMMAND-SPECIFIC INFORMATION.
    pub segment: Option<u16>,
    /// The sense-key specific field.
    pub pointer: Option<Pointer>,
}

/// Most bytes of sense data that [`Sense::encode`] writes.
pub const SENSE_MAX: usize = 40;

/// Bytes of sense data in fixed format (SPC-4 §4.5.3): 8 and the ADDITIONAL SENSE LENGTH of 10.
const FIXED_LEN: usize = 18;

impl Sense {
    /// A key and a code without details.
    pub const fn new(key: SenseKey, code: Asc) -> Self {
        Self { key, code, information: None, segment: None, pointer: None }
    }

    /// Nothing to report.
    pub const NONE: Self = Self::new(SenseKey::NO_SENSE, Asc::NONE);

    /// ILLEGAL REQUEST without details.
    pub const fn illegal(code: Asc) -> Self {
        Self::new(SenseKey::ILLEGAL_REQUEST, code)
    }

    /// INVALID COMMAND OPERATION CODE.
    pub const fn opcode() -> Self {
        Self { pointer: Some(Pointer::Cdb(0, None)), ..Self::illegal(Asc::INVALID_OPCODE) }
    }

    /// INVALID FIELD IN CDB, at `byte`.
    pub const fn field(byte: u16) -> Self {
        Self { pointer: Some(Pointer::Cdb(byte, None)), ..Self::illegal(Asc::INVALID_FIELD_IN_CDB) }
    }

    /// INVALID FIELD IN CDB, at bit `bit` of `byte`.
    pub const fn bit(byte: u16, bit: u8) -> Self {
        Self { pointer: Some(Pointer::Cdb(byte, Some(bit))), ..Self::illegal(Asc::INVALID_FIELD_IN_CDB) }
    }

    /// INVALID FIELD IN PARAMETER LIST, at `byte`.
    pub const fn parameter(byte: usize) -> Self {
        Self::illegal(Asc::INVALID_FIELD_IN_PARAMETERS).at(byte)
    }

    /// PARAMETER LIST LENGTH ERROR.
    pub const fn list_length() -> Self {
        Self::illegal(Asc::PARAMETER_LIST_LENGTH)
    }

    /// LOGICAL BLOCK ADDRESS OUT OF RANGE, with the address.
    pub const fn out_of_range(lba: u64) -> Self {
        Self { information: Some(lba), ..Self::illegal(Asc::LBA_OUT_OF_RANGE) }
    }

    /// MISCOMPARE DURING VERIFY OPERATION; `offset` is that of the first different byte in the Data-Out buffer (SBC-3 §5.2).
    pub const fn miscompare(offset: u64) -> Self {
        Self { information: Some(offset), ..Self::new(SenseKey::MISCOMPARE, Asc::MISCOMPARE) }
    }

    /// COPY ABORTED at segment `segment` of an EXTENDED COPY (SPC-4 §5.17.7.4). If some of the segment was written, `information` tells how
    /// many blocks of the destination were not.
    pub const fn copy_aborted(code: Asc, segment: u16) -> Self {
        Self { segment: Some(segment), ..Self::new(SenseKey::COPY_ABORTED, code) }
    }

    /// The same, at `byte` of the parameter list.
    pub const fn at(self, byte: usize) -> Self {
        let byte = if byte > u16::MAX as usize { u16::MAX } else { byte as u16 };
        Self { pointer: Some(Pointer::Parameters(byte, None)), ..self }
    }

    /// Writes current sense data, in descriptor format when `descriptor` (D_SENSE), and says how many bytes they have. What of the
    /// details a format cannot hold is left out: in fixed format a number above 32 bits.
    pub fn encode(&self, descriptor: bool, out: &mut [u8; SENSE_MAX]) -> usize {
        out.fill(0);
        if descriptor { self.encode_descriptor(out) } else { self.encode_fixed(out) }
    }

    fn encode_fixed(&self, out: &mut [u8; SENSE_MAX]) -> usize {
        out[0] = 0x70;
        out[2] = self.key.0;
        if let Some(Ok(information)) = self.information.map(u32::try_from) {
            out[0] |= 0x80;
            out[3..7].copy_from_slice(&information.to_be_bytes());
        }
        out[7] = (FIXED_LEN - 8) as u8;
        if let Some(segment) = self.segment {
            out[10..12].copy_from_slice(&segment.to_be_bytes());
        }
        out[12..14].copy_from_slice(&self.code.0.to_be_bytes());
        if let Some(pointer) = self.pointer {
            out[15..18].copy_from_slice(&key_specific(pointer));
        }
        FIXED_LEN
    }

    fn encode_descriptor(&self, out: &mut [u8; SENSE_MAX]) -> usize {
        out[0] = 0x72;
        out[1] = self.key.0;
        out[2..4].copy_from_slice(&self.code.0.to_be_bytes());
        let mut len = 8;
        if let Some(information) = self.information {
            out[len..len + 4].copy_from_slice(&[0x00, 0x0a, 0x80, 0]);
            out[len + 4..len + 12].copy_from_slice(&information.to_be_bytes());
            len += 12;
        }
        if let Some(segment) = self.segment {
            out[len..len + 4].copy_from_slice(&[0x01, 0x0a, 0, 0]);
            // The third and fourth bytes, as in the shorter field of the fixed format (SPC-4 §5.17.7.4).
            out[len + 6..len + 8].copy_from_slice(&segment.to_be_bytes());
            len += 12;
        }
        if let Some(pointer) = self.pointer {
            out[len..len + 4].copy_from_slice(&[0x02, 0x06, 0, 0]);
            out[len + 4..len + 7].copy_from_slice(&key_specific(pointer));
            len += 8;
        }
        out[7] = (len - 8) as u8;
        len
    }
}

const _: () = assert!(8 + 12 + 12 + 8 <= SENSE_MAX && FIXED_LEN <= SENSE_MAX);

/// The three bytes of the sense-key specific field, SKSV set.
fn key_specific(pointer: Pointer) -> [u8; 3] {
    let with_bit = |bit: Option<u8>| bit.map_or(0, |bit| 0x08 | bit & 7);
    let (first, byte) = match pointer {
        Pointer::Cdb(byte, bit) => (0xc0 | with_bit(bit), byte),
        Pointer::Parameters(byte, bit) => (0x80 | with_bit(bit), byte),
    };
    let [high, low] = byte.to_be_bytes();
    [first, high, low]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(sense: Sense, descriptor: bool) -> Vec<u8> {
        let mut out = [0xff; SENSE_MAX];
        let len = sense.encode(descriptor, &mut out);
        out[..len].to_vec()
    }

    #[test]
    fn golden_bytes_in_fixed_format() {
        assert_eq!(encoded(Sense::bit(1, 7), false), [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xcf, 0, 1]);
        assert_eq!(
            encoded(Sense::out_of_range(0x1_0002), false),
            [0xf0, 0, 5, 0, 1, 0, 2, 10, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0]
        );
        // An LBA that 32 bits cannot hold: VALID stays zero.
        assert_eq!(encoded(Sense::out_of_range(1 << 32), false)[..8], [0x70, 0, 5, 0, 0, 0, 0, 10]);
        assert_eq!(
            encoded(Sense::copy_aborted(Asc::UNREACHABLE_COPY_TARGET, 3), false),
            [0x70, 0, 0xa, 0, 0, 0, 0, 10, 0, 0, 0, 3, 0x08, 4, 0, 0, 0, 0]
        );
    }

    #[test]
    fn golden_bytes_in_descriptor_format() {
        assert_eq!(encoded(Sense::NONE, true), [0x72, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(encoded(Sense::parameter(0x102), true), [0x72, 5, 0x26, 0, 0, 0, 0, 8, 2, 6, 0, 0, 0x80, 1, 2, 0]);
        assert_eq!(
            encoded(Sense::miscompare(0x0102_0304_0506), true),
            [0x72, 0xe, 0x1d, 0, 0, 0, 0, 12, 0, 10, 0x80, 0, 0, 0, 1, 2, 3, 4, 5, 6]
        );
        let all = Sense { information: Some(1), ..Sense::copy_aborted(Asc::NONE, 0x102).at(9) };
        let bytes = encoded(all, true);
        assert_eq!(bytes.len(), SENSE_MAX);
        assert_eq!(&bytes[20..], &[1, 10, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 6, 0, 0, 0x80, 0, 9, 0]);
    }

    #[test]
    fn pointers_beyond_the_field_saturate() {
        assert_eq!(Sense::parameter(1 << 20).pointer, Some(Pointer::Parameters(0xffff, None)));
    }
}
