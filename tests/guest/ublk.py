#!/usr/bin/python3
"""ublk: volumes of reactor as block devices of the guest.

  ublk.py [--full] [--seed=N] [--after=NAME] [WORD...]     the cases whose names contain a WORD, or all

`--full` runs every combination of the matrix, not only all pairs, and more of what is repeated; `--seed` chooses other
pairs, positions and sizes; `--after` begins with the case after that one.
"""

import importlib
import sys

from harness import note, run
from udev import start_udev

# In the order in which their cases run.
PARTS = ["ublk_start", "ublk_data", "ublk_order", "ublk_life", "ublk_left", "ublk_matrix"]


def main():
    run("modprobe", "ublk_drv")
    from ublk_world import SEED, WORLD, suite

    start_udev("/test/udev/60-reactor-ublk.rules")
    note(f"features {WORLD.features:#x}, seed {SEED}")
    for part in PARTS:
        importlib.import_module(part)
    return suite.run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
