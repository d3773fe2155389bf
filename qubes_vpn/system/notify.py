"""Telling systemd how we are: sd_notify(3), without its library."""

import contextlib
import os
import socket
from typing import Final

# A third of the shortest WatchdogSec of our units.
WATCHDOG_S: Final = 10.0


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


class Watchdog:
    """Says that the service lives, as rarely as systemd needs to hear it."""

    def __init__(self) -> None:
        self._fed_at = -WATCHDOG_S

    def feed(self, now: float) -> None:
        """Call it often. now: monotonic seconds."""
        if now - self._fed_at >= WATCHDOG_S:
            self._fed_at = now
            notify("WATCHDOG=1")
