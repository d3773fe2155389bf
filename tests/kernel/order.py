"""In which order the kernel is asked to close and to forget keys.

A nlmon device shows every netlink message of a network namespace as it is
sent, of all families in one queue. What is asked is done before the next.

Source: linux/netlink.h, linux/netfilter/nfnetlink.h, linux/ovpn.h.
"""

import contextlib
import itertools
import socket
import struct

from lab import netlink

DEVICE = "nlmon0"
_ANY = 3  # ETH_P_ALL
_RCVBUFFORCE = 33  # SO_RCVBUFFORCE
_HEADER = struct.Struct("=IHHII")
_REQUEST = 1
_BATCH_BEGIN = 16
_GENERIC, _CONTROLLER = 16, 16
_PEER_DEL, _KEY_DEL = 4, 10
_KEYCONF, _SLOT = 3, 2
_LAYERS = {1: "filter", 5: "uplink"}  # of the table qubes_vpn, by family
_CHANGES = (*netlink.CAME, *netlink.GONE)


@contextlib.contextmanager
def tap(namespace):
    """Give a function: what has been asked for so far, in its order."""
    namespace.ip(f"link add {DEVICE} type nlmon\nlink set {DEVICE} up")
    with namespace.enter():
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 1 << 24)
        sock.bind((DEVICE, _ANY))
        sock.setblocking(False)
        asked = []

        def order():
            with contextlib.suppress(BlockingIOError):
                while True:
                    data, (_, protocol, *_) = sock.recvfrom(1 << 20)
                    asked.extend(_names(protocol, data))
            return [name for name, _ in itertools.groupby(asked)]

        try:
            yield order
        finally:
            namespace.ip(f"link del {DEVICE}")


def _names(protocol, data):
    """The layers that a message changes, or "keys" where it ends some."""
    messages = list(_messages(data))
    if not messages or not messages[0][1] & _REQUEST:
        return
    first = messages[0][0]
    if protocol == netlink.NETFILTER and first == _BATCH_BEGIN:
        tables = {
            payload[0] for kind, _, payload in messages if _ours(kind, payload)
        }
        yield from (_LAYERS[family] for family in tables)
    elif protocol == netlink.ROUTE and first in _CHANGES:
        yield "routing"
    elif protocol == _GENERIC and first > _CONTROLLER:
        payload = messages[0][2]
        if payload[0] == _PEER_DEL or _is_primary(payload):
            yield "keys"


def _ours(kind, payload):
    if kind >> 8 != netlink.NFTABLES:
        return False
    name = netlink.attributes(payload).get(netlink.TABLE_NAME, b"")
    return name.rstrip(b"\0") == b"qubes_vpn"


def _is_primary(payload):
    """Is it the end of the key that encrypts? Others end at any time."""
    if payload[0] != _KEY_DEL:
        return False
    conf = netlink.attributes(netlink.attributes(payload)[_KEYCONF], 0)
    return not any(conf[_SLOT])


def _messages(data):
    at = 0
    while at + _HEADER.size <= len(data):
        size, kind, flags, *_ = _HEADER.unpack_from(data, at)
        if size < _HEADER.size:
            return
        yield kind, flags, data[at + _HEADER.size : at + size]
        at += size + (-size % 4)
