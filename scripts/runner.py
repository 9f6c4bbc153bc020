"""Runs the groups of tests: scripts/test [--list] [--full] [GROUP...].

Installs what is missing where it may, runs the groups named (all without a name), prints one line a test and ends with
`N passed, N failed`. A group that cannot run, and code that does not compile, are failures. Logs: target/test-logs.
"""

import argparse
import concurrent.futures
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import conformance
import veth
from machine import ROOT, TARGET, end_group, install

LOGS = TARGET / "test-logs"
sys.path.insert(0, str(ROOT / "qemu"))

STEP_TIMEOUT_S = 900
# How a guest script ends that leaves the rest to another guest (tests/guest/harness.py), and how many guests that may take.
LOST = 75
GUESTS_MAX = 4
# How much longer a guest may take with --full.
FULL_FACTOR = 8
TAIL_LINES = 40
SAID_LINES = 10

# Integration tests that are not of the native group.
OTHER_GROUPS = {"tidy", "sim", "no_alloc", "decoders"}

# program -> package that has it
PROGRAMS = {"cc": "build-essential", "dpkg": "dpkg", "ldd": "libc-bin", "valgrind": "valgrind"}

# Tests of the native group that the iscsi group runs: minutes of crowds and of data under every setting, and time-outs that are waited for.
ISCSI_LONG = ("iscsi::crowds", "iscsi::mangled", "iscsi::silent", "iscsi::verify")

TEST_LINE = re.compile(r"^test (.+?) \.\.\. (ok|FAILED|ignored)\b(.*)$")
GUEST_LINE = re.compile(r"^(ok|FAIL|skip) ([\w-]+)(?:: (.*))?$")


class Report:
    """Prints results as they come and counts them. Several threads may report."""

    def __init__(self):
        self.passed = self.failed = self.skipped = 0
        self.lock = threading.Lock()

    def group(self, name):
        with self.lock:
            print(f"\n== {name}", flush=True)

    def ok(self, name):
        with self.lock:
            self.passed += 1
            print(f"ok   {name}", flush=True)

    def fail(self, name, why, log=None, said=None):
        """Counts a failure; shows what the test `said`, or else the end of its log."""
        with self.lock:
            self.failed += 1
            print(f"FAIL {name}: {why}")
            if log and log.exists():
                lines = said or log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
                print(f"     {log}:")
                for line in lines:
                    print(f"     | {line}")
            sys.stdout.flush()

    def skip(self, name, why):
        with self.lock:
            self.skipped += 1
            print(f"skip {name}: {why}", flush=True)

    def note(self, text):
        with self.lock:
            print(f"     {text}", flush=True)

    def end(self):
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        print(f"\n{self.passed} passed, {self.failed} failed{skipped}", flush=True)
        return 1 if self.failed else 0


class Step:
    """A command run to its end, its output in a log."""

    running = set()

    def __init__(self, name, command, environment=None):
        self.name = name
        self.log = LOGS / f"{name}.log"
        self.code = None
        self.why = None
        started = time.monotonic()
        with open(self.log, "wb") as log:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env={**os.environ, "CARGO_TERM_COLOR": "never", **(environment or {})},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except FileNotFoundError:
                self.why = f"{command[0]} is not installed"
                return
            Step.running.add(process)
            try:
                self.code = process.wait(STEP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.why = f"no end after {STEP_TIMEOUT_S} s"
            finally:
                end_group(process)
                Step.running.discard(process)
        if self.code:
            self.why = f"exit {self.code} after {time.monotonic() - started:.0f} s"

    def lines(self):
        return self.log.read_text(errors="replace").splitlines()


def as_one(report, step):
    """Reports a step as one test."""
    if step.why:
        report.fail(step.name, step.why, step.log)
    else:
        report.ok(step.name)


def as_cargo_tests(report, step):
    """Reports each test that `cargo test` ran, and the step itself if it failed in another way."""
    failed = count = 0
    for line in step.lines():
        found = TEST_LINE.match(line)
        if not found:
            continue
        name, result, rest = found.groups()
        count += 1
        if result == "ok":
            report.ok(f"{step.name} {name}")
        elif result == "ignored":
            report.skip(f"{step.name} {name}", rest.lstrip(", ") or "ignored")
        else:
            failed += 1
            report.fail(f"{step.name} {name}", "failed", step.log, said_by(step, name))
    if step.why and not failed:
        report.fail(step.name, step.why, step.log)
    elif not count and not step.why:
        report.note(f"{step.name}: no tests")


def said_by(step, test):
    """The first lines that a failed test printed, which hold its panic."""
    lines = step.lines()
    try:
        start = lines.index(f"---- {test} stdout ----") + 1
    except ValueError:
        return None
    end = next((at for at in range(start, len(lines)) if lines[at].startswith(("----", "failures:"))), len(lines))
    return [line for line in lines[start:end] if line][:SAID_LINES]


def test_targets(package):
    """Names of a package's integration tests."""
    text = subprocess.run(
        ["cargo", "metadata", "--no-deps", "--format-version", "1"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = next(one for one in json.loads(text)["packages"] if one["name"] == package)
    return [target["name"] for target in found["targets"] if "test" in target["kind"]]


def selected(names):
    return [word for name in names for word in ("--test", name)]


# The groups


def lint(report, _):
    """Format, clippy and documentation with warnings as errors, and the rules of the tree"""
    as_one(report, Step("lint-fmt", ["cargo", "fmt", "--all", "--check"]))
    clippy = ["cargo", "clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]
    as_one(report, Step("lint-clippy", clippy))
    # Not run, but kept from rotting: the fuzz targets share their checks with tests/decoders.
    fuzz = ["cargo", "clippy", "--manifest-path", ROOT / "fuzz/Cargo.toml", "--target-dir", TARGET / "fuzz"]
    as_one(report, Step("lint-fuzz", [*fuzz, "--locked", "--no-default-features", "--", "-D", "warnings"]))
    doc = ["cargo", "doc", "--workspace", "--no-deps"]
    as_one(report, Step("lint-doc", doc, {"RUSTDOCFLAGS": "-Dwarnings"}))
    if "tidy" in test_targets("reactor"):
        as_cargo_tests(report, Step("lint-tidy", ["cargo", "test", "--no-fail-fast", "--test", "tidy"]))
    else:
        report.fail("lint-tidy", "tests/tidy is missing")


def unit(report, _):
    """Tests of the modules, the documentation, the hugepages crate; decoders under random input; no allocation per I/O"""
    test = ["cargo", "test", "--no-fail-fast"]
    as_cargo_tests(report, Step("unit-lib", [*test, "--workspace", "--lib", "--bins"]))
    targets = [name for name in test_targets("hugepages") if name != "loom"]
    as_cargo_tests(report, Step("unit-hugepages", [*test, "-p", "hugepages", *selected(targets)]))
    # A build of its own: the flag changes every crate, and in the common folder would undo what is built there.
    loom = [*test, "--release", "-p", "hugepages", "--test", "loom", "--target-dir", TARGET / "loom"]
    as_cargo_tests(report, Step("unit-loom", loom, {"RUSTFLAGS": "--cfg loom"}))
    as_cargo_tests(report, Step("unit-doc", [*test, "--workspace", "--doc"]))
    as_cargo_tests(report, Step("unit-no-alloc", [*test, "--test", "no_alloc", "--", "--test-threads=1"]))
    as_one(report, Step("unit-setup", [sys.executable, "-B", ROOT / "tests/setup_machine.py"]))
    # Ten million inputs for each decoder: only optimised code gets through them in time.
    as_cargo_tests(report, Step("unit-decoders", [*test, "--release", "--test", "decoders"]))


def sim(report, _):
    """Target, host and block layer in simulated worlds: 600 seeds, each a world"""
    as_cargo_tests(report, Step("sim", ["cargo", "test", "--no-fail-fast", "--test", "sim"]))


def native(report, prepared):
    """The real binary on this machine, driven by our own host"""
    targets = native_targets()
    if not targets:
        report.fail("native", "tests/ has no integration tests that need the binary")
        return
    if not released(report, prepared, "native"):
        return
    test = ["cargo", "test", "--release", "--no-fail-fast"]
    skipped = [word for name in ISCSI_LONG for word in ("--skip", name)]
    as_cargo_tests(report, Step("native", [*test, *selected(targets), "--", "--test-threads=1", *skipped]))


def iscsi(report, prepared):
    """The iSCSI door: an initiator of our own, libiscsi's conformance suite, fio's checksums over a veth pair"""
    if not released(report, prepared, "iscsi"):
        return
    test = ["cargo", "test", "--release", "--no-fail-fast", "--test", "native", "--", "--test-threads=1", "iscsi::"]
    as_cargo_tests(report, Step("iscsi", test))
    conformance.run(TARGET / "release/reactor", LOGS, report)
    veth.run(TARGET / "release/reactor", LOGS, report)


def native_targets():
    return [name for name in test_targets("reactor") if name not in OTHER_GROUPS]


def speed(report, _):
    """Instructions per I/O, counted by callgrind, against benches/instructions.toml"""
    if not shutil.which("valgrind"):
        report.skip("speed-instructions", "valgrind is not installed and could not be: nothing counts instructions")
        return
    as_one(report, Step("speed-instructions", ["cargo", "bench", "--bench", "instructions"]))


def guest_nvmf(report, prepared):
    """NVMe/TCP against the kernel's host, in guests with the newest and the 6.12 kernel"""
    in_guests(report, prepared, "guest-nvmf", "nvmf", ROOT / "tests/guest/nvmf.py")


def guest_iscsi(report, prepared):
    """iSCSI against open-iscsi and the kernel's initiator, in guests with the newest and the 6.12 kernel"""
    in_guests(report, prepared, "guest-iscsi", "iscsi", ROOT / "tests/guest/iscsi.py")


def guest_ublk(report, prepared):
    """Volumes as local disks, in guests with the newest and the 6.12 kernel; --full: all combinations"""
    arguments = ["--full"] if prepared["full"] else []
    in_guests(report, prepared, "guest-ublk", "ublk", ROOT / "tests/guest/ublk.py", arguments, ["pattern"])


def guest_nvme(report, prepared):
    """NVMe disks driven through VFIO, in guests with the newest and the 6.12 kernel"""
    in_guests(report, prepared, "guest-nvme", "nvme", ROOT / "tests/guest/nvme.py", examples=["nvme_probe"])
    # What the driver stands on, and what a machine must have, by a program that uses that alone.
    for name, shape in (("guest-nvme-vfio", "nvme"), ("guest-nvme-bare", "nvme-bare")):
        in_guests(report, prepared, name, shape, ROOT / "tests/guest/nvme_probe.py", examples=["nvme_probe"])


def in_guests(report, prepared, group, shape, script, arguments=(), examples=()):
    """Runs a script in a guest of each kernel, both at once; in another one what is left after a guest was lost. The
    binary goes along, and some examples."""
    from rig.image import KERNELS
    from rig.machine import Machine, guest_payload
    from rig.packages import RigError

    if not released(report, prepared, group):
        return

    def one(kernel):
        name = f"{group}-{kernel}"
        log = LOGS / f"{name}.log"
        failed = count = 0
        last = None

        def line(text):
            nonlocal failed, count, last
            found = GUEST_LINE.match(text)
            if not found:
                return
            result, last, why = found.groups()
            case = last
            count += 1
            if result == "ok":
                report.ok(f"{name} {case}")
            elif result == "skip":
                report.skip(f"{name} {case}", why)
            else:
                failed += 1
                report.fail(f"{name} {case}", why, log if failed == 1 else None)

        try:
            machine = Machine(kernel, shape)
            report.note(f"{name}: Linux {machine.kernel.version} under {machine.accelerator()}")
            timeout_s = machine.shape["timeout"] * (FULL_FACTOR if arguments else 1)
            words = list(arguments)
            for boot in range(GUESTS_MAX):
                part = log.with_stem(f"{log.stem}-{boot}") if boot else log
                payload = guest_payload(script, binaries, words)
                code = machine.run(payload, part, timeout_s, echo=line)
                if code != LOST:
                    break
                words = [*arguments, f"--after={last}"]
            if (code not in (0, LOST) and not failed) or code == LOST or not count:
                report.fail(name, f"exit {code} after {count} cases", part)
        except (RigError, OSError) as error:
            report.fail(name, str(error), log)

    binaries = [TARGET / "release/reactor", *(TARGET / "release/examples" / name for name in examples)]
    prepared["images"].result()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for future in [pool.submit(one, kernel) for kernel in KERNELS]:
            future.result()


GROUPS = {
    "lint": lint,
    "unit": unit,
    "sim": sim,
    "native": native,
    "iscsi": iscsi,
    "speed": speed,
    "guest-nvmf": guest_nvmf,
    "guest-iscsi": guest_iscsi,
    "guest-ublk": guest_ublk,
    "guest-nvme": guest_nvme,
}
GUEST_GROUPS = {"guest-nvmf", "guest-iscsi", "guest-ublk", "guest-nvme"}


# What the groups need


def released(report, prepared, name):
    """Waits for the release build; reports the group as failed if there is none."""
    step = prepared["release"].result()
    if step.why:
        report.fail(name, f"the release build failed: {step.why}", step.log)
    return not step.why


def build_release(groups):
    """The binary as users run it, the examples, and the integration tests if the native group is to run."""
    step = Step("build-release", ["cargo", "build", "--release", "--bins", "--examples"])
    targets = native_targets() if {"native", "iscsi"} & set(groups) else []
    if step.why or not targets:
        return step
    # Only a cache: what does not compile here is reported by the group that runs it.
    Step("build-native", ["cargo", "test", "--release", "--no-run", *selected(targets)])
    return step


def build_images():
    """The parts of the guests. A failure here comes again, and is reported, where a guest is started."""
    from rig.image import KERNELS, Images
    from rig.packages import RigError

    try:
        images = Images()
        images.qemu()
        for kernel in KERNELS:
            images.kernel(kernel)
    except (RigError, OSError) as error:
        print(f"     guest images: {error}", flush=True)


def prepare(groups, pool):
    """Starts what later groups need while the first ones run."""
    prepared = {}
    if {"native", "iscsi", *GUEST_GROUPS} & set(groups):
        prepared["release"] = pool.submit(build_release, groups)
    if GUEST_GROUPS & set(groups):
        prepared["images"] = pool.submit(build_images)
    return prepared


def install_components():
    """Installs the parts of the toolchain that the lint group needs, or says which."""
    for component, probe in (("rustfmt", "fmt"), ("clippy", "clippy")):
        if (
            shutil.which("cargo")
            and subprocess.run(["cargo", probe, "--version"], cwd=ROOT, check=False, capture_output=True).returncode
        ):
            if shutil.which("rustup"):
                subprocess.run(["rustup", "component", "add", component], cwd=ROOT, check=False)
            else:
                print(f"test: cargo {probe} is not installed: rustup component add {component}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        prog="scripts/test",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Runs the tests.",
        epilog="groups:\n" + "\n".join(f"  {name:12} {group.__doc__}" for name, group in GROUPS.items()),
    )
    parser.add_argument("--list", action="store_true", help="name the groups")
    parser.add_argument("--full", action="store_true", help="whole matrices where a group has them: hours, not minutes")
    parser.add_argument("group", nargs="*", metavar="GROUP", help="default: all")
    options = parser.parse_args()
    if options.list:
        print("\n".join(GROUPS))
        return 0
    unknown = [name for name in options.group if name not in GROUPS]
    if unknown:
        parser.error(f"no group named {' '.join(unknown)}: there are {', '.join(GROUPS)}")
    groups = [name for name in GROUPS if name in options.group or not options.group]
    LOGS.mkdir(parents=True, exist_ok=True)
    install("test", PROGRAMS)
    install_components()
    if not shutil.which("cargo"):
        print("test: cargo is not installed: see https://rustup.rs", flush=True)
    report = Report()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        try:
            prepared = {"full": options.full, **prepare(groups, pool)}
            for name in groups:
                report.group(name)
                started = time.monotonic()
                try:
                    GROUPS[name](report, prepared)
                except Exception as error:
                    report.fail(name, f"could not run: {type(error).__name__}: {error}")
                report.note(f"{name}: {time.monotonic() - started:.0f} s")
        finally:
            for process in list(Step.running):
                end_group(process)
    return report.end()


if __name__ == "__main__":
    sys.exit(main())
