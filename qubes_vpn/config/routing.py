"""What goes into the tunnel: our addresses, routes, and resolvers.

Whatever a server says, Qubes' own ranges stay out, and what it does not
carry is not sent to it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Interface,
    ip_address,
    ip_network,
)
from typing import Any, Final

from qubes_vpn.config.model import TunnelRoute
from qubes_vpn.config.push import Push
from qubes_vpn.config.tunnel import (
    DNS_MAX,
    ROUTES_MAX,
    TOPOLOGIES,
    DnsOptions,
    Network,
    is_usable,
    routes,
)
from qubes_vpn.config.values import Address, netmask
from qubes_vpn.errors import SessionError

SPECIFIC: Final = {4: 16, 6: 48}  # prefix lengths, from this one on
DEFAULT_HALF: Final = 1  # 0.0.0.0/1 and 128.0.0.0/1 are a default route
QUBES: Final[tuple[Network, ...]] = tuple(
    ip_network(text)
    for text in (
        "10.137.0.0/16",
        "10.138.0.0/16",
        "10.139.1.0/24",
        "fd09:24ef:4179::/48",
    )
)
PROTECTED: Final = QUBES + tuple(
    ip_network(text)
    for text in (
        "0.0.0.0/8",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "224.0.0.0/3",
        "::/127",
        "fe80::/10",
        "ff00::/8",
    )
)


@dataclass(frozen=True, slots=True)
class Outside:
    """What of the outer network no route may take: server and gateway."""

    endpoint: Address | None = None
    gateway: Address | None = None

    def refusal(self, network: Network) -> str:
        """Say why this destination is refused, or nothing."""
        for one in PROTECTED:
            if network.version == one.version and network.subnet_of(one):  # type: ignore[arg-type]
                return f"lies in {one}, which stays outside the tunnel"
        # A large block that holds them is meant for what else is in it.
        if network.prefixlen < SPECIFIC[network.version]:
            return ""
        if self.gateway is not None and self.gateway in network:
            return "covers the gateway's own address"
        if self.endpoint is not None and self.endpoint in network:
            return "covers the server's own address"
        return ""


def addresses(push: Push) -> dict[str, Any]:
    """Give the settings that are addresses of our own.

    Raises SessionError "address", see _check_own.
    """
    topology = push.value("topology", "") or push.profile.topology
    if topology not in TOPOLOGIES:
        if topology:
            push.refuse("topology", "unknown")
        topology = "net30"
    four = _ifconfig4(push, topology)
    return {
        "topology": topology,
        "ifconfig4": four[0] if four else None,
        "peer4": four[1] if four else None,
        "ifconfig6": _ifconfig6(push),
    }


def _ifconfig4(
    push: Push, topology: str
) -> tuple[IPv4Interface, IPv4Address | None] | None:
    item = push.last("ifconfig")
    words = tuple(map(str, item.values)) if item else push.profile.ifconfig
    if words is None:
        return None
    try:
        local = IPv4Address(words[0])
        is_mask = words[1].startswith("255.")
        if topology == "subnet" or is_mask:
            interface = IPv4Interface((local, netmask(words[1])))
            peer = None
        else:
            interface = IPv4Interface(local)
            peer = IPv4Address(words[1])
        _check_own(interface)
    except ValueError as error:
        push.refuse("ifconfig", str(error))
        return None
    return interface, peer


def _ifconfig6(push: Push) -> IPv6Interface | None:
    item = push.last("ifconfig-ipv6")
    own = push.profile.ifconfig6
    if item is None and own is None:
        return None
    try:
        interface = (
            item.values[0] if item else IPv6Interface(own[0] if own else "")
        )
        _check_own(interface)
    except ValueError as error:
        push.refuse("ifconfig-ipv6", str(error))
        return None
    assert isinstance(interface, IPv6Interface)
    return interface


def routing(
    push: Push, own: dict[str, Any], outside: Outside
) -> dict[str, Any]:
    """Give the settings that say what goes into the tunnel."""
    four: IPv4Interface | None = own["ifconfig4"]
    six: IPv6Interface | None = own["ifconfig6"]
    families = {4} if four else set()
    families |= {6} if six else set()
    carried = _carried(push, outside, families)
    default4, default6 = _defaults(push, carried, families)
    blocked6 = push.profile.block_ipv6 or bool(push.last("block-ipv6"))
    default6 = default6 and not blocked6
    dns, search = _dns(push, families - ({6} if blocked6 else set()))
    kept = {
        one.network: one
        for one in carried
        if not (blocked6 and one.network.version == 6)
    }
    for network in _neighbours(four, own["peer4"], six):
        if not (blocked6 and network.version == 6):
            kept.setdefault(network, TunnelRoute(network))
    for address in dns:
        if not (default4 if address.version == 4 else default6):
            host = ip_network(address)
            kept.setdefault(host, TunnelRoute(host))
    return {
        "routes": tuple(kept.values()),
        "default4": default4,
        "default6": default6,
        "dns": dns,
        "search": search,
        "block_ipv4": four is None,
        "block_ipv6": blocked6,
    }


def _carried(
    push: Push, outside: Outside, families: set[int]
) -> list[TunnelRoute]:
    """Give the destinations that profile and server say it carries."""
    pushed = routes(
        push.all("route"),
        push.all("route-ipv6"),
        push.value("route-metric", 0),
        push.refuse_item,
    )
    found: list[TunnelRoute] = []
    for network, gateway, metric in (*push.profile.routes, *pushed):
        reason = outside.refusal(network)
        if not reason and network.version not in families:
            reason = f"the tunnel has no IPv{network.version} address"
        if not reason and len(found) >= ROUTES_MAX:
            reason = f"over {ROUTES_MAX} routes"
        if reason:
            push.refuse(f"route {network} {gateway}".rstrip(), reason)
        else:
            found.append(TunnelRoute(network, metric))
    return found


def _defaults(
    push: Push, carried: list[TunnelRoute], families: set[int]
) -> tuple[bool, bool]:
    """Say for IPv4 and IPv6 whether the server carries everything.

    It does when it, or the profile, says so, and also when neither
    names any route: the default route always leads into the tunnel.
    """
    flags: set[str] | None = None
    if push.profile.redirect_gateway is not None:
        flags = set(push.profile.redirect_gateway)
    for item in push.all("redirect-gateway"):
        flags = (flags or set()) | set(item.values)
    out = []
    for version, wanted in (
        (4, flags is not None and "!ipv4" not in flags),
        (6, flags is not None and "ipv6" in flags),
    ):
        own = [r.network for r in carried if r.network.version == version]
        excluded = version == 4 and flags is not None and not wanted
        everything = wanted or covers_all(own) or not (own or excluded)
        out.append(everything and version in families)
    return out[0], out[1]


def _dns(
    push: Push, families: set[int]
) -> tuple[tuple[Address, ...], tuple[str, ...]]:
    options = DnsOptions(push.refuse_item, push.refuse_item)
    for item in push.all("dhcp-option", "dns"):
        options.add(item)
    own = (ip_address(text) for text in push.profile.dns)
    found: list[Address] = []
    for address in dict.fromkeys((*own, *options.resolvers)):
        reason = Outside().refusal(ip_network(address))
        if not reason and address.version not in families:
            reason = f"the tunnel carries no IPv{address.version}"
        if reason:
            push.refuse(f"dns {address}", reason)
        else:
            found.append(address)
    search = dict.fromkeys((*push.profile.search, *options.search))
    return tuple(found[:DNS_MAX]), tuple(search)


def _neighbours(
    four: IPv4Interface | None,
    peer: IPv4Address | None,
    six: IPv6Interface | None,
) -> Iterable[Network]:
    """Give the networks that our own addresses are in."""
    if peer is not None:
        yield IPv4Network(peer)
    elif four is not None:
        yield four.network
    if six is not None:
        yield six.network


def covers_all(networks: list[Network]) -> bool:
    """Say whether these hold a default route, or both its halves."""
    if any(one.prefixlen == 0 for one in networks):
        return True
    halves = {one for one in networks if one.prefixlen == DEFAULT_HALF}
    return len(halves) == 2


def _check_own(interface: IPv4Interface | IPv6Interface) -> None:
    """Refuse an address of our own that is not one, or is one of Qubes'.

    Raises ValueError, and SessionError "address" for Qubes' ranges: with
    such an address on a device, packets of qubes would end there.
    """
    if not is_usable(interface.ip):
        message = f"{interface.ip} is not a host's address"
        raise ValueError(message)
    if not interface.network.prefixlen:
        message = "a network that is everything is nobody's"
        raise ValueError(message)
    for one in QUBES:
        if interface.version == one.version and interface.ip in one:
            detail = f"the server gave {interface.ip}, of Qubes' own {one}"
            raise SessionError("address", detail, "QV-152")
