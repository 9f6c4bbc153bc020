"""What the iSCSI cases share: the target, what it serves, and the suite."""

import pathlib

from disk import MIB, MOUNT, SCRATCH
from harness import Suite, note, run, wait_until
from iscsi_host import ALICE, LOG, SECOND, V4, V6, iscsiadm, logout_all, sessions
from target import Config, Reactor, binary

PREFIX = "iqn.2026-11.io.reactor:"
MAIN, SECRET, MUTUAL, FOURK, GROW, PRIVATE, GUARD, SHARED, STRICT, LATE, MOVED = (
    PREFIX + name
    for name in ("main", "secret", "mutual", "fourk", "grow", "private", "guard", "shared", "strict", "late", "moved")
)
GUARDED = b"written before the target started".ljust(4096, b".")
STOP_LIMIT_S = 2
# An emulated processor is slower than the machine that the limit was set for.
EMULATION_SLACK_S = 2
# In a file system in memory.
PLACE = pathlib.Path("/tmp/target")
USER, PASSWORD = "alice", "a secret of alice's"
TARGET_USER, TARGET_PASSWORD = "target", "what the target proves"


def secret_file(name, secret):
    """A file with a secret that only root may read; returns its path."""
    path = PLACE / name
    path.write_text(secret + "\n")
    path.chmod(0o600)
    return str(path)


def portals():
    return [
        {"listen": V4, "tpgt": 1},
        {"listen": V6, "tpgt": 1},
        {"listen": SECOND, "tpgt": 2},
    ]


def first_config():
    volume = {"driver": "malloc", "block_size": 512}
    one_way = {"user": USER, "secret_file": secret_file("alice", PASSWORD)}
    both_ways = {
        **one_way,
        "mutual_user": TARGET_USER,
        "mutual_secret_file": secret_file("mutual", TARGET_PASSWORD),
    }
    return Config(
        memory_mib=128,
        bdevs=[
            {"name": "ram0", **volume, "size": 320 * MIB},
            {"name": "disk0", "driver": "file", "path": str(SCRATCH / "disk0.img"), "size": 320 * MIB},
            {"name": "ram4k", **volume, "block_size": 4096, "size": 64 * MIB},
            {"name": "growram", **volume, "size": 16 * MIB},
            {"name": "growdisk", "driver": "file", "path": str(SCRATCH / "grow.img"), "size": 16 * MIB},
            {"name": "spare", **volume, "size": 8 * MIB},
            {"name": "secret", **volume, "size": 16 * MIB},
            {"name": "private", **volume, "size": 8 * MIB},
            {"name": "guarded", "driver": "file", "path": str(SCRATCH / "guarded.img"), "size": 8 * MIB},
            {"name": "shared", "driver": "file", "path": str(SCRATCH / "shared.img"), "size": 64 * MIB},
        ],
        iscsi={"portals": portals(), "state": "state"},
        targets=[
            {"iqn": MAIN, "luns": [{"bdev": "ram0"}, {"bdev": "disk0"}]},
            {"iqn": SECRET, "luns": [{"bdev": "secret"}], "chap": one_way},
            {"iqn": MUTUAL, "luns": [{"bdev": "secret"}], "chap": both_ways},
            {"iqn": FOURK, "luns": [{"bdev": "ram4k"}]},
            {"iqn": GROW, "luns": [{"bdev": "growram"}, {"bdev": "growdisk"}]},
            {"iqn": PRIVATE, "luns": [{"bdev": "private"}], "initiators": [ALICE]},
            {"iqn": GUARD, "luns": [{"bdev": "guarded", "read_only": True}]},
            {"iqn": SHARED, "luns": [{"bdev": "shared"}]},
            {
                "iqn": STRICT,
                "luns": [{"bdev": "private"}],
                "header_digest": "require",
                "data_digest": "require",
            },
        ],
    )


class World:
    """The target and what it now serves."""

    def __init__(self):
        PLACE.mkdir()
        with open(SCRATCH / "guarded.img", "wb") as file:
            file.write(GUARDED)
            file.truncate(8 * MIB)
        self.config = first_config()
        self.target = Reactor(binary(), PLACE)

    def reload(self):
        self.target.reload(self.config)

    def before(self):
        if not self.target.alive():
            self.target.start(self.config)

    def after(self):
        if MOUNT.is_mount():
            run("umount", MOUNT)
        logout_all()
        self.target.assert_alive()

    def recover(self):
        """Ends whatever a failed case left; says whether the next can run."""
        self.target.show()
        note("iscsid:\n" + "\n".join(LOG.read_text(errors="replace").splitlines()[-12:]))
        run("umount", "-l", MOUNT, succeed=False)
        # Volumes that grew stay grown; what was exported by halves goes.
        first = first_config()
        self.config.iscsi, self.config.targets = first.iscsi, first.targets
        if self.target.alive():
            self.reload()
        else:
            self.target.start(self.config)
        logout_all(succeed=False)
        if sessions():
            # One that cannot log out: without its target it may.
            self.target.kill()
            iscsiadm("-m", "session", "-u", succeed=False)
        wait_until("no session left", lambda: not sessions(), timeout_s=60)
        return True


WORLD = World()
suite = Suite(WORLD.before, WORLD.after, WORLD.recover)
