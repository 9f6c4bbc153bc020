//! Every order in which buffers can come home from other cores:
//! `RUSTFLAGS="--cfg loom" cargo test -p hugepages --test loom --release`.
//!
//! A buffer's bytes are beyond the checker's sight, so each test gives a checked cell to a block: who holds the block
//! touches the cell, and two touches that nothing orders are a race. Chunks are counted by the checker's own `Arc`: one
//! that is freed twice, or never, fails the test.
//!
//! The home waits for blocks with [`collect`]: of its own accord the checker does not try all places of a relaxed look at
//! the list between the steps of a push.
#![cfg(loom)]

use std::collections::BTreeMap;

use hugepages::{Arena, BLOCK_MIN, Buf, Pool, RemoteBuf};
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

/// One cell per block, by address.
#[derive(Clone)]
struct Cells(Arc<BTreeMap<usize, UnsafeCell<()>>>);

impl Cells {
    fn of(blocks: &[Buf]) -> Self {
        Self(Arc::new(blocks.iter().map(|block| (block.address(), UnsafeCell::new(()))).collect()))
    }

    fn touch(&self, address: usize) {
        self.0[&address].with_mut(|_| ());
    }
}

fn pool(blocks: usize) -> Pool {
    let pool = Pool::new(0);
    let size = blocks * BLOCK_MIN;
    Arena::heap(size).grow(size).expect("a heap arena grows to its size").into_iter().for_each(|chunk| pool.add(chunk));
    pool
}

fn all(pool: &Pool) -> Vec<Buf> {
    std::iter::from_fn(|| pool.alloc(BLOCK_MIN)).collect()
}

/// Waits until at least one more block has come home.
fn collect(home: &Pool) {
    while home.collect() == 0 {
        thread::yield_now();
    }
}

/// Joins threads that only drop.
fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    threads.into_iter().for_each(|thread| thread.join().expect("it only drops"));
}

/// Uses a block on another core and drops it there.
fn away(cells: &Cells, remote: RemoteBuf, address: usize) -> thread::JoinHandle<()> {
    let cells = cells.clone();
    thread::spawn(move || {
        cells.touch(address);
        drop(remote);
    })
}

#[test]
fn blocks_return_from_two_cores_while_the_home_collects() {
    loom::model(|| {
        let home = pool(2);
        let blocks = all(&home);
        let cells = Cells::of(&blocks);
        let send = |block: Buf| {
            let address = block.address();
            cells.touch(address);
            away(&cells, block.into_remote(), address)
        };
        let threads: Vec<_> = blocks.into_iter().map(send).collect();
        // Whatever is back may be used at once; the other may return meanwhile.
        let mut blocks = Vec::new();
        while blocks.len() < 2 {
            collect(&home);
            let back = all(&home);
            back.iter().for_each(|block| cells.touch(block.address()));
            blocks.extend(back);
        }
        join(threads);
        drop(blocks);
        assert_eq!((home.leaked(), home.stats().remote_returns), (0, 2));
    });
}

#[test]
fn the_last_part_of_a_block_sends_it_home() {
    loom::model(|| {
        let home = pool(1);
        let mut rest = all(&home).remove(0);
        let address = rest.address();
        let front = rest.split_to(1024);
        let middle = rest.split_to(1024);
        // A cell per part, all of the block: the next owner touches them all.
        let cells = Arc::new([(); 3].map(UnsafeCell::new));
        let send = |which: usize, remote: RemoteBuf| {
            let cells = Arc::clone(&cells);
            thread::spawn(move || {
                cells[which].with_mut(|_| ());
                drop(remote);
            })
        };
        let threads = [send(0, front.into_remote()), send(1, middle.into_remote())];
        cells[2].with_mut(|_| ());
        drop(rest);
        // Home by the last of them, here or there.
        let block = loop {
            match home.alloc(BLOCK_MIN) {
                Some(block) => break block,
                None => thread::yield_now(),
            }
        };
        assert_eq!(block.address(), address);
        cells.iter().for_each(|cell| cell.with_mut(|_| ()));
        join(threads);
        drop(block);
        assert_eq!(home.leaked(), 0);
    });
}

#[test]
fn a_pool_ends_while_its_blocks_return() {
    loom::model(|| {
        let home = pool(2);
        let blocks = all(&home);
        let cells = Cells::of(&blocks);
        let send = |block: Buf| {
            let address = block.address();
            away(&cells, block.into_remote(), address)
        };
        let threads: Vec<_> = blocks.into_iter().map(send).collect();
        drop(home);
        join(threads);
    });
}

#[test]
fn a_block_goes_home_by_way_of_another_pool() {
    loom::model(|| {
        let home = pool(1);
        let block = all(&home).remove(0);
        let cells = Cells::of(std::slice::from_ref(&block));
        let address = block.address();
        let remote = block.into_remote();
        let cells_there = cells.clone();
        let thread = thread::spawn(move || {
            let other = Pool::new(1);
            let block = other.import(remote);
            cells_there.touch(address);
            drop(block);
        });
        collect(&home);
        all(&home).iter().for_each(|block| cells.touch(block.address()));
        drop(home);
        join([thread]);
    });
}

#[test]
fn the_last_clone_of_a_device_s_block_sends_it_home() {
    loom::model(|| {
        let home = pool(1);
        let block = all(&home).remove(0);
        let cells = Cells::of(std::slice::from_ref(&block));
        let address = block.address();
        let here = block.into_device();
        let (there, cells_there) = (here.clone(), cells.clone());
        let thread = thread::spawn(move || {
            // Clones share the memory: only looks, which race with nothing.
            cells_there.0[&address].with(|_| ());
            drop(there);
        });
        cells.0[&address].with(|_| ());
        drop(here);
        collect(&home);
        all(&home).iter().for_each(|block| cells.touch(block.address()));
        join([thread]);
        assert_eq!((home.leaked(), home.stats().remote_returns), (0, 1));
    });
}
