//! Nanoseconds of what the data path does most: `cargo bench -p hugepages`. Prints a table, judges nothing.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock itself")]

use std::hint::black_box;
use std::time::Instant;

use hugepages::{Arena, ArenaOptions, Buf, HugepagePolicy, Pool, Region, RegionOptions};

/// The best of five rounds of `count` turns, in nanoseconds per turn.
fn time(name: &str, count: u32, mut turn: impl FnMut()) {
    let round = |_| {
        let start = Instant::now();
        for _ in 0..count {
            turn();
        }
        start.elapsed().as_secs_f64() * 1e9 / f64::from(count)
    };
    let best = (0..5).map(round).fold(f64::INFINITY, f64::min);
    println!("{name:<52} {best:>9.1} ns");
}

fn pool(id: u16) -> Pool {
    let pool = Pool::new(id);
    let chunks = Arena::heap(64 << 20).grow(64 << 20).expect("a heap arena grows to its size");
    chunks.into_iter().for_each(|chunk| pool.add(chunk));
    pool
}

fn main() {
    let home = pool(0);
    let other = pool(1);
    let alloc = |len: usize| home.alloc(black_box(len)).expect("64 MiB hold this");

    time("alloc and drop 4 KiB", 2_000_000, || drop(black_box(alloc(4096))));
    time("alloc and drop 1 MiB", 2_000_000, || drop(black_box(alloc(1 << 20))));
    let mut held: Vec<Buf> = Vec::with_capacity(128);
    time("alloc 128 of 4 KiB, then drop all: per buffer / 128", 20_000, || {
        held.extend((0..128).map(|_| alloc(4096)));
        black_box(&held);
        held.clear();
    });
    let mut held: Vec<Buf> = Vec::with_capacity(2048);
    time("alloc 2048 of 4 KiB, then drop all: per buffer / 2048", 1_000, || {
        held.extend((0..2048).map(|_| alloc(4096)));
        black_box(&held);
        held.clear();
    });
    time("split 64 KiB in two and drop both", 1_000_000, || {
        let mut rest = alloc(64 << 10);
        let front = rest.split_to(8192);
        drop(black_box((front, rest)));
    });
    time("alloc, to another pool, drop there, collect", 1_000_000, || {
        drop(black_box(other.import(alloc(4096).into_remote())));
        home.collect();
    });
    time("collect nothing", 5_000_000, || {
        black_box(home.collect());
    });

    let region = Region::new(1 << 30, RegionOptions::default()).expect("1 GiB of address space");
    let mut private = alloc(1 << 20);
    let mut second = alloc(1 << 20);
    for len in [512, 4096, 65_536, 1 << 20] {
        let count = u32::try_from((256 << 20) / len).unwrap_or(1).min(1_000_000);
        time(&format!("memcpy of {len}"), count, || {
            black_box(&mut second[..len]).copy_from_slice(black_box(&private[..len]))
        });
        time(&format!("Region::write of {len}"), count, || region.write(black_box(0), &private[..len]));
        time(&format!("Region::read of {len}"), count, || region.read(black_box(0), &mut private[..len]));
        time(&format!("Region::compare of {len}"), count, || {
            black_box(region.compare(black_box(0), &private[..len])).expect("just read");
        });
    }

    for policy in [HugepagePolicy::Off, HugepagePolicy::Prefer] {
        let options = ArenaOptions { size: 256 << 20, hugepages: policy, numa_node: None };
        time(&format!("arena of 256 MiB ({policy:?}): make and grow to 32 MiB"), 1, || {
            let arena = Arena::new(options).expect("256 MiB of address space");
            black_box(arena.grow(32 << 20).expect("32 MiB of memory"));
        });
    }
}
