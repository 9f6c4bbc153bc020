"""What the NVMe/TCP cases share: the target, what it serves, and the suite."""

import pathlib
import sys

from disk import MIB, MOUNT, SCRATCH
from harness import Suite, Unsupported, run, wait_until
from host import SERVICE, controllers, disconnect_all, host_nqn, nvme
from target import Config, make

PREFIX = "nqn.2026-11.io.reactor:"
MAIN, FOURK, GROW, PRIVATE, GUARD, LATE = (
    PREFIX + name for name in ("main", "fourk", "grow", "private", "guard", "late")
)
ALICE = "a11ce000-0000-4000-8000-000000000001"
GUARDED = b"written before the target started".ljust(4096, b".")
STOP_LIMIT_S = 2
# An emulated processor is slower than the machine that the limit was set for.
EMULATION_SLACK_S = 2


def first_config():
    volume = {"driver": "malloc", "block_size": 512}
    return Config(
        memory_mib=128,
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
        self.target.assert_alive()

    def recover(self):
        """Ends whatever a failed case left; says whether the next can run."""
        self.target.show()
        run("umount", "-l", MOUNT, succeed=False)
        nvme("disconnect-all", succeed=False)
        # Volumes that grew stay grown; what was exported by halves goes.
        self.config.subsystems = first_config().subsystems
        if self.target.alive():
            if controllers():
                self.target.kill()
            else:
                self.reload()
        wait_until("no controller left", lambda: not controllers(), timeout_s=60)
        return True


WORLD = World("--self-check" in sys.argv[1:])
suite = Suite(WORLD.before, WORLD.after, WORLD.recover)


def only_reactor(what):
    if WORLD.self_check:
        raise Unsupported(f"nvmet has no {what}")
