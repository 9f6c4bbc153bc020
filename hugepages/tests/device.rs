//! Blocks given to a device: words, bounds, who returns them, and another core in the place of the device.
#![cfg(not(loom))]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use hugepages::{Arena, BLOCK_MIN, ChunkInfo, DeviceBuf, MAX_BUF, Pool};

fn pool(size: usize) -> (Pool, Vec<ChunkInfo>) {
    let pool = Pool::new(0);
    let chunks = Arena::heap(size).grow(size).expect("a heap arena grows to its size");
    let infos = chunks.iter().map(hugepages::Chunk::info).collect();
    chunks.into_iter().for_each(|chunk| pool.add(chunk));
    (pool, infos)
}

fn block(pool: &Pool, len: usize) -> DeviceBuf {
    pool.alloc(len).expect("room").into_device()
}

fn all_of(block: &DeviceBuf) -> Vec<u8> {
    let mut bytes = vec![0; block.len()];
    block.read(0, &mut bytes);
    bytes
}

#[test]
fn words_and_bytes_are_the_same_little_endian_memory() {
    let (pool, _) = pool(1 << 20);
    let block = block(&pool, 5000);
    assert_eq!(block.len(), 8192, "all of the block, not of the slice");
    block.write(0, &[0xEE; 8192]);
    block.zero();
    assert_eq!(all_of(&block), [0; 8192]);
    block.store32(4, 0x0403_0201);
    block.store64(8, 0x0C0B_0A09_0807_0605);
    block.store_words(64, &std::array::from_fn::<_, 8, _>(|i| i as u64 + 1));
    block.write(8187, &[1, 2, 3, 4, 5]);
    let mut expected = vec![0; 8192];
    expected[4..16].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    (0..8).for_each(|i| expected[64 + 8 * i] = i as u8 + 1);
    expected[8187..].copy_from_slice(&[1, 2, 3, 4, 5]);
    assert_eq!(all_of(&block), expected);
    assert_eq!((block.load32(4), block.load64(8)), (0x0403_0201, 0x0C0B_0A09_0807_0605));
    assert_eq!(block.load_words::<2>(112), [7, 8]);
    assert_eq!(block.load32(8188), 0x0504_0302);
    let mut odd = [0; 3];
    block.read(5, &mut odd);
    assert_eq!(odd, [2, 3, 4]);
}

#[test]
fn what_leaves_the_block_or_is_not_aligned_panics_and_does_nothing() {
    let (pool, _) = pool(1 << 20);
    for len in [BLOCK_MIN, 64 << 10, MAX_BUF] {
        let (block, beside) = (block(&pool, len), pool.alloc(0));
        if len == MAX_BUF {
            assert!(beside.is_none(), "all of the pool");
        }
        block.write(0, &vec![0x5A; len]);
        let refuses = |access: &dyn Fn(&DeviceBuf)| {
            let refused = catch_unwind(AssertUnwindSafe(|| access(&block)));
            let text = *refused.expect_err("an access that must not be").downcast::<String>().expect("a text");
            assert!(text.contains("outside, or not aligned"), "{text}");
        };
        for at in [1, 2, 3, 4093, len - 3, len - 1, len, len + 4, 2 * len, usize::MAX - 3, usize::MAX] {
            refuses(&|block| {
                block.load32(at);
            });
            refuses(&|block| block.store32(at, 0));
        }
        for at in [1, 4, len - 4, len - 7, len, len + 8, usize::MAX - 7] {
            refuses(&|block| {
                block.load64(at);
            });
            refuses(&|block| block.store64(at, 0));
        }
        for at in [8, 32, 63, len - 8, len - 32, len, len + 64, usize::MAX - 63] {
            refuses(&|block| block.store_words(at, &[0; 8]));
            refuses(&|block| {
                block.load_words::<8>(at);
            });
        }
        for (at, bytes) in [(len, 1), (len - 1, 2), (0, len + 1), (usize::MAX, 1), (len + 1, 0)] {
            refuses(&|block| block.write(at, &vec![0; bytes]));
            refuses(&|block| block.read(at, &mut vec![0; bytes]));
        }
        assert!(all_of(&block).iter().all(|byte| *byte == 0x5A));
        // The last of each are inside.
        block.store32(len - 4, 1);
        block.store64(len - 8, 1);
        block.store_words(len - 64, &[1; 8]);
        block.write(len, &[]);
        assert_eq!(block.load_words::<2>(len - 16), [1, 1]);
    }
}

#[test]
fn the_last_clone_returns_the_block_from_any_core() {
    let (pool, _) = pool(BLOCK_MIN);
    let here = block(&pool, 64);
    let (address, there) = (here.address(), here.clone());
    assert_eq!((pool.leaked(), there.address()), (1, address));
    there.store64(0, 7);
    drop(here);
    assert_eq!(pool.leaked(), 1, "a clone is left");
    let last = thread::spawn(move || {
        assert_eq!(there.load64(0), 7);
        drop(there);
    });
    last.join().expect("it looks and drops");
    assert_eq!(pool.leaked(), 0);
    let buf = pool.alloc(8).expect("the block is back");
    assert_eq!((buf.address(), &buf[..]), (address, &7_u64.to_le_bytes()[..]));
    // On its own core too it goes by the return list, which an allocation that finds nothing collects.
    drop(buf.into_device());
    assert_eq!(pool.alloc(8).expect("the block is back").address(), address);
    assert_eq!(pool.leaked(), 0);
}

#[test]
fn a_block_outlives_its_pool() {
    let (pool, _) = pool(1 << 20);
    let block = block(&pool, MAX_BUF);
    drop(pool);
    block.store32(MAX_BUF - 4, 9);
    thread::spawn(move || assert_eq!(block.load32(MAX_BUF - 4), 9)).join().expect("mapped still");
}

#[test]
fn a_part_of_a_block_is_refused_and_returns() {
    let (pool, _) = pool(1 << 20);
    let mut rest = pool.alloc(8192).expect("room");
    let front = rest.split_to(4096);
    let refused = catch_unwind(AssertUnwindSafe(|| front.into_device()));
    assert!(refused.is_err());
    drop(rest);
    assert_eq!(pool.leaked(), 0);
}

#[test]
fn device_addresses_are_those_of_the_buffer() {
    let (pool, chunks) = pool(1 << 20);
    let first = pool.alloc(4096).expect("room");
    let buf = pool.alloc(4096).expect("room");
    let offset = buf.chunk_offset() as u64;
    assert_ne!(offset, first.chunk_offset() as u64);
    let block = buf.into_device();
    assert_eq!(block.iova(), None, "not mapped yet");
    chunks[0].set_iova(1 << 39);
    assert_eq!(block.iova(), Some((1 << 39) + offset));
    assert_eq!(block.clone().iova(), block.iova());
}

#[test]
fn what_an_acquire_load_announces_is_whole() {
    const ENTRIES: usize = BLOCK_MIN / 16;
    const ROUNDS: u32 = 200;
    let (pool, _) = pool(1 << 20);
    let driver = block(&pool, BLOCK_MIN);
    driver.zero();
    let device = driver.clone();
    let posts = thread::spawn(move || {
        for round in 1..=ROUNDS {
            for at in (0..BLOCK_MIN).step_by(16) {
                device.store64(at, u64::from(round));
                device.store32(at + 8, round);
                device.store32(at + 12, round);
                // The head of the queue, so that no entry is overwritten before it was read.
                while at == BLOCK_MIN - 16 && device.load32(at + 8) != 0 {
                    thread::yield_now();
                }
            }
        }
    });
    for round in 1..=ROUNDS {
        for entry in 0..ENTRIES {
            let at = entry * 16;
            while driver.load32(at + 12) != round {
                thread::yield_now();
            }
            assert_eq!(driver.load64(at), u64::from(round), "entry {entry}");
            assert_eq!(driver.load32(at + 8), round, "entry {entry}");
        }
        driver.store32(BLOCK_MIN - 8, 0);
    }
    posts.join().expect("it only posts");
}
