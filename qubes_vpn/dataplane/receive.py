"""Reading datagrams: as the kernel joins them, or many by one call.

Which of the two is better depends on the path: where datagrams come alone,
UDP_GRO costs a call for each, so it is given up, and tried again later.
"""

import contextlib
import socket
import time
from sys import byteorder
from typing import Final, Protocol

import numpy as np

from qubes_vpn.dataplane.gather import Gatherer
from qubes_vpn.dataplane.inlet import Inlet
from qubes_vpn.dataplane.link import DATAGRAM_MAX, UDP_GRO, Address, Drop, slug
from qubes_vpn.dataplane.segment import Array
from qubes_vpn.dataplane.unseal import ROWS, SEALED_MAX

# Datagrams in a row that came alone before UDP_GRO is given up, and how many
# later it is tried again.
_GRO_PATIENCE: Final = 64
_GRO_RETRY: Final = 4_096
# After a datagram that is too big for a row: how many more are read into a
# buffer that holds any, if none of them is authentic and as big.
_JUMBO_FOR: Final = 10_000
_ANCILLARY_SIZE: Final = 64
# From how many packets a second on a batch may wait; seconds from one to the
# next; and over how many packets the rate is taken.
_LOAD: Final = 12_000
_PERIOD: Final = 0.0003
_SAMPLE: Final = 128


class Sink(Protocol):
    """Who takes what a Receiver reads."""

    def took_rows(self, sizes: list[int], sources: list[Address]) -> None:
        """Take datagrams in the inlet's rows, with where they are from."""

    def took_joined(self, joined: Array, each: int, source: Address) -> None:
        """Take datagrams of one source that lie end to end."""


class Receiver:
    """Reads the datagrams of one socket into an inlet's rows.

    connected: the socket has one peer; then nobody is told sources.
    """

    def __init__(
        self, sock: socket.socket, inlet: Inlet, drop: Drop, *, connected: bool
    ) -> None:
        self._sock = sock
        self._inlet = inlet
        self._drop = drop
        self._joined = np.zeros(DATAGRAM_MAX + 1, np.uint8)
        self._gatherer = Gatherer(
            sock, inlet.rows, SEALED_MAX, connected=connected
        )
        self._gro = self._set_gro(on=True)
        self._misses = 0
        self._jumbo = 0

    def receive(self, sink: Sink) -> None:
        """Read what is there, up to ROWS datagrams or joined ones."""
        if self._gro or self._jumbo:
            self._receive_joined(sink)
        else:
            self._receive_rows(sink)
        if self._inlet.met_big:
            self._inlet.met_big = False
            self._jumbo = _JUMBO_FOR

    def _receive_rows(self, sink: Sink) -> None:
        try:
            sizes, sources = self._gatherer.receive()
        except OSError as error:
            self._drop(slug("link", error))
            return
        if sizes:
            sink.took_rows(sizes, sources)
        self._misses -= len(sizes)
        if self._misses < -_GRO_RETRY:
            self._gro = self._set_gro(on=True)
            self._misses = 0

    def _receive_joined(self, sink: Sink) -> None:
        rows = self._inlet.rows
        sizes: list[int] = []
        sources: list[Address] = []
        for _ in range(ROWS):
            try:
                size, ancillary, _, source = self._sock.recvmsg_into(
                    (self._joined.data,), _ANCILLARY_SIZE
                )
            except BlockingIOError:
                break
            except OSError as error:
                self._drop(slug("link", error))
                continue
            self._jumbo -= self._jumbo > 0
            each = size
            if ancillary:
                each = int.from_bytes(ancillary[0][2][:4], byteorder)
            if each == size <= SEALED_MAX:
                rows[len(sizes), :size] = self._joined[:size]
                sizes.append(size)
                sources.append(source)
                self._misses += 1
                continue
            self._misses = 0
            if sizes:
                sink.took_rows(sizes, sources)
                sizes, sources = [], []
            sink.took_joined(self._joined[:size], each, source)
        if sizes:
            sink.took_rows(sizes, sources)
        if self._gro and self._misses > _GRO_PATIENCE:
            self._gro = not self._set_gro(on=False)
            self._misses = 0

    def _set_gro(self, *, on: bool) -> bool:
        with contextlib.suppress(OSError):
            self._sock.setsockopt(socket.SOL_UDP, UDP_GRO, int(on))
            return True
        return False


class Pace:
    """Under load, lets a batch grow before it is looked at.

    What a batch costs by itself is more than ten packets do. Without load
    nothing is delayed, nor is a batch that has had its time to grow: the
    socket may be nearly full.
    """

    def __init__(self) -> None:
        self._packets, self._sampled = 0, time.monotonic()
        self._loaded = False
        self._looked = 0.0

    def rest(self, packets: int) -> None:
        """packets: how many passed so far, both ways."""
        now = time.monotonic()
        many = packets - self._packets >= _SAMPLE
        if many or now - self._sampled > _SAMPLE / _LOAD:
            self._loaded = many and now - self._sampled < _SAMPLE / _LOAD
            self._packets, self._sampled = packets, now
        wait = self._looked + _PERIOD - now
        if self._loaded and wait > 0:
            time.sleep(wait)
            now = time.monotonic()
        self._looked = now
