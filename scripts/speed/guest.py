"""Rows that run in one guest, by a script of tests/guest: what all groups of such rows share.

A group is a module with `SHAPE`, `SCRIPT`, `ROUNDS`, `SECONDS` and their quick ones, `tables()`, `programs()` that go along with
`reactor`, `taken(said)` that makes a sample of what the script said, `about(known)`, and `more(tables, rounds, known)`.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

from machine import ROOT, TARGET
from programs import Failed

sys.path.insert(0, str(ROOT / "qemu"))

KERNEL = "newest"
# Seconds of a run beside what is measured of it, on a busy machine.
RUN_SLACK_S = 20
TICK = os.sysconf("SC_CLK_TCK")


def seconds_of(path):
    """Processor time of a process or a thread."""
    words = (path / "stat").read_text().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / TICK


class Qemu:
    """How much of this machine the guest takes, and others, between its first and its last sample, and within each."""

    def __init__(self):
        self.looks = []
        self.begun = None

    def look(self):
        """Seconds until now, of all that this process has started and that still runs, and of all processors."""
        mine = sum(seconds_of(path) for path in self.children())
        ticks = [int(word) for word in pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
        busy = sum(ticks) - ticks[3] - ticks[4]
        self.looks.append((time.monotonic(), mine, busy / TICK))

    def children(self):
        for path in pathlib.Path("/proc/self/task").glob("*/children"):
            yield from (pathlib.Path(f"/proc/{pid}") for pid in path.read_text().split())

    def threads(self):
        """Seconds until now of QEMU's first thread, which is its devices, and of the others, which are its processors."""
        devices = everything = 0
        for path in self.children():
            devices += seconds_of(path / "task" / path.name)
            everything += seconds_of(path)
        return time.monotonic(), devices, everything - devices

    def begin(self):
        self.begun = self.threads()

    def end(self):
        """Cores that QEMU's devices and processors have taken since `begin`."""
        seconds, devices, processors = (now - then for now, then in zip(self.threads(), self.begun, strict=True))
        return {"devices": devices / seconds, "processors": processors / seconds}

    def cores(self):
        """Cores that the guest kept busy, and others; nothing if there were no two looks."""
        if len(self.looks) < 2:
            return None
        seconds, mine, busy = (last - first for first, last in zip(self.looks[0], self.looks[-1], strict=True))
        return {"guest": mine / seconds, "others": (busy - mine) / seconds}


def measure(group, reactor, wanted, options):
    """Runs all rounds in one guest; in each round a sample by the key of its row, what failed, and what the guest is."""
    from rig.machine import Machine, guest_payload
    from rig.packages import RigError

    script = ROOT / "tests/guest" / group.SCRIPT
    log = TARGET / f"qemu/{script.stem}.log"
    works = {row.work: row.key for row in wanted}
    words = [f"--rounds={options.rounds}", f"--seconds={options.time:g}", f"--runs={','.join(works)}"]
    rounds, failures, known, qemu = [{} for _ in range(options.rounds)], [], {}, Qemu()

    def line(text):
        word, _, rest = text.partition(" ")
        if word == "facts":
            known.update(json.loads(rest))
            qemu.look()
        elif word == "begin":
            qemu.begin()
        elif word == "sample":
            said = json.loads(rest)
            sample = group.taken(said)
            if qemu.begun:
                sample["qemu"] = qemu.end()
            rounds[said["round"]][works[said["work"]]] = sample
            qemu.look()
        elif word == "failed":
            said = json.loads(rest)
            failures.append(f"{works[said['work']]}: {said['why']}")
            print(f"FAIL {failures[-1]}", file=sys.stderr, flush=True)
        elif word == "round":
            print(f"round {rest}", file=sys.stderr, flush=True)

    try:
        machine = Machine(KERNEL, group.SHAPE)
        # With more processors than cores, one that spins takes the time of one that works, and the guest cannot know.
        machine.shape = {**machine.shape, "cpus": min(machine.shape["cpus"], len(os.sched_getaffinity(0)))}
        known["accelerator"] = machine.accelerator()
        payload = guest_payload(script, [reactor, *group.programs()], words)
        limit_s = max(machine.shape["timeout"], options.rounds * len(wanted) * (options.time + RUN_SLACK_S))
        code = machine.run(payload, log, limit_s, echo=line)
    except (RigError, OSError, subprocess.SubprocessError) as error:
        raise Failed(f"the guest: {error}") from None
    if code and not failures:
        raise Failed(f"the guest: exit {code}: {log}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-12:]))
    known["cores"] = qemu.cores()
    return [one for one in rounds if one], failures, known


def emulation(known):
    """How the guest runs."""
    how = "emulated by QEMU" if known["accelerator"] == "tcg" else f"under {known['accelerator']}"
    return f"guest: Linux {known['kernel']}, {known['processors']} processors, {how}, {known['fio']}"


def share(known):
    """What the guest took of this machine."""
    if not known["cores"]:
        return ""
    return "\nOf this machine's {} cores the guest took {guest:.2f}, others {others:.2f}.\n".format(
        len(os.sched_getaffinity(0)), **known["cores"]
    )
