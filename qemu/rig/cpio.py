"""The `newc` cpio format, as the kernel reads it for an initrd (Documentation/driver-api/early-userspace)."""

import os
import stat


def archive(entries):
    """Returns the bytes of a newc archive.

    `entries` maps a path inside the archive (no leading slash) to one of: `bytes` (a file, mode 0755), `None` (a
    directory), or an `os.PathLike` of a file on this machine. Parent directories are added. The result is padded to a
    multiple of 4 bytes, so archives may be put one behind the other.
    """
    out = bytearray()
    inode = 1
    for name, entry in sorted(_with_parents(entries).items()):
        if entry is None:
            mode, data = stat.S_IFDIR | 0o755, b""
        elif isinstance(entry, bytes):
            mode, data = stat.S_IFREG | 0o755, entry
        else:
            with open(entry, "rb") as file:
                data = file.read()
            mode = stat.S_IFREG | (os.stat(entry).st_mode & 0o777)
        _append(out, inode, name, mode, data)
        inode += 1
    _append(out, 0, "TRAILER!!!", 0, b"")
    return bytes(out)


def _with_parents(entries):
    complete = dict(entries)
    for name in entries:
        parent = os.path.dirname(name)
        while parent:
            complete.setdefault(parent, None)
            parent = os.path.dirname(parent)
    return complete


def _append(out, inode, name, mode, data):
    encoded = name.encode() + b"\0"
    fields = [inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(encoded), 0]
    out += b"070701" + b"".join(b"%08X" % field for field in fields)
    out += encoded
    out += b"\0" * (-len(out) % 4)
    out += data
    out += b"\0" * (-len(out) % 4)
