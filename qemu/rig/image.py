"""What a guest boots: a root file system with the tools, and for each kernel its image, modules and initrd.

Each is a directory under target/qemu named by a key over everything it was made from (package file names and the
rig's own files), made in a temporary place and renamed when complete, so a broken build is never found later.
"""

import contextlib
import fcntl
import lzma
import os
import pathlib
import shutil

from . import cpio
from .packages import AptRoot, RigError, digest, run

RIG = pathlib.Path(__file__).resolve().parent
QEMU = RIG.parent
REPOSITORY = QEMU.parent
STORE = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")).resolve() / "qemu"

# What a guest's root file system holds (with all that these depend on).
TOOLS = [
    "bash",
    "busybox-static",
    "dmsetup",
    "e2fsprogs",
    "fdisk",
    "fio",
    "iproute2",
    "kmod",
    "lsscsi",
    "mount",
    "multipath-tools",
    "nvme-cli",
    "open-iscsi",
    "python3",
    "sg3-utils",
    "udev",
    "util-linux",
    "xfsprogs",
]

# name -> suite of Debian whose `linux-image-cloud-amd64` it is. Only the newest version of a suite keeps its
# packages in the archive, so no version is pinned.
KERNELS = {"newest": "trixie-backports", "6.12": "trixie"}

# Parts of packages that no test reads.
PRUNED = ["doc", "man", "locale", "info", "zoneinfo", "lintian", "bash-completion", "i18n", "icu", "perl5"]

# Modules that the initrd loads to reach the root file system; what is built in is left out.
BOOT_MODULES = ["virtio_pci", "virtio_blk", "ext4"]

# The host identity that nvme-cli takes when a test names none, and the name of the iSCSI initiator.
HOST_NQN = "nqn.2014-08.org.nvmexpress:uuid:5c6d2b1a-7f10-4f0e-9a55-0c1f3f2b9d01"
HOST_ID = "5c6d2b1a-7f10-4f0e-9a55-0c1f3f2b9d01"
INITIATOR = "iqn.1993-08.org.debian:01:guest"


class Kernel:
    """A kernel that a guest can boot: `image`, `initrd` and `modules` are files, `version` its release string."""

    def __init__(self, name, directory):
        self.name = name
        self.directory = directory
        self.image = directory / "vmlinuz"
        self.initrd = directory / "initrd"
        self.modules = directory / "modules.ext4"
        self.version = (directory / "version").read_text().strip()


class Images:
    """Builds or finds the parts of a guest."""

    def __init__(self, store=STORE):
        self.store = store
        self.apt = AptRoot(store / "apt")

    def tools(self):
        """Directory with `root.ext4` and the unpacked `sysroot`, whose programs also run on this machine."""
        names = self.apt.resolve(TOOLS)
        return self._build("tools", digest(*names, RIG / "image.py", RIG / "packages.py"), self._make_tools, names)

    def qemu(self):
        """Directory whose `sysroot` holds QEMU."""
        names = self.apt.resolve(["qemu-system-x86"])
        return self._build("qemu", digest(*names, RIG / "packages.py"), self._make_qemu, names)

    def kernel(self, name):
        """The kernel called `name` in `KERNELS`."""
        if name not in KERNELS:
            raise RigError(f"no kernel named {name}: there are {', '.join(KERNELS)}")
        tools = self.tools()
        names = self.apt.resolve(
            ["linux-image-cloud-amd64"], KERNELS[name], keep=lambda package: package.startswith("linux-")
        )
        key = digest(*names, tools.name, QEMU / "init", RIG / "image.py", RIG / "cpio.py")
        return Kernel(name, self._build(f"kernel-{name}", key, self._make_kernel, names, tools))

    def _build(self, kind, key, make, *arguments):
        place = self.store / f"{kind}-{key}"
        if place.exists():
            return place
        self.store.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if place.exists():
                return place
            print(f"rig: building {place.name}", flush=True)
            partial = self.store / f"partial-{kind}"
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            make(partial, *arguments)
            for old in self.store.glob(f"{kind}-*"):
                shutil.rmtree(old)
            partial.rename(place)
        return place

    @contextlib.contextmanager
    def _lock(self):
        with open(self.store / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _make_qemu(self, place, names):
        self.apt.unpack(names, place / "sysroot")

    def _make_tools(self, place, names):
        sysroot = place / "sysroot"
        self.apt.unpack(names, sysroot)
        for name in PRUNED:
            shutil.rmtree(sysroot / "usr/share" / name, ignore_errors=True)
        for name in ("dev", "proc", "sys", "run", "tmp", "var", "mnt", "scratch", "test", "usr/lib/modules"):
            (sysroot / name).mkdir(parents=True, exist_ok=True)
        # Whoever builds the image owns its files: a set-uid program would take root's rights away from root.
        for path in sysroot.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.chmod(path.stat().st_mode & 0o777)
        (sysroot / "usr/bin/sh").symlink_to("bash")
        etc = sysroot / "etc"
        for name in ("nvme", "multipath"):
            (etc / name).mkdir(parents=True, exist_ok=True)
        # What a test writes into a file system of its own, mounted on the directory.
        (etc / "multipath.conf").symlink_to("multipath/multipath.conf")
        (etc / "passwd").write_text("root:x:0:0:root:/tmp:/bin/sh\n")
        (etc / "group").write_text("root:x:0:\n")
        (etc / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
        (etc / "nvme/hostnqn").write_text(HOST_NQN + "\n")
        (etc / "nvme/hostid").write_text(HOST_ID + "\n")
        (etc / "iscsi/initiatorname.iscsi").write_text(f"InitiatorName={INITIATOR}\n")
        make_ext4(place, sysroot, place / "root.ext4")

    def _make_kernel(self, place, names, tools):
        sysroot = place / "sysroot"
        self.apt.unpack(names, sysroot)
        # Up to 6.18 the image lies in /boot, later beside its modules.
        images = [*sysroot.glob("boot/vmlinuz-*"), *sysroot.glob("usr/lib/modules/*/vmlinuz")]
        trees = [path for path in sysroot.glob("usr/lib/modules/*") if (path / "kernel").is_dir()]
        if len(images) != 1 or len(trees) != 1:
            raise RigError(f"expected one kernel in {names}, found images {images} and modules {trees}")
        tree = trees[0]
        (place / "version").write_text(tree.name + "\n")
        shutil.copyfile(images[0], place / "vmlinuz")
        run([*program(tools, "usr/sbin/depmod"), "-b", sysroot / "usr", tree.name])
        make_ext4(tools, sysroot / "usr/lib/modules", place / "modules.ext4")
        entries = {"init": QEMU / "init", "bin/busybox": tools / "sysroot/usr/bin/busybox"}
        order = []
        for path in module_closure(tree, BOOT_MODULES):
            order.append(path.name.split(".ko")[0])
            entries[f"modules/{order[-1]}.ko"] = module_bytes(path)
        entries["modules/order"] = ("\n".join(order) + "\n").encode()
        (place / "initrd").write_bytes(cpio.archive(entries))
        shutil.rmtree(sysroot)


def program(directory, path):
    """Command words that run a program of an unpacked closure with that closure's own loader and libraries."""
    sysroot = directory / "sysroot"
    libraries = sysroot / "usr/lib/x86_64-linux-gnu"
    return [libraries / "ld-linux-x86-64.so.2", "--library-path", libraries, sysroot / path]


def make_ext4(tools, tree, image):
    """Makes an ext4 image of a directory with the closure's mkfs: no root, no mount."""
    used = sum(path.lstat().st_size + 4096 for path in tree.rglob("*") if not path.is_dir())
    size_mib = used * 5 // 4 // (1 << 20) + 32
    command = [*program(tools, "usr/sbin/mke2fs"), "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0"]
    command += ["-E", "root_owner=0:0,lazy_itable_init=0", "-d", tree, image, f"{size_mib}M"]
    run(command, environment={"MKE2FS_CONFIG": str(tools / "sysroot/etc/mke2fs.conf")})


def module_closure(tree, wanted):
    """Files of the wanted modules and of what they depend on, in the order in which to load them."""
    depends = {}
    for line in (tree / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        depends[path] = rest.split()
    by_name = {pathlib.Path(path).name.split(".ko")[0].replace("-", "_"): path for path in depends}
    ordered = []

    def visit(path):
        for needed in depends[path]:
            visit(needed)
        if path not in ordered:
            ordered.append(path)

    for name in wanted:
        if name in by_name:
            visit(by_name[name])
        elif f"/{name}.ko" not in (tree / "modules.builtin").read_text().replace("-", "_"):
            raise RigError(f"kernel {tree.name} has no module {name}")
    return [tree / path for path in ordered]


def module_bytes(path):
    """A module as `insmod` takes it."""
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes())
    return path.read_bytes()
