"""The bounds of what may be asked, checked once, on arrival.

Types are the codec's matter; here are values: ranges, sizes, characters.
"""

import re
from collections.abc import Iterable
from ipaddress import ip_network
from typing import Final

from qubes_vpn.errors import VpnError
from qubes_vpn.keeper import messages
from qubes_vpn.policy.phase import Address, Endpoint
from qubes_vpn.policy.routes import TableRoute

MTU: Final = range(576, 65536)
MTU6_MIN: Final = 1280
MSS: Final = range(88, 65496)
PORT: Final = range(1, 65536)
LPORT: Final = range(1024, 65536)
BUFFER_MAX: Final = 64 * 1024 * 1024
ADDRESSES_MAX: Final = 4
SEARCH_MAX: Final = 16
METRIC_MAX: Final = 0x7FFFFFFF
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DOMAIN: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
DOMAIN_MAX: Final = 253


class RequestRefusedError(VpnError):
    """A request will not be done. reason: the slug of Refused."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def require(condition: object, reason: str, detail: str = "") -> None:
    """Raise RequestRefusedError unless `condition` holds."""
    if not condition:
        raise RequestRefusedError(reason, detail)


def check_address(address: Address) -> None:
    """Refuse an address that cannot be a host to talk to."""
    special = (
        address.is_unspecified or address.is_multicast or address.is_loopback
    )
    require(not special, "bad-address", str(address))
    if address.version == 6:
        mapped = address.ipv4_mapped or address.scope_id
        require(not mapped, "bad-address", str(address))


def check_endpoints(endpoints: tuple[Endpoint, ...]) -> None:
    """Check SetEndpoints."""
    require(len(endpoints) <= messages.ENDPOINTS_MAX, "too-many-endpoints")
    for endpoint in endpoints:
        check_address(endpoint.address)
        require(endpoint.port in PORT, "bad-port", str(endpoint.port))


def check_link(request: messages.OpenLink, endpoints: int) -> None:
    """Check OpenLink against the number of endpoints known."""
    require(0 <= request.index < endpoints, "no-such-endpoint")
    _check_socket(request)


def check_relay(request: messages.OpenRelay) -> None:
    """Check OpenRelay."""
    require(request.port in PORT, "bad-port", str(request.port))
    _check_socket(request)


def _check_socket(request: messages.OpenLink | messages.OpenRelay) -> None:
    lport = request.lport
    require(not lport or lport in LPORT, "bad-lport", str(lport))
    for size in (request.sndbuf, request.rcvbuf):
        require(0 <= size <= BUFFER_MAX, "bad-buffer", str(size))


def check_configure(
    request: messages.Configure, device: str
) -> tuple[TableRoute, ...]:
    """Check Configure, and give its routes as those of our table."""
    require(request.mtu in MTU, "bad-mtu", str(request.mtu))
    count = len(request.addresses)
    require(0 < count <= ADDRESSES_MAX, "bad-addresses", str(count))
    for address in request.addresses:
        check_address(address.ip)
        fits = address.version == 4 or request.mtu >= MTU6_MIN
        require(fits, "bad-mtu", "IPv6 needs 1280")
    require(len(request.dns) <= messages.DNS_MAX, "too-many-dns")
    for resolver in request.dns:
        check_address(resolver)
    check_search(request.search)
    require(len(request.routes) <= messages.ROUTES_MAX, "too-many-routes")
    return tuple(_route(route, device) for route in request.routes)


def check_search(search: Iterable[str]) -> None:
    """Refuse what is not a list of domain names."""
    names = tuple(search)
    require(len(names) <= SEARCH_MAX, "too-many-domains")
    for name in names:
        good = len(name) <= DOMAIN_MAX and _DOMAIN.fullmatch(name)
        require(good, "bad-domain")


def check_forwarding(request: messages.OpenForwarding) -> None:
    """Check OpenForwarding."""
    require(request.mss4 in MSS, "bad-mss", str(request.mss4))
    require(request.mss6 in MSS, "bad-mss", str(request.mss6))
    require(request.ipv4 or request.ipv6, "no-family")


def _route(route: messages.Route, device: str) -> TableRoute:
    try:
        network = ip_network(route.destination)
    except ValueError:
        raise RequestRefusedError("bad-route") from None
    require(str(network) == route.destination, "bad-route")
    require(0 <= route.metric <= METRIC_MAX, "bad-route", "metric")
    return TableRoute(network, device, route.metric)
