"""The programs that are measured and those that measure, each run for one sample."""

import json
import os
import re
import signal
import socket
import struct
import subprocess
import time

NQN = "nqn.2026-11.io.reactor:bench"
HOST_NQN = "nqn.2026-11.io.reactor:crowd"
START_TIMEOUT_S = 30
# Whole lines: one that is still being written is not there yet.
COUNTERS = re.compile(r"reactor \d+: (busy_turns=.* stale=\d+)\n")


class Failed(Exception):
    """A program did not do what it was run for."""


def run(command, timeout=60):
    """Runs a command to its end; its standard output."""
    result = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
    )
    if result.returncode:
        said = (result.stderr or result.stdout)[-2000:]
        raise Failed(f"{' '.join(map(str, command))}: exit {result.returncode}\n{said}")
    return result.stdout


class Process:
    """A program that serves. It has the core only while it is measured: else it is stopped."""

    running = []

    def __init__(self, command, log):
        self.log = log
        with open(log, "wb") as out:
            # A session of its own: the kernel hangs up a group that is orphaned with a stopped process in it.
            streams = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": out}
            self.process = subprocess.Popen(command, start_new_session=True, **streams)
        Process.running.append(self)

    def wait_for(self, what, found):
        """Waits until `found` says something; that."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            answer = found()
            if answer:
                return answer
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise Failed(f"no {what}:\n{self.log.read_text(errors='replace')[-2000:]}")

    def __enter__(self):
        self.process.send_signal(signal.SIGCONT)
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGSTOP)

    def cpu_ns(self):
        """Time that all its threads have been on a core."""
        total = 0
        for thread in os.listdir(f"/proc/{self.process.pid}/task"):
            with open(f"/proc/{self.process.pid}/task/{thread}/schedstat", encoding="ascii") as text:
                total += int(text.read().split()[0])
        return total

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        Process.running.remove(self)

    @classmethod
    def end_all(cls):
        for one in list(cls.running):
            one.end()


class Server(Process):
    """`reactor --config` on one core, with a null volume (nsid 1) and a RAM volume (nsid 2)."""

    def __init__(self, world, name, idle, ram):
        config = world.place / f"{name}.toml"
        config.write_text(f"""
[reactor]
cores = [{world.target}]
idle = "{idle}"
[memory]
hugepages = "off"
[[bdev]]
name = "null0"
driver = "null"
size = "1TiB"
[[bdev]]
name = "ram0"
driver = "malloc"
size = {ram}
[nvmf]
listen = ["127.0.0.1:0"]
[[nvmf.subsystem]]
nqn = "{NQN}"
namespaces = [{{ nsid = 1, bdev = "null0" }}, {{ nsid = 2, bdev = "ram0" }}]
""")
        super().__init__([world.reactor, "--config", config], world.place / f"{name}.log")
        text = self.wait_for("`reactor: ready`", self.ready)
        self.port = int(re.search(r"-s (\d+)", text).group(1))

    def ready(self):
        text = self.log.read_text(errors="replace")
        return text if "reactor: ready" in text else None

    def counters(self):
        """What its reactor has counted, asked for by a signal."""
        before = len(COUNTERS.findall(self.log.read_text(errors="replace")))
        self.process.send_signal(signal.SIGUSR1)

        def told():
            lines = COUNTERS.findall(self.log.read_text(errors="replace"))
            return lines[-1] if len(lines) > before else None

        line = self.wait_for("counters after SIGUSR1", told)
        return {name: int(number) for name, number in (word.split("=") for word in line.split())}


def sample(found):
    """What a row keeps of the JSON of `reactor bench`."""
    return {
        "rate": found["iops"],
        "latency_us": {name: found["latency_us"][name] for name in ("p50", "p99", "p99_9")},
        "enters": found["enters_per_io"],
        "busy_ns": found["busy_ns_per_io"],
    }


def bench(world, *words):
    """One run of `reactor bench`."""
    command = [world.reactor, "bench", "--time", str(max(world.time, 0.1)), "--json", *map(str, words)]
    return json.loads(run(command))


def local(world, bdev, op, block, depth, cores=None):
    """The block layer alone, on the core of the load."""
    cores = cores or str(world.load)
    words = ["--config", world.volumes, "--bdev", bdev, "--rw", op, "--bs", block, "--qd", depth, "--cores", cores]
    return sample(bench(world, *words))


def remote(world, server, nsid, op, block, depth, *more):
    """The door of a server; enters and busy time are the server's."""
    url = f"nvme-tcp://127.0.0.1:{server.port}/{NQN}?nsid={nsid}"
    with server:
        before = server.counters()
        words = ["--connect", url, "--rw", op, "--bs", block, "--qd", depth, "--cores", world.load, *more]
        found = bench(world, *words)
        after = server.counters()
    taken = sample(found)
    taken["enters"] = (after["enters"] - before["enters"]) / found["ios"]
    taken["busy_ns"] = (after["busy_ns"] - before["busy_ns"]) / found["ios"]
    return taken


def ceiling(world, *words):
    """One run of benches/ceiling."""
    found = json.loads(run([world.ceiling, "--time", str(world.time), *map(str, words)]))
    return {"rate": found.get("per_s") or 1e9 / found["ns"], **found}


def ublk_alone(world, name):
    """One round of one line of benches/ublk: the median of many short ones of its own, whatever the time of a run."""
    found = json.loads(run([world.ublk, "--json", "--rounds=31", name]))
    return {"rate": 1e9 / found["all_ns"], "ns": found["own_ns"], "enters": found["enters"]}


def nvme_alone(world, name):
    """A few rounds of one line of benches/nvme."""
    found = json.loads(run([world.nvme, "--json", "--rounds=5", name]))
    return {"rate": 1e9 / found["ns"], **found, "ns": found["driver_ns"]}


def plain_loop(world, op, block, depth, random=0, connections=1):
    """The plain loop over loopback, on the cores of target and load."""
    words = ["loop", "--op", op, "--block", block, "--depth", depth, "--random", random, "--connections", connections]
    return ceiling(world, *words, "--server", world.target, "--client", world.load)


def fio(world, path, op, depth, direct):
    """fio's io_uring engine with fixed buffers and files, on the core of the load."""
    command = ["fio", "--name=bench", f"--filename={path}", "--ioengine=io_uring", "--fixedbufs=1", "--registerfiles=1"]
    command += [f"--rw={op}", "--bs=4k", f"--iodepth={depth}", f"--direct={int(direct)}", "--time_based=1", "--thread"]
    command += [f"--runtime={int(world.time * 1000)}ms", f"--cpus_allowed={world.load}", "--norandommap=1"]
    command += ["--randrepeat=0", "--fallocate=none", "--overwrite=0", "--invalidate=0", "--output-format=json"]
    text = run(command)
    side = json.loads(text[text.index("{") :])["jobs"][0]["read" if op == "randread" else "write"]
    spread = side["clat_ns"].get("percentile", {})
    names = {"p50": "50.000000", "p99": "99.000000", "p99_9": "99.900000"}
    latency = {name: spread[key] / 1000 for name, key in names.items() if key in spread}
    return {"rate": side["iops"], "latency_us": latency}


class Crowd:
    """Idle NVMe/TCP connections: admin and I/O queues that have been connected and send nothing more."""

    QUEUES = 120

    def __init__(self, port, count):
        self.port = port
        self.sockets = []
        while len(self.sockets) < count:
            cntlid = self.connect(0, 0xFFFF)
            self.command(self.sockets[-1], 0x00, struct.pack("<IIQ", 0, 0x14, 1 | 6 << 16 | 4 << 20))
            for qid in range(1, 1 + min(Crowd.QUEUES, count - len(self.sockets))):
                self.connect(qid, cntlid)

    def connect(self, qid, cntlid):
        """One queue; the identifier of its controller."""
        one = socket.create_connection(("127.0.0.1", self.port), timeout=START_TIMEOUT_S)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.sendall(struct.pack("<BBBBIHBBI", 0, 0, 128, 0, 128, 0, 0, 0, 0).ljust(128, b"\0"))
        Crowd.receive(one, 128)
        self.sockets.append(one)
        data = b"crowd of hosts.." + struct.pack("<H", cntlid)
        data = data.ljust(256, b"\0") + NQN.encode().ljust(256, b"\0") + HOST_NQN.encode().ljust(512, b"\0")
        answer = self.command(one, 0x01, struct.pack("<HHHBBI", 0, qid, 31, 0, 0, 0), data)
        return struct.unpack_from("<H", answer)[0]

    @staticmethod
    def command(one, kind, body, data=b""):
        """A Fabrics command, body from byte 40 on; dword 0 of its answer."""
        head = struct.pack("<BBBBI", 4, 0, 72, 72 if data else 0, 72 + len(data))
        place = struct.pack("<QI3xB", 0, len(data), 0x01)
        one.sendall(head + struct.pack("<BBHB19x", 0x7F, 0x40, 1, kind) + place + body.ljust(24, b"\0") + data)
        answer = Crowd.receive(one, 24)[8:]
        if struct.unpack_from("<H", answer, 14)[0] >> 1:
            raise Failed(f"a Fabrics command of type {kind} was refused: {answer.hex()}")
        return answer

    @staticmethod
    def receive(one, count):
        data = b""
        while len(data) < count:
            part = one.recv(count - len(data))
            if not part:
                raise Failed("an idle connection was closed")
            data += part
        return data
