"""Links, addresses, routes and rules, by rtnetlink.

Every change is idempotent: what is there already, or gone already, is no
error. Source: rtnetlink(7), linux/if_link.h, linux/fib_rules.h.
"""

import errno
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import Final, TypeAlias

from qubes_vpn.system import sysctl
from qubes_vpn.system.netlink import (
    NETLINK_ROUTE,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Attribute,
    NetlinkError,
    NetlinkSocket,
    attributes,
    nested,
    parse,
    read_text,
    read_u32,
    text,
    u32,
)

Address: TypeAlias = IPv4Address | IPv6Address
Interface: TypeAlias = IPv4Interface | IPv6Interface
Network: TypeAlias = IPv4Network | IPv6Network

# RTNLGRP_*: links; addresses, routes, settings and rules of both families.
GROUPS: Final = (1, 5, 7, 8, 9, 11, 19, 24, 25)

_NEWLINK, _DELLINK, _GETLINK = 16, 17, 18
_NEWADDR, _DELADDR, _GETADDR = 20, 21, 22
_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWRULE, _DELRULE, _GETRULE = 32, 33, 34
_LINK: Final = struct.Struct("=BxHiII")
_ADDR: Final = struct.Struct("=BBBBi")
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_RULE: Final = struct.Struct("=BBBBBBBBI")
_IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO = 3, 4, 18
_IFLA_TXQLEN, _IFLA_GROUP = 13, 27
_IFLA_INFO_KIND: Final = 1
_IFLA_INFO_DATA: Final = 2
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NODAD: Final = 0x02
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_TABLE = 1, 4, 5, 6, 15
_RTN_UNICAST, _RTN_UNREACHABLE = 1, 7
# What `ip` says of itself: the same as the routes of the boot script.
_RTPROT_BOOT: Final = 3
_RT_SCOPE_LINK: Final = 253
_RTNH_F_ONLINK: Final = 4
_FRA_DST, _FRA_SRC, _FRA_IIFNAME, _FRA_PRIORITY = 1, 2, 3, 6
_FRA_FWMARK: Final = 10
_FRA_IP_PROTO: Final = 22
_FRA_SUPPRESS_IFGROUP, _FRA_TABLE, _FRA_OIFNAME = 13, 15, 17
_FR_ACT_TO_TBL, _FR_ACT_UNREACHABLE = 1, 7
_FIB_RULE_INVERT: Final = 0x2
_LOCAL_PRIORITY, _LOCAL = 0, 255
_IFF_UP: Final = 1
_NONE: Final = 0xFFFFFFFF
_RT_CLASS: Final = {socket.AF_INET: 4, socket.AF_INET6: 6}


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


class Events:
    """Hears of every change of links, addresses, routes and rules."""

    def __init__(self) -> None:
        self._sock = NetlinkSocket(NETLINK_ROUTE, GROUPS)

    def fileno(self) -> int:
        """Give the descriptor to watch."""
        return self._sock.fileno()

    def receive(self) -> int:
        """Take what is there; how many. OsRefusedError: lost some."""
        return len(self._sock.receive())


class Rtnl:
    """One rtnetlink socket for requests."""

    def __init__(self) -> None:
        self._sock = NetlinkSocket(NETLINK_ROUTE)
        self.port = self._sock.port

    # --- links

    def link(self, name: str) -> Link | None:
        """Give the device of this name, or None."""
        request = _LINK.pack(0, 0, 0, 0, 0)
        request += attributes([(_IFLA_IFNAME, text(name))])
        try:
            found = self._sock.get(f"device {name}", _GETLINK, request)
        except NetlinkError as error:
            if error.number == errno.ENODEV:
                return None
            raise
        return _read_link(found[0][1])

    def add_link(
        self, name: str, kind: str, data: Iterable[Attribute] = ()
    ) -> None:
        """Make a device of a kind. data: what its driver wants to know."""
        info = [(_IFLA_INFO_KIND, text(kind))]
        given = list(data)
        if given:
            info.append(nested(_IFLA_INFO_DATA, given))
        request = _LINK.pack(0, 0, 0, 0, 0) + attributes(
            [(_IFLA_IFNAME, text(name)), nested(_IFLA_LINKINFO, info)]
        )
        flags = NLM_F_CREATE | NLM_F_EXCL
        self._sock.request(f"make {name}", _NEWLINK, request, flags)

    def set_link(
        self, link: Link, *, up: bool, mtu: int = 0, group: int = 0
    ) -> None:
        """Bring a device up or down; mtu 0: as it is."""
        items: list[Attribute] = [(_IFLA_GROUP, u32(group))]
        if mtu:
            items.append((_IFLA_MTU, u32(mtu)))
        flags = _IFF_UP if up else 0
        request = _LINK.pack(0, 0, link.index, flags, _IFF_UP)
        what = f"set {link.name}"
        self._sock.request(what, _NEWLINK, request + attributes(items))

    def delete_link(self, name: str) -> None:
        """Delete a device, if it is there."""
        link = self.link(name)
        if link is not None:
            request = _LINK.pack(0, 0, link.index, 0, 0)
            self._lenient(f"delete {name}", _DELLINK, request, errno.ENODEV)

    # --- addresses

    def addresses(self, index: int) -> set[Interface]:
        """Give a device's addresses with their prefixes."""
        found: set[Interface] = set()
        request = _ADDR.pack(0, 0, 0, 0, 0)
        for _, body in self._sock.dump("addresses", _GETADDR, request):
            _, prefix, _, _, owner = _ADDR.unpack_from(body)
            if owner == index:
                items = parse(body[_ADDR.size :])
                raw = items.get(_IFA_LOCAL) or items[_IFA_ADDRESS]
                found.add(ip_interface((raw, prefix)))
        return found

    def add_address(self, index: int, address: Interface) -> None:
        """Add an address to a device, without asking the neighbours."""
        request = _address(index, address)
        request += attributes([(_IFA_FLAGS, u32(_IFA_F_NODAD))])
        flags = NLM_F_CREATE | NLM_F_REPLACE
        self._sock.request(f"address {address}", _NEWADDR, request, flags)

    def delete_address(self, index: int, address: Interface) -> None:
        """Take an address from a device."""
        self._lenient(
            f"address {address}",
            _DELADDR,
            _address(index, address),
            errno.EADDRNOTAVAIL,
        )

    # --- routes

    def routes(self, table: int) -> list[tuple[RouteSeen, bytes]]:
        """Give the routes of one table, each with what deletes it."""
        found: list[tuple[RouteSeen, bytes]] = []
        for family in _families():
            request = _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            request += attributes([(_RTA_TABLE, u32(table))])
            try:
                seen = self._sock.dump("routes", _GETROUTE, request)
            except NetlinkError as error:
                if error.number == errno.ENOENT:  # no such table yet
                    continue
                raise
            found.extend(_read_routes(seen, family, table))
        return found

    def replace_route(
        self,
        table: int,
        destination: Network,
        index: int,
        metric: int,
        gateway: Address | None = None,
    ) -> None:
        """Set a route into device `index`, or (0) an unreachable one."""
        request = _route(table, destination, index, metric, gateway)
        flags = NLM_F_CREATE | NLM_F_REPLACE
        self._sock.request(f"route {destination}", _NEWROUTE, request, flags)

    def lookup(self, address: Address) -> tuple[int, Address | None]:
        """Give the device and the gateway that a packet of ours takes."""
        bits = address.max_prefixlen
        request = _ROUTE.pack(
            _family(address.version), bits, 0, 0, 0, 0, 0, 0, 0
        ) + attributes([(_RTA_DST, address.packed)])
        body = self._sock.get(f"route to {address}", _GETROUTE, request)[0][1]
        items = parse(body[_ROUTE.size :])
        raw = items.get(_RTA_GATEWAY)
        index = read_u32(items.get(_RTA_OIF, u32(0)))
        return index, ip_address(raw) if raw else None

    def delete_route(self, body: bytes) -> None:
        """Take a route away that `routes` gave."""
        self._lenient("route", _DELROUTE, body, errno.ESRCH)

    # --- rules

    def rules(self) -> list[RuleSeen]:
        """Give the policy rules of both families, in their order."""
        found: list[RuleSeen] = []
        for family in _families():
            request = _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            found.extend(
                _read_rule(body)
                for _, body in self._sock.dump("rules", _GETRULE, request)
            )
        return found

    def outranking(self, limit: int) -> list[tuple[RuleSeen, bytes]]:
        """Give the rules before `limit`, each with what deletes it.

        The kernel's own first one, to the table local, is not among them.
        """
        found = []
        for family in _families():
            request = _RULE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            for _, body in self._sock.dump("rules", _GETRULE, request):
                rule = _read_rule(body)
                own = RuleSeen(rule.version, _LOCAL_PRIORITY, table=_LOCAL)
                if rule.priority < limit and rule != own:
                    found.append((rule, body))
        return found

    def delete_rule_as_seen(self, body: bytes) -> None:
        """Take a rule away that `outranking` gave."""
        self._lenient("rule", _DELRULE, body, errno.ENOENT)

    def add_rule(self, rule: RuleSeen) -> None:
        """Add a rule."""
        flags = NLM_F_CREATE | NLM_F_EXCL
        self._lenient(
            f"rule {rule.priority}",
            _NEWRULE,
            _rule(rule),
            errno.EEXIST,
            flags,
        )

    def delete_rule(self, rule: RuleSeen) -> None:
        """Take a rule away."""
        what = f"rule {rule.priority}"
        self._lenient(what, _DELRULE, _rule(rule), errno.ENOENT)

    def _lenient(
        self, what: str, kind: int, request: bytes, fine: int, flags: int = 0
    ) -> None:
        try:
            self._sock.request(what, kind, request, flags)
        except NetlinkError as error:
            if error.number != fine:
                raise


def _families() -> Iterator[int]:
    yield socket.AF_INET
    if sysctl.has_ipv6():
        yield socket.AF_INET6


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


def _read_link(body: bytes) -> Link:
    _, _, index, flags, _ = _LINK.unpack_from(body)
    items = parse(body[_LINK.size :])
    return Link(
        index,
        read_text(items[_IFLA_IFNAME]),
        bool(flags & _IFF_UP),
        read_u32(items[_IFLA_MTU]),
        read_u32(items.get(_IFLA_GROUP, u32(0))),
    )


def _address(index: int, address: Interface) -> bytes:
    family = _family(address.version)
    prefix = address.network.prefixlen
    packed = address.ip.packed
    return _ADDR.pack(family, prefix, 0, 0, index) + attributes(
        [(_IFA_LOCAL, packed), (_IFA_ADDRESS, packed)]
    )


def _route(
    table: int,
    destination: Network,
    index: int,
    metric: int,
    gateway: Address | None,
) -> bytes:
    kind = _RTN_UNICAST if index else _RTN_UNREACHABLE
    on_link = index and not gateway and destination.version == 4
    request = _ROUTE.pack(
        _family(destination.version),
        destination.prefixlen,
        0,
        0,
        0,
        _RTPROT_BOOT,
        _RT_SCOPE_LINK if on_link else 0,
        kind,
        _RTNH_F_ONLINK if gateway else 0,
    )
    items = [(_RTA_TABLE, u32(table)), (_RTA_PRIORITY, u32(metric))]
    if destination.prefixlen:
        items.append((_RTA_DST, destination.network_address.packed))
    if index:
        items.append((_RTA_OIF, u32(index)))
    if gateway:
        items.append((_RTA_GATEWAY, gateway.packed))
    return request + attributes(items)


def _read_routes(
    seen: list[tuple[int, bytes]], family: int, table: int
) -> Iterator[tuple[RouteSeen, bytes]]:
    for _, body in seen:
        header = _ROUTE.unpack_from(body)
        prefix, kind = header[1], header[7]
        items = parse(body[_ROUTE.size :])
        if read_u32(items.get(_RTA_TABLE, u32(header[4]))) != table:
            continue
        raw = items.get(_RTA_DST, bytes(4 if family == socket.AF_INET else 16))
        index = read_u32(items.get(_RTA_OIF, u32(0)))
        route = RouteSeen(
            ip_network((raw, prefix)),
            # IPv6 says lo for an unreachable one
            index if kind == _RTN_UNICAST else 0,
            read_u32(items.get(_RTA_PRIORITY, u32(0))),
            other=kind not in (_RTN_UNICAST, _RTN_UNREACHABLE)
            or _RTA_GATEWAY in items
            # several next hops: ours has one device, or none at all
            or (kind == _RTN_UNICAST and _RTA_OIF not in items),
        )
        yield route, body


def _rule(rule: RuleSeen) -> bytes:
    action = _FR_ACT_TO_TBL if rule.table else _FR_ACT_UNREACHABLE
    request = _RULE.pack(_family(rule.version), 0, 0, 0, 0, 0, 0, action, 0)
    items = [(_FRA_PRIORITY, u32(rule.priority))]
    if rule.iif:
        items.append((_FRA_IIFNAME, text(rule.iif)))
    if rule.table:
        items.append((_FRA_TABLE, u32(rule.table)))
    if rule.proto:
        items.append((_FRA_IP_PROTO, bytes([rule.proto])))
    if rule.suppress_group >= 0:
        items.append((_FRA_SUPPRESS_IFGROUP, u32(rule.suppress_group)))
    return request + attributes(items)


_PLAIN_RULE: Final = frozenset(
    {
        _FRA_IIFNAME,
        _FRA_PRIORITY,
        _FRA_TABLE,
        _FRA_SUPPRESS_IFGROUP,
        _FRA_IP_PROTO,
        14,  # FRA_SUPPRESS_PREFIXLEN, told below
        19,  # FRA_L3MDEV, told below
        21,  # FRA_PROTOCOL: who added it, no selector
    }
)


def _read_rule(body: bytes) -> RuleSeen:
    header = _RULE.unpack_from(body)
    items = parse(body[_RULE.size :])
    action, flags = header[7], header[8]
    group = read_u32(items.get(_FRA_SUPPRESS_IFGROUP, u32(_NONE)))
    prefix = read_u32(items.get(14, u32(_NONE)))
    return RuleSeen(
        version=4 if header[0] == socket.AF_INET else 6,
        priority=read_u32(items.get(_FRA_PRIORITY, u32(0))),
        iif=read_text(items.get(_FRA_IIFNAME, b"")),
        table=read_u32(items.get(_FRA_TABLE, u32(header[4])))
        if action == _FR_ACT_TO_TBL
        else 0,
        suppress_group=-1 if group == _NONE else group,
        proto=items.get(_FRA_IP_PROTO, b"\0")[0],
        other=(
            action not in (_FR_ACT_TO_TBL, _FR_ACT_UNREACHABLE)
            or bool(flags & _FIB_RULE_INVERT)
            or prefix != _NONE
            or any(items.get(19, b""))
            or bool(items.keys() - _PLAIN_RULE)
        ),
    )
