"""Local block devices (ublk) beside the kernel's loop device, and ublksrv, in one guest: `scripts/bench guest-ublk`.

UBLKSRV_DIR names a built tree of ublksrv. What runs in the guest is tests/guest/ublk_speed.py.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

from machine import ROOT, TARGET
from programs import Failed
from report import columns
from rows import Row, Share, Table, median

sys.path.insert(0, str(ROOT / "qemu"))

KERNEL, SHAPE = "newest", "ublk"
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
# Seconds of a run beside what is measured of it, on a busy machine.
RUN_SLACK_S = 20
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


def key_of(name, op, jobs):
    return f"{CONTENDERS[name][0]}, {op}, {jobs} job{'s'[: jobs - 1]}"


def work_of(row):
    """Contender, direction and jobs of a row."""
    return next(
        (name, op, jobs) for name in CONTENDERS for op in LOOP_SHARE for jobs in JOBS if key_of(name, op, jobs) == row.key
    )


def tables(with_ublksrv):
    """The one table."""
    found = []
    for op, least in LOOP_SHARE.items():
        for jobs in JOBS:
            for name, (_, copies) in CONTENDERS.items():
                if name.startswith("ublksrv") and not with_ublksrv:
                    continue
                share = lambda of, least, as_name, op=op, jobs=jobs: Share(key_of(of, op, jobs), least, as_name, True)
                bars = []
                if name != "loop":
                    judged = name in ("file", "ram")
                    bars = [share("loop", least if judged else None, "loop")]
                if name == "file":
                    bars.append(share("loop-direct", None, "loop with direct I/O"))
                    if with_ublksrv:
                        bars.append(share("ublksrv", UBLKSRV_SHARE, "ublksrv"))
                        bars.append(share("ublksrv-zero-copy", UBLKSRV_SHARE, "ublksrv with zero copy"))
                if name in ("file", "ram"):
                    bars.append(share("null", None, "null"))
                found.append(Row(key_of(name, op, jobs), None, bars, copies=copies))
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


class Qemu:
    """How much of this machine the guest takes, and others, between its first and its last sample."""

    def __init__(self):
        self.looks = []

    def look(self):
        """Seconds until now, of all that this process has started and that still runs, and of all processors."""
        mine = 0
        for path in pathlib.Path("/proc/self/task").glob("*/children"):
            for pid in path.read_text().split():
                words = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                mine += int(words[11]) + int(words[12])
        ticks = [int(word) for word in pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        busy = sum(ticks) - ticks[3] - ticks[4]
        tick = os.sysconf("SC_CLK_TCK")
        self.looks.append((time.monotonic(), mine / tick, busy / tick))

    def cores(self):
        """Cores that the guest kept busy, and others; nothing if there were no two looks."""
        if len(self.looks) < 2:
            return None
        seconds, mine, busy = (last - first for first, last in zip(self.looks[0], self.looks[-1], strict=True))
        return {"guest": mine / seconds, "others": (busy - mine) / seconds}


def measure(reactor, wanted, options):
    """Runs all rounds in one guest; in each round a sample by the key of its row, what failed, and what the guest is."""
    from rig.machine import Machine, guest_payload
    from rig.packages import RigError

    log = TARGET / "qemu/ublk-speed.log"
    works = {":".join(map(str, work_of(row))): row.key for row in wanted}
    words = [f"--rounds={options.rounds}", f"--seconds={options.time:g}", f"--runs={','.join(works)}"]
    rounds, failures, known, qemu = [{} for _ in range(options.rounds)], [], {}, Qemu()

    def line(text):
        word, _, rest = text.partition(" ")
        if word == "facts":
            known.update(json.loads(rest))
            qemu.look()
        elif word == "sample":
            said = json.loads(rest)
            rounds[said["round"]][works[said["work"]]] = taken(said)
            qemu.look()
        elif word == "failed":
            said = json.loads(rest)
            failures.append(f"{works[said['work']]}: {said['why']}")
            print(f"FAIL {failures[-1]}", file=sys.stderr, flush=True)
        elif word == "round":
            print(f"round {rest}", file=sys.stderr, flush=True)

    try:
        machine = Machine(KERNEL, SHAPE)
        # With more processors than cores, one that spins takes the time of one that works, and the guest cannot know.
        machine.shape = {**machine.shape, "cpus": min(machine.shape["cpus"], len(os.sched_getaffinity(0)))}
        known["accelerator"] = machine.accelerator()
        programs = [reactor, *filter(None, [ublksrv()])]
        payload = guest_payload(ROOT / "tests/guest/ublk_speed.py", programs, words)
        limit_s = max(machine.shape["timeout"], options.rounds * len(wanted) * (options.time + RUN_SLACK_S))
        code = machine.run(payload, log, limit_s, echo=line)
    except (RigError, OSError, subprocess.SubprocessError) as error:
        raise Failed(f"the guest: {error}") from None
    if code and not failures:
        raise Failed(f"the guest: exit {code}: {log}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-12:]))
    known["cores"] = qemu.cores()
    return [one for one in rounds if one], failures, known


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


def costs(tables_of, rounds):
    """All of them, by the key of their row."""
    return {row.key: found for table in tables_of for row in table.rows if (found := cost(row, rounds))}


def text(costs_of, known):
    """What the guest spent its processors on, for people."""
    shown = lambda value, form: format(value, form) if value else ""
    lines = [COLUMNS]
    for key, found in costs_of.items():
        times = [shown(found[name], ".1f") for name in (*KINDS, "all")]
        times.insert(2, shown(found.get("own code"), ".0%"))
        core = shown(found.get("server's core"), ".0%")
        lines.append((key, *times, f"{found['busy']:.2f}", f"{found['interrupt']:.2f}", core))
    if len(lines) == 1:
        return ""
    count = known["processors"]
    title = f"Microseconds of processors for each I/O; how many of the guest's {count} were busy, and in interrupts;\n"
    title += "how much of a server's time, its workers' included, is its own code's, and how much of its time the reactor was busy"
    body = f"\n{title}\n\n{columns(lines)}\n"
    if known["cores"]:
        body += "\nOf this machine's {} cores the guest took {guest:.2f}, others {others:.2f}.\n".format(
            len(os.sched_getaffinity(0)), **known["cores"]
        )
    return body


def about(known):
    """The guest in a line or two."""
    loops = known["contenders"]
    direct = "loop with direct I/O works" if "loop-direct" in loops else "loop refuses direct I/O"
    direct += ", reads without waiting work" if known["nowait"] else ", reads without waiting (RWF_NOWAIT) do not"
    how = "emulated by QEMU" if known["accelerator"] == "tcg" else f"under {known['accelerator']}"
    said = f"guest: Linux {known['kernel']}, {known['processors']} processors, {how}, {known['fio']}; tmpfs: {direct}"
    if "ublksrv" not in loops:
        said += "\nublksrv was not measured: UBLKSRV_DIR names no built tree"
    return said
