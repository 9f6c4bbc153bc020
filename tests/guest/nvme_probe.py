#!/usr/bin/python3
"""VFIO and NVMe as the driver builds upon them: `examples/nvme_probe.rs` against the disks of shape `nvme`.

  nvme_probe.py [--after=NAME] [WORD...]     the cases whose names contain a WORD, or all
"""

import os
import pathlib
import re
import subprocess
import sys
import time

from harness import Suite, check, kernel_lines, note, run, stray_lines, wait_until
from qmp import ask, monitor

PROBE = "/test/bin/nvme_probe"
PATTERN = b"".join(offset.to_bytes(8, "little") for offset in range(0, 1 << 20, 8))


def quiet():
    """Nothing to do around a case."""


suite = Suite(quiet, quiet, lambda: True)
# Where disks have no IOMMU: shape `nvme-bare`.
bare = Suite(quiet, quiet, lambda: True)


class Controller:
    """A disk that the kernel's driver has, found by its serial number."""

    def __init__(self, serial):
        found = wait_until(
            f"a controller with serial {serial}",
            lambda: [path for path in controllers() if (path / "serial").read_text().strip() == serial],
        )
        self.name = found[0].name
        self.address = (found[0] / "device").resolve().name

    def fill(self):
        """Writes to each word of the first MiB its own offset."""
        device = wait_until("its namespace", lambda: list(pathlib.Path("/dev").glob(f"{self.name}n1")))[0]
        with open(device, "r+b", buffering=0) as file:
            file.write(PATTERN)
            os.fsync(file.fileno())


def controllers():
    """Those that the kernel's driver has, as paths in sysfs."""
    return sorted(pathlib.Path("/sys/class/nvme").glob("nvme*"))


def probe(serial, *words):
    """Runs the probe on a disk; returns what it said."""
    controller = Controller(serial)
    controller.fill()
    done = run(PROBE, controller.address, *words, succeed=False)
    note(done.output)
    check(done.code == 0, f"the probe ended with {done.code}: {done.errors}")
    check("probe: done" in done.output, "the probe did not come to its end")
    return done.output


@suite.variants(a1=["A1"], a2_4096=["A2"], d_without_shadow=["D"], c_cmb=["C"])
def steps(serial):
    since = len(kernel_lines())
    probe(serial)
    check(not stray_lines(since), f"the kernel saw {stray_lines(since)}")
    controller = Controller(serial)
    device = wait_until("the disk again", lambda: list(pathlib.Path("/dev").glob(f"{controller.name}n1")))[0]
    check(open(device, "rb").read(len(PATTERN)) == PATTERN, "the kernel reads other bytes than it wrote")


@suite.case
def stray_dma_is_seen():
    since = len(kernel_lines())
    said = probe("A1", "--stray")
    address = re.search(r"stray: a read to (0x[0-9a-f]+)", said).group(1)
    lines = wait_until("a report of the IOMMU", lambda: stray_lines(since))
    note("\n".join(lines))
    check(any(address in line for line in lines), f"no report names {address}: {lines}")


def refusal(command, address):
    """Runs the probe, which must refuse the disk; returns what it said of it."""
    done = run(*command, PROBE, address, succeed=False)
    note(done.output + done.errors)
    check(done.code == 1, f"the probe ended with {done.code}")
    return done.errors


def give_back(address):
    """Has the kernel's driver take a disk that a probe has left bound."""
    device = pathlib.Path("/sys/bus/pci/devices") / address
    (device / "driver_override").write_text("\n")
    (device / "driver/unbind").write_text(address)
    pathlib.Path("/sys/bus/pci/drivers_probe").write_text(address)


@suite.case
def a_group_of_two_is_refused():
    first, second = Controller("M0"), Controller("M1")
    groups = [os.readlink(f"/sys/bus/pci/devices/{disk.address}/iommu_group") for disk in (first, second)]
    check(groups[0] == groups[1], f"the two functions have groups {groups}")
    said = refusal([], first.address)
    give_back(first.address)
    check(f"functions that other drivers have: {second.address} (nvme)" in said, said)


@suite.case
def memory_beyond_the_limit_is_refused():
    address = Controller("A1").address
    limited = ["prlimit", "--memlock=65536", "setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"]
    said = refusal(limited, address)
    give_back(address)
    check("16MiB of DMA memory cannot be pinned (limit 64KiB): LimitMEMLOCK=infinity" in said, said)


@suite.case
def a_kernel_without_vfio_pci_is_told():
    disk = Controller("A1")
    run("modprobe", "-r", "vfio-pci")
    said = refusal([], disk.address)
    run("modprobe", "vfio-pci")
    check("the kernel has no vfio-pci: modprobe vfio-pci" in said, said)
    check(Controller("A1").name == disk.name, "the kernel's driver has let go of the disk")


@suite.case
def an_unplugged_disk_is_let_go():
    port = monitor()
    ask(port, "device_add", driver="nvme", id="plugged", serial="H", drive="h0", bus="h")
    controller = Controller("H")
    controller.fill()
    process = subprocess.Popen([PROBE, controller.address, "--unplug"], stdout=subprocess.PIPE, text=True)
    while True:
        line = process.stdout.readline()
        check(line, "the probe ended early")
        note(line)
        if line.startswith("unplug: waiting"):
            break
    said = refusal([], controller.address)
    check(f"{controller.address} is held by process {process.pid} (" in said, said)
    started = time.monotonic()
    ask(port, "device_del", id="plugged")
    said = process.communicate(timeout=60)[0]
    note(said)
    check(process.returncode == 0, f"the probe ended with {process.returncode}")
    gone = pathlib.Path(f"/sys/bus/pci/devices/{controller.address}")
    wait_until("the function is gone", lambda: not gone.exists())
    note(f"gone after {time.monotonic() - started:.1f} s")


@suite.variants(alone=["A1"], of_two_controllers=["B"])
def a_ring_passes_commands_to_the_kernels_driver(serial):
    """Entries of 128 bytes and completions of 32, on a namespace and on the node that stands for several ways to one."""
    controller = Controller(serial)
    subsystem = next(pathlib.Path("/sys/class/nvme-subsystem").glob(f"nvme-subsys*/{controller.name}")).parent
    owners = [pathlib.Path("/sys/class/nvme") / controller.name, subsystem]
    names = [path.name for owner in owners for path in owner.glob("ng*n1")]
    check(len(names) == 1, f"its character devices are {names}")
    node = pathlib.Path("/dev") / names[0]
    words = ["--ioengine=io_uring_cmd", "--cmd_type=nvme", "--rw=randwrite", "--bs=4k", "--size=4M", "--iodepth=8"]
    done = run("fio", "--name=ring", f"--filename={node}", *words, "--verify=crc32c", "--verify_fatal=1")
    note(f"{node}: " + next(line for line in done.output.splitlines() if "read:" in line).strip())


@bare.case
def a_machine_without_an_iommu_is_refused():
    said = refusal([], Controller("A1").address)
    check("this machine has no IOMMU, or it is off" in said, said)
    check(Controller("A1"), "the kernel's driver has the disk no more")


def main():
    run("modprobe", "vfio-pci")
    pathlib.Path("/proc/sys/vm/nr_hugepages").write_text("64")
    note(f"{pathlib.Path('/proc/uptime').read_text().split()[0]} s since boot")
    for path in controllers():
        text = {name: (path / name).read_text().strip() for name in ("serial", "state")}
        group = path / "device/iommu_group"
        number = group.resolve().name if group.exists() else "none"
        note(f"{path.name}: {text}, {(path / 'device').resolve().name}, group {number}")
    has_iommu = any(pathlib.Path("/sys/kernel/iommu_groups").iterdir())
    return (suite if has_iommu else bare).run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
