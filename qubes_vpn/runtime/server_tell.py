"""What a server tells, to whom: control socket, metrics, status file."""

import contextlib
import selectors
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from qubes_vpn.config.server_profile import ServerProfile
from qubes_vpn.engine.events import Now
from qubes_vpn.engine.server import ServerEngine
from qubes_vpn.errors import OsRefusedError
from qubes_vpn.runtime.control import ControlServer
from qubes_vpn.runtime.server_clients import Client
from qubes_vpn.runtime.server_events import OnEvents
from qubes_vpn.runtime.server_files import replace_file
from qubes_vpn.runtime.server_plane import ServerPlane
from qubes_vpn.runtime.server_status import (
    ClientStatus,
    describe,
    metrics,
    status_file,
)

TELL_S: Final = 0.5
VERSION_MAX: Final = 32
REQUEST_MAX: Final = 8192
# A local reader of metrics that does not read is not waited for longer.
SEND_S: Final = 0.2


class Teller:
    """Describes the clients to all who ask.

    disconnect: called with the number of a client that somebody wants gone.
    control_path, metrics_path: unix sockets; "" for none. tell_at: mono
    seconds when those who watch are told of a change; inf: nothing changed.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        engine: ServerEngine,
        plane: ServerPlane,
        profile: ServerProfile,
        device: str,
        disconnect: Callable[[int], None],
        *,
        control_path: str,
        metrics_path: str,
    ) -> None:
        self.tell_at = float("inf")
        self._selector = selector
        self._engine = engine
        self._plane = plane
        self._profile = profile
        self._device = device
        self._disconnect = disconnect
        self._status_at = 0.0
        self._control = (
            ControlServer(control_path, selector, self._on_control)
            if control_path
            else None
        )
        self._metrics = _listen_unix(metrics_path) if metrics_path else None
        if self._metrics is not None:
            selector.register(
                self._metrics,
                selectors.EVENT_READ,
                OnEvents(lambda _events: self._on_metrics()),
            )

    def changed(self, now: float) -> None:
        """Take note that a client came or went."""
        self.tell_at = min(self.tell_at, now + TELL_S)

    def on_time(self, now: Now) -> None:
        """Tell those who watch, if it is time to."""
        if now.mono >= self.tell_at:
            self.tell_at = float("inf")
            if self._control is not None:
                self._control.changed(self._describe())

    def close(self) -> None:
        """Close the sockets."""
        if self._control is not None:
            self._control.close()
        if self._metrics is not None:
            path = self._metrics.getsockname()
            self._metrics.close()
            Path(path).unlink(missing_ok=True)

    def status(self) -> list[ClientStatus]:
        """Describe every client that is in."""
        return [
            self._client_status(client)
            for client in self._plane.clients.values()
            if client.admitted is not None
        ]

    def _client_status(self, client: Client) -> ClientStatus:
        session = self._engine.session(client.number)
        admitted = client.admitted
        assert admitted is not None
        lease = admitted.lease
        silence = time.monotonic() - session.traffic.rx_last
        host = client.source.address
        remote = f"[{host}]" if host.version == 6 else str(host)
        return ClientStatus(
            number=client.number,
            name=admitted.common_name,
            username=admitted.username,
            remote=f"{remote}:{client.source.port}",
            transport="tcp" if client.at_tcp else "udp",
            address4=str(lease.address4 or ""),
            address6=str(lease.address6 or ""),
            networks=tuple(map(str, client.sources.networks)),
            rx_bytes=client.rx_bytes,
            tx_bytes=client.tx_bytes,
            since=int(client.since),
            last=int(time.time() - silence)
            if session.traffic.rx_last
            else int(client.since),
            cipher=admitted.cipher,
            tls=session.tls_version,
            version=session.peer_info.get("IV_VER", "")[:VERSION_MAX],
            floated=client.floated,
        )

    def _drops(self) -> Counter[str]:
        drops = Counter(self._engine.drops)
        drops.update(self._plane.drops)
        for client in self._plane.clients.values():
            drops.update(client.channel.drops)
        return drops

    def _half_open(self) -> int:
        return len(self._engine) - len(self._plane.clients)

    def _on_control(self, verb: str, request: dict[str, Any]) -> dict[str, Any]:
        match verb:
            case "status" | "watch":
                after = request.get("after", -1)
                return self._describe(after if isinstance(after, int) else -1)
            case "disconnect" if isinstance(request.get("client"), int):
                self._disconnect(request["client"])
                return {"ok": True}
            case _:
                return {"ok": False, "error": f"no verb {verb} here"}

    def _describe(self, after: int = -1) -> dict[str, Any]:
        return describe(
            self.status(),
            self._half_open(),
            self._drops(),
            self._device,
            after,
        )

    def _on_metrics(self) -> None:
        assert self._metrics is not None
        with contextlib.suppress(OSError):
            sock, _ = self._metrics.accept()
            sock.setblocking(False)
            self._selector.register(
                sock,
                selectors.EVENT_READ,
                OnEvents(lambda _events: self._tell_metrics(sock)),
            )

    def _tell_metrics(self, sock: socket.socket) -> None:
        """Answer whatever was asked, and close."""
        self._selector.unregister(sock)
        text = metrics(self.status(), self._half_open(), self._drops())
        body = text.encode()
        head = (
            "HTTP/1.0 200 OK\r\n"
            "Content-Type: text/plain; version=0.0.4\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        with sock, contextlib.suppress(OSError):
            sock.recv(REQUEST_MAX)
            sock.settimeout(SEND_S)
            sock.sendall(head.encode() + body)

    def write_status(self, now: Now) -> None:
        """Write the status file, if it is time to."""
        profile = self._profile
        if not profile.status_file or now.mono < self._status_at:
            return
        self._status_at = now.mono + profile.status_seconds
        text = status_file(
            self._profile.status_version, self.status(), now.unix
        )
        replace_file(profile.status_file, text)


def _listen_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        Path(path).unlink(missing_ok=True)
        sock.bind(path)
        Path(path).chmod(0o660)
        sock.listen(8)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise OsRefusedError(f"{path}: {error.strerror}") from error
    return sock
