"""What the scripts have in common: where things are, how programs are installed, how what was started is ended."""

import os
import pathlib
import shutil
import signal
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()


def end_group(process):
    """Ends the group of a process that has one of its own, so that nothing it started stays."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def install(script, programs):
    """Installs the missing ones of `programs` (name, or the path of a file -> package), or says which; whether they came shows
    where they are needed."""
    is_there = lambda program: os.path.exists(program) if "/" in program else shutil.which(program)
    missing = sorted({package for program, package in programs.items() if not is_there(program)})
    if not missing:
        return
    command = ["apt-get", "install", "-qq", "-y", "--no-install-recommends", *missing]
    if os.geteuid() == 0:
        prefix = []
    elif shutil.which("sudo") and not subprocess.run(["sudo", "-n", "true"], check=False).returncode:
        prefix = ["sudo", "-n"]
    else:
        prefix = None
    if prefix is None or not shutil.which("apt-get"):
        print(f"{script}: not installed, and no right to install: apt-get install {' '.join(missing)}", flush=True)
        return
    environment = ["env", "DEBIAN_FRONTEND=noninteractive"]
    out = subprocess.DEVNULL
    subprocess.run([*prefix, "apt-get", "update", "-qq"], check=False, stdout=out)
    subprocess.run([*prefix, *environment, *command], check=False, stdout=out)
