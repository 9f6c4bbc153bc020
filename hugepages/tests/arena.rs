//! The arena on the machine's own memory: plain pages, real hugepages, NUMA binding, limits of ordinary users.
//!
//! Tests of hugepages reserve a few as root and give them back; without root they say so and check the refusal only.
#![cfg(not(loom))]

use std::env;
use std::fs::{self, File};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use hugepages::{Arena, ArenaError, ArenaOptions, BLOCK_MIN, ChunkInfo, HugepagePolicy, MAX_BUF, Pool};

const MIB: usize = 1 << 20;
const HUGE: usize = 2 * MIB;
const COUNTER: &str = "/proc/sys/vm/nr_hugepages";
/// Names the test whose body runs in a child process.
const CHILD: &str = "ARENA_TEST_CHILD";

fn options(size: usize, hugepages: HugepagePolicy) -> ArenaOptions {
    ArenaOptions { size, hugepages, numa_node: None }
}

fn plain(size: usize) -> Arena {
    Arena::new(options(size, HugepagePolicy::Off)).expect("plain pages")
}

/// The lines about the mapping that holds `address`, in one of the maps of this process.
fn mapping(map: &str, address: usize) -> Vec<String> {
    let text = fs::read_to_string(format!("/proc/self/{map}")).expect("proc is mounted");
    let range = |line: &str| {
        let (start, rest) = line.split_once('-')?;
        let end = rest.split(' ').next()?;
        Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
    };
    let mut lines = text.lines().skip_while(|line| !range(line).is_some_and(|range| range.contains(&address)));
    let first = lines.next().expect("the address is mapped");
    let details = lines.take_while(|line| range(line).is_none());
    std::iter::once(first).chain(details).map(str::to_owned).collect()
}

/// The value of a line of smaps, in bytes.
fn detail(address: usize, name: &str) -> usize {
    let lines = mapping("smaps", address);
    let line = lines.iter().find_map(|line| line.strip_prefix(name)).expect("a line of smaps");
    let kib: usize = line.trim_start_matches(':').trim().trim_end_matches(" kB").parse().expect("a number of kB");
    kib * 1024
}

fn read_shared(fd: BorrowedFd<'_>, offset: u64, len: usize) -> Vec<u8> {
    let file = File::from(fd.try_clone_to_owned().expect("a descriptor is free"));
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, offset).expect("the memfd has the whole arena");
    bytes
}

/// Hands out and fills all of the arena, and finds the bytes again through the descriptor.
fn fill_and_share(arena: &Arena) {
    let pool = Pool::new(0);
    while let Some(chunk) = arena.grow(4 * MAX_BUF).expect("room").pop() {
        pool.add(chunk);
    }
    let mut held: Vec<_> = std::iter::from_fn(|| pool.alloc(MAX_BUF)).collect();
    assert_eq!(held.len(), arena.stats().size / MAX_BUF);
    assert!(held.iter().all(|buf| buf.iter().all(|byte| *byte == 0)), "not zeroed");
    let chunks: Vec<ChunkInfo> = arena.chunks().collect();
    for (mark, buf) in held.iter_mut().enumerate() {
        buf.fill(mark as u8 + 1);
    }
    for (mark, buf) in held.iter().enumerate() {
        let chunk = &chunks[usize::from(buf.chunk())];
        let fd = chunk.memfd().expect("a mapped arena has one");
        let seen = read_shared(fd, chunk.offset() + buf.chunk_offset() as u64, buf.len());
        assert!(seen.iter().all(|byte| *byte == mark as u8 + 1), "other bytes in the memfd");
    }
}

#[test]
fn plain_pages_come_in_chunks() {
    let arena = plain(40 * MIB + 1);
    assert_eq!((arena.page_size(), arena.warning()), (BLOCK_MIN, None));
    assert_eq!(arena.chunks().count(), 0);
    let first = arena.grow(1).expect("room");
    assert_eq!(first.len(), 1);
    let rest = arena.grow(usize::MAX).expect("room");
    let infos: Vec<ChunkInfo> = arena.chunks().collect();
    let lens: Vec<usize> = infos.iter().map(ChunkInfo::len).collect();
    assert_eq!(lens, [MIB, 16 * MIB, 16 * MIB, 7 * MIB + BLOCK_MIN]);
    assert_eq!(rest.iter().map(|chunk| chunk.info().index()).collect::<Vec<_>>(), [1, 2, 3]);
    for (before, after) in infos.iter().zip(&infos[1..]) {
        assert_eq!(before.offset() + before.len() as u64, after.offset());
        assert_eq!(before.address() + before.len(), after.address());
    }
    assert!(infos.iter().all(|chunk| chunk.iova().is_none() && chunk.page_size() == BLOCK_MIN));
    // All of it is present before anybody touches it; and then there is no more.
    assert_eq!(detail(infos[0].address(), "Rss"), 40 * MIB + BLOCK_MIN);
    assert!(arena.grow(1).expect("no more, but no error").is_empty());
    let stats = arena.stats();
    assert_eq!((stats.size, stats.populated, stats.chunks), (40 * MIB + BLOCK_MIN, 40 * MIB + BLOCK_MIN, 4));
}

/// What the kernel refuses to map leaves a hole in the address space, which is not the arena's any more.
#[test]
fn refused_hugepages_leave_the_memory_of_other_threads_alone() {
    const TOO_MUCH: usize = (1 << 40) + HUGE;
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                // Large enough to get a mapping of its own, wherever there is room.
                let mut bytes = vec![0_u8; 64 * MIB];
                bytes[MIB] = 0xa5;
                std::hint::spin_loop();
                assert_eq!(bytes[MIB], 0xa5, "lost");
            }
        });
        for _ in 0..20_000 {
            let refused = Arena::new(options(TOO_MUCH, HugepagePolicy::Require));
            assert!(matches!(refused, Err(ArenaError::Hugepages { .. })), "{refused:?}");
        }
        ended.store(true, Ordering::Relaxed);
    });
}

#[test]
fn nothing_is_populated_before_growth() {
    let arena = plain(64 * MIB);
    let chunk = arena.grow(MIB).expect("room").remove(0).info();
    assert_eq!(detail(chunk.address(), "Rss"), MIB);
}

#[test]
fn plain_pages_are_shared_by_the_descriptor() {
    fill_and_share(&plain(20 * MIB));
}

#[test]
fn the_descriptor_cannot_be_resized() {
    let arena = plain(MIB);
    let chunk = arena.grow(MIB).expect("room").remove(0).info();
    let file = File::from(chunk.memfd().expect("a descriptor").try_clone_to_owned().expect("a descriptor is free"));
    assert_eq!(file.metadata().expect("a file").size(), MIB as u64);
    assert!(file.set_len(0).is_err(), "whoever shares the memory could take it away");
}

#[test]
fn memory_goes_when_the_last_holder_goes() {
    let arena = plain(MIB);
    let inode = |address: usize| {
        let line = mapping("maps", address).remove(0);
        line.split_whitespace().nth(4).expect("an inode").to_owned()
    };
    let pool = Pool::new(0);
    arena.grow(MIB).expect("room").into_iter().for_each(|chunk| pool.add(chunk));
    let remote = pool.alloc(1).expect("room").into_remote();
    let inode = inode(arena.chunks().next().expect("grown").address());
    let mapped = || {
        let maps = fs::read_to_string("/proc/self/maps").expect("proc is mounted");
        maps.lines().any(|line| line.contains("reactor-arena") && line.contains(&format!(" {inode} ")))
    };
    drop((arena, pool));
    assert!(mapped(), "unmapped while a buffer is on its way");
    drop(remote);
    assert!(!mapped(), "still mapped after the last buffer");
}

#[test]
fn memory_of_a_node_is_bound_to_it() {
    let on = |node: u32| Arena::new(ArenaOptions { numa_node: Some(node), ..options(4 * MIB, HugepagePolicy::Off) });
    let arena = on(0).expect("node 0 is everywhere");
    let chunk = arena.grow(4 * MIB).expect("room").remove(0).info();
    let text = fs::read_to_string("/proc/self/numa_maps").unwrap_or_default();
    let start = format!("{:x} ", chunk.address());
    match text.lines().find(|line| line.starts_with(&start)) {
        Some(line) => assert!(line.contains("bind:0") && line.contains("N0=1024"), "{line}"),
        None => assert!(text.is_empty(), "not in numa_maps"),
    }
    assert!(matches!(on(999), Err(ArenaError::NumaNode { node: 999 })));
    assert!(matches!(on(5000), Err(ArenaError::NumaNode { node: 5000 })));
}

#[test]
fn impossible_sizes_are_errors() {
    for size in [0, usize::MAX, 1 << 50] {
        let made = Arena::new(options(size, HugepagePolicy::Off));
        assert!(matches!(made, Err(ArenaError::Size { .. })), "{size}");
    }
}

/// True in the parent, after the same test ran in a child with `limits` (of prlimit) and, if this is root, as an ordinary
/// user; false in the child.
fn ran_in_child(test: &str, limits: &[&str]) -> bool {
    if env::var(CHILD).is_ok_and(|name| name == test) {
        return false;
    }
    // The build folder may be out of an ordinary user's reach.
    let folder = env::temp_dir().join(format!("arena-test-{}-{test}", std::process::id()));
    fs::create_dir(&folder).expect("a temporary folder");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("own folder");
    let program = folder.join("test");
    fs::copy(env::current_exe().expect("a path"), &program).expect("room for a copy");
    let mut command = Command::new("prlimit");
    command.args(limits).arg("--").arg(&program).args(["--exact", test, "--nocapture"]).env(CHILD, test);
    if is_root() {
        command.uid(65534).gid(65534);
    }
    let output = command.output();
    fs::remove_dir_all(&folder).expect("own folder");
    let output = output.expect("prlimit is there (util-linux)");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "in the child: {text}");
    true
}

fn is_root() -> bool {
    fs::metadata("/proc/self").expect("proc is mounted").uid() == 0
}

#[test]
fn an_ordinary_user_with_little_memlock_has_an_arena() {
    if ran_in_child("an_ordinary_user_with_little_memlock_has_an_arena", &["--memlock=8388608"]) {
        return;
    }
    assert!(!is_root());
    let limits = fs::read_to_string("/proc/self/limits").expect("proc is mounted");
    assert!(limits.lines().any(|line| line.starts_with("Max locked memory") && line.contains("8388608")));
    fill_and_share(&Arena::new(options(48 * MIB, HugepagePolicy::Prefer)).expect("plain pages at least"));
}

#[test]
fn no_address_space_is_an_error() {
    if ran_in_child("no_address_space_is_an_error", &["--as=2147483648"]) {
        return;
    }
    let error = Arena::new(options(4 << 30, HugepagePolicy::Off)).expect_err("more than the limit");
    assert!(matches!(error, ArenaError::Map { .. }), "{error}");
    assert!(error.to_string().contains("ulimit -v"), "{error}");
    fill_and_share(&plain(8 * MIB));
}

/// Extra hugepages while it lives. One test at a time, in all processes of this machine.
struct Reserved {
    pages: usize,
    _lock: File,
}

fn counter() -> usize {
    fs::read_to_string(COUNTER).expect("the kernel has hugepages").trim().parse().expect("a number")
}

fn free() -> usize {
    let read = |name: &str| -> usize {
        let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{name}");
        fs::read_to_string(path).expect("2 MiB pages").trim().parse().expect("a number")
    };
    read("free_hugepages") - read("resv_hugepages")
}

/// True once `pages` are free. Pages come back a little after their arena went: a child process that another test is
/// starting has the descriptor until its exec.
fn free_becomes(pages: usize) -> bool {
    for _ in 0..500 {
        if free() == pages {
            return true;
        }
        #[expect(clippy::disallowed_methods, reason = "a test waits for the kernel")]
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    false
}

impl Reserved {
    /// Makes exactly `pages` free, or none if that is not ours to do.
    fn exactly(pages: usize) -> Option<Self> {
        let lock = File::create(env::temp_dir().join("hugepages-test.lock")).ok()?;
        lock.lock().ok()?;
        if !is_root() || !free_becomes(0) {
            eprintln!("skipped: not root, or hugepages are free already");
            return None;
        }
        let reserved = Self { pages, _lock: lock };
        fs::write(COUNTER, (counter() + pages).to_string()).expect("root");
        if !free_becomes(pages) {
            eprintln!("skipped: memory is too fragmented for {pages} hugepages");
            return None;
        }
        Some(reserved)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let restored = fs::write(COUNTER, counter().saturating_sub(self.pages).to_string());
        if let Err(error) = restored {
            eprintln!("{COUNTER} could not be restored: {error}");
        }
    }
}

#[test]
fn hugepages_where_the_machine_has_them() {
    let Some(_pages) = Reserved::exactly(8) else {
        return;
    };
    for (policy, node) in [(HugepagePolicy::Require, None), (HugepagePolicy::Prefer, Some(0))] {
        let arena =
            Arena::new(ArenaOptions { numa_node: node, ..options(15 * MIB, policy) }).expect("8 pages are free");
        assert_eq!((arena.page_size(), arena.warning(), arena.stats().size), (HUGE, None, 16 * MIB));
        // Reserved from the start: nobody else can take them.
        assert_eq!(free(), 0);
        let chunks = arena.grow(3 * MIB).expect("reserved pages");
        let info = chunks[0].info();
        assert_eq!((chunks.len(), info.len(), info.page_size()), (1, 2 * HUGE, HUGE));
        assert_eq!(info.address() % HUGE, 0);
        assert_eq!(detail(info.address(), "KernelPageSize"), HUGE);
        drop(chunks);
        let arena_of_rest = arena.grow(usize::MAX).expect("reserved pages");
        assert_eq!(arena_of_rest[0].info().len(), 6 * HUGE);
        drop((arena, arena_of_rest, info));
        assert!(free_becomes(8));
        fill_and_share(&Arena::new(options(16 * MIB, policy)).expect("they are free again"));
        assert!(free_becomes(8));
    }
}

#[test]
fn too_few_hugepages_are_refused_or_replaced() {
    let Some(_pages) = Reserved::exactly(3) else {
        return;
    };
    let holder = Arena::new(options(2 * HUGE, HugepagePolicy::Require)).expect("3 pages are free");
    let counted = counter();
    let command = format!("echo {} > /proc/sys/vm/nr_hugepages", counted + 3);

    let error = Arena::new(options(4 * HUGE, HugepagePolicy::Require)).expect_err("1 page is free");
    let text = error.to_string();
    assert!(text.contains("needs 4 hugepages of 2 MiB, 1 are free") && text.contains(&command), "{text}");

    let arena = Arena::new(options(4 * HUGE, HugepagePolicy::Prefer)).expect("plain pages");
    assert_eq!(arena.page_size(), BLOCK_MIN);
    let warning = arena.warning().expect("a fallback").to_owned();
    assert!(warning.contains(&command) && !warning.contains('\n'), "{warning}");
    fill_and_share(&arena);

    // The advice is right: after the command, it works.
    fs::write(COUNTER, (counted + 3).to_string()).expect("root");
    let made = Arena::new(options(4 * HUGE, HugepagePolicy::Require)).map(|arena| arena.page_size());
    fs::write(COUNTER, counted.to_string()).expect("root");
    assert_eq!(made.expect("as many as it asked for"), HUGE);
    drop(holder);
}

#[test]
fn without_hugepages_requiring_them_names_the_remedy() {
    let Some(_none) = Reserved::exactly(0) else {
        return;
    };
    let text = Arena::new(options(16 * MIB, HugepagePolicy::Require)).expect_err("none are free").to_string();
    let command = format!("echo {} > /proc/sys/vm/nr_hugepages", counter() + 8);
    assert!(text.contains(&command) && text.contains("hugepages = \"prefer\""), "{text}");
    let on_node = ArenaOptions { numa_node: Some(0), ..options(16 * MIB, HugepagePolicy::Require) };
    let text = Arena::new(on_node).expect_err("none are free").to_string();
    assert!(
        text.contains("on NUMA node 0") && text.contains("/node0/hugepages/hugepages-2048kB/nr_hugepages"),
        "{text}"
    );
}
