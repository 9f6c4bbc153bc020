"""Disks that fail: errors of single blocks, and commands that take too long."""

import os

from disk import MIB, pattern
from harness import check, note, run
from nvme_world import STOP_LIMIT_S, WORLD, attach, config, disconnect, suite, volume

SECTOR = 512


@suite.case
def errors_hit_their_blocks_alone():
    """Reads of LBA 2048 fail on the disk, and writes of LBA 4096: they and no others do for a host."""
    function = WORLD.take("E")
    WORLD.target.start(config(volume("faulty", function), cores=[0, 1]))
    block = attach("faulty", "-i", 2)
    bad_read, bad_write = 2048, 4096
    data = pattern(4 * MIB, 33)
    # In pieces that leave out the block that cannot be written.
    block.write(0, data[: bad_write * SECTOR])
    block.write((bad_write + 1) * SECTOR, data[(bad_write + 1) * SECTOR :])
    for turn in range(3):
        expect_error(f"read, turn {turn}", lambda: block.read(bad_read * SECTOR, SECTOR))
        expect_error(f"write, turn {turn}", lambda: block.write(bad_write * SECTOR, bytes(SECTOR)))
        expect_error(f"read across, turn {turn}", lambda: block.read(MIB - 32768, 65536))
        for lba in (bad_read - 1, bad_read + 1, bad_write - 1, bad_write + 1):
            at = lba * SECTOR
            block.expect(at, data[at : at + SECTOR], f"LBA {lba}")
        block.write(bad_read * SECTOR, data[bad_read * SECTOR : (bad_read + 1) * SECTOR])
    block.expect(0, data[: bad_read * SECTOR], "before the blocks that fail")
    after = (bad_write + 1) * SECTOR
    block.expect(after, data[after:], "behind them")
    disconnect()
    WORLD.stop()
    WORLD.give_back()
    function.disk().expect(after, data[after:], "read by the kernel")


def expect_error(what, action):
    try:
        action()
    except OSError as error:
        note(f"{what}: {os.strerror(error.errno)}")
        return
    check(False, f"{what}: no error")


@suite.case
def commands_that_take_too_long_lose_nothing():
    """A disk of 100 I/Os a second gets 150 at once, with a second for each: the rest is late, its abort changes nothing, and
    the controller is reset. Every checksum is right."""
    function = WORLD.take("T")
    WORLD.target.start(config(volume("slow", function, timeout="1s"), cores=[0]))
    block = attach("slow", "-i", 1, "-Q", 256)
    verify = ["--rw=randwrite", "--bs=4k", "--size=600k", "--direct=1", "--verify=crc32c", "--do_verify=1"]
    how = ["--iodepth=150", "--ioengine=io_uring", "--randrepeat=0", "--verify_fatal=1"]
    run("fio", "--name=load", f"--filename={block.path}", *verify, *how)
    log = WORLD.target.logged()
    resets = [line for line in log if ": reset: of " in line]
    aborts = [line for line in log if " are late: " in line]
    note(f"{len(aborts)} times late, {len(resets)} resets")
    check(aborts, "nothing was late")
    check(1 <= len(resets) <= 5, f"{len(resets)} resets")
    failed = [line for line in log if " ERROR " in line]
    check(not failed, f"it says {failed[:2]}")
    disconnect()
    # It has warned of what it had to do.
    code, _ = WORLD.target.stop(STOP_LIMIT_S)
    check(code == 0, f"it ended with {code}")
    WORLD.give_back()
    check(function.disk().read(0, 600 << 10) != bytes(600 << 10), "the kernel reads nothing of it")
