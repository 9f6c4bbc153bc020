//! The volume on a controller in software: the conformance suite in all ways, on controllers that differ in what they can do.

use std::cell::RefCell;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use super::*;
use crate::bdev::conformance::{self, Options};
use crate::nvme::pcie::fake::{DiskOptions, FakeDisk, FakeOptions, FakePort, NamespaceOptions};
use crate::nvme::pcie::{ControllerOptions, DriveOptions};
use crate::nvme::spec::{DeallocatedReads, ONCS_COMPARE, ONCS_DSM, ONCS_VERIFY, ONCS_WRITE_ZEROES};
use crate::reactor::mailbox::Remote;

/// What is longer hangs.
const LIMIT: Duration = Duration::from_secs(20);

fn options() -> DriveOptions {
    DriveOptions { controller: ControllerOptions::new(64), timeout_ns: 5_000_000_000 }
}

/// Opens a drive whose home is the first of these reactors.
fn open(remotes: &[Remote], port: &FakePort, options: DriveOptions) -> Arc<NvmeDrive<FakePort>> {
    let (sender, opened) = mpsc::channel();
    let (port, ids) = (port.clone(), remotes.iter().map(Remote::id).collect());
    remotes[0].send(Box::new(move |reactor| {
        port.serve(reactor);
        let here = reactor.clone();
        reactor.spawn("open", async move {
            sender.send(Drive::open(&here, port, options, ids).await).expect("the test waits");
        });
    }));
    opened.recv_timeout(LIMIT).expect("it opens in time").expect("it opens")
}

fn close(remotes: &[Remote], drive: Arc<NvmeDrive<FakePort>>) {
    let (sender, closed) = mpsc::channel();
    remotes[0].send(Box::new(move |reactor| {
        let here = reactor.clone();
        reactor.spawn("close", async move {
            sender.send(drive.close(&here).await).expect("the test waits");
        });
    }));
    closed.recv_timeout(LIMIT).expect("it closes in time").expect("it closes");
}

/// Runs the suite on fresh disks; every controller must find that the driver did nothing wrong.
fn conforms(disk: impl Fn(&mut DiskOptions, &mut NamespaceOptions), controller: FakeOptions, prp_only: bool) {
    conforms_by(disk, controller, prp_only, &Options::default());
}

fn conforms_by(
    disk: impl Fn(&mut DiskOptions, &mut NamespaceOptions),
    controller: FakeOptions,
    prp_only: bool,
    suite: &Options,
) {
    let last: RefCell<Option<(FakePort, Arc<NvmeDrive<FakePort>>)>> = RefCell::default();
    let finish = |remotes: &[Remote]| {
        if let Some((port, drive)) = last.take() {
            close(remotes, drive);
            port.assert_clean();
        }
    };
    let make = |remotes: &[Remote]| -> Arc<dyn BlockDevice> {
        finish(remotes);
        let mut namespace = NamespaceOptions::new(1, 8 << 20, 9);
        let mut options = DiskOptions::default();
        disk(&mut options, &mut namespace);
        options.namespaces = vec![namespace];
        let made = FakeDisk::new(options);
        if let Some(bad) = suite.unreadable {
            made.poison(1, bad / 512);
        }
        let port = made.controller(controller.clone());
        let mut how = self::options();
        how.controller.prp_only = prp_only;
        let drive = open(remotes, &port, how);
        let device = Arc::new(Nvme::new("nvme0".to_owned(), &drive, 1).expect("a namespace that can be used"));
        last.replace(Some((port, drive)));
        device
    };
    conformance::run_with(make, |remotes| finish(remotes), suite);
}

#[test]
fn conforms_with_512_bytes_a_block() {
    conforms(|_, _| {}, FakeOptions::default(), false);
}

#[test]
fn conforms_with_4096_bytes_a_block_and_shadow_doorbells() {
    let controller = FakeOptions { shadow_doorbells: true, ..FakeOptions::default() };
    conforms(|_, namespace| *namespace = NamespaceOptions::new(1, 8 << 20, 12), controller, false);
}

#[test]
fn conforms_with_submission_queues_in_the_controller() {
    conforms(|_, _| {}, FakeOptions { cmb_pages: 64, shadow_doorbells: true, ..FakeOptions::default() }, false);
}

#[test]
fn conforms_with_prps_alone_and_answers_that_overtake_each_other() {
    let controller = FakeOptions { io_ns: (1_000, 200_000), ..FakeOptions::default() };
    conforms(|disk, _| disk.sgls = 0, controller, true);
}

#[test]
fn conforms_on_a_controller_that_can_do_little() {
    // No compare, no deallocation that is kept, nothing fused, small transfers, a boundary, a cache.
    let poor = |disk: &mut DiskOptions, namespace: &mut NamespaceOptions| {
        (disk.oncs, disk.fused, disk.mdts, disk.write_cache) = (ONCS_WRITE_ZEROES | ONCS_DSM, false, 1, true);
        (namespace.deac, namespace.noiob, namespace.deallocated) = (false, 32, DeallocatedReads::UNKNOWN);
    };
    conforms(poor, FakeOptions::default(), false);
}

#[test]
fn conforms_where_unmap_takes_two_commands() {
    let two = |disk: &mut DiskOptions, namespace: &mut NamespaceOptions| {
        (namespace.deac, disk.range_blocks_max, disk.acwu_z) = (false, 16, 3);
    };
    conforms(two, FakeOptions { dstrd: 2, mqes_z: 7, ..FakeOptions::default() }, false);
}

#[test]
fn zones_conform() {
    conforms(
        |_, namespace| *namespace = NamespaceOptions::zoned(1, 8 << 20, 9, 512 << 10),
        FakeOptions::default(),
        false,
    );
}

#[test]
fn zones_conform_with_small_transfers_and_commands_that_overtake_each_other() {
    let small = |disk: &mut DiskOptions, namespace: &mut NamespaceOptions| {
        // Appends are bounded more than writes.
        (disk.mdts, disk.zasl, disk.sgls) = (3, 2, 0);
        *namespace = NamespaceOptions::zoned(1, 8 << 20, 12, 512 << 10);
        namespace.zones.as_mut().expect("zones").read_across = false;
    };
    conforms(small, FakeOptions { io_ns: (1_000, 100_000), ..FakeOptions::default() }, true);
}

#[test]
fn zones_conform_without_limits_and_without_the_commands_that_may_be_missing() {
    let poor = |disk: &mut DiskOptions, namespace: &mut NamespaceOptions| {
        (disk.oncs, disk.fused) = (0, false);
        *namespace = NamespaceOptions::zoned(1, 8 << 20, 9, 256 << 10);
        let zones = namespace.zones.as_mut().expect("zones");
        // All of a zone can be written.
        (zones.open_max, zones.active_max, zones.capacity) = (None, None, zones.blocks);
    };
    conforms(poor, FakeOptions { mqes_z: 7, ..FakeOptions::default() }, false);
}

#[test]
fn conforms_without_write_zeroes() {
    conforms(|disk, _| disk.oncs = ONCS_COMPARE, FakeOptions::default(), false);
}

#[test]
fn conforms_where_verifies_are_short() {
    let short = |disk: &mut DiskOptions, namespace: &mut NamespaceOptions| {
        (disk.verify_limit, disk.mdts, namespace.noiob) = (1, 3, 16);
    };
    conforms(short, FakeOptions { io_ns: (1_000, 50_000), ..FakeOptions::default() }, false);
}

#[test]
fn a_verify_fails_where_a_block_cannot_be_read() {
    let suite = Options { unreadable: Some(5 << 20), ..Options::default() };
    for (oncs, limit) in [(ONCS_VERIFY, 0), (ONCS_VERIFY, 2), (0, 0)] {
        let disk = |disk: &mut DiskOptions, _: &mut NamespaceOptions| (disk.oncs, disk.verify_limit) = (oncs, limit);
        conforms_by(disk, FakeOptions::default(), false, &suite);
    }
}
