"""Telling systemd how we are: sd_notify(3), without its library."""

import contextlib
import os
import socket


def notify(state: str) -> bool:
    """Send `state`, such as "READY=1"; False when nobody listens.

    Never raises: a service must not end because its manager is busy.
    """
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return False
    with (
        contextlib.suppress(OSError),
        socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        ) as sock,
    ):
        sock.sendto(state.encode(), path.replace("@", "\0", 1))
        return True
    return False
