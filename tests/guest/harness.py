"""Runs named cases in a guest and says how each ended, one line a case: `ok NAME`, `FAIL NAME: why`, `skip NAME: why`.

Every other line starts with `# `. A guest that a case has wrecked is left with exit code `LOST`: another one goes on with
`--after=NAME`. Bounds are 5 to 10 times what a quiet machine needs under emulation.
"""

import collections
import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
import traceback

COMMAND_TIMEOUT_S = 90
CASE_TIMEOUT_S = 180
APPEAR_TIMEOUT_S = 30
# From one look at what is waited for to the next: at first, and later.
LOOK_S = 0.004
LOOK_MAX_S = 0.06
KERNEL_LINES_SHOWN = 25
# EX_TEMPFAIL: what is left to run is for another guest. `scripts/runner.py` knows it.
LOST = 75
# What no case on a disk behind an IOMMU may leave in the kernel's log: a device that reaches where it must not, above all.
STRAY = re.compile(r"DMAR: .*(fault|DMA)|BUG:|WARNING:|Oops")

Done = collections.namedtuple("Done", "code output errors")


class Failure(Exception):
    """A case did not see what it must see."""


class Unsupported(Exception):
    """What is under test, the kernel or a stand-in for the target, has not what the case needs."""


def check(condition, message):
    """Fails the case with `message` unless `condition` holds."""
    if not condition:
        raise Failure(message)


def run(*command, timeout_s=COMMAND_TIMEOUT_S, succeed=True, environment=None):
    """Runs a command to its end and returns its `Done`; fails the case if it exits with an error and `succeed`.

    A command that does not end is killed and left alone: one that waits for a lost device cannot even be killed.
    """
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        words = [str(word) for word in command]
        process = subprocess.Popen(
            words, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=errors
        )
        try:
            process.wait(timeout_s)
        except BaseException as error:
            process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise Failure(f"no end after {timeout_s} s: {_line(command)}") from None
            raise
        output.seek(0)
        errors.seek(0)
        done = Done(process.returncode, output.read().decode(errors="replace"), errors.read().decode(errors="replace"))
    if succeed and done.code != 0:
        said = " ".join((done.errors or done.output).split())
        raise Failure(f"exit {done.code}: {_line(command)}: {said[-400:]}")
    return done


def wait_until(what, condition, timeout_s=APPEAR_TIMEOUT_S):
    """Waits until `condition()` returns something true and returns it; fails the case naming `what` otherwise."""
    end = time.monotonic() + timeout_s
    pause = LOOK_S
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise Failure(f"not seen within {timeout_s} s: {what}")
        time.sleep(pause)
        pause = min(2 * pause, LOOK_MAX_S)


def note(text):
    """Prints a detail that is no result."""
    for line in str(text).splitlines():
        print(f"# {line}", flush=True)


class Suite:
    """The cases in the order of their definition.

    `before` and `after` surround each case; what `after` raises fails the case. `recover` is called after a failed case
    and returns whether the next can run. `excuse` is given what the kernel has said during a failed case, and returns
    why the case could not be judged, if that says so.
    """

    def __init__(self, before, after, recover, excuse=lambda lines: None):
        self.cases = []
        self.before = before
        self.after = after
        self.recover = recover
        self.excuse = excuse

    def case(self, function):
        """Adds a case; its name is that of the function."""
        self.cases.append((function.__name__, function))
        return function

    def variants(self, **arguments):
        """Adds a case for each name, calling the function with that name's arguments."""

        def add(function):
            for name, words in arguments.items():
                self.cases.append((f"{function.__name__}_{name}", lambda words=words: function(*words)))
            return function

        return add

    def run(self, words):
        """Runs the cases whose names contain one of `words` (all if there are none), of those after NAME if there is
        `--after=NAME`; returns the exit code. Other words that begin with `--` are not for the suite."""
        wanted = [word for word in words if not word.startswith("--")]
        cases = [case for case in self.cases if not wanted or any(word in case[0] for word in wanted)]
        for done in (word.split("=")[1] for word in words if word.startswith("--after=")):
            cases = cases[[name for name, _ in cases].index(done) + 1 :]
        failed = 0
        for name, function in cases:
            started = time.monotonic()
            since = kernel_lines()
            why = self._one(name, function)
            if why is None:
                print(f"# {name}: {time.monotonic() - started:.1f} s", flush=True)
                continue
            said = kernel_lines()[len(since) :]
            excuse = self.excuse(said)
            print(f"skip {name}: {excuse}: {why}" if excuse else f"FAIL {name}: {why}", flush=True)
            failed += not excuse
            note("kernel:\n" + "\n".join(said[-KERNEL_LINES_SHOWN:]))
            try:
                with _limit(CASE_TIMEOUT_S):
                    recovered = self.recover()
            except Exception as error:
                note(f"recovery: {error}")
                recovered = False
            if not recovered:
                # The word of qemu/init: what is left of this guest may not come to its end.
                print(f"rig: exit {LOST}", flush=True)
                return LOST
        if wanted and not cases:
            print(f"FAIL selection: no case has {' or '.join(wanted)} in its name", flush=True)
            failed += 1
        return 1 if failed else 0

    def _one(self, name, function):
        """Runs a case; returns None if it passed or was skipped, else why it failed."""
        why = skipped = None
        try:
            with _limit(CASE_TIMEOUT_S):
                self.before()
                try:
                    function()
                except Unsupported as error:
                    skipped = error
        except Failure as error:
            why = str(error)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            note(traceback.format_exc())
        try:
            with _limit(CASE_TIMEOUT_S):
                self.after()
        except Exception as error:
            why = f"{why}; then {error}" if why else str(error)
        if why is None:
            print(f"skip {name}: {skipped}" if skipped else f"ok {name}", flush=True)
        return why.replace("\n", " ") if why else None


@contextlib.contextmanager
def _limit(seconds):
    def expired(*_):
        raise Failure(f"no end after {seconds} s")

    signal.signal(signal.SIGALRM, expired)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def kernel_lines():
    """What the kernel has logged."""
    size = 1 << 18
    descriptor = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
    lines = []
    try:
        while True:
            try:
                record = os.read(descriptor, size)
            except BlockingIOError:
                return lines
            except BrokenPipeError:
                continue
            lines.append(record.decode(errors="replace").split(";", 1)[1].split("\n")[0])
    finally:
        os.close(descriptor)


def stray_lines(since):
    """What the kernel has logged of stray accesses, but for its first `since` lines."""
    return [line for line in kernel_lines()[since:] if STRAY.search(line)]


def _line(command):
    return " ".join(str(word) for word in command)
