"""What is written to a disk and what is read from it: file systems, discard, zeros, errors that are asked for."""

import errno
import os
import pathlib
import threading
import time

from disk import (
    MIB,
    MOUNT,
    STAT_SECTORS_WRITTEN,
    STAT_WRITES,
    check_copy,
    make_file_system,
    mount,
    pattern,
    unmount_and_look,
)
from harness import Failure, check, run, wait_until
from jobs import all_kinds_of_load, fio, fio_at_once
from ublk_world import WORLD, by_turns, file, file_in_memory, inject, malloc, suite, ublk

# What an emulated processor may add to the time of one I/O.
EMULATION_SLACK_S = 1.5


@suite.case
def never_written_blocks_read_as_zeros():
    disks = WORLD.serve([malloc("ram0"), file("disk0")], [ublk("ram0"), ublk("disk0")])
    for disk in disks:
        check(disk.size() == 16 * MIB, f"{disk.path} has {disk.size()} bytes")
        for offset in range(0, disk.size(), MIB):
            disk.expect(offset, bytes(MIB), disk.path)


@suite.case
def one_mebibyte_is_one_request():
    (disk,) = WORLD.serve([malloc("ram0")], [ublk("ram0")])
    limit = int(disk.attribute("queue/max_hw_sectors_kb"))
    check(limit >= 1024, f"max_hw_sectors_kb is {limit}")
    disk.set_attribute("queue/max_sectors_kb", 1024)
    before = disk.stat()[STAT_WRITES]
    disk.write(0, pattern(MIB, 11))
    requests = disk.stat()[STAT_WRITES] - before
    disk.expect(0, pattern(MIB, 11), "1 MiB")
    check(requests == 1, f"1 MiB was written by {requests} requests")


@suite.variants(
    **by_turns(
        ext4_malloc=("ext4", malloc("volume", 64), {}),
        ext4_file=("ext4", file("volume", 64), {}),
        ext4_4k_blocks=("ext4", malloc("volume", 64, block_size=4096), {"mode": "copy"}),
        xfs_malloc=("xfs", malloc("volume", 384), {"queues": 4}),
        xfs_file=("xfs", file("volume", 384), {"mode": "user-copy"}),
        xfs_file_4k_blocks=("xfs", file("volume", 384, block_size=4096, direct=False), {}),
    )
)
def file_system(kind, bdev, options):
    """A tree that is copied there is read back from the disk after a remount, after fstrim, and, where the volume
    outlives its server, from a new server; the file system's own check finds nothing."""
    (disk,) = WORLD.serve([bdev], [ublk("volume", **options)])
    make_file_system(disk.path, kind)
    unmount_and_look(disk.path, kind)
    mount(disk.path, kind)
    check_copy("after a remount")
    run("fstrim", MOUNT)
    run("umount", MOUNT)
    if bdev["driver"] == "file":
        WORLD.stop()
        (disk,) = WORLD.start()
    mount(disk.path, kind)
    check_copy("at the end")
    unmount_and_look(disk.path, kind)


@suite.variants(
    **by_turns(
        blkdiscard=(["blkdiscard", "-o", MIB, "-l", 2 * MIB],),
        blkdiscard_zeroout=(["blkdiscard", "-z", "-o", MIB, "-l", 2 * MIB],),
        punch_hole=(["fallocate", "-p", "-o", MIB, "-l", 2 * MIB],),
        zero_range=(["fallocate", "-z", "-o", MIB, "-l", 2 * MIB],),
        odd_zeroout=(["blkdiscard", "-z", "-o", MIB + 4096 * 3, "-l", MIB + 4096 * 5],),
        odd_discard=(["blkdiscard", "-o", MIB + 4096 * 3, "-l", MIB + 4096 * 5],),
    )
)
def zeros_after(words):
    """Zeros where data was, and the data on both sides untouched. Write zeroes with the permission to unmap is
    punch_hole, without it zero_range."""
    volumes = [
        malloc("ram0"),
        malloc("ram4k", block_size=4096),
        file("disk0"),
        file("cached", direct=False),
        file_in_memory("memory"),
    ]
    for disk in WORLD.serve(volumes, [ublk(volume["name"]) for volume in volumes]):
        data = pattern(4 * MIB, 20)
        disk.write(0, data)
        disk.expect(0, data, "before")
        before = disk.stat()[STAT_SECTORS_WRITTEN]
        run(*words, disk.path)
        written = (disk.stat()[STAT_SECTORS_WRITTEN] - before) * 512
        start, length = words[words.index("-o") + 1], words[words.index("-l") + 1]
        expected = data[:start] + bytes(length) + data[start + length :]
        disk.expect(0, expected, f"{disk.path} after {' '.join(map(str, words))}")
        # Zeros that the kernel wrote itself, sector by sector, would say nothing of reactor.
        check(words[0] == "blkdiscard" and "-z" not in words or written <= length, f"{written} bytes written")


@suite.case
def discard_gives_the_space_back():
    """A discard of a file's blocks frees them, so does write zeroes that may unmap; that which may not keeps them."""
    (disk,) = WORLD.serve([file("disk0", 48)], [ublk("disk0")])
    path = WORLD.config.bdev("disk0")["path"]

    def allocated():
        return os.stat(path).st_blocks * 512

    punch, zero = (["fallocate", option, "-o", 0] for option in ("-p", "-z"))
    for words, frees in ((["blkdiscard"], True), (punch, True), (zero, False)):
        disk.write(0, pattern(32 * MIB, 3))
        full = allocated()
        check(full >= 32 * MIB, f"{full} bytes allocated after 32 MiB were written")
        run(*words, "-l", 32 * MIB, disk.path)
        disk.expect(0, bytes(32 * MIB), f"after {words[0]}")
        if frees:
            wait_until(f"space given back by {' '.join(map(str, words))}", lambda: full - allocated() > 30 * MIB)
        else:
            time.sleep(0.5)
            check(allocated() >= 32 * MIB, f"{allocated()} bytes left by write zeroes that may not unmap")


@suite.case
def read_only_refuses_writes():
    bdev = file("guarded")
    path = pathlib.Path(bdev["path"])
    WORLD.serve([bdev], [ublk("guarded")])[0].write(0, pattern(MIB, 40))
    WORLD.stop()
    WORLD.config.ublk[0]["read_only"] = True
    (disk,) = WORLD.start()
    check(run("blockdev", "--getro", disk.path).output.strip() == "1", "the kernel takes the disk as writable")
    disk.expect(0, pattern(MIB, 40), "contents")
    # The kernel itself refuses an opener that wants to write, unless it is told to forget that the disk is read only.
    done = run("blockdev", "--setrw", disk.path, succeed=False)
    refused = []
    for name, write in (
        ("write", lambda: disk.write(0, pattern(4096, 41))),
        ("discard", lambda: run("blkdiscard", "-l", MIB, disk.path)),
        ("zeroout", lambda: run("blkdiscard", "-z", "-l", MIB, disk.path)),
    ):
        try:
            write()
        except Exception as error:
            refused.append(name)
            check(not isinstance(error, OSError) or error.errno != errno.ENXIO, f"{name}: {error}")
    check(len(refused) == 3, f"only {refused} refused (setrw: exit {done.code})")
    disk.expect(0, pattern(MIB, 40), "contents after refused writes")
    check(path.read_bytes()[:MIB] == pattern(MIB, 40), "the file changed")


class Writes:
    """Writes of one block each, all at once, each by a thread: which failed how, and what each took."""

    def __init__(self, disk, count):
        self.errors = [None] * count
        self.seconds = [0.0] * count
        threads = [threading.Thread(target=self.one, args=(disk, index)) for index in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def one(self, disk, index):
        started = time.monotonic()
        try:
            disk.write(index * MIB, pattern(4096, index))
        except OSError as error:
            self.errors[index] = error.errno
        self.seconds[index] = time.monotonic() - started


@suite.variants(auto=("auto",), user_copy=("user-copy",), copy=("copy",))
def inject_fails_one_write_and_the_others_go_on(mode):
    rule = {"op": "write", "nth": 5, "action": "fail"}
    volumes = [malloc("ram0"), inject("faulty", "ram0", rule)]
    (disk,) = WORLD.serve(volumes, [ublk("faulty", queues=2, depth=16, mode=mode)])
    writes = Writes(disk, 12)
    failed = [index for index, error in enumerate(writes.errors) if error is not None]
    check(len(failed) == 1, f"{len(failed)} of 12 writes failed: {writes.errors}")
    check(writes.errors[failed[0]] == errno.EIO, f"it failed with {errno.errorcode[writes.errors[failed[0]]]}")
    for index in range(12):
        expected = bytes(4096) if index in failed else pattern(4096, index)
        disk.expect(index * MIB, expected, f"write {index}, number {failed[0]} failed")
    disk.write(failed[0] * MIB, pattern(4096, 99))
    disk.expect(failed[0] * MIB, pattern(4096, 99), "written again")


@suite.variants(auto=("auto",), user_copy=("user-copy",), copy=("copy",))
def inject_fails_reads_and_writes_go_on(mode):
    rule = {"op": "read", "every": 1, "action": "fail", "status": "media-error"}
    volumes = [malloc("ram0"), inject("faulty", "ram0", rule)]
    (disk,) = WORLD.serve(volumes, [ublk("faulty", mode=mode)])
    for index in range(3):
        disk.write(index * MIB, pattern(4096, index))
        try:
            disk.read(index * MIB, 4096)
        except OSError as error:
            # ENODATA is what the kernel says of a medium that lost its data.
            check(error.errno in (errno.ENODATA, errno.EIO), f"it failed with {errno.errorcode[error.errno]}")
        else:
            raise Failure(f"read {index} came back")


@suite.case
def inject_delays_one_write_and_no_other():
    rule = {"op": "write", "nth": 4, "action": "delay", "delay_ms": 5000}
    volumes = [malloc("ram0"), inject("slow", "ram0", rule)]
    (disk,) = WORLD.serve(volumes, [ublk("slow", queues=1, depth=16)])
    writes = Writes(disk, 12)
    check(not any(writes.errors), f"errors: {writes.errors}")
    seconds = sorted(writes.seconds)
    check(seconds[-1] >= 5, f"the slowest write took {seconds[-1]:.2f} s")
    check(seconds[-2] < EMULATION_SLACK_S, f"another write took {seconds[-2]:.2f} s")
    for index in range(12):
        disk.expect(index * MIB, pattern(4096, index), f"write {index}")


@suite.case
def all_jobs_run():
    (disk,) = WORLD.serve([file("disk0", 32)], [ublk("disk0")])
    all_kinds_of_load(disk)


@suite.case
def more_tags_than_places_leaves_the_rest_on_copy():
    """Four queues of the largest depth on one ring, whose table of buffers has no room for all of them."""
    (disk,) = WORLD.serve([file("disk0", 32)], [ublk("disk0", queues=4, depth=4096)], cores=[0])
    fio(disk, JOBS=4, SIZE="8m", SIZES="4k-64k", DEPTH=64)
    for number in range(32):
        disk.write(number * MIB, pattern(MIB, number))
    for number in range(32):
        disk.expect(number * MIB, pattern(MIB, number), f"MiB {number}")


@suite.case
def disks_side_by_side_keep_to_their_volumes():
    volumes = [malloc("ram0", 32), malloc("ram1", 32), file("disk0", 32)]
    disks = WORLD.serve(volumes, [ublk(volume["name"], queues=2) for volume in volumes])
    for number, disk in enumerate(disks):
        disk.write(24 * MIB, pattern(MIB, 70 + number))
    fio_at_once(disks, JOBS=2, SIZE="8m", SIZES="4k-1m")
    for number, disk in enumerate(disks):
        disk.expect(24 * MIB, pattern(MIB, 70 + number), f"{disk.path} beside the load")
