"""The way to a server: connect, talk to the proxy before it, have its relay.

Used from the opening of the link until its packets are the server's; what
must stay open for a relay stays open here. All failures are SessionError.
"""

import os
import secrets
import socket
import time
from functools import partial
from typing import Final

from qubes_vpn.config.profile import ClientProfile, Remote
from qubes_vpn.engine.proxy import Socks5, dialog
from qubes_vpn.errors import SessionError
from qubes_vpn.policy.phase import Transport
from qubes_vpn.runtime.messages import Candidate
from qubes_vpn.runtime.planes import Planes

PROXY_READ: Final = 4096


class Approach:
    """Opens a link to a candidate, and leads it through a proxy.

    done: `link` is the server's from now on. deadline: when it must be, in
    monotonic seconds. Raises OsRefusedError when nothing can be opened.
    """

    def __init__(
        self,
        planes: Planes,
        profile: ClientProfile,
        remote: Remote,
        candidate: Candidate,
        index: int,
    ) -> None:
        self.deadline = time.monotonic() + remote.connect_timeout
        self._open = partial(planes.open_link, profile, remote, index)
        self._open_relay = partial(planes.open_relay, profile, remote)
        self._endpoint = candidate.endpoint
        self._proxy = dialog(remote, secrets.token_bytes)
        self._talking = False
        self._association: socket.socket | None = None
        self.link = self._open()
        self.done = self._endpoint.transport is Transport.UDP

    def readable(self) -> tuple[int, ...]:
        """Give the descriptors to watch for input."""
        if self.done:
            return (self._association.fileno(),) if self._association else ()
        return (self.link.fileno(),) if self._talking else ()

    def writable(self) -> tuple[int, ...]:
        """Give the descriptors to watch for output."""
        return () if self.done or self._talking else (self.link.fileno(),)

    def on_writable(self) -> None:
        """Finish a TCP connect."""
        number = self.link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            detail = f"{self._where()}: {os.strerror(number)}"
            raise SessionError("connect-failed", detail, "QV-301")
        if self._proxy is None:
            self.done = True
        else:
            self._talking = True
            self._say(self._proxy.begin())

    def on_readable(self) -> None:
        """Take what the proxy says."""
        assert self._proxy is not None
        received = self._receive(self._association or self.link)
        if received is None:
            return
        if not received:
            self._proxy.closed()
        self._say(self._proxy.feed(received))
        if self._proxy.again:
            self.link.close()
            self._talking = False
            self.link = self._open()
        elif self._proxy.done and not self.done:
            self._arrive()

    def on_deadline(self) -> None:
        """Say that it took too long."""
        detail = f"no TCP connection to {self._where()} (connect-timeout)"
        raise SessionError("connect-timeout", detail, "QV-302")

    def close(self) -> None:
        """Let go of every socket."""
        self.link.close()
        if self._association is not None:
            self._association.close()

    def _where(self) -> str:
        end = self._endpoint
        return f"{end.address} port {end.port}/{end.transport}"

    def _arrive(self) -> None:
        if self._endpoint.relays:
            assert isinstance(self._proxy, Socks5)
            port = self._proxy.relay_port(self._endpoint.address)
            self._association, self.link = self.link, self._open_relay(port)
        self.done = True

    def _receive(self, sock: socket.socket) -> bytes | None:
        try:
            return sock.recv(PROXY_READ)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _say(self, words: bytes) -> None:
        """Send a few hundred bytes on a fresh connection: they fit."""
        try:
            whole = not words or self.link.send(words) == len(words)
        except OSError:
            whole = False
        if not whole:
            raise SessionError("proxy-refused", "it hangs up", "QV-304")
