"""What the agent and the engine say to each other, besides the keeper.

The same records as the keeper's (keeper.codec), on a socketpair of their
own. The agent is the foreground parent, or the agent's unit; it trusts
nothing of what the engine reports beyond showing it.
"""

from dataclasses import dataclass, field
from typing import Final

from qubes_vpn.keeper.codec import Codec
from qubes_vpn.policy.phase import Endpoint


@dataclass(frozen=True, slots=True)
class Candidate:
    """One address of one remote: number `remote` of the profile."""

    remote: int
    host: str
    endpoint: Endpoint


# --- from the agent ----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Start:
    """Begin. One descriptor: a sealed memfd with the job (runtime.job).

    candidates: the keeper's list of endpoints, by the same indices. plane:
    auto, userspace or kernel.
    """

    candidates: tuple[Candidate, ...]
    plane: str = "auto"


@dataclass(frozen=True, slots=True)
class Candidates:
    """The answer to NeedAddresses: the new list; the keeper has it."""

    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Revocations:
    """The revocation list is another one, or cannot be read any more.

    One descriptor: a sealed memfd with the job as it is now.
    """


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Leave this session and connect again, without waiting."""

    why: str = ""


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Leave the session and stay closed, until Reconnect."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a person answered to the Prompt of this kind."""

    kind: str
    username: str = ""
    password: str = field(repr=False, default="")


@dataclass(frozen=True, slots=True)
class Stop:
    """Say goodbye to the server and end."""


# --- from the engine ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Report:
    """The engine's part of the status, after it changed.

    stage: wait, reach, tls, authenticate, configure, connected or stopped.
    code, reason: why not connected. candidate: its index, or -1.
    connected_at: since which monotonic second; 0: it is not.
    plane_reason: why it is not the kernel's. refused: pulled options that
    were not applied, with the reason.
    """

    stage: str
    code: str = ""
    reason: str = ""
    candidate: int = -1
    attempt: int = 0
    cipher: str = ""
    tls: str = ""
    server_name: str = ""
    device: str = ""
    plane: str = ""
    plane_reason: str = ""
    addresses: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    mtu: int = 0
    connected_at: float = 0.0
    rekeys: int = 0
    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
    drops: tuple[tuple[str, int], ...] = ()
    refused: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Told:
    """One line for a person and the log, with its reason code."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question for a person. Answered by Answer before the timeout."""

    kind: str
    prompt: str
    echo: bool = False
    timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class NeedAddresses:
    """Every candidate failed: resolve the names again."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The engine ends. status: the exit code that says why."""

    status: int
    code: str = ""
    reason: str = ""


AGENT_MESSAGES: Final = (
    Start,
    Candidates,
    Revocations,
    Reconnect,
    Disconnect,
    Answer,
    Stop,
)
ENGINE_MESSAGES: Final = (Report, Told, Prompt, NeedAddresses, Finished)
CODEC: Final = Codec((*AGENT_MESSAGES, *ENGINE_MESSAGES))
