"""Many datagrams by one call: recvmmsg(2), which Python does not have."""

import ctypes
import os
import socket
from sys import byteorder
from typing import Final

import numpy as np

from qubes_vpn.dataplane.link import Address
from qubes_vpn.dataplane.segment import Array

_libc: Final = ctypes.CDLL(None, use_errno=True)
_EAGAIN: Final = 11
# struct sockaddr_in and sockaddr_in6: family 2 (native) | port 2 | ...
_NAME_SIZES: Final = {socket.AF_INET: 16, socket.AF_INET6: 28}
_IPV4: Final = slice(4, 8)
_IPV6: Final = slice(8, 24)
_FLOW: Final = slice(4, 8)
_SCOPE: Final = slice(24, 28)
# Sources that are remembered as addresses; anybody can make up more.
_KNOWN_MAX: Final = 1024


def _layouts() -> tuple[np.dtype[np.void], np.dtype[np.void]]:
    """Lay out struct iovec and struct mmsghdr as C does (bits/socket.h)."""
    iovec = np.dtype([("base", np.uintp), ("len", np.uintp)], align=True)
    header = np.dtype(
        [
            ("name", np.uintp),
            ("name_len", np.uint32),
            ("iov", np.uintp),
            ("iov_len", np.uintp),
            ("control", np.uintp),
            ("control_len", np.uintp),
            ("flags", np.int32),
        ],
        align=True,
    )
    return iovec, np.dtype([("header", header), ("len", np.uint32)], align=True)


class Gatherer:
    """Receives datagrams into the rows of an array."""

    def __init__(
        self, sock: socket.socket, rows: Array, limit: int, *, connected: bool
    ) -> None:
        """limit: bytes of a row that a datagram may take.

        connected: where they are from is not asked.
        """
        iovec, message = _layouts()
        count = len(rows)
        self._descriptor = sock.fileno()
        self._count = count
        self._iovecs = np.zeros(count, iovec)
        self._messages = np.zeros(count, message)
        numbers = np.arange(count, dtype=np.uintp)
        self._iovecs["base"] = rows.ctypes.data + numbers * rows.strides[0]
        self._iovecs["len"] = limit
        headers = self._messages["header"]
        headers["iov"] = self._iovecs.ctypes.data + numbers * iovec.itemsize
        headers["iov_len"] = 1
        self._name_size = 0 if connected else _NAME_SIZES[sock.family]
        self._names = np.zeros((count, self._name_size), np.uint8)
        self._known: dict[bytes, Address] = {}
        if not connected:
            step = np.uintp(self._name_size)
            headers["name"] = self._names.ctypes.data + numbers * step
            headers["name_len"] = step
        # Addresses of these are in C's hands now.
        self._rows = rows
        self._lengths = self._messages["len"]
        self._pointer = ctypes.c_void_p(self._messages.ctypes.data)

    def receive(self) -> tuple[list[int], list[Address]]:
        """Receive what is there; return the sizes, of one row each.

        And where they are from. A datagram longer than the limit is cut; its
        size is the whole one. Raises OSError, but not for EAGAIN: then there
        are none.
        """
        count = _libc.recvmmsg(
            self._descriptor,
            self._pointer,
            self._count,
            socket.MSG_DONTWAIT | socket.MSG_TRUNC,
            None,
        )
        if count < 0:
            number = ctypes.get_errno()
            if number == _EAGAIN:
                return [], []
            raise OSError(number, os.strerror(number))
        sizes: list[int] = self._lengths[:count].tolist()
        return sizes, self._sources(count) if self._name_size else []

    def _sources(self, count: int) -> list[Address]:
        step = self._name_size
        names = self._names[:count].tobytes()
        raw = [names[at : at + step] for at in range(0, count * step, step)]
        return [self._known.get(name) or self._address(name) for name in raw]

    def _address(self, name: bytes) -> Address:
        if len(self._known) >= _KNOWN_MAX:
            self._known.clear()
        port = int.from_bytes(name[2:4])
        found: Address
        if len(name) == _NAME_SIZES[socket.AF_INET]:
            found = socket.inet_ntop(socket.AF_INET, name[_IPV4]), port
        else:
            found = (
                socket.inet_ntop(socket.AF_INET6, name[_IPV6]),
                port,
                int.from_bytes(name[_FLOW]),
                int.from_bytes(name[_SCOPE], byteorder),
            )
        self._known[name] = found
        return found
