"""A disk by each way that there is to it: VFIO, commands passed through by the kernel's driver, its block device.

The same is asked of all, and the kernel must read what was written.
"""

import contextlib
import json
import os
import pathlib
import threading

from disk import MIB, MOUNT, pattern
from harness import check, note, run
from host import nvme
from jobs import fio
from nvme_world import (
    DIRECTORY,
    WORLD,
    attach,
    config,
    disconnect,
    functions,
    refusal,
    said_in_log,
    spent,
    suite,
    volume,
    written,
)
from target import binary

USER = 1000
# An ordinary user, with enough memory that may be locked.
AS_USER = ["prlimit", "--memlock=unlimited:unlimited", "setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups"]
# What a reset of the controller may take until I/O goes on.
RESETS = 3


def generic(disk):
    """The path of a namespace's character device."""
    return disk.path.replace("nvme", "ng")


@contextlib.contextmanager
def given(*paths):
    """Anybody may read and write these devices meanwhile."""
    for path in paths:
        os.chmod(path, 0o666)
    try:
        yield
    finally:
        for path in paths:
            os.chmod(path, 0o600)


@contextlib.contextmanager
def as_user():
    """The reactor is an ordinary user's."""
    WORLD.target.wrapper = AS_USER
    DIRECTORY.chmod(0o755)
    try:
        yield
    finally:
        WORLD.target.wrapper = []


def same_for_all(function, nsid, wanted, line, cores=(0,)):
    """Writes with checksums, zeros, flushes and compares through the reactor; returns what the kernel must read then."""
    WORLD.target.start(config(wanted, cores=list(cores)))
    said = said_in_log('volume "fast": namespace')[0]
    note(said)
    check(f"namespace {nsid} of {function.address} (serial {function.serial}, " in said and line in said, said)
    block = attach("fast", "-i", len(cores))
    fio(block, JOBS=2, SIZE="6m")
    fio(block, RW="randrw", SIZES="4k-1m", JOBS=2, SIZE="12m")
    data = pattern(8 * MIB, 71)
    block.write(3 * MIB, data)
    run("blkdiscard", "-o", 5 * MIB, "-l", MIB, block.path)
    run("blkdiscard", "-z", "-o", 7 * MIB, "-l", MIB, block.path)
    data = data[: 2 * MIB] + bytes(MIB) + data[3 * MIB : 4 * MIB] + bytes(MIB) + data[5 * MIB :]
    block.expect(3 * MIB, data, "through the reactor")
    nvme("flush", block.path, "-n", 1)
    size = int(block.attribute("queue/logical_block_size"))
    same, other = DIRECTORY / "same", DIRECTORY / "other-bytes"
    same.write_bytes(data[: 8 * size])
    other.write_bytes(data[: 8 * size - 1] + b"?")
    for path, succeeds in ((same, True), (other, False)):
        words = ["--start-block", 3 * MIB // size, "--block-count", 7, "--data-size", 8 * size, "--data", path]
        done = nvme("compare", block.path, "-n", 1, *words, succeed=False)
        check((done.code == 0) == succeeds, f"comparing {path.name}: {done}")
    disconnect()
    WORLD.stop()
    return data


@suite.variants(
    auto_bound_to_vfio=("A1", 1, "auto", True),
    vfio=("A1", 1, "vfio", True),
    auto_of_the_kernel=("A1", 1, "auto", False),
    kernel_512=("A1", 1, "kernel", False, [0, 1]),
    kernel_4096=("A2", 1, "kernel", False, [0, 1]),
    kernel_head_of_two_paths=("B", 2, "kernel", False, [0, 1]),
    kernel_without_shadow_doorbells=("D", 1, "kernel", False),
)
def modes(serial, nsid, mode, bound, cores=(0,)):
    function = WORLD.take(serial) if bound else functions(serial)[0]
    way = "by VFIO, " if bound else f"by {generic(function.disk(nsid))} (the kernel's driver, passthrough), "
    wanted = volume("fast", function, mode=mode, nsid=nsid)
    data = same_for_all(function, nsid, wanted, way, cores)
    WORLD.give_back()
    function.disk(nsid).expect(3 * MIB, data, "read by the kernel")


@suite.case
def a_namespace_that_the_kernel_has_as_well_is_used_by_one_of_them():
    """Two controllers lead to it, and the kernel keeps one: what it has mounted is refused, and what is a volume cannot be mounted."""
    first, second = functions("B")
    disk = second.disk(1)
    run("mkfs.ext4", "-q", "-F", disk.path)
    WORLD.taken.append(first)
    first.bind()
    MOUNT.mkdir(exist_ok=True)
    run("mount", disk.path, MOUNT)
    try:
        text = refusal(volume("fast", first, nsid=1))
    finally:
        run("umount", MOUNT)
    check("of the kernel leads to the same namespace" in text and f"mount {MOUNT}" in text, text)
    WORLD.target.start(config(volume("fast", first, nsid=1), volume("other", first, nsid=3)))
    for nsid in (1, 3):
        done = run("mkfs.ext4", "-q", "-F", second.disk(nsid).path, succeed=False)
        check(done.code != 0 and "in use" in done.errors, f"namespace {nsid}: mkfs ended with {done.code}: {done.errors}")
    fio(attach("fast"), SIZE="4m")
    disconnect()
    WORLD.stop()
    run("mkfs.ext4", "-q", "-F", second.disk(1).path)


@suite.case
def passthrough_by_rights():
    """A user without any capability, who may use the character device and nothing else."""
    function = functions("A1")[0]
    disk = function.disk()
    with as_user(), given(generic(disk)):
        way = f"by {generic(disk)} (the kernel's driver, passthrough), "
        data = same_for_all(function, 1, volume("fast", function), way, [0, 1])
    check(any("without the right to claim its block device" in line for line in WORLD.target.logged()), "no word of it")
    disk.expect(3 * MIB, data, "read by the kernel")


@suite.case
def block_device_by_rights():
    """A user who may use the block device, and not the character device: the line says what that would need."""
    function = functions("A1")[0]
    disk = function.disk()
    with as_user(), given(disk.path):
        way = f"by {disk.path} (the kernel's driver, block device); passthrough would need the right to read and write "
        data = same_for_all(function, 1, volume("fast", function), way + generic(disk))
    disk.expect(3 * MIB, data, "read by the kernel")


@suite.case
def modes_refuse():
    """With the remedy, and nothing is changed."""
    function = functions("A1")[0]
    disk = function.disk()
    text = refusal(volume("fast", function, mode="vfio"))
    check(f"{function.address} belongs to nvme: " in text and 'mode = "kernel"' in text, text)
    text = refusal(volume("fast", function, mode="kernel"), wrapper=AS_USER)
    check(f"passthrough would need the right to read and write {generic(disk)}; " in text, text)
    check(f"cannot open {disk.path} for reading and writing" in text, text)
    text = refusal({**volume("fast", function, mode="kernel"), "pci": "0000:7f:1f.7"})
    check("no NVMe disk at 0000:7f:1f.7: this machine has " in text, text)
    nobody = {"name": "fast", "driver": "nvme", "serial": "nobody", "mode": "kernel"}
    text = refusal(nobody)
    check("no disk of the kernel's NVMe driver has serial nobody; it has " in text and "A1" in text, text)
    one = {"name": "one", "driver": "nvme", "serial": "A1"}
    check('is volume "fast" already' in refusal(volume("fast", function), one), "one namespace twice")
    check("has the namespaces 1, 2, 3: write nsid = 1" in refusal(volume("fast", functions("B")[0])), "which namespace")
    check("write that size" in refusal(volume("fast", function, size="1MiB")), "another size")
    check("bytes of metadata" in refusal(volume("fast", functions("P")[0])), "metadata")
    taken = WORLD.take("A1")
    text = refusal(volume("fast", taken, mode="kernel"))
    check(f"{taken.address} belongs to vfio-pci: " in text and f"reactor nvme unbind {taken.address}" in text, text)


@suite.case
def a_used_namespace_is_refused_and_a_volume_cannot_be_mounted():
    function = functions("A1")[0]
    disk = function.disk()
    run("mkfs.ext4", "-q", "-F", disk.path)
    point = DIRECTORY / "mounted"
    point.mkdir(exist_ok=True)
    for user, wrapper in (("root", []), ("a user", AS_USER)):
        run("mount", disk.path, point)
        try:
            with given(generic(disk)):
                text = refusal(volume("fast", function), wrapper=wrapper)
        finally:
            run("umount", point)
        check(f"{disk.path} is in use: " in text and f"mount {point}" in text, f"{user}: {text}")
    WORLD.target.start(config(volume("fast", function)))
    done = run("mount", disk.path, point, succeed=False)
    check(done.code != 0 and not os.path.ismount(point), f"it is mounted under a volume: {done}")
    text = refusal(volume("fast", function))
    check(f"{disk.path} is in use: " in text, text)
    fio(attach("fast"), SIZE="4m")


@suite.case
def passthrough_sleeps():
    """With nothing in flight, and with something in flight that takes its time."""
    function = functions("A1")[0]
    WORLD.target.start(config(volume("fast", function, mode="kernel"), cores=[0, 1]))
    block = attach("fast", "-i", 2)
    block.write(0, pattern(MIB, 6))
    before, idle_s = spent(), 3
    threading.Event().wait(idle_s)
    share = (spent() - before) / idle_s
    note(f"{share:.1%} of a processor while idle")
    check(share < 0.5, f"{share:.0%} of a processor while nothing is asked")
    for at in range(8):
        block.expect(0, pattern(MIB, 6), "after a pause")
        block.write(0, pattern(MIB, 6))
        threading.Event().wait(0.05 * at)
    disconnect()
    WORLD.stop()
    slow = functions("T")[0]
    WORLD.target.start(config(volume("fast", slow, mode="kernel")))
    block = attach("fast", "-i", 1)
    # It carries out 100 I/Os a second: between two answers there is time to sleep.
    before, slept, seconds = spent(), sleeps(), 4
    words = ["--rw=randread", "--bs=4k", "--iodepth=4", "--ioengine=io_uring", "--direct=1", "--size=8m"]
    run("fio", "--name=slow", f"--filename={block.path}", *words, "--time_based", f"--runtime={seconds}")
    share, slept = (spent() - before) / seconds, (sleeps() - slept) / seconds
    note(f"{share:.1%} of a processor and {slept:.0f} sleeps a second with four I/Os in flight to a slow disk")
    check(slept > 20, f"{slept:.0f} sleeps a second while the disk works")


def sleeps():
    """How often the reactor's thread has waited for something."""
    tasks = pathlib.Path(f"/proc/{WORLD.target.process.pid}/task").iterdir()
    of = [task for task in tasks if (task / "comm").read_text().startswith("reactor-")]
    lines = [line for task in of for line in (task / "status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary_ctxt_switches"))


@suite.case
def the_kernel_resets_the_controller_under_load():
    """What it ended unanswered is done again: nobody notices."""
    function = functions("A1")[0]
    WORLD.target.start(config(volume("fast", function, mode="kernel"), cores=[0, 1]))
    block = attach("fast", "-i", 2)
    failures = []

    def load():
        try:
            fio(block, RW="randrw", SIZES="4k-64k", JOBS=2, SIZE="24m")
        except Exception as error:
            failures.append(error)

    worker = threading.Thread(target=load)
    worker.start()
    reset = next((function.folder / "nvme").glob("nvme*")) / "reset_controller"
    for _ in range(RESETS):
        threading.Event().wait(1)
        reset.write_text("1")
    worker.join()
    check(not failures, f"fio says {failures}")


@suite.case
def the_kernel_loses_the_disk():
    """I/O fails, the reactor lives, and with the disk a volume is there again."""
    function = functions("D")[0]
    WORLD.target.start(config(volume("fast", function, mode="kernel")))
    block = attach("fast")
    block.write(0, pattern(MIB, 9))
    nvme("flush", block.path, "-n", 1)
    (function.folder / "driver/unbind").write_text(function.address)
    try:
        done = run("dd", f"if={block.path}", "of=/dev/null", "bs=4k", "count=1", "iflag=direct", succeed=False)
        check(done.code != 0, "it reads what is not there")
        check(WORLD.target.alive(), "the reactor ended")
        disconnect()
        WORLD.target.kill()
    finally:
        pathlib.Path("/sys/bus/pci/drivers_probe").write_text(function.address)
    function.disk()
    WORLD.target.start(config(volume("fast", function, mode="kernel")))
    attach("fast").expect(0, pattern(MIB, 9), "when it is back")


@suite.case
def cost_of_passthrough():
    """Calls into the kernel and time of an I/O beside the block device and VFIO: printed, and nothing is gated on it."""
    function = functions("A1")[0]
    ways = {
        "passthrough": volume("fast", function, mode="kernel"),
        "block device": {"name": "fast", "driver": "file", "path": function.disk().path, "size": "64MiB"},
        "VFIO": volume("fast", function, mode="vfio"),
    }
    for way, wanted in ways.items():
        if way == "VFIO":
            WORLD.take("A1")
        for depth in (1, 32):
            for direction in ("randread", "randwrite"):
                words = ["--rw", direction, "--bs", "4k", "--qd", depth, "--time", 3, "--json"]
                path = written(config(wanted, idle="poll"))
                done = run(binary(), "bench", "--config", path, "--bdev", "fast", *words, timeout_s=60)
                said = json.loads(done.output)
                check(said["errors"] == 0 and said["ios"] > 0, done.output)
                costs = {key: said[key] for key in said if key.endswith("_per_io")}
                note(f"{direction} depth {depth} by {way}: {said['iops']:.0f} IO/s, {costs}")
