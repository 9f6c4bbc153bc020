#!/usr/bin/python3
"""iSCSI: open-iscsi and the kernel's initiator against a target on the guest's loopback.

  iscsi.py [--after=NAME] [WORD...]     the cases whose names contain a WORD, or all
"""

import importlib
import sys

from harness import run
from iscsi_host import SECOND, start_iscsid
from udev import start_udev

# In the order in which their cases run.
PARTS = ["iscsi_login", "iscsi_data", "iscsi_commands", "iscsi_fence", "iscsi_change", "iscsi_paths"]


def main():
    for module in ("iscsi_tcp", "sg", "sch_netem", "dm-multipath"):
        run("modprobe", module)
    # An address as of a network, which initiators are told whichever way they ask.
    run("ip", "address", "add", SECOND.split(":")[0], "dev", "lo")
    start_udev()
    start_iscsid()
    for part in PARTS:
        importlib.import_module(part)
    from iscsi_world import suite

    return suite.run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
