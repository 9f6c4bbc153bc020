//! Jobs on a controller in software, by the driver's own way to it.

use std::rc::Rc;
use std::sync::mpsc;

use super::*;
use crate::bdev::device::nvme::{Admin, NvmeDrive};
use crate::nvme::pcie::fake::{DiskOptions, FakeDisk, FakeOptions, FakePort, NamespaceOptions};
use crate::nvme::pcie::{ControllerOptions, Drive, DriveOptions};
use crate::reactor::start::Reactors;
use crate::reactor::{Idle, Reactor};

/// What is longer hangs.
const LIMIT: Duration = Duration::from_secs(20);

struct Rig {
    reactors: Reactors,
    admin: Admin<FakePort>,
    drive: std::sync::Arc<NvmeDrive<FakePort>>,
}

impl Way for Rig {
    fn ask(&mut self, ask: &Ask) -> Result<Vec<u8>, AdminError> {
        self.admin.command(ask.name, ask.sqe, ask.len, ask.limit)
    }

    fn reset(&mut self) -> Result<(), AdminError> {
        self.admin.reset()
    }
}

impl Rig {
    /// With an I/O queue, as a server has the disk, or without, for commands alone.
    fn new(served: bool, namespaces: Vec<NamespaceOptions>) -> Rig {
        let options =
            hugepages::ArenaOptions { size: 64 << 20, hugepages: hugepages::HugepagePolicy::Off, numa_node: None };
        let core = crate::sys::affinity::allowed_cores().unwrap()[0];
        let arena = hugepages::Arena::new(options).unwrap();
        let reactors = Reactors::start(&[core], Idle::Adaptive, arena).unwrap();
        let port =
            FakeDisk::new(DiskOptions { namespaces, ..DiskOptions::default() }).controller(FakeOptions::default());
        let (sender, opened) = mpsc::channel();
        let home = reactors.remotes()[0].clone();
        home.send(Box::new(move |reactor: &Rc<Reactor>| {
            port.serve(reactor);
            let here = reactor.clone();
            reactor.spawn("open", async move {
                let options = DriveOptions { controller: ControllerOptions::new(8), timeout_ns: 5_000_000_000 };
                let ids = if served { vec![here.id()] } else { Vec::new() };
                sender.send(Drive::open(&here, port, options, ids).await).expect("the test waits");
            });
        }));
        let drive = opened.recv_timeout(LIMIT).expect("in time").expect("it opens");
        Rig { admin: Admin::new(&drive, &home), drive, reactors }
    }

    fn close(self) {
        let (sender, closed) = mpsc::channel();
        let drive = self.drive;
        self.reactors.remotes()[0].send(Box::new(move |reactor: &Rc<Reactor>| {
            let here = reactor.clone();
            reactor.spawn("close", async move {
                sender.send(drive.close(&here).await).expect("the test waits");
            });
        }));
        closed.recv_timeout(LIMIT).expect("in time").expect("it closes");
        drop(self.admin);
        assert_eq!(self.reactors.stop(), 0, "buffers did not come home");
    }
}

fn one() -> Vec<NamespaceOptions> {
    vec![NamespaceOptions::new(1, 8 << 20, 9)]
}

fn two() -> Vec<NamespaceOptions> {
    vec![NamespaceOptions::new(1, 8 << 20, 9), NamespaceOptions::new(3, 4 << 20, 12)]
}

#[test]
fn identify_tells_of_the_controller_and_its_namespaces() {
    for served in [true, false] {
        let mut rig = Rig::new(served, two());
        let value = carry_out(&mut rig, &Job::Identify { nsid: None }, false).unwrap();
        assert_eq!(value["controller"]["cntrltype"], 1);
        let nsids: Vec<_> = value["namespaces"].as_array().unwrap().iter().map(|one| one["nsid"].as_u64()).collect();
        assert_eq!(nsids, [Some(1), Some(3)]);
        assert_eq!(value["namespaces"][1]["nsze"], (4 << 20) / 4096);
        let value = carry_out(&mut rig, &Job::Identify { nsid: Some(3) }, false).unwrap();
        assert_eq!(value["namespaces"].as_array().unwrap().len(), 1);
        let error = carry_out(&mut rig, &Job::Identify { nsid: Some(2) }, false).unwrap_err();
        assert_eq!(error, "there is no active namespace 2: the controller has 1, 3");
        rig.close();
    }
}

#[test]
fn logs_are_read() {
    let mut rig = Rig::new(false, one());
    let smart = carry_out(&mut rig, &Job::Smart, false).unwrap();
    assert!(smart["temperature"].as_u64().is_some_and(|kelvin| kelvin > 250), "{smart}");
    let firmware = carry_out(&mut rig, &Job::Log(LogPage::Firmware), false).unwrap();
    assert_eq!(firmware["active_slot"], 1, "{firmware}");
    let errors = carry_out(&mut rig, &Job::Log(LogPage::Error), false).unwrap();
    assert!(errors["errors"].is_array() && errors["entries"].as_u64() > Some(0), "{errors}");
    rig.close();
}

#[test]
fn a_format_changes_the_blocks_and_says_what_the_disk_says_then() {
    let mut rig = Rig::new(false, one());
    let wanted = Format { block_size: Some(4096), ..Format::default() };
    let value = carry_out(&mut rig, &Job::Format(wanted), false).unwrap();
    assert_eq!((&value["nsid"], &value["block_size"], &value["metadata"]), (&json!(1), &json!(4096), &json!(0)));
    assert_eq!(value["bytes"], 8 << 20);
    let namespace = carry_out(&mut rig, &Job::Identify { nsid: Some(1) }, false).unwrap()["namespaces"][0].clone();
    assert_eq!(namespace["nsze"], (8 << 20) / 4096);
    // By its index, back.
    let wanted = Format { lbaf: Some(0), erase: Erase::User, ..Format::default() };
    let value = carry_out(&mut rig, &Job::Format(wanted), false).unwrap();
    assert_eq!((&value["lbaf"], &value["block_size"]), (&json!(0), &json!(512)));
    rig.close();
}

#[test]
fn formats_that_cannot_be_are_refused_with_what_can() {
    let mut rig = Rig::new(false, two());
    let mut refused = |wanted| carry_out(&mut rig, &Job::Format(wanted), false).unwrap_err();
    assert_eq!(refused(Format::default()), "the controller has the namespaces 1, 3: write --nsid 1");
    let first = Format { nsid: Some(1), ..Format::default() };
    assert!(refused(Format { nsid: Some(7), ..first }).starts_with("there is no active namespace 7"));
    let error = refused(Format { block_size: Some(2048), ..first });
    assert!(
        error.starts_with("no LBA format has blocks of 2048 bytes without metadata: the namespace has 0 ("),
        "{error}"
    );
    let error = refused(Format { lbaf: Some(63), ..first });
    assert!(error.starts_with("there is no LBA format 63: the namespace has 0 ("), "{error}");
    rig.close();
}

#[test]
fn a_reset_leaves_the_controller_in_use_and_too_many_are_refused() {
    for served in [true, false] {
        let mut rig = Rig::new(served, one());
        for _ in 0..crate::limits::NVME_RESETS_MAX {
            assert_eq!(carry_out(&mut rig, &Job::Reset, false).unwrap(), json!({ "reset": true }));
            carry_out(&mut rig, &Job::Smart, false).unwrap();
        }
        assert_eq!(rig.drive.counters().resets, crate::limits::NVME_RESETS_MAX as u64);
        let error = carry_out(&mut rig, &Job::Reset, false).unwrap_err();
        assert!(error.contains("one more, and the disk would be given up"), "{error}");
        carry_out(&mut rig, &Job::Smart, false).unwrap();
        rig.close();
    }
}
