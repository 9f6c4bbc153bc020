"""Changes while hosts are connected: growth, namespaces, discovery; then death and rebirth of the target."""

import pathlib
import re
import threading
import time

from disk import MIB, pattern
from harness import check, note, run, wait_until
from host import (
    DISCOVERY_NQN,
    SERVICE,
    Block,
    connect,
    controllers,
    disconnect_all,
    discover,
    find_block,
    nvme,
    nvme_json,
)
from jobs import fio
from nvmf_world import (
    EMULATION_SLACK_S,
    FOURK,
    GROW,
    LATE,
    MAIN,
    STOP_LIMIT_S,
    WORLD,
    only_reactor,
    suite,
)
from records import RECORD, REGION, Writer, record
from uevents import Events


@suite.case
def growth_is_seen_and_data_kept():
    connect(GROW)
    for nsid, name in ((1, "growram"), (2, "growdisk")):
        block = Block(GROW, nsid)
        block.write(8 * MIB, pattern(MIB, nsid))
        new = WORLD.config.bdev(name)["size"] + 16 * MIB
        WORLD.config.bdev(name)["size"] = new
        WORLD.reload()
        wait_until(f"{block.path} has {new} bytes", lambda: block.size() == new)
        block.expect(8 * MIB, pattern(MIB, nsid), "after growth")
        block.expect(new - MIB, bytes(MIB), "the new part")
        block.write(new - MIB, pattern(MIB, 50))
        block.expect(new - MIB, pattern(MIB, 50), "the new part, written")


@suite.case
def namespace_added_and_removed_is_seen():
    connect(GROW)
    Block(GROW, 1)
    namespaces = WORLD.config.subsystem(GROW)["namespaces"]
    namespaces.append({"nsid": 7, "bdev": "spare"})
    WORLD.reload()
    block = Block(GROW, 7)
    block.write(0, pattern(65536, 51))
    block.expect(0, pattern(65536, 51), "the new namespace")
    text = nvme("list").output
    check(block.path in text, f"nvme list has no {block.path}: {text}")
    namespaces.pop()
    WORLD.reload()
    wait_until("namespace 7 gone", lambda: find_block(GROW, 7) is None)
    check(block.path not in nvme("list").output, "nvme list still has the namespace")
    Block(GROW, 1).write(0, pattern(4096, 52))


@suite.case
def persistent_discovery_controller_gets_the_change():
    nvme("discover", "-t", "tcp", "-a", "127.0.0.1", "-s", SERVICE, "-p", "-k", 5)
    found = [one for one in controllers() if one.attribute("subsysnqn") == DISCOVERY_NQN]
    check(len(found) == 1 and found[0].state() == "live", f"{len(found)} discovery controllers stayed")
    events = Events()
    WORLD.config.subsystems.append({"nqn": LATE, "namespaces": [{"nsid": 1, "bdev": "spare"}]})
    WORLD.reload()
    # Notice, discovery log page change, log page 70h.
    wait_until("event of a discovery change", lambda: events.has("NVME_AEN=0x70f002"))
    log = nvme_json("discover", "-d", found[0].name)
    check(LATE in [record["subnqn"] for record in log["records"]], "the new subsystem is not in the log")
    connect(LATE)
    Block(LATE, 1).write(0, pattern(4096, 53))
    events = Events()
    WORLD.config.subsystems.pop()
    WORLD.reload()
    wait_until("event of the second change", lambda: events.has("NVME_AEN=0x70f002"))
    wait_until("the subsystem left discovery", lambda: LATE not in discover())


# Death and rebirth

WRITERS = 4


@suite.case
def kill_under_load_loses_no_flushed_write():
    """Twice: kill -9 under fsync'd load, look into the file, restart, let the host reconnect and go on."""
    controller = connect(MAIN, "-i", 4, "-c", 1, "-l", 120, "-k", 5)
    block = Block(MAIN, 2)
    backing = WORLD.config.bdev("disk0")["path"]
    run("blkdiscard", "-l", WRITERS * REGION, block.path)
    stop = threading.Event()
    writers = [Writer(block.path, index, stop) for index in range(WRITERS)]
    for writer in writers:
        writer.start()

    def total():
        return sum(writer.acknowledged for writer in writers)

    for turn in range(2):
        goal = total() + 200
        wait_until(f"200 records before kill {turn + 1}", lambda: total() >= goal, timeout_s=60)
        WORLD.target.kill()
        safe = [writer.acknowledged for writer in writers]
        with open(backing, "rb") as file:
            for index, count in enumerate(safe):
                for number in range(count):
                    file.seek(index * REGION + number * RECORD)
                    check(file.read(RECORD) == record(index, number), f"writer {index} lost record {number} of {count}")
        time.sleep(1)
        check(not any(writer.error for writer in writers), f"I/O errors: {[writer.error for writer in writers]}")
        WORLD.before()
        goal = total() + 50
        wait_until(f"50 records after restart {turn + 1}", lambda: total() >= goal, timeout_s=60)
        check(controller.state() == "live", f"the controller is {controller.state()}")
    stop.set()
    for writer in writers:
        writer.join(60)
        check(not writer.is_alive(), "a writer is stuck")
        check(writer.error is None, f"a writer failed: {writer.error}")
    note(f"{total()} records")
    for writer in writers:
        for number in range(writer.acknowledged):
            expected = record(writer.index, number)
            block.expect(writer.index * REGION + number * RECORD, expected, f"writer {writer.index} record {number}")


@suite.case
def terminate_under_load_drains():
    connect(MAIN, "-i", 4, "-c", 1, "-l", 120)
    blocks = [Block(MAIN, nsid) for nsid in (1, 2)]
    stop = threading.Event()
    writers = [Writer(block.path, index, stop) for index, block in enumerate(blocks)]
    for writer in writers:
        writer.start()
    for writer in writers:
        wait_until("load", lambda writer=writer: writer.acknowledged > 20, timeout_s=60)
    code, seconds = WORLD.target.stop(30)
    check(code == 0, f"SIGTERM under load: exit {code}")
    check(seconds < STOP_LIMIT_S + EMULATION_SLACK_S, f"SIGTERM under load took {seconds:.1f} s")
    safe = writers[1].acknowledged
    with open(WORLD.config.bdev("disk0")["path"], "rb") as file:
        file.seek(REGION)
        for number in range(safe):
            check(file.read(RECORD) == record(1, number), f"record {number} of {safe} is not in the file")
    WORLD.before()
    stop.set()
    for writer in writers:
        writer.join(60)
        check(not writer.is_alive() and writer.error is None, f"a writer did not come back: {writer.error}")
    note(f"ended after {seconds:.2f} s, {safe} records safe")


@suite.case
def hugepages_are_used_where_reserved():
    only_reactor("arena")
    reserved = pathlib.Path("/proc/sys/vm/nr_hugepages")

    def free():
        return int(re.search(r"HugePages_Free:\s+(\d+)", pathlib.Path("/proc/meminfo").read_text())[1])

    WORLD.target.stop(30)
    # Memory is made of whole pages again, or there are not enough of them left to reserve.
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
    pathlib.Path("/proc/sys/vm/compact_memory").write_text("1")
    reserved.write_text("96")
    try:
        before = free()
        check(before == 96, f"the guest could reserve only {before} hugepages")
        WORLD.before()
        connect(MAIN, "-i", 4, "--data-digest")
        for nsid in (1, 2):
            fio(Block(MAIN, nsid), ENGINE="libaio", RW="randrw", SIZES="4k-1m", JOBS=2, SIZE="8m")
        # The arena has 128 MiB, of which 32 are there when it says that it is ready.
        wait_until("64 hugepages in use", lambda: before - free() >= 64)
        disconnect_all()
        code, _ = WORLD.target.stop(30)
        check(code == 0, f"SIGTERM: exit {code}")
        # The kernel ends a ring, and with it the pages registered there, behind the process that had it.
        wait_until("every hugepage given back", lambda: free() == before)
    finally:
        reserved.write_text("0")
        WORLD.before()


@suite.case
def many_connections_come_and_go():
    for _ in range(8):
        connect(MAIN, "-i", 4)
        connect(FOURK, "-i", 4)
        disconnect_all()
    WORLD.target.assert_alive()
    connect(MAIN)
    Block(MAIN, 1).write(0, pattern(4096))
