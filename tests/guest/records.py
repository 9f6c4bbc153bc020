"""Numbered records, each flushed before the next: what was acknowledged must be there after any end of a server."""

import os
import struct
import threading
import zlib

from disk import MIB, pattern

RECORD = 4096
REGION = 16 * MIB


class Writer(threading.Thread):
    """Writes numbered records, each followed by fsync, into a region of its own; `acknowledged` of them are safe."""

    def __init__(self, path, index, stop):
        super().__init__(daemon=True)
        self.path = path
        self.index = index
        self.stopping = stop
        self.acknowledged = 0
        self.error = None

    def run(self):
        try:
            descriptor = os.open(self.path, os.O_RDWR)
            while not self.stopping.is_set() and self.acknowledged < REGION // RECORD:
                number = self.acknowledged
                os.pwrite(descriptor, record(self.index, number), self.index * REGION + number * RECORD)
                os.fsync(descriptor)
                self.acknowledged = number + 1
            os.close(descriptor)
        except OSError as error:
            self.error = error


def record(writer, number):
    head = struct.pack("<II", writer, number)
    body = head + pattern(RECORD - 12, writer << 32 | number)[8:]
    body = body.ljust(RECORD - 4, b"\0")
    return body + struct.pack("<I", zlib.crc32(body))
