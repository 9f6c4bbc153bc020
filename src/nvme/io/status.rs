//! What a status means to the block layer.

use crate::nvme::spec::{Status, StatusCode};
use crate::reactor::io::IoStatus;

/// The block layer's word for a status: the one place where NVMe status turns into [`IoStatus`].
pub fn io_status(status: Status) -> IoStatus {
    match status.code() {
        StatusCode::SUCCESS => IoStatus::Success,
        StatusCode::LBA_OUT_OF_RANGE => IoStatus::OutOfRange,
        StatusCode::INVALID_OPCODE | StatusCode::INVALID_FIELD | StatusCode::COMMAND_SIZE_LIMIT_EXCEEDED => {
            IoStatus::Unsupported
        }
        StatusCode::NAMESPACE_WRITE_PROTECTED | StatusCode::WRITE_TO_READ_ONLY_RANGE => IoStatus::ReadOnly,
        StatusCode::COMPARE_FAILURE => IoStatus::Miscompare,
        StatusCode::CAPACITY_EXCEEDED => IoStatus::NoSpace,
        // The device is well, and refuses what the order of its zones does not allow.
        StatusCode::ZONE_BOUNDARY_ERROR => IoStatus::ZoneBoundary,
        StatusCode::ZONE_IS_FULL => IoStatus::ZoneFull,
        StatusCode::ZONE_IS_READ_ONLY => IoStatus::ZoneReadOnly,
        StatusCode::ZONE_IS_OFFLINE => IoStatus::ZoneOffline,
        StatusCode::ZONE_INVALID_WRITE => IoStatus::ZoneInvalidWrite,
        StatusCode::TOO_MANY_ACTIVE_ZONES => IoStatus::ZoneTooManyActive,
        StatusCode::TOO_MANY_OPEN_ZONES => IoStatus::ZoneTooManyOpen,
        StatusCode::INVALID_ZONE_TRANSITION => IoStatus::ZoneInvalidTransition,
        StatusCode::WRITE_FAULT
        | StatusCode::UNRECOVERED_READ_ERROR
        | StatusCode::GUARD_CHECK_ERROR
        | StatusCode::APPLICATION_TAG_CHECK_ERROR
        | StatusCode::REFERENCE_TAG_CHECK_ERROR
        | StatusCode::STORAGE_TAG_CHECK_ERROR
        | StatusCode::DEALLOCATED_BLOCK => IoStatus::MediaError,
        StatusCode::ABORT_REQUESTED
        | StatusCode::ABORTED_SQ_DELETION
        | StatusCode::ABORTED_POWER_LOSS
        | StatusCode::ABORTED_PREEMPT
        | StatusCode::ABORTED_FAILED_FUSED
        | StatusCode::ABORTED_MISSING_FUSED
        | StatusCode::ABORTED_BY_HOST => IoStatus::Aborted,
        StatusCode::INVALID_NAMESPACE => IoStatus::Gone,
        _ => IoStatus::DeviceError,
    }
}

/// Whether a refusal tells of the moment, and not that there is nothing of the kind: many leave Do Not Retry out with that.
pub fn is_for_now(status: Status) -> bool {
    let unknown = [StatusCode::INVALID_FIELD, StatusCode::INVALID_OPCODE, StatusCode::INVALID_NAMESPACE];
    !status.is_dnr() && !unknown.contains(&status.code())
}

/// The status of a fused pair: the first command's, unless that only ended because of the second.
pub fn pair_status(first: Status, second: Status) -> Status {
    if first.is_success() || first.code() == StatusCode::ABORTED_FAILED_FUSED { second } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fused_pair_reports_what_went_wrong() {
        let ok = Status::SUCCESS;
        let failed = StatusCode::ABORTED_FAILED_FUSED.dnr();
        let differs = StatusCode::COMPARE_FAILURE.dnr();
        let full = StatusCode::CAPACITY_EXCEEDED.dnr();
        assert_eq!(pair_status(ok, ok), ok);
        assert_eq!(pair_status(differs, failed), differs);
        assert_eq!(pair_status(failed, full), full);
        assert_eq!(pair_status(ok, full), full);
    }

    #[test]
    fn only_success_is_success() {
        for bits in 0..1 << 15 {
            let status = Status(bits);
            assert_eq!(io_status(status) == IoStatus::Success, status.is_success(), "{status:?}");
            // Neither More nor Do Not Retry nor the retry delay changes what happened.
            assert_eq!(io_status(status), io_status(Status(bits & 0x7ff)));
        }
    }

    #[test]
    fn each_refusal_of_a_zone_is_told_apart() {
        for (code, means) in [
            (StatusCode::ZONE_BOUNDARY_ERROR, IoStatus::ZoneBoundary),
            (StatusCode::ZONE_IS_FULL, IoStatus::ZoneFull),
            (StatusCode::ZONE_IS_READ_ONLY, IoStatus::ZoneReadOnly),
            (StatusCode::ZONE_IS_OFFLINE, IoStatus::ZoneOffline),
            (StatusCode::ZONE_INVALID_WRITE, IoStatus::ZoneInvalidWrite),
            (StatusCode::TOO_MANY_ACTIVE_ZONES, IoStatus::ZoneTooManyActive),
            (StatusCode::TOO_MANY_OPEN_ZONES, IoStatus::ZoneTooManyOpen),
            (StatusCode::INVALID_ZONE_TRANSITION, IoStatus::ZoneInvalidTransition),
        ] {
            assert_eq!(io_status(code.dnr()), means, "{code:?}");
        }
    }
}
