"""What app qubes do: floods of canaries, pages, names, bulk.

Every payload carries the word canary, so that a capture can tell it apart from
everything that a tunnel encrypts.
"""

import http.client
import itertools
import os
import re
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeAlias

from lab.addresses import (
    DNS_PORT,
    ECHO_PORT,
    QUBES_DNS,
    WEB4,
    WEB_NAME,
    WEB_PORT,
)
from lab.background import Background
from lab.namespace import LabError, Namespace
from lab.services import AAAA, DNS_HEADER, A, decode_name

Address: TypeAlias = IPv4Address | IPv6Address

ICMP_ECHO = 8
_SEEN = re.compile(rb"CANARY \S+ (\d+) \S* ?([0-9a-f:.]+)$")
_query_ids = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Echo:
    """One answer of the echo server: which probe, and who it saw."""

    number: int
    seen: Address


class Flood(Background):
    """UDP canaries at a constant rate, from start() to stop().

    Each is answered by the lab's echo server with the address that it saw.
    """

    def __init__(
        self,
        namespace: Namespace,
        *,
        rate: int = 100,
        to: Address = WEB4,
        port: int = ECHO_PORT,
        padding: int = 0,
    ) -> None:
        super().__init__()
        family = socket.AF_INET if to.version == 4 else socket.AF_INET6
        with namespace.enter():
            self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._name = namespace.name
        self._target = (str(to), port)
        self._interval = 1 / rate
        self._padding = "x" * padding
        self.sent = 0
        self.refused = 0
        self.echoes: list[Echo] = []

    def stop(self) -> None:
        """Stop sending; counters and echoes stay."""
        super().stop()
        self._socket.close()

    def wait_sent(self, more: int, timeout: float = 30) -> None:
        """Wait until so many more probes were tried."""
        goal = self.sent + more
        self._wait(lambda: self.sent >= goal, timeout, f"{more} probes")

    def wait_echoes(self, more: int = 1, timeout: float = 30) -> list[Echo]:
        """Wait for so many more answers, and return them."""
        start = len(self.echoes)
        self._wait(
            lambda: len(self.echoes) >= start + more, timeout, f"{more} echoes"
        )
        return self.echoes[start:]

    def _wait(
        self, done: Callable[[], bool], timeout: float, what: str
    ) -> None:
        limit = time.monotonic() + timeout
        while not done():
            if time.monotonic() > limit:
                raise LabError(f"{self._name}: no {what} in {timeout} s")
            time.sleep(0.01)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            self._send()
            due += self._interval
            while (left := due - time.monotonic()) > 0:
                if select.select([self._socket], [], [], left)[0]:
                    self._receive()

    def _send(self) -> None:
        probe = f"CANARY {self._name} {self.sent} {self._padding}"
        self.sent += 1
        try:
            self._socket.sendto(probe.encode(), self._target)
        except OSError:
            # No route, or an error that came back: also an answer.
            self.refused += 1

    def _receive(self) -> None:
        try:
            answer = self._socket.recv(1 << 16)
        except OSError:
            self.refused += 1
            return
        if found := _SEEN.match(answer):
            number, seen = found.groups()
            self.echoes.append(Echo(int(number), ip_address(seen.decode())))


@dataclass(frozen=True, slots=True)
class Page:
    """An HTTP answer; seen: the address that the web server saw us at."""

    status: int
    body: bytes

    @property
    def seen(self) -> Address:
        """The last word of a lab page."""
        return ip_address(self.body.split()[-1].decode())


def fetch(
    namespace: Namespace,
    path: str = "/",
    *,
    to: Address = WEB4,
    upload: bytes | None = None,
    timeout: float = 10,
) -> Page:
    """GET a page (or POST `upload`); OSError says why there was none."""
    family = socket.AF_INET if to.version == 4 else socket.AF_INET6
    with namespace.enter():
        stream = socket.socket(family, socket.SOCK_STREAM)
    connection = http.client.HTTPConnection(WEB_NAME, timeout=timeout)
    connection.sock = stream
    try:
        stream.settimeout(timeout)
        stream.connect((str(to), WEB_PORT))
        method = "GET" if upload is None else "POST"
        headers = {"X-Who": f"CANARY {namespace.name}"}
        connection.request(method, path, upload, headers)
        answer = connection.getresponse()
        return Page(answer.status, answer.read())
    except http.client.HTTPException as error:
        raise ConnectionError(str(error)) from error
    finally:
        connection.close()


def download(namespace: Namespace, size: int, *, timeout: float = 60) -> int:
    """GET `size` bytes of bulk; how many came."""
    return len(fetch(namespace, f"/bytes/{size}", timeout=timeout).body)


def resolve(
    namespace: Namespace,
    name: str = WEB_NAME,
    *,
    server: Address = QUBES_DNS[0],
    version: int = 4,
    timeout: float = 5,
) -> list[Address]:
    """Ask a resolver over UDP; an empty list if the name does not exist.

    Raises TimeoutError if nobody answers, OSError if somebody refuses.
    """
    kind = A if version == 4 else AAAA
    number = next(_query_ids) & 0xFFFF
    labels = b"".join(
        bytes([len(label)]) + label.encode() for label in name.split(".")
    )
    question = labels + b"\0" + struct.pack(">HH", kind, 1)
    query = DNS_HEADER.pack(number, 0x0100, 1, 0, 0, 0) + question
    family = socket.AF_INET if server.version == 4 else socket.AF_INET6
    with namespace.enter():
        asking = socket.socket(family, socket.SOCK_DGRAM)
    with asking:
        asking.settimeout(timeout)
        asking.connect((str(server), DNS_PORT))
        asking.send(query)
        return _answers(asking.recv(4096), number, kind)


def _answers(message: bytes, number: int, kind: int) -> list[Address]:
    """The addresses of an answer by the lab's DNS server."""
    echoed, _, _, count, *_ = DNS_HEADER.unpack_from(message)
    if echoed != number:
        raise LabError("an answer to another question")
    _, offset = decode_name(message, DNS_HEADER.size)
    size, found = (4 if kind == A else 16), list[Address]()
    offset += 4
    for _ in range(count):
        record = message[offset + 12 : offset + 12 + size]
        found.append(ip_address(record))
        offset += 12 + size
    return found


def ping(
    namespace: Namespace,
    *,
    to: Address = WEB4,
    count: int = 3,
    wait: float = 1,
    interval: float = 0.05,
) -> int:
    """Send ICMP echo requests with a canary; how many were answered.

    wait: seconds to listen on after the last one.
    """
    if to.version != 4:
        raise LabError("ping is IPv4 only; use Flood for IPv6")
    with namespace.enter():
        raw = socket.socket(
            socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP
        )
    own = os.getpid() & 0xFFFF
    replies: set[int] = set()
    with raw:
        for number in range(count):
            payload = f"CANARY ping {namespace.name}".encode()
            try:
                raw.sendto(_echo_request(own, number, payload), (str(to), 0))
            except OSError:
                continue
            last = number == count - 1
            _collect(raw, own, wait if last else interval, replies, count)
    return len(replies)


def _collect(
    raw: socket.socket, own: int, wait: float, replies: set[int], count: int
) -> None:
    limit = time.monotonic() + wait
    while len(replies) < count and (left := limit - time.monotonic()) > 0:
        if not select.select([raw], [], [], left)[0]:
            return
        packet = raw.recv(1 << 16)
        message = packet[(packet[0] & 15) * 4 :]
        kind, _, _, ident, number = struct.unpack_from(">BBHHH", message)
        if kind == 0 and ident == own:
            replies.add(number)


def _echo_request(ident: int, number: int, payload: bytes) -> bytes:
    def message(checksum: int) -> bytes:
        header = (ICMP_ECHO, 0, checksum, ident, number)
        return struct.pack(">BBHHH", *header) + payload

    return message(internet_checksum(message(0)))


def internet_checksum(data: bytes) -> int:
    """RFC 1071."""
    padded = data + bytes(len(data) % 2)
    total: int = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
