"""A bad link: a relay between clients and a VPN server, with a seed.

The profile names the relay's address instead of the server's. It stands in for
netem, which not every kernel has, and can do what netem cannot: record, replay
and inject. The same seed and the same datagrams give the same faults.
"""

import contextlib
import heapq
import itertools
import random
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Self, TypeAlias

from lab import addresses as at
from lab.background import Background
from lab.capture import Endpoint
from lab.namespace import Namespace
from lab.services import bind_udp

Address: TypeAlias = IPv4Address | IPv6Address

DATAGRAM_MAX = 1 << 16
BUFFER = 4 << 20
POLL = 0.05


class Way(Enum):
    """Up is from the client to the server."""

    UP = "up"
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Faults:
    """What happens to datagrams: chances from 0 to 1, times in seconds.

    drop, duplicate, corrupt (one bit flips) and reorder (it waits `late`) are
    drawn for each datagram in each direction; delay is everybody's.
    """

    drop: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    corrupt: float = 0.0
    delay: float = 0.0
    late: float = 0.02


Hook: TypeAlias = Callable[[Way, bytes], list[bytes]]


class _Relay(Background):
    """A thread with an address; its counters stay when it ends."""

    def __init__(
        self, namespace: Namespace, server: Endpoint, address: Address | None
    ) -> None:
        super().__init__()
        default = at.RELAY4 if server.address.version == 4 else at.RELAY6
        self.endpoint = Endpoint(address or default, server.proto, server.port)
        self.blackhole = False
        self.passed: Counter[Way] = Counter()
        self._namespace = namespace
        self._server = server

    def start(self) -> Self:
        """Listen on the relay's address."""
        self._open()
        return super().start()

    def _open(self) -> None:
        raise NotImplementedError


class Relay(_Relay):
    """Relays one client's UDP to a server, from start() to stop().

    faults, blackhole and hook may be changed while it runs. hook(way,
    datagram) -> the datagrams to go on with instead.
    """

    def __init__(
        self,
        namespace: Namespace,
        server: Endpoint,
        faults: Faults | None = None,
        *,
        seed: int = 0,
        address: Address | None = None,
    ) -> None:
        super().__init__(namespace, server, address)
        self.faults = faults or Faults()
        self.hook: Hook | None = None
        self.happened: Counter[str] = Counter()
        self._random = random.Random(seed)
        self._tapes: list[list[tuple[Way, bytes]]] = []
        self._late: list[tuple[float, int, Way, bytes]] = []
        self._order = itertools.count()
        self._client: Any = None
        self._down: socket.socket
        self._up: socket.socket
        self._elsewhere: socket.socket | None = None

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[tuple[Way, bytes]]]:
        """Record what arrives at the relay, before any fault."""
        tape: list[tuple[Way, bytes]] = []
        self._tapes.append(tape)
        try:
            yield tape
        finally:
            self._tapes.remove(tape)

    def inject(self, way: Way, datagram: bytes) -> None:
        """Send a datagram as if the other side had, untouched by faults."""
        self._pass(way, datagram)

    def rebind(self) -> None:
        """Reach the server from a new port, as a NAT does that forgot."""
        before = self._up
        self._up = self._to_server()
        before.close()

    @contextlib.contextmanager
    def moved(self, address: Address) -> Iterator[None]:
        """Answer the client from another address and port meanwhile."""
        with bind_udp(self._namespace, address, 0) as link:
            self._elsewhere = link
            yield
            self._elsewhere = None

    def _to_server(self) -> socket.socket:
        made = bind_udp(self._namespace, self.endpoint.address, 0)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        made.setblocking(False)
        return made

    def _open(self) -> None:
        here = self.endpoint
        self._down = bind_udp(self._namespace, here.address, here.port)
        self._down.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        self._down.setblocking(False)
        self._up = self._to_server()

    def _run(self) -> None:
        while not self._stop.is_set():
            wait = POLL
            if self._late:
                wait = min(wait, max(0, self._late[0][0] - time.monotonic()))
            # A socket that rebind() has just closed is not worth a word.
            with contextlib.suppress(OSError, ValueError):
                select.select([self._down, self._up], [], [], wait)
            self._drain(Way.UP, self._down)
            self._drain(Way.DOWN, self._up)
            self._pass_late()
        self._down.close()
        self._up.close()

    def _drain(self, way: Way, arriving: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                datagram, peer = arriving.recvfrom(DATAGRAM_MAX)
                if way is Way.UP:
                    self._client = peer
                self._arrive(way, datagram)

    def _arrive(self, way: Way, datagram: bytes) -> None:
        for tape in self._tapes:
            tape.append((way, datagram))
        if self.blackhole:
            self.happened["blackhole"] += 1
            return
        for changed in self.hook(way, datagram) if self.hook else [datagram]:
            self._harm(way, changed)

    def _harm(self, way: Way, datagram: bytes) -> None:
        """Draw once for each fault, so that the sequence stays the same."""
        faults, draw = self.faults, self._random.random
        drop, duplicate, reorder, corrupt, where = (draw() for _ in range(5))
        if drop < faults.drop:
            self.happened["drop"] += 1
            return
        if corrupt < faults.corrupt and datagram:
            self.happened["corrupt"] += 1
            datagram = _flip(datagram, int(where * len(datagram) * 8))
        wait = faults.delay
        if reorder < faults.reorder:
            self.happened["reorder"] += 1
            wait += faults.late
        copies = 1
        if duplicate < faults.duplicate:
            self.happened["duplicate"] += 1
            copies = 2
        for _ in range(copies):
            self._later(wait, way, datagram)

    def _later(self, wait: float, way: Way, datagram: bytes) -> None:
        if wait <= 0:
            self._pass(way, datagram)
            return
        due = time.monotonic() + wait
        heapq.heappush(self._late, (due, next(self._order), way, datagram))

    def _pass_late(self) -> None:
        while self._late and self._late[0][0] <= time.monotonic():
            _, _, way, datagram = heapq.heappop(self._late)
            self._pass(way, datagram)

    def _pass(self, way: Way, datagram: bytes) -> None:
        # A full buffer or a port that nobody listens on: the datagram is lost.
        with contextlib.suppress(OSError):
            if way is Way.UP:
                to = (str(self._server.address), self._server.port)
                self._up.sendto(datagram, to)
            elif self._client is not None:
                link = self._elsewhere or self._down
                link.sendto(datagram, self._client)
            self.passed[way] += 1


def _flip(datagram: bytes, bit: int) -> bytes:
    changed = bytearray(datagram)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


class TcpRelay(_Relay):
    """Relays TCP connections to a server, from start() to stop().

    delay: seconds that every chunk waits. chunk: bytes passed on at a time,
    so that 1 cuts every frame into pieces. blackhole: swallow everything.
    """

    def __init__(
        self,
        namespace: Namespace,
        server: Endpoint,
        *,
        delay: float = 0.0,
        chunk: int = DATAGRAM_MAX,
        address: Address | None = None,
    ) -> None:
        super().__init__(namespace, server, address)
        self.delay = delay
        self.chunk = chunk
        self._streams: list[socket.socket] = []
        self._pumps: list[threading.Thread] = []

    def cut(self) -> None:
        """Break every connection, as a middlebox does."""
        for stream in self._streams:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)

    def stop(self) -> None:
        """Stop relaying and break what is open."""
        super().stop()
        self.cut()
        for thread in self._pumps:
            thread.join()
        for stream in self._streams:
            stream.close()

    def _stream(self) -> socket.socket:
        version = self.endpoint.address.version
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with self._namespace.enter():
            return socket.socket(family, socket.SOCK_STREAM)

    def _open(self) -> None:
        self._listening = self._stream()
        self._listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listening.bind((str(self.endpoint.address), self.endpoint.port))
        self._listening.listen()
        self._listening.settimeout(POLL)

    def _run(self) -> None:
        with self._listening:
            while not self._stop.is_set():
                with contextlib.suppress(TimeoutError):
                    self._join(self._listening.accept()[0])

    def _join(self, client: socket.socket) -> None:
        server = self._stream()
        client.settimeout(None)
        try:
            server.connect((str(self._server.address), self._server.port))
        except OSError:
            client.close()
            server.close()
            return
        for stream in (client, server):
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._streams += [client, server]
        for way, source, to in (
            (Way.UP, client, server),
            (Way.DOWN, server, client),
        ):
            pump = threading.Thread(
                target=self._pump, args=(way, source, to), daemon=True
            )
            self._pumps.append(pump)
            pump.start()

    def _pump(self, way: Way, source: socket.socket, to: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(DATAGRAM_MAX):
                if self.blackhole:
                    continue
                for start in range(0, len(data), self.chunk):
                    if self.delay:
                        time.sleep(self.delay)
                    to.sendall(data[start : start + self.chunk])
                self.passed[way] += 1
        with contextlib.suppress(OSError):
            to.shutdown(socket.SHUT_RDWR)
