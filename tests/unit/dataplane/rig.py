"""Two ends of a tunnel without a kernel device.

A datagram socketpair stands for the tun: one record is one packet, as on
the device. The link is real, over the loopback of this machine.
"""

import socket

from qubes_vpn.dataplane.userspace import UserspacePlane
from qubes_vpn.engine.data_channel import PRIMARY, DataChannel
from qubes_vpn.engine.traffic import Traffic


def udp_pair():
    left = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    right = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    left.bind(("127.0.0.1", 0))
    right.bind(("127.0.0.1", 0))
    left.connect(right.getsockname())
    right.connect(left.getsockname())
    left.setblocking(False)
    right.setblocking(False)
    return left, right


def tcp_pair():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        left = socket.create_connection(listener.getsockname())
        right, _ = listener.accept()
    left.setblocking(False)
    right.setblocking(False)
    return left, right


class End:
    """A plane, the app side of its tun, and its link."""

    def __init__(self, link, keys, stream, plane=UserspacePlane):
        self.link = link
        self.app, self.tun = socket.socketpair(
            socket.AF_UNIX, socket.SOCK_DGRAM
        )
        self.app.setblocking(False)
        self.tun.setblocking(False)
        self.channel = DataChannel(Traffic())
        if keys:
            self.channel.install(PRIMARY, keys)
        self.plane = plane(link, self.tun.fileno(), self.channel, stream=stream)

    def pump(self, now=1.0):
        (descriptor,) = self.plane.readable()
        return self.plane.pump(descriptor, now)

    def received(self):
        packets = []
        while True:
            try:
                packets.append(self.app.recv(65536))
            except BlockingIOError:
                return packets

    def drops(self):
        return dict(self.plane.counters().drops)

    def close(self):
        self.plane.close()
        for each in (self.link, self.app, self.tun):
            each.close()
