"""Datagrams through a SOCKS5 proxy: each has a header before it.

What a proxy relays is slow anyway: there is one call for each datagram.
"""

import contextlib
import functools
import socket

from qubes_vpn.dataplane.link import DatagramLink, Drop, Packets
from qubes_vpn.engine.proxy import relay_header_size


class RelayedLink(DatagramLink):
    """A UDP socket that is connected to a proxy's relay.

    header: what each datagram begins with, RFC 1928, 7.
    """

    def __init__(self, sock: socket.socket, drop: Drop, header: bytes) -> None:
        super().__init__(sock, drop)
        self._send = functools.partial(_send_after, sock, header)
        self._gso = False

    def packets(self, limit: int) -> Packets:
        """Give packets as DatagramLink does, without their headers."""
        with contextlib.closing(super().packets(limit)) as packets:
            for buffer, size in packets:
                start = relay_header_size(buffer[:size])
                if start:
                    yield buffer[start:], size - start
                else:
                    self._drop("relay-header")


def _send_after(
    sock: socket.socket, header: bytes, datagram: memoryview | bytes
) -> int:
    return sock.sendmsg((header, datagram))
