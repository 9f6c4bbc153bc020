#!/usr/bin/python3
"""Speed of one NVMe disk by different drivers, one after the other in one guest, for `scripts/bench guest-nvme`.

  nvme_speed.py --rounds=N --seconds=S [--runs=kernel|reactor|spdk:read|write:DEPTH,...]

Prints lines of JSON behind a word: `facts` of the guest once, then `begin` and a `sample` for each run, or `failed` for one that
failed. In each round every work is done by every driver in turn, in another order each time.
"""

import json
import os
import pathlib
import re
import sys
import time

from disk import MIB, pattern
from harness import check, run
from jobs import words
from nvme_world import config, functions, volume, written
from speed import fio_said, option, rotated, say
from target import binary

SERIAL = "A1"
PERF = [path for path in map(pathlib.Path, ("/test/bin/spdk_nvme_perf", "/test/bin/perf")) if path.exists()]
# What SPDK takes, in pages of 2 MiB.
HUGE_PAGES = 160
CORE = 0
# How long a run may take beside what is measured of it, under emulation.
SLACK_S = 90


def by_kernel(function, op, depth, seconds):
    """fio on the kernel's own device of the disk."""
    function.unbind()
    job, environment = words(function.disk(), "random", RW=f"rand{op}", DEPTH=depth, JOBS=1, SECONDS=f"{seconds * 1000:.0f}ms")
    command = ["fio", "--output-format=json", f"--cpus_allowed={CORE}", job[-1]]
    return fio_said(run(*command, timeout_s=seconds + SLACK_S, environment=environment).output, op)


def by_reactor(function, op, depth, seconds):
    function.bind()
    load = ["--rw", f"rand{op}", "--bs", "4k", "--qd", depth, "--time", f"{seconds:g}", "--json"]
    path = written(config(volume("fast", function, mode="vfio"), cores=[CORE], idle="poll"))
    said = json.loads(run(binary(), "bench", "--config", path, "--bdev", "fast", *load, timeout_s=seconds + SLACK_S).output)
    check(said["errors"] == 0 and said["ios"] > 0, f"{said['errors']} errors, {said['ios']} I/Os")
    return {"rate": said["iops"], "latency_us": {name: said["latency_us"][name] for name in ("p50", "p99", "p99_9")}}


def by_spdk(function, op, depth, seconds):
    """SPDK's load generator, which has a second of its own before it measures, as fio has."""
    function.bind()
    load = ["-q", depth, "-o", 4096, "-w", f"rand{op}", "-t", max(1, round(seconds)), "-a", 1]
    place = ["-r", f"trtype:PCIe traddr:{function.address}", "-c", hex(1 << CORE), "-s", HUGE_PAGES * 2 - 64]
    said = run(PERF[0], *load, *place, timeout_s=seconds + SLACK_S).output
    total = re.search(r"^Total\s*:\s*([\d.]+)", said, re.MULTILINE)
    check(total and float(total[1]) > 0, f"no total: {said[-400:]}")
    return {"rate": float(total[1]), "latency_us": {}}


DRIVERS = {"kernel": by_kernel, "reactor": by_reactor}
if PERF:
    DRIVERS["spdk"] = by_spdk


def busy():
    """Ticks that all processors have worked."""
    ticks = [int(word) for word in pathlib.Path("/proc/stat").read_text().split("\n")[0].split()[1:8]]
    return sum(ticks) - ticks[3] - ticks[4]


def measure(function, work, seconds):
    name, op, depth = work.split(":")
    print("begin", flush=True)
    started, before = time.monotonic(), busy()
    found = DRIVERS[name](function, op, int(depth), seconds)
    took = time.monotonic() - started
    return {**found, "busy": (busy() - before) / os.sysconf("SC_CLK_TCK") / took}


def main():
    rounds, seconds = int(option("rounds", 3)), float(option("seconds", 3))
    function = functions(SERIAL)[0]
    disk = function.disk()
    for number in range(disk.size() // MIB):
        disk.write(number * MIB, pattern(MIB, 6))
    run("modprobe", "vfio-pci")
    if PERF:
        pathlib.Path("/proc/sys/vm/nr_hugepages").write_text(f"{HUGE_PAGES}\n")
        # Where DPDK and SPDK expect to make files.
        for path in ("/dev/hugepages", "/var/run", "/var/tmp"):
            pathlib.Path(path).mkdir(parents=True, exist_ok=True)
        run("mount", "-t", "hugetlbfs", "hugetlbfs", "/dev/hugepages")
    model = disk.attribute("device/model").strip()
    facts = {"kernel": os.uname().release, "processors": os.cpu_count(), "fio": run("fio", "--version").output.strip()}
    say("facts", {**facts, "disk": f"{model}, {disk.size() // MIB} MiB", "spdk": bool(PERF)})
    every = [f"{name}:{op}:{depth}" for op in ("read", "write") for depth in (1, 32) for name in DRIVERS]
    wanted = option("runs", ",".join(every)).split(",")
    failed = 0
    for number in range(rounds):
        started = time.monotonic()
        for work in in_turns(wanted, number):
            try:
                say("sample", {"round": number, "work": work, **measure(function, work, seconds)})
            except Exception as error:
                failed += 1
                say("failed", {"round": number, "work": work, "why": f"{type(error).__name__}: {error}"})
        print(f"round {number + 1} of {rounds}: {len(wanted)} rows, {time.monotonic() - started:.0f} s", flush=True)
    function.unbind()
    return 1 if failed else 0


def in_turns(wanted, number):
    """Works of one kind one after the other, and who begins takes turns."""
    kinds = {}
    for work in wanted:
        kinds.setdefault(work.split(":", 1)[1], []).append(work)
    return [work for of_kind in kinds.values() for work in rotated(of_kind, number)]


if __name__ == "__main__":
    sys.exit(main())
