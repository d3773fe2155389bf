"""What rtnetlink's messages say of links, addresses, routes and rules.

Source: rtnetlink(7), linux/if_link.h, linux/fib_rules.h.
"""

import socket
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_network,
)
from typing import Final, TypeAlias

from qubes_vpn.system.netlink import Attribute, message
from qubes_vpn.system.pyroute import (
    fibmsg,
    ifaddrmsg,
    ifinfmsg,
    netlink,
    rtmsg,
    rtnl,
)

Address: TypeAlias = IPv4Address | IPv6Address
Interface: TypeAlias = IPv4Interface | IPv6Interface
Network: TypeAlias = IPv4Network | IPv6Network

_UNICAST: Final = rtnl.rt_type["unicast"]
_UNREACHABLE: Final = rtnl.rt_type["unreachable"]
# What `ip` says of itself: the same as the routes of the boot script.
_BOOT: Final = rtnl.rt_proto["boot"]
_LINK_SCOPE: Final = rtnl.rt_scope["link"]
_FIB_RULE_INVERT: Final = 0x2
_NONE: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Link:
    """A network device. group: 1 uplink, 2 vif, in Qubes."""

    index: int
    name: str
    up: bool
    mtu: int
    group: int


@dataclass(frozen=True, slots=True)
class RuleSeen:
    """A policy rule as the kernel has it; table 0: unreachable.

    other: it has a selector or an action that ours never have.
    """

    version: int
    priority: int
    iif: str = ""
    table: int = 0
    suppress_group: int = -1
    other: bool = False
    proto: int = 0


@dataclass(frozen=True, slots=True)
class RouteSeen:
    """A route of one table; index 0: unreachable.

    other: it is of a kind that ours never are.
    """

    destination: Network
    index: int = 0
    metric: int = 0
    other: bool = False


def family_of(version: int) -> int:
    """Give the address family of an IP version."""
    return socket.AF_INET if version == 4 else socket.AF_INET6


def read_link(seen: netlink.nlmsg) -> Link:
    """Read a device from an ifinfmsg."""
    return Link(
        seen["index"],
        seen.get_attr("IFLA_IFNAME"),
        bool(seen["flags"] & ifinfmsg.IFF_UP),
        seen.get_attr("IFLA_MTU"),
        seen.get_attr("IFLA_GROUP", 0),
    )


def write_address(
    index: int, address: Interface, *more: Attribute
) -> netlink.nlmsg:
    """Write an address of a device as an ifaddrmsg."""
    own = str(address.ip)
    return message(
        ifaddrmsg.ifaddrmsg,
        [("IFA_LOCAL", own), ("IFA_ADDRESS", own), *more],
        family=family_of(address.version),
        prefixlen=address.network.prefixlen,
        index=index,
    )


def write_route(
    table: int,
    destination: Network,
    index: int,
    metric: int,
    gateway: Address | None,
) -> netlink.nlmsg:
    """Write a route as an rtmsg; index 0: an unreachable one."""
    items: list[Attribute] = [("RTA_TABLE", table), ("RTA_PRIORITY", metric)]
    if destination.prefixlen:
        items.append(("RTA_DST", str(destination.network_address)))
    if index:
        items.append(("RTA_OIF", index))
    if gateway:
        items.append(("RTA_GATEWAY", str(gateway)))
    on_link = index and not gateway and destination.version == 4
    return message(
        rtmsg.rtmsg,
        items,
        family=family_of(destination.version),
        dst_len=destination.prefixlen,
        proto=_BOOT,
        scope=_LINK_SCOPE if on_link else 0,
        type=_UNICAST if index else _UNREACHABLE,
        flags=rtmsg.RTNH_F_ONLINK if gateway else 0,
    )


def read_route(seen: netlink.nlmsg) -> RouteSeen:
    """Read a route from an rtmsg."""
    kind = seen["type"]
    nowhere = bytes(4 if seen["family"] == socket.AF_INET else 16)
    start = seen.get_attr("RTA_DST", nowhere)
    index = seen.get_attr("RTA_OIF", 0)
    return RouteSeen(
        ip_network((start, seen["dst_len"])),
        # IPv6 says lo for an unreachable one
        index if kind == _UNICAST else 0,
        seen.get_attr("RTA_PRIORITY", 0),
        other=kind not in (_UNICAST, _UNREACHABLE)
        or seen.get_attr("RTA_GATEWAY") is not None
        # several next hops: ours has one device, or none at all
        or (kind == _UNICAST and not index),
    )


def write_rule(rule: RuleSeen) -> netlink.nlmsg:
    """Write a rule as a fibmsg."""
    items: list[Attribute] = [("FRA_PRIORITY", rule.priority)]
    if rule.iif:
        items.append(("FRA_IIFNAME", rule.iif))
    if rule.table:
        items.append(("FRA_TABLE", rule.table))
    if rule.proto:
        items.append(("FRA_IP_PROTO", rule.proto))
    if rule.suppress_group >= 0:
        items.append(("FRA_SUPPRESS_IFGROUP", rule.suppress_group))
    return message(
        fibmsg.fibmsg,
        items,
        family=family_of(rule.version),
        action=fibmsg.FR_ACT_TO_TBL
        if rule.table
        else fibmsg.FR_ACT_UNREACHABLE,
    )


_PLAIN_RULE: Final = frozenset(
    {
        "FRA_IIFNAME",
        "FRA_PRIORITY",
        "FRA_TABLE",
        "FRA_SUPPRESS_IFGROUP",
        "FRA_SUPPRESS_PREFIXLEN",  # told below
        "FRA_L3MDEV",  # told below
        "FRA_IP_PROTO",
        "FRA_PROTOCOL",  # who added it, no selector
    }
)


def read_rule(seen: netlink.nlmsg) -> RuleSeen:
    """Read a rule from a fibmsg."""
    action = seen["action"]
    group = seen.get_attr("FRA_SUPPRESS_IFGROUP", _NONE)
    prefix = seen.get_attr("FRA_SUPPRESS_PREFIXLEN", _NONE)
    names = {attribute[0] for attribute in seen["attrs"]}
    return RuleSeen(
        version=4 if seen["family"] == socket.AF_INET else 6,
        priority=seen.get_attr("FRA_PRIORITY", 0),
        iif=seen.get_attr("FRA_IIFNAME", ""),
        table=seen.get_attr("FRA_TABLE", seen["table"])
        if action == fibmsg.FR_ACT_TO_TBL
        else 0,
        suppress_group=-1 if group == _NONE else group,
        proto=seen.get_attr("FRA_IP_PROTO", 0),
        other=(
            action not in (fibmsg.FR_ACT_TO_TBL, fibmsg.FR_ACT_UNREACHABLE)
            or bool(seen["flags"] & _FIB_RULE_INVERT)
            or prefix != _NONE
            or bool(seen.get_attr("FRA_L3MDEV", 0))
            or bool(names - _PLAIN_RULE)
        ),
    )
