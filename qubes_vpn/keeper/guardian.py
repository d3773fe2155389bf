"""The guardian: what is ours stays as we left it, or nothing is forwarded.

It hears of every change of the ruleset, of links, addresses, routes and
rules, and compares whole states (rules, policies, flags, elements), not
existence. What differs is put back at once, with the name of the one who
changed it where the kernel tells.

It does not fight for ever: somebody who keeps undoing it gets a machine that
forwards nothing, closed and looked at once a second, until nobody has touched
it for a minute.
"""

import contextlib
import json
import os
from collections import deque
from collections.abc import Callable
from typing import Final, TypeAlias

from qubes_vpn.errors import OsRefusedError
from qubes_vpn.keeper import messages
from qubes_vpn.keeper.layers import FILTER, ROUTING, TABLES, UPLINK, Layers
from qubes_vpn.keeper.server import Keeper
from qubes_vpn.system import clock
from qubes_vpn.system.generation import Notifications
from qubes_vpn.system.nft import canonical
from qubes_vpn.system.rtnl import Events

POLL_S: Final = 5.0
# More repairs than this within the time: somebody fights us.
FIGHT_REPAIRS: Final = 20
FIGHT_S: Final = 10.0
QUIET_S: Final = 60.0
# Longer than this not sure of what is loaded: somebody fights us too.
UNSURE_S: Final = 5.0
_TRIES: Final = 2
_KNOWN_MAX: Final = 64
BEFORE: Final = "it was stopped before the keeper started anew"
AGENT_CHAIN: Final = "agent-chain"
SETTINGS: Final = "settings"
DEVICE: Final = "device"

# A layer and what its table is like: a hash; None: no table.
Listing: TypeAlias = dict[str, int | None]


class Guardian:
    """Watches for one keeper; `attach` joins it to the keeper's loop."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._layers: Layers = keeper.layers
        self._rulesets = Notifications()
        self._events = Events()
        # None: not sure
        self._expected: Listing | None = None
        self._known: dict[tuple[str, ...], Listing] = {}
        self._unsure_since: float | None = None
        self._foreign = ""
        self._addresses = self._layers.uplink_addresses()
        self._repaired: deque[float] = deque()
        self._poll_at = 0.0

    def attach(self) -> None:
        """Watch from now on."""
        self._keeper.watch(self._rulesets, self._on_ruleset)
        self._keeper.watch(self._events, self._on_event)
        self._keeper.phases.on_applied = self.expect
        self._keeper.on_tick = self._on_tick
        self._keeper.tick_due = self._due

    def expect(self) -> None:
        """Take what the layers have just loaded as what has to be there."""
        self._expected = self._known.get(tuple(self._layers.loaded.values()))
        if self._expected is None:
            self._learn()

    def _learn(self) -> None:
        """See how the kernel lists what the layers have loaded.

        Sure of it only if no transaction of another came since the last look:
        otherwise the tables are made anew, and it is tried again with the
        next event. Who changes rules of his own may do so for a while, as
        Qubes' firewall does when it starts.
        """
        for _ in range(_TRIES):
            found = self._dump()
            if self._layers.settled():
                self._remember(found)
                return
            if self._expected is not None:
                return  # learned before: the next event compares
            self._layers.trust(self._layers.generation())
            self._layers.repair_filter()
            self._layers.repair_uplink()
        now = clock.monotonic()
        self._poll_at = 0.0
        self._unsure_since = self._unsure_since or now
        if self._layers.stopped:
            self._wait_again()
        elif now > self._unsure_since + UNSURE_S:
            self._keeper.culprit = self._foreign
            self._stop("the ruleset changes faster than it is read")

    def _remember(self, found: Listing) -> None:
        self._expected, self._unsure_since = found, None
        # an old kernel has no table for a device that is away
        if self._layers.rtnl.link(self._layers.uplink_name) is not None:
            if len(self._known) >= _KNOWN_MAX:
                self._known.clear()
            self._known[tuple(self._layers.loaded.values())] = found

    def check(self, culprit: str = "") -> None:
        """Compare everything, and put back what differs.

        Stopped, it is not the changes that give the pace.
        """
        if not self._layers.stopped:
            self._check(culprit)

    def _check(self, culprit: str = "") -> None:
        try:
            self._check_tables(culprit)
            self._check_accepts(culprit)
            self._check_device()
            self._check_routing()
            self._check_uplink_addresses()
            changed = self._layers.apply_settings()
            if changed:
                self._report(SETTINGS, ", ".join(changed), "")
        except OsRefusedError as error:
            if self._layers.stopped:
                self._wait_again()
                return
            # closed, and no fight: a device that goes meanwhile is enough
            self._keeper.notice(messages.Repaired("none", str(error)[:200]))
            self._keeper.fail_closed()

    # --- what is heard

    def _on_ruleset(self) -> None:
        try:
            made = self._rulesets.receive()
        except OsRefusedError:
            self.check()  # some were lost
            return
        own = os.getpid()
        foreign = [each for each in made if each.pid != own]
        if foreign:
            last = foreign[-1]
            self._foreign = f"{last.name} (process {last.pid})"
            self.check(self._foreign)

    def _on_event(self) -> None:
        # some may be lost: the check does not rest on what they say
        with contextlib.suppress(OsRefusedError):
            self._events.receive()
        self.check()

    def _due(self) -> float:
        return 0.0 if self._layers.stopped else self._poll_at

    def _on_tick(self) -> None:
        now = clock.monotonic()
        if self._layers.stopped:
            self._wait_for_quiet()
        elif now >= self._poll_at:
            self._poll_at = now + POLL_S
            self._check()

    # --- what is compared

    def _dump(self) -> Listing:
        found: Listing = {}
        for layer, table in TABLES.items():
            items = self._layers.nft.list_table(table)
            text = json.dumps(canonical(items), sort_keys=True)
            found[layer] = None if items is None else hash(text)
        return found

    def _check_tables(self, culprit: str) -> None:
        repairs: dict[str, Callable[[], None]] = {
            FILTER: self._layers.repair_filter,
            UPLINK: self._layers.repair_uplink,
        }
        if self._expected is None:
            self.expect()
            return
        generation = self._layers.generation()
        found = self._dump()
        self._layers.trust(generation)
        expected = self._expected
        wrong = [name for name in found if found[name] != expected[name]]
        if not wrong:
            return
        for layer in wrong:
            repairs[layer]()
        self._learn()
        for layer in wrong:
            what = "removed" if found[layer] is None else "changed"
            self._report(layer, what, culprit)

    def _check_accepts(self, culprit: str) -> None:
        if self._layers.missing_accepts():
            self._layers.apply_accepts()
            self._report(AGENT_CHAIN, "changed", culprit)

    def _check_device(self) -> None:
        if self._keeper.restore_device():
            self._report(DEVICE, "changed", "")

    def _check_routing(self) -> None:
        foreign = self._layers.foreign_rules()
        for _, body in foreign:
            self._layers.rtnl.delete_rule_as_seen(body)
        if foreign:
            what = ", ".join(f"rule {rule.priority}" for rule, _ in foreign)
            self._report(ROUTING, f"{what} added", "")
        if self._layers.routing_differs():
            self._layers.apply_routing()
            self._report(ROUTING, "changed", "")

    def _check_uplink_addresses(self) -> None:
        """The uplink came back, or has another address: no fault."""
        addresses = self._layers.uplink_addresses()
        if addresses != self._addresses:
            self._addresses = addresses
            self._layers.apply_uplink()
            self._layers.apply_filter()
            self.expect()

    # --- what is said

    def _report(self, layer: str, what: str, culprit: str) -> None:
        self._keeper.repairs += 1
        self._keeper.culprit = culprit or self._keeper.culprit
        if self._layers.stopped:
            self._wait_again()
            return
        self._keeper.notice(messages.Repaired(layer, what[:200], culprit))
        now = clock.monotonic()
        self._repaired.append(now)
        while self._repaired[0] < now - FIGHT_S:
            self._repaired.popleft()
        if len(self._repaired) > FIGHT_REPAIRS:
            self._repaired.clear()
            self._stop(f"the {layer} is changed again and again")

    # --- when it cannot be kept

    def _stop(self, why: str) -> None:
        """Forward nothing, and close, until it has been quiet."""
        self._layers.forwarding_off()
        self._wait_again()
        if not self._keeper.stopped:
            self._tell_stopped(why)
            self._keeper.fail_closed()

    def _wait_for_quiet(self) -> None:
        """Look once a second; what had to be repaired starts the wait anew."""
        if not self._keeper.stopped:
            # the layers themselves have failed, or an earlier keeper's fight
            self._wait_again()
            self._tell_stopped(self._keeper.culprit or BEFORE)
        self._layers.forwarding_off()  # if somebody has turned it on
        self._check()
        if clock.monotonic() >= self._keeper.resume_at:
            with contextlib.suppress(OsRefusedError):
                self._layers.forwarding_on()
                self._keeper.stopped, self._keeper.resume_at = "", 0.0
                self._keeper.notice(messages.ForwardingChanged())

    def _wait_again(self) -> None:
        self._keeper.resume_at = clock.monotonic() + QUIET_S

    def _tell_stopped(self, why: str) -> None:
        culprit = self._keeper.culprit
        by = f", last by {culprit}" if culprit and culprit != why else ""
        self._keeper.stopped = f"{why}{by}"[:200]
        self._keeper.notice(messages.ForwardingChanged(self._keeper.stopped))
