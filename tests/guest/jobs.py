"""The jobs of scripts/fio, with which every door is driven."""

import os
import pathlib
import threading

from harness import check, run

PLACE = pathlib.Path("/test/fio")
TIMEOUT_S = 120


def words(disk, job="verify", **names):
    """The command line and the environment of a job."""
    names = {"RW": "randwrite", "ENGINE": "io_uring", "SIZES": "4k-256k", "SIZE": "4m", "DEPTH": 16, "JOBS": 1, **names}
    environment = {**os.environ, "DEVICE": str(disk.path), **{name: str(value) for name, value in names.items()}}
    return ["fio", "--output-format=terse", PLACE / f"{job}.fio"], environment


def fio(disk, job="verify", **names):
    """Runs a job: by default one that writes with checksums, reads back and compares."""
    command, environment = words(disk, job, **names)
    run(*command, timeout_s=TIMEOUT_S, environment=environment)


def fio_at_once(disks, **names):
    """The default job on several disks at the same time."""
    failures = []

    def one(disk):
        try:
            fio(disk, **names)
        except Exception as error:
            failures.append(f"{disk.path}: {error}")

    threads = [threading.Thread(target=one, args=(disk,)) for disk in disks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check(not failures, "; ".join(failures))


def fio_on_each(cpus, disk, directory, **names):
    """The default job on each of some processors, one after the other; its file is made in `directory`."""
    command, environment = words(disk, **names)
    everything, job = pathlib.Path(command.pop()).read_text().split("[verify]\n")
    path = pathlib.Path(directory) / "on-each.fio"
    path.write_text("\n".join([everything, *(f"[cpu{cpu}]\nstonewall\ncpus_allowed={cpu}\n{job}" for cpu in cpus)]))
    run(*command, path, timeout_s=TIMEOUT_S, environment=environment)


def all_kinds_of_load(disk):
    """A second of each job that is measured by: nothing fails. What is on the disk is lost."""
    for job, directions, depth, jobs in (
        ("random", ("randread", "randwrite"), 64, 4),
        ("sequential", ("read", "write"), 32, 1),
        ("mixed", ("randrw",), 32, 4),
    ):
        for direction in directions:
            fio(disk, job, RW=direction, DEPTH=depth, JOBS=jobs, SECONDS=1)
