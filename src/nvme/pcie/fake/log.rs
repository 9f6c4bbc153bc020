//! Get Log Page (Base §5.16).

use std::sync::atomic::Ordering;

use zerocopy::{FromZeros, IntoBytes};

use super::Inner;
use super::admin::Outcome;
use super::faults::Fault;
use super::memory::Dma;
use super::queue::{Flight, Sq};
use crate::nvme::spec::{
    AdminOpcode, CHANGED_NAMESPACES_MAX, CommandEffects, CommandsEffectsLog, Csi, ErrorLogEntry, FirmwareSlotLog,
    GetLogFields, LogId, NSID_BROADCAST, NvmOpcode, SmartLog, Status, StatusCode, put_text, size_limit,
};

/// Entries of the error log.
pub(super) const ERRORS_MAX: usize = 16;
/// Most bytes of one Get Log Page, whatever MDTS says: no page is as long.
const LOG_MAX: u64 = 1 << 20;
/// SMART counts data in units of this.
const DATA_UNIT: u64 = 512_000;

impl Inner {
    pub(super) fn log_error(&self, entry: ErrorLogEntry) {
        let mut errors = self.disk.health().errors.lock();
        errors.insert(0, entry);
        errors.truncate(ERRORS_MAX);
    }

    pub(super) fn get_log(&self, sq: &mut Sq, dma: &Dma<'_>, flight: &Flight) -> Outcome {
        let sqe = &flight.sqe;
        let fields = GetLogFields::of(sqe);
        if !matches!(sqe.nsid.get(), 0 | NSID_BROADCAST) {
            // LPA offers no SMART log of a namespace.
            return Err(StatusCode::INVALID_FIELD.dnr());
        }
        let page = self.log_page(fields.lid, Csi(fields.csi))?;
        let (from, len) = (fields.offset, fields.len());
        if from > page.len() as u64 || from & 3 != 0 || fields.offset_is_index {
            return Err(StatusCode::INVALID_FIELD.dnr());
        }
        let limit = size_limit(self.disk.options().mdts, self.cap()).unwrap_or(LOG_MAX).min(LOG_MAX);
        if len > limit {
            return Err(StatusCode::INVALID_FIELD.dnr());
        }
        // What is asked for beyond the end is not defined, and zeros here.
        let mut data = vec![0; len as usize];
        let there = (page.len() - from as usize).min(data.len());
        data[..there].copy_from_slice(&page[from as usize..from as usize + there]);
        self.send(sq, dma, flight, data)?;
        if !fields.rae {
            let mut admin = self.admin.lock();
            admin.unmask(fields.lid);
            if fields.lid == LogId::CHANGED_NAMESPACES {
                admin.changed.clear();
            }
        }
        Ok(0)
    }

    /// Sends data of an admin command to the host.
    pub(super) fn send(&self, sq: &mut Sq, dma: &Dma<'_>, flight: &Flight, mut data: Vec<u8>) -> Result<(), Status> {
        for fault in &flight.faults {
            if let Fault::Byte(at, value) = *fault
                && let Some(byte) = data.get_mut(usize::from(at))
            {
                *byte = value;
            }
        }
        self.point(dma, &flight.sqe, data.len(), &mut sq.pieces)?;
        let mut rest = &data[..];
        for (address, len) in sq.pieces.iter().copied() {
            let (here, behind) = rest.split_at(len);
            if !dma.write(address, here) {
                return Err(StatusCode::DATA_TRANSFER_ERROR.dnr());
            }
            rest = behind;
        }
        Ok(())
    }

    fn log_page(&self, lid: LogId, csi: Csi) -> Result<Vec<u8>, Status> {
        match lid {
            LogId::ERROR => {
                let mut page = vec![0; ERRORS_MAX * size_of::<ErrorLogEntry>()];
                let errors = self.disk.health().errors.lock();
                for (place, entry) in page.chunks_exact_mut(size_of::<ErrorLogEntry>()).zip(errors.iter()) {
                    place.copy_from_slice(entry.as_bytes());
                }
                Ok(page)
            }
            LogId::SMART => Ok(self.smart().as_bytes().to_vec()),
            LogId::FIRMWARE_SLOT => {
                let mut log = FirmwareSlotLog::new_zeroed();
                log.afi = 1;
                put_text(&mut log.frs[0], super::identify::FIRMWARE, b' ');
                Ok(log.as_bytes().to_vec())
            }
            LogId::CHANGED_NAMESPACES => {
                let changed = &self.admin.lock().changed;
                let mut page = vec![0; CHANGED_NAMESPACES_MAX * size_of::<u32>()];
                if changed.len() > CHANGED_NAMESPACES_MAX {
                    page[..4].fill(0xff);
                } else {
                    for (place, nsid) in page.chunks_exact_mut(4).zip(changed) {
                        place.copy_from_slice(&nsid.to_le_bytes());
                    }
                }
                Ok(page)
            }
            LogId::COMMANDS_EFFECTS => Ok(self.effects(csi).as_bytes().to_vec()),
            _ => Err(StatusCode::INVALID_LOG_PAGE.dnr()),
        }
    }

    fn smart(&self) -> SmartLog {
        let health = self.disk.health();
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let mut log = SmartLog::new_zeroed();
        log.critical_warning = health.warning.load(Ordering::Relaxed) as u8;
        log.temperature_k.set(health.temperature_k.load(Ordering::Relaxed) as u16);
        (log.available_spare, log.available_spare_threshold) = (100, 10);
        log.data_units_read.set(load(&health.bytes_read).div_ceil(DATA_UNIT).into());
        log.data_units_written.set(load(&health.bytes_written).div_ceil(DATA_UNIT).into());
        log.host_read_commands.set(load(&health.reads).into());
        log.host_write_commands.set(load(&health.writes).into());
        log.power_cycles.set(load(&health.power_cycles).into());
        log.unsafe_shutdowns.set(load(&health.unsafe_shutdowns).into());
        log.media_errors.set(load(&health.media_errors).into());
        log.error_log_entries.set(load(&health.error_count).into());
        log
    }

    fn effects(&self, csi: Csi) -> CommandsEffectsLog {
        let mut log = CommandsEffectsLog::new_zeroed();
        let supported = CommandEffects::CSUPP;
        let admin = [
            AdminOpcode::DELETE_IO_SQ,
            AdminOpcode::CREATE_IO_SQ,
            AdminOpcode::GET_LOG_PAGE,
            AdminOpcode::DELETE_IO_CQ,
            AdminOpcode::CREATE_IO_CQ,
            AdminOpcode::IDENTIFY,
            AdminOpcode::ABORT,
            AdminOpcode::SET_FEATURES,
            AdminOpcode::GET_FEATURES,
            AdminOpcode::ASYNC_EVENT_REQUEST,
        ];
        for opcode in admin {
            log.admin[usize::from(opcode.0)].set(supported);
        }
        if self.options.shadow_doorbells {
            log.admin[usize::from(AdminOpcode::DOORBELL_BUFFER_CONFIG.0)].set(supported);
        }
        let format = supported | CommandEffects::LBCC | CommandEffects::NCC | 1 << 16;
        log.admin[usize::from(AdminOpcode::FORMAT_NVM.0)].set(format);
        let changes = supported | CommandEffects::LBCC;
        let commands = [
            (NvmOpcode::READ, supported),
            (NvmOpcode::WRITE, changes),
            (NvmOpcode::FLUSH, supported),
            (NvmOpcode::COMPARE, supported),
            (NvmOpcode::VERIFY, supported),
            (NvmOpcode::WRITE_ZEROES, changes),
            (NvmOpcode::DATASET_MANAGEMENT, changes),
            (NvmOpcode::ZONE_MANAGEMENT_SEND, changes),
            (NvmOpcode::ZONE_MANAGEMENT_RECEIVE, supported),
            (NvmOpcode::ZONE_APPEND, changes),
        ];
        let is_there = csi == Csi::NVM || csi == Csi::ZONED && self.disk.is_zoned();
        for (opcode, effects) in commands.into_iter().filter(|_| is_there) {
            let of_zones = opcode.0 >= NvmOpcode::ZONE_MANAGEMENT_SEND.0;
            if self.has_command(opcode) && (csi == Csi::ZONED || !of_zones) {
                log.io[usize::from(opcode.0)].set(effects);
            }
        }
        log
    }
}
