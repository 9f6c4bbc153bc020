//! Pointers against a slow oracle: the address of every byte, as a controller would find it.

use std::collections::BTreeMap;
use std::sync::Arc;

use zerocopy::FromBytes;

use super::*;
use crate::nvme::pcie::fake::{DiskOptions, FakeDisk, FakeOptions, FakePort, FakeRegisters};
use crate::nvme::spec::{Psdt, SglId};
use crate::reactor::clock::Entropy;
use crate::reactor::start::solo;
use crate::reactor::{Reactor, io::IoOp};

/// Buffers lie where the test says, whatever their own addresses.
#[derive(Clone)]
struct Anywhere {
    registers: FakeRegisters,
    at: Arc<BTreeMap<u64, u64>>,
}

impl Port for Anywhere {
    type Registers = FakeRegisters;

    fn registers(&self) -> &FakeRegisters {
        &self.registers
    }

    fn data(&self, buf: &Buf) -> Option<u64> {
        self.at.get(&(buf.address() as u64)).copied()
    }

    fn memory(&self, _: &DeviceBuf) -> Option<u64> {
        None
    }
}

const TRANSFER_MAX: u64 = 128 << 10;
/// The controller's address of the list's block.
const LIST: u64 = 0x7_0000_0000;
/// What the bytes around a list are.
const AROUND: u8 = 0xEE;

/// The addresses of all bytes that a command with `len` bytes of data leads to.
fn followed(pointers: Pointers, sqe: &Sqe, len: usize, list: &dyn Fn(u64, usize) -> Vec<u8>) -> Vec<u64> {
    let page = 1_u64 << pointers.page_shift;
    let mut all = Vec::new();
    if sqe.psdt() == Psdt::PRP {
        let (one, two) = (sqe.prps().prp1.get(), sqe.prps().prp2.get());
        assert_eq!(one % 4, 0, "an offset that PRP1 cannot have");
        all.extend((one..(one / page + 1) * page).take(len));
        let pages = (len - all.len()).div_ceil(page as usize);
        let entries = match pages {
            0 => Vec::new(),
            1 => vec![two],
            _ => {
                assert_eq!(two % 8, 0);
                assert_eq!(two / page, (two + pages as u64 * 8 - 1) / page, "a list leaves its page");
                list(two, pages * 8).chunks(8).map(|entry| u64::from_le_bytes(entry.try_into().unwrap())).collect()
            }
        };
        for entry in entries {
            assert_eq!(entry % page, 0, "a page that does not begin one");
            let left = len - all.len();
            all.extend((entry..entry + page).take(left));
        }
    } else {
        let mask = pointers.sgl.expect("a controller without SGLs");
        let first = sqe.dptr;
        let (address, bytes) = (first.address.get(), first.length.get() as usize);
        let descriptors: Vec<SglDescriptor> = match first.id {
            SglId::DATA_BLOCK_ADDRESS => vec![first],
            SglId::LAST_SEGMENT => {
                assert_eq!(address / page, (address + bytes as u64 - 1) / page, "a list leaves its page");
                list(address, bytes).chunks(16).map(|one| SglDescriptor::read_from_bytes(one).unwrap()).collect()
            }
            other => panic!("{other:?}"),
        };
        for one in descriptors {
            let (address, len) = (one.address.get(), u64::from(one.length.get()));
            assert!(one.id == SglId::DATA_BLOCK_ADDRESS && (address | len) & mask == 0);
            all.extend(address..address + len);
        }
    }
    all
}

/// Whether PRPs can lead to these bytes: every step that is not to the next address is from the end of a page to the start of one.
fn can_be_paged(page: u64, all: &[u64]) -> bool {
    all[0].is_multiple_of(4)
        && all.windows(2).all(|pair| pair[1] == pair[0] + 1 || (pair[0] + 1) % page == 0 && pair[1] % page == 0)
}

/// Segments of these lengths at these addresses.
fn check(reactor: &Reactor, registers: &FakeRegisters, pointers: Pointers, segments: &[(u64, usize)], pair: bool) {
    let mut io = reactor.create_io().unwrap();
    let mut at = BTreeMap::new();
    io.prepare(IoOp::Read, 0, 0);
    for (address, len) in segments {
        let buf = reactor.pool().alloc(*len).unwrap();
        at.insert(buf.address() as u64, *address);
        io.data.push_buf(buf);
    }
    let port = Anywhere { registers: registers.clone(), at: Arc::new(at) };
    let all: Vec<u64> = segments.iter().flat_map(|(address, len)| *address..address + *len as u64).collect();
    let page = 1 << pointers.page_shift;
    let described = pointers.sgl.is_some_and(|mask| segments.iter().all(|(at, len)| (at | *len as u64) & mask == 0));
    let reached = described || can_be_paged(page, &all);
    assert_eq!(pointers.reach(&port, &io.data), reached, "{pointers:?} {segments:x?}");
    let list_len = pointers.list_len(TRANSFER_MAX);
    let memory = reactor.pool().alloc(4 * list_len).unwrap().into_device();
    let parts = if pair { vec![(0, all.len() / 2), (all.len() / 2, all.len() / 2)] } else { vec![(0, all.len())] };
    for (skip, len) in parts.into_iter().filter(|_| reached) {
        memory.write(0, &vec![AROUND; memory.len()]);
        let at = 2 * list_len;
        let mut sqe = Sqe::bare(2, 1);
        let list = || List { memory: &memory, at, address: LIST + at as u64 };
        assert!(
            pointers.point(&port, &mut sqe, (&io.data, skip, len), list),
            "{pointers:?} {segments:x?} {skip}+{len}"
        );
        let read = |address: u64, len: usize| {
            let from = (address - LIST) as usize;
            assert!(from >= at && from + len <= at + list_len, "a list outside of its place");
            let mut bytes = vec![0; len];
            memory.read(from, &mut bytes);
            bytes
        };
        let found = followed(pointers, &sqe, len, &read);
        assert!(found == all[skip..skip + len], "{pointers:?} {segments:x?} {skip}+{len}");
        let mut whole = vec![0; memory.len()];
        memory.read(0, &mut whole);
        assert!(
            whole[..at].iter().chain(&whole[at + list_len..]).all(|byte| *byte == AROUND),
            "written beyond the list"
        );
    }
    reactor.retire_io(io);
}

fn kinds() -> impl Iterator<Item = Pointers> {
    [12, 13, 16].into_iter().flat_map(|shift| [0, 1, 2].map(|sgls| Pointers::new(shift, sgls)))
}

fn with_reactor(f: impl FnOnce(&Reactor, &FakeRegisters)) {
    let reactor = solo(16 << 20).unwrap();
    let port: FakePort = FakeDisk::new(DiskOptions::default()).controller(FakeOptions::default());
    f(&reactor, port.registers());
    drop(port);
    assert_eq!(reactor.shut_down(), 0);
}

#[test]
fn one_segment_at_every_offset() {
    with_reactor(|reactor, registers| {
        for pointers in kinds() {
            let page = 1_u64 << pointers.page_shift;
            let offsets = [0, 1, 2, 3, 4, 8, 508, 511, 512, page / 2, page - 512, page - 4, page - 1];
            for len in [512, 4096, 4608, 8192, 8704, 12288, 65536, TRANSFER_MAX as usize] {
                for offset in offsets {
                    check(reactor, registers, pointers, &[(0x1_0000_0000 + offset, len)], false);
                }
            }
        }
    });
}

#[test]
fn any_segments() {
    with_reactor(|reactor, registers| {
        let chance = Entropy::new(7);
        for round in 0..3000_u64 {
            for pointers in kinds() {
                let page = 1 << pointers.page_shift;
                let pair = chance.below(2) == 0;
                let mut left = (1 + chance.below(if pair { 64 } else { 128 })) * if pair { 1024 } else { 512 };
                let grain = [1, 4, 512, page][chance.below(4) as usize];
                let mut segments = Vec::new();
                while left > 0 {
                    let last = segments.len() + 1 == SEGMENTS_MAX || chance.below(3) == 0;
                    let len = if last { left } else { (1 + chance.below(left)).next_multiple_of(grain).min(left) };
                    let offset = [0, chance.below(page), chance.below(page / 4) * 4][chance.below(3) as usize];
                    // One that ends a page, so that PRPs can lead on.
                    let offset = if chance.below(2) == 0 { len.wrapping_neg() & (page - 1) } else { offset };
                    segments.push(((segments.len() as u64 + 1) << 32 | offset, len as usize));
                    left -= len;
                }
                if round % 2 == 0 {
                    // As PRPs want them: whole pages in between.
                    for (address, _) in segments.iter_mut().skip(1) {
                        *address &= !(page - 1);
                    }
                }
                check(reactor, registers, pointers, &segments, pair);
            }
        }
    });
}
