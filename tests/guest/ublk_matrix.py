"""Queues, depths, blocks, modes, devices, reactors and kernels in combination: each against a model of the disk in memory.

By default every value of each dimension meets every value of each other one at least once, the guests of all kernels taken
together; `--full` is the product, in each of them, for one number of reactors after the other.
"""

import fcntl
import itertools
import mmap
import os
import pathlib
import random
import struct
import threading

from disk import MIB, same
from harness import check, note
from jobs import fio_on_each
from ublk_kernel import ZERO_COPY
from ublk_world import CPUS, FULL, KERNEL, SEED, WORLD, file, file_in_memory, inject, malloc, suite, ublk

SIZE = 16 * MIB
STEPS = 40
IO_MAX = MIB

DIMENSIONS = {
    "queues": [1, 2, 4],
    "depth": [1, 7, 128],
    "block": [512, 4096],
    "mode": ["auto", "user-copy", "copy", "zero-copy"],
    "device": ["malloc", "memory", "direct", "cached", "inject"],
    "reactors": [1, 2, 4],
    "kernel": ["6.12", "newest"],
}

IN_MEMORY = ("malloc", "memory")

# linux/fs.h
BLKDISCARD = 0x1277
BLKZEROOUT = 0x127F


def all_pairs(dimensions, seed):
    """Few combinations in which every pair of values of two dimensions is found; the same ones for the same seed."""
    chance = random.Random(seed)
    rows = every_combination(dimensions)
    chance.shuffle(rows)

    def pairs(row):
        return set(itertools.combinations(row.items(), 2))

    missing = set().union(*map(pairs, rows))
    chosen = []
    while missing:
        best = max(rows, key=lambda row: len(pairs(row) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


def every_combination(dimensions):
    rows = [dict(zip(dimensions, values, strict=True)) for values in itertools.product(*dimensions.values())]
    return [row for row in rows if possible(row)]


def full_matrix():
    """The product of all but the reactors, whose numbers take turns."""
    others = {name: values for name, values in DIMENSIONS.items() if name != "reactors"}
    reactors = itertools.cycle(DIMENSIONS["reactors"])
    return [{**row, "reactors": number} for row, number in zip(every_combination(others), reactors, strict=False)]


def possible(row):
    """Zero copy of memory is not, nor in an old kernel: reactor refuses it, and other cases look how."""
    return row["mode"] != "zero-copy" or row["device"] not in IN_MEMORY and row["kernel"] == "newest"


def name_of(row):
    return "q{queues}_d{depth}_b{block}_{mode}_{device}_r{reactors}".format(**row).replace("-", "_")


class Walker(threading.Thread):
    """Reads, writes, discards and zeroes at random places of its part of a disk, and does the same to the model.

    The places crowd round the multiples of powers of two, where requests are split and buffers end. Memory is given in
    up to four pieces that begin anywhere in a page.
    """

    def __init__(self, disk, model, part, cpu, block, seed):
        super().__init__(daemon=True)
        self.disk = disk
        self.model = model
        self.first, self.end = part
        self.cpu = cpu
        self.block = block
        self.align = int(disk.attribute("queue/dma_alignment")) + 1
        self.chance = random.Random(seed)
        self.pool = self.chance.randbytes(2 * IO_MAX)
        self.buffer = memoryview(mmap.mmap(-1, IO_MAX + 8 * mmap.PAGESIZE))
        self.error = None

    def run(self):
        try:
            os.sched_setaffinity(0, {self.cpu})
            descriptor = os.open(self.disk.path, os.O_RDWR | os.O_DIRECT)
            try:
                for _ in range(STEPS):
                    offset, length = self.place()
                    step = self.chance.choices([self.write, self.read, self.discard, self.zero], [60, 28, 6, 6])[0]
                    step(descriptor, offset, length)
            finally:
                os.close(descriptor)
        except Exception as error:
            self.error = f"on CPU {self.cpu}: {type(error).__name__}: {error}"

    def place(self):
        """Offset and length of the next I/O."""
        longest = min(IO_MAX, self.end - self.first) // self.block
        length = self.block * min(longest, int(2 ** self.chance.uniform(0, longest.bit_length())))
        unit = 1 << self.chance.randrange(12, 21)
        boundary = self.chance.randrange(self.first // unit, self.end // unit + 1) * unit
        offset = boundary - self.block * self.chance.randrange(0, length // self.block + 1)
        return min(max(offset, self.first), self.end - length), length

    def pieces(self, length):
        """Views of the buffer, together of `length` bytes."""
        cuts = [0, length]
        if length > self.block:
            blocks = length // self.block
            cuts += [self.block * self.chance.randrange(1, blocks) for _ in range(self.chance.randrange(4))]
        cuts = sorted(set(cuts))
        views, at = [], 0
        for one, two in itertools.pairwise(cuts):
            at += self.align * self.chance.randrange(0, mmap.PAGESIZE // self.align)
            views.append(self.buffer[at : at + two - one])
            at += two - one
        return views

    def write(self, descriptor, offset, length):
        start = self.chance.randrange(IO_MAX)
        data = self.pool[start : start + length]
        views, at = self.pieces(length), 0
        for view in views:
            view[:] = data[at : at + len(view)]
            at += len(view)
        wrote = os.pwritev(descriptor, views, offset)
        check(wrote == length, f"wrote {wrote} of {length} bytes at {offset}")
        self.model[offset : offset + length] = data

    def read(self, descriptor, offset, length):
        views = self.pieces(length)
        got = os.preadv(descriptor, views, offset)
        check(got == length, f"read {got} of {length} bytes at {offset}")
        same(b"".join(views), self.model[offset : offset + length], offset, f"{length} bytes at {offset}")

    def discard(self, descriptor, offset, length):
        fcntl.ioctl(descriptor, BLKDISCARD, struct.pack("QQ", offset, length))
        self.model[offset : offset + length] = bytes(length)

    def zero(self, descriptor, offset, length):
        fcntl.ioctl(descriptor, BLKZEROOUT, struct.pack("QQ", offset, length))
        self.model[offset : offset + length] = bytes(length)


def walk(disk, block, seed):
    """Zeroes a disk and its model, lets a walker on each processor loose on them, and compares all of both."""
    model = bytearray(SIZE)
    for offset in range(0, SIZE, IO_MAX):
        disk.write(offset, model[offset : offset + IO_MAX])
    chance = random.Random(seed)
    # Parts that begin and end at any block: the requests of two walkers meet within a page.
    inner = sorted(chance.sample(range(1, SIZE // block), len(CPUS) - 1))
    bounds = [0, *(block * cut for cut in inner), SIZE]
    parts = itertools.pairwise(bounds)
    walkers = [Walker(disk, model, part, cpu, block, seed + cpu + 1) for part, cpu in zip(parts, CPUS, strict=True)]
    for walker in walkers:
        walker.start()
    for walker in walkers:
        walker.join()
    check(not any(walker.error for walker in walkers), "; ".join(walker.error for walker in walkers if walker.error))
    for offset in range(0, SIZE, IO_MAX):
        disk.expect(offset, bytes(model[offset : offset + IO_MAX]), "at the end")
    return model


def volumes(row):
    """The block devices of a combination; the last is exported."""
    more = {"block_size": row["block"]}
    if row["device"] == "inject":
        # Every seventh I/O is answered later than those after it.
        rule = {"op": "any", "every": 7, "action": "delay", "delay_ms": 2}
        base = file("base", **more) if row["mode"] == "zero-copy" else malloc("base", **more)
        return [base, inject("volume", "base", rule)]
    if row["device"] == "malloc":
        return [malloc("volume", **more)]
    if row["device"] == "memory":
        return [file_in_memory("volume", **more)]
    return [file("volume", direct=row["device"] == "direct", **more)]


def combination(row):
    exports = [ublk("volume", queues=row["queues"], depth=row["depth"], mode=row["mode"])]
    (disk,) = WORLD.serve(volumes(row), exports, cores=CPUS[: row["reactors"]])
    seen = int(disk.attribute("queue/logical_block_size"))
    check(seen == row["block"], f"logical blocks of {seen} bytes")
    queues = len(list(pathlib.Path(f"/sys/block/{disk.name}/mq").iterdir()))
    check(queues == row["queues"], f"{queues} queues")
    sizes = f"{row['block']}-256k"
    fio_on_each(CPUS, disk, WORLD.directory, SIZE="1m", SIZES=sizes, ENGINE="libaio")
    model = walk(disk, row["block"], SEED)
    WORLD.stop()
    path = WORLD.config.bdevs[0].get("path")
    if path:
        same(pathlib.Path(path).read_bytes(), bytes(model), 0, "the file after the end of reactor")


ROWS = full_matrix() if FULL else all_pairs(DIMENSIONS, SEED)
suite.variants(**{name_of(row): (row,) for row in ROWS if row["kernel"] == KERNEL})(combination)


@suite.case
def all_pairs_has_all_pairs():
    """The design itself: no pair of values is missing, and it is small."""
    check(bool(WORLD.features & ZERO_COPY) == (KERNEL == "newest"), "zero copy is of the newest kernel alone")
    rows = all_pairs(DIMENSIONS, SEED)
    impossible = {("zero-copy", word) for word in (*IN_MEMORY, "6.12")}
    for one, two in itertools.combinations(DIMENSIONS, 2):
        for pair in itertools.product(DIMENSIONS[one], DIMENSIONS[two]):
            met = any((row[one], row[two]) == pair for row in rows)
            check(met or pair in impossible, f"no {one} {pair[0]} with {two} {pair[1]}")
    here = sum(row["kernel"] == KERNEL for row in rows)
    note(f"{len(rows)} combinations with seed {SEED}, {here} of them here")
