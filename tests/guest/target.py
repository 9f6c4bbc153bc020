"""The target of a guest: `reactor`, or, to check the NVMe/TCP tests themselves, the kernel's own nvmet."""

import copy
import os
import pathlib
import shutil
import signal
import subprocess
import threading
import time
import uuid

from harness import Failure, Unsupported, check, note, run, wait_until

# Linux 6.12 takes 30 s to notice that a ublk server has died with all its tags in hand.
READY_TIMEOUT_S = 90
LOG_LINES_SHOWN = 12


class Config:
    """What a target serves, in the shape of reactor's configuration file."""

    def __init__(
        self, bdevs, listen=(), subsystems=(), ublk=(), iscsi=None, targets=(), memory_mib=48, socket=None, **reactor
    ):
        self.bdevs = bdevs
        self.listen = list(listen)
        self.subsystems = list(subsystems)
        self.ublk = list(ublk)
        self.iscsi = iscsi
        self.targets = list(targets)
        self.memory = {"size": f"{memory_mib}MiB"}
        self.socket = socket
        self.reactor = {"cores": [0, 1], **reactor}

    def copy(self):
        return copy.deepcopy(self)

    def bdev(self, name):
        return next(bdev for bdev in self.bdevs if bdev["name"] == name)

    def subsystem(self, nqn):
        return next(subsystem for subsystem in self.subsystems if subsystem["nqn"] == nqn)

    def target(self, iqn):
        return next(target for target in self.targets if target["iqn"] == iqn)

    def toml(self):
        lines = [*_table("[reactor]", self.reactor), *_table("[memory]", self.memory)]
        if self.socket:
            lines += _table("[control]", {"socket": str(self.socket)})
        for bdev in self.bdevs:
            lines += _table("[[bdev]]", bdev)
        if self.listen:
            lines += _table("[nvmf]", {"listen": self.listen})
        for subsystem in self.subsystems:
            lines += _table("[[nvmf.subsystem]]", subsystem)
        if self.iscsi:
            lines += _table("[iscsi]", self.iscsi)
        for target in self.targets:
            lines += _table("[[iscsi.target]]", target)
        for ublk in self.ublk:
            lines += _table("[[ublk]]", ublk)
        return "\n".join(lines)


def _table(head, keys):
    return [head, *(f"{key} = {_toml(value)}" for key, value in keys.items()), ""]


def _toml(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


class Reactor:
    """A process of `reactor --config FILE`."""

    def __init__(self, binary, directory):
        self.binary = binary
        # Ahead of the command, to run it as somebody else.
        self.wrapper = []
        self.config_file = directory / "poll.toml"
        self.log = directory / "reactor.log"
        self.log_start = 0
        self.process = None
        self.printed = []
        self.ready = threading.Event()
        # How often it was ended by a signal.
        self.ends = 0

    def start(self, config):
        """Starts it and returns when it has printed `reactor: ready`."""
        self.launch(config)
        end = time.monotonic() + READY_TIMEOUT_S
        while not self.ready.wait(0.05):
            code = self.process.poll()
            check(code is None, f"reactor ended with {code} before it was ready{self._said()}")
            check(time.monotonic() < end, f"reactor was not ready within {READY_TIMEOUT_S} s{self._said()}")

    def launch(self, config):
        """Starts it and returns at once."""
        self.config_file.write_text(config.toml())
        self.printed = []
        self.ready = threading.Event()
        with open(self.log, "ab") as log:
            self.log_start = log.tell()
            self.process = subprocess.Popen(
                [*self.wrapper, self.binary, "--config", self.config_file],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        threading.Thread(target=self._collect, args=(self.process, self.printed, self.ready), daemon=True).start()

    @staticmethod
    def _collect(process, printed, ready):
        for line in process.stdout:
            printed.append(line.rstrip("\n"))
            if line.strip() == "reactor: ready":
                ready.set()

    def reload(self, config):
        self.config_file.write_text(config.toml())
        self.process.send_signal(signal.SIGHUP)

    def kill(self):
        """Ends it as a crash does."""
        self.ends += 1
        self.process.kill()
        self.process.wait()

    def stop(self, timeout_s):
        """Sends SIGTERM; returns the exit code and the seconds it took."""
        started = time.monotonic()
        self.ends += 1
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise Failure(f"reactor still runs {timeout_s} s after SIGTERM{self._said()}") from None
        return code, time.monotonic() - started

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def assert_alive(self):
        check(self.alive(), f"reactor ended with {self.process.returncode}")

    def connect_lines(self):
        """The commands that it printed which connect a host."""
        return [line for line in self.printed if line.startswith(("nvme connect ", "iscsiadm "))]

    def logged(self):
        """The lines of its log since the last start."""
        if not self.log.exists():
            return []
        with open(self.log, "rb") as file:
            file.seek(self.log_start)
            return file.read().decode(errors="replace").splitlines()

    def show(self):
        note("reactor:\n" + "\n".join(self.logged()[-LOG_LINES_SHOWN:]))

    def _said(self):
        return ": " + " | ".join(self.logged()[-3:])


class Nvmet:
    """The kernel's own target behind the same calls: what fails on it is a defect of the tests.

    Volumes are loop devices on files: RAM volumes on tmpfs. A crash is the port going away.
    """

    ROOT = pathlib.Path("/sys/kernel/config/nvmet")

    def __init__(self, directory):
        self.directory = directory
        self.loops = {}
        self.running = None
        for module in ("configfs", "loop", "nvmet-tcp"):
            run("modprobe", module)
        if not self.ROOT.parent.is_mount():
            run("mount", "-t", "configfs", "configfs", self.ROOT.parent)
        wait_until("nvmet in configfs", self.ROOT.exists)

    def start(self, config):
        self._apply(config)

    def reload(self, config):
        self._apply(config)

    def kill(self):
        self._drop()

    def stop(self, timeout_s):
        started = time.monotonic()
        self._drop()
        return 0, time.monotonic() - started

    def alive(self):
        return self.running is not None

    def assert_alive(self):
        check(self.alive(), "nvmet is not set up")

    def connect_lines(self):
        raise Unsupported("nvmet prints no commands")

    def show(self):
        pass

    def _drop(self):
        for port in self.ROOT.glob("ports/*"):
            for link in port.glob("subsystems/*"):
                link.unlink()
            port.rmdir()
        self.running = None

    def _apply(self, config):
        for bdev in config.bdevs:
            self._volume(bdev)
        wanted = {subsystem["nqn"]: subsystem for subsystem in config.subsystems}
        for nqn, subsystem in wanted.items():
            self._subsystem(config, nqn, subsystem)
        for place in self.ROOT.glob("subsystems/*"):
            if place.name not in wanted:
                self._remove_subsystem(place)
        for index, address in enumerate(config.listen, 1):
            port = self.ROOT / f"ports/{index}"
            host, service = address.rsplit(":", 1)
            if not port.exists():
                port.mkdir()
                _write(port / "addr_trtype", "tcp")
                _write(port / "addr_adrfam", "ipv6" if host.startswith("[") else "ipv4")
                _write(port / "addr_traddr", host.strip("[]"))
                _write(port / "addr_trsvcid", service)
            for nqn in wanted:
                link = port / "subsystems" / nqn
                if not link.is_symlink():
                    link.symlink_to(self.ROOT / "subsystems" / nqn)
        self.running = config

    def _volume(self, bdev):
        size = int(bdev["size"])
        if bdev["driver"] == "malloc":
            path = self.directory / f"{bdev['name']}.ram"
        else:
            path = pathlib.Path(bdev["path"])
        with open(path, "ab"):
            os.truncate(path, size)
        loop = self.loops.get(bdev["name"])
        if loop:
            run("losetup", "-c", loop)
        else:
            block = str(bdev.get("block_size", 512))
            self.loops[bdev["name"]] = run("losetup", "-f", "--show", "-b", block, path).output.strip()

    def _subsystem(self, config, nqn, subsystem):
        place = self.ROOT / "subsystems" / nqn
        place.mkdir(exist_ok=True)
        hosts = subsystem.get("hosts", ["*"])
        _write(place / "attr_allow_any_host", "1" if hosts == ["*"] else "0")
        for host in hosts if hosts != ["*"] else []:
            (self.ROOT / "hosts" / host).mkdir(exist_ok=True)
            if not (place / "allowed_hosts" / host).is_symlink():
                (place / "allowed_hosts" / host).symlink_to(self.ROOT / "hosts" / host)
        wanted = {str(namespace["nsid"]): namespace for namespace in subsystem["namespaces"]}
        for old in place.glob("namespaces/*"):
            if old.name not in wanted:
                old.rmdir()
        for nsid, namespace in wanted.items():
            directory = place / "namespaces" / nsid
            if directory.exists():
                _write(directory / "revalidate_size", "1")
                continue
            directory.mkdir()
            _write(directory / "device_path", self.loops[namespace["bdev"]])
            _write(directory / "device_nguid", str(uuid.uuid5(uuid.NAMESPACE_URL, namespace["bdev"])))
            _write(directory / "enable", "1")

    def _remove_subsystem(self, place):
        for link in self.ROOT.glob(f"ports/*/subsystems/{place.name}"):
            link.unlink()
        for directory in [*place.glob("namespaces/*"), place]:
            directory.rmdir()


def _write(path, text):
    path.write_text(text)


def make(self_check, directory):
    """The target under test, its files in `directory`."""
    return Nvmet(directory) if self_check else Reactor(binary(), directory)


def binary():
    """The program under test."""
    path = pathlib.Path("/test/bin/reactor")
    if not shutil.which(path):
        raise Failure(f"{path} is not there: run the guest with --binary")
    return path
