"""udevd of a guest: no init system starts it there."""

import os
import pathlib
import shutil

from harness import check, run

RULES = pathlib.Path("/etc/udev/rules.d")


def udevadm(*words, timeout_s=60):
    """Runs udevadm, which takes a place like this, the inside of a chroot, for one whose requests it need not fulfil."""
    done = run("udevadm", *words, timeout_s=timeout_s, environment={**os.environ, "SYSTEMD_IGNORE_CHROOT": "1"})
    check("ignoring" not in done.errors, f"udevadm {words[0]}: {done.errors.strip()}")


def settle_udev(timeout_s=60):
    """Waits until udev has done with all events. It has a disk open while it looks at it, as after each that wrote to it."""
    udevadm("settle", f"--timeout={timeout_s}", timeout_s=timeout_s + 30)


def start_udev(*rules):
    """Starts udevd with more rules than those of its packages, and waits until it has seen every device of the guest."""
    run("mount", "-t", "tmpfs", "tmpfs", RULES)
    for rule in rules:
        shutil.copy(rule, RULES)
    # A daemon that leaves its start: what it says goes to the kernel's log.
    run("/usr/lib/systemd/systemd-udevd", "--daemon")
    udevadm("trigger", "--action=add")
    settle_udev(120)
