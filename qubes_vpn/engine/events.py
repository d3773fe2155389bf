"""What can happen to a client session."""

from dataclasses import dataclass, field
from typing import NewType, TypeAlias

from qubes_vpn.config.pulled import TunnelSettings
from qubes_vpn.crypto.keys import DataKeys

Seconds = NewType("Seconds", float)


@dataclass(frozen=True, slots=True)
class Now:
    """The two clocks, in seconds: for timers, and for replay packet ids."""

    mono: float
    unix: float


@dataclass(frozen=True, slots=True)
class ServerReset:
    """The server answered our hard reset: its session is known."""


@dataclass(frozen=True, slots=True)
class TlsDone:
    """The TLS handshake is complete, and the server is the right one."""


@dataclass(frozen=True, slots=True)
class KeysReady:
    """Key method 2 is complete on both sides."""

    keys: DataKeys | None = field(default=None)


@dataclass(frozen=True, slots=True)
class Pushed:
    """A whole PUSH_REPLY, merged with the profile and checked."""

    settings: TunnelSettings


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """A timer of the state: which one is its slug."""

    which: str


@dataclass(frozen=True, slots=True)
class PeerEnded:
    """The server ended the session, inside TLS: EXIT, RESTART, HALT."""

    reason: str
    retry: bool = True
    advance: str = "addr"
    backoff: float = 0.0
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StopRequested:
    """We were asked to stop: say goodbye."""


Event: TypeAlias = (
    ServerReset
    | TlsDone
    | KeysReady
    | Pushed
    | DeadlinePassed
    | PeerEnded
    | StopRequested
)
