//! One io_uring per reactor: sockets, files and the doorbell.
//!
//! Everything the kernel may touch is owned by the table of operations in flight from submission to completion:
//! buffers by value, the message header inside its boxed batch, addresses and counters in boxes of their own.
#![expect(unsafe_code, reason = "submission entries hold addresses")]

mod direct;
mod files;
mod rx;
mod setup;
mod table;
mod ublk;

use std::io;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use hugepages::{ChunkInfo, Pool};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue, types};

use super::affinity;
use super::limits::{REAP_BATCH, RING_BUFFERS, RING_FILES, RING_REQUESTS, RING_WORKERS, RX_BUFFER_LEN};
use super::op::{Completion, Ended, FileId, Op, OpToken, Owner, Payload};
use super::socket::{self, Doorbell};
use direct::Direct;
use files::Files;
use rx::RxRing;
pub use setup::{SetupError, probe};
use table::{Held, Refusable, Table};

/// RWF_DSYNC: this write is durable before it completes.
const RWF_DSYNC: i32 = 0x2;

/// For how many turns receives may wait for something that goes along with them.
const WAIT_TURNS: u32 = 4;

/// What a ring did, for the counters of its reactor.
#[derive(Clone, Copy, Debug, Default)]
pub struct RingStats {
    /// Calls into the kernel that handed something over or brought something: of the ring, and direct sends and receives.
    pub enters: u64,
    /// Direct receives that found nothing.
    pub misses: u64,
    /// Operations submitted.
    pub submitted: u64,
    /// Operations completed.
    pub completed: u64,
    /// Completions that had to wait in the kernel's side list: a defect in `limits`.
    pub overflows: u64,
    /// Completions of operations nobody knows: a defect.
    pub stale: u64,
}

/// A ring and all that is in flight on it.
pub struct Uring {
    ring: ManuallyDrop<IoUring>,
    table: ManuallyDrop<Table>,
    files: Files,
    rx: ManuallyDrop<RxRing>,
    doorbell: OwnedFd,
    /// The doorbell's counter, while no read of it is in flight: a wake costs no allocation.
    rung: Option<Box<u64>>,
    registered_chunks: Vec<bool>,
    fixed_buffers: bool,
    answered: Vec<OpToken>,
    /// Free places of the table of buffers for data of requests.
    places: Vec<u16>,
    /// Commits of ublk requests that are queued with their data.
    given: Vec<OpToken>,
    direct: Direct,
    /// Something is queued that must not wait for another turn.
    urgent: bool,
    /// For how many turns the rest of what is queued has waited.
    waited: u32,
    notes: Vec<String>,
    stats: RingStats,
}

impl Uring {
    /// A ring for the calling thread, which alone may use it.
    ///
    /// # Errors
    /// If io_uring is refused, with the setting or filter to look at.
    pub fn new(pool: &Pool, doorbell: &Doorbell) -> Result<Uring, SetupError> {
        let (ring, mut notes) = setup::ring()?;
        let fixed_files = ring.submitter().register_files_sparse(RING_FILES).is_ok();
        let fixed_buffers = match ring.submitter().register_buffers_sparse(RING_BUFFERS + RING_REQUESTS) {
            Ok(()) => true,
            Err(error) => {
                notes.push(format!("no table of registered buffers ({error}): plain reads and writes are used"));
                false
            }
        };
        let mut workers = RING_WORKERS;
        if let Err(error) = ring.submitter().register_iowq_max_workers(&mut workers) {
            notes.push(format!("the kernel's worker threads are not bounded ({error})"));
        }
        let rx = RxRing::new(&ring, pool)?;
        let doorbell = doorbell.descriptor().map_err(SetupError::Doorbell)?;
        Ok(Uring {
            ring: ManuallyDrop::new(ring),
            table: ManuallyDrop::new(Table::default()),
            files: Files::new(fixed_files),
            rx: ManuallyDrop::new(rx),
            doorbell,
            rung: None,
            registered_chunks: Vec::new(),
            fixed_buffers,
            answered: Vec::new(),
            places: if fixed_buffers { request_places() } else { Vec::new() },
            given: Vec::new(),
            direct: Direct::default(),
            urgent: false,
            waited: 0,
            notes,
            stats: RingStats::default(),
        })
    }

    /// Has the kernel's worker threads run on these cores, if there are any: they would otherwise share the core of this thread,
    /// which spins, and wait for the end of its time slice.
    pub fn set_worker_cores(&mut self, cores: &[usize]) {
        if cores.is_empty() {
            return;
        }
        let set = affinity::core_set(cores);
        if let Err(error) = set.and_then(|set| self.ring.submitter().register_iowq_aff(&set)) {
            self.notes.push(format!("the kernel's worker threads share the cores of reactors ({error})"));
        }
    }

    /// What this kernel or this user's limits make slower, a sentence each; handed out once.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Counters since the start.
    pub fn stats(&self) -> RingStats {
        self.stats
    }

    /// Takes a descriptor into the table of this ring.
    pub fn add_file(&mut self, fd: OwnedFd) -> FileId {
        self.files.add(&self.ring, fd)
    }

    /// A second descriptor of the same open file.
    ///
    /// # Errors
    /// EBADF for a stale handle, else what dup(2) says.
    pub fn share_file(&self, file: FileId) -> io::Result<OwnedFd> {
        let fd = self.files.descriptor(file).ok_or(io::Error::from_raw_os_error(libc::EBADF))?;
        fd.try_clone()
    }

    /// Closes a descriptor. Operations in flight keep the open file alive in the kernel until they complete.
    pub fn remove_file(&mut self, file: FileId) {
        if !self.ring.submission().is_empty() {
            // What is queued for it must reach it, and not whoever gets its place.
            self.enter();
        }
        if !self.files.remove(&self.ring, file) {
            self.stats.stale += 1;
        }
    }

    /// An unconnected stream socket that can reach `to`, in the table of this ring.
    ///
    /// # Errors
    /// What socket(2) says.
    pub fn add_socket(&mut self, to: SocketAddr) -> io::Result<FileId> {
        Ok(self.files.add(&self.ring, socket::stream(to)?))
    }

    /// Prepares a connected socket for small answers and says the addresses of both ends: the peer's, then its own.
    ///
    /// # Errors
    /// ENOTCONN if the peer has gone already, EBADF for a stale handle.
    pub fn establish(&self, file: FileId) -> io::Result<(SocketAddr, SocketAddr)> {
        let fd = self.files.descriptor(file).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        socket::no_delay(fd)?;
        Ok((socket::peer(fd)?, socket::local(fd)?))
    }

    /// Registers a chunk of the arena, so that file I/O on its buffers skips the kernel's page look-up.
    /// Where that is refused (RLIMIT_MEMLOCK) plain operations are used, and one note names the remedy.
    pub fn register_chunk(&mut self, chunk: &ChunkInfo) {
        let index = usize::from(chunk.index());
        if !self.fixed_buffers || index >= RING_BUFFERS as usize {
            return;
        }
        let iov =
            [libc::iovec { iov_base: std::ptr::with_exposed_provenance_mut(chunk.address()), iov_len: chunk.len() }];
        // SAFETY: a chunk of the arena is never unmapped while a pool that may hold it lives, and the receive ring holds this
        // reactor's pool until the ring below it is closed.
        match unsafe { self.ring.submitter().register_buffers_update(index as u32, &iov, None) } {
            Ok(()) => {
                if self.registered_chunks.len() <= index {
                    self.registered_chunks.resize(index + 1, false);
                }
                self.registered_chunks[index] = true;
            }
            Err(error) => {
                self.unregister_chunks();
                self.notes.push(format!(
                    "DMA memory is not registered with the kernel ({error}): file I/O takes the slower plain operations; raise the \
                     locked-memory limit (LimitMEMLOCK=infinity for a service, ulimit -l for a shell) or grant CAP_IPC_LOCK"
                ));
            }
        }
    }

    /// Gives back what was registered: some chunks make little faster, and the user's limit is needed for the rings of other
    /// processes. No more are registered.
    fn unregister_chunks(&mut self) {
        self.fixed_buffers = false;
        if !self.ring.submission().is_empty() {
            // What is queued names the chunks by their numbers.
            self.enter();
        }
        let chunks = std::mem::take(&mut self.registered_chunks);
        for index in (0..).zip(chunks).filter_map(|(index, there)| there.then_some(index)) {
            let emptied = self.empty_entries(index, 1);
            debug_assert!(emptied.is_ok(), "a registered buffer cannot be given back: {emptied:?}");
        }
    }

    /// Empties `count` entries of the table of registered buffers, whatever they hold.
    fn empty_entries(&self, first: u32, count: usize) -> io::Result<()> {
        let nothing = vec![libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; count];
        // SAFETY: entries are emptied; the kernel keeps the memory pinned for operations in flight on its own.
        unsafe { self.ring.submitter().register_buffers_update(first, &nothing, None) }
    }

    /// Hands an operation to the kernel with the next [`Uring::flush`] (or now, if the submission queue is full).
    /// A stale [`FileId`] completes with `-EBADF`.
    pub fn submit(&mut self, op: Op, owner: Owner) -> OpToken {
        self.stats.submitted += 1;
        self.urgent |= !matches!(op, Op::Recv { .. } | Op::Doorbell);
        let (token, entry) = match op {
            Op::Recv { file, len } => {
                let Some((fd, flags)) = self.files.target(file) else {
                    return self.refuse(owner, Refusable::Nothing);
                };
                let (token, _) = self.table.insert(owner, Held::Picked(len));
                if self.direct.take(token, file) {
                    return token;
                }
                (token, picking(fd, flags, len))
            }
            Op::Send { file, mut batch } => {
                let Some((fd, flags)) = self.files.target(file) else {
                    return self.refuse(owner, Refusable::Batch(batch));
                };
                batch.describe();
                if let Some(sent) = self.send_directly(file, &batch) {
                    return self.answer(owner, sent, Refusable::Batch(batch));
                }
                let (token, held) = self.table.insert(owner, Held::Batch(batch));
                let Held::Batch(batch) = held else { unreachable!("just inserted") };
                let entry = opcode::SendMsg::new(fd, &raw const batch.message).flags(libc::MSG_NOSIGNAL as u32).build();
                (token, entry.flags(flags))
            }
            Op::RecvInto { file, buf, from } => {
                let Some((fd, flags)) = self.files.target(file) else {
                    return self.refuse(owner, Refusable::Buf(buf));
                };
                let (token, held) = self.table.insert(owner, Held::Filling(buf, from as usize));
                if self.direct.take(token, file) {
                    return token;
                }
                let Held::Filling(buf, from) = held else { unreachable!("just inserted") };
                (token, filling(fd, flags, &mut buf[*from..]))
            }
            Op::Read { file, offset, buf } => {
                let Some((fd, flags)) = self.files.target(file) else {
                    return self.refuse(owner, Refusable::Buf(buf));
                };
                let fixed = self.fixed_index(buf.chunk());
                let (token, held) = self.table.insert(owner, Held::Buf(buf));
                let Held::Buf(buf) = held else { unreachable!("just inserted") };
                let (at, len) = (buf.as_mut_ptr(), buf.len() as u32);
                let entry = match fixed {
                    Some(index) => opcode::ReadFixed::new(fd, at, len, index).offset(offset).build(),
                    None => opcode::Read::new(fd, at, len).offset(offset).build(),
                };
                (token, entry.flags(flags))
            }
            Op::Write { file, offset, buf, durable } => {
                let Some((fd, flags)) = self.files.target(file) else {
                    return self.refuse(owner, Refusable::Buf(buf));
                };
                let fixed = self.fixed_index(buf.chunk());
                let (token, held) = self.table.insert(owner, Held::Buf(buf));
                let Held::Buf(buf) = held else { unreachable!("just inserted") };
                let (at, len) = (buf.as_ptr(), buf.len() as u32);
                let rw_flags = if durable { RWF_DSYNC } else { 0 };
                let entry = match fixed {
                    Some(index) => {
                        opcode::WriteFixed::new(fd, at, len, index).offset(offset).rw_flags(rw_flags).build()
                    }
                    None => opcode::Write::new(fd, at, len).offset(offset).rw_flags(rw_flags).build(),
                };
                (token, entry.flags(flags))
            }
            Op::ReadRequest { file, offset, data } => return self.transfer(owner, file, offset, data, None),
            Op::WriteRequest { file, offset, data, durable } => {
                return self.transfer(owner, file, offset, data, Some(durable));
            }
            Op::Sync { file } => {
                let Some((fd, flags)) = self.files.target(file) else {
                    return self.refuse(owner, Refusable::Nothing);
                };
                let (token, _) = self.table.insert(owner, Held::Nothing);
                (token, opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build().flags(flags))
            }
            Op::Allocate { file, mode, offset, len } => {
                let Some((fd, flags)) = self.files.target(file) else {
                    return self.refuse(owner, Refusable::Nothing);
                };
                let (token, _) = self.table.insert(owner, Held::Nothing);
                (token, opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build().flags(flags))
            }
            Op::Accept { listener } => {
                let Some((fd, flags)) = self.files.target(listener) else {
                    return self.refuse(owner, Refusable::Nothing);
                };
                let (token, _) = self.table.insert(owner, Held::Accept);
                let entry = opcode::Accept::new(fd, std::ptr::null_mut(), std::ptr::null_mut())
                    .flags(libc::SOCK_CLOEXEC)
                    .build();
                (token, entry.flags(flags))
            }
            Op::Connect { file, to } => {
                let Some((fd, flags)) = self.files.target(file) else {
                    return self.refuse(owner, Refusable::Nothing);
                };
                let (address, len) = table::sockaddr(to);
                let (token, held) = self.table.insert(owner, Held::Address(address));
                let Held::Address(address) = held else { unreachable!("just inserted") };
                (token, opcode::Connect::new(fd, (&raw const **address).cast(), len).build().flags(flags))
            }
            Op::Shutdown { file, sending_only } => return self.shut_down(owner, file, sending_only),
            Op::Cancel { target } if self.direct.forget(target) => {
                self.settle(target, -libc::ECANCELED);
                return self.answer(owner, 0, Refusable::Nothing);
            }
            Op::Cancel { target } => {
                let (token, _) = self.table.insert(owner, Held::Nothing);
                (token, opcode::AsyncCancel::new(target.0).build())
            }
            Op::Ublk { file, command } => return self.start_command(file, command, owner),
            Op::Doorbell => {
                let fd = types::Fd(self.doorbell.as_raw_fd());
                let (token, held) = self.table.insert(owner, Held::Doorbell(self.rung.take().unwrap_or_default()));
                let Held::Doorbell(counter) = held else { unreachable!("just inserted") };
                (token, opcode::Read::new(fd, (&raw mut **counter).cast(), 8).build())
            }
        };
        self.push(&entry.user_data(token.0));
        token
    }

    fn refuse(&mut self, owner: Owner, what: Refusable) -> OpToken {
        self.answer(owner, -libc::EBADF, what)
    }

    /// An operation that is over before it got to the ring.
    fn answer(&mut self, owner: Owner, result: i32, what: Refusable) -> OpToken {
        let (token, _) = self.table.insert(owner, Held::Answered(result, what));
        self.answered.push(token);
        token
    }

    /// Shuts a socket down at once. The ring would leave it to a worker thread, which finds the file by its place in the table
    /// when it gets to run: by then that may be another connection's. It would cost a thread, too, for what never waits.
    fn shut_down(&mut self, owner: Owner, file: FileId, sending_only: bool) -> OpToken {
        if !self.ring.submission().is_empty() {
            // What was to be sent before goes first.
            self.enter();
        }
        match self.files.descriptor(file) {
            None => self.refuse(owner, Refusable::Nothing),
            Some(fd) => {
                let errno = socket::shut_down(fd, sending_only).err().and_then(|e| e.raw_os_error()).unwrap_or(0);
                self.answer(owner, -errno, Refusable::Nothing)
            }
        }
    }

    #[inline]
    fn fixed_index(&self, chunk: u16) -> Option<u16> {
        self.registered_chunks.get(usize::from(chunk)).copied().unwrap_or(false).then_some(chunk)
    }

    fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: the addresses in the entry point into what the table of operations just took: arena buffers, or boxes that are
        // neither moved out nor dropped before the completion with this token was reaped (or the ring closed, see Drop).
        while unsafe { self.ring.submission().push(entry) }.is_err() {
            self.enter();
        }
    }

    /// One call into the kernel: submits what is queued and runs the completions that wait for this thread.
    fn enter(&mut self) {
        self.stats.enters += 1;
        (self.urgent, self.waited) = (false, 0);
        let queued = self.ring.submission().len() as u32;
        // SAFETY: no signal mask is passed; the entries queued are vouched for by `push`.
        let result =
            unsafe { self.ring.submitter().enter::<libc::sigset_t>(queued, 0, EnterFlags::GETEVENTS.bits(), None) };
        // EINTR, EAGAIN and EBUSY leave the entries queued for the next call.
        if let Err(error) = result {
            let code = error.raw_os_error();
            assert!(matches!(code, Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)), "io_uring_enter failed: {error}");
        }
        self.release_given();
    }

    /// Refills the receive ring with what the pool has, submits what is queued and lets the kernel post completions; no call
    /// where there is nothing to do. `again`: the next flush comes soon, and what nobody waits for yet may go with that one.
    #[inline]
    pub fn flush(&mut self, again: bool) -> bool {
        self.rx.refill();
        let queue = self.ring.submission();
        let kernel_calls = queue.taskrun() || queue.cq_overflow();
        if queue.is_empty() && !kernel_calls {
            return false;
        }
        drop(queue);
        if again && !self.urgent && !kernel_calls && self.waited < WAIT_TURNS {
            self.waited += 1;
            return false;
        }
        self.enter();
        true
    }

    /// Submits what is queued, then sleeps until a completion arrives or `timeout` passed.
    pub fn wait(&mut self, timeout: Option<Duration>) {
        self.hand_over_all();
        if !self.answered.is_empty() {
            return;
        }
        self.stats.enters += 1;
        (self.urgent, self.waited) = (false, 0);
        let spec = timeout.map(|t| types::Timespec::new().sec(t.as_secs()).nsec(t.subsec_nanos()));
        let mut args = types::SubmitArgs::new();
        if let Some(spec) = &spec {
            args = args.timespec(spec);
        }
        if let Err(error) = self.ring.submitter().submit_with_args(1, &args) {
            let code = error.raw_os_error();
            assert!(
                matches!(code, Some(libc::ETIME | libc::EINTR | libc::EAGAIN | libc::EBUSY)),
                "io_uring_enter failed: {error}"
            );
        }
        self.release_given();
    }

    /// Whether completions are ready to be reaped without a call.
    pub fn has_completions(&mut self) -> bool {
        !self.answered.is_empty() || !self.ring.completion().is_empty()
    }

    /// Moves completions to `out`, at most a batch, and those that carry nothing but a result to `ended`.
    #[inline]
    pub fn reap(&mut self, out: &mut Vec<Completion>, ended: &mut Vec<Ended>) {
        while let Some(token) = self.answered.pop() {
            self.finish(token, 0, 0, out);
        }
        self.receive_directly(out);
        for _ in 0..REAP_BATCH {
            let Some(cqe) = self.ring.completion().next() else {
                break;
            };
            let (token, result, flags) = (OpToken(cqe.user_data()), cqe.result(), cqe.flags());
            match table::owner_of(token) {
                Some(owner) => {
                    self.stats.completed += 1;
                    ended.push(Ended { owner, result });
                }
                None => self.finish(token, result, flags, out),
            }
        }
        let overflow = u64::from(self.ring.completion().overflow());
        self.stats.overflows = overflow;
    }

    fn finish(&mut self, token: OpToken, result: i32, flags: u32, out: &mut Vec<Completion>) {
        let Some((owner, held)) = self.table.remove(token) else {
            self.stats.stale += 1;
            return;
        };
        self.stats.completed += 1;
        let mut result = result;
        let payload = match held {
            Held::Nothing | Held::Address(_) | Held::Ublk(None) => Payload::None,
            Held::Doorbell(counter) => {
                self.rung = Some(counter);
                Payload::None
            }
            Held::Buf(buf) | Held::Filling(buf, _) | Held::Ublk(Some(buf)) => Payload::Buf(buf),
            Held::Batch(batch) => Payload::Batch(batch),
            Held::Request(data) => Payload::Request(data),
            Held::Picked(_) => match cqueue::buffer_select(flags) {
                Some(id) => self.rx.take(id, result.max(0) as usize).map_or(Payload::None, Payload::Buf),
                None => Payload::None,
            },
            // SAFETY: a successful accept returns a fresh descriptor that nobody else knows.
            Held::Accept if result >= 0 => Payload::Fd(unsafe { OwnedFd::from_raw_fd(result) }.into()),
            Held::Accept => Payload::None,
            Held::Answered(known, what) => {
                result = known;
                match what {
                    Refusable::Nothing => Payload::None,
                    Refusable::Buf(buf) => Payload::Buf(buf),
                    Refusable::Batch(batch) => Payload::Batch(batch),
                    Refusable::Request(data) => Payload::Request(data),
                }
            }
        };
        out.push(Completion { owner, result, payload });
    }
}

/// All places for data of requests, the first ones last.
fn request_places() -> Vec<u16> {
    (RING_BUFFERS..RING_BUFFERS + RING_REQUESTS).rev().map(|place| place as u16).collect()
}

/// A receive that picks a buffer of the ring when bytes arrive.
fn picking(fd: types::Fd, flags: squeue::Flags, len: u32) -> squeue::Entry {
    let entry = opcode::Recv::new(fd, std::ptr::null_mut(), len.min(RX_BUFFER_LEN as u32)).buf_group(rx::GROUP).build();
    entry.flags(flags | squeue::Flags::BUFFER_SELECT)
}

/// A receive that ends when all of `rest` is there.
fn filling(fd: types::Fd, flags: squeue::Flags, rest: &mut [u8]) -> squeue::Entry {
    let entry = opcode::Recv::new(fd, rest.as_mut_ptr(), rest.len() as u32).flags(libc::MSG_WAITALL).build();
    entry.flags(flags)
}

impl Drop for Uring {
    /// Ends all operations before their memory goes. What the kernel does not give back within two seconds is leaked: that
    /// memory may still be written.
    fn drop(&mut self) {
        self.hand_over_all();
        let (mut out, mut ended) = (Vec::new(), Vec::new());
        let deadline = super::tsc::monotonic_ns() + 2_000_000_000;
        while self.table.is_working() && super::tsc::monotonic_ns() < deadline {
            let all = types::CancelBuilder::any();
            // NotFound only says that nothing could be cancelled any more: the completions are on their way.
            let _ = self.ring.submitter().register_sync_cancel(Some(types::Timespec::new().nsec(10_000_000)), all);
            self.wait(Some(Duration::from_millis(10)));
            self.reap(&mut out, &mut ended);
            out.clear();
            ended.clear();
        }
        let clean = !self.table.is_working();
        // SAFETY: each field is dropped once, here, and not used again. The ring goes first.
        unsafe { ManuallyDrop::drop(&mut self.ring) };
        if clean {
            // SAFETY: as above; nothing is in flight, and closing the ring took its buffer group along.
            unsafe {
                ManuallyDrop::drop(&mut self.table);
                ManuallyDrop::drop(&mut self.rx);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hugepages::{Arena, Pool};

    use super::*;
    use crate::sys::socket::{Doorbell, Eventfd};

    #[test]
    fn places_that_are_given_back_are_empty() {
        let pool = Pool::new(0);
        for chunk in Arena::heap(16 << 20).grow(16 << 20).unwrap() {
            pool.add(chunk);
        }
        let mut uring = Uring::new(&pool, &Doorbell::Eventfd(Eventfd::new().unwrap())).unwrap();
        let zeroes = std::fs::File::open("/dev/zero").unwrap();
        let bytes = Box::leak(vec![7_u8; 4096].into_boxed_slice());
        let memory = [libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }];
        let all = uring.places.clone();
        let mut places = uring.take_places(5);
        // A gap: another queue has what is between.
        let kept = places.remove(2);
        for &place in places.iter().chain(&[kept]) {
            // SAFETY: the memory is never given back.
            unsafe { uring.ring.submitter().register_buffers_update(u32::from(place), &memory, None) }.unwrap();
        }
        let reads = |uring: &mut Uring, place: u16| {
            use std::os::fd::AsRawFd;
            let fd = io_uring::types::Fd(zeroes.as_raw_fd());
            let entry = opcode::ReadFixed::new(fd, memory[0].iov_base.cast(), 16, place).build();
            // SAFETY: as above.
            unsafe { uring.ring.submission().push(&entry.user_data(u64::MAX - 9)) }.unwrap();
            uring.ring.submit_and_wait(1).unwrap();
            let ended = uring.ring.completion().next().unwrap();
            ended.result()
        };
        assert_eq!(reads(&mut uring, places[0]), 16);
        uring.give_places(places.clone());
        for &place in &places {
            assert_eq!(reads(&mut uring, place), -libc::EFAULT, "place {place} is occupied");
        }
        assert_eq!(reads(&mut uring, kept), 16, "another queue's place");
        uring.give_places(vec![kept]);
        let mut now = uring.take_places(all.len());
        now.sort_unstable_by(|a, b| b.cmp(a));
        assert_eq!(now, all);
    }
}
