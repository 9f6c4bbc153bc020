"""What the ublk cases share: reactor, the devices that it serves, load on them, and the suite."""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import jobs
import ublk_kernel
from disk import MIB, MOUNT, SCRATCH, Disk
from harness import Failure, Suite, Unsupported, check, kernel_lines, run, wait_until
from target import Config, Reactor, binary
from udev import settle_udev

STATE = pathlib.Path("/run/reactor/ublk")
# In a file system in memory.
TARGET = pathlib.Path("/tmp/target")
BY_ID = pathlib.Path("/dev/disk/by-id")
FULL = "--full" in sys.argv[1:]
SEED = next((int(word.split("=")[1]) for word in sys.argv[1:] if word.startswith("--seed=")), 1)
CPUS = sorted(os.sched_getaffinity(0))
KERNEL = "6.12" if os.uname().release.startswith("6.12.") else "newest"
# That of a process which hangs: a machine needs 2 s, an emulated one beside others up to four times that.
STOP_LIMIT_S = 30

# What a kernel says when something in it has gone wrong.
KERNEL_DEFECT = re.compile(r"BUG:|WARNING:|Oops|blocked for more than|general protection|refcount_t|KASAN|lockup")

# Linux before 6.15 may end the command of a request that is on its way to a server that is dying ("ublk: fix race between
# io_uring_cmd_complete_in_task and ublk_cancel_cmd"): what comes to it then finds a ring that is gone.
CRASH = re.compile(r"BUG: |Oops|general protection")
TRACE_LINES = 40
# Or the request is given back twice, which the end of the ring stumbles over.
END_DEFECT = re.compile(r"io_fallback_req_func|io_req_caches_free")
END_DEFECT_FIXED = (6, 15)


def by_turns(**variants):
    """The variants of this kernel: every other one, since what they differ in is not the kernel's; with `--full` all of them."""
    first = ["newest", "6.12"].index(KERNEL)
    return variants if FULL else dict(list(variants.items())[first::2])


def malloc(name, size_mib=16, **more):
    return {"name": name, "driver": "malloc", "size": size_mib * MIB, **more}


def file(name, size_mib=16, **more):
    """A volume in a file of the scratch disk. What a case before this one has left there goes with `fresh`."""
    path = str(SCRATCH / f"{name}.img")
    return {"name": name, "driver": "file", "path": path, "size": size_mib * MIB, **more}


def file_in_memory(name, size_mib=16, **more):
    """A volume in a file on tmpfs."""
    return file(name, size_mib, **more, path=str(TARGET / f"{name}.img"))


def inject(name, base, *rules):
    return {"name": name, "driver": "inject", "base": base, "rules": list(rules)}


def ublk(bdev, **more):
    return {"bdev": bdev, **more}


class World:
    """reactor and what it now serves."""

    def __init__(self):
        self.directory = TARGET
        self.directory.mkdir()
        self.binary = binary()
        self.target = Reactor(self.binary, self.directory)
        self.others = []
        self.config = None
        self.kernel_said = 0
        # Of the target, before the case.
        self.ends = 0
        self.features = ublk_kernel.features()

    def serve(self, bdevs, exports, **reactor):
        """Starts reactor with volumes of which nothing is there yet; returns their disks in the order of `exports`."""
        for bdev in bdevs:
            if bdev["driver"] == "file" and bdev["path"].startswith((f"{SCRATCH}/", f"{TARGET}/")):
                pathlib.Path(bdev["path"]).unlink(missing_ok=True)
        self.config = Config(bdevs, ublk=exports, **reactor)
        return self.start()

    def start(self):
        """Starts reactor with the configuration as it is; returns the disks."""
        self.target.start(self.config)
        return self.disks()

    def disks(self):
        """The disks that reactor has named, in the order of the configuration."""
        paths = [line for line in self.target.printed if line.startswith("/dev/ublkb")]
        return [Disk(path.removeprefix("/dev/")) for path in paths]

    def reload(self):
        self.target.reload(self.config)

    def stop(self):
        """Ends reactor as an administrator does, at a time when nobody looks at its disks."""
        settle_udev()
        code, seconds = self.target.stop(STOP_LIMIT_S)
        check(code == 0, f"SIGTERM: exit {code}: {' | '.join(self.target.logged()[-3:])}")
        return seconds

    def second(self, name):
        """Another reactor with a configuration file of its own, ended with the case."""
        directory = self.directory / name
        directory.mkdir(exist_ok=True)
        other = Reactor(self.binary, directory)
        self.others.append(other)
        return other

    def logged(self, words):
        """The lines of reactor's log, since its last start, with all of `words`."""
        return [line for line in self.target.logged() if all(word in line for word in words)]

    def wait_for_log(self, *words, timeout_s=20):
        return wait_until(f"log line with {' and '.join(words)}", lambda: self.logged(words), timeout_s)

    def before(self):
        self.kernel_said = len(kernel_lines())
        self.ends = self.target.ends
        left = ublk_kernel.devices()
        check(not left, f"devices before the case: {left}")

    def after(self):
        """Every case ends with reactor's end, and nothing is left of it."""
        Load.end_all()
        if MOUNT.is_mount():
            run("umount", MOUNT)
        alive = [reactor for reactor in [*self.others, self.target] if reactor.alive()]
        if alive:
            settle_udev()
        for reactor in alive:
            code, _ = reactor.stop(STOP_LIMIT_S)
            check(code == 0, f"SIGTERM after the case: exit {code}: {' | '.join(reactor.logged()[-3:])}")
        self.others.clear()
        check_nothing_left()
        bad = [line for line in kernel_lines()[self.kernel_said :] if KERNEL_DEFECT.search(line)]
        check(not bad, f"the kernel says: {' | '.join(bad[:3])}")

    def excuse(self, kernel_said):
        """Why a failed case says nothing about reactor: this kernel has crashed by a defect of its own."""
        release = tuple(int(number) for number in os.uname().release.split(".")[:2])
        if release >= END_DEFECT_FIXED or self.target.ends == self.ends:
            return None
        crash = next((at for at, line in enumerate(kernel_said) if CRASH.search(line)), len(kernel_said))
        if any(END_DEFECT.search(line) for line in kernel_said[crash : crash + TRACE_LINES]):
            return f"Linux {os.uname().release} has crashed, a defect of its own when a server ends"
        return None

    def recover(self):
        """Ends whatever a failed case left; says whether the next can run."""
        self.target.show()
        Load.end_all()
        run("umount", "-l", MOUNT, succeed=False)
        for reactor in [*self.others, self.target]:
            if reactor.alive():
                reactor.kill()
        self.others.clear()
        # The kernel lets go of a server that was killed, then its devices can be taken away.
        wait_until("devices taken away", lambda: (ublk_kernel.remove_all(), not ublk_kernel.devices())[1], timeout_s=60)
        shutil.rmtree(STATE, ignore_errors=True)
        for path in pathlib.Path("/dev").glob("ublkb*"):
            if path.is_file():
                # A program made a file by the name of a disk that had gone.
                path.unlink()
        run("dmsetup", "remove_all", "--force", succeed=False)
        run("losetup", "-D", succeed=False)
        return True


def check_nothing_left():
    """Fails the case if a device, a node, a state file or a name of one is still there."""
    seen = [f"ublkc{number}" for number in ublk_kernel.devices()]
    # devtmpfs follows the device, udev follows both.
    settle_udev()
    seen += [path.name for path in sorted(pathlib.Path("/dev").glob("ublk[bc]*"))]
    seen += [f"state file {path.name}" for path in (sorted(STATE.iterdir()) if STATE.is_dir() else [])]
    seen += [f"name {path.name}" for path in (BY_ID.glob("reactor-*") if BY_ID.is_dir() else [])]
    check(not seen, f"left behind: {', '.join(seen)}")


def needs(feature, what):
    """Skips the case on a kernel whose ublk has not the feature."""
    if not WORLD.features & feature:
        raise Unsupported(f"ublk of Linux {os.uname().release} has no {what}")


class Load:
    """fio verify on a disk over and over, until it is told to end."""

    running = set()

    def __init__(self, disk, **names):
        words, environment = jobs.words(disk, **names)
        script = 'while [ ! -e "$END" ]; do "$@" || exit 1; echo; done'
        self.end_file = WORLD.directory / f"end-{disk.name}"
        self.end_file.unlink(missing_ok=True)
        self.output = WORLD.directory / f"load-{disk.name}"
        with open(self.output, "wb") as output:
            self.process = subprocess.Popen(
                ["sh", "-c", script, "load", *words],
                env={**environment, "END": str(self.end_file)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.disk = disk
        # Between two rounds, too, the disk is in use.
        self.descriptor = os.open(disk.path, os.O_RDONLY)
        Load.running.add(self)
        wait_until("load", lambda: self.check_goes_on() or disk.writes() > 50, timeout_s=60)

    def check_goes_on(self):
        code = self.process.poll()
        check(code is None, f"fio failed: {self.said()}")

    def wait_for_more(self, count=50, timeout_s=60):
        """Waits until more writes are completed: I/O goes on."""
        goal = self.disk.writes() + count
        wait_until(f"{count} more writes", lambda: self.check_goes_on() or self.disk.writes() >= goal, timeout_s)

    def end(self, timeout_s=jobs.TIMEOUT_S):
        """Lets the round end and says how many there were; fails the case if one found an error."""
        self.end_file.touch()
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise Failure(f"fio did not end within {timeout_s} s: I/O hangs") from None
        Load.running.discard(self)
        os.close(self.descriptor)
        check(code == 0, f"fio failed: {self.said()}")
        return self.output.read_text(errors="replace").count("\n\n") or 1

    def said(self):
        return " ".join(self.output.read_text(errors="replace").split())[-400:]

    @classmethod
    def end_all(cls):
        for load in list(cls.running):
            if load.process.poll() is None:
                os.killpg(load.process.pid, signal.SIGKILL)
            os.close(load.descriptor)
        cls.running.clear()


def descriptors(pid):
    """What the open descriptors of a process are, sorted."""
    found = []
    for path in pathlib.Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.append(os.readlink(path))
        except FileNotFoundError:
            continue
    return sorted(found)


def cpu_seconds(pid):
    """Processor time that a process has used."""
    words = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


WORLD = World()
suite = Suite(WORLD.before, WORLD.after, WORLD.recover, WORLD.excuse)
