"""QEMU's disk tools with its iSCSI driver, which is libiscsi."""

import re
import subprocess

from machine import TARGET


def qemu(program):
    """Words that run qemu-img, qemu-io or qemu-nbd with libiscsi: Debian has tools and driver in packages of one version, which may not be the
    one that is installed here; so both are unpacked beside each other. Raises OSError."""
    place = TARGET / "qemu-img"
    path = place / "usr/bin" / program
    found = list(place.glob("usr/lib/*/qemu/block-iscsi.so"))
    if not found or not path.exists():
        place.mkdir(parents=True, exist_ok=True)
        version = re.search(r"Candidate: (\d\S*)", _run("apt-cache", "policy", "qemu-block-extra"))
        if not version:
            raise OSError("no package qemu-block-extra: apt-get update")
        names = [f"{name}={version.group(1)}" for name in ("qemu-utils", "qemu-block-extra")]
        _run("apt-get", "download", *names, cwd=place)
        for package in place.glob("*.deb"):
            _run("dpkg", "-x", package, place)
        found = list(place.glob("usr/lib/*/qemu/block-iscsi.so"))
    if not found:
        raise OSError("qemu-block-extra has no block-iscsi.so")
    return ["env", f"QEMU_MODULE_DIR={found[0].parent}", str(path)]


def _run(*command, cwd=None):
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip()[-1000:]}")
    return done.stdout
