"""The states of a client's session, and a step between them, as values.

`lifecycle.step` moves between them. Times are mono seconds, inf: not set.
"""

import math
from dataclasses import dataclass, field
from typing import TypeAlias

from qubes_vpn.config.pulled import TunnelSettings
from qubes_vpn.engine.effects import Effect


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of a profile in seconds, and limits; 0 is off.

    reneg_sec: with its jitter. block_limit: AEAD blocks and packets with
    one key. renewable: there is a control channel to make new keys with.
    """

    pull: bool = True
    hand_window: float = 60
    tran_window: float = 3600
    reneg_sec: float = 3600
    reneg_bytes: int = 0
    reneg_pkts: int = 0
    block_limit: int = 0
    renewable: bool = True


@dataclass(frozen=True, slots=True)
class Asking:
    """Nothing was sent: the user must answer first, until `deadline`."""

    timing: Timing
    deadline: float


@dataclass(frozen=True, slots=True)
class Resetting:
    """Our hard reset was sent; no server answered yet."""

    timing: Timing


@dataclass(frozen=True, slots=True)
class Negotiating:
    """The server answered: TLS, then key method 2."""

    timing: Timing


@dataclass(frozen=True, slots=True)
class Pulling:
    """The first key is there; waiting for the server's settings."""

    timing: Timing
    deadline: float
    next_request: float = math.inf
    pending: bool = False


@dataclass(frozen=True, slots=True)
class Challenged:
    """The server refused us with a question; waiting for the answer."""

    deadline: float


@dataclass(frozen=True, slots=True)
class Established:
    """Traffic flows.

    negotiating: a new key is on its way, since `began`. swap_at: when the
    new key begins to encrypt. retire_at: when the old key is forgotten.
    """

    timing: Timing
    settings: TunnelSettings
    since: float
    renegotiate_at: float = math.inf
    negotiating: bool = False
    began: float = 0.0
    swap_at: float = math.inf
    retire_at: float = math.inf
    pinged_at: float = 0.0


@dataclass(frozen=True, slots=True)
class Closed:
    """The session is over."""

    reason: str = ""


ClientState: TypeAlias = (
    Asking
    | Resetting
    | Negotiating
    | Pulling
    | Challenged
    | Established
    | Closed
)


@dataclass(frozen=True, slots=True)
class Begin:
    """Command: send the hard reset."""


@dataclass(frozen=True, slots=True)
class Say:
    """Command: send this control message inside TLS."""

    text: str


@dataclass(frozen=True, slots=True)
class Renegotiate:
    """Command: begin a new key."""


# What the engine does itself, in its place among the effects.
Command: TypeAlias = Begin | Say | Renegotiate


@dataclass(frozen=True, slots=True)
class Step:
    """A state, and what must be done, in this order."""

    state: ClientState
    effects: tuple[Effect | Command, ...] = field(default=())
