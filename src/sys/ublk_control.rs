//! The ring that carries control commands to /dev/ublk-control. For control threads alone: a call waits for the kernel.
//!
//! These commands need submission entries of 128 bytes, and the kernel runs them on threads of its own, because they may sleep.
//! Each goes out with a timer linked to it. When the timer ends first, the kernel interrupts the command, so that one that
//! only waits (for a server, for the last user to go) ends; one that cannot be interrupted goes on, and its buffer stays here
//! until the kernel has answered.
#![expect(unsafe_code, reason = "submission entries hold the addresses of buffers")]

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use zerocopy::IntoBytes;

use super::uring::{self, SetupError};
use crate::ublk::wire::{self, CtrlCmd};

/// The device that takes control commands.
pub const CONTROL_DEVICE: &str = "/dev/ublk-control";

/// Submission entries: a command and its timer at a time. The completion queue is twice as long, for what ends later.
const ENTRIES: u32 = 8;

/// Bytes of a submission entry that belong to the command.
const AREA: usize = 80;

/// Commands whose only address is that of their buffer. Others make the kernel look at memory that nobody here owns.
const CALLS: [u32; 16] = [
    wire::U_CMD_GET_QUEUE_AFFINITY,
    wire::U_CMD_GET_DEV_INFO,
    wire::U_CMD_ADD_DEV,
    wire::U_CMD_DEL_DEV,
    wire::U_CMD_START_DEV,
    wire::U_CMD_STOP_DEV,
    wire::U_CMD_SET_PARAMS,
    wire::U_CMD_GET_PARAMS,
    wire::U_CMD_START_USER_RECOVERY,
    wire::U_CMD_END_USER_RECOVERY,
    wire::U_CMD_GET_DEV_INFO2,
    wire::U_CMD_GET_FEATURES,
    wire::U_CMD_DEL_DEV_ASYNC,
    wire::U_CMD_UPDATE_SIZE,
    wire::U_CMD_QUIESCE_DEV,
    wire::U_CMD_TRY_STOP_DEV,
];

/// Why there is no control ring.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The control device cannot be opened.
    #[error("{CONTROL_DEVICE}: {0}")]
    Device(io::Error),
    /// No io_uring at all.
    #[error(transparent)]
    Ring(#[from] SetupError),
    /// No submission entries of 128 bytes.
    #[error("io_uring has no submission entries of 128 bytes (Linux 5.19 or newer is needed)")]
    NoWideEntries,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The kernel has not answered in time, and was told to give up. It may still carry the command out.
    #[error("the kernel has not answered in time")]
    TimedOut,
    /// io_uring_enter failed.
    #[error("the control ring has failed: {0}")]
    Ring(io::Error),
    /// More than a command can say.
    #[error("a buffer of {0} bytes is too long for a command (65535)")]
    TooLong(usize),
    /// Not a control command, or one that would make the kernel use memory other than its buffer.
    #[error("{0:#x} is not among the control commands that a ring carries")]
    NotCarried(u32),
}

/// What a completion means.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    /// The kernel's answer to a call, and its buffer.
    Answer(u64, i32, Box<[u8]>),
    /// The time of a call is over.
    Expired(u64),
}

/// Buffers of calls in flight. The kernel may touch each until its completion.
#[derive(Debug, Default)]
struct Calls {
    next: u64,
    held: BTreeMap<u64, Box<[u8]>>,
}

impl Calls {
    /// Takes the buffer of a new call; returns the number of the call and the buffer's address, 0 if it is empty.
    fn begin(&mut self, mut buffer: Box<[u8]>) -> (u64, u64) {
        let id = self.next;
        self.next += 1;
        // A box may move; what it holds stays where it is.
        let addr = if buffer.is_empty() { 0 } else { buffer.as_mut_ptr().expose_provenance() as u64 };
        self.held.insert(id, buffer);
        (id, addr)
    }

    /// What the kernel carries for the command of a call, and for its timer.
    fn user_data(id: u64) -> (u64, u64) {
        (id << 1, id << 1 | 1)
    }

    /// `None`: a timer that ended with its command, or nothing that is known.
    fn end(&mut self, user_data: u64, result: i32) -> Option<Ended> {
        let id = user_data >> 1;
        if user_data & 1 == 1 {
            return (result != -libc::ECANCELED).then_some(Ended::Expired(id));
        }
        self.held.remove(&id).map(|buffer| Ended::Answer(id, result, buffer))
    }
}

/// A ring to /dev/ublk-control, with all that is in flight on it. Not for reactors: calls wait.
pub struct ControlRing {
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    device: File,
    calls: Calls,
}

impl ControlRing {
    /// Opens the control device.
    ///
    /// # Errors
    /// If it is not there or not allowed, or if io_uring is refused.
    pub fn open() -> Result<ControlRing, OpenError> {
        let device = OpenOptions::new().read(true).write(true).open(CONTROL_DEVICE).map_err(OpenError::Device)?;
        ControlRing::on(device)
    }

    fn on(device: File) -> Result<ControlRing, OpenError> {
        match new_ring() {
            Ok(ring) => Ok(ControlRing { ring, device, calls: Calls::default() }),
            Err(error) => {
                uring::probe()?;
                match error.raw_os_error() {
                    Some(libc::EINVAL) => Err(OpenError::NoWideEntries),
                    _ => Err(SetupError::Other(error).into()),
                }
            }
        }
    }

    /// Sends command `op` with `buffer`, whose place and length go into `cmd`, and waits at most `limit` for the answer: what
    /// the kernel says, 0 or more, or a negative errno; and the buffer.
    ///
    /// # Errors
    /// If there is no answer. The buffer is gone then; it stays with the ring for as long as the kernel may use it. After
    /// [`CallError::TimedOut`] the command may have been carried out, not at all, or be so later.
    pub fn call(
        &mut self,
        op: u32,
        mut cmd: CtrlCmd,
        buffer: Box<[u8]>,
        limit: Duration,
    ) -> Result<(i32, Box<[u8]>), CallError> {
        if !CALLS.contains(&op) {
            return Err(CallError::NotCarried(op));
        }
        cmd.len = u16::try_from(buffer.len()).map_err(|_| CallError::TooLong(buffer.len()))?;
        if !self.ring.submission().is_empty() {
            self.renew().map_err(CallError::Ring)?;
        }
        // What ended since the last call.
        self.reap(None);
        let (id, addr) = self.calls.begin(buffer);
        cmd.addr = addr;
        let mut area = [0; AREA];
        area[..size_of::<CtrlCmd>()].copy_from_slice(cmd.as_bytes());
        let (command, timer) = Calls::user_data(id);
        let command =
            opcode::UringCmd80::new(types::Fd(self.device.as_raw_fd()), op).cmd(area).build().user_data(command);
        let limit = types::Timespec::from(limit);
        let timer = opcode::LinkTimeout::new(&raw const limit).build().user_data(timer);
        let entries = [command.flags(squeue::Flags::IO_LINK), timer.into()];
        // SAFETY: the command uses no memory but its buffer, as `CALLS` says, within its length; `calls` owns it until the
        // completion. The kernel reads the timer's limit when it takes the entry, while this function runs: entries that it
        // has not taken by its end are never handed over, since a later call closes the ring before it enters one.
        unsafe { self.ring.submission().push_multiple(&entries) }.expect("an empty queue has room for two");
        loop {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(CallError::Ring(error)),
            }
            match self.reap(Some(id)) {
                // Nothing interrupts the kernel's own threads but the timer.
                Some(Ended::Answer(_, result, _)) if matches!(-result, libc::EINTR | libc::ECANCELED) => {
                    return Err(CallError::TimedOut);
                }
                Some(Ended::Answer(_, result, buffer)) => return Ok((result, buffer)),
                Some(Ended::Expired(_)) => return Err(CallError::TimedOut),
                None => {}
            }
        }
    }

    /// Another ring in place of one that could not be entered: what an earlier call has left in its queue must not be carried out
    /// later.
    fn renew(&mut self) -> io::Result<()> {
        let fresh = new_ring()?;
        self.reap(None);
        self.ring = fresh;
        // No completion of the old ring is seen any more, and the kernel may still write to the buffers.
        std::mem::take(&mut self.calls.held).into_values().for_each(std::mem::forget);
        Ok(())
    }

    /// Takes all completions. Returns what they say about call `wanted`, its answer if there is one; what belongs to calls
    /// that timed out before is dropped.
    fn reap(&mut self, wanted: Option<u64>) -> Option<Ended> {
        let mut found = None;
        for entry in self.ring.completion() {
            match self.calls.end(entry.user_data(), entry.result()) {
                Some(answer @ Ended::Answer(id, ..)) if Some(id) == wanted => found = Some(answer),
                Some(expired @ Ended::Expired(id)) if Some(id) == wanted => found = found.or(Some(expired)),
                _ => {}
            }
        }
        found
    }
}

fn new_ring() -> io::Result<IoUring<squeue::Entry128, cqueue::Entry>> {
    IoUring::builder().build(ENTRIES)
}

impl Drop for ControlRing {
    /// Leaks the buffers of calls in flight: the kernel may still write them.
    fn drop(&mut self) {
        self.reap(None);
        std::mem::take(&mut self.calls.held).into_values().for_each(std::mem::forget);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    /// A ring to what takes every command, or refuses it, at once.
    fn to_null() -> ControlRing {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null").unwrap();
        ControlRing::on(null).unwrap()
    }

    #[test]
    fn a_call_gives_back_its_buffer() {
        let mut ring = to_null();
        for n in 0..100 {
            let buffer = vec![n; usize::from(n)].into_boxed_slice();
            let (result, back) = ring.call(wire::U_CMD_ADD_DEV, CtrlCmd::new(0), buffer, LIMIT).unwrap();
            // Since Linux 6.6 it takes commands.
            assert!(matches!(result, 0 | -95), "{result}");
            assert_eq!(*back, vec![n; usize::from(n)]);
            assert!(ring.calls.held.is_empty());
        }
    }

    #[test]
    fn a_ring_that_could_not_be_entered_is_made_anew() {
        let mut ring = to_null();
        // What a failed enter leaves behind: an entry in the queue, and a call in flight.
        let left: squeue::Entry128 = opcode::Nop::new().build().user_data(77 << 1).into();
        // SAFETY: it uses no memory.
        unsafe { ring.ring.submission().push(&left) }.unwrap();
        ring.calls.begin(vec![1; 8].into());
        for turn in 0..3 {
            let (_, back) = ring.call(wire::U_CMD_ADD_DEV, CtrlCmd::new(0), vec![turn; 8].into(), LIMIT).unwrap();
            assert_eq!(*back, [turn; 8]);
        }
        assert!(ring.ring.submission().is_empty() && ring.calls.held.is_empty());
    }

    #[test]
    fn commands_with_other_addresses_are_not_carried() {
        let mut ring = to_null();
        for op in [wire::U_CMD_REG_BUF, wire::U_CMD_UNREG_BUF, wire::U_IO_FETCH_REQ, 0x06, 0] {
            let answer = ring.call(op, CtrlCmd::new(0), Box::default(), LIMIT);
            assert!(matches!(answer, Err(CallError::NotCarried(refused)) if refused == op), "{answer:?}");
        }
        let answer = ring.call(wire::U_CMD_ADD_DEV, CtrlCmd::new(0), vec![0; 65_536].into(), LIMIT);
        assert!(matches!(answer, Err(CallError::TooLong(65_536))), "{answer:?}");
        assert!(ring.calls.held.is_empty());
    }

    #[test]
    fn completions_find_their_call_however_late() {
        let mut calls = Calls::default();
        let ((first, _), (second, addr)) = (calls.begin(vec![1; 8].into()), calls.begin(vec![2; 8].into()));
        assert_eq!(calls.held[&second].as_ptr().addr() as u64, addr);
        let ((command, timer), (other, _)) = (Calls::user_data(first), Calls::user_data(second));
        assert_eq!(calls.end(timer, -libc::ETIME), Some(Ended::Expired(first)));
        assert_eq!(calls.end(other, 3), Some(Ended::Answer(second, 3, vec![2; 8].into())));
        assert_eq!(calls.end(command, -libc::EINTR), Some(Ended::Answer(first, -libc::EINTR, vec![1; 8].into())));
        // Once only; a timer that ended with its command says nothing.
        assert_eq!(calls.end(command, 0), None);
        assert_eq!(calls.end(timer, -libc::ECANCELED), None);
        let (third, addr) = calls.begin(Box::default());
        assert!(third > second && addr == 0, "numbers are not used again");
    }

    #[test]
    fn a_command_that_ends_with_its_timer_is_an_answer() {
        let mut calls = Calls::default();
        let (id, _) = calls.begin(vec![7; 8].into());
        let (command, timer) = Calls::user_data(id);
        let ended = [calls.end(timer, -libc::EALREADY), calls.end(command, 0)];
        assert_eq!(ended, [Some(Ended::Expired(id)), Some(Ended::Answer(id, 0, vec![7; 8].into()))]);
    }
}
