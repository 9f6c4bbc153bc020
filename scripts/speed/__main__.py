"""Measures speed against this machine's own ceilings: scripts/bench [--help].

Builds the release, then runs all rows once in each of several rounds, so that the hour, which makes a machine twice as
fast or as slow, is the same for a row and for what it is held against. Shows medians with the spread.
docs/benchmarks.md says how to read them.
"""

import argparse
import json
import os
import pathlib
import platform
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import guest
import guest_nvme
import guest_ublk
import iscsi
import report
import rows
import spdk
from machine import ROOT, TARGET, install
from programs import Failed, Process

GROUPS = {"guest-ublk": guest_ublk, "guest-nvme": guest_nvme, "iscsi": iscsi}
# Those of the groups that run in a guest.
IN_GUEST = ("guest-ublk", "guest-nvme")
PROGRAMS = {"cc": "build-essential", "fio": "fio"}
GUEST_PROGRAMS = {"cc": "build-essential", "dpkg": "dpkg", "ldd": "libc-bin"}
# Processes that want a core at the start, beyond which the numbers are others' as much as ours.
QUIET = 0.5
ROUNDS, QUICK_ROUNDS = 7, 3
SECONDS, QUICK_SECONDS = 0.7, 0.3
RAM, QUICK_RAM = 1 << 30, 256 << 20
FILE, QUICK_FILE = 512 << 20, 128 << 20


def build(*words):
    """Builds with cargo; the executables by name."""
    command = ["cargo", *words, "--message-format=json-render-diagnostics"]
    try:
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        result = subprocess.run(command, cwd=ROOT, text=True, check=False, **streams)
    except FileNotFoundError:
        raise Failed("cargo is not installed: see https://rustup.rs") from None
    if result.returncode:
        raise Failed("the release does not build")
    made = (json.loads(line) for line in result.stdout.splitlines() if line.startswith("{"))
    return {one["target"]["name"]: one["executable"] for one in made if one.get("executable")}


def others():
    """How many threads of others run just now, the mean of a second."""
    looks = []
    for _ in range(10):
        with open("/proc/loadavg", encoding="ascii") as text:
            looks.append(int(text.read().split()[3].split("/")[0]) - 1)
        time.sleep(0.1)
    return sum(looks) / len(looks)


def facts(options):
    """What the numbers depend on."""
    asked = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    model = ""
    with open("/proc/cpuinfo", encoding="utf-8") as text:
        for line in text:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return {
        "commit": commit.stdout.strip(),
        "kernel": platform.release(),
        "processor": f"{model}, {os.cpu_count()} cores",
        "others": others(),
        "seconds": options.time,
    }


def side_by_side(wanted):
    """The order to run rows in: those that are held against each other one after the other, since a machine may change its
    speed within a round."""
    order = []
    for row in wanted:
        group = [row]
        # Grows while it is walked through.
        for one in group:
            known = {bar.of for bar in one.bars}
            group += [
                other
                for other in wanted
                if other not in group and (other.key in known or one.key in {bar.of for bar in other.bars})
            ]
        order += [other for other in wanted if other in group and other not in order]
    return order


def selected(tables, options):
    """The rows to be run: those asked for, and what they are held against."""
    wanted = [row for table in tables for row in table.rows]
    if options.only:
        named = [row for row in wanted if options.only in row.key or options.only in table_of(tables, row)]
        needed = {row.key for row in named}
        needed |= {bar.of for row in named for bar in row.bars}
        wanted = [row for row in wanted if row.key in needed]
        if not wanted:
            raise Failed(f"no row has {options.only!r} in its name: try --list")
    return side_by_side(wanted)


def measure(world, wanted, options):
    """All rounds: in each, a sample by the key of its row."""
    rounds, failures = [], []
    for number in range(options.rounds):
        started = time.monotonic()
        samples = {}
        for row in wanted:
            try:
                samples[row.key] = row.run(world)
            except (Failed, subprocess.TimeoutExpired, OSError) as error:
                failures.append(f"{row.key}: {error}")
                print(f"FAIL {row.key}: {error}", file=sys.stderr, flush=True)
        rounds.append(samples)
        took = time.monotonic() - started
        print(f"round {number + 1} of {options.rounds}: {len(samples)} rows, {took:.0f} s", file=sys.stderr, flush=True)
    return rounds, failures


def table_of(tables, row):
    return next(table.name for table in tables if row in table.rows)


def options_of(arguments):
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures speed against this machine's own ceilings; docs/benchmarks.md says how to read it.",
        epilog="SPDK_DIR names a built SPDK tree to be measured in the same rounds and in guest-nvme, UBLKSRV_DIR one of ublksrv for "
        "guest-ublk.",
    )
    parser.add_argument(
        "group",
        nargs="?",
        choices=list(GROUPS),
        help="instead of this machine's rows: local block devices (ublk) beside the kernel's loop device and ublksrv in one guest, an "
        "NVMe disk by this driver, the kernel's and SPDK's, or the iSCSI door beside tgtd on this machine",
    )
    rounds = "; ".join([str(ROUNDS), *(f"{name}: {group.ROUNDS}" for name, group in GROUPS.items())])
    seconds = "; ".join([str(SECONDS), *(f"{name}: {group.SECONDS}" for name, group in GROUPS.items())])
    parser.add_argument("--rounds", type=int, metavar="N", help=f"how often every row runs [default: {rounds}]")
    parser.add_argument("--time", type=float, metavar="S", help=f"seconds of each run [default: {seconds}]")
    parser.add_argument("--only", metavar="WORD", help="rows with WORD in their name, or of the table of that name")
    parser.add_argument("--quick", action="store_true", help="few and short runs on less memory: to see that all works")
    parser.add_argument("--list", action="store_true", help="name the tables and rows, measure nothing")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write all numbers of all rounds")
    parser.add_argument("--svg", type=pathlib.Path, metavar="DIR", help="write a picture of each table")
    options = parser.parse_args(arguments)
    group = GROUPS.get(options.group, sys.modules[__name__])
    rounds, seconds = (group.ROUNDS, group.QUICK_ROUNDS), (group.SECONDS, group.QUICK_SECONDS)
    options.rounds = options.rounds or rounds[options.quick]
    options.time = options.time or seconds[options.quick]
    if options.rounds < 1 or not 0.1 <= options.time <= 60:
        parser.error("--rounds is at least 1, --time from 0.1 to 60")
    return options


def here(reactor, wanted, options):
    """All rounds on this machine."""
    benches = {name: build("bench", "--no-run", "--bench", name)[name] for name in rows.BENCHES}
    # On the file system of the build, which is not a RAM disk where /tmp may be one.
    with tempfile.TemporaryDirectory(dir=TARGET, prefix="bench-") as place:
        try:
            sizes = (QUICK_RAM, QUICK_FILE) if options.quick else (RAM, FILE)
            world = rows.World(pathlib.Path(place), reactor, benches, options.time, *sizes)
            return measure(world, wanted, options)
        finally:
            Process.end_all()


def main():
    options = options_of(None)
    group = GROUPS.get(options.group)
    tables = group.tables() if group else rows.tables(spdk.available())
    if options.list:
        for table in tables:
            print(f"{table.name}: {table.title}")
            print("".join(f"  {row.key}\n" for row in table.rows), end="")
        return 0
    wanted = selected(tables, options)
    in_guest = options.group in IN_GUEST
    install("bench", GUEST_PROGRAMS if in_guest else PROGRAMS)
    reactor = build("build", "--release", "--bin", "reactor")["reactor"]
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    known = facts(options)
    spent = ""
    if in_guest:
        rounds, failures, inside = guest.measure(group, reactor, wanted, options)
        costs, spent = group.more(tables, rounds, inside)
        known["guest"] = {**inside, "costs": costs}
    elif group:
        load = build("bench", "--no-run", "--bench", "iscsi")["iscsi"]
        rounds, failures = group.measure(reactor, load, wanted, options, measure)
    else:
        rounds, failures = here(reactor, wanted, options)
    print(f"{known['processor']}, Linux {known['kernel']}, commit {known['commit']}")
    print(f"{options.rounds} rounds of {options.time:g} s for each row")
    if known["others"] > QUIET:
        print(f"NOT QUIET: {known['others']:.1f} threads of others ran before the first round: it shows in the numbers")
    if in_guest:
        print(group.about(known["guest"]))
    for table in tables:
        print(report.text(table, rounds), end="")
    print(spent, end="")
    reached, missed = report.counted(tables, rounds)
    print(f"\n{reached} bars reached, {missed} missed, {len(failures)} runs failed")
    if options.json:
        options.json.write_text(json.dumps(report.as_json(tables, rounds, known), indent=1) + "\n")
    if options.svg:
        options.svg.mkdir(parents=True, exist_ok=True)
        for table in tables:
            picture = report.picture(table, rounds)
            if picture:
                (options.svg / f"{table.name}.svg").write_text(picture)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Failed as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(1)
