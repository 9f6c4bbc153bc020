"""Changes while hosts are connected: growth, logical units, resets; then death and rebirth of the target."""

import threading
import time

from disk import MIB, check_copy, make_file_system, mount, pattern, unmount_and_look
from harness import check, kernel_lines, note, wait_until
from iscsi_host import (
    DATA_DIGEST,
    HEADER_DIGEST,
    daemon_said,
    daemon_says,
    discover,
    login,
    logout_all,
    sg,
)
from iscsi_world import (
    EMULATION_SLACK_S,
    GROW,
    LATE,
    MAIN,
    SHARED,
    STOP_LIMIT_S,
    WORLD,
    suite,
)
from records import Writers, expect_records_in_file
from uevents import Events

BOTH = {HEADER_DIGEST: "CRC32C", DATA_DIGEST: "CRC32C"}


@suite.case
def growth_is_told_and_data_kept():
    """The kernel hears of a new size by a unit attention, and takes it over when it is asked to look."""
    session = login(GROW)
    for lun, name in ((0, "growram"), (1, "growdisk")):
        block = session.block(lun)
        block.write(8 * MIB, pattern(MIB, lun))
        new = WORLD.config.bdev(name)["size"] + 16 * MIB
        WORLD.config.bdev(name)["size"] = new
        events = Events()
        WORLD.reload()
        wait_until("the kernel is told", lambda: block.read(0, 4096) and events.has("CAPACITY_DATA_HAS_CHANGED"))
        session.rescan()
        wait_until(f"{block.path} has {new} bytes", lambda: block.size() == new)
        block.expect(8 * MIB, pattern(MIB, lun), "after growth")
        block.expect(new - MIB, bytes(MIB), "the new part")
        block.write(new - MIB, pattern(MIB, 50))
        block.expect(new - MIB, pattern(MIB, 50), "the new part, written")


@suite.case
def unit_added_and_removed_is_told():
    session = login(GROW)
    first = session.block()
    luns = WORLD.config.target(GROW)["luns"]
    luns.append({"lun": 7, "bdev": "spare"})
    events = Events()
    WORLD.reload()
    told = "REPORTED_LUNS_DATA_HAS_CHANGED"
    wait_until("the kernel is told of a new unit", lambda: first.read(0, 4096) and events.has(told))
    check(session.find(7) is None, "the new unit is there before anybody looked")
    session.rescan()
    block = session.block(7)
    block.write(0, pattern(65536, 51))
    block.expect(0, pattern(65536, 51), "the new unit")
    luns.pop()
    events = Events()
    WORLD.reload()
    wait_until("the kernel is told that one is gone", lambda: first.read(0, 4096) and events.has(told))
    wait_until("I/O to the removed unit fails", lambda: block.errno_of_read(0, 4096) != 0)
    (session.find_unit(7) / "delete").write_text("1")
    wait_until("the disk is gone", lambda: session.find(7) is None)
    session.rescan()
    check(session.find(7) is None, "a rescan brings the removed unit back")
    first.write(0, pattern(4096, 52))


@suite.case
def target_comes_and_goes():
    WORLD.config.targets.append({"iqn": LATE, "luns": [{"bdev": "spare"}]})
    WORLD.reload()
    wait_until("the new target is told of", lambda: LATE in discover())
    session = login(LATE)
    session.block().write(0, pattern(4096, 53))
    other = login(MAIN).block()
    WORLD.config.targets.pop()
    WORLD.reload()
    wait_until("discovery does not tell of it", lambda: LATE not in discover())
    wait_until("its session has ended", lambda: session.state() != "LOGGED_IN")
    other.write(0, pattern(4096, 54))
    logout_all()


@suite.variants(
    unit=(["--device"],),
    target=(["--target"],),
)
def reset_under_load(words):
    """Commands that a reset ends are sent again by the host: nothing that was acknowledged is lost."""
    session = login(MAIN)
    blocks = [session.block(lun) for lun in (0, 1)]
    writers = Writers(blocks)
    for turn in range(3):
        writers.wait_for_more(20, f"before reset {turn + 1}")
        sg("reset", "--no-esc", *words, blocks[turn % 2].path)
    writers.wait_for_more(20, "after the last reset")
    writers.end()
    check(session.state() == "LOGGED_IN", f"the session is {session.state()}")


# Death and rebirth


@suite.case
def kill_under_load_loses_no_flushed_write():
    """Twice: kill -9 under fsync'd load, look into the file, restart, let the host reconnect and go on."""
    session = login(MAIN, settings=BOTH)
    block = session.block(1)
    backing = WORLD.config.bdev("disk0")["path"]
    writers = Writers([block] * 4)
    for turn in range(2):
        writers.wait_for_more(50, f"before kill {turn + 1}")
        WORLD.target.kill()
        for index, count in enumerate(writers.safe()):
            expect_records_in_file(backing, index, count)
        time.sleep(1)
        WORLD.before()
        writers.wait_for_more(10, f"after restart {turn + 1}")
        check(session.state() == "LOGGED_IN", f"the session is {session.state()}")
    writers.end()


@suite.variants(ext4=("ext4",), xfs=("xfs",))
def kill_under_a_file_system(kind):
    """The target is killed and comes back while a file system is written: it never notices, and its own tool finds nothing."""
    session = login(MAIN)
    block = session.block(1)
    failures = []

    def fill():
        try:
            make_file_system(block.path, kind)
        except Exception as error:
            failures.append(error)

    filler = threading.Thread(target=fill)
    before = block.writes()
    filler.start()
    wait_until("it writes", lambda: block.writes() > before + 5 or not filler.is_alive(), timeout_s=60)
    check(filler.is_alive(), f"it was done before the kill: {failures}")
    WORLD.target.kill()
    WORLD.before()
    filler.join(120)
    check(not filler.is_alive() and not failures, f"the file system failed: {failures}")
    unmount_and_look(block.path, kind)
    mount(block.path, kind)
    check_copy("after the crash of the target")
    unmount_and_look(block.path, kind)


@suite.case
def terminate_under_load_drains():
    session = login(MAIN)
    blocks = [login(SHARED).block(), session.block(1)]
    writers = Writers(blocks)
    writers.wait_for_more(20, "before the end")
    code, seconds = WORLD.target.stop(30)
    check(code == 0, f"SIGTERM under load: exit {code}")
    check(seconds < STOP_LIMIT_S + EMULATION_SLACK_S, f"SIGTERM under load took {seconds:.1f} s")
    for index, name in enumerate(("shared", "disk0")):
        expect_records_in_file(WORLD.config.bdev(name)["path"], index, writers.safe()[index])
    WORLD.before()
    writers.wait_for_more(10, "after the restart")
    writers.end()
    note(f"ended after {seconds:.2f} s")


@suite.case
def shutdown_asks_hosts_to_log_out():
    """They do, and come back when the target is there again."""
    session = login(MAIN)
    block = session.block(1)
    block.write(0, pattern(65536, 60))
    said, since = daemon_said(), len(kernel_lines())
    code, seconds = WORLD.target.stop(30)
    check(code == 0 and seconds < STOP_LIMIT_S + EMULATION_SLACK_S, f"SIGTERM: exit {code} after {seconds:.1f} s")
    wait_until("iscsid was asked", lambda: daemon_says("Target requests logout", said))
    late = [line for line in WORLD.target.logged() if "closed" in line or "did not" in line]
    check(not late, f"a connection did not log out: {late}")
    WORLD.before()
    wait_until("the host is back", lambda: session.state() == "LOGGED_IN", timeout_s=60)
    block.expect(0, pattern(65536, 60), "after the restart")
    check(not [line for line in kernel_lines()[since:] if "I/O error" in line], "an I/O failed meanwhile")
    note(f"ended after {seconds:.2f} s")
