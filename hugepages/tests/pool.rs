//! The pool beyond the model: other cores, endings, exhaustion, counters, and no heap after start.
#![cfg(not(loom))]
#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::{Barrier, mpsc};
use std::thread;

use hugepages::{Arena, BLOCK_MIN, Buf, CLASSES, MAX_BUF, Pool, RemoteBuf};

thread_local! {
    /// Calls of the allocator by this thread.
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    CALLS.set(CALLS.get() + 1);
}

// SAFETY: hands everything to the system's allocator; the counter allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count();
        // SAFETY: as above.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn pool(id: u16, arena: &Arena, bytes: usize) -> Pool {
    let pool = Pool::new(id);
    arena.grow(bytes).expect("a heap arena grows to its size").into_iter().for_each(|chunk| pool.add(chunk));
    pool
}

fn drain(pool: &Pool, len: usize) -> Vec<Buf> {
    std::iter::from_fn(|| pool.alloc(len)).collect()
}

#[test]
fn nothing_allocates_after_start() {
    let arena = Arena::heap(48 << 20);
    let (home, other) = (pool(0, &arena, 32 << 20), pool(1, &arena, 16 << 20));
    arena.chunks().for_each(|chunk| other.know(&chunk));
    let mut held: Vec<Option<Buf>> = std::iter::repeat_with(|| None).take(16 << 10).collect();
    CALLS.set(0);
    // Every class to exhaustion, then back, here, by way of the other pool and as parts: magazines fill, spill and merge.
    for class in 0..CLASSES {
        for round in 0..2 {
            let mut count = 0;
            while let Some(buf) = home.alloc(BLOCK_MIN << class) {
                held[count] = Some(buf);
                count += 1;
            }
            for (index, slot) in held[..count].iter_mut().enumerate() {
                let Some(mut buf) = slot.take() else { continue };
                match (index + round) % 4 {
                    0 => drop(buf),
                    1 => drop(other.import(buf.into_remote())),
                    2 => drop(home.import(buf.into_remote())),
                    _ => {
                        let front = buf.split_to(100);
                        drop((front.into_remote(), buf));
                    }
                }
            }
        }
    }
    assert_eq!(home.leaked(), 0);
    assert!(home.stats().failures > 0 && home.stats().remote_returns > 0);
    assert_eq!(CALLS.get(), 0, "calls of the allocator");
}

#[test]
fn exhaustion_is_counted_and_ends_when_a_buffer_returns() {
    let arena = Arena::heap(2 * MAX_BUF);
    let pool = pool(0, &arena, 2 * MAX_BUF);
    let mut held = drain(&pool, MAX_BUF);
    assert_eq!((held.len(), pool.stats().failures), (2, 1));
    assert!(pool.alloc(1).is_none());
    let freed = pool.freed();
    assert_eq!(pool.collect(), 0);
    // Returned by another core, seen by the next collect, or by an allocation that finds nothing else.
    let remote = held.pop().expect("two are held").into_remote();
    thread::spawn(move || drop(remote)).join().expect("it only drops");
    assert_eq!(pool.freed(), freed);
    assert!(pool.alloc(1).is_some());
    assert!(pool.freed() > freed);
    // Beyond the largest class there is nothing to wait for.
    let failures = pool.stats().failures;
    assert!(pool.alloc(MAX_BUF + 1).is_none() && pool.alloc(usize::MAX).is_none());
    assert_eq!(pool.stats().failures, failures);
}

#[test]
fn counters_tell_what_is_out() {
    let arena = Arena::heap(4 * MAX_BUF);
    let pool = pool(7, &arena, 4 * MAX_BUF);
    assert_eq!(pool.id(), 7);
    let (small, mut large) = (pool.alloc(1).expect("room"), pool.alloc(100_000).expect("room"));
    let stats = pool.stats();
    assert_eq!((stats.bytes_total, stats.bytes_in_use), (4 * MAX_BUF, (4 << 10) + (128 << 10)));
    let in_use = |pool: &Pool| pool.stats().classes.map(|class| class.in_use);
    assert_eq!(in_use(&pool), [1, 0, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(stats.classes[5].size, 128 << 10);
    let front = large.split_to(10);
    drop((large, small));
    assert_eq!((pool.leaked(), in_use(&pool)[5]), (1, 1));
    drop(front);
    let stats = pool.stats();
    assert_eq!((stats.bytes_in_use, stats.bytes_high_water), (0, (4 << 10) + (128 << 10)));
    assert_eq!((pool.leaked(), stats.classes[0].cached, stats.classes[5].cached), (0, 1, 1));
}

#[test]
fn contents_and_places_survive_the_journey() {
    let arena = Arena::heap(34 << 20);
    let (home, other) = (pool(0, &arena, 17 << 20), pool(1, &arena, 17 << 20));
    let chunks: Vec<_> = arena.chunks().collect();
    assert_eq!(chunks.iter().map(|chunk| chunk.len() >> 20).collect::<Vec<_>>(), [16, 1, 16, 1]);
    let mut buf = home.alloc(5000).expect("room");
    buf.fill(0xC3);
    let chunk = &chunks[usize::from(buf.chunk())];
    assert_eq!(chunk.address() + buf.chunk_offset(), buf.address());
    assert_eq!(buf.iova(), None);
    chunk.set_iova(0x1_0000_0000);
    let back = buf.split_to(4096);
    assert_eq!(buf.iova(), Some(0x1_0000_0000 + buf.chunk_offset() as u64));
    let there = other.import(back.into_remote());
    assert_eq!((there.chunk(), there.len(), there.capacity()), (chunk.index(), 4096, 4096));
    // Joined with the part that followed it.
    let mut whole = home.import(there.into_remote());
    whole.unsplit(buf).expect("they are neighbours");
    assert_eq!((whole.len(), whole.capacity()), (5000, 8192));
    assert!(whole.iter().all(|byte| *byte == 0xC3));
}

#[test]
fn foreign_parts_are_not_joined() {
    let arena = Arena::heap(2 * MAX_BUF);
    let pool = pool(0, &arena, 2 * MAX_BUF);
    // Neighbours in memory, but two blocks.
    let (mut low, mut high) = (pool.alloc(BLOCK_MIN).expect("room"), pool.alloc(BLOCK_MIN).expect("room"));
    assert_eq!(low.address() + BLOCK_MIN, high.address());
    drop((low.split_to(100), high.split_to(0)));
    let high = low.unsplit(high).expect_err("another block");
    // A part that was shortened would leave a gap.
    drop((low, high));
    let mut rest = pool.alloc(BLOCK_MIN).expect("room");
    let mut front = rest.split_to(100);
    front.truncate(99);
    let rest = front.unsplit(rest).expect_err("a gap");
    front.set_len(100);
    front.unsplit(rest).expect("no gap");
    assert_eq!(front.capacity(), BLOCK_MIN);
}

#[test]
fn a_part_without_bytes_keeps_its_block() {
    let arena = Arena::heap(MAX_BUF);
    let pool = pool(0, &arena, MAX_BUF);
    let mut rest = pool.alloc(BLOCK_MIN).expect("room");
    let nothing = rest.split_to(0);
    let mut front = rest.split_to(100);
    front.unsplit(rest).expect("they are neighbours");
    assert_eq!((front.capacity(), nothing.capacity()), (BLOCK_MIN, 0));
    drop(front);
    assert_eq!(pool.leaked(), 1);
    drop(nothing);
    // At the end of a block such a part belongs to it, not to the next.
    let mut whole = pool.alloc(BLOCK_MIN).expect("room");
    let mut front = whole.split_to(BLOCK_MIN);
    front.unsplit(whole).expect("of the same block");
    assert_eq!((front.len(), front.capacity()), (BLOCK_MIN, BLOCK_MIN));
    drop(front);
    assert_eq!(pool.leaked(), 0);
    assert_eq!(drain(&pool, MAX_BUF).len(), 1);
}

#[test]
fn buffers_outlive_their_pool_and_arena() {
    let arena = Arena::heap(4 * MAX_BUF);
    let home = pool(0, &arena, 4 * MAX_BUF);
    let other = Pool::new(1);
    let mut buf = home.alloc(3 * BLOCK_MIN).expect("room");
    let mut sent = home.alloc(2 * BLOCK_MIN).expect("room");
    let mut split = home.alloc(MAX_BUF).expect("room");
    let local = home.clone().alloc(10).expect("room");
    buf.fill(1);
    sent.fill(2);
    split.fill(3);
    let front = split.split_to(1000).into_remote();
    let sent = other.import(sent.into_remote());
    drop((home, arena, local));
    // Home is gone, its core lives on with the buffers here.
    assert!(buf.iter().all(|byte| *byte == 1));
    drop(buf);
    assert!(split.iter().all(|byte| *byte == 3));
    drop(split);
    // Nothing of home is left on this core; the rest returns to nowhere and ends the memory.
    assert!(sent.iter().all(|byte| *byte == 2));
    drop(other);
    drop(sent);
    thread::spawn(move || assert!(front.iter().all(|byte| *byte == 3))).join().expect("the bytes are there");
}

#[test]
fn a_pool_of_two_arenas_and_buffers_of_a_third() {
    let arenas = [Arena::heap(MAX_BUF), Arena::heap(MAX_BUF), Arena::heap(MAX_BUF), Arena::heap(MAX_BUF)];
    let pool_of_two = pool(0, &arenas[0], MAX_BUF);
    arenas[1].grow(MAX_BUF).expect("room").into_iter().for_each(|chunk| pool_of_two.add(chunk));
    assert_eq!(drain(&pool_of_two, MAX_BUF).len(), 2);
    // Chunks of the same index, from different arenas, one after the other and at once.
    let others = [pool(1, &arenas[2], MAX_BUF), pool(2, &arenas[3], MAX_BUF)];
    let send = |from: &Pool| pool_of_two.import(from.alloc(MAX_BUF).expect("room").into_remote());
    let held = [send(&others[0]), send(&others[1])];
    drop(held);
    drop(send(&others[0]));
    assert_eq!((others[0].leaked(), others[1].leaked()), (0, 0));
    assert_eq!(pool_of_two.leaked(), 0);
}

/// Buffers of three cores change hands at random, in parts; in the end each is home.
#[test]
fn buffers_circulate_between_cores() {
    const CORES: usize = 3;
    let arena = Arena::heap(CORES * 4 * MAX_BUF);
    let (posts, boxes): (Vec<_>, Vec<_>) = (0..CORES).map(|_| mpsc::channel()).unzip();
    let all_dropped = Barrier::new(CORES);
    thread::scope(|scope| {
        for (core, mailbox) in boxes.into_iter().enumerate() {
            let (posts, arena, all_dropped) = (posts.clone(), &arena, &all_dropped);
            scope.spawn(move || {
                let pool = pool(core as u16, arena, 4 * MAX_BUF);
                circulate(core as u64, &pool, posts, &mailbox);
                // Ends when no core can send any more.
                mailbox.iter().for_each(drop);
                all_dropped.wait();
                assert_eq!(pool.leaked(), 0);
                assert!(pool.stats().remote_returns > 0, "nothing ever returned from another core");
                assert_eq!(drain(&pool, MAX_BUF).len(), 4, "not all merged");
            });
        }
        drop(posts);
    });
}

type Post = mpsc::Sender<(u8, RemoteBuf)>;

fn circulate(seed: u64, pool: &Pool, posts: Vec<Post>, mailbox: &mpsc::Receiver<(u8, RemoteBuf)>) {
    let mut random = 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(seed + 1);
    let mut chance = |bound: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % bound as u64) as usize
    };
    for _ in 0..3000 {
        if let Some(mut buf) = pool.alloc(1 << chance(21)) {
            let mark = chance(256) as u8;
            buf.truncate(2000);
            buf.fill(mark);
            while buf.len() > 200 {
                let part = buf.split_to(1 + chance(buf.len())).into_remote();
                posts[chance(posts.len())].send((mark, part)).expect("all cores still listen");
            }
        }
        pool.collect();
        while let Ok((mark, remote)) = mailbox.try_recv() {
            if chance(3) == 0 {
                continue;
            }
            let buf = pool.import(remote);
            assert!(buf.iter().all(|byte| *byte == mark), "torn or shared");
            if chance(3) == 0 {
                posts[chance(posts.len())].send((mark, buf.into_remote())).expect("all cores still listen");
            }
        }
    }
}
