//! Get Features and Set Features (Base §5.15, §5.27).

use super::controller::Controller;
use super::engine::TargetParams;
use super::fault::{Fault, at};
use crate::nvme::spec::{
    FeatureFields, FeatureId, FeatureSelect, NSID_BROADCAST, QueueCounts, Sqe, StatusCode, async_event_config,
    feature_capability,
};

/// Whether a feature can be changed; `None` when this type of controller does not have it. Each feature has an effect, or
/// states a fixed fact and refuses to change.
fn changeable(controller: &Controller, fid: FeatureId) -> Option<bool> {
    match fid {
        FeatureId::ASYNC_EVENT_CONFIG | FeatureId::KEEP_ALIVE_TIMER => Some(true),
        _ if controller.is_discovery() => None,
        FeatureId::NUMBER_OF_QUEUES | FeatureId::IO_COMMAND_SET_PROFILE => Some(true),
        FeatureId::ARBITRATION
        | FeatureId::POWER_MANAGEMENT
        | FeatureId::ERROR_RECOVERY
        | FeatureId::VOLATILE_WRITE_CACHE
        | FeatureId::WRITE_ATOMICITY
        | FeatureId::HOST_ID => Some(false),
        _ => None,
    }
}

/// The entry of the Feature Identifiers Supported and Effects log page (Base §5.16.1.18): supported, and the scope of a
/// controller.
pub(super) fn effects(controller: &Controller, fid: FeatureId) -> u32 {
    const SUPPORTED: u32 = 1 << 0;
    const SCOPE_CONTROLLER: u32 = 1 << 21;
    if changeable(controller, fid).is_some() { SUPPORTED | SCOPE_CONTROLLER } else { 0 }
}

/// The events a controller of this type can be asked to report. SMART warnings are accepted and never occur.
fn async_events(controller: &Controller) -> u32 {
    if controller.is_discovery() {
        async_event_config::DISCOVERY_LOG
    } else {
        async_event_config::SMART | async_event_config::NAMESPACE_ATTRIBUTE
    }
}

/// Get Features. Returns dword 0 and the number of bytes written to `out`.
pub(super) fn get(
    controller: &Controller,
    params: &TargetParams,
    sqe: &Sqe,
    out: &mut [u8],
) -> Result<(u32, usize), Fault> {
    let fields = FeatureFields::of(sqe);
    let Some(changeable) = changeable(controller, fields.fid) else {
        return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW10));
    };
    // Nothing is saved, so the saved value is the default (Base §4.4).
    let default = match fields.select {
        FeatureSelect::CURRENT => false,
        FeatureSelect::DEFAULT | FeatureSelect::SAVED => true,
        FeatureSelect::SUPPORTED => {
            return Ok((if changeable { feature_capability::CHANGEABLE } else { 0 }, 0));
        }
        _ => return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW10 + 1)),
    };
    let value = match fields.fid {
        // Arbitration burst: no limit.
        FeatureId::ARBITRATION => 7,
        FeatureId::VOLATILE_WRITE_CACHE => 1,
        FeatureId::NUMBER_OF_QUEUES if default => QueueCounts::pairs(params.max_io_queues).to_dword(),
        FeatureId::NUMBER_OF_QUEUES => QueueCounts::pairs(controller.granted_queues).to_dword(),
        FeatureId::ASYNC_EVENT_CONFIG if !default => controller.async_config,
        FeatureId::KEEP_ALIVE_TIMER if !default => controller.kato_ms,
        FeatureId::HOST_ID => {
            // EXHID: over fabrics only the 128-bit form exists (Base §5.27.1.25).
            if sqe.cdw11.get() & 1 == 0 {
                return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW11));
            }
            let Some(out) = out.get_mut(..16) else {
                return Err(Fault::at(StatusCode::SGL_DATA_LENGTH_INVALID, at::SGL_LENGTH));
            };
            out.copy_from_slice(&controller.hostid);
            return Ok((0, 16));
        }
        // Power state 0, no error recovery limit, atomicity as stated, profile 0, events off, keep alive off.
        _ => 0,
    };
    Ok((value, 0))
}

/// Set Features. Returns dword 0.
pub(super) fn set(controller: &mut Controller, params: &TargetParams, sqe: &Sqe, now_ns: u64) -> Result<u32, Fault> {
    let fields = FeatureFields::of(sqe);
    let Some(changeable) = changeable(controller, fields.fid) else {
        return Err(Fault::at(StatusCode::INVALID_FIELD, at::CDW10));
    };
    if fields.save {
        return Err(Fault::at(StatusCode::FEATURE_NOT_SAVEABLE, at::CDW10 + 3));
    }
    if !matches!(sqe.nsid.get(), 0 | NSID_BROADCAST) {
        return Err(Fault::at(StatusCode::FEATURE_NOT_NAMESPACE_SPECIFIC, at::NSID));
    }
    if fields.fid == FeatureId::HOST_ID {
        // Over fabrics Connect has set it (Base §5.27.1.25).
        return Err(Fault::new(StatusCode::COMMAND_SEQUENCE_ERROR));
    }
    if !changeable {
        return Err(Fault::at(StatusCode::FEATURE_NOT_CHANGEABLE, at::CDW10));
    }
    let value = sqe.cdw11.get();
    const BAD_VALUE: Fault = Fault::at(StatusCode::INVALID_FIELD, at::CDW11);
    match fields.fid {
        FeatureId::NUMBER_OF_QUEUES => {
            let asked = QueueCounts::of(value);
            if asked.submission_z == u16::MAX || asked.completion_z == u16::MAX {
                return Err(BAD_VALUE);
            }
            if !controller.io_queues.is_empty() {
                return Err(Fault::new(StatusCode::COMMAND_SEQUENCE_ERROR));
            }
            // Queues come in pairs over fabrics.
            controller.granted_queues = asked.usable().min(u32::from(params.max_io_queues)) as u16;
            Ok(QueueCounts::pairs(controller.granted_queues).to_dword())
        }
        FeatureId::ASYNC_EVENT_CONFIG => {
            if value & !async_events(controller) != 0 {
                return Err(BAD_VALUE);
            }
            controller.async_config = value;
            Ok(0)
        }
        FeatureId::KEEP_ALIVE_TIMER => {
            controller.set_kato(value, now_ns);
            Ok(0)
        }
        // I/O Command Set Profile: the one combination there is, index 0.
        _ if value & 0x1ff != 0 => Err(Fault::at(StatusCode::IO_COMMAND_SET_COMBINATION_REJECTED, at::CDW11)),
        _ => Ok(0),
    }
}
