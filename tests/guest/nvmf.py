#!/usr/bin/python3
"""NVMe/TCP: the kernel's host against a target on the guest's loopback.

  nvmf.py [--self-check] [WORD...]     the cases whose names contain a WORD, or all

`--self-check` puts the kernel's own target in reactor's place, which checks the cases themselves.
"""

import importlib
import sys

from harness import run
from nvmf_world import suite

# In the order in which their cases run.
PARTS = ["nvmf_connect", "nvmf_data", "nvmf_change"]


def main():
    run("modprobe", "nvme-tcp")
    for part in PARTS:
        importlib.import_module(part)
    return suite.run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
