use super::*;
use crate::bdev::device::testing::{One, count_together, pattern, race_plain_writes};
use crate::bdev::{ExtentState, conformance, extents};
use crate::reactor::io::{IoOp, IoStatus, Segment};
use crate::sys::ublk::{RequestData, Requests};
use rustix::fs::{MemfdFlags, memfd_create};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

fn options(path: &Path, size: u64, block_size: u32, direct: bool) -> Options {
    Options {
        name: "disk".to_owned(),
        uuid: [0; 16],
        path: path.to_owned(),
        size,
        block_size,
        physical_block_size: block_size,
        direct,
        home: 0,
    }
}

/// A directory on a file system that has direct I/O: the build's own.
fn directory() -> tempfile::TempDir {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    tempfile::tempdir_in(if target.is_dir() { target } else { std::env::temp_dir() }).unwrap()
}

fn create(path: &Path, size: u64, block_size: u32, direct: bool) -> Arc<dyn BlockDevice> {
    Arc::new(File::create(options(path, size, block_size, direct)).unwrap())
}

/// A file with a unit of direct I/O that is larger than a block.
fn with_unit(path: &Path, size: u64, unit: u32) -> Arc<dyn BlockDevice> {
    let file = std::fs::File::options().read(true).write(true).create(true).truncate(false).open(path).unwrap();
    file.set_len(size).unwrap();
    let geometry = Geometry { memory: 4096, unit, zeroes: unit, physical: unit, allocation: unit, direct: true };
    let descriptor = Descriptor::from(std::os::fd::OwnedFd::from(file));
    Arc::new(File::over(options(path, size, 512, true), descriptor, geometry))
}

/// A file in memory, and the path by which it can be opened as long as it is open.
fn memory_file(size: u64) -> (std::fs::File, std::path::PathBuf) {
    let file = std::fs::File::from(memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
    (file, path)
}

/// The data of a request, as the kernel has it for a ublk server, in a file that stands in for it.
struct Pages(Requests);

impl Pages {
    fn new() -> Pages {
        let (file, _) = memory_file(2 << 20);
        Pages(Requests::stand_in(file.try_clone().unwrap(), file))
    }

    fn data(&self, len: usize) -> RequestData {
        self.0.data(0, 0, len as u32, None)
    }

    /// Executes a read or a write whose data is that of a request.
    fn run(&self, one: &One, op: IoOp, offset: u64, len: usize) -> IoStatus {
        let mut io = one.io(op, offset, len as u64, &[], &[]);
        io.data.push(Segment::Request(self.data(len)));
        let handle = one.handle.clone();
        let io = one.reactor.run_until(async move { handle.execute(io).await });
        let status = io.status;
        one.reactor.retire_io(io);
        status
    }

    fn write(&self, one: &One, offset: u64, bytes: &[u8]) -> IoStatus {
        self.data(bytes.len()).give(0, bytes).unwrap();
        self.run(one, IoOp::Write, offset, bytes.len())
    }

    fn read(&self, one: &One, offset: u64, len: usize) -> Result<Vec<u8>, IoStatus> {
        self.data(len).give(0, &vec![0xDB; len]).unwrap();
        match self.run(one, IoOp::Read, offset, len) {
            IoStatus::Success => {
                let mut bytes = vec![0; len];
                self.data(len).take(0, &mut bytes).unwrap();
                Ok(bytes)
            }
            status => Err(status),
        }
    }
}

/// Runs `body` on a file of each kind: buffered and direct, blocks of 512 and 4096, a unit above the block, and in memory.
fn on_each_kind(size: u64, body: impl Fn(&One, &Path)) {
    let directory = directory();
    for (index, (block_size, direct)) in [(512, false), (512, true), (4096, true)].into_iter().enumerate() {
        let path = directory.path().join(format!("disk{index}.img"));
        let one = One::new(&create(&path, size, block_size, direct));
        body(&one, &path);
        one.close();
    }
    let path = directory.path().join("units.img");
    let one = One::new(&with_unit(&path, size, 4096));
    body(&one, &path);
    one.close();
    let (_open, path) = memory_file(size);
    let one = One::new(&create(&path, size, 512, true));
    body(&one, &path);
    one.close();
}

/// The extents from an offset on.
fn told(one: &One, offset: u64) -> Vec<(u64, u64, ExtentState)> {
    let done = one.run(IoOp::Extents, offset, 4096, &[1; 4096]);
    assert_eq!(done.status, IoStatus::Success);
    extents(&done.data).map(|extent| (extent.offset.get(), extent.len.get(), extent.state)).collect()
}

#[test]
fn extents_are_what_is_in_the_file_and_asking_keeps_nobody_out() {
    const D: ExtentState = ExtentState::DEALLOCATED;
    const M: ExtentState = ExtentState::MAPPED;
    let directory = directory();
    let (memory, in_memory) = memory_file(1 << 20);
    let paths = [(directory.path().join("a"), true), (directory.path().join("b"), false), (in_memory, true)];
    for (path, direct) in paths {
        for _ in 0..20 {
            let one = One::new(&create(&path, 1 << 20, 512, direct));
            one.write(65_536, &pattern(1, 8192));
            assert_eq!(told(&one, 0), [(0, 65_536, D), (65_536, 8192, M), (73_728, (1 << 20) - 73_728, D)], "{path:?}");
            assert_eq!(told(&one, 66_048)[0], (66_048, 7680, M));
            assert_eq!(one.status(IoOp::Unmap, 65_536, 4096), IoStatus::Success);
            assert_eq!(told(&one, 0)[..2], [(0, 69_632, D), (69_632, 4096, M)]);
            assert_eq!(one.status(IoOp::Unmap, 0, 1 << 20), IoStatus::Success);
            assert_eq!(told(&one, 0), [(0, 1 << 20, D)]);
            // Opened again at once: the lock is not the thread's.
            one.close();
        }
    }
    drop(memory);
    let one = One::new(&with_unit(&directory.path().join("c"), 1 << 20, 4096));
    assert_eq!(told(&one, 512), [(512, (1 << 20) - 512, M)], "opened elsewhere: nobody looks");
    one.close();
}

#[test]
fn a_file_in_memory_passes_the_conformance_suite() {
    let (_open, path) = memory_file(8 << 20);
    let make = || {
        // What the last one wrote goes.
        std::fs::File::options().write(true).truncate(true).open(&path).unwrap().set_len(8 << 20).unwrap();
        create(&path, 8 << 20, 512, true)
    };
    let options = conformance::Options { grow_to: Some(16 << 20), ..conformance::Options::default() };
    conformance::run(make, &options);
}

#[test]
fn requests_are_copied_to_a_file_in_memory_and_back_wherever_they_lie() {
    const SIZE: u64 = 4 << 20;
    let (file, path) = memory_file(SIZE);
    let device = create(&path, SIZE, 512, true);
    let one = One::new(&device);
    let pages = Pages::new();
    let mut model = vec![0; SIZE as usize];
    let places = [(0, 512), (512, 8192), (4096, 4096), (65_024, 1024), (1 << 20, 1 << 20), (SIZE - 512, 512)];
    for (seed, (offset, len)) in (0..).zip(places) {
        assert!(pages.read(&one, offset, len).unwrap() == model[offset as usize..][..len], "before: {offset}+{len}");
        let data = pattern(seed, len);
        assert_eq!(pages.write(&one, offset, &data), IoStatus::Success);
        model[offset as usize..][..len].copy_from_slice(&data);
        // Once by what is known now, and through memory of ours.
        assert!(pages.read(&one, offset, len).unwrap() == data && one.read(offset, len) == data, "{offset}+{len}");
    }
    for op in [IoOp::Unmap, IoOp::WriteZeroes] {
        let (offset, len) = if op == IoOp::Unmap { (512, 8192) } else { ((1 << 20) + 512, 64 << 10) };
        assert_eq!(one.status(op, offset, len), IoStatus::Success);
        model[offset as usize..][..len as usize].fill(0);
        assert!(pages.read(&one, offset, len as usize).unwrap() == vec![0; len as usize], "{op:?}");
    }
    for at in (0..SIZE).step_by(1 << 20) {
        assert!(pages.read(&one, at, 1 << 20).unwrap() == model[at as usize..][..1 << 20], "at {at}");
    }
    let mut stored = vec![0; SIZE as usize];
    file.read_exact_at(&mut stored, 0).unwrap();
    assert!(stored == model);
    device.grow(16 << 20).unwrap();
    let data = pattern(9, 1 << 20);
    for offset in [SIZE - 512, 15 << 20] {
        assert_eq!(pages.write(&one, offset, &data), IoStatus::Success);
        assert!(pages.read(&one, offset, 1 << 20).unwrap() == data, "grown, {offset}");
    }
    one.close();
}

#[test]
fn reading_holes_of_a_file_in_memory_takes_no_memory() {
    const SIZE: u64 = 64 << 20;
    let (file, path) = memory_file(SIZE);
    let one = One::new(&create(&path, SIZE, 512, true));
    let pages = Pages::new();
    let allocated = || file.metadata().unwrap().blocks() * 512;
    let read_all = || {
        for _ in 0..2 {
            for at in (0..SIZE).step_by(1 << 20) {
                pages.read(&one, at, 1 << 20).unwrap();
            }
        }
    };
    read_all();
    assert_eq!(allocated(), 0);
    assert_eq!(pages.write(&one, 5 << 20, &pattern(1, 8192)), IoStatus::Success);
    // Found by reading, and not by writing.
    file.write_all_at(&pattern(2, 4096), 7 << 20).unwrap();
    read_all();
    assert_eq!(allocated(), 3 * 4096);
    assert_eq!(one.status(IoOp::Unmap, 5 << 20, 8192), IoStatus::Success);
    assert_eq!(one.status(IoOp::WriteZeroes, 7 << 20, 4096), IoStatus::Success);
    read_all();
    assert_eq!(allocated(), 0, "what was given back stays so");
    one.close();
}

#[test]
fn a_file_in_memory_that_was_shortened_gives_an_error_and_nothing_else_ends() {
    let (file, path) = memory_file(4 << 20);
    let one = One::new(&create(&path, 4 << 20, 512, true));
    let pages = Pages::new();
    let data = pattern(1, 64 << 10);
    for at in [0, 3 << 20] {
        assert_eq!(pages.write(&one, at, &data), IoStatus::Success);
    }
    file.set_len(1 << 20).unwrap();
    assert_eq!(pages.read(&one, 3 << 20, data.len()), Err(IoStatus::DeviceError));
    assert_eq!(pages.read(&one, (1 << 20) - 512, 1024), Err(IoStatus::DeviceError));
    let done = one.run(IoOp::Read, 3 << 20, 512, &[7; 512]);
    assert_eq!((done.status, done.data), (IoStatus::DeviceError, vec![0; 512]));
    assert!(pages.read(&one, 0, data.len()).unwrap() == data);
    // Within its last page, which a mapping has as a whole.
    file.set_len((64 << 10) - 1024).unwrap();
    assert_eq!(one.run(IoOp::Read, (64 << 10) - 512, 512, &[7; 512]).status, IoStatus::DeviceError);
    let last = pages.read(&one, (64 << 10) - 4096, 4096).unwrap();
    assert!(last[..3072] == data[(60 << 10)..][..3072] && last[3072..] == [0; 1024]);
    one.close();
}

#[test]
fn a_flush_tells_that_a_file_in_memory_has_changed() {
    let (file, path) = memory_file(1 << 20);
    let one = One::new(&create(&path, 1 << 20, 512, true));
    let pages = Pages::new();
    assert_eq!(pages.write(&one, 0, &pattern(1, 4096)), IoStatus::Success);
    let changed = || file.metadata().unwrap().mtime();
    let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1000);
    file.set_modified(long_ago).unwrap();
    assert_eq!(one.status(IoOp::Flush, 0, 0), IoStatus::Success);
    assert!(changed() > 1000, "of the write before");
    file.set_modified(long_ago).unwrap();
    assert_eq!(one.status(IoOp::Flush, 0, 0), IoStatus::Success);
    assert_eq!(changed(), 1000, "nothing has changed since");
    assert_eq!(pages.write(&one, 0, &pattern(2, 4096)), IoStatus::Success);
    assert_eq!(one.status(IoOp::Flush, 0, 0), IoStatus::Success);
    assert!(changed() > 1000, "a page that was there");
    one.close();
}

#[test]
fn data_comes_back_from_where_it_was_put_and_only_there() {
    const SIZE: u64 = 4 << 20;
    on_each_kind(SIZE, |one, path| {
        let block = one.handle.common().traits().block_size as usize;
        assert_eq!(one.read(0, 1 << 20), vec![0; 1 << 20], "holes");
        let data = pattern(1, 5 * block);
        let io = one.io(IoOp::Write, 3 * block as u64, data.len() as u64, &data, &[1, 700, 511, 512]);
        assert_eq!(one.end(io).status, IoStatus::Success);
        let mut expected = vec![0; 16 * block];
        expected[3 * block..8 * block].copy_from_slice(&data);
        assert_eq!(one.read(0, 16 * block), expected);
        let scattered = one.io(IoOp::Read, 0, 16 * block as u64, &vec![1; 16 * block], &[3, 1021, 4096, 5]);
        assert_eq!(one.end(scattered).data, expected);
        let segments = one.io(IoOp::Write, 0, 16 * block as u64, &expected, &[4096, 8192, 4096]);
        assert_eq!(one.end(segments).status, IoStatus::Success);
        let segments = one.io(IoOp::Read, 0, 16 * block as u64, &vec![1; 16 * block], &[4096, 4096, 8192]);
        assert_eq!(one.end(segments).data, expected);
        let last = pattern(2, block);
        one.write(SIZE - block as u64, &last);
        assert_eq!(one.read(SIZE - block as u64, block), last);
        let large = pattern(3, 1 << 20);
        one.write(1 << 20, &large);
        assert!(one.read(1 << 20, 1 << 20) == large);
        assert_eq!(one.status(IoOp::Flush, 0, 0), IoStatus::Success);
        assert_eq!(one.status(IoOp::Reset, 0, 0), IoStatus::Success);
        let file = std::fs::read(path).unwrap();
        assert_eq!(file.len() as u64, SIZE);
        assert!(file[..16 * block] == expected && file[1 << 20..2 << 20] == large && file.ends_with(&last));
    });
}

#[test]
fn a_second_reactor_sees_the_same_file() {
    let directory = directory();
    count_together(create(&directory.path().join("a"), 1 << 20, 512, true), 20);
    count_together(create(&directory.path().join("b"), 1 << 20, 512, false), 20);
    count_together(with_unit(&directory.path().join("c"), 1 << 20, 4096), 20);
    race_plain_writes(create(&directory.path().join("d"), 1 << 20, 512, true), 100);
    race_plain_writes(with_unit(&directory.path().join("e"), 1 << 20, 4096), 50);
}

#[test]
fn zeroed_ranges_read_zeros_and_nothing_beside_them_changes() {
    on_each_kind(4 << 20, |one, _| {
        let block = one.handle.common().traits().block_size as usize;
        let data = pattern(4, 1 << 20);
        for op in [IoOp::Unmap, IoOp::WriteZeroes] {
            for fua in [false, true] {
                for (first, count) in [(1, 1), (0, 8), (3, 20), (7, 2), (8, 16), (1, 2 * 128)] {
                    one.write(0, &data);
                    let (at, len) = (first * block, count * block);
                    let mut io = one.io(op, at as u64, len as u64, &[], &[]);
                    io.fua = fua;
                    assert_eq!(one.end(io).status, IoStatus::Success);
                    let mut expected = data.clone();
                    let end = expected.len().min(at + len);
                    expected[at.min(end)..end].fill(0);
                    assert!(one.read(0, 1 << 20) == expected, "{op:?} {at}+{len}");
                }
            }
        }
    });
}

#[test]
fn unmap_gives_space_back_and_a_new_file_takes_none() {
    let directory = directory();
    let path = directory.path().join("disk.img");
    let one = One::new(&create(&path, 1 << 40, 512, true));
    let allocated = || std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(allocated() < 1 << 20, "a tebibyte is sparse");
    for at in [0, 1, 2, 3] {
        one.write((1 << 39) + (at << 20), &pattern(at, 1 << 20));
    }
    one.status(IoOp::Flush, 0, 0);
    let full = allocated();
    assert!(full >= 4 << 20);
    assert_eq!(one.status(IoOp::Unmap, 1 << 39, 3 << 20), IoStatus::Success);
    assert!(allocated() <= full - (3 << 20), "{full} before, {} after", allocated());
    assert!(one.read((1 << 39) + (3 << 20), 1 << 20) == pattern(3, 1 << 20));
    assert_eq!(one.status(IoOp::WriteZeroes, 1 << 39, 1 << 20), IoStatus::Success);
    assert_eq!(one.read(1 << 39, 1 << 20), vec![0; 1 << 20]);
    one.close();
}

#[test]
fn compare_names_the_first_difference_and_compare_and_write_stores_only_on_equality() {
    on_each_kind(1 << 20, |one, _| {
        let block = one.handle.common().traits().block_size as usize;
        let (len, at) = (5 * block, 3 * block as u64);
        let (before, old, new) = (pattern(5, 9 * block), pattern(6, len), pattern(7, len));
        one.write(0, &before);
        one.write(at, &old);
        assert_eq!(one.run(IoOp::Compare, at, len as u64, &old).status, IoStatus::Success);
        let mut other = old.clone();
        other[len - 7] ^= 1;
        let done = one.end(one.io(IoOp::Compare, at, len as u64, &other, &[100, 1500]));
        assert_eq!((done.status, done.info), (IoStatus::Miscompare, len as u64 - 7));
        let done = one.end(one.io(IoOp::CompareAndWrite, at, len as u64, &[other, new.clone()].concat(), &[777]));
        assert_eq!((done.status, done.info), (IoStatus::Miscompare, len as u64 - 7));
        assert_eq!(one.read(at, len), old);
        let io = one.io(IoOp::CompareAndWrite, at, len as u64, &[old, new.clone()].concat(), &[1, 2047, 5]);
        assert_eq!(one.end(io).status, IoStatus::Success);
        let mut expected = before;
        expected[3 * block..8 * block].copy_from_slice(&new);
        assert_eq!(one.read(0, 9 * block), expected);
    });
}

#[test]
fn a_file_that_someone_shortened_gives_an_error_and_no_bytes() {
    on_each_kind(1 << 20, |one, path| {
        one.write(0, &pattern(8, 1 << 20));
        std::fs::File::options().write(true).open(path).unwrap().set_len(512 << 10).unwrap();
        for (at, len) in [(512 << 10, 4096), (508 << 10, 8192), (0, 1 << 20)] {
            for cuts in [&[][..], &[100]] {
                let io = one.io(IoOp::Read, at, len as u64, &vec![0xDB; len], cuts);
                let done = one.end(io);
                assert_eq!(done.status, IoStatus::DeviceError, "{at}+{len}");
                assert_eq!(done.data, vec![0; len], "bytes of a failed read");
            }
        }
        assert_eq!(one.run(IoOp::Compare, 512 << 10, 4096, &[0; 4096]).status, IoStatus::DeviceError);
        assert!(one.read(0, 4096) == pattern(8, 1 << 20)[..4096]);
    });
}

#[test]
fn what_cannot_be_opened_is_said_with_its_reason() {
    let directory = directory();
    let at = |name: &str| directory.path().join(name);
    let shown = |name: &str| at(name).display().to_string();
    let text = |path: &Path, size| File::create(options(path, size, 512, true)).unwrap_err().to_string();
    let missing = at("none/disk.img");
    assert_eq!(text(&missing, 1 << 20), format!("volume \"disk\": the directory {} does not exist", shown("none")));
    assert!(!missing.exists());
    assert_eq!(
        text(directory.path(), 1 << 20),
        format!("volume \"disk\": {} is neither a regular file nor a block device", directory.path().display())
    );
    std::fs::write(at("small"), [1; 4096]).unwrap();
    assert_eq!(
        text(&at("small"), 1 << 20),
        format!(
            "volume \"disk\": {} has 4096 bytes, the configuration says 1048576: write that size; growth comes by a reload",
            shown("small")
        )
    );
    assert_eq!(std::fs::read(at("small")).unwrap(), [1; 4096], "left as it was");
    let first = File::create(options(&at("used"), 1 << 20, 512, true)).unwrap();
    let taken = format!("volume \"disk\": {} is in use by another process, or by another volume", shown("used"));
    assert_eq!(text(&at("used"), 1 << 20), taken);
    let reactor = crate::reactor::start::solo(32 << 20).unwrap();
    let first: Arc<dyn BlockDevice> = Arc::new(first);
    let handle = crate::bdev::Handle::open(&reactor, &first).unwrap();
    drop((handle, first));
    assert_eq!(text(&at("used"), 1 << 20), taken, "the channel's descriptor holds the lock");
    reactor.shut_down();
    drop(reactor);
    assert!(File::create(options(&at("used"), 1 << 20, 512, true)).is_ok());
    let error = text(&at("huge"), i64::MAX as u64 / 512 * 512);
    assert!(error.starts_with(&format!("volume \"disk\": cannot make {} 92233", shown("huge"))), "{error}");
    assert!(!at("huge").exists(), "left behind");
}

#[test]
fn growth_keeps_what_is_there_and_adds_zeros() {
    let directory = directory();
    for direct in [false, true] {
        let path = directory.path().join(format!("disk{direct}.img"));
        let device = create(&path, 1 << 20, 512, direct);
        let one = One::new(&device);
        let data = pattern(9, 512);
        one.write((1 << 20) - 512, &data);
        assert_eq!(one.run(IoOp::Read, 1 << 20, 512, &[0; 512]).status, IoStatus::OutOfRange);
        device.grow(3 << 20).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 3 << 20);
        assert_eq!(one.read((1 << 20) - 512, 1024), [data, vec![0; 512]].concat());
        one.write((3 << 20) - 512, &[9; 512]);
        let error = device.grow(1 << 20).unwrap_err().to_string();
        assert_eq!(error, "volume \"disk\": it has 3145728 bytes and cannot shrink to 1048576");
        assert_eq!((device.common().size(), std::fs::metadata(&path).unwrap().len()), (3 << 20, 3 << 20));
        one.close();
    }
    let device = with_unit(&directory.path().join("units.img"), 1 << 20, 4096);
    let error = device.grow((1 << 20) + 512).unwrap_err().to_string();
    assert_eq!(error, "volume \"disk\": 1049088 bytes are no multiple of the unit of direct I/O on its file, 4096");
}

/// Runs this test again in a mount namespace of its own, with a file system of one MiB in memory at the directory it is given there.
/// Returns that directory in the inner run, and nothing in the outer one.
fn in_small_file_system(test: &str) -> Option<std::path::PathBuf> {
    if let Some(mounted) = std::env::var_os("REACTOR_TEST_SMALL_FS") {
        return Some(mounted.into());
    }
    let directory = directory();
    let namespace = |args: &str, script: &str| {
        let mut command = std::process::Command::new("unshare");
        command.args([args, "sh", "-ec", script]).env("REACTOR_TEST_SMALL_FS", directory.path());
        command.env("REACTOR_TEST_BINARY", std::env::current_exe().unwrap()).env("REACTOR_TEST_NAME", test);
        command.output().ok()
    };
    let mount = "mount -t tmpfs -o size=1m none \"$REACTOR_TEST_SMALL_FS\"";
    let Some(args) = ["-m", "-rm"].into_iter().find(|a| namespace(a, mount).is_some_and(|o| o.status.success())) else {
        eprintln!("not run: this user may not mount a file system, in a namespace of its own either");
        return None;
    };
    let run = format!("{mount}; exec \"$REACTOR_TEST_BINARY\" --exact --nocapture \"$REACTOR_TEST_NAME\"");
    let output = namespace(args, &run).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{errors}");
    None
}

#[test]
fn a_full_file_system_gives_no_space() {
    let name = "bdev::device::file::tests::a_full_file_system_gives_no_space";
    let Some(small) = in_small_file_system(name) else {
        return;
    };
    let path = small.join("disk.img");
    let file = File::create(options(&path, 4 << 20, 512, true)).unwrap();
    assert_eq!(file.note(), None, "nothing would be gained by direct I/O on memory");
    let device: Arc<dyn BlockDevice> = Arc::new(file);
    let one = One::new(&device);
    let data = pattern(10, 256 << 10);
    let mut full = None;
    for index in 0..16 {
        match one.run(IoOp::Write, index * data.len() as u64, data.len() as u64, &data).status {
            IoStatus::Success => assert!(one.read(index * data.len() as u64, data.len()) == data),
            status => {
                full = Some((index, status));
                break;
            }
        }
    }
    let (index, status) = full.expect("4 MiB do not fit");
    assert!((2..=4).contains(&index) && status == IoStatus::NoSpace, "{index} {status:?}");
    assert_eq!(one.run(IoOp::Write, 3 << 20, 512, &[1; 512]).status, IoStatus::NoSpace);
    let pages = Pages::new();
    assert_eq!(pages.write(&one, 3 << 20, &[1; 512]), IoStatus::NoSpace, "as a request");
    // Its first half is there, and may be what was written or what was there before.
    assert_eq!(pages.write(&one, data.len() as u64 * index - 4096, &[1; 8192]), IoStatus::NoSpace, "half of one");
    one.write(0, &data);
    assert_eq!(pages.read(&one, 3 << 20, 512), Ok(vec![0; 512]), "a hole");
    assert_eq!(one.status(IoOp::Flush, 0, 0), IoStatus::Success, "what was acknowledged is there");
    assert!(one.read(0, data.len()) == data);
    assert_eq!(one.status(IoOp::Unmap, 0, data.len() as u64), IoStatus::Success);
    one.write(3 << 20, &[1; 512]);
    assert_eq!(one.read(0, data.len()), vec![0; data.len()]);
    one.close();
}

/// A loop device, if this user may have one.
struct Loop(std::path::PathBuf);

impl Loop {
    fn new(file: &Path, sector: u32) -> Option<Loop> {
        let output = std::process::Command::new("losetup")
            .args(["--find", "--show", "--sector-size", &sector.to_string()])
            .arg(file)
            .output()
            .ok()?;
        let path = String::from_utf8(output.stdout).ok()?.trim().to_owned();
        (output.status.success() && !path.is_empty()).then(|| Loop(path.into()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let detached = std::process::Command::new("losetup").arg("-d").arg(&self.0).status();
        assert!(detached.is_ok_and(|s| s.success()), "{} is left", self.0.display());
    }
}

#[test]
fn a_block_device_is_used_like_a_file_and_claimed() {
    let directory = directory();
    let image = directory.path().join("image");
    std::fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
    for (sector, direct) in [(512, true), (4096, true), (4096, false)] {
        let Some(device) = Loop::new(&image, sector) else {
            eprintln!("not run: this user may not set up a loop device");
            return;
        };
        let path = &device.0;
        let error = File::create(options(path, 1 << 20, 512, direct)).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "volume \"disk\": {} has 4194304 bytes, the configuration says 1048576: write that size",
                path.display()
            )
        );
        let file = File::create(options(path, 4 << 20, 512, direct)).unwrap();
        assert_eq!(file.note(), None);
        assert_eq!(file.geometry().unit, if direct { sector } else { 1 });
        assert_eq!(file.common().traits().physical_block_size, sector);
        let error = File::create(options(path, 4 << 20, 512, direct)).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("volume \"disk\": {} is in use: mounted, or claimed by another program", path.display())
        );
        let one = One::new(&(Arc::new(file) as Arc<dyn BlockDevice>));
        let data = pattern(u64::from(sector), 1 << 20);
        one.write(512, &data);
        assert!(one.read(512, 1 << 20) == data);
        for op in [IoOp::Unmap, IoOp::WriteZeroes] {
            one.write(512, &data);
            assert_eq!(one.status(op, 1024, 512 << 10), IoStatus::Success);
            let mut expected = data.clone();
            expected[512..][..512 << 10].fill(0);
            assert!(one.read(512, 1 << 20) == expected, "{op:?}");
        }
        assert_eq!(one.status(IoOp::Flush, 0, 0), IoStatus::Success);
        let mut stored = vec![0; 512];
        std::fs::File::open(&image).unwrap().read_exact_at(&mut stored, 1 << 20).unwrap();
        assert!(stored == data[(1 << 20) - 512..], "it reached the image");
        one.status(IoOp::Unmap, 0, 4 << 20);
        one.close();
    }
}
