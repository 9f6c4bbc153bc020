"""The iSCSI door beside tgtd: `scripts/bench iscsi`.

Both serve RAM on the target's core, the load runs on the other one: libiscsi's iscsi-perf for reads and, since that only reads,
iscsi_writes.c over the same library for writes; and the lean load of benches/iscsi.rs, which shows what a target takes per I/O
when the load is not the limit.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile

from machine import TARGET, install
from programs import Failed, Process, Server, run
from rows import KIB, AtMost, Row, Share, Table, size

ROUNDS, QUICK_ROUNDS = 7, 1
SECONDS, QUICK_SECONDS = 2, 1
IQN = "iqn.2026-11.io.reactor:bench"
RAM = 256 << 20
# Busy time is told in the ticks of a clock of this rate, whatever the machine's is.
TICKS_PER_NS = 2.6
LIBISCSI = "libiscsi"
# The same with what a round of the library sends held together (TCP_CORK): see iscsi_writes.c.
CORKED = "libiscsi, corked"
# Work -> the least share of tgtd's rate: what SPDK reaches is 3.5, 1.9, 3.2, 5.6 and 4.0.
WORK = {
    ("randread", 4 * KIB, 1, LIBISCSI): 3.4,
    ("randwrite", 4 * KIB, 1, LIBISCSI): None,
    ("randread", 4 * KIB, 32, LIBISCSI): 3.6,
    # Here the load is at its end with any target that is twice as fast as tgtd.
    ("randwrite", 4 * KIB, 32, LIBISCSI): 2.5,
    ("randwrite", 4 * KIB, 32, CORKED): 2.5,
    ("read", 128 * KIB, 32, LIBISCSI): 5.8,
    ("write", 128 * KIB, 32, LIBISCSI): 4.5,
}
# Ticks of the target for an I/O at depth 32.
TICKS = {"randread": 6000, "randwrite": 8000}
PROGRAMS = {
    "iscsi-perf": "libiscsi-bin",
    "/usr/include/iscsi/iscsi.h": "libiscsi-dev",
    "tgtd": "tgt",
    "taskset": "util-linux",
    "cc": "build-essential",
}
LEAN = "lean load"


def key_of(name, op, block, depth, load):
    return f"{name}, {op} {size(block)} qd{depth}, {load}"


def tables():
    """Against tgtd with a load that is the same for both; with one that is not the limit."""
    against = []
    for what, least in WORK.items():
        for name in ("tgtd", "reactor"):
            bars = [Share(key_of("tgtd", *what), least, "tgtd's", True)] if name == "reactor" else []
            work = lambda w, name=name, what=what: w.libiscsi(name, *what)
            against.append(Row(key_of(name, *what), work, bars))
    lean = []
    for op, most in TICKS.items():
        for depth in (1, 32, 128):
            for name in ("tgtd", "reactor"):
                bars = []
                if name == "reactor":
                    bars = [Share(key_of("tgtd", op, 4 * KIB, depth, LEAN), None, "tgtd's", True)]
                    if depth == 32:
                        ticks = lambda sample: sample["busy_ns"] * TICKS_PER_NS
                        bars.append(AtMost(ticks, most, "ticks of 2.6 GHz busy"))
                work = lambda w, name=name, op=op, depth=depth: w.lean(name, op, 4 * KIB, depth)
                lean.append(Row(key_of(name, op, 4 * KIB, depth, LEAN), work, bars))
    for op in ("read", "write"):
        for name in ("tgtd", "reactor"):
            bars = [Share(key_of("tgtd", op, 128 * KIB, 32, LEAN), None, "tgtd's", True)] if name == "reactor" else []
            work = lambda w, name=name, op=op: w.lean(name, op, 128 * KIB, 32)
            lean.append(Row(key_of(name, op, 128 * KIB, 32, LEAN), work, bars))
    return [
        Table("iscsi", "The iSCSI door, one core, RAM, against tgtd, with a libiscsi load on the other core", against),
        Table("iscsi-lean", "The same with a lean load: its busy time per I/O; tgtd's is its processor time", lean),
    ]


class Reactor(Server):
    """`reactor --config` on one core, with a RAM volume as LUN 0."""

    LUN = 0

    def __init__(self, world):
        config = world.place / "reactor.toml"
        config.write_text(f"""
[reactor]
cores = [{world.target}]
idle = "poll"
[memory]
hugepages = "off"
[[bdev]]
name = "ram0"
driver = "malloc"
size = {RAM}
[iscsi]
listen = ["127.0.0.1:0"]
[[iscsi.target]]
iqn = "{IQN}"
luns = [{{ bdev = "ram0" }}]
""")
        Process.__init__(self, [world.reactor, "--config", config], world.place / "reactor.log")
        text = self.wait_for("`reactor: ready`", self.ready)
        self.port = int(re.search(r"^iscsiadm .*-p \S*:(\d+)", text, re.MULTILINE).group(1))

    def busy_ns(self):
        return self.counters()["busy_ns"]


class Tgtd(Process):
    """tgtd on the same core, with a file in RAM as LUN 1: its LUN 0 is a controller."""

    LUN = 1
    CONTROL = 4711

    def __init__(self, world):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # Where the file system is RAM, as the other's volume is.
        self.image = tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="bench-tgtd-")
        self.image.truncate(RAM)
        # A name of its own for the control socket, so that a tgtd of the machine is not in the way.
        self.environment = {**os.environ, "TGT_IPC_SOCKET": str(world.place / "tgtd.ipc")}
        words = ["tgtd", "-f", "-C", str(Tgtd.CONTROL), "--iscsi", f"portal=127.0.0.1:{self.port}"]
        set_up = ["env", f"TGT_IPC_SOCKET={self.environment['TGT_IPC_SOCKET']}", "taskset", "-c", str(world.target)]
        super().__init__([*set_up, *words], world.place / "tgtd.log")
        self.wait_for("answer of tgtd", self.answers)
        self.control("--op", "new", "--mode", "target", "--tid", "1", "-T", IQN)
        self.control("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", self.image.name)
        self.control("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL")

    def control(self, *words):
        command = ["tgtadm", "-C", str(Tgtd.CONTROL), "--lld", "iscsi", *words]
        streams = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 20}
        result = subprocess.run(command, env=self.environment, check=False, **streams)
        if result.returncode:
            raise Failed(f"{' '.join(command)}: {result.stderr.strip()}")
        return True

    def answers(self):
        try:
            return self.control("--op", "show", "--mode", "target")
        except Failed:
            return None

    def end(self):
        # It waits for its logins to end when it is asked to, and has nothing to lose.
        self.process.send_signal(signal.SIGKILL)
        super().end()
        self.image.close()

    def busy_ns(self):
        return self.cpu_ns()


def writes_load():
    """The load that writes, built."""
    install("bench", PROGRAMS)
    program = TARGET / "iscsi_writes"
    source = pathlib.Path(__file__).parent / "iscsi_writes.c"
    run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", program, source, "-liscsi"])
    return program


class World:
    """The two targets and the loads."""

    def __init__(self, place, reactor, load, seconds):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise Failed("two cores are needed: one for the target, one for the load")
        self.target, self.core = cores[0], cores[1]
        self.place, self.reactor, self.load, self.time = place, reactor, load, seconds
        self.writes_load = writes_load()
        self.started = {}

    def of(self, name):
        """A target that runs, its volume written."""
        if name not in self.started:
            self.started[name] = {"reactor": Reactor, "tgtd": Tgtd}[name](self)
            self.drive(self.started[name], "write", 128 * KIB, 32, 2)
            self.started[name].__exit__()
        return self.started[name]

    def url(self, server):
        return f"iscsi://127.0.0.1:{server.port}/{IQN}/{server.LUN}"

    def pinned(self, *words):
        return ["taskset", "-c", str(self.core), *map(str, words)]

    def libiscsi(self, name, op, block, depth, load):
        """One run of a load that both targets can be driven by."""
        with self.of(name) as server:
            if op.endswith("read"):
                return {"rate": self.perf(server, op, block, depth)}
            return {"rate": self.writes(server, op, block, depth, load)}

    def perf(self, server, op, block, depth):
        """Reads by iscsi-perf, whole seconds; it shows its mean when it ends."""
        words = ["-m", depth, "-b", block // 512, "-t", max(1, round(self.time)), *(["-r"] if "rand" in op else [])]
        text = run(self.pinned("iscsi-perf", *words, self.url(server)))
        found = re.findall(r"iops average (\d+)", text)
        if not found:
            raise Failed(f"iscsi-perf told no rate: {text[-500:]}")
        return int(found[-1])

    def writes(self, server, op, block, depth, load):
        """Writes by the load of this directory."""
        order = "random" if "rand" in op else "sequential"
        held = "together" if load == CORKED else "apart"
        return float(run(self.pinned(self.writes_load, self.url(server), block, depth, self.time, order, held)))

    def drive(self, server, op, block, depth, seconds):
        words = ["--address", f"127.0.0.1:{server.port}", "--iqn", IQN, "--lun", server.LUN, "--rw", op]
        words += ["--bs", block, "--qd", depth, "--time", seconds]
        return json.loads(run(self.pinned(self.load, *words)))

    def lean(self, name, op, block, depth):
        """One run of the lean load; busy time is the target's."""
        with self.of(name) as server:
            before = server.busy_ns()
            found = self.drive(server, op, block, depth, self.time)
            busy = server.busy_ns() - before
        latency = {key: found["latency_us"][key] for key in ("p50", "p99", "p99_9")}
        return {"rate": found["iops"], "latency_us": latency, "busy_ns": busy / max(found["ios"], 1)}


def measure(reactor, load, wanted, options, rounds_of):
    """All rounds on this machine."""
    with tempfile.TemporaryDirectory(dir=TARGET, prefix="bench-") as place:
        try:
            return rounds_of(World(pathlib.Path(place), reactor, load, options.time), wanted, options)
        finally:
            Process.end_all()
