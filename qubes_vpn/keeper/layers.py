"""The layers of the lock, put into one state, in the order that closes.

One transaction a layer. Opening: uplink, routing, filter. Closing: filter,
routing, uplink. What fails half-way is closed again; what cannot even be
closed has forwarding turned off.
"""

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from qubes_vpn.errors import OsRefusedError, UnavailableError
from qubes_vpn.keeper.forwarding import Forwarding
from qubes_vpn.policy import firewall, routes, sysctls, uplink
from qubes_vpn.policy.phase import (
    Address,
    Blocked,
    Connected,
    Connecting,
    Endpoint,
    Phase,
)
from qubes_vpn.system import sysctl
from qubes_vpn.system.conntrack import Conntrack
from qubes_vpn.system.generation import Generations
from qubes_vpn.system.nft import Nft
from qubes_vpn.system.rtnl import RouteSeen, Rtnl, RuleSeen

FILTER: Final = "filter"
ROUTING: Final = "routing"
UPLINK: Final = "uplink"
TABLES: Final = {FILTER: firewall.TABLE, UPLINK: uplink.TABLE}
_AGENT_CHAIN: Final = "custom-input"
_AGENT_TABLES: Final = ("ip qubes", "ip6 qubes")
# What IPv6 makes of metric 0.
_METRIC6: Final = 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """The state to be in. destinations: routes into the tunnel device."""

    phase: Phase = field(default_factory=Blocked)
    resolver: Endpoint | None = None
    destinations: tuple[routes.TableRoute, ...] = ()

    @property
    def openness(self) -> int:
        """Order states: going down in it is closing."""
        match self.phase:
            case Blocked():
                rank = 0
            case Connecting():
                rank = 1
            case _:
                rank = 2
        return 2 * rank + (self.resolver is not None)


class Layers:
    """Applies states. One per process: it holds the sockets to the kernel.

    mark: of our sockets; 0 where none can be set.
    note: where it is remembered that forwarding was turned off.
    """

    mark = firewall.MARK

    def __init__(
        self, uplink_name: str, gid: int, note: Path | None = None
    ) -> None:
        self.uplink_name = firewall.device_name(uplink_name)
        self.nft = Nft()
        self.rtnl = Rtnl()
        self.wanted = Wanted()
        self._defines = firewall.defines(uplink_name, gid)
        self._conntrack: Conntrack | None = None
        self._generations = Generations()
        # up to this generation everything was made or looked at by us
        self._known = 0
        # what is loaded, as the changes that lead there
        self.loaded = {FILTER: "", UPLINK: ""}
        self.owns = False
        self._forwarding = Forwarding(note)

    # --- what is there

    def lock(self) -> tuple[str, ...]:
        """Name the layers that are loaded."""
        found = []
        if self.nft.list_table(firewall.TABLE) is not None:
            found.append(FILTER)
        if self.missing_rules() == []:
            found.append(ROUTING)
        if self.nft.list_table(uplink.TABLE) is not None:
            found.append(UPLINK)
        return tuple(found)

    def require_lock(self) -> None:
        """Raise UnavailableError unless somebody has locked this machine."""
        missing = {FILTER, ROUTING} - set(self.lock())
        if missing:
            raise UnavailableError(
                f"the lock is not loaded ({', '.join(sorted(missing))}):"
                " run `qubes-vpn lockdown apply`"
            )
        if "owner" in self.nft.flags(firewall.TABLE):
            raise UnavailableError("another keeper runs: stop that one first")

    def expected_rules(self) -> list[RuleSeen]:
        """Give our rules, in both families."""
        phase = self.wanted.phase
        device = phase.device if isinstance(phase, Connected) else ""
        versions = (4, 6) if sysctl.has_ipv6() else (4,)
        return [
            RuleSeen(
                version,
                rule.priority,
                rule.iif,
                rule.table,
                rule.suppress_group,
                proto=rule.proto,
            )
            for version in versions
            for rule in routes.rules(device)
        ]

    def foreign_rules(self) -> list[tuple[RuleSeen, bytes]]:
        """Give the rules of others that are asked before our last."""
        ours = set(self.expected_rules())
        limit = routes.PRIORITY_DENY + 1
        found = self.rtnl.outranking(limit)
        return [(rule, body) for rule, body in found if rule not in ours]

    def missing_accepts(self) -> bool:
        """Tell whether the agent's chains have not what `wanted` needs."""
        accepts = list(
            firewall.agent_accepts(self.wanted.phase, self.wanted.resolver)
        )
        for table in _AGENT_TABLES:
            if not self._has_agent_chain(table):
                continue
            needed = sum(name == table for name, _ in accepts)
            found = self.nft.commented(table, _AGENT_CHAIN, firewall.COMMENT)
            if len(found) != needed:
                return True
        return False

    def missing_rules(self) -> list[RuleSeen]:
        """Give those of our rules that the kernel has not."""
        seen = set(self.rtnl.rules())
        return [rule for rule in self.expected_rules() if rule not in seen]

    def expected_routes(self) -> set[RouteSeen]:
        """Give the whole content of our table. OsRefusedError: no device."""
        found = set()
        for route in routes.routes(self.wanted.phase, self.wanted.destinations):
            version = route.destination.version
            if version == 6 and not sysctl.has_ipv6():
                continue
            metric = route.metric or (_METRIC6 if version == 6 else 0)
            index = self._index(route.device) if route.device else 0
            found.add(RouteSeen(route.destination, index, metric))
        return found

    def routing_differs(self) -> bool:
        """Tell whether rules or routes of ours are not as they have to be."""
        there = {route for route, _ in self.rtnl.routes(routes.TABLE)}
        return bool(self.missing_rules()) or there != self.expected_routes()

    def uplink_addresses(self) -> list[Address]:
        """Give the uplink's own addresses; none when it is away."""
        link = self.rtnl.link(self.uplink_name)
        if link is None:
            return []
        found = self.rtnl.addresses(link.index)
        return sorted((each.ip for each in found), key=str)

    # --- making it so

    def apply(self, wanted: Wanted) -> None:
        """Go to a state. OsRefusedError: it is closed now instead."""
        closing = wanted.openness < self.wanted.openness
        self.wanted = wanted
        try:
            self._apply(closing=closing)
        except OsRefusedError:
            self.close_hard()
            raise

    def reset(self) -> None:
        """Make every layer anew, closed. OsRefusedError."""
        with contextlib.suppress(OsRefusedError):
            self.nft.load(firewall.OWNER_PROBE)
            self.owns = True
        self.trust(self.generation())
        self.wanted = Wanted()
        try:
            self.repair_filter()
            self.apply_accepts()
            self.apply_routing()
            self.repair_uplink()
            self.apply_settings()
        except OsRefusedError:
            self.forwarding_off()
            raise

    def close_hard(self) -> None:
        """Close by making the filter anew; if that fails, stop forwarding."""
        final = self.wanted.phase == Blocked(final=True)
        self.wanted = Wanted(Blocked(final=final))
        try:
            self.repair_filter()
        except OsRefusedError:
            self.forwarding_off()
            raise
        for step in (self.apply_accepts, self.apply_routing, self.apply_uplink):
            # the filter is closed: the rest is told by the guardian
            with contextlib.suppress(OsRefusedError):
                step()

    def _apply(self, *, closing: bool) -> None:
        if closing:
            self.apply_filter()
            self.apply_accepts()
            self.apply_routing()
            self.apply_uplink()
        else:
            self.apply_uplink()
            self.apply_routing()
            self.apply_accepts()
            self.apply_filter()

    def apply_filter(self) -> None:
        """Bring the filter to the wanted phase; anew if others were there."""
        if not self.settled():
            self.repair_filter()
            return
        text = firewall.change(*self._state())
        self._load(text)
        self.loaded[FILTER] = text

    def repair_filter(self) -> None:
        """Make the filter anew in the wanted phase, whatever is there."""
        state = self._state()
        text = firewall.render(*state)
        self._load(firewall.owned(text) if self.owns else text)
        self.loaded[FILTER] = firewall.change(*state)

    def apply_accepts(self) -> None:
        """Keep the accepts that the agent's input chain needs; no others."""
        accepts = list(
            firewall.agent_accepts(self.wanted.phase, self.wanted.resolver)
        )
        for table in _AGENT_TABLES:
            if not self._has_agent_chain(table):
                continue
            old = self.nft.commented(table, _AGENT_CHAIN, firewall.COMMENT)
            text = "".join(
                f"delete rule {table} {_AGENT_CHAIN} handle {handle}\n"
                for handle in old
            ) + "".join(command for name, command in accepts if name == table)
            if text:
                self._load(text)

    def apply_routing(self) -> None:
        """Put our rules and the content of our table in force."""
        wanted = self.expected_routes()
        for rule in sorted(self.missing_rules(), key=lambda r: -r.priority):
            self.rtnl.add_rule(rule)
        there = self.rtnl.routes(routes.TABLE)
        for route, body in there:
            if route not in wanted:
                self.rtnl.delete_route(body)
        missing = wanted - {route for route, _ in there}
        for route in sorted(missing, key=lambda r: r.index):
            self.rtnl.replace_route(
                routes.TABLE, route.destination, route.index, route.metric
            )

    def apply_uplink(self) -> None:
        """Bring the uplink's filter to the wanted phase, as `apply_filter`.

        A change that changes nothing makes no generation, and one of others
        could be taken for it: it is not made.
        """
        there = self.nft.list_table(uplink.TABLE) is not None
        if not (there and self.settled()):
            self.repair_uplink()
            return
        text = uplink.change(*self._state())
        if text != self.loaded[UPLINK]:
            self._load(text)
            self.loaded[UPLINK] = text

    def repair_uplink(self) -> None:
        """Make the filter of the uplink anew, whatever is there.

        A kernel that wants the device first has nothing to filter while it
        is away, and nothing can be opened then.
        """
        state = self._state()
        self.loaded[UPLINK] = ""
        try:
            self._load(uplink.render(*state))
            self.loaded[UPLINK] = uplink.change(*state)
        except OsRefusedError:
            away = self.rtnl.link(self.uplink_name) is None
            if not away or self.wanted.openness:
                raise

    def apply_settings(self) -> list[str]:
        """Put the kernel settings in force; name those that were not."""
        changed = []
        for path, value in sysctls.SETTINGS:
            for name in sysctl.wrong(path, value):
                sysctl.write(name, value)
                changed.append(name)
        return changed

    def set_uplink_ipv6(self, *, wanted: bool) -> None:
        """Have IPv6 on the uplink only if an endpoint needs it."""
        path = sysctls.disable_ipv6(self.uplink_name)
        value = 0 if wanted else 1
        if sysctl.wrong(path, value):
            sysctl.write(path, value)

    @property
    def stopped(self) -> bool:
        """Tell whether all forwarding is off because of us."""
        return self._forwarding.stopped

    def forwarding_off(self) -> None:
        """Stop all forwarding: the last thing that can be done."""
        self._forwarding.off()
        # clearing ip_forward has set accept_redirects
        with contextlib.suppress(OsRefusedError):
            self.apply_settings()

    def forwarding_on(self) -> None:
        """Give back the forwarding that `forwarding_off` took."""
        self._forwarding.on()
        self.apply_settings()

    def forget_connections(self) -> None:
        """Delete what conntrack knows: nothing goes on under old rules."""
        if self._conntrack is None:
            self._conntrack = Conntrack()
        self._conntrack.flush()

    def _state(self) -> tuple[Phase, list[Address], Endpoint | None]:
        wanted = self.wanted
        return wanted.phase, self.uplink_addresses(), wanted.resolver

    def generation(self) -> int:
        """Give the ruleset's generation, to `trust` what is seen after it."""
        return self._generations.current()

    def trust(self, generation: int) -> None:
        """Take all that others did up to here as looked at, or made anew."""
        self._known = generation

    def settled(self) -> bool:
        """Tell whether nobody made a transaction that was not looked at."""
        return self.generation() == self._known

    def _load(self, text: str) -> None:
        before = self.generation()
        self.nft.load(self._defines + text)
        # one transaction, one generation: any other number stays unknown
        if before == self._known and self.generation() == before + 1:
            self._known = before + 1

    def _has_agent_chain(self, table: str) -> bool:
        items = self.nft.list_table(table) or ()
        chains = [item["chain"]["name"] for item in items if "chain" in item]
        return _AGENT_CHAIN in chains

    def _index(self, device: str) -> int:
        link = self.rtnl.link(device)
        if link is None:
            raise OsRefusedError(f"device {device} is not there")
        return link.index
