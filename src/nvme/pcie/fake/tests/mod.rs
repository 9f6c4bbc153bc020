//! The controller by itself, under a driver of a few lines that writes its entries by hand.

mod admin;
mod faults;
mod io;
mod tasks;
mod zoned;

use std::cell::RefCell;
use std::rc::Rc;

use hugepages::{Buf, DeviceBuf};

use super::*;
use crate::reactor::sim::Simulation;
use crate::sys::mmio::{Bell, Registers};

const PAGE: usize = 4096;

// Status codes, with their types above.
const OK: u16 = 0;
const INVALID_OPCODE: u16 = 0x01;
const INVALID_FIELD: u16 = 0x02;
const DATA_TRANSFER_ERROR: u16 = 0x04;
const ABORT_REQUESTED: u16 = 0x07;
const FAILED_FUSED: u16 = 0x09;
const MISSING_FUSED: u16 = 0x0a;
const INVALID_NAMESPACE: u16 = 0x0b;
const SEQUENCE_ERROR: u16 = 0x0c;
const INVALID_SGL_SEGMENT: u16 = 0x0d;
const SGL_LENGTH: u16 = 0x0f;
const SGL_TYPE: u16 = 0x11;
const PRP_OFFSET: u16 = 0x13;
const ATOMIC_EXCEEDED: u16 = 0x14;
const SGL_GRANULARITY: u16 = 0x1e;
const PROTECTED: u16 = 0x20;
const OUT_OF_RANGE: u16 = 0x80;
const CQ_INVALID: u16 = 0x100;
const QUEUE_ID: u16 = 0x101;
const QUEUE_SIZE: u16 = 0x102;
const ABORT_LIMIT: u16 = 0x103;
const EVENT_LIMIT: u16 = 0x105;
const VECTOR: u16 = 0x108;
const LOG_PAGE: u16 = 0x109;
const FORMAT: u16 = 0x10a;
const DELETION: u16 = 0x10c;
const NOT_SAVEABLE: u16 = 0x10d;
const SIZE_LIMIT: u16 = 0x183;
const READ_ERROR: u16 = 0x281;
const MISCOMPARE: u16 = 0x285;

/// A command by its dwords. Dword 0 has opcode, flags and identifier.
type Dwords = [u32; 16];

fn command(opcode: u32, nsid: u32, rest: &[(usize, u32)]) -> Dwords {
    let mut dwords = [0; 16];
    (dwords[0], dwords[1]) = (opcode, nsid);
    for (index, value) in rest {
        dwords[*index] = *value;
    }
    dwords
}

/// The data pointer as PRPs.
fn with_prps(mut dwords: Dwords, first: u64, second: u64) -> Dwords {
    (dwords[6], dwords[7]) = (first as u32, (first >> 32) as u32);
    (dwords[8], dwords[9]) = (second as u32, (second >> 32) as u32);
    dwords
}

/// The data pointer as one SGL descriptor.
fn with_sgl(mut dwords: Dwords, kind: u32, address: u64, len: u32) -> Dwords {
    dwords[0] |= 1 << 14;
    (dwords[6], dwords[7]) = (address as u32, (address >> 32) as u32);
    (dwords[8], dwords[9]) = (len, kind << 24);
    dwords
}

/// Read (2), Write (1) or another command on a range.
fn ranged(opcode: u32, slba: u64, blocks: u32) -> Dwords {
    command(opcode, 1, &[(10, slba as u32), (11, (slba >> 32) as u32), (12, blocks - 1)])
}

/// The commands that create a queue pair with the interrupt vector of its number.
fn create(qid: u16, ring: &Ring) -> [Dwords; 2] {
    let size = u32::from(ring.entries - 1) << 16 | u32::from(qid);
    let cq = with_prps(command(5, 0, &[(10, size), (11, u32::from(qid) << 16 | 3)]), ring.cq.address() as u64, 0);
    let sq = command(1, 0, &[(10, size), (11, u32::from(qid) << 16 | 1)]);
    [cq, with_prps(sq, ring.sq.address() as u64, 0)]
}

/// What the driver holds: buffers by command.
#[derive(Default)]
struct Hands(RefCell<Vec<(u16, Buf)>>);

impl Held for Hands {
    fn has(&self, cid: u16) -> bool {
        self.0.borrow().iter().any(|(of, _)| *of == cid)
    }

    fn with(&self, cid: u16, address: u64, len: usize, f: &mut dyn FnMut(&mut [u8])) -> bool {
        for (_, buf) in self.0.borrow_mut().iter_mut().filter(|(of, _)| *of == cid) {
            if let Some(at) = address.checked_sub(buf.address() as u64).map(|at| at as usize)
                && at + len <= buf.len()
            {
                f(&mut buf[at..at + len]);
                return true;
            }
        }
        false
    }
}

struct Ring {
    sq: DeviceBuf,
    cq: DeviceBuf,
    entries: u16,
    tail: u16,
    head: u16,
    phase: bool,
}

impl Ring {
    fn new(sq: DeviceBuf, cq: DeviceBuf, entries: u16) -> Ring {
        Ring { sq, cq, entries, tail: 0, head: 0, phase: true }
    }

    fn push(&mut self, cid: u16, mut dwords: Dwords) {
        dwords[0] = dwords[0] & 0xffff | u32::from(cid) << 16;
        for (index, value) in dwords.into_iter().enumerate() {
            self.sq.store32(usize::from(self.tail) * 64 + index * 4, value);
        }
        self.tail = (self.tail + 1) % self.entries;
    }

    fn take(&mut self) -> Option<Done> {
        let at = usize::from(self.head) * 16;
        let last = self.cq.load32(at + 12);
        if (last >> 16 & 1 == 1) != self.phase {
            return None;
        }
        let middle = self.cq.load32(at + 8);
        self.head = (self.head + 1) % self.entries;
        self.phase ^= self.head == 0;
        Some(Done {
            cid: last as u16,
            code: (last >> 17 & 0x7ff) as u16,
            dnr: last >> 31 == 1,
            more: last >> 30 & 1 == 1,
            result: self.cq.load64(at),
            sqid: (middle >> 16) as u16,
            sqhd: middle as u16,
        })
    }
}

/// A completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Done {
    cid: u16,
    /// Code and type.
    code: u16,
    dnr: bool,
    more: bool,
    result: u64,
    sqid: u16,
    sqhd: u16,
}

/// The driver.
struct Host {
    sim: Simulation,
    reactor: Rc<Reactor>,
    disk: FakeDisk,
    port: FakePort,
    hands: Rc<Hands>,
    rings: Vec<Ring>,
    next: u16,
}

impl Host {
    /// A controller that is not enabled.
    fn cold(disk: FakeDisk, options: FakeOptions) -> Host {
        let mut sim = Simulation::new(1);
        let machine = sim.machine(1);
        let reactor = sim.reactor(machine, 0);
        let port = disk.controller(options);
        port.serve(&reactor);
        Host { sim, reactor, disk, port, hands: Rc::default(), rings: Vec::new(), next: 0 }
    }

    /// An enabled controller, worked at by hand, with one I/O queue pair of 16 entries.
    fn new(disk: DiskOptions, options: FakeOptions) -> Host {
        let mut host = Host::cold(FakeDisk::new(disk), FakeOptions { stepped: true, ..options });
        host.enable();
        host.add_queue(16);
        host
    }

    fn default() -> Host {
        Host::new(DiskOptions::default(), FakeOptions::default())
    }

    fn block(&self, len: usize) -> DeviceBuf {
        let block = self.reactor.pool().alloc(len).expect("memory").into_device();
        block.zero();
        self.port.memory(&block).expect("an address");
        block
    }

    fn write32(&self, at: u32, value: u32) {
        self.port.registers().write32(at, value);
    }

    fn csts(&self) -> u32 {
        self.port.registers().read32(0x1c)
    }

    fn ring_of(&self, entries: u16) -> Ring {
        Ring::new(self.block(usize::from(entries) * 64), self.block(usize::from(entries) * 16), entries)
    }

    /// Enables it with admin queues of 8 entries.
    fn enable(&mut self) {
        let ring = self.ring_of(8);
        self.write32(0x24, 7 << 16 | 7);
        self.port.registers().write64(0x28, ring.sq.address() as u64);
        self.port.registers().write64(0x30, ring.cq.address() as u64);
        self.rings = vec![ring];
        self.write32(0x14, 0x0046_0061);
    }

    fn add_queue(&mut self, entries: u16) -> u16 {
        let qid = self.rings.len() as u16;
        let ring = self.ring_of(entries);
        for create in create(qid, &ring) {
            assert_eq!(self.admin(create).code, OK);
        }
        self.rings.push(ring);
        self.port.attach(&self.reactor, qid, self.hands.clone());
        qid
    }

    /// Puts a command at the tail; its identifier.
    fn push(&mut self, qid: u16, dwords: Dwords) -> u16 {
        self.next = (self.next + 1) & 0x7fff;
        self.rings[usize::from(qid)].push(self.next, dwords);
        self.next
    }

    fn ring(&self, qid: u16) {
        self.write32(0x1000 + 8 * u32::from(qid), u32::from(self.rings[usize::from(qid)].tail));
    }

    /// Has the controller work: one step by hand, or its tasks for a millisecond.
    fn step(&mut self, qid: u16) -> Next {
        if self.port.inner().options.stepped {
            return self.port.step(&self.reactor, qid, 64);
        }
        self.advance(1_000_000);
        Next::Rung
    }

    /// Lets time go on.
    fn advance(&mut self, ns: u64) {
        self.sim.run_for(ns).expect("nothing runs in circles");
        self.reactor.clock().refresh();
    }

    /// The next completion, if it is there; its place is given back.
    fn take(&mut self, qid: u16) -> Option<Done> {
        let ring = &mut self.rings[usize::from(qid)];
        let (done, head) = (ring.take()?, ring.head);
        self.write32(0x1004 + 8 * u32::from(qid), head.into());
        Some(done)
    }

    fn run(&mut self, qid: u16, dwords: Dwords) -> Done {
        let cid = self.push(qid, dwords);
        self.ring(qid);
        self.step(qid);
        let done = self.take(qid).expect("an answer");
        let ring = &self.rings[usize::from(qid)];
        assert_eq!((done.cid, done.sqid, done.sqhd), (cid, qid, ring.tail));
        done
    }

    fn admin(&mut self, dwords: Dwords) -> Done {
        self.run(0, dwords)
    }

    /// Runs an I/O command whose data are buffers that the driver holds for it, and gives them back with the answer.
    fn hold_and_run(&mut self, dwords: Dwords, buffers: Vec<Buf>) -> (Done, Vec<Buf>) {
        let cid = self.next + 1;
        self.hands.0.borrow_mut().extend(buffers.into_iter().map(|buf| (cid, buf)));
        let done = self.run(1, dwords);
        let back = self.hands.0.borrow_mut().extract_if(.., |(of, _)| *of == cid).map(|(_, buf)| buf).collect();
        (done, back)
    }

    fn buffer(&self, len: usize, byte: u8) -> Buf {
        let mut buf = self.reactor.pool().alloc(len).expect("memory");
        buf.fill(byte);
        buf
    }

    /// Writes blocks of a byte by PRP1 alone.
    fn write(&mut self, slba: u64, byte: u8) -> u16 {
        let buf = self.buffer(PAGE, byte);
        let write = with_prps(ranged(1, slba, 1), buf.address() as u64, 0);
        self.hold_and_run(write, vec![buf]).0.code
    }

    /// Reads a block by PRP1 alone.
    fn read(&mut self, slba: u64) -> (u16, Vec<u8>) {
        let buf = self.buffer(PAGE, 0xcc);
        let read = with_prps(ranged(2, slba, 1), buf.address() as u64, 0);
        let (done, back) = self.hold_and_run(read, vec![buf]);
        (done.code, back[0].to_vec())
    }

    /// Ends a test in which the driver did nothing wrong.
    fn finish(self) {
        self.port.assert_clean();
    }

    /// Ends a test in which it did, in ways that these words are in.
    fn finish_broken(self, words: &[&str]) {
        let broken = self.port.take_broken();
        assert_eq!(broken.len(), words.len(), "{broken:?}");
        for (text, words) in broken.iter().zip(words) {
            assert!(text.contains(words), "{text}: {words}");
        }
        self.finish();
    }
}
