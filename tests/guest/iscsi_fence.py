"""Persistent reservations: two initiators, and one that is shut out."""

import errno
import re
import threading

from disk import MIB, pattern
from harness import Failure, check, wait_until
from iscsi_host import ALICE_FACE, V4, login, sg, test_unit_ready
from iscsi_world import SHARED, WORLD, suite
from records import RECORD, REGION, Writer, record

# Reservation types (SPC, persistent reservation type code)
EXCLUSIVE, REGISTRANTS_ONLY = 3, 5
MINE, HERS = "0xa", "0xb"
# Exit code of sg3-utils for RESERVATION CONFLICT
CONFLICT = 24
# How long the kernel waits for the end of a command, twice that for a flush: one that PREEMPT AND ABORT ends has no answer (TAS is 0).
COMMAND_LIMIT_S = 4


def two():
    """The disk of two initiators, nothing reserved."""
    first, second = (login(SHARED, V4, face).block() for face in ("default", ALICE_FACE))
    out(first, "--register-ignore", "--param-sark=0x1")
    out(first, "--clear", "--param-rk=0x1")
    return first, second


def out(block, *words, succeed=True):
    return sg("persist", "--out", *words, block.path, succeed=succeed)


def keys(block):
    """The registered keys, sorted."""
    text = sg("persist", "--in", "--read-keys", block.path).output
    return sorted(re.findall(r"^\s+(0x[0-9a-f]+)$", text, re.MULTILINE))


def reservation(block):
    """Key and type of the reservation, or None."""
    text = sg("persist", "--in", "--read-reservation", block.path).output
    found = re.search(r"Key=(0x[0-9a-f]+)\s+.*type: (.+)", text, re.DOTALL)
    return (found[1], found[2].strip()) if found else None


def hear(block):
    """Takes the unit attention conditions that wait for an initiator: of a release, and of what the kernel has not seen before."""
    for _ in range(8):
        if test_unit_ready(block, succeed=False).code == 0:
            return
    raise Failure(f"{block.path} is not ready")


def check_access(block, reads, writes, who):
    """Fails the case unless reads and writes do what they must; what is refused is a reservation conflict."""
    found = block.errno_of_read(0, 4096), block.errno_of_write(8 * MIB, pattern(4096, 3))
    wanted = 0 if reads else errno.EBADE, 0 if writes else errno.EBADE
    check(found == wanted, f"{who}: errors of a read and a write are {found}, expected {wanted}")


@suite.case
def registrations_and_capabilities():
    first, second = two()
    check(keys(first) == [], f"keys after clear: {keys(first)}")
    out(first, "--register", f"--param-sark={MINE}")
    out(second, "--register", f"--param-sark={HERS}")
    check(keys(second) == [MINE, HERS], f"keys: {keys(second)}")
    text = sg("persist", "--in", "--report-capabilities", first.path).output
    check("Persist Through Power Loss Capable(PTPL_C): 1" in text, f"capabilities: {text}")
    text = sg("persist", "--in", "--read-full-status", first.path).output
    check("alice" in text and "guest" in text, f"full status does not name both initiators: {text}")
    done = out(second, "--register", "--param-rk=0x7", "--param-sark=0x8", succeed=False)
    check(done.code == CONFLICT, f"a wrong key: exit {done.code}: {done.errors}")
    out(first, "--register", f"--param-rk={MINE}", "--param-sark=0")
    check(keys(second) == [HERS], f"keys after one has left: {keys(second)}")


@suite.variants(
    write_exclusive=(1, True, False, False),
    exclusive_access=(3, False, False, False),
    write_exclusive_registrants_only=(5, True, False, True),
    exclusive_access_registrants_only=(6, False, False, True),
    write_exclusive_all_registrants=(7, True, False, True),
    exclusive_access_all_registrants=(8, False, False, True),
)
def reservation_of_type(kind, others_read, others_write, registrants_write):
    first, second = two()
    out(first, "--register", f"--param-sark={MINE}")
    out(first, "--reserve", f"--param-rk={MINE}", f"--prout-type={kind}")
    check(reservation(second) is not None, "nobody sees the reservation")
    check_access(first, True, True, "the holder")
    check_access(second, others_read, others_write, "another initiator")
    out(second, "--register", f"--param-sark={HERS}")
    check_access(second, others_read or registrants_write, registrants_write, "a registered initiator")
    out(first, "--release", f"--param-rk={MINE}", f"--prout-type={kind}")
    hear(second)
    check(reservation(second) is None, f"released, but there is {reservation(second)}")
    check_access(second, True, True, "after the release")


@suite.variants(preempt=("--preempt",), preempt_and_abort=("--preempt-abort",))
def fencing_under_load(action):
    """The one who is shut out writes until then; afterwards nothing of it arrives any more."""
    first, second = two()
    out(first, "--register", f"--param-sark={MINE}")
    out(second, "--register", f"--param-sark={HERS}")
    out(second, "--reserve", f"--param-rk={HERS}", f"--prout-type={REGISTRANTS_ONLY}")
    first.write(0, bytes(2 * MIB))
    second.set_attribute("device/timeout", COMMAND_LIMIT_S)
    stop = threading.Event()
    writer = Writer(second.path, 0, stop)
    writer.start()
    wait_until("load", lambda: writer.acknowledged > 20, timeout_s=60)
    out(first, action, f"--param-rk={MINE}", f"--param-sark={HERS}", f"--prout-type={REGISTRANTS_ONLY}")
    # What the fence let through is all there is.
    seen = first.read(0, REGION // 2)
    check(keys(first) == [MINE], f"keys: {keys(first)}")
    check(reservation(first)[0] == MINE, f"the reservation is {reservation(first)}")
    writer.join(60)
    stop.set()
    check(not writer.is_alive() and writer.error, "the writer goes on behind the fence")
    check(writer.error.errno in (errno.EBADE, errno.EIO), f"the writer has {writer.error}")
    check(first.read(0, REGION // 2) == seen, "something arrived behind the fence")
    for number in range(writer.acknowledged):
        here = seen[number * RECORD : (number + 1) * RECORD]
        check(here == record(0, number), f"record {number} of {writer.acknowledged} is lost")
    check_access(second, True, False, "who is shut out")
    check_access(first, True, True, "the survivor")


@suite.variants(kept=(True,), not_kept=(False,))
def registrations_over_a_crash(aptpl):
    """With APTPL keys and reservation outlive kill -9, without they do not; both hosts come back by themselves."""
    first, second = two()
    kept = ["--param-aptpl"] if aptpl else []
    out(first, "--register", f"--param-sark={MINE}", *kept)
    out(second, "--register", f"--param-sark={HERS}", *kept)
    out(first, "--reserve", f"--param-rk={MINE}", f"--prout-type={EXCLUSIVE}")
    WORLD.target.kill()
    WORLD.before()
    # A read waits until its host is connected again.
    first.errno_of_read(0, 4096)
    wait_until("the second host is back", lambda: second.errno_of_read(0, 4096) in (0, errno.EBADE), timeout_s=60)
    if aptpl:
        check(keys(second) == [MINE, HERS], f"keys after the crash: {keys(second)}")
        check(reservation(second)[0] == MINE, f"reservation after the crash: {reservation(second)}")
        check_access(first, True, True, "the holder")
        check_access(second, False, False, "the other")
        out(first, "--clear", f"--param-rk={MINE}")
    else:
        check(keys(second) == [] and reservation(second) is None, f"kept without being asked: {keys(second)}")
    check_access(second, True, True, "with nothing reserved")
