//! Operation codes and service actions.

use crate::util::open_enum;

open_enum! {
    /// Operation codes (SPC-4, annex Numeric order codes; SBC-3 §5).
    pub enum Opcode: u8 {
        /// TEST UNIT READY.
        TEST_UNIT_READY = 0x00,
        /// REQUEST SENSE.
        REQUEST_SENSE = 0x03,
        /// FORMAT UNIT.
        FORMAT_UNIT = 0x04,
        /// READ(6).
        READ_6 = 0x08,
        /// WRITE(6).
        WRITE_6 = 0x0a,
        /// INQUIRY.
        INQUIRY = 0x12,
        /// MODE SELECT(6).
        MODE_SELECT_6 = 0x15,
        /// RESERVE(6).
        RESERVE_6 = 0x16,
        /// RELEASE(6).
        RELEASE_6 = 0x17,
        /// MODE SENSE(6).
        MODE_SENSE_6 = 0x1a,
        /// START STOP UNIT.
        START_STOP_UNIT = 0x1b,
        /// SEND DIAGNOSTIC.
        SEND_DIAGNOSTIC = 0x1d,
        /// READ CAPACITY(10).
        READ_CAPACITY_10 = 0x25,
        /// READ(10).
        READ_10 = 0x28,
        /// WRITE(10).
        WRITE_10 = 0x2a,
        /// WRITE AND VERIFY(10).
        WRITE_AND_VERIFY_10 = 0x2e,
        /// VERIFY(10).
        VERIFY_10 = 0x2f,
        /// PRE-FETCH(10).
        PRE_FETCH_10 = 0x34,
        /// SYNCHRONIZE CACHE(10).
        SYNCHRONIZE_CACHE_10 = 0x35,
        /// READ DEFECT DATA(10).
        READ_DEFECT_DATA_10 = 0x37,
        /// WRITE SAME(10).
        WRITE_SAME_10 = 0x41,
        /// UNMAP.
        UNMAP = 0x42,
        /// SANITIZE.
        SANITIZE = 0x48,
        /// LOG SENSE.
        LOG_SENSE = 0x4d,
        /// MODE SELECT(10).
        MODE_SELECT_10 = 0x55,
        /// MODE SENSE(10).
        MODE_SENSE_10 = 0x5a,
        /// PERSISTENT RESERVE IN.
        PERSISTENT_RESERVE_IN = 0x5e,
        /// PERSISTENT RESERVE OUT.
        PERSISTENT_RESERVE_OUT = 0x5f,
        /// EXTENDED COPY and its family.
        EXTENDED_COPY = 0x83,
        /// RECEIVE COPY RESULTS and its family.
        RECEIVE_COPY = 0x84,
        /// READ(16).
        READ_16 = 0x88,
        /// COMPARE AND WRITE.
        COMPARE_AND_WRITE = 0x89,
        /// WRITE(16).
        WRITE_16 = 0x8a,
        /// ORWRITE(16).
        ORWRITE_16 = 0x8b,
        /// WRITE AND VERIFY(16).
        WRITE_AND_VERIFY_16 = 0x8e,
        /// VERIFY(16).
        VERIFY_16 = 0x8f,
        /// PRE-FETCH(16).
        PRE_FETCH_16 = 0x90,
        /// SYNCHRONIZE CACHE(16).
        SYNCHRONIZE_CACHE_16 = 0x91,
        /// WRITE SAME(16).
        WRITE_SAME_16 = 0x93,
        /// WRITE ATOMIC(16) (SBC-4 §5.48).
        WRITE_ATOMIC_16 = 0x9c,
        /// SERVICE ACTION IN(16).
        SERVICE_ACTION_IN_16 = 0x9e,
        /// REPORT LUNS.
        REPORT_LUNS = 0xa0,
        /// MAINTENANCE IN.
        MAINTENANCE_IN = 0xa3,
        /// READ(12).
        READ_12 = 0xa8,
        /// WRITE(12).
        WRITE_12 = 0xaa,
        /// WRITE AND VERIFY(12).
        WRITE_AND_VERIFY_12 = 0xae,
        /// VERIFY(12).
        VERIFY_12 = 0xaf,
        /// READ DEFECT DATA(12).
        READ_DEFECT_DATA_12 = 0xb7,
    }
}

/// READ CAPACITY(16), a service action of SERVICE ACTION IN(16).
pub const SA_READ_CAPACITY_16: u8 = 0x10;
/// GET LBA STATUS, a service action of SERVICE ACTION IN(16).
pub const SA_GET_LBA_STATUS: u8 = 0x12;
/// REPORT TARGET PORT GROUPS, a service action of MAINTENANCE IN.
pub const SA_REPORT_TARGET_PORT_GROUPS: u8 = 0x0a;
/// REPORT SUPPORTED OPERATION CODES, a service action of MAINTENANCE IN.
pub const SA_REPORT_SUPPORTED_OPCODES: u8 = 0x0c;
/// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS, a service action of MAINTENANCE IN.
pub const SA_REPORT_SUPPORTED_TMF: u8 = 0x0d;
/// EXTENDED COPY(LID1), a service action of operation code 83h.
pub const SA_EXTENDED_COPY_LID1: u8 = 0x00;
/// RECEIVE COPY STATUS(LID1), a service action of operation code 84h.
pub const SA_COPY_STATUS_LID1: u8 = 0x00;
/// RECEIVE COPY OPERATING PARAMETERS, a service action of operation code 84h.
pub const SA_COPY_PARAMETERS: u8 = 0x03;
