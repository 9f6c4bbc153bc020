"""A zoned NVMe disk, served by NVMe/TCP to the same guest as a zoned namespace, by VFIO and by way of the kernel's driver.

The kernel must see the same zones as on the disk itself, and find the same data and states when it has the disk back.
"""

import os
import pathlib

from disk import MIB, pattern
from harness import check, note, run
from host import nvme, nvme_json
from jobs import fio
from nvme_modes import AS_USER, given
from nvme_world import (
    DIRECTORY,
    WORLD,
    attach,
    config,
    disconnect,
    functions,
    refusal,
    said_in_log,
    suite,
    volume,
    written,
)
from target import binary

# qemu/shapes.toml: disk Z.
ZONE, CAPACITY, ZONES, OPEN, ACTIVE = 4 * MIB, 3 * MIB, 32, 8, 16
BLOCK = 512
ATTRIBUTES = ("zoned", "chunk_sectors", "nr_zones", "max_open_zones", "max_active_zones", "zone_append_max_bytes")
OPENED = ("IMP_OPENED", "EXP_OPENED")


def attributes(disk):
    return {name: _path(disk).attribute(f"queue/{name}") for name in ATTRIBUTES}


def _path(disk):
    """The namespace as the one controller has it: the kernel's device for several says nothing of limits before Linux 7."""
    wwid = disk.attribute("wwid")
    hidden = pathlib.Path("/sys/block").glob("nvme*c*n*")
    found = [path.name for path in hidden if (path / "wwid").read_text().strip() == wwid]
    return Hidden(found[0]) if found else disk


class Hidden:
    """A path of a namespace: it has attributes, and no file."""

    def __init__(self, name):
        self.name = name

    def attribute(self, name):
        return (pathlib.Path("/sys/block") / self.name / name).read_text().strip()


def zones(disk):
    """Start, write pointer, capacity and state of each zone, in blocks."""
    listed = nvme_json("zns", "report-zones", disk.path)["zone_list"]
    return [(zone["slba"], zone["wp"], zone["cap"], zone["state"]) for zone in listed]


def states(disk):
    return [state for _, _, _, state in zones(disk)]


def at_rest(reported):
    """What is left of zones when the disk was shut down: none is open, and what was opened and not written is empty."""
    rest = []
    for start, pointer, capacity, state in reported:
        if state in (*OPENED, "CLOSED"):
            state = "EMPTY" if pointer == start else "CLOSED"
        rest.append((start, pointer, capacity, state))
    return rest


def zns(action, disk, zone=None):
    where = ["-a"] if zone is None else ["-s", zone * ZONE // BLOCK]
    return nvme("zns", action, disk.path, *where, succeed=False)


def managed(action, disk, zone=None):
    done = zns(action, disk, zone)
    check(done.code == 0, f"{action} of {zone}: {done}")


def emptied(disk):
    """All zones, by the kernel itself: it keeps the write pointer of each that it has written."""
    run("blkzone", "reset", disk.path)


def refused(done, status, what):
    """The command ended with this status and Do Not Retry, as nvme-cli prints it."""
    check(done.code != 0 and f"({0x4000 | status:#x})" in (done.output + done.errors).lower(), f"{what}: {done}")


def wrote(disk, offset, data, succeed=True):
    """One Write, past the kernel's own view of the zone."""
    path = DIRECTORY / "to-write"
    path.write_bytes(data)
    words = ["-s", offset // BLOCK, "-c", len(data) // BLOCK - 1, "-z", len(data), "-d", path]
    return nvme("write", disk.path, *words, succeed=succeed)


def appended(disk, zone, data):
    path = DIRECTORY / "to-append"
    path.write_bytes(data)
    words = ["-s", zone * ZONE // BLOCK, "-z", len(data), "-d", path]
    return nvme("zns", "zone-append", disk.path, *words, succeed=False)


def taken(by_vfio):
    """The controller of the disk with zones, with VFIO or with the kernel, emptied; and what the kernel says of its zones."""
    function = functions("Z")[0]
    disk = function.disk()
    managed("reset-zone", disk)
    seen, reported = attributes(disk), zones(disk)
    if by_vfio:
        # The kernel's driver takes no more at once than it maps well; the disk says what it takes itself.
        about = nvme_json("id-ctrl", disk.path)
        power = nvme_json("zns", "id-ctrl", disk.path)["zasl"] or about["mdts"]
        check(int(seen["zone_append_max_bytes"]) <= 4096 << power, f"the kernel appends {seen}")
        seen["zone_append_max_bytes"] = str(4096 << power)
    check(seen["zoned"] == "host-managed" and seen["nr_zones"] == str(ZONES), f"the kernel sees {seen}")
    check([zone[3] for zone in reported] == ["EMPTY"] * ZONES, f"after a reset of all zones: {reported}")
    if by_vfio:
        WORLD.take("Z")
    return function, seen, reported


@suite.variants(
    by_vfio=(True, [0]),
    by_vfio_two_reactors=(True, [0, 1]),
    by_passthrough=(False, [0]),
)
def zones_verify(by_vfio, cores):
    """The host sees the disk's zones, fio its checksums, and the kernel the same when it has the disk back."""
    function, seen, reported = taken(by_vfio)
    mode = {} if by_vfio else {"mode": "kernel"}
    WORLD.target.start(config(volume("zoned", function, **mode), cores=list(cores)))
    note(said_in_log('volume "zoned": namespace')[0])
    block = attach("zoned", "-i", len(cores))
    check(attributes(block) == seen, f"a host sees {attributes(block)}, the kernel {seen}")
    check(zones(block) == reported, f"a host is told of {zones(block)}")
    fio(block, "zoned", RW="write", SIZES="4k-256k", SIZE="24m", DEPTH=1, JOBS=1, ZONES=4)
    fio(block, "zoned", RW="randwrite", SIZES="16k-64k", SIZE="24m", DEPTH=8, JOBS=1, ZONES=6)
    emptied(block)
    block.expect(0, bytes(MIB), "after a reset of all zones")
    first, second = pattern(CAPACITY, 1), pattern(MIB, 2)
    block.write(0, first)
    block.write(ZONE, second)
    managed("finish-zone", block, 5)
    reported = zones(block)
    check(reported[0][3] == reported[5][3] == "FULL" and reported[1][3] in OPENED, f"{reported[:6]}")
    check(reported[1][1] == (ZONE + MIB) // BLOCK, f"the write pointer of zone 1: {reported[1]}")
    disconnect()
    WORLD.stop()
    WORLD.give_back()
    disk = function.disk()
    disk.expect(0, first, "read by the kernel")
    disk.expect(ZONE, second, "read by the kernel")
    check(at_rest(zones(disk)) == at_rest(reported), f"the kernel sees {zones(disk)[:6]}, the host saw {reported[:6]}")
    managed("reset-zone", disk)


@suite.variants(by_vfio=(True,), by_passthrough=(False,))
def zones_refuse(by_vfio):
    """Each status of zones arrives as the disk gives it."""
    function, _, _ = taken(by_vfio)
    WORLD.target.start(config(volume("zoned", function, **({} if by_vfio else {"mode": "kernel"}))))
    block = attach("zoned")
    data = pattern(8 * BLOCK, 3)
    wrote(block, 0, data)
    refused(wrote(block, 0, data, succeed=False), 0x1BC, "a write behind the pointer")
    refused(wrote(block, 16 * BLOCK, data, succeed=False), 0x1BC, "a write beyond the pointer")
    # Where it went is in the answer.
    done = appended(block, 0, data)
    check(done.code == 0 and done.output.split()[-2:] == ["LBA", "8"], f"an append to block 8: {done}")
    block.expect(0, 2 * data, "written and appended")
    block.write(ZONE, pattern(CAPACITY - 4096, 4))
    refused(wrote(block, ZONE + CAPACITY - 4096, pattern(8192, 5), succeed=False), 0x1B8, "a write over the capacity")
    refused(appended(block, 1, pattern(8192, 5)), 0x1B8, "an append over the capacity")
    wrote(block, ZONE + CAPACITY - 4096, pattern(4096, 6))
    check(states(block)[1] == "FULL", f"{states(block)}")
    refused(appended(block, 1, data), 0x1B9, "an append to a full zone")
    block.expect(ZONE + CAPACITY, bytes(ZONE - CAPACITY), "behind the capacity")
    # As many as there may be.
    for zone in range(2, 2 + OPEN):
        managed("open-zone", block, zone)
    refused(zns("open-zone", block, 20), 0x1BE, "one open zone too many")
    managed("close-zone", block)
    check(sum(state == "CLOSED" for state in states(block)) in (1, OPEN + 1), f"{states(block)}")
    for zone in range(10, 10 + ACTIVE):
        done = appended(block, zone, data)
        if done.code:
            break
    refused(done, 0x1BD, "one active zone too many")
    refused(zns("close-zone", block, 1), 0x1BF, "a full zone to be closed")
    managed("finish-zone", block, 10)
    managed("reset-zone", block, 10)
    check(states(block)[10] == "EMPTY", f"{states(block)}")
    block.expect(10 * ZONE, bytes(4096), "after a reset of one zone")
    managed("reset-zone", block)
    check(states(block) == ["EMPTY"] * ZONES, f"{states(block)}")
    block.expect(0, bytes(8192), "after a reset of all")


@suite.case
def zones_read_only():
    """A namespace that is exported read-only takes no write and no reset."""
    function, _, _ = taken(by_vfio=True)
    setup = config(volume("zoned", function))
    WORLD.target.start(setup)
    attach("zoned").write(0, pattern(8192, 8))
    disconnect()
    setup.subsystems[0]["namespaces"][0]["read_only"] = True
    WORLD.stop()
    WORLD.target.start(setup)
    block = attach("zoned")
    block.expect(0, pattern(8192, 8), "read-only")
    refused(wrote(block, 8192, pattern(4096, 9), succeed=False), 0x20, "a write")
    refused(appended(block, 0, pattern(4096, 9)), 0x20, "an append")
    refused(zns("reset-zone", block), 0x20, "a reset")


@suite.case
def zones_elsewhere_are_refused():
    """By doors and ways that know no zones: with the remedy."""
    function, _, _ = taken(by_vfio=False)
    disk = function.disk()
    with given(disk.path):
        text = refusal(volume("zoned", function), wrapper=AS_USER)
    check("has zones, which are a volume by passthrough or VFIO, not by " in text, text)
    check("passthrough would need " in text, text)
    path = written(config(volume("zoned", function)))
    done = run(binary(), "bench", "--config", path, "--bdev", "zoned", "--time", 1, succeed=False)
    check(done.code == 2 and '"zoned" has zones' in done.errors, f"{done}")
    check(os.path.exists(disk.path), "the disk is the kernel's still")
