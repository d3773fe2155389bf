"""The client's life: `step(state, event, now)` is all of it.

Opening is keys, settings, and forwarding last; closing is forwarding first,
then keys, then the end. No I/O, no clock, no mutation; what cannot be a
value (TLS, windows) belongs to the control channel.
"""

import math
from dataclasses import replace
from typing import Final, NoReturn, assert_never

from qubes_vpn.config.pulled import TunnelSettings
from qubes_vpn.engine.effects import (
    ApplySettings,
    CloseForwarding,
    Effect,
    Ended,
    InstallKeys,
    OpenForwarding,
    Progress,
    RemoveKeys,
    SendData,
    SwapKeys,
)
from qubes_vpn.engine.ending import end
from qubes_vpn.engine.events import (
    Answered,
    AuthenticationPending,
    ChallengeAsked,
    DeadlinePassed,
    Event,
    Failed,
    KeysReady,
    Now,
    PeerEnded,
    Pushed,
    RenegotiationBegan,
    ServerReset,
    StopRequested,
    TlsDone,
)
from qubes_vpn.engine.reasons import code_of
from qubes_vpn.engine.states import (
    Asking,
    Begin,
    Challenged,
    ClientState,
    Closed,
    Established,
    Negotiating,
    Pulling,
    Renegotiate,
    Resetting,
    Say,
    Step,
    Timing,
)
from qubes_vpn.errors import LocalStateError

# Source: OpenVPN 2 ping.c and occ.c.
PING: Final = bytes.fromhex("2a187bf3641eb4cb07ed2d0a981fc748")
PUSH_REQUEST_INTERVAL: Final = 5.0


def step(state: ClientState, event: Event, now: Now) -> Step:
    """Advance by one event.

    Raises LocalStateError if the engine sends what this state cannot get.
    """
    match state:
        case Asking():
            return _in_asking(state, event)
        case Resetting():
            return _in_resetting(state, event)
        case Negotiating():
            return _in_negotiating(state, event, now)
        case Pulling():
            return _in_pulling(state, event, now)
        case Challenged():
            return _in_challenged(state, event)
        case Established():
            return _in_established(state, event, now)
        case Closed():
            return Step(state)
        case _:
            assert_never(state)


def begin(timing: Timing) -> Step:
    """Return the first step of a session that needs no answer first."""
    return Step(Resetting(timing), (Progress("reach"), Begin()))


def _impossible(state: ClientState, event: Event) -> NoReturn:
    names = f"{type(event).__name__} in {type(state).__name__}"
    raise LocalStateError(names)


def _in_asking(state: Asking, event: Event) -> Step:
    match event:
        case Answered():
            return begin(state.timing)
        case DeadlinePassed():
            return end(state, Failed("unanswered", retry=False))
        case PeerEnded() | ChallengeAsked() | Failed() | StopRequested():
            return end(state, event)
        case (
            ServerReset()
            | TlsDone()
            | KeysReady()
            | Pushed()
            | AuthenticationPending()
            | RenegotiationBegan()
        ):
            _impossible(state, event)
        case _:
            assert_never(event)


def _in_resetting(state: Resetting, event: Event) -> Step:
    match event:
        case ServerReset():
            return Step(Negotiating(state.timing), (Progress("tls"),))
        case Failed(reason="hand-window"):
            return end(state, Failed("no-answer"))
        case PeerEnded() | ChallengeAsked() | Failed() | StopRequested():
            return end(state, event)
        case (
            TlsDone()
            | KeysReady()
            | Pushed()
            | Answered()
            | AuthenticationPending()
            | RenegotiationBegan()
            | DeadlinePassed()
        ):
            _impossible(state, event)
        case _:
            assert_never(event)


def _in_negotiating(state: Negotiating, event: Event, now: Now) -> Step:
    match event:
        case TlsDone():
            return Step(state, (Progress("authenticate"),))
        case KeysReady():
            return _pull(state.timing, now)
        case Failed(reason="hand-window"):
            return end(state, Failed("handshake-timeout"))
        case PeerEnded() | ChallengeAsked() | Failed() | StopRequested():
            return end(state, event)
        case (
            ServerReset()
            | Pushed()
            | Answered()
            | AuthenticationPending()
            | RenegotiationBegan()
            | DeadlinePassed()
        ):
            _impossible(state, event)
        case _:
            assert_never(event)


def _pull(timing: Timing, now: Now) -> Step:
    """Wait for settings: the server's, or the profile's own (no pull)."""
    state = Pulling(timing, now.mono + timing.hand_window)
    if not timing.pull:
        return Step(state, (Progress("configure"),))
    state = replace(state, next_request=now.mono + PUSH_REQUEST_INTERVAL)
    return Step(state, (Progress("configure"), Say("PUSH_REQUEST")))


def _in_pulling(state: Pulling, event: Event, now: Now) -> Step:
    match event:
        case Pushed():
            return _open(state, event, now)
        case AuthenticationPending(deadline):
            later = max(state.deadline, deadline)
            return Step(replace(state, deadline=later, pending=True))
        case DeadlinePassed("push-request"):
            again = now.mono + PUSH_REQUEST_INTERVAL
            return Step(
                replace(state, next_request=again), (Say("PUSH_REQUEST"),)
            )
        case DeadlinePassed():
            pending = "auth-pending-timeout"
            return end(
                state, Failed(pending if state.pending else "no-push-reply")
            )
        case Answered() | RenegotiationBegan() | TlsDone() | KeysReady():
            # an answer to the server's question; a renegotiation before
            # the settings: the first data keys then are of the newest key
            return Step(state)
        case PeerEnded() | ChallengeAsked() | Failed() | StopRequested():
            return end(state, event)
        case ServerReset():
            _impossible(state, event)
        case _:
            assert_never(event)


def _open(state: Pulling, event: Pushed, now: Now) -> Step:
    if event.keys is None:
        _impossible(state, event)
    established = Established(
        state.timing,
        event.settings,
        now.mono,
        renegotiate_at=_next_renegotiation(state.timing, now),
    )
    return Step(
        established,
        (
            InstallKeys(0, event.keys),
            ApplySettings(event.settings),
            OpenForwarding(),
            Progress("connected"),
        ),
    )


def _in_challenged(state: Challenged, event: Event) -> Step:
    match event:
        case Answered(credentials):
            ended = Ended(
                "challenge",
                code_of("challenge"),
                advance="no",
                next_credentials=credentials,
            )
            return Step(Closed("challenge"), (ended,))
        case DeadlinePassed():
            return end(state, Failed("unanswered", retry=False))
        case StopRequested():
            return end(state, event)
        case (
            ServerReset()
            | TlsDone()
            | KeysReady()
            | Pushed()
            | AuthenticationPending()
            | RenegotiationBegan()
            | PeerEnded()
            | ChallengeAsked()
            | Failed()
        ):
            return Step(state)  # the server is done with us, we are not
        case _:
            assert_never(event)


def _in_established(state: Established, event: Event, now: Now) -> Step:
    match event:
        case DeadlinePassed(which):
            return _timer(state, which, now)
        case RenegotiationBegan():
            return _promote(state, now)
        case KeysReady(keys):
            return _second_key(state, KeysReady(keys), now)
        case Pushed(settings):
            return _update(state, settings)
        case Failed(reason="hand-window"):
            return end(state, Failed("renegotiation-timeout"))
        case PeerEnded() | ChallengeAsked() | Failed() | StopRequested():
            return end(state, event)
        case TlsDone() | Answered() | AuthenticationPending():
            return Step(state)
        case ServerReset():
            _impossible(state, event)
        case _:
            assert_never(event)


def _timer(state: Established, which: str, now: Now) -> Step:
    match which:
        case "ping":
            return Step(replace(state, pinged_at=now.mono), (SendData(PING),))
        case "renegotiate":
            return Step(state, (Renegotiate(),))
        case "swap" if state.swap_at < math.inf:
            retire_at = max(state.began + state.timing.tran_window, now.mono)
            after = replace(state, swap_at=math.inf, retire_at=retire_at)
            return Step(after, (SwapKeys(),))
        case "retire":
            return Step(replace(state, retire_at=math.inf), (RemoveKeys(1),))
        case "ping-restart":
            return end(state, Failed(which))
        case "ping-exit" | "inactive" | "session-timeout":
            return end(state, Failed(which, retry=False))
        case _:
            _impossible(state, DeadlinePassed(which))


def _promote(state: Established, now: Now) -> Step:
    """A negotiation began: at most one older key may be left on both sides.

    OpenVPN forgets its oldest key at this moment, so ours that still
    encrypts must be the newer one by now.
    """
    effects: tuple[Effect, ...] = ()
    if state.swap_at < math.inf:
        effects = (SwapKeys(), RemoveKeys(1))
    elif state.retire_at < math.inf:
        effects = (RemoveKeys(1),)
    after = replace(
        state,
        negotiating=True,
        began=now.mono,
        swap_at=math.inf,
        retire_at=math.inf,
    )
    return Step(after, effects)


def _second_key(state: Established, event: KeysReady, now: Now) -> Step:
    """Keep the new key for reading, until the peer surely has it too."""
    if event.keys is None or not state.negotiating:
        _impossible(state, event)
    timing = state.timing
    window = timing.hand_window
    if timing.reneg_sec:
        window = min(window, timing.reneg_sec / 2)
    after = replace(
        state,
        negotiating=False,
        swap_at=state.began + window,
        renegotiate_at=_next_renegotiation(timing, now),
    )
    return Step(after, (InstallKeys(1, event.keys),))


def _update(state: Established, settings: TunnelSettings) -> Step:
    if settings == state.settings:
        return Step(state)
    return Step(
        replace(state, settings=settings),
        (CloseForwarding(), ApplySettings(settings), OpenForwarding()),
    )


def _next_renegotiation(timing: Timing, now: Now) -> float:
    return now.mono + timing.reneg_sec if timing.reneg_sec else math.inf
