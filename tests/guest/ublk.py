#!/usr/bin/python3
"""ublk: volumes of reactor as block devices of the guest.

  ublk.py [--full | --quick] [--seed=N] [WORD...]     the cases whose names contain a WORD, or all

`--full` runs every combination of the matrix, not only all pairs, and more of what is repeated; `--seed` chooses other
pairs, positions and sizes. `--quick` leaves out the matrix, and the lives of disks.
"""

import importlib
import sys

from harness import note, run

# In the order in which their cases run.
PARTS = ["ublk_start", "ublk_data", "ublk_order", "ublk_life", "ublk_matrix"]
QUICK = 3


def main():
    run("modprobe", "ublk_drv")
    from ublk_world import SEED, WORLD, start_udev, suite

    start_udev()
    note(f"features {WORLD.features:#x}, seed {SEED}")
    for part in PARTS[:QUICK] if "--quick" in sys.argv[1:] else PARTS:
        importlib.import_module(part)
    return suite.run([word for word in sys.argv[1:] if not word.startswith("--")])


if __name__ == "__main__":
    sys.exit(main())
