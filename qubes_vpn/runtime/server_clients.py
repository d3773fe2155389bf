"""The data path of each client: whose packets these are, and where to.

Inner packets are routed by exact address, then by the clients' networks
(iroute), the longest prefix first. A client may send from its own addresses
and networks alone.
"""

import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network

from qubes_vpn.dataplane.link import Address, DatagramLink
from qubes_vpn.engine.data_channel import DataChannel
from qubes_vpn.engine.hello import Source
from qubes_vpn.engine.server_effects import Admitted
from qubes_vpn.runtime.server_stream import Stream

Network = IPv4Network | IPv6Network


class Sources:
    """The packed addresses that a client may send from."""

    def __init__(
        self, addresses: Iterable[bytes], networks: Iterable[Network]
    ) -> None:
        self.addresses = frozenset(addresses)
        self.networks = tuple(networks)
        self._prefixes = tuple(map(_prefix, self.networks))

    def __contains__(self, packed: object) -> bool:
        if packed in self.addresses:
            return True
        if not isinstance(packed, bytes) or not self._prefixes:
            return False
        return any(_matches(prefix, packed) for prefix in self._prefixes)


@dataclass(slots=True)
class Client:
    """One client of the data path.

    sock, address: where UDP packets to it go. link: what sends to it, a
    Stream where that is a TCP connection; None before it is known. since:
    unix seconds of its admission. floated: how often it moved.
    """

    number: int
    channel: DataChannel
    source: Source
    sock: socket.socket | None = None
    address: Address | None = None
    link: DatagramLink | Stream | None = None
    admitted: Admitted | None = None
    since: float = 0.0
    rx_packets: int = 0
    rx_bytes: int = 0
    tx_packets: int = 0
    tx_bytes: int = 0
    floated: int = 0
    sources: Sources = field(default_factory=lambda: Sources((), ()))

    @property
    def at_tcp(self) -> bool:
        """Whether it is connected over TCP."""
        return self.link is not None and self.link.stream


class Router:
    """Which client has an inner address."""

    def __init__(self) -> None:
        self._exact: dict[bytes, Client] = {}
        self._networks: list[tuple[_Prefix, Client]] = []

    def add(self, client: Client) -> None:
        """Route the client's addresses and networks to it."""
        for packed in client.sources.addresses:
            self._exact[packed] = client
        for network in client.sources.networks:
            self._networks.append((_prefix(network), client))
        self._networks.sort(key=lambda entry: -entry[0].length)

    def remove(self, client: Client) -> None:
        """Forget all routes to the client."""
        for packed in client.sources.addresses:
            if self._exact.get(packed) is client:
                del self._exact[packed]
        self._networks = [
            entry for entry in self._networks if entry[1] is not client
        ]

    def find(self, packed: bytes) -> Client | None:
        """Give the client that the packed destination belongs to."""
        client = self._exact.get(packed)
        if client is None and self._networks:
            for prefix, candidate in self._networks:
                if _matches(prefix, packed):
                    return candidate
        return client


@dataclass(frozen=True, slots=True)
class _Prefix:
    """size: of an address in bytes. shift: bits that are not compared."""

    size: int
    length: int
    shift: int
    value: int


def _prefix(network: Network) -> _Prefix:
    size = len(network.network_address.packed)
    shift = 8 * size - network.prefixlen
    return _Prefix(
        size, network.prefixlen, shift, int(network.network_address) >> shift
    )


def _matches(prefix: _Prefix, packed: bytes) -> bool:
    return (
        len(packed) == prefix.size
        and int.from_bytes(packed) >> prefix.shift == prefix.value
    )
