"""Netlink messages: the few that we send, and a socket to send them.

Not pyroute2: as a package it costs 22 MB in a process whose own code needs
12, and what the keeper asks of rtnetlink is small.

Layout of a message: length u32, type u16, flags u16, sequence u32, port u32,
a family's fixed header, attributes. Of an attribute: length u16, type u16,
value, padding to 4 bytes. All in the host's byte order.
Source: netlink(7), linux/netlink.h.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final, TypeAlias

from qubes_vpn.errors import OsRefusedError

Attributes: TypeAlias = dict[int, bytes]
Attribute: TypeAlias = tuple[int, bytes]

NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12
NETLINK_GENERIC: Final = 16

NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_DUMP: Final = 0x300
NLM_F_CREATE: Final = 0x400

NLA_F_NESTED: Final = 0x8000
_NLA_TYPE_MASK: Final = 0x3FFF
_NLM_F_DUMP_INTR: Final = 0x10
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_SOL_NETLINK: Final = 270
_ADD_MEMBERSHIP: Final = 1
_NETLINK_EXT_ACK: Final = 11
_NETLINK_GET_STRICT_CHK: Final = 12
_NLM_F_CAPPED: Final = 0x100
_NLM_F_ACK_TLVS: Final = 0x200
_NLMSGERR_ATTR_MSG: Final = 1
_RECEIVE_SIZE: Final = 1 << 16
_DUMP_TRIES: Final = 5
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")


class NetlinkError(OsRefusedError):
    """The kernel said no. number: its errno, positive."""

    def __init__(self, number: int, what: str, why: str = "") -> None:
        reason = os.strerror(number)
        super().__init__(f"{what}: {reason}{': ' if why else ''}{why}")
        self.number = number


def attribute(kind: int, value: bytes) -> bytes:
    """Encode one attribute, padded."""
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def attributes(items: Iterable[Attribute]) -> bytes:
    """Encode attributes, in their order."""
    return b"".join(attribute(kind, value) for kind, value in items)


def nested(kind: int, items: Iterable[Attribute]) -> Attribute:
    """Give the attribute that holds attributes."""
    return kind | NLA_F_NESTED, attributes(items)


def u32(value: int) -> bytes:
    """Encode an unsigned 32-bit number, host order."""
    return struct.pack("=I", value)


def text(value: str) -> bytes:
    """Encode a zero-ended string."""
    return value.encode() + b"\0"


def read_text(value: bytes) -> str:
    """Decode a zero-ended string."""
    return value.split(b"\0", 1)[0].decode(errors="replace")


def read_u32(value: bytes) -> int:
    """Decode an unsigned 32-bit number, host order."""
    return int(struct.unpack_from("=I", value)[0])


def parse(data: bytes) -> Attributes:
    """Decode attributes by type; of several of a type the last one stays."""
    found: Attributes = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, offset)
        if size < _ATTRIBUTE.size:
            break
        value = data[offset + _ATTRIBUTE.size : offset + size]
        found[kind & _NLA_TYPE_MASK] = value
        offset += size + (-size % 4)
    return found


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Give (type, flags, sequence, payload) of each message in a datagram."""
    offset = 0
    while offset + _HEADER.size <= len(data):
        size, kind, flags, seq, _ = _HEADER.unpack_from(data, offset)
        if size < _HEADER.size:
            return
        yield kind, flags, seq, data[offset + _HEADER.size : offset + size]
        offset += size + (-size % 4)


class NetlinkSocket:
    """One netlink socket: requests with their answers, or notifications."""

    def __init__(self, protocol: int, groups: Iterable[int] = ()) -> None:
        try:
            self._sock = socket.socket(
                socket.AF_NETLINK,
                socket.SOCK_RAW | socket.SOCK_CLOEXEC,
                protocol,
            )
            self._sock.bind((0, 0))
            for option in (_NETLINK_EXT_ACK, _NETLINK_GET_STRICT_CHK):
                # older kernels do without
                with contextlib.suppress(OSError):
                    self._sock.setsockopt(_SOL_NETLINK, option, 1)
            for group in groups:
                self._sock.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)
        except OSError as error:
            raise OsRefusedError(f"netlink: {error.strerror}") from error
        self.port: int = self._sock.getsockname()[0]
        self._seq = 0

    def fileno(self) -> int:
        """Give the descriptor, to watch for notifications."""
        return self._sock.fileno()

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()

    def request(
        self, what: str, kind: int, payload: bytes, flags: int = 0
    ) -> None:
        """Send a request and wait for the kernel's yes. NetlinkError."""
        for _ in self._exchange(what, kind, payload, NLM_F_ACK | flags):
            pass

    def get(
        self, what: str, kind: int, payload: bytes
    ) -> list[tuple[int, bytes]]:
        """Ask for one object: (type, payload) of the answer."""
        return list(self._exchange(what, kind, payload, NLM_F_ACK))

    def dump(
        self, what: str, kind: int, payload: bytes
    ) -> list[tuple[int, bytes]]:
        """Ask for all objects; asked again when one changed meanwhile."""
        for _ in range(_DUMP_TRIES):
            try:
                return list(self._exchange(what, kind, payload, NLM_F_DUMP))
            except InterruptedError:
                continue
        raise OsRefusedError(f"{what}: it changes faster than it is read")

    def receive(self) -> list[tuple[int, bytes]]:
        """Give the notifications that are there, without waiting.

        Raises OsRefusedError when some were lost.
        """
        found: list[tuple[int, bytes]] = []
        while True:
            try:
                data = self._sock.recv(_RECEIVE_SIZE, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return found
            except OSError as error:
                raise OsRefusedError(f"netlink: {error.strerror}") from error
            found.extend((kind, body) for kind, _, _, body in messages(data))

    def _exchange(
        self, what: str, kind: int, payload: bytes, flags: int
    ) -> Iterator[tuple[int, bytes]]:
        self._seq += 1
        seq, size = self._seq, _HEADER.size + len(payload)
        header = _HEADER.pack(size, kind, NLM_F_REQUEST | flags, seq, 0)
        try:
            self._sock.send(header + payload)
            interrupted = False
            while True:
                data = self._sock.recv(_RECEIVE_SIZE)
                for found, found_flags, found_seq, body in messages(data):
                    if found_seq != seq:
                        continue
                    interrupted |= bool(found_flags & _NLM_F_DUMP_INTR)
                    if found in (_NLMSG_ERROR, _NLMSG_DONE):
                        _check(what, body, found_flags)
                        if interrupted:
                            raise InterruptedError
                        return
                    yield found, body
        except InterruptedError:
            raise
        except OSError as error:
            raise OsRefusedError(f"{what}: {error.strerror}") from error


def _check(what: str, body: bytes, flags: int) -> None:
    """Raise NetlinkError for an error message with an error."""
    number = -int(struct.unpack_from("=i", body)[0]) if body else 0
    if not number:
        return
    why = ""
    if flags & _NLM_F_ACK_TLVS:
        # errno, what was asked (or its header alone), attributes
        asked = _HEADER.size if flags & _NLM_F_CAPPED else read_u32(body[4:])
        found = parse(body[4 + asked + (-asked % 4) :])
        why = read_text(found.get(_NLMSGERR_ATTR_MSG, b""))
    raise NetlinkError(number, what, why)
