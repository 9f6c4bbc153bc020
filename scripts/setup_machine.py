"""Prepares a machine for NVMe disks by VFIO: scripts/setup [--check | --undo] [--hugepages N] [--user U].

Looks for an IOMMU, loads the modules of VFIO, reserves N hugepages of 2 MiB, and gives user U the IOMMU groups of the disks that are
bound to vfio-pci and the right to pin memory. It says each thing that it finds and changes; what it has changed stands in
/run/reactor/setup.json, from which --undo takes it back. --check changes nothing, and ends with 1 if something is missing.

It binds no disk: `reactor nvme bind` does, and says who uses it.
"""

import argparse
import json
import os
import pathlib
import pwd
import subprocess
import sys

MODULES = ["vfio-pci", "vfio_iommu_type1"]
NVME_CLASS = "0x010802"
HUGEPAGES = "proc/sys/vm/nr_hugepages"
STATE = "run/reactor/setup.json"


class Refused(Exception):
    """What cannot be done, and why."""


class Machine:
    """The machine, or what stands for it in a test: everything is below `root`."""

    def __init__(self, root="/", modprobe=None, chown=os.chown, say=print):
        self.root = pathlib.Path(root)
        self.modprobe = modprobe or _modprobe
        self.chown = chown
        self.say = say

    def path(self, name):
        return self.root / name

    def text(self, name):
        """What a file says, or None."""
        try:
            return self.path(name).read_text().strip()
        except OSError:
            return None

    # What is there

    def has_iommu(self):
        return any(self.path("sys/kernel/iommu_groups").glob("*"))

    def has_module(self, name):
        """Loaded, or part of the kernel."""
        if name == "vfio-pci":
            return self.path("sys/bus/pci/drivers/vfio-pci").is_dir()
        return self.path(f"sys/module/{name}").is_dir()

    def hugepages(self):
        return int(self.text(HUGEPAGES) or 0)

    def bound(self):
        """Functions that are bound to vfio-pci, in use or not."""
        return sorted(path.name for path in self.path("sys/bus/pci/drivers/vfio-pci").glob("*:*"))

    def groups(self):
        """IOMMU groups of the NVMe disks that are bound to vfio-pci."""
        found = []
        for function in sorted(self.path("sys/bus/pci/devices").glob("*")):
            driver, group = function / "driver", function / "iommu_group"
            is_nvme = self.text(f"sys/bus/pci/devices/{function.name}/class") == NVME_CLASS
            if is_nvme and group.exists() and driver.exists() and os.path.basename(os.readlink(driver)) == "vfio-pci":
                found.append(os.path.basename(os.readlink(group)))
        return sorted(set(found), key=int)

    def limits_file(self, user):
        return f"etc/security/limits.d/reactor-{user}.conf"

    # What was changed

    def state(self):
        text = self.text(STATE)
        return json.loads(text) if text else []

    def keep(self, state):
        path = self.path(STATE)
        if not state:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_suffix(".new")
        new.write_text(json.dumps(state, indent=1) + "\n")
        new.replace(path)

    def changed(self, step):
        """Notes a change before it is made: of two of the same thing the first knows how it was."""
        state = self.state()
        same = [one for one in state if one["what"] == step["what"] and one["name"] == step["name"]]
        if same:
            same[0]["to"] = step.get("to")
        else:
            state.append(step)
        self.keep(state)


def _modprobe(name, remove=False):
    """True if it worked."""
    command = ["modprobe", *(["-r"] if remove else []), name]
    try:
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def user_of(name):
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        raise Refused(f"there is no user {name}") from None


def check(machine, hugepages=None, user=None):
    """Says what there is; returns what is missing."""
    missing = []

    def one(good, there, otherwise):
        machine.say(there if good else otherwise)
        if not good:
            missing.append(otherwise)

    one(
        machine.has_iommu(),
        "IOMMU: there",
        "IOMMU: none, or it is off: enable VT-d or AMD-Vi in the firmware and boot with intel_iommu=on (amd: on by default)",
    )
    for name in MODULES:
        one(machine.has_module(name), f"module {name}: there", f"module {name}: not loaded: modprobe {name}")
    wanted, have = hugepages or 0, machine.hugepages()
    one(have >= wanted, f"hugepages: {have}", f"hugepages: {have}, not {wanted}: scripts/setup --hugepages {wanted}")
    if user:
        uid = user_of(user)
        one(
            machine.path(machine.limits_file(user)).exists(),
            f"memory that {user} may pin: unlimited from the next login on",
            f"memory that {user} may pin: as it was: scripts/setup --user {user}",
        )
        for group in machine.groups():
            node = machine.path(f"dev/vfio/{group}")
            mine = node.exists() and node.stat().st_uid == uid
            one(mine, f"/dev/vfio/{group}: of {user}", f"/dev/vfio/{group}: not of {user}: scripts/setup --user {user}")
    return missing


def prepare(machine, hugepages=None, user=None):
    """Makes what is missing; returns what still is."""
    uid = user_of(user) if user else None
    for name in MODULES:
        if not machine.has_module(name):
            machine.changed({"what": "module", "name": name})
            machine.say(f"modprobe {name}" if machine.modprobe(name) else f"modprobe {name} fails")
    # Those of others are not taken away.
    if hugepages is not None and machine.hugepages() < hugepages:
        before = machine.hugepages()
        step = {"what": "hugepages", "name": "2 MiB", "from": before, "to": hugepages}
        machine.changed(step)
        machine.path(HUGEPAGES).write_text(f"{hugepages}\n")
        # The kernel gives as many as it finds.
        machine.changed({**step, "to": machine.hugepages()})
        machine.say(f"hugepages: {before} before, {machine.hugepages()} now")
    if user:
        limits = machine.limits_file(user)
        if not machine.path(limits).exists():
            machine.changed({"what": "limits", "name": limits})
            machine.path(limits).parent.mkdir(parents=True, exist_ok=True)
            machine.path(limits).write_text(f"{user} - memlock unlimited\n")
            machine.say(f"/{limits}: {user} may pin memory from the next login on")
        for group in machine.groups():
            node = machine.path(f"dev/vfio/{group}")
            if node.exists() and node.stat().st_uid != uid:
                about = node.stat()
                machine.changed({"what": "group", "name": group, "from": [about.st_uid, about.st_gid], "to": uid})
                machine.chown(node, uid, -1)
                machine.say(f"/dev/vfio/{group}: of {user} now")
    return check(machine, hugepages, user)


def undo(machine):
    """Takes back what `prepare` has changed, the last first; returns what could not be, which is tried again by the next."""
    left, kept = [], []
    for step in reversed(machine.state()):
        try:
            why = _undo(machine, step)
        except OSError as error:
            why = str(error)
        if why:
            left.append(f"{step['what']} {step['name']}: {why}")
            machine.say(left[-1])
            kept.insert(0, step)
    machine.keep(kept)
    return left


def _undo(machine, step):
    """Why a step cannot be undone, or None."""
    what, name = step["what"], step["name"]
    if what == "module":
        if name == "vfio-pci" and machine.bound():
            return f"{', '.join(machine.bound())} bound to it: reactor nvme unbind gives them back"
        if machine.has_module(name) and not machine.modprobe(name, remove=True):
            return "in use: give its disks back by reactor nvme unbind"
        machine.say(f"modprobe -r {name}")
    elif what == "hugepages":
        if machine.hugepages() != step["to"]:
            machine.say(f"hugepages: {machine.hugepages()} by somebody else, left")
            return None
        machine.path(HUGEPAGES).write_text(f"{step['from']}\n")
        machine.say(f"hugepages: {machine.hugepages()}")
    elif what == "limits":
        machine.path(name).unlink(missing_ok=True)
        machine.say(f"/{name} is removed")
    elif what == "group":
        node = machine.path(f"dev/vfio/{name}")
        if node.exists() and node.stat().st_uid == step["to"]:
            machine.chown(node, *step["from"])
        machine.say(f"/dev/vfio/{name}: as it was")
    return None


def main(arguments):
    parser = argparse.ArgumentParser(prog="scripts/setup", description="Prepares a machine for NVMe disks by VFIO.")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--check", action="store_true", help="say what is missing, change nothing; 1 if something is")
    way.add_argument("--undo", action="store_true", help="take back what was changed")
    parser.add_argument("--hugepages", type=int, metavar="N", help="hugepages of 2 MiB to have")
    parser.add_argument("--user", metavar="U", help="who is to run reactor, if not root")
    options = parser.parse_args(arguments)
    if options.hugepages is not None and options.hugepages < 0:
        parser.error("--hugepages is 0 or more")
    if options.undo and (options.hugepages is not None or options.user):
        parser.error("--undo takes back everything")
    machine = Machine()
    try:
        if options.check:
            return 1 if check(machine, options.hugepages, options.user) else 0
        if os.geteuid() != 0:
            raise Refused("for root: --check alone is for everybody")
        if options.undo:
            return 1 if undo(machine) else 0
        return 1 if prepare(machine, options.hugepages, options.user) else 0
    except (Refused, OSError) as error:
        print(f"scripts/setup: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
