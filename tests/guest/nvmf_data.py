"""Reads, writes, file systems, and every command that changes data."""

import os
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
from harness import check, run, wait_until
from host import Block, connect, disconnect_all, nvme, nvme_json
from jobs import all_kinds_of_load, fio, fio_at_once
from nvmf_world import FOURK, GROW, GUARD, GUARDED, MAIN, WORLD, only_reactor, suite


@suite.variants(
    malloc_4k_random=(1, "libaio", "randwrite", "4k-4k", 4, 4),
    malloc_mixed_sizes=(1, "io_uring", "randwrite", "4k-1m", 2, 24),
    malloc_64k_sequential=(1, "io_uring", "write", "64k-64k", 2, 16),
    file_4k_random=(2, "io_uring", "randwrite", "4k-4k", 4, 4),
    file_mixed_sizes=(2, "libaio", "randrw", "4k-1m", 2, 24),
    file_1m_sequential=(2, "libaio", "write", "1m-1m", 2, 32),
)
def fio_verify(nsid, engine, direction, sizes, jobs, size_mib):
    connect(MAIN, "-i", 4)
    names = {"ENGINE": engine, "RW": direction, "SIZES": sizes, "JOBS": jobs, "SIZE": f"{size_mib}m"}
    fio(Block(MAIN, nsid), **names, DEPTH=32)


@suite.case
def all_jobs_run():
    connect(MAIN, "-i", 4)
    all_kinds_of_load(Block(MAIN, 1))


@suite.case
def fio_verify_both_namespaces_with_digests():
    connect(MAIN, "-i", 4, "--hdr-digest", "--data-digest")
    blocks = [Block(MAIN, nsid) for nsid in (1, 2)]
    fio_at_once(blocks, ENGINE="libaio", RW="randrw", JOBS=2, SIZE="8m")


@suite.case
def one_mebibyte_is_one_command():
    connect(MAIN)
    block = Block(MAIN, 1)
    limit = int(block.attribute("queue/max_hw_sectors_kb"))
    check(limit >= 1024, f"max_hw_sectors_kb is {limit}")
    block.set_attribute("queue/max_sectors_kb", 1024)
    before = block.stat()[STAT_WRITES]
    block.write(0, pattern(MIB, 11))
    commands = block.stat()[STAT_WRITES] - before
    block.expect(0, pattern(MIB, 11), "1 MiB")
    check(commands == 1, f"1 MiB was written by {commands} commands")


@suite.variants(
    ext4_malloc=(MAIN, 1, "ext4"),
    ext4_file=(MAIN, 2, "ext4"),
    xfs_malloc=(MAIN, 1, "xfs"),
    xfs_file=(MAIN, 2, "xfs"),
    ext4_4k_blocks=(FOURK, 1, "ext4"),
)
def file_system(nqn, nsid, kind):
    connect(nqn, "-i", 2)
    block = Block(nqn, nsid)
    make_file_system(block.path, kind)
    unmount_and_look(block.path, kind)
    # A new connection: nothing of the old one's caches is left.
    disconnect_all()
    connect(nqn, "-i", 2)
    block = Block(nqn, nsid)
    mount(block.path, kind)
    check_copy("after a new connection")
    run("fstrim", MOUNT)
    # Read from the disk again, not from the page cache.
    run("umount", MOUNT)
    mount(block.path, kind)
    check_copy("after fstrim")
    unmount_and_look(block.path, kind)


@suite.variants(
    blkdiscard=(["blkdiscard", "-o", MIB, "-l", 2 * MIB],),
    blkdiscard_zeroout=(["blkdiscard", "-z", "-o", MIB, "-l", 2 * MIB],),
    write_zeroes=(["nvme", "write-zeroes", "-s", MIB, "-c", 2 * MIB],),
    write_zeroes_deallocate=(["nvme", "write-zeroes", "--deac", "-s", MIB, "-c", 2 * MIB],),
    dsm=(["nvme", "dsm", "--ad", "-s", MIB, "-b", 2 * MIB],),
)
def zeros_after(words):
    """Zeros where data was, and the data on both sides untouched. Byte counts become blocks for nvme-cli."""
    for nqn, nsid, size in ((MAIN, 1, 512), (MAIN, 2, 512), (FOURK, 1, 4096)):
        connect(nqn)
        block = Block(nqn, nsid)
        data = pattern(4 * MIB, 20)
        block.write(0, data)
        block.expect(0, data, "before")
        command = list(words)
        if words[0] == "nvme":
            for index, word in enumerate(words):
                if isinstance(word, int):
                    # A block count in write-zeroes is zero's based, one in a range of dsm is not.
                    command[index] = word // size - (1 if words[index - 1] == "-c" else 0)
            command[2:2] = [block.path, "-n", nsid]
        else:
            command.append(block.path)
        run(*command)
        expected = data[:MIB] + bytes(2 * MIB) + data[3 * MIB :]
        block.expect(0, expected, f"namespace {nsid} of {nqn} after {' '.join(map(str, command))}")
        disconnect_all()


@suite.case
def verify_reads_and_changes_nothing():
    only_reactor("Verify")
    for nqn, nsid, size in ((MAIN, 1, 512), (MAIN, 2, 512), (FOURK, 1, 4096), (GUARD, 1, 512)):
        connect(nqn)
        block = Block(nqn, nsid)
        data = GUARDED if nqn == GUARD else pattern(MIB, 21)
        if nqn != GUARD:
            block.write(0, data)
        blocks = block.size() // size
        most = min(blocks, 1 << 16)
        for first, count in ((0, 1), (0, most), (blocks - most, most), (blocks - 1, 1)):
            nvme("verify", block.path, "-n", nsid, "-s", first, "-c", count - 1)
        done = nvme("verify", block.path, "-n", nsid, "-s", blocks - 4, "-c", 4, succeed=False)
        said = done.output + done.errors
        check(done.code != 0 and "range" in said.lower(), f"across the end of namespace {nsid} of {nqn}: {said}")
        done = nvme("verify", block.path, "-n", nsid, "-s", 0, "-c", 0, "-p", 1, succeed=False)
        check(done.code != 0, f"a check of protection information that namespace {nsid} of {nqn} has not")
        block.expect(0, data, f"namespace {nsid} of {nqn} after verifies")
        disconnect_all()


@suite.case
def discard_gives_the_space_back():
    connect(MAIN)
    block = Block(MAIN, 2)
    path = WORLD.config.bdev("disk0")["path"]
    run("blkdiscard", block.path)
    nvme("flush", block.path, "-n", 2)
    block.write(0, pattern(32 * MIB, 3))
    full = os.stat(path).st_blocks * 512
    check(full >= 32 * MIB, f"{full} bytes allocated after 32 MiB were written")
    run("blkdiscard", "-l", 32 * MIB, block.path)
    left = wait_until("space given back", lambda: full - os.stat(path).st_blocks * 512 > 30 * MIB)
    check(left, "the file keeps its blocks")


@suite.case
def never_written_blocks_read_as_zeros():
    connect(GROW)
    for nsid in (1, 2):
        block = Block(GROW, nsid)
        block.expect(4 * MIB, bytes(MIB), f"namespace {nsid}")


@suite.case
def compare_tells_equal_from_different():
    only_reactor("Compare")
    connect(MAIN)
    for nsid in (1, 2):
        block = Block(MAIN, nsid)
        block.write(0, pattern(8192, 30))
        different = bytearray(pattern(8192, 30))
        different[8191] ^= 1
        for name, data, equal in (("same", pattern(8192, 30), True), ("other", bytes(different), False)):
            file = pathlib.Path("/tmp") / name
            file.write_bytes(data)
            done = nvme("compare", block.path, "-n", nsid, "-s", 0, "-c", 15, "-z", 8192, "-d", file, succeed=False)
            said = done.output + done.errors
            check((done.code == 0) == equal, f"namespace {nsid}: compare with the {name} data: {said}")
            check(equal or "compar" in said.lower(), f"namespace {nsid}: not Compare Failure: {said}")


@suite.case
def flush_and_fua_reach_the_file():
    connect(MAIN)
    block = Block(MAIN, 2)
    backing = pathlib.Path(WORLD.config.bdev("disk0")["path"])
    check(block.attribute("queue/write_cache") == "write back" or WORLD.self_check, "no volatile write cache, no flush")
    block.write(MIB, pattern(65536, 31))
    nvme("flush", block.path, "-n", 2)
    pathlib.Path("/tmp/fua").write_bytes(pattern(4096, 32))
    nvme("write", block.path, "--force-unit-access", "-s", 0, "-c", 7, "-z", 4096, "-d", "/tmp/fua")
    with open(backing, "rb") as file:
        check(file.read(4096) == pattern(4096, 32), "the forced write is not in the file")
        file.seek(MIB)
        check(file.read(65536) == pattern(65536, 31), "flushed data is not in the file")


@suite.case
def command_beyond_the_end_fails():
    connect(MAIN)
    for nsid in (1, 2):
        block = Block(MAIN, nsid)
        blocks = block.size() // 512
        for command in (["read", "-z", 4096, "-d", "/tmp/beyond"], ["write-zeroes"]):
            done = nvme(command[0], block.path, "-n", nsid, "-s", blocks - 4, "-c", 7, *command[1:], succeed=False)
            check(done.code != 0, f"{command[0]} across the end of namespace {nsid} succeeded")
            said = done.output + done.errors
            # nvmet says Internal Error for what its block device refuses.
            check("range" in said.lower() or WORLD.self_check, f"not LBA Out of Range: {said}")


@suite.case
def block_size_4096():
    connect(FOURK, "-i", 2)
    block = Block(FOURK, 1)
    check(block.attribute("queue/logical_block_size") == "4096", "logical block size is not 4096")
    told = nvme_json("id-ns", block.path)
    check(told["lbafs"][told["flbas"] & 15]["ds"] == 12, "the LBA format is not 4096 bytes")
    check(block.size() == 64 * MIB, f"size {block.size()}")
    fio(block, ENGINE="libaio", JOBS=2, SIZE="8m")


@suite.case
def read_only_namespace_refuses_writes():
    only_reactor("read-only namespace")
    connect(GUARD)
    block = Block(GUARD, 1)
    block.expect(0, GUARDED, "contents")
    check(block.attribute("ro") == "1", "the kernel takes the disk as writable")
    pathlib.Path("/tmp/guard").write_bytes(pattern(4096, 40))
    for command in (
        ["write", "-s", 0, "-c", 7, "-z", 4096, "-d", "/tmp/guard"],
        ["write-zeroes", "-s", 0, "-c", 7],
        ["dsm", "--ad", "-s", 0, "-b", 8],
    ):
        done = nvme(command[0], block.path, "-n", 1, *command[1:], succeed=False)
        check(done.code != 0, f"{command[0]} on a read-only namespace succeeded")
    block.expect(0, GUARDED, "contents after refused writes")
    check((SCRATCH / "guarded.img").read_bytes()[:4096] == GUARDED, "the file changed")
