"""Numbered records, each flushed before the next: what was acknowledged must be there after any end of a server."""

import os
import struct
import threading
import zlib

from disk import MIB, pattern
from harness import check, note, wait_until

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


class Writers:
    """A writer on each of some disks, of which some may be the same: each has a region of its own."""

    def __init__(self, disks):
        self.stop = threading.Event()
        self.disks = disks
        self.all = [Writer(disk.path, index, self.stop) for index, disk in enumerate(disks)]
        for writer in self.all:
            writer.start()

    def wait_for_more(self, count, when, timeout_s=90):
        """Waits until each has written `count` more records; fails the case if one cannot."""
        goals = [writer.acknowledged + count for writer in self.all]

        def there():
            for writer in self.all:
                check(writer.error is None, f"writer {writer.index} {when}: {writer.error}")
            return all(writer.acknowledged >= goal for writer, goal in zip(self.all, goals, strict=True))

        wait_until(f"{count} more records {when}", there, timeout_s)

    def safe(self):
        """How many records of each are acknowledged."""
        return [writer.acknowledged for writer in self.all]

    def end(self):
        """Ends them; fails the case if one had an error, or what it wrote is not on its disk."""
        self.stop.set()
        for writer in self.all:
            writer.join(90)
            check(not writer.is_alive(), f"writer {writer.index} is stuck")
            check(writer.error is None, f"writer {writer.index} failed: {writer.error}")
        for writer, disk in zip(self.all, self.disks, strict=True):
            expect_records(disk, writer.index, writer.acknowledged)
        note(f"{sum(self.safe())} records")

    def look_at(self, disk):
        """Fails the case unless all that was acknowledged, by whichever way, is on a disk."""
        for writer in self.all:
            expect_records(disk, writer.index, writer.acknowledged)


def expect_records(disk, index, count):
    """Fails the case unless the first `count` records of a writer are on a disk."""
    if count:
        expected = b"".join(record(index, number) for number in range(count))
        disk.expect(index * REGION, expected, f"records of writer {index} on {disk.path}")


def expect_records_in_file(path, index, count):
    """Fails the case unless the first `count` records of a writer are in a file."""
    with open(path, "rb") as file:
        file.seek(index * REGION)
        for number in range(count):
            check(file.read(RECORD) == record(index, number), f"{path}: writer {index} lost record {number} of {count}")


def record(writer, number):
    head = struct.pack("<II", writer, number)
    body = head + pattern(RECORD - 12, writer << 32 | number)[8:]
    body = body.ljust(RECORD - 4, b"\0")
    return body + struct.pack("<I", zlib.crc32(body))
