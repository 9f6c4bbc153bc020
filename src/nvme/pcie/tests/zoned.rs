//! Zones under trouble: what may have been written is not written again.

use zerocopy::FromBytes;

use super::*;
use crate::bdev::{ZoneRecord, ZoneState};
use crate::nvme::spec::Status;

/// Bytes of a zone, of which three quarters can be written.
const ZONE: u64 = 512 << 10;

fn zoned(controller: FakeOptions) -> Rig {
    let zones = |disk: &mut DiskOptions| {
        disk.namespaces = (1..=2).map(|nsid| NamespaceOptions::zoned(nsid, SIZE, 9, ZONE)).collect();
    };
    Rig::with(zones, controller)
}

impl Rig {
    fn append(&self, place: (u16, u32), zone: u64, data: &[u8]) -> Answer {
        self.begin(place, IoOp::ZoneAppend, zone * ZONE, data.len() as u64, data)
    }

    /// A zone as it is reported.
    fn zone(&mut self, nsid: u32, zone: u64) -> ZoneRecord {
        let asked = self.begin((0, nsid), IoOp::ZoneReport, zone * ZONE, 32, &[0; 32]);
        let done = self.end(&asked, S);
        assert_eq!(done.status, IoStatus::Success);
        ZoneRecord::read_from_bytes(&done.data).unwrap()
    }

    /// Ends without leaving anything, where all else is of zones.
    fn end_zoned(mut self) {
        for zone in 0..2 {
            let reset = self.begin((1, 1), IoOp::ZoneReset, zone * ZONE, ZONE, &[]);
            assert_eq!(self.ends(&reset, S), IoStatus::Success);
        }
        self.finish();
    }
}

#[test]
fn appends_that_a_reset_meets_are_carried_out_once_or_not_at_all() {
    let mut failed = 0;
    for (round, fault) in [Fault::Lost, Fault::Hang, Fault::Late(2 * TIMEOUT), Fault::Fatal].into_iter().enumerate() {
        let mut rig = zoned(FakeOptions { io_ns: (10_000, 500_000), ..FakeOptions::default() });
        rig.inject([Rule::nth(Point::io(NvmOpcode::ZONE_APPEND), 9, fault)]);
        let datas: Vec<Vec<u8>> = (0..24).map(|seed| pattern(seed, (1 + seed as usize % 5) * 512)).collect();
        let answers: Vec<Answer> =
            datas.iter().enumerate().map(|(at, data)| rig.append((at as u16 % 2, 1), 1, data)).collect();
        let mut written = 0;
        for (data, answer) in datas.iter().zip(&answers) {
            let done = rig.end(answer, 4 * TIMEOUT);
            match done.status {
                IoStatus::Success => {
                    assert!(rig.disk.contents(1, done.info, data.len()) == *data, "it is where it says");
                    written += data.len() as u64;
                }
                IoStatus::DeviceError | IoStatus::Aborted => failed += 1,
                status => panic!("{fault:?}: {status:?}"),
            }
        }
        // What failed was carried out once at most.
        let pointer = rig.zone(1, 1).write_pointer.get() - ZONE;
        let all: u64 = datas.iter().map(|data| data.len() as u64).sum();
        assert!(
            (written..=all).contains(&pointer),
            "round {round}: {written} of {all} bytes, and {pointer} in the zone"
        );
        let repeated: u64 =
            (0..2).map(|reactor| rig.drive().queue(&rig.reactor(reactor)).unwrap().counters().repeated).sum();
        assert_eq!(repeated, 0);
        let after = rig.append((0, 1), 1, &datas[0]);
        assert_eq!(rig.end(&after, S).info, ZONE + pointer, "and the next one follows");
        rig.end_zoned();
    }
    assert!(failed >= 4, "{failed}: each fault loses one at least");
}

#[test]
fn a_write_whose_answer_is_lost_fails_and_has_moved_the_pointer_once() {
    let mut rig = zoned(FakeOptions { io_ns: (10_000, 10_000), ..FakeOptions::default() });
    rig.inject([Rule::nth(Point::io(NvmOpcode::WRITE), 1, Fault::Lost)]);
    let written = rig.write((1, 1), 0, &pattern(1, 4096));
    assert_ne!(rig.ends(&written, 4 * TIMEOUT), IoStatus::Success);
    let zone = rig.zone(1, 0);
    assert_eq!(
        (zone.state, zone.write_pointer.get(), zone.capacity.get()),
        (ZoneState::IMPLICITLY_OPEN, 4096, ZONE / 4 * 3)
    );
    let again = rig.write((1, 1), 0, &pattern(1, 4096));
    assert_eq!(rig.ends(&again, S), IoStatus::ZoneInvalidWrite, "as whoever wrote finds out");
    let next = rig.write((1, 1), 4096, &pattern(2, 4096));
    assert_eq!(rig.ends(&next, S), IoStatus::Success);
    // What manages zones is repeated, and reads and reports are.
    rig.inject([Rule::nth(Point::ANY_IO, 1, Fault::Lost)]);
    let finished = rig.begin((0, 1), IoOp::ZoneFinish, 0, ZONE, &[]);
    assert_eq!(rig.ends(&finished, 4 * TIMEOUT), IoStatus::Success);
    rig.inject([Rule::nth(Point::io(NvmOpcode::ZONE_MANAGEMENT_RECEIVE), 1, Fault::Lost)]);
    let asked = rig.begin((0, 1), IoOp::ZoneReport, 0, 32, &[0; 32]);
    let done = rig.end(&asked, 4 * TIMEOUT);
    assert_eq!((done.status, done.data[24]), (IoStatus::Success, ZoneState::FULL.0));
    rig.end_zoned();
}

#[test]
fn an_append_is_given_again_only_if_it_was_not_begun() {
    let mut rig = zoned(FakeOptions { io_ns: (10_000, 10_000), ..FakeOptions::default() });
    let status = |status: Status| Rule::nth(Point::io(NvmOpcode::ZONE_APPEND), 1, Fault::Status(status));
    rig.inject([status(StatusCode::NAMESPACE_NOT_READY.retry())]);
    let appended = rig.append((0, 2), 3, &pattern(1, 512));
    assert_eq!(rig.ends(&appended, S), IoStatus::Success);
    rig.port.fake.forgive();
    rig.inject([status(StatusCode::COMMAND_INTERRUPTED.retry())]);
    let appended = rig.append((0, 2), 3, &pattern(1, 512));
    assert_eq!(rig.ends(&appended, S), IoStatus::DeviceError);
    assert_eq!(rig.zone(2, 3).write_pointer.get(), 3 * ZONE + 512);
    rig.end_zoned();
}

#[test]
fn a_controller_that_says_nonsense_of_zones_is_not_believed() {
    let mut rig = zoned(FakeOptions { io_ns: (10_000, 10_000), ..FakeOptions::default() });
    for bits in [1 << 40, u64::MAX, ZONE / 512] {
        rig.inject([Rule::nth(Point::io(NvmOpcode::ZONE_APPEND), 1, Fault::WrongResult(bits))]);
        let appended = rig.append((1, 1), 1, &pattern(1, 512));
        let done = rig.end(&appended, S);
        assert_eq!((done.status, done.info), (IoStatus::DeviceError, 0), "{bits:#x}");
        rig.port.fake.forgive();
    }
    assert_eq!(rig.zone(1, 1).write_pointer.get(), ZONE + 3 * 512);
    // Half of a report, behind which there is what was in memory.
    rig.inject([Rule::nth(Point::io(NvmOpcode::ZONE_MANAGEMENT_RECEIVE), 1, Fault::Half)]);
    let asked = rig.begin((0, 1), IoOp::ZoneReport, 0, 16 * 32, &[0; 16 * 32]);
    assert_eq!(rig.ends(&asked, S), IoStatus::DeviceError);
    rig.end_zoned();
}

#[test]
fn zones_that_come_with_growth_are_reported() {
    let mut rig = zoned(FakeOptions { io_ns: (10_000, 10_000), ..FakeOptions::default() });
    let count = SIZE / ZONE;
    rig.drive().listen(|_| {});
    // That somebody listens is seen at the next look.
    rig.wait(2 * S);
    rig.disk.resize(1, (SIZE + 2 * ZONE) / BLOCK);
    rig.port.fake.changed(1);
    rig.wait(S);
    rig.devices[0].grow(SIZE + 2 * ZONE).unwrap();
    let asked = rig.begin((0, 1), IoOp::ZoneReport, (count - 1) * ZONE, 4 * 32, &[1; 4 * 32]);
    let done = rig.end(&asked, S);
    assert_eq!(
        (done.status, done.data[24], done.data[2 * 32 + 24], done.data[3 * 32 + 24]),
        (IoStatus::Success, 1, 1, 0)
    );
    let appended = rig.append((1, 1), count + 1, &pattern(1, 512));
    assert_eq!(rig.end(&appended, S).info, (count + 1) * ZONE);
    rig.end_zoned();
}
