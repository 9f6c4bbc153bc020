"""libiscsi's conformance suite against the iSCSI door: all its families, on volumes of every kind.

A test that the suite skips counts as passed there, so the lines of skips are counted too, and held against what only the suite's own
conditions skip.
"""

import concurrent.futures
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time

from machine import TARGET, install

IQN = "iqn.2026-11.io.reactor:conformance"
INITIATORS = ("iqn.2026-11.test.conformance:one", "iqn.2026-11.test.conformance:two")
SIZE = 256 << 20
START_TIMEOUT_S = 30
SUITE_TIMEOUT_S = 600
# Tests of libiscsi 1.19, as `iscsi-test-cu --list` counts them.
TESTS = 615
# Lines of skips that no target of this kind can be without.
SANITIZE = 22  # wants an option of the suite that allows them
REMOVABLE = 18  # the unit is not removable
WRITE_PROTECTED = 3  # the unit is not write-protected: a run of their own has one that is
SAME_PHYSICAL = 15  # the physical block is the logical one
WRITE_ATOMIC = 33  # only memory is atomic
ALWAYS = SANITIZE + REMOVABLE + WRITE_PROTECTED
# Tests that contradict the standard, each of three families: they fail, and nothing else may.
FAMILIES = 3
# WriteSame10.UnmapUntilEnd writes a block of ones with UNMAP and wants zeros back. UNMAP lets a device unmap what is written; what is read
# must be as if the block of the Data-Out Buffer had been written to each address, without modification (SBC-4, WRITE SAME(10)). The
# other tests of WRITE SAME with UNMAP send zeros, as every host does.
ONES = "WriteSame10.UnmapUntilEnd"
# With larger physical blocks GetLBAStatus.UnmapSingle asks for a first descriptor that does not hold the address that was asked for,
# against SBC-4 5.9.1.
SINGLE = "GetLBAStatus.UnmapSingle"

# name -> driver, more of the volume, more of the target, what fails, the most skips, what of the suite runs
RUNS = {
    "malloc": ("malloc", "", "", [ONES], ALWAYS + SAME_PHYSICAL, None),
    "file": ("file", "", "", [ONES], ALWAYS + SAME_PHYSICAL + WRITE_ATOMIC, None),
    "header-digest": ("malloc", "", 'header_digest = "require"', [ONES], ALWAYS + SAME_PHYSICAL, None),
    "malloc-4096": ("malloc", "physical_block_size = 4096", "", [ONES, SINGLE], ALWAYS, None),
    "file-4096": ("file", "physical_block_size = 4096", "", [ONES, SINGLE], ALWAYS + WRITE_ATOMIC, None),
    "read-only": ("malloc", "", "", [], 0, "*.ReadOnly"),
}

SUMMARY = re.compile(r"^\s*tests\s+(\d+)\s+(\d+)\s+(\d+)\s+(\d+)\s+\d+\s*$", re.MULTILINE)
PORTAL = re.compile(r"^iscsiadm .*-p (\S+)", re.MULTILINE)


def config(name):
    """The configuration of a run: one unit on two portals."""
    driver, volume, target, _, _, only = RUNS[name]
    path = 'path = "disk0.img"' if driver == "file" else ""
    read_only = str(only is not None).lower()
    return f"""
[memory]
size = "128MiB"
[[bdev]]
name = "disk0"
driver = "{driver}"
size = {SIZE}
{path}
{volume}
[iscsi]
portals = [{{ listen = "127.0.0.1:0", tpgt = 1 }}, {{ listen = "127.0.0.1:0", tpgt = 2 }}]
[[iscsi.target]]
iqn = "{IQN}"
luns = [{{ bdev = "disk0", read_only = {read_only} }}]
{target}
"""


class Served:
    """The program on a configuration, until the end of the block; `wrapper` is ahead of its command."""

    def __init__(self, binary, text, place, wrapper=()):
        self.log = place / "reactor.log"
        (place / "poll.toml").write_text(text)
        with open(self.log, "wb") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self.process = subprocess.Popen([*wrapper, binary, "--config", place / "poll.toml"], **streams)

    def __enter__(self):
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            text = self.log.read_text(errors="replace")
            if "reactor: ready" in text:
                portals = list(dict.fromkeys(PORTAL.findall(text)))
                return [f"iscsi://{portal}/{IQN}/0" for portal in portals]
            time.sleep(0.05)
        self.process.kill()
        raise OSError(f"reactor is not ready: {self.log.read_text(errors='replace')[-2000:]}")

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def failed_tests(said):
    """Names of the tests that failed, each with what it said first."""
    suite, found = "", []
    for block in re.split(r"^(?=Suite: |  Test: )", said, flags=re.MULTILINE):
        if block.startswith("Suite: "):
            suite = block.split()[1]
        elif block.startswith("  Test: ") and re.search(r"FAILED\s*$|^\s*\d+\. ", block, re.MULTILINE):
            why = re.search(r"\[FAILED\] (.*)", block)
            found.append(f"{suite}.{block.split()[1]}: {why.group(1) if why else 'failed'}")
    return found


def judge(name, said):
    """What is wrong with a run, as lines; none if it is as it has to be."""
    _, _, _, contrary, most, only = RUNS[name]
    summary = SUMMARY.search(said)
    if not summary:
        return ["the suite did not come to its end", *said.splitlines()[-10:]]
    total, ran, passed, failed = map(int, summary.groups())
    skipped = said.count("[SKIPPED]")
    wrong = []
    expected = TESTS if only is None else WRITE_PROTECTED
    if (total, ran) != (expected, expected):
        wrong.append(f"{ran} of {total} tests ran: {expected} are known")
    found = failed_tests(said)
    if len(found) != failed:
        wrong.append(f"{failed} tests failed, and {len(found)} are named: {', '.join(found)}")
    others = [one for one in found if not any(f"{known}:" in one for known in contrary)]
    if others or failed > FAMILIES * len(contrary):
        wrong += [f"{passed} of {total} passed, {failed} failed, {FAMILIES * len(contrary)} contradict the standard", *others]
    if skipped > most:
        wrong.append(f"{skipped} lines of skips, {most} at most")
        reasons = re.findall(r"\[SKIPPED\] (.*)", said)
        wrong += [f"{reasons.count(one):4} {one}" for one in sorted(set(reasons), key=reasons.count, reverse=True)]
    return wrong


def run(binary, logs, report):
    """All runs, each reported as one test."""
    install("test", {"iscsi-test-cu": "libiscsi-bin"})
    if not shutil.which("iscsi-test-cu"):
        report.fail("iscsi-conformance", "iscsi-test-cu is not installed, and could not be: apt-get install libiscsi-bin")
        return
    # They wait most of the time, each for its own server.
    with concurrent.futures.ThreadPoolExecutor(len(RUNS)) as pool:
        ends = {name: pool.submit(one, name, binary, logs) for name in RUNS}
    for name, end in ends.items():
        test, log = f"iscsi-conformance {name}", log_of(logs, name)
        try:
            said = end.result()
        except (OSError, subprocess.TimeoutExpired) as error:
            report.fail(test, str(error), log)
            continue
        wrong = judge(name, said)
        summary = SUMMARY.search(said)
        if summary:
            report.note(f"{test}: {summary.group(3)} of {summary.group(1)} passed, {said.count('[SKIPPED]')} lines of skips")
        if wrong:
            report.fail(test, wrong[0], log, wrong)
        else:
            report.ok(test)


def log_of(logs, name):
    return logs / f"iscsi-conformance-{name}.log"


def one(name, binary, logs):
    """One run; what the suite said."""
    only, log = RUNS[name][-1], log_of(logs, name)
    with tempfile.TemporaryDirectory(dir=TARGET, prefix="conformance-") as place:
        with Served(binary, config(name), pathlib.Path(place)) as urls:
            # The last of the three ways to print holds: names beside what failed.
            words = ["iscsi-test-cu", "-d", "-n", "-s", "-v", "-i", INITIATORS[0], "-I", INITIATORS[1]]
            words += ["-t", only] if only else []
            with open(log, "wb") as out:
                streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.STDOUT}
                environment = {**os.environ, "LC_ALL": "C"}
                subprocess.run([*words, *urls], env=environment, timeout=SUITE_TIMEOUT_S, check=False, **streams)
    return log.read_text(errors="replace")
