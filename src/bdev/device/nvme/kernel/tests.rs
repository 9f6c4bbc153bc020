//! The volume on a stand-in for the ring: a disk that carries out the commands it is given, at once or later and in another order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use hugepages::{Buf, Region, RegionOptions};
use zerocopy::{FromBytes, FromZeros};

use super::*;
use crate::bdev::conformance::{self, Options};
use crate::bdev::device::testing::{One, pattern};
use crate::nvme::io::Identified;
use crate::nvme::pcie::fake::{ZoneOptions, Zones};
use crate::nvme::spec::{
    Cap, DsmRange, IdentifyController, IdentifyControllerZoned, IdentifyNamespace, IdentifyNamespaceZoned, NvmOpcode,
    ONCS_COMPARE, ONCS_DSM, ONCS_VERIFY, ONCS_WRITE_ZEROES, Sqe, StatusCode, VWC_PRESENT, ZoneReceiveFields,
    ZoneSendFields,
};
use crate::reactor::io::{IoOp, IoStatus};
use crate::sys::nvme_ring::{Answer, Command, Counters, Ended};

#[expect(clippy::disallowed_types, reason = "a disk of several reactors, in a test")]
type Mutex<T> = std::sync::Mutex<T>;

/// Bytes of the namespace.
const SIZE: usize = 8 << 20;
const NSID: u32 = 3;

/// A namespace in memory, and how it answers.
struct Disk {
    memory: Region,
    shift: u8,
    depth: usize,
    /// Each command so far; of every so many one is ended undone, as by a reset of the controller. 0: none.
    commands: AtomicU64,
    undone: u64,
    /// Another errno instead, for every command. 0: none.
    errno: AtomicUsize,
    /// For verifies alone.
    verify_errno: AtomicUsize,
    verifies: AtomicUsize,
    /// Flushes that it was asked for.
    flushes: AtomicUsize,
    zones: Option<Mutex<Zones>>,
}

/// Bytes of a zone.
const ZONE: u64 = 512 << 10;

impl Disk {
    fn new(shift: u8, depth: usize, undone: u64) -> Arc<Disk> {
        Disk::with(shift, depth, undone, None)
    }

    fn zoned(shift: u8, depth: usize, undone: u64) -> Arc<Disk> {
        let blocks = ZONE >> shift;
        let (open_max, active_max) = (Some(3), Some(5));
        let options = ZoneOptions { blocks, capacity: blocks - 7, open_max, active_max, read_across: false };
        let zones = Zones::new(&options, (SIZE >> shift) as u64);
        Disk::with(shift, depth, undone, Some(Mutex::new(zones)))
    }

    fn with(shift: u8, depth: usize, undone: u64, zones: Option<Mutex<Zones>>) -> Arc<Disk> {
        let memory = Region::new(SIZE, RegionOptions::default()).expect("memory");
        let (commands, errno, verify_errno, verifies, flushes) = Default::default();
        Arc::new(Disk { memory, shift, depth, commands, undone, errno, verify_errno, verifies, flushes, zones })
    }

    /// What zones say to a command first: where its blocks are, if they are not where it says.
    fn zones(&self, command: &Command, data: &mut Option<Buf>) -> Result<Option<u64>, StatusCode> {
        let Some(zones) = &self.zones else { return Ok(None) };
        let zones = &mut *zones.lock().expect("no test panics with it");
        let mut sqe = Sqe::bare(command.opcode, NSID);
        for (dword, value) in
            [&mut sqe.cdw10, &mut sqe.cdw11, &mut sqe.cdw12, &mut sqe.cdw13].into_iter().zip(command.cdw10)
        {
            dword.set(value);
        }
        let (block, blocks) = (sqe.slba(), u64::from(command.cdw10[2] as u16) + 1);
        match (NvmOpcode(command.opcode), data) {
            (NvmOpcode::READ | NvmOpcode::VERIFY, _) => zones.read(block, blocks).map(|()| None),
            (NvmOpcode::WRITE | NvmOpcode::WRITE_ZEROES, _) => zones.write(block, blocks).map(|()| None),
            (NvmOpcode::ZONE_APPEND, _) => zones.append(block, blocks).map(Some),
            (NvmOpcode::ZONE_MANAGEMENT_SEND, None) => {
                for index in zones.manage(&ZoneSendFields::of(&sqe))? {
                    let (block, blocks) = zones.blocks(index);
                    self.memory.zero((block as usize) << self.shift, (blocks as usize) << self.shift);
                }
                Ok(None)
            }
            (NvmOpcode::ZONE_MANAGEMENT_RECEIVE, Some(data)) => {
                data.copy_from_slice(&zones.report(&ZoneReceiveFields::of(&sqe))?);
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// The answer, and dwords 0 and 1 of it.
    fn carry_out(&self, command: &Command, data: &mut Option<Buf>) -> (Answer, u64) {
        match self.zones(command, data) {
            Ok(at) => (self.carry_out_at(command, at, data), at.unwrap_or(0)),
            Err(code) => (Answer::Status(code.dnr().0), 0),
        }
    }

    fn carry_out_at(&self, command: &Command, at: Option<u64>, data: &mut Option<Buf>) -> Answer {
        let errno = self.errno.load(Ordering::Relaxed);
        if errno != 0 {
            return Answer::Errno(errno as i32);
        }
        let number = self.commands.fetch_add(1, Ordering::Relaxed) + 1;
        if self.undone != 0 && number.is_multiple_of(self.undone) {
            return Answer::Errno(libc::EINTR);
        }
        assert_eq!(command.nsid, NSID);
        let block = at.unwrap_or(u64::from(command.cdw10[0]) | u64::from(command.cdw10[1]) << 32);
        let blocks = usize::from(command.cdw10[2] as u16) + 1;
        let (offset, len) = ((block as usize) << self.shift, blocks << self.shift);
        let opcode = NvmOpcode(command.opcode);
        if matches!(opcode, NvmOpcode::READ | NvmOpcode::WRITE | NvmOpcode::COMPARE) {
            assert_eq!(data.as_ref().map(|data| data.len()), Some(len), "{command:?}");
        }
        match (opcode, data) {
            (NvmOpcode::FLUSH, None) => {
                self.flushes.fetch_add(1, Ordering::Relaxed);
            }
            (NvmOpcode::READ, Some(data)) => self.memory.read(offset, data),
            (NvmOpcode::WRITE | NvmOpcode::ZONE_APPEND, Some(data)) => self.memory.write(offset, data),
            (NvmOpcode::ZONE_MANAGEMENT_SEND, None) | (NvmOpcode::ZONE_MANAGEMENT_RECEIVE, Some(_)) => {}
            (NvmOpcode::COMPARE, Some(data)) => {
                if self.memory.compare(offset, data).is_err() {
                    return Answer::Status(StatusCode::COMPARE_FAILURE.dnr().0);
                }
            }
            (NvmOpcode::WRITE_ZEROES, None) => self.memory.zero(offset, len),
            (NvmOpcode::VERIFY, None) => {
                assert!(offset + len <= SIZE && command.cdw10[2] >> 16 == 0, "{command:?}");
                self.verifies.fetch_add(1, Ordering::Relaxed);
                match self.verify_errno.load(Ordering::Relaxed) {
                    0 => {}
                    errno => return Answer::Errno(errno as i32),
                }
            }
            (NvmOpcode::DATASET_MANAGEMENT, Some(data)) => {
                let range = DsmRange::read_from_bytes(data).expect("one range");
                assert_eq!(command.cdw10[..2], [0, 4], "one range, to deallocate");
                self.memory
                    .zero((range.slba.get() as usize) << self.shift, (range.blocks.get() as usize) << self.shift);
            }
            (opcode, data) => panic!("{opcode:?} with {data:?}"),
        }
        Answer::Status(0)
    }
}

impl Rings for Arc<Disk> {
    type Ring = StandIn;

    fn ring(&self, _: &Reactor) -> io::Result<StandIn> {
        let (queued, counters) = Default::default();
        Ok(StandIn { disk: self.clone(), queued, gone: VecDeque::new(), counters })
    }
}

/// Carries out what was handed over, half of it with each look.
struct StandIn {
    disk: Arc<Disk>,
    queued: Vec<(Command, Option<Buf>, Io)>,
    gone: VecDeque<(Command, Option<Buf>, Io)>,
    counters: Counters,
}

impl CommandRing<Io> for StandIn {
    fn start(&mut self, command: &Command, data: Option<Buf>, carried: Io) -> Result<(), (Option<Buf>, Io)> {
        if self.in_flight() == self.disk.depth {
            return Err((data, carried));
        }
        self.counters.started += 1;
        self.queued.push((*command, data, carried));
        Ok(())
    }

    fn flush(&mut self) {
        self.counters.enters += u64::from(!self.queued.is_empty());
        self.gone.extend(self.queued.drain(..));
    }

    fn reap(&mut self, ended: &mut Vec<Ended<Io>>) {
        for round in 0..self.gone.len().div_ceil(2) {
            // From both ends: the last may be the first.
            let next = if round % 2 == 0 { self.gone.pop_back() } else { self.gone.pop_front() };
            let Some((command, mut data, carried)) = next else { return };
            assert_eq!(carried.data.count(), 0, "the data is with the ring");
            let (answer, result) = self.disk.carry_out(&command, &mut data);
            ended.push(Ended { carried, data, answer, result });
        }
    }

    fn in_flight(&self) -> usize {
        self.queued.len() + self.gone.len()
    }

    fn arm(&mut self) -> bool {
        self.in_flight() == 0
    }

    fn disarm(&mut self) {}

    fn counters(&self) -> Counters {
        self.counters
    }
}

/// What the namespace's controller says: `oncs` are its optional commands.
fn geometry(disk: &Disk, oncs: u16, deac: bool) -> Geometry {
    let (mut controller, mut namespace) = (IdentifyController::new_zeroed(), IdentifyNamespace::new_zeroed());
    controller.oncs.set(oncs);
    (controller.vwc, controller.mdts) = (VWC_PRESENT, 5);
    namespace.nsze.set((SIZE >> disk.shift) as u64);
    namespace.lbaf[0].lbads = disk.shift;
    // Deallocated blocks read as zeros, and Write Zeroes may deallocate.
    namespace.dlfeat = if deac { 9 } else { 1 };
    let (cap, controller, namespace) = (Cap(0), &controller, &namespace);
    let (mut its, all) = (IdentifyNamespaceZoned::new_zeroed(), IdentifyControllerZoned::new_zeroed());
    if let Some(zones) = &disk.zones {
        let options = zones.lock().expect("no test panics with it").options().clone();
        its.lbafe[0].zsze.set(options.blocks);
        its.mor_z.set(options.open_max.map_or(u32::MAX, |most| most - 1));
        its.mar_z.set(options.active_max.map_or(u32::MAX, |most| most - 1));
    }
    let zoned = disk.zones.as_ref().map(|_| (&its, &all));
    let identified = Identified { nsid: NSID, cap, controller, namespace, limits: None, zoned };
    Geometry::new(&identified, 128 << 10, 2).expect("a namespace that can be used")
}

fn volume(disk: &Arc<Disk>, oncs: u16, deac: bool) -> Arc<dyn BlockDevice> {
    let how = (geometry(disk, oncs, deac), &IdentifyController::new_zeroed());
    Arc::new(Passed::new(("ng".to_owned(), [7; 16], 0), disk.clone(), how, Duration::from_secs(30)))
}

const ALL: u16 = ONCS_COMPARE | ONCS_DSM | ONCS_WRITE_ZEROES | ONCS_VERIFY;

#[test]
fn conforms() {
    conformance::run(|| volume(&Disk::new(9, 64, 0), ALL, true), &Options::default());
}

#[test]
fn conforms_with_little_room_and_commands_that_do_little() {
    // Unmap takes two commands, one of them with a range; compare takes a read.
    conformance::run(|| volume(&Disk::new(12, 3, 0), ONCS_DSM | ONCS_WRITE_ZEROES, false), &Options::default());
}

#[test]
fn zones_conform() {
    conformance::run(|| volume(&Disk::zoned(12, 64, 0), ONCS_WRITE_ZEROES | ONCS_VERIFY, true), &Options::default());
}

#[test]
fn zones_conform_with_little_room() {
    conformance::run(|| volume(&Disk::zoned(9, 3, 0), 0, true), &Options::default());
}

#[test]
fn what_a_reset_of_the_kernel_ended_is_not_written_to_a_zone_again() {
    let disk = Disk::zoned(9, 64, 0);
    let one = One::new(&volume(&disk, ALL, true));
    disk.errno.store(libc::EINTR as usize, Ordering::Relaxed);
    for (op, len) in [(IoOp::Write, 512), (IoOp::ZoneAppend, 1024)] {
        assert_eq!(one.run(op, 0, len, &pattern(1, len as usize)).status, IoStatus::Aborted, "{op:?}");
    }
    disk.errno.store(0, Ordering::Relaxed);
    // The stand-in has moved the pointer before it said so: once for each.
    let done = one.run(IoOp::ZoneAppend, 0, 512, &pattern(2, 512));
    assert_eq!((done.status, done.info), (IoStatus::Success, 1536));
    one.close();
}

#[test]
fn what_a_reset_of_the_kernel_ended_is_done_again() {
    let disk = Disk::new(9, 64, 7);
    let one = One::new(&volume(&disk, ALL, true));
    for at in 0..10 {
        one.write(at * 4096, &pattern(at, 4096));
    }
    for at in 0..10 {
        assert_eq!(one.read(at * 4096, 4096), pattern(at, 4096), "block {at}");
    }
    assert!(disk.commands.load(Ordering::Relaxed) > 20, "some were ended undone");
    one.close();
}

#[test]
fn a_disk_that_the_kernel_lost_is_gone_and_other_errors_are_errors() {
    let disk = Disk::new(9, 64, 0);
    let one = One::new(&volume(&disk, ALL, true));
    for (errno, status) in [
        (libc::ENODEV, IoStatus::Gone),
        (libc::EIO, IoStatus::DeviceError),
        (libc::EACCES, IoStatus::Unsupported),
        (0, IoStatus::Success),
    ] {
        disk.errno.store(errno as usize, Ordering::Relaxed);
        let done = one.run(IoOp::Read, 0, 1024, &[0xaa; 1024]);
        assert_eq!(
            (done.status, done.data),
            (status, vec![0; 1024]),
            "errno {errno}: nothing of a failed read is shown"
        );
    }
    one.close();
}

#[test]
fn data_in_several_buffers_is_written_whole_and_a_flush_reaches_the_disk() {
    let disk = Disk::new(9, 64, 0);
    let one = One::new(&volume(&disk, ALL, true));
    let data = pattern(1, 8192);
    let done = one.end(one.io(IoOp::Write, 512, 8192, &data, &[100, 4096]));
    assert_eq!(done.status, IoStatus::Success);
    assert_eq!(one.status(IoOp::Flush, 0, 0), IoStatus::Success);
    disk.memory.compare(512, &data).expect("all of it, where it belongs");
    assert_eq!(disk.flushes.load(Ordering::Relaxed), 1);
    one.close();
}

#[test]
fn a_verify_that_the_kernel_does_not_pass_on_is_reads() {
    for errno in [0, libc::EACCES] {
        let disk = Disk::new(9, 64, 0);
        disk.verify_errno.store(errno as usize, Ordering::Relaxed);
        let one = One::new(&volume(&disk, ALL, true));
        for _ in 0..2 {
            assert_eq!(one.status(IoOp::Verify, 512, 1 << 20), IoStatus::Success);
        }
        let (verifies, all) = (disk.verifies.load(Ordering::Relaxed), disk.commands.load(Ordering::Relaxed));
        // Without a right to it, 16 reads of 64 KiB each time, and no second attempt.
        assert_eq!((verifies, all), if errno == 0 { (2, 2) } else { (1, 1 + 2 * 16) });
        one.close();
    }
}
