"""QEMU's own monitor, from within the guest."""

import json
import pathlib

from harness import note, wait_until


def monitor():
    """QEMU's own monitor, ready for commands. It is a port of the guest's, found by its name."""
    names = wait_until("the port of QEMU's monitor", lambda: list(pathlib.Path("/sys/class/virtio-ports").glob("*/name")))
    name = next(path.parent.name for path in names if path.read_text().strip() == "qmp")
    port = open(f"/dev/{name}", "r+b", buffering=0)
    ask(port, "qmp_capabilities")
    return port


def ask(port, command, **arguments):
    """Gives QEMU a command and returns its answer."""
    port.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    while True:
        said = json.loads(port.readline())
        note(said)
        if "return" in said or "error" in said:
            return said
