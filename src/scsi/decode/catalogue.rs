//! The commands that exist. Decoding and REPORT SUPPORTED OPERATION CODES both read this table, so that what is reported is what is decoded.

use super::media::*;
use super::unit::*;
use crate::scsi::command::Request;
use crate::scsi::reservation::Access;
use crate::scsi::spec::*;
use crate::scsi::unit::Unit;

/// A command, or one service action of it.
pub(in crate::scsi) struct Entry {
    /// Operation code.
    pub opcode: Opcode,
    /// Service action, for an operation code that has them.
    pub action: Option<u8>,
    /// The CDB usage data (SPC-4 §6.35.3): as long as the CDB; a one for each bit that is evaluated.
    pub usage: &'static [u8],
    /// What reservations must allow.
    access: Access,
    /// It fails with NOT READY while the unit is stopped.
    pub needs_start: bool,
    /// It changes the medium.
    pub writes: bool,
    /// Seconds that it may take before an initiator should ask.
    pub timeout_s: u32,
    /// Whether a unit has it.
    exists: fn(&Unit) -> bool,
    /// Checks the fields.
    pub decode: fn(&Cdb, &Unit) -> Result<Request, Sense>,
}

impl Entry {
    /// What reservations must allow `cdb`, of this command.
    #[inline]
    pub fn access(&self, cdb: &Cdb) -> Access {
        // A start with POWER CONDITION 0h disturbs nobody (SBC-3, reservations).
        if self.opcode == Opcode::START_STOP_UNIT && cdb.u8::<4>() & 0xf1 == 1 {
            return Access::Always;
        }
        self.access
    }

    /// Whether a unit attention condition stays pending while the command runs (SAM-5 §5.14; SPC-4 §6.6.1, §6.33, §6.39).
    #[inline]
    pub fn ignores_attention(&self) -> bool {
        matches!(self.opcode, Opcode::INQUIRY | Opcode::REPORT_LUNS | Opcode::REQUEST_SENSE)
    }

    /// Whether `unit` has the command.
    pub fn exists(&self, unit: &Unit) -> bool {
        (self.exists)(unit)
    }

    const fn new(
        opcode: Opcode,
        usage: &'static [u8],
        access: Access,
        decode: fn(&Cdb, &Unit) -> Result<Request, Sense>,
    ) -> Self {
        assert!(usage[0] == opcode.0 && usage.len() <= CDB_LEN);
        Self {
            opcode,
            action: None,
            usage,
            access,
            needs_start: false,
            writes: false,
            timeout_s: SHORT_S,
            exists: |_| true,
            decode,
        }
    }

    /// A service action.
    const fn action(mut self, action: u8) -> Self {
        self.action = Some(action);
        self
    }

    /// It reads the medium.
    const fn medium(mut self) -> Self {
        self.needs_start = true;
        self
    }

    /// It changes the medium.
    const fn writes(mut self) -> Self {
        self.needs_start = true;
        self.writes = true;
        self
    }

    /// It may take long.
    const fn slow(mut self) -> Self {
        self.timeout_s = LONG_S;
        self
    }

    /// Not every unit has it.
    const fn only_if(mut self, exists: fn(&Unit) -> bool) -> Self {
        self.exists = exists;
        self
    }
}

/// What commands may take, in seconds.
const SHORT_S: u32 = 30;
const LONG_S: u32 = 600;

/// The last byte of every CDB: NACA is evaluated.
const C: u8 = 0x04;

use Access::{Always, Legacy, Persistent, Read, Status, Write};

/// Every command, by operation code and service action.
pub(in crate::scsi) static CATALOGUE: &[Entry] = ENTRIES;

/// What [`CATALOGUE`] holds: constants cannot read statics. IMMED is evaluated nowhere: an answer comes after the work, with its failures.
const ENTRIES: &[Entry] = &[
    Entry::new(Opcode::TEST_UNIT_READY, &[0x00, 0, 0, 0, 0, C], Status, good).medium(),
    Entry::new(Opcode::REQUEST_SENSE, &[0x03, 0x01, 0, 0, 0xff, C], Always, request_sense),
    Entry::new(Opcode::FORMAT_UNIT, &[0x04, 0xff, 0, 0, 0, C], Write, format_unit).writes().slow(),
    Entry::new(Opcode::READ_6, &[0x08, 0x1f, 0xff, 0xff, 0xff, C], Read, read_6).medium(),
    Entry::new(Opcode::WRITE_6, &[0x0a, 0x1f, 0xff, 0xff, 0xff, C], Write, write_6).writes(),
    Entry::new(Opcode::INQUIRY, &[0x12, 0x03, 0xff, 0xff, 0xff, C], Always, inquiry),
    Entry::new(Opcode::MODE_SELECT_6, &[0x15, 0x11, 0, 0, 0xff, C], Write, mode_select_6),
    Entry::new(Opcode::RESERVE_6, &[0x16, 0x1f, 0, 0, 0, C], Legacy, reserve),
    Entry::new(Opcode::RELEASE_6, &[0x17, 0x1f, 0, 0, 0, C], Legacy, release),
    Entry::new(Opcode::MODE_SENSE_6, &[0x1a, 0x08, 0xff, 0xff, 0xff, C], Read, mode_sense_6),
    Entry::new(Opcode::START_STOP_UNIT, &[0x1b, 0, 0, 0, 0xf7, C], Write, start_stop),
    Entry::new(Opcode::SEND_DIAGNOSTIC, &[0x1d, 0xe4, 0, 0xff, 0xff, C], Write, send_diagnostic).slow(),
    Entry::new(Opcode::READ_CAPACITY_10, &[0x25, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0x01, C], Always, read_capacity_10),
    Entry::new(Opcode::READ_10, &[0x28, 0xf8, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, C], Read, read_10).medium(),
    Entry::new(Opcode::WRITE_10, &[0x2a, 0xf8, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, C], Write, write_10).writes(),
    Entry::new(
        Opcode::WRITE_AND_VERIFY_10,
        &[0x2e, 0xf6, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, C],
        Write,
        write_and_verify_10,
    )
    .writes(),
    Entry::new(Opcode::VERIFY_10, &[0x2f, 0xf6, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, C], Read, verify_10).medium(),
    Entry::new(Opcode::PRE_FETCH_10, &[0x34, 0, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, C], Read, pre_fetch_10).medium(),
    Entry::new(
        Opcode::SYNCHRONIZE_CACHE_10,
        &[0x35, 0, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, C],
        Write,
        synchronize_cache_10,
    ),
    Entry::new(Opcode::READ_DEFECT_DATA_10, &[0x37, 0, 0x1f, 0, 0, 0, 0, 0xff, 0xff, C], Read, defect_data_10).medium(),
    Entry::new(Opcode::WRITE_SAME_10, &[0x41, 0xfe, 0xff, 0xff, 0xff, 0xff, 0, 0xff, 0xff, C], Write, write_same_10)
        .writes()
        .slow(),
    Entry::new(Opcode::UNMAP, &[0x42, 0x01, 0, 0, 0, 0, 0, 0xff, 0xff, C], Write, unmap)
        .writes()
        .slow()
        .only_if(|unit| unit.can_unmap),
    Entry::new(Opcode::LOG_SENSE, &[0x4d, 0x01, 0xff, 0xff, 0, 0xff, 0xff, 0xff, 0xff, C], Always, log_sense),
    Entry::new(Opcode::MODE_SELECT_10, &[0x55, 0x11, 0, 0, 0, 0, 0, 0xff, 0xff, C], Write, mode_select_10),
    Entry::new(Opcode::MODE_SENSE_10, &[0x5a, 0x18, 0xff, 0xff, 0, 0, 0, 0xff, 0xff, C], Read, mode_sense_10),
    persist_in(&[0x5e, 0x00, 0, 0, 0, 0, 0, 0xff, 0xff, C], PersistIn::READ_KEYS),
    persist_in(&[0x5e, 0x01, 0, 0, 0, 0, 0, 0xff, 0xff, C], PersistIn::READ_RESERVATION),
    persist_in(&[0x5e, 0x02, 0, 0, 0, 0, 0, 0xff, 0xff, C], PersistIn::REPORT_CAPABILITIES),
    persist_in(&[0x5e, 0x03, 0, 0, 0, 0, 0, 0xff, 0xff, C], PersistIn::READ_FULL_STATUS),
    persist_out(&[0x5f, 0x00, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, C], PersistOut::REGISTER),
    persist_out(&[0x5f, 0x01, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, C], PersistOut::RESERVE),
    persist_out(&[0x5f, 0x02, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, C], PersistOut::RELEASE),
    persist_out(&[0x5f, 0x03, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, C], PersistOut::CLEAR),
    persist_out(&[0x5f, 0x04, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, C], PersistOut::PREEMPT),
    persist_out(&[0x5f, 0x05, 0xff, 0, 0, 0xff, 0xff, 0xff, 0xff, C], PersistOut::PREEMPT_AND_ABORT),
    persist_out(&[0x5f, 0x06, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, C], PersistOut::REGISTER_AND_IGNORE),
    persist_out(&[0x5f, 0x07, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, C], PersistOut::REGISTER_AND_MOVE),
    Entry::new(
        Opcode::EXTENDED_COPY,
        &[0x83, 0x00, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, C],
        Write,
        extended_copy,
    )
    .action(SA_EXTENDED_COPY_LID1)
    .medium()
    .slow()
    .only_if(|unit| unit.copies),
    Entry::new(
        Opcode::RECEIVE_COPY,
        &[0x84, 0x00, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, C],
        Status,
        copy_status,
    )
    .action(SA_COPY_STATUS_LID1)
    .only_if(|unit| unit.copies),
    Entry::new(
        Opcode::RECEIVE_COPY,
        &[0x84, 0x03, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, C],
        Status,
        copy_parameters,
    )
    .action(SA_COPY_PARAMETERS)
    .only_if(|unit| unit.copies),
    Entry::new(Opcode::READ_16, &usage_16(0x88, 0xf8), Read, read_16).medium(),
    Entry::new(
        Opcode::COMPARE_AND_WRITE,
        &[0x89, 0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0xff, 0, C],
        Write,
        compare_and_write,
    )
    .writes()
    .only_if(|unit| unit.compare_and_write_max != 0),
    Entry::new(Opcode::WRITE_16, &usage_16(0x8a, 0xf8), Write, write_16).writes(),
    Entry::new(Opcode::ORWRITE_16, &usage_16(0x8b, 0xf8), Write, orwrite).writes(),
    Entry::new(Opcode::WRITE_AND_VERIFY_16, &usage_16(0x8e, 0xf6), Write, write_and_verify_16).writes(),
    Entry::new(Opcode::VERIFY_16, &usage_16(0x8f, 0xf6), Read, verify_16).medium(),
    Entry::new(Opcode::PRE_FETCH_16, &usage_16(0x90, 0), Read, pre_fetch_16).medium(),
    Entry::new(Opcode::SYNCHRONIZE_CACHE_16, &usage_16(0x91, 0), Write, synchronize_cache_16),
    Entry::new(Opcode::WRITE_SAME_16, &usage_16(0x93, 0xff), Write, write_same_16).writes().slow(),
    Entry::new(Opcode::WRITE_ATOMIC_16, &usage_16(0x9c, 0xf8), Write, write_atomic)
        .writes()
        .only_if(|unit| unit.atomic.is_some()),
    Entry::new(
        Opcode::SERVICE_ACTION_IN_16,
        &[0x9e, 0x10, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, C],
        Always,
        read_capacity_16,
    )
    .action(SA_READ_CAPACITY_16),
    Entry::new(
        Opcode::SERVICE_ACTION_IN_16,
        &[0x9e, 0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, C],
        Read,
        get_lba_status,
    )
    .action(SA_GET_LBA_STATUS)
    .medium(),
    Entry::new(Opcode::REPORT_LUNS, &[0xa0, 0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, C], Always, report_luns),
    Entry::new(
        Opcode::MAINTENANCE_IN,
        &[0xa3, 0xea, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, C],
        Always,
        target_port_groups,
    )
    .action(SA_REPORT_TARGET_PORT_GROUPS),
    Entry::new(
        Opcode::MAINTENANCE_IN,
        &[0xa3, 0x0c, 0x87, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0, C],
        Read,
        supported_opcodes,
    )
    .action(SA_REPORT_SUPPORTED_OPCODES),
    Entry::new(
        Opcode::MAINTENANCE_IN,
        &[0xa3, 0x0d, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, C],
        Read,
        supported_task_functions,
    )
    .action(SA_REPORT_SUPPORTED_TMF),
    Entry::new(Opcode::READ_12, &usage_12(0xa8, 0xf8), Read, read_12).medium(),
    Entry::new(Opcode::WRITE_12, &usage_12(0xaa, 0xf8), Write, write_12).writes(),
    Entry::new(Opcode::WRITE_AND_VERIFY_12, &usage_12(0xae, 0xf6), Write, write_and_verify_12).writes(),
    Entry::new(Opcode::VERIFY_12, &usage_12(0xaf, 0xf6), Read, verify_12).medium(),
    Entry::new(
        Opcode::READ_DEFECT_DATA_12,
        &[0xb7, 0x1f, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, C],
        Read,
        defect_data_12,
    )
    .medium(),
];

const fn usage_16(opcode: u8, flags: u8) -> [u8; 16] {
    [opcode, flags, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0, C]
}

const fn usage_12(opcode: u8, flags: u8) -> [u8; 12] {
    [opcode, flags, 255, 255, 255, 255, 255, 255, 255, 255, 0, C]
}

const fn persist_in(usage: &'static [u8], action: PersistIn) -> Entry {
    Entry::new(Opcode::PERSISTENT_RESERVE_IN, usage, Persistent, persist_in_fields).action(action.0)
}

const fn persist_out(usage: &'static [u8], action: PersistOut) -> Entry {
    Entry::new(Opcode::PERSISTENT_RESERVE_OUT, usage, Persistent, persist_out_fields).action(action.0)
}

/// Marks an operation code without an entry in [`FIRST`].
const NOTHING: u8 = 0xff;

/// Where the entries of each operation code begin.
static FIRST: [u8; 256] = {
    let mut first = [NOTHING; 256];
    let mut at = ENTRIES.len();
    while at > 0 {
        at -= 1;
        first[ENTRIES[at].opcode.0 as usize] = at as u8;
    }
    first
};

/// The entry of the command in `cdb` that `unit` has.
///
/// # Errors
/// INVALID COMMAND OPERATION CODE; INVALID FIELD IN CDB for a service action that the operation code does not have.
#[inline]
pub(in crate::scsi) fn find(cdb: &Cdb, unit: &Unit) -> Result<&'static Entry, Sense> {
    let opcode = cdb.opcode();
    let from = CATALOGUE.get(usize::from(FIRST[usize::from(opcode)])..).unwrap_or_default();
    let mut known = false;
    for entry in from.iter().take_while(|entry| entry.opcode.0 == opcode).filter(|entry| entry.exists(unit)) {
        if entry.action.is_none_or(|action| action == cdb.service_action()) {
            return Ok(entry);
        }
        known = true;
    }
    Err(if known { Sense::bit(1, 4) } else { Sense::opcode() })
}
