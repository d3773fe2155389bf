"""One TCP client's connection: packets with their lengths, both ways."""

import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from qubes_vpn.errors import MalformedPacketError
from qubes_vpn.wire.framing import LENGTH_SIZE, Deframer

RECEIVE_SIZE: Final = 65_536
# What may wait for a slow client; what waits adds to its latency.
QUEUE_MAX: Final = 256 * 1024
# Larger than any packet with an inner one of the largest MTU.
PACKET_MAX: Final = 20_000


class Stream:
    """A connected, non-blocking TCP socket.

    want_write: called with True when something waits for the socket, and
    with False when it no longer does.
    """

    def __init__(
        self, sock: socket.socket, want_write: Callable[[bool], None]
    ) -> None:
        self.sock = sock
        self._want_write = want_write
        self._deframer = Deframer(PACKET_MAX)
        self._queue: deque[memoryview] = deque()
        self._queued = 0
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @property
    def full(self) -> bool:
        """Whether a data packet would wait too long: do not seal it."""
        return self._queued >= QUEUE_MAX

    def receive(self) -> list[bytes] | None:
        """Give the packets that are there; None when the stream is over."""
        try:
            received = self.sock.recv(RECEIVE_SIZE)
        except BlockingIOError:
            return []
        except OSError:
            return None
        if not received:
            return None
        try:
            return self._deframer.feed(received)
        except MalformedPacketError:
            return None

    def send(self, packet: memoryview | bytes) -> bool:
        """Send a packet, now or later; False when the stream is broken."""
        frame = len(packet).to_bytes(LENGTH_SIZE) + bytes(packet)
        if self._queue:
            self._keep(memoryview(frame))
            return True
        try:
            sent = self.sock.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError:
            return False
        if sent < len(frame):
            self._keep(memoryview(frame)[sent:])
            self._want_write(True)
        return True

    def flush(self) -> None:
        """Send what waits, as far as it goes."""
        while self._queue:
            part = self._queue[0]
            try:
                sent = self.sock.send(part)
            except BlockingIOError:
                return
            except OSError:
                self._queue.clear()
                break  # reading will find out
            self._queued -= sent
            if sent < len(part):
                self._queue[0] = part[sent:]
                return
            self._queue.popleft()
        self._want_write(False)

    def _keep(self, part: memoryview) -> None:
        self._queue.append(part)
        self._queued += len(part)
