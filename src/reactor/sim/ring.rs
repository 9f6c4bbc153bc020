//! What the kernel's ring is to a reactor, in the simulated world: operations in flight, files, the doorbell.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hugepages::{ChunkInfo, Pool};

use super::socket::End;
use super::world::{Event, Machine, Object, State, World};
use crate::sys::descriptor::SimulatedFd;
use crate::sys::limits::REAP_BATCH;
use crate::sys::op::{Completion, FileId, Op, OpToken, Owner, Payload};
use crate::sys::uring::RingStats;

/// One operation of one ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub(super) ring: usize,
    pub(super) token: OpToken,
}

/// An operation in flight. It owns its buffers and keeps its file open, as in the kernel.
pub(super) struct Flight {
    owner: Owner,
    pub(super) op: Op,
    pub(super) fd: Option<SimulatedFd>,
    /// Bytes done so far.
    pub(super) progress: usize,
    /// Bytes that will be done: less than asked for a short read or write.
    pub(super) goal: usize,
    /// What a disk had taken in when this was issued, or when the last of it was.
    pub(super) seq: u64,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    flight: Option<Flight>,
}

#[derive(Default)]
struct FileSlot {
    generation: u32,
    fd: Option<SimulatedFd>,
}

/// The state of one reactor's backend.
pub(super) struct RingState {
    pub(super) machine: usize,
    /// Gone with the reactor.
    pub(super) pool: Option<Pool>,
    rung: Arc<AtomicBool>,
    /// The wake that is on its way.
    waking: bool,
    doorbell: Option<OpToken>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    files: Vec<FileSlot>,
    free_files: Vec<u32>,
    queued: VecDeque<OpToken>,
    done: VecDeque<Completion>,
    stats: RingStats,
}

impl RingState {
    fn file(&self, file: FileId) -> Option<&SimulatedFd> {
        self.files.get(file.index as usize).filter(|slot| slot.generation == file.generation)?.fd.as_ref()
    }

    fn add_file(&mut self, fd: SimulatedFd) -> FileId {
        let index = self.free_files.pop().unwrap_or_else(|| {
            self.files.push(FileSlot::default());
            self.files.len() as u32 - 1
        });
        let slot = &mut self.files[index as usize];
        slot.fd = Some(fd);
        FileId { index, generation: slot.generation }
    }

    pub(super) fn flight_mut(&mut self, token: OpToken) -> Option<&mut Flight> {
        let slot = self.slots.get_mut(token.0 as u32 as usize)?;
        slot.flight.as_mut().filter(|_| slot.generation == (token.0 >> 32) as u32)
    }

    fn insert(&mut self, flight: Flight) -> OpToken {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            self.slots.len() as u32 - 1
        });
        let slot = &mut self.slots[index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.flight = Some(flight);
        OpToken(u64::from(slot.generation) << 32 | u64::from(index))
    }

    fn remove(&mut self, token: OpToken) -> Option<Flight> {
        let slot = self.slots.get_mut(token.0 as u32 as usize)?;
        if slot.generation != (token.0 >> 32) as u32 {
            return None;
        }
        let flight = slot.flight.take()?;
        self.free.push(token.0 as u32);
        Some(flight)
    }

    /// What is in flight, by token.
    pub(super) fn tokens(&self) -> Vec<OpToken> {
        let number = |(index, slot): (usize, &Slot)| OpToken(u64::from(slot.generation) << 32 | index as u64);
        self.slots.iter().enumerate().filter(|(_, slot)| slot.flight.is_some()).map(number).collect()
    }
}

/// The file that an operation is about.
fn file_of(op: &Op) -> Option<FileId> {
    match op {
        Op::Accept { listener: file }
        | Op::Connect { file, .. }
        | Op::Recv { file, .. }
        | Op::RecvInto { file, .. }
        | Op::Send { file, .. }
        | Op::Read { file, .. }
        | Op::Write { file, .. }
        | Op::Sync { file }
        | Op::Allocate { file, .. }
        | Op::Shutdown { file, .. }
        | Op::Ublk { file, .. }
        | Op::ReadRequest { file, .. }
        | Op::WriteRequest { file, .. } => Some(*file),
        Op::Cancel { .. } | Op::Doorbell => None,
    }
}

fn name_of(op: &Op) -> &'static str {
    match op {
        Op::Accept { .. } => "accept",
        Op::Connect { .. } => "connect",
        Op::Recv { .. } => "recv",
        Op::RecvInto { .. } => "recv into",
        Op::Send { .. } => "send",
        Op::Read { .. } => "read",
        Op::Write { .. } => "write",
        Op::Sync { .. } => "sync",
        Op::Allocate { .. } => "allocate",
        Op::Shutdown { .. } => "shutdown",
        Op::Cancel { .. } => "cancel",
        Op::ReadRequest { .. } => "read to a request",
        Op::WriteRequest { .. } => "write from a request",
        Op::Ublk { .. } => "ublk",
        Op::Doorbell => "doorbell",
    }
}

impl State {
    pub(super) fn flight(&mut self, at: At) -> Option<&mut Flight> {
        self.rings[at.ring].flight_mut(at.token)
    }

    /// Ends an operation. What it owns goes back with the completion; `extra` is what it brings instead.
    pub(super) fn finish(&mut self, at: At, result: i32, extra: Option<Payload>) {
        let Some(flight) = self.rings[at.ring].remove(at.token) else { return };
        self.note(name_of(&flight.op), at.ring, i64::from(result));
        let ring = &mut self.rings[at.ring];
        let own = match flight.op {
            Op::RecvInto { buf, .. } | Op::Read { buf, .. } | Op::Write { buf, .. } => Payload::Buf(buf),
            Op::Send { batch, .. } => Payload::Batch(batch),
            Op::ReadRequest { data, .. } | Op::WriteRequest { data, .. } => Payload::Request(data),
            Op::Doorbell => {
                ring.doorbell = None;
                Payload::None
            }
            _ => Payload::None,
        };
        ring.stats.completed += 1;
        ring.done.push_back(Completion { owner: flight.owner, result, payload: extra.unwrap_or(own) });
    }

    /// The world takes up an operation that was handed over.
    fn start(&mut self, at: At) {
        let Some(flight) = self.flight(at) else { return };
        let number = flight.fd.as_ref().map_or(0, SimulatedFd::number);
        match &flight.op {
            Op::Doorbell => self.rings[at.ring].doorbell = Some(at.token),
            Op::Cancel { target } => {
                let target = At { ring: at.ring, token: *target };
                let result = self.cancel(target);
                self.finish(at, result, None);
            }
            Op::Read { .. } | Op::Write { .. } | Op::Sync { .. } | Op::Allocate { .. } => match self.objects[number] {
                Object::Disk(disk) => self.disk_takes(at, disk),
                Object::Socket(_) | Object::Port(_) => self.finish(at, -libc::ESPIPE, None),
            },
            Op::Accept { .. } => match &mut self.objects[number] {
                Object::Port(port) => {
                    port.acceptors.push_back(at);
                    self.accept(number);
                }
                Object::Socket(_) => self.finish(at, -libc::EINVAL, None),
                Object::Disk(_) => self.finish(at, -libc::ENOTSOCK, None),
            },
            Op::Connect { to, .. } => {
                let to = *to;
                if self.stream(at, number).is_some() {
                    self.connect(at, number, to);
                }
            }
            Op::Recv { .. } | Op::RecvInto { .. } => {
                if let Some(end) = self.stream(at, number) {
                    end.receivers.push_back(at);
                    self.receive(number);
                }
            }
            Op::Send { .. } => {
                if let Some(end) = self.stream(at, number) {
                    end.senders.push_back(at);
                    self.send(number);
                }
            }
            // No kernel of a simulated world has requests.
            Op::Ublk { .. } | Op::ReadRequest { .. } | Op::WriteRequest { .. } => {
                self.finish(at, -libc::EOPNOTSUPP, None)
            }
            Op::Shutdown { sending_only, .. } => {
                let sending_only = *sending_only;
                if self.stream(at, number).is_some() {
                    let result = self.shut(number, sending_only);
                    self.finish(at, result, None);
                }
            }
        }
    }

    /// The stream socket that an operation needs; without one it ends: ENOTCONN for a socket that listens, ENOTSOCK for a disk.
    fn stream(&mut self, at: At, number: usize) -> Option<&mut End> {
        let errno = match &self.objects[number] {
            Object::Socket(_) => 0,
            Object::Port(_) => libc::ENOTCONN,
            Object::Disk(_) => libc::ENOTSOCK,
        };
        if errno != 0 {
            self.finish(at, -errno, None);
        }
        match &mut self.objects[number] {
            Object::Socket(end) => Some(end),
            Object::Port(_) | Object::Disk(_) => None,
        }
    }

    /// Ends an operation that waits. What a disk works on, or what has ended, cannot be cancelled.
    fn cancel(&mut self, target: At) -> i32 {
        let Some(flight) = self.flight(target) else { return -libc::ENOENT };
        let (done, number) = (flight.progress as i32, flight.fd.as_ref().map(SimulatedFd::number));
        let waiting = match number {
            None => std::mem::take(&mut self.rings[target.ring].doorbell).is_some(),
            Some(number) => match &mut self.objects[number] {
                Object::Socket(end) => end.forget(target),
                Object::Port(port) => forget(&mut port.acceptors, target),
                Object::Disk(_) => false,
            },
        };
        if !waiting {
            return -libc::EALREADY;
        }
        self.finish(target, if done > 0 { done } else { -libc::ECANCELED }, None);
        0
    }

    /// The object that an operation in flight is about.
    fn object_of(&mut self, at: At) -> Option<usize> {
        self.flight(at)?.fd.as_ref().map(SimulatedFd::number)
    }

    /// Operations of a ring that disks have in hand end now, finished or not, and nobody hears of it.
    pub(super) fn abandon_disk_work(&mut self, ring: usize) {
        for token in self.rings[ring].tokens() {
            let at = At { ring, token };
            if let Some(number) = self.object_of(at)
                && let Object::Disk(disk) = self.objects[number]
            {
                self.disk_abandons(at, disk);
                drop(self.rings[ring].remove(token));
            }
        }
    }

    /// Doorbells that were rung wake their reactors a little later.
    pub(super) fn hear_doorbells(&mut self) {
        for ring in 0..self.rings.len() {
            let state = &mut self.rings[ring];
            if state.doorbell.is_some() && !state.waking && state.rung.load(Ordering::Acquire) {
                state.waking = true;
                let delay = 1_000 + self.pick(40_000);
                self.after(delay, Event::Doorbell { ring });
            }
        }
    }

    pub(super) fn doorbell_heard(&mut self, ring: usize) {
        let state = &mut self.rings[ring];
        state.waking = false;
        if let Some(token) = state.doorbell {
            state.rung.store(false, Ordering::Release);
            self.finish(At { ring, token }, 8, None);
        }
    }
}

/// Takes an operation out of a queue of those that wait; whether it was there.
pub(super) fn forget(queue: &mut VecDeque<At>, at: At) -> bool {
    let before = queue.len();
    queue.retain(|other| *other != at);
    queue.len() < before
}

/// A reactor's backend in a simulated world.
pub struct SimRing {
    world: World,
    ring: usize,
}

impl SimRing {
    /// A backend on `machine`; `rung` is the reactor's doorbell.
    pub(crate) fn new(world: &World, machine: Machine, pool: &Pool, rung: Arc<AtomicBool>) -> SimRing {
        let mut state = world.state();
        let ring = state.rings.len();
        state.rings.push(RingState {
            machine: machine.0,
            pool: Some(pool.clone()),
            rung,
            waking: false,
            doorbell: None,
            slots: Vec::new(),
            free: Vec::new(),
            files: Vec::new(),
            free_files: Vec::new(),
            queued: VecDeque::new(),
            done: VecDeque::new(),
            stats: RingStats::default(),
        });
        SimRing { world: world.clone(), ring }
    }

    /// Its number in the world.
    pub(super) fn number(&self) -> usize {
        self.ring
    }

    /// As [`crate::sys::uring::Uring::submit`].
    pub(crate) fn submit(&mut self, op: Op, owner: Owner) -> OpToken {
        let mut state = self.world.state();
        let ring = &mut state.rings[self.ring];
        ring.stats.submitted += 1;
        let file = file_of(&op);
        let fd = file.and_then(|file| ring.file(file)).cloned();
        let refused = file.is_some() && fd.is_none();
        let token = ring.insert(Flight { owner, op, fd, progress: 0, goal: 0, seq: 0 });
        if refused {
            state.finish(At { ring: self.ring, token }, -libc::EBADF, None);
        } else {
            ring.queued.push_back(token);
        }
        token
    }

    /// Hands what was submitted to the world, in order.
    pub(crate) fn flush(&mut self) -> bool {
        let mut state = self.world.state();
        let queued = std::mem::take(&mut state.rings[self.ring].queued);
        if queued.is_empty() {
            return false;
        }
        state.rings[self.ring].stats.enters += 1;
        for token in queued {
            state.start(At { ring: self.ring, token });
        }
        true
    }

    /// Moves completions to `out`: at most a batch, sometimes fewer than there are.
    pub(crate) fn reap(&mut self, out: &mut Vec<Completion>) {
        let mut state = self.world.state();
        let there = state.rings[self.ring].done.len();
        if there == 0 {
            return;
        }
        let count = state.portion(there).min(REAP_BATCH);
        out.extend(state.rings[self.ring].done.drain(..count));
    }

    pub(crate) fn has_completions(&self) -> bool {
        !self.world.state().rings[self.ring].done.is_empty()
    }

    /// Takes a descriptor of this world.
    pub(crate) fn add_file(&mut self, fd: SimulatedFd) -> FileId {
        self.world.state().rings[self.ring].add_file(fd)
    }

    /// A second handle on an open file.
    pub(crate) fn share_file(&self, file: FileId) -> io::Result<SimulatedFd> {
        let state = self.world.state();
        state.rings[self.ring].file(file).cloned().ok_or(io::Error::from_raw_os_error(libc::EBADF))
    }

    /// An unconnected socket.
    pub(crate) fn add_socket(&mut self, _: SocketAddr) -> io::Result<FileId> {
        let mut state = self.world.state();
        let end = End::new(&state, state.rings[self.ring].machine);
        let fd = state.open(Object::Socket(Box::new(end)));
        Ok(state.rings[self.ring].add_file(fd))
    }

    /// The addresses of a connected socket: the peer's, then its own.
    pub(crate) fn establish(&self, file: FileId) -> io::Result<(SocketAddr, SocketAddr)> {
        let state = self.world.state();
        let fd = state.rings[self.ring].file(file).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADF))?;
        match &state.objects[fd.number()] {
            Object::Socket(end) => end.names().ok_or_else(|| io::Error::from_raw_os_error(libc::ENOTCONN)),
            Object::Port(_) => Err(io::Error::from_raw_os_error(libc::ENOTCONN)),
            Object::Disk(_) => Err(io::Error::from_raw_os_error(libc::ENOTSOCK)),
        }
    }

    /// Closes a file, once what is in flight on it has ended.
    pub(crate) fn remove_file(&mut self, file: FileId) {
        let mut state = self.world.state();
        let ring = &mut state.rings[self.ring];
        if ring.file(file).is_none() {
            ring.stats.stale += 1;
            return;
        }
        let slot = &mut ring.files[file.index as usize];
        slot.generation = slot.generation.wrapping_add(1);
        slot.fd = None;
        ring.free_files.push(file.index);
    }

    /// A simulated reactor is turned by its simulation and never waits.
    pub(crate) fn wait(&mut self, _: Option<Duration>) {
        unreachable!("a simulated reactor sleeps only in its simulation");
    }

    /// Nothing to register.
    pub(crate) fn register_chunk(&mut self, _: &ChunkInfo) {}

    pub(crate) fn take_places(&mut self, _: usize) -> Vec<u16> {
        Vec::new()
    }

    pub(crate) fn give_places(&mut self, _: Vec<u16>) {}

    /// Nothing makes it slow.
    pub(crate) fn take_notes(&mut self) -> Vec<String> {
        Vec::new()
    }

    pub(crate) fn stats(&self) -> RingStats {
        self.world.state().rings[self.ring].stats
    }
}

impl Drop for SimRing {
    /// The process ends: everything in flight is given up and every file is closed.
    fn drop(&mut self) {
        let mut state = self.world.state();
        state.abandon_disk_work(self.ring);
        for token in state.rings[self.ring].tokens() {
            let at = At { ring: self.ring, token };
            if let Some(number) = state.object_of(at) {
                match &mut state.objects[number] {
                    Object::Socket(end) => drop(end.forget(at)),
                    Object::Port(port) => drop(forget(&mut port.acceptors, at)),
                    Object::Disk(_) => {}
                }
            }
            drop(state.rings[self.ring].remove(token));
        }
        let ring = &mut state.rings[self.ring];
        ring.queued.clear();
        ring.done.clear();
        ring.files.clear();
        ring.doorbell = None;
        ring.pool = None;
        state.close_dropped();
    }
}
