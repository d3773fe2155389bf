"""The client's life: every state with every event, and what must hold."""

import math
from dataclasses import replace

import pytest

from qubes_vpn.config.profile import Credentials
from qubes_vpn.config.pulled import TunnelSettings
from qubes_vpn.crypto.keys import DataKeys, DirectionKeys
from qubes_vpn.engine import effects as do
from qubes_vpn.engine import events as on
from qubes_vpn.engine import lifecycle as life
from qubes_vpn.engine import states as st
from qubes_vpn.engine.ending import OCC_EXIT
from qubes_vpn.errors import LocalStateError

NOW = on.Now(100.0, 1_700_000_000.0)
TIMING = st.Timing()
KEYS = DataKeys(
    0, 1, "AES-256-GCM", DirectionKeys(b"k" * 32), DirectionKeys(b"d" * 32)
)
SETTINGS = TunnelSettings(ping=10, ping_restart=60, cc_exit=True)
ESTABLISHED = st.Established(TIMING, SETTINGS, 50.0, renegotiate_at=3650.0)

STATES = {
    "Asking": st.Asking(TIMING, 200.0),
    "Resetting": st.Resetting(TIMING),
    "Negotiating": st.Negotiating(TIMING),
    "Pulling": st.Pulling(TIMING, 160.0, 105.0),
    "Challenged": st.Challenged(200.0),
    "Established": ESTABLISHED,
    "Renewing": replace(ESTABLISHED, negotiating=True, began=99.0),
    "Closed": st.Closed("stopped"),
}
EVENTS = {
    "ServerReset": on.ServerReset(),
    "TlsDone": on.TlsDone(),
    "KeysReady": on.KeysReady(),
    "KeysReady(keys)": on.KeysReady(KEYS),
    "Pushed": on.Pushed(replace(SETTINGS, mtu=1400)),
    "Pushed(keys)": on.Pushed(SETTINGS, KEYS),
    "AuthenticationPending": on.AuthenticationPending(300.0),
    "RenegotiationBegan": on.RenegotiationBegan(),
    **{
        f"DeadlinePassed({which})": on.DeadlinePassed(which)
        for which in (
            *("answer", "push", "push-request", "ping", "ping-restart"),
            *("ping-exit", "inactive", "session-timeout", "renegotiate"),
            *("swap", "retire"),
        )
    },
    "PeerEnded": on.PeerEnded("server-restart"),
    "ChallengeAsked": on.ChallengeAsked("pin?", False, 220.0),
    "Answered": on.Answered(Credentials("u", "p")),
    "Failed": on.Failed("tls-closed"),
    "Failed(hand-window)": on.Failed("hand-window"),
    "StopRequested": on.StopRequested(),
}
CLOSING = ("PeerEnded", "Failed", "Failed(hand-window)", "StopRequested")


def outcome(state, event):
    """(name of the next state, names of the effects), or None."""
    try:
        after = life.step(state, event, NOW)
    except LocalStateError:
        return None
    name = type(after.state).__name__
    return name, [type(one).__name__ for one in after.effects]


def test_every_state_takes_every_event_or_says_that_it_cannot():
    """Prints the diagram: pytest -s -k every_state."""
    lines = []
    for state_name, state in STATES.items():
        lines.append(state_name)
        for event_name, event in EVENTS.items():
            found = outcome(state, event)
            if found is None:
                lines.append(f"  {event_name:32} -")
                continue
            done = ", ".join(found[1])
            lines.append(f"  {event_name:32} -> {found[0]:12} {done}")
    print("\n".join(lines))  # noqa: T201
    assert len(lines) == len(STATES) * (len(EVENTS) + 1)


@pytest.mark.parametrize("event", EVENTS)
def test_closed_stays_closed(event):
    state = STATES["Closed"]
    assert life.step(state, EVENTS[event], NOW) == st.Step(state)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("event", EVENTS)
def test_forwarding_opens_last_and_closes_first(state, event):
    found = outcome(STATES[state], EVENTS[event])
    names = found[1] if found else []
    if "OpenForwarding" in names:
        before = names[: names.index("OpenForwarding")]
        assert "ApplySettings" in before
        assert "InstallKeys" in before or "CloseForwarding" in before
    if found and "Ended" in names:
        assert names[-1] == "Ended"
    if "RemoveKeys" in names and state in ("Established", "Renewing"):
        removed = life.step(STATES[state], EVENTS[event], NOW).effects
        if do.RemoveKeys() in removed:
            assert names[0] == "CloseForwarding"


@pytest.mark.parametrize("state", ["Established", "Renewing"])
@pytest.mark.parametrize("event", CLOSING)
def test_an_end_closes_in_this_order(state, event):
    name, names = outcome(STATES[state], EVENTS[event])
    assert name == "Closed"
    assert names[0] == "CloseForwarding"
    assert names[-2:] == ["RemoveKeys", "Ended"]


@pytest.mark.parametrize("state", list(STATES)[:-1])
def test_a_stop_ends_every_state_for_good(state):
    after = life.step(STATES[state], on.StopRequested(), NOW)
    assert isinstance(after.state, st.Closed)
    assert not after.effects[-1].retry


def test_opening():
    after = life.step(STATES["Pulling"], EVENTS["Pushed(keys)"], NOW)
    assert after.effects == (
        do.InstallKeys(0, KEYS),
        do.ApplySettings(SETTINGS),
        do.OpenForwarding(),
        do.Progress("connected"),
    )
    assert after.state == replace(
        ESTABLISHED, since=100.0, renegotiate_at=3700.0
    )


def run(state, *events):
    """Step through (mono seconds, event) pairs; return state and effects."""
    effects = []
    for when, event in events:
        after = life.step(state, event, on.Now(when, 0.0))
        state = after.state
        effects.append(after.effects)
    return state, effects


def test_a_new_key_decrypts_first_and_encrypts_later():
    state, effects = run(
        ESTABLISHED,
        (3650, on.DeadlinePassed("renegotiate")),
        (3650, on.RenegotiationBegan()),
        (3651, on.KeysReady(KEYS)),
    )
    assert effects == [(st.Renegotiate(),), (), (do.InstallKeys(1, KEYS),)]
    assert state.swap_at == 3650 + 60
    assert not state.negotiating
    assert state.renegotiate_at == 3651 + 3600
    state, effects = run(
        state,
        (3710, on.DeadlinePassed("swap")),
        (7250, on.DeadlinePassed("retire")),
    )
    assert effects == [(do.SwapKeys(),), (do.RemoveKeys(1),)]
    assert (state.swap_at, state.retire_at) == (math.inf, math.inf)


def test_a_negotiation_begun_early_makes_the_newer_key_the_primary():
    state, effects = run(
        replace(ESTABLISHED, negotiating=True, began=100.0),
        (101, on.KeysReady(KEYS)),
        (105, on.RenegotiationBegan()),
        (106, on.KeysReady(KEYS)),
    )
    assert effects[1] == (do.SwapKeys(), do.RemoveKeys(1))
    assert effects[2] == (do.InstallKeys(1, KEYS),)
    assert state.swap_at == 165


def test_short_renegotiation_times_swap_before_the_next():
    timing = replace(TIMING, reneg_sec=10)
    state = replace(ESTABLISHED, timing=timing, negotiating=True, began=100.0)
    state, _ = run(state, (101, on.KeysReady(KEYS)))
    assert state.swap_at == 105


def test_an_update_applies_with_forwarding_closed():
    changed = replace(SETTINGS, mtu=1400)
    after = life.step(ESTABLISHED, on.Pushed(changed), NOW)
    assert after.effects == (
        do.CloseForwarding(),
        do.ApplySettings(changed),
        do.OpenForwarding(),
    )
    again = life.step(after.state, on.Pushed(changed), NOW)
    assert again == st.Step(after.state)


def test_pending_authentication_waits_longer_and_says_why_it_ended():
    state, _ = run(STATES["Pulling"], (100, on.AuthenticationPending(300.0)))
    assert state.deadline == 300.0
    _, effects = run(state, (300, on.DeadlinePassed("push")))
    assert effects[0][-1].reason == "auth-pending-timeout"


@pytest.mark.parametrize(
    ("state", "event", "reason", "retry"),
    [
        ("Asking", "DeadlinePassed(answer)", "unanswered", False),
        ("Resetting", "Failed(hand-window)", "no-answer", True),
        ("Negotiating", "Failed(hand-window)", "handshake-timeout", True),
        ("Pulling", "DeadlinePassed(push)", "no-push-reply", True),
        ("Challenged", "DeadlinePassed(answer)", "unanswered", False),
        ("Renewing", "Failed(hand-window)", "renegotiation-timeout", True),
        ("Established", "DeadlinePassed(ping-restart)", "ping-restart", True),
        ("Established", "DeadlinePassed(ping-exit)", "ping-exit", False),
        ("Established", "DeadlinePassed(inactive)", "inactive", False),
    ],
)
def test_reasons(state, event, reason, retry):
    after = life.step(STATES[state], EVENTS[event], NOW)
    ended = after.effects[-1]
    assert (ended.reason, ended.retry) == (reason, retry)
    assert ended.code.startswith("QV-5")
    assert ended.code != "QV-500"
    assert ended.detail


@pytest.mark.parametrize(
    ("cc_exit", "notify", "negotiating", "goodbye"),
    [
        (True, 0, False, [st.Say("EXIT")]),
        (True, 0, True, [do.SendData(OCC_EXIT)]),
        (False, 1, False, [do.SendData(OCC_EXIT)]),
        (False, 0, False, []),
    ],
)
def test_goodbye(cc_exit, notify, negotiating, goodbye):
    settings = replace(SETTINGS, cc_exit=cc_exit, explicit_exit_notify=notify)
    state = replace(ESTABLISHED, settings=settings, negotiating=negotiating)
    effects = life.step(state, on.StopRequested(), NOW).effects
    assert list(effects[1:-2]) == goodbye


def test_a_challenge_gives_the_next_session_its_credentials():
    state, effects = run(
        STATES["Pulling"],
        (100, EVENTS["ChallengeAsked"]),
        (101, on.PeerEnded("server-exit")),
        (102, EVENTS["Answered"]),
    )
    assert effects[0] == (do.AskUser("challenge", "pin?", False, 60.0),)
    assert effects[1] == ()
    assert effects[2][0].next_credentials == Credentials("u", "p")
    assert effects[2][0].retry
    assert isinstance(state, st.Closed)


def test_no_pull_waits_for_no_server():
    timing = replace(TIMING, pull=False)
    after = life.step(st.Negotiating(timing), on.KeysReady(), NOW)
    assert after.effects == (do.Progress("configure"),)
    assert after.state.next_request == math.inf


def test_nothing_secret_is_shown():
    shown = repr((EVENTS["KeysReady(keys)"], EVENTS["Answered"]))
    assert "kkkk" not in shown
    assert "'p'" not in shown
