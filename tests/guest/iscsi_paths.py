"""Multipath: one disk by two portals, of which one goes away under load."""

import pathlib
import re
import subprocess

from disk import MIB, Disk, pattern
from harness import check, run, wait_until
from iscsi_host import SECOND, V4, login
from iscsi_world import MAIN, WORLD, portals, suite
from records import Writers

CONFIGURATION = """
defaults {
    find_multipaths no
    user_friendly_names no
    path_grouping_policy multibus
    path_checker tur
    polling_interval 1
    max_polling_interval 2
    no_path_retry 60
    fast_io_fail_tmo off
}
blacklist { devnode "^(vd|nvme|loop|ram|sr|fd|ublk)" }
"""
PLACE = pathlib.Path("/etc/multipath")
# How long a path may be away before its commands go to the other one.
PATIENCE = {"node.session.timeo.replacement_timeout": 3}


class Paths:
    """multipathd, and the map that it makes of the disks of two sessions."""

    def __enter__(self):
        if not PLACE.is_mount():
            run("mount", "-t", "tmpfs", "tmpfs", PLACE)
        (PLACE / "multipath.conf").write_text(CONFIGURATION)
        with open("/tmp/multipathd.log", "ab") as log:
            self.daemon = subprocess.Popen(
                ["multipathd", "-d", "-s"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        return self

    def __exit__(self, *_):
        run("multipath", "-F", succeed=False)
        self.daemon.terminate()
        self.daemon.wait(60)

    def states(self):
        """Device-mapper's state of each path, by its disk."""
        done = run("multipathd", "show", "paths", "raw", "format", "%d %t", succeed=False)
        return dict(re.findall(r"^(sd\w+)\s+(\w+)", done.output, re.MULTILINE))

    def wait_for(self, **wanted):
        what = ", ".join(f"{name} {state}" for name, state in wanted.items())

        def there():
            states = self.states()
            return all(states.get(name) == state for name, state in wanted.items())

        wait_until(f"{what}; it is {self.states()}", there, timeout_s=90)

    def map(self, wwid):
        def found():
            for path in pathlib.Path("/sys/block").glob("dm-*"):
                try:
                    if (path / "dm/uuid").read_text().strip() == f"mpath-{wwid}":
                        return path.name
                except FileNotFoundError:
                    # One that is just being made, or has just gone.
                    continue
            return None

        return Disk(wait_until(f"a map of {wwid}", found, timeout_s=60))


@suite.variants(first=(0,), second=(1,))
def one_disk_by_two_portals_without_the(gone):
    """Both are used; one goes away under load, the other carries on, and it comes back."""
    sessions = [login(MAIN, portal, settings=PATIENCE) for portal in (V4, SECOND)]
    blocks = [session.block(1) for session in sessions]
    wwid = "3" + blocks[0].attribute("device/wwid").removeprefix("naa.")
    with Paths() as paths:
        disk = paths.map(wwid)
        paths.wait_for(**{block.name: "active" for block in blocks})
        used = [block.writes() for block in blocks]
        writers = Writers([disk, disk])
        writers.wait_for_more(50, "by both paths")
        check(all(block.writes() > before for block, before in zip(blocks, used, strict=True)), "one path is not used")
        WORLD.config.iscsi["portals"] = [one for one in portals() if one["tpgt"] != gone + 1]
        WORLD.reload()
        paths.wait_for(**{blocks[gone].name: "failed", blocks[1 - gone].name: "active"})
        writers.wait_for_more(50, "by one path")
        WORLD.config.iscsi["portals"] = portals()
        WORLD.reload()
        paths.wait_for(**{block.name: "active" for block in blocks})
        check(sessions[gone].state() == "LOGGED_IN", f"the session is {sessions[gone].state()}")
        writers.wait_for_more(20, "by both paths again")
        writers.end()
        for block in blocks:
            writers.look_at(block)
        disk.write(64 * MIB, pattern(MIB, 9))
        blocks[gone].expect(64 * MIB, pattern(MIB, 9), "by one path what was written by the map")
