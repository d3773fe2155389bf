"""Many datagrams by one call: recvmmsg(2), which Python does not have."""

import ctypes
import os
import socket
from typing import Final

import numpy as np

from qubes_vpn.dataplane.segment import Array

_libc: Final = ctypes.CDLL(None, use_errno=True)
_EAGAIN: Final = 11


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

    def __init__(self, descriptor: int, rows: Array, limit: int) -> None:
        """limit: bytes of a row that a datagram may take."""
        iovec, message = _layouts()
        count = len(rows)
        self._descriptor = descriptor
        self._count = count
        self._limit = limit
        self._iovecs = np.zeros(count, iovec)
        self._messages = np.zeros(count, message)
        numbers = np.arange(count, dtype=np.uintp)
        self._iovecs["base"] = rows.ctypes.data + numbers * rows.strides[0]
        self._iovecs["len"] = limit
        headers = self._messages["header"]
        headers["iov"] = self._iovecs.ctypes.data + numbers * iovec.itemsize
        headers["iov_len"] = 1
        # Addresses of these are in C's hands now.
        self._rows = rows
        self._lengths = self._messages["len"]
        self._pointer = ctypes.c_void_p(self._messages.ctypes.data)

    def receive(self) -> list[int]:
        """Receive what is there; return the sizes, of one row each.

        A datagram longer than the limit is cut; its size is the whole one.
        Raises OSError, but not for EAGAIN: then there are none.
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
                return []
            raise OSError(number, os.strerror(number))
        sizes: list[int] = self._lengths[:count].tolist()
        return sizes
