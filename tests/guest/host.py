"""The kernel's NVMe/TCP host as nvme-cli and sysfs show it."""

import json
import pathlib
import re

from disk import Disk
from harness import Failure, check, run, wait_until

SERVICE = "4420"
DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"


def nvme(*arguments, succeed=True):
    """Runs nvme-cli."""
    return run("nvme", *arguments, succeed=succeed)


def nvme_json(*arguments):
    """Runs nvme-cli and returns its JSON."""
    text = nvme(*arguments, "-o", "json").output
    try:
        return json.loads(text)
    except ValueError as error:
        raise Failure(f"nvme {' '.join(map(str, arguments))} printed no JSON ({error}): {text[:200]!r}") from None


def identity(host):
    """Options that make nvme-cli speak as another host: `host` is a UUID."""
    return ["--hostnqn", host_nqn(host), "--hostid", host]


def host_nqn(host):
    return f"nqn.2014-08.org.nvmexpress:uuid:{host}"


def discover(address="127.0.0.1", *options):
    """The NQNs of the discovery log's NVM subsystems, by address."""
    log = nvme_json("discover", "-t", "tcp", "-a", address, "-s", SERVICE, *options)
    return [record["subnqn"] for record in log["records"] if record["subnqn"] != DISCOVERY_NQN]


class Controller:
    """A connected controller: `name` is nvmeN."""

    def __init__(self, name):
        self.name = name
        self.device = f"/dev/{name}"
        self.sysfs = pathlib.Path("/sys/class/nvme") / name

    def attribute(self, name):
        try:
            return (self.sysfs / name).read_text().strip()
        except OSError:
            return None

    def state(self):
        return self.attribute("state")

    def io_queues(self):
        """How many I/O queues the controller granted."""
        return int(self.attribute("queue_count")) - 1

    def disconnect(self):
        nvme("disconnect", "-d", self.name)
        wait_until(f"{self.name} gone", lambda: not self.sysfs.exists())


def controllers():
    """Every fabrics controller of this host."""
    found = pathlib.Path("/sys/class/nvme").glob("nvme*")
    return [Controller(path.name) for path in sorted(found)]


def connect(nqn, *options, address="127.0.0.1"):
    """Connects and returns the controller, live."""
    before = {controller.name for controller in controllers()}
    nvme("connect", "-t", "tcp", "-a", address, "-s", SERVICE, "-n", nqn, *options)
    new = [controller for controller in controllers() if controller.name not in before]
    check(len(new) == 1, f"connect made {len(new)} controllers")
    wait_until(f"{new[0].name} live", lambda: new[0].state() == "live")
    return new[0]


def disconnect_all():
    """Ends every connection; the devices are gone when it returns."""
    if controllers():
        nvme("disconnect-all")
        wait_until("no controller left", lambda: not controllers())


def find_block(nqn, nsid):
    """The block device of a namespace (nvmeXnY), or None. Works with and without native multipath."""
    for path in sorted(pathlib.Path("/sys/block").glob("nvme*")):
        try:
            if not re.fullmatch(r"nvme\d+n\d+", path.name):
                continue
            owner = (path / "device/subsysnqn").read_text().strip()
            if owner == nqn and (path / "nsid").read_text().strip() == str(nsid):
                return path.name
        except OSError:
            continue
    return None


class Block(Disk):
    """A namespace's block device."""

    def __init__(self, nqn, nsid):
        super().__init__(wait_until(f"namespace {nsid} of {nqn}", lambda: find_block(nqn, nsid)))
