"""Sockets that listen: what a server receives on. All are non-blocking."""

import contextlib
import socket

from qubes_vpn.errors import OsRefusedError

_SO_RCVBUFFORCE = 33
_SO_SNDBUFFORCE = 32
# A burst of many clients must fit; the kernel may give less.
_BUFFER = 4 * 1024 * 1024
_BACKLOG = 512


def open_listener(
    address: str,
    port: int,
    *,
    stream: bool,
    family: int = 0,
    sndbuf: int = 0,
    rcvbuf: int = 0,
) -> socket.socket:
    """Open a UDP socket, or a listening TCP one, on `address` and `port`.

    address: "" for all, of both families unless `family` is 4 or 6. sndbuf,
    rcvbuf: bytes, 0 for a large default. Raises OsRefusedError.
    """
    kind = socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
    inet, bind_to, both = _where(address, family)
    try:
        sock = socket.socket(
            inet, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
    except OSError as error:
        if both:  # a kernel without IPv6
            return open_listener(
                address,
                port,
                stream=stream,
                family=4,
                sndbuf=sndbuf,
                rcvbuf=rcvbuf,
            )
        raise OsRefusedError(f"socket: {error.strerror}") from error
    try:
        if inet == socket.AF_INET6:
            sock.setsockopt(
                socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1
            )
        _set_buffers(sock, sndbuf or _BUFFER, rcvbuf or _BUFFER)
        if stream:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((bind_to, port))
        if stream:
            sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        raise OsRefusedError(
            f"cannot listen on {address or '*'} port {port}: {error.strerror}"
        ) from error
    return sock


def _where(address: str, family: int) -> tuple[socket.AddressFamily, str, bool]:
    if address:
        inet = socket.AF_INET6 if ":" in address else socket.AF_INET
        return inet, address, False
    if family == 4:
        return socket.AF_INET, "0.0.0.0", False  # noqa: S104 a server listens
    return socket.AF_INET6, "::", family == 0


def _set_buffers(sock: socket.socket, sndbuf: int, rcvbuf: int) -> None:
    for option, fallback, size in (
        (_SO_SNDBUFFORCE, socket.SO_SNDBUF, sndbuf),
        (_SO_RCVBUFFORCE, socket.SO_RCVBUF, rcvbuf),
    ):
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, size)
        except OSError:
            # not root: the system's limit holds
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, fallback, size)
