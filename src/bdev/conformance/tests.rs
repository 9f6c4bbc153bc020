use super::*;
use crate::bdev::device::file::{self, File, Geometry};
use crate::bdev::device::malloc::{self, Malloc};
use crate::bdev::device::null::{self, CompleteIn, Null};
use crate::bdev::layer::inject::{self, Action, Inject, Rule, When};

mod broken;

use broken::{BAD, Fault, Ram};

use crate::sys::descriptor::Descriptor;
use std::path::Path;

const SIZE: u64 = 8 << 20;

fn options() -> Options {
    Options { grow_to: Some(SIZE + (4 << 20)), ..Options::default() }
}

fn ram_volume(block_size: u32) -> Arc<dyn BlockDevice> {
    let volume = Malloc::new(malloc::Options {
        name: "ram".to_owned(),
        uuid: [3; 16],
        size: SIZE,
        block_size,
        physical_block_size: block_size,
        hugepages: false,
        home: 0,
    });
    Arc::new(volume.unwrap())
}

fn inject(rules: Vec<Rule>) -> Arc<dyn BlockDevice> {
    let options = inject::Options { name: "layer".to_owned(), uuid: [4; 16], base: ram_volume(512), rules };
    Arc::new(Inject::new(options).unwrap())
}

#[test]
fn null_conforms_but_for_its_data() {
    for (complete, block_size) in [(CompleteIn::Poll, 512), (CompleteIn::Submit, 4096)] {
        let make = || -> Arc<dyn BlockDevice> {
            Arc::new(Null::new(null::Options {
                name: "null".to_owned(),
                uuid: [5; 16],
                size: SIZE,
                block_size,
                physical_block_size: block_size,
                complete,
            }))
        };
        run(make, &options());
    }
}

#[test]
fn a_ram_volume_conforms() {
    for block_size in [512, 4096] {
        run(|| ram_volume(block_size), &options());
    }
}

fn file_options(path: &Path, block_size: u32, direct: bool) -> file::Options {
    file::Options {
        name: "disk".to_owned(),
        uuid: [7; 16],
        path: path.to_owned(),
        size: SIZE,
        block_size,
        physical_block_size: block_size,
        direct,
        home: 0,
    }
}

/// Makes devices by `make`, each on a path of its own, on a file system that has direct I/O: the build's own.
fn run_on_paths(make: impl Fn(&Path) -> Arc<dyn BlockDevice>, options: &Options) {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let directory = tempfile::tempdir_in(if target.is_dir() { target } else { std::env::temp_dir() }).unwrap();
    let count = Cell::new(0);
    let next = || {
        count.set(count.get() + 1);
        make(&directory.path().join(format!("disk{}.img", count.get())))
    };
    run(next, options);
}

#[test]
fn a_file_volume_conforms_buffered() {
    run_on_paths(|path| Arc::new(File::create(file_options(path, 512, false)).unwrap()), &options());
}

#[test]
fn a_file_volume_conforms_with_direct_io() {
    for block_size in [512, 4096] {
        run_on_paths(|path| Arc::new(File::create(file_options(path, block_size, true)).unwrap()), &options());
    }
}

#[test]
fn a_file_volume_conforms_whose_unit_of_direct_io_is_larger_than_a_block() {
    let make = |path: &Path| -> Arc<dyn BlockDevice> {
        let file = std::fs::File::options().read(true).write(true).create_new(true).open(path).unwrap();
        file.set_len(SIZE).unwrap();
        let geometry =
            Geometry { memory: 4096, unit: 4096, zeroes: 4096, physical: 4096, allocation: 4096, direct: true };
        let descriptor = Descriptor::from(std::os::fd::OwnedFd::from(file));
        Arc::new(File::over(file_options(path, 512, true), descriptor, geometry))
    };
    run_on_paths(make, &Options { grow_to: None, ..options() });
}

#[test]
fn inject_conforms_without_rules() {
    run(|| inject(Vec::new()), &options());
}

#[test]
fn inject_conforms_when_it_delays() {
    let late = Rule { op: None, when: When::Every(7), count: None, action: Action::Delay(50_000) };
    run(|| inject(vec![late]), &options());
}

#[test]
fn the_device_that_faults_are_added_to_conforms() {
    run(|| Ram::device(None), &options());
}

#[test]
fn every_fault_is_caught_by_its_scenario() {
    // Between two reactors it is chance whose steps meet first.
    const SWAPS: [&str; 2] = ["counting by compare and write", "compare and write against plain writes"];
    for (fault, way, scenarios) in [
        (Fault::Garbage, Way::Home, &["fresh"][..]),
        (Fault::ReadsDropLastBlock, Way::Home, &["fresh"]),
        (Fault::WritesDropLastBlock, Way::Home, &["writes"]),
        (Fault::WritesSpill, Way::Home, &["writes"]),
        (Fault::UnmapDoesNothing, Way::Home, &["zeroes"]),
        (Fault::ZeroesRoundOut, Way::Home, &["zeroes"]),
        (Fault::CompareIsBlind, Way::Home, &["compare"]),
        (Fault::CompareSaysZero, Way::Home, &["compare"]),
        (Fault::SwapStoresAlways, Way::Home, &["compare and write"]),
        (Fault::SwapStoresFirstHalf, Way::Home, &["compare and write"]),
        (Fault::OnlyFirstSegment, Way::Home, &["segments"]),
        (Fault::LosesSegment, Way::Home, &["segments"]),
        (Fault::ResetIsEarly, Way::Home, &["reset"]),
        (Fault::ForgetsFua, Way::Home, &["writes"]),
        (Fault::SwapInTwoSteps, Way::Home, &["counting by compare and write"]),
        (Fault::SwapInTwoSteps, Way::Forward, &SWAPS[..]),
        (Fault::SwapInTwoSteps, Way::Two, &SWAPS[..]),
        (Fault::GrowthLosesData, Way::Home, &["growth"]),
        (Fault::GrowthIsGarbage, Way::Home, &["growth"]),
        (Fault::GrowthIsNotSaid, Way::Home, &["growth"]),
        (Fault::Shrinks, Way::Home, &["growth"]),
        (Fault::KeepsIo, Way::Home, &["random"]),
        (Fault::KeepsIoOfClosing, Way::Home, &["closing"]),
        (Fault::VerifyFailsOnZeros, Way::Home, &["verify"]),
        (Fault::VerifyClears, Way::Home, &["verify"]),
        (Fault::ExtentsHideData, Way::Home, &["extents"]),
        (Fault::ExtentsKeepUnmapped, Way::Home, &["extents"]),
        (Fault::ExtentsKeepUnmapped, Way::Split, &["extents"]),
        (Fault::ExtentsBeginElsewhere, Way::Home, &["extents"]),
        (Fault::ExtentsLeaveGaps, Way::Home, &["extents"]),
        (Fault::ExtentsLeaveRest, Way::Home, &["extents"]),
        (Fault::ExtentsRunOver, Way::Home, &["extents"]),
        (Fault::AtomicStoresHalf, Way::Home, &["atomic writes"]),
        (Fault::AtomicInTwoSteps, Way::Home, &["atomic writes together"]),
        (Fault::AtomicInTwoSteps, Way::Forward, &["atomic writes together"]),
        (Fault::AtomicInTwoSteps, Way::Two, &["atomic writes together"]),
        (Fault::LargeWritesTear, Way::Home, &["writes"]),
        (Fault::RandomlyLost, Way::Home, &["random"]),
    ] {
        let hangs = matches!(fault, Fault::KeepsIo | Fault::KeepsIoOfClosing);
        let limit = Duration::from_secs(if hangs { 5 } else { 60 });
        let options = Options { ways: vec![way], limit, seed: Some(7), ..options() };
        match check(|| Ram::device(Some(fault)), &options) {
            Ok(()) => panic!("{fault:?} was not caught"),
            Err(failure) => assert!(scenarios.contains(&failure.scenario), "{fault:?} was caught, but: {failure}"),
        }
    }
}

fn with_bad_block() -> Options {
    Options { unreadable: Some(BAD), ..Options::default() }
}

#[test]
fn a_verify_fails_where_a_block_cannot_be_read() {
    run(|| Ram::unreadable(None), &with_bad_block());
    let below = |rules| {
        let base = Ram::unreadable(None);
        let options = inject::Options { name: "layer".to_owned(), uuid: [4; 16], base, rules };
        Arc::new(Inject::new(options).unwrap()) as Arc<dyn BlockDevice>
    };
    run(|| below(Vec::new()), &with_bad_block());
    let late = Rule { op: None, when: When::Every(3), count: None, action: Action::Delay(50_000) };
    run(|| below(vec![late]), &with_bad_block());
}

#[test]
fn a_verify_that_reads_nothing_is_caught() {
    let failure = check(|| Ram::unreadable(Some(Fault::VerifyIsBlind)), &with_bad_block()).unwrap_err();
    assert_eq!(failure.scenario, "unreadable", "{failure}");
}

#[test]
fn a_failure_is_played_again_by_its_seed() {
    let options = Options { ways: vec![Way::Home], ..options() };
    let failure =
        |seed| check(|| Ram::device(Some(Fault::RandomlyLost)), &Options { seed, ..options.clone() }).unwrap_err();
    let first = failure(None);
    assert_eq!(failure(Some(first.seed)).what, first.what);
}
