"""How a session ends: forwarding first, then keys, then the end."""

from typing import Final, TypeAlias, assert_never

from qubes_vpn.engine.effects import (
    AskUser,
    CloseForwarding,
    Effect,
    Ended,
    RemoveKeys,
    SendData,
)
from qubes_vpn.engine.events import (
    ChallengeAsked,
    Failed,
    PeerEnded,
    StopRequested,
)
from qubes_vpn.engine.reasons import code_of, sentence_of
from qubes_vpn.engine.states import (
    Challenged,
    ClientState,
    Closed,
    Command,
    Established,
    Say,
    Step,
)

# Source: OpenVPN 2 occ.c.
OCC_MAGIC: Final = bytes.fromhex("287f346bd4ef7a812d56b8d3afc5459c")
OCC_EXIT: Final = OCC_MAGIC + b"\x06"

Ending: TypeAlias = PeerEnded | ChallengeAsked | Failed | StopRequested


def end(state: ClientState, event: Ending) -> Step:
    """Close: forwarding first, then keys. A stop says goodbye in between."""
    if isinstance(event, ChallengeAsked):
        return _ask(state, event)
    ended = _ended(event)
    if not isinstance(state, Established):
        return Step(Closed(ended.reason), (ended,))
    goodbye: tuple[Effect | Command, ...] = ()
    if isinstance(event, StopRequested):
        goodbye = _goodbye(state)
    return Step(
        Closed(ended.reason),
        (CloseForwarding(), *goodbye, RemoveKeys(), ended),
    )


def _ask(state: ClientState, event: ChallengeAsked) -> Step:
    close: tuple[Effect, ...] = ()
    if isinstance(state, Established):
        close = (CloseForwarding(), RemoveKeys())
    ask = AskUser("challenge", event.prompt, event.echo, event.timeout)
    return Step(Challenged(event.deadline), (*close, ask))


def _ended(event: PeerEnded | Failed | StopRequested) -> Ended:
    match event:
        case StopRequested():
            return Ended("stopped", code_of("stopped"), retry=False)
        case Failed(reason, detail, code, retry):
            return Ended(
                reason,
                code or code_of(reason),
                detail or sentence_of(reason),
                retry,
            )
        case PeerEnded():
            return Ended(
                event.reason,
                event.code or code_of(event.reason),
                event.detail or sentence_of(event.reason),
                event.retry,
                event.advance,
                event.backoff,
                event.drop_token,
                event.drop_credentials,
            )
        case _:
            assert_never(event)


def _goodbye(state: Established) -> tuple[Effect | Command, ...]:
    settings = state.settings
    if settings.cc_exit and not state.negotiating:
        return (Say("EXIT"),)
    if settings.cc_exit or settings.explicit_exit_notify:
        return (SendData(OCC_EXIT),)
    return ()
