"""The lab's own small servers: web, DNS, UDP echo.

Each runs in threads of this process on sockets created in a namespace, answers
with the address it saw the client at, and logs what it was asked.
"""

import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Address, IPv6Address
from socketserver import TCPServer
from typing import Protocol, TypeAlias
from urllib.parse import urlsplit

from lab.addresses import DNS_PORT, ECHO_PORT
from lab.namespace import Namespace

Address: TypeAlias = IPv4Address | IPv6Address

IP_FREEBIND = 15
IPV6_FREEBIND = 78
POLL = 0.05
CHUNK = 1 << 16
BULK_MAX = 1 << 32

A, AAAA = 1, 28
DNS_HEADER = struct.Struct(">HHHHHH")


class Service(Protocol):
    """What the lab runs until its end."""

    def close(self) -> None:
        """Stop serving and free the sockets."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: who asked, and for what (a path, a name)."""

    client: Address
    what: str


def _address(peer: tuple[str, int]) -> Address:
    """The peer's address; an IPv4 one that an IPv6 socket saw is IPv4."""
    with contextlib.suppress(ValueError):
        return IPv4Address(peer[0].removeprefix("::ffff:"))
    return IPv6Address(peer[0].partition("%")[0])


def bind_udp(
    namespace: Namespace, address: Address, port: int
) -> socket.socket:
    """A UDP socket there, even if the address does not exist yet."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with namespace.enter():
        bound = socket.socket(family, socket.SOCK_DGRAM)
    if address.version == 4:
        bound.setsockopt(socket.IPPROTO_IP, IP_FREEBIND, 1)
    else:
        bound.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    bound.bind((str(address), port))
    return bound


class _Datagrams:
    """A thread that answers each datagram with answer()'s."""

    def __init__(self, sockets: Iterable[socket.socket]) -> None:
        self._sockets = list(sockets)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def answer(self, client: Address, datagram: bytes) -> bytes | None:
        """The answer, or None for silence."""
        raise NotImplementedError

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        for bound in self._sockets:
            bound.close()

    def _run(self) -> None:
        with selectors.DefaultSelector() as ready:
            for bound in self._sockets:
                ready.register(bound, selectors.EVENT_READ)
            while not self._stop.is_set():
                for key, _ in ready.select(POLL):
                    assert isinstance(key.fileobj, socket.socket)
                    self._serve(key.fileobj)

    def _serve(self, bound: socket.socket) -> None:
        # The tunnel may be gone by now: no route is no answer.
        with contextlib.suppress(OSError):
            datagram, peer = bound.recvfrom(CHUNK)
            answer = self.answer(_address(peer[:2]), datagram)
            if answer is not None:
                bound.sendto(answer, peer)


class EchoServer(_Datagrams):
    """UDP echo: the datagram, a space, and the client's address as seen."""

    def __init__(
        self,
        namespace: Namespace,
        addresses: Iterable[Address],
        port: int = ECHO_PORT,
    ) -> None:
        self.heard: list[Asked] = []
        super().__init__([bind_udp(namespace, at, port) for at in addresses])

    def answer(self, client: Address, datagram: bytes) -> bytes:
        """See the class."""
        self.heard.append(Asked(client, datagram.decode("latin-1")))
        return datagram + f" {client}".encode()


class DnsServer(_Datagrams):
    """Answers A and AAAA from a zone, and NXDOMAIN for other names."""

    def __init__(
        self,
        name: str,
        namespace: Namespace,
        addresses: Iterable[Address],
        zone: Mapping[str, Iterable[Address]],
    ) -> None:
        self.name = name
        self.asked: list[Asked] = []
        self.zone = {key: tuple(values) for key, values in zone.items()}
        sockets = [bind_udp(namespace, at, DNS_PORT) for at in addresses]
        super().__init__(sockets)

    def answer(self, client: Address, datagram: bytes) -> bytes | None:
        """One question in, one answer out; None for what is no question."""
        try:
            number, _, questions, *_ = DNS_HEADER.unpack_from(datagram)
            name, end = decode_name(datagram, DNS_HEADER.size)
            (kind,) = struct.unpack_from(">H", datagram, end)
        except (struct.error, IndexError):
            return None
        if questions != 1:
            return None
        self.asked.append(Asked(client, name))
        found = self.zone.get(name.lower())
        version = {A: 4, AAAA: 6}.get(kind)
        records = b"".join(
            struct.pack(">HHHIH", 0xC00C, kind, 1, 60, len(address.packed))
            + address.packed
            for address in found or ()
            if address.version == version
        )
        count = sum(address.version == version for address in found or ())
        flags = 0x8180 if found else 0x8183
        header = DNS_HEADER.pack(number, flags, 1, count, 0, 0)
        return header + datagram[DNS_HEADER.size : end + 4] + records


def decode_name(message: bytes, offset: int) -> tuple[str, int]:
    """A DNS name without compression, and the offset behind it."""
    labels = []
    while length := message[offset]:
        labels.append(message[offset + 1 : offset + 1 + length])
        offset += 1 + length
    return b".".join(labels).decode("latin-1"), offset + 1


class _Page(BaseHTTPRequestHandler):
    """GET /bytes/N: N zero bytes. Any other path: who asked, and for what."""

    server: "_Http"
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """See the class."""
        client = _address(self.client_address[:2])
        path = urlsplit(self.path).path
        self.server.asked.append(Asked(client, path))
        _, _, size = path.partition("/bytes/")
        if size.isdigit() and int(size) <= BULK_MAX:
            self._send_zeros(int(size))
            return
        body = f"CANARY page {path} for {client}\n".encode()
        self._head(len(body))
        self.wfile.write(body)

    def do_POST(self) -> None:
        """Take the body; answer how long it was."""
        left = size = int(self.headers["Content-Length"])
        while left and (chunk := self.rfile.read(min(left, CHUNK))):
            left -= len(chunk)
        client = _address(self.client_address[:2])
        self.server.asked.append(Asked(client, f"POST {size - left}"))
        body = f"{size - left}\n".encode()
        self._head(len(body))
        self.wfile.write(body)

    def _head(self, size: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(size))
        self.end_headers()

    def _send_zeros(self, size: int) -> None:
        self._head(size)
        chunk = bytes(CHUNK)
        while size:
            size -= self.wfile.write(chunk[:size])

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing: the log is WebServer.asked."""


class _Http(ThreadingHTTPServer):
    address_family = socket.AF_INET6
    daemon_threads = True

    def __init__(self, namespace: Namespace, port: int) -> None:
        self.asked: list[Asked] = []
        with namespace.enter():
            super().__init__(("::", port), _Page)

    def server_bind(self) -> None:
        """Bind without asking a resolver for our own name."""
        TCPServer.server_bind(self)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is what the lab is about."""


class WebServer:
    """HTTP on every address of a namespace, IPv4 and IPv6."""

    def __init__(self, namespace: Namespace, port: int) -> None:
        self._http = _Http(namespace, port)
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(POLL,), daemon=True
        )
        self._thread.start()

    @property
    def asked(self) -> list[Asked]:
        """What was asked for so far."""
        return self._http.asked

    def close(self) -> None:
        """Stop serving."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
