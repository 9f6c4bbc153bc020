"""What is durable when: the images that a loss of power would leave of the disk below a volume.

dm-log-writes stands below. It keeps every write in the order in which it became durable: one that no flush followed is
not in its log yet. What the log holds up to a mark is what a disk with a volatile cache is sure to have at that moment.
"""

import os
import struct

from disk import MIB, pattern
from harness import check, run, wait_until
from ublk_world import WORLD, inject, suite, ublk
from udev import settle_udev

SIZE = 64 * MIB
SUPER = struct.Struct("<QQQI")
ENTRY = struct.Struct("<QQQQ")
MAGIC = 0x6A736677736872
DISCARD, MARK = 4, 8


class Power:
    """A block device, `path`, whose loss of power can be played at every `mark`."""

    def __init__(self):
        self.log = WORLD.directory / "power.log"
        self.loops = []
        for module in ("loop", "dm-log-writes"):
            run("modprobe", module)
        for path, size in ((WORLD.directory / "power.img", SIZE), (self.log, 6 * SIZE)):
            with open(path, "wb") as file:
                file.truncate(size)
            self.loops.append(run("losetup", "-f", "--show", path).output.strip())
        table = f"0 {SIZE // 512} log-writes {' '.join(self.loops)}"
        run("dmsetup", "create", "power", "--table", table)
        self.path = "/dev/mapper/power"

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        # After a failed case whoever still stands on it is ended first, by the suite, which then clears it away.
        if kind is None:
            settle_udev()
            run("dmsetup", "remove", "power")
            for loop in self.loops:
                run("losetup", "-d", loop)

    def mark(self, name):
        run("dmsetup", "message", "power", "0", "mark", name)
        wait_until(f"mark {name}", lambda: any(mark == name for *_, mark in self.entries()))

    def entries(self):
        """What became durable, in order: position, length, place of the bytes in the log (None: zeros), mark's name."""
        with open(self.log, "rb") as log:
            magic, _, count, sector = SUPER.unpack(log.read(SUPER.size))
            if magic != MAGIC:
                return
            at = sector
            for _ in range(count):
                log.seek(at)
                start, sectors, flags, length = ENTRY.unpack(log.read(ENTRY.size))
                if flags & MARK:
                    yield 0, 0, None, log.read(length).rstrip(b"\0").decode()
                    at += sector
                elif flags & DISCARD:
                    yield start * sector, sectors * sector, None, None
                    at += sector
                else:
                    yield start * sector, sectors * sector, at + sector, None
                    at += sector + sectors * sector

    def image(self, name):
        """A file with what the disk is sure to hold at a mark."""
        path = WORLD.directory / f"image-{name}"
        with open(self.log, "rb") as log, open(path, "wb") as image:
            image.truncate(SIZE)
            for position, length, place, mark in self.entries():
                if mark == name:
                    return path
                image.seek(position)
                if place is not None:
                    log.seek(place)
                    image.write(log.read(length))
                elif length:
                    image.write(bytes(length))
        raise AssertionError(f"no mark {name}")


def volume(path, size=SIZE):
    return {"name": "base", "driver": "file", "path": str(path), "size": size}


def holds(image, data):
    """Whether a file has these bytes at their place on the disk."""
    offset, expected = data
    with open(image, "rb") as file:
        file.seek(offset)
        return file.read(len(expected)) == expected


@suite.variants(auto=("auto",), user_copy=("user-copy",), copy=("copy",))
def flush_makes_what_was_written_before_it_durable(mode):
    """A volume on a block device. Shows that a write is not durable by itself here, so that the disk below does tell
    the difference; that all acknowledged writes are once the flush is answered; and that a later one is not again."""
    first = [(number * MIB + 4096, pattern(64 << 10, 80 + number)) for number in range(8)]
    late = (20 * MIB, pattern(4096, 90))
    with Power() as power:
        (disk,) = WORLD.serve([volume(power.path)], [ublk("base", mode=mode, queues=4)])
        check(disk.attribute("queue/write_cache") == "write back", "no volatile cache: the kernel sends no flush")
        for offset, data in first:
            disk.write(offset, data)
        power.mark("written")
        flush(disk)
        power.mark("flushed")
        disk.write(*late)
        power.mark("late")
        WORLD.stop()
        image = power.image("written")
        early = any(holds(image, data) for data in first)
        check(not early, "written, not flushed, and yet durable: this proves nothing")
        lost = [offset for offset, data in first if not holds(power.image("flushed"), (offset, data))]
        check(not lost, f"acknowledged before an answered flush and lost: the writes at {lost}")
        check(not holds(power.image("late"), late), "a write behind the flush is durable: somebody else flushes")


@suite.variants(auto=("auto",), user_copy=("user-copy",), copy=("copy",))
def forced_write_is_durable_by_itself(mode):
    """A layer fails every flush, so none gets below, and what is durable came by force unit access alone."""
    forced, plain = (4 * MIB, pattern(64 << 10, 81)), (8 * MIB, pattern(64 << 10, 82))
    with Power() as power:
        below = inject("noflush", "base", {"op": "flush", "every": 1, "action": "fail"})
        (disk,) = WORLD.serve([volume(power.path), below], [ublk("noflush", mode=mode)])
        check(disk.attribute("queue/fua") == "1", "the kernel takes the disk as one without force unit access")
        disk.write(*plain)
        power.mark("plain")
        try:
            disk.write(*forced, flags=os.RWF_DSYNC)
        except OSError:
            # The kernel sends a flush behind the write, which fails.
            pass
        power.mark("forced")
        WORLD.target.stop(20)
        check(not holds(power.image("plain"), plain), "a plain write is durable: this proves nothing")
        check(holds(power.image("forced"), forced), "a forced write was answered and is lost")


@suite.case
def flush_reaches_below_a_file_system():
    """A volume in a file of an ext4. After a flush its bytes are in the image that a loss of power leaves, once the
    file system is mounted and has recovered; that includes blocks that the write allocated."""
    mounts = [WORLD.directory / name for name in ("below", "image")]
    for mount in mounts:
        mount.mkdir(exist_ok=True)
    data = [(number * 4 * MIB + 4096, pattern(128 << 10, 83 + number)) for number in range(4)]
    with Power() as power:
        run("mkfs.ext4", "-q", power.path)
        # Without its own commits every few seconds: only a flush of reactor's makes anything durable.
        run("mount", "-t", "ext4", "-o", "commit=600", power.path, mounts[0])
        try:
            run("sync", "-f", mounts[0])
            (disk,) = WORLD.serve([volume(mounts[0] / "base.img", 24 * MIB)], [ublk("base")])
            flush(disk)
            for offset, piece in data:
                disk.write(offset, piece)
            power.mark("written")
            flush(disk)
            power.mark("flushed")
            WORLD.stop()
        finally:
            run("umount", mounts[0])
        seen = {}
        for name in ("written", "flushed"):
            run("mount", "-t", "ext4", "-o", "loop", power.image(name), mounts[1])
            try:
                file = mounts[1] / "base.img"
                seen[name] = [holds(file, piece) for piece in data] if file.exists() else [False]
            finally:
                run("umount", mounts[1])
        check(not all(seen["written"]), "all is durable without a flush: this proves nothing")
        check(all(seen["flushed"]), f"acknowledged before an answered flush and lost: {seen['flushed']}")


def flush(disk):
    """Has the kernel flush the disk."""
    before = disk.flushes()
    descriptor = os.open(disk.path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    check(disk.flushes() > before, "the kernel has sent no flush")
