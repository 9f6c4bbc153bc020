"""`reactor nvme`: what it says of disks agrees with the kernel's own tools, and it takes no disk from who uses it."""

import contextlib
import json
import os
import pathlib
import pwd
import socket
import subprocess

from disk import MIB, pattern
from harness import check, note, run, wait_until
from host import nvme
from jobs import fio
from nvme_world import DIRECTORY, STOP_LIMIT_S, VFIO, WORLD, attach, config, disconnect, functions, nqn, suite, volume
from target import binary

STATE = pathlib.Path("/run/reactor/nvme")
SETUP = "/test/scripts/setup"
SOCKET = DIRECTORY / "control.sock"
# What the next reading of a log may have more of.
COUNTERS = {
    "data_units_read",
    "data_units_written",
    "host_read_commands",
    "host_write_commands",
    "controller_busy_time",
    "num_err_log_entries",
    "power_on_hours",
}
# Of the newest revision: not in the structures of 2.0.
NEWER = set(
    "bpcap nssl plsi crcap kpioc mptfawr tmpthha cqt oaqd rhiri hirt cmmrtd nmmrtd minmrtg maxmrtg trattr mcudmq mnsudmq mcmr "
    "nmcmr mcdqpc kpios nulbaf kpiodaag vs".split()
)


def reactor_nvme(*words, succeed=True):
    return run(binary(), "nvme", *words, succeed=succeed)


def asked(*words):
    """The JSON of a command that succeeds."""
    return json.loads(reactor_nvme(*words, "--json").output)


def refused(*words):
    """What a command says that must fail."""
    done = reactor_nvme(*words, succeed=False)
    check(done.code == 1, f"{words} ended with {done.code}: {done.output}")
    note(done.errors.strip())
    return done.errors


def cli(*words):
    return json.loads(nvme(*words, "-o", "json").output)


def same(ours, theirs, what, beside=()):
    """Every field of ours is one of theirs, with the same value; theirs has no others but those that are known."""
    for key, value in ours.items():
        if key == "nsid" and key not in theirs:
            continue
        check(key in theirs, f"{what}: nvme-cli has no {key}")
        if key == "psds":
            for mine, other in zip(value, theirs[key], strict=True):
                same(mine, {name: other[name] for name in mine}, f"{what}, power state")
        elif key in beside:
            check(int(value) >= int(theirs[key]), f"{what}: {key} is {value}, and was {theirs[key]}")
        else:
            check(value == theirs[key], f"{what}: {key} is {value}, for nvme-cli {theirs[key]}")
    missing = set(theirs) - set(ours) - NEWER
    check(not missing, f"{what}: {missing} are missing")


def disks():
    return {disk["address"]: disk for disk in asked("list")["disks"]}


@contextlib.contextmanager
def handed(function):
    """Its driver is the business of the case; afterwards the kernel has it."""
    WORLD.taken.append(function)
    yield function


def names(function):
    """What the kernel calls its controller."""
    return next((function.folder / "nvme").glob("nvme*")).name


@suite.variants(
    blocks_of_512=("A1", [1]),
    blocks_of_4096=("A2", [1]),
    several_namespaces=("B", [1, 2, 3]),
    zones=("Z", [1]),
    metadata=("P", [1]),
)
def identify_and_smart_agree(serial, nsids):
    """By the kernel's driver and by VFIO the same as nvme-cli says, field by field."""
    mine = functions(serial)
    function = mine[0]
    controller = f"/dev/{names(function)}"
    identity = cli("id-ctrl", controller)
    namespaces = {nsid: cli("id-ns", controller, "-n", nsid) for nsid in nsids}
    smart = cli("smart-log", controller)
    for way in ("nvme", VFIO):
        if way == VFIO:
            for one in mine:
                WORLD.taken.append(one)
                reactor_nvme("bind", one.address)
        check(function.driver() == way, f"{function.driver()} has it")
        told = asked("identify", function.address)
        same(told["controller"], identity, f"controller by {way}")
        check([one["nsid"] for one in told["namespaces"]] == nsids, f"namespaces {told['namespaces']}")
        for one in told["namespaces"]:
            same(one, namespaces[one["nsid"]], f"namespace {one['nsid']} by {way}")
        last = asked("identify", function.address, "--nsid", nsids[-1])
        check([one["nsid"] for one in last["namespaces"]] == nsids[-1:], f"--nsid: {last['namespaces']}")
        same(asked("smart", function.address), smart, f"health by {way}", COUNTERS)
        check(asked("log", function.address, "firmware")["frs"][0] == "1.0", "another firmware")
        check(asked("log", function.address, "error")["entries"] == identity["elpe"] + 1, "another length of the log")
        text = reactor_nvme("identify", function.address).output
        check(f" : {serial}\n" in text and "lbafs 0" in text, text)
    check("there is no active namespace 9" in refused("identify", function.address, "--nsid", 9), "a namespace 9")


@suite.case
def a_list_tells_who_has_what():
    function = functions("A1")[0]
    disk = disks()[function.address]
    wanted = {"driver": "nvme", "serial": "A1", "controller": names(function), "held_by": None, "users": []}
    check({key: disk[key] for key in wanted} == wanted, f"{disk}")
    check(str(disk["iommu_group"]) == (function.folder / "iommu_group").resolve().name, f"{disk}")
    space = disk["namespaces"][0]
    check(space["bytes"] == 64 * MIB and space["block_size"] == 512 and not space["zoned"], f"{space}")
    check(space["disk"] == function.disk().name, f"{space}")
    everything = disks()
    check(everything[functions("Z")[0].address]["namespaces"][0]["zoned"], "no zones")
    check(everything[functions("P")[0].address]["namespaces"][0]["metadata"] == 8, "no metadata")
    several = [one["nsid"] for one in everything[functions("B")[0].address]["namespaces"]]
    check(several == [1, 2, 3], f"namespaces {several}")
    with handed(function):
        reactor_nvme("bind", "A1")
        disk = disks()[function.address]
        check(disk["driver"] == VFIO and disk["serial"] is None and disk["namespaces"] == [], f"{disk}")
        WORLD.target.start(config(volume("fast", function)))
        pid = WORLD.target.process.pid
        disk = disks()[function.address]
        holder = {"pid": pid, "config": str(WORLD.target.config_file), "socket": None, "verified": True}
        check(disk["held_by"] == holder and disk["serial"] == "A1", f"{disk}")
        check(disk["namespaces"][0]["volume"] == "fast" and disk["namespaces"][0]["bytes"] == 64 * MIB, f"{disk}")
        table = reactor_nvme("list").output
        check(f"process {pid} (reactor, {WORLD.target.config_file})" in table, table)
        WORLD.target.kill()
        wait_until("nobody holds it", lambda: disks()[function.address]["held_by"] is None)
        check((STATE / function.address).exists(), "a server that was killed left no file")
        WORLD.target.start(config(volume("fast", function)))
        WORLD.stop()
        check(not (STATE / function.address).exists(), "a server that has ended left its file")


@suite.variants(
    mounted=("mount",),
    partition_mounted=("partition",),
    swap=("swap",),
    device_mapper=("dm",),
    open_by_a_process=("open",),
)
def bind_refuses(how):
    """A disk in use stays where it is, and who uses it is named."""
    function = functions("A1")[0]
    disk = function.disk()
    before = os.stat(disk.path).st_rdev
    with used(disk, how) as who:
        text = refused("bind", function.address)
        check(f"{function.address} is in use: " in text and who in text and "nothing is changed; --force" in text, text)
        users = disks()[function.address]["users"]
        check(any(who in user for user in users), f"list says {users}")
        for words in (["format", "A1"], ["reset", names(function)]):
            check(" is in use: " in refused(*words), f"{words} of a disk in use")
        check(function.driver() == "nvme" and os.stat(disk.path).st_rdev == before, "it has changed")
        if how == "open":
            with handed(function):
                reactor_nvme("bind", function.address, "--force")
                check(function.driver() == VFIO, f"{function.driver()} has it")


@contextlib.contextmanager
def used(disk, how):
    """Has somebody use a disk; yields what names him."""
    point = pathlib.Path("/tmp/mounted")
    point.mkdir(exist_ok=True)
    with contextlib.ExitStack() as stack:
        if how == "mount":
            run("mkfs.ext4", "-q", disk.path)
            run("mount", disk.path, point)
            stack.callback(run, "umount", point)
            yield f"mount {point}"
        elif how == "partition":
            disk.write(0, gpt_of_one_partition())
            run("blockdev", "--rereadpt", disk.path)
            part = f"{disk.path}p1"
            wait_until("the partition", lambda: os.path.exists(part))
            run("mkfs.ext4", "-q", part)
            run("mount", part, point)
            stack.callback(run, "blockdev", "--rereadpt", disk.path)
            stack.callback(disk.write, 0, bytes(MIB))
            stack.callback(run, "umount", point)
            yield f"mount {point}"
        elif how == "swap":
            run("mkswap", disk.path)
            run("swapon", disk.path)
            stack.callback(run, "swapoff", disk.path)
            yield f"swap {disk.path}"
        elif how == "dm":
            run("modprobe", "dm-mod")
            run("dmsetup", "create", "onit", "--table", f"0 2048 linear {disk.path} 0")
            stack.callback(run, "dmsetup", "remove", "onit")
            yield "device dm-"
        else:
            user = subprocess.Popen(["sleep", "600"], stdin=open(disk.path, "rb"))
            stack.callback(user.wait)
            stack.callback(user.kill)
            yield f"process {user.pid} (sleep)"


def gpt_of_one_partition():
    """An MBR with a partition of 32 MiB from 1 MiB on."""
    entry = bytes([0, 0, 0, 0, 0x83, 0, 0, 0]) + (2048).to_bytes(4, "little") + (65536).to_bytes(4, "little")
    return bytes(446) + entry + bytes(48) + b"\x55\xaa" + bytes(MIB - 512)


@suite.variants(by_the_kernel=("nvme",), by_vfio=("vfio",))
def a_format_has_other_blocks(way):
    """Blocks of 4096 bytes, and back; the data is gone, and the kernel sees what was made."""
    function = functions("A1")[0]
    function.disk().write(0, pattern(MIB, 9))
    for block_size in (4096, 512):
        with handed(function):
            if way == "vfio":
                reactor_nvme("bind", function.address)
            told = asked("format", function.address, "--block-size", block_size)
            check(told["block_size"] == block_size and told["bytes"] == 64 * MIB and told["nsid"] == 1, f"{told}")
            WORLD.give_back()
        disk = function.disk()
        wait_until(
            f"blocks of {block_size} bytes",
            lambda disk=disk, size=block_size: disk.attribute("queue/logical_block_size") == str(size),
        )
        disk.expect(0, bytes(MIB), "after a format")
    check("no LBA format has blocks of 2048 bytes" in refused("format", "A1", "--block-size", 2048), "2048")
    check("write --nsid 1" in refused("format", functions("B")[0].address), "which namespace")


@suite.variants(by_the_kernel=("nvme",), by_vfio=("vfio",))
def a_reset_leaves_the_disk_as_it_was(way):
    function = functions("D")[0]
    data = pattern(MIB, 10)
    function.disk().write(0, data)
    with handed(function):
        if way == "vfio":
            reactor_nvme("bind", function.address)
        check(asked("reset", function.address) == {"reset": True}, "no reset")
        WORLD.give_back()
    function.disk().expect(0, data, "after a reset")


@suite.case
def metadata_is_formatted_away():
    """What a volume refuses, a format makes good."""
    function = functions("P")[0]
    before = asked("identify", function.address)["namespaces"][0]
    with handed(function):
        reactor_nvme("bind", function.address)
        told = asked("format", function.address, "--nsid", 1, "--lbaf", 0)
        check(told["metadata"] == 0, f"{told}")
        WORLD.target.start(config(volume("fast", function)))
        fio(attach("fast"), SIZE="4m")
        disconnect()
        WORLD.stop()
        told = asked("format", function.address, "--lbaf", before["flbas"] & 15)
        check(told["metadata"] == 8, f"{told}")


@suite.case
def a_server_without_a_control_socket_is_named():
    function = WORLD.take("A1")
    WORLD.target.start(config(volume("fast", function)))
    for words in (["identify"], ["smart"], ["log"], ["format"], ["reset"], ["unbind"]):
        page = ["error"] if words == ["log"] else []
        text = refused(*words, function.address, *page)
        holder = f"{function.address} is held by process {WORLD.target.process.pid} (reactor, {WORLD.target.config_file})"
        check(holder in text and "add [control] with socket = " in text, text)
    fio(attach("fast"), SIZE="4m")


@suite.case
def the_owner_answers():
    """By the control socket the same as by nvme-cli before; a reset under load loses nothing."""
    function = functions("A1")[0]
    controller = f"/dev/{names(function)}"
    identity, namespace, smart = cli("id-ctrl", controller), cli("id-ns", controller, "-n", 1), cli("smart-log", controller)
    WORLD.take("A1")
    WORLD.target.start(config(volume("fast", function), socket=SOCKET, cores=[0, 1]))
    check(SOCKET.stat().st_mode & 0o777 == 0o600, f"mode {SOCKET.stat().st_mode:o}")
    for name in (function.address, "A1", "fast"):
        told = asked("identify", name)
        same(told["controller"], identity, "controller")
        same(told["namespaces"][0], namespace, "namespace")
    same(asked("smart", "fast"), smart, "health", COUNTERS)
    check(asked("log", "fast", "firmware")["active_slot"] == 1, "another firmware")
    check(disks()[function.address]["held_by"]["socket"] == str(SOCKET), "no socket in the list")
    block = attach("fast", "-i", 2)
    text = refused("reset", "fast")
    check(f'is in use: volume "fast" by namespace 1 of {nqn("fast")}: nothing is changed' in text, text)
    load = subprocess.Popen(
        ["fio", "--name=verify", f"--filename={block.path}", "--rw=randwrite", "--bs=4k", "--iodepth=16", "--size=8m"]
        + ["--ioengine=io_uring", "--direct=1", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    start = block.writes()
    wait_until("I/O of fio", lambda: block.writes() > start + 50)
    resets = 0
    while load.poll() is None and resets < 3:
        check(asked("reset", "fast", "--force") == {"reset": True}, "no reset")
        resets += 1
        seen = block.writes()
        wait_until("I/O goes on", lambda seen=seen: block.writes() > seen or load.poll() is not None)
    check(load.wait(150) == 0, f"fio: {load.stderr.read()}")
    note(f"{resets} resets")
    check(resets > 0, "fio was too quick")
    said = [line for line in WORLD.target.logged() if "reset: asked for" in line]
    check(len(said) == resets, f"{said}")
    disconnect()
    # A reset is a warning in the log, which an end in order must not have.
    code, _ = WORLD.target.stop(STOP_LIMIT_S)
    check(code == 0 and not SOCKET.exists(), f"it ended with {code}")


@suite.case
def the_owner_formats_and_lets_go():
    """A volume leaves its door for a format, and comes back where its blocks are the same; a disk is let go of while others stay."""
    function = WORLD.take("A1")
    other = WORLD.take("D")
    setup = config(volume("fast", function), volume("other", other), socket=SOCKET, cores=[0, 1])
    WORLD.target.start(setup)
    block = attach("fast")
    beside = attach("other")
    block.write(0, pattern(MIB, 12))
    beside.write(0, pattern(MIB, 13))
    check('is in use: volume "fast" by ' in refused("format", "fast"), "a format of a used volume")
    block.expect(0, pattern(MIB, 12), "after a refusal")
    disconnect()
    told = asked("format", "fast", "--force")
    check(told["notes"] == [] and told["block_size"] == 512, f"{told}")
    attach("fast").expect(0, bytes(MIB), "after a format")
    attach("other").expect(0, pattern(MIB, 13), "beside it")
    disconnect()
    told = asked("format", "fast", "--force", "--block-size", 4096)
    check(told["block_size"] == 4096 and "stays closed" in told["notes"][0], f"{told}")
    lines = asked("list")["disks"]
    check(next(disk for disk in lines if disk["address"] == function.address)["held_by"] is None, "it is held")
    WORLD.target.reload(setup)
    wait_until("it comes back by a reload", lambda: any('bdev "fast" is added' in line for line in WORLD.target.logged()))
    check(int(attach("fast").attribute("queue/logical_block_size")) == 4096, "other blocks")
    disconnect()
    asked("format", "fast", "--force", "--block-size", 512)
    WORLD.target.reload(setup)
    wait_until(
        "it comes back again", lambda: sum('bdev "fast" is added' in line for line in WORLD.target.logged()) == 2
    )
    check('is in use: volume "fast" by ' in refused("unbind", "fast"), "unbind of a used disk")
    done = asked("unbind", "fast", "--force")
    check(done["driver"] == "nvme" and function.driver() == "nvme", f"{done}")
    function.disk().expect(0, bytes(MIB), "read by the kernel")
    attach("other").expect(0, pattern(MIB, 13), "beside it")
    disconnect()
    code, _ = WORLD.target.stop(STOP_LIMIT_S)
    check(code == 0, f"it ended with {code}")


@suite.case
def nonsense_on_the_socket_is_answered():
    function = WORLD.take("A1")
    WORLD.target.start(config(volume("fast", function), socket=SOCKET))
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(60)
        line.connect(str(SOCKET))
        answers = line.makefile("r")
        for request, code in (("rubbish", -32700), ('{"id": 1}', -32600), ('{"jsonrpc": "2.0", "id": 1, "method": "x"}', -32601)):
            line.sendall(request.encode() + b"\n")
            answer = json.loads(answers.readline())
            check(answer["error"]["code"] == code, f"{request}: {answer}")
        line.sendall(b'{"jsonrpc": "2.0", "id": "a", "method": "nvme.list"}\n')
        answer = json.loads(answers.readline())
        check(answer["id"] == "a" and answer["result"]["disks"][0]["address"] == function.address, f"{answer}")
    fio(attach("fast"), SIZE="4m")


@suite.case
def setup_prepares_and_undoes():
    """What is missing is made and said, the user gets the bound disk, and all is as it was afterwards."""
    hugepages, state = pathlib.Path("/proc/sys/vm/nr_hugepages"), pathlib.Path("/run/reactor/setup.json")
    before = int(hugepages.read_text())
    user = next((entry for entry in pwd.getpwall() if entry.pw_uid), None)
    check(not state.exists(), "a state of before")
    done = run(SETUP, "--check", "--hugepages", before + 4, succeed=False)
    note(done.output.strip())
    check(done.code == 1 and "IOMMU: there" in done.output and f"hugepages: {before}, not {before + 4}" in done.output, done.output)
    check(int(hugepages.read_text()) == before and not state.exists(), "a look has changed something")
    node = pathlib.Path("/dev/vfio") / (WORLD.take("A1").folder / "iommu_group").resolve().name
    words = ["--user", user.pw_name] if user else []
    note(run(SETUP, "--hugepages", before + 4, *words).output.strip())
    check(int(hugepages.read_text()) == before + 4 and state.exists(), "hugepages")
    limits = pathlib.Path(f"/etc/security/limits.d/reactor-{user.pw_name}.conf") if user else None
    if user:
        check(node.stat().st_uid == user.pw_uid and "memlock unlimited" in limits.read_text(), "the user")
    check(run(SETUP, "--check", "--hugepages", before + 4, *words).code == 0, "not all is there")
    note(run(SETUP, "--undo").output.strip())
    check(int(hugepages.read_text()) == before and not state.exists(), "it is not as it was")
    if user:
        check(node.stat().st_uid == 0 and not limits.exists(), "the user")
    # Modules that were there stay, and the disk is nobody's but vfio-pci's.
    check(functions("A1")[0].driver() == VFIO and run(SETUP, "--check").code == 0, "too much was undone")
