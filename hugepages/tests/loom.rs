//! Every order in which buffers can come home from other cores:
//! `RUSTFLAGS="--cfg loom" cargo test -p hugepages --test loom --release`.
//!
//! A buffer's bytes are beyond the checker's sight, so each test gives a checked cell to a block: who holds the block
//! touches the cell, and two touches that nothing orders are a race. Chunks are counted by the checker's own `Arc`: one
//! that is freed twice, or never, fails the test.
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
        let threads: Vec<_> = blocks
            .into_iter()
            .map(|block| {
                let address = block.address();
                cells.touch(address);
                away(&cells, block.into_remote(), address)
            })
            .collect();
        home.collect();
        // Whatever is back may be used at once.
        all(&home).iter().for_each(|block| cells.touch(block.address()));
        threads.into_iter().for_each(|thread| thread.join().expect("it only drops"));
        assert_eq!(home.leaked(), 0);
        assert_eq!(home.stats().remote_returns, 2);
        let blocks = all(&home);
        assert_eq!(blocks.len(), 2);
        blocks.iter().for_each(|block| cells.touch(block.address()));
    });
}

#[test]
fn the_last_part_of_a_block_sends_it_home() {
    loom::model(|| {
        let home = pool(1);
        let mut parts = all(&home);
        let address = parts[0].address();
        let front = parts[0].split_to(1024);
        let middle = parts[0].split_to(1024);
        // A cell per part, all of the block: the next owner touches them all.
        let cells = Arc::new([UnsafeCell::new(()), UnsafeCell::new(()), UnsafeCell::new(())]);
        let part = |which: usize, remote: RemoteBuf| {
            let cells = Arc::clone(&cells);
            thread::spawn(move || {
                cells[which].with_mut(|_| ());
                drop(remote);
            })
        };
        let threads = [part(0, front.into_remote()), part(1, middle.into_remote())];
        cells[2].with_mut(|_| ());
        parts.clear();
        if let Some(block) = home.alloc(BLOCK_MIN) {
            assert_eq!(block.address(), address);
            cells.iter().for_each(|cell| cell.with_mut(|_| ()));
        }
        threads.into_iter().for_each(|thread| thread.join().expect("it only drops"));
        assert_eq!(home.leaked(), 0);
        assert_eq!(all(&home).len(), 1);
    });
}

#[test]
fn a_pool_ends_while_its_blocks_return() {
    loom::model(|| {
        let home = pool(2);
        let blocks = all(&home);
        let cells = Cells::of(&blocks);
        let threads: Vec<_> = blocks
            .into_iter()
            .map(|block| {
                let address = block.address();
                away(&cells, block.into_remote(), address)
            })
            .collect();
        drop(home);
        threads.into_iter().for_each(|thread| thread.join().expect("it only drops"));
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
        let thread = {
            let cells = cells.clone();
            thread::spawn(move || {
                let other = Pool::new(1);
                let block = other.import(remote);
                cells.touch(address);
                drop(block);
            })
        };
        if let Some(block) = home.alloc(BLOCK_MIN) {
            cells.touch(block.address());
        }
        drop(home);
        thread.join().expect("it only drops");
    });
}
