//! NVMe commands by way of the kernel's driver: the character device of a namespace (`/dev/ngXnY`) and a ring of its own for it.
//!
//! The kernel wants submission entries of 128 bytes and completion entries of 32 for them, which the ring of a reactor does not
//! have. The calling thread alone uses a ring; the kernel tells it nothing while it polls, and rings its doorbell while it sleeps.
#![expect(unsafe_code, reason = "submission entries and ioctl structures hold addresses")]

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use hugepages::Buf;
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};
use zerocopy::{Immutable, IntoBytes};

use super::socket::Doorbell;
use super::tsc::monotonic_ns;

/// `NVME_URING_CMD_IO`: an I/O command of a namespace.
const URING_CMD_IO: u32 = 0xC048_4E80;
/// `NVME_IOCTL_ADMIN_CMD`: an admin command of its controller.
const IOCTL_ADMIN_CMD: libc::Ioctl = 0xC048_4E41_u32.cast_signed() as libc::Ioctl;
/// Opcodes and fields of what this file asks by itself (Base §5.17, NVM §3.2.4).
const READ: u8 = 0x02;
const IDENTIFY: u8 = 0x06;
/// Bytes of Identify data.
pub const IDENTIFY_LEN: usize = 4096;
/// Most of a block that [`try_read`] reads.
const BLOCK_MAX: usize = 4096;
/// How long a ring that is dropped waits for what is in flight.
const LAST_WAIT_NS: u64 = 2_000_000_000;
/// Bits of a ring's own word that name the slot; the others are its generation.
const SLOT_BITS: u32 = 16;

/// A command without identifier and data pointer, which are the kernel's; nothing of it is fused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Command {
    /// Opcode of the NVM command set.
    pub opcode: u8,
    /// Namespace identifier: that of the device.
    pub nsid: u32,
    /// Command dwords 2 and 3.
    pub cdw2: [u32; 2],
    /// Command dwords 10 to 15.
    pub cdw10: [u32; 6],
}

/// `struct nvme_uring_cmd`, and with the result in its last word `struct nvme_passthru_cmd`.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
struct Passed {
    opcode: u8,
    flags: u8,
    reserved: u16,
    nsid: u32,
    cdw2: [u32; 2],
    metadata: u64,
    address: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10: [u32; 6],
    timeout_ms: u32,
    result: u32,
}

const _: () = assert!(size_of::<Passed>() == 72);

impl Passed {
    fn new(command: &Command, (address, data_len): (u64, u32), timeout_ms: u32) -> Passed {
        let Command { opcode, nsid, cdw2, cdw10 } = *command;
        let (flags, reserved, metadata, metadata_len, result) = (0, 0, 0, 0, 0);
        Passed {
            opcode,
            flags,
            reserved,
            nsid,
            cdw2,
            metadata,
            address,
            metadata_len,
            data_len,
            cdw10,
            timeout_ms,
            result,
        }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The controller's status field, bits 14:0; 0 for success.
    Status(u16),
    /// The kernel has not carried it out, or not to its end: an errno.
    Errno(i32),
}

impl Answer {
    fn of(result: i32) -> Answer {
        if result < 0 { Answer::Errno(-result) } else { Answer::Status(result as u16 & 0x7FFF) }
    }
}

/// A command that has ended, with what was given with it.
#[derive(Debug)]
pub struct Ended<T> {
    /// What travelled along.
    pub carried: T,
    /// Its data.
    pub data: Option<Buf>,
    /// How it ended.
    pub answer: Answer,
    /// Dwords 0 and 1 of the completion, of commands that say something there.
    pub result: u64,
}

/// What a ring has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Calls into the kernel.
    pub enters: u64,
    /// Commands taken.
    pub started: u64,
    /// Completions of no command in flight: a defect.
    pub stale: u64,
}

/// A queue that takes NVMe commands for one namespace. What it takes stays with it until the command has ended.
pub trait CommandRing<T>: 'static {
    /// Takes a command whose data, if it has any, is all of `data`: exactly as many bytes as the command moves. It goes to the
    /// kernel with the next [`CommandRing::flush`].
    ///
    /// # Errors
    /// All of it, if as many commands are in flight as there may be.
    fn start(&mut self, command: &Command, data: Option<Buf>, carried: T) -> Result<(), (Option<Buf>, T)>;

    /// Hands over what was started, by at most one call.
    fn flush(&mut self);

    /// Appends what has ended.
    fn reap(&mut self, ended: &mut Vec<Ended<T>>);

    /// Commands that were started and have not been reaped.
    fn in_flight(&self) -> usize;

    /// Has what ends from now on ring the doorbell; `false`, and nothing rings, if something has ended already.
    fn arm(&mut self) -> bool;

    /// Nothing rings any more.
    fn disarm(&mut self);

    /// Its counters.
    fn counters(&self) -> Counters;
}

struct Slot<T> {
    /// While a command is in flight.
    held: Option<(T, Option<Buf>)>,
    generation: u32,
}

type Ring = IoUring<squeue::Entry128, cqueue::Entry32>;

/// The ring of a namespace on one thread.
pub struct NvmeRing<T> {
    ring: ManuallyDrop<Ring>,
    device: OwnedFd,
    slots: ManuallyDrop<Vec<Slot<T>>>,
    free: Vec<u16>,
    timeout_ms: u32,
    counters: Counters,
    /// Entries that the kernel has not taken yet.
    queued: u32,
}

/// The best ring that this kernel makes.
fn ring(depth: u16) -> io::Result<Ring> {
    // From the best to the plainest; each step down is a kernel that refused the one before with EINVAL.
    for level in 0..3 {
        let mut builder = IoUring::<squeue::Entry128, cqueue::Entry32>::builder();
        if level < 2 {
            builder.setup_submit_all().setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        }
        if level < 1 {
            builder.setup_no_sqarray();
        }
        match builder.build(u32::from(depth).next_power_of_two()) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && level < 2 => {}
            made => return made,
        }
    }
    unreachable!("the plainest ring is either made or refused for good")
}

impl<T> NvmeRing<T> {
    /// A ring for the calling thread and at most `depth` commands in flight on the character device of a namespace, which the
    /// kernel's driver aborts after `timeout`. While it is armed the kernel rings `doorbell`.
    ///
    /// # Errors
    /// What io_uring_setup(2) says; EINVAL before Linux 5.19.
    ///
    /// # Panics
    /// If `depth` is 0.
    pub fn new(device: &File, depth: u16, timeout: Duration, doorbell: &Doorbell) -> io::Result<NvmeRing<T>> {
        assert!(depth > 0, "a ring for nothing");
        let ring = ring(depth)?;
        // The kernel counts its events from here on; the descriptor may be closed.
        ring.submitter().register_eventfd(doorbell.descriptor()?.as_raw_fd())?;
        let mut this = NvmeRing {
            ring: ManuallyDrop::new(ring),
            device: device.try_clone()?.into(),
            slots: ManuallyDrop::new((0..depth).map(|_| Slot { held: None, generation: 0 }).collect()),
            free: (0..depth).rev().collect(),
            timeout_ms: u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX),
            counters: Counters::default(),
            queued: 0,
        };
        this.ring.completion().disable_eventfd();
        Ok(this)
    }

    fn enter(&mut self, at_least: u32, wait: Option<&types::Timespec>) {
        self.counters.enters += 1;
        let flags = EnterFlags::GETEVENTS;
        let submitter = self.ring.submitter();
        let result = match wait {
            // SAFETY: no signal mask is passed; the entries queued are vouched for by `start`.
            None => unsafe { submitter.enter::<libc::sigset_t>(self.queued, at_least, flags.bits(), None) },
            Some(time) => {
                let args = types::SubmitArgs::new().timespec(time);
                let flags = (flags | EnterFlags::EXT_ARG).bits();
                // SAFETY: as above; the time outlives the call.
                unsafe { submitter.enter(self.queued, at_least, flags, Some(&args)) }
            }
        };
        // EINTR, EAGAIN and EBUSY leave the entries queued for the next call; ETIME is the end of a wait.
        if let Err(error) = result {
            let code = error.raw_os_error();
            let known = matches!(code, Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME));
            assert!(known, "io_uring_enter failed: {error}");
        }
        self.queued = self.ring.submission().len() as u32;
    }

    /// Whether the kernel has something that only a call brings. It may say so and have nothing: it queues work, and then raises the flag,
    /// which lowers itself only when there is work to be done. With nothing in flight it has nothing.
    #[inline]
    fn needs_call(&mut self) -> bool {
        let in_flight = self.free.len() < self.slots.len();
        let queue = self.ring.submission();
        in_flight && (queue.taskrun() || queue.cq_overflow())
    }
}

impl<T: 'static> CommandRing<T> for NvmeRing<T> {
    #[inline]
    fn start(&mut self, command: &Command, data: Option<Buf>, carried: T) -> Result<(), (Option<Buf>, T)> {
        let Some(index) = self.free.pop() else {
            return Err((data, carried));
        };
        let slot = &mut self.slots[usize::from(index)];
        slot.generation = slot.generation.wrapping_add(1);
        let word = u64::from(slot.generation) << SLOT_BITS | u64::from(index);
        let (_, data) = slot.held.insert((carried, data));
        let place = data.as_mut().map_or((0, 0), |data| (data.as_mut_ptr() as u64, data.len() as u32));
        let mut bytes = [0; 80];
        bytes[..size_of::<Passed>()].copy_from_slice(Passed::new(command, place, self.timeout_ms).as_bytes());
        let fd = types::Fd(self.device.as_raw_fd());
        let entry = opcode::UringCmd80::new(fd, URING_CMD_IO).cmd(bytes).build().user_data(word);
        // SAFETY: the buffer that the entry names is in the slot until its completion is reaped, and is leaked with the ring if
        // that does not come; the kernel bounds what is moved by the length given here.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        assert!(pushed.is_ok(), "there are as many entries as slots");
        self.queued += 1;
        self.counters.started += 1;
        Ok(())
    }

    #[inline]
    fn flush(&mut self) {
        if self.queued > 0 {
            self.enter(0, None);
        }
    }

    #[inline]
    fn reap(&mut self, ended: &mut Vec<Ended<T>>) {
        if self.queued > 0 || self.needs_call() {
            self.enter(0, None);
        }
        let NvmeRing { ring, slots, free, counters, .. } = self;
        for entry in ring.completion() {
            let (word, answer, result) = (entry.user_data(), Answer::of(entry.result()), entry.big_cqe()[0]);
            let index = word as u16;
            let slot = slots.get_mut(usize::from(index));
            let slot = slot.filter(|slot| u64::from(slot.generation) == word >> SLOT_BITS);
            match slot.and_then(|slot| slot.held.take()) {
                Some((carried, data)) => {
                    free.push(index);
                    ended.push(Ended { carried, data, answer, result });
                }
                None => counters.stale += 1,
            }
        }
    }

    #[inline]
    fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    fn arm(&mut self) -> bool {
        self.ring.completion().enable_eventfd();
        // The kernel stores what ended and then looks at the flag; this side the other way round.
        fence(Ordering::SeqCst);
        if self.needs_call() {
            // If this brings nothing, nothing was there, and what is queued next rings.
            self.enter(0, None);
        }
        let nothing = self.queued == 0 && self.ring.completion().is_empty();
        if !nothing {
            self.disarm();
        }
        nothing
    }

    fn disarm(&mut self) {
        self.ring.completion().disable_eventfd();
    }

    fn counters(&self) -> Counters {
        self.counters
    }
}

impl<T> Drop for NvmeRing<T> {
    /// Waits for what is in flight: nothing calls it back. What the kernel does not give back within two seconds is leaked, as the
    /// device may still write to that memory; so is what travelled along.
    fn drop(&mut self) {
        let deadline = monotonic_ns() + LAST_WAIT_NS;
        let time = types::Timespec::new().nsec(10_000_000);
        while self.free.len() < self.slots.len() && monotonic_ns() < deadline {
            self.enter(1, Some(&time));
            let NvmeRing { ring, slots, free, .. } = self;
            for entry in ring.completion() {
                let index = entry.user_data() as u16;
                let slot = slots.get_mut(usize::from(index));
                if let Some((carried, data)) = slot.and_then(|slot| slot.held.take()) {
                    free.push(index);
                    // Nobody is there to be told.
                    std::mem::forget(carried);
                    drop(data);
                }
            }
        }
        // SAFETY: dropped once, here, and not used again.
        unsafe { ManuallyDrop::drop(&mut self.ring) };
        if self.free.len() == self.slots.len() {
            // SAFETY: as above; nothing is in flight.
            unsafe { ManuallyDrop::drop(&mut self.slots) };
        }
    }
}

/// Reads the first block of a namespace, of `block_size` bytes and at most 4096, by a ring made for this: whether commands can be
/// passed to its controller by this process. Blocks as long as the controller takes, but the kernel's driver bounds that by
/// `timeout`.
///
/// # Errors
/// What io_uring says: EACCES without the right to this command, EOPNOTSUPP, EINVAL or ENOTTY of a kernel that cannot.
pub fn try_read(device: &File, nsid: u32, block_size: u32, timeout: Duration) -> io::Result<Answer> {
    let len = (block_size as usize).min(BLOCK_MAX);
    let mut ring = ring(1)?;
    let mut bytes = vec![0_u8; len];
    let command = Command { opcode: READ, nsid, ..Command::default() };
    let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX);
    let passed = Passed::new(&command, (bytes.as_mut_ptr() as u64, len as u32), timeout_ms);
    let mut field = [0; 80];
    field[..size_of::<Passed>()].copy_from_slice(passed.as_bytes());
    let entry = opcode::UringCmd80::new(types::Fd(device.as_raw_fd()), URING_CMD_IO).cmd(field).build();
    // SAFETY: the memory lives until the command has ended, or for ever.
    let pushed = unsafe { ring.submission().push(&entry) };
    assert!(pushed.is_ok(), "a ring of one entry has room for one");
    let answered = loop {
        match ring.submit_and_wait(1) {
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) => break Err(error),
            Ok(_) => {
                if let Some(entry) = ring.completion().next() {
                    break Ok(entry.result());
                }
            }
        }
    };
    match answered {
        Ok(result) if result < 0 => Err(io::Error::from_raw_os_error(-result)),
        Ok(result) => Ok(Answer::of(result)),
        Err(error) => {
            // It may have been taken all the same.
            std::mem::forget(bytes);
            Err(error)
        }
    }
}

/// Identify data `cns` of a namespace or, with `nsid` 0, of its controller; `csi` is the command set that it is of (Base §5.17).
///
/// # Errors
/// What ioctl(2) says: EACCES without the right to this command. A status of the controller is of the kind `Other`.
pub fn identify(device: &File, cns: u8, nsid: u32, csi: u8) -> io::Result<Box<[u8; IDENTIFY_LEN]>> {
    let mut bytes = Box::new([0; IDENTIFY_LEN]);
    let mut command = Command { opcode: IDENTIFY, nsid, ..Command::default() };
    (command.cdw10[0], command.cdw10[1]) = (u32::from(cns), u32::from(csi) << 24);
    let mut passed = Passed::new(&command, (bytes.as_mut_ptr() as u64, IDENTIFY_LEN as u32), 0);
    // SAFETY: a structure of the size that the number says, and memory that is valid for writes of the length in it; the kernel has
    // let go of both when it returns.
    match unsafe { libc::ioctl(device.as_raw_fd(), IOCTL_ADMIN_CMD, &raw mut passed) } {
        0 => Ok(bytes),
        status if status > 0 => Err(io::Error::other(format!("Identify {cns:#04x}: status {status:#x}"))),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use hugepages::{Arena, Pool};

    use super::*;
    use crate::sys::socket::Eventfd;

    fn pool() -> Pool {
        let pool = Pool::new(0);
        for chunk in Arena::heap(16 << 20).grow(16 << 20).expect("memory") {
            pool.add(chunk);
        }
        pool
    }

    fn doorbell() -> Doorbell {
        Doorbell::Eventfd(Eventfd::new().expect("an eventfd"))
    }

    /// A character device that takes no such commands.
    fn other_device() -> File {
        File::open("/dev/zero").expect("/dev/zero")
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_command_lies_as_the_kernel_reads_it() {
        let command = Command { opcode: 2, nsid: 0x0403_0201, cdw2: [5, 6], cdw10: [10, 11, 12, 13, 14, 15] };
        let passed = Passed::new(&command, (0x1122_3344_5566_7788, 0x99AA_BBCC), 30_000);
        let bytes = passed.as_bytes();
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        assert_eq!((word(0), word(4), word(8), word(12)), (2, 0x0403_0201, 5, 6));
        assert_eq!((word(16), word(20), word(24), word(28)), (0, 0, 0x5566_7788, 0x1122_3344));
        assert_eq!((word(32), word(36)), (0, 0x99AA_BBCC));
        assert_eq!([40, 44, 48, 52, 56, 60].map(word), [10, 11, 12, 13, 14, 15]);
        assert_eq!((word(64), word(68)), (30_000, 0));
    }

    #[test]
    fn a_result_is_a_status_or_an_errno() {
        assert_eq!(Answer::of(0), Answer::Status(0));
        assert_eq!(Answer::of(0x4281), Answer::Status(0x4281));
        assert_eq!(Answer::of(-libc::EACCES), Answer::Errno(libc::EACCES));
    }

    #[test]
    fn another_device_refuses_and_everything_comes_back() {
        let (pool, bell) = (pool(), doorbell());
        let mut ring = NvmeRing::new(&other_device(), 2, SECOND, &bell).expect("a ring");
        let read = Command { opcode: READ, nsid: 1, ..Command::default() };
        let address = |buf: &Option<Buf>| buf.as_ref().map(Buf::address);
        let bufs = [pool.alloc(4096), pool.alloc(4096), None];
        let addresses = bufs.each_ref().map(address);
        for (carried, buf) in bufs.into_iter().enumerate() {
            let taken = ring.start(&read, buf, carried);
            assert_eq!(taken.is_ok(), carried < 2, "two at most are in flight");
        }
        assert_eq!(ring.in_flight(), 2);
        ring.flush();
        let mut ended = Vec::new();
        while ring.in_flight() > 0 {
            ring.reap(&mut ended);
        }
        ended.sort_by_key(|one| one.carried);
        for (carried, one) in ended.iter().enumerate() {
            assert_eq!((one.carried, address(&one.data)), (carried, addresses[carried]));
            assert_eq!(one.answer, Answer::Errno(libc::EOPNOTSUPP));
        }
        assert_eq!(ended.len(), 2);
        let Counters { enters, started, stale } = ring.counters();
        assert_eq!((enters, started, stale), (1, 2, 0), "one call for both");
    }

    #[test]
    fn it_sleeps_only_when_nothing_has_ended() {
        let mut ring = NvmeRing::new(&other_device(), 4, SECOND, &doorbell()).expect("a ring");
        let read = Command { opcode: READ, nsid: 1, ..Command::default() };
        assert!(ring.arm(), "nothing was asked");
        ring.disarm();
        ring.start(&read, None, ()).expect("room");
        assert!(!ring.arm(), "what was started has not gone out");
        ring.flush();
        assert!(!ring.arm(), "the answer is there");
        let mut ended = Vec::new();
        ring.reap(&mut ended);
        assert_eq!(ended.len(), 1);
        assert!(ring.arm());
        ring.disarm();
    }

    #[test]
    fn what_no_namespace_answers_says_so() {
        let refused = try_read(&other_device(), 1, 512, SECOND).expect_err("it takes no commands");
        assert_eq!(refused.raw_os_error(), Some(libc::EOPNOTSUPP));
        let refused = identify(&other_device(), 1, 0, 0).expect_err("it takes no commands");
        assert_eq!(refused.raw_os_error(), Some(libc::ENOTTY));
    }
}
