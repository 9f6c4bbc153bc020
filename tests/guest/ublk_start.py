"""What a start gives: names, numbers, modes, partitions; what it costs; and what it says where there is no ublk."""

import itertools
import os
import pathlib
import statistics
import struct
import subprocess
import time

import ublk_kernel
from disk import MIB, Disk, pattern
from harness import Failure, Unsupported, check, note, run, wait_until
from target import Config
from ublk_kernel import USER_COPY, ZERO_COPY
from ublk_world import BY_ID, STATE, WORLD, cpu_seconds, file, file_in_memory, malloc, needs, suite, ublk
from udev import settle_udev

IDLE_S = 5
# Under emulation; the aim on a machine is 0.01.
IDLE_CORE_MAX = 0.05
START_ROUNDS = 5
# What an emulated start adds to any ratio.
START_SLACK_S = 0.2


@suite.case
def numbers_are_those_asked_for():
    volumes = [malloc("ram0"), malloc("ram1"), malloc("ram2")]
    disks = WORLD.serve(volumes, [ublk("ram0", id=9), ublk("ram1"), ublk("ram2", id=5)])
    check([disks[0].path, disks[2].path] == ["/dev/ublkb9", "/dev/ublkb5"], f"disks {[disk.path for disk in disks]}")
    check(len({disk.path for disk in disks}) == 3, f"disks {[disk.path for disk in disks]}")
    for number, disk in enumerate(disks):
        disk.write(0, pattern(4096, number))
    for number, disk in enumerate(disks):
        disk.expect(0, pattern(4096, number), disk.path)


@suite.case
def taken_number_is_refused_with_a_reason():
    WORLD.serve([malloc("ram0")], [ublk("ram0", id=3)])
    other = WORLD.second("other")
    config = WORLD.config.copy()
    config.bdevs, config.ublk = [malloc("ram1")], [ublk("ram1", id=3)]
    check_ends(other, config, 1, "3")
    check(ublk_kernel.devices() == [3], f"devices {ublk_kernel.devices()}")


@suite.case
def names_by_id_appear_and_go():
    """/dev/disk/by-id/reactor-NAME by the udev rule, from the state file; gone with the disk."""
    volumes = [malloc("ram0"), malloc("Odd.name_1-x")]
    disks = WORLD.serve(volumes, [ublk(volume["name"]) for volume in volumes])
    for disk, volume in zip(disks, volumes, strict=True):
        state = (STATE / disk.name).read_text().splitlines()
        expected = [f"REACTOR_NAME={volume['name']}", f"REACTOR_CONFIG={WORLD.target.config_file}"]
        check(state[:2] == expected, f"state file of {disk.name}: {state}")
        link = BY_ID / f"reactor-{volume['name']}"
        wait_until(str(link), link.exists)
        check(link.resolve() == pathlib.Path(disk.path), f"{link} leads to {link.resolve()}")
    WORLD.config.ublk.pop()
    settle_udev()
    WORLD.reload()
    wait_until("the name of the removed disk gone", lambda: not os.path.lexists(BY_ID / "reactor-Odd.name_1-x"))
    check((BY_ID / "reactor-ram0").exists(), "the other name has gone too")
    WORLD.stop()
    wait_until("the name gone", lambda: not os.path.lexists(BY_ID / "reactor-ram0"))


@suite.case
def partitions_are_seen_after_a_restart():
    (disk,) = WORLD.serve([file("disk0")], [ublk("disk0", id=0)])
    table = WORLD.directory / "table"
    table.write_text("label: gpt\nstart=2048, size=8192\nstart=12288, size=4096\n")
    run("sh", "-c", f"sfdisk -q {disk.path} < {table}")
    disk.write(MIB, pattern(MIB, 8))
    WORLD.stop()
    WORLD.start()
    part = pathlib.Path("/dev/ublkb0p1")
    wait_until(str(part), lambda: part.exists() and os.path.exists("/dev/ublkb0p2"))
    # The buffers of the whole disk are not those of the partition: nothing is left of what was written above.
    with open(part, "rb") as opened:
        check(opened.read(MIB) == pattern(MIB, 8), "the first partition holds something else")
    link = BY_ID / "reactor-disk0-part1"
    wait_until(str(link), link.exists)
    check(link.resolve() == part, f"{link} leads to {link.resolve()}")
    # udev takes them up one after the other.
    second = BY_ID / "reactor-disk0-part2"
    wait_until(str(second), second.exists)
    check(second.resolve() == pathlib.Path("/dev/ublkb0p2"), f"{second} leads to {second.resolve()}")
    with open(part, "r+b", buffering=0) as opened:
        opened.write(pattern(4096, 9))
        os.fsync(opened.fileno())
    disk.expect(MIB, pattern(4096, 9), "written to the partition")


@suite.variants(
    auto_of_memory=("auto", "malloc", USER_COPY),
    auto_of_a_file=("auto", "file", None),
    user_copy=("user-copy", "file", USER_COPY),
    copy=("copy", "file", 0),
    zero_copy=("zero-copy", "file", ZERO_COPY),
)
def mode_is_what_the_kernel_granted(mode, device, flag):
    """The kernel's own word on how the data travels. `auto` takes zero copy for files where the kernel has it."""
    if mode == "zero-copy":
        needs(ZERO_COPY, "zero copy")
    if flag is None:
        flag = ZERO_COPY if WORLD.features & ZERO_COPY else USER_COPY
    volume = malloc("volume") if device == "malloc" else file("volume")
    (disk,) = WORLD.serve([volume], [ublk("volume", mode=mode, queues=2, depth=31)])
    info = ublk_kernel.info(int(disk.name.removeprefix("ublkb")))
    found = info.flags & (USER_COPY | ZERO_COPY)
    # Zero copy includes copies by the server, for what it has to look at.
    check(found & flag if flag else not found, f"mode {mode} is flags {info.flags:#x}")
    check((info.queues, info.depth) == (2, 31), f"{info.queues} queues of depth {info.depth}")
    check(info.state == "live" and info.server == WORLD.target.process.pid, f"{info}")


@suite.variants(malloc=(malloc("volume"),), file=(file_in_memory("volume"),))
def zero_copy_of_memory_is_refused_with_a_reason(volume):
    needs(ZERO_COPY, "zero copy")
    WORLD.serve([malloc("ram1")], [])
    other = WORLD.second("other")
    config = WORLD.config.copy()
    config.bdevs, config.ublk = [volume], [ublk("volume", mode="zero-copy")]
    check_ends(other, config, 1, "zero copy")
    check(not ublk_kernel.devices(), f"devices {ublk_kernel.devices()}")


@suite.case
def zero_copy_without_it_in_the_kernel_is_refused_with_a_reason():
    if WORLD.features & ZERO_COPY:
        raise Unsupported("this kernel has zero copy")
    WORLD.serve([file("disk1")], [])
    other = WORLD.second("other")
    config = WORLD.config.copy()
    config.bdevs, config.ublk = [file("disk0")], [ublk("disk0", mode="zero-copy")]
    check_ends(other, config, 1, "zero")
    check(not ublk_kernel.devices(), f"devices {ublk_kernel.devices()}")


def check_ends(reactor, config, wanted, *words):
    """Starts a reactor that must not come up; fails the case unless it ends with `wanted` and says all the words."""
    reactor.launch(config)
    end = time.monotonic() + 60
    while reactor.process.poll() is None and not reactor.ready.is_set() and time.monotonic() < end:
        time.sleep(0.05)
    said = " | ".join(reactor.logged()[-3:])
    check(not reactor.ready.is_set(), f"ready: {said}")
    if reactor.alive():
        reactor.kill()
        raise Failure(f"neither ready nor ended: {said}")
    check(reactor.process.returncode == wanted, f"exit {reactor.process.returncode}: {said}")
    check(all(word in said for word in words), f"not said: {' and '.join(words)}: {said}")


class NoModule:
    """The time without ublk in the kernel."""

    def __enter__(self):
        settle_udev()
        run("rmmod", "ublk_drv")
        wait_until("no control device", lambda: not os.path.exists(ublk_kernel.CONTROL))

    def __exit__(self, *_):
        WORLD.target.stop(20) if WORLD.target.alive() else None
        run("modprobe", "ublk_drv")
        wait_until("control device", lambda: os.path.exists(ublk_kernel.CONTROL))


@suite.case
def without_the_module_it_warns_and_goes_on():
    with NoModule():
        disks = WORLD.serve([malloc("ram0"), malloc("ram1")], [ublk("ram0"), ublk("ram1")])
        check(not disks, f"disks {disks}")
        # The log has a thread of its own: "ready" may be there first.
        WORLD.wait_for_log("ublk")
        lines = WORLD.logged(["ublk"])
        check(len(lines) == 1 and "WARN" in lines[0], f"{len(lines)} lines about ublk: {lines}")
        check("modprobe" in lines[0], f"what to do is not said: {lines[0]}")
        # A reload goes on too.
        WORLD.config.ublk.pop()
        WORLD.reload()
        time.sleep(1)
        WORLD.target.assert_alive()


@suite.case
def without_the_module_a_required_disk_ends_the_start():
    with NoModule():
        WORLD.serve([malloc("ram0")], [])
        config = WORLD.config.copy()
        config.bdevs, config.ublk = [malloc("ram1")], [ublk("ram1", required=True)]
        check_ends(WORLD.second("other"), config, 1, "ublk", "required")


@suite.case
def idle_disks_cost_next_to_nothing():
    volumes = [malloc("ram0"), file("disk0")]
    exports = [ublk("ram0", queues=4), ublk("disk0", queues=4)]
    disks = WORLD.serve(volumes, exports, idle="adaptive")
    for disk in disks:
        disk.write(0, pattern(MIB))
    settle_udev()
    time.sleep(2)
    pid = WORLD.target.process.pid
    before, started = cpu_seconds(pid), time.monotonic()
    time.sleep(IDLE_S)
    share = (cpu_seconds(pid) - before) / (time.monotonic() - started)
    note(f"{share:.2%} of a core with two reactors and two disks of four queues")
    check(share < IDLE_CORE_MAX, f"idle, reactor takes {share:.1%} of a core")
    disks[0].expect(0, pattern(MIB), "after the idle time")


@suite.case
def program_serves_a_disk_of_its_own():
    """The library's example: every word of its disk tells its own offset; a line on its input ends it."""
    program = subprocess.Popen(
        ["/test/bin/pattern", "--ublk"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        printed = list(itertools.takewhile(lambda line: "ready" not in line, program.stdout))
        paths = [line.strip() for line in printed if line.startswith("/dev/ublkb")]
        check(len(paths) == 1, f"printed {printed}, {program.poll()}")
        disk = Disk(paths[0].removeprefix("/dev/"))
        for offset in (0, 4096, 123 * MIB + 512, (1 << 40) - 4096):
            words = struct.unpack("<512Q", disk.read(offset, 4096))
            check(words == tuple(range(offset, offset + 4096, 8)), f"at {offset}: {words[:2]}")
        check(disk.size() == 1 << 40 and disk.attribute("ro") == "1", f"{disk.size()} bytes, ro {disk.attribute('ro')}")
        settle_udev()
        said = program.communicate("\n", timeout=30)
        check(program.returncode == 0, f"exit {program.returncode}: {said}")
    finally:
        program.kill()
        program.wait()


@suite.case
def many_tags_are_ready_as_soon_as_one():
    """From the start of the process to `ready`, with four queues of depth 128 and with one of depth 1, by turns."""
    seconds = {(1, 1): [], (4, 128): []}
    for _ in range(START_ROUNDS):
        for (queues, depth), taken in seconds.items():
            config = Config([malloc("ram0")], ublk=[ublk("ram0", queues=queues, depth=depth)])
            started = time.monotonic()
            WORLD.target.launch(config)
            check(WORLD.target.ready.wait(30), "not ready within 30 s")
            taken.append(time.monotonic() - started)
            WORLD.stop()
    few, many = (statistics.median(taken) for taken in seconds.values())
    note(f"one tag {few:.2f} s, 512 tags {many:.2f} s")
    check(many <= 2 * few + START_SLACK_S, f"512 tags take {many:.2f} s, one tag {few:.2f} s")
