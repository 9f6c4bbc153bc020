"""The NVMe driver beside the kernel's, and SPDK's, on the same emulated disk in one guest: `scripts/bench guest-nvme`.

SPDK_DIR names a built tree of SPDK. What runs in the guest is tests/guest/nvme_speed.py.
"""

import os
import pathlib

from guest import emulation, share
from programs import Failed
from report import columns
from rows import Row, Share, Table, median

SHAPE, SCRIPT = "nvme", "nvme_speed.py"
ROUNDS, QUICK_ROUNDS = 5, 1
SECONDS, QUICK_SECONDS = 3, 1
# The rate that the kernel's driver is to be met with: work -> least share.
WORK = {("read", 32): 1.0, ("read", 1): None, ("write", 32): None}
# name in the guest -> name of the row
CONTENDERS = {"kernel": "fio, the kernel's driver", "spdk": "SPDK", "reactor": "reactor"}
# Where trees of SPDK have their load generator.
PERF = ("build/bin/spdk_nvme_perf", "build/examples/perf")


def programs():
    """SPDK's load generator, if SPDK_DIR names a built tree."""
    if not os.environ.get("SPDK_DIR"):
        return []
    found = [path for path in (pathlib.Path(os.environ["SPDK_DIR"]) / name for name in PERF) if path.exists()]
    if not found:
        raise Failed(f"SPDK_DIR: neither {' nor '.join(PERF)} is there: build SPDK's applications and examples")
    return found[:1]


def key_of(name, op, depth):
    return f"{CONTENDERS[name]}, {op} qd{depth}"


def tables():
    """The one table."""
    found, with_spdk = [], programs()
    for (op, depth), least in WORK.items():
        for name in CONTENDERS:
            if name == "spdk" and not with_spdk:
                continue
            bars = []
            if name != "kernel":
                bars = [Share(key_of("kernel", op, depth), least if name == "reactor" else None, "the kernel's", True)]
            if name == "reactor" and with_spdk:
                bars.append(Share(key_of("spdk", op, depth), None, "SPDK's", True))
            copies = 0 if name == "reactor" else None
            found.append(Row(key_of(name, op, depth), None, bars, copies=copies, work=f"{name}:{op}:{depth}"))
    return [Table("guest-nvme", "An NVMe disk in a guest, 4k at random places, one core", found)]


def taken(said):
    """What a row keeps of a sample."""
    return {name: said[name] for name in ("rate", "latency_us", "busy")}


def more(tables_of, rounds, known):
    """Who was busy meanwhile: for programs, by the key of the row, and for people."""
    spent = {}
    for row in (row for table in tables_of for row in table.rows):
        samples = [one[row.key] for one in rounds if row.key in one]
        if samples:
            by_qemu = {name: median([one["qemu"][name] for one in samples]) for name in ("devices", "processors")}
            spent[row.key] = {**by_qemu, "busy": median([one["busy"] for one in samples])}
    lines = [("", "QEMU's devices", "QEMU's processors", "busy in the guest")]
    lines += [(key, *(f"{value:.2f}" for value in found.values())) for key, found in spent.items()]
    if not spent:
        return spent, ""
    title = "Cores of this machine that QEMU's threads took: the one that is the disk, and those that are the guest's processors;\n"
    title += "how many of its processors the guest thinks busy. A disk that takes a whole core is the limit, whoever drives it."
    return spent, f"\n{title}\n\n{columns(lines)}\n{share(known)}"


def about(known):
    """The guest in a line or two."""
    said = f"{emulation(known)}; {known['disk']}"
    if not known["spdk"]:
        said += "\nSPDK was not measured: SPDK_DIR names no built tree"
    return said
