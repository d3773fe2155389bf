"""A server's TCP clients: their connections, and what comes on them."""

import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from qubes_vpn.dataplane.link import (
    QUEUE_MAX,
    STREAM_BUFFER,
    Address,
    StreamLink,
)
from qubes_vpn.engine.hello import Source
from qubes_vpn.errors import SessionError
from qubes_vpn.runtime.server_events import OnEvents

if TYPE_CHECKING:
    from qubes_vpn.runtime.server_clients import Client

__all__ = ["PACKET_MAX", "QUEUE_MAX", "Connection", "Connections", "Stream"]

# Larger than any packet with an inner one of the largest MTU.
PACKET_MAX: Final = 20_000
# Numbers of TCP connections, apart from those of listening sockets.
_FIRST: Final = 1000
# Connections from one socket before the others have their turn.
_BURST: Final = 64


class Stream(StreamLink):
    """A StreamLink whose peer may fail: reading will find out.

    buffer: shared by all streams. want_write: called with True when
    something waits for the socket, and with False when it no longer does.
    """

    def __init__(
        self,
        sock: socket.socket,
        buffer: memoryview,
        want_write: Callable[[bool], None],
    ) -> None:
        super().__init__(sock, lambda *_: None, buffer, PACKET_MAX)
        self._want_write = want_write
        self._wanted = False

    def send_frames(self, frames: bytes | memoryview) -> bool:
        """Send packets with their lengths; False when it is broken."""
        try:
            super().send_frames(frames)
        except SessionError:
            return False
        self._want()
        return True

    def flush(self) -> None:
        """Send what waits, as far as it goes."""
        try:
            super().flush()
        except SessionError:
            self.forget_unsent()
        self._want()

    def _want(self) -> None:
        if self.waiting != self._wanted:
            self._wanted = self.waiting
            self._want_write(self._wanted)


class Connection:
    """A TCP connection. client: who it turned out to be."""

    def __init__(self, stream: Stream, source: Source) -> None:
        self.stream = stream
        self.source = source
        self.client: Client | None = None
        self.since = time.monotonic()


class Connections:
    """All TCP connections, by the number that stands in their Source.

    receive: called when there is something to read on one. drops: counts.
    most: how many there may be.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        receive: Callable[[Connection], None],
        drops: Counter[str],
        most: int,
    ) -> None:
        self._selector = selector
        self._receive = receive
        self._drops = drops
        self._most = most
        self._next = _FIRST
        self._by_number: dict[int, Connection] = {}
        self._buffer: memoryview | None = None

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._by_number.values()))

    def get(self, source: Source) -> Connection | None:
        """Give the connection that a source is at, if it still is."""
        return self._by_number.get(source.socket)

    def accept(self, listener: socket.socket) -> None:
        """Take who waits at a listening socket."""
        for _ in range(_BURST):
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                return
            except OSError:
                self._drops["accept"] += 1
                return
            if len(self._by_number) >= self._most:
                self._drops["too-many-connections"] += 1
                sock.close()
                continue
            self._adopt(sock, address)

    def _adopt(self, sock: socket.socket, address: Address) -> None:
        sock.setblocking(False)
        number, self._next = self._next, self._next + 1
        if self._buffer is None:
            self._buffer = memoryview(bytearray(STREAM_BUFFER))

        def want_write(wanted: bool) -> None:  # noqa: FBT001 a callback
            events = selectors.EVENT_READ
            if wanted:
                events |= selectors.EVENT_WRITE
            self._selector.modify(sock, events, OnEvents(ready))

        stream = Stream(sock, self._buffer, want_write)
        connection = Connection(stream, source_of(number, address))

        def ready(events: int) -> None:
            if events & selectors.EVENT_WRITE:
                stream.flush()
            if events & selectors.EVENT_READ:
                self._receive(connection)

        self._by_number[number] = connection
        self._selector.register(sock, selectors.EVENT_READ, OnEvents(ready))

    def hang_up(self, source: Source) -> bool:
        """Close the connection of a source; False if there is none."""
        connection = self._by_number.pop(source.socket, None)
        if connection is None:
            return False
        connection.stream.flush()
        self._selector.unregister(connection.stream.sock)
        connection.stream.sock.close()
        return True


def source_of(number: int, address: Address) -> Source:
    """Say where a peer is. number: of the socket or the connection."""
    host = ip_address(address[0])
    if host.version == 6 and host.ipv4_mapped:
        host = host.ipv4_mapped
    return Source(number, host, address[1])
