"""What the kernel says of its devices."""

import socket

# linux/netlink.h; the socket module has no name for it.
NETLINK_KOBJECT_UEVENT = 15


class Events:
    """The kernel's uevents from now on."""

    def __init__(self):
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, NETLINK_KOBJECT_UEVENT)
        # Group 1: events as the kernel sends them.
        self.socket.bind((0, 1))
        self.socket.setblocking(False)
        self.seen = []

    def has(self, text):
        while True:
            try:
                self.seen.append(self.socket.recv(65536).decode(errors="replace").replace("\0", " "))
            except BlockingIOError:
                return any(text in event for event in self.seen)
