"""Layer 2: routing that denies by default, and the tunnel's routes.

Whatever is forwarded knows only our table. It always ends in an unreachable
default; while connected it has the tunnel's. Nothing is keyed on a mark, so
no flush of nftables opens it, and new vifs are covered by themselves. The
same numbers are in lockdown/rules.batch.
"""

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final, TypeAlias

from qubes_vpn.policy.phase import Connected, Phase

Network: TypeAlias = IPv4Network | IPv6Network

TABLE: Final = 7078
MAIN: Final = 254
PRIORITY_ICMP: Final = 45
PRIORITY_ICMP_TUNNEL: Final = 46
PRIORITY_LOCAL: Final = 50
PRIORITY_RETURN: Final = 60
PRIORITY_TUNNEL: Final = 70
PRIORITY_DENY: Final = 71
# Worse than any other: it is reached when no other default is there.
METRIC_DENY: Final = 4278198272
UPLINK_GROUP: Final = 1
DEVICES: Final = ("tun-vpn", "ovpn-vpn")

# ICMP and ICMPv6, by their numbers.
ICMP: Final = (1, 58)

EVERYTHING: Final[tuple[Network, ...]] = (
    ip_network("0.0.0.0/0"),
    ip_network("::/0"),
)


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """One policy rule, of IPv4 and of IPv6 alike.

    table 0: unreachable. suppress_group: routes of it do not count.
    proto: of IP, 0 for any.
    """

    priority: int
    iif: str = ""
    table: int = 0
    suppress_group: int = -1
    proto: int = 0


@dataclass(frozen=True, slots=True)
class TableRoute:
    """One route of our table; device "" means unreachable."""

    destination: Network
    device: str = ""
    metric: int = 0


def rules(device: str = "") -> tuple[Rule, ...]:
    """Give the rules, also those for a tunnel device of another name.

    The kernel's own ICMP errors quote what they answer: they may go to a vif,
    or into the tunnel, and never by the uplink, whatever the filters hold.
    """
    names = [*DEVICES]
    if device and device not in names:
        names.append(device)
    return (
        *(
            Rule(PRIORITY_ICMP, "lo", MAIN, UPLINK_GROUP, proto)
            for proto in ICMP
        ),
        *(
            Rule(PRIORITY_ICMP_TUNNEL, "lo", TABLE, proto=proto)
            for proto in ICMP
        ),
        Rule(PRIORITY_LOCAL, iif="lo", table=MAIN),
        *(
            Rule(PRIORITY_RETURN, name, MAIN, suppress_group=UPLINK_GROUP)
            for name in names
        ),
        Rule(PRIORITY_TUNNEL, table=TABLE),
        Rule(PRIORITY_DENY),
    )


def routes(
    phase: Phase, destinations: tuple[TableRoute, ...] = ()
) -> tuple[TableRoute, ...]:
    """Give the whole content of our table in `phase`.

    destinations: the tunnel's own; the default into it is always there, so
    that what the server does not carry goes nowhere else.
    """
    found = [TableRoute(net, metric=METRIC_DENY) for net in EVERYTHING]
    if isinstance(phase, Connected):
        carried = {4: phase.ipv4, 6: phase.ipv6}
        found.extend(
            TableRoute(net, phase.device)
            for net in EVERYTHING
            if carried[net.version]
        )
        found.extend(
            route
            for route in destinations
            if carried[route.destination.version]
            and route.destination not in EVERYTHING
        )
    return tuple(dict.fromkeys(found))
