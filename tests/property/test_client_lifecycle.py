"""Whatever happened before: forwarding only while keys are installed."""

from dataclasses import replace

from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from qubes_vpn.config.profile import Credentials
from qubes_vpn.config.pulled import TunnelSettings
from qubes_vpn.crypto.keys import DataKeys, DirectionKeys
from qubes_vpn.engine import effects as do
from qubes_vpn.engine import events as on
from qubes_vpn.engine import lifecycle as life
from qubes_vpn.engine import states as st
from qubes_vpn.errors import LocalStateError

KEYS = DataKeys(0, 1, "AES-256-GCM", DirectionKeys(b"k"), DirectionKeys(b"d"))
SETTINGS = TunnelSettings(cc_exit=True)
TIMERS = (
    *("answer", "push", "push-request", "ping", "ping-restart", "ping-exit"),
    *("inactive", "session-timeout", "renegotiate", "swap", "retire"),
)
EVENTS = some.one_of(
    some.sampled_from(
        [
            on.ServerReset(),
            on.TlsDone(),
            on.KeysReady(),
            on.KeysReady(KEYS),
            on.Pushed(SETTINGS, KEYS),
            on.Pushed(replace(SETTINGS, mtu=1400)),
            on.AuthenticationPending(1e6),
            on.RenegotiationBegan(),
            on.PeerEnded("server-restart"),
            on.ChallengeAsked("?", False, 1e6),
            on.Answered(Credentials("u", "p")),
            on.Failed("hand-window"),
            on.StopRequested(),
        ]
    ),
    some.sampled_from(TIMERS).map(on.DeadlinePassed),
)
# Straight to where the interesting histories begin.
OPENING = (
    on.ServerReset(),
    on.TlsDone(),
    on.KeysReady(),
    on.Pushed(SETTINGS, KEYS),
)


class Outside:
    """All that a data plane and a firewall remember."""

    def __init__(self):
        self.slots = [False, False]
        self.forwarding = False
        self.ended = 0

    def apply(self, effect):
        assert not self.ended, effect
        match effect:
            case do.InstallKeys(slot, _):
                self.slots[slot] = True
            case do.SwapKeys():
                self.slots.reverse()
            case do.RemoveKeys(None):
                self.slots = [False, False]
            case do.RemoveKeys(slot):
                self.slots[slot] = False
            case do.OpenForwarding():
                self.forwarding = True
            case do.CloseForwarding():
                self.forwarding = False
            case do.Ended():
                self.ended += 1


class Lifecycle(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.state = life.begin(st.Timing()).state
        self.outside = Outside()
        self.now = 0.0

    @rule(event=EVENTS, later=some.floats(0, 4000))
    def anything(self, event, later):
        self.now += later
        self.feed(event)

    @rule()
    def connect(self):
        for event in OPENING:
            self.feed(event)

    @rule()
    def again(self):
        if isinstance(self.state, st.Closed):
            self.state = life.begin(st.Timing()).state
            self.outside.ended = 0

    def feed(self, event):
        try:
            after = life.step(self.state, event, on.Now(self.now, 0.0))
        except LocalStateError:
            return
        for effect in after.effects:
            self.outside.apply(effect)
            assert self.outside.slots[0] or not self.outside.forwarding
        self.state = after.state

    @invariant()
    def the_state_knows_what_is_open(self):
        is_open = isinstance(self.state, st.Established)
        assert self.outside.forwarding == is_open
        assert self.outside.slots[0] == is_open


TestLifecycle = Lifecycle.TestCase
