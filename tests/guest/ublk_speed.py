#!/usr/bin/python3
"""Speed of local block devices, one beside the other in one guest, for `scripts/bench guest-ublk`.

  ublk_speed.py --rounds=N --seconds=S [--runs=CONTENDER:read|write:JOBS,...]

Prints lines of JSON behind a word: `facts` of the guest once, then a `sample` of each run, or `failed` for one that
failed. In each round every work is done by every contender in turn, in another order each time.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import ublk_kernel
from disk import MIB, Disk, pattern
from harness import Failure, check, note, run, wait_until
from speed import fio_said, option, rotated, say
from target import Config, Reactor, binary

PLACE = pathlib.Path("/mnt/speed")
UBLKSRV = pathlib.Path("/test/bin/ublk.loop")
SIZE_MIB = 128
DEPTH = 64
WORK = [(op, jobs) for op in ("read", "write") for jobs in (1, 4)]
# That of scripts/fio/random.fio.
RAMP_S = 1
# What a run lasts beyond what is measured of it: to look at all threads takes time under emulation.
LOOK_S = 1.5
# How long a run may take to begin, and to say how it went, under emulation.
FIO_SLACK_S = 60
COUNTERS = re.compile(r"reactor \d+: (busy_turns=.* stale=\d+)")


def file_on_tmpfs(name):
    """A file all of whose pages are there."""
    path = PLACE / name
    data = pattern(MIB, 5)
    with open(path, "wb") as file:
        for _ in range(SIZE_MIB):
            file.write(data)
    return path


def reads_without_waiting(path):
    """Whether a read that must not wait is possible there: without it io_uring hands each one to a thread."""
    with open(path, "rb") as file:
        try:
            return os.preadv(file.fileno(), [bytearray(4096)], 0, os.RWF_NOWAIT) == 4096
        except OSError:
            return False


def fill(disk):
    data = pattern(MIB, 6)
    for number in range(SIZE_MIB):
        disk.write(number * MIB, data)


class Contender:
    """A disk, and the process that serves it where that is not the kernel itself."""

    def __init__(self, name, disk, server=None, counters=None):
        self.name, self.disk, self.server, self.counters = name, disk, server, counters

    def facts(self):
        names = ("queue/scheduler", "queue/nr_requests", "queue/logical_block_size", "queue/write_cache", "loop/dio")
        found = {}
        for name in names:
            try:
                found[name] = self.disk.attribute(name)
            except FileNotFoundError:
                continue
        found["queues"] = len(list(pathlib.Path(f"/sys/block/{self.disk.name}/mq").iterdir()))
        return found

    def ios(self):
        """Reads and writes that the disk has completed."""
        words = self.disk.attribute("stat").split()
        return int(words[0]) + int(words[4])


def loop(name, *options):
    path = run("losetup", "-f", "--show", *options, file_on_tmpfs(f"{name}.img")).output.strip()
    return Contender(name, Disk(path.removeprefix("/dev/")))


def loops():
    """The kernel's loop device as losetup makes it, and, where tmpfs can, with direct I/O below it."""
    found = [loop("loop")]
    try:
        found.append(loop("loop-direct", "--direct-io=on"))
    except Failure as error:
        note(f"losetup --direct-io=on: {error}")
    return found


def reactors():
    """One reactor on one core, with a file on the same tmpfs, a RAM volume, and one that does nothing."""
    directory = pathlib.Path("/tmp/target")
    directory.mkdir()
    program = Reactor(binary(), directory)
    size = SIZE_MIB * MIB
    bdevs = [
        {"name": "file", "driver": "file", "path": str(file_on_tmpfs("reactor.img")), "size": size},
        {"name": "ram", "driver": "malloc", "size": size},
        {"name": "null", "driver": "null", "size": size},
    ]
    program.start(Config(bdevs, ublk=[{"bdev": bdev["name"]} for bdev in bdevs], cores=[0]))
    for line in program.logged():
        note(line)

    def counters():
        """What reactor has counted, asked for by a signal."""
        before = len(COUNTERS.findall("\n".join(program.logged())))
        program.process.send_signal(signal.SIGUSR1)

        def told():
            lines = COUNTERS.findall("\n".join(program.logged()))
            return lines[-1] if len(lines) > before else None

        line = wait_until("counters after SIGUSR1", told)
        return {name: int(number) for name, number in (word.split("=") for word in line.split())}

    paths = [line for line in program.printed if line.startswith("/dev/ublkb")]
    disks = [Disk(path.removeprefix("/dev/")) for path in paths]
    fill(disks[1])
    pairs = zip(bdevs, disks, strict=True)
    return program, [Contender(bdev["name"], disk, program.process.pid, counters) for bdev, disk in pairs]


def ublksrv(name, *options):
    """ublksrv's loop target, one queue as it makes by default."""
    path = file_on_tmpfs(f"{name}.img")
    before = ublk_kernel.devices()
    with open(f"/tmp/{name}.log", "wb") as log:
        words = [UBLKSRV, "add", "-t", "loop", "-f", path, *options]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def appeared():
        code = process.poll()
        check(not code, f"ublksrv: exit {code}: {pathlib.Path(log.name).read_text(errors='replace')[-400:]}")
        return [number for number in ublk_kernel.devices() if number not in before]

    (number,) = wait_until("the device of ublksrv", appeared)
    disk = Disk(f"ublkb{number}")
    return Contender(name, disk, ublk_kernel.info(number).server)


def tasks_of(pid, kind):
    """The threads of a process; those that io_uring keeps for it apart."""
    for path in pathlib.Path(f"/proc/{pid}/task").iterdir():
        yield (kind if not (path / "comm").read_text().startswith("iou-") else f"{kind}'s io_uring workers"), path


# Process -> whether it is a worker of the kernel, as far as it has been looked at: a look is to be cheap.
WORKERS = {}


def kernel_workers():
    """The workers of the kernel, by which loop works."""
    for name in os.listdir("/proc"):
        if name.isdigit() and name not in WORKERS:
            try:
                WORKERS[name] = pathlib.Path(f"/proc/{name}/comm").read_text().startswith("kworker/")
            except (FileNotFoundError, ProcessLookupError):
                continue
        if WORKERS.get(name):
            yield "kernel workers", pathlib.Path(f"/proc/{name}")


def on_cpu(tasks):
    """Nanoseconds that each of some threads has been on a processor, and what it is."""
    found = {}
    for kind, path in tasks:
        try:
            found[path] = (kind, int((path / "schedstat").read_text().split()[0]))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def user_and_system(pid):
    """Ticks that a process has been on processors, in its own code and in the kernel's."""
    words = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(words[11]), int(words[12])


def processors():
    """Of each processor the ticks of user, nice, system, idle, iowait, irq, softirq."""
    lines = pathlib.Path("/proc/stat").read_text().splitlines()
    return [[int(word) for word in line.split()[1:8]] for line in lines if re.match(r"cpu\d", line)]


class Look:
    """What has been spent and done until now."""

    def __init__(self, contender, fio):
        tasks = [*tasks_of(fio, "fio"), *kernel_workers()]
        if contender.server:
            tasks += tasks_of(contender.server, "server")
        self.server = user_and_system(contender.server) if contender.server else (0, 0)
        self.counters = contender.counters() if contender.counters else {}
        self.cpu, self.processors = on_cpu(tasks), processors()
        self.ns, self.ios = time.monotonic_ns(), contender.ios()

    def threads(self, kind):
        return {path for path, (what, _) in self.cpu.items() if what == kind}

    def since(self, before):
        """All that was between two looks."""
        ios = self.ios - before.ios
        cpu_ns = {}
        for path, (kind, ns) in self.cpu.items():
            # One that has come since began with nothing.
            cpu_ns[kind] = cpu_ns.get(kind, 0) + ns - before.cpu.get(path, (kind, 0))[1]
        tick_ns = 1e9 / os.sysconf("SC_CLK_TCK")
        ticks = [
            [now - then for now, then in zip(*one, strict=True)]
            for one in zip(self.processors, before.processors, strict=True)
        ]
        found = {
            "ns": self.ns - before.ns,
            "ios": ios,
            "cpu_ns": cpu_ns,
            "busy": [round(1 - (one[3] + one[4]) / max(sum(one), 1), 3) for one in ticks],
            "interrupt": [round((one[5] + one[6]) / max(sum(one), 1), 3) for one in ticks],
            "guest_ns": sum(sum(one) - one[3] - one[4] for one in ticks) * tick_ns,
        }
        user, system = (now - then for now, then in zip(self.server, before.server, strict=True))
        if user + system:
            found["server_user"] = round(user / (user + system), 3)
        if self.counters:
            found["counters"] = {name: number - before.counters[name] for name, number in self.counters.items()}
        return found


def during(contender, fio, seconds):
    """What is spent in so many seconds of a run; None if it was over, or a thread of it, before that was seen."""
    try:
        before = Look(contender, fio.pid)
        time.sleep(seconds)
        after = Look(contender, fio.pid)
    except (FileNotFoundError, ProcessLookupError):
        note(f"{contender.name}: the run was over before its end was looked at")
        return None
    if after.threads("fio") != before.threads("fio") or fio.poll() is not None:
        note(f"{contender.name}: threads of the run were over before its end was looked at")
        return None
    return after.since(before)


def measure(contender, op, jobs, seconds):
    """One run of scripts/fio/random.fio; in the middle of it, what it costs, if there was the time to look at that."""
    lasts = f"{(seconds + LOOK_S) * 1000:.0f}ms"
    names = {"DEVICE": contender.disk.path, "RW": f"rand{op}", "DEPTH": DEPTH, "JOBS": jobs, "SECONDS": lasts}
    environment = {**os.environ, **{name: str(value) for name, value in names.items()}}
    words = ["fio", "--output-format=json", "/test/fio/random.fio"]
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        begun = contender.ios()
        streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": errors}
        fio = subprocess.Popen(words, env=environment, **streams)

        def said():
            errors.seek(0)
            return errors.read().decode(errors="replace")[-400:]

        def goes():
            check(fio.poll() is None, f"fio ended with {fio.returncode}: {said()}")
            return contender.ios() > begun + 2 * DEPTH

        try:
            wait_until(f"I/O of {contender.name}", goes, FIO_SLACK_S)
            time.sleep(RAMP_S)
            spent = during(contender, fio, seconds)
            code = fio.wait(RAMP_S + seconds + FIO_SLACK_S)
        finally:
            if fio.poll() is None:
                fio.kill()
        check(code == 0, f"fio: exit {code}: {said()}")
        output.seek(0)
        return {**fio_said(output.read().decode(), op), "spent": spent}


def main():
    # Looks come when they are to come, whatever the load; what is started here has the priority that all programs have.
    os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    rounds, seconds = int(option("rounds", 3)), float(option("seconds", 2))
    PLACE.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "-o", "size=80%", "tmpfs", PLACE)
    for module in ("ublk_drv", "loop"):
        run("modprobe", module)
    program, served = reactors()
    contenders = [*loops(), *served]
    if UBLKSRV.exists():
        contenders += [ublksrv("ublksrv"), ublksrv("ublksrv-zero-copy", "-z")]
    say(
        "facts",
        {
            "kernel": os.uname().release,
            "features": hex(ublk_kernel.features()),
            "processors": os.cpu_count(),
            "nowait": reads_without_waiting(PLACE / "reactor.img"),
            "fio": run("fio", "--version").output.strip(),
            "contenders": {one.name: one.facts() for one in contenders},
        },
    )
    every = [f"{one.name}:{op}:{jobs}" for op, jobs in WORK for one in contenders]
    wanted = option("runs", ",".join(every)).split(",")
    failed = 0
    for number in range(rounds):
        started, done = time.monotonic(), 0
        for op, jobs in WORK:
            for one in rotated(contenders, number):
                work = f"{one.name}:{op}:{jobs}"
                if work not in wanted:
                    continue
                try:
                    say("sample", {"round": number, "work": work, **measure(one, op, jobs, seconds)})
                    done += 1
                except Exception as error:
                    failed += 1
                    say("failed", {"round": number, "work": work, "why": f"{type(error).__name__}: {error}"})
        print(f"round {number + 1} of {rounds}: {done} rows, {time.monotonic() - started:.0f} s", flush=True)
    check(program.alive(), "reactor has ended")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
