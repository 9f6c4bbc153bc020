"""What the cases of NVMe disks share: disks of the guest that change hands, and the reactor that serves them to it."""

import os
import pathlib
import re

from disk import Disk
from harness import Suite, check, kernel_lines, note, stray_lines, wait_until
from host import SERVICE, Block, connect, nvme
from target import READY_TIMEOUT_S, Config, Reactor, binary

DIRECTORY = pathlib.Path("/tmp/target")
PCI = pathlib.Path("/sys/bus/pci")
PREFIX = "nqn.2026-11.io.reactor:"
VFIO = "vfio-pci"
# A stop has two seconds, and then the disks have their own time; an emulated processor is slower than the machine these
# were set for.
STOP_LIMIT_S = 10


class Function:
    """An NVMe controller of the guest."""

    def __init__(self, serial, address):
        self.serial = serial
        self.address = address

    @property
    def folder(self):
        return PCI / "devices" / self.address

    def driver(self):
        """Its driver, or None."""
        return os.path.basename(os.readlink(self.folder / "driver")) if (self.folder / "driver").exists() else None

    def _hand_over(self, driver, override):
        (self.folder / "driver_override").write_text(f"{override}\n")
        if self.driver():
            (self.folder / "driver/unbind").write_text(self.address)
        (PCI / "drivers_probe").write_text(self.address)
        check(self.driver() == driver, f"{self.address} has driver {self.driver()} instead of {driver}")

    def bind(self):
        """Gives it to VFIO."""
        if self.driver() != VFIO:
            self._hand_over(VFIO, VFIO)

    def unbind(self):
        """Gives it back to the kernel's driver."""
        if self.driver() != "nvme":
            self._hand_over("nvme", "")

    def disk(self, nsid=1):
        """Its namespace as the kernel has it."""
        return Disk(wait_until(f"namespace {nsid} of {self.address}", lambda: self._node(nsid)))

    def _node(self, nsid):
        """The disk's name. It belongs to the controller, or to the subsystem where several lead to it."""
        names = [path.name for path in (self.folder / "nvme").glob("nvme*")]
        for node in pathlib.Path("/sys/block").glob("nvme*"):
            owner = (node / "device").resolve()
            mine = owner.name in names or any((owner / name).exists() for name in names)
            if mine and re.fullmatch(r"nvme\d+n\d+", node.name) and _text(node / "nsid") == str(nsid):
                return node.name
        return None


_known = {}


def functions(serial):
    """All controllers of a serial number, by address. Only the kernel's driver knows it: before the first is bound."""
    if serial not in _known:
        found = wait_until(f"a controller with serial {serial}", lambda: _local(serial))
        _known[serial] = sorted((one / "device").resolve().name for one in found)
    return [Function(serial, address) for address in _known[serial]]


def _local(serial):
    return [path for path in _controllers("pcie") if _text(path / "serial") == serial]


def _remote():
    return _controllers("tcp")


def _controllers(transport):
    return [path for path in pathlib.Path("/sys/class/nvme").glob("nvme*") if _text(path / "transport") == transport]


def _text(path):
    try:
        return path.read_text().strip()
    except OSError:
        return None


class World:
    """The reactor, and the disks that were taken from the kernel."""

    def __init__(self):
        DIRECTORY.mkdir()
        self.target = Reactor(binary(), DIRECTORY)
        self.taken = []
        self.since = 0

    def take(self, serial):
        """Gives a disk to VFIO, by all its controllers; returns the first. After the case the kernel has it again."""
        mine = functions(serial)
        for function in mine:
            self.taken.append(function)
            function.bind()
        return mine[0]

    def give_back(self):
        """The kernel has all disks again."""
        while self.taken:
            self.taken.pop().unbind()

    def stop(self):
        """SIGTERM: it ends by itself, in order."""
        code, took = self.target.stop(STOP_LIMIT_S)
        # That an emulated processor is slow is no complaint, and a reload that is refused is asked for.
        lines = [line for line in self.target.logged() if " stalled for " not in line and " reload: " not in line]
        said = [line for line in lines if " ERROR " in line or " WARN " in line]
        check(code == 0, f"reactor ended with {code}: {said}")
        check(not said, f"it complains: {said}")
        note(f"stopped in {took:.1f} s")

    def before(self):
        self.since = len(kernel_lines())

    def after(self):
        disconnect()
        if self.target.alive():
            self.stop()
        self.give_back()
        check(not stray_lines(self.since), f"the kernel saw {stray_lines(self.since)}")

    def recover(self):
        self.target.show()
        if self.target.alive():
            self.target.kill()
        disconnect()
        self.give_back()
        return True


def disconnect():
    """Ends every connection to the reactor; the devices are gone when it returns."""
    if _remote():
        nvme("disconnect-all", succeed=False)
        wait_until("no connection left", lambda: not _remote(), timeout_s=60)


WORLD = World()
suite = Suite(WORLD.before, WORLD.after, WORLD.recover)


def volume(name, function, **keys):
    """A `[[bdev]]` on a disk."""
    return {"name": name, "driver": "nvme", "pci": function.address, **keys}


def config(*bdevs, cores=(0,), **reactor):
    """Every volume is namespace 1 of a subsystem of its name."""
    subsystems = [{"nqn": nqn(one["name"]), "namespaces": [{"nsid": 1, "bdev": one["name"]}]} for one in bdevs]
    listen = [f"127.0.0.1:{SERVICE}"]
    return Config(list(bdevs), listen, subsystems, memory_mib=128, cores=list(cores), **reactor)


def nqn(name):
    return PREFIX + name


def attach(name, *options):
    """Connects the kernel to a volume; returns it as a disk."""
    connect(nqn(name), *options)
    return Block(nqn(name), 1)


def said_in_log(what):
    """A line of the reactor's log, waited for."""
    return wait_until(f"the log says {what!r}", lambda: [line for line in WORLD.target.logged() if what in line])


def refusal(*bdevs, code=1, wrapper=()):
    """Starts a reactor of its own, which must refuse that; returns what it said."""
    other = Reactor(binary(), DIRECTORY / "other")
    other.wrapper = list(wrapper)
    other.config_file.parent.mkdir(exist_ok=True)
    other.launch(config(*bdevs))
    ended = other.process.wait(READY_TIMEOUT_S)
    text = "\n".join(other.logged())
    note(text)
    check(ended == code, f"it ended with {ended}")
    return text


def spent():
    """Seconds of processor time that the reactor has used."""
    fields = pathlib.Path(f"/proc/{WORLD.target.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def written(configuration):
    path = DIRECTORY / "checked.toml"
    path.write_text(configuration.toml())
    return path
