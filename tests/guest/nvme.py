#!/usr/bin/python3
"""NVMe disks driven by the reactor: served by NVMe/TCP to the same guest, then given back to the kernel.

The kernel must read what was written.

  nvme.py [--after=NAME] [WORD...]     the cases whose names contain a WORD, or all
"""

import importlib
import json
import pathlib
import re
import subprocess
import sys
import threading

from disk import MIB, pattern
from harness import check, note, run, stray_lines, wait_until
from host import nvme
from jobs import fio, fio_at_once
from nvme_world import (
    VFIO,
    WORLD,
    attach,
    config,
    disconnect,
    functions,
    refusal,
    said_in_log,
    spent,
    suite,
    volume,
    written,
)
from target import binary

# Whose cases run after those here.
PARTS = ["nvme_faults", "nvme_modes", "nvme_commands", "nvme_events", "nvme_zns", "nvme_verify"]
PROBE = "/test/bin/nvme_probe"


@suite.variants(
    blocks_of_512_one_reactor=("A1", 1, 512, [0]),
    blocks_of_512_two_reactors=("A1", 1, 512, [0, 1]),
    blocks_of_4096_one_reactor=("A2", 1, 4096, [0]),
    blocks_of_4096_two_reactors=("A2", 1, 4096, [0, 1]),
    without_shadow_doorbells=("D", 1, 512, [0, 1]),
    beside_a_controller_memory_buffer=("C", 1, 512, [0, 1]),
    queues_in_the_controller_memory_buffer=("C", 1, 512, [0, 1], {}, {"cmb": True}),
    spinning=("A1", 1, 512, [0, 1], {"idle": "poll"}),
)
def verify(serial, nsid, block_size, cores, reactor=None, keys=None):
    """fio's checksums by way of the reactor; then the kernel reads the same bytes from the disk."""
    keys = keys or {}
    function = WORLD.take(serial)
    WORLD.target.start(config(volume("fast", function, **keys), cores=cores, **reactor or {}))
    line = said_in_log('volume "fast": namespace')[0]
    note(line)
    check(f"namespace {nsid} of {function.address} (serial {serial}, " in line and " by VFIO, " in line, line)
    check(f", {len(cores)} queue pairs of depth 256" in line, line)
    in_buffer = f"{len(cores)} of them with submissions in the controller memory buffer"
    check((in_buffer in line) == keys.get("cmb", False), line)
    block = attach("fast", "-i", 2)
    check(int(block.attribute("queue/logical_block_size")) == block_size, "another block size")
    check(block.size() == 64 * MIB, f"{block.size()} bytes")
    fio(block, JOBS=2, SIZE="6m")
    fio(block, RW="randrw", SIZES="4k-1m", JOBS=2, SIZE="12m")
    data = pattern(8 * MIB, 70)
    block.write(3 * MIB, data)
    block.expect(3 * MIB, data, "through the reactor")
    disconnect()
    WORLD.stop()
    WORLD.give_back()
    disk = function.disk(nsid)
    disk.expect(3 * MIB, data, "read by the kernel")


@suite.variants(
    blkdiscard_512=("A1", ["blkdiscard"]),
    blkdiscard_4096=("A2", ["blkdiscard"]),
    blkdiscard_zeroout_512=("A1", ["blkdiscard", "-z"]),
    blkdiscard_zeroout_4096=("A2", ["blkdiscard", "-z"]),
)
def zeros_after(serial, command):
    """Zeros where data was, and the data on both sides untouched; for the kernel as well."""
    function = WORLD.take(serial)
    WORLD.target.start(config(volume("fast", function)))
    block = attach("fast")
    data = pattern(4 * MIB, 20)
    block.write(0, data)
    run(*command, "-o", MIB, "-l", 2 * MIB, block.path)
    expected = data[:MIB] + bytes(2 * MIB) + data[3 * MIB :]
    block.expect(0, expected, "through the reactor")
    disconnect()
    WORLD.stop()
    WORLD.give_back()
    function.disk().expect(0, expected, "read by the kernel")


@suite.case
def the_disks_cache_is_the_volumes():
    """The disk says that it has a volatile cache, so hosts are told, and flushes pass."""
    function = functions("A1")[0]
    cache = function.disk().attribute("queue/write_cache")
    check(cache == "write back", f"the kernel sees a cache of {cache}")
    WORLD.take("A1")
    WORLD.target.start(config(volume("fast", function)))
    block = attach("fast")
    check(block.attribute("queue/write_cache") == cache, f"a host sees {block.attribute('queue/write_cache')}")
    block.write(0, pattern(MIB, 5))
    nvme("flush", block.path, "-n", 1)


@suite.case
def sleeps_without_io():
    """A reactor with no I/O in flight sleeps; the next I/O is answered all the same."""
    function = WORLD.take("A1")
    WORLD.target.start(config(volume("fast", function), cores=[0, 1]))
    block = attach("fast")
    block.write(0, pattern(MIB, 6))
    before, idle_s = spent(), 3
    threading.Event().wait(idle_s)
    share = (spent() - before) / idle_s
    note(f"{share:.1%} of a processor while idle")
    check(share < 0.5, f"{share:.0%} of a processor while nothing is asked")
    block.expect(0, pattern(MIB, 6), "after a pause")


@suite.case
def an_interrupt_wakes_who_sleeps():
    """While a slow disk works the reactor sleeps, and each answer wakes it; one that is busy is rarely interrupted."""
    WORLD.target.start(config(volume("slow", WORLD.take("T")), volume("fast", WORLD.take("A1")), cores=[0]))
    slow, fast = attach("slow"), attach("fast")
    before, rang, seconds = spent(), interrupts(), 4
    reads = reads_of(slow, "--time_based", f"--runtime={seconds}")
    share, rang = (spent() - before) / seconds, interrupts() - rang
    note(f"{reads} reads of a slow disk, {rang} interrupts, {share:.1%} of a processor")
    check(reads > 100, f"{reads} reads in {seconds} s")
    check(reads / 2 < rang < reads * 3, f"{rang} interrupts for {reads} reads")
    check(share < 0.7, f"{share:.0%} of a processor for a disk of 100 I/Os a second")
    rang = interrupts()
    reads = reads_of(fast, "--iodepth=32", "--ioengine=io_uring", "--size=16m")
    rang = interrupts() - rang
    note(f"{reads} reads of a fast one, {rang} interrupts")
    check(rang < reads / 4, f"{rang} interrupts for {reads} reads of a busy reactor")


def reads_of(block, *how):
    """How often fio has read 4 KiB."""
    load = ["--name=load", f"--filename={block.path}", "--rw=randread", "--bs=4k", "--direct=1"]
    done = run("fio", *load, *how, "--output-format=terse")
    return int(done.output.split(";")[5]) // 4


def interrupts():
    """How many VFIO has passed on."""
    lines = [line for line in pathlib.Path("/proc/interrupts").read_text().splitlines() if "vfio-msi" in line]
    return sum(int(word) for line in lines for word in line.split()[1:] if word.isdigit())


@suite.case
def killed_under_load():
    """What was flushed is there for the next reactor and for the kernel."""
    function = WORLD.take("A1")
    setup = config(volume("fast", function, timeout="5s"), cores=[0, 1])
    for round_ in range(2):
        WORLD.target.start(setup)
        block = attach("fast", "-i", 2, "-l", 2)
        if round_:
            block.expect(0, pattern(4 * MIB, 80), "for the next reactor")
        data = pattern(4 * MIB, 80 + round_)
        block.write(0, data)
        nvme("flush", block.path, "-n", 1)
        place = ["--offset=16m", "--size=32m", "--time_based", "--runtime=60"]
        how = ["--rw=randwrite", "--bs=4k", "--iodepth=32", "--ioengine=io_uring", "--direct=1"]
        command = ["fio", "--name=load", f"--filename={block.path}", *place, *how]
        load = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        start = block.writes()
        wait_until("I/O of fio", lambda block=block, start=start: block.writes() > start + 200)
        WORLD.target.kill()
        disconnect()
        load.kill()
        load.wait()
    WORLD.give_back()
    disk = function.disk()
    disk.expect(0, pattern(4 * MIB, 81), "read by the kernel")


@suite.case
def two_namespaces_of_one_controller():
    """They share the disk; they come and go by reload, and with the last of them the disk is let go."""
    function = WORLD.take("B")
    first, second, third = (volume(f"ns{nsid}", function, nsid=nsid) for nsid in (1, 2, 3))
    WORLD.target.start(config(first, second, cores=[0, 1]))
    blocks = [attach("ns1"), attach("ns2")]
    sizes = [int(block.attribute("queue/logical_block_size")) for block in blocks]
    check(sizes == [512, 4096], f"blocks of {sizes} bytes")
    fio_at_once(blocks, RW="randrw", JOBS=2, SIZE="6m")
    datas = [pattern(2 * MIB, 40 + index) for index in range(3)]
    for block, data in zip(blocks, datas, strict=False):
        block.write(0, data)
    disconnect()
    WORLD.target.reload(config(first, third, cores=[0, 1]))
    said_in_log('bdev "ns3" is added')
    attach("ns1").expect(0, datas[0], "after a reload")
    attach("ns3").write(0, datas[2])
    disconnect()
    WORLD.target.reload(config({**first, "depth": 64}, {**third, "depth": 64}, cores=[0, 1]))
    for name in ("ns1", "ns3"):
        said_in_log(f'bdev "{name}" stays as it is: depth cannot change while it is open')
    ram = {"name": "ram", "driver": "malloc", "size": "1MiB"}
    WORLD.target.reload(config(ram, cores=[0, 1]))
    said_in_log('bdev "ns3" is removed')
    group = (function.folder / "iommu_group").resolve().name
    wait_until("the disk is let go", lambda: f"/dev/vfio/{group}" not in open_files(WORLD.target.process.pid))
    WORLD.give_back()
    for nsid, data in enumerate(datas, 1):
        function.disk(nsid).expect(0, data, f"namespace {nsid} read by the kernel")
    # And again, by the same process, which has two volumes of the disk when it is stopped.
    WORLD.take("B")
    WORLD.target.reload(config(ram, second, first, cores=[0, 1]))
    said_in_log('bdev "ns2" is added')
    blocks = [attach("ns1", "-i", 2), attach("ns2", "-i", 2)]
    for block, data in zip(blocks, datas, strict=False):
        block.expect(0, data, "opened again")
        fio(block, RW="randrw", JOBS=2, SIZE="6m")


def open_files(pid):
    return [str(path.readlink()) for path in pathlib.Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]


@suite.case
def a_disk_is_found_by_its_serial_number():
    WORLD.take("D")
    function = WORLD.take("A1")
    wanted = {"name": "fast", "driver": "nvme", "serial": "A1", "size": "64MiB", "block_size": 512, "depth": 31}
    WORLD.target.start(config(wanted))
    line = said_in_log('volume "fast": namespace')[0]
    check(f"namespace 1 of {function.address} (serial A1, " in line and "1 queue pairs of depth 31" in line, line)
    fio(attach("fast"), SIZE="4m")
    text = refusal({**wanted, "serial": "nobody"})
    check("no NVMe disk has serial nobody; bound to vfio-pci are " in text and "(serial D)" in text, text)
    check(f"{function.address} (held by process {WORLD.target.process.pid} (" in text, text)


@suite.case
def refusals_name_the_remedy():
    function = functions("A1")[0]
    checked = run(binary(), "--config", written(config(volume("fast", function))), "--check", succeed=False)
    check(checked.code == 0 and function.driver() == "nvme", f"--check: {checked}")
    text = refusal(volume("fast", function, mode="vfio"))
    check(f'bdev "fast": {function.address} belongs to nvme: reactor nvme bind ' in text, text)
    WORLD.take("A1")
    WORLD.target.start(config(volume("fast", function)))
    text = refusal(volume("fast", function))
    check(f"{function.address} is held by process {WORLD.target.process.pid} (" in text, text)
    text = refusal(volume("fast", function), volume("other", function), code=2)
    check('bdev "fast" of line ' in text and "is this namespace already" in text, text)
    disk = WORLD.take("B")
    check("has the namespaces 1, 2, 3: write nsid = 1" in refusal(volume("fast", disk)), "which namespace is not asked")
    check("has no namespace 9: it has 1, 2, 3" in refusal(volume("fast", disk, nsid=9)), "a namespace that is none")
    check("write that size" in refusal(volume("fast", disk, nsid=1, size="1MiB")), "another size")
    check("write that block_size" in refusal(volume("fast", disk, nsid=2, block_size=512)), "another block size")
    text = refusal(volume("one", disk, nsid=1), {"name": "same", "driver": "nvme", "serial": "B", "nsid": 1})
    check('is volume "one" already' in text, text)
    text = refusal({**volume("fast", disk), "pci": "0000:7f:1f.7"})
    check("no NVMe disk at 0000:7f:1f.7: this machine has " in text, text)
    check("bytes of metadata" in refusal(volume("fast", WORLD.take("P"))), "metadata")
    # What was refused has let go of everything.
    fio(attach("fast"), SIZE="4m")


@suite.case
def bench_drives_a_disk():
    """What its blocks are is known once it is open."""
    path = written(config(volume("fast", WORLD.take("A2"))))
    words = [binary(), "bench", "--config", path, "--bdev", "fast", "--qd", 8, "--time", 1]
    done = run(*words, "--json")
    check(json.loads(done.output)["iops"] > 0, done.output)
    done = run(*words, "--bs", "512", succeed=False)
    check(done.code == 2, f"it ended with {done.code}")
    check('--bs 512 is not a multiple of the block size of "fast", 4096' in done.errors, done.errors)


@suite.case
def stray_dma_is_seen():
    """What is looked for after each case can be seen."""
    function = functions("A1")[0]
    # The probe looks for the words that it has been promised before it strays.
    function.disk().write(0, b"".join(offset.to_bytes(8, "little") for offset in range(0, MIB, 8)))
    done = run(PROBE, function.address, "--stray", succeed=False)
    address = re.search(r"stray: a read to (0x[0-9a-f]+)", done.output)
    check(address, f"the probe said {done.output}{done.errors}")
    lines = wait_until("a report of the IOMMU", lambda: stray_lines(WORLD.since))
    check(any(address.group(1) in line for line in lines), f"no report names {address.group(1)}: {lines}")
    WORLD.before()


def main():
    for module in (VFIO, "nvme-tcp"):
        run("modprobe", module)
    pathlib.Path("/proc/sys/vm/nr_hugepages").write_text("256")
    for part in PARTS:
        importlib.import_module(part)
    return suite.run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
