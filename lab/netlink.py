"""What the kernel tells on netlink, read apart from the product's own code.

Source: netlink(7), linux/netfilter/nf_tables.h, linux/rtnetlink.h.
"""

import socket
import struct
from collections.abc import Iterator
from typing import Final

from lab.namespace import Namespace

ROUTE: Final = 0
NETFILTER: Final = 12
# RTMGRP_*: routes and rules of both families, links
ROUTING: Final = 0x40 | 0x400 | 0x80 | 0x40000
LINKS: Final = 0x1
RULESET: Final = 1 << 6  # NFNLGRP_NFTABLES

DELLINK: Final = 17
CAME: Final = (24, 32)  # RTM_NEWROUTE, RTM_NEWRULE
GONE: Final = (25, 33)
NFTABLES: Final = 10
NEWGEN: Final = NFTABLES << 8 | 15
GEN_PID: Final = 2
# Sizes of the fixed headers: of nftables, of routes and rules.
NFGEN_SIZE: Final = 4
RTM_SIZE: Final = 12
RTA_TABLE: Final = 15
# Of every object of nftables: its table's name.
TABLE_NAME: Final = 1
_HEADER: Final = struct.Struct("=IHHII")
_ATTRIBUTE: Final = struct.Struct("=HH")
_BUFFER: Final = 1 << 22


def listener(where: Namespace, protocol: int, groups: int) -> socket.socket:
    """Give a socket that hears of a namespace's changes."""
    with where.enter():
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    sock.bind((0, groups))
    return sock


def receive(sock: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Give (type, payload) of each message of the next datagram."""
    data, at = sock.recv(_BUFFER), 0
    while at + _HEADER.size <= len(data):
        size, kind, *_ = _HEADER.unpack_from(data, at)
        yield kind, data[at + _HEADER.size : at + size]
        at += size + (-size % 4)


def attributes(payload: bytes, at: int = NFGEN_SIZE) -> dict[int, bytes]:
    """Give a message's attributes by type, after its fixed header."""
    found = {}
    while at + _ATTRIBUTE.size <= len(payload):
        size, kind = _ATTRIBUTE.unpack_from(payload, at)
        found[kind & 0x3FFF] = payload[at + _ATTRIBUTE.size : at + size]
        at += size + (-size % 4)
    return found
