"""Discovery, connecting, and what a controller says of itself."""

import re
import shlex
import time

from disk import MIB, pattern
from harness import Failure, check, run, wait_until
from host import SERVICE, Block, connect, controllers, disconnect_all, discover, identity, nvme, nvme_json
from jobs import fio
from nvmf_world import ALICE, FOURK, GROW, GUARD, MAIN, PREFIX, PRIVATE, WORLD, only_reactor, suite


@suite.case
def discovery_lists_what_this_host_may_use():
    found = discover()
    check(sorted(set(found)) == sorted([MAIN, FOURK, GROW, GUARD]), f"discovery shows {found}")


@suite.case
def discovery_over_ipv6():
    check(MAIN in discover("::1"), "the main subsystem is not in the log at [::1]")


@suite.case
def discovery_shows_an_allowed_host_its_own():
    check(PRIVATE in discover("127.0.0.1", *identity(ALICE)), "the allowed host does not see its subsystem")


@suite.case
def host_that_is_not_allowed_is_refused():
    run("dmesg", "-c")
    done = nvme("connect", "-t", "tcp", "-a", "127.0.0.1", "-s", SERVICE, "-n", PRIVATE, succeed=False)
    check(done.code != 0, "connect of a host that is not allowed succeeded")
    text = run("dmesg").output
    check("is not allowed, hostnqn" in text, f"the kernel did not see Connect Invalid Host: {text[-300:]}")
    connect(PRIVATE, *identity(ALICE))
    Block(PRIVATE, 1).write(0, pattern(4096))


@suite.case
def unknown_subsystem_is_refused():
    done = nvme("connect", "-t", "tcp", "-a", "127.0.0.1", "-s", SERVICE, "-n", PREFIX + "none", succeed=False)
    check(done.code != 0 and not controllers(), "connect to a subsystem that does not exist succeeded")


@suite.variants(
    one_queue=(1, []),
    four_queues=(4, []),
    header_digest=(1, ["--hdr-digest"]),
    data_digest=(1, ["--data-digest"]),
    both_digests_four_queues=(4, ["--hdr-digest", "--data-digest"]),
    no_sqflow=(1, ["--disable-sqflow"]),
    no_sqflow_digests_four_queues=(4, ["--disable-sqflow", "--hdr-digest", "--data-digest"]),
)
def connect_with(queues, options):
    controller = connect(MAIN, "-i", queues, *options)
    check(controller.io_queues() == queues, f"{controller.io_queues()} I/O queues, asked for {queues}")
    block = Block(MAIN, 1)
    for index, size in enumerate((512, 4096, 8192, 65536, MIB)):
        block.write(index * MIB, pattern(size, index))
    for index, size in enumerate((512, 4096, 8192, 65536, MIB)):
        block.expect(index * MIB, pattern(size, index), f"{size} bytes")
    fio(block, ENGINE="libaio", RW="randrw", SIZES="512-64k", JOBS=queues, SIZE="1m")


@suite.case
def connect_over_ipv6():
    connect(MAIN, address="::1")
    block = Block(MAIN, 1)
    block.write(0, pattern(MIB, 6))
    block.expect(0, pattern(MIB, 6), "over IPv6")


@suite.case
def printed_connect_lines_connect():
    lines = WORLD.target.connect_lines()
    check(any(MAIN in line for line in lines), f"no connect line for the main subsystem: {lines}")
    for line in lines:
        if MAIN in line and "127.0.0.1" in line:
            run(*shlex.split(line))
            Block(MAIN, 1)
            return
    raise Failure(f"no line for 127.0.0.1: {lines}")


@suite.case
def two_hosts_share_a_namespace():
    first = connect(MAIN)
    Block(MAIN, 1).write(0, pattern(65536, 7))
    connect(MAIN, *identity(ALICE))
    first.disconnect()
    Block(MAIN, 1).expect(0, pattern(65536, 7), "through the second host")


@suite.case
def controller_reset_and_data_stay():
    controller = connect(MAIN, "-i", 2)
    block = Block(MAIN, 1)
    block.write(0, pattern(65536, 8))
    nvme("reset", controller.device)
    wait_until("live after reset", lambda: controller.state() == "live")
    block.expect(0, pattern(65536, 8), "after a controller reset")


@suite.case
def keep_alive_of_one_second_holds_an_idle_connection():
    controller = connect(MAIN, "-k", 1)
    run("dmesg", "-c")
    time.sleep(5)
    text = run("dmesg").output
    check(controller.state() == "live" and "keep" not in text.lower(), f"idle connection was lost: {text[-300:]}")
    Block(MAIN, 1).write(0, pattern(4096))


# What the controller says of itself


@suite.case
def identify_controller():
    controller = connect(MAIN)
    told = nvme_json("id-ctrl", controller.device)
    check(told["subnqn"] == MAIN, f"subnqn {told['subnqn']}")
    check(told["nn"] >= 2, f"nn {told['nn']} with two namespaces")
    check(told["cntlid"] == int(controller.attribute("cntlid")), "cntlid differs from Connect's")
    check(told["kas"] > 0, "keep alive is not supported")
    check(told["sgls"] & 3, "no SGL support, which fabrics need")
    for name in ("sn", "mn", "fr"):
        check(told[name].strip(), f"{name} is empty")
    again = nvme_json("id-ctrl", controller.device)
    check(again["sn"] == told["sn"], "the serial number changes")


@suite.case
def identify_namespaces():
    connect(MAIN)
    seen = set()
    for nsid, name in ((1, "ram0"), (2, "disk0")):
        block = Block(MAIN, nsid)
        told = nvme_json("id-ns", block.path, "-n", nsid)
        size = WORLD.config.bdev(name)["size"]
        check(told["nsze"] == size // 512, f"nsze {told['nsze']} of namespace {nsid}")
        check(block.size() == size, f"{block.path} has {block.size()} bytes")
        current = told["lbafs"][told["flbas"] & 15]
        check(current["ds"] == 9 and current["ms"] == 0, f"LBA format {current}")
        names = told["nguid"] + told["eui64"]
        check(names.strip("0"), f"namespace {nsid} has neither NGUID nor EUI64")
        seen.add(names)
    check(len(seen) == 2, f"both namespaces are called {seen}")
    listed = nvme("list-ns", Block(MAIN, 1).path).output
    found = [int(value, 0) for value in re.findall(r"\]:\s*(0x[0-9a-f]+|\d+)", listed)]
    check(found == [1, 2], f"list-ns shows {listed}")


@suite.case
def namespace_names_survive_a_restart():
    only_reactor("process to restart")
    names = []
    for _ in range(2):
        connect(MAIN)
        names.append([Block(MAIN, nsid).attribute("wwid") for nsid in (1, 2)])
        disconnect_all()
        code, _ = WORLD.target.stop(30)
        check(code == 0, f"SIGTERM: exit {code}")
        WORLD.before()
    check(names[0] == names[1], f"names before and after: {names}")


@suite.case
def smart_log_counts_what_was_done():
    controller = connect(MAIN)
    block = Block(MAIN, 1)
    before = nvme_json("smart-log", controller.device)
    for index in range(16):
        block.write(index * MIB, pattern(MIB, index))
    for index in range(8):
        block.read(index * MIB, MIB)
    after = nvme_json("smart-log", controller.device)
    grew = {name: int(after[name]) - int(before[name]) for name in after if name.startswith(("data_units", "host_"))}
    # Data units are thousands of 512 bytes: 16 MiB are 33, 8 MiB are 17.
    check(32 <= grew["data_units_written"] <= 64, f"16 MiB written count as {grew}")
    check(16 <= grew["data_units_read"] <= 64, f"8 MiB read count as {grew}")
    check(grew["host_write_commands"] >= 16 and grew["host_read_commands"] >= 8, f"commands count as {grew}")


@suite.case
def error_and_effects_logs_can_be_read():
    controller = connect(MAIN)
    effects = nvme_json("effects-log", controller.device)
    check("ACS0" in str(effects) or "admin" in str(effects).lower(), f"commands and effects log: {effects}")
    check("errors" in nvme_json("error-log", controller.device), "no entries in the error log")
    slots = nvme_json("fw-log", controller.device)
    check("Active Firmware Slot" in str(slots) or "afi" in str(slots), f"firmware slot log: {slots}")


@suite.case
def list_subsys_and_list_show_the_connection():
    controller = connect(MAIN)
    block = Block(MAIN, 1)
    text = nvme("list-subsys", "-o", "json").output
    check(MAIN in text and controller.name in text and "live" in text, f"list-subsys: {text[:400]}")
    text = nvme("list").output
    check(block.path in text and Block(MAIN, 2).path in text, f"list: {text}")
