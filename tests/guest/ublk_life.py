"""How disks come and go: by reload, by SIGTERM, by kill -9, in use and unused, and whose they are."""

import os
import pathlib
import random
import threading
import time

import ublk_kernel
from disk import MIB, MOUNT, TREE, Disk, check_copy, make_file_system, mount, pattern, unmount_and_look
from harness import Failure, check, kernel_lines, note, run, wait_until
from records import RECORD, REGION, Writer, record
from ublk_kernel import QUIESCE, UPDATE_SIZE, ZERO_COPY
from ublk_world import (
    FULL,
    SEED,
    STATE,
    WORLD,
    Load,
    by_turns,
    check_nothing_left,
    descriptors,
    file,
    malloc,
    needs,
    suite,
    ublk,
)
from udev import settle_udev, udevadm

CYCLES = 100
KILLS = 20


@suite.case
def many_come_and_go_by_reload():
    """A hundred times a disk appears, takes and returns data, and goes; the server has no more descriptors than after
    the first time. What udev does meanwhile, other cases look at."""
    WORLD.serve([malloc("ram0"), malloc("ram1")], [])
    pid = WORLD.target.process.pid
    before = []
    udevadm("control", "--stop-exec-queue")
    try:
        for cycle in range(CYCLES + 1):
            WORLD.config.ublk = [ublk("ram0", id=cycle % 3, queues=1 + cycle % 4, depth=1 + cycle % 9)]
            WORLD.reload()
            disk = Disk(f"ublkb{cycle % 3}")
            disk.write(cycle * 4096, pattern(4096, cycle))
            disk.expect(cycle * 4096, pattern(4096, cycle), f"cycle {cycle}")
            WORLD.config.ublk = []
            WORLD.reload()
            wait_until(f"cycle {cycle}: no device", lambda: not ublk_kernel.devices())
            if cycle == 0:
                before = descriptors(pid)
    finally:
        udevadm("control", "--start-exec-queue")
    check_nothing_left()
    after = wait_until_equal(lambda: descriptors(pid), before)
    check(after == before, f"{len(before)} descriptors before, {len(after)} after: {sorted(set(after) - set(before))}")
    log = WORLD.logged(["ERROR"])
    check(not log, f"errors in the log: {log[:2]}")


def wait_until_equal(look, wanted, timeout_s=10):
    """What `look` returns in the end, which may take a moment to be what is wanted."""
    end = time.monotonic() + timeout_s
    while (found := look()) != wanted and time.monotonic() < end:
        time.sleep(0.1)
    return found


def check_no_io_error(since):
    """Fails the case if the kernel has told of a failed I/O."""
    bad = [line for line in kernel_lines()[since:] if "I/O error" in line and "ublk" in line]
    check(not bad, f"the kernel says: {' | '.join(bad[:3])}")


@suite.variants(
    auto=("auto", KILLS if FULL else 10, {}),
    user_copy=("user-copy", KILLS if FULL else 5, {"queues": 4, "depth": 7}),
    copy=("copy", KILLS if FULL else 8, {"queues": 4}),
    zero_copy=("zero-copy", KILLS if FULL else 5, {}),
)
def kill_under_fio_verify(mode, kills, options):
    """kill -9 and a new start, 20 times or more in all modes together, or with `--full` in each, at any moment of fio
    verify: the disk goes on, fio sees no error."""
    if mode == "zero-copy":
        needs(ZERO_COPY, "zero copy")
    if "depth" in options and not WORLD.features & QUIESCE:
        # With all tags in the server's hands this kernel takes 30 s to notice each.
        kills = 2
    chance = random.Random(SEED)
    (disk,) = WORLD.serve([file("disk0", 32)], [ublk("disk0", mode=mode, **options)])
    said = len(kernel_lines())
    load = Load(disk, SIZE="4m", JOBS=4, SIZES="4k-256k")
    for number in range(kills):
        time.sleep(chance.uniform(0, 0.4))
        load.check_goes_on()
        WORLD.target.kill()
        time.sleep(chance.choice([0, 0, 0.3]))
        (again,) = WORLD.start()
        check(again.path == disk.path, f"kill {number}: {disk.path} came back as {again.path}")
        load.wait_for_more(20)
    rounds = load.end()
    check_no_io_error(said)
    note(f"{kills} kills, {rounds} rounds of fio")


@suite.case
def kill_loses_no_flushed_write():
    """What fsync on the disk has answered is in the volume's file the moment the server is dead."""
    (disk,) = WORLD.serve([file("disk0", 2 * REGION // MIB)], [ublk("disk0")])
    backing = pathlib.Path(WORLD.config.bdev("disk0")["path"])
    stop = threading.Event()
    writers = [Writer(disk.path, index, stop) for index in range(2)]
    for writer in writers:
        writer.start()

    def total():
        return sum(writer.acknowledged for writer in writers)

    for turn in range(3):
        goal = total() + 60
        wait_until(f"60 records before kill {turn + 1}", lambda: total() >= goal, timeout_s=60)
        WORLD.target.kill()
        safe = [writer.acknowledged for writer in writers]
        with open(backing, "rb") as file_:
            for index, count in enumerate(safe):
                for number in range(count):
                    file_.seek(index * REGION + number * RECORD)
                    kept = file_.read(RECORD) == record(index, number)
                    check(kept, f"writer {index} lost record {number} of {count}")
        WORLD.start()
    goal = total() + 20
    wait_until("20 records after the last start", lambda: total() >= goal, timeout_s=60)
    stop.set()
    for writer in writers:
        writer.join(60)
        check(not writer.is_alive() and writer.error is None, f"a writer did not come through: {writer.error}")
    note(f"{total()} records")


@suite.case
def kill_under_a_file_system():
    """A tree is copied to a mounted ext4 while the server is killed and started again; all of it is there."""
    (disk,) = WORLD.serve([file("disk0", 96)], [ublk("disk0", queues=2)])
    said = len(kernel_lines())
    make_file_system(disk.path, "ext4")
    failures = []

    def copy():
        try:
            for number in range(3):
                run("cp", "-a", TREE, MOUNT / f"copy{number}")
                run("sync", "-f", MOUNT)
        except Exception as error:
            failures.append(str(error))

    copier = threading.Thread(target=copy)
    copier.start()
    for _ in range(4):
        time.sleep(0.3)
        WORLD.target.kill()
        time.sleep(0.3)
        WORLD.start()
    copier.join(60)
    check(not copier.is_alive() and not failures, f"the copy did not come through: {failures}")
    run("umount", MOUNT)
    mount(disk.path, "ext4")
    check_copy("after kills")
    for number in range(3):
        run("diff", "-r", TREE, MOUNT / f"copy{number}")
    unmount_and_look(disk.path, "ext4")
    check_no_io_error(said)


@suite.variants(**by_turns(auto=("auto",), user_copy=("user-copy",), copy=("copy",)))
def terminate_under_load_leaves_the_disk_to_the_next_start(mode):
    """SIGTERM under fio verify: exit 0, the disk stays and holds its requests, the next start goes on; twice."""
    (disk,) = WORLD.serve([file("disk0", 32)], [ublk("disk0", mode=mode)])
    number = int(disk.name.removeprefix("ublkb"))
    said = len(kernel_lines())
    load = Load(disk, SIZE="4m", JOBS=4)
    for _ in range(2):
        code, seconds = WORLD.target.stop(30)
        lines = " | ".join(WORLD.logged([disk.name]))
        check(code == 0, f"SIGTERM under load: exit {code}: {' | '.join(WORLD.target.logged()[-3:])}")
        check("stays" in lines, f"the log does not name the disk that stays: {lines}")
        wait_until("device quiesced", lambda: ublk_kernel.info(number).state == "quiesced")
        check(os.path.exists(disk.path), f"{disk.path} is gone")
        time.sleep(0.5)
        load.check_goes_on()
        (again,) = WORLD.start()
        check(again.path == disk.path, f"{disk.path} came back as {again.path}")
        load.wait_for_more()
        note(f"ended after {seconds:.2f} s")
    load.end()
    check_no_io_error(said)


@suite.variants(ext4=("ext4", 64), xfs=("xfs", 384))
def terminate_with_a_mounted_file_system(kind, size_mib):
    """SIGTERM leaves a mounted disk, also with nothing in flight; writes wait for the next start and come through."""
    (disk,) = WORLD.serve([file("disk0", size_mib)], [ublk("disk0")])
    said = len(kernel_lines())
    make_file_system(disk.path, kind)
    run("sync", "-f", MOUNT)
    WORLD.stop()
    check(os.path.exists(disk.path), f"{disk.path} is gone under its mount")
    check((STATE / disk.name).exists(), "the state file is gone, and so is the name with the next event")
    late = threading.Thread(target=write_late, daemon=True)
    late.start()
    time.sleep(1)
    check(late.is_alive(), "a write was answered without a server")
    (again,) = WORLD.start()
    check(again.path == disk.path, f"{disk.path} came back as {again.path}")
    late.join(60)
    check(not late.is_alive(), "a write that waited for the server never came through")
    run("umount", MOUNT)
    mount(disk.path, kind)
    check_copy("after SIGTERM and a new start")
    check((MOUNT / "late").read_bytes() == pattern(MIB, 61), "the write that waited is lost")
    unmount_and_look(disk.path, kind)
    check_no_io_error(said)


def write_late():
    descriptor = os.open(MOUNT / "late", os.O_WRONLY | os.O_CREAT)
    os.write(descriptor, pattern(MIB, 61))
    os.fsync(descriptor)
    os.close(descriptor)


@suite.case
def terminate_takes_unused_disks_away():
    volumes = [malloc("ram0"), file("disk0")]
    disks = WORLD.serve(volumes, [ublk("ram0"), ublk("disk0", recover=False)])
    for disk in disks:
        disk.write(0, pattern(MIB, 1))
    WORLD.stop()
    check_nothing_left()
    check(pathlib.Path(WORLD.config.bdev("disk0")["path"]).read_bytes()[:MIB] == pattern(MIB, 1), "the file lacks it")


@suite.variants(terminate=(False,), reload=(True,))
def udev_that_looks_is_no_user(by_reload):
    """udev opens a disk for a moment after whoever wrote to it has closed it. That is when administrators take disks
    away, and it keeps none."""
    for turn in range(8):
        (disk,) = WORLD.serve([malloc("ram0")], [ublk("ram0")])
        disk.write(0, pattern(4096, turn))
        udevadm("trigger", "--action=change", f"/sys/block/{disk.name}")
        time.sleep(0.01 * turn)
        if by_reload:
            WORLD.config.ublk = []
            WORLD.reload()
            said = f"turn {turn}: no device: {' | '.join(WORLD.logged(['ram0'])[-2:])}"
            wait_until(said, lambda: not ublk_kernel.devices(), timeout_s=10)
        code, _ = WORLD.target.stop(20)
        check(code == 0, f"exit {code}")
        left = ublk_kernel.devices()
        check(not left, f"turn {turn}: {disk.path} stays: {' | '.join(WORLD.target.logged()[-2:])}")


@suite.case
def disk_without_recovery_goes_with_its_server():
    (disk,) = WORLD.serve([file("disk0")], [ublk("disk0", id=4, recover=False)])
    disk.write(0, pattern(MIB, 1))
    settle_udev()
    WORLD.target.kill()
    wait_until(f"{disk.path} gone", lambda: not os.path.exists(disk.path))
    (disk,) = WORLD.start()
    check(disk.path == "/dev/ublkb4", f"the disk is {disk.path}")
    disk.expect(0, pattern(MIB, 1), "after a new start")


@suite.case
def growth_by_reload():
    """Under a mounted ext4: the disk grows, and the file system with it. A kernel that cannot change the size keeps it,
    the log says so, and the file system goes on."""
    (disk,) = WORLD.serve([file("disk0", 48)], [ublk("disk0")])
    make_file_system(disk.path, "ext4")
    old, new = 48 * MIB, 96 * MIB
    WORLD.config.bdev("disk0")["size"] = new
    WORLD.reload()
    if WORLD.features & UPDATE_SIZE:
        wait_until(f"{disk.path} has {new} bytes", lambda: disk.size() == new)
        run("resize2fs", disk.path)
        (MOUNT / "grown").write_bytes(pattern(40 * MIB, 62))
    else:
        WORLD.wait_for_log("size")
        check(disk.size() == old, f"{disk.path} has {disk.size()} bytes, though the kernel cannot tell")
        (MOUNT / "grown").write_bytes(pattern(8 * MIB, 62))
    run("umount", MOUNT)
    mount(disk.path, "ext4")
    check_copy("after growth")
    length = (MOUNT / "grown").stat().st_size
    check((MOUNT / "grown").read_bytes() == pattern(length, 62), "what was written after growth differs")
    unmount_and_look(disk.path, "ext4")
    WORLD.stop()
    (disk,) = WORLD.start()
    check(disk.size() == new, f"after a new start {disk.path} has {disk.size()} bytes")
    mount(disk.path, "ext4")
    check_copy("after a new start")
    unmount_and_look(disk.path, "ext4")


@suite.case
def growth_after_a_kill():
    """The volume grew while no server was there: a disk in use comes back, and grows where the kernel can tell."""
    (disk,) = WORLD.serve([file("disk0", 16)], [ublk("disk0")])
    disk.write(0, pattern(MIB, 5))
    descriptor = os.open(disk.path, os.O_RDONLY)
    try:
        WORLD.target.kill()
        WORLD.config.bdev("disk0")["size"] = 32 * MIB
        os.truncate(WORLD.config.bdev("disk0")["path"], 32 * MIB)
        (disk,) = WORLD.start()
        disk.expect(0, pattern(MIB, 5), "after the start")
        if WORLD.features & UPDATE_SIZE:
            wait_until("the new size", lambda: disk.size() == 32 * MIB)
            disk.write(31 * MIB, pattern(MIB, 6))
            disk.expect(31 * MIB, pattern(MIB, 6), "the new part")
    finally:
        os.close(descriptor)


@suite.case
def disk_in_use_is_not_taken_away_by_reload():
    (disk,) = WORLD.serve([malloc("ram0", 64)], [ublk("ram0")])
    make_file_system(disk.path, "ext4")
    exports, WORLD.config.ublk = WORLD.config.ublk, []
    WORLD.reload()
    WORLD.wait_for_log("ram0", "use")
    run("umount", MOUNT)
    mount(disk.path, "ext4")
    check_copy("after a reload without the disk")
    unmount_and_look(disk.path, "ext4")
    settle_udev()
    WORLD.reload()
    wait_until("the disk gone with the next reload", lambda: not ublk_kernel.devices())
    WORLD.config.ublk = exports
    WORLD.reload()
    Disk(disk.name).write(0, pattern(4096))


# Whose a disk is


@suite.case
def disk_of_another_configuration_is_left_alone():
    """A second server with another file, and its disk stands quiesced: this server neither takes nor deletes it; its
    own server finds it again."""
    data = pattern(MIB, 7)
    (mine,) = WORLD.serve([file("mine")], [ublk("mine")])
    other = WORLD.second("other")
    config = WORLD.config.copy()
    config.bdevs, config.ublk = [file("theirs")], [ublk("theirs", id=7)]
    other.start(config)
    theirs = Disk("ublkb7")
    theirs.write(0, data)
    settle_udev()
    descriptor = os.open(theirs.path, os.O_RDONLY)
    try:
        other.kill()
        wait_until("their disk quiesced", lambda: ublk_kernel.info(7).state == "quiesced")
        WORLD.stop()
        (mine,) = WORLD.start()
        mine.write(0, pattern(4096))
        WORLD.config.ublk = []
        WORLD.reload()
        wait_until("my disk gone", lambda: ublk_kernel.devices() == [7])
        check(ublk_kernel.info(7).state == "quiesced", f"their disk is {ublk_kernel.info(7).state}")
        check((STATE / "ublkb7").exists(), "their state file is gone")
        other.start(config)
        theirs.expect(0, data, "after its own server's start")
    finally:
        os.close(descriptor)


@suite.variants(one_of_two=(1,), the_last=(0,))
def disk_that_left_the_configuration_is_swept_at_start(stay):
    """Killed with two disks; the file has fewer at the next start: what is not in it any more, and unused, goes."""
    volumes = [file("disk0"), file("disk1")]
    disks = WORLD.serve(volumes, [ublk("disk0"), ublk("disk1")])
    for disk in disks:
        disk.write(0, pattern(4096))
    settle_udev()
    WORLD.target.kill()
    WORLD.config.ublk = WORLD.config.ublk[:stay]
    again = WORLD.start()
    left = [f"/dev/ublkb{number}" for number in ublk_kernel.devices()]
    check(left == [disk.path for disk in again] == [disk.path for disk in disks[:stay]], f"{left} after the start")


@suite.case
def second_server_with_the_same_configuration_takes_nothing():
    (disk,) = WORLD.serve([file("disk0", 32)], [ublk("disk0")])
    load = Load(disk, SIZE="4m", JOBS=2)
    # Another process with the same file, beside the first.
    first, WORLD.target.process = WORLD.target.process, None
    WORLD.target.launch(WORLD.config)
    second = WORLD.target.process
    try:
        code = wait_until("end of the second server", lambda: second.poll() is not None and (second.returncode,), 60)[0]
    except Failure:
        second.kill()
        second.wait()
        raise
    finally:
        WORLD.target.process = first
    check(code == 1, f"the second server ended with {code}: {' | '.join(WORLD.target.logged()[-2:])}")
    load.wait_for_more()
    load.end()
