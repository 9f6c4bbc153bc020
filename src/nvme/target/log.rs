//! Get Log Page (Base §5.16), except the discovery log.

use zerocopy::{FromZeros, IntoBytes};

use super::controller::{Controller, ErrorReport};
use super::engine::TargetParams;
use super::fault::{Fault, at};
use super::namespace::Namespaces;
use crate::nvme::spec::{
    AdminOpcode, CHANGED_NAMESPACES_MAX, CommandEffects, CommandsEffectsLog, Csi, FeatureId, FirmwareSlotLog,
    GetLogFields, LogId, NSID_BROADCAST, NvmOpcode, SmartLog, Sqe, StatusCode, put_text,
};

/// Counters of a subsystem for the SMART / Health log page, over the life of the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SmartCounters {
    /// Bytes read by hosts.
    pub bytes_read: u128,
    /// Bytes written by hosts.
    pub bytes_written: u128,
    /// Read and Compare commands completed.
    pub read_commands: u128,
    /// Write commands completed.
    pub write_commands: u128,
    /// Time with I/O in flight, in nanoseconds.
    pub busy_ns: u128,
    /// Time since the target started, in nanoseconds.
    pub power_on_ns: u128,
    /// Starts of the target.
    pub power_cycles: u128,
    /// Starts that followed an end without a drain.
    pub unsafe_shutdowns: u128,
    /// Commands that failed with a media error.
    pub media_errors: u128,
}

/// Nanoseconds of a minute.
const MINUTE_NS: u128 = 60_000_000_000;

impl SmartCounters {
    fn log(&self, error_log_entries: u64) -> SmartLog {
        let units = |bytes: u128| bytes.div_ceil(512 * 1000);
        let mut log = SmartLog::new_zeroed();
        // There is no spare to use up and no wear; nothing is measured that could warn.
        log.available_spare = 100;
        log.data_units_read.set(units(self.bytes_read));
        log.data_units_written.set(units(self.bytes_written));
        log.host_read_commands.set(self.read_commands);
        log.host_write_commands.set(self.write_commands);
        log.controller_busy_time_min.set(self.busy_ns / MINUTE_NS);
        log.power_cycles.set(self.power_cycles);
        log.power_on_hours.set(self.power_on_ns / (60 * MINUTE_NS));
        log.unsafe_shutdowns.set(self.unsafe_shutdowns);
        log.media_errors.set(self.media_errors);
        log.error_log_entries.set(u128::from(error_log_entries));
        log
    }
}

/// Checks the fields that all log pages share. Returns them with the length in bytes.
pub(super) fn check(sqe: &Sqe) -> Result<(GetLogFields, usize), Fault> {
    let fields = GetLogFields::of(sqe);
    let len = sqe.dptr.length.get();
    if fields.len() != u64::from(len) {
        return Err(Fault::at(StatusCode::SGL_DATA_LENGTH_INVALID, at::SGL_LENGTH));
    }
    if !fields.offset.is_multiple_of(4) {
        return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW12));
    }
    if fields.offset_is_index {
        return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW14));
    }
    // No log page here is specific to a namespace.
    if !matches!(sqe.nsid.get(), 0 | NSID_BROADCAST) {
        return Err(Fault::at(StatusCode::INVALID_FIELD, at::NSID));
    }
    Ok((fields, len as usize))
}

/// Copies the part of `page` from `offset` on to `out`; what is beyond the page reads as zeros.
///
/// # Errors
/// Invalid Field when the offset is beyond the page.
fn window(page: &[u8], offset: u64, out: &mut [u8]) -> Result<(), Fault> {
    let start = usize::try_from(offset).ok().filter(|&start| start <= page.len());
    let Some(start) = start else {
        return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW12));
    };
    let len = out.len().min(page.len() - start);
    out[..len].copy_from_slice(&page[start..start + len]);
    out[len..].fill(0);
    Ok(())
}

/// Writes the log page that `fields` asks for to `out`. Reading does not change the controller; see
/// [`Controller::acknowledge`].
pub(super) fn get_log(
    controller: &Controller,
    params: &TargetParams,
    namespaces: Option<&Namespaces>,
    counters: &SmartCounters,
    fields: &GetLogFields,
    out: &mut [u8],
) -> Result<(), Fault> {
    if !supported(controller, fields.lid) {
        return Err(Fault::at(StatusCode::INVALID_LOG_PAGE, at::CDW10));
    }
    match fields.lid {
        LogId::SUPPORTED_PAGES => {
            let mut page = [0; 1024];
            for lid in 0..=u8::MAX {
                // LSUPP, bit 0.
                page[usize::from(lid) * 4] = u8::from(supported(controller, LogId(lid)));
            }
            window(&page, fields.offset, out)
        }
        LogId::ERROR => {
            let mut page = [0; super::ERROR_LOG_ENTRIES * size_of::<crate::nvme::spec::ErrorLogEntry>()];
            for (slot, entry) in page.chunks_exact_mut(64).zip(&controller.errors) {
                slot.copy_from_slice(entry.as_bytes());
            }
            window(&page, fields.offset, out)
        }
        LogId::SMART => window(counters.log(controller.error_count).as_bytes(), fields.offset, out),
        LogId::FIRMWARE_SLOT => {
            let mut log = FirmwareSlotLog::new_zeroed();
            // Slot 1 is active and stays so.
            log.afi = 1;
            put_text(&mut log.frs[0], &params.firmware, b' ');
            window(log.as_bytes(), fields.offset, out)
        }
        LogId::CHANGED_NAMESPACES => {
            let mut page = [0; CHANGED_NAMESPACES_MAX * 4];
            if controller.changed.len() > CHANGED_NAMESPACES_MAX {
                page[..4].fill(0xff);
            } else {
                for (slot, nsid) in page.chunks_exact_mut(4).zip(&controller.changed) {
                    slot.copy_from_slice(&nsid.to_le_bytes());
                }
            }
            window(&page, fields.offset, out)
        }
        LogId::COMMANDS_EFFECTS => {
            let mut log = commands_effects();
            let zoned = namespaces.filter(|all| controller.has_all_command_sets() && all.is_zoned());
            match (Csi(fields.csi), zoned) {
                (Csi::NVM, _) => {}
                (Csi::ZONED, Some(all)) => add_zone_commands(&mut log, all),
                // No command of another I/O command set is supported, which is what the log then says; nvme-cli asks for every
                // set that a controller with CAP.CSS bit 6 might have.
                _ => log.io = FromZeros::new_zeroed(),
            }
            window(log.as_bytes(), fields.offset, out)
        }
        LogId::FEATURES_EFFECTS => {
            let mut page = [0; 1024];
            for fid in 0..=u8::MAX {
                let effects = super::feature::effects(controller, FeatureId(fid));
                page[usize::from(fid) * 4..][..4].copy_from_slice(&effects.to_le_bytes());
            }
            window(&page, fields.offset, out)
        }
        // NVMe-MI commands: none is supported.
        _ => window(&[0; 4096], fields.offset, out),
    }
}

/// Whether a controller of this type has the log page.
pub(super) fn supported(controller: &Controller, lid: LogId) -> bool {
    match lid {
        LogId::SUPPORTED_PAGES | LogId::ERROR | LogId::FEATURES_EFFECTS | LogId::MI_COMMANDS_EFFECTS => true,
        LogId::DISCOVERY => controller.is_discovery(),
        LogId::SMART | LogId::FIRMWARE_SLOT | LogId::CHANGED_NAMESPACES | LogId::COMMANDS_EFFECTS => {
            !controller.is_discovery()
        }
        _ => false,
    }
}

fn commands_effects() -> CommandsEffectsLog {
    let mut log = CommandsEffectsLog::new_zeroed();
    for opcode in [
        AdminOpcode::GET_LOG_PAGE,
        AdminOpcode::IDENTIFY,
        AdminOpcode::ABORT,
        AdminOpcode::SET_FEATURES,
        AdminOpcode::GET_FEATURES,
        AdminOpcode::ASYNC_EVENT_REQUEST,
        AdminOpcode::KEEP_ALIVE,
        AdminOpcode::FABRICS,
    ] {
        log.admin[usize::from(opcode.0)].set(CommandEffects::CSUPP);
    }
    for (opcode, changes) in [
        (NvmOpcode::FLUSH, false),
        (NvmOpcode::WRITE, true),
        (NvmOpcode::READ, false),
        (NvmOpcode::COMPARE, false),
        (NvmOpcode::WRITE_ZEROES, true),
        (NvmOpcode::VERIFY, false),
        (NvmOpcode::DATASET_MANAGEMENT, true),
        (NvmOpcode::FABRICS, false),
    ] {
        let changes = if changes { CommandEffects::LBCC } else { 0 };
        log.io[usize::from(opcode.0)].set(CommandEffects::CSUPP | changes);
    }
    log
}

/// What namespaces with zones have beyond, and what they have not.
fn add_zone_commands(log: &mut CommandsEffectsLog, namespaces: &Namespaces) {
    for (opcode, changes) in [
        (NvmOpcode::ZONE_APPEND, CommandEffects::LBCC),
        (NvmOpcode::ZONE_MANAGEMENT_SEND, CommandEffects::LBCC),
        (NvmOpcode::ZONE_MANAGEMENT_RECEIVE, 0),
    ] {
        log.io[usize::from(opcode.0)].set(CommandEffects::CSUPP | changes);
    }
    // Advice that changes nothing.
    log.io[usize::from(NvmOpcode::DATASET_MANAGEMENT.0)].set(CommandEffects::CSUPP);
    if !namespaces.iter().filter_map(|ns| ns.zones.as_ref()).all(|zones| zones.write_zeroes) {
        log.io[usize::from(NvmOpcode::WRITE_ZEROES.0)].set(0);
    }
}

/// The error report of a failed admin command.
pub(super) fn admin_report(sqe: &Sqe, fault: Fault) -> ErrorReport {
    // Bytes 7:4 of a Fabrics command are not a namespace identifier.
    let nsid = if sqe.is_fabrics() { 0 } else { sqe.nsid.get() };
    ErrorReport { sqid: 0, cid: sqe.cid.get(), fault, lba: 0, nsid }
}
