"""What can happen to a client session."""

from dataclasses import dataclass, field
from typing import NewType, TypeAlias

from qubes_vpn.config.profile import Credentials
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
    """Key method 2 is complete on both sides.

    keys: of a renegotiation; None the first time, when the settings that
    they depend on are still to come.
    """

    keys: DataKeys | None = field(default=None)


@dataclass(frozen=True, slots=True)
class Pushed:
    """The settings are known, merged with the profile and checked.

    keys: with the first settings of a session; None with an update.
    """

    settings: TunnelSettings
    keys: DataKeys | None = field(default=None)


@dataclass(frozen=True, slots=True)
class AuthenticationPending:
    """The server waits for a second factor: until this mono second."""

    deadline: float


@dataclass(frozen=True, slots=True)
class RenegotiationBegan:
    """Either side began a new key; the peer's oldest key is gone now."""


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """A timer of the state: which one is its slug."""

    which: str


@dataclass(frozen=True, slots=True)
class PeerEnded:
    """The server ended the session, inside TLS: EXIT, RESTART, HALT.

    The fields are those of effects.Ended.
    """

    reason: str
    retry: bool = True
    advance: str = "addr"
    backoff: float = 0.0
    detail: str = ""
    code: str = ""
    drop_token: bool = False
    drop_credentials: bool = False


@dataclass(frozen=True, slots=True)
class ChallengeAsked:
    """The server refused us with a question (AUTH_FAILED,CRV1).

    deadline: mono seconds until which the user may answer; timeout: the
    same as a number of seconds from now.
    """

    prompt: str
    echo: bool
    deadline: float
    timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class Answered:
    """The user answered what was asked.

    next_credentials: for the session after this one.
    """

    next_credentials: Credentials | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Failed:
    """The session cannot go on, and the reason is on this side."""

    reason: str
    detail: str = ""
    code: str = ""
    retry: bool = True


@dataclass(frozen=True, slots=True)
class StopRequested:
    """We were asked to stop: say goodbye."""


Event: TypeAlias = (
    ServerReset
    | TlsDone
    | KeysReady
    | Pushed
    | DeadlinePassed
    | AuthenticationPending
    | RenegotiationBegan
    | PeerEnded
    | ChallengeAsked
    | Answered
    | Failed
    | StopRequested
)
