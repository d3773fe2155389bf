"""Links, addresses, routes and rules, by rtnetlink.

Every change is idempotent: what is there already, or gone already, is no
error. Source: rtnetlink(7), linux/if_link.h, linux/fib_rules.h.
"""

import errno
import socket
from collections.abc import Iterable, Iterator
from ipaddress import ip_address, ip_interface
from typing import Final

from qubes_vpn.system import rtnl_messages, sysctl
from qubes_vpn.system.netlink import (
    AsSeen,
    Attribute,
    NetlinkError,
    Notices,
    Requests,
    message,
    payload,
)
from qubes_vpn.system.pyroute import (
    fibmsg,
    ifaddrmsg,
    ifinfmsg,
    netlink,
    rtmsg,
    rtnl,
)
from qubes_vpn.system.rtnl_messages import (
    Address,
    Interface,
    Link,
    Network,
    RouteSeen,
    RuleSeen,
)

__all__ = [
    "Address",
    "Events",
    "Interface",
    "Link",
    "Network",
    "RouteSeen",
    "Rtnl",
    "RuleSeen",
]

# links; addresses, routes, settings and rules of both families
GROUPS: Final = (
    rtnl.RTNLGRP_LINK,
    rtnl.RTNLGRP_IPV4_IFADDR,
    rtnl.RTNLGRP_IPV4_ROUTE,
    rtnl.RTNLGRP_IPV4_RULE,
    rtnl.RTNLGRP_IPV4_NETCONF,
    rtnl.RTNLGRP_IPV6_IFADDR,
    rtnl.RTNLGRP_IPV6_ROUTE,
    rtnl.RTNLGRP_IPV6_RULE,
    rtnl.RTNLGRP_IPV6_NETCONF,
)
_ANSWERS: Final = {
    rtnl.RTM_NEWLINK: ifinfmsg.ifinfmsg,
    rtnl.RTM_NEWADDR: ifaddrmsg.ifaddrmsg,
    rtnl.RTM_NEWROUTE: rtmsg.rtmsg,
    rtnl.RTM_NEWRULE: fibmsg.fibmsg,
}
_LOCAL_PRIORITY, _LOCAL = 0, 255


class Events:
    """Hears of every change of links, addresses, routes and rules."""

    def __init__(self) -> None:
        self._sock = Notices(netlink.NETLINK_ROUTE, GROUPS)

    def fileno(self) -> int:
        """Give the descriptor to watch."""
        return self._sock.fileno()

    def close(self) -> None:
        """Hear no more."""
        self._sock.close()

    def receive(self) -> int:
        """Take what is there; how many. OsRefusedError: lost some."""
        return len(self._sock.receive())


class Rtnl:
    """One rtnetlink socket for requests."""

    def __init__(self) -> None:
        self._sock = Requests(netlink.NETLINK_ROUTE, _ANSWERS)

    def close(self) -> None:
        """Let go of the socket."""
        self._sock.close()

    # --- links

    def link(self, name: str) -> Link | None:
        """Give the device of this name, or None."""
        request = message(ifinfmsg.ifinfmsg, [("IFLA_IFNAME", name)])
        try:
            found = self._sock.get(f"device {name}", rtnl.RTM_GETLINK, request)
        except NetlinkError as error:
            if error.number == errno.ENODEV:
                return None
            raise
        return rtnl_messages.read_link(found)

    def add_link(
        self, name: str, kind: str, data: Iterable[Attribute] = ()
    ) -> None:
        """Make a device of a kind. data: what its driver wants to know."""
        info: list[Attribute] = [("IFLA_INFO_KIND", kind)]
        given = list(data)
        if given:
            info.append(("IFLA_INFO_DATA", {"attrs": given}))
        request = message(
            ifinfmsg.ifinfmsg,
            [("IFLA_IFNAME", name), ("IFLA_LINKINFO", {"attrs": info})],
        )
        flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
        self._sock.request(f"make {name}", rtnl.RTM_NEWLINK, request, flags)

    def set_link(
        self, link: Link, *, up: bool, mtu: int = 0, group: int = 0
    ) -> None:
        """Bring a device up or down; mtu 0: as it is."""
        items: list[Attribute] = [("IFLA_GROUP", group)]
        if mtu:
            items.append(("IFLA_MTU", mtu))
        flags = ifinfmsg.IFF_UP if up else 0
        request = message(
            ifinfmsg.ifinfmsg,
            items,
            index=link.index,
            flags=flags,
            change=ifinfmsg.IFF_UP,
        )
        self._sock.request(f"set {link.name}", rtnl.RTM_NEWLINK, request)

    def delete_link(self, name: str) -> None:
        """Delete a device, if it is there."""
        link = self.link(name)
        if link is not None:
            request = message(ifinfmsg.ifinfmsg, index=link.index)
            what = f"delete {name}"
            self._lenient(what, rtnl.RTM_DELLINK, request, errno.ENODEV)

    # --- addresses

    def addresses(self, index: int) -> set[Interface]:
        """Give a device's addresses with their prefixes."""
        found: set[Interface] = set()
        request = message(ifaddrmsg.ifaddrmsg, family=socket.AF_UNSPEC)
        for seen in self._sock.dump("addresses", rtnl.RTM_GETADDR, request):
            if seen["index"] == index:
                own = seen.get_attr("IFA_LOCAL")
                own = own or seen.get_attr("IFA_ADDRESS")
                found.add(ip_interface((own, seen["prefixlen"])))
        return found

    def add_address(self, index: int, address: Interface) -> None:
        """Add an address to a device, without asking the neighbours."""
        request = rtnl_messages.write_address(
            index, address, ("IFA_FLAGS", ifaddrmsg.IFA_F_NODAD)
        )
        what = f"address {address}"
        flags = netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE
        self._sock.request(what, rtnl.RTM_NEWADDR, request, flags)

    def delete_address(self, index: int, address: Interface) -> None:
        """Take an address from a device."""
        request = rtnl_messages.write_address(index, address)
        what = f"address {address}"
        self._lenient(what, rtnl.RTM_DELADDR, request, errno.EADDRNOTAVAIL)

    # --- routes

    def routes(self, table: int) -> list[tuple[RouteSeen, bytes]]:
        """Give the routes of one table, each with what deletes it."""
        found: list[tuple[RouteSeen, bytes]] = []
        for family in _families():
            request = message(
                rtmsg.rtmsg, [("RTA_TABLE", table)], family=family
            )
            try:
                seen = self._sock.dump("routes", rtnl.RTM_GETROUTE, request)
            except NetlinkError as error:
                if error.number == errno.ENOENT:  # no such table yet
                    continue
                raise
            found.extend(
                (rtnl_messages.read_route(each), payload(each))
                for each in seen
                if each.get_attr("RTA_TABLE", each["table"]) == table
            )
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
        request = rtnl_messages.write_route(
            table, destination, index, metric, gateway
        )
        what = f"route {destination}"
        flags = netlink.NLM_F_CREATE | netlink.NLM_F_REPLACE
        self._sock.request(what, rtnl.RTM_NEWROUTE, request, flags)

    def lookup(self, address: Address) -> tuple[int, Address | None]:
        """Give the device and the gateway that a packet of ours takes."""
        request = message(
            rtmsg.rtmsg,
            [("RTA_DST", str(address))],
            family=rtnl_messages.family_of(address.version),
            dst_len=address.max_prefixlen,
        )
        what = f"route to {address}"
        found = self._sock.get(what, rtnl.RTM_GETROUTE, request)
        gateway = found.get_attr("RTA_GATEWAY")
        index = found.get_attr("RTA_OIF", 0)
        return index, ip_address(gateway) if gateway else None

    def delete_route(self, body: bytes) -> None:
        """Take a route away that `routes` gave."""
        request = message(AsSeen, body=body)
        self._lenient("route", rtnl.RTM_DELROUTE, request, errno.ESRCH)

    # --- rules

    def rules(self) -> list[RuleSeen]:
        """Give the policy rules of both families, in their order."""
        return [rtnl_messages.read_rule(each) for each in self._dump_rules()]

    def outranking(self, limit: int) -> list[tuple[RuleSeen, bytes]]:
        """Give the rules before `limit`, each with what deletes it.

        The kernel's own first one, to the table local, is not among them.
        """
        found = []
        for each in self._dump_rules():
            rule = rtnl_messages.read_rule(each)
            own = RuleSeen(rule.version, _LOCAL_PRIORITY, table=_LOCAL)
            if rule.priority < limit and rule != own:
                found.append((rule, payload(each)))
        return found

    def _dump_rules(self) -> Iterator[netlink.nlmsg]:
        for family in _families():
            request = message(fibmsg.fibmsg, family=family)
            yield from self._sock.dump("rules", rtnl.RTM_GETRULE, request)

    def delete_rule_as_seen(self, body: bytes) -> None:
        """Take a rule away that `outranking` gave."""
        request = message(AsSeen, body=body)
        self._lenient("rule", rtnl.RTM_DELRULE, request, errno.ENOENT)

    def add_rule(self, rule: RuleSeen) -> None:
        """Add a rule."""
        what = f"rule {rule.priority}"
        flags = netlink.NLM_F_CREATE | netlink.NLM_F_EXCL
        kind = rtnl.RTM_NEWRULE
        self._lenient(
            what, kind, rtnl_messages.write_rule(rule), errno.EEXIST, flags
        )

    def _lenient(
        self,
        what: str,
        kind: int,
        request: netlink.nlmsg,
        fine: int,
        flags: int = 0,
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
