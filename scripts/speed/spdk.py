"""SPDK in the same rounds, if SPDK_DIR names a built tree: nvmf_tgt on the target's core, bdevperf on the load's."""

import json
import os
import pathlib
import socket

from programs import NQN, Failed, Process

# Megabytes of nvmf_tgt and of bdevperf.
TARGET_MEMORY = 4096
LOAD_MEMORY = 1024
SERIAL = "SPDK0000000001"


def memory(amount):
    """Options that give it so many megabytes: of huge pages where the system has reserved and mounted enough for both."""
    words = pathlib.Path("/proc/meminfo").read_text().split()
    pages, kib = (int(words[words.index(name) + 1]) for name in ("HugePages_Total:", "Hugepagesize:"))
    mounted = " hugetlbfs " in pathlib.Path("/proc/mounts").read_text()
    plain = not mounted or pages * kib < (TARGET_MEMORY + LOAD_MEMORY) * 1024
    return ["--no-huge"] * plain + ["-s", str(amount)]


def call(path, method, **parameters):
    """One JSON-RPC call over a Unix socket; its result."""
    request = {"jsonrpc": "2.0", "id": 1, "method": method}
    if parameters:
        request["params"] = parameters
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(60)
        one.connect(str(path))
        one.sendall(json.dumps(request).encode())
        text = b""
        while True:
            part = one.recv(65536)
            if not part:
                raise Failed(f"SPDK closed its socket in {method}")
            text += part
            try:
                answer = json.loads(text)
            except ValueError:
                continue
            if "error" in answer:
                raise Failed(f"SPDK: {method}: {answer['error']}")
            return answer["result"]


class Spdk(Process):
    """nvmf_tgt with a null volume (nsid 1) and a RAM volume (nsid 2)."""

    @staticmethod
    def folder():
        return pathlib.Path(os.environ["SPDK_DIR"]) if os.environ.get("SPDK_DIR") else None

    def __init__(self, world, ram):
        self.world = world
        self.socket = world.place / "spdk_tgt.sock"
        program = Spdk.folder() / "build/bin/nvmf_tgt"
        options = ["-m", hex(1 << world.target), "-r", self.socket, *memory(TARGET_MEMORY)]
        super().__init__([program, *options], world.place / "spdk.log")
        self.wait_for("socket of nvmf_tgt", self.answers)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        call(self.socket, "nvmf_create_transport", trtype="TCP")
        call(self.socket, "bdev_null_create", name="null0", num_blocks=1 << 31, block_size=512)
        call(self.socket, "bdev_malloc_create", name="ram0", num_blocks=ram // 512, block_size=512)
        call(self.socket, "nvmf_create_subsystem", nqn=NQN, allow_any_host=True, serial_number=SERIAL)
        for nsid, bdev in enumerate(("null0", "ram0"), 1):
            call(self.socket, "nvmf_subsystem_add_ns", nqn=NQN, namespace={"nsid": nsid, "bdev_name": bdev})
        address = {"trtype": "TCP", "adrfam": "IPv4", "traddr": "127.0.0.1", "trsvcid": str(self.port)}
        call(self.socket, "nvmf_subsystem_add_listener", nqn=NQN, listen_address=address)
        config = [{"method": "bdev_nvme_attach_controller", "params": {"name": "N", "subnqn": NQN, **address}}]
        self.config = world.place / "bdevperf.json"
        self.config.write_text(json.dumps({"subsystems": [{"subsystem": "bdev", "config": config}]}))

    def answers(self):
        try:
            return call(self.socket, "spdk_get_version")
        except (OSError, Failed):
            return None

    def busy_ns(self):
        """Time that its reactor was busy."""
        found = call(self.socket, "framework_get_reactors")
        return sum(one["busy"] for one in found["reactors"]) * 1e9 / found["tick_rate"]

    def measure(self, nsid, op, block, depth):
        """One run of bdevperf, whole seconds. SPDK's host keeps submission queue flow control."""
        path = self.world.place / "bdevperf.sock"
        path.unlink(missing_ok=True)
        seconds = max(1, round(self.world.time))
        load = [Spdk.folder() / "build/examples/bdevperf", "-z", "-m", hex(1 << self.world.load), "-r", path]
        load += ["-c", self.config, *memory(LOAD_MEMORY), "-q", str(depth), "-o", str(block)]
        load += ["-w", op, "-t", str(seconds), "-T", f"Nn{nsid}"]
        with self:
            perf = Process(load, self.world.place / "bdevperf.log")
            try:

                def up():
                    try:
                        return call(path, "spdk_get_version")
                    except (OSError, Failed):
                        return None

                perf.wait_for("socket of bdevperf", up)
                before = self.busy_ns()
                results = call(path, "perform_tests")["results"]
                busy = self.busy_ns() - before
            finally:
                perf.end()
        if not results or any(one["io_failed"] for one in results):
            raise Failed(f"bdevperf: {results}")
        rate = sum(one["iops"] for one in results)
        return {"rate": rate, "busy_ns": busy / max(rate * seconds, 1)}


def available():
    """Whether there is a built tree to compare with."""
    folder = Spdk.folder()
    if folder is None:
        return False
    missing = [name for name in ("build/bin/nvmf_tgt", "build/examples/bdevperf") if not (folder / name).exists()]
    if missing:
        raise Failed(f"SPDK_DIR={folder}: no {' and no '.join(missing)}: build it with --enable-examples")
    return True
