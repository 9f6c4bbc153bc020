"""What is measured: tables of rows, what each is held against, and the bar it is to reach."""

import dataclasses
import os
import time
import typing

import programs
from programs import ceiling, fio, local, nvme_alone, plain_loop, remote, ublk_alone

KIB = 1 << 10
# Work of the door: direction, bytes, depth.
WORK = [(op, 4 * KIB, depth) for op in ("read", "write") for depth in (1, 32, 128)]
WORK += [(op, 128 * KIB, 32) for op in ("read", "write")]
# What the plain loop's share is to be, by depth; large blocks have one of their own.
NULL_SHARE = {1: 0.8, 32: 1.0, 128: 0.8}
LARGE_SHARE = 0.85
# Nanoseconds of the NVMe driver for a read of 4 KiB at depth 128.
DRIVER_NS = 70
IDLE_CONNECTIONS = 999
CROWD_CONTROLLERS, CROWD_QUEUES = 8, 125
# What of `benches/` is run.
BENCHES = ("ceiling", "ublk", "nvme")


@dataclasses.dataclass
class Share:
    """Of the rate of another row, the ratio of each round. Without `least` it is not judged."""

    of: str
    least: float | None
    name: str
    # Whether the lowest and the highest ratio are shown beside the median.
    spread: bool = False

    def values(self, row, rounds):
        return [one[row.key]["rate"] / one[self.of]["rate"] for one in both(rounds, row.key, self.of)]

    def reached(self, value):
        return None if self.least is None else value >= self.least

    def text(self, values):
        least = "" if self.least is None else f" (bar {self.least:g})"
        spread = f", {min(values):.2f} .. {max(values):.2f}" if self.spread else ""
        return f"{median(values):.2f} of {self.name}{spread}{least}"


@dataclasses.dataclass
class AtMost:
    """Something that `number` finds in the sample of each round."""

    number: typing.Callable
    most: float
    name: str
    of: str = ""

    def values(self, row, rounds):
        return [self.number(one[row.key]) for one in rounds if row.key in one]

    def reached(self, value):
        return value <= self.most

    def text(self, values):
        return f"{median(values):.3g} {self.name} (bar {self.most:g})"


def ns_per_io(sample):
    return 1e9 / sample["rate"]


@dataclasses.dataclass
class More:
    """Nanoseconds per I/O beyond another row, for each of `count` layers."""

    of: str
    count: int
    most: float

    def values(self, row, rounds):
        pairs = [(one[row.key], one[self.of]) for one in both(rounds, row.key, self.of)]
        return [(ns_per_io(own) - ns_per_io(other)) / self.count for own, other in pairs]

    def reached(self, value):
        return value <= self.most

    def text(self, values):
        return f"{median(values):.1f} ns a layer (bar {self.most:g})"


@dataclasses.dataclass
class Row:
    """One line of a table."""

    key: str
    run: typing.Callable | None
    # What is to be reached: `values` of all rounds, whether their median is `reached`, and a `text` of them.
    bars: list = dataclasses.field(default_factory=list)
    # How the rate is shown.
    unit: str = "IOPS"
    # Copies of payload by this program, docs/architecture.md.
    copies: int | None = None
    # Instead of `run`, what the script of a guest is asked for.
    work: str | None = None


@dataclasses.dataclass
class Table:
    """Rows that are read together."""

    name: str
    title: str
    rows: list


def both(rounds, first, second):
    return [one for one in rounds if first in one and second in one]


def median(values):
    values = sorted(values)
    if not values:
        return None
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def size(block):
    return f"{block // KIB}k"


def loop_key(op, block, depth, random=False):
    return f"loop {op} {size(block)} qd{depth}" + (" random places" if random else "")


def machine():
    """The ceilings."""
    rows = []
    for block in (4 * KIB, 1024 * KIB):
        for random in (False, True):
            words = ("memcpy", "--block", block)
            key = f"memcpy {size(block)}" + (" random places" if random else " in cache")
            run = lambda w, words=words, random=random: ceiling(
                w, *words, "--core", w.load, "--random", w.ram if random else 0
            )
            rows.append(Row(key, run, unit="GB/s"))
    rows.append(Row("syscall", lambda w: ceiling(w, "syscall", "--core", w.load), unit="ns"))
    wake = lambda w: ceiling(w, "wake", "--sleeper", w.target, "--core", w.load)
    rows.append(Row("wake from sleep", wake, unit="ns"))
    for op, block, depth in WORK:
        for random in (False, True):
            run = lambda w, op=op, block=block, depth=depth, random=random: plain_loop(
                w, op, block, depth, w.ram if random else 0
            )
            rows.append(Row(loop_key(op, block, depth, random), run))
    crowd = CROWD_CONTROLLERS * CROWD_QUEUES
    rows.append(
        Row(f"loop read 4k {crowd} connections", lambda w: plain_loop(w, "read", 4 * KIB, 1, connections=crowd))
    )
    return Table("machine", "What this machine gives", rows)


def block_layer():
    """The block layer alone: no door, no network."""
    rows = []

    def add(key, bdev, depth, bars, copies=0):
        run = lambda w: local(w, bdev, "randread", "4k", depth)
        rows.append(Row(f"{key} qd{depth}", run, bars, copies=copies, unit="IOPS"))

    for depth in (32, 128):
        add("null, next poll", "poll0", depth, [AtMost(ns_per_io, 25, "ns per I/O")])
        add("null, in submit", "submit0", depth, [AtMost(ns_per_io, 15, "ns per I/O")])
        for count in (1, 2):
            than = f"null, in submit qd{depth}"
            add(f"null, {count} layer{'s'[: count - 1]}", f"layer{count}", depth, [More(than, count, 12)])
        add("RAM volume, 4k read", "ram0", depth, [Share("memcpy 4k random places", None, "memcpy")], copies=1)
    two = lambda w: local(w, "poll0", "randread", "4k", 128, f"{w.target},{w.load}")
    rows.append(Row("null, two reactors qd128", two, [Share("null, next poll qd128", 1.8, "one reactor")], copies=0))
    return Table("block", "The block layer by `reactor bench`, one core", rows)


def files():
    """File volumes against fio."""
    rows = []
    for direct in (False, True):
        for sparse in (False, True):
            for op in ("randread", "randwrite"):
                name = f"{'direct' if direct else 'cached'}-{'sparse' if sparse else 'full'}"
                cache, layout = "O_DIRECT" if direct else "page cache", "sparse" if sparse else "preallocated"
                what = f"{cache}, {layout}, {op} 4k qd32"

                def ours(w, name=name, op=op):
                    w.renew(name)
                    return w.written(name, local(w, name, op, "4k", 32))

                def theirs(w, name=name, op=op, direct=direct):
                    w.renew(name)
                    return w.written(name, fio(w, w.place / f"{name}.img", op, 32, direct))

                rows.append(Row(f"fio: {what}", theirs))
                rows.append(Row(what, ours, [Share(f"fio: {what}", 0.9, "fio")], copies=0))
    return Table("files", "File volumes by `reactor bench`, against fio's io_uring engine with fixed buffers", rows)


def ublk_door():
    """The ublk door with a stand-in for the kernel's side of a queue."""
    own, enters = lambda sample: sample["ns"], lambda sample: sample["enters"]
    rows = []
    for name, copies in (("RAM 4k read", 1), ("RAM 4k write", 1), ("flush", None)):
        bars = [AtMost(own, 80, "ns own"), AtMost(enters, 0.2, "enters")]
        run = lambda w, name=name: ublk_alone(w, name)
        rows.append(Row(f"ublk: {name} qd64", run, bars if copies else [], unit="ns", copies=copies))
    return Table("ublk", "The ublk door alone, its own time per I/O without copies and the kernel's side, one core", rows)


def nvme_driver():
    """The NVMe driver on a controller in software."""
    own = lambda sample: sample["ns"]
    rows = []
    for way in ("registers", "shadow doorbells"):
        for op in ("read", "write"):
            for depth in (1, 32, 128):
                name = f"4k {op}, depth {depth}, {way}"
                bars = [AtMost(own, DRIVER_NS, "ns own")] if (op, depth) == ("read", 128) else []
                run = lambda w, name=name: nvme_alone(w, name)
                rows.append(Row(f"NVMe: {name}", run, bars, unit="ns", copies=0))
    title = "The NVMe driver on a controller in software, its own time per I/O without load, block layer and controller, one core"
    return Table("nvme", title, rows)


def copies_of(op, block, ram):
    """Of payload by the target: docs/architecture.md, Copies."""
    if op == "read":
        return 0
    return (1 if block <= 8 * KIB else 0) + (1 if ram else 0)


def door(sqflow, spdk):
    """The NVMe/TCP door: the target on one core, the load on the other."""
    rows = []
    flow = ("--sqflow",) if sqflow else ()
    suffix = ", SQ flow control" if sqflow else ""
    for ram in (False, True):
        volume, nsid = ("RAM", 2) if ram else ("null", 1)
        for op, block, depth in WORK:
            key = f"{volume} {size(block)} {op} qd{depth}{suffix}"
            small = block == 4 * KIB
            least = NULL_SHARE[depth] if small and not ram else None
            if ram:
                least = 0.6 if small and depth == 128 else LARGE_SHARE if not small else None
            bars = [Share(loop_key(op, block, depth), least, "loop")]
            if ram:
                random = 0.9 if small and depth == 128 else None
                bars.append(Share(loop_key(op, block, depth, True), random, "random places"))
            if depth == 32 and small:
                bars.append(AtMost(lambda sample: sample["enters"], 0.2, "enters"))
            if spdk and sqflow:
                theirs = f"SPDK: {volume} {size(block)} {op} qd{depth}"
                run = lambda w, nsid=nsid, op=op, block=block, depth=depth: w.spdk.measure(
                    nsid, f"rand{op}", block, depth
                )
                rows.append(Row(theirs, run, [Share(bars[0].of, None, "loop")]))
                bars.append(Share(theirs, 1.2 if depth == 32 and small else 1.0, "SPDK"))
            run = lambda w, nsid=nsid, op=op, block=block, depth=depth: remote(
                w, w.server, nsid, f"rand{op}", block, depth, *flow
            )
            rows.append(Row(key, run, bars, copies=copies_of(op, block, ram)))
    if sqflow:
        return Table("sqflow", "The NVMe/TCP door, one core, with SQ flow control", rows)
    return Table("door", "The NVMe/TCP door, one core, without SQ flow control", rows)


def idle_cpu(world):
    """The share of a core that an adaptive server takes which eight connections do not use."""
    with world.adaptive as server:
        idle = programs.Crowd(server.port, 8)
        # It spins for a while after the last thing it did.
        time.sleep(0.2)
        before, start = server.cpu_ns(), time.monotonic_ns()
        time.sleep(max(world.time, 0.5))
        share = (server.cpu_ns() - before) / (time.monotonic_ns() - start)
        for one in idle.sockets:
            one.close()
    return {"rate": share * 100}


def crowds():
    """Idle and crowded servers."""
    rows = []
    for depth in (1, 32, 128):
        run = lambda w, depth=depth: remote(w, w.adaptive, 1, "randread", 4 * KIB, depth)
        same = Share(f"null 4k read qd{depth}", 0.97, "poll")
        rows.append(Row(f"adaptive, null 4k read qd{depth}", run, [same], copies=0))
    rows.append(Row("adaptive, idle", idle_cpu, [AtMost(lambda sample: sample["rate"], 1, "% of a core")], unit="%"))
    for depth in (1, 128):
        run = lambda w, depth=depth: remote(w, w.crowded, 1, "randread", 4 * KIB, depth)
        alone = Share(f"null 4k read qd{depth}", 0.95, "alone")
        rows.append(Row(f"beside {IDLE_CONNECTIONS} idle ones, null 4k read qd{depth}", run, [alone], copies=0))
    count = CROWD_CONTROLLERS * CROWD_QUEUES
    all_at_once = ("--controllers", CROWD_CONTROLLERS, "--queues", CROWD_QUEUES)
    run = lambda w: remote(w, w.server, 1, "randread", 4 * KIB, 1, *all_at_once)
    share = Share(f"loop read 4k {count} connections", 0.8, "loop")
    rows.append(Row(f"{count} connections, null 4k read, one in flight on each", run, [share], copies=0))
    return Table("crowds", "Idle, and many connections", rows)


def tables(spdk):
    """All of them, in the order in which a round runs them."""
    found = [machine(), block_layer(), files(), ublk_door(), nvme_driver(), door(False, spdk), door(True, spdk), crowds()]
    keys = [row.key for table in found for row in table.rows]
    assert len(set(keys)) == len(keys), "two rows of one name: a round would keep one of them"
    return found


class World:
    """Everything that rows need, started when a row first asks for it and there until the end."""

    VOLUMES = (("poll0", "null", 'complete = "poll"'), ("submit0", "null", 'complete = "submit"'))
    FILES = ("cached-full", "cached-sparse", "direct-full", "direct-sparse")

    def __init__(self, place, reactor, benches, seconds, ram, file_size):
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            raise programs.Failed("two cores are needed: one for what is measured, one for what measures it")
        self.target, self.load = cores[0], cores[1]
        self.place, self.reactor = place, reactor
        self.ceiling, self.ublk, self.nvme = (benches[name] for name in BENCHES)
        self.time, self.ram, self.file_size = seconds, ram, file_size
        self.volumes = place / "volumes.toml"
        self.started = {}
        self.configure()

    def configure(self):
        text = f'[reactor]\ncores = [{self.load}]\n[memory]\nsize = "256MiB"\nhugepages = "off"\n'
        for name, driver, more in self.VOLUMES:
            text += f'[[bdev]]\nname = "{name}"\ndriver = "{driver}"\nsize = "1TiB"\n{more}\n'
        text += f'[[bdev]]\nname = "ram0"\ndriver = "malloc"\nsize = {self.ram}\n'
        for name, base in (("layer1", "submit0"), ("layer2", "layer1")):
            text += f'[[bdev]]\nname = "{name}"\ndriver = "inject"\nbase = "{base}"\n'
        for name in self.FILES:
            direct = str(name.startswith("direct")).lower()
            text += f'[[bdev]]\nname = "{name}"\ndriver = "file"\npath = "{name}.img"\nsize = {self.file_size}\n'
            text += f"direct = {direct}\n"
        self.volumes.write_text(text)

    def renew(self, name):
        """A file as its row wants it: a sparse one anew each time, a full one written once; nothing of it is left to be
        written to the medium, and what is to be in the page cache is there."""
        path = self.place / f"{name}.img"
        if name.endswith("sparse"):
            with open(path, "wb") as file:
                file.truncate(self.file_size)
        elif name not in self.started:
            with open(path, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, self.file_size)
                for _ in range(self.file_size >> 20):
                    file.write(b"\xa5" * (1 << 20))
                os.fsync(file.fileno())
            self.started[name] = path
        else:
            with open(path, "rb") as file:
                while name.startswith("cached") and file.read(1 << 20):
                    pass

    def written(self, name, sample):
        """Has the kernel write what a row left in the page cache now, not some seconds later beside another row."""
        with open(self.place / f"{name}.img", "rb+") as file:
            os.fsync(file.fileno())
        return sample

    def once(self, name, make):
        if name not in self.started:
            self.started[name] = make()
            self.started[name].__exit__()
        return self.started[name]

    @property
    def server(self):
        """A polling server whose RAM volume is full."""
        return self.once("server", self.filled)

    def filled(self):
        server = programs.Server(self, "server", "poll", self.ram)
        seconds = max(1, self.ram / (1 << 30))
        url = f"nvme-tcp://127.0.0.1:{server.port}/{programs.NQN}?nsid=2"
        words = ["--connect", url, "--rw", "write", "--bs", "128k", "--qd", "32", "--time", str(seconds)]
        programs.run([self.reactor, "bench", *words])
        return server

    @property
    def adaptive(self):
        return self.once("adaptive", lambda: programs.Server(self, "adaptive", "adaptive", 1 << 20))

    @property
    def crowded(self):
        """A polling server with idle connections."""

        def make():
            server = programs.Server(self, "crowded", "poll", 1 << 20)
            self.started["crowd"] = programs.Crowd(server.port, IDLE_CONNECTIONS)
            return server

        return self.once("crowded", make)

    @property
    def spdk(self):
        from spdk import Spdk

        return self.once("spdk", lambda: Spdk(self, self.ram))
