"""Keeper and engine as units of systemd, and where the agent meets them."""

import pwd
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from qubes_vpn.errors import OsRefusedError
from qubes_vpn.keeper.client import KeeperClient
from qubes_vpn.qubes.agent import RESOLV_CONF
from qubes_vpn.qubes.profiles import FOLDER
from qubes_vpn.runtime.control import DEFAULT_PATH
from qubes_vpn.runtime.foreground import ENGINE_ID

ENGINE_USER: Final = "qubes-vpn-engine"
ENGINE_WAIT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Places:
    """Where the agent finds what it works with."""

    folder: Path = FOLDER
    control: str = DEFAULT_PATH
    keeper: str = "/run/qubes-vpn/keeper.sock"
    engine: str = "/run/qubes-vpn/agent.sock"
    resolv_conf: Path = RESOLV_CONF
    proc: Path = Path("/proc")


class Units:
    """Keeper and engine as units; a Wiring. systemd starts and ends them."""

    def __init__(self, places: Places, engine_uid: int) -> None:
        self._places = places
        self._engine_uid = engine_uid
        path = Path(places.engine)
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(places.engine)
        # who may speak is decided by SO_PEERCRED
        path.chmod(0o666)
        self._listener.listen(1)
        self._listener.settimeout(ENGINE_WAIT_S)

    def start_keeper(self) -> socket.socket:
        """Connect to the keeper. Raises OsRefusedError."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(self._places.keeper)
        except OSError as error:
            sock.close()
            raise OsRefusedError(
                f"the keeper is not there ({error.strerror}): see"
                " systemctl status qubes-vpn-keeper"
            ) from error
        return sock

    def start_engine(self, keeper: KeeperClient) -> socket.socket:  # noqa: ARG002  the engine has connected to it by itself
        """Wait for the engine to connect. Raises OsRefusedError."""
        end = time.monotonic() + ENGINE_WAIT_S
        while time.monotonic() < end:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                break
            if _peer_uid(sock) in (0, self._engine_uid):
                return sock
            sock.close()
        raise OsRefusedError(
            "the engine is not there: see systemctl status qubes-vpn-engine"
        )

    def end_keeper(self) -> int | None:
        """Leave it to systemd."""
        return None

    def end_engine(self) -> None:
        """Leave it to systemd: it ends when its socket to us is closed."""


def _peer_uid(sock: socket.socket) -> int:
    raw = sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    uid: int = struct.unpack("3i", raw)[1]
    return uid


def engine_uid() -> int:
    """Give the engine's uid; a fixed number where its name is missing."""
    try:
        return pwd.getpwnam(ENGINE_USER).pw_uid
    except KeyError:
        return ENGINE_ID
