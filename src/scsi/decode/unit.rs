//! Commands that the logical unit's engine answers (SPC-4 §6, SBC-3 §5).

use crate::scsi::command::*;
use crate::scsi::persist::kind_of;
use crate::scsi::reservation::Access;
use crate::scsi::spec::*;
use crate::scsi::unit::Unit;

const fn unit(command: UnitCommand, data_out: DataOut, data_in: u32) -> Request {
    Request { command: Command::Unit(command), data_out, data_in: data_in as u64, access: Access::Write }
}

const fn answer(command: UnitCommand, allocation: u32) -> Request {
    unit(command, DataOut::None, allocation)
}

pub(super) fn good(_: &Cdb, _: &Unit) -> Result<Request, Sense> {
    Ok(answer(UnitCommand::Good, 0))
}

pub(super) fn request_sense_fields(cdb: &Cdb) -> UnitCommand {
    UnitCommand::RequestSense { descriptor: cdb.bit::<1, 0>(), allocation: u32::from(cdb.u8::<4>()) }
}

pub(super) fn request_sense(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    Ok(answer(request_sense_fields(cdb), u32::from(cdb.u8::<4>())))
}

pub(super) fn inquiry_fields(cdb: &Cdb) -> Result<UnitCommand, Sense> {
    let (page, allocation) = (cdb.u8::<2>(), u32::from(cdb.u16::<3>()));
    // CMDDT is obsolete.
    if cdb.bit::<1, 1>() {
        return Err(Sense::bit(1, 1));
    }
    let page = match (cdb.bit::<1, 0>(), page) {
        (true, page) => Some(page),
        (false, 0) => None,
        (false, _) => return Err(Sense::field(2)),
    };
    Ok(UnitCommand::Inquiry { page, allocation })
}

pub(super) fn inquiry(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    Ok(answer(inquiry_fields(cdb)?, u32::from(cdb.u16::<3>())))
}

fn mode_select(cdb: &Cdb, ten: bool, len: u32) -> Result<Request, Sense> {
    // PF zero is vendor specific, SP would save (SPC-4 §6.11).
    if !cdb.bit::<1, 4>() {
        return Err(Sense::bit(1, 4));
    }
    if cdb.bit::<1, 0>() {
        return Err(Sense::bit(1, 0));
    }
    match len {
        0 => Ok(answer(UnitCommand::Good, 0)),
        len => Ok(unit(UnitCommand::ModeSelect { ten }, DataOut::Parameters(len), 0)),
    }
}

pub(super) fn mode_select_6(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    mode_select(cdb, false, u32::from(cdb.u8::<4>()))
}

pub(super) fn mode_select_10(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    mode_select(cdb, true, u32::from(cdb.u16::<7>()))
}

fn mode_sense(cdb: &Cdb, ten: bool, allocation: u32) -> Result<Request, Sense> {
    let control = match cdb.u8::<2>() >> 6 {
        0 => PageControl::Current,
        1 => PageControl::Changeable,
        2 => PageControl::Default,
        _ => return Err(Sense { pointer: Sense::bit(2, 7).pointer, ..Sense::illegal(Asc::SAVING_NOT_SUPPORTED) }),
    };
    let command = UnitCommand::ModeSense {
        ten,
        block_descriptor: !cdb.bit::<1, 3>(),
        long_descriptor: ten && cdb.bit::<1, 4>(),
        control,
        page: cdb.u8::<2>() & 0x3f,
        subpage: cdb.u8::<3>(),
        allocation,
    };
    Ok(answer(command, allocation))
}

pub(super) fn mode_sense_6(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    mode_sense(cdb, false, u32::from(cdb.u8::<4>()))
}

pub(super) fn mode_sense_10(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    mode_sense(cdb, true, u32::from(cdb.u16::<7>()))
}

pub(super) fn reserve(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    // Third-party and extent reservations are obsolete (SPC-2, RESERVE(6)).
    if cdb.u8::<1>() & 0x1f != 0 { Err(Sense::bit(1, 4)) } else { Ok(answer(UnitCommand::Reserve, 0)) }
}

pub(super) fn release(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    if cdb.u8::<1>() & 0x1f != 0 { Err(Sense::bit(1, 4)) } else { Ok(answer(UnitCommand::Release, 0)) }
}

pub(super) fn read_capacity_10(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    // PMI is obsolete; an LBA without it never had a meaning.
    if cdb.bit::<8, 0>() {
        return Err(Sense::bit(8, 0));
    }
    if cdb.u32::<2>() != 0 {
        return Err(Sense::field(2));
    }
    Ok(answer(UnitCommand::ReadCapacity10, 8))
}

pub(super) fn read_capacity_16(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    if cdb.bit::<14, 0>() {
        return Err(Sense::bit(14, 0));
    }
    if cdb.u64::<2>() != 0 {
        return Err(Sense::field(2));
    }
    let allocation = cdb.u32::<10>();
    Ok(answer(UnitCommand::ReadCapacity16 { allocation }, allocation))
}

pub(super) fn log_sense(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    // SP would save; PPC is obsolete; only cumulative values are kept (PC 01b), and PC 00b asks for thresholds of none.
    if cdb.bit::<1, 0>() {
        return Err(Sense::bit(1, 0));
    }
    if cdb.u8::<2>() >> 6 != 1 {
        return Err(Sense::bit(2, 7));
    }
    let allocation = u32::from(cdb.u16::<7>());
    let command =
        UnitCommand::LogSense { page: cdb.u8::<2>() & 0x3f, subpage: cdb.u8::<3>(), from: cdb.u16::<5>(), allocation };
    Ok(answer(command, allocation))
}

pub(super) fn defect_data_10(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    let allocation = u32::from(cdb.u16::<7>());
    let lists = cdb.u8::<2>() & 0x1f;
    Ok(answer(UnitCommand::DefectData { twelve: false, lists, allocation }, allocation))
}

pub(super) fn defect_data_12(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    let allocation = cdb.u32::<6>();
    let lists = cdb.u8::<1>() & 0x1f;
    Ok(answer(UnitCommand::DefectData { twelve: true, lists, allocation }, allocation))
}

pub(super) fn report_luns_fields(cdb: &Cdb) -> Result<UnitCommand, Sense> {
    let allocation = cdb.u32::<6>();
    let select = match cdb.u8::<2>() {
        0 => LunSelect::Units,
        1 => LunSelect::WellKnown,
        2 => LunSelect::All,
        _ => return Err(Sense::field(2)),
    };
    Ok(UnitCommand::ReportLuns { select, allocation })
}

pub(super) fn report_luns(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    Ok(answer(report_luns_fields(cdb)?, cdb.u32::<6>()))
}

pub(super) fn target_port_groups(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    let allocation = cdb.u32::<6>();
    let extended = match cdb.u8::<1>() >> 5 {
        0 => false,
        1 => true,
        _ => return Err(Sense::bit(1, 7)),
    };
    Ok(answer(UnitCommand::TargetPortGroups { extended, allocation }, allocation))
}

pub(super) fn supported_opcodes(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    let (opcode, action, allocation) = (cdb.u8::<3>(), cdb.u16::<4>(), cdb.u32::<6>());
    let query = match cdb.u8::<2>() & 7 {
        0 => OpcodeQuery::All,
        1 => OpcodeQuery::Opcode(opcode),
        2 => OpcodeQuery::Action(opcode, action),
        3 => OpcodeQuery::Either(opcode, action),
        _ => return Err(Sense::bit(2, 2)),
    };
    Ok(answer(UnitCommand::SupportedOpcodes { query, timeouts: cdb.bit::<2, 7>(), allocation }, allocation))
}

pub(super) fn supported_task_functions(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    let allocation = cdb.u32::<6>();
    // Less than the header is an error here, unlike elsewhere (SPC-4 §6.36).
    if allocation < 4 {
        return Err(Sense::field(6));
    }
    Ok(answer(UnitCommand::SupportedTaskFunctions { extended: cdb.bit::<2, 7>(), allocation }, allocation))
}

pub(super) fn persist_in_fields(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    let allocation = u32::from(cdb.u16::<7>());
    Ok(answer(UnitCommand::PersistIn { action: PersistIn(cdb.service_action()), allocation }, allocation))
}

/// Bytes of the parameter list of all actions but those with TransportIDs (SPC-4 §6.16.3).
const PERSIST_LIST_LEN: u32 = 24;

/// Bytes of the longest parameter list taken: some TransportIDs.
const PERSIST_LIST_MAX: u32 = 8192;

pub(super) fn persist_out_fields(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    let action = PersistOut(cdb.service_action());
    let kind = match action {
        // SCOPE and TYPE are ignored where nothing is reserved (SPC-4 §6.16.2).
        PersistOut::REGISTER | PersistOut::REGISTER_AND_IGNORE | PersistOut::REGISTER_AND_MOVE | PersistOut::CLEAR => {
            None
        }
        // PREEMPT ignores them too, if it finds no reservation to take over (SPC-4 §5.13.11.2.5).
        _ => {
            let is_unit = cdb.u8::<2>() >> 4 == PERSIST_SCOPE_LU;
            let is_needed = matches!(action, PersistOut::RESERVE | PersistOut::RELEASE);
            if is_needed && !is_unit {
                return Err(Sense::bit(2, 7));
            }
            let kind = kind_of(PersistType(cdb.u8::<2>() & 0xf)).filter(|_| is_unit);
            if is_needed && kind.is_none() {
                return Err(Sense::bit(2, 3));
            }
            kind
        }
    };
    let len = cdb.u32::<5>();
    let may_be_long = matches!(action, PersistOut::REGISTER | PersistOut::REGISTER_AND_MOVE);
    let most = if may_be_long { PERSIST_LIST_MAX } else { PERSIST_LIST_LEN };
    if len < PERSIST_LIST_LEN || len > most {
        return Err(Sense { pointer: Sense::field(5).pointer, ..Sense::list_length() });
    }
    Ok(unit(UnitCommand::PersistOut { action, kind }, DataOut::Parameters(len), 0))
}

pub(super) fn copy_status(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    let allocation = cdb.u32::<10>();
    Ok(answer(UnitCommand::CopyStatus { list_id: cdb.u8::<2>(), allocation }, allocation))
}

pub(super) fn copy_parameters(cdb: &Cdb, _: &Unit) -> Result<Request, Sense> {
    let allocation = cdb.u32::<10>();
    Ok(answer(UnitCommand::CopyParameters { allocation }, allocation))
}
