#!/usr/bin/python3
"""NVMe/TCP: the kernel's host against a target on the guest's loopback.

  nvmf.py [--self-check] [WORD...]     the cases whose names contain a WORD, or all

`--self-check` puts the kernel's own target in reactor's place, which checks the cases themselves.
"""

import hashlib
import os
import pathlib
import re
import shlex
import socket
import struct
import sys
import threading
import time
import zlib

from harness import Failure, Suite, Unsupported, check, note, run, wait_until
from host import (
    DISCOVERY_NQN,
    SERVICE,
    Block,
    connect,
    controllers,
    disconnect_all,
    discover,
    find_block,
    host_nqn,
    identity,
    nvme,
    nvme_json,
)
from target import MIB, Config, make

PREFIX = "nqn.2026-11.io.reactor:"
MAIN, FOURK, GROW, PRIVATE, GUARD, LATE = (
    PREFIX + name for name in ("main", "fourk", "grow", "private", "guard", "late")
)
ALICE = "a11ce000-0000-4000-8000-000000000001"
SCRATCH = pathlib.Path("/scratch")
MOUNT = pathlib.Path("/mnt/volume")
TREE = pathlib.Path("/usr/lib/python3")
GUARDED = b"written before the target started".ljust(4096, b".")
STOP_LIMIT_S = 2
# An emulated processor is slower than the machine that the limit was set for.
EMULATION_SLACK_S = 2


def first_config():
    volume = {"driver": "malloc", "block_size": 512}
    return Config(
        listen=[f"127.0.0.1:{SERVICE}", f"[::1]:{SERVICE}"],
        bdevs=[
            {"name": "ram0", **volume, "size": 320 * MIB},
            {"name": "disk0", "driver": "file", "path": str(SCRATCH / "disk0.img"), "size": 320 * MIB},
            {"name": "ram4k", **volume, "block_size": 4096, "size": 64 * MIB},
            {"name": "growram", **volume, "size": 16 * MIB},
            {"name": "growdisk", "driver": "file", "path": str(SCRATCH / "grow.img"), "size": 16 * MIB},
            {"name": "spare", **volume, "size": 8 * MIB},
            {"name": "private", **volume, "size": 8 * MIB},
            {"name": "guarded", "driver": "file", "path": str(SCRATCH / "guarded.img"), "size": 8 * MIB},
        ],
        subsystems=[
            {"nqn": MAIN, "namespaces": [{"nsid": 1, "bdev": "ram0"}, {"nsid": 2, "bdev": "disk0"}]},
            {"nqn": FOURK, "namespaces": [{"nsid": 1, "bdev": "ram4k"}]},
            {"nqn": GROW, "namespaces": [{"nsid": 1, "bdev": "growram"}, {"nsid": 2, "bdev": "growdisk"}]},
            {"nqn": PRIVATE, "hosts": [host_nqn(ALICE)], "namespaces": [{"nsid": 1, "bdev": "private"}]},
            {"nqn": GUARD, "namespaces": [{"nsid": 1, "bdev": "guarded", "read_only": True}]},
        ],
    )


class World:
    """The target and what it now serves."""

    def __init__(self, self_check):
        directory = pathlib.Path("/tmp/target")
        directory.mkdir()
        self.self_check = self_check
        with open(SCRATCH / "guarded.img", "wb") as file:
            file.write(GUARDED)
            file.truncate(8 * MIB)
        self.config = first_config()
        self.target = make(self_check, directory)

    def reload(self):
        self.target.reload(self.config)

    def before(self):
        if not self.target.alive():
            self.target.start(self.config)

    def after(self):
        if MOUNT.is_mount():
            run("umount", MOUNT)
        disconnect_all()
        if not self.target.alive():
            self.target.show()
        self.target.assert_alive()

    def recover(self):
        """Ends whatever a failed case left; says whether the next can run."""
        self.target.show()
        run("umount", "-l", MOUNT, succeed=False)
        nvme("disconnect-all", succeed=False)
        if self.target.alive() and controllers():
            self.target.kill()
        wait_until("no controller left", lambda: not controllers(), timeout_s=60)
        return True


WORLD = World("--self-check" in sys.argv[1:])
suite = Suite(WORLD.before, WORLD.after, WORLD.recover)


def only_reactor(what):
    if WORLD.self_check:
        raise Unsupported(f"nvmet has no {what}")


def pattern(length, seed=0):
    """Bytes that differ everywhere and between seeds."""
    block = hashlib.shake_128(seed.to_bytes(8, "little")).digest(1 << 16)
    return (block * (length // len(block) + 1))[:length]


# Discovery and connecting


@suite.case
def discovery_lists_what_this_host_may_use():
    found = discover()
    check(sorted(set(found)) == sorted([MAIN, FOURK, GROW, GUARD]), f"discovery shows {found}")


@suite.case
def discovery_over_ipv6():
    check(MAIN in discover("::1"), "the main subsystem is not in the log at [::1]")


@suite.case
def discovery_shows_an_allowed_host_its_own():
    check(PRIVATE in discover("127.0.0.1", *identity(ALICE)), "the allowed host does not see its subsystem")


@suite.case
def host_that_is_not_allowed_is_refused():
    run("dmesg", "-c")
    done = nvme("connect", "-t", "tcp", "-a", "127.0.0.1", "-s", SERVICE, "-n", PRIVATE, succeed=False)
    check(done.code != 0, "connect of a host that is not allowed succeeded")
    text = run("dmesg").output
    check("is not allowed, hostnqn" in text, f"the kernel did not see Connect Invalid Host: {text[-300:]}")
    connect(PRIVATE, *identity(ALICE))
    Block(PRIVATE, 1).write(0, pattern(4096))


@suite.case
def unknown_subsystem_is_refused():
    done = nvme("connect", "-t", "tcp", "-a", "127.0.0.1", "-s", SERVICE, "-n", PREFIX + "none", succeed=False)
    check(done.code != 0 and not controllers(), "connect to a subsystem that does not exist succeeded")


@suite.variants(
    one_queue=(1, []),
    four_queues=(4, []),
    header_digest=(1, ["--hdr-digest"]),
    data_digest=(1, ["--data-digest"]),
    both_digests_four_queues=(4, ["--hdr-digest", "--data-digest"]),
    no_sqflow=(1, ["--disable-sqflow"]),
    no_sqflow_digests_four_queues=(4, ["--disable-sqflow", "--hdr-digest", "--data-digest"]),
)
def connect_with(queues, options):
    controller = connect(MAIN, "-i", queues, *options)
    check(controller.io_queues() == queues, f"{controller.io_queues()} I/O queues, asked for {queues}")
    block = Block(MAIN, 1)
    for index, size in enumerate((512, 4096, 8192, 65536, MIB)):
        block.write(index * MIB, pattern(size, index))
    for index, size in enumerate((512, 4096, 8192, 65536, MIB)):
        block.expect(index * MIB, pattern(size, index), f"{size} bytes")
    fio(block, "libaio", "randrw", "512-64k", jobs=queues, size_mib=1)


@suite.case
def connect_over_ipv6():
    connect(MAIN, address="::1")
    block = Block(MAIN, 1)
    block.write(0, pattern(MIB, 6))
    block.expect(0, pattern(MIB, 6), "over IPv6")


@suite.case
def printed_connect_lines_connect():
    lines = WORLD.target.connect_lines()
    check(any(MAIN in line for line in lines), f"no connect line for the main subsystem: {lines}")
    for line in lines:
        if MAIN in line and "127.0.0.1" in line:
            run(*shlex.split(line))
            Block(MAIN, 1)
            return
    raise Failure(f"no line for 127.0.0.1: {lines}")


@suite.case
def two_hosts_share_a_namespace():
    first = connect(MAIN)
    Block(MAIN, 1).write(0, pattern(65536, 7))
    connect(MAIN, *identity(ALICE))
    first.disconnect()
    Block(MAIN, 1).expect(0, pattern(65536, 7), "through the second host")


@suite.case
def controller_reset_and_data_stay():
    controller = connect(MAIN, "-i", 2)
    block = Block(MAIN, 1)
    block.write(0, pattern(65536, 8))
    nvme("reset", controller.device)
    wait_until("live after reset", lambda: controller.state() == "live")
    block.expect(0, pattern(65536, 8), "after a controller reset")


@suite.case
def keep_alive_of_one_second_holds_an_idle_connection():
    controller = connect(MAIN, "-k", 1)
    run("dmesg", "-c")
    time.sleep(5)
    text = run("dmesg").output
    check(controller.state() == "live" and "keep" not in text.lower(), f"idle connection was lost: {text[-300:]}")
    Block(MAIN, 1).write(0, pattern(4096))


# What the controller says of itself


@suite.case
def identify_controller():
    controller = connect(MAIN)
    told = nvme_json("id-ctrl", controller.device)
    check(told["subnqn"] == MAIN, f"subnqn {told['subnqn']}")
    check(told["nn"] >= 2, f"nn {told['nn']} with two namespaces")
    check(told["cntlid"] == int(controller.attribute("cntlid")), "cntlid differs from Connect's")
    check(told["kas"] > 0, "keep alive is not supported")
    check(told["sgls"] & 3, "no SGL support, which fabrics need")
    for name in ("sn", "mn", "fr"):
        check(told[name].strip(), f"{name} is empty")
    again = nvme_json("id-ctrl", controller.device)
    check(again["sn"] == told["sn"], "the serial number changes")


@suite.case
def identify_namespaces():
    connect(MAIN)
    seen = set()
    for nsid, name in ((1, "ram0"), (2, "disk0")):
        block = Block(MAIN, nsid)
        told = nvme_json("id-ns", block.path, "-n", nsid)
        size = WORLD.config.bdev(name)["size"]
        check(told["nsze"] == size // 512, f"nsze {told['nsze']} of namespace {nsid}")
        check(block.size() == size, f"{block.path} has {block.size()} bytes")
        current = told["lbafs"][told["flbas"] & 15]
        check(current["ds"] == 9 and current["ms"] == 0, f"LBA format {current}")
        names = told["nguid"] + told["eui64"]
        check(names.strip("0"), f"namespace {nsid} has neither NGUID nor EUI64")
        seen.add(names)
    check(len(seen) == 2, f"both namespaces are called {seen}")
    listed = nvme("list-ns", Block(MAIN, 1).path).output
    found = [int(value, 0) for value in re.findall(r"\]:\s*(0x[0-9a-f]+|\d+)", listed)]
    check(found == [1, 2], f"list-ns shows {listed}")


@suite.case
def namespace_names_survive_a_restart():
    only_reactor("process to restart")
    names = []
    for _ in range(2):
        connect(MAIN)
        names.append([Block(MAIN, nsid).attribute("wwid") for nsid in (1, 2)])
        disconnect_all()
        code, _ = WORLD.target.stop(30)
        check(code == 0, f"SIGTERM: exit {code}")
        WORLD.before()
    check(names[0] == names[1], f"names before and after: {names}")


@suite.case
def smart_log_counts_what_was_done():
    controller = connect(MAIN)
    block = Block(MAIN, 1)
    before = nvme_json("smart-log", controller.device)
    for index in range(16):
        block.write(index * MIB, pattern(MIB, index))
    for index in range(8):
        block.read(index * MIB, MIB)
    after = nvme_json("smart-log", controller.device)
    grew = {name: int(after[name]) - int(before[name]) for name in after if name.startswith(("data_units", "host_"))}
    # Data units are thousands of 512 bytes: 16 MiB are 33, 8 MiB are 17.
    check(32 <= grew["data_units_written"] <= 64, f"16 MiB written count as {grew}")
    check(16 <= grew["data_units_read"] <= 64, f"8 MiB read count as {grew}")
    check(grew["host_write_commands"] >= 16 and grew["host_read_commands"] >= 8, f"commands count as {grew}")


@suite.case
def error_and_effects_logs_can_be_read():
    controller = connect(MAIN)
    effects = nvme_json("effects-log", controller.device)
    check("ACS0" in str(effects) or "admin" in str(effects).lower(), f"commands and effects log: {effects}")
    check("errors" in nvme_json("error-log", controller.device), "no entries in the error log")
    slots = nvme_json("fw-log", controller.device)
    check("Active Firmware Slot" in str(slots) or "afi" in str(slots), f"firmware slot log: {slots}")


@suite.case
def list_subsys_and_list_show_the_connection():
    controller = connect(MAIN)
    block = Block(MAIN, 1)
    text = nvme("list-subsys", "-o", "json").output
    check(MAIN in text and controller.name in text and "live" in text, f"list-subsys: {text[:400]}")
    text = nvme("list").output
    check(block.path in text and Block(MAIN, 2).path in text, f"list: {text}")


# Data


def fio(block, engine, pattern_name, sizes, jobs=1, size_mib=8, depth=16):
    """Writes with checksums, reads back and compares; every job has a region of its own."""
    split = "bsrange" if "-" in sizes else "bs"
    run(
        "fio", "--name=verify", f"--filename={block.path}", "--direct=1", "--thread", f"--ioengine={engine}",
        f"--rw={pattern_name}", f"--{split}={sizes}", f"--iodepth={depth}", f"--numjobs={jobs}",
        f"--size={size_mib}m", f"--offset_increment={size_mib}m", "--verify=crc32c", "--verify_fatal=1",
        "--do_verify=1", "--group_reporting", "--output-format=terse",
    )  # fmt: skip


@suite.variants(
    malloc_4k_random=(1, "libaio", "randwrite", "4k", 4, 4),
    malloc_mixed_sizes=(1, "io_uring", "randwrite", "4k-1m", 2, 24),
    malloc_64k_sequential=(1, "io_uring", "write", "64k", 2, 16),
    file_4k_random=(2, "io_uring", "randwrite", "4k", 4, 4),
    file_mixed_sizes=(2, "libaio", "randrw", "4k-1m", 2, 24),
    file_1m_sequential=(2, "libaio", "write", "1m", 2, 32),
)
def fio_verify(nsid, engine, pattern_name, sizes, jobs, size_mib):
    connect(MAIN, "-i", 4)
    fio(Block(MAIN, nsid), engine, pattern_name, sizes, jobs=jobs, size_mib=size_mib, depth=32)


@suite.case
def fio_verify_both_namespaces_with_digests():
    connect(MAIN, "-i", 4, "--hdr-digest", "--data-digest")
    blocks = [Block(MAIN, nsid) for nsid in (1, 2)]
    failures = []

    def one(block):
        try:
            fio(block, "libaio", "randrw", "4k-256k", jobs=2, size_mib=8)
        except Failure as error:
            failures.append(str(error))

    threads = [threading.Thread(target=one, args=(block,)) for block in blocks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(not failures, "; ".join(failures))


@suite.case
def one_mebibyte_is_one_command():
    connect(MAIN)
    block = Block(MAIN, 1)
    limit = int(block.attribute("queue/max_hw_sectors_kb"))
    check(limit >= 1024, f"max_hw_sectors_kb is {limit}")
    block.set_attribute("queue/max_sectors_kb", 1024)
    before = int(block.attribute("stat").split()[4])
    block.write(0, pattern(MIB, 11))
    commands = int(block.attribute("stat").split()[4]) - before
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
    make_file_system = {"ext4": ["mkfs.ext4", "-q", "-F"], "xfs": ["mkfs.xfs", "-q", "-f"]}[kind]
    look = {"ext4": ["e2fsck", "-f", "-n"], "xfs": ["xfs_repair", "-n"]}[kind]
    run(*make_file_system, block.path)
    MOUNT.mkdir(exist_ok=True)
    run("mount", "-t", kind, block.path, MOUNT)
    run("cp", "-a", TREE, MOUNT / "tree")
    run("umount", MOUNT)
    run(*look, block.path)
    # A new connection: nothing of the old one's caches is left.
    disconnect_all()
    connect(nqn, "-i", 2)
    block = Block(nqn, nsid)
    run("mount", "-t", kind, block.path, MOUNT)
    check(checksums(MOUNT / "tree") == checksums(TREE), "the copy differs")
    run("fstrim", MOUNT)
    check(checksums(MOUNT / "tree") == checksums(TREE), "the copy differs after fstrim")
    run("umount", MOUNT)
    run(*look, block.path)


def checksums(tree):
    """Relative path -> SHA-256 of every file below `tree`."""
    found = {}
    for path in sorted(tree.rglob("*")):
        if path.is_file() and not path.is_symlink():
            found[str(path.relative_to(tree))] = hashlib.sha256(path.read_bytes()).hexdigest()
    check(found, f"no file in {tree}")
    return found


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
    fio(block, "libaio", "randwrite", "4k-256k", jobs=2, size_mib=8)


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


# Changes while hosts are connected


@suite.case
def growth_is_seen_and_data_kept():
    connect(GROW)
    for nsid, name in ((1, "growram"), (2, "growdisk")):
        block = Block(GROW, nsid)
        block.write(8 * MIB, pattern(MIB, nsid))
        new = WORLD.config.bdev(name)["size"] + 16 * MIB
        WORLD.config.bdev(name)["size"] = new
        WORLD.reload()
        wait_until(f"{block.path} has {new} bytes", lambda: block.size() == new)
        block.expect(8 * MIB, pattern(MIB, nsid), "after growth")
        block.expect(new - MIB, bytes(MIB), "the new part")
        block.write(new - MIB, pattern(MIB, 50))
        block.expect(new - MIB, pattern(MIB, 50), "the new part, written")


@suite.case
def namespace_added_and_removed_is_seen():
    connect(GROW)
    Block(GROW, 1)
    namespaces = WORLD.config.subsystem(GROW)["namespaces"]
    namespaces.append({"nsid": 7, "bdev": "spare"})
    WORLD.reload()
    block = Block(GROW, 7)
    block.write(0, pattern(65536, 51))
    block.expect(0, pattern(65536, 51), "the new namespace")
    text = nvme("list").output
    check(block.path in text, f"nvme list has no {block.path}: {text}")
    namespaces.pop()
    WORLD.reload()
    wait_until("namespace 7 gone", lambda: find_block(GROW, 7) is None)
    check(block.path not in nvme("list").output, "nvme list still has the namespace")
    Block(GROW, 1).write(0, pattern(4096, 52))


# linux/netlink.h; the socket module has no name for it.
NETLINK_KOBJECT_UEVENT = 15


class Events:
    """The kernel's uevents from now on."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_KOBJECT_UEVENT)
        # Group 1: events as the kernel sends them.
        self.socket.bind((0, 1))
        self.socket.setblocking(False)
        self.seen = []

    def has(self, text):
        while True:
            try:
                self.seen.append(self.socket.recv(65536).decode(errors="replace").replace("\0", " "))
            except BlockingIOError:
                return any(text in event for event in self.seen)


@suite.case
def persistent_discovery_controller_gets_the_change():
    nvme("discover", "-t", "tcp", "-a", "127.0.0.1", "-s", SERVICE, "-p", "-k", 5)
    found = [one for one in controllers() if one.attribute("subsysnqn") == DISCOVERY_NQN]
    check(len(found) == 1 and found[0].state() == "live", f"{len(found)} discovery controllers stayed")
    events = Events()
    WORLD.config.subsystems.append({"nqn": LATE, "namespaces": [{"nsid": 1, "bdev": "spare"}]})
    WORLD.reload()
    # Notice, discovery log page change, log page 70h.
    wait_until("event of a discovery change", lambda: events.has("NVME_AEN=0x70f002"))
    log = nvme_json("discover", "-d", found[0].name)
    check(LATE in [record["subnqn"] for record in log["records"]], "the new subsystem is not in the log")
    connect(LATE)
    Block(LATE, 1).write(0, pattern(4096, 53))
    events = Events()
    WORLD.config.subsystems.pop()
    WORLD.reload()
    wait_until("event of the second change", lambda: events.has("NVME_AEN=0x70f002"))
    wait_until("the subsystem left discovery", lambda: LATE not in discover())


# Death and rebirth

RECORD = 4096
WRITERS = 4
REGION = 16 * MIB


class Writer(threading.Thread):
    """Writes numbered records, each followed by fsync, into a region of its own; `acknowledged` of them are safe."""

    def __init__(self, path, index, stop):
        super().__init__(daemon=True)
        self.path = path
        self.index = index
        self.stopping = stop
        self.acknowledged = 0
        self.error = None

    def run(self):
        try:
            descriptor = os.open(self.path, os.O_RDWR)
            while not self.stopping.is_set() and self.acknowledged < REGION // RECORD:
                number = self.acknowledged
                os.pwrite(descriptor, record(self.index, number), self.index * REGION + number * RECORD)
                os.fsync(descriptor)
                self.acknowledged = number + 1
            os.close(descriptor)
        except OSError as error:
            self.error = error


def record(writer, number):
    head = struct.pack("<II", writer, number)
    body = head + pattern(RECORD - 12, writer << 32 | number)[8:]
    body = body.ljust(RECORD - 4, b"\0")
    return body + struct.pack("<I", zlib.crc32(body))


@suite.case
def kill_under_load_loses_no_flushed_write():
    """Twice: kill -9 under fsync'd load, look into the file, restart, let the host reconnect and go on."""
    controller = connect(MAIN, "-i", 4, "-c", 1, "-l", 120, "-k", 5)
    block = Block(MAIN, 2)
    backing = WORLD.config.bdev("disk0")["path"]
    run("blkdiscard", "-l", WRITERS * REGION, block.path)
    stop = threading.Event()
    writers = [Writer(block.path, index, stop) for index in range(WRITERS)]
    for writer in writers:
        writer.start()

    def total():
        return sum(writer.acknowledged for writer in writers)

    for turn in range(2):
        goal = total() + 200
        wait_until(f"200 records before kill {turn + 1}", lambda: total() >= goal, timeout_s=60)
        WORLD.target.kill()
        safe = [writer.acknowledged for writer in writers]
        with open(backing, "rb") as file:
            for index, count in enumerate(safe):
                for number in range(count):
                    file.seek(index * REGION + number * RECORD)
                    check(file.read(RECORD) == record(index, number), f"writer {index} lost record {number} of {count}")
        time.sleep(1)
        check(not any(writer.error for writer in writers), f"I/O errors: {[writer.error for writer in writers]}")
        WORLD.before()
        goal = total() + 50
        wait_until(f"50 records after restart {turn + 1}", lambda: total() >= goal, timeout_s=60)
        check(controller.state() == "live", f"the controller is {controller.state()}")
    stop.set()
    for writer in writers:
        writer.join(60)
        check(not writer.is_alive(), "a writer is stuck")
        check(writer.error is None, f"a writer failed: {writer.error}")
    note(f"{total()} records")
    for writer in writers:
        for number in range(writer.acknowledged):
            expected = record(writer.index, number)
            block.expect(writer.index * REGION + number * RECORD, expected, f"writer {writer.index} record {number}")


@suite.case
def terminate_under_load_drains():
    connect(MAIN, "-i", 4, "-c", 1, "-l", 120)
    blocks = [Block(MAIN, nsid) for nsid in (1, 2)]
    stop = threading.Event()
    writers = [Writer(block.path, index, stop) for index, block in enumerate(blocks)]
    for writer in writers:
        writer.start()
    for writer in writers:
        wait_until("load", lambda writer=writer: writer.acknowledged > 20, timeout_s=60)
    code, seconds = WORLD.target.stop(30)
    check(code == 0, f"SIGTERM under load: exit {code}")
    check(seconds < STOP_LIMIT_S + EMULATION_SLACK_S, f"SIGTERM under load took {seconds:.1f} s")
    safe = writers[1].acknowledged
    with open(WORLD.config.bdev("disk0")["path"], "rb") as file:
        file.seek(REGION)
        for number in range(safe):
            check(file.read(RECORD) == record(1, number), f"record {number} of {safe} is not in the file")
    WORLD.before()
    stop.set()
    for writer in writers:
        writer.join(60)
        check(not writer.is_alive() and writer.error is None, f"a writer did not come back: {writer.error}")
    note(f"ended after {seconds:.2f} s, {safe} records safe")


@suite.case
def many_connections_come_and_go():
    for _ in range(8):
        connect(MAIN, "-i", 4)
        connect(FOURK, "-i", 4)
        disconnect_all()
    WORLD.target.assert_alive()
    connect(MAIN)
    Block(MAIN, 1).write(0, pattern(4096))


def main():
    run("modprobe", "nvme-tcp")
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    return suite.run(words)


if __name__ == "__main__":
    sys.exit(main())
