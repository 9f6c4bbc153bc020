//! What the controller tells by itself.

use super::*;
use crate::nvme::pcie::ControllerEvent;
use crate::nvme::spec::{AsyncEvent, NoticeInfo, critical_warning};

type Told = std::sync::mpsc::Receiver<ControllerEvent>;

fn listening() -> (Rig, Told) {
    let mut rig = Rig::new();
    let (sender, told) = std::sync::mpsc::channel();
    rig.drive().listen(move |event| sender.send(event).unwrap());
    // That somebody listens is seen at the next look.
    rig.wait(2 * S);
    (rig, told)
}

/// The sizes that an event about namespaces tells, by number.
fn sizes(event: Result<ControllerEvent, std::sync::mpsc::TryRecvError>) -> Vec<(u32, u64)> {
    match event {
        Ok(ControllerEvent::Namespaces(all)) => {
            all.iter().map(|info| (info.nsid, info.geometry.as_ref().unwrap().size)).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn namespaces_that_change_are_told() {
    let (mut rig, told) = listening();
    rig.wait(S);
    assert!(told.try_recv().is_err(), "nothing has happened");
    for larger in 1..=3 {
        rig.disk.resize(2, SIZE / BLOCK + 8 * larger);
        rig.port.fake.changed(2);
        rig.wait(300 * MS);
        assert_eq!(sizes(told.try_recv()), [(1, SIZE), (2, SIZE + 8 * larger * BLOCK)]);
    }
    rig.port.fake.detach_namespace(1);
    rig.wait(300 * MS);
    assert_eq!(sizes(told.try_recv()), [(2, SIZE + 24 * BLOCK)]);
    rig.port.fake.attach_namespace(1);
    rig.wait(300 * MS);
    assert_eq!(sizes(told.try_recv()).len(), 2);
    rig.works(1);
    rig.finish();
}

#[test]
fn health_and_firmware_are_told() {
    let (mut rig, told) = listening();
    rig.disk.set_health(350, critical_warning::TEMPERATURE | critical_warning::SPARE);
    rig.port.fake.warn();
    rig.wait(300 * MS);
    let Ok(ControllerEvent::Health { warning, temperature_k }) = told.try_recv() else { panic!("nothing was told") };
    assert_eq!(temperature_k, 350);
    let words = ControllerEvent::warnings(warning);
    assert_eq!(words, "its spare blocks run out, its temperature is beyond a threshold");
    assert_eq!(ControllerEvent::warnings(0), "it is well");
    rig.port.fake.notice(NoticeInfo::FIRMWARE_ACTIVATION);
    rig.wait(300 * MS);
    assert!(matches!(told.try_recv(), Ok(ControllerEvent::FirmwareActivation)));
    assert!(told.try_recv().is_err());
    rig.finish();
}

#[test]
fn events_come_after_a_reset_too() {
    let (mut rig, told) = listening();
    // Grown unseen.
    rig.disk.resize(1, SIZE / BLOCK + 16);
    rig.inject([Rule::nth(Point::io(NvmOpcode::WRITE), 1, Fault::Fatal)]);
    let written = rig.write((1, 1), 0, &[1; 4096]);
    assert_eq!(rig.ends(&written, 2 * S), IoStatus::Success);
    assert_eq!(sizes(told.try_recv()), [(1, SIZE + 16 * BLOCK), (2, SIZE)]);
    rig.wait(2 * S);
    rig.disk.resize(2, SIZE / BLOCK + 8);
    rig.port.fake.changed(2);
    rig.wait(300 * MS);
    assert_eq!(sizes(told.try_recv()), [(1, SIZE + 16 * BLOCK), (2, SIZE + 8 * BLOCK)]);
    rig.works(2);
    rig.finish();
}

#[test]
fn a_controller_that_tells_nothing_serves_all_the_same() {
    for opcode in [AdminOpcode::ASYNC_EVENT_REQUEST, AdminOpcode::GET_LOG_PAGE] {
        let mut rig = Rig::closed(1, |_| {}, FakeOptions { io_ns: (10_000, 10_000), ..FakeOptions::default() });
        rig.inject([Rule::always(Point::Admin(opcode), Fault::Status(StatusCode::INVALID_OPCODE.dnr()))]);
        rig.open().unwrap();
        let (sender, told) = std::sync::mpsc::channel();
        rig.drive().listen(move |event| sender.send(event).unwrap());
        rig.wait(2 * S);
        rig.port.fake.notice(NoticeInfo::FIRMWARE_ACTIVATION);
        rig.wait(S);
        let heard = matches!(told.try_recv(), Ok(ControllerEvent::FirmwareActivation));
        assert_eq!(heard, opcode == AdminOpcode::GET_LOG_PAGE, "an event whose log is refused is one all the same");
        assert!(!matches!(told.try_recv(), Ok(ControllerEvent::Other(AsyncEvent::Error(_)))));
        rig.works(1);
        rig.finish();
    }
}
