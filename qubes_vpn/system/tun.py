"""Making a tun device.

Source: linux/if_tun.h. The virtio-net header is the 10-byte one.
"""

import errno
import fcntl
import os
import struct
from typing import Final

from qubes_vpn.errors import OsRefusedError

PATH: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x400454CA
_TUNSETOFFLOAD: Final = 0x400454D0
_TUNSETVNETHDRSZ: Final = 0x400454D8
_IFF_TUN: Final = 0x0001
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_VNET_HEADER_SIZE: Final = 10
TUN_F_CSUM: Final = 0x01
TUN_F_TSO4: Final = 0x02
TUN_F_TSO6: Final = 0x04
TUN_F_USO4: Final = 0x20
TUN_F_USO6: Final = 0x40
_TSO: Final = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6
# What is asked for, best first: USO came with Linux 6.2.
_OFFLOADS: Final = (_TSO | TUN_F_USO4 | TUN_F_USO6, _TSO, TUN_F_CSUM)
_REQUEST: Final = struct.Struct("=16sH22x")


class TunSource:
    """Opens /dev/net/tun, also after its user may not any more.

    Where the node is 0600 a stock of descriptors is opened beforehand: each
    makes one device. reserve: how many.
    """

    def __init__(self, reserve: int = 0) -> None:
        self._stock = [_open() for _ in range(reserve)]

    def take(self) -> int:
        """Give an open descriptor without a device. OsRefusedError."""
        try:
            return _open()
        except OsRefusedError as error:
            cause = error.__cause__
            denied = isinstance(cause, OSError) and cause.errno in (
                errno.EACCES,
                errno.EPERM,
            )
            if not denied or not self._stock:
                raise
        return self._stock.pop()

    @staticmethod
    def needs_reserve() -> bool:
        """Tell whether others than root may not open the node."""
        try:
            return os.stat(PATH).st_mode & 0o006 != 0o006
        except OSError:
            return False


def attach(descriptor: int, name: str, *, vnet_hdr: bool) -> int:
    """Make the descriptor the device `name`; give its offloads (TUN_F_*).

    The device goes when the last copy of the descriptor does.
    """
    flags = _IFF_TUN | _IFF_NO_PI | (_IFF_VNET_HDR if vnet_hdr else 0)
    try:
        request = _REQUEST.pack(name.encode(), flags)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
        os.set_blocking(descriptor, False)
        if not vnet_hdr:
            return 0
        size = struct.pack("=i", _VNET_HEADER_SIZE)
        fcntl.ioctl(descriptor, _TUNSETVNETHDRSZ, size)
    except OSError as error:
        raise OsRefusedError(f"device {name}: {error.strerror}") from error
    return _negotiate(descriptor)


def _negotiate(descriptor: int) -> int:
    for offloads in _OFFLOADS:
        try:
            fcntl.ioctl(descriptor, _TUNSETOFFLOAD, offloads)
        except OSError:
            continue
        return offloads
    return 0


def _open() -> int:
    try:
        return os.open(PATH, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise OsRefusedError(f"{PATH}: {error.strerror}") from error
