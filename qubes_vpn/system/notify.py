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


def watchdog_interval() -> float:
    """Give half of systemd's watchdog time in seconds, or 0: none asked."""
    try:
        limit = int(os.environ.get("WATCHDOG_USEC", "0"))
        pid = int(os.environ.get("WATCHDOG_PID", str(os.getpid())))
    except ValueError:
        return 0.0
    return limit / 2e6 if pid == os.getpid() else 0.0
