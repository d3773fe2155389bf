"""What the server engine wants done, and what it asks, in order."""

from dataclasses import dataclass, field
from typing import TypeAlias

from qubes_vpn.config.server_profile import ClientConfig
from qubes_vpn.engine.effects import (
    InstallKeys,
    RemoveKeys,
    SendData,
    SwapKeys,
)
from qubes_vpn.engine.hello import Source
from qubes_vpn.engine.push_options import Lease


@dataclass(frozen=True, slots=True)
class SendTo:
    """Send this control packet to that address, now."""

    source: Source
    datagram: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Authenticate:
    """Decide whether this client may come in; answer with `decide`.

    number: of the question, given back with the answer. common_name: of
    the certificate, or the user name where there is none. serial: of the
    certificate, 0 without one. again: a renegotiation; the client keeps
    its connection meanwhile. trusted: the password is a token of ours, which
    was checked, or nothing is asked for; only the rest is to be decided.
    """

    number: int
    common_name: str
    username: str = ""
    password: str = field(repr=False, default="")
    serial: int = 0
    again: bool = False
    trusted: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer. reason: what a client that is refused gets to read.

    temporary: it may try again after `backoff` seconds.
    """

    allowed: bool
    config: ClientConfig = field(default_factory=ClientConfig)
    reason: str = ""
    temporary: bool = False
    backoff: int = 0


@dataclass(frozen=True, slots=True)
class Admitted:
    """The client has its keys and addresses: its traffic may flow."""

    common_name: str
    username: str
    lease: Lease
    config: ClientConfig
    cipher: str


@dataclass(frozen=True, slots=True)
class Removed:
    """The client is gone, with all that was its. reason: a stable slug.

    source: where it was, None if another one is there now.
    """

    reason: str
    detail: str = ""
    source: Source | None = None


ClientEffect: TypeAlias = (
    SendData
    | InstallKeys
    | SwapKeys
    | RemoveKeys
    | Authenticate
    | Admitted
    | Removed
)


@dataclass(frozen=True, slots=True)
class ForClient:
    """An effect that concerns one client."""

    client: int
    effect: ClientEffect


ServerEffect: TypeAlias = SendTo | ForClient
