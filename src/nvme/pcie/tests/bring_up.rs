//! Controllers that do not come up: every attempt ends in time, with the reason, and leaves nothing in use.

use super::*;
use crate::limits::NVME_ADMIN_NS;
use crate::nvme::spec::Cap;

/// What CAP.TO of the controllers here says.
const TO: u64 = 2 * S;

/// Opens a controller that does not come up within `ns`, and then, once it is honest, does: nothing of the first attempt is in the way.
fn refuses(rules: Vec<Rule>, ns: u64, is: impl Fn(&ControllerError) -> bool) {
    refuses_on(FakeOptions::default(), rules, ns, is);
}

fn refuses_on(options: FakeOptions, rules: Vec<Rule>, ns: u64, is: impl Fn(&ControllerError) -> bool) {
    let mut rig = Rig::closed(3, |_| {}, options);
    rig.inject(rules);
    let begun = rig.now();
    let error = rig.attempt().err().expect("it does not come up");
    assert!(is(&error), "{error:?}: {error}");
    assert!(rig.now() - begun <= ns + 10 * MS, "{error}: after {} ms", (rig.now() - begun) / MS);
    rig.port.fake.forgive();
    if matches!(error, ControllerError::Stuck { state: "enabling", .. }) {
        rig.forgive_taking_enable_back();
    }
    rig.open().unwrap_or_else(|error| panic!("afterwards: {error}"));
    rig.works(1);
    rig.finish();
}

#[test]
fn registers_that_read_as_ones() {
    refuses(vec![reads(Property::CAP, u64::MAX), reads(Property::CSTS, u64::MAX)], 0, |e| *e == ControllerError::Gone);
    refuses(vec![reads(Property::CSTS, u64::MAX)], 0, |e| *e == ControllerError::Gone);
}

#[test]
fn capabilities_that_cannot_be() {
    let unfit = |e: &ControllerError| matches!(e, ControllerError::Unfit(_));
    let cap = |cap: u64| vec![reads(Property::CAP, cap)];
    refuses(cap(0), 0, unfit);
    refuses(cap(Cap::CSS_NVM | Cap::CQR), 0, unfit);
    refuses(cap(Cap::CSS_NVM | Cap::CQR | 63 | 15 << 48), 0, unfit);
    refuses(cap(Cap::CQR | 63), 0, unfit);
}

#[test]
fn never_ready() {
    let hangs = || vec![Rule::nth(Point::Enable, 1, Fault::Hang)];
    // Once for itself, once more before it may be disabled.
    refuses(hangs(), 2 * TO, |e| matches!(e, ControllerError::Stuck { state: "enabling", ms: 2000, .. }));
    // A controller with CRTO has the longer of the two.
    let crto = FakeOptions { crwmt_500ms: Some(20), ..FakeOptions::default() };
    refuses_on(crto, hangs(), 20 * S, |e| matches!(e, ControllerError::Stuck { state: "enabling", ms: 10_000, .. }));
}

#[test]
fn ready_late_and_quiet_late_but_in_time() {
    let slow = FakeOptions { enable_ns: 1_900 * MS, disable_ns: 1_900 * MS, ..FakeOptions::default() };
    let mut rig = Rig::with(|_| {}, slow);
    rig.works(2);
    rig.finish();
}

#[test]
fn a_fatal_status_while_it_is_enabled() {
    let rule = vec![Rule::nth(Point::Enable, 1, Fault::Fatal)];
    refuses(rule, 0, |e| matches!(e, ControllerError::Fatal { csts } if csts.fatal()));
}

#[test]
fn enabled_by_somebody_before() {
    let mut rig = Rig::with(|_| {}, FakeOptions::default());
    rig.release();
    // The process ends and says nothing: the next one finds it enabled, with queues.
    let cc = Cc(rig.port.registers().read32(Property::CC.0));
    assert!(cc.enabled() && Csts(rig.port.registers().read32(Property::CSTS.0)).ready());
    let (machine, disk, port) = (rig.machine, rig.disk.clone(), rig.port.clone());
    rig.simulation.kill(machine);
    rig.simulation.restart(machine, 2);
    port.fake.serve(&rig.simulation.reactor(machine, 0));
    rig.drive = None;
    let mut rig = Rig { disk, port, ..rig };
    rig.open().unwrap();
    rig.works(3);
    rig.release();
    rig.close().unwrap();
    rig.port.fake.assert_clean();
}

#[test]
fn enabled_by_somebody_before_and_not_yet_ready() {
    let slow = FakeOptions { enable_ns: 1_500 * MS, ..FakeOptions::default() };
    let mut rig = Rig::closed(5, |_| {}, slow);
    let registers = rig.port.registers().clone();
    let memory = rig.reactor(0).pool().alloc(4096).unwrap().into_device();
    let address = rig.port.memory(&memory).unwrap();
    registers.write32(Property::AQA.0, 3 << 16 | 3);
    registers.write64(Property::ASQ.0, address);
    registers.write64(Property::ACQ.0, address);
    registers.write32(Property::CC.0, Cc::enable(0, Cc::CSS_ALL).0);
    let begun = rig.now();
    rig.open().unwrap();
    assert!(rig.now() - begun >= 3 * S, "EN is not taken back before RDY is there");
    drop((memory, registers));
    rig.works(4);
    rig.finish();
}

#[test]
fn a_controller_that_cannot_be_disabled() {
    for cuts in [false, true] {
        let mut rig = Rig::closed(6, |_| {}, FakeOptions::default());
        rig.open().unwrap();
        rig.works(5);
        rig.inject([Rule::always(Point::Disable, Fault::Hang)]);
        rig.port.cuts.store(cuts, Ordering::Relaxed);
        rig.release();
        let begun = rig.now();
        let closed = rig.close();
        assert!(rig.now() - begun <= 2 * TO, "within its limit");
        if cuts {
            closed.unwrap();
            rig.nothing_left();
        } else {
            assert!(matches!(closed, Err(ControllerError::Stuck { state: "disabling", .. })), "{closed:?}");
            assert_eq!(rig.drive().life(), Life::Failed);
            // And again, without hanging the home.
            assert!(rig.close().is_err());
            rig.port.fake.assert_clean();
        }
    }
}

fn at(opcode: AdminOpcode, nth: u64, then: Fault) -> Vec<Rule> {
    vec![Rule::nth(Point::Admin(opcode), nth, then)]
}

#[test]
fn identify_is_refused_or_lost() {
    let status = StatusCode::INTERNAL_ERROR.dnr();
    refuses(
        at(AdminOpcode::IDENTIFY, 1, Fault::Status(status)),
        0,
        |e| matches!(e, ControllerError::Refused { command: "Identify", status: its } if *its == status),
    );
    // Of the controller, of the list, of a namespace.
    for nth in [1, 2, 4] {
        for fault in [Fault::Lost, Fault::Hang] {
            refuses(at(AdminOpcode::IDENTIFY, nth, fault), NVME_ADMIN_NS, |e| {
                matches!(e, ControllerError::Late { command: "Identify", ms: 60_000 })
            });
        }
    }
}

#[test]
fn an_answer_that_comes_after_nobody_waits_for_it_any_more() {
    // After the attempt has ended by its limit: its memory is not given back before the controller is quiet.
    refuses(at(AdminOpcode::IDENTIFY, 2, Fault::Late(NVME_ADMIN_NS + 5 * MS)), NVME_ADMIN_NS, |e| {
        matches!(e, ControllerError::Late { .. })
    });
}

#[test]
fn identify_is_late_but_in_time() {
    let mut rig = Rig::closed(7, |_| {}, FakeOptions::default());
    rig.inject(at(AdminOpcode::IDENTIFY, 1, Fault::Late(50 * S)));
    rig.open().unwrap();
    rig.works(6);
    rig.finish();
}

#[test]
fn queues_are_refused_or_lost() {
    for opcode in [AdminOpcode::CREATE_IO_CQ, AdminOpcode::CREATE_IO_SQ] {
        for nth in [1, 2] {
            let status = StatusCode::INTERNAL_ERROR.dnr();
            refuses(at(opcode, nth, Fault::Status(status)), 0, |e| matches!(e, ControllerError::Refused { .. }));
            refuses(at(opcode, nth, Fault::Lost), NVME_ADMIN_NS, |e| matches!(e, ControllerError::Late { .. }));
        }
    }
}

#[test]
fn fewer_queues_than_reactors() {
    let mut rig = Rig::closed(8, |_| {}, FakeOptions { queues: 1, ..FakeOptions::default() });
    let drive = rig.attempt().unwrap();
    assert!(!drive.is_everywhere() && drive.reactors() == [0]);
    assert!(drive.queue(&rig.reactor(1)).is_none());
    let device: Arc<dyn BlockDevice> = Arc::new(Nvme::new("n".to_owned(), &drive, 1).unwrap());
    let handles: Vec<Handle> = (0..2).map(|r| Handle::open(&rig.reactor(r), &device).unwrap()).collect();
    let data = pattern(1, 4096);
    for (reactor, handle) in handles.iter().enumerate() {
        let (handle, data, reactor) = (handle.clone(), data.clone(), rig.reactor(reactor as u16));
        let io = io_with(&reactor, IoOp::Write, u64::from(reactor.id()) * 4096, 4096, &data, &[]);
        let done = rig.simulation.run_until(&reactor, async move { end_of(&handle, io).await }).unwrap();
        assert_eq!(done.status, IoStatus::Success);
    }
    assert!(rig.disk.contents(1, 0, 8192) == [&data[..], &data].concat());
    drop(handles);
    rig.devices.push(device);
    rig.drive = Some(drive);
    rig.finish();
}

#[test]
fn rings_of_two_entries() {
    let mut rig = Rig::with(|_| {}, FakeOptions { mqes_z: 1, ..FakeOptions::default() });
    rig.works(7);
    // A pair does not fit: helpers do it.
    rig.disk.put(1, 0, &[1; 512]);
    let swapped = rig.begin((1, 1), IoOp::CompareAndWrite, 0, 512, &[[1; 512], [2; 512]].concat());
    assert_eq!(rig.ends(&swapped, S), IoStatus::Success);
    assert_eq!(rig.disk.contents(1, 0, 512), [2; 512]);
    rig.finish();
}

#[test]
fn removed_at_any_command() {
    for nth in 1..=14 {
        for fault in [Fault::Remove, Fault::Fatal] {
            let mut rig = Rig::closed(9, |_| {}, FakeOptions::default());
            let opcodes = [
                AdminOpcode::IDENTIFY,
                AdminOpcode::SET_FEATURES,
                AdminOpcode::CREATE_IO_CQ,
                AdminOpcode::CREATE_IO_SQ,
            ];
            rig.inject(opcodes.map(|opcode| Rule::nth(Point::Admin(opcode), nth, fault)));
            let begun = rig.now();
            match rig.attempt() {
                Ok(drive) => rig.drive = Some(drive),
                Err(error) => assert!(rig.now() - begun <= NVME_ADMIN_NS + 2 * TO, "{error}"),
            }
            if rig.drive.is_none() {
                rig.nothing_left();
            } else {
                rig.finish();
            }
        }
    }
}

#[test]
fn removed_at_any_change_of_state() {
    for point in [Point::Enable, Point::Disable, Point::Write(Property::AQA), Point::Read(Property::CAP)] {
        let mut rig = Rig::closed(10, |_| {}, FakeOptions::default());
        rig.inject([Rule::nth(point.clone(), 1, Fault::Remove)]);
        let attempt = rig.attempt();
        // Never enabled before, so that it is not disabled.
        if point == Point::Disable {
            rig.drive = Some(attempt.unwrap());
            assert!(rig.close().is_ok());
        } else {
            assert_eq!(attempt.err(), Some(ControllerError::Gone), "{point:?}");
        }
        rig.nothing_left();
    }
}

#[test]
fn a_namespace_that_the_controller_does_not_describe_is_none_of_the_others_fault() {
    let mut rig = Rig::closed(11, |_| {}, FakeOptions::default());
    let status = StatusCode::INVALID_FIELD.dnr();
    // Of the controller, of the list, of its limits, of the first namespace.
    rig.inject(at(AdminOpcode::IDENTIFY, 4, Fault::Status(status)));
    let drive = rig.attempt().unwrap();
    rig.drive = Some(drive.clone());
    let untold = drive.namespaces().iter().find(|it| it.nsid == 1).unwrap().geometry.as_ref().unwrap_err();
    assert_eq!(untold.to_string(), format!("namespace 1 is not told about by its controller ({status:?})"));
    assert!(Nvme::new("n".to_owned(), &drive, 1).is_err());
    assert!(Nvme::new("n".to_owned(), &drive, 2).is_ok());
    drop(drive);
    rig.finish();
}

#[test]
fn the_memory_of_queues_is_that_of_their_reactors() {
    let mut rig = Rig::closed(12, |_| {}, FakeOptions::default());
    let in_use = |rig: &Rig| [0, 1].map(|reactor| rig.reactor(reactor).pool().stats().bytes_in_use);
    let before = in_use(&rig);
    rig.options.depth = 256;
    rig.drive = Some(rig.attempt().unwrap());
    let [home, other] = std::array::from_fn(|reactor| in_use(&rig)[reactor] - before[reactor]);
    // Rings of 257 entries and 256 lists; the home has the admin queue and a page for answers besides.
    assert!(other >= 257 * 80 && home >= other && home - other < 64 << 10, "{home} and {other}");
    rig.finish();
}

#[test]
fn pages_larger_than_the_smallest() {
    let mut rig = Rig::with(|_| {}, FakeOptions { mpsmin: 2, shadow_doorbells: true, ..FakeOptions::default() });
    let data = pattern(3, 256 << 10);
    let written = rig.write((1, 2), 4096, &data);
    assert_eq!(rig.ends(&written, S), IoStatus::Success);
    assert!(rig.disk.contents(2, 4096, data.len()) == data);
    rig.works(8);
    rig.finish();
}
