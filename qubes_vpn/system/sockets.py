"""Making the link sockets.

Mark and group stay with a socket wherever it is handed to: nftables sees
those of the process that made it. All are non-blocking.
"""

import errno
import socket
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from qubes_vpn.errors import OsRefusedError

_SO_SNDBUFFORCE: Final = 32
_SO_RCVBUFFORCE: Final = 33
# The system's holds three batches of datagrams that the kernel has joined, so
# that a loaded machine loses some. But TCP inside fills what there is, here and
# then in the server, and every packet waits behind it: with 1 MiB a ping during
# a download takes three times as long.
_RCVBUF: Final = 160 << 10
_IP_MTU_DISCOVER: Final = 10
_IPV6_MTU_DISCOVER: Final = 23
# Set DF, and do not believe what the network says of its MTU.
_PMTUDISC_PROBE: Final = 3
# Packets of a stream, both ways: IPv6 asks so much of every path. A path that
# carries less than an end thinks, and does not say so, would hold it up.
_STREAM_PACKET: Final = 1280
_HEADERS: Final = {socket.AF_INET: 40, socket.AF_INET6: 60}


def open_link(
    address: IPv4Address | IPv6Address,
    port: int,
    *,
    stream: bool,
    mark: int,
    lport: int = 0,
    sndbuf: int = 0,
    rcvbuf: int = 0,
    local: IPv4Address | IPv6Address | None = None,
) -> socket.socket:
    """Open a socket connected (TCP: about to be) to a server.

    sndbuf, rcvbuf: bytes, 0 for the system's, and for a large one to receive
    datagrams. local: of ours, None for any. With mark 0 no privilege is
    needed. Raises OsRefusedError.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    kind = socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
    try:
        sock = socket.socket(
            family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
    except OSError as error:
        raise OsRefusedError(f"socket: {error.strerror}") from error
    try:
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
        rcvbuf = rcvbuf or (0 if stream else _RCVBUF)
        _set_buffer(sock, _SO_SNDBUFFORCE, socket.SO_SNDBUF, sndbuf)
        _set_buffer(sock, _SO_RCVBUFFORCE, socket.SO_RCVBUF, rcvbuf)
        if stream:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            segment = _STREAM_PACKET - _HEADERS[family]
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, segment)
        else:
            _never_fragment(sock, family)
        if lport or local:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((str(local or ""), lport))
        code = sock.connect_ex((str(address), port))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, errno.errorcode.get(code, str(code)))
    except OSError as error:
        sock.close()
        raise OsRefusedError(
            f"link to {address} port {port}: {error.strerror}"
        ) from error
    return sock


def _set_buffer(
    sock: socket.socket, beyond: int, within: int, size: int
) -> None:
    """Set a buffer beyond the system's limit, or within it without leave."""
    if not size:
        return
    try:
        sock.setsockopt(socket.SOL_SOCKET, beyond, size)
    except PermissionError:  # also root's, in a user namespace
        sock.setsockopt(socket.SOL_SOCKET, within, size)


def _never_fragment(sock: socket.socket, family: int) -> None:
    """Later fragments have no ports: the uplink's filter drops them."""
    if family == socket.AF_INET:
        level, option = socket.IPPROTO_IP, _IP_MTU_DISCOVER
    else:
        level, option = socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER
    sock.setsockopt(level, option, _PMTUDISC_PROBE)
