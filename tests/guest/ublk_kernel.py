"""What the kernel knows of ublk: its features, and the devices there are. A witness beside reactor's own words.

The commands go through io_uring to /dev/ublk-control, as the kernel's include/uapi/linux/ublk_cmd.h has them.
"""

import collections
import ctypes
import errno
import mmap
import os
import pathlib
import struct

CONTROL = "/dev/ublk-control"
CHARACTER = pathlib.Path("/sys/class/ublk-char")

# Features, by what a case calls them.
ZERO_COPY = 1 << 0
USER_RECOVERY = 1 << 3
USER_COPY = 1 << 7
UPDATE_SIZE = 1 << 10
AUTO_BUF_REG = 1 << 11
QUIESCE = 1 << 12

STATES = {0: "dead", 1: "live", 2: "quiesced", 3: "fail-io"}

# Numbers and directions of the control commands: _IOR is 2, _IOWR is 3.
_GET_DEV_INFO = (2, 0x02)
_ADD_DEV = (3, 0x04)
_DEL_DEV = (3, 0x05)
_STOP_DEV = (3, 0x07)
_GET_FEATURES = (2, 0x13)
_COMMAND = struct.Struct("<IHHQQHHI")
_DEV_INFO = struct.Struct("<HHHHIIiIQQII16x")

# linux/io_uring.h
_SETUP, _ENTER = 425, 426
_SETUP_SQE128 = 1 << 10
_OP_URING_CMD = 46
_ENTER_GETEVENTS = 1
_OFFSET_SQES = 0x10000000

Info = collections.namedtuple("Info", "queues depth state io_max id server flags mark")
_libc = ctypes.CDLL(None, use_errno=True)


def features():
    """The features that the running kernel offers, as bits."""
    buffer = ctypes.create_string_buffer(8)
    _control(_GET_FEATURES, 0, buffer)
    return int.from_bytes(buffer.raw, "little")


def info(number):
    """What the kernel says of a device."""
    buffer = ctypes.create_string_buffer(_DEV_INFO.size)
    _control(_GET_DEV_INFO, number, buffer)
    queues, depth, state, _, io_max, ident, server, _, flags, mark, _, _ = _DEV_INFO.unpack(buffer.raw)
    return Info(queues, depth, STATES.get(state, state), io_max, ident, server, flags, mark)


def add(number):
    """Makes a device as any program may: one queue of one tag, without a mark, never started."""
    flags = 1 << 6  # UBLK_F_CMD_IOCTL_ENCODE
    buffer = ctypes.create_string_buffer(_DEV_INFO.size)
    buffer.raw = _DEV_INFO.pack(1, 1, 0, 0, 1 << 16, number, 0, 0, flags, 0, 0, 0)
    _control(_ADD_DEV, number, buffer)


def devices():
    """Numbers of the devices that the kernel has, with or without a disk."""
    return sorted(int(path.name.removeprefix("ublkc")) for path in CHARACTER.glob("ublkc*"))


def remove_all():
    """Takes every device away, whoever has it."""
    for number in devices():
        for command in (_STOP_DEV, _DEL_DEV):
            try:
                _control(command, number)
            except OSError as error:
                if error.errno != errno.ENODEV:
                    raise


def _control(command, number, buffer=None):
    """One control command; `buffer` gets the answer."""
    direction, code = command
    address, length = (ctypes.addressof(buffer), len(buffer)) if buffer else (0, 0)
    payload = _COMMAND.pack(number, 0xFFFF, length, address, 0, 0, 0, 0)
    operation = direction << 30 | _COMMAND.size << 16 | ord("u") << 8 | code
    control = os.open(CONTROL, os.O_RDWR)
    try:
        result = _uring_command(control, operation, payload)
    finally:
        os.close(control)
    if result < 0:
        raise OSError(-result, f"ublk command {code:#x} of device {number}: {os.strerror(-result)}")


def _uring_command(descriptor, operation, payload):
    """Carries out one IORING_OP_URING_CMD on a ring of its own; returns its result."""
    # struct io_uring_params: 10 words, then the offsets of the submission and of the completion ring, 40 bytes each.
    params = bytearray(120)
    struct.pack_into("<I", params, 8, _SETUP_SQE128)
    view = (ctypes.c_char * len(params)).from_buffer(params)
    ring = _call(_SETUP, 4, view)
    try:
        entries, completions = struct.unpack_from("<II", params, 0)
        head = struct.unpack_from("<10I", params, 40)
        tail = struct.unpack_from("<10I", params, 80)
        sq_tail, sq_array = head[1], head[6]
        cq_head, cq_cqes = tail[0], tail[5]
        size = max(sq_array + 4 * entries, cq_cqes + 16 * completions)
        with mmap.mmap(ring, size) as rings, mmap.mmap(ring, 128 * entries, offset=_OFFSET_SQES) as sqes:
            sqe = struct.pack("<BBHiQQIIQ", _OP_URING_CMD, 0, 0, descriptor, operation, 0, 0, 0, 1)
            sqes[:48] = sqe.ljust(48, b"\0")
            sqes[48:128] = payload.ljust(80, b"\0")
            struct.pack_into("<I", rings, sq_array, 0)
            struct.pack_into("<I", rings, sq_tail, 1)
            _call(_ENTER, ring, 1, 1, _ENTER_GETEVENTS, None, 0)
            at = struct.unpack_from("<I", rings, cq_head)[0] & (completions - 1)
            return struct.unpack_from("<Qi", rings, cq_cqes + 16 * at)[1]
    finally:
        os.close(ring)


def _call(number, *arguments):
    result = _libc.syscall(number, *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
