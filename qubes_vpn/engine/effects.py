"""What the engine wants done, in the order in which it must happen."""

from dataclasses import dataclass, field
from typing import TypeAlias

from qubes_vpn.config.profile import Credentials
from qubes_vpn.config.pulled import TunnelSettings
from qubes_vpn.crypto.keys import DataKeys


@dataclass(frozen=True, slots=True)
class Connect:
    """Nothing is left to ask: open the link, then attach and start."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send this control packet on the link, now."""

    datagram: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class SendData:
    """Encrypt and send this payload: ping, exit notification, OCC."""

    payload: bytes


@dataclass(frozen=True, slots=True)
class InstallKeys:
    """Put keys into a slot: 0 primary (first key), 1 secondary (later).

    A secondary key decrypts only, until SwapKeys.
    """

    slot: int
    keys: DataKeys


@dataclass(frozen=True, slots=True)
class SwapKeys:
    """Exchange the slots: the newest key encrypts from now on."""


@dataclass(frozen=True, slots=True)
class RemoveKeys:
    """Forget the keys of one slot, or of both (None)."""

    slot: int | None = None


@dataclass(frozen=True, slots=True)
class ApplySettings:
    """Set addresses, MTU, routes and DNS of the tunnel."""

    settings: TunnelSettings


@dataclass(frozen=True, slots=True)
class OpenForwarding:
    """Traffic of qubes may flow; always the last effect of connecting."""


@dataclass(frozen=True, slots=True)
class CloseForwarding:
    """Traffic of qubes may no longer flow; always before RemoveKeys."""


@dataclass(frozen=True, slots=True)
class Progress:
    """One phase of connecting was reached.

    stage: reach, tls, authenticate, configure or connected.
    """

    stage: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that a person should know. code: a QV reason code."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class AskUser:
    """A prompt: answered by Engine.answer, or by its timeout.

    kind: credentials, username (its answer is a name), passphrase, challenge,
    crtext or url. echo: show the answer.
    """

    kind: str
    prompt: str
    echo: bool = False
    timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class Ended:
    """The session is over; the supervisor decides what comes next.

    reason: a stable slug. retry: connect again by itself. advance: no,
    addr or remote (which one to try next). backoff: seconds at least.
    drop_token, drop_credentials: do not use them again. next_credentials:
    use these in the next session, once (the answer to a challenge).
    """

    reason: str
    code: str = ""
    detail: str = ""
    retry: bool = True
    advance: str = "addr"
    backoff: float = 0.0
    drop_token: bool = False
    drop_credentials: bool = False
    next_credentials: Credentials | None = field(default=None, repr=False)


Effect: TypeAlias = (
    Connect
    | Send
    | SendData
    | InstallKeys
    | SwapKeys
    | RemoveKeys
    | ApplySettings
    | OpenForwarding
    | CloseForwarding
    | Progress
    | Notice
    | AskUser
    | Ended
)
