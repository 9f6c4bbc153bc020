use super::*;
use crate::bdev::device::testing::{One, count_together, pattern, race_plain_writes};
use crate::reactor::io::{IoOp, IoStatus};
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
    let geometry = Geometry { memory: 4096, unit, zeroes: unit, physical: unit, direct: true };
    let descriptor = Descriptor::from(std::os::fd::OwnedFd::from(file));
    Arc::new(File::over(options(path, size, 512, true), descriptor, geometry))
}

/// Runs `body` on a file of each kind: buffered and direct, blocks of 512 and 4096, and a unit above the block.
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
