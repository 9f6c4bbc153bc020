"""Commands that a file system never sends, by sg3-utils."""

import pathlib
import re

from disk import MIB, pattern
from harness import check
from iscsi_host import SECOND, field, login, logout_all, sg, test_unit_ready
from iscsi_world import FOURK, MAIN, WORLD, suite

# Exit code of sg3-utils for MISCOMPARE
MISCOMPARE = 14
FILE = pathlib.Path("/tmp/data")


@suite.case
def inquiry_and_its_pages():
    first, second = login(MAIN), login(MAIN, SECOND)
    block = first.block()
    text = sg("inq", block.path).output
    check("CmdQue=1" in text and "3PC=1" in text and "TPGS=1" in text, f"standard data: {text}")
    check("MultiP=1" in text, f"two ports, but not MULTIP: {text}")
    listed = sg("vpd", "-p", "sv", block.path).output
    pages = re.findall(r"\[(\w+)\]$", listed, re.MULTILINE)
    wanted = ["sv", "sn", "di", "ei", "mpp", "tpc", "bl", "bdc", "lbpv"]
    check(all(page in pages for page in wanted), f"pages {pages}: {listed}")
    for page in wanted:
        done = sg("vpd", "-p", page, block.path)
        check(done.output.strip(), f"page {page} prints nothing")
    serial = sg("vpd", "-p", "sn", block.path).output
    other = sg("vpd", "-p", "sn", first.block(1).path).output
    check(serial != other, f"both units have the serial number {serial}")
    ports = []
    for session in (first, second):
        text = sg("vpd", "-p", "di", session.block().path).output
        ports.append(field(text, r"Relative target port: (0x[0-9a-f]+)"))
        check(f"{MAIN},t,0x" in text, f"no name of the port: {text}")
    check(ports[0] != ports[1], f"both portal groups are port {ports[0]}")


@suite.case
def port_groups():
    block = login(MAIN).block()
    text = sg("rtpg", "--decode", block.path).output
    check("active/optimized" in text, f"target port groups: {text}")
    check(field(text, r"[Tt]arget port count ?: ?(\d+)") == 2, f"not both ports in one group: {text}")


@suite.case
def units_and_operations_are_reported():
    session = login(MAIN)
    text = sg("luns", session.block().path).output
    check(field(text, r"implies (\d+) lun entr") == 2, f"REPORT LUNS: {text}")
    text = sg("opcodes", session.block().path).output
    for name in ("Compare and write", "Write same\\(16\\)", "Unmap", "Get LBA status", "Persistent reserve out"):
        check(re.search(name, text, re.IGNORECASE), f"{name} is not among the operations: {text}")
    text = sg("opcodes", "--tmf", session.block().path).output
    check("Logical unit reset" in text or "LURS" in text, f"task management functions: {text}")


@suite.case
def modes_and_logs():
    block = login(MAIN).block(1)
    text = sg("modes", block.path).output
    for page in ("Caching", "Control", "Informational exceptions"):
        check(page.lower() in text.lower(), f"no mode page {page}: {text}")
    check("upported log pages" in sg("logs", block.path).output, "no list of log pages")
    test_unit_ready(block)
    sg("requests", block.path)
    sg("senddiag", "--test", block.path)


@suite.case
def write_cache_is_switched_by_mode_select():
    """What the kernel writes to `cache_type` is a MODE SELECT; what it then takes the cache for is what it read back."""
    session = login(MAIN)
    block = session.block(1)
    kind = next(session.find_unit(1).glob("scsi_disk/*/cache_type"))
    check(kind.read_text().strip() == "write back", f"cache type {kind.read_text()}")
    kind.write_text("write through")
    check(block.attribute("queue/write_cache") == "write through", "the cache cannot be switched off")
    block.write(0, pattern(65536, 5))
    with open(WORLD.config.bdev("disk0")["path"], "rb") as file:
        check(file.read(65536) == pattern(65536, 5), "written through, but not in the file")
    kind.write_text("write back")
    check(block.attribute("queue/write_cache") == "write back", "the cache cannot be switched on again")


@suite.case
def compare_and_write_changes_what_is_equal():
    for target, lun, size in ((MAIN, 0, 512), (MAIN, 1, 512), (FOURK, 0, 4096)):
        block = login(target).block(lun)
        old, new = pattern(4 * size, 30), pattern(4 * size, 31)
        block.write(0, pattern(MIB, 29))
        block.write(8 * size, old)
        words = ["--in", FILE, "--lba", 8, "--num", 4, "--xferlen", 8 * size, block.path]
        FILE.write_bytes(new + old)
        done = sg("compare_and_write", *words, succeed=False)
        check(done.code == MISCOMPARE, f"unequal: exit {done.code}: {done.errors}")
        block.expect(8 * size, old, "after a miscompare")
        FILE.write_bytes(old + new)
        sg("compare_and_write", *words)
        expected = pattern(MIB, 29)
        block.expect(0, expected[: 8 * size] + new + expected[12 * size :], f"unit {lun} of {target}")
        logout_all()


@suite.case
def write_same_repeats_a_block():
    for target, lun, size in ((MAIN, 0, 512), (MAIN, 1, 512), (FOURK, 0, 4096)):
        block = login(target).block(lun)
        data, one = pattern(MIB, 33), pattern(size, 34)
        block.write(0, data)
        FILE.write_bytes(one)
        for kind, start in (("--10", 16), ("--16", 64)):
            sg("write_same", kind, "--in", FILE, "--lba", start, "--num", 24, "--xferlen", size, block.path)
            data = data[: start * size] + one * 24 + data[(start + 24) * size :]
        block.expect(0, data, f"unit {lun} of {target} after two of them")
        logout_all()


@suite.case
def verify_compares_bytes():
    block = login(MAIN).block(1)
    data = pattern(8192, 35)
    block.write(0, data)
    sg("verify", "--lba", 0, "--count", 2048, block.path)
    for what, bytes_, code in (("equal", data, 0), ("unequal", data[:8191] + b"?", MISCOMPARE)):
        FILE.write_bytes(bytes_)
        for words in ([], ["--16"]):
            done = sg("verify", *words, "--ndo", 8192, "--in", FILE, "--count", 16, block.path, succeed=False)
            check(done.code == code, f"{what} {words}: exit {done.code}: {done.errors}")
    block.expect(0, data, "after verifies")


def provisioning(block, lba):
    """Provisioning status of the blocks at `lba` (0 mapped, 1 deallocated) and how many have it at least."""
    text = sg("get_lba_status", "--brief", "--lba", lba, block.path).output
    found = re.search(r"^(?:0x)?([0-9a-f]+)\s+(?:0x)?([0-9a-f]+)\s+([0-9a-f]+)\s", text, re.MULTILINE)
    check(found, f"no descriptor: {text}")
    first, blocks, status = found.groups()
    check(int(first, 16) <= lba, f"asked for {lba}: {text}")
    return int(status, 16), int(blocks, 16) - (lba - int(first, 16))


@suite.case
def lba_status_tells_what_is_mapped():
    session = login(MAIN)
    for lun in (0, 1):
        block = session.block(lun)
        sg("unmap", "--force", "--lba", 0, "--num", 16 * MIB // 512, block.path)
        status, blocks = provisioning(block, 0)
        check(status == 1 and blocks >= 16 * MIB // 512, f"unit {lun}: {blocks} blocks of status {status} after unmap")
        block.write(4 * MIB, pattern(4 * MIB, 36))
        sg("sync", block.path)
        status, blocks = provisioning(block, 4 * MIB // 512)
        check(status == 0 and blocks >= 4 * MIB // 512, f"unit {lun}: {blocks} blocks of status {status} where written")
        status, blocks = provisioning(block, 0)
        check(status == 1 and blocks <= 4 * MIB // 512, f"unit {lun}: {blocks} blocks of status {status} before that")


@suite.variants(within_a_unit=(0, 0), to_another_unit=(0, 1), back=(1, 0))
def extended_copy(source, target):
    session = login(MAIN)
    one, other = session.block(source), session.block(target)
    data = pattern(4 * MIB, 37)
    one.write(0, data)
    other.write(64 * MIB, bytes(6 * MIB))
    words = [f"if={session.generic(source)}", f"of={session.generic(target)}", "bs=512", "skip=0", f"seek={65 * MIB // 512}"]
    sg("xcopy", *words, f"count={4 * MIB // 512}")
    other.expect(64 * MIB, bytes(MIB) + data + bytes(MIB), "the copy and what is beside it")
