"""Block devices as a guest's programs see them, and what is put on them: patterns and file systems."""

import hashlib
import mmap
import os
import pathlib
import sysconfig

from harness import Failure, check, run, wait_until

MIB = 1 << 20
SCRATCH = pathlib.Path("/scratch")
MOUNT = pathlib.Path("/mnt/volume")
TREE = pathlib.Path(sysconfig.get_path("stdlib")) / "encodings"

# Documentation/admin-guide/iostats.rst
STAT_WRITES = 4
STAT_SECTORS_WRITTEN = 6
STAT_IN_FLIGHT = 8
STAT_FLUSHES = 15

MAKE_FILE_SYSTEM = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}
LOOK_AT_FILE_SYSTEM = {"ext4": ["e2fsck", "-f", "-n"], "xfs": ["xfs_repair", "-n"]}


class Disk:
    """The block device /dev/NAME."""

    def __init__(self, name):
        self.name = name
        self.path = f"/dev/{name}"
        wait_until(self.path, lambda: os.path.exists(self.path) and self.size() > 0)

    def attribute(self, name):
        return (pathlib.Path("/sys/class/block") / self.name / name).read_text().strip()

    def set_attribute(self, name, value):
        (pathlib.Path("/sys/class/block") / self.name / name).write_text(str(value))

    def size(self):
        """Bytes."""
        return int(self.attribute("size")) * 512

    def stat(self):
        """The kernel's counters of it at a time when nothing is in flight: whoever waits for an I/O is told of its end
        before it is counted."""

        def idle():
            counters = [int(word) for word in self.attribute("stat").split()]
            return counters if counters[STAT_IN_FLIGHT] == 0 else None

        return wait_until(f"nothing in flight to {self.path}", idle)

    def writes(self):
        """How many writes it has completed, while I/O may go on."""
        return int(self.attribute("stat").split()[STAT_WRITES])

    def flushes(self):
        """How many flushes the kernel has sent to it."""
        return self.stat()[STAT_FLUSHES]

    def read(self, offset, length):
        """Reads past the page cache."""
        buffer = mmap.mmap(-1, length)
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECT)
        try:
            got = os.preadv(descriptor, [buffer], offset)
        finally:
            os.close(descriptor)
        check(got == length, f"read {got} of {length} bytes at {offset}")
        return bytes(buffer)

    def write(self, offset, data, flags=0):
        """Writes past the page cache; `flags` are those of pwritev2."""
        buffer = mmap.mmap(-1, len(data))
        # Whole pages of 2 MiB keep the segments of a large write few, so the kernel need not split it.
        buffer.madvise(mmap.MADV_HUGEPAGE)
        buffer[:] = data
        descriptor = os.open(self.path, os.O_WRONLY | os.O_DIRECT)
        try:
            wrote = os.pwritev(descriptor, [buffer], offset, flags)
        finally:
            os.close(descriptor)
        check(wrote == len(data), f"wrote {wrote} of {len(data)} bytes at {offset}")

    def expect(self, offset, data, what):
        """Fails the case unless the bytes at `offset` are `data`, naming the first that differs."""
        same(self.read(offset, len(data)), data, offset, what)


def same(got, expected, offset, what):
    """Fails the case unless the bytes read at `offset` are those expected, naming the first that differs."""
    if got != expected:
        at = next(index for index, (one, two) in enumerate(zip(got, expected, strict=True)) if one != two)
        raise Failure(f"{what}: byte {offset + at} is {got[at]:#04x}, expected {expected[at]:#04x}")


def pattern(length, seed=0):
    """Bytes that differ everywhere and between seeds."""
    block = hashlib.shake_128(seed.to_bytes(8, "little")).digest(1 << 16)
    return (block * (length // len(block) + 1))[:length]


def make_file_system(path, kind):
    """Makes a file system, mounts it and puts a tree and a large file there."""
    run(*MAKE_FILE_SYSTEM[kind], path)
    mount(path, kind)
    run("cp", "-a", TREE, MOUNT / "tree")
    (MOUNT / "large").write_bytes(pattern(8 * MIB, 60))


def mount(path, kind):
    MOUNT.mkdir(exist_ok=True)
    run("mount", "-t", kind, path, MOUNT)


def unmount_and_look(path, kind):
    """Unmounts and has the file system's own tool look at all of it."""
    run("umount", MOUNT)
    run(*LOOK_AT_FILE_SYSTEM[kind], path)


def check_copy(when):
    """Fails the case unless every file of `TREE`, and the large one, is on the volume byte for byte."""
    files = [path.relative_to(TREE) for path in sorted(TREE.rglob("*")) if path.is_file() and not path.is_symlink()]
    check(files, f"no file in {TREE}")
    for name in files:
        check((MOUNT / "tree" / name).read_bytes() == (TREE / name).read_bytes(), f"{name} differs {when}")
    check((MOUNT / "large").read_bytes() == pattern(8 * MIB, 60), f"the large file differs {when}")
