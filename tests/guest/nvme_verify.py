"""Verify over NVMe/TCP: by the disk's own command where there is a way to it, else by reads of its block device."""

import contextlib

from disk import MIB, pattern
from harness import check, note
from host import nvme
from nvme_commands import SOCKET, asked
from nvme_modes import as_user, generic, given
from nvme_world import WORLD, attach, config, disconnect, functions, said_in_log, suite, volume

SECTOR = 512
# Reads of this sector fail on disk E.
BAD = 2048
# ONCS: there is Verify.
VERIFY = 1 << 7
# The most of one Verify of QEMU (VSL 7) and of one command of the kernel's, and of one read of a verify.
COMMAND, READ = 512 << 10, 64 << 10


@contextlib.contextmanager
def served(serial, way):
    """A disk by one of the ways to it: its function, and the kernel's block device of the volume."""
    with contextlib.ExitStack() as stack:
        if way == "VFIO":
            function = WORLD.take(serial)
        else:
            function = functions(serial)[0]
        keys = {}
        if way == "passthrough of a user":
            stack.enter_context(given(generic(function.disk())))
        if way == "block device":
            stack.enter_context(given(function.disk().path))
        if way in ("passthrough of a user", "block device"):
            stack.enter_context(as_user())
        else:
            keys["socket"] = SOCKET
        WORLD.target.start(config(volume("fast", function), cores=[0, 1], **keys))
        line = said_in_log('volume "fast": namespace')[0]
        check(f" by {way}, " in line or f"(the kernel's driver, {way.split(' of ')[0]})" in line, line)
        yield function, attach("fast", "-i", 2)
        disconnect()
        WORLD.stop()
    WORLD.give_back()


def verify(block, first, count):
    """Of so many sectors; what nvme-cli says if it fails, else None."""
    done = nvme("verify", block.path, "-n", 1, "-s", first, "-c", count - 1, succeed=False)
    return None if done.code == 0 else f"{done.output}{done.errors}".strip()


WAYS = {
    "by_vfio": ("VFIO",),
    "by_passthrough": ("passthrough",),
    "by_passthrough_of_a_user": ("passthrough of a user",),
    "by_block_device": ("block device",),
}


@suite.variants(**WAYS)
def verify_finds_the_bad_block(way):
    """A verify fails over the block that cannot be read, beside it none does, and the data stays."""
    with served("E", way) as (_, block):
        data = pattern(MIB, 34)
        block.write(0, data)
        for first, count in ((0, BAD), (BAD - 1, 1), (BAD + 1, 1), (BAD + 1, 60000), (block.size() // SECTOR - 8, 8)):
            said = verify(block, first, count)
            check(said is None, f"{count} sectors from {first}: {said}")
        for first, count in ((BAD, 1), (BAD - 1, 3), (0, 65536), (BAD - 1024, 1025)):
            said = verify(block, first, count)
            check(said and "unrecovered read" in said.lower(), f"{count} sectors from {first}: {said}")
        said = verify(block, block.size() // SECTOR - 8, 9)
        check(said and "range" in said.lower(), f"across the end: {said}")
        block.expect(0, data, "after verifies")


@suite.variants(**WAYS)
def verify_is_as_many_reads_as_it_takes(way):
    """The disk counts a read for each command that it gets. QEMU does not say in ONCS that it has Verify, so that all of them
    are reads; those of a block device the kernel may merge."""
    with served("A1", way) as (function, block):
        oncs = int(asked("identify", function.address)["controller"]["oncs"])
        length = 2 * MIB
        block.write(0, pattern(length, 35))
        rose = []
        for _ in range(3):
            before = int(asked("smart", function.address)["host_read_commands"])
            said = verify(block, 0, length // SECTOR)
            check(said is None, f"{said}")
            rose.append(int(asked("smart", function.address)["host_read_commands"]) - before)
        note(f"2 MiB are {rose} reads of the disk by {way}, whose ONCS is {oncs:#x}")
        if way == "block device":
            check(length // COMMAND <= min(rose) <= length // READ, f"{rose}")
        else:
            each = COMMAND if oncs & VERIFY else READ
            check(min(rose) == length // each, f"{rose} and not {length // each}")
