"""Reads, writes, file systems, and what the disk says of itself."""

import errno
import pathlib

from disk import (
    MIB,
    MOUNT,
    SCRATCH,
    STAT_WRITES,
    check_copy,
    make_file_system,
    mount,
    pattern,
    unmount_and_look,
)
from harness import check, note, run, wait_until
from iscsi_host import DATA_DIGEST, HEADER_DIGEST, SECOND, V4, backing_blocks, field, login, logout_all, sg
from iscsi_world import FOURK, GROW, GUARD, GUARDED, MAIN, WORLD, suite
from jobs import all_kinds_of_load, fio, fio_at_once

BOTH = {HEADER_DIGEST: "CRC32C", DATA_DIGEST: "CRC32C"}
# As sg3-utils prints one.
NUMBER = r"(0x[0-9a-f]+|\d+)\b"


@suite.variants(
    malloc_4k_random=(0, "libaio", "randwrite", "4k-4k", 4, 4),
    malloc_mixed_sizes=(0, "io_uring", "randwrite", "512-1m", 2, 24),
    malloc_64k_sequential=(0, "io_uring", "write", "64k-64k", 2, 16),
    file_4k_random=(1, "io_uring", "randwrite", "4k-4k", 4, 4),
    file_mixed_sizes=(1, "libaio", "randrw", "512-1m", 2, 24),
    file_1m_sequential=(1, "libaio", "write", "1m-1m", 2, 32),
)
def fio_verify(lun, engine, direction, sizes, jobs, size_mib):
    names = {"ENGINE": engine, "RW": direction, "SIZES": sizes, "JOBS": jobs, "SIZE": f"{size_mib}m"}
    fio(login(MAIN).block(lun), **names, DEPTH=32)


@suite.case
def all_jobs_run():
    all_kinds_of_load(login(MAIN).block())


@suite.case
def fio_verify_two_units_by_two_sessions_with_digests():
    blocks = [login(MAIN, portal, settings=BOTH).block(lun) for lun, portal in enumerate((V4, SECOND))]
    fio_at_once(blocks, ENGINE="libaio", RW="randrw", JOBS=2, SIZE="8m")


NETWORK = "delay 2ms 1ms 25% loss 1% duplicate 1% reorder 20% 50%".split()


@suite.variants(
    no_digests=({},),
    digests=(BOTH,),
)
def bad_network_corrupts_nothing_with(settings):
    """It loses, doubles and reorders packets of 1,500 bytes: fio finds what it wrote, on both disks."""
    session = login(MAIN, settings=settings)
    blocks = [session.block(lun) for lun in (0, 1)]
    mtu = pathlib.Path("/sys/class/net/lo/mtu")
    whole = mtu.read_text()
    segments = field(run("ip", "-d", "link", "show", "lo").output, r"gso_max_segs (\d+)")
    # Each packet is lost or not by itself, not dozens of them at once.
    run("ip", "link", "set", "lo", "mtu", 1500, "gso_max_segs", 1)
    run("tc", "qdisc", "add", "dev", "lo", "root", "netem", *NETWORK)
    counted = odd_segments()
    try:
        fio_at_once(blocks, ENGINE="libaio", RW="randrw", SIZES="512-256k", SIZE="6m")
        told = run("tc", "-s", "qdisc", "show", "dev", "lo").output
    finally:
        run("tc", "qdisc", "del", "dev", "lo", "root")
        run("ip", "link", "set", "lo", "mtu", whole.strip(), "gso_max_segs", segments)
    lost, sent = field(told, r"dropped (\d+)"), field(told, r"(\d+) pkt")
    late, twice = (after - before for before, after in zip(counted, odd_segments()))
    check(lost > 50, f"of {sent} packets {lost} were lost")
    # The kernel doubles one in a hundred; it sends again what it takes for lost, too, which comes twice when it was late only.
    check("duplicate 1%" in told and twice > 50, f"of {sent} packets {twice} came twice: {told}")
    check("reorder 20% 50%" in told and late > 50, f"of {sent} packets {late} came out of order: {told}")
    note(f"{sent} packets, {lost} lost, {late} out of order, {twice} twice")


def odd_segments():
    """How many segments came out of order, and how many twice, since the kernel's start."""
    names, values = (line.split() for line in pathlib.Path("/proc/net/netstat").read_text().splitlines()[:2])
    counters = dict(zip(names, values))
    return int(counters["TCPOFOQueue"]), int(counters["TCPDSACKOldSent"])


@suite.case
def transfers_up_to_the_limit_are_one_command():
    """The kernel takes MAXIMUM TRANSFER LENGTH as the limit of a command, and what is as long as it may be is one."""
    block = login(MAIN).block()
    limit = int(block.attribute("queue/max_hw_sectors_kb"))
    check(limit >= 1024, f"max_hw_sectors_kb is {limit}")
    block.set_attribute("queue/max_sectors_kb", 1024)
    before = block.stat()[STAT_WRITES]
    block.write(0, pattern(MIB, 11))
    commands = block.stat()[STAT_WRITES] - before
    block.expect(0, pattern(MIB, 11), "1 MiB")
    check(commands == 1, f"1 MiB was written by {commands} commands")


@suite.variants(
    ext4_malloc=(MAIN, 0, "ext4"),
    ext4_file=(MAIN, 1, "ext4"),
    xfs_file=(MAIN, 1, "xfs"),
    ext4_4k_blocks=(FOURK, 0, "ext4"),
)
def file_system(target, lun, kind):
    block = login(target).block(lun)
    make_file_system(block.path, kind)
    unmount_and_look(block.path, kind)
    # A new session: nothing of the old one's caches is left.
    logout_all()
    block = login(target).block(lun)
    mount(block.path, kind)
    check_copy("after a new session")
    run("fstrim", MOUNT)
    # Read from the disk again, not from the page cache.
    run("umount", MOUNT)
    mount(block.path, kind)
    check_copy("after fstrim")
    unmount_and_look(block.path, kind)


@suite.variants(
    discard=(["blkdiscard", "-o", MIB, "-l", 2 * MIB],),
    zeroout=(["blkdiscard", "-z", "-o", MIB, "-l", 2 * MIB],),
    unmap=(["sg_unmap", "--force", "--lba", MIB, "--num", 2 * MIB],),
    write_same_unmap=(["sg_write_same", "--16", "--unmap", "--lba", MIB, "--num", 2 * MIB, "--xferlen", 1],),
    write_same_without_data=(["sg_write_same", "--16", "--ndob", "--lba", MIB, "--num", 2 * MIB],),
    write_same_10=(["sg_write_same", "--10", "--lba", MIB, "--num", 2 * MIB, "--xferlen", 1],),
)
def zeros_after(words):
    """Places and lengths in bytes become blocks for sg3-utils."""
    for target, lun, size in ((MAIN, 0, 512), (MAIN, 1, 512), (FOURK, 0, 4096)):
        block = login(target).block(lun)
        data = pattern(4 * MIB, 20)
        block.write(0, data)
        block.expect(0, data, "before")
        command = list(words)
        if words[0].startswith("sg_"):
            scales = {"--lba": size, "--num": size}
            for at, word in enumerate(words[:-1]):
                if word in scales:
                    command[at + 1] = words[at + 1] // scales[word]
                elif word == "--xferlen":
                    command[at + 1] = size
        run(*command, block.path)
        expected = data[:MIB] + bytes(2 * MIB) + data[3 * MIB :]
        block.expect(0, expected, f"unit {lun} of {target} after {' '.join(map(str, command))}")
        logout_all()


@suite.case
def discard_gives_the_space_back():
    block = login(MAIN).block(1)
    path = WORLD.config.bdev("disk0")["path"]
    run("blkdiscard", block.path)
    block.write(0, pattern(32 * MIB, 3))
    sg("sync", block.path)
    full = backing_blocks(path)
    check(full >= 32 * MIB, f"{full} bytes allocated after 32 MiB were written")
    run("blkdiscard", "-l", 32 * MIB, block.path)
    wait_until("space given back", lambda: full - backing_blocks(path) > 30 * MIB)


@suite.case
def never_written_blocks_read_as_zeros():
    session = login(GROW)
    for lun in (0, 1):
        session.block(lun).expect(4 * MIB, bytes(MIB), f"unit {lun}")


@suite.case
def flush_and_fua_reach_the_file():
    block = login(MAIN).block(1)
    backing = pathlib.Path(WORLD.config.bdev("disk0")["path"])
    check(block.attribute("queue/write_cache") == "write back", "no volatile write cache, no flush")
    check(block.attribute("queue/fua") == "1", "the kernel does not use FUA")
    block.write(MIB, pattern(65536, 31))
    before = block.flushes()
    run("sync", block.path)
    check(block.flushes() > before, "fsync sent no flush")
    # RWF_DSYNC: a write with FUA.
    block.write(0, pattern(4096, 32), 0x2)
    with open(backing, "rb") as file:
        check(file.read(4096) == pattern(4096, 32), "the forced write is not in the file")
        file.seek(MIB)
        check(file.read(65536) == pattern(65536, 31), "flushed data is not in the file")


@suite.case
def block_size_4096():
    block = login(FOURK).block()
    for name in ("logical_block_size", "physical_block_size"):
        check(block.attribute(f"queue/{name}") == "4096", f"{name} is {block.attribute(f'queue/{name}')}")
    check(block.size() == 64 * MIB, f"size {block.size()}")
    fio(block, ENGINE="libaio", JOBS=2, SIZE="8m")


@suite.case
def read_only_unit_refuses_writes():
    session = login(GUARD)
    block = session.block()
    block.expect(0, GUARDED, "contents")
    check(block.attribute("ro") == "1", "the kernel takes the disk as writable")
    # Past the kernel's own check.
    for words in (
        ["write_same", "--16", "--num", 8, "--xferlen", 512],
        ["unmap", "--force", "--lba", 0, "--num", 8],
        ["dd", "if=/dev/zero", "bs=512", "count=8", "of="],
    ):
        device = session.generic()
        words = [*words[:-1], f"of={device}"] if words[-1] == "of=" else [*words, device]
        done = sg(*words, succeed=False)
        said = done.output + done.errors
        check(done.code != 0 and "protect" in said.lower(), f"{words[0]} on a read-only unit: {done.code}: {said}")
    block.expect(0, GUARDED, "contents after refused writes")
    check((SCRATCH / "guarded.img").read_bytes()[:4096] == GUARDED, "the file changed")


@suite.case
def limits_of_the_kernel_are_those_of_the_pages():
    """What sysfs has of a disk, by the pages that say it and by what is configured."""
    for target, lun, name in ((MAIN, 0, "ram0"), (MAIN, 1, "disk0"), (FOURK, 0, "ram4k")):
        block = login(target).block(lun)
        size = WORLD.config.bdev(name).get("block_size", 512)
        page = sg("vpd", "-p", "bl", block.path).output
        limit = field(page, rf"Maximum transfer length: {NUMBER}") * size
        check(0 < int(block.attribute("queue/max_sectors_kb")) * 1024 <= limit, f"{name}: transfers above {limit}")
        check(field(page, rf"WSNZ\): {NUMBER}") == 0, f"{name}: WSNZ: {page}")
        unmap = field(page, rf"Maximum unmap LBA count: {NUMBER}")
        most = int(block.attribute("queue/discard_max_hw_bytes"))
        check(0 < most <= unmap * size, f"{name}: discards of {most} bytes, unmap of {unmap} blocks")
        same = field(page, rf"Maximum write same length: {NUMBER}")
        most = int(block.attribute("queue/write_zeroes_max_bytes"))
        check(0 < most <= same * size, f"{name}: zeros of {most} bytes, write same of {same} blocks")
        granularity = field(page, rf"Optimal unmap granularity: {NUMBER}") * size
        found = int(block.attribute("queue/discard_granularity"))
        check(found == max(granularity, size), f"{name}: discard granularity {found}, the page has {granularity}")
        optimal = field(page, rf"Optimal transfer length granularity: {NUMBER}") * size
        check(int(block.attribute("queue/minimum_io_size")) == max(optimal, size), f"{name}: minimum I/O size")
        check(block.attribute("queue/rotational") == "0", f"{name} rotates")
        check(block.attribute("queue/logical_block_size") == str(size), f"{name}: block size")
        check(block.size() == WORLD.config.bdev(name)["size"], f"{name} has {block.size()} bytes")
        check(block.attribute("device/vendor").strip(), f"{name}: no vendor")
        provisioning = sg("vpd", "-p", "lbpv", block.path).output
        for bit in ("LBPU", "LBPWS", "LBPWS10", "LBPRZ"):
            check(field(provisioning, rf"\b{bit}={NUMBER}") == 1, f"{name}: {bit}: {provisioning}")
        capacity = sg("readcap", "--16", block.path).output
        check("lbpme=1" in capacity and "lbprz=1" in capacity, f"{name}: {capacity}")
        logout_all()


@suite.case
def reads_and_writes_beyond_the_end_fail():
    block = login(MAIN).block()
    blocks = block.size() // 512
    for words in (
        ["write_same", "--16", "--lba", blocks - 4, "--num", 8, "--xferlen", 512],
        ["verify", "--lba", blocks - 4, "--count", 8],
        ["unmap", "--force", "--lba", blocks - 4, "--num", 8],
    ):
        done = sg(*words, block.path, succeed=False)
        said = (done.output + done.errors).lower()
        check(done.code != 0 and "out of range" in said, f"{words[0]} across the end: {done.code}: {said}")
    check(block.errno_of_read(0, 4096) == 0, "the first blocks cannot be read")
    check(block.errno_of_write(block.size(), pattern(4096)) == errno.ENOSPC, "a write behind the end")
