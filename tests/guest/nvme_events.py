"""What disks tell by themselves, and disks that go while they are used."""

import pathlib
import subprocess
import time

from disk import MIB, pattern
from harness import check, note, wait_until
from host import nvme
from nvme_world import STOP_LIMIT_S, WORLD, attach, config, disconnect, functions, suite, volume
from qmp import ask, monitor


def end_with_warnings(expected=0):
    """Ends the reactor, which has had reason to complain."""
    disconnect()
    code, _ = WORLD.target.stop(STOP_LIMIT_S)
    check(code == expected, f"it ended with {code}")


def logged(*words):
    return wait_until(
        f"log line with {' and '.join(words)}",
        lambda: [line for line in WORLD.target.logged() if all(word in line for word in words)],
    )


@suite.case
def a_disk_that_gathers_no_completions_is_used_as_it_is():
    """QEMU's refuses to change when it interrupts."""
    function = WORLD.take("A1")
    WORLD.target.start(config(volume("fast", function, coalesce=4, coalesce_us=100)))
    logged("interrupt coalescing", "it interrupts as it does by itself")
    block, data = attach("fast"), pattern(MIB, 91)
    block.write(0, data)
    block.expect(0, data, "through the reactor")
    end_with_warnings()


@suite.case
def health_is_told():
    port = monitor()
    function = WORLD.take("A1")
    WORLD.target.start(config(volume("fast", function)))
    warn = {"path": "/machine/peripheral/dev-a1", "property": "smart_critical_warning"}
    ask(port, "qom-set", **warn, value=2)
    logged(function.address, "its temperature is beyond a threshold")
    # The same again is no news until the log was read, which it was.
    ask(port, "qom-set", **warn, value=0)
    ask(port, "qom-set", **warn, value=4)
    logged(function.address, "it is not reliable any more")
    ask(port, "qom-set", **warn, value=0)
    end_with_warnings()


@suite.case
def a_namespace_that_is_detached_closes_its_volume_alone():
    """Another controller of the subsystem, which the kernel has, takes a namespace away from the one that reactor drives."""
    first, second = functions("B")
    path = next(path for path in pathlib.Path("/sys/class/nvme").glob("nvme*") if path_of(path) == first.address)
    number = int((path / "cntlid").read_text())
    other = next(path.name for path in pathlib.Path("/sys/class/nvme").glob("nvme*") if path_of(path) == second.address)
    WORLD.taken.append(first)
    first.bind()
    WORLD.target.start(config(volume("ns1", first, nsid=1), volume("ns3", first, nsid=3), cores=[0, 1]))
    lost, kept = attach("ns1"), attach("ns3")
    data = pattern(MIB, 90)
    for block in (lost, kept):
        block.write(0, data)
    nvme("detach-ns", f"/dev/{other}", "-n", 1, "-c", number)
    try:
        logged('volume "ns1" is closed', "namespace 1 is not there any more")
        kept.write(MIB, data)
        kept.expect(0, data + data, "the other one")
        check(not [line for line in WORLD.target.logged() if '"ns3" is closed' in line], "the other one is closed too")
    finally:
        nvme("attach-ns", f"/dev/{other}", "-n", 1, "-c", number)
    # Whether all of the lost one was durable cannot be known any more.
    end_with_warnings(1)


def path_of(controller):
    """The PCI address of a controller."""
    return (controller / "device").resolve().name


@suite.case
def an_unplugged_disk_goes_and_comes_back():
    """Under load: its I/O ends, the kernel gets it, others go on; plugged in again, it is served again with its data."""
    port = monitor()
    plug = {"driver": "nvme", "id": "replugged", "serial": "H", "drive": "h0", "bus": "h"}
    if not plugged(port):
        ask(port, "device_add", **plug)
    function = WORLD.take("H")
    setup = config(volume("plug", function), volume("fast", WORLD.take("A1")), cores=[0, 1])
    WORLD.target.start(setup)
    block, other = attach("plug"), attach("fast")
    data = pattern(4 * MIB, 91)
    block.write(0, data)
    other.write(0, data)
    words = ["--rw=randwrite", "--bs=4k", "--direct=1", "--iodepth=16", "--ioengine=io_uring", "--time_based", "--runtime=60"]
    place = ["--offset=8m", "--size=16m"]
    load = subprocess.Popen(
        ["fio", "--name=load", f"--filename={block.path}", *place, *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    start = block.writes()
    wait_until("I/O of fio", lambda: block.writes() > start + 200)
    ask(port, "device_del", id=plugged(port))
    logged(function.address, "is unplugged")
    asked = time.monotonic()
    wait_until("the function is gone", lambda: not function.folder.exists(), timeout_s=60)
    note(f"gone {time.monotonic() - asked:.1f} s after the kernel had asked")
    load.wait(60)
    other.write(MIB, data[:MIB])
    other.expect(0, data[:MIB] * 2 + data[2 * MIB :], "another disk")
    ask(port, "device_add", **plug)
    wait_until("the function is back", lambda: function.driver() == "nvme", timeout_s=60)
    function.bind()
    WORLD.target.reload(setup)
    again = wait_until("the volume is back", lambda: attach_again("plug"), timeout_s=60)
    again.expect(0, data, "what was written before")
    again.write(4 * MIB, data)
    again.expect(0, data + data, "written after")
    end_with_warnings()


def plugged(port):
    """The name that QEMU has for the disk in the slot, if there is one."""
    for name in ("replugged", "plugged"):
        said = ask(port, "qom-list", path=f"/machine/peripheral/{name}")
        if "return" in said:
            return name
    return None


def attach_again(name):
    """The volume as a disk, once the host sees it."""
    disconnect()
    try:
        return attach(name)
    except Exception as error:
        note(error)
        return None
