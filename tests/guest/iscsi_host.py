"""The kernel's iSCSI initiator as open-iscsi and sysfs show it."""

import errno
import os
import pathlib
import re
import subprocess

from disk import Disk
from harness import Failure, check, run, wait_until

V4, V6, SECOND = "127.0.0.1:3260", "[::1]:3260", "198.51.100.2:3260"
# The name by which the guest speaks if a test gives none: `INITIATOR` of qemu/rig/image.py.
INITIATOR = "iqn.1993-08.org.debian:01:guest"
# Another initiator of the same guest, by an interface record that has its name.
ALICE = "iqn.1993-08.org.debian:01:alice"
ALICE_FACE = "alice"
DATABASE = pathlib.Path("/var/lib/iscsi")
LOG = pathlib.Path("/tmp/iscsid.log")
SESSIONS = pathlib.Path("/sys/class/iscsi_session")
# iscsiadm's exit codes (its manual, EXIT STATUS)
NO_RECORDS = 21
AUTHORIZATION_FAILED = 24


def start_iscsid():
    """Starts iscsid, with the configuration of its package."""
    for place in (DATABASE, pathlib.Path("/run/lock/iscsi")):
        place.mkdir(parents=True)
    with open(LOG, "wb") as log:
        daemon = subprocess.Popen(["iscsid", "-f"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)

    def up():
        check(daemon.poll() is None, f"iscsid ended with {daemon.returncode}: {LOG.read_text()[-300:]}")
        # It says that there is no session once it listens to iscsiadm.
        return iscsiadm("-m", "session", succeed=False).code == NO_RECORDS

    wait_until("iscsid", up)


def daemon_said():
    """How much iscsid has logged."""
    return LOG.stat().st_size


def daemon_says(text, since):
    """Whether iscsid has logged `text` behind the first `since` bytes."""
    with open(LOG, "rb") as file:
        file.seek(since)
        return text in file.read().decode(errors="replace")


def iscsiadm(*arguments, succeed=True):
    return run("iscsiadm", *arguments, succeed=succeed)


def _face(name):
    """Words that choose who speaks. The record of another initiator is there only while a case uses it: who names none
    speaks for all."""
    if name == ALICE_FACE and not (DATABASE / "ifaces" / name).exists():
        iscsiadm("-m", "iface", "-I", name, "-o", "new")
        for key, value in (("iface.transport_name", "tcp"), ("iface.initiatorname", ALICE)):
            iscsiadm("-m", "iface", "-I", name, "-o", "update", "-n", key, "-v", value)
    return ["-I", name]


def discover(portal=V4, face="default"):
    """What SendTargets tells at a portal: names with lists of the portals (address, tag of the group)."""
    return _told(iscsiadm("-m", "discovery", "-t", "sendtargets", "-p", portal, *_face(face)))


def discover_with(portal, settings, succeed=True):
    """SendTargets with settings of the discovery, as `discover`; what iscsiadm did if it need not `succeed`."""
    words = ["-m", "discoverydb", "-t", "sendtargets", "-p", portal]
    iscsiadm(*words, "-o", "new")
    try:
        for name, value in settings.items():
            iscsiadm(*words, "-o", "update", "-n", f"discovery.sendtargets.{name}", "-v", value)
        done = iscsiadm(*words, "--discover", succeed=succeed)
    finally:
        iscsiadm(*words, "-o", "delete", succeed=False)
    return _told(done) if succeed else done


def _told(done):
    found = {}
    for line in done.output.splitlines():
        match = re.fullmatch(r"(\S+),(\d+) (\S+)", line.strip())
        check(match, f"discovery prints {line!r}")
        found.setdefault(match[3], []).append((match[1], int(match[2])))
    return found


class Session:
    """A session: `name` is sessionN."""

    def __init__(self, name):
        self.name = name
        self.number = name.removeprefix("session")
        self.sysfs = SESSIONS / name

    def attribute(self, name):
        try:
            return (self.sysfs / name).read_text().strip()
        except OSError:
            return None

    def connection(self, name):
        """An attribute of its connection."""
        found = list(self.sysfs.glob(f"device/connection*/iscsi_connection/*/{name}"))
        check(len(found) == 1, f"{self.name} has {len(found)} connections with {name}")
        return found[0].read_text().strip()

    def target(self):
        return self.attribute("targetname")

    def state(self):
        return self.attribute("state")

    def find_unit(self, lun):
        """The SCSI device of a logical unit (a directory), or None."""
        return next(iter(self.sysfs.glob(f"device/target*/*:*:*:{lun}")), None)

    def find(self, lun):
        """The block device of a logical unit (sdX), or None."""
        unit = self.find_unit(lun)
        return next((path.name for path in unit.glob("block/sd*")), None) if unit else None

    def generic(self, lun=0):
        """The node by which commands go to a logical unit past its disk."""
        unit = wait_until(f"logical unit {lun} of {self.target()}", lambda: self.find_unit(lun))
        return wait_until("its generic device", lambda: next((f"/dev/{it.name}" for it in unit.glob("scsi_generic/sg*")), None))

    def block(self, lun=0):
        """Its block device, once it can be opened: the kernel shows the directory before the disk is there."""
        name = wait_until(f"logical unit {lun} of {self.target()}", lambda: self.find(lun))
        wait_until(f"/dev/{name}", lambda: opens(f"/dev/{name}"))
        return Block(name)

    def rescan(self):
        iscsiadm("-m", "session", "-r", self.number, "--rescan")

    def logout(self):
        iscsiadm("-m", "session", "-r", self.number, "-u")
        wait_until(f"{self.name} gone", lambda: not self.sysfs.exists())


def opens(path):
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO):
            return False
        raise
    return True


class Block(Disk):
    """The block device of a logical unit."""

    def errno_of_write(self, offset, data):
        """The error of a write, 0 if it has none."""
        return _errno(lambda: self.write(offset, data))

    def errno_of_read(self, offset, length):
        return _errno(lambda: self.read(offset, length))


def _errno(action):
    try:
        action()
    except OSError as error:
        return error.errno
    return 0


def sessions():
    found = SESSIONS.glob("session*") if SESSIONS.exists() else []
    return [Session(path.name) for path in sorted(found)]


CHAP = "node.session.auth."
HEADER_DIGEST = "node.conn[0].iscsi.HeaderDigest"
DATA_DIGEST = "node.conn[0].iscsi.DataDigest"


def chap(user, secret, algorithms=None, mutual=None):
    """Settings of a login; `mutual` is what the target must prove: user, secret."""
    settings = {"authmethod": "CHAP", "username": user, "password": secret}
    if algorithms:
        settings["chap_algs"] = algorithms
    if mutual:
        settings["username_in"], settings["password_in"] = mutual
    return {CHAP + name: value for name, value in settings.items()}


def prepare(target, portal=V4, face="default", settings=None):
    """Makes the record of a target at a portal; returns the words that name it to iscsiadm."""
    words = ["-m", "node", "-T", target, "-p", portal, *_face(face)]
    iscsiadm(*words, "-o", "new")
    for name, value in (settings or {}).items():
        iscsiadm(*words, "-o", "update", "-n", name, "-v", value)
    return words


def login(target, portal=V4, face="default", settings=None):
    """Logs in and returns the session."""
    before = {session.name for session in sessions()}
    iscsiadm(*prepare(target, portal, face, settings), "--login")
    return the_new_session(before)


def the_new_session(before):
    """The one session that is none of those named `before`, logged in."""
    new = [session for session in sessions() if session.name not in before]
    check(len(new) == 1, f"login made {len(new)} sessions")
    wait_until(f"{new[0].name} logged in", lambda: new[0].state() == "LOGGED_IN")
    return new[0]


def refused_login(target, portal=V4, face="default", settings=None):
    """Fails the case unless a login is refused; returns iscsiadm's exit code and what it said."""
    done = iscsiadm(*prepare(target, portal, face, settings), "--login", succeed=False)
    check(done.code != 0 and not sessions(), f"login to {target} succeeded: {done.output}")
    return done.code, done.output + done.errors


def logout_all(succeed=True):
    """Ends every session and forgets every record; the devices are gone when it returns."""
    if sessions():
        iscsiadm("-m", "session", "-u", succeed=succeed)
        wait_until("no session left", lambda: not sessions())
    done = iscsiadm("-m", "node", "-o", "delete", succeed=False)
    check(done.code in (0, NO_RECORDS), f"records stay: {done.errors}")
    if (DATABASE / "ifaces" / ALICE_FACE).exists():
        iscsiadm("-m", "iface", "-I", ALICE_FACE, "-o", "delete")


def sg(program, *arguments, succeed=True):
    """Runs a program of sg3-utils."""
    return run(f"sg_{program}", *arguments, succeed=succeed)


def test_unit_ready(block, succeed=True):
    """Sends TEST UNIT READY: sg_turs of Debian 12 says that the unit is ready, and sends nothing."""
    return sg("raw", block.path, *["00"] * 6, succeed=succeed)


def field(text, pattern):
    """The number in `text` that the group of `pattern` matches."""
    found = re.search(pattern, text)
    if not found:
        raise Failure(f"no {pattern!r} in {' '.join(text.split())[:600]}")
    return int(found[1], 16 if found[1].startswith("0x") else 10)


def backing_blocks(path):
    """Bytes that a file has allocated."""
    return os.stat(path).st_blocks * 512
