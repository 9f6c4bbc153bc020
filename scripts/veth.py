"""Data over a network of this machine: fio's checksums on a volume, with server and load in network namespaces of their own and a veth pair
between them.

    fio -> NBD on a unix socket -> qemu-nbd with QEMU's iSCSI driver (libiscsi) -> veth -> reactor

A block that comes back as another one ends fio with an error; that it does is shown by a case of its own.
"""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

from conformance import IQN, Served
from machine import TARGET, end_group, install
from qemu_iscsi import qemu

PROGRAMS = {"fio": "fio", "ip": "iproute2", "ethtool": "ethtool", "qemu-nbd": "qemu-utils", "iscsi-ls": "libiscsi-bin"}
INITIATOR = "iqn.2026-11.test.veth"
MIB = 1 << 20
SIZE = 256 * MIB
START_TIMEOUT_S = 30
LOAD_TIMEOUT_S = 120
DEVICE = "veth0"
PORT = 3260
# Addresses of documentation (RFC 5737, RFC 3849) with the length of their network: of the server, of the load.
V4 = ("192.0.2.1", "192.0.2.2", 30)
V6 = ("2001:db8::1", "2001:db8::2", 64)
MTU = 1500
# An Ethernet frame of it, as the counters have it.
FRAME = MTU + 14

# name -> driver, whether each frame is of the MTU and no larger, header digest, addresses. libiscsi has no data digest.
RUNS = {
    "malloc": ("malloc", False, "none", V4),
    "malloc-frames": ("malloc", True, "crc32c", V4),
    "file": ("file", False, "crc32c", V6),
    "file-frames": ("file", True, "none", V4),
}

# Writes with a checksum in each block, all read back and compared: sizes, in flight, jobs, bytes of a job, from where on, more. Each has
# its own place and its own seed: data of another one is as wrong as damage.
WORK = [
    ("512-64k", 32, 2, 32 * MIB, 0, []),
    # Several bursts each: unsolicited data, and R2Ts.
    ("64k-2m", 4, 1, 64 * MIB, 64 * MIB, []),
    # Some are read back while others are written.
    ("4k-16k", 64, 1, 32 * MIB, 128 * MIB, ["--verify_backlog=256", "--verify_backlog_batch=64"]),
]
# Blocks that are trimmed and written again and again, where others are trimmed for good, and where one is damaged: from where on, how many bytes.
TRIMMED = (160 * MIB, 32 * MIB)
GONE = (192 * MIB, 32 * MIB)
DAMAGED = (224 * MIB, 8 * MIB)


class Failed(Exception):
    """A run did not go as it has to."""


def run(binary, logs, report):
    """All runs, each reported as one test."""
    install("test", PROGRAMS)
    missing = sorted({package for program, package in PROGRAMS.items() if not shutil.which(program)})
    if missing:
        report.fail("iscsi-veth", f"not installed, and could not be: apt-get install {' '.join(missing)}")
        return
    try:
        tools = {name: qemu(name) for name in ("qemu-nbd", "qemu-io")}
    except OSError as error:
        report.fail("iscsi-veth", str(error))
        return
    for name in RUNS:
        test, log = f"iscsi-veth {name}", logs / f"iscsi-veth-{name}.log"
        log.write_text("")
        try:
            report.note(f"{test}: {one(name, binary, tools, log)}")
        except (Failed, OSError, subprocess.TimeoutExpired) as error:
            report.fail(test, str(error), log)
        else:
            report.ok(test)


def one(name, binary, tools, log):
    """One run; what there is to tell of it."""
    driver, frames, digest, (server, load, prefix) = RUNS[name]
    portal = f"[{server}]:{PORT}" if ":" in server else f"{server}:{PORT}"
    started = time.monotonic()
    # A path of a unix socket is short.
    with (
        tempfile.TemporaryDirectory(dir=TARGET, prefix="veth-") as place,
        tempfile.TemporaryDirectory(prefix="reactor-veth-") as sockets,
        Network((server, load, prefix), frames) as network,
        Served(binary, config(driver, portal), pathlib.Path(place), network.inside(network.server)),
        Export(tools["qemu-nbd"], network, portal, digest, pathlib.Path(sockets), log) as export,
    ):
        before = network.counters()
        written = 0
        for seed, (sizes, depth, jobs, size, start, more) in enumerate(WORK, 1):
            words = [f"--bsrange={sizes}", f"--iodepth={depth}", f"--numjobs={jobs}", f"--size={size}", f"--offset={start}"]
            done = fio(export.uri, seed, log, *words, f"--offset_increment={size}", "--do_verify=1", *more)
            expect(done, {"write": jobs * size, "read": jobs * size})
            written += jobs * size
        trim(export, tools["qemu-io"], log)
        if name == next(iter(RUNS)):
            damage(export, tools["qemu-io"], log)
        after = network.counters()
    sent, came = (after[way]["bytes"] - before[way]["bytes"] for way in ("tx", "rx"))
    packets = after["tx"]["packets"] - before["tx"]["packets"]
    if min(sent, came) < written:
        raise Failed(f"{sent} and {came} bytes went over the pair: {written} at least had to, each way")
    mean = sent // packets
    if frames and sent > packets * FRAME:
        raise Failed(f"frames of {mean} bytes in the mean: {FRAME} at most")
    if not frames and mean <= FRAME:
        raise Failed(f"frames of {mean} bytes in the mean: with its offloads the pair has longer ones")
    seconds = time.monotonic() - started
    return f"{written // MIB} MiB written and verified in {seconds:.0f} s, frames of {mean} bytes in the mean"


def expect(jobs, least):
    """Fails unless jobs have moved so many bytes each way at least: a verification reads what was written."""
    for way, size in least.items():
        moved = sum(job[way]["io_bytes"] for job in jobs)
        if moved < size:
            raise Failed(f"{way}: {moved} bytes, {size} are to be")


def trim(export, qemu_io, log):
    """A block is trimmed and then written, again and again: no trim takes effect late. What is trimmed for good is zeros, and nothing else is."""
    start, size = TRIMMED
    jobs = 4
    # One after the other: of two at a time on one block either may be the last. At random places fio would not write.
    words = ["--bsrange=4k-64k", "--iodepth=1", f"--numjobs={jobs}", f"--offset_increment={size // jobs}"]
    words += [f"--offset={start}", f"--size={size // jobs}", "--do_verify=1"]
    expect(fio(export.uri, 31, log, *words, way="trimwrite"), {"trim": size, "write": size, "read": size})
    start, size = GONE
    words = ["--bsrange=4k-64k", "--iodepth=16", f"--offset={start}", f"--size={size}", "--do_verify=1"]
    expect(fio(export.uri, 32, log, *words), {"write": size, "read": size})
    middle = [f"--offset={start + size // 4}", f"--size={size // 2}"]
    expect(
        fio(export.uri, 33, log, "--bs=64k", "--iodepth=16", *middle, "--verify=0", way="randtrim"),
        {"trim": size // 2},
    )
    said = qemu_io_says(qemu_io, export, f"read -P 0 {start + size // 4} {size // 2}")
    if "verification failed" in said or "read " not in said:
        raise Failed(f"trimmed blocks are no zeros: {said}")
    for at in (start, start + size * 3 // 4):
        if "verification failed" not in qemu_io_says(qemu_io, export, f"read -P 0 {at} {size // 4}", True):
            raise Failed(f"the blocks at {at} are zeros, which were not trimmed")


def qemu_io_says(qemu_io, export, command, may_fail=False):
    """A command of qemu-io; what it says."""
    words = [*qemu_io, "-f", "raw", "-c", command, export.uri]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode and not may_fail:
        raise Failed(f"qemu-io {command}: {done.stdout}{done.stderr}")
    return done.stdout + done.stderr


def damage(export, qemu_io, log):
    """Shows that a block which is not what was written is found: one byte is changed between the writing and the reading."""
    start, size = DAMAGED
    words = ["--bsrange=4k-64k", "--iodepth=16", f"--size={size}", f"--offset={start}"]
    fio(export.uri, 99, log, *words, "--do_verify=0")
    fio(export.uri, 99, log, *words, "--verify_only=1")
    place = start + size // 2 + 1000
    # OFFSET:  HEX  TEXT
    said = qemu_io_says(qemu_io, export, f"read -v {place} 1")
    found = next((line.split()[1] for line in said.splitlines() if line.startswith(f"{place:08x}:")), None)
    if found is None:
        raise Failed(f"qemu-io: {said}")
    qemu_io_says(qemu_io, export, f"write -P {int(found, 16) ^ 1} {place} 1")
    try:
        fio(export.uri, 99, log, *words, "--verify_only=1")
    except Failed as found:
        if "verify failed" not in str(found):
            raise
    else:
        raise Failed(f"the byte at {place} was changed, and fio did not find it")


def config(driver, portal):
    path = 'path = "disk0.img"' if driver == "file" else ""
    return f"""
[memory]
size = "128MiB"
[[bdev]]
name = "disk0"
driver = "{driver}"
size = {SIZE}
{path}
[iscsi]
listen = ["{portal}"]
[[iscsi.target]]
iqn = "{IQN}"
luns = [{{ bdev = "disk0" }}]
"""


def fio(uri, seed, log, *words, way="randwrite"):
    """Writes with checksums at random places, or their verification; what it says of its jobs."""
    command = ["fio", "--name=veth", "--ioengine=nbd", f"--uri={uri}", f"--rw={way}", "--verify=crc32c", "--verify_fatal=1"]
    # Data of its own at each place, and sizes of the range that are multiples of the block.
    command += [f"--randseed={seed}", "--blocksize_unaligned=0", "--thread", "--verify_state_save=0"]
    command += ["--output-format=json", *words]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LOAD_TIMEOUT_S, check=False
    )
    with open(log, "a") as out:
        out.write(f"{' '.join(command)}\n{done.stderr}{done.stdout if done.returncode else ''}")
    if done.returncode:
        said = [line for line in (done.stderr + done.stdout).splitlines() if "verify" in line or "error" in line.lower()]
        raise Failed(f"fio {' '.join(words)}: exit {done.returncode}: {' | '.join(said[:3])}")
    jobs = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    if any(job["error"] for job in jobs):
        raise Failed(f"fio {' '.join(words)}: error {[job['error'] for job in jobs]}")
    return jobs


def ip(*words):
    """Runs ip(8); its standard output."""
    done = subprocess.run(["ip", *map(str, words)], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        why = f"ip {' '.join(map(str, words))}: {done.stderr.strip()}"
        remedy = "" if os.geteuid() == 0 else ": network namespaces are for root (in a container: with CAP_NET_ADMIN and CAP_SYS_ADMIN)"
        raise Failed(why + remedy)
    return done.stdout


class Network:
    """Two network namespaces and a veth pair between them, until the end of the block. With `frames`, what goes over it has the length of
    its MTU at most; else it has what the kernel offloads to it, 64 KiB at a time."""

    def __init__(self, addresses, frames):
        self.addresses, self.frames = addresses, frames
        self.server, self.load = (f"reactor-{os.getpid()}-{side}" for side in ("server", "load"))
        self.made = []

    def __enter__(self):
        try:
            for name in (self.server, self.load):
                ip("netns", "add", name)
                self.made.append(name)
            pair = ["link", "add", DEVICE, "mtu", MTU, "netns", self.server, "type", "veth"]
            ip(*pair, "peer", "name", DEVICE, "mtu", MTU, "netns", self.load)
            *addresses, prefix = self.addresses
            for name, address in zip((self.server, self.load), addresses, strict=True):
                if self.frames:
                    offloads = [word for feature in ("tx", "tso", "gso", "gro") for word in (feature, "off")]
                    self.call(name, "ethtool", "-K", DEVICE, *offloads)
                # An IPv6 address is in use at once.
                ip("-n", name, "address", "add", f"{address}/{prefix}", "dev", DEVICE, *(["nodad"] if ":" in address else []))
                ip("-n", name, "link", "set", DEVICE, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        # The pair goes with a namespace.
        for name in self.made:
            with contextlib.suppress(Failed):
                ip("netns", "delete", name)

    def inside(self, name):
        """Words that run a program in a namespace."""
        return ["ip", "netns", "exec", name]

    def call(self, name, *words):
        done = subprocess.run([*self.inside(name), *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise Failed(f"{' '.join(words)}: {done.stderr.strip()}")

    def counters(self):
        """Of the load's end of the pair: what it has sent (tx) and received (rx), bytes and packets."""
        return json.loads(ip("-n", self.load, "-s", "-j", "link", "show", DEVICE))[0]["stats64"]


class Export:
    """The logical unit as NBD at a unix socket, until the end of the block."""

    def __init__(self, qemu_nbd, network, portal, digest, place, log):
        self.socket = place / "nbd"
        self.uri = f"nbd+unix:///?socket={self.socket}"
        options = {
            "driver": "raw",
            "file.driver": "iscsi",
            "file.transport": "tcp",
            "file.portal": portal,
            "file.target": IQN,
            "file.lun": 0,
            "file.initiator-name": INITIATOR,
            "file.header-digest": digest,
        }
        command = [*network.inside(network.load), *qemu_nbd, "--socket", self.socket, "--persistent", "--shared", "8"]
        command += ["--cache", "none", "--discard", "unmap"]
        command += ["--image-opts", ",".join(f"{key}={value}" for key, value in options.items())]
        self.log = log
        with open(log, "ab") as out:
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
            self.process = subprocess.Popen([str(word) for word in command], start_new_session=True, **streams)

    def __enter__(self):
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if self.socket.exists():
                return self
            time.sleep(0.02)
        self.__exit__()
        raise Failed(f"qemu-nbd is not ready: {self.log.read_text(errors='replace')[-1000:]}")

    def __exit__(self, *_):
        end_group(self.process)
