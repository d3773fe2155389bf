"""Generations of the ruleset: every nftables transaction makes a new one.

Source: linux/netfilter/nf_tables.h (NFT_MSG_NEWGEN), nfnetlink.h.
"""

import struct
from dataclasses import dataclass
from typing import Final

from qubes_vpn.system.netlink import (
    NETLINK_NETFILTER,
    NetlinkSocket,
    parse,
    read_text,
)

GROUP: Final = 7  # NFNLGRP_NFTABLES
_NEWGEN: Final = 10 << 8 | 15
_GETGEN: Final = 10 << 8 | 16
_HEADER_SIZE: Final = 4
_GEN_ID, _GEN_PROC_PID, _GEN_PROC_NAME = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Generation:
    """A generation and who made it; pid 0: not told."""

    number: int
    pid: int = 0
    name: str = ""


class Generations:
    """Asks for the current generation."""

    def __init__(self) -> None:
        self._sock = NetlinkSocket(NETLINK_NETFILTER)

    def current(self) -> int:
        """Give the number of the current generation."""
        request = struct.pack("=BBH", 0, 0, 0)
        for kind, body in self._sock.get("nftables", _GETGEN, request):
            if kind == _NEWGEN:
                return _read(body).number
        return 0


class Notifications:
    """Hears of every transaction, our own among them."""

    def __init__(self) -> None:
        self._sock = NetlinkSocket(NETLINK_NETFILTER, [GROUP])

    def fileno(self) -> int:
        """Give the descriptor to watch."""
        return self._sock.fileno()

    def receive(self) -> list[Generation]:
        """Give the generations that were made. OsRefusedError: lost some."""
        return [
            _read(body)
            for kind, body in self._sock.receive()
            if kind == _NEWGEN
        ]


def _read(body: bytes) -> Generation:
    items = parse(body[_HEADER_SIZE:])

    def number(kind: int) -> int:
        return int.from_bytes(items.get(kind, b""), "big")

    return Generation(
        number(_GEN_ID),
        number(_GEN_PROC_PID),
        read_text(items.get(_GEN_PROC_NAME, b"")),
    )
