"""Local block devices (ublk) beside the kernel's loop device, and ublksrv, in one guest: `scripts/bench guest-ublk`.

UBLKSRV_DIR names a built tree of ublksrv. What runs in the guest is tests/guest/ublk_speed.py.
"""

import os
import pathlib

from guest import emulation, share
from programs import Failed
from report import columns
from rows import Row, Share, Table, median

SHAPE, SCRIPT = "ublk", "ublk_speed.py"
ROUNDS, QUICK_ROUNDS = 5, 1
SECONDS, QUICK_SECONDS = 1, 0.5
# What the share of the kernel's loop device is to be, and that of ublksrv.
LOOP_SHARE = {"read": 0.9, "write": 1.0}
UBLKSRV_SHARE = 1.3
DEPTH, JOBS = 64, (1, 4)
# name in the guest -> name of the row, copies of payload by the server
CONTENDERS = {
    "loop": ("kernel loop", None),
    "loop-direct": ("kernel loop, direct I/O", None),
    "ublksrv": ("ublksrv loop", None),
    "ublksrv-zero-copy": ("ublksrv loop, zero copy", None),
    "null": ("null volume", 0),
    "file": ("file volume", 0),
    "ram": ("RAM volume", 1),
}
KINDS = ("fio", "server", "server's io_uring workers", "kernel workers")
COLUMNS = ("", "fio", "server", "own code", "its workers", "kernel workers", "all", "busy", "interrupts", "server's core")


def ublksrv():
    """The loop target of a built tree of ublksrv, if UBLKSRV_DIR names one."""
    if not os.environ.get("UBLKSRV_DIR"):
        return None
    program = pathlib.Path(os.environ["UBLKSRV_DIR"]) / "ublk.loop"
    if not program.exists() or program.read_bytes()[:4] != b"\x7fELF":
        raise Failed(f"UBLKSRV_DIR: {program} is no program: configure ublksrv with --disable-shared and build it")
    return program


def programs():
    return [*filter(None, [ublksrv()])]


def key_of(name, op, jobs):
    return f"{CONTENDERS[name][0]}, {op}, {jobs} job{'s'[: jobs - 1]}"


def tables():
    """The one table."""
    found, with_ublksrv = [], ublksrv()
    for op, least in LOOP_SHARE.items():
        for jobs in JOBS:
            for name, (_, copies) in CONTENDERS.items():
                if name.startswith("ublksrv") and not with_ublksrv:
                    continue
                of = lambda other, least, as_name, op=op, jobs=jobs: Share(key_of(other, op, jobs), least, as_name, True)
                bars = []
                if name != "loop":
                    judged = name in ("file", "ram")
                    bars = [of("loop", least if judged else None, "loop")]
                if name == "file":
                    bars.append(of("loop-direct", None, "loop with direct I/O"))
                    if with_ublksrv:
                        bars.append(of("ublksrv", UBLKSRV_SHARE, "ublksrv"))
                        bars.append(of("ublksrv-zero-copy", UBLKSRV_SHARE, "ublksrv with zero copy"))
                if name in ("file", "ram"):
                    bars.append(of("null", None, "null"))
                found.append(Row(key_of(name, op, jobs), None, bars, copies=copies, work=f"{name}:{op}:{jobs}"))
    title = f"Local block devices in a guest, 4k at random places, depth {DEPTH}, one reactor with one queue a device"
    return [Table("guest-ublk", title, found)]


def taken(said):
    """What a row keeps of a sample."""
    sample = {name: said[name] for name in ("rate", "latency_us")}
    spent = said["spent"]
    if spent and spent["ios"]:
        sample["spent"] = spent
        counted = spent.get("counters")
        if counted:
            sample["enters"] = counted["enters"] / spent["ios"]
            sample["busy_ns"] = counted["busy_ns"] / spent["ios"]
    return sample


def cost(row, rounds):
    """What an I/O of a row costs in the guest, medians of the rounds: microseconds of processors by what they run, how much of a
    server's are its own code's, how many processors are busy, and in interrupts, and the share of its time that the reactor was busy."""
    spent = [one[row.key]["spent"] for one in rounds if "spent" in one.get(row.key, {})]
    if not spent:
        return None
    found = {kind: median([one["cpu_ns"].get(kind, 0) / one["ios"] / 1000 for one in spent]) for kind in KINDS}
    found["all"] = median([one["guest_ns"] / one["ios"] / 1000 for one in spent])
    for name in ("busy", "interrupt"):
        found[name] = median([sum(one[name]) for one in spent])
    user = [one["server_user"] for one in spent if "server_user" in one]
    if user:
        found["own code"] = median(user)
    if "counters" in spent[0]:
        found["server's core"] = median([one["counters"]["busy_ns"] / one["ns"] for one in spent])
    return found


def more(tables_of, rounds, known):
    """What the guest spent its processors on: for programs, by the key of the row, and for people."""
    costs = {row.key: found for table in tables_of for row in table.rows if (found := cost(row, rounds))}
    return costs, text(costs, known)


def text(costs, known):
    shown = lambda value, form: format(value, form) if value else ""
    lines = [COLUMNS]
    for key, found in costs.items():
        times = [shown(found[name], ".1f") for name in (*KINDS, "all")]
        times.insert(2, shown(found.get("own code"), ".0%"))
        core = shown(found.get("server's core"), ".0%")
        lines.append((key, *times, f"{found['busy']:.2f}", f"{found['interrupt']:.2f}", core))
    if len(lines) == 1:
        return ""
    count = known["processors"]
    title = f"Microseconds of processors for each I/O; how many of the guest's {count} were busy, and in interrupts;\n"
    title += "how much of a server's time, its workers' included, is its own code's, and how much of its time the reactor was busy"
    return f"\n{title}\n\n{columns(lines)}\n{share(known)}"


def about(known):
    """The guest in a line or two."""
    loops = known["contenders"]
    direct = "loop with direct I/O works" if "loop-direct" in loops else "loop refuses direct I/O"
    direct += ", reads without waiting work" if known["nowait"] else ", reads without waiting (RWF_NOWAIT) do not"
    said = f"{emulation(known)}; tmpfs: {direct}"
    if "ublksrv" not in loops:
        said += "\nublksrv was not measured: UBLKSRV_DIR names no built tree"
    return said
