"""What a profile and a push share: ciphers, routes, DNS, compression."""

from collections.abc import Callable, Iterable
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
)
from typing import Any, Final

from qubes_vpn.config.document import Document, Item
from qubes_vpn.config.values import ADDRESS_BITS, Address, domain

Network = IPv4Network | IPv6Network
Route = tuple[Network, str, int]
# Told what is not applied, and why.
Refuse = Callable[[Item, str], None]

# With the defaults, neighbours and resolvers these are the 1024 at most that
# the keeper takes.
ROUTES_MAX: Final = 1008
DNS_MAX: Final = 8
SEARCH_MAX: Final = 32
DNS_PORT: Final = 53
# Of a control packet, in bytes: OpenVPN's default, and its buffer.
CONTROL_SIZE: Final = 1250
CONTROL_MAX: Final = 2048

# OpenSSL's other names.
_CIPHER_NAMES: Final = {
    f"ID-AES{bits}-GCM": f"AES-{bits}-GCM" for bits in (128, 192, 256)
}
_DOMAIN_KINDS: Final = ("DOMAIN", "DOMAIN-SEARCH", "ADAPTER_DOMAIN_SUFFIX")
TOPOLOGIES: Final = ("net30", "p2p", "subnet")
# What a packet is framed in, by what `compress` and `comp-lzo` say. We only
# ever send uncompressed packets.
FRAMINGS: Final = {
    "": "",
    "stub": "swap",
    "stub-v2": "stub-v2",
    "migrate": "",
    "lzo": "lzo-rx",
    "lz4": "lz4-rx",
    "lz4-v2": "lz4-v2-rx",
}


def cipher_name(word: str) -> str:
    """Give OpenVPN's name of a cipher, in capitals."""
    upper = word.upper()
    return _CIPHER_NAMES.get(upper, upper)


def route4(item: Item, metric: int) -> Route:
    """Read one `route`. Raises ValueError for a destination by name."""
    target = item.values[0]
    try:
        address = IPv4Address(target)
    except ValueError:
        message = f"the destination {target[:64]} is not an address"
        raise ValueError(message) from None
    prefix = item.value(1, ADDRESS_BITS)
    network = IPv4Network((address, prefix), strict=False)
    return network, _gateway(item, 2), _metric(item, 3, metric)


def route6(item: Item, metric: int) -> Route:
    """Read one `route-ipv6`. Raises ValueError."""
    return item.values[0], _gateway(item, 1), _metric(item, 2, metric)


def _gateway(item: Item, index: int) -> str:
    word = str(item.value(index, ""))
    return "" if word in {"default", "vpn_gateway"} else word


def _metric(item: Item, index: int, default: int) -> int:
    word = item.value(index)
    if word is None or word == "default":
        return default
    if not word.isascii() or not word.isdigit() or int(word[:12]) > 2**31:
        message = "the metric is not a number"
        raise ValueError(message)
    return int(word)


def routes(
    route_items: Iterable[Item],
    route6_items: Iterable[Item],
    metric: int,
    refuse: Refuse,
) -> tuple[Route, ...]:
    """Read routes into the tunnel; those outside it are refused."""
    found: dict[tuple[Network, str], Route] = {}
    both = [(item, route4) for item in route_items]
    both += [(item, route6) for item in route6_items]
    for item, read in both:
        try:
            route = read(item, metric)
        except ValueError as error:
            refuse(item, str(error))
            continue
        if route[1] in {"net_gateway", "remote_host", "net_gateway_ipv6"}:
            refuse(item, "leads outside the tunnel")
        elif len(found) >= ROUTES_MAX:
            refuse(item, f"over {ROUTES_MAX} routes")
        else:
            found.setdefault((route[0], route[1]), route)
    return tuple(found.values())


class UnusedError(ValueError):
    """It means something, and is not used here."""


class DnsOptions:
    """Collects `dhcp-option` and `dns` into resolvers and domains.

    When there is a `dns server`, it stands instead of `dhcp-option DNS`.
    """

    def __init__(self, refuse: Refuse, wrong: Refuse) -> None:
        """refuse: told of what is not used; wrong: of what means nothing."""
        self._refuse = refuse
        self._wrong = wrong
        self._dhcp: list[Address] = []
        self._servers: dict[int, list[Address]] = {}
        self._unusable: set[int] = set()
        self._search: list[str] = []

    def add(self, item: Item) -> None:
        """Take one directive."""
        try:
            if item.row.name == "dns":
                self._add_dns(item)
            else:
                self._add_dhcp(item)
        except UnusedError as error:
            self._refuse(item, str(error))
        except ValueError as error:
            self._wrong(item, str(error))

    def _add_dhcp(self, item: Item) -> None:
        kind, words = item.values[0].upper(), item.values[1:]
        if kind in {"DNS", "DNS6"} and words:
            self._dhcp.append(_resolver(words[0]))
        elif kind in _DOMAIN_KINDS and words:
            self._add_domains(words[:1])

    def _add_dns(self, item: Item) -> None:
        kind, words = item.values[0], item.values[1:]
        if kind == "search-domains" and words:
            self._add_domains(words)
            return
        if kind != "server" or len(words) < 3:
            message = "dns takes search-domains or server N KEYWORD VALUE"
            raise ValueError(message)
        try:
            priority = int(words[0][:5])
        except ValueError:
            message = "dns server needs a number from -128 to 127"
            raise ValueError(message) from None
        self._add_server(priority, words[1], words[2:])

    def _add_server(
        self, priority: int, kind: str, words: tuple[str, ...]
    ) -> None:
        if not -128 <= priority <= 127:
            message = "dns server needs a number from -128 to 127"
            raise ValueError(message)
        server = self._servers.setdefault(priority, [])
        if kind == "address":
            server += [_resolver(word) for word in words]
        elif kind == "transport" and words[0] in {"DoT", "DoH"}:
            self._unusable.add(priority)
            message = f"{words[0]} is not spoken here; plain DNS only"
            raise UnusedError(message)
        elif kind not in {
            "transport",
            "resolve-domains",
            "dnssec",
            "sni",
        }:
            message = f"dns server: unknown keyword {kind[:32]}"
            raise ValueError(message)

    def _add_domains(self, words: Iterable[str]) -> None:
        for word in words:
            name = domain(word).rstrip(".")
            if len(self._search) < SEARCH_MAX and name not in self._search:
                self._search.append(name)

    @property
    def resolvers(self) -> tuple[Address, ...]:
        """The resolvers in the order of preference, DNS_MAX at most."""
        found = [
            address
            for priority, server in sorted(self._servers.items())
            if priority not in self._unusable
            for address in server
        ]
        return tuple(dict.fromkeys(found or self._dhcp))[:DNS_MAX]

    @property
    def search(self) -> tuple[str, ...]:
        """The domains to search."""
        return tuple(self._search)


def _resolver(word: str) -> Address:
    """Read a resolver's address; a port behind it may only be 53."""
    text, port = word, ""
    if word.startswith("["):
        text, _, port = word[1:].partition("]:")
    elif word.count(":") == 1:
        text, _, port = word.partition(":")
    if port not in {"", str(DNS_PORT)}:
        message = "a resolver on another port than 53 is not used"
        raise UnusedError(message)
    try:
        address = ip_address(text)
    except ValueError:
        address = None
    if address is None or "%" in text or not is_usable(address):
        message = f"{word[:64]} is not the address of a resolver"
        raise ValueError(message)
    return address


def is_usable(address: IPv4Address | IPv6Address) -> bool:
    """Say whether it can be the address of another host in the tunnel."""
    mapped = address.version == 6 and address.ipv4_mapped
    return not (
        mapped
        or address.is_loopback
        or address.is_multicast
        or address.is_unspecified
        or address.is_link_local
        or address == IPv4Address("255.255.255.255")
    )


def silence(item: Item | None, restart: int, leave: int) -> tuple[int, int]:
    """Give ping-restart and ping-exit: whichever was said last is in force.

    item: the last of both. restart, leave: what holds without one.
    """
    if item is None:
        return restart, leave
    seconds = item.values[0]
    return (0, seconds) if item.row.name == "ping-exit" else (seconds, 0)


def mssfix(doc: Document, default: int | None) -> dict[str, Any]:
    """Give the size of mssfix, and what it is the size of, as Remote has it.

    max-packet-size is a mssfix, too, of the outer packet.
    """
    item = doc.last("mssfix", "max-packet-size")
    if item is None or not item.values:
        return {"mssfix": default, "mssfix_of": "mtu"}
    of = "mtu" if item.row.name == "max-packet-size" else item.value(1, "")
    return {"mssfix": item.values[0], "mssfix_of": of}


def control_size(doc: Document) -> int | None:
    """Read max-packet-size, as far as control packets heed it."""
    item = doc.last("max-packet-size")
    return min(item.values[0], CONTROL_MAX) if item else None


def framing(item: Item) -> str:
    """Give the packet framing that `compress` or `comp-lzo` asks for.

    Raises ValueError for an unknown algorithm.
    """
    word = item.value(0)
    if item.row.name == "comp-lzo":
        if word not in {None, "yes", "no", "adaptive"}:
            message = "comp-lzo takes yes, no or adaptive"
            raise ValueError(message)
        return "lzo-rx"
    if word not in FRAMINGS and word is not None:
        message = f"compress: unknown algorithm {word[:32]}"
        raise ValueError(message)
    return FRAMINGS[word or "stub"]
