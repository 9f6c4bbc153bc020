"""One boot: machine shapes, the choice of accelerator, the payload, and the result."""

import json
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import tempfile
import time
import tomllib

from . import cpio
from .image import QEMU, REPOSITORY, Images, program
from .packages import RigError

MARKER = re.compile(rb"^rig: exit (\d+)\r?$", re.MULTILINE)
TRIAL_TIMEOUT_S = 20
# How long a guest that has said its exit code may take to go. One whose kernel has crashed may not go at all.
GONE_TIMEOUT_S = 60
# QEMU's TCG with several threads now and then fails an assertion of its own while the firmware or the kernel sets up devices, loses a
# timer of the kernel's for good, or has a processor run what another one patches (an int3 of the kernel's, seconds after the start).
BOOTS_MAX = 3
# How long a boot may take: 8 to 30 s emulated on a quiet machine.
BEGIN_TIMEOUT_S = 240
# name in /test -> directory of the repository whose files every payload has
CARRIED = {
    "fio": REPOSITORY / "scripts/fio",
    "udev": REPOSITORY / "scripts/udev",
    "scripts": REPOSITORY / "scripts",
}


def shapes():
    """The machine shapes by name."""
    with open(QEMU / "shapes.toml", "rb") as file:
        return tomllib.load(file)


class Machine:
    """A kernel in a machine shape. `run` boots it once for one payload; a machine may run many times, and at once."""

    def __init__(self, kernel, shape, images=None):
        self.images = images or Images()
        known = shapes()
        if shape not in known:
            raise RigError(f"no machine shape named {shape}: shapes.toml has {', '.join(known)}")
        self.shape = known[shape]
        self.kernel = self.images.kernel(kernel)
        self.tools = self.images.tools()
        self.qemu = self.images.qemu()

    def run(self, payload, log, timeout_s=None, echo=None):
        """Boots, runs the payload's `run` and returns its exit code.

        `payload` maps paths to contents as `cpio.archive` takes them. The test's output goes to the file `log` (and,
        as it comes, line by line to `echo`), the kernel's console to the same name with `.console` added. Raises
        `RigError` if the guest ends without having said its exit code.
        """
        with self._directory() as place:
            initrd = place / "initrd"
            with open(initrd, "wb") as file:
                file.write(self.kernel.initrd.read_bytes())
                file.write(cpio.archive({f"payload/{name}": entry for name, entry in payload.items()}))
            console = pathlib.Path(f"{log}.console")
            serial = ["-serial", f"file:{console}", "-serial", f"file:{log}"]
            command = self._command(place, initrd, serial, self.accelerator(), [])
            for _ in range(BOOTS_MAX):
                code, crashed = _wait(command, self._environment(), log, timeout_s or self.shape["timeout"], echo)
                if not crashed:
                    break
        if code is None:
            raise RigError(f"the guest ended without an exit code; its console: {console}\n{_tail(console)}")
        return code

    def shell(self, payload):
        """A shell in the guest on this terminal, with the payload in /test. Ends with `exit`, or Ctrl-A x."""
        with self._directory() as place:
            initrd = place / "initrd"
            archive = cpio.archive({f"payload/{name}": entry for name, entry in payload.items()})
            initrd.write_bytes(self.kernel.initrd.read_bytes() + archive)
            serial = ["-serial", "mon:stdio", "-serial", "null"]
            command = self._command(place, initrd, serial, self.accelerator(), ["rig.shell"])
            return subprocess.call(command, env=self._environment())

    def accelerator(self):
        """`kvm` if a trial boot printed from user space under it, else `tcg`. Remembered until this machine reboots.

        The device alone says little: a nested, paravirtual KVM opens and then stops on a stock kernel.
        """
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            return "tcg"
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        key = f"{boot} {self.kernel.directory.name} {self.qemu.name}"
        memory = self.images.store / f"accelerator-{self.kernel.name}.json"
        if memory.exists():
            known = json.loads(memory.read_text())
            if known["key"] == key:
                return known["accelerator"]
        with self._directory() as place:
            log = place / "log"
            serial = ["-serial", f"file:{place / 'console'}", "-serial", f"file:{log}"]
            command = self._command(place, self.kernel.initrd, serial, "kvm", ["rig.trial"])
            good = _wait(command, self._environment(), log, TRIAL_TIMEOUT_S, None)[0] == 0
        accelerator = "kvm" if good else "tcg"
        memory.write_text(json.dumps({"key": key, "accelerator": accelerator}))
        return accelerator

    def _directory(self):
        return _RunDirectory(self.images.store)

    def _environment(self):
        modules = self.qemu / "sysroot/usr/lib/x86_64-linux-gnu/qemu"
        return {**os.environ, "QEMU_MODULE_DIR": str(modules)}

    def _command(self, place, initrd, serial, accelerator, kernel_arguments):
        shape = self.shape
        sysroot = self.qemu / "sysroot"
        command = [*program(self.qemu, "usr/bin/qemu-system-x86_64")]
        for data in ("usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"):
            command += ["-L", sysroot / data]
        processor = "host" if accelerator == "kvm" else "max"
        threads = ",thread=multi" if accelerator == "tcg" else ""
        command += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"]
        machine = ",".join(["q35", *shape.get("machine", [])])
        command += ["-machine", machine, "-accel", f"{accelerator}{threads}", "-cpu", processor]
        command += ["-smp", str(shape["cpus"]), "-m", str(shape["memory"])]
        command += shape.get("before", [])
        disks = [(self.tools / "root.ext4", True), (self.kernel.modules, True)]
        if shape["scratch"]:
            scratch = place / "scratch.img"
            with open(scratch, "wb") as file:
                file.truncate(shape["scratch"] << 20)
            disks.append((scratch, False))
        for index, (path, read_only) in enumerate(disks):
            mode = "readonly=on" if read_only else "cache=unsafe,discard=unmap"
            command += ["-drive", f"file={path},if=none,id=disk{index},format=raw,{mode}"]
            command += ["-device", f"virtio-blk-pci,drive=disk{index}"]
        command += ["-device", "virtio-rng-pci"]
        for name, size_mib in shape.get("files", {}).items():
            with open(place / f"{name}.img", "wb") as file:
                file.truncate(size_mib << 20)
        command += [word.format(run=place) for word in shape["devices"]]
        words = ["console=ttyS0", "quiet", "loglevel=6", "panic=-1", *shape["kernel"], *kernel_arguments]
        # On a busy machine too few ticks arrive while the kernel looks whether its timer works: it would panic.
        words.append("no_timer_check")
        command += ["-kernel", self.kernel.image, "-initrd", initrd, "-append", " ".join(words)]
        return [str(word) for word in [*command, *serial]]


class _RunDirectory:
    """A directory for the files of one boot, removed with it."""

    def __init__(self, store):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="run-", dir=store))

    def __enter__(self):
        return self.path

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)


def _wait(command, environment, log, timeout_s, echo):
    """Runs QEMU to its end. Returns the exit code that the guest said, or None if it said none in time; and whether the payload did not
    even begin: QEMU itself crashed, or the kernel did not come up, or did not stay."""
    pathlib.Path(log).write_bytes(b"")
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    started = time.monotonic()
    end = started + timeout_s
    seen = size = 0
    said = False
    try:
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
            if echo:
                seen = _echo_lines(log, seen, echo)
            before, size = size, os.stat(log).st_size
            if not size and time.monotonic() > started + BEGIN_TIMEOUT_S:
                break
            if size != before and not said and MARKER.search(pathlib.Path(log).read_bytes()):
                said = True
                end = min(end, time.monotonic() + GONE_TIMEOUT_S)
    finally:
        if process.poll() is None:
            process.kill()
        errors = process.communicate()[1]
    if echo:
        _echo_lines(log, seen, echo)
    crashed = not pathlib.Path(log).read_bytes()
    with open(log, "ab") as file:
        file.write(errors)
    found = MARKER.search(pathlib.Path(log).read_bytes())
    return int(found.group(1)) if found else None, crashed


def _echo_lines(log, seen, echo):
    with open(log, "rb") as file:
        file.seek(seen)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    for line in whole.decode(errors="replace").splitlines():
        echo(line.rstrip("\r"))
    return seen + len(whole)


def _tail(path, lines=30):
    if not path.exists():
        return "(empty)"
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def guest_payload(script, binaries=(), arguments=()):
    """The payload that runs a test script: its directory as /test/guest, the programs it tests in /test/bin.

    The directories of `CARRIED` go along under their own names.
    """
    script = pathlib.Path(script).resolve()
    entries = {}
    for name, directory in (("guest", script.parent), *CARRIED.items()):
        entries.update({f"{name}/{path.name}": path for path in sorted(directory.iterdir()) if path.is_file()})
    for binary in binaries:
        entries.update(_with_closure(pathlib.Path(binary)))
    words = shlex.join([f"guest/{script.name}", *arguments])
    entries["run"] = f"#!/bin/sh\nexec {words}\n".encode()
    return entries


def _with_closure(binary):
    """Payload entries that run a program of this machine in a guest with an older or newer libc.

    The program and what `ldd` names go along; `bin/NAME` is a script that starts it with this machine's loader.
    """
    if not binary.exists():
        raise RigError(f"{binary} does not exist: build it first")
    listing = subprocess.run(["ldd", binary], capture_output=True, text=True, check=False)
    entries = {f"lib/{binary.name}": binary}
    loader = None
    for line in listing.stdout.splitlines() if listing.returncode == 0 else []:
        found = re.search(r"(/\S+) \(0x", line)
        if found:
            path = pathlib.Path(found.group(1))
            entries[f"lib/{path.name}"] = path
            if path.name.startswith("ld-linux"):
                loader = path.name
    start = f"/test/lib/{loader} --library-path /test/lib " if loader else ""
    entries[f"bin/{binary.name}"] = f'#!/bin/sh\nexec {start}/test/lib/{binary.name} "$@"\n'.encode()
    return entries
