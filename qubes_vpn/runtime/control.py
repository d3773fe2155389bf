"""The status socket: one JSON object a line, each way.

A request is {"v": 1, "verb": NAME, ...}; its answer {"v": 1, "ok": true, ...}
or {"v": 1, "ok": false, "error": TEXT}. Verbs that change something need
uid 0, by SO_PEERCRED. The watch verb answers with a line at every change.
"""

import contextlib
import grp
import json
import os
import selectors
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from qubes_vpn.errors import OsRefusedError, UnavailableError

VERSION: Final = 1
DEFAULT_PATH: Final = "/run/qubes-vpn/control.sock"
LINE_MAX: Final = 64 * 1024
CLIENTS_MAX: Final = 16
READ_ONLY: Final = frozenset({"status", "watch"})

Handler = Callable[[str, dict[str, Any]], dict[str, Any]]


def _peer_uid(sock: socket.socket) -> int:
    credentials = sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    uid: int = struct.unpack("3i", credentials)[1]
    return uid


@dataclass(slots=True)
class _Client:
    sock: socket.socket
    uid: int
    pending: bytearray = field(default_factory=bytearray)
    watching: bool = False


class ControlServer:
    """Serves the socket in a loop of somebody else's.

    path: made with mode 0660 and group `qubes` where there is one. handle:
    called with the verb and the request; what it returns is the answer.
    """

    def __init__(
        self, path: str, selector: selectors.BaseSelector, handle: Handler
    ) -> None:
        self._path = Path(path)
        self._selector = selector
        self._handle = handle
        self._clients: dict[int, _Client] = {}
        self._listener = socket.socket(
            socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK
        )
        try:
            self._path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
            self._listener.bind(path)
            self._path.chmod(0o660)
            with contextlib.suppress(KeyError):
                os.chown(path, -1, grp.getgrnam("qubes").gr_gid)
        except OSError as error:
            self._listener.close()
            raise OsRefusedError(
                f"the control socket {path} cannot be made"
                f" ({error.strerror}): --control names another"
            ) from error
        self._listener.listen(CLIENTS_MAX)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError):
            sock, _ = self._listener.accept()
            if len(self._clients) >= CLIENTS_MAX:
                sock.close()
                return
            sock.setblocking(False)
            client = _Client(sock, _peer_uid(sock))
            self._clients[sock.fileno()] = client
            self._selector.register(
                sock, selectors.EVENT_READ, lambda: self._read(client)
            )

    def _drop(self, client: _Client) -> None:
        self._selector.unregister(client.sock)
        del self._clients[client.sock.fileno()]
        client.sock.close()

    def _read(self, client: _Client) -> None:
        try:
            received = client.sock.recv(LINE_MAX)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        client.pending += received
        if not received or len(client.pending) > LINE_MAX:
            self._drop(client)
            return
        while (end := client.pending.find(b"\n")) >= 0:
            line = bytes(client.pending[:end])
            del client.pending[: end + 1]
            if not self._send(client, self._answer(client, line)):
                return

    def _answer(self, client: _Client, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            verb = request["verb"]
            if request["v"] != VERSION or not isinstance(verb, str):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            return {"ok": False, "error": "not a request of version 1"}
        if verb not in READ_ONLY and client.uid != 0:
            return {"ok": False, "error": f"{verb} needs root"}
        client.watching |= verb == "watch"
        return self._handle(verb, request)

    def _send(self, client: _Client, answer: dict[str, Any]) -> bool:
        data = json.dumps({"v": VERSION, **answer}).encode() + b"\n"
        try:
            # a client that does not read its small answers is dropped
            if client.sock.send(data) == len(data):
                return True
        except OSError:
            pass
        self._drop(client)
        return False

    def changed(self, status: dict[str, Any]) -> None:
        """Tell those who watch."""
        for client in list(self._clients.values()):
            if client.watching:
                self._send(client, status)

    def close(self) -> None:
        """Drop everybody and remove the socket."""
        for client in list(self._clients.values()):
            self._drop(client)
        self._selector.unregister(self._listener)
        self._listener.close()
        self._path.unlink(missing_ok=True)


class ControlClient:
    """Asks a running client. Raises UnavailableError when none answers."""

    def __init__(self, path: str = DEFAULT_PATH, timeout: float = 5.0) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.settimeout(timeout)
        try:
            self._sock.connect(path)
        except OSError as error:
            self._sock.close()
            raise UnavailableError(
                f"no client answers at {path}: {error.strerror}"
            ) from error
        self._lines = self._sock.makefile("rb")

    def ask(self, verb: str, **fields: object) -> dict[str, Any]:
        """Send one request and give its answer."""
        request = {"v": VERSION, "verb": verb, **fields}
        try:
            self._sock.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise UnavailableError(f"the client is gone: {error}") from error
        return self.next()

    def next(self, timeout: float | None = 5.0) -> dict[str, Any]:
        """Wait for the next line."""
        self._sock.settimeout(timeout)
        try:
            line = self._lines.readline(LINE_MAX + 1)
            answer: dict[str, Any] = json.loads(line)
        except (OSError, ValueError) as error:
            raise UnavailableError(f"the client is gone: {error}") from error
        return answer

    def close(self) -> None:
        """Let go of the socket."""
        self._lines.close()
        self._sock.close()
